/* Migration plans: thousands of random changes (layouts, devices lost, leaving, in other nodes, with checkpoints or without, memory ample or exactly
 * what is held) are planned and replayed; what they promise (order, sources, balance, sums) is looked at where memory leaves a choice; a plan
 * that is altered anywhere is found out. Random cases print their seed. */
#include "plan/moves.h"
#include "support/plan_cases.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct plan_random randomness = {.seed = 20261124};

static int next_int(int bound)
{
    return plan_next_int(&randomness, bound);
}

enum { MODELS = 4, MOST = 10 };
static struct gw_dims models[MODELS];
static struct gw_cost cost;

static void make_models(void)
{
    cost = gw_cost_default();
    models[0] = plan_dims(30, 576, 9, 3, 64, 1536, 49152); /* SmolLM2-135M */
    models[1] = plan_dims(7, 192, 6, 1, 32, 768, 601);     /* one kv head: shards without any */
    models[2] = plan_dims(5, 320, 10, 5, 32, 1056, 1000);  /* odd everywhere */
    models[3] = plan_dims(3, 128, 4, 4, 32, 256, 100);     /* a vocabulary of less than two chunks */
}

struct scene {
    const struct gw_dims *dims;
    struct gw_device devices[MOST];
    struct gw_holding holdings[MOST];
    struct gw_inherit inherits[MOST];
    int device_of_slot[MOST];
    struct gw_layout old, layout;
    struct gw_assign assign;
    struct gw_moves_in in;
    uint64_t mapped_kept;
};

static void hold(struct scene *s, int device, int slot)
{
    struct gw_place place = gw_layout_place(s->old, slot);
    s->holdings[device] = (struct gw_holding){.weights = true,
                                              .replica = place.replica,
                                              .shard = gw_layout_shard(s->dims, s->old, place.shard, place.stage)};
}

/* Everything but the memory, which is ample. */
static void prepare(struct scene *s, const struct gw_dims *dims, int count, struct gw_layout old, struct gw_layout now)
{
    memset(s, 0, sizeof *s);
    s->dims = dims;
    s->old = old;
    s->layout = now;
    for (int d = 0; d < count; d++) {
        s->devices[d] = (struct gw_device){.memory_bytes = 1ull << 40, .speed = 1};
        s->holdings[d] = (struct gw_holding){.replica = -1};
        if (d < gw_layout_ranks(old)) hold(s, d, d);
    }
    s->assign = (struct gw_assign){.dims = dims,
                                   .devices = s->devices,
                                   .holdings = s->holdings,
                                   .device_count = count,
                                   .layout = now,
                                   .inherits = s->inherits};
    s->in = (struct gw_moves_in){.dims = dims,
                                 .cost = &cost,
                                 .devices = s->devices,
                                 .holdings = s->holdings,
                                 .device_count = count,
                                 .layout = now,
                                 .device_of_slot = s->device_of_slot,
                                 .inherits = s->inherits};
}

static void map(struct scene *s, const uint64_t *kv_tokens)
{
    gw_assign_inherits(&s->assign, s->old.data, kv_tokens, s->inherits, &s->assign.inherit_count);
    CU_ASSERT_EQUAL_FATAL(gw_assign_places(&s->assign, s->device_of_slot, &s->mapped_kept), GW_OK);
    s->in.inherit_count = s->assign.inherit_count;
}

