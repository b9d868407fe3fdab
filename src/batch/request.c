/* See request.h.
 *
 * jansson reads the JSON (strict UTF-8, no lone surrogates, no duplicate keys, nesting bounded by its own limit); what
 * is here is the meaning of fields. Every helper that returns bool gives false after filling *bad, and the parse ends
 * there: the first problem of a line is the one reported.
 */
#include "batch/request.h"

#include "base/hash.h"
#include "base/mem.h"
#include "batch/request_fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gw_request_error_set(struct gw_request_error *bad, const char *code, const char *param, const char *fmt, ...)
{
    bad->code = code;
    snprintf(bad->param, sizeof bad->param, "%s", param ? param : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(bad->message, sizeof bad->message, fmt, ap);
    va_end(ap);
}

const char *gw_endpoint_url(enum gw_endpoint endpoint)
{
    return endpoint == GW_ENDPOINT_CHAT ? "/v1/chat/completions" : "/v1/completions";
}

uint64_t gw_request_id_hash(const char *custom_id)
{
    return gw_hash64(custom_id, strlen(custom_id), 0);
}

uint64_t gw_request_stream(const struct gw_request *request)
{
    return gw_request_id_hash(request->custom_id);
}

void gw_request_free(struct gw_request *request)
{
    for (size_t i = 0; i < request->message_count; i++) free((char *)request->messages[i].content);
    for (size_t i = 0; i < request->stop_count; i++) free(request->stops[i].data);
    free(request->messages);
    free(request->stops);
    free(request->prompt.data);
    free(request->prompt_tokens);
    free(request->custom_id);
    free(request->model);
    *request = (struct gw_request){0};
}

static struct gw_text copy_text(const json_t *string)
{
    size_t bytes = json_string_length(string);
    return (struct gw_text){gw_strndup(json_string_value(string), bytes), bytes};
}

/* ---- identity -------------------------------------------------------------------------------------------------- */

/* Takes `id` as the custom_id; integers only where the plain form allows them. */
static bool take_id(struct gw_fields *f, const char *name, const json_t *id, bool integers)
{
    if (json_is_integer(id) && integers) {
        f->out->custom_id = gw_asprintf("%lld", (long long)json_integer_value(id));
        return true;
    }
    if (!json_is_string(id)) return gw_fields_type(f, name, id, integers ? "a string or an integer" : "a string");
    const char *text = json_string_value(id);
    size_t bytes = json_string_length(id);
    if (bytes == 0) return gw_fields_bad(f, GW_REQUEST_MISSING_ID, name, "%s is empty", name);
    if (bytes > GW_REQUEST_MAX_ID_BYTES)
        return gw_fields_bad(f, GW_REQUEST_INVALID_ID, name, "%s has %zu bytes; at most %d are allowed", name, bytes,
                             GW_REQUEST_MAX_ID_BYTES);
    if (memchr(text, 0, bytes))
        return gw_fields_bad(f, GW_REQUEST_INVALID_ID, name, "%s contains a NUL character", name);
    f->out->custom_id = gw_strndup(text, bytes);
    return true;
}

/* The outer object of OpenAI's form; *body is borrowed from it. */
static bool read_envelope(struct gw_fields *f, json_t *line, json_t **body)
{
    const json_t *id = gw_fields_get(line, "custom_id");
    if (!id)
        return gw_fields_bad(f, GW_REQUEST_MISSING_ID, "custom_id",
                             "custom_id is missing: give every line a string of its own");
    if (!take_id(f, "custom_id", id, false)) return false;

    const json_t *method = gw_fields_get(line, "method");
    if (method && !json_is_string(method)) return gw_fields_type(f, "method", method, "\"POST\"");
    if (method && strcmp(json_string_value(method), "POST") != 0)
        return gw_fields_value(f, GW_REQUEST_INVALID_METHOD, "method", method, "\"POST\"");

    static const char *const urls = "\"/v1/chat/completions\" or \"/v1/completions\"";
    const json_t *url = gw_fields_get(line, "url");
    if (!url) return gw_fields_bad(f, GW_REQUEST_INVALID_URL, "url", "url is missing: give %s", urls);
    if (!json_is_string(url)) return gw_fields_type(f, "url", url, urls);
    const char *text = json_string_value(url);
    if (strcmp(text, gw_endpoint_url(GW_ENDPOINT_CHAT)) == 0) f->out->endpoint = GW_ENDPOINT_CHAT;
    else if (strcmp(text, gw_endpoint_url(GW_ENDPOINT_COMPLETION)) == 0) f->out->endpoint = GW_ENDPOINT_COMPLETION;
    else return gw_fields_value(f, GW_REQUEST_INVALID_URL, "url", url, urls);

    *body = gw_fields_get(line, "body");
    if (!*body) return gw_fields_bad(f, GW_REQUEST_MISSING_FIELD, "body", "body is missing");
    if (!json_is_object(*body)) return gw_fields_type(f, "body", *body, "an object");
    f->prefix = "body.";
    return true;
}

/* The plain form: identity and endpoint from the line itself. */
static bool read_plain(struct gw_fields *f, json_t *line)
{
    const json_t *id = gw_fields_get(line, "id");
    const json_t *custom_id = gw_fields_get(line, "custom_id");
    if (id && custom_id)
        return gw_fields_bad(f, GW_REQUEST_INVALID_ID, "id", "the line has both id and custom_id: keep one");
    if (custom_id ? !take_id(f, "custom_id", custom_id, false) : id && !take_id(f, "id", id, true)) return false;
    if (!f->out->custom_id) f->out->custom_id = gw_asprintf("line-%lld", (long long)f->out->index + 1);

    bool chat = gw_fields_get(line, "messages") != NULL;
    bool completion = gw_fields_get(line, "prompt") != NULL;
    if (!chat && !completion)
        return gw_fields_bad(f, GW_REQUEST_MISSING_FIELD, "",
                             "the line has neither body nor messages nor prompt: nothing to answer");
    if (chat && completion)
        return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "", "the line has both messages and prompt: keep one");
    f->out->endpoint = chat ? GW_ENDPOINT_CHAT : GW_ENDPOINT_COMPLETION;
    return true;
}

