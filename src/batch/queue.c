/* See queue.h. A plain array that is searched from end to end: a request is taken from it once in many milliseconds of computing. */
#include "batch/queue.h"

#include <stdlib.h>

void gw_queue_free(struct gw_queue *queue)
{
    free(queue->items);
    *queue = (struct gw_queue){0};
}

void gw_queue_add(struct gw_queue *queue, struct gw_waiting item)
{
    if (queue->count == queue->capacity) {
        queue->capacity = queue->capacity ? 2 * queue->capacity : 256;
        queue->items = gw_realloc(queue->items, (size_t)queue->capacity, sizeof *queue->items);
    }
    queue->items[queue->count++] = item;
}

static void remove_at(struct gw_queue *queue, int at, struct gw_waiting *item)
{
    *item = queue->items[at];
    queue->items[at] = queue->items[--queue->count];
}

bool gw_queue_drop(struct gw_queue *queue, int64_t index, struct gw_waiting *item)
{
    for (int i = 0; i < queue->count; i++) {
        if (queue->items[i].index != index) continue;
        remove_at(queue, i, item);
        return true;
    }
    return false;
}

static bool goes_before(const struct gw_waiting *a, const struct gw_waiting *b)
{
    if (a->begun != b->begun) return a->begun;
    if (!a->begun && a->cost != b->cost) return a->cost > b->cost;
    return a->index < b->index;
}

bool gw_queue_take(struct gw_queue *queue, struct gw_waiting *item)
{
    int next = 0;
    if (queue->count == 0) return false;
    for (int i = 1; i < queue->count; i++)
        if (goes_before(&queue->items[i], &queue->items[next])) next = i;
    remove_at(queue, next, item);
    return true;
}
