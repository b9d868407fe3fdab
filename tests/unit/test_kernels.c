/* Kernels: ref against naive forms of the contract, every other variant against ref, bit by bit, over odd sizes.
 *
 * The naive GEMM takes the file's blocks apart itself (not the packed form), one output at a time, so packing and the
 * walk over atoms are checked too. GODWIT_TEST_SEED repeats a run.
 */
#include "base/mem.h"
#include "kernels/elementary.h"
#include "kernels/kernels.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 20240917;
static uint64_t random_state;

static const struct gw_kernels *ref;
static const struct gw_kernels *variants[2];
static int variant_count;

static uint32_t draw_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static int draw(int below)
{
    return (int)((uint64_t)draw_bits() * (uint64_t)below >> 32);
}

static int draw_range(int low, int high)
{
    return low + draw(high - low + 1);
}

/* In (-1, 1), most of them small. */
static float draw_float(void)
{
    float u = (float)(int32_t)draw_bits() * 0x1p-31f;
    return u * u * u;
}

/* Zeros, denormals, large and ordinary numbers. */
static float draw_extreme(void)
{
    static const float factor[] = {0, 1e-41f, 1e-38f, 1e-30f, 1e-20f, 1, 100, 1e4f};
    return draw_float() * factor[draw(8)];
}

/* An array whose end is exact, so that the address sanitizer sees a read past it. */
static float *floats(size_t count)
{
    return gw_alloc(count ? count : 1, sizeof(float));
}

static float *random_floats(size_t count, bool extreme)
{
    float *x = floats(count);
    for (size_t i = 0; i < count; i++) x[i] = extreme ? draw_extreme() : draw_float();
    return x;
}

static float *copy_floats(const float *x, size_t count)
{
    float *y = floats(count);
    memcpy(y, x, count * sizeof(float));
    return y;
}

static void same_floats(const char *what, const char *who, const float *want, const float *got, size_t count)
{
    if (memcmp(want, got, count * sizeof(float)) == 0) return;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&want[i], &got[i], sizeof(float)) != 0) {
            fprintf(stderr, "%s, %s: element %zu is %a, expected %a (GODWIT_TEST_SEED=%llu)\n", what, who, i, got[i],
                    want[i], (unsigned long long)seed);
            break;
        }
    }
    CU_FAIL_FATAL("bits differ");
}

/* ---- GEMM ------------------------------------------------------------------------------------------------------- */

static const enum gw_type types[] = {GW_TYPE_F32,  GW_TYPE_F16,  GW_TYPE_BF16, GW_TYPE_Q4_0, GW_TYPE_Q4_1, GW_TYPE_Q5_0,
                                     GW_TYPE_Q5_1, GW_TYPE_Q8_0, GW_TYPE_Q4_K, GW_TYPE_Q5_K, GW_TYPE_Q6_K};
#define TYPES (int)(sizeof types / sizeof types[0])

/* A finite half: ordinary, or anything up to the largest and down to the smallest. */
static uint16_t draw_half(bool extreme)
{
    if (!extreme) return gw_f32_to_f16(draw_float() * 0.1f);
    uint16_t h = (uint16_t)draw_bits();
    return (h & 0x7c00) == 0x7c00 ? (uint16_t)(h & 0x8000) : h;
}

/* Random rows of `type`: any bits for codes, finite scales. */
static uint8_t *random_rows(const struct gw_type_info *info, size_t elements, bool extreme)
{
    size_t blocks = elements / (size_t)info->block_elements;
    uint8_t *bytes = gw_alloc(blocks, (size_t)info->block_bytes);
    for (size_t block = 0; block < blocks; block++) {
        uint8_t *p = bytes + block * (size_t)info->block_bytes;
        for (int i = 0; i < info->block_bytes; i++) p[i] = (uint8_t)draw_bits();
        uint16_t d = draw_half(extreme), m = draw_half(extreme);
        float f = extreme ? draw_extreme() : draw_float();
        if (info->type == GW_TYPE_F32) memcpy(p, &f, 4);
        else if (info->type == GW_TYPE_BF16) memcpy(p, (uint8_t *)&f + 2, 2); /* little-endian: the upper half */
        else if (info->type == GW_TYPE_Q6_K) memcpy(p + 208, &d, 2);
        else memcpy(p, &d, 2);
        if (info->has_min) memcpy(p + 2, &m, 2);
    }
    return bytes;
}

struct case_gemm {
    const struct gw_type_info *info;
    uint8_t *src;
    size_t row_bytes;
    int k_begin;
    struct gw_packed w;
    struct gw_act act;
    struct gw_atom atoms[64];
    struct gw_gemm g;
    int nodes;
    size_t y_count;
    float *x;
};

