/* Who is found to be a straggler, and who is not (control/pace.h); what speeds ranks are taken to have (job/speeds.h). */
#include "control/pace.h"
#include "job/speeds.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <string.h>

static unsigned state = 20261123;
static double noise(double most)
{
    state = state * 1664525 + 1013904223;
    return 1 + most * ((double)(state >> 8) / (1 << 24) * 2 - 1);
}

/* One second: each of `count` members says how long it took, factors[i] times what the model says. */
static enum gw_pace_change second(struct gw_pace *pace, double *now_s, const double *speeds, const double *factors,
                                  int count, double most_noise, int *member, double *factor)
{
    *now_s += 1;
    for (int i = 0; i < count; i++)
        if (factors[i] > 0)
            gw_pace_note(pace, i, speeds[i], 64, 0.5, 0.5 / speeds[i] * factors[i] * noise(most_noise), *now_s);
    return gw_pace_judge(pace, *now_s, member, factor);
}

/* The model is wrong by the same factor for all, and each report is up to 20 % off: nobody is a straggler. */
static void test_noise(void)
{
    static const double speeds[] = {1, 0.5, 1, 0.25}, factors[] = {3, 3, 3.3, 2.8};
    struct gw_pace *pace = gw_pace_create();
    double now_s = 0, factor = 0;
    int member = -1;
    for (int i = 0; i < 2000; i++) {
        if (i % 50 == 0) gw_pace_restart(pace);
        CU_ASSERT_EQUAL(second(pace, &now_s, speeds, factors, 4, 0.2, &member, &factor), GW_PACE_SAME);
    }
    gw_pace_destroy(pace);
}

/* Member 1 becomes three times as slow, and later as fast as it was. */
static void test_straggler(void)
{
    double speeds[] = {1, 1, 1}, factors[] = {2, 2, 2}, now_s = 0, factor = 0;
    int member = -1, took = 0;
    struct gw_pace *pace = gw_pace_create();
    for (int i = 0; i < 20; i++) second(pace, &now_s, speeds, factors, 3, 0.1, &member, &factor);
    factors[1] = 6;
    while (++took < 100 && second(pace, &now_s, speeds, factors, 3, 0.1, &member, &factor) != GW_PACE_SLOWER) continue;
    CU_ASSERT(took >= GW_PACE_WINDOWS / 2 && took <= GW_PACE_WINDOWS && member == 1);
    CU_ASSERT_DOUBLE_EQUAL(factor, 1.0 / 3, 0.1);
    CU_ASSERT_EQUAL(gw_pace_factor(pace, 1), factor);
    CU_ASSERT_EQUAL(gw_pace_factor(pace, 0), 1);
    /* the plan takes it as it is now: nothing more is to be said */
    gw_pace_restart(pace);
    speeds[1] = factor;
    factors[1] = 6 * factor;
    for (int i = 0; i < 100; i++)
        CU_ASSERT_EQUAL(second(pace, &now_s, speeds, factors, 3, 0.1, &member, &factor), GW_PACE_SAME);
    factors[1] = 2 * speeds[1];
    for (took = 0; took < 100 && second(pace, &now_s, speeds, factors, 3, 0.1, &member, &factor) != GW_PACE_FASTER;
         took++)
        continue;
    CU_ASSERT(took < 100 && member == 1);
    CU_ASSERT_DOUBLE_EQUAL(factor, 1, 0.15);
    gw_pace_destroy(pace);
}

/* Left out, it says nothing any more; after a while it is tried again, the second time after twice as long. */
static void test_left_out(void)
{
    double speeds[] = {1, 1, 1}, factors[] = {1, 5, 1}, now_s = 0, factor = 0;
    int member = -1, waited[2] = {0};
    struct gw_pace *pace = gw_pace_create();
    for (int round = 0; round < 2; round++) {
        factors[1] = 5;
        while (second(pace, &now_s, speeds, factors, 3, 0.1, &member, &factor) != GW_PACE_SLOWER && now_s < 1e4)
            continue;
        gw_pace_restart(pace);
        factors[1] = 0;
        while (second(pace, &now_s, speeds, factors, 3, 0.1, &member, &factor) != GW_PACE_TRY_AGAIN && now_s < 1e4)
            waited[round]++;
        CU_ASSERT(member == 1 && factor == 1);
        gw_pace_restart(pace);
    }
    CU_ASSERT(waited[0] > 50 && waited[1] > 1.8 * waited[0] && now_s < 1e4);
    gw_pace_destroy(pace);
}

