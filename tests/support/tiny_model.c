/* Writes a tiny model. See tiny_model.h.
 *
 * A file is built in two buffers, the tensor table and the tensor data, joined at the end. Each tensor draws from its own Philox stream
 * (the hash of its name), so adding one does not change the others.
 */
#include "support/tiny_model.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/philox.h"
#include "support/tiny_bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { ALIGNMENT = 32 };

struct writer {
    const struct gw_tiny_spec *spec;
    struct gw_buf keys, table, data;
    uint64_t key_count, tensor_count;
};

static const struct {
    enum gw_type type;
    uint32_t file_type; /* general.file_type */
} types[] = {
    {GW_TYPE_F32, 0},  {GW_TYPE_F16, 1},  {GW_TYPE_BF16, 32}, {GW_TYPE_Q8_0, 7},  {GW_TYPE_Q4_0, 2},  {GW_TYPE_Q4_1, 3},
    {GW_TYPE_Q5_0, 8}, {GW_TYPE_Q5_1, 9}, {GW_TYPE_Q4_K, 15}, {GW_TYPE_Q5_K, 17}, {GW_TYPE_Q6_K, 18},
};
enum { TYPE_COUNT = sizeof types / sizeof *types };

bool gw_tiny_type(const char *name, enum gw_type *type)
{
    for (int i = 0; i < TYPE_COUNT; i++)
        if (strcasecmp(gw_type_info(types[i].type)->name, name) == 0) {
            *type = types[i].type;
            return true;
        }
    return false;
}

struct gw_tiny_spec gw_tiny_default(enum gw_type type)
{
    bool wide = gw_type_info(type)->block_elements > 32;
    return (struct gw_tiny_spec){
        .arch = "llama",
        .type = type,
        .embed_type = GW_TYPE_Q8_0,
        .down_type = type,
        .layers = 6,
        .d_model = wide ? 256 : 192,
        .ffn = 768,
        .heads = wide ? 8 : 6,
        .kv_heads = wide ? 4 : 3,
        .head_dim = 32,
        .vocab = 600,
        .context = 1024,
        .tied = true,
        .seed = 1,
        .rope_scaling = GW_ROPE_SCALING_NONE,
        .rope_factor = 4,
    };
}

/* ---- metadata -------------------------------------------------------------------------------------------------- */

static void put_str(struct gw_buf *out, const char *text, size_t bytes)
{
    gw_buf_add_u64(out, bytes);
    gw_buf_add(out, text, bytes);
}

/* "~x" stands for "<arch>.x". */
static void put_key(struct writer *w, const char *key, enum gw_gguf_kind kind)
{
    char *full = key[0] == '~' ? gw_asprintf("%s.%s", w->spec->arch, key + 1) : gw_strdup(key);
    put_str(&w->keys, full, strlen(full));
    gw_buf_add_u32(&w->keys, kind);
    w->key_count++;
    free(full);
}

static void key_u32(struct writer *w, const char *key, int value)
{
    put_key(w, key, GW_GGUF_U32);
    gw_buf_add_u32(&w->keys, (uint32_t)value);
}

static void key_f32(struct writer *w, const char *key, double value)
{
    float f = (float)value;
    put_key(w, key, GW_GGUF_F32);
    gw_buf_add(&w->keys, &f, sizeof f);
}

static void key_bool(struct writer *w, const char *key, bool value)
{
    uint8_t byte = value;
    put_key(w, key, GW_GGUF_BOOL);
    gw_buf_add(&w->keys, &byte, 1);
}

static void key_str(struct writer *w, const char *key, const char *value)
{
    put_key(w, key, GW_GGUF_STRING);
    put_str(&w->keys, value, strlen(value));
}

static void key_array(struct writer *w, const char *key, enum gw_gguf_kind element, int count)
{
    put_key(w, key, GW_GGUF_ARRAY);
    gw_buf_add_u32(&w->keys, element);
    gw_buf_add_u64(&w->keys, (uint64_t)count);
}