/* A random cut into atoms, random merges, any finished node written; everything is finished at the end. */
static void draw_atoms(struct case_gemm *c, int blocks, bool single)
{
    int count = single ? 1 : draw_range(1, blocks < 12 ? blocks : 12);
    int end = 0, depth = 0;
    c->nodes = 0;
    for (int i = 0; i < count; i++) {
        bool last = i == count - 1;
        int most = blocks - end - (count - 1 - i);
        end = last ? blocks : end + draw_range(1, most < 1 ? 1 : most);
        depth++;
        int merges = last ? depth - 1 : draw(depth);
        depth -= merges;
        bool done = last || draw(3) == 0;
        c->atoms[i] = (struct gw_atom){.block_end = end, .merges = merges, .node = done ? c->nodes++ : -1};
        depth -= done;
    }
    CU_ASSERT_EQUAL_FATAL(depth, 0);
    c->g.atoms = c->atoms;
    c->g.atom_count = count;
}

static void make_gemm(struct case_gemm *c, enum gw_type type, int rows, int n, int blocks, bool extreme, bool single)
{
    memset(c, 0, sizeof *c);
    c->info = gw_type_info((uint32_t)type);
    bool quantized = c->info->unpack != NULL;
    int k = quantized ? blocks * 32 : blocks * 32 - draw(20);
    int file_k = (k + 32 * draw(4) + 255) / 256 * 256;
    c->k_begin = quantized ? (file_k - k) / 32 > 0 ? 32 * draw((file_k - k) / 32 + 1) : 0 : draw(file_k - k + 1);
    c->row_bytes = (size_t)file_k / (size_t)c->info->block_elements * (size_t)c->info->block_bytes;
    c->src = random_rows(c->info, (size_t)file_k * (size_t)n, extreme);
    CU_ASSERT_EQUAL_FATAL(gw_packed_init(&c->w, type, n, k), GW_OK);
    c->w.data = aligned_alloc(64, gw_packed_bytes(&c->w));
    memset(c->w.data, 0xa5, gw_packed_bytes(&c->w));
    int middle = draw(c->w.panels + 1);
    gw_pack_panels(&c->w, c->src, c->row_bytes, c->k_begin, 0, middle);
    gw_pack_panels(&c->w, c->src, c->row_bytes, c->k_begin, middle, c->w.panels);

    size_t act_blocks = (size_t)rows * (size_t)(k / 32);
    c->x = random_floats((size_t)rows * (size_t)k, extreme);
    c->act.k = k;
    c->act.x = c->x;
    if (quantized) {
        c->act.q = gw_alloc(act_blocks, 32);
        c->act.scale = floats(act_blocks);
        c->act.sum = floats(act_blocks);
        c->act.isum = gw_alloc(act_blocks, 2 * sizeof(int32_t));
        ref->quantize(&c->act, 0, rows);
    }
    draw_atoms(c, blocks, single);
    c->g.w = &c->w;
    c->g.act = &c->act;
    c->g.rows = rows;
    c->g.y_row_stride = (size_t)n + (size_t)draw(5);
    c->g.y_node_stride = c->g.y_row_stride * (size_t)rows + (size_t)draw(7);
    c->y_count = c->g.y_node_stride * (size_t)c->nodes;
}

static void free_gemm(struct case_gemm *c)
{
    free(c->src);
    free(c->w.data);
    free(c->x);
    free(c->act.q);
    free(c->act.scale);
    free(c->act.sum);
    free(c->act.isum);
}

/* One atom of one output by the contract, from the file's blocks. */
static float naive_atom(const struct case_gemm *c, int row, int n, int begin, int end)
{
    const uint8_t *weights = c->src + (size_t)n * c->row_bytes;
    float acc = 0;
    if (!c->info->unpack) {
        for (int k = begin * 32; k < end * 32 && k < c->w.k; k++) {
            float w;
            c->info->to_f32(weights + (size_t)(c->k_begin + k) * (size_t)c->info->block_bytes, &w, 1);
            acc = fmaf(c->x[(size_t)row * (size_t)c->w.k + (size_t)k], w, acc);
        }
        return acc;
    }
    for (int b = begin; b < end; b++) {
        size_t at = (size_t)row * (size_t)(c->w.k / 32) + (size_t)b;
        struct gw_type_block block;
        c->info->unpack(weights, (size_t)(c->k_begin / 32 + b), &block);
        int dot = 0;
        for (int i = 0; i < 32; i++)
            dot += block.half_scale[i / 16] * (block.code[i] - c->info->bias) * c->act.q[at * 32 + (size_t)i];
        float scale = block.scale * c->act.scale[at];
        acc = fmaf((float)dot, scale, acc);
        if (c->info->has_min) acc = fmaf(block.min, c->act.sum[at], acc);
    }
    return acc;
}

static void naive_gemm(const struct case_gemm *c, float *y)
{
    for (int row = 0; row < c->g.rows; row++) {
        for (int n = 0; n < c->w.n; n++) {
            float stack[64];
            int depth = 0;
            for (int i = 0; i < c->g.atom_count; i++) {
                stack[depth++] = naive_atom(c, row, n, i ? c->atoms[i - 1].block_end : 0, c->atoms[i].block_end);
                for (int merge = 0; merge < c->atoms[i].merges; merge++) {
                    float right = stack[--depth];
                    float left = stack[--depth];
                    stack[depth++] = left + right;
                }
                if (c->atoms[i].node >= 0)
                    y[(size_t)c->atoms[i].node * c->g.y_node_stride + (size_t)row * c->g.y_row_stride + (size_t)n] =
                        stack[--depth];
            }
        }
    }
}

