/* AVX-512 with VNNI: int8 GEMM tiles of up to 8 rows by 16 outputs, one register of 16 accumulators a row.
 *
 * A dot-product instruction multiplies 4 consecutive k of 16 outputs (unsigned codes) with 4 broadcast activation bytes
 * and adds them up in 32 bits, exactly. Codes stay unsigned; where a type has a bias, the accumulator starts at
 * -bias * isum, which makes the integer the same as sum((code - bias) * q).
 */
#include "kernels/x86/v16_avx512.h"

#include "kernels/x86/float_kernels.h"

/* Four activation bytes in every lane. */
GW_INLINE __m512i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

GW_INLINE __m512i load_codes(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}

/* Block `b` of row `r` of the tile, in units of blocks. */
GW_INLINE size_t act_block(const struct gemm_tile *tile, int r, int b)
{
    return (size_t)(tile->row + r) * ((size_t)tile->act->k / GW_BLOCK) + (size_t)b;
}

/* acc = fmaf(dot, scale_w * scale_a, acc), then the min term. */
GW_INLINE __m512 add_block(__m512 acc, __m512 dot, const struct gw_act *act, size_t at, __m512 scale, __m512 min,
                           bool has_min)
{
    acc = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(act->scale[at])), acc);
    return has_min ? _mm512_fmadd_ps(min, _mm512_set1_ps(act->sum[at]), acc) : acc;
}

/* 4- and 8-bit codes; `rows`, `pack` and `has_min` are constants. */
GW_INLINE void int8_rows(const struct gemm_tile *tile, int rows, enum gw_pack pack, bool has_min)
{
    const struct gw_act *act = tile->act;
    const __m512i nibble = _mm512_set1_epi8(15);
    const uint8_t *block = tile->panel + (size_t)tile->begin * tile->w->block_bytes;
    int bias = tile->w->bias;
    __m512 acc[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++) acc[r] = _mm512_setzero_ps();
    for (int b = tile->begin; b < tile->end; b++, block += tile->w->block_bytes) {
        __m512 scale = _mm512_loadu_ps(block);
        __m512 min = has_min ? _mm512_loadu_ps(block + 64) : scale;
        const uint8_t *codes = block + (has_min ? 128 : 64);
        __m512i code[8];
        GW_UNROLL
        for (int g = 0; g < 4; g++) {
            __m512i bytes = load_codes(codes + 64 * g);
            code[g] = pack == GW_PACK_U4 ? _mm512_and_si512(bytes, nibble) : bytes;
            code[4 + g] = pack == GW_PACK_U4 ? _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble)
                                             : load_codes(codes + 64 * (4 + g));
        }
        GW_UNROLL
        for (int r = 0; r < rows; r++) {
            size_t at = act_block(tile, r, b);
            const int8_t *q = act->q + at * GW_BLOCK;
            __m512i dot = has_min ? _mm512_setzero_si512()
                                  : _mm512_set1_epi32(-bias * (act->isum[2 * at] + act->isum[2 * at + 1]));
            GW_UNROLL
            for (int g = 0; g < 8; g++) dot = _mm512_dpbusd_epi32(dot, code[g], broadcast4(q + 4 * g));
            acc[r] = add_block(acc[r], _mm512_cvtepi32_ps(dot), act, at, scale, min, has_min);
        }
    }
    GW_UNROLL
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(tile->acc + r * GW_PANEL, acc[r]);
}

/* Codes with two half scales a block. Both products and their sum stay below 2^24, so they are exact in float; the + 0
 * keeps a zero positive, as the integer's is. */
GW_INLINE void half_scale_rows(const struct gemm_tile *tile, int rows)
{
    const struct gw_act *act = tile->act;
    const uint8_t *block = tile->panel + (size_t)tile->begin * tile->w->block_bytes;
    int bias = tile->w->bias;
    __m512 acc[V16_TILE];
    GW_UNROLL
    for (int r = 0; r < rows; r++) acc[r] = _mm512_setzero_ps();
    for (int b = tile->begin; b < tile->end; b++, block += tile->w->block_bytes) {
        __m512 scale = _mm512_loadu_ps(block);
        __m512 half_scale[2];
        GW_UNROLL
        for (int h = 0; h < 2; h++)
            half_scale[h] = _mm512_cvtepi32_ps(
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(block + 64 + GW_PANEL * h))));
        __m512i code[8];
        GW_UNROLL
        for (int g = 0; g < 8; g++) code[g] = load_codes(block + 64 + 2 * GW_PANEL + 64 * g);
        GW_UNROLL
        for (int r = 0; r < rows; r++) {
            size_t at = act_block(tile, r, b);
            __m512 dot = _mm512_setzero_ps();
            GW_UNROLL
            for (int h = 1; h >= 0; h--) {
                const int8_t *q = act->q + at * GW_BLOCK + 16 * h;
                __m512i half = _mm512_set1_epi32(-bias * act->isum[2 * at + (size_t)h]);
                GW_UNROLL
                for (int g = 0; g < 4; g++) half = _mm512_dpbusd_epi32(half, code[4 * h + g], broadcast4(q + 4 * g));
                dot = _mm512_fmadd_ps(half_scale[h], _mm512_cvtepi32_ps(half), dot);
            }
            acc[r] = add_block(acc[r], dot, act, at, scale, scale, false);
        }
    }
    GW_UNROLL
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(tile->acc + r * GW_PANEL, acc[r]);
}

/* Picks the constant row count. */
GW_INLINE void rows_of(const struct gemm_tile *tile, int rows, enum gw_pack pack, bool has_min)
{
    if (pack == GW_PACK_U6) half_scale_rows(tile, rows);
    else int8_rows(tile, rows, pack, has_min);
}

GW_INLINE void int8_tile(const struct gemm_tile *tile, enum gw_pack pack, bool has_min)
{
    switch (tile->rows) {
    case 1: rows_of(tile, 1, pack, has_min); break;
    case 2: rows_of(tile, 2, pack, has_min); break;
    case 3: rows_of(tile, 3, pack, has_min); break;
    case 4: rows_of(tile, 4, pack, has_min); break;
    case 5: rows_of(tile, 5, pack, has_min); break;
    case 6: rows_of(tile, 6, pack, has_min); break;
    case 7: rows_of(tile, 7, pack, has_min); break;
    case 8: rows_of(tile, 8, pack, has_min); break;
    }
}

static void tile_u4(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U4, false);
}

static void tile_u4_min(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U4, true);
}

static void tile_u8(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U8, false);
}

static void tile_u8_min(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U8, true);
}

static void tile_u6(const struct gemm_tile *tile)
{
    int8_tile(tile, GW_PACK_U6, false);
}

static void gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, g->w->has_min ? tile_u4_min : tile_u4);
}

static void gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, g->w->has_min ? tile_u8_min : tile_u8);
}

static void gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    gemm_panels(g, panel_begin, panel_end, tile_u6);
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

const struct gw_kernels gw_kernels_avx512 = {
    .name = "avx512",
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
    .read_bytes = read_bytes,
};
