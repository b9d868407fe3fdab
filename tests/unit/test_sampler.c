/* The sampler against its contract: a naive one that sorts the whole vocabulary must pick the same token every time, every
 * kernel table must too, and the frequencies must fit the distribution that each filter leaves (chi-square). */
#include "base/clock.h"
#include "base/mem.h"
#include "base/philox.h"
#include "engine/sampler.h"
#include "kernels/elementary.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_VOCAB 20000

static uint64_t random_state = 4711;

static double next_uniform(void) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int next_int(int bound)
{
    return (int)(next_uniform() * bound);
}

static float next_normal(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += next_uniform();
    return (float)(sum - 6);
}

static int table_count;
static const struct gw_kernels *tables[4];

static void find_tables(void)
{
    static const char *const names[] = {"ref", "avx2", "avx512", "amx"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        if (gw_kernels_by_name(names[i], &tables[table_count]) == GW_OK) table_count++;
        else printf("not run here: %s\n", names[i]);
    }
}

static const struct gw_sample_params plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 7, .stream = 9};

/* ---- the contract, spelled out naively --------------------------------------------------------------------------- */

struct entry {
    float w;
    int id;
};

static int by_weight(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return x->w != y->w ? (x->w < y->w ? 1 : -1) : x->id - y->id;
}

static float clamp(float l)
{
    return l > 1e30f ? 1e30f : l < -1e30f ? -1e30f : l;
}

static int naive_argmax(const float *l, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (l[i] > l[best]) best = i;
    return best;
}

static void naive_chunks(const float *w, int n, float *chunk_sum)
{
    for (int c = 0; c * 64 < n; c++) {
        float s[16] = {0};
        for (int i = c * 64; i < n && i < c * 64 + 64; i++) s[i % 16] += w[i];
        for (int j = 0; j < 8; j++) s[j] += s[j + 8];
        for (int j = 0; j < 4; j++) s[j] += s[j + 4];
        for (int j = 0; j < 2; j++) s[j] += s[j + 2];
        chunk_sum[c] = s[0] + s[1];
    }
}

static int naive_walk(const float *w, const float *chunk_sum, int n, double target)
{
    double sum = 0;
    int pick = -1;
    for (int c = 0; c * 64 < n; c++) {
        if (sum + (double)chunk_sum[c] > target) {
            for (int i = c * 64; i < n && i < c * 64 + 64; i++) {
                sum += (double)w[i];
                if (w[i] > 0) pick = i;
                if (w[i] > 0 && sum > target) return i;
            }
            return pick;
        }
        sum += (double)chunk_sum[c];
    }
    for (int i = 0; i < n; i++)
        if (w[i] > 0) pick = i;
    return pick;
}

static int naive_sample(const struct gw_sample_params *p, const float *logits, int n, const int32_t *history,
                        int history_count, uint64_t index)
{
    static float l[MAX_VOCAB], w[MAX_VOCAB], chunk_sum[MAX_VOCAB / 64 + 1];
    static struct entry sorted[MAX_VOCAB];
    for (int i = 0; i < n; i++) {
        l[i] = isfinite(logits[i]) ? clamp(logits[i]) : -INFINITY;
    }
    for (int h = 0; h < history_count; h++) {
        int i = history[h];
        bool again = false;
        for (int g = 0; g < h; g++) again = again || history[g] == i;
        if (i < 0 || i >= n || again || !isfinite(l[i])) continue;
        l[i] = clamp(l[i] > 0 ? l[i] / p->repetition_penalty : l[i] * p->repetition_penalty);
    }
    int best = naive_argmax(l, n);
    if (p->temperature < 1e-5f) return best;
    float inv_t = 1 / p->temperature, m = l[best] * inv_t;
    for (int i = 0; i < n; i++) {
        w[i] = gw_expf(l[i] * inv_t - m);
        if (w[i] < p->min_p) w[i] = 0;
    }
    naive_chunks(w, n, chunk_sum);
    double z = 0, u = gw_philox_uniform(p->seed, p->stream, index);
    for (int c = 0; c * 64 < n; c++) z += (double)chunk_sum[c];
    bool top_k = p->top_k > 0 && p->top_k < n;
    if (!top_k && p->top_p == 1) return naive_walk(w, chunk_sum, n, u * z);

    int count = 0, kept;
    for (int i = 0; i < n; i++)
        if (w[i] > 0) sorted[count++] = (struct entry){w[i], i};
    qsort(sorted, (size_t)count, sizeof *sorted, by_weight);
    if (top_k && count > p->top_k) count = p->top_k;
    double total = 0, cum = 0;
    for (int i = 0; i < count; i++) total += (double)sorted[i].w;
    for (kept = 0; kept < count;) {
        cum += (double)sorted[kept++].w;
        if (p->top_p < 1 && cum >= (double)p->top_p * (top_k ? total : z)) break;
    }
    double run = 0;
    for (int i = 0; i < kept; i++) {
        run += (double)sorted[i].w;
        if (run > u * cum) return sorted[i].id;
    }
    return sorted[kept - 1].id;
}

