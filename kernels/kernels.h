/* The kernel table: every arithmetic operation of the forward pass, and the contract that makes it exact.
 *
 * kernels/ref fills the whole table in plain C that reads like the contract. kernels/x86 overwrites entries that AVX2 or
 * AVX-512 (VNNI) and AMX do better; kernels/cuda will stand behind engine/backend.h. Every CPU variant gives the SAME BITS as ref
 * for every input without NaN; tests/unit/test_kernels.c compares them exactly over odd sizes.
 *
 * Contract, in float32 with round-to-nearest-even, denormals kept, no contraction beyond the fmaf named here:
 *  - Row independence: a row's result never depends on other rows, their number, or how work is split over threads.
 *  - 16 lanes: a sum over i ("lane sum") keeps 16 accumulators, element i goes to lane i%16, ascending i; lanes then fold
 *    as a tree: s[j]+s[j+8], then +4, +2, +1.
 *  - exp is gw_expf (kernels/elementary.h): the same fmaf polynomial on every path, exp(0) == 1 exactly.
 *  - Quantized GEMM, activations in int8 blocks of 32 (struct gw_act), weights in blocks of 32 along k:
 *        acc = fmaf((float)dot, scale_w * scale_a, acc)             blocks ascending, acc starts at +0
 *        acc = fmaf(min_w, sum_a, acc)                              right after, where the type has a min term
 *    `dot` is the exact integer sum over the block of (q_w - bias) * q_a; for Q6_K it is
 *    half_scale0 * dot(first 16) + half_scale1 * dot(last 16), exact in int32. The product scale_w * scale_a is rounded once.
 *  - Float GEMM: acc = fmaf(a[k], w[k], acc), k ascending, acc starts at +0.
 *  - Atoms: the k range is cut into atoms; each atom has its own accumulator from +0, and finished atoms are added by the
 *    fixed tree of engine/tree.h: after atom i, `merges` times {right = pop, left = pop, push left + right}.
 *  - Attention: see struct gw_attention.
 */
#ifndef GW_KERNELS_KERNELS_H
#define GW_KERNELS_KERNELS_H

#include "base/error.h"
#include "kernels/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GW_BLOCK 32       /* elements of k that share a scale, for weights and activations */
#define GW_PANEL 16       /* outputs (weight rows) per packed panel */
#define GW_PAGE_TOKENS 32 /* tokens of one KV page, and the key block of attention's online softmax */
#define GW_MAX_ATOMS 256  /* of a product */
#define GW_MAX_TREE_DEPTH 16

/* ---- packed weights -------------------------------------------------------------------------------------------- */

/* How a panel stores its quants. */
enum gw_pack {
    GW_PACK_F32, /* [k][16] float */
    GW_PACK_F16, /* [k][16] half */
    GW_PACK_BF16,
    GW_PACK_U4, /* 4-bit codes: Q4_0 (bias 8), Q4_1, Q4_K */
    GW_PACK_U8, /* 8-bit codes: Q5_0 (bias 16), Q5_1, Q5_K, Q8_0 (bias 128) */
    GW_PACK_U6, /* 8-bit codes with two int8 half scales a block: Q6_K (bias 32) */
    GW_PACK_COUNT
};

/* A matrix of n outputs by k inputs, in panels of 16 outputs (rows past n are zero-filled).
 * A panel of a quantized pack is a run of k/32 blocks, each:
 *    scale[16]; min[16] (has_min only), both float, or half where the file has them so (scales_f16); int8_t half_scale[2][16] (U6 only);
 *    codes: U4: uint8 [4][16][4]: byte (g, n, j) holds element k = 4g+j of output n in its low nibble, 16+4g+j in its high one
 *           U8, U6: uint8 [8][16][4]: byte (g, n, j) is element k = 4g+j of output n
 *    (so one 64-byte load is 4 consecutive k of 16 outputs, the operand shape of an int8 dot-product instruction).
 * `scale` and `min` are the exact values of the file's scales (d, d*sc; m, -dmin*m). */
