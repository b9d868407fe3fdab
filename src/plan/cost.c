/* See cost.h. */
#include "plan/cost.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct gw_cost gw_cost_default(void)
{
    return (struct gw_cost){
        .mac_s = 1.15e-11,
        .weight_byte_s = 5e-11,
        .attention_s = 8e-11,
        .row_s = 1.5e-5,
        .step_s = 1e-4,
        .latency_s = 2e-6,
        .node_latency_s = 3e-5,
        .link_bytes_per_s = 3e9,
        .node_link_bytes_per_s = 1e9,
        .pack_bytes_per_s = 1e9,
        .storage_bytes_per_s = 5e8,
        .spawn_s = 0.12,
        .repair_s = 0.015,
    };
}

/* ---- calibration ----------------------------------------------------------------------------------------------- */

static const double MOST_CHANGE = 10, LEAST_WEIGHT = 0.1;

static double *coefficient(struct gw_cost *cost, enum gw_cost_kind kind)
{
    switch (kind) {
    case GW_COST_LATENCY: return &cost->latency_s;
    case GW_COST_NODE_LATENCY: return &cost->node_latency_s;
    case GW_COST_LINK: return &cost->link_bytes_per_s;
    case GW_COST_NODE_LINK: return &cost->node_link_bytes_per_s;
    case GW_COST_PACK: return &cost->pack_bytes_per_s;
    case GW_COST_STORAGE: return &cost->storage_bytes_per_s;
    case GW_COST_SPAWN: return &cost->spawn_s;
    case GW_COST_REPAIR: return &cost->repair_s;
    default: return NULL;
    }
}

static bool is_rate(enum gw_cost_kind kind)
{
    return kind == GW_COST_LINK || kind == GW_COST_NODE_LINK || kind == GW_COST_PACK || kind == GW_COST_STORAGE;
}

/* The plain mean of the first measurements, then an exponential one. */
static double folded_factor(int seen, double factor)
{
    double weight = 1.0 / (seen + 1.0);
    if (weight < LEAST_WEIGHT) weight = LEAST_WEIGHT;
    if (factor > MOST_CHANGE) factor = MOST_CHANGE;
    if (factor < 1 / MOST_CHANGE) factor = 1 / MOST_CHANGE;
    return 1 + weight * (factor - 1);
}

void gw_cost_observe(struct gw_cost *cost, enum gw_cost_kind kind, double amount, double seconds)
{
    double per_unit_s = seconds / amount;
    if (!(amount > 0) || !(seconds > 0) || !isfinite(per_unit_s) || !(per_unit_s > 0) || !isfinite(1 / per_unit_s))
        return;
    if (kind == GW_COST_COMPUTE) {
        double factor = folded_factor(cost->seen[kind], per_unit_s);
        cost->mac_s *= factor;
        cost->weight_byte_s *= factor;
        cost->attention_s *= factor;
        cost->row_s *= factor;
        cost->step_s *= factor;
    } else {
        double *value = coefficient(cost, kind), measured = is_rate(kind) ? 1 / per_unit_s : per_unit_s;
        if (!value) return;
        *value *= folded_factor(cost->seen[kind], measured / *value);
    }
    if (cost->seen[kind] < 1000000) cost->seen[kind]++;
}

/* ---- text form ------------------------------------------------------------------------------------------------- */

