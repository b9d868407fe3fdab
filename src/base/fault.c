/* See fault.h. */
#include "base/fault.h"

#include <errno.h>

atomic_bool gw_fault_armed;

static atomic_uint_fast64_t first_failing, last_failing, writes;

void gw_fault_set_writes(uint64_t first, uint64_t last)
{
    atomic_store(&gw_fault_armed, false);
    atomic_store(&writes, 0);
    atomic_store(&first_failing, first);
    atomic_store(&last_failing, last);
    atomic_store(&gw_fault_armed, first > 0);
}

int gw_fault_count_write(void)
{
    uint64_t number = atomic_fetch_add(&writes, 1) + 1;
    return number >= atomic_load(&first_failing) && number <= atomic_load(&last_failing) ? ENOSPC : 0;
}
