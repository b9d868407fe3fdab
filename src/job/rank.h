/* One MPI process of a job, from start to end: joins the world, agrees on a layout, loads its slice, plays its roles. */
#ifndef GW_JOB_RANK_H
#define GW_JOB_RANK_H

#include "job/options.h"

/* In the environment of a rank that an agent's daemon has started: a folder of its node for shared memory, which goes with the launch. */
#define GW_SCRATCH "GODWIT_SCRATCH"
/* The line on stderr by which a rank with --standby says that it is ready to begin. */
#define GW_STANDS_BY "godwit-stands-by"

/* The line by which the leader of a launch that gives way says that all is written and nothing of the launch is needed any more. */
#define GW_HANDED_OVER "godwit-handed-over"

/* Collective over the launch. On an error other than GW_ERR_STOPPED the whole launch is ended with its exit code. */
GW_CHECK gw_err gw_rank_run(const struct gw_job_options *options);

#endif
