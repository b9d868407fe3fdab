/* The fixed summation tree: however the atoms are dealt out over shards, nodes + program + reduce give the bits of a naive recursive
 * sum over all atoms. All partitions into runs are tried up to 16 atoms, random ones (seed printed) up to 256. */
#include "base/philox.h"
#include "engine/tree.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COUNT = 1100 }; /* elements of a sum: over two strips of gw_tree_reduce and a bit */

static const uint64_t seed = 20240611;
static uint64_t draws;

static int next_int(int bound)
{
    return (int)(gw_philox_uniform(seed, 1, draws++) * bound);
}

/* Magnitudes from 2^-20 to 2^20: another order of additions gives other bits. */
static float next_float(void)
{
    float x = (float)(gw_philox_uniform(seed, 2, draws++) - 0.5);
    int shift = next_int(41) - 20;
    return shift < 0 ? x / (float)(1 << -shift) : x * (float)(1 << shift);
}

static float leaves[GW_TREE_MAX_ATOMS][MAX_COUNT];

static void fill(int atoms, int count)
{
    for (int a = 0; a < atoms; a++)
        for (int i = 0; i < count; i++) leaves[a][i] = next_float();
}

/* The definition, spelled out: split at the largest power of two below n. */
static int naive_split(int n)
{
    int half = 1;
    while (2 * half < n) half *= 2;
    return half;
}

static float naive_sum(int begin, int end, int i)
{
    if (end - begin == 1) return leaves[begin][i];
    int middle = begin + naive_split(end - begin);
    float left = naive_sum(begin, middle, i), right = naive_sum(middle, end, i);
    return left + right;
}

static bool is_tree_node(int begin, int end, int node_begin, int node_end)
{
    while (begin != node_begin || end != node_end) {
        if (end - begin <= 1) return false;
        int middle = begin + naive_split(end - begin);
        if (node_end <= middle) end = middle;
        else if (node_begin >= middle) begin = middle;
        else return false;
    }
    return true;
}

/* The parent of a node that is not the root. */
static struct gw_tree_node parent_of(int atoms, struct gw_tree_node node)
{
    int begin = 0, end = atoms;
    for (;;) {
        int middle = begin + naive_split(end - begin);
        struct gw_tree_node here = {begin, end};
        if (node.end <= middle) end = middle;
        else begin = middle;
        if (begin == node.begin && end == node.end) return here;
    }
}

/* What a shard's GEMM does with its program: fills values[node] for element i. False when the program is not sound. */
static bool run_program(int begin, int end, const struct gw_atom *program, int node_count, int i, float *values)
{
    float stack[GW_MAX_TREE_DEPTH];
    int depth = 0, next_node = 0;
    for (int leaf = begin; leaf < end; leaf++) {
        const struct gw_atom *atom = &program[leaf - begin];
        if (depth == GW_MAX_TREE_DEPTH) return false;
        stack[depth++] = leaves[leaf][i];
        for (int m = 0; m < atom->merges; m++, depth--) {
            if (depth < 2) return false;
            stack[depth - 2] = stack[depth - 2] + stack[depth - 1];
        }
        if (atom->node < 0) continue;
        if (atom->node != next_node++ || depth != 1) return false;
        values[atom->node] = stack[--depth];
    }
    return depth == 0 && next_node == node_count;
}

/* ends[s]: where shard s ends; the last is `atoms`. Returns false on the first thing wrong. */
static bool check_partition(int atoms, const int *ends, int shards, int count)
{
    static float values[GW_TREE_MAX_ATOMS][MAX_COUNT];
    struct gw_tree_node all[GW_TREE_MAX_ATOMS];
    const float *pointers[GW_TREE_MAX_ATOMS];
    int total = 0, begin = 0;
    for (int s = 0; s < shards; begin = ends[s++]) {
        struct gw_tree_node nodes[GW_TREE_MAX_NODES];
        struct gw_atom program[GW_TREE_MAX_ATOMS];
        int block_ends[GW_TREE_MAX_ATOMS], end = ends[s];
        int node_count = gw_tree_nodes(atoms, begin, end, nodes);
        if ((node_count == 0) != (begin == end)) return false;
        for (int leaf = begin, block = 0; leaf < end; leaf++) block_ends[leaf - begin] = block += 1 + leaf % 3;
        gw_tree_program(atoms, begin, end, block_ends, program);
        for (int leaf = begin; leaf < end; leaf++)
            if (program[leaf - begin].block_end != block_ends[leaf - begin]) return false;
        for (int n = 0, at = begin; n < node_count; at = nodes[n++].end) {
            if (nodes[n].begin != at || !is_tree_node(0, atoms, nodes[n].begin, nodes[n].end)) return false;
            if (nodes[n].end - nodes[n].begin == atoms) continue;
            struct gw_tree_node parent = parent_of(atoms, nodes[n]); /* a whole parent would be the node */
            if (parent.begin >= begin && parent.end <= end) return false;
        }
        if (node_count && nodes[node_count - 1].end != end) return false;
        for (int i = 0; i < count; i++) {
            float mine[GW_TREE_MAX_NODES];
            if (!run_program(begin, end, program, node_count, i, mine)) return false;
            for (int n = 0; n < node_count; n++) values[total + n][i] = mine[n];
        }
        for (int n = 0; n < node_count; n++, total++) {
            all[total] = nodes[n];
            pointers[total] = values[total];
        }
    }
    static float sum[MAX_COUNT + 1];
    sum[count] = 42;
    const struct gw_tree_sum tree = {.atoms = atoms, .node_count = total, .nodes = all, .values = pointers};
    size_t half = (size_t)next_int(count + 1); /* in two goes, as rows are */
    gw_tree_reduce(&tree, half, (size_t)count - half, sum + half);
    gw_tree_reduce(&tree, 0, half, sum);
    for (int i = 0; i < count; i++) {
        float wanted = naive_sum(0, atoms, i);
        if (memcmp(&wanted, &sum[i], sizeof wanted) != 0) return false;
    }
    return sum[count] == 42;
}

