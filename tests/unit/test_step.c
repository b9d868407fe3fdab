/* Steps on the wire: what is encoded is decoded; every shortened message and every index out of bounds is refused; random damage is
 * refused or harmless. Seeds are printed. */
#include "base/philox.h"
#include "engine/step.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t seed = 99;
static uint64_t draws;

static int next_int(int bound)
{
    return (int)(gw_philox_uniform(seed, 1, draws++) * bound);
}

static void make_step(struct gw_step *step, int seqs)
{
    gw_step_clear(step);
    step->id = (uint64_t)next_int(1 << 30) << 20;
    step->slot = next_int(4);
    for (int i = 0; i < seqs; i++) {
        struct gw_step_seq *seq = gw_step_add_seq(step);
        CU_ASSERT_EQUAL(seq->logprobs, -1);
        seq->seq = (uint32_t)next_int(1 << 30);
        seq->row0 = step->rows;
        seq->rows = 1 + next_int(40);
        seq->pos0 = next_int(100);
        seq->page0 = step->page_count;
        seq->sample = next_int(2);
        seq->token_index = (uint64_t)next_int(1000);
        seq->history0 = step->history_count;
        seq->history_count = next_int(3) ? 0 : 1 + next_int(20);
        seq->params = (struct gw_sample_params){
            .temperature = 0.5f, .top_p = 0.25f, .top_k = 7, .seed = 1, .stream = 2};
        int pages = (seq->pos0 + seq->rows + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
        for (int32_t p = 0, page = next_int(1000); p < pages; p++, page++) gw_step_add_pages(step, &page, 1);
        int rows = seq->rows, history = seq->history_count;
        for (int32_t r = 0, token = next_int(50000); r < rows; r++, token++) gw_step_add_tokens(step, &token, 1);
        for (int32_t h = 0, token = next_int(50000); h < history; h++, token++) gw_step_add_history(step, &token, 1);
    }
    if (step->rows > GW_ACT_ROWS) step->cut = next_int((step->rows - 1) / GW_ACT_ROWS + 1) * GW_ACT_ROWS;
}

static bool equal(const struct gw_step *a, const struct gw_step *b)
{
    return a->id == b->id && a->slot == b->slot && a->rows == b->rows && a->cut == b->cut &&
           a->seq_count == b->seq_count && a->page_count == b->page_count && a->history_count == b->history_count &&
           !memcmp(a->seqs, b->seqs, (size_t)a->seq_count * sizeof *a->seqs) &&
           !memcmp(a->tokens, b->tokens, (size_t)a->rows * sizeof *a->tokens) &&
           !memcmp(a->pages, b->pages, (size_t)a->page_count * sizeof *a->pages) &&
           (a->history_count == 0 || !memcmp(a->history, b->history, (size_t)a->history_count * sizeof *a->history));
}

static void test_round_trip(void)
{
    struct gw_step step = {0}, back = {0};
    printf("(seed %llu) ", (unsigned long long)seed);
    for (int round = 0; round < 200; round++) {
        struct gw_buf out = {0};
        make_step(&step, 1 + next_int(round < 190 ? 6 : 200));
        gw_step_encode(&step, &out);
        CU_ASSERT_EQUAL(gw_step_decode(out.data, out.bytes, &back), GW_OK); /* the decoder's memory is reused */
        CU_ASSERT(equal(&step, &back));
        gw_buf_free(&out);
    }
    gw_step_free(&step);
    gw_step_free(&back);
    CU_ASSERT(step.seqs == NULL && step.seq_capacity == 0);
}

static void test_shortened(void)
{
    struct gw_step step = {0}, back = {0};
    struct gw_buf out = {0};
    make_step(&step, 2);
    gw_step_encode(&step, &out);
    for (size_t bytes = 0; bytes < out.bytes; bytes++) {
        uint8_t *exact = malloc(bytes ? bytes : 1); /* so that a sanitizer sees a read behind the end */
        memcpy(exact, out.data, bytes);
        CU_ASSERT_EQUAL(gw_step_decode(exact, bytes, &back), GW_ERR_PEER);
        free(exact);
    }
    gw_buf_add_u32(&out, 0); /* and one too long */
    CU_ASSERT_EQUAL(gw_step_decode(out.data, out.bytes, &back), GW_ERR_PEER);
    gw_buf_free(&out);
    gw_step_free(&step);
    gw_step_free(&back);
}

static gw_err decode_with(struct gw_step *step, int which, int32_t value)
{
    struct gw_step back = {0};
    struct gw_buf out = {0};
    struct gw_step_seq *seq = &step->seqs[1], saved = *seq;
    int32_t *fields[] = {&seq->row0, &seq->rows, &seq->pos0, &seq->page0, &seq->history0, &seq->history_count};
    *fields[which] = value;
    gw_step_encode(step, &out);
    gw_err rc = gw_step_decode(out.data, out.bytes, &back);
    *seq = saved;
    gw_buf_free(&out);
    gw_step_free(&back);
    return rc;
}

static void test_out_of_bounds(void)
{
    struct gw_step step = {0};
    make_step(&step, 3);
    static const int32_t bad[] = {-1, INT32_MIN, INT32_MAX, 1 << 20};
    for (int field = 0; field < 6; field++)
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
            CU_ASSERT_EQUAL(decode_with(&step, field, bad[i]), GW_ERR_PEER);
    CU_ASSERT_EQUAL(decode_with(&step, 1, 0), GW_ERR_PEER);
    CU_ASSERT_EQUAL(decode_with(&step, 0, step.rows), GW_ERR_PEER);
    CU_ASSERT_EQUAL(decode_with(&step, 0, step.seqs[1].row0), GW_OK);
    int32_t behind = (step.rows + GW_ACT_ROWS - 1) / GW_ACT_ROWS * GW_ACT_ROWS;
    const int32_t cuts[] = {-1, 1, GW_ACT_ROWS - 1, -GW_ACT_ROWS, behind};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        step.cut = cuts[i];
        CU_ASSERT_EQUAL(decode_with(&step, 0, step.seqs[1].row0), GW_ERR_PEER);
    }
    gw_step_free(&step);
}

