/* `godwit plan`: which layout the planner would choose for a described machine, what the next best are worth, and with --from what the change
 * from another layout would keep, move and take. Reads the model's header only and starts nothing: the same functions as in a job (src/plan).
 */
#include "app/commands.h"
#include "base/file.h"
#include "base/process.h"
#include "job/executor.h"
#include "job/options.h"
#include "plan/moves.h"
#include "plan/search.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEVICES = 1024 };

static const char help[] =
    "Usage: godwit plan -m MODEL.gguf (-n RANKS | --devices LIST) [options]\n"
    "\n"
    "Shows the layout that the planner chooses for a machine, the runners-up, and with --from what the change would\n"
    "cost. Reads the model's header and starts nothing. Figures are estimates of the cost model.\n"
    "\n"
    "  -m, --model FILE       model in GGUF form\n"
    "  -n, --ranks N          so many equal ranks\n"
    "      --memory SIZE      memory of each for weights and KV (default: this node's free memory / N)\n"
    "      --devices LIST     a machine of unequal ones instead: COUNTxMEMORY[@SPEED],.. such as 4x2G,2x8G@2.0\n"
    "      --node-of LIST     node of each, such as 0,0,1,1 (default: all on one)\n"
    "      --leaving LIST     numbers of those that leave: they give, but get no place\n"
    "      --lost LIST        numbers of those that are gone, with what they held\n"
    "      --objective NAME   throughput (default), deadline or cost\n"
    "      --deadline S       seconds from now; implies --objective deadline\n"
    "      --price P          of a rank for an hour (default 1)\n"
    "      --requests N       that are left (default 1000; 0: no end in sight)\n"
    "      --prompt-tokens N  mean of a request (default 128)\n"
    "      --output-tokens N  mean of a request (default 128)\n"
    "      --context N        most tokens of a sequence (default: the model's)\n"
    "      --max-seqs N       sequences that a replica runs at once (default 64)\n"
    "      --from DxTxP       the layout that is there, on the first ranks\n"
    "      --to DxTxP         change to this one instead of the best\n"
    "      --kv-tokens N      KV that each replica of --from holds (default: what it would be running)\n"
    "      --cost FILE        figures of the machine, key=value lines (default: one core of a small server)\n"
    "  -k, --top K            candidates to show (default 5)\n"
    "      --json             one JSON object instead\n"
    "  -h, --help             this text\n";

struct arguments {
    const char *model, *devices, *node_of, *leaving, *lost, *cost;
    int64_t ranks, prompt, output, requests, context, max_seqs, top, kv_tokens;
    uint64_t memory;
    double deadline_s, price;
    enum gw_objective objective;
    struct gw_layout from, to; /* data 0: not given */
    bool json;
};

/* The machine and the question, as the planner takes them. Lost devices are left out of devices[], so `number` keeps their names. */
struct scene {
    struct gw_model *model;
    struct gw_dims dims;
    struct gw_cost cost;
    struct gw_device devices[MAX_DEVICES];
    int number[MAX_DEVICES];
    int device_count, leaving, lost;
    struct gw_search search;
    struct gw_candidate *candidates;
    int candidate_count;
};

struct change {
    struct gw_layout to;
    struct gw_holding *holdings;
    struct gw_inherit *inherits;
    int inherit_count;
    int *device_of_slot;
    uint64_t kept_bytes, naive_bytes; /* by this mapping; by device i to place i */
    struct gw_moves moves;
    int move_count; /* without drops */
};

/* ---- options --------------------------------------------------------------------------------------------------- */

enum {
    OPT_MEMORY = 256,
    OPT_DEVICES,
    OPT_NODE_OF,
    OPT_LEAVING,
    OPT_LOST,
    OPT_OBJECTIVE,
    OPT_DEADLINE,
    OPT_PRICE,
    OPT_REQUESTS,
    OPT_PROMPT,
    OPT_OUTPUT,
    OPT_CONTEXT,
    OPT_MAX_SEQS,
    OPT_FROM,
    OPT_TO,
    OPT_KV_TOKENS,
    OPT_COST,
    OPT_JSON
};

