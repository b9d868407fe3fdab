/* Chat templates by family. See chat.h.
 *
 * A model file carries its template as a Jinja program. godwit knows the three shapes that the supported models use and reads
 * the template as text: which markers it has, the default system prompt that it spells out, whether it starts with BOS. What a
 * family cannot express (contents that are cut or rewritten, thinking modes) makes the template unknown rather than nearly right.
 *
 * Rendering goes straight to ids: a marker is looked up once and added by id; all text between two markers is encoded as one
 * run without control tokens. That gives what tokenizing the rendered string gives, except that a marker spelled inside a
 * message stays text.
 */
#include "model/chat.h"

#include <stdlib.h>
#include <string.h>

enum family { FAMILY_NONE, FAMILY_CHATML, FAMILY_LLAMA3, FAMILY_PLAIN };
static const char *const family_names[] = {"none", "chatml", "llama3", "plain"};

struct gw_chat {
    const struct gw_tokenizer *tokenizer;
    enum family family;
    char *path;           /* of the model file, for messages */
    char *default_system; /* NULL: the template adds none */
    char *preamble;       /* Llama 3.1 and later: dates that open the system turn; else NULL */
    bool bos, trims, tools;
    int32_t turn_start, turn_end;     /* chatml: <|im_start|>, <|im_end|>; llama3: turn_end is <|eot_id|> */
    int32_t header_start, header_end; /* llama3 */
};

/* ---- reading the template ---- */

static bool has(const char *text, const char *what)
{
    return strstr(text, what) != NULL;
}

/* Reads what follows `at` up to `end_mark`, as literal text of a string quoted by `quote`, or of the template itself when
 * `quote` is neither ' nor ". NULL when the literal ends first, that is when something is inserted there. */
static char *read_literal(const char *at, char quote, const char *end_mark)
{
    struct gw_buf text = {0};
    size_t mark_bytes = strlen(end_mark);
    bool quoted = quote == '\'' || quote == '"';
    for (; *at && strncmp(at, end_mark, mark_bytes) != 0; at++) {
        char c = *at;
        if (quoted ? c == quote : c == '{' && (at[1] == '{' || at[1] == '%')) break;
        if (quoted && c == '\\' && at[1]) {
            at++;
            c = *at == 'n' ? '\n' : *at == 't' ? '\t' : *at == 'r' ? '\r' : *at;
        }
        gw_buf_add(&text, &c, 1);
    }
    char *literal = strncmp(at, end_mark, mark_bytes) == 0 ? gw_strndup((char *)text.data, text.bytes) : NULL;
    gw_buf_free(&text);
    return literal;
}

/* Skips a line break as a template spells it, raw or escaped; NULL if there is none. */
static const char *skip_newline(const char *at)
{
    if (*at == '\n') return at + 1;
    if (at[0] == '\\' && at[1] == 'n') return at + 2;
    return NULL;
}

/* The system prompt that a ChatML template spells out whole, as in '<|im_start|>system\nYou are ...<|im_end|>'. */
static char *find_default_system(const char *template)
{
    static const char opening[] = "<|im_start|>system";
    for (const char *at = template; (at = strstr(at, opening)); at++) {
        char quote = at > template ? at[-1] : '\n';
        const char *text = skip_newline(at + strlen(opening));
        char *literal = text ? read_literal(text, quote, "<|im_end|>") : NULL;
        if (literal) return literal;
    }
    return NULL;
}

/* The lines about dates that Llama 3.1 and later put before every system prompt. Where the template would ask the clock it has a
 * constant to fall back to; godwit takes that, since a job's answers must not depend on the day it runs. */
static char *find_preamble(const char *template)
{
    static const char opening[] = "Cutting Knowledge Date: ", setting[] = "date_string = \"";
    const char *at = strstr(template, opening);
    if (!at) return NULL;
    size_t cutoff_bytes = strcspn(at, "\\\n\"'");
    const char *date = strstr(template, setting);
    date = date ? date + strlen(setting) : "26 Jul 2024\"";
    return gw_asprintf("%.*s\nToday Date: %.*s\n\n", (int)cutoff_bytes, at, (int)strcspn(date, "\""), date);
}

