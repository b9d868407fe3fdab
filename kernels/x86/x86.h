/* The tables for x86-64. Each is built with its own instruction set: call into one only after dispatch.c's test.
 *
 * avx2.c and avx512.c each include the 16-lane operations of their instruction set (v16_avx2.h, v16_avx512.h) and then
 * float_kernels.h, which holds every kernel that is written in terms of 16 lanes; they add the int8 GEMM tiles.
 */
#ifndef GW_KERNELS_X86_X86_H
#define GW_KERNELS_X86_X86_H

#include "kernels/kernels.h"

extern const struct gw_kernels gw_kernels_avx2;
extern const struct gw_kernels gw_kernels_avx512;

/* Tile functions take a constant row count and must melt into their caller, with their loops over rows laid out flat, so
 * that accumulators live in registers. */
#define GW_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define GW_UNROLL _Pragma("clang loop unroll(full)")
#else
#define GW_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
