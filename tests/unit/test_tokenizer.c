/* The tokenizer on made-up vocabularies: merges, families of pre-tokenizers, added tokens, NFC, invalid bytes, incremental
 * detokenisation, and the errors of files that cannot be used. Equality with Hugging Face on the real vocabularies is shown by
 * test_tokenizer_golden and tests/reference/tokenizer_compare.py. */
#include "base/clock.h"
#include "base/philox.h"
#include "model/tokenizer.h"
#include "model/tokenizer_internal.h"
#include "support/tiny_vocab.h"

#include <CUnit/Basic.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED 20240501
#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t drawn;
static unsigned draw(unsigned below)
{
    return (unsigned)(gw_philox_uniform(SEED, 1, drawn++) * below);
}

/* ---- helpers ---- */

static gw_err try_create(const struct gw_vocab_spec *spec, struct gw_tokenizer **tokenizer)
{
    struct gw_buf file = {0};
    struct gw_gguf *gguf = NULL;
    gw_vocab_build(spec, &file);
    gw_err rc = gw_gguf_parse("made-up.gguf", file.data, file.bytes, &gguf);
    CU_ASSERT_EQUAL_FATAL(rc, GW_OK);
    rc = gw_tokenizer_create(gguf, tokenizer);
    gw_gguf_close(gguf); /* the tokenizer must not need it any more */
    gw_buf_free(&file);
    return rc;
}

static struct gw_tokenizer *create(struct gw_vocab_spec spec)
{
    struct gw_tokenizer *tokenizer;
    gw_err rc = try_create(&spec, &tokenizer);
    if (rc != GW_OK) puts(gw_error_detail());
    CU_ASSERT_EQUAL_FATAL(rc, GW_OK);
    return tokenizer;
}

static struct gw_tokens encode(const struct gw_tokenizer *tokenizer, const void *text, size_t bytes, bool special)
{
    struct gw_tokens tokens = {0};
    CU_ASSERT_EQUAL_FATAL(gw_tokenizer_encode(tokenizer, text, bytes, special, &tokens), GW_OK);
    return tokens;
}

/* The tokens of `text` as "one|two|three". */
static char *shown(const struct gw_tokenizer *tokenizer, const char *text, bool special)
{
    struct gw_tokens tokens = encode(tokenizer, text, strlen(text), special);
    struct gw_buf out = {0};
    for (size_t i = 0; i < tokens.count; i++) {
        size_t bytes;
        const char *data = gw_tokenizer_bytes(tokenizer, tokens.ids[i], &bytes);
        if (i) gw_buf_add_text(&out, "|");
        gw_buf_add(&out, data, bytes);
    }
    gw_buf_add(&out, "", 1);
    gw_tokens_free(&tokens);
    return (char *)out.data;
}

static void check(const struct gw_tokenizer *tokenizer, const char *text, bool special, const char *wanted)
{
    char *got = shown(tokenizer, text, special);
    if (strcmp(got, wanted)) printf("\n  '%s': got '%s', wanted '%s'\n", text, got, wanted);
    CU_ASSERT_STRING_EQUAL(got, wanted);
    free(got);
}

/* Pieces of a family as "one|two"; needs no vocabulary. */
static void check_split(const char *family, const char *text, const char *wanted)
{
    struct gw_pre *pre;
    struct gw_pre_scan scan;
    struct gw_buf out = {0};
    CU_ASSERT_EQUAL_FATAL(gw_pre_create((struct gw_str){family, strlen(family)}, "test", &pre), GW_OK);
    gw_pre_scan_open(pre, &scan);
    gw_pre_scan_start(&scan, (const uint8_t *)text, strlen(text));
    for (;;) {
        const uint8_t *piece;
        size_t bytes;
        CU_ASSERT_EQUAL_FATAL(gw_pre_scan_next(&scan, &piece, &bytes), GW_OK);
        if (!bytes) break;
        if (out.bytes) gw_buf_add_text(&out, "|");
        gw_buf_add(&out, piece, bytes);
    }
    gw_buf_add(&out, "", 1);
    if (strcmp((char *)out.data, wanted)) printf("\n  %s: got '%s', wanted '%s'\n", family, out.data, wanted);
    CU_ASSERT_STRING_EQUAL((char *)out.data, wanted);
    gw_buf_free(&out);
    gw_pre_scan_close(&scan);
    gw_pre_destroy(pre);
}

