/* See head.h and head_internal.h: KV that comes with sequences from elsewhere, from a checkpoint, or is kept for whoever comes after. */
#include "context/policy.h"
#include "job/head_internal.h"
#include "job/mover.h"
#include "job/saver.h"
#include "job/snapshot.h"
#include "job/worker.h"

#include <stdlib.h>
#include <string.h>

enum { KEPT_TOKENS = 128 }; /* last tokens of a sequence in the snapshot: more than are drawn between two commits */

void gw_head_free_arrival(struct arrival *arrival)
{
    gw_answer_destroy(arrival->answer);
    gw_tokens_free(&arrival->prompt);
    gw_buf_free(&arrival->drawn);
}

/* Gives back the pages of a sequence that never came, or did not need them. Not before all ranks have them: whoever got them now would find them
 * overwritten. */
static void release_adopted(struct gw_head *head, struct adoption *adoption, int held)
{
    if (adoption->pages[held])
        gw_kv_pages_unref_chain(gw_sched_pages(head->sched), adoption->pages[held], adoption->held[held].page_count);
    free(adoption->pages[held]);
    adoption->pages[held] = NULL;
}

void gw_head_drop_adoptions(struct gw_head *head)
{
    for (int i = 0; i < head->arrival_count; i++) gw_head_free_arrival(&head->arrivals[i]);
    free(head->arrivals);
    head->arrivals = NULL;
    head->arrival_count = 0;
    for (int a = 0; a < head->adoption_count; a++) {
        for (int h = 0; h < head->adoptions[a].held_count; h++) release_adopted(head, &head->adoptions[a], h);
        free(head->adoptions[a].pages);
    }
    free(head->adoptions);
    head->adoptions = NULL;
    head->adoption_count = 0;
}

/* Where the pages of request `index` are coming from: its place in an adoption. */
static bool find_adopted(const struct gw_head *head, int64_t index, int *adoption, int *held)
{
    for (*adoption = 0; *adoption < head->adoption_count; ++*adoption)
        for (*held = 0; *held < head->adoptions[*adoption].held_count; ++*held)
            if (head->adoptions[*adoption].held[*held].index == index && head->adoptions[*adoption].pages[*held])
                return true;
    return false;
}

/* ---- what every rank has --------------------------------------------------------------------------------------- */

/* The log-probabilities that a request asks for, or just the tokens. */
static void add_tokens(const struct gw_seq *seq, int at, int count, struct gw_buf *out)
{
    const struct gw_answer *answer = seq->user;
    const struct gw_sample_result *results = gw_answer_results(answer);
    bool logprobs = gw_answer_logprobs(answer) >= 0;
    struct gw_buf plain = {0};
    for (int i = 0; !logprobs && i < count; i++) {
        struct gw_sample_result r = {.token = seq->tokens[seq->prompt_count + at + i]};
        gw_buf_add(&plain, &r, sizeof r);
    }
    gw_tokens_msg_add(out, gw_answer_index(answer), at,
                      logprobs ? results + at : (const struct gw_sample_result *)(const void *)plain.data, count,
                      logprobs);
    gw_buf_free(&plain);
}

static void note_load(struct gw_head *head, const struct gw_buf *list)
{
    if (gw_team_size(head->config.team) == 1) return; /* done at once */
    head->loads = gw_realloc(head->loads, (size_t)head->load_count + 1, sizeof *head->loads);
    struct load *load = &head->loads[head->load_count++];
    *load = (struct load){.before = head->launched + 1};
    gw_buf_add(&load->list, list->data, list->bytes);
}

/* A step has ended: every rank of the replica has done what came before it. */
void gw_head_confirm_loads(struct gw_head *head, uint64_t step)
{
    int left = 0;
    for (int i = 0; i < head->load_count; i++) {
        if (head->loads[i].before <= step) gw_buf_free(&head->loads[i].list);
        else head->loads[left++] = head->loads[i];
    }
    head->load_count = left;
}

