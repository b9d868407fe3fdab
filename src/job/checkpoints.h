/* The leader's checkpoints: when one is due, and which files count. Local; used by the leader's thread alone.
 *
 * A checkpoint covers the pages there are when it begins. The ranks' staging memory is small, so it is written in rounds that follow each other: an
 * increment of the set each. What is complete counts, at the latest a second later. */
#ifndef GW_JOB_CHECKPOINTS_H
#define GW_JOB_CHECKPOINTS_H

#include "job/options.h"
#include "job/saver.h"

struct gw_checkpoints; /* opaque */

/* Opens OUTDIR/context; `sweep`: no rank writes there now. NULL options->checkpoint: by the measured cost; 0: never. */
GW_CHECK gw_err gw_checkpoints_open(const struct gw_job_options *options, const struct gw_model *model, bool sweep,
                                    struct gw_checkpoints **checkpoints);
void gw_checkpoints_close(struct gw_checkpoints *checkpoints);

/* Should a round begin now? Rounds of a checkpoint go on until all is saved; where its time was left to the policy, until they have cost what that
 * allows for, and none begins that the `left_s` of the batch (INFINITY: not known) do not make worth it. */
bool gw_checkpoints_due(const struct gw_checkpoints *checkpoints, double now_s, double left_s);
/* Begins a round that `ranks` ranks take part in, under `heads` heads; the number of its increment. None is under way. */
uint64_t gw_checkpoints_begin(struct gw_checkpoints *checkpoints, int heads, int ranks, double now_s);
/* Is a round? */
bool gw_checkpoints_under_way(const struct gw_checkpoints *checkpoints);
/* All ranks are to go: a checkpoint is due now, and none has to save time any more. `last`: no other follows. */
void gw_checkpoints_hurry(struct gw_checkpoints *checkpoints, bool last);
/* The world has changed: whoever was writing may be gone. What was written counts. */
void gw_checkpoints_interrupted(struct gw_checkpoints *checkpoints, bool lost);

/* Did pages that count as saved not come into the set (a full disk)? Then the checkpoint has ended, and in the next heads offer all of theirs again.
 * Asking clears it. */
bool gw_checkpoints_again(struct gw_checkpoints *checkpoints);
/* Files that nobody has a use for may go at the end of this one: not while requests wait that were begun before and may want their pages. */
void gw_checkpoints_may_prune(struct gw_checkpoints *checkpoints, bool may);
/* GW_MSG_KEEP: the pages that a head still has a use for, and how many more rounds all of them take. */
void gw_checkpoints_keep(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes);
/* GW_MSG_SAVED. Trouble with files costs a warning. */
GW_CHECK gw_err gw_checkpoints_saved(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes);

struct gw_checkpoint_done {
    uint64_t bytes;
    double cost_s;  /* of the rank that it cost most */
    double whole_s; /* what it would take to save all pages that are not saved, those of this checkpoint among them */
};
/* Has a checkpoint ended since this was last asked? */
bool gw_checkpoints_take_done(struct gw_checkpoints *checkpoints, double now_s, struct gw_checkpoint_done *done);
double gw_checkpoints_interval_s(const struct gw_checkpoints *checkpoints);
/* The batch is done: nothing of it is needed any more. */
void gw_checkpoints_drop(struct gw_checkpoints *checkpoints);

#endif