static void concat(const struct gw_tokenizer *tokenizer, const struct gw_tokens *tokens, struct gw_buf *out)
{
    for (size_t i = 0; i < tokens->count; i++) {
        size_t bytes;
        const char *data = gw_tokenizer_bytes(tokenizer, tokens->ids[i], &bytes);
        gw_buf_add(out, data, bytes);
    }
}

/* ---- merges ---- */

static void test_merge_order(void)
{
    static const char *const merges[] = {"b c", "a b", "a bc", "l l", "o w", "ll o", NULL};
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.merges = merges));
    CU_ASSERT_EQUAL(gw_tokenizer_vocab(tokenizer), 256 + 6);
    check(tokenizer, "abc", false, "abc"); /* b c is ranked before a b */
    check(tokenizer, "abd", false, "ab|d");
    check(tokenizer, "aabcbc", false, "a|abc|bc");
    check(tokenizer, "llll", false, "ll|ll");
    check(tokenizer, "lll", false, "ll|l");   /* leftmost first among equals */
    check(tokenizer, "llow", false, "ll|ow"); /* o w (rank 4) takes the o before ll o (rank 5) can */
    check(tokenizer, "llo", false, "llo");
    check(tokenizer, "ab ab", false, "ab| |ab");
    check(tokenizer, "", false, "");
    gw_tokenizer_destroy(tokenizer);
}

/* A token of the vocabulary that the merges cannot reach is taken whole only by the family that says so. */
static void test_ignore_merges(void)
{
    static const char *const merges[] = {"a b", "c d", "b c", "a bc",
                                         NULL}; /* "abc": a b goes first, so a bc never happens */
    struct gw_tokenizer *gpt2 = create(GW_VOCAB_SPEC(.merges = merges));
    struct gw_tokenizer *llama = create(GW_VOCAB_SPEC(.merges = merges, .pre = "llama-bpe"));
    for (int again = 0; again < 2; again++) { /* the second time from the cache */
        check(gpt2, "abc", false, "ab|c");
        check(llama, "abc", false, "abc");
        check(gpt2, "ab", false, "ab");
        check(llama, "abcd", false, "ab|cd");
    }
    gw_tokenizer_destroy(gpt2);
    gw_tokenizer_destroy(llama);
}

/* The plain algorithm of the definition: merge the leftmost pair of the lowest rank until there is none. */
static size_t merge_naively(const struct gw_merges *merges, int32_t *id, size_t count)
{
    for (;;) {
        size_t best = count;
        uint32_t best_rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < count; i++) {
            for (uint64_t s = 0; s <= merges->mask; s++) {
                const struct gw_merge_slot *slot = &merges->slots[s];
                if (slot->key == ((uint64_t)(uint32_t)id[i] << 32 | (uint32_t)id[i + 1]) + 1 && slot->rank < best_rank)
                    best = i, best_rank = slot->rank;
            }
        }
        if (best == count) break;
        for (uint64_t s = 0; s <= merges->mask; s++)
            if (merges->slots[s].key && merges->slots[s].rank == best_rank) id[best] = merges->slots[s].merged;
        memmove(id + best + 1, id + best + 2, (count - best - 2) * sizeof *id);
        count--;
    }
    return count;
}

static void test_merge_random(void)
{
    enum { MAX = 130 };
    for (int round = 0; round < 300; round++) {
        struct gw_merges merges;
        int letters = 2 + (int)draw(3), rules = 1 + (int)draw(14);
        gw_merges_init(&merges, (uint64_t)rules);
        for (int r = 0; r < rules; r++)
            gw_merges_put(&merges, (int32_t)draw((unsigned)(letters + r)), (int32_t)draw((unsigned)(letters + r)),
                          (uint32_t)r, letters + r);
        for (int t = 0; t < 6; t++) {
            int32_t want[MAX];
            size_t count = draw(MAX); /* on both sides of the border between the two merge loops */
            struct gw_bpe_scratch scratch = {0};
            gw_bpe_scratch_reserve(&scratch, MAX);
            for (size_t i = 0; i < count; i++) want[i] = scratch.id[i] = (int32_t)draw((unsigned)letters);
            size_t wanted = merge_naively(&merges, want, count), got = gw_bpe_merge(&merges, &scratch, count);
            CU_ASSERT_EQUAL_FATAL(got, wanted);
            CU_ASSERT_EQUAL_FATAL(memcmp(want, scratch.id, got * sizeof *want), 0);
            gw_bpe_scratch_free(&scratch);
        }
        gw_merges_free(&merges);
    }
}

