/* The backend seam: one shard of one stage of the model on one device.
 *
 * A backend owns its device's memory: weights, KV pages, activations. Work is enqueued in call order and may run later; only
 * the functions that hand host memory over (marked "waits") wait for it. Nothing outside a backend knows a tensor's address or
 * the layout of a KV page; pages leave and enter in one canonical form. The executor (job/executor.c) drives it like this:
 *
 *    step_begin -> embed | hidden_import -> per layer { attention -> [sum over shards] -> ffn -> [sum over shards] }
 *               -> hidden_export | logits
 *
 * `attention` and `ffn` end with partial sums over this shard's atoms, as nodes of the fixed tree (engine/tree.h). With one
 * shard the single node is the whole sum and residual_add_own() adds it in place; with several the nodes are mapped to the host,
 * exchanged, and the root comes back through residual_add(). All functions are local to the rank.
 */
#ifndef GW_ENGINE_BACKEND_H
#define GW_ENGINE_BACKEND_H

#include "engine/step.h"
#include "engine/tree.h"
#include "model/arch.h"
#include "plan/layout.h"

/* What a backend is told at creation. */
struct gw_backend_config {
    const struct gw_model *model; /* borrowed; outlives the backend */
    struct gw_dims dims;
    struct gw_shard shard;
    int kv_pages; /* pages of GW_PAGE_TOKENS tokens; the same number on every rank of a replica */
    int max_rows; /* most rows of a step */
    int max_context;
};

struct gw_backend; /* each backend's struct begins with `const struct gw_backend_ops *ops` */

struct gw_backend_ops {
    const char *name;
    void (*destroy)(struct gw_backend *backend);

    /* Makes room for a step's rows and takes its positions and page tables; the step stays valid until its last call. */
    gw_err (*step_begin)(struct gw_backend *backend, const struct gw_step *step);
    /* Hidden rows [step rows][d_model] from the step's token ids (first stage). */
    gw_err (*embed)(struct gw_backend *backend);
    /* Hidden rows from / to host memory, float32 [step rows][d_model]. Export waits. */
    gw_err (*hidden_import)(struct gw_backend *backend, const float *rows);
    gw_err (*hidden_export)(struct gw_backend *backend, float *rows);

    /* Attention and FFN of `layer` (the model's number) up to the partial sums; K and V of the step's rows are stored. */
    gw_err (*attention)(struct gw_backend *backend, int layer);
    gw_err (*ffn)(struct gw_backend *backend, int layer);
    /* hidden += the partial sum (only when this shard owns all atoms). */
    gw_err (*residual_add_own)(struct gw_backend *backend);
    /* Waits. This shard's nodes of the last attention or ffn: float32 [node][rows][d_model], valid until the next call. */
    gw_err (*partial_map)(struct gw_backend *backend, const float **nodes);
    /* hidden[row_begin ..][d_model] += rows of the reduced sum in host memory. */
    gw_err (*residual_add)(struct gw_backend *backend, const float *sum, int row_begin, int rows);

    /* Waits. Logits of this shard's vocabulary for `count` rows of the step: float32 [count][vocab_end - vocab_begin] in host memory
     * that the caller may change, valid until the next step_begin (last stage). */
    gw_err (*logits)(struct gw_backend *backend, const int32_t *rows, int count, float **logits);

    /* Waits. One KV page of one layer in the canonical form, half precision [key|value][kv_head][token][dim], this shard's heads.
     * `halves` = 2 * kv heads * GW_PAGE_TOKENS * head_dim. */
    gw_err (*kv_export)(struct gw_backend *backend, int layer, int page, uint16_t *canonical);
    gw_err (*kv_import)(struct gw_backend *backend, int layer, int page, const uint16_t *canonical);
};

struct gw_backend {
    const struct gw_backend_ops *ops;
};

struct gw_pool;
struct gw_kernels;

/* The CPU backend over a kernel table and this rank's threads (both borrowed). Loads and packs the shard's weights. */
GW_CHECK gw_err gw_backend_cpu_create(const struct gw_backend_config *config, const struct gw_kernels *kernels,
                                      struct gw_pool *pool, struct gw_backend **backend);

#endif
