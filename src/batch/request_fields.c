/* See request_fields.h. Ranges follow OpenAI's API reference and, for top_k, min_p and repetition_penalty, vLLM's
 * sampling parameters. */
#include "batch/request_fields.h"

#include "base/mem.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN_BYTES 48 /* of a string value quoted in a message */

json_t *gw_fields_get(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

bool gw_fields_is_empty(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

bool gw_fields_bad(struct gw_fields *f, const char *code, const char *name, const char *fmt, ...)
{
    char message[sizeof f->bad->message], param[sizeof f->bad->param];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    snprintf(param, sizeof param, "%s%s", *name ? f->prefix : "", name);
    gw_request_error_set(f->bad, code, param, "%s", message);
    return false;
}

/* A value as messages quote it: short, valid UTF-8, one line. */
static void show(const json_t *value, char *text, size_t bytes)
{
    switch (json_typeof(value)) {
    case JSON_STRING: {
        const char *string = json_string_value(value);
        size_t length = json_string_length(value), shown = length;
        if (shown > SHOWN_BYTES) {
            shown = SHOWN_BYTES;
            while (shown && ((unsigned char)string[shown] & 0xc0) == 0x80) shown--; /* not inside a character */
        }
        int at = snprintf(text, bytes, "\"%.*s%s\"", (int)shown, string, shown < length ? "..." : "");
        for (int i = 0; i < at; i++)
            if ((unsigned char)text[i] < 0x20) text[i] = '?';
        break;
    }
    case JSON_INTEGER: snprintf(text, bytes, "%lld", (long long)json_integer_value(value)); break;
    case JSON_REAL: snprintf(text, bytes, "%.9g", json_real_value(value)); break;
    case JSON_TRUE: snprintf(text, bytes, "true"); break;
    case JSON_FALSE: snprintf(text, bytes, "false"); break;
    case JSON_ARRAY: snprintf(text, bytes, "an array"); break;
    case JSON_OBJECT: snprintf(text, bytes, "an object"); break;
    case JSON_NULL: snprintf(text, bytes, "null"); break;
    }
}

bool gw_fields_type(struct gw_fields *f, const char *name, const json_t *value, const char *wanted)
{
    return gw_fields_value(f, GW_REQUEST_INVALID_TYPE, name, value, wanted);
}

bool gw_fields_value(struct gw_fields *f, const char *code, const char *name, const json_t *value, const char *wanted)
{
    char shown[SHOWN_BYTES + 16];
    show(value, shown, sizeof shown);
    return gw_fields_bad(f, code, name, "%s%s is %s; expected %s", f->prefix, name, shown, wanted);
}

/* ---- sampling -------------------------------------------------------------------------------------------------- */

struct float_field {
    const char *name;
    size_t offset; /* in struct gw_sampling */
    float low;
    float high;
    bool low_open; /* low itself is not allowed */
    const char *range;
};

static const struct float_field float_fields[] = {
    {"temperature", offsetof(struct gw_sampling, temperature), 0, 2, false, "a number from 0 to 2"},
    {"top_p", offsetof(struct gw_sampling, top_p), 0, 1, true, "a number above 0, at most 1"},
    {"min_p", offsetof(struct gw_sampling, min_p), 0, 1, false, "a number from 0 to 1"},
    {"repetition_penalty", offsetof(struct gw_sampling, repetition_penalty), 0, 100, true,
     "a number above 0, at most 100"},
};
#define FLOAT_FIELDS (sizeof float_fields / sizeof *float_fields)

static bool in_range(const struct float_field *field, float value)
{
    return value <= field->high && (field->low_open ? value > field->low : value >= field->low);
}

struct gw_sampling gw_sampling_default(void)
{
    return (struct gw_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1};
}

gw_err gw_sampling_check(const struct gw_sampling *sampling)
{
    for (size_t i = 0; i < FLOAT_FIELDS; i++) {
        float value;
        memcpy(&value, (const char *)sampling + float_fields[i].offset, sizeof value);
        if (!in_range(&float_fields[i], value))
            return gw_fail(GW_ERR_USAGE, "%s is %g; expected %s", float_fields[i].name, (double)value,
                           float_fields[i].range);
    }
    if (sampling->top_k < 0) return gw_fail(GW_ERR_USAGE, "top_k is %d; expected 0 (off) or more", sampling->top_k);
    if (sampling->max_tokens < 0)
        return gw_fail(GW_ERR_USAGE, "max_tokens is %d; expected 1 or more (0: up to the context)",
                       sampling->max_tokens);
    if (sampling->logprobs < -1 || sampling->logprobs > GW_REQUEST_MAX_LOGPROBS)
        return gw_fail(GW_ERR_USAGE, "logprobs is %d; expected -1 (none) to %d", sampling->logprobs,
                       GW_REQUEST_MAX_LOGPROBS);
    return GW_OK;
}

/* An integer field, also spelled 5.0; *value keeps its old content when the field is absent. */
static bool read_integer(struct gw_fields *f, const json_t *body, const char *name, int64_t low, int64_t high,
                         const char *wanted, int64_t *value, bool *found)
{
    const json_t *field = gw_fields_get(body, name);
    *found = field != NULL;
    if (!field) return true;
    int64_t number;
    if (json_is_integer(field)) number = json_integer_value(field);
    else if (json_is_real(field) && fabs(json_real_value(field)) < 9e15 &&
             json_real_value(field) == floor(json_real_value(field)))
        number = (int64_t)json_real_value(field);
    else return gw_fields_type(f, name, field, wanted);
    if (number < low || number > high) return gw_fields_value(f, GW_REQUEST_INVALID_VALUE, name, field, wanted);
    *value = number;
    return true;
}

static bool read_bool(struct gw_fields *f, const json_t *body, const char *name, bool *value)
{
    const json_t *field = gw_fields_get(body, name);
    if (!field) return true;
    if (!json_is_boolean(field)) return gw_fields_type(f, name, field, "true or false");
    *value = json_is_true(field);
    return true;
}

static bool read_floats(struct gw_fields *f, const json_t *body)
{
    for (size_t i = 0; i < FLOAT_FIELDS; i++) {
        const struct float_field *field = &float_fields[i];
        const json_t *number = gw_fields_get(body, field->name);
        if (!number) continue;
        if (!json_is_number(number)) return gw_fields_type(f, field->name, number, field->range);
        double wide = json_number_value(number);
        float value = wide > 1e30 ? 1e30f : wide < -1e30 ? -1e30f : (float)wide;
        if (!in_range(field, value))
            return gw_fields_value(f, GW_REQUEST_INVALID_VALUE, field->name, number, field->range);
        memcpy((char *)&f->out->sampling + field->offset, &value, sizeof value);
    }
    return true;
}

static bool read_chat_logprobs(struct gw_fields *f, const json_t *body)
{
    bool wanted = f->out->sampling.logprobs >= 0, found;
    int64_t top = f->out->sampling.logprobs > 0 ? f->out->sampling.logprobs : 0;
    if (!read_bool(f, body, "logprobs", &wanted)) return false;
    if (!read_integer(f, body, "top_logprobs", 0, GW_REQUEST_MAX_LOGPROBS, "an integer from 0 to 20", &top, &found))
        return false;
    if (found && top > 0 && !wanted)
        return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "top_logprobs", "%stop_logprobs needs \"logprobs\": true",
                             f->prefix);
    f->out->sampling.logprobs = wanted ? (int)top : -1;
    return true;
}

bool gw_fields_read_sampling(struct gw_fields *f, const json_t *body)
{
    struct gw_sampling *s = &f->out->sampling;
    int64_t value = 0;
    bool found;
    if (!read_floats(f, body)) return false;
    if (!read_integer(f, body, "top_k", -1, INT_MAX, "an integer from 1, or 0 or -1 for off", &value, &found))
        return false;
    if (found) s->top_k = value > 0 ? (int)value : 0;
    if (!read_integer(f, body, "seed", INT64_MIN, INT64_MAX, "an integer", &value, &found)) return false;
    if (found) {
        s->seed = (uint64_t)value;
        s->seed_set = true;
    }
    /* The newer name wins where both are given, as in vLLM. */
    static const char *const limits[] = {"max_tokens", "max_completion_tokens"};
    for (int i = 0; i < 2; i++) {
        if (!read_integer(f, body, limits[i], 1, INT_MAX, "an integer from 1", &value, &found)) return false;
        if (found) s->max_tokens = (int)value;
    }
    if (!read_bool(f, body, "ignore_eos", &s->ignore_eos)) return false;
    if (f->out->endpoint == GW_ENDPOINT_CHAT) return read_chat_logprobs(f, body);
    if (!read_integer(f, body, "logprobs", 0, GW_REQUEST_MAX_LOGPROBS, "an integer from 0 to 20", &value, &found))
        return false;
    if (found) s->logprobs = (int)value;
    return true;
}

bool gw_fields_read_stops(struct gw_fields *f, const json_t *body)
{
    const json_t *stop = gw_fields_get(body, "stop");
    if (!stop) return true;
    bool list = json_is_array(stop);
    if (!list && !json_is_string(stop)) return gw_fields_type(f, "stop", stop, "a string or an array of strings");
    size_t count = list ? json_array_size(stop) : 1;
    if (count > GW_REQUEST_MAX_STOPS)
        return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "stop", "%sstop has %zu strings; at most %d are allowed",
                             f->prefix, count, GW_REQUEST_MAX_STOPS);
    if (count) f->out->stops = gw_alloc(count, sizeof *f->out->stops);
    for (size_t i = 0; i < count; i++) {
        const json_t *text = list ? json_array_get(stop, i) : stop;
        if (!json_is_string(text)) return gw_fields_type(f, "stop", text, "a string or an array of strings");
        size_t bytes = json_string_length(text);
        if (!bytes) return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "stop", "%sstop has an empty string", f->prefix);
        f->out->stops[f->out->stop_count++] = (struct gw_text){gw_strndup(json_string_value(text), bytes), bytes};
    }
    return true;
}

