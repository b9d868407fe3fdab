/* See options.h. One table says what exists: the parser and the help text are made from it. */
#include "job/options.h"

#include "notice/source.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Of 64 sequences two threads have 32 each, which is where their products are near their best; a prompt token for each drawn one and more fit into a step. */
enum { LEAST_SEQS = 64, MOST_SEQS = 512, SEQS_A_THREAD = 32, LEAST_ROWS = 512, ROWS_A_SEQUENCE = 4 };

enum option_id {
    OPT_MODEL = 'm',
    OPT_INPUT = 'i',
    OPT_OUT = 'o',
    OPT_RANKS = 'n',
    OPT_HELP = 'h',
    OPT_QUIET = 'q',
    OPT_THREADS = 't',
    OPT_LAYOUT = 256,
    OPT_MEMORY,
    OPT_KV,
    OPT_OBJECTIVE,
    OPT_CONTEXT,
    OPT_SEQS,
    OPT_ROWS,
    OPT_NAME,
    OPT_CHAT,
    OPT_CREATED,
    OPT_TIMEOUT,
    OPT_TEMPERATURE,
    OPT_TOP_P,
    OPT_TOP_K,
    OPT_MIN_P,
    OPT_PENALTY,
    OPT_SEED,
    OPT_MAX_TOKENS,
    OPT_IGNORE_EOS,
    OPT_CHECKPOINT,
    OPT_WEIGHTS,
    OPT_SPARES,
    OPT_NO_REPLACE,
    OPT_NO_STORE,
    OPT_NO_REBALANCE,
    OPT_NOTICE,
    OPT_GRACE,
    OPT_CHAOS,
    OPT_MEMBER,
    OPT_LAUNCH,
    OPT_LAUNCHED,
    OPT_FENCE,
    OPT_STANDBY
};

static const struct {
    int id;
    const char *name, *argument, *text;
} table[] = {
    /* without a text: for godwit itself */
    {OPT_MODEL, "model", "FILE", "model in GGUF form (required)"},
    {OPT_INPUT, "input", "FILE", "requests, one JSON object a line (required)"},
    {OPT_OUT, "output", "DIR", "where results go; an existing one is carried on (required)"},
    {OPT_RANKS, "ranks", "N", "MPI processes to start (default: what --layout needs, else 1)"},
    {OPT_THREADS, "threads", "N", "threads of a rank (default: its share of the node's CPUs)"},
    {OPT_LAYOUT, "layout", "DxTxP", "data x tensor x pipeline, such as 2x1x1 (default: the best for N ranks)"},
    {OPT_OBJECTIVE, "objective", "WHAT",
     "what such a best is: throughput (default), cost, or deadline=TIME, such as 2026-12-01T06:00"},
    {OPT_MEMORY, "memory", "SIZE", "memory for weights and KV of a rank (default: its share of the node's)"},
    {OPT_KV, "kv-memory", "SIZE", "memory for the KV cache of a rank, such as 2G (default: from free memory)"},
    {OPT_CONTEXT, "context", "N", "most tokens of prompt and answer (default: the model's)"},
    {OPT_SEQS, "max-seqs", "N", "sequences a replica decodes at once (default: 32 a thread, 64 to 512)"},
    {OPT_ROWS, "step-rows", "N", "most tokens a replica computes in one step (default: 4 a sequence, at least 512)"},
    {OPT_NAME, "model-name", "NAME", "model name in the output (default: the file's name)"},
    {OPT_CHAT, "chat-template", "NAME", "chatml, llama3 or plain (default: recognised from the model)"},
    {OPT_CREATED, "created", "SECONDS", "the `created` field of output lines (default 0)"},
    {OPT_TIMEOUT, "peer-timeout", "SECONDS", "give up on a rank that is waited for and silent that long (default 60)"},
    {OPT_CHECKPOINT, "checkpoint", "SECONDS",
     "between checkpoints of KV pages: a time, off, or auto by what they cost (default)"},
    {OPT_WEIGHTS, "weights", "FROM", "where a rank gets weights it lacks: storage, peers, or auto (default)"},
    {OPT_SPARES, "spares", "N", "more ranks that wait to stand in for a lost one (default 1, with -n 1 none)"},
    {OPT_NO_REPLACE, "no-replace", NULL, "do not start ranks anew that were lost"},
    {OPT_NO_REBALANCE, "no-rebalance", NULL, "do not plan anew when a rank turns out to be slower than the others"},
    {OPT_NO_STORE, "no-store", NULL, "do not keep weights and KV in memory that outlives a rank"},
    {OPT_NOTICE, "notice", "SOURCE",
     "watch for notices that ranks will be taken away: aws, azure, gcp, slurm, auto, or a file; see docs/usage.md"},
    {OPT_GRACE, "grace", "SECONDS", "time that a SIGUSR2 leaves the rank that gets it (default 30)"},
    {OPT_CHAOS, "chaos", "SPEC", "make things go wrong, such as 'kill:1@step=40'; see docs/usage.md"},
    {OPT_QUIET, "quiet", NULL, "no progress lines"},
    {OPT_TEMPERATURE, "temperature", "X", "temperature where a request names none (default 1; 0 is greedy)"},
    {OPT_TOP_P, "top-p", "X", "top_p likewise (default 1: off)"},
    {OPT_TOP_K, "top-k", "N", "top_k likewise (default 0: off)"},
    {OPT_MIN_P, "min-p", "X", "min_p likewise (default 0: off)"},
    {OPT_PENALTY, "repetition-penalty", "X", "repetition_penalty likewise (default 1: off)"},
    {OPT_SEED, "seed", "N", "seed likewise (default 0)"},
    {OPT_MAX_TOKENS, "max-tokens", "N", "max_tokens likewise (default: up to the context)"},
    {OPT_IGNORE_EOS, "ignore-eos", NULL, "ignore_eos likewise: past the model's end of the answer, up to max_tokens"},
    {OPT_HELP, "help", NULL, "this text"},
    {OPT_MEMBER, "member", "N", NULL},
    {OPT_LAUNCH, "launch", "N", NULL},
    {OPT_LAUNCHED, "launched", "SECONDS", NULL},
    {OPT_FENCE, "fence", NULL, NULL},
    {OPT_STANDBY, "standby", NULL, NULL},
};
enum { OPTIONS = sizeof table / sizeof *table };

