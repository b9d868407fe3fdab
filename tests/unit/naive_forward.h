/* A transformer's forward pass in double precision, as a textbook has it: whole sequence at once, no cache, libm's functions. It shares
 * nothing with the engine but the model file's tensors, dequantized row by row. With `round`, numbers are
 * rounded where the engine stores them in fewer bits: activations before quantized weights (8 bits, blocks of 32), keys and values
 * (half precision). What is left of a difference then is float32 rounding, and the few activations that it tips over. For test_backend. */
#ifndef GW_TESTS_NAIVE_FORWARD_H
#define GW_TESTS_NAIVE_FORWARD_H

#include "base/mem.h"
#include "model/arch.h"

#include <math.h>
#include <stdlib.h>

/* x rounded to multiples of amax / 127 per 32 elements. */
static inline double *naive_rounded(const double *x, size_t count)
{
    double *rounded = gw_alloc(count, sizeof *rounded);
    for (size_t block = 0; block < count; block += GW_BLOCK) {
        double most = 0;
        for (size_t i = block; i < block + GW_BLOCK; i++)
            if (fabs(x[i]) > most) most = fabs(x[i]);
        for (size_t i = block; i < block + GW_BLOCK; i++)
            rounded[i] = most > 0 ? rint(x[i] * 127 / most) * most / 127 : 0;
    }
    return rounded;
}

/* y[t][n] = sum over k of x[t][k] w[n][k] (+ bias) */
static inline void naive_matmul(const struct gw_gguf_tensor *w, const struct gw_gguf_tensor *bias, const double *x,
                                int tokens, bool round, double *y)
{
    size_t k = (size_t)w->shape[0], n = (size_t)w->shape[1];
    float *row = gw_alloc(k, sizeof *row);
    double *rounded = round && w->type->block_elements > 1 ? naive_rounded(x, (size_t)tokens * k) : NULL;
    if (rounded) x = rounded;
    for (size_t r = 0; r < n; r++) {
        w->type->to_f32(w->data + r * w->row_bytes, row, k);
        for (int t = 0; t < tokens; t++) {
            double sum = bias ? (double)((const float *)(const void *)bias->data)[r] : 0;
            for (size_t i = 0; i < k; i++) sum += x[(size_t)t * k + i] * (double)row[i];
            y[(size_t)t * n + r] = sum;
        }
    }
    free(row);
    free(rounded);
}

static inline void naive_norm(const struct gw_gguf_tensor *w, const double *x, int tokens, double eps, double *y)
{
    size_t d = (size_t)w->shape[0];
    const float *weight = (const float *)(const void *)w->data;
    for (int t = 0; t < tokens; t++, x += d, y += d) {
        double square = 0;
        for (size_t i = 0; i < d; i++) square += x[i] * x[i];
        double scale = 1 / sqrt(square / (double)d + eps);
        for (size_t i = 0; i < d; i++) y[i] = x[i] * scale * (double)weight[i];
    }
}

static inline void naive_halves(double *x, size_t count)
{
    for (size_t i = 0; i < count; i++) x[i] = (double)gw_f16_to_f32(gw_f32_to_f16((float)x[i]));
}

static inline void naive_rope(const struct gw_model_info *m, double *x, int heads, int pos)
{
    int dims = m->rope.dims;
    double divisor = m->rope.scaling == GW_ROPE_SCALING_LINEAR ? m->rope.factor : 1;
    for (int h = 0; h < heads; h++, x += m->head_dim)
        for (int i = 0; i < dims / 2; i++) {
            double angle = pos / divisor * pow(m->rope.base, -2.0 * i / dims);
            double *a = m->rope.style == GW_ROPE_NEOX ? &x[i] : &x[2 * i];
            double *b = m->rope.style == GW_ROPE_NEOX ? &x[i + dims / 2] : &x[2 * i + 1];
            double a0 = *a, b0 = *b;
            *a = a0 * cos(angle) - b0 * sin(angle);
            *b = a0 * sin(angle) + b0 * cos(angle);
        }
}

static inline void naive_attend(const struct gw_model_info *m, const double *q, const double *k, const double *v,
                                int tokens, double *out)
{
    int dim = m->head_dim, group = m->heads / m->kv_heads;
    double *score = gw_alloc((size_t)tokens, sizeof *score);
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < m->heads; h++) {
            const double *query = q + (t * m->heads + h) * dim;
            double *o = out + (t * m->heads + h) * dim, most = -1e300, sum = 0;
            for (int j = 0; j <= t; j++) {
                const double *key = k + (j * m->kv_heads + h / group) * dim;
                score[j] = 0;
                for (int i = 0; i < dim; i++) score[j] += query[i] * key[i];
                score[j] /= sqrt(dim);
                if (score[j] > most) most = score[j];
            }
            for (int j = 0; j <= t; j++) sum += score[j] = exp(score[j] - most);
            for (int i = 0; i < dim; i++) {
                o[i] = 0;
                for (int j = 0; j <= t; j++) o[i] += score[j] / sum * v[(j * m->kv_heads + h / group) * dim + i];
            }
        }
    free(score);
}