static const struct {
    const char *key;
    size_t offset;
} figures[] = {
    {"mac_s", offsetof(struct gw_cost, mac_s)},
    {"weight_byte_s", offsetof(struct gw_cost, weight_byte_s)},
    {"attention_s", offsetof(struct gw_cost, attention_s)},
    {"row_s", offsetof(struct gw_cost, row_s)},
    {"step_s", offsetof(struct gw_cost, step_s)},
    {"latency_s", offsetof(struct gw_cost, latency_s)},
    {"node_latency_s", offsetof(struct gw_cost, node_latency_s)},
    {"link_bytes_per_s", offsetof(struct gw_cost, link_bytes_per_s)},
    {"node_link_bytes_per_s", offsetof(struct gw_cost, node_link_bytes_per_s)},
    {"pack_bytes_per_s", offsetof(struct gw_cost, pack_bytes_per_s)},
    {"storage_bytes_per_s", offsetof(struct gw_cost, storage_bytes_per_s)},
    {"spawn_s", offsetof(struct gw_cost, spawn_s)},
    {"repair_s", offsetof(struct gw_cost, repair_s)},
};
static const char *const seen_keys[GW_COST_KINDS] = {[GW_COST_COMPUTE] = "compute_seen",
                                                     [GW_COST_LATENCY] = "latency_seen",
                                                     [GW_COST_NODE_LATENCY] = "node_latency_seen",
                                                     [GW_COST_LINK] = "link_seen",
                                                     [GW_COST_NODE_LINK] = "node_link_seen",
                                                     [GW_COST_PACK] = "pack_seen",
                                                     [GW_COST_STORAGE] = "storage_seen",
                                                     [GW_COST_SPAWN] = "spawn_seen",
                                                     [GW_COST_REPAIR] = "repair_seen"};
enum { FIGURES = sizeof figures / sizeof *figures };

static double *figure_at(struct gw_cost *cost, int i)
{
    return (double *)(void *)((char *)cost + figures[i].offset);
}

void gw_cost_encode(const struct gw_cost *cost, struct gw_buf *out)
{
    struct gw_cost copy = *cost;
    char line[96];
    for (int i = 0; i < FIGURES; i++) {
        snprintf(line, sizeof line, "%s=%.17g\n", figures[i].key, *figure_at(&copy, i));
        gw_buf_add_text(out, line);
    }
    for (int k = 0; k < GW_COST_KINDS; k++) {
        snprintf(line, sizeof line, "%s=%d\n", seen_keys[k], cost->seen[k]);
        gw_buf_add_text(out, line);
    }
}

/* `line` is NUL-terminated and not empty. */
static bool decode_line(char *line, struct gw_cost *cost)
{
    char *value = strchr(line, '='), *end;
    if (!value || value == line) return false;
    *value++ = 0;
    double number = strtod(value, &end);
    bool finite = end != value && !*end && isfinite(number);
    for (int i = 0; i < FIGURES; i++) {
        if (strcmp(line, figures[i].key)) continue;
        if (!finite || !(number >= 1e-100 && number <= 1e100)) return false;
        *figure_at(cost, i) = number;
    }
    for (int k = 0; k < GW_COST_KINDS; k++) {
        if (strcmp(line, seen_keys[k])) continue;
        if (!finite || number < 0 || number > 1000000 || number != floor(number)) return false;
        cost->seen[k] = (int)number;
    }
    return true;
}

gw_err gw_cost_decode(const char *text, size_t bytes, struct gw_cost *out)
{
    struct gw_cost cost = gw_cost_default();
    size_t at = 0;
    for (int number = 1; at < bytes; number++) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end ? (size_t)(end - text) - at : bytes - at;
        char line[256];
        if (length >= sizeof line || memchr(text + at, 0, length))
            return gw_fail(GW_ERR_FORMAT, "cost model: line %d is too long or no text", number);
        memcpy(line, text + at, length);
        line[length] = 0;
        if (length > 0 && !decode_line(line, &cost))
            return gw_fail(GW_ERR_FORMAT, "cost model: line %d is no key=value with a positive number", number);
        at += length + 1;
    }
    *out = cost;
    return GW_OK;
}

/* ---- computing ------------------------------------------------------------------------------------------------- */

/* Multiply-adds of one row in one layer of a shard; as src/plan/layout.c counts them. */
static double layer_macs(const struct gw_dims *m, const struct gw_shard *s)
{
    double group = (double)m->heads / m->kv_heads;
    double head = (2 * group + 2) * m->head_dim * m->d_model, atom = 3.0 * m->ffn / m->ffn_atoms * m->d_model;
    return (s->kv_end - s->kv_begin) * head + (s->ffn_end - s->ffn_begin) * atom;
}

