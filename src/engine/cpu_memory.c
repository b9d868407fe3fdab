/* Weights and KV pages of the CPU backend: where they lie, how they come, exported and imported.
 *
 * Weights are packed at creation from the model's map, once on a node where there is a context store (store/store.h): ranks that load at the same
 * time share the work, and those that come later map what is there. KV pages: per layer uint16 [page][kv_head][gw_page_halves], backed lazily
 * by the kernel as pages are first written; in the store they outlive this process. Both have holders, so that a backend for another
 * slice takes over what stays the same (gw_backend_config.donor). Without a store, or if it fails, all of it is private memory.
 */
#include "base/clock.h"
#include "base/log.h"
#include "engine/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- weights --------------------------------------------------------------------------------------------------- */

enum { PART_MATRICES = 4, PACK_PATIENCE_S = 60 };
/* Of the packed form (struct gw_packed), in the names of what lies in a store: one more whenever it changes. */
enum { PACKING = 2 };

/* Matrices of a layer that come and go together: those over kv heads, those over FFN atoms, or the output matrix. In one segment, one behind the
 * other. */
struct part {
    char name[GW_STORE_NAME_BYTES]; /* in the store: what of which model */
    struct {
        const struct gw_gguf_tensor *tensor;
        int n_begin, k_begin;
        struct gw_packed *packed;
        struct gw_shared **memory;
        size_t offset;
    } matrices[PART_MATRICES];
    int count;
    size_t bytes;
    int *awaited; /* heads, atoms or rows that are to come from a peer: 0 once they are here */
    bool pending; /* another rank is packing it */
};

/* Outputs [n_begin, n_begin + n) and inputs [k_begin, k_begin + k) of a tensor. n or k may be 0 (an empty shard). */
static gw_err add_matrix(struct cpu *cpu, struct part *part, enum gw_tensor_role role, int layer, int n_begin, int n,
                         int k_begin, int k, struct gw_packed *packed, struct gw_shared **memory)
{
    gw_err rc = GW_OK;
    const struct gw_gguf_tensor *tensor = gw_model_tensor(cpu->config.model, role, layer);
    if (n == 0 || k == 0) return GW_OK;
    TRY(gw_packed_init(packed, tensor->type->type, n, k));
    part->matrices[part->count].tensor = tensor;
    part->matrices[part->count].n_begin = n_begin;
    part->matrices[part->count].k_begin = k_begin;
    part->matrices[part->count].packed = packed;
    part->matrices[part->count].memory = memory;
    part->matrices[part->count++].offset = part->bytes;
    part->bytes += (gw_packed_bytes(packed) + 63) & ~(size_t)63;
out:
    return rc;
}

static void use_segment(const struct part *part, struct gw_shared *segment)
{
    for (int i = 0; i < part->count; i++) {
        part->matrices[i].packed->data = (uint8_t *)segment->data + part->matrices[i].offset;
        *part->matrices[i].memory = gw_shared_hold(segment);
    }
    gw_shared_release(segment);
}

/* ---- huge pages ------------------------------------------------------------------------------------------------- */

/* Memory of the store gets huge pages only if asked for each; private memory has them as it is first written. Asking before that is quicker than the small
 * pages that writing would take. What has been written is copied, and a virtual machine may have to ask its host for each page, which takes as long as a sixth
 * of a step: at the beginning so much is spent on it, and later such a share of the time. */
static const double back_first_s = 0.05, back_share = 0.02;

static void back_listed_share(void *arg, int thread, int threads)
{
    struct backing *backing = arg;
    (void)threads;
    if (thread >= backing->listed) return;
    struct backing_page *page = &backing->list[thread];
    page->refused = !gw_back_large(page->memory, GW_HUGE_PAGE);
}

/* One by each thread: while one asks, the others would wait. */
static void back_listed(struct cpu *cpu)
{
    struct backing *backing = &cpu->backing;
    double begin_s = gw_clock_now_s();
    if (backing->listed == 0) return;
    gw_pool_run(cpu->pool, back_listed_share, backing);
    for (int i = 0; i < backing->listed; i++) backing->kv_fresh &= !backing->list[i].refused;
    backing->spent_s += gw_clock_now_s() - begin_s;
    backing->listed = 0;
}

static void list_page(struct cpu *cpu, const struct gw_shared *memory, size_t at)
{
    struct backing *backing = &cpu->backing;
    if (!memory || !memory->owner || memory->mapping_bytes < at + GW_HUGE_PAGE) return;
    backing->list[backing->listed++].memory = (uint8_t *)memory->mapping + at;
    if (backing->listed == gw_pool_threads(cpu->pool)) back_listed(cpu);
}

