/* The tokenizer itself: vocabulary, special tokens, and text to ids. See tokenizer.h.
 *
 * Vocabulary: the GGUF spells tokens in GPT-2's printable alphabet; they are turned back into bytes once, into one arena. A hash
 * table finds normal tokens by their bytes; special ones are kept apart, so that no text can reach them by merging.
 *
 * Added tokens (control and user-defined) are cut out of the text before anything else, leftmost first and the longest at a
 * place, as Hugging Face's added vocabulary does. User-defined ones (<tool_call>) are content and always match. Control tokens
 * (<|im_start|>) build the conversation and match with parse_special alone; without it the whole spelling of such a token is
 * ordinary text, so data cannot end its turn or open another. (Hugging Face: encode_special_tokens.)
 *
 * A tokenizer is constant after creation but for `whole`, a cache of facts that are the same whoever computes them.
 */
#include "model/tokenizer_internal.h"

#include "base/hash.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_BYTE = 6 }; /* tokenizer.ggml.token_type */
enum { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO }; /* do the merges turn a token's bytes into just this token? */
enum { MOST_EOG = 8, ALPHABET = 0x144 };

struct gw_tokenizer {
    struct gw_pre *pre;
    int32_t vocab;
    uint8_t *arena;         /* the bytes of all tokens */
    uint32_t *start;        /* [vocab + 1] into arena */
    uint8_t *type;          /* [vocab] TYPE_* */
    _Atomic uint8_t *whole; /* [vocab] WHOLE_* */
    uint64_t *slots;        /* normal tokens by bytes: high half of the hash << 32 | id + 1; 0 is empty */
    uint64_t slot_mask;
    size_t longest;       /* bytes of the longest normal token */
    int32_t byte_id[256]; /* -1: the vocabulary lacks the byte */
    struct gw_merges merges;
    int32_t *added;           /* control and user-defined ids by first byte, the longest first */
    uint32_t added_from[257]; /* added[added_from[b]..added_from[b + 1]) start with byte b */
    int32_t bos;
    bool adds_bos;
    int32_t eog[MOST_EOG];
    int eog_count;
};

/* ---- token lists ---- */

void gw_tokens_add(struct gw_tokens *tokens, int32_t id)
{
    if (tokens->count == tokens->capacity) {
        tokens->capacity = tokens->capacity ? 2 * tokens->capacity : 64;
        tokens->ids = gw_realloc(tokens->ids, tokens->capacity, sizeof *tokens->ids);
    }
    tokens->ids[tokens->count++] = id;
}

void gw_tokens_free(struct gw_tokens *tokens)
{
    free(tokens->ids);
    *tokens = (struct gw_tokens){0};
}

/* ---- vocabulary ---- */

/* GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards. [code point] -> byte or -1. */
static void make_alphabet(int16_t byte_of[ALPHABET])
{
    int next = 0x100;
    for (int i = 0; i < ALPHABET; i++) byte_of[i] = -1;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        byte_of[printable ? b : next++] = (int16_t)b;
    }
}

/* Writes the bytes that `text` spells to `out` (room for text.bytes) and returns how many; -1 when it leaves the alphabet. */
static ptrdiff_t spelled_bytes(const int16_t byte_of[ALPHABET], struct gw_str text, uint8_t *out)
{
    const uint8_t *at = (const uint8_t *)text.data, *end = at + text.bytes;
    uint8_t *to = out;
    while (at < end) {
        unsigned code = *at++;
        if (code >= 0x80) { /* the alphabet's other characters have two bytes */
            if ((code & 0xe0) != 0xc0 || at == end || (*at & 0xc0) != 0x80) return -1;
            code = (code & 0x1f) << 6 | (*at++ & 0x3f);
        }
        if (code >= ALPHABET || byte_of[code] < 0) return -1;
        *to++ = (uint8_t)byte_of[code];
    }
    return to - out;
}

