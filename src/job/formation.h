/* How a world comes to a plan: every rank says who it is and what it holds (GW_MSG_HELLO), the leader answers with who stands where
 * from now on and who takes over what from whom (GW_MSG_PLAN). These are the two messages. Local, pure.
 *
 * A plan numbers the replicas of its layout anew. A replica is *kept* when its ranks, its slices and its pages stay as they are: it
 * goes on with the steps it has. Every other replica of the plan is built anew, from what its ranks hold.
 *
 * KV pages move by *adoptions*: the new head of some sequences finds pages for them and tells the ranks on both sides which page
 * becomes which (GW_MSG_ADOPT); who sends which layers and heads follows from the two layouts (job/mover.h).
 */
#ifndef GW_JOB_FORMATION_H
#define GW_JOB_FORMATION_H

#include "base/mem.h"
#include "engine/backend.h"
#include "plan/moves.h"

enum { GW_HOST_BYTES = 80, GW_NODE_BYTES = 64, GW_KERNELS_BYTES = 16 };

/* A sequence that a head has: its request, and the pages with the KV of its first `computed` tokens. */
struct gw_held {
    int64_t index;
    int32_t computed, page_count;
    int32_t *pages; /* owned */
};

/* One process, as the others know it. */
struct gw_peer {
    int32_t member; /* for life */
    int64_t pid;
    uint64_t started; /* of the process, in clock ticks: tells it from a later one with the same pid */
    char host[GW_HOST_BYTES];
    /* its place in the plan before this one */
    bool placed; /* it has one, and what belongs to it is complete */
    struct gw_place before;
    bool
        resumed; /* it has taken the place over from a process that is gone, memory and all; steps and schedule are not in memory */
    /* its place in this plan; plan only */
    int32_t slot; /* gw_layout_rank() of its place, or -1: it waits, or leaves */
    int32_t local_rank, local_size;
};

struct gw_hello {
    struct gw_peer peer;
    char node[GW_NODE_BYTES]; /* the agent's name for its node (job/handover.h); "": there are no agents */
    int32_t packed;  /* the weights that it will most likely be given lie in its node's store (job/rehearsal.h) */
    uint64_t memory; /* bytes it may use */
    int32_t cpus;
    double gops;                    /* of one thread, measured (engine/speed.h); 0: it was not */
    char kernels[GW_KERNELS_BYTES]; /* the kernel table that it runs */
    uint64_t plan;                  /* in which it has its place, and that plan's layout and pages */
    struct gw_layout layout;
    int32_t kv_pages;
    struct gw_held *held; /* of a head; owned */
    int32_t held_count;
};

void gw_hello_encode(const struct gw_hello *hello, struct gw_buf *out);
GW_CHECK gw_err gw_hello_decode(const uint8_t *data, size_t bytes, struct gw_hello *hello);
void gw_hello_free(struct gw_hello *hello);

/* Sequences of an old replica go to a new one with their KV. */
struct gw_adoption {
    int32_t from;         /* replica of the layout before */
    int32_t to;           /* replica of this layout */
    struct gw_held *held; /* with the old pages; owned */
    int32_t held_count;
};

struct gw_plan {
    uint64_t number; /* of the job's plans, counted over its launches */
    struct gw_layout before, layout;
    int32_t kv_pages;
    struct gw_peer *peers; /* [rank]; owned */
    int32_t peer_count;
    int32_t *kept; /* [layout.data]: the old replica's number, or -1; owned */
    struct gw_adoption *adoptions;
    int32_t adoption_count;
    /* In order, devices are ranks, inherits adoptions (plan/moves.h); owned. What a rank loads when it takes its place, and what it drops only when all
     * is done, is not among them: these stand here for ranks whose memory would not hold both the old and the new. */
    struct gw_move *moves;
    int32_t move_count;
};

void gw_plan_encode(const struct gw_plan *plan, struct gw_buf *out);
GW_CHECK gw_err gw_plan_decode(const uint8_t *data, size_t bytes, struct gw_plan *plan);
void gw_plan_free(struct gw_plan *plan);

/* The rank in `slot`; -1 if nobody stands there. */
int gw_plan_rank(const struct gw_plan *plan, int slot);
/* The rank that stood at `place` of the layout before; -1 if it is gone. */
int gw_plan_rank_before(const struct gw_plan *plan, struct gw_place place);

/* GW_MSG_ADOPT: of adoption number `step`, old page from[i] becomes page to[i]. */
struct gw_page_map {
    int32_t count;
    const int32_t *from, *to; /* in the message */
};
void gw_page_map_encode(const int32_t *from, const int32_t *to, int count, struct gw_buf *out);
GW_CHECK gw_err gw_page_map_decode(const uint8_t *data, size_t bytes, struct gw_page_map *map);

#endif