/* Memory that is new, before it is written. */
static void back_new(struct cpu *cpu, const struct gw_shared *memory)
{
    for (size_t at = 0; at < memory->mapping_bytes && cpu->backing.spent_s < back_first_s; at += GW_HUGE_PAGE)
        list_page(cpu, memory, at);
    back_listed(cpu);
}

/* Lists the next huge page of weights; false: that was all. */
static bool back_weights(struct cpu *cpu)
{
    struct backing *backing = &cpu->backing;
    const int layers = cpu->config.shard.layer_end - cpu->config.shard.layer_begin, part = backing->part;
    if (part > 2 * layers) return false;
    const struct gw_shared *memory = part == 2 * layers ? cpu->output_memory
                                                        : cpu->layers[part / 2].memory[part % 2 ? GATE : Q];
    list_page(cpu, memory, backing->part_at);
    backing->part_at += GW_HUGE_PAGE;
    if (memory && backing->part_at < memory->mapping_bytes) return true;
    backing->part++;
    backing->part_at = 0;
    return true;
}

/* The same of the first `bytes` of all layers' KV. */
static bool back_kv(struct cpu *cpu, size_t bytes)
{
    struct backing *backing = &cpu->backing;
    const int layers = cpu->config.shard.layer_end - cpu->config.shard.layer_begin;
    if (layers == 0 || backing->kv_at >= bytes) return false;
    list_page(cpu, cpu->layers[backing->layer].kv, backing->kv_at);
    if (++backing->layer < layers) return true;
    backing->layer = 0;
    backing->kv_at += GW_HUGE_PAGE;
    return true;
}

void gw_cpu_back_memory(struct cpu *cpu, int pages, int rows)
{
    struct backing *backing = &cpu->backing;
    const size_t bytes = (size_t)pages * (size_t)cpu->kv_heads * gw_page_halves(cpu->head_dim) * sizeof(uint16_t);
    double spent_s = backing->spent_s;
    backing->kv_fresh &= pages - backing->kv_pages <= rows; /* else others have come, and been written */
    if (pages > backing->kv_pages) backing->kv_pages = pages;
    while (backing->kv_fresh && back_kv(cpu, bytes)) continue;
    back_listed(cpu);
    backing->spent_s = spent_s; /* small pages would have taken longer */
    double most_s = back_first_s + back_share * (gw_clock_now_s() - backing->begin_s);
    while (backing->spent_s < most_s && (back_weights(cpu) || back_kv(cpu, bytes))) continue;
    back_listed(cpu);
}

/* ---- weights, packed -------------------------------------------------------------------------------------------- */

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

void gw_cpu_pack(struct cpu *cpu, const struct gw_packed *packed, const struct gw_gguf_tensor *tensor, int n_begin,
                 int k_begin)
{
    struct pack_job job = {packed, tensor->data + (size_t)n_begin * tensor->row_bytes, tensor->row_bytes, k_begin};
    gw_pool_run(cpu->pool, pack_share, &job);
}

static void pack_part(struct cpu *cpu, const struct part *part)
{
    for (int i = 0; i < part->count; i++)
        gw_cpu_pack(cpu, part->matrices[i].packed, part->matrices[i].tensor, part->matrices[i].n_begin,
                    part->matrices[i].k_begin);
    cpu->packed_bytes += part->bytes;
}

/* Memory for the part: from the store where another rank of this node has packed it already, else packed here, for the others too. Parts that
 * are to come from a peer only get room. */
static gw_err load_part(struct cpu *cpu, struct part *part, bool own)
{
    gw_err rc = GW_OK;
    struct gw_store *store = own ? NULL : cpu->config.store;
    struct gw_shared *segment = NULL;
    enum gw_store_found found = GW_STORE_NONE;
    if (part->bytes == 0) return GW_OK;
    part->pending = false;
    if (store &&
        gw_store_map(store, GW_STORE_SHARED, part->name, part->bytes, !*part->awaited, &segment, &found) != GW_OK)
        found = GW_STORE_NONE;
    part->pending = found == GW_STORE_BUSY && !*part->awaited;
    if (part->pending) return GW_OK;
    if (!segment) TRY(gw_shared_create(part->bytes, "weights", &segment));
    if (found == GW_STORE_NEW) back_new(cpu, segment);
    use_segment(part, segment);
    if (found == GW_STORE_FOUND) *part->awaited = 0;
    if (found == GW_STORE_FOUND || *part->awaited) goto out;
    pack_part(cpu, part);
    if (found == GW_STORE_NEW) {
        gw_err told = gw_store_filled(store, segment);
        if (told != GW_OK) gw_debug("%s", gw_error_detail()); /* the others pack it themselves */
    }
out:
    if (cpu->config.tick) cpu->config.tick(cpu->config.tick_context);
    return rc;
}

