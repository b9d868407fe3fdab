/* The leader (rank 0): owns OUTDIR and decides. It hands input lines to the heads as they ask, commits their tokens, writes their
 * finished lines, keeps the files that people and tools watch, and runs the controller: it collects hellos, makes the plans,
 * and tells everybody what to do when ranks die, leave or come. Runs beside the rank's other work, in gw_leader_poll(), and never waits.
 *
 * When it dies, the next rank 0 creates a leader of its own from OUTDIR and from what the others say.
 */
#ifndef GW_JOB_LEADER_H
#define GW_JOB_LEADER_H

#include "job/chaos.h"
#include "job/formation.h"
#include "job/options.h"
#include "model/arch.h"

struct gw_leader; /* opaque */
struct gw_comm;

struct gw_leader_config {
    const struct gw_job_options *options;
    const struct gw_model *model;
    struct gw_comm *comm;
    struct gw_dims dims;
    int context;
    /* Called at the named points that only a leader passes (job/chaos.h). */
    gw_err (*at_point)(void *context, enum gw_chaos_point point);
    void *point_context;
    const struct gw_plan
        *last; /* the plan in force under the leader before, or NULL at the start of a launch; borrowed for the call */
};

/* GW_MSG_FORM. */
struct gw_form_order {
    int32_t grow; /* new ranks that wait to be taken in */
};

GW_CHECK gw_err gw_leader_create(const struct gw_leader_config *config, struct gw_leader **leader);
void gw_leader_destroy(struct gw_leader *leader);

/* The world has formed: the next hellos are awaited. */
void gw_leader_world(struct gw_leader *leader);

/* A plan that was just made, once: on the leader's own rank it does not come as a message. NULL: none. Valid until the next one. */
const struct gw_plan *gw_leader_new_plan(struct gw_leader *leader);

/* For status.json. */
void gw_leader_note_executor(struct gw_leader *leader, const char *kernels, int threads);
/* For events.jsonl: ranks were lost, at this time (gw_clock_wall_s). */
void gw_leader_note_loss(struct gw_leader *leader, double noticed_wall_s);

/* `stop`: someone asked for an early end. *finished: all is answered (or stopped) and every head has said its last word. GW_ERR_TIMEOUT: the
 * launch has to be made anew. */
GW_CHECK gw_err gw_leader_poll(struct gw_leader *leader, bool stop, bool *busy, bool *finished);

/* Takes what other heads have drawn or finished and commits it. For the middle of a long step of the leader's own. */
GW_CHECK gw_err gw_leader_commit(struct gw_leader *leader);

/* At the end: makes the output durable, closes it, writes the last status.json. GW_ERR_STOPPED when requests are left. */
GW_CHECK gw_err gw_leader_finish(struct gw_leader *leader);
/* Has it ended in favour of the next launch? */
bool gw_leader_gave_way(const struct gw_leader *leader);
/* After gw_leader_finish(): tells every rank to leave. */
GW_CHECK gw_err gw_leader_dismiss(struct gw_leader *leader);

#endif
