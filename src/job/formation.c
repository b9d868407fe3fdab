/* See formation.h. Plain structs travel as they are: one job runs on one byte order and one binary. */
#include "job/formation.h"

#include <stdlib.h>
#include <string.h>

static void add_held(const struct gw_held *held, int32_t count, struct gw_buf *out)
{
    gw_buf_add_u32(out, (uint32_t)count);
    for (int32_t i = 0; i < count; i++) {
        gw_buf_add_u64(out, (uint64_t)held[i].index);
        gw_buf_add_u32(out, (uint32_t)held[i].computed);
        gw_buf_add_u32(out, (uint32_t)held[i].page_count);
        gw_buf_add(out, held[i].pages, (size_t)held[i].page_count * sizeof(int32_t));
    }
}

static void free_held(struct gw_held *held, int32_t count)
{
    for (int32_t i = 0; held && i < count; i++) free(held[i].pages);
    free(held);
}

/* An array of `count` items of `size` bytes as they lie in the message; NULL (and in->failed) when the message is shorter. */
static void *read_array(struct gw_reader *in, uint32_t count, size_t size)
{
    if (count > in->bytes) in->failed = true;
    const void *data = in->failed ? NULL : gw_read(in, (size_t)count * size);
    if (!data) return NULL;
    void *copy = gw_alloc((size_t)count + 1, size);
    memcpy(copy, data, (size_t)count * size);
    return copy;
}

static struct gw_held *read_held(struct gw_reader *in, int32_t *count)
{
    uint32_t wanted = gw_read_u32(in);
    *count = 0;
    if (in->failed || wanted > in->bytes / 16) {
        in->failed = true;
        return NULL;
    }
    struct gw_held *held = gw_alloc((size_t)wanted + 1, sizeof *held);
    for (; *count < (int32_t)wanted && !in->failed; ++*count) {
        struct gw_held *h = &held[*count];
        h->index = (int64_t)gw_read_u64(in);
        h->computed = (int32_t)gw_read_u32(in);
        h->page_count = (int32_t)gw_read_u32(in);
        h->pages = read_array(in, (uint32_t)h->page_count, sizeof(int32_t));
        if (h->computed < 0 || h->page_count != h->computed / GW_PAGE_TOKENS + (h->computed % GW_PAGE_TOKENS > 0))
            in->failed = true;
        for (int32_t p = 0; h->pages && p < h->page_count; p++)
            if (h->pages[p] < 0 || h->pages[p] == INT32_MAX) in->failed = true;
    }
    return held;
}

/* ---- what a message may say --------------------------------------------------------------------------------------- */

/* Messages carry checksums, so this is for bugs, and for ranks of another build: nothing in them may lead outside an array. */

static bool within(int64_t value, int64_t least, int64_t end)
{
    return value >= least && value < end;
}

static bool layout_is_sound(struct gw_layout l)
{
    enum { MOST = 1 << 16 };
    return within(l.data, 1, MOST) && within(l.tensor, 1, MOST) && within(l.pipeline, 1, MOST) &&
           (int64_t)l.data * l.tensor * l.pipeline < INT32_MAX;
}

static bool peer_is_sound(const struct gw_peer *peer, struct gw_layout before)
{
    unsigned char placed, resumed;
    memcpy(&placed, &peer->placed, 1); /* a bool with another value must not be read as one */
    memcpy(&resumed, &peer->resumed, 1);
    if (placed > 1 || resumed > 1 || !memchr(peer->host, 0, GW_HOST_BYTES)) return false;
    return !placed || (layout_is_sound(before) && within(peer->before.replica, 0, before.data) &&
                       within(peer->before.shard, 0, before.tensor) && within(peer->before.stage, 0, before.pipeline));
}

static bool move_is_sound(const struct gw_plan *plan, const struct gw_move *move)
{
    int lowest = move->to >= 0 ? GW_FROM_STORAGE : 0;
    if (!within(move->from, lowest, plan->peer_count) || !within(move->to, GW_TO_NOWHERE, plan->peer_count))
        return false;
    if (move->part == GW_PART_OUTPUT ? move->layer != -1 : move->layer < 0) return false;
    if (move->part == GW_PART_KV && move->to >= 0)
        return move->from >= 0 && within(move->inherit, 0, plan->adoption_count);
    return move->part >= GW_PART_HEADS && move->part <= GW_PART_KV && move->begin >= 0 && move->begin < move->end;
}

