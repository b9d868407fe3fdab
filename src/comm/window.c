/* See window.h. The memory: counters of each shard, on a line of their own, then sums, then for each shard its nodes, then logits. */
#include "comm/window.h"

#include "base/clock.h"
#include "base/pool.h"
#include "engine/tree.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { LINE = 64, LOOK_ROUNDS = 256, PHASE_NAME = 0, PHASE_MAPPED, PHASE_AGREED };

/* Of one shard: how often it has written nodes or logits, and how often its rows of sums. Both only grow. */
struct counters {
    _Alignas(LINE) _Atomic uint64_t written;
    _Atomic uint64_t summed;
};

struct gw_window {
    struct gw_window_config config;
    struct gw_shared *memory;
    struct counters *counters; /* [shards] */
    float *sums;               /* [max_rows][width] */
    float *(*nodes)[2];        /* [shards][half] */
    float *logits;             /* [max_rows][stride], or NULL */
    uint64_t writes, sums_done;
};

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static size_t whole_lines(size_t bytes)
{
    return gw_round_up(bytes, LINE);
}

/* Lays the parts out from `base` on (NULL: only to learn the size). That is whole huge pages: no slab of the store's, which would keep what comes and goes
 * with a plan as long as the weights in it. */
static size_t lay_out(struct gw_window *window, uint8_t *base)
{
    const struct gw_window_config *c = &window->config;
    size_t rows = (size_t)c->max_rows, at = 0;
    int count = c->shards->count;
    window->counters = (struct counters *)(void *)(base + at);
    at += (size_t)count * sizeof(struct counters);
    window->sums = (float *)(void *)(base + at);
    at += whole_lines(rows * (size_t)c->width * sizeof(float));
    for (int s = 0; s < count; s++) {
        for (int half = 0; half < 2; half++) {
            window->nodes[s][half] = (float *)(void *)(base + at);
            at += whole_lines((size_t)c->max_nodes * rows * (size_t)c->width * sizeof(float));
        }
    }
    if (c->vocab_begin) {
        window->logits = (float *)(void *)(base + at);
        at += whole_lines(rows * gw_window_logits_stride(window) * sizeof(float));
    }
    return gw_round_up(at, GW_HUGE_PAGE);
}

/* The first shard makes the memory; an empty name says that it could not. */
static void make_memory(struct gw_window *window, size_t bytes, char name[GW_STORE_NAME_BYTES])
{
    enum gw_store_found found;
    uint64_t number;
    if (!window->config.store || getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number) return;
    snprintf(name, GW_STORE_NAME_BYTES, "exchange-%016" PRIx64, number);
    if (gw_store_map(window->config.store, GW_STORE_SHARED, name, bytes, true, &window->memory, &found) != GW_OK ||
        found != GW_STORE_NEW || gw_store_filled(window->config.store, window->memory) != GW_OK)
        name[0] = 0;
}

/* The first shard tells the others the name, hears who has it mapped, and tells them whether all have. */
static gw_err agree_first(struct gw_window *window, const char *name, bool *all)
{
    gw_err rc = GW_OK;
    const struct gw_shards *shards = window->config.shards;
    struct gw_msg msg = {0};
    *all = name[0];
    for (int s = 1; s < shards->count; s++)
        TRY(gw_comm_send(shards->comm, shards->ranks[s], GW_MSG_WINDOW, PHASE_NAME, name, strlen(name)));
    for (int s = 1; s < shards->count; s++) {
        TRY(gw_comm_wait(shards->comm, shards->ranks[s], GW_MSG_WINDOW, PHASE_MAPPED, &msg));
        *all = *all && msg.bytes == 1;
        gw_msg_free(&msg);
    }
    for (int s = 1; s < shards->count; s++)
        TRY(gw_comm_send(shards->comm, shards->ranks[s], GW_MSG_WINDOW, PHASE_AGREED, name, *all ? 1 : 0));
out:
    gw_msg_free(&msg);
    return rc;
}

static gw_err agree_other(struct gw_window *window, size_t bytes, bool *all)
{
    gw_err rc = GW_OK;
    const struct gw_shards *shards = window->config.shards;
    struct gw_msg msg = {0};
    enum gw_store_found found = GW_STORE_NONE;
    char name[GW_STORE_NAME_BYTES] = "";
    TRY(gw_comm_wait(shards->comm, shards->ranks[0], GW_MSG_WINDOW, PHASE_NAME, &msg));
    if (msg.bytes < sizeof name) memcpy(name, msg.data, msg.bytes);
    gw_msg_free(&msg);
    bool mapped = window->config.store && name[0] &&
                  gw_store_map(window->config.store, GW_STORE_SHARED, name, bytes, false, &window->memory, &found) ==
                      GW_OK &&
                  found == GW_STORE_FOUND;
    TRY(gw_comm_send(shards->comm, shards->ranks[0], GW_MSG_WINDOW, PHASE_MAPPED, name, mapped ? 1 : 0));
    TRY(gw_comm_wait(shards->comm, shards->ranks[0], GW_MSG_WINDOW, PHASE_AGREED, &msg));
    *all = mapped && msg.bytes == 1;
out:
    gw_msg_free(&msg);
    return rc;
}

