/* AMX: int8 GEMM tiles of 16 rows by 16 outputs. Everything else of the table is AVX-512's, as are products of few rows.
 *
 * A tile instruction multiplies 16 rows of activations by a block of 32 of 16 outputs and leaves the 256 dots, exact integers, in a tile register.
 * The rest is what the contract asks for, block by block, in vector registers: the tile is stored, and each row of dots is scaled and added to
 * the row's 16 sums. The parts of a block lie in different units of the CPU and overlap: while the dots of one are scaled, those of the next are
 * stored, and those of the one behind are multiplied, from one row tile to the next. A panel is unpacked once for all rows, long before tiles read it: what has just
 * been stored is not there for a tile load.
 *
 * What limits it (measured on a Granite Rapids): for some 300 cycles after each tile instruction, multiplications, fused ones and conversions
 * start once a cycle instead of twice; additions and logic do not. Two or three multiplications of the contract are left for each 16 dots, so
 * all else here is done by other means. Dots become floats by a subtraction: the tile starts at the bits of 1.5 * 2^23, where a float's last
 * place is 1, and adds an integer of at most 2^22 to them.
 */
#include "kernels/x86/v16_avx512.h"

#define GEMM_TILE 16
#define GEMM_WHOLE_TILES true

#include "kernels/x86/gemm_walk.h"

/* Fewer rows are AVX-512's: a tile costs the same for any number of rows, and unpacking split blocks costs more than a tile. */
enum { FEWEST_ROWS = 9, FEWEST_SPLIT_ROWS = GEMM_TILE + 1 };

/* Floats whose last place is 1, or 64. */
#define ONES 0x1.8p23f
#define SIXTY_FOURS 0x1.8p29f

/* How a block is stored; constants of the functions below. */
enum kind { PLAIN, MINIMA, SPLIT };

/* A block of a panel as tiles read it: codes less their bias, element k = 4g+j of output n at (g, n, j). */
struct codes {
    int8_t at[GW_BLOCK / 4][GW_PANEL][4];
};
struct block {
    float scale[GW_PANEL], min[GW_PANEL]; /* min only where the type has one */
    struct codes codes;
};
/* Of a type with half scales, an element is code * half_scale = 64 * high + low, and both parts are multiplied. */
struct split_block {
    float scale[GW_PANEL];
    struct codes low, high;
};

/* Activations and dots as they stand in tile registers. */
struct rows {
    int8_t at[GW_ACT_ROWS][GW_BLOCK];
};
struct dots {
    int32_t at[GEMM_TILE][GW_PANEL];
};

/* A thread's scratch: a panel, and what is under way. Dots are two blocks ahead of the sums, also where a tile follows another one: when a tile
 * begins, those of its first block are stored and those of its second are in their tile. */
struct scratch {
    struct {
        struct dots dots, high;                  /* high of split blocks alone */
    } stored[2];                                 /* of blocks that are even and odd, counted through all tiles */
    float ones[GW_PANEL], sixty_fours[GW_PANEL]; /* what dots and their high parts start at */
    bool turn;                                   /* is the next tile's first block an odd one? */
    bool under_way;
    _Alignas(64) uint8_t blocks[]; /* struct block or split_block [k/32] */
};

/* Tile registers by their numbers. Dots: 0 and 1 of even and odd blocks, 2 and 3 their high parts. Activations: 4. Codes: 6, of high parts 7.
 * Operands name the memory, so that compilers keep the order. */
#define TILE_LOAD(tmm, from, stride)                                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tmm ::"r"(from), "r"((long)(stride)), "m"(*(from)))
#define TILE_STORE(tmm, to) __asm__ volatile("tilestored %%tmm" #tmm ", (%1,%2,1)" : "=m"(*(to)) : "r"(to), "r"(64L))
#define TILE_DOT(dots, rows, codes) __asm__ volatile("tdpbssd %%tmm" #codes ", %%tmm" #rows ", %%tmm" #dots ::)

