/* The scheduler in a world without a model: a fake executor whose KV pages hold, per slot, the hash of the prefix that was written
 * there. In the order of the steps it writes all rows and then reads each row's whole prefix back through its page table, as attention does;
 * a token is a hash of what it read. So a page that is shared, reused or taken away wrongly shows at once.
 *
 * Random runs (seeds printed): arrivals in bursts, 1 to 4 slots, pages for barely one sequence, prompts with common prefixes, results in any
 * order. Every sequence must end with the tokens that it gets alone, and every run must end. In disturbed runs steps in flight are
 * cancelled after some of their rows were written, and all sequences move to a new scheduler with other slots and pages, with their KV or
 * without, at once or late, as job/head.c does it.
 */
#include "base/hash.h"
#include "base/philox.h"
#include "batch/scheduler.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 120, END_TOKEN = 0, MAX_TOKENS = 1024, MAX_PAGES = 400, MAX_SLOTS = 4, MAX_REQUESTS = 128 };

static uint64_t run_seed;
static uint64_t draws;

static int next_int(int bound)
{
    return (int)(gw_philox_uniform(run_seed, 5, draws++) * bound);
}

struct request {
    int32_t prompt[MAX_TOKENS];
    int prompt_count, limit;
    struct gw_sample_params params;
    int32_t wanted[MAX_TOKENS]; /* prompt and answer, as generated alone */
    int wanted_count;
    bool done;
};

/* A sequence on its way from one scheduler to the next. */
struct arrival {
    struct request *request;
    int32_t drawn[MAX_TOKENS];
    int drawn_count, computed, page_count;
    int32_t pages[MAX_PAGES]; /* a reference each */
};

struct world {
    struct gw_sched_config config;
    bool disturbed;
    struct arrival *arrivals;
    int arrival_count;
    long cancels, moves, kept_rows;
    struct gw_sched *sched;
    struct request *requests;
    int request_count, added, finished;
    uint64_t page[MAX_PAGES][GW_PAGE_TOKENS]; /* prefix hash that each slot of each page holds */
    struct gw_step steps[MAX_SLOTS];
    bool in_flight[MAX_SLOTS];
    int queue[MAX_SLOTS], queued; /* slots in the order of their steps */
    uint64_t next_step;
    uint64_t prefill_rows;
};

static uint64_t hash_next(uint64_t prefix, int32_t token)
{
    return gw_hash64(&token, sizeof token, prefix);
}

/* The fake model and sampler. */
static int32_t draw(uint64_t prefix, const struct gw_sample_params *params, uint64_t index, const int32_t *history,
                    int history_count)
{
    uint64_t key[4] = {prefix, params->seed, index, 0};
    if (params->repetition_penalty != 1.0f)
        key[3] = gw_hash64(history, (size_t)history_count * sizeof *history, (uint64_t)history_count);
    return (int32_t)(gw_hash64(key, sizeof key, 77) % VOCAB);
}

static void generate_alone(struct request *r)
{
    uint64_t prefix = 1;
    memcpy(r->wanted, r->prompt, (size_t)r->prompt_count * sizeof *r->prompt);
    r->wanted_count = r->prompt_count;
    for (int i = 0; i < r->prompt_count; i++) prefix = hash_next(prefix, r->prompt[i]);
    while (r->wanted_count < r->limit) {
        int32_t token = draw(prefix, &r->params, (uint64_t)(r->wanted_count - r->prompt_count), r->wanted,
                             r->wanted_count);
        r->wanted[r->wanted_count++] = token;
        if (token == END_TOKEN) return;
        prefix = hash_next(prefix, token);
    }
}

static struct gw_seq *seq_of(const struct world *w, uint32_t id)
{
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(w->sched, i)); i++)
        if (seq->id == id) return seq;
    return NULL;
}

/* ---- what must hold of a plan ------------------------------------------------------------------------------------ */