gw_err gw_parse_int(const char *text, const char *option, int64_t least, int64_t most, int64_t *value)
{
    char *end;
    errno = 0;
    long long parsed = strtoll(text, &end, 10);
    if (errno || end == text || *end || parsed < least || parsed > most)
        return gw_fail(GW_ERR_USAGE, "--%s '%s' is not a whole number from %lld to %lld", option, text,
                       (long long)least, (long long)most);
    *value = parsed;
    return GW_OK;
}

gw_err gw_parse_real(const char *text, const char *option, double *value)
{
    char *end;
    errno = 0;
    *value = strtod(text, &end);
    if (errno || end == text || *end) return gw_fail(GW_ERR_USAGE, "--%s '%s' is not a number", option, text);
    return GW_OK;
}

gw_err gw_parse_bytes(const char *text, const char *option, uint64_t *bytes)
{
    char *end;
    errno = 0;
    double number = strtod(text, &end);
    int shift = 0;
    if (*end && strchr("kK", *end)) shift = 10;
    else if (*end && strchr("mM", *end)) shift = 20;
    else if (*end && strchr("gG", *end)) shift = 30;
    else if (*end && strchr("tT", *end)) shift = 40;
    const char *rest = end + (shift > 0);
    bool suffix = !*rest || !strcmp(rest, "B") || !strcmp(rest, "iB");
    number *= (double)((uint64_t)1 << shift);
    if (errno || end == text || !suffix || !(number >= 1) || number > 0x1p60)
        return gw_fail(GW_ERR_USAGE, "--%s '%s' is not a size such as 512M or 2G", option, text);
    *bytes = (uint64_t)number;
    return GW_OK;
}

