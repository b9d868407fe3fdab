/* The cost model: figures of the machine it describes, the way they depend on rows, shards, stages and speed, calibration, the text form and
 * what it refuses, and the choice per sequence. */
#include "plan/cost.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static struct gw_dims smol(void)
{
    return (struct gw_dims){.layers = 30,
                            .d_model = 576,
                            .heads = 9,
                            .kv_heads = 3,
                            .head_dim = 64,
                            .ffn = 1536,
                            .vocab = 49152,
                            .ffn_atoms = gw_ffn_atoms(3, 1536),
                            .bytes_per_weight = 0.625,
                            .output_bytes = 49152.0 * 576 * 1.125};
}

/* All but the padding. */
static bool same(const struct gw_cost *a, const struct gw_cost *b)
{
    return !memcmp(a, b, offsetof(struct gw_cost, seen) + sizeof a->seen);
}

static const struct gw_layout one = {.data = 1, .tensor = 1, .pipeline = 1};

static double decode_per_s(const struct gw_cost *cost, double rows)
{
    struct gw_dims m = smol();
    struct gw_shard s = gw_layout_shard(&m, one, 0, 0);
    return rows / gw_cost_stage_s(cost, &m, &s, 1, &(struct gw_load){.decode_rows = rows, .mean_context = 80});
}

/* Within a third of what `godwit bench` says of one core (150, 490, 600 tokens/s at 1, 8, 32; 720 of prefill), and half when it is busy. */
static void test_defaults(void)
{
    struct gw_cost cost = gw_cost_default();
    struct gw_dims m = smol();
    CU_ASSERT(decode_per_s(&cost, 1) > 100 && decode_per_s(&cost, 1) < 200);
    CU_ASSERT(decode_per_s(&cost, 8) > 330 && decode_per_s(&cost, 8) < 650);
    CU_ASSERT(decode_per_s(&cost, 32) > 430 && decode_per_s(&cost, 32) < 800);
    double prefill_per_s = 512 / gw_cost_recompute_s(&cost, &m, one, 512, 64);
    CU_ASSERT(prefill_per_s > 550 && prefill_per_s < 950);
    CU_ASSERT_EQUAL(gw_cost_recompute_s(&cost, &m, one, 0, 64), 0);
    CU_ASSERT(gw_cost_recompute_s(&cost, &m, one, 2000, 64) > gw_cost_recompute_s(&cost, &m, one, 1000, 64));
}

static double replica(struct gw_layout l, double seqs, double latency_s, double speed, int nodes)
{
    struct gw_cost cost = gw_cost_default();
    struct gw_dims m = smol();
    struct gw_device devices[16];
    int device_of_slot[16];
    struct gw_workload work = {.prompt_tokens = 100, .output_tokens = 100, .context = 1024, .max_seqs = 64};
    if (latency_s > 0) cost.latency_s = latency_s;
    for (int d = 0; d < 16; d++) {
        devices[d] = (struct gw_device){.memory_bytes = 1u << 30, .speed = d == 1 ? speed : 1, .node = d % nodes};
        device_of_slot[d] = d;
    }
    return gw_cost_replica_tokens_per_s(&cost, &m, l, devices, device_of_slot, &work, seqs);
}

static void test_layouts(void)
{
    struct gw_layout tensor = GW_LAYOUT(1, 3, 1), pipeline = GW_LAYOUT(1, 1, 4);
    double alone = replica(one, 64, 0, 1, 1);
    CU_ASSERT(replica(tensor, 64, 0, 1, 1) > 2.2 * alone && replica(tensor, 64, 0, 1, 1) < 3 * alone);
    CU_ASSERT(replica(pipeline, 64, 0, 1, 1) > 2 * alone && replica(pipeline, 64, 0, 1, 1) < 4 * alone);
    CU_ASSERT(replica(tensor, 1, 0, 1, 1) > 2 * replica(one, 1, 0, 1, 1));      /* one sequence: shards help */
    CU_ASSERT(replica(pipeline, 1, 0, 1, 1) < 1.05 * replica(one, 1, 0, 1, 1)); /* stages do not: all but one idle */
    CU_ASSERT(replica(pipeline, 4, 0, 1, 1) > 2 * replica(pipeline, 1, 0, 1, 1));
    CU_ASSERT(replica(tensor, 64, 1e-3, 1, 1) < 0.8 * replica(tensor, 64, 0, 1, 1)); /* 120 messages a step */
    CU_ASSERT(replica(pipeline, 64, 1e-3, 1, 1) > 0.9 * replica(pipeline, 64, 0, 1, 1));
    CU_ASSERT(replica(tensor, 64, 0, 1, 2) < 0.99 * replica(tensor, 64, 0, 1, 1));  /* over the network */
    CU_ASSERT(replica(tensor, 64, 0, 0.5, 1) < 0.6 * replica(tensor, 64, 0, 1, 1)); /* the slowest shard decides */
    CU_ASSERT(replica(one, 64, 0, 0.5, 1) == alone);
}

