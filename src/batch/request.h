/* One generation request: a line of batch.jsonl after parsing, with every field checked and every default applied.
 *
 * Two spellings are read (docs/formats.md): OpenAI's batch line {custom_id, method, url, body}, and the plain form with
 * `prompt` or `messages` at top level. A bad line is an expected trouble: gw_request_parse() returns GW_OK and says
 * what is wrong in gw_request_error, so that the batch goes on with one error line. No byte sequence makes it crash or
 * read past the line. A field that would change the answer and that godwit does not implement is refused, never
 * ignored. The parse is a pure function of the line and the run-wide defaults. Local.
 */
#ifndef GW_BATCH_REQUEST_H
#define GW_BATCH_REQUEST_H

#include "base/error.h"
#include "base/mem.h"
#include "model/chat.h"

#include <stdint.h>

#define GW_REQUEST_MAX_ID_BYTES 512
#define GW_REQUEST_MAX_STOPS 16
#define GW_REQUEST_MAX_LOGPROBS 20
#define GW_REQUEST_MAX_LINE_BYTES ((size_t)16 << 20) /* default of gw_request_defaults.max_line_bytes */

enum gw_endpoint { GW_ENDPOINT_CHAT, GW_ENDPOINT_COMPLETION };

struct gw_sampling {
    float temperature;        /* 0..2; 0 is greedy */
    float top_p;              /* (0, 1]; 1 is off */
    float min_p;              /* 0..1; 0 is off */
    float repetition_penalty; /* > 0; 1 is off */
    int top_k;                /* 0 is off (-1 is read as 0) */
    uint64_t seed;
    bool seed_set;   /* the line or the command line named a seed */
    int max_tokens;  /* >= 1; 0: up to the model's context */
    bool ignore_eos; /* generate up to max_tokens, past end-of-generation tokens */
    int logprobs;    /* -1: none; else the number of alternatives per token, 0..20 */
};

/* temperature 1, everything else off, no seed, no limit, no logprobs. */
struct gw_sampling gw_sampling_default(void);
/* Checks ranges of a run-wide default that came from options. GW_ERR_USAGE names the field, its value and range. */
GW_CHECK gw_err gw_sampling_check(const struct gw_sampling *sampling);

/* What holds where a line is silent. */
struct gw_request_defaults {
    struct gw_sampling sampling;
    size_t max_line_bytes; /* a longer line is an error line; 0: GW_REQUEST_MAX_LINE_BYTES */
};

struct gw_request {
    int64_t index;   /* line number in the input, from 0 */
    char *custom_id; /* heap; 1..512 bytes of UTF-8 without NUL; NULL only beside an error */
    enum gw_endpoint endpoint;
    char *model; /* body's `model`, NULL if silent; not compared with anything here */

    /* CHAT: at least one message. Roles: "system", "user", "assistant", "developer", "tool" (static strings). Contents
     * are owned by the request; array contents are their text parts joined by a newline. Ready for gw_chat_encode(). */
    struct gw_message *messages;
    size_t message_count;

    /* COMPLETION: exactly one of the two. */
    struct gw_text prompt;  /* data NULL when token ids were given */
    int32_t *prompt_tokens; /* ids >= 0; the caller checks them against the vocabulary */
    size_t prompt_token_count;

    struct gw_sampling sampling;
    struct gw_text *stops; /* [stop_count], none empty */
    size_t stop_count;
};

/* Codes are stable: they are written to errors.jsonl and documented in docs/formats.md. */
#define GW_REQUEST_INVALID_JSON "invalid_json"
#define GW_REQUEST_LINE_TOO_LONG "line_too_long"
#define GW_REQUEST_MISSING_ID "missing_custom_id"
#define GW_REQUEST_INVALID_ID "invalid_custom_id"
#define GW_REQUEST_DUPLICATE_ID "duplicate_custom_id" /* noticed by the ledger */
#define GW_REQUEST_INVALID_METHOD "invalid_method"
#define GW_REQUEST_INVALID_URL "invalid_url"
#define GW_REQUEST_MISSING_FIELD "missing_field"
#define GW_REQUEST_INVALID_TYPE "invalid_type"
#define GW_REQUEST_INVALID_VALUE "invalid_value"
#define GW_REQUEST_UNSUPPORTED "unsupported"
#define GW_REQUEST_TOO_LONG "context_length_exceeded" /* noticed by the scheduler, after tokenization */

struct gw_request_error {
    const char *code;  /* one of the above; NULL: the line is good */
    char param[64];    /* the field, e.g. "body.temperature"; "" when none is to blame */
    char message[320]; /* for people: field, value, what is allowed; without the line number */
};

/* Fills *bad (also for use by the scheduler: context length, token ids out of range). `param` may be NULL. */
void gw_request_error_set(struct gw_request_error *bad, const char *code, const char *param, const char *fmt, ...)
    GW_PRINTF(4, 5);

/* Parses one line (without its newline; a trailing CR is white space). `defaults` may be NULL.
 * GW_OK always, unless the machinery itself fails. bad->code is NULL for a good line; for a bad one *out holds index
 * and, when it could be read, custom_id. *out is the caller's in both cases: gw_request_free(). */
GW_CHECK gw_err gw_request_parse(const char *line, size_t bytes, int64_t index,
                                 const struct gw_request_defaults *defaults, struct gw_request *out,
                                 struct gw_request_error *bad);
/* Frees what the request owns and zeroes it. */
void gw_request_free(struct gw_request *request);

/* The request's random stream: a 64-bit hash of custom_id, used with the seed to key Philox. */
uint64_t gw_request_stream(const struct gw_request *request);
/* The same for a bare id; also the hash by which the ledger knows an id. */
uint64_t gw_request_id_hash(const char *custom_id);

/* "/v1/chat/completions" or "/v1/completions". */
const char *gw_endpoint_url(enum gw_endpoint endpoint);

#endif