static const struct option known[] = {{"model", required_argument, NULL, 'm'},
                                      {"ranks", required_argument, NULL, 'n'},
                                      {"memory", required_argument, NULL, OPT_MEMORY},
                                      {"devices", required_argument, NULL, OPT_DEVICES},
                                      {"node-of", required_argument, NULL, OPT_NODE_OF},
                                      {"leaving", required_argument, NULL, OPT_LEAVING},
                                      {"lost", required_argument, NULL, OPT_LOST},
                                      {"objective", required_argument, NULL, OPT_OBJECTIVE},
                                      {"deadline", required_argument, NULL, OPT_DEADLINE},
                                      {"price", required_argument, NULL, OPT_PRICE},
                                      {"requests", required_argument, NULL, OPT_REQUESTS},
                                      {"prompt-tokens", required_argument, NULL, OPT_PROMPT},
                                      {"output-tokens", required_argument, NULL, OPT_OUTPUT},
                                      {"context", required_argument, NULL, OPT_CONTEXT},
                                      {"max-seqs", required_argument, NULL, OPT_MAX_SEQS},
                                      {"from", required_argument, NULL, OPT_FROM},
                                      {"to", required_argument, NULL, OPT_TO},
                                      {"kv-tokens", required_argument, NULL, OPT_KV_TOKENS},
                                      {"cost", required_argument, NULL, OPT_COST},
                                      {"top", required_argument, NULL, 'k'},
                                      {"json", no_argument, NULL, OPT_JSON},
                                      {"help", no_argument, NULL, 'h'},
                                      {0}};

static gw_err parse_positive(const char *text, const char *option, double *value)
{
    gw_err rc = gw_parse_real(text, option, value);
    if (rc == GW_OK && !(*value > 0 && *value < 1e12))
        return gw_fail(GW_ERR_USAGE, "--%s %s: give a number above 0", option, text);
    return rc;
}

static gw_err take_option(struct arguments *a, int id)
{
    const int64_t most = (int64_t)1 << 40;
    switch (id) {
    case 'm': a->model = optarg; break;
    case 'n': return gw_parse_int(optarg, "ranks", 1, MAX_DEVICES, &a->ranks);
    case 'k': return gw_parse_int(optarg, "top", 1, 1 << 20, &a->top);
    case OPT_MEMORY: return gw_parse_bytes(optarg, "memory", &a->memory);
    case OPT_DEVICES: a->devices = optarg; break;
    case OPT_NODE_OF: a->node_of = optarg; break;
    case OPT_LEAVING: a->leaving = optarg; break;
    case OPT_LOST: a->lost = optarg; break;
    case OPT_OBJECTIVE: return gw_objective_parse(optarg, &a->objective);
    case OPT_DEADLINE: a->objective = GW_OBJECTIVE_DEADLINE; return parse_positive(optarg, "deadline", &a->deadline_s);
    case OPT_PRICE: return parse_positive(optarg, "price", &a->price);
    case OPT_REQUESTS: return gw_parse_int(optarg, "requests", 0, most, &a->requests);
    case OPT_PROMPT: return gw_parse_int(optarg, "prompt-tokens", 0, 1 << 30, &a->prompt);
    case OPT_OUTPUT: return gw_parse_int(optarg, "output-tokens", 1, 1 << 30, &a->output);
    case OPT_CONTEXT: return gw_parse_int(optarg, "context", 1, 1 << 30, &a->context);
    case OPT_MAX_SEQS: return gw_parse_int(optarg, "max-seqs", 1, 1 << 20, &a->max_seqs);
    case OPT_FROM: return gw_layout_parse(optarg, &a->from);
    case OPT_TO: return gw_layout_parse(optarg, &a->to);
    case OPT_KV_TOKENS: return gw_parse_int(optarg, "kv-tokens", 0, most, &a->kv_tokens);
    case OPT_COST: a->cost = optarg; break;
    case OPT_JSON: a->json = true; break;
    default: return gw_fail(GW_ERR_USAGE, "see godwit plan --help"); /* getopt has said what is wrong */
    }
    return GW_OK;
}

