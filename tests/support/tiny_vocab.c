/* See tiny_vocab.h. Metadata is written by hand here, so that the tokenizer's tests depend on the GGUF reader alone. */
#include "support/tiny_vocab.h"

#include <string.h>

enum { KIND_U32 = 4, KIND_I32 = 5, KIND_BOOL = 7, KIND_STRING = 8, KIND_ARRAY = 9 }; /* of GGUF values */

static void put_text(struct gw_buf *file, const void *text, size_t bytes)
{
    gw_buf_add_u64(file, bytes);
    gw_buf_add(file, text, bytes);
}

static void put_key(struct gw_buf *file, const char *key, uint32_t kind)
{
    put_text(file, key, strlen(key));
    gw_buf_add_u32(file, kind);
}

void gw_vocab_spell(const void *bytes, size_t count, struct gw_buf *text)
{
    for (const uint8_t *at = bytes; at < (const uint8_t *)bytes + count; at++) {
        unsigned code = *at;
        if (code <= ' ') code += 0x100;
        else if (code >= 0x7f && code <= 0xa0) code += 0x100 + 33 - 0x7f;
        else if (code == 0xad) code = 0x143;
        if (code >= 0x80) {
            uint8_t two[2] = {(uint8_t)(0xc0 | code >> 6), (uint8_t)(0x80 | (code & 0x3f))};
            gw_buf_add(text, two, 2);
        } else {
            gw_buf_add(text, &(uint8_t){(uint8_t)code}, 1);
        }
    }
}

static uint64_t count_merges(const struct gw_vocab_spec *spec)
{
    uint64_t count = 0;
    while (spec->merges && spec->merges[count]) count++;
    return count;
}

/* Appends all tokens' spellings to `tokens` and their types to `types`; returns the number. */
static uint64_t put_tokens(const struct gw_vocab_spec *spec, struct gw_buf *tokens, struct gw_buf *types,
                           uint64_t *first_added)
{
    uint64_t count = 0;
    struct gw_buf one = {0};
    for (int b = 0; b < 256; b++) {
        if (spec->missing && b && strchr(spec->missing, b)) continue;
        gw_buf_clear(&one);
        gw_vocab_spell(&(uint8_t){(uint8_t)b}, 1, &one);
        put_text(tokens, one.data, one.bytes);
        gw_buf_add_u32(types, 1);
        count++;
    }
    for (uint64_t i = 0; i < count_merges(spec); i++, count++) {
        const char *space = strchr(spec->merges[i], ' ');
        gw_buf_clear(&one);
        gw_buf_add(&one, spec->merges[i], (size_t)(space - spec->merges[i]));
        gw_buf_add_text(&one, space + 1);
        put_text(tokens, one.data, one.bytes);
        gw_buf_add_u32(types, 1);
    }
    *first_added = count;
    for (const struct gw_vocab_added *added = spec->added; added && added->spelling; added++, count++) {
        put_text(tokens, added->spelling, strlen(added->spelling));
        gw_buf_add_u32(types, (uint32_t)added->type);
    }
    gw_buf_free(&one);
    return count;
}

void gw_vocab_build(const struct gw_vocab_spec *spec, struct gw_buf *file)
{
    struct gw_buf tokens = {0}, types = {0};
    uint64_t first_added, count = put_tokens(spec, &tokens, &types, &first_added);
    const char *model = spec->model ? spec->model : "gpt2", *pre = spec->pre ? spec->pre : "gpt-2";
    uint64_t keys = 4 + (*pre != 0) + (spec->chat_template != NULL) + (spec->bos > 0) + (spec->eos > 0) +
                    (spec->add_bos != 0);
    gw_buf_add(file, "GGUF", 4);
    gw_buf_add_u32(file, 3);
    gw_buf_add_u64(file, 0); /* tensors */
    gw_buf_add_u64(file, keys);

    put_key(file, "tokenizer.ggml.model", KIND_STRING);
    put_text(file, model, strlen(model));
    if (*pre) {
        put_key(file, "tokenizer.ggml.pre", KIND_STRING);
        put_text(file, pre, strlen(pre));
    }
    if (spec->chat_template) {
        put_key(file, "tokenizer.chat_template", KIND_STRING);
        put_text(file, spec->chat_template, strlen(spec->chat_template));
    }
    put_key(file, "tokenizer.ggml.tokens", KIND_ARRAY);
    gw_buf_add_u32(file, KIND_STRING);
    gw_buf_add_u64(file, count);
    gw_buf_add(file, tokens.data, tokens.bytes);
    put_key(file, "tokenizer.ggml.token_type", KIND_ARRAY);
    gw_buf_add_u32(file, KIND_I32);
    gw_buf_add_u64(file, count);
    gw_buf_add(file, types.data, types.bytes);
    put_key(file, "tokenizer.ggml.merges", KIND_ARRAY);
    gw_buf_add_u32(file, KIND_STRING);
    gw_buf_add_u64(file, count_merges(spec));
    for (uint64_t i = 0; i < count_merges(spec); i++) put_text(file, spec->merges[i], strlen(spec->merges[i]));
    if (spec->bos > 0) {
        put_key(file, "tokenizer.ggml.bos_token_id", KIND_U32);
        gw_buf_add_u32(file, (uint32_t)first_added + (uint32_t)spec->bos - 1);
    }
    if (spec->eos > 0) {
        put_key(file, "tokenizer.ggml.eos_token_id", KIND_U32);
        gw_buf_add_u32(file, (uint32_t)first_added + (uint32_t)spec->eos - 1);
    }
    if (spec->add_bos != GW_VOCAB_BOS_UNSAID) {
        put_key(file, "tokenizer.ggml.add_bos_token", KIND_BOOL);
        gw_buf_add(file, &(uint8_t){spec->add_bos == GW_VOCAB_BOS_YES}, 1);
    }
    gw_buf_free(&tokens);
    gw_buf_free(&types);
}
