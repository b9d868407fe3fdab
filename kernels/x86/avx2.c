/* AVX2, FMA and F16C: int8 GEMM tiles of up to 4 rows by 16 outputs, as two halves of 8 outputs.
 *
 * The byte multiply-add (maddubs) takes unsigned by signed bytes and adds pairs in 16 bits with saturation, so each type
 * adds only as many products there as can never saturate, with |activation| <= 127:
 *    4-bit codes            8 * 2 * 15 * 127 = 30480: the whole block
 *    5-bit codes (min)      4 * 2 * 31 * 127 = 31496: half a block
 *    6-bit codes            2 * 2 * 63 * 127 = 32004: a quarter of a block
 *    signed |w| <= 128          2 * 128 * 127 = 32512: one step, as |w| * (activation with w's sign)
 * The integers are therefore exact and the same as everywhere.
 */
#include "kernels/x86/v16_avx2.h"

#include "kernels/x86/float_kernels.h"

/* How a tile multiplies; constants of the tile functions. */
enum dot_kind { DOT_NIBBLE, DOT_5BIT, DOT_SIGNED, DOT_HALF_SCALE };

/* Four activation bytes in every lane. */
GW_INLINE __m256i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

GW_INLINE __m256i load_codes(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* Pairs of 16-bit sums to 32 bits. */
GW_INLINE __m256i widen(__m256i sum)
{
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

/* code[0..3] against 16 activations, in 16-bit sums. */
GW_INLINE __m256i dot4(const __m256i *code, const int8_t *q)
{
    __m256i a = _mm256_maddubs_epi16(code[0], broadcast4(q));
    __m256i b = _mm256_maddubs_epi16(code[1], broadcast4(q + 4));
    __m256i c = _mm256_maddubs_epi16(code[2], broadcast4(q + 8));
    __m256i d = _mm256_maddubs_epi16(code[3], broadcast4(q + 12));
    return _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
}

/* The same where only two may be added in 16 bits; 32-bit sums. */
GW_INLINE __m256i dot4_wide(const __m256i *code, const int8_t *q)
{
    __m256i a = _mm256_maddubs_epi16(code[0], broadcast4(q));
    __m256i b = _mm256_maddubs_epi16(code[1], broadcast4(q + 4));
    __m256i c = _mm256_maddubs_epi16(code[2], broadcast4(q + 8));
    __m256i d = _mm256_maddubs_epi16(code[3], broadcast4(q + 12));
    return _mm256_add_epi32(widen(_mm256_add_epi16(a, b)), widen(_mm256_add_epi16(c, d)));
}

/* One signed step: w = code - bias. */
GW_INLINE __m256i dot_signed(__m256i w, __m256i magnitude, const int8_t *q)
{
    return widen(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(broadcast4(q), w)));
}

/* The integers of `rows` rows and 8 outputs of one block, as floats. `codes` is at those outputs' first bytes. */
GW_INLINE void nibble_dots(const struct tile_rows *a, int rows, int bias, const uint8_t *codes, __m256 *dot)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i low[4], high[4];
    GW_UNROLL
    for (int g = 0; g < 4; g++) {
        __m256i bytes = load_codes(codes + 64 * g);
        low[g] = _mm256_and_si256(bytes, nibble);
        high[g] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
    }
    GW_UNROLL
    for (int r = 0; r < rows; r++) {
        const int8_t *q = a->q[r];
        __m256i sum = widen(_mm256_add_epi16(dot4(low, q), dot4(high, q + 16)));
        if (bias) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(bias * a->first->minus_isum[0][r]));
        dot[r] = _mm256_cvtepi32_ps(sum);
    }
}

GW_INLINE void load4(const uint8_t *codes, __m256i *code)
{
    GW_UNROLL
    for (int g = 0; g < 4; g++) code[g] = load_codes(codes + 64 * g);
}

GW_INLINE void five_bit_dots(const struct tile_rows *a, int rows, const uint8_t *codes, __m256 *dot)
{
    __m256i sum[V16_TILE], code[4];
    load4(codes, code);
    GW_UNROLL
    for (int r = 0; r < rows; r++) sum[r] = widen(dot4(code, a->q[r]));
    load4(codes + 256, code);
    GW_UNROLL
    for (int r = 0; r < rows; r++)
        dot[r] = _mm256_cvtepi32_ps(_mm256_add_epi32(sum[r], widen(dot4(code, a->q[r] + 16))));
}

