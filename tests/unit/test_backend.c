/* A model's forward pass through the CPU backend and the executor, on tiny models: the same logits, bit for bit, however a prompt is cut
 * into steps, whatever else is in the batch, wherever its pages lie, on every kernel table and number of threads; pages leave and enter
 * unchanged; and for every weight type the logits are those of a naive forward pass in double precision (naive_forward.h). */
#include "job/executor.h"
#include "support/tiny_model.h"
#include "unit/naive_forward.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES = 24, MAX_ROWS = 160, CONTEXT = 256, PROMPT = 75 };

struct engine {
    struct gw_buf file;
    struct gw_model *model;
    struct gw_executor *executor;
    int vocab;
};

static int table_count;
static const char *tables[5];

static void find_tables(void)
{
    static const char *const names[] = {"ref", "ref-fma", "avx2", "avx512", "amx"};
    const struct gw_kernels *kernels;
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (gw_kernels_by_name(names[i], &kernels) == GW_OK) tables[table_count++] = names[i];
        else printf("not run here: %s (%s)\n", names[i], gw_error_detail());
    }
}

/* The model of `spec` with kernel table `table` (NULL: the best). */
static void open_engine(struct engine *e, const struct gw_tiny_spec *spec, const char *table, int threads)
{
    *e = (struct engine){0};
    CU_ASSERT_FATAL(gw_tiny_build(spec, &e->file) == GW_OK);
    gw_err rc = gw_model_parse("tiny", e->file.data, e->file.bytes, &e->model);
    if (rc != GW_OK) printf("%s ", gw_error_detail());
    CU_ASSERT_FATAL(rc == GW_OK);
    if (table) setenv("GODWIT_KERNELS", table, 1);
    else unsetenv("GODWIT_KERNELS");
    static int only_rank = 0;
    static const struct gw_team team = {.layout = {.data = 1, .tensor = 1, .pipeline = 1}, .ranks = &only_rank};
    struct gw_executor_config config = {.model = e->model,
                                        .team = &team,
                                        .threads = threads,
                                        .local_size = 1,
                                        .kv_pages = PAGES,
                                        .max_rows = MAX_ROWS,
                                        .max_context = CONTEXT};
    CU_ASSERT_FATAL(gw_executor_create(&config, &e->executor) == GW_OK);
    if (table) CU_ASSERT_STRING_EQUAL(gw_executor_kernels(e->executor), table);
    e->vocab = gw_model_info(e->model)->vocab;
}