static void test_all_partitions(void)
{
    for (int atoms = 1; atoms <= 16; atoms++) {
        fill(atoms, 2);
        for (unsigned cuts = 0; cuts < 1u << (atoms - 1); cuts++) {
            int ends[17], shards = 0;
            for (int a = 1; a < atoms; a++)
                if (cuts >> (a - 1) & 1) ends[shards++] = a;
            ends[shards++] = atoms;
            if (!check_partition(atoms, ends, shards, 2)) {
                printf("atoms %d cuts %x ", atoms, cuts);
                CU_FAIL("a partition gives another sum");
                return;
            }
        }
    }
}

/* Beyond that, all ways to deal out to two or three shards, empty runs among them. */
static void test_two_and_three(void)
{
    for (int atoms = 17; atoms <= 24; atoms++) {
        fill(atoms, 2);
        for (int first = 0; first <= atoms; first++)
            for (int second = first; second <= atoms; second++) { /* second == atoms: two shards and an empty one */
                int ends[3] = {first, second, atoms};
                if (check_partition(atoms, ends, 3, 2)) continue;
                printf("atoms %d cut at %d and %d ", atoms, first, second);
                CU_FAIL("a partition gives another sum");
                return;
            }
    }
}

/* Random runs, empty ones among them: a shard may own no kv head. */
static void test_random_partitions(void)
{
    static const int more[] = {31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256};
    printf("(seed %llu) ", (unsigned long long)seed);
    for (int atoms = 17; atoms <= 24 + (int)(sizeof more / sizeof *more); atoms++) {
        int n = atoms <= 24 ? atoms : more[atoms - 25];
        fill(n, 2);
        for (int round = 0; round < 300; round++) {
            int ends[GW_TREE_MAX_ATOMS], shards = 0, at = 0;
            int longest = 1 + next_int(n);
            while (at < n && shards < GW_TREE_MAX_ATOMS - 1) {
                at += next_int(longest + 1);
                ends[shards++] = at < n ? at : n;
            }
            if (ends[shards - 1] < n) ends[shards++] = n;
            if (!check_partition(n, ends, shards, 2)) {
                printf("atoms %d round %d ", n, round);
                CU_FAIL("a partition gives another sum");
                return;
            }
        }
    }
}

static void test_long_rows(void)
{
    static const int counts[] = {1, 511, 512, 513, 1024, MAX_COUNT};
    static const int ends[] = {2, 7, 7, 9};
    fill(9, MAX_COUNT);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) CU_ASSERT(check_partition(9, ends, 4, counts[i]));
}

/* The oracle can tell: adding from left to right gives other bits than the tree does. */
static void test_order_matters(void)
{
    int differ = 0;
    fill(9, 100);
    for (int i = 0; i < 100; i++) {
        float sum = leaves[0][i];
        for (int a = 1; a < 9; a++) sum = sum + leaves[a][i];
        differ += sum != naive_sum(0, 9, i);
    }
    CU_ASSERT(differ > 10);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("tree", NULL, NULL);
    CU_add_test(suite, "all partitions", test_all_partitions);
    CU_add_test(suite, "two and three shards", test_two_and_three);
    CU_add_test(suite, "random partitions", test_random_partitions);
    CU_add_test(suite, "long rows", test_long_rows);
    CU_add_test(suite, "order matters", test_order_matters);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