/* Pages whose content not every rank of the replica is known to have: those that steps in flight fill, or that are being loaded. */
static bool *list_doubtful(const struct gw_head *head)
{
    bool *doubtful = gw_alloc((size_t)head->config.kv_pages + 1, sizeof *doubtful);
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++)
        for (int p = seq->computed_before / GW_PAGE_TOKENS;
             seq->in_flight && p < seq->page_count && (p + 1) * GW_PAGE_TOKENS <= seq->computed; p++)
            doubtful[seq->pages[p]] = true;
    for (int i = 0; i < head->load_count; i++) {
        size_t at = 0;
        for (int32_t page; gw_saver_list_next(&head->loads[i].list, &at, &page);) doubtful[page] = true;
    }
    return doubtful;
}

/* The sequences, and what of their KV steps that have ended have put in place on every rank. */
static void list_held(const struct gw_head *head, struct gw_held **held, int32_t *count)
{
    struct gw_seq *seq;
    bool *doubtful = list_doubtful(head);
    *count = 0;
    while (gw_sched_at(head->sched, *count)) ++*count;
    *held = gw_alloc((size_t)*count + 1, sizeof **held);
    for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++) {
        int computed = seq->in_flight && seq->computed_before < seq->computed ? seq->computed_before : seq->computed;
        if (computed == seq->count) computed--; /* the token that its step drew is not known yet */
        for (int p = 0; p * GW_PAGE_TOKENS < computed; p++)
            if (doubtful[seq->pages[p]] && (p + 1) * GW_PAGE_TOKENS <= computed) computed = p * GW_PAGE_TOKENS;
        int pages = (computed + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
        (*held)[i] = (struct gw_held){.index = gw_answer_index(seq->user), .computed = computed, .page_count = pages};
        (*held)[i].pages = gw_alloc((size_t)pages + 1, sizeof(int32_t));
        if (pages) memcpy((*held)[i].pages, seq->pages, (size_t)pages * sizeof(int32_t));
    }
    free(doubtful);
}

/* Tokens from the last `most` of each sequence on. */
static void list_tokens(const struct gw_head *head, int most, struct gw_buf *out)
{
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++) {
        int drawn = seq->count - seq->prompt_count, from = drawn > most ? drawn - most : 0;
        if (drawn > 0) add_tokens(seq, from, drawn - from, out);
    }
}

/* Before a step is sent that may overwrite pages which the snapshot names. */
void gw_head_take_snapshot(struct gw_head *head)
{
    struct gw_held *held = NULL;
    int32_t count = 0;
    if (!head->config.snapshot) return;
    list_held(head, &held, &count);
    gw_buf_clear(&head->message);
    list_tokens(head, KEPT_TOKENS, &head->message);
    gw_snapshot_hold(head->config.snapshot, held, count, &head->message);
    for (int32_t i = 0; i < count; i++) free(held[i].pages);
    free(held);
}

gw_err gw_head_report(struct gw_head *head, struct gw_held **held, int32_t *count)
{
    gw_err rc = GW_OK;
    gw_sched_cancel(head->sched);
    for (int s = 0; s < head->slot_count; s++) {
        head->slots[s].in_flight = false;
        gw_buf_clear(&head->slots[s].drawn);
    }
    gw_head_drop_adoptions(head);
    list_held(head, held, count);
    gw_buf_clear(&head->tokens);
    list_tokens(head, INT32_MAX, &head->tokens);
    if (head->tokens.bytes)
        TRY(gw_comm_send(head->config.comm, LEADER, GW_MSG_TOKENS, 0, head->tokens.data, head->tokens.bytes));
    gw_buf_clear(&head->tokens);
out:
    return rc;
}

/* ---- requests that were begun before --------------------------------------------------------------------------- */

static void add_seq(struct gw_head *head, struct arrival *arrival, const int32_t *pages, int page_count, int computed)
{
    struct gw_answer *answer = arrival->answer;
    if (arrival->drawn.bytes) /* the last known token had not been computed elsewhere either */
        head->begun_tokens += arrival->prompt.count + arrival->drawn.bytes / sizeof(int32_t) - 1 - (size_t)computed;
    struct gw_sample_params params = gw_answer_params(answer);
    struct gw_seq *seq = gw_sched_add(head->sched, arrival->prompt.ids, (int)arrival->prompt.count,
                                      gw_answer_limit(answer), gw_answer_logprobs(answer), &params, answer);
    gw_sched_restore(head->sched, seq, (const int32_t *)(const void *)arrival->drawn.data,
                     (int)(arrival->drawn.bytes / sizeof(int32_t)), pages, page_count, computed);
    seq->saved = arrival->saved;
    arrival->answer = NULL;
}