/* ChatML opens the answer by the literal <|im_start|>assistant and a line break. */
static bool opens_answer(const char *template)
{
    static const char opening[] = "<|im_start|>assistant";
    for (const char *at = template; (at = strstr(at, opening)); at++)
        if (skip_newline(at + strlen(opening))) return true;
    return false;
}

static enum family recognise(const char *template)
{
    if (has(template, "<|start_header_id|>") && has(template, "<|end_header_id|>") && has(template, "<|eot_id|>"))
        return FAMILY_LLAMA3;
    bool rewrites = has(template, "trim") || has(template, "strip(") || has(template, "split(") ||
                    has(template, "<think>");
    if (has(template, "<|im_start|>") && has(template, "<|im_end|>") && opens_answer(template) && !rewrites)
        return FAMILY_CHATML;
    return FAMILY_NONE;
}

/* ---- life ---- */

static gw_err find_marker(const struct gw_chat *chat, const char *spelling, int32_t *id)
{
    *id = gw_tokenizer_find(chat->tokenizer, spelling);
    if (*id >= 0) return GW_OK;
    return gw_fail(GW_ERR_UNSUPPORTED,
                   "%s: chat template %s needs the token %s, which the vocabulary lacks; "
                   "try --chat-template plain",
                   chat->path, family_names[chat->family], spelling);
}

static gw_err set_markers(struct gw_chat *chat)
{
    gw_err rc = GW_OK;
    if (chat->family == FAMILY_CHATML) {
        TRY(find_marker(chat, "<|im_start|>", &chat->turn_start));
        TRY(find_marker(chat, "<|im_end|>", &chat->turn_end));
    } else if (chat->family == FAMILY_LLAMA3) {
        TRY(find_marker(chat, "<|start_header_id|>", &chat->header_start));
        TRY(find_marker(chat, "<|end_header_id|>", &chat->header_end));
        TRY(find_marker(chat, "<|eot_id|>", &chat->turn_end));
    }
out:
    return rc;
}

static gw_err choose_family(struct gw_chat *chat, const char *template, const char *forced)
{
    if (!forced) {
        chat->family = *template ? recognise(template) : FAMILY_NONE;
        if (!*template || chat->family != FAMILY_NONE) return GW_OK;
        return gw_fail(GW_ERR_UNSUPPORTED,
                       "%s: its chat template is of no known family (chatml, llama3, plain); "
                       "choose the nearest with --chat-template NAME",
                       chat->path);
    }
    for (chat->family = FAMILY_CHATML; chat->family <= FAMILY_PLAIN; chat->family++)
        if (strcmp(forced, family_names[chat->family]) == 0) return GW_OK;
    return gw_fail(GW_ERR_USAGE, "unknown chat template '%s'; known are chatml, llama3 and plain", forced);
}

gw_err gw_chat_create(const struct gw_gguf *gguf, const struct gw_tokenizer *tokenizer, const char *forced,
                      struct gw_chat **out_chat)
{
    gw_err rc = GW_OK;
    struct gw_chat *chat = gw_alloc(1, sizeof *chat);
    struct gw_str text = {"", 0};
    *out_chat = NULL;
    chat->tokenizer = tokenizer;
    chat->path = gw_strdup(gw_gguf_path(gguf));
    (void)gw_gguf_get_str(gguf, "tokenizer.chat_template", &text);
    char *template = gw_strndup(text.data, text.bytes);
    TRY(choose_family(chat, template, forced));
    TRY(set_markers(chat));
    if (chat->family == FAMILY_CHATML) {
        chat->default_system = find_default_system(template);
        chat->tools = has(template, "<tool_response>");
    } else if (chat->family == FAMILY_LLAMA3) {
        chat->preamble = find_preamble(template);
        chat->trims = true;
    }
    bool by_template = *template && chat->family != FAMILY_PLAIN;
    chat->bos = by_template ? has(template, "bos_token") : gw_tokenizer_adds_bos(tokenizer);
    if (gw_tokenizer_bos(tokenizer) < 0) chat->bos = false;
    *out_chat = chat;
    chat = NULL;
out:
    free(template);
    gw_chat_destroy(chat);
    return rc;
}

