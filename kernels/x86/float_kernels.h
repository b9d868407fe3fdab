/* Every kernel that is written in terms of 16 lanes, once for both instruction sets: included by avx2.c and avx512.c after
 * their v16 header, nowhere else. The steps and their order are those of kernels/ref/ref.c; what differs is that 16
 * lanes, and tiles of rows or queries, go side by side. Here is also the GEMM of float weights.
 */
#define GEMM_TILE V16_TILE
#define GEMM_ACT_BYTES (256 << 10)

#include "kernels/elementary.h"
#include "kernels/x86/gemm_walk.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* s[j] + s[j+8], then +4, +2, +1. */
GW_INLINE float v16_fold(v16 a)
{
    __m256 eight = _mm256_add_ps(v16_low(a), v16_high(a));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

GW_INLINE float v16_max_all(v16 a)
{
    __m256 eight = _mm256_max_ps(v16_low(a), v16_high(a));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* gw_expf in each lane. */
GW_INLINE v16 v16_exp(v16 x)
{
    v16 clamped = v16_min(v16_set1(GW_EXP_HIGH), x);
    v16 shifted = v16_fma(clamped, v16_set1(GW_EXP_LOG2E), v16_set1(GW_EXP_ROUND));
    v16 n = v16_sub(shifted, v16_set1(GW_EXP_ROUND));
    v16 r = v16_fma(n, v16_set1(-GW_EXP_LN2_HI), clamped);
    r = v16_fma(n, v16_set1(-GW_EXP_LN2_LO), r);
    v16 p = v16_set1(GW_EXP_C6);
    p = v16_fma(p, r, v16_set1(GW_EXP_C5));
    p = v16_fma(p, r, v16_set1(GW_EXP_C4));
    p = v16_fma(p, r, v16_set1(GW_EXP_C3));
    p = v16_fma(p, r, v16_set1(GW_EXP_C2));
    p = v16_fma(p, r, v16_set1(1));
    p = v16_fma(p, r, v16_set1(1));
    return v16_select_below(x, GW_EXP_LOW, v16_set1(0), v16_mul(p, v16_power(shifted)));
}

/* ---- quantization ---------------------------------------------------------------------------------------------- */

/* Of 32 int8: four sums of 8, as 64-bit integers, each 8 * 128 too large. */
GW_INLINE __m256i sums_of_8(__m256i q)
{
    return _mm256_sad_epu8(_mm256_xor_si256(q, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
}

GW_INLINE bool usable_amax(float amax)
{
    return amax >= 1e-30f && amax <= FLT_MAX;
}

/* One block of row number r of those that lie together. */
static void quantize_one(struct gw_act_block *block, int r, const float *x)
{
    v16 first = v16_load(x), second = v16_load(x + 16);
    __m256i lanes = v16_amax8(first, second);
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    float amax = _mm_cvtss_f32(_mm_castsi128_ps(m));
    __m256i q = _mm256_setzero_si256();
    if (usable_amax(amax)) {
        v16 inverse = v16_set1(127.0f / amax);
        q = v16_to_i8(v16_mul(first, inverse), v16_mul(second, inverse));
    }
    _mm256_storeu_si256((__m256i *)block->q[r], q);
    __m256i eights = sums_of_8(q), halves = _mm256_add_epi64(eights, _mm256_shuffle_epi32(eights, 0x4e));
    int last = _mm_cvtsi128_si32(_mm256_extracti128_si256(halves, 1)) - 16 * 128;
    int sum = _mm_cvtsi128_si32(_mm256_castsi256_si128(halves)) - 16 * 128 + last;
    block->minus_isum[0][r] = -sum;
    block->minus_isum[1][r] = -last;
    block->scale[r] = amax / 127.0f;
    block->sum[r] = block->scale[r] * (float)sum;
}

enum { EIGHT = 8 }; /* rows that are quantized side by side, an even part of GW_ACT_ROWS */

/* Lane r: the largest lane of a[r]; none is negative. */
GW_INLINE __m256i max_of_each(const __m256i a[EIGHT])
{
    __m256i two[4], four[2];
    GW_UNROLL
    for (int i = 0; i < 4; i++)
        two[i] = _mm256_max_epi32(_mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]),
                                  _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]));
    GW_UNROLL
    for (int i = 0; i < 2; i++)
        four[i] = _mm256_max_epi32(_mm256_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                                   _mm256_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
    return _mm256_max_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                            _mm256_permute2x128_si256(four[0], four[1], 0x31));
}

