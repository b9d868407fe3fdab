/* Requests that wait to be handed out, in the order that keeps the end of a batch short: the longest first.
 *
 * A batch ends when its last sequence does. If long requests start late, the last steps have a few rows each, and a step of few rows costs nearly
 * as much as one of many. So the longest of those that wait goes first, and the short ones fill up the end. The input is a stream of maybe
 * millions of lines: the queue holds a window of it (GW_QUEUE_WINDOW), and requests that a lost replica gave back. Those whose tokens are
 * committed in part go before all others, in the order of the input. What is generated does not depend on any of this. Pure.
 */
#ifndef GW_BATCH_QUEUE_H
#define GW_BATCH_QUEUE_H

#include "base/mem.h"

#include <stdint.h>

enum {
    GW_QUEUE_WINDOW = 4096
}; /* requests to choose from: to search it takes microseconds, and the order matters at the end only */

struct gw_waiting {
    int64_t index; /* line of the input */
    int64_t cost;  /* how long it may take; any unit */
    bool begun;    /* some of its tokens are committed */
};

/* Zero it to begin. */
struct gw_queue {
    struct gw_waiting *items; /* in no order */
    int count, capacity;
};

void gw_queue_free(struct gw_queue *queue);
void gw_queue_add(struct gw_queue *queue, struct gw_waiting item);
/* Takes request `index` out, if it waits. */
bool gw_queue_drop(struct gw_queue *queue, int64_t index, struct gw_waiting *item);
/* Takes out the one that goes next; false when none waits. */
bool gw_queue_take(struct gw_queue *queue, struct gw_waiting *item);

#endif
