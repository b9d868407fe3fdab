/* The inside of the CPU backend, shared by backend_cpu.c (a step's computing) and cpu_memory.c (weights and KV pages: where they lie, how they
 * come and go). Nobody else includes this.
 */
#ifndef GW_ENGINE_CPU_H
#define GW_ENGINE_CPU_H

#include "base/pool.h"
#include "engine/backend.h"
#include "kernels/kernels.h"

#include <stdatomic.h>

enum { Q, K, V, OUT, GATE, UP, DOWN, MATRICES };

struct layer {
    float *attn_norm, *ffn_norm;     /* [d_model] */
    float *q_bias, *k_bias, *v_bias; /* this shard's part, or NULL */
    /* Q [heads*dim, d]; K, V [kv*dim, d]; OUT [d, heads*dim]; GATE, UP [ffn, d]; DOWN [d, ffn] */
    struct gw_packed w[MATRICES];
    struct gw_shared *memory[MATRICES]; /* of w[].data */
    struct gw_shared *kv;               /* [page][kv_head][gw_page_halves] */
    int kv_pages;                       /* that it has room for */
    bool kv_inherited;
    int heads_awaited, atoms_awaited; /* weights that have yet to be imported */
};

/* Activations in the form GEMM reads, with their memory. */
struct act {
    struct gw_act view;
    int rows;
    float *x; /* [rows][k], or NULL as long as no matrix reads it */
};

/* One shard's share of a sum over atoms. */
struct partial {
    int atoms; /* of the whole model */
    int begin, end;
    int node_count;
    struct gw_atom program[GW_TREE_MAX_ATOMS];
};

/* Query rows of one attention item: enough to reuse a page's conversion, small enough to share out. */
enum { ATTENTION_ROWS = 16 };

/* What is computed of one head at a time: rows of a sequence, or a row each of several that have their first pages in common. */
struct attention_item {
    int seq, head, row, rows; /* rows relative to the sequence */
    int shared;               /* of several: so many pages; rows are of sequences seq, seq + 1 .. then. 0: of one */
};

/* Rows of a part that one thread computes by itself, or all threads together (cpu_rows.c). */
struct row_group {
    int row_begin, row_end;   /* begins with a tile of GW_ACT_ROWS */
    int item_begin, item_end; /* attention items of these rows */
    int page_begin, page_end; /* in step_pages: that they read */
    int after;                /* the part's groups [after, this one) write keys that this one reads, in every layer */
};

/* Rows of a step that are computed in one go (step.h). */
struct row_part {
    int row_begin, row_end;
    bool by_rows;
    struct row_group *groups; /* [threads], of which group_count are used: one, or by_rows one for each thread */
    int group_count;
    struct gw_warm *warm;              /* [threads] */
    const struct gw_tree_sum *pending; /* is added to the hidden rows where they are read next; or NULL */
};

/* What a thread has to do: rows [row_begin, row_end), as number `member` of the `members` that divide their outputs among themselves. */
struct share {
    const struct row_group *group; /* NULL: rows of logits */
    int row_begin, row_end;
    int member, members;
};

enum half { HALF_ATTENTION, HALF_FFN, HALF_KEYS /* of the first half, what other rows need of it */ };

/* Half a layer that has been asked for and waits to be computed. */
struct half_layer {
    const struct layer *layer;
    int number; /* the layer's */
    enum half half;
    struct row_part *part;
    const struct gw_tree_sum *add; /* to the hidden rows first; or NULL */
};

struct backing_page {
    void *memory;
    bool refused;
};

/* How much of weights and KV has been moved to huge pages (cpu_memory.c). */
struct backing {
    int part; /* of weights: two a layer, then the output matrix */
    size_t part_at;
    size_t kv_at; /* of each layer's KV, and of so many layers one huge page more */
    int layer;
    int kv_pages;              /* the first so many may have been written by steps */
    bool kv_fresh;             /* nobody else has written any, and the system has not refused a page yet */
    double begin_s, spent_s;   /* since when, and the time that what had been written took */
    struct backing_page *list; /* [threads]: to be asked for next */
    int listed;
};

struct cpu {
    struct gw_backend base;
    struct gw_backend_config config;
    const struct gw_kernels *kernels;
    struct gw_pool *pool;
    int d, head_dim, group, kv_heads, ffn, vocab; /* the last three are this shard's */
    float norm_eps;
    struct layer *layers; /* [layer_end - layer_begin] */
    float *output_norm;
    struct gw_packed output;
    struct gw_shared *output_memory;
    int rows_awaited; /* of the output matrix */
    struct backing backing;
    uint64_t packed_bytes; /* weights that were packed here, not found */
    const struct gw_gguf_tensor *embedding;
    uint8_t *embedding_row; /* one row of it as in the file */