double gw_cost_stage_s(const struct gw_cost *cost, const struct gw_dims *m, const struct gw_shard *s, double speed,
                       const struct gw_load *load)
{
    int layers = s->layer_end - s->layer_begin;
    double rows = load->decode_rows + load->prefill_rows;
    double head_keys = 2.0 * m->head_dim * m->d_model; /* all that the model's last layer computes of prompts' rows */
    double keys_only = s->last ? load->prefill_rows : 0, full = layers * rows - keys_only;
    double macs = full * layer_macs(m, s) + keys_only * (s->kv_end - s->kv_begin) * head_keys;
    double attention = 2.0 * (s->kv_end - s->kv_begin) * ((double)m->heads / m->kv_heads) * m->head_dim *
                       load->mean_context * full;
    double seconds = cost->step_s + cost->weight_byte_s * gw_shard_weight_bytes(m, s) + cost->attention_s * attention;
    if (s->last) {
        double share = (double)(s->vocab_end - s->vocab_begin) / m->vocab;
        macs += share * m->vocab * (double)m->d_model * load->decode_rows;
        seconds += share * cost->row_s * load->decode_rows;
    }
    return (seconds + cost->mac_s * macs) / speed;
}

static double message_s(const struct gw_cost *cost, double bytes, bool one_node)
{
    if (one_node) return cost->latency_s + bytes / cost->link_bytes_per_s;
    return cost->node_latency_s + bytes / cost->node_link_bytes_per_s;
}

/* An exchange: each shard sends its nodes to those who sum (rows are shared out), and gets the sums of the others' rows. */
double gw_cost_exchange_s(const struct gw_cost *cost, const struct gw_dims *m, int tensor, int layers, double rows,
                          bool one_node)
{
    if (tensor < 2) return 0;
    double bytes = (tensor - 1.0) / tensor * rows * m->d_model * sizeof(float);
    return 2.0 * layers * 2 * message_s(cost, bytes, one_node);
}

double gw_cost_handoff_s(const struct gw_cost *cost, const struct gw_dims *m, double rows, bool one_node)
{
    return message_s(cost, rows * m->d_model * (double)sizeof(float), one_node);
}

static bool on_one_node(const struct gw_device *devices, const int *device_of_slot, int count)
{
    for (int i = 1; i < count; i++)
        if (devices[device_of_slot[i]].node != devices[device_of_slot[0]].node) return false;
    return true;
}

/* The slowest shard of a stage, its exchanges, and the hand-off to the next stage. */
static double whole_stage_s(const struct gw_cost *cost, const struct gw_dims *m, struct gw_layout l, int stage,
                            const struct gw_device *devices, const int *device_of_slot, const struct gw_load *load)
{
    double slowest = 0, rows = load->decode_rows + load->prefill_rows;
    const int *own = device_of_slot + stage * l.tensor;
    int layers = 0;
    for (int shard = 0; shard < l.tensor; shard++) {
        struct gw_shard s = gw_layout_shard(m, l, shard, stage);
        double seconds = gw_cost_stage_s(cost, m, &s, devices[own[shard]].speed, load);
        if (seconds > slowest) slowest = seconds;
        layers = s.layer_end - s.layer_begin;
    }
    slowest += gw_cost_exchange_s(cost, m, l.tensor, layers, rows, on_one_node(devices, own, l.tensor));
    if (stage + 1 < l.pipeline)
        slowest += gw_cost_handoff_s(cost, m, rows, devices[own[0]].node == devices[own[l.tensor]].node);
    return slowest;
}

/* In a steady state each sequence that ends makes room for a new one, so `seqs` decoded rows come with prompt / output times as many rows of
 * prompts. The sequences are in as many micro-batches as there are stages: with fewer sequences than stages some stages idle. */
