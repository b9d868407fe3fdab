/* Layouts: every slice belongs to exactly one rank, for every layout of up to 12 ranks on models of several shapes; ranks and places
 * are inverse; spellings. */
#include "kernels/kernels.h"
#include "plan/layout.h"
#include "support/plan_cases.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <string.h>

enum { MODELS = 7 };
static struct gw_dims models[MODELS];

static void make_models(void)
{
    models[0] = plan_dims(30, 576, 9, 3, 64, 1536, 49152);     /* SmolLM2-135M */
    models[1] = plan_dims(28, 1536, 12, 2, 128, 8960, 151936); /* Qwen2.5-1.5B */
    models[2] = plan_dims(24, 2048, 32, 32, 64, 5632, 32000);  /* each head its own keys */
    models[3] = plan_dims(18, 2048, 8, 1, 256, 16384, 100);    /* one kv head; a vocabulary of less than two chunks */
    models[4] = plan_dims(6, 192, 6, 3, 32, 768, 600);         /* the tiny one of the tests */
    models[5] = plan_dims(2, 128, 20, 20, 32, 320, 1000);      /* fewer blocks of the FFN than kv heads */
    models[6] = plan_dims(80, 8192, 64, 8, 128, 28672, 128256);
}

/* [begin, end) goes on where the one before ended. */
static bool follows(int *at, int begin, int end)
{
    bool ok = begin == *at && end >= begin;
    *at = end;
    return ok;
}

static bool check_shards(const struct gw_dims *m, struct gw_layout l, int stage)
{
    int kv = 0, ffn = 0, vocab = 0;
    for (int s = 0; s < l.tensor; s++) {
        struct gw_shard shard = gw_layout_shard(m, l, s, stage);
        if (!follows(&kv, shard.kv_begin, shard.kv_end) || !follows(&ffn, shard.ffn_begin, shard.ffn_end) ||
            !follows(&vocab, shard.vocab_begin, shard.vocab_end))
            return false;
        if (shard.ffn_begin == shard.ffn_end) return false; /* each shard has something to do */
        if (shard.vocab_end % GW_SUM_CHUNK && shard.vocab_end != m->vocab) return false;
        if (shard.first != (stage == 0) || shard.last != (stage == l.pipeline - 1)) return false;
    }
    return kv == m->kv_heads && ffn == m->ffn_atoms && vocab == m->vocab;
}

static bool check_layout(const struct gw_dims *m, struct gw_layout l)
{
    double bytes = 0;
    uint64_t page_bytes = 0;
    for (int s = 0; s < l.tensor; s++) {
        int layer = 0;
        for (int stage = 0; stage < l.pipeline; stage++) {
            struct gw_shard shard = gw_layout_shard(m, l, s, stage);
            if (!follows(&layer, shard.layer_begin, shard.layer_end) || shard.layer_begin == shard.layer_end)
                return false;
            bytes += gw_shard_weight_bytes(m, &shard);
            page_bytes += gw_shard_page_bytes(m, &shard);
        }
        if (layer != m->layers) return false;
    }
    for (int stage = 0; stage < l.pipeline; stage++)
        if (!check_shards(m, l, stage)) return false;
    for (int rank = 0; rank < gw_layout_ranks(l); rank++) {
        struct gw_place p = gw_layout_place(l, rank);
        if (gw_layout_rank(l, p) != rank || p.replica < 0 || p.replica >= l.data || p.shard < 0 ||
            p.shard >= l.tensor || p.stage < 0 || p.stage >= l.pipeline)
            return false;
    }
    struct gw_shard whole = gw_layout_shard(m, GW_LAYOUT(1, 1, 1), 0, 0);
    double all = gw_shard_weight_bytes(m, &whole);
    return bytes > all * 0.999999 && bytes < all * 1.000001 && page_bytes == gw_shard_page_bytes(m, &whole);
}

