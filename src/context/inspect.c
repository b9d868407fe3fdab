/* Checking a checkpoint file, or a folder of them, for people: `godwit inspect`. See checkpoint.h. */
#include "context/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A page's own identity must follow from its parent and tokens, and its data must pass the checksums. */
static gw_err check_pages(const char *path, struct gw_ckpt_h5 *h5, const struct gw_ckpt_info *info)
{
    gw_err rc = GW_OK;
    static const struct gw_ckpt_identity none;
    uint16_t *page = gw_alloc(gw_ckpt_slice_halves(&info->model, &info->file.slice), sizeof *page);
    for (int row = 0; row < info->file.pages; row++) {
        const struct gw_ckpt_identity *parent = &info->parents[row];
        bool first = !memcmp(parent, &none, sizeof none);
        struct gw_ckpt_identity identity = gw_ckpt_identity(&info->model, first ? NULL : parent,
                                                            info->tokens + (size_t)row * GW_PAGE_TOKENS);
        if (memcmp(&identity, &info->file.identities[row], sizeof identity) != 0)
            FAIL(GW_ERR_FORMAT, "%s: the identity of page %d does not follow from its tokens", path, row);
        TRY(gw_ckpt_h5_read(h5, row, &info->file.slice, &info->file.slice, page));
    }
out:
    free(page);
    return rc;
}

gw_err gw_ckpt_inspect(const char *path, struct gw_ckpt_info *info)
{
    gw_err rc = GW_OK;
    bool foreign = false;
    uint64_t bytes = 0, hash = 0;
    struct gw_ckpt_h5 *h5 = NULL;
    *info = (struct gw_ckpt_info){0};
    TRY(gw_ckpt_h5_check(path, &bytes, &hash, &foreign));
    TRY(gw_ckpt_h5_open(path, &info->model, &info->file, &h5));
    info->file.bytes = bytes;
    info->file.hash = hash;
    info->parents = gw_alloc((size_t)info->file.pages, sizeof *info->parents);
    info->tokens = gw_alloc((size_t)info->file.pages * GW_PAGE_TOKENS, sizeof *info->tokens);
    TRY(gw_ckpt_h5_read_tables(h5, info->parents, info->tokens));
    TRY(check_pages(path, h5, info));
    info->whole = true;
out:
    gw_ckpt_h5_close(h5);
    if (rc == GW_ERR_FORMAT && !foreign) { /* that is the answer, not a failure */
        snprintf(info->trouble, sizeof info->trouble, "%s", gw_error_detail());
        info->file.bytes = bytes;
        rc = GW_OK;
    }
    if (rc != GW_OK) gw_ckpt_info_free(info);
    return rc;
}

void gw_ckpt_info_free(struct gw_ckpt_info *info)
{
    gw_ckpt_file_free(&info->file);
    free(info->parents);
    free(info->tokens);
    *info = (struct gw_ckpt_info){0};
}

/* The trouble with file i of the catalog, "" if there is none. */
static void check_file(const char *folder, const struct gw_ckpt_file *file, char trouble[256])
{
    struct gw_ckpt_info info;
    char *path = gw_asprintf("%s/%s", folder, file->name);
    trouble[0] = 0;
    gw_err rc = gw_ckpt_inspect(path, &info);
    if (rc != GW_OK) snprintf(trouble, 256, "%s", gw_error_detail());
    else if (!info.whole) snprintf(trouble, 256, "%s", info.trouble);
    else if (info.file.hash != file->hash || info.file.bytes != file->bytes)
        snprintf(trouble, 256, "%.150s is another file than the one that the manifest names", path);
    if (rc == GW_OK) gw_ckpt_info_free(&info);
    free(path);
}

static void count_pages(struct gw_ckpt_catalog *catalog, struct gw_ckpt_folder *info)
{
    const struct gw_ckpt_slice all = {0, catalog->model.layers, 0, catalog->model.kv_heads};
    for (size_t cell = 0; cell < catalog->table_size; cell++) {
        if (!catalog->table[cell]) continue;
        const struct gw_ckpt_spot *spot = &catalog->spots[catalog->table[cell] - 1];
        info->pages++;
        info->pages_whole += gw_ckpt_catalog_covers(catalog, &catalog->files[spot->file].identities[spot->row], &all);
    }
}

gw_err gw_ckpt_inspect_folder(const char *path, struct gw_ckpt_folder *info)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_catalog catalog = {0};
    *info = (struct gw_ckpt_folder){0};
    TRY(gw_ckpt_manifest_load(path, NULL, &catalog, &info->rebuilt));
    info->model = catalog.model;
    info->increment = catalog.increment;
    info->missing = catalog.missing;
    info->file_count = catalog.file_count;
    info->troubles = gw_alloc((size_t)catalog.file_count + 1, sizeof *info->troubles);
    for (int i = 0; i < catalog.file_count; i++) {
        check_file(path, &catalog.files[i], info->troubles[i]);
        catalog.dead[i] = info->troubles[i][0] != 0;
        info->damaged += catalog.dead[i];
    }
    count_pages(&catalog, info);
    info->files = catalog.files;
    catalog.files = NULL;
    catalog.file_count = 0;
out:
    gw_ckpt_catalog_free(&catalog);
    return rc;
}

void gw_ckpt_folder_free(struct gw_ckpt_folder *info)
{
    for (int i = 0; i < info->file_count; i++) gw_ckpt_file_free(&info->files[i]);
    free(info->files);
    free(info->troubles);
    *info = (struct gw_ckpt_folder){0};
}
