/* Elementary functions that give the same bits everywhere.
 *
 * Built from +, -, *, / and fused multiply-add alone, each of which IEEE 754 rounds in one way, so no libm version, compiler
 * or instruction set can change a result. (fmaf, fma and sqrtf of libm are such operations, not approximations.)
 *
 * gw_expf is the exp of the forward pass; the vector kernels repeat its steps lane by lane with the constants below.
 * The double helpers fill tables once (RoPE angles, sampling thresholds); they are good to about 1e-15.
 */
#ifndef GW_KERNELS_ELEMENTARY_H
#define GW_KERNELS_ELEMENTARY_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define GW_EXP_LOW (-87.3f) /* below: 0 (2^n would leave the normal range) */
#define GW_EXP_HIGH 88.3f   /* above: exp(GW_EXP_HIGH) */
#define GW_EXP_LOG2E 0x1.715476p+0f
#define GW_EXP_ROUND                                                                                                   \
    0x1.8p23f /* added and taken away: rounds to the nearest even integer, kept in the low mantissa bits */
#define GW_EXP_LN2_HI 0x1.62e4p-1f
#define GW_EXP_LN2_LO 0x1.7f7d1cp-20f
/* Minimax for exp(r) on |r| <= ln2/2 with the first two coefficients held at 1: relative error 3.2e-9. */
#define GW_EXP_C2 0x1.fffffcp-2f
#define GW_EXP_C3 0x1.55549p-3f
#define GW_EXP_C4 0x1.5558fap-5f
#define GW_EXP_C5 0x1.123b6ap-7f
#define GW_EXP_C6 0x1.6a21acp-10f

/* exp(x) within 1 ulp or so; exp(0) is exactly 1, NaN stays NaN. */
static inline float gw_expf(float x)
{
    if (x < GW_EXP_LOW) return 0;
    x = x > GW_EXP_HIGH ? GW_EXP_HIGH : x;
    float shifted = fmaf(x, GW_EXP_LOG2E, GW_EXP_ROUND);
    float n = shifted - GW_EXP_ROUND;
    float r = fmaf(n, -GW_EXP_LN2_HI, x);
    r = fmaf(n, -GW_EXP_LN2_LO, r);
    float p = GW_EXP_C6;
    p = fmaf(p, r, GW_EXP_C5);
    p = fmaf(p, r, GW_EXP_C4);
    p = fmaf(p, r, GW_EXP_C3);
    p = fmaf(p, r, GW_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u; /* 2^n: the shift leaves only n of `shifted` */
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* 2^x; 0 below -1022, infinity from 1024 on. */
double gw_exp2_f64(double x);
/* log2(x) for x > 0; -infinity for 0, NaN for negative x. */
double gw_log2_f64(double x);
/* sin and cos of x in radians, |x| <= 2^22 (larger: asserted). */
void gw_sincos_f64(double x, double *sine, double *cosine);

#endif