/* One block of eight rows from number `first` on, whose scales and sums are then vectors. */
static void quantize_eight(struct gw_act_block *block, int first, const float *x, size_t x_stride)
{
    __m256i amax8[EIGHT], sums[2];
    GW_UNROLL
    for (int r = 0; r < EIGHT; r++)
        amax8[r] = v16_amax8(v16_load(x + (size_t)r * x_stride), v16_load(x + (size_t)r * x_stride + 16));
    __m256 amax = _mm256_castsi256_ps(max_of_each(amax8)), most = _mm256_set1_ps(127);
    int usable = _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(amax, _mm256_set1_ps(1e-30f), _CMP_GE_OQ),
                                                  _mm256_cmp_ps(amax, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ)));
    if (usable != 255) {
        for (int r = 0; r < EIGHT; r++) quantize_one(block, first + r, x + (size_t)r * x_stride);
        return;
    }
    _Alignas(32) float inverse[EIGHT];
    _mm256_store_ps(inverse, _mm256_div_ps(most, amax));
    __m256 scale = _mm256_div_ps(amax, most);
    /* Four rows' sums, below 2^16, side by side in each 64 bits. */
    sums[0] = sums[1] = _mm256_setzero_si256();
    GW_UNROLL
    for (int r = 0; r < EIGHT; r++) {
        const float *row = x + (size_t)r * x_stride;
        v16 factor = v16_set1(inverse[r]);
        __m256i q = v16_to_i8(v16_mul(v16_load(row), factor), v16_mul(v16_load(row + 16), factor));
        _mm256_storeu_si256((__m256i *)block->q[first + r], q);
        sums[r / 4] = _mm256_or_si256(sums[r / 4], _mm256_slli_epi64(sums_of_8(q), r % 4 * 16));
    }
    GW_UNROLL
    for (int i = 0; i < 2; i++) sums[i] = _mm256_add_epi16(sums[i], _mm256_shuffle_epi32(sums[i], 0x4e));
    __m256i halves = _mm256_unpacklo_epi64(sums[0], sums[1]); /* eight rows' first sixteen, then their last */
    __m256i offset = _mm256_set1_epi32(16 * 128), zero = _mm256_setzero_si256();
    __m256i low = _mm256_sub_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves)), offset);
    __m256i last = _mm256_sub_epi32(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(halves, 1)), offset);
    __m256i sum = _mm256_add_epi32(low, last);
    _mm256_storeu_si256((__m256i *)&block->minus_isum[0][first], _mm256_sub_epi32(zero, sum));
    _mm256_storeu_si256((__m256i *)&block->minus_isum[1][first], _mm256_sub_epi32(zero, last));
    _mm256_storeu_ps(&block->scale[first], scale);
    _mm256_storeu_ps(&block->sum[first], _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)));
}

static void quantize(struct gw_act *act, const float *x, size_t x_stride, int row_begin, int row_end, int block_begin,
                     int block_end)
{
    for (int row = row_begin, rows; row < row_end; row += rows, x += (size_t)rows * x_stride) {
        struct gw_act_block *block = gw_act_at(act, row, block_begin);
        bool eight = row % EIGHT == 0 && row_end - row >= EIGHT;
        rows = eight ? EIGHT : 1;
        for (int b = 0; b < block_end - block_begin; b++) {
            if (eight) quantize_eight(block + b, row % GW_ACT_ROWS, x + b * GW_BLOCK, x_stride);
            else quantize_one(block + b, row % GW_ACT_ROWS, x + b * GW_BLOCK);
        }
    }
}

/* ---- GEMM of float weights ----------------------------------------------------------------------------------------- */

GW_INLINE v16 load_weights(const uint8_t *panel, size_t k, enum gw_pack pack)
{
    switch (pack) {
    case GW_PACK_F32: return v16_load((const float *)panel + k * GW_PANEL);
    case GW_PACK_F16: return v16_load_half((const uint16_t *)panel + k * GW_PANEL);
    default: return v16_load_bf16((const uint16_t *)panel + k * GW_PANEL);
    }
}

GW_INLINE void float_rows(const struct gemm_tile *tile, int rows, enum gw_pack pack)
{
    size_t stride = (size_t)tile->g->w->k, k = 0;
    const float *x = tile->g->act->x + (size_t)tile->row * stride;
    const struct gw_atom *atom = tile->g->atoms, *last = atom + tile->g->atom_count;
    gemm_sums *top = tile->stack;
    for (; atom < last; atom++) {
        size_t end = (size_t)atom->block_end * GW_BLOCK < stride ? (size_t)atom->block_end * GW_BLOCK : stride;
        v16 acc[V16_TILE];
        GW_UNROLL
        for (int r = 0; r < rows; r++) acc[r] = v16_set1(0);
        for (; k < end; k++) {
            v16 w = load_weights(tile->panel, k, pack);
            GW_UNROLL
            for (int r = 0; r < rows; r++) acc[r] = v16_fma(v16_set1(x[(size_t)r * stride + k]), w, acc[r]);
        }
        finish_sums(tile, atom, rows, acc, &top);
    }
}

GW_INLINE void float_tile(const struct gemm_tile *tile, enum gw_pack pack)
{
    switch (tile->rows) {
    case 1: float_rows(tile, 1, pack); break;
    case 2: float_rows(tile, 2, pack); break;
    case 3: float_rows(tile, 3, pack); break;
    case 4: float_rows(tile, 4, pack); break;
#if V16_TILE > 4
    case 5: float_rows(tile, 5, pack); break;
    case 6: float_rows(tile, 6, pack); break;
    case 7: float_rows(tile, 7, pack); break;
    case 8: float_rows(tile, 8, pack); break;
#endif
    }
}

