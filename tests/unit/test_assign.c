/* Device mapping: the matching against brute force on thousands of small instances with forbidden edges, ties and negative weights; the places
 * that keep most bytes against all permutations; who inherits whose sequences; shards of a stage on one node. Random cases print their seed. */
#include "plan/assign.h"
#include "support/plan_cases.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct plan_random randomness = {.seed = 20261123};

static int next_int(int bound)
{
    return plan_next_int(&randomness, bound);
}

enum { MODELS = 3 };
static struct gw_dims models[MODELS];

static void make_models(void)
{
    models[0] = plan_dims(30, 576, 9, 3, 64, 1536, 49152); /* SmolLM2-135M */
    models[1] = plan_dims(7, 192, 6, 1, 32, 768, 601);     /* one kv head */
    models[2] = plan_dims(5, 320, 10, 5, 32, 1056, 1000);  /* odd everywhere */
}

/* ---- matching -------------------------------------------------------------------------------------------------- */

struct best {
    int matched;
    int64_t sum;
};

/* All ways: row `row` takes each free column or none. */
static void brute(int rows, int cols, const int64_t *weights, int row, unsigned used, struct best now,
                  struct best *best)
{
    if (row == rows) {
        if (now.matched > best->matched || (now.matched == best->matched && now.sum > best->sum)) *best = now;
        return;
    }
    brute(rows, cols, weights, row + 1, used, now, best);
    for (int c = 0; c < cols; c++) {
        int64_t w = weights[row * cols + c];
        if ((used >> c & 1) || w == GW_ASSIGN_FORBIDDEN) continue;
        brute(rows, cols, weights, row + 1, used | 1u << c, (struct best){now.matched + 1, now.sum + w}, best);
    }
}

/* Sum of a matching; -1 in *matched when a column is taken twice or an edge forbidden. */
static int64_t sum_of(int rows, int cols, const int64_t *weights, const int *of_row, int *matched)
{
    int64_t sum = 0;
    *matched = 0;
    for (int r = 0; r < rows; r++) {
        if (of_row[r] < 0) continue;
        for (int other = 0; other < r; other++)
            if (of_row[other] == of_row[r]) *matched = -1000;
        if (of_row[r] >= cols || weights[r * cols + of_row[r]] == GW_ASSIGN_FORBIDDEN) *matched = -1000;
        else sum += weights[r * cols + of_row[r]];
        (*matched)++;
    }
    return sum;
}

static void test_matching(void)
{
    static const int64_t ranges[] = {2, 4, 100, (int64_t)1 << 49};
    int incomplete = 0;
    for (int round = 0; round < 20000; round++) {
        int rows = 1 + next_int(6), cols = 1 + next_int(6), matched, of_row[6], forbidden = next_int(4) * 20;
        int64_t weights[36], range = ranges[next_int(4)];
        bool negative = next_int(3) == 0;
        for (int i = 0; i < rows * cols; i++) {
            weights[i] = (int64_t)(gw_philox_uniform(randomness.seed, 2, randomness.draws++) * (double)range) -
                         (negative ? range / 2 : 0);
            if (next_int(100) < forbidden) weights[i] = GW_ASSIGN_FORBIDDEN;
        }
        struct best best = {0, 0};
        brute(rows, cols, weights, 0, 0, (struct best){0, 0}, &best);
        int count = gw_assign_max(rows, cols, weights, of_row);
        int64_t sum = sum_of(rows, cols, weights, of_row, &matched);
        if (count != best.matched || matched != count || sum != best.sum) {
            printf("(seed %llu, round %d: %d of sum %lld, best %d of %lld) ", (unsigned long long)randomness.seed,
                   round, count, (long long)sum, best.matched, (long long)best.sum);
            CU_FAIL_FATAL("not the best matching");
        }
        incomplete += count < (rows < cols ? rows : cols);
    }
    printf("(%d incomplete) ", incomplete);
    CU_ASSERT(incomplete > 500);
}

