/* Who stands where: the mapping of devices to the places of a layout that keeps most bytes of weights and KV where they are. Pure.
 *
 * SpotServe (Miao et al., ASPLOS 2024, section 3.3): a bipartite graph of devices and places, an edge's weight is what can stay, solved exactly by
 * Kuhn-Munkres. All replicas' places are in one graph. KV counts only towards the replica that takes over the sequences it belongs to
 * (struct gw_inherit).
 */
#ifndef GW_PLAN_ASSIGN_H
#define GW_PLAN_ASSIGN_H

#include "plan/cost.h"

/* ---- maximum-weight matching ----------------------------------------------------------------------------------- */

#define GW_ASSIGN_FORBIDDEN INT64_MIN

/* Matches rows to columns, weights[row * cols + col], |weight| < 2^50: as many as can be without a forbidden edge, and of those matchings the one of
 * greatest sum. of_row[row]: column or -1. Exact, O(n^3) (Kuhn 1955, Munkres 1957). Returns the number matched. */
int gw_assign_max(int rows, int cols, const int64_t *weights, int *of_row);

/* ---- what a device holds --------------------------------------------------------------------------------------- */

/* Bytes of the smallest things that move. */
struct gw_unit_bytes {
    uint64_t head;     /* weights of one kv head (its query heads with it) in one layer */
    uint64_t atom;     /* weights of one FFN atom in one layer */
    uint64_t row;      /* one row of the output matrix */
    uint64_t kv_token; /* KV of one token, one layer, one kv head */
};
struct gw_unit_bytes gw_unit_bytes(const struct gw_dims *dims);

struct gw_holding {
    bool weights;          /* holds the weights of `shard` */
    struct gw_shard shard; /* of the old layout; also the extent of its KV */
    int replica;           /* old replica whose KV it holds; -1: none */
};

/* Sequences of the old replica `from` go to the new replica `to`. An old one may be shared out over several new ones, and several may come together. */
struct gw_inherit {
    int from, to;       /* to -1: nobody wants them any more, but they take memory (gw_moves_plan() only) */
    uint64_t kv_tokens; /* of these sequences */
    bool checkpointed;  /* what is lost can be read from a checkpoint; else it is computed anew */
};

/* ---- places ---------------------------------------------------------------------------------------------------- */

struct gw_assign {
    const struct gw_dims *dims;
    const struct gw_device *devices;
    const struct gw_holding *holdings; /* [device_count] */
    int device_count;
    struct gw_layout layout;
    const double *slot_bytes; /* [ranks of layout]: memory that the place needs; NULL: weights alone */
    const double *slot_speed; /* [ranks of layout]: least speed of a device there; NULL: any */
    const struct gw_inherit *inherits;
    int inherit_count;
};

/* device_of_slot[ranks of layout]: the mapping that keeps most. Shards of one stage stay on one node where all stages can have that.
 * Devices that leave get no place. GW_ERR_LAYOUT when a place stays empty. `*kept_bytes` may be NULL. */
GW_CHECK gw_err gw_assign_places(const struct gw_assign *assign, int *device_of_slot, uint64_t *kept_bytes);

/* Bytes of weights and KV that can stay on `device` if it takes `slot`. */
uint64_t gw_assign_kept_bytes(const struct gw_assign *assign, int device, int slot);

/* Which new replica takes over which old one's sequences so that most can stay: kv_tokens[old] tokens each of `old_count` replicas. Every
 * old replica with tokens gets one new one, no new one gets a second before all have one. Fills inherits[old_count], sets *count. The `inherits`
 * of `assign` are not read. */
void gw_assign_inherits(const struct gw_assign *assign, int old_count, const uint64_t *kv_tokens,
                        struct gw_inherit *inherits, int *count);

#endif
