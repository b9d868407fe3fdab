/* The thread pool: every thread runs once a dispatch, barriers order phases, nothing is lost while waiters sleep or spin.
 * Meant to run under the thread sanitizer too: the phases below use plain (not atomic) memory on purpose. */
#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"

#include <CUnit/Basic.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_THREADS 8
#define PHASES 16

struct work {
    struct gw_pool *pool;
    int runs[MAX_THREADS];             /* dispatches thread i took part in */
    int cell[PHASES + 1][MAX_THREADS]; /* phase p of thread i = phase p-1 of its neighbour + 1 */
    int wrong;
    atomic_int wrong_threads;
};

static struct gw_pool *make_pool(int threads, const int *cpus, const char *spin_us)
{
    setenv("GODWIT_SPIN_US", spin_us, 1);
    struct gw_pool *pool;
    gw_err rc = gw_pool_create(threads, cpus, &pool);
    unsetenv("GODWIT_SPIN_US");
    CU_ASSERT_EQUAL_FATAL(rc, GW_OK);
    CU_ASSERT_EQUAL(gw_pool_threads(pool), threads);
    return pool;
}

static void count_run(void *arg, int thread, int threads)
{
    struct work *work = arg;
    if (threads != gw_pool_threads(work->pool)) atomic_fetch_add(&work->wrong_threads, 1);
    work->runs[thread]++;
}

static void run_phases(void *arg, int thread, int threads)
{
    struct work *work = arg;
    for (int p = 1; p <= PHASES; p++) {
        work->cell[p][thread] = work->cell[p - 1][(thread + 1) % threads] + 1 + thread;
        gw_pool_sync(work->pool);
    }
}

static void check_pool(int threads, const char *spin_us, int dispatches)
{
    struct work work = {.pool = make_pool(threads, NULL, spin_us)};
    for (int i = 0; i < dispatches; i++) gw_pool_run(work.pool, count_run, &work);
    for (int t = 0; t < MAX_THREADS; t++) CU_ASSERT_EQUAL(work.runs[t], t < threads ? dispatches : 0);
    CU_ASSERT_EQUAL(atomic_load(&work.wrong_threads), 0);

    int want[PHASES + 1][MAX_THREADS];
    for (int d = 0; d < dispatches / 10 + 1; d++) {
        for (int t = 0; t < threads; t++) work.cell[0][t] = want[0][t] = d * 100 + t * t;
        for (int p = 1; p <= PHASES; p++)
            for (int t = 0; t < threads; t++) want[p][t] = want[p - 1][(t + 1) % threads] + 1 + t;
        gw_pool_run(work.pool, run_phases, &work);
        for (int p = 0; p <= PHASES; p++)
            for (int t = 0; t < threads; t++) work.wrong += work.cell[p][t] != want[p][t];
    }
    CU_ASSERT_EQUAL(work.wrong, 0);
    gw_pool_destroy(work.pool);
}

static void test_dispatch_and_phases(void)
{
    for (int threads = 1; threads <= MAX_THREADS; threads++) {
        check_pool(threads, "0", 300);
        check_pool(threads, "5", 300);
    }
    check_pool(2, "30", 5000);
}

/* Waiters that sleep because the others are late must be woken, at the dispatch, at the barrier and at the end. */
static void late_thread(void *arg, int thread, int threads)
{
    struct work *work = arg;
    for (int late = 0; late < threads; late++) {
        if (thread == late) usleep(500);
        work->cell[late][thread] = late + 1;
        gw_pool_sync(work->pool);
        for (int t = 0; t < threads; t++)
            if (work->cell[late][t] != late + 1) atomic_fetch_add(&work->wrong_threads, 1);
    }
    if (thread == threads - 1) usleep(500);
    work->runs[thread]++;
}

static void test_sleepers_wake(void)
{
    for (int threads = 2; threads <= 4; threads++) {
        struct work work = {.pool = make_pool(threads, NULL, "2")};
        for (int i = 0; i < 20; i++) {
            usleep(300); /* workers fall asleep before the dispatch */
            memset(work.cell, 0, sizeof work.cell);
            gw_pool_run(work.pool, late_thread, &work);
            for (int t = 0; t < threads; t++) CU_ASSERT_EQUAL(work.runs[t], i + 1);
        }
        CU_ASSERT_EQUAL(atomic_load(&work.wrong_threads), 0);
        gw_pool_destroy(work.pool);
    }
}

static void note_cpu(void *arg, int thread, int threads)
{
    (void)threads;
    ((int *)arg)[thread] = sched_getcpu();
}

