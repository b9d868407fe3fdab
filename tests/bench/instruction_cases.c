/* Fixed small cases whose instructions tests/bench/instructions.sh counts under callgrind: products, attention, rows, sampling, and one
 * whole decode step (plan, forward, draw, push) of a small model that the caller made.
 *
 * usage: instruction_cases MODEL.gguf     runs the cases in order and prints their names, one a line
 *        instruction_cases --build        prints what the counts depend on: compiler and its options
 *
 * callgrind writes a part each time instruction_mark() is entered. A case lies between two marks, so case i (from 1) is part 2i; what
 * comes between cases is preparation. One thread and fixed values: a count is the same in every run.
 */
#include "base/mem.h"
#include "base/philox.h"
#include "batch/scheduler.h"
#include "engine/sampler.h"
#include "job/solo.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OUTPUTS = 128,
    INPUTS = 512,
    MOST_ROWS = 64,
    HEAD_DIM = 64,
    GROUP = 3,
    CONTEXT = 256,
    VOCAB = 49152,
    SEQUENCES = 8,
    PROMPT = 40
};

void instruction_mark(void);
__attribute__((noinline)) void instruction_mark(void)
{
    __asm__ volatile("" ::: "memory");
}

static void begin_case(const char *name, int rows)
{
    printf("%s/%d\n", name, rows);
    instruction_mark();
}

static float *values(size_t count)
{
    float *x = gw_alloc(count, sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = 2 * (float)gw_philox_uniform(7, 1, (uint64_t)i) - 1;
    return x;
}

static gw_err count_products(const struct gw_kernels *kernels)
{
    static const enum gw_type types[] = {GW_TYPE_Q4_0, GW_TYPE_Q4_1, GW_TYPE_Q5_0, GW_TYPE_Q5_1, GW_TYPE_Q8_0,
                                         GW_TYPE_Q6_K, GW_TYPE_F16,  GW_TYPE_BF16, GW_TYPE_F32};
    static const int row_counts[] = {1, 8, MOST_ROWS};
    gw_err rc = GW_OK;
    float *x = values((size_t)MOST_ROWS * INPUTS), *y = gw_alloc((size_t)MOST_ROWS * OUTPUTS, sizeof *y);
    uint8_t *data = gw_alloc_lines((size_t)OUTPUTS * INPUTS / 16, 64); /* as large as float32 */
    struct gw_act act;
    gw_act_init(&act, MOST_ROWS, INPUTS);
    act.x = x;
    memset(data, 0x3c, (size_t)OUTPUTS * INPUTS * sizeof(float));
    begin_case("quantize", MOST_ROWS);
    kernels->quantize(&act, x, INPUTS, 0, MOST_ROWS, 0, INPUTS / GW_BLOCK);
    instruction_mark();
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct gw_packed w;
        TRY(gw_packed_init(&w, types[t], OUTPUTS, INPUTS));
        w.data = data;
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            struct gw_atom atom = {.block_end = INPUTS / GW_BLOCK};
            struct gw_gemm gemm = {.w = &w,
                                   .act = &act,
                                   .rows = row_counts[r],
                                   .atoms = &atom,
                                   .atom_count = 1,
                                   .y = y,
                                   .y_row_stride = OUTPUTS,
                                   .y_node_stride = (size_t)MOST_ROWS * OUTPUTS};
            begin_case(gw_type_info((uint32_t)types[t])->name, gemm.rows);
            kernels->gemm[w.pack](&gemm, 0, w.panels);
            instruction_mark();
        }
    }
out:
    gw_act_free(&act);
    free(data);
    free(x);
    free(y);
    return rc;
}

static void count_attention(const struct gw_kernels *kernels)
{
    static const int row_counts[] = {1, 16};
    enum { PAGES = CONTEXT / GW_PAGE_TOKENS };
    float *q = values((size_t)16 * GROUP * HEAD_DIM), *out = gw_alloc((size_t)16 * GROUP * HEAD_DIM, sizeof *out);
    uint16_t *memory = gw_alloc_lines(PAGES * gw_page_halves(HEAD_DIM) / 32, 64);
    const uint16_t *pages[PAGES];
    for (size_t i = 0; i < PAGES * gw_page_halves(HEAD_DIM); i++) memory[i] = (uint16_t)(0x3000 + i % 1024);
    for (int p = 0; p < PAGES; p++) pages[p] = memory + (size_t)p * gw_page_halves(HEAD_DIM);
    for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
        struct gw_attention attention = {.head_dim = HEAD_DIM,
                                         .group = GROUP,
                                         .rows = row_counts[r],
                                         .pos0 = CONTEXT - row_counts[r],
                                         .scale = 0.125f,
                                         .pages = pages,
                                         .q = q,
                                         .q_stride = (size_t)GROUP * HEAD_DIM,
                                         .out = out,
                                         .out_stride = (size_t)GROUP * HEAD_DIM};
        begin_case("attention", attention.rows);
        kernels->attention(&attention);
        instruction_mark();
    }
    free(memory);
    free(q);
    free(out);
}

