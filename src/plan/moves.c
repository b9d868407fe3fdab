/* See moves.h.
 *
 * Lines, parts and cells are those of moves_grid.h; a run is some neighbouring cells of one line to one device. Beside its flags each device has a count
 * per cell of the runs that still have to take it from the old part. KV parts of one layer that come from one old replica lie in one memory, one
 * line per inheritance, and go together.
 */
#include "plan/moves_grid.h"

#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>

/* Sources that leave give first: they are about to stop computing, and what only they have goes with them. */
static const double LEAVING_DISCOUNT = 0.5;
/* Of sequences that are computed anew, where the caller tells only a sum of tokens. */
static const double TYPICAL_CONTEXT = 512;

struct run {
    int line, begin, end; /* cells of the line */
    int from, to;
    bool done;
};

struct planner {
    const struct gw_moves_in *in;
    struct grid grid;
    uint8_t *flags;           /* [device][cell] */
    uint16_t *takers;         /* [device][cell] */
    bool *opened;             /* [device][line]: the new part has its memory */
    uint64_t *used, *arrived; /* [device]: bytes held; bytes as if nothing was ever dropped */
    double *out_s, *in_s;     /* [device]: when its sending is done, and its receiving and loading */
    double *freed_s;          /* [device]: when its last drop was possible */
    double *saved_s;          /* [device]: out_s while two choices are compared */
    double end_s;
    struct run *runs;
    int run_count, run_capacity;
    int capacity; /* of moves->moves */
    struct gw_moves *moves;
};

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
    if (line->part == GW_PART_KV) return gw_cost_restore_s(p->in->cost, (double)bytes);
    return gw_cost_pack_s(p->in->cost, (double)bytes, p->in->devices[to].speed);
}

static double later(double a, double b)
{
    return a > b ? a : b;
}

/* Who gives a run that its holders all have alike: the device itself, else whoever is soonest done with it, what he and the receiver have to
 * do already included; if it is `storable` and sending takes longer than loading, the storage. */
