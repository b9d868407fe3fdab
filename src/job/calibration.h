/* The cost model of the machine that a job runs on: measured while it runs, kept in OUTDIR/cost.txt (docs/formats.md), read by the next launch and
 * by `godwit plan --cost`. Local; the leader's. */
#ifndef GW_JOB_CALIBRATION_H
#define GW_JOB_CALIBRATION_H

#include "job/protocol.h"
#include "plan/cost.h"

/* The file's figures, or the defaults where there is none; a damaged one costs a warning. */
struct gw_cost gw_calibration_read(const char *out_dir);
/* A failure costs a warning: the figures serve plans, no answer depends on them. */
void gw_calibration_write(const char *out_dir, const struct gw_cost *cost);

/* What a replica's first stage computed since `before` corrects the speed of computing, once it is steps enough; *before is then `now`. */
void gw_calibration_steps(struct gw_cost *cost, const struct gw_dims *dims, struct gw_layout layout,
                          const struct gw_head_report *now, struct gw_head_report *before);

#endif
