/* A replica of several shards and stages in one process, without MPI, that turns into one of another layout in the middle of a text: its
 * weights are shared with the backends before (donors), or come from them in random cuts; its KV pages stay, or move by heads and layers.
 * The logits must be those of one backend that did it all, bit for bit. GODWIT_TEST_SEED repeats a seed.
 */
#include "base/pool.h"
#include "job/executor.h"
#include "support/tiny_model.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES = 7, MAX_ROWS = 80, CONTEXT = 128, TEXT = 75, FIRST_PART = 41, MOST_SLOTS = 8, MOST_LAYERS = 8 };

static uint64_t random_state, seed = 20260403;

static int next_int(int bound) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (int)(((z ^ z >> 31) >> 32) * (uint64_t)bound >> 32);
}

/* ---- a model ------------------------------------------------------------------------------------------------------- */

struct model {
    struct gw_buf file;
    struct gw_model *model;
    struct gw_dims dims;
    const struct gw_kernels *kernels;
    struct gw_pool *pool;
    int32_t text[TEXT];
    float *wanted; /* [TEXT][vocab]: by one backend */
};

/* Every backend of one layout, as if each were a rank. */
struct replica {
    const struct model *m;
    struct gw_layout layout;
    int slots, kv_pages;
    struct gw_backend *backends[MOST_SLOTS];
    struct gw_shard shards[MOST_SLOTS];
    float *sums; /* [MAX_ROWS][d_model]: of a half layer */
    const float *sum_value;
    struct gw_tree_sum sum;
};

/* How the backends of a replica are made. */
struct making {
    struct gw_backend *donors[MOST_SLOTS]; /* or NULL */
    const bool *awaited;
    int kv_pages;
    int ticks;
};

static void count_tick(void *ticks)
{
    ++*(int *)ticks;
}

static void open_replica(struct replica *r, const struct model *m, struct gw_layout layout, struct making *making)
{
    *r = (struct replica){
        .m = m, .layout = layout, .slots = layout.tensor * layout.pipeline, .kv_pages = making->kv_pages};
    r->sums = calloc((size_t)MAX_ROWS * (size_t)m->dims.d_model, sizeof *r->sums);
    for (int s = 0; s < r->slots; s++) {
        struct gw_place place = gw_layout_place(layout, s);
        int ticks = making->ticks;
        r->shards[s] = gw_layout_shard(&m->dims, layout, place.shard, place.stage);
        struct gw_backend_config config = {.model = m->model,
                                           .dims = m->dims,
                                           .shard = r->shards[s],
                                           .kv_pages = making->kv_pages,
                                           .max_rows = MAX_ROWS,
                                           .max_context = CONTEXT,
                                           .donor = making->donors[s],
                                           .awaited = making->awaited,
                                           .tick = count_tick,
                                           .tick_context = &making->ticks};
        CU_ASSERT_FATAL(gw_backend_cpu_create(&config, m->kernels, m->pool, &r->backends[s]) == GW_OK);
        CU_ASSERT(making->ticks - ticks >= r->shards[s].layer_end - r->shards[s].layer_begin);
    }
}

static void close_replica(struct replica *r)
{
    for (int s = 0; s < r->slots; s++) r->backends[s]->ops->destroy(r->backends[s]);
    r->slots = 0;
    free(r->sums);
    r->sums = NULL;
}

