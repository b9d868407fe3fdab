/* The walk over panels, row tiles and atoms that the GEMMs of x86 share; AMX has one of its own and takes parts of this. An instruction set brings its
 * 16 lanes (v16_*.h), says how many rows a tile has (GEMM_TILE, which divides GW_ACT_ROWS) and how much of the second-level cache activations may fill
 * (GEMM_ACT_BYTES), and the functions that compute a tile.
 */
#ifndef GW_KERNELS_X86_GEMM_WALK_H
#define GW_KERNELS_X86_GEMM_WALK_H

#include <string.h>

/* What a tile function gets: `rows` (1..GEMM_TILE) rows of activations from `row` on, against blocks [begin, end) of one
 * panel. It accumulates from +0, adds what is `merges` times left of that in the tree, and writes out[rows][16]. */
struct gemm_tile {
    const struct gw_packed *w;
    const struct gw_act *act;
    const uint8_t *panel; /* as packed */
    int row;
    int rows;
    int begin;
    int end;
    int merges;
    const float (*left)[GEMM_TILE * GW_PANEL]; /* the top of the stack of partial sums, [rows][16] each */
    float *out;
    size_t out_stride;   /* of rows, in floats */
    const uint8_t *warm; /* as many bytes to take along as there are of weights, or NULL */
};

/* The rows of a tile in one block of activations after the other. Only two addresses, which count up: with the number of a row added to each access
 * compilers keep an index a row, too many for the general registers, and fetch them from vector registers in the middle of the loop. */
struct tile_rows {
    const struct gw_act_block *first; /* moved: scale, sum and minus_isum begin with the tile's first row; q does not */
    const int8_t (*q)[GW_BLOCK];      /* [rows] */
};
_Static_assert(offsetof(struct gw_act_block, scale) == 0, "a moved block begins with the scale of its row");
_Static_assert(sizeof(struct gw_act_block) % GW_BLOCK == 0, "q is counted up by whole rows");

GW_INLINE struct tile_rows tile_rows(const struct gemm_tile *tile)
{
    const struct gw_act_block *block = gw_act_at(tile->act, tile->row, tile->begin);
    const int row = tile->row % GW_ACT_ROWS;
    return (struct tile_rows){(const void *)(block->scale + row), block->q + row};
}

GW_INLINE void next_block(struct tile_rows *a)
{
    a->first++;
    a->q += sizeof *a->first / sizeof *a->q;
}

