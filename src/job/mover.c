/* See mover.h. */
#include "job/mover.h"

#include "comm/comm.h"

#include <stdlib.h>
#include <string.h>

static const size_t MOST_PENDING_BYTES = 16u << 20, PIECE_BYTES = 1u << 20;

enum { PIECE_KV, PIECE_WEIGHTS };

/* What a GW_MSG_SLICE begins with; the data follow. */
struct piece {
    int32_t kind, number; /* of the adoption, or of the weight move */
    int32_t layer, kv_begin, kv_end;
    int32_t first, count; /* pages of the adoption's map */
};

/* Part of an adoption or a weight move that this rank sends. */
struct order {
    int to;
    struct piece next; /* the next piece; layer and first go on */
    int layer_end;
};

struct adoption {
    bool from_here, to_here; /* is this rank on either side? */
    bool mapped;
    int32_t count, *from, *to; /* the map */
    int64_t due;               /* (layer, page, sender) that have not come */
    bool told;
};

struct gw_mover {
    struct gw_mover_config config;
    int own; /* rank */
    struct gw_shard before, now;
    struct gw_place place_before, place_now;
    bool had, has;
    struct adoption *adoptions; /* [plan->adoption_count] */
    struct order *orders;
    int order_count, order_capacity;
    int orders_sent;
    int moves_due;
    struct gw_buf message;
    uint16_t *page; /* [all kv heads' halves] */
    struct gw_mover_stats stats;
};

static struct gw_shard shard_of(const struct gw_mover *mover, struct gw_layout layout, struct gw_place place)
{
    return gw_layout_shard(&mover->config.dims, layout, place.shard, place.stage);
}

static void add_order(struct gw_mover *mover, const struct order *order)
{
    if (mover->order_count == mover->order_capacity) {
        mover->order_capacity = mover->order_capacity ? 2 * mover->order_capacity : 16;
        mover->orders = gw_realloc(mover->orders, (size_t)mover->order_capacity, sizeof *mover->orders);
    }
    mover->orders[mover->order_count++] = *order;
}

struct gw_mover *gw_mover_create(const struct gw_mover_config *config)
{
    const struct gw_plan *plan = config->plan;
    struct gw_mover *mover = gw_alloc(1, sizeof *mover);
    mover->config = *config;
    mover->own = gw_comm_rank(config->comm);
    const struct gw_peer *self = &plan->peers[mover->own];
    mover->had = config->before && self->placed;
    mover->has = config->now && self->slot >= 0;
    if (mover->had) {
        mover->place_before = self->before;
        mover->before = shard_of(mover, plan->before, self->before);
    }
    if (mover->has) {
        mover->place_now = gw_layout_place(plan->layout, self->slot);
        mover->now = shard_of(mover, plan->layout, mover->place_now);
    }
    mover->adoptions = gw_alloc((size_t)plan->adoption_count + 1, sizeof *mover->adoptions);
    for (int a = 0; a < plan->adoption_count; a++) {
        mover->adoptions[a].from_here = mover->had && plan->adoptions[a].from == mover->place_before.replica;
        mover->adoptions[a].to_here = mover->has && plan->adoptions[a].to == mover->place_now.replica;
    }
    for (int m = 0; m < plan->move_count; m++) {
        const struct gw_weight_move *move = &plan->moves[m];
        if (move->to == mover->own) mover->moves_due++;
        if (move->from == mover->own)
            add_order(mover, &(struct order){.to = move->to,
                                             .next = {.kind = PIECE_WEIGHTS, .number = m, .layer = move->slice.layer},
                                             .layer_end = move->slice.layer + 1});
    }
    mover->page = gw_alloc((size_t)config->dims.kv_heads * gw_page_halves(config->dims.head_dim), sizeof(uint16_t));
    return mover;
}

void gw_mover_destroy(struct gw_mover *mover)
{
    if (!mover) return;
    for (int a = 0; a < mover->config.plan->adoption_count; a++) {
        free(mover->adoptions[a].from);
        free(mover->adoptions[a].to);
    }
    free(mover->adoptions);
    free(mover->orders);
    free(mover->page);
    gw_buf_free(&mover->message);
    free(mover);
}

