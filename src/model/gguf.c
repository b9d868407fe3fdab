/* GGUF reader. See gguf.h; the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 * A file is: header (magic, version, tensor count, key count), key-value pairs, tensor table, padding, tensor data. It is read once,
 * front to back, through a bounded reader; nothing that the file says (a count, a length, an offset) is used before it is checked
 * against the bytes that are left. Values stay in the map; only the two tables and the indices of string arrays are built. Keys and
 * tensors are found by binary search in sorted index arrays, which also show duplicates.
 */
#include "model/gguf.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "weights are read in place, so the host must be little endian");

enum {
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 20,
    MAX_KEYS = 1 << 16,
    MAX_TENSORS = 1 << 16,
    MAX_KEY_BYTES = 65535,       /* the format's limit */
    MAX_TENSOR_NAME_BYTES = 127, /* the format says 64; some tools write longer ones */
    MIN_KEY_RECORD_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_RECORD_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
};

struct value {
    struct gw_str key;
    enum gw_gguf_kind kind;
    enum gw_gguf_kind element; /* of an array */
    uint64_t count;            /* of an array, else 1 */
    const uint8_t *data;       /* in the map: the number(s), or the bytes of a string */
    uint64_t bytes;            /* of a string */
    struct gw_str *strings;    /* [count] of an array of strings */
};

struct gw_gguf {
    char *path;
    struct gw_map map; /* data NULL when the memory is the caller's */
    const uint8_t *data;
    uint64_t bytes, data_offset;
    uint32_t version, alignment;
    struct value *values;
    size_t value_count;
    const struct value **values_sorted; /* by key */
    struct gw_gguf_tensor *tensors;
    uint64_t *tensor_offsets; /* from data_offset */
    size_t tensor_count;
    const struct gw_gguf_tensor **tensors_sorted; /* by name */
};

static const uint8_t kind_bytes[] = {
    [GW_GGUF_U8] = 1,  [GW_GGUF_I8] = 1,  [GW_GGUF_U16] = 2,  [GW_GGUF_I16] = 2,    [GW_GGUF_U32] = 4,
    [GW_GGUF_I32] = 4, [GW_GGUF_F32] = 4, [GW_GGUF_BOOL] = 1, [GW_GGUF_STRING] = 0, [GW_GGUF_ARRAY] = 0,
    [GW_GGUF_U64] = 8, [GW_GGUF_I64] = 8, [GW_GGUF_F64] = 8,
};
enum { KIND_COUNT = sizeof kind_bytes };

