/* The CPU backend: packed weights, KV pages and activations in this process's memory, kernels from one table, the rank's threads.
 *
 * It owns its shard's packed weights (copied from the model's map once, at creation), the KV pool and the scratch of a step.
 * Each half layer is one dispatch of the thread pool with barriers between its phases; rows, panels and attention items are what
 * threads share out, and none of them changes a bit of a result (kernels/kernels.h). Memory of the step's scratch is allocated
 * for max_rows once, so a decode step allocates nothing.
 *
 * KV pages: per layer uint16 [page][kv_head][gw_page_halves], backed lazily by the kernel as pages are first written. Weights and
 * KV pages have holders, so that a backend for another slice takes over what stays the same (gw_backend_config.donor).
 */
#include "base/pool.h"
#include "engine/backend.h"
#include "kernels/elementary.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    ATTENTION_ROWS = 16
}; /* query rows of one attention item: enough to reuse a page's conversion, small enough to share out */

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
    float *x;
};

/* One shard's share of a sum over atoms. */
struct partial {
    int atoms; /* of the whole model */
    int begin, end;
    int node_count;
    struct gw_atom program[GW_TREE_MAX_ATOMS];
};

struct attention_item {
    int seq, head, row, rows; /* rows relative to the sequence */
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
    const struct gw_gguf_tensor *embedding;

    enum gw_rope_style rope_style;
    int rope_pairs, rope_positions; /* positions tabulated so far */
    double *inv_freq, rope_factor;
    float *cosine, *sine; /* [rope_positions][rope_pairs] */

    struct partial attn_sum, ffn_sum;
    const struct partial *last_sum;

    const struct gw_step *step;
    int32_t *row_seq; /* [rows]: index of the row's sequence in the step */
    struct attention_item *items;
    int item_count, item_capacity;
    atomic_int next_item;
    const uint16_t **page_scratch; /* [thread][max pages] */
    int max_pages;

    float *hidden;              /* [rows][d] */
    float *query, *key, *value; /* [rows][heads*dim], [rows][kv*dim] twice */
    float *gate, *up;           /* [rows][ffn] */
    float *partials;            /* [node][rows][d] */
    float *logits;              /* [rows][vocab], grown on demand */
    size_t logits_count;
    struct act normed, attended, activated;
};

static struct cpu *of(struct gw_backend *backend)
{
    return (struct cpu *)backend;
}

/* ---- loading --------------------------------------------------------------------------------------------------- */

struct pack_job {
    const struct gw_packed *packed;
    const uint8_t *src;
    size_t row_bytes;
    int k_begin;
};

static void pack_share(void *arg, int thread, int threads)
{
    const struct pack_job *job = arg;
    int begin, end;
    gw_split(job->packed->panels, threads, thread, &begin, &end);
    gw_pack_panels(job->packed, job->src, job->row_bytes, job->k_begin, begin, end);
}

/* Makes room for outputs [n_begin, n_begin + n) and inputs [k_begin, k_begin + k) of a tensor and, unless they are awaited from a peer, packs
 * them. n or k may be 0 (an empty shard). */
static gw_err load_matrix(struct cpu *cpu, enum gw_tensor_role role, int layer, int n_begin, int n, int k_begin, int k,
                          struct gw_packed *packed, struct gw_shared **memory)
{
    gw_err rc = GW_OK;
    const struct gw_gguf_tensor *tensor = gw_model_tensor(cpu->config.model, role, layer);
    int number = role == GW_TENSOR_OUTPUT ? cpu->config.dims.layers : layer;
    if (n == 0 || k == 0) return GW_OK;
    TRY(gw_packed_init(packed, tensor->type->type, n, k));
    TRY(gw_shared_create(gw_packed_bytes(packed), "weights", memory));
    packed->data = (*memory)->data;
    if (cpu->config.awaited && cpu->config.awaited[number]) return GW_OK;
    struct pack_job job = {packed, tensor->data + (size_t)n_begin * tensor->row_bytes, tensor->row_bytes, k_begin};
    gw_pool_run(cpu->pool, pack_share, &job);
out:
    return rc;
}

/* Matrices [begin, end) of the donor's layer. */
static void share_matrices(struct layer *layer, const struct layer *donor, int begin, int end)
{
    for (int m = begin; m < end; m++) {
        layer->w[m] = donor->w[m];
        if (donor->memory[m]) layer->memory[m] = gw_shared_hold(donor->memory[m]);
    }
}

static float *load_vector(struct cpu *cpu, enum gw_tensor_role role, int layer, int begin, int count)
{
    const struct gw_gguf_tensor *tensor = gw_model_tensor(cpu->config.model, role, layer);
    if (!tensor || count == 0) return NULL;
    GW_ASSERT((uint64_t)(begin + count) <= tensor->shape[0]);
    float *vector = gw_alloc((size_t)count, sizeof(float));
    memcpy(vector, tensor->data + (size_t)begin * sizeof(float), (size_t)count * sizeof(float));
    return vector;
}