gw_err gw_window_open(const struct gw_window_config *config, struct gw_window **out)
{
    gw_err rc = GW_OK;
    bool all = false;
    char name[GW_STORE_NAME_BYTES] = "";
    size_t count = (size_t)config->shards->count;
    struct gw_window *window = gw_alloc(1, sizeof *window);
    window->config = *config;
    window->nodes = gw_alloc(count, sizeof *window->nodes);
    size_t bytes = lay_out(window, NULL);
    *out = NULL;
    if (config->shards->own == 0) {
        make_memory(window, bytes, name);
        TRY(agree_first(window, name, &all));
    } else {
        TRY(agree_other(window, bytes, &all));
    }
    if (!all) goto out;
    lay_out(window, window->memory->data);
    *out = window;
    window = NULL;
out:
    gw_window_close(window);
    return rc;
}

void gw_window_close(struct gw_window *window)
{
    if (!window) return;
    gw_shared_release(window->memory);
    free(window->nodes);
    free(window);
}

float *gw_window_nodes(const struct gw_window *window, int shard, int half)
{
    return window->nodes[shard][half];
}

float *gw_window_logits(const struct gw_window *window)
{
    return window->logits ? window->logits + window->config.vocab_begin[window->config.shards->own] : NULL;
}

/* Whole lines, and one more: else rows of most vocabularies were a multiple of 4 KiB apart, all in the same sets of a cache. */
size_t gw_window_logits_stride(const struct gw_window *window)
{
    const int *vocab_begin = window->config.vocab_begin;
    return vocab_begin
               ? whole_lines((size_t)vocab_begin[window->config.shards->count] * sizeof(float)) / sizeof(float) +
                     LINE / sizeof(float)
               : 0;
}

/* ---- exchanging -------------------------------------------------------------------------------------------------- */

/* Until shard `s` has counted to `value`. */
static gw_err wait_for(struct gw_window *window, int s, const _Atomic uint64_t *counter, uint64_t value)
{
    gw_err rc = GW_OK;
    struct gw_comm *comm = window->config.shards->comm;
    double deadline_s = 0;
    for (int round = 1; atomic_load_explicit(counter, memory_order_acquire) < value; round++) {
        bool slept = gw_comm_idle(comm, false);
        if (!slept && round % LOOK_ROUNDS) continue; /* who sleeps may wake late, where others spin in a repair */
        TRY(gw_comm_look(comm));
        double now_s = gw_clock_now_s();
        if (deadline_s == 0) deadline_s = now_s + gw_comm_patience_s(comm);
        if (now_s > deadline_s)
            FAIL(GW_ERR_PEER, "rank %d has waited %.0f s for the sums of rank %d; see --peer-timeout",
                 gw_comm_rank(comm), gw_comm_patience_s(comm), window->config.shards->ranks[s]);
    }
    gw_comm_idle(comm, true);
out:
    return rc;
}

uint64_t gw_window_written(struct gw_window *window)
{
    struct counters *own = &window->counters[window->config.shards->own];
    atomic_store_explicit(&own->written, ++window->writes, memory_order_release);
    return window->writes;
}

gw_err gw_window_wait(struct gw_window *window, uint64_t number)
{
    gw_err rc = GW_OK;
    for (int s = 0; s < window->config.shards->count; s++)
        TRY(wait_for(window, s, &window->counters[s].written, number));
out:
    return rc;
}

gw_err gw_window_sum(struct gw_window *window, const struct gw_tree_sum *nodes, int rows, const float **sum)
{
    gw_err rc = GW_OK;
    const struct gw_shards *shards = window->config.shards;
    size_t width = (size_t)window->config.width;
    int begin, end;
    gw_split(rows, shards->count, shards->own, &begin, &end);
    gw_tree_reduce(nodes, (size_t)begin * width, (size_t)(end - begin) * width, window->sums + (size_t)begin * width);
    atomic_store_explicit(&window->counters[shards->own].summed, ++window->sums_done, memory_order_release);
    for (int s = 0; s < shards->count; s++) TRY(wait_for(window, s, &window->counters[s].summed, window->sums_done));
    *sum = window->sums;
out:
    return rc;
}

float *gw_window_row(const struct gw_window *window, int row)
{
    return window->logits + (size_t)row * gw_window_logits_stride(window);
}
