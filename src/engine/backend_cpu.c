/* The CPU backend: packed weights, KV pages and activations in host memory, kernels from one table, the rank's threads.
 *
 * This file computes steps; cpu_memory.c owns weights and KV pages, cpu_rows.c shares out rows. Half layers are queued, and as many as take a
 * while are computed in one dispatch of the thread pool: threads that have rows of their own go through all of them and wait for each
 * other at its end. How rows, panels and attention items are shared out does not change a bit of a result (kernels/kernels.h). Memory of the
 * step's scratch is allocated for max_rows once, so a decode step allocates nothing.
 */
#include "base/clock.h"
#include "engine/cpu.h"
#include "kernels/elementary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    TILE_ROWS =
        128, /* rows whose gate and up stay in the first-level cache until they are activated; a multiple of GW_ACT_ROWS */
    NORM_ROWS = 8,          /* normalised rows that stay in the first-level cache until they are quantized */
    STREAM_BYTES = 1 << 20, /* of logits that a second-level cache does not hold */
};

/* How long a dispatch of the pool may take: between dispatches the caller looks after its peers. */
static const double dispatch_s = 0.02;

/* Room for `count` of `size` bytes in the step's scratch; NULL while the scratch is being measured. */
static void *take(struct cpu *cpu, size_t count, size_t size)
{
    uint8_t *room = cpu->scratch ? cpu->scratch + cpu->scratch_bytes : NULL;
    cpu->scratch_bytes += gw_round_up(count * size, 64);
    return room;
}

static void act_init(struct cpu *cpu, struct act *act, int rows, int k)
{
    act->view = (struct gw_act){.k = k, .blocks = take(cpu, gw_act_bytes(rows, k), 1)};
    act->rows = rows;
}

