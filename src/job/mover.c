/* See mover.h.
 *
 * Two cursors go through the plan's moves: one over those that this rank gives, one over those that it gets, loads, takes out of its own old
 * parts, or drops. Gifts depend on nothing but page numbers, so they go ahead; a drop waits until everything before it has been given. What a rank
 * gets is taken in the plan's order: so it never has more than the plan's sum of parts at that place. The first move of the plan that is not
 * done can always be done, so nobody waits for ever.
 *
 * KV pages that stay in their memory may get new numbers, which other pages there have: they are moved together, after everything that is given
 * away from that layer has been copied out, and before anything comes into it.
 */
#include "job/mover.h"

#include "comm/comm.h"

#include <stdlib.h>
#include <string.h>

static const size_t MOST_PENDING_BYTES = 16u << 20, PIECE_BYTES = 1u << 20;

/* What a GW_MSG_SLICE begins with; the data follow. */
struct piece {
    int32_t move;         /* number in the plan */
    int32_t first, count; /* KV: pages of the adoption's map */
};

struct adoption {
    bool from_here, to_here; /* is this rank on either side? */
    bool mapped, told;
    int32_t count, *from, *to; /* the map */
    int due;                   /* moves that have yet to come */
};

struct gw_mover {
    struct gw_mover_config config;
    int own; /* rank */
    struct gw_shard before, now;
    struct gw_place place_before, place_now;
    bool had, has;
    struct adoption *adoptions;    /* [plan->adoption_count] */
    int *gives, give_count, given; /* numbers of moves; so many are done */
    int *gets, get_count, got;     /* the same, drops among them */
    int first;                     /* pages done of the move that is being given */
    int *last_give;                /* [layers]: after so many gifts no KV of the layer is left to give */
    bool *settled;                 /* [layers]: KV that stays has its new numbers */
    bool hurry;                    /* what is got waits for what is given */
    bool drops;                    /* the plan has drops for this rank, so there is a bound to keep to */
    bool finished;                 /* nothing is awaited any more */
    struct gw_buf message;
    uint16_t *page;    /* [all kv heads' halves] */
    uint64_t imported; /* bytes of KV that came */
    uint64_t trimmed;  /* bytes of KV pages that nobody wants any more, in memory that stays */
    struct gw_mover_stats stats;
};

static const struct gw_move *move_of(const struct gw_mover *mover, int number)
{
    return &mover->config.plan->moves[number];
}

/* What the backend calls the layer: the output matrix is the one behind the last. */
static int layer_of(const struct gw_mover *mover, const struct gw_move *move)
{
    return move->part == GW_PART_OUTPUT ? mover->config.dims.layers : move->layer;
}

static struct gw_weight_slice slice_of(const struct gw_mover *mover, const struct gw_move *move)
{
    struct gw_weight_slice slice = {.layer = layer_of(mover, move)};
    if (move->part == GW_PART_HEADS) slice.kv_begin = move->begin, slice.kv_end = move->end;
    if (move->part == GW_PART_ATOMS) slice.ffn_begin = move->begin, slice.ffn_end = move->end;
    if (move->part == GW_PART_OUTPUT) slice.vocab_begin = move->begin, slice.vocab_end = move->end;
    return slice;
}

static struct gw_backend *backend_of(struct gw_executor *executor)
{
    return executor ? gw_executor_backend(executor) : NULL;
}

