/* The search: every layout that fits is a candidate and no other (against a naive enumeration), the order is that of the objective, and what the
 * choice does in cases whose answer is known: memory ample or short, odd numbers, slow devices, a price, a deadline, a layout that is there. */
#include "base/philox.h"
#include "kernels/kernels.h"
#include "plan/search.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t seed = 20261125;
static uint64_t draws;

static int next_int(int bound)
{
    return (int)(gw_philox_uniform(seed, 1, draws++) * bound);
}

static struct gw_dims smol = {.layers = 30,
                              .d_model = 576,
                              .heads = 9,
                              .kv_heads = 3,
                              .head_dim = 64,
                              .ffn = 1536,
                              .vocab = 49152,
                              .ffn_atoms = 12,
                              .bytes_per_weight = 0.625,
                              .output_bytes = 49152.0 * 576 * 1.125};
static struct gw_cost cost;

enum { MOST = 16 };
static const uint64_t MIB = 1 << 20;

static struct gw_search usual(struct gw_device *devices, int count, uint64_t mib)
{
    for (int d = 0; d < count; d++) devices[d] = (struct gw_device){.memory_bytes = mib * MIB, .speed = 1};
    return (struct gw_search){
        .dims = &smol,
        .cost = &cost,
        .devices = devices,
        .device_count = count,
        .work = {.prompt_tokens = 100, .output_tokens = 150, .requests = 1000, .context = 1024, .max_seqs = 64}};
}

static struct gw_candidate best_of(const struct gw_search *search)
{
    struct gw_candidate *found, best;
    int count;
    CU_ASSERT_EQUAL_FATAL(gw_search(search, &found, &count), GW_OK);
    best = found[0];
    free(found);
    return best;
}

static bool is(struct gw_layout l, int data, int tensor, int pipeline)
{
    if (l.data == data && l.tensor == tensor && l.pipeline == pipeline) return true;
    printf("(%dx%dx%d) ", l.data, l.tensor, l.pipeline);
    return false;
}