static float *run_gemm(struct case_gemm *c, const struct gw_kernels *kernels)
{
    float *y = floats(c->y_count);
    memset(y, 0x55, c->y_count * sizeof(float)); /* what is outside the result must stay */
    c->g.y = y;
    int middle = draw(c->w.panels + 1);
    kernels->gemm[c->w.pack](&c->g, 0, middle);
    kernels->gemm[c->w.pack](&c->g, middle, c->w.panels);
    return y;
}

static void check_gemm(struct case_gemm *c)
{
    char what[96];
    snprintf(what, sizeof what, "gemm %s rows %d n %d k %d atoms %d", c->info->name, c->g.rows, c->w.n, c->w.k,
             c->g.atom_count);
    float *naive = floats(c->y_count);
    memset(naive, 0x55, c->y_count * sizeof(float));
    naive_gemm(c, naive);
    float *want = run_gemm(c, ref);
    same_floats(what, "ref", naive, want, c->y_count);
    for (int i = 0; i < variant_count; i++) {
        float *got = run_gemm(c, variants[i]);
        same_floats(what, variants[i]->name, want, got, c->y_count);
        free(got);
    }
    free(naive);
    free(want);
}

static void test_gemm_exact(void)
{
    for (int t = 0; t < TYPES; t++) {
        for (int rows = 1; rows <= 19; rows++) {
            for (int repeat = 0; repeat < 4; repeat++) {
                struct case_gemm c;
                make_gemm(&c, types[t], rows, draw_range(1, 70), draw_range(1, 16), repeat >= 2, repeat == 0);
                check_gemm(&c);
                free_gemm(&c);
            }
        }
    }
}

/* All codes and activations at their limits: 16-bit sums inside a kernel must not saturate. */
static void test_gemm_limits(void)
{
    for (int t = 0; t < TYPES; t++) {
        for (int sign = 0; sign < 3; sign++) {
            struct case_gemm c;
            make_gemm(&c, types[t], 9, 33, 8, false, true);
            if (c.info->unpack) {
                uint8_t *panels = c.w.data;
                size_t codes = c.w.pack == GW_PACK_U4 ? 256 : 512;
                int largest = c.w.pack == GW_PACK_U6     ? 63
                              : c.w.pack == GW_PACK_U4   ? 255
                              : types[t] == GW_TYPE_Q8_0 ? 255
                                                         : 31;
                for (size_t b = 0; b < (size_t)c.w.panels * (size_t)(c.w.k / 32); b++)
                    for (size_t i = 0; i < codes; i++)
                        panels[(b + 1) * c.w.block_bytes - codes + i] = (uint8_t)(sign == 2 && i % 3 ? 0 : largest);
                for (size_t i = 0; i < 9 * (size_t)c.w.k; i++)
                    c.x[i] = sign == 0 ? 1.0f : sign == 1 ? -1.0f : i % 2 ? 1.0f : -1.0f;
                ref->quantize(&c.act, 0, 9);
                float *want = run_gemm(&c, ref);
                for (int v = 0; v < variant_count; v++) {
                    float *got = run_gemm(&c, variants[v]);
                    same_floats(c.info->name, variants[v]->name, want, got, c.y_count);
                    free(got);
                }
                free(want);
            }
            free_gemm(&c);
        }
    }
}

/* The packed matrix stands for the dequantized one, and the product is near the real one. */
static void test_gemm_near(void)
{
    for (int t = 0; t < TYPES; t++) {
        struct case_gemm c;
        make_gemm(&c, types[t], 5, 37, 12, false, true);
        float *y = run_gemm(&c, ref);
        float *row = floats(1024);
        for (int n = 0; n < c.w.n; n++) {
            size_t elements = c.row_bytes / (size_t)c.info->block_bytes * (size_t)c.info->block_elements;
            c.info->to_f32(c.src + (size_t)n * c.row_bytes, row, elements);
            for (int r = 0; r < 5; r++) {
                double sum = 0, magnitude = 0;
                for (int k = 0; k < c.w.k; k++) {
                    double w = gw_packed_get(&c.w, n, k), x = c.x[r * c.w.k + k];
                    CU_ASSERT_EQUAL_FATAL((float)w, row[c.k_begin + k]);
                    if (c.info->unpack) x = (double)c.act.q[r * c.w.k + k] * (double)c.act.scale[(r * c.w.k + k) / 32];
                    sum += w * x;
                    magnitude += fabs(w * x);
                }
                CU_ASSERT_FATAL(fabs(sum - (double)y[(size_t)r * c.g.y_row_stride + (size_t)n]) <= 1e-5 * magnitude);
            }
        }
        free(row);
        free(y);
        free_gemm(&c);
    }
}