static void random_scene(struct scene *s)
{
    const struct gw_dims *dims = &models[next_int(5) ? 1 + next_int(MODELS - 1) : 0];
    int count = 1 + next_int(MOST), staying = 0, nodes = 1 + next_int(3), leaving = next_int(3) ? 0 : 30;
    uint64_t kv_tokens[MOST];
    struct gw_layout old = plan_random_layout(&randomness, dims, count);
    prepare(s, dims, count, old, old);
    for (int d = 0; d < count; d++) {
        int other = next_int(count);
        struct gw_holding t = s->holdings[d];
        s->holdings[d] = s->holdings[other], s->holdings[other] = t;
        if (next_int(8) == 0) s->holdings[d] = (struct gw_holding){.replica = -1};
    }
    for (int d = 0; d < count; d++) {
        s->devices[d].node = next_int(nodes);
        s->devices[d].speed = next_int(4) ? 1 : 0.25;
        s->devices[d].leaving = d > 0 && next_int(100) < leaving;
        staying += !s->devices[d].leaving;
        kv_tokens[d] = (uint64_t)next_int(4) * (uint64_t)next_int(3000);
    }
    s->layout = s->assign.layout = s->in.layout = plan_random_layout(&randomness, dims, staying);
    map(s, kv_tokens);
    for (int i = 0; i < s->in.inherit_count; i++) s->inherits[i].checkpointed = next_int(3) == 0;
}

/* Bytes of all that the devices want in the end. */
static uint64_t wanted_bytes(const struct scene *s, bool kv)
{
    struct gw_unit_bytes unit = gw_unit_bytes(s->dims);
    uint64_t cells = (uint64_t)s->dims->layers * (uint64_t)s->dims->kv_heads, tokens = 0;
    for (int i = 0; i < s->in.inherit_count; i++) tokens += s->inherits[i].kv_tokens;
    if (kv) return cells * unit.kv_token * tokens;
    return (uint64_t)s->layout.data * (cells * unit.head + (uint64_t)s->dims->vocab * unit.row +
                                       (uint64_t)s->dims->layers * (uint64_t)s->dims->ffn_atoms * unit.atom);
}

static bool sums_are_right(const struct scene *s, const struct gw_moves *m)
{
    return m->kept_weight_bytes + m->moved_weight_bytes + m->loaded_bytes == wanted_bytes(s, false) &&
           m->kept_kv_bytes + m->moved_kv_bytes + m->restored_bytes + m->recomputed_bytes == wanted_bytes(s, true);
}

static bool is_checked(const struct scene *s, const struct gw_moves *m)
{
    gw_err rc = gw_moves_check(&s->in, m);
    if (rc != GW_OK)
        printf("(seed %llu, draw %llu: %s) ", (unsigned long long)randomness.seed, (unsigned long long)randomness.draws,
               gw_error_detail());
    return rc == GW_OK;
}

static int layer_order(const struct scene *s, const struct gw_move *move)
{
    return move->layer < 0 ? s->dims->layers : move->layer;
}

/* Leaving devices first, then front layers; computing anew last. Holds where memory forces nothing else. */
static bool order_is_right(const struct scene *s, const struct gw_moves *m)
{
    int class_before = 0, layer_before = 0;
    for (int i = 0; i < m->count; i++) {
        const struct gw_move *move = &m->moves[i];
        if (move->to == GW_TO_NOWHERE) continue;
        int class = move->from == GW_FROM_RECOMPUTE ? 2 : move->from >= 0 && s->devices[move->from].leaving ? 0 : 1;
        int layer = layer_order(s, move);
        if (class < class_before || (class == class_before && layer < layer_before)) return false;
        class_before = class, layer_before = layer;
    }
    return true;
}

/* Is there still a device for every part of the old replica's KV? */
static bool is_whole(const struct scene *s, int replica)
{
    int cells = 0;
    for (int d = 0; d < s->in.device_count; d++) {
        const struct gw_shard *h = &s->holdings[d].shard;
        if (s->holdings[d].replica == replica) cells += (h->layer_end - h->layer_begin) * (h->kv_end - h->kv_begin);
    }
    return cells == s->dims->layers * s->dims->kv_heads;
}