static gw_err load_layer(struct cpu *cpu, int number, struct layer *layer)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard;
    int d = cpu->d, dim = cpu->head_dim, group = cpu->group;
    int q0 = s->kv_begin * group * dim, qn = cpu->kv_heads * group * dim;
    int kv0 = s->kv_begin * dim, kvn = cpu->kv_heads * dim;
    int f0 = gw_ffn_atom_block(cpu->config.dims.ffn, cpu->config.dims.ffn_atoms, s->ffn_begin) * GW_BLOCK;
    layer->attn_norm = load_vector(cpu, GW_TENSOR_ATTN_NORM, number, 0, d);
    layer->ffn_norm = load_vector(cpu, GW_TENSOR_FFN_NORM, number, 0, d);
    layer->q_bias = load_vector(cpu, GW_TENSOR_Q_BIAS, number, q0, qn);
    layer->k_bias = load_vector(cpu, GW_TENSOR_K_BIAS, number, kv0, kvn);
    layer->v_bias = load_vector(cpu, GW_TENSOR_V_BIAS, number, kv0, kvn);
    const struct cpu *donor = cpu->config.donor ? of(cpu->config.donor) : NULL;
    const struct gw_shard *ds = donor ? &donor->config.shard : s;
    const struct layer *from = donor && number >= ds->layer_begin && number < ds->layer_end
                                   ? &donor->layers[number - ds->layer_begin]
                                   : NULL;
    bool same_heads = from && ds->kv_begin == s->kv_begin && ds->kv_end == s->kv_end;
    bool awaited = cpu->config.awaited && cpu->config.awaited[number];
    if (same_heads && !from->heads_awaited) {
        share_matrices(layer, from, Q, GATE);
    } else {
        layer->heads_awaited = awaited ? cpu->kv_heads : 0;
        TRY(load_matrix(cpu, GW_TENSOR_Q, number, q0, qn, 0, d, &layer->w[Q], &layer->memory[Q]));
        TRY(load_matrix(cpu, GW_TENSOR_K, number, kv0, kvn, 0, d, &layer->w[K], &layer->memory[K]));
        TRY(load_matrix(cpu, GW_TENSOR_V, number, kv0, kvn, 0, d, &layer->w[V], &layer->memory[V]));
        TRY(load_matrix(cpu, GW_TENSOR_ATTN_OUT, number, 0, d, q0, qn, &layer->w[OUT], &layer->memory[OUT]));
    }
    if (from && ds->ffn_begin == s->ffn_begin && ds->ffn_end == s->ffn_end && !from->atoms_awaited) {
        share_matrices(layer, from, GATE, MATRICES);
    } else {
        layer->atoms_awaited = awaited ? s->ffn_end - s->ffn_begin : 0;
        TRY(load_matrix(cpu, GW_TENSOR_GATE, number, f0, cpu->ffn, 0, d, &layer->w[GATE], &layer->memory[GATE]));
        TRY(load_matrix(cpu, GW_TENSOR_UP, number, f0, cpu->ffn, 0, d, &layer->w[UP], &layer->memory[UP]));
        TRY(load_matrix(cpu, GW_TENSOR_DOWN, number, 0, d, f0, cpu->ffn, &layer->w[DOWN], &layer->memory[DOWN]));
    }
    layer->kv_inherited = same_heads && from->kv_pages >= cpu->config.kv_pages;
    if (layer->kv_inherited) {
        layer->kv_pages = from->kv_pages;
        layer->kv = from->kv ? gw_shared_hold(from->kv) : NULL;
    } else if (cpu->kv_heads) {
        size_t page = (size_t)cpu->kv_heads * gw_page_halves(dim) * sizeof(uint16_t);
        layer->kv_pages = cpu->config.kv_pages;
        TRY(gw_shared_create(page * (size_t)layer->kv_pages, "the KV cache (see --kv-memory)", &layer->kv));
    }
out:
    return rc;
}

static void free_layer(struct layer *layer)
{
    free(layer->attn_norm);
    free(layer->ffn_norm);
    free(layer->q_bias);
    free(layer->k_bias);
    free(layer->v_bias);
    for (int m = 0; m < MATRICES; m++) gw_shared_release(layer->memory[m]);
    gw_shared_release(layer->kv);
}

static void act_init(struct act *act, int rows, int k)
{
    size_t n = (size_t)rows * (size_t)k, blocks = n / GW_BLOCK;
    act->x = gw_alloc(n, sizeof(float));
    act->view = (struct gw_act){
        .k = k,
        .x = act->x,
        .q = gw_alloc(n, 1),
        .scale = gw_alloc(blocks, sizeof(float)),
        .sum = gw_alloc(blocks, sizeof(float)),
        .isum = gw_alloc(blocks * 2, sizeof(int32_t)),
    };
}

static void act_close(struct act *act)
{
    free(act->x);
    free(act->view.q);
    free(act->view.scale);
    free(act->view.sum);
    free(act->view.isum);
}

static void partial_init(struct partial *partial, int atoms, int begin, int end, const int *block_ends)
{
    struct gw_tree_node nodes[GW_TREE_MAX_NODES];
    partial->atoms = atoms;
    partial->begin = begin;
    partial->end = end;
    partial->node_count = gw_tree_nodes(atoms, begin, end, nodes);
    gw_tree_program(atoms, begin, end, block_ends, partial->program);
}