/* ---- messages -------------------------------------------------------------------------------------------------- */

/* Static spelling of a role; NULL if unknown. */
static const char *known_role(const char *role)
{
    static const char *const roles[] = {"system", "user", "assistant", "developer", "tool"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role, roles[i]) == 0) return roles[i];
    return NULL;
}

/* Content as an array of parts: the texts, joined by a newline (as vLLM does for templates that expect a string). */
static bool read_parts(struct gw_fields *f, const char *name, const json_t *parts, struct gw_text *content)
{
    struct gw_buf buf = {0};
    bool good = true;
    for (size_t i = 0; good && i < json_array_size(parts); i++) {
        char where[96];
        snprintf(where, sizeof where, "%s[%zu]", name, i);
        const json_t *part = json_array_get(parts, i);
        const json_t *type = gw_fields_get(part, "type");
        const json_t *text = gw_fields_get(part, "text");
        if (i) gw_buf_add_text(&buf, "\n");
        if (json_is_string(part)) gw_buf_add(&buf, json_string_value(part), json_string_length(part));
        else if (!json_is_object(part)) good = gw_fields_type(f, where, part, "a part {\"type\":\"text\",\"text\":..}");
        else if (!json_is_string(type))
            good = gw_fields_bad(f, GW_REQUEST_INVALID_TYPE, where, "%s%s has no type", f->prefix, where);
        else if (strcmp(json_string_value(type), "text") != 0)
            good = gw_fields_value(f, GW_REQUEST_UNSUPPORTED, where, type,
                                   "a part of type \"text\" (text is all godwit reads)");
        else if (!json_is_string(text))
            good = gw_fields_bad(f, GW_REQUEST_INVALID_TYPE, where, "%s%s.text is not a string", f->prefix, where);
        else gw_buf_add(&buf, json_string_value(text), json_string_length(text));
    }
    if (good) *content = (struct gw_text){gw_strndup(buf.data ? (char *)buf.data : "", buf.bytes), buf.bytes};
    gw_buf_free(&buf);
    return good;
}