/* Pages of the checkpoint for the full pages of `known` tokens: numbers with a reference each, those that have to be loaded also in the list. Ends at
 * the first that is not in the checkpoint, or for which there is no room. */
static int find_saved(struct gw_head *head, const int32_t *tokens, int known, int32_t *pages, struct gw_buf *list)
{
    struct gw_kv_pages *table = gw_sched_pages(head->sched);
    const struct gw_ckpt_model *model = gw_saver_model(head->config.saver);
    struct gw_saved_page page = {0};
    int count = 0;
    for (; (count + 1) * GW_PAGE_TOKENS < known; count++) {
        const int32_t *at = tokens + count * GW_PAGE_TOKENS;
        page.identity = gw_ckpt_identity(model, count ? &page.identity : NULL, at);
        int here = gw_kv_pages_find(table, count ? pages[count - 1] : -1, at);
        if (here >= 0) {
            gw_kv_pages_ref(table, here);
        } else {
            if (!gw_saver_has(head->config.saver, &page.identity)) break;
            if (gw_kv_pages_available(table) <= head->config.options->max_seqs / 8) break;
            here = gw_kv_pages_alloc(table);
            page.page = here;
            gw_saver_list_add(list, &page);
            gw_kv_pages_register(table, here, count ? pages[count - 1] : -1, at);
        }
        pages[count] = here;
    }
    return count;
}

/* A request without its KV: what a checkpoint has of it is loaded, by all ranks of the replica, before the next step. */
static gw_err restore_seq(struct gw_head *head, struct arrival *arrival)
{
    gw_err rc = GW_OK;
    struct gw_buf list = {0};
    int known = (int)(arrival->prompt.count + arrival->drawn.bytes / sizeof(int32_t)), count = 0;
    int32_t *tokens = gw_alloc((size_t)known + 1, sizeof *tokens), *pages = gw_alloc((size_t)known + 1, sizeof *pages);
    memcpy(tokens, arrival->prompt.ids, arrival->prompt.count * sizeof *tokens);
    if (arrival->drawn.bytes) memcpy(tokens + arrival->prompt.count, arrival->drawn.data, arrival->drawn.bytes);
    gw_saver_list_begin(&list, 0);
    size_t empty = list.bytes;
    if (head->config.options->checkpoint_s != 0) count = find_saved(head, tokens, known, pages, &list);
    if (list.bytes > empty) {
        gw_head_take_snapshot(head);
        TRY(gw_head_tell(head, GW_MSG_STEP, GW_STEP_LOAD, list.data, list.bytes));
        note_load(head, &list);
        TRY(gw_saver_load(head->config.saver, head->config.executor, list.data, list.bytes));
        head->report.restored_tokens += (list.bytes - empty) / sizeof(struct gw_saved_page) * GW_PAGE_TOKENS;
    }
    arrival->saved = count;
    add_seq(head, arrival, pages, count, count * GW_PAGE_TOKENS);
    count = 0;
out:
    gw_kv_pages_unref_chain(gw_sched_pages(head->sched), pages, count);
    gw_buf_free(&list);
    free(tokens);
    free(pages);
    return rc;
}

/* Everything of the request is here but maybe its pages. */
gw_err gw_head_take_arrival(struct gw_head *head, int64_t index, struct arrival *arrival)
{
    if (!find_adopted(head, index, &arrival->adoption, &arrival->held)) {
        gw_err rc = restore_seq(head, arrival);
        gw_head_free_arrival(arrival);
        return rc;
    }
    head->arrivals = gw_realloc(head->arrivals, (size_t)head->arrival_count + 1, sizeof *head->arrivals);
    head->arrivals[head->arrival_count++] = *arrival;
    return GW_OK;
}

/* ---- adoptions ------------------------------------------------------------------------------------------------- */

/* Pages for the sequences of one adoption, under their old numbers where these are free: then what lies in this rank's memory may stay
 * where it is. A sequence for which there is no room is computed again. */
