/* See scheduler.h. Sequences are kept in one array, oldest first; waiting ones have slot -1. The arrays are small (max_seqs and a few
 * that wait), so passes over them cost nothing beside a step. */
#include "batch/scheduler.h"

#include <stdlib.h>
#include <string.h>

struct gw_sched {
    struct gw_sched_config config;
    struct gw_kv_pages *pages;
    struct gw_seq **seqs; /* by age, oldest first */
    int count, capacity;
    int running;
    uint32_t next_id;
    uint64_t next_age;
    struct gw_sched_stats stats;
};

static int pages_for(int tokens)
{
    return (tokens + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
}

gw_err gw_sched_create(const struct gw_sched_config *config, struct gw_sched **out)
{
    if (config->page_count < pages_for(config->context))
        return gw_fail(
            GW_ERR_USAGE,
            "the KV cache holds %d tokens but one sequence may have %d; give more with --kv-memory or lower --context",
            config->page_count * GW_PAGE_TOKENS, config->context);
    struct gw_sched *sched = gw_alloc(1, sizeof *sched);
    sched->config = *config;
    sched->pages = gw_kv_pages_create(config->page_count);
    sched->stats.pages_total = config->page_count;
    *out = sched;
    return GW_OK;
}

static void free_seq(struct gw_seq *seq)
{
    free(seq->tokens);
    free(seq->pages);
    free(seq);
}

void gw_sched_destroy(struct gw_sched *sched)
{
    if (!sched) return;
    for (int i = 0; i < sched->count; i++) free_seq(sched->seqs[i]);
    free(sched->seqs);
    gw_kv_pages_destroy(sched->pages);
    free(sched);
}

struct gw_seq *gw_sched_add(struct gw_sched *sched, const int32_t *tokens, int prompt_count, int limit, int logprobs,
                            const struct gw_sample_params *params, void *user)
{
    GW_ASSERT(prompt_count >= 1 && limit > prompt_count && limit <= sched->config.context);
    struct gw_seq *seq = gw_alloc(1, sizeof *seq);
    *seq = (struct gw_seq){.id = sched->next_id++,
                           .user = user,
                           .tokens = gw_alloc((size_t)limit, sizeof(int32_t)),
                           .count = prompt_count,
                           .prompt_count = prompt_count,
                           .limit = limit,
                           .logprobs = logprobs,
                           .params = *params,
                           .age = sched->next_age++,
                           .slot = -1};
    memcpy(seq->tokens, tokens, (size_t)prompt_count * sizeof(int32_t));
    if (sched->count == sched->capacity) {
        sched->capacity = sched->capacity ? 2 * sched->capacity : 64;
        sched->seqs = gw_realloc(sched->seqs, (size_t)sched->capacity, sizeof(struct gw_seq *));
    }
    sched->seqs[sched->count++] = seq;
    return seq;
}

static void release_pages(struct gw_sched *sched, struct gw_seq *seq)
{
    gw_kv_pages_unref_chain(sched->pages, seq->pages, seq->page_count);
    seq->page_count = 0;
    seq->computed = 0;
}

static void preempt(struct gw_sched *sched, struct gw_seq *seq)
{
    sched->stats.preemptions++;
    sched->stats.recomputed_tokens += (uint64_t)seq->computed;
    release_pages(sched, seq);
    if (seq->slot >= 0) sched->running--;
    seq->slot = -1;
}

/* Takes the pages of the youngest sequence that is younger than `seq` and free to stop: a running one, or one that waits with pages it came
 * with. */
static bool preempt_younger(struct gw_sched *sched, const struct gw_seq *seq)
{
    for (int i = sched->count - 1; i >= 0 && sched->seqs[i]->age > seq->age; i--) {
        struct gw_seq *victim = sched->seqs[i];
        if (victim->in_flight || victim->page_count == 0) continue;
        preempt(sched, victim);
        return true;
    }
    return false;
}

static void push_page(struct gw_seq *seq, int page)
{
    if (seq->page_count == seq->page_capacity) {
        seq->page_capacity = seq->page_capacity ? 2 * seq->page_capacity : 8;
        seq->pages = gw_realloc(seq->pages, (size_t)seq->page_capacity, sizeof *seq->pages);
    }
    seq->pages[seq->page_count++] = page;
}

static int last_page(const struct gw_seq *seq)
{
    return seq->page_count ? seq->pages[seq->page_count - 1] : -1;
}

/* Takes over pages that hold the sequence's next tokens already; the last known token is always left to compute. */
static void adopt_prefix(struct gw_sched *sched, struct gw_seq *seq)
{
    while (seq->computed % GW_PAGE_TOKENS == 0 && seq->page_count == seq->computed / GW_PAGE_TOKENS &&
           seq->computed + GW_PAGE_TOKENS < seq->count) {
        int page = gw_kv_pages_find(sched->pages, last_page(seq), seq->tokens + seq->computed);
        if (page < 0) break;
        gw_kv_pages_ref(sched->pages, page);
        push_page(seq, page);
        seq->computed += GW_PAGE_TOKENS;
        sched->stats.prefix_tokens_reused += GW_PAGE_TOKENS;
    }
}

/* Makes pages for up to `rows` more tokens; returns for how many there is room. */
static int make_room(struct gw_sched *sched, struct gw_seq *seq, int rows)
{
    while (seq->page_count * GW_PAGE_TOKENS < seq->computed + rows) {
        int page = gw_kv_pages_alloc(sched->pages);
        if (page >= 0) push_page(seq, page);
        else if (!preempt_younger(sched, seq)) break;
    }
    int room = seq->page_count * GW_PAGE_TOKENS - seq->computed;
    return room < rows ? room : rows;
}

/* Pages that become full with this step can be shared from now on. Where another sequence has the same page already, that one
 * takes its place before the step's page table is made: the step then writes the bits that are there. */
static void register_pages(struct gw_sched *sched, struct gw_seq *seq, int from, int to)
{
    for (int p = from / GW_PAGE_TOKENS; p < to / GW_PAGE_TOKENS; p++) {
        if (gw_kv_pages_registered(sched->pages, seq->pages[p])) continue; /* shared, and written once more */
        seq->pages[p] = gw_kv_pages_register(sched->pages, seq->pages[p], p ? seq->pages[p - 1] : -1,
                                             seq->tokens + p * GW_PAGE_TOKENS);
    }
}

/* Adds up to `budget` rows of `seq` to the step; returns how many. */
static int add_rows(struct gw_sched *sched, struct gw_seq *seq, struct gw_step *step, int budget)
{
    adopt_prefix(sched, seq);
    int rows = seq->count - seq->computed;
    if (rows > budget) rows = budget;
    rows = make_room(sched, seq, rows);
    if (rows <= 0) return 0;
    int end = seq->computed + rows;
    register_pages(sched, seq, seq->computed, end);
    struct gw_step_seq *entry = gw_step_add_seq(step);
    entry->seq = seq->id;
    entry->row0 = step->rows;
    entry->rows = rows;
    entry->pos0 = seq->computed;
    entry->page0 = step->page_count;
    entry->sample = end == seq->count;
    entry->token_index = (uint64_t)(seq->count - seq->prompt_count);
    entry->params = seq->params;
    entry->logprobs = seq->logprobs;
    seq->computed_before = seq->computed;
    gw_step_add_tokens(step, seq->tokens + seq->computed, rows);
    gw_step_add_pages(step, seq->pages, pages_for(end));
    if (entry->sample && seq->params.repetition_penalty != 1.0f) {
        entry->history0 = step->history_count;
        entry->history_count = seq->count;
        gw_step_add_history(step, seq->tokens, seq->count);
    }
    seq->computed = end;
    seq->in_flight = true;
    return rows;
}

static int running_in(const struct gw_sched *sched, int slot)
{
    int count = 0;
    for (int i = 0; i < sched->count; i++) count += sched->seqs[i]->slot == slot;
    return count;
}

/* May a waiting sequence start now? Room for its known tokens, and a page for each running one to grow into, so that it
 * would not be preempted right away. */
static bool may_start(const struct gw_sched *sched, const struct gw_seq *seq)
{
    if (sched->running == 0) return true;
    return gw_kv_pages_available(sched->pages) >= pages_for(seq->count + 1) - seq->page_count + sched->running;
}

/* How many sequences a slot may run: an even share of those there are, so that no stage of a pipeline idles while another slot has
 * them all. */
static int share_of_slot(const struct gw_sched *sched)
{
    int seqs = sched->count < sched->config.max_seqs ? sched->count : sched->config.max_seqs;
    return (seqs + sched->config.slots - 1) / sched->config.slots;
}

static void start_waiting(struct gw_sched *sched, int slot, struct gw_step *step, int budget)
{
    int places = share_of_slot(sched) - running_in(sched, slot);
    for (int i = 0; i < sched->count && places > 0 && budget > 0; i++) {
        struct gw_seq *seq = sched->seqs[i];
        if (seq->slot >= 0) continue;
        if (!may_start(sched, seq)) break; /* in order of age: none overtakes */
        seq->slot = slot;
        sched->running++;
        places--;
        int rows = add_rows(sched, seq, step, budget);
        budget -= rows;
        if (rows == 0) break;
    }
}

bool gw_sched_plan(struct gw_sched *sched, int slot, struct gw_step *step)
{
    gw_step_clear(step);
    step->slot = slot;
    int decoding = 0;
    for (int i = 0; i < sched->count; i++) {
        const struct gw_seq *seq = sched->seqs[i];
        decoding += seq->slot == slot && seq->count - seq->computed == 1;
    }
    int budget = sched->config.step_rows - decoding; /* rows for prefill: decoding rows are never held back */
    for (int i = 0; i < sched->count; i++) {
        struct gw_seq *seq = sched->seqs[i];
        if (seq->slot != slot) continue;
        GW_ASSERT(!seq->in_flight);
        if (seq->count - seq->computed == 1) add_rows(sched, seq, step, 1);
        else if (budget > 0) budget -= add_rows(sched, seq, step, budget);
    }
    start_waiting(sched, slot, step, budget);
    if (step->rows == 0) return false;
    step->id = sched->stats.steps++;
    sched->stats.rows += (uint64_t)step->rows;
    return true;
}

void gw_sched_restore(struct gw_sched *sched, struct gw_seq *seq, const int32_t *drawn, int count, const int32_t *pages,
                      int page_count, int computed)
{
    GW_ASSERT(seq->count == seq->prompt_count && seq->count + count < seq->limit);
    if (count) memcpy(seq->tokens + seq->count, drawn, (size_t)count * sizeof *drawn);
    seq->count += count;
    GW_ASSERT(computed < seq->count && page_count == pages_for(computed));
    for (int p = 0; p < page_count; p++) push_page(seq, pages[p]);
    seq->computed = computed;
    for (int p = 0; p < computed / GW_PAGE_TOKENS; p++)
        if (!gw_kv_pages_registered(sched->pages, seq->pages[p]))
            seq->pages[p] = gw_kv_pages_register(sched->pages, seq->pages[p], p ? seq->pages[p - 1] : -1,
                                                 seq->tokens + p * GW_PAGE_TOKENS);
}

/* Page `page` is not what its identity says: whoever counts on it computes it again. */
static void distrust(struct gw_sched *sched, int page)
{
    gw_kv_pages_unregister(sched->pages, page);
    for (int i = 0; i < sched->count; i++) {
        struct gw_seq *seq = sched->seqs[i];
        for (int p = 0; p < seq->page_count; p++)
            if (seq->pages[p] == page && seq->computed > p * GW_PAGE_TOKENS) seq->computed = p * GW_PAGE_TOKENS;
    }
}

void gw_sched_cancel(struct gw_sched *sched)
{
    for (int i = 0; i < sched->count; i++) {
        struct gw_seq *seq = sched->seqs[i];
        if (!seq->in_flight) {
            if (seq->computed == seq->count) seq->computed--; /* its step ended, but the token it drew never came */
            continue;
        }
        seq->in_flight = false;
        int end = seq->computed, begin = seq->computed_before;
        if (seq->computed > begin) seq->computed = begin;
        for (int p = begin / GW_PAGE_TOKENS; p < seq->page_count && (p + 1) * GW_PAGE_TOKENS <= end; p++)
            distrust(sched, seq->pages[p]);
    }
    /* The page in which a cancelled step began may hold rows from before it: they stay good. */
}

void gw_sched_step_done(struct gw_sched *sched, int slot)
{
    for (int i = 0; i < sched->count; i++)
        if (sched->seqs[i]->slot == slot) sched->seqs[i]->in_flight = false;
}

struct gw_seq *gw_sched_push(struct gw_sched *sched, uint32_t id, int32_t token)
{
    for (int i = 0; i < sched->count; i++) {
        struct gw_seq *seq = sched->seqs[i];
        if (seq->id != id) continue;
        GW_ASSERT(!seq->in_flight && seq->count < seq->limit);
        seq->tokens[seq->count++] = token;
        return seq;
    }
    GW_ASSERT(!"a drawn token belongs to a known sequence");
    return NULL;
}

/* Prompts begin alike, and no prompt begins like an answer: pages with generated tokens are not kept for others, but used again at once, instead of
 * memory that the system has yet to give. */
static void forget_answer(struct gw_sched *sched, const struct gw_seq *seq)
{
    for (int p = seq->page_count - 1; p >= seq->prompt_count / GW_PAGE_TOKENS; p--)
        if (gw_kv_pages_refs(sched->pages, seq->pages[p]) == 1) gw_kv_pages_unregister(sched->pages, seq->pages[p]);
}

void gw_sched_remove(struct gw_sched *sched, struct gw_seq *seq)
{
    int at = 0;
    while (at < sched->count && sched->seqs[at] != seq) at++;
    GW_ASSERT(at < sched->count && !seq->in_flight);
    forget_answer(sched, seq);
    release_pages(sched, seq);
    if (seq->slot >= 0) sched->running--;
    memmove(sched->seqs + at, sched->seqs + at + 1, (size_t)(sched->count - at - 1) * sizeof *sched->seqs);
    sched->count--;
    free_seq(seq);
}

struct gw_kv_pages *gw_sched_pages(struct gw_sched *sched)
{
    return sched->pages;
}

int gw_sched_wants(const struct gw_sched *sched)
{
    int want = sched->config.max_seqs - sched->count;
    return want > 0 ? want : 0;
}

struct gw_sched_stats gw_sched_stats(const struct gw_sched *sched)
{
    struct gw_sched_stats stats = sched->stats;
    stats.running = sched->running;
    stats.waiting = sched->count - sched->running;
    stats.pages_used = stats.pages_total - gw_kv_pages_available(sched->pages);
    return stats;
}

struct gw_seq *gw_sched_at(const struct gw_sched *sched, int index)
{
    return index < sched->count ? sched->seqs[index] : NULL;
}
