/* Reading pages from the set of files, by any rank, in any slices. See checkpoint.h.
 *
 * A file goes from unknown to sound, or to dead: it is hashed from end to end before HDF5 opens it the first time, and what it says of
 * itself must be what the catalog says of it. Few are open at a time, since a process may have 1024 files only.
 */
#include "base/log.h"
#include "context/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPEN = 16 };

struct opened {
    struct gw_ckpt_h5 *h5;
    int file;
    uint64_t used; /* when, in calls */
};

struct gw_ckpt {
    char *folder;
    struct gw_ckpt_catalog catalog;
    bool *sound; /* [file_count] hashed */
    struct opened opened[MAX_OPEN];
    uint64_t clock;
};

gw_err gw_ckpt_open(const char *dir, const struct gw_ckpt_model *model, struct gw_ckpt **ckpt)
{
    gw_err rc = GW_OK;
    bool rebuilt = false;
    struct gw_ckpt *opened = gw_alloc(1, sizeof *opened);
    *ckpt = NULL;
    opened->folder = gw_asprintf("%s/%s", dir, GW_CKPT_FOLDER);
    TRY(gw_ckpt_manifest_load(opened->folder, model, &opened->catalog, &rebuilt));
    opened->sound = gw_alloc((size_t)opened->catalog.file_count + 1, sizeof *opened->sound);
    *ckpt = opened;
    opened = NULL;
out:
    gw_ckpt_close(opened);
    return rc;
}

void gw_ckpt_close(struct gw_ckpt *ckpt)
{
    if (!ckpt) return;
    for (int i = 0; i < MAX_OPEN; i++) gw_ckpt_h5_close(ckpt->opened[i].h5);
    gw_ckpt_catalog_free(&ckpt->catalog);
    free(ckpt->sound);
    free(ckpt->folder);
    free(ckpt);
}

int gw_ckpt_files(const struct gw_ckpt *ckpt)
{
    return ckpt->catalog.file_count;
}

const struct gw_ckpt_file *gw_ckpt_file_at(const struct gw_ckpt *ckpt, int i)
{
    GW_ASSERT(i >= 0 && i < ckpt->catalog.file_count);
    return &ckpt->catalog.files[i];
}

void gw_ckpt_exclude(struct gw_ckpt *ckpt, int i)
{
    GW_ASSERT(i >= 0 && i < ckpt->catalog.file_count);
    ckpt->catalog.dead[i] = true;
    for (int k = 0; k < MAX_OPEN; k++)
        if (ckpt->opened[k].h5 && ckpt->opened[k].file == i) {
            gw_ckpt_h5_close(ckpt->opened[k].h5);
            ckpt->opened[k] = (struct opened){0};
        }
}

/* The last error was about file i. */
static void damaged(struct gw_ckpt *ckpt, int i)
{
    gw_warn("%s; its %d pages will be computed again", gw_error_detail(), ckpt->catalog.files[i].pages);
    gw_ckpt_exclude(ckpt, i);
}

/* Size and hash against the manifest. */
static gw_err check_file(struct gw_ckpt *ckpt, int i, const char *path)
{
    gw_err rc = GW_OK;
    bool foreign;
    uint64_t bytes, hash;
    const struct gw_ckpt_file *file = &ckpt->catalog.files[i];
    if (ckpt->sound[i]) return GW_OK;
    TRY(gw_ckpt_h5_check(path, &bytes, &hash, &foreign));
    if (bytes != file->bytes || hash != file->hash)
        FAIL(GW_ERR_FORMAT, "%s is another file than the one that the manifest names", path);
    ckpt->sound[i] = true;
out:
    return rc;
}

static bool same_contents(const struct gw_ckpt_file *a, const struct gw_ckpt_file *b)
{
    return gw_ckpt_slice_equal(&a->slice, &b->slice) && a->pages == b->pages &&
           !memcmp(a->identities, b->identities, (size_t)a->pages * sizeof *a->identities);
}

