/* The tables for x86-64. Each is built with its own instruction set: call into one only after dispatch.c's test. */
#ifndef GW_KERNELS_X86_X86_H
#define GW_KERNELS_X86_X86_H

#include "kernels/kernels.h"

extern const struct gw_kernels gw_kernels_avx2;
extern const struct gw_kernels gw_kernels_avx512;

#endif
