/* See executor.h. */
#include "job/executor.h"

#include "base/clock.h"
#include "base/pool.h"
#include "comm/comm.h"
#include "comm/window.h"
#include "plan/cost.h"

#include <stdlib.h>

/* So much of its time for a layer must a shard wait for others, for parts to be worth while: products of half as many rows take a little longer. */
static const double PARTS_FROM = 0.1;

/* So many have more nodes of others to read than it costs to add up a share of the rows and wait once more. */
enum { MANY_SHARDS = 4 };

/* The sum over one kind of atoms, as all shards of the stage contribute to it. */
struct sum_plan {
    struct gw_exchange exchange;
    struct gw_tree_node nodes[GW_TREE_MAX_ATOMS];
    int *node_counts; /* [shards] */
};

/* A part's sum on its way. */
struct pending_sum {
    const struct sum_plan *plan; /* NULL: none */
    const float *own;            /* what the backend has mapped */
    uint64_t number;             /* of the window's writes, or of the step's exchanges */
    const float *values[GW_TREE_MAX_ATOMS];
    struct gw_tree_sum sum; /* what the backend adds; it names `values` */
};

struct gw_executor {
    struct gw_executor_config config;
    struct gw_dims dims;
    struct gw_shard shard;
    const struct gw_kernels *kernels;
    struct gw_pool *pool;
    struct gw_backend *backend;
    struct gw_sampler *samplers; /* [threads] on the last stage */

    struct gw_shards shards;
    int *vocab_begin; /* [shards + 1] */
    struct sum_plan attn_sum, ffn_sum;
    struct pending_sum pending[GW_STEP_PARTS];
    bool in_parts;            /* do shards win when they compute a step in parts? */
    struct gw_window *window; /* where all shards are on this node and have the store */
    uint64_t window_epoch;    /* the plan that it was asked for in: another one may have other shards */
    float *sum;               /* [max_rows][d_model], for several shards without a window */
    uint64_t exchanges;       /* numbers the sums of a step, alike on all shards */
    float *full_logits;       /* [rows drawn here][vocab], likewise */
    size_t full_logits_count;
    struct gw_step narrowed; /* of the last step, the rows that tokens are drawn from */
    int32_t *narrowed_from;  /* their numbers in it */
    bool is_narrowed;        /* the backend has no others left */
    struct gw_cost cost;     /* the default one, for the pace */
    struct gw_pace_report pace;
};

struct gw_dims gw_executor_dims(const struct gw_model *model)
{
    const struct gw_model_info *info = gw_model_info(model);
    struct gw_dims dims = {.layers = info->layers,
                           .d_model = info->d_model,
                           .heads = info->heads,
                           .kv_heads = info->kv_heads,
                           .head_dim = info->head_dim,
                           .ffn = info->ffn,
                           .vocab = info->vocab,
                           .ffn_atoms = gw_ffn_atoms(info->kv_heads, info->ffn)};
    static const enum gw_tensor_role roles[] = {GW_TENSOR_Q,    GW_TENSOR_K,  GW_TENSOR_V,   GW_TENSOR_ATTN_OUT,
                                                GW_TENSOR_GATE, GW_TENSOR_UP, GW_TENSOR_DOWN};
    double bytes = 0, weights = 0;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        const struct gw_gguf_tensor *tensor = gw_model_tensor(model, roles[i], 0);
        struct gw_packed packed;
        if (gw_packed_init(&packed, tensor->type->type, (int)tensor->shape[1], (int)tensor->shape[0]) != GW_OK)
            continue;
        bytes += (double)gw_packed_bytes(&packed);
        weights += (double)tensor->shape[0] * (double)tensor->shape[1];
    }
    dims.bytes_per_weight = weights > 0 ? bytes / weights : 1;
    const struct gw_gguf_tensor *output = gw_model_tensor(model, GW_TENSOR_OUTPUT, 0);
    struct gw_packed packed;
    if (gw_packed_init(&packed, output->type->type, (int)output->shape[1], (int)output->shape[0]) == GW_OK)
        dims.output_bytes = (double)gw_packed_bytes(&packed);
    return dims;
}

