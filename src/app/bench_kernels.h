/* `godwit bench --kernels`; see bench_kernels.c. Local: prints to stdout. */
#ifndef GW_APP_BENCH_KERNELS_H
#define GW_APP_BENCH_KERNELS_H

#include "base/error.h"

GW_CHECK gw_err gw_bench_kernels(int threads, bool json);

#endif
