/* The reference table: every kernel in plain scalar C that reads like the contract in kernels/kernels.h. */
#ifndef GW_KERNELS_REF_REF_H
#define GW_KERNELS_REF_REF_H

#include "kernels/kernels.h"

extern const struct gw_kernels gw_kernels_ref;
/* The same source compiled with FMA (ref_fma.c): for long comparisons, where a library call per fmaf would take hours. */
extern const struct gw_kernels gw_kernels_ref_fma;

#endif