static void plan_sum(struct sum_plan *plan, const struct gw_executor *ex, int atoms, bool of_ffn)
{
    int shards = ex->config.team->layout.tensor, total = 0;
    plan->node_counts = gw_alloc((size_t)shards, sizeof(int));
    for (int s = 0; s < shards; s++) {
        struct gw_shard shard = gw_layout_shard(&ex->dims, ex->config.team->layout, s, ex->config.team->place.stage);
        struct gw_tree_node nodes[GW_TREE_MAX_NODES];
        int begin = of_ffn ? shard.ffn_begin : shard.kv_begin, end = of_ffn ? shard.ffn_end : shard.kv_end;
        plan->node_counts[s] = gw_tree_nodes(atoms, begin, end, nodes);
        for (int n = 0; n < plan->node_counts[s]; n++) plan->nodes[total++] = nodes[n];
    }
    plan->exchange = (struct gw_exchange){.atoms = atoms, .nodes = plan->nodes, .node_counts = plan->node_counts};
}

static void plan_shards(struct gw_executor *ex)
{
    int count = ex->config.team->layout.tensor;
    ex->vocab_begin = gw_alloc((size_t)count + 1, sizeof(int));
    for (int s = 0; s < count; s++) {
        struct gw_place place = ex->config.team->place;
        place.shard = s;
        ex->vocab_begin[s] = gw_layout_shard(&ex->dims, ex->config.team->layout, s, place.stage).vocab_begin;
    }
    ex->vocab_begin[count] = ex->dims.vocab;
    ex->shards = (struct gw_shards){.comm = ex->config.comm,
                                    .count = count,
                                    .own = ex->config.team->place.shard,
                                    .ranks = ex->config.team->ranks + ex->config.team->place.stage * count};
    plan_sum(&ex->attn_sum, ex, ex->dims.kv_heads, false);
    plan_sum(&ex->ffn_sum, ex, ex->dims.ffn_atoms, true);
}

gw_err gw_executor_create(const struct gw_executor_config *config, struct gw_executor **out)
{
    gw_err rc = GW_OK;
    int cpus[1024];
    struct gw_executor *ex = gw_alloc(1, sizeof *ex);
    ex->config = *config;
    ex->dims = gw_executor_dims(config->model);
    ex->cost = gw_cost_default();
    TRY(gw_layout_check(&ex->dims, config->team->layout));
    ex->shard = gw_layout_shard(&ex->dims, config->team->layout, config->team->place.shard, config->team->place.stage);
    ex->in_parts = gw_layout_wait(&ex->dims, config->team->layout) > PARTS_FROM;
    TRY(gw_kernels_get(&ex->kernels));
    int pinned = gw_pool_cpus(config->local_rank, config->local_size, config->threads, cpus, 1024);
    TRY(gw_pool_create(config->threads, pinned ? cpus : NULL, &ex->pool));
    plan_shards(ex);
    if (ex->shard.last) {
        ex->samplers = gw_alloc((size_t)config->threads, sizeof *ex->samplers);
        for (int t = 0; t < config->threads; t++) gw_sampler_init(&ex->samplers[t], ex->dims.vocab);
    }
    struct gw_backend_config backend = {.model = config->model,
                                        .dims = ex->dims,
                                        .shard = ex->shard,
                                        .kv_pages = config->kv_pages,
                                        .max_rows = config->max_rows,
                                        .max_context = config->max_context,
                                        .donor = config->donor ? config->donor->backend : NULL,
                                        .awaited = config->awaited,
                                        .store = config->store,
                                        .model_key = config->model_key,
                                        .resumed = config->resumed,
                                        .local_rank = config->local_rank,
                                        .local_size = config->local_size,
                                        .tick = config->tick,
                                        .tick_context = config->tick_context};
    TRY(gw_backend_cpu_create(&backend, ex->kernels, ex->pool, &ex->backend));
    *out = ex;
    ex = NULL;
out:
    gw_executor_destroy(ex);
    return rc;
}

