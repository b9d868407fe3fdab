/* See answer.h. */
#include "job/answer.h"

#include "engine/stop.h"

#include <stdlib.h>
#include <string.h>

struct gw_answer {
    const struct gw_answer_context *context;
    struct gw_request request;
    int prompt_tokens, drawn_tokens, limit;
    struct gw_detok detok;
    struct gw_stop stop;
    struct gw_buf text;
    size_t scanned; /* bytes of text already searched for stop strings */
    enum gw_finish finish;
    struct gw_sample_result *positions; /* with log-probabilities, where they are asked for */
    int position_count, position_capacity;
};

static gw_err tokenize(const struct gw_answer_context *context, const struct gw_request *request,
                       struct gw_tokens *prompt)
{
    if (request->endpoint == GW_ENDPOINT_CHAT)
        return gw_chat_encode(context->chat, request->messages, request->message_count, prompt);
    if (request->prompt.data) {
        int32_t bos = gw_tokenizer_bos(context->tokenizer);
        if (gw_tokenizer_adds_bos(context->tokenizer) && bos >= 0) gw_tokens_add(prompt, bos);
        return gw_tokenizer_encode(context->tokenizer, request->prompt.data, request->prompt.bytes, false, prompt);
    }
    for (size_t i = 0; i < request->prompt_token_count; i++) gw_tokens_add(prompt, request->prompt_tokens[i]);
    return GW_OK;
}

/* What only shows once the prompt is tokens. */
static void check_prompt(const struct gw_answer_context *context, const struct gw_tokens *prompt,
                         struct gw_request_error *bad)
{
    if (prompt->count == 0) gw_request_error_set(bad, GW_REQUEST_INVALID_VALUE, "prompt", "the prompt has no tokens");
    else if (prompt->count >= (size_t)context->context)
        gw_request_error_set(bad, GW_REQUEST_TOO_LONG, "prompt",
                             "the prompt has %zu tokens; the context of %d leaves no room for an answer", prompt->count,
                             context->context);
    for (size_t i = 0; i < prompt->count && !bad->code; i++)
        if (prompt->ids[i] < 0 || prompt->ids[i] >= context->vocab)
            gw_request_error_set(bad, GW_REQUEST_INVALID_VALUE, "prompt", "token id %d is outside the vocabulary of %d",
                                 prompt->ids[i], context->vocab);
}

gw_err gw_answer_create(const struct gw_answer_context *context, const char *line, size_t bytes, int64_t index,
                        struct gw_tokens *prompt, struct gw_answer **out, struct gw_request_error *bad,
                        char **custom_id)
{
    gw_err rc = GW_OK;
    struct gw_answer *answer = gw_alloc(1, sizeof *answer);
    struct gw_request *request = &answer->request;
    answer->context = context;
    *out = NULL;
    *custom_id = NULL;
    TRY(gw_request_parse(line, bytes, index, context->defaults, request, bad));
    if (!bad->code) {
        rc = tokenize(context, request, prompt);
        if (rc == GW_ERR_INPUT || rc == GW_ERR_UNSUPPORTED) { /* of this request, not of the job */
            gw_request_error_set(bad, GW_REQUEST_INVALID_VALUE, "messages", "%s", gw_error_detail());
            rc = GW_OK;
        }
        if (rc != GW_OK) goto out;
    }
    if (!bad->code) check_prompt(context, prompt, bad);
    if (bad->code) {
        if (request->custom_id) *custom_id = gw_strdup(request->custom_id);
        goto out;
    }
    answer->prompt_tokens = (int)prompt->count;
    answer->limit = context->context;
    if (request->sampling.max_tokens > 0 && request->sampling.max_tokens < context->context - answer->prompt_tokens)
        answer->limit = answer->prompt_tokens + request->sampling.max_tokens;
    gw_stop_init(&answer->stop, request->stops, request->stop_count);
    *out = answer;
    answer = NULL;
out:
    gw_answer_destroy(answer);
    return rc;
}

void gw_answer_destroy(struct gw_answer *answer)
{
    if (!answer) return;
    gw_request_free(&answer->request);
    gw_buf_free(&answer->text);
    free(answer->positions);
    free(answer);
}

int64_t gw_answer_index(const struct gw_answer *answer)
{
    return answer->request.index;
}

int gw_answer_limit(const struct gw_answer *answer)
{
    return answer->limit;
}

int gw_answer_logprobs(const struct gw_answer *answer)
{
    return answer->request.sampling.logprobs;
}

