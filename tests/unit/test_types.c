/* Element types: half precision over all its values, and each quantized type against blocks encoded here, element by element,
 * from the format's definition. */
#include "kernels/types.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED 20240917u

static uint32_t state = SEED;

static unsigned draw(unsigned below)
{
    state = state * 1664525u + 1013904223u;
    return (unsigned)((uint64_t)(state >> 8) * below >> 24);
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void test_half_round_trip(void)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = gw_f16_to_f32((uint16_t)h);
        bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        CU_ASSERT_EQUAL_FATAL(isnan(f) != 0, nan);
        uint16_t back = gw_f32_to_f16(f);
        if (nan) CU_ASSERT_EQUAL_FATAL(back, h | 0x200)
        else CU_ASSERT_EQUAL_FATAL(back, h);
        if (h < 0x7c00) /* the value itself, by ldexp */
            CU_ASSERT_EQUAL_FATAL((double)f,
                                  h < 0x400 ? ldexp(h, -24) : ldexp(1024 + (h & 0x3ff), (int)(h >> 10) - 25));
    }
}

/* Between each two neighbouring halves: below, at and above the middle. */
static void test_half_rounding(void)
{
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float low = gw_f16_to_f32((uint16_t)h), high = gw_f16_to_f32((uint16_t)(h + 1));
        float middle = (float)(((double)low + (double)high) / 2); /* exact: one more bit */
        uint16_t even = (uint16_t)(h + (h & 1));
        CU_ASSERT_EQUAL_FATAL(gw_f32_to_f16(middle), even);
        CU_ASSERT_EQUAL_FATAL(gw_f32_to_f16(-middle), even | 0x8000);
        CU_ASSERT_EQUAL_FATAL(gw_f32_to_f16(nextafterf(middle, 0)), h);
        CU_ASSERT_EQUAL_FATAL(gw_f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
    }
    CU_ASSERT_EQUAL(gw_f32_to_f16(65519.996f), 0x7bff);
    CU_ASSERT_EQUAL(gw_f32_to_f16(65520.0f), 0x7c00);
    CU_ASSERT_EQUAL(gw_f32_to_f16(3e38f), 0x7c00);
    CU_ASSERT_EQUAL(gw_f32_to_f16(-INFINITY), 0xfc00);
    CU_ASSERT_EQUAL(gw_f32_to_f16(1e-40f), 0);
    CU_ASSERT_EQUAL(bits_of(gw_f16_to_f32(0x8000)), 0x80000000u);
}

static void test_bfloat(void)
{
    CU_ASSERT_EQUAL(gw_bf16_to_f32(0x3f80), 1.0f);
    CU_ASSERT_EQUAL(gw_bf16_to_f32(0xc049), -3.140625f);
    CU_ASSERT_EQUAL(bits_of(gw_bf16_to_f32(0x0001)), 0x10000u);
}

static void test_table(void)
{
    static const struct {
        uint32_t id;
        const char *name;
        int elements, bytes;
    } want[] = {{0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18}, {3, "Q4_1", 32, 20},
                {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34}, {12, "Q4_K", 256, 144},
                {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210}, {30, "BF16", 1, 2}};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        const struct gw_type_info *info = gw_type_info(want[i].id);
        CU_ASSERT_PTR_NOT_NULL_FATAL(info);
        CU_ASSERT_STRING_EQUAL(info->name, want[i].name);
        CU_ASSERT_EQUAL(info->block_elements, want[i].elements);
        CU_ASSERT_EQUAL(info->block_bytes, want[i].bytes);
    }
    CU_ASSERT_PTR_NULL(gw_type_info(4));
    CU_ASSERT_PTR_NULL(gw_type_info(9));
    CU_ASSERT_PTR_NULL(gw_type_info(0xffffffffu));
}

