/* The scheduler of one replica: which rows of which sequences make up the next step. Continuous batching with chunked prefill,
 * paged KV with shared prefixes, and preemption of sequences when pages run out. Pure: no I/O, no MPI, no clock, no threads.
 *
 * A sequence is a list of tokens, of which the first `computed` have their keys and values in pages. A step computes the next
 * ones; when it reaches the last known token, one more is drawn. So prefill, decoding and recomputation after a preemption are the
 * same thing, and none of it changes what is drawn (docs/dev/exactness.md).
 *
 * Pipelines keep several micro-batches in flight: each running sequence belongs to a `slot`, a slot has at most one step in flight,
 * and steps are executed everywhere in the order they were planned. That order lets a page be shared from the moment the step
 * that fills it is planned.
 *
 * Progress is certain: pages go to older sequences first, taken from the youngest, and one sequence of full length always fits
 * (checked by gw_sched_create).
 */
#ifndef GW_BATCH_SCHEDULER_H
#define GW_BATCH_SCHEDULER_H

#include "engine/kv_pages.h"
#include "engine/step.h"

struct gw_sched; /* opaque */

struct gw_sched_config {
    int slots;      /* micro-batches: the number of pipeline stages */
    int max_seqs;   /* running sequences, all slots together */
    int step_rows;  /* most rows of a step */
    int page_count; /* KV pages of the replica */
    int context;    /* most tokens of a sequence */
};

/* A running or waiting sequence; the caller reads it, the scheduler writes it. */
struct gw_seq {
    uint32_t id;
    void *user;      /* the caller's */
    int32_t *tokens; /* prompt, then drawn tokens */
    int count, prompt_count;
    int limit;    /* most tokens in all */
    int logprobs; /* as in gw_step_seq */
    struct gw_sample_params params;
    int saved; /* the caller's: leading full pages that are in a checkpoint */

    /* the scheduler's own */
    uint64_t age;        /* order of arrival: lower is older */
    int slot;            /* -1 while waiting */
    int computed;        /* tokens whose KV is, or will be after the steps in flight, in pages */
    int computed_before; /* while in flight: what was in pages before that step */
    bool in_flight;
    int32_t *pages;
    int page_count, page_capacity;
};

struct gw_sched_stats {
    int waiting, running;
    int pages_used, pages_total;
    uint64_t steps, rows, preemptions, recomputed_tokens, prefix_tokens_reused;
};

/* GW_ERR_USAGE when the pages do not hold one sequence of `context` tokens. */
GW_CHECK gw_err gw_sched_create(const struct gw_sched_config *config, struct gw_sched **sched);
void gw_sched_destroy(struct gw_sched *sched);

/* Takes a sequence; tokens are copied. prompt_count >= 1, limit <= context. */
struct gw_seq *gw_sched_add(struct gw_sched *sched, const int32_t *tokens, int prompt_count, int limit, int logprobs,
                            const struct gw_sample_params *params, void *user);

/* The pages, for whoever brings sequences with their KV from elsewhere. */
struct gw_kv_pages *gw_sched_pages(struct gw_sched *sched);
/* For a sequence just added that was begun elsewhere: its `count` drawn tokens, and the pages that hold the KV of its first `computed` tokens.
 * The caller's references to the pages (one each) become the sequence's; page_count = 0: none came along. */
void gw_sched_restore(struct gw_sched *sched, struct gw_seq *seq, const int32_t *drawn, int count, const int32_t *pages,
                      int page_count, int computed);

/* Plans the next step of a slot that has none in flight: fills *step (cleared first) and returns true, or returns false when the
 * slot has nothing to do now. */
bool gw_sched_plan(struct gw_sched *sched, int slot, struct gw_step *step);

/* The slot's step has been executed; call before the tokens it drew are added. */
void gw_sched_step_done(struct gw_sched *sched, int slot);
/* The steps in flight will never end: the world that executed them is gone. Their rows are planned again later. */
void gw_sched_cancel(struct gw_sched *sched);
/* Appends a drawn token to its sequence. */
struct gw_seq *gw_sched_push(struct gw_sched *sched, uint32_t seq, int32_t token);
/* Ends a sequence that is not in flight and frees it; its full pages stay findable until they are needed. */
void gw_sched_remove(struct gw_sched *sched, struct gw_seq *seq);

/* Sequences it would like to have more of: free places among the running, less those waiting. */
int gw_sched_wants(const struct gw_sched *sched);
struct gw_sched_stats gw_sched_stats(const struct gw_sched *sched);
/* All sequences, oldest first, for shutdown: index 0.. until NULL. */
struct gw_seq *gw_sched_at(const struct gw_sched *sched, int index);

#endif