static void print_help(const char *command)
{
    printf("Usage: godwit %s -m MODEL.gguf -i batch.jsonl -o OUTDIR [options]\n\n"
           "Starts the job, or carries on where OUTDIR stands.\n\nOptions:\n",
           command);
    for (int i = 0; i < OPTIONS; i++) {
        char left[64];
        if (!table[i].text) continue;
        snprintf(left, sizeof left, "%s--%s%s%s", table[i].id < 256 ? "" : "    ", table[i].name,
                 table[i].argument ? " " : "", table[i].argument ? table[i].argument : "");
        if (table[i].id < 256) printf("  -%c, %-28s %s\n", table[i].id, left, table[i].text);
        else printf("  %-32s %s\n", left, table[i].text);
    }
    printf("\nExit codes: 0 done; 2 usage; 3 unusable input or model; 4 not supported; 5 memory; 6 files; 7 OUTDIR "
           "belongs\n"
           "to another job; 8 no layout fits; 9 a rank was lost; 70 a bug; 130 stopped on request. See godwit(1).\n");
}

static gw_err real_to_float(const char *text, const char *name, float *value)
{
    double real;
    gw_err rc = gw_parse_real(text, name, &real);
    if (rc == GW_OK) *value = (float)real;
    return rc;
}

static gw_err int_to_int(const char *text, const char *name, int64_t least, int64_t most, int *value)
{
    int64_t number;
    gw_err rc = gw_parse_int(text, name, least, most, &number);
    if (rc == GW_OK) *value = (int)number;
    return rc;
}

static gw_err set_sampling(int id, const char *text, const char *name, struct gw_sampling *s)
{
    gw_err rc = GW_OK;
    int64_t seed;
    switch (id) {
    case OPT_TEMPERATURE: return real_to_float(text, name, &s->temperature);
    case OPT_TOP_P: return real_to_float(text, name, &s->top_p);
    case OPT_MIN_P: return real_to_float(text, name, &s->min_p);
    case OPT_PENALTY: return real_to_float(text, name, &s->repetition_penalty);
    case OPT_TOP_K: return int_to_int(text, name, -1, INT32_MAX, &s->top_k);
    case OPT_MAX_TOKENS: return int_to_int(text, name, 1, INT32_MAX, &s->max_tokens);
    case OPT_IGNORE_EOS: s->ignore_eos = true; return GW_OK;
    default:
        rc = gw_parse_int(text, name, INT64_MIN, INT64_MAX, &seed);
        if (rc == GW_OK) {
            s->seed = (uint64_t)seed;
            s->seed_set = true;
        }
        return rc;
    }
}

static gw_err set_checkpoint(const char *text, const char *name, double *seconds)
{
    *seconds = !strcmp(text, "auto") ? -1 : 0;
    if (!strcmp(text, "auto") || !strcmp(text, "off")) return GW_OK;
    gw_err rc = gw_parse_real(text, name, seconds);
    if (rc == GW_OK && !(*seconds > 0)) rc = gw_fail(GW_ERR_USAGE, "--checkpoint must be more than 0 seconds, or off");
    return rc;
}

static gw_err set_weights(const char *text, enum gw_weights *weights)
{
    static const char *const names[] = {"auto", "storage", "peers"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i])) continue;
        *weights = (enum gw_weights)i;
        return GW_OK;
    }
    return gw_fail(GW_ERR_USAGE, "--weights '%s' is none of auto, storage, peers", text);
}

/* "throughput", "cost", "deadline=2026-12-01T06:00" (local time) or "deadline=@SECONDS" (since 1970). */
static gw_err set_objective(const char *text, struct gw_job_options *o)
{
    static const char prefix[] = "deadline=";
    struct tm when = {.tm_isdst = -1};
    const char *time = text + strlen(prefix), *end = NULL;
    if (strncmp(text, prefix, strlen(prefix)) != 0) {
        gw_err rc = gw_objective_parse(text, &o->objective);
        if (rc == GW_OK && o->objective == GW_OBJECTIVE_DEADLINE)
            rc = gw_fail(GW_ERR_USAGE, "--objective deadline needs a time: deadline=2026-12-01T06:00");
        return rc;
    }
    o->objective = GW_OBJECTIVE_DEADLINE;
    if (*time == '@') return gw_parse_real(time + 1, "objective", &o->deadline_wall_s);
    end = strptime(time, "%Y-%m-%dT%H:%M", &when);
    if (end && *end == ':') end = strptime(time, "%Y-%m-%dT%H:%M:%S", &when);
    if (!end || *end) return gw_fail(GW_ERR_USAGE, "--objective '%s' is no time such as 2026-12-01T06:00", text);
    o->deadline_wall_s = (double)mktime(&when);
    return GW_OK;
}

