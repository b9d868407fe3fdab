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

struct gw_window; /* opaque */

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

/* Where this shard puts its nodes, float32 [node][rows][width], and its logits, [rows][its vocabulary] (NULL without). */
float *gw_window_nodes(const struct gw_window *window);
float *gw_window_logits(const struct gw_window *window);

/* *sum = the tree sum of all shards' nodes, float32 [rows][width], valid until the next call. Collective; the nodes may be written again after it. */
GW_CHECK gw_err gw_window_sum(struct gw_window *window, const struct gw_exchange *exchange, int rows,
                              const float **sum);

/* This shard's logits are written; waits until the others' are. Collective; they may be written again after the next gw_window_sum(). */
GW_CHECK gw_err gw_window_logits_written(struct gw_window *window);
/* Local, for any thread. A row of logits, all columns of it: where it is read next is a cache, which a copy of many rows would not stay in. */
void gw_window_row(const struct gw_window *window, int row, float *full);

#endif
