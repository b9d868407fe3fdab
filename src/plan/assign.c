/* See assign.h. */
#include "plan/assign.h"

#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- maximum-weight matching ----------------------------------------------------------------------------------- */

/* Costs are pairs, compared first by the number of forbidden edges, then by bytes: sums and differences of pairs are pairs again, so the
 * algorithm for numbers holds for them, and a forbidden edge outweighs all bytes without a "large enough" number. */
struct pair {
    int64_t forbidden, bytes;
};

static struct pair minus(struct pair a, struct pair b)
{
    return (struct pair){a.forbidden - b.forbidden, a.bytes - b.bytes};
}

static struct pair plus(struct pair a, struct pair b)
{
    return (struct pair){a.forbidden + b.forbidden, a.bytes + b.bytes};
}

static bool less(struct pair a, struct pair b)
{
    return a.forbidden != b.forbidden ? a.forbidden < b.forbidden : a.bytes < b.bytes;
}

static const struct pair INFINITE = {INT64_MAX, 0};

/* The matching as shortest augmenting paths over potentials; index 0 stands for "none", rows and columns count from 1. rows <= cols. */
struct matching {
    int rows, cols;
    bool transposed;
    const int64_t *weights;
    struct pair *row_potential, *col_potential, *slack;
    int *row_of, *before; /* [cols + 1]: the column's row; the column before it on the path */
    bool *done;
};

static struct pair cost_of(const struct matching *m, int row, int col)
{
    int64_t weight = m->transposed ? m->weights[(size_t)(col - 1) * (size_t)m->rows + (size_t)row - 1]
                                   : m->weights[(size_t)(row - 1) * (size_t)m->cols + (size_t)col - 1];
    return weight == GW_ASSIGN_FORBIDDEN ? (struct pair){1, 0} : (struct pair){0, -weight};
}

/* Extends the tree of tight edges from column `col` and returns the nearest column outside of it. */
static int nearest_column(struct matching *m, int col)
{
    int row = m->row_of[col], nearest = 0;
    struct pair least = INFINITE;
    for (int c = 1; c <= m->cols; c++) {
        if (m->done[c]) continue;
        struct pair reduced = minus(minus(cost_of(m, row, c), m->row_potential[row]), m->col_potential[c]);
        if (less(reduced, m->slack[c])) m->slack[c] = reduced, m->before[c] = col;
        if (less(m->slack[c], least)) least = m->slack[c], nearest = c;
    }
    for (int c = 0; c <= m->cols; c++) {
        if (m->done[c]) {
            m->row_potential[m->row_of[c]] = plus(m->row_potential[m->row_of[c]], least);
            m->col_potential[c] = minus(m->col_potential[c], least);
        } else if (c > 0) {
            m->slack[c] = minus(m->slack[c], least);
        }
    }
    return nearest;
}

static void match_row(struct matching *m, int row)
{
    int col = 0;
    m->row_of[0] = row;
    for (int c = 0; c <= m->cols; c++) m->slack[c] = INFINITE, m->done[c] = false;
    do {
        m->done[col] = true;
        col = nearest_column(m, col);
    } while (m->row_of[col]);
    for (; col; col = m->before[col]) m->row_of[col] = m->row_of[m->before[col]];
}

int gw_assign_max(int rows, int cols, const int64_t *weights, int *of_row)
{
    struct matching m = {.rows = rows, .cols = cols, .weights = weights, .transposed = rows > cols};
    if (m.transposed) m.rows = cols, m.cols = rows;
    size_t n = (size_t)m.rows + 1, k = (size_t)m.cols + 1;
    int matched = 0;
    m.row_potential = gw_alloc(n, sizeof *m.row_potential);
    m.col_potential = gw_alloc(k, sizeof *m.col_potential);
    m.slack = gw_alloc(k, sizeof *m.slack);
    m.row_of = gw_alloc(k, sizeof *m.row_of);
    m.before = gw_alloc(k, sizeof *m.before);
    m.done = gw_alloc(k, sizeof *m.done);
    for (int row = 1; row <= m.rows; row++) match_row(&m, row);
    for (int row = 0; row < rows; row++) of_row[row] = -1;
    for (int col = 1; col <= m.cols; col++) {
        int row = m.row_of[col];
        if (!row || cost_of(&m, row, col).forbidden) continue;
        matched++;
        if (m.transposed) of_row[col - 1] = row - 1;
        else of_row[row - 1] = col - 1;
    }
    free(m.row_potential);
    free(m.col_potential);
    free(m.slack);
    free(m.row_of);
    free(m.before);
    free(m.done);
    return matched;
}

/* ---- what can stay --------------------------------------------------------------------------------------------- */

