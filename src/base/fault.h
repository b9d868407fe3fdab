/* Failing writes on demand, for tests and for `--chaos fail-write`: the disk that is full just now.
 *
 * The process counts its writes (calls of gw_write_all, and of whoever else asks gw_fault_write before it writes); those whose number
 * lies in the range that was set fail. Without a range nothing is counted, and asking costs one load. Local; thread safe.
 */
#ifndef GW_BASE_FAULT_H
#define GW_BASE_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Writes number `first` to `last` from now on (the next one is 1) fail; last = UINT64_MAX: all from there. first = 0: none. */
void gw_fault_set_writes(uint64_t first, uint64_t last);

extern atomic_bool gw_fault_armed;
int gw_fault_count_write(void);

/* To be asked once before each write: 0, or the errno that the write has to fail with (ENOSPC). A file that is really full takes the
 * beginning of the data, so a caller should do likewise. */
static inline int gw_fault_write(void)
{
    return atomic_load_explicit(&gw_fault_armed, memory_order_relaxed) ? gw_fault_count_write() : 0;
}

#endif