/* Any bytes: an error or a step whose indices are inside. */
static void test_damage(void)
{
    struct gw_step step = {0}, back = {0};
    int taken = 0;
    for (int round = 0; round < 3000; round++) {
        struct gw_buf out = {0};
        make_step(&step, 1 + next_int(3));
        gw_step_encode(&step, &out);
        for (int flips = 1 + next_int(3); flips > 0; flips--)
            out.data[next_int((int)out.bytes)] = (uint8_t)next_int(256);
        if (gw_step_decode(out.data, out.bytes, &back) == GW_OK) {
            taken++;
            for (int i = 0; i < back.seq_count; i++) {
                const struct gw_step_seq *s = &back.seqs[i];
                CU_ASSERT(s->row0 >= 0 && s->rows > 0 && s->row0 + s->rows <= back.rows);
                CU_ASSERT((int64_t)s->page0 + (s->pos0 + s->rows + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS <=
                          back.page_count);
                CU_ASSERT(s->history0 + s->history_count <= back.history_count);
            }
            CU_ASSERT(back.cut == 0 || (back.cut > 0 && back.cut < back.rows && back.cut % GW_ACT_ROWS == 0));
        }
        gw_buf_free(&out);
    }
    CU_ASSERT(taken > 100); /* a changed token id cannot be noticed here: messages carry a checksum (comm) */
    gw_step_free(&step);
    gw_step_free(&back);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("step", NULL, NULL);
    CU_add_test(suite, "round trip", test_round_trip);
    CU_add_test(suite, "shortened", test_shortened);
    CU_add_test(suite, "out of bounds", test_out_of_bounds);
    CU_add_test(suite, "damage", test_damage);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
