/* See planning.h. */
#include "job/planning.h"

#include <stdlib.h>
#include <string.h>

static int count_active(const struct gw_planning *in)
{
    int count = 0;
    for (int r = 0; r < in->count; r++) count += in->active[r];
    return count;
}

static int least_pages(const struct gw_planning *in)
{
    return (in->context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
}

/* The least memory that one of the active ranks has. */
static double least_memory(const struct gw_planning *in)
{
    double least = 0;
    bool any = false;
    for (int r = 0; r < in->count; r++) {
        if (!in->active[r]) continue;
        double memory = (double)in->hellos[r].memory;
        if (!any || memory < least) least = memory;
        any = true;
    }
    return least;
}

/* The user's layout while there are ranks enough, else the best for as many as there are. */
static gw_err choose_layout(const struct gw_planning *in, struct gw_layout *layout)
{
    gw_err rc = GW_ERR_LAYOUT;
    int ranks = count_active(in);
    if (in->options->layout_set && gw_layout_ranks(in->options->layout) <= ranks) {
        *layout = in->options->layout;
        return gw_layout_check(&in->dims, *layout);
    }
    for (; ranks > 0 && rc != GW_OK; ranks--)
        rc = gw_layout_choose(&in->dims, ranks, least_memory(in), least_pages(in), layout);
    return rc;
}

/* The KV pages of every rank: from the option, or half of what the weights leave of the least memory; the same everywhere. */
static gw_err choose_pages(const struct gw_planning *in, struct gw_layout layout, int32_t *pages)
{
    gw_err rc = GW_OK;
    uint64_t most = (uint64_t)least_pages(in) * (uint64_t)in->options->max_seqs, worst_page_bytes = 0;
    *pages = (int32_t)most;
    for (int slot = 0; slot < layout.tensor * layout.pipeline; slot++) {
        struct gw_place place = gw_layout_place(layout, slot);
        struct gw_shard shard = gw_layout_shard(&in->dims, layout, place.shard, place.stage);
        uint64_t page_bytes = gw_shard_page_bytes(&in->dims, &shard);
        double budget = (double)in->options->kv_bytes;
        if (!in->options->kv_bytes) budget = (least_memory(in) - gw_shard_weight_bytes(&in->dims, &shard)) / 2;
        double fit = page_bytes ? budget / (double)page_bytes : (double)most;
        if (fit < *pages) *pages = fit > 0 ? (int32_t)fit : 0;
        if (page_bytes > worst_page_bytes) worst_page_bytes = page_bytes;
    }
    if (*pages < least_pages(in))
        FAIL(GW_ERR_LAYOUT,
             "the KV cache of a rank would hold %d tokens in layout %dx%dx%d, one sequence may have %d: give "
             "--kv-memory "
             "%lluM or more, a lower --context, or more ranks in a layout that cuts the model",
             *pages * GW_PAGE_TOKENS, layout.data, layout.tensor, layout.pipeline, in->context,
             (unsigned long long)(worst_page_bytes * (uint64_t)least_pages(in) / 1048576 + 1));
out:
    return rc;
}

/* ---- who stands where ------------------------------------------------------------------------------------------ */

/* The plan before this one: that of most ranks, since a leader may have died while it sent one round. Whoever knows another has no place that
 * the others would know of. */
static void look_back(const struct gw_planning *in, struct gw_plan *plan, int32_t *pages)
{
    int most = 0;
    const struct gw_hello *typical = NULL;
    for (int r = 0; r < in->count; r++) {
        int same = 0;
        for (int other = 0; other < in->count; other++)
            same += in->hellos[other].peer.placed && in->hellos[other].plan == in->hellos[r].plan;
        if (!in->hellos[r].peer.placed || same <= most) continue;
        most = same;
        typical = &in->hellos[r];
    }
    *pages = typical ? typical->kv_pages : 0;
    if (typical) plan->before = typical->layout;
    for (int r = 0; r < in->count; r++) plan->peers[r].placed &= typical && in->hellos[r].plan == typical->plan;
}

static int rank_before(const struct gw_plan *plan, int replica, int slot)
{
    struct gw_place place = gw_layout_place(plan->before, slot);
    place.replica = replica;
    return gw_plan_rank_before(plan, place);
}

/* Are all ranks of an old replica here (and active, if that is asked)? */
static bool whole(const struct gw_planning *in, const struct gw_plan *plan, int replica, bool active)
{
    for (int slot = 0; slot < plan->before.tensor * plan->before.pipeline; slot++) {
        int rank = rank_before(plan, replica, slot);
        if (rank < 0 || (active && !in->active[rank])) return false;
    }
    return true;
}

/* Replicas that can go on as they are do. */
static void keep_replicas(const struct gw_planning *in, struct gw_plan *plan, int32_t pages_before)
{
    int next = 0, size = plan->layout.tensor * plan->layout.pipeline;
    for (int r = 0; r < plan->layout.data; r++) plan->kept[r] = -1;
    if (plan->before.tensor != plan->layout.tensor || plan->before.pipeline != plan->layout.pipeline ||
        pages_before != plan->kv_pages)
        return;
    for (int old = 0; old < plan->before.data && next < plan->layout.data; old++) {
        if (!whole(in, plan, old, true)) continue;
        for (int slot = 0; slot < size; slot++) plan->peers[rank_before(plan, old, slot)].slot = next * size + slot;
        plan->kept[next++] = old;
    }
}

/* The other places go to the ranks that are left: to those first who stood there before. */
static void fill_places(const struct gw_planning *in, struct gw_plan *plan)
{
    int size = plan->layout.tensor * plan->layout.pipeline, slots = plan->layout.data * size;
    bool same = plan->before.tensor == plan->layout.tensor && plan->before.pipeline == plan->layout.pipeline;
    for (int pass = 0; pass < 2; pass++)
        for (int slot = 0; slot < slots; slot++) {
            if (gw_plan_rank(plan, slot) >= 0) continue;
            for (int r = 0; r < in->count; r++) {
                struct gw_peer *peer = &plan->peers[r];
                if (!in->active[r] || peer->slot >= 0) continue;
                if (pass == 0 &&
                    !(same && peer->placed && gw_layout_rank(plan->layout, peer->before) % size == slot % size))
                    continue;
                peer->slot = slot;
                break;
            }
        }
}

/* Ranks of one node share its CPUs. */
static void number_locally(struct gw_plan *plan)
{
    for (int r = 0; r < plan->peer_count; r++) {
        struct gw_peer *peer = &plan->peers[r];
        peer->local_rank = peer->local_size = 0;
        for (int other = 0; other < plan->peer_count; other++) {
            if (strncmp(plan->peers[other].host, peer->host, GW_HOST_BYTES) || plan->peers[other].slot < 0) continue;
            peer->local_rank += other < r;
            peer->local_size++;
        }
        if (peer->slot < 0) peer->local_size++;
    }
}

/* ---- sequences ------------------------------------------------------------------------------------------------- */

static bool is_kept(const struct gw_plan *plan, int old)
{
    for (int r = 0; r < plan->layout.data; r++)
        if (plan->kept[r] == old) return true;
    return false;
}

/* How many ranks of an old replica stand in a new one: where most are, most can stay. */
static int common_ranks(const struct gw_plan *plan, int old, int now)
{
    int common = 0;
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        common += peer->placed && peer->before.replica == old && peer->slot >= 0 &&
                  gw_layout_place(plan->layout, peer->slot).replica == now;
    }
    return common;
}