/* A page is in two tables only at the same place of equal prefixes, full in both: or, when a step was cancelled, to be filled again by
 * either with the same. */
static bool pages_are_owned(const struct world *w)
{
    static const struct gw_seq *owner[MAX_PAGES];
    static int place[MAX_PAGES];
    memset(owner, 0, sizeof owner);
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(w->sched, i)); i++)
        for (int p = 0; p < seq->page_count; p++) {
            int page = seq->pages[p];
            if (page < 0 || page >= w->config.page_count) return false;
            const struct gw_seq *other = owner[page];
            owner[page] = seq;
            if (!other) {
                place[page] = p;
                continue;
            }
            int full = (p + 1) * GW_PAGE_TOKENS;
            if (other == seq || place[page] != p || seq->count < full || other->count < full) return false;
            if ((!w->disturbed && (seq->computed < full || other->computed < full)) ||
                memcmp(seq->tokens, other->tokens, (size_t)full * sizeof *seq->tokens) != 0)
                return false;
        }
    return true;
}

static const char *plan_error(const struct world *w, int slot)
{
    const struct gw_step *step = &w->steps[slot];
    int rows = 0;
    if (step->slot != slot || step->id != w->next_step) return "slot or number of the step";
    if (step->rows < 1 || step->rows > w->config.step_rows) return "too many rows";
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *entry = &step->seqs[i];
        const struct gw_seq *seq = seq_of(w, entry->seq);
        if (!seq || seq->slot != slot || !seq->in_flight) return "a row of a sequence that is not in this slot";
        for (int s = 0; s < w->config.slots; s++)
            for (int k = 0; k < w->steps[s].seq_count; k++)
                if ((s != slot || k != i) && (s == slot || w->in_flight[s]) && w->steps[s].seqs[k].seq == entry->seq)
                    return "a sequence twice in flight";
        if (entry->row0 != rows || entry->rows < 1) return "rows that do not follow";
        rows += entry->rows;
        int end = entry->pos0 + entry->rows;
        if (end > seq->count || end != seq->computed) return "rows beyond the known tokens";
        if (memcmp(step->tokens + entry->row0, seq->tokens + entry->pos0, (size_t)entry->rows * sizeof(int32_t)) != 0)
            return "other tokens than the sequence's";
        int pages = (end + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
        if (pages > seq->page_count ||
            memcmp(step->pages + entry->page0, seq->pages, (size_t)pages * sizeof(int32_t)) != 0)
            return "other pages than the sequence's";
        if (entry->sample != (end == seq->count)) return "a token not drawn, or drawn too early";
        if (entry->token_index != (uint64_t)(seq->count - seq->prompt_count)) return "token index";
        if (entry->sample && seq->params.repetition_penalty != 1.0f && entry->history_count != seq->count)
            return "history";
    }
    if (rows != step->rows) return "sum of rows";
    struct gw_sched_stats stats = gw_sched_stats(w->sched);
    if (stats.running > w->config.max_seqs || stats.pages_used > stats.pages_total) return "more than there is";
    return pages_are_owned(w) ? NULL : "a page in two tables";
}

/* ---- execution --------------------------------------------------------------------------------------------------- */

static uint64_t *slot_at(struct world *w, const struct gw_step *step, const struct gw_step_seq *entry, int pos)
{
    return &w->page[step->pages[entry->page0 + pos / GW_PAGE_TOKENS]][pos % GW_PAGE_TOKENS];
}

static uint64_t prefix_before(const struct world *w, const struct gw_step_seq *entry)
{
    const struct gw_seq *seq = seq_of(w, entry->seq);
    uint64_t prefix = 1;
    for (int pos = 0; pos < entry->pos0; pos++) prefix = hash_next(prefix, seq->tokens[pos]);
    return prefix;
}

