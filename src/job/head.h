/* The head of a replica: stage 0, shard 0. It takes requests from the leader, schedules steps, has every rank of the replica execute
 * them, turns drawn tokens into text, and gives finished output lines to the leader.
 *
 * One step per slot (micro-batch) may be in flight; with a pipeline of P stages there are P slots, so that no stage idles. All work
 * happens in gw_head_poll(), on the rank's main thread. Local, but for the messages it sends.
 */
#ifndef GW_JOB_HEAD_H
#define GW_JOB_HEAD_H

#include "job/executor.h"
#include "job/options.h"
#include "job/protocol.h"

struct gw_head; /* opaque */

struct gw_head_config {
    const struct gw_job_options *options;
    const struct gw_model *model;
    struct gw_comm *comm;
    struct gw_executor *executor; /* borrowed */
    struct gw_layout layout;
    struct gw_place place;
    int leader; /* rank */
    int context, kv_pages;
};

GW_CHECK gw_err gw_head_create(const struct gw_head_config *config, struct gw_head **head);
void gw_head_destroy(struct gw_head *head);

/* Does what there is to do, at most one step of its own; *busy says whether anything was done. *stopped: the leader has ended the job,
 * no step is in flight, and the replica's other ranks have been told. */
GW_CHECK gw_err gw_head_poll(struct gw_head *head, bool *busy, bool *stopped);

#endif
