/* Any bytes through the tokenizer and back. The first byte chooses the family and whether control tokens are matched; the rest is the
 * text. What must hold: encoding never fails, the tokens' bytes are the text (qwen2: a text that encodes to the same tokens, since NFC is
 * done once), and incremental detokenisation gives valid UTF-8, equal to the text where that is valid and without control tokens. */
#include "model/tokenizer.h"
#include "model/tokenizer_internal.h"
#include "support/tiny_vocab.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *const families[] = {"smollm", "qwen2", "llama-bpe", "gpt-2"};
enum { FAMILIES = 4, NFC_FAMILY = 1 };

static struct gw_tokenizer *make_tokenizer(const char *pre)
{
    static const char *const merges[] = {"a b",
                                         "b c",
                                         "ab c",
                                         "a a",
                                         "aa aa",
                                         "' s",
                                         "\xc4\xa0 a",
                                         "\xc4\xa0 \xc4\xa0",
                                         "\xc3\x83 \xc2\xa9",
                                         "\xc3\xa4 \xc2\xb8",
                                         "\xc3\xa4\xc2\xb8 \xc5\x83",
                                         "\xc4\x8a \xc4\x8a",
                                         "1 2",
                                         NULL};
    static const struct gw_vocab_added added[] = {
        {"<|a|>", 3}, {"<|a|>b", 3}, {"<t>", 4}, {"\xe4\xb8\xadt", 4}, {NULL, 0}};
    struct gw_buf file = {0};
    struct gw_gguf *gguf;
    struct gw_tokenizer *tokenizer;
    gw_vocab_build(&GW_VOCAB_SPEC(.pre = pre, .merges = merges, .added = added), &file);
    GW_ASSERT(gw_gguf_parse("made-up.gguf", file.data, file.bytes, &gguf) == GW_OK);
    GW_ASSERT(gw_tokenizer_create(gguf, &tokenizer) == GW_OK);
    gw_gguf_close(gguf);
    gw_buf_free(&file);
    return tokenizer;
}

static void join(const struct gw_tokenizer *tokenizer, const struct gw_tokens *tokens, struct gw_buf *text)
{
    for (size_t i = 0; i < tokens->count; i++) {
        size_t bytes;
        const char *data = gw_tokenizer_bytes(tokenizer, tokens->ids[i], &bytes);
        gw_buf_add(text, data, bytes);
    }
}

static bool same(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    return a_bytes == b_bytes && (!a_bytes || memcmp(a, b, a_bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct gw_tokenizer *tokenizers[FAMILIES];
    if (!bytes) return 0;
    int family = data[0] % FAMILIES;
    bool special = data[0] & 0x80;
    if (!tokenizers[family]) tokenizers[family] = make_tokenizer(families[family]);
    const struct gw_tokenizer *tokenizer = tokenizers[family];
    data++, bytes--;

    struct gw_tokens tokens = {0}, again = {0};
    struct gw_buf back = {0}, text = {0};
    GW_ASSERT(gw_tokenizer_encode(tokenizer, (const char *)data, bytes, special, &tokens) == GW_OK);
    join(tokenizer, &tokens, &back);
    if (family == NFC_FAMILY) {
        GW_ASSERT(gw_tokenizer_encode(tokenizer, (const char *)back.data, back.bytes, special, &again) == GW_OK);
        GW_ASSERT(same(tokens.ids, tokens.count * sizeof *tokens.ids, again.ids, again.count * sizeof *again.ids));
    } else {
        GW_ASSERT(same(back.data, back.bytes, data, bytes));
    }

    struct gw_detok detok = {0};
    bool control = false;
    for (size_t i = 0; i < tokens.count; i++) {
        control = control || gw_tokenizer_is_special(tokenizer, tokens.ids[i]);
        gw_detok_add(tokenizer, &detok, tokens.ids[i], &text);
        GW_ASSERT(detok.held_bytes >= 0 && detok.held_bytes <= 3);
    }
    gw_detok_finish(&detok, &text);
    GW_ASSERT(gw_utf8_valid_prefix(text.data, text.bytes) == text.bytes);
    if (!control && gw_utf8_valid_prefix(back.data, back.bytes) == back.bytes)
        GW_ASSERT(same(text.data, text.bytes, back.data, back.bytes));
    gw_buf_free(&back);
    gw_buf_free(&text);
    gw_tokens_free(&tokens);
    gw_tokens_free(&again);
    return 0;
}
