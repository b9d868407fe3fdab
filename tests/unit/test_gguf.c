/* The GGUF reader: every kind of value, every refusal, every prefix of a file and every damaged byte. Files are made here byte by byte,
 * so that the reader is not only tested against the writer of support/tiny_model.h. */
#include "base/mem.h"
#include "model/gguf.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A file in the making; counts are patched in by finish(). */
struct file {
    struct gw_buf head, table, data, whole;
    uint64_t keys, tensors;
    uint32_t version, alignment;
};

static void put_str(struct gw_buf *buf, const char *text)
{
    gw_buf_add_u64(buf, strlen(text));
    gw_buf_add_text(buf, text);
}

static void put_key(struct file *f, const char *key, uint32_t kind, const void *value, size_t bytes)
{
    put_str(&f->head, key);
    gw_buf_add_u32(&f->head, kind);
    gw_buf_add(&f->head, value, bytes);
    f->keys++;
}

static void put_u32(struct file *f, const char *key, uint32_t value)
{
    put_key(f, key, GW_GGUF_U32, &value, sizeof value);
}

static void put_text(struct file *f, const char *key, const char *value)
{
    struct gw_buf buf = {0};
    put_str(&buf, value);
    put_key(f, key, GW_GGUF_STRING, buf.data, buf.bytes);
    gw_buf_free(&buf);
}

static void put_array(struct file *f, const char *key, uint32_t element, uint64_t count, const void *data, size_t bytes)
{
    struct gw_buf buf = {0};
    gw_buf_add_u32(&buf, element);
    gw_buf_add_u64(&buf, count);
    gw_buf_add(&buf, data, bytes);
    put_key(f, key, GW_GGUF_ARRAY, buf.data, buf.bytes);
    gw_buf_free(&buf);
}

static void put_entry(struct file *f, const char *name, int dims, const uint64_t *shape, uint32_t type, uint64_t offset)
{
    put_str(&f->table, name);
    gw_buf_add_u32(&f->table, (uint32_t)dims);
    for (int i = 0; i < dims; i++) gw_buf_add_u64(&f->table, shape[i]);
    gw_buf_add_u32(&f->table, type);
    gw_buf_add_u64(&f->table, offset);
    f->tensors++;
}

/* A tensor of `bytes` bytes counting up from `first`, padded to the alignment. */
static void put_tensor(struct file *f, const char *name, int dims, const uint64_t *shape, uint32_t type, size_t bytes,
                       int first)
{
    put_entry(f, name, dims, shape, type, f->data.bytes);
    for (size_t i = 0; i < bytes; i++) gw_buf_add(&f->data, &(uint8_t){(uint8_t)(first + (int)i)}, 1);
    while (f->data.bytes % f->alignment) gw_buf_add(&f->data, "", 1);
}

static void finish_with(struct file *f, uint64_t keys, uint64_t tensors)
{
    gw_buf_clear(&f->whole);
    gw_buf_add(&f->whole, "GGUF", 4);
    gw_buf_add_u32(&f->whole, f->version);
    gw_buf_add_u64(&f->whole, tensors);
    gw_buf_add_u64(&f->whole, keys);
    gw_buf_add(&f->whole, f->head.data, f->head.bytes);
    gw_buf_add(&f->whole, f->table.data, f->table.bytes);
    while (f->whole.bytes % f->alignment) gw_buf_add(&f->whole, "", 1);
    gw_buf_add(&f->whole, f->data.data, f->data.bytes);
}

static void finish(struct file *f)
{
    finish_with(f, f->keys, f->tensors);
}

static struct file start(void)
{
    return (struct file){.version = 3, .alignment = 32};
}

static void drop(struct file *f)
{
    gw_buf_free(&f->head);
    gw_buf_free(&f->table);
    gw_buf_free(&f->data);
    gw_buf_free(&f->whole);
}

/* Parses a copy of exactly `bytes` bytes, so that a sanitizer sees any read past it; the caller frees *copy. */
static gw_err parse_copy(const uint8_t *data, size_t bytes, uint8_t **copy, struct gw_gguf **gguf)
{
    *copy = malloc(bytes ? bytes : 1);
    if (bytes) memcpy(*copy, data, bytes);
    return gw_gguf_parse("test.gguf", *copy, bytes, gguf);
}

