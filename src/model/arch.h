/* Models: what a GGUF file means as a transformer, checked once at opening so that the engine can take it for granted.
 *
 * arch.c holds a table of architectures; the next one is an entry there (its name, rope style, tensor names), not a branch in the
 * engine. gw_model_open() checks that every needed tensor is there with the right shape, that the file has no tensor godwit
 * would leave out (a mixture of experts, say: the results would be wrong), and that sizes suit the kernels:
 *    heads % kv_heads == 0; head_dim even and <= 256; d_model, ffn and heads / kv_heads * head_dim multiples of 32.
 * Vectors (norms, biases) are F32. Every failure is one line that names the file and the field. Local.
 */
#ifndef GW_MODEL_ARCH_H
#define GW_MODEL_ARCH_H

#include "kernels/kernels.h"
#include "model/gguf.h"

struct gw_model; /* opaque; immutable, so threads may share it */

/* Shapes as GGUF has them: [row length, rows]. A layer's tensors follow the model's own. */
enum gw_tensor_role {
    GW_TENSOR_EMBED,       /* [d_model, vocab] */
    GW_TENSOR_OUTPUT,      /* [d_model, vocab]; the embedding when tied */
    GW_TENSOR_OUTPUT_NORM, /* [d_model] */
    GW_TENSOR_ROPE_FREQS,  /* [rope dims / 2], NULL when absent */
    GW_TENSOR_ATTN_NORM,   /* [d_model] */
    GW_TENSOR_Q,           /* [d_model, heads * head_dim] */
    GW_TENSOR_K,           /* [d_model, kv_heads * head_dim] */
    GW_TENSOR_V,
    GW_TENSOR_Q_BIAS, /* [heads * head_dim], NULL when absent */
    GW_TENSOR_K_BIAS, /* [kv_heads * head_dim], NULL when absent */
    GW_TENSOR_V_BIAS,
    GW_TENSOR_ATTN_OUT, /* [heads * head_dim, d_model] */
    GW_TENSOR_FFN_NORM, /* [d_model] */
    GW_TENSOR_GATE,     /* [d_model, ffn] */
    GW_TENSOR_UP,
    GW_TENSOR_DOWN, /* [ffn, d_model] */
    GW_TENSOR_ROLE_COUNT
};

enum gw_rope_scaling {
    GW_ROPE_SCALING_NONE,
    GW_ROPE_SCALING_LINEAR, /* positions divided by `factor` */
    GW_ROPE_SCALING_LLAMA3, /* a divisor per pair, the tensor rope_freqs.weight */
    GW_ROPE_SCALING_YARN
};

struct gw_rope {
    enum gw_rope_style style;
    double base;
    int dims; /* rotated dimensions of a head; even, <= head_dim */
    enum gw_rope_scaling scaling;
    double factor;               /* 1 without linear or yarn scaling */
    int original_context;        /* yarn: tokens the model was first trained on */
    double beta_fast, beta_slow; /* yarn: rotations over the original context that bound the ramp */
    double attn_factor;          /* yarn: extra factor on cos and sin, 1 by default */
};

struct gw_model_info {
    const char *arch;      /* "llama" */
    const char *name;      /* general.name, "" when the file has none */
    const char *file_type; /* "mostly Q4_1", "" when the file does not say */
    int layers, d_model, ffn, heads, kv_heads, head_dim, vocab;
    int context; /* tokens that the model was trained for */
    float norm_eps;
    struct gw_rope rope;
    bool tied; /* output is the embedding */
    bool qkv_bias;
    uint64_t parameters;
};

/* Opens and checks a model file. gw_model_close() frees it. */
GW_CHECK gw_err gw_model_open(const char *path, struct gw_model **model);
/* The same over memory, as gw_gguf_parse(). */
GW_CHECK gw_err gw_model_parse(const char *name, const uint8_t *data, size_t bytes, struct gw_model **model);
void gw_model_close(struct gw_model *model);

const struct gw_model_info *gw_model_info(const struct gw_model *model);
const struct gw_gguf *gw_model_gguf(const struct gw_model *model);
/* `layer` is ignored for the model's own tensors. NULL only for a role marked so above. */
const struct gw_gguf_tensor *gw_model_tensor(const struct gw_model *model, enum gw_tensor_role role, int layer);

/* 64 hex digits that tell this file from others in milliseconds: SHA-256 over the file's size (8 bytes, little endian), all bytes before
 * the tensor data (metadata and tensor table), and 64 windows of 64 KiB of the data section: window i of 64 begins at
 * (data bytes - 64 KiB) * i / 63, so first and last bytes are in; up to 4 MiB of data is hashed whole. A change of a few weights
 * between windows is not seen: this tells files apart, it does not protect them. */
void gw_model_fingerprint(const struct gw_model *model, char hex[65]);

/* Angle per position of each rotated pair, inv_freq[rope.dims / 2] in radians, and the factor on every cos and sin. In double with
 * the deterministic helpers of kernels/elementary.h, so that all hosts agree. */
void gw_rope_inv_freq(const struct gw_model *model, double *inv_freq, double *attn_factor);

/* "mostly Q4_K_M" for general.file_type; NULL when unknown. */
const char *gw_file_type_text(uint64_t file_type);

#endif