static double need_of(const struct gw_search *s, struct gw_layout l, int slot)
{
    struct gw_place place = gw_layout_place(l, slot);
    struct gw_shard shard = gw_layout_shard(s->dims, l, place.shard, place.stage);
    double pages = (s->work.context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    return gw_shard_weight_bytes(s->dims, &shard) +
           pages * (double)gw_shard_page_bytes(s->dims, &shard) / (s->kv_share > 0 ? s->kv_share : 1);
}

static bool is_even(struct gw_layout l)
{
    return !l.stage_speed[0] && !l.shard_speed[0];
}

/* Could the places be filled? Tries all ways, place by place. */
static bool fillable(const struct gw_search *s, struct gw_layout l, int slot, unsigned used)
{
    if (slot == gw_layout_ranks(l)) return true;
    for (int d = 0; d < s->device_count; d++)
        if (!(used >> d & 1) && !s->devices[d].leaving && (double)s->devices[d].memory_bytes >= need_of(s, l, slot) &&
            fillable(s, l, slot + 1, used | 1u << d))
            return true;
    return false;
}

/* Have the devices different speeds or memories? */
static bool differ(const struct gw_search *s)
{
    for (int d = 1; d < s->device_count; d++)
        if (s->devices[d].speed != s->devices[0].speed || s->devices[d].memory_bytes != s->devices[0].memory_bytes)
            return true;
    return false;
}

static bool among(const struct gw_candidate *found, int count, struct gw_layout l)
{
    for (int i = 0; i < count; i++)
        if (!memcmp(&found[i].layout, &l, sizeof l)) return true;
    return false;
}

static void test_enumeration(void)
{
    int none = 0, some = 0, splits = 0;
    for (int round = 0; round < 150; round++) {
        struct gw_device devices[MOST];
        struct gw_candidate *found = NULL;
        int count = 0, device_count = 1 + next_int(5), expected = 0, even = 0;
        struct gw_search s = usual(devices, device_count, 0);
        s.objective = (enum gw_objective)next_int(GW_OBJECTIVES);
        s.kv_share = next_int(2) * 0.5;
        for (int d = 0; d < device_count; d++) {
            devices[d].memory_bytes = (uint64_t)(10 + next_int(next_int(2) ? 200 : 60)) * MIB;
            devices[d].speed = 1 + next_int(2);
            devices[d].node = next_int(2);
            devices[d].leaving = next_int(8) == 0;
        }
        gw_err rc = gw_search(&s, &found, &count);
        for (int t = 1; t <= device_count; t++)
            for (int p = 1; p <= device_count; p++)
                for (int data = 1; data * t * p <= device_count; data++) {
                    struct gw_layout l = GW_LAYOUT(data, t, p);
                    int device_of_slot[MOST];
                    bool fits = fillable(&s, l, 0, 0);
                    CU_ASSERT_EQUAL(among(found, count, l), fits);
                    CU_ASSERT_EQUAL(gw_search_deal(&s, l, device_of_slot), fits);
                    for (int slot = 0; fits && slot < gw_layout_ranks(l); slot++) {
                        CU_ASSERT((double)devices[device_of_slot[slot]].memory_bytes >= need_of(&s, l, slot));
                        CU_ASSERT(!devices[device_of_slot[slot]].leaving);
                        for (int o = 0; o < slot; o++) CU_ASSERT(device_of_slot[o] != device_of_slot[slot]);
                    }
                    expected += fits;
                }
        CU_ASSERT_EQUAL(rc, count ? GW_OK : GW_ERR_LAYOUT);
        for (int i = 0; i < count; i++) {
            CU_ASSERT(fillable(&s, found[i].layout, 0, 0));
            CU_ASSERT(is_even(found[i].layout) || differ(&s));
            even += is_even(found[i].layout);
            for (int o = 0; o < i; o++)
                CU_ASSERT(memcmp(&found[o].layout, &found[i].layout, sizeof found[i].layout) != 0);
            CU_ASSERT(found[i].tokens_per_s > 0 && found[i].kv_tokens >= s.work.context);
            CU_ASSERT(found[i].seconds > 0 && found[i].cost_per_million > 0 && found[i].weight_bytes > 0);
            CU_ASSERT(i == 0 || found[i - 1].score <= found[i].score);
        }
        CU_ASSERT_EQUAL(even, expected);
        splits += count - even;
        none += count == 0, some += count > 3;
        free(found);
    }
    printf("(%d without a layout, %d with several, %d splits) ", none, some, splits);
    CU_ASSERT(none > 5 && some > 30 && splits > 50);
}

/* Memory forces a pipeline of all three, of which one is half as fast: it gets half the layers, and that is faster than thirds. */
static void test_split(void)
{
    struct gw_device devices[MOST];
    struct gw_candidate *found = NULL;
    int count = 0, uneven = -1, even = -1;
    struct gw_search s = usual(devices, 3, 4000);
    devices[1].speed = 0.5;
    s.only = GW_LAYOUT(1, 1, 3);
    CU_ASSERT_FATAL(gw_search(&s, &found, &count) == GW_OK);
    for (int i = 0; i < count; i++) *(is_even(found[i].layout) ? &even : &uneven) = i;
    CU_ASSERT(count == 2 && uneven == 0 && even == 1);
    printf("(%.2f) ", found[0].tokens_per_s / found[1].tokens_per_s);
    CU_ASSERT(found[0].tokens_per_s > 1.2 * found[1].tokens_per_s);
    int device_of_slot[MOST];
    CU_ASSERT(gw_search_deal(&s, found[0].layout, device_of_slot));
    for (int slot = 0; slot < 3; slot++) {
        CU_ASSERT_EQUAL(found[0].layout.stage_speed[slot], devices[device_of_slot[slot]].speed * GW_SPLIT_FASTEST);
    }
    free(found);
    devices[1].speed = 1;
    CU_ASSERT_FATAL(gw_search(&s, &found, &count) == GW_OK);
    CU_ASSERT(count == 1 && is_even(found[0].layout)); /* of equals there is nothing to split by */
    free(found);
}

static void test_throughput(void)
{
    struct gw_device devices[MOST];
    struct gw_search s = usual(devices, 4, 4000);
    CU_ASSERT(is(best_of(&s).layout, 4, 1, 1)); /* memory is ample: replicas do not talk */
    s = usual(devices, 7, 4000);
    CU_ASSERT(is(best_of(&s).layout, 7, 1, 1));
    s = usual(devices, 4, 70); /* a device holds no whole model */
    struct gw_candidate best = best_of(&s);
    CU_ASSERT(gw_layout_ranks(best.layout) == 4 && best.layout.tensor * best.layout.pipeline > 1);
    s = usual(devices, 5, 31); /* nor do two: all five, in uneven shares */
    best = best_of(&s);
    CU_ASSERT(best.layout.data == 1 && gw_layout_ranks(best.layout) == 5);
    s = usual(devices, 3, 4000);
    s.work.requests = 1; /* one request: shards, not replicas */
    best = best_of(&s);
    CU_ASSERT(is(best.layout, 1, 3, 1));
    s = usual(devices, 3, 4000);
    devices[2].leaving = true;
    CU_ASSERT(is(best_of(&s).layout, 2, 1, 1));
    s = usual(devices, 2, 20);
    struct gw_candidate *found = (void *)&s;
    int count = 3;
    CU_ASSERT_EQUAL(gw_search(&s, &found, &count), GW_ERR_LAYOUT);
    CU_ASSERT(count == 0 && !found && strstr(gw_error_detail(), "no layout of up to 2 devices"));
}

/* A device that is so slow that its replica's stages wait for it is better left out. */
static void test_slow_device(void)
{
    struct gw_device devices[MOST];
    struct gw_search s = usual(devices, 3, 90);
    s.work.context = 128;
    devices[1].speed = 0.05;
    struct gw_candidate best = best_of(&s);
    int device_of_slot[3];
    CU_ASSERT_EQUAL(gw_layout_ranks(best.layout), 2);
    CU_ASSERT_FATAL(gw_search_deal(&s, best.layout, device_of_slot));
    CU_ASSERT(device_of_slot[0] != 1 && device_of_slot[1] != 1);
    devices[1].speed = 1;
    CU_ASSERT_EQUAL(gw_layout_ranks(best_of(&s).layout), 3);
}

/* Shards of a stage on one node, where that is possible. */
static void test_nodes(void)
{
    struct gw_device devices[MOST];
    struct gw_search s = usual(devices, 6, 4000);
    struct gw_layout l = GW_LAYOUT(2, 2, 1);
    int of[MOST];
    for (int d = 0; d < 6; d++) devices[d].node = d % 2; /* three each */
    CU_ASSERT_FATAL(gw_search_deal(&s, l, of));
    CU_ASSERT(devices[of[0]].node == devices[of[1]].node && devices[of[2]].node == devices[of[3]].node);
    CU_ASSERT(devices[of[0]].node != devices[of[2]].node);
    struct gw_cost slow = cost;
    slow.node_latency_s = 0.02; /* a network on which shards cannot work */
    s.cost = &slow;
    for (int d = 0; d < 6; d++) devices[d].node = d, devices[d].memory_bytes = 80 * MIB;
    CU_ASSERT(best_of(&s).layout.tensor == 1);
}

static void test_deadline_and_cost(void)
{
    struct gw_device devices[MOST];
    struct gw_search s = usual(devices, 8, 4000);
    s.price_per_hour = 2;
    double fastest_s = best_of(&s).seconds;
    s.objective = GW_OBJECTIVE_DEADLINE;
    s.deadline_s = 1.01 * fastest_s;
    CU_ASSERT(best_of(&s).in_time && best_of(&s).layout.data == 8);
    s.deadline_s = fastest_s / 2; /* cannot be met: as soon as possible */
    CU_ASSERT(!best_of(&s).in_time && best_of(&s).seconds == fastest_s);
    s.deadline_s = 100 * fastest_s;
    struct gw_candidate *found;
    int count, late = 0;
    CU_ASSERT_EQUAL_FATAL(gw_search(&s, &found, &count), GW_OK);
    for (int i = 0; i < count; i++) CU_ASSERT(found[0].cost_per_million <= found[i].cost_per_million);
    free(found);
    s.deadline_s = 4 * fastest_s;
    CU_ASSERT_EQUAL_FATAL(gw_search(&s, &found, &count), GW_OK);
    for (int i = 0; i < count; i++) {
        CU_ASSERT(found[i].in_time == (found[i].seconds <= s.deadline_s));
        late += !found[i].in_time;
        CU_ASSERT(!found[i].in_time || late == 0); /* those in time come first */
    }
    CU_ASSERT(late > 0 && late < count);
    free(found);
    s.objective = GW_OBJECTIVE_COST;
    struct gw_candidate best = best_of(&s);
    CU_ASSERT_EQUAL(best.layout.tensor * best.layout.pipeline, 1); /* nothing is lost by talking */
    CU_ASSERT_EQUAL(best.layout.data, 8);                          /* and for the same money sooner */
    double cost_at_2 = best.cost_per_million;
    s.price_per_hour = 4;
    CU_ASSERT_DOUBLE_EQUAL(best_of(&s).cost_per_million, 2 * cost_at_2, 1e-9);
    CU_ASSERT_DOUBLE_EQUAL(cost_at_2, 2.0 * 8 / 3600 * 1e6 / best.tokens_per_s, 1e-9);
}

/* A change has to be worth its while: hardly anything is for the last second, a better layout for an hour is. */
static void test_current(void)
{
    struct gw_device devices[MOST];
    struct gw_search s = usual(devices, 4, 4000);
    s.current = GW_LAYOUT(1, 1, 4);
    s.work.requests = 0;
    s.current_kv_tokens = 5000;
    s.horizon_s = 0.05;
    struct gw_candidate best = best_of(&s);
    CU_ASSERT(is(best.layout, 1, 1, 4) && best.change_s == 0);
    s.horizon_s = 3600;
    best = best_of(&s);
    CU_ASSERT(is(best.layout, 4, 1, 1) && best.change_s > 0.015 && best.change_s < 1);
    s.horizon_s = 0; /* no end in sight: as long */
    CU_ASSERT(is(best_of(&s).layout, 4, 1, 1));
    CU_ASSERT(best_of(&s).seconds == 0);
}

/* One request keeps one replica busy, so a second is neither better nor worse: then the layout that is there, or else the smaller one. */
static void test_ties(void)
{
    struct gw_device devices[MOST];
    for (int current = 0; current < 2; current++) {
        struct gw_search s = usual(devices, 2, 4000);
        struct gw_candidate *found;
        int count, at[3] = {-1, -1, -1};
        s.work.requests = 1;
        if (current) s.current = GW_LAYOUT(2, 1, 1);
        CU_ASSERT_EQUAL_FATAL(gw_search(&s, &found, &count), GW_OK);
        for (int i = 0; i < count; i++)
            if (found[i].layout.tensor * found[i].layout.pipeline == 1) at[found[i].layout.data] = i;
        CU_ASSERT(at[1] >= 0 && at[2] >= 0 && (at[2] < at[1]) == (current == 1));
        free(found);
    }
}

static void test_names(void)
{
    enum gw_objective objective;
    for (int i = 0; i < GW_OBJECTIVES; i++) {
        CU_ASSERT_EQUAL(gw_objective_parse(gw_objective_name((enum gw_objective)i), &objective), GW_OK);
        CU_ASSERT_EQUAL(objective, (enum gw_objective)i);
    }
    CU_ASSERT_EQUAL(gw_objective_parse("cheap", &objective), GW_ERR_USAGE);
    CU_ASSERT_PTR_NULL(gw_objective_name(GW_OBJECTIVES));
}

/* A hundred devices of several sorts are no matter of minutes. */
static void test_many(void)
{
    enum { MANY = 96 };
    static struct gw_device devices[MANY];
    struct gw_search s = usual(devices, MANY, 100);
    for (int d = 0; d < MANY; d++) devices[d].node = d / 8, devices[d].speed = d % 3 ? 1 : 2;
    struct gw_candidate best = best_of(&s);
    CU_ASSERT(gw_layout_ranks(best.layout) > 80);
}

int main(void)
{
    cost = gw_cost_default();
    printf("seed %llu\n", (unsigned long long)seed);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("search", NULL, NULL);
    CU_add_test(suite, "all that fit", test_enumeration);
    CU_add_test(suite, "throughput", test_throughput);
    CU_add_test(suite, "a slow device", test_slow_device);
    CU_add_test(suite, "shares by speed", test_split);
    CU_add_test(suite, "nodes", test_nodes);
    CU_add_test(suite, "deadline and cost", test_deadline_and_cost);
    CU_add_test(suite, "the layout that is there", test_current);
    CU_add_test(suite, "ties", test_ties);
    CU_add_test(suite, "names", test_names);
    CU_add_test(suite, "many devices", test_many);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