static void put_sizes(struct writer *w)
{
    const struct gw_tiny_spec *s = w->spec;
    key_str(w, "general.architecture", s->arch);
    key_str(w, "general.name", "Tiny test model");
    for (int i = 0; i < TYPE_COUNT; i++)
        if (types[i].type == s->type) key_u32(w, "general.file_type", (int)types[i].file_type);
    key_u32(w, "general.quantization_version", 2);
    key_u32(w, "~block_count", s->layers);
    key_u32(w, "~context_length", s->context);
    key_u32(w, "~embedding_length", s->d_model);
    key_u32(w, "~feed_forward_length", s->ffn);
    key_u32(w, "~attention.head_count", s->heads);
    key_u32(w, "~attention.head_count_kv", s->kv_heads);
    key_f32(w, "~attention.layer_norm_rms_epsilon", 1e-5);
    key_f32(w, "~rope.freq_base", 10000);
    key_u32(w, "~rope.dimension_count", s->head_dim);
    if (s->head_dim * s->heads != s->d_model) {
        key_u32(w, "~attention.key_length", s->head_dim);
        key_u32(w, "~attention.value_length", s->head_dim);
    }
    if (s->rope_scaling == GW_ROPE_SCALING_LINEAR || s->rope_scaling == GW_ROPE_SCALING_YARN) {
        key_str(w, "~rope.scaling.type", s->rope_scaling == GW_ROPE_SCALING_YARN ? "yarn" : "linear");
        key_f32(w, "~rope.scaling.factor", s->rope_factor);
        key_u32(w, "~rope.scaling.original_context_length", (int)(s->context / s->rope_factor));
    }
}

static void put_tokenizer(struct writer *w)
{
    static const char *const specials[GW_TINY_SPECIALS] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    const struct gw_tiny_spec *s = w->spec;
    bool qwen = strcmp(s->arch, "qwen2") == 0;
    struct gw_tiny_bpe bpe;
    struct gw_buf text = {0};
    gw_tiny_bpe_learn(s->vocab - GW_TINY_MIN_VOCAB, &bpe);
    int used = GW_TINY_MIN_VOCAB + bpe.merge_count;
    key_str(w, "tokenizer.ggml.model", "gpt2");
    key_str(w, "tokenizer.ggml.pre", qwen ? "qwen2" : "smollm");
    key_array(w, "tokenizer.ggml.tokens", GW_GGUF_STRING, s->vocab);
    for (int id = 0; id < s->vocab; id++) {
        char unused[32];
        gw_buf_clear(&text);
        if (id < GW_TINY_SPECIALS) {
            gw_buf_add_text(&text, specials[id]);
        } else if (id < used) {
            gw_tiny_bpe_spell(&bpe, id, &text);
        } else {
            snprintf(unused, sizeof unused, "[PAD%d]", id);
            gw_buf_add_text(&text, unused);
        }
        put_str(&w->keys, (const char *)text.data, text.bytes);
    }
    key_array(w, "tokenizer.ggml.token_type", GW_GGUF_I32, s->vocab);
    for (int id = 0; id < s->vocab; id++) gw_buf_add_u32(&w->keys, id < GW_TINY_SPECIALS ? 3 : id < used ? 1 : 5);
    key_array(w, "tokenizer.ggml.merges", GW_GGUF_STRING, bpe.merge_count);
    for (int i = 0; i < bpe.merge_count; i++) {
        gw_buf_clear(&text);
        gw_tiny_bpe_spell(&bpe, bpe.merges[i][0], &text);
        gw_buf_add_text(&text, " ");
        gw_tiny_bpe_spell(&bpe, bpe.merges[i][1], &text);
        put_str(&w->keys, (const char *)text.data, text.bytes);
    }
    key_u32(w, "tokenizer.ggml.bos_token_id", qwen ? 0 : 1);
    key_u32(w, "tokenizer.ggml.eos_token_id", 2);
    key_u32(w, "tokenizer.ggml.padding_token_id", 0);
    key_bool(w, "tokenizer.ggml.add_bos_token", false);
    key_str(w, "tokenizer.chat_template",
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
            "'<|im_end|>' + '\\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}");
    gw_buf_free(&text);
    gw_tiny_bpe_free(&bpe);
}

/* ---- weights --------------------------------------------------------------------------------------------------- */