void gw_chat_destroy(struct gw_chat *chat)
{
    if (!chat) return;
    free(chat->path);
    free(chat->default_system);
    free(chat->preamble);
    free(chat);
}

const char *gw_chat_family(const struct gw_chat *chat)
{
    return family_names[chat->family];
}

/* ---- rendering ---- */

struct render {
    const struct gw_chat *chat;
    struct gw_buf text; /* since the last marker */
    struct gw_tokens *out;
};

static gw_err flush(struct render *render)
{
    gw_err rc = gw_tokenizer_encode(render->chat->tokenizer, (char *)render->text.data, render->text.bytes, false,
                                    render->out);
    gw_buf_clear(&render->text);
    return rc;
}

static gw_err add_marker(struct render *render, int32_t id)
{
    gw_err rc = flush(render);
    if (rc == GW_OK) gw_tokens_add(render->out, id);
    return rc;
}

/* Length of the white space at `text` as Python's str.strip() sees it, which Jinja's trim is; 0 if none. */
static size_t space_bytes(const uint8_t *text, size_t bytes)
{
    if (bytes && (*text == ' ' || (*text >= 0x09 && *text <= 0x0d) || (*text >= 0x1c && *text <= 0x1f))) return 1;
    if (bytes >= 2 && text[0] == 0xc2 && (text[1] == 0x85 || text[1] == 0xa0)) return 2;
    if (bytes < 3) return 0;
    unsigned code = (unsigned)text[0] << 16 | (unsigned)text[1] << 8 | text[2]; /* as UTF-8 spells it */
    bool space = code == 0xe19a80 /* U+1680 */ || (code >= 0xe28080 && code <= 0xe2808a) /* U+2000..200A */ ||
                 code == 0xe280a8 || code == 0xe280a9 /* U+2028, 2029 */ || code == 0xe280af /* U+202F */ ||
                 code == 0xe2819f /* U+205F */ || code == 0xe38080 /* U+3000 */;
    return space ? 3 : 0;
}

static struct gw_str trim(struct gw_str text)
{
    size_t space;
    while ((space = space_bytes((const uint8_t *)text.data, text.bytes))) {
        text.data += space;
        text.bytes -= space;
    }
    size_t length = 1; /* of the candidate at the end */
    while (length <= 3 && length <= text.bytes) {
        if (space_bytes((const uint8_t *)text.data + text.bytes - length, length) == length) {
            text.bytes -= length;
            length = 1;
        } else {
            length++;
        }
    }
    return text;
}

