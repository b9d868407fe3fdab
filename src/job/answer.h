/* An answer in the making: the request, its text so far, its stop strings and log-probabilities; ends as a line of output.jsonl.
 * Local; no MPI, no scheduling. */
#ifndef GW_JOB_ANSWER_H
#define GW_JOB_ANSWER_H

#include "batch/io/output.h"
#include "batch/request.h"
#include "engine/sampler.h"
#include "model/chat.h"
#include "model/tokenizer.h"

/* What is needed to read requests and write answers; shared by all answers of a head, borrowed. */
struct gw_answer_context {
    const struct gw_tokenizer *tokenizer;
    const struct gw_chat *chat;
    const struct gw_request_defaults *defaults;
    const char *model_name;
    int64_t created;
    int context; /* most tokens of prompt and answer */
    int vocab;
};

struct gw_answer; /* opaque */

/* Parses and tokenises a line. A line that cannot be answered gives bad->code (and *answer NULL with *custom_id set if known, heap).
 * Otherwise `prompt` receives the ids. */
GW_CHECK gw_err gw_answer_create(const struct gw_answer_context *context, const char *line, size_t bytes, int64_t index,
                                 struct gw_tokens *prompt, struct gw_answer **answer, struct gw_request_error *bad,
                                 char **custom_id);
void gw_answer_destroy(struct gw_answer *answer);

int64_t gw_answer_index(const struct gw_answer *answer);
/* Most tokens of prompt and answer together. */
int gw_answer_limit(const struct gw_answer *answer);
int gw_answer_logprobs(const struct gw_answer *answer);
struct gw_sample_params gw_answer_params(const struct gw_answer *answer);

/* Takes the next drawn token; true when the answer is complete. */
bool gw_answer_push(struct gw_answer *answer, const struct gw_sample_result *drawn);

/* What was drawn so far, where log-probabilities are asked for (gw_answer_logprobs() >= 0); else NULL: tokens are all there is. */
const struct gw_sample_result *gw_answer_results(const struct gw_answer *answer);

/* After completion: appends the output line. */
void gw_answer_format(struct gw_answer *answer, struct gw_buf *line);
int gw_answer_prompt_tokens(const struct gw_answer *answer);
int gw_answer_completion_tokens(const struct gw_answer *answer);

#endif