GW_INLINE void tile_f32(const struct gemm_tile *tile)
{
    float_tile(tile, GW_PACK_F32);
}

GW_INLINE void tile_f16(const struct gemm_tile *tile)
{
    float_tile(tile, GW_PACK_F16);
}

GW_INLINE void tile_bf16(const struct gemm_tile *tile)
{
    float_tile(tile, GW_PACK_BF16);
}

static void gemm_f32(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, tile_f32);
}

static void gemm_f16(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, tile_f16);
}

static void gemm_bf16(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, tile_bf16);
}

/* ---- row operations --------------------------------------------------------------------------------------------- */

static void rmsnorm(const float *x, const float *w, int n, float eps, float *y)
{
    int whole = n / 16 * 16;
    v16 s = v16_set1(0);
    for (int i = 0; i < whole; i += 16) {
        v16 a = v16_load(x + i);
        s = v16_fma(a, a, s);
    }
    if (whole < n) {
        v16 a = v16_load_part(x + whole, n - whole); /* lanes past the end add 0 * 0 */
        s = v16_fma(a, a, s);
    }
    v16 inverse = v16_set1(1.0f / sqrtf(v16_fold(s) / (float)n + eps));
    for (int i = 0; i < whole; i += 16) v16_store(y + i, v16_mul(v16_mul(v16_load(x + i), inverse), v16_load(w + i)));
    if (whole < n) {
        v16 a = v16_mul(v16_load_part(x + whole, n - whole), inverse);
        v16_store_part(y + whole, v16_mul(a, v16_load_part(w + whole, n - whole)), n - whole);
    }
}

/* One pair, for what is left of 16 lanes. */
GW_INLINE void rotate_pair(float *a, float *b, float cosine, float sine)
{
    float old_a = *a, old_b = *b;
    *a = fmaf(old_a, cosine, -(old_b * sine));
    *b = fmaf(old_a, sine, old_b * cosine);
}

/* Pairs (2i, 2i+1): with both of a pair spread over two lanes, a' and b' are fma(a, (cos, sin), b * (-sin, cos)). */
static void rope_norm(float *x, int heads, int head_dim, int pairs, const float *cosine, const float *sine)
{
    int whole = pairs / 8 * 8;
    for (int i = 0; i < whole; i += 8) {
        __m256 c = _mm256_loadu_ps(cosine + i), s = _mm256_loadu_ps(sine + i);
        v16 factor_a = v16_interleave(c, s), factor_b = v16_interleave(_mm256_sub_ps(_mm256_set1_ps(-0.0f), s), c);
        for (int head = 0; head < heads; head++) {
            float *h = x + (size_t)head * (size_t)head_dim + 2 * i;
            v16 v = v16_load(h);
            v16_store(h, v16_fma(v16_even(v), factor_a, v16_mul(v16_odd(v), factor_b)));
        }
    }
    for (int head = 0; head < heads; head++) {
        float *h = x + (size_t)head * (size_t)head_dim;
        for (int i = whole; i < pairs; i++) rotate_pair(&h[2 * i], &h[2 * i + 1], cosine[i], sine[i]);
    }
}

/* Pairs (i, i + pairs). */
static void rope_neox(float *x, int heads, int head_dim, int pairs, const float *cosine, const float *sine)
{
    int whole = pairs / 16 * 16;
    for (int head = 0; head < heads; head++) {
        float *h = x + (size_t)head * (size_t)head_dim;
        for (int i = 0; i < whole; i += 16) {
            v16 a = v16_load(h + i), b = v16_load(h + pairs + i);
            v16 c = v16_load(cosine + i), s = v16_load(sine + i);
            v16 minus = v16_sub(v16_set1(-0.0f), v16_mul(b, s)); /* exact negation, zeros included */
            v16_store(h + i, v16_fma(a, c, minus));
            v16_store(h + pairs + i, v16_fma(a, s, v16_mul(b, c)));
        }
        for (int i = whole; i < pairs; i++) rotate_pair(&h[i], &h[i + pairs], cosine[i], sine[i]);
    }
}

static void rope(float *x, int heads, int head_dim, int pairs, const float *cosine, const float *sine,
                 enum gw_rope_style style)
{
    if (style == GW_ROPE_NORM) rope_norm(x, heads, head_dim, pairs, cosine, sine);
    else rope_neox(x, heads, head_dim, pairs, cosine, sine);
}

GW_INLINE v16 silu_times(v16 g, v16 u)
{
    v16 e = v16_exp(v16_sub(v16_set1(-0.0f), g));
    return v16_mul(v16_div(g, v16_add(v16_set1(1), e)), u);
}

static void swiglu(const float *g, const float *u, int n, float *y)
{
    int i = 0;
    for (; i + 16 <= n; i += 16) v16_store(y + i, silu_times(v16_load(g + i), v16_load(u + i)));
    if (i < n) v16_store_part(y + i, silu_times(v16_load_part(g + i, n - i), v16_load_part(u + i, n - i)), n - i);
}

