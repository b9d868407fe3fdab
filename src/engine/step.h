/* A step: the rows that one replica computes together, as planned by its head and executed alike by each of its ranks.
 *
 * A step carries everything an executor needs (token ids, positions, page tables, sampling), so executors keep no state of
 * sequences between steps. It travels between the ranks of a replica as one message. Steps are executed in the order of their
 * ids, everywhere; a page filled by an earlier row of the same step may be read by a later one. Local.
 */
#ifndef GW_ENGINE_STEP_H
#define GW_ENGINE_STEP_H

#include "base/mem.h"
#include "engine/sampler.h"

#include <stdint.h>

struct gw_step_seq {
    uint32_t seq;     /* the replica's number of the sequence, handed back with its token */
    int32_t row0;     /* its first row in the step */
    int32_t rows;     /* rows of consecutive positions */
    int32_t pos0;     /* position of its first row */
    int32_t page0;    /* its page table: pages[page0 ..], one per 32 positions up to pos0 + rows */
    int32_t sample;   /* 1: a token is drawn from its last row */
    int32_t history0; /* tokens of prompt and output so far: history[history0 ..], for the repetition penalty */
    int32_t history_count;
    int32_t logprobs;     /* -1, or how many alternatives to report */
    uint64_t token_index; /* of the drawn token in the output: the random generator's counter */
    struct gw_sample_params params;
};

/* Most parts of a step. Where tensor shards would wait for each other, its rows are cut in two: while the sum over one part is on its way, the other part is
 * computed. */
enum { GW_STEP_PARTS = 2 };

struct gw_step {
    uint64_t id;
    int32_t slot; /* micro-batch of the head's pipeline */
    int32_t rows;
    int32_t cut; /* first row of the second part, a multiple of GW_ACT_ROWS; 0: one part */
    int32_t seq_count;
    int32_t page_count, history_count;
    struct gw_step_seq *seqs;
    int32_t *tokens; /* [rows] */
    int32_t *pages;
    int32_t *history;
    /* allocated sizes of the four arrays */
    int32_t seq_capacity, row_capacity, page_capacity, history_capacity;
};

static inline int gw_step_parts(const struct gw_step *step)
{
    return step->cut ? 2 : 1;
}

/* Rows [*begin, *end) of the step are its part number `part`. */
static inline void gw_step_part(const struct gw_step *step, int part, int *begin, int *end)
{
    *begin = part == 0 ? 0 : step->cut;
    *end = part + 1 < gw_step_parts(step) ? step->cut : step->rows;
}

/* Empties a (zero-initialised or used) step; its memory is kept. */
void gw_step_clear(struct gw_step *step);
void gw_step_free(struct gw_step *step);
/* Appends; the arrays grow as needed. The returned pointer is valid until the next add. */
struct gw_step_seq *gw_step_add_seq(struct gw_step *step);
void gw_step_add_tokens(struct gw_step *step, const int32_t *tokens, int count);
void gw_step_add_pages(struct gw_step *step, const int32_t *pages, int count);
void gw_step_add_history(struct gw_step *step, const int32_t *tokens, int count);

void gw_step_encode(const struct gw_step *step, struct gw_buf *out);
/* GW_ERR_PEER when the message is not a well-formed step. */
GW_CHECK gw_err gw_step_decode(const uint8_t *data, size_t bytes, struct gw_step *step);

/* The token drawn for one sampled sequence of a step. */
struct gw_drawn {
    uint32_t seq;
    struct gw_sample_result result;
};

#endif
