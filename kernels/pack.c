/* Packing of GGUF rows into panels of 16 outputs, the operand shape of every GEMM kernel (kernels.h: struct gw_packed).
 *
 * Packing is a pure rearrangement: codes, scales and mins are the file's, so the packed matrix stands for exactly the
 * values that dequantization gives. Panels are independent: threads may pack disjoint ranges of one matrix.
 */
#include "kernels/kernels.h"

#include <string.h>

struct pack_layout {
    size_t min_offset; /* in bytes from the block's start; scales are at 0 */
    size_t half_scale_offset;
    size_t code_offset;
    size_t block_bytes;
};

static struct pack_layout block_layout(const struct gw_packed *packed)
{
    struct pack_layout layout;
    size_t scales = GW_PANEL * (packed->scales_f16 ? sizeof(uint16_t) : sizeof(float)), at = scales;
    layout.min_offset = at;
    at += packed->has_min ? scales : 0;
    layout.half_scale_offset = at;
    at += packed->pack == GW_PACK_U6 ? 2 * GW_PANEL : 0;
    layout.code_offset = at;
    at += (size_t)GW_PANEL * GW_BLOCK / (packed->pack == GW_PACK_U4 ? 2 : 1);
    layout.block_bytes = at;
    return layout;
}

static size_t float_bytes(enum gw_pack pack)
{
    return pack == GW_PACK_F32 ? 4 : 2;
}

static enum gw_pack pack_of(enum gw_type type)
{
    switch (type) {
    case GW_TYPE_F32: return GW_PACK_F32;
    case GW_TYPE_F16: return GW_PACK_F16;
    case GW_TYPE_BF16: return GW_PACK_BF16;
    case GW_TYPE_Q4_0:
    case GW_TYPE_Q4_1:
    case GW_TYPE_Q4_K: return GW_PACK_U4;
    case GW_TYPE_Q5_0:
    case GW_TYPE_Q5_1:
    case GW_TYPE_Q5_K:
    case GW_TYPE_Q8_0: return GW_PACK_U8;
    case GW_TYPE_Q6_K: return GW_PACK_U6;
    }
    return GW_PACK_COUNT;
}

gw_err gw_packed_init(struct gw_packed *packed, enum gw_type type, int n, int k)
{
    const struct gw_type_info *info = gw_type_info((uint32_t)type);
    if (!info) return gw_fail(GW_ERR_UNSUPPORTED, "weight type %d is not known", (int)type);
    if (n < 1 || k < 1 || n > 1 << 30)
        return gw_fail(GW_ERR_UNSUPPORTED, "a %s matrix of %d outputs by %d inputs is not possible", info->name, n, k);
    if (info->unpack && k % GW_BLOCK != 0)
        return gw_fail(GW_ERR_UNSUPPORTED, "%d inputs of a %s matrix are not a multiple of %d", k, info->name,
                       GW_BLOCK);
    memset(packed, 0, sizeof *packed);
    packed->type = type;
    packed->pack = pack_of(type);
    packed->has_min = info->has_min;
    packed->scales_f16 = type == GW_TYPE_Q4_1 || type == GW_TYPE_Q5_1;
    packed->bias = info->bias;
    packed->n = n;
    packed->k = k;
    packed->panels = (n + GW_PANEL - 1) / GW_PANEL;
    if (info->unpack) {
        packed->block_bytes = block_layout(packed).block_bytes;
        packed->panel_bytes = packed->block_bytes * (size_t)(k / GW_BLOCK);
    } else {
        packed->block_bytes = (size_t)GW_BLOCK * GW_PANEL * float_bytes(packed->pack);
        packed->panel_bytes = (size_t)k * GW_PANEL * float_bytes(packed->pack);
    }
    packed->panel_bytes = (packed->panel_bytes + 63) / 64 * 64; /* panels start on a cache line */
    return GW_OK;
}

size_t gw_packed_bytes(const struct gw_packed *packed)
{
    return packed->panel_bytes * (size_t)packed->panels;
}

static int words_of(enum gw_pack pack)
{
    return pack == GW_PACK_U4 ? GW_BLOCK / 8 : GW_BLOCK / 4;
}

/* Puts one output's block of codes into place, four to a word. */
static void store_words(uint8_t *codes, int output, const uint32_t *words, int count)
{
    codes += (size_t)output * sizeof *words;
    for (int g = 0; g < count; g++) memcpy(codes + (size_t)g * GW_PANEL * sizeof *words, &words[g], sizeof *words);
}

/* 32 codes as words: bytes stay where they are in them, and two nibbles fill a byte. */
static void pack_words(enum gw_pack pack, const uint8_t *code, uint32_t words[GW_BLOCK / 4])
{
    memcpy(words, code, GW_BLOCK);
    if (pack == GW_PACK_U4)
        for (int g = 0; g < GW_BLOCK / 8; g++) words[g] |= words[g + GW_BLOCK / 8] << 4;
}

