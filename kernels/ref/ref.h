/* The reference table: every kernel in plain scalar C that reads like the contract in kernels/kernels.h. */
#ifndef GW_KERNELS_REF_REF_H
#define GW_KERNELS_REF_REF_H

#include "kernels/kernels.h"

extern const struct gw_kernels gw_kernels_ref;

#endif