/* About normal, mean 0, deviation 1: the sum of four uniforms of 32 bits, which needs no libm. */
static float draw(const struct writer *w, uint64_t stream, uint64_t index)
{
    uint32_t key[2] = {(uint32_t)w->spec->seed, (uint32_t)(w->spec->seed >> 32)};
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)},
             out[4];
    gw_philox4x32(key, counter, out);
    double sum = ((double)out[0] + out[1] + out[2] + out[3]) / 4294967296.0;
    return (float)((sum - 2) * 1.7320508075688772);
}

/* Values mean + deviation * (noise), the deviation varying by block of 32 and each block with an offset of its own, so that the scales
 * and minima of quantized types vary as they do in trained models. */
static gw_err put_tensor(struct writer *w, const char *name, enum gw_type type, int k, int n, float mean,
                         float deviation)
{
    const struct gw_type_info *info = gw_type_info(type);
    if (k < 1 || n < 1 || k % info->block_elements)
        return gw_fail(GW_ERR_USAGE, "tiny model: %s cannot be %d x %d in %s (blocks of %d)", name, k, n, info->name,
                       info->block_elements);
    static const uint8_t zeros[ALIGNMENT];
    uint64_t stream = gw_hash64(name, strlen(name), 0);
    put_str(&w->table, name, strlen(name));
    gw_buf_add_u32(&w->table, n > 1 ? 2 : 1);
    gw_buf_add_u64(&w->table, (uint64_t)k);
    if (n > 1) gw_buf_add_u64(&w->table, (uint64_t)n);
    gw_buf_add_u32(&w->table, type);
    gw_buf_add_u64(&w->table, w->data.bytes);
    w->tensor_count++;
    float *row = gw_alloc((size_t)k, sizeof *row);
    for (int r = 0; r < n; r++) {
        uint64_t at = (uint64_t)r * (uint64_t)k;
        float spread = 1, offset = 0;
        for (int i = 0; i < k; i++) {
            if (i % 32 == 0) {
                float shape = draw(w, stream ^ 1, at + (uint64_t)i);
                spread = 1 + 0.25f * shape;
                offset = 0.2f * draw(w, stream ^ 2, at + (uint64_t)i);
            }
            row[i] = mean + deviation * (spread * draw(w, stream, at + (uint64_t)i) + offset);
        }
        gw_tiny_quantize(type, row, (size_t)k, &w->data);
    }
    free(row);
    gw_buf_add(&w->data, zeros, (ALIGNMENT - w->data.bytes % ALIGNMENT) % ALIGNMENT);
    return GW_OK;
}

/* 1/sqrt(k) without libm's last-bit freedom: sqrtf is exact everywhere. */
static float unit(int k)
{
    return 1 / __builtin_sqrtf((float)k);
}

static gw_err put_layer(struct writer *w, int layer)
{
    gw_err rc = GW_OK;
    const struct gw_tiny_spec *s = w->spec;
    int d = s->d_model, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    /* Queries and keys of deviation 1.5 give scores of about 2: attention that picks some keys. Each block then adds about 0.6
     * to the residual stream, so that the layers, not the embedding of the last token, decide the logits. */
    const struct {
        const char *name;
        enum gw_type type;
        int k, n;
        float mean, deviation;
        bool bias;
    } list[] = {
        {"attn_norm.weight", GW_TYPE_F32, d, 1, 1, 0.1f, false},
        {"attn_q.weight", s->type, d, q, 0, 1.5f * unit(d), false},
        {"attn_k.weight", s->type, d, kv, 0, 1.5f * unit(d), false},
        {"attn_v.weight", s->down_type, d, kv, 0, unit(d), false},
        {"attn_q.bias", GW_TYPE_F32, q, 1, 0, 0.5f, true},
        {"attn_k.bias", GW_TYPE_F32, kv, 1, 0, 0.5f, true},
        {"attn_v.bias", GW_TYPE_F32, kv, 1, 0, 0.2f, true},
        {"attn_output.weight", s->type, q, d, 0, unit(q), false},
        {"ffn_norm.weight", GW_TYPE_F32, d, 1, 1, 0.1f, false},
        {"ffn_gate.weight", s->type, d, s->ffn, 0, unit(d), false},
        {"ffn_up.weight", s->type, d, s->ffn, 0, unit(d), false},
        {"ffn_down.weight", s->down_type, s->ffn, d, 0, 1.2f * unit(s->ffn), false},
    };
    bool biases = strcmp(s->arch, "qwen2") == 0;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char name[64];
        if (list[i].bias && !biases) continue;
        snprintf(name, sizeof name, "blk.%d.%s", layer, list[i].name);
        TRY(put_tensor(w, name, list[i].type, list[i].k, list[i].n, list[i].mean, list[i].deviation));
    }
