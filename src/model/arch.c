/* The table of architectures, and what a model file is checked for. See arch.h.
 *
 * Metadata keys are GGUF's "<architecture>.<what>"; tensor names follow llama.cpp's converters, with %d for the layer. An
 * architecture that computes what llama does, with other names, rope style or biases, is one more entry of `archs`.
 */
#include "model/arch.h"

#include "base/hash.h"
#include "base/mem.h"
#include "kernels/elementary.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_LAYERS = 1024,
    MAX_HEAD_DIM = 256,
    MAX_SIZE = 1 << 24,    /* of any dimension: keeps products of two in 64 bits and row sizes in int */
    MAX_CONTEXT = 1 << 22, /* gw_sincos_f64's range at one radian per token */
    FINGERPRINT_WINDOWS = 64,
    FINGERPRINT_WINDOW_BYTES = 64 << 10,
};

enum presence { ABSENT, OPTIONAL, NEEDED };

struct arch {
    const char *name; /* general.architecture, and the prefix of its metadata keys */
    enum gw_rope_style rope_style;
    enum presence qkv_bias;
    const char *tensors[GW_TENSOR_ROLE_COUNT];
};

#define LLAMA_TENSORS                                                                                                  \
    [GW_TENSOR_EMBED] = "token_embd.weight", [GW_TENSOR_OUTPUT] = "output.weight",                                     \
    [GW_TENSOR_OUTPUT_NORM] = "output_norm.weight", [GW_TENSOR_ROPE_FREQS] = "rope_freqs.weight",                      \
    [GW_TENSOR_ATTN_NORM] = "blk.%d.attn_norm.weight", [GW_TENSOR_Q] = "blk.%d.attn_q.weight",                         \
    [GW_TENSOR_K] = "blk.%d.attn_k.weight", [GW_TENSOR_V] = "blk.%d.attn_v.weight",                                    \
    [GW_TENSOR_Q_BIAS] = "blk.%d.attn_q.bias", [GW_TENSOR_K_BIAS] = "blk.%d.attn_k.bias",                              \
    [GW_TENSOR_V_BIAS] = "blk.%d.attn_v.bias", [GW_TENSOR_ATTN_OUT] = "blk.%d.attn_output.weight",                     \
    [GW_TENSOR_FFN_NORM] = "blk.%d.ffn_norm.weight", [GW_TENSOR_GATE] = "blk.%d.ffn_gate.weight",                      \
    [GW_TENSOR_UP] = "blk.%d.ffn_up.weight", [GW_TENSOR_DOWN] = "blk.%d.ffn_down.weight"

/* llama.cpp's converter permutes llama's Q and K rows, so that its rotation pairs neighbours; qwen2's stay as published. */
static const struct arch archs[] = {
    {"llama", GW_ROPE_NORM, OPTIONAL, {LLAMA_TENSORS}},
    {"qwen2", GW_ROPE_NEOX, NEEDED, {LLAMA_TENSORS}},
};

struct gw_model {
    struct gw_gguf *gguf;
    const struct arch *arch;
    struct gw_model_info info;
    const struct gw_gguf_tensor *own[GW_TENSOR_ATTN_NORM];        /* [role] of the model */
    const struct gw_gguf_tensor *(*layers)[GW_TENSOR_ROLE_COUNT]; /* [layer][role] */
    bool *claimed;                                                /* [tensor of the file] while opening */
};

/* ---- metadata -------------------------------------------------------------------------------------------------- */

#define PATH(m) gw_gguf_path((m)->gguf)

struct key_name {
    char text[96];
};

static struct key_name arch_key(const struct gw_model *m, const char *what)
{
    struct key_name key;
    snprintf(key.text, sizeof key.text, "%s.%s", m->arch->name, what);
    return key;
}

