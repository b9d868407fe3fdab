/* Text before the merges: Unicode normalisation and the split into pieces. The only file that includes <pcre2.h>.
 *
 * Each family is one regular expression whose matches tile every valid text. They are written from what the models'
 * published Hugging Face tokenizers do, with two differences in spelling and none in effect:
 * - \s is written out as Unicode's White_Space property, since PCRE2's own \s also holds U+180E;
 * - "split at every digit, then apply GPT-2's expression to what lies between" (smollm) is folded into one expression: the
 *   lookahead (?!\S) would succeed at the end of such a stretch, so here it also succeeds before a digit.
 * \p{L} is that of the PCRE2 that is linked in, so letters younger than its Unicode version count as symbols.
 *
 * NFC uses utf8proc's data and composition. Canonical ordering is our own, because utf8proc's sorts by insertion, which takes
 * minutes for a megabyte of combining marks; and it is Unicode 9's NFC, which is what Hugging Face's normaliser does.
 */
#include "model/tokenizer_internal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- families ---- */

#define SPACES "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
/* \p{N}, and the numbers that came with Unicode 15 to 17: Hugging Face's know them, PCRE2's may not yet. */
#define NUMBERS                                                                                                        \
    "\\p{N}\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11de0}-\\x{11de9}\\x{11f50}-\\x{11f59}"  \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{16ff4}-\\x{16ff6}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"        \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"
#define S "[" SPACES "]"
#define NOT_S "[^" SPACES "]"
#define N "[" NUMBERS "]"
#define SYMBOLS " ?[^" SPACES "\\p{L}" NUMBERS "]+"
#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
/* The expression of OpenAI's cl100k, as Llama 3 and Qwen use it; they differ in how many digits stay together. */
#define CL100K(digits)                                                                                                 \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}" NUMBERS "]?\\p{L}+|" digits "|" SYMBOLS "[\\r\\n]*|" S "*[\\r\\n]+|" S      \
    "+(?!" NOT_S ")|" S "+"

static const struct gw_pre_family families[] = {
    {.name = "smollm", .pattern = N "|" CONTRACTIONS "| ?\\p{L}+|" SYMBOLS "|" S "+(?![^" SPACES NUMBERS "])|" S "+"},
    {.name = "qwen2", .aliases = {"deepseek-r1-qwen"}, .pattern = CL100K(N), .nfc = true},
    {.name = "llama-bpe",
     .aliases = {"llama3", "llama-v3"},
     .pattern = CL100K(N "{1,3}"),
     .ignore_merges = true,
     .adds_bos = true},
    {.name = "gpt-2",
     .aliases = {"gpt2"},
     .pattern = CONTRACTIONS "| ?\\p{L}+| ?" N "+|" SYMBOLS "|" S "+(?!" NOT_S ")|" S "+"},
};
#define FAMILIES (sizeof families / sizeof *families)

struct gw_pre {
    const struct gw_pre_family *family;
    pcre2_code *code;
    pcre2_match_context *limits;
};

static bool spells(struct gw_str name, const char *text)
{
    return text && strlen(text) == name.bytes && memcmp(text, name.data, name.bytes) == 0;
}

static const struct gw_pre_family *find_family(struct gw_str name)
{
    for (size_t i = 0; i < FAMILIES; i++)
        if (spells(name, families[i].name) || spells(name, families[i].aliases[0]) ||
            spells(name, families[i].aliases[1]))
            return &families[i];
    return NULL;
}

static gw_err fail_unknown(struct gw_str name, const char *path)
{
    struct gw_buf known = {0};
    for (size_t i = 0; i < FAMILIES; i++) {
        gw_buf_add_text(&known, i ? ", " : "");
        gw_buf_add_text(&known, families[i].name);
    }
    gw_err rc = gw_fail(GW_ERR_UNSUPPORTED, "%s: unknown pre-tokenizer '%.*s' (tokenizer.ggml.pre); known are %.*s",
                        path, (int)(name.bytes < 80 ? name.bytes : 80), name.data, (int)known.bytes,
                        (char *)known.data);
    gw_buf_free(&known);
    return rc;
}