struct gw_mover_stats gw_mover_stats(const struct gw_mover *mover)
{
    return mover->stats;
}

/* ---- adoptions ------------------------------------------------------------------------------------------------- */

/* What two shards have in common: layers and kv heads; false if nothing. */
static bool overlap(const struct gw_shard *a, const struct gw_shard *b, struct gw_shard *common)
{
    *common = (struct gw_shard){
        .layer_begin = a->layer_begin > b->layer_begin ? a->layer_begin : b->layer_begin,
        .layer_end = a->layer_end < b->layer_end ? a->layer_end : b->layer_end,
        .kv_begin = a->kv_begin > b->kv_begin ? a->kv_begin : b->kv_begin,
        .kv_end = a->kv_end < b->kv_end ? a->kv_end : b->kv_end,
    };
    return common->layer_begin < common->layer_end && common->kv_begin < common->kv_end;
}

static size_t page_bytes(const struct gw_mover *mover, int kv_begin, int kv_end)
{
    return (size_t)(kv_end - kv_begin) * gw_page_halves(mover->config.dims.head_dim) * sizeof(uint16_t);
}

/* Pages that stay on this rank, but maybe in another memory or under another number. */
static gw_err keep_pages(struct gw_mover *mover, const struct adoption *adoption, const struct gw_shard *common)
{
    gw_err rc = GW_OK;
    struct gw_backend *from = gw_executor_backend(mover->config.before), *to = gw_executor_backend(mover->config.now);
    for (int layer = common->layer_begin; layer < common->layer_end; layer++) {
        bool same = from == to || to->ops->kv_inherited(to, layer);
        for (int i = 0; i < adoption->count; i++) {
            mover->stats.kv_bytes_kept += page_bytes(mover, common->kv_begin, common->kv_end);
            if (same && adoption->from[i] == adoption->to[i]) continue;
            TRY(from->ops->kv_export(from, layer, adoption->from[i], common->kv_begin, common->kv_end, mover->page));
            TRY(to->ops->kv_import(to, layer, adoption->to[i], common->kv_begin, common->kv_end, mover->page));
        }
    }
out:
    return rc;
}

/* As one who has the pages: an order for each rank of the new replica that needs some of them. */
static void give(struct gw_mover *mover, int number, const struct adoption *adoption)
{
    const struct gw_plan *plan = mover->config.plan;
    int replica = plan->adoptions[number].to, size = plan->layout.tensor * plan->layout.pipeline;
    struct gw_shard common;
    for (int slot = replica * size; slot < (replica + 1) * size; slot++) {
        int rank = gw_plan_rank(plan, slot);
        struct gw_shard other = shard_of(mover, plan->layout, gw_layout_place(plan->layout, slot));
        if (rank == mover->own || !overlap(&mover->before, &other, &common) || adoption->count == 0) continue;
        add_order(mover, &(struct order){.to = rank,
                                         .next = {.kind = PIECE_KV,
                                                  .number = number,
                                                  .layer = common.layer_begin,
                                                  .kv_begin = common.kv_begin,
                                                  .kv_end = common.kv_end},
                                         .layer_end = common.layer_end});
    }
}

/* As one who gets them: how many will come. */
static gw_err expect(struct gw_mover *mover, int number, struct adoption *adoption)
{
    gw_err rc = GW_OK;
    const struct gw_plan *plan = mover->config.plan;
    struct gw_shard common;
    for (int stage = 0; stage < plan->before.pipeline; stage++)
        for (int shard = 0; shard < plan->before.tensor; shard++) {
            struct gw_place place = {.replica = plan->adoptions[number].from, .shard = shard, .stage = stage};
            struct gw_shard other = shard_of(mover, plan->before, place);
            if (!overlap(&mover->now, &other, &common)) continue;
            if (gw_plan_rank_before(plan, place) == mover->own) TRY(keep_pages(mover, adoption, &common));
            else adoption->due += (int64_t)adoption->count * (common.layer_end - common.layer_begin);
        }
out:
    return rc;
}