GW_INLINE void signed_dots(const struct tile_rows *a, int rows, int bias, const uint8_t *codes, __m256 *dot)
{
    const __m256i offset = _mm256_set1_epi8((char)bias);
    __m256i sum[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++) sum[r] = _mm256_setzero_si256();
    GW_UNROLL
    for (int g = 0; g < 8; g++) {
        __m256i w = _mm256_sub_epi8(load_codes(codes + 64 * g), offset);
        __m256i magnitude = _mm256_abs_epi8(w);
        GW_UNROLL
        for (int r = 0; r < rows; r++) sum[r] = _mm256_add_epi32(sum[r], dot_signed(w, magnitude, a->q[r] + 4 * g));
    }
    GW_UNROLL
    for (int r = 0; r < rows; r++) dot[r] = _mm256_cvtepi32_ps(sum[r]);
}

/* Two half scales a block. Both products and their sum stay below 2^24, so they are exact in float; starting from + 0
 * keeps a zero positive, as the integer's is. */
GW_INLINE void half_scale_dots(const struct tile_rows *a, int rows, int bias, const uint8_t *codes,
                               const uint8_t *half_scales, __m256 *dot)
{
    GW_UNROLL
    for (int r = 0; r < rows; r++) dot[r] = _mm256_setzero_ps();
    GW_UNROLL
    for (int h = 1; h >= 0; h--) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(half_scales + GW_PANEL * h));
        __m256 half_scale = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        __m256i code[4];
        load4(codes + 256 * h, code);
        GW_UNROLL
        for (int r = 0; r < rows; r++) {
            __m256i sum = dot4_wide(code, a->q[r] + 16 * h);
            int minus_isum = a->first->minus_isum[1][r];
            if (h == 0) minus_isum = a->first->minus_isum[0][r] - minus_isum;
            sum = _mm256_add_epi32(sum, _mm256_set1_epi32(bias * minus_isum));
            dot[r] = _mm256_fmadd_ps(half_scale, _mm256_cvtepi32_ps(sum), dot[r]);
        }
    }
}

/* Scales or minima of 8 outputs, from number `at` of the block's on. */
GW_INLINE __m256 load_scales(const uint8_t *block, enum scales scales, int at)
{
    if (scales == SCALES_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(block + 2 * at)));
    return _mm256_loadu_ps((const float *)block + at);
}

/* finish_sums() for 8 of the outputs, but for end_atom(). */
GW_INLINE void finish_half(const struct gemm_tile *tile, const struct gw_atom *atom, int rows, int half, __m256 *acc,
                           gemm_sums *top)
{
    for (int merge = atom->merges; merge > 0; merge--) {
        const float *left = *--top + 8 * half;
        GW_UNROLL
        for (int r = 0; r < rows; r++) acc[r] = _mm256_add_ps(_mm256_loadu_ps(left + r * GW_PANEL), acc[r]);
    }
    size_t stride;
    float *out = sums_out(tile, atom, top, &stride) + 8 * half;
    GW_UNROLL
    for (int r = 0; r < rows; r++) _mm256_storeu_ps(out + (size_t)r * stride, acc[r]);
}

/* 8 of a panel's outputs, from `half` * 8 on, over the blocks of an atom, the first of which is number `begin`; `rows`, `kind` and `scales` are
 * constants. */
GW_INLINE void int8_rows_half(const struct gemm_tile *tile, const struct gw_atom *atom, int begin, int rows,
                              enum dot_kind kind, enum scales scales, int half, gemm_sums *top)
{
    struct tile_rows a = tile_rows(tile, begin);
    const struct gw_packed *w = tile->g->w;
    bool has_min = scales != SCALES_ONLY;
    size_t code_offset = 64 + (scales == SCALES_MINIMA ? 64 : 0) + (kind == DOT_HALF_SCALE ? 2 * GW_PANEL : 0);
    const uint8_t *block = tile->panel + (size_t)begin * w->block_bytes;
    int bias = w->bias;
    __m256 acc[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++) acc[r] = _mm256_setzero_ps();
    for (int b = begin; b < atom->block_end; b++, block += w->block_bytes, next_block(&a)) {
        const uint8_t *codes = block + code_offset + 32 * half;
        __m256 dot[V16_TILE];
        if (kind == DOT_NIBBLE) nibble_dots(&a, rows, has_min ? 0 : bias, codes, dot);
        else if (kind == DOT_5BIT) five_bit_dots(&a, rows, codes, dot);
        else if (kind == DOT_SIGNED) signed_dots(&a, rows, bias, codes, dot);
        else half_scale_dots(&a, rows, bias, codes, block + 64 + 8 * half, dot);
        __m256 scale = load_scales(block, scales, 8 * half);
        GW_UNROLL
        for (int r = 0; r < rows; r++) {
            acc[r] = _mm256_fmadd_ps(dot[r], _mm256_mul_ps(scale, _mm256_set1_ps(a.first->scale[r])), acc[r]);
            if (has_min)
                acc[r] = _mm256_fmadd_ps(load_scales(block, scales, GW_PANEL + 8 * half),
                                         _mm256_set1_ps(a.first->sum[r]), acc[r]);
        }
    }
    finish_half(tile, atom, rows, half, acc, top);
}