static void init_partials(struct cpu *cpu)
{
    const struct gw_dims *dims = &cpu->config.dims;
    const struct gw_shard *s = &cpu->config.shard;
    int ends[GW_TREE_MAX_ATOMS];
    for (int h = s->kv_begin; h < s->kv_end; h++)
        ends[h - s->kv_begin] = (h + 1 - s->kv_begin) * cpu->group * cpu->head_dim / GW_BLOCK;
    partial_init(&cpu->attn_sum, dims->kv_heads, s->kv_begin, s->kv_end, ends);
    int first = gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, s->ffn_begin);
    for (int a = s->ffn_begin; a < s->ffn_end; a++)
        ends[a - s->ffn_begin] = gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, a + 1) - first;
    partial_init(&cpu->ffn_sum, dims->ffn_atoms, s->ffn_begin, s->ffn_end, ends);
}

static void init_scratch(struct cpu *cpu)
{
    size_t rows = (size_t)cpu->config.max_rows, d = (size_t)cpu->d;
    size_t heads_width = (size_t)(cpu->kv_heads * cpu->group * cpu->head_dim);
    size_t kv_width = (size_t)(cpu->kv_heads * cpu->head_dim);
    size_t ffn = (size_t)cpu->ffn;
    int nodes = cpu->attn_sum.node_count > cpu->ffn_sum.node_count ? cpu->attn_sum.node_count : cpu->ffn_sum.node_count;
    cpu->row_seq = gw_alloc(rows, sizeof(int32_t));
    cpu->hidden = gw_alloc(rows * d, sizeof(float));
    cpu->query = gw_alloc(rows * heads_width, sizeof(float));
    cpu->key = gw_alloc(rows * kv_width, sizeof(float));
    cpu->value = gw_alloc(rows * kv_width, sizeof(float));
    cpu->gate = gw_alloc(rows * ffn, sizeof(float));
    cpu->up = gw_alloc(rows * ffn, sizeof(float));
    cpu->partials = gw_alloc((size_t)nodes * rows * d, sizeof(float));
    act_init(&cpu->normed, (int)rows, cpu->d);
    act_init(&cpu->attended, (int)rows, (int)heads_width);
    act_init(&cpu->activated, (int)rows, cpu->ffn);
    cpu->max_pages = (cpu->config.max_context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS + 1;
    cpu->page_scratch = gw_alloc((size_t)gw_pool_threads(cpu->pool) * (size_t)cpu->max_pages,
                                 sizeof(*cpu->page_scratch));
}

static void cpu_destroy(struct gw_backend *backend)
{
    struct cpu *cpu = of(backend);
    if (!cpu) return;
    int layers = cpu->config.shard.layer_end - cpu->config.shard.layer_begin;
    for (int i = 0; cpu->layers && i < layers; i++) free_layer(&cpu->layers[i]);
    free(cpu->layers);
    free(cpu->output_norm);
    gw_shared_release(cpu->output_memory);
    free(cpu->inv_freq);
    free(cpu->cosine);
    free(cpu->sine);
    free(cpu->row_seq);
    free(cpu->items);
    free(cpu->page_scratch);
    float *scratch[] = {cpu->hidden, cpu->query, cpu->key, cpu->value, cpu->gate, cpu->up, cpu->partials, cpu->logits};
    for (size_t i = 0; i < sizeof scratch / sizeof *scratch; i++) free(scratch[i]);
    act_close(&cpu->normed);
    act_close(&cpu->attended);
    act_close(&cpu->activated);
    free(cpu);
}

/* ---- a step ---------------------------------------------------------------------------------------------------- */

/* Tabulates cos and sin up to `positions`; grows by doubling, so that a short batch does not pay for a long context. */
static void grow_rope(struct cpu *cpu, int positions)
{
    if (positions <= cpu->rope_positions) return;
    int grown = cpu->rope_positions ? cpu->rope_positions : 256;
    while (grown < positions) grown *= 2;
    size_t count = (size_t)grown * (size_t)cpu->rope_pairs;
    cpu->cosine = gw_realloc(cpu->cosine, count, sizeof(float));
    cpu->sine = gw_realloc(cpu->sine, count, sizeof(float));
    for (int pos = cpu->rope_positions; pos < grown; pos++)
        for (int pair = 0; pair < cpu->rope_pairs; pair++) {
            double sine, cosine;
            gw_sincos_f64((double)pos * cpu->inv_freq[pair], &sine, &cosine);
            size_t at = (size_t)pos * (size_t)cpu->rope_pairs + (size_t)pair;
            cpu->cosine[at] = (float)(cosine * cpu->rope_factor);
            cpu->sine[at] = (float)(sine * cpu->rope_factor);
        }
    cpu->rope_positions = grown;
}

static void add_items(struct cpu *cpu, int seq, int rows)
{
    for (int row = 0; row < rows; row += ATTENTION_ROWS)
        for (int head = 0; head < cpu->kv_heads; head++) {
            if (cpu->item_count == cpu->item_capacity) {
                cpu->item_capacity = cpu->item_capacity ? 2 * cpu->item_capacity : 256;
                cpu->items = gw_realloc(cpu->items, (size_t)cpu->item_capacity, sizeof *cpu->items);
            }
            int count = rows - row < ATTENTION_ROWS ? rows - row : ATTENTION_ROWS;
            cpu->items[cpu->item_count++] = (struct attention_item){seq, head, row, count};
        }
}

static gw_err cpu_step_begin(struct gw_backend *backend, const struct gw_step *step)
{
    struct cpu *cpu = of(backend);
    GW_ASSERT(step->rows > 0 && step->rows <= cpu->config.max_rows);
    cpu->step = step;
    cpu->item_count = 0;
    int positions = 0;
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *seq = &step->seqs[i];
        int end = seq->pos0 + seq->rows;
        GW_ASSERT(end <= cpu->config.max_context);
        for (int p = 0; p < (end + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS; p++) {
            int page = step->pages[seq->page0 + p];
            GW_ASSERT(page >= 0 && page < cpu->config.kv_pages);
        }
        for (int row = 0; row < seq->rows; row++) cpu->row_seq[seq->row0 + row] = i;
        add_items(cpu, i, seq->rows);
        if (end > positions) positions = end;
    }
    grow_rope(cpu, positions);
    return GW_OK;
}

static void embed_share(void *arg, int thread, int threads)
{
    struct cpu *cpu = arg;
    int begin, end;
    gw_split(cpu->step->rows, threads, thread, &begin, &end);
    for (int row = begin; row < end; row++) {
        const uint8_t *src = cpu->embedding->data + (size_t)cpu->step->tokens[row] * cpu->embedding->row_bytes;
        cpu->embedding->type->to_f32(src, cpu->hidden + (size_t)row * (size_t)cpu->d, (size_t)cpu->d);
    }
}

static gw_err cpu_embed(struct gw_backend *backend)
{
    struct cpu *cpu = of(backend);
    for (int row = 0; row < cpu->step->rows; row++)
        if (cpu->step->tokens[row] < 0 || cpu->step->tokens[row] >= cpu->config.dims.vocab)
            return gw_fail(GW_ERR_INPUT, "token id %d is outside the model's vocabulary of %d", cpu->step->tokens[row],
                           cpu->config.dims.vocab);
    gw_pool_run(cpu->pool, embed_share, cpu);
    return GW_OK;
}

static gw_err cpu_hidden_import(struct gw_backend *backend, const float *rows)
{
    struct cpu *cpu = of(backend);
    memcpy(cpu->hidden, rows, (size_t)cpu->step->rows * (size_t)cpu->d * sizeof(float));
    return GW_OK;
}

static gw_err cpu_hidden_export(struct gw_backend *backend, float *rows)
{
    struct cpu *cpu = of(backend);
    memcpy(rows, cpu->hidden, (size_t)cpu->step->rows * (size_t)cpu->d * sizeof(float));
    return GW_OK;
}

static bool is_quantized(const struct gw_packed *packed)
{
    return packed->pack >= GW_PACK_U4;
}

/* Rows [begin, end) of `hidden`, normalised, into cpu->normed. */
static void norm_rows(struct cpu *cpu, const float *weight, const int32_t *picked, int begin, int end, bool quantize)
{
    size_t d = (size_t)cpu->d;
    for (int row = begin; row < end; row++) {
        const float *from = cpu->hidden + (size_t)(picked ? picked[row] : row) * d;
        cpu->kernels->rmsnorm(from, weight, cpu->d, cpu->norm_eps, cpu->normed.x + (size_t)row * d);
    }
    if (quantize && begin < end) cpu->kernels->quantize(&cpu->normed.view, begin, end);
}

/* A product this thread shares in: several matrices over the same activations, their panels counted through. */
struct product {
    const struct gw_packed *w;
    float *y;
};

static const struct gw_atom *whole(const struct gw_packed *w, struct gw_atom *atom)
{
    *atom = (struct gw_atom){.block_end = (w->k + GW_BLOCK - 1) / GW_BLOCK, .merges = 0, .node = 0};
    return atom;
}

static void multiply_share(struct cpu *cpu, const struct product *products, int count, const struct act *act, int rows,
                           int thread, int threads)
{
    int total = 0, begin, end;
    for (int i = 0; i < count; i++) total += products[i].w->panels;
    gw_split(total, threads, thread, &begin, &end);
    for (int i = 0, first = 0; i < count; first += products[i].w->panels, i++) {
        const struct gw_packed *w = products[i].w;
        int from = begin > first ? begin - first : 0;
        int to = end - first < w->panels ? end - first : w->panels;
        if (from >= to) continue;
        struct gw_atom atom;
        struct gw_gemm gemm = {.w = w,
                               .act = &act->view,
                               .rows = rows,
                               .atoms = whole(w, &atom),
                               .atom_count = 1,
                               .y = products[i].y,
                               .y_row_stride = (size_t)w->n,
                               .y_node_stride = (size_t)w->n * (size_t)rows};
        cpu->kernels->gemm[w->pack](&gemm, from, to);
    }
}

/* The partial sums over this shard's atoms: cpu->partials[node][row][d]. */
static void multiply_partial(struct cpu *cpu, const struct gw_packed *w, const struct partial *partial,
                             const struct act *act, int thread, int threads)
{
    int begin, end;
    gw_split(w->panels, threads, thread, &begin, &end);
    if (begin >= end) return;
    struct gw_gemm gemm = {.w = w,
                           .act = &act->view,
                           .rows = cpu->step->rows,
                           .atoms = partial->program,
                           .atom_count = partial->end - partial->begin,
                           .y = cpu->partials,
                           .y_row_stride = (size_t)cpu->d,
                           .y_node_stride = (size_t)cpu->d * (size_t)cpu->step->rows};
    cpu->kernels->gemm[w->pack](&gemm, begin, end);
}

static uint16_t *kv_page(const struct cpu *cpu, int layer, int page, int head)
{
    uint16_t *pages = cpu->layers[layer - cpu->config.shard.layer_begin].kv->data;
    return pages + ((size_t)page * (size_t)cpu->kv_heads + (size_t)head) * gw_page_halves(cpu->head_dim);
}

struct half_layer {
    struct cpu *cpu;
    const struct layer *layer;
    int number;
};

/* Bias, rotary embedding and KV store of one row. */
static void finish_qkv_row(struct cpu *cpu, const struct half_layer *half, int row)
{
    const struct gw_kernels *kernels = cpu->kernels;
    const struct layer *layer = half->layer;
    const struct gw_step_seq *seq = &cpu->step->seqs[cpu->row_seq[row]];
    int pos = seq->pos0 + row - seq->row0, dim = cpu->head_dim;
    int heads = cpu->kv_heads * cpu->group;
    float *q = cpu->query + (size_t)row * (size_t)(heads * dim);
    float *k = cpu->key + (size_t)row * (size_t)(cpu->kv_heads * dim);
    float *v = cpu->value + (size_t)row * (size_t)(cpu->kv_heads * dim);
    if (layer->q_bias) kernels->add(q, layer->q_bias, heads * dim);
    if (layer->k_bias) kernels->add(k, layer->k_bias, cpu->kv_heads * dim);
    if (layer->v_bias) kernels->add(v, layer->v_bias, cpu->kv_heads * dim);
    const float *cosine = cpu->cosine + (size_t)pos * (size_t)cpu->rope_pairs;
    const float *sine = cpu->sine + (size_t)pos * (size_t)cpu->rope_pairs;
    kernels->rope(q, heads, dim, cpu->rope_pairs, cosine, sine, cpu->rope_style);
    kernels->rope(k, cpu->kv_heads, dim, cpu->rope_pairs, cosine, sine, cpu->rope_style);
    int page = cpu->step->pages[seq->page0 + pos / GW_PAGE_TOKENS];
    for (int head = 0; head < cpu->kv_heads; head++)
        kernels->kv_store(kv_page(cpu, half->number, page, head), dim, pos % GW_PAGE_TOKENS, k + head * dim,
                          v + head * dim);
}

static void attend(struct cpu *cpu, const struct half_layer *half, const struct attention_item *item, int thread)
{
    const struct gw_step_seq *seq = &cpu->step->seqs[item->seq];
    const uint16_t **pages = cpu->page_scratch + (size_t)thread * (size_t)cpu->max_pages;
    int pos0 = seq->pos0 + item->row;
    int page_count = (pos0 + item->rows + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    for (int p = 0; p < page_count; p++)
        pages[p] = kv_page(cpu, half->number, cpu->step->pages[seq->page0 + p], item->head);
    size_t width = (size_t)(cpu->kv_heads * cpu->group * cpu->head_dim);
    size_t at = (size_t)(seq->row0 + item->row) * width + (size_t)(item->head * cpu->group * cpu->head_dim);
    struct gw_attention attention = {.head_dim = cpu->head_dim,
                                     .group = cpu->group,
                                     .rows = item->rows,
                                     .pos0 = pos0,
                                     .scale = 1.0f / sqrtf((float)cpu->head_dim),
                                     .pages = pages,
                                     .q = cpu->query + at,
                                     .q_stride = width,
                                     .out = cpu->attended.x + at,
                                     .out_stride = width};
    cpu->kernels->attention(&attention);
}

static void attention_share(void *arg, int thread, int threads)
{
    struct half_layer *half = arg;
    struct cpu *cpu = half->cpu;
    const struct layer *layer = half->layer;
    int begin, end;
    gw_split(cpu->step->rows, threads, thread, &begin, &end);
    norm_rows(cpu, layer->attn_norm, NULL, begin, end,
              is_quantized(&layer->w[Q]) || is_quantized(&layer->w[K]) || is_quantized(&layer->w[V]));
    gw_pool_sync(cpu->pool);
    const struct product qkv[] = {{&layer->w[Q], cpu->query}, {&layer->w[K], cpu->key}, {&layer->w[V], cpu->value}};
    multiply_share(cpu, qkv, 3, &cpu->normed, cpu->step->rows, thread, threads);
    gw_pool_sync(cpu->pool);
    for (int row = begin; row < end; row++) finish_qkv_row(cpu, half, row);
    gw_pool_sync(cpu->pool);
    for (int i; (i = atomic_fetch_add(&cpu->next_item, 1)) < cpu->item_count;)
        attend(cpu, half, &cpu->items[i], thread);
    gw_pool_sync(cpu->pool);
    if (is_quantized(&layer->w[OUT])) {
        if (begin < end) cpu->kernels->quantize(&cpu->attended.view, begin, end);
        gw_pool_sync(cpu->pool);
    }
    multiply_partial(cpu, &layer->w[OUT], &cpu->attn_sum, &cpu->attended, thread, threads);
}

static gw_err cpu_attention(struct gw_backend *backend, int layer)
{
    struct cpu *cpu = of(backend);
    cpu->last_sum = &cpu->attn_sum;
    if (cpu->kv_heads == 0) return GW_OK; /* this shard holds FFN atoms only */
    struct half_layer half = {cpu, &cpu->layers[layer - cpu->config.shard.layer_begin], layer};
    atomic_store(&cpu->next_item, 0);
    gw_pool_run(cpu->pool, attention_share, &half);
    return GW_OK;
}

static void ffn_share(void *arg, int thread, int threads)
{
    struct half_layer *half = arg;
    struct cpu *cpu = half->cpu;
    const struct layer *layer = half->layer;
    int begin, end;
    gw_split(cpu->step->rows, threads, thread, &begin, &end);
    norm_rows(cpu, layer->ffn_norm, NULL, begin, end, is_quantized(&layer->w[GATE]) || is_quantized(&layer->w[UP]));
    gw_pool_sync(cpu->pool);
    const struct product gate_up[] = {{&layer->w[GATE], cpu->gate}, {&layer->w[UP], cpu->up}};
    multiply_share(cpu, gate_up, 2, &cpu->normed, cpu->step->rows, thread, threads);
    gw_pool_sync(cpu->pool);
    for (int row = begin; row < end; row++) {
        size_t at = (size_t)row * (size_t)cpu->ffn;
        cpu->kernels->swiglu(cpu->gate + at, cpu->up + at, cpu->ffn, cpu->activated.x + at);
    }
    if (is_quantized(&layer->w[DOWN]) && begin < end) cpu->kernels->quantize(&cpu->activated.view, begin, end);
    gw_pool_sync(cpu->pool);
    multiply_partial(cpu, &layer->w[DOWN], &cpu->ffn_sum, &cpu->activated, thread, threads);
}

static gw_err cpu_ffn(struct gw_backend *backend, int layer)
{
    struct cpu *cpu = of(backend);
    cpu->last_sum = &cpu->ffn_sum;
    struct half_layer half = {cpu, &cpu->layers[layer - cpu->config.shard.layer_begin], layer};
    gw_pool_run(cpu->pool, ffn_share, &half);
    return GW_OK;
}

static gw_err cpu_residual_add(struct gw_backend *backend, const float *sum, int row_begin, int rows)
{
    struct cpu *cpu = of(backend);
    cpu->kernels->add(cpu->hidden + (size_t)row_begin * (size_t)cpu->d, sum, rows * cpu->d);
    return GW_OK;
}

static gw_err cpu_residual_add_own(struct gw_backend *backend)
{
    struct cpu *cpu = of(backend);
    GW_ASSERT(cpu->last_sum->begin == 0 && cpu->last_sum->end == cpu->last_sum->atoms);
    return cpu_residual_add(backend, cpu->partials, 0, cpu->step->rows);
}

static gw_err cpu_partial_map(struct gw_backend *backend, const float **nodes)
{
    *nodes = of(backend)->partials;
    return GW_OK;
}

struct logits_job {
    struct cpu *cpu;
    const int32_t *rows;
    int count;
};

static void logits_share(void *arg, int thread, int threads)
{
    struct logits_job *job = arg;
    struct cpu *cpu = job->cpu;
    int begin, end;
    gw_split(job->count, threads, thread, &begin, &end);
    norm_rows(cpu, cpu->output_norm, job->rows, begin, end, is_quantized(&cpu->output));
    gw_pool_sync(cpu->pool);
    const struct product product = {&cpu->output, cpu->logits};
    multiply_share(cpu, &product, 1, &cpu->normed, job->count, thread, threads);
}

static gw_err cpu_logits(struct gw_backend *backend, const int32_t *rows, int count, float **logits)
{
    struct cpu *cpu = of(backend);
    size_t need = (size_t)count * (size_t)cpu->vocab;
    if (need > cpu->logits_count) {
        free(cpu->logits);
        cpu->logits = gw_alloc(need, sizeof(float));
        cpu->logits_count = need;
    }
    struct logits_job job = {cpu, rows, count};
    if (count > 0 && cpu->vocab > 0) gw_pool_run(cpu->pool, logits_share, &job);
    *logits = cpu->logits;
    return GW_OK;
}

/* ---- KV pages in canonical form -------------------------------------------------------------------------------- */

/* The key of token t, dim i sits at [t / 16][i][t % 16] of a page (kernels.h). */
static size_t key_at(int head_dim, int token, int i)
{
    return ((size_t)(token / GW_PANEL) * (size_t)head_dim + (size_t)i) * GW_PANEL + (size_t)(token % GW_PANEL);
}

static gw_err cpu_kv_export(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end,
                            uint16_t *canonical)
{
    struct cpu *cpu = of(backend);
    int dim = cpu->head_dim, heads = kv_end - kv_begin, first = kv_begin - cpu->config.shard.kv_begin;
    size_t plane = (size_t)GW_PAGE_TOKENS * (size_t)dim; /* one head's keys, or values */
    GW_ASSERT(first >= 0 && first + heads <= cpu->kv_heads);
    for (int head = 0; head < heads; head++) {
        const uint16_t *from = kv_page(cpu, layer, page, first + head);
        uint16_t *keys = canonical + (size_t)head * plane;
        for (int token = 0; token < GW_PAGE_TOKENS; token++)
            for (int i = 0; i < dim; i++) keys[token * dim + i] = from[key_at(dim, token, i)];
        memcpy(canonical + (size_t)(heads + head) * plane, from + plane, plane * sizeof(uint16_t));
    }
    return GW_OK;
}

static gw_err cpu_kv_import(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end,
                            const uint16_t *canonical)
{
    struct cpu *cpu = of(backend);
    int dim = cpu->head_dim, heads = kv_end - kv_begin, first = kv_begin - cpu->config.shard.kv_begin;
    size_t plane = (size_t)GW_PAGE_TOKENS * (size_t)dim;
    GW_ASSERT(first >= 0 && first + heads <= cpu->kv_heads && page >= 0 && page < cpu->config.kv_pages);
    for (int head = 0; head < heads; head++) {
        uint16_t *to = kv_page(cpu, layer, page, first + head);
        const uint16_t *keys = canonical + (size_t)head * plane;
        for (int token = 0; token < GW_PAGE_TOKENS; token++)
            for (int i = 0; i < dim; i++) to[key_at(dim, token, i)] = keys[token * dim + i];
        memcpy(to + plane, canonical + (size_t)(heads + head) * plane, plane * sizeof(uint16_t));
    }
    return GW_OK;
}

static bool cpu_kv_inherited(struct gw_backend *backend, int layer)
{
    struct cpu *cpu = of(backend);
    return cpu->layers[layer - cpu->config.shard.layer_begin].kv_inherited;
}

/* ---- weights on the move --------------------------------------------------------------------------------------- */

/* A block of one packed matrix of this shard. */
struct block {
    const struct gw_packed *packed;
    int n0, k0, n, k;
};

/* The blocks of a slice, in the order in which they travel; returns their number. */
static int blocks_of(struct cpu *cpu, const struct gw_weight_slice *slice, struct block blocks[MATRICES])
{
    const struct gw_dims *dims = &cpu->config.dims;
    const struct gw_shard *s = &cpu->config.shard;
    int d = cpu->d, dim = cpu->head_dim, wide = cpu->group * dim, count = 0;
    if (slice->layer == dims->layers) {
        blocks[0] = (struct block){&cpu->output, slice->vocab_begin - s->vocab_begin, 0,
                                   slice->vocab_end - slice->vocab_begin, d};
        return 1;
    }
    const struct gw_packed *w = cpu->layers[slice->layer - s->layer_begin].w;
    int h0 = slice->kv_begin - s->kv_begin, hn = slice->kv_end - slice->kv_begin;
    if (hn > 0) {
        blocks[count++] = (struct block){&w[Q], h0 * wide, 0, hn * wide, d};
        blocks[count++] = (struct block){&w[K], h0 * dim, 0, hn * dim, d};
        blocks[count++] = (struct block){&w[V], h0 * dim, 0, hn * dim, d};
        blocks[count++] = (struct block){&w[OUT], 0, h0 * wide, d, hn * wide};
    }
    if (slice->ffn_end > slice->ffn_begin) {
        int first = gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, s->ffn_begin);
        int f0 = (gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, slice->ffn_begin) - first) * GW_BLOCK;
        int f1 = (gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, slice->ffn_end) - first) * GW_BLOCK;
        blocks[count++] = (struct block){&w[GATE], f0, 0, f1 - f0, d};
        blocks[count++] = (struct block){&w[UP], f0, 0, f1 - f0, d};
        blocks[count++] = (struct block){&w[DOWN], 0, f0, d, f1 - f0};
    }
    return count;
}

