/* One launch: the launcher (mpirun) and its ranks, or with one rank the rank itself, from start to end. Local.
 *
 * Nothing here waits: gw_launch_poll() takes what has come and looks after the launch. Every launch is a process group that dies with the process
 * that started it. What the launcher writes besides godwit's own lines is kept back, to be shown only when the job fails without having said why.
 *
 * The end of a launch is known from its process; how far the job has come, and whether it is done, from what the ranks left in OUTDIR: after a loss
 * the launcher's exit code means nothing.
 */
#ifndef GW_NODE_LAUNCH_H
#define GW_NODE_LAUNCH_H

#include "base/mem.h"
#include "job/options.h"

struct gw_launch_config {
    const struct gw_job_options *options;
    int argc;
    char **argv;       /* of the command, which ranks get as well; argv[0] is not read */
    int number;        /* of this launch, counted from 0 by its supervisor */
    int ranks;         /* to start */
    const char *hosts; /* "localhost:2,n2:1": where they are started; NULL: all here, without daemons */
    const char *agent; /* the command that starts a daemon on another node (PRRTE's plm_ssh_agent); with hosts */
    const char *net;   /* the network that launcher and ranks use, in CIDR form, or NULL: any */
    const char *
        scratch; /* folder of this node for what the launcher leaves, or NULL: one is made, and removed after the launch */
    bool fence;   /* the leader of an earlier launch may be alive still */
    bool standby; /* ranks make themselves ready and wait for gw_launch_go() */
};

struct gw_launch; /* opaque */

/* Everything in the config is borrowed and must outlive the launch. */
GW_CHECK gw_err gw_launch_start(const struct gw_launch_config *config, struct gw_launch **launch);
/* Ends what is left of it, if it has not ended, and frees it. NULL is fine. */
void gw_launch_destroy(struct gw_launch *launch);

/* Takes lines that have come, looks for the end and for signs of death. True once the launch has ended. */
bool gw_launch_poll(struct gw_launch *launch);
/* Readable when there is something for gw_launch_poll() to take; -1: it has closed. */
int gw_launch_fd(const struct gw_launch *launch);

/* Asks for a clean stop at the end of a step. */
void gw_launch_stop(struct gw_launch *launch);
/* Ends it at once: first politely, the second time for sure; gw_launch_poll() tells when it has ended. */
void gw_launch_end(struct gw_launch *launch);
/* Do all ranks of a launch with `standby` stand by? Then they may be told to begin. */
bool gw_launch_stands_by(const struct gw_launch *launch);
void gw_launch_go(struct gw_launch *launch);

int gw_launch_number(const struct gw_launch *launch);
/* After the end: the exit code of a rank that asked for the end, else the launcher's, 128 + N for signal N. */
int gw_launch_exit_code(const struct gw_launch *launch);
/* Has a line of a rank said what is wrong? */
bool gw_launch_explained(const struct gw_launch *launch);
/* What the launcher itself wrote. */
const struct gw_buf *gw_launch_kept(const struct gw_launch *launch);

#endif
