/* From hellos to plans: thousands of random worlds (ranks lost, come, leaving, incomplete, of another plan) and what must hold of every plan
 * made for them; hellos, plans and page maps there and back, cut short at every byte, with bytes changed; files with notices.
 * GODWIT_TEST_SEED repeats a seed. */
#include "base/file.h"
#include "base/log.h"
#include "job/notice.h"
#include "job/planning.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORLDS = 6000, MOST_RANKS = 48, MOST_SEQS = 2048 };

static uint64_t random_state, seed = 20260402;

static int next_int(int bound) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (int)(((z ^ z >> 31) >> 32) * (uint64_t)bound >> 32);
}

/* ---- random worlds ------------------------------------------------------------------------------------------------ */

struct world {
    struct gw_job_options options;
    struct gw_planning planning;
    double speeds[MOST_RANKS];
    struct gw_hello hellos[MOST_RANKS];
    bool active[MOST_RANKS];
    int count;
    struct gw_layout before;
    struct gw_layout later; /* of a plan that only some ranks took */
    int later_count;
    bool roomy; /* every rank has memory for everything */
};

static struct gw_cost machine;

static struct gw_dims random_dims(void)
{
    static const int kv_heads[] = {1, 2, 3, 4, 8};
    struct gw_dims dims = {.layers = 1 + next_int(12),
                           .d_model = 256,
                           .kv_heads = kv_heads[next_int(5)],
                           .head_dim = 32,
                           .ffn = 512,
                           .vocab = 600,
                           .bytes_per_weight = 0.6};
    dims.heads = dims.kv_heads * (1 + next_int(3));
    dims.ffn_atoms = gw_ffn_atoms(dims.kv_heads, dims.ffn);
    dims.output_bytes = dims.vocab * dims.d_model;
    return dims;
}

static struct gw_layout random_layout(const struct gw_dims *dims, int most)
{
    struct gw_layout l = {0};
    double speeds[4];
    do {
        l.tensor = 1 + next_int(dims->ffn_atoms < 4 ? dims->ffn_atoms : 4);
        l.pipeline = 1 + next_int(dims->layers < 3 ? dims->layers : 3);
        l.data = 1 + next_int(4);
    } while (gw_layout_ranks(l) > most);
    for (int i = 0; i < 4; i++) speeds[i] = 1 + next_int(2);
    if (next_int(3) == 0) gw_layout_split(&l, speeds, speeds);
    return l;
}

