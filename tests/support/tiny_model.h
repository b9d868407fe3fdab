/* Tiny random models in GGUF, for tests that need a whole model file without fetching one.
 *
 * The weights are random but scaled like a trained model's (activations of order 1, attention that looks at few keys, logits with
 * a standard deviation of about 2), so that greedy text wanders and a wrong sum shows. The tokenizer is a real byte-level BPE:
 * ChatML's special tokens, 256 bytes, and merges learned from a built-in English text. The same spec gives the same bytes on every
 * host: random numbers are Philox, and no libm function is used.
 */
#ifndef GW_TESTS_TINY_MODEL_H
#define GW_TESTS_TINY_MODEL_H

#include "base/error.h"
#include "base/mem.h"
#include "kernels/types.h"
#include "model/arch.h"

struct gw_tiny_spec {
    const char *arch;        /* "llama" or "qwen2" (with QKV bias and NEOX rope) */
    enum gw_type type;       /* of the layers' matrices */
    enum gw_type embed_type; /* of token_embd and output */
    enum gw_type down_type;  /* of attn_v and ffn_down, as mixed files have it */
    int layers, d_model, ffn, heads, kv_heads, head_dim;
    int vocab; /* exact; at least GW_TINY_MIN_VOCAB; what merges do not fill is unused tokens */
    int context;
    bool tied;
    bool vocab_only; /* metadata without any tensor */
    uint64_t seed;
    enum gw_rope_scaling rope_scaling;
    double rope_factor; /* of linear and yarn, and the largest divisor of llama3 */
};

#define GW_TINY_MIN_VOCAB 259

/* llama, 6 layers, d 192, ffn 768, 6 heads of 32 over 3 KV heads, vocab 600, context 1024, tied, Q8_0 embedding; with K-quants the rows
 * are multiples of 256 instead: d 256, 8 heads over 4 KV heads. */
struct gw_tiny_spec gw_tiny_default(enum gw_type type);

/* Appends the file's bytes to `file`. GW_ERR_USAGE when a row does not fit its type's blocks or the vocabulary is too small; shapes that
 * make no sense otherwise are written as told, so that tests can have them refused. */
GW_CHECK gw_err gw_tiny_build(const struct gw_tiny_spec *spec, struct gw_buf *file);
GW_CHECK gw_err gw_tiny_write(const struct gw_tiny_spec *spec, const char *path);

/* "q4_k", "Q4_K" -> type; false when unknown. */
bool gw_tiny_type(const char *name, enum gw_type *type);

/* Quantizes `count` floats (a multiple of the type's block) and appends the blocks. Round to nearest with plain scales: valid, not optimal. */
void gw_tiny_quantize(enum gw_type type, const float *x, size_t count, struct gw_buf *out);

/* The English text that the merges were learned from. */
extern const char gw_tiny_text[];

#endif