static gw_err parse(int argc, char **argv, struct arguments *a, bool *helped)
{
    gw_err rc = GW_OK;
    *a = (struct arguments){
        .prompt = 128, .output = 128, .requests = 1000, .max_seqs = 64, .top = 5, .price = 1, .kv_tokens = -1};
    optind = 1;
    for (int id; (id = getopt_long(argc, argv, "m:n:k:h", known, NULL)) != -1;) {
        if (id == 'h') {
            fputs(help, stdout);
            *helped = true;
            return GW_OK;
        }
        TRY(take_option(a, id));
    }
    if (!a->model || optind < argc) FAIL(GW_ERR_USAGE, "give a model with -m; see godwit plan --help");
    if (!a->ranks == !a->devices) FAIL(GW_ERR_USAGE, "give either --ranks or --devices; see godwit plan --help");
    if (a->devices && a->memory) FAIL(GW_ERR_USAGE, "--devices names the memory of each: --memory goes with --ranks");
    if (a->objective == GW_OBJECTIVE_DEADLINE && !(a->deadline_s > 0 && a->requests > 0))
        FAIL(GW_ERR_USAGE, "the objective deadline needs --deadline SECONDS and --requests");
    if (a->to.data && !a->from.data) FAIL(GW_ERR_USAGE, "--to needs --from");
out:
    return rc;
}

/* ---- the machine ----------------------------------------------------------------------------------------------- */

/* "4x2G,2x8G@2.0" */
static gw_err parse_devices(const char *list, struct scene *s)
{
    gw_err rc = GW_OK;
    char *copy = gw_strdup(list), *rest = copy;
    for (char *item; (item = strsep(&rest, ","));) {
        struct gw_device device = {.speed = 1};
        int64_t count = 0;
        char *memory = strchr(item, 'x'), *speed = strchr(item, '@');
        if (!memory) FAIL(GW_ERR_USAGE, "--devices '%s' is not COUNTxMEMORY[@SPEED]", item);
        *memory++ = 0;
        if (speed) {
            *speed++ = 0;
            TRY(parse_positive(speed, "devices", &device.speed));
        }
        TRY(gw_parse_int(item, "devices", 1, MAX_DEVICES, &count));
        TRY(gw_parse_bytes(memory, "devices", &device.memory_bytes));
        if (s->device_count + count > MAX_DEVICES) FAIL(GW_ERR_USAGE, "--devices: more than %d", MAX_DEVICES);
        for (int i = 0; i < count; i++) s->devices[s->device_count++] = device;
    }
out:
    free(copy);
    return rc;
}

/* Numbers between commas; calls `take` for each with its position. */
static gw_err parse_numbers(const char *list, const char *option, int64_t most, struct scene *s,
                            gw_err (*take)(struct scene *s, int position, int number))
{
    gw_err rc = GW_OK;
    char *copy = gw_strdup(list), *rest = copy;
    int position = 0;
    for (char *item; (item = strsep(&rest, ",")); position++) {
        int64_t number = 0;
        TRY(gw_parse_int(item, option, 0, most, &number));
        TRY(take(s, position, (int)number));
    }
out:
    free(copy);
    return rc;
}

static gw_err take_node(struct scene *s, int position, int number)
{
    if (position >= s->device_count)
        return gw_fail(GW_ERR_USAGE, "--node-of names more than the %d devices there are", s->device_count);
    s->devices[position].node = number;
    return GW_OK;
}

static gw_err take_leaving(struct scene *s, int position, int number)
{
    (void)position;
    s->leaving += !s->devices[number].leaving;
    s->devices[number].leaving = true;
    return GW_OK;
}

static gw_err take_lost(struct scene *s, int position, int number)
{
    (void)position;
    s->number[number] = -1;
    return GW_OK;
}

