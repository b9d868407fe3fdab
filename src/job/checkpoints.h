/* The leader's checkpoints: when one is due, and which files count. Local; used by the leader's thread alone. */
#ifndef GW_JOB_CHECKPOINTS_H
#define GW_JOB_CHECKPOINTS_H

#include "job/options.h"
#include "job/saver.h"

struct gw_checkpoints; /* opaque */

/* Opens OUTDIR/context; `sweep`: no rank writes there now. NULL options->checkpoint: by the measured cost; 0: never. */
GW_CHECK gw_err gw_checkpoints_open(const struct gw_job_options *options, const struct gw_model *model, bool sweep,
                                    struct gw_checkpoints **checkpoints);
/* Are there any? Not when they are off, or the folder could not be opened. */
bool gw_checkpoints_on(const struct gw_checkpoints *checkpoints);
void gw_checkpoints_close(struct gw_checkpoints *checkpoints);

/* Should one begin now? */
bool gw_checkpoints_due(const struct gw_checkpoints *checkpoints, double now_s);
/* Begins one that `ranks` ranks take part in, under `heads` heads; its number. */
uint64_t gw_checkpoints_begin(struct gw_checkpoints *checkpoints, int heads, int ranks, double now_s);
bool gw_checkpoints_under_way(const struct gw_checkpoints *checkpoints);
/* The world has changed: whoever was writing may be gone. What was written counts. */
void gw_checkpoints_interrupted(struct gw_checkpoints *checkpoints, bool lost);

/* Did pages that count as saved not come into the set (a full disk, a thread that was behind)? Then heads offer all of theirs again. Asking clears
 * it. */
bool gw_checkpoints_again(struct gw_checkpoints *checkpoints);
/* Files that nobody has a use for may go at the end of this one: not while requests wait that were begun before and may want their pages. */
void gw_checkpoints_may_prune(struct gw_checkpoints *checkpoints, bool may);
/* GW_MSG_KEEP: the pages that a head still has a use for. */
void gw_checkpoints_keep(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes);
/* GW_MSG_SAVED. When everybody is done, the new set counts: *done says so, *bytes and *cost_s what it took. Trouble with files costs a
 * warning. */
GW_CHECK gw_err gw_checkpoints_saved(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes, bool *done,
                                     uint64_t *increment_bytes, double *cost_s);
double gw_checkpoints_interval_s(const struct gw_checkpoints *checkpoints);
/* The batch is done: nothing of it is needed any more. */
void gw_checkpoints_drop(struct gw_checkpoints *checkpoints);

#endif
