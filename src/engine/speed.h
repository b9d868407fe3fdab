/* How fast this machine multiplies, by a short measurement. */
#ifndef GW_ENGINE_SPEED_H
#define GW_ENGINE_SPEED_H

#include "base/error.h"

/* Products of a few rows with 8-bit weights on `threads` threads for about `seconds`, the best of many: others may be using the CPUs. *gops: 1e9
 * multiplications and additions per second. Local. */
GW_CHECK gw_err gw_speed_measure(int threads, double seconds, double *gops);

#endif
