/* The table of GGUF element types.
 *
 * One `unpack` per quantized type is the only place that knows how that type lays out its bits; dequantization and
 * packing both go through it. All float products here are exact (half precision scales times small integers fit 24
 * bits), so a dequantized element has at most one rounding, that of adding the min term.
 *
 * Formats: the GGUF/ggml block structures, little-endian. Half precision scales are read bytewise, so any alignment of
 * the mapped file does.
 */
#include "kernels/types.h"

#include <string.h>

static uint32_t float_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float bits_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t read_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static float read_f16(const uint8_t *p)
{
    return gw_f16_to_f32(read_u16(p));
}

/* ---- half precision and bfloat16 ------------------------------------------------------------------------------- */

float gw_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 0x1f;
    uint32_t mantissa = h & 0x3ff;
    if (exponent == 0x1f) {
        /* Infinity, or a NaN: made quiet, as the conversion instruction does. */
        uint32_t quiet = mantissa ? 0x400000 : 0;
        return bits_float(sign | 0x7f800000 | quiet | mantissa << 13);
    }
    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-24f; /* exact: zero and subnormals */
        return bits_float(sign | float_bits(magnitude));
    }
    return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t gw_f32_to_f16(float f)
{
    uint32_t bits = float_bits(f);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) /* NaN: quiet, upper payload kept */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        /* Below 2^-14: a multiple of 2^-24. Adding 0.5 puts that unit at the last mantissa bit, where the addition
         * itself rounds to nearest even. */
        float shifted = bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (float_bits(shifted) - 0x3f000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    uint32_t rounded = magnitude + 0xfff + odd; /* a carry into the exponent is the right result */
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}

float gw_bf16_to_f32(uint16_t h)
{
    return bits_float((uint32_t)h << 16);
}

/* ---- float rows ------------------------------------------------------------------------------------------------ */

static void f32_to_f32(const void *src, float *dst, size_t count)
{
    const uint8_t *p = src;
    for (size_t i = 0; i < count; i++) dst[i] = bits_float(read_u32(p + 4 * i));
}

static void f16_to_f32(const void *src, float *dst, size_t count)
{
    const uint8_t *p = src;
    for (size_t i = 0; i < count; i++) dst[i] = read_f16(p + 2 * i);
}

static void bf16_to_f32(const void *src, float *dst, size_t count)
{
    const uint8_t *p = src;
    for (size_t i = 0; i < count; i++) dst[i] = gw_bf16_to_f32(read_u16(p + 2 * i));
}

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------- */

/* 16 bytes hold elements 0..15 in their low nibbles and 16..31 in the high ones. */
static void unpack_nibbles(const uint8_t *qs, uint8_t *code)
{
    for (int i = 0; i < 16; i++) {
        code[i] = qs[i] & 15;
        code[16 + i] = qs[i] >> 4;
    }
}

/* Bit i of `high` is bit 4 of element i. */
static void add_fifth_bits(uint32_t high, uint8_t *code)
{
    for (int i = 0; i < 32; i++) code[i] |= (uint8_t)((high >> i & 1) << 4);
}

static void set_scale(struct gw_type_block *out, float scale, float min)
{
    out->scale = scale;
    out->min = min;
    out->half_scale[0] = 1;
    out->half_scale[1] = 1;
}

/* half d; uint8 qs[16] */
static void q4_0_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block * 18;
    set_scale(out, read_f16(p), 0);
    unpack_nibbles(p + 2, out->code);
}

/* half d, m; uint8 qs[16] */
static void q4_1_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block * 20;
    set_scale(out, read_f16(p), read_f16(p + 2));
    unpack_nibbles(p + 4, out->code);
}

/* half d; uint32 high bits; uint8 qs[16] */
static void q5_0_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block * 22;
    set_scale(out, read_f16(p), 0);
    unpack_nibbles(p + 6, out->code);
    add_fifth_bits(read_u32(p + 2), out->code);
}

/* half d, m; uint32 high bits; uint8 qs[16] */
static void q5_1_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block * 24;
    set_scale(out, read_f16(p), read_f16(p + 2));
    unpack_nibbles(p + 8, out->code);
    add_fifth_bits(read_u32(p + 4), out->code);
}

/* half d; int8 qs[32] */
static void q8_0_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block * 34;
    set_scale(out, read_f16(p), 0);
    for (int i = 0; i < 32; i++) out->code[i] = p[2 + i] ^ 0x80; /* q + 128 */
}

/* ---- K-quants: 256 elements, of which a block of 32 is sub-block `sub` ------------------------------------------ */

/* Scale and min of sub-block `sub` from the 12 bytes that hold eight of each in 6 bits: the first four whole in the low
 * bits of bytes 0..3 and 4..7, the others split between the nibbles of bytes 8..11 and the top bits of 0..7. */
static void k_scale(const uint8_t *packed, int sub, int *scale, int *min)
{
    if (sub < 4) {
        *scale = packed[sub] & 63;
        *min = packed[sub + 4] & 63;
    } else {
        *scale = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4;
        *min = (packed[sub + 4] >> 4) | (packed[sub] >> 6) << 4;
    }
}

/* The common head of Q4_K and Q5_K: half d, dmin; uint8 scales[12]. */
static void k_head(const uint8_t *p, int sub, struct gw_type_block *out)
{
    int scale, min;
    k_scale(p + 4, sub, &scale, &min);
    set_scale(out, read_f16(p) * (float)scale, -(read_f16(p + 2) * (float)min));
}