/* What a head has: sequences with pages, some of them shared. */
static void hold_sequences(struct gw_hello *hello, int64_t *next_index)
{
    hello->held_count = next_int(6);
    hello->held = calloc((size_t)hello->held_count + 1, sizeof *hello->held);
    for (int i = 0; i < hello->held_count; i++) {
        struct gw_held *h = &hello->held[i];
        h->index = (*next_index)++;
        h->computed = next_int(200);
        h->page_count = (h->computed + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
        h->pages = calloc((size_t)h->page_count + 1, sizeof *h->pages);
        for (int p = 0; p < h->page_count; p++) h->pages[p] = next_int(hello->kv_pages);
    }
}

static void add_rank(struct world *w, int slot, int64_t *next_index)
{
    struct gw_hello *hello = &w->hellos[w->count];
    int size = w->before.tensor * w->before.pipeline;
    hello->peer = (struct gw_peer){.member = 100 + w->count, .pid = 4000 + w->count, .started = 7, .slot = -1};
    snprintf(hello->peer.host, sizeof hello->peer.host, "node%d", next_int(3));
    hello->cpus = 1 + next_int(8);
    hello->memory = w->roomy ? (uint64_t)1 << 34 : (uint64_t)(1 + next_int(60)) << 18;
    w->active[w->count++] = next_int(7) > 0;
    if (slot < 0) return;
    hello->peer.placed = next_int(12) > 0;
    hello->peer.before = gw_layout_place(w->before, slot);
    hello->plan = 7;
    hello->layout = w->before;
    hello->kv_pages = 60;
    if (slot % size == 0) hold_sequences(hello, next_index);
    if (next_int(14) == 0 &&
        w->later_count <
            gw_layout_ranks(w->later)) { /* the leader died while it sent the next plan, and this one had it */
        hello->plan = 8;
        hello->layout = w->later;
        hello->peer.before = gw_layout_place(w->later, w->later_count++);
    }
}

static void make_world(struct world *w, uint64_t world_seed)
{
    int64_t next_index = 1000;
    random_state = world_seed * 1000003;
    *w = (struct world){.roomy = next_int(3) > 0};
    w->planning.dims = random_dims();
    w->before = random_layout(&w->planning.dims, MOST_RANKS / 2);
    w->later = random_layout(&w->planning.dims, 12);
    int slots = gw_layout_ranks(w->before), most_lost = next_int(4);
    for (int slot = 0; slot < slots; slot++)
        if (next_int(10) >= most_lost) add_rank(w, slot, &next_index);
    for (int joined = next_int(4); joined > 0 || !w->count; joined--) add_rank(w, -1, &next_index);
    for (int i = w->count - 1; i > 0; i--) { /* ranks come in any order */
        int other = next_int(i + 1);
        struct gw_hello hello = w->hellos[i];
        w->hellos[i] = w->hellos[other];
        w->hellos[other] = hello;
    }
    w->options.max_seqs = 1 + next_int(20);
    w->options.weights = (enum gw_weights)next_int(3);
    w->planning.options = &w->options;
    w->planning.context = 1 + next_int(256);
    w->planning.hellos = w->hellos;
    w->planning.active = w->active;
    w->planning.count = w->count;
    w->planning.number = 9;
    w->planning.cost = &machine;
    for (int r = 0; r < w->count; r++) w->speeds[r] = (1 + next_int(2)) / 2.0;
    if (next_int(3) == 0) w->planning.speeds = w->speeds;
    if (next_int(3) == 0) w->planning.wanted = next_int(2) ? w->before : random_layout(&w->planning.dims, 16);
}

static void close_world(struct world *w)
{
    for (int r = 0; r < w->count; r++) gw_hello_free(&w->hellos[r]);
}

static int active_ranks(const struct world *w)
{
    int active = 0;
    for (int r = 0; r < w->count; r++) active += w->active[r];
    return active;
}

/* ---- what must hold of a plan -------------------------------------------------------------------------------------- */

static bool same_layout(struct gw_layout a, struct gw_layout b)
{
    return a.data == b.data && a.tensor == b.tensor && a.pipeline == b.pipeline;
}

static const char *check_places(const struct world *w, const struct gw_plan *plan)
{
    int slots = gw_layout_ranks(plan->layout), taken = 0;
    if (plan->peer_count != w->count || plan->number != 9) return "peers or number";
    if (gw_layout_check(&w->planning.dims, plan->layout) != GW_OK || slots > active_ranks(w))
        return "a layout that does not fit";
    struct gw_layout wanted = w->planning.wanted;
    if (wanted.data && gw_layout_ranks(wanted) <= active_ranks(w) && !same_layout(wanted, plan->layout))
        return "another layout than the wanted one";
    for (int r = 0; r < plan->peer_count; r++) {
        int slot = plan->peers[r].slot;
        if (plan->peers[r].member != w->hellos[r].peer.member) return "another peer";
        if (slot < -1 || slot >= slots || (slot >= 0 && !w->active[r]))
            return "a place for one who leaves, or no place";
        if (slot >= 0 && gw_plan_rank(plan, slot) != r) return "two in one place";
        taken += slot >= 0;
    }
    return taken == slots ? NULL : "an empty place";
}

/* The plan before is that of most ranks, of as many the latest; who has another has no place in it. */
static const char *check_before(const struct world *w, const struct gw_plan *plan)
{
    int votes[10] = {0}, most = 0, latest = 0;
    uint64_t chosen = 0;
    for (int r = 0; r < w->count; r++)
        if (w->hellos[r].peer.placed) votes[w->hellos[r].plan]++;
    for (int p = 0; p < 10; p++)
        if (votes[p] && votes[p] >= most) most = votes[latest = p];
    for (int r = 0; r < w->count; r++)
        if (plan->peers[r].placed) chosen = w->hellos[r].plan;
    if (chosen != (uint64_t)latest) return "the plan before is not that of most, or not the latest";
    for (int r = 0; r < w->count; r++) {
        bool placed = w->hellos[r].peer.placed && w->hellos[r].plan == chosen;
        if (plan->peers[r].placed != placed) return "who had a place";
        if (placed && !same_layout(plan->before, w->hellos[r].layout)) return "the layout before";
    }
    return NULL;
}

/* The rank at a place of an old replica; -1: gone, or not complete. */
static int old_rank(const struct gw_plan *plan, int old, int slot)
{
    struct gw_place place = gw_layout_place(plan->before, slot);
    place.replica = old;
    return gw_plan_rank_before(plan, place);
}

static bool is_whole(const struct world *w, const struct gw_plan *plan, int old, bool active)
{
    for (int s = 0; s < plan->before.tensor * plan->before.pipeline; s++) {
        int r = old_rank(plan, old, s);
        if (r < 0 || (active && !w->active[r])) return false;
    }
    return true;
}

static const char *check_kept(const struct world *w, const struct gw_plan *plan)
{
    int kept = 0, whole = 0, size = plan->layout.tensor * plan->layout.pipeline;
    bool same = gw_layout_same_cut(plan->before, plan->layout);
    for (int old = 0; old < plan->before.data; old++) whole += is_whole(w, plan, old, true);
    for (int r = 0; r < plan->layout.data; r++) {
        int old = plan->kept[r];
        if (old < 0) continue;
        kept++;
        if (!same || old >= plan->before.data || plan->kv_pages != 60) return "a replica is kept that cannot go on";
        for (int s = 0; s < size; s++) {
            int rank = gw_plan_rank(plan, r * size + s);
            if (rank != old_rank(plan, old, s) || !w->active[rank]) return "a kept replica has other ranks";
        }
        for (int other = 0; other < r; other++)
            if (plan->kept[other] == old) return "a replica is kept twice";
    }
    if (!same || (plan->kv_pages != 60 && plan->before.data != plan->layout.data))
        return kept ? "kept with other pages" : NULL;
    int most = whole < plan->layout.data ? whole : plan->layout.data;
    if (w->planning.speeds) return NULL; /* others may be faster */
    return kept == most ? NULL : "a replica is not kept though it could be";
}

static bool keeps(const struct gw_plan *plan, int old)
{
    for (int r = 0; r < plan->layout.data; r++)
        if (plan->kept[r] == old) return true;
    return false;
}

static long left_behind; /* sequences for whose KV there was no room on the way */

static const char *check_adoptions(const struct world *w, const struct gw_plan *plan)
{
    static bool seen[MOST_SEQS];
    int adopted = 0, held = 0;
    memset(seen, 0, sizeof seen);
    for (int a = 0; a < plan->adoption_count; a++) {
        const struct gw_adoption *adoption = &plan->adoptions[a];
        if (adoption->from < 0 || adoption->from >= plan->before.data || adoption->to < 0 ||
            adoption->to >= plan->layout.data)
            return "an adoption from or to nowhere";
        if (keeps(plan, adoption->from) || !is_whole(w, plan, adoption->from, false))
            return "an adoption from a replica that is kept or broken";
        const struct gw_hello *head = &w->hellos[old_rank(plan, adoption->from, 0)];
        for (int h = 0; h < adoption->held_count; h++) {
            const struct gw_held *one = &adoption->held[h], *source = NULL;
            for (int i = 0; i < head->held_count; i++)
                if (head->held[i].index == one->index) source = &head->held[i];
            if (!source || seen[one->index]) return "a sequence twice, or of somebody else";
            seen[one->index] = true;
            adopted++;
            if (source->computed != one->computed || source->page_count != one->page_count ||
                memcmp(source->pages, one->pages, (size_t)one->page_count * sizeof *one->pages) != 0)
                return "a sequence with other pages";
        }
    }
    for (int old = 0; old < plan->before.data; old++)
        if (!keeps(plan, old) && is_whole(w, plan, old, false)) held += w->hellos[old_rank(plan, old, 0)].held_count;
    left_behind += held - adopted;
    return adopted == held || !w->roomy ? NULL : "a sequence is left behind";
}

/* ---- weights ------------------------------------------------------------------------------------------------------- */

struct needs {
    bool heads[64], atoms[64], rows[1024]; /* that moves have brought, or the rank holds alike */
};

static bool add_range(bool *have, int begin, int end)
{
    for (int i = begin; i < end; i++) {
        if (have[i]) return false;
        have[i] = true;
    }
    return true;
}

static bool has_range(const bool *have, int begin, int end)
{
    for (int i = begin; i < end; i++)
        if (!have[i]) return false;
    return true;
}

/* Does the shard hold the range of a move? */
static bool holds_range(const struct gw_shard *s, const struct gw_move *move)
{
    int begin = move->part == GW_PART_ATOMS ? s->ffn_begin : s->kv_begin;
    int end = move->part == GW_PART_ATOMS ? s->ffn_end : s->kv_end;
    if (move->part == GW_PART_OUTPUT) return s->last && move->begin >= s->vocab_begin && move->end <= s->vocab_end;
    return move->layer >= s->layer_begin && move->layer < s->layer_end && move->begin >= begin && move->end <= end;
}

static const char *check_move(const struct world *w, const struct gw_plan *plan, const struct gw_move *move)
{
    const struct gw_dims *dims = &w->planning.dims;
    struct gw_place to = gw_layout_place(plan->layout, plan->peers[move->to].slot);
    struct gw_shard now = gw_layout_shard(dims, plan->layout, to.shard, to.stage);
    if (!holds_range(&now, move)) return "what is not wanted";
    if (move->from < 0) return NULL;
    if (!plan->peers[move->from].placed) return "from one who has nothing";
    struct gw_place from = plan->peers[move->from].before;
    struct gw_shard source = gw_layout_shard(dims, plan->before, from.shard, from.stage);
    return holds_range(&source, move) ? NULL : "from one who lacks it";
}

/* A layer with moves is not loaded: so they and what the rank has alike must bring all of it, nothing twice. */
static const char *check_layer_moves(const struct world *w, const struct gw_plan *plan, int rank, int layer)
{
    static struct needs n;
    const struct gw_dims *dims = &w->planning.dims;
    const struct gw_peer *peer = &plan->peers[rank];
    struct gw_place place = gw_layout_place(plan->layout, peer->slot);
    struct gw_shard now = gw_layout_shard(dims, plan->layout, place.shard, place.stage), before = {0};
    int moves = 0;
    memset(&n, 0, sizeof n);
    for (int m = 0; m < plan->move_count; m++) {
        const struct gw_move *move = &plan->moves[m];
        if (move->to != rank || move->part == GW_PART_KV) continue;
        if ((move->part == GW_PART_OUTPUT ? dims->layers : move->layer) != layer) continue;
        bool *have = move->part == GW_PART_HEADS ? n.heads : move->part == GW_PART_ATOMS ? n.atoms : n.rows;
        moves++;
        if (!add_range(have, move->begin, move->end)) return "weights twice";
    }
    if (!moves) return NULL;
    if (peer->placed) before = gw_layout_shard(dims, plan->before, peer->before.shard, peer->before.stage);
    if (layer == dims->layers) return has_range(n.rows, now.vocab_begin, now.vocab_end) ? NULL : "rows are missing";
    bool had = layer >= before.layer_begin && layer < before.layer_end;
    bool heads = had && before.kv_begin == now.kv_begin && before.kv_end == now.kv_end;
    bool atoms = had && before.ffn_begin == now.ffn_begin && before.ffn_end == now.ffn_end;
    if (!heads && !has_range(n.heads, now.kv_begin, now.kv_end)) return "heads are missing";
    return atoms || has_range(n.atoms, now.ffn_begin, now.ffn_end) ? NULL : "atoms are missing";
}

/* All KV that an adoption brings to a rank: what the rank has of it, and moves. */
static const char *check_kv_moves(const struct world *w, const struct gw_plan *plan, int a, int rank, int layer)
{
    const struct gw_dims *dims = &w->planning.dims;
    const struct gw_peer *peer = &plan->peers[rank];
    struct gw_place place = gw_layout_place(plan->layout, peer->slot);
    struct gw_shard now = gw_layout_shard(dims, plan->layout, place.shard, place.stage);
    bool heads[64] = {0};
    int moves = 0;
    for (int m = 0; m < plan->move_count; m++) {
        const struct gw_move *move = &plan->moves[m];
        if (move->to != rank || move->part != GW_PART_KV || move->inherit != a || move->layer != layer) continue;
        if (plan->peers[move->from].before.replica != plan->adoptions[a].from) return "KV of another replica";
        if (!add_range(heads, move->begin, move->end)) return "KV twice";
        moves++;
    }
    bool pages = false;
    for (int h = 0; h < plan->adoptions[a].held_count; h++) pages |= plan->adoptions[a].held[h].page_count > 0;
    if (!pages || layer < now.layer_begin || layer >= now.layer_end) return moves ? "KV that is not wanted" : NULL;
    if (!moves && peer->placed && peer->before.replica == plan->adoptions[a].from) {
        struct gw_shard had = gw_layout_shard(dims, plan->before, peer->before.shard, peer->before.stage);
        if (layer >= had.layer_begin && layer < had.layer_end && had.kv_begin == now.kv_begin &&
            had.kv_end == now.kv_end)
            return NULL; /* it stays */
    }
    return has_range(heads, now.kv_begin, now.kv_end) ? NULL : "KV is missing";
}

static const char *check_moves(const struct world *w, const struct gw_plan *plan)
{
    for (int m = 0; m < plan->move_count; m++) {
        const struct gw_move *move = &plan->moves[m];
        bool kv = move->part == GW_PART_KV;
        if (move->to == GW_TO_NOWHERE && move->from < 0) return "nobody drops something";
        if (move->to == GW_TO_NOWHERE) continue;
        if (plan->peers[move->to].slot < 0) return "something for one without a place";
        if (!kv && plan->kept[gw_layout_place(plan->layout, plan->peers[move->to].slot).replica] >= 0)
            return "weights for a replica that is kept";
        if (!kv && move->from >= 0 && w->options.weights == GW_WEIGHTS_STORAGE) return "weights move";
        const char *error = check_move(w, plan, move);
        if (error) return error;
    }
    for (int r = 0; r < plan->peer_count; r++)
        for (int layer = 0; plan->peers[r].slot >= 0 && layer <= w->planning.dims.layers; layer++) {
            const char *error = check_layer_moves(w, plan, r, layer);
            int replica = gw_layout_place(plan->layout, plan->peers[r].slot).replica;
            for (int a = 0; !error && a < plan->adoption_count && layer < w->planning.dims.layers; a++)
                if (plan->adoptions[a].to == replica) error = check_kv_moves(w, plan, a, r, layer);
            if (error) return error;
        }
    return NULL;
}

/* Ranks of one node have numbers of their own, from 0. */
static const char *check_local(const struct gw_plan *plan)
{
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *a = &plan->peers[r];
        int placed = 0;
        if (a->local_rank < 0 || a->local_rank >= a->local_size) return "number within the node";
        for (int o = 0; o < plan->peer_count; o++) {
            const struct gw_peer *b = &plan->peers[o];
            if (b->slot < 0 || strcmp(a->host, b->host) != 0) continue;
            placed++;
            if (o != r && a->slot >= 0 && a->local_rank == b->local_rank) return "two of one number on a node";
        }
        if (a->slot >= 0 && a->local_size != placed) return "ranks of a node";
    }
    return NULL;
}

