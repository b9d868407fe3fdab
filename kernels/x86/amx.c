/* AMX: int8 GEMM tiles of 16 rows by 16 outputs. Everything else of the table is AVX-512's, as are products of few rows.
 *
 * A tile instruction multiplies 16 rows of activations by a block of 32 of 16 outputs and leaves the 256 dots, exact integers, in a tile register.
 * The rest is what the contract asks for, block by block, in vector registers: the tile is stored, and each row of dots is scaled and added to
 * the row's 16 sums. The parts of a block lie in different units of the CPU and overlap: while the dots of one are scaled, those of the next are
 * stored, and those of the one behind are multiplied, from one row tile to the next. A panel is unpacked once for all rows, in between the blocks
 * of the panel before it: alone it would wait for memory, and what has just been stored is not there for a tile load.
 *
 * What limits it (measured on the CPU of docs/results.md, With AMX): for some 300 cycles after each tile instruction, multiplications, fused ones
 * and conversions start once a cycle instead of twice; additions and logic do not, but storing a tile takes 16 of their turns. Two or three multiplications of
 * the contract are left for each 16 dots, so all else here is done by other means: integers of less than 2^22 become floats by two additions (as_floats).
 */
#include "kernels/x86/v16_avx512.h"

#define GEMM_TILE 16
#define GEMM_WHOLE_TILES true
#define GEMM_ACT_BYTES (1 << 20) /* CPUs with AMX have 2 MiB a core */

#include "kernels/x86/gemm_walk.h"

enum { FEWEST_ROWS = 9 }; /* fewer are AVX-512's: a tile costs the same for any number of rows */

/* How blocks are scaled; constants of the functions below. */
enum kind { PLAIN, MINIMA, HALVES };

/* A block of a panel as tiles read it: codes less their bias, element k = 4g+j of output n at (g, n, j). */
struct codes {
    int8_t at[GW_BLOCK / 4][GW_PANEL][4];
};
struct half_codes {
    int8_t at[GW_BLOCK / 8][GW_PANEL][4];
};
struct block {
    float scale[GW_PANEL];
    float min[GW_PANEL]; /* MINIMA; of HALVES what the first half of the block is scaled by, */
    struct codes codes;
    float last[]; /* [GW_PANEL], and, only there, the last half */
};

/* Activations and dots as they stand in tile registers. */
struct rows {
    int8_t at[GW_ACT_ROWS][GW_BLOCK];
};
struct half_rows { /* not a row's end */
    int8_t at[(GW_ACT_ROWS - 1) * GW_BLOCK + GW_BLOCK / 2];
};
struct dots {
    int32_t at[GEMM_TILE][GW_PANEL];
};

/* The panel that follows the one at hand, which is unpacked meanwhile. */
struct following {
    const uint8_t *from, *end; /* blocks that the row tile at hand has to unpack */
    uint8_t *to;
    int share, credit; /* so many of a panel's blocks; what this has earned: a block's worth is the panel's blocks */
};

/* A thread's scratch: two panels in turns, and what is under way. Dots are two blocks ahead of the sums, also where a tile follows another one: when a
 * tile begins, those of its first block are stored and those of its second are in their tile. */
struct scratch {
    const uint8_t *
        ready; /* the panel, as packed, that has been unpacked for the next turn; first, since gw_gemm_forget() makes it NULL */
    int half; /* of `blocks`, where that lies */
    struct following following;
    const uint8_t *at_hand; /* struct block [k/32] */
    const uint8_t *then;    /* that of the tile which follows: the same, or the other half */
    bool under_way;         /* dots of the next tile: else it begins with an even block */
    bool turn;              /* is its first block an odd one? */
    _Alignas(64) struct {
        struct dots dots, last;    /* last: of HALVES alone, whose dots are those of the first half */
    } stored[2];                   /* of blocks that are even and odd, counted through all tiles */
    _Alignas(64) uint8_t blocks[]; /* struct block [2][k/32] */
};

/* Tile registers by their numbers. Dots: 0 and 1 of even and odd blocks, 2 and 3 those of their last halves. Activations: 4, of halves 5. Codes:
 * 6, of halves 7. Operands name the memory, so that compilers keep the order. */
