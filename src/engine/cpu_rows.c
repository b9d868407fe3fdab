/* How a step's rows are shared out to the threads of the CPU backend.
 *
 * By rows, where there are enough of them: each thread takes a group of whole row tiles through norms, products and attention by itself. What
 * it writes is then read by itself, and it waits for nobody but, in a layer, for the keys of earlier rows that a row of its group looks at:
 * those of a sequence that straddles groups, or of a prefix that another sequence of the same step writes. Otherwise by panels:
 * one group, of which every thread computes a part of the outputs, with barriers in between. Neither changes a bit of a result.
 */
#include "engine/cpu.h"

#include <stdlib.h>
#include <string.h>

enum {
    FEWEST_SHARED = 2, /* pages that sequences have in common, for their rows to be one item */
    ITEMS_EACH = 4,    /* attention items of each thread, at least, where they are shared out one by one */
    MANY_THREADS = 8,  /* more may share a memory that does not feed them all: twice as many rows then. Not measured */
    WARM_BYTES = 12 << 20, /* of KV pages that are read ahead for a layer: a part of today's third-level caches */
};

/* How many multiply-adds of the integer products take as long as one of attention, which is in floats. */
static const double attention_cost = 3.6;

void gw_cpu_rows_init(struct cpu *cpu)
{
    size_t threads = (size_t)gw_pool_threads(cpu->pool);
    for (int p = 0; p < GW_STEP_PARTS; p++) cpu->parts[p].groups = gw_alloc(threads, sizeof *cpu->parts[p].groups);
    cpu->tile_cost = gw_alloc((size_t)cpu->config.max_rows / GW_ACT_ROWS + 1, sizeof *cpu->tile_cost);
    cpu->page_writer = gw_alloc((size_t)cpu->config.kv_pages, sizeof *cpu->page_writer);
}

void gw_cpu_rows_close(struct cpu *cpu)
{
    for (int p = 0; p < GW_STEP_PARTS; p++) free(cpu->parts[p].groups);
    free(cpu->tile_cost);
    free(cpu->page_writer);
    free(cpu->items);
    free(cpu->step_pages);
}