static const char *check_memory(const struct world *w, const struct gw_plan *plan)
{
    int least = (w->planning.context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    bool stays = plan->kv_pages == 60; /* pages of the plan before may be more than a newcomer should have */
    if (plan->kv_pages < (stays ? 1 : least)) return "too few pages";
    for (int slot = 0; slot < gw_layout_ranks(plan->layout) && !stays; slot++) {
        struct gw_place place = gw_layout_place(plan->layout, slot);
        struct gw_shard s = gw_layout_shard(&w->planning.dims, plan->layout, place.shard, place.stage);
        double bytes = gw_shard_weight_bytes(&w->planning.dims, &s) +
                       (double)gw_shard_page_bytes(&w->planning.dims, &s) * plan->kv_pages;
        if (bytes > (double)w->hellos[gw_plan_rank(plan, slot)].memory) return "more than a rank's memory";
    }
    return NULL;
}

static const char *check_plan(const struct world *w, const struct gw_plan *plan)
{
    const char *error = check_places(w, plan);
    if (!error) error = check_before(w, plan);
    if (!error) error = check_kept(w, plan);
    if (!error) error = check_adoptions(w, plan);
    if (!error) error = check_moves(w, plan);
    if (!error) error = check_local(plan);
    return error ? error : check_memory(w, plan);
}

/* ---- messages ------------------------------------------------------------------------------------------------------ */

static gw_err decode_plan(const uint8_t *data, size_t bytes, struct gw_plan *plan)
{
    uint8_t *exact = malloc(bytes ? bytes : 1); /* so that the address sanitizer sees a read past its end */
    memcpy(exact, data, bytes);
    gw_err rc = gw_plan_decode(exact, bytes, plan);
    free(exact);
    return rc;
}

static gw_err decode_hello(const uint8_t *data, size_t bytes, struct gw_hello *hello)
{
    uint8_t *exact = malloc(bytes ? bytes : 1);
    memcpy(exact, data, bytes);
    gw_err rc = gw_hello_decode(exact, bytes, hello);
    free(exact);
    return rc;
}

/* What a rank does with a plan right away: nothing of it may lead outside. */
static void use_plan(const struct gw_plan *plan)
{
    int found = 0;
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        found += peer->slot >= 0 && plan->kept[gw_layout_place(plan->layout, peer->slot).replica] >= 0;
        found += peer->placed && gw_plan_rank_before(plan, peer->before) >= 0;
        found += (int)strlen(peer->host);
    }
    for (int a = 0; a < plan->adoption_count; a++) found += plan->kept[plan->adoptions[a].to];
    for (int m = 0; m < plan->move_count; m++) {
        const struct gw_move *move = &plan->moves[m];
        if (move->from >= 0) found += plan->peers[move->from].slot;
        if (move->to >= 0) found += plan->peers[move->to].slot;
        if (move->part == GW_PART_KV && move->to >= 0) found += plan->adoptions[move->inherit].from;
    }
    CU_ASSERT(found >= -1000000);
}