int gw_answer_prompt_tokens(const struct gw_answer *answer)
{
    return answer->prompt_tokens;
}

int gw_answer_completion_tokens(const struct gw_answer *answer)
{
    return answer->drawn_tokens;
}

struct gw_sample_params gw_answer_params(const struct gw_answer *answer)
{
    const struct gw_sampling *s = &answer->request.sampling;
    return (struct gw_sample_params){.temperature = s->temperature,
                                     .top_p = s->top_p,
                                     .min_p = s->min_p,
                                     .repetition_penalty = s->repetition_penalty,
                                     .top_k = s->top_k,
                                     .seed = s->seed,
                                     .stream = gw_request_stream(&answer->request)};
}

static void note_logprobs(struct gw_answer *answer, const struct gw_sample_result *drawn)
{
    if (answer->position_count == answer->position_capacity) {
        answer->position_capacity = answer->position_capacity ? 2 * answer->position_capacity : 32;
        answer->positions = gw_realloc(answer->positions, (size_t)answer->position_capacity, sizeof *answer->positions);
    }
    answer->positions[answer->position_count++] = *drawn;
}

const struct gw_sample_result *gw_answer_results(const struct gw_answer *answer)
{
    return answer->positions;
}

/* Cuts the text before the first stop string, if one has come. Only new text and what it may complete are searched. */
static bool stopped(struct gw_answer *answer)
{
    int64_t at = gw_stop_scan(&answer->stop, &answer->text, answer->scanned);
    answer->scanned = answer->text.bytes;
    if (at < 0) return false;
    answer->text.bytes = (size_t)at;
    return true;
}

bool gw_answer_push(struct gw_answer *answer, const struct gw_sample_result *drawn)
{
    const struct gw_tokenizer *tokenizer = answer->context->tokenizer;
    answer->drawn_tokens++;
    bool full = answer->prompt_tokens + answer->drawn_tokens >= answer->limit;
    answer->finish = GW_FINISH_STOP;
    if (gw_tokenizer_is_eog(tokenizer, drawn->token) && !answer->request.sampling.ignore_eos) {
        gw_detok_finish(&answer->detok, &answer->text);
        stopped(answer);
        return true;
    }
    if (answer->request.sampling.logprobs >= 0) note_logprobs(answer, drawn);
    gw_detok_add(tokenizer, &answer->detok, drawn->token, &answer->text);
    if (stopped(answer)) return true;
    if (!full) return false;
    gw_detok_finish(&answer->detok, &answer->text);
    if (!stopped(answer)) answer->finish = GW_FINISH_LENGTH;
    return true;
}

static struct gw_token_logprob logprob_of(const struct gw_answer *answer, int32_t token, float logprob)
{
    struct gw_token_logprob entry = {.logprob = logprob};
    entry.text = gw_tokenizer_bytes(answer->context->tokenizer, token, &entry.bytes);
    return entry;
}

void gw_answer_format(struct gw_answer *answer, struct gw_buf *line)
{
    size_t count = (size_t)answer->position_count;
    struct gw_position_logprobs *logprobs = gw_alloc(count + 1, sizeof *logprobs);
    struct gw_token_logprob *tops = gw_alloc(count * GW_MAX_LOGPROBS + 1, sizeof *tops);
    for (size_t i = 0; i < count; i++) {
        const struct gw_sample_result *drawn = &answer->positions[i];
        struct gw_token_logprob *top = tops + i * GW_MAX_LOGPROBS;
        for (int j = 0; j < drawn->alternatives; j++)
            top[j] = logprob_of(answer, drawn->alt_token[j], drawn->alt_logprob[j]);
        logprobs[i] = (struct gw_position_logprobs){.chosen = logprob_of(answer, drawn->token, drawn->logprob),
                                                    .top = top,
                                                    .top_count = drawn->alternatives};
    }
    struct gw_completion completion = {.custom_id = answer->request.custom_id,
                                       .endpoint = answer->request.endpoint,
                                       .model = answer->context->model_name,
                                       .created = answer->context->created,
                                       .text = (const char *)answer->text.data,
                                       .text_bytes = answer->text.bytes,
                                       .prompt_tokens = answer->prompt_tokens,
                                       .completion_tokens = answer->drawn_tokens,
                                       .finish = answer->finish,
                                       .logprobs = answer->request.sampling.logprobs >= 0 ? logprobs : NULL,
                                       .logprob_count = count};
    gw_output_format_completion(&completion, line);
    free(tops);
    free(logprobs);
}