static bool is_role(const struct gw_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static bool is_system(const struct gw_message *message)
{
    return is_role(message, "system") || is_role(message, "developer");
}

static gw_err fail_role(const struct gw_chat *chat, const char *role)
{
    return gw_fail(GW_ERR_INPUT, "role '%.40s' is not known to the chat template %s; use system, user%s or assistant",
                   role, family_names[chat->family], chat->tools ? ", tool" : "");
}

static gw_err chatml_turn(struct render *render, const char *role, const char *content, size_t bytes)
{
    gw_err rc = GW_OK;
    TRY(add_marker(render, render->chat->turn_start));
    gw_buf_add_text(&render->text, role);
    gw_buf_add_text(&render->text, "\n");
    gw_buf_add(&render->text, content, bytes);
    TRY(add_marker(render, render->chat->turn_end));
    gw_buf_add_text(&render->text, "\n");
out:
    return rc;
}

/* Qwen: the answers of tools, one after the other, share one user turn. */
static gw_err chatml_tool(struct render *render, const struct gw_message *message, bool first, bool last)
{
    gw_err rc = GW_OK;
    if (first) {
        TRY(add_marker(render, render->chat->turn_start));
        gw_buf_add_text(&render->text, "user");
    }
    gw_buf_add_text(&render->text, "\n<tool_response>\n");
    gw_buf_add(&render->text, message->content, message->content_bytes);
    gw_buf_add_text(&render->text, "\n</tool_response>");
    if (last) {
        TRY(add_marker(render, render->chat->turn_end));
        gw_buf_add_text(&render->text, "\n");
    }
out:
    return rc;
}

static gw_err render_chatml(struct render *render, const struct gw_message *messages, size_t count)
{
    const struct gw_chat *chat = render->chat;
    gw_err rc = GW_OK;
    if (chat->default_system && !is_system(&messages[0]))
        TRY(chatml_turn(render, "system", chat->default_system, strlen(chat->default_system)));
    for (size_t i = 0; i < count; i++) {
        const struct gw_message *message = &messages[i];
        if (is_role(message, "tool") && chat->tools)
            TRY(chatml_tool(render, message, i == 0 || !is_role(message - 1, "tool"),
                            i + 1 == count || !is_role(message + 1, "tool")));
        else if (is_system(message) || is_role(message, "user") || is_role(message, "assistant"))
            TRY(chatml_turn(render, is_system(message) ? "system" : message->role, message->content,
                            message->content_bytes));
        else TRY(fail_role(chat, message->role));
    }
    TRY(add_marker(render, chat->turn_start));
    gw_buf_add_text(&render->text, "assistant\n");
out:
    return rc;
}

static gw_err llama3_header(struct render *render, const char *role)
{
    gw_err rc = GW_OK;
    TRY(add_marker(render, render->chat->header_start));
    gw_buf_add_text(&render->text, role);
    TRY(add_marker(render, render->chat->header_end));
    gw_buf_add_text(&render->text, "\n\n");
out:
    return rc;
}

static gw_err render_llama3(struct render *render, const struct gw_message *messages, size_t count)
{
    const struct gw_chat *chat = render->chat;
    gw_err rc = GW_OK;
    if (chat->preamble && !is_system(&messages[0])) {
        TRY(llama3_header(render, "system"));
        gw_buf_add_text(&render->text, chat->preamble);
        TRY(add_marker(render, chat->turn_end));
    }
    for (size_t i = 0; i < count; i++) {
        const struct gw_message *message = &messages[i];
        if (!is_system(message) && !is_role(message, "user") && !is_role(message, "assistant"))
            TRY(fail_role(chat, message->role));
        struct gw_str content = {message->content, message->content_bytes};
        if (chat->trims) content = trim(content);
        TRY(llama3_header(render, is_system(message) ? "system" : message->role));
        if (i == 0 && is_system(message) && chat->preamble) gw_buf_add_text(&render->text, chat->preamble);
        gw_buf_add(&render->text, content.data, content.bytes);
        TRY(add_marker(render, chat->turn_end));
    }
    TRY(llama3_header(render, "assistant"));
out:
    return rc;
}

static gw_err render_plain(struct render *render, const struct gw_message *messages, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct gw_message *message = &messages[i];
        bool user = is_role(message, "user"), assistant = is_role(message, "assistant");
        if (!user && !assistant && !is_system(message)) return fail_role(render->chat, message->role);
        gw_buf_add_text(&render->text, user ? "User: " : assistant ? "Assistant: " : "");
        gw_buf_add(&render->text, message->content, message->content_bytes);
        gw_buf_add_text(&render->text, user || assistant ? "\n" : "\n\n");
    }
    gw_buf_add_text(&render->text, "Assistant:");
    return GW_OK;
}

gw_err gw_chat_encode(const struct gw_chat *chat, const struct gw_message *messages, size_t count,
                      struct gw_tokens *out)
{
    gw_err rc = GW_OK;
    struct render render = {.chat = chat, .out = out};
    if (chat->family == FAMILY_NONE)
        FAIL(GW_ERR_UNSUPPORTED,
             "%s has no chat template; send prompts to /v1/completions, or choose one with --chat-template NAME",
             chat->path);
    if (!count) FAIL(GW_ERR_INPUT, "messages is empty; a chat needs at least one message");
    if (chat->bos) gw_tokens_add(out, gw_tokenizer_bos(chat->tokenizer));
    if (chat->family == FAMILY_CHATML) TRY(render_chatml(&render, messages, count));
    else if (chat->family == FAMILY_LLAMA3) TRY(render_llama3(&render, messages, count));
    else TRY(render_plain(&render, messages, count));
    TRY(flush(&render));
out:
    gw_buf_free(&render.text);
    return rc;
}