static void make_pages(struct gw_head *head, struct adoption *adoption, struct gw_buf *from, struct gw_buf *to)
{
    struct gw_kv_pages *table = gw_sched_pages(head->sched);
    int32_t *map = NULL, known = 0;
    for (int h = 0; h < adoption->held_count; h++)
        for (int p = 0; p < adoption->held[h].page_count; p++)
            if (adoption->held[h].pages[p] >= known) known = adoption->held[h].pages[p] + 1;
    map = gw_alloc((size_t)known + 1, sizeof *map);
    for (int32_t p = 0; p < known; p++) map[p] = -1;
    for (int h = 0; h < adoption->held_count; h++) {
        const struct gw_held *held = &adoption->held[h];
        if (held->page_count + head->config.options->max_seqs / 8 > gw_kv_pages_available(table)) continue;
        int32_t *pages = gw_alloc((size_t)held->page_count + 1, sizeof *pages);
        for (int p = 0; p < held->page_count; p++) {
            int32_t old = held->pages[p];
            if (map[old] >= 0) {
                gw_kv_pages_ref(table, map[old]);
            } else {
                map[old] = old < head->config.kv_pages && gw_kv_pages_claim(table, old) ? old
                                                                                        : gw_kv_pages_alloc(table);
                GW_ASSERT(map[old] >= 0);
                gw_buf_add(from, &old, sizeof old);
                gw_buf_add(to, &map[old], sizeof old);
            }
            pages[p] = map[old];
        }
        adoption->pages[h] = pages;
    }
    free(map);
}

static gw_err send_map(struct gw_head *head, const struct gw_plan *plan, const struct adoption *adoption,
                       struct gw_mover *mover, const struct gw_page_map *map)
{
    gw_err rc = GW_OK;
    int own = gw_comm_rank(head->config.comm);
    gw_buf_clear(&head->message);
    gw_page_map_encode(map->from, map->to, map->count, &head->message);
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        bool gives = peer->placed && peer->before.replica == plan->adoptions[adoption->number].from;
        bool gets = peer->slot >= 0 &&
                    gw_layout_place(plan->layout, peer->slot).replica == plan->adoptions[adoption->number].to;
        if (r != own && (gives || gets))
            TRY(gw_comm_send(head->config.comm, r, GW_MSG_ADOPT, (uint64_t)adoption->number, head->message.data,
                             head->message.bytes));
    }
    TRY(gw_mover_adopt(mover, adoption->number, map));
out:
    return rc;
}

gw_err gw_head_begin(struct gw_head *head, const struct gw_plan *plan, struct gw_mover *mover)
{
    gw_err rc = GW_OK;
    struct gw_buf from = {0}, to = {0};
    head->draining = head->drained = head->stopping = head->stopped = false;
    head->report.taken = 0;
    head->reported_wants = -1;
    for (int i = 0; i < head->load_count; i++) /* they may not have come before the world changed */
        TRY(gw_head_tell(head, GW_MSG_STEP, GW_STEP_LOAD, head->loads[i].list.data, head->loads[i].list.bytes));
    head->adoptions = gw_alloc((size_t)plan->adoption_count + 1, sizeof *head->adoptions);
    for (int a = 0; a < plan->adoption_count; a++) {
        if (plan->adoptions[a].to != head->config.team->place.replica) continue;
        struct adoption *adoption = &head->adoptions[head->adoption_count++];
        *adoption = (struct adoption){.number = a,
                                      .held = plan->adoptions[a].held,
                                      .held_count = plan->adoptions[a].held_count,
                                      .due = gw_team_size(head->config.team)};
        adoption->pages = gw_alloc((size_t)adoption->held_count + 1, sizeof *adoption->pages);
        gw_buf_clear(&from);
        gw_buf_clear(&to);
        make_pages(head, adoption, &from, &to);
        struct gw_page_map map = {.count = (int32_t)(from.bytes / sizeof(int32_t)),
                                  .from = (const int32_t *)(const void *)from.data,
                                  .to = (const int32_t *)(const void *)to.data};
        gw_head_take_snapshot(head);
        TRY(send_map(head, plan, adoption, mover, &map));
    }
out:
    gw_buf_free(&from);
    gw_buf_free(&to);
    return rc;
}