GW_INLINE void int8_rows(const struct gemm_tile *tile, int rows, enum dot_kind kind, enum scales scales)
{
    const struct gw_atom *atom = tile->g->atoms, *last = atom + tile->g->atom_count;
    gemm_sums *top = tile->stack;
    for (int begin = 0; atom < last; begin = atom->block_end, atom++) {
        for (int half = 0; half < 2; half++) int8_rows_half(tile, atom, begin, rows, kind, scales, half, top);
        top -= atom->merges;
        end_atom(tile, atom, &top);
    }
}

/* Picks the constant row count. */
GW_INLINE void int8_tile(const struct gemm_tile *tile, enum dot_kind kind, enum scales scales)
{
    switch (tile->rows) {
    case 1: int8_rows(tile, 1, kind, scales); break;
    case 2: int8_rows(tile, 2, kind, scales); break;
    case 3: int8_rows(tile, 3, kind, scales); break;
    case 4: int8_rows(tile, 4, kind, scales); break;
    }
}

GW_INLINE void tile_u4(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_NIBBLE, SCALES_ONLY);
}

GW_INLINE void tile_u4_min(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_NIBBLE, SCALES_MINIMA);
}

GW_INLINE void tile_u4_f16(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_NIBBLE, SCALES_F16);
}

GW_INLINE void tile_u8(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_SIGNED, SCALES_ONLY);
}

GW_INLINE void tile_u8_min(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_5BIT, SCALES_MINIMA);
}

GW_INLINE void tile_u8_f16(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_5BIT, SCALES_F16);
}

GW_INLINE void tile_u6(const struct gemm_tile *tile)
{
    int8_tile(tile, DOT_HALF_SCALE, SCALES_ONLY);
}

static void gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    if (g->w->scales_f16) gemm_panels(g, panel_begin, panel_end, tile_u4_f16);
    else if (g->w->has_min) gemm_panels(g, panel_begin, panel_end, tile_u4_min);
    else gemm_panels(g, panel_begin, panel_end, tile_u4);
}

static void gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    if (g->w->scales_f16) gemm_panels(g, panel_begin, panel_end, tile_u8_f16);
    else if (g->w->has_min) gemm_panels(g, panel_begin, panel_end, tile_u8_min);
    else gemm_panels(g, panel_begin, panel_end, tile_u8);
}

static void gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, tile_u6);
}

/* 8 chains of the byte multiply-add and the addition that must follow it. */
static int64_t int8_dots(int64_t rounds)
{
    __m256i sum[8], one = _mm256_set1_epi8(1);
    GW_UNROLL
    for (int i = 0; i < 8; i++) {
        sum[i] = _mm256_setzero_si256();
        __asm__ volatile("" : "+x"(sum[i])); /* not known to be all the same, or one chain would do for all */
    }
    for (int64_t round = 0; round < rounds; round++) {
        GW_UNROLL
        for (int i = 0; i < 8; i++) {
            __asm__ volatile("" : "+x"(one)); /* none is to be taken from another */
            sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(one, one));
        }
    }
    GW_UNROLL
    for (int i = 1; i < 8; i++) sum[0] = _mm256_add_epi16(sum[0], sum[i]);
    volatile int32_t used = _mm256_extract_epi32(sum[0], 0);
    (void)used;
    return rounds * 8 * 32 * 2;
}

const struct gw_kernels gw_kernels_avx2 = {
    .name = "avx2",
    .group_rows = 16,
    .quantize = quantize,
    .gemm = {gemm_f32, gemm_f16, gemm_bf16, gemm_u4, gemm_u8, gemm_u6},
    .rmsnorm = rmsnorm,
    .rope = rope,
    .kv_store = kv_store,
    .attention = attention,
    .swiglu = swiglu,
    .add = add,
    .argmax = argmax,
    .exp_chunks = exp_chunks,
    .int8_dots = int8_dots,
    .float_fmas = float_fmas,
    .read_bytes = read_bytes,
};
