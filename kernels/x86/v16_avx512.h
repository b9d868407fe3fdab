/* 16 float lanes in one AVX-512 register. The same operations, with the same results, as v16_avx2.h. */
#ifndef GW_KERNELS_X86_V16_AVX512_H
#define GW_KERNELS_X86_V16_AVX512_H

#include "kernels/x86/x86.h"

#include <immintrin.h>

#define V16_TILE 8  /* rows or queries that a register tile holds */
#define V16_SUMS 24 /* sums that registers hold beside what they are made of */

typedef __m512 v16;

GW_INLINE v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

GW_INLINE v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

GW_INLINE void v16_store(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}

/* Past the caches; p on a boundary of 64 bytes. */
GW_INLINE void v16_stream(float *p, v16 a)
{
    _mm512_stream_ps(p, a);
}

GW_INLINE __mmask16 v16_first(int count)
{
    return (__mmask16)((1u << count) - 1);
}

/* The first `count` (0..16) lanes; the others are 0. */
GW_INLINE v16 v16_load_part(const float *p, int count)
{
    return _mm512_maskz_loadu_ps(v16_first(count), p);
}

GW_INLINE void v16_store_part(float *p, v16 a, int count)
{
    _mm512_mask_storeu_ps(p, v16_first(count), a);
}

GW_INLINE v16 v16_load_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

GW_INLINE v16 v16_load_half_part(const uint16_t *p, int count)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v16_first(count), p));
}

GW_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

GW_INLINE void v16_store_half(uint16_t *p, v16 a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

GW_INLINE void v16_store_half_part(uint16_t *p, v16 a, int count)
{
    __m256i half = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(p, v16_first(count), half);
}

GW_INLINE v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

GW_INLINE v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

GW_INLINE v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

GW_INLINE v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

/* a * b + c, rounded once. */
GW_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* *x * b + c, rounded once. Broadcast by the multiplication itself: a broadcast into a register costs a turn of the unit that converts halves,
 * and compilers make one of what is used twice. */
GW_INLINE v16 v16_fma_spread(const float *x, v16 b, v16 c)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*x));
    return c;
}

/* The result is b where either is NaN. */
GW_INLINE v16 v16_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}

GW_INLINE v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

/* a < limit ? yes : no, lane by lane; `no` where a is NaN. */
GW_INLINE v16 v16_select_below(v16 a, float limit, v16 yes, v16 no)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_LT_OQ), no, yes);
}

/* Lanes from `count` on become `fill`. */
GW_INLINE v16 v16_keep_first(v16 a, int count, float fill)
{
    return _mm512_mask_blend_ps(v16_first(count), _mm512_set1_ps(fill), a);
}

/* a with x in lane `lane`, which is constant. */
GW_INLINE v16 v16_replace(v16 a, int lane, float x)
{
    return _mm512_mask_blend_ps((__mmask16)(1u << lane), a, _mm512_set1_ps(x));
}

/* Lane `lane`, which is constant, in all lanes. */
GW_INLINE v16 v16_spread(v16 a, int lane)
{
    return _mm512_permutexvar_ps(_mm512_set1_epi32(lane), a);
}

/* Bit i: lane i equals x (NaN never does). */
GW_INLINE unsigned v16_equal(v16 a, float x)
{
    return _mm512_cmp_ps_mask(a, _mm512_set1_ps(x), _CMP_EQ_OQ);
}

/* 2^n as a float, n being the low mantissa bits of `shifted` (elementary.h). */
GW_INLINE v16 v16_power(v16 shifted)
{
    __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)));
}

/* a0 a0 a2 a2 .. and a1 a1 a3 a3 .. */
GW_INLINE v16 v16_even(v16 a)
{
    return _mm512_moveldup_ps(a);
}

GW_INLINE v16 v16_odd(v16 a)
{
    return _mm512_movehdup_ps(a);
}

GW_INLINE __m256 v16_low(v16 a)
{
    return _mm512_castps512_ps256(a);
}

GW_INLINE __m256 v16_high(v16 a)
{
    return _mm512_extractf32x8_ps(a, 1);
}

/* a0 b0 a1 b1 .. */
GW_INLINE v16 v16_interleave(__m256 a, __m256 b)
{
    __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(_mm512_castps256_ps512(a), order, _mm512_castps256_ps512(b));
}

/* max |x| of 32 elements, four to a lane, by bit pattern: a NaN is larger than any number. */
GW_INLINE __m256i v16_amax8(v16 a, v16 b)
{
    __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i x = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                 _mm512_and_si512(_mm512_castps_si512(b), magnitude));
    return _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}

/* 32 elements as integers (to the nearest, even ones among equals), which fit into int8. */
GW_INLINE __m256i v16_to_i8(v16 a, v16 b)
{
    __m128i low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)), high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(b));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

#endif