static bool plan_is_sound(const struct gw_plan *plan)
{
    if (!layout_is_sound(plan->layout) || plan->kv_pages < 0) return false;
    int32_t before = layout_is_sound(plan->before) ? plan->before.data : 0;
    for (int32_t r = 0; r < plan->peer_count; r++)
        if (!peer_is_sound(&plan->peers[r], plan->before) ||
            !within(plan->peers[r].slot, -1, gw_layout_ranks(plan->layout)))
            return false;
    for (int32_t r = 0; r < plan->layout.data; r++)
        if (!within(plan->kept[r], -1, before)) return false;
    for (int32_t a = 0; a < plan->adoption_count; a++)
        if (!within(plan->adoptions[a].from, 0, before) || !within(plan->adoptions[a].to, 0, plan->layout.data))
            return false;
    for (int32_t m = 0; m < plan->move_count; m++)
        if (!move_is_sound(plan, &plan->moves[m])) return false;
    return true;
}

/* ---- messages ----------------------------------------------------------------------------------------------------- */

void gw_hello_encode(const struct gw_hello *hello, struct gw_buf *out)
{
    gw_buf_add(out, &hello->peer, sizeof hello->peer);
    gw_buf_add(out, hello->node, sizeof hello->node);
    gw_buf_add_u32(out, (uint32_t)hello->packed);
    gw_buf_add_u64(out, hello->memory);
    gw_buf_add_u32(out, (uint32_t)hello->cpus);
    gw_buf_add(out, &hello->gops, sizeof hello->gops);
    gw_buf_add(out, hello->kernels, sizeof hello->kernels);
    gw_buf_add_u64(out, hello->plan);
    gw_buf_add(out, &hello->layout, sizeof hello->layout);
    gw_buf_add_u32(out, (uint32_t)hello->kv_pages);
    add_held(hello->held, hello->held_count, out);
}

/* A struct out of the message. */
static void read_struct(struct gw_reader *in, void *to, size_t bytes)
{
    const void *data = gw_read(in, bytes);
    if (data) memcpy(to, data, bytes);
}

gw_err gw_hello_decode(const uint8_t *data, size_t bytes, struct gw_hello *hello)
{
    struct gw_reader in = {.data = data, .bytes = bytes};
    *hello = (struct gw_hello){0};
    read_struct(&in, &hello->peer, sizeof hello->peer);
    read_struct(&in, hello->node, sizeof hello->node);
    hello->packed = (int32_t)gw_read_u32(&in);
    hello->memory = gw_read_u64(&in);
    hello->cpus = (int32_t)gw_read_u32(&in);
    read_struct(&in, &hello->gops, sizeof hello->gops);
    read_struct(&in, hello->kernels, sizeof hello->kernels);
    hello->plan = gw_read_u64(&in);
    read_struct(&in, &hello->layout, sizeof hello->layout);
    hello->kv_pages = (int32_t)gw_read_u32(&in);
    hello->held = read_held(&in, &hello->held_count);
    bool named = memchr(hello->node, 0, sizeof hello->node) != NULL;
    if (!in.failed && in.at == bytes && named && peer_is_sound(&hello->peer, hello->layout)) return GW_OK;
    gw_hello_free(hello);
    return gw_fail(GW_ERR_PEER, "a hello of %zu bytes is malformed", bytes);
}

void gw_hello_free(struct gw_hello *hello)
{
    free_held(hello->held, hello->held_count);
    *hello = (struct gw_hello){0};
}