/* Whole panels and blocks only, but for the matrix's end. */
static gw_err check_cut(const struct block *b, int layer)
{
    int n1 = b->n0 + b->n, k1 = b->k0 + b->k;
    if (gw_packed_can_cut(b->packed, b->n0, b->k0) &&
        gw_packed_can_cut(b->packed, n1 == b->packed->n ? 0 : n1, k1 == b->packed->k ? 0 : k1))
        return GW_OK;
    return gw_fail(GW_ERR_UNSUPPORTED, "layer %d cannot be cut at outputs %d to %d, inputs %d to %d", layer, b->n0, n1,
                   b->k0, k1);
}

static gw_err cpu_weights_export(struct gw_backend *backend, const struct gw_weight_slice *slice, struct gw_buf *out)
{
    gw_err rc = GW_OK;
    struct block blocks[MATRICES];
    int count = blocks_of(of(backend), slice, blocks);
    for (int i = 0; i < count; i++) {
        const struct block *b = &blocks[i];
        struct gw_packed part;
        TRY(check_cut(b, slice->layer));
        TRY(gw_packed_init(&part, b->packed->type, b->n, b->k));
        size_t bytes = gw_packed_bytes(&part);
        gw_buf_reserve(out, bytes);
        part.data = out->data + out->bytes;
        gw_packed_copy(&part, 0, 0, b->packed, b->n0, b->k0, b->n, b->k);
        out->bytes += bytes;
    }
out:
    return rc;
}