/* The finished file must be refused with `code` and a line that names the file and holds `text`. */
static void expect_refused(struct file *f, gw_err code, const char *text)
{
    uint8_t *copy;
    struct gw_gguf *gguf;
    gw_err rc = parse_copy(f->whole.data, f->whole.bytes, &copy, &gguf);
    CU_ASSERT_EQUAL(rc, code);
    CU_ASSERT_PTR_NULL(gguf);
    bool told = rc != GW_OK && strstr(gw_error_detail(), text) && strstr(gw_error_detail(), "test.gguf");
    if (rc != code || !told)
        printf("\n  wanted %s '%s', got %s '%s'\n", gw_err_name(code), text, gw_err_name(rc),
               rc ? gw_error_detail() : "");
    CU_ASSERT(told);
    gw_gguf_close(gguf);
    free(copy);
    drop(f);
}

/* Two tensors, an array of each sort and some scalars. */
static struct file sample(void)
{
    struct file f = start();
    struct gw_buf strings = {0};
    int16_t small[3] = {-3, 0, 7};
    put_str(&strings, "one");
    put_str(&strings, "");
    put_str(&strings, "three");
    put_text(&f, "general.architecture", "llama");
    put_u32(&f, "some.number", 7);
    put_array(&f, "some.strings", GW_GGUF_STRING, 3, strings.data, strings.bytes);
    put_array(&f, "some.numbers", GW_GGUF_I16, 3, small, sizeof small);
    put_tensor(&f, "matrix", 2, (uint64_t[]){64, 3}, GW_TYPE_Q4_0, 2 * 18 * 3, 1);
    put_tensor(&f, "vector", 1, (uint64_t[]){5}, GW_TYPE_F32, 20, 100);
    gw_buf_free(&strings);
    finish(&f);
    return f;
}

static void test_sample(void)
{
    struct file f = sample();
    struct gw_gguf *gguf;
    CU_ASSERT_EQUAL_FATAL(gw_gguf_parse("test.gguf", f.whole.data, f.whole.bytes, &gguf), GW_OK);
    CU_ASSERT_STRING_EQUAL(gw_gguf_path(gguf), "test.gguf");
    CU_ASSERT_EQUAL(gw_gguf_file_bytes(gguf), f.whole.bytes);
    CU_ASSERT_PTR_EQUAL(gw_gguf_data(gguf), f.whole.data);
    CU_ASSERT_EQUAL(gw_gguf_data_offset(gguf), f.whole.bytes - f.data.bytes);
    CU_ASSERT_EQUAL(gw_gguf_version(gguf), 3);
    CU_ASSERT_EQUAL(gw_gguf_alignment(gguf), 32);
    CU_ASSERT_EQUAL(gw_gguf_key_count(gguf), 4);
    enum gw_gguf_kind kind;
    struct gw_str key = gw_gguf_key(gguf, 2, &kind);
    CU_ASSERT(kind == GW_GGUF_ARRAY && key.bytes == 12 && memcmp(key.data, "some.strings", 12) == 0);
    CU_ASSERT_EQUAL(gw_gguf_tensor_count(gguf), 2);
    const struct gw_gguf_tensor *matrix = gw_gguf_tensor_find(gguf, "matrix"),
                                *vector = gw_gguf_tensor_find(gguf, "vector");
    CU_ASSERT_PTR_EQUAL_FATAL(matrix, gw_gguf_tensor_at(gguf, 0));
    CU_ASSERT_PTR_EQUAL_FATAL(vector, gw_gguf_tensor_at(gguf, 1));
    CU_ASSERT_PTR_NULL(gw_gguf_tensor_find(gguf, "matri"));
    CU_ASSERT_PTR_NULL(gw_gguf_tensor_find(gguf, "matrix2"));
    CU_ASSERT(matrix->type->type == GW_TYPE_Q4_0 && matrix->dims == 2 && matrix->row_bytes == 36 &&
              matrix->bytes == 108);
    CU_ASSERT(matrix->shape[0] == 64 && matrix->shape[1] == 3 && matrix->shape[2] == 1 && matrix->shape[3] == 1);
    CU_ASSERT_EQUAL(matrix->data[0], 1);
    CU_ASSERT(vector->dims == 1 && vector->bytes == 20 && vector->data[0] == 100 && vector->data == matrix->data + 128);
    gw_gguf_close(gguf);
    drop(&f);
}