/* A row alone gives what it gives among others. */
static void test_gemm_row_independence(void)
{
    for (int t = 0; t < TYPES; t++) {
        struct case_gemm c;
        make_gemm(&c, types[t], 13, 50, 9, false, false);
        for (int v = -1; v < variant_count; v++) {
            const struct gw_kernels *kernels = v < 0 ? ref : variants[v];
            float *together = run_gemm(&c, kernels);
            float *alone = floats(c.y_count);
            memcpy(alone, together, c.y_count * sizeof(float));
            struct gw_act act = c.act;
            for (int row = 0; row < 13; row++) {
                size_t blocks = (size_t)row * (size_t)(c.w.k / 32);
                act.x = c.x + (size_t)row * (size_t)c.w.k;
                if (c.info->unpack) {
                    act.q = c.act.q + blocks * 32;
                    act.scale = c.act.scale + blocks;
                    act.sum = c.act.sum + blocks;
                    act.isum = c.act.isum + 2 * blocks;
                }
                struct gw_gemm g = c.g;
                g.act = &act;
                g.rows = 1;
                g.y = alone + (size_t)row * c.g.y_row_stride;
                for (int node = 0; node < c.nodes; node++)
                    memset(g.y + (size_t)node * c.g.y_node_stride, 0, (size_t)c.w.n * sizeof(float));
                kernels->gemm[c.w.pack](&g, 0, c.w.panels);
            }
            same_floats(c.info->name, kernels->name, together, alone, c.y_count);
            free(together);
            free(alone);
        }
        free_gemm(&c);
    }
}

static void test_packed_init_refuses(void)
{
    struct gw_packed w;
    CU_ASSERT_EQUAL(gw_packed_init(&w, GW_TYPE_Q4_0, 16, 40), GW_ERR_UNSUPPORTED);
    CU_ASSERT_EQUAL(gw_packed_init(&w, GW_TYPE_Q4_K, 0, 32), GW_ERR_UNSUPPORTED);
    CU_ASSERT_EQUAL(gw_packed_init(&w, (enum gw_type)5, 16, 32), GW_ERR_UNSUPPORTED);
    CU_ASSERT_EQUAL(gw_packed_init(&w, GW_TYPE_F32, 3, 7), GW_OK);
}

/* ---- quantization ------------------------------------------------------------------------------------------------ */

static void init_act(struct gw_act *act, const float *x, int rows, int k)
{
    size_t blocks = (size_t)rows * (size_t)k / 32;
    *act = (struct gw_act){.k = k, .x = x};
    act->q = gw_alloc(blocks, 32);
    act->scale = floats(blocks);
    act->sum = floats(blocks);
    act->isum = gw_alloc(blocks, 2 * sizeof(int32_t));
}

static void free_act(struct gw_act *act)
{
    free(act->q);
    free(act->scale);
    free(act->sum);
    free(act->isum);
}

static void check_quantized(const struct gw_act *act, size_t block)
{
    const float *x = act->x + block * 32;
    const int8_t *q = act->q + block * 32;
    float amax = 0;
    for (int i = 0; i < 32; i++) amax = fmaxf(amax, fabsf(x[i]));
    CU_ASSERT_EQUAL_FATAL(act->scale[block], amax / 127.0f);
    int sum[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        float want = amax < 1e-30f ? 0 : rintf(x[i] * (127.0f / amax));
        CU_ASSERT_EQUAL_FATAL((float)q[i], want);
        CU_ASSERT_FATAL(q[i] >= -127);
        sum[i / 16] += q[i];
    }
    CU_ASSERT_EQUAL_FATAL(act->isum[2 * block], sum[0]);
    CU_ASSERT_EQUAL_FATAL(act->isum[2 * block + 1], sum[1]);
    CU_ASSERT_EQUAL_FATAL(act->sum[block], act->scale[block] * (float)(sum[0] + sum[1]));
}

static void test_quantize(void)
{
    const int rows = 7, k = 32 * 11;
    const size_t blocks = (size_t)rows * (size_t)k / 32;
    for (int repeat = 0; repeat < 40; repeat++) {
        float *x = random_floats((size_t)rows * (size_t)k, repeat % 2);
        for (int i = 0; i < 32 && repeat % 4 == 0; i++)
            x[i] = (float)(i - 16) * 0.5f / 127 * 8; /* many ties of rounding */
        struct gw_act want, got;
        init_act(&want, x, rows, k);
        ref->quantize(&want, 0, 3);
        ref->quantize(&want, 3, rows);
        for (size_t b = 0; b < blocks; b++) check_quantized(&want, b);
        for (int v = 0; v < variant_count; v++) {
            init_act(&got, x, rows, k);
            variants[v]->quantize(&got, 0, rows);
            CU_ASSERT_FATAL(memcmp(want.q, got.q, blocks * 32) == 0);
            same_floats("quantize scale", variants[v]->name, want.scale, got.scale, blocks);
            same_floats("quantize sum", variants[v]->name, want.sum, got.sum, blocks);
            CU_ASSERT_FATAL(memcmp(want.isum, got.isum, blocks * 8) == 0);
            free_act(&got);
        }
        free_act(&want);
        free(x);
    }
}

/* A NaN or an infinity must not vanish: it shows in the block's scale. */
static void test_quantize_not_finite(void)
{
    for (int v = -1; v < variant_count; v++) {
        const struct gw_kernels *kernels = v < 0 ? ref : variants[v];
        float *x = random_floats(64, false);
        x[5] = NAN;
        x[40] = -INFINITY;
        struct gw_act act;
        init_act(&act, x, 1, 64);
        kernels->quantize(&act, 0, 1);
        CU_ASSERT(isnan(act.scale[0]));
        CU_ASSERT(isinf(act.scale[1]));
        for (int i = 0; i < 64; i++) CU_ASSERT_EQUAL(act.q[i], 0);
        free_act(&act);
        free(x);
    }
}

