/* One MPI process of a job, from start to end: joins the world, agrees on a layout, loads its slice, plays its roles. */
#ifndef GW_JOB_RANK_H
#define GW_JOB_RANK_H

#include "job/options.h"

/* Collective over the launch. On an error other than GW_ERR_STOPPED the whole launch is ended with its exit code. */
GW_CHECK gw_err gw_rank_run(const struct gw_job_options *options);

#endif