static gw_err make_devices(const struct arguments *a, struct scene *s)
{
    gw_err rc = GW_OK;
    uint64_t memory = a->memory ? a->memory : gw_process_memory() / (uint64_t)(a->ranks ? a->ranks : 1);
    int kept = 0;
    for (int d = 0; d < a->ranks; d++) s->devices[d] = (struct gw_device){.memory_bytes = memory, .speed = 1};
    s->device_count = (int)a->ranks;
    if (a->devices) TRY(parse_devices(a->devices, s));
    for (int d = 0; d < s->device_count; d++) s->number[d] = d;
    if (a->node_of) TRY(parse_numbers(a->node_of, "node-of", 1 << 20, s, take_node));
    if (a->leaving) TRY(parse_numbers(a->leaving, "leaving", s->device_count - 1, s, take_leaving));
    if (a->lost) TRY(parse_numbers(a->lost, "lost", s->device_count - 1, s, take_lost));
    if (gw_layout_ranks(a->from) > s->device_count)
        FAIL(GW_ERR_USAGE, "--from has %d ranks, the machine %d", gw_layout_ranks(a->from), s->device_count);
    for (int d = 0; d < s->device_count; d++) {
        if (s->number[d] < 0) continue;
        s->devices[kept] = s->devices[d];
        s->number[kept++] = d;
    }
    s->lost = s->device_count - kept;
    s->device_count = kept;
out:
    return rc;
}

static gw_err read_cost(const char *path, struct gw_cost *cost)
{
    gw_err rc = GW_OK;
    char *text = NULL;
    size_t bytes = 0;
    *cost = gw_cost_default();
    if (!path) return GW_OK;
    TRY(gw_file_read(path, 1 << 20, &text, &bytes));
    TRY(gw_cost_decode(text, bytes, cost));
out:
    free(text);
    return rc;
}

static gw_err open_scene(const struct arguments *a, struct scene *s)
{
    gw_err rc = GW_OK;
    TRY(gw_model_open(a->model, &s->model));
    TRY(read_cost(a->cost, &s->cost));
    TRY(make_devices(a, s));
    s->dims = gw_executor_dims(s->model);
    int context = gw_model_info(s->model)->context;
    if (a->context) context = (int)a->context;
    if (a->from.data) TRY(gw_layout_check(&s->dims, a->from));
    if (a->to.data) TRY(gw_layout_check(&s->dims, a->to));
    s->search = (struct gw_search){.dims = &s->dims,
                                   .cost = &s->cost,
                                   .devices = s->devices,
                                   .device_count = s->device_count,
                                   .work = {.prompt_tokens = (double)a->prompt,
                                            .output_tokens = (double)a->output,
                                            .requests = (double)a->requests,
                                            .context = context,
                                            .max_seqs = (int)a->max_seqs},
                                   .objective = a->objective,
                                   .deadline_s = a->deadline_s,
                                   .price_per_hour = a->price,
                                   .kv_share = 0.5, /* as in a job */
                                   .current = a->from};
out:
    return rc;
}

static void close_scene(struct scene *s)
{
    gw_model_close(s->model);
    free(s->candidates);
}

/* KV of the sequences that a replica of the old layout would be running. */
static uint64_t default_kv_tokens(const struct arguments *a)
{
    int64_t seqs = a->max_seqs, share = (a->requests + a->from.data - 1) / a->from.data;
    if (a->requests && share < seqs) seqs = share;
    return (uint64_t)(seqs * (a->prompt + a->output / 2));
}

/* ---- the change ------------------------------------------------------------------------------------------------ */

static void hold_old_places(const struct scene *s, struct gw_layout from, struct gw_holding *holdings)
{
    for (int d = 0; d < s->device_count; d++) {
        holdings[d] = (struct gw_holding){.replica = -1};
        if (s->number[d] >= gw_layout_ranks(from)) continue;
        struct gw_place place = gw_layout_place(from, s->number[d]);
        holdings[d] = (struct gw_holding){.weights = true,
                                          .replica = place.replica,
                                          .shard = gw_layout_shard(&s->dims, from, place.shard, place.stage)};
    }
}

