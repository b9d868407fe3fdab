/* The nodes as the supervisor sees them: whose lease is alive, who answers, who has a part in which launch, and of whom it is certain that nothing
 * of an ended launch runs there any more. Local; nothing waits.
 *
 * The supervisor keeps a connection to every agent. A node can be *used* when its lease is alive, it has answered lately and is not leaving. Before a
 * launch a *round* asks all of them to end what is over: who answers is there now, and has nothing old running. A launch needs a fence
 * when some node of an earlier launch has not answered such a question since.
 */
#ifndef GW_NODE_CLUSTER_H
#define GW_NODE_CLUSTER_H

#include "node/lease.h"
#include "node/link.h"

#include <poll.h>

struct gw_cluster; /* opaque */

struct gw_cluster_config {
    const char *folder;
    const uint8_t *secret;
    const struct gw_lease *self; /* of the supervisor's own node: always used, unless it is leaving */
    int64_t term, since;         /* since: struct gw_term */
    double lease_s;
    bool unclean; /* an earlier supervisor's launches may still run somewhere */
};

struct gw_cluster *gw_cluster_create(const struct gw_cluster_config *config);
void gw_cluster_destroy(struct gw_cluster *cluster);

/* Moves bytes; with `read_leases` looks at the leases, too. */
void gw_cluster_poll(struct gw_cluster *cluster, bool read_leases);
int gw_cluster_fds(const struct gw_cluster *cluster, struct pollfd *fds, int most);

/* Is it known of every agent that has a lease whether it lives, or has this supervisor looked at it for `within_s`? A new supervisor knows nobody. */
bool gw_cluster_acquainted(const struct gw_cluster *cluster, double within_s);
/* Nodes that can be used now. */
int gw_cluster_usable(const struct gw_cluster *cluster);
/* Begins a round about all launches up to `through`, or goes on with it. True: all have answered, or have had their time. */
bool gw_cluster_round(struct gw_cluster *cluster, int64_t through);
/* After a round: the nodes for launch `number`, as the launcher's list of hosts (the caller frees), their slots in all, and whether it needs a fence. */
char *gw_cluster_place(struct gw_cluster *cluster, int64_t number, int *ranks, bool *fence);
/* The nodes that are leaving: their names (up to `most`, valid until the next poll), and the least time that one of them has left. */
int gw_cluster_leaving(const struct gw_cluster *cluster, const char **names, int most, double *left_s);
/* Launch `number` of the supervisor before goes on, on whichever nodes. */
void gw_cluster_inherit(struct gw_cluster *cluster, int64_t number);
/* An inherited launch of which its launcher's node has said that it has ended; -1: none. */
int64_t gw_cluster_over(const struct gw_cluster *cluster);
/* Launch `number` has ended; `led`: its ranks had OUTDIR, if it was fenced nothing older matters any more. */
void gw_cluster_ended(struct gw_cluster *cluster, int64_t number, bool led);
/* Might something of an ended launch still run? */
bool gw_cluster_unclean(const struct gw_cluster *cluster);
/* A launch that has lost a node, once; -1: none. */
int64_t gw_cluster_lost(struct gw_cluster *cluster, char name[GW_NAME_BYTES]);
/* Do the nodes differ from those of the newest launch, and have they not changed for a while? Counts what came and what goes. */
bool gw_cluster_changed(struct gw_cluster *cluster, int *more, int *less);

#endif