static gw_err cpu_weights_import(struct gw_backend *backend, const struct gw_weight_slice *slice, const uint8_t *data,
                                 size_t bytes)
{
    gw_err rc = GW_OK;
    struct block blocks[MATRICES];
    int count = blocks_of(of(backend), slice, blocks);
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        const struct block *b = &blocks[i];
        struct gw_packed part;
        TRY(check_cut(b, slice->layer));
        TRY(gw_packed_init(&part, b->packed->type, b->n, b->k));
        if (gw_packed_bytes(&part) > bytes - at) FAIL(GW_ERR_PEER, "weights of layer %d came short", slice->layer);
        part.data = (uint8_t *)(uintptr_t)(data + at); /* read from only */
        gw_packed_copy(b->packed, b->n0, b->k0, &part, 0, 0, b->n, b->k);
        at += gw_packed_bytes(&part);
    }
    if (slice->layer == of(backend)->config.dims.layers) {
        if (of(backend)->rows_awaited) of(backend)->rows_awaited -= slice->vocab_end - slice->vocab_begin;
    } else {
        struct layer *layer = &of(backend)->layers[slice->layer - of(backend)->config.shard.layer_begin];
        /* what turned out to be shared comes all the same, and is the same */
        if (layer->heads_awaited) layer->heads_awaited -= slice->kv_end - slice->kv_begin;
        if (layer->atoms_awaited) layer->atoms_awaited -= slice->ffn_end - slice->ffn_begin;
    }
    if (at != bytes) FAIL(GW_ERR_PEER, "weights of layer %d came with %zu bytes too many", slice->layer, bytes - at);
