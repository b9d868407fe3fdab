/* The migration plan: an order of moves that turns what the devices hold into what the new layout wants, such that no device holds more than its
 * memory at any point of it. Pure.
 *
 * What a device holds of one layer comes in *parts*, each in one piece of memory: the weights of its kv heads, of its FFN atoms, its rows of
 * the output matrix, the KV of its kv heads. A part whose range stays the same stays where it is. Any other is made anew: it takes its memory when its
 * first range comes, while the old part is still there, and the old one is dropped as a whole when nobody still has to take from it.
 *
 * One move is one range of one part to one device. Its source is another device, the device's own old part, storage (weights: the model file,
 * always the whole part; KV: a checkpoint), or computing anew. Between them stand the drops. Leaving devices' moves come first, then front layers, so that a
 * pipeline's first stages are complete while later ones still receive. When devices are so full that nothing fits, one lets go of weights that
 * are then loaded from storage, and only as a last resort of KV, which is then read from a checkpoint or computed anew as a whole.
 */
#ifndef GW_PLAN_MOVES_H
#define GW_PLAN_MOVES_H

#include "plan/assign.h"

enum { GW_FROM_STORAGE = -1, GW_FROM_RECOMPUTE = -2, GW_TO_NOWHERE = -1 };

struct gw_move {
    enum gw_part part;
    int layer;      /* -1: the output matrix */
    int begin, end; /* kv heads, FFN atoms, rows of the vocabulary, kv heads */
    int from;       /* device, GW_FROM_STORAGE or GW_FROM_RECOMPUTE (KV) */
    int to;         /* device (`from` itself: out of its old part), or GW_TO_NOWHERE: `from` drops its old part */
    int inherit;    /* KV: which of the inherits; else -1 */
    uint64_t bytes; /* that come; a drop: of the old part */
};

/* Where a device gets weights from that it does not hold. */
enum gw_weight_source { GW_WEIGHTS_SOONEST, GW_WEIGHTS_FROM_DEVICES, GW_WEIGHTS_FROM_STORAGE };

struct gw_moves_in {
    const struct gw_dims *dims;
    const struct gw_cost *cost;
    const struct gw_device *devices;
    const struct gw_holding *holdings; /* [device_count] */
    int device_count;
    struct gw_layout layout;
    const int *device_of_slot; /* of gw_assign_places() */
    const struct gw_inherit *inherits;
    int inherit_count;
    const enum gw_weight_source *sources; /* [device_count]; NULL: the soonest */
    bool kv_renewed;                      /* KV parts are made anew also where their range stays */
};

struct gw_moves {
    struct gw_move *moves; /* in order */
    int count;
    uint64_t kept_weight_bytes, kept_kv_bytes;   /* that stay where they are */
    uint64_t moved_weight_bytes, moved_kv_bytes; /* from device to device */
    uint64_t loaded_bytes, restored_bytes;       /* weights, KV from storage */
    uint64_t recomputed_bytes;                   /* KV */
    double seconds;                              /* until the last move is done; computing anew included */
    double recompute_s;                          /* of these: computing anew */
    uint64_t *peak_bytes;                        /* [device_count]: most that each holds on the way */
    bool *tight;      /* [device_count]: it would not fit if nothing was dropped before the end */
    bool *recomputed; /* [inherit_count]: its KV is computed anew */
};

/* GW_ERR_LAYOUT when what a device shall hold in the end, or holds already, is more than its memory. */
GW_CHECK gw_err gw_moves_plan(const struct gw_moves_in *in, struct gw_moves *moves);
void gw_moves_free(struct gw_moves *moves);

/* Replays a plan: every source has what it gives, no device ever holds more than its memory, and each ends with exactly its slice and its KV.
 * GW_ERR_VERIFY with what is wrong (GW_ERR_LAYOUT as gw_moves_plan()). For tests, and cheap enough for an assertion. */
GW_CHECK gw_err gw_moves_check(const struct gw_moves_in *in, const struct gw_moves *moves);

#endif
