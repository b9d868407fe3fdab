/* Who takes part in a job, and who leads it: files in OUTDIR/nodes that count up. Local.
 *
 *   NAME.lease         an agent: who and where it is, what its node has; rewritten several times in a lease's length
 *   supervisor.<term>  the supervisor's lease of that term; the highest term is the one in force
 *
 * Files are replaced whole, by rename. No clock of one node is ever compared with that of another: a lease is alive for an observer if its
 * counter has changed within the lease's length of the observer's own clock (struct gw_watch). A term begins by link(2) of a finished file to the
 * name of the next term, which only one of several can do. A former supervisor that writes its own file again harms nothing: its term is lower.
 */
#ifndef GW_NODE_LEASE_H
#define GW_NODE_LEASE_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum { GW_NAME_BYTES = 64, GW_INCARNATION_BYTES = 17, GW_ADDRESS_BYTES = 64 };

struct gw_lease {
    char name[GW_NAME_BYTES];
    char incarnation[GW_INCARNATION_BYTES]; /* random, of this agent process */
    char address[GW_ADDRESS_BYTES];
    int port;
    int64_t pid, started; /* gw_process_started() */
    char boot_id[40];     /* of the kernel; with the pid namespace it says whether the pid means something here */
    int64_t pid_namespace;
    int slots, cpus;
    int64_t memory_bytes;
    char cpu[96], kernels[16]; /* the CPU's model name; the best kernel table it runs */
    double gflops;             /* of the kernels on all CPUs, measured; 0: not yet */
    int64_t counter;
    bool leaving;
    double grace_s; /* left when it began to leave */
};

/* LEAVING: the supervisor's node leaves and its launch runs on: whoever takes the next term lets it give way to a launch of its own. */
enum gw_term_state { GW_TERM_RUNNING, GW_TERM_RESIGNED, GW_TERM_ENDED, GW_TERM_LEAVING };

struct gw_term {
    int64_t number;                                              /* 0: there is none */
    char name[GW_NAME_BYTES], incarnation[GW_INCARNATION_BYTES]; /* of the supervisor */
    enum gw_term_state state;
    int exit_code;        /* of a job that has ended */
    char reason[256];     /* in words, when the code is not 0 */
    int64_t next_launch;  /* number that the next launch will have */
    int64_t least_launch; /* launches below it are over: nothing of them may run */
    bool clean;           /* no launch runs (but for `present`), and every node has said so */
    int64_t since;        /* the oldest term of which a launch may go on: its own number, but after LEAVING */
    int64_t present;      /* of LEAVING and of the term that follows it: the launch that goes on; -1: none */
    int64_t counter;
};

/* "n2", "gpu-7.local": what may be a file's name and a host's. */
bool gw_name_valid(const char *name);

/* Fills in what does not change: process, boot, CPUs, memory. */
void gw_lease_describe(struct gw_lease *lease);
GW_CHECK gw_err gw_lease_write(const char *folder, const struct gw_lease *lease);
/* GW_ERR_NOT_FOUND, GW_ERR_FORMAT. */
GW_CHECK gw_err gw_lease_read(const char *folder, const char *name, struct gw_lease *lease);
void gw_lease_remove(const char *folder, const char *name);
/* All that are there and make sense; the caller frees. */
GW_CHECK gw_err gw_lease_list(const char *folder, struct gw_lease **leases, int *count);
/* Takes the name for the first time; *taken: it is there already. */
GW_CHECK gw_err gw_lease_claim(const char *folder, const struct gw_lease *lease, bool *taken);
/* Takes the name over from `old`, which its agent has left behind. Of several that try at once one does; *taken: another one has. */
GW_CHECK gw_err gw_lease_take_over(const char *folder, const struct gw_lease *lease, const struct gw_lease *old,
                                   bool *taken);
/* Does its process run on this machine (1), certainly not any more (0), or can it not be told from here (-1)? */
int gw_lease_process_runs(const struct gw_lease *lease);

/* The highest term. */
GW_CHECK gw_err gw_term_read(const char *folder, struct gw_term *term);
/* Begins term->number; *taken: somebody else has. */
GW_CHECK gw_err gw_term_begin(const char *folder, const struct gw_term *term, bool *taken);
GW_CHECK gw_err gw_term_write(const char *folder, const struct gw_term *term);
/* Removes terms below. */
void gw_term_prune(const char *folder, int64_t below);

/* An observer's view of one counter. */
struct gw_watch {
    char incarnation[GW_INCARNATION_BYTES];
    int64_t counter;
    double changed_s; /* on the observer's clock; since it has been looking, at least */
    bool moves;       /* has been seen to change */
};

void gw_watch_note(struct gw_watch *watch, const char *incarnation, int64_t counter, double now_s);
static inline bool gw_watch_alive(const struct gw_watch *watch, double now_s, double lease_s)
{
    return watch->moves && now_s - watch->changed_s < lease_s;
}

#endif
