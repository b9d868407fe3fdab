/* `godwit bench --kernels`: each kernel alone, beside what the machine can do at most, measured in the same run.
 *
 * Every thread times its own share with its CPU clock and the slowest counts; the best of several repetitions is shown. So a figure
 * says what the code costs on this machine, not how busy the machine is. The peaks are measured the same way: int8
 * dot products and float32 multiply-adds that stay in registers, and plain reads of memory. Arithmetic is
 * compared with the peak of its kind: products of quantized weights with that of int8, other products and attention with that of float32.
 * Weights and KV pages are cycled through as much memory as the first of these reads, so few rows show its speed and many rows that of the dots. A
 * server's third-level cache may hold that; what a step of a large batch reads, weights and all KV, it does not: hence the second.
 */
#include "app/bench_kernels.h"

#include "base/mem.h"
#include "base/philox.h"
#include "base/pool.h"
#include "engine/sampler.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    WIDTH = 2048, /* outputs and inputs of a product */
    STREAM_BYTES = 96 << 20,
    FAR_BYTES = 512 << 20, /* more than caches have */
    MAX_ROWS = 512,
    REPEATS = 5,
    HEAD_DIM = 64,
    GROUP = 3,
    MOST_CONTEXT = 8192,
    MOST_ITEMS = 64,       /* sequences */
    MOST_TOKENS = 1 << 16, /* of all of them */
    VOCAB = 49152
};
static const double MEASURE_S = 0.02; /* of one repetition */

struct work {
    const struct gw_kernels *kernels;
    const char *name;
    /* one thread's share of pass `pass` */
    void (*run)(struct work *work, int pass, int thread, int threads);
    double ops, bytes; /* of one pass of all threads */
    bool floats;       /* the arithmetic is in float32, not in int8 */
    int rows, context, items;

    struct gw_packed *weights; /* [copies] */
    int copies;
    uint8_t *scratch; /* [threads][scratch_bytes], of products */
    size_t scratch_bytes;
    struct gw_act act;
    float *x, *y;
    uint16_t *pages;
    const uint8_t *stream;
    size_t stream_bytes;
    struct gw_sampler *sampler; /* [threads] */
    struct gw_sample_params params;

    int passes;
    double *thread_s;
    uint64_t *sink; /* [threads]: so that no result is unused */
};

struct peaks {
    double dots_per_s, fmas_per_s, bytes_per_s, far_bytes_per_s;
    bool json, any; /* how show() prints; has it printed a case yet? */
};

static double thread_clock_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void timed_share(void *arg, int thread, int threads)
{
    struct work *work = arg;
    double begin_s = thread_clock_s();
    for (int pass = 0; pass < work->passes; pass++) work->run(work, pass, thread, threads);
    work->thread_s[thread] = thread_clock_s() - begin_s;
}

/* Seconds of one pass: the slowest thread of the best repetition. */
static double pass_s(struct work *work, struct gw_pool *pool)
{
    int threads = gw_pool_threads(pool);
    double best_s = 1e9;
    work->thread_s = gw_alloc((size_t)threads, sizeof(double));
    work->sink = gw_alloc((size_t)threads, sizeof(uint64_t));
    work->passes = 1;
    for (int repeat = 0; repeat < REPEATS;) {
        gw_pool_run(pool, timed_share, work);
        double slowest_s = 0;
        for (int t = 0; t < threads; t++) slowest_s = work->thread_s[t] > slowest_s ? work->thread_s[t] : slowest_s;
        if (slowest_s < MEASURE_S && work->passes < 1 << 24) { /* too short to trust: again, longer */
            work->passes *= 2;
            continue;
        }
        repeat++;
        if (slowest_s / work->passes < best_s) best_s = slowest_s / work->passes;
    }
    free(work->thread_s);
    free(work->sink);
    return best_s;
}

/* ---- what the machine can do ------------------------------------------------------------------------------------ */

static void run_dots(struct work *work, int pass, int thread, int threads)
{
    (void)pass, (void)threads;
    work->sink[thread] += (uint64_t)work->kernels->int8_dots(10000);
}

static void run_fmas(struct work *work, int pass, int thread, int threads)
{
    (void)pass, (void)threads;
    work->sink[thread] += (uint64_t)work->kernels->float_fmas(10000);
}