static void test_ample(void)
{
    double kept = 0, naive = 0;
    int all_stays = 0;
    for (int round = 0; round < 2000; round++) {
        struct scene s;
        struct gw_moves m;
        random_scene(&s);
        CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
        CU_ASSERT_FATAL(is_checked(&s, &m));
        CU_ASSERT_FATAL(sums_are_right(&s, &m) && order_is_right(&s, &m));
        uint64_t not_needed = 0; /* parts of a replica that is lost stay for nothing, unless there is a checkpoint */
        for (int i = 0; i < s.in.inherit_count; i++) {
            CU_ASSERT_EQUAL(m.recomputed[i], !s.inherits[i].checkpointed && !is_whole(&s, s.inherits[i].from));
            not_needed += s.inherits[i].checkpointed && !is_whole(&s, s.inherits[i].from);
        }
        uint64_t stays = m.kept_weight_bytes + m.kept_kv_bytes;
        bool even = s.dims->ffn / 32 % s.dims->ffn_atoms == 0;    /* the mapping takes all atoms as equal */
        CU_ASSERT(not_needed || !even || stays <= s.mapped_kept); /* a part that is loaded is loaded as a whole */
        if (!not_needed && even && m.loaded_bytes == 0) {
            CU_ASSERT_EQUAL(stays, s.mapped_kept);
            all_stays++;
        }
        CU_ASSERT((m.recompute_s > 0) == (m.recomputed_bytes > 0) && m.seconds >= m.recompute_s);
        for (int slot = 0, d = 0; slot < gw_layout_ranks(s.layout); slot++, d++) {
            while (s.devices[d].leaving && d < s.in.device_count) d++;
            s.device_of_slot[slot] = d;
        }
        kept += (double)(m.kept_weight_bytes + m.kept_kv_bytes);
        gw_moves_free(&m);
        CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
        CU_ASSERT_FATAL(is_checked(&s, &m) && sums_are_right(&s, &m));
        naive += (double)(m.kept_weight_bytes + m.kept_kv_bytes);
        gw_moves_free(&m);
    }
    printf("(%.2f times the bytes of the naive mapping stay) ", kept / naive);
    CU_ASSERT(kept > 1.5 * naive && all_stays > 100);
}

/* Memory that is exactly what a device holds or shall hold, or a little more; and any mapping, the worst included. */
static void test_tight(void)
{
    int gave_up = 0, loaded = 0, rounds = 3000;
    for (int round = 0; round < rounds; round++) {
        struct scene s;
        struct gw_moves m;
        uint64_t most[MOST];
        random_scene(&s);
        int slots = gw_layout_ranks(s.layout);
        if (round % 2)
            for (int i = 0; i < slots; i++) {
                int k = next_int(slots), t = s.device_of_slot[i];
                s.device_of_slot[i] = s.device_of_slot[k], s.device_of_slot[k] = t;
            }
        /* the least memory, found by asking: what the plan with no memory at all complains about */
        for (int d = 0; d < s.in.device_count; d++) most[d] = s.devices[d].memory_bytes, s.devices[d].memory_bytes = 0;
        int slack = next_int(3) * 10000;
        for (int d = 0; d < s.in.device_count; d++) {
            double held, wanted;
            int number;
            if (gw_moves_plan(&s.in, &m) == GW_OK) {
                gw_moves_free(&m);
                continue;
            }
            CU_ASSERT_EQUAL_FATAL(sscanf(gw_error_detail(),
                                         "device %d has %*f MiB of memory, it holds %lf MiB and shall hold %lf",
                                         &number, &held, &wanted),
                                  3);
            s.devices[number].memory_bytes = (uint64_t)((held > wanted ? held : wanted) * 1048576) + 60000 +
                                             (uint64_t)slack;
        }
        CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
        CU_ASSERT_FATAL(is_checked(&s, &m) && sums_are_right(&s, &m));
        for (int d = 0; d < s.in.device_count; d++) CU_ASSERT(m.peak_bytes[d] <= s.devices[d].memory_bytes);
        for (int i = 0; i < s.in.inherit_count; i++) gave_up += m.recomputed[i] && is_whole(&s, s.inherits[i].from);
        uint64_t tight_loaded = m.loaded_bytes;
        gw_moves_free(&m);
        for (int d = 0; d < s.in.device_count; d++) s.devices[d].memory_bytes = most[d];
        CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
        loaded += tight_loaded > m.loaded_bytes;
        gw_moves_free(&m);
    }
    printf("(%d of %d load more, %d inheritances given up) ", loaded, rounds, gave_up);
    CU_ASSERT(loaded > 10 && gave_up > 0);
}

