/* The loop of launches: one after the other, or the next beside the last, until the batch is done. `godwit run` and the node agents use it. Local.
 *
 * A launch that ends early is followed by the next, which goes on from what is committed; after several in a row that got nowhere the job is given
 * up, and at once where a rank has said that input, model or options are wrong. When the nodes change the next launch is made before the last is
 * broken off: its ranks start up and stand by, then the old launch is stopped at the end of a step, and they begin.
 * Nothing here waits: gw_supervisor_poll() is called again and again.
 */
#ifndef GW_NODE_SUPERVISOR_H
#define GW_NODE_SUPERVISOR_H

#include "node/launch.h"

struct gw_supervisor_config {
    const struct gw_job_options *options;
    int argc;
    char **argv;
    int first_launch; /* number of the first */
    /* Where the next launch shall run: fills in ranks, hosts, agent, net, scratch and fence, for as long as it runs. False: nowhere yet, and
     * it is asked again. NULL: all on this node. */
    bool (*place)(void *context, struct gw_launch_config *launch);
    /* A launch has ended; `led`: it has had OUTDIR. */
    void (*ended)(void *context, int number, bool led);
    /* Launch `number` shall give way to the one that stands by. True: it has been told, and brings what leaving nodes hold to the others first, for which there
     * are *within_s; false: there is no time for that, and it is stopped by a signal. NULL: always so. */
    bool (*give_way)(void *context, int number, double *within_s);
    /* Seconds until a node of the present launch goes; large when none does. NULL: none ever does. */
    double (*time_left)(void *context);
    /* Launch `number` has ended since what is there does not suffice (it has said why): true if it is worth while to wait for more. The next launch is
     * started when `place` gives it a place again. NULL: never. */
    bool (*too_few)(void *context, int number);
    /* Is it known by now whether anything of ended launches may still run (*fence)? Asked before a launch that stands by begins. */
    bool (*cleared)(void *context, bool *fence);
    void *context;
};

/* What can be told before anything is started: are model, input, layout and OUTDIR usable? */
GW_CHECK gw_err gw_supervisor_check(const struct gw_job_options *options);

struct gw_supervisor; /* opaque */

/* The config's contents are borrowed. */
struct gw_supervisor *gw_supervisor_create(const struct gw_supervisor_config *config);
/* Ends what still runs. NULL is fine. */
void gw_supervisor_destroy(struct gw_supervisor *supervisor);

/* Looks after the launches. *over: there will be none any more, and the code says how the job ended; a summary is on stdout if it is done. */
GW_CHECK gw_err gw_supervisor_poll(struct gw_supervisor *supervisor, bool *over);
/* Waits at most so long until there is something for gw_supervisor_poll(). */
void gw_supervisor_wait(const struct gw_supervisor *supervisor, int wait_ms);
/* The streams to be watched for that: at most two; returns how many. */
int gw_supervisor_fds(const struct gw_supervisor *supervisor, int fds[2]);

/* A request to end: the first time at the end of a step, the second time at once, the third by force. */
void gw_supervisor_stop(struct gw_supervisor *supervisor);
/* This node will be taken away, and the job has been told so (job/notice.h): the present launch ends by itself, and no other is started. The job then ends with
 * GW_ERR_NOTICE and `why`, unless it is done by then. */
void gw_supervisor_leave(struct gw_supervisor *supervisor, const char *why);
/* The nodes have changed: goes over to a new launch. */
void gw_supervisor_renew(struct gw_supervisor *supervisor);
/* Launch `number` of another supervisor, whose node leaves, is the present one: gives way to a launch of this one's own. */
void gw_supervisor_inherit(struct gw_supervisor *supervisor, int number);
/* The inherited launch has ended, or must be taken as ended. The code and *over are as of gw_supervisor_poll(). */
GW_CHECK gw_err gw_supervisor_inherited_over(struct gw_supervisor *supervisor, bool *over);
/* Lets go of the present launch, which the caller looks after from now on; NULL: there is none. */
struct gw_launch *gw_supervisor_release(struct gw_supervisor *supervisor);
/* Number of the present launch; -1: there is none. */
int gw_supervisor_present(const struct gw_supervisor *supervisor);
/* A node of launch `number` is lost: it is ended at once, and another is started. */
void gw_supervisor_give_up(struct gw_supervisor *supervisor, int number);
/* Is a launch running, and none on its way? */
bool gw_supervisor_settled(const struct gw_supervisor *supervisor);

/* Has the job been done already, by whomever? GW_ERR_MISMATCH when OUTDIR is that of another. */
GW_CHECK gw_err gw_supervisor_done(const struct gw_job_options *options, bool *done);
/* Prints what a job that is done has come to. GW_ERR_NOT_FOUND: it is not done. */
GW_CHECK gw_err gw_supervisor_summary(const struct gw_job_options *options);

#endif
