/* The mover of one rank: brings weights and KV pages from where they are to where a plan wants them, a piece at a time, between the steps
 * that the rank goes on executing.
 *
 * What a rank has to send and to expect, and in which order, is in the plan (job/formation.h), but for the numbers of KV pages, which the
 * new head finds and sends round (GW_MSG_ADOPT). Pieces are pushed by their owners: a piece of KV is some pages of one layer and a run of kv heads in
 * the canonical form, a piece of weights a slice in packed form. Where the plan has drops, old parts go as soon as nobody needs them, and
 * what has yet to be loaded is loaded in its turn. The mover reads from the old executor and writes to the new one; they
 * may be one and the same, and they may share memory, so a rank executes no step of a new replica before gw_mover_done().
 */
#ifndef GW_JOB_MOVER_H
#define GW_JOB_MOVER_H

#include "job/executor.h"
#include "job/formation.h"

struct gw_comm;
struct gw_mover; /* opaque */

struct gw_mover_config {
    struct gw_comm *comm;
    const struct gw_plan *plan; /* borrowed */
    struct gw_dims dims;
    struct gw_executor *before; /* borrowed; NULL: this rank holds nothing of the plan before */
    struct gw_executor *now;    /* borrowed; NULL: it has no place in this plan */
};

struct gw_mover_stats {
    uint64_t kv_bytes_in, weight_bytes_in; /* received */
    uint64_t kv_bytes_kept;                /* of adopted sequences, that stayed where they were */
    uint64_t
        peak_bytes; /* most of weights and KV that it held on the way; 0: the plan had no drops for it, so no bound was near */
    uint64_t
        weight_bytes_loaded; /* from the model file, when nothing was shared with an executor before; set by the rank */
    double load_s;
};

struct gw_mover *gw_mover_create(const struct gw_mover_config *config);
void gw_mover_destroy(struct gw_mover *mover);

/* The new head's decision on adoption `number`: called by the head on its own rank, after it sent GW_MSG_ADOPT to the others. */
GW_CHECK gw_err gw_mover_adopt(struct gw_mover *mover, int number, const struct gw_page_map *map);
/* Does some of what there is to do. */
GW_CHECK gw_err gw_mover_poll(struct gw_mover *mover, bool *busy);
/* All that this rank gives is sent, all that it gets is there. */
bool gw_mover_done(const struct gw_mover *mover);
struct gw_mover_stats gw_mover_stats(const struct gw_mover *mover);

#endif