/* A megabyte of one letter is one piece; a quadratic loop would need hours. */
static void test_long_piece(void)
{
    static const char *const merges[] = {"a a", "aa aa", "aaaa aaaa", NULL};
    enum { BYTES = 1 << 20 };
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.merges = merges));
    char *text = gw_alloc(BYTES + 3, 1);
    memset(text, 'a', BYTES + 3);
    double start = gw_clock_now_s();
    struct gw_tokens tokens = encode(tokenizer, text, BYTES + 3, false);
    CU_ASSERT_EQUAL(tokens.count, BYTES / 8 + 2); /* ... and aa, a */
    CU_ASSERT(gw_clock_now_s() - start < 60);
    gw_tokens_free(&tokens);
    memset(text, ' ', BYTES); /* blanks make the expressions backtrack */
    tokens = encode(tokenizer, text, BYTES + 3, false);
    CU_ASSERT_EQUAL(tokens.count, BYTES + 2); /* ... and aa, a */
    gw_tokens_free(&tokens);
    free(text);
    gw_tokenizer_destroy(tokenizer);
}

static void test_missing_bytes(void)
{
    static const char *const merges[] = {"a b", NULL};
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.merges = merges, .missing = "\x04#"));
    check(tokenizer, "a#b", false, "a|b"); /* three pieces */
    check(tokenizer, "\x04", false, "");
    gw_tokenizer_destroy(tokenizer);
    tokenizer = create(GW_VOCAB_SPEC(.merges = merges, .missing = "x"));
    check(tokenizer, "axb", false, "ab"); /* one piece: the neighbours meet */
    gw_tokenizer_destroy(tokenizer);
}

/* ---- families ---- */

static void test_split_gpt2(void)
{
    check_split("gpt-2", "Hello  world 's don't DON'T x123 456!? \n\n  y",
                "Hello| | world| '|s| don|'t| DON|'|T| x|123| 456|!?| \n\n | y");
    check_split("gpt2", "a \t", "a| \t");
    check_split("gpt-2",
                "a\xe1\xa0\x8e"
                "b\xc2\x85",
                "a|\xe1\xa0\x8e|b|\xc2\x85"); /* U+180E is no space, U+0085 is */
}

static void test_split_smollm(void)
{
    check_split("smollm", "x12  3 4a   5", "x|1|2|  |3| |4|a|   |5");
    check_split("smollm", "I'll  go\n\n1", "I|'ll| | go|\n\n|1");
    check_split("smollm", "a'2's", "a|'|2|'s");
    check_split("smollm", "!!\xf0\x91\xbd\x90  \xf0\x91\xbd\x90!",
                "!!|\xf0\x91\xbd\x90|  |\xf0\x91\xbd\x90|!");          /* Kawi zero, Unicode 15 */
    check_split("smollm", "\xc2\xbd\xd9\xa3z", "\xc2\xbd|\xd9\xa3|z"); /* one half, Arabic three */
}

static void test_split_qwen2(void)
{
    check_split("qwen2", "Hello  world DON'T we'LL 123\n\n  x(y)\r\n\t.z",
                "Hello| | world| DON|'T| we|'LL| |1|2|3|\n\n| | x|(y|)\r\n|\t|.z");
    check_split("qwen2", "a \n b", "a| \n| b");
    check_split("qwen2", "it'\xc5\xbf", "it|'\xc5\xbf"); /* the long s folds to s */
}

static void test_split_llama3(void)
{
    check_split("llama-bpe", "12345 a1234567", "123|45| a|123|456|7");
    check_split("llama3", "#1 'S", "#|1| '|S");
    check_split("llama3", "He'S", "He|'S");
}