out:
    return rc;
}

static const struct gw_backend_ops cpu_ops = {
    .name = "cpu",
    .destroy = cpu_destroy,
    .step_begin = cpu_step_begin,
    .embed = cpu_embed,
    .hidden_import = cpu_hidden_import,
    .hidden_export = cpu_hidden_export,
    .attention = cpu_attention,
    .ffn = cpu_ffn,
    .residual_add_own = cpu_residual_add_own,
    .partial_map = cpu_partial_map,
    .residual_add = cpu_residual_add,
    .logits = cpu_logits,
    .kv_export = cpu_kv_export,
    .kv_import = cpu_kv_import,
    .kv_inherited = cpu_kv_inherited,
    .weights_export = cpu_weights_export,
    .weights_import = cpu_weights_import,
};

static void init_rope(struct cpu *cpu)
{
    const struct gw_rope *rope = &gw_model_info(cpu->config.model)->rope;
    cpu->rope_style = rope->style;
    cpu->rope_pairs = rope->dims / 2;
    cpu->inv_freq = gw_alloc((size_t)cpu->rope_pairs, sizeof(double));
    gw_rope_inv_freq(cpu->config.model, cpu->inv_freq, &cpu->rope_factor);
}

static gw_err load_ends(struct cpu *cpu)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard;
    if (s->first) cpu->embedding = gw_model_tensor(cpu->config.model, GW_TENSOR_EMBED, 0);
    if (s->last) {
        cpu->output_norm = load_vector(cpu, GW_TENSOR_OUTPUT_NORM, 0, 0, cpu->d);
        const struct cpu *donor = cpu->config.donor ? of(cpu->config.donor) : NULL;
        const struct gw_shard *ds = donor ? &donor->config.shard : s;
        if (donor && ds->last && ds->vocab_begin == s->vocab_begin && ds->vocab_end == s->vocab_end &&
            !donor->rows_awaited) {
            cpu->output = donor->output;
            if (donor->output_memory) cpu->output_memory = gw_shared_hold(donor->output_memory);
        } else {
            cpu->rows_awaited = cpu->config.awaited && cpu->config.awaited[cpu->config.dims.layers] ? cpu->vocab : 0;
            TRY(load_matrix(cpu, GW_TENSOR_OUTPUT, 0, s->vocab_begin, cpu->vocab, 0, cpu->d, &cpu->output,
                            &cpu->output_memory));
        }
    }