static void count_rows(const struct gw_kernels *kernels)
{
    float *x = values(INPUTS), *y = values(INPUTS);
    begin_case("norm", 1);
    kernels->rmsnorm(x, y, INPUTS, 1e-5f, y);
    instruction_mark();
    begin_case("swiglu", 1);
    kernels->swiglu(x, x, INPUTS, y);
    instruction_mark();
    free(x);
    free(y);
}

static gw_err count_sampling(const struct gw_kernels *kernels)
{
    static const struct {
        const char *name;
        struct gw_sample_params params;
    } kinds[] = {{"sample-greedy", {.top_p = 1, .repetition_penalty = 1}},
                 {"sample-t1", {.temperature = 1, .top_p = 1, .repetition_penalty = 1}},
                 {"sample-top-p", {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1}},
                 {"sample-top-k", {.temperature = 1, .top_p = 1, .top_k = 40, .repetition_penalty = 1}}};
    gw_err rc = GW_OK;
    struct gw_sample_result result;
    struct gw_sampler sampler;
    float *x = values(VOCAB);
    gw_sampler_init(&sampler, VOCAB);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (int i = 0; i < VOCAB; i++) { /* about as peaked as a model's: -20 .. 0, few near the top */
            float u = (float)gw_philox_uniform(1, 2, (uint64_t)i);
            x[i] = -20 * (1 - u * u * u * u);
        }
        begin_case(kinds[k].name, 1);
        TRY(gw_sample(kernels, &sampler, &kinds[k].params, x, VOCAB, NULL, 0, 3, -1, &result));
        instruction_mark();
    }
out:
    gw_sampler_close(&sampler);
    free(x);
    return rc;
}

static gw_err run_step(struct gw_solo *solo, struct gw_sched *sched, struct gw_step *step, struct gw_drawn *drawn)
{
    gw_err rc = GW_OK;
    int count = 0;
    if (!gw_sched_plan(sched, 0, step)) return gw_fail(GW_ERR_BUG, "the scheduler has nothing to do");
    TRY(gw_executor_forward(solo->executor, step, NULL, NULL));
    TRY(gw_executor_draw(solo->executor, step, drawn, &count));
    gw_sched_step_done(sched, 0);
    for (int i = 0; i < count; i++) gw_sched_push(sched, drawn[i].seq, drawn[i].result.token);
out:
    return rc;
}

/* The steps of SEQUENCES sequences: the first computes the prompts, the third is a decode step like all that follow. */
static gw_err count_steps(const char *model)
{
    gw_err rc = GW_OK;
    struct gw_solo solo = {0};
    struct gw_sched *sched = NULL;
    struct gw_step step = {0};
    struct gw_drawn *drawn = gw_alloc(SEQUENCES + 1, sizeof *drawn);
    struct gw_sample_params greedy = {.top_p = 1, .repetition_penalty = 1};
    int32_t prompt[PROMPT];
    TRY(gw_solo_open(&solo, model, 1, SEQUENCES * 4 * GW_PAGE_TOKENS, SEQUENCES * PROMPT, 0));
    struct gw_sched_config config = {.slots = 1,
                                     .max_seqs = SEQUENCES,
                                     .step_rows = SEQUENCES * PROMPT,
                                     .page_count = solo.kv_pages,
                                     .context = 2 * PROMPT};
    TRY(gw_sched_create(&config, &sched));
    for (int s = 0; s < SEQUENCES; s++) {
        for (int i = 0; i < PROMPT; i++) prompt[i] = (s * 31 + i * 7) % solo.dims.vocab;
        gw_sched_add(sched, prompt, PROMPT, config.context, -1, &greedy, NULL);
    }
    begin_case("prefill-step", SEQUENCES * PROMPT);
    TRY(run_step(&solo, sched, &step, drawn));
    instruction_mark();
    TRY(run_step(&solo, sched, &step, drawn));
    begin_case("decode-step", SEQUENCES);
    TRY(run_step(&solo, sched, &step, drawn));
    instruction_mark();
out:
    gw_sched_destroy(sched);
    gw_step_free(&step);
    free(drawn);
    gw_solo_close(&solo);
    return rc;
}

int main(int argc, char **argv)
{
    gw_err rc = GW_OK;
    const struct gw_kernels *kernels;
    if (argc != 2) {
        fprintf(stderr, "usage: instruction_cases MODEL.gguf | --build\n");
        return 2;
    }
    if (!strcmp(argv[1], "--build")) {
        printf("%s; %s\n", __VERSION__, GW_BUILD_OPTIONS);
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    TRY(gw_kernels_get(&kernels));
    TRY(count_products(kernels));
    count_attention(kernels);
    count_rows(kernels);
    TRY(count_sampling(kernels));
    TRY(count_steps(argv[1]));
out:
    if (rc) fprintf(stderr, "instruction_cases: %s\n", gw_error_detail());
    return rc ? 1 : 0;
}
