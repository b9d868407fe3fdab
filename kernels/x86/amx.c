/* AMX: int8 GEMM tiles of 16 rows by 16 outputs. Everything else of the table is AVX-512's, as are products of few rows.
 *
 * A tile instruction multiplies 16 rows of activations by a block of 32 of 16 outputs and leaves the 256 dots, exact integers, in a tile register.
 * The rest is what the contract asks for, block by block, in vector registers: the tile is stored, and each row of dots is scaled and added to
 * the row's 16 sums. The parts of a block lie in different units of the CPU and overlap: while the dots of one are scaled, those of the next are
 * stored, and those of the one behind are multiplied. One loop (multiply_rows) takes all blocks of all row tiles and panels in turn, so that nothing
 * of this stops where a tile or a panel ends: called tile by tile it took a tenth longer with 18 blocks a tile. A panel is unpacked once for all
 * rows, in between the blocks of the panel before it: alone it would wait for memory, and what has just been stored is not there for a tile load.
 *
 * What limits it (measured on the CPU of docs/results.md, With AMX): for some 300 cycles after each tile instruction, multiplications, fused ones
 * and conversions start once a cycle instead of twice; additions and logic do not, but storing a tile takes 16 of their turns. Two or three multiplications of
 * the contract are left for each 16 dots, so all else here is done by other means: integers of less than 2^22 become floats by two additions (as_floats).
 */
#include "kernels/x86/v16_avx512.h"

#define GEMM_TILE 16
#define GEMM_ACT_BYTES (1 << 20) /* CPUs with AMX have 2 MiB a core */

#include "kernels/x86/gemm_walk.h"

/* Fewer are AVX-512's: a tile costs the same for any number of rows, and blocks are multiplied two ahead of the sums, beyond a panel's end. */
enum { FEWEST_ROWS = 9, FEWEST_BLOCKS = 4 };

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

/* A thread's scratch: two panels in turns, and dots under way. */
struct scratch {
    const uint8_t *
        ready; /* the panel, as packed, that has been unpacked for the next turn; first, since gw_gemm_forget() makes it NULL */
    int half; /* of `blocks`, where that lies */
    _Alignas(64) struct {
        struct dots dots, last;    /* last: of HALVES alone, whose dots are those of the first half */
    } stored[2];                   /* of blocks that are even and odd, counted through the whole loop */
    _Alignas(64) uint8_t blocks[]; /* struct block [2][k/32] */
};

/* Where the loop stands: blocks that are added up, and those that are multiplied, two ahead of them. */
struct position {
    const struct gw_act_block *acts, *acts_ahead;
    const uint8_t *block, *block_ahead;
};

/* The panel that follows the one at hand, which is unpacked meanwhile: a block each `tiles` blocks of the one at hand makes a panel of a panel. */
struct following {
    const uint8_t *from, *end; /* equal: there is nothing to unpack */
    uint8_t *to;
    int wait; /* so many blocks at hand until the next one is due */
};

