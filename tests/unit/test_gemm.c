/* GEMM and packing: ref against a naive form of the contract, every other variant against ref, bit by bit, over odd sizes.
 *
 * The naive GEMM takes the file's blocks apart itself (not the packed form), one output at a time, so packing and the
 * walk over atoms are checked too.
 */
#include "base/mem.h"
#include "kernel_cases.h"

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
        end = last ? blocks : end + draw_range(draw(4) ? 1 : 0, most < 1 ? 1 : most); /* some are empty */
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

    c->x = random_floats((size_t)rows * (size_t)k, extreme);
    gw_act_init(&c->act, rows, k);
    c->act.x = c->x;
    if (quantized) ref->quantize(&c->act, c->x, (size_t)k, 0, rows, 0, k / 32);
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
    free(c->g.scratch);
    free(c->src);
    free(c->w.data);
    free(c->x);
    gw_act_free(&c->act);
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
        const struct gw_act_block *a = gw_act_at(&c->act, row, b);
        int r = row % GW_ACT_ROWS;
        struct gw_type_block block;
        c->info->unpack(weights, (size_t)(c->k_begin / 32 + b), &block);
        int dot = 0;
        for (int i = 0; i < 32; i++) dot += block.half_scale[i / 16] * (block.code[i] - c->info->bias) * a->q[r][i];
        float scale = block.scale * a->scale[r];
        acc = fmaf((float)dot, scale, acc);
        if (c->info->has_min) acc = fmaf(block.min, a->sum[r], acc);
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
    free(c->g.scratch);
    c->g.scratch = gw_alloc_lines(1, gw_gemm_scratch_bytes(kernels, &c->w));
    gw_gemm_forget(c->g.scratch);
    int middle = draw(c->w.panels + 1);
    c->g.next = middle < c->w.panels && draw(2) ? &c->w : NULL; /* a promise that need not be kept */
    c->g.next_panel = draw(4) ? middle : 0;
    kernels->gemm[c->w.pack](&c->g, 0, middle);
    struct gw_gemm rest = c->g; /* the same places, named from another panel */
    rest.y_panel = draw(middle + 1);
    rest.y += rest.y_panel * GW_PANEL;
    kernels->gemm[c->w.pack](&rest, middle, c->w.panels);
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
        for (int rows = 1; rows <= 35; rows++) { /* two tiles of any kernel, and some more */
            for (int repeat = 0; repeat < 4; repeat++) {
                struct case_gemm c;
                make_gemm(&c, types[t], rows, draw_range(1, 70), draw_range(1, 16), repeat >= 2, repeat == 0);
                check_gemm(&c);
                free_gemm(&c);
            }
        }
    }
}

