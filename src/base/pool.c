/* See pool.h.
 *
 * All waiting is on a `gate`: a counter that only moves forward. Three of them carry the protocol: `start` (a dispatch),
 * `finish` (the last worker is done) and `sync` (the barrier inside fn); and each thread has one for how far it is in a dispatch. A waiter that gives up spinning announces itself
 * in gate.sleepers before it enters the kernel, and the one who advances the gate reads sleepers after advancing: in the
 * total order of these (sequentially consistent) operations one of the two must see the other, so no wake-up is lost and
 * none is sent when nobody sleeps.
 */
#include "base/pool.h"

#include "base/mem.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 64 /* of a cache line: what different threads write lies on different lines */
#define SPIN_DEFAULT_US 200
#define SPIN_MAX_US 1000000
#define MAX_CPUS (1 << 16)

struct gate {
    _Alignas(LINE_BYTES) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};

struct worker {
    struct gw_pool *pool;
    pthread_t handle;
    int thread;
    int cpu; /* to pin to, or -1 */
};

struct gw_pool {
    struct gate start, finish, sync;
    _Alignas(LINE_BYTES) atomic_int running; /* workers that have not finished the present dispatch */
    _Alignas(LINE_BYTES) atomic_int arrived; /* threads waiting at the barrier */

    /* written by the owner between dispatches only, published by `start` */
    _Alignas(LINE_BYTES) gw_pool_fn fn; /* NULL tells the workers to end */
    void *arg;

    struct gate *posted; /* [threads]: since the dispatch began */

    int threads;
    int64_t spin_ns;
    int workers_started;
    struct worker *workers; /* [threads - 1]; worker i is thread i + 1 */
    cpu_set_t *owner_cpus;  /* the owner's mask before pinning, or NULL */
    size_t owner_cpus_bytes;
};

/* ---- gates ------------------------------------------------------------------------------------------------------ */

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Returns when the gate has moved on from `seen`. */
static void gate_wait(struct gate *gate, uint32_t seen, int64_t spin_ns)
{
    if (spin_ns > 0) {
        int64_t end_ns = 0;
        for (int i = 1;; i++) {
            if (atomic_load_explicit(&gate->value, memory_order_acquire) != seen) return;
            cpu_relax();
            if (i % 64) continue; /* the clock costs as much as several looks at the gate */
            int64_t t = now_ns();
            if (!end_ns) end_ns = t + spin_ns;
            if (t >= end_ns) break;
        }
    }
    if (atomic_load(&gate->value) != seen) return;
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->value) == seen) syscall(SYS_futex, &gate->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&gate->sleepers, 1);
}