/* Several are one list. */
static gw_err add_notice(const char *text, const char **notice)
{
    static char list[8192];
    gw_err rc = gw_notice_spec_check(text);
    if (rc != GW_OK) return rc;
    size_t used = *notice ? strlen(list) : 0;
    int more = snprintf(list + used, sizeof list - used, "%s%s", used ? "," : "", text);
    if (more < 0 || (size_t)more >= sizeof list - used) return gw_fail(GW_ERR_USAGE, "--notice: the list is too long");
    *notice = list;
    return used ? gw_notice_spec_check(list) : GW_OK;
}

static gw_err set_option(struct gw_job_options *o, int id, const char *text, const char *name)
{
    switch (id) {
    case OPT_MODEL: o->model_path = text; return GW_OK;
    case OPT_INPUT: o->input_path = text; return GW_OK;
    case OPT_OUT: o->out_dir = text; return GW_OK;
    case OPT_NAME: o->model_name = text; return GW_OK;
    case OPT_CHAT: o->chat_template = text; return GW_OK;
    case OPT_QUIET: o->quiet = true; return GW_OK;
    case OPT_RANKS: return int_to_int(text, name, 1, 65536, &o->ranks);
    case OPT_THREADS: return int_to_int(text, name, 1, 1024, &o->threads);
    case OPT_LAYOUT: o->layout_set = true; return gw_layout_parse(text, &o->layout);
    case OPT_MEMORY: return gw_parse_bytes(text, name, &o->memory_bytes);
    case OPT_OBJECTIVE: return set_objective(text, o);
    case OPT_KV: return gw_parse_bytes(text, name, &o->kv_bytes);
    case OPT_CONTEXT: return int_to_int(text, name, 2, 1 << 24, &o->context);
    case OPT_SEQS: o->max_seqs_set = true; return int_to_int(text, name, 1, 65536, &o->max_seqs);
    case OPT_ROWS: o->step_rows_set = true; return int_to_int(text, name, 1, 65536, &o->step_rows);
    case OPT_CREATED: return gw_parse_int(text, name, 0, INT64_MAX, &o->created);
    case OPT_TIMEOUT: return gw_parse_real(text, name, &o->peer_timeout_s);
    case OPT_CHECKPOINT: return set_checkpoint(text, name, &o->checkpoint_s);
    case OPT_WEIGHTS: return set_weights(text, &o->weights);
    case OPT_NO_REPLACE: o->replace = false; return GW_OK;
    case OPT_NOTICE: return add_notice(text, &o->notice);
    case OPT_GRACE: return gw_parse_real(text, name, &o->grace_s);
    case OPT_SPARES: return int_to_int(text, name, 0, 1024, &o->spares);
    case OPT_NO_STORE: o->store = false; return GW_OK;
    case OPT_NO_REBALANCE: o->rebalance = false; return GW_OK;
    case OPT_CHAOS: o->chaos = text; return GW_OK;
    case OPT_MEMBER: return int_to_int(text, name, 0, INT32_MAX, &o->member_base);
    case OPT_LAUNCH: return int_to_int(text, name, 0, INT32_MAX, &o->launch);
    case OPT_FENCE: o->fence = true; return GW_OK;
    case OPT_STANDBY: o->standby = true; return GW_OK;
    case OPT_LAUNCHED: return gw_parse_real(text, name, &o->launched_s);
    default: return set_sampling(id, text, name, &o->defaults.sampling);
    }
}

int gw_job_suitable_seqs(const struct gw_job_options *o, int cpus)
{
    const int threads = o->threads ? o->threads : cpus / o->ranks;
    if (o->max_seqs_set) return o->max_seqs;
    int seqs = threads > MOST_SEQS / SEQS_A_THREAD ? MOST_SEQS : threads * SEQS_A_THREAD;
    if (o->step_rows_set && seqs > o->step_rows) seqs = o->step_rows; /* which they would raise */
    return seqs > LEAST_SEQS ? seqs : LEAST_SEQS;
}

