/* Fixed small pieces of work whose instructions callgrind counts: the noise-free figure that `make check` guards.
 *
 * usage: count_instructions MODEL (tests/bench/instructions.sh makes the model and runs this under valgrind)
 *        count_instructions --build     says which compiler and options the counts belong to
 *
 * Each case is one call of counted(), before which callgrind sets its counts to zero and after which it writes them to a file, so
 * the N-th name printed here belongs to the N-th file. A case has run once before it is counted. One thread; the kernel table is
 * GODWIT_KERNELS's. Data is the same in every run, since sampling's work depends on it.
 */
#include "base/mem.h"
#include "base/philox.h"
#include "engine/sampler.h"
#include "job/solo.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __clang__
#define GW_BUILD_COMPILER "clang " __clang_version__
#else
#define GW_BUILD_COMPILER "gcc " __VERSION__
#endif

enum {
    WIDTH = 256, /* outputs and inputs of a product, and floats of a row */
    MAX_ROWS = 64,
    HEAD_DIM = 64,
    GROUP = 3,
    MAX_CONTEXT = 1024,
    VOCAB = 8192,
    DECODE_SEQS = 8,
    DECODE_CONTEXT = 96
};

struct work {
    const struct gw_kernels *kernels;
    struct gw_packed weights;
    struct gw_act act;
    float *x, *y, *logits; /* [MAX_ROWS][WIDTH], the same, [VOCAB] */
    uint16_t *pages;       /* [MAX_CONTEXT / GW_PAGE_TOKENS][page] */
    int rows, context;
    struct gw_sampler sampler;
    struct gw_sample_params params;
    struct gw_solo solo;
    struct gw_step step;
};

typedef gw_err (*case_fn)(struct work *work);

/* What callgrind counts; it is told of this name, so it is not static. */
gw_err counted(case_fn run, struct work *work);
__attribute__((noinline)) gw_err counted(case_fn run, struct work *work)
{
    gw_err rc = run(work);
    __asm__ volatile("" : "+r"(rc)); /* no tail call: the function is to be left after the work */
    return rc;
}

static gw_err count(const char *name, case_fn run, struct work *work)
{
    gw_err rc = GW_OK;
    TRY(run(work));
    TRY(counted(run, work));
    printf("%s\n", name);
out:
    return rc;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static gw_err product(struct work *work)
{
    struct gw_atom atom = {.block_end = WIDTH / GW_BLOCK, .node = 0};
    struct gw_gemm gemm = {.w = &work->weights,
                           .act = &work->act,
                           .rows = work->rows,
                           .atoms = &atom,
                           .atom_count = 1,
                           .y = work->y,
                           .y_row_stride = WIDTH,
                           .y_node_stride = (size_t)MAX_ROWS * WIDTH};
    work->kernels->gemm[work->weights.pack](&gemm, 0, work->weights.panels);
    return GW_OK;
}

static gw_err count_products(struct work *work)
{
    static const enum gw_type types[] = {GW_TYPE_Q4_0, GW_TYPE_Q4_1, GW_TYPE_Q5_0, GW_TYPE_Q5_1,
                                         GW_TYPE_Q8_0, GW_TYPE_Q6_K, GW_TYPE_BF16, GW_TYPE_F32};
    static const int row_counts[] = {1, 8, MAX_ROWS};
    gw_err rc = GW_OK;
    void *data = NULL;
    size_t bytes = 0;
    char name[64];
    work->kernels->quantize(&work->act, work->x, WIDTH, 0, MAX_ROWS, 0, WIDTH / GW_BLOCK);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        TRY(gw_packed_init(&work->weights, types[t], WIDTH, WIDTH));
        bytes = gw_packed_bytes(&work->weights);
        TRY(gw_alloc_large(bytes, "a count", &data));
        memset(data, 0x3c, bytes);
        work->weights.data = data;
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            work->rows = row_counts[r];
            snprintf(name, sizeof name, "gemm-%s-%d", gw_type_info((uint32_t)types[t])->name, work->rows);
            TRY(count(name, product, work));
        }
        gw_free_large(data, bytes);
        data = NULL;
    }