static int pages_of(const struct gw_step_seq *seq)
{
    return (seq->pos0 + seq->rows + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

/* What of a sequence's rows lies in [begin, end) of the step; false when nothing does. */
static bool clip(const struct gw_step_seq *seq, int begin, int end, struct gw_step_seq *clipped)
{
    int from = begin > seq->row0 ? begin : seq->row0, to = end < seq->row0 + seq->rows ? end : seq->row0 + seq->rows;
    if (from >= to) return false;
    *clipped = *seq;
    clipped->row0 = from;
    clipped->rows = to - from;
    clipped->pos0 += from - seq->row0;
    return true;
}

static void one_group(struct row_part *part)
{
    part->by_rows = false;
    part->group_count = 1;
    part->groups[0] = (struct row_group){.row_begin = part->row_begin, .row_end = part->row_end};
}

/* Cuts the rows where their costs, looked at as a sum, come nearest to equal parts. False with too few rows, or when the
 * largest part would keep the others waiting. */
static bool cut_by_rows(struct cpu *cpu, struct row_part *to, const struct gw_step *step)
{
    int rows = to->row_end - to->row_begin;
    int threads = gw_pool_threads(cpu->pool), tiles = (rows + GW_ACT_ROWS - 1) / GW_ACT_ROWS;
    int fewest = threads * cpu->kernels->group_rows * (threads > MANY_THREADS ? 2 : 1);
    struct gw_step_seq seq;
    if (threads == 1 || rows < fewest) return false;
    int heads = cpu->kv_heads * cpu->group;
    double products = (double)cpu->d * (2 * heads + 2 * cpu->kv_heads) * cpu->head_dim + 3.0 * cpu->d * cpu->ffn;
    double position = attention_cost * 2 * heads * cpu->head_dim, total = 0, sum = 0, largest = 0, part = 0;
    memset(cpu->tile_cost, 0, (size_t)tiles * sizeof *cpu->tile_cost);
    for (int i = 0; i < step->seq_count; i++) {
        if (!clip(&step->seqs[i], to->row_begin, to->row_end, &seq)) continue;
        for (int row = 0; row < seq.rows; row++) {
            double cost = products + position * (seq.pos0 + row + 1);
            cpu->tile_cost[(seq.row0 + row - to->row_begin) / GW_ACT_ROWS] += cost;
            total += cost;
        }
    }
    to->by_rows = true;
    to->group_count = threads;
    for (int g = 0, tile = 0; g < threads; g++, part = 0) {
        to->groups[g] = (struct row_group){.row_begin = to->row_begin + tile * GW_ACT_ROWS, .after = g};
        for (; tile < tiles && (g == threads - 1 || sum + cpu->tile_cost[tile] / 2 < total * (g + 1) / threads);
             tile++) {
            sum += cpu->tile_cost[tile];
            part += cpu->tile_cost[tile];
        }
        to->groups[g].row_end = tile < tiles ? to->row_begin + tile * GW_ACT_ROWS : to->row_end;
        if (part > largest) largest = part;
    }
    return largest * threads * 7 <= total * 8;
}

static int group_of(const struct row_part *part, int row)
{
    int g = 0;
    while (row >= part->groups[g].row_end) g++;
    return g;
}

/* The first page that a sequence's rows write. */
static int first_written(const struct gw_step_seq *seq)
{
    return seq->pos0 / GW_PAGE_TOKENS;
}

static int first_group_writing(const struct row_part *part, const struct gw_step_seq *seq, int page)
{
    int first = page * GW_PAGE_TOKENS - seq->pos0;
    return group_of(part, seq->row0 + (first > 0 ? first : 0));
}

/* Which earlier groups of the part each has to wait for (other parts are computed before or after all of it). False when two groups write the same page for different sequences (with the same bits), or an earlier
 * one reads what a later one writes once more: then only barriers keep them apart. */
static bool order_groups(struct cpu *cpu, struct row_part *part, const struct gw_step *step)
{
    bool ordered = true;
    struct gw_step_seq seq;
    int32_t *writer =
        cpu->page_writer; /* 1 + the first group that writes a page in this step; 0 everywhere but in here */
    for (int i = 0; i < step->seq_count; i++) {
        if (!clip(&step->seqs[i], part->row_begin, part->row_end, &seq)) continue;
        int last_group = group_of(part, seq.row0 + seq.rows - 1);
        for (int p = first_written(&seq); p < pages_of(&seq); p++) {
            int32_t *by = &writer[step->pages[seq.page0 + p]], group = first_group_writing(part, &seq, p);
            if (*by && (*by != group + 1 || last_group != group)) ordered = false;
            *by = group + 1;
        }
    }
    for (int i = 0; i < step->seq_count && ordered; i++) {
        if (!clip(&step->seqs[i], part->row_begin, part->row_end, &seq)) continue;
        int first = group_of(part, seq.row0), last = group_of(part, seq.row0 + seq.rows - 1);
        for (int g = first; g <= last; g++) {
            struct row_group *group = &part->groups[g];
            if (first < group->after) group->after = first;
            for (int p = 0; p < pages_of(&seq); p++) {
                int by = writer[step->pages[seq.page0 + p]] - 1;
                if (by < 0) continue;
                if (by > g && p < first_written(&seq)) ordered = false;
                if (by < group->after) group->after = by;
            }
        }
    }
    for (int i = 0; i < step->seq_count; i++)
        for (int p = first_written(&step->seqs[i]); p < pages_of(&step->seqs[i]); p++)
            writer[step->pages[step->seqs[i].page0 + p]] = 0;
    return ordered;
}

/* ---- attention items and pages ---------------------------------------------------------------------------------- */

static void add_item(struct cpu *cpu, struct attention_item item)
{
    if (cpu->item_count == cpu->item_capacity) {
        cpu->item_capacity = cpu->item_capacity ? 2 * cpu->item_capacity : 256;
        cpu->items = gw_realloc(cpu->items, (size_t)cpu->item_capacity, sizeof *cpu->items);
    }
    cpu->items[cpu->item_count++] = item;
}

/* The items of rows [begin, end) of the step that belong to sequence number `at`. */
static void add_items(struct cpu *cpu, int at, const struct gw_step_seq *seq, int begin, int end)
{
    struct gw_step_seq own;
    if (!clip(seq, begin, end, &own)) return;
    begin = own.row0 - seq->row0;
    end = begin + own.rows;
    for (int row = begin; row < end; row += ATTENTION_ROWS)
        for (int head = 0; head < cpu->kv_heads; head++)
            add_item(cpu, (struct attention_item){at, head, row,
                                                  end - row < ATTENTION_ROWS ? end - row : ATTENTION_ROWS, 0});
}

/* The first pages, `most` at most, that two sequences have in common. */
static int common_pages(const struct gw_step *step, const struct gw_step_seq *a, const struct gw_step_seq *b, int most)
{
    int count = 0;
    while (count < most && step->pages[a->page0 + count] == step->pages[b->page0 + count]) count++;
    return count;
}

/* How many sequences from number `at` on, within rows up to row_end, have a row each and so many pages in common that their rows are one item. */
static int sharing_run(const struct cpu *cpu, const struct row_part *part, const struct gw_step *step, int at,
                       int row_end, int *shared)
{
    const struct gw_step_seq *first = &step->seqs[at];
    int threads = gw_pool_threads(cpu->pool), count = 1, most = ATTENTION_ROWS;
    *shared = first->pos0 / GW_PAGE_TOKENS; /* full, and seen by the row */
    if (first->rows != 1 || cpu->group > GW_ATTENTION_QUERIES) return 1;
    int rows = part->row_end - part->row_begin;
    if (!part->by_rows && rows * cpu->kv_heads < most * threads * ITEMS_EACH)
        most = rows * cpu->kv_heads / (threads * ITEMS_EACH);
    for (; count < most && at + count < step->seq_count; count++) {
        const struct gw_step_seq *seq = first + count;
        int full = seq->pos0 / GW_PAGE_TOKENS;
        int common = common_pages(step, first, seq, full < *shared ? full : *shared);
        bool less = count > 1 && 2 * common < *shared; /* than the ones before could share among themselves */
        if (seq->rows != 1 || seq->row0 >= row_end || common < FEWEST_SHARED || less) break;
        *shared = common;
    }
    return count;
}

/* Pages that the step reads, to be read ahead: as many as a cache may hold of one layer until it is that layer's turn. */
static void add_pages(struct cpu *cpu, const int32_t *pages, int count)
{
    size_t page_bytes = (size_t)cpu->kv_heads * gw_page_halves(cpu->head_dim) * sizeof(uint16_t);
    if ((size_t)(cpu->step_page_count + count) * page_bytes > WARM_BYTES) return;
    if (cpu->step_page_count + count > cpu->step_page_capacity) {
        cpu->step_page_capacity = 2 * (cpu->step_page_count + count);
        cpu->step_pages = gw_realloc(cpu->step_pages, (size_t)cpu->step_page_capacity, sizeof *cpu->step_pages);
    }
    memcpy(cpu->step_pages + cpu->step_page_count, pages, (size_t)count * sizeof *pages);
    cpu->step_page_count += count;
}

/* The attention items and pages of a part; *at: the sequence that its first row belongs to, then that of the row after its last. */
static void list_items(struct cpu *cpu, struct row_part *part, const struct gw_step *step, int *at)
{
    for (int g = 0; g < part->group_count; g++) {
        struct row_group *group = &part->groups[g];
        group->item_begin = cpu->item_count;
        group->page_begin = cpu->step_page_count;
        for (; *at < step->seq_count && step->seqs[*at].row0 < group->row_end; ++*at) {
            const struct gw_step_seq *seq = &step->seqs[*at];
            int shared, run = sharing_run(cpu, part, step, *at, group->row_end, &shared);
            if (run > 1) {
                for (int head = 0; head < cpu->kv_heads; head++)
                    add_item(cpu, (struct attention_item){*at, head, 0, run, shared});
                for (int i = 0; i < run; i++)
                    add_pages(cpu, step->pages + seq[i].page0 + (i ? shared : 0), pages_of(&seq[i]) - (i ? shared : 0));
                *at += run - 1;
                continue;
            }
            add_items(cpu, *at, seq, group->row_begin, group->row_end);
            add_pages(cpu, step->pages + seq->page0, pages_of(seq));
            if (seq->row0 + seq->rows > group->row_end) break; /* the next group goes on with it */
        }
        group->item_end = cpu->item_count;
        group->page_end = cpu->step_page_count;
    }
}

void gw_cpu_share_rows(struct cpu *cpu, const struct gw_step *step)
{
    int at = 0;
    cpu->item_count = cpu->step_page_count = 0;
    for (int p = 0; p < gw_step_parts(step); p++) {
        struct row_part *part = &cpu->parts[p];
        if (!cut_by_rows(cpu, part, step) || !order_groups(cpu, part, step)) one_group(part);
        list_items(cpu, part, step, &at);
    }
}

struct share gw_cpu_share(const struct row_part *part, int thread, int threads)
{
    const struct row_group *group = &part->groups[part->by_rows ? thread : 0];
    return part->by_rows ? (struct share){group, group->row_begin, group->row_end, 0, 1}
                         : (struct share){group, group->row_begin, group->row_end, thread, threads};
}