static const uint8_t *token_data(const struct gw_tokenizer *tokenizer, int32_t id, size_t *bytes)
{
    *bytes = tokenizer->start[id + 1] - tokenizer->start[id];
    return tokenizer->arena + tokenizer->start[id];
}

static bool token_is(const struct gw_tokenizer *tokenizer, int32_t id, const uint8_t *text, size_t bytes)
{
    size_t have;
    const uint8_t *data = token_data(tokenizer, id, &have);
    return have == bytes && memcmp(data, text, bytes) == 0;
}

/* The slot of the normal token with these bytes, or the empty slot where it belongs. */
static uint64_t *find_slot(const struct gw_tokenizer *tokenizer, const uint8_t *text, size_t bytes, uint64_t hash)
{
    uint64_t at = hash & tokenizer->slot_mask;
    for (; tokenizer->slots[at]; at = (at + 1) & tokenizer->slot_mask) {
        if ((tokenizer->slots[at] ^ hash) >> 32) continue;
        if (token_is(tokenizer, (int32_t)(uint32_t)tokenizer->slots[at] - 1, text, bytes)) break;
    }
    return &tokenizer->slots[at];
}

/* The normal token with these bytes, whose hash is known; -1 if none. */
static int32_t find_hashed(const struct gw_tokenizer *tokenizer, const uint8_t *text, size_t bytes, uint64_t hash)
{
    if (bytes == 1) return tokenizer->byte_id[*text];
    if (!bytes || bytes > tokenizer->longest) return -1;
    return (int32_t)(uint32_t)*find_slot(tokenizer, text, bytes, hash) - 1;
}

static int32_t find_normal(const struct gw_tokenizer *tokenizer, const uint8_t *text, size_t bytes)
{
    if (bytes <= 1 || bytes > tokenizer->longest) return find_hashed(tokenizer, text, bytes, 0);
    return find_hashed(tokenizer, text, bytes, gw_hash64(text, bytes, 0));
}

/* Of doubles the first counts. */
static void put_normal(struct gw_tokenizer *tokenizer, int32_t id)
{
    size_t bytes;
    const uint8_t *data = token_data(tokenizer, id, &bytes);
    if (bytes > tokenizer->longest) tokenizer->longest = bytes;
    if (bytes == 1 && tokenizer->byte_id[*data] < 0) tokenizer->byte_id[*data] = id;
    if (bytes <= 1) return;
    uint64_t hash = gw_hash64(data, bytes, 0);
    uint64_t *slot = find_slot(tokenizer, data, bytes, hash);
    if (!*slot) *slot = hash >> 32 << 32 | (uint32_t)(id + 1);
}

static gw_err read_types(struct gw_tokenizer *tokenizer, const struct gw_gguf *gguf)
{
    static const char key[] = "tokenizer.ggml.token_type";
    enum gw_gguf_kind kind;
    uint64_t count;
    tokenizer->type = gw_alloc((size_t)tokenizer->vocab, 1);
    memset(tokenizer->type, TYPE_NORMAL, (size_t)tokenizer->vocab);
    if (!gw_gguf_get_array(gguf, key, &kind, &count)) return GW_OK;
    if (kind == GW_GGUF_STRING || kind == GW_GGUF_ARRAY || count != (uint64_t)tokenizer->vocab)
        return gw_fail(GW_ERR_FORMAT, "%s: %s does not fit the %d tokens; the file is damaged, fetch it again",
                       gw_gguf_path(gguf), key, tokenizer->vocab);
    for (uint64_t i = 0; i < count; i++) {
        double type = gw_gguf_array_f64(gguf, key, i);
        tokenizer->type[i] = type >= 1 && type <= 255 ? (uint8_t)type : 0; /* 0: undefined, never matched */
        if (tokenizer->type[i] == TYPE_BYTE)
            tokenizer->type[i] = TYPE_NORMAL; /* byte-level BPE spells bytes as normal tokens */
    }
    return GW_OK;
}