/* The matches of every family tile every text. */
static void test_split_tiles(void)
{
    static const char *const families[] = {"smollm", "qwen2", "llama-bpe", "gpt-2"};
    static const char *const chars[] = {"a",
                                        "'",
                                        "s",
                                        "S",
                                        "T",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\r",
                                        "\t",
                                        "1",
                                        "\xc2\xb2",
                                        "\xc3\xa9",
                                        "!",
                                        "\xcc\x81",
                                        "\xe4\xb8\xad",
                                        "\xe3\x80\x80",
                                        "\xf0\x9f\x98\x80",
                                        "\xc2\x85",
                                        "\xc2\xa0",
                                        "\0"};
    for (size_t f = 0; f < COUNT(families); f++) {
        struct gw_pre *pre;
        struct gw_pre_scan scan;
        CU_ASSERT_EQUAL_FATAL(gw_pre_create((struct gw_str){families[f], strlen(families[f])}, "test", &pre), GW_OK);
        gw_pre_scan_open(pre, &scan);
        for (int round = 0; round < 500; round++) {
            struct gw_buf text = {0};
            for (unsigned i = 0, n = draw(20); i < n; i++) {
                const char *c = chars[draw(COUNT(chars))];
                gw_buf_add(&text, c, *c ? strlen(c) : 1);
            }
            gw_pre_scan_start(&scan, text.data, text.bytes);
            const uint8_t *piece = NULL, *end = text.data;
            for (size_t bytes = 1; bytes;) {
                CU_ASSERT_EQUAL_FATAL(gw_pre_scan_next(&scan, &piece, &bytes), GW_OK);
                if (bytes) CU_ASSERT_PTR_EQUAL(piece, end);
                end += bytes;
            }
            CU_ASSERT_PTR_EQUAL(end, text.data + text.bytes);
            gw_buf_free(&text);
        }
        gw_pre_scan_close(&scan);
        gw_pre_destroy(pre);
    }
}

/* ---- NFC ---- */

static void check_nfc(const char *text, const char *wanted)
{
    struct gw_buf scratch = {0};
    const uint8_t *result;
    size_t bytes;
    CU_ASSERT_EQUAL_FATAL(gw_nfc((const uint8_t *)text, strlen(text), &scratch, &result, &bytes), GW_OK);
    CU_ASSERT_EQUAL(bytes, strlen(wanted));
    CU_ASSERT_EQUAL(memcmp(result, wanted, bytes < strlen(wanted) ? bytes : strlen(wanted)), 0);
    gw_buf_free(&scratch);
}

static void test_nfc(void)
{
    check_nfc("", "");
    check_nfc("plain caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac", "plain caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac");
    check_nfc("cafe\xcc\x81 e\xcc\x81!", "caf\xc3\xa9 \xc3\xa9!");
    check_nfc("\xcc\x81x", "\xcc\x81x");
    check_nfc("a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81"); /* the dot below (220) sorts before the acute (230) */
    check_nfc("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"); /* jamo L V T */
    check_nfc("\xea\xb0\x80\xe1\x86\xa8", "\xea\xb0\x81");             /* syllable LV and jamo T */
    check_nfc("\xe2\x84\xab\xe2\x84\xa6", "\xc3\x85\xce\xa9");         /* Angstrom and Ohm signs */
    check_nfc("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");             /* composition exclusion */
    check_nfc("x\xef\xac\x81", "x\xef\xac\x81");                       /* compatibility only: the ligature fi stays */
    check_nfc("\xe0\xa7\x87\xe0\xa6\xbe", "\xe0\xa7\x8b");             /* two starters that compose */
    /* U+0898 came as a mark with Unicode 14: to Hugging Face's normaliser it is no mark, so nothing passes it. */
    check_nfc("e\xe0\xa2\x98\xcc\x81", "e\xe0\xa2\x98\xcc\x81");
    check_nfc("e\xcc\x81\xe0\xa2\x98\xcc\x81\xcc\xa3", "\xc3\xa9\xe0\xa2\x98\xcc\xa3\xcc\x81");
    struct gw_tokenizer *qwen = create(GW_VOCAB_SPEC(.pre = "qwen2"));
    struct gw_tokenizer *smollm = create(GW_VOCAB_SPEC(.pre = "smollm"));
    check(qwen, "e\xcc\x81", false, "\xc3|\xa9");
    check(smollm, "e\xcc\x81", false, "e|\xcc|\x81");
    gw_tokenizer_destroy(qwen);
    gw_tokenizer_destroy(smollm);
}