void gw_executor_destroy(struct gw_executor *ex)
{
    if (!ex) return;
    if (ex->backend) ex->backend->ops->destroy(ex->backend);
    for (int t = 0; ex->samplers && t < ex->config.threads; t++) gw_sampler_close(&ex->samplers[t]);
    free(ex->samplers);
    gw_pool_destroy(ex->pool);
    free(ex->vocab_begin);
    free(ex->attn_sum.node_counts);
    free(ex->ffn_sum.node_counts);
    gw_window_close(ex->window);
    free(ex->sum);
    free(ex->full_logits);
    gw_step_free(&ex->narrowed);
    free(ex->narrowed_from);
    free(ex);
}

struct gw_shard gw_executor_shard(const struct gw_executor *ex)
{
    return ex->shard;
}

struct gw_backend *gw_executor_backend(struct gw_executor *ex)
{
    return ex->backend;
}

const char *gw_executor_kernels(const struct gw_executor *ex)
{
    return ex->kernels->name;
}

/* At a plan's first step, when all shards are there: how will they exchange? */
static gw_err open_window(struct gw_executor *ex)
{
    gw_err rc = GW_OK;
    struct gw_window_config config = {.shards = &ex->shards,
                                      .store = ex->config.store,
                                      .max_rows = ex->config.max_rows,
                                      .width = ex->dims.d_model,
                                      .vocab_begin = ex->shard.last ? ex->vocab_begin : NULL};
    for (int s = 0; s < ex->shards.count; s++) {
        int most = ex->attn_sum.node_counts[s] > ex->ffn_sum.node_counts[s] ? ex->attn_sum.node_counts[s]
                                                                            : ex->ffn_sum.node_counts[s];
        if (most > config.max_nodes) config.max_nodes = most;
    }
    struct gw_window *before = ex->window;
    ex->window = NULL;
    rc = gw_window_open(&config, &ex->window);
    int own = ex->shards.own;
    if (ex->window)
        ex->backend->ops->exchange_memory(ex->backend, gw_window_nodes(ex->window, own, 0),
                                          gw_window_nodes(ex->window, own, 1), gw_window_logits(ex->window),
                                          gw_window_logits_stride(ex->window));
    else ex->backend->ops->exchange_memory(ex->backend, NULL, NULL, NULL, 0);
    gw_window_close(before);
    TRY(rc);
    ex->window_epoch = gw_comm_epoch(ex->config.comm);
    if (!ex->window && !ex->sum)
        ex->sum = gw_alloc((size_t)ex->config.max_rows * (size_t)ex->dims.d_model, sizeof(float));
out:
    return rc;
}

/* ---- sums over the shards -------------------------------------------------------------------------------------- */

static struct gw_sum_rows rows_of(const struct gw_executor *ex, const struct gw_step *step, int part)
{
    struct gw_sum_rows rows = {.own_nodes = ex->pending[part].own, .rows = step->rows, .width = ex->dims.d_model};
    gw_step_part(step, part, &rows.begin, &rows.end);
    return rows;
}

/* A part's half layer is computed: its partial sums are on their way to the other shards. */
static gw_err begin_sum(struct gw_executor *ex, const struct sum_plan *plan, const struct gw_step *step, int part)
{
    gw_err rc = GW_OK;
    const struct gw_backend_ops *ops = ex->backend->ops;
    struct pending_sum *pending = &ex->pending[part];
    if (ex->shards.count == 1) return ops->residual_add_own(ex->backend, part);
    TRY(ops->partial_map(ex->backend, &pending->own));
    if (ex->window) {
        pending->number = gw_window_written(ex->window);
    } else {
        struct gw_sum_rows rows = rows_of(ex, step, part);
        pending->number = ex->exchanges++;
        TRY(gw_shards_sum_begin(&ex->shards, &plan->exchange, pending->number, &rows));
    }
    pending->plan = plan;
out:
    return rc;
}

/* Nodes of the window, of all shards, where they lie. */
static void name_nodes(struct gw_executor *ex, struct pending_sum *pending, int rows)
{
    const struct sum_plan *plan = pending->plan;
    size_t each = (size_t)rows * (size_t)ex->dims.d_model;
    int count = 0;
    for (int s = 0; s < ex->shards.count; s++)
        for (int n = 0; n < plan->node_counts[s]; n++)
            pending->values[count++] = gw_window_nodes(ex->window, s, plan == &ex->ffn_sum) + (size_t)n * each;
    pending->sum = (struct gw_tree_sum){
        .atoms = plan->exchange.atoms, .node_count = count, .nodes = plan->nodes, .values = pending->values};
}