/* Writes all rows, then reads each row's prefix. tokens[i]: drawn for seqs[i], or -1. */
static bool execute(struct world *w, const struct gw_step *step, int32_t *tokens)
{
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *entry = &step->seqs[i];
        uint64_t prefix = prefix_before(w, entry);
        for (int r = 0; r < entry->rows; r++)
            *slot_at(w, step, entry, entry->pos0 + r) = prefix = hash_next(prefix, step->tokens[entry->row0 + r]);
        if (entry->rows > 1 || entry->pos0 == 0) w->prefill_rows += (uint64_t)entry->rows;
    }
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *entry = &step->seqs[i];
        const struct gw_seq *seq = seq_of(w, entry->seq);
        uint64_t prefix = 1;
        for (int pos = 0; pos < entry->pos0 + entry->rows; pos++) {
            prefix = hash_next(prefix, seq->tokens[pos]);
            if (*slot_at(w, step, entry, pos) != prefix) return false; /* would have read another sequence's keys */
        }
        tokens[i] = !entry->sample ? -1
                                   : draw(prefix, &entry->params, entry->token_index, step->history + entry->history0,
                                          entry->history_count);
    }
    return true;
}

/* Hands out a step's tokens in any order, as shards do. */
static bool take_tokens(struct world *w, const struct gw_step *step, const int32_t *tokens)
{
    int offset = next_int(step->seq_count);
    for (int k = 0; k < step->seq_count; k++) {
        int i = (k + offset) % step->seq_count;
        if (tokens[i] < 0) continue;
        struct gw_seq *seq = gw_sched_push(w->sched, step->seqs[i].seq, tokens[i]);
        struct request *r = seq->user;
        if (seq->count > r->wanted_count || r->wanted[seq->count - 1] != tokens[i]) return false;
        if (tokens[i] != END_TOKEN && seq->count < seq->limit) continue;
        if (seq->count != r->wanted_count || r->done) return false;
        r->done = true;
        w->finished++;
        gw_sched_remove(w->sched, seq);
    }
    return true;
}

static const char *finish_oldest(struct world *w)
{
    int32_t tokens[MAX_REQUESTS];
    int slot = w->queue[0];
    const struct gw_step *step = &w->steps[slot];
    memmove(w->queue, w->queue + 1, (size_t)--w->queued * sizeof *w->queue);
    if (!execute(w, step, tokens)) return "a row read keys that are not its own";
    w->in_flight[slot] = false;
    gw_sched_step_done(w->sched, slot);
    return take_tokens(w, step, tokens) ? NULL : "other tokens than alone";
}

/* ---- disturbances ------------------------------------------------------------------------------------------------ */

/* Some rows of a step that will never end have been written: any of them. */
static void execute_partly(struct world *w, const struct gw_step *step)
{
    int chance = next_int(5);
    for (int i = 0; i < step->seq_count; i++) {
        const struct gw_step_seq *entry = &step->seqs[i];
        uint64_t prefix = prefix_before(w, entry);
        for (int r = 0; r < entry->rows; r++) {
            prefix = hash_next(prefix, step->tokens[entry->row0 + r]);
            if (next_int(4) < chance) *slot_at(w, step, entry, entry->pos0 + r) = prefix;
        }
    }
}

/* The world that executes the steps is gone; sometimes the oldest step was done, but not all of its tokens came. */
static const char *cancel(struct world *w)
{
    int32_t tokens[MAX_REQUESTS];
    w->cancels++;
    if (w->queued && next_int(4) == 0) {
        int slot = w->queue[0];
        struct gw_step *step = &w->steps[slot];
        if (!execute(w, step, tokens)) return "a row read keys that are not its own";
        for (int i = 0; i < step->seq_count; i++)
            if (next_int(2)) tokens[i] = -1;
        memmove(w->queue, w->queue + 1, (size_t)--w->queued * sizeof *w->queue);
        gw_sched_step_done(w->sched, slot);
        w->in_flight[slot] = false;
        if (!take_tokens(w, step, tokens)) return "other tokens than alone";
    }
    for (int i = 0; i < w->queued; i++) execute_partly(w, &w->steps[w->queue[i]]);
    gw_sched_cancel(w->sched);
    w->queued = 0;
    memset(w->in_flight, 0, sizeof w->in_flight);
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(w->sched, i)); i++) {
        if (seq->in_flight || seq->computed >= seq->count) return "a sequence is not free after a cancel";
        w->kept_rows += seq->computed;
    }
    return NULL;
}