static void there_and_back(const struct gw_plan *plan)
{
    struct gw_buf first = {0}, second = {0};
    struct gw_plan copy;
    gw_plan_encode(plan, &first);
    CU_ASSERT_FATAL(decode_plan(first.data, first.bytes, &copy) == GW_OK);
    use_plan(&copy);
    gw_plan_encode(&copy, &second);
    CU_ASSERT(first.bytes == second.bytes && memcmp(first.data, second.data, first.bytes) == 0);
    gw_plan_free(&copy);
    gw_buf_free(&first);
    gw_buf_free(&second);
}

/* Cut at every byte: refused. A byte too many: refused. Bytes changed: refused, or a plan that leads nowhere outside. */
static void attack_plan(const struct gw_plan *plan, int *survived)
{
    struct gw_buf whole = {0};
    struct gw_plan copy;
    gw_plan_encode(plan, &whole);
    for (size_t bytes = 0; bytes < whole.bytes; bytes++)
        CU_ASSERT_EQUAL_FATAL(decode_plan(whole.data, bytes, &copy), GW_ERR_PEER);
    for (int i = 0; i < 400; i++) {
        struct gw_buf bad = {0};
        gw_buf_add(&bad, whole.data, whole.bytes);
        for (int n = 1 + next_int(3); n > 0; n--) bad.data[next_int((int)bad.bytes)] ^= (uint8_t)(1 << next_int(8));
        if (decode_plan(bad.data, bad.bytes, &copy) == GW_OK) {
            use_plan(&copy);
            gw_plan_free(&copy);
            ++*survived;
        }
        gw_buf_free(&bad);
    }
    gw_buf_add(&whole, "", 1);
    CU_ASSERT_EQUAL(decode_plan(whole.data, whole.bytes, &copy), GW_ERR_PEER);
    gw_buf_free(&whole);
}

