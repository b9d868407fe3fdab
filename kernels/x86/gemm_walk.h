/* The walk over panels and row tiles that the GEMMs of x86 share; AMX has one of its own and takes parts of this. An instruction set brings its
 * 16 lanes (v16_*.h), says how many rows a tile has (GEMM_TILE, which divides GW_ACT_ROWS) and how much of the second-level cache activations may fill
 * (GEMM_ACT_BYTES), and the functions that compute a tile.
 */
#ifndef GW_KERNELS_X86_GEMM_WALK_H
#define GW_KERNELS_X86_GEMM_WALK_H

#include <string.h>

typedef float gemm_sums[GEMM_TILE * GW_PANEL]; /* of a tile, [rows][16] */

/* What a tile function gets: `rows` (1..GEMM_TILE) rows of activations from `row` on, against all blocks of one panel. Atom by atom it accumulates from
 * +0, adds what is `merges` times left of that in the tree, and writes the node that is finished, or puts the sums on the stack. All atoms in one
 * function: with a call for each, products of many atoms took a tenth longer (in slow hours: docs/results.md). */
struct gemm_tile {
    const struct gw_gemm *g;
    const uint8_t *panel; /* as packed */
    int panel_number;
    int row;
    int rows;
    float *y;                       /* node 0's */
    bool copy;                      /* nodes go there by copy_node() */
    gemm_sums *stack;               /* of partial sums; empty */
    bool alone;                     /* no other tile passes over the panel */
    const uint8_t *warm, *warm_end; /* to take along, as many bytes with each block as there are of weights */
};

/* The rows of a tile in one block of activations after the other. Only two addresses, which count up: with the number of a row added to each access
 * compilers keep an index a row, too many for the general registers, and fetch them from vector registers in the middle of the loop. */
struct tile_rows {
    const struct gw_act_block *first; /* moved: scale, sum and minus_isum begin with the tile's first row; q does not */
    const int8_t (*q)[GW_BLOCK];      /* [rows] */
};
_Static_assert(offsetof(struct gw_act_block, scale) == 0, "a moved block begins with the scale of its row");
_Static_assert(sizeof(struct gw_act_block) % GW_BLOCK == 0, "q is counted up by whole rows");

/* From block number `begin` on. */
GW_INLINE struct tile_rows tile_rows(const struct gemm_tile *tile, int begin)
{
    const struct gw_act_block *block = gw_act_at(tile->g->act, tile->row, begin);
    const int row = tile->row % GW_ACT_ROWS;
    return (struct tile_rows){(const void *)(block->scale + row), block->q + row};
}

GW_INLINE void next_block(struct tile_rows *a)
{
    a->first++;
    a->q += sizeof *a->first / sizeof *a->q;
}

/* What stands in front of a block's codes (struct gw_packed). */
enum scales { SCALES_ONLY, SCALES_MINIMA, SCALES_F16 /* and minima */ };

/* 16 scales or minima of a block, from number `at` on. */
GW_INLINE v16 block_scales(const uint8_t *block, bool f16, int at)
{
    return f16 ? v16_load_half((const uint16_t *)(const void *)block + at)
               : v16_load((const float *)(const void *)block + at);
}

typedef void (*gemm_tile_fn)(const struct gemm_tile *tile);

/* An atom program that walks off the stack or off k is a bug of the caller; checked once per call. */
static void check_gemm(const struct gw_gemm *g)
{
    _Static_assert(GW_ACT_ROWS % GEMM_TILE == 0, "a tile's activations lie together");
    GW_ASSERT(g->act->k == g->w->k);
    GW_ASSERT(g->w->has_min == (g->w->bias == 0 && g->w->pack > GW_PACK_BF16));
    int depth = 0, end = 0;
    int blocks = (g->w->k + GW_BLOCK - 1) / GW_BLOCK;
    for (int i = 0; i < g->atom_count; i++) {
        const struct gw_atom *atom = &g->atoms[i];
        GW_ASSERT(atom->block_end >= end && atom->block_end <= blocks);
        end = atom->block_end;
        depth++;
        GW_ASSERT(depth <= GW_MAX_TREE_DEPTH && atom->merges >= 0 && atom->merges < depth);
        depth -= atom->merges + (atom->node >= 0);
    }
    GW_ASSERT(depth == 0 && g->atom_count <= GW_MAX_ATOMS);
}

/* Where `row` has the outputs of `panel`, in node 0. */
static float *row_outputs(const struct gw_gemm *g, int panel, int row)
{
    return g->y + (size_t)row * g->y_row_stride + (size_t)(panel - g->y_panel) * GW_PANEL;
}

/* Copies a finished node that could not be written where it belongs: the last panel may be narrower, there may be fewer rows than a tile has, and
 * streams want whole lines. */
static void copy_node(const struct gw_gemm *g, int panel, int rows, float *y, const float *acc)
{
    int left = g->w->n - panel * GW_PANEL;
    bool stream = g->stream && left >= GW_PANEL && ((uintptr_t)y | g->y_row_stride * sizeof *y) % 64 == 0;
    for (int r = 0; r < rows; r++, y += g->y_row_stride, acc += GW_PANEL) {
        if (stream) v16_stream(y, v16_load(acc));
        else if (left >= GW_PANEL) v16_store(y, v16_load(acc));
        else v16_store_part(y, v16_load(acc), left);
    }
}

/* Where the tile's outputs lie in a node. */
GW_INLINE float *node_outputs(const struct gemm_tile *tile, int node)
{
    return tile->y + (size_t)node * tile->g->y_node_stride;
}