/* The moves that concern this rank. */
static void sort_moves(struct gw_mover *mover)
{
    const struct gw_plan *plan = mover->config.plan;
    size_t n = (size_t)plan->move_count + 1;
    mover->gives = gw_alloc(n, sizeof(int));
    mover->gets = gw_alloc(n, sizeof(int));
    for (int m = 0; m < plan->move_count; m++) {
        const struct gw_move *move = &plan->moves[m];
        if (move->to == mover->own || (move->from == mover->own && move->to == GW_TO_NOWHERE)) {
            mover->gets[mover->get_count++] = m;
            mover->drops |= move->to == GW_TO_NOWHERE;
            if (move->part == GW_PART_KV && move->to >= 0) mover->adoptions[move->inherit].due++;
        } else if (move->from == mover->own) {
            mover->gives[mover->give_count++] = m;
            if (move->part == GW_PART_KV) mover->last_give[move->layer] = mover->give_count;
        }
    }
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
        mover->before = gw_layout_shard(&config->dims, plan->before, self->before.shard, self->before.stage);
    }
    if (mover->has) {
        mover->place_now = gw_layout_place(plan->layout, self->slot);
        mover->now = gw_layout_shard(&config->dims, plan->layout, mover->place_now.shard, mover->place_now.stage);
    }
    mover->adoptions = gw_alloc((size_t)plan->adoption_count + 1, sizeof *mover->adoptions);
    for (int a = 0; a < plan->adoption_count; a++) {
        mover->adoptions[a].from_here = mover->had && plan->adoptions[a].from == mover->place_before.replica;
        mover->adoptions[a].to_here = mover->has && plan->adoptions[a].to == mover->place_now.replica;
    }
    mover->last_give = gw_alloc((size_t)config->dims.layers + 1, sizeof(int));
    mover->settled = gw_alloc((size_t)config->dims.layers + 1, sizeof(bool));
    sort_moves(mover);
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
    free(mover->gives);
    free(mover->gets);
    free(mover->last_give);
    free(mover->settled);
    free(mover->page);
    gw_buf_free(&mover->message);
    free(mover);
}

struct gw_mover_stats gw_mover_stats(const struct gw_mover *mover)
{
    return mover->stats;
}

/* What this rank holds of weights and KV, its old place and its new one together. */
static uint64_t held_bytes(struct gw_mover *mover)
{
    static const enum gw_part parts[] = {GW_PART_HEADS, GW_PART_ATOMS, GW_PART_OUTPUT, GW_PART_KV};
    struct gw_backend *before = backend_of(mover->config.before), *now = backend_of(mover->config.now);
    int layers = mover->config.dims.layers;
    uint64_t bytes = mover->imported - mover->trimmed;
    for (int p = 0; p < 4; p++)
        for (int layer = 0; layer <= layers; layer++) {
            enum gw_part part = parts[p];
            if ((part == GW_PART_OUTPUT) != (layer == layers)) continue;
            bool kept = now && part == GW_PART_KV && layer >= mover->now.layer_begin && layer < mover->now.layer_end &&
                        now->ops->kv_inherited(now, layer);
            if (now && (part != GW_PART_KV || kept)) bytes += now->ops->part_bytes(now, layer, part, NULL);
            if (before && before != now) bytes += before->ops->part_bytes(before, layer, part, now);
        }
    return bytes;
}

static void note_peak(struct gw_mover *mover)
{
    if (!mover->drops) return;
    uint64_t bytes = held_bytes(mover);
    if (bytes > mover->stats.peak_bytes) mover->stats.peak_bytes = bytes;
}

/* ---- KV ---------------------------------------------------------------------------------------------------------- */

static size_t page_bytes(const struct gw_mover *mover, int kv_begin, int kv_end)
{
    return (size_t)(kv_end - kv_begin) * gw_page_halves(mover->config.dims.head_dim) * sizeof(uint16_t);
}

/* Are the old KV pages of this layer in the memory of the new ones? */
static bool stays_in_place(struct gw_mover *mover, int layer)
{
    struct gw_backend *before = backend_of(mover->config.before), *now = backend_of(mover->config.now);
    if (!mover->had || !mover->has || layer < mover->now.layer_begin || layer >= mover->now.layer_end) return false;
    return before == now || now->ops->kv_inherited(now, layer);
}