/* ---- exactness --------------------------------------------------------------------------------------------------- */

enum shape { NORMAL, STEEP, TIES, EQUAL, SPIKE, MASKED, BROKEN, HUGE_LOGITS, SHAPES };

static void make_logits(enum shape shape, float *l, int n)
{
    for (int i = 0; i < n; i++) {
        float x = next_normal();
        switch (shape) {
        case NORMAL: l[i] = 3 * x; break;
        case STEEP: l[i] = 40 * x; break;
        case TIES: l[i] = (float)next_int(5); break;
        case EQUAL: l[i] = -2.5f; break;
        case SPIKE: l[i] = next_int(n) == 0 ? 30 : x / 100; break;
        case MASKED: l[i] = next_int(10) ? -INFINITY : x; break;
        case BROKEN: l[i] = next_int(3) ? x : next_int(2) ? NAN : next_int(2) ? INFINITY : -INFINITY; break;
        default: l[i] = x * 1e38f;
        }
    }
    int finite = next_int(n);
    if (!isfinite(l[finite])) l[finite] = 1;
}

static struct gw_sample_params make_params(void)
{
    static const float temperatures[] = {0, 1e-5f, 0.1f, 0.7f, 1, 1, 2, 50};
    static const float top_ps[] = {1, 1, 0, 0.1f, 0.5f, 0.9f, 0.95f, 0.99999994f};
    static const float min_ps[] = {0, 0, 0, 1e-6f, 0.05f, 0.5f, 1};
    static const float penalties[] = {1, 1, 1.1f, 2, 0.5f, 1e-38f, 3e38f};
    static const int32_t top_ks[] = {0, -1, 1, 2, 5, 50, 1000, 1 << 30};
    return (struct gw_sample_params){.temperature = temperatures[next_int(8)],
                                     .top_p = top_ps[next_int(8)],
                                     .min_p = min_ps[next_int(7)],
                                     .repetition_penalty = penalties[next_int(7)],
                                     .top_k = top_ks[next_int(8)],
                                     .seed = (uint64_t)next_int(1 << 30),
                                     .stream = (uint64_t)next_int(1 << 30) << 20};
}

static void test_against_naive(void)
{
    static const int vocabs[] = {1, 2, 15, 63, 64, 65, 200, 1000, 4999, MAX_VOCAB};
    static float logits[MAX_VOCAB], row[MAX_VOCAB];
    struct gw_sampler sampler;
    gw_sampler_init(&sampler, MAX_VOCAB);
    int wrong = 0, differing = 0, rounds = 4000;
    for (int round = 0; round < rounds; round++) {
        int n = vocabs[next_int(round % 32 ? 8 : 10)];
        make_logits((enum shape)(round % SHAPES), logits, n);
        int32_t history[40];
        int history_count = next_int(40);
        for (int h = 0; h < history_count; h++) history[h] = next_int(n + 2) - 1; /* also ids that do not exist */
        struct gw_sample_params params = make_params();
        uint64_t index = (uint64_t)next_int(5000);
        struct gw_sample_result first = {0};
        for (int t = 0; t < table_count; t++) {
            struct gw_sample_result result;
            memcpy(row, logits, (size_t)n * sizeof *row);
            int logprobs = next_int(3) - 1; /* must not matter to the token */
            CU_ASSERT_EQUAL_FATAL(gw_sample(tables[t], &sampler, &params, row, n, history, history_count, index,
                                            logprobs, &result),
                                  GW_OK);
            if (t == 0) first = result;
            differing += result.token != first.token;
        }
        int want = naive_sample(&params, logits, n, history, history_count, index);
        if (first.token != want && wrong++ < 5)
            printf("\nround %d: shape %d vocab %d t %g top_p %g min_p %g top_k %d: token %d, naive %d\n", round,
                   round % SHAPES, n, (double)params.temperature, (double)params.top_p, (double)params.min_p,
                   params.top_k, first.token, want);
    }
    printf("(%d rows, %d tables) ", rounds, table_count);
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT_EQUAL(differing, 0);
    gw_sampler_close(&sampler);
}