/* Ranks of a node that load at the same time begin at different parts, and come back to those that another was packing. */
static gw_err load_parts(struct cpu *cpu, struct part *parts, int count)
{
    gw_err rc = GW_OK;
    int pending = 0, first = cpu->config.local_size > 0 ? count * cpu->config.local_rank / cpu->config.local_size : 0;
    for (int i = 0; i < count; i++) {
        struct part *part = &parts[(first + i) % count];
        TRY(load_part(cpu, part, false));
        pending += part->pending;
    }
    for (double until_s = gw_clock_now_s() + PACK_PATIENCE_S; pending > 0;) {
        bool patient = gw_clock_now_s() < until_s;
        usleep(500);
        if (cpu->config.tick) cpu->config.tick(cpu->config.tick_context);
        for (int i = 0; i < count; i++) {
            if (!parts[i].pending) continue;
            TRY(load_part(cpu, &parts[i], !patient));
            pending -= !parts[i].pending;
            if (!parts[i].pending) until_s = gw_clock_now_s() + PACK_PATIENCE_S;
        }
    }
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

static struct part *new_part(const struct cpu *cpu, struct part *parts, int *count, int layer, char kind, int begin,
                             int end, int *awaited)
{
    struct part *part = &parts[(*count)++];
    *part = (struct part){.awaited = awaited};
    bool to_come = cpu->config.awaited && cpu->config.awaited[layer];
    *awaited = to_come ? end - begin : 0;
    snprintf(part->name, sizeof part->name, "%016llx.%d/%d/%c%d-%d", (unsigned long long)cpu->config.model_key, PACKING,
             layer, kind, begin, end);
    return part;
}

/* Norms, biases and the geometry of a layer's weights; what the donor does not have is listed in `parts`. */
static gw_err begin_layer(struct cpu *cpu, int number, const struct layer *from, struct part *parts, int *count)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard, *ds = from ? &of(cpu->config.donor)->config.shard : s;
    struct layer *layer = &cpu->layers[number - s->layer_begin];
    int d = cpu->d, dim = cpu->head_dim, group = cpu->group;
    int q0 = s->kv_begin * group * dim, qn = cpu->kv_heads * group * dim;
    int kv0 = s->kv_begin * dim, kvn = cpu->kv_heads * dim;
    int f0 = gw_ffn_atom_block(cpu->config.dims.ffn, cpu->config.dims.ffn_atoms, s->ffn_begin) * GW_BLOCK;
    layer->attn_norm = load_vector(cpu, GW_TENSOR_ATTN_NORM, number, 0, d);
    layer->ffn_norm = load_vector(cpu, GW_TENSOR_FFN_NORM, number, 0, d);
    layer->q_bias = load_vector(cpu, GW_TENSOR_Q_BIAS, number, q0, qn);
    layer->k_bias = load_vector(cpu, GW_TENSOR_K_BIAS, number, kv0, kvn);
    layer->v_bias = load_vector(cpu, GW_TENSOR_V_BIAS, number, kv0, kvn);
    if (from && ds->kv_begin == s->kv_begin && ds->kv_end == s->kv_end && !from->heads_awaited) {
        share_matrices(layer, from, Q, GATE);
    } else {
        struct part *part = new_part(cpu, parts, count, number, 'h', s->kv_begin, s->kv_end, &layer->heads_awaited);
        TRY(add_matrix(cpu, part, GW_TENSOR_Q, number, q0, qn, 0, d, &layer->w[Q], &layer->memory[Q]));
        TRY(add_matrix(cpu, part, GW_TENSOR_K, number, kv0, kvn, 0, d, &layer->w[K], &layer->memory[K]));
        TRY(add_matrix(cpu, part, GW_TENSOR_V, number, kv0, kvn, 0, d, &layer->w[V], &layer->memory[V]));
        TRY(add_matrix(cpu, part, GW_TENSOR_ATTN_OUT, number, 0, d, q0, qn, &layer->w[OUT], &layer->memory[OUT]));
    }
    if (from && ds->ffn_begin == s->ffn_begin && ds->ffn_end == s->ffn_end && !from->atoms_awaited) {
        share_matrices(layer, from, GATE, MATRICES);
    } else {
        struct part *part = new_part(cpu, parts, count, number, 'f', s->ffn_begin, s->ffn_end, &layer->atoms_awaited);
        TRY(add_matrix(cpu, part, GW_TENSOR_GATE, number, f0, cpu->ffn, 0, d, &layer->w[GATE], &layer->memory[GATE]));
        TRY(add_matrix(cpu, part, GW_TENSOR_UP, number, f0, cpu->ffn, 0, d, &layer->w[UP], &layer->memory[UP]));
        TRY(add_matrix(cpu, part, GW_TENSOR_DOWN, number, 0, d, f0, cpu->ffn, &layer->w[DOWN], &layer->memory[DOWN]));
    }
out:
    return rc;
}