/* Weight types that exist but that godwit does not read, so that the message can name them. */
static const struct {
    uint32_t type;
    const char *name;
} foreign_types[] = {
    {9, "Q8_1"},   {10, "Q2_K"},   {11, "Q3_K"},  {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
    {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"},  {24, "I8"},     {25, "I16"},
    {26, "I32"},   {27, "I64"},    {28, "F64"},   {29, "IQ1_M"}, {34, "TQ1_0"},   {35, "TQ2_0"},  {39, "MXFP4"},
};

const char *gw_str_show(struct gw_str text, char buf[GW_SHOW_BYTES])
{
    size_t fits = GW_SHOW_BYTES - 1;
    size_t shown = text.bytes <= fits ? text.bytes : fits - 3;
    for (size_t i = 0; i < shown; i++) {
        unsigned char c = (unsigned char)text.data[i];
        buf[i] = c >= 0x20 && c < 0x7f ? (char)c : '?';
    }
    if (shown < text.bytes)
        for (int dot = 0; dot < 3; dot++) buf[shown++] = '.';
    buf[shown] = 0;
    return buf;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static size_t left(const struct gw_reader *in)
{
    return in->bytes - in->at;
}

static gw_err truncated(const struct gw_gguf *g, const struct gw_reader *in, const char *what)
{
    return gw_fail(GW_ERR_FORMAT,
                   "%s: the file ends inside %s (at byte %zu of %zu): truncated or corrupt, fetch it again", g->path,
                   what, in->at, in->bytes);
}

static gw_err read_u32(const struct gw_gguf *g, struct gw_reader *in, const char *what, uint32_t *value)
{
    *value = gw_read_u32(in);
    return in->failed ? truncated(g, in, what) : GW_OK;
}

static gw_err read_u64(const struct gw_gguf *g, struct gw_reader *in, const char *what, uint64_t *value)
{
    *value = gw_read_u64(in);
    return in->failed ? truncated(g, in, what) : GW_OK;
}

static gw_err read_str(const struct gw_gguf *g, struct gw_reader *in, const char *what, struct gw_str *text)
{
    gw_err rc = GW_OK;
    uint64_t bytes = 0;
    TRY(read_u64(g, in, what, &bytes));
    if (bytes > left(in)) return truncated(g, in, what);
    text->data = gw_read(in, (size_t)bytes);
    text->bytes = (size_t)bytes;
out:
    return rc;
}

static gw_err read_header(struct gw_gguf *g, struct gw_reader *in, uint64_t *tensors, uint64_t *keys)
{
    gw_err rc = GW_OK;
    uint32_t version;
    if (g->bytes < 4 || memcmp(g->data, "GGUF", 4) != 0)
        FAIL(GW_ERR_FORMAT,
             "%s is not a GGUF file (it does not begin with 'GGUF'); godwit reads models in GGUF format only", g->path);
    in->at = 4;
    TRY(read_u32(g, in, "the version", &version));
    if ((version & 0xffff) == 0 && version != 0)
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: a big-endian GGUF file; convert it to little endian (gguf-py: gguf-convert-endian)", g->path);
    if (version == 1)
        FAIL(GW_ERR_UNSUPPORTED, "%s: GGUF version 1 is too old; convert the model again with a current llama.cpp",
             g->path);
    if (version != 2 && version != 3)
        FAIL(GW_ERR_UNSUPPORTED, "%s: GGUF version %u; godwit reads versions 2 and 3", g->path, version);
    g->version = version;
    TRY(read_u64(g, in, "the tensor count", tensors));
    TRY(read_u64(g, in, "the key count", keys));
    if (*keys > MAX_KEYS || *keys > left(in) / MIN_KEY_RECORD_BYTES)
        FAIL(GW_ERR_FORMAT,
             "%s: claims %llu metadata keys, more than the file can hold: truncated or corrupt, fetch it again",
             g->path, (unsigned long long)*keys);
    if (*tensors > MAX_TENSORS || *tensors > left(in) / MIN_TENSOR_RECORD_BYTES)
        FAIL(GW_ERR_FORMAT,
             "%s: claims %llu tensors, more than the file can hold: truncated or corrupt, fetch it again", g->path,
             (unsigned long long)*tensors);
out:
    return rc;
}

static gw_err check_bools(const struct gw_gguf *g, const struct value *v, const char *what)
{
    for (uint64_t i = 0; i < v->count; i++)
        if (v->data[i] > 1)
            return gw_fail(GW_ERR_FORMAT, "%s: %s holds %d where a boolean (0 or 1) belongs: corrupt, fetch it again",
                           g->path, what, v->data[i]);
    return GW_OK;
}

static gw_err read_array(struct gw_gguf *g, struct gw_reader *in, const char *what, struct value *v)
{
    gw_err rc = GW_OK;
    uint32_t element;
    TRY(read_u32(g, in, what, &element));
    TRY(read_u64(g, in, what, &v->count));
    if (element >= KIND_COUNT)
        FAIL(GW_ERR_FORMAT, "%s: %s is an array of unknown kind %u: corrupt, fetch it again", g->path, what, element);
    v->element = (enum gw_gguf_kind)element;
    if (v->element == GW_GGUF_ARRAY)
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: %s is an array of arrays, which godwit does not read; remove the key (gguf-new-metadata)", g->path,
             what);
    size_t least_bytes = v->element == GW_GGUF_STRING ? sizeof(uint64_t) : kind_bytes[element];
    if (v->count > left(in) / least_bytes) return truncated(g, in, what);
    if (v->element != GW_GGUF_STRING) {
        v->data = gw_read(in, (size_t)v->count * least_bytes);
        if (v->element == GW_GGUF_BOOL) TRY(check_bools(g, v, what));
        return GW_OK;
    }
    v->strings = gw_alloc((size_t)v->count, sizeof *v->strings);
    for (uint64_t i = 0; i < v->count; i++) TRY(read_str(g, in, what, &v->strings[i]));
out:
    return rc;
}

static gw_err read_value(struct gw_gguf *g, struct gw_reader *in, struct value *v)
{
    gw_err rc = GW_OK;
    char shown[GW_SHOW_BYTES], what[GW_SHOW_BYTES + 16];
    uint32_t kind;
    TRY(read_str(g, in, "a metadata key", &v->key));
    snprintf(what, sizeof what, "key '%s'", gw_str_show(v->key, shown));
    if (v->key.bytes == 0 || v->key.bytes > MAX_KEY_BYTES)
        FAIL(GW_ERR_FORMAT, "%s: a metadata key of %zu bytes: corrupt, fetch it again", g->path, v->key.bytes);
    TRY(read_u32(g, in, what, &kind));
    if (kind >= KIND_COUNT)
        FAIL(GW_ERR_FORMAT, "%s: %s has unknown kind %u: corrupt, fetch it again", g->path, what, kind);
    v->kind = (enum gw_gguf_kind)kind;
    if (v->kind == GW_GGUF_ARRAY) return read_array(g, in, what, v);
    v->count = 1;
    if (v->kind == GW_GGUF_STRING) {
        struct gw_str text;
        TRY(read_str(g, in, what, &text));
        v->data = (const uint8_t *)text.data;
        v->bytes = text.bytes;
    } else {
        v->data = gw_read(in, kind_bytes[kind]);
        if (!v->data) return truncated(g, in, what);
        if (v->kind == GW_GGUF_BOOL) TRY(check_bools(g, v, what));
    }
out:
    return rc;
}

static const char *foreign_type_name(uint32_t type)
{
    for (size_t i = 0; i < sizeof foreign_types / sizeof *foreign_types; i++)
        if (foreign_types[i].type == type) return foreign_types[i].name;
    return "unknown";
}

/* Sizes of one tensor from its shape; what is wrong with them otherwise. */
static gw_err size_tensor(const struct gw_gguf *g, struct gw_gguf_tensor *t, const char *shown)
{
    uint64_t elements = 1, rows = 1;
    for (int i = 0; i < t->dims; i++) {
        if (t->shape[i] == 0)
            return gw_fail(GW_ERR_FORMAT, "%s: tensor '%s' has a dimension of 0: corrupt, fetch it again", g->path,
                           shown);
        if (__builtin_mul_overflow(elements, t->shape[i], &elements) || elements > INT64_MAX)
            return gw_fail(GW_ERR_FORMAT, "%s: tensor '%s' is absurdly large: corrupt, fetch it again", g->path, shown);
        if (i > 0) rows *= t->shape[i]; /* a factor of `elements`, so it fits */
    }
    uint64_t block = (uint64_t)t->type->block_elements;
    if (t->shape[0] % block)
        return gw_fail(GW_ERR_FORMAT,
                       "%s: tensor '%s' has rows of %llu elements, not a multiple of %s's %d: corrupt, fetch it again",
                       g->path, shown, (unsigned long long)t->shape[0], t->type->name, t->type->block_elements);
    if (__builtin_mul_overflow(t->shape[0] / block, (uint64_t)t->type->block_bytes, &t->row_bytes) ||
        __builtin_mul_overflow(t->row_bytes, rows, &t->bytes))
        return gw_fail(GW_ERR_FORMAT, "%s: tensor '%s' is absurdly large: corrupt, fetch it again", g->path, shown);
    return GW_OK;
}

static gw_err read_tensor(struct gw_gguf *g, struct gw_reader *in, struct gw_gguf_tensor *t, uint64_t *offset)
{
    gw_err rc = GW_OK;
    char shown[GW_SHOW_BYTES], what[GW_SHOW_BYTES + 16];
    uint32_t dims, type;
    TRY(read_str(g, in, "the tensor table", &t->name));
    snprintf(what, sizeof what, "tensor '%s'", gw_str_show(t->name, shown));
    if (t->name.bytes == 0 || t->name.bytes > MAX_TENSOR_NAME_BYTES)
        FAIL(GW_ERR_FORMAT, "%s: a tensor name of %zu bytes: corrupt, fetch it again", g->path, t->name.bytes);
    TRY(read_u32(g, in, what, &dims));
    if (dims < 1 || dims > 4)
        FAIL(GW_ERR_FORMAT, "%s: %s has %u dimensions (1 to 4 are possible): corrupt, fetch it again", g->path, what,
             dims);
    t->dims = (int)dims;
    for (int i = 0; i < 4; i++) {
        t->shape[i] = 1;
        if (i < t->dims) TRY(read_u64(g, in, what, &t->shape[i]));
    }
    TRY(read_u32(g, in, what, &type));
    TRY(read_u64(g, in, what, offset));
    t->type = gw_type_info(type);
    if (!t->type)
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: %s has weight type %s (ggml type %u), which godwit does not read; take a file in "
             "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K",
             g->path, what, foreign_type_name(type), type);
    TRY(size_tensor(g, t, shown));
out:
    return rc;
}

/* ---- indices --------------------------------------------------------------------------------------------------- */

static int compare_str(struct gw_str a, struct gw_str b)
{
    size_t least = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = memcmp(a.data, b.data, least);
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int compare_values(const void *a, const void *b)
{
    return compare_str((*(const struct value *const *)a)->key, (*(const struct value *const *)b)->key);
}

static int compare_tensors(const void *a, const void *b)
{
    return compare_str((*(const struct gw_gguf_tensor *const *)a)->name,
                       (*(const struct gw_gguf_tensor *const *)b)->name);
}

static int compare_places(const void *a, const void *b)
{
    const uint8_t *x = (*(const struct gw_gguf_tensor *const *)a)->data,
                  *y = (*(const struct gw_gguf_tensor *const *)b)->data;
    return (x > y) - (x < y);
}

static gw_err index_values(struct gw_gguf *g)
{
    char shown[GW_SHOW_BYTES];
    g->values_sorted = gw_alloc(g->value_count, sizeof *g->values_sorted);
    for (size_t i = 0; i < g->value_count; i++) g->values_sorted[i] = &g->values[i];
    qsort(g->values_sorted, g->value_count, sizeof *g->values_sorted, compare_values);
    for (size_t i = 1; i < g->value_count; i++)
        if (compare_values(&g->values_sorted[i - 1], &g->values_sorted[i]) == 0)
            return gw_fail(GW_ERR_FORMAT, "%s: metadata key '%s' appears twice: corrupt, fetch it again", g->path,
                           gw_str_show(g->values_sorted[i]->key, shown));
    return GW_OK;
}

static gw_err index_tensors(struct gw_gguf *g)
{
    gw_err rc = GW_OK;
    char shown[GW_SHOW_BYTES], other[GW_SHOW_BYTES];
    size_t n = g->tensor_count;
    const struct gw_gguf_tensor **sorted = gw_alloc(n, sizeof *sorted);
    g->tensors_sorted = sorted;
    for (size_t i = 0; i < n; i++) sorted[i] = &g->tensors[i];
    /* First by place: a table entry that was damaged most often points into another tensor. */
    qsort(sorted, n, sizeof *sorted, compare_places);
    for (size_t i = 1; i < n; i++)
        if (sorted[i - 1]->bytes > (uint64_t)(sorted[i]->data - sorted[i - 1]->data))
            FAIL(GW_ERR_FORMAT, "%s: tensors '%s' and '%s' overlap: corrupt, fetch it again", g->path,
                 gw_str_show(sorted[i - 1]->name, shown), gw_str_show(sorted[i]->name, other));
    qsort(sorted, n, sizeof *sorted, compare_tensors);
    for (size_t i = 1; i < n; i++)
        if (compare_tensors(&sorted[i - 1], &sorted[i]) == 0)
            FAIL(GW_ERR_FORMAT, "%s: tensor '%s' appears twice: corrupt, fetch it again", g->path,
                 gw_str_show(sorted[i]->name, shown));
out:
    return rc;
}

static const struct value *find_value(const struct gw_gguf *g, const char *key)
{
    struct value wanted = {.key = {key, strlen(key)}};
    const struct value *at = &wanted;
    if (g->value_count == 0) return NULL;
    const struct value **found = bsearch(&at, g->values_sorted, g->value_count, sizeof *g->values_sorted,
                                         compare_values);
    return found ? *found : NULL;
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

static gw_err read_alignment(struct gw_gguf *g)
{
    uint64_t alignment = DEFAULT_ALIGNMENT;
    if (find_value(g, "general.alignment") && !gw_gguf_get_u64(g, "general.alignment", &alignment)) alignment = 0;
    if (alignment < 8 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
        return gw_fail(GW_ERR_FORMAT,
                       "%s: general.alignment is not a power of two from 8 to %d: corrupt, fetch it again", g->path,
                       MAX_ALIGNMENT);
    g->alignment = (uint32_t)alignment;
    return GW_OK;
}

/* Places the tensors in the data section, which begins at the next multiple of the alignment after `table_end`. */
static gw_err place_tensors(struct gw_gguf *g, uint64_t table_end)
{
    char shown[GW_SHOW_BYTES];
    g->data_offset = (table_end + g->alignment - 1) / g->alignment * g->alignment;
    if (g->data_offset > g->bytes) g->data_offset = g->bytes; /* a file without tensors need not be padded */
    uint64_t section_bytes = g->bytes - g->data_offset;
    for (size_t i = 0; i < g->tensor_count; i++) {
        struct gw_gguf_tensor *t = &g->tensors[i];
        uint64_t offset = g->tensor_offsets[i];
        if (offset % g->alignment)
            return gw_fail(
                GW_ERR_FORMAT,
                "%s: tensor '%s' begins at %llu, not a multiple of the alignment %u: corrupt, fetch it again", g->path,
                gw_str_show(t->name, shown), (unsigned long long)offset, g->alignment);
        if (offset > section_bytes || t->bytes > section_bytes - offset)
            return gw_fail(
                GW_ERR_FORMAT,
                "%s: tensor '%s' reaches past the end of the file (%llu bytes at %llu of %llu): truncated or corrupt, "
                "fetch it again",
                g->path, gw_str_show(t->name, shown), (unsigned long long)t->bytes, (unsigned long long)offset,
                (unsigned long long)section_bytes);
        t->data = g->data + g->data_offset + offset;
    }
    return GW_OK;
}

static gw_err parse(struct gw_gguf *g)
{
    gw_err rc = GW_OK;
    struct gw_reader in = {.data = g->data, .bytes = (size_t)g->bytes};
    uint64_t tensors = 0, keys = 0;
    TRY(read_header(g, &in, &tensors, &keys));
    g->value_count = (size_t)keys;
    g->values = gw_alloc(g->value_count, sizeof *g->values);
    for (size_t i = 0; i < g->value_count; i++) TRY(read_value(g, &in, &g->values[i]));
    TRY(index_values(g));
    TRY(read_alignment(g));
    g->tensor_count = (size_t)tensors;
    g->tensors = gw_alloc(g->tensor_count, sizeof *g->tensors);
    g->tensor_offsets = gw_alloc(g->tensor_count, sizeof *g->tensor_offsets);
    for (size_t i = 0; i < g->tensor_count; i++) TRY(read_tensor(g, &in, &g->tensors[i], &g->tensor_offsets[i]));
    TRY(place_tensors(g, in.at));
    TRY(index_tensors(g));
out:
    return rc;
}

gw_err gw_gguf_parse(const char *name, const uint8_t *data, size_t bytes, struct gw_gguf **gguf)
{
    gw_err rc = GW_OK;
    struct gw_gguf *g = gw_alloc(1, sizeof *g);
    g->path = gw_strdup(name);
    g->data = data;
    g->bytes = bytes;
    *gguf = NULL;
    TRY(parse(g));
    *gguf = g;
    g = NULL;
out:
    gw_gguf_close(g);
    return rc;
}

gw_err gw_gguf_open(const char *path, struct gw_gguf **gguf)
{
    gw_err rc = GW_OK;
    struct gw_map map = {0};
    *gguf = NULL;
    TRY(gw_map_open(path, &map));
    TRY(gw_gguf_parse(path, map.data, map.bytes, gguf));
    (*gguf)->map = map;
    map = (struct gw_map){0};
out:
    gw_map_close(&map);
    return rc;
}

void gw_gguf_close(struct gw_gguf *g)
{
    if (!g) return;
    for (size_t i = 0; g->values && i < g->value_count; i++) free(g->values[i].strings);
    free(g->values);
    free(g->values_sorted);
    free(g->tensors);
    free(g->tensor_offsets);
    free(g->tensors_sorted);
    free(g->path);
    gw_map_close(&g->map);
    free(g);
}

gw_err gw_gguf_read_row(const struct gw_gguf *g, const struct gw_gguf_tensor *tensor, uint64_t row, uint8_t *to)
{
    const uint8_t *at = tensor->data + row * tensor->row_bytes;
    if (g->map.data) return gw_map_read(&g->map, g->path, at, tensor->row_bytes, to);
    memcpy(to, at, tensor->row_bytes);
    return GW_OK;
}

void gw_gguf_let_go(const struct gw_gguf *g)
{
    gw_map_let_go(&g->map);
}

const char *gw_gguf_path(const struct gw_gguf *g)
{
    return g->path;
}

uint64_t gw_gguf_file_bytes(const struct gw_gguf *g)
{
    return g->bytes;
}

const uint8_t *gw_gguf_data(const struct gw_gguf *g)
{
    return g->data;
}

uint64_t gw_gguf_data_offset(const struct gw_gguf *g)
{
    return g->data_offset;
}

uint32_t gw_gguf_version(const struct gw_gguf *g)
{
    return g->version;
}

uint32_t gw_gguf_alignment(const struct gw_gguf *g)
{
    return g->alignment;
}

/* ---- metadata -------------------------------------------------------------------------------------------------- */

/* A number as sign and magnitude, or as a double; which one is told by `is_float`. */
struct number {
    bool is_float, negative;
    uint64_t magnitude;
    double real;
};

static struct number signed_number(int64_t value)
{
    return (struct number){.negative = value < 0, .magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value};
}

/* `data` is unaligned. False for a kind that is not a number. */
static bool load_number(enum gw_gguf_kind kind, const uint8_t *data, struct number *number)
{
    union {
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f32;
        double f64;
    } raw;
    if (kind_bytes[kind] == 0) return false;
    memcpy(&raw, data, kind_bytes[kind]);
    switch (kind) {
    case GW_GGUF_U8:
    case GW_GGUF_BOOL: *number = (struct number){.magnitude = *data}; return true;
    case GW_GGUF_I8: *number = signed_number(raw.i8); return true;
    case GW_GGUF_U16: *number = (struct number){.magnitude = raw.u16}; return true;
    case GW_GGUF_I16: *number = signed_number(raw.i16); return true;
    case GW_GGUF_U32: *number = (struct number){.magnitude = raw.u32}; return true;
    case GW_GGUF_I32: *number = signed_number(raw.i32); return true;
    case GW_GGUF_U64: *number = (struct number){.magnitude = raw.u64}; return true;
    case GW_GGUF_I64: *number = signed_number(raw.i64); return true;
    case GW_GGUF_F32: *number = (struct number){.is_float = true, .real = raw.f32}; return true;
    case GW_GGUF_F64: *number = (struct number){.is_float = true, .real = raw.f64}; return true;
    case GW_GGUF_STRING:
    case GW_GGUF_ARRAY: break;
    }
    return false;
}

static double number_real(struct number number)
{
    if (number.is_float) return number.real;
    return number.negative ? -(double)number.magnitude : (double)number.magnitude;
}

static bool find_number(const struct gw_gguf *g, const char *key, struct number *number)
{
    const struct value *v = find_value(g, key);
    return v && load_number(v->kind, v->data, number);
}

bool gw_gguf_get_str(const struct gw_gguf *g, const char *key, struct gw_str *value)
{
    const struct value *v = find_value(g, key);
    if (!v || v->kind != GW_GGUF_STRING) return false;
    *value = (struct gw_str){(const char *)v->data, (size_t)v->bytes};
    return true;
}

bool gw_gguf_get_u64(const struct gw_gguf *g, const char *key, uint64_t *value)
{
    struct number number;
    if (!find_number(g, key, &number) || number.is_float || number.negative) return false;
    *value = number.magnitude;
    return true;
}

bool gw_gguf_get_f64(const struct gw_gguf *g, const char *key, double *value)
{
    struct number number;
    if (!find_number(g, key, &number)) return false;
    *value = number_real(number);
    return true;
}

bool gw_gguf_get_bool(const struct gw_gguf *g, const char *key, bool *value)
{
    uint64_t number;
    if (!gw_gguf_get_u64(g, key, &number) || number > 1) return false;
    *value = number != 0;
    return true;
}

bool gw_gguf_get_array(const struct gw_gguf *g, const char *key, enum gw_gguf_kind *element, uint64_t *count)
{
    const struct value *v = find_value(g, key);
    if (!v || v->kind != GW_GGUF_ARRAY) return false;
    *element = v->element;
    *count = v->count;
    return true;
}

struct gw_str gw_gguf_array_str(const struct gw_gguf *g, const char *key, uint64_t index)
{
    const struct value *v = find_value(g, key);
    GW_ASSERT(v && v->strings && index < v->count);
    return v->strings[index];
}

double gw_gguf_array_f64(const struct gw_gguf *g, const char *key, uint64_t index)
{
    const struct value *v = find_value(g, key);
    struct number number;
    GW_ASSERT(v && v->kind == GW_GGUF_ARRAY && index < v->count);
    GW_ASSERT(v->element != GW_GGUF_STRING);
    GW_ASSERT(load_number(v->element, v->data + index * kind_bytes[v->element], &number));
    return number_real(number);
}

bool gw_gguf_get_strings(const struct gw_gguf *g, const char *key, const struct gw_str **strings, uint64_t *count)
{
    const struct value *v = find_value(g, key);
    if (!v || !v->strings) return false;
    *strings = v->strings;
    *count = v->count;
    return true;
}

size_t gw_gguf_key_count(const struct gw_gguf *g)
{
    return g->value_count;
}

struct gw_str gw_gguf_key(const struct gw_gguf *g, size_t index, enum gw_gguf_kind *kind)
{
    GW_ASSERT(index < g->value_count);
    *kind = g->values[index].kind;
    return g->values[index].key;
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

size_t gw_gguf_tensor_count(const struct gw_gguf *g)
{
    return g->tensor_count;
}

const struct gw_gguf_tensor *gw_gguf_tensor_at(const struct gw_gguf *g, size_t index)
{
    GW_ASSERT(index < g->tensor_count);
    return &g->tensors[index];
}

const struct gw_gguf_tensor *gw_gguf_tensor_find(const struct gw_gguf *g, const char *name)
{
    struct gw_gguf_tensor wanted = {.name = {name, strlen(name)}};
    const struct gw_gguf_tensor *at = &wanted;
    if (g->tensor_count == 0) return NULL;
    const struct gw_gguf_tensor **found = bsearch(&at, g->tensors_sorted, g->tensor_count, sizeof *g->tensors_sorted,
                                                  compare_tensors);
    return found ? *found : NULL;
}
