/* What the files of this folder share: one file in HDF5 (file_h5.c), the catalog of files (catalog.c), the manifest (manifest.c). */
#ifndef GW_CONTEXT_INTERNAL_H
#define GW_CONTEXT_INTERNAL_H

#include "context/checkpoint.h"

/* ---- file_h5.c: one file. Every function takes the lock around HDF5 for as long as it calls it ------------------------------- */

/* Pages of one slice in memory, to become a file. */
struct gw_ckpt_part {
    struct gw_ckpt_slice slice;
    uint64_t increment;
    int writer;
    int pages;
    struct gw_ckpt_identity *identities; /* [pages] */
    struct gw_ckpt_identity *parents;    /* [pages] */
    int32_t *tokens;                     /* [pages][GW_PAGE_TOKENS] */
    const uint16_t *kv;                  /* [pages][layer][key|value][kv_head][token][dim] */
};

/* Writes the part to a file of its own in `folder`, durably, under a temporary name until it is whole, and describes it. On error nothing is
 * left in the folder. */
GW_CHECK gw_err gw_ckpt_h5_write(const struct gw_ckpt_model *model, const struct gw_ckpt_part *part, const char *folder,
                                 struct gw_ckpt_file *file);

/* Compares size, first block and hash of a file with each other, without HDF5. GW_ERR_NOT_FOUND, GW_ERR_IO; GW_ERR_FORMAT: damaged, or
 * no checkpoint (*foreign). */
GW_CHECK gw_err gw_ckpt_h5_check(const char *path, uint64_t *bytes, uint64_t *hash, bool *foreign);

struct gw_ckpt_h5; /* an open file; reads it */

/* Opens a file that gw_ckpt_h5_check() has found whole. model, slice, increment, writer, pages and identities are filled from what
 * it says of itself. */
GW_CHECK gw_err gw_ckpt_h5_open(const char *path, struct gw_ckpt_model *model, struct gw_ckpt_file *file,
                                struct gw_ckpt_h5 **h5);
void gw_ckpt_h5_close(struct gw_ckpt_h5 *h5);
/* Reads the part of page `row` that lies in both `own` (the file's slice) and `want`, to its place in `out`, which has the shape of `want`. */
GW_CHECK gw_err gw_ckpt_h5_read(struct gw_ckpt_h5 *h5, int row, const struct gw_ckpt_slice *own,
                                const struct gw_ckpt_slice *want, uint16_t *out);
/* Parents [pages] and tokens [pages][GW_PAGE_TOKENS]. */
GW_CHECK gw_err gw_ckpt_h5_read_tables(struct gw_ckpt_h5 *h5, struct gw_ckpt_identity *parents, int32_t *tokens);

/* ---- catalog.c: files and where each page is ---------------------------------------------------------------------------- */

struct gw_ckpt_catalog {
    struct gw_ckpt_model model;
    uint64_t increment; /* highest seen */
    int missing;        /* files of the manifest that are not there with their size */
    struct gw_ckpt_file *files;
    bool *dead; /* [file_count] damaged or to be dropped: its pages do not exist */
    int file_count, file_room;
    struct gw_ckpt_spot *spots; /* every page of every file */
    int spot_count, spot_room;
    int32_t *table; /* [table_size, a power of two] first spot of an identity + 1, 0: none */
    size_t table_size, table_used;
    uint8_t *grid; /* scratch, [layers][kv_heads] */
};

struct gw_ckpt_spot {
    int file, row;
    int next; /* another spot of the same identity, -1: none */
};

void gw_ckpt_catalog_init(struct gw_ckpt_catalog *catalog, const struct gw_ckpt_model *model);
void gw_ckpt_catalog_free(struct gw_ckpt_catalog *catalog);
/* Takes the file, clears *file. */
void gw_ckpt_catalog_add(struct gw_ckpt_catalog *catalog, struct gw_ckpt_file *file);
/* Forgets the files that are dead. */
void gw_ckpt_catalog_compact(struct gw_ckpt_catalog *catalog);
/* First spot of an identity, -1: none. */
int gw_ckpt_catalog_find(const struct gw_ckpt_catalog *catalog, const struct gw_ckpt_identity *identity);
/* Are all layers and heads of `slice` in files that are not dead? */
bool gw_ckpt_catalog_covers(const struct gw_ckpt_catalog *catalog, const struct gw_ckpt_identity *identity,
                            const struct gw_ckpt_slice *slice);
bool gw_ckpt_catalog_has_name(const struct gw_ckpt_catalog *catalog, const char *name);

/* A plain name as gw_ckpt_h5_write() gives: it may be opened and unlinked in the folder. */
bool gw_ckpt_name_ok(const char *name);
/* Layers and heads within the model, not empty, sizes that go into memory. */
bool gw_ckpt_slice_ok(const struct gw_ckpt_model *model, const struct gw_ckpt_slice *slice);
bool gw_ckpt_model_ok(const struct gw_ckpt_model *model);
static inline bool gw_ckpt_slice_equal(const struct gw_ckpt_slice *a, const struct gw_ckpt_slice *b)
{
    return a->layer_begin == b->layer_begin && a->layer_end == b->layer_end && a->kv_begin == b->kv_begin &&
           a->kv_end == b->kv_end;
}
void gw_ckpt_hex(const void *bytes, size_t count, char *text); /* 2 * count digits and NUL */

/* ---- manifest.c --------------------------------------------------------------------------------------------------------- */

/* Reads the manifest in `folder`, or makes up for it (*rebuilt) from the whole files there. Files that are missing or have another size are left
 * out; one warning each, and one for a damaged manifest. `expected` NULL: whatever model is there (nothing at all: GW_ERR_NOT_FOUND).
 * GW_ERR_MISMATCH: another model or format. */
GW_CHECK gw_err gw_ckpt_manifest_load(const char *folder, const struct gw_ckpt_model *expected,
                                      struct gw_ckpt_catalog *catalog, bool *rebuilt);
/* Replaces it durably by the files of the catalog that are not dead. */
GW_CHECK gw_err gw_ckpt_manifest_save(const char *folder, const struct gw_ckpt_catalog *catalog);
char *gw_ckpt_manifest_path(const char *folder); /* caller frees */

#endif