gw_err gw_mover_adopt(struct gw_mover *mover, int number, const struct gw_page_map *map)
{
    gw_err rc = GW_OK;
    if (number < 0 || number >= mover->config.plan->adoption_count || mover->adoptions[number].mapped)
        FAIL(GW_ERR_PEER, "adoption %d is not due here", number);
    struct adoption *adoption = &mover->adoptions[number];
    size_t bytes = (size_t)map->count * sizeof(int32_t);
    adoption->mapped = true;
    adoption->count = map->count;
    adoption->from = gw_alloc((size_t)map->count + 1, sizeof(int32_t));
    adoption->to = gw_alloc((size_t)map->count + 1, sizeof(int32_t));
    if (bytes) memcpy(adoption->from, map->from, bytes);
    if (bytes) memcpy(adoption->to, map->to, bytes);
    if (adoption->from_here) give(mover, number, adoption);
    if (adoption->to_here) TRY(expect(mover, number, adoption));
out:
    return rc;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------- */

static gw_err send_kv(struct gw_mover *mover, struct order *order)
{
    gw_err rc = GW_OK;
    struct piece *piece = &order->next;
    const struct adoption *adoption = &mover->adoptions[piece->number];
    struct gw_backend *backend = gw_executor_backend(mover->config.before);
    size_t each = page_bytes(mover, piece->kv_begin, piece->kv_end);
    int most = (int)(PIECE_BYTES / each), left = adoption->count - piece->first;
    piece->count = left < most || most < 1 ? (most < 1 ? 1 : left) : most;
    gw_buf_clear(&mover->message);
    gw_buf_add(&mover->message, piece, sizeof *piece);
    for (int i = 0; i < piece->count; i++) {
        TRY(backend->ops->kv_export(backend, piece->layer, adoption->from[piece->first + i], piece->kv_begin,
                                    piece->kv_end, mover->page));
        gw_buf_add(&mover->message, mover->page, each);
    }
    TRY(gw_comm_send(mover->config.comm, order->to, GW_MSG_SLICE, 0, mover->message.data, mover->message.bytes));
    piece->first += piece->count;
    if (piece->first < adoption->count) goto out;
    piece->first = 0;
    piece->layer++;
out:
    return rc;
}

static gw_err send_weights(struct gw_mover *mover, struct order *order)
{
    gw_err rc = GW_OK;
    const struct gw_weight_move *move = &mover->config.plan->moves[order->next.number];
    struct gw_backend *backend = gw_executor_backend(mover->config.before);
    gw_buf_clear(&mover->message);
    gw_buf_add(&mover->message, &order->next, sizeof order->next);
    TRY(backend->ops->weights_export(backend, &move->slice, &mover->message));
    TRY(gw_comm_send(mover->config.comm, order->to, GW_MSG_SLICE, 0, mover->message.data, mover->message.bytes));
    order->next.layer++;
out:
    return rc;
}

static gw_err take_kv(struct gw_mover *mover, const struct piece *piece, const uint8_t *data, size_t bytes)
{
    gw_err rc = GW_OK;
    struct adoption *adoption = &mover->adoptions[piece->number];
    struct gw_backend *backend = gw_executor_backend(mover->config.now);
    size_t each = page_bytes(mover, piece->kv_begin, piece->kv_end);
    if (bytes != each * (size_t)piece->count || piece->first < 0 || piece->first + piece->count > adoption->count)
        FAIL(GW_ERR_PEER, "a piece of KV came with %zu bytes", bytes);
    for (int i = 0; i < piece->count; i++) {
        memcpy(mover->page, data + (size_t)i * each, each);
        TRY(backend->ops->kv_import(backend, piece->layer, adoption->to[piece->first + i], piece->kv_begin,
                                    piece->kv_end, mover->page));
    }
    adoption->due -= piece->count;
    mover->stats.kv_bytes_in += bytes;
out:
    return rc;
}

static gw_err take_piece(struct gw_mover *mover, const struct gw_msg *msg)
{
    gw_err rc = GW_OK;
    struct piece piece;
    const struct gw_plan *plan = mover->config.plan;
    if (msg->bytes < sizeof piece) FAIL(GW_ERR_PEER, "a piece of %zu bytes is malformed", msg->bytes);
    memcpy(&piece, msg->data, sizeof piece);
    const uint8_t *data = msg->data + sizeof piece;
    size_t bytes = msg->bytes - sizeof piece;
    if (piece.kind == PIECE_KV) {
        if (piece.number < 0 || piece.number >= plan->adoption_count)
            FAIL(GW_ERR_PEER, "a piece of an adoption that is not due");
        TRY(take_kv(mover, &piece, data, bytes));
    } else {
        if (piece.number < 0 || piece.number >= plan->move_count || plan->moves[piece.number].to != mover->own)
            FAIL(GW_ERR_PEER, "a piece of weights that is not due");
        struct gw_backend *backend = gw_executor_backend(mover->config.now);
        TRY(backend->ops->weights_import(backend, &plan->moves[piece.number].slice, data, bytes));
        mover->moves_due--;
        mover->stats.weight_bytes_in += bytes;
    }
out:
    return rc;
}

/* May this piece be taken in already? The map of its pages comes from the head, the piece from elsewhere, and may be faster. */
static bool takeable(const struct gw_mover *mover)
{
    for (int a = 0; a < mover->config.plan->adoption_count; a++)
        if (mover->adoptions[a].to_here && !mover->adoptions[a].mapped) return false;
    return true;
}

static gw_err take_maps(struct gw_mover *mover, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    struct gw_page_map map;
    for (bool got = true; got;) {
        TRY(gw_comm_poll(mover->config.comm, -1, GW_MSG_ADOPT, &msg, &got));
        if (!got) break;
        *busy = true;
        TRY(gw_page_map_decode(msg.data, msg.bytes, &map));
        TRY(gw_mover_adopt(mover, (int)msg.step, &map));
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

/* Tells the head which adoptions are complete on this rank. */
static gw_err tell_head(struct gw_mover *mover)
{
    gw_err rc = GW_OK;
    for (int a = 0; a < mover->config.plan->adoption_count; a++) {
        struct adoption *adoption = &mover->adoptions[a];
        if (!adoption->to_here || !adoption->mapped || adoption->due || adoption->told) continue;
        int head = gw_plan_rank(mover->config.plan,
                                gw_layout_rank(mover->config.plan->layout,
                                               (struct gw_place){.replica = mover->place_now.replica}));
        TRY(gw_comm_send(mover->config.comm, head, GW_MSG_ADOPTED, (uint64_t)a, NULL, 0));
        adoption->told = true;
    }
out:
    return rc;
}

gw_err gw_mover_poll(struct gw_mover *mover, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    TRY(take_maps(mover, busy));
    for (bool got = takeable(mover); got;) {
        TRY(gw_comm_poll(mover->config.comm, -1, GW_MSG_SLICE, &msg, &got));
        if (got) TRY(take_piece(mover, &msg));
        *busy |= got;
        gw_msg_free(&msg);
    }
    TRY(tell_head(mover));
    while (mover->orders_sent < mover->order_count && gw_comm_pending_bytes(mover->config.comm) < MOST_PENDING_BYTES) {
        struct order *order = &mover->orders[mover->orders_sent];
        *busy = true;
        TRY(order->next.kind == PIECE_KV ? send_kv(mover, order) : send_weights(mover, order));
        if (order->next.layer == order->layer_end) mover->orders_sent++;
    }
out:
    gw_msg_free(&msg);
    return rc;
}

bool gw_mover_done(const struct gw_mover *mover)
{
    if (mover->moves_due || mover->orders_sent < mover->order_count) return false;
    for (int a = 0; a < mover->config.plan->adoption_count; a++) {
        const struct adoption *adoption = &mover->adoptions[a];
        if ((adoption->from_here || adoption->to_here) && !adoption->mapped) return false;
        if (adoption->to_here && (adoption->due || !adoption->told)) return false;
    }
    return true;
}