/* Small steps are not compared with large ones, for which the model may be wrong in another way. */
static void test_sizes(void)
{
    double now_s = 0, factor = 0;
    int member = -1;
    struct gw_pace *pace = gw_pace_create();
    for (int i = 0; i < 100; i++) {
        now_s += 1;
        gw_pace_note(pace, 0, 1, 64, 1, 1, now_s);
        gw_pace_note(pace, 1, 1, 4, 1, 9, now_s);
        CU_ASSERT_EQUAL(gw_pace_judge(pace, now_s, &member, &factor), GW_PACE_SAME);
    }
    gw_pace_destroy(pace);
}

/* Who is alone has nobody to be compared with. */
static void test_alone(void)
{
    double speed = 1, factor = 0, slow = 9, now_s = 0;
    int member = -1;
    struct gw_pace *pace = gw_pace_create();
    for (int i = 0; i < 100; i++)
        CU_ASSERT_EQUAL(second(pace, &now_s, &speed, &slow, 1, 0, &member, &factor), GW_PACE_SAME);
    gw_pace_destroy(pace);
}

static void hello(struct gw_hello *h, int member, const char *host, const char *kernels, double gops, int cpus)
{
    *h = (struct gw_hello){.peer = {.member = member}, .gops = gops, .cpus = cpus};
    snprintf(h->peer.host, sizeof h->peer.host, "%s", host);
    snprintf(h->kernels, sizeof h->kernels, "%s", kernels);
}

static void test_speeds(void)
{
    struct gw_hello h[4];
    struct gw_job_options options = {0};
    struct gw_pace *pace = gw_pace_create();
    double speeds[4];
    /* two hosts alike; rank 1 had company while it measured, the other host is 15 % faster by its clock */
    for (int i = 0; i < 4; i++) hello(&h[i], i, i < 2 ? "a" : "b", "avx512", i == 1 ? 20 : i < 2 ? 100 : 115, 2);
    gw_speeds_of_ranks(h, 4, &options, pace, speeds);
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(speeds[i], 1);
    /* host b has older CPUs, half as fast, but twice as many */
    for (int i = 2; i < 4; i++) hello(&h[i], i, "b", "avx2", 51, 4);
    gw_speeds_of_ranks(h, 4, &options, pace, speeds);
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(speeds[i], 1);
    options.threads = 1; /* which are not used */
    gw_speeds_of_ranks(h, 4, &options, pace, speeds);
    CU_ASSERT(speeds[0] == 1 && speeds[1] == 1 && speeds[2] == 0.5 && speeds[3] == 0.5);
    /* other kernels on one host are other machines */
    hello(&h[1], 1, "a", "ref", 1, 2);
    gw_speeds_of_ranks(h, 4, &options, pace, speeds);
    CU_ASSERT(speeds[0] == 1 && speeds[1] == 0.125);
    hello(&h[3], 3, "c", "avx2", 0, 4);
    gw_speeds_of_ranks(h, 4, &options, pace, speeds);
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(speeds[i], 1);
    gw_pace_destroy(pace);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 2;
    CU_pSuite suite = CU_add_suite("pace", NULL, NULL);
    CU_add_test(suite, "noise", test_noise);
    CU_add_test(suite, "a straggler", test_straggler);
    CU_add_test(suite, "left out, tried again", test_left_out);
    CU_add_test(suite, "small and large steps", test_sizes);
    CU_add_test(suite, "alone", test_alone);
    CU_add_test(suite, "speeds of ranks", test_speeds);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