#define TILE_LOAD(tmm, from, stride)                                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tmm ::"r"(from), "r"((long)(stride)), "m"(*(from)))
#define TILE_ZERO(tmm) __asm__ volatile("tilezero %%tmm" #tmm ::)
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
    .row_bytes = {64, 64, 64, 64, GW_BLOCK, GW_BLOCK / 2, 64, 64},
    .rows = {GEMM_TILE, GEMM_TILE, GEMM_TILE, GEMM_TILE, GEMM_TILE, GEMM_TILE, GW_BLOCK / 4, GW_BLOCK / 8},
};

GW_INLINE size_t block_size(enum kind kind)
{
    return sizeof(struct block) + (kind == HALVES ? GW_PANEL * sizeof(float) : 0);
}

/* The dots of a block with these activations of it; `odd` is a constant. */
GW_INLINE void multiply(const struct gw_act_block *acts, const uint8_t *block, enum kind kind, bool odd)
{
    const struct block *w = (const struct block *)block;
    if (kind == HALVES) {
        TILE_LOAD(5, (const struct half_rows *)acts->q, GW_BLOCK);
        TILE_LOAD(7, (const struct half_codes *)w->codes.at, 64);
    } else {
        TILE_LOAD(4, (const struct rows *)acts->q, GW_BLOCK);
        TILE_LOAD(6, &w->codes, 64);
    }
    if (odd) TILE_ZERO(1);
    else TILE_ZERO(0);
    if (kind != HALVES && odd) TILE_DOT(1, 4, 6);
    if (kind != HALVES && !odd) TILE_DOT(0, 4, 6);
    if (kind != HALVES) return;
    if (odd) TILE_DOT(1, 5, 7);
    else TILE_DOT(0, 5, 7);
    TILE_LOAD(5, (const struct half_rows *)&acts->q[0][GW_BLOCK / 2], GW_BLOCK);
    TILE_LOAD(7, (const struct half_codes *)w->codes.at[GW_BLOCK / 8], 64);
    if (odd) {
        TILE_ZERO(3);
        TILE_DOT(3, 5, 7);
    } else {
        TILE_ZERO(2);
        TILE_DOT(2, 5, 7);
    }
}

GW_INLINE void store(struct scratch *s, enum kind kind, bool odd)
{
    if (odd) TILE_STORE(1, &s->stored[1].dots);
    else TILE_STORE(0, &s->stored[0].dots);
    if (kind == HALVES && odd) TILE_STORE(3, &s->stored[1].last);
    if (kind == HALVES && !odd) TILE_STORE(2, &s->stored[0].last);
}

/* Row r of dots. A float from 2^23 to 2^24 has 1 as its last place: its bits and an integer add up to the bits of its sum with the integer. */
GW_INLINE __m512 as_floats(const struct dots *dots, int r)
{
    const __m512 middle = _mm512_set1_ps(0x1.8p23f);
    __m512i sum = _mm512_add_epi32(_mm512_castps_si512(middle), _mm512_load_si512(dots->at[r]));
    return _mm512_sub_ps(_mm512_castsi512_ps(sum), middle);
}

/* acc = fmaf(dot, scale_w * scale_a, acc), then the min term, of all rows. The scaled halves of a dot add up to less than 2^24: exactly. The + 0 keeps a
 * zero positive, as the integer's is. */
GW_INLINE void add_block(__m512 *acc, const struct scratch *s, const struct gw_act_block *acts, const uint8_t *block,
                         enum kind kind, bool odd)
{
    const struct block *w = (const struct block *)block;
    __m512 scale = _mm512_load_ps(w->scale), min = kind != PLAIN ? _mm512_load_ps(w->min) : scale;
    __m512 last = kind == HALVES ? _mm512_load_ps(w->last) : scale;
    GW_UNROLL
    for (int r = 0; r < GEMM_TILE; r++) {
        __m512 dot = as_floats(&s->stored[odd].dots, r);
        if (kind == HALVES)
            dot = _mm512_fmadd_ps(min, dot,
                                  _mm512_fmadd_ps(last, as_floats(&s->stored[odd].last, r), _mm512_setzero_ps()));
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
        multiply(tile->next_acts + (at - blocks), s->then + (size_t)(at - blocks) * block_size(kind), kind, odd);
    else multiply(acts + at, s->at_hand + (size_t)at * block_size(kind), kind, odd);
}

/* 16 half scales of a block that has them. */
GW_INLINE __m512 load_half_scales(const uint8_t *block, int at)
{
    const uint8_t *scales = block + GW_PANEL * sizeof(float) + at;
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)scales)));
}

