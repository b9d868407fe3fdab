/* The backend seam: one shard of one stage of the model on one device.
 *
 * A backend owns its device's memory: weights, KV pages, activations. Work is enqueued in call order and may run later; only
 * the functions that hand host memory over (marked "waits") wait for it. Nothing outside a backend knows a tensor's address or
 * the layout of a KV page; pages leave and enter in one canonical form. The executor (job/executor.c) drives it like this:
 *
 *    step_begin -> embed | hidden_import -> per layer { attention -> [sum over shards] -> ffn -> [sum over shards] }, each for part after part
 *               -> hidden_export | logits
 *
 * Of most rows of a prompt nobody wants the model's output, only their keys and values: before the last layer's attention come `keys`, for all parts, and
 * `narrow`.
 *
 * `attention` and `ffn` end with partial sums over this shard's atoms, as nodes of the fixed tree (engine/tree.h). With one
 * shard the single node is the whole sum and residual_add_own() adds it in place; with several the nodes are mapped to the host,
 * exchanged, and come back through residual_add(), all of them or what they add up to. All functions are local to the rank.
 */
#ifndef GW_ENGINE_BACKEND_H
#define GW_ENGINE_BACKEND_H

#include "engine/step.h"
#include "engine/tree.h"
#include "model/arch.h"
#include "plan/layout.h"
#include "store/store.h"

struct gw_backend;

/* What a backend is told at creation. */
struct gw_backend_config {
    const struct gw_model *model; /* borrowed; outlives the backend */
    struct gw_dims dims;
    struct gw_shard shard;
    int kv_pages; /* pages of GW_PAGE_TOKENS tokens; the same number on every rank of a replica */
    int max_rows; /* most rows of a step */
    int max_context;
    /* An earlier backend of this rank (or NULL): what both need alike is shared instead of loaded: a layer's attention weights and its
     * KV pages where the kv heads are the same, its FFN weights where the atoms are the same. It may be destroyed at any time. */
    struct gw_backend *donor;
    /* [model layers + 1], the last for the output matrix: weights that shall not be loaded but will be imported. NULL: none. */
    const bool *awaited;
    /* The node's context store, or NULL. Packed weights are shared through it under `model_key` (the same for the same model file); KV pages
     * lie in this process's own context. `resumed`: those that are there already, from the process whose context was taken over, are
     * taken as they are (kv_inherited says of which layers). Ranks of the node share the packing: this is local_rank of local_size. */
    struct gw_store *store;
    uint64_t model_key;
    bool resumed;
    int local_rank, local_size;
    /* Called now and then while weights are loaded (NULL: not wanted). */
    void (*tick)(void *context);
    void *tick_context;
};

/* A part of the weights: of one layer, the matrices over kv heads [kv_begin, kv_end) and over FFN atoms [ffn_begin, ffn_end); for layer =
 * the model's number of layers, rows [vocab_begin, vocab_end) of the output matrix. */
