/* All kernels but GEMM (test_gemm.c): ref against naive forms of the contract, every other variant against ref, bit by
 * bit, over odd sizes; and the elementary functions against libm.
 */
#include "kernel_cases.h"

/* ---- quantization ------------------------------------------------------------------------------------------------ */

static size_t tiles_of(int rows)
{
    return (size_t)(rows + GW_ACT_ROWS - 1) / GW_ACT_ROWS;
}

static void init_act(struct gw_act *act, const float *x, int rows, int k)
{
    gw_act_init(act, rows, k);
    memset(act->blocks, 0x55, tiles_of(rows) * (size_t)(k / 32) * sizeof *act->blocks);
    act->x = x;
}

static void check_quantized(const struct gw_act *act, int row, int b)
{
    const float *x = act->x + (size_t)row * (size_t)act->k + (size_t)b * 32;
    const struct gw_act_block *block = gw_act_at(act, row, b);
    int r = row % GW_ACT_ROWS;
    float amax = 0;
    for (int i = 0; i < 32; i++) amax = fmaxf(amax, fabsf(x[i]));
    CU_ASSERT_EQUAL_FATAL(block->scale[r], amax / 127.0f);
    int sum[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        float want = amax < 1e-30f ? 0 : rintf(x[i] * (127.0f / amax));
        CU_ASSERT_EQUAL_FATAL((float)block->q[r][i], want);
        CU_ASSERT_FATAL(block->q[r][i] >= -127);
        sum[i / 16] += block->q[r][i];
    }
    CU_ASSERT_EQUAL_FATAL(block->minus_isum[0][r], -(sum[0] + sum[1]));
    CU_ASSERT_EQUAL_FATAL(block->minus_isum[1][r], -sum[1]);
    CU_ASSERT_EQUAL_FATAL(block->sum[r], block->scale[r] * (float)(sum[0] + sum[1]));
}

static void test_quantize(void)
{
    const int rows = 37, k = 32 * 11; /* eight together, and some that are fewer */
    for (int repeat = 0; repeat < 40; repeat++) {
        float *x = random_floats((size_t)rows * (size_t)k, repeat % 2);
        for (int i = 0; i < 32 && repeat % 4 == 0; i++)
            x[i] = (float)(i - 16) * 0.5f / 127 * 8; /* many ties of rounding */
        struct gw_act want, got;
        init_act(&want, x, rows, k);
        ref->quantize(&want, x, (size_t)k, 0, 3, 0, 11);
        ref->quantize(&want, x + 3 * k, (size_t)k, 3, rows, 0, 11);
        for (int row = 0; row < rows; row++)
            for (int b = 0; b < k / 32; b++) check_quantized(&want, row, b);
        for (int v = 0; v < variant_count; v++) {
            init_act(&got, x, rows, k);
            int cut = draw(12); /* rows and blocks in parts, from where they lie */
            variants[v]->quantize(&got, x, (size_t)k, 0, 2, 0, 11);
            variants[v]->quantize(&got, x + 2 * k, (size_t)k, 2, rows, 0, cut);
            variants[v]->quantize(&got, x + 2 * k + cut * 32, (size_t)k, 2, rows, cut, 11);
            /* all of it: what belongs to rows that are not there stays as it was in both */
            CU_ASSERT_FATAL(memcmp(want.blocks, got.blocks, sizeof(struct gw_act_block) * tiles_of(rows) * 11) == 0);
            gw_act_free(&got);
        }
        gw_act_free(&want);
        free(x);
    }
}