/* ---- row operations ---------------------------------------------------------------------------------------------- */

static float naive_lane_sum(const float *x, int n)
{
    float s[16] = {0};
    for (int i = 0; i < n; i++) s[i % 16] += x[i];
    for (int j = 0; j < 8; j++) s[j] += s[j + 8];
    for (int j = 0; j < 4; j++) s[j] += s[j + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

static void test_rmsnorm(void)
{
    for (int n = 1; n <= 150; n++) {
        float *x = random_floats((size_t)n, n % 3 == 0), *w = random_floats((size_t)n, false),
              *want = floats((size_t)n);
        ref->rmsnorm(x, w, n, 1e-5f, want);
        double square = 0;
        for (int i = 0; i < n; i++) square += (double)x[i] * (double)x[i];
        for (int i = 0; i < n; i++) {
            double y = (double)x[i] / sqrt(square / n + (double)1e-5f) * (double)w[i];
            CU_ASSERT_FATAL(fabs(y - (double)want[i]) <= 2e-6 * fabs(y) + 1e-43);
        }
        for (int v = 0; v < variant_count; v++) {
            float *got = copy_floats(x, (size_t)n);
            variants[v]->rmsnorm(got, w, n, 1e-5f, got);
            same_floats("rmsnorm", variants[v]->name, want, got, (size_t)n);
            free(got);
        }
        free(x);
        free(w);
        free(want);
    }
}

static void test_rope(void)
{
    for (int repeat = 0; repeat < 200; repeat++) {
        int pairs = draw_range(1, 64), heads = draw_range(1, 7), head_dim = 2 * (pairs + draw(3));
        size_t count = (size_t)heads * (size_t)head_dim;
        float *x = random_floats(count, repeat % 2), *cosine = floats((size_t)pairs), *sine = floats((size_t)pairs);
        for (int i = 0; i < pairs; i++) {
            double s, c;
            gw_sincos_f64(draw(4000) * 0.37, &s, &c);
            sine[i] = i % 9 == 8 ? 0 : (float)s;
            cosine[i] = i % 9 == 8 ? 1 : (float)c;
        }
        for (int style = 0; style < 2; style++) {
            float *want = copy_floats(x, count);
            ref->rope(want, heads, head_dim, pairs, cosine, sine, style ? GW_ROPE_NEOX : GW_ROPE_NORM);
            int i = draw(pairs), at = draw(heads) * head_dim;
            int ia = at + (style ? i : 2 * i), ib = style ? ia + pairs : ia + 1;
            CU_ASSERT_EQUAL_FATAL(want[ia], fmaf(x[ia], cosine[i], -(x[ib] * sine[i])));
            CU_ASSERT_EQUAL_FATAL(want[ib], fmaf(x[ia], sine[i], x[ib] * cosine[i]));
            for (int d = 2 * pairs; d < head_dim; d++) CU_ASSERT_EQUAL_FATAL(want[d], x[d]);
            for (int v = 0; v < variant_count; v++) {
                float *got = copy_floats(x, count);
                variants[v]->rope(got, heads, head_dim, pairs, cosine, sine, style ? GW_ROPE_NEOX : GW_ROPE_NORM);
                same_floats("rope", variants[v]->name, want, got, count);
                free(got);
            }
            free(want);
        }
        free(x);
        free(cosine);
        free(sine);
    }
}

static void test_swiglu_and_add(void)
{
    for (int n = 1; n <= 150; n++) {
        float *g = random_floats((size_t)n, n % 2), *u = random_floats((size_t)n, n % 2), *want = floats((size_t)n);
        for (int i = 0; i < n; i++) g[i] *= 100;
        ref->swiglu(g, u, n, want);
        for (int i = 0; i < n; i++) {
            double x = g[i], y = x / (1 + exp(-x)) * (double)u[i];
            if (x > -80) /* below, gw_expf is held at its upper end */
                CU_ASSERT_FATAL(fabs(y - (double)want[i]) <= 1e-6 * fabs(y) + 1e-37);
        }
        float *sum = copy_floats(g, (size_t)n);
        ref->add(sum, u, n);
        for (int i = 0; i < n; i++) CU_ASSERT_EQUAL_FATAL(sum[i], g[i] + u[i]);
        for (int v = 0; v < variant_count; v++) {
            float *got = copy_floats(g, (size_t)n);
            variants[v]->swiglu(got, u, n, got);
            same_floats("swiglu", variants[v]->name, want, got, (size_t)n);
            memcpy(got, g, (size_t)n * sizeof(float));
            variants[v]->add(got, u, n);
            same_floats("add", variants[v]->name, sum, got, (size_t)n);
            free(got);
        }
        free(g);
        free(u);
        free(want);
        free(sum);
    }
}

static int naive_argmax(const float *x, int n)
{
    int best = 0;
    bool any = false;
    for (int i = 0; i < n; i++) {
        if (isnan(x[i]) || (any && !(x[i] > x[best]))) continue;
        best = i;
        any = true;
    }
    return best;
}

static void test_argmax(void)
{
    for (int repeat = 0; repeat < 2000; repeat++) {
        int n = draw_range(1, 100);
        float *x = floats((size_t)n);
        static const float few[] = {0, -0.0f, 1, 2, NAN, -INFINITY, INFINITY, -3};
        int kinds = draw_range(1, 8), first = draw(8);
        for (int i = 0; i < n; i++) x[i] = repeat % 4 == 3 ? draw_float() : few[(first + draw(kinds)) % 8];
        int want = naive_argmax(x, n);
        CU_ASSERT_EQUAL_FATAL(ref->argmax(x, n), want);
        for (int v = 0; v < variant_count; v++) CU_ASSERT_EQUAL_FATAL(variants[v]->argmax(x, n), want);
        free(x);
    }
}

static void test_exp_chunks(void)
{
    for (int n = 1; n <= 300; n++) {
        size_t chunks = ((size_t)n + 63) / 64;
        float *x = random_floats((size_t)n, n % 2), *want = floats((size_t)n), *sums = floats(chunks);
        float inv_t = n % 3 ? 1.25f : 40.0f;
        for (int i = 0; i < n; i++) x[i] = x[i] > 0 ? -x[i] : x[i];
        x[draw(n)] = 0;
        ref->exp_chunks(x, n, inv_t, 0.5f, want, sums);
        for (int i = 0; i < n; i++) CU_ASSERT_EQUAL_FATAL(want[i], gw_expf(x[i] * inv_t - 0.5f));
        for (size_t c = 0; c < chunks; c++)
            CU_ASSERT_EQUAL_FATAL(sums[c], naive_lane_sum(want + 64 * c, n - 64 * (int)c < 64 ? n - 64 * (int)c : 64));
        for (int v = 0; v < variant_count; v++) {
            float *got = copy_floats(x, (size_t)n), *got_sums = floats(chunks);
            variants[v]->exp_chunks(got, n, inv_t, 0.5f, got, got_sums);
            same_floats("exp_chunks", variants[v]->name, want, got, (size_t)n);
            same_floats("exp_chunks sums", variants[v]->name, sums, got_sums, chunks);
            free(got);
            free(got_sums);
        }
        free(x);
        free(want);
        free(sums);
    }
}

/* The vector exp lane by lane against the scalar one, over its whole range and past both ends. */
static void test_exp(void)
{
    const int n = 400003;
    float *x = floats((size_t)n), *want = floats((size_t)n), *sums = floats((size_t)n / 64 + 1);
    double worst = 0;
    for (int i = 0; i < n; i++) {
        x[i] = -90.0f + (float)i * (180.0f / (float)n);
        float e = gw_expf(x[i]);
        if (x[i] > -87 && x[i] < 88) worst = fmax(worst, fabs((double)e / exp((double)x[i]) - 1));
        if (x[i] < -87.3f) CU_ASSERT_EQUAL_FATAL(e, 0);
    }
    printf(" (relative error %.2e) ", worst);
    CU_ASSERT(worst < 1.3e-7);
    CU_ASSERT_EQUAL(gw_expf(0), 1);
    CU_ASSERT_EQUAL(gw_expf(-0.0f), 1);
    CU_ASSERT_EQUAL(gw_expf(-INFINITY), 0);
    CU_ASSERT(isfinite(gw_expf(INFINITY)));
    CU_ASSERT(isnan(gw_expf(NAN)));
    ref->exp_chunks(x, n, 1, 0, want, sums);
    for (int v = 0; v < variant_count; v++) {
        float *got = floats((size_t)n);
        variants[v]->exp_chunks(x, n, 1, 0, got, sums);
        same_floats("exp", variants[v]->name, want, got, (size_t)n);
        free(got);
    }
    free(x);
    free(want);
    free(sums);
}

static void test_elementary_f64(void)
{
    double worst[4] = {0};
    for (int i = 0; i < 200000; i++) {
        double u = (double)(int32_t)draw_bits() * 0x1p-31, s, c;
        worst[0] = fmax(worst[0], fabs(gw_exp2_f64(u * 1000) / exp2(u * 1000) - 1));
        double x = exp2(u * 1000);
        worst[1] = fmax(worst[1], fabs(gw_log2_f64(x) - log2(x)) / fmax(1, fabs(log2(x))));
        gw_sincos_f64(u * 0x1p22, &s, &c);
        worst[2] = fmax(worst[2], fabs(s - sin(u * 0x1p22)));
        worst[3] = fmax(worst[3], fabs(c - cos(u * 0x1p22)));
    }
    printf(" (exp2 %.1e log2 %.1e sin %.1e cos %.1e) ", worst[0], worst[1], worst[2], worst[3]);
    for (int i = 0; i < 4; i++) CU_ASSERT(worst[i] < 1e-15);
    CU_ASSERT_EQUAL(gw_exp2_f64(0), 1);
    CU_ASSERT_EQUAL(gw_exp2_f64(10), 1024);
    CU_ASSERT_EQUAL(gw_exp2_f64(-2000), 0);
    CU_ASSERT(isinf(gw_exp2_f64(1024)));
    CU_ASSERT_EQUAL(gw_log2_f64(1), 0);
    CU_ASSERT_EQUAL(gw_log2_f64(8), 3);
    CU_ASSERT(isinf(gw_log2_f64(0)));
    CU_ASSERT(isnan(gw_log2_f64(-1)));
    CU_ASSERT(fabs(gw_log2_f64(0x1p-1070) + 1070) < 1e-12);
    double s, c;
    gw_sincos_f64(0, &s, &c);
    CU_ASSERT(s == 0 && c == 1);
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

struct case_attention {
    int head_dim, group, rows, pos0;
    int tokens;
    float *keys, *values, *q;
    uint16_t **pages;
    size_t page_count;
};

/* Pages with exactly `tokens` tokens; unused slots hold NaN, so that a kernel that lets them in shows. */
static uint16_t **store_pages(const struct case_attention *c, const struct gw_kernels *kernels)
{
    uint16_t **pages = gw_alloc(c->page_count, sizeof *pages);
    for (size_t i = 0; i < c->page_count; i++) {
        pages[i] = gw_alloc(gw_page_halves(c->head_dim), sizeof(uint16_t));
        memset(pages[i], 0x7f, gw_page_halves(c->head_dim) * sizeof(uint16_t));
    }
    for (int token = 0; token < c->tokens; token++)
        kernels->kv_store(pages[token / 32], c->head_dim, token % 32, c->keys + (size_t)token * (size_t)c->head_dim,
                          c->values + (size_t)token * (size_t)c->head_dim);
    return pages;
}

static void free_pages(uint16_t **pages, size_t count)
{
    for (size_t i = 0; i < count; i++) free(pages[i]);
    free(pages);
}

static void make_attention(struct case_attention *c, int head_dim, bool extreme)
{
    *c = (struct case_attention){.head_dim = head_dim};
    c->group = draw_range(1, 9);
    c->rows = draw(3) ? draw_range(1, 20) : 1;
    c->pos0 = draw(4) ? draw(150) : 0;
    c->tokens = c->pos0 + c->rows;
    c->page_count = ((size_t)c->tokens + 31) / 32;
    size_t count = (size_t)c->tokens * (size_t)head_dim;
    c->keys = random_floats(count, extreme);
    c->values = random_floats(count, extreme);
    c->q = random_floats((size_t)c->rows * (size_t)c->group * (size_t)head_dim, false);
    for (size_t i = 0; i < (size_t)c->rows * (size_t)c->group * (size_t)head_dim; i++) c->q[i] *= extreme ? 3 : 20;
    c->pages = store_pages(c, ref);
}

static void free_attention(struct case_attention *c)
{
    free_pages(c->pages, c->page_count);
    free(c->keys);
    free(c->values);
    free(c->q);
}

/* Runs rows in pieces of `piece`, with strides wider than a row. */
static float *run_attention(const struct case_attention *c, const struct gw_kernels *kernels, int piece)
{
    size_t width = (size_t)c->group * (size_t)c->head_dim;
    float *out = floats((width + 3) * (size_t)c->rows);
    for (int row = 0; row < c->rows; row += piece) {
        struct gw_attention a = {.head_dim = c->head_dim,
                                 .group = c->group,
                                 .rows = c->rows - row < piece ? c->rows - row : piece,
                                 .pos0 = c->pos0 + row,
                                 .scale = 1 / sqrtf((float)c->head_dim),
                                 .pages = (const uint16_t *const *)c->pages,
                                 .q = c->q + (size_t)row * width,
                                 .q_stride = width,
                                 .out = out + (size_t)row * (width + 3),
                                 .out_stride = width + 3};
        kernels->attention(&a);
    }
    return out;
}

/* One query in double precision, over the keys and values as stored. */
static double naive_attention(const struct case_attention *c, int row, int head, int d)
{
    const float *q = c->q + ((size_t)row * (size_t)c->group + (size_t)head) * (size_t)c->head_dim;
    double s[256], m = -1e300, l = 0, o = 0;
    int keys = c->pos0 + row + 1;
    for (int j = 0; j < keys; j++) {
        s[j] = 0;
        for (int i = 0; i < c->head_dim; i++)
            s[j] += (double)q[i] * (double)gw_f16_to_f32(gw_f32_to_f16(c->keys[j * c->head_dim + i]));
        s[j] /= sqrt(c->head_dim);
        m = fmax(m, s[j]);
    }
    for (int j = 0; j < keys; j++) {
        l += exp(s[j] - m);
        o += exp(s[j] - m) * (double)gw_f16_to_f32(gw_f32_to_f16(c->values[j * c->head_dim + d]));
    }
    return o / l;
}

static void test_attention(void)
{
    static const int dims[] = {2, 6, 14, 16, 18, 20, 32, 64, 66, 80, 96, 128, 130, 256};
    for (size_t i = 0; i < 6 * sizeof dims / sizeof dims[0]; i++) {
        struct case_attention c;
        make_attention(&c, dims[i / 6], i % 3 == 2);
        size_t width = (size_t)c.group * (size_t)c.head_dim, count = (width + 3) * (size_t)c.rows;
        char what[96];
        snprintf(what, sizeof what, "attention dim %d group %d rows %d pos %d", c.head_dim, c.group, c.rows, c.pos0);
        float *want = run_attention(&c, ref, c.rows);
        for (int t = 0; t < 20; t++) {
            int row = draw(c.rows), head = draw(c.group), d = draw(c.head_dim);
            double near = naive_attention(&c, row, head, d);
            float y = want[(size_t)row * (width + 3) + (size_t)(head * c.head_dim + d)];
            CU_ASSERT_FATAL(i % 3 == 2 || fabs(near - (double)y) < 1e-5);
        }
        float *alone = run_attention(&c, ref, 1);
        same_floats(what, "ref by rows", want, alone, count);
        free(alone);
        for (int v = 0; v < variant_count; v++) {
            uint16_t **pages = store_pages(&c, variants[v]);
            for (size_t p = 0; p < c.page_count; p++)
                CU_ASSERT_FATAL(memcmp(c.pages[p], pages[p], gw_page_halves(c.head_dim) * sizeof(uint16_t)) == 0);
            free_pages(pages, c.page_count);
            for (int piece = 1; piece <= c.rows; piece += piece < c.rows ? draw_range(1, c.rows - piece) : 1) {
                float *got = run_attention(&c, variants[v], piece);
                same_floats(what, variants[v]->name, want, got, count);
                free(got);
            }
        }
        free(want);
        free_attention(&c);
    }
}

/* Rounding to half, among it halfway cases, overflow and denormals. */
static void test_kv_rounding(void)
{
    float key[16], value[16];
    uint16_t want[32 * 2 * 16], got[32 * 2 * 16];
    for (int repeat = 0; repeat < 20000; repeat++) {
        for (int i = 0; i < 16; i++) {
            uint32_t bits = draw_bits();
            bits = repeat % 2 ? bits : (bits & 0xffffe000) | (uint32_t)(draw(3) - 1) | 0x1000;
            memcpy(&key[i], &bits, 4);
            key[i] = isnan(key[i]) ? INFINITY : key[i];
            value[i] = draw_float() * 0x1p-13f;
        }
        memset(want, 0, sizeof want);
        memset(got, 0, sizeof got);
        ref->kv_store(want, 16, repeat % 32, key, value);
        for (int v = 0; v < variant_count; v++) {
            variants[v]->kv_store(got, 16, repeat % 32, key, value);
            CU_ASSERT_FATAL(memcmp(want, got, sizeof want) == 0);
        }
    }
}

/* ---- dispatch ------------------------------------------------------------------------------------------------------ */

static void test_dispatch(void)
{
    const struct gw_kernels *k = NULL;
    unsetenv("GODWIT_KERNELS");
    CU_ASSERT_EQUAL(gw_kernels_get(&k), GW_OK);
    CU_ASSERT_PTR_EQUAL(k, variant_count ? variants[0] : ref);
    setenv("GODWIT_KERNELS", "ref", 1);
    CU_ASSERT_EQUAL(gw_kernels_get(&k), GW_OK);
    CU_ASSERT_STRING_EQUAL(k->name, "ref");
    setenv("GODWIT_KERNELS", "sse9", 1);
    CU_ASSERT_EQUAL(gw_kernels_get(&k), GW_ERR_USAGE);
    unsetenv("GODWIT_KERNELS");
}

/* The variants that run here, best first; says which do not. */
static void find_variants(void)
{
    static const char *names[] = {"avx512", "avx2"};
    if (gw_kernels_by_name("ref", &ref) != GW_OK) exit(1);
    for (int i = 0; i < 2; i++) {
        if (gw_kernels_by_name(names[i], &variants[variant_count]) == GW_OK) variant_count++;
        else printf("skipped: %s (%s)\n", names[i], gw_error_detail());
    }
}

int main(void)
{
    const char *given = getenv("GODWIT_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : seed;
    random_state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    find_variants();
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("kernels", NULL, NULL);
    CU_add_test(suite, "dispatch", test_dispatch);
    CU_add_test(suite, "elementary f64", test_elementary_f64);
    CU_add_test(suite, "exp", test_exp);
    CU_add_test(suite, "packing refuses", test_packed_init_refuses);
    CU_add_test(suite, "quantize", test_quantize);
    CU_add_test(suite, "quantize not finite", test_quantize_not_finite);
    CU_add_test(suite, "gemm near double", test_gemm_near);
    CU_add_test(suite, "gemm exact", test_gemm_exact);
    CU_add_test(suite, "gemm limits", test_gemm_limits);
    CU_add_test(suite, "gemm row independence", test_gemm_row_independence);
    CU_add_test(suite, "rmsnorm", test_rmsnorm);
    CU_add_test(suite, "rope", test_rope);
    CU_add_test(suite, "swiglu and add", test_swiglu_and_add);
    CU_add_test(suite, "argmax", test_argmax);
    CU_add_test(suite, "exp_chunks", test_exp_chunks);
    CU_add_test(suite, "kv rounding", test_kv_rounding);
    CU_add_test(suite, "attention", test_attention);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
