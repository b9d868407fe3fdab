/* The fixed tree that adds partial sums of tensor-parallel shards: always the same order, wherever the parts were computed.
 *
 * What tensor parallelism sums (attention output over kv heads, FFN down projection over slices) is cut into `atoms` parts. They are the
 * leaves of a left-complete binary tree: a node over n > 1 leaves splits at the largest power of two below n. A shard owns a
 * run of leaves; the run decomposes into maximal whole nodes, which the shard's GEMM adds up itself. Shards exchange those nodes,
 * and the rest of the tree is added from them. So the sum has one shape on one rank as on many. Pure.
 */
#ifndef GW_ENGINE_TREE_H
#define GW_ENGINE_TREE_H

#include "kernels/kernels.h"

#define GW_TREE_MAX_ATOMS GW_MAX_ATOMS
#define GW_TREE_MAX_NODES 32 /* maximal nodes of one run: at most 2 * depth */

struct gw_tree_node {
    int begin, end; /* leaves */
};

/* The maximal whole nodes of leaves [begin, end), left to right; returns their number (0 for an empty run). */
int gw_tree_nodes(int atoms, int begin, int end, struct gw_tree_node nodes[GW_TREE_MAX_NODES]);

/* The GEMM program for leaves [begin, end): one gw_atom per leaf, `block_ends[i]` being the end (in blocks of 32, relative to the
 * run's start) of leaf begin + i. Node indices are those of gw_tree_nodes. */
void gw_tree_program(int atoms, int begin, int end, const int *block_ends, struct gw_atom *program);

/* A sum over all leaves, yet to be added up: nodes that together cover them, left to right. All borrowed. */
struct gw_tree_sum {
    int atoms;
    int node_count;
    const struct gw_tree_node *nodes; /* [node_count] */
    const float *const *values;       /* [node_count]: node v's array, all equally long */
};

/* A sum that is added up already: *value is its array. */
struct gw_tree_sum gw_tree_whole(const float *const *value);

/* to[0 .. count) = elements [begin, begin + count) of the sum. `to` may not alias a value. */
void gw_tree_reduce(const struct gw_tree_sum *sum, size_t begin, size_t count, float *to);

#endif