static void test_arrays(void)
{
    struct file f = sample();
    struct gw_gguf *gguf;
    enum gw_gguf_kind element;
    uint64_t count;
    const struct gw_str *strings;
    CU_ASSERT_EQUAL_FATAL(gw_gguf_parse("test.gguf", f.whole.data, f.whole.bytes, &gguf), GW_OK);
    CU_ASSERT(gw_gguf_get_array(gguf, "some.strings", &element, &count) && element == GW_GGUF_STRING && count == 3);
    CU_ASSERT_FATAL(gw_gguf_get_strings(gguf, "some.strings", &strings, &count) && count == 3);
    CU_ASSERT(strings[2].bytes == 5 && memcmp(strings[2].data, "three", 5) == 0 && strings[1].bytes == 0);
    CU_ASSERT_EQUAL(gw_gguf_array_str(gguf, "some.strings", 0).bytes, 3);
    CU_ASSERT(gw_gguf_get_array(gguf, "some.numbers", &element, &count) && element == GW_GGUF_I16 && count == 3);
    CU_ASSERT(gw_gguf_array_f64(gguf, "some.numbers", 0) == -3 && gw_gguf_array_f64(gguf, "some.numbers", 2) == 7);
    CU_ASSERT_FALSE(gw_gguf_get_strings(gguf, "some.numbers", &strings, &count));
    CU_ASSERT_FALSE(gw_gguf_get_array(gguf, "some.number", &element, &count));
    CU_ASSERT_FALSE(gw_gguf_get_array(gguf, "absent", &element, &count));
    gw_gguf_close(gguf);
    drop(&f);
}

/* Integers and bool convert to each other when the value fits. */
static void test_scalars(void)
{
    static const struct {
        enum gw_gguf_kind kind;
        uint64_t raw; /* little endian */
        double real;
        bool whole, flag; /* readable as u64, as bool */
    } cases[] = {
        {GW_GGUF_U8, 200, 200, true, false},
        {GW_GGUF_I8, 0xf9, -7, false, false},
        {GW_GGUF_U16, 0xffff, 65535, true, false},
        {GW_GGUF_I16, 0xffff, -1, false, false},
        {GW_GGUF_U32, 1, 1, true, true},
        {GW_GGUF_I32, 0x80000000, -2147483648.0, false, false},
        {GW_GGUF_F32, 0x3fc00000, 1.5, false, false},
        {GW_GGUF_BOOL, 1, 1, true, true},
        {GW_GGUF_U64, 1ull << 63, 0x1p63, true, false},
        {GW_GGUF_I64, 1ull << 63, -0x1p63, false, false},
        {GW_GGUF_F64, 0x4004000000000000, 2.5, false, false},
        {GW_GGUF_I64, 0, 0, true, true},
    };
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct file f = start();
        struct gw_gguf *gguf;
        uint64_t whole = 99;
        double real = 99;
        bool flag;
        struct gw_str text;
        put_key(&f, "k", cases[i].kind, &cases[i].raw, bytes[cases[i].kind]);
        finish(&f);
        CU_ASSERT_EQUAL_FATAL(gw_gguf_parse("test.gguf", f.whole.data, f.whole.bytes, &gguf), GW_OK);
        CU_ASSERT_EQUAL(gw_gguf_get_u64(gguf, "k", &whole), cases[i].whole);
        CU_ASSERT(!cases[i].whole || (double)whole == cases[i].real);
        CU_ASSERT(gw_gguf_get_f64(gguf, "k", &real) && real == cases[i].real);
        CU_ASSERT_EQUAL(gw_gguf_get_bool(gguf, "k", &flag), cases[i].flag);
        CU_ASSERT_FALSE(gw_gguf_get_str(gguf, "k", &text));
        CU_ASSERT_FALSE(gw_gguf_get_u64(gguf, "l", &whole));
        gw_gguf_close(gguf);
        drop(&f);
    }
}

