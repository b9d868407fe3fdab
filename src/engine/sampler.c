/* See sampler.h for the arithmetic; this file adds how it is done without sorting the vocabulary.
 *
 * Weights lie in (0, 1], and positive floats order like their bits. So candidates are first counted in buckets by their upper
 * 13 bits (exponent and 4 bits of mantissa). Only the buckets from the top that can reach into the kept prefix are gathered,
 * in order of id, and each is sorted by its remaining 19 bits with a stable radix sort: the same order as a full sort by
 * (weight descending, id ascending), at a cost that follows the number of tokens kept.
 */
#include "engine/sampler.h"

#include "base/mem.h"
#include "base/philox.h"
#include "kernels/elementary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GREEDY_BELOW 1e-5f
#define LOGIT_MAX 1e30f
#define LN_2 0x1.62e42fefa39efp-1
#define LANES 16 /* of a lane sum, kernels.h */

#define BUCKET_SHIFT 19
#define BUCKETS (1 << 13)                       /* one for any float, so that no weight can write elsewhere */
#define TOP_BUCKET (0x3f800000 >> BUCKET_SHIFT) /* of weight 1, the largest */
#define SMALL_SORT 48
#define RADIX_BITS 10

void gw_sampler_init(struct gw_sampler *sampler, int vocab)
{
    GW_ASSERT(vocab > 0);
    size_t n = (size_t)vocab;
    *sampler = (struct gw_sampler){
        .vocab = vocab,
        .w = gw_alloc(n, sizeof(float)),
        .chunk_sum = gw_alloc((n + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK, sizeof(float)),
        .sorted = gw_alloc(n, sizeof(uint64_t)),
        .sorted_tmp = gw_alloc(n, sizeof(uint64_t)),
        .stamp = gw_alloc(n, sizeof(uint32_t)),
        .bucket_count = gw_alloc(BUCKETS, sizeof(uint32_t)),
    };
}

void gw_sampler_close(struct gw_sampler *sampler)
{
    free(sampler->w);
    free(sampler->chunk_sum);
    free(sampler->sorted);
    free(sampler->sorted_tmp);
    free(sampler->stamp);
    free(sampler->bucket_count);
    *sampler = (struct gw_sampler){0};
}

static uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* A candidate as a number: ascending order is weight descending, then id ascending. */
static uint64_t candidate(float w, int id)
{
    return (uint64_t)~float_bits(w) << 32 | (uint32_t)id;
}

static float candidate_weight(uint64_t key)
{
    uint32_t bits = ~(uint32_t)(key >> 32);
    float w;
    memcpy(&w, &bits, sizeof w);
    return w;
}

static int candidate_id(uint64_t key)
{
    return (int)(uint32_t)key;
}

static float clamp_logit(float l)
{
    return l > LOGIT_MAX ? LOGIT_MAX : l < -LOGIT_MAX ? -LOGIT_MAX : l;
}

/* ---- steps 0 to 2: the row -------------------------------------------------------------------------------------- */

static void tame_one(float *l)
{
    *l = isfinite(*l) ? clamp_logit(*l) : -INFINITY;
}

static void tame(float *logits, int n)
{
    const uint32_t limit = float_bits(LOGIT_MAX);
    int begin = 0;
    for (; begin + GW_SUM_CHUNK <= n; begin += GW_SUM_CHUNK) { /* a fixed length without branches becomes vector code */
        uint32_t over = 0;
        for (int i = 0; i < GW_SUM_CHUNK; i++) over |= limit - (float_bits(logits[begin + i]) & 0x7fffffff);
        if (!(over >> 31)) continue;
        for (int i = 0; i < GW_SUM_CHUNK; i++) tame_one(&logits[begin + i]);
    }
    for (; begin < n; begin++) tame_one(&logits[begin]);
}

/* The `wanted` largest logits in order; -inf is not listed. */
static int find_largest(const float *logits, int n, int wanted, int32_t *id, float *value)
{
    int count = 0;
    for (int i = 0; i < n && wanted; i++) {
        if (count == wanted ? !(logits[i] > value[count - 1]) : logits[i] == -INFINITY) continue;
        int at = count < wanted ? count++ : count - 1;
        for (; at > 0 && value[at - 1] < logits[i]; at--) {
            value[at] = value[at - 1];
            id[at] = id[at - 1];
        }
        value[at] = logits[i];
        id[at] = i;
    }
    return count;
}

static double sum_chunks(const float *chunk_sum, int n)
{
    double sum = 0;
    for (int c = 0; c < (n + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK; c++) sum += (double)chunk_sum[c];
    return sum;
}

static float log_probability(float logit, float max_logit, double ln_z)
{
    return (float)((double)logit - (double)max_logit - ln_z);
}

static void penalise(struct gw_sampler *s, float *logits, int n, float penalty, const int32_t *history, int count)
{
    if (++s->epoch == 0) { /* wrapped: old stamps could look new */
        memset(s->stamp, 0, (size_t)s->vocab * sizeof *s->stamp);
        s->epoch = 1;
    }
    for (int i = 0; i < count; i++) {
        int32_t id = history[i];
        if (id < 0 || id >= n || s->stamp[id] == s->epoch) continue;
        s->stamp[id] = s->epoch;
        float l = logits[id];
        if (l != -INFINITY) logits[id] = clamp_logit(l > 0 ? l / penalty : l * penalty);
    }
}

/* ---- steps 5 and 7: without candidates -------------------------------------------------------------------------- */

static float lane_sum(const float *x, int n)
{
    float s[LANES] = {0};
    for (int i = 0; i < n; i++) s[i % LANES] += x[i];
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) s[j] += s[j + half];
    return s[0];
}

static void drop_below(float *w, float *chunk_sum, int n, float min_p)
{
    for (int begin = 0; begin < n; begin += GW_SUM_CHUNK) {
        int count = n - begin < GW_SUM_CHUNK ? n - begin : GW_SUM_CHUNK;
        for (int i = begin; i < begin + count; i++) w[i] = w[i] >= min_p ? w[i] : 0;
        chunk_sum[begin / GW_SUM_CHUNK] = lane_sum(w + begin, count);
    }
}

static int last_positive(const float *w, int begin, int end)
{
    while (end > begin + 1 && !(w[end - 1] > 0)) end--;
    return end - 1;
}

static int walk_chunks(const float *w, const float *chunk_sum, int n, double target)
{
    double sum = 0;
    for (int begin = 0; begin < n; begin += GW_SUM_CHUNK) {
        double before = sum;
        sum += (double)chunk_sum[begin / GW_SUM_CHUNK];
        if (!(sum > target)) continue;
        int end = n - begin < GW_SUM_CHUNK ? n : begin + GW_SUM_CHUNK;
        sum = before;
        for (int i = begin; i < end; i++) {
            sum += (double)w[i];
            if (sum > target && w[i] > 0) return i;
        }
        return last_positive(w, begin, end);
    }
    return last_positive(w, 0, n);
}

/* ---- step 8: candidates ----------------------------------------------------------------------------------------- */

/* One stable counting pass over `bits` bits of the keys from `shift`. */
static void radix_pass(const uint64_t *from, uint64_t *to, int count, int shift, int bits)
{
    uint32_t at[1 << RADIX_BITS] = {0};
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    for (int i = 0; i < count; i++) at[from[i] >> shift & mask]++;
    uint32_t sum = 0;
    for (uint64_t d = 0; d <= mask; d++) {
        uint32_t here = at[d];
        at[d] = sum;
        sum += here;
    }
    for (int i = 0; i < count; i++) to[at[from[i] >> shift & mask]++] = from[i];
}

/* Sorts the candidates of one bucket, which come in order of id. */
static void sort_bucket(uint64_t *keys, uint64_t *tmp, int count)
{
    if (count <= SMALL_SORT) {
        for (int i = 1; i < count; i++) {
            uint64_t key = keys[i];
            int at = i;
            for (; at > 0 && keys[at - 1] > key; at--) keys[at] = keys[at - 1];
            keys[at] = key;
        }
        return;
    }
    radix_pass(keys, tmp, count, 32, RADIX_BITS);
    radix_pass(tmp, keys, count, 32 + RADIX_BITS, BUCKET_SHIFT - RADIX_BITS);
}

static float bucket_floor(int bucket)
{
    uint32_t bits = (uint32_t)bucket << BUCKET_SHIFT;
    float w;
    memcpy(&w, &bits, sizeof w);
    return w;
}

/* Counts candidates by bucket, then gathers those of the upper buckets: enough of them for `count` candidates and for the
 * weight `mass`, or all. Afterwards bucket_count[b] is the end of bucket b in s->sorted. Returns the lowest bucket. */
static int gather(struct gw_sampler *s, int n, int count, double mass)
{
    const float *w = s->w;
    memset(s->bucket_count, 0, BUCKETS * sizeof *s->bucket_count);
    for (int i = 0; i < n; i++) s->bucket_count[float_bits(w[i]) >> BUCKET_SHIFT] += w[i] > 0;
    int lowest = TOP_BUCKET + 1;
    uint32_t found = 0;
    double least = 0; /* the weight that was found is at least this; the factor below covers the rounding of sums */
    while (lowest > 0 && ((int)found < count || least < mass * (1 + 1e-9))) {
        uint32_t here = s->bucket_count[--lowest];
        least += here * (double)bucket_floor(lowest);
        s->bucket_count[lowest] = found; /* from now on: where the bucket's next candidate goes */
        found += here;
    }
    float least_w = bucket_floor(lowest);
    for (int begin = 0; begin < n; begin += GW_SUM_CHUNK) {
        if (s->chunk_sum[begin / GW_SUM_CHUNK] < least_w) continue; /* a sum is no smaller than any of its terms */
        int end = n - begin < GW_SUM_CHUNK ? n : begin + GW_SUM_CHUNK;
        for (int i = begin; i < end; i++)
            if (w[i] >= least_w && w[i] > 0)
                s->sorted[s->bucket_count[float_bits(w[i]) >> BUCKET_SHIFT]++] = candidate(w[i], i);
    }
    return lowest;
}

/* Puts the head of the sorted candidates into s->sorted: at least `count` of them and until their running sum is at least
 * `mass`, or all there are. Returns how many. */
static int sort_head(struct gw_sampler *s, int n, int count, double mass)
{
    int lowest = gather(s, n, count, mass), begin = 0;
    double cum = 0;
    for (int b = TOP_BUCKET; b >= lowest && (begin < count || cum < mass); b--) {
        int end = (int)s->bucket_count[b];
        sort_bucket(s->sorted + begin, s->sorted_tmp, end - begin);
        for (; begin < end; begin++) cum += (double)candidate_weight(s->sorted[begin]);
    }
    GW_ASSERT(begin > 0); /* the largest weight is 1 */
    return begin;
}

static int walk_candidates(struct gw_sampler *s, int n, const struct gw_sample_params *params, double z, double u)
{
    bool by_count = params->top_k > 0 && params->top_k < n;
    double p = (double)params->top_p;
    int kept = sort_head(s, n, by_count ? params->top_k : 1, by_count ? 0 : p * z);
    if (by_count && kept > params->top_k) kept = params->top_k;

    double total = 0;
    for (int i = 0; i < kept; i++) total += (double)candidate_weight(s->sorted[i]);
    if (p < 1) {
        double need = p * (by_count ? total : z);
        int available = kept;
        total = 0;
        kept = 0;
        do total += (double)candidate_weight(s->sorted[kept++]);
        while (kept < available && !(total >= need));
    }
    double sum = 0;
    for (int i = 0; i < kept; i++) {
        sum += (double)candidate_weight(s->sorted[i]);
        if (sum > u * total) return candidate_id(s->sorted[i]);
    }
    return candidate_id(s->sorted[kept - 1]);
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static bool params_valid(const struct gw_sample_params *p)
{
    return p->temperature >= 0 && isfinite(p->temperature) && p->top_p >= 0 && p->top_p <= 1 && p->min_p >= 0 &&
           p->min_p <= 1 && p->repetition_penalty > 0 && isfinite(p->repetition_penalty);
}

/* Steps 4 to 8; l may be s->w. */
static int draw(const struct gw_kernels *kernels, struct gw_sampler *s, const struct gw_sample_params *params,
                const float *l, int vocab, float max_logit, uint64_t index)
{
    float inv_t = 1.0f / params->temperature;
    kernels->exp_chunks(l, vocab, inv_t, max_logit * inv_t, s->w, s->chunk_sum);
    if (params->min_p > 0) drop_below(s->w, s->chunk_sum, vocab, params->min_p);
    double z = sum_chunks(s->chunk_sum, vocab);
    double u = gw_philox_uniform(params->seed, params->stream, index);
    if ((params->top_k > 0 && params->top_k < vocab) || params->top_p < 1)
        return walk_candidates(s, vocab, params, z, u);
    return walk_chunks(s->w, s->chunk_sum, vocab, u * z);
}

gw_err gw_sample(const struct gw_kernels *kernels, struct gw_sampler *sampler, const struct gw_sample_params *params,
                 float *logits, int vocab, const int32_t *history, int history_count, uint64_t index, int logprobs,
                 struct gw_sample_result *result)
{
    gw_err rc = GW_OK;
    *result = (struct gw_sample_result){0};
    GW_ASSERT(vocab > 0 && vocab <= sampler->vocab && logprobs <= GW_MAX_LOGPROBS);
    if (!params_valid(params)) FAIL(GW_ERR_BUG, "sampling parameters out of range reached the sampler");
    tame(logits, vocab);
    int best = kernels->argmax(logits, vocab);
    float raw_max = logits[best];
    if (raw_max == -INFINITY)
        FAIL(GW_ERR_BUG,
             "no finite logit among %d: the model file is damaged or a kernel is wrong"
             " (GODWIT_KERNELS=ref tells which)",
             vocab);
    double ln_z = 0;
    if (logprobs >= 0) {
        kernels->exp_chunks(logits, vocab, 1.0f, raw_max, sampler->w, sampler->chunk_sum);
        ln_z = gw_log2_f64(sum_chunks(sampler->chunk_sum, vocab)) * LN_2;
        result->alternatives = find_largest(logits, vocab, logprobs, result->alt_token, result->alt_logprob);
        for (int i = 0; i < result->alternatives; i++)
            result->alt_logprob[i] = log_probability(result->alt_logprob[i], raw_max, ln_z);
    }
    const float *l = logits;
    if (params->repetition_penalty != 1 && history_count > 0) {
        memcpy(sampler->w, logits, (size_t)vocab * sizeof *logits); /* the raw row stays for the log-probability */
        penalise(sampler, sampler->w, vocab, params->repetition_penalty, history, history_count);
        l = sampler->w;
        best = kernels->argmax(l, vocab);
    }
    result->token = params->temperature < GREEDY_BELOW ? best
                                                       : draw(kernels, sampler, params, l, vocab, l[best], index);
    if (logprobs >= 0) result->logprob = log_probability(logits[result->token], raw_max, ln_z);
out:
    return rc;
}