/* A block as tiles read it. `pack` and `kind` are constants. */
GW_INLINE void unpack_block(const struct gw_packed *w, const uint8_t *from, uint8_t *block, enum gw_pack pack,
                            enum kind kind)
{
    enum { AHEAD = 16 }; /* in blocks: what comes from memory takes as long as several blocks of one tile */
    const __m512i nibble = _mm512_set1_epi8(15), bias = _mm512_set1_epi8((char)w->bias);
    const size_t code_bytes = pack == GW_PACK_U4 ? 256 : 512, code_offset = w->block_bytes - code_bytes;
    struct block *to = (struct block *)block;
    for (size_t line = 0; line < w->block_bytes; line += 64)
        _mm_prefetch((const char *)(from + AHEAD * w->block_bytes + line), _MM_HINT_T1);
    _mm512_store_ps(to->scale, block_scales(from, w->scales_f16, 0));
    if (kind == MINIMA) _mm512_store_ps(to->min, block_scales(from, w->scales_f16, GW_PANEL));
    if (kind == HALVES) _mm512_store_ps(to->min, load_half_scales(from, 0));
    if (kind == HALVES) _mm512_store_ps(to->last, load_half_scales(from, GW_PANEL));
    GW_UNROLL
    for (int i = 0; i < 8; i++) {
        __m512i code = _mm512_loadu_si512(from + code_offset + 64 * (pack == GW_PACK_U4 ? i % 4 : i));
        if (pack == GW_PACK_U4) code = _mm512_and_si512(i < 4 ? code : _mm512_srli_epi16(code, 4), nibble);
        _mm512_store_si512(to->codes.at[i], kind == MINIMA ? code : _mm512_sub_epi8(code, bias));
    }
}

GW_INLINE void unpack_one(struct following *next, const struct gw_packed *w, enum gw_pack pack, enum kind kind)
{
    unpack_block(w, next->from, next->to, pack, kind);
    next->from += w->block_bytes;
    next->to += block_size(kind);
}

/* Called once a block: unpacks one of the panel that follows where it is due. */
GW_INLINE void unpack_due(struct following *next, const struct gw_packed *w, enum gw_pack pack, enum kind kind)
{
    next->credit += next->share;
    if (next->credit < w->k / GW_BLOCK || next->from == next->end) return;
    next->credit -= w->k / GW_BLOCK;
    unpack_one(next, w, pack, kind);
}

GW_INLINE void tile_of(const struct gemm_tile *tile, enum gw_pack pack, enum kind kind)
{
    struct scratch *s = tile->scratch;
    const struct gw_act_block *acts = gw_act_at(tile->act, tile->row, 0);
    const size_t size = block_size(kind);
    const int blocks = tile->w->k / GW_BLOCK;
    /* A tile that follows begins with the panel's first blocks; one block alone is not worth the trouble. */
    const int ahead = blocks + (tile->next_acts && blocks > 1 ? 2 : 0);
    const bool turn = s->under_way && s->turn;
    struct following next = s->following;
    __m512 acc[GEMM_TILE];
    GW_UNROLL
    for (int r = 0; r < GEMM_TILE; r++) acc[r] = _mm512_setzero_ps();
    if (!s->under_way && tile->begin < tile->end) {
        multiply_at(s, tile, acts, tile->begin, ahead, kind, false);
        multiply_at(s, tile, acts, tile->begin + 1, ahead, kind, true);
        store(s, kind, false);
    }
    for (int pair = tile->begin - turn; pair < tile->end; pair += 2) {
        if (pair >= tile->begin) {
            /* Most blocks come by here, where addresses are simple: one that came from a vector register would wait behind its multiplications. */
            const struct gw_act_block *a = acts + pair;
            const uint8_t *w = s->at_hand + (size_t)pair * size;
            int last = blocks - 3 < tile->end - 1 ? blocks - 3 : tile->end - 1;
            for (; pair < last; pair += 2, a += 2, w += 2 * size) {
                multiply(a + 2, w + 2 * size, kind, false);
                store(s, kind, true);
                add_block(acc, s, a, w, kind, false);
                unpack_due(&next, tile->w, pack, kind);
                multiply(a + 3, w + 3 * size, kind, true);
                store(s, kind, false);
                add_block(acc, s, a + 1, w + size, kind, true);
                unpack_due(&next, tile->w, pack, kind);
            }
        }
        GW_UNROLL
        for (int odd = 0; odd < 2; odd++) {
            int at = pair + odd;
            if (at < tile->begin) continue;
            if (at >= tile->end) break;
            multiply_at(s, tile, acts, at + 2, ahead, kind, odd);
            if (at + 1 < ahead) store(s, kind, !odd);
            add_block(acc, s, acts + at, s->at_hand + (size_t)at * size, kind, odd);
        }
    }
    if (tile->begin < tile->end) s->under_way = tile->end < ahead; /* an empty atom moves nothing */
    s->turn = (turn + tile->end - tile->begin) & 1;
    s->following = next;
    finish_tile(tile, GEMM_TILE, acc);
}

