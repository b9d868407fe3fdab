/* Models: what is read from a file, every refusal, rope frequencies against the published formulas, the fingerprint; and the tiny
 * models of support/tiny_model.h that other tests stand on. */
#include "base/hash.h"
#include "model/arch.h"
#include "support/tiny_bpe.h"
#include "support/tiny_model.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const enum gw_type all_types[] = {
    GW_TYPE_F32,  GW_TYPE_F16,  GW_TYPE_BF16, GW_TYPE_Q8_0, GW_TYPE_Q4_0, GW_TYPE_Q4_1,
    GW_TYPE_Q5_0, GW_TYPE_Q5_1, GW_TYPE_Q4_K, GW_TYPE_Q5_K, GW_TYPE_Q6_K,
};
enum { TYPES = sizeof all_types / sizeof *all_types };

/* Small enough to build often: 2 layers, d 64, ffn 96, 4 heads of 16 over 2 KV heads. */
static struct gw_tiny_spec small(void)
{
    struct gw_tiny_spec spec = gw_tiny_default(GW_TYPE_Q4_0);
    spec.layers = 2;
    spec.d_model = 64;
    spec.ffn = 96;
    spec.heads = 4;
    spec.kv_heads = 2;
    spec.head_dim = 16;
    spec.vocab = GW_TINY_MIN_VOCAB + 5;
    return spec;
}

static struct gw_buf build(const struct gw_tiny_spec *spec)
{
    struct gw_buf file = {0};
    CU_ASSERT_EQUAL_FATAL(gw_tiny_build(spec, &file), GW_OK);
    return file;
}

static struct gw_model *parse(const struct gw_buf *file)
{
    struct gw_model *model = NULL;
    gw_err rc = gw_model_parse("tiny.gguf", file->data, file->bytes, &model);
    if (rc != GW_OK) printf("\n  %s\n", gw_error_detail());
    CU_ASSERT_EQUAL_FATAL(rc, GW_OK);
    return model;
}

/* ---- what is read ---------------------------------------------------------------------------------------------- */

static void test_info(void)
{
    struct gw_tiny_spec spec = gw_tiny_default(GW_TYPE_Q4_1);
    struct gw_buf file = build(&spec);
    struct gw_model *model = parse(&file);
    const struct gw_model_info *info = gw_model_info(model);
    CU_ASSERT_STRING_EQUAL(info->arch, "llama");
    CU_ASSERT_STRING_EQUAL(info->name, "Tiny test model");
    CU_ASSERT_STRING_EQUAL(info->file_type, "mostly Q4_1");
    CU_ASSERT(info->layers == 6 && info->d_model == 192 && info->ffn == 768 && info->vocab == 600 &&
              info->context == 1024);
    CU_ASSERT(info->heads == 6 && info->kv_heads == 3 && info->head_dim == 32);
    CU_ASSERT_EQUAL(info->norm_eps, 1e-5f);
    CU_ASSERT(info->rope.style == GW_ROPE_NORM && info->rope.base == 10000 && info->rope.dims == 32);
    CU_ASSERT(info->rope.scaling == GW_ROPE_SCALING_NONE && info->rope.factor == 1);
    CU_ASSERT(info->tied && !info->qkv_bias);
    uint64_t layer = 2 * 192 * 192 + 2 * 192 * 96 + 3 * 192 * 768 + 2 * 192;
    CU_ASSERT_EQUAL(info->parameters, 600 * 192 + 6 * layer + 192);
    CU_ASSERT_PTR_NOT_NULL(gw_gguf_tensor_find(gw_model_gguf(model), "blk.5.ffn_up.weight"));
    gw_model_close(model);
    gw_model_close(NULL);
    gw_buf_free(&file);
}

