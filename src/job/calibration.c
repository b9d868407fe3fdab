/* See calibration.h. */
#include "job/calibration.h"

#include "base/file.h"
#include "base/log.h"

#include <stdlib.h>

struct gw_cost gw_calibration_read(const char *out_dir)
{
    struct gw_cost cost = gw_cost_default();
    char *path = gw_asprintf("%s/cost.txt", out_dir), *text = NULL;
    size_t bytes = 0;
    if (gw_file_read(path, 1 << 16, &text, &bytes) == GW_OK && gw_cost_decode(text, bytes, &cost) != GW_OK) {
        gw_warn("%s is not used: %s", path, gw_error_detail());
        cost = gw_cost_default();
    }
    free(path);
    free(text);
    return cost;
}

void gw_calibration_write(const char *out_dir, const struct gw_cost *cost)
{
    struct gw_buf text = {0};
    char *path = gw_asprintf("%s/cost.txt", out_dir);
    gw_cost_encode(cost, &text);
    if (gw_file_replace(path, text.data, text.bytes, false) != GW_OK) gw_warn("%s", gw_error_detail());
    gw_buf_free(&text);
    free(path);
}

void gw_calibration_steps(struct gw_cost *cost, const struct gw_dims *dims, struct gw_layout layout,
                          const struct gw_head_report *now, struct gw_head_report *before)
{
    enum { ENOUGH = 32 };
    struct gw_shard shard = gw_layout_shard(dims, layout, 0, 0);
    double steps = (double)(now->steps - before->steps), compute_s = now->compute_s - before->compute_s;
    double decode = (double)(now->decode_rows - before->decode_rows);
    double prefill = (double)(now->prefill_rows - before->prefill_rows);
    if (now->steps < before->steps + ENOUGH || !(decode + prefill > 0)) return;
    struct gw_load load = {.decode_rows = decode / steps,
                           .prefill_rows = prefill / steps,
                           .mean_context = (double)(now->seen_tokens - before->seen_tokens) / (decode + prefill)};
    double said_s = gw_cost_stage_s(cost, dims, &shard, 1, &load) +
                    gw_cost_exchange_s(cost, dims, layout.tensor, shard.layer_end - shard.layer_begin,
                                       load.decode_rows + load.prefill_rows, true);
    gw_cost_observe(cost, GW_COST_COMPUTE, steps * said_s, compute_s);
    *before = *now;
}
