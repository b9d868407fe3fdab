/* See policy.h. */
#include "context/policy.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

/* ---- when ------------------------------------------------------------------------------------------------------------ */

struct gw_ckpt_policy gw_ckpt_policy_default(void)
{
    return (
        struct gw_ckpt_policy){.max_overhead = 0.02, .min_interval_s = 1, .max_interval_s = 600, .prior_mtbf_s = 3600};
}

void gw_ckpt_policy_cost(struct gw_ckpt_policy *policy, double cost_s)
{
    policy->cost_s = policy->cost_s > 0 ? 0.5 * (policy->cost_s + cost_s) : cost_s;
}

/* Posterior of a failure rate under a gamma prior worth one failure in prior_mtbf_s. */
double gw_ckpt_policy_mtbf_s(const struct gw_ckpt_policy *policy)
{
    return (policy->prior_mtbf_s + policy->running_s) / (1 + policy->failures);
}

double gw_ckpt_policy_interval_s(const struct gw_ckpt_policy *policy)
{
    double interval = sqrt(2 * policy->cost_s * gw_ckpt_policy_mtbf_s(policy));
    interval = fmin(fmax(interval, policy->min_interval_s), policy->max_interval_s);
    return fmax(interval, policy->cost_s / policy->max_overhead); /* the bound on overhead counts most */
}

bool gw_ckpt_policy_worth(const struct gw_ckpt_policy *policy, double since_s, double left_s)
{
    return since_s * left_s >= policy->cost_s * gw_ckpt_policy_mtbf_s(policy);
}

double gw_ckpt_policy_budget_s(const struct gw_ckpt_policy *policy)
{
    return policy->max_overhead * gw_ckpt_policy_interval_s(policy);
}

/* ---- what first ------------------------------------------------------------------------------------------------------- */

/* A block is a page together with those pages under it that are worth more per byte, so that whoever saves its first page goes
 * straight on. The blocks that may come next form heaps: each block keeps a heap of the blocks right under it. All arrays are
 * indexed by a block's first page. */
struct blocks {
    double *value, *bytes;
    int *tail;                  /* last page of the block in its order */
    int *next;                  /* the page after a page in its block, -1: none */
    int *heap;                  /* root of the heap of blocks under this one, -1: empty */
    int *left, *right, *height; /* a leftist heap (Crane 1972): densest first, merged in O(log n) */
};

/* Denser first; among equals the smaller index, so that the order is one. */
static bool before(const struct blocks *b, int x, int y)
{
    double p = b->value[x] * b->bytes[y], q = b->value[y] * b->bytes[x];
    return p > q || (p == q && x < y);
}

/* Along the right spines, each of at most log2(n) blocks. */
static int merge(struct blocks *b, int x, int y)
{
    if (x < 0) return y;
    if (y < 0) return x;
    if (before(b, y, x)) {
        int swap = x;
        x = y;
        y = swap;
    }
    b->right[x] = merge(b, b->right[x], y);
    int left = b->left[x], right = b->right[x];
    if (left < 0 || b->height[left] < b->height[right]) {
        b->left[x] = right;
        b->right[x] = left;
    }
    b->height[x] = b->right[x] < 0 ? 1 : b->height[b->right[x]] + 1;
    return x;
}

static int pop(struct blocks *b, int *heap)
{
    int top = *heap;
    *heap = merge(b, b->left[top], b->right[top]);
    b->left[top] = b->right[top] = -1;
    b->height[top] = 1;
    return top;
}

/* Takes in blocks under it as long as they are denser. */
static void grow_block(struct blocks *b, int at)
{
    while (b->heap[at] >= 0 && before(b, b->heap[at], at)) {
        int child = pop(b, &b->heap[at]);
        b->value[at] += b->value[child];
        b->bytes[at] += b->bytes[child];
        b->next[b->tail[at]] = child;
        b->tail[at] = b->tail[child];
        b->heap[at] = merge(b, b->heap[at], b->heap[child]);
    }
}

void gw_ckpt_order(const struct gw_ckpt_candidate *pages, int count, int *order)
{
    size_t n = (size_t)count;
    double *reals = gw_alloc(2 * n + 1, sizeof *reals);
    int *ints = gw_alloc(6 * n + 1, sizeof *ints);
    struct blocks b = {.value = reals,
                       .bytes = reals + n,
                       .tail = ints,
                       .next = ints + n,
                       .heap = ints + 2 * n,
                       .left = ints + 3 * n,
                       .right = ints + 4 * n,
                       .height = ints + 5 * n};
    int ready = -1, done = 0;
    for (int i = 0; i < count; i++) {
        GW_ASSERT(pages[i].parent < i && pages[i].bytes > 0);
        b.value[i] = pages[i].value_s;
        b.bytes[i] = pages[i].bytes;
        b.tail[i] = i;
        b.next[i] = b.heap[i] = b.left[i] = b.right[i] = -1;
        b.height[i] = 1;
    }
    /* children have larger indices, so each block is complete when its parent takes it */
    for (int i = count - 1; i >= 0; i--) {
        int parent = pages[i].parent;
        grow_block(&b, i);
        int *heap = parent < 0 ? &ready : &b.heap[parent];
        *heap = merge(&b, *heap, i);
    }
    while (ready >= 0) {
        int block = pop(&b, &ready);
        for (int page = block; page >= 0; page = b.next[page]) order[done++] = page;
        ready = merge(&b, ready, b.heap[block]);
    }
    GW_ASSERT(done == count);
    free(reals);
    free(ints);
}