gw_err gw_pre_create(struct gw_str name, const char *path, struct gw_pre **out_pre)
{
    gw_err rc = GW_OK;
    struct gw_pre *pre = gw_alloc(1, sizeof *pre);
    *out_pre = NULL;
    pre->family = find_family(name);
    if (!pre->family) {
        rc = fail_unknown(name, path);
        goto out;
    }
    int error;
    PCRE2_SIZE where;
    pre->code = pcre2_compile((PCRE2_SPTR)pre->family->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error,
                              &where, NULL);
    if (!pre->code)
        FAIL(GW_ERR_BUG, "pre-tokenizer %s does not compile (PCRE2 error %d at %zu)", pre->family->name, error, where);
    /* A refused JIT (hardened kernels forbid writable code) only means the slower interpreter. */
    (void)pcre2_jit_compile(pre->code, PCRE2_JIT_COMPLETE);
    pre->limits = pcre2_match_context_create(NULL);
    GW_ASSERT(pre->limits);
    /* No expression backtracks more than linearly, but a long run of blanks may do so more than the default ten million times. */
    pcre2_set_match_limit(pre->limits, UINT32_MAX);
    pcre2_set_depth_limit(pre->limits, UINT32_MAX);
    *out_pre = pre;
    pre = NULL;
out:
    gw_pre_destroy(pre);
    return rc;
}

void gw_pre_destroy(struct gw_pre *pre)
{
    if (!pre) return;
    pcre2_code_free(pre->code);
    pcre2_match_context_free(pre->limits);
    free(pre);
}

const struct gw_pre_family *gw_pre_family_of(const struct gw_pre *pre)
{
    return pre->family;
}

void gw_pre_scan_open(const struct gw_pre *pre, struct gw_pre_scan *scan)
{
    *scan = (struct gw_pre_scan){.pre = pre, .match = pcre2_match_data_create(1, NULL)};
    GW_ASSERT(scan->match);
}

void gw_pre_scan_start(struct gw_pre_scan *scan, const uint8_t *text, size_t bytes)
{
    scan->text = text;
    scan->bytes = bytes;
    scan->at = 0;
}

gw_err gw_pre_scan_next(struct gw_pre_scan *scan, const uint8_t **piece, size_t *piece_bytes)
{
    *piece = NULL;
    *piece_bytes = 0;
    if (scan->at == scan->bytes) return GW_OK;
    int found = pcre2_match(scan->pre->code, scan->text, scan->bytes, scan->at, PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED,
                            scan->match, scan->pre->limits);
    if (found < 0)
        return gw_fail(GW_ERR_BUG, "pre-tokenizer %s: PCRE2 error %d at byte %zu of %zu", scan->pre->family->name,
                       found, scan->at, scan->bytes);
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(scan->match);
    GW_ASSERT(span[1] > scan->at && span[1] <= scan->bytes);
    *piece = scan->text + scan->at;
    *piece_bytes = span[1] - scan->at;
    scan->at = span[1];
    return GW_OK;
}

void gw_pre_scan_close(struct gw_pre_scan *scan)
{
    pcre2_match_data_free(scan->match);
    scan->match = NULL;
}

/* ---- NFC ---- */

static size_t read_char(const uint8_t *text, size_t bytes, utf8proc_int32_t *code)
{
    utf8proc_ssize_t length = utf8proc_iterate(text, (utf8proc_ssize_t)bytes, code);
    GW_ASSERT(length > 0); /* callers pass valid text */
    return (size_t)length;
}