/* A permutation hidden in a large matrix is found; and nothing at all is a matching, too. */
static void test_large(void)
{
    enum { ROWS = 150, COLS = 200 };
    static int64_t weights[ROWS * COLS];
    int of_row[ROWS], matched;
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) weights[r * COLS + c] = c == (r * 7 + 3) % COLS ? 1000000 : next_int(1000000);
    CU_ASSERT_EQUAL(gw_assign_max(ROWS, COLS, weights, of_row), ROWS);
    CU_ASSERT(sum_of(ROWS, COLS, weights, of_row, &matched) == ROWS * 1000000ll && matched == ROWS);
    CU_ASSERT_EQUAL(gw_assign_max(0, 5, weights, of_row), 0);
    CU_ASSERT_EQUAL(gw_assign_max(5, 0, weights, of_row), 0);
    CU_ASSERT_EQUAL(of_row[4], -1);
}

/* ---- places ---------------------------------------------------------------------------------------------------- */

enum { MOST = 12 };

struct scene {
    struct gw_dims *dims;
    struct gw_device devices[MOST];
    struct gw_holding holdings[MOST];
    struct gw_inherit inherits[MOST];
    uint64_t kv_tokens[MOST];
    struct gw_layout old;
    struct gw_assign assign;
};

/* `count` devices, of which some hold the places of an old layout in any order, and one or two of its places are gone. */
static void make_scene(struct scene *s, int count)
{
    int order[MOST];
    memset(s, 0, sizeof *s);
    s->dims = &models[next_int(MODELS)];
    s->old = plan_random_layout(&randomness, s->dims, count);
    int lost = next_int(3), old_ranks = gw_layout_ranks(s->old);
    for (int i = 0; i < count; i++) order[i] = i;
    for (int i = count - 1; i > 0; i--) {
        int k = next_int(i + 1), t = order[i];
        order[i] = order[k], order[k] = t;
    }
    for (int d = 0; d < count; d++) {
        s->devices[d] = (struct gw_device){.memory_bytes = 1ull << 34, .speed = 1, .node = 0};
        s->holdings[d] = (struct gw_holding){.replica = -1};
        if (order[d] < lost || order[d] >= old_ranks) continue;
        struct gw_place place = gw_layout_place(s->old, order[d]);
        s->holdings[d] = (struct gw_holding){.weights = true,
                                             .replica = place.replica,
                                             .shard = gw_layout_shard(s->dims, s->old, place.shard, place.stage)};
    }
    for (int r = 0; r < s->old.data; r++) s->kv_tokens[r] = (uint64_t)next_int(4) * 5000;
    s->assign = (struct gw_assign){.dims = s->dims,
                                   .devices = s->devices,
                                   .holdings = s->holdings,
                                   .device_count = count,
                                   .layout = plan_random_layout(&randomness, s->dims, count),
                                   .inherits = s->inherits};
    gw_assign_inherits(&s->assign, s->old.data, s->kv_tokens, s->inherits, &s->assign.inherit_count);
}

static uint64_t best_of_all(const struct gw_assign *a, int slot, unsigned used)
{
    uint64_t best = 0;
    if (slot == gw_layout_ranks(a->layout)) return 0;
    for (int d = 0; d < a->device_count; d++) {
        if (used >> d & 1) continue;
        uint64_t bytes = gw_assign_kept_bytes(a, d, slot) + best_of_all(a, slot + 1, used | 1u << d);
        if (bytes > best) best = bytes;
    }
    return best;
}

