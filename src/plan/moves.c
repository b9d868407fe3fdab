/* See moves.h.
 *
 * The smallest things that move are numbered as cells: a kv head's or FFN atom's weights in one layer, 64 rows of the output matrix, the KV of one
 * inheritance in one layer and kv head. A line is all cells of one kind and layer, a run some neighbours of one line. Each device has a
 * flag per cell: held, needed; and a count of the runs that still have to take it from there.
 */
#include "plan/moves.h"

#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

enum { HELD = 1, NEEDED = 2, STALE = 4 }; /* STALE: only in the check */

/* Sources that leave give first: they are about to stop computing, and what only they have goes with them. */
static const double LEAVING_DISCOUNT = 0.5;
/* Of sequences that are computed anew, where the caller tells only a sum of tokens. */
static const double TYPICAL_CONTEXT = 512;

struct line {
    enum gw_move_kind kind;
    int layer, inherit; /* layer: -1 for the output matrix */
    int first, count;   /* cells */
    uint64_t bytes;     /* of a cell; the output's last one may have less */
};

struct grid {
    const struct gw_moves_in *in;
    struct gw_unit_bytes unit;
    struct line *lines; /* in the order in which they are wanted: front layers first, the output matrix last */
    int line_count, cells;
    int *slot_of; /* [device]: -1: none */
};

struct run {
    int line, begin, end; /* cells of the line */
    int from, to, rank;   /* rank: position in the first order of runs */
    bool done;
};

struct planner {
    const struct gw_moves_in *in;
    struct grid grid;
    uint8_t *flags;           /* [device][cell] */
    uint16_t *takers;         /* [device][cell] */
    uint64_t *used, *arrived; /* [device]: bytes held; bytes as if nothing was ever dropped */
    double *out_s, *in_s;     /* [device]: when its sending is done, and its receiving and loading */
    double *freed_s;          /* [device]: when its last drop was possible */
    double end_s;
    struct run *runs;
    int run_count, run_capacity;
    int capacity; /* of moves->moves */
    struct gw_moves *moves;
};

/* ---- cells ----------------------------------------------------------------------------------------------------- */

static void add_line(struct grid *g, enum gw_move_kind kind, int layer, int inherit, int count, uint64_t bytes)
{
    g->lines[g->line_count++] = (struct line){
        .kind = kind, .layer = layer, .inherit = inherit, .first = g->cells, .count = count, .bytes = bytes};
    g->cells += count;
}

