/* The inside of the migration planner, shared by moves.c (the order), moves_grid.c (what is held and needed) and moves_check.c (the replay).
 *
 * The smallest things that move are numbered as cells: a kv head's or FFN atom's weights in one layer, 64 rows of the output matrix, the KV of one
 * inheritance in one layer and kv head. A line is all cells of one kind and layer; what a device holds of a line is a part. Each device has flags per cell:
 * held (in the old part), needed, here (where it is needed).
 */
#ifndef GW_PLAN_MOVES_GRID_H
#define GW_PLAN_MOVES_GRID_H

#include "plan/moves.h"

enum { HELD = 1, NEEDED = 2, HERE = 4, STALE = 8 }; /* STALE: only in the check */

struct line {
    enum gw_part part;
    int layer, inherit; /* layer: -1 for the output matrix */
    int first, count;   /* cells */
    uint64_t bytes;     /* of a cell; the output's last one may have less */
};

/* The old and the new part of one device in one line. */
struct span {
    int held, held_end, needed, needed_end; /* cells of the line */
    bool same;                              /* the old part is the new one */
};

struct grid {
    const struct gw_moves_in *in;
    struct gw_unit_bytes unit;
    struct line *lines; /* in the order in which they are wanted: front layers first, the output matrix last */
    int line_count, cells;
    int *slot_of;       /* [device]: -1: none */
    struct span *spans; /* [device][line] */
};

void gw_moves_open_grid(struct grid *g, const struct gw_moves_in *in);
void gw_moves_close_grid(struct grid *g);
const struct span *gw_moves_span_of(const struct grid *g, int device, int line);
/* Bytes of cells [begin, end) of a line; of the old and the new part of a device. */
uint64_t gw_moves_run_bytes(const struct grid *g, const struct line *line, int begin, int end);
uint64_t gw_moves_held_bytes(const struct grid *g, int device, int line);
uint64_t gw_moves_needed_bytes(const struct grid *g, int device, int line);
/* Flags of all devices [device][cell], the new parts that have their memory [device][line], and the bytes that devices hold (`used`) and will hold
 * (`wanted`); added to what is there. */
void gw_moves_set_flags(const struct grid *g, uint8_t *flags, bool *opened, uint64_t *used, uint64_t *wanted);
/* GW_ERR_LAYOUT when a device holds or shall hold more than its memory. */
GW_CHECK gw_err gw_moves_check_memory(const struct gw_moves_in *in, const uint64_t *used, const uint64_t *wanted);

#endif