static void test_places(void)
{
    double kept_sum = 0, naive_sum = 0;
    for (int round = 0; round < 1000; round++) {
        struct scene s;
        int device_of_slot[MOST], slots;
        uint64_t kept, naive = 0, sum = 0;
        unsigned used = 0;
        make_scene(&s, 1 + next_int(round % 10 == 0 ? 5 : MOST));
        slots = gw_layout_ranks(s.assign.layout);
        CU_ASSERT_EQUAL_FATAL(gw_assign_places(&s.assign, device_of_slot, &kept), GW_OK);
        for (int slot = 0; slot < slots; slot++) {
            CU_ASSERT_FATAL(device_of_slot[slot] >= 0 && !(used >> device_of_slot[slot] & 1));
            used |= 1u << device_of_slot[slot];
            sum += gw_assign_kept_bytes(&s.assign, device_of_slot[slot], slot);
            naive += gw_assign_kept_bytes(&s.assign, slot, slot);
        }
        CU_ASSERT(sum == kept && kept >= naive);
        if (s.assign.device_count <= 5) CU_ASSERT_EQUAL(kept, best_of_all(&s.assign, 0, 0));
        kept_sum += (double)kept, naive_sum += (double)naive;
    }
    printf("(kept %.2f times what the naive mapping keeps) ", kept_sum / naive_sum);
    CU_ASSERT(kept_sum > 1.3 * naive_sum);
}

/* A replica's devices keep all they have when the layout is the old one, in whatever order they come, and its sequences stay with them. */
static void test_same_layout(void)
{
    for (int round = 0; round < 300; round++) {
        struct scene s;
        int device_of_slot[MOST];
        uint64_t kept, all = 0;
        make_scene(&s, MOST);
        struct gw_unit_bytes unit = gw_unit_bytes(s.dims);
        s.assign.layout = s.old;
        for (int r = 0; r < s.old.data; r++) s.kv_tokens[r] = 1000 + (uint64_t)r;
        gw_assign_inherits(&s.assign, s.old.data, s.kv_tokens, s.inherits, &s.assign.inherit_count);
        CU_ASSERT_EQUAL(s.assign.inherit_count, s.old.data);
        CU_ASSERT_EQUAL_FATAL(gw_assign_places(&s.assign, device_of_slot, &kept), GW_OK);
        for (int d = 0; d < MOST; d++) {
            const struct gw_holding *h = &s.holdings[d];
            if (!h->weights) continue;
            uint64_t layers = (uint64_t)(h->shard.layer_end - h->shard.layer_begin), tokens = s.kv_tokens[h->replica];
            uint64_t heads = (uint64_t)(h->shard.kv_end - h->shard.kv_begin);
            int whole = 0;
            for (int other = 0; other < MOST; other++)
                whole += s.holdings[other].weights && s.holdings[other].replica == h->replica;
            all += layers * (heads * unit.head + (uint64_t)(h->shard.ffn_end - h->shard.ffn_begin) * unit.atom);
            if (h->shard.last) all += (uint64_t)(h->shard.vocab_end - h->shard.vocab_begin) * unit.row;
            if (whole == s.old.tensor * s.old.pipeline) all += layers * heads * unit.kv_token * tokens;
        }
        CU_ASSERT_EQUAL(kept, all);
    }
}

static void test_inherits(void)
{
    for (int round = 0; round < 500; round++) {
        struct scene s;
        int seen[MOST] = {0}, expected = 0, distinct = 0;
        make_scene(&s, MOST);
        for (int r = 0; r < s.old.data; r++) expected += s.kv_tokens[r] > 0;
        CU_ASSERT_EQUAL_FATAL(s.assign.inherit_count, expected);
        for (int i = 0; i < expected; i++) {
            const struct gw_inherit *in = &s.inherits[i];
            CU_ASSERT_FATAL(in->to >= 0 && in->to < s.assign.layout.data && in->from < s.old.data);
            CU_ASSERT(in->kv_tokens == s.kv_tokens[in->from] && (i == 0 || in->from > s.inherits[i - 1].from));
            distinct += !seen[in->to]++;
        }
        CU_ASSERT_EQUAL(distinct, expected < s.assign.layout.data ? expected : s.assign.layout.data);
    }
}