static void close_engine(struct engine *e)
{
    gw_executor_destroy(e->executor);
    gw_model_close(e->model);
    gw_buf_free(&e->file);
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static int32_t text[8][CONTEXT]; /* eight sequences of token ids */

static void make_texts(void)
{
    uint32_t state = 12345;
    for (int s = 0; s < 8; s++)
        for (int i = 0; i < CONTEXT; i++) {
            state = state * 1664525u + 1013904223u;
            text[s][i] = (int32_t)(state >> 8) % 259;
        }
}

/* Page p of sequence s, in an order that is neither ascending nor contiguous. */
static int32_t page_of(int s, int p)
{
    return (s * 5 + p * 7 + 3) % PAGES;
}

static void add_rows(struct gw_step *step, int s, int page_seq, int pos0, int rows)
{
    struct gw_step_seq *seq = gw_step_add_seq(step);
    seq->row0 = step->rows;
    seq->rows = rows;
    seq->pos0 = pos0;
    seq->page0 = step->page_count;
    gw_step_add_tokens(step, text[s] + pos0, rows);
    for (int p = 0; p * GW_PAGE_TOKENS < pos0 + rows; p++) {
        int32_t page = page_of(page_seq, p);
        gw_step_add_pages(step, &page, 1);
    }
}

/* Runs the step; logits of all its rows are copied to `out`. */
static void run_step(struct engine *e, struct gw_step *step, float *out)
{
    int32_t rows[MAX_ROWS];
    float *logits = NULL;
    for (int r = 0; r < step->rows; r++) rows[r] = r;
    CU_ASSERT_FATAL(gw_executor_forward(e->executor, step, GW_OUTPUTS_ALL, NULL, NULL) == GW_OK);
    CU_ASSERT_FATAL(gw_executor_logits(e->executor, rows, step->rows, &logits) == GW_OK);
    memcpy(out, logits, (size_t)step->rows * (size_t)e->vocab * sizeof *out);
    step->id++;
}

/* Tokens [0, count) of text s, `chunk` rows a step: logits [count][vocab]; free(). */
static float *run_text(struct engine *e, int s, int page_seq, int count, int chunk)
{
    float *logits = calloc((size_t)count * (size_t)e->vocab, sizeof *logits);
    struct gw_step step = {0};
    for (int pos = 0; pos < count; pos += chunk) {
        gw_step_clear(&step);
        add_rows(&step, s, page_seq, pos, chunk < count - pos ? chunk : count - pos);
        run_step(e, &step, logits + (size_t)pos * (size_t)e->vocab);
    }
    gw_step_free(&step);
    return logits;
}

static bool same_rows(const struct engine *e, const float *a, const float *b, int rows)
{
    return memcmp(a, b, (size_t)rows * (size_t)e->vocab * sizeof *a) == 0;
}

static struct gw_tiny_spec small(enum gw_type type, const char *arch)
{
    struct gw_tiny_spec spec = gw_tiny_default(type);
    spec.arch = arch;
    spec.layers = 2;
    spec.ffn = 512;
    spec.vocab = 300;
    return spec;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void test_chunks(void)
{
    static const int chunks[] = {1, 7, 31, 32, 33, 64};
    static const enum gw_type types[] = {GW_TYPE_Q4_1, GW_TYPE_F16};
    for (int t = 0; t < 2; t++)
        for (int table = 0; table < table_count; table++) {
            struct engine e;
            struct gw_tiny_spec spec = small(types[t], t ? "qwen2" : "llama");
            open_engine(&e, &spec, tables[table], 1);
            float *whole = run_text(&e, 0, 0, PROMPT, PROMPT);
            size_t each = strcmp(tables[table], "ref") == 0 ? 4 : 1; /* ref takes long: two ways to cut will do */
            for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c += each) {
                float *part = run_text(&e, 0, (int)c + 1, PROMPT, chunks[c]);
                if (!same_rows(&e, whole, part, PROMPT)) printf("%s in chunks of %d ", tables[table], chunks[c]);
                CU_ASSERT(same_rows(&e, whole, part, PROMPT));
                free(part);
            }
            free(whole);
            close_engine(&e);
        }
}

/* Steps of a prompt of which nobody wants the logits leave their keys and values all the same. */
static void test_steps_without_logits(void)
{
    for (int threads = 1; threads <= 2; threads++)
        for (int chunk = 5; chunk <= 50; chunk += 45) {
            struct engine e;
            struct gw_tiny_spec spec = small(GW_TYPE_Q4_1, "llama");
            open_engine(&e, &spec, NULL, threads);
            struct gw_step step = {0};
            float *whole = run_text(&e, 0, 0, PROMPT, PROMPT),
                  *last = calloc((size_t)MAX_ROWS * (size_t)e.vocab, sizeof *last);
            for (int pos = 0; pos < 50; pos += chunk) {
                gw_step_clear(&step);
                add_rows(&step, 0, 1, pos, chunk);
                CU_ASSERT_FATAL(gw_executor_forward(e.executor, &step, GW_OUTPUTS_DRAWN, NULL, NULL) == GW_OK);
                step.id++;
            }
            gw_step_clear(&step);
            add_rows(&step, 0, 1, 50, PROMPT - 50);
            run_step(&e, &step, last);
            CU_ASSERT(same_rows(&e, whole + (size_t)50 * (size_t)e.vocab, last, PROMPT - 50));
            free(whole);
            free(last);
            gw_step_free(&step);
            close_engine(&e);
        }
}

enum { STEP_SEQS = 6 };

/* One step of `decoding` rows that draw, a prompt that draws after its last row, and a piece of one that does not, in `parts` parts; what has been drawn. */
static int draw_some(struct engine *e, int decoding, int parts, enum gw_outputs outputs, struct gw_drawn *drawn)
{
    struct gw_step step = {0};
    int count = 0;
    for (int s = 0; s < decoding; s++) {
        add_rows(&step, s, s, 0, 33 + s);
        CU_ASSERT_FATAL(gw_executor_forward(e->executor, &step, outputs, NULL, NULL) == GW_OK);
        gw_step_clear(&step);
        step.id++;
    }
    for (int s = 0; s < decoding; s++) add_rows(&step, s, s, 33 + s, 1);
    add_rows(&step, decoding, decoding, 0, 20);
    add_rows(&step, decoding + 1, decoding + 1, 0, 17);
    for (int s = 0; s <= decoding; s++) {
        step.seqs[s].seq = (uint32_t)s;
        step.seqs[s].sample = 1;
        step.seqs[s].logprobs = 5;
        step.seqs[s].params = (struct gw_sample_params){
            .temperature = 1, .top_p = 1, .repetition_penalty = 1, .stream = (uint64_t)s};
    }
    step.cut = parts == 2 ? GW_ACT_ROWS : 0;
    CU_ASSERT_FATAL(gw_executor_forward(e->executor, &step, outputs, NULL, NULL) == GW_OK);
    CU_ASSERT_FATAL(gw_executor_draw(e->executor, &step, drawn, &count) == GW_OK);
    gw_step_free(&step);
    return count;
}

/* Rows of which no token is drawn end before the last layer does: what is drawn from the others is the same, and so are all keys and values. */
static void test_drawn_rows(void)
{
    static const enum gw_type types[] = {GW_TYPE_Q4_1, GW_TYPE_F16};
    for (int t = 0; t < 2; t++)
        for (int threads = 1; threads <= 3; threads++)
            for (int parts = 1; parts <= 2; parts++)
                for (int decoding = 0; decoding <= STEP_SEQS - 2; decoding += 4) {
                    struct engine all, narrowed;
                    struct gw_tiny_spec spec = small(types[t], t ? "qwen2" : "llama");
                    struct gw_drawn want[STEP_SEQS], got[STEP_SEQS];
                    open_engine(&all, &spec, NULL, threads);
                    open_engine(&narrowed, &spec, NULL, threads);
                    CU_ASSERT_EQUAL(draw_some(&all, decoding, parts, GW_OUTPUTS_ALL, want), decoding + 1);
                    CU_ASSERT_EQUAL(draw_some(&narrowed, decoding, parts, GW_OUTPUTS_DRAWN, got), decoding + 1);
                    CU_ASSERT(memcmp(want, got, (size_t)(decoding + 1) * sizeof *got) == 0);
                    for (int s = 0; s < decoding + 2; s++) { /* each goes on with one row: it reads all of its keys */
                        struct gw_step step = {0};
                        float a[512], b[512];
                        CU_ASSERT_FATAL(all.vocab <= 512);
                        add_rows(&step, s, s, s < decoding ? 34 + s : s == decoding ? 20 : 17, 1);
                        run_step(&all, &step, a);
                        run_step(&narrowed, &step, b);
                        CU_ASSERT(same_rows(&all, a, b, 1));
                        gw_step_free(&step);
                    }
                    close_engine(&all);
                    close_engine(&narrowed);
                }
}

/* Prompts, pieces of prompts and decoding rows of five sequences in one step, against each alone. With 2 to 4 threads the rows are shared out: the
 * threads meet in the middle of a sequence. */
static void test_batch(void)
{
    static const struct {
        int pos0, rows;
    } parts[5] = {{0, 40}, {33, 1}, {17, 20}, {0, 1}, {31, 2}};
    for (int threads = 1; threads <= 5; threads++) {
        struct engine e;
        struct gw_tiny_spec spec = small(GW_TYPE_Q4_1, "llama");
        open_engine(&e, &spec, NULL, threads);
        struct gw_step step = {0};
        float *alone[5], *batch = calloc((size_t)MAX_ROWS * (size_t)e.vocab, sizeof *batch);
        for (int s = 0; s < 5; s++) alone[s] = run_text(&e, s, 0, parts[s].pos0 + parts[s].rows, 40);
        for (int s = 0; s < 5; s++) /* what comes before, into the sequence's own pages: 2 each of 24, none shared */
            if (parts[s].pos0) free(run_text(&e, s, s, parts[s].pos0, 5));
        for (int s = 0; s < 5; s++) add_rows(&step, s, s, parts[s].pos0, parts[s].rows);
        for (step.cut = 0; step.cut < step.rows; step.cut += GW_ACT_ROWS) { /* in one part and in two */
            run_step(&e, &step, batch);
            for (int s = 0, row = 0; s < 5; row += parts[s++].rows)
                CU_ASSERT(same_rows(&e, alone[s] + (size_t)parts[s].pos0 * (size_t)e.vocab,
                                    batch + (size_t)row * (size_t)e.vocab, parts[s].rows));
        }
        for (int s = 0; s < 5; s++) free(alone[s]);
        free(batch);
        gw_step_free(&step);
        close_engine(&e);
    }
}

/* A page filled by an earlier sequence of the step is read by a later one: the scheduler shares prefixes that way. And it is written once more, with the
 * same bits, where of a prompt that is there already the last token is computed again: by a later row than those that read it, or by an
 * earlier one. However the threads share out the rows, and whoever comes first. */
static void test_shared_page_in_one_step(void)
{
    memcpy(text[7], text[6], GW_PAGE_TOKENS * sizeof **text);
    for (int threads = 1; threads <= 4; threads++) {
        struct engine e;
        struct gw_tiny_spec spec = small(GW_TYPE_Q8_0, "llama");
        open_engine(&e, &spec, NULL, threads);
        size_t vocab = (size_t)e.vocab;
        float *six = run_text(&e, 6, 0, 50, 50), *seven = run_text(&e, 7, 1, 60, 60);
        float *both = calloc((size_t)MAX_ROWS * vocab, sizeof *both);
        struct gw_step step = {0};
        for (int round = 0; round < 20; round++) {
            int cut = round % 4 * GW_ACT_ROWS;
            gw_step_clear(&step);
            add_rows(&step, 6, 6, 0, 50);
            add_rows(&step, 7, 7, 32, 28);
            step.cut = cut;
            step.pages[step.seqs[1].page0] = page_of(6, 0);
            run_step(&e, &step, both);
            CU_ASSERT(same_rows(&e, six, both, 50) && same_rows(&e, seven + 32 * vocab, both + 50 * vocab, 28));
            gw_step_clear(&step);
            add_rows(&step, 7, 7, 32, 28);
            add_rows(&step, 6, 6, 31, 19);
            add_rows(&step, 7, 5, 20, 24);
            step.cut = cut;
            step.pages[step.seqs[0].page0] = step.pages[step.seqs[2].page0] = page_of(6, 0);
            run_step(&e, &step, both);
            CU_ASSERT(same_rows(&e, seven + 32 * vocab, both, 28) &&
                      same_rows(&e, six + 31 * vocab, both + 28 * vocab, 19));
            CU_ASSERT(same_rows(&e, seven + 20 * vocab, both + 47 * vocab, 24));
        }
        free(six);
        free(seven);
        free(both);
        gw_step_free(&step);
        close_engine(&e);
    }
}

/* Two shards of three KV heads would wait for each other: steps of some size are cut, at whole tiles. One shard, or three alike, gain nothing by it. */
static void test_cut(void)
{
    struct gw_tiny_spec spec = small(GW_TYPE_Q4_1, "llama");
    struct gw_buf file = {0};
    struct gw_model *model = NULL;
    CU_ASSERT_FATAL(gw_tiny_build(&spec, &file) == GW_OK);
    CU_ASSERT_FATAL(gw_model_parse("tiny", file.data, file.bytes, &model) == GW_OK);
    for (int tensor = 1; tensor <= 3; tensor++) {
        int ranks[] = {0, 1, 2};
        struct gw_team team = {.layout = GW_LAYOUT(1, tensor, 1), .ranks = ranks};
        struct gw_executor_config config = {.model = model,
                                            .team = &team,
                                            .threads = 1,
                                            .local_size = 1,
                                            .kv_pages = PAGES,
                                            .max_rows = MAX_ROWS,
                                            .max_context = CONTEXT};
        struct gw_executor *executor = NULL;
        struct gw_step step = {0};
        CU_ASSERT_FATAL(gw_executor_create(&config, &executor) == GW_OK);
        for (int rows = 1; rows <= MAX_ROWS; rows++) {
            gw_step_add_tokens(&step, text[0], 1);
            gw_executor_cut(executor, &step);
            bool cut = tensor == 2 && rows >= 2 * GW_ACT_ROWS;
            CU_ASSERT((step.cut > 0) == cut && step.cut % GW_ACT_ROWS == 0 && step.cut < rows);
            CU_ASSERT(!cut || abs(step.cut - rows / 2) <= GW_ACT_ROWS);
        }
        gw_step_free(&step);
        gw_executor_destroy(executor);
    }
    gw_model_close(model);
    gw_buf_free(&file);
}

/* Sequences whose first pages are the same ones decode side by side, where their attention is computed together, with others before and behind. */
static void test_shared_prefix(void)
{
    enum { SEQS = 7, COMMON = 3, OWN = 5 }; /* number OWN has a page less in common, number 6 nothing */
    static const int pos[SEQS] = {100, 96, 127, 110, 97, 80, 33};
    static int32_t kept[SEQS][CONTEXT];
    memcpy(kept, text, sizeof kept);
    for (int s = 1; s < SEQS - 1; s++)
        memcpy(text[s], text[0], (size_t)(s == OWN ? COMMON - 1 : COMMON) * GW_PAGE_TOKENS * sizeof **text);
    for (int t = 0; t < table_count; t++)
        for (int threads = 1; threads <= 3; threads += 2) {
            struct engine e;
            struct gw_tiny_spec spec = small(GW_TYPE_Q4_1, "llama");
            open_engine(&e, &spec, tables[t], threads);
            size_t vocab = (size_t)e.vocab;
            float *alone[SEQS], *out = calloc((size_t)MAX_ROWS * vocab, sizeof *out);
            for (int s = 0; s < SEQS; s++) alone[s] = run_text(&e, s, 0, pos[s] + 1, 50);
            struct gw_step step = {0};
            for (int last = 0; last < 2; last++) { /* what comes before, sequence by sequence; then the rows together */
                gw_step_clear(&step);
                for (int s = 0; s < SEQS; s++) {
                    int begin = last ? pos[s] : s == 0 || s == 6 ? 0 : s == OWN ? 64 : 96;
                    int rows = last ? 1 : pos[s] - begin, shared = s == OWN ? COMMON - 1 : s == 6 ? 0 : COMMON;
                    if (last && s == 6) {
                        static const int32_t nobody_elses[] = {20, 21, 22};
                        add_rows(&step, 7, 7, 0, 70);
                        memcpy(step.pages + step.seqs[step.seq_count - 1].page0, nobody_elses, sizeof nobody_elses);
                    }
                    if (rows == 0) continue;
                    add_rows(&step, s, s, begin, rows);
                    int32_t *pages = step.pages + step.seqs[step.seq_count - 1].page0;
                    for (int p = 0; p <= pos[s] / GW_PAGE_TOKENS; p++)
                        pages[p] = p < shared ? p : 3 + 2 * s + p - shared;
                    if (last) continue;
                    run_step(&e, &step, out);
                    gw_step_clear(&step);
                }
            }
            run_step(&e, &step, out);
            for (int s = 0; s < SEQS; s++)
                CU_ASSERT(same_rows(&e, alone[s] + (size_t)pos[s] * vocab, out + (size_t)(s < 6 ? s : 76) * vocab, 1));
            for (int s = 0; s < SEQS; s++) free(alone[s]);
            free(out);
            gw_step_free(&step);
            close_engine(&e);
        }
    memcpy(text, kept, sizeof kept);
}

/* The canonical form of layer 0, half precision [key|value][kv_head][token][dim], against the naive keys and values. */
static bool is_canonical(const struct engine *e, const uint16_t *halves, int page)
{
    const struct gw_model_info *m = gw_model_info(e->model);
    size_t width = (size_t)(m->kv_heads * m->head_dim);
    struct naive_layer naive = {calloc(PROMPT * width, sizeof(double)), calloc(PROMPT * width, sizeof(double))};
    free(naive_forward(e->model, text[0], PROMPT, true, &naive));
    double error = 0, square = 0;
    for (int part = 0; part < 2; part++)
        for (int h = 0; h < m->kv_heads; h++)
            for (int t = 0; t < GW_PAGE_TOKENS && page * GW_PAGE_TOKENS + t < PROMPT; t++)
                for (int i = 0; i < m->head_dim; i++) {
                    size_t at = ((size_t)(part * m->kv_heads + h) * GW_PAGE_TOKENS + (size_t)t) * (size_t)m->head_dim +
                                (size_t)i;
                    double wanted =
                        (part ? naive.v
                              : naive.k)[(size_t)(page * GW_PAGE_TOKENS + t) * width + (size_t)(h * m->head_dim + i)];
                    double got = (double)gw_f16_to_f32(halves[at]);
                    error += (got - wanted) * (got - wanted);
                    square += wanted * wanted;
                }
    free(naive.k);
    free(naive.v);
    return error < 1e-4 * square;
}

static void test_export_import(void)
{
    struct engine from, to;
    struct gw_tiny_spec spec = small(GW_TYPE_Q4_1, "qwen2");
    open_engine(&from, &spec, tables[table_count - 1], 1);
    open_engine(&to, &spec, tables[0], 2); /* another kernel table, other page numbers */
    const struct gw_model_info *m = gw_model_info(from.model);
    float *whole = run_text(&from, 0, 0, PROMPT + 3, PROMPT + 3);
    free(run_text(&from, 0, 0, PROMPT, 20));
    struct gw_backend *a = gw_executor_backend(from.executor), *b = gw_executor_backend(to.executor);
    uint16_t *page = calloc((size_t)m->kv_heads * gw_page_halves(m->head_dim), sizeof *page);
    for (int layer = 0; layer < m->layers; layer++)
        for (int p = 0; p * GW_PAGE_TOKENS < PROMPT; p++) {
            CU_ASSERT_EQUAL(a->ops->kv_export(a, layer, page_of(0, p), 0, m->kv_heads, page), GW_OK);
            if (layer == 0) CU_ASSERT(is_canonical(&from, page, p));
            CU_ASSERT_EQUAL(b->ops->kv_import(b, layer, page_of(3, p), 0, m->kv_heads, page), GW_OK);
        }
    float *next = calloc((size_t)3 * (size_t)to.vocab, sizeof *next);
    struct gw_step step = {0};
    add_rows(&step, 0, 3, PROMPT, 3);
    run_step(&to, &step, next);
    CU_ASSERT(same_rows(&to, whole + (size_t)PROMPT * (size_t)to.vocab, next, 3));
    free(whole);
    free(next);
    free(page);
    gw_step_free(&step);
    close_engine(&from);
    close_engine(&to);
}

/* Root mean square of the difference over that of the naive logits. */
static double relative_error(const float *logits, const double *naive, size_t count)
{
    double error = 0, square = 0;
    for (size_t i = 0; i < count; i++) {
        error += ((double)logits[i] - naive[i]) * ((double)logits[i] - naive[i]);
        square += naive[i] * naive[i];
    }
    return sqrt(error / square);
}

/* How far the logits are from naive ones, and from naive ones that are rounded where the engine's are: over all rows, and the
 * best row. An activation that float32 rounding tips over to the next of 256 steps shows in the former (up to 1e-2) and not in the latter. */
struct distance {
    double plain, rounded, row;
};

static double best_row(const float *logits, const double *naive, int rows, size_t vocab)
{
    double best = 1;
    for (int r = 0; r < rows; r++) {
        double error = relative_error(logits + (size_t)r * vocab, naive + (size_t)r * vocab, vocab);
        if (error < best) best = error;
    }
    return best;
}

/* All tables agree on the bits, and the bits are near the naive logits. */
static struct distance check_model(const struct gw_tiny_spec *spec)
{
    enum { TOKENS = 40 };
    float *first = NULL;
    struct distance distance = {0};
    for (int table = 0; table < table_count; table++) {
        struct engine e;
        open_engine(&e, spec, tables[table], table == 0 ? 2 : 1);
        float *logits = run_text(&e, 1, 0, TOKENS, TOKENS);
        size_t count = (size_t)TOKENS * (size_t)e.vocab;
        if (!first) {
            double *plain = naive_forward(e.model, text[1], TOKENS, false, NULL);
            double *rounded = naive_forward(e.model, text[1], TOKENS, true, NULL);
            distance = (struct distance){relative_error(logits, plain, count), relative_error(logits, rounded, count),
                                         best_row(logits, rounded, TOKENS, (size_t)e.vocab)};
            free(plain);
            free(rounded);
            first = logits;
        } else {
            CU_ASSERT(same_rows(&e, first, logits, TOKENS));
            free(logits);
        }
        close_engine(&e);
    }
    free(first);
    return distance;
}

static void test_types(void)
{
    static const enum gw_type types[] = {GW_TYPE_F32,  GW_TYPE_F16,  GW_TYPE_BF16, GW_TYPE_Q8_0,
                                         GW_TYPE_Q4_0, GW_TYPE_Q4_1, GW_TYPE_Q5_0, GW_TYPE_Q5_1,
                                         GW_TYPE_Q4_K, GW_TYPE_Q5_K, GW_TYPE_Q6_K};
    static const char *const archs[] = {"llama", "qwen2"};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int a = 0; a < 2; a++) {
            struct gw_tiny_spec spec = small(types[t], archs[a]);
            bool is_float = types[t] == GW_TYPE_F32 || types[t] == GW_TYPE_F16 || types[t] == GW_TYPE_BF16;
            if (is_float) spec.embed_type = types[t]; /* then nothing but KV is rounded, to half */
            spec.tied = a == 0;
            struct distance d = check_model(&spec);
            printf("\n    %-5s %s: %.1e, rounded alike %.1e, row %.1e ", gw_type_info(types[t])->name, archs[a],
                   d.plain, d.rounded, d.row);
            CU_ASSERT(d.plain < (is_float ? 2e-3 : 4e-2) && d.rounded < (is_float ? 3e-4 : 2e-2) && d.row < 1e-5);
        }
}

