/* See snapshot.h. */
#include "job/snapshot.h"

#include "base/hash.h"
#include "base/log.h"
#include "store/store.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* One of the two halves; `number` is written last. */
struct half {
    uint64_t number; /* 0: none */
    uint64_t hello_bytes, tokens_bytes;
    uint64_t hash; /* of the sizes and the data */
    uint8_t data[];
};

struct gw_snapshot {
    struct gw_shared *memory;
    size_t capacity; /* of a half's data */
    uint64_t number;
    bool seated;
    struct gw_hello place; /* without sequences */
    struct gw_buf held;    /* the hello, encoded with its sequences */
    struct gw_buf tokens;
};

static struct half *half_of(const struct gw_snapshot *snapshot, uint64_t number)
{
    size_t bytes = (sizeof(struct half) + snapshot->capacity + 63) & ~(size_t)63;
    return (struct half *)(void *)((uint8_t *)snapshot->memory->data + (number % 2) * bytes);
}

static uint64_t hash_of(const struct half *half)
{
    uint64_t seed = gw_hash64(&half->hello_bytes, 2 * sizeof half->hello_bytes, half->number);
    return gw_hash64(half->data, half->hello_bytes + half->tokens_bytes, seed);
}

static bool is_whole(const struct gw_snapshot *snapshot, const struct half *half)
{
    return half->number && half->hello_bytes <= snapshot->capacity &&
           half->tokens_bytes <= snapshot->capacity - half->hello_bytes && half->hash == hash_of(half);
}

gw_err gw_snapshot_open(struct gw_store *store, size_t capacity, struct gw_snapshot **out)
{
    gw_err rc = GW_OK;
    enum gw_store_found found;
    struct gw_snapshot *snapshot = gw_alloc(1, sizeof *snapshot);
    snapshot->capacity = capacity;
    TRY(gw_store_map(store, GW_STORE_OWN, "snapshot", 2 * (sizeof(struct half) + capacity + 64), true,
                     &snapshot->memory, &found));
    for (uint64_t i = 0; i < 2; i++)
        if (is_whole(snapshot, half_of(snapshot, i)) && half_of(snapshot, i)->number > snapshot->number)
            snapshot->number = half_of(snapshot, i)->number;
    *out = snapshot;
    snapshot = NULL;
out:
    free(snapshot);
    return rc;
}

void gw_snapshot_close(struct gw_snapshot *snapshot)
{
    if (!snapshot) return;
    gw_shared_release(snapshot->memory);
    gw_buf_free(&snapshot->held);
    gw_buf_free(&snapshot->tokens);
    free(snapshot);
}

bool gw_snapshot_read(const struct gw_snapshot *snapshot, struct gw_hello *hello, struct gw_buf *tokens)
{
    const struct half *half = half_of(snapshot, snapshot->number);
    *hello = (struct gw_hello){0};
    if (!snapshot->number || !is_whole(snapshot, half) || half->hello_bytes == 0) return false;
    if (gw_hello_decode(half->data, half->hello_bytes, hello) != GW_OK) return false;
    gw_buf_add(tokens, half->data + half->hello_bytes, half->tokens_bytes);
    return true;
}

/* Into the older half: the newer one stays whole until this one is. */
static void write_half(struct gw_snapshot *snapshot)
{
    struct half *half = half_of(snapshot, ++snapshot->number);
    bool fits = snapshot->held.bytes + snapshot->tokens.bytes <= snapshot->capacity;
    half->number = 0;
    atomic_signal_fence(
        memory_order_seq_cst); /* a rank dies between two of its own instructions: only the compiler could reorder */
    half->hello_bytes = fits ? snapshot->held.bytes : 0;
    half->tokens_bytes = fits ? snapshot->tokens.bytes : 0;
    if (half->hello_bytes) memcpy(half->data, snapshot->held.data, half->hello_bytes);
    if (half->tokens_bytes) memcpy(half->data + half->hello_bytes, snapshot->tokens.data, half->tokens_bytes);
    half->number = snapshot->number;
    half->hash = hash_of(half);
    atomic_signal_fence(memory_order_seq_cst);
}

void gw_snapshot_unseat(struct gw_snapshot *snapshot)
{
    if (!snapshot || (!snapshot->seated && snapshot->number == 0)) return;
    snapshot->seated = false;
    snapshot->place.held = NULL;
    snapshot->place.held_count = 0;
    gw_buf_clear(&snapshot->held);
    gw_buf_clear(&snapshot->tokens);
    write_half(snapshot);
}

void gw_snapshot_hold(struct gw_snapshot *snapshot, const struct gw_held *held, int32_t held_count,
                      const struct gw_buf *tokens)
{
    if (!snapshot || !snapshot->seated) return;
    struct gw_hello hello = snapshot->place;
    hello.held = (struct gw_held *)(uintptr_t)held; /* read from only */
    hello.held_count = held_count;
    gw_buf_clear(&snapshot->held);
    gw_buf_clear(&snapshot->tokens);
    gw_hello_encode(&hello, &snapshot->held);
    if (tokens && tokens->bytes) gw_buf_add(&snapshot->tokens, tokens->data, tokens->bytes);
    write_half(snapshot);
}

void gw_snapshot_seat(struct gw_snapshot *snapshot, const struct gw_hello *hello, bool same)
{
    struct gw_hello before = {0};
    struct gw_buf tokens = {0};
    if (!snapshot) return;
    bool had = same && gw_snapshot_read(snapshot, &before, &tokens);
    snapshot->place = *hello;
    snapshot->place.held = NULL;
    snapshot->place.held_count = 0;
    snapshot->seated = true;
    gw_snapshot_hold(snapshot, had ? before.held : NULL, had ? before.held_count : 0, &tokens);
    gw_hello_free(&before);
    gw_buf_free(&tokens);
}
