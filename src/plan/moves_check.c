/* Replays a migration plan cell by cell: gw_moves_check() of moves.h. It shares with the planner what is held and needed, and nothing of how a
 * plan comes about. */
#include "plan/moves_grid.h"

#include "kernels/kernels.h"

#include <stdlib.h>

struct replay {
    struct grid grid;
    uint8_t *flags;
    bool *opened;
    uint64_t *used, *wanted;
};

/* The line and cells that a move names; NULL if there are none such. */
static const struct line *named_cells(const struct grid *g, const struct gw_move *move, int *begin, int *end)
{
    for (int i = 0; i < g->line_count; i++) {
        const struct line *line = &g->lines[i];
        if (line->part != move->part || line->layer != move->layer || line->inherit != move->inherit) continue;
        *begin = move->begin, *end = move->end;
        if (line->part == GW_PART_OUTPUT) {
            if (move->begin % GW_SUM_CHUNK || (move->end % GW_SUM_CHUNK && move->end != g->in->dims->vocab))
                return NULL;
            *begin = move->begin / GW_SUM_CHUNK;
            *end = (move->end + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
        }
        return *begin >= 0 && *begin < *end && *end <= line->count ? line : NULL;
    }
    return NULL;
}

/* KV of sequences that are computed anew must not be used any more. */
static void mark_stale(struct replay *r, const struct gw_moves *moves)
{
    for (int d = 0; d < r->grid.in->device_count; d++)
        for (int i = 0; i < r->grid.line_count; i++) {
            const struct line *line = &r->grid.lines[i];
            uint8_t *own = &r->flags[(size_t)d * (size_t)r->grid.cells + line->first];
            if (line->part != GW_PART_KV || !moves->recomputed[line->inherit]) continue;
            for (int c = 0; c < line->count; c++)
                if (own[c] & HELD) own[c] |= STALE;
        }
}

/* A device drops an old part: all of it. */
static const char *replay_drop(struct replay *r, const struct line *line, const struct gw_move *move, int begin,
                               int end)
{
    const struct span *span = gw_moves_span_of(&r->grid, move->from, (int)(line - r->grid.lines));
    uint8_t *own = &r->flags[(size_t)move->from * (size_t)r->grid.cells + line->first];
    if (begin != span->held || end != span->held_end || span->same) return "drops what is no old part";
    for (int c = begin; c < end; c++) {
        if (!(own[c] & HELD)) return "drops what is dropped already";
        own[c] &= (uint8_t) ~(HELD | STALE);
    }
    r->used[move->from] -= move->bytes;
    return NULL;
}

/* One cell comes. */
static const char *replay_cell(const uint8_t *source, uint8_t *target, bool anew)
{
    if (source && !(*source & HELD)) return "takes what its source does not hold";
    if (source && *source & STALE) return "is of sequences that are computed anew";
    if (*target & HERE && !(anew && *target & STALE)) return "brings what is there already";
    if (!(*target & NEEDED)) return "brings what is not needed";
    if (*target & HERE) *target &= (uint8_t)~STALE;
    *target |= HERE;
    return NULL;
}

/* NULL, or what is wrong. */
static const char *replay_move(struct replay *r, const struct gw_move *move, const struct gw_moves *moves)
{
    int begin, end, count = r->grid.in->device_count, to = move->to;
    const struct line *line = named_cells(&r->grid, move, &begin, &end);
    if (!line || move->bytes != gw_moves_run_bytes(&r->grid, line, begin, end)) return "names no part of the model";
    if (move->from >= count || move->from < GW_FROM_RECOMPUTE || to >= count || to < GW_TO_NOWHERE)
        return "names no such devices";
    bool kv = line->part == GW_PART_KV;
    int number = (int)(line - r->grid.lines);
    if (move->from == GW_FROM_RECOMPUTE && !(kv && moves->recomputed[line->inherit])) return "cannot be computed anew";
    if (to == GW_TO_NOWHERE) return move->from < 0 ? "is nothing at all" : replay_drop(r, line, move, begin, end);
    const struct span *span = gw_moves_span_of(&r->grid, to, number);
    if (move->from == GW_FROM_STORAGE && kv && !r->grid.in->inherits[line->inherit].checkpointed)
        return "is in no checkpoint";
    if (move->from == GW_FROM_STORAGE && !kv && (begin != span->needed || end != span->needed_end))
        return "loads less than a part";
    for (int c = begin; c < end; c++) {
        size_t at = (size_t)line->first + (size_t)c, cells = (size_t)r->grid.cells;
        const uint8_t *source = move->from < 0 ? NULL : &r->flags[(size_t)move->from * cells + at];
        const char *wrong = replay_cell(source, &r->flags[(size_t)to * cells + at], move->from == GW_FROM_RECOMPUTE);
        if (wrong) return wrong;
    }
    bool *opened = &r->opened[(size_t)to * (size_t)r->grid.line_count + (size_t)number];
    r->used[to] += *opened ? 0 : gw_moves_needed_bytes(&r->grid, to, number);
    *opened = true;
    if (r->used[to] > r->grid.in->devices[to].memory_bytes) return "does not fit";
    if (r->used[to] > moves->peak_bytes[to]) return "is above the peak that was told";
    return NULL;
}

/* What is wrong with a device's part in the end. */
static const char *replay_end(uint8_t flags, bool same)
{
    if (flags & STALE) return "still has what is computed anew of";
    if (flags & HELD && !same) return "still holds";
    if (flags & NEEDED && !(flags & HERE)) return "did not get";
    return NULL;
}

gw_err gw_moves_check(const struct gw_moves_in *in, const struct gw_moves *moves)
{
    gw_err rc = GW_OK;
    struct replay r = {0};
    size_t n = (size_t)in->device_count + 1;
    gw_moves_open_grid(&r.grid, in);
    r.flags = gw_alloc(n * (size_t)r.grid.cells, sizeof *r.flags);
    r.opened = gw_alloc(n * (size_t)r.grid.line_count, sizeof *r.opened);
    r.used = gw_alloc(n, sizeof *r.used);
    r.wanted = gw_alloc(n, sizeof *r.wanted);
    gw_moves_set_flags(&r.grid, r.flags, r.opened, r.used, r.wanted);
    TRY(gw_moves_check_memory(in, r.used, r.wanted));
    mark_stale(&r, moves);
    for (int i = 0; i < moves->count; i++) {
        const struct gw_move *move = &moves->moves[i];
        const char *wrong = replay_move(&r, move, moves);
        if (wrong)
            FAIL(GW_ERR_VERIFY, "move %d (part %d, layer %d, %d to %d, device %d to %d) %s", i, move->part, move->layer,
                 move->begin, move->end, move->from, move->to, wrong);
    }
    for (int d = 0; d < in->device_count; d++)
        for (int i = 0; i < r.grid.line_count; i++)
            for (int c = 0; c < r.grid.lines[i].count; c++) {
                uint8_t flags = r.flags[(size_t)d * (size_t)r.grid.cells + r.grid.lines[i].first + c];
                const char *wrong = replay_end(flags, gw_moves_span_of(&r.grid, d, i)->same);
                if (wrong)
                    FAIL(GW_ERR_VERIFY, "device %d %s cell %d of layer %d, part %d", d, wrong, c, r.grid.lines[i].layer,
                         r.grid.lines[i].part);
            }
out:
    gw_moves_close_grid(&r.grid);
    free(r.flags);
    free(r.opened);
    free(r.used);
    free(r.wanted);
    return rc;
}