/* All of a sum in one array. */
static void name_whole(struct pending_sum *pending, const float *sum)
{
    pending->values[0] = sum;
    pending->sum = gw_tree_whole(pending->values);
}

/* Before a part is computed on: the sum that is on its way to it, into its hidden rows. */
static gw_err end_sum(struct gw_executor *ex, const struct gw_step *step, int part)
{
    gw_err rc = GW_OK;
    struct pending_sum *pending = &ex->pending[part];
    if (!pending->plan) return GW_OK;
    if (ex->window) {
        const float *sum;
        TRY(gw_window_wait(ex->window, pending->number));
        name_nodes(ex, pending, step->rows);
        if (ex->shards.count >= MANY_SHARDS && gw_step_parts(step) == 1) {
            TRY(gw_window_sum(ex->window, &pending->sum, step->rows, &sum));
            name_whole(pending, sum);
        }
    } else {
        struct gw_sum_rows rows = rows_of(ex, step, part);
        TRY(gw_shards_sum_end(&ex->shards, &pending->plan->exchange, pending->number, &rows, ex->sum));
        name_whole(pending, ex->sum);
    }
    TRY(ex->backend->ops->residual_add(ex->backend, part, &pending->sum));
    pending->plan = NULL;
out:
    return rc;
}

/* ---- a step ---------------------------------------------------------------------------------------------------- */

/* Rows of a step that a token is drawn from. */
static int rows_drawn(const struct gw_step *step)
{
    int drawn = 0;
    for (int i = 0; i < step->seq_count; i++) drawn += step->seqs[i].sample != 0;
    return drawn;
}

/* What the cost model says to the slice's part of a step. */
static double said_s(const struct gw_executor *ex, const struct gw_step *step)
{
    const int drawn = rows_drawn(step);
    struct gw_load load = {.decode_rows = drawn, .prefill_rows = step->rows - drawn};
    double seen = 0;
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *seq = &step->seqs[i];
        seen += (double)seq->rows * (seq->pos0 + seq->rows / 2 + 1);
    }
    load.mean_context = step->rows ? seen / step->rows : 0;
    return gw_cost_stage_s(&ex->cost, &ex->dims, &ex->shard, 1, &load);
}

static void took(struct gw_executor *ex, double since_s)
{
    ex->pace.took_s += gw_clock_now_s() - since_s;
}

struct gw_pace_report gw_executor_take_pace(struct gw_executor *ex)
{
    struct gw_pace_report pace = ex->pace;
    ex->pace = (struct gw_pace_report){0};
    return pace;
}

double gw_executor_took_s(const struct gw_executor *ex)
{
    return ex->pace.took_s;
}

void gw_executor_drag(struct gw_executor *ex, double seconds)
{
    ex->pace.took_s += seconds;
}

void gw_executor_cut(const struct gw_executor *ex, struct gw_step *step)
{
    int threads = ex->config.threads, fewest = threads == 1 ? GW_ACT_ROWS : threads * ex->kernels->group_rows;
    int tiles = (step->rows + GW_ACT_ROWS - 1) / GW_ACT_ROWS;
    bool enough = step->rows >= GW_STEP_PARTS * fewest;
    step->cut = ex->in_parts && enough ? tiles / GW_STEP_PARTS * GW_ACT_ROWS : 0;
}

/* To narrow a step costs about what a few rows of the last layer do, and their keys once more: are there enough others? */
static bool worth_narrowing(const struct gw_step *step)
{
    const int drawn = rows_drawn(step);
    return 4 * (step->rows - drawn) > drawn;
}