    enum gw_rope_style rope_style;
    int rope_pairs, rope_positions; /* positions tabulated so far */
    double *inv_freq, rope_factor;
    float *cosine, *sine; /* [rope_positions][rope_pairs] */

    struct partial attn_sum, ffn_sum;
    const struct partial *last_sum;

    uint8_t *scratch; /* holds the arrays below, but for those of cpu_rows.c and what grows on demand */
    size_t scratch_bytes;

    const struct gw_step *step;
    int32_t *row_seq; /* [rows]: index of the row's sequence in the step */
    struct attention_item *items;
    int item_count, item_capacity;
    struct row_part parts[GW_STEP_PARTS];
    double *tile_cost;             /* [max_rows / GW_ACT_ROWS + 1], for cutting rows into groups */
    int32_t *page_writer;          /* [kv_pages], likewise */
    const uint16_t **page_scratch; /* [thread][ATTENTION_ROWS * max_pages] */
    int max_pages;
    int32_t *step_pages; /* [step_page_count]: pages that the step's sequences read */
    int step_page_count, step_page_capacity;
    uint8_t *gemm_scratch;     /* [threads][gemm_scratch_bytes] */
    size_t gemm_scratch_bytes; /* a multiple of a cache line; 0 with kernels that need none */

    float *hidden;              /* [rows][d] */
    float *query, *key, *value; /* [rows][heads*dim], [rows][kv*dim] twice */
    float *norm_tiles;          /* [thread][normalised|sums][NORM_ROWS][d] */
    float *tiles;               /* [thread][gate|up][TILE_ROWS][GW_BLOCK] */
    float *partials[2];         /* of attention and of FFN: [node][rows][d] */
    float *logits;              /* [rows][logits_stride], of which vocab are used; grown on demand */
    size_t logits_count, logits_stride;
    float *own_partials, *own_logits; /* not used where the caller's memory is (exchange_memory) */
    struct act normed, attended, activated;
    struct gw_tree_sum own_sum; /* own_partials when all is one node */
    const float *own_value;
    struct half_layer *queue; /* [2 * layers] */
    atomic_int *next_item;    /* [2 * layers]: of a half layer's attention items, when all threads share them */
    int queued;
    double half_row_s; /* what half a layer takes for a row, as last measured; 0 before */
};

static inline struct cpu *of(struct gw_backend *backend)
{
    return (struct cpu *)backend;
}

static inline uint16_t *kv_page(const struct cpu *cpu, int layer, int page, int head)
{
    uint16_t *pages = cpu->layers[layer - cpu->config.shard.layer_begin].kv->data;
    return pages + ((size_t)page * (size_t)cpu->kv_heads + (size_t)head) * gw_page_halves(cpu->head_dim);
}

/* Norms, biases and weights of the shard, from the model's map, the store or the donor; room for KV pages. */
GW_CHECK gw_err gw_cpu_load(struct cpu *cpu);
void gw_cpu_unload(struct cpu *cpu);

/* Before a step of `rows` rows that knows the first `pages` KV pages: moves these, of all layers, and the weights to huge pages; what has been written before, a few
 * at each call. Where they are already, or the system has none, nothing comes of it. */
void gw_cpu_back_memory(struct cpu *cpu, int pages, int rows);

/* Packs the part of a tensor that begins at output n_begin and input k_begin into packed->data, on all threads. */
void gw_cpu_pack(struct cpu *cpu, const struct gw_packed *packed, const struct gw_gguf_tensor *tensor, int n_begin,
                 int k_begin);

/* How the step's rows, attention items and pages are shared out, part by part. */
void gw_cpu_rows_init(struct cpu *cpu);
void gw_cpu_rows_close(struct cpu *cpu);
void gw_cpu_share_rows(struct cpu *cpu, const struct gw_step *step);
struct share gw_cpu_share(const struct row_part *part, int thread, int threads);

/* These of struct gw_backend_ops. */
gw_err gw_cpu_kv_export(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end, uint16_t *canonical);
gw_err gw_cpu_kv_import(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end,
                        const uint16_t *canonical);
bool gw_cpu_kv_inherited(struct gw_backend *backend, int layer);
gw_err gw_cpu_part_load(struct gw_backend *backend, int layer, enum gw_part part);
void gw_cpu_part_release(struct gw_backend *backend, int layer, enum gw_part part);
uint64_t gw_cpu_kv_trim(struct gw_backend *backend, int layer, const bool *wanted);
uint64_t gw_cpu_part_bytes(struct gw_backend *backend, int layer, enum gw_part part, struct gw_backend *other);
gw_err gw_cpu_weights_export(struct gw_backend *backend, const struct gw_weight_slice *slice, struct gw_buf *out);
gw_err gw_cpu_weights_import(struct gw_backend *backend, const struct gw_weight_slice *slice, const uint8_t *data,
                             size_t bytes);

#endif
