/* The world of ranks: its start, repair, growth and end; messages with a header; the exchange of tree nodes between tensor shards.
 *
 * Only point-to-point MPI is on the data path. Every message starts with a header (epoch, kind, step, length, checksum), so a
 * late, torn or misdirected one is noticed instead of computed with. Sends never block: the library keeps the data until the peer
 * has taken it. Receives that wait have a deadline. One thread per rank uses a comm.
 *
 * The world changes: when a member dies, every call may answer GW_ERR_LOST, and the survivors meet in gw_comm_repair(), which
 * gives a world without the dead (ULFM: revoke, shrink). gw_comm_grow() adds ranks. Both number the ranks anew, in the
 * old order; a member keeps its number for life (gw_comm_member). The epoch counts plans: a message of an earlier epoch is dropped, one of a
 * later epoch waits until this rank has come to it.
 */
#ifndef GW_COMM_COMM_H
#define GW_COMM_COMM_H

#include "base/mem.h"

#include <stdint.h>

struct gw_comm; /* opaque */

/* Message kinds; each is an MPI tag, so kinds never overtake or block each other. */
enum gw_msg_kind {
    GW_MSG_BEAT = 1, /* any -> leader, leader -> any: a sign of life */
    GW_MSG_HELLO,    /* rank -> leader: who it is and what it holds */
    GW_MSG_PLAN,     /* leader -> rank: the next epoch */
    GW_MSG_READY,    /* rank -> leader: what its place needs is there */
    GW_MSG_DRAIN,    /* leader -> head: finish the steps in flight and start no other */
    GW_MSG_DRAINED,  /* head -> leader */
    GW_MSG_FORM,     /* leader -> rank: say hello again, maybe after the world has grown */
    GW_MSG_NOTICE,   /* rank -> leader: it, or all, will be taken away; or more ranks are wanted */
    GW_MSG_LEAVE,    /* leader -> rank: nothing is wanted of it any more */
    GW_MSG_WANT,     /* head -> leader: how many requests it can take */
    GW_MSG_ASSIGN,   /* leader -> head: requests */
    GW_MSG_TOKENS,   /* head -> leader: tokens just drawn */
    GW_MSG_RESULT,   /* head -> leader: a finished request */
    GW_MSG_STOP,     /* leader -> heads -> workers: end of the job */
    GW_MSG_BYE,      /* head -> leader: its last message */
    GW_MSG_STEP,     /* head -> workers: a step to compute */
    GW_MSG_HIDDEN,   /* stage -> next stage: hidden rows of a step */
    GW_MSG_LOGITS,   /* shard -> sampling shard: its vocabulary's logits */
    GW_MSG_DRAWN,    /* last stage -> head: the step's tokens */
    GW_MSG_NODES,    /* shard -> shard: partial sums */
    GW_MSG_SUM,      /* shard -> shard: reduced rows */
    GW_MSG_WINDOW,   /* shard -> shard: memory for sums, instead of such messages (window.h) */
    GW_MSG_ADOPT,    /* new head -> ranks of the old and the new replica: which KV page becomes which */
    GW_MSG_ADOPTED,  /* rank -> its head: all pages of an adoption are there */
    GW_MSG_SLICE,    /* rank -> rank: weights or KV on the move */
    GW_MSG_REHEARSE, /* within a launch that stands by: a hello to the leader, a plan that is not in force back (job/rehearsal.h) */
    GW_MSG_SAVE,  /* leader -> head: begin a checkpoint */
    GW_MSG_KEEP,  /* head -> leader: the saved pages that it still has a use for */
    GW_MSG_SAVED, /* rank -> leader: a checkpoint file is complete, or all of them */
    GW_MSG_PACE,  /* rank -> leader: how long computing takes it (job/protocol.h) */
    GW_MSG_KINDS
};

struct gw_msg {
    int source;
    enum gw_msg_kind kind;
    uint64_t step;
    uint8_t *data; /* payload; 64-byte aligned; gw_msg_free() */
    size_t bytes;
    void *memory;
};

/* Starts MPI (collective over the launch, or over the ranks that gw_comm_spawn() has started and the world that takes them in).
 * `peer_timeout_s` bounds every wait for a peer. `member_base`: this launch's first member number (0, or what gw_comm_spawn() passed on).
 * A rank that was spawned and is not taken in ends its process. */
GW_CHECK gw_err gw_comm_create(double peer_timeout_s, int member_base, struct gw_comm **comm);
/* Waits for outstanding sends, then ends MPI: collective, and only for a world that never changed. */
GW_CHECK gw_err gw_comm_destroy(struct gw_comm *comm);
/* Set in the environment of ranks that a supervisor (`godwit run`) has started, and the line on stderr by which a rank asks it to end the
 * launch, the exit code behind it: MPI's own abort does not reach everybody once the world has changed. */
#define GW_SUPERVISED "GODWIT_SUPERVISED"
#define GW_END_LAUNCH "godwit-end-launch "

/* Ends the whole launch with an exit code. Never returns. */
_Noreturn void gw_comm_abort(struct gw_comm *comm, int exit_code);
/* Has the world changed since the launch? Then MPI_Finalize may hang: flush, and leave by _exit(). */
bool gw_comm_changed(const struct gw_comm *comm);
/* Waits until the sends are taken, at most the peer timeout. */
GW_CHECK gw_err gw_comm_flush(struct gw_comm *comm);

