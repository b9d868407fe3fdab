/* What tensor shards exchange, on top of comm.h's messages: sums over the fixed tree, and rows of logits. No MPI of its own. */
#include "base/pool.h"
#include "comm/comm.h"
#include "engine/tree.h"

#include <stdlib.h>
#include <string.h>

enum { FEW_ROWS_PER_SHARD = 4 }; /* below this, halving the bytes is not worth a second round trip */

/* Sends rows [begin, end) of every own node to a peer, as [node][end - begin][width]. */
static gw_err send_nodes(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step, int to,
                         const float *own_nodes, int rows, int width, int begin, int end)
{
    int nodes = exchange->node_counts[shards->own];
    size_t strip = (size_t)(end - begin) * (size_t)width;
    if (begin == 0 && end == rows)
        return gw_comm_send(shards->comm, shards->ranks[to], GW_MSG_NODES, step, own_nodes,
                            (size_t)nodes * strip * sizeof(float));
    float *packed = gw_alloc((size_t)nodes * strip, sizeof(float));
    for (int n = 0; n < nodes; n++)
        memcpy(packed + (size_t)n * strip, own_nodes + ((size_t)n * (size_t)rows + (size_t)begin) * (size_t)width,
               strip * sizeof(float));
    gw_err rc = gw_comm_send(shards->comm, shards->ranks[to], GW_MSG_NODES, step, packed,
                             (size_t)nodes * strip * sizeof(float));
    free(packed);
    return rc;
}

/* Receives every peer's nodes for rows [begin, end) and adds the tree into sum[begin ..]. */
static gw_err reduce_rows(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                          const float *own_nodes, int rows, int width, int begin, int end, float *sum)
{
    gw_err rc = GW_OK;
    struct gw_msg *inbox = gw_alloc((size_t)shards->count, sizeof *inbox);
    const float *values[GW_TREE_MAX_ATOMS];
    size_t strip = (size_t)(end - begin) * (size_t)width;
    int total = 0;
    for (int s = 0; s < shards->count; s++) {
        int nodes = exchange->node_counts[s];
        const float *from = own_nodes + (size_t)begin * (size_t)width;
        size_t stride = (size_t)rows * (size_t)width;
        if (s != shards->own && nodes > 0) {
            TRY(gw_comm_wait(shards->comm, shards->ranks[s], GW_MSG_NODES, (int64_t)step, &inbox[s]));
            if (inbox[s].bytes != (size_t)nodes * strip * sizeof(float))
                FAIL(GW_ERR_PEER, "rank %d sent %zu bytes of partial sums where %zu were due", shards->ranks[s],
                     inbox[s].bytes, (size_t)nodes * strip * sizeof(float));
            from = (const float *)(const void *)inbox[s].data;
            stride = strip;
        }
        for (int n = 0; n < nodes; n++) values[total++] = from + (size_t)n * stride;
    }
    gw_tree_reduce(exchange->atoms, exchange->nodes, values, total, strip, sum + (size_t)begin * (size_t)width);
out:
    for (int s = 0; s < shards->count; s++) gw_msg_free(&inbox[s]);
    free(inbox);
    return rc;
}

static gw_err share_sums(const struct gw_shards *shards, uint64_t step, int rows, int width, float *sum)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    int begin, end;
    gw_split(rows, shards->count, shards->own, &begin, &end);
    for (int s = 0; s < shards->count; s++)
        if (s != shards->own)
            TRY(gw_comm_send(shards->comm, shards->ranks[s], GW_MSG_SUM, step, sum + (size_t)begin * (size_t)width,
                             (size_t)(end - begin) * (size_t)width * sizeof(float)));
    for (int s = 0; s < shards->count; s++) {
        if (s == shards->own) continue;
        gw_split(rows, shards->count, s, &begin, &end);
        size_t bytes = (size_t)(end - begin) * (size_t)width * sizeof(float);
        TRY(gw_comm_wait(shards->comm, shards->ranks[s], GW_MSG_SUM, (int64_t)step, &msg));
        if (msg.bytes != bytes)
            FAIL(GW_ERR_PEER, "rank %d sent %zu bytes of sums where %zu were due", shards->ranks[s], msg.bytes, bytes);
        memcpy(sum + (size_t)begin * (size_t)width, msg.data, bytes);
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

gw_err gw_shards_sum(const struct gw_shards *shards, const struct gw_exchange *exchange, uint64_t step,
                     const float *own_nodes, int rows, int width, float *sum)
{
    gw_err rc = GW_OK;
    bool all_to_all = rows < FEW_ROWS_PER_SHARD * shards->count || shards->count == 2;
    bool sends = exchange->node_counts[shards->own] > 0;
    for (int s = 0; s < shards->count; s++) {
        int begin = 0, end = rows;
        if (!all_to_all) gw_split(rows, shards->count, s, &begin, &end);
        if (s != shards->own && sends) TRY(send_nodes(shards, exchange, step, s, own_nodes, rows, width, begin, end));
    }
    int begin = 0, end = rows;
    if (!all_to_all) gw_split(rows, shards->count, shards->own, &begin, &end);
    TRY(reduce_rows(shards, exchange, step, own_nodes, rows, width, begin, end, sum));
    if (!all_to_all) TRY(share_sums(shards, step, rows, width, sum));
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