out:
    if (data) gw_free_large(data, bytes);
    return rc;
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

static gw_err attend(struct work *work)
{
    const uint16_t *pages[MAX_CONTEXT / GW_PAGE_TOKENS];
    for (int p = 0; p < work->context / GW_PAGE_TOKENS; p++)
        pages[p] = work->pages + (size_t)p * gw_page_halves(HEAD_DIM);
    struct gw_attention attention = {.head_dim = HEAD_DIM,
                                     .group = GROUP,
                                     .rows = work->rows,
                                     .pos0 = work->context - work->rows,
                                     .scale = 0.125f,
                                     .pages = pages,
                                     .q = work->x,
                                     .q_stride = (size_t)GROUP * HEAD_DIM,
                                     .out = work->y,
                                     .out_stride = (size_t)GROUP * HEAD_DIM};
    work->kernels->attention(&attention);
    return GW_OK;
}

static gw_err store_kv(struct work *work)
{
    for (int slot = 0; slot < GW_PAGE_TOKENS; slot++)
        work->kernels->kv_store(work->pages, HEAD_DIM, slot, work->x + (size_t)slot * WIDTH,
                                work->x + (size_t)slot * WIDTH + HEAD_DIM);
    return GW_OK;
}

static gw_err count_attention(struct work *work)
{
    static const struct {
        const char *name;
        int rows, context;
    } cases[] = {{"attention-1-128", 1, 128}, {"attention-1-1024", 1, 1024}, {"attention-16-256", 16, 256}};
    gw_err rc = GW_OK;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        work->rows = cases[i].rows;
        work->context = cases[i].context;
        TRY(count(cases[i].name, attend, work));
    }
    TRY(count("kv-store-32", store_kv, work));
out:
    return rc;
}

/* ---- rows and sampling -------------------------------------------------------------------------------------------- */

static gw_err norm(struct work *work)
{
    for (int row = 0; row < MAX_ROWS; row++)
        work->kernels->rmsnorm(work->x + (size_t)row * WIDTH, work->x, WIDTH, 1e-5f, work->y + (size_t)row * WIDTH);
    return GW_OK;
}

static gw_err quantize(struct work *work)
{
    work->kernels->quantize(&work->act, work->x, WIDTH, 0, MAX_ROWS, 0, WIDTH / GW_BLOCK);
    return GW_OK;
}

static gw_err swiglu(struct work *work)
{
    for (int row = 0; row < MAX_ROWS; row++)
        work->kernels->swiglu(work->x + (size_t)row * WIDTH, work->x, WIDTH, work->y + (size_t)row * WIDTH);
    return GW_OK;
}

static gw_err sample(struct work *work)
{
    struct gw_sample_result result;
    return gw_sample(work->kernels, &work->sampler, &work->params, work->logits, VOCAB, NULL, 0, 1, -1, &result);
}

static gw_err count_rows(struct work *work)
{
    static const struct {
        const char *name;
        struct gw_sample_params params;
    } kinds[] = {{"sample-greedy", {.top_p = 1, .repetition_penalty = 1}},
                 {"sample-temperature", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}},
                 {"sample-top-p", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}},
                 {"sample-top-k", {.temperature = 1, .top_p = 1, .top_k = 40, .repetition_penalty = 1}}};
    gw_err rc = GW_OK;
    TRY(count("norm-64", norm, work));
    TRY(count("quantize-64", quantize, work));
    TRY(count("swiglu-64", swiglu, work));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        work->params = kinds[i].params;
        TRY(count(kinds[i].name, sample, work));
    }
out:
    return rc;
}

/* ---- a step of a whole model --------------------------------------------------------------------------------------- */

/* All of it: the rows through the layers, logits of those that sample, their tokens. */
static gw_err step(struct work *work)
{
    gw_err rc = GW_OK;
    struct gw_drawn drawn[DECODE_SEQS];
    int drawn_count;
    TRY(gw_executor_forward(work->solo.executor, &work->step, GW_OUTPUTS_DRAWN, NULL, NULL));
    TRY(gw_executor_draw(work->solo.executor, &work->step, drawn, &drawn_count));
out:
    return rc;
}