static void run_stream(struct work *work, int pass, int thread, int threads)
{
    (void)pass;
    int begin, end;
    gw_split((int)(work->stream_bytes / 4096), threads, thread, &begin, &end);
    work->sink[thread] += work->kernels->read_bytes(work->stream + (size_t)begin * 4096, (size_t)(end - begin) * 4096);
}

static gw_err measure_reading(const struct gw_kernels *kernels, struct gw_pool *pool, size_t bytes, double *bytes_per_s)
{
    gw_err rc = GW_OK;
    void *stream = NULL;
    TRY(gw_alloc_large(bytes, "a measurement", &stream));
    memset(stream, 1, bytes);
    struct work read = {.kernels = kernels, .run = run_stream, .stream = stream, .stream_bytes = bytes};
    *bytes_per_s = (double)bytes / pass_s(&read, pool);
out:
    if (stream) gw_free_large(stream, bytes);
    return rc;
}

static gw_err measure_peaks(const struct gw_kernels *kernels, struct gw_pool *pool, struct peaks *peaks)
{
    gw_err rc = GW_OK;
    struct work dots = {.kernels = kernels, .run = run_dots}, fmas = {.kernels = kernels, .run = run_fmas};
    TRY(measure_reading(kernels, pool, STREAM_BYTES, &peaks->bytes_per_s));
    TRY(measure_reading(kernels, pool, FAR_BYTES, &peaks->far_bytes_per_s));
    peaks->dots_per_s = (double)kernels->int8_dots(10000) * gw_pool_threads(pool) / pass_s(&dots, pool);
    peaks->fmas_per_s = (double)kernels->float_fmas(10000) * gw_pool_threads(pool) / pass_s(&fmas, pool);
    printf(peaks->json ? " \"peaks\":{\"int8_gops\":%.1f,\"fp32_gflops\":%.1f,\"read_gb_per_s\":%.2f,"
                         "\"read_far_gb_per_s\":%.2f},\n \"cases\":["
                       : "peak            int8 dots %8.1f GOP/s    float32 %8.1f GFLOP/s    memory read %6.1f GB/s"
                         " (%.1f GB/s of 512 MiB)\n\n",
           peaks->dots_per_s / 1e9, peaks->fmas_per_s / 1e9, peaks->bytes_per_s / 1e9, peaks->far_bytes_per_s / 1e9);
out:
    return rc;
}