/* The sum of a half layer over the shards of a stage, by the tree of engine/tree.h, for one part of a step. */
static void add_sum(struct replica *r, int stage, bool of_ffn, const struct gw_step *step, int part)
{
    struct gw_tree_node nodes[GW_TREE_MAX_ATOMS] = {0};
    const float *values[GW_TREE_MAX_ATOMS] = {0};
    int tensor = r->layout.tensor, total = 0, d = r->m->dims.d_model;
    struct gw_backend **b = r->backends + stage * tensor;
    if (tensor == 1) {
        CU_ASSERT_FATAL(b[0]->ops->residual_add_own(b[0], part) == GW_OK);
        return;
    }
    int atoms = of_ffn ? r->m->dims.ffn_atoms : r->m->dims.kv_heads;
    for (int t = 0; t < tensor; t++) {
        const struct gw_shard *s = &r->shards[stage * tensor + t];
        const float *own = NULL;
        int count = gw_tree_nodes(atoms, of_ffn ? s->ffn_begin : s->kv_begin, of_ffn ? s->ffn_end : s->kv_end,
                                  nodes + total);
        CU_ASSERT_FATAL(b[t]->ops->partial_map(b[t], &own) == GW_OK);
        for (int n = 0; n < count; n++) values[total++] = own + (size_t)n * (size_t)step->rows * (size_t)d;
    }
    const struct gw_tree_sum tree = {.atoms = atoms, .node_count = total, .nodes = nodes, .values = values};
    int begin, end;
    gw_step_part(step, part, &begin, &end);
    gw_tree_reduce(&tree, (size_t)begin * (size_t)d, (size_t)(end - begin) * (size_t)d,
                   r->sums + (size_t)begin * (size_t)d);
    r->sum_value = r->sums;
    r->sum = gw_tree_whole(&r->sum_value);
    for (int t = 0; t < tensor; t++) CU_ASSERT_FATAL(b[t]->ops->residual_add(b[t], part, &r->sum) == GW_OK);
}

static void run_stage(struct replica *r, int stage, const struct gw_step *step, float *hidden)
{
    int tensor = r->layout.tensor;
    struct gw_backend **b = r->backends + stage * tensor;
    const struct gw_shard *s = &r->shards[stage * tensor];
    for (int t = 0; t < tensor; t++) {
        CU_ASSERT_FATAL(b[t]->ops->step_begin(b[t], step) == GW_OK);
        gw_err rc = stage == 0 ? b[t]->ops->embed(b[t]) : b[t]->ops->hidden_import(b[t], hidden);
        CU_ASSERT_FATAL(rc == GW_OK);
    }
    for (int layer = s->layer_begin; layer < s->layer_end; layer++) {
        for (int part = 0; part < gw_step_parts(step); part++) {
            for (int t = 0; t < tensor; t++) CU_ASSERT_FATAL(b[t]->ops->attention(b[t], layer, part) == GW_OK);
            add_sum(r, stage, false, step, part);
        }
        for (int part = 0; part < gw_step_parts(step); part++) {
            for (int t = 0; t < tensor; t++) CU_ASSERT_FATAL(b[t]->ops->ffn(b[t], layer, part) == GW_OK);
            add_sum(r, stage, true, step, part);
        }
    }
    if (stage + 1 < r->layout.pipeline)
        CU_ASSERT_FATAL(b[tensor - 1]->ops->hidden_export(b[tensor - 1], hidden) == GW_OK);
}