out:
    return rc;
}

gw_err gw_backend_cpu_create(const struct gw_backend_config *config, const struct gw_kernels *kernels,
                             struct gw_pool *pool, struct gw_backend **backend)
{
    gw_err rc = GW_OK;
    const struct gw_dims *dims = &config->dims;
    const struct gw_shard *s = &config->shard;
    struct cpu *cpu = gw_alloc(1, sizeof *cpu);
    cpu->base.ops = &cpu_ops;
    cpu->config = *config;
    cpu->kernels = kernels;
    cpu->pool = pool;
    cpu->d = dims->d_model;
    cpu->head_dim = dims->head_dim;
    cpu->group = dims->heads / dims->kv_heads;
    cpu->kv_heads = s->kv_end - s->kv_begin;
    cpu->ffn = (gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, s->ffn_end) -
                gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, s->ffn_begin)) *
               GW_BLOCK;
    cpu->vocab = s->vocab_end - s->vocab_begin;
    cpu->norm_eps = gw_model_info(config->model)->norm_eps;
    cpu->layers = gw_alloc((size_t)(s->layer_end - s->layer_begin), sizeof *cpu->layers);
    init_rope(cpu);
    init_partials(cpu);
    init_scratch(cpu);
    TRY(load_ends(cpu));
    for (int layer = s->layer_begin; layer < s->layer_end; layer++) {
        TRY(load_layer(cpu, layer, &cpu->layers[layer - s->layer_begin]));
        if (config->tick) config->tick(config->tick_context);
    }
    cpu->config.donor = NULL; /* it may be gone by the time of the next call */
    cpu->config.awaited = NULL;
    *backend = &cpu->base;
    cpu = NULL;
out:
    if (cpu) cpu_destroy(&cpu->base);
    return rc;
}
