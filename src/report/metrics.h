/* OUTDIR/metrics.prom: status.json in the text form that Prometheus and its node exporter read ("textfile collector"). Local. */
#ifndef GW_REPORT_METRICS_H
#define GW_REPORT_METRICS_H

#include "base/mem.h"

#include <jansson.h>

/* Appends all metrics of a status.json. `batch` is the label that tells jobs apart; any bytes. Pure. */
void gw_metrics_add(struct gw_buf *text, const json_t *status, const char *batch);
/* Rewrites OUTDIR/metrics.prom; the label is OUTDIR's full path. */
GW_CHECK gw_err gw_metrics_write(const char *out_dir, const json_t *status);

#endif