/* Pages that stay in their memory get their new numbers, all of them at once: one's new number may be another's old one. */
static gw_err renumber(struct gw_mover *mover, int layer)
{
    gw_err rc = GW_OK;
    struct gw_backend *from = backend_of(mover->config.before), *to = backend_of(mover->config.now);
    const struct gw_shard *s = &mover->now;
    size_t each = page_bytes(mover, s->kv_begin, s->kv_end), at = 0;
    if (each == 0) return GW_OK; /* a shard of the FFN alone */
    gw_buf_clear(&mover->message);
    for (int pass = 0; pass < 2; pass++)
        for (int a = 0; a < mover->config.plan->adoption_count; a++) {
            const struct adoption *adoption = &mover->adoptions[a];
            for (int i = 0; adoption->from_here && adoption->to_here && i < adoption->count; i++) {
                if (pass == 0) mover->stats.kv_bytes_kept += each;
                if (adoption->from[i] == adoption->to[i]) continue;
                if (pass == 0) {
                    TRY(from->ops->kv_export(from, layer, adoption->from[i], s->kv_begin, s->kv_end, mover->page));
                    gw_buf_add(&mover->message, mover->page, each);
                } else {
                    memcpy(mover->page, mover->message.data + at, each);
                    at += each;
                    TRY(to->ops->kv_import(to, layer, adoption->to[i], s->kv_begin, s->kv_end, mover->page));
                }
            }
        }
out:
    return rc;
}

/* Nothing but the pages that stay is left of a layer. */
static void trim(struct gw_mover *mover, int layer)
{
    struct gw_backend *now = backend_of(mover->config.now);
    bool *wanted = gw_alloc((size_t)mover->config.plan->kv_pages + 1, sizeof *wanted);
    for (int a = 0; a < mover->config.plan->adoption_count; a++) {
        const struct adoption *adoption = &mover->adoptions[a];
        for (int i = 0; adoption->from_here && adoption->to_here && i < adoption->count; i++)
            wanted[adoption->to[i]] = true;
    }
    mover->trimmed += now->ops->kv_trim(now, layer, wanted);
    free(wanted);
}

/* May KV come into this layer? */
static gw_err settle(struct gw_mover *mover, int layer, bool *settled)
{
    gw_err rc = GW_OK;
    *settled = mover->settled[layer];
    if (*settled) return GW_OK;
    for (int a = 0; a < mover->config.plan->adoption_count; a++)
        if (mover->adoptions[a].to_here && !mover->adoptions[a].mapped) return GW_OK;
    if (stays_in_place(mover, layer)) {
        mover->hurry = mover->given < mover->last_give[layer];
        if (mover->hurry) return GW_OK;
        TRY(renumber(mover, layer));
        if (mover->drops && mover->config.before != mover->config.now) trim(mover, layer);
    }
    *settled = mover->settled[layer] = true;
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
out:
    return rc;
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
    const struct gw_plan *plan = mover->config.plan;
    for (int layer = mover->now.layer_begin; layer < mover->now.layer_end; layer++)
        if (!mover->settled[layer]) return GW_OK;
    for (int a = 0; a < plan->adoption_count; a++) {
        struct adoption *adoption = &mover->adoptions[a];
        if (!adoption->to_here || !adoption->mapped || adoption->due || adoption->told) continue;
        struct gw_place place = {.replica = mover->place_now.replica};
        int head = gw_plan_rank(plan, gw_layout_rank(plan->layout, place));
        TRY(gw_comm_send(mover->config.comm, head, GW_MSG_ADOPTED, (uint64_t)a, NULL, 0));
        adoption->told = true;
    }
out:
    return rc;
}

/* ---- giving ------------------------------------------------------------------------------------------------------ */

static gw_err give_kv(struct gw_mover *mover, const struct gw_move *move, struct piece *piece, bool *done)
{
    gw_err rc = GW_OK;
    const struct adoption *adoption = &mover->adoptions[move->inherit];
    struct gw_backend *backend = backend_of(mover->config.before);
    size_t each = page_bytes(mover, move->begin, move->end);
    int most = PIECE_BYTES > each ? (int)(PIECE_BYTES / each) : 1, left = adoption->count - mover->first;
    piece->first = mover->first;
    piece->count = left < most ? left : most;
    gw_buf_add(&mover->message, piece, sizeof *piece);
    for (int i = 0; i < piece->count; i++) {
        int page = adoption->from[piece->first + i];
        TRY(backend->ops->kv_export(backend, move->layer, page, move->begin, move->end, mover->page));
        gw_buf_add(&mover->message, mover->page, each);
    }
    mover->first += piece->count;
    *done = mover->first == adoption->count;
out:
    return rc;
}