static void test_versions(void)
{
    struct file f = start();
    struct gw_gguf *gguf;
    f.version = 2;
    put_u32(&f, "k", 1);
    finish(&f);
    CU_ASSERT_EQUAL_FATAL(gw_gguf_parse("test.gguf", f.whole.data, f.whole.bytes, &gguf), GW_OK);
    CU_ASSERT_EQUAL(gw_gguf_version(gguf), 2);
    gw_gguf_close(gguf);
    drop(&f);
    static const struct {
        uint32_t version;
        const char *text;
    } refused[] = {
        {0, "version 0"}, {1, "version 1"}, {4, "version 4"}, {3u << 24, "big-endian"}, {2u << 24, "big-endian"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        f = start();
        f.version = refused[i].version;
        put_u32(&f, "k", 1);
        finish(&f);
        expect_refused(&f, GW_ERR_UNSUPPORTED, refused[i].text);
    }
    f = sample();
    f.whole.data[0] = 'g';
    expect_refused(&f, GW_ERR_FORMAT, "not a GGUF file");
}

static void test_alignment(void)
{
    struct file f = start();
    struct gw_gguf *gguf;
    f.alignment = 256;
    put_u32(&f, "general.alignment", 256);
    put_tensor(&f, "a", 1, (uint64_t[]){1}, GW_TYPE_F32, 4, 10);
    put_tensor(&f, "b", 1, (uint64_t[]){1}, GW_TYPE_F32, 4, 20);
    finish(&f);
    CU_ASSERT_EQUAL_FATAL(gw_gguf_parse("test.gguf", f.whole.data, f.whole.bytes, &gguf), GW_OK);
    CU_ASSERT_EQUAL(gw_gguf_data_offset(gguf), 256);
    CU_ASSERT_EQUAL(gw_gguf_tensor_find(gguf, "b")->data[0], 20);
    gw_gguf_close(gguf);
    drop(&f);
    static const uint32_t wrong[] = {0, 1, 4, 24, 33, 1u << 21};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        f = start();
        put_u32(&f, "general.alignment", wrong[i]);
        finish(&f);
        expect_refused(&f, GW_ERR_FORMAT, "general.alignment");
    }
    f = start();
    put_text(&f, "general.alignment", "32");
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "general.alignment");
}

static void test_bad_metadata(void)
{
    struct file f = start();
    finish_with(&f, 1ull << 60, 0);
    expect_refused(&f, GW_ERR_FORMAT, "metadata keys");
    f = start();
    finish_with(&f, 0, UINT64_MAX);
    expect_refused(&f, GW_ERR_FORMAT, "tensors, more than");
    f = start();
    put_u32(&f, "doubled", 1);
    put_u32(&f, "between", 1);
    put_u32(&f, "doubled", 2);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "'doubled' appears twice");
    f = start();
    put_key(&f, "odd", 13, "", 1);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "'odd' has unknown kind 13");
    f = start();
    put_key(&f, "flag", GW_GGUF_BOOL, "\2", 1);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "'flag' holds 2");
    f = start();
    put_array(&f, "flags", GW_GGUF_BOOL, 3, "\0\1\3", 3);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "'flags' holds 3");
    f = start();
    put_u32(&f, "", 1);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "key of 0 bytes");
    f = start();
    put_array(&f, "nested", GW_GGUF_ARRAY, 0, NULL, 0);
    finish(&f);
    expect_refused(&f, GW_ERR_UNSUPPORTED, "array of arrays");
    f = start();
    put_array(&f, "strange", 77, 0, NULL, 0);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "unknown kind 77");
    /* Counts whose byte sizes wrap around 64 bits. */
    static const uint64_t counts[] = {1ull << 61, 1ull << 62, UINT64_MAX, UINT64_MAX / 8 + 1, 1000};
    static const uint32_t elements[] = {GW_GGUF_U64, GW_GGUF_U32, GW_GGUF_U8, GW_GGUF_STRING, GW_GGUF_F64};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        f = start();
        put_array(&f, "endless", elements[i], counts[i], "12345678", 8);
        finish(&f);
        expect_refused(&f, GW_ERR_FORMAT, "ends inside key 'endless'");
    }
    f = start();
    uint64_t length = UINT64_MAX - 3;
    put_key(&f, "text", GW_GGUF_STRING, &length, sizeof length);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "ends inside key 'text'");
}

/* One tensor entry, with a section of 64 bytes of data behind it. */
static void refuse_entry(int dims, const uint64_t *shape, uint32_t type, uint64_t offset, gw_err code, const char *text)
{
    struct file f = start();
    put_entry(&f, "tensor", dims, shape, type, offset);
    for (int i = 0; i < 8; i++) gw_buf_add_u64(&f.data, 0);
    finish(&f);
    expect_refused(&f, code, text);
}