/* Types mixed as files mix them, positions scaled, one kv head, as many kv heads as heads. */
static void test_shapes(void)
{
    struct gw_tiny_spec spec = small(GW_TYPE_Q4_K, "llama");
    spec.down_type = GW_TYPE_Q6_K;
    spec.embed_type = GW_TYPE_Q6_K;
    CU_ASSERT(check_model(&spec).row < 1e-5);
    spec = small(GW_TYPE_F32, "llama");
    spec.embed_type = GW_TYPE_F16;
    spec.rope_scaling = GW_ROPE_SCALING_LINEAR;
    CU_ASSERT(check_model(&spec).rounded < 3e-4);
    spec.rope_scaling = GW_ROPE_SCALING_NONE;
    spec.kv_heads = 1;
    CU_ASSERT(check_model(&spec).rounded < 3e-4);
    spec.kv_heads = spec.heads;
    spec.head_dim = 64;
    CU_ASSERT(check_model(&spec).rounded < 3e-4);
}

static void test_token_outside(void)
{
    struct engine e;
    struct gw_tiny_spec spec = small(GW_TYPE_Q4_1, "llama");
    open_engine(&e, &spec, NULL, 1);
    static const int32_t bad[] = {-1, 300, INT32_MAX};
    for (int i = 0; i < 3; i++) {
        struct gw_step step = {0};
        add_rows(&step, 0, 0, 0, 2);
        step.tokens[1] = bad[i];
        CU_ASSERT_EQUAL(gw_executor_forward(e.executor, &step, GW_OUTPUTS_DRAWN, NULL, NULL), GW_ERR_INPUT);
        gw_step_free(&step);
    }
    close_engine(&e);
}

int main(void)
{
    find_tables();
    make_texts();
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("backend", NULL, NULL);
    CU_add_test(suite, "a prompt in chunks", test_chunks);
    CU_add_test(suite, "steps without logits", test_steps_without_logits);
    CU_add_test(suite, "rows that draw and others", test_drawn_rows);
    CU_add_test(suite, "batch against alone", test_batch);
    CU_add_test(suite, "a page shared within a step", test_shared_page_in_one_step);
    CU_add_test(suite, "a shared prefix", test_shared_prefix);
    CU_add_test(suite, "steps in parts", test_cut);
    CU_add_test(suite, "export and import", test_export_import);
    CU_add_test(suite, "weight types", test_types);
    CU_add_test(suite, "shapes", test_shapes);
    CU_add_test(suite, "token outside the vocabulary", test_token_outside);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