static void open_grid(struct grid *g, const struct gw_moves_in *in)
{
    const struct gw_dims *m = in->dims;
    *g = (struct grid){.in = in, .unit = gw_unit_bytes(m)};
    g->lines = gw_alloc((size_t)m->layers * (size_t)(in->inherit_count + 2) + 1, sizeof *g->lines);
    for (int layer = 0; layer < m->layers; layer++) {
        add_line(g, GW_MOVE_HEADS, layer, -1, m->kv_heads, g->unit.head);
        for (int i = 0; i < in->inherit_count; i++)
            add_line(g, GW_MOVE_KV, layer, i, m->kv_heads, g->unit.kv_token * in->inherits[i].kv_tokens);
        add_line(g, GW_MOVE_ATOMS, layer, -1, m->ffn_atoms, g->unit.atom);
    }
    add_line(g, GW_MOVE_OUTPUT, -1, -1, (m->vocab + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK, g->unit.row * GW_SUM_CHUNK);
    g->slot_of = gw_alloc((size_t)in->device_count + 1, sizeof *g->slot_of);
    for (int d = 0; d < in->device_count; d++) g->slot_of[d] = -1;
    for (int slot = 0; slot < gw_layout_ranks(in->layout); slot++) g->slot_of[in->device_of_slot[slot]] = slot;
}

static void close_grid(struct grid *g)
{
    free(g->lines);
    free(g->slot_of);
}

/* The last rows of the vocabulary may be less than a chunk. */
static uint64_t run_bytes(const struct grid *g, const struct line *line, int begin, int end)
{
    uint64_t bytes = (uint64_t)(end - begin) * line->bytes;
    if (line->kind == GW_MOVE_OUTPUT && end == line->count && end > begin)
        bytes -= (uint64_t)(line->count * GW_SUM_CHUNK - g->in->dims->vocab) * g->unit.row;
    return bytes;
}

/* The cells of a line that belong to a shard, weights or (of the right replica) KV. */
static void shard_cells(const struct gw_shard *s, const struct line *line, int *begin, int *end)
{
    *begin = *end = 0;
    if (line->kind == GW_MOVE_OUTPUT) {
        if (!s->last) return;
        *begin = (s->vocab_begin + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
        *end = (s->vocab_end + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
        return;
    }
    if (line->layer < s->layer_begin || line->layer >= s->layer_end) return;
    *begin = line->kind == GW_MOVE_ATOMS ? s->ffn_begin : s->kv_begin;
    *end = line->kind == GW_MOVE_ATOMS ? s->ffn_end : s->kv_end;
}

static void held_cells(const struct grid *g, int device, const struct line *line, int *begin, int *end)
{
    const struct gw_holding *held = &g->in->holdings[device];
    bool has = line->kind == GW_MOVE_KV ? held->replica >= 0 && g->in->inherits[line->inherit].from == held->replica
                                        : held->weights;
    *begin = *end = 0;
    if (has && line->bytes) shard_cells(&held->shard, line, begin, end);
}

static void needed_cells(const struct grid *g, int device, const struct line *line, int *begin, int *end)
{
    *begin = *end = 0;
    if (g->slot_of[device] < 0 || !line->bytes) return;
    struct gw_place place = gw_layout_place(g->in->layout, g->slot_of[device]);
    if (line->kind == GW_MOVE_KV && g->in->inherits[line->inherit].to != place.replica) return;
    struct gw_shard shard = gw_layout_shard(g->in->dims, g->in->layout, place.shard, place.stage);
    shard_cells(&shard, line, begin, end);
}

/* Flags of all devices, and the bytes they hold (`used`) and will hold (`wanted`). */
static void set_flags(const struct grid *g, uint8_t *flags, uint64_t *used, uint64_t *wanted)
{
    for (int d = 0; d < g->in->device_count; d++)
        for (int i = 0; i < g->line_count; i++) {
            const struct line *line = &g->lines[i];
            uint8_t *own = flags + (size_t)d * (size_t)g->cells + line->first;
            int begin, end;
            held_cells(g, d, line, &begin, &end);
            for (int c = begin; c < end; c++) own[c] |= HELD;
            used[d] += run_bytes(g, line, begin, end);
            needed_cells(g, d, line, &begin, &end);
            for (int c = begin; c < end; c++) own[c] |= NEEDED;
            wanted[d] += run_bytes(g, line, begin, end);
        }
}

static uint8_t *flags_of(const struct planner *p, int device, const struct line *line)
{
    return p->flags + (size_t)device * (size_t)p->grid.cells + line->first;
}

static uint16_t *takers_of(const struct planner *p, int device, const struct line *line)
{
    return p->takers + (size_t)device * (size_t)p->grid.cells + line->first;
}

/* ---- sources --------------------------------------------------------------------------------------------------- */

static void add_run(struct planner *p, const struct run *run)
{
    if (p->run_count == p->run_capacity) {
        p->run_capacity = p->run_capacity ? 2 * p->run_capacity : 256;
        p->runs = gw_realloc(p->runs, (size_t)p->run_capacity, sizeof *p->runs);
    }
    p->runs[p->run_count++] = *run;
}

static double peer_s(const struct planner *p, int from, int to, uint64_t bytes)
{
    return gw_cost_move_s(p->in->cost, (double)bytes, p->in->devices[from].node == p->in->devices[to].node);
}

static double storage_s(const struct planner *p, const struct line *line, int to, uint64_t bytes)
{
    if (line->kind == GW_MOVE_KV) return gw_cost_restore_s(p->in->cost, (double)bytes);
    return gw_cost_pack_s(p->in->cost, (double)bytes, p->in->devices[to].speed);
}

static double later(double a, double b)
{
    return a > b ? a : b;
}

/* Who gives a run that its holders all have alike: whoever is soonest done with it, what he and the receiver have to do already included, if
 * sending takes less than loading. */
static int choose_source(struct planner *p, const struct line *line, int begin, int end, int to)
{
    uint64_t bytes = run_bytes(&p->grid, line, begin, end);
    double load_s = storage_s(p, line, to, bytes), best_key = 0, best_end_s = 0;
    bool storable = line->kind != GW_MOVE_KV || p->in->inherits[line->inherit].checkpointed;
    int best = GW_FROM_STORAGE;
    for (int d = 0; d < p->in->device_count; d++) {
        if (d == to || !(flags_of(p, d, line)[begin] & HELD)) continue;
        double own_s = peer_s(p, d, to, bytes), end_s = later(p->out_s[d], p->in_s[to]) + own_s;
        double key = p->in->devices[d].leaving ? end_s * LEAVING_DISCOUNT : end_s;
        if (storable && own_s >= load_s) continue;
        if (best >= 0) {
            bool near = p->in->devices[d].node == p->in->devices[to].node;
            bool best_near = p->in->devices[best].node == p->in->devices[to].node;
            if (key > best_key || (key == best_key && (best_near || !near))) continue;
        }
        best = d, best_key = key, best_end_s = end_s;
    }
    if (best >= 0 && storable && p->in_s[to] + load_s < best_end_s && !p->in->devices[best].leaving)
        best = GW_FROM_STORAGE;
    if (best >= 0) p->out_s[best] = p->in_s[to] = best_end_s;
    else p->in_s[to] += load_s;
    return best;
}

static bool like_holders(const struct planner *p, const struct line *line, int a, int b)
{
    for (int d = 0; d < p->in->device_count; d++)
        if ((flags_of(p, d, line)[a] ^ flags_of(p, d, line)[b]) & HELD) return false;
    return true;
}

/* All runs of one line to one device. */
static void find_runs(struct planner *p, int number, int to)
{
    const struct line *line = &p->grid.lines[number];
    const uint8_t *own = flags_of(p, to, line);
    bool anew = line->kind == GW_MOVE_KV && p->moves->recomputed[line->inherit];
    for (int begin = 0, end; begin < line->count; begin = end) {
        end = begin + 1;
        if ((own[begin] & (HELD | NEEDED)) != NEEDED) continue;
        while (end < line->count && (own[end] & (HELD | NEEDED)) == NEEDED &&
               (anew || like_holders(p, line, begin, end)))
            end++;
        int from = anew ? GW_FROM_RECOMPUTE : choose_source(p, line, begin, end, to);
        add_run(p, &(struct run){.line = number, .begin = begin, .end = end, .from = from, .to = to});
        for (int c = begin; from >= 0 && c < end; c++) takers_of(p, from, line)[c]++;
    }
}

static int run_class(const struct planner *p, const struct run *run)
{
    if (run->from == GW_FROM_RECOMPUTE) return 2;
    return run->from >= 0 && p->in->devices[run->from].leaving ? 0 : 1;
}

/* From leaving devices first, computing anew last; else as found, front layers first. */
static void order_runs(struct planner *p)
{
    struct run *sorted = gw_alloc((size_t)p->run_count + 1, sizeof *sorted);
    int next = 0;
    for (int class = 0; class < 3; class ++)
        for (int i = 0; i < p->run_count; i++)
            if (run_class(p, &p->runs[i]) == class) sorted[next] = p->runs[i], next++;
    free(p->runs);
    p->runs = sorted;
    p->run_capacity = p->run_count + 1;
}

/* ---- the order ------------------------------------------------------------------------------------------------- */

static void add_move(struct planner *p, const struct line *line, int begin, int end, int from, int to)
{
    struct gw_moves *m = p->moves;
    if (m->count == p->capacity) {
        p->capacity = p->capacity ? 2 * p->capacity : 256;
        m->moves = gw_realloc(m->moves, (size_t)p->capacity, sizeof *m->moves);
    }
    struct gw_move *move = &m->moves[m->count++];
    *move = (struct gw_move){.kind = line->kind,
                             .layer = line->layer,
                             .begin = begin,
                             .end = end,
                             .from = from,
                             .to = to,
                             .inherit = line->inherit,
                             .bytes = run_bytes(&p->grid, line, begin, end)};
    if (line->kind != GW_MOVE_OUTPUT) return;
    move->begin *= GW_SUM_CHUNK;
    move->end = end == line->count ? p->in->dims->vocab : end * GW_SUM_CHUNK;
}

/* Lets go of the cells in [begin, end) that nobody needs any more. */
static void drop(struct planner *p, const struct line *line, int device, int begin, int end, double now_s)
{
    uint8_t *own = flags_of(p, device, line);
    const uint16_t *takers = takers_of(p, device, line);
    for (int at = begin, stop; at < end; at = stop) {
        stop = at + 1;
        if (own[at] != HELD || takers[at]) continue;
        while (stop < end && own[stop] == HELD && !takers[stop]) stop++;
        for (int c = at; c < stop; c++) own[c] = 0;
        add_move(p, line, at, stop, device, GW_TO_NOWHERE);
        p->used[device] -= run_bytes(&p->grid, line, at, stop);
        if (now_s > p->freed_s[device]) p->freed_s[device] = now_s;
    }
}

static void release(struct planner *p, const struct line *line, const struct run *run, int end, double now_s)
{
    if (run->from < 0) return;
    for (int c = run->begin; c < end; c++) takers_of(p, run->from, line)[c]--;
    drop(p, line, run->from, run->begin, end, now_s);
}

static uint64_t room(const struct planner *p, int device)
{
    return p->in->devices[device].memory_bytes - p->used[device];
}

/* Adds the first cells of a run, up to `end`, to the plan, with the time at which they have come. */
static void move_cells(struct planner *p, struct run *run, int end)
{
    const struct line *line = &p->grid.lines[run->line];
    uint64_t bytes = run_bytes(&p->grid, line, run->begin, end);
    int to = run->to;
    double now_s = 0;
    if (run->from != GW_FROM_RECOMPUTE) {
        bool waits = p->arrived[to] + bytes > p->in->devices[to].memory_bytes; /* for something to be dropped */
        double start_s = waits ? p->freed_s[to] : 0;
        if (run->from >= 0) {
            start_s = later(start_s, later(p->out_s[run->from], p->in_s[to]));
            now_s = p->out_s[run->from] = p->in_s[to] = start_s + peer_s(p, run->from, to, bytes);
        } else {
            now_s = p->in_s[to] = later(start_s, p->in_s[to]) + storage_s(p, line, to, bytes);
        }
        p->end_s = later(p->end_s, now_s);
    }
    add_move(p, line, run->begin, end, run->from, to);
    for (int c = run->begin; c < end; c++) flags_of(p, to, line)[c] |= HELD;
    p->used[to] += bytes;
    p->arrived[to] += bytes;
    if (p->used[to] > p->moves->peak_bytes[to]) p->moves->peak_bytes[to] = p->used[to];
    release(p, line, run, end, now_s);
    run->begin = end;
    run->done = end == run->end;
}

/* Adds the runs that fit, always the first one that does. Returns true when some are left, none of which fits as a whole. */
static bool move_what_fits(struct planner *p, int *first)
{
    for (int i = *first; i < p->run_count; i++) {
        struct run *run = &p->runs[i];
        while (*first < p->run_count && p->runs[*first].done) (*first)++;
        if (run->done || run_bytes(&p->grid, &p->grid.lines[run->line], run->begin, run->end) > room(p, run->to))
            continue;
        int drops = p->moves->count;
        move_cells(p, run, run->end);
        if (p->moves->count > drops + 1) i = *first - 1; /* something was dropped: an earlier one may fit now */
    }
    while (*first < p->run_count && p->runs[*first].done) (*first)++;
    return *first < p->run_count;
}

/* The first run of which some cells fit is cut there. */
static bool move_part(struct planner *p, int first)
{
    for (int i = first; i < p->run_count; i++) {
        struct run *run = &p->runs[i];
        const struct line *line = &p->grid.lines[run->line];
        int end = run->begin;
        while (!run->done && end < run->end && run_bytes(&p->grid, line, run->begin, end + 1) <= room(p, run->to))
            end++;
        if (end == run->begin) continue;
        move_cells(p, run, end);
        return true;
    }
    return false;
}

/* Would its source let go of a part of it if nobody took it from there? */
static bool is_burden(const struct planner *p, const struct run *run)
{
    const uint8_t *own = flags_of(p, run->from, &p->grid.lines[run->line]);
    for (int c = run->begin; c < run->end; c++)
        if (!(own[c] & NEEDED)) return true;
    return false;
}

/* Nothing fits anywhere, so a device that waits for something also holds what others wait for. It lets go of it, and they take it from storage: the
 * last of its runs, weights rather than KV. Returns -1, or the inheritance whose KV has to be computed anew. */
static int give_up_source(struct planner *p, int first)
{
    for (int kv = 0; kv < 2; kv++)
        for (int i = first; i < p->run_count; i++) {
            if (p->runs[i].done) continue;
            for (int k = p->run_count - 1; k >= first; k--) {
                struct run *run = &p->runs[k];
                const struct line *line = &p->grid.lines[run->line];
                if (run->done || run->from != p->runs[i].to || (line->kind == GW_MOVE_KV) != kv) continue;
                if (!is_burden(p, run)) continue;
                if (kv && !p->in->inherits[line->inherit].checkpointed) return line->inherit;
                release(p, line, &(struct run){.from = run->from, .begin = run->begin}, run->end, p->end_s);
                run->from = GW_FROM_STORAGE;
                return -1;
            }
        }
    GW_ASSERT(!"a device that is full and waits holds something that others wait for");
    return -1;
}

/* ---- the plan -------------------------------------------------------------------------------------------------- */

static void open_planner(struct planner *p, const struct gw_moves_in *in, struct gw_moves *moves)
{
    size_t n = (size_t)in->device_count + 1;
    *p = (struct planner){.in = in, .moves = moves};
    open_grid(&p->grid, in);
    p->flags = gw_alloc(n * (size_t)p->grid.cells, sizeof *p->flags);
    p->takers = gw_alloc(n * (size_t)p->grid.cells, sizeof *p->takers);
    p->used = gw_alloc(n, sizeof *p->used);
    p->arrived = gw_alloc(n, sizeof *p->arrived);
    p->out_s = gw_alloc(n, sizeof(double));
    p->in_s = gw_alloc(n, sizeof(double));
    p->freed_s = gw_alloc(n, sizeof(double));
}

static void close_planner(struct planner *p)
{
    close_grid(&p->grid);
    free(p->flags);
    free(p->takers);
    free(p->used);
    free(p->arrived);
    free(p->out_s);
    free(p->in_s);
    free(p->freed_s);
    free(p->runs);
}

/* KV of which a part is nowhere has to be computed anew as a whole: the rest of the layers helps nothing. */
static void find_lost(struct planner *p)
{
    for (int i = 0; i < p->grid.line_count; i++) {
        const struct line *line = &p->grid.lines[i];
        if (line->kind != GW_MOVE_KV || !line->bytes || p->in->inherits[line->inherit].checkpointed) continue;
        for (int c = 0; c < line->count; c++) {
            bool found = false;
            for (int d = 0; d < p->in->device_count; d++) found |= flags_of(p, d, line)[c] & HELD;
            if (!found) p->moves->recomputed[line->inherit] = true;
        }
    }
}

/* What cannot be kept: lets go of the KV that is computed anew, and of everything that nobody needs. */
static void drop_first(struct planner *p)
{
    for (int i = 0; i < p->grid.line_count; i++) {
        const struct line *line = &p->grid.lines[i];
        bool anew = line->kind == GW_MOVE_KV && p->moves->recomputed[line->inherit];
        for (int d = 0; d < p->in->device_count; d++) {
            uint8_t *own = flags_of(p, d, line);
            for (int at = 0, stop; anew && at < line->count; at = stop) {
                stop = at + 1;
                if (!(own[at] & HELD)) continue;
                while (stop < line->count && (own[stop] & HELD)) stop++;
                for (int c = at; c < stop; c++) own[c] &= (uint8_t)~HELD;
                add_move(p, line, at, stop, d, GW_TO_NOWHERE);
                p->used[d] -= run_bytes(&p->grid, line, at, stop);
            }
        }
    }
}

static void find_all_runs(struct planner *p)
{
    for (int i = 0; i < p->grid.line_count; i++)
        for (int d = 0; d < p->in->device_count; d++) find_runs(p, i, d);
    order_runs(p);
    for (int i = 0; i < p->grid.line_count; i++)
        for (int d = 0; d < p->in->device_count; d++) drop(p, &p->grid.lines[i], d, 0, p->grid.lines[i].count, 0);
    size_t bytes = (size_t)p->in->device_count *
                   sizeof(double); /* the queues served the choice; now they tell the time */
    memset(p->out_s, 0, bytes);
    memset(p->in_s, 0, bytes);
}

/* One try. Returns -1, or the inheritance that has to be given up for there to be a plan. */
static int try_plan(struct planner *p, const uint64_t *used)
{
    int first = 0, lost = -1;
    for (int d = 0; d < p->in->device_count; d++) p->used[d] = p->arrived[d] = p->moves->peak_bytes[d] = used[d];
    drop_first(p);
    find_all_runs(p);
    while (lost < 0 && move_what_fits(p, &first))
        if (!move_part(p, first)) lost = give_up_source(p, first);
    return lost;
}

static void sum_up(const struct planner *p)
{
    struct gw_moves *m = p->moves;
    double *anew_s = gw_alloc((size_t)p->in->layout.data + 1, sizeof *anew_s);
    for (int i = 0; i < m->count; i++) {
        const struct gw_move *move = &m->moves[i];
        bool kv = move->kind == GW_MOVE_KV;
        if (move->to == GW_TO_NOWHERE) continue;
        if (move->from == GW_FROM_RECOMPUTE) m->recomputed_bytes += move->bytes;
        else if (move->from == GW_FROM_STORAGE) *(kv ? &m->restored_bytes : &m->loaded_bytes) += move->bytes;
        else *(kv ? &m->moved_kv_bytes : &m->moved_weight_bytes) += move->bytes;
    }
    for (int i = 0; i < p->grid.line_count; i++) {
        const struct line *line = &p->grid.lines[i];
        bool kv = line->kind == GW_MOVE_KV;
        if (kv && m->recomputed[line->inherit]) continue;
        for (int d = 0; d < p->in->device_count; d++) {
            int held, held_end, needed, needed_end;
            held_cells(&p->grid, d, line, &held, &held_end);
            needed_cells(&p->grid, d, line, &needed, &needed_end);
            int begin = held > needed ? held : needed, end = held_end < needed_end ? held_end : needed_end;
            if (begin < end) *(kv ? &m->kept_kv_bytes : &m->kept_weight_bytes) += run_bytes(&p->grid, line, begin, end);
        }
    }
    for (int i = 0; i < p->in->inherit_count; i++) {
        const struct gw_inherit *inherit = &p->in->inherits[i];
        double tokens = (double)inherit->kv_tokens, context = tokens < TYPICAL_CONTEXT ? tokens : TYPICAL_CONTEXT;
        if (!m->recomputed[i]) continue;
        anew_s[inherit->to] += gw_cost_recompute_s(p->in->cost, p->in->dims, p->in->layout, tokens, context);
        m->recompute_s = later(m->recompute_s, anew_s[inherit->to]);
    }
    m->seconds = p->end_s + m->recompute_s;
    free(anew_s);
}

static gw_err check_memory(const struct gw_moves_in *in, const uint64_t *used, const uint64_t *wanted)
{
    for (int d = 0; d < in->device_count; d++) {
        uint64_t memory = in->devices[d].memory_bytes;
        if (used[d] > memory || wanted[d] > memory)
            return gw_fail(GW_ERR_LAYOUT, "device %d has %.1f MiB of memory, it holds %.1f MiB and shall hold %.1f MiB",
                           d, (double)memory / 1048576, (double)used[d] / 1048576, (double)wanted[d] / 1048576);
    }
    return GW_OK;
}

gw_err gw_moves_plan(const struct gw_moves_in *in, struct gw_moves *moves)
{
    gw_err rc = GW_OK;
    int lost = -1;
    size_t n = (size_t)in->device_count + 1;
    uint64_t *used = gw_alloc(n, sizeof *used), *wanted = gw_alloc(n, sizeof *wanted);
    *moves = (struct gw_moves){.peak_bytes = gw_alloc(n, sizeof *moves->peak_bytes),
                               .recomputed = gw_alloc((size_t)in->inherit_count + 1, sizeof *moves->recomputed)};
    do { /* each try gives up one inheritance more, so they end */
        struct planner p;
        open_planner(&p, in, moves);
        memset(used, 0, n * sizeof *used);
        memset(wanted, 0, n * sizeof *wanted);
        set_flags(&p.grid, p.flags, used, wanted);
        rc = check_memory(in, used, wanted);
        free(moves->moves);
        moves->moves = NULL;
        moves->count = 0;
        if (rc == GW_OK) {
            find_lost(&p);
            lost = try_plan(&p, used);
            if (lost >= 0) moves->recomputed[lost] = true;
            else sum_up(&p);
        }
        close_planner(&p);
    } while (rc == GW_OK && lost >= 0);
    free(used);
    free(wanted);
    if (rc != GW_OK) gw_moves_free(moves);
    return rc;
}

void gw_moves_free(struct gw_moves *moves)
{
    free(moves->moves);
    free(moves->peak_bytes);
    free(moves->recomputed);
    *moves = (struct gw_moves){0};
}

/* ---- check ----------------------------------------------------------------------------------------------------- */

struct replay {
    struct grid grid;
    uint8_t *flags;
    uint64_t *used, *wanted;
};

/* The line and cells that a move names; NULL if there are none such. */
static const struct line *named_cells(const struct grid *g, const struct gw_move *move, int *begin, int *end)
{
    for (int i = 0; i < g->line_count; i++) {
        const struct line *line = &g->lines[i];
        if (line->kind != move->kind || line->layer != move->layer || line->inherit != move->inherit) continue;
        *begin = move->begin, *end = move->end;
        if (line->kind == GW_MOVE_OUTPUT) {
            if (move->begin % GW_SUM_CHUNK || (move->end % GW_SUM_CHUNK && move->end != g->in->dims->vocab))
                return NULL;
            *begin = move->begin / GW_SUM_CHUNK;
            *end = (move->end + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
        }
        return *begin >= 0 && *begin < *end && *end <= line->count ? line : NULL;
    }
    return NULL;
}

/* KV of sequences that are computed anew must be gone before. */
static void mark_stale(struct replay *r, const struct gw_moves *moves)
{
    for (int d = 0; d < r->grid.in->device_count; d++)
        for (int i = 0; i < r->grid.line_count; i++) {
            const struct line *line = &r->grid.lines[i];
            uint8_t *own = &r->flags[(size_t)d * (size_t)r->grid.cells + line->first];
            if (line->kind != GW_MOVE_KV || !moves->recomputed[line->inherit]) continue;
            for (int c = 0; c < line->count; c++)
                if (own[c] & HELD) own[c] |= STALE;
        }
}

/* NULL, or what is wrong. */
static const char *replay_move(struct replay *r, const struct gw_move *move, const struct gw_moves *moves)
{
    int begin, end, count = r->grid.in->device_count;
    const struct line *line = named_cells(&r->grid, move, &begin, &end);
    if (!line || move->bytes != run_bytes(&r->grid, line, begin, end)) return "names no part of the model";
    if (move->from >= count || move->from < GW_FROM_RECOMPUTE || move->to >= count || move->to < GW_TO_NOWHERE ||
        move->from == move->to)
        return "names no such devices";
    bool kv = line->kind == GW_MOVE_KV;
    if (move->from == GW_FROM_RECOMPUTE && !(kv && moves->recomputed[line->inherit])) return "cannot be computed anew";
    if (move->from == GW_FROM_STORAGE && kv && !r->grid.in->inherits[line->inherit].checkpointed)
        return "is in no checkpoint";
    for (int c = begin; c < end; c++) {
        uint8_t *source = move->from < 0 ? NULL
                                         : &r->flags[(size_t)move->from * (size_t)r->grid.cells + line->first + c];
        if (source && !(*source & HELD)) return "takes what its source does not hold";
        if (move->to == GW_TO_NOWHERE) {
            if (!source) return "is nothing at all";
            *source &= NEEDED;
            continue;
        }
        if (source && *source & STALE) return "is of sequences that are computed anew";
        uint8_t *target = &r->flags[(size_t)move->to * (size_t)r->grid.cells + line->first + c];
        if (*target & HELD) return "brings what is there already";
        if (!(*target & NEEDED)) return "brings what is not needed";
        *target |= HELD;
    }
    if (move->to == GW_TO_NOWHERE) {
        r->used[move->from] -= move->bytes;
        return NULL;
    }
    r->used[move->to] += move->bytes;
    if (r->used[move->to] > r->grid.in->devices[move->to].memory_bytes) return "does not fit";
    if (r->used[move->to] > moves->peak_bytes[move->to]) return "is above the peak that was told";
    return NULL;
}

gw_err gw_moves_check(const struct gw_moves_in *in, const struct gw_moves *moves)
{
    gw_err rc = GW_OK;
    struct replay r = {0};
    size_t n = (size_t)in->device_count + 1;
    open_grid(&r.grid, in);
    r.flags = gw_alloc(n * (size_t)r.grid.cells, sizeof *r.flags);
    r.used = gw_alloc(n, sizeof *r.used);
    r.wanted = gw_alloc(n, sizeof *r.wanted);
    set_flags(&r.grid, r.flags, r.used, r.wanted);
    TRY(check_memory(in, r.used, r.wanted));
    mark_stale(&r, moves);
    for (int i = 0; i < moves->count; i++) {
        const struct gw_move *move = &moves->moves[i];
        const char *wrong = replay_move(&r, move, moves);
        if (wrong)
            FAIL(GW_ERR_VERIFY, "move %d (kind %d, layer %d, %d to %d, device %d to %d) %s", i, move->kind, move->layer,
                 move->begin, move->end, move->from, move->to, wrong);
    }
    for (int d = 0; d < in->device_count; d++)
        for (int i = 0; i < r.grid.line_count; i++)
            for (int c = 0; c < r.grid.lines[i].count; c++) {
                uint8_t flags = r.flags[(size_t)d * (size_t)r.grid.cells + r.grid.lines[i].first + c];
                if (flags && flags != (HELD | NEEDED))
                    FAIL(GW_ERR_VERIFY, "device %d %s part %d of layer %d, kind %d", d,
                         flags == HELD ? "still holds" : "did not get", c, r.grid.lines[i].layer, r.grid.lines[i].kind);
            }
out:
    close_grid(&r.grid);
    free(r.flags);
    free(r.used);
    free(r.wanted);
    return rc;
}