static void test_hello(void)
{
    int survived = 0;
    for (uint64_t i = 0; i < 60; i++) {
        struct world w;
        make_world(&w, seed + i);
        for (int r = 0; r < w.count && r < 4; r++) {
            struct gw_buf first = {0}, second = {0};
            struct gw_hello copy;
            gw_hello_encode(&w.hellos[r], &first);
            CU_ASSERT_FATAL(decode_hello(first.data, first.bytes, &copy) == GW_OK);
            gw_hello_encode(&copy, &second);
            CU_ASSERT(first.bytes == second.bytes && memcmp(first.data, second.data, first.bytes) == 0);
            gw_hello_free(&copy);
            for (size_t bytes = 0; bytes < first.bytes; bytes++)
                CU_ASSERT_EQUAL_FATAL(decode_hello(first.data, bytes, &copy), GW_ERR_PEER);
            for (int n = 0; n < 200; n++) {
                int at = next_int((int)first.bytes);
                uint8_t kept = first.data[at];
                first.data[at] = (uint8_t)next_int(256);
                if (decode_hello(first.data, first.bytes, &copy) == GW_OK) {
                    gw_hello_free(&copy);
                    survived++;
                }
                first.data[at] = kept;
            }
            gw_buf_add(&first, "", 1);
            CU_ASSERT_EQUAL(decode_hello(first.data, first.bytes, &copy), GW_ERR_PEER);
            gw_buf_free(&first);
            gw_buf_free(&second);
        }
        close_world(&w);
    }
    CU_ASSERT(survived > 1000); /* numbers that nothing depends on */
}