static void test_slices(void)
{
    int checked = 0, refused = 0;
    for (int i = 0; i < MODELS; i++)
        for (int data = 1; data <= 12; data++)
            for (int tensor = 1; data * tensor <= 12; tensor++)
                for (int pipeline = 1; data * tensor * pipeline <= 12; pipeline++) {
                    struct gw_layout l = GW_LAYOUT(data, tensor, pipeline);
                    bool possible = tensor <= models[i].ffn_atoms && pipeline <= models[i].layers;
                    CU_ASSERT_EQUAL(gw_layout_check(&models[i], l), possible ? GW_OK : GW_ERR_LAYOUT);
                    refused += !possible;
                    if (!possible) continue;
                    checked++;
                    if (check_layout(&models[i], l)) continue;
                    printf("model %d layout %dx%dx%d ", i, data, tensor, pipeline);
                    CU_FAIL("slices do not fit together");
                }
    printf("(%d layouts, %d refused) ", checked, refused);
    CU_ASSERT(checked > 300 && refused > 5);
    for (int tensor = 1; tensor <= models[2].ffn_atoms; tensor++)
        CU_ASSERT(check_layout(&models[2], GW_LAYOUT(1, tensor, 24)));
}

/* Splits by random speeds: slices still fit together, and the layers are shared out in proportion. */
static void test_splits(void)
{
    unsigned x = 12345;
    int uneven = 0;
    for (int round = 0; round < 2000; round++) {
        const struct gw_dims *m = &models[round % MODELS];
        double stages[GW_SPLIT_MOST + 4], shards[GW_SPLIT_MOST + 4];
        int most_stages = m->layers < GW_SPLIT_MOST + 4 ? m->layers : GW_SPLIT_MOST + 4;
        struct gw_layout l = GW_LAYOUT(1, 1 + (int)(x >> 8) % m->ffn_atoms, 1 + (int)(x >> 16) % most_stages), again;
        for (int i = 0; i < GW_SPLIT_MOST + 4; i++) {
            x = x * 1664525 + 1013904223;
            stages[i] = 1 + (x >> 24) % 5;
            shards[i] = 1 + (x >> 20) % 3;
        }
        gw_layout_split(&l, stages, shards);
        CU_ASSERT(check_layout(m, l));
        again = GW_LAYOUT(1, l.tensor, l.pipeline);
        for (int i = 0; i < GW_SPLIT_MOST + 4; i++) stages[i] *= 3.7, shards[i] *= 0.01;
        gw_layout_split(&again, stages, shards);
        CU_ASSERT(!memcmp(&l, &again, sizeof l)); /* the unit does not matter */
        uneven += l.stage_speed[0] || l.shard_speed[0];
        if (l.pipeline > GW_SPLIT_MOST) CU_ASSERT(!l.stage_speed[0]);
    }
    CU_ASSERT(uneven > 1000);
    struct gw_layout l = GW_LAYOUT(2, 1, 3), even = l;
    gw_layout_split(&l, (double[]){1, 0.5, 1}, (double[]){1});
    struct gw_dims m = models[0];
    m.vocab = 0;
    int layers[3];
    for (int stage = 0; stage < 3; stage++) {
        struct gw_shard s = gw_layout_shard(&m, l, 0, stage);
        layers[stage] = s.layer_end - s.layer_begin;
    }
    CU_ASSERT(layers[0] == m.layers * 2 / 5 && layers[1] == m.layers / 5);
    char text[GW_LAYOUT_TEXT_BYTES];
    CU_ASSERT_STRING_EQUAL(gw_layout_text(l, text), "2x1x3 stages 8:4:8");
    CU_ASSERT_STRING_EQUAL(gw_layout_text(even, text), "2x1x3");
    CU_ASSERT(!gw_layout_same_cut(l, even));
    gw_layout_split(&l, (double[]){2, 2.1, 2}, (double[]){1}); /* noise is no difference */
    CU_ASSERT(gw_layout_same_cut(l, even));
}

