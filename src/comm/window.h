/* The exchange of tensor shards that share a node: memory that all of them map, instead of messages.
 *
 * Each shard's partial sums and logits lie in it from the start, so nothing is sent: a shard counts up when its part is written, waits until the
 * others have, and reads theirs. The memory is a segment of the node's context store, made anew for every plan under a random name, so that a shard
 * of an earlier plan which wakes up late writes to nobody. Every wait notices a loss and has the deadline of comm.h's. The same bits as shards.c.
 */
#ifndef GW_COMM_WINDOW_H
#define GW_COMM_WINDOW_H

#include "comm/comm.h"
#include "store/store.h"

#include <stdbool.h>

struct gw_window;   /* opaque */
struct gw_tree_sum; /* engine/tree.h */

struct gw_window_config {
    const struct gw_shards *shards; /* borrowed */
    struct gw_store *store;         /* borrowed, or NULL: there will be no window */
    int max_rows;                   /* of a step */
    int width;                      /* of partial sums, in floats */
    int max_nodes;                  /* most tree nodes that any shard contributes to a sum */
    const int *vocab_begin;         /* [shards + 1], borrowed; NULL: no logits are exchanged */
};

/* Collective over the shards. *window is NULL on all of them when one of them cannot map the memory, e.g. since it is on another node. */
GW_CHECK gw_err gw_window_open(const struct gw_window_config *config, struct gw_window **window);
/* Local. NULL is fine. */
void gw_window_close(struct gw_window *window);

/* Where a shard puts its nodes of one half of a layer or the other (0, 1: sums take turns in using them), float32 [node][rows][width], and this shard its
 * columns of logits (NULL without), in rows so many floats apart. */
float *gw_window_nodes(const struct gw_window *window, int shard, int half);
float *gw_window_logits(const struct gw_window *window);
size_t gw_window_logits_stride(const struct gw_window *window);

/* Something of this shard's is written, nodes or logits; returns its number, which counts from 1, alike on all shards when all write in the same order. Local. */
uint64_t gw_window_written(struct gw_window *window);
/* Until all shards have written their number `number`; then it may be read. Nodes may be written again once the other half's of the same rows, which their
 * shards wrote after reading these, have been waited for; logits after any later nodes. */
GW_CHECK gw_err gw_window_wait(struct gw_window *window, uint64_t number);

/* After waiting for the nodes of a whole step: each shard adds up a share of the rows. Where shards are many this is less to read than all their nodes, for a second wait.
 * *sum: float32 [rows][width], valid until the nodes of the next half may be written. Collective. */
GW_CHECK gw_err gw_window_sum(struct gw_window *window, const struct gw_tree_sum *nodes, int rows, const float **sum);

/* Local. All columns of a row of logits, after waiting for them. For the shard that draws from it to change. */
float *gw_window_row(const struct gw_window *window, int row);

#endif