static gw_err open_file(struct gw_ckpt *ckpt, int i, struct gw_ckpt_h5 **h5)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_model model = {0};
    struct gw_ckpt_file file = {0};
    char *path = NULL;
    int oldest = 0;
    for (int k = 0; k < MAX_OPEN; k++) {
        if (ckpt->opened[k].h5 && ckpt->opened[k].file == i) {
            ckpt->opened[k].used = ++ckpt->clock;
            *h5 = ckpt->opened[k].h5;
            return GW_OK;
        }
        if (ckpt->opened[k].used < ckpt->opened[oldest].used) oldest = k;
    }
    struct opened *place = &ckpt->opened[oldest];
    gw_ckpt_h5_close(place->h5);
    *place = (struct opened){0};
    path = gw_asprintf("%s/%s", ckpt->folder, ckpt->catalog.files[i].name);
    TRY(check_file(ckpt, i, path));
    TRY(gw_ckpt_h5_open(path, &model, &file, h5));
    *place = (struct opened){.h5 = *h5, .file = i, .used = ++ckpt->clock};
    if (strcmp(model.fingerprint, ckpt->catalog.model.fingerprint) != 0 ||
        model.head_dim != ckpt->catalog.model.head_dim || !same_contents(&file, &ckpt->catalog.files[i]))
        FAIL(GW_ERR_FORMAT, "%s holds something else than the manifest says", path);
out:
    gw_ckpt_file_free(&file);
    free(path);
    return rc;
}

bool gw_ckpt_verify(struct gw_ckpt *ckpt, int i)
{
    GW_ASSERT(i >= 0 && i < ckpt->catalog.file_count);
    struct gw_ckpt_h5 *h5;
    if (!ckpt->catalog.dead[i] && open_file(ckpt, i, &h5) != GW_OK) damaged(ckpt, i);
    return !ckpt->catalog.dead[i];
}

bool gw_ckpt_has(struct gw_ckpt *ckpt, const struct gw_ckpt_identity *identity)
{
    const struct gw_ckpt_model *model = &ckpt->catalog.model;
    return gw_ckpt_catalog_covers(&ckpt->catalog, identity,
                                  &(struct gw_ckpt_slice){0, model->layers, 0, model->kv_heads});
}

static bool overlap(const struct gw_ckpt_slice *a, const struct gw_ckpt_slice *b)
{
    return a->layer_begin < b->layer_end && b->layer_begin < a->layer_end && a->kv_begin < b->kv_end &&
           b->kv_begin < a->kv_end;
}

/* Marks what `own` covers of `want` in the grid; false when nothing of it was missing. */
static bool fill_grid(struct gw_ckpt_catalog *catalog, const struct gw_ckpt_slice *own,
                      const struct gw_ckpt_slice *want)
{
    bool filled = false;
    for (int layer = want->layer_begin; layer < want->layer_end; layer++)
        for (int head = want->kv_begin; head < want->kv_end; head++) {
            if (layer < own->layer_begin || layer >= own->layer_end || head < own->kv_begin || head >= own->kv_end)
                continue;
            uint8_t *cell = &catalog->grid[(size_t)layer * (size_t)catalog->model.kv_heads + (size_t)head];
            filled |= !*cell;
            *cell = 1;
        }
    return filled;
}

gw_err gw_ckpt_read(struct gw_ckpt *ckpt, const struct gw_ckpt_identity *identity, const struct gw_ckpt_slice *slice,
                    uint16_t *out)
{
    struct gw_ckpt_catalog *catalog = &ckpt->catalog;
    GW_ASSERT(gw_ckpt_slice_ok(&catalog->model, slice));
again:
    if (!gw_ckpt_catalog_covers(catalog, identity, slice)) {
        char hex[2 * GW_CKPT_IDENTITY_BYTES + 1];
        gw_ckpt_hex(identity, GW_CKPT_IDENTITY_BYTES, hex);
        return gw_fail(GW_ERR_NOT_FOUND, "%s: no whole page %s", ckpt->folder, hex);
    }
    memset(catalog->grid, 0, (size_t)catalog->model.layers * (size_t)catalog->model.kv_heads);
    for (int spot = gw_ckpt_catalog_find(catalog, identity); spot >= 0; spot = catalog->spots[spot].next) {
        int i = catalog->spots[spot].file;
        const struct gw_ckpt_slice *own = &catalog->files[i].slice;
        struct gw_ckpt_h5 *h5;
        if (catalog->dead[i] || !overlap(own, slice) || !fill_grid(catalog, own, slice)) continue;
        gw_err rc = open_file(ckpt, i, &h5);
        if (rc == GW_OK) rc = gw_ckpt_h5_read(h5, catalog->spots[spot].row, own, slice, out);
        if (rc == GW_OK) continue;
        damaged(ckpt, i);
        goto again; /* perhaps other files have it, too */
    }
    return GW_OK;
}