/* Scale and minimum of one output of a block whose file has them as halves, d and m, at its start. */
static void copy_f16_scales(const struct pack_layout *layout, const uint8_t *file_block, int output, uint8_t *dst)
{
    memcpy(dst + (size_t)output * sizeof(uint16_t), file_block, sizeof(uint16_t));
    memcpy(dst + layout->min_offset + (size_t)output * sizeof(uint16_t), file_block + sizeof(uint16_t),
           sizeof(uint16_t));
}

/* Packs block `file_block` of the `outputs` rows from `rows` on, of a type that gives packed_codes; further outputs of dst are already zero.
 * `count`, the words of a block, is a constant. */
static inline void copy_block(const struct gw_packed *packed, const struct pack_layout *layout,
                              const struct gw_type_info *info, const uint8_t *rows, size_t row_bytes, size_t file_block,
                              int outputs, uint8_t *dst, int count)
{
    const uint8_t *file_blocks = rows + file_block * (size_t)info->block_bytes;
    for (int output = 0; output < outputs; output++, file_blocks += row_bytes) {
        uint32_t words[GW_BLOCK / 4];
        if (packed->scales_f16) {
            copy_f16_scales(layout, file_blocks, output, dst);
        } else {
            uint16_t half;
            memcpy(&half, file_blocks, sizeof half);
            float scale = gw_f16_to_f32(half);
            memcpy(dst + (size_t)output * sizeof scale, &scale, sizeof scale);
        }
        memcpy(words, file_blocks + info->packed_codes, (size_t)count * sizeof *words);
        for (int g = 0; g < count; g++) words[g] ^= info->packed_flip * UINT32_C(0x01010101);
        store_words(dst + layout->code_offset, output, words, count);
    }
}

/* The same for any type. */
static void pack_block(const struct gw_packed *packed, const struct pack_layout *layout,
                       const struct gw_type_info *info, const uint8_t *rows, size_t row_bytes, size_t file_block,
                       int outputs, uint8_t *dst)
{
    for (int output = 0; output < outputs; output++) {
        struct gw_type_block b;
        uint32_t words[GW_BLOCK / 4];
        const uint8_t *row = rows + (size_t)output * row_bytes;
        info->unpack(row, file_block, &b);
        if (packed->scales_f16) {
            copy_f16_scales(layout, row + file_block * (size_t)info->block_bytes, output, dst);
        } else {
            memcpy(dst + (size_t)output * sizeof(float), &b.scale, sizeof b.scale);
            if (packed->has_min)
                memcpy(dst + layout->min_offset + (size_t)output * sizeof(float), &b.min, sizeof b.min);
        }
        if (packed->pack == GW_PACK_U6) {
            memcpy(dst + layout->half_scale_offset + output, &b.half_scale[0], 1);
            memcpy(dst + layout->half_scale_offset + GW_PANEL + output, &b.half_scale[1], 1);
        }
        pack_words(packed->pack, b.code, words);
        store_words(dst + layout->code_offset, output, words, words_of(packed->pack));
    }
}

static void pack_float_panel(const struct gw_packed *packed, const uint8_t *rows, size_t row_bytes, int k_begin,
                             int outputs, uint8_t *dst)
{
    size_t bytes = float_bytes(packed->pack);
    for (int output = 0; output < outputs; output++) {
        const uint8_t *row = rows + (size_t)output * row_bytes + (size_t)k_begin * bytes;
        for (size_t k = 0; k < (size_t)packed->k; k++)
            memcpy(dst + (k * GW_PANEL + (size_t)output) * bytes, row + k * bytes, bytes);
    }
}

void gw_pack_panels(const struct gw_packed *packed, const uint8_t *src, size_t row_bytes, int k_begin, int panel_begin,
                    int panel_end)
{
    const struct gw_type_info *info = gw_type_info((uint32_t)packed->type);
    GW_ASSERT(info && packed->data);
    GW_ASSERT(!info->packed_codes || packed->scales_f16 == packed->has_min); /* copy_block() goes by the first */
    GW_ASSERT(panel_begin >= 0 && panel_end <= packed->panels);
    GW_ASSERT(k_begin >= 0 && (!info->unpack || k_begin % GW_BLOCK == 0));
    size_t row_elements = row_bytes / (size_t)info->block_bytes * (size_t)info->block_elements;
    GW_ASSERT((size_t)k_begin + (size_t)packed->k <= row_elements);
    for (int panel = panel_begin; panel < panel_end; panel++) {
        uint8_t *dst = packed->data + (size_t)panel * packed->panel_bytes;
        const uint8_t *rows = src + (size_t)panel * GW_PANEL * row_bytes;
        int outputs = packed->n - panel * GW_PANEL < GW_PANEL ? packed->n - panel * GW_PANEL : GW_PANEL;
        if (outputs < GW_PANEL) memset(dst, 0, packed->panel_bytes);
        if (!info->unpack) {
            pack_float_panel(packed, rows, row_bytes, k_begin, outputs, dst);
            continue;
        }
        const struct pack_layout layout = block_layout(packed);
        for (int block = 0; block < packed->k / GW_BLOCK; block++) {
            size_t file_block = (size_t)(k_begin / GW_BLOCK + block);
            uint8_t *to = dst + (size_t)block * packed->block_bytes;
            if (!info->packed_codes) pack_block(packed, &layout, info, rows, row_bytes, file_block, outputs, to);
            else if (packed->pack == GW_PACK_U4)
                copy_block(packed, &layout, info, rows, row_bytes, file_block, outputs, to, 4);
            else copy_block(packed, &layout, info, rows, row_bytes, file_block, outputs, to, 8);
        }
    }
}