/* Tile register number i: row_bytes[i] bytes of each of rows[i] rows. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static const struct tile_config tiles = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, GW_BLOCK, 0, 64, 64},
    .rows = {GEMM_TILE, GEMM_TILE, GEMM_TILE, GEMM_TILE, GEMM_TILE, 0, GW_BLOCK / 4, GW_BLOCK / 4},
};

GW_INLINE size_t block_size(enum kind kind)
{
    return kind == SPLIT ? sizeof(struct split_block) : sizeof(struct block);
}

/* The dots of a block with these activations of it; `odd` is a constant. */
GW_INLINE void multiply(const struct scratch *s, const struct gw_act_block *acts, const uint8_t *block, enum kind kind,
                        bool odd)
{
    const struct rows *rows = (const struct rows *)acts->q;
    const struct codes *codes = kind == SPLIT ? &((const struct split_block *)block)->low
                                              : &((const struct block *)block)->codes;
    TILE_LOAD(4, rows, GW_BLOCK);
    TILE_LOAD(6, codes, 64);
    if (odd) {
        TILE_LOAD(1, &s->ones, 0);
        TILE_DOT(1, 4, 6);
    } else {
        TILE_LOAD(0, &s->ones, 0);
        TILE_DOT(0, 4, 6);
    }
    if (kind != SPLIT) return;
    TILE_LOAD(7, &((const struct split_block *)block)->high, 64);
    if (odd) {
        TILE_LOAD(3, &s->sixty_fours, 0);
        TILE_DOT(3, 4, 7);
    } else {
        TILE_LOAD(2, &s->sixty_fours, 0);
        TILE_DOT(2, 4, 7);
    }
}

GW_INLINE void store(struct scratch *s, enum kind kind, bool odd)
{
    if (odd) TILE_STORE(1, &s->stored[1].dots);
    else TILE_STORE(0, &s->stored[0].dots);
    if (kind == SPLIT && odd) TILE_STORE(3, &s->stored[1].high);
    if (kind == SPLIT && !odd) TILE_STORE(2, &s->stored[0].high);
}

/* Row r of dots, less what they started at. */
GW_INLINE __m512 as_floats(const struct dots *dots, float start, int r)
{
    return _mm512_sub_ps(_mm512_load_ps((const float *)dots->at[r]), _mm512_set1_ps(start));
}

/* acc = fmaf(dot, scale_w * scale_a, acc), then the min term, of all rows. The two parts of a split dot add up to less than 2^24: exactly. */
GW_INLINE void add_block(__m512 *acc, const struct scratch *s, const struct gw_act_block *acts, const uint8_t *block,
                         enum kind kind, bool odd)
{
    const struct block *w = (const struct block *)block; /* both structs begin alike */
    __m512 scale = _mm512_load_ps(w->scale), min = kind == MINIMA ? _mm512_load_ps(w->min) : scale;
    GW_UNROLL
    for (int r = 0; r < GEMM_TILE; r++) {
        __m512 dot = as_floats(&s->stored[odd].dots, ONES, r);
        if (kind == SPLIT) dot = _mm512_add_ps(as_floats(&s->stored[odd].high, SIXTY_FOURS, r), dot);
        acc[r] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(acts->scale[r])), acc[r]);
        if (kind == MINIMA) acc[r] = _mm512_fmadd_ps(min, _mm512_set1_ps(acts->sum[r]), acc[r]);
    }
}

/* Multiplies block `at` of the panel, or what follows its last one. */
GW_INLINE void multiply_at(const struct scratch *s, const struct gemm_tile *tile, const struct gw_act_block *acts,
                           int at, int ahead, enum kind kind, bool odd)
{
    const int blocks = tile->w->k / GW_BLOCK;
    if (at >= ahead) return;
    if (at >= blocks)
        multiply(s, tile->next_acts + (at - blocks), s->blocks + (size_t)(at - blocks) * block_size(kind), kind, odd);
    else multiply(s, acts + at, s->blocks + (size_t)at * block_size(kind), kind, odd);
}

/* Takes block number `at`'s share of what is wanted next along. */
GW_INLINE void prefetch_warm(const struct gemm_tile *tile, int at)
{
    if (!tile->warm) return;
    const uint8_t *from = tile->warm + (size_t)(at - tile->begin) * tile->w->block_bytes;
    for (size_t line = 0; line < tile->w->block_bytes; line += 64)
        _mm_prefetch((const char *)(from + line), _MM_HINT_T1);
}