/* Many marks in the wrong order: sorted quickly, and stably. */
static void test_nfc_many_marks(void)
{
    enum { MARKS = 200000 };
    struct gw_buf text = {0}, scratch = {0};
    const uint8_t *result;
    size_t bytes;
    gw_buf_add_text(&text, "q");
    for (int i = 0; i < MARKS; i++)
        gw_buf_add_text(&text, i % 2 ? "\xcc\xa3" : i % 4 ? "\xcc\x80" : "\xcc\x81"); /* 220, 230, 230 */
    double start = gw_clock_now_s();
    CU_ASSERT_EQUAL_FATAL(gw_nfc(text.data, text.bytes, &scratch, &result, &bytes), GW_OK);
    CU_ASSERT(gw_clock_now_s() - start < 30);
    CU_ASSERT_EQUAL_FATAL(bytes, text.bytes);
    CU_ASSERT_EQUAL(memcmp(result, "q\xcc\xa3\xcc\xa3", 5), 0);
    CU_ASSERT_EQUAL(memcmp(result + 1 + MARKS, "\xcc\x81\xcc\x80\xcc\x81\xcc\x80", 8), 0);
    gw_buf_free(&text);
    gw_buf_free(&scratch);
}

/* ---- added tokens ---- */

static const struct gw_vocab_added some_added[] = {{"<|im_start|>", 3}, {"<|im_end|>", 3}, {"<|im|>", 3},
                                                   {"<|im|>>", 3},      {"<tool>", 4},     {"</tool>", 4},
                                                   {"[PAD0]", 5},       {NULL, 0}};

static void test_added(void)
{
    static const char *const merges[] = {"< |", "t o", NULL};
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.merges = merges, .added = some_added, .bos = 1, .eos = 2));
    check(tokenizer, "a<|im_end|>b<tool>", true, "a|<|im_end|>|b|<tool>");
    check(tokenizer, "a<|im_end|>b<tool>", false, "a|<||i|m|_|e|n|d|||>|b|<tool>"); /* data cannot end its turn */
    check(tokenizer, "<|im|>><|im|>", true, "<|im|>>|<|im|>");                      /* the longest at a place */
    check(tokenizer, "<<|im|>", true, "<|<|im|>");
    check(tokenizer, "<|im_en", true, "<||i|m|_|e|n");
    check(tokenizer, "[PAD0]", true, "[|P|A|D|0|]"); /* unused tokens match nothing */
    int32_t end = gw_tokenizer_find(tokenizer, "<|im_end|>"), tool = gw_tokenizer_find(tokenizer, "<tool>");
    CU_ASSERT(end > 0 && tool > end);
    CU_ASSERT_EQUAL(gw_tokenizer_find(tokenizer, "<|"), 256);
    CU_ASSERT_EQUAL(gw_tokenizer_find(tokenizer, "nothing"), -1);
    CU_ASSERT(gw_tokenizer_is_special(tokenizer, end));
    CU_ASSERT(!gw_tokenizer_is_special(tokenizer, tool));
    CU_ASSERT(gw_tokenizer_is_special(tokenizer, gw_tokenizer_find(tokenizer, "[PAD0]")));
    CU_ASSERT(!gw_tokenizer_is_special(tokenizer, 65) && !gw_tokenizer_is_special(tokenizer, -1));
    CU_ASSERT(gw_tokenizer_is_eog(tokenizer, end) && !gw_tokenizer_is_eog(tokenizer, tool));
    CU_ASSERT(!gw_tokenizer_is_eog(tokenizer, gw_tokenizer_bos(tokenizer)));
    CU_ASSERT_EQUAL(gw_tokenizer_bos(tokenizer), gw_tokenizer_find(tokenizer, "<|im_start|>"));
    CU_ASSERT(!gw_tokenizer_adds_bos(tokenizer));
    size_t bytes;
    CU_ASSERT_PTR_NULL(gw_tokenizer_bytes(tokenizer, -1, &bytes));
    CU_ASSERT_PTR_NULL(gw_tokenizer_bytes(tokenizer, gw_tokenizer_vocab(tokenizer), &bytes));
    CU_ASSERT_EQUAL(bytes, 0);
    gw_tokenizer_destroy(tokenizer);
}