static void test_observe(void)
{
    struct gw_cost cost = gw_cost_default(), was = cost;
    gw_cost_observe(&cost, GW_COST_LINK, 2e9, 1); /* the first stands for itself */
    CU_ASSERT_DOUBLE_EQUAL(cost.link_bytes_per_s, 2e9, 1);
    gw_cost_observe(&cost, GW_COST_LINK, 1e9, 1); /* the second: a mean of two */
    CU_ASSERT_DOUBLE_EQUAL(cost.link_bytes_per_s, 1.5e9, 1);
    for (int i = 0; i < 100; i++) gw_cost_observe(&cost, GW_COST_LINK, 4e9, 1);
    CU_ASSERT_DOUBLE_EQUAL(cost.link_bytes_per_s, 4e9, 4e7);
    gw_cost_observe(&cost, GW_COST_LINK, 1e9, 1); /* by then one does not count for much */
    CU_ASSERT(cost.link_bytes_per_s > 3.6e9);
    gw_cost_observe(&cost, GW_COST_SPAWN, 2, 0.5);
    CU_ASSERT_DOUBLE_EQUAL(cost.spawn_s, 0.25, 1e-9);
    gw_cost_observe(&cost, GW_COST_LATENCY, 1, 100); /* nobody is a million times slower than thought */
    CU_ASSERT_DOUBLE_EQUAL(cost.latency_s, 10 * was.latency_s, 1e-12);
    double before = decode_per_s(&cost, 8);
    gw_cost_observe(&cost, GW_COST_COMPUTE, 1, 2);
    CU_ASSERT_DOUBLE_EQUAL(decode_per_s(&cost, 8), before / 2, 1e-6);
    was = cost;
    gw_cost_observe(&cost, GW_COST_PACK, 0, 1);
    gw_cost_observe(&cost, GW_COST_PACK, 1, 0);
    gw_cost_observe(&cost, GW_COST_PACK, -1, 1);
    gw_cost_observe(&cost, GW_COST_PACK, NAN, 1);
    gw_cost_observe(&cost, GW_COST_PACK, 1, INFINITY);
    gw_cost_observe(&cost, GW_COST_KINDS, 1, 1);
    CU_ASSERT(same(&cost, &was));
}

/* What was observed is what is predicted from then on, whatever the machine. */
static void test_calibration(void)
{
    struct gw_cost cost = gw_cost_default(), machine = cost;
    machine.mac_s *= 3.7, machine.weight_byte_s *= 3.7, machine.attention_s *= 3.7, machine.row_s *= 3.7;
    machine.step_s *= 3.7;
    for (int i = 0; i < 30; i++)
        gw_cost_observe(&cost, GW_COST_COMPUTE, 4 / decode_per_s(&cost, 4), 4 / decode_per_s(&machine, 4));
    CU_ASSERT_DOUBLE_EQUAL(decode_per_s(&cost, 32) / decode_per_s(&machine, 32), 1, 1e-3);
}

static gw_err decode(const char *text, struct gw_cost *cost)
{
    return gw_cost_decode(text, strlen(text), cost);
}