/* True when the key is there at all, of whatever kind. */
static bool has_key(const struct gw_model *m, const char *key)
{
    struct gw_str text;
    enum gw_gguf_kind kind;
    uint64_t count;
    double number;
    return gw_gguf_get_f64(m->gguf, key, &number) || gw_gguf_get_str(m->gguf, key, &text) ||
           gw_gguf_get_array(m->gguf, key, &kind, &count);
}

/* A whole number in [least, most]; `fallback` when the key is absent (below 0: the key is needed). */
static gw_err read_int(const struct gw_model *m, const char *what, int least, int most, int fallback, int *value)
{
    struct key_name key = arch_key(m, what);
    uint64_t number = 0;
    *value = fallback;
    if (!has_key(m, key.text)) {
        if (fallback >= 0) return GW_OK;
        return gw_fail(GW_ERR_FORMAT,
                       "%s: metadata key %s is missing; convert the model again with a current llama.cpp", PATH(m),
                       key.text);
    }
    if (!gw_gguf_get_u64(m->gguf, key.text, &number))
        return gw_fail(GW_ERR_UNSUPPORTED,
                       "%s: metadata key %s is not one whole number; godwit needs the same value in all layers",
                       PATH(m), key.text);
    if (number < (uint64_t)least || number > (uint64_t)most)
        return gw_fail(GW_ERR_UNSUPPORTED, "%s: %s is %" PRIu64 "; godwit takes %d to %d", PATH(m), key.text, number,
                       least, most);
    *value = (int)number;
    return GW_OK;
}

/* A number in [least, most]; `fallback` when absent. */
static gw_err read_real(const struct gw_model *m, const char *what, double least, double most, double fallback,
                        double *value)
{
    struct key_name key = arch_key(m, what);
    *value = fallback;
    if (!has_key(m, key.text)) return GW_OK;
    if (!gw_gguf_get_f64(m->gguf, key.text, value))
        return gw_fail(GW_ERR_FORMAT, "%s: metadata key %s is not a number: corrupt, fetch it again", PATH(m),
                       key.text);
    if (!(*value >= least && *value <= most))
        return gw_fail(GW_ERR_FORMAT, "%s: %s is %g; values from %g to %g make sense", PATH(m), key.text, *value, least,
                       most);
    return GW_OK;
}

static gw_err find_arch(struct gw_model *m)
{
    struct gw_str name;
    char shown[GW_SHOW_BYTES], known[128] = "";
    if (!gw_gguf_get_str(m->gguf, "general.architecture", &name))
        return gw_fail(GW_ERR_FORMAT, "%s: metadata key general.architecture is missing: not a language model in GGUF",
                       PATH(m));
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        if (name.bytes == strlen(archs[i].name) && memcmp(name.data, archs[i].name, name.bytes) == 0) {
            m->arch = &archs[i];
            m->info.arch = archs[i].name;
            return GW_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", archs[i].name);
    }
    return gw_fail(GW_ERR_UNSUPPORTED, "%s: architecture '%s' is not supported; godwit runs: %s", PATH(m),
                   gw_str_show(name, shown), known);
}

/* What would change the results but that godwit does not compute. */
static gw_err refuse_variants(const struct gw_model *m)
{
    uint64_t number;
    if (gw_gguf_get_u64(m->gguf, "split.count", &number) && number > 1)
        return gw_fail(GW_ERR_UNSUPPORTED,
                       "%s is one of %" PRIu64 " parts of a model; join them first (llama-gguf-split --merge)", PATH(m),
                       number);
    if (gw_gguf_get_u64(m->gguf, arch_key(m, "expert_count").text, &number) && number > 0)
        return gw_fail(GW_ERR_UNSUPPORTED, "%s: a mixture of %" PRIu64 " experts; godwit runs dense models only",
                       PATH(m), number);
    bool causal;
    if (gw_gguf_get_bool(m->gguf, arch_key(m, "attention.causal").text, &causal) && !causal)
        return gw_fail(GW_ERR_UNSUPPORTED,
                       "%s: attention is not causal (an encoder); godwit runs generating models only", PATH(m));
    return GW_OK;
}