/* The next piece of the next gift, if it can be given by now. */
static gw_err give(struct gw_mover *mover, bool *busy)
{
    gw_err rc = GW_OK;
    bool done = true;
    int number = mover->gives[mover->given];
    const struct gw_move *move = move_of(mover, number);
    struct gw_backend *backend = backend_of(mover->config.before);
    struct gw_weight_slice slice = slice_of(mover, move);
    struct piece piece = {.move = number};
    bool kv = move->part == GW_PART_KV;
    if (kv && !mover->adoptions[move->inherit].mapped) return GW_OK;
    *busy = true;
    gw_buf_clear(&mover->message);
    if (kv && mover->adoptions[move->inherit].count == 0) goto out;
    if (kv) {
        TRY(give_kv(mover, move, &piece, &done));
    } else {
        gw_buf_add(&mover->message, &piece, sizeof piece);
        TRY(backend->ops->weights_export(backend, &slice, &mover->message));
    }
    TRY(gw_comm_send(mover->config.comm, move->to, GW_MSG_SLICE, 0, mover->message.data, mover->message.bytes));
out:
    if (rc == GW_OK && done) {
        mover->given++;
        mover->first = 0;
    }
    return rc;
}

/* ---- getting ----------------------------------------------------------------------------------------------------- */

static gw_err take_kv(struct gw_mover *mover, const struct gw_move *move, const struct piece *piece,
                      const uint8_t *data, size_t bytes)
{
    gw_err rc = GW_OK;
    struct adoption *adoption = &mover->adoptions[move->inherit];
    struct gw_backend *backend = backend_of(mover->config.now);
    size_t each = page_bytes(mover, move->begin, move->end);
    if (piece->first < 0 || piece->count <= 0 || piece->first > adoption->count - piece->count ||
        bytes != each * (size_t)piece->count)
        FAIL(GW_ERR_PEER, "a piece of KV came with %zu bytes", bytes);
    for (int i = 0; i < piece->count; i++) {
        memcpy(mover->page, data + (size_t)i * each, each);
        TRY(backend->ops->kv_import(backend, move->layer, adoption->to[piece->first + i], move->begin, move->end,
                                    mover->page));
    }
    mover->stats.kv_bytes_in += bytes;
    mover->imported += bytes;
out:
    return rc;
}

/* The next piece of a move, if it is there. */
static gw_err receive(struct gw_mover *mover, int number, bool *busy, bool *done)
{
    gw_err rc = GW_OK;
    const struct gw_move *move = move_of(mover, number);
    struct gw_backend *backend = backend_of(mover->config.now);
    struct gw_weight_slice slice = slice_of(mover, move);
    struct gw_msg msg = {0};
    struct piece piece;
    bool got = false;
    *done = false;
    TRY(gw_comm_poll(mover->config.comm, move->from, GW_MSG_SLICE, &msg, &got));
    if (!got) goto out;
    *busy = true;
    if (msg.bytes < sizeof piece) FAIL(GW_ERR_PEER, "a piece of %zu bytes is malformed", msg.bytes);
    memcpy(&piece, msg.data, sizeof piece);
    const uint8_t *data = msg.data + sizeof piece;
    size_t bytes = msg.bytes - sizeof piece;
    if (piece.move != number) FAIL(GW_ERR_PEER, "a piece of move %d came, move %d is due", piece.move, number);
    if (move->part == GW_PART_KV) {
        TRY(take_kv(mover, move, &piece, data, bytes));
        *done = piece.first + piece.count == mover->adoptions[move->inherit].count;
    } else {
        TRY(backend->ops->weights_import(backend, &slice, data, bytes));
        mover->stats.weight_bytes_in += bytes;
        *done = true;
    }
out:
    gw_msg_free(&msg);
    return rc;
}

