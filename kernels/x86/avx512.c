/* AVX-512 with VNNI: int8 GEMM tiles of up to 8 rows by 16 outputs, one register of 16 accumulators a row.
 *
 * A dot-product instruction multiplies 4 consecutive k of 16 outputs (unsigned codes) with 4 broadcast activation bytes
 * and adds them up in 32 bits, exactly. Codes stay unsigned; where a type has a bias, the accumulator starts at
 * -bias * isum, which makes the integer the same as sum((code - bias) * q).
 */
#include "kernels/x86/v16_avx512.h"

#include "kernels/x86/float_kernels.h"

/* dot + the dot of four codes with four activation bytes, in each lane; see v16_fma_spread. */
GW_INLINE __m512i add_dot4(__m512i dot, __m512i codes, const int8_t *q)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(dot) : "v"(codes), "m"(*(const int8_t(*)[4])q));
    return dot;
}

GW_INLINE __m512i load_codes(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}

/* Where a block's codes begin, behind scales and minima, or scales and half scales. */
GW_INLINE size_t codes_at(enum gw_pack pack, enum scales scales)
{
    return pack == GW_PACK_U6 ? 64 + 2 * GW_PANEL : scales == SCALES_MINIMA ? 128 : 64;
}

/* acc = fmaf(dot, scale_w * scale_a, acc), then the min term; of all rows. */
GW_INLINE void add_block(__m512 *acc, const __m512 *dot, const struct tile_rows *a, int rows, __m512 scale, __m512 min,
                         bool has_min)
{
    GW_UNROLL
    for (int r = 0; r < rows; r++) {
        acc[r] = _mm512_fmadd_ps(dot[r], _mm512_mul_ps(scale, _mm512_set1_ps(a->first->scale[r])), acc[r]);
        if (has_min) acc[r] = _mm512_fmadd_ps(min, _mm512_set1_ps(a->first->sum[r]), acc[r]);
    }
}

/* With few rows a tile does little but read, and the CPU's own prefetcher follows best when left alone. */
enum { PREFETCH_ABOVE = 4 };

/* A block some way ahead, on its way into the cache while this one is computed; past the last block it is the next
 * panel, and a prefetch of what does not exist does nothing. */
GW_INLINE void prefetch_block(const uint8_t *block, size_t block_bytes)
{
    enum { AHEAD = 8 };
    GW_UNROLL
    for (size_t line = 0; line < block_bytes; line += 64)
        _mm_prefetch((const char *)(block + AHEAD * block_bytes + line), _MM_HINT_T0);
}

/* As much as the block has of weights: of `warm`, whose rest is returned, and, when no tile before has brought the panel into the cache, of the panel
 * itself. */
GW_INLINE const uint8_t *prefetch_along(const struct gemm_tile *tile, const uint8_t *warm, const uint8_t *block,
                                        size_t block_bytes)
{
    if (tile->alone) prefetch_block(block, block_bytes);
    if (warm >= tile->warm_end) return warm;
    GW_UNROLL
    for (size_t line = 0; line < block_bytes; line += 64) _mm_prefetch((const char *)(warm + line), _MM_HINT_T1);
    return warm + block_bytes;
}

/* 4- and 8-bit codes. All rows' dots advance together: 8 chains hide the latency of one. */
GW_INLINE void add_int8_block(const uint8_t *block, const struct tile_rows *a, int rows, enum gw_pack pack,
                              enum scales scales, int bias_shift, __m512 *acc)
{
    const bool has_min = scales != SCALES_ONLY, f16 = scales == SCALES_F16;
    const uint8_t *codes = block + codes_at(pack, scales);
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i dot[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++)
        dot[r] = has_min ? _mm512_setzero_si512()
                         : _mm512_slli_epi32(_mm512_set1_epi32(a->first->minus_isum[0][r]), (unsigned)bias_shift);
    GW_UNROLL
    for (int g = 0; g < 8; g++) {
        __m512i code = load_codes(codes + 64 * (pack == GW_PACK_U4 ? g % 4 : g));
        if (pack == GW_PACK_U4) code = _mm512_and_si512(g < 4 ? code : _mm512_srli_epi16(code, 4), nibble);
        GW_UNROLL
        for (int r = 0; r < rows; r++) dot[r] = add_dot4(dot[r], code, a->q[r] + 4 * g);
    }
    __m512 dots[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++) dots[r] = _mm512_cvtepi32_ps(dot[r]);
    __m512 scale = block_scales(block, f16, 0);
    add_block(acc, dots, a, rows, scale, has_min ? block_scales(block, f16, GW_PANEL) : scale, has_min);
}