/* 32 bytes serve two sub-blocks: the even one in the low nibbles, the odd one in the high ones. */
static void k_nibbles(const uint8_t *qs, int sub, uint8_t *code)
{
    const uint8_t *p = qs + sub / 2 * 32;
    int shift = sub % 2 * 4;
    for (int i = 0; i < 32; i++) code[i] = p[i] >> shift & 15;
}

/* head; uint8 qs[128] */
static void q4_k_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block / 8 * 144;
    int sub = (int)(block % 8);
    k_head(p, sub, out);
    k_nibbles(p + 16, sub, out->code);
}

/* head; uint8 qh[32], bit `sub` of byte i being bit 4 of element i; uint8 qs[128] */
static void q5_k_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block / 8 * 176;
    int sub = (int)(block % 8);
    k_head(p, sub, out);
    k_nibbles(p + 48, sub, out->code);
    for (int i = 0; i < 32; i++) out->code[i] |= (uint8_t)((p[16 + i] >> sub & 1) << 4);
}

/* uint8 ql[128], qh[64]; int8 scales[16]; half d. Each half of 128 elements has 64 bytes of low nibbles and 32 of high
 * bit pairs: its sub-blocks 0, 1 are the low nibbles of bytes 0..31 and 32..63, sub-blocks 2, 3 the high ones. */
static void q6_k_unpack(const uint8_t *row, size_t block, struct gw_type_block *out)
{
    const uint8_t *p = row + block / 8 * 210;
    int sub = (int)(block % 8);
    int part = sub % 4;
    const uint8_t *low = p + sub / 4 * 64 + part % 2 * 32;
    const uint8_t *high = p + 128 + sub / 4 * 32;
    const uint8_t *scales = p + 192;
    for (int i = 0; i < 32; i++)
        out->code[i] = (uint8_t)((low[i] >> part / 2 * 4 & 15) | (high[i] >> part * 2 & 3) << 4);
    out->scale = read_f16(p + 208);
    out->min = 0;
    out->half_scale[0] = (int8_t)scales[2 * sub];
    out->half_scale[1] = (int8_t)scales[2 * sub + 1];
}

/* ---- dequantization through unpack ------------------------------------------------------------------------------ */

static void blocks_to_f32(enum gw_type type, const uint8_t *row, float *dst, size_t count)
{
    const struct gw_type_info *info = gw_type_info(type);
    for (size_t block = 0; block < count / 32; block++) {
        struct gw_type_block b;
        info->unpack(row, block, &b);
        for (int i = 0; i < 32; i++) {
            float scale = b.scale * (float)b.half_scale[i / 16];
            float value = scale * (float)(b.code[i] - info->bias);
            dst[block * 32 + (size_t)i] = info->has_min ? value + b.min : value;
        }
    }
}

static void q4_0_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q4_0, src, dst, count);
}

static void q4_1_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q4_1, src, dst, count);
}

static void q5_0_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q5_0, src, dst, count);
}

static void q5_1_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q5_1, src, dst, count);
}

static void q8_0_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q8_0, src, dst, count);
}

static void q4_k_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q4_K, src, dst, count);
}

static void q5_k_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q5_K, src, dst, count);
}

static void q6_k_to_f32(const void *src, float *dst, size_t count)
{
    blocks_to_f32(GW_TYPE_Q6_K, src, dst, count);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static const struct gw_type_info table[] = {
    /* type, name, elements, bytes, to_f32, unpack, bias, has_min, half_scales, packed_codes, packed_flip */
    {GW_TYPE_F32, "F32", 1, 4, f32_to_f32, NULL, 0, false, false, 0, 0},
    {GW_TYPE_F16, "F16", 1, 2, f16_to_f32, NULL, 0, false, false, 0, 0},
    {GW_TYPE_BF16, "BF16", 1, 2, bf16_to_f32, NULL, 0, false, false, 0, 0},
    {GW_TYPE_Q4_0, "Q4_0", 32, 18, q4_0_to_f32, q4_0_unpack, 8, false, false, 2, 0},
    {GW_TYPE_Q4_1, "Q4_1", 32, 20, q4_1_to_f32, q4_1_unpack, 0, true, false, 4, 0},
    {GW_TYPE_Q5_0, "Q5_0", 32, 22, q5_0_to_f32, q5_0_unpack, 16, false, false, 0, 0},
    {GW_TYPE_Q5_1, "Q5_1", 32, 24, q5_1_to_f32, q5_1_unpack, 0, true, false, 0, 0},
    {GW_TYPE_Q8_0, "Q8_0", 32, 34, q8_0_to_f32, q8_0_unpack, 128, false, false, 2, 0x80},
    {GW_TYPE_Q4_K, "Q4_K", 256, 144, q4_k_to_f32, q4_k_unpack, 0, true, false, 0, 0},
    {GW_TYPE_Q5_K, "Q5_K", 256, 176, q5_k_to_f32, q5_k_unpack, 0, true, false, 0, 0},
    {GW_TYPE_Q6_K, "Q6_K", 256, 210, q6_k_to_f32, q6_k_unpack, 32, false, true, 0, 0},
};

const struct gw_type_info *gw_type_info(uint32_t ggml_type)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if ((uint32_t)table[i].type == ggml_type) return &table[i];
    return NULL;
}