/* ---- panels ----------------------------------------------------------------------------------------------------- */

/* What another product would find unpacked: only panels that look alike can be taken along. */
static bool alike(const struct gw_packed *a, const struct gw_packed *b)
{
    return a->pack == b->pack && a->k == b->k && a->has_min == b->has_min && a->scales_f16 == b->scales_f16 &&
           a->bias == b->bias;
}

/* The panel, as packed, that follows number `panel` while rows up to `row_end` are multiplied; NULL: none. */
static const uint8_t *panel_after(const struct gw_gemm *g, int panel, int panel_begin, int panel_end, int row_end)
{
    const struct gw_packed *w = g->w;
    if (panel + 1 < panel_end) return w->data + (size_t)(panel + 1) * w->panel_bytes;
    if (row_end < g->rows) return w->data + (size_t)panel_begin * w->panel_bytes;
    return g->next && alike(g->next, w) ? g->next->data + (size_t)g->next_panel * w->panel_bytes : NULL;
}

GW_INLINE void unpack_rest(struct following *next, const struct gw_packed *w, enum gw_pack pack, enum kind kind)
{
    while (next->from != next->end) unpack_one(next, w, pack, kind);
}

/* Sees to it that `panel` (as packed) is at hand, and that `after`, if not NULL, can begin to follow it. Returns where `after` is unpacked to. */
GW_INLINE const uint8_t *begin_panel(struct scratch *s, const struct gw_packed *w, const uint8_t *panel,
                                     const uint8_t *after, enum gw_pack pack, enum kind kind)
{
    const size_t blocks = (size_t)w->k / GW_BLOCK;
    if (s->ready != panel) {
        s->under_way = false;
        s->half = 0;
        s->following = (struct following){panel, panel + blocks * w->block_bytes, s->blocks, 0, 0};
        unpack_rest(&s->following, w, pack, kind);
    }
    s->at_hand = s->blocks + (size_t)s->half * blocks * block_size(kind);
    s->half = !s->half;
    s->ready = after;
    uint8_t *other = s->blocks + (size_t)s->half * blocks * block_size(kind);
    s->following = (struct following){after, after, other, 0, 0};
    return other;
}

/* What row tile number t of `tiles` unpacks of the panel `after` (NULL: nothing). Its first two blocks are multiplied before the last tile's last ones
 * are added up: where no tile before the last one comes to them, they do not wait for their turn. */
GW_INLINE void next_share(struct scratch *s, const struct gw_packed *w, const uint8_t *after, int t, int tiles,
                          enum gw_pack pack, enum kind kind)
{
    const int blocks = w->k / GW_BLOCK, early = blocks < 2 ? blocks : 2;
    struct following *next = &s->following;
    next->share = 0;
    if (!after) return;
    if (t == 0 && blocks * (tiles - 1) / tiles < early) {
        next->end = after + (size_t)early * w->block_bytes;
        unpack_rest(next, w, pack, kind);
    }
    const uint8_t *end = after + (size_t)(blocks * (t + 1) / tiles) * w->block_bytes;
    if (end > next->end) next->end = end;
    next->share = (int)((size_t)(next->end - next->from) / w->block_bytes);
}

