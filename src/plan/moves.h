/* The migration plan: an order of moves that turns what the devices hold into what the new layout wants, such that no device holds more than its
 * memory at any point of it. Pure.
 *
 * One move is one range of one layer to one device: a run of kv heads' or FFN atoms' weights, rows of the output matrix, or the KV of a run of
 * kv heads of one inheritance. Its source is another device, storage (weights: the model file; KV: a checkpoint), or computing anew. Between them
 * stand drops: a device lets go of what it does not need any more as soon as nobody still has to take it from there.
 * Leaving devices' moves come first, then front layers, so that a pipeline's first stages are complete while later ones still receive.
 * What cannot fit is cut smaller; when devices are so full that not even that helps, one lets go of weights that others then load from
 * storage, and only as a last resort of KV, which is then read from a checkpoint or computed anew as a whole.
 */
#ifndef GW_PLAN_MOVES_H
#define GW_PLAN_MOVES_H

#include "plan/assign.h"

enum gw_move_kind { GW_MOVE_HEADS, GW_MOVE_ATOMS, GW_MOVE_OUTPUT, GW_MOVE_KV };

enum { GW_FROM_STORAGE = -1, GW_FROM_RECOMPUTE = -2, GW_TO_NOWHERE = -1 };

struct gw_move {
    enum gw_move_kind kind;
    int layer;      /* -1: the output matrix */
    int begin, end; /* kv heads, FFN atoms, rows of the vocabulary, kv heads */
    int from;       /* device, GW_FROM_STORAGE or GW_FROM_RECOMPUTE (KV) */
    int to;         /* device, or GW_TO_NOWHERE: `from` drops it */
    int inherit;    /* KV: which of the inherits. A drop of KV: the old replica */
    uint64_t bytes;
};

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
    bool *recomputed;                            /* [inherit_count]: its KV is computed anew */
};

/* GW_ERR_LAYOUT when what a device shall hold in the end, or holds already, is more than its memory. */
GW_CHECK gw_err gw_moves_plan(const struct gw_moves_in *in, struct gw_moves *moves);
void gw_moves_free(struct gw_moves *moves);

/* Replays a plan: every source has what it gives, no device ever holds more than its memory, and each ends with exactly its slice and its KV.
 * GW_ERR_VERIFY with what is wrong (GW_ERR_LAYOUT as gw_moves_plan()). For tests, and cheap enough for an assertion. */
GW_CHECK gw_err gw_moves_check(const struct gw_moves_in *in, const struct gw_moves *moves);

#endif