struct gw_packed {
    enum gw_pack pack;
    enum gw_type type; /* what it was packed from */
    bool has_min;
    bool scales_f16; /* Q4_1 and Q5_1: a block then fills whole cache lines, and a sixth or a tenth fewer */
    int bias;        /* subtracted from each code */
    int n;           /* outputs */
    int k;           /* inputs; a multiple of GW_BLOCK for quantized packs */
    int panels;
    size_t block_bytes; /* of one 32-wide block of one panel; for float packs 32 * 16 * element size */
    size_t panel_bytes;
    uint8_t *data; /* [panels][panel_bytes], 64-byte aligned; owned by whoever allocated it */
};

/* Fills *packed's geometry for n x k of `type` (data stays NULL). GW_ERR_UNSUPPORTED when k does not fit the type. */
GW_CHECK gw_err gw_packed_init(struct gw_packed *packed, enum gw_type type, int n, int k);
size_t gw_packed_bytes(const struct gw_packed *packed);
/* Packs panels [panel_begin, panel_end) from GGUF rows: row r starts at src + r * row_bytes and holds the whole file row;
 * inputs [k_begin, k_begin + packed->k) of it are taken. k_begin is a multiple of GW_BLOCK (for K-quants too: their
 * sub-blocks of 32 stand alone after packing). Reads nothing outside those rows' row_bytes (asserted); never rows >= n. */
void gw_pack_panels(const struct gw_packed *packed, const uint8_t *src, size_t row_bytes, int k_begin, int panel_begin,
                    int panel_end);
/* Copies the n x k block at (from_n, from_k) of one packed matrix to (to_n, to_k) of another of the same type. It begins and ends where both
 * can be cut, or ends with the last output of both. */
void gw_packed_copy(const struct gw_packed *to, int to_n, int to_k, const struct gw_packed *from, int from_n,
                    int from_k, int n, int k);
/* Can such a block begin, or end, at (n, k)? Whole panels and whole blocks only. */
bool gw_packed_can_cut(const struct gw_packed *packed, int n, int k);
/* Element (n, k) as float32: what the packed form stands for (used by tests and by naive checks). */
float gw_packed_get(const struct gw_packed *packed, int n, int k);

/* ---- activations ----------------------------------------------------------------------------------------------- */

#define GW_ACT_ROWS 16 /* rows whose blocks lie together: the largest tile of GEMM */

/* 16 rows of one block of 32, side by side, so that a tile of rows reads one stretch of memory. Of each row:
 *    amax = max |x| over the block; scale = amax / 127; q = rint(x * (127 / amax)) (0 when amax is below 1e-30 or not finite:
 *    a NaN or infinity then shows in scale, and so in every output of the row)
 *    minus_isum[0] = -(sum of q); minus_isum[1] the same of the last 16; sum = scale * (float)(sum of q) */
struct gw_act_block {
    float scale[GW_ACT_ROWS];
    float sum[GW_ACT_ROWS];
    int32_t minus_isum[2][GW_ACT_ROWS];
    int8_t q[GW_ACT_ROWS][GW_BLOCK];
};

/* Rows of activations in the form GEMM reads: float32 and, when quantized, int8 blocks of 32. */
struct gw_act {
    int k;                       /* row length; a multiple of GW_BLOCK when quantized */
    const float *x;              /* [row][k] float32 (float packs) */
    struct gw_act_block *blocks; /* [row/16][k/32], 64-byte aligned */
};

/* The same activations from `row` on, a multiple of GW_ACT_ROWS. */
static inline struct gw_act gw_act_from(const struct gw_act *act, int row)
{
    return (struct gw_act){.k = act->k,
                           .x = act->x ? act->x + (size_t)row * (size_t)act->k : NULL,
                           .blocks = act->blocks + (size_t)(row / GW_ACT_ROWS) * (size_t)(act->k / GW_BLOCK)};
}

/* The block of rows that holds `row`, which is number row % GW_ACT_ROWS in it. */
static inline struct gw_act_block *gw_act_at(const struct gw_act *act, int row, int block)
{
    return act->blocks + (size_t)(row / GW_ACT_ROWS) * (size_t)(act->k / GW_BLOCK) + block;
}

/* Bytes of the int8 form of rows x k (k a multiple of GW_BLOCK), which begin on a boundary of 64. */
size_t gw_act_bytes(int rows, int k);
/* Memory for the int8 form of rows x k (k a multiple of GW_BLOCK); x stays NULL. gw_act_free() also takes a zeroed struct. */
void gw_act_init(struct gw_act *act, int rows, int k);
void gw_act_free(struct gw_act *act);

