/* Text before the merges: Unicode normalisation and the split into pieces. The only file that includes <pcre2.h>.
 *
 * Each family is one regular expression whose matches tile every valid text. They are written from what the models'
 * published Hugging Face tokenizers do, with two differences in spelling and none in effect:
 * - \s is written out as Unicode's White_Space property, since PCRE2's own \s also holds U+180E;
 * - "split at every digit, then apply GPT-2's expression to what lies between" (smollm) is folded into one expression: the
 *   lookahead (?!\S) would succeed at the end of such a stretch, so here it also succeeds before a digit.
 * \p{L} and \p{N} are those of the PCRE2 that is linked in: characters younger than its Unicode version split differently.
 *
 * NFC uses utf8proc's data and composition; canonical ordering is our own, because utf8proc's sorts by insertion, which takes
 * minutes for a megabyte of combining marks.
 */
#include "model/tokenizer_internal.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- families ---- */

#define SPACES "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S "[" SPACES "]"
#define NOT_S "[^" SPACES "]"
#define SYMBOLS " ?[^" SPACES "\\p{L}\\p{N}]+"
#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
/* The expression of OpenAI's cl100k, as Llama 3 and Qwen use it; they differ in how many digits stay together. */
#define CL100K(digits)                                                                                                 \
    "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "|" SYMBOLS "[\\r\\n]*|" S "*[\\r\\n]+|" S "+(?!" NOT_S   \
    ")|" S "+"

static const struct gw_pre_family families[] = {
    {.name = "smollm",
     .pattern = "\\p{N}|" CONTRACTIONS "| ?\\p{L}+|" SYMBOLS "|" S "+(?![^" SPACES "\\p{N}])|" S "+"},
    {.name = "qwen2", .aliases = {"deepseek-r1-qwen"}, .pattern = CL100K("\\p{N}"), .nfc = true},
    {.name = "llama-bpe",
     .aliases = {"llama3", "llama-v3"},
     .pattern = CL100K("\\p{N}{1,3}"),
     .ignore_merges = true,
     .adds_bos = true},
    {.name = "gpt-2",
     .aliases = {"gpt2"},
     .pattern = CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+|" SYMBOLS "|" S "+(?!" NOT_S ")|" S "+"},
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
        if (spells(name, families[i].name) || spells(name, families[i].aliases[0]) || spells(name, families[i].aliases[1]))
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
    gw_err rc = gw_fail(GW_ERR_UNSUPPORTED, "%s: unknown pre-tokenizer '%.*s' (tokenizer.ggml.pre); known are %.*s", path,
                        (int)(name.bytes < 80 ? name.bytes : 80), name.data, (int)known.bytes, (char *)known.data);
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
    pre->code = pcre2_compile((PCRE2_SPTR)pre->family->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &where,
                              NULL);
    if (!pre->code) FAIL(GW_ERR_BUG, "pre-tokenizer %s does not compile (PCRE2 error %d at %zu)", pre->family->name, error, where);
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
    int found = pcre2_match(scan->pre->code, scan->text, scan->bytes, scan->at, PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED, scan->match,
                            scan->pre->limits);
    if (found < 0)
        return gw_fail(GW_ERR_BUG, "pre-tokenizer %s: PCRE2 error %d at byte %zu of %zu", scan->pre->family->name, found, scan->at,
                       scan->bytes);
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

/* True for a character that NFC can neither change nor compose with a later one. Below U+0300 everything is its own NFC, and composes
 * only with what lies above. A Hangul syllable can be joined by a jamo after it, but the jamo is not inert. */
static bool is_inert(utf8proc_int32_t code)
{
    if (code < 0x300 || (code >= 0xac00 && code <= 0xd7a3)) return true;
    if (code >= 0x1100 && code <= 0x11ff) return false;
    const utf8proc_property_t *property = utf8proc_get_property(code);
    return !property->combining_class && property->decomp_seqindex == UINT16_MAX && property->comb_index == UINT16_MAX;
}

/* The next stretch that may not be normal: the characters from *start, which is `from` or the one before the first that is not inert,
 * up to *end, the next inert one. Normalising it alone is enough: an inert character starts anew. False when there is none. */
static bool find_unsure(const uint8_t *text, size_t bytes, size_t from, size_t *start, size_t *end)
{
    size_t at = from;
    utf8proc_int32_t code;
    for (*start = from;; *start = at, at += read_char(text + at, bytes - at, &code)) {
        while (at < bytes && text[at] < 0xcc) { /* below U+0300: not worth decoding */
            *start = at;
            at += text[at] < 0x80 ? 1 : 2;
        }
        if (at == bytes) return false;
        read_char(text + at, bytes - at, &code);
        if (!is_inert(code)) break;
    }
    for (*end = at; *end < bytes;) {
        size_t length = read_char(text + *end, bytes - *end, &code);
        if (is_inert(code)) break;
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
        utf8proc_ssize_t made =
            utf8proc_decompose_char(code, out->code + out->count, MOST_PER_CHAR, UTF8PROC_STABLE | UTF8PROC_COMPOSE, &boundary);
        GW_ASSERT(made > 0 && made <= MOST_PER_CHAR);
        out->count += (size_t)made;
    }
}

/* Canonical ordering: each run of marks sorted by combining class, stably. A mark is sorted as (class, place, code) in one
 * 64-bit number for runs up to 2^35; class 8 bits, place 35 bits, code 21 bits. */
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
    utf8proc_ssize_t count =
        utf8proc_normalize_utf32(chars->code, (utf8proc_ssize_t)chars->count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
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
