/* See tree.h. Merge counts come from one fact: a leaf (or whole node) that ends at e closes every tree node that also ends at e
 * and began before it. */
#include "engine/tree.h"

#include <string.h>

static int split_of(int begin, int end)
{
    int half = 1;
    while (half * 2 < end - begin) half *= 2;
    return begin + half;
}

static void collect(int begin, int end, int from, int to, struct gw_tree_node *nodes, int *count)
{
    if (to <= begin || end <= from) return;
    if (from <= begin && end <= to) {
        GW_ASSERT(*count < GW_TREE_MAX_NODES);
        nodes[(*count)++] = (struct gw_tree_node){begin, end};
        return;
    }
    int middle = split_of(begin, end);
    collect(begin, middle, from, to, nodes, count);
    collect(middle, end, from, to, nodes, count);
}

int gw_tree_nodes(int atoms, int begin, int end, struct gw_tree_node nodes[GW_TREE_MAX_NODES])
{
    GW_ASSERT(0 <= begin && begin <= end && end <= atoms && atoms <= GW_TREE_MAX_ATOMS);
    int count = 0;
    if (begin < end) collect(0, atoms, begin, end, nodes, &count);
    return count;
}

/* Merges due after the part [part_begin, part_end) within the subtree [begin, end). */
static int merges_after(int begin, int end, int part_begin, int part_end)
{
    int merges = 0;
    while (begin != part_begin || end != part_end) {
        if (end == part_end) merges++;
        int middle = split_of(begin, end);
        if (part_begin < middle) end = middle;
        else begin = middle;
    }
    return merges;
}

void gw_tree_program(int atoms, int begin, int end, const int *block_ends, struct gw_atom *program)
{
    struct gw_tree_node nodes[GW_TREE_MAX_NODES];
    int count = gw_tree_nodes(atoms, begin, end, nodes);
    for (int n = 0; n < count; n++)
        for (int leaf = nodes[n].begin; leaf < nodes[n].end; leaf++)
            program[leaf - begin] = (struct gw_atom){
                .block_end = block_ends[leaf - begin],
                .merges = merges_after(nodes[n].begin, nodes[n].end, leaf, leaf + 1),
                .node = leaf + 1 == nodes[n].end ? n : -1,
            };
}

struct gw_tree_sum gw_tree_whole(const float *const *value)
{
    static const struct gw_tree_node all = {0, 1};
    return (struct gw_tree_sum){.atoms = 1, .node_count = 1, .nodes = &all, .values = value};
}

/* to = a + b; `to` may be `a`. Blocks of constant size are what compilers make vectors of. */
static void add(float *to, const float *a, const float *b, size_t count)
{
    enum { BLOCK = 16 };
    size_t i = 0;
    for (; i + BLOCK <= count; i += BLOCK) {
        float sum[BLOCK];
        for (size_t j = 0; j < BLOCK; j++) sum[j] = a[i + j] + b[i + j];
        memcpy(to + i, sum, sizeof sum);
    }
    for (; i < count; i++) to[i] = a[i] + b[i];
}

void gw_tree_reduce(const struct gw_tree_sum *sum, size_t begin, size_t count, float *to)
{
    const struct gw_tree_node *nodes = sum->nodes;
    const int node_count = sum->node_count;
    enum { STRIP = 512 }; /* elements a time, so that the stack of partial sums stays in the first-level cache */
    float merged[GW_MAX_TREE_DEPTH][STRIP];
    const float *stack[GW_MAX_TREE_DEPTH]; /* values as they came, or merged ones */
    int merges[GW_TREE_MAX_ATOMS];
    GW_ASSERT(node_count > 0 && node_count <= GW_TREE_MAX_ATOMS && nodes[0].begin == 0 &&
              nodes[node_count - 1].end == sum->atoms);
    for (int v = 0; v < node_count; v++) {
        GW_ASSERT(v == 0 || nodes[v].begin == nodes[v - 1].end);
        merges[v] = merges_after(0, sum->atoms, nodes[v].begin, nodes[v].end);
    }
    for (size_t at = 0; at < count; at += STRIP) {
        size_t strip = count - at < STRIP ? count - at : STRIP;
        int depth = 0;
        for (int v = 0; v < node_count; v++) {
            GW_ASSERT(depth < GW_MAX_TREE_DEPTH);
            stack[depth++] = sum->values[v] + begin + at;
            for (int m = 0; m < merges[v]; m++, depth--) {
                add(merged[depth - 2], stack[depth - 2], stack[depth - 1], strip);
                stack[depth - 2] = merged[depth - 2];
            }
        }
        GW_ASSERT(depth == 1);
        memcpy(to + at, stack[0], strip * sizeof(float));
    }
}