struct gw_unit_bytes gw_unit_bytes(const struct gw_dims *m)
{
    struct gw_shard head = {.layer_end = 1, .kv_end = 1}, atom = {.layer_end = 1, .ffn_end = 1};
    return (struct gw_unit_bytes){
        .head = (uint64_t)ceil(gw_shard_weight_bytes(m, &head)),
        .atom = (uint64_t)ceil(gw_shard_weight_bytes(m, &atom)),
        .row = (uint64_t)ceil(m->output_bytes / m->vocab),
        .kv_token = gw_page_halves(m->head_dim) * sizeof(uint16_t) / GW_PAGE_TOKENS,
    };
}

static uint64_t common(int begin_a, int end_a, int begin_b, int end_b)
{
    int begin = begin_a > begin_b ? begin_a : begin_b, end = end_a < end_b ? end_a : end_b;
    return end > begin ? (uint64_t)(end - begin) : 0;
}

static uint64_t common_weights(const struct gw_unit_bytes *unit, const struct gw_shard *a, const struct gw_shard *b)
{
    uint64_t layers = common(a->layer_begin, a->layer_end, b->layer_begin, b->layer_end);
    uint64_t bytes = layers * (common(a->kv_begin, a->kv_end, b->kv_begin, b->kv_end) * unit->head +
                               common(a->ffn_begin, a->ffn_end, b->ffn_begin, b->ffn_end) * unit->atom);
    if (a->last && b->last) bytes += common(a->vocab_begin, a->vocab_end, b->vocab_begin, b->vocab_end) * unit->row;
    return bytes;
}

static uint64_t common_kv(const struct gw_unit_bytes *unit, const struct gw_shard *a, const struct gw_shard *b,
                          uint64_t tokens)
{
    return common(a->layer_begin, a->layer_end, b->layer_begin, b->layer_end) *
           common(a->kv_begin, a->kv_end, b->kv_begin, b->kv_end) * unit->kv_token * tokens;
}

/* Do the devices that are there still have all of an old replica's KV? Layers x kv heads are counted; no two devices of a replica
 * hold the same. */
static bool replica_whole(const struct gw_assign *a, int replica)
{
    uint64_t cells = 0;
    for (int d = 0; d < a->device_count; d++) {
        const struct gw_shard *s = &a->holdings[d].shard;
        if (a->holdings[d].replica == replica)
            cells += (uint64_t)(s->layer_end - s->layer_begin) * (uint64_t)(s->kv_end - s->kv_begin);
    }
    return cells == (uint64_t)a->dims->layers * (uint64_t)a->dims->kv_heads;
}

static uint64_t kept_bytes(const struct gw_assign *a, int device, int slot, const bool *whole)
{
    struct gw_unit_bytes unit = gw_unit_bytes(a->dims);
    const struct gw_holding *held = &a->holdings[device];
    struct gw_place place = gw_layout_place(a->layout, slot);
    struct gw_shard wanted = gw_layout_shard(a->dims, a->layout, place.shard, place.stage);
    uint64_t bytes = held->weights ? common_weights(&unit, &held->shard, &wanted) : 0;
    for (int i = 0; held->replica >= 0 && i < a->inherit_count; i++) {
        const struct gw_inherit *inherit = &a->inherits[i];
        if (inherit->from != held->replica || inherit->to != place.replica) continue;
        if (!inherit->checkpointed && !(whole ? whole[i] : replica_whole(a, inherit->from))) continue;
        bytes += common_kv(&unit, &held->shard, &wanted, inherit->kv_tokens);
    }
    return bytes;
}

uint64_t gw_assign_kept_bytes(const struct gw_assign *assign, int device, int slot)
{
    return kept_bytes(assign, device, slot, NULL);
}

/* ---- places ---------------------------------------------------------------------------------------------------- */

/* [device][slot] */
static int64_t *all_weights(const struct gw_assign *a)
{
    int slots = gw_layout_ranks(a->layout);
    int64_t *weights = gw_alloc((size_t)a->device_count * (size_t)slots + 1, sizeof *weights);
    bool *whole = gw_alloc((size_t)a->inherit_count + 1, sizeof *whole);
    for (int i = 0; i < a->inherit_count; i++) whole[i] = replica_whole(a, a->inherits[i].from);
    for (int slot = 0; slot < slots; slot++) {
        struct gw_place place = gw_layout_place(a->layout, slot);
        struct gw_shard shard = gw_layout_shard(a->dims, a->layout, place.shard, place.stage);
        double bytes = a->slot_bytes ? a->slot_bytes[slot] : gw_shard_weight_bytes(a->dims, &shard);
        for (int d = 0; d < a->device_count; d++) {
            const struct gw_device *device = &a->devices[d];
            bool allowed = !device->leaving && (double)device->memory_bytes >= bytes &&
                           (!a->slot_speed || device->speed >= a->slot_speed[slot]);
            weights[(size_t)d * (size_t)slots + (size_t)slot] = allowed ? (int64_t)kept_bytes(a, d, slot, whole)
                                                                        : GW_ASSIGN_FORBIDDEN;
        }
    }
    free(whole);
    return weights;
}