/* Two stages change places with every byte taken: only possible by letting go. */
static void test_exchange(void)
{
    struct scene s;
    struct gw_moves m;
    struct gw_layout l = GW_LAYOUT(1, 1, 2);
    uint64_t kv_tokens[1] = {1000};
    prepare(&s, &models[2], 2, l, l);
    map(&s, kv_tokens);
    CU_ASSERT(s.device_of_slot[0] == 0 && s.device_of_slot[1] == 1);
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    CU_ASSERT(m.count == 0 && m.seconds == 0 && m.kept_weight_bytes + m.kept_kv_bytes == s.mapped_kept);
    uint64_t peak = m.peak_bytes[0] > m.peak_bytes[1] ? m.peak_bytes[0] : m.peak_bytes[1];
    gw_moves_free(&m);
    s.device_of_slot[0] = 1, s.device_of_slot[1] = 0;
    s.devices[0].memory_bytes = s.devices[1].memory_bytes = peak;
    for (int checkpointed = 0; checkpointed < 2; checkpointed++) {
        s.inherits[0].checkpointed = checkpointed;
        CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
        CU_ASSERT(is_checked(&s, &m) && sums_are_right(&s, &m));
        CU_ASSERT(m.kept_weight_bytes + m.kept_kv_bytes == 0);
        CU_ASSERT(m.moved_weight_bytes > 0 && m.moved_kv_bytes > 0); /* most goes piece by piece all the same */
        CU_ASSERT(!m.recomputed[0]);
        gw_moves_free(&m);
    }
    s.devices[0].memory_bytes--;
    s.devices[1].memory_bytes--;
    CU_ASSERT_EQUAL(gw_moves_plan(&s.in, &m), GW_ERR_LAYOUT);
}

static void test_sources(void)
{
    struct scene s;
    struct gw_moves m;
    struct gw_layout old = GW_LAYOUT(3, 1, 1), now = GW_LAYOUT(6, 1, 1);
    uint64_t kv_tokens[3] = {0, 0, 0}, given[6] = {0}, all = 0;
    prepare(&s, &models[0], 6, old, now); /* three replicas more: each old one gives a third of what they need */
    map(&s, kv_tokens);
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    for (int i = 0; i < m.count; i++)
        if (m.moves[i].from >= 0 && m.moves[i].to >= 0) given[m.moves[i].from] += m.moves[i].bytes;
    for (int d = 0; d < 3; d++) all += given[d];
    CU_ASSERT(all > 100000000 && all == m.moved_weight_bytes);
    uint64_t missing = all + m.loaded_bytes;
    for (int d = 0; d < 3; d++) CU_ASSERT(given[d] > all / 4 && given[d] < all / 2);
    CU_ASSERT(m.seconds < 1.5 * (double)all / 3 / cost.link_bytes_per_s + m.loaded_bytes / cost.pack_bytes_per_s);
    gw_moves_free(&m);

    for (int d = 0; d < 6; d++) s.devices[d].node = d % 3; /* now each has one of them next to it */
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    for (int i = 0; i < m.count; i++)
        if (m.moves[i].from >= 0 && m.moves[i].to >= 0)
            CU_ASSERT_EQUAL(s.devices[m.moves[i].from].node, s.devices[m.moves[i].to].node);
    gw_moves_free(&m);

    struct gw_cost usual = cost;
    cost.link_bytes_per_s = cost.node_link_bytes_per_s = 1e8; /* slower than to load */
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    CU_ASSERT(m.moved_weight_bytes == 0 && m.loaded_bytes == missing);
    gw_moves_free(&m);
    cost = usual;

    s.devices[0].leaving = true; /* whatever it can give, it gives first */
    s.layout = s.assign.layout = s.in.layout = GW_LAYOUT(5, 1, 1);
    map(&s, kv_tokens);
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    CU_ASSERT(order_is_right(&s, &m) && m.moves[0].from == 0);
    gw_moves_free(&m);
}