static void show(const struct work *work, struct peaks *peaks, double seconds)
{
    double ops_per_s = work->ops / seconds, bytes_per_s = work->bytes / seconds;
    double ops_share = ops_per_s / (work->floats ? peaks->fmas_per_s : peaks->dots_per_s);
    double bytes_share = bytes_per_s / peaks->bytes_per_s;
    if (peaks->json) {
        printf("%s\n  {\"name\":\"%s\",\"rows\":%d,\"us\":%.3f", peaks->any ? "," : "", work->name, work->rows,
               seconds * 1e6);
        if (work->ops > 0)
            printf(",\"peak\":\"%s\",\"gops\":%.2f,\"ops_share\":%.4f", work->floats ? "fp32" : "int8", ops_per_s / 1e9,
                   ops_share);
        if (work->bytes > 0) printf(",\"gb_per_s\":%.2f,\"read_share\":%.4f", bytes_per_s / 1e9, bytes_share);
        printf("}");
    } else {
        printf("%-15s %5d %10.2f us", work->name, work->rows, seconds * 1e6);
        if (work->ops > 0) printf(" %8.1f GOP/s %5.1f %%", ops_per_s / 1e9, 100 * ops_share);
        if (work->bytes > 0) printf(" %7.1f GB/s %6.1f %%", bytes_per_s / 1e9, 100 * bytes_share);
        printf("\n");
    }
    peaks->any = true;
    fflush(stdout);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static void run_product(struct work *work, int pass, int thread, int threads)
{
    const struct gw_packed *w = &work->weights[pass % work->copies];
    struct gw_atom atom = {.block_end = WIDTH / GW_BLOCK, .node = 0};
    struct gw_gemm gemm = {.w = w,
                           .act = &work->act,
                           .rows = work->rows,
                           .atoms = &atom,
                           .atom_count = 1,
                           .y = work->y,
                           .y_row_stride = WIDTH,
                           .y_node_stride = (size_t)work->rows * WIDTH,
                           .scratch = work->scratch + (size_t)thread * work->scratch_bytes};
    int begin, end;
    gw_split(w->panels, threads, thread, &begin, &end);
    gw_gemm_forget(gemm.scratch);
    if (begin < end) work->kernels->gemm[w->pack](&gemm, begin, end);
}

static gw_err bench_products(const struct gw_kernels *kernels, struct gw_pool *pool, struct peaks *peaks)
{
    static const enum gw_type types[] = {GW_TYPE_Q4_0, GW_TYPE_Q4_1, GW_TYPE_Q5_0, GW_TYPE_Q5_1,
                                         GW_TYPE_Q8_0, GW_TYPE_Q6_K, GW_TYPE_BF16, GW_TYPE_F32};
    static const int row_counts[] = {1, 2, 4, 8, 16, 64, MAX_ROWS};
    gw_err rc = GW_OK;
    struct work work = {.kernels = kernels, .run = run_product};
    void *data = NULL;
    work.x = gw_alloc((size_t)MAX_ROWS * WIDTH, sizeof(float));
    work.y = gw_alloc((size_t)MAX_ROWS * WIDTH, sizeof(float));
    work.weights = gw_alloc(STREAM_BYTES / WIDTH, sizeof *work.weights);
    for (int i = 0; i < MAX_ROWS * WIDTH; i++) work.x[i] = (float)(i % 17) - 8;
    gw_act_init(&work.act, MAX_ROWS, WIDTH);
    work.act.x = work.x;
    kernels->quantize(&work.act, work.x, WIDTH, 0, MAX_ROWS, 0, WIDTH / GW_BLOCK);
    TRY(gw_alloc_large(STREAM_BYTES, "a measurement", &data));
    memset(data, 0x3c, STREAM_BYTES); /* scales of 0.0115, codes and half floats as good as any */
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct gw_packed w;
        TRY(gw_packed_init(&w, types[t], WIDTH, WIDTH));
        size_t bytes = gw_packed_bytes(&w);
        work.copies = (int)(STREAM_BYTES / bytes);
        for (int c = 0; c < work.copies; c++) {
            work.weights[c] = w;
            work.weights[c].data = (uint8_t *)data + (size_t)c * bytes;
        }
        work.scratch_bytes = gw_gemm_scratch_bytes(kernels, &w);
        free(work.scratch);
        work.scratch = gw_alloc_lines((size_t)gw_pool_threads(pool), work.scratch_bytes);
        work.name = gw_type_info((uint32_t)types[t])->name;
        work.bytes = (double)bytes;
        work.floats = w.pack == GW_PACK_F32 || w.pack == GW_PACK_F16 || w.pack == GW_PACK_BF16;
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            work.rows = row_counts[r];
            work.ops = 2.0 * WIDTH * WIDTH * work.rows;
            show(&work, peaks, pass_s(&work, pool));
        }
    }
out:
    if (data) gw_free_large(data, STREAM_BYTES);
    gw_act_free(&work.act);
    free(work.scratch);
    free(work.weights);
    free(work.x);
    free(work.y);
    return rc;
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

/* Items are sequences of their own: each reads its own pages. */
static void run_attention(struct work *work, int pass, int thread, int threads)
{
    (void)pass;
    int begin, end;
    int page_count = work->context / GW_PAGE_TOKENS;
    gw_split(work->items, threads, thread, &begin, &end);
    for (int item = begin; item < end; item++) {
        const uint16_t *pages[MOST_CONTEXT / GW_PAGE_TOKENS];
        for (int p = 0; p < page_count; p++)
            pages[p] = work->pages + (size_t)(item * page_count + p) * gw_page_halves(HEAD_DIM);
        size_t at = (size_t)item * (size_t)work->rows * GROUP * HEAD_DIM;
        struct gw_attention attention = {.head_dim = HEAD_DIM,
                                         .group = GROUP,
                                         .rows = work->rows,
                                         .pos0 = work->context - work->rows,
                                         .scale = 0.125f,
                                         .pages = pages,
                                         .q = work->x + at,
                                         .q_stride = (size_t)GROUP * HEAD_DIM,
                                         .out = work->y + at,
                                         .out_stride = (size_t)GROUP * HEAD_DIM};
        work->kernels->attention(&attention);
    }
}

