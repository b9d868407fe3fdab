/* GGUF files: a checked, read-only view of metadata and tensors over a memory map.
 *
 * Everything that the file claims is checked against its size before use, so a truncated, corrupt or foreign file gives one
 * GW_ERR_FORMAT line that names the file and the field. Supports GGUF versions 2 and 3, little endian. Local.
 */
#ifndef GW_MODEL_GGUF_H
#define GW_MODEL_GGUF_H

#include "base/error.h"
#include "kernels/types.h"

#include <stdbool.h>
#include <stdint.h>

struct gw_gguf; /* opaque */

enum gw_gguf_kind {
    GW_GGUF_U8,
    GW_GGUF_I8,
    GW_GGUF_U16,
    GW_GGUF_I16,
    GW_GGUF_U32,
    GW_GGUF_I32,
    GW_GGUF_F32,
    GW_GGUF_BOOL,
    GW_GGUF_STRING,
    GW_GGUF_ARRAY,
    GW_GGUF_U64,
    GW_GGUF_I64,
    GW_GGUF_F64
};

struct gw_str {
    const char *data; /* not NUL-terminated; points into the map */
    size_t bytes;
};

struct gw_gguf_tensor {
    struct gw_str name;
    const struct gw_type_info *type; /* never NULL: a file with an unknown type is refused */
    int dims;                        /* 1..4 */
    uint64_t shape[4];               /* shape[0] is the row length (k), shape[1] the rows (n); unused are 1 */
    const uint8_t *data;             /* into the map; `bytes` of it are inside the file */
    uint64_t bytes;
    uint64_t row_bytes;
};

/* Opens and checks `path`. gw_gguf_close() frees it and unmaps the file. */
GW_CHECK gw_err gw_gguf_open(const char *path, struct gw_gguf **gguf);
/* The same over memory (for tests and fuzzing); `data` is 8-byte aligned and must stay valid; `name` is used in messages. */
GW_CHECK gw_err gw_gguf_parse(const char *name, const uint8_t *data, size_t bytes, struct gw_gguf **gguf);
void gw_gguf_close(struct gw_gguf *gguf);
/* Row `row` of a tensor as it is in the file, tensor->row_bytes, without making the map resident. GW_ERR_IO. */
GW_CHECK gw_err gw_gguf_read_row(const struct gw_gguf *gguf, const struct gw_gguf_tensor *tensor, uint64_t row,
                                 uint8_t *to);
/* Most of it has been read and is not needed soon: see gw_map_let_go(). */
void gw_gguf_let_go(const struct gw_gguf *gguf);

const char *gw_gguf_path(const struct gw_gguf *gguf);
uint64_t gw_gguf_file_bytes(const struct gw_gguf *gguf);
/* The whole file, and where its tensor data begins (everything before is header, metadata and tensor table). */
const uint8_t *gw_gguf_data(const struct gw_gguf *gguf);
uint64_t gw_gguf_data_offset(const struct gw_gguf *gguf);
uint32_t gw_gguf_version(const struct gw_gguf *gguf);
uint32_t gw_gguf_alignment(const struct gw_gguf *gguf);

/* Metadata by key. get_* return false when the key is absent or of another kind (integers of every width, and bool, convert to
 * each other when the value fits; get_f64 takes every number). Arrays: of strings and of numbers. */
bool gw_gguf_get_str(const struct gw_gguf *gguf, const char *key, struct gw_str *value);
bool gw_gguf_get_u64(const struct gw_gguf *gguf, const char *key, uint64_t *value);
bool gw_gguf_get_f64(const struct gw_gguf *gguf, const char *key, double *value);
bool gw_gguf_get_bool(const struct gw_gguf *gguf, const char *key, bool *value);
/* Array length and element kind; false if absent or not an array. */
bool gw_gguf_get_array(const struct gw_gguf *gguf, const char *key, enum gw_gguf_kind *element, uint64_t *count);
/* Element access is O(1) for numbers; for strings the array is indexed once at open. index < count (asserted). */
struct gw_str gw_gguf_array_str(const struct gw_gguf *gguf, const char *key, uint64_t index);
double gw_gguf_array_f64(const struct gw_gguf *gguf, const char *key, uint64_t index);
/* Bulk forms: pointers valid while open. *strings has *count entries. */
bool gw_gguf_get_strings(const struct gw_gguf *gguf, const char *key, const struct gw_str **strings, uint64_t *count);

/* Iteration for `inspect`. */
size_t gw_gguf_key_count(const struct gw_gguf *gguf);
struct gw_str gw_gguf_key(const struct gw_gguf *gguf, size_t index, enum gw_gguf_kind *kind);
size_t gw_gguf_tensor_count(const struct gw_gguf *gguf);
const struct gw_gguf_tensor *gw_gguf_tensor_at(const struct gw_gguf *gguf, size_t index);
/* NULL if absent. */
const struct gw_gguf_tensor *gw_gguf_tensor_find(const struct gw_gguf *gguf, const char *name);

/* `text` for a message: unprintable bytes as '?', cut with "..." to fit. Returns buf. */
#define GW_SHOW_BYTES 72
const char *gw_str_show(struct gw_str text, char buf[GW_SHOW_BYTES]);

#endif
