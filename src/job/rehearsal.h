/* What a launch that stands by does before it is told to begin: it finds out what its ranks will most likely be given, and packs these weights into
 * the nodes' context stores, at low priority, while the present launch decodes. So a node that joins has its weights before it has its place, and one that
 * will have another slice finds it there.
 *
 * The plan is made as the leader would make it, from what ranks.json says of the present launch. It binds nobody: the real plan follows from what
 * is held when the launch begins, and weights that were packed for nothing go once that plan is in place. Collective over the launch; nothing that
 * goes wrong here ends it.
 */
#ifndef GW_JOB_REHEARSAL_H
#define GW_JOB_REHEARSAL_H

#include "job/formation.h"
#include "job/options.h"
#include "model/arch.h"

struct gw_comm;
struct gw_store;

struct gw_rehearsal {
    const struct gw_job_options *options;
    struct gw_comm *comm;
    const struct gw_model *model;
    struct gw_dims dims;
    int context;
    struct gw_hello *self; /* of this rank; `packed` is set when its weights are there */
    uint64_t model_key;
    struct gw_store *store; /* holds what was packed, until gw_rehearsal_end() */
};

void gw_rehearsal_run(struct gw_rehearsal *rehearsal);
/* The plan in force is in place: what it does not use may go. */
void gw_rehearsal_end(struct gw_rehearsal *rehearsal);

#endif