/* Shards of a stage do not meet over the network when they need not, though that keeps less. */
static void test_nodes(void)
{
    struct gw_dims *m = &models[0];
    struct gw_device devices[4];
    struct gw_holding holdings[4];
    struct gw_layout l = GW_LAYOUT(1, 2, 2);
    int device_of_slot[4];
    for (int d = 0; d < 4; d++) {
        struct gw_place place = gw_layout_place(l, d);
        devices[d] = (struct gw_device){.memory_bytes = 1u << 30, .speed = 1, .node = d % 2};
        holdings[d] = (struct gw_holding){.weights = true,
                                          .replica = -1,
                                          .shard = gw_layout_shard(m, l, place.shard, place.stage)};
    }
    struct gw_assign a = {.dims = m, .devices = devices, .holdings = holdings, .device_count = 4, .layout = l};
    CU_ASSERT_EQUAL_FATAL(gw_assign_places(&a, device_of_slot, NULL), GW_OK);
    for (int stage = 0; stage < 2; stage++)
        CU_ASSERT_EQUAL(devices[device_of_slot[2 * stage]].node, devices[device_of_slot[2 * stage + 1]].node);
    devices[0].node = 1; /* three on one node: cannot be helped, so each stays */
    CU_ASSERT_EQUAL_FATAL(gw_assign_places(&a, device_of_slot, NULL), GW_OK);
    for (int slot = 0; slot < 4; slot++) CU_ASSERT_EQUAL(device_of_slot[slot], slot);
}

static void test_limits(void)
{
    struct gw_dims *m = &models[0];
    struct gw_device devices[3] = {{1u << 30, 1, 0, false}, {1u << 30, 2, 0, false}, {1u << 30, 1, 0, false}};
    struct gw_holding holdings[3] = {{.replica = -1}, {.replica = -1}, {.replica = -1}};
    struct gw_layout l = GW_LAYOUT(2, 1, 1);
    int device_of_slot[2];
    double speed[2] = {1, 2}, bytes[2] = {1u << 20, 1u << 20};
    struct gw_assign a = {.dims = m,
                          .devices = devices,
                          .holdings = holdings,
                          .device_count = 3,
                          .layout = l,
                          .slot_speed = speed,
                          .slot_bytes = bytes};
    CU_ASSERT_EQUAL_FATAL(gw_assign_places(&a, device_of_slot, NULL), GW_OK);
    CU_ASSERT_EQUAL(device_of_slot[1], 1);
    devices[0].leaving = true;
    CU_ASSERT_EQUAL_FATAL(gw_assign_places(&a, device_of_slot, NULL), GW_OK);
    CU_ASSERT_EQUAL(device_of_slot[0], 2);
    devices[2].memory_bytes = 1u << 19;
    CU_ASSERT_EQUAL(gw_assign_places(&a, device_of_slot, NULL), GW_ERR_LAYOUT);
    CU_ASSERT(strstr(gw_error_detail(), "only 1 of 2 places") != NULL);
    a.slot_bytes = NULL; /* then the weights count */
    a.slot_speed = NULL;
    devices[0].leaving = false;
    devices[1].memory_bytes = 1u << 26;
    CU_ASSERT_EQUAL(gw_assign_places(&a, device_of_slot, NULL), GW_ERR_LAYOUT);
}

int main(void)
{
    make_models();
    printf("seed %llu\n", (unsigned long long)randomness.seed);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("assign", NULL, NULL);
    CU_add_test(suite, "matching against brute force", test_matching);
    CU_add_test(suite, "large", test_large);
    CU_add_test(suite, "places", test_places);
    CU_add_test(suite, "the same layout", test_same_layout);
    CU_add_test(suite, "who inherits", test_inherits);
    CU_add_test(suite, "nodes", test_nodes);
    CU_add_test(suite, "limits", test_limits);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
