/* Memory of activations in the form GEMM reads; see struct gw_act. */
#include "base/mem.h"
#include "kernels/kernels.h"

#include <stdlib.h>

void gw_act_init(struct gw_act *act, int rows, int k)
{
    size_t blocks = (size_t)rows * (size_t)(k / GW_BLOCK);
    *act = (struct gw_act){
        .k = k,
        .q = gw_alloc(blocks, GW_BLOCK),
        .scale = gw_alloc(blocks, sizeof(float)),
        .sum = gw_alloc(blocks, sizeof(float)),
        .isum = gw_alloc(blocks, 2 * sizeof(int32_t)),
    };
}

void gw_act_free(struct gw_act *act)
{
    free(act->q);
    free(act->scale);
    free(act->sum);
    free(act->isum);
    *act = (struct gw_act){0};
}
