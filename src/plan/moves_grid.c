/* What every device holds and shall hold, in cells. See moves_grid.h. */
#include "plan/moves_grid.h"

#include "kernels/kernels.h"

#include <stdlib.h>

static void add_line(struct grid *g, enum gw_part part, int layer, int inherit, int count, uint64_t bytes)
{
    g->lines[g->line_count++] = (struct line){
        .part = part, .layer = layer, .inherit = inherit, .first = g->cells, .count = count, .bytes = bytes};
    g->cells += count;
}

static void find_spans(struct grid *g);

void gw_moves_open_grid(struct grid *g, const struct gw_moves_in *in)
{
    const struct gw_dims *m = in->dims;
    *g = (struct grid){.in = in, .unit = gw_unit_bytes(m)};
    g->lines = gw_alloc((size_t)m->layers * (size_t)(in->inherit_count + 2) + 1, sizeof *g->lines);
    for (int layer = 0; layer < m->layers; layer++) {
        add_line(g, GW_PART_HEADS, layer, -1, m->kv_heads, g->unit.head);
        for (int i = 0; i < in->inherit_count; i++)
            add_line(g, GW_PART_KV, layer, i, m->kv_heads, g->unit.kv_token * in->inherits[i].kv_tokens);
        add_line(g, GW_PART_ATOMS, layer, -1, m->ffn_atoms, g->unit.atom);
    }
    add_line(g, GW_PART_OUTPUT, -1, -1, (m->vocab + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK, g->unit.row * GW_SUM_CHUNK);
    g->slot_of = gw_alloc((size_t)in->device_count + 1, sizeof *g->slot_of);
    for (int d = 0; d < in->device_count; d++) g->slot_of[d] = -1;
    for (int slot = 0; slot < gw_layout_ranks(in->layout); slot++) g->slot_of[in->device_of_slot[slot]] = slot;
    g->spans = gw_alloc((size_t)in->device_count * (size_t)g->line_count + 1, sizeof *g->spans);
    find_spans(g);
}

void gw_moves_close_grid(struct grid *g)
{
    free(g->lines);
    free(g->slot_of);
    free(g->spans);
}

const struct span *gw_moves_span_of(const struct grid *g, int device, int line)
{
    return &g->spans[(size_t)device * (size_t)g->line_count + (size_t)line];
}

/* Bytes of atoms [0, end): an atom has a block more or less than another. */
static uint64_t atom_bytes(const struct grid *g, int end)
{
    const struct gw_dims *m = g->in->dims;
    uint64_t blocks = (uint64_t)gw_ffn_atom_block(m->ffn, m->ffn_atoms, m->ffn_atoms);
    uint64_t all = g->unit.atom * (uint64_t)m->ffn_atoms;
    return all * (uint64_t)gw_ffn_atom_block(m->ffn, m->ffn_atoms, end) / (blocks ? blocks : 1);
}

/* The last rows of the vocabulary may be less than a chunk. */
uint64_t gw_moves_run_bytes(const struct grid *g, const struct line *line, int begin, int end)
{
    uint64_t bytes = (uint64_t)(end - begin) * line->bytes;
    if (line->part == GW_PART_ATOMS) return atom_bytes(g, end) - atom_bytes(g, begin);
    if (line->part == GW_PART_OUTPUT && end == line->count && end > begin)
        bytes -= (uint64_t)(line->count * GW_SUM_CHUNK - g->in->dims->vocab) * g->unit.row;
    return bytes;
}

/* The cells of a line that belong to a shard, weights or (of the right replica) KV. */
static void shard_cells(const struct gw_shard *s, const struct line *line, int *begin, int *end)
{
    *begin = *end = 0;
    if (line->part == GW_PART_OUTPUT) {
        if (!s->last) return;
        *begin = (s->vocab_begin + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
        *end = (s->vocab_end + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
        return;
    }
    if (line->layer < s->layer_begin || line->layer >= s->layer_end) return;
    *begin = line->part == GW_PART_ATOMS ? s->ffn_begin : s->kv_begin;
    *end = line->part == GW_PART_ATOMS ? s->ffn_end : s->kv_end;
}

static void held_cells(const struct grid *g, int device, const struct line *line, int *begin, int *end)
{
    const struct gw_holding *held = &g->in->holdings[device];
    bool has = line->part == GW_PART_KV ? held->replica >= 0 && g->in->inherits[line->inherit].from == held->replica
                                        : held->weights;
    *begin = *end = 0;
    if (has && line->bytes) shard_cells(&held->shard, line, begin, end);
}

static void needed_cells(const struct grid *g, int device, const struct line *line, int *begin, int *end)
{
    *begin = *end = 0;
    if (g->slot_of[device] < 0 || !line->bytes) return;
    struct gw_place place = gw_layout_place(g->in->layout, g->slot_of[device]);
    if (line->part == GW_PART_KV && g->in->inherits[line->inherit].to != place.replica) return;
    struct gw_shard shard = gw_layout_shard(g->in->dims, g->in->layout, place.shard, place.stage);
    shard_cells(&shard, line, begin, end);
}

static void find_spans(struct grid *g)
{
    for (int d = 0; d < g->in->device_count; d++)
        for (int i = 0; i < g->line_count; i++) {
            struct span *s = &g->spans[(size_t)d * (size_t)g->line_count + (size_t)i];
            held_cells(g, d, &g->lines[i], &s->held, &s->held_end);
            needed_cells(g, d, &g->lines[i], &s->needed, &s->needed_end);
            s->same = s->held < s->held_end && s->held == s->needed && s->held_end == s->needed_end;
            if (g->lines[i].part == GW_PART_KV && g->in->kv_renewed) s->same = false;
        }
}

uint64_t gw_moves_held_bytes(const struct grid *g, int device, int line)
{
    const struct span *s = gw_moves_span_of(g, device, line);
    return gw_moves_run_bytes(g, &g->lines[line], s->held, s->held_end);
}

uint64_t gw_moves_needed_bytes(const struct grid *g, int device, int line)
{
    const struct span *s = gw_moves_span_of(g, device, line);
    return gw_moves_run_bytes(g, &g->lines[line], s->needed, s->needed_end);
}

void gw_moves_set_flags(const struct grid *g, uint8_t *flags, bool *opened, uint64_t *used, uint64_t *wanted)
{
    for (int d = 0; d < g->in->device_count; d++)
        for (int i = 0; i < g->line_count; i++) {
            const struct span *s = gw_moves_span_of(g, d, i);
            uint8_t *own = flags + (size_t)d * (size_t)g->cells + g->lines[i].first;
            for (int c = s->held; c < s->held_end; c++) own[c] |= HELD;
            for (int c = s->needed; c < s->needed_end; c++) own[c] |= s->same ? NEEDED | HERE : NEEDED;
            opened[(size_t)d * (size_t)g->line_count + (size_t)i] = s->same;
            used[d] += gw_moves_held_bytes(g, d, i);
            wanted[d] += gw_moves_needed_bytes(g, d, i);
        }
}

gw_err gw_moves_check_memory(const struct gw_moves_in *in, const uint64_t *used, const uint64_t *wanted)
{
    for (int d = 0; d < in->device_count; d++) {
        uint64_t memory = in->devices[d].memory_bytes;
        if (used[d] > memory || wanted[d] > memory)
            return gw_fail(GW_ERR_LAYOUT, "device %d has %.1f MiB of memory, it holds %.1f MiB and shall hold %.1f MiB",
                           d, (double)memory / 1048576, (double)used[d] / 1048576, (double)wanted[d] / 1048576);
    }
    return GW_OK;
}
