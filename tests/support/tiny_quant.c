/* Simple quantizers into GGUF's block formats. See tiny_model.h.
 *
 * Layouts are those of ggml's block structures. Scales are rounded to what the file stores before the codes are chosen, so every
 * code is the nearest one for the scale that a reader will see.
 */
#include "support/tiny_model.h"

#include <math.h>
#include <string.h>

static int clamp(int value, int least, int most)
{
    return value < least ? least : value > most ? most : value;
}

static int nearest(float x, float scale, int least, int most)
{
    return scale == 0 ? clamp(0, least, most) : clamp((int)rintf(x / scale), least, most);
}

static float put_half(struct gw_buf *out, float value)
{
    uint16_t half = gw_f32_to_f16(value);
    gw_buf_add(out, &half, sizeof half);
    return gw_f16_to_f32(half);
}

static void put_bf16(struct gw_buf *out, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t top = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to nearest even; no NaN comes here */
    gw_buf_add(out, &top, sizeof top);
}

static void range_of(const float *x, int count, float *low, float *high)
{
    *low = *high = x[0];
    for (int i = 1; i < count; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

/* The element of largest magnitude, with its sign. */
static float extreme(const float *x, int count)
{
    float found = 0;
    for (int i = 0; i < count; i++)
        if (fabsf(x[i]) > fabsf(found)) found = x[i];
    return found;
}

static void put_q8_0(const float *x, struct gw_buf *out)
{
    int8_t q[32];
    float d = put_half(out, fabsf(extreme(x, 32)) / 127);
    for (int i = 0; i < 32; i++) q[i] = (int8_t)nearest(x[i], d, -127, 127);
    gw_buf_add(out, q, sizeof q);
}

/* 4- and 5-bit blocks of 32, with or without a minimum. */
static void put_small(const float *x, int bits, bool has_min, struct gw_buf *out)
{
    int most = (1 << bits) - 1, bias = has_min ? 0 : 1 << (bits - 1);
    float low = 0, high, d;
    uint8_t qs[16];
    uint32_t fifth = 0;
    if (has_min) {
        range_of(x, 32, &low, &high);
        d = put_half(out, (high - low) / (float)most);
        low = put_half(out, low);
    } else {
        d = put_half(out, extreme(x, 32) / (float)-bias);
    }
    for (int i = 0; i < 32; i++) {
        int q = clamp(nearest(x[i] - low, d, -64, 64) + bias, 0, most);
        int nibble = q & 15;
        qs[i % 16] = (uint8_t)(i < 16 ? nibble : qs[i % 16] | nibble << 4);
        fifth |= (uint32_t)(q >> 4) << i;
    }
    if (bits == 5) gw_buf_add(out, &fifth, sizeof fifth);
    gw_buf_add(out, qs, sizeof qs);
}

/* Q4_K and Q5_K: 8 sub-blocks of 32 with 6-bit scales and minima, packed into 12 bytes. */
static void put_k45(const float *x, int bits, struct gw_buf *out)
{
    float scale[8], min[8], top_scale = 0, top_min = 0, d, dmin;
    uint8_t packed[12] = {0}, high[32] = {0}, qs[128] = {0};
    int most = (1 << bits) - 1;
    for (int b = 0; b < 8; b++) {
        float low, up;
        range_of(x + 32 * b, 32, &low, &up);
        if (low > 0) low = 0;
        min[b] = -low;
        scale[b] = (up - low) / (float)most;
        if (scale[b] > top_scale) top_scale = scale[b];
        if (min[b] > top_min) top_min = min[b];
    }
    d = put_half(out, top_scale / 63);
    dmin = put_half(out, top_min / 63);
    for (int b = 0; b < 8; b++) {
        int sc = nearest(scale[b], d, 0, 63), m = nearest(min[b], dmin, 0, 63);
        if (b < 4) {
            packed[b] |= (uint8_t)sc;
            packed[b + 4] |= (uint8_t)m;
        } else {
            packed[b + 4] = (uint8_t)((sc & 15) | (m & 15) << 4);
            packed[b - 4] |= (uint8_t)((sc >> 4) << 6);
            packed[b] |= (uint8_t)((m >> 4) << 6);
        }
        for (int i = 0; i < 32; i++) {
            int q = nearest(x[32 * b + i] + dmin * (float)m, d * (float)sc, 0, most);
            qs[b / 2 * 32 + i] |= (uint8_t)((q & 15) << (b % 2 * 4));
            high[i] |= (uint8_t)((q >> 4) << b);
        }
    }
    gw_buf_add(out, packed, sizeof packed);
    if (bits == 5) gw_buf_add(out, high, sizeof high);
    gw_buf_add(out, qs, sizeof qs);
}

/* Q6_K: 16 sub-blocks of 16 with signed 8-bit scales. */
static void put_q6_k(const float *x, struct gw_buf *out)
{
    float scale[16], top = 0;
    int8_t sc[16];
    uint8_t ql[128] = {0}, qh[64] = {0};
    for (int b = 0; b < 16; b++) {
        scale[b] = extreme(x + 16 * b, 16) / -32;
        if (fabsf(scale[b]) > top) top = fabsf(scale[b]);
    }
    float d = gw_f16_to_f32(gw_f32_to_f16(top / 127));
    for (int b = 0; b < 16; b++) sc[b] = (int8_t)nearest(scale[b], d, -127, 127);
    for (int i = 0; i < 256; i++) {
        int q = nearest(x[i], d * (float)sc[i / 16], -32, 31) + 32;
        int half = i / 128, quarter = i % 128 / 32, l = i % 32;
        ql[64 * half + 32 * (quarter % 2) + l] |= (uint8_t)((q & 15) << (quarter / 2 * 4));
        qh[32 * half + l] |= (uint8_t)((q >> 4) << (2 * quarter));
    }
    gw_buf_add(out, ql, sizeof ql);
    gw_buf_add(out, qh, sizeof qh);
    gw_buf_add(out, sc, sizeof sc);
    put_half(out, d);
}

void gw_tiny_quantize(enum gw_type type, const float *x, size_t count, struct gw_buf *out)
{
    size_t block = (size_t)gw_type_info(type)->block_elements;
    GW_ASSERT(count % block == 0);
    for (size_t i = 0; i < count; i += block) switch (type) {
        case GW_TYPE_F32: gw_buf_add(out, &x[i], sizeof x[i]); break;
        case GW_TYPE_F16: put_half(out, x[i]); break;
        case GW_TYPE_BF16: put_bf16(out, x[i]); break;
        case GW_TYPE_Q8_0: put_q8_0(x + i, out); break;
        case GW_TYPE_Q4_0: put_small(x + i, 4, false, out); break;
        case GW_TYPE_Q4_1: put_small(x + i, 4, true, out); break;
        case GW_TYPE_Q5_0: put_small(x + i, 5, false, out); break;
        case GW_TYPE_Q5_1: put_small(x + i, 5, true, out); break;
        case GW_TYPE_Q4_K: put_k45(x + i, 4, out); break;
        case GW_TYPE_Q5_K: put_k45(x + i, 5, out); break;
        case GW_TYPE_Q6_K: put_q6_k(x + i, out); break;
        }
}
