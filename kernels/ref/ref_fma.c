/* ref.c once more, compiled for CPUs with FMA: the same C, with fmaf as an instruction. See ref.h. */
#define GW_REF_TABLE gw_kernels_ref_fma
#define GW_REF_NAME "ref-fma"
#include "kernels/ref/ref.c"