void gw_head_note_assigned(struct gw_head *head, uint64_t step)
{
    for (int a = 0; a < head->adoption_count; a++)
        head->adoptions[a].assigned |= gw_assign_step(head->adoptions[a].number) == step;
}

/* The requests of an adoption whose pages are all there begin, or rather go on. The pages of those that have been answered meanwhile are free. */
static void settle_adoption(struct gw_head *head, int number)
{
    for (int i = 0; i < head->arrival_count;) {
        struct arrival *arrival = &head->arrivals[i];
        if (arrival->adoption != number) {
            i++;
            continue;
        }
        struct adoption *adoption = &head->adoptions[number];
        const struct gw_held *held = &adoption->held[arrival->held];
        int known = (int)(arrival->prompt.count + arrival->drawn.bytes / sizeof(int32_t));
        /* Tokens that were drawn but not committed are lost with the old head: what was computed of them does not count. */
        int computed = held->computed < known ? held->computed : known - 1;
        int page_count = (computed + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
        int32_t *pages = adoption->pages[arrival->held];
        for (int p = page_count; p < held->page_count; p++)
            gw_kv_pages_unref_chain(gw_sched_pages(head->sched), &pages[p], 1);
        add_seq(head, arrival, pages, page_count, computed);
        free(pages); /* its references are the sequence's now */
        adoption->pages[arrival->held] = NULL;
        gw_head_free_arrival(arrival);
        *arrival = head->arrivals[--head->arrival_count];
    }
    struct adoption *adoption = &head->adoptions[number];
    for (int h = 0; adoption->assigned && h < adoption->held_count; h++) release_adopted(head, adoption, h);
}

gw_err gw_head_take_adopted(struct gw_head *head, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    for (bool got = head->adoption_count > 0; got;) {
        TRY(gw_comm_poll(head->config.comm, -1, GW_MSG_ADOPTED, &msg, &got));
        *busy |= got;
        for (int a = 0; got && a < head->adoption_count; a++)
            if ((uint64_t)head->adoptions[a].number == msg.step) head->adoptions[a].due--;
        gw_msg_free(&msg);
    }
    for (int a = 0; a < head->adoption_count; a++)
        if (head->adoptions[a].due == 0) settle_adoption(head, a);
out:
    return rc;
}

/* ---- checkpoints ----------------------------------------------------------------------------------------------- */

/* The pages that could be saved. */
struct candidates {
    int count;
    struct gw_saved_page *pages;     /* [count] */
    struct gw_ckpt_candidate *worth; /* [count] */
    int32_t *of_page;                /* [kv_pages]: a page's place among them + 1 */
    bool *chosen;                    /* [count] */
    struct gw_buf identities;        /* of the full pages of all sequences, in order */
};

static void make_candidates(const struct gw_head *head, struct candidates *c)
{
    size_t most = (size_t)head->config.kv_pages + 1;
    *c = (struct candidates){.pages = gw_alloc(most, sizeof *c->pages),
                             .worth = gw_alloc(most, sizeof *c->worth),
                             .of_page = gw_alloc(most, sizeof *c->of_page),
                             .chosen = gw_alloc(most, sizeof *c->chosen)};
}

static void free_candidates(struct candidates *c)
{
    free(c->pages);
    free(c->worth);
    free(c->of_page);
    free(c->chosen);
    gw_buf_free(&c->identities);
}

static int full_pages(const struct gw_seq *seq)
{
    return (seq->in_flight ? seq->computed_before : seq->computed) / GW_PAGE_TOKENS;
}

/* The full pages of all sequences that are not saved yet. Pages that several sequences share come once. */
static void list_candidates(struct gw_head *head, struct candidates *c)
{
    const struct gw_ckpt_model *model = gw_saver_model(head->config.saver);
    struct gw_seq *seq;
    for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++) {
        struct gw_ckpt_identity identity = {0}, parent;
        for (int p = 0, above = -1; p < full_pages(seq); p++) {
            parent = identity;
            identity = gw_ckpt_identity(model, p ? &parent : NULL, seq->tokens + p * GW_PAGE_TOKENS);
            gw_buf_add(&c->identities, &identity, sizeof identity);
            if (p < seq->saved) continue;
            int at = c->of_page[seq->pages[p]] - 1;
            if (at < 0) {
                at = c->count++;
                c->of_page[seq->pages[p]] = at + 1;
                c->pages[at] = (struct gw_saved_page){
                    .page = seq->pages[p], .has_parent = p > 0, .identity = identity, .parent = parent};
                memcpy(c->pages[at].tokens, seq->tokens + p * GW_PAGE_TOKENS, sizeof c->pages[at].tokens);
                c->worth[at] = (struct gw_ckpt_candidate){.parent = above, .bytes = 1};
            }
            c->worth[at].value_s += 1; /* every page takes about the same time to compute, once for each sequence */
            above = at;
        }
    }
}