static bool read_message(struct gw_fields *f, size_t at, const json_t *item, struct gw_message *message)
{
    char name[48];
    snprintf(name, sizeof name, "messages[%zu]", at);
    if (!json_is_object(item)) return gw_fields_type(f, name, item, "an object with role and content");
    static const char *const refused[] = {"tool_calls", "function_call", "audio", "refusal"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!gw_fields_is_empty(gw_fields_get(item, refused[i])))
            return gw_fields_bad(f, GW_REQUEST_UNSUPPORTED, name, "%s%s.%s is not supported", f->prefix, name,
                                 refused[i]);

    snprintf(name, sizeof name, "messages[%zu].role", at);
    const json_t *role = gw_fields_get(item, "role");
    if (!role) return gw_fields_bad(f, GW_REQUEST_MISSING_FIELD, name, "%s%s is missing", f->prefix, name);
    if (!json_is_string(role)) return gw_fields_type(f, name, role, "a string");
    message->role = known_role(json_string_value(role));
    if (!message->role)
        return gw_fields_value(f, GW_REQUEST_INVALID_VALUE, name, role, "system, developer, user, assistant or tool");

    snprintf(name, sizeof name, "messages[%zu].content", at);
    const json_t *content = gw_fields_get(item, "content");
    struct gw_text text = {0};
    if (!content) return gw_fields_bad(f, GW_REQUEST_MISSING_FIELD, name, "%s%s is missing", f->prefix, name);
    if (json_is_string(content)) text = copy_text(content);
    else if (!json_is_array(content)) return gw_fields_type(f, name, content, "a string or an array of text parts");
    else if (!read_parts(f, name, content, &text)) return false;
    message->content = text.data;
    message->content_bytes = text.bytes;
    return true;
}

static bool read_messages(struct gw_fields *f, json_t *body)
{
    const json_t *messages = gw_fields_get(body, "messages");
    if (!messages)
        return gw_fields_bad(f, GW_REQUEST_MISSING_FIELD, "messages", "%smessages is missing%s", f->prefix,
                             gw_fields_get(body, "prompt") ? " (a prompt belongs to /v1/completions)" : "");
    if (!json_is_array(messages)) return gw_fields_type(f, "messages", messages, "an array");
    size_t count = json_array_size(messages);
    if (count == 0) return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "messages", "%smessages is empty", f->prefix);
    f->out->messages = gw_alloc(count, sizeof *f->out->messages);
    for (size_t i = 0; i < count; i++) {
        f->out->message_count = i + 1; /* so that gw_request_free sees a half-read one */
        if (!read_message(f, i, json_array_get(messages, i), &f->out->messages[i])) return false;
    }
    return true;
}

/* ---- prompt ---------------------------------------------------------------------------------------------------- */

static bool read_token_ids(struct gw_fields *f, const json_t *ids)
{
    size_t count = json_array_size(ids);
    f->out->prompt_tokens = gw_alloc(count, sizeof *f->out->prompt_tokens);
    f->out->prompt_token_count = count;
    for (size_t i = 0; i < count; i++) {
        char name[48];
        snprintf(name, sizeof name, "prompt[%zu]", i);
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id)) return gw_fields_type(f, name, id, "a token id");
        json_int_t value = json_integer_value(id);
        if (value < 0 || value > INT32_MAX) return gw_fields_value(f, GW_REQUEST_INVALID_VALUE, name, id, "a token id");
        f->out->prompt_tokens[i] = (int32_t)value;
    }
    return true;
}

