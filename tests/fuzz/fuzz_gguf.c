/* Any bytes as a model file: opening must not crash, and what it accepts must be safe to use. Each accepted tensor is read from end
 * to end, every metadata value is asked for in every way, and an accepted model gives its roles, rope and fingerprint.
 *
 * The corpus holds small models of support/tiny_model.h (make_tiny --layers 1 --d 32 --ffn 32 --heads 1 --kv-heads 1 --vocab 259 ...),
 * hand-made files without a tokenizer, and broken ones, each named after what is wrong with it. */
#include "base/mem.h"
#include "model/arch.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static volatile double sink; /* so that no read is optimised away */

static void use_array(const struct gw_gguf *gguf, const char *key)
{
    enum gw_gguf_kind element;
    uint64_t count, strings_count;
    const struct gw_str *strings;
    if (!gw_gguf_get_array(gguf, key, &element, &count)) return;
    bool are_strings = gw_gguf_get_strings(gguf, key, &strings, &strings_count);
    GW_ASSERT(are_strings == (element == GW_GGUF_STRING));
    GW_ASSERT(!are_strings || strings_count == count);
    for (uint64_t i = 0; i < count; i++) {
        if (!are_strings) sink += gw_gguf_array_f64(gguf, key, i);
        else if (strings[i].bytes) sink += strings[i].data[0] + strings[i].data[strings[i].bytes - 1];
    }
}

static void use_keys(const struct gw_gguf *gguf)
{
    for (size_t i = 0; i < gw_gguf_key_count(gguf); i++) {
        enum gw_gguf_kind kind;
        char shown[GW_SHOW_BYTES];
        struct gw_str name = gw_gguf_key(gguf, i, &kind), text;
        char *key = gw_strndup(name.data, name.bytes);
        uint64_t whole;
        double real;
        bool flag;
        GW_ASSERT(strlen(gw_str_show(name, shown)) < GW_SHOW_BYTES);
        if (gw_gguf_get_str(gguf, key, &text) && text.bytes) sink += text.data[0] + text.data[text.bytes - 1];
        if (gw_gguf_get_u64(gguf, key, &whole)) sink += (double)whole;
        if (gw_gguf_get_f64(gguf, key, &real)) sink += isfinite(real) ? real : 0;
        if (gw_gguf_get_bool(gguf, key, &flag)) sink += flag;
        use_array(gguf, key);
        free(key);
    }
}

static void use_tensors(const struct gw_gguf *gguf)
{
    for (size_t i = 0; i < gw_gguf_tensor_count(gguf); i++) {
        const struct gw_gguf_tensor *t = gw_gguf_tensor_at(gguf, i);
        float values[256];
        GW_ASSERT(t->row_bytes * t->shape[1] * t->shape[2] * t->shape[3] == t->bytes);
        for (uint64_t b = 0; b < t->bytes; b += (uint64_t)t->type->block_bytes) {
            t->type->to_f32(t->data + b, values, (size_t)t->type->block_elements);
            sink += isfinite(values[0]) ? (double)values[0] : 0;
        }
    }
}

static void use_model(const struct gw_model *model)
{
    const struct gw_model_info *info = gw_model_info(model);
    double attn_factor, *inv_freq = gw_alloc((size_t)info->rope.dims / 2, sizeof *inv_freq);
    char hex[65];
    gw_rope_inv_freq(model, inv_freq, &attn_factor);
    GW_ASSERT(isfinite(attn_factor));
    for (int pair = 0; pair < info->rope.dims / 2; pair++) GW_ASSERT(inv_freq[pair] >= 0 && inv_freq[pair] <= 1);
    free(inv_freq);
    gw_model_fingerprint(model, hex);
    GW_ASSERT(strlen(hex) == 64 && strlen(info->name) < SIZE_MAX && strlen(info->file_type) < 64);
    for (int layer = 0; layer < info->layers; layer++)
        for (int role = 0; role < GW_TENSOR_ROLE_COUNT; role++) {
            const struct gw_gguf_tensor *t = gw_model_tensor(model, (enum gw_tensor_role)role, layer);
            bool bias = role == GW_TENSOR_Q_BIAS || role == GW_TENSOR_K_BIAS || role == GW_TENSOR_V_BIAS;
            GW_ASSERT(t || role == GW_TENSOR_ROPE_FREQS || (bias && !info->qkv_bias));
            if (t) sink += t->data[0] + t->data[t->bytes - 1];
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gw_gguf *gguf = NULL;
    struct gw_model *model = NULL;
    uint8_t *aligned = malloc(bytes ? bytes
                                    : 1); /* malloc aligns; of exactly this size, so that a sanitizer sees any excess */
    memcpy(aligned, data, bytes);
    if (gw_gguf_parse("fuzz", aligned, bytes, &gguf) == GW_OK) {
        use_keys(gguf);
        use_tensors(gguf);
    } else {
        GW_ASSERT(gw_error_detail()[0] && !strchr(gw_error_detail(), '\n'));
    }
    if (gw_model_parse("fuzz", aligned, bytes, &model) == GW_OK) use_model(model);
    GW_ASSERT(gguf || !model);
    gw_model_close(model);
    gw_gguf_close(gguf);
    free(aligned);
    return 0;
}