/* What the mapping keeps that a program without a planner has: the i-th device that stays takes the i-th place. */
static uint64_t naive_bytes(const struct scene *s, const struct gw_assign *assign)
{
    uint64_t bytes = 0;
    int slot = 0;
    for (int d = 0; d < s->device_count && slot < gw_layout_ranks(assign->layout); d++)
        if (!s->devices[d].leaving) bytes += gw_assign_kept_bytes(assign, d, slot++);
    return bytes;
}

static gw_err plan_change(const struct arguments *a, const struct scene *s, struct change *c)
{
    gw_err rc = GW_OK;
    uint64_t tokens = a->kv_tokens >= 0 ? (uint64_t)a->kv_tokens : default_kv_tokens(a);
    uint64_t *kv_tokens = gw_alloc((size_t)a->from.data, sizeof *kv_tokens);
    for (int r = 0; r < a->from.data; r++) kv_tokens[r] = tokens;
    c->to = a->to.data ? a->to : s->candidates[0].layout;
    c->holdings = gw_alloc((size_t)s->device_count + 1, sizeof *c->holdings);
    c->inherits = gw_alloc((size_t)a->from.data, sizeof *c->inherits);
    c->device_of_slot = gw_alloc((size_t)gw_layout_ranks(c->to), sizeof *c->device_of_slot);
    hold_old_places(s, a->from, c->holdings);
    struct gw_assign assign = {.dims = &s->dims,
                               .devices = s->devices,
                               .holdings = c->holdings,
                               .device_count = s->device_count,
                               .layout = c->to,
                               .inherits = c->inherits};
    gw_assign_inherits(&assign, a->from.data, kv_tokens, c->inherits, &c->inherit_count);
    assign.inherit_count = c->inherit_count;
    TRY(gw_assign_places(&assign, c->device_of_slot, &c->kept_bytes));
    c->naive_bytes = naive_bytes(s, &assign);
    struct gw_moves_in in = {.dims = &s->dims,
                             .cost = &s->cost,
                             .devices = s->devices,
                             .holdings = c->holdings,
                             .device_count = s->device_count,
                             .layout = c->to,
                             .device_of_slot = c->device_of_slot,
                             .inherits = c->inherits,
                             .inherit_count = c->inherit_count};
    TRY(gw_moves_plan(&in, &c->moves));
    for (int i = 0; i < c->moves.count; i++)
        c->move_count += c->moves.moves[i].to != GW_TO_NOWHERE && c->moves.moves[i].to != c->moves.moves[i].from;
out:
    free(kv_tokens);
    return rc;
}

static void free_change(struct change *c)
{
    free(c->holdings);
    free(c->inherits);
    free(c->device_of_slot);
    gw_moves_free(&c->moves);
}

/* ---- text ------------------------------------------------------------------------------------------------------ */

static const char *layout_text(struct gw_layout l, char text[40])
{
    snprintf(text, 40, "%dx%dx%d", l.data, l.tensor, l.pipeline);
    return text;
}

static double mib(double bytes)
{
    return bytes / 1048576;
}

/* Runs of equal devices, as --devices takes them. */
static void print_devices(const struct scene *s)
{
    printf("devices   ");
    for (int d = 0, end; d < s->device_count; d = end) {
        const struct gw_device *device = &s->devices[d];
        for (end = d + 1; end < s->device_count; end++)
            if (s->devices[end].memory_bytes != device->memory_bytes || s->devices[end].speed != device->speed) break;
        printf("%s%d x %.0f MiB", d ? ", " : "", end - d, mib((double)device->memory_bytes));
        if (device->speed != 1) printf(" at speed %g", device->speed);
    }
    if (s->leaving) printf("; %d leaving", s->leaving);
    if (s->lost) printf("; %d lost", s->lost);
    putchar('\n');
}