static void test_text(void)
{
    struct gw_cost cost = gw_cost_default(), back;
    struct gw_buf text = {0};
    gw_cost_observe(&cost, GW_COST_LINK, 3.3e9, 1.7);
    gw_cost_observe(&cost, GW_COST_COMPUTE, 1, 1.1);
    gw_cost_encode(&cost, &text);
    CU_ASSERT_EQUAL_FATAL(gw_cost_decode((const char *)text.data, text.bytes, &back), GW_OK);
    CU_ASSERT(same(&cost, &back));
    CU_ASSERT_EQUAL(gw_cost_decode((const char *)text.data, text.bytes - 1, &back), GW_OK); /* no newline at the end */
    gw_buf_free(&text);
    CU_ASSERT_EQUAL(decode("", &back), GW_OK);
    cost = gw_cost_default();
    CU_ASSERT(same(&cost, &back));
    CU_ASSERT_EQUAL(decode("\nwhatever=is new\nspawn_s=3\n", &back), GW_OK);
    CU_ASSERT(back.spawn_s == 3 && back.mac_s == cost.mac_s);
    static const char *const bad[] = {"spawn_s",      "spawn_s=",           "spawn_s=0",     "spawn_s=-1",
                                      "spawn_s=nan",  "spawn_s=inf",        "spawn_s=1 ",    "=1",
                                      "link_seen=-1", "link_seen=1.5",      "spawn_s=1e999", "link_seen=1e9",
                                      "spawn_s=1x",   "mac_s=1\nnonsense\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gw_cost kept = cost;
        CU_ASSERT_EQUAL(decode(bad[i], &kept), GW_ERR_FORMAT);
        CU_ASSERT(same(&cost, &kept));
    }
    CU_ASSERT(strstr(gw_error_detail(), "line 2") != NULL);
    CU_ASSERT_EQUAL(gw_cost_decode("spawn_s=1\0", 10, &back), GW_ERR_FORMAT);
    char longest[400];
    memset(longest, 'x', sizeof longest);
    longest[5] = '=';
    CU_ASSERT_EQUAL(gw_cost_decode(longest, sizeof longest, &back), GW_ERR_FORMAT);
}

static void test_sequences(void)
{
    struct gw_cost cost = gw_cost_default();
    double seconds;
    struct gw_seq_state s = {.tokens = 1000,
                             .kv_bytes = 23000000,
                             .kept_bytes = 23000000,
                             .checkpointed_tokens = 1000,
                             .one_node = true,
                             .recompute_token_s = 1.5e-3};
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_KEEP);
    CU_ASSERT_EQUAL(seconds, 0);
    s.kept_bytes = 3000000, s.movable_bytes = 20000000;
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_MOVE);
    CU_ASSERT_DOUBLE_EQUAL(seconds, gw_cost_move_s(&cost, 20e6, true), 1e-12);
    s.movable_bytes--; /* a piece is gone */
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_RESTORE);
    CU_ASSERT_DOUBLE_EQUAL(seconds, gw_cost_restore_s(&cost, 23e6), 1e-12);
    s.checkpointed_tokens = 400; /* and the rest computed */
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_RESTORE);
    CU_ASSERT_DOUBLE_EQUAL(seconds, gw_cost_restore_s(&cost, 9.2e6) + 0.9, 1e-12);
    s.checkpointed_tokens = 0;
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_RECOMPUTE);
    CU_ASSERT_DOUBLE_EQUAL(seconds, 1.5, 1e-12);
    s.checkpointed_tokens = 1000, s.movable_bytes = 20000000, s.one_node = false;
    cost.node_link_bytes_per_s = 1e6; /* a link so slow that the disk, or computing, is faster */
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_RESTORE);
    cost.storage_bytes_per_s = 1e5;
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_RECOMPUTE);
    s = (struct gw_seq_state){0}; /* nothing computed yet: nothing to do */
    CU_ASSERT_EQUAL(gw_seq_choice(&cost, &s, &seconds), GW_SEQ_KEEP);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("cost", NULL, NULL);
    CU_add_test(suite, "defaults", test_defaults);
    CU_add_test(suite, "layouts", test_layouts);
    CU_add_test(suite, "observing", test_observe);
    CU_add_test(suite, "calibration", test_calibration);
    CU_add_test(suite, "text form", test_text);
    CU_add_test(suite, "sequences", test_sequences);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