static int choose_source(struct planner *p, const struct line *line, int begin, int end, int to, bool storable)
{
    uint64_t bytes = gw_moves_run_bytes(&p->grid, line, begin, end);
    double load_s = storage_s(p, line, to, bytes), best_key = 0, best_end_s = 0;
    int best = GW_FROM_STORAGE;
    if (flags_of(p, to, line)[begin] & HELD) return to;
    for (int d = 0; d < p->in->device_count; d++) {
        if (!(flags_of(p, d, line)[begin] & HELD)) continue;
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

/* Runs of the new part, each from whoever is chosen; returns whether a leaving device is one of them, and the seconds that sending takes. */
static bool add_runs(struct planner *p, int number, int to, bool storable, double *direct_s)
{
    const struct line *line = &p->grid.lines[number];
    const struct span *span = gw_moves_span_of(&p->grid, to, number);
    bool anew = line->part == GW_PART_KV && p->moves->recomputed[line->inherit], leaving = false;
    *direct_s = 0;
    for (int begin = span->needed, end; begin < span->needed_end; begin = end) {
        end = begin + 1;
        while (end < span->needed_end && (anew || like_holders(p, line, begin, end))) end++;
        int from = anew ? GW_FROM_RECOMPUTE : choose_source(p, line, begin, end, to, storable);
        add_run(p, &(struct run){.line = number, .begin = begin, .end = end, .from = from, .to = to});
        if (from < 0 || from == to) continue;
        leaving |= p->in->devices[from].leaving;
        *direct_s += peer_s(p, from, to, gw_moves_run_bytes(&p->grid, line, begin, end));
    }
    return leaving;
}

/* Has every cell of the new part somebody who holds it? */
static bool is_held(const struct planner *p, int number, int to)
{
    const struct span *span = gw_moves_span_of(&p->grid, to, number);
    for (int c = span->needed; c < span->needed_end; c++) {
        bool held = false;
        for (int d = 0; d < p->in->device_count && !held; d++) held = flags_of(p, d, &p->grid.lines[number])[c] & HELD;
        if (!held) return false;
    }
    return true;
}

/* Weights of a part come from devices, or all of them from storage. */
static void find_weights(struct planner *p, int number, int to)
{
    const struct line *line = &p->grid.lines[number];
    const struct span *span = gw_moves_span_of(&p->grid, to, number);
    enum gw_weight_source source = p->in->sources ? p->in->sources[to] : GW_WEIGHTS_SOONEST;
    double load_s = storage_s(p, line, to, gw_moves_needed_bytes(&p->grid, to, number)), began_s = p->in_s[to],
           direct_s;
    int first = p->run_count;
    if (source != GW_WEIGHTS_FROM_STORAGE && is_held(p, number, to)) {
        memcpy(p->saved_s, p->out_s, (size_t)p->in->device_count * sizeof(double));
        bool leaving = add_runs(p, number, to, false, &direct_s);
        bool sooner = load_s <= direct_s || (began_s + load_s < p->in_s[to] && !leaving);
        if (!sooner || direct_s == 0 || source == GW_WEIGHTS_FROM_DEVICES) return;
        memcpy(p->out_s, p->saved_s, (size_t)p->in->device_count * sizeof(double));
    }
    p->run_count = first;
    p->in_s[to] = began_s + load_s;
    add_run(p, &(struct run){
                   .line = number, .begin = span->needed, .end = span->needed_end, .from = GW_FROM_STORAGE, .to = to});
}

/* All runs of one line to one device. */
static void find_runs(struct planner *p, int number, int to)
{
    const struct line *line = &p->grid.lines[number];
    const struct span *span = gw_moves_span_of(&p->grid, to, number);
    int first = p->run_count;
    double direct_s;
    bool kv = line->part == GW_PART_KV;
    if (span->needed == span->needed_end || (span->same && !(kv && p->moves->recomputed[line->inherit]))) return;
    if (kv) add_runs(p, number, to, p->in->inherits[line->inherit].checkpointed, &direct_s);
    else find_weights(p, number, to);
    for (int i = first; i < p->run_count; i++)
        for (int c = p->runs[i].begin; p->runs[i].from >= 0 && c < p->runs[i].end; c++)
            takers_of(p, p->runs[i].from, line)[c]++;
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
    *move = (struct gw_move){.part = line->part,
                             .layer = line->layer,
                             .begin = begin,
                             .end = end,
                             .from = from,
                             .to = to,
                             .inherit = line->inherit,
                             .bytes = gw_moves_run_bytes(&p->grid, line, begin, end)};
    if (line->part != GW_PART_OUTPUT) return;
    move->begin *= GW_SUM_CHUNK;
    move->end = end == line->count ? p->in->dims->vocab : end * GW_SUM_CHUNK;
}

/* Is there an old part that is not the new one? */
static bool is_old(const struct planner *p, int number, int device)
{
    const struct span *span = gw_moves_span_of(&p->grid, device, number);
    return span->held < span->held_end && !span->same &&
           (flags_of(p, device, &p->grid.lines[number])[span->held] & HELD);
}

static bool is_wanted(const struct planner *p, int number, int device)
{
    const struct span *span = gw_moves_span_of(&p->grid, device, number);
    const uint16_t *takers = takers_of(p, device, &p->grid.lines[number]);
    for (int c = span->held; c < span->held_end; c++)
        if (takers[c]) return true;
    return false;
}

static void drop_part(struct planner *p, int number, int device, double now_s)
{
    const struct line *line = &p->grid.lines[number];
    const struct span *span = gw_moves_span_of(&p->grid, device, number);
    uint8_t *own = flags_of(p, device, line);
    for (int c = span->held; c < span->held_end; c++) own[c] &= (uint8_t)~HELD;
    add_move(p, line, span->held, span->held_end, device, GW_TO_NOWHERE);
    p->used[device] -= gw_moves_held_bytes(&p->grid, device, number);
    p->freed_s[device] = later(p->freed_s[device], now_s);
}

/* Do the parts of two lines lie in one memory? KV of one layer and one old replica does. */
static bool together(const struct planner *p, int a, int b)
{
    const struct line *x = &p->grid.lines[a], *y = &p->grid.lines[b];
    if (a == b) return true;
    return x->part == GW_PART_KV && y->part == GW_PART_KV && x->layer == y->layer &&
           p->in->inherits[x->inherit].from == p->in->inherits[y->inherit].from;
}

/* Lets go of an old part that nobody takes from any more, once that is so for all that lie in the same memory. Where that memory goes on to be
 * used (the part of one inheritance stays), what is free in it is free at once. */
static void drop(struct planner *p, int number, int device, double now_s)
{
    int begin = number - p->in->inherit_count, end = number + p->in->inherit_count + 1;
    bool goes_on = false, wanted = false;
    if (!is_old(p, number, device) || is_wanted(p, number, device)) return;
    if (begin < 0) begin = 0;
    if (end > p->grid.line_count) end = p->grid.line_count;
    for (int i = begin; i < end; i++) {
        if (!together(p, i, number)) continue;
        goes_on |= gw_moves_span_of(&p->grid, device, i)->same;
        wanted |= is_old(p, i, device) && is_wanted(p, i, device);
    }
    if (goes_on) drop_part(p, number, device, now_s);
    if (goes_on || wanted) return;
    for (int i = begin; i < end; i++)
        if (together(p, i, number) && is_old(p, i, device)) drop_part(p, i, device, now_s);
}

static void release(struct planner *p, const struct run *run, double now_s)
{
    if (run->from < 0) return;
    for (int c = run->begin; c < run->end; c++) takers_of(p, run->from, &p->grid.lines[run->line])[c]--;
    drop(p, run->line, run->from, now_s);
}

static uint64_t room(const struct planner *p, int device)
{
    return p->in->devices[device].memory_bytes - p->used[device];
}

/* Memory that a run takes when it comes: the first of a new part takes that of all of it. */
static uint64_t memory_of(const struct planner *p, const struct run *run)
{
    bool opened = p->opened[(size_t)run->to * (size_t)p->grid.line_count + (size_t)run->line];
    return opened ? 0 : gw_moves_needed_bytes(&p->grid, run->to, run->line);
}

/* Adds a run to the plan, with the time at which it has come. */
static void move_run(struct planner *p, struct run *run)
{
    const struct line *line = &p->grid.lines[run->line];
    uint64_t bytes = gw_moves_run_bytes(&p->grid, line, run->begin, run->end), memory = memory_of(p, run);
    int to = run->to;
    double now_s = 0;
    if (run->from != GW_FROM_RECOMPUTE) {
        bool waits = memory &&
                     p->arrived[to] + memory > p->in->devices[to].memory_bytes; /* for something to be dropped */
        double start_s = waits ? p->freed_s[to] : 0;
        if (run->from == to) {
            now_s = start_s;
        } else if (run->from >= 0) {
            start_s = later(start_s, later(p->out_s[run->from], p->in_s[to]));
            now_s = p->out_s[run->from] = p->in_s[to] = start_s + peer_s(p, run->from, to, bytes);
        } else {
            now_s = p->in_s[to] = later(start_s, p->in_s[to]) + storage_s(p, line, to, bytes);
        }
        p->end_s = later(p->end_s, now_s);
    }
    add_move(p, line, run->begin, run->end, run->from, to);
    for (int c = run->begin; c < run->end; c++) flags_of(p, to, line)[c] |= HERE;
    p->opened[(size_t)to * (size_t)p->grid.line_count + (size_t)run->line] = true;
    p->used[to] += memory;
    p->arrived[to] += memory;
    if (p->arrived[to] > p->in->devices[to].memory_bytes) p->moves->tight[to] = true;
    if (p->used[to] > p->moves->peak_bytes[to]) p->moves->peak_bytes[to] = p->used[to];
    release(p, run, now_s);
    run->done = true;
}

/* Adds the runs that fit, always the first one that does. Returns true when some are left, none of which fits. */
static bool move_what_fits(struct planner *p, int *first)
{
    for (int i = *first; i < p->run_count; i++) {
        struct run *run = &p->runs[i];
        while (*first < p->run_count && p->runs[*first].done) (*first)++;
        if (run->done || memory_of(p, run) > room(p, run->to)) continue;
        int drops = p->moves->count;
        move_run(p, run);
        if (p->moves->count > drops + 1) i = *first - 1; /* something was dropped: an earlier one may fit now */
    }
    while (*first < p->run_count && p->runs[*first].done) (*first)++;
    return *first < p->run_count;
}

/* The whole part comes from storage instead, and those who were to give some of it need not keep it. */
static void load_instead(struct planner *p, int first, int line, int to)
{
    struct run *whole = NULL;
    for (int i = first; i < p->run_count; i++) {
        struct run *run = &p->runs[i];
        if (run->done || run->line != line || run->to != to) continue;
        struct run was = *run;
        if (!whole) whole = run;
        run->done = run != whole;
        run->from = GW_FROM_STORAGE;
        release(p, &was, p->end_s);
    }
    whole->begin = gw_moves_span_of(&p->grid, to, line)->needed;
    whole->end = gw_moves_span_of(&p->grid, to, line)->needed_end;
}

/* Nothing fits anywhere, so a device that waits for something also holds an old part that others, or its own new part, wait for. It lets go of
 * it, and they take it from storage: the last of its runs, weights rather than KV. Returns -1, or the inheritance whose KV has to be computed anew. */
static int give_up_source(struct planner *p, int first)
{
    for (int kv = 0; kv < 2; kv++)
        for (int i = first; i < p->run_count; i++) {
            if (p->runs[i].done) continue;
            for (int k = p->run_count - 1; k >= first; k--) {
                struct run *run = &p->runs[k];
                const struct line *line = &p->grid.lines[run->line];
                if (run->done || run->from != p->runs[i].to || (line->part == GW_PART_KV) != kv) continue;
                if (!is_old(p, run->line, run->from)) continue;
                if (kv && !p->in->inherits[line->inherit].checkpointed) return line->inherit;
                struct run was = *run;
                if (!kv) load_instead(p, first, run->line, run->to);
                run->from = GW_FROM_STORAGE;
                if (kv) release(p, &was, p->end_s);
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
    gw_moves_open_grid(&p->grid, in);
    p->flags = gw_alloc(n * (size_t)p->grid.cells, sizeof *p->flags);
    p->takers = gw_alloc(n * (size_t)p->grid.cells, sizeof *p->takers);
    p->opened = gw_alloc(n * (size_t)p->grid.line_count, sizeof *p->opened);
    p->used = gw_alloc(n, sizeof *p->used);
    p->arrived = gw_alloc(n, sizeof *p->arrived);
    p->out_s = gw_alloc(n, sizeof(double));
    p->in_s = gw_alloc(n, sizeof(double));
    p->freed_s = gw_alloc(n, sizeof(double));
    p->saved_s = gw_alloc(n, sizeof(double));
}

static void close_planner(struct planner *p)
{
    gw_moves_close_grid(&p->grid);
    free(p->flags);
    free(p->takers);
    free(p->opened);
    free(p->used);
    free(p->arrived);
    free(p->out_s);
    free(p->in_s);
    free(p->freed_s);
    free(p->saved_s);
    free(p->runs);
}

/* KV of which a part is nowhere has to be computed anew as a whole: the rest of the layers helps nothing. */
static void find_lost(struct planner *p)
{
    for (int i = 0; i < p->grid.line_count; i++) {
        const struct line *line = &p->grid.lines[i];
        if (line->part != GW_PART_KV || !line->bytes) continue;
        if (p->in->inherits[line->inherit].checkpointed || p->in->inherits[line->inherit].to < 0) continue;
        for (int c = 0; c < line->count; c++) {
            bool found = false;
            for (int d = 0; d < p->in->device_count; d++) found |= flags_of(p, d, line)[c] & HELD;
            if (!found) p->moves->recomputed[line->inherit] = true;
        }
    }
}

static void find_all_runs(struct planner *p)
{
    for (int i = 0; i < p->grid.line_count; i++)
        for (int d = 0; d < p->in->device_count; d++) find_runs(p, i, d);
    order_runs(p);
    for (int i = 0; i < p->grid.line_count; i++)
        for (int d = 0; d < p->in->device_count; d++) drop(p, i, d, 0);
    size_t bytes = (size_t)p->in->device_count *
                   sizeof(double); /* the queues served the choice; now they tell the time */
    memset(p->out_s, 0, bytes);
    memset(p->in_s, 0, bytes);
}

/* One try. Returns -1, or the inheritance that has to be given up for there to be a plan. */
static int try_plan(struct planner *p, const uint64_t *used)
{
    int first = 0, lost = -1;
    for (int d = 0; d < p->in->device_count; d++) {
        p->used[d] = p->arrived[d] = p->moves->peak_bytes[d] = used[d];
        p->moves->tight[d] = false;
    }
    find_all_runs(p);
    while (lost < 0 && move_what_fits(p, &first)) lost = give_up_source(p, first);
    return lost;
}

static void sum_up(const struct planner *p)
{
    struct gw_moves *m = p->moves;
    double *anew_s = gw_alloc((size_t)p->in->layout.data + 1, sizeof *anew_s);
    for (int i = 0; i < m->count; i++) {
        const struct gw_move *move = &m->moves[i];
        bool kv = move->part == GW_PART_KV;
        if (move->to == GW_TO_NOWHERE) continue;
        if (move->from == move->to) *(kv ? &m->kept_kv_bytes : &m->kept_weight_bytes) += move->bytes;
        else if (move->from == GW_FROM_RECOMPUTE) m->recomputed_bytes += move->bytes;
        else if (move->from == GW_FROM_STORAGE) *(kv ? &m->restored_bytes : &m->loaded_bytes) += move->bytes;
        else *(kv ? &m->moved_kv_bytes : &m->moved_weight_bytes) += move->bytes;
    }
    for (int i = 0; i < p->grid.line_count; i++) {
        const struct line *line = &p->grid.lines[i];
        bool kv = line->part == GW_PART_KV;
        if (kv && m->recomputed[line->inherit]) continue;
        for (int d = 0; d < p->in->device_count; d++)
            if (gw_moves_span_of(&p->grid, d, i)->same)
                *(kv ? &m->kept_kv_bytes : &m->kept_weight_bytes) += gw_moves_held_bytes(&p->grid, d, i);
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

gw_err gw_moves_plan(const struct gw_moves_in *in, struct gw_moves *moves)
{
    gw_err rc = GW_OK;
    int lost = -1;
    size_t n = (size_t)in->device_count + 1;
    uint64_t *used = gw_alloc(n, sizeof *used), *wanted = gw_alloc(n, sizeof *wanted);
    *moves = (struct gw_moves){.peak_bytes = gw_alloc(n, sizeof *moves->peak_bytes),
                               .tight = gw_alloc(n, sizeof *moves->tight),
                               .recomputed = gw_alloc((size_t)in->inherit_count + 1, sizeof *moves->recomputed)};
    do { /* each try gives up one inheritance more, so they end */
        struct planner p;
        open_planner(&p, in, moves);
        memset(used, 0, n * sizeof *used);
        memset(wanted, 0, n * sizeof *wanted);
        gw_moves_set_flags(&p.grid, p.flags, p.opened, used, wanted);
        rc = gw_moves_check_memory(in, used, wanted);
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
    free(moves->tight);
    free(moves->recomputed);
    *moves = (struct gw_moves){0};
}