/* Devices of a node and the places of some groups of shards: the part of the matrix, matched. Returns the number of places that got a device;
 * `sum` gets the bytes kept, device_of_slot (may be NULL) the devices. */
static int match_node(const struct gw_assign *a, const int64_t *weights, int node, const int *groups, int group_count,
                      int64_t *sum, int *device_of_slot)
{
    int slots = gw_layout_ranks(a->layout), tensor = a->layout.tensor, rows = group_count * tensor, cols = 0;
    int *devices = gw_alloc((size_t)a->device_count + 1, sizeof *devices);
    for (int d = 0; d < a->device_count; d++)
        if (a->devices[d].node == node && !a->devices[d].leaving) devices[cols++] = d;
    int64_t *part = gw_alloc((size_t)rows * (size_t)cols + 1, sizeof *part);
    int *of_row = gw_alloc((size_t)rows + 1, sizeof *of_row);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++)
            part[(size_t)r * (size_t)cols + (size_t)c] =
                weights[(size_t)devices[c] * (size_t)slots + (size_t)(groups[r / tensor] * tensor + r % tensor)];
    int matched = gw_assign_max(rows, cols, part, of_row);
    *sum = 0;
    for (int r = 0; r < rows; r++) {
        if (of_row[r] < 0) continue;
        *sum += part[(size_t)r * (size_t)cols + (size_t)of_row[r]];
        if (device_of_slot) device_of_slot[groups[r / tensor] * tensor + r % tensor] = devices[of_row[r]];
    }
    free(devices);
    free(part);
    free(of_row);
    return matched;
}

/* Keeps the shards of a stage on one node: first groups of shards are matched with nodes, by what each group alone could keep there, then within
 * each node places with devices. false: not possible for all groups. */
static bool place_by_nodes(const struct gw_assign *a, const int64_t *weights, int *device_of_slot)
{
    int slots = gw_layout_ranks(a->layout), tensor = a->layout.tensor, groups = slots / tensor, rooms = 0;
    int *room_node = gw_alloc((size_t)a->device_count + 1, sizeof *room_node); /* a room is space for one group */
    bool ok = true;
    for (int d = 0; d < a->device_count; d++) { /* the tensor-th, 2 * tensor-th .. device of a node opens a room */
        int nth = 0;
        for (int other = 0; other <= d; other++)
            nth += a->devices[other].node == a->devices[d].node && !a->devices[other].leaving;
        if (!a->devices[d].leaving && nth % tensor == 0) room_node[rooms++] = a->devices[d].node;
    }
    int64_t *value = gw_alloc((size_t)groups * (size_t)rooms + 1, sizeof *value);
    int *room_of = gw_alloc((size_t)groups + 1, sizeof *room_of), *members = gw_alloc((size_t)groups + 1, sizeof(int));
    for (int g = 0; g < groups; g++)
        for (int r = 0; r < rooms; r++) {
            int64_t *cell = &value[(size_t)g * (size_t)rooms + (size_t)r];
            if (r && room_node[r] == room_node[r - 1]) *cell = cell[-1];
            else if (match_node(a, weights, room_node[r], &g, 1, cell, NULL) < tensor) *cell = GW_ASSIGN_FORBIDDEN;
        }
    ok = gw_assign_max(groups, rooms, value, room_of) == groups;
    for (int r = 0; ok && r < rooms; r++) {
        int count = 0;
        bool seen = false;
        int64_t sum;
        for (int other = 0; other < r; other++) seen |= room_node[other] == room_node[r];
        for (int g = 0; g < groups; g++)
            if (room_node[room_of[g]] == room_node[r]) members[count++] = g;
        if (seen || !count) continue;
        ok = match_node(a, weights, room_node[r], members, count, &sum, device_of_slot) == count * tensor;
    }
    free(room_node);
    free(value);
    free(room_of);
    free(members);
    return ok;
}

static bool several_nodes(const struct gw_assign *a)
{
    for (int d = 1; d < a->device_count; d++)
        if (a->devices[d].node != a->devices[0].node) return true;
    return false;
}