/* Those that save most, as many as every rank of the replica can take at once. Returns how many. */
static int choose(const struct gw_head *head, struct candidates *c, uint64_t increment, struct gw_buf *list)
{
    const struct gw_team *team = head->config.team;
    struct gw_dims dims = gw_executor_dims(head->config.model);
    int room = c->count, *order = gw_alloc((size_t)c->count + 1, sizeof *order);
    for (int r = 0; r < gw_team_size(team); r++) {
        struct gw_shard shard = gw_layout_shard(&dims, team->layout, r % team->layout.tensor, r / team->layout.tensor);
        struct gw_ckpt_slice slice = {shard.layer_begin, shard.layer_end, shard.kv_begin, shard.kv_end};
        int staged = gw_ckpt_staged_pages(gw_saver_model(head->config.saver), &slice);
        if (staged < room) room = staged;
    }
    gw_ckpt_order(c->worth, c->count, order);
    gw_saver_list_begin(list, increment);
    for (int i = 0; i < room; i++) {
        c->chosen[order[i]] = true;
        gw_saver_list_add(list, &c->pages[order[i]]);
    }
    free(order);
    return room;
}

/* What counts as saved from now on, and the message for the leader: these pages' identities first, which are to be in its set when the round has ended,
 * then those of all others, whose files it keeps if it has them. */
static void note_saved(struct gw_head *head, const struct candidates *c, int rounds_more, struct gw_buf *keep)
{
    struct gw_buf others = {0};
    struct gw_seq *seq;
    size_t each = sizeof(struct gw_ckpt_identity), at = 0;
    gw_buf_add_u64(keep, (uint64_t)rounds_more);
    size_t count_at = keep->bytes;
    gw_buf_add_u64(keep, 0);
    for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++)
        for (int p = 0; p < full_pages(seq); p++, at += each) {
            int candidate = c->of_page[seq->pages[p]] - 1;
            bool saved = p < seq->saved || (p == seq->saved && candidate >= 0 && c->chosen[candidate]);
            if (saved && p == seq->saved) seq->saved++;
            gw_buf_add(saved ? keep : &others, c->identities.data + at, each);
        }
    uint64_t count = (keep->bytes - count_at - sizeof count) / each;
    memcpy(keep->data + count_at, &count, sizeof count);
    gw_buf_add(keep, others.data, others.bytes);
    gw_buf_free(&others);
}

/* A round of a checkpoint: every rank of the replica saves its part of the pages, those first that save most. */
gw_err gw_head_save(struct gw_head *head, uint64_t increment)
{
    gw_err rc = GW_OK;
    struct gw_buf list = {0}, keep = {0};
    struct candidates candidates;
    make_candidates(head, &candidates);
    list_candidates(head, &candidates);
    int chosen = choose(head, &candidates, increment, &list), left = candidates.count - chosen;
    note_saved(head, &candidates, left ? (left + chosen - 1) / chosen : 0, &keep);
    TRY(gw_comm_send(head->config.comm, LEADER, GW_MSG_KEEP, 0, keep.data, keep.bytes));
    TRY(gw_head_tell(head, GW_MSG_STEP, GW_STEP_SAVE, list.data, list.bytes));
    TRY(gw_saver_save(head->config.saver, head->config.executor, list.data, list.bytes));
out:
    gw_buf_free(&list);
    gw_buf_free(&keep);
    free_candidates(&candidates);
    return rc;
}