static void test_bad_tensors(void)
{
    refuse_entry(0, NULL, GW_TYPE_F32, 0, GW_ERR_FORMAT, "0 dimensions");
    refuse_entry(5, (uint64_t[]){1, 1, 1, 1, 1}, GW_TYPE_F32, 0, GW_ERR_FORMAT, "5 dimensions");
    refuse_entry(2, (uint64_t[]){4, 0}, GW_TYPE_F32, 0, GW_ERR_FORMAT, "dimension of 0");
    refuse_entry(2, (uint64_t[]){0, 4}, GW_TYPE_F32, 0, GW_ERR_FORMAT, "dimension of 0");
    refuse_entry(1, (uint64_t[]){17}, GW_TYPE_F32, 0, GW_ERR_FORMAT, "past the end");
    refuse_entry(1, (uint64_t[]){16}, GW_TYPE_F32, 32, GW_ERR_FORMAT, "past the end");
    refuse_entry(1, (uint64_t[]){1}, GW_TYPE_F32, 96, GW_ERR_FORMAT, "past the end");
    refuse_entry(1, (uint64_t[]){1}, GW_TYPE_F32, UINT64_MAX - 31, GW_ERR_FORMAT, "past the end");
    refuse_entry(1, (uint64_t[]){1}, GW_TYPE_F32, 4, GW_ERR_FORMAT, "multiple of the alignment");
    refuse_entry(2, (uint64_t[]){1ull << 32, 1ull << 32}, GW_TYPE_F32, 0, GW_ERR_FORMAT, "absurdly large");
    refuse_entry(1, (uint64_t[]){1ull << 62}, GW_TYPE_F32, 0, GW_ERR_FORMAT, "absurdly large");
    refuse_entry(4, (uint64_t[]){1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16}, GW_TYPE_F32, 0, GW_ERR_FORMAT,
                 "absurdly large");
    refuse_entry(1, (uint64_t[]){1ull << 63}, GW_TYPE_F16, 0, GW_ERR_FORMAT, "absurdly large");
    refuse_entry(1, (uint64_t[]){33}, GW_TYPE_Q4_0, 0, GW_ERR_FORMAT, "multiple of Q4_0's 32");
    refuse_entry(1, (uint64_t[]){128}, GW_TYPE_Q4_K, 0, GW_ERR_FORMAT, "multiple of Q4_K's 256");
    refuse_entry(1, (uint64_t[]){256}, 10, 0, GW_ERR_UNSUPPORTED, "Q2_K (ggml type 10)");
    refuse_entry(1, (uint64_t[]){256}, 4321, 0, GW_ERR_UNSUPPORTED, "ggml type 4321");
    struct file f = start();
    put_tensor(&f, "same", 1, (uint64_t[]){1}, GW_TYPE_F32, 4, 0);
    put_tensor(&f, "same", 1, (uint64_t[]){1}, GW_TYPE_F32, 4, 0);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "'same' appears twice");
    f = start();
    put_tensor(&f, "a", 1, (uint64_t[]){16}, GW_TYPE_F32, 64, 0);
    put_entry(&f, "b", 1, (uint64_t[]){1}, GW_TYPE_F32, 32);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "'a' and 'b' overlap");
    f = start();
    put_entry(&f, "", 1, (uint64_t[]){1}, GW_TYPE_F32, 0);
    finish(&f);
    expect_refused(&f, GW_ERR_FORMAT, "name of 0 bytes");
}

/* No proper prefix that cuts into a tensor's bytes is a file. */
static void test_every_prefix(void)
{
    struct file f = sample();
    size_t needed = f.whole.bytes - (32 - 20); /* the last tensor's padding may be missing */
    for (size_t bytes = 0; bytes <= f.whole.bytes; bytes++) {
        uint8_t *copy;
        struct gw_gguf *gguf;
        gw_err rc = parse_copy(f.whole.data, bytes, &copy, &gguf);
        if ((rc == GW_OK) != (bytes >= needed)) CU_FAIL("a prefix was accepted, or the whole refused");
        if (rc != GW_OK) CU_ASSERT(rc == GW_ERR_FORMAT && strstr(gw_error_detail(), "test.gguf"));
        gw_gguf_close(gguf);
        free(copy);
    }
    drop(&f);
}

