/* The threads of one rank: a fixed team that runs one function at a time.
 *
 * A pool of T threads is the calling thread (thread 0) and T-1 workers. gw_pool_run() hands every thread the same
 * function and returns when all have finished; inside the function gw_pool_sync() is a barrier, so a step of several
 * phases costs one dispatch. What a thread wrote before a dispatch, a sync or the return of gw_pool_run is visible to all
 * threads after it.
 *
 * Waiting spins for some microseconds, then sleeps in the kernel: a waiter that owns its CPU answers in well under a
 * microsecond, one that shares it (six ranks on two cores) leaves it to the others. There is no allocation, lock or
 * system call on the way unless somebody sleeps. The work is split by thread number alone (gw_split), so a result never
 * depends on timing.
 */
#ifndef GW_BASE_POOL_H
#define GW_BASE_POOL_H

#include "base/error.h"

struct gw_pool; /* opaque */

typedef void (*gw_pool_fn)(void *arg, int thread, int threads);

/* Makes a pool of `threads` >= 1. With `cpus`, thread i (the caller is thread 0) is pinned to CPU cpus[i]; a pin that the
 * system refuses is left out. Waiting spins 200 us when the CPUs are given and distinct, else not at all, since the
 * CPUs may be shared; GODWIT_SPIN_US in the environment overrides. The pool belongs to the creating thread: it alone may
 * run and destroy it. GW_ERR_MEMORY when a thread cannot be started, GW_ERR_USAGE for a GODWIT_SPIN_US that is no number. */
GW_CHECK gw_err gw_pool_create(int threads, const int *cpus, struct gw_pool **pool);
/* Ends the workers and gives the calling thread its former CPUs back. NULL is allowed. */
void gw_pool_destroy(struct gw_pool *pool);

int gw_pool_threads(const struct gw_pool *pool);

/* Runs fn(arg, thread, threads) once on each thread; returns when all have returned. Not from within fn. */
void gw_pool_run(struct gw_pool *pool, gw_pool_fn fn, void *arg);
/* Barrier inside fn: returns when all threads of the pool have called it. */
void gw_pool_sync(struct gw_pool *pool);
/* Inside fn, for threads that go on by themselves: `thread` (the caller) says that it has come one step further; returns when `thread` has said so
 * `count` times in this dispatch. What it wrote before is visible then. Await lower threads only, or threads may wait for each other. */
void gw_pool_post(struct gw_pool *pool, int thread);
void gw_pool_await(struct gw_pool *pool, int thread, int count);

/* This process's share of the CPUs it may use (its affinity mask, as it is now: ask before pinning), when `local_size`
 * processes with the same mask run on this node: contiguous slices by `local_rank`, the first `threads` CPUs of the slice.
 * Returns `threads` with cpus[0..threads) filled, or 0 when there are too few CPUs (or threads > max): then do not pin. */
int gw_pool_cpus(int local_rank, int local_size, int threads, int *cpus, int max);

/* Part `part` of `parts` of the range [0, n): [*begin, *end), sizes differing by one at most, earlier parts larger. */
static inline void gw_split(int n, int parts, int part, int *begin, int *end)
{
    int each = n / parts, rest = n % parts;
    *begin = part * each + (part < rest ? part : rest);
    *end = *begin + each + (part < rest);
}

#endif