static void gate_advance(struct gate *gate)
{
    atomic_fetch_add(&gate->value, 1);
    if (atomic_load(&gate->sleepers)) syscall(SYS_futex, &gate->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* ---- CPUs ------------------------------------------------------------------------------------------------------- */

/* The calling thread's affinity mask of *bytes bytes (release with CPU_FREE), or NULL. */
static cpu_set_t *affinity_get(size_t *bytes)
{
    for (int count = CPU_SETSIZE; count <= MAX_CPUS; count *= 2) { /* the kernel refuses a mask smaller than its own */
        cpu_set_t *set = CPU_ALLOC((size_t)count);
        if (!set) return NULL;
        *bytes = CPU_ALLOC_SIZE((size_t)count);
        if (!sched_getaffinity(0, *bytes, set)) return set;
        CPU_FREE(set);
        if (errno != EINVAL) return NULL;
    }
    return NULL;
}

/* Pins the calling thread. A refusal (a CPU taken from our cgroup meanwhile) costs speed, never the result. */
static void pin_to(int cpu)
{
    if (cpu < 0 || cpu >= MAX_CPUS) return;
    size_t bytes = CPU_ALLOC_SIZE(MAX_CPUS);
    cpu_set_t *set = CPU_ALLOC(MAX_CPUS);
    if (!set) return;
    CPU_ZERO_S(bytes, set);
    CPU_SET_S((size_t)cpu, bytes, set);
    sched_setaffinity(0, bytes, set);
    CPU_FREE(set);
}

int gw_pool_cpus(int local_rank, int local_size, int threads, int *cpus, int max)
{
    if (threads < 1 || threads > max || local_size < 1 || local_rank < 0 || local_rank >= local_size) return 0;
    size_t bytes;
    cpu_set_t *set = affinity_get(&bytes);
    if (!set) return 0;
    int begin, end;
    gw_split(CPU_COUNT_S(bytes, set), local_size, local_rank, &begin, &end);
    int smallest = CPU_COUNT_S(bytes, set) / local_size;
    int nth = 0, taken = 0;
    /* all processes of the node pin or none: one that floats would run on the CPUs of those that are pinned */
    for (size_t cpu = 0; smallest >= threads && cpu < bytes * CHAR_BIT && taken < threads; cpu++) {
        if (!CPU_ISSET_S(cpu, bytes, set)) continue;
        if (nth++ >= begin) cpus[taken++] = (int)cpu;
    }
    CPU_FREE(set);
    return taken == threads ? taken : 0;
}

/* ---- the pool --------------------------------------------------------------------------------------------------- */

static void *worker_main(void *arg)
{
    struct worker *self = arg;
    struct gw_pool *pool = self->pool;
    pin_to(self->cpu);
    /* 0 and not the present value: a dispatch may have happened before this thread came up */
    for (uint32_t seen = 0;; seen++) {
        gate_wait(&pool->start, seen, pool->spin_ns);
        if (!pool->fn) return NULL;
        pool->fn(pool->arg, self->thread, pool->threads);
        if (atomic_fetch_sub(&pool->running, 1) == 1) gate_advance(&pool->finish);
    }
}

/* How long a waiter spins; see gw_pool_create. */
static gw_err choose_spin(int threads, const int *cpus, int64_t *spin_ns)
{
    const char *text = getenv("GODWIT_SPIN_US");
    if (text && *text) {
        char *end;
        errno = 0;
        long us = strtol(text, &end, 10);
        if (*end || errno || us < 0 || us > SPIN_MAX_US)
            return gw_fail(GW_ERR_USAGE, "GODWIT_SPIN_US=%s: give microseconds, 0 to %d", text, SPIN_MAX_US);
        *spin_ns = us * 1000;
        return GW_OK;
    }
    *spin_ns = cpus ? SPIN_DEFAULT_US * 1000 : 0;
    for (int i = 0; cpus && i < threads; i++)
        for (int j = 0; j < i; j++)
            if (cpus[i] == cpus[j]) *spin_ns = 0;
    return GW_OK;
}

gw_err gw_pool_create(int threads, const int *cpus, struct gw_pool **out_pool)
{
    gw_err rc = GW_OK;
    *out_pool = NULL;
    GW_ASSERT(threads >= 1);
    struct gw_pool *pool = aligned_alloc(LINE_BYTES, sizeof *pool); /* sizeof is a multiple of its alignment */
    if (!pool) return gw_fail(GW_ERR_MEMORY, "no memory for a pool of %d threads", threads);
    memset(pool, 0, sizeof *pool);
    pool->threads = threads;
    pool->workers = gw_alloc((size_t)threads, sizeof *pool->workers);
    pool->posted = gw_alloc_lines((size_t)threads, sizeof *pool->posted);
    memset(pool->posted, 0, (size_t)threads * sizeof *pool->posted);
    TRY(choose_spin(threads, cpus, &pool->spin_ns));
    for (int i = 0; i < threads - 1; i++) {
        pool->workers[i] = (struct worker){.pool = pool, .thread = i + 1, .cpu = cpus ? cpus[i + 1] : -1};
        int error = pthread_create(&pool->workers[i].handle, NULL, worker_main, &pool->workers[i]);
        if (error)
            FAIL(GW_ERR_MEMORY, "cannot start thread %d of %d: %s; use fewer threads", i + 2, threads, strerror(error));
        pool->workers_started++;
    }
    if (cpus) {
        pool->owner_cpus = affinity_get(&pool->owner_cpus_bytes);
        pin_to(cpus[0]);
    }
    *out_pool = pool;
    pool = NULL;
out:
    gw_pool_destroy(pool);
    return rc;
}

void gw_pool_destroy(struct gw_pool *pool)
{
    if (!pool) return;
    pool->fn = NULL;
    gate_advance(&pool->start);
    for (int i = 0; i < pool->workers_started; i++) pthread_join(pool->workers[i].handle, NULL);
    if (pool->owner_cpus) {
        sched_setaffinity(0, pool->owner_cpus_bytes, pool->owner_cpus);
        CPU_FREE(pool->owner_cpus);
    }
    free(pool->workers);
    free(pool->posted);
    free(pool);
}

int gw_pool_threads(const struct gw_pool *pool)
{
    return pool->threads;
}

void gw_pool_run(struct gw_pool *pool, gw_pool_fn fn, void *arg)
{
    if (pool->threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    uint32_t finish = atomic_load_explicit(&pool->finish.value, memory_order_relaxed);
    pool->fn = fn;
    pool->arg = arg;
    for (int i = 0; i < pool->threads; i++) atomic_store_explicit(&pool->posted[i].value, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->running, pool->threads - 1, memory_order_relaxed);
    gate_advance(&pool->start);
    fn(arg, 0, pool->threads);
    gate_wait(&pool->finish, finish, pool->spin_ns);
}

void gw_pool_sync(struct gw_pool *pool)
{
    if (pool->threads == 1) return;
    /* read before arriving: the barrier cannot open before this thread has arrived */
    uint32_t seen = atomic_load_explicit(&pool->sync.value, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed); /* published by the gate */
        gate_advance(&pool->sync);
    } else {
        gate_wait(&pool->sync, seen, pool->spin_ns);
    }
}

void gw_pool_post(struct gw_pool *pool, int thread)
{
    gate_advance(&pool->posted[thread]);
}

void gw_pool_await(struct gw_pool *pool, int thread, int count)
{
    struct gate *gate = &pool->posted[thread];
    for (uint32_t seen; (seen = atomic_load_explicit(&gate->value, memory_order_acquire)) < (uint32_t)count;)
        gate_wait(gate, seen, pool->spin_ns);
}