/* Out of this rank's own old part, which is another memory. */
static gw_err copy_own(struct gw_mover *mover, const struct gw_move *move)
{
    gw_err rc = GW_OK;
    struct gw_backend *from = backend_of(mover->config.before), *to = backend_of(mover->config.now);
    struct gw_weight_slice slice = slice_of(mover, move);
    if (move->part != GW_PART_KV) {
        gw_buf_clear(&mover->message);
        TRY(from->ops->weights_export(from, &slice, &mover->message));
        TRY(to->ops->weights_import(to, &slice, mover->message.data, mover->message.bytes));
        goto out;
    }
    const struct adoption *adoption = &mover->adoptions[move->inherit];
    for (int i = 0; i < adoption->count && !stays_in_place(mover, move->layer); i++) {
        TRY(from->ops->kv_export(from, move->layer, adoption->from[i], move->begin, move->end, mover->page));
        TRY(to->ops->kv_import(to, move->layer, adoption->to[i], move->begin, move->end, mover->page));
        mover->stats.kv_bytes_kept += page_bytes(mover, move->begin, move->end);
        mover->imported += page_bytes(mover, move->begin, move->end);
    }
out:
    return rc;
}

/* Some of the next thing to get or to let go of; *done: all of it. */
static gw_err get(struct gw_mover *mover, bool *busy, bool *done)
{
    gw_err rc = GW_OK;
    int number = mover->gets[mover->got];
    const struct gw_move *move = move_of(mover, number);
    struct gw_backend *before = backend_of(mover->config.before), *now = backend_of(mover->config.now);
    bool kv = move->part == GW_PART_KV, settled = true;
    bool drop = move->to == GW_TO_NOWHERE, in_place = kv && stays_in_place(mover, move->layer);
    *done = false;
    if (drop && mover->given < mover->give_count && mover->gives[mover->given] < number) return GW_OK;
    if (kv && (!drop || in_place)) TRY(settle(mover, move->layer, &settled));
    if (!settled) return GW_OK;
    *done = true;
    if (drop) {
        if (!in_place) before->ops->part_release(before, layer_of(mover, move), move->part);
        return GW_OK;
    }
    if (kv && mover->adoptions[move->inherit].count == 0) goto out;
    if (move->from == GW_FROM_STORAGE) TRY(now->ops->part_load(now, layer_of(mover, move), move->part));
    else if (move->from == mover->own) TRY(copy_own(mover, move));
    else TRY(receive(mover, number, busy, done));
out:
    return rc;
}

/* When all has come: KV that stays in layers into which nothing came, and weights that the plan took to be here already. */
static gw_err finish(struct gw_mover *mover)
{
    gw_err rc = GW_OK;
    struct gw_backend *now = backend_of(mover->config.now);
    bool all = true, settled;
    for (int layer = mover->now.layer_begin; layer < mover->now.layer_end; layer++) {
        TRY(settle(mover, layer, &settled));
        all &= settled;
        if (mover->finished) continue;
        TRY(now->ops->part_load(now, layer, GW_PART_HEADS));
        TRY(now->ops->part_load(now, layer, GW_PART_ATOMS));
    }
    if (mover->has && !mover->finished) TRY(now->ops->part_load(now, mover->config.dims.layers, GW_PART_OUTPUT));
    mover->finished |= all;
out:
    return rc;
}

gw_err gw_mover_poll(struct gw_mover *mover, bool *busy)
{
    gw_err rc = GW_OK;
    TRY(take_maps(mover, busy));
    mover->hurry = false;
    for (bool done = true; done && mover->got < mover->get_count;) {
        const struct gw_move *move = move_of(mover, mover->gets[mover->got]);
        TRY(get(mover, busy, &done));
        note_peak(mover);
        if (!done) break;
        *busy = true;
        mover->got++;
        if (move->part == GW_PART_KV && move->to >= 0) mover->adoptions[move->inherit].due--;
    }
    if (mover->got == mover->get_count) TRY(finish(mover));
    TRY(tell_head(mover));
    while (mover->given < mover->give_count &&
           (mover->hurry || gw_comm_pending_bytes(mover->config.comm) < MOST_PENDING_BYTES)) {
        bool gave = false;
        TRY(give(mover, &gave));
        if (!gave) break;
        *busy = true;
    }
out:
    return rc;
}

bool gw_mover_done(const struct gw_mover *mover)
{
    if (mover->got < mover->get_count || mover->given < mover->give_count || !mover->finished) return false;
    for (int a = 0; a < mover->config.plan->adoption_count; a++) {
        const struct adoption *adoption = &mover->adoptions[a];
        if ((adoption->from_here || adoption->to_here) && !adoption->mapped) return false;
        if (adoption->to_here && !adoption->told) return false;
    }
    return true;
}