/* -bias * (sum of q over half `half`) in every lane: a dot of unsigned codes that starts there ends as that of code - bias. */
GW_INLINE __m512i half_start(const struct gw_act_block *a, int r, int half, int bias_shift)
{
    __m512i last = _mm512_set1_epi32(a->minus_isum[1][r]);
    __m512i sum = half ? last : _mm512_sub_epi32(_mm512_set1_epi32(a->minus_isum[0][r]), last);
    return _mm512_slli_epi32(sum, (unsigned)bias_shift);
}

/* Codes with two half scales a block. Both products and their sum stay below 2^24, so they are exact in float; the + 0
 * keeps a zero positive, as the integer's is. */
GW_INLINE void add_half_scale_block(const uint8_t *block, const struct tile_rows *a, int rows, int bias_shift,
                                    __m512 *acc)
{
    const uint8_t *codes = block + codes_at(GW_PACK_U6, SCALES_ONLY);
    __m512 dots[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++) dots[r] = _mm512_setzero_ps();
    GW_UNROLL
    for (int h = 1; h >= 0; h--) {
        __m512i dot[V16_TILE];
        GW_UNROLL
        for (int r = 0; r < rows; r++) dot[r] = half_start(a->first, r, h, bias_shift);
        GW_UNROLL
        for (int g = 4 * h; g < 4 * h + 4; g++) {
            __m512i code = load_codes(codes + 64 * g);
            GW_UNROLL
            for (int r = 0; r < rows; r++) dot[r] = add_dot4(dot[r], code, a->q[r] + 4 * g);
        }
        __m128i bytes = _mm_loadu_si128((const __m128i *)(block + 64 + GW_PANEL * h));
        __m512 half_scale = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        GW_UNROLL
        for (int r = 0; r < rows; r++) dots[r] = _mm512_fmadd_ps(half_scale, _mm512_cvtepi32_ps(dot[r]), dots[r]);
    }
    __m512 scale = _mm512_loadu_ps(block);
    add_block(acc, dots, a, rows, scale, scale, false);
}

/* A tile; `rows`, `pack`, `scales` and `bias_shift` (of 2) are constants. */
GW_INLINE void int8_rows(const struct gemm_tile *tile, int rows, enum gw_pack pack, enum scales scales, int bias_shift)
{
    const size_t block_bytes = codes_at(pack, scales) + (pack == GW_PACK_U4 ? 256 : 512);
    struct tile_rows a = tile_rows(tile, 0);
    const uint8_t *block = tile->panel, *warm = tile->warm;
    const struct gw_atom *atom = tile->g->atoms, *last = atom + tile->g->atom_count;
    gemm_sums *top = tile->stack;
    for (; atom < last; atom++) {
        const uint8_t *end = tile->panel + (size_t)atom->block_end * block_bytes;
        __m512 acc[V16_TILE];
        GW_UNROLL
        for (int r = 0; r < rows; r++) acc[r] = _mm512_setzero_ps();
        for (; block < end; block += block_bytes, next_block(&a)) {
            if (rows > PREFETCH_ABOVE) warm = prefetch_along(tile, warm, block, block_bytes);
            if (pack == GW_PACK_U6) add_half_scale_block(block, &a, rows, bias_shift, acc);
            else add_int8_block(block, &a, rows, pack, scales, bias_shift, acc);
        }
        finish_sums(tile, atom, rows, acc, &top);
    }
}

