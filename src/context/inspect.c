/* Checking a checkpoint file, or the manifest of a folder, for people: `godwit inspect`. See checkpoint.h. */
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

gw_err gw_ckpt_inspect_folder(const char *folder, struct gw_ckpt_model *model, struct gw_ckpt_file **files, int *count,
                              int *missing, bool *damaged)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_catalog catalog = {0};
    *files = NULL;
    *count = *missing = 0;
    TRY(gw_ckpt_manifest_load(folder, NULL, &catalog, damaged));
    *model = catalog.model;
    *count = catalog.file_count;
    *missing = catalog.missing;
    *files = catalog.files;
    catalog.file_count = 0;
    catalog.files = NULL;
out:
    gw_ckpt_catalog_free(&catalog);
    return rc;
}
