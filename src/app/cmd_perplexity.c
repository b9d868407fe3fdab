/* `godwit perplexity`: how well a model predicts a text; also dumps raw logits for comparison with other implementations.
 *
 * The definition is llama.cpp's: the text's tokens are cut into windows of `ctx`, each evaluated alone; the second half of a window is
 * scored (positions ctx/2 .. ctx-2, each by its successor); the figure is exp of the mean negative log-likelihood.
 * With --all every position but the first's is scored. docs/results.md compares.
 */
#include "app/commands.h"
#include "base/file.h"
#include "base/mem.h"
#include "job/options.h"
#include "job/solo.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ROWS = 512, MAX_TEXT_BYTES = 1 << 30 };

struct arguments {
    const char *model, *text, *ids, *dump;
    int64_t threads, ctx, prefill;
    bool all;
};

struct score {
    double nll, nll_squared;
    int64_t count;
};

/* -ln softmax(logits)[target], in double. */
static double negative_log_likelihood(const float *logits, int vocab, int32_t target)
{
    float most = logits[0];
    for (int i = 1; i < vocab; i++)
        if (logits[i] > most) most = logits[i];
    double sum = 0;
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i] - (double)most);
    return log(sum) - ((double)logits[target] - (double)most);
}

/* Scores one window; rows of logits are made a few at a time, since a row is as long as the vocabulary. */
static gw_err score_window(struct gw_solo *solo, struct gw_step *step, const int32_t *ids, int ctx, int first,
                           struct score *score)
{
    gw_err rc = GW_OK;
    enum { BATCH = 64 };
    for (int begin = 0; begin < ctx; begin += MAX_ROWS) {
        int rows = ctx - begin < MAX_ROWS ? ctx - begin : MAX_ROWS;
        TRY(gw_solo_forward(solo, step, ids + begin, begin, rows));
        int last = begin + rows < ctx - 1 ? begin + rows : ctx - 1;
        for (int p = first > begin ? first : begin; p < last; p += BATCH) {
            int32_t picked[BATCH];
            int count = last - p < BATCH ? last - p : BATCH;
            float *logits = NULL;
            for (int i = 0; i < count; i++) picked[i] = p + i - begin;
            TRY(gw_executor_logits(solo->executor, picked, count, &logits));
            for (int i = 0; i < count; i++) {
                double nll = negative_log_likelihood(logits + (size_t)i * (size_t)solo->dims.vocab, solo->dims.vocab,
                                                     ids[p + i + 1]);
                score->nll += nll;
                score->nll_squared += nll * nll;
                score->count++;
            }
        }
    }
out:
    return rc;
}

static gw_err score_text(struct gw_solo *solo, const struct arguments *a)
{
    gw_err rc = GW_OK;
    struct gw_tokenizer *tokenizer = NULL;
    struct gw_tokens tokens = {0};
    struct gw_step step = {0};
    struct score score = {0};
    char *text = NULL;
    size_t bytes = 0;
    TRY(gw_file_read(a->text, MAX_TEXT_BYTES, &text, &bytes));
    if (bytes && text[bytes - 1] == '\n') bytes--;
    TRY(gw_tokenizer_create(gw_model_gguf(solo->model), &tokenizer));
    bool bos = gw_tokenizer_adds_bos(tokenizer) && gw_tokenizer_bos(tokenizer) >= 0;
    if (bos) gw_tokens_add(&tokens, gw_tokenizer_bos(tokenizer));
    TRY(gw_tokenizer_encode(tokenizer, text, bytes, false, &tokens));
    int ctx = (int)a->ctx, windows = (int)(tokens.count / (size_t)ctx), first = a->all ? 0 : ctx / 2;
    if (windows < 1)
        FAIL(GW_ERR_INPUT, "%s has %zu tokens; at least %d are needed (--ctx)", a->text, tokens.count, ctx);
    for (int w = 0; w < windows; w++) {
        int32_t *ids = tokens.ids + (size_t)w * (size_t)ctx;
        if (bos) ids[0] = gw_tokenizer_bos(tokenizer);
        TRY(score_window(solo, &step, ids, ctx, first, &score));
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\r%d/%d windows, perplexity %.4f ", w + 1, windows, exp(score.nll / (double)score.count));
    }
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
    double mean = score.nll / (double)score.count;
    double deviation = sqrt(fmax(score.nll_squared / (double)score.count - mean * mean, 0) / (double)(score.count - 1));
    printf("perplexity %.4f +/- %.4f  (%d windows of %d tokens, %lld scored, kernels %s)\n", exp(mean),
           deviation * exp(mean), windows, ctx, (long long)score.count, gw_executor_kernels(solo->executor));
out:
    gw_step_free(&step);
    gw_tokens_free(&tokens);
    gw_tokenizer_destroy(tokenizer);
    free(text);
    return rc;
}

/* One sequence of ids: the logits of every position, appended to `out`. `prefill` > 0: so many tokens at once, then one by one. */
static gw_err dump_sequence(struct gw_solo *solo, struct gw_step *step, const struct gw_tokens *ids, int prefill,
                            FILE *out, const char *path)
{
    gw_err rc = GW_OK;
    int count = (int)ids->count;
    for (int begin = 0; begin < count;) {
        int rows = prefill > 0 ? (begin == 0 ? prefill : 1) : MAX_ROWS;
        if (rows > count - begin) rows = count - begin;
        if (rows > MAX_ROWS) rows = MAX_ROWS;
        TRY(gw_solo_forward(solo, step, ids->ids + begin, begin, rows));
        for (int32_t row = 0; row < rows; row++) {
            float *logits = NULL;
            TRY(gw_executor_logits(solo->executor, &row, 1, &logits));
            if (fwrite(logits, sizeof(float), (size_t)solo->dims.vocab, out) != (size_t)solo->dims.vocab)
                FAIL(GW_ERR_IO, "cannot write %s: %s", path, strerror(errno));
        }
        begin += rows;
    }
out:
    return rc;
}