static void test_bos(void)
{
    static const struct gw_vocab_added added[] = {{"<s>", 3}, {"<|eot_id|>", 3}, {"<|end_of_text|>", 3}, {NULL, 0}};
    static const struct {
        const char *pre;
        int bos, add_bos;
        bool wanted;
    } cases[] = {{"llama-bpe", 1, GW_VOCAB_BOS_UNSAID, true},
                 {"llama-bpe", 1, GW_VOCAB_BOS_NO, false},
                 {"llama-bpe", 0, GW_VOCAB_BOS_UNSAID, false},
                 {"qwen2", 1, GW_VOCAB_BOS_UNSAID, false},
                 {"qwen2", 1, GW_VOCAB_BOS_YES, true}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct gw_tokenizer *tokenizer = create(
            GW_VOCAB_SPEC(.pre = cases[i].pre, .added = added, .bos = cases[i].bos, .add_bos = cases[i].add_bos));
        CU_ASSERT_EQUAL(gw_tokenizer_adds_bos(tokenizer), cases[i].wanted);
        CU_ASSERT(gw_tokenizer_is_eog(tokenizer, 257) && gw_tokenizer_is_eog(tokenizer, 258)); /* by their names */
        CU_ASSERT(!gw_tokenizer_is_eog(tokenizer, 256) && !gw_tokenizer_is_eog(tokenizer, -1));
        gw_tokenizer_destroy(tokenizer);
    }
}

/* ---- any bytes ---- */

static void test_invalid_bytes(void)
{
    static const char *const merges[] = {"\xc3\x83 \xc2\xa9", NULL}; /* the bytes c3 a9 */
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.merges = merges));
    check(tokenizer, "\xc3\xa9", false, "\xc3\xa9");
    check(tokenizer, "a\xffz", false, "a|\xff|z");
    check(tokenizer, "\xc3\xc3\xa9", false, "\xc3|\xc3\xa9");
    check(tokenizer, "\xed\xa0\x80", false, "\xed|\xa0|\x80"); /* a surrogate */
    check(tokenizer, "\xf4\x90\x80\x80", false, "\xf4|\x90|\x80|\x80");
    check(tokenizer, "\xe2\x82", false, "\xe2|\x82");
    gw_tokenizer_destroy(tokenizer);
}

static void test_round_trip(void)
{
    static const char *const merges[] = {"a b", "ab a", "\xc3\xa2 \xc4\xa4", "\xc4\xa0 a", "\xc4\xa0 \xc4\xa0", NULL};
    static const char *const families[] = {"smollm", "llama-bpe", "gpt-2"};
    for (size_t f = 0; f < COUNT(families); f++) {
        struct gw_tokenizer *tokenizer = create(
            GW_VOCAB_SPEC(.pre = families[f], .merges = merges, .added = some_added));
        for (int round = 0; round < 400; round++) {
            uint8_t text[64];
            size_t count = draw(sizeof text);
            for (size_t i = 0; i < count; i++)
                text[i] = (uint8_t)(draw(3) ? (unsigned)"ab <|im|>\xe2\x82\xac"[draw(12)] : draw(256));
            for (int special = 0; special < 2; special++) {
                struct gw_tokens tokens = encode(tokenizer, text, count, special);
                struct gw_buf back = {0};
                concat(tokenizer, &tokens, &back);
                CU_ASSERT_EQUAL_FATAL(back.bytes, count);
                CU_ASSERT_EQUAL_FATAL(count ? memcmp(back.data, text, count) : 0, 0);
                gw_buf_free(&back);
                gw_tokens_free(&tokens);
            }
        }
        gw_tokenizer_destroy(tokenizer);
    }
}

/* ---- incremental detokenisation ---- */