GW_INLINE void tile_of(const struct gemm_tile *tile, enum kind kind)
{
    struct scratch *s = tile->scratch;
    const struct gw_act_block *acts = gw_act_at(tile->act, tile->row, 0);
    const size_t size = block_size(kind);
    const int blocks = tile->w->k / GW_BLOCK;
    /* A tile that follows begins with the panel's first blocks; one block alone is not worth the trouble. */
    const int ahead = blocks + (tile->next_acts && blocks > 1 ? 2 : 0);
    const bool turn = s->turn;
    __m512 acc[GEMM_TILE];
    GW_UNROLL
    for (int r = 0; r < GEMM_TILE; r++) acc[r] = _mm512_setzero_ps();
    if (!s->under_way && tile->begin < tile->end) {
        if (turn) multiply_at(s, tile, acts, tile->begin, ahead, kind, true);
        else multiply_at(s, tile, acts, tile->begin, ahead, kind, false);
        if (turn) multiply_at(s, tile, acts, tile->begin + 1, ahead, kind, false);
        else multiply_at(s, tile, acts, tile->begin + 1, ahead, kind, true);
        store(s, kind, turn);
    }
    for (int pair = tile->begin - turn; pair < tile->end; pair += 2) {
        if (pair >= tile->begin) {
            /* Most blocks come by here, where addresses are simple: one that came from a vector register would wait behind its multiplications. */
            const struct gw_act_block *a = acts + pair;
            const uint8_t *w = s->blocks + (size_t)pair * size;
            int last = blocks - 3 < tile->end - 1 ? blocks - 3 : tile->end - 1;
            for (; pair < last; pair += 2, a += 2, w += 2 * size) {
                multiply(s, a + 2, w + 2 * size, kind, false);
                store(s, kind, true);
                prefetch_warm(tile, pair);
                add_block(acc, s, a, w, kind, false);
                multiply(s, a + 3, w + 3 * size, kind, true);
                store(s, kind, false);
                prefetch_warm(tile, pair + 1);
                add_block(acc, s, a + 1, w + size, kind, true);
            }
        }
        GW_UNROLL
        for (int odd = 0; odd < 2; odd++) {
            int at = pair + odd;
            if (at < tile->begin) continue;
            if (at >= tile->end) break;
            multiply_at(s, tile, acts, at + 2, ahead, kind, odd);
            if (at + 1 < ahead) store(s, kind, !odd);
            prefetch_warm(tile, at);
            add_block(acc, s, acts + at, s->blocks + (size_t)at * size, kind, odd);
        }
    }
    s->under_way = tile->end < ahead;
    s->turn = (turn + tile->end - tile->begin) & 1;
    finish_tile(tile, GEMM_TILE, acc);
}

static void tile_plain(const struct gemm_tile *tile)
{
    tile_of(tile, PLAIN);
}

static void tile_minima(const struct gemm_tile *tile)
{
    tile_of(tile, MINIMA);
}

static void tile_split(const struct gemm_tile *tile)
{
    tile_of(tile, SPLIT);
}

/* ---- panels as tiles read them ---------------------------------------------------------------------------------- */

/* 16 scales or minima, from number `at` of the block's on. */
GW_INLINE __m512 load_scales(const uint8_t *block, bool f16, int at)
{
    if (f16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(block + 2 * at)));
    return _mm512_loadu_ps((const float *)(block + 4 * at));
}

/* `pack` and `has_min` are constants. */
GW_INLINE void unpack(const struct gw_gemm *g, int panel, enum gw_pack pack, bool has_min)
{
    const struct gw_packed *w = g->w;
    const uint8_t *from = w->data + (size_t)panel * w->panel_bytes;
    const __m512i nibble = _mm512_set1_epi8(15), bias = _mm512_set1_epi8((char)w->bias);
    const size_t code_offset = w->block_bytes - (pack == GW_PACK_U4 ? 256 : 512);
    struct scratch *s = g->scratch;
    struct block *to = (struct block *)s->blocks;
    s->under_way = false;
    for (int b = 0; b < w->k / GW_BLOCK; b++, from += w->block_bytes, to++) {
        _mm512_store_ps(to->scale, load_scales(from, w->scales_f16, 0));
        if (has_min) _mm512_store_ps(to->min, load_scales(from, w->scales_f16, GW_PANEL));
        GW_UNROLL
        for (int i = 0; i < 8; i++) {
            __m512i code = _mm512_loadu_si512(from + code_offset + 64 * (pack == GW_PACK_U4 ? i % 4 : i));
            if (pack == GW_PACK_U4) code = _mm512_and_si512(i < 4 ? code : _mm512_srli_epi16(code, 4), nibble);
            _mm512_store_si512(to->codes.at[i], has_min ? code : _mm512_sub_epi8(code, bias));
        }
    }
}

static void unpack_u4(const struct gw_gemm *g, int panel)
{
    unpack(g, panel, GW_PACK_U4, false);
}

static void unpack_u4_min(const struct gw_gemm *g, int panel)
{
    unpack(g, panel, GW_PACK_U4, true);
}