/* Pages of the new scheduler for the KV of a sequence, old numbers where they are free; false when there is no room. */
static bool map_pages(struct world *w, const struct gw_seq *seq, int32_t *map, uint64_t (*old)[GW_PAGE_TOKENS],
                      struct arrival *arrival)
{
    struct gw_kv_pages *table = gw_sched_pages(w->sched);
    int count = (seq->computed + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    if (count + next_int(3) > gw_kv_pages_available(table)) return false;
    for (int p = 0; p < count; p++) {
        int32_t from = seq->pages[p];
        if (map[from] >= 0) {
            gw_kv_pages_ref(table, map[from]);
        } else {
            bool same = from < w->config.page_count && next_int(4) && gw_kv_pages_claim(table, from);
            map[from] = same ? from : gw_kv_pages_alloc(table);
            memcpy(w->page[map[from]], old[from], sizeof w->page[0]);
        }
        arrival->pages[p] = map[from];
    }
    arrival->page_count = count;
    arrival->computed = seq->computed;
    return true;
}

static void settle_arrival(struct world *w, int at)
{
    struct arrival *a = &w->arrivals[at];
    struct request *r = a->request;
    struct gw_seq *seq = gw_sched_add(w->sched, r->prompt, r->prompt_count, r->limit, -1, &r->params, r);
    gw_sched_restore(w->sched, seq, a->drawn, a->drawn_count, a->pages, a->page_count, a->computed);
    *a = w->arrivals[--w->arrival_count];
}

/* Everything goes on in another scheduler, with another number of slots and pages. */
static const char *move(struct world *w)
{
    static uint64_t old[MAX_PAGES][GW_PAGE_TOKENS];
    int32_t map[MAX_PAGES];
    struct gw_seq *seq;
    const char *error = cancel(w);
    if (error) return error;
    while (w->arrival_count) settle_arrival(w, 0);
    struct gw_sched *from = w->sched;
    int least = (w->config.context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    w->moves++;
    w->config.slots = 1 + next_int(MAX_SLOTS);
    if (next_int(3) == 0) w->config.page_count = least + next_int(60);
    if (gw_sched_create(&w->config, &w->sched) != GW_OK) return gw_error_detail();
    memcpy(old, w->page, sizeof old);
    memset(w->page, 0xA5, sizeof w->page);
    for (int i = 0; i < MAX_PAGES; i++) map[i] = -1;
    w->arrivals = w->arrivals ? w->arrivals : calloc(MAX_REQUESTS, sizeof *w->arrivals);
    for (int i = 0; (seq = gw_sched_at(from, i)); i++) {
        struct arrival *a = &w->arrivals[w->arrival_count++];
        *a = (struct arrival){.request = seq->user, .drawn_count = seq->count - seq->prompt_count};
        memcpy(a->drawn, seq->tokens + seq->prompt_count, (size_t)a->drawn_count * sizeof *a->drawn);
        if (next_int(5)) map_pages(w, seq, map, old, a);
    }
    gw_sched_destroy(from);
    w->next_step = 0;
    return NULL;
}

static const char *disturb(struct world *w)
{
    while (w->arrival_count && next_int(3)) settle_arrival(w, next_int(w->arrival_count));
    if (next_int(12) == 0) return cancel(w);
    return next_int(25) == 0 ? move(w) : NULL;
}

static void add_requests(struct world *w, int burst)
{
    for (; burst > 0 && w->added < w->request_count && gw_sched_wants(w->sched) > w->arrival_count; burst--) {
        struct request *r = &w->requests[w->added++];
        gw_sched_add(w->sched, r->prompt, r->prompt_count, r->limit, -1, &r->params, r);
    }
}

/* Runs all requests; NULL or what went wrong. `calm`: arrivals at once and slots in turn, as a head does it. */
static const char *run_world(struct world *w, bool calm)
{
    const char *error = NULL;
    long rounds = 0, most = 20000;
    for (int i = 0; i < w->request_count; i++) most += 40L * w->requests[i].wanted_count;
    if (gw_sched_create(&w->config, &w->sched) != GW_OK) return gw_error_detail();
    while (w->finished < w->request_count && !error) {
        if (++rounds > most) error = "no end in sight";
        if (!error && w->disturbed && rounds < most / 4) error = disturb(w);
        else if (w->arrival_count) settle_arrival(w, 0);
        if (error) break;
        if (calm || next_int(3) == 0) add_requests(w, calm ? MAX_REQUESTS : 1 + next_int(4));
        bool planned = false;
        int first = next_int(w->config.slots), tries = calm ? w->config.slots : 1 + next_int(w->config.slots);
        for (int i = 0; i < tries && !error; i++) {
            int slot = (first + i) % w->config.slots;
            if (w->in_flight[slot] || !gw_sched_plan(w->sched, slot, &w->steps[slot])) continue;
            error = plan_error(w, slot);
            w->in_flight[slot] = planned = true;
            w->queue[w->queued++] = slot;
            w->next_step++;
        }
        if (!error && w->queued && (calm || !planned || next_int(2))) error = finish_oldest(w);
        else if (!planned && !w->queued && tries == w->config.slots && gw_sched_at(w->sched, 0) && !w->arrival_count)
            error = "sequences wait and nothing runs";
    }
    if (!error && gw_sched_stats(w->sched).pages_used != 0) error = "pages are held at the end";
    return error;
}

static void close_world(struct world *w)
{
    gw_sched_destroy(w->sched);
    free(w->arrivals);
    for (int s = 0; s < MAX_SLOTS; s++) gw_step_free(&w->steps[s]);
    free(w->requests);
    free(w);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

/* Prompts begin with a run of one of three texts, so that prefixes are common, and some are the same. */
static void make_requests(struct world *w, int count)
{
    int32_t text[3][MAX_TOKENS];
    int context = w->config.context;
    w->request_count = count;
    w->requests = calloc((size_t)count, sizeof *w->requests);
    for (int t = 0; t < 3; t++)
        for (int i = 0; i < MAX_TOKENS; i++) text[t][i] = 1 + next_int(t == 0 ? 1 : VOCAB - 1);
    for (int i = 0; i < count; i++) {
        struct request *r = &w->requests[i];
        r->prompt_count = 1 + next_int(next_int(2) ? context - 1 : 40 < context ? 39 : context - 1);
        int common = next_int(4) ? next_int(r->prompt_count + 1) : 0;
        if (next_int(3) == 0) common = common / GW_PAGE_TOKENS * GW_PAGE_TOKENS;
        memcpy(r->prompt, text[next_int(3)], (size_t)common * sizeof *r->prompt);
        for (int k = common; k < r->prompt_count; k++) r->prompt[k] = next_int(VOCAB);
        if (next_int(4) == 0 && r->prompt_count > GW_PAGE_TOKENS) r->prompt_count -= r->prompt_count % GW_PAGE_TOKENS;
        if (i > 0 && next_int(5) == 0) { /* the same prompt again */
            r->prompt_count = w->requests[i - 1].prompt_count;
            memcpy(r->prompt, w->requests[i - 1].prompt, sizeof r->prompt);
        }
        r->limit = r->prompt_count + 1 + next_int(context - r->prompt_count);
        r->params = (struct gw_sample_params){.seed = (uint64_t)next_int(3),
                                              .repetition_penalty = next_int(3) ? 1.0f : 1.5f};
        generate_alone(r);
    }
}

static struct world *make_world(int seed, bool disturbed)
{
    struct world *w = calloc(1, sizeof *w);
    run_seed = (uint64_t)seed;
    draws = 0;
    int context = 2 + next_int(300), least = (context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    int seqs = 1 + next_int(12);
    w->disturbed = disturbed;
    w->config = (struct gw_sched_config){.slots = 1 + next_int(MAX_SLOTS),
                                         .max_seqs = seqs,
                                         .step_rows = seqs + next_int(next_int(2) ? 10 : 200),
                                         .page_count = least + next_int(next_int(2) ? 4 : 60),
                                         .context = context};
    make_requests(w, 1 + next_int(30));
    return w;
}

static bool run_went_well(struct world *w, int seed, bool calm)
{
    const char *error = run_world(w, calm);
    if (!error) return true;
    printf("\n    seed %d, step %llu: %s ", seed, (unsigned long long)w->next_step, error);
    CU_FAIL("a run went wrong");
    return false;
}

static void test_random_runs(void)
{
    enum { RUNS = 400, FIRST = 1000 };
    uint64_t preemptions = 0, reused = 0;
    printf("(seeds %d..%d) ", FIRST, FIRST + RUNS - 1);
    for (int run = 0; run < RUNS; run++) {
        struct world *w = make_world(FIRST + run, false);
        bool well = run_went_well(w, FIRST + run, run % 4 == 0);
        preemptions += gw_sched_stats(w->sched).preemptions;
        reused += gw_sched_stats(w->sched).prefix_tokens_reused;
        close_world(w);
        if (!well) return;
    }
    printf("(%llu preemptions, %llu tokens shared) ", (unsigned long long)preemptions, (unsigned long long)reused);
    CU_ASSERT(preemptions > 300 && reused > 20000);
}

static void test_disturbed_runs(void)
{
    enum { RUNS = 400, FIRST = 5000 };
    long cancels = 0, moves = 0, kept_rows = 0;
    printf("(seeds %d..%d) ", FIRST, FIRST + RUNS - 1);
    for (int run = 0; run < RUNS; run++) {
        struct world *w = make_world(FIRST + run, true);
        bool well = run_went_well(w, FIRST + run, run % 4 == 0);
        cancels += w->cancels;
        moves += w->moves;
        kept_rows += w->kept_rows;
        close_world(w);
        if (!well) return;
    }
    printf("(%ld cancels, %ld moves, %ld tokens kept) ", cancels, moves, kept_rows);
    CU_ASSERT(cancels > 5000 && moves > 2000 && kept_rows > 1000000);
}

/* 100 requests with the same 320 tokens before their own: the prefix is computed about once. */
static void test_prefix_is_shared(void)
{
    enum { COUNT = 100, PREFIX = 320 };
    static const int step_rows[] = {512, 100};
    for (int c = 0; c < 4; c++) {
        struct world *w = calloc(1, sizeof *w);
        run_seed = 7;
        draws = 0;
        w->config = (struct gw_sched_config){
            .slots = 1 + c / 2 * 2, .max_seqs = 64, .step_rows = step_rows[c % 2], .page_count = 300, .context = 512};
        w->request_count = COUNT;
        w->requests = calloc(COUNT, sizeof *w->requests);
        uint64_t own = 0;
        for (int i = 0; i < COUNT; i++) {
            struct request *r = &w->requests[i];
            r->prompt_count = PREFIX + 2 + next_int(20);
            own += (uint64_t)(r->prompt_count - PREFIX);
            for (int k = 0; k < r->prompt_count; k++) r->prompt[k] = k < PREFIX ? k % VOCAB : next_int(VOCAB);
            r->limit = r->prompt_count + 1 + next_int(30);
            r->params = (struct gw_sample_params){.seed = (uint64_t)i, .repetition_penalty = 1};
            generate_alone(r);
        }
        const char *error = run_world(w, true);
        if (error) printf("%s ", error);
        CU_ASSERT(error == NULL);
        struct gw_sched_stats stats = gw_sched_stats(w->sched);
        uint64_t most = own + PREFIX * (uint64_t)w->config.slots; /* slots may start on it at the same time */
        if (w->prefill_rows > most)
            printf("(%llu rows, wanted %llu) ", (unsigned long long)w->prefill_rows, (unsigned long long)most);
        CU_ASSERT(w->prefill_rows >= own && w->prefill_rows <= most);
        CU_ASSERT(stats.prefix_tokens_reused >= (COUNT - (uint64_t)w->config.slots) * PREFIX && stats.preemptions == 0);
        close_world(w);
    }
}

/* When requests have ended, the pages of their prompts are kept, and those with answers are free. */
static void test_answers_are_forgotten(void)
{
    enum { COUNT = 5, PROMPT = 2 * GW_PAGE_TOKENS + 7, ANSWER = 3 * GW_PAGE_TOKENS };
    struct world *w = calloc(1, sizeof *w);
    run_seed = 11;
    draws = 0;
    w->config = (struct gw_sched_config){
        .slots = 1, .max_seqs = COUNT, .step_rows = 512, .page_count = 100, .context = PROMPT + ANSWER};
    w->request_count = COUNT;
    w->requests = calloc(COUNT, sizeof *w->requests);
    for (int i = 0; i < COUNT; i++) {
        struct request *r = &w->requests[i];
        r->prompt_count = PROMPT;
        for (int k = 0; k < PROMPT; k++) r->prompt[k] = (i + k) % VOCAB;
        r->limit = PROMPT + ANSWER;
        r->params = (struct gw_sample_params){.seed = (uint64_t)i, .repetition_penalty = 1};
        generate_alone(r);
    }
    const char *error = run_world(w, true);
    if (error) printf("%s ", error);
    CU_ASSERT(error == NULL);
    struct gw_kv_stats pages = gw_kv_pages_stats(gw_sched_pages(w->sched));
    CU_ASSERT_EQUAL(pages.used, 0);
    CU_ASSERT_EQUAL(pages.cached, COUNT * (PROMPT / GW_PAGE_TOKENS));
    close_world(w);
}

/* Pages for one long sequence and a bit: the oldest is never preempted for a younger one, so requests end in order of age. */
static void test_oldest_first(void)
{
    struct world *w = calloc(1, sizeof *w);
    run_seed = 11;
    draws = 0;
    w->config = (struct gw_sched_config){.slots = 1, .max_seqs = 4, .step_rows = 64, .page_count = 9, .context = 256};
    w->request_count = 12;
    w->requests = calloc(12, sizeof *w->requests);
    for (int i = 0; i < w->request_count; i++) {
        struct request *r = &w->requests[i];
        r->prompt_count = 20;
        for (int k = 0; k < 20; k++) r->prompt[k] = next_int(VOCAB);
        r->limit = 256;
        do { /* one that does not end early */
            r->params = (struct gw_sample_params){.seed = r->params.seed + 1, .repetition_penalty = 1};
            generate_alone(r);
        } while (r->wanted_count < 150);
    }
    CU_ASSERT_EQUAL(gw_sched_create(&w->config, &w->sched), GW_OK);
    uint64_t oldest_count = 0, oldest_age = 0;
    for (int rounds = 0; w->finished < w->request_count && rounds < 100000; rounds++) {
        add_requests(w, MAX_REQUESTS);
        const struct gw_seq *oldest = gw_sched_at(w->sched, 0);
        if (oldest->age == oldest_age)
            CU_ASSERT((uint64_t)oldest->computed >= oldest_count); /* it never loses anything */
        if (!gw_sched_plan(w->sched, 0, &w->steps[0])) break;
        oldest_age = oldest->age;
        oldest_count = (uint64_t)oldest->computed;
        w->in_flight[0] = true;
        w->queue[w->queued++] = 0;
        CU_ASSERT(finish_oldest(w) == NULL);
    }
    CU_ASSERT_EQUAL(w->finished, w->request_count);
    CU_ASSERT(gw_sched_stats(w->sched).preemptions > 0 && gw_sched_stats(w->sched).recomputed_tokens > 0);
    close_world(w);
}

/* Decoding is never held back by prompts, and a pipeline's slots share a short batch evenly. */
static void test_slots_and_rows(void)
{
    struct gw_sched *sched = NULL;
    struct gw_step step = {0};
    int32_t prompt[200] = {1, 2, 3};
    const struct gw_sample_params params = {.repetition_penalty = 1};
    struct gw_sched_config config = {.slots = 3, .max_seqs = 64, .step_rows = 70, .page_count = 100, .context = 256};
    CU_ASSERT_EQUAL(gw_sched_create(&config, &sched), GW_OK);
    CU_ASSERT(!gw_sched_plan(sched, 0, &step) && step.rows == 0);
    CU_ASSERT_EQUAL(gw_sched_wants(sched), 64);
    for (int i = 0; i < 6; i++) {
        prompt[0] = i + 10;
        gw_sched_add(sched, prompt, 3, 100, 5, &params, NULL);
    }
    CU_ASSERT_EQUAL(gw_sched_wants(sched), 58);
    for (int s = 0; s < 3; s++) {
        CU_ASSERT(gw_sched_plan(sched, s, &step) && step.seq_count == 2 && step.rows == 6);
        CU_ASSERT_EQUAL(step.seqs[0].logprobs, 5);
    }
    CU_ASSERT_EQUAL(gw_sched_stats(sched).running, 6);
    for (int s = 0; s < 3; s++) gw_sched_step_done(sched, s);
    for (uint32_t id = 0; id < 6; id++) gw_sched_push(sched, id, 9);
    prompt[0] = 99;
    for (int i = 0; i < 3; i++) gw_sched_add(sched, prompt, 190, 200, -1, &params, NULL); /* long prompts arrive */
    CU_ASSERT(gw_sched_plan(sched, 0, &step) && step.seq_count == 3 && step.rows == 70);
    CU_ASSERT(step.seqs[0].rows == 1 && step.seqs[1].rows == 1 && step.seqs[2].rows == 68 && !step.seqs[2].sample);
    gw_sched_step_done(sched, 0);
    gw_sched_destroy(sched);
    gw_step_free(&step);
}

static void test_refusal(void)
{
    struct gw_sched *sched = NULL;
    struct gw_sched_config config = {.slots = 1, .max_seqs = 1, .step_rows = 1, .page_count = 2, .context = 65};
    CU_ASSERT_EQUAL(gw_sched_create(&config, &sched), GW_ERR_USAGE);
    CU_ASSERT(strstr(gw_error_detail(), "--kv-memory") && sched == NULL);
    config.context = 64;
    CU_ASSERT_EQUAL(gw_sched_create(&config, &sched), GW_OK);
    gw_sched_destroy(sched);
    gw_sched_destroy(NULL);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("scheduler", NULL, NULL);
    CU_add_test(suite, "random runs", test_random_runs);
    CU_add_test(suite, "cancels and moves", test_disturbed_runs);
    CU_add_test(suite, "prefix is shared", test_prefix_is_shared);
    CU_add_test(suite, "answers are forgotten", test_answers_are_forgotten);
    CU_add_test(suite, "oldest first", test_oldest_first);
    CU_add_test(suite, "slots and rows", test_slots_and_rows);
    CU_add_test(suite, "refusal", test_refusal);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
