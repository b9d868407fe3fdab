/* The tables for x86-64. Each is built with its own instruction set: call into one only after dispatch.c's test.
 *
 * avx2.c and avx512.c each include the 16-lane operations of their instruction set (v16_avx2.h, v16_avx512.h) and then
 * float_kernels.h, which holds every kernel that is written in terms of 16 lanes; they add the int8 GEMM tiles. amx.c has other such tiles, and
 * its table is AVX-512's but for them.
 */
#ifndef GW_KERNELS_X86_X86_H
#define GW_KERNELS_X86_X86_H

#include "kernels/kernels.h"

extern const struct gw_kernels gw_kernels_avx2;
extern const struct gw_kernels gw_kernels_avx512;
extern const struct gw_kernels gw_kernels_amx;

/* Of the last table. */
void gw_amx_gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end);
void gw_amx_gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end);
void gw_amx_gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end);
size_t gw_amx_scratch_bytes(const struct gw_packed *w);

/* Tile functions take a constant row count and must melt into their caller, with their loops over rows laid out flat, so
 * that accumulators live in registers. */
#define GW_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define GW_UNROLL _Pragma("clang loop unroll(full)")
#else
#define GW_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
