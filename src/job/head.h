/* The head of a replica: stage 0, shard 0. It takes requests from the leader, schedules steps, has every rank of the replica execute
 * them, turns drawn tokens into text, and gives tokens and finished output lines to the leader.
 *
 * One step per slot (micro-batch) may be in flight; with a pipeline of P stages there are P slots, so that no stage idles. All work
 * happens in gw_head_poll(), on the rank's main thread. Local, but for the messages it sends.
 *
 * A head outlives changes of the world that keep its replica as it is: gw_head_report() says what it has, gw_head_begin() goes on under
 * the new plan. Requests that come from another replica with their KV are adopted: the head finds pages for them, has them
 * filled (job/mover.h), and goes on with them when all its ranks say that the pages are there.
 */
#ifndef GW_JOB_HEAD_H
#define GW_JOB_HEAD_H

#include "job/executor.h"
#include "job/formation.h"
#include "job/options.h"
#include "job/protocol.h"

struct gw_head; /* opaque */
struct gw_mover;
struct gw_saver;
struct gw_snapshot;
struct gw_tokenizer;
struct gw_chat;

struct gw_head_config {
    const struct gw_job_options *options;
    const struct gw_model *model;
    const struct gw_tokenizer *tokenizer; /* borrowed */
    const struct gw_chat *chat;           /* borrowed */
    struct gw_comm *comm;
    struct gw_executor *executor; /* borrowed */
    const struct gw_team *team;   /* borrowed */
    struct gw_saver *saver;       /* borrowed */
    struct gw_snapshot
        *snapshot; /* borrowed, or NULL: where its sequences are kept for whoever takes over when it dies */
    int context, kv_pages;
};

GW_CHECK gw_err gw_head_create(const struct gw_head_config *config, struct gw_head **head);
void gw_head_destroy(struct gw_head *head);

/* Before a plan: forgets steps in flight, tells the leader (rank 0) all drawn tokens of its sequences, and lists these. */
GW_CHECK gw_err gw_head_report(struct gw_head *head, struct gw_held **held, int32_t *count);
/* Under a new plan: makes pages for the adoptions that are this replica's and tells the ranks on both sides. `plan` and `mover` are
 * borrowed until the next gw_head_begin(). */
GW_CHECK gw_err gw_head_begin(struct gw_head *head, const struct gw_plan *plan, struct gw_mover *mover);

/* Does what there is to do, at most one step of its own; *busy says whether anything was done. `may_step`: may steps be executed on this
 * rank? *stopped: the leader has ended the job, no step is in flight, and the replica's other ranks have been told. */
GW_CHECK gw_err gw_head_poll(struct gw_head *head, bool may_step, bool *busy, bool *stopped);
/* Steps of its replica that ended. */
uint64_t gw_head_steps(const struct gw_head *head);

#endif
