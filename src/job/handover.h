/* The order by which the supervisor of several nodes has a launch give way to the next one, a file in OUTDIR/nodes: what lies in the memory of nodes
 * that leave is brought to those that stay, then the launch stops at the end of a step. Or, when every node leaves: it is saved. Local.
 *
 * A file and not a signal, since it says which nodes, and since whoever is leader by then finds it: the leader may be on a node that leaves, and
 * its successor goes on with the same order. It names its launch, so one that nobody has carried out harms none of the next. Replaced whole.
 */
#ifndef GW_JOB_HANDOVER_H
#define GW_JOB_HANDOVER_H

#include "base/error.h"

#include <stdbool.h>

/* In the environment of whatever an agent starts: the name of its node. */
#define GW_NODE_NAME "GODWIT_NODE"

struct gw_handover {
    int launch;     /* that is to give way */
    bool all;       /* every node leaves: what can be saved within `seconds` is saved */
    double seconds; /* from when it is read */
    char **nodes;   /* [node_count] names of those that leave; owned */
    int node_count;
};

GW_CHECK gw_err gw_handover_post(const char *out_dir, const struct gw_handover *order);
/* GW_ERR_NOT_FOUND: there is none; GW_ERR_FORMAT. */
GW_CHECK gw_err gw_handover_read(const char *out_dir, struct gw_handover *order);
bool gw_handover_names(const struct gw_handover *order, const char *node);
void gw_handover_free(struct gw_handover *order);
/* Removes what nobody will read. */
void gw_handover_forget(const char *out_dir);

#endif