/* Room for a layer's KV pages: the donor's if they are of the same heads, else this process's own in the store, or private memory. */
static gw_err load_kv(struct cpu *cpu, int number, const struct layer *from)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard, *ds = from ? &of(cpu->config.donor)->config.shard : s;
    struct layer *layer = &cpu->layers[number - s->layer_begin];
    char name[GW_STORE_NAME_BYTES];
    enum gw_store_found found = GW_STORE_NONE;
    if (from && ds->kv_begin == s->kv_begin && ds->kv_end == s->kv_end && from->kv_pages >= cpu->config.kv_pages) {
        layer->kv_inherited = true;
        layer->kv_pages = from->kv_pages;
        layer->kv = from->kv ? gw_shared_hold(from->kv) : NULL;
        return GW_OK;
    }
    size_t page = (size_t)cpu->kv_heads * gw_page_halves(cpu->head_dim) * sizeof(uint16_t);
    size_t bytes = page * (size_t)cpu->config.kv_pages;
    layer->kv_inherited = cpu->config.resumed && cpu->kv_heads == 0;
    layer->kv_pages = cpu->config.kv_pages;
    if (bytes == 0) return GW_OK; /* no heads of this layer, or weights alone are wanted */
    snprintf(name, sizeof name, "kv/%d/%d-%d", number, s->kv_begin, s->kv_end);
    if (cpu->config.store &&
        gw_store_map(cpu->config.store, GW_STORE_OWN, name, bytes, !cpu->config.resumed, &layer->kv, &found) != GW_OK)
        gw_debug("%s", gw_error_detail());
    if (!layer->kv) TRY(gw_shared_create(bytes, "the KV cache (see --kv-memory)", &layer->kv));
    layer->kv_inherited = cpu->config.resumed && found == GW_STORE_FOUND;
    layer->kv_pages = (int)(layer->kv->bytes / page);
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
static gw_err begin_ends(struct cpu *cpu, struct part *parts, int *count)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard;
    const struct cpu *donor = cpu->config.donor ? of(cpu->config.donor) : NULL;
    const struct gw_shard *ds = donor ? &donor->config.shard : s;
    if (s->first) {
        cpu->embedding = gw_model_tensor(cpu->config.model, GW_TENSOR_EMBED, 0);
        cpu->embedding_row = gw_alloc_lines(cpu->embedding->row_bytes, 1);
    }
    if (!s->last) return GW_OK;
    cpu->output_norm = load_vector(cpu, GW_TENSOR_OUTPUT_NORM, 0, 0, cpu->d);
    if (donor && ds->last && ds->vocab_begin == s->vocab_begin && ds->vocab_end == s->vocab_end &&
        !donor->rows_awaited) {
        cpu->output = donor->output;
        if (donor->output_memory) cpu->output_memory = gw_shared_hold(donor->output_memory);
        return GW_OK;
    }
    struct part *part = new_part(cpu, parts, count, cpu->config.dims.layers, 'v', s->vocab_begin, s->vocab_end,
                                 &cpu->rows_awaited);
    TRY(add_matrix(cpu, part, GW_TENSOR_OUTPUT, 0, s->vocab_begin, cpu->vocab, 0, cpu->d, &cpu->output,
                   &cpu->output_memory));
out:
    return rc;
}