/* ex->narrowed: the rows that tokens are drawn from. */
static void list_drawn(struct gw_executor *ex, const struct gw_step *step)
{
    struct gw_step *to = &ex->narrowed;
    gw_step_clear(to);
    ex->narrowed_from = gw_realloc(ex->narrowed_from, (size_t)step->seq_count, sizeof *ex->narrowed_from);
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *seq = &step->seqs[i];
        int last = seq->rows - 1, pos = seq->pos0 + last;
        if (!seq->sample) continue;
        struct gw_step_seq *drawn = gw_step_add_seq(to);
        *drawn = *seq;
        drawn->row0 = to->rows;
        drawn->rows = 1;
        drawn->pos0 = pos;
        drawn->page0 = to->page_count;
        ex->narrowed_from[to->rows] = seq->row0 + last;
        gw_step_add_tokens(to, &step->tokens[seq->row0 + last], 1);
        gw_step_add_pages(to, &step->pages[seq->page0], pos / GW_PAGE_TOKENS + 1);
    }
}

/* Before the model's last layer: keys and values of all rows, and from there on those alone that tokens are drawn from. */
static gw_err narrow(struct gw_executor *ex, const struct gw_step *step, int layer)
{
    gw_err rc = GW_OK;
    const struct gw_backend_ops *ops = ex->backend->ops;
    for (int part = 0; part < gw_step_parts(step); part++) {
        TRY(end_sum(ex, step, part));
        double begun_s = gw_clock_now_s();
        TRY(ops->keys(ex->backend, layer, part));
        took(ex, begun_s);
    }
    list_drawn(ex, step);
    ex->is_narrowed = true;
    if (ex->narrowed.rows > 0) TRY(ops->narrow(ex->backend, &ex->narrowed, ex->narrowed_from));
out:
    return rc;
}

static gw_err run_layer(struct gw_executor *ex, const struct gw_step *step, int layer)
{
    gw_err rc = GW_OK;
    const struct gw_backend_ops *ops = ex->backend->ops;
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < gw_step_parts(step); part++) {
            TRY(end_sum(ex, step, part));
            double begun_s = gw_clock_now_s();
            TRY((half ? ops->ffn : ops->attention)(ex->backend, layer, part));
            took(ex, begun_s);
            TRY(begin_sum(ex, half ? &ex->ffn_sum : &ex->attn_sum, step, part));
        }
out:
    return rc;
}

gw_err gw_executor_forward(struct gw_executor *ex, const struct gw_step *step, enum gw_outputs outputs,
                           const float *hidden_in, float *hidden_out)
{
    gw_err rc = GW_OK;
    const struct gw_backend_ops *ops = ex->backend->ops;
    const struct gw_step *now = step;
    if (ex->shards.count > 1 && ex->window_epoch != gw_comm_epoch(ex->config.comm)) TRY(open_window(ex));
    TRY(ops->step_begin(ex->backend, step));
    ex->exchanges = step->id * 2 * GW_STEP_PARTS * (uint64_t)ex->dims.layers;
    for (int part = 0; part < GW_STEP_PARTS; part++) ex->pending[part].plan = NULL;
    ex->is_narrowed = false;
    if (ex->shard.first) TRY(ops->embed(ex->backend));
    else TRY(ops->hidden_import(ex->backend, hidden_in));
    for (int layer = ex->shard.layer_begin; layer < ex->shard.layer_end; layer++) {
        if (ex->config.comm) { /* a step may be long: a loss is noticed within it */
            gw_comm_beat(ex->config.comm);
            TRY(gw_comm_look(ex->config.comm));
        }
        if (ex->config.between) TRY(ex->config.between(ex->config.between_context));
        if (layer == ex->dims.layers - 1 && outputs == GW_OUTPUTS_DRAWN && worth_narrowing(step)) {
            TRY(narrow(ex, step, layer));
            now = &ex->narrowed;
        }
        if (now->rows > 0) TRY(run_layer(ex, now, layer));
    }
    for (int part = 0; part < gw_step_parts(now); part++) TRY(end_sum(ex, now, part));
    ex->pace.said_s += said_s(ex, step);
    ex->pace.steps++;
    ex->pace.rows += (uint64_t)step->rows;
    if (!ex->shard.last) TRY(ops->hidden_export(ex->backend, hidden_out));
out:
    return rc;
}

gw_err gw_executor_logits(struct gw_executor *ex, const int32_t *rows, int count, float **logits)
{
    GW_ASSERT(ex->shards.count == 1 && !ex->is_narrowed);
    return ex->backend->ops->logits(ex->backend, rows, count, logits);
}

