/* A worker: any rank of a replica but its head. It executes the steps that the head sends, in their order, passes hidden rows on to
 * the next stage, and on the last stage draws tokens and sends them to the head. Keeps no state of sequences. */
#ifndef GW_JOB_WORKER_H
#define GW_JOB_WORKER_H

#include "job/executor.h"
#include "job/saver.h"

struct gw_worker; /* opaque */

/* Numbers of GW_MSG_STEP that are no steps but lists for the saver, in order with the steps. */
#define GW_STEP_SAVE UINT64_MAX
#define GW_STEP_LOAD (UINT64_MAX - 1)

struct gw_worker *gw_worker_create(struct gw_comm *comm, struct gw_executor *executor, const struct gw_team *team,
                                   struct gw_saver *saver, int max_rows, int d_model);
void gw_worker_destroy(struct gw_worker *worker);

/* Steps executed so far. */
uint64_t gw_worker_steps(const struct gw_worker *worker);
/* Executes the next step if there is one (*busy); *stopped when the head has ended the job. */
GW_CHECK gw_err gw_worker_poll(struct gw_worker *worker, bool *busy, bool *stopped);

#endif