/* KV heads are shared out as evenly as they can be, and FFN atoms so that they make up for the rest: who has more heads has no more atoms. */
static void test_balance(void)
{
    for (int i = 0; i < MODELS; i++) {
        const struct gw_dims *m = &models[i];
        for (int tensor = 1; tensor <= 8 && tensor <= m->ffn_atoms; tensor++) {
            int most_heads = 0, most_atoms = 0, fewest_heads = m->kv_heads, fewest_atoms = m->ffn_atoms;
            for (int s = 0; s < tensor; s++) {
                struct gw_shard shard = gw_layout_shard(m, GW_LAYOUT(1, tensor, 1), s, 0);
                int heads = shard.kv_end - shard.kv_begin, atoms = shard.ffn_end - shard.ffn_begin;
                CU_ASSERT(heads <= (m->kv_heads + tensor - 1) / tensor && heads >= m->kv_heads / tensor);
                if (heads > most_heads || (heads == most_heads && atoms > most_atoms))
                    most_heads = heads, most_atoms = atoms;
                if (heads < fewest_heads || (heads == fewest_heads && atoms < fewest_atoms))
                    fewest_heads = heads, fewest_atoms = atoms;
            }
            bool even = m->kv_heads % tensor == 0;
            CU_ASSERT(even ? most_atoms - fewest_atoms <= 1 : most_atoms <= fewest_atoms);
            double wait = gw_layout_wait(m, GW_LAYOUT(1, tensor, 1));
            CU_ASSERT(wait > -1e-9 && (!even || wait < 1e-9));
        }
    }
    struct gw_shard two[2];
    for (int s = 0; s < 2; s++) two[s] = gw_layout_shard(&models[0], GW_LAYOUT(1, 2, 1), s, 0);
    CU_ASSERT(two[0].kv_end == 2 && two[0].ffn_end == 4 && two[1].kv_end == 3 && two[1].ffn_end == 12);
    CU_ASSERT(gw_layout_wait(&models[0], GW_LAYOUT(1, 2, 1)) > 0.2);
    /* the output matrix counts as layers of the last stage */
    struct gw_shard last = gw_layout_shard(&models[0], GW_LAYOUT(1, 1, 2), 0, 1);
    CU_ASSERT(last.layer_end - last.layer_begin < 15);
}

static void test_atoms(void)
{
    CU_ASSERT_EQUAL(gw_ffn_atoms(3, 1536), 12);
    CU_ASSERT_EQUAL(gw_ffn_atoms(2, 8960), 16);
    CU_ASSERT_EQUAL(gw_ffn_atoms(32, 5632), 32);
    CU_ASSERT_EQUAL(gw_ffn_atoms(1, 16384), 16);
    CU_ASSERT_EQUAL(gw_ffn_atoms(20, 320), 10);
    for (int i = 0; i < MODELS; i++) {
        int atoms = models[i].ffn_atoms, ffn = models[i].ffn;
        CU_ASSERT_EQUAL(gw_ffn_atom_block(ffn, atoms, 0), 0);
        CU_ASSERT_EQUAL(gw_ffn_atom_block(ffn, atoms, atoms), ffn / GW_BLOCK);
        for (int a = 0; a < atoms; a++)
            CU_ASSERT(gw_ffn_atom_block(ffn, atoms, a) < gw_ffn_atom_block(ffn, atoms, a + 1));
    }
}

static void test_parse(void)
{
    struct gw_layout l = GW_LAYOUT(7, 7, 7);
    CU_ASSERT_EQUAL(gw_layout_parse("2x3x4", &l), GW_OK);
    CU_ASSERT(l.data == 2 && l.tensor == 3 && l.pipeline == 4);
    CU_ASSERT_EQUAL(gw_layout_ranks(l), 24);
    static const char *const bad[] = {"",       "2",      "2x2",     "2x2x",      "2x2x2x2",
                                      "2x2x2 ", "2x3x1x", "0x1x1",   "1x0x1",     "1x1x0",
                                      "-1x1x1", "axbxc",  "2*2*2",   "2x2x70000", "1x1x99999999999",
                                      "2,2,2",  "x1x1",   "1.5x1x1", "1x1x1\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        l = GW_LAYOUT(7, 7, 7);
        gw_err rc = gw_layout_parse(bad[i], &l);
        if (rc != GW_ERR_USAGE) printf("'%s' was taken ", bad[i]);
        CU_ASSERT_EQUAL(rc, GW_ERR_USAGE);
        CU_ASSERT(strstr(gw_error_detail(), bad[i]) && l.data == 7);
    }
}

int main(void)
{
    make_models();
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("layout", NULL, NULL);
    CU_add_test(suite, "slices", test_slices);
    CU_add_test(suite, "splits", test_splits);
    CU_add_test(suite, "balance", test_balance);
    CU_add_test(suite, "atoms", test_atoms);
    CU_add_test(suite, "spelling", test_parse);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
