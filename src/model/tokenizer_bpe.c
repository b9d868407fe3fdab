/* Byte-pair merging: the table of merges and the merge loop.
 *
 * The loop keeps the symbols of one piece in a doubly linked list and the mergeable neighbours in a binary heap ordered by
 * (rank, position). An entry whose pair has changed since it was pushed is recognised when it is taken out, by looking the pair
 * up again: a rank names exactly one pair, and a pair at a position only ever grows, so an equal rank means the same pair.
 * Each merge removes one symbol and pushes at most two entries: O(n log n) however long the piece is. Short pieces, which are
 * nearly all of them, scan their few ranks instead: no heap, no list.
 */
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define NO_RANK UINT32_MAX

void gw_merges_init(struct gw_merges *merges, uint64_t count)
{
    uint64_t slots = 16;
    while (2 * slots < 3 * count) slots *= 2; /* at most two thirds full */
    merges->slots = gw_alloc(slots, sizeof *merges->slots);
    merges->mask = slots - 1;
}

void gw_merges_free(struct gw_merges *merges)
{
    free(merges->slots);
    merges->slots = NULL;
}

static uint64_t pair_key(int32_t left, int32_t right)
{
    return ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
}

/* Multiplicative hashing (Knuth, TAOCP 6.4): the high bits of the product depend on all bits of the key. */
static uint64_t pair_slot(uint64_t key, uint64_t mask)
{
    uint64_t h = key * UINT64_C(0x9e3779b97f4a7c15);
    return (h ^ h >> 32) & mask;
}

void gw_merges_put(struct gw_merges *merges, int32_t left, int32_t right, uint32_t rank, int32_t merged)
{
    uint64_t key = pair_key(left, right);
    uint64_t at = pair_slot(key, merges->mask);
    while (merges->slots[at].key && merges->slots[at].key != key) at = (at + 1) & merges->mask;
    merges->slots[at] = (struct gw_merge_slot){.key = key, .rank = rank, .merged = merged};
}

static const struct gw_merge_slot *find_pair(const struct gw_merges *merges, int32_t left, int32_t right)
{
    uint64_t key = pair_key(left, right);
    for (uint64_t at = pair_slot(key, merges->mask); merges->slots[at].key; at = (at + 1) & merges->mask)
        if (merges->slots[at].key == key) return &merges->slots[at];
    return NULL;
}

void gw_bpe_scratch_reserve(struct gw_bpe_scratch *scratch, size_t symbols)
{
    if (symbols <= scratch->capacity) return;
    size_t capacity = scratch->capacity ? scratch->capacity : 256;
    while (capacity < symbols) capacity *= 2;
    scratch->id = gw_realloc(scratch->id, capacity, sizeof *scratch->id);
    scratch->prev = gw_realloc(scratch->prev, capacity, sizeof *scratch->prev);
    scratch->next = gw_realloc(scratch->next, capacity, sizeof *scratch->next);
    scratch->capacity = capacity;
}

void gw_bpe_scratch_free(struct gw_bpe_scratch *scratch)
{
    free(scratch->id);
    free(scratch->prev);
    free(scratch->next);
    free(scratch->heap);
    *scratch = (struct gw_bpe_scratch){0};
}

static void heap_push(struct gw_bpe_scratch *scratch, uint64_t entry)
{
    if (scratch->heap_count == scratch->heap_capacity) {
        scratch->heap_capacity = scratch->heap_capacity ? 2 * scratch->heap_capacity : 256;
        scratch->heap = gw_realloc(scratch->heap, scratch->heap_capacity, sizeof *scratch->heap);
    }
    size_t at = scratch->heap_count++;
    for (; at && scratch->heap[(at - 1) / 2] > entry; at = (at - 1) / 2)
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
    scratch->heap[at] = entry;
}

static uint64_t heap_pop(struct gw_bpe_scratch *scratch)
{
    uint64_t *heap = scratch->heap;
    uint64_t top = heap[0];
    uint64_t last = heap[--scratch->heap_count];
    size_t count = scratch->heap_count, at = 0;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[at] = heap[child];
        at = child;
    }
    if (count) heap[at] = last;
    return top;
}

/* Pushes the pair whose left symbol is at `left`, if it can merge. */
static void push_pair(const struct gw_merges *merges, struct gw_bpe_scratch *scratch, size_t count, int32_t left)
{
    int32_t right = scratch->next[left];
    if ((size_t)right >= count) return;
    const struct gw_merge_slot *pair = find_pair(merges, scratch->id[left], scratch->id[right]);
    if (pair) heap_push(scratch, (uint64_t)pair->rank << 32 | (uint32_t)left);
}

static size_t merge_long(const struct gw_merges *merges, struct gw_bpe_scratch *scratch, size_t count)
{
    int32_t *id = scratch->id, *prev = scratch->prev, *next = scratch->next;
    scratch->heap_count = 0;
    for (size_t i = 0; i < count; i++) {
        prev[i] = (int32_t)i - 1;
        next[i] = (int32_t)i + 1;
    }
    for (size_t i = 0; i + 1 < count; i++) push_pair(merges, scratch, count, (int32_t)i);

    while (scratch->heap_count) {
        uint64_t entry = heap_pop(scratch);
        int32_t left = (int32_t)(uint32_t)entry;
        if (id[left] < 0 || (size_t)next[left] >= count)
            continue; /* its left symbol was merged, or its right one was the last */
        int32_t right = next[left];
        const struct gw_merge_slot *pair = find_pair(merges, id[left], id[right]);
        if (!pair || pair->rank != entry >> 32) continue;
        id[left] = pair->merged;
        id[right] = -1;
        next[left] = next[right];
        if ((size_t)next[left] < count) prev[next[left]] = left;
        if (prev[left] >= 0) push_pair(merges, scratch, count, prev[left]);
        push_pair(merges, scratch, count, left);
    }

    size_t kept = 0;
    for (size_t i = 0; i < count; i = (size_t)next[i]) id[kept++] = id[i];
    return kept;
}

#define SHORT_SYMBOLS 48

static size_t merge_short(const struct gw_merges *merges, int32_t *id, size_t count)
{
    struct {
        uint32_t rank;
        int32_t merged;
    } pairs[SHORT_SYMBOLS]; /* [i]: the pair of symbols i and i+1 */
#define LOOK_UP(i)                                                                                                     \
    do {                                                                                                               \
        const struct gw_merge_slot *found = find_pair(merges, id[i], id[(i) + 1]);                                     \
        pairs[i].rank = found ? found->rank : NO_RANK;                                                                 \
        pairs[i].merged = found ? found->merged : -1;                                                                  \
    } while (0)
    for (size_t i = 0; i + 1 < count; i++) LOOK_UP(i);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (pairs[i].rank < pairs[best].rank) best = i;
        if (pairs[best].rank == NO_RANK) break;
        id[best] = pairs[best].merged;
        memmove(id + best + 1, id + best + 2, (count - best - 2) * sizeof *id);
        memmove(pairs + best, pairs + best + 1, (count - best - 2) * sizeof *pairs);
        count--;
        if (best) LOOK_UP(best - 1);
        if (best + 1 < count) LOOK_UP(best);
    }
#undef LOOK_UP
    return count;
}

size_t gw_bpe_merge(const struct gw_merges *merges, struct gw_bpe_scratch *scratch, size_t count)
{
    GW_ASSERT(count <= INT32_MAX);
    return count <= SHORT_SYMBOLS ? merge_short(merges, scratch->id, count) : merge_long(merges, scratch, count);
}