static void test_no_finite_logit(void)
{
    struct gw_sampler sampler;
    struct gw_sample_result result;
    gw_sampler_init(&sampler, 100);
    float row[100];
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int b = 0; b < 3; b++) {
        for (int i = 0; i < 100; i++) row[i] = bad[b];
        CU_ASSERT_EQUAL(gw_sample(tables[0], &sampler, &plain, row, 100, NULL, 0, 0, 5, &result), GW_ERR_BUG);
        CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "no finite logit"));
        row[42] = -3e38f;
        row[41] = bad[(b + 1) % 3];
        for (float t = 0; t < 2; t++) {
            struct gw_sample_params params = plain;
            params.temperature = t;
            CU_ASSERT_EQUAL(gw_sample(tables[0], &sampler, &params, row, 100, NULL, 0, 0, 5, &result), GW_OK);
            CU_ASSERT_EQUAL(result.token, 42);
            CU_ASSERT_EQUAL(result.alternatives, 1);
            CU_ASSERT_EQUAL(result.alt_token[0], 42);
            CU_ASSERT_EQUAL(result.logprob, 0);
        }
    }
    struct gw_sample_params params = plain;
    params.temperature = NAN;
    CU_ASSERT_EQUAL(gw_sample(tables[0], &sampler, &params, row, 100, NULL, 0, 0, -1, &result), GW_ERR_BUG);
    gw_sampler_close(&sampler);
}

/* ---- log-probabilities ------------------------------------------------------------------------------------------- */

static void test_logprobs(void)
{
    enum { N = 777 };
    static float logits[N], row[N];
    struct gw_sampler sampler;
    gw_sampler_init(&sampler, N);
    int wrong = 0;
    for (int round = 0; round < 60; round++) {
        make_logits(round % 2 ? NORMAL : TIES, logits, N);
        double sum = 0, max = (double)logits[naive_argmax(logits, N)];
        for (int i = 0; i < N; i++) sum += exp((double)logits[i] - max);
        int32_t history[] = {3, 3, 5};
        struct gw_sample_params params = make_params();
        struct gw_sample_result result;
        int asked = next_int(GW_MAX_LOGPROBS + 1);
        memcpy(row, logits, sizeof row);
        CU_ASSERT_EQUAL_FATAL(
            gw_sample(tables[round % table_count], &sampler, &params, row, N, history, 3, 1, asked, &result), GW_OK);
        wrong += memcmp(row, logits, sizeof row) != 0;
        wrong += fabs((double)result.logprob - ((double)logits[result.token] - max - log(sum))) > 2e-6;
        wrong += result.alternatives != asked;
        static struct entry sorted[N];
        for (int i = 0; i < N; i++) sorted[i] = (struct entry){logits[i], i};
        qsort(sorted, N, sizeof *sorted, by_weight);
        for (int i = 0; i < asked; i++) {
            wrong += result.alt_token[i] != sorted[i].id;
            wrong += fabs((double)result.alt_logprob[i] - ((double)sorted[i].w - max - log(sum))) > 2e-6;
        }
    }
    CU_ASSERT_EQUAL(wrong, 0);
    gw_sampler_close(&sampler);
}

static void test_repetition_penalty(void)
{
    float row[4] = {2, 1.5f, -1, -1.2f};
    const int32_t history[] = {0, 0, 2, 99, -1};
    struct gw_sampler sampler;
    struct gw_sample_result result;
    struct gw_sample_params params = plain;
    gw_sampler_init(&sampler, 4);
    params.temperature = 0;
    params.repetition_penalty = 1.25f; /* 2 / 1.25 = 1.6 once; twice would be 1.28 and lose */
    CU_ASSERT_EQUAL(gw_sample(tables[0], &sampler, &params, row, 4, history, 5, 0, -1, &result), GW_OK);
    CU_ASSERT_EQUAL(result.token, 0);
    row[0] = row[1] = -9; /* now -1 * 1.25 = -1.25 loses to -1.2 */
    CU_ASSERT_EQUAL(gw_sample(tables[0], &sampler, &params, row, 4, history, 5, 0, -1, &result), GW_OK);
    CU_ASSERT_EQUAL(result.token, 3);
    sampler.epoch = UINT32_MAX; /* the wrap of the stamps forgets nothing and invents nothing */
    CU_ASSERT_EQUAL(gw_sample(tables[0], &sampler, &params, row, 4, history, 5, 0, -1, &result), GW_OK);
    CU_ASSERT_EQUAL(result.token, 3);
    CU_ASSERT_EQUAL(sampler.epoch, 1);
    gw_sampler_close(&sampler);
}

/* ---- frequencies ------------------------------------------------------------------------------------------------- */

