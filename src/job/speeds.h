/* How fast the ranks are, as the planner takes them: from what each has measured of itself, and from what the leader has seen of it. Local, pure. */
#ifndef GW_JOB_SPEEDS_H
#define GW_JOB_SPEEDS_H

#include "control/pace.h"
#include "job/formation.h"
#include "job/options.h"

/* speeds[count], the fastest 1. Ranks of one host that run the same kernels are taken to be as fast as the fastest of them measured itself: the others
 * had company on its cores. What is within a fifth of the fastest counts as equal to it, and everything else in eighths, so that a plan
 * does not change with the noise of a measurement. One of which nothing is known makes all equal. `pace` may be NULL. */
void gw_speeds_of_ranks(const struct gw_hello *hellos, int count, const struct gw_job_options *options,
                        const struct gw_pace *pace, double *speeds);

#endif