static void unpack_u8(const struct gw_gemm *g, int panel)
{
    unpack(g, panel, GW_PACK_U8, false);
}

static void unpack_u8_min(const struct gw_gemm *g, int panel)
{
    unpack(g, panel, GW_PACK_U8, true);
}

/* Half scales of 8 outputs, each as often as an output has codes side by side. */
GW_INLINE __m512i spread_half_scales(const uint8_t *half_scales)
{
    __m512i scale = _mm512_cvtepi8_epi64(_mm_loadl_epi64((const __m128i *)half_scales));
    return _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(scale, 0), 0);
}

/* code * half_scale lies between -128 * 31 and 128 * 32: low parts of 0..63 leave high ones of -62..64. */
static void unpack_u6(const struct gw_gemm *g, int panel)
{
    const struct gw_packed *w = g->w;
    const uint8_t *from = w->data + (size_t)panel * w->panel_bytes;
    const __m512i sixty_three = _mm512_set1_epi16(63);
    const __m256i bias = _mm256_set1_epi8((char)w->bias);
    struct scratch *s = g->scratch;
    struct split_block *to = (struct split_block *)s->blocks;
    s->under_way = false;
    for (int b = 0; b < w->k / GW_BLOCK; b++, from += w->block_bytes, to++) {
        const uint8_t *half_scales = from + 64, *codes = half_scales + 2 * GW_PANEL;
        _mm512_store_ps(to->scale, _mm512_loadu_ps((const float *)from));
        for (int half = 0; half < 2; half++) { /* of the block, and of the outputs */
            for (int n = 0; n < 2; n++) {
                const __m512i scale = spread_half_scales(half_scales + half * GW_PANEL + n * 8);
                GW_UNROLL
                for (int i = 4 * half; i < 4 * half + 4; i++) {
                    __m256i code = _mm256_loadu_si256((const __m256i *)(codes + 64 * i + 32 * n));
                    __m512i product = _mm512_mullo_epi16(_mm512_cvtepi8_epi16(_mm256_sub_epi8(code, bias)), scale);
                    __m256i low = _mm512_cvtepi16_epi8(_mm512_and_si512(product, sixty_three));
                    __m256i high = _mm512_cvtepi16_epi8(_mm512_srai_epi16(product, 6));
                    _mm256_store_si256((__m256i *)to->low.at[i][8 * n], low);
                    _mm256_store_si256((__m256i *)to->high.at[i][8 * n], high);
                }
            }
        }
    }
}

/* ---- the table's entries ---------------------------------------------------------------------------------------- */

static void multiply_panels(const struct gw_gemm *g, int panel_begin, int panel_end, gemm_prepare_fn unpack_panel,
                            gemm_tile_fn tile)
{
    if (g->rows < (g->w->pack == GW_PACK_U6 ? FEWEST_SPLIT_ROWS : FEWEST_ROWS)) {
        gw_kernels_avx512.gemm[g->w->pack](g, panel_begin, panel_end);
        return;
    }
    struct scratch *s = g->scratch;
    GW_ASSERT(s);
    s->turn = false;
    _mm512_store_ps(s->ones, _mm512_set1_ps(ONES));
    _mm512_store_ps(s->sixty_fours, _mm512_set1_ps(SIXTY_FOURS));
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
    struct gw_gemm products = *g;
    products.warm = NULL; /* tiles are done too soon to take more than the next panel along: measured */
    gemm_panels(&products, panel_begin, panel_end, unpack_panel, tile);
    __asm__ volatile("tilerelease" ::);
}

void gw_amx_gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : 8));
    if (g->w->has_min) multiply_panels(g, panel_begin, panel_end, unpack_u4_min, tile_minima);
    else multiply_panels(g, panel_begin, panel_end, unpack_u4, tile_plain);
}

void gw_amx_gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : g->w->bias == 16 ? 16 : 128));
    if (g->w->has_min) multiply_panels(g, panel_begin, panel_end, unpack_u8_min, tile_minima);
    else multiply_panels(g, panel_begin, panel_end, unpack_u8, tile_plain);
}

void gw_amx_gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == 32);
    multiply_panels(g, panel_begin, panel_end, unpack_u6, tile_split);
}

size_t gw_amx_scratch_bytes(const struct gw_packed *w)
{
    size_t blocks = (size_t)w->k / GW_BLOCK;
    if (w->pack < GW_PACK_U4) return 0;
    return sizeof(struct scratch) + blocks * block_size(w->pack == GW_PACK_U6 ? SPLIT : PLAIN);
}