static gw_err read_vocab(struct gw_tokenizer *tokenizer, const struct gw_gguf *gguf, const int16_t byte_of[ALPHABET])
{
    const struct gw_str *tokens;
    uint64_t count, total = 0;
    if (!gw_gguf_get_strings(gguf, "tokenizer.ggml.tokens", &tokens, &count) || !count || count > INT32_MAX / 4)
        return gw_fail(GW_ERR_FORMAT, "%s: no usable tokenizer.ggml.tokens; the file holds no vocabulary",
                       gw_gguf_path(gguf));
    for (uint64_t i = 0; i < count; i++) total += tokens[i].bytes;
    if (total > UINT32_MAX)
        return gw_fail(GW_ERR_FORMAT,
                       "%s: tokenizer.ggml.tokens claims %llu bytes; the file is damaged, fetch it again",
                       gw_gguf_path(gguf), (unsigned long long)total);
    tokenizer->vocab = (int32_t)count;
    gw_err rc = read_types(tokenizer, gguf);
    if (rc != GW_OK) return rc;

    uint64_t slots = 16;
    while (2 * slots < 3 * count) slots *= 2;
    tokenizer->slots = gw_alloc(slots, sizeof *tokenizer->slots);
    tokenizer->slot_mask = slots - 1;
    tokenizer->arena = gw_alloc(total + 1, 1);
    tokenizer->start = gw_alloc(count + 1, sizeof *tokenizer->start);
    tokenizer->whole = gw_alloc(count, sizeof *tokenizer->whole);
    for (int b = 0; b < 256; b++) tokenizer->byte_id[b] = -1;
    uint32_t at = 0;
    for (uint64_t i = 0; i < count; i++) {
        bool normal = tokenizer->type[i] == TYPE_NORMAL;
        ptrdiff_t bytes = normal ? spelled_bytes(byte_of, tokens[i], tokenizer->arena + at) : -1;
        if (bytes < 0) { /* special, or outside the alphabet: its own spelling, and never made by merges */
            memcpy(tokenizer->arena + at, tokens[i].data, tokens[i].bytes);
            normal = false;
        }
        tokenizer->start[i] = at;
        at += bytes < 0 ? (uint32_t)tokens[i].bytes : (uint32_t)bytes;
        tokenizer->start[i + 1] = at;
        if (normal) put_normal(tokenizer, (int32_t)i);
    }
    return GW_OK;
}

/* One line of tokenizer.ggml.merges, "left right", as bytes. */
struct merge_line {
    size_t
        at; /* where its bytes start in the batch's buffer: left, then right, so that both together are the merged token */
    size_t left_bytes, right_bytes; /* 0: not spelled in the alphabet */
    uint64_t left_hash, right_hash;
};

static struct merge_line parse_merge(const struct gw_tokenizer *tokenizer, const int16_t byte_of[ALPHABET],
                                     struct gw_str pair, struct gw_buf *buf)
{
    struct merge_line line = {.at = buf->bytes};
    const char *space = pair.bytes > 1 ? memchr(pair.data + 1, ' ', pair.bytes - 1) : NULL;
    size_t left_bytes = space ? (size_t)(space - pair.data) : 0;
    gw_buf_reserve(buf, pair.bytes);
    uint8_t *bytes = buf->data + buf->bytes;
    ptrdiff_t left = space ? spelled_bytes(byte_of, (struct gw_str){pair.data, left_bytes}, bytes) : -1;
    if (left <= 0) return line;
    ptrdiff_t right = spelled_bytes(byte_of, (struct gw_str){space + 1, pair.bytes - left_bytes - 1}, bytes + left);
    if (right <= 0) return line;
    buf->bytes += (size_t)(left + right);
    line.left_bytes = (size_t)left;
    line.right_bytes = (size_t)right;
    line.left_hash = gw_hash64(bytes, (size_t)left, 0);
    line.right_hash = gw_hash64(bytes + left, (size_t)right, 0);
    __builtin_prefetch(&tokenizer->slots[line.left_hash & tokenizer->slot_mask]);
    __builtin_prefetch(&tokenizer->slots[line.right_hash & tokenizer->slot_mask]);
    return line;
}