static void put_half(uint8_t *p, float f)
{
    uint16_t h = gw_f32_to_f16(f);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

static void expect(uint32_t type, const uint8_t *bytes, const float *want, size_t count)
{
    const struct gw_type_info *info = gw_type_info(type);
    float got[512];
    uint8_t moved[512];
    memcpy(moved + 1, bytes, (size_t)info->block_bytes * count / (size_t)info->block_elements);
    info->to_f32(moved + 1, got, count); /* from an odd address */
    for (size_t i = 0; i < count; i++)
        if (got[i] != want[i]) {
            fprintf(stderr, "%s element %zu: %g, expected %g (seed %u)\n", info->name, i, got[i], want[i], SEED);
            CU_FAIL_FATAL("dequantization differs");
        }
}

static void test_float_rows(void)
{
    float values[3] = {1.5f, -0.0f, 3e38f};
    expect(0, (const uint8_t *)values, values, 3);
    uint8_t half[4] = {0x00, 0x3c, 0x01, 0x80}; /* 1, -2^-24 */
    float from_half[2] = {1.0f, -0x1p-24f};
    expect(1, half, from_half, 2);
    uint8_t brain[4] = {0x80, 0x3f, 0x49, 0xc0};
    float from_brain[2] = {1.0f, -3.140625f};
    expect(30, brain, from_brain, 2);
}

/* Two blocks each of the 32-wide types: element i is d * (q - bias) + m. */
static void blocks32(uint32_t type, int bits, int bias, bool has_min)
{
    uint8_t bytes[128] = {0};
    float want[64];
    size_t size = (size_t)gw_type_info(type)->block_bytes;
    for (int block = 0; block < 2; block++) {
        uint8_t *p = bytes + (size_t)block * size;
        float d = block ? -0.0625f : 0.3125f, m = has_min ? -1.75f + (float)block : 0;
        put_half(p, d);
        p += 2;
        if (has_min) {
            put_half(p, m);
            p += 2;
        }
        uint8_t *high = p; /* the fifth bits */
        p += bits == 5 ? 4 : 0;
        for (int i = 0; i < 32; i++) {
            int q = (int)draw(1u << bits);
            want[32 * block + i] = d * (float)(q - bias) + m;
            if (bits == 8) {
                p[i] = (uint8_t)(q - bias);
                continue;
            }
            p[i % 16] |= (uint8_t)((q & 15) << (i / 16 * 4));
            if (bits == 5) high[i / 8] |= (uint8_t)((q >> 4) << (i % 8));
        }
    }
    expect(type, bytes, want, 64);
}

static void test_blocks32(void)
{
    for (int repeat = 0; repeat < 50; repeat++) {
        blocks32(2, 4, 8, false);
        blocks32(3, 4, 0, true);
        blocks32(6, 5, 16, false);
        blocks32(7, 5, 0, true);
        blocks32(8, 8, 128, false);
    }
}

/* A Q4_K or Q5_K super-block: d, dmin, eight 6-bit scales and mins, codes. */
static void k_block(uint32_t type, int bits)
{
    uint8_t p[176] = {0};
    float want[256];
    const float d = 0.015625f, dmin = 0.0078125f;
    put_half(p, d);
    put_half(p + 2, dmin);
    uint8_t *scales = p + 4, *high = p + 16, *low = p + (bits == 5 ? 48 : 16);
    for (int sub = 0; sub < 8; sub++) {
        unsigned scale = draw(64), min = draw(64);
        if (sub < 4) {
            scales[sub] |= (uint8_t)scale;
            scales[sub + 4] |= (uint8_t)min;
        } else {
            scales[sub + 4] |= (uint8_t)((scale & 15) | (min & 15) << 4);
            scales[sub - 4] |= (uint8_t)((scale >> 4) << 6);
            scales[sub] |= (uint8_t)((min >> 4) << 6);
        }
        for (int i = 0; i < 32; i++) {
            unsigned q = draw(1u << bits);
            low[sub / 2 * 32 + i] |= (uint8_t)((q & 15) << (sub % 2 * 4));
            if (bits == 5) high[i] |= (uint8_t)((q >> 4) << sub);
            want[32 * sub + i] = d * (float)scale * (float)q - dmin * (float)min;
        }
    }
    expect(type, p, want, 256);
}

/* A Q6_K super-block: element e is d * scale[e / 16] * (q - 32). */
static void q6_block(void)
{
    uint8_t p[210] = {0};
    float want[256];
    const float d = -0.00390625f;
    put_half(p + 208, d);
    for (int i = 0; i < 16; i++) p[192 + i] = (uint8_t)draw(256);
    for (int e = 0; e < 256; e++) {
        unsigned q = draw(64);
        int part = e / 128, quarter = e % 128 / 32, l = e % 32;
        p[64 * part + quarter % 2 * 32 + l] |= (uint8_t)((q & 15) << (quarter / 2 * 4));
        p[128 + 32 * part + l] |= (uint8_t)((q >> 4) << (2 * quarter));
        want[e] = d * (float)(int8_t)p[192 + e / 16] * (float)((int)q - 32);
    }
    expect(14, p, want, 256);
}

static void test_k_blocks(void)
{
    for (int repeat = 0; repeat < 50; repeat++) {
        k_block(12, 4);
        k_block(13, 5);
        q6_block();
    }
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("types", NULL, NULL);
    CU_add_test(suite, "half round trip", test_half_round_trip);
    CU_add_test(suite, "half rounding", test_half_rounding);
    CU_add_test(suite, "bfloat16", test_bfloat);
    CU_add_test(suite, "table", test_table);
    CU_add_test(suite, "float rows", test_float_rows);
    CU_add_test(suite, "blocks of 32", test_blocks32);
    CU_add_test(suite, "K-quants", test_k_blocks);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