/* Each sequence's newest token: one slot of its last page. */
static void run_kv_store(struct work *work, int pass, int thread, int threads)
{
    int begin, end, page_count = work->context / GW_PAGE_TOKENS;
    gw_split(work->items, threads, thread, &begin, &end);
    for (int item = begin; item < end; item++) {
        uint16_t *page = work->pages + (size_t)((item + 1) * page_count - 1) * gw_page_halves(HEAD_DIM);
        const float *key = work->x + (size_t)item * 2 * HEAD_DIM;
        work->kernels->kv_store(page, HEAD_DIM, pass % GW_PAGE_TOKENS, key, key + HEAD_DIM);
    }
}

static void bench_attention(const struct gw_kernels *kernels, struct gw_pool *pool, struct peaks *peaks)
{
    static const int row_counts[] = {1, 16}, contexts[] = {128, 256, 1024, MOST_CONTEXT};
    size_t page_count = MOST_TOKENS / GW_PAGE_TOKENS, halves = page_count * gw_page_halves(HEAD_DIM);
    size_t queries = (size_t)MOST_ITEMS * 16 * GROUP * HEAD_DIM;
    struct work work = {.kernels = kernels, .run = run_attention, .floats = true};
    work.pages = gw_alloc(halves, sizeof(uint16_t));
    work.x = gw_alloc(queries, sizeof(float));
    work.y = gw_alloc(queries, sizeof(float));
    for (size_t i = 0; i < halves; i++) work.pages[i] = (uint16_t)(0x3000 + i % 1024);
    for (size_t i = 0; i < queries; i++) work.x[i] = (float)(i % 17) * 0.1f;
    for (size_t c = 0; c < sizeof contexts / sizeof *contexts; c++) {
        char name[32];
        snprintf(name, sizeof name, "attention@%d", contexts[c]);
        work.name = name;
        work.context = contexts[c];
        work.items = MOST_TOKENS / contexts[c] < MOST_ITEMS ? MOST_TOKENS / contexts[c] : MOST_ITEMS;
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            work.rows = row_counts[r];
            work.ops = 4.0 * work.items * work.rows * GROUP * HEAD_DIM * work.context;
            work.bytes = (double)work.items * work.context / GW_PAGE_TOKENS * (double)gw_page_halves(HEAD_DIM) *
                         sizeof(uint16_t);
            show(&work, peaks, pass_s(&work, pool));
        }
    }
    work.run = run_kv_store;
    work.name = "KV write";
    work.rows = work.items = MOST_ITEMS;
    work.context = MOST_TOKENS / MOST_ITEMS;
    work.ops = 0;
    work.bytes = (double)work.items * 2 * HEAD_DIM * sizeof(uint16_t);
    show(&work, peaks, pass_s(&work, pool));
    free(work.pages);
    free(work.x);
    free(work.y);
}

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

static void run_norm(struct work *work, int pass, int thread, int threads)
{
    (void)pass;
    int begin, end;
    gw_split(work->rows, threads, thread, &begin, &end);
    for (int row = begin; row < end; row++)
        work->kernels->rmsnorm(work->y + (size_t)row * WIDTH, work->y, WIDTH, 1e-5f, work->x + (size_t)row * WIDTH);
}

static void run_quantize(struct work *work, int pass, int thread, int threads)
{
    (void)pass;
    int begin, end;
    gw_split(work->rows, threads, thread, &begin, &end);
    work->kernels->quantize(&work->act, work->x + (size_t)begin * WIDTH, WIDTH, begin, end, 0, WIDTH / GW_BLOCK);
}

static void run_swiglu(struct work *work, int pass, int thread, int threads)
{
    (void)pass;
    int begin, end;
    gw_split(work->rows, threads, thread, &begin, &end);
    for (int row = begin; row < end; row++)
        work->kernels->swiglu(work->y, work->y, WIDTH, work->x + (size_t)row * WIDTH);
}