/* One atom of a GEMM's k range; see "Atoms" above. */
struct gw_atom {
    int block_end; /* end of this atom in blocks of 32, exclusive (begin = previous atom's end, first 0) */
    int merges;    /* tree merges after it */
    int node;      /* >= 0: then the top of the stack is finished tree node `node`: pop and write it; -1: none */
};

/* Memory that is read soon after a product, taken along into the caches while the product computes: arithmetic and memory are busy at the
 * same time then. Chunk i lies at base + chunks[i] * chunk_bytes. Only a hint, and belongs to one thread, which writes it all the time: it has a
 * cache line for itself. */
struct gw_warm {
    _Alignas(64) const uint8_t *base;
    const int32_t *chunks; /* [count] */
    int count;
    size_t chunk_bytes;
    int at; /* how far it is: chunk, byte of it */
    size_t offset;
};

/* y[node][row][n]: rows x panels of one matrix product. */
struct gw_gemm {
    const struct gw_packed *w;
    const struct gw_act *act;
    int rows;
    const struct gw_atom *atoms;
    int atom_count;
    float *y;
    int y_panel;          /* y begins with the outputs of this panel */
    size_t y_row_stride;  /* in floats */
    size_t y_node_stride; /* in floats */
    bool stream; /* y is too large to be read from the caches afterwards: it is written past them. Only a hint */
    struct gw_warm *warm; /* or NULL */
    /* What this thread multiplies next, and which of its panels first, or NULL: it may be taken along. */
    const struct gw_packed *next;
    int next_panel;
    /* The calling thread's own, on a cache line's boundary: gw_gemm_scratch_bytes(), or NULL where that is 0. Between products it keeps what has
     * been taken along: gw_gemm_forget() before the first product, and after weights have changed. */
    void *scratch;
};