out:
    return rc;
}

/* Llama 3's shape: high frequencies stay, low ones are divided by the factor, in between a ramp. */
static void put_rope_freqs(struct writer *w)
{
    int pairs = w->spec->head_dim / 2;
    put_str(&w->table, "rope_freqs.weight", strlen("rope_freqs.weight"));
    gw_buf_add_u32(&w->table, 1);
    gw_buf_add_u64(&w->table, (uint64_t)pairs);
    gw_buf_add_u32(&w->table, GW_TYPE_F32);
    gw_buf_add_u64(&w->table, w->data.bytes);
    w->tensor_count++;
    for (int i = 0; i < pairs; i++) {
        double ramp = pairs > 1 ? 2.0 * i / (pairs - 1) - 0.5 : 0;
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float divisor = (float)(1 + ramp * (w->spec->rope_factor - 1));
        gw_buf_add(&w->data, &divisor, sizeof divisor);
    }
    while (w->data.bytes % ALIGNMENT) gw_buf_add(&w->data, "", 1);
}

static gw_err put_tensors(struct writer *w)
{
    gw_err rc = GW_OK;
    const struct gw_tiny_spec *s = w->spec;
    TRY(put_tensor(w, "token_embd.weight", s->embed_type, s->d_model, s->vocab, 0, 2 * unit(s->d_model)));
    if (s->rope_scaling == GW_ROPE_SCALING_LLAMA3) put_rope_freqs(w);
    for (int layer = 0; layer < s->layers; layer++) TRY(put_layer(w, layer));
    TRY(put_tensor(w, "output_norm.weight", GW_TYPE_F32, s->d_model, 1, 1, 0.1f));
    if (!s->tied) TRY(put_tensor(w, "output.weight", s->embed_type, s->d_model, s->vocab, 0, 2 * unit(s->d_model)));
out:
    return rc;
}

/* ---- the file -------------------------------------------------------------------------------------------------- */

gw_err gw_tiny_build(const struct gw_tiny_spec *spec, struct gw_buf *file)
{
    gw_err rc = GW_OK;
    struct writer w = {.spec = spec};
    if (spec->vocab < GW_TINY_MIN_VOCAB)
        FAIL(GW_ERR_USAGE, "tiny model: a vocabulary of %d is too small (the least is %d)", spec->vocab,
             GW_TINY_MIN_VOCAB);
    put_sizes(&w);
    put_tokenizer(&w);
    if (!spec->vocab_only) TRY(put_tensors(&w));
    size_t begin = file->bytes;
    gw_buf_add(file, "GGUF", 4);
    gw_buf_add_u32(file, 3);
    gw_buf_add_u64(file, w.tensor_count);
    gw_buf_add_u64(file, w.key_count);
    gw_buf_add(file, w.keys.data, w.keys.bytes);
    gw_buf_add(file, w.table.data, w.table.bytes);
    while (!spec->vocab_only && (file->bytes - begin) % ALIGNMENT) gw_buf_add(file, "", 1);
    gw_buf_add(file, w.data.data, w.data.bytes);
out:
    gw_buf_free(&w.keys);
    gw_buf_free(&w.table);
    gw_buf_free(&w.data);
    return rc;
}

gw_err gw_tiny_write(const struct gw_tiny_spec *spec, const char *path)
{
    gw_err rc = GW_OK;
    struct gw_buf file = {0};
    TRY(gw_tiny_build(spec, &file));
    TRY(gw_file_replace(path, file.data, file.bytes, false));
out:
    gw_buf_free(&file);
    return rc;
}