static void bench_rows(const struct gw_kernels *kernels, struct gw_pool *pool, struct peaks *peaks)
{
    static const struct {
        const char *name;
        void (*run)(struct work *work, int pass, int thread, int threads);
    } kinds[] = {{"norm", run_norm}, {"quantize", run_quantize}, {"swiglu", run_swiglu}};
    struct work work = {.kernels = kernels, .rows = 64};
    work.x = gw_alloc((size_t)work.rows * WIDTH, sizeof(float));
    work.y = gw_alloc((size_t)work.rows * WIDTH, sizeof(float));
    for (int i = 0; i < work.rows * WIDTH; i++) work.y[i] = (float)(i % 17) - 8;
    gw_act_init(&work.act, work.rows, WIDTH);
    work.act.x = work.x;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        work.name = kinds[i].name;
        work.run = kinds[i].run;
        work.bytes = (double)work.rows * WIDTH * sizeof(float);
        show(&work, peaks, pass_s(&work, pool));
    }
    gw_act_free(&work.act);
    free(work.x);
    free(work.y);
}

static void run_sample(struct work *work, int pass, int thread, int threads)
{
    int begin, end;
    gw_split(work->rows, threads, thread, &begin, &end);
    for (int row = begin; row < end; row++) {
        struct gw_sample_result result;
        gw_err rc = gw_sample(work->kernels, &work->sampler[thread], &work->params, work->x + (size_t)row * VOCAB,
                              VOCAB, NULL, 0, (uint64_t)pass, -1, &result);
        work->sink[thread] += (uint64_t)result.token + (uint64_t)rc;
    }
}

static void bench_sampling(const struct gw_kernels *kernels, struct gw_pool *pool, struct peaks *peaks)
{
    static const struct {
        const char *name;
        struct gw_sample_params params;
    } kinds[] = {{"sample greedy", {.top_p = 1, .repetition_penalty = 1}},
                 {"sample t=1", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}},
                 {"sample top-p", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}},
                 {"sample top-k", {.temperature = 1, .top_p = 1, .top_k = 40, .repetition_penalty = 1}}};
    int threads = gw_pool_threads(pool);
    struct work work = {.kernels = kernels, .run = run_sample, .rows = 16};
    work.sampler = gw_alloc((size_t)threads, sizeof *work.sampler);
    for (int t = 0; t < threads; t++) gw_sampler_init(&work.sampler[t], VOCAB);
    work.x = gw_alloc((size_t)work.rows * VOCAB, sizeof(float));
    for (int i = 0; i < work.rows * VOCAB; i++) { /* about as peaked as a model's: -20 .. 0, few near the top */
        float u = (float)gw_philox_uniform(1, 2, (uint64_t)i);
        work.x[i] = -20 * (1 - u * u * u * u);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        work.name = kinds[i].name;
        work.params = kinds[i].params;
        work.bytes = (double)work.rows * VOCAB * sizeof(float);
        show(&work, peaks, pass_s(&work, pool));
    }
    for (int t = 0; t < threads; t++) gw_sampler_close(&work.sampler[t]);
    free(work.sampler);
    free(work.x);
}

gw_err gw_bench_kernels(int threads, bool json)
{
    gw_err rc = GW_OK;
    struct gw_pool *pool = NULL;
    const struct gw_kernels *kernels;
    struct peaks peaks = {.json = json};
    int cpus[1024];
    TRY(gw_kernels_get(&kernels));
    int pinned = gw_pool_cpus(0, 1, threads, cpus, 1024);
    TRY(gw_pool_create(threads, pinned ? cpus : NULL, &pool));
    if (json) printf("{\"kernels\":\"%s\",\"threads\":%d,\n", kernels->name, threads);
    else
        printf("kernels %s, %d threads; products %d x %d; attention@context: up to %d sequences, 1 KV head of %d, %d "
               "query "
               "heads\n"
               "name             rows    one pass    arithmetic  of peak     memory    of peak\n",
               kernels->name, threads, WIDTH, WIDTH, MOST_ITEMS, HEAD_DIM, GROUP);
    TRY(measure_peaks(kernels, pool, &peaks));
    TRY(bench_products(kernels, pool, &peaks));
    bench_attention(kernels, pool, &peaks);
    bench_rows(kernels, pool, &peaks);
    bench_sampling(kernels, pool, &peaks);
    if (json) printf("]}\n");
out:
    gw_pool_destroy(pool);
    return rc;
}
