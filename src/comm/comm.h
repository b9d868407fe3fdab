/* The world of ranks: start and end of MPI, messages with a header, and the exchange of tree nodes between tensor shards.
 *
 * Only point-to-point MPI is on the data path. Every message starts with a header (epoch, kind, step, length, checksum), so a
 * late, torn or misdirected one is noticed instead of computed with. Sends never block: the library keeps the data until the peer
 * has taken it. Receives that wait have a deadline and fail with GW_ERR_PEER, naming the rank that was waited for. One thread per rank uses a comm.
 */
#ifndef GW_COMM_COMM_H
#define GW_COMM_COMM_H

#include "base/mem.h"

#include <stdint.h>

struct gw_comm; /* opaque */

/* Message kinds; each is an MPI tag, so kinds never overtake or block each other. */
enum gw_msg_kind {
    GW_MSG_HELLO = 1, /* rank -> leader: pid and host */
    GW_MSG_WANT,      /* head -> leader: how many requests it can take */
    GW_MSG_ASSIGN,    /* leader -> head: requests */
    GW_MSG_RESULT,    /* head -> leader: a finished request */
    GW_MSG_STOP,      /* leader -> heads -> workers: end of the job */
    GW_MSG_BYE,       /* head -> leader: its last message */
    GW_MSG_STEP,      /* head -> workers: a step to compute */
    GW_MSG_HIDDEN,    /* stage -> next stage: hidden rows of a step */
    GW_MSG_LOGITS,    /* shard -> sampling shard: its vocabulary's logits */
    GW_MSG_DRAWN,     /* last stage -> head: the step's tokens */
    GW_MSG_NODES,     /* shard -> shard: partial sums */
    GW_MSG_SUM,       /* shard -> shard: reduced rows */
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

/* Starts MPI (collective over the world). `peer_timeout_s` bounds every wait for a peer. */
GW_CHECK gw_err gw_comm_create(double peer_timeout_s, struct gw_comm **comm);
/* Waits for outstanding sends, then ends MPI (collective). After an error use gw_comm_abort. */
GW_CHECK gw_err gw_comm_destroy(struct gw_comm *comm);
/* Ends the whole launch with an exit code. Never returns. */
_Noreturn void gw_comm_abort(struct gw_comm *comm, int exit_code);

int gw_comm_rank(const struct gw_comm *comm);
int gw_comm_size(const struct gw_comm *comm);
/* Among the ranks of this node. */
int gw_comm_local_rank(const struct gw_comm *comm);
int gw_comm_local_size(const struct gw_comm *comm);

/* Sends `bytes` of `data` (copied) to `to`; to == own rank is allowed. Local. */
GW_CHECK gw_err gw_comm_send(struct gw_comm *comm, int to, enum gw_msg_kind kind, uint64_t step, const void *data,
                             size_t bytes);
/* Takes a message of `kind` from `from` (-1: any) if one is there: *got says so. Local. */
GW_CHECK gw_err gw_comm_poll(struct gw_comm *comm, int from, enum gw_msg_kind kind, struct gw_msg *msg, bool *got);
/* Waits for it; GW_ERR_PEER at the deadline. With `step` >= 0 another step's message is an error. */
GW_CHECK gw_err gw_comm_wait(struct gw_comm *comm, int from, enum gw_msg_kind kind, int64_t step, struct gw_msg *msg);
void gw_msg_free(struct gw_msg *msg);

/* Lets other processes run when there is nothing to do; call once per idle round of a polling loop. `busy` resets the pause. */
void gw_comm_idle(struct gw_comm *comm, bool busy);

/* Minimum / sum over the node or the world, for planning at start (collective). */
GW_CHECK gw_err gw_comm_min_u64(struct gw_comm *comm, uint64_t *value);

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

/* sum[rows][width] = the tree sum of all shards' nodes; own_nodes is [node][rows][width]. Collective over the shards.
 * Few rows: everyone sends its nodes to everyone. Many: each shard reduces a share of the rows and sends the result round.
 * Both give the same bits. */
GW_CHECK gw_err gw_shards_sum(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                              const float *own_nodes, int rows, int width, float *sum);

/* Gathers rows whose columns are spread over the shards: shard s holds columns [column_begin[s], column_begin[s + 1]) of all
 * rows, own[rows][its columns]. Row i goes to shard i % count: full[own rows][all columns], in order. Collective. */
GW_CHECK gw_err gw_shards_rows(const struct gw_shards *shards, uint64_t step, const int *column_begin, const float *own,
                               int rows, float *full);

#endif
