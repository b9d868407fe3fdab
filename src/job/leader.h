/* The leader (rank 0): owns the ledger and OUTDIR. It hands input lines to the heads as they ask, writes their finished lines, and keeps
 * the files that people and tools watch (status.json, ranks.json). Runs beside the rank's other work, in gw_leader_poll(). */
#ifndef GW_JOB_LEADER_H
#define GW_JOB_LEADER_H

#include "job/options.h"
#include "job/protocol.h"
#include "model/arch.h"

struct gw_leader; /* opaque */
struct gw_comm;

struct gw_leader_config {
    const struct gw_job_options *options;
    const struct gw_model *model;
    struct gw_comm *comm;
    struct gw_layout layout;
    const char *kernels; /* for status.json */
    int threads, kv_pages, context;
};

/* Opens the input and OUTDIR (creating or carrying it on), and gathers every rank's GW_MSG_HELLO into ranks.json. */
GW_CHECK gw_err gw_leader_create(const struct gw_leader_config *config, struct gw_leader **leader);
void gw_leader_destroy(struct gw_leader *leader);

/* `stop`: someone asked for an early end. *finished: all is answered (or stopped) and every head has said its last word. */
GW_CHECK gw_err gw_leader_poll(struct gw_leader *leader, bool stop, bool *busy, bool *finished);

/* At the end: makes the output durable, closes it, writes the last status.json. GW_ERR_STOPPED when requests are left. */
GW_CHECK gw_err gw_leader_finish(struct gw_leader *leader);

/* What a rank tells the leader at start. */
GW_CHECK gw_err gw_leader_hello(struct gw_comm *comm, int leader);

#endif
