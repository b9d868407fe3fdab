/* See planning.h. */
#include "job/planning.h"

#include "plan/moves.h"
#include "plan/search.h"

#include <stdlib.h>
#include <string.h>

static const double KV_SHARE =
    0.5; /* of what the weights leave of the memory; the rest is for activations, the page cache, others */

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

static bool same_host(const struct gw_planning *in, int a, int b)
{
    return !strncmp(in->hellos[a].peer.host, in->hellos[b].peer.host, GW_HOST_BYTES);
}

/* A rank's share of its node's memory: all ranks there have looked at the same. */
static uint64_t memory_of(const struct gw_planning *in, int rank)
{
    uint64_t there = 0;
    if (in->options->memory_bytes) return in->options->memory_bytes;
    for (int r = 0; r < in->count; r++) there += same_host(in, r, rank);
    return in->hellos[rank].memory / there;
}

/* The least memory that one of the active ranks has. */
static double least_memory(const struct gw_planning *in)
{
    double least = 0;
    bool any = false;
    for (int r = 0; r < in->count; r++) {
        if (!in->active[r]) continue;
        double memory = (double)memory_of(in, r);
        if (!any || memory < least) least = memory;
        any = true;
    }
    return least;
}

static double speed_of(const struct gw_planning *in, int rank)
{
    return in->speeds ? in->speeds[rank] : 1;
}

/* The ranks as the planner sees them. */
static struct gw_device *devices_of(const struct gw_planning *in)
{
    struct gw_device *devices = gw_alloc((size_t)in->count + 1, sizeof *devices);
    for (int r = 0; r < in->count; r++) {
        devices[r] = (struct gw_device){
            .memory_bytes = memory_of(in, r), .speed = speed_of(in, r), .node = r, .leaving = !in->active[r]};
        for (int other = r - 1; other >= 0; other--)
            if (same_host(in, other, r)) devices[r].node = other;
    }
    return devices;
}

static struct gw_search search_for(const struct gw_planning *in, const struct gw_plan *plan,
                                   const struct gw_device *devices)
{
    return (struct gw_search){.dims = &in->dims,
                              .cost = in->cost,
                              .devices = devices,
                              .device_count = in->count,
                              .work = {.prompt_tokens = 256,
                                       .output_tokens = 256,
                                       .requests = in->requests,
                                       .context = in->context,
                                       .max_seqs = in->options->max_seqs},
                              .objective = in->options->objective,
                              .deadline_s = in->deadline_s,
                              .kv_share = KV_SHARE,
                              .current = plan->before};
}

/* The best layout that the search finds; of the wanted data x tensor x pipeline while there are ranks enough for that. */
static gw_err choose_layout(const struct gw_planning *in, const struct gw_plan *plan, struct gw_layout *layout)
{
    gw_err rc = GW_OK;
    struct gw_device *devices = devices_of(in);
    struct gw_candidate *candidates = NULL;
    int count = 0;
    struct gw_search search = search_for(in, plan, devices);
    if (in->wanted.data && gw_layout_ranks(in->wanted) <= count_active(in)) {
        search.only = in->wanted;
        TRY(gw_layout_check(&in->dims, in->wanted));
    }
    rc = gw_search(&search, &candidates, &count);
    if (rc == GW_ERR_LAYOUT &&
        search.only.data) { /* what is wrong with the wanted one is told when its pages are counted */
        *layout = in->wanted;
        rc = GW_OK;
        goto out;
    }
    TRY(rc);
    *layout = candidates[0].layout;
out:
    free(devices);
    free(candidates);
    return rc;
}

