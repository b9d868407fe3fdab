/* What tensor shards exchange, on top of comm.h's messages: sums over the fixed tree, and rows of logits. No MPI of its own. */
#include "base/pool.h"
#include "comm/comm.h"
#include "engine/tree.h"

#include <stdlib.h>
#include <string.h>

enum { FEW_ROWS_PER_SHARD = 4 }; /* below this, halving the bytes is not worth a second round trip */

/* Is each shard to reduce a share of the rows, rather than all of them? */
static bool in_shares(const struct gw_shards *shards, const struct gw_sum_rows *r)
{
    return shards->count > 2 && r->end - r->begin >= FEW_ROWS_PER_SHARD * shards->count;
}

/* The rows that shard `s` reduces. */
static void reduced_rows(const struct gw_shards *shards, const struct gw_sum_rows *r, int s, int *begin, int *end)
{
    *begin = 0;
    *end = r->end - r->begin;
    if (in_shares(shards, r)) gw_split(r->end - r->begin, shards->count, s, begin, end);
    *begin += r->begin;
    *end += r->begin;
}

/* Sends rows [begin, end) of every own node to a peer, as [node][end - begin][width]. */
static gw_err send_nodes(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step, int to,
                         const struct gw_sum_rows *r, int begin, int end)
{
    int nodes = exchange->node_counts[shards->own];
    size_t width = (size_t)r->width, strip = (size_t)(end - begin) * width;
    if (begin == 0 && end == r->rows)
        return gw_comm_send(shards->comm, shards->ranks[to], GW_MSG_NODES, step, r->own_nodes,
                            (size_t)nodes * strip * sizeof(float));
    float *packed = gw_alloc((size_t)nodes * strip, sizeof(float));
    for (int n = 0; n < nodes; n++)
        memcpy(packed + (size_t)n * strip, r->own_nodes + ((size_t)n * (size_t)r->rows + (size_t)begin) * width,
               strip * sizeof(float));
    gw_err rc = gw_comm_send(shards->comm, shards->ranks[to], GW_MSG_NODES, step, packed,
                             (size_t)nodes * strip * sizeof(float));
    free(packed);
    return rc;
}

gw_err gw_shards_sum_begin(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                           const struct gw_sum_rows *r)
{
    gw_err rc = GW_OK;
    for (int s = 0; s < shards->count && exchange->node_counts[shards->own] > 0; s++) {
        int begin, end;
        reduced_rows(shards, r, s, &begin, &end);
        if (s != shards->own) TRY(send_nodes(shards, exchange, step, s, r, begin, end));
    }
out:
    return rc;
}

/* Receives every peer's nodes for rows [begin, end) and adds the tree into sum[begin ..]. */
static gw_err reduce_rows(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                          const struct gw_sum_rows *r, int begin, int end, float *sum)
{
    gw_err rc = GW_OK;
    struct gw_msg *inbox = gw_alloc((size_t)shards->count, sizeof *inbox);
    const float *values[GW_TREE_MAX_ATOMS];
    size_t width = (size_t)r->width, strip = (size_t)(end - begin) * width;
    struct gw_tree_sum tree = {.atoms = exchange->atoms, .nodes = exchange->nodes, .values = values};
    for (int s = 0; s < shards->count; s++) {
        int nodes = exchange->node_counts[s];
        const float *from = r->own_nodes + (size_t)begin * width;
        size_t stride = (size_t)r->rows * width;
        if (s != shards->own && nodes > 0) {
            TRY(gw_comm_wait(shards->comm, shards->ranks[s], GW_MSG_NODES, (int64_t)step, &inbox[s]));
            if (inbox[s].bytes != (size_t)nodes * strip * sizeof(float))
                FAIL(GW_ERR_PEER, "rank %d sent %zu bytes of partial sums where %zu were due", shards->ranks[s],
                     inbox[s].bytes, (size_t)nodes * strip * sizeof(float));
            from = (const float *)(const void *)inbox[s].data;
            stride = strip;
        }
        for (int n = 0; n < nodes; n++) values[tree.node_count++] = from + (size_t)n * stride;
    }
    gw_tree_reduce(&tree, 0, strip, sum + (size_t)begin * width);
out:
    for (int s = 0; s < shards->count; s++) gw_msg_free(&inbox[s]);
    free(inbox);
    return rc;
}