/* Picks the constant row count. */
GW_INLINE void int8_tile(const struct gemm_tile *tile, enum gw_pack pack, enum scales scales, int bias_shift)
{
    switch (tile->rows) {
    case 1: int8_rows(tile, 1, pack, scales, bias_shift); break;
    case 2: int8_rows(tile, 2, pack, scales, bias_shift); break;
    case 3: int8_rows(tile, 3, pack, scales, bias_shift); break;
    case 4: int8_rows(tile, 4, pack, scales, bias_shift); break;
    case 5: int8_rows(tile, 5, pack, scales, bias_shift); break;
    case 6: int8_rows(tile, 6, pack, scales, bias_shift); break;
    case 7: int8_rows(tile, 7, pack, scales, bias_shift); break;
    case 8: int8_rows(tile, 8, pack, scales, bias_shift); break;
    }
}

GW_INLINE void tile_u4_bias8(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U4, SCALES_ONLY, 3);
}

GW_INLINE void tile_u4_min(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U4, SCALES_MINIMA, 0);
}

GW_INLINE void tile_u4_f16(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U4, SCALES_F16, 0);
}

GW_INLINE void tile_u8_bias16(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U8, SCALES_ONLY, 4);
}

GW_INLINE void tile_u8_bias128(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U8, SCALES_ONLY, 7);
}

GW_INLINE void tile_u8_min(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U8, SCALES_MINIMA, 0);
}

GW_INLINE void tile_u8_f16(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U8, SCALES_F16, 0);
}

GW_INLINE void tile_u6_bias32(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U6, SCALES_ONLY, 5);
}

static void gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : 8));
    if (g->w->scales_f16) gemm_panels(g, panel_begin, panel_end, tile_u4_f16);
    else if (g->w->has_min) gemm_panels(g, panel_begin, panel_end, tile_u4_min);
    else gemm_panels(g, panel_begin, panel_end, tile_u4_bias8);
}

static void gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : g->w->bias == 16 ? 16 : 128));
    if (g->w->scales_f16) gemm_panels(g, panel_begin, panel_end, tile_u8_f16);
    else if (g->w->has_min) gemm_panels(g, panel_begin, panel_end, tile_u8_min);
    else if (g->w->bias == 16) gemm_panels(g, panel_begin, panel_end, tile_u8_bias16);
    else gemm_panels(g, panel_begin, panel_end, tile_u8_bias128);
}

static void gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == 32);
    gemm_panels(g, panel_begin, panel_end, tile_u6_bias32);
}

/* 16 chains, so that no instruction waits for the one before it. */
static int64_t int8_dots(int64_t rounds)
{
    __m512i sum[16], one = _mm512_set1_epi8(1);
    GW_UNROLL
    for (int i = 0; i < 16; i++) {
        sum[i] = _mm512_setzero_si512();
        __asm__ volatile("" : "+v"(sum[i])); /* not known to be all the same, or one chain would do for all */
    }
    for (int64_t round = 0; round < rounds; round++) {
        GW_UNROLL
        for (int i = 0; i < 16; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], one, one);
    }
    GW_UNROLL
    for (int i = 1; i < 16; i++) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    volatile int32_t used = _mm512_reduce_add_epi32(sum[0]);
    (void)used;
    return rounds * 16 * 64 * 2;
}

#define OTHER_KERNELS                                                                                                  \
    .quantize = quantize, .rmsnorm = rmsnorm, .rope = rope, .kv_store = kv_store, .attention = attention,              \
    .swiglu = swiglu, .add = add, .argmax = argmax, .exp_chunks = exp_chunks, .int8_dots = int8_dots,                  \
    .float_fmas = float_fmas, .read_bytes = read_bytes

const struct gw_kernels gw_kernels_avx512 = {
    .name = "avx512",
    .group_rows = 16,
    .gemm = {gemm_f32, gemm_f16, gemm_bf16, gemm_u4, gemm_u8, gemm_u6},
    OTHER_KERNELS,
};

#ifdef GW_AMX
const struct gw_kernels gw_kernels_amx = {
    .name = "amx",
    .gemm = {gemm_f32, gemm_f16, gemm_bf16, gw_amx_gemm_u4, gw_amx_gemm_u8, gw_amx_gemm_u6},
    .gemm_scratch_bytes = gw_amx_scratch_bytes,
    .group_rows = 32,
    OTHER_KERNELS,
};
#endif