/* KV of a replica that is whole moves; of one that is not it is computed anew, or read from a checkpoint. */
static void test_kv(void)
{
    struct scene s;
    struct gw_moves m;
    struct gw_layout old = GW_LAYOUT(2, 1, 2), now = GW_LAYOUT(1, 1, 3);
    uint64_t kv_tokens[2] = {4000, 3000};
    prepare(&s, &models[0], 4, old, now);
    s.holdings[3] = (struct gw_holding){.replica = -1}; /* the last stage of replica 1 is gone */
    map(&s, kv_tokens);
    struct gw_unit_bytes unit = gw_unit_bytes(s.dims);
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    CU_ASSERT(is_checked(&s, &m) && !m.recomputed[0] && m.recomputed[1]);
    CU_ASSERT_EQUAL(m.recomputed_bytes, 90 * unit.kv_token * 3000);
    CU_ASSERT_EQUAL(m.kept_kv_bytes + m.moved_kv_bytes, 90 * unit.kv_token * 4000);
    CU_ASSERT(m.kept_kv_bytes > m.moved_kv_bytes && m.recompute_s > 1 && m.recompute_s < 4);
    gw_moves_free(&m);
    s.inherits[1].checkpointed = true;
    CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
    CU_ASSERT(is_checked(&s, &m) && !m.recomputed[1] && m.recomputed_bytes == 0);
    CU_ASSERT(m.restored_bytes > 0 && m.restored_bytes < 90 * unit.kv_token * 3000); /* the missing stage alone */
    gw_moves_free(&m);
}

/* The check finds whatever is altered. */
static void test_check(void)
{
    int tried = 0;
    for (int round = 0; round < 60; round++) {
        struct scene s;
        struct gw_moves m;
        random_scene(&s);
        CU_ASSERT_EQUAL_FATAL(gw_moves_plan(&s.in, &m), GW_OK);
        for (int i = 0; i < m.count && i < 100; i++, tried++) {
            struct gw_move was = m.moves[i], *move = &m.moves[i];
            memmove(move, move + 1, (size_t)(m.count - i - 1) * sizeof *move);
            m.count--;
            CU_ASSERT_EQUAL(gw_moves_check(&s.in, &m), GW_ERR_VERIFY); /* left out */
            memmove(move + 1, move, (size_t)(m.count - i) * sizeof *move);
            m.count++;
            *move = was;
            move->to = was.to == 0 ? s.in.device_count - 1 : 0;
            if (move->to != was.to) CU_ASSERT_EQUAL(gw_moves_check(&s.in, &m), GW_ERR_VERIFY); /* elsewhere */
            *move = was;
            move->end++;
            CU_ASSERT_EQUAL(gw_moves_check(&s.in, &m), GW_ERR_VERIFY);
            *move = was;
            if (was.to >= 0) {
                uint64_t memory = s.devices[was.to].memory_bytes;
                s.devices[was.to].memory_bytes = m.peak_bytes[was.to] - 1;
                CU_ASSERT_NOT_EQUAL(gw_moves_check(&s.in, &m), GW_OK); /* above the bound */
                s.devices[was.to].memory_bytes = memory;
            }
        }
        CU_ASSERT_EQUAL(gw_moves_check(&s.in, &m), GW_OK);
        gw_moves_free(&m);
    }
    CU_ASSERT(tried > 500);
}

int main(void)
{
    make_models();
    printf("seed %llu\n", (unsigned long long)randomness.seed);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("moves", NULL, NULL);
    CU_add_test(suite, "memory is ample", test_ample);
    CU_add_test(suite, "memory is tight", test_tight);
    CU_add_test(suite, "two that are full change places", test_exchange);
    CU_add_test(suite, "sources", test_sources);
    CU_add_test(suite, "KV", test_kv);
    CU_add_test(suite, "the check", test_check);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
