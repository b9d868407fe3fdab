/* The leader's set: adds finished files, drops those that nobody needs, keeps the manifest. See checkpoint.h.
 *
 * Order on disk: a file is whole before it is in the manifest, and out of the manifest before it is gone. */
#include "base/file.h"
#include "base/log.h"
#include "context/internal.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct gw_ckpt_set {
    char *folder;
    struct gw_ckpt_catalog catalog;
};

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

/* Removes what writers and manifests of the past have left. Other people's files stay. */
static void sweep_folder(const struct gw_ckpt_set *set)
{
    DIR *dir = opendir(set->folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char *name = gw_strdup(entry->d_name);
        bool temporary = ends_with(name, ".tmp");
        if (temporary) name[strlen(name) - 4] = 0;
        bool ours = gw_ckpt_name_ok(name) || (temporary && !strcmp(name, "manifest.json"));
        if (ours && (temporary || !gw_ckpt_catalog_has_name(&set->catalog, name))) {
            char *path = gw_asprintf("%s/%s", set->folder, entry->d_name);
            if (unlink(path)) gw_warn("cannot remove %s: %s", path, strerror(errno));
            free(path);
        }
        free(name);
    }
    if (dir) closedir(dir);
}

gw_err gw_ckpt_set_open(const char *dir, const struct gw_ckpt_model *model, bool sweep, struct gw_ckpt_set **set)
{
    gw_err rc = GW_OK;
    bool rebuilt = false;
    struct gw_ckpt_set *opened = gw_alloc(1, sizeof *opened);
    *set = NULL;
    opened->folder = gw_asprintf("%s/%s", dir, GW_CKPT_FOLDER);
    TRY(gw_make_dir(opened->folder));
    TRY(gw_ckpt_manifest_load(opened->folder, model, &opened->catalog, &rebuilt));
    if (sweep) sweep_folder(opened);
    /* so that the other ranks need not look at all files as well */
    if (rebuilt && opened->catalog.file_count && gw_ckpt_set_commit(opened) != GW_OK) gw_warn("%s", gw_error_detail());
    *set = opened;
    opened = NULL;
out:
    gw_ckpt_set_close(opened);
    return rc;
}

void gw_ckpt_set_close(struct gw_ckpt_set *set)
{
    if (!set) return;
    gw_ckpt_catalog_free(&set->catalog);
    free(set->folder);
    free(set);
}

gw_err gw_ckpt_set_add(struct gw_ckpt_set *set, struct gw_ckpt_file *file)
{
    gw_err rc = GW_OK;
    struct stat st;
    char *path = gw_asprintf("%s/%s", set->folder, file->name);
    if (!gw_ckpt_name_ok(file->name) || !gw_ckpt_slice_ok(&set->catalog.model, &file->slice))
        FAIL(GW_ERR_MISMATCH, "%s: not a checkpoint file of this model", path);
    if (stat(path, &st) || (uint64_t)st.st_size != file->bytes)
        FAIL(GW_ERR_NOT_FOUND, "checkpoint file %s is not there with its %" PRIu64 " bytes", path, file->bytes);
    if (!gw_ckpt_catalog_has_name(&set->catalog, file->name)) gw_ckpt_catalog_add(&set->catalog, file);
out:
    gw_ckpt_file_free(file);
    free(path);
    return rc;
}

static int by_bytes(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct gw_ckpt_identity));
}

void gw_ckpt_set_prune(struct gw_ckpt_set *set, const struct gw_ckpt_identity *keep, size_t count, double min_share,
                       size_t *lost)
{
    struct gw_ckpt_catalog *catalog = &set->catalog;
    struct gw_ckpt_identity *sorted = gw_alloc(count + 1, sizeof *sorted);
    size_t before = 0, after = 0;
    if (count) memcpy(sorted, keep, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_bytes);
    for (size_t i = 0; lost && i < count; i++) before += gw_ckpt_set_has(set, &sorted[i]);
    for (int i = 0; i < catalog->file_count; i++) {
        const struct gw_ckpt_file *file = &catalog->files[i];
        int needed = 0;
        for (int row = 0; row < file->pages; row++)
            needed += bsearch(&file->identities[row], sorted, count, sizeof *sorted, by_bytes) != NULL;
        if (needed == 0 || needed < min_share * file->pages) catalog->dead[i] = true;
    }
    for (size_t i = 0; lost && i < count; i++) after += gw_ckpt_set_has(set, &sorted[i]);
    if (lost) *lost = before - after;
    free(sorted);
}

gw_err gw_ckpt_set_commit(struct gw_ckpt_set *set)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_catalog *catalog = &set->catalog;
    TRY(gw_ckpt_manifest_save(set->folder, catalog));
    for (int i = 0; i < catalog->file_count; i++) {
        if (!catalog->dead[i]) continue;
        char *path = gw_asprintf("%s/%s", set->folder, catalog->files[i].name);
        if (unlink(path) && errno != ENOENT) gw_warn("cannot remove %s: %s", path, strerror(errno));
        free(path);
    }
    gw_ckpt_catalog_compact(catalog);
out:
    return rc;
}

bool gw_ckpt_set_has(const struct gw_ckpt_set *set, const struct gw_ckpt_identity *identity)
{
    const struct gw_ckpt_model *model = &set->catalog.model;
    return gw_ckpt_catalog_covers(&set->catalog, identity,
                                  &(struct gw_ckpt_slice){0, model->layers, 0, model->kv_heads});
}

uint64_t gw_ckpt_set_increment(const struct gw_ckpt_set *set)
{
    return set->catalog.increment;
}

int gw_ckpt_set_files(const struct gw_ckpt_set *set)
{
    int alive = 0;
    for (int i = 0; i < set->catalog.file_count; i++) alive += !set->catalog.dead[i];
    return alive;
}

uint64_t gw_ckpt_set_bytes(const struct gw_ckpt_set *set)
{
    uint64_t bytes = 0;
    for (int i = 0; i < set->catalog.file_count; i++)
        if (!set->catalog.dead[i]) bytes += set->catalog.files[i].bytes;
    return bytes;
}