/* A tile's end: its sums, in registers until now, become those of the tree node that they complete. */
GW_INLINE void finish_tile(const struct gemm_tile *tile, int rows, v16 *acc)
{
    for (int merge = 0; merge < tile->merges; merge++) {
        GW_UNROLL
        for (int r = 0; r < rows; r++) acc[r] = v16_add(v16_load(tile->left[-merge] + r * GW_PANEL), acc[r]);
    }
    GW_UNROLL
    for (int r = 0; r < rows; r++) v16_store(tile->out + (size_t)r * tile->out_stride, acc[r]);
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

/* Where the first of a row tile's rows has the outputs of `panel`. */
static float *node_rows(const struct gw_gemm *g, int panel, int row, int node)
{
    return g->y + (size_t)node * g->y_node_stride + (size_t)row * g->y_row_stride +
           (size_t)(panel - g->y_panel) * GW_PANEL;
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

/* Where a tile's sums at the end of an atom come from and go: to `y`, or, NULL, to the top of the stack. */
GW_INLINE void aim_tile(struct gemm_tile *tile, const struct gw_gemm *g, int merges, float *y,
                        float (*stack)[GEMM_TILE * GW_PANEL], int *depth)
{
    tile->merges = merges;
    tile->left = (const float(*)[GEMM_TILE * GW_PANEL]) & stack[*depth ? *depth - 1 : 0];
    *depth -= merges;
    tile->out = y ? y : stack[*depth];
    tile->out_stride = y ? g->y_row_stride : GW_PANEL;
}

/* The next `bytes` to take along; NULL when all has been. */
static const uint8_t *take_warm(struct gw_warm *warm, size_t bytes)
{
    if (!warm || warm->at >= warm->count) return NULL;
    const uint8_t *at = warm->base + (size_t)warm->chunks[warm->at] * warm->chunk_bytes + warm->offset;
    warm->offset += bytes;
    if (warm->offset >= warm->chunk_bytes) {
        warm->offset = 0;
        warm->at++;
    }
    return at;
}

/* The lines that a row tile will write come into the cache meanwhile: a store that misses holds up those behind it, and of large batches they all miss.
 * Always inline: gcc takes a function that only prefetches for one without effects and drops its calls. */
GW_INLINE void prefetch_nodes(const struct gw_gemm *g, int panel, int row, int rows)
{
    for (int i = 0; i < g->atom_count; i++) {
        if (g->atoms[i].node < 0) continue;
        const float *y = node_rows(g, panel, row, g->atoms[i].node);
        for (int r = 0; r < rows; r++) __builtin_prefetch(y + (size_t)r * g->y_row_stride, 1, 3);
    }
}

/* All atoms of one row tile by one panel, which take the panel `next`, or what `warm` asks for, along. */
static void gemm_row_tile(const struct gw_gemm *g, int panel, int row, int rows, const uint8_t *next,
                          struct gw_warm *warm, gemm_tile_fn fn)
{
    _Alignas(64) float stack[GW_MAX_TREE_DEPTH][GEMM_TILE * GW_PANEL];
    struct gemm_tile tile = {.w = g->w, .act = g->act, .row = row, .rows = rows};
    tile.panel = g->w->data + (size_t)panel * g->w->panel_bytes;
    bool copy = g->stream || (panel + 1) * GW_PANEL > g->w->n;
    int depth = 0;
    if (!copy) prefetch_nodes(g, panel, row, rows);
    for (int i = 0; i < g->atom_count; i++, tile.begin = tile.end) {
        const struct gw_atom *atom = &g->atoms[i];
        float *y = atom->node >= 0 ? node_rows(g, panel, row, atom->node) : NULL;
        tile.end = atom->block_end;
        aim_tile(&tile, g, atom->merges, y && !copy ? y : NULL, stack, &depth);
        tile.warm = next ? next + (size_t)tile.begin * g->w->block_bytes
                         : take_warm(warm, (size_t)(tile.end - tile.begin) * g->w->block_bytes);
        fn(&tile);
        if (y && copy) copy_node(g, panel, rows, y, stack[depth]);
        if (!y) depth++;
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

/* A panel's blocks stay in the first-level cache while row tiles pass over it. Tiles do not straddle blocks of GW_ACT_ROWS rows. */
static inline void gemm_panels(const struct gw_gemm *g, int panel_begin, int panel_end, gemm_tile_fn fn)
{
    check_gemm(g);
    int at_once = rows_at_once(g);
    const uint8_t *after = g->next ? g->next->data + (size_t)g->next_panel * g->next->panel_bytes : NULL;
    for (int begin = 0; begin < g->rows; begin += at_once) {
        int end = g->rows - begin < at_once ? g->rows : begin + at_once;
        for (int panel = panel_begin; panel < panel_end; panel++) {
            const uint8_t *next = panel + 1 < panel_end ? g->w->data + (size_t)(panel + 1) * g->w->panel_bytes : after;
            if (end - begin <= GEMM_TILE) next = NULL; /* one tile has enough to do with its own panel */
            for (int row = begin; row < end; row += GEMM_TILE, next = NULL)
                gemm_row_tile(g, panel, row, end - row < GEMM_TILE ? end - row : GEMM_TILE, next,
                              row == begin ? NULL : g->warm, fn);
        }
    }
    if (g->stream) _mm_sfence();
}

#endif