static void check_role(const struct gw_model *model, enum gw_tensor_role role, int layer, const char *name, uint64_t k,
                       uint64_t n)
{
    const struct gw_gguf_tensor *t = gw_model_tensor(model, role, layer);
    CU_ASSERT_PTR_NOT_NULL_FATAL(t);
    if (t->name.bytes != strlen(name) || memcmp(t->name.data, name, t->name.bytes) || t->shape[0] != k ||
        t->shape[1] != n)
        CU_FAIL("a role resolves to another tensor");
}

static void check_roles(const struct gw_model *model, bool tied, bool bias)
{
    check_role(model, GW_TENSOR_EMBED, 0, "token_embd.weight", 64, 264);
    check_role(model, GW_TENSOR_OUTPUT, 0, tied ? "token_embd.weight" : "output.weight", 64, 264);
    check_role(model, GW_TENSOR_OUTPUT_NORM, 99, "output_norm.weight", 64, 1);
    check_role(model, GW_TENSOR_ATTN_NORM, 0, "blk.0.attn_norm.weight", 64, 1);
    check_role(model, GW_TENSOR_Q, 1, "blk.1.attn_q.weight", 64, 128);
    check_role(model, GW_TENSOR_K, 1, "blk.1.attn_k.weight", 64, 64);
    check_role(model, GW_TENSOR_V, 0, "blk.0.attn_v.weight", 64, 64);
    check_role(model, GW_TENSOR_ATTN_OUT, 1, "blk.1.attn_output.weight", 128, 64);
    check_role(model, GW_TENSOR_FFN_NORM, 1, "blk.1.ffn_norm.weight", 64, 1);
    check_role(model, GW_TENSOR_GATE, 0, "blk.0.ffn_gate.weight", 64, 96);
    check_role(model, GW_TENSOR_UP, 1, "blk.1.ffn_up.weight", 64, 96);
    check_role(model, GW_TENSOR_DOWN, 1, "blk.1.ffn_down.weight", 96, 64);
    CU_ASSERT_PTR_NULL(gw_model_tensor(model, GW_TENSOR_ROPE_FREQS, 0));
    if (bias) {
        check_role(model, GW_TENSOR_Q_BIAS, 1, "blk.1.attn_q.bias", 128, 1);
        check_role(model, GW_TENSOR_K_BIAS, 0, "blk.0.attn_k.bias", 64, 1);
        check_role(model, GW_TENSOR_V_BIAS, 1, "blk.1.attn_v.bias", 64, 1);
    } else {
        CU_ASSERT_PTR_NULL(gw_model_tensor(model, GW_TENSOR_Q_BIAS, 0));
        CU_ASSERT_PTR_NULL(gw_model_tensor(model, GW_TENSOR_K_BIAS, 1));
    }
}

static void test_roles(void)
{
    for (int variant = 0; variant < 4; variant++) {
        struct gw_tiny_spec spec = small();
        bool qwen = variant & 1;
        spec.head_dim = 32; /* wider than d_model / heads, so that Q's and the output's shapes differ from d_model's */
        spec.tied = variant < 2;
        spec.arch = qwen ? "qwen2" : "llama";
        struct gw_buf file = build(&spec);
        struct gw_model *model = parse(&file);
        CU_ASSERT_EQUAL(gw_model_info(model)->head_dim, 32);
        CU_ASSERT_EQUAL(gw_model_info(model)->tied, spec.tied);
        CU_ASSERT_EQUAL(gw_model_info(model)->qkv_bias, qwen);
        CU_ASSERT_EQUAL(gw_model_info(model)->rope.style, qwen ? GW_ROPE_NEOX : GW_ROPE_NORM);
        check_roles(model, spec.tied, qwen);
        gw_model_close(model);
        gw_buf_free(&file);
    }
}