static void test_page_map(void)
{
    static const int32_t from[] = {5, 6, 9}, to[] = {1, 6, 0};
    struct gw_page_map map;
    struct gw_buf out = {0};
    gw_page_map_encode(from, to, 3, &out);
    CU_ASSERT_FATAL(gw_page_map_decode(out.data, out.bytes, &map) == GW_OK);
    CU_ASSERT(map.count == 3 && !memcmp(map.from, from, sizeof from) && !memcmp(map.to, to, sizeof to));
    for (size_t bytes = 0; bytes < out.bytes; bytes++) {
        uint8_t *exact = malloc(bytes + 1);
        memcpy(exact, out.data, bytes);
        CU_ASSERT_EQUAL(gw_page_map_decode(exact, bytes, &map), GW_ERR_PEER);
        free(exact);
    }
    static const uint32_t counts[] = {2, 4, 0, 0x7fffffff, 0x80000000, 0xffffffff, 0x40000003, 0x20000000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        memcpy(out.data, &counts[i], sizeof counts[i]);
        CU_ASSERT_EQUAL(gw_page_map_decode(out.data, out.bytes, &map), GW_ERR_PEER);
    }
    gw_buf_clear(&out);
    gw_page_map_encode(NULL, NULL, 0, &out);
    CU_ASSERT(gw_page_map_decode(out.data, out.bytes, &map) == GW_OK && map.count == 0);
    gw_buf_free(&out);
}