/* What Python's bytes.decode("utf-8", errors="replace") gives. */
static const struct {
    const char *bytes;
    size_t count;
    const char *text;
} replaced[] = {
    {"", 0, ""},
    {"abc", 3, "abc"},
    {"\xe2\x82\xac", 3, "\xe2\x82\xac"},
    {"\xe2\x82", 2, "\xef\xbf\xbd"},
    {"\xe2\x82z", 3, "\xef\xbf\xbdz"},
    {"\xff\xfe", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xc0\x80", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xf0\x9f\x98", 3, "\xef\xbf\xbd"},
    {"\xf0\x9f\x98\x80", 4, "\xf0\x9f\x98\x80"},
    {"\xf0\x80\x80\x80", 4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xf0\x9f\xf0\x9f\x98\x80", 6, "\xef\xbf\xbd\xf0\x9f\x98\x80"},
    {"\xf4\x90\x80\x80", 4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xe0\x80\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xc3\xc3\xa9\xc3", 4, "\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd"},
    {"\xf1\x80\x80"
     "A",
     4,
     "\xef\xbf\xbd"
     "A"},
    {"\x80\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
     "A",
     10,
     "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
     "A"},
};

static void test_detok_replaces(void)
{
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC()); /* id == byte */
    for (size_t i = 0; i < COUNT(replaced); i++) {
        struct gw_detok detok = {0};
        struct gw_buf text = {0};
        for (size_t b = 0; b < replaced[i].count; b++)
            gw_detok_add(tokenizer, &detok, (uint8_t)replaced[i].bytes[b], &text);
        gw_detok_finish(&detok, &text);
        CU_ASSERT_EQUAL(text.bytes, strlen(replaced[i].text));
        CU_ASSERT(text.bytes == strlen(replaced[i].text) &&
                  !memcmp(text.data ? (char *)text.data : "", replaced[i].text, text.bytes));
        gw_buf_free(&text);
    }
    gw_tokenizer_destroy(tokenizer);
}

/* However bytes are cut into tokens the text is the same, and what has come out so far is always valid UTF-8. Tokens of up to six
 * bytes are made by merges of neighbours. */
static void test_detok_cuts(void)
{
    static const uint8_t pool[] = {'a',  0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f,
                                   0x98, 0x80, 0xff, 0xed, 0xa0, 0xf4, 0x90};
    enum { TOKENS = 400 };
    struct gw_buf words[TOKENS] = {0};
    struct gw_vocab_added added[TOKENS + 1] = {0};
    for (int t = 0; t < TOKENS; t++) { /* user-defined tokens may spell any bytes */
        for (unsigned i = 0, n = 1 + draw(6); i < n; i++) gw_buf_add(&words[t], &pool[draw(sizeof pool)], 1);
        gw_buf_add(&words[t], "", 1);
        added[t] = (struct gw_vocab_added){(char *)words[t].data, 4};
    }
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.added = added));
    for (int round = 0; round < 2000; round++) {
        struct gw_detok cut = {0}, whole = {0};
        struct gw_buf text = {0}, wanted = {0}, bytes = {0};
        for (unsigned i = 0, n = draw(8); i < n; i++) {
            int32_t id = 256 + (int32_t)draw(TOKENS);
            gw_buf_add_text(&bytes, added[id - 256].spelling);
            gw_detok_add(tokenizer, &cut, id, &text);
            CU_ASSERT_EQUAL_FATAL(gw_utf8_valid_prefix(text.data, text.bytes), text.bytes);
        }
        gw_detok_finish(&cut, &text);
        for (size_t b = 0; b < bytes.bytes; b++) gw_detok_add(tokenizer, &whole, bytes.data[b], &wanted);
        gw_detok_finish(&whole, &wanted);
        CU_ASSERT_EQUAL_FATAL(text.bytes, wanted.bytes);
        CU_ASSERT_FATAL(!text.bytes || !memcmp(text.data, wanted.data, text.bytes));
        gw_buf_free(&text);
        gw_buf_free(&wanted);
        gw_buf_free(&bytes);
    }
    gw_tokenizer_destroy(tokenizer);
    for (int t = 0; t < TOKENS; t++) gw_buf_free(&words[t]);
}

static void test_detok_special(void)
{
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.added = some_added));
    struct gw_detok detok = {0};
    struct gw_buf text = {0};
    gw_detok_add(tokenizer, &detok, 0xc3, &text);
    CU_ASSERT_EQUAL(text.bytes, 0);
    gw_detok_add(tokenizer, &detok, gw_tokenizer_find(tokenizer, "<|im_end|>"), &text); /* adds nothing, cuts nothing */
    gw_detok_add(tokenizer, &detok, 0xa9, &text);
    gw_detok_add(tokenizer, &detok, gw_tokenizer_find(tokenizer, "<tool>"), &text);
    gw_detok_add(tokenizer, &detok, 1 << 30, &text);
    gw_detok_finish(&detok, &text);
    CU_ASSERT_EQUAL_FATAL(text.bytes, 8);
    CU_ASSERT_EQUAL(memcmp(text.data, "\xc3\xa9<tool>", 8), 0);
    gw_buf_free(&text);
    gw_tokenizer_destroy(tokenizer);
}

