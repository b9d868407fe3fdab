/* A rank's part in the node's context store (store/store.h): what it takes over from a rank that is gone, and what it leaves behind itself.
 *
 * The predecessor's hello and its sequences' last tokens come from its snapshot (job/snapshot.h); job/rank.c stands in its place with them. Nothing
 * that goes wrong here ends a job: without a store, or when it fails, a rank has memory of its own and begins with nothing. Local.
 */
#ifndef GW_JOB_SUCCESSION_H
#define GW_JOB_SUCCESSION_H

#include "job/formation.h"
#include "job/options.h"

struct gw_store;
struct gw_snapshot;

struct gw_succession {
    struct gw_store *store;       /* the node's, or NULL */
    struct gw_snapshot *snapshot; /* in this rank's context; NULL without a store */
    uint64_t model_key;           /* the same for the same model file (struct gw_backend_config) */
    uint64_t held_bytes;          /* of the node's memory, in the store when this rank joined */
    size_t snapshot_bytes;
    struct gw_hello before; /* what the predecessor would say; placed: there is one that counts */
    struct gw_buf tokens;   /* GW_MSG_TOKENS of it */
};

/* model_key of the job's model, as the ranks of this node see it. */
uint64_t gw_succession_model_key(const struct gw_job_options *options);
/* Joins the store of the job, if this node has one. `context`: most tokens of a sequence. */
void gw_succession_open(struct gw_succession *own, const struct gw_job_options *options, int context);
/* Leaves this rank's context behind. To be called when none of its memory is in use any more. */
void gw_succession_close(struct gw_succession *own);

/* Takes over the context of a rank that is gone. Where there is none, but ranks that may be about to go, it waits for up to `patience_s`. True: own->before
 * and own->tokens are set. To be called while this rank has nothing in its own context. */
bool gw_succession_take(struct gw_succession *own, double patience_s);
/* This rank speaks for itself from now on. */
void gw_succession_done(struct gw_succession *own);

/* All that plan `number` wants is in place: memory that is not mapped any more may go. */
void gw_succession_keep(struct gw_succession *own, uint64_t number);

#endif