gw_err gw_assign_places(const struct gw_assign *a, int *device_of_slot, uint64_t *kept)
{
    int slots = gw_layout_ranks(a->layout), matched = slots;
    int64_t *weights = all_weights(a);
    uint64_t sum = 0;
    for (int slot = 0; slot < slots; slot++) device_of_slot[slot] = -1;
    if (a->layout.tensor == 1 || !several_nodes(a) || !place_by_nodes(a, weights, device_of_slot)) {
        int *slot_of = gw_alloc((size_t)a->device_count + 1, sizeof *slot_of);
        for (int slot = 0; slot < slots; slot++) device_of_slot[slot] = -1;
        matched = gw_assign_max(a->device_count, slots, weights, slot_of);
        for (int d = 0; d < a->device_count; d++)
            if (slot_of[d] >= 0) device_of_slot[slot_of[d]] = d;
        free(slot_of);
    }
    for (int slot = 0; matched == slots && slot < slots; slot++)
        sum += (uint64_t)weights[(size_t)device_of_slot[slot] * (size_t)slots + (size_t)slot];
    free(weights);
    if (kept) *kept = sum;
    if (matched < slots)
        return gw_fail(GW_ERR_LAYOUT, "layout %dx%dx%d: only %d of %d places find a device with enough memory",
                       a->layout.data, a->layout.tensor, a->layout.pipeline, matched, slots);
    return GW_OK;
}

/* ---- sequences ------------------------------------------------------------------------------------------------- */

/* What can stay if a new replica inherits all of an old one: the best mapping of the old one's devices to its places. */
static int64_t pair_value(const struct gw_assign *a, const struct gw_inherit *inherit, const int *members, int count)
{
    int slots = a->layout.tensor * a->layout.pipeline;
    int64_t *weights = gw_alloc((size_t)count * (size_t)slots + 1, sizeof *weights), sum = 0;
    int *of_row = gw_alloc((size_t)count + 1, sizeof *of_row);
    struct gw_assign pair = *a;
    pair.inherits = inherit;
    pair.inherit_count = 1;
    bool whole = replica_whole(a, inherit->from);
    for (int i = 0; i < count; i++)
        for (int s = 0; s < slots; s++) {
            int slot = inherit->to * slots + s;
            bool slow = a->slot_speed && a->devices[members[i]].speed < a->slot_speed[slot];
            bool small = a->slot_bytes && (double)a->devices[members[i]].memory_bytes < a->slot_bytes[slot];
            weights[(size_t)i * (size_t)slots + (size_t)s] = slow || small || a->devices[members[i]].leaving
                                                                 ? 0
                                                                 : (int64_t)kept_bytes(&pair, members[i], slot, &whole);
        }
    gw_assign_max(count, slots, weights, of_row);
    for (int i = 0; i < count; i++)
        if (of_row[i] >= 0) sum += weights[(size_t)i * (size_t)slots + (size_t)of_row[i]];
    free(weights);
    free(of_row);
    return sum;
}

/* Old replicas that no new one has to itself go where the fewest tokens are, the largest first. */
static void share_out_rest(int data, int old_count, const uint64_t *kv_tokens, int *to, uint64_t *load)
{
    for (;;) {
        int next = -1, least = 0;
        for (int old = 0; old < old_count; old++)
            if (kv_tokens[old] && to[old] < 0 && (next < 0 || kv_tokens[old] > kv_tokens[next])) next = old;
        if (next < 0) return;
        for (int r = 1; r < data; r++)
            if (load[r] < load[least]) least = r;
        to[next] = least;
        load[least] += kv_tokens[next];
    }
}

void gw_assign_inherits(const struct gw_assign *a, int old_count, const uint64_t *kv_tokens,
                        struct gw_inherit *inherits, int *count)
{
    int data = a->layout.data;
    int64_t *value = gw_alloc((size_t)old_count * (size_t)data + 1, sizeof *value);
    uint64_t *load = gw_alloc((size_t)data + 1, sizeof *load);
    int *members = gw_alloc((size_t)a->device_count + 1, sizeof *members);
    int *to = gw_alloc((size_t)old_count + 1, sizeof *to);
    for (int old = 0; old < old_count; old++) {
        int found = 0;
        for (int d = 0; d < a->device_count; d++)
            if (a->holdings[d].replica == old) members[found++] = d;
        for (int r = 0; r < data; r++) {
            struct gw_inherit inherit = {.from = old, .to = r, .kv_tokens = kv_tokens[old]};
            value[(size_t)old * (size_t)data + (size_t)r] = kv_tokens[old] ? pair_value(a, &inherit, members, found)
                                                                           : GW_ASSIGN_FORBIDDEN;
        }
    }
    gw_assign_max(old_count, data, value, to);
    for (int old = 0; old < old_count; old++)
        if (to[old] >= 0) load[to[old]] += kv_tokens[old];
    share_out_rest(data, old_count, kv_tokens, to, load);
    *count = 0;
    for (int old = 0; old < old_count; old++)
        if (to[old] >= 0)
            inherits[(*count)++] = (struct gw_inherit){.from = old, .to = to[old], .kv_tokens = kv_tokens[old]};
    free(value);
    free(load);
    free(members);
    free(to);
}