double gw_cost_replica_tokens_per_s(const struct gw_cost *cost, const struct gw_dims *dims, struct gw_layout l,
                                    const struct gw_device *devices, const int *device_of_slot,
                                    const struct gw_workload *work, double seqs)
{
    double output = work->output_tokens > 1 ? work->output_tokens : 1, prompt = work->prompt_tokens;
    if (seqs < 1) seqs = 1;
    double batches = seqs < l.pipeline ? floor(seqs) : l.pipeline;
    struct gw_load load = {.decode_rows = seqs / batches, .prefill_rows = seqs / batches * prompt / output};
    load.mean_context = (load.decode_rows * (prompt + output / 2) + load.prefill_rows * prompt / 2) /
                        (load.decode_rows + load.prefill_rows);
    double slowest = 0, sum = 0;
    for (int stage = 0; stage < l.pipeline; stage++) {
        double seconds = whole_stage_s(cost, dims, l, stage, devices, device_of_slot, &load);
        if (seconds > slowest) slowest = seconds;
        sum += seconds;
    }
    double cycle_s = batches * slowest > sum ? batches * slowest : sum;
    return seqs / cycle_s;
}

double gw_cost_recompute_s(const struct gw_cost *cost, const struct gw_dims *dims, struct gw_layout l, double tokens,
                           double mean_context)
{
    static const double STEP_ROWS = 512;
    double slowest = 0, sum = 0;
    if (!(tokens > 0)) return 0;
    double rows = tokens < STEP_ROWS ? tokens : STEP_ROWS, steps = tokens / rows;
    struct gw_load load = {.prefill_rows = rows, .mean_context = mean_context / 2};
    for (int stage = 0; stage < l.pipeline; stage++) {
        double seconds = 0;
        int layers = 0;
        for (int shard = 0; shard < l.tensor; shard++) {
            struct gw_shard s = gw_layout_shard(dims, l, shard, stage);
            double own = gw_cost_stage_s(cost, dims, &s, 1, &load);
            if (own > seconds) seconds = own;
            layers = s.layer_end - s.layer_begin;
        }
        seconds += gw_cost_exchange_s(cost, dims, l.tensor, layers, rows, true);
        if (seconds > slowest) slowest = seconds;
        sum += seconds;
    }
    return sum + (steps - 1) * slowest; /* the first step fills the pipeline */
}

/* ---- moving ---------------------------------------------------------------------------------------------------- */

double gw_cost_move_s(const struct gw_cost *cost, double bytes, bool one_node)
{
    return message_s(cost, bytes, one_node);
}

double gw_cost_pack_s(const struct gw_cost *cost, double bytes, double speed)
{
    return bytes / cost->pack_bytes_per_s / speed;
}

double gw_cost_restore_s(const struct gw_cost *cost, double bytes)
{
    return bytes / cost->storage_bytes_per_s;
}

/* ---- one sequence ---------------------------------------------------------------------------------------------- */

enum gw_seq_choice gw_seq_choice(const struct gw_cost *cost, const struct gw_seq_state *state, double *seconds)
{
    enum gw_seq_choice best = GW_SEQ_RECOMPUTE;
    double tokens = (double)state->tokens, bytes = (double)state->kv_bytes;
    double best_s = tokens * state->recompute_token_s;
    if (state->checkpointed_tokens > 0 && tokens > 0) {
        double have = state->checkpointed_tokens < state->tokens ? (double)state->checkpointed_tokens : tokens;
        double restore_s = gw_cost_restore_s(cost, bytes * have / tokens) + (tokens - have) * state->recompute_token_s;
        if (restore_s <= best_s) best = GW_SEQ_RESTORE, best_s = restore_s;
    }
    if (state->kept_bytes < state->kv_bytes && state->kv_bytes - state->kept_bytes <= state->movable_bytes) {
        double move_s = gw_cost_move_s(cost, (double)(state->kv_bytes - state->kept_bytes), state->one_node);
        if (move_s <= best_s) best = GW_SEQ_MOVE, best_s = move_s;
    }
    if (state->kept_bytes >= state->kv_bytes) best = GW_SEQ_KEEP, best_s = 0;
    *seconds = best_s;
    return best;
}