struct gw_weight_slice {
    int layer;
    int kv_begin, kv_end;
    int ffn_begin, ffn_end;
    int vocab_begin, vocab_end;
};

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

    /* Attention and FFN of `layer` (the model's number) for one part of the step (step.h), up to the partial sums; K and V of its rows are stored. Parts take
     * turns: each half layer is computed for the first part, then for the second. */
    gw_err (*attention)(struct gw_backend *backend, int layer, int part);
    gw_err (*ffn)(struct gw_backend *backend, int layer, int part);
    /* The start of attention(): K and V of the part's rows are stored, and that is all. */
    gw_err (*keys)(struct gw_backend *backend, int layer, int part);
    /* From here on only `rows`[narrowed->rows] of the step count, in ascending order, and the step is `narrowed`, as after step_begin; their hidden rows move
     * together. No sum is pending: keys() of all parts comes before. */
    gw_err (*narrow)(struct gw_backend *backend, const struct gw_step *narrowed, const int32_t *rows);
    /* hidden += the partial sum of the part's rows (only when this shard owns all atoms). */
    gw_err (*residual_add_own)(struct gw_backend *backend, int part);
    /* Waits. This shard's nodes of the last attention or ffn: float32 [node][step rows][d_model], a part's rows valid until its next half layer. */
    gw_err (*partial_map)(struct gw_backend *backend, const float **nodes);
    /* hidden[row][d_model] += `sum`, elements [step rows][d_model] in host memory, for the part's rows. `sum` and what it names is read until the part's next
     * half layer (which adds it on the way), export or logits. */
    gw_err (*residual_add)(struct gw_backend *backend, int part, const struct gw_tree_sum *sum);

    /* From the next step on partial sums of attention and of FFN (or both to the same) and, if not NULL, logits go to memory of the caller's, with room for
     * max_rows rows, of logits `logits_stride` floats apart; all NULL: to the backend's own again. */
    void (*exchange_memory)(struct gw_backend *backend, float *attn_nodes, float *ffn_nodes, float *logits,
                            size_t logits_stride);

    /* Waits. Logits of this shard's vocabulary for `count` rows of the step: float32 [count][vocab_end - vocab_begin] (or as exchange_memory() said) in host
     * memory that the caller may change, valid until the next step_begin (last stage). */
    gw_err (*logits)(struct gw_backend *backend, const int32_t *rows, int count, float **logits);

    /* Waits. One KV page of one layer and kv heads [kv_begin, kv_end) (the model's numbers, within the shard) in the canonical form: half
     * precision [key|value][kv_head][token][dim], (kv_end - kv_begin) * gw_page_halves(head_dim) halves. */
    gw_err (*kv_export)(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end, uint16_t *canonical);
    gw_err (*kv_import)(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end,
                        const uint16_t *canonical);
    /* Are the KV pages of this layer the donor's (or those that were resumed), content and numbers? */
    bool (*kv_inherited)(struct gw_backend *backend, int layer);

    /* Makes awaited weights of a part of `layer` (the number of layers: the output matrix) from the model file; nothing when none are awaited. */
    gw_err (*part_load)(struct gw_backend *backend, int layer, enum gw_part part);
    /* Lets go of a part, which is not used any more; a backend made from this one keeps what it shares with it. */
    void (*part_release)(struct gw_backend *backend, int layer, enum gw_part part);
    /* Gives the memory of this layer's KV pages back but for those that are `wanted`[kv_pages]; what was in them is lost. Returns the bytes. */
    uint64_t (*kv_trim)(struct gw_backend *backend, int layer, const bool *wanted);
    /* Bytes that a part takes: 0 when it is released, shared with `other` (or NULL), or awaited and nothing of it has come. KV: all pages. */
    uint64_t (*part_bytes)(struct gw_backend *backend, int layer, enum gw_part part, struct gw_backend *other);

    /* Waits. Appends a slice of the packed weights / takes one that a backend of the same kind has written. The slice lies within the
     * shard. GW_ERR_UNSUPPORTED when it cannot be cut out of the packed form; GW_ERR_PEER when the data do not fit. */
    gw_err (*weights_export)(struct gw_backend *backend, const struct gw_weight_slice *slice, struct gw_buf *out);
    gw_err (*weights_import)(struct gw_backend *backend, const struct gw_weight_slice *slice, const uint8_t *data,
                             size_t bytes);
    /* Bytes of weights that were made from the model file at creation, rather than shared with the donor or found in the store. */
    uint64_t (*weights_made)(struct gw_backend *backend);
};

struct gw_backend { /* each backend's struct begins with this */
    const struct gw_backend_ops *ops;
};

struct gw_pool;
struct gw_kernels;

/* The CPU backend over a kernel table and this rank's threads (both borrowed). Loads and packs the shard's weights. */
GW_CHECK gw_err gw_backend_cpu_create(const struct gw_backend_config *config, const struct gw_kernels *kernels,
                                      struct gw_pool *pool, struct gw_backend **backend);

#endif