static void test_all_types(void)
{
    for (int i = 0; i < TYPES; i++) {
        struct gw_tiny_spec spec = gw_tiny_default(all_types[i]);
        spec.layers = 1;
        spec.embed_type = all_types[i];
        struct gw_buf file = build(&spec);
        struct gw_model *model = parse(&file);
        CU_ASSERT_EQUAL(gw_model_tensor(model, GW_TENSOR_DOWN, 0)->type->type, all_types[i]);
        CU_ASSERT_EQUAL(gw_model_tensor(model, GW_TENSOR_OUTPUT, 0)->type->type, all_types[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(gw_model_info(model)->file_type, gw_type_info(all_types[i])->name));
        gw_model_close(model);
        gw_buf_free(&file);
    }
}

/* ---- refusals -------------------------------------------------------------------------------------------------- */

static void expect_refused(struct gw_buf *file, gw_err code, const char *text)
{
    struct gw_model *model = NULL;
    gw_err rc = gw_model_parse("tiny.gguf", file->data, file->bytes, &model);
    bool told = rc == code && strstr(gw_error_detail(), text) && strstr(gw_error_detail(), "tiny.gguf");
    if (!told) printf("\n  wanted %s '%s', got %s '%s'\n", gw_err_name(code), text, gw_err_name(rc), gw_error_detail());
    CU_ASSERT(told);
    CU_ASSERT_PTR_NULL(model);
    gw_model_close(model);
    gw_buf_free(file);
}

static void refuse_spec(struct gw_tiny_spec spec, gw_err code, const char *text)
{
    struct gw_buf file = build(&spec);
    expect_refused(&file, code, text);
}

/* Where `text` is in the file, with its length before it, as keys and tensor names are. */
static uint8_t *find(const struct gw_buf *file, const char *text)
{
    struct gw_buf record = {0};
    gw_buf_add_u64(&record, strlen(text));
    gw_buf_add_text(&record, text);
    uint8_t *found = memmem(file->data, file->bytes, record.data, record.bytes);
    gw_buf_free(&record);
    CU_ASSERT_PTR_NOT_NULL_FATAL(found);
    return found + sizeof(uint64_t);
}

/* A small model with one key's 32-bit value replaced. */
static void refuse_value(const char *key, uint32_t value, gw_err code, const char *text)
{
    struct gw_tiny_spec spec = small();
    struct gw_buf file = build(&spec);
    memcpy(find(&file, key) + strlen(key) + sizeof(uint32_t), &value, sizeof value);
    expect_refused(&file, code, text);
}

/* A small model with one key's or tensor's name replaced by one of equal length. */
static void refuse_renamed(const char *from, const char *to, gw_err code, const char *text)
{
    struct gw_tiny_spec spec = small();
    struct gw_buf file = build(&spec);
    CU_ASSERT_EQUAL_FATAL(strlen(from), strlen(to));
    memcpy(find(&file, from), to, strlen(to));
    expect_refused(&file, code, text);
}

/* Puts one more key in front, and a filler so that the tensor data stays aligned. */
static struct gw_buf with_key(const struct gw_tiny_spec *spec, const char *key, uint32_t kind, const void *value,
                              size_t bytes)
{
    struct gw_buf file = build(spec), added = {0}, out = {0};
    uint64_t keys;
    gw_buf_add_u64(&added, strlen(key));
    gw_buf_add_text(&added, key);
    gw_buf_add_u32(&added, kind);
    gw_buf_add(&added, value, bytes);
    gw_buf_add_u64(&added, 1);
    gw_buf_add_text(&added, "x");
    gw_buf_add_u32(&added, GW_GGUF_STRING);
    size_t filler = 32 - (added.bytes + 8) % 32;
    gw_buf_add_u64(&added, filler);
    while (filler--) gw_buf_add_text(&added, "-");
    memcpy(&keys, file.data + 16, sizeof keys);
    keys += 2;
    memcpy(file.data + 16, &keys, sizeof keys);
    gw_buf_add(&out, file.data, 24);
    gw_buf_add(&out, added.data, added.bytes);
    gw_buf_add(&out, file.data + 24, file.bytes - 24);
    gw_buf_free(&file);
    gw_buf_free(&added);
    return out;
}

static void refuse_key(const char *key, uint32_t kind, const void *value, size_t bytes, gw_err code, const char *text)
{
    struct gw_tiny_spec spec = small();
    struct gw_buf file = with_key(&spec, key, kind, value, bytes);
    expect_refused(&file, code, text);
}

static void test_bad_shapes(void)
{
    struct gw_tiny_spec spec = small();
    spec.arch = "mamba";
    refuse_spec(spec, GW_ERR_UNSUPPORTED, "architecture 'mamba' is not supported; godwit runs: llama, qwen2");
    spec = small();
    spec.kv_heads = 3;
    refuse_spec(spec, GW_ERR_FORMAT, "4 attention heads cannot share 3 KV heads");
    spec = small();
    spec.type = spec.down_type = GW_TYPE_F32;
    spec.head_dim = 15;
    refuse_spec(spec, GW_ERR_UNSUPPORTED, "heads of 15 dimensions");
    spec = small();
    spec.head_dim = 288;
    refuse_spec(spec, GW_ERR_UNSUPPORTED, "288");
    spec = small();
    spec.type = spec.down_type = spec.embed_type = GW_TYPE_F16;
    spec.ffn = 80;
    refuse_spec(spec, GW_ERR_UNSUPPORTED, "must be multiples of 32");
    spec = small();
    spec.kv_heads = 4; /* groups of one head of 16 */
    refuse_spec(spec, GW_ERR_UNSUPPORTED, "must be multiples of 32");
    refuse_value("llama.embedding_length", 128, GW_ERR_FORMAT,
                 "token_embd.weight is 64 x 264, but the metadata asks for 128");
    refuse_value("llama.feed_forward_length", 64, GW_ERR_FORMAT, "blk.0.ffn_gate.weight is 64 x 96");
    refuse_value("llama.block_count", 3, GW_ERR_FORMAT, "tensor blk.2.attn_norm.weight is missing");
    refuse_value("llama.block_count", 1, GW_ERR_UNSUPPORTED, "blk.1.attn_norm.weight' is not part of");
    refuse_value("llama.block_count", 0, GW_ERR_UNSUPPORTED, "llama.block_count is 0");
    refuse_value("llama.attention.head_count", 0, GW_ERR_UNSUPPORTED, "head_count is 0");
    refuse_value("llama.context_length", 1u << 31, GW_ERR_UNSUPPORTED, "llama.context_length");
    refuse_value("llama.rope.dimension_count", 18, GW_ERR_FORMAT, "rope.dimension_count is 18");
    refuse_value("llama.rope.dimension_count", 15, GW_ERR_FORMAT, "rope.dimension_count is 15");
    refuse_value("llama.rope.freq_base", 0x7fc00000, GW_ERR_FORMAT, "llama.rope.freq_base"); /* NaN */
    refuse_value("llama.attention.layer_norm_rms_epsilon", 0xbf800000, GW_ERR_FORMAT, "epsilon is -1");
}

static void test_bad_tensors(void)
{
    refuse_renamed("blk.1.ffn_up.weight", "blk.1.ffn_xx.weight", GW_ERR_FORMAT,
                   "tensor blk.1.ffn_up.weight is missing");
    refuse_renamed("output_norm.weight", "output_nom2.weight", GW_ERR_FORMAT, "output_norm.weight is missing");
    refuse_renamed("token_embd.weight", "token_embx.weight", GW_ERR_FORMAT, "token_embd.weight is missing");
    refuse_renamed("general.architecture", "general.architectury", GW_ERR_FORMAT, "general.architecture is missing");
    refuse_renamed("llama.context_length", "llama.context_lengta", GW_ERR_FORMAT, "llama.context_length is missing");
    refuse_renamed("llama.attention.layer_norm_rms_epsilon", "llama.attention.layer_norm_rms_epsilox", GW_ERR_FORMAT,
                   "layer_norm_rms_epsilon is missing");
    /* attn_norm as F16: type comes after the dimension count and one dimension. */
    struct gw_tiny_spec spec = small();
    struct gw_buf file = build(&spec);
    uint32_t type = GW_TYPE_F16;
    memcpy(find(&file, "blk.0.attn_norm.weight") + strlen("blk.0.attn_norm.weight") + 12, &type, sizeof type);
    expect_refused(&file, GW_ERR_UNSUPPORTED, "blk.0.attn_norm.weight is F16");
    /* qwen2 without its biases. */
    spec.arch = "qwen2";
    file = build(&spec);
    memcpy(find(&file, "blk.1.attn_k.bias"), "blk.1.attn_x.bias", 17);
    expect_refused(&file, GW_ERR_FORMAT, "blk.1.attn_k.bias is missing");
    spec.arch = "llama";
    spec.vocab_only = true;
    file = build(&spec);
    expect_refused(&file, GW_ERR_FORMAT, "token_embd.weight is missing");
    /* More tokens than embedding rows: the rows are the second dimension. */
    spec = small();
    file = build(&spec);
    uint64_t rows = 200;
    memcpy(find(&file, "token_embd.weight") + strlen("token_embd.weight") + 12, &rows, sizeof rows);
    expect_refused(&file, GW_ERR_FORMAT, "the tokenizer has 264 tokens, the embedding only 200");
}

static void test_bad_variants(void)
{
    uint32_t eight = 8;
    uint16_t two = 2;
    double half = 0.5, four = 4;
    const char text[] = "\x8\0\0\0\0\0\0\0longrope";
    refuse_key("llama.expert_count", GW_GGUF_U32, &eight, 4, GW_ERR_UNSUPPORTED, "mixture of 8 experts");
    refuse_key("split.count", GW_GGUF_U16, &two, 2, GW_ERR_UNSUPPORTED, "one of 2 parts");
    refuse_key("llama.attention.causal", GW_GGUF_BOOL, "", 1, GW_ERR_UNSUPPORTED, "not causal");
    refuse_key("llama.attention.value_length", GW_GGUF_U32, &eight, 4, GW_ERR_UNSUPPORTED,
               "keys of 16 and values of 8");
    refuse_key("llama.rope.scaling.type", GW_GGUF_STRING, text, 16, GW_ERR_UNSUPPORTED, "rope scaling 'longrope'");
    refuse_key("llama.rope.scaling.type", GW_GGUF_U32, &eight, 4, GW_ERR_FORMAT, "rope.scaling.type is not a text");
    refuse_key("llama.rope.scaling.factor", GW_GGUF_F64, &half, 8, GW_ERR_UNSUPPORTED, "rope.scaling.factor is 0.5");
    refuse_key("llama.rope.scaling.attn_factor", GW_GGUF_F64, &four, 8, GW_ERR_UNSUPPORTED, "attn_factor without yarn");
    struct gw_tiny_spec spec = small();
    spec.rope_scaling = GW_ROPE_SCALING_YARN;
    struct gw_buf file = with_key(&spec, "llama.rope.scaling.yarn_ext_factor", GW_GGUF_F64, &half, 8);
    expect_refused(&file, GW_ERR_UNSUPPORTED, "variant of yarn");
    spec.rope_scaling = GW_ROPE_SCALING_LLAMA3;
    file = with_key(&spec, "llama.rope.scaling.factor", GW_GGUF_F64, &four, 8);
    expect_refused(&file, GW_ERR_UNSUPPORTED, "both rope_freqs.weight and another");
    spec.rope_factor = 0.25;
    refuse_spec(spec, GW_ERR_FORMAT, "rope_freqs.weight[");
    uint8_t per_layer[12 + 8] = {GW_GGUF_U32, 0, 0, 0, 2}; /* one value a layer */
    per_layer[12] = per_layer[16] = 16;
    refuse_key("llama.attention.key_length", GW_GGUF_ARRAY, per_layer, sizeof per_layer, GW_ERR_UNSUPPORTED,
               "key_length is not one whole number");
}

/* ---- rope ------------------------------------------------------------------------------------------------------ */

/* The published formulas in plain libm arithmetic. */
static double reference_freq(const struct gw_tiny_spec *spec, int pair)
{
    double dims = spec->head_dim, base = 10000, plain = pow(base, -2.0 * pair / dims);
    if (spec->rope_scaling == GW_ROPE_SCALING_LINEAR) return plain / spec->rope_factor;
    if (spec->rope_scaling == GW_ROPE_SCALING_LLAMA3) {
        double ramp = fmin(1, fmax(0, 2.0 * pair / (dims / 2 - 1) - 0.5));
        return plain / (double)(float)(1 + ramp * (spec->rope_factor - 1));
    }
    if (spec->rope_scaling == GW_ROPE_SCALING_YARN) {
        double original = spec->context / spec->rope_factor;
        double low = floor(dims * log(original / (32 * 2 * M_PI)) / (2 * log(base)));
        double high = ceil(dims * log(original / (1 * 2 * M_PI)) / (2 * log(base)));
        low = fmax(low, 0);
        high = fmin(high, dims - 1);
        double ramp = fmin(1, fmax(0, (pair - low) / (high - low)));
        return plain / spec->rope_factor * ramp + plain * (1 - ramp);
    }
    return plain;
}

static void test_rope(void)
{
    for (int scaling = GW_ROPE_SCALING_NONE; scaling <= GW_ROPE_SCALING_YARN; scaling++) {
        struct gw_tiny_spec spec = small();
        spec.head_dim = 64;
        spec.context = 4096;
        spec.rope_scaling = (enum gw_rope_scaling)scaling;
        struct gw_buf file = build(&spec);
        struct gw_model *model = parse(&file);
        const struct gw_rope *rope = &gw_model_info(model)->rope;
        double inv_freq[32], attn_factor, worst = 0;
        CU_ASSERT_EQUAL(rope->scaling, (enum gw_rope_scaling)scaling);
        gw_rope_inv_freq(model, inv_freq, &attn_factor);
        CU_ASSERT(scaling == GW_ROPE_SCALING_LINEAR ? inv_freq[0] == 0.25 : inv_freq[0] == 1);
        for (int pair = 0; pair < 32; pair++)
            worst = fmax(worst, fabs(inv_freq[pair] / reference_freq(&spec, pair) - 1));
        CU_ASSERT(worst < 1e-13);
        if (scaling == GW_ROPE_SCALING_YARN) {
            CU_ASSERT(fabs(attn_factor - (0.1 * log(4) + 1)) < 1e-14);
            CU_ASSERT(rope->original_context == 1024 && rope->beta_fast == 32 && rope->beta_slow == 1);
        } else {
            CU_ASSERT_EQUAL(attn_factor, 1);
        }
        gw_model_close(model);
        gw_buf_free(&file);
    }
}

static void test_yarn_keys(void)
{
    struct gw_tiny_spec spec = small();
    double two = 2, attn_factor, inv_freq[8];
    spec.rope_scaling = GW_ROPE_SCALING_YARN;
    struct gw_buf file = with_key(&spec, "llama.rope.scaling.attn_factor", GW_GGUF_F64, &two, 8);
    struct gw_model *model = parse(&file);
    gw_rope_inv_freq(model, inv_freq, &attn_factor);
    CU_ASSERT(fabs(attn_factor - 2 * (0.1 * log(4) + 1)) < 1e-14);
    gw_model_close(model);
    gw_buf_free(&file);
    spec.rope_scaling = GW_ROPE_SCALING_NONE; /* a factor without a type, as old files have it */
    file = with_key(&spec, "llama.rope.scale_linear", GW_GGUF_F64, &two, 8);
    model = parse(&file);
    CU_ASSERT(gw_model_info(model)->rope.scaling == GW_ROPE_SCALING_LINEAR && gw_model_info(model)->rope.factor == 2);
    gw_model_close(model);
    gw_buf_free(&file);
}

/* ---- fingerprint ----------------------------------------------------------------------------------------------- */

static void fingerprint(const struct gw_buf *file, char hex[65])
{
    struct gw_model *model = parse(file);
    gw_model_fingerprint(model, hex);
    CU_ASSERT_EQUAL(strlen(hex), 64);
    gw_model_close(model);
}

static void expect_other_fingerprint(struct gw_buf *file, size_t at, const char *hex)
{
    char changed[65], again[65];
    file->data[at] ^= 1;
    fingerprint(file, changed);
    file->data[at] ^= 1;
    fingerprint(file, again);
    CU_ASSERT_STRING_NOT_EQUAL(changed, hex);
    CU_ASSERT_STRING_EQUAL(again, hex);
}

static void test_fingerprint(void)
{
    char hex[65], longer[65];
    struct gw_tiny_spec spec = small();
    struct gw_buf file = build(&spec);
    fingerprint(&file, hex);
    expect_other_fingerprint(&file, (size_t)(find(&file, "Tiny test model") - file.data), hex);
    for (size_t i = 0; i < 10; i++) expect_other_fingerprint(&file, file.bytes - 1 - i * 1500, hex);
    gw_buf_add(&file, "", 1);
    fingerprint(&file, longer);
    CU_ASSERT_STRING_NOT_EQUAL(longer, hex);
    gw_buf_free(&file);
    /* Above 4 MiB of data only windows are read: the first and last bytes are in. */
    spec = gw_tiny_default(GW_TYPE_F32);
    spec.layers = 2;
    file = build(&spec);
    struct gw_model *model = parse(&file);
    size_t data = (size_t)gw_gguf_data_offset(gw_model_gguf(model));
    gw_model_close(model);
    CU_ASSERT_FATAL(file.bytes - data > 4 << 20);
    fingerprint(&file, hex);
    expect_other_fingerprint(&file, data, hex);
    expect_other_fingerprint(&file, data + 65535, hex);
    expect_other_fingerprint(&file, data + (size_t)((file.bytes - data - 65536) / 63.0 * 31) + 100, hex);
    expect_other_fingerprint(&file, file.bytes - 1, hex);
    expect_other_fingerprint(&file, file.bytes - 65536, hex);
    gw_buf_free(&file);
}

/* ---- the tiny models themselves -------------------------------------------------------------------------------- */

/* Relative root mean square error of quantizing and reading back. */
static double round_trip_error(enum gw_type type, const float *x, size_t count)
{
    struct gw_buf blocks = {0};
    const struct gw_type_info *info = gw_type_info(type);
    float *back = gw_alloc(count, sizeof *back);
    double error = 0, norm = 0;
    gw_tiny_quantize(type, x, count, &blocks);
    CU_ASSERT_EQUAL_FATAL(blocks.bytes, count / (size_t)info->block_elements * (size_t)info->block_bytes);
    info->to_f32(blocks.data, back, count);
    for (size_t i = 0; i < count; i++) {
        error += pow((double)back[i] - (double)x[i], 2);
        norm += pow((double)x[i], 2);
    }
    free(back);
    gw_buf_free(&blocks);
    return sqrt(error / norm);
}

static void test_quantizers(void)
{
    static const double bounds[TYPES] = {0, 3e-4, 2e-3, 6e-3, 0.1, 0.09, 0.05, 0.045, 0.09, 0.045, 0.022};
    float x[2048], zeros[256] = {0};
    for (int i = 0; i < 2048; i++) x[i] = (float)(sin(i * 0.7) * (1 + i / 256) + 0.3 * cos(i * i * 0.11));
    for (int i = 0; i < TYPES; i++) {
        double error = round_trip_error(all_types[i], x, 2048);
        if (error > bounds[i]) printf("\n  %s: error %g\n", gw_type_info(all_types[i])->name, error);
        CU_ASSERT(error <= bounds[i]);
        CU_ASSERT(i == 0 ? error == 0 : error > 0);
        CU_ASSERT(isnan(round_trip_error(all_types[i], zeros, 256))); /* 0 / 0: zeros come back as zeros */
    }
}

static void test_same_everywhere(void)
{
    struct gw_tiny_spec spec = gw_tiny_default(GW_TYPE_Q4_1);
    char hex[65], other[65];
    for (int i = 0; i < 3; i++) {
        spec.seed = i < 2 ? 1 : 2;
        struct gw_buf file = build(&spec);
        struct gw_sha256 *sha = gw_sha256_create();
        gw_sha256_add(sha, file.data, file.bytes);
        gw_sha256_finish(sha, i ? other : hex);
        CU_ASSERT(i == 0 || (strcmp(hex, other) == 0) == (i == 1));
        gw_buf_free(&file);
    }
    CU_ASSERT_STRING_EQUAL(hex, "40e953ab77296805ba4852e656f3d0df49aaeacaf230156fe5fc05d79cb62408");
}

/* Merges use earlier ids only, spell distinct tokens, and are used up to the last. */
static void test_merges(void)
{
    struct gw_tiny_bpe bpe;
    gw_tiny_bpe_learn(300, &bpe);
    CU_ASSERT_EQUAL(bpe.merge_count, 300);
    for (int i = 0; i < bpe.merge_count; i++) {
        int id = GW_TINY_SPECIALS + 256 + i;
        CU_ASSERT(bpe.merges[i][0] >= GW_TINY_SPECIALS && bpe.merges[i][0] < id);
        CU_ASSERT(bpe.merges[i][1] >= GW_TINY_SPECIALS && bpe.merges[i][1] < id);
    }
    struct gw_buf text = {0};
    gw_tiny_bpe_spell(&bpe, GW_TINY_SPECIALS + ' ', &text);
    gw_tiny_bpe_spell(&bpe, GW_TINY_SPECIALS + '\n', &text);
    gw_tiny_bpe_spell(&bpe, GW_TINY_SPECIALS + 'A', &text);
    gw_tiny_bpe_spell(&bpe, GW_TINY_SPECIALS + 0xff, &text);
    gw_tiny_bpe_spell(&bpe, GW_TINY_SPECIALS + 0xad, &text);
    gw_buf_add(&text, "", 1);
    CU_ASSERT_STRING_EQUAL((char *)text.data, "\u0120\u010aA\u00ff\u0143"); /* as GPT-2 spells them */
    gw_buf_free(&text);
    gw_tiny_bpe_free(&bpe);
}

static void test_specs(void)
{
    struct gw_buf file = {0};
    struct gw_tiny_spec spec = small();
    enum gw_type type;
    spec.vocab = GW_TINY_MIN_VOCAB - 1;
    CU_ASSERT_EQUAL(gw_tiny_build(&spec, &file), GW_ERR_USAGE);
    spec = small();
    spec.type = GW_TYPE_Q4_K;
    CU_ASSERT_EQUAL(gw_tiny_build(&spec, &file), GW_ERR_USAGE);
    CU_ASSERT_EQUAL(file.bytes, 0);
    CU_ASSERT(gw_tiny_type("q6_k", &type) && type == GW_TYPE_Q6_K);
    CU_ASSERT_FALSE(gw_tiny_type("q7", &type));
    gw_buf_free(&file);
}

int main(void)
{
    static CU_TestInfo tests[] = {
        {"what a model is", test_info},
        {"tensor roles", test_roles},
        {"every weight type", test_all_types},
        {"bad shapes are refused", test_bad_shapes},
        {"missing and odd tensors are refused", test_bad_tensors},
        {"unknown variants are refused", test_bad_variants},
        {"rope frequencies", test_rope},
        {"rope keys", test_yarn_keys},
        {"fingerprint", test_fingerprint},
        {"tiny: quantizers", test_quantizers},
        {"tiny: same bytes everywhere", test_same_everywhere},
        {"tiny: merges", test_merges},
        {"tiny: bad specs", test_specs},
        CU_TEST_INFO_NULL,
    };
    static CU_SuiteInfo suites[] = {{"arch", NULL, NULL, NULL, NULL, tests}, CU_SUITE_INFO_NULL};
    if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS) return 1;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