/* ---- files that cannot be used ---- */

static void check_refused(struct gw_vocab_spec spec, gw_err wanted, const char *says)
{
    struct gw_tokenizer *tokenizer;
    CU_ASSERT_EQUAL(try_create(&spec, &tokenizer), wanted);
    CU_ASSERT_PTR_NULL(tokenizer);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), says));
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "made-up.gguf"));
}

static void test_refused(void)
{
    static const char *const foreign[] = {"a \xe4\xb8\xad", NULL};
    static const char *const lost[] = {"a b", "ab z", NULL};
    check_refused(GW_VOCAB_SPEC(.model = "llama"), GW_ERR_UNSUPPORTED, "known is gpt2");
    check_refused(GW_VOCAB_SPEC(.pre = "tekken"), GW_ERR_UNSUPPORTED, "smollm, qwen2, llama-bpe, gpt-2");
    check_refused(GW_VOCAB_SPEC(.pre = ""), GW_ERR_UNSUPPORTED, "'default'");
    check_refused(GW_VOCAB_SPEC(.merges = foreign), GW_ERR_FORMAT, "merge 0");
    check_refused(GW_VOCAB_SPEC(.merges = lost, .missing = "z"), GW_ERR_FORMAT, "merge 1");
    check_refused(GW_VOCAB_SPEC(.bos = 7), GW_ERR_FORMAT, "bos_token_id");
}

/* ---- threads ---- */

static void *encode_often(void *arg)
{
    static const char text[] = "abc abc ab caf\xc3\xa9 12 <tool> abcabc";
    size_t first = 0;
    for (int i = 0; i < 300; i++) {
        struct gw_tokens tokens = {0};
        if (gw_tokenizer_encode(arg, text, sizeof text - 1, false, &tokens) != GW_OK) return NULL;
        if (first && tokens.count != first) return NULL;
        first = tokens.count;
        gw_tokens_free(&tokens);
    }
    return arg;
}

static void test_threads(void)
{
    static const char *const merges[] = {"b c", "a b", "a bc", NULL};
    struct gw_tokenizer *tokenizer = create(GW_VOCAB_SPEC(.pre = "qwen2", .merges = merges, .added = some_added));
    pthread_t threads[4];
    for (int t = 0; t < 4; t++) CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[t], NULL, encode_often, tokenizer), 0);
    for (int t = 0; t < 4; t++) {
        void *result;
        pthread_join(threads[t], &result);
        CU_ASSERT_PTR_NOT_NULL(result);
    }
    gw_tokenizer_destroy(tokenizer);
}

int main(void)
{
    static CU_TestInfo tests[] = {{"merge order", test_merge_order},
                                  {"ignore_merges", test_ignore_merges},
                                  {"random merges", test_merge_random},
                                  {"long piece", test_long_piece},
                                  {"missing bytes", test_missing_bytes},
                                  {"split gpt-2", test_split_gpt2},
                                  {"split smollm", test_split_smollm},
                                  {"split qwen2", test_split_qwen2},
                                  {"split llama3", test_split_llama3},
                                  {"split tiles", test_split_tiles},
                                  {"nfc", test_nfc},
                                  {"nfc of many marks", test_nfc_many_marks},
                                  {"added tokens", test_added},
                                  {"bos and end", test_bos},
                                  {"invalid bytes", test_invalid_bytes},
                                  {"round trip", test_round_trip},
                                  {"detok replaces", test_detok_replaces},
                                  {"detok cuts", test_detok_cuts},
                                  {"detok special", test_detok_special},
                                  {"refused", test_refused},
                                  {"threads", test_threads},
                                  CU_TEST_INFO_NULL};
    CU_SuiteInfo suites[] = {{.pName = "tokenizer", .pTests = tests}, CU_SUITE_INFO_NULL};
    printf("seed %d\n", SEED);
    if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS) return 1;
    CU_basic_set_mode(CU_BRM_NORMAL);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