/* The KV pages of every rank: from the option, or half of what the weights leave of the least memory; the same everywhere. */
static gw_err choose_pages(const struct gw_planning *in, struct gw_layout layout, int32_t *pages)
{
    gw_err rc = GW_OK;
    uint64_t most = (uint64_t)least_pages(in) * (uint64_t)in->options->max_seqs, worst_page_bytes = 0;
    if (most > INT32_MAX) most = INT32_MAX;
    *pages = (int32_t)most;
    for (int slot = 0; slot < layout.tensor * layout.pipeline; slot++) {
        struct gw_place place = gw_layout_place(layout, slot);
        struct gw_shard shard = gw_layout_shard(&in->dims, layout, place.shard, place.stage);
        uint64_t page_bytes = gw_shard_page_bytes(&in->dims, &shard);
        double budget = (double)in->options->kv_bytes;
        if (!in->options->kv_bytes) budget = (least_memory(in) - gw_shard_weight_bytes(&in->dims, &shard)) * KV_SHARE;
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

/* The plan before this one: that of most ranks, since a leader may have died while it sent one round; of as many, the latest, since a context may come
 * from a node that was cut off. Whoever knows another has no place that the others would know of. */
static void look_back(const struct gw_planning *in, struct gw_plan *plan, int32_t *pages)
{
    int most = 0;
    const struct gw_hello *typical = NULL;
    for (int r = 0; r < in->count; r++) {
        int same = 0;
        for (int other = 0; other < in->count; other++)
            same += in->hellos[other].peer.placed && in->hellos[other].plan == in->hellos[r].plan;
        bool later = typical && same == most && in->hellos[r].plan > typical->plan;
        if (!in->hellos[r].peer.placed || (same <= most && !later)) continue;
        most = same;
        typical = &in->hellos[r];
    }
    *pages = typical ? typical->kv_pages : 0;
    if (typical) plan->before = typical->layout;
    for (int r = 0; r < in->count; r++) plan->peers[r].placed &= typical && in->hellos[r].plan == typical->plan;
}

/* Replicas can go on only with the pages they have: so these stay while replicas come and go, unless one has no room for them. */
static int32_t pages_to_keep(const struct gw_plan *plan, int32_t pages_before)
{
    bool same = gw_layout_same_cut(plan->before, plan->layout);
    return same && (plan->before.data == plan->layout.data || pages_before < plan->kv_pages) ? pages_before
                                                                                             : plan->kv_pages;
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

/* The slowest rank that has a place when the fastest are taken. */
static double least_speed(const struct gw_planning *in, const struct gw_plan *plan)
{
    int ranks = gw_layout_ranks(plan->layout);
    int *device_of_slot = gw_alloc((size_t)ranks + 1, sizeof *device_of_slot);
    struct gw_device *devices = devices_of(in);
    struct gw_search search = search_for(in, plan, devices);
    double least = gw_search_deal(&search, plan->layout, device_of_slot) ? 1 : 0;
    for (int slot = 0; least > 0 && slot < ranks; slot++)
        if (devices[device_of_slot[slot]].speed < least) least = devices[device_of_slot[slot]].speed;
    free(device_of_slot);
    free(devices);
    return least;
}

static bool fast_enough(const struct gw_planning *in, const struct gw_plan *plan, int replica, double least)
{
    for (int slot = 0; slot < plan->before.tensor * plan->before.pipeline; slot++)
        if (speed_of(in, rank_before(plan, replica, slot)) < least) return false;
    return true;
}

/* Replicas that can go on as they are do, unless there are faster ranks for them. One whose head is another process now has its sequences adopted instead:
 * the schedule went with the head, while a worker needs nothing but its memory. */
static void keep_replicas(const struct gw_planning *in, struct gw_plan *plan, int32_t pages_before)
{
    int next = 0, size = plan->layout.tensor * plan->layout.pipeline;
    for (int r = 0; r < plan->layout.data; r++) plan->kept[r] = -1;
    if (!gw_layout_same_cut(plan->before, plan->layout) || pages_before != plan->kv_pages) return;
    double least = least_speed(in, plan);
    for (int old = 0; old < plan->before.data && next < plan->layout.data; old++) {
        if (!whole(in, plan, old, true) || plan->peers[rank_before(plan, old, 0)].resumed) continue;
        if (!fast_enough(in, plan, old, least)) continue;
        for (int slot = 0; slot < size; slot++) plan->peers[rank_before(plan, old, slot)].slot = next * size + slot;
        plan->kept[next++] = old;
    }
}

/* What each rank holds, for the mapping; ranks of kept replicas have their place. */
static void list_holdings(const struct gw_planning *in, const struct gw_plan *plan, struct gw_device *devices,
                          struct gw_holding *holdings)
{
    for (int r = 0; r < in->count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        holdings[r] = (struct gw_holding){.weights = peer->placed, .replica = -1};
        if (peer->placed) {
            holdings[r].shard = gw_layout_shard(&in->dims, plan->before, peer->before.shard, peer->before.stage);
            if (whole(in, plan, peer->before.replica, false)) holdings[r].replica = peer->before.replica;
        }
        devices[r].leaving |= peer->slot >= 0;
    }
}

/* The speed that each place asks for: as the deal has it, by which the layout was chosen. Where all places of a replica are alike, it is that of
 * the slowest for all of them. */
static void find_slot_speeds(const struct gw_planning *in, const struct gw_plan *plan, const struct gw_device *devices,
                             struct gw_layout layout, double *slot_speed)
{
    int ranks = gw_layout_ranks(layout), size = layout.tensor * layout.pipeline;
    int *device_of_slot = gw_alloc((size_t)ranks + 1, sizeof *device_of_slot);
    struct gw_search search = search_for(in, plan, devices);
    bool dealt = gw_search_deal(&search, layout, device_of_slot);
    for (int slot = 0; slot < ranks; slot++) slot_speed[slot] = dealt ? devices[device_of_slot[slot]].speed : 0;
    for (int slot = 0; slot < ranks && !layout.stage_speed[0] && !layout.shard_speed[0]; slot++) {
        double *first = &slot_speed[slot - slot % size];
        for (int i = 0; i < size; i++)
            if (first[i] < slot_speed[slot]) slot_speed[slot] = first[i];
    }
    free(device_of_slot);
}

/* The other places go to the ranks that are left, so that most bytes stay where they are. */
static gw_err fill_places(const struct gw_planning *in, struct gw_plan *plan)
{
    gw_err rc = GW_OK;
    int kept = 0, size = plan->layout.tensor * plan->layout.pipeline, count = 0;
    while (kept < plan->layout.data && plan->kept[kept] >= 0) kept++;
    struct gw_device *devices = devices_of(in);
    struct gw_holding *holdings = gw_alloc((size_t)in->count + 1, sizeof *holdings);
    struct gw_inherit *inherits = gw_alloc((size_t)plan->before.data + 1, sizeof *inherits);
    uint64_t *tokens = gw_alloc((size_t)plan->before.data + 1, sizeof *tokens);
    int *device_of_slot = gw_alloc((size_t)gw_layout_ranks(plan->layout) + 1, sizeof *device_of_slot);
    double *slot_speed = gw_alloc((size_t)gw_layout_ranks(plan->layout) + 1, sizeof *slot_speed);
    list_holdings(in, plan, devices, holdings);
    struct gw_assign assign = {.dims = &in->dims,
                               .devices = devices,
                               .holdings = holdings,
                               .device_count = in->count,
                               .layout = plan->layout,
                               .slot_speed = slot_speed,
                               .inherits = inherits};
    assign.layout.data -= kept;
    for (int old = 0; old < plan->before.data; old++) {
        int head = whole(in, plan, old, false) ? rank_before(plan, old, 0) : -1;
        for (int h = 0; head >= 0 && h < in->hellos[head].held_count; h++)
            tokens[old] += (uint64_t)in->hellos[head].held[h].computed;
    }
    for (int now = 0; now < kept; now++) tokens[plan->kept[now]] = 0;
    if (assign.layout.data == 0) goto out;
    find_slot_speeds(in, plan, devices, assign.layout, slot_speed);
    gw_assign_inherits(&assign, plan->before.data, tokens, inherits, &count);
    assign.inherit_count = count;
    TRY(gw_assign_places(&assign, device_of_slot, NULL));
    for (int slot = 0; slot < gw_layout_ranks(assign.layout); slot++)
        plan->peers[device_of_slot[slot]].slot = kept * size + slot;
out:
    free(devices);
    free(holdings);
    free(inherits);
    free(tokens);
    free(device_of_slot);
    free(slot_speed);
    return rc;
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

/* Replicas of the plan that may take sequences over from `old`: those that are new, have ranks of it and so keep most in place; one of them, or
 * its share of them when there are more replicas than before. If none has any, all. */
static int find_heirs(const struct gw_plan *plan, int old, int *heirs)
{
    int count = 0, share = plan->before.data ? (plan->layout.data + plan->before.data - 1) / plan->before.data : 1;
    bool *taken = gw_alloc((size_t)plan->layout.data, sizeof *taken);
    while (count < share) {
        int best = -1, most = 0;
        for (int now = 0; now < plan->layout.data; now++) {
            int common = taken[now] || plan->kept[now] >= 0 ? 0 : common_ranks(plan, old, now);
            if (common > most) most = common, best = now;
        }
        if (best < 0) break;
        taken[best] = true;
        heirs[count++] = best;
    }
    free(taken);
    for (int now = 0; count == 0 && now < plan->layout.data; now++) heirs[now] = now;
    return count ? count : plan->layout.data;
}

/* The sequences of each old replica that is whole but does not go on are shared out over its heirs. */
static void make_adoptions(const struct gw_planning *in, struct gw_plan *plan)
{
    int *heirs = gw_alloc((size_t)plan->layout.data, sizeof *heirs);
    plan->adoptions = gw_alloc((size_t)(plan->before.data * plan->layout.data) + 1, sizeof *plan->adoptions);
    for (int old = 0; old < plan->before.data; old++) {
        if (is_kept(plan, old) || !whole(in, plan, old, false)) continue;
        const struct gw_hello *hello = &in->hellos[rank_before(plan, old, 0)];
        int count = find_heirs(plan, old, heirs), first = plan->adoption_count;
        for (int i = 0; i < count; i++) {
            struct gw_adoption *adoption = &plan->adoptions[plan->adoption_count++];
            *adoption = (struct gw_adoption){.from = old, .to = heirs[i]};
            adoption->held = gw_alloc((size_t)hello->held_count + 1, sizeof *adoption->held);
        }
        for (int h = 0; h < hello->held_count; h++) {
            struct gw_adoption *adoption = &plan->adoptions[first + h % count];
            adoption->held[adoption->held_count++] = copy_held(&hello->held[h]);
        }
    }
    free(heirs);
}

/* ---- moves ----------------------------------------------------------------------------------------------------- */

/* Can the packed form be cut at every head and atom? Panels of 16 outputs and blocks of 32 inputs are whole then. */
static bool can_cut(const struct gw_dims *dims)
{
    return dims->head_dim % GW_BLOCK == 0;
}

/* Are a rank's missing weights better fetched from peers? Where another rank of its node has read the model, it lies in the page cache, and
 * packing it anew costs about what receiving it does; a node that is new to the job would have to read it over the network. */
static bool from_peers(const struct gw_planning *in, const struct gw_plan *plan, int rank)
{
    if (in->options->weights != GW_WEIGHTS_AUTO) return in->options->weights == GW_WEIGHTS_PEERS;
    if (in->hellos[rank].packed) return false;
    for (int r = 0; r < plan->peer_count; r++)
        if (plan->peers[r].placed && !strncmp(plan->peers[r].host, plan->peers[rank].host, GW_HOST_BYTES)) return false;
    return true;
}

static struct gw_shard shard_before(const struct gw_planning *in, const struct gw_plan *plan, int rank)
{
    struct gw_place place = plan->peers[rank].before;
    return gw_layout_shard(&in->dims, plan->before, place.shard, place.stage);
}

/* What the plan of moves starts from: [peer_count] each, and the adoptions with what is left of the old replicas' pages. */
struct moving {
    struct gw_device *devices;
    struct gw_holding *holdings;
    enum gw_weight_source *sources;
    struct gw_inherit *inherits;
    int inherit_count;
    int *device_of_slot;
};

/* Different pages among those of an adoption. */
static int count_pages(const struct gw_adoption *adoption, int32_t kv_pages)
{
    int count = 0;
    bool *seen = gw_alloc((size_t)kv_pages + 1, sizeof *seen);
    for (int h = 0; h < adoption->held_count; h++)
        for (int p = 0; p < adoption->held[h].page_count; p++) {
            int32_t page = adoption->held[h].pages[p];
            if (page < 0 || page >= kv_pages || seen[page]) continue;
            seen[page] = true;
            count++;
        }
    free(seen);
    return count;
}

/* KV: that of every adoption, and what else takes memory in replicas that do not go on. */
static void list_inherits(const struct gw_plan *plan, int32_t pages_before, struct moving *m)
{
    m->inherits = gw_alloc((size_t)(plan->adoption_count + plan->before.data) + 1, sizeof *m->inherits);
    for (int a = 0; a < plan->adoption_count; a++) {
        const struct gw_adoption *adoption = &plan->adoptions[a];
        uint64_t tokens = (uint64_t)count_pages(adoption, pages_before) * GW_PAGE_TOKENS;
        m->inherits[m->inherit_count++] = (struct gw_inherit){adoption->from, adoption->to, tokens, false};
    }
    for (int old = 0; old < plan->before.data; old++) {
        uint64_t rest = (uint64_t)pages_before * GW_PAGE_TOKENS;
        for (int a = 0; a < plan->adoption_count; a++)
            if (m->inherits[a].from == old) rest -= m->inherits[a].kv_tokens < rest ? m->inherits[a].kv_tokens : rest;
        if (!is_kept(plan, old)) m->inherits[m->inherit_count++] = (struct gw_inherit){old, -1, rest, false};
    }
}

static void open_moving(const struct gw_planning *in, const struct gw_plan *plan, int32_t pages_before,
                        struct moving *m)
{
    size_t n = (size_t)plan->peer_count + 1;
    *m = (struct moving){.devices = devices_of(in),
                         .holdings = gw_alloc(n, sizeof *m->holdings),
                         .sources = gw_alloc(n, sizeof *m->sources),
                         .device_of_slot = gw_alloc((size_t)gw_layout_ranks(plan->layout) + 1, sizeof(int))};
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        bool peers = can_cut(&in->dims) && from_peers(in, plan, r);
        m->holdings[r] = (struct gw_holding){.weights = peer->placed, .replica = -1};
        m->sources[r] = peers ? GW_WEIGHTS_FROM_DEVICES : GW_WEIGHTS_FROM_STORAGE;
        if (peer->slot >= 0) m->device_of_slot[peer->slot] = r;
        if (!peer->placed) continue;
        m->holdings[r].shard = shard_before(in, plan, r);
        m->holdings[r].replica = peer->before.replica;
        if (is_kept(plan, peer->before.replica)) m->devices[r].memory_bytes = UINT64_MAX; /* it has its pages already */
    }
    list_inherits(plan, pages_before, m);
}

static void close_moving(struct moving *m)
{
    free(m->devices);
    free(m->holdings);
    free(m->sources);
    free(m->inherits);
    free(m->device_of_slot);
}

/* Do weights of this layer come to this rank piece by piece? Then it does not load any of them by itself. */
static bool comes_in_pieces(const struct gw_moves *moves, int rank, int layer)
{
    for (int i = 0; i < moves->count; i++) {
        const struct gw_move *move = &moves->moves[i];
        if (move->to == rank && move->from >= 0 && move->layer == layer && move->part != GW_PART_KV) return true;
    }
    return false;
}

/* Must a move be in the plan, or does it happen by itself when a rank takes its new place and leaves the old one? */
static bool is_told(const struct gw_moves *moves, const struct gw_move *move)
{
    if (move->to == GW_TO_NOWHERE) return moves->tight[move->from];
    if (move->from == GW_FROM_STORAGE) return moves->tight[move->to] || comes_in_pieces(moves, move->to, move->layer);
    return move->from >= 0;
}

/* The order in which weights and KV move, within the memory that ranks have. KV for which there is no room on the way is not adopted. */
static gw_err make_moves(const struct gw_planning *in, struct gw_plan *plan, int32_t pages_before)
{
    gw_err rc = GW_OK;
    struct moving m;
    struct gw_moves moves = {0};
    open_moving(in, plan, pages_before, &m);
    struct gw_moves_in moves_in = {.dims = &in->dims,
                                   .cost = in->cost,
                                   .devices = m.devices,
                                   .holdings = m.holdings,
                                   .device_count = plan->peer_count,
                                   .layout = plan->layout,
                                   .device_of_slot = m.device_of_slot,
                                   .inherits = m.inherits,
                                   .inherit_count = m.inherit_count,
                                   .sources = m.sources,
                                   .kv_renewed = pages_before < plan->kv_pages};
    rc = gw_moves_plan(&moves_in, &moves);
    if (rc == GW_ERR_LAYOUT) { /* --kv-memory says that there is more than it seems */
        for (int r = 0; r < plan->peer_count; r++) m.devices[r].memory_bytes = UINT64_MAX;
        rc = gw_moves_plan(&moves_in, &moves);
    }
    TRY(rc);
    plan->moves = gw_alloc((size_t)moves.count + 1, sizeof *plan->moves);
    for (int i = 0; i < moves.count; i++)
        if (is_told(&moves, &moves.moves[i])) plan->moves[plan->move_count++] = moves.moves[i];
    for (int a = 0; a < plan->adoption_count; a++) {
        if (!moves.recomputed[a]) continue;
        for (int h = 0; h < plan->adoptions[a].held_count; h++) free(plan->adoptions[a].held[h].pages);
        plan->adoptions[a].held_count = 0;
    }
out:
    gw_moves_free(&moves);
    close_moving(&m);
    return rc;
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
    look_back(in, plan, &pages_before);
    TRY(choose_layout(in, plan, &plan->layout));
    TRY(choose_pages(in, plan->layout, &plan->kv_pages));
    plan->kept = gw_alloc((size_t)plan->layout.data, sizeof *plan->kept);
    plan->kv_pages = pages_to_keep(plan, pages_before);
    keep_replicas(in, plan, pages_before);
    TRY(fill_places(in, plan));
    number_locally(plan);
    make_adoptions(in, plan);
    TRY(make_moves(in, plan, pages_before));
out:
    if (rc != GW_OK) gw_plan_free(plan);
    return rc;
}