static void add(float *y, const float *x, int n)
{
    int i = 0;
    for (; i + 16 <= n; i += 16) v16_store(y + i, v16_add(v16_load(y + i), v16_load(x + i)));
    for (; i < n; i++) y[i] = y[i] + x[i];
}

/* First the largest value, then its first place. NaN loses in v16_max and equals nothing. */
static int argmax(const float *x, int n)
{
    int whole = n / 16 * 16;
    v16 lanes = v16_set1(-INFINITY);
    for (int i = 0; i < whole; i += 16) lanes = v16_max(v16_load(x + i), lanes);
    float largest = v16_max_all(lanes);
    for (int i = whole; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    for (int i = 0; i < whole; i += 16) {
        unsigned equal = v16_equal(v16_load(x + i), largest);
        if (equal) return i + __builtin_ctz(equal);
    }
    for (int i = whole; i < n; i++)
        if (x[i] == largest) return i;
    return 0;
}

static void exp_chunks(const float *x, int n, float inv_t, float max_scaled, float *w, float *chunk_sum)
{
    v16 factor = v16_set1(inv_t), offset = v16_set1(max_scaled);
    for (int begin = 0; begin < n; begin += GW_SUM_CHUNK) {
        int end = n - begin < GW_SUM_CHUNK ? n : begin + GW_SUM_CHUNK;
        v16 s = v16_set1(0);
        int i = begin;
        for (; i + 16 <= end; i += 16) {
            v16 e = v16_exp(v16_sub(v16_mul(v16_load(x + i), factor), offset));
            v16_store(w + i, e);
            s = v16_add(s, e);
        }
        if (i < end) {
            v16 e = v16_exp(v16_sub(v16_mul(v16_load_part(x + i, end - i), factor), offset));
            v16_store_part(w + i, e, end - i);
            s = v16_add(s, v16_keep_first(e, end - i, 0));
        }
        chunk_sum[begin / GW_SUM_CHUNK] = v16_fold(s);
    }
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static int64_t float_fmas(int64_t rounds)
{
    enum { CHAINS = V16_TILE > 4 ? 12 : 6 }; /* enough to hide the latency, few enough for the registers */
    float half[16], result[16];
    v16 sum[CHAINS], x;
    for (int i = 0; i < 16; i++) half[i] = 0.5f;
    __asm__ volatile("" ::"r"(half) : "memory"); /* not known to be constant */
    x = v16_load(half);
    GW_UNROLL
    for (int i = 0; i < CHAINS; i++) {
        __asm__ volatile("" ::"r"(half) : "memory"); /* nor to be the same in each chain */
        sum[i] = v16_load(half);
    }
    for (int64_t round = 0; round < rounds; round++) {
        GW_UNROLL
        for (int i = 0; i < CHAINS; i++) sum[i] = v16_fma(sum[i], x, x);
    }
    GW_UNROLL
    for (int i = 1; i < CHAINS; i++) sum[0] = v16_add(sum[0], sum[i]);
    v16_store(result, sum[0]);
    volatile float used = result[0] + result[15]; /* of both halves, where lanes lie in two registers */
    (void)used;
    return rounds * CHAINS * 16 * 2;
}

static uint64_t read_bytes(const void *memory, size_t bytes)
{
    const uint8_t *p = memory;
    __m256i all[4];
    GW_UNROLL
    for (int i = 0; i < 4; i++) all[i] = _mm256_setzero_si256();
    for (size_t at = 0; at < bytes; at += 128) {
        GW_UNROLL
        for (int i = 0; i < 4; i++)
            all[i] = _mm256_xor_si256(all[i], _mm256_loadu_si256((const __m256i *)(p + at + 32 * (size_t)i)));
    }
    all[0] = _mm256_xor_si256(_mm256_xor_si256(all[0], all[1]), _mm256_xor_si256(all[2], all[3]));
    return (uint64_t)_mm256_extract_epi64(all[0], 0) ^ (uint64_t)_mm256_extract_epi64(all[0], 1) ^
           (uint64_t)_mm256_extract_epi64(all[0], 2) ^ (uint64_t)_mm256_extract_epi64(all[0], 3);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* `count` (1..16) dimensions of a key, down a column of its page, and of a value. */
GW_INLINE void store_dims(uint16_t *k, uint16_t *v, const float *key, const float *value, int count)
{
    uint16_t column[16]; /* stored whole: a masked store would not be there yet for the loads that follow */
    if (count == 16) v16_store_half(v, v16_load(value));
    else v16_store_half_part(v, v16_load_part(value, count), count);
    v16_store_half(column, count == 16 ? v16_load(key) : v16_load_part(key, count));
    for (int i = 0; i < count; i++) k[i * 16] = column[i];
}

static void kv_store(uint16_t *page, int head_dim, int slot, const float *key, const float *value)
{
    uint16_t *k = page + slot / 16 * head_dim * 16 + slot % 16;
    uint16_t *v = page + GW_PAGE_TOKENS * head_dim + slot * head_dim;
    int d = 0;
    for (; d + 16 <= head_dim; d += 16) store_dims(k + d * 16, v + d, key + d, value + d, 16);
    if (d < head_dim) store_dims(k + d * 16, v + d, key + d, value + d, head_dim - d);
}

/* Floats of a query or sum, and some that keep rows from lying a power of two apart, which would be the same few cache sets. */
enum { DIMS = 256 + 16 };

/* A tile of queries (any rows and heads that share the kv head), walked over the pages together so that each page is read once for all of
 * them. */
struct queries {
    _Alignas(64) float q[V16_TILE][DIMS];              /* scaled */
    _Alignas(64) float o[V16_TILE][DIMS];              /* vectors do not straddle cache lines */
    _Alignas(64) float e[2][V16_TILE][GW_PAGE_TOKENS]; /* scores of even and odd pages, then their exponentials */
    _Alignas(64) float l[V16_TILE][16];
    float m[V16_TILE];
    float c[V16_TILE]; /* of the page at hand */
    int count;
    int head_dim;
    int pages;              /* that it sees keys of */
    int position[V16_TILE]; /* ascending; past `count` as if there were more */
};

/* Element number i of a page on: of its halves, or, `wide`, a constant, of what they have been converted to. */
GW_INLINE v16 load_dims(const void *page, int i, bool wide)
{
    return wide ? v16_load((const float *)page + i) : v16_load_half((const uint16_t *)page + i);
}

/* How many keys of a page each query of a tile sees. */
struct seen {
    int keys[V16_TILE];
    int fewest;
};

/* Calls fn(__VA_ARGS__, count) with `count`, 1..V16_TILE, as a constant. */
#if V16_TILE > 4
#define WITH_COUNT(count, fn, ...)                                                                                     \
    switch (count) {                                                                                                   \
    case 1: fn(__VA_ARGS__, 1); break;                                                                                 \
    case 2: fn(__VA_ARGS__, 2); break;                                                                                 \
    case 3: fn(__VA_ARGS__, 3); break;                                                                                 \
    case 4: fn(__VA_ARGS__, 4); break;                                                                                 \
    case 5: fn(__VA_ARGS__, 5); break;                                                                                 \
    case 6: fn(__VA_ARGS__, 6); break;                                                                                 \
    case 7: fn(__VA_ARGS__, 7); break;                                                                                 \
    case 8: fn(__VA_ARGS__, 8); break;                                                                                 \
    }
#else
#define WITH_COUNT(count, fn, ...)                                                                                     \
    switch (count) {                                                                                                   \
    case 1: fn(__VA_ARGS__, 1); break;                                                                                 \
    case 2: fn(__VA_ARGS__, 2); break;                                                                                 \
    case 3: fn(__VA_ARGS__, 3); break;                                                                                 \
    case 4: fn(__VA_ARGS__, 4); break;                                                                                 \
    }
#endif

/* Pages are read ahead line by line all the time, since only so many lines can be under way: a page's values while its scores are computed, the
 * keys of the page after the next one while values are added up, the first of them during the softmax before. To the second-level cache: loads would wait behind lines on their way to the
 * first. */
enum { LINE = 32 }; /* halves in a cache line; keys and values of a page are head_dim lines each */

GW_INLINE void prefetch_line(const uint16_t *line)
{
    _mm_prefetch((const char *)line, _MM_HINT_T1);
}

/* Scores of `count` queries with the 16 keys of each of `parts` parts from `part` on; both constant. Columns of invisible keys give garbage
 * that softmax_count drops. Few queries are few chains of sums, which wait for each other; both parts together are twice as many. */
GW_INLINE void score_parts(struct queries *t, float (*e)[GW_PAGE_TOKENS], const void *page, int part, int parts,
                           bool wide, int count)
{
    int part_dims = t->head_dim * 16, at = part * part_dims;
    v16 s[2][V16_TILE];
    GW_UNROLL
    for (int p = 0; p < parts; p++) {
        GW_UNROLL
        for (int i = 0; i < count; i++) s[p][i] = v16_set1(0);
    }
    for (int d = 0; d < t->head_dim; d++, at += 16) {
        if (part == 0 && !wide) prefetch_line((const uint16_t *)page + t->head_dim * GW_PAGE_TOKENS + d * LINE);
        v16 k[2];
        GW_UNROLL
        for (int p = 0; p < parts; p++) k[p] = load_dims(page, at + p * part_dims, wide);
        GW_UNROLL
        for (int i = 0; i < count; i++) {
            if (wide) {
                v16 q = v16_set1(t->q[i][d]);
                GW_UNROLL
                for (int p = 0; p < parts; p++) s[p][i] = v16_fma(q, k[p], s[p][i]);
            } else {
                GW_UNROLL
                for (int p = 0; p < parts; p++) s[p][i] = v16_fma_spread(&t->q[i][d], k[p], s[p][i]);
            }
        }
    }
    GW_UNROLL
    for (int p = 0; p < parts; p++) {
        GW_UNROLL
        for (int i = 0; i < count; i++) v16_store(&e[i][(part + p) * 16], s[p][i]);
    }
}

/* The first `most` keys of a page; all of them where it has fewer. */
GW_INLINE void score_count(struct queries *t, float (*e)[GW_PAGE_TOKENS], const void *page, int most, bool wide,
                           int count)
{
    if (most <= 16) {
        score_parts(t, e, page, 0, 1, wide, count);
    } else if (2 * count <= V16_SUMS) {
        score_parts(t, e, page, 0, 2, wide, count);
    } else {
        score_parts(t, e, page, 0, 1, wide, count);
        score_parts(t, e, page, 1, 1, wide, count);
    }
}

/* The scores of page number b, which is `page`; wide is a constant. */
GW_INLINE void score_page(struct queries *t, const void *page, int b, bool wide)
{
    int most = t->position[t->count - 1] + 1 - b * GW_PAGE_TOKENS;
    WITH_COUNT(t->count, score_count, t, t->e[b % 2], page, most, wide);
}

/* The online softmax step of queries [first, first + count), count constant, each of which sees a key: e, c, l and m. Step by step for all of
 * them: one alone would wait for each of its own instructions. */
GW_INLINE void softmax_count(struct queries *t, float (*e)[GW_PAGE_TOKENS], const struct seen *seen, int first,
                             int count)
{
    v16 s[V16_TILE][2], change = v16_set1(0);
    GW_UNROLL
    for (int i = 0; i < count; i++) {
        int keys = seen->keys[first + i];
        s[i][0] = v16_keep_first(v16_load(&e[first + i][0]), keys < 16 ? keys : 16, -INFINITY);
        s[i][1] = v16_keep_first(v16_load(&e[first + i][16]), keys > 16 ? keys - 16 : 0, -INFINITY);
        float largest = v16_max_all(v16_max(s[i][0], s[i][1])), m = t->m[first + i];
        t->m[first + i] = largest > m ? largest : m;
        change = v16_replace(change, i, m - t->m[first + i]);
    }
    v16 c = v16_exp(change);
    v16_store_part(&t->c[first], c, count);
    GW_UNROLL
    for (int i = 0; i < count; i++) {
        v16 m = v16_set1(t->m[first + i]);
        v16 e0 = v16_exp(v16_sub(s[i][0], m)), e1 = v16_exp(v16_sub(s[i][1], m));
        /* Invisible keys add +0, which changes no l: all are >= +0. */
        v16 l = v16_mul(v16_load(t->l[first + i]), v16_spread(c, i));
        v16_store(t->l[first + i], v16_add(v16_add(l, e0), e1));
        v16_store(&e[first + i][0], e0);
        v16_store(&e[first + i][16], e1);
    }
}

static void softmax_page(struct queries *t, float (*e)[GW_PAGE_TOKENS], const struct seen *seen)
{
    if (seen->fewest > 0) {
        WITH_COUNT(t->count, softmax_count, t, e, seen, 0);
        return;
    }
    for (int i = 0; i < t->count; i++)
        if (seen->keys[i] > 0) softmax_count(t, e, seen, i, 1);
}

/* `width` vectors of o from dimension d on, of queries [first, first + count), over keys [begin, end); width and count constant. `left` values
 * of the last vector exist. The keys at `ahead` are read ahead. */
GW_INLINE void add_columns(struct queries *t, float (*e)[GW_PAGE_TOKENS], int first, const void *page, int begin,
                           int end, int d, int left, int width, bool wide, int count, const uint16_t *ahead)
{
    const int values = GW_PAGE_TOKENS * t->head_dim;
    v16 o[V16_TILE][4];
    GW_UNROLL
    for (int i = 0; i < count; i++) {
        GW_UNROLL
        for (int x = 0; x < width; x++) {
            o[i][x] = v16_load(&t->o[first + i][d + 16 * x]);
            if (begin == 0) o[i][x] = v16_mul(o[i][x], v16_set1(t->c[first + i]));
        }
    }
    for (int j = begin; j < end; j++) {
        int at = values + j * t->head_dim + d;
        GW_UNROLL
        for (int x = 0; x < width && !wide; x += 2)
            if (width > 1 || d % LINE == 0) prefetch_line(ahead + j * t->head_dim + d + 16 * x);
        v16 v[4];
        GW_UNROLL
        for (int x = 0; x < width; x++)
            v[x] = left >= 16 || wide ? load_dims(page, at + 16 * x, wide)
                                      : v16_load_half_part((const uint16_t *)page + at + 16 * x, left);
        GW_UNROLL
        for (int i = 0; i < count; i++) {
            if (wide) {
                v16 weight = v16_set1(e[first + i][j]);
                GW_UNROLL
                for (int x = 0; x < width; x++) o[i][x] = v16_fma(weight, v[x], o[i][x]);
            } else {
                GW_UNROLL
                for (int x = 0; x < width; x++) o[i][x] = v16_fma_spread(&e[first + i][j], v[x], o[i][x]);
            }
        }
    }
    GW_UNROLL
    for (int i = 0; i < count; i++) {
        GW_UNROLL
        for (int x = 0; x < width; x++) v16_store(&t->o[first + i][d + 16 * x], o[i][x]);
    }
}

/* o of queries [first, first + count) over keys [begin, end), count constant; o is first scaled by c where begin is 0. As many columns side
 * by side as there are registers: values are read in their order, and there are sums enough to hide each other's latency. */
GW_INLINE void add_values(struct queries *t, float (*e)[GW_PAGE_TOKENS], int first, const void *page, int begin,
                          int end, const uint16_t *ahead, bool wide, int count)
{
    const int width = 4 * count <= V16_SUMS ? 4 : 2 * count <= V16_SUMS ? 2 : 1;
    int d = 0;
    for (; d + 16 * width <= t->head_dim; d += 16 * width)
        add_columns(t, e, first, page, begin, end, d, 16, width, wide, count, ahead);
    for (; d < t->head_dim; d += 16)
        add_columns(t, e, first, page, begin, end, d, t->head_dim - d, 1, wide, count, ahead);
}

/* The values of one page, for all that see keys of it; wide is a constant. */
GW_INLINE void add_page(struct queries *t, float (*e)[GW_PAGE_TOKENS], const void *page, const struct seen *seen,
                        const uint16_t *ahead, bool wide)
{
    if (seen->fewest > 0) WITH_COUNT(t->count, add_values, t, e, 0, page, 0, seen->fewest, ahead, wide);
    for (int i = 0; i < t->count; i++)
        if (seen->keys[i] > seen->fewest) add_values(t, e, i, page, seen->fewest, seen->keys[i], ahead, wide, 1);
}

static struct seen keys_seen(const struct queries *t, int page)
{
    struct seen seen;
    for (int i = 0; i < V16_TILE; i++) {
        int keys = t->position[i] + 1 - page * GW_PAGE_TOKENS;
        seen.keys[i] = keys < 0 ? 0 : keys > GW_PAGE_TOKENS ? GW_PAGE_TOKENS : keys;
    }
    seen.fewest = seen.keys[0];
    return seen;
}

/* Takes queries [begin, begin + count) of a's rows * group into the tile; of several sequences' only for the pages that they share. */
static void load_queries(struct queries *t, const struct gw_attention *a, int begin, int count)
{
    t->count = count;
    t->head_dim = a->head_dim;
    v16 scale = v16_set1(a->scale);
    for (int i = 0; i < V16_TILE; i++)
        t->position[i] = a->own ? a->shared * GW_PAGE_TOKENS - 1 : a->pos0 + (begin + i) / a->group;
    t->pages = t->position[count - 1] / GW_PAGE_TOKENS + 1;
    for (int i = 0; i < count; i++) {
        int row = (begin + i) / a->group, head = (begin + i) % a->group, d = 0;
        const float *q = a->q + (size_t)row * a->q_stride + (size_t)head * (size_t)a->head_dim;
        for (; d + 16 <= a->head_dim; d += 16) v16_store(&t->q[i][d], v16_mul(v16_load(q + d), scale));
        for (; d < a->head_dim; d++) t->q[i][d] = q[d] * a->scale;
        t->m[i] = -INFINITY;
        memset(t->l[i], 0, sizeof t->l[i]);
        memset(t->o[i], 0, (size_t)(a->head_dim + 15) / 16 * 16 * sizeof(float));
    }
}

static void store_queries(const struct queries *t, const struct gw_attention *a, int begin)
{
    for (int i = 0; i < t->count; i++) {
        int row = (begin + i) / a->group, head = (begin + i) % a->group;
        float *out = a->out + (size_t)row * a->out_stride + (size_t)head * (size_t)a->head_dim;
        v16 l = v16_set1(v16_fold(v16_load(t->l[i])));
        for (int d = 0; d < a->head_dim; d += 16) {
            v16 o = v16_div(v16_load(&t->o[i][d]), l);
            if (a->head_dim - d >= 16) v16_store(out + d, o);
            else v16_store_part(out + d, o, a->head_dim - d);
        }
    }
}

/* One tile, over its pages from number `first` on, which are at pages[0].., as they are; `next` as in struct gw_attention. */
static void walk_pages(struct queries *t, const uint16_t *const *pages, int first, const uint16_t *next)
{
    enum { DURING_SOFTMAX = 8 }; /* lines that come meanwhile; of more the rest would have to wait */
    int count = t->pages - first;
    for (int d = 0; count > 1 && d < t->head_dim; d++) prefetch_line(pages[1] + d * LINE);
    score_page(t, pages[0], first, false);
    for (int p = 0, b = first; p < count; p++, b++) {
        const struct seen seen = keys_seen(t, b);
        const uint16_t *ahead = p + 2 < count ? pages[p + 2] : next ? next : pages[p];
        for (int d = 0; d < DURING_SOFTMAX; d++) prefetch_line(ahead + d * LINE);
        /* A softmax is one long chain; the scores of the next page keep the CPU busy meanwhile. */
        softmax_page(t, t->e[b % 2], &seen);
        if (p + 1 < count) score_page(t, pages[p + 1], b + 1, false);
        add_page(t, t->e[b % 2], pages[p], &seen, ahead, false);
    }
}

/* A page's halves as floats, keys and values in their order. What has to come from memory next is read ahead. */
static void widen_page(const uint16_t *page, const uint16_t *ahead, int head_dim, float *wide)
{
    for (int i = 0; i < 2 * GW_PAGE_TOKENS * head_dim; i += LINE) {
        prefetch_line(ahead + i);
        v16_store(wide + i, v16_load_half(page + i));
        v16_store(wide + i + 16, v16_load_half(page + i + 16));
    }
}

/* Tiles whose queries one conversion of a page serves. They and the page stay in the first-level cache up to 64 dimensions. */
enum { TOGETHER = GW_ATTENTION_QUERIES / V16_TILE };

/* All pages of several tiles, page by page for all of them; `next` as in struct gw_attention. */
static void walk_together(struct queries *tiles, int tile_count, const uint16_t *const *pages, const uint16_t *next)
{
    _Alignas(64) float page[2 * GW_PAGE_TOKENS * 256 + 16]; /* the last vector of values may reach past them */
    int count = tiles[tile_count - 1].pages, first = 0;
    for (int b = 0; b < count; b++) {
        while (tiles[first].pages <= b) first++; /* positions ascend */
        widen_page(pages[b], b + 1 < count ? pages[b + 1] : next ? next : pages[b], tiles->head_dim, page);
        score_page(&tiles[first], page, b, true);
        for (int i = first; i < tile_count; i++) {
            struct queries *t = &tiles[i];
            const struct seen seen = keys_seen(t, b);
            /* As in walk_pages(), here with the scores of the next tile. */
            softmax_page(t, t->e[b % 2], &seen);
            if (i + 1 < tile_count) score_page(t + 1, page, b, true);
            add_page(t, t->e[b % 2], page, &seen, NULL, true);
        }
    }
}

/* Takes queries [begin, begin + count) of the tiles, which are all of the row at `position`, where they have come to. */
static void take_queries(struct queries *t, const struct queries *tiles, int begin, int count, int position)
{
    size_t bytes = (size_t)(tiles->head_dim + 15) / 16 * 16 * sizeof(float);
    t->count = count;
    t->head_dim = tiles->head_dim;
    t->pages = position / GW_PAGE_TOKENS + 1;
    for (int i = 0; i < V16_TILE; i++) t->position[i] = position;
    for (int i = 0; i < count; i++) {
        const struct queries *from = &tiles[(begin + i) / V16_TILE];
        int at = (begin + i) % V16_TILE;
        memcpy(t->q[i], from->q[at], bytes);
        memcpy(t->o[i], from->o[at], bytes);
        memcpy(t->l[i], from->l[at], sizeof t->l[i]);
        t->m[i] = from->m[at];
    }
}

/* Of several sequences, whose `rows` rows from `row` on are in the tiles: the pages that each has for itself. */
static void walk_own(const struct gw_attention *a, const struct queries *tiles, int row, int rows)
{
    struct queries t;
    for (int r = 0; r < rows; r++) {
        const struct gw_attention_own *own = &a->own[row + r];
        const uint16_t *next = r + 1 < rows ? own[1].pages[0] : a->next;
        for (int head = 0, count; head < a->group; head += count) {
            count = a->group - head < V16_TILE ? a->group - head : V16_TILE;
            take_queries(&t, tiles, r * a->group + head, count, own->pos);
            walk_pages(&t, own->pages, a->shared, next);
            store_queries(&t, a, (row + r) * a->group + head);
        }
    }
}

static void attention(const struct gw_attention *a)
{
    GW_ASSERT(a->head_dim > 0 && a->head_dim <= 256 && a->head_dim % 2 == 0);
    GW_ASSERT(!a->own || (a->shared > 0 && a->group <= TOGETHER * V16_TILE));
    struct queries tiles[TOGETHER];
    const int total = a->rows * a->group, whole_rows = TOGETHER * V16_TILE / a->group;
    const int most = a->own ? whole_rows * a->group : TOGETHER * V16_TILE;
    for (int begin = 0, count; begin < total; begin += count) {
        count = total - begin < most ? total - begin : most;
        int tile_count = (count + V16_TILE - 1) / V16_TILE;
        for (int i = 0; i < tile_count; i++)
            load_queries(&tiles[i], a, begin + i * V16_TILE, i + 1 < tile_count ? V16_TILE : count - i * V16_TILE);
        const uint16_t *next = a->own ? a->own[begin / a->group].pages[0] : a->next;
        if (tile_count > 1) walk_together(tiles, tile_count, a->pages, next);
        else walk_pages(tiles, a->pages, 0, next);
        if (a->own) walk_own(a, tiles, begin / a->group, count / a->group);
        for (int i = 0; !a->own && i < tile_count; i++) store_queries(&tiles[i], a, begin + i * V16_TILE);
    }
}