static struct gw_held copy_held(const struct gw_held *held)
{
    struct gw_held copy = *held;
    copy.pages = gw_alloc((size_t)held->page_count + 1, sizeof *copy.pages);
    if (held->page_count) memcpy(copy.pages, held->pages, (size_t)held->page_count * sizeof *copy.pages);
    return copy;
}

/* The sequences of each old replica that is whole but does not go on are shared out over the new ones: to the one that has
 * most of its ranks, or in turns when none has any. */
static void make_adoptions(const struct gw_planning *in, struct gw_plan *plan)
{
    plan->adoptions = gw_alloc((size_t)(plan->before.data * plan->layout.data) + 1, sizeof *plan->adoptions);
    for (int old = 0; old < plan->before.data; old++) {
        if (is_kept(plan, old) || !whole(in, plan, old, false)) continue;
        const struct gw_hello *hello = &in->hellos[rank_before(plan, old, 0)];
        int best = -1, most = 0, first = plan->adoption_count;
        for (int now = 0; now < plan->layout.data; now++) {
            int common = plan->kept[now] >= 0 ? 0 : common_ranks(plan, old, now);
            if (common > most) most = common, best = now;
        }
        int targets = best >= 0 ? 1 : plan->layout.data;
        for (int t = 0; t < targets; t++) {
            struct gw_adoption *adoption = &plan->adoptions[plan->adoption_count++];
            *adoption = (struct gw_adoption){.from = old, .to = best >= 0 ? best : t};
            adoption->held = gw_alloc((size_t)hello->held_count + 1, sizeof *adoption->held);
        }
        for (int h = 0; h < hello->held_count; h++) {
            struct gw_adoption *adoption = &plan->adoptions[first + h % targets];
            adoption->held[adoption->held_count++] = copy_held(&hello->held[h]);
        }
    }
}

gw_err gw_planning_make(const struct gw_planning *in, struct gw_plan *plan)
{
    gw_err rc = GW_OK;
    int32_t pages_before = 0;
    *plan = (struct gw_plan){.number = in->number, .peer_count = in->count};
    plan->peers = gw_alloc((size_t)in->count + 1, sizeof *plan->peers);
    for (int r = 0; r < in->count; r++) {
        plan->peers[r] = in->hellos[r].peer;
        plan->peers[r].slot = -1;
    }
    TRY(choose_layout(in, &plan->layout));
    TRY(choose_pages(in, plan->layout, &plan->kv_pages));
    plan->kept = gw_alloc((size_t)plan->layout.data, sizeof *plan->kept);
    look_back(in, plan, &pages_before);
    if (!memcmp(&plan->before, &plan->layout, sizeof plan->layout)) plan->kv_pages = pages_before;
    keep_replicas(in, plan, pages_before);
    fill_places(in, plan);
    number_locally(plan);
    make_adoptions(in, plan);
    plan->moves = gw_alloc(1, sizeof *plan->moves);
out:
    if (rc != GW_OK) gw_plan_free(plan);
    return rc;
}