static inline void gw_gemm_forget(void *scratch)
{
    if (scratch) *(const uint8_t **)scratch = NULL;
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

/* KV page of one layer and one kv head, in half precision:
 *    K: uint16 [2][head_dim][16]   (key j of the page is column j%16 of part j/16: one vector is 16 keys of one dim)
 *    V: uint16 [32][head_dim]
 * K first, V right behind it. */
static inline size_t gw_page_halves(int head_dim)
{
    return (size_t)2 * GW_PAGE_TOKENS * (size_t)head_dim;
}

/* Queries that share a page's way through the caches. With `own` (below), a kv head may have at most so many query heads. */
#define GW_ATTENTION_QUERIES 48

/* Causal attention of `rows` consecutive query positions pos0.. of one sequence, for the `group` query heads that share
 * one kv head. For a query at position p, pages b = 0 .. p/32 ascending, visible keys j = 0 .. min(31, p - 32b):
 *    s[j] = dot(q * scale, K[j])        fmaf over dim ascending from +0; q * scale rounded first
 *    m' = max(m, max s); c = exp(m - m') (first page: m = -inf, c = 0 and o = l = 0 stay 0); e[j] = exp(s[j] - m')
 *    l lanes: l[j%16] = l[j%16] * c for all 16, then l[j%16] += e[j] ascending
 *    o[d] = o[d] * c, then o[d] = fmaf(e[j], V[j][d], o[d]), j ascending
 *    m = m'
 * At the end out[d] = o[d] / lane_fold(l). Keys that are not visible are never read into the sums. */
struct gw_attention {
    int head_dim; /* even, <= 256 */
    int group;
    int rows;
    int pos0;
    float scale;
    const uint16_t *const *pages; /* [page] -> this layer's and kv head's page; enough for pos0 + rows tokens */
    const float *q;               /* [row][group][head_dim] with row stride q_stride floats */
    size_t q_stride;
    float *out; /* same shape, stride out_stride; may be q, whose rows are read before they are written */
    size_t out_stride;
    const uint16_t *next; /* a page that will be read after these, or NULL; only a hint */
    /* NULL, or [rows]: rows are of as many sequences, which have their first pages in common: `pages` are these `shared` ones, full of keys that all of
     * them see, and pos0 means nothing. They are read once for all rows. */
    const struct gw_attention_own *own;
    int shared;
};

/* A row of a sequence that shares its first pages. */
struct gw_attention_own {
    int pos;
    const uint16_t *const *pages; /* of page number `shared` on */
};

static inline int gw_attention_pos(const struct gw_attention *a, int row)
{
    return a->own ? a->own[row].pos : a->pos0 + row;
}

/* How rotary embedding pairs dimensions: ggml "norm" pairs (2i, 2i+1); "neox" pairs (i, i + dims/2). */
enum gw_rope_style { GW_ROPE_NORM, GW_ROPE_NEOX };

/* ---- the table ------------------------------------------------------------------------------------------------- */

struct gw_kernels {
    const char *name; /* "ref", "avx2", "avx512", "amx" */
    /* Writes blocks [block_begin, block_end) of rows [row_begin, row_end) of act's int8 form; x is where the first of these rows has the
     * first of these blocks, the next row lies x_stride floats further. */
    void (*quantize)(struct gw_act *act, const float *x, size_t x_stride, int row_begin, int row_end, int block_begin,
                     int block_end);
    /* Computes panels [panel_begin, panel_end) of g for all rows. Index by w->pack. */
    void (*gemm[GW_PACK_COUNT])(const struct gw_gemm *g, int panel_begin, int panel_end);
    size_t (*gemm_scratch_bytes)(const struct gw_packed *w); /* or NULL, where none is needed */
    int group_rows; /* so many rows repay a thread's way through all panels for itself */
    /* y = (x * (1 / sqrt(lane_sum(x*x by fmaf) / n + eps))) * w, one row of n floats; y may be x. */
    void (*rmsnorm)(const float *x, const float *w, int n, float eps, float *y);
    /* Rotates `heads` heads of head_dim floats in place; the first 2*pairs dims by cos/sin[pair]:
     *    a' = fmaf(a, cos, -(b * sin)); b' = fmaf(a, sin, b * cos)     (the inner product rounded first) */
    void (*rope)(float *x, int heads, int head_dim, int pairs, const float *cosine, const float *sine,
                 enum gw_rope_style style);
    /* Writes one token's key and value (head_dim floats each) at slot (0..31) of a page, rounded to half. */
    void (*kv_store)(uint16_t *page, int head_dim, int slot, const float *key, const float *value);
    void (*attention)(const struct gw_attention *a);
    /* y[i] = (g[i] / (1 + exp(-g[i]))) * u[i]; y may be g. */
    void (*swiglu)(const float *g, const float *u, int n, float *y);
    /* y[i] = y[i] + x[i] */
    void (*add)(float *y, const float *x, int n);
    /* Index of the largest element, the lowest index among equals; NaN is never chosen (index 0 if all are). */
    int (*argmax)(const float *x, int n);
    /* Weights for sampling: w[i] = exp(x[i] * inv_t - max_scaled); chunk_sum[c] = lane sum of w over chunk c of 64.
     * n need not be a multiple of 64; w may be x. */
    void (*exp_chunks)(const float *x, int n, float inv_t, float max_scaled, float *w, float *chunk_sum);

    /* For measuring (`godwit bench --kernels`): as many int8 dots in registers as the instruction set can do, `rounds` times; returns the
     * multiplications and additions done. */
    int64_t (*int8_dots)(int64_t rounds);
    /* The same of float32 multiply-adds. */
    int64_t (*float_fmas)(int64_t rounds);
    /* Reads memory (a multiple of 128 bytes) and returns something that depends on all of it. */
    uint64_t (*read_bytes)(const void *memory, size_t bytes);
};

#define GW_SUM_CHUNK 64

/* Bytes of struct gw_gemm's scratch for products with w. */
static inline size_t gw_gemm_scratch_bytes(const struct gw_kernels *kernels, const struct gw_packed *w)
{
    return kernels->gemm_scratch_bytes ? kernels->gemm_scratch_bytes(w) : 0;
}

/* The best table for this CPU, or the one GODWIT_KERNELS names (ref, avx2, avx512).
 * GW_ERR_UNSUPPORTED when the forced one cannot run here. The table is static. */
GW_CHECK gw_err gw_kernels_get(const struct gw_kernels **kernels);
/* By name; GW_ERR_UNSUPPORTED / GW_ERR_USAGE. */
GW_CHECK gw_err gw_kernels_by_name(const char *name, const struct gw_kernels **kernels);

#endif