static void print_candidates(const struct arguments *a, const struct scene *s)
{
    const struct gw_model_info *info = gw_model_info(s->model);
    struct gw_layout one = GW_LAYOUT(1, 1, 1);
    struct gw_shard whole = gw_layout_shard(&s->dims, one, 0, 0);
    printf("model     %s, %d layers, %.1f MiB of weights as packed, %.1f KiB of KV a token\n", a->model, info->layers,
           mib(gw_shard_weight_bytes(&s->dims, &whole)),
           (double)gw_shard_page_bytes(&s->dims, &whole) / GW_PAGE_TOKENS / 1024);
    print_devices(s);
    printf("work      ");
    if (a->requests) printf("%lld requests of ", (long long)a->requests);
    printf("%lld + %lld tokens, at most %d; objective %s", (long long)a->prompt, (long long)a->output,
           s->search.work.context, gw_objective_name(a->objective));
    if (a->deadline_s > 0) printf(" (%.0f s)", a->deadline_s);
    printf("\n\n   %-10s %5s %10s %11s %10s %10s %11s%s\n", "layout", "ranks", "tokens/s", "KV tokens", "seconds",
           "cost/1M", "weights MiB", a->from.data ? "   change s" : "");
    for (int i = 0; i < s->candidate_count && i < a->top; i++) {
        const struct gw_candidate *c = &s->candidates[i];
        char text[40];
        printf("%s%-10s %5d %10.1f %11.0f ", i ? "   " : "*  ", layout_text(c->layout, text),
               gw_layout_ranks(c->layout), c->tokens_per_s, c->kv_tokens);
        if (a->requests) printf("%10.1f ", c->seconds);
        else printf("%10s ", "-");
        printf("%10.4g %11.1f", c->cost_per_million, mib(c->weight_bytes));
        if (a->from.data) printf(" %10.3f", c->change_s);
        puts(a->deadline_s > 0 && !c->in_time ? "  late" : "");
    }
    if (s->candidate_count > a->top) printf("   .. and %d more\n", s->candidate_count - (int)a->top);
}

static void print_range(const char *what, int begin, int end)
{
    if (begin == end) printf("%s none", what);
    else if (begin + 1 == end) printf("%s %d", what, begin);
    else printf("%s %d-%d", what, begin, end - 1);
}

static void print_place(const struct scene *s, const struct change *c, int slot)
{
    struct gw_place place = gw_layout_place(c->to, slot);
    struct gw_shard shard = gw_layout_shard(&s->dims, c->to, place.shard, place.stage);
    int device = c->device_of_slot[slot];
    uint64_t in = 0;
    for (int i = 0; i < c->moves.count; i++)
        if (c->moves.moves[i].to == device) in += c->moves.moves[i].bytes;
    printf("  rank %-4d replica %d, shard %d, stage %d: ", s->number[device], place.replica, place.shard, place.stage);
    print_range("layers", shard.layer_begin, shard.layer_end);
    print_range(", KV heads", shard.kv_begin, shard.kv_end);
    print_range(", FFN atoms", shard.ffn_begin, shard.ffn_end);
    printf("; gets %.1f MiB, at most %.1f MiB on the way\n", mib((double)in), mib((double)c->moves.peak_bytes[device]));
}

