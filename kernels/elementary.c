/* Double-precision elementary functions of +, -, *, / and fma: argument reduction, then a Taylor series carried far enough
 * that its remainder is below half a unit. Speed does not matter here; the same bits everywhere do. */
#include "kernels/elementary.h"

#include "base/error.h"

#define LN2 0x1.62e42fefa39efp-1
#define LOG2E 0x1.71547652b82fep+0
#define TWO_OVER_PI 0x1.45f306dc9c883p-1
/* pi/2 in parts: n * PART1 and n * PART2 are exact for |n| < 2^23. */
#define HALF_PI_PART1 0x1.921fb54p+0
#define HALF_PI_PART2 0x1.10b46118p-30
#define HALF_PI_PART3 0x1.313198a2e037p-61

/* The nearest even integer of |x| < 2^51. */
static double round_even(double x)
{
    return x + 0x1.8p52 - 0x1.8p52;
}

/* 2^n for n in -1022..1023. */
static double power_of_two(int n)
{
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

double gw_exp2_f64(double x)
{
    if (!(x >= -1022)) return x != x ? x : 0;
    if (x >= 1024) return (double)INFINITY;
    double n = round_even(x);
    double r = (x - n) * LN2; /* x - n is exact; |r| <= ln2/2 */
    double sum = 1;
    for (int i = 14; i >= 1; i--) sum = fma(sum, r / i, 1); /* 1 + r/1 (1 + r/2 (1 + ...)) */
    /* n may be 1024 with a sum below 1: scale in two steps. */
    return sum * power_of_two((int)n - 1) * 2;
}

double gw_log2_f64(double x)
{
    if (!(x > 0)) return x == 0 ? -(double)INFINITY : (double)NAN;
    if (x > 0x1.fffffffffffffp1023) return x;
    int exponent = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p64;
        exponent = -64;
    }
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    exponent += (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffff) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp0) { /* keep m within sqrt(1/2)..sqrt(2) */
        m /= 2;
        exponent++;
    }
    double s = (m - 1) / (m + 1); /* ln m = 2 (s + s^3/3 + s^5/5 + ...), |s| <= 0.172 */
    double square = s * s;
    double sum = 0;
    for (int i = 25; i >= 3; i -= 2) sum = (sum + 1.0 / i) * square;
    double ln = fma(sum, 2 * s, 2 * s);
    return fma(ln, LOG2E, exponent);
}

void gw_sincos_f64(double x, double *sine, double *cosine)
{
    GW_ASSERT(x >= -0x1p22 && x <= 0x1p22);
    double n = round_even(x * TWO_OVER_PI);
    double r = fma(n, -HALF_PI_PART1, x);
    r = fma(n, -HALF_PI_PART2, r);
    r = fma(n, -HALF_PI_PART3, r);
    double square = r * r;
    double s = 1, c = 1;
    for (int i = 9; i >= 1; i--) {
        s = fma(s, -square / ((2 * i) * (2 * i + 1)), 1);
        c = fma(c, -square / ((2 * i - 1) * (2 * i)), 1);
    }
    s *= r;
    switch ((int)n & 3) {
    case 0:
        *sine = s;
        *cosine = c;
        break;
    case 1:
        *sine = c;
        *cosine = -s;
        break;
    case 2:
        *sine = -s;
        *cosine = -c;
        break;
    default:
        *sine = -c;
        *cosine = s;
        break;
    }
}