/* ---- plans --------------------------------------------------------------------------------------------------------- */

static void test_random_worlds(void)
{
    long made = 0, refused = 0, kept = 0, adopted = 0, moves = 0;
    int survived = 0;
    printf("(seed %llu) ", (unsigned long long)seed);
    for (uint64_t i = 0; i < WORLDS; i++) {
        static struct world w;
        struct gw_plan plan;
        make_world(&w, seed + i);
        gw_err rc = gw_planning_make(&w.planning, &plan);
        const char *error = rc == GW_OK ? check_plan(&w, &plan) : NULL;
        if (rc != GW_OK && (rc != GW_ERR_LAYOUT || (w.roomy && active_ranks(&w)))) error = gw_error_detail();
        if (error) {
            printf("\n    seed %llu: %s ", (unsigned long long)(seed + i), error);
            CU_FAIL("a plan is wrong");
        }
        made += rc == GW_OK;
        refused += rc != GW_OK;
        if (rc == GW_OK) {
            for (int r = 0; r < plan.layout.data; r++) kept += plan.kept[r] >= 0;
            for (int a = 0; a < plan.adoption_count; a++) adopted += plan.adoptions[a].held_count;
            moves += plan.move_count;
            there_and_back(&plan);
            if (i % 200 == 0) attack_plan(&plan, &survived);
            gw_plan_free(&plan);
        }
        close_world(&w);
        if (error) return;
    }
    printf("(%ld plans, %ld worlds too small, %ld replicas kept, %ld sequences adopted, %ld moves) ", made, refused,
           kept, adopted, moves);
    CU_ASSERT(left_behind < adopted / 200);
    CU_ASSERT(made > 4000 && refused > 200 && kept > 500 && adopted > 5000 && moves > 5000 && survived > 100);
}

/* Of three equal replicas one rank is lost, and another, that has less memory than the rest: the whole ones go on. */
static void test_others_go_on(void)
{
    for (int lost = 0; lost < 6; lost++) {
        static struct world w;
        struct gw_plan plan;
        int64_t next_index = 0;
        random_state = 5;
        w = (struct world){.roomy = true, .before = {3, 2, 1}};
        w.planning.dims = random_dims();
        w.planning.dims.kv_heads = w.planning.dims.heads = 2;
        w.planning.dims.ffn_atoms = gw_ffn_atoms(2, w.planning.dims.ffn);
        for (int slot = 0; slot < 6; slot++) {
            if (slot == lost) continue;
            struct gw_hello *hello = &w.hellos[w.count];
            add_rank(&w, slot, &next_index);
            w.active[w.count - 1] = hello->peer.placed = true;
            hello->plan = 7;
            hello->layout = w.before;
            hello->peer.before = gw_layout_place(w.before, slot);
            hello->memory = (uint64_t)(40 + slot) << 20;
        }
        w.options.max_seqs = 100000;
        w.planning.options = &w.options;
        w.planning.cost = &machine;
        w.planning.context = 64;
        w.planning.hellos = w.hellos;
        w.planning.active = w.active;
        w.planning.count = w.count;
        w.planning.number = 9;
        w.planning.wanted = GW_LAYOUT(2, 2, 1);
        CU_ASSERT_FATAL(gw_planning_make(&w.planning, &plan) == GW_OK);
        CU_ASSERT(plan.kept[0] >= 0 && plan.kept[1] >= 0 && plan.kv_pages == 60);
        CU_ASSERT(plan.kept[0] != lost / 2 && plan.kept[1] != lost / 2);
        gw_plan_free(&plan);
        close_world(&w);
    }
}