void gw_plan_encode(const struct gw_plan *plan, struct gw_buf *out)
{
    gw_buf_add_u64(out, plan->number);
    gw_buf_add(out, &plan->before, sizeof plan->before);
    gw_buf_add(out, &plan->layout, sizeof plan->layout);
    gw_buf_add_u32(out, (uint32_t)plan->kv_pages);
    gw_buf_add_u32(out, (uint32_t)plan->peer_count);
    gw_buf_add(out, plan->peers, (size_t)plan->peer_count * sizeof *plan->peers);
    gw_buf_add(out, plan->kept, (size_t)plan->layout.data * sizeof *plan->kept);
    gw_buf_add_u32(out, (uint32_t)plan->adoption_count);
    for (int32_t i = 0; i < plan->adoption_count; i++) {
        gw_buf_add_u32(out, (uint32_t)plan->adoptions[i].from);
        gw_buf_add_u32(out, (uint32_t)plan->adoptions[i].to);
        add_held(plan->adoptions[i].held, plan->adoptions[i].held_count, out);
    }
    gw_buf_add_u32(out, (uint32_t)plan->move_count);
    gw_buf_add(out, plan->moves, (size_t)plan->move_count * sizeof *plan->moves);
}

gw_err gw_plan_decode(const uint8_t *data, size_t bytes, struct gw_plan *plan)
{
    struct gw_reader in = {.data = data, .bytes = bytes};
    *plan = (struct gw_plan){.number = gw_read_u64(&in)};
    read_struct(&in, &plan->before, sizeof plan->before);
    read_struct(&in, &plan->layout, sizeof plan->layout);
    plan->kv_pages = (int32_t)gw_read_u32(&in);
    uint32_t peers = gw_read_u32(&in);
    plan->peers = read_array(&in, peers, sizeof *plan->peers);
    plan->peer_count = plan->peers ? (int32_t)peers : 0;
    plan->kept = read_array(&in, (uint32_t)plan->layout.data, sizeof *plan->kept);
    uint32_t adoptions = gw_read_u32(&in);
    if (adoptions > bytes) in.failed = true;
    if (!in.failed) plan->adoptions = gw_alloc((size_t)adoptions + 1, sizeof *plan->adoptions);
    for (; plan->adoptions && !in.failed && plan->adoption_count < (int32_t)adoptions; plan->adoption_count++) {
        struct gw_adoption *adoption = &plan->adoptions[plan->adoption_count];
        adoption->from = (int32_t)gw_read_u32(&in);
        adoption->to = (int32_t)gw_read_u32(&in);
        adoption->held = read_held(&in, &adoption->held_count);
    }
    uint32_t moves = gw_read_u32(&in);
    plan->moves = read_array(&in, moves, sizeof *plan->moves);
    plan->move_count = plan->moves ? (int32_t)moves : 0;
    if (!in.failed && in.at == bytes && plan_is_sound(plan)) return GW_OK;
    gw_plan_free(plan);
    return gw_fail(GW_ERR_PEER, "a plan of %zu bytes is malformed", bytes);
}

void gw_plan_free(struct gw_plan *plan)
{
    for (int32_t i = 0; plan->adoptions && i < plan->adoption_count; i++)
        free_held(plan->adoptions[i].held, plan->adoptions[i].held_count);
    free(plan->adoptions);
    free(plan->peers);
    free(plan->kept);
    free(plan->moves);
    *plan = (struct gw_plan){0};
}

int gw_plan_rank(const struct gw_plan *plan, int slot)
{
    for (int r = 0; r < plan->peer_count; r++)
        if (plan->peers[r].slot == slot) return r;
    return -1;
}

int gw_plan_rank_before(const struct gw_plan *plan, struct gw_place place)
{
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        if (peer->placed && peer->before.replica == place.replica && peer->before.shard == place.shard &&
            peer->before.stage == place.stage)
            return r;
    }
    return -1;
}

void gw_page_map_encode(const int32_t *from, const int32_t *to, int count, struct gw_buf *out)
{
    gw_buf_add_u32(out, (uint32_t)count);
    gw_buf_add(out, from, (size_t)count * sizeof *from);
    gw_buf_add(out, to, (size_t)count * sizeof *to);
}

gw_err gw_page_map_decode(const uint8_t *data, size_t bytes, struct gw_page_map *map)
{
    struct gw_reader in = {.data = data, .bytes = bytes};
    map->count = (int32_t)gw_read_u32(&in);
    if (map->count >= 0 && (size_t)map->count <= bytes) {
        map->from = gw_read(&in, (size_t)map->count * sizeof(int32_t));
        map->to = gw_read(&in, (size_t)map->count * sizeof(int32_t));
        if (!in.failed && in.at == bytes) return GW_OK;
    }
    return gw_fail(GW_ERR_PEER, "a map of pages of %zu bytes is malformed", bytes);
}
