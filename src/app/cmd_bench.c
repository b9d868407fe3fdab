/* `godwit bench`: tokens/s of prefill and decode of this machine over batch sizes, in one process without MPI.
 *
 * For each batch size B: B prompts of `prompt` tokens, different but for the first `shared` ones, are computed (prefill), then `gen` tokens of each are
 * drawn greedily, B rows a step (decode). The clock is around the steps alone. The same scheduler and executor as in a job.
 */
#include "app/bench_kernels.h"
#include "app/commands.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/philox.h"
#include "base/process.h"
#include "batch/scheduler.h"
#include "job/options.h"
#include "job/solo.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCHES = 32 };

struct arguments {
    const char *model;
    int64_t batches[MAX_BATCHES], prompt, shared, gen, threads, step_rows;
    int batch_count;
    bool json, kernels;
};

struct figure {
    double prefill_s, decode_s;
    int64_t prefill_tokens, decode_tokens;
};

static gw_err run_step(struct gw_solo *solo, struct gw_sched *sched, struct gw_step *step, struct gw_drawn *drawn,
                       bool *any)
{
    gw_err rc = GW_OK;
    int count = 0;
    *any = gw_sched_plan(sched, 0, step);
    if (!*any) return GW_OK;
    TRY(gw_executor_forward(solo->executor, step, GW_OUTPUTS_DRAWN, NULL, NULL));
    TRY(gw_executor_draw(solo->executor, step, drawn, &count));
    gw_sched_step_done(sched, 0);
    for (int i = 0; i < count; i++) {
        struct gw_seq *seq = gw_sched_push(sched, drawn[i].seq, drawn[i].result.token);
        if (seq->count == seq->limit) gw_sched_remove(sched, seq);
    }
out:
    return rc;
}

/* Most tokens of a sequence: the first ones go on decoding while the last prompts are computed. */
static int64_t tokens_of(const struct arguments *a, int64_t batch)
{
    int64_t free_rows = a->step_rows > 2 * batch ? a->step_rows - batch : batch;
    return a->prompt + a->gen + 8 + 2 * batch * a->prompt / free_rows;
}

/* The system hands memory out at its first use, which a job pays for once and a benchmark would take for a cost of every token. */
static gw_err touch_pages(struct gw_solo *solo)
{
    gw_err rc = GW_OK;
    struct gw_backend *backend = gw_executor_backend(solo->executor);
    uint16_t *zeros = gw_alloc((size_t)solo->dims.kv_heads * gw_page_halves(solo->dims.head_dim), sizeof *zeros);
    for (int layer = 0; layer < solo->dims.layers; layer++)
        for (int page = 0; page < solo->kv_pages; page++)
            TRY(backend->ops->kv_import(backend, layer, page, 0, solo->dims.kv_heads, zeros));
out:
    free(zeros);
    return rc;
}

static gw_err measure(struct gw_solo *solo, const struct arguments *a, int batch, struct figure *figure)
{
    gw_err rc = GW_OK;
    struct gw_sched *sched = NULL;
    struct gw_step step = {0};
    struct gw_drawn *drawn = gw_alloc((size_t)batch + 1, sizeof *drawn);
    int32_t *prompt = gw_alloc((size_t)a->prompt, sizeof *prompt);
    struct gw_sched_config config = {.slots = 1,
                                     .max_seqs = batch,
                                     .step_rows = (int)(a->step_rows > batch ? a->step_rows : batch),
                                     .page_count = solo->kv_pages,
                                     .context = (int)tokens_of(a, batch)};
    struct gw_sample_params greedy = {.top_p = 1, .repetition_penalty = 1};
    bool any = true;
    *figure = (struct figure){0};
    TRY(gw_sched_create(&config, &sched));
    for (int s = 0; s < batch; s++) {
        for (int i = 0; i < a->prompt; i++) {
            uint64_t stream = i < a->shared ? 0 : (uint64_t)s;
            prompt[i] = (int32_t)(gw_philox_uniform(1, stream, (uint64_t)i) * solo->dims.vocab);
        }
        gw_sched_add(sched, prompt, (int)a->prompt, config.context, -1, &greedy, NULL);
    }
    double begin_s = gw_clock_now_s();
    while (any) { /* until every sequence has drawn its first token */
        struct gw_seq *seq;
        bool waiting = false;
        for (int i = 0; (seq = gw_sched_at(sched, i)); i++) waiting |= seq->count == seq->prompt_count;
        if (!waiting) break;
        TRY(run_step(solo, sched, &step, drawn, &any));
    }
    figure->prefill_s = gw_clock_now_s() - begin_s;
    figure->prefill_tokens = batch * a->prompt;
    int64_t before = 0, after = 0;
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(sched, i)); i++) before += seq->count;
    begin_s = gw_clock_now_s();
    for (int64_t i = 1; i < a->gen; i++) TRY(run_step(solo, sched, &step, drawn, &any));
    figure->decode_s = gw_clock_now_s() - begin_s;
    for (int i = 0; (seq = gw_sched_at(sched, i)); i++) after += seq->count;
    figure->decode_tokens = after - before;
out:
    gw_sched_destroy(sched);
    gw_step_free(&step);
    free(drawn);
    free(prompt);
    return rc;
}