/* Where the sums of an atom go, and how far their rows lie apart: to its node, or on the stack, of which `top` is past the top. */
GW_INLINE float *sums_out(const struct gemm_tile *tile, const struct gw_atom *atom, gemm_sums *top, size_t *stride)
{
    bool straight = atom->node >= 0 && !tile->copy;
    *stride = straight ? tile->g->y_row_stride : GW_PANEL;
    return straight ? node_outputs(tile, atom->node) : *top;
}

/* Then they are one more on the stack, or, copied, none. */
GW_INLINE void end_atom(const struct gemm_tile *tile, const struct gw_atom *atom, gemm_sums **top)
{
    if (atom->node < 0) ++*top;
    else if (tile->copy) copy_node(tile->g, tile->panel_number, tile->rows, node_outputs(tile, atom->node), **top);
}

/* An atom's end: its sums, in registers until now, become those of the tree node that they complete. The address is counted up: of one for each row
 * compilers keep some in vector registers. */
GW_INLINE void finish_sums(const struct gemm_tile *tile, const struct gw_atom *atom, int rows, v16 *acc,
                           gemm_sums **top)
{
    for (int merge = atom->merges; merge > 0; merge--) {
        --*top;
        GW_UNROLL
        for (int r = 0; r < rows; r++) acc[r] = v16_add(v16_load(**top + r * GW_PANEL), acc[r]);
    }
    size_t stride;
    float *out = sums_out(tile, atom, *top, &stride);
    GW_UNROLL
    for (int r = 0; r < rows; r++) {
        v16_store(out, acc[r]);
        out += stride;
        __asm__("" : "+r"(out));
    }
    end_atom(tile, atom, top);
}

/* What the tile takes along: `bytes` at most of what is next, or nothing when all has been. */
static void take_warm(struct gemm_tile *tile, struct gw_warm *warm, size_t bytes)
{
    tile->warm = tile->warm_end = NULL;
    if (!warm || warm->at >= warm->count) return;
    size_t left = warm->chunk_bytes - warm->offset;
    if (bytes > left) bytes = left;
    tile->warm = warm->base + (size_t)warm->chunks[warm->at] * warm->chunk_bytes + warm->offset;
    tile->warm_end = tile->warm + bytes;
    warm->offset += bytes;
    if (warm->offset < warm->chunk_bytes) return;
    warm->offset = 0;
    warm->at++;
}

/* The lines that a row tile will write come into the cache meanwhile: a store that misses holds up those behind it, and of large batches they all miss.
 * Always inline: gcc takes a function that only prefetches for one without effects and drops its calls. */
GW_INLINE void prefetch_nodes(const struct gemm_tile *tile)
{
    const struct gw_gemm *g = tile->g;
    for (int i = 0; i < g->atom_count; i++) {
        if (g->atoms[i].node < 0) continue;
        const float *y = node_outputs(tile, g->atoms[i].node);
        for (int r = 0; r < tile->rows; r++, y += g->y_row_stride) __builtin_prefetch(y, 1, 3);
    }
}

/* Rows whose activations stay in the second-level cache while panels pass over them: a multiple of any tile. */
static int rows_at_once(const struct gw_gemm *g)
{
    size_t row_bytes = g->w->pack > GW_PACK_BF16
                           ? (size_t)(g->w->k / GW_BLOCK) * sizeof(struct gw_act_block) / GW_ACT_ROWS
                           : (size_t)g->w->k * sizeof(float);
    size_t rows = GEMM_ACT_BYTES / row_bytes / GW_ACT_ROWS * GW_ACT_ROWS;
    return rows < 2 * GW_ACT_ROWS ? 2 * GW_ACT_ROWS : rows < (size_t)g->rows ? (int)rows : g->rows;
}

/* A panel's blocks stay in the first-level cache while row tiles pass over it. Tiles do not straddle blocks of GW_ACT_ROWS rows. `fn` is a constant,
 * so that it is called without detours. */
GW_INLINE void gemm_panels(const struct gw_gemm *g, int panel_begin, int panel_end, gemm_tile_fn fn)
{
    check_gemm(g);
    _Alignas(64) gemm_sums stack[GW_MAX_TREE_DEPTH];
    struct gemm_tile tile = {.g = g, .stack = stack};
    const int at_once = rows_at_once(g);
    const size_t panel_bytes = g->w->panel_bytes;
    const uint8_t *after = g->next ? g->next->data + (size_t)g->next_panel * g->next->panel_bytes : NULL;
    for (int begin = 0; begin < g->rows; begin += at_once) {
        int end = g->rows - begin < at_once ? g->rows : begin + at_once;
        tile.alone = end - begin <= GEMM_TILE;
        for (int panel = panel_begin; panel < panel_end; panel++) {
            tile.panel = g->w->data + (size_t)panel * panel_bytes;
            tile.panel_number = panel;
            tile.copy = g->stream || (panel + 1) * GW_PANEL > g->w->n;
            tile.y = row_outputs(g, panel, begin);
            /* The first tile takes the next panel along, others what `warm` asks for; one alone has enough to do with its own panel. */
            tile.warm = tile.alone ? NULL : panel + 1 < panel_end ? tile.panel + panel_bytes : after;
            tile.warm_end = tile.warm ? tile.warm + panel_bytes : NULL;
            for (tile.row = begin; tile.row < end; tile.row += GEMM_TILE) {
                tile.rows = end - tile.row < GEMM_TILE ? end - tile.row : GEMM_TILE;
                if (tile.row > begin) take_warm(&tile, g->warm, panel_bytes);
                if (!tile.copy) prefetch_nodes(&tile);
                fn(&tile);
                tile.y += GEMM_TILE * g->y_row_stride;
            }
        }
    }
    if (g->stream) _mm_sfence();
}

#endif