/* ---- what is refused ------------------------------------------------------------------------------------------- */

/* Values that mean "off" (null always does). */
enum { OFF_EMPTY = 1, OFF_FALSE = 2, OFF_TRUE = 4, OFF_ONE = 8 };
enum { CHAT = 1 << GW_ENDPOINT_CHAT, COMPLETION = 1 << GW_ENDPOINT_COMPLETION, BOTH = CHAT | COMPLETION };

/* Everything else that is unknown is ignored: user, metadata, store, service_tier, ... do not change an answer. */
static const struct {
    const char *name;
    int off;
    int endpoints;
} refused[] = {
    {"stream", OFF_FALSE, BOTH},
    {"n", OFF_ONE, BOTH},
    {"best_of", OFF_ONE, BOTH},
    {"echo", OFF_FALSE, BOTH},
    {"suffix", OFF_EMPTY, BOTH},
    {"tools", OFF_EMPTY, BOTH},
    {"functions", OFF_EMPTY, BOTH},
    {"logit_bias", OFF_EMPTY, BOTH},
    {"presence_penalty", OFF_EMPTY, BOTH},
    {"frequency_penalty", OFF_EMPTY, BOTH},
    {"audio", 0, BOTH},
    {"web_search_options", 0, BOTH},
    {"reasoning_effort", 0, BOTH},
    {"verbosity", 0, BOTH},
    /* vLLM and llama.cpp */
    {"use_beam_search", OFF_FALSE, BOTH},
    {"min_tokens", OFF_EMPTY, BOTH},
    {"stop_token_ids", OFF_EMPTY, BOTH},
    {"bad_words", OFF_EMPTY, BOTH},
    {"allowed_token_ids", OFF_EMPTY, BOTH},
    {"include_stop_str_in_output", OFF_FALSE, BOTH},
    {"skip_special_tokens", OFF_TRUE, BOTH},
    {"add_special_tokens", OFF_FALSE, CHAT},
    {"add_special_tokens", OFF_TRUE, COMPLETION},
    {"add_generation_prompt", OFF_TRUE, CHAT},
    {"continue_final_message", OFF_FALSE, CHAT},
    {"chat_template", 0, CHAT},
    {"chat_template_kwargs", OFF_EMPTY, CHAT},
    {"documents", OFF_EMPTY, CHAT},
    {"prompt_logprobs", OFF_FALSE, BOTH},
    {"prompt_embeds", 0, COMPLETION},
    {"return_token_ids", OFF_FALSE, BOTH},
    {"truncate_prompt_tokens", 0, BOTH},
    {"structured_outputs", OFF_EMPTY, BOTH},
    {"guided_json", OFF_EMPTY, BOTH},
    {"guided_regex", OFF_EMPTY, BOTH},
    {"guided_choice", OFF_EMPTY, BOTH},
    {"guided_grammar", OFF_EMPTY, BOTH},
    {"grammar", OFF_EMPTY, BOTH},
    {"json_schema", OFF_EMPTY, BOTH},
    {"mirostat", OFF_EMPTY, BOTH},
    {"typical_p", OFF_ONE, BOTH},
    {"dry_multiplier", OFF_EMPTY, BOTH},
    {"xtc_probability", OFF_EMPTY, BOTH},
};