/* Sums so long that activations do not stay in a cache: panels are gone through more than once. */
static void test_gemm_long(void)
{
    for (int t = 0; t < TYPES; t++) {
        struct case_gemm c;
        make_gemm(&c, types[t], 71, draw_range(17, 40), draw_range(1100, 1200), false, draw(2));
        check_gemm(&c);
        free_gemm(&c);
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
                ref->quantize(&c.act, c.x, (size_t)c.w.k, 0, 9, 0, c.w.k / 32);
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
                    if (c.info->unpack) {
                        const struct gw_act_block *a = gw_act_at(&c.act, r, k / 32);
                        x = (double)a->q[r % GW_ACT_ROWS][k % 32] * (double)a->scale[r % GW_ACT_ROWS];
                    }
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
            struct gw_act act;
            gw_act_init(&act, 1, c.w.k);
            for (int row = 0; row < 13; row++) {
                act.x = c.x + (size_t)row * (size_t)c.w.k;
                if (c.info->unpack) kernels->quantize(&act, act.x, (size_t)c.w.k, 0, 1, 0, c.w.k / 32);
                struct gw_gemm g = c.g;
                g.act = &act;
                g.rows = 1;
                g.y = alone + (size_t)row * c.g.y_row_stride;
                for (int node = 0; node < c.nodes; node++)
                    memset(g.y + (size_t)node * c.g.y_node_stride, 0, (size_t)c.w.n * sizeof(float));
                kernels->gemm[c.w.pack](&g, 0, c.w.panels);
            }
            same_floats(c.info->name, kernels->name, together, alone, c.y_count);
            gw_act_free(&act);
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

/* ---- cuts of packed matrices -------------------------------------------------------------------------------------- */

struct source {
    const struct gw_type_info *info;
    uint8_t *src;
    size_t row_bytes;
    int n, k;
};

/* Outputs [n0, n0 + n) and inputs [k0, k0 + k), packed from the file's rows. */
static struct gw_packed pack_part(const struct source *s, int n0, int n, int k0, int k)
{
    struct gw_packed packed;
    CU_ASSERT_EQUAL_FATAL(gw_packed_init(&packed, s->info->type, n, k), GW_OK);
    packed.data = aligned_alloc(64, gw_packed_bytes(&packed));
    memset(packed.data, 0, gw_packed_bytes(&packed));
    gw_pack_panels(&packed, s->src + (size_t)n0 * s->row_bytes, s->row_bytes, k0, 0, packed.panels);
    return packed;
}

static struct gw_packed empty_part(const struct source *s, int n, int k)
{
    struct gw_packed packed;
    CU_ASSERT_EQUAL_FATAL(gw_packed_init(&packed, s->info->type, n, k), GW_OK);
    packed.data = aligned_alloc(64, gw_packed_bytes(&packed));
    memset(packed.data, 0, gw_packed_bytes(&packed));
    return packed;
}

static void same_packed(const char *what, const struct source *s, const struct gw_packed *want,
                        const struct gw_packed *got)
{
    if (memcmp(want->data, got->data, gw_packed_bytes(want)) == 0) return;
    fprintf(stderr, "%s of %s, %d x %d (GODWIT_TEST_SEED=%llu)\n", what, s->info->name, want->n, want->k,
            (unsigned long long)seed);
    CU_FAIL_FATAL("bytes differ");
}

/* Where the next cut ends: a multiple of `unit`, or the end. */
static int next_cut(int at, int end, int unit)
{
    int next = at + unit * draw_range(1, (end - at + unit - 1) / unit);
    return next < end ? next : end;
}

/* A random part out of the whole is what packing that part gives; the parts of a random tiling, each sent on its own, make up the whole. */
static void check_cuts(const struct source *s)
{
    int unit = s->info->unpack ? GW_BLOCK : 1;
    struct gw_packed whole = pack_part(s, 0, s->n, 0, s->k), again = empty_part(s, s->n, s->k);
    int n0 = GW_PANEL * draw((s->n + GW_PANEL - 1) / GW_PANEL), n1 = next_cut(n0, s->n, GW_PANEL);
    int k0 = unit * draw(s->k / unit), k1 = next_cut(k0, s->k, unit);
    CU_ASSERT(gw_packed_can_cut(&whole, n0, k0));
    struct gw_packed want = pack_part(s, n0, n1 - n0, k0, k1 - k0), got = empty_part(s, n1 - n0, k1 - k0);
    gw_packed_copy(&got, 0, 0, &whole, n0, k0, n1 - n0, k1 - k0);
    same_packed("a part", s, &want, &got);
    free(want.data);
    free(got.data);
    for (int n = 0, n_end; n < s->n; n = n_end) {
        n_end = next_cut(n, s->n, GW_PANEL);
        for (int k = 0, k_end; k < s->k; k = k_end) {
            k_end = next_cut(k, s->k, unit);
            struct gw_packed part = pack_part(s, n, n_end - n, k, k_end - k);
            gw_packed_copy(&again, n, k, &part, 0, 0, n_end - n, k_end - k);
            free(part.data);
        }
    }
    same_packed("the parts", s, &whole, &again);
    free(whole.data);
    free(again.data);
}

static void test_packed_copy(void)
{
    for (int t = 0; t < TYPES; t++)
        for (int i = 0; i < 60; i++) {
            struct source s = {.info = gw_type_info((uint32_t)types[t]), .n = draw_range(1, 100)};
            int file_k = 256 * draw_range(1, 3);
            s.k = s.info->unpack ? 32 * draw_range(1, file_k / 32) : draw_range(1, file_k);
            s.row_bytes = (size_t)file_k / (size_t)s.info->block_elements * (size_t)s.info->block_bytes;
            s.src = random_rows(s.info, (size_t)file_k * (size_t)s.n, false);
            check_cuts(&s);
            free(s.src);
        }
    struct gw_packed quantized, plain;
    CU_ASSERT_EQUAL_FATAL(gw_packed_init(&quantized, GW_TYPE_Q4_K, 64, 256), GW_OK);
    CU_ASSERT_EQUAL_FATAL(gw_packed_init(&plain, GW_TYPE_F16, 64, 256), GW_OK);
    CU_ASSERT(gw_packed_can_cut(&quantized, 16, 32) && !gw_packed_can_cut(&quantized, 8, 32));
    CU_ASSERT(!gw_packed_can_cut(&quantized, 16, 16) && gw_packed_can_cut(&plain, 16, 5) &&
              !gw_packed_can_cut(&plain, 17, 0));
}

int main(void)
{
    kernel_tests_begin();
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("gemm", NULL, NULL);
    CU_add_test(suite, "packing refuses", test_packed_init_refuses);
    CU_add_test(suite, "cuts of packed matrices", test_packed_copy);
    CU_add_test(suite, "gemm near double", test_gemm_near);
    CU_add_test(suite, "gemm exact", test_gemm_exact);
    CU_add_test(suite, "gemm over long sums", test_gemm_long);
    CU_add_test(suite, "gemm limits", test_gemm_limits);
    CU_add_test(suite, "gemm row independence", test_gemm_row_independence);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
