/* See clock.h. */
#include "base/clock.h"

#include <time.h>

static double read_clock_s(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

double gw_clock_now_s(void)
{
    return read_clock_s(CLOCK_MONOTONIC);
}

double gw_clock_wall_s(void)
{
    return read_clock_s(CLOCK_REALTIME);
}