/* Probabilities in double, libm, straight from the definitions. */
static void expected(const struct gw_sample_params *p, const float *l, int n, double *prob)
{
    struct entry sorted[64];
    double max = (double)l[naive_argmax(l, n)], total = 0, cum = 0, kept = 0;
    for (int i = 0; i < n; i++) {
        prob[i] = exp(((double)l[i] - max) / (double)p->temperature);
        if (prob[i] < (double)p->min_p) prob[i] = 0;
        sorted[i] = (struct entry){(float)prob[i], i};
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_weight);
    for (int i = 0; i < n; i++) {
        if (p->top_k > 0 && i >= p->top_k) prob[sorted[i].id] = 0;
        total += prob[sorted[i].id];
    }
    for (int i = 0; i < n; i++) {
        double here = prob[sorted[i].id];
        if (i && cum >= (double)p->top_p * total) prob[sorted[i].id] = 0;
        cum += here;
        kept += prob[sorted[i].id];
    }
    for (int i = 0; i < n; i++) prob[i] /= kept;
}

static void test_frequencies(void)
{
    static const struct {
        const char *name;
        float temperature, top_p, min_p;
        int top_k;
    } cases[] = {{"plain", 1, 1, 0, 0},         {"hot", 3, 1, 0, 0},
                 {"cold", 0.3f, 1, 0, 0},       {"min_p", 1, 1, 0.1f, 0},
                 {"top_k", 1, 1, 0, 7},         {"top_p", 1, 0.8f, 0, 0},
                 {"k and p", 1, 0.7f, 0, 12},   {"min_p and p", 1, 0.9f, 0.05f, 0},
                 {"all", 1.5f, 0.9f, 0.02f, 20}};
    enum { N = 40, DRAWS = 60000 };
    float logits[N];
    struct gw_sampler sampler;
    gw_sampler_init(&sampler, N);
    for (int i = 0; i < N; i++) logits[i] = 1.5f * next_normal();
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct gw_sample_params params = plain;
        params.temperature = cases[c].temperature;
        params.top_p = cases[c].top_p;
        params.min_p = cases[c].min_p;
        params.top_k = cases[c].top_k;
        params.seed = c;
        int count[N] = {0}, freedom = -1, never = 0;
        double prob[N], chi2 = 0;
        for (uint64_t index = 0; index < DRAWS; index++) {
            struct gw_sample_result result;
            if (gw_sample(tables[0], &sampler, &params, logits, N, NULL, 0, index, -1, &result) != GW_OK) never++;
            count[result.token]++;
        }
        expected(&params, logits, N, prob);
        for (int i = 0; i < N; i++) {
            double want = prob[i] * DRAWS;
            if (prob[i] <= 0) never += count[i];
            if (want < 5) continue;
            chi2 += (count[i] - want) * (count[i] - want) / want;
            freedom++;
        }
        CU_ASSERT_EQUAL(never, 0);
        CU_ASSERT_TRUE(freedom >= 2);
        bool fits = chi2 < freedom + 4 * sqrt(2.0 * freedom); /* about 1 in 10^4 fails by chance; the draws are fixed */
        if (!fits) printf("\n%s: chi-square %.1f with %d degrees of freedom\n", cases[c].name, chi2, freedom);
        CU_ASSERT_TRUE(fits);
    }
    gw_sampler_close(&sampler);
}

/* Not a check: what a draw costs, for the log. */
static void test_cost(void)
{
    static const float top_ps[] = {1, 0.95f, 0.95f};
    enum { N = 151936, ROUNDS = 10 };
    float *logits = gw_alloc(N, sizeof *logits);
    struct gw_sampler sampler;
    gw_sampler_init(&sampler, N);
    for (int i = 0; i < N; i++) logits[i] = 2 * next_normal();
    for (int c = 0; c < 3; c++) {
        struct gw_sample_params params = plain;
        struct gw_sample_result result;
        params.top_p = top_ps[c];
        params.top_k = c == 2 ? 50 : 0;
        double t0 = gw_clock_now_s();
        for (uint64_t i = 0; i < ROUNDS; i++)
            CU_ASSERT_EQUAL(gw_sample(tables[table_count - 1], &sampler, &params, logits, N, NULL, 0, i, -1, &result),
                            GW_OK);
        printf("(top_p %.2f top_k %d: %.0f us) ", (double)params.top_p, params.top_k,
               (gw_clock_now_s() - t0) / ROUNDS * 1e6);
    }
    gw_sampler_close(&sampler);
    free(logits);
}

int main(void)
{
    find_tables();
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("sampler", NULL, NULL);
    CU_add_test(suite, "against a full sort", test_against_naive);
    CU_add_test(suite, "no finite logit", test_no_finite_logit);
    CU_add_test(suite, "logprobs", test_logprobs);
    CU_add_test(suite, "repetition penalty", test_repetition_penalty);
    CU_add_test(suite, "frequencies", test_frequencies);
    CU_add_test(suite, "cost", test_cost);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