/* DECODE_SEQS sequences of `rows` tokens each, from position pos0 on; a token is drawn from the last row of each. */
static void plan_step(struct work *work, int pos0, int rows)
{
    int pages_each = DECODE_CONTEXT / GW_PAGE_TOKENS;
    gw_step_clear(&work->step);
    for (int s = 0; s < DECODE_SEQS; s++) {
        struct gw_step_seq *seq = gw_step_add_seq(&work->step);
        seq->row0 = work->step.rows;
        seq->rows = rows;
        seq->pos0 = pos0;
        seq->sample = 1;
        seq->logprobs = -1;
        seq->params = (struct gw_sample_params){.top_p = 1, .repetition_penalty = 1};
        for (int i = 0; i < rows; i++) {
            int32_t token = 3 + (s * 31 + (pos0 + i) * 7) % 250;
            gw_step_add_tokens(&work->step, &token, 1);
        }
        for (int32_t p = 0; p * GW_PAGE_TOKENS < pos0 + rows; p++) {
            int32_t page = s * pages_each + p;
            gw_step_add_pages(&work->step, &page, 1);
        }
    }
}

static gw_err count_steps(struct work *work, const char *model)
{
    gw_err rc = GW_OK;
    TRY(gw_solo_open(&work->solo, model, 1, DECODE_SEQS * DECODE_CONTEXT, DECODE_SEQS * 16, 0));
    plan_step(work, 0, 16);
    TRY(count("step-prefill-8x16", step, work));
    for (int pos = 16; pos < 48; pos += 16) {
        plan_step(work, pos, 16);
        TRY(step(work));
    }
    plan_step(work, 48, 1);
    TRY(count("step-decode-8", step, work));
out:
    gw_solo_close(&work->solo);
    return rc;
}

static gw_err run(const char *model)
{
    gw_err rc = GW_OK;
    struct work work = {0};
    size_t halves = (size_t)(MAX_CONTEXT / GW_PAGE_TOKENS) * gw_page_halves(HEAD_DIM);
    TRY(gw_kernels_get(&work.kernels));
    work.x = gw_alloc((size_t)MAX_ROWS * WIDTH, sizeof(float));
    work.y = gw_alloc((size_t)MAX_ROWS * WIDTH, sizeof(float));
    work.logits = gw_alloc(VOCAB, sizeof(float));
    work.pages = gw_alloc(halves, sizeof(uint16_t));
    for (int i = 0; i < MAX_ROWS * WIDTH; i++) work.x[i] = (float)(i % 17) * 0.25f - 2;
    for (size_t i = 0; i < halves; i++) work.pages[i] = (uint16_t)(0x3000 + i % 1024);
    for (int i = 0; i < VOCAB; i++) { /* about as peaked as a model's */
        float u = (float)gw_philox_uniform(1, 2, (uint64_t)i);
        work.logits[i] = -20 * (1 - u * u * u * u);
    }
    gw_act_init(&work.act, MAX_ROWS, WIDTH);
    work.act.x = work.x;
    gw_sampler_init(&work.sampler, VOCAB);
    TRY(count_products(&work));
    TRY(count_attention(&work));
    TRY(count_rows(&work));
    TRY(count_steps(&work, model));
out:
    gw_sampler_close(&work.sampler);
    gw_act_free(&work.act);
    gw_step_free(&work.step);
    free(work.x);
    free(work.y);
    free(work.logits);
    free(work.pages);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--build") == 0) {
        printf("%s %s\n", GW_BUILD_COMPILER, GW_BUILD_FLAGS);
        return 0;
    }
    if (argc != 2) {
        fprintf(stderr, "usage: count_instructions MODEL | --build\n");
        return 2;
    }
    gw_err rc = run(argv[1]);
    if (rc != GW_OK) fprintf(stderr, "count_instructions: %s\n", gw_error_detail());
    return gw_err_exit_code(rc);
}