static gw_err read_sizes(struct gw_model *m)
{
    gw_err rc = GW_OK;
    struct gw_model_info *info = &m->info;
    int value_dim;
    double eps;
    TRY(read_int(m, "block_count", 1, MAX_LAYERS, -1, &info->layers));
    TRY(read_int(m, "embedding_length", 1, MAX_SIZE, -1, &info->d_model));
    TRY(read_int(m, "feed_forward_length", 1, MAX_SIZE, -1, &info->ffn));
    TRY(read_int(m, "attention.head_count", 1, 65536, -1, &info->heads));
    TRY(read_int(m, "attention.head_count_kv", 1, 65536, info->heads, &info->kv_heads));
    TRY(read_int(m, "context_length", 1, MAX_CONTEXT, -1, &info->context));
    TRY(read_int(m, "attention.key_length", 1, MAX_SIZE, info->d_model / info->heads, &info->head_dim));
    TRY(read_int(m, "attention.value_length", 1, MAX_SIZE, info->head_dim, &value_dim));
    TRY(read_real(m, "attention.layer_norm_rms_epsilon", 0, 1, -1, &eps));
    info->norm_eps = (float)eps;
    if (eps < 0)
        FAIL(GW_ERR_FORMAT, "%s: metadata key %s.attention.layer_norm_rms_epsilon is missing; convert the model again",
             PATH(m), m->arch->name);
    if (info->heads % info->kv_heads)
        FAIL(GW_ERR_FORMAT, "%s: %d attention heads cannot share %d KV heads evenly: corrupt, fetch it again", PATH(m),
             info->heads, info->kv_heads);
    if (!has_key(m, arch_key(m, "attention.key_length").text) && info->d_model % info->heads)
        FAIL(GW_ERR_FORMAT,
             "%s: embedding_length %d is not a multiple of %d heads, and there is no attention.key_length", PATH(m),
             info->d_model, info->heads);
    if (value_dim != info->head_dim)
        FAIL(GW_ERR_UNSUPPORTED, "%s: keys of %d and values of %d dimensions; godwit needs them equal", PATH(m),
             info->head_dim, value_dim);
    if (info->head_dim % 2 || info->head_dim > MAX_HEAD_DIM)
        FAIL(GW_ERR_UNSUPPORTED, "%s: heads of %d dimensions; godwit takes even sizes up to %d", PATH(m),
             info->head_dim, MAX_HEAD_DIM);
    int64_t group_dim = (int64_t)(info->heads / info->kv_heads) * info->head_dim;
    if (group_dim * info->kv_heads > MAX_SIZE)
        FAIL(GW_ERR_UNSUPPORTED, "%s: %d heads of %d dimensions are too many", PATH(m), info->heads, info->head_dim);
    /* Activations are quantized, and sums over shards are cut, in blocks of 32. */
    if (info->d_model % GW_BLOCK || info->ffn % GW_BLOCK || group_dim % GW_BLOCK)
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: d_model %d, ffn %d and %" PRId64 " (heads / kv heads * head size) must be multiples of %d", PATH(m),
             info->d_model, info->ffn, group_dim, GW_BLOCK);
out:
    return rc;
}

static bool str_is(struct gw_str text, const char *wanted)
{
    return text.bytes == strlen(wanted) && memcmp(text.data, wanted, text.bytes) == 0;
}