/* Enters a merge. *merged is the id of the merge before, and becomes this one's: vocabularies list merged tokens in the merges'
 * order, so the next id is nearly always the one, and no search is needed. False when a token is missing. */
static bool put_merge(struct gw_tokenizer *tokenizer, const struct merge_line *line, const uint8_t *bytes,
                      uint32_t rank, int32_t *merged)
{
    size_t all_bytes = line->left_bytes + line->right_bytes;
    int32_t left = find_hashed(tokenizer, bytes, line->left_bytes, line->left_hash);
    int32_t right = find_hashed(tokenizer, bytes + line->left_bytes, line->right_bytes, line->right_hash);
    int32_t id = *merged + 1;
    if (left < 0 || right < 0) return false;
    if (id <= 0 || id >= tokenizer->vocab || tokenizer->type[id] != TYPE_NORMAL ||
        !token_is(tokenizer, id, bytes, all_bytes))
        id = find_normal(tokenizer, bytes, all_bytes);
    if (id < 0) return false;
    gw_merges_put(&tokenizer->merges, left, right, rank, id);
    *merged = id;
    return true;
}

static gw_err read_merges(struct gw_tokenizer *tokenizer, const struct gw_gguf *gguf, const int16_t byte_of[ALPHABET])
{
    enum { BATCH = 32 }; /* lines that are hashed ahead, so that their slots are in cache when they are looked up */
    gw_err rc = GW_OK;
    const struct gw_str *merges;
    struct merge_line lines[BATCH];
    uint64_t count;
    int32_t merged = -1;
    struct gw_buf buf = {0};
    if (!gw_gguf_get_strings(gguf, "tokenizer.ggml.merges", &merges, &count) || count >= UINT32_MAX)
        FAIL(GW_ERR_FORMAT, "%s: no usable tokenizer.ggml.merges; convert the model again", gw_gguf_path(gguf));
    gw_merges_init(&tokenizer->merges, count);
    for (uint64_t i = 0; i < count; i++) {
        if (i % BATCH == 0) {
            gw_buf_clear(&buf);
            for (uint64_t j = 0; j < BATCH && i + j < count; j++)
                lines[j] = parse_merge(tokenizer, byte_of, merges[i + j], &buf);
        }
        const struct merge_line *line = &lines[i % BATCH];
        if (!put_merge(tokenizer, line, buf.data + line->at, (uint32_t)i, &merged))
            FAIL(GW_ERR_FORMAT, "%s: merge %llu ('%.*s') names a token that the vocabulary lacks; the file is damaged",
                 gw_gguf_path(gguf), (unsigned long long)i, (int)(merges[i].bytes < 80 ? merges[i].bytes : 80),
                 merges[i].data);
    }
out:
    gw_buf_free(&buf);
    return rc;
}

/* ---- special tokens ---- */

static bool is_added(const struct gw_tokenizer *tokenizer, int32_t id)
{
    size_t bytes;
    token_data(tokenizer, id, &bytes);
    return bytes && (tokenizer->type[id] == TYPE_CONTROL || tokenizer->type[id] == TYPE_USER);
}