/* All panels by rows [row_begin, row_end). */
GW_INLINE void multiply_rows(const struct gw_gemm *g, int row_begin, int row_end, int panel_begin, int panel_end,
                             enum gw_pack pack, enum kind kind, gemm_tile_fn tile)
{
    const struct gw_packed *w = g->w;
    struct scratch *s = g->scratch;
    const int tiles = (row_end - row_begin + GEMM_TILE - 1) / GEMM_TILE;
    for (int panel = panel_begin; panel < panel_end; panel++) {
        const uint8_t *after = panel_after(g, panel, panel_begin, panel_end, row_end);
        const uint8_t *other = begin_panel(s, w, w->data + (size_t)panel * w->panel_bytes, after, pack, kind);
        for (int t = 0, row = row_begin; row < row_end; t++, row += GEMM_TILE) {
            bool last = row + GEMM_TILE >= row_end;
            int acts_row = !last ? row + GEMM_TILE : panel + 1 < panel_end ? row_begin : -1;
            next_share(s, w, after, t, tiles, pack, kind);
            s->then = last ? other : s->at_hand;
            gemm_row_tile(g, panel, row, last ? row_end - row : GEMM_TILE,
                          acts_row < 0 ? NULL : gw_act_at(g->act, acts_row, 0), NULL, NULL, tile);
            unpack_rest(&s->following, w, pack, kind);
        }
    }
}

GW_INLINE void multiply_panels(const struct gw_gemm *g, int panel_begin, int panel_end, enum gw_pack pack,
                               enum kind kind, gemm_tile_fn tile)
{
    if (g->rows < FEWEST_ROWS) {
        gw_kernels_avx512.gemm[g->w->pack](g, panel_begin, panel_end);
        return;
    }
    GW_ASSERT(g->scratch);
    check_gemm(g);
    struct scratch *s = g->scratch;
    s->under_way = false;
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles));
    for (int row = 0, end, at_once = rows_at_once(g); row < g->rows; row = end) {
        end = g->rows - row < at_once ? g->rows : row + at_once;
        multiply_rows(g, row, end, panel_begin, panel_end, pack, kind, tile);
    }
    __asm__ volatile("tilerelease" ::);
    if (g->stream) _mm_sfence();
}

/* ---- the table's entries ---------------------------------------------------------------------------------------- */

#define TILE_FN(name, pack, kind)                                                                                      \
    static void name(const struct gemm_tile *tile)                                                                     \
    {                                                                                                                  \
        tile_of(tile, pack, kind);                                                                                     \
    }
TILE_FN(tile_u4, GW_PACK_U4, PLAIN)
TILE_FN(tile_u4_min, GW_PACK_U4, MINIMA)
TILE_FN(tile_u8, GW_PACK_U8, PLAIN)
TILE_FN(tile_u8_min, GW_PACK_U8, MINIMA)
TILE_FN(tile_u6, GW_PACK_U6, HALVES)

void gw_amx_gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : 8));
    if (g->w->has_min) multiply_panels(g, panel_begin, panel_end, GW_PACK_U4, MINIMA, tile_u4_min);
    else multiply_panels(g, panel_begin, panel_end, GW_PACK_U4, PLAIN, tile_u4);
}

void gw_amx_gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : g->w->bias == 16 ? 16 : 128));
    if (g->w->has_min) multiply_panels(g, panel_begin, panel_end, GW_PACK_U8, MINIMA, tile_u8_min);
    else multiply_panels(g, panel_begin, panel_end, GW_PACK_U8, PLAIN, tile_u8);
}

void gw_amx_gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == 32);
    multiply_panels(g, panel_begin, panel_end, GW_PACK_U6, HALVES, tile_u6);
}

size_t gw_amx_scratch_bytes(const struct gw_packed *w)
{
    size_t blocks = (size_t)w->k / GW_BLOCK;
    if (w->pack < GW_PACK_U4) return 0;
    return sizeof(struct scratch) + 2 * blocks * block_size(w->pack == GW_PACK_U6 ? HALVES : PLAIN);
}