/* Looks for members that died (local, cheap): GW_ERR_LOST when there are any. */
GW_CHECK gw_err gw_comm_look(struct gw_comm *comm);
/* The death of `rank` is expected and no reason for a repair: it has said goodbye. */
void gw_comm_let_go(struct gw_comm *comm, int rank);
/* For the last one to leave: waits until ranks that are being started can hear that it goes (else they would wait for it), and then, a second at most,
 * until the others are gone, so that none of them misses what it was told. */
void gw_comm_linger(struct gw_comm *comm);
/* Collective over the survivors: a new world without the dead. Everything under way in the old one is dropped. Whoever cannot do it
 * within the peer timeout ends its process (exit code 9), so that the supervisor can start the launch anew. */
GW_CHECK gw_err gw_comm_repair(struct gw_comm *comm);
/* Local: starts `count` more ranks with `command` (argv without argv[0]) on a thread of its own, while this rank goes on. Their member numbers start
 * at `member_base`. They wait until gw_comm_grow() takes them in, and end by themselves when this rank dies. One at a time. */
void gw_comm_spawn(struct gw_comm *comm, int count, int member_base, char *const *command);
enum gw_spawn { GW_SPAWN_NONE, GW_SPAWN_STARTING, GW_SPAWN_FAILED, GW_SPAWN_WAITING };
/* How far that is; FAILED is said once. */
enum gw_spawn gw_comm_spawned(struct gw_comm *comm);
/* Collective: takes the ranks that wait with rank 0 into the world, at its end. GW_ERR_LOST: the world is as before, or needs a repair. The
 * same deadline as for a repair. */
GW_CHECK gw_err gw_comm_grow(struct gw_comm *comm);

/* The epoch that this rank is in; starts at 0 with every new world. */
void gw_comm_set_epoch(struct gw_comm *comm, uint64_t epoch);
uint64_t gw_comm_epoch(const struct gw_comm *comm);
/* How many ranks share this node's CPUs: whether waiting may spin. */
void gw_comm_set_local(struct gw_comm *comm, int local_size);

/* Says that this rank lives, now and then; call at least every layer of a step. Leader: to all; others: to the leader (rank 0). */
void gw_comm_beat(struct gw_comm *comm);
/* The leader: a rank from which nothing has come for the peer timeout; others: 0 when the leader is silent; else -1. */
int gw_comm_silent(const struct gw_comm *comm);

int gw_comm_rank(const struct gw_comm *comm);
int gw_comm_size(const struct gw_comm *comm);
/* This process's number for life. */
int gw_comm_member(const struct gw_comm *comm);

/* Sends `bytes` of `data` (copied) to `to`; to == own rank is allowed. Local. */
GW_CHECK gw_err gw_comm_send(struct gw_comm *comm, int to, enum gw_msg_kind kind, uint64_t step, const void *data,
                             size_t bytes);
/* Bytes that peers have not taken yet. */
size_t gw_comm_pending_bytes(const struct gw_comm *comm);
/* Takes a message of `kind` from `from` (-1: any) if one is there: *got says so. Local. */
GW_CHECK gw_err gw_comm_poll(struct gw_comm *comm, int from, enum gw_msg_kind kind, struct gw_msg *msg, bool *got);
/* How long a wait for a peer may take: long enough for a silent one to be found first. */
double gw_comm_patience_s(const struct gw_comm *comm);
/* Waits for it; GW_ERR_PEER at the deadline. With `step` >= 0 another step's message is an error. */
GW_CHECK gw_err gw_comm_wait(struct gw_comm *comm, int from, enum gw_msg_kind kind, int64_t step, struct gw_msg *msg);
void gw_msg_free(struct gw_msg *msg);

/* Lets other processes run when there is nothing to do; call once per idle round of a polling loop. `busy` resets the pause. True: it slept, after many
 * rounds. */
bool gw_comm_idle(struct gw_comm *comm, bool busy);

/* ---- tensor shards --------------------------------------------------------------------------------------------- */

struct gw_tree_node; /* engine/tree.h */

/* The shards of one stage, in shard order; ranks[own] is this rank. Borrowed comm. */
struct gw_shards {
    struct gw_comm *comm;
    int count;
    int own;
    const int *ranks;
};

/* Exchange sizes of one kind of sum: how many nodes each shard contributes. */
struct gw_exchange {
    int atoms;
    const struct gw_tree_node *nodes; /* all shards' nodes, shard by shard: left to right */
    const int *node_counts;           /* [shards] */
};

/* Rows [begin, end) of a sum. */
struct gw_sum_rows {
    const float *own_nodes; /* [node][rows][width], read until the sum has ended */
    int rows, width;
    int begin, end;
};

/* sum[rows][width], of which [begin, end) is written, = the tree sum of all shards' nodes. Collective over the shards, in two: begin sends what is at hand and waits for
 * nobody, end adds up. `step` numbers sums, alike on all shards; several may be under way. Few rows: everyone sends its nodes to everyone.
 * Many: each shard reduces a share of the rows and sends the result round. Both give the same bits. */
GW_CHECK gw_err gw_shards_sum_begin(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                                    const struct gw_sum_rows *rows);
GW_CHECK gw_err gw_shards_sum_end(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                                  const struct gw_sum_rows *rows, float *sum);

/* Gathers rows whose columns are spread over the shards: shard s holds columns [column_begin[s], column_begin[s + 1]) of all
 * rows, own[rows][its columns]. Row i goes to shard i % count: full[own rows][all columns], in order. Collective. */
GW_CHECK gw_err gw_shards_rows(const struct gw_shards *shards, uint64_t step, const int *column_begin, const float *own,
                               int rows, float *full);

#endif