static void index_added(struct gw_tokenizer *tokenizer)
{
    uint32_t count = 0;
    for (int32_t id = 0; id < tokenizer->vocab; id++)
        if (is_added(tokenizer, id)) tokenizer->added_from[tokenizer->arena[tokenizer->start[id]] + 1]++, count++;
    for (int b = 0; b < 256; b++) tokenizer->added_from[b + 1] += tokenizer->added_from[b];
    tokenizer->added = gw_alloc(count, sizeof *tokenizer->added);
    uint32_t used[256] = {0};
    for (int32_t id = 0; id < tokenizer->vocab; id++) {
        if (!is_added(tokenizer, id)) continue;
        size_t bytes, other;
        uint8_t first = *token_data(tokenizer, id, &bytes);
        int32_t *list = tokenizer->added + tokenizer->added_from[first];
        uint32_t at = used[first]++;
        for (; at && (token_data(tokenizer, list[at - 1], &other), other < bytes); at--) list[at] = list[at - 1];
        list[at] = id;
    }
}

static gw_err read_special_id(const struct gw_tokenizer *tokenizer, const struct gw_gguf *gguf, const char *key,
                              int32_t *id)
{
    uint64_t value;
    *id = -1;
    if (!gw_gguf_get_u64(gguf, key, &value)) return GW_OK;
    if (value >= (uint64_t)tokenizer->vocab)
        return gw_fail(GW_ERR_FORMAT, "%s: %s is %llu, but there are %d tokens", gw_gguf_path(gguf), key,
                       (unsigned long long)value, tokenizer->vocab);
    *id = (int32_t)value;
    return GW_OK;
}

static void add_eog(struct gw_tokenizer *tokenizer, int32_t id)
{
    if (id < 0 || gw_tokenizer_is_eog(tokenizer, id)) return;
    GW_ASSERT(tokenizer->eog_count < MOST_EOG);
    tokenizer->eog[tokenizer->eog_count++] = id;
}

static gw_err read_specials(struct gw_tokenizer *tokenizer, const struct gw_gguf *gguf)
{
    static const char *const eog_keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};
    static const char *const eog_names[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
                                            "<|endoftext|>"};
    gw_err rc = GW_OK;
    int32_t id;
    index_added(tokenizer);
    TRY(read_special_id(tokenizer, gguf, "tokenizer.ggml.bos_token_id", &tokenizer->bos));
    for (size_t i = 0; i < sizeof eog_keys / sizeof *eog_keys; i++) {
        TRY(read_special_id(tokenizer, gguf, eog_keys[i], &id));
        add_eog(tokenizer, id);
    }
    for (size_t i = 0; i < sizeof eog_names / sizeof *eog_names; i++) {
        id = gw_tokenizer_find(tokenizer, eog_names[i]);
        if (id >= 0 && tokenizer->type[id] == TYPE_CONTROL) add_eog(tokenizer, id);
    }
    tokenizer->adds_bos = gw_pre_family_of(tokenizer->pre)->adds_bos;
    (void)gw_gguf_get_bool(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->adds_bos);
    tokenizer->adds_bos = tokenizer->adds_bos && tokenizer->bos >= 0;
out:
    return rc;
}

/* ---- life ---- */

gw_err gw_tokenizer_create(const struct gw_gguf *gguf, struct gw_tokenizer **out_tokenizer)
{
    gw_err rc = GW_OK;
    struct gw_tokenizer *tokenizer = gw_alloc(1, sizeof *tokenizer);
    struct gw_str model, pre;
    int16_t byte_of[ALPHABET];
    *out_tokenizer = NULL;
    if (!gw_gguf_get_str(gguf, "tokenizer.ggml.model", &model))
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: no tokenizer (tokenizer.ggml.model); godwit needs a model file with its vocabulary",
             gw_gguf_path(gguf));
    if (model.bytes != 4 || memcmp(model.data, "gpt2", 4) != 0)
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: unknown tokenizer '%.*s' (tokenizer.ggml.model); known is gpt2, the byte-level BPE",
             gw_gguf_path(gguf), (int)(model.bytes < 80 ? model.bytes : 80), model.data);
    if (!gw_gguf_get_str(gguf, "tokenizer.ggml.pre", &pre)) pre = (struct gw_str){"default", 7};
    TRY(gw_pre_create(pre, gw_gguf_path(gguf), &tokenizer->pre));
    make_alphabet(byte_of);
    TRY(read_vocab(tokenizer, gguf, byte_of));
    TRY(read_merges(tokenizer, gguf, byte_of));
    TRY(read_specials(tokenizer, gguf));
    *out_tokenizer = tokenizer;
    tokenizer = NULL;
