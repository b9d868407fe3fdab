/* Which kernel table runs: by CPUID, or the one that GODWIT_KERNELS names.
 *
 * All tables give the same bits, so the choice shows in speed alone; forcing one serves tests and comparisons.
 */
#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#ifdef GW_X86
#include "kernels/x86/x86.h"

#include <cpuid.h>
#ifdef GW_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <stdlib.h>
#include <string.h>

#ifdef GW_X86
/* Asked of CPUID itself: older clangs do not know the name. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* __builtin_cpu_supports also asks whether the system saves the wide registers. */
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

/* The AVX-512 table uses all of these; a CPU that lacks one (Skylake has no VNNI) takes AVX2. */
static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

#ifdef GW_AMX
/* The system keeps tile registers for a process that has asked for them; asking again does no harm. */
static bool has_amx(void)
{
    enum { TILE = 1 << 24, INT8 = 1 << 25, REQUEST_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILE) && (d & INT8) &&
           syscall(SYS_arch_prctl, REQUEST_XCOMP_PERM, TILE_DATA) == 0;
}
#endif
#endif

static const struct variant {
    const char *name;
    const struct gw_kernels *table; /* NULL: not built in */
    bool (*runs_here)(void);        /* NULL: everywhere */
} variants[] = {
/* best first */
#ifdef GW_AMX
    {"amx", &gw_kernels_amx, has_amx},
#else
    {"amx", NULL, NULL},
#endif
#ifdef GW_X86
    {"avx512", &gw_kernels_avx512, has_avx512},
    {"avx2", &gw_kernels_avx2, has_avx2},
    {"ref-fma", &gw_kernels_ref_fma, has_avx2},
#else
    {"avx512", NULL, NULL},
    {"avx2", NULL, NULL},
    {"ref-fma", NULL, NULL},
#endif
    {"ref", &gw_kernels_ref, NULL},
};

static bool usable(const struct variant *variant)
{
    return variant->table && (!variant->runs_here || variant->runs_here());
}

gw_err gw_kernels_by_name(const char *name, const struct gw_kernels **kernels)
{
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        if (strcmp(variants[i].name, name) != 0) continue;
        if (!usable(&variants[i]))
            return gw_fail(GW_ERR_UNSUPPORTED, "kernels '%s' cannot run on this CPU: leave GODWIT_KERNELS unset", name);
        *kernels = variants[i].table;
        return GW_OK;
    }
    return gw_fail(GW_ERR_USAGE, "there are no kernels '%s': use ref, ref-fma, avx2, avx512 or amx", name);
}

gw_err gw_kernels_get(const struct gw_kernels **kernels)
{
    const char *forced = getenv("GODWIT_KERNELS");
    if (forced && forced[0]) return gw_kernels_by_name(forced, kernels);
    size_t best = 0;
    while (!usable(&variants[best])) best++; /* ends: ref runs everywhere */
    *kernels = variants[best].table;
    return GW_OK;
}