static void test_pinning(void)
{
    cpu_set_t before, after;
    CU_ASSERT_EQUAL_FATAL(sched_getaffinity(0, sizeof before, &before), 0);
    int allowed = CPU_COUNT(&before);
    int cpus[MAX_THREADS], ran[MAX_THREADS];
    int threads = allowed < MAX_THREADS ? allowed : MAX_THREADS;
    CU_ASSERT_EQUAL_FATAL(gw_pool_cpus(0, 1, threads, cpus, MAX_THREADS), threads);
    for (int i = 0; i < threads; i++) {
        CU_ASSERT_TRUE(CPU_ISSET((size_t)cpus[i], &before));
        if (i) CU_ASSERT_TRUE(cpus[i] > cpus[i - 1]);
    }
    struct gw_pool *pool = make_pool(threads, cpus, "30");
    for (int i = 0; i < 10; i++) {
        gw_pool_run(pool, note_cpu, ran);
        for (int t = 0; t < threads; t++) CU_ASSERT_EQUAL(ran[t], cpus[t]);
    }
    gw_pool_destroy(pool);
    CU_ASSERT_EQUAL_FATAL(sched_getaffinity(0, sizeof after, &after), 0);
    CU_ASSERT_TRUE(CPU_EQUAL(&before, &after));

    /* CPUs that do not exist are no error: the pool just is not pinned */
    int nowhere[2] = {65535, 65534};
    struct work work = {.pool = make_pool(2, nowhere, "0")};
    gw_pool_run(work.pool, count_run, &work);
    CU_ASSERT_EQUAL(work.runs[0] + work.runs[1], 2);
    gw_pool_destroy(work.pool);
}

static void test_cpu_shares(void)
{
    cpu_set_t set;
    CU_ASSERT_EQUAL_FATAL(sched_getaffinity(0, sizeof set, &set), 0);
    int allowed = CPU_COUNT(&set);
    int *cpus = gw_alloc((size_t)allowed + 1, sizeof *cpus);
    CU_ASSERT_EQUAL(gw_pool_cpus(0, 1, allowed + 1, cpus, allowed + 1), 0);
    CU_ASSERT_EQUAL(gw_pool_cpus(0, allowed + 1, 1, cpus, allowed), 0);
    CU_ASSERT_EQUAL(gw_pool_cpus(0, 1, 1, cpus, 0), 0);
    CU_ASSERT_EQUAL(gw_pool_cpus(1, 1, 1, cpus, 1), 0);
    for (int size = 1; size <= allowed && size <= 64; size++) { /* the slices of all ranks are disjoint */
        cpu_set_t seen;
        CPU_ZERO(&seen);
        int each = allowed / size;
        for (int rank = 0; rank < size; rank++) {
            CU_ASSERT_EQUAL(gw_pool_cpus(rank, size, each, cpus, allowed), each);
            for (int i = 0; i < each; i++) {
                CU_ASSERT_FALSE(CPU_ISSET((size_t)cpus[i], &seen));
                CU_ASSERT_TRUE(CPU_ISSET((size_t)cpus[i], &set));
                CPU_SET((size_t)cpus[i], &seen);
            }
        }
    }
    free(cpus);
}

static void test_split(void)
{
    for (int n = 0; n < 40; n++)
        for (int parts = 1; parts < 12; parts++) {
            int at = 0;
            for (int part = 0; part < parts; part++) {
                int begin, end;
                gw_split(n, parts, part, &begin, &end);
                CU_ASSERT_EQUAL(begin, at);
                CU_ASSERT_TRUE(end - begin == n / parts || end - begin == n / parts + 1);
                at = end;
            }
            CU_ASSERT_EQUAL(at, n);
        }
}

static void test_bad_spin(void)
{
    struct gw_pool *pool;
    setenv("GODWIT_SPIN_US", "12x", 1);
    CU_ASSERT_EQUAL(gw_pool_create(2, NULL, &pool), GW_ERR_USAGE);
    CU_ASSERT_PTR_NULL(pool);
    unsetenv("GODWIT_SPIN_US");
}

static void sync_only(void *arg, int thread, int threads)
{
    (void)thread, (void)threads;
    for (int i = 0; i < 1000; i++) gw_pool_sync(arg);
}

/* Not a check: what a dispatch and a barrier cost here, for the log. */
static void test_cost(void)
{
    int cpus[2];
    bool pinned = gw_pool_cpus(0, 1, 2, cpus, 2) == 2;
    struct gw_pool *pool;
    CU_ASSERT_EQUAL_FATAL(gw_pool_create(2, pinned ? cpus : NULL, &pool), GW_OK);
    struct work work = {.pool = pool};
    double t0 = gw_clock_now_s();
    for (int i = 0; i < 2000; i++) gw_pool_run(pool, count_run, &work);
    double t1 = gw_clock_now_s();
    gw_pool_run(pool, sync_only, pool);
    double t2 = gw_clock_now_s();
    CU_ASSERT_EQUAL(work.runs[1], 2000);
    printf(" (2 threads%s: dispatch %.2f us, barrier %.2f us) ", pinned ? " pinned" : "", (t1 - t0) / 2000 * 1e6,
           (t2 - t1) / 1000 * 1e6);
    gw_pool_destroy(pool);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("pool", NULL, NULL);
    CU_add_test(suite, "dispatch and phases", test_dispatch_and_phases);
    CU_add_test(suite, "sleepers wake", test_sleepers_wake);
    CU_add_test(suite, "pinning", test_pinning);
    CU_add_test(suite, "cpu shares", test_cpu_shares);
    CU_add_test(suite, "split", test_split);
    CU_add_test(suite, "bad spin", test_bad_spin);
    CU_add_test(suite, "cost", test_cost);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