struct naive_layer {
    double *k, *v; /* [token][kv_head][dim], k rotated */
};

/* Logits of all positions, [tokens][vocab]; free(). Also gives layer 0's keys and values when `first` is not NULL. */
static inline double *naive_forward(const struct gw_model *model, const int32_t *ids, int tokens, bool round,
                                    struct naive_layer *first)
{
    const struct gw_model_info *m = gw_model_info(model);
    size_t n = (size_t)tokens, d = (size_t)m->d_model, ffn = (size_t)m->ffn, q_width = (size_t)(m->heads * m->head_dim),
           kv_width = (size_t)(m->kv_heads * m->head_dim);
    double *x = gw_alloc(n * d, sizeof *x), *y = gw_alloc(n * d, sizeof *y), *q = gw_alloc(n * q_width, sizeof *q),
           *k = gw_alloc(n * kv_width, sizeof *k), *v = gw_alloc(n * kv_width, sizeof *v),
           *o = gw_alloc(n * q_width, sizeof *o), *gate = gw_alloc(n * ffn, sizeof *gate),
           *up = gw_alloc(n * ffn, sizeof *up);
    const struct gw_gguf_tensor *embed = gw_model_tensor(model, GW_TENSOR_EMBED, 0);
    float *row = gw_alloc(d, sizeof *row);
    for (size_t t = 0; t < n; t++) {
        embed->type->to_f32(embed->data + (size_t)ids[t] * embed->row_bytes, row, d);
        for (size_t i = 0; i < d; i++) x[t * d + i] = (double)row[i];
    }
    for (int l = 0; l < m->layers; l++) {
        naive_norm(gw_model_tensor(model, GW_TENSOR_ATTN_NORM, l), x, tokens, (double)m->norm_eps, y);
        naive_matmul(gw_model_tensor(model, GW_TENSOR_Q, l), gw_model_tensor(model, GW_TENSOR_Q_BIAS, l), y, tokens,
                     round, q);
        naive_matmul(gw_model_tensor(model, GW_TENSOR_K, l), gw_model_tensor(model, GW_TENSOR_K_BIAS, l), y, tokens,
                     round, k);
        naive_matmul(gw_model_tensor(model, GW_TENSOR_V, l), gw_model_tensor(model, GW_TENSOR_V_BIAS, l), y, tokens,
                     round, v);
        for (int t = 0; t < tokens; t++) {
            naive_rope(m, q + (size_t)t * q_width, m->heads, t);
            naive_rope(m, k + (size_t)t * kv_width, m->kv_heads, t);
        }
        if (round) {
            naive_halves(k, n * kv_width);
            naive_halves(v, n * kv_width);
        }
        if (l == 0 && first)
            for (size_t i = 0; i < n * kv_width; i++) {
                first->k[i] = k[i];
                first->v[i] = v[i];
            }
        naive_attend(m, q, k, v, tokens, o);
        naive_matmul(gw_model_tensor(model, GW_TENSOR_ATTN_OUT, l), NULL, o, tokens, round, y);
        for (size_t i = 0; i < n * d; i++) x[i] += y[i];
        naive_norm(gw_model_tensor(model, GW_TENSOR_FFN_NORM, l), x, tokens, (double)m->norm_eps, y);
        naive_matmul(gw_model_tensor(model, GW_TENSOR_GATE, l), NULL, y, tokens, round, gate);
        naive_matmul(gw_model_tensor(model, GW_TENSOR_UP, l), NULL, y, tokens, round, up);
        for (size_t i = 0; i < n * ffn; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        naive_matmul(gw_model_tensor(model, GW_TENSOR_DOWN, l), NULL, gate, tokens, round, y);
        for (size_t i = 0; i < n * d; i++) x[i] += y[i];
    }
    naive_norm(gw_model_tensor(model, GW_TENSOR_OUTPUT_NORM, 0), x, tokens, (double)m->norm_eps, y);
    double *logits = gw_alloc(n * (size_t)m->vocab, sizeof *logits);
    naive_matmul(gw_model_tensor(model, GW_TENSOR_OUTPUT, 0), NULL, y, tokens, round, logits);
    double *all[] = {x, y, q, k, v, o, gate, up};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(row);
    return logits;
}

#endif
