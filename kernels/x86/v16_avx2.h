/* 16 float lanes in two AVX registers. The same operations, with the same results, as v16_avx512.h. */
#ifndef GW_KERNELS_X86_V16_AVX2_H
#define GW_KERNELS_X86_V16_AVX2_H

#include "kernels/x86/x86.h"

#include <immintrin.h>
#include <string.h>

#define V16_TILE 4 /* rows or queries that a register tile holds */
#define V16_SUMS 4 /* sums that registers hold beside what they are made of */

typedef struct {
    __m256 low, high;
} v16;

GW_INLINE v16 v16_of(__m256 low, __m256 high)
{
    return (v16){low, high};
}

GW_INLINE v16 v16_set1(float x)
{
    return v16_of(_mm256_set1_ps(x), _mm256_set1_ps(x));
}

GW_INLINE v16 v16_load(const float *p)
{
    return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}

GW_INLINE void v16_store(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}

/* Past the caches; p on a boundary of 64 bytes. */
GW_INLINE void v16_stream(float *p, v16 a)
{
    _mm256_stream_ps(p, a.low);
    _mm256_stream_ps(p + 8, a.high);
}

/* The first `count` (0..16) lanes; the others are 0. */
GW_INLINE v16 v16_load_part(const float *p, int count)
{
    float lanes[16] = {0};
    memcpy(lanes, p, (size_t)count * sizeof(float));
    return v16_load(lanes);
}

GW_INLINE void v16_store_part(float *p, v16 a, int count)
{
    float lanes[16];
    v16_store(lanes, a);
    memcpy(p, lanes, (size_t)count * sizeof(float));
}

GW_INLINE v16 v16_load_half(const uint16_t *p)
{
    return v16_of(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                  _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}

GW_INLINE v16 v16_load_half_part(const uint16_t *p, int count)
{
    uint16_t lanes[16] = {0};
    memcpy(lanes, p, (size_t)count * sizeof(uint16_t));
    return v16_load_half(lanes);
}

GW_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)));
    return v16_of(_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16)));
}

GW_INLINE void v16_store_half(uint16_t *p, v16 a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

GW_INLINE void v16_store_half_part(uint16_t *p, v16 a, int count)
{
    uint16_t lanes[16];
    v16_store_half(lanes, a);
    memcpy(p, lanes, (size_t)count * sizeof(uint16_t));
}

GW_INLINE v16 v16_add(v16 a, v16 b)
{
    return v16_of(_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high));
}

GW_INLINE v16 v16_sub(v16 a, v16 b)
{
    return v16_of(_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high));
}

GW_INLINE v16 v16_mul(v16 a, v16 b)
{
    return v16_of(_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high));
}

GW_INLINE v16 v16_div(v16 a, v16 b)
{
    return v16_of(_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high));
}

/* a * b + c, rounded once. */
GW_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return v16_of(_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high));
}

/* *x * b + c, rounded once. */
GW_INLINE v16 v16_fma_spread(const float *x, v16 b, v16 c)
{
    return v16_fma(v16_set1(*x), b, c);
}

/* The result is b where either is NaN. */
GW_INLINE v16 v16_min(v16 a, v16 b)
{
    return v16_of(_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high));
}

GW_INLINE v16 v16_max(v16 a, v16 b)
{
    return v16_of(_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high));
}

/* a < limit ? yes : no, lane by lane; `no` where a is NaN. */
GW_INLINE v16 v16_select_below(v16 a, float limit, v16 yes, v16 no)
{
    __m256 bound = _mm256_set1_ps(limit);
    return v16_of(_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, bound, _CMP_LT_OQ)),
                  _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, bound, _CMP_LT_OQ)));
}

/* Lanes from `count` on become `fill`. */
GW_INLINE v16 v16_keep_first(v16 a, int count, float fill)
{
    v16 index = v16_of(_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15));
    return v16_select_below(index, (float)count, a, v16_set1(fill));
}

/* a with x in lane `lane`, one of the first 8 and constant. */
GW_INLINE v16 v16_replace(v16 a, int lane, float x)
{
    __m256i here = _mm256_cmpeq_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(lane));
    return v16_of(_mm256_blendv_ps(a.low, _mm256_set1_ps(x), _mm256_castsi256_ps(here)), a.high);
}

/* Lane `lane`, one of the first 8 and constant, in all lanes. */
GW_INLINE v16 v16_spread(v16 a, int lane)
{
    __m256 all = _mm256_permutevar8x32_ps(a.low, _mm256_set1_epi32(lane));
    return v16_of(all, all);
}

/* Bit i: lane i equals x (NaN never does). */
GW_INLINE unsigned v16_equal(v16 a, float x)
{
    __m256 same = _mm256_set1_ps(x);
    unsigned low = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a.low, same, _CMP_EQ_OQ));
    unsigned high = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a.high, same, _CMP_EQ_OQ));
    return low | high << 8;
}

/* 2^n as a float, n being the low mantissa bits of `shifted` (elementary.h). */
GW_INLINE v16 v16_power(v16 shifted)
{
    __m256i one = _mm256_set1_epi32(0x3f800000);
    __m256i low = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted.low), 23), one);
    __m256i high = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted.high), 23), one);
    return v16_of(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high));
}

/* a0 a0 a2 a2 .. and a1 a1 a3 a3 .. */
GW_INLINE v16 v16_even(v16 a)
{
    return v16_of(_mm256_moveldup_ps(a.low), _mm256_moveldup_ps(a.high));
}

GW_INLINE v16 v16_odd(v16 a)
{
    return v16_of(_mm256_movehdup_ps(a.low), _mm256_movehdup_ps(a.high));
}

GW_INLINE __m256 v16_low(v16 a)
{
    return a.low;
}

GW_INLINE __m256 v16_high(v16 a)
{
    return a.high;
}

/* a0 b0 a1 b1 .. */
GW_INLINE v16 v16_interleave(__m256 a, __m256 b)
{
    __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    return v16_of(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

/* max |x| of 32 elements, four to a lane, by bit pattern: a NaN is larger than any number. */
GW_INLINE __m256i v16_amax8(v16 a, v16 b)
{
    __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i x = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a.low), magnitude),
                                 _mm256_and_si256(_mm256_castps_si256(a.high), magnitude));
    __m256i y = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(b.low), magnitude),
                                 _mm256_and_si256(_mm256_castps_si256(b.high), magnitude));
    return _mm256_max_epi32(x, y);
}

/* 32 elements as integers (to the nearest, even ones among equals), which fit into int8. */
GW_INLINE __m256i v16_to_i8(v16 a, v16 b)
{
    __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high));
    __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(b.low), _mm256_cvtps_epi32(b.high));
    /* packing goes by halves of 128 bits: fours of elements are put back into order */
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

#endif