/* ---- notices ------------------------------------------------------------------------------------------------------- */

static int take(const char *path, const char *text, struct gw_notice **notices)
{
    int count = -1;
    FILE *file = fopen(path, "w");
    CU_ASSERT_FATAL(file != NULL);
    fputs(text, file);
    fclose(file);
    CU_ASSERT_EQUAL(gw_notice_take(path, notices, &count), GW_OK);
    CU_ASSERT(access(path, F_OK) != 0);
    return count;
}

static void test_notices(void)
{
    static const char *const bad[] = {"",
                                      "leave",
                                      "leave 1",
                                      "leave 1 x",
                                      "leave -1 5",
                                      "leave 1 -5",
                                      "leave 1 nan",
                                      "leave 1x 5",
                                      "leave 1 5 6",
                                      "leave everybody 5",
                                      "leave all",
                                      "join",
                                      "join 0",
                                      "join -2",
                                      "join 2x",
                                      "joint 2",
                                      "layout 2x1",
                                      "layout 0x1x1",
                                      "layout 2x1x1x1",
                                      "layout 2x-1x1",
                                      "\x01\xff\xfe",
                                      "# a comment",
                                      "leave 1234567890123456789012345678901234567890 5"};
    char folder[] = "/tmp/gw_notice_XXXXXX";
    struct gw_notice *n = NULL;
    int count = -1;
    CU_ASSERT_FATAL(mkdtemp(folder) != NULL);
    char *path = gw_asprintf("%s/notice", folder);
    CU_ASSERT(gw_notice_take(path, &n, &count) == GW_OK && count == 0 && n == NULL); /* no file */
    count = take(path, "leave 3 20\nleave all 2.5\r\n  join 4  \n\nnonsense\nlayout 2x3x1\nleave 0 0", &n);
    CU_ASSERT_FATAL(count == 5);
    CU_ASSERT(n[0].member == 3 && n[0].seconds == 20 && n[0].more == 0 && n[0].layout.data == 0);
    CU_ASSERT(n[1].member == -1 && n[1].seconds == 2.5 && n[1].more == 0);
    CU_ASSERT(n[2].more == 4);
    CU_ASSERT(n[3].layout.data == 2 && n[3].layout.tensor == 3 && n[3].layout.pipeline == 1 && n[3].more == 0);
    CU_ASSERT(n[4].member == 0 && n[4].seconds == 0 && n[4].layout.data == 0);
    free(n);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *text = gw_asprintf("%s\njoin 1\n", bad[i]);
        count = take(path, text, &n);
        if (count != 1) printf("'%s' ", bad[i]);
        CU_ASSERT(count == 1 && n[0].more == 1);
        free(text);
        free(n);
    }
    CU_ASSERT_EQUAL(rmdir(folder), 0); /* nothing is left lying about */
    CU_ASSERT(gw_notice_take("/dev/null/notice", &n, &count) == GW_ERR_IO && count == 0);
    free(path);
}

int main(void)
{
    machine = gw_cost_default();
    const char *given = getenv("GODWIT_TEST_SEED");
    if (given) seed = strtoull(given, NULL, 10);
    gw_log_set_level(GW_LOG_ERROR); /* bad notices cost a warning each */
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("formation", NULL, NULL);
    CU_add_test(suite, "hellos", test_hello);
    CU_add_test(suite, "page maps", test_page_map);
    CU_add_test(suite, "random worlds", test_random_worlds);
    CU_add_test(suite, "other replicas go on", test_others_go_on);
    CU_add_test(suite, "notices", test_notices);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