gw_err gw_cpu_load(struct cpu *cpu)
{
    gw_err rc = GW_OK;
    const struct gw_shard *s = &cpu->config.shard;
    const struct cpu *donor = cpu->config.donor ? of(cpu->config.donor) : NULL;
    int layers = s->layer_end - s->layer_begin, count = 0;
    struct part *parts = gw_alloc((size_t)(2 * layers + 1), sizeof *parts);
    cpu->layers = gw_alloc((size_t)layers, sizeof *cpu->layers);
    cpu->backing.begin_s = gw_clock_now_s();
    cpu->backing.list = gw_alloc((size_t)gw_pool_threads(cpu->pool), sizeof *cpu->backing.list);
    cpu->backing.kv_fresh = true;
    for (int layer = s->layer_begin; layer < s->layer_end; layer++) {
        const struct gw_shard *ds = donor ? &donor->config.shard : s;
        bool had = donor && layer >= ds->layer_begin && layer < ds->layer_end;
        const struct layer *from = had ? &donor->layers[layer - ds->layer_begin] : NULL;
        TRY(begin_layer(cpu, layer, from, parts, &count));
        TRY(load_kv(cpu, layer, from));
        cpu->backing.kv_fresh &= !cpu->layers[layer - s->layer_begin].kv_inherited;
        if (cpu->config.tick) cpu->config.tick(cpu->config.tick_context);
    }
    TRY(begin_ends(cpu, parts, &count));
    TRY(load_parts(cpu, parts, count));
out:
    free(parts);
    return rc;
}

void gw_cpu_unload(struct cpu *cpu)
{
    int layers = cpu->config.shard.layer_end - cpu->config.shard.layer_begin;
    for (int i = 0; cpu->layers && i < layers; i++) free_layer(&cpu->layers[i]);
    free(cpu->layers);
    free(cpu->backing.list);
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
    const int *awaited; /* > 0: it is to come from a peer */
};

/* The blocks of a slice, in the order in which they travel; returns their number. */
static int blocks_of(struct cpu *cpu, const struct gw_weight_slice *slice, struct block blocks[MATRICES])
{
    const struct gw_dims *dims = &cpu->config.dims;
    const struct gw_shard *s = &cpu->config.shard;
    int d = cpu->d, dim = cpu->head_dim, wide = cpu->group * dim, count = 0;
    if (slice->layer == dims->layers) {
        blocks[0] = (struct block){
            &cpu->output,      slice->vocab_begin - s->vocab_begin, 0, slice->vocab_end - slice->vocab_begin, d,
            &cpu->rows_awaited};
        return 1;
    }
    const struct layer *layer = &cpu->layers[slice->layer - s->layer_begin];
    const struct gw_packed *w = layer->w;
    const int *heads = &layer->heads_awaited, *atoms = &layer->atoms_awaited;
    int h0 = slice->kv_begin - s->kv_begin, hn = slice->kv_end - slice->kv_begin;
    if (hn > 0) {
        blocks[count++] = (struct block){&w[Q], h0 * wide, 0, hn * wide, d, heads};
        blocks[count++] = (struct block){&w[K], h0 * dim, 0, hn * dim, d, heads};
        blocks[count++] = (struct block){&w[V], h0 * dim, 0, hn * dim, d, heads};
        blocks[count++] = (struct block){&w[OUT], 0, h0 * wide, d, hn * wide, heads};
    }
    if (slice->ffn_end > slice->ffn_begin) {
        int first = gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, s->ffn_begin);
        int f0 = (gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, slice->ffn_begin) - first) * GW_BLOCK;
        int f1 = (gw_ffn_atom_block(dims->ffn, dims->ffn_atoms, slice->ffn_end) - first) * GW_BLOCK;
        blocks[count++] = (struct block){&w[GATE], f0, 0, f1 - f0, d, atoms};
        blocks[count++] = (struct block){&w[UP], f0, 0, f1 - f0, d, atoms};
        blocks[count++] = (struct block){&w[DOWN], 0, f0, d, f1 - f0, atoms};
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
        /* what turned out to be shared is sent all the same; it is the same, and others may be reading it */
        if (*b->awaited) gw_packed_copy(b->packed, b->n0, b->k0, &part, 0, 0, b->n, b->k);
        at += gw_packed_bytes(&part);
    }
    if (slice->layer == of(backend)->config.dims.layers) {
        if (of(backend)->rows_awaited) of(backend)->rows_awaited -= slice->vocab_end - slice->vocab_begin;
    } else {
        struct layer *layer = &of(backend)->layers[slice->layer - of(backend)->config.shard.layer_begin];
        if (layer->heads_awaited) layer->heads_awaited -= slice->kv_end - slice->kv_begin;
        if (layer->atoms_awaited) layer->atoms_awaited -= slice->ffn_end - slice->ffn_begin;
    }
    if (at != bytes) FAIL(GW_ERR_PEER, "weights of layer %d came with %zu bytes too many", slice->layer, bytes - at);
out:
    return rc;
}