static bool is_off(const json_t *value, int off)
{
    return !value || ((off & OFF_EMPTY) && gw_fields_is_empty(value)) || ((off & OFF_FALSE) && json_is_false(value)) ||
           ((off & OFF_TRUE) && json_is_true(value)) ||
           ((off & OFF_ONE) && json_is_number(value) && json_number_value(value) == 1);
}

/* Fields whose "off" is a word. */
static const char *word_of(const json_t *value)
{
    return json_is_string(value) ? json_string_value(value) : "";
}

static bool refuse_words(struct gw_fields *f, const json_t *body)
{
    const json_t *format = gw_fields_get(body, "response_format");
    if (format && strcmp(word_of(gw_fields_get(format, "type")), "text") != 0)
        return gw_fields_bad(f, GW_REQUEST_UNSUPPORTED, "response_format",
                             "%sresponse_format is not supported, except {\"type\":\"text\"}", f->prefix);
    static const char *const choices[] = {"tool_choice", "function_call"};
    for (int i = 0; i < 2; i++) {
        const json_t *choice = gw_fields_get(body, choices[i]);
        if (choice && strcmp(word_of(choice), "none") != 0 && strcmp(word_of(choice), "auto") != 0)
            return gw_fields_value(f, GW_REQUEST_UNSUPPORTED, choices[i], choice, "\"none\" (tools are not supported)");
    }
    const json_t *modalities = gw_fields_get(body, "modalities");
    if (modalities && (json_array_size(modalities) != 1 || strcmp(word_of(json_array_get(modalities, 0)), "text") != 0))
        return gw_fields_bad(f, GW_REQUEST_UNSUPPORTED, "modalities",
                             "%smodalities is not supported, except [\"text\"]", f->prefix);
    return true;
}

bool gw_fields_refuse(struct gw_fields *f, const json_t *body)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (!(refused[i].endpoints & (1 << f->out->endpoint))) continue;
        const json_t *value = gw_fields_get(body, refused[i].name);
        if (is_off(value, refused[i].off)) continue;
        char shown[SHOWN_BYTES + 16];
        show(value, shown, sizeof shown);
        return gw_fields_bad(f, GW_REQUEST_UNSUPPORTED, refused[i].name, "%s%s is %s: not supported", f->prefix,
                             refused[i].name, shown);
    }
    return refuse_words(f, body);
}
