/* The node agent, `godwit node`: takes part in a job with one node. Local.
 *
 * Every node of a job runs one. It counts up its lease, starts the launcher's daemons for whoever supervises the job, and is ready to
 * supervise it itself: when the supervisor's lease stands still the next one takes the next term (lease.h), and goes on with the next launch on the
 * nodes that are there. Agents need a folder in common and a network, no ssh and no common scheduler.
 *
 * Fencing, with L the length of a lease. Who writes OUTDIR is a rank, so stale ranks must go:
 *  - an agent ends daemons of a lower term, or of a launch that is over, as soon as it hears of it: from the supervisor, or from its file;
 *  - an agent ends its daemons when their connection is silent for L, when the supervisor's lease stands still for L, and when it
 *    cannot count up its own lease for L; a supervisor that cannot, or that finds a higher term, ends its launch;
 *  - nobody takes over before the supervisor's lease has stood still for 2 L, unless its agent's process is known to be gone;
 *  - and where a node has not said that it has ended what was to end, the next leader writes new files (batch/io/output.h): what a stale one still
 *    appends goes to files without a name, and its journal is sealed.
 * So a second leader never rests on clocks or on the network alone.
 *
 * A supervisor whose node leaves says so in its file and keeps its launch running: another agent takes the next term, lets that launch give way to one
 * of its own as at any other change, and hears from the first one's agent when it is over. Until then both terms' daemons may run (struct gw_term, since).
 */
#ifndef GW_NODE_AGENT_H
#define GW_NODE_AGENT_H

#include "job/options.h"

#include <signal.h>

struct gw_agent_config {
    const struct gw_job_options *options; /* of the job; paths are absolute */
    int argc;
    char **argv;         /* of the job, for ranks */
    const char *name;    /* NULL: the host's */
    const char *address; /* NULL: chosen */
    const char *net;     /* CIDR, or NULL */
    int port;            /* 0: any */
    int slots, min_nodes;
    double wait_s; /* for min_nodes, before the first launch */
    double lease_s, grace_s;
    const volatile sig_atomic_t
        *leave; /* how often it has been asked to leave within grace_s; the second time it goes at once */
    const volatile sig_atomic_t *
        stop; /* the same, in haste: where it is the last node nothing is saved and nothing decoded until the grace ends */
};

/* Takes part until the job has ended, or until it has been asked to leave and has left. The code is the job's; GW_ERR_STOPPED: it has left. */
GW_CHECK gw_err gw_agent_run(const struct gw_agent_config *config);

#endif