/* What does not follow from one option alone. */
static gw_err complete(struct gw_job_options *o)
{
    if (!o->model_path) return gw_fail(GW_ERR_USAGE, "no model given: add -m MODEL.gguf");
    if (!o->input_path) return gw_fail(GW_ERR_USAGE, "no input given: add -i batch.jsonl");
    if (!o->out_dir) return gw_fail(GW_ERR_USAGE, "no output directory given: add -o OUTDIR");
    if (!(o->peer_timeout_s > 0)) return gw_fail(GW_ERR_USAGE, "--peer-timeout must be more than 0 seconds");
    if (o->ranks == 0) o->ranks = o->layout_set ? gw_layout_ranks(o->layout) : 1;
    if (o->layout_set && gw_layout_ranks(o->layout) != o->ranks)
        return gw_fail(GW_ERR_USAGE, "--layout %dx%dx%d needs %d ranks but -n says %d", o->layout.data,
                       o->layout.tensor, o->layout.pipeline, gw_layout_ranks(o->layout), o->ranks);
    if (o->spares < 0) o->spares = o->ranks > 1 && o->replace;
    if (!o->step_rows_set)
        o->step_rows = o->max_seqs * ROWS_A_SEQUENCE > LEAST_ROWS ? o->max_seqs * ROWS_A_SEQUENCE : LEAST_ROWS;
    if (o->step_rows < o->max_seqs) o->step_rows = o->max_seqs; /* a decode step has a row per sequence */
    if (!o->model_name) {
        static char name[256];
        const char *slash = strrchr(o->model_path, '/');
        snprintf(name, sizeof name, "%s", slash ? slash + 1 : o->model_path);
        size_t length = strlen(name);
        if (length > 5 && !strcmp(name + length - 5, ".gguf")) name[length - 5] = 0;
        o->model_name = name;
    }
    if (o->defaults.sampling.top_k < 0) o->defaults.sampling.top_k = 0; /* as vLLM spells "off" */
    return gw_sampling_check(&o->defaults.sampling);
}

gw_err gw_job_options_parse(int argc, char **argv, struct gw_job_options *o, bool *help)
{
    gw_err rc = GW_OK;
    struct option longs[OPTIONS + 1] = {0};
    char shorts[2 * OPTIONS + 2] = ":";
    *help = false;
    *o = (struct gw_job_options){.max_seqs = LEAST_SEQS,
                                 .peer_timeout_s = 60,
                                 .checkpoint_s = -1,
                                 .replace = true,
                                 .store = true,
                                 .spares = -1,
                                 .rebalance = true,
                                 .grace_s = 30};
    o->argv = argv;
    o->defaults.sampling = gw_sampling_default();
    for (int i = 0; i < OPTIONS; i++) {
        longs[i] = (struct option){table[i].name, table[i].argument ? required_argument : no_argument, NULL,
                                   table[i].id};
        if (table[i].id < 256) {
            size_t at = strlen(shorts);
            snprintf(shorts + at, sizeof shorts - at, "%c%s", table[i].id, table[i].argument ? ":" : "");
        }
    }
    optind = 0; /* from the start, with nothing kept of an earlier parse */
    for (int id; (id = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (id == OPT_HELP) {
            print_help(argv[0]);
            *help = true;
            return GW_OK;
        }
        if (id == '?') FAIL(GW_ERR_USAGE, "unknown option '%s'; see godwit %s --help", argv[optind - 1], argv[0]);
        if (id == ':') FAIL(GW_ERR_USAGE, "option '%s' needs a value; see godwit %s --help", argv[optind - 1], argv[0]);
        const char *name = "";
        for (int i = 0; i < OPTIONS; i++)
            if (table[i].id == id) name = table[i].name;
        TRY(set_option(o, id, optarg, name));
    }
    if (optind < argc) FAIL(GW_ERR_USAGE, "unexpected argument '%s'; see godwit %s --help", argv[optind], argv[0]);
    TRY(complete(o));
out:
    return rc;
}