/* Every byte set to every of some values: refused or accepted, but accepted tensors stay inside the file. */
static void test_every_byte(void)
{
    static const uint8_t values[] = {0, 1, 0x0a, 0x7f, 0x80, 0xff};
    struct file f = sample();
    int refused = 0;
    for (size_t at = 0; at < f.whole.bytes; at++)
        for (size_t v = 0; v < sizeof values; v++) {
            uint8_t *copy, before = f.whole.data[at];
            struct gw_gguf *gguf;
            f.whole.data[at] = values[v];
            gw_err rc = parse_copy(f.whole.data, f.whole.bytes, &copy, &gguf);
            f.whole.data[at] = before;
            refused += rc != GW_OK;
            for (size_t i = 0; gguf && i < gw_gguf_tensor_count(gguf); i++) {
                const struct gw_gguf_tensor *t = gw_gguf_tensor_at(gguf, i);
                CU_ASSERT(t->data >= copy && t->data + t->bytes <= copy + f.whole.bytes);
            }
            gw_gguf_close(gguf);
            free(copy);
        }
    CU_ASSERT(refused > 300); /* most of the header's bytes matter */
    drop(&f);
}

static void test_open(void)
{
    struct file f = sample();
    struct gw_gguf *gguf;
    char path[] = "/tmp/test_gguf_XXXXXX";
    int fd = mkstemp(path);
    CU_ASSERT_FATAL(fd >= 0 && write(fd, f.whole.data, f.whole.bytes) == (ssize_t)f.whole.bytes);
    CU_ASSERT_EQUAL_FATAL(gw_gguf_open(path, &gguf), GW_OK);
    CU_ASSERT_STRING_EQUAL(gw_gguf_path(gguf), path);
    CU_ASSERT_EQUAL(gw_gguf_tensor_find(gguf, "vector")->data[0], 100);
    gw_gguf_close(gguf);
    CU_ASSERT_FATAL(ftruncate(fd, (off_t)f.whole.bytes - 32) == 0);
    CU_ASSERT_EQUAL(gw_gguf_open(path, &gguf), GW_ERR_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), path));
    CU_ASSERT_FATAL(ftruncate(fd, 0) == 0);
    CU_ASSERT_EQUAL(gw_gguf_open(path, &gguf), GW_ERR_FORMAT);
    close(fd);
    unlink(path);
    CU_ASSERT_EQUAL(gw_gguf_open(path, &gguf), GW_ERR_NOT_FOUND);
    CU_ASSERT_PTR_NULL(gguf);
    gw_gguf_close(NULL);
    drop(&f);
}

static void test_show(void)
{
    char buf[GW_SHOW_BYTES], longer[200];
    CU_ASSERT_STRING_EQUAL(gw_str_show((struct gw_str){"a\nb\x80", 4}, buf), "a?b?");
    CU_ASSERT_STRING_EQUAL(gw_str_show((struct gw_str){"", 0}, buf), "");
    memset(longer, 'x', sizeof longer);
    CU_ASSERT_EQUAL(strlen(gw_str_show((struct gw_str){longer, GW_SHOW_BYTES - 1}, buf)), GW_SHOW_BYTES - 1);
    CU_ASSERT_PTR_NULL(strstr(buf, "..."));
    CU_ASSERT_EQUAL(strlen(gw_str_show((struct gw_str){longer, GW_SHOW_BYTES}, buf)), GW_SHOW_BYTES - 1);
    CU_ASSERT_STRING_EQUAL(buf + GW_SHOW_BYTES - 1 - 3, "...");
}

int main(void)
{
    static CU_TestInfo tests[] = {
        {"keys and tensors of a file", test_sample},
        {"arrays", test_arrays},
        {"scalars and their conversions", test_scalars},
        {"versions and byte order", test_versions},
        {"alignment", test_alignment},
        {"bad metadata is refused", test_bad_metadata},
        {"bad tensors are refused", test_bad_tensors},
        {"every prefix of a file", test_every_prefix},
        {"every byte of a file damaged", test_every_byte},
        {"files on disk", test_open},
        {"texts for messages", test_show},
        CU_TEST_INFO_NULL,
    };
    static CU_SuiteInfo suites[] = {{"gguf", NULL, NULL, NULL, NULL, tests}, CU_SUITE_INFO_NULL};
    if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS) return 1;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