static gw_err read_rope(struct gw_model *m)
{
    gw_err rc = GW_OK;
    struct gw_rope *rope = &m->info.rope;
    struct gw_str type = {"none", 4};
    char shown[GW_SHOW_BYTES];
    double other;
    rope->style = m->arch->rope_style;
    TRY(read_int(m, "rope.dimension_count", 2, MAX_HEAD_DIM, m->info.head_dim, &rope->dims));
    if (rope->dims % 2 || rope->dims > m->info.head_dim)
        FAIL(GW_ERR_FORMAT, "%s: %s.rope.dimension_count is %d; it must be even and no more than the head size %d",
             PATH(m), m->arch->name, rope->dims, m->info.head_dim);
    TRY(read_real(m, "rope.freq_base", 1.5, 1e15, 10000.0, &rope->base));
    /* A file without a type but with a factor means linear scaling; rope.scale_linear is its older spelling. */
    struct key_name key = arch_key(m, "rope.scaling.type");
    bool typed = gw_gguf_get_str(m->gguf, key.text, &type);
    if (!typed && has_key(m, key.text))
        FAIL(GW_ERR_FORMAT, "%s: %s is not a text: corrupt, fetch it again", PATH(m), key.text);
    TRY(read_real(m, "rope.scale_linear", 0, 1e6, 0, &other));
    TRY(read_real(m, "rope.scaling.factor", 0, 1e6, other, &rope->factor));
    if (rope->factor == 0) rope->factor = 1; /* as llama.cpp reads it */
    TRY(read_real(m, "rope.scaling.attn_factor", 0.01, 100, 1, &rope->attn_factor));
    if (!typed && rope->factor != 1) type = (struct gw_str){"linear", 6};
    if (rope->factor < 1)
        FAIL(GW_ERR_UNSUPPORTED, "%s: %s.rope.scaling.factor is %g; godwit takes 1 or more", PATH(m), m->arch->name,
             rope->factor);
    if (str_is(type, "none")) {
        rope->scaling = GW_ROPE_SCALING_NONE;
        rope->factor = 1;
    } else if (str_is(type, "linear")) {
        rope->scaling = rope->factor == 1 ? GW_ROPE_SCALING_NONE : GW_ROPE_SCALING_LINEAR;
    } else if (str_is(type, "yarn")) {
        rope->scaling = GW_ROPE_SCALING_YARN;
        TRY(read_int(m, "rope.scaling.original_context_length", 1, MAX_CONTEXT, m->info.context,
                     &rope->original_context));
        TRY(read_real(m, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32, &rope->beta_fast));
        TRY(read_real(m, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1, &rope->beta_slow));
        TRY(read_real(m, "rope.scaling.yarn_attn_factor", 0.01, 100, rope->attn_factor, &rope->attn_factor));
        TRY(read_real(m, "rope.scaling.yarn_ext_factor", -1e6, 1e6, 1, &other));
        double log_multiplier;
        TRY(read_real(m, "rope.scaling.yarn_log_multiplier", -1e6, 1e6, 0, &log_multiplier));
        if ((other != 1 && other >= 0) || log_multiplier != 0)
            FAIL(GW_ERR_UNSUPPORTED,
                 "%s: this variant of yarn rope scaling (ext factor %g, log multiplier %g) is not supported", PATH(m),
                 other, log_multiplier);
    } else {
        FAIL(GW_ERR_UNSUPPORTED,
             "%s: rope scaling '%s' is not supported; godwit knows none, linear, yarn and rope_freqs (Llama 3)",
             PATH(m), gw_str_show(type, shown));
    }
    if (rope->scaling != GW_ROPE_SCALING_YARN && rope->attn_factor != 1)
        FAIL(GW_ERR_UNSUPPORTED, "%s: %s.rope.scaling.attn_factor without yarn scaling is not supported", PATH(m),
             m->arch->name);
out:
    return rc;
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

static bool is_vector(enum gw_tensor_role role)
{
    return role == GW_TENSOR_OUTPUT_NORM || role == GW_TENSOR_ROPE_FREQS || role == GW_TENSOR_ATTN_NORM ||
           role == GW_TENSOR_FFN_NORM || role == GW_TENSOR_Q_BIAS || role == GW_TENSOR_K_BIAS ||
           role == GW_TENSOR_V_BIAS;
}

/* Row length and rows that a role needs; rows 1 for vectors, 0 for "any" (the embedding says the vocabulary). */
static void wanted_shape(const struct gw_model_info *info, enum gw_tensor_role role, uint64_t *length, uint64_t *rows)
{
    uint64_t d = (uint64_t)info->d_model, ffn = (uint64_t)info->ffn;
    uint64_t q = (uint64_t)info->heads * (uint64_t)info->head_dim,
             kv = (uint64_t)info->kv_heads * (uint64_t)info->head_dim;
    uint64_t shapes[GW_TENSOR_ROLE_COUNT][2] = {
        [GW_TENSOR_EMBED] = {d, 0},       [GW_TENSOR_OUTPUT] = {d, (uint64_t)info->vocab},
        [GW_TENSOR_OUTPUT_NORM] = {d, 1}, [GW_TENSOR_ROPE_FREQS] = {(uint64_t)info->rope.dims / 2, 1},
        [GW_TENSOR_ATTN_NORM] = {d, 1},   [GW_TENSOR_Q] = {d, q},
        [GW_TENSOR_K] = {d, kv},          [GW_TENSOR_V] = {d, kv},
        [GW_TENSOR_Q_BIAS] = {q, 1},      [GW_TENSOR_K_BIAS] = {kv, 1},
        [GW_TENSOR_V_BIAS] = {kv, 1},     [GW_TENSOR_ATTN_OUT] = {q, d},
        [GW_TENSOR_FFN_NORM] = {d, 1},    [GW_TENSOR_GATE] = {d, ffn},
        [GW_TENSOR_UP] = {d, ffn},        [GW_TENSOR_DOWN] = {ffn, d},
    };
    *length = shapes[role][0];
    *rows = shapes[role][1];
}

/* Looks a role's tensor up and checks it. *found is NULL for an absent one that is not `needed`. */
static gw_err resolve(struct gw_model *m, enum gw_tensor_role role, int layer, bool needed,
                      const struct gw_gguf_tensor **found)
{
    char name[64];
    uint64_t length, rows;
    snprintf(name, sizeof name, m->arch->tensors[role], layer);
    const struct gw_gguf_tensor *t = *found = gw_gguf_tensor_find(m->gguf, name);
    if (!t) {
        if (!needed) return GW_OK;
        return gw_fail(GW_ERR_FORMAT,
                       "%s: tensor %s is missing: truncated or of another architecture than it says (%s)", PATH(m),
                       name, m->arch->name);
    }
    m->claimed[t - gw_gguf_tensor_at(m->gguf, 0)] = true;
    wanted_shape(&m->info, role, &length, &rows);
    if (t->dims > 2 || t->shape[0] != length || (rows && t->shape[1] != rows))
        return gw_fail(GW_ERR_FORMAT,
                       "%s: tensor %s is %" PRIu64 " x %" PRIu64 ", but the metadata asks for %" PRIu64 " x %" PRIu64,
                       PATH(m), name, t->shape[0], t->shape[1], length, rows ? rows : t->shape[1]);
    if (is_vector(role) && t->type->type != GW_TYPE_F32)
        return gw_fail(GW_ERR_UNSUPPORTED,
                       "%s: tensor %s is %s; godwit needs norms and biases in F32 (llama.cpp writes them so)", PATH(m),
                       name, t->type->name);
    return GW_OK;
}

static gw_err check_rope_freqs(struct gw_model *m)
{
    const struct gw_gguf_tensor *t = m->own[GW_TENSOR_ROPE_FREQS];
    if (!t) return GW_OK;
    if (m->info.rope.scaling != GW_ROPE_SCALING_NONE)
        return gw_fail(GW_ERR_UNSUPPORTED,
                       "%s: both rope_freqs.weight and another rope scaling; godwit takes one of them", PATH(m));
    m->info.rope.scaling = GW_ROPE_SCALING_LLAMA3;
    for (int pair = 0; pair < m->info.rope.dims / 2; pair++) {
        float divisor;
        memcpy(&divisor, t->data + sizeof divisor * (size_t)pair, sizeof divisor);
        if (!(divisor >= 1 && divisor <= 1e6f))
            return gw_fail(GW_ERR_FORMAT, "%s: rope_freqs.weight[%d] is %g; values of 1 and more make sense", PATH(m),
                           pair, (double)divisor);
    }
    return GW_OK;
}

static gw_err resolve_own(struct gw_model *m)
{
    gw_err rc = GW_OK;
    enum gw_gguf_kind kind;
    uint64_t tokens;
    TRY(resolve(m, GW_TENSOR_EMBED, 0, true, &m->own[GW_TENSOR_EMBED]));
    uint64_t vocab = m->own[GW_TENSOR_EMBED]->shape[1];
    if (vocab < 2 || vocab > MAX_SIZE)
        FAIL(GW_ERR_UNSUPPORTED, "%s: a vocabulary of %" PRIu64 " tokens; godwit takes 2 to %d", PATH(m), vocab,
             MAX_SIZE);
    m->info.vocab = (int)vocab;
    if (gw_gguf_get_array(m->gguf, "tokenizer.ggml.tokens", &kind, &tokens) && tokens > vocab)
        FAIL(GW_ERR_FORMAT,
             "%s: the tokenizer has %" PRIu64 " tokens, the embedding only %" PRIu64 ": corrupt, fetch it again",
             PATH(m), tokens, vocab);
    TRY(resolve(m, GW_TENSOR_OUTPUT, 0, false, &m->own[GW_TENSOR_OUTPUT]));
    m->info.tied = !m->own[GW_TENSOR_OUTPUT];
    if (m->info.tied) m->own[GW_TENSOR_OUTPUT] = m->own[GW_TENSOR_EMBED];
    TRY(resolve(m, GW_TENSOR_OUTPUT_NORM, 0, true, &m->own[GW_TENSOR_OUTPUT_NORM]));
    TRY(resolve(m, GW_TENSOR_ROPE_FREQS, 0, false, &m->own[GW_TENSOR_ROPE_FREQS]));
    TRY(check_rope_freqs(m));
out:
    return rc;
}

static gw_err resolve_layers(struct gw_model *m)
{
    gw_err rc = GW_OK;
    char name[64];
    snprintf(name, sizeof name, m->arch->tensors[GW_TENSOR_Q_BIAS], 0);
    m->info.qkv_bias = m->arch->qkv_bias == NEEDED ||
                       (m->arch->qkv_bias == OPTIONAL && gw_gguf_tensor_find(m->gguf, name) != NULL);
    m->layers = gw_alloc((size_t)m->info.layers, sizeof *m->layers);
    for (int layer = 0; layer < m->info.layers; layer++)
        for (int role = GW_TENSOR_ATTN_NORM; role < GW_TENSOR_ROLE_COUNT; role++) {
            bool bias = role == GW_TENSOR_Q_BIAS || role == GW_TENSOR_K_BIAS || role == GW_TENSOR_V_BIAS;
            if (bias && !m->info.qkv_bias) continue;
            TRY(resolve(m, (enum gw_tensor_role)role, layer, true, &m->layers[layer][role]));
        }
out:
    return rc;
}

/* A tensor that nobody asked for is a part of the computation that would silently be left out. */
static gw_err refuse_unclaimed(struct gw_model *m)
{
    char shown[GW_SHOW_BYTES];
    for (size_t i = 0; i < gw_gguf_tensor_count(m->gguf); i++) {
        const struct gw_gguf_tensor *t = gw_gguf_tensor_at(m->gguf, i);
        if (!m->claimed[i])
            return gw_fail(
                GW_ERR_UNSUPPORTED,
                "%s: tensor '%s' is not part of architecture %s as godwit computes it, so results would be wrong",
                PATH(m), gw_str_show(t->name, shown), m->arch->name);
        uint64_t elements = t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
        if (t != m->own[GW_TENSOR_ROPE_FREQS]) m->info.parameters += elements;
    }
    return GW_OK;
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

const char *gw_file_type_text(uint64_t file_type)
{
    static const char *const texts[] = {
        [0] = "all F32",        [1] = "mostly F16",     [2] = "mostly Q4_0",    [3] = "mostly Q4_1",
        [7] = "mostly Q8_0",    [8] = "mostly Q5_0",    [9] = "mostly Q5_1",    [10] = "mostly Q2_K",
        [11] = "mostly Q3_K_S", [12] = "mostly Q3_K_M", [13] = "mostly Q3_K_L", [14] = "mostly Q4_K_S",
        [15] = "mostly Q4_K_M", [16] = "mostly Q5_K_S", [17] = "mostly Q5_K_M", [18] = "mostly Q6_K",
        [32] = "mostly BF16",
    };
    file_type &= ~(uint64_t)1024; /* llama.cpp's flag for "guessed" */
    return file_type < sizeof texts / sizeof *texts ? texts[file_type] : NULL;
}

static void read_texts(struct gw_model *m)
{
    struct gw_str name = {"", 0};
    uint64_t file_type;
    gw_gguf_get_str(m->gguf, "general.name", &name);
    m->info.name = gw_strndup(name.data, name.bytes);
    m->info.file_type = NULL;
    if (gw_gguf_get_u64(m->gguf, "general.file_type", &file_type)) m->info.file_type = gw_file_type_text(file_type);
    if (!m->info.file_type) m->info.file_type = "";
}

/* Takes `gguf` over, also on failure. */
static gw_err create(struct gw_gguf *gguf, struct gw_model **model)
{
    gw_err rc = GW_OK;
    struct gw_model *m = gw_alloc(1, sizeof *m);
    m->gguf = gguf;
    m->claimed = gw_alloc(gw_gguf_tensor_count(gguf), sizeof *m->claimed);
    TRY(find_arch(m));
    TRY(refuse_variants(m));
    TRY(read_sizes(m));
    TRY(read_rope(m));
    TRY(resolve_own(m));
    TRY(resolve_layers(m));
    TRY(refuse_unclaimed(m));
    read_texts(m);
    free(m->claimed);
    m->claimed = NULL;
    *model = m;
    m = NULL;
out:
    gw_model_close(m);
    return rc;
}

gw_err gw_model_parse(const char *name, const uint8_t *data, size_t bytes, struct gw_model **model)
{
    gw_err rc = GW_OK;
    struct gw_gguf *gguf = NULL;
    *model = NULL;
    TRY(gw_gguf_parse(name, data, bytes, &gguf));
    TRY(create(gguf, model));
out:
    return rc;
}

gw_err gw_model_open(const char *path, struct gw_model **model)
{
    gw_err rc = GW_OK;
    struct gw_gguf *gguf = NULL;
    *model = NULL;
    TRY(gw_gguf_open(path, &gguf));
    TRY(create(gguf, model));
out:
    return rc;
}

void gw_model_close(struct gw_model *m)
{
    if (!m) return;
    free((char *)m->info.name);
    free(m->layers);
    free(m->claimed);
    gw_gguf_close(m->gguf);
    free(m);
}

const struct gw_model_info *gw_model_info(const struct gw_model *m)
{
    return &m->info;
}

const struct gw_gguf *gw_model_gguf(const struct gw_model *m)
{
    return m->gguf;
}

const struct gw_gguf_tensor *gw_model_tensor(const struct gw_model *m, enum gw_tensor_role role, int layer)
{
    GW_ASSERT(role >= 0 && role < GW_TENSOR_ROLE_COUNT);
    if (role < GW_TENSOR_ATTN_NORM) return m->own[role];
    GW_ASSERT(layer >= 0 && layer < m->info.layers);
    return m->layers[layer][role];
}

void gw_model_fingerprint(const struct gw_model *m, char hex[65])
{
    struct gw_sha256 *sha = gw_sha256_create();
    const uint8_t *data = gw_gguf_data(m->gguf);
    uint64_t bytes = gw_gguf_file_bytes(m->gguf), offset = gw_gguf_data_offset(m->gguf), section = bytes - offset;
    gw_sha256_add(sha, &bytes, sizeof bytes); /* little endian, as the host must be */
    gw_sha256_add(sha, data, (size_t)offset);
    if (section <= (uint64_t)FINGERPRINT_WINDOWS * FINGERPRINT_WINDOW_BYTES) {
        gw_sha256_add(sha, data + offset, (size_t)section);
    } else {
        uint64_t last = section - FINGERPRINT_WINDOW_BYTES;
        for (uint64_t i = 0; i < FINGERPRINT_WINDOWS; i++) {
            uint64_t begin = last / (FINGERPRINT_WINDOWS - 1) * i +
                             last % (FINGERPRINT_WINDOWS - 1) * i / (FINGERPRINT_WINDOWS - 1);
            gw_sha256_add(sha, data + offset + begin, FINGERPRINT_WINDOW_BYTES);
        }
    }
    gw_sha256_finish(sha, hex);
}

/* ---- rope ------------------------------------------------------------------------------------------------------ */

#define LN_2 0.69314718055994530942
#define TWO_PI 6.28318530717958647693

/* The (fractional) dimension that turns `rotations` times over the original context: eq. 17 and its use in appendix A.2 of YaRN,
 * solved for the pair's index. */
static double yarn_pair(const struct gw_rope *rope, double rotations)
{
    double turns = (double)rope->original_context / (rotations * TWO_PI);
    return (double)rope->dims * gw_log2_f64(turns) / (2 * gw_log2_f64(rope->base));
}

/* Peng, Quesnelle, Fan, Shippole: "YaRN: Efficient Context Window Extension of Large Language Models", arXiv:2309.00071, section
 * 3.2 (NTK-by-parts) with whole-numbered bounds as in the authors' code; 3.4 gives the factor on cos and sin, 0.1 ln(s) + 1. */
static void yarn(const struct gw_rope *rope, double *inv_freq, double *attn_factor)
{
    double low = floor(yarn_pair(rope, rope->beta_fast)), high = ceil(yarn_pair(rope, rope->beta_slow));
    low = low < 0 ? 0 : low;
    high = high > rope->dims - 1 ? rope->dims - 1 : high;
    double width = high - low < 0.001 ? 0.001 : high - low;
    for (int pair = 0; pair < rope->dims / 2; pair++) {
        double ramp = ((double)pair - low) / width; /* 0: keep the frequency; 1: interpolate */
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        inv_freq[pair] = inv_freq[pair] / rope->factor * ramp + inv_freq[pair] * (1 - ramp);
    }
    *attn_factor = rope->attn_factor * (1 + 0.1 * LN_2 * gw_log2_f64(rope->factor));
}

/* Su et al.: "RoFormer", arXiv:2104.09864, section 3.2: theta_i = base^(-2i/d). */
void gw_rope_inv_freq(const struct gw_model *m, double *inv_freq, double *attn_factor)
{
    const struct gw_rope *rope = &m->info.rope;
    double step = gw_log2_f64(rope->base) * 2 / rope->dims;
    *attn_factor = 1;
    for (int pair = 0; pair < rope->dims / 2; pair++) inv_freq[pair] = gw_exp2_f64(-step * pair);
    switch (rope->scaling) {
    case GW_ROPE_SCALING_NONE: break;
    case GW_ROPE_SCALING_LINEAR:
        for (int pair = 0; pair < rope->dims / 2; pair++) inv_freq[pair] /= rope->factor;
        break;
    case GW_ROPE_SCALING_LLAMA3:
        for (int pair = 0; pair < rope->dims / 2; pair++) {
            float divisor;
            memcpy(&divisor, m->own[GW_TENSOR_ROPE_FREQS]->data + sizeof divisor * (size_t)pair, sizeof divisor);
            inv_freq[pair] /= (double)divisor;
        }
        break;
    case GW_ROPE_SCALING_YARN: yarn(rope, inv_freq, attn_factor); break;
    }
}
