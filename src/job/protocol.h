/* What leader and heads say to each other: payloads of GW_MSG_WANT, GW_MSG_ASSIGN, GW_MSG_TOKENS and GW_MSG_RESULT. Local, pure.
 *
 * The leader hands out input lines as they are; the head parses, tokenises, generates, and gives back the finished line of output.jsonl or
 * errors.jsonl. So the leader's work per request is small (the ledger parses a line for its custom_id) whatever the
 * number of replicas.
 */
#ifndef GW_JOB_PROTOCOL_H
#define GW_JOB_PROTOCOL_H

#include "base/mem.h"
#include "engine/sampler.h"
#include "plan/layout.h"

#include <stdint.h>

/* GW_MSG_WANT: how many more requests the head could take now, and how it fares. Sent when it changes. */
struct gw_head_report {
    int32_t wants;
    uint32_t taken; /* requests received so far: the leader discounts those still on their way */
    int32_t running, waiting;
    int32_t pages_used, pages_total;
    uint64_t drawn_tokens;    /* generated so far */
    uint64_t computed_tokens; /* rows of steps so far */
    uint64_t preemptions, prefix_tokens_reused;
    uint64_t restored_tokens;   /* whose KV came from a checkpoint */
    uint64_t recomputed_tokens; /* whose KV was there once: of sequences that came without it, and of preempted ones */
    /* of the steps of the first stage so far */
    uint64_t steps, decode_rows, prefill_rows, seen_tokens; /* seen: by all rows together */
    double compute_s;
};

/* GW_MSG_PACE: what a rank's steps under this plan took since its last report, exchanges and waiting not included. */
struct gw_pace_report {
    double said_s; /* what the default cost model says a device of speed 1 takes for them */
    double took_s;
    uint64_t steps, rows;
};

/* Tokens of one request in a message: number `at` and the following of its output, with log-probabilities where there are any. */
void gw_drawn_add(struct gw_buf *out, const struct gw_sample_result *results, int count, bool logprobs);
/* Appends `count` struct gw_sample_result to `results`; false when the message is malformed. */
bool gw_drawn_read(struct gw_reader *in, struct gw_buf *results, int *count);

/* GW_MSG_ASSIGN: requests, each as (index, line, tokens drawn so far); `drawn`: struct gw_sample_result. Those of an adoption of the plan that are not
 * answered yet come in one message, which may be empty; the step of its header says so. Else that is 0. */
uint64_t gw_assign_step(int adoption);
void gw_assign_add(struct gw_buf *out, int64_t index, const void *line, size_t bytes, const struct gw_buf *drawn);
/* Reads the next one (drawn is replaced); false at the end or (reader->failed) at a malformed message. */
bool gw_assign_next(struct gw_reader *in, int64_t *index, const char **line, size_t *bytes, struct gw_buf *drawn);

/* GW_MSG_TOKENS: tokens just drawn, each entry as (index, number of its first token, tokens). */
void gw_tokens_msg_add(struct gw_buf *out, int64_t index, int at, const struct gw_sample_result *results, int count,
                       bool logprobs);
bool gw_tokens_msg_next(struct gw_reader *in, int64_t *index, int *at, struct gw_buf *results, int *count,
                        bool *logprobs);

/* GW_MSG_NOTICE. */
struct gw_notice {
    int32_t member;          /* who will be taken away; -1: everybody */
    int32_t more;            /* > 0: instead, that many more ranks are wanted */
    double seconds;          /* from now */
    struct gw_layout layout; /* data > 0: instead, the layout that is wanted from now on */
};

/* GW_MSG_RESULT: one finished request. */
struct gw_result {
    int64_t index;
    bool failed; /* the line belongs into errors.jsonl */
    int64_t prompt_tokens, completion_tokens;
    const uint8_t *line; /* with its newline */
    size_t line_bytes;
};
void gw_result_encode(const struct gw_result *result, struct gw_buf *out);
/* result->line points into `data`. GW_ERR_PEER. */
GW_CHECK gw_err gw_result_decode(const uint8_t *data, size_t bytes, struct gw_result *result);

#endif
