/* Memory of activations in the form GEMM reads; see struct gw_act. */
#include "base/mem.h"
#include "kernels/kernels.h"

#include <stdlib.h>

size_t gw_act_bytes(int rows, int k)
{
    size_t tiles = (size_t)(rows + GW_ACT_ROWS - 1) / GW_ACT_ROWS;
    return tiles * (size_t)(k / GW_BLOCK) * sizeof(struct gw_act_block);
}

void gw_act_init(struct gw_act *act, int rows, int k)
{
    *act = (struct gw_act){.k = k, .blocks = gw_alloc_lines(gw_act_bytes(rows, k), 1)};
}

void gw_act_free(struct gw_act *act)
{
    free(act->blocks);
    *act = (struct gw_act){0};
}