/* Positions [begin, end) of the text, with its pages under the given numbers; logits [end - begin][vocab]. */
static void run_text(struct replica *r, const int32_t *pages, int begin, int end, float *out)
{
    const struct gw_dims *dims = &r->m->dims;
    int rows = end - begin, last = (r->layout.pipeline - 1) * r->layout.tensor;
    int32_t row[MAX_ROWS];
    float *hidden = calloc((size_t)rows * (size_t)dims->d_model, sizeof *hidden);
    struct gw_step step = {0};
    struct gw_step_seq *seq = gw_step_add_seq(&step);
    seq->rows = rows;
    seq->pos0 = begin;
    gw_step_add_tokens(&step, r->m->text + begin, rows);
    gw_step_add_pages(&step, pages, (end + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS);
    if (rows > GW_ACT_ROWS && next_int(2)) step.cut = GW_ACT_ROWS * (1 + next_int((rows - 1) / GW_ACT_ROWS));
    for (int stage = 0; stage < r->layout.pipeline; stage++) run_stage(r, stage, &step, hidden);
    for (int i = 0; i < rows; i++) row[i] = i;
    for (int t = 0; t < r->layout.tensor; t++) {
        struct gw_backend *b = r->backends[last + t];
        const struct gw_shard *s = &r->shards[last + t];
        int width = s->vocab_end - s->vocab_begin;
        float *logits = NULL;
        CU_ASSERT_FATAL(b->ops->logits(b, row, rows, &logits) == GW_OK);
        for (int i = 0; i < rows && width; i++)
            memcpy(out + (size_t)i * (size_t)dims->vocab + s->vocab_begin, logits + (size_t)i * (size_t)width,
                   (size_t)width * sizeof *out);
    }
    free(hidden);
    gw_step_free(&step);
}

static bool same_logits(const struct model *m, const float *got, int begin, int end)
{
    size_t vocab = (size_t)m->dims.vocab;
    return memcmp(m->wanted + (size_t)begin * vocab, got, (size_t)(end - begin) * vocab * sizeof *got) == 0;
}

static const int32_t pages_before[] = {4, 1, 5}, pages_after[] = {2, 1, 0};

static void open_model(struct model *m, enum gw_type type, int layers, int kv_heads, const char *kernels)
{
    struct gw_tiny_spec spec = gw_tiny_default(type);
    *m = (struct model){0};
    spec.arch = layers % 2 ? "llama" : "qwen2";
    spec.layers = layers;
    spec.ffn = 512;
    spec.vocab = 300;
    spec.tied = false;
    spec.seed = (uint64_t)layers;
    if (kv_heads) spec.kv_heads = kv_heads;
    CU_ASSERT_FATAL(gw_tiny_build(&spec, &m->file) == GW_OK);
    CU_ASSERT_FATAL(gw_model_parse("tiny", m->file.data, m->file.bytes, &m->model) == GW_OK);
    m->dims = gw_executor_dims(m->model);
    if (kernels) CU_ASSERT_FATAL(gw_kernels_by_name(kernels, &m->kernels) == GW_OK);
    if (!kernels) CU_ASSERT_FATAL(gw_kernels_get(&m->kernels) == GW_OK);
    CU_ASSERT_FATAL(gw_pool_create(1 + layers % 2, NULL, &m->pool) == GW_OK);
    for (int i = 0; i < TEXT; i++) m->text[i] = next_int(259);
    struct replica one;
    struct making plain = {.kv_pages = PAGES};
    open_replica(&one, m, GW_LAYOUT(1, 1, 1), &plain);
    m->wanted = calloc((size_t)TEXT * (size_t)m->dims.vocab, sizeof *m->wanted);
    run_text(&one, pages_before, 0, TEXT, m->wanted);
    close_replica(&one);
}

static void close_model(struct model *m)
{
    free(m->wanted);
    gw_pool_destroy(m->pool);
    gw_model_close(m->model);
    gw_buf_free(&m->file);
}

/* ---- KV pages ------------------------------------------------------------------------------------------------------- */

/* The keys and values of heads [begin, end) of one page, in one go or head by head. */
static void move_page(struct gw_backend *from, struct gw_backend *to, int layer, int page_from, int page_to, int begin,
                      int end, int dim)
{
    uint16_t *page = calloc((size_t)(end - begin) * gw_page_halves(dim), sizeof *page);
    for (int at = begin, next; at < end; at = next) {
        next = at + 1 + next_int(end - at);
        CU_ASSERT_FATAL(from->ops->kv_export(from, layer, page_from, at, next, page) == GW_OK);
        CU_ASSERT_FATAL(to->ops->kv_import(to, layer, page_to, at, next, page) == GW_OK);
    }
    free(page);
}

static bool same_page(struct gw_backend *a, struct gw_backend *b, int layer, int page, const struct gw_shard *s,
                      int dim)
{
    size_t halves = (size_t)(s->kv_end - s->kv_begin) * gw_page_halves(dim);
    uint16_t *first = calloc(halves + 1, sizeof *first), *second = calloc(halves + 1, sizeof *second);
    CU_ASSERT_FATAL(a->ops->kv_export(a, layer, page, s->kv_begin, s->kv_end, first) == GW_OK);
    CU_ASSERT_FATAL(b->ops->kv_export(b, layer, page, s->kv_begin, s->kv_end, second) == GW_OK);
    bool same = memcmp(first, second, halves * sizeof *first) == 0;
    free(first);
    free(second);
    return same;
}

/* What replica `to` needs of the first `count` pages, from `from`: donors[s] is what backend s was made from. Returns how many layers' pages
 * were inherited. */
static int move_kv(struct replica *from, struct replica *to, struct gw_backend *const *donors, const int32_t *pages_to,
                   int count)
{
    int dim = to->m->dims.head_dim, inherited = 0;
    for (int s = 0; s < to->slots; s++)
        for (int layer = to->shards[s].layer_begin; layer < to->shards[s].layer_end; layer++) {
            struct gw_backend *b = to->backends[s];
            bool same = b->ops->kv_inherited(b, layer);
            CU_ASSERT(!same || donors[s]);
            inherited += same;
            for (int p = 0; p < count; p++) {
                if (same && pages_to[p] == pages_before[p]) {
                    CU_ASSERT(same_page(donors[s], b, layer, pages_to[p], &to->shards[s], dim));
                    continue;
                }
                for (int f = 0; f < from->slots; f++) {
                    const struct gw_shard *a = &from->shards[f], *c = &to->shards[s];
                    int begin = a->kv_begin > c->kv_begin ? a->kv_begin : c->kv_begin;
                    int end = a->kv_end < c->kv_end ? a->kv_end : c->kv_end;
                    if (layer < a->layer_begin || layer >= a->layer_end || begin >= end) continue;
                    move_page(from->backends[f], b, layer, pages_before[p], pages_to[p], begin, end, dim);
                }
            }
        }
    return inherited;
}

/* ---- weights -------------------------------------------------------------------------------------------------------- */

/* The end of a random cut of [at, end) that one shard has. */
static int cut_end(int at, int end, int has_end, int unit)
{
    int most = has_end < end ? has_end : end;
    int next = at + unit * (1 + next_int((most - at + unit - 1) / unit));
    return next < most ? next : most;
}

static void send_slice(const struct replica *from, int f, struct gw_backend *to, const struct gw_weight_slice *slice)
{
    struct gw_buf data = {0};
    struct gw_backend *b = from->backends[f];
    CU_ASSERT_FATAL(b->ops->weights_export(b, slice, &data) == GW_OK);
    uint8_t *exact = malloc(data.bytes);
    memcpy(exact, data.data, data.bytes);
    CU_ASSERT_FATAL(to->ops->weights_import(to, slice, exact, data.bytes) == GW_OK);
    free(exact);
    gw_buf_free(&data);
}

enum cut { HEADS, ATOMS, VOCAB };

/* Everything of one kind that shard `s` has of a layer, piece by piece from whoever has it. */
static void send_range(const struct replica *from, struct gw_backend *to, const struct gw_shard *s, int layer,
                       enum cut cut)
{
    int begin = cut == HEADS ? s->kv_begin : cut == ATOMS ? s->ffn_begin : s->vocab_begin;
    int end = cut == HEADS ? s->kv_end : cut == ATOMS ? s->ffn_end : s->vocab_end;
    for (int at = begin; at < end;) {
        int f = next_int(from->slots);
        const struct gw_shard *a = &from->shards[f];
        int has = cut == HEADS ? a->kv_begin : cut == ATOMS ? a->ffn_begin : a->vocab_begin;
        int has_end = cut == HEADS ? a->kv_end : cut == ATOMS ? a->ffn_end : a->vocab_end;
        bool here = cut == VOCAB ? a->last : layer >= a->layer_begin && layer < a->layer_end;
        if (!here || at < has || at >= has_end) continue;
        int next = cut_end(at, end, has_end, cut == VOCAB ? GW_SUM_CHUNK : 1);
        struct gw_weight_slice slice = {.layer = layer};
        if (cut == HEADS) slice.kv_begin = at, slice.kv_end = next;
        if (cut == ATOMS) slice.ffn_begin = at, slice.ffn_end = next;
        if (cut == VOCAB) slice.vocab_begin = at, slice.vocab_end = next;
        send_slice(from, f, to, &slice);
        at = next;
    }
}

static void send_weights(const struct replica *from, struct replica *to)
{
    for (int s = 0; s < to->slots; s++) {
        const struct gw_shard *shard = &to->shards[s];
        for (int layer = shard->layer_begin; layer < shard->layer_end; layer++) {
            send_range(from, to->backends[s], shard, layer, ATOMS);
            send_range(from, to->backends[s], shard, layer, HEADS);
        }
        if (shard->last) send_range(from, to->backends[s], shard, to->m->dims.layers, VOCAB);
    }
}

/* ---- tests ---------------------------------------------------------------------------------------------------------- */

static const struct gw_layout layouts[] = {
    {.data = 1, .tensor = 1, .pipeline = 1}, {.data = 1, .tensor = 2, .pipeline = 1},
    {.data = 1, .tensor = 1, .pipeline = 2}, {.data = 1, .tensor = 3, .pipeline = 1},
    {.data = 1, .tensor = 2, .pipeline = 2}, {.data = 1, .tensor = 1, .pipeline = 3},
    {.data = 1, .tensor = 5, .pipeline = 1}, {.data = 1, .tensor = 3, .pipeline = 2}};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

/* The first part of the text in one layout, the rest in another. */
static int change_layout(const struct model *m, int a, int b, bool with_donors, const bool *awaited, int kv_pages)
{
    struct replica from, to;
    struct making plain = {.kv_pages = PAGES}, making = {.awaited = awaited, .kv_pages = kv_pages};
    const int32_t *pages = next_int(2) ? pages_before : pages_after;
    float *logits = calloc((size_t)TEXT * (size_t)m->dims.vocab, sizeof *logits);
    open_replica(&from, m, layouts[a], &plain);
    run_text(&from, pages_before, 0, FIRST_PART, logits);
    CU_ASSERT(same_logits(m, logits, 0, FIRST_PART));
    int turn = next_int(from.slots); /* ranks change places, too */
    for (int s = 0; with_donors && s < MOST_SLOTS; s++) making.donors[s] = from.backends[(s + turn) % from.slots];
    open_replica(&to, m, layouts[b], &making);
    if (awaited) send_weights(&from, &to);
    int inherited = move_kv(&from, &to, making.donors, pages, (FIRST_PART + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS);
    close_replica(&from);
    run_text(&to, pages, FIRST_PART, TEXT, logits);
    if (!same_logits(m, logits, FIRST_PART, TEXT))
        printf("%dx%dx%d -> %dx%dx%d differs ", layouts[a].data, layouts[a].tensor, layouts[a].pipeline,
               layouts[b].data, layouts[b].tensor, layouts[b].pipeline);
    CU_ASSERT(same_logits(m, logits, FIRST_PART, TEXT));
    close_replica(&to);
    free(logits);
    return inherited;
}

static bool is_possible(const struct model *m, int layout)
{
    return gw_layout_check(&m->dims, layouts[layout]) == GW_OK;
}

static void test_donors(void)
{
    int inherited = 0;
    struct model m;
    open_model(&m, GW_TYPE_Q4_1, 3, 0, NULL);
    for (int a = 0; a < LAYOUTS; a++)
        for (int b = 0; b < LAYOUTS; b++) {
            if (!is_possible(&m, a) || !is_possible(&m, b) || (a && b && next_int(2))) continue;
            inherited += change_layout(&m, a, b, true, NULL, PAGES - next_int(2));
            if ((a + b) % 3 == 0)
                CU_ASSERT_EQUAL(change_layout(&m, a, b, true, NULL, PAGES + 1), 0); /* more pages: other memory */
        }
    printf("(%d layers' pages inherited) ", inherited);
    CU_ASSERT(inherited > 15);
    close_model(&m);
}

/* From layout to layout and on, each made from the one before, which goes at once. */
static void test_chain(void)
{
    struct model m;
    struct replica now, next;
    struct making plain = {.kv_pages = PAGES};
    open_model(&m, GW_TYPE_Q6_K, 3, 0, NULL);
    float *logits = calloc((size_t)TEXT * (size_t)m.dims.vocab, sizeof *logits);
    open_replica(&now, &m, layouts[0], &plain);
    for (int i = 0; i < 12; i++) {
        int b = next_int(LAYOUTS);
        if (!is_possible(&m, b)) continue;
        struct making making = {.kv_pages = PAGES};
        for (int s = 0; s < MOST_SLOTS; s++) making.donors[s] = now.backends[s % now.slots];
        open_replica(&next, &m, layouts[b], &making);
        close_replica(&now);
        now = next;
        run_text(&now, pages_after, 0, TEXT, logits);
        CU_ASSERT(same_logits(&m, logits, 0, TEXT));
    }
    close_replica(&now);
    free(logits);
    close_model(&m);
}

static void test_weights(void)
{
    static const enum gw_type types[] = {GW_TYPE_Q4_1, GW_TYPE_Q8_0, GW_TYPE_F16,  GW_TYPE_Q4_K,
                                         GW_TYPE_Q5_K, GW_TYPE_Q6_K, GW_TYPE_BF16, GW_TYPE_Q5_0};
    bool awaited[MOST_LAYERS + 1];
    for (int i = 0; i <= MOST_LAYERS; i++) awaited[i] = true;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct model m;
        open_model(&m, types[t], 2 + (int)t % 2, t % 4 == 1 ? 2 : 0, t == 2 ? "ref" : NULL);
        for (int i = 0; i < 5; i++) {
            int a = next_int(LAYOUTS), b = next_int(LAYOUTS);
            if (!is_possible(&m, a) || !is_possible(&m, b)) continue;
            change_layout(&m, a, b, false, awaited, PAGES);
            change_layout(&m, a, b, true, awaited, PAGES); /* what is shared is sent all the same */
        }
        close_model(&m);
    }
}

/* Some layers awaited, the rest loaded. */
static void test_some_awaited(void)
{
    struct model m;
    open_model(&m, GW_TYPE_Q4_0, 4, 0, NULL);
    for (int i = 0; i < 6; i++) {
        bool awaited[MOST_LAYERS + 1] = {0};
        struct replica from, to;
        struct making plain = {.kv_pages = PAGES}, making = {.awaited = awaited, .kv_pages = PAGES};
        float *logits = calloc((size_t)TEXT * (size_t)m.dims.vocab, sizeof *logits);
        for (int layer = 0; layer <= m.dims.layers; layer++) awaited[layer] = next_int(2);
        open_replica(&from, &m, layouts[i % 3], &plain);
        open_replica(&to, &m, layouts[(i + 1) % 5], &making);
        for (int s = 0; s < to.slots; s++) {
            const struct gw_shard *shard = &to.shards[s];
            for (int layer = shard->layer_begin; layer < shard->layer_end; layer++) {
                if (!awaited[layer]) continue;
                send_range(&from, to.backends[s], shard, layer, HEADS);
                send_range(&from, to.backends[s], shard, layer, ATOMS);
            }
            if (shard->last && awaited[m.dims.layers]) send_range(&from, to.backends[s], shard, m.dims.layers, VOCAB);
        }
        close_replica(&from);
        run_text(&to, pages_before, 0, TEXT, logits);
        CU_ASSERT(same_logits(&m, logits, 0, TEXT));
        close_replica(&to);
        free(logits);
    }
    close_model(&m);
}

/* A backend whose weights have not come (all, or some) is no donor of them; one that is complete by now is. */
static void test_incomplete_donor(void)
{
    struct model m;
    open_model(&m, GW_TYPE_Q4_1, 2, 0, NULL);
    bool awaited[MOST_LAYERS + 1];
    for (int i = 0; i <= MOST_LAYERS; i++) awaited[i] = true;
    float *logits = calloc((size_t)TEXT * (size_t)m.dims.vocab, sizeof *logits);
    for (int half = 0; half < 3; half++) {
        struct replica from, waiting, to;
        struct making plain = {.kv_pages = PAGES}, making = {.awaited = awaited, .kv_pages = PAGES},
                      last = {.kv_pages = PAGES};
        open_replica(&from, &m, layouts[1], &plain);
        open_replica(&waiting, &m, layouts[0], &making);
        if (half == 1) { /* a part of layer 1 only */
            send_slice(&from, 0, waiting.backends[0], &(struct gw_weight_slice){.layer = 1, .kv_end = 1});
            send_slice(&from, 0, waiting.backends[0], &(struct gw_weight_slice){.layer = 1, .ffn_end = 1});
            send_slice(&from, 0, waiting.backends[0],
                       &(struct gw_weight_slice){.layer = 2, .vocab_end = from.shards[0].vocab_end});
        } else if (half == 2) {
            send_weights(&from, &waiting);
        }
        last.donors[0] = waiting.backends[0];
        open_replica(&to, &m, layouts[0], &last);
        close_replica(&waiting);
        close_replica(&from);
        run_text(&to, pages_before, 0, TEXT, logits);
        CU_ASSERT(same_logits(&m, logits, 0, TEXT));
        close_replica(&to);
    }
    free(logits);
    close_model(&m);
}

static void test_refusals(void)
{
    struct model m;
    struct replica from, to;
    struct making plain = {.kv_pages = PAGES};
    struct gw_buf data = {0};
    open_model(&m, GW_TYPE_Q4_1, 2, 0, NULL);
    open_replica(&from, &m, layouts[0], &plain);
    open_replica(&to, &m, layouts[0], &plain);
    struct gw_backend *a = from.backends[0], *b = to.backends[0];
    struct gw_weight_slice slice = {.layer = 0, .kv_begin = 1, .kv_end = 2, .ffn_end = 3};
    CU_ASSERT_FATAL(a->ops->weights_export(a, &slice, &data) == GW_OK);
    for (size_t bytes = 0; bytes < data.bytes; bytes += 1 + data.bytes / 37)
        CU_ASSERT_EQUAL(b->ops->weights_import(b, &slice, data.data, bytes), GW_ERR_PEER);
    CU_ASSERT_EQUAL(b->ops->weights_import(b, &slice, data.data, data.bytes), GW_OK);
    gw_buf_add(&data, "", 1);
    CU_ASSERT_EQUAL(b->ops->weights_import(b, &slice, data.data, data.bytes), GW_ERR_PEER);
    static const struct gw_weight_slice bad[] = {{.layer = 2, .vocab_begin = 8, .vocab_end = 64},
                                                 {.layer = 2, .vocab_begin = 0, .vocab_end = 40}};
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(a->ops->weights_export(a, &bad[i], &data), GW_ERR_UNSUPPORTED);
        CU_ASSERT_EQUAL(b->ops->weights_import(b, &bad[i], data.data, data.bytes), GW_ERR_UNSUPPORTED);
    }
    gw_buf_free(&data);
    close_replica(&from);
    close_replica(&to);
    close_model(&m);
}

int main(void)
{
    const char *given = getenv("GODWIT_TEST_SEED");
    if (given) seed = strtoull(given, NULL, 10);
    random_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("moves", NULL, NULL);
    CU_add_test(suite, "donors", test_donors);
    CU_add_test(suite, "donors in a chain", test_chain);
    CU_add_test(suite, "weights from peers", test_weights);
    CU_add_test(suite, "some weights from peers", test_some_awaited);
    CU_add_test(suite, "incomplete donors", test_incomplete_donor);
    CU_add_test(suite, "refusals", test_refusals);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