/* What Unicode 10 to 15 made a combining mark or composable. To Unicode 9 these are plain characters. */
static const struct {
    utf8proc_int32_t first, last;
} younger[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
    {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
    {0xa82c, 0xa82c},   {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
    {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0},
    {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45},
    {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136},
    {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
};

enum nfc_class {
    NFC_INERT,   /* NFC does not change it, nor compose it with an earlier character; a later one may join it */
    NFC_BARRIER, /* younger than Unicode 9: nothing may move or compose across it */
    NFC_UNSURE
};

static enum nfc_class nfc_class(utf8proc_int32_t code)
{
    /* Below U+0300 all is its own NFC. A Hangul syllable may be joined by a jamo after it, but the jamo is not inert. */
    if (code < 0x300 || (code >= 0xac00 && code <= 0xd7a3)) return NFC_INERT;
    if (code >= 0x1100 && code <= 0x11ff) return NFC_UNSURE;
    const utf8proc_property_t *property = utf8proc_get_property(code);
    if (!property->combining_class && property->decomp_seqindex == UINT16_MAX && property->comb_index == UINT16_MAX)
        return NFC_INERT;
    for (size_t i = 0; i < sizeof younger / sizeof *younger; i++)
        if (code >= younger[i].first && code <= younger[i].last) return NFC_BARRIER;
    return NFC_UNSURE;
}

/* The next stretch that may not be normal: unsure characters and the inert one before them, if any. Normalising it alone is
 * enough. False when there is none. */
static bool find_unsure(const uint8_t *text, size_t bytes, size_t from, size_t *start, size_t *end)
{
    size_t at = from;
    utf8proc_int32_t code;
    for (*start = from;;) {
        while (at < bytes && text[at] < 0xcc) { /* below U+0300: not worth decoding */
            *start = at;
            at += text[at] < 0x80 ? 1 : 2;
        }
        if (at == bytes) return false;
        size_t length = read_char(text + at, bytes - at, &code);
        enum nfc_class class = nfc_class(code);
        if (class == NFC_UNSURE) break;
        *start = class == NFC_INERT ? at : at + length;
        at += length;
    }
    for (*end = at; *end < bytes;) {
        size_t length = read_char(text + *end, bytes - *end, &code);
        if (nfc_class(code) != NFC_UNSURE) break;
        *end += length;
    }
    return true;
}

struct decomposed {
    utf8proc_int32_t *code;
    size_t count, capacity;
};

static void decompose(const uint8_t *text, size_t bytes, struct decomposed *out)
{
    enum { MOST_PER_CHAR = 32 }; /* the longest canonical decomposition has 4 */
    for (size_t at = 0; at < bytes;) {
        utf8proc_int32_t code;
        at += read_char(text + at, bytes - at, &code);
        if (out->capacity - out->count < MOST_PER_CHAR) {
            out->capacity = 2 * out->capacity + bytes + 2 * MOST_PER_CHAR;
            out->code = gw_realloc(out->code, out->capacity, sizeof *out->code);
        }
        int boundary = 0;
        utf8proc_ssize_t made = utf8proc_decompose_char(code, out->code + out->count, MOST_PER_CHAR,
                                                        UTF8PROC_STABLE | UTF8PROC_COMPOSE, &boundary);
        GW_ASSERT(made > 0 && made <= MOST_PER_CHAR);
        out->count += (size_t)made;
    }
}

/* Canonical ordering: each run of marks sorted by combining class, stably. A mark is sorted as one 64-bit number: class (8 bits),
 * place in the run (35 bits), code (21 bits). */
static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void order_marks(struct decomposed *text)
{
    uint64_t *keys = NULL;
    for (size_t start = 0; start < text->count; start++) {
        size_t end = start;
        bool sorted = true;
        int last = 0;
        for (; end < text->count; end++) {
            int class = utf8proc_get_property(text->code[end])->combining_class;
            if (!class) break;
            sorted = sorted && class >= last;
            last = class;
        }
        if (!sorted) {
            size_t count = end - start;
            keys = gw_realloc(keys, count, sizeof *keys);
            for (size_t i = 0; i < count; i++) {
                uint64_t class = utf8proc_get_property(text->code[start + i])->combining_class;
                keys[i] = class << 56 | (uint64_t)i << 21 | (uint64_t)(uint32_t)text->code[start + i];
            }
            qsort(keys, count, sizeof *keys, by_number);
            for (size_t i = 0; i < count; i++) text->code[start + i] = (utf8proc_int32_t)(keys[i] & 0x1fffff);
        }
        start = end; /* code[end] is a starter: the next run begins after it */
    }
    free(keys);
}

/* Appends the NFC of text[0..bytes) to `out`; `chars` is scratch. */
static gw_err normalise(const uint8_t *text, size_t bytes, struct decomposed *chars, struct gw_buf *out)
{
    chars->count = 0;
    decompose(text, bytes, chars);
    order_marks(chars);
    utf8proc_ssize_t count = utf8proc_normalize_utf32(chars->code, (utf8proc_ssize_t)chars->count,
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (count < 0) return gw_fail(GW_ERR_BUG, "utf8proc: %s", utf8proc_errmsg(count));
    gw_buf_reserve(out, 4 * (size_t)count);
    for (utf8proc_ssize_t i = 0; i < count; i++)
        out->bytes += (size_t)utf8proc_encode_char(chars->code[i], out->data + out->bytes);
    return GW_OK;
}

gw_err gw_nfc(const uint8_t *text, size_t bytes, struct gw_buf *scratch, const uint8_t **result, size_t *result_bytes)
{
    gw_err rc = GW_OK;
    struct decomposed chars = {0};
    size_t done = 0, start, end;
    gw_buf_clear(scratch);
    while (find_unsure(text, bytes, done, &start, &end)) {
        gw_buf_add(scratch, text + done, start - done);
        TRY(normalise(text + start, end - start, &chars, scratch));
        done = end;
    }
    if (done) gw_buf_add(scratch, text + done, bytes - done);
    *result = done ? scratch->data : text;
    *result_bytes = done ? scratch->bytes : bytes;
out:
    free(chars.code);
    return rc;
}
