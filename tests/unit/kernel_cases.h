/* What the kernel tests share: seeded random numbers, the tables under test, comparison by bits.
 * Included by test_kernels.c and test_gemm.c. GODWIT_TEST_SEED repeats a run.
 */
#ifndef GW_TESTS_UNIT_KERNEL_CASES_H
#define GW_TESTS_UNIT_KERNEL_CASES_H

#include "base/mem.h"
#include "kernels/elementary.h"
#include "kernels/kernels.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 20240917;
static uint64_t random_state;

static const struct gw_kernels *ref;
static const struct gw_kernels *variants[3];
static int variant_count;

static inline uint32_t draw_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static inline int draw(int below)
{
    return (int)((uint64_t)draw_bits() * (uint64_t)below >> 32);
}

static inline int draw_range(int low, int high)
{
    return low + draw(high - low + 1);
}

/* In (-1, 1), most of them small. */
static inline float draw_float(void)
{
    float u = (float)(int32_t)draw_bits() * 0x1p-31f;
    return u * u * u;
}

/* Zeros, denormals, large and ordinary numbers. */
static inline float draw_extreme(void)
{
    static const float factor[] = {0, 1e-41f, 1e-38f, 1e-30f, 1e-20f, 1, 100, 1e4f};
    return draw_float() * factor[draw(8)];
}

/* An array whose end is exact, so that the address sanitizer sees a read past it. */
static inline float *floats(size_t count)
{
    return gw_alloc(count ? count : 1, sizeof(float));
}

static inline float *random_floats(size_t count, bool extreme)
{
    float *x = floats(count);
    for (size_t i = 0; i < count; i++) x[i] = extreme ? draw_extreme() : draw_float();
    return x;
}

static inline float *copy_floats(const float *x, size_t count)
{
    float *y = floats(count);
    memcpy(y, x, count * sizeof(float));
    return y;
}

static inline void same_floats(const char *what, const char *who, const float *want, const float *got, size_t count)
{
    if (memcmp(want, got, count * sizeof(float)) == 0) return;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&want[i], &got[i], sizeof(float)) != 0) {
            fprintf(stderr, "%s, %s: element %zu is %a, expected %a (GODWIT_TEST_SEED=%llu)\n", what, who, i, got[i],
                    want[i], (unsigned long long)seed);
            break;
        }
    }
    CU_FAIL_FATAL("bits differ");
}

/* The variants that run here, best first; says which do not. */
static inline void find_variants(void)
{
    static const char *names[] = {"amx", "avx512", "avx2"};
    if (gw_kernels_by_name("ref", &ref) != GW_OK) exit(1);
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (gw_kernels_by_name(names[i], &variants[variant_count]) == GW_OK) variant_count++;
        else printf("skipped: %s (%s)\n", names[i], gw_error_detail());
    }
}

/* Seed, ref and the variants that run here; prints both. */
static inline void kernel_tests_begin(void)
{
    const char *given = getenv("GODWIT_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : seed;
    random_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    find_variants();
}

#endif