static gw_err share_sums(const struct gw_shards *shards, uint64_t step, const struct gw_sum_rows *r, float *sum)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    size_t width = (size_t)r->width;
    int begin, end;
    reduced_rows(shards, r, shards->own, &begin, &end);
    for (int s = 0; s < shards->count; s++)
        if (s != shards->own)
            TRY(gw_comm_send(shards->comm, shards->ranks[s], GW_MSG_SUM, step, sum + (size_t)begin * width,
                             (size_t)(end - begin) * width * sizeof(float)));
    for (int s = 0; s < shards->count; s++) {
        if (s == shards->own) continue;
        reduced_rows(shards, r, s, &begin, &end);
        size_t bytes = (size_t)(end - begin) * width * sizeof(float);
        TRY(gw_comm_wait(shards->comm, shards->ranks[s], GW_MSG_SUM, (int64_t)step, &msg));
        if (msg.bytes != bytes)
            FAIL(GW_ERR_PEER, "rank %d sent %zu bytes of sums where %zu were due", shards->ranks[s], msg.bytes, bytes);
        memcpy(sum + (size_t)begin * width, msg.data, bytes);
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

gw_err gw_shards_sum_end(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                         const struct gw_sum_rows *r, float *sum)
{
    gw_err rc = GW_OK;
    int begin, end;
    reduced_rows(shards, r, shards->own, &begin, &end);
    TRY(reduce_rows(shards, exchange, step, r, begin, end, sum));
    if (in_shares(shards, r)) TRY(share_sums(shards, step, r, sum));
out:
    return rc;
}

/* Puts the columns of shard `s` into `count` gathered rows. */
static void place_columns(const struct gw_shards *shards, const int *column_begin, int s, const float *columns,
                          int count, float *full)
{
    int begin = column_begin[s], width = column_begin[s + 1] - begin, total = column_begin[shards->count];
    for (int i = 0; i < count; i++)
        memcpy(full + (size_t)i * (size_t)total + begin, columns + (size_t)i * (size_t)width,
               (size_t)width * sizeof(float));
}

gw_err gw_shards_rows(const struct gw_shards *shards, uint64_t step, const int *column_begin, const float *own,
                      int rows, float *full)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    int count = shards->count, width = column_begin[shards->own + 1] - column_begin[shards->own];
    float *picked = gw_alloc((size_t)(rows / count + 1) * (size_t)width, sizeof(float));
    for (int s = 0; s < count; s++) {
        int n = 0;
        for (int row = s; row < rows; row += count, n++)
            memcpy(picked + (size_t)n * (size_t)width, own + (size_t)row * (size_t)width,
                   (size_t)width * sizeof(float));
        if (s == shards->own) place_columns(shards, column_begin, s, picked, n, full);
        else if (n)
            TRY(gw_comm_send(shards->comm, shards->ranks[s], GW_MSG_LOGITS, step, picked,
                             (size_t)n * (size_t)width * sizeof(float)));
    }
    int due = rows / count + (shards->own < rows % count);
    for (int s = 0; s < count && due > 0; s++) {
        if (s == shards->own) continue;
        size_t bytes = (size_t)due * (size_t)(column_begin[s + 1] - column_begin[s]) * sizeof(float);
        TRY(gw_comm_wait(shards->comm, shards->ranks[s], GW_MSG_LOGITS, (int64_t)step, &msg));
        if (msg.bytes != bytes)
            FAIL(GW_ERR_PEER, "rank %d sent %zu bytes of logits where %zu were due", shards->ranks[s], msg.bytes,
                 bytes);
        place_columns(shards, column_begin, s, (const float *)(const void *)msg.data, due, full);
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    free(picked);
    return rc;
}
