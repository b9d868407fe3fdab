/* Philox4x32-10, a counter-based generator: a pure function of (key, counter), so there is no state to lose.
 * Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11. Local. */
#ifndef GW_BASE_PHILOX_H
#define GW_BASE_PHILOX_H

#include <stdint.h>

void gw_philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* Uniform in [0, 1) with 53 bits, keyed by (seed, stream) and indexed by `index`. */
double gw_philox_uniform(uint64_t seed, uint64_t stream, uint64_t index);

#endif