struct draw_job {
    struct gw_executor *ex;
    const struct gw_step *step;
    const int32_t *seqs; /* [count] indices in the step */
    int count;
    float *logits; /* [count][vocab], or NULL: in the window */
    struct gw_drawn *drawn;
    gw_err *errors; /* [threads] */
};

static void draw_share(void *arg, int thread, int threads)
{
    struct draw_job *job = arg;
    struct gw_executor *ex = job->ex;
    int begin, end;
    gw_split(job->count, threads, thread, &begin, &end);
    for (int i = begin; i < end && job->errors[thread] == GW_OK; i++) {
        const struct gw_step_seq *seq = &job->step->seqs[job->seqs[i]];
        float *row = job->logits ? job->logits + (size_t)i * (size_t)ex->dims.vocab
                                 : gw_window_row(ex->window, ex->shards.own + i * ex->shards.count);
        job->drawn[i].seq = seq->seq;
        job->errors[thread] = gw_sample(ex->kernels, &ex->samplers[thread], &seq->params, row, ex->dims.vocab,
                                        job->step->history + seq->history0, seq->history_count, seq->token_index,
                                        seq->logprobs, &job->drawn[i].result);
    }
}

/* Room for `rows` complete rows of logits, as the shards have parts of them. */
static float *room_for_logits(struct gw_executor *ex, int rows)
{
    size_t need = (size_t)rows * (size_t)ex->dims.vocab;
    if (need > ex->full_logits_count) {
        free(ex->full_logits);
        ex->full_logits_count = need > 2 * ex->full_logits_count ? need : 2 * ex->full_logits_count;
        ex->full_logits = gw_alloc_lines(ex->full_logits_count, sizeof(float));
    }
    return ex->full_logits;
}

/* Draws for the sequences `seqs` of the step, from complete rows of logits. */
static gw_err draw_rows(struct gw_executor *ex, const struct gw_step *step, const int32_t *seqs, int count,
                        float *logits, struct gw_drawn *drawn)
{
    gw_err errors[1024] = {GW_OK};
    struct draw_job job = {ex, step, seqs, count, logits, drawn, errors};
    GW_ASSERT(ex->config.threads <= 1024);
    for (int i = 0; i < count; i++) drawn[i] = (struct gw_drawn){0};
    if (count) gw_pool_run(ex->pool, draw_share, &job);
    for (int t = 0; t < ex->config.threads; t++)
        if (errors[t] != GW_OK)
            return gw_fail(errors[t], "drawing a token failed: no logit is finite; the model file may be damaged");
    return GW_OK;
}

gw_err gw_executor_draw(struct gw_executor *ex, const struct gw_step *step, struct gw_drawn *drawn, int *count)
{
    gw_err rc = GW_OK;
    int sampled = 0, own = 0;
    int32_t *rows = gw_alloc((size_t)step->seq_count + 1, sizeof *rows);
    int32_t *seqs = gw_alloc((size_t)step->seq_count + 1, sizeof *seqs);
    float *logits = NULL;
    *count = 0;
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *seq = &step->seqs[i];
        if (!seq->sample) continue;
        if (sampled % ex->shards.count == ex->shards.own) seqs[own++] = i;
        rows[sampled] = ex->is_narrowed ? sampled : seq->row0 + seq->rows - 1;
        sampled++;
    }
    if (sampled == 0) goto out;
    double begun_s = gw_clock_now_s();
    TRY(ex->backend->ops->logits(ex->backend, rows, sampled, &logits));
    took(ex, begun_s);
    if (ex->window) {
        TRY(gw_window_wait(ex->window, gw_window_written(ex->window)));
        logits = NULL;
    } else if (ex->shards.count > 1) {
        float *full = room_for_logits(ex, own);
        TRY(gw_shards_rows(&ex->shards, step->id, ex->vocab_begin, logits, sampled, full));
        logits = full;
    }
    begun_s = gw_clock_now_s();
    TRY(draw_rows(ex, step, seqs, own, logits, drawn));
    took(ex, begun_s);
    *count = own;
out:
    free(rows);
    free(seqs);
    return rc;
}