static void print_change(const struct arguments *a, const struct scene *s, const struct change *c)
{
    const struct gw_moves *m = &c->moves;
    char from[40], to[40];
    printf("\nchange    %s -> %s\n", layout_text(a->from, from), layout_text(c->to, to));
    for (int slot = 0; slot < gw_layout_ranks(c->to); slot++) print_place(s, c, slot);
    printf("kept      %.1f MiB of weights, %.1f MiB of KV (in the order of ranks %.1f MiB of both)\n",
           mib((double)m->kept_weight_bytes), mib((double)m->kept_kv_bytes), mib((double)c->naive_bytes));
    printf("moved     %.1f MiB of weights, %.1f MiB of KV\n", mib((double)m->moved_weight_bytes),
           mib((double)m->moved_kv_bytes));
    printf("loaded    %.1f MiB of weights from the model file\n", mib((double)m->loaded_bytes));
    if (m->recomputed_bytes) printf("computed  %.1f MiB of KV anew\n", mib((double)m->recomputed_bytes));
    printf("time      %.3f s for %d moves", m->seconds, c->move_count);
    if (m->recompute_s > 0) printf(", %.3f s of it to compute anew", m->recompute_s);
    putchar('\n');
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static json_t *json_layout(struct gw_layout l)
{
    return json_pack("[i, i, i]", l.data, l.tensor, l.pipeline);
}

static json_t *json_change(const struct arguments *a, const struct scene *s, const struct change *c)
{
    const struct gw_moves *m = &c->moves;
    json_t *places = json_array();
    for (int slot = 0; slot < gw_layout_ranks(c->to); slot++)
        json_array_append_new(places, json_integer(s->number[c->device_of_slot[slot]]));
    return json_pack("{s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:f, s:f}", "from", json_layout(a->from),
                     "to", json_layout(c->to), "rank_of_place", places, "kept_weight_bytes",
                     (json_int_t)m->kept_weight_bytes, "kept_kv_bytes", (json_int_t)m->kept_kv_bytes,
                     "naive_kept_bytes", (json_int_t)c->naive_bytes, "moved_weight_bytes",
                     (json_int_t)m->moved_weight_bytes, "moved_kv_bytes", (json_int_t)m->moved_kv_bytes, "loaded_bytes",
                     (json_int_t)m->loaded_bytes, "recomputed_bytes", (json_int_t)m->recomputed_bytes, "moves",
                     c->move_count, "seconds", m->seconds, "recompute_seconds", m->recompute_s);
}

static void print_json(const struct arguments *a, const struct scene *s, const struct change *c)
{
    json_t *list = json_array();
    for (int i = 0; i < s->candidate_count && i < a->top; i++) {
        const struct gw_candidate *x = &s->candidates[i];
        json_t *item = json_pack("{s:o, s:i, s:f, s:f, s:f, s:f, s:f}", "layout", json_layout(x->layout), "ranks",
                                 gw_layout_ranks(x->layout), "tokens_per_s", x->tokens_per_s, "kv_tokens", x->kv_tokens,
                                 "cost_per_million_tokens", x->cost_per_million, "weight_bytes", x->weight_bytes,
                                 "change_seconds", x->change_s);
        json_object_set_new(item, "seconds", a->requests ? json_real(x->seconds) : json_null());
        if (a->deadline_s > 0) json_object_set_new(item, "in_time", json_boolean(x->in_time));
        json_array_append_new(list, item);
    }
    json_t *root = json_pack("{s:s, s:i, s:i, s:o}", "objective", gw_objective_name(a->objective), "devices",
                             s->device_count, "candidate_count", s->candidate_count, "candidates", list);
    if (a->from.data) json_object_set_new(root, "change", json_change(a, s, c));
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(root);
}

/* ---- command --------------------------------------------------------------------------------------------------- */

gw_err gw_cmd_plan(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct arguments a;
    struct scene *s = gw_alloc(1, sizeof *s);
    struct change change = {0};
    bool helped = false;
    TRY(parse(argc, argv, &a, &helped));
    if (helped) goto out;
    TRY(open_scene(&a, s));
    if (a.from.data)
        s->search.current_kv_tokens = a.kv_tokens >= 0 ? (double)a.kv_tokens : (double)default_kv_tokens(&a);
    TRY(gw_search(&s->search, &s->candidates, &s->candidate_count));
    if (a.from.data) TRY(plan_change(&a, s, &change));
    if (a.json) {
        print_json(&a, s, &change);
    } else {
        print_candidates(&a, s);
        if (a.from.data) print_change(&a, s, &change);
    }
out:
    free_change(&change);
    close_scene(s);
    free(s);
    return rc;
}