static bool read_prompt(struct gw_fields *f, json_t *body)
{
    const json_t *prompt = gw_fields_get(body, "prompt");
    if (!prompt)
        return gw_fields_bad(f, GW_REQUEST_MISSING_FIELD, "prompt", "%sprompt is missing%s", f->prefix,
                             gw_fields_get(body, "messages") ? " (messages belong to /v1/chat/completions)" : "");
    /* A list of one prompt is that prompt; more would be more than one answer for one custom_id. */
    const json_t *first = json_array_get(prompt, 0);
    if (json_is_string(first) || json_is_array(first)) {
        if (json_array_size(prompt) > 1)
            return gw_fields_bad(f, GW_REQUEST_UNSUPPORTED, "prompt",
                                 "%sprompt holds %zu prompts: not supported, give each a line of its own", f->prefix,
                                 json_array_size(prompt));
        prompt = first;
    }
    if (json_is_string(prompt) && json_string_length(prompt) > 0) {
        f->out->prompt = copy_text(prompt);
        return true;
    }
    if (json_is_array(prompt) && json_array_size(prompt) > 0) return read_token_ids(f, prompt);
    if (json_is_string(prompt) || json_is_array(prompt))
        return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "prompt", "%sprompt is empty", f->prefix);
    return gw_fields_type(f, "prompt", prompt, "a string or an array of token ids");
}

/* ---- the line -------------------------------------------------------------------------------------------------- */

static bool read_model(struct gw_fields *f, json_t *body)
{
    const json_t *model = gw_fields_get(body, "model");
    if (!model) return true;
    if (!json_is_string(model)) return gw_fields_type(f, "model", model, "a string");
    if (strlen(json_string_value(model)) != json_string_length(model))
        return gw_fields_bad(f, GW_REQUEST_INVALID_VALUE, "model", "%smodel contains a NUL character", f->prefix);
    f->out->model = gw_strdup(json_string_value(model));
    return true;
}

static void read_line(struct gw_fields *f, json_t *line)
{
    json_t *body = line;
    /* Any of these marks OpenAI's form, so that a line of it with a mistake is judged as what it was meant to be. */
    bool envelope = json_object_get(line, "body") || json_object_get(line, "url") || json_object_get(line, "method");
    if (envelope ? !read_envelope(f, line, &body) : !read_plain(f, line)) return;
    if (!read_model(f, body)) return;
    if (f->out->endpoint == GW_ENDPOINT_CHAT ? !read_messages(f, body) : !read_prompt(f, body)) return;
    if (!gw_fields_refuse(f, body)) return;
    if (!gw_fields_read_sampling(f, body)) return;
    gw_fields_read_stops(f, body);
}

/* jansson quotes the text near an error: keep what prints, so that the message is valid UTF-8 on one line. */
static void json_failed(struct gw_request_error *bad, const json_error_t *error)
{
    char text[sizeof error->text];
    size_t length = strnlen(error->text, sizeof error->text - 1);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)error->text[i];
        text[i] = c >= 0x20 && c < 0x7f ? (char)c : '?';
    }
    text[length] = 0;
    gw_request_error_set(bad, GW_REQUEST_INVALID_JSON, NULL, "not valid JSON at byte %d: %s", error->position, text);
}

gw_err gw_request_parse(const char *line, size_t bytes, int64_t index, const struct gw_request_defaults *defaults,
                        struct gw_request *out, struct gw_request_error *bad)
{
    *out = (struct gw_request){.index = index};
    *bad = (struct gw_request_error){0};
    out->sampling = defaults ? defaults->sampling : gw_sampling_default();
    size_t limit = defaults && defaults->max_line_bytes ? defaults->max_line_bytes : GW_REQUEST_MAX_LINE_BYTES;
    if (bytes > limit) {
        gw_request_error_set(bad, GW_REQUEST_LINE_TOO_LONG, NULL, "the line is longer than %zu bytes", limit);
        return GW_OK;
    }
    if (index == 0 && bytes >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark opens the file */
        line += 3;
        bytes -= 3;
    }
    json_error_t error;
    json_t *root = json_loadb(line, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) {
        json_failed(bad, &error);
        return GW_OK;
    }
    struct gw_fields fields = {.out = out, .bad = bad, .prefix = ""};
    if (json_is_object(root)) read_line(&fields, root);
    else gw_request_error_set(bad, GW_REQUEST_INVALID_JSON, NULL, "the line is an array, not an object");
    json_decref(root);
    return GW_OK;
}
