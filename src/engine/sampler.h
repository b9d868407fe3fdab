/* From one row of logits to one token. FINAL ARITHMETIC: output digests depend on every rounding written here.
 *
 * The result depends on the row, the parameters, the history as a set, and the index alone: not on threads, batch, kernel
 * table or earlier calls. "w" are float32 weights, sums named Z, cum, total, u are double. Steps, in this order:
 *
 *  0. A logit that is NaN or infinite counts as -inf: its token is never drawn. Finite ones are clamped to +-1e30, so that
 *     l / temperature stays finite. No finite logit at all is GW_ERR_BUG.
 *  1. Log-probabilities (if asked) come from the raw logits, before penalty and temperature (as OpenAI and vLLM v1 report
 *     them): m = max l; w = exp(l * 1 - m) with chunk sums (kernels->exp_chunks); Z = sum of chunk sums, ascending;
 *     logprob(t) = (float)((double)l[t] - (double)m - ln Z), ln Z = gw_log2_f64(Z) * ln 2. The alternatives are the n largest
 *     raw logits, ties by lower id; the drawn token may be among them.
 *  2. Repetition penalty p, once for each distinct history id inside the vocabulary: l > 0 ? l / p : l * p, clamped to +-1e30.
 *  3. temperature < 1e-5: kernels->argmax, the lowest id among equals. Done.
 *  4. inv_t = 1 / temperature; m = max(l) * inv_t; w = exp(l * inv_t - m) and float chunk sums of 64 (kernels->exp_chunks);
 *     the largest w is exactly 1. Tokens of weight 0 are never drawn.
 *  5. min_p > 0: weights below min_p become 0 and the chunk sums are formed anew by the same lane sum.
 *  6. Z = sum of the chunk sums, ascending. u = gw_philox_uniform(seed, stream, index).
 *  7. Neither top_k nor top_p: chunks ascending until the running sum exceeds u * Z, then the tokens of that chunk from the sum
 *     before it, until the sum exceeds u * Z; where rounding lets it not, the last token of weight > 0 (of the chunk; of the
 *     row).
 *  8. Else candidates are the tokens of weight > 0 sorted by (weight descending, id ascending), cum their running sum.
 *     top_k (0 < top_k < vocab) keeps the first top_k. top_p (< 1) keeps the shortest prefix with cum >= top_p * total, at least
 *     one, where total is Z, or with top_k the cum of its last. The first candidate with cum > u * (cum of the last kept) is
 *     drawn; where rounding leaves none, the last kept.
 */
#ifndef GW_ENGINE_SAMPLER_H
#define GW_ENGINE_SAMPLER_H

#include "base/error.h"
#include "kernels/kernels.h"

#include <stdint.h>

#define GW_MAX_LOGPROBS 20

/* Finite values only; gw_sample answers GW_ERR_BUG to others (the request parser checks them first). */
struct gw_sample_params {
    float temperature;        /* >= 0; below 1e-5 is greedy */
    float top_p;              /* 0..1; 1 is off */
    float min_p;              /* 0..1; 0 is off */
    float repetition_penalty; /* > 0; 1 is off */
    int32_t top_k;            /* <= 0 is off */
    uint64_t seed;            /* of the request */
    uint64_t stream;          /* of the request within the job, e.g. a hash of its custom_id */
};

struct gw_sample_result {
    int32_t token;
    float logprob;        /* of `token`; 0 when not asked for */
    int32_t alternatives; /* filled below; fewer than asked when fewer logits are finite */
    int32_t alt_token[GW_MAX_LOGPROBS];
    float alt_logprob[GW_MAX_LOGPROBS]; /* descending */
};

/* Scratch of one thread: about 24 bytes per vocabulary entry, reused by every call. */
struct gw_sampler {
    int vocab;
    float *w;             /* [vocab] */
    float *chunk_sum;     /* [vocab / 64, rounded up] */
    uint64_t *sorted;     /* [vocab] candidates, ~bits(w) << 32 | id: ascending is the order of step 8 */
    uint64_t *sorted_tmp; /* [vocab] */
    uint32_t *stamp;      /* [vocab] == epoch: already penalised in this call */
    uint32_t epoch;
    uint32_t *bucket_count; /* see sampler.c */
};

void gw_sampler_init(struct gw_sampler *sampler, int vocab);
void gw_sampler_close(struct gw_sampler *sampler);

/* Draws the token at position `index` of the output from logits[0 .. vocab). `history` are the ids of prompt and output so far
 * (looked at only when there is a penalty). `logprobs` is -1, or the number of alternatives 0 .. GW_MAX_LOGPROBS. Logits that
 * step 0 changes are overwritten, others are left alone. vocab <= the sampler's. Local; no allocation. */
GW_CHECK gw_err gw_sample(const struct gw_kernels *kernels, struct gw_sampler *sampler,
                          const struct gw_sample_params *params, float *logits, int vocab, const int32_t *history,
                          int history_count, uint64_t index, int logprobs, struct gw_sample_result *result);

#endif