/* What is done at an atom's end: the same for all tiles. */
struct ending {
    int blocks; /* of the atom */
    int merges; /* sums on the stack that are added, from `left` downwards */
    const float *left;
    float *out;   /* on the stack; also where a node waits to be copied */
    bool is_node; /* they go to y, */
    size_t node;  /* so many floats from the tile's place in the first node */
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

static const struct tile_config tile_registers = {
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
    enum { AHEAD = 6 }; /* in blocks: what comes from memory takes as long as several blocks of one tile */
    const __m512i nibble = _mm512_set1_epi8(15), bias = _mm512_set1_epi8((char)w->bias);
    const size_t code_bytes = pack == GW_PACK_U4 ? 256 : 512, code_offset = w->block_bytes - code_bytes;
    struct block *to = (struct block *)block;
    for (size_t line = 0; line < w->block_bytes; line += 64)
        _mm_prefetch((const char *)(from + AHEAD * w->block_bytes + line), _MM_HINT_T0);
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

GW_INLINE uint8_t *half_of(struct scratch *s, int half, const struct gw_packed *w, enum kind kind)
{
    return s->blocks + (size_t)half * (size_t)(w->k / GW_BLOCK) * block_size(kind);
}

GW_INLINE void unpack_until(struct following *next, const uint8_t *end, const struct gw_packed *w, enum gw_pack pack,
                            enum kind kind)
{
    while (next->from < end) unpack_one(next, w, pack, kind);
}

/* The first blocks of the panel that follows, which are multiplied before the last ones of the panel at hand are added up. */
GW_INLINE void unpack_first(struct following *next, const struct gw_packed *w, enum gw_pack pack, enum kind kind)
{
    if (next->end) unpack_until(next, next->end - (size_t)(w->k / GW_BLOCK - 2) * w->block_bytes, w, pack, kind);
}

/* A panel, as packed, that is to be unpacked to `half`; NULL: none. */
GW_INLINE struct following begin_unpacking(struct scratch *s, const struct gw_packed *w, const uint8_t *panel, int half,
                                           int tiles, enum kind kind)
{
    const uint8_t *end = panel ? panel + (size_t)(w->k / GW_BLOCK) * w->block_bytes : NULL;
    return (struct following){panel, end, half_of(s, half, w, kind), tiles};
}

/* Sees to it that `panel`, as packed, is unpacked. */
GW_INLINE void make_ready(struct scratch *s, const struct gw_packed *w, const uint8_t *panel, enum gw_pack pack,
                          enum kind kind)
{
    if (s->ready == panel) return;
    s->half = 0;
    struct following all = begin_unpacking(s, w, panel, 0, 0, kind);
    unpack_until(&all, all.end, w, pack, kind);
}

/* The panel that was unpacked last is at hand now: `after` (NULL: none), as packed, takes the other half. */
GW_INLINE struct following follow(struct scratch *s, const struct gw_packed *w, const uint8_t *after, int tiles,
                                  enum kind kind)
{
    s->ready = after;
    s->half = !s->half;
    return begin_unpacking(s, w, after, s->half, tiles, kind);
}

GW_INLINE void unpack_due(struct following *next, const struct gw_packed *w, int tiles, enum gw_pack pack,
                          enum kind kind)
{
    if (--next->wait > 0) return;
    next->wait = tiles;
    if (next->from != next->end) unpack_one(next, w, pack, kind);
}

GW_INLINE void step(__m512 *acc, struct scratch *s, struct position *p, enum kind kind, bool odd)
{
    multiply(p->acts_ahead, p->block_ahead, kind, odd);
    store(s, kind, !odd);
    add_block(acc, s, p->acts, p->block, kind, odd);
    p->acts++; /* the next tile's stand right behind a tile's */
    p->acts_ahead++;
    p->block += block_size(kind);
    p->block_ahead += block_size(kind);
}

/* As many steps, while the panel that follows is unpacked: one of its blocks each `tiles` steps, which is in time. `turn`: the first one is odd. */
GW_INLINE void take_steps(__m512 *acc, struct scratch *s, struct position *p, int count, bool *turn,
                          struct following *next, const struct gw_packed *w, int tiles, enum gw_pack pack,
                          enum kind kind)
{
    if (count > 0 && *turn) {
        step(acc, s, p, kind, true);
        *turn = false;
        count--;
    }
    for (; count >= 2; count -= 2) {
        /* Compilers would keep pairs of addresses in vector registers, where they wait behind multiplications. */
        __asm__("" : "+r"(p->acts), "+r"(p->acts_ahead), "+r"(p->block), "+r"(p->block_ahead));
        step(acc, s, p, kind, false);
        unpack_due(next, w, tiles, pack, kind);
        step(acc, s, p, kind, true);
        unpack_due(next, w, tiles, pack, kind);
    }
    if (count > 0) {
        step(acc, s, p, kind, false);
        *turn = true;
    }
}

static void plan_endings(const struct gw_gemm *g, float (*stack)[GEMM_TILE * GW_PANEL], struct ending *endings)
{
    for (int i = 0, depth = 0, begin = 0; i < g->atom_count; i++) {
        const struct gw_atom *atom = &g->atoms[i];
        bool is_node = atom->node >= 0;
        endings[i] = (struct ending){.blocks = atom->block_end - begin,
                                     .merges = atom->merges,
                                     .left = stack[depth ? depth - 1 : 0],
                                     .is_node = is_node};
        depth -= atom->merges;
        endings[i].out = stack[depth];
        endings[i].node = is_node ? (size_t)atom->node * g->y_node_stride : 0;
        depth += !is_node;
        begin = atom->block_end;
    }
}

/* An atom's end: its sums go to y, or to the stack, where another atom is added to them or from where they are copied. Addresses are counted up: one
 * for each row would be too many, and those that compilers keep in vector registers come back behind multiplications. */
GW_INLINE void finish_atom(const struct gw_gemm *g, const struct ending *end, int panel, int row, int row_end,
                           __m512 *acc)
{
    const int rows = row_end - row < GEMM_TILE ? row_end - row : GEMM_TILE;
    const bool copy = g->stream || (panel + 1) * GW_PANEL > g->w->n || rows < GEMM_TILE;
    const float *left = end->left;
    float *y = end->is_node ? row_outputs(g, panel, row) + end->node : NULL, *out = y && !copy ? y : end->out;
    size_t stride = y && !copy ? g->y_row_stride : GW_PANEL;
    for (int merge = end->merges; merge > 0; merge--, left -= GEMM_TILE * GW_PANEL) {
        GW_UNROLL
        for (int r = 0; r < GEMM_TILE; r++) acc[r] = _mm512_add_ps(_mm512_load_ps(left + r * GW_PANEL), acc[r]);
    }
    GW_UNROLL
    for (int r = 0; r < GEMM_TILE; r++) {
        _mm512_storeu_ps(out, acc[r]);
        out += stride;
        __asm__("" : "+r"(out));
        acc[r] = _mm512_setzero_ps();
    }
    if (y && copy) copy_node(g, panel, rows, y, end->out);
}

/* All panels by rows [row_begin, row_end). */
GW_INLINE void multiply_rows(const struct gw_gemm *g, int row_begin, int row_end, int panel_begin, int panel_end,
                             enum gw_pack pack, enum kind kind)
{
    _Alignas(64) float stack[GW_MAX_TREE_DEPTH][GEMM_TILE * GW_PANEL];
    const struct gw_packed *w = g->w;
    struct scratch *s = g->scratch;
    const int blocks = w->k / GW_BLOCK, tiles = (row_end - row_begin + GEMM_TILE - 1) / GEMM_TILE;
    const struct gw_act_block *first = gw_act_at(g->act, row_begin, 0);
    struct ending endings[GW_MAX_ATOMS];
    int at_panel = panel_begin, row = row_begin, atom = 0;
    plan_endings(g, stack, endings);
    __m512 acc[GEMM_TILE];
    GW_UNROLL
    for (int r = 0; r < GEMM_TILE; r++) acc[r] = _mm512_setzero_ps();
    make_ready(s, w, w->data + (size_t)panel_begin * w->panel_bytes, pack, kind);
    const uint8_t *panel = half_of(s, s->half, w, kind), *panel_ahead = panel;
    struct following next = follow(s, w, panel_after(g, panel_begin, panel_begin, panel_end, row_end), tiles, kind);
    if (tiles == 1) unpack_first(&next, w, pack, kind);
    struct position p = {first, first + 2, panel, panel + 2 * block_size(kind)};
    multiply(first, panel, kind, false);
    multiply(first + 1, panel + block_size(kind), kind, true);
    store(s, kind, false);
    int left = endings[0].blocks, left_ahead = blocks - 2, tiles_ahead = tiles;
    for (bool turn = false;;) {
        const int count = left < left_ahead ? left : left_ahead;
        take_steps(acc, s, &p, count, &turn, &next, w, tiles, pack, kind);
        left -= count;
        left_ahead -= count;
        if (left_ahead == 0) {
            left_ahead = blocks;
            if (--tiles_ahead == 0) {
                tiles_ahead = tiles;
                p.acts_ahead = first;
                panel_ahead = half_of(s, s->half, w, kind); /* past the last panel: multiplied in vain */
            }
            p.block_ahead = panel_ahead;
        }
        while (left == 0) { /* an atom may be empty */
            finish_atom(g, &endings[atom], at_panel, row, row_end, acc);
            if (++atom == g->atom_count) {
                atom = 0;
                row += GEMM_TILE;
                if (row >= row_end) {
                    unpack_until(&next, next.end, w, pack, kind);
                    if (++at_panel == panel_end) return;
                    row = row_begin;
                    p.acts = first;
                    panel = half_of(s, s->half, w, kind);
                    next = follow(s, w, panel_after(g, at_panel, panel_begin, panel_end, row_end), tiles, kind);
                }
                if (row + GEMM_TILE >= row_end) unpack_first(&next, w, pack, kind);
                p.block = panel;
            }
            left = endings[atom].blocks;
        }
    }
}

GW_INLINE void multiply_panels(const struct gw_gemm *g, int panel_begin, int panel_end, enum gw_pack pack,
                               enum kind kind)
{
    if (g->rows < FEWEST_ROWS || g->w->k < FEWEST_BLOCKS * GW_BLOCK) {
        gw_kernels_avx512.gemm[g->w->pack](g, panel_begin, panel_end);
        return;
    }
    GW_ASSERT(g->scratch);
    check_gemm(g);
    if (panel_begin >= panel_end) return;
    __asm__ volatile("ldtilecfg %0" ::"m"(tile_registers));
    for (int row = 0, end, at_once = rows_at_once(g); row < g->rows; row = end) {
        end = g->rows - row < at_once ? g->rows : row + at_once;
        multiply_rows(g, row, end, panel_begin, panel_end, pack, kind);
    }
    __asm__ volatile("tilerelease" ::);
    if (g->stream) _mm_sfence();
}

/* ---- the table's entries ---------------------------------------------------------------------------------------- */

void gw_amx_gemm_u4(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : 8));
    if (g->w->has_min) multiply_panels(g, panel_begin, panel_end, GW_PACK_U4, MINIMA);
    else multiply_panels(g, panel_begin, panel_end, GW_PACK_U4, PLAIN);
}

void gw_amx_gemm_u8(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == (g->w->has_min ? 0 : g->w->bias == 16 ? 16 : 128));
    if (g->w->has_min) multiply_panels(g, panel_begin, panel_end, GW_PACK_U8, MINIMA);
    else multiply_panels(g, panel_begin, panel_end, GW_PACK_U8, PLAIN);
}

void gw_amx_gemm_u6(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->w->bias == 32);
    multiply_panels(g, panel_begin, panel_end, GW_PACK_U6, HALVES);
}

size_t gw_amx_scratch_bytes(const struct gw_packed *w)
{
    size_t blocks = (size_t)w->k / GW_BLOCK;
    if (w->pack < GW_PACK_U4) return 0;
    return sizeof(struct scratch) + 2 * blocks * block_size(w->pack == GW_PACK_U6 ? HALVES : PLAIN);
}