static void print_figure(const struct arguments *a, int batch, const struct figure *f, bool first)
{
    double prefill = (double)f->prefill_tokens / f->prefill_s;
    double decode = f->decode_s > 0 ? (double)f->decode_tokens / f->decode_s : 0;
    if (a->json)
        printf(
            "%s{\"batch\":%d,\"prompt\":%lld,\"gen\":%lld,\"prefill_tokens_per_s\":%.2f,\"decode_tokens_per_s\":%.2f}",
            first ? "[" : ",\n ", batch, (long long)a->prompt, (long long)a->gen, prefill, decode);
    else printf("%6d  %10.1f  %10.1f\n", batch, prefill, decode);
    fflush(stdout);
}

static void print_help(void)
{
    printf("Usage: godwit bench -m MODEL.gguf [--batch N[,N..]] [--prompt N] [--gen N] [--threads N] [--json]\n"
           "       godwit bench --kernels [--threads N] [--json]\n\n"
           "  -m, --model FILE   model in GGUF form\n"
           "  -b, --batch N,..   sequences at once (default 1,8,64)\n"
           "  -p, --prompt N     tokens of each prompt (default 128)\n"
           "      --shared N     tokens that all prompts begin with alike (default 0)\n"
           "  -g, --gen N        tokens generated for each (default 128)\n"
           "  -t, --threads N    threads (default: one per CPU)\n"
           "      --step-rows N  most tokens of a step (default 512)\n"
           "      --json         an object a batch size: prefill_tokens_per_s, decode_tokens_per_s; with --kernels one "
           "object of peaks and cases\n"
           "      --kernels      measure the kernels alone, without a model, and what share of the machine's peak they "
           "reach\n");
}

static gw_err parse_batches(const char *text, struct arguments *a)
{
    gw_err rc = GW_OK;
    char *copy = gw_strdup(text), *rest = copy;
    a->batch_count = 0;
    for (char *part; (part = strsep(&rest, ","));) {
        if (a->batch_count == MAX_BATCHES) FAIL(GW_ERR_USAGE, "--batch takes at most %d sizes", MAX_BATCHES);
        TRY(gw_parse_int(part, "batch", 1, 65536, &a->batches[a->batch_count++]));
    }
out:
    free(copy);
    return rc;
}

static gw_err parse(int argc, char **argv, struct arguments *a, bool *help)
{
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"batch", required_argument, NULL, 'b'},
                                            {"prompt", required_argument, NULL, 'p'},
                                            {"gen", required_argument, NULL, 'g'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"step-rows", required_argument, NULL, 'r'},
                                            {"shared", required_argument, NULL, 's'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"kernels", no_argument, NULL, 'k'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    gw_err rc = GW_OK;
    *a = (struct arguments){.batches = {1, 8, 64}, .batch_count = 3, .prompt = 128, .gen = 128, .step_rows = 512};
    optind = 1;
    for (int id; (id = getopt_long(argc, argv, "m:b:p:g:t:h", options, NULL)) != -1;) switch (id) {
        case 'm': a->model = optarg; break;
        case 'b': TRY(parse_batches(optarg, a)); break;
        case 'p': TRY(gw_parse_int(optarg, "prompt", 1, 1 << 20, &a->prompt)); break;
        case 's': TRY(gw_parse_int(optarg, "shared", 0, 1 << 20, &a->shared)); break;
        case 'g': TRY(gw_parse_int(optarg, "gen", 1, 1 << 20, &a->gen)); break;
        case 't': TRY(gw_parse_int(optarg, "threads", 1, 1024, &a->threads)); break;
        case 'r': TRY(gw_parse_int(optarg, "step-rows", 1, 65536, &a->step_rows)); break;
        case 'j': a->json = true; break;
        case 'k': a->kernels = true; break;
        case 'h':
            print_help();
            *help = true;
            return GW_OK;
        default: FAIL(GW_ERR_USAGE, "see godwit bench --help");
        }
    if ((!a->model && !a->kernels) || optind < argc)
        FAIL(GW_ERR_USAGE, "give a model with -m; see godwit bench --help");
out:
    return rc;
}

gw_err gw_cmd_bench(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct gw_solo solo = {0};
    struct arguments a;
    struct figure figure;
    bool help = false;
    int64_t most = 0;
    TRY(parse(argc, argv, &a, &help));
    if (help) return GW_OK;
    if (a.kernels) return gw_bench_kernels(a.threads ? (int)a.threads : gw_process_cpus(), a.json);
    for (int i = 0; i < a.batch_count; i++) most = a.batches[i] > most ? a.batches[i] : most;
    int64_t tokens_per_seq = (tokens_of(&a, most) / GW_PAGE_TOKENS + 2) * GW_PAGE_TOKENS;
    int max_rows = (int)(a.step_rows > most ? a.step_rows : most);
    TRY(gw_solo_open(&solo, a.model, (int)a.threads, (int)(most * tokens_per_seq), max_rows, 0));
    if (tokens_of(&a, most) > solo.context)
        FAIL(GW_ERR_USAGE, "--prompt and --gen are more than the model's context of %d", solo.context);
    TRY(touch_pages(&solo));
    if (!a.json)
        printf("%s, %d threads, kernels %s\n batch   prefill/s   decode/s\n", a.model, solo.threads,
               gw_executor_kernels(solo.executor));
    for (int i = 0; i < a.batch_count; i++) {
        TRY(measure(&solo, &a, (int)a.batches[i], &figure));
        print_figure(&a, (int)a.batches[i], &figure, i == 0);
    }
    if (a.json) printf("]\n");
out:
    gw_solo_close(&solo);
    return rc;
}
