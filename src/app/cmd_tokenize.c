/* `godwit tokenize`: text on stdin to token ids, and back.
 *
 * Two more modes serve the comparison with Hugging Face (tests/reference/tokenizer_compare.py) and are left out of --help:
 * --lines-json reads one JSON string a line, --lines-chat one JSON list of messages a line; each line gives one line of ids.
 */
#include "app/commands.h"
#include "model/chat.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Usage: godwit tokenize -m MODEL.gguf [--special] < TEXT      print the token ids of TEXT, on one line\n"
    "       godwit tokenize -m MODEL.gguf --decode < IDS          print the text that token ids stand for\n"
    "\n"
    "  -m, --model FILE   model file (GGUF) whose vocabulary to use\n"
    "  -d, --decode       read ids, separated by white space, and write their bytes\n"
    "  -s, --special      control tokens such as <|im_end|>: recognise them in the text; with --decode, write them\n"
    "  -h, --help         this text\n";

enum mode { MODE_ENCODE, MODE_DECODE, MODE_LINES_JSON, MODE_LINES_CHAT };

struct options {
    const char *model;
    enum mode mode;
    bool special;
};

/* *done when --help was asked for. */
static gw_err parse_options(int argc, char **argv, struct options *options, bool *done)
{
    enum { LINES_JSON = 256, LINES_CHAT };
    static const struct option known[] = {{"model", required_argument, NULL, 'm'},
                                          {"decode", no_argument, NULL, 'd'},
                                          {"special", no_argument, NULL, 's'},
                                          {"help", no_argument, NULL, 'h'},
                                          {"lines-json", no_argument, NULL, LINES_JSON},
                                          {"lines-chat", no_argument, NULL, LINES_CHAT},
                                          {NULL, 0, NULL, 0}};
    int option;
    *options = (struct options){.mode = MODE_ENCODE};
    *done = false;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "m:dsh", known, NULL)) != -1) {
        switch (option) {
        case 'm': options->model = optarg; break;
        case 'd': options->mode = MODE_DECODE; break;
        case 's': options->special = true; break;
        case LINES_JSON: options->mode = MODE_LINES_JSON; break;
        case LINES_CHAT: options->mode = MODE_LINES_CHAT; break;
        case 'h':
            fputs(help, stdout);
            *done = true;
            return GW_OK;
        default:
            return gw_fail(GW_ERR_USAGE, "tokenize: cannot use '%s'; see godwit tokenize --help", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return gw_fail(GW_ERR_USAGE, "tokenize: '%s' is one word too many; text comes on stdin", argv[optind]);
    if (!options->model) return gw_fail(GW_ERR_USAGE, "tokenize: -m MODEL.gguf is missing; see godwit tokenize --help");
    return GW_OK;
}

static gw_err read_stdin(struct gw_buf *input)
{
    for (;;) {
        gw_buf_reserve(input, 1 << 16);
        ssize_t got = read(STDIN_FILENO, input->data + input->bytes, input->capacity - input->bytes);
        if (got == 0) return GW_OK;
        if (got < 0 && errno != EINTR) return gw_fail(GW_ERR_IO, "cannot read stdin: %s", strerror(errno));
        if (got > 0) input->bytes += (size_t)got;
    }
}

static void print_ids(const struct gw_tokens *tokens)
{
    for (size_t i = 0; i < tokens->count; i++) printf(i ? " %d" : "%d", tokens->ids[i]);
    putchar('\n');
}

static gw_err encode(const struct gw_tokenizer *tokenizer, const char *text, size_t bytes, bool special)
{
    struct gw_tokens tokens = {0};
    gw_err rc = gw_tokenizer_encode(tokenizer, text, bytes, special, &tokens);
    if (rc == GW_OK) print_ids(&tokens);
    gw_tokens_free(&tokens);
    return rc;
}

static gw_err decode(const struct gw_tokenizer *tokenizer, const char *ids, bool special)
{
    static const char blanks[] = " \t\r\n,";
    for (const char *at = ids + strspn(ids, blanks); *at; at += strspn(at, blanks)) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        size_t bytes;
        if (end == at || errno || (*end && !strchr(blanks, *end)))
            return gw_fail(GW_ERR_INPUT, "'%.20s' is not a token id; give whole numbers separated by blanks", at);
        const char *data = id < 0 || id > INT32_MAX ? NULL : gw_tokenizer_bytes(tokenizer, (int32_t)id, &bytes);
        if (!data)
            return gw_fail(GW_ERR_INPUT, "token id %ld is not in the vocabulary (0 to %d)", id,
                           gw_tokenizer_vocab(tokenizer) - 1);
        if (special || !gw_tokenizer_is_special(tokenizer, (int32_t)id)) fwrite(data, 1, bytes, stdout);
        at = end;
    }
    return GW_OK;
}

static gw_err encode_chat(const struct gw_chat *chat, const json_t *list)
{
    gw_err rc = GW_OK;
    size_t count = json_array_size(list);
    struct gw_message *messages = gw_alloc(count, sizeof *messages);
    struct gw_tokens tokens = {0};
    for (size_t i = 0; i < count; i++) {
        const json_t *content = json_object_get(json_array_get(list, i), "content");
        const char *role = json_string_value(json_object_get(json_array_get(list, i), "role"));
        if (!role || !json_is_string(content)) FAIL(GW_ERR_INPUT, "message %zu lacks a role or content", i);
        messages[i] = (struct gw_message){role, json_string_value(content), json_string_length(content)};
    }
    TRY(gw_chat_encode(chat, messages, count, &tokens));
    print_ids(&tokens);
out:
    gw_tokens_free(&tokens);
    free(messages);
    return rc;
}

static gw_err encode_lines(const struct gw_tokenizer *tokenizer, const struct gw_chat *chat, const struct gw_buf *input,
                           bool special)
{
    const char *at = (const char *)input->data, *end = at + input->bytes;
    for (size_t line = 1; at < end; line++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t bytes = (size_t)((newline ? newline : end) - at);
        json_error_t error;
        json_t *value = json_loadb(at, bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        gw_err rc;
        if (!(chat ? json_is_array(value) : json_is_string(value)))
            rc = gw_fail(GW_ERR_INPUT, "line %zu of stdin is no JSON %s: %s", line, chat ? "array" : "string",
                         value ? "another type" : error.text);
        else
            rc = chat ? encode_chat(chat, value)
                      : encode(tokenizer, json_string_value(value), json_string_length(value), special);
        json_decref(value);
        if (rc != GW_OK) return rc;
        at += bytes + (newline != NULL);
    }
    return GW_OK;
}

gw_err gw_cmd_tokenize(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct options options;
    struct gw_gguf *gguf = NULL;
    struct gw_tokenizer *tokenizer = NULL;
    struct gw_chat *chat = NULL;
    struct gw_buf input = {0};
    bool done;
    TRY(parse_options(argc, argv, &options, &done));
    if (done) return GW_OK;
    TRY(gw_gguf_open(options.model, &gguf));
    TRY(gw_tokenizer_create(gguf, &tokenizer));
    if (options.mode == MODE_LINES_CHAT) TRY(gw_chat_create(gguf, tokenizer, NULL, &chat));
    TRY(read_stdin(&input));
    switch (options.mode) {
    case MODE_ENCODE: TRY(encode(tokenizer, (char *)input.data, input.bytes, options.special)); break;
    case MODE_DECODE:
        gw_buf_add(&input, "", 1);
        TRY(decode(tokenizer, (char *)input.data, options.special));
        break;
    case MODE_LINES_JSON:
    case MODE_LINES_CHAT: TRY(encode_lines(tokenizer, chat, &input, options.special)); break;
    }
    if (fflush(stdout) != 0) FAIL(GW_ERR_IO, "cannot write to stdout: %s", strerror(errno));
out:
    gw_buf_free(&input);
    gw_chat_destroy(chat);
    gw_tokenizer_destroy(tokenizer);
    gw_gguf_close(gguf);
    return rc;
}
