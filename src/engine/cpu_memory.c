/* Weights and KV pages of the CPU backend: packed at creation from the model's map, shared with the donor, exported and imported.
 *
 * KV pages: per layer uint16 [page][kv_head][gw_page_halves], backed lazily by the kernel as pages are first written. Weights and
 * KV pages have holders, so that a backend for another slice takes over what stays the same (gw_backend_config.donor).
 */
#include "engine/cpu.h"

#include <stdlib.h>
#include <string.h>

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

gw_err gw_cpu_load(struct cpu *cpu)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard;
    cpu->layers = gw_alloc((size_t)(s->layer_end - s->layer_begin), sizeof *cpu->layers);
    TRY(load_ends(cpu));
    for (int layer = s->layer_begin; layer < s->layer_end; layer++) {
        TRY(load_layer(cpu, layer, &cpu->layers[layer - s->layer_begin]));
        if (cpu->config.tick) cpu->config.tick(cpu->config.tick_context);
    }
out:
    return rc;
}

void gw_cpu_unload(struct cpu *cpu)
{
    int layers = cpu->config.shard.layer_end - cpu->config.shard.layer_begin;
    for (int i = 0; cpu->layers && i < layers; i++) free_layer(&cpu->layers[i]);
    free(cpu->layers);
    free(cpu->output_norm);
    gw_shared_release(cpu->output_memory);
}

/* ---- KV pages in canonical form -------------------------------------------------------------------------------- */

/* The key of token t, dim i sits at [t / 16][i][t % 16] of a page (kernels.h). */
static size_t key_at(int head_dim, int token, int i)
{
    return ((size_t)(token / GW_PANEL) * (size_t)head_dim + (size_t)i) * GW_PANEL + (size_t)(token % GW_PANEL);
}

gw_err gw_cpu_kv_export(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end, uint16_t *canonical)
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

gw_err gw_cpu_kv_import(struct gw_backend *backend, int layer, int page, int kv_begin, int kv_end,
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

bool gw_cpu_kv_inherited(struct gw_backend *backend, int layer)
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

gw_err gw_cpu_weights_export(struct gw_backend *backend, const struct gw_weight_slice *slice, struct gw_buf *out)
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

gw_err gw_cpu_weights_import(struct gw_backend *backend, const struct gw_weight_slice *slice, const uint8_t *data,
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