/* A NaN or an infinity must not vanish: it shows in the block's scale, and in no other row's. */
static void test_quantize_not_finite(void)
{
    enum { ROWS = 9, WIDTH = 64 };
    for (int v = -1; v < variant_count; v++)
        for (int bad = 0; bad < ROWS; bad++) {
            const struct gw_kernels *kernels = v < 0 ? ref : variants[v];
            float *x = random_floats(ROWS * WIDTH, false);
            x[bad * WIDTH + 5] = NAN;
            x[bad * WIDTH + 40] = -INFINITY;
            struct gw_act act;
            init_act(&act, x, ROWS, WIDTH);
            kernels->quantize(&act, x, WIDTH, 0, ROWS, 0, 2);
            const struct gw_act_block *blocks = gw_act_at(&act, bad, 0);
            CU_ASSERT(isnan(blocks[0].scale[bad % GW_ACT_ROWS]));
            CU_ASSERT(isinf(blocks[1].scale[bad % GW_ACT_ROWS]));
            for (int i = 0; i < WIDTH; i++) CU_ASSERT_EQUAL(blocks[i / 32].q[bad % GW_ACT_ROWS][i % 32], 0);
            for (int row = 0; row < ROWS; row++)
                for (int b = 0; b < 2 && row != bad; b++) check_quantized(&act, row, b);
            gw_act_free(&act);
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

/* Runs rows in pieces of `piece`, with strides wider than a row; or `over` the queries themselves. */
static float *run_attention(const struct case_attention *c, const struct gw_kernels *kernels, int piece, bool over)
{
    size_t width = (size_t)c->group * (size_t)c->head_dim, stride = width + 3;
    float *out = floats(stride * (size_t)c->rows);
    for (int row = 0; over && row < c->rows; row++)
        memcpy(out + (size_t)row * stride, c->q + (size_t)row * width, width * sizeof *out);
    for (int row = 0; row < c->rows; row += piece) {
        struct gw_attention a = {.head_dim = c->head_dim,
                                 .group = c->group,
                                 .rows = c->rows - row < piece ? c->rows - row : piece,
                                 .pos0 = c->pos0 + row,
                                 .scale = 1 / sqrtf((float)c->head_dim),
                                 .pages = (const uint16_t *const *)c->pages,
                                 .q = over ? out + (size_t)row * stride : c->q + (size_t)row * width,
                                 .q_stride = over ? stride : width,
                                 .out = out + (size_t)row * stride,
                                 .out_stride = stride};
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

/* The rows as if each were of a sequence of its own which has its first `shared` pages in common with the others'. */
static float *run_shared(const struct case_attention *c, const struct gw_kernels *kernels, int shared)
{
    size_t width = (size_t)c->group * (size_t)c->head_dim, stride = width + 3;
    float *out = floats(stride * (size_t)c->rows);
    struct gw_attention_own *own = gw_alloc((size_t)c->rows, sizeof *own);
    uint16_t ***pages = gw_alloc((size_t)c->rows, sizeof *pages);
    for (int row = 0; row < c->rows; row++) {
        pages[row] = store_pages(c, ref);
        own[row] = (struct gw_attention_own){c->pos0 + row, (const uint16_t *const *)pages[row] + shared};
    }
    struct gw_attention a = {.head_dim = c->head_dim,
                             .group = c->group,
                             .rows = c->rows,
                             .scale = 1 / sqrtf((float)c->head_dim),
                             .pages = (const uint16_t *const *)c->pages,
                             .q = c->q,
                             .q_stride = width,
                             .out = out,
                             .out_stride = stride,
                             .own = own,
                             .shared = shared};
    kernels->attention(&a);
    for (int row = 0; row < c->rows; row++) free_pages(pages[row], c->page_count);
    free(pages);
    free(own);
    return out;
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
        float *want = run_attention(&c, ref, c.rows, false);
        for (int t = 0; t < 20; t++) {
            int row = draw(c.rows), head = draw(c.group), d = draw(c.head_dim);
            double near = naive_attention(&c, row, head, d);
            float y = want[(size_t)row * (width + 3) + (size_t)(head * c.head_dim + d)];
            CU_ASSERT_FATAL(i % 3 == 2 || fabs(near - (double)y) < 1e-5);
        }
        float *alone = run_attention(&c, ref, 1, i % 2);
        same_floats(what, "ref by rows", want, alone, count);
        free(alone);
        for (int v = 0; v < variant_count; v++) {
            uint16_t **pages = store_pages(&c, variants[v]);
            for (size_t p = 0; p < c.page_count; p++)
                CU_ASSERT_FATAL(memcmp(c.pages[p], pages[p], gw_page_halves(c.head_dim) * sizeof(uint16_t)) == 0);
            free_pages(pages, c.page_count);
            for (int piece = 1; piece <= c.rows; piece += piece < c.rows ? draw_range(1, c.rows - piece) : 1) {
                for (int over = 0; over < 2; over++) {
                    float *got = run_attention(&c, variants[v], piece, over);
                    same_floats(what, variants[v]->name, want, got, count);
                    free(got);
                }
            }
        }
        for (int v = -1; v < variant_count; v++) { /* the reference, too */
            const struct gw_kernels *kernels = v < 0 ? ref : variants[v];
            if (c.pos0 < GW_PAGE_TOKENS) break;
            float *got = run_shared(&c, kernels, draw_range(1, c.pos0 / GW_PAGE_TOKENS));
            same_floats(what, kernels->name, want, got, count);
            free(got);
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

int main(void)
{
    kernel_tests_begin();
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("kernels", NULL, NULL);
    CU_add_test(suite, "dispatch", test_dispatch);
    CU_add_test(suite, "elementary f64", test_elementary_f64);
    CU_add_test(suite, "exp", test_exp);
    CU_add_test(suite, "quantize", test_quantize);
    CU_add_test(suite, "quantize not finite", test_quantize_not_finite);
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
