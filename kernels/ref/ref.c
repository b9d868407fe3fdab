/* The whole kernel table in plain scalar C: the contract of kernels/kernels.h, written down as code.
 *
 * Slow on purpose where speed would cost clarity; the vector variants are compared with it bit by bit. It is built for
 * the baseline instruction set, so fmaf may be a library call: it is the IEEE operation all the same.
 */
#include "kernels/ref/ref.h"

#include "kernels/elementary.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define LANES 16

/* s[j] + s[j+8], then +4, +2, +1. */
static float lane_fold(float *s)
{
    for (int step = LANES / 2; step >= 1; step /= 2)
        for (int j = 0; j < step; j++) s[j] = s[j] + s[j + step];
    return s[0];
}

/* ---- quantization ---------------------------------------------------------------------------------------------- */

/* max |x| by bit pattern, so that a NaN wins and shows in the scale instead of vanishing. */
static float block_amax(const float *x)
{
    uint32_t largest = 0;
    for (int i = 0; i < GW_BLOCK; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float amax;
    memcpy(&amax, &largest, sizeof amax);
    return amax;
}

static void quantize_block(const float *x, struct gw_act_block *block, int row)
{
    float amax = block_amax(x);
    bool usable = amax >= 1e-30f && amax <= FLT_MAX;
    float inverse = usable ? 127.0f / amax : 0;
    int32_t isum[2] = {0};
    for (int i = 0; i < GW_BLOCK; i++) {
        int8_t q = usable ? (int8_t)rintf(x[i] * inverse) : 0;
        block->q[row][i] = q;
        isum[i / 16] += q;
    }
    block->minus_isum[0][row] = -(isum[0] + isum[1]);
    block->minus_isum[1][row] = -isum[1];
    block->scale[row] = amax / 127.0f;
    block->sum[row] = block->scale[row] * (float)(isum[0] + isum[1]);
}

static void quantize(struct gw_act *act, const float *x, size_t x_stride, int row_begin, int row_end, int block_begin,
                     int block_end)
{
    for (int row = row_begin; row < row_end; row++, x += x_stride)
        for (int b = block_begin; b < block_end; b++)
            quantize_block(x + (size_t)(b - block_begin) * GW_BLOCK, gw_act_at(act, row, b), row % GW_ACT_ROWS);
}

/* ---- GEMM ------------------------------------------------------------------------------------------------------- */

#define ROWS 32 /* rows that share a block's unpacked form: for speed alone */

/* One packed block of 32 by 16 outputs, taken apart. */
struct block {
    float scale[GW_PANEL];
    float min[GW_PANEL];           /* 0 without a min term */
    const int8_t *half_scale;      /* [2][16], U6 only */
    int32_t w[GW_BLOCK][GW_PANEL]; /* code - bias; outputs side by side, so that a compiler can take them together */
};

static int code_at(enum gw_pack pack, const uint8_t *code, int output, int i)
{
    if (pack != GW_PACK_U4) return code[(i / 4 * GW_PANEL + output) * 4 + i % 4];
    uint8_t byte = code[(i % 16 / 4 * GW_PANEL + output) * 4 + i % 4];
    return i < 16 ? byte & 15 : byte >> 4;
}

/* Reads 16 scales or minima; returns what lies behind them. */
static const uint8_t *read_scales(const struct gw_packed *w, const uint8_t *at, float scale[GW_PANEL])
{
    for (int output = 0; output < GW_PANEL; output++)
        scale[output] = w->scales_f16 ? gw_f16_to_f32(((const uint16_t *)at)[output]) : ((const float *)at)[output];
    return at + GW_PANEL * (w->scales_f16 ? sizeof(uint16_t) : sizeof(float));
}

static void unpack_block(const struct gw_packed *w, int panel, int index, struct block *block)
{
    const uint8_t *at = w->data + (size_t)panel * w->panel_bytes + (size_t)index * w->block_bytes;
    at = read_scales(w, at, block->scale);
    if (w->has_min) at = read_scales(w, at, block->min);
    block->half_scale = (const int8_t *)at;
    at += w->pack == GW_PACK_U6 ? 2 * GW_PANEL : 0;
    for (int i = 0; i < GW_BLOCK; i++)
        for (int output = 0; output < GW_PANEL; output++)
            block->w[i][output] = code_at(w->pack, at, output, i) - w->bias;
}

/* dot[output] += w[i][output] * q[i] over half `half` of the block. */
static void add_half(const struct block *block, const int8_t *q, int half, int32_t dot[GW_PANEL])
{
    for (int i = 16 * half; i < 16 * half + 16; i++)
        for (int output = 0; output < GW_PANEL; output++) dot[output] += block->w[i][output] * q[i];
}

/* The exact integers of a block, one an output. */
static void block_dots(const struct gw_packed *w, const struct block *block, const int8_t *q, int32_t dot[GW_PANEL])
{
    int32_t second[GW_PANEL] = {0};
    memset(dot, 0, GW_PANEL * sizeof *dot);
    add_half(block, q, 0, dot);
    add_half(block, q, 1, second);
    for (int output = 0; output < GW_PANEL; output++) {
        if (w->pack == GW_PACK_U6)
            dot[output] = block->half_scale[output] * dot[output] +
                          block->half_scale[GW_PANEL + output] * second[output];
        else dot[output] += second[output];
    }
}

/* acc[row] of rows [row, row + rows) over blocks [begin, end) of quantized weights. */
static void accumulate_int8(const struct gw_gemm *g, int panel, int row, int rows, int begin, int end,
                            float acc[][GW_PANEL])
{
    const struct gw_act *act = g->act;
    for (int b = begin; b < end; b++) {
        struct block block;
        unpack_block(g->w, panel, b, &block);
        for (int r = 0; r < rows; r++) {
            const struct gw_act_block *a = gw_act_at(act, row + r, b);
            int in_block = (row + r) % GW_ACT_ROWS;
            int32_t dot[GW_PANEL];
            block_dots(g->w, &block, a->q[in_block], dot);
            for (int output = 0; output < GW_PANEL; output++) {
                acc[r][output] = fmaf((float)dot[output], block.scale[output] * a->scale[in_block], acc[r][output]);
                if (g->w->has_min) acc[r][output] = fmaf(block.min[output], a->sum[in_block], acc[r][output]);
            }
        }
    }
}

static float float_weight(const struct gw_packed *w, const uint8_t *panel, size_t index)
{
    if (w->pack == GW_PACK_F32) return ((const float *)panel)[index];
    uint16_t half = ((const uint16_t *)panel)[index];
    return w->pack == GW_PACK_F16 ? gw_f16_to_f32(half) : gw_bf16_to_f32(half);
}

/* The same for float weights; the last block may be short. */
static void accumulate_float(const struct gw_gemm *g, int panel, int row, int rows, int begin, int end,
                             float acc[][GW_PANEL])
{
    const struct gw_packed *w = g->w;
    const uint8_t *weights = w->data + (size_t)panel * w->panel_bytes;
    int k_end = end * GW_BLOCK < w->k ? end * GW_BLOCK : w->k;
    for (int k = begin * GW_BLOCK; k < k_end; k++) {
        for (int output = 0; output < GW_PANEL; output++) {
            float weight = float_weight(w, weights, (size_t)k * GW_PANEL + (size_t)output);
            for (int r = 0; r < rows; r++)
                acc[r][output] = fmaf(g->act->x[(size_t)(row + r) * (size_t)w->k + (size_t)k], weight, acc[r][output]);
        }
    }
}

/* Some rows by one panel: atoms, the tree over them, finished nodes written. */
static void gemm_tile(const struct gw_gemm *g, int panel, int row, int rows)
{
    float stack[GW_MAX_TREE_DEPTH][ROWS][GW_PANEL];
    int depth = 0, begin = 0;
    int outputs = g->w->n - panel * GW_PANEL < GW_PANEL ? g->w->n - panel * GW_PANEL : GW_PANEL;
    for (int i = 0; i < g->atom_count; i++) {
        const struct gw_atom *atom = &g->atoms[i];
        GW_ASSERT(depth < GW_MAX_TREE_DEPTH);
        memset(stack[depth], 0, sizeof stack[depth]);
        if (g->w->pack <= GW_PACK_BF16) accumulate_float(g, panel, row, rows, begin, atom->block_end, stack[depth]);
        else accumulate_int8(g, panel, row, rows, begin, atom->block_end, stack[depth]);
        depth++;
        begin = atom->block_end;
        for (int merge = 0; merge < atom->merges; merge++) {
            GW_ASSERT(depth >= 2);
            depth--;
            for (int r = 0; r < rows; r++)
                for (int output = 0; output < GW_PANEL; output++)
                    stack[depth - 1][r][output] = stack[depth - 1][r][output] + stack[depth][r][output];
        }
        if (atom->node >= 0) {
            GW_ASSERT(depth >= 1);
            depth--;
            float *y = g->y + (size_t)atom->node * g->y_node_stride + (size_t)row * g->y_row_stride;
            for (int r = 0; r < rows; r++, y += g->y_row_stride)
                memcpy(y + (size_t)(panel - g->y_panel) * GW_PANEL, stack[depth][r], (size_t)outputs * sizeof(float));
        }
    }
    GW_ASSERT(depth == 0);
}

static void gemm(const struct gw_gemm *g, int panel_begin, int panel_end)
{
    GW_ASSERT(g->act->k == g->w->k);
    for (int panel = panel_begin; panel < panel_end; panel++)
        for (int row = 0; row < g->rows; row += ROWS)
            gemm_tile(g, panel, row, g->rows - row < ROWS ? g->rows - row : ROWS);
}

/* ---- row operations --------------------------------------------------------------------------------------------- */

static void rmsnorm(const float *x, const float *w, int n, float eps, float *y)
{
    float s[LANES] = {0};
    for (int i = 0; i < n; i++) s[i % LANES] = fmaf(x[i], x[i], s[i % LANES]);
    float inverse = 1.0f / sqrtf(lane_fold(s) / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = (x[i] * inverse) * w[i];
}

static void rope(float *x, int heads, int head_dim, int pairs, const float *cosine, const float *sine,
                 enum gw_rope_style style)
{
    for (int head = 0; head < heads; head++) {
        float *h = x + (size_t)head * (size_t)head_dim;
        for (int i = 0; i < pairs; i++) {
            float *a = style == GW_ROPE_NORM ? &h[2 * i] : &h[i];
            float *b = style == GW_ROPE_NORM ? &h[2 * i + 1] : &h[i + pairs];
            float a_sine = fmaf(*a, sine[i], *b * cosine[i]);
            *a = fmaf(*a, cosine[i], -(*b * sine[i]));
            *b = a_sine;
        }
    }
}

static void swiglu(const float *g, const float *u, int n, float *y)
{
    for (int i = 0; i < n; i++) y[i] = (g[i] / (1.0f + gw_expf(-g[i]))) * u[i];
}

static void add(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++) y[i] = y[i] + x[i];
}

static int argmax(const float *x, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (x[i] == x[i] && (best < 0 || x[i] > x[best])) best = i;
    return best < 0 ? 0 : best;
}

static void exp_chunks(const float *x, int n, float inv_t, float max_scaled, float *w, float *chunk_sum)
{
    for (int begin = 0; begin < n; begin += GW_SUM_CHUNK) {
        int end = n - begin < GW_SUM_CHUNK ? n : begin + GW_SUM_CHUNK;
        float s[LANES] = {0};
        for (int i = begin; i < end; i++) {
            w[i] = gw_expf(x[i] * inv_t - max_scaled);
            s[i % LANES] = s[i % LANES] + w[i];
        }
        chunk_sum[begin / GW_SUM_CHUNK] = lane_fold(s);
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static uint16_t *page_values(uint16_t *page, int head_dim)
{
    return page + GW_PAGE_TOKENS * head_dim;
}

static void kv_store(uint16_t *page, int head_dim, int slot, const float *key, const float *value)
{
    uint16_t *k = page + slot / 16 * head_dim * 16 + slot % 16;
    uint16_t *v = page_values(page, head_dim) + slot * head_dim;
    for (int d = 0; d < head_dim; d++) {
        k[d * 16] = gw_f32_to_f16(key[d]);
        v[d] = gw_f32_to_f16(value[d]);
    }
}

#define HEADS 8 /* query heads that share a page's converted halves: for speed alone */

/* A page as floats. */
struct page {
    float k[GW_PAGE_TOKENS][256];
    float v[GW_PAGE_TOKENS][256];
};

static void convert_page(const uint16_t *halves, int head_dim, int visible, struct page *page)
{
    const uint16_t *values = halves + GW_PAGE_TOKENS * head_dim;
    for (int j = 0; j < visible; j++) {
        for (int d = 0; d < head_dim; d++) {
            page->k[j][d] = gw_f16_to_f32(halves[(j / 16 * head_dim + d) * 16 + j % 16]);
            page->v[j][d] = gw_f16_to_f32(values[j * head_dim + d]);
        }
    }
}

/* What one query carries from page to page. */
struct online {
    float q[256]; /* scaled */
    float m;
    float l[LANES];
    float o[256];
};

/* The page's `visible` first keys. */
static void attend_page(struct online *state, const struct page *page, int head_dim, int visible)
{
    float s[GW_PAGE_TOKENS], e[GW_PAGE_TOKENS];
    float m = state->m;
    for (int j = 0; j < visible; j++) {
        s[j] = 0;
        for (int d = 0; d < head_dim; d++) s[j] = fmaf(state->q[d], page->k[j][d], s[j]);
        m = s[j] > m ? s[j] : m;
    }
    float c = gw_expf(state->m - m); /* 0 at the first page, where m is -infinity */
    for (int j = 0; j < LANES; j++) state->l[j] = state->l[j] * c;
    for (int j = 0; j < visible; j++) {
        e[j] = gw_expf(s[j] - m);
        state->l[j % LANES] = state->l[j % LANES] + e[j];
    }
    for (int d = 0; d < head_dim; d++) state->o[d] = state->o[d] * c;
    for (int j = 0; j < visible; j++)
        for (int d = 0; d < head_dim; d++) state->o[d] = fmaf(e[j], page->v[j][d], state->o[d]);
    state->m = m;
}

/* Heads [head, head + heads) of one row. */
static void attend_heads(const struct gw_attention *a, int row, int head, int heads)
{
    struct online state[HEADS];
    struct page page;
    const float *q = a->q + (size_t)row * a->q_stride + (size_t)head * (size_t)a->head_dim;
    float *out = a->out + (size_t)row * a->out_stride + (size_t)head * (size_t)a->head_dim;
    for (int h = 0; h < heads; h++) {
        memset(&state[h], 0, sizeof state[h]);
        state[h].m = -INFINITY;
        for (int d = 0; d < a->head_dim; d++) state[h].q[d] = q[h * a->head_dim + d] * a->scale;
    }
    int position = gw_attention_pos(a, row);
    for (int b = 0; b <= position / GW_PAGE_TOKENS; b++) {
        int left = position + 1 - b * GW_PAGE_TOKENS;
        int visible = left < GW_PAGE_TOKENS ? left : GW_PAGE_TOKENS;
        convert_page(a->own && b >= a->shared ? a->own[row].pages[b - a->shared] : a->pages[b], a->head_dim, visible,
                     &page);
        for (int h = 0; h < heads; h++) attend_page(&state[h], &page, a->head_dim, visible);
    }
    for (int h = 0; h < heads; h++) {
        float l = lane_fold(state[h].l);
        for (int d = 0; d < a->head_dim; d++) out[h * a->head_dim + d] = state[h].o[d] / l;
    }
}

static void attention(const struct gw_attention *a)
{
    GW_ASSERT(a->head_dim > 0 && a->head_dim <= 256 && a->head_dim % 2 == 0);
    for (int row = 0; row < a->rows; row++)
        for (int head = 0; head < a->group; head += HEADS)
            attend_heads(a, row, head, a->group - head < HEADS ? a->group - head : HEADS);
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static int64_t int8_dots(int64_t rounds)
{
    enum { PAIRS = 256 };
    static const int8_t a[PAIRS] = {1, 2, 3}, b[PAIRS] = {4, 5, 6};
    volatile int32_t sum = 0;
    for (int64_t round = 0; round < rounds; round++) {
        int32_t dot = 0;
        for (int i = 0; i < PAIRS; i++) dot += a[i] * b[i];
        sum += dot;
    }
    return rounds * PAIRS * 2;
}

static int64_t float_fmas(int64_t rounds)
{
    enum { CHAINS = 8 };
    volatile float half = 0.5f;
    float sum[CHAINS], x = half;
    for (int i = 0; i < CHAINS; i++) sum[i] = half;
    for (int64_t round = 0; round < rounds; round++)
        for (int i = 0; i < CHAINS; i++) sum[i] = fmaf(sum[i], x, x);
    for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
    half = sum[0];
    return rounds * CHAINS * 2;
}

static uint64_t read_bytes(const void *memory, size_t bytes)
{
    const uint64_t *word = memory;
    uint64_t all[8] = {0};
    for (size_t i = 0; i < bytes / 8; i += 8)
        for (int j = 0; j < 8; j++) all[j] ^= word[i + (size_t)j];
    for (int j = 1; j < 8; j++) all[0] ^= all[j];
    return all[0];
}

#ifndef GW_REF_TABLE /* ref_fma.c names another */
#define GW_REF_TABLE gw_kernels_ref
#define GW_REF_NAME "ref"
#endif

const struct gw_kernels GW_REF_TABLE = {
    .name = GW_REF_NAME,
    .group_rows = 16,
    .quantize = quantize,
    .gemm = {gemm, gemm, gemm, gemm, gemm, gemm},
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