out:
    gw_tokenizer_destroy(tokenizer);
    return rc;
}

void gw_tokenizer_destroy(struct gw_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    gw_pre_destroy(tokenizer->pre);
    gw_merges_free(&tokenizer->merges);
    free(tokenizer->arena);
    free(tokenizer->start);
    free(tokenizer->type);
    free((void *)tokenizer->whole);
    free(tokenizer->slots);
    free(tokenizer->added);
    free(tokenizer);
}

/* ---- text to ids ---- */

struct encoder {
    const struct gw_tokenizer *tokenizer;
    struct gw_tokens *out;
    struct gw_pre_scan scan;
    struct gw_bpe_scratch bpe;
    struct gw_buf nfc;
};

/* Merges one piece from its bytes. A byte that the vocabulary lacks vanishes and its neighbours meet, as in Hugging Face. */
static void merge_piece(struct encoder *encoder, const uint8_t *piece, size_t bytes, int32_t whole)
{
    const struct gw_tokenizer *tokenizer = encoder->tokenizer;
    size_t count = 0;
    gw_bpe_scratch_reserve(&encoder->bpe, bytes);
    for (size_t i = 0; i < bytes; i++)
        if (tokenizer->byte_id[piece[i]] >= 0) encoder->bpe.id[count++] = tokenizer->byte_id[piece[i]];
    count = gw_bpe_merge(&tokenizer->merges, &encoder->bpe, count);
    for (size_t i = 0; i < count; i++) gw_tokens_add(encoder->out, encoder->bpe.id[i]);
    if (whole >= 0)
        atomic_store_explicit(&tokenizer->whole[whole],
                              count == 1 && encoder->bpe.id[0] == whole ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
}

static void encode_piece(struct encoder *encoder, const uint8_t *piece, size_t bytes)
{
    const struct gw_tokenizer *tokenizer = encoder->tokenizer;
    int32_t whole = find_normal(tokenizer, piece, bytes);
    if (whole >= 0 && (gw_pre_family_of(tokenizer->pre)->ignore_merges ||
                       atomic_load_explicit(&tokenizer->whole[whole], memory_order_relaxed) == WHOLE_YES))
        gw_tokens_add(encoder->out, whole);
    else merge_piece(encoder, piece, bytes, whole);
}

static gw_err encode_valid(struct encoder *encoder, const uint8_t *text, size_t bytes)
{
    gw_err rc = GW_OK;
    if (gw_pre_family_of(encoder->tokenizer->pre)->nfc) TRY(gw_nfc(text, bytes, &encoder->nfc, &text, &bytes));
    gw_pre_scan_start(&encoder->scan, text, bytes);
    for (;;) {
        const uint8_t *piece;
        size_t piece_bytes;
        TRY(gw_pre_scan_next(&encoder->scan, &piece, &piece_bytes));
        if (!piece_bytes) break;
        encode_piece(encoder, piece, piece_bytes);
    }
out:
    return rc;
}

/* Text without added tokens, of any bytes. */
static gw_err encode_plain(struct encoder *encoder, const uint8_t *text, size_t bytes)
{
    while (bytes) {
        size_t valid = gw_utf8_valid_prefix(text, bytes);
        gw_err rc = valid ? encode_valid(encoder, text, valid) : GW_OK;
        if (rc != GW_OK) return rc;
        text += valid;
        bytes -= valid;
        if (!bytes) break;
        int bad;
        bool unfinished;
        gw_utf8_char(text, bytes, &bad, &unfinished);
        for (int i = 0; i < bad; i++) {
            int32_t id = encoder->tokenizer->byte_id[text[i]];
            if (id >= 0) gw_tokens_add(encoder->out, id);
        }
        text += bad;
        bytes -= (size_t)bad;
    }
    return GW_OK;
}

/* The first added token at or after `at` that may match; its place, or `bytes` and *id -1. */
static size_t find_added(const struct gw_tokenizer *tokenizer, const uint8_t *text, size_t bytes, size_t at,
                         bool parse_special, int32_t *id)
{
    while (at < bytes) {
        const uint32_t *range = &tokenizer->added_from[text[at]];
        size_t length = 0;
        for (uint32_t i = range[0]; i < range[1] && !length; i++) {
            const uint8_t *data = token_data(tokenizer, tokenizer->added[i], &length);
            *id = tokenizer->added[i];
            if (length > bytes - at || memcmp(data, text + at, length) != 0) length = 0;
        }
        if (length && (parse_special || tokenizer->type[*id] == TYPE_USER)) return at;
        at += length ? length : 1;
    }
    *id = -1;
    return bytes;
}

gw_err gw_tokenizer_encode(const struct gw_tokenizer *tokenizer, const char *text, size_t bytes, bool parse_special,
                           struct gw_tokens *out)
{
    gw_err rc = GW_OK;
    const uint8_t *data = (const uint8_t *)text;
    struct encoder encoder = {.tokenizer = tokenizer, .out = out};
    if (!bytes) return GW_OK;
    if (bytes > INT32_MAX / 4) /* positions within a piece are 32-bit, and NFC may lengthen the text */
        return gw_fail(GW_ERR_INPUT, "a text of %zu bytes is too long to tokenize at once; the limit is %d", bytes,
                       INT32_MAX / 4);
    gw_pre_scan_open(tokenizer->pre, &encoder.scan);
    for (size_t at = 0; at < bytes;) {
        int32_t id;
        size_t found = find_added(tokenizer, data, bytes, at, parse_special, &id);
        TRY(encode_plain(&encoder, data + at, found - at));
        at = found;
        if (id >= 0) {
            size_t length;
            token_data(tokenizer, id, &length);
            gw_tokens_add(out, id);
            at += length;
        }
    }
out:
    gw_pre_scan_close(&encoder.scan);
    gw_bpe_scratch_free(&encoder.bpe);
    gw_buf_free(&encoder.nfc);
    return rc;
}

/* ---- facts ---- */

const char *gw_tokenizer_bytes(const struct gw_tokenizer *tokenizer, int32_t id, size_t *bytes)
{
    *bytes = 0;
    if (id < 0 || id >= tokenizer->vocab) return NULL;
    return (const char *)token_data(tokenizer, id, bytes);
}

bool gw_tokenizer_is_special(const struct gw_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->vocab && tokenizer->type[id] != TYPE_NORMAL && tokenizer->type[id] != TYPE_USER;
}

int32_t gw_tokenizer_vocab(const struct gw_tokenizer *tokenizer)
{
    return tokenizer->vocab;
}

int32_t gw_tokenizer_bos(const struct gw_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

bool gw_tokenizer_adds_bos(const struct gw_tokenizer *tokenizer)
{
    return tokenizer->adds_bos;
}

bool gw_tokenizer_is_eog(const struct gw_tokenizer *tokenizer, int32_t id)
{
    for (int i = 0; i < tokenizer->eog_count; i++)
        if (tokenizer->eog[i] == id) return true;
    return false;
}

int32_t gw_tokenizer_find(const struct gw_tokenizer *tokenizer, const char *spelling)
{
    size_t bytes = strlen(spelling);
    for (int32_t id = 0; id < tokenizer->vocab; id++)
        if (tokenizer->type[id] != TYPE_NORMAL && token_is(tokenizer, id, (const uint8_t *)spelling, bytes)) return id;
    return find_normal(tokenizer, (const uint8_t *)spelling, bytes);
}