static float get_float(const struct gw_packed *packed, const uint8_t *panel, int output, int k)
{
    size_t bytes = float_bytes(packed->pack);
    const uint8_t *at = panel + ((size_t)k * GW_PANEL + (size_t)output) * bytes;
    if (packed->pack == GW_PACK_F32) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return packed->pack == GW_PACK_F16 ? gw_f16_to_f32(half) : gw_bf16_to_f32(half);
}

static float get_scale(const struct gw_packed *packed, const uint8_t *scales, int output)
{
    float scale;
    uint16_t half;
    if (packed->scales_f16) {
        memcpy(&half, scales + (size_t)output * sizeof half, sizeof half);
        return gw_f16_to_f32(half);
    }
    memcpy(&scale, scales + (size_t)output * sizeof scale, sizeof scale);
    return scale;
}

float gw_packed_get(const struct gw_packed *packed, int n, int k)
{
    GW_ASSERT(n >= 0 && n < packed->n && k >= 0 && k < packed->k);
    const uint8_t *panel = packed->data + (size_t)(n / GW_PANEL) * packed->panel_bytes;
    int output = n % GW_PANEL;
    if (packed->pack <= GW_PACK_BF16) return get_float(packed, panel, output, k);

    struct pack_layout layout = block_layout(packed);
    const uint8_t *block = panel + (size_t)(k / GW_BLOCK) * packed->block_bytes;
    int in_block = k % GW_BLOCK;
    float scale = get_scale(packed, block, output);
    float min = packed->has_min ? get_scale(packed, block + layout.min_offset, output) : 0;
    if (packed->pack == GW_PACK_U6) {
        int8_t half_scale;
        memcpy(&half_scale, block + layout.half_scale_offset + in_block / 16 * GW_PANEL + output, 1);
        scale *= (float)half_scale;
    }
    int code;
    if (packed->pack == GW_PACK_U4) {
        uint8_t byte = block[layout.code_offset + (size_t)(in_block % 16 / 4 * GW_PANEL + output) * 4 + in_block % 4];
        code = in_block < 16 ? byte & 15 : byte >> 4;
    } else {
        code = block[layout.code_offset + (size_t)(in_block / 4 * GW_PANEL + output) * 4 + in_block % 4];
    }
    float value = scale * (float)(code - packed->bias);
    return packed->has_min ? value + min : value;
}

bool gw_packed_can_cut(const struct gw_packed *packed, int n, int k)
{
    return n % GW_PANEL == 0 && (packed->pack < GW_PACK_U4 || k % GW_BLOCK == 0);
}

void gw_packed_copy(const struct gw_packed *to, int to_n, int to_k, const struct gw_packed *from, int from_n,
                    int from_k, int n, int k)
{
    GW_ASSERT(to->type == from->type && gw_packed_can_cut(to, to_n, to_k) && gw_packed_can_cut(from, from_n, from_k));
    GW_ASSERT(to_n + n <= to->n && to_k + k <= to->k && from_n + n <= from->n && from_k + k <= from->k);
    /* half a panel would bring along other outputs, or leave a neighbour's behind */
    GW_ASSERT(gw_packed_can_cut(to, n, k) ||
              (to_n + n == to->n && from_n + n == from->n && gw_packed_can_cut(to, 0, k)));
    bool quantized = from->pack >= GW_PACK_U4;
    size_t unit = quantized ? from->block_bytes : GW_PANEL * float_bytes(from->pack); /* bytes a step of k takes */
    int step = quantized ? GW_BLOCK : 1;
    for (int panel = 0; panel < (n + GW_PANEL - 1) / GW_PANEL; panel++) {
        uint8_t *dst = to->data + (size_t)(to_n / GW_PANEL + panel) * to->panel_bytes;
        const uint8_t *src = from->data + (size_t)(from_n / GW_PANEL + panel) * from->panel_bytes;
        memcpy(dst + (size_t)(to_k / step) * unit, src + (size_t)(from_k / step) * unit, (size_t)(k / step) * unit);
    }
}