static gw_err dump_logits(struct gw_solo *solo, const struct arguments *a)
{
    gw_err rc = GW_OK;
    struct gw_tokens ids = {0};
    struct gw_step step = {0};
    char *text = NULL, *next = NULL;
    FILE *out = NULL;
    TRY(gw_file_read(a->ids, MAX_TEXT_BYTES, &text, NULL));
    out = fopen(a->dump, "wb");
    if (!out) FAIL(GW_ERR_IO, "cannot create %s: %s", a->dump, strerror(errno));
    for (char *line = text; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        ids.count = 0;
        for (char *at = line, *end; *at; at = end) {
            long id = strtol(at, &end, 10);
            if (end == at) {
                if (at[strspn(at, " \t\r")]) FAIL(GW_ERR_INPUT, "%s: '%.20s' is not a token id", a->ids, at);
                break;
            }
            gw_tokens_add(&ids, (int32_t)id);
        }
        if ((int64_t)ids.count > solo->context || (int64_t)ids.count > (int64_t)solo->kv_pages * GW_PAGE_TOKENS)
            FAIL(GW_ERR_INPUT, "%s: a line of %zu ids is longer than the context of %d", a->ids, ids.count,
                 solo->context);
        if (ids.count) TRY(dump_sequence(solo, &step, &ids, (int)a->prefill, out, a->dump));
    }
    int failed = fclose(out);
    out = NULL;
    if (failed) FAIL(GW_ERR_IO, "cannot write %s: %s", a->dump, strerror(errno));
out:
    if (out) fclose(out);
    gw_step_free(&step);
    gw_tokens_free(&ids);
    free(text);
    return rc;
}

static void print_help(void)
{
    printf("Usage: godwit perplexity -m MODEL.gguf -f TEXT [--ctx N] [--all]\n"
           "       godwit perplexity -m MODEL.gguf --ids FILE --dump-logits OUT [--prefill N]\n\n"
           "  -m, --model FILE        model in GGUF form\n"
           "  -f, --file TEXT         text to score\n"
           "      --ctx N             window in tokens (default 512); its second half is scored\n"
           "      --all               score the whole window but its first token\n"
           "  -t, --threads N         threads (default: one per CPU)\n"
           "      --ids FILE          token ids instead of text: a sequence a line, ids separated by blanks\n"
           "      --dump-logits OUT   write float32 logits [tokens][vocab] of --ids\n"
           "      --prefill N         with --ids: the first N tokens at once, the rest one by one\n");
}

static gw_err parse(int argc, char **argv, struct arguments *a, bool *help)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},   {"file", required_argument, NULL, 'f'},
        {"ctx", required_argument, NULL, 'c'},     {"threads", required_argument, NULL, 't'},
        {"ids", required_argument, NULL, 'i'},     {"dump-logits", required_argument, NULL, 'd'},
        {"prefill", required_argument, NULL, 'p'}, {"all", no_argument, NULL, 'a'},
        {"help", no_argument, NULL, 'h'},          {0}};
    gw_err rc = GW_OK;
    *a = (struct arguments){.ctx = 512};
    optind = 1;
    for (int id; (id = getopt_long(argc, argv, "m:f:t:h", options, NULL)) != -1;) switch (id) {
        case 'm': a->model = optarg; break;
        case 'f': a->text = optarg; break;
        case 'i': a->ids = optarg; break;
        case 'd': a->dump = optarg; break;
        case 'a': a->all = true; break;
        case 'c': TRY(gw_parse_int(optarg, "ctx", 4, 1 << 20, &a->ctx)); break;
        case 't': TRY(gw_parse_int(optarg, "threads", 1, 1024, &a->threads)); break;
        case 'p': TRY(gw_parse_int(optarg, "prefill", 1, 1 << 20, &a->prefill)); break;
        case 'h':
            print_help();
            *help = true;
            return GW_OK;
        default: FAIL(GW_ERR_USAGE, "see godwit perplexity --help");
        }
    if (!a->model || optind < argc || !a->text == !a->ids || !a->ids != !a->dump)
        FAIL(GW_ERR_USAGE, "give -m and -f, or -m, --ids and --dump-logits; see godwit perplexity --help");
out:
    return rc;
}

gw_err gw_cmd_perplexity(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct gw_solo solo = {0};
    struct arguments a;
    bool help = false;
    TRY(parse(argc, argv, &a, &help));
    if (help) return GW_OK;
    int kv_tokens = a.ids ? 8192 : (int)a.ctx;
    TRY(gw_solo_open(&solo, a.model, (int)a.threads, kv_tokens, MAX_ROWS, 0));
    if (a.text && a.ctx > solo.context)
        FAIL(GW_ERR_USAGE, "--ctx %lld is more than the model's context of %d", (long long)a.ctx, solo.context);
    TRY(a.text ? score_text(&solo, &a) : dump_logits(&solo, &a));
out:
    gw_solo_close(&solo);
    return rc;
}
