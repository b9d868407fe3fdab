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
