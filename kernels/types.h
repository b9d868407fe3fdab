/* Weight element types as GGUF stores them: sizes, names and exact conversion of rows to float32.
 * The table is the only place that lists them. Local, pure. */
#ifndef GW_KERNELS_TYPES_H
#define GW_KERNELS_TYPES_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values are GGUF's (ggml type ids). */
enum gw_type {
    GW_TYPE_F32 = 0,
    GW_TYPE_F16 = 1,
    GW_TYPE_Q4_0 = 2,
    GW_TYPE_Q4_1 = 3,
    GW_TYPE_Q5_0 = 6,
    GW_TYPE_Q5_1 = 7,
    GW_TYPE_Q8_0 = 8,
    GW_TYPE_Q4_K = 12,
    GW_TYPE_Q5_K = 13,
    GW_TYPE_Q6_K = 14,
    GW_TYPE_BF16 = 30,
};

/* 32 elements of a quantized row taken apart: element i is scale * (code[i] - bias) + min, and for types with half scales
 * (scale * half_scale[i / 16]) * (code[i] - bias). */
struct gw_type_block {
    float scale;          /* d, d*sc; exact */
    float min;            /* m, -dmin*m; exact; 0 without a min term */
    int8_t half_scale[2]; /* 1 unless the type has them */
    uint8_t code[32];
};

struct gw_type_info {
    enum gw_type type;
    const char *name;   /* "Q4_1" */
    int block_elements; /* 1, 32 or 256 */
    int block_bytes;
    /* Dequantizes `count` elements (a multiple of block_elements) to float32, as the format defines them:
     * d*q, d*q+m, d*sc*q - dmin*m, in float32 without contraction. */
    void (*to_f32)(const void *src, float *dst, size_t count);
    /* Quantized types (NULL for float ones): takes apart elements [32*block, 32*block + 32) of the row at `row`. */
    void (*unpack)(const uint8_t *row, size_t block, struct gw_type_block *out);
    int bias;         /* subtracted from each code */
    bool has_min;     /* then bias is 0 */
    bool half_scales; /* 16 elements share a scale: scale * half_scale */
    /* Types whose file has a block's codes in the packed form's order (struct gw_packed): the byte at which they begin, behind d and, with a min
     * term, m, which are halves; and what a code differs by, bit by bit. 0 for other types. */
    int packed_codes;
    uint8_t packed_flip;
};

/* NULL for a type that godwit does not know. */
const struct gw_type_info *gw_type_info(uint32_t ggml_type);

/* IEEE half and bfloat16, exact (to float) or round-to-nearest-even (from float). Portable C. */
float gw_f16_to_f32(uint16_t h);
uint16_t gw_f32_to_f16(float f);
float gw_bf16_to_f32(uint16_t h);

#endif