/* Quantized matrices read int8 alone: the float form is kept only where another kind of matrix asks for it. */
static void act_keep_floats(struct act *act)
{
    if (!act->x) act->view.x = act->x = gw_alloc_lines((size_t)act->rows * (size_t)act->view.k, sizeof(float));
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

/* Of a thread, for products with any of the weights; 0 with kernels that need none. */
static size_t most_gemm_scratch(const struct cpu *cpu)
{
    size_t most = gw_gemm_scratch_bytes(cpu->kernels, &cpu->output);
    for (int l = 0; l < cpu->config.shard.layer_end - cpu->config.shard.layer_begin; l++)
        for (int i = 0; i < MATRICES; i++) {
            size_t bytes = gw_gemm_scratch_bytes(cpu->kernels, &cpu->layers[l].w[i]);
            most = bytes > most ? bytes : most;
        }
    return gw_round_up(most, 64);
}

static void place_scratch(struct cpu *cpu)
{
    const size_t rows = (size_t)cpu->config.max_rows, d = (size_t)cpu->d, threads = (size_t)gw_pool_threads(cpu->pool);
    const size_t heads_width = (size_t)(cpu->kv_heads * cpu->group * cpu->head_dim);
    const size_t kv_width = (size_t)(cpu->kv_heads * cpu->head_dim);
    int nodes = cpu->attn_sum.node_count > cpu->ffn_sum.node_count ? cpu->attn_sum.node_count : cpu->ffn_sum.node_count;
    cpu->scratch_bytes = 0;
    cpu->row_seq = take(cpu, rows, sizeof(int32_t));
    cpu->hidden = take(cpu, rows * d, sizeof(float));
    cpu->query = take(cpu, rows * heads_width, sizeof(float));
    cpu->key = take(cpu, rows * kv_width, sizeof(float));
    cpu->value = take(cpu, rows * kv_width, sizeof(float));
    cpu->norm_tiles = take(cpu, threads * 2 * NORM_ROWS * d, sizeof(float));
    cpu->tiles = take(cpu, threads * 2 * TILE_ROWS * GW_BLOCK, sizeof(float));
    cpu->partials[0] = cpu->partials[1] = cpu->own_partials = take(cpu, (size_t)nodes * rows * d, sizeof(float));
    act_init(cpu, &cpu->normed, (int)rows, cpu->d);
    act_init(cpu, &cpu->attended, (int)rows, (int)heads_width);
    cpu->attended.view.x = cpu->query; /* attention overwrites its queries */
    act_init(cpu, &cpu->activated, (int)rows, cpu->ffn);
    for (int p = 0; p < GW_STEP_PARTS; p++) cpu->parts[p].warm = take(cpu, threads, sizeof *cpu->parts[p].warm);
    cpu->page_scratch = take(cpu, threads * ATTENTION_ROWS * (size_t)cpu->max_pages, sizeof(*cpu->page_scratch));
    cpu->gemm_scratch = take(cpu, threads, cpu->gemm_scratch_bytes);
}

/* In one piece, so that it lies in huge pages: each array for itself would be too small. The weights are known by now. */
static void init_scratch(struct cpu *cpu)
{
    cpu->gemm_scratch_bytes = most_gemm_scratch(cpu);
    cpu->max_pages = (cpu->config.max_context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS + 1;
    cpu->max_pages = (cpu->max_pages + 7) / 8 * 8; /* cache lines of one thread each */
    place_scratch(cpu);
    cpu->scratch = gw_alloc_lines(cpu->scratch_bytes, 1);
    place_scratch(cpu);
    cpu->own_value = cpu->own_partials;
    cpu->own_sum = gw_tree_whole(&cpu->own_value);
    size_t halves = 2 * (size_t)(cpu->config.shard.layer_end - cpu->config.shard.layer_begin);
    cpu->queue = gw_alloc(halves, sizeof *cpu->queue);
    cpu->next_item = gw_alloc(halves, sizeof *cpu->next_item);
    gw_cpu_rows_init(cpu);
}

static void cpu_destroy(struct gw_backend *backend)
{
    struct cpu *cpu = of(backend);
    if (!cpu) return;
    gw_cpu_unload(cpu);
    free(cpu->inv_freq);
    free(cpu->cosine);
    free(cpu->sine);
    free(cpu->embedding_row);
    free(cpu->queue);
    free(cpu->next_item);
    gw_cpu_rows_close(cpu);
    free(cpu->own_logits);
    free(cpu->normed.x);
    free(cpu->activated.x);
    free(cpu->scratch);
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

static gw_err cpu_step_begin(struct gw_backend *backend, const struct gw_step *step)
{
    struct cpu *cpu = of(backend);
    GW_ASSERT(step->rows > 0 && step->rows <= cpu->config.max_rows);
    cpu->step = step;
    cpu->queued = 0;
    for (int p = 0; p < gw_step_parts(step); p++) {
        struct row_part *part = &cpu->parts[p];
        gw_step_part(step, p, &part->row_begin, &part->row_end);
        part->pending = NULL;
        for (int t = 0; t < gw_pool_threads(cpu->pool); t++) part->warm[t] = (struct gw_warm){0};
    }
    int positions = 0, rows = 0, pages = 0;
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *seq = &step->seqs[i];
        int end = seq->pos0 + seq->rows;
        GW_ASSERT(end <= cpu->config.max_context && seq->row0 == rows);
        rows += seq->rows;
        for (int p = 0; p < (end + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS; p++) {
            int page = step->pages[seq->page0 + p];
            GW_ASSERT(page >= 0 && page < cpu->config.kv_pages);
            if (page >= pages) pages = page + 1;
        }
        for (int row = 0; row < seq->rows; row++) cpu->row_seq[seq->row0 + row] = i;
        if (end > positions) positions = end;
    }
    gw_cpu_back_memory(cpu, pages, step->rows);
    gw_cpu_share_rows(cpu, step);
    grow_rope(cpu, positions);
    return GW_OK;
}

/* Rows come by read(2): a table of which every row is used now and then would be resident as a whole, and is not worth it. */
static gw_err cpu_embed(struct gw_backend *backend)
{
    gw_err rc = GW_OK;
    struct cpu *cpu = of(backend);
    const struct gw_gguf *file = gw_model_gguf(cpu->config.model);
    for (int row = 0; row < cpu->step->rows; row++) {
        int32_t token = cpu->step->tokens[row];
        if (token < 0 || token >= cpu->config.dims.vocab)
            FAIL(GW_ERR_INPUT, "token id %d is outside the model's vocabulary of %d", token, cpu->config.dims.vocab);
        TRY(gw_gguf_read_row(file, cpu->embedding, (uint64_t)token, cpu->embedding_row));
        cpu->embedding->type->to_f32(cpu->embedding_row, cpu->hidden + (size_t)row * (size_t)cpu->d, (size_t)cpu->d);
    }
out:
    return rc;
}

static gw_err cpu_hidden_import(struct gw_backend *backend, const float *rows)
{
    struct cpu *cpu = of(backend);
    memcpy(cpu->hidden, rows, (size_t)cpu->step->rows * (size_t)cpu->d * sizeof(float));
    return GW_OK;
}

/* Rows [row, end) of a sum; `tile` has room for them. */
static const float *sum_rows(const struct cpu *cpu, const struct gw_tree_sum *sum, int row, int end, float *tile)
{
    size_t at = (size_t)row * (size_t)cpu->d;
    if (sum->node_count == 1) return sum->values[0] + at;
    gw_tree_reduce(sum, at, (size_t)(end - row) * (size_t)cpu->d, tile);
    return tile;
}

/* hidden += what was left for the part's next reader. */
static void add_pending(struct cpu *cpu, struct row_part *part)
{
    for (int row = part->row_begin, next; part->pending && row < part->row_end; row = next) {
        next = row + NORM_ROWS < part->row_end ? row + NORM_ROWS : part->row_end;
        cpu->kernels->add(cpu->hidden + (size_t)row * (size_t)cpu->d,
                          sum_rows(cpu, part->pending, row, next, cpu->norm_tiles), (next - row) * cpu->d);
    }
    part->pending = NULL;
}

static void add_all_pending(struct cpu *cpu)
{
    for (int p = 0; p < gw_step_parts(cpu->step); p++) add_pending(cpu, &cpu->parts[p]);
}

static gw_err cpu_hidden_export(struct gw_backend *backend, float *rows)
{
    struct cpu *cpu = of(backend);
    add_all_pending(cpu);
    memcpy(rows, cpu->hidden, (size_t)cpu->step->rows * (size_t)cpu->d * sizeof(float));
    return GW_OK;
}

static bool is_quantized(const struct gw_packed *packed)
{
    return packed->pack >= GW_PACK_U4;
}

/* Rows [begin, end) of cpu->normed: rows of `hidden` (those that are `picked`), normalised. `add` (or NULL) is added to them first, when none
 * are picked. */
static void norm_rows(struct cpu *cpu, const float *weight, const int32_t *picked, int begin, int end, bool quantize,
                      const struct gw_tree_sum *add, int thread)
{
    const struct gw_kernels *kernels = cpu->kernels;
    size_t d = (size_t)cpu->d;
    float *own_tile = cpu->norm_tiles + (size_t)thread * 2 * NORM_ROWS * d;
    for (int first = begin, next; first < end; first = next) {
        next = (first / NORM_ROWS + 1) * NORM_ROWS;
        if (next > end) next = end;
        float *tile = cpu->normed.x ? cpu->normed.x + (size_t)first * d : own_tile;
        const float *sums = add ? sum_rows(cpu, add, first, next, own_tile + NORM_ROWS * d) : NULL;
        for (int row = first; row < next; row++) {
            size_t at = (size_t)(picked ? picked[row] : row) * d, in_tile = (size_t)(row - first) * d;
            if (sums) kernels->add(cpu->hidden + at, sums + in_tile, cpu->d);
            kernels->rmsnorm(cpu->hidden + at, weight, cpu->d, cpu->norm_eps, tile + in_tile);
        }
        if (quantize) kernels->quantize(&cpu->normed.view, tile, d, first, next, 0, cpu->d / GW_BLOCK);
    }
}

/* A product this thread shares in: several matrices over the same activations, their panels counted through. */
struct product {
    const struct gw_packed *w;
    float *y; /* [rows][stride] */
    size_t stride;
    bool stream; /* as in struct gw_gemm */
};

static void *gemm_scratch(const struct cpu *cpu, int thread)
{
    return cpu->gemm_scratch_bytes ? cpu->gemm_scratch + (size_t)thread * cpu->gemm_scratch_bytes : NULL;
}

static const struct gw_atom *whole(const struct gw_packed *w, struct gw_atom *atom)
{
    *atom = (struct gw_atom){.block_end = (w->k + GW_BLOCK - 1) / GW_BLOCK, .merges = 0, .node = 0};
    return atom;
}

static void multiply_share(struct cpu *cpu, const struct product *products, int count, const struct act *act,
                           const struct share *share, struct gw_warm *warm, int thread)
{
    int total = 0, begin, end;
    const struct gw_act view = gw_act_from(&act->view, share->row_begin);
    for (int i = 0; i < count; i++) total += products[i].w->panels;
    gw_split(total, share->members, share->member, &begin, &end);
    for (int i = 0, first = 0; i < count; first += products[i].w->panels, i++) {
        const struct gw_packed *w = products[i].w;
        int from = begin > first ? begin - first : 0;
        int to = end - first < w->panels ? end - first : w->panels;
        if (from >= to) continue;
        struct gw_atom atom;
        struct gw_gemm gemm = {.w = w,
                               .act = &view,
                               .rows = share->row_end - share->row_begin,
                               .atoms = whole(w, &atom),
                               .atom_count = 1,
                               .y = products[i].y + (size_t)share->row_begin * products[i].stride,
                               .y_row_stride = products[i].stride,
                               .stream = products[i].stream,
                               .warm = warm,
                               .next = i + 1 < count ? products[i + 1].w : NULL,
                               .scratch = gemm_scratch(cpu, thread)};
        cpu->kernels->gemm[w->pack](&gemm, from, to);
    }
}

/* The partial sums over this shard's atoms: to[node][row][d]. */
static void multiply_partial(struct cpu *cpu, const struct gw_packed *w, const struct partial *partial, float *to,
                             const struct act *act, const struct share *share, struct gw_warm *warm, int thread)
{
    int begin, end;
    const struct gw_act view = gw_act_from(&act->view, share->row_begin);
    gw_split(w->panels, share->members, share->member, &begin, &end);
    if (begin >= end) return;
    struct gw_gemm gemm = {.w = w,
                           .act = &view,
                           .rows = share->row_end - share->row_begin,
                           .atoms = partial->program,
                           .atom_count = partial->end - partial->begin,
                           .y = to + (size_t)share->row_begin * (size_t)cpu->d,
                           .y_row_stride = (size_t)cpu->d,
                           .y_node_stride = (size_t)cpu->d * (size_t)cpu->step->rows,
                           .warm = warm,
                           .scratch = gemm_scratch(cpu, thread)};
    cpu->kernels->gemm[w->pack](&gemm, begin, end);
}

/* Rotates `heads` heads of one row at `x`, after adding the bias. */
static void finish_heads(struct cpu *cpu, float *x, const float *bias, int heads, int pos)
{
    const float *cosine = cpu->cosine + (size_t)pos * (size_t)cpu->rope_pairs;
    const float *sine = cpu->sine + (size_t)pos * (size_t)cpu->rope_pairs;
    if (bias) cpu->kernels->add(x, bias, heads * cpu->head_dim);
    cpu->kernels->rope(x, heads, cpu->head_dim, cpu->rope_pairs, cosine, sine, cpu->rope_style);
}

/* Key and value of one row, into their page. */
static void store_key(struct cpu *cpu, const struct half_layer *half, int row)
{
    const struct layer *layer = half->layer;
    const struct gw_step_seq *seq = &cpu->step->seqs[cpu->row_seq[row]];
    int pos = seq->pos0 + row - seq->row0, dim = cpu->head_dim;
    float *k = cpu->key + (size_t)row * (size_t)(cpu->kv_heads * dim);
    float *v = cpu->value + (size_t)row * (size_t)(cpu->kv_heads * dim);
    finish_heads(cpu, k, layer->k_bias, cpu->kv_heads, pos);
    if (layer->v_bias) cpu->kernels->add(v, layer->v_bias, cpu->kv_heads * dim);
    int page = cpu->step->pages[seq->page0 + pos / GW_PAGE_TOKENS];
    for (int head = 0; head < cpu->kv_heads; head++)
        cpu->kernels->kv_store(kv_page(cpu, half->number, page, head), dim, pos % GW_PAGE_TOKENS, k + head * dim,
                               v + head * dim);
}

/* The KV page that item number `at` reads first; NULL past the last one. */
static const uint16_t *first_page(struct cpu *cpu, const struct half_layer *half, int at, int end)
{
    if (at >= end) return NULL;
    const struct attention_item *item = &cpu->items[at];
    return kv_page(cpu, half->number, cpu->step->pages[cpu->step->seqs[item->seq].page0], item->head);
}

/* Pages [begin, end) of a sequence, of one head. */
static const uint16_t **list_pages(const struct cpu *cpu, const struct half_layer *half, const struct gw_step_seq *seq,
                                   int head, int begin, int end, const uint16_t **to)
{
    for (int p = begin; p < end; p++) *to++ = kv_page(cpu, half->number, cpu->step->pages[seq->page0 + p], head);
    return to;
}

/* One item from query to what the output product reads; `next` as in struct gw_attention. */
static void attend(struct cpu *cpu, const struct half_layer *half, const struct attention_item *item,
                   const uint16_t *next, int thread)
{
    const struct gw_step_seq *seq = &cpu->step->seqs[item->seq];
    const uint16_t **pages = cpu->page_scratch + (size_t)thread * ATTENTION_ROWS * (size_t)cpu->max_pages, **own_pages;
    struct gw_attention_own own[ATTENTION_ROWS];
    int row0 = seq->row0 + item->row, item_width = cpu->group * cpu->head_dim;
    size_t width = (size_t)(cpu->kv_heads * item_width);
    size_t at = (size_t)row0 * width + (size_t)(item->head * item_width);
    const float *bias = half->layer->q_bias ? half->layer->q_bias + item->head * item_width : NULL;
    struct gw_attention attention = {.head_dim = cpu->head_dim,
                                     .group = cpu->group,
                                     .rows = item->rows,
                                     .pos0 = seq->pos0 + item->row,
                                     .scale = 1.0f / sqrtf((float)cpu->head_dim),
                                     .pages = pages,
                                     .q = cpu->query + at,
                                     .q_stride = width,
                                     .out = cpu->query + at,
                                     .out_stride = width,
                                     .next = next,
                                     .own = item->shared ? own : NULL,
                                     .shared = item->shared};
    int last_pos = attention.pos0 + item->rows - 1;
    own_pages = list_pages(cpu, half, seq, item->head, 0, item->shared ? item->shared : last_pos / GW_PAGE_TOKENS + 1,
                           pages);
    for (int i = 0; item->shared && i < item->rows; i++) {
        own[i] = (struct gw_attention_own){seq[i].pos0, own_pages};
        own_pages = list_pages(cpu, half, &seq[i], item->head, item->shared, seq[i].pos0 / GW_PAGE_TOKENS + 1,
                               own_pages);
    }
    for (int row = 0; row < item->rows; row++)
        finish_heads(cpu, cpu->query + at + (size_t)row * width, bias, cpu->group, gw_attention_pos(&attention, row));
    cpu->kernels->attention(&attention);
    if (!is_quantized(&half->layer->w[OUT])) return;
    int blocks = item_width / GW_BLOCK;
    cpu->kernels->quantize(&cpu->attended.view, cpu->query + at, width, row0, row0 + item->rows, item->head * blocks,
                           (item->head + 1) * blocks);
}

/* From here on this thread's products take its share of the KV pages of `layer` along: attention is limited by memory, products are limited by
 * arithmetic, and each would leave the other idle. */
static void warm_layer(struct cpu *cpu, int layer, const struct share *share, struct gw_warm *warm)
{
    int begin, end;
    const struct row_group *group = share->group;
    warm->at = warm->count = 0;
    if (layer >= cpu->config.shard.layer_end) return;
    gw_split(group->page_end - group->page_begin, share->members, share->member, &begin, &end);
    *warm = (struct gw_warm){.base = (const uint8_t *)kv_page(cpu, layer, 0, 0),
                             .chunks = cpu->step_pages + group->page_begin + begin,
                             .count = end - begin,
                             .chunk_bytes = (size_t)cpu->kv_heads * gw_page_halves(cpu->head_dim) * sizeof(uint16_t)};
}

/* A barrier for threads that divide outputs among themselves. */
static void share_sync(struct cpu *cpu, const struct share *share)
{
    if (share->members > 1) gw_pool_sync(cpu->pool);
}

/* This thread's part of a share's rows, where each row is worked on by one. */
static void own_rows(const struct share *share, int *begin, int *end)
{
    gw_split(share->row_end - share->row_begin, share->members, share->member, begin, end);
    *begin += share->row_begin;
    *end += share->row_begin;
}

/* The share's attention items, when its keys are there. */
static void attend_share(struct cpu *cpu, const struct half_layer *half, const struct share *share, int thread,
                         int threads)
{
    int end = share->group->item_end;
    if (share->members == 1) {
        for (int i = share->group->item_begin; i < end; i++)
            attend(cpu, half, &cpu->items[i], first_page(cpu, half, i + 1, end), thread);
        return;
    }
    atomic_int *next_item = &cpu->next_item[half - cpu->queue];
    for (int i = atomic_fetch_add(next_item, 1), next; i < end; i = next) {
        /* Taken early, so that its keys are on their way in time; but not while others could be left without. */
        bool early = i + 2 * threads < end;
        next = early ? atomic_fetch_add(next_item, 1) : end;
        attend(cpu, half, &cpu->items[i], first_page(cpu, half, next, end), thread);
        if (!early) next = atomic_fetch_add(next_item, 1);
    }
}

/* `turn`: of this dispatch's attentions, from 1. */
static void attention_share(struct cpu *cpu, const struct half_layer *half, const struct share *share, int turn,
                            int thread, int threads)
{
    const struct layer *layer = half->layer;
    struct gw_warm *warm = &half->part->warm[thread];
    int begin, end;
    own_rows(share, &begin, &end);
    norm_rows(cpu, layer->attn_norm, NULL, begin, end,
              is_quantized(&layer->w[Q]) || is_quantized(&layer->w[K]) || is_quantized(&layer->w[V]), half->add,
              thread);
    share_sync(cpu, share);
    const size_t kv_width = (size_t)(cpu->kv_heads * cpu->head_dim), q_width = kv_width * (size_t)cpu->group;
    const struct product qkv[] = {{&layer->w[Q], cpu->query, q_width, false},
                                  {&layer->w[K], cpu->key, kv_width, false},
                                  {&layer->w[V], cpu->value, kv_width, false}};
    const bool keys_only = half->half == HALF_KEYS;
    multiply_share(cpu, keys_only ? qkv + 1 : qkv, keys_only ? 2 : 3, &cpu->normed, share, warm, thread);
    share_sync(cpu, share);
    for (int row = begin; row < end; row++) store_key(cpu, half, row);
    if (keys_only) return;
    if (half->part->by_rows) {
        gw_pool_post(cpu->pool, thread);
        for (int before = share->group->after; before < thread; before++) gw_pool_await(cpu->pool, before, turn);
    }
    share_sync(cpu, share);
    attend_share(cpu, half, share, thread, threads);
    share_sync(cpu, share);
    warm_layer(cpu, half->number + 1, share, warm);
    multiply_partial(cpu, &layer->w[OUT], &cpu->attn_sum, cpu->partials[0], &cpu->attended, share, warm, thread);
}

/* Blocks [block, end) of 32 of the FFN, for `rows` rows from `row` on: gate and up, activated, in the form the down product reads. `last` is where this
 * thread's blocks end. */
static void activate_blocks(struct cpu *cpu, const struct half_layer *half, int block, int end, int last, int row,
                            int rows, float *tile, int thread)
{
    const struct layer *layer = half->layer;
    enum { PANELS = GW_BLOCK / GW_PANEL };
    const size_t width = (size_t)(end - block) * GW_BLOCK;
    float *gate_up[] = {tile, tile + TILE_ROWS * GW_BLOCK};
    const struct gw_act act = gw_act_from(&cpu->normed.view, row);
    for (int i = 0; i < 2; i++) {
        const struct gw_packed *w = &layer->w[i == 0 ? GATE : UP];
        struct gw_atom atom;
        struct gw_gemm gemm = {.w = w,
                               .act = &act,
                               .rows = rows,
                               .atoms = whole(w, &atom),
                               .atom_count = 1,
                               .y = gate_up[i],
                               .y_panel = block * PANELS,
                               .y_row_stride = width,
                               .warm = &half->part->warm[thread],
                               .next = &layer->w[i == 0       ? UP
                                                 : end < last ? GATE
                                                              : DOWN],
                               .next_panel = i == 0       ? block * PANELS
                                             : end < last ? end * PANELS
                                                          : 0,
                               .scratch = gemm_scratch(cpu, thread)};
        cpu->kernels->gemm[w->pack](&gemm, block * PANELS, end * PANELS);
    }
    cpu->kernels->swiglu(gate_up[0], gate_up[1], rows * (int)width, tile);
    if (is_quantized(&layer->w[DOWN])) {
        cpu->kernels->quantize(&cpu->activated.view, tile, width, row, row + rows, block, end);
        return;
    }
    float *x = cpu->activated.x + (size_t)row * (size_t)cpu->ffn + (size_t)block * GW_BLOCK;
    for (int r = 0; r < rows; r++, x += cpu->ffn) memcpy(x, tile + (size_t)r * width, width * sizeof(float));
}

static void ffn_share(struct cpu *cpu, const struct half_layer *half, const struct share *share, int thread)
{
    const struct layer *layer = half->layer;
    int begin, end;
    float *tile = cpu->tiles + (size_t)thread * 2 * TILE_ROWS * GW_BLOCK;
    own_rows(share, &begin, &end);
    norm_rows(cpu, layer->ffn_norm, NULL, begin, end, is_quantized(&layer->w[GATE]) || is_quantized(&layer->w[UP]),
              half->add, thread);
    share_sync(cpu, share);
    gw_split(cpu->ffn / GW_BLOCK, share->members, share->member, &begin, &end);
    for (int row = share->row_begin, rows; row < share->row_end; row += rows) {
        rows = share->row_end - row < TILE_ROWS ? share->row_end - row : TILE_ROWS;
        int at_once = TILE_ROWS / rows; /* the fewer rows, the more of them fill the tile */
        for (int block = begin, next; block < end; block = next) {
            next = end - block < at_once ? end : block + at_once;
            activate_blocks(cpu, half, block, next, end, row, rows, tile, thread);
        }
    }
    share_sync(cpu, share);
    multiply_partial(cpu, &layer->w[DOWN], &cpu->ffn_sum, cpu->partials[1], &cpu->activated, share,
                     &half->part->warm[thread], thread);
}

/* All that is queued is of one part. */
static void compute_queue(void *arg, int thread, int threads)
{
    struct cpu *cpu = arg;
    const struct share share = gw_cpu_share(cpu->queue[0].part, thread, threads);
    gw_gemm_forget(gemm_scratch(cpu, thread));
    for (int i = 0, turn = 0; i < cpu->queued; i++) {
        const struct half_layer *half = &cpu->queue[i];
        if (i > 0) share_sync(cpu, &share);
        if (half->half == HALF_FFN) ffn_share(cpu, half, &share, thread);
        else attention_share(cpu, half, &share, ++turn, thread, threads);
    }
}

static void flush(struct cpu *cpu)
{
    if (cpu->queued == 0) return;
    for (int i = 0; i < cpu->queued; i++) atomic_store(&cpu->next_item[i], 0);
    double begin_s = gw_clock_now_s();
    gw_pool_run(cpu->pool, compute_queue, cpu);
    const struct row_part *part = cpu->queue[0].part;
    if (cpu->queue[0].half != HALF_KEYS)
        cpu->half_row_s = (gw_clock_now_s() - begin_s) / cpu->queued / (part->row_end - part->row_begin);
    cpu->queued = 0;
}

/* Keys and values are written in every step, whether or not anybody asks for its outputs: nothing is left waiting after the last layer. */
static gw_err enqueue(struct cpu *cpu, int layer, enum half half, int number, const struct partial *sum)
{
    const bool ffn = half == HALF_FFN;
    struct layer *weights = &cpu->layers[layer - cpu->config.shard.layer_begin];
    struct row_part *part = &cpu->parts[number];
    GW_ASSERT(number < gw_step_parts(cpu->step));
    cpu->last_sum = sum;
    if (!ffn && cpu->kv_heads == 0) { /* this shard holds FFN atoms only */
        add_pending(cpu, part);
        return GW_OK;
    }
    for (int i = ffn ? GATE : Q; i <= (ffn ? UP : V); i++)
        if (!is_quantized(&weights->w[i])) act_keep_floats(&cpu->normed);
    if (ffn && !is_quantized(&weights->w[DOWN])) act_keep_floats(&cpu->activated);
    cpu->queue[cpu->queued++] = (struct half_layer){weights, layer, half, part, part->pending};
    part->pending = NULL;
    /* else others read it as soon as the call returns: even a shard with all heads is not alone when it exchanges */
    bool own_sum = sum->begin == 0 && sum->end == sum->atoms && cpu->partials[0] == cpu->own_partials;
    bool last = ffn && layer == cpu->config.shard.layer_end - 1;
    bool enough = cpu->half_row_s <= 0 || cpu->half_row_s * cpu->queued * cpu->step->rows >= dispatch_s;
    if (!own_sum || last || enough || gw_step_parts(cpu->step) > 1) flush(cpu);
    return GW_OK;
}

static gw_err cpu_attention(struct gw_backend *backend, int layer, int part)
{
    struct cpu *cpu = of(backend);
    return enqueue(cpu, layer, HALF_ATTENTION, part, &cpu->attn_sum);
}

static gw_err cpu_ffn(struct gw_backend *backend, int layer, int part)
{
    struct cpu *cpu = of(backend);
    return enqueue(cpu, layer, HALF_FFN, part, &cpu->ffn_sum);
}

static gw_err cpu_keys(struct gw_backend *backend, int layer, int part)
{
    struct cpu *cpu = of(backend);
    flush(cpu);
    gw_err rc = enqueue(cpu, layer, HALF_KEYS, part, &cpu->attn_sum);
    flush(cpu);
    return rc;
}

static gw_err cpu_narrow(struct gw_backend *backend, const struct gw_step *narrowed, const int32_t *rows)
{
    struct cpu *cpu = of(backend);
    GW_ASSERT(cpu->queued == 0 && !cpu->parts[0].pending && !cpu->parts[gw_step_parts(cpu->step) - 1].pending);
    for (int row = 0; row < narrowed->rows; row++)
        memmove(cpu->hidden + (size_t)row * (size_t)cpu->d, cpu->hidden + (size_t)rows[row] * (size_t)cpu->d,
                (size_t)cpu->d * sizeof(float));
    return cpu_step_begin(backend, narrowed);
}

/* Left to whoever reads the rows next: the threads of the next half layer have them in their caches then. */
static gw_err cpu_residual_add(struct gw_backend *backend, int part, const struct gw_tree_sum *sum)
{
    struct cpu *cpu = of(backend);
    GW_ASSERT(part < gw_step_parts(cpu->step) && !cpu->parts[part].pending);
    cpu->parts[part].pending = sum;
    return GW_OK;
}

static gw_err cpu_residual_add_own(struct gw_backend *backend, int part)
{
    struct cpu *cpu = of(backend);
    GW_ASSERT(cpu->last_sum->begin == 0 && cpu->last_sum->end == cpu->last_sum->atoms);
    return cpu_residual_add(backend, part, &cpu->own_sum);
}

static void cpu_exchange_memory(struct gw_backend *backend, float *attn_nodes, float *ffn_nodes, float *logits,
                                size_t logits_stride)
{
    struct cpu *cpu = of(backend);
    free(cpu->own_logits);
    cpu->own_logits = NULL;
    cpu->partials[0] = attn_nodes ? attn_nodes : cpu->own_partials;
    cpu->partials[1] = ffn_nodes ? ffn_nodes : cpu->own_partials;
    cpu->logits = logits;
    cpu->logits_stride = logits ? logits_stride : (size_t)cpu->vocab;
    cpu->logits_count = logits ? (size_t)cpu->config.max_rows * logits_stride : 0;
}

static gw_err cpu_partial_map(struct gw_backend *backend, const float **nodes)
{
    struct cpu *cpu = of(backend);
    flush(cpu);
    *nodes = cpu->partials[cpu->last_sum == &cpu->ffn_sum];
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
    /* By panels: the largest matrix by far is read once, not by each thread, for the price of one barrier. */
    const struct share share = {.row_end = job->count, .member = thread, .members = threads};
    int begin, end;
    own_rows(&share, &begin, &end);
    norm_rows(cpu, cpu->output_norm, job->rows, begin, end, is_quantized(&cpu->output), NULL, thread);
    share_sync(cpu, &share);
    bool stream = (size_t)job->count * (size_t)cpu->vocab * sizeof(float) > STREAM_BYTES;
    const struct product product = {&cpu->output, cpu->logits, cpu->logits_stride, stream};
    gw_gemm_forget(gemm_scratch(cpu, thread));
    multiply_share(cpu, &product, 1, &cpu->normed, &share, NULL, thread);
}

static gw_err cpu_logits(struct gw_backend *backend, const int32_t *rows, int count, float **logits)
{
    struct cpu *cpu = of(backend);
    size_t need = (size_t)count * cpu->logits_stride;
    /* While a batch fills up each step has a few rows more, and new memory costs milliseconds: it doubles. */
    if (need > cpu->logits_count) {
        free(cpu->own_logits);
        cpu->logits_count = need > 2 * cpu->logits_count ? need : 2 * cpu->logits_count;
        cpu->logits = cpu->own_logits = gw_alloc_lines(cpu->logits_count, sizeof(float));
    }
    struct logits_job job = {cpu, rows, count};
    if (!is_quantized(&cpu->output)) act_keep_floats(&cpu->normed);
    add_all_pending(cpu);
    if (count > 0 && cpu->vocab > 0) gw_pool_run(cpu->pool, logits_share, &job);
    *logits = cpu->logits;
    return GW_OK;
}

static uint64_t cpu_weights_made(struct gw_backend *backend)
{
    return of(backend)->packed_bytes;
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
    .keys = cpu_keys,
    .narrow = cpu_narrow,
    .residual_add_own = cpu_residual_add_own,
    .partial_map = cpu_partial_map,
    .exchange_memory = cpu_exchange_memory,
    .residual_add = cpu_residual_add,
    .logits = cpu_logits,
    .kv_export = gw_cpu_kv_export,
    .kv_import = gw_cpu_kv_import,
    .kv_inherited = gw_cpu_kv_inherited,
    .part_load = gw_cpu_part_load,
    .part_release = gw_cpu_part_release,
    .part_bytes = gw_cpu_part_bytes,
    .kv_trim = gw_cpu_kv_trim,
    .weights_export = gw_cpu_weights_export,
    .weights_import = gw_cpu_weights_import,
    .weights_made = cpu_weights_made,
};

static void init_rope(struct cpu *cpu)
{
    const struct gw_rope *rope = &gw_model_info(cpu->config.model)->rope;
    cpu->rope_style = rope->style;
    cpu->rope_pairs = rope->dims / 2;
    cpu->inv_freq = gw_alloc((size_t)cpu->rope_pairs, sizeof(double));
    gw_rope_inv_freq(cpu->config.model, cpu->inv_freq, &cpu->rope_factor);
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
    cpu->logits_stride = (size_t)cpu->vocab;
    cpu->norm_eps = gw_model_info(config->model)->norm_eps;
    init_rope(cpu);
    init_partials(cpu);
    TRY(gw_cpu_load(cpu));
    init_scratch(cpu);
    cpu->config.donor = NULL; /* it may be gone by the time of the next call */
    cpu->config.awaited = NULL;
    cpu->config.store = NULL; /* its segments are held one by one */
    *backend = &cpu->base;
    cpu = NULL;
out:
    if (cpu) cpu_destroy(&cpu->base);
    return rc;
}
