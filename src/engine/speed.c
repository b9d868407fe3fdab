/* See speed.h. */
#include "engine/speed.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"
#include "kernels/kernels.h"

#include <stdlib.h>

enum { OUTPUTS = 512, INPUTS = 512, ROWS = GW_ACT_ROWS };

struct bench {
    const struct gw_kernels *kernels;
    struct gw_gemm gemm;
    int panels;
    uint8_t *scratch; /* [threads][scratch_bytes] */
    size_t scratch_bytes;
};

static void multiply(void *arg, int thread, int threads)
{
    struct bench *bench = arg;
    int begin, end;
    struct gw_gemm gemm = bench->gemm;
    gemm.scratch = bench->scratch + (size_t)thread * bench->scratch_bytes;
    gw_split(bench->panels, threads, thread, &begin, &end);
    gw_gemm_forget(gemm.scratch);
    if (begin < end) bench->kernels->gemm[gemm.w->pack](&gemm, begin, end);
}

gw_err gw_speed_measure(int threads, double seconds, double *gops)
{
    gw_err rc = GW_OK;
    struct gw_pool *pool = NULL;
    struct gw_packed weights = {0};
    struct gw_atom atom = {.block_end = INPUTS / GW_BLOCK, .merges = 0, .node = 0};
    float *x = gw_alloc((size_t)ROWS * INPUTS, sizeof *x), *y = gw_alloc((size_t)ROWS * OUTPUTS, sizeof *y);
    struct gw_act act;
    struct bench bench = {0};
    void *data = NULL;
    gw_act_init(&act, ROWS, INPUTS);
    act.x = x;
    TRY(gw_kernels_get(&bench.kernels));
    TRY(gw_packed_init(&weights, GW_TYPE_Q8_0, OUTPUTS, INPUTS));
    TRY(gw_alloc_large(gw_packed_bytes(&weights), "a measurement", &data));
    weights.data = data;
    for (int i = 0; i < ROWS * INPUTS; i++) x[i] = (float)(i % 17) - 8;
    bench.kernels->quantize(&act, x, INPUTS, 0, ROWS, 0, INPUTS / GW_BLOCK);
    bench.panels = weights.panels;
    bench.gemm = (struct gw_gemm){.w = &weights,
                                  .act = &act,
                                  .rows = ROWS,
                                  .atoms = &atom,
                                  .atom_count = 1,
                                  .y = y,
                                  .y_row_stride = OUTPUTS,
                                  .y_node_stride = (size_t)ROWS * OUTPUTS};
    bench.scratch_bytes = gw_gemm_scratch_bytes(bench.kernels, &weights);
    bench.scratch = gw_alloc_lines((size_t)threads, bench.scratch_bytes);
    TRY(gw_pool_create(threads, NULL, &pool));
    gw_pool_run(pool, multiply, &bench); /* the first touches everything */
    double best_s = 1e9, began_s = gw_clock_now_s();
    for (double at_s = began_s; at_s - began_s < seconds;) { /* the best of many: others may be using the CPUs */
        gw_pool_run(pool, multiply, &bench);
        double now_s = gw_clock_now_s();
        if (now_s - at_s < best_s) best_s = now_s - at_s;
        at_s = now_s;
    }
    *gops = 2.0 * ROWS * OUTPUTS * INPUTS / best_s / 1e9;
out:
    gw_pool_destroy(pool);
    if (data) gw_free_large(data, gw_packed_bytes(&weights));
    free(bench.scratch);
    free(x);
    free(y);
    gw_act_free(&act);
    return rc;
}
