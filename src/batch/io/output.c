/* See output.h. */
#include "batch/io/output.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "batch/io/json.h"
#include "batch/io/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOWEST_LOGPROB -9999.0f

enum { ANSWERS, ERRORS, FILES };
enum { LOCK_TRIES = 100 };

struct stream {
    char *path;
    int fd;         /* opened for append */
    uint64_t whole; /* the file's size: always whole lines */
    bool dirty;     /* appended since the last sync */
};

struct gw_output {
    struct stream streams[FILES];
    struct gw_buf line; /* scratch */
};

/* ---- formatting ------------------------------------------------------------------------------------------------ */

static void add_text(struct gw_buf *buf, const char *text)
{
    gw_buf_add_text(buf, text);
}

static void add_string(struct gw_buf *buf, const char *text)
{
    gw_json_add_string(buf, text, strlen(text));
}

/* Ids are hashes of custom_id, each kind with a seed of its own: nothing random, nothing that a second run would
 * change. */
static void add_hash(struct gw_buf *buf, const char *custom_id, uint64_t seed)
{
    char hex[17];
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)gw_hash64(custom_id, strlen(custom_id), seed));
    gw_buf_add_text(buf, hex);
}

static float clamp(float logprob)
{
    return logprob >= LOWEST_LOGPROB ? logprob : LOWEST_LOGPROB; /* NaN too */
}

/* A token as a string: as it is when it is UTF-8, else "bytes:\xe2\x82" (OpenAI's way with parts of a character). So too with a NUL
 * in it: such names become object keys, and common JSON parsers refuse a NUL there. */
static void token_name(const struct gw_token_logprob *token, struct gw_buf *name)
{
    gw_buf_clear(name);
    for (size_t at = 0; at < token->bytes;) {
        int bad, length = gw_json_utf8_length((const unsigned char *)token->text + at, token->bytes - at, &bad);
        if (!length || !token->text[at]) goto raw;
        at += (size_t)length;
    }
    gw_buf_add(name, token->text, token->bytes);
    return;
raw:
    gw_buf_add_text(name, "bytes:");
    for (size_t i = 0; i < token->bytes; i++) {
        char hex[8];
        snprintf(hex, sizeof hex, "\\x%02x", (unsigned char)token->text[i]);
        gw_buf_add_text(name, hex);
    }
}

static void add_chat_token(struct gw_buf *buf, const struct gw_token_logprob *token)
{
    add_text(buf, "{\"token\":");
    gw_json_add_string(buf, token->text, token->bytes);
    add_text(buf, ",\"logprob\":");
    gw_json_add_float(buf, clamp(token->logprob));
    add_text(buf, ",\"bytes\":[");
    for (size_t i = 0; i < token->bytes; i++) {
        if (i) add_text(buf, ",");
        gw_json_add_integer(buf, (unsigned char)token->text[i]);
    }
    add_text(buf, "]");
}

static void add_chat_logprobs(struct gw_buf *buf, const struct gw_completion *completion)
{
    add_text(buf, "{\"content\":[");
    for (size_t i = 0; i < completion->logprob_count; i++) {
        const struct gw_position_logprobs *position = &completion->logprobs[i];
        if (i) add_text(buf, ",");
        add_chat_token(buf, &position->chosen);
        add_text(buf, ",\"top_logprobs\":[");
        for (int j = 0; j < position->top_count; j++) {
            if (j) add_text(buf, ",");
            add_chat_token(buf, &position->top[j]);
            add_text(buf, "}");
        }
        add_text(buf, "]}");
    }
    add_text(buf, "],\"refusal\":null}");
}

/* One position's alternatives as an object by token; two tokens of one spelling keep the likelier (the first). */
static void add_top_object(struct gw_buf *buf, const struct gw_position_logprobs *position)
{
    struct gw_buf name = {0}, earlier = {0};
    bool any = false;
    add_text(buf, "{");
    for (int j = 0; j < position->top_count; j++) {
        bool repeated = false;
        token_name(&position->top[j], &name);
        for (int k = 0; k < j && !repeated; k++) {
            token_name(&position->top[k], &earlier);
            repeated = name.bytes == earlier.bytes && (!name.bytes || memcmp(name.data, earlier.data, name.bytes) == 0);
        }
        if (repeated) continue;
        if (any) add_text(buf, ",");
        any = true;
        gw_json_add_string(buf, (char *)name.data, name.bytes);
        add_text(buf, ":");
        gw_json_add_float(buf, clamp(position->top[j].logprob));
    }
    add_text(buf, "}");
    gw_buf_free(&name);
    gw_buf_free(&earlier);
}

/* Characters that begin in `text`: offsets stay right when a character is spread over several tokens. */
static int64_t characters(const char *text, size_t bytes)
{
    int64_t count = 0;
    for (size_t i = 0; i < bytes; i++) count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

static void add_completion_logprobs(struct gw_buf *buf, const struct gw_completion *completion)
{
    struct gw_buf name = {0};
    int64_t offset = 0;
    add_text(buf, "{\"text_offset\":[");
    for (size_t i = 0; i < completion->logprob_count; i++) {
        const struct gw_token_logprob *chosen = &completion->logprobs[i].chosen;
        if (i) add_text(buf, ",");
        gw_json_add_integer(buf, offset);
        offset += characters(chosen->text, chosen->bytes);
    }
    add_text(buf, "],\"token_logprobs\":[");
    for (size_t i = 0; i < completion->logprob_count; i++) {
        if (i) add_text(buf, ",");
        gw_json_add_float(buf, clamp(completion->logprobs[i].chosen.logprob));
    }
    add_text(buf, "],\"tokens\":[");
    for (size_t i = 0; i < completion->logprob_count; i++) {
        if (i) add_text(buf, ",");
        token_name(&completion->logprobs[i].chosen, &name);
        gw_json_add_string(buf, (char *)name.data, name.bytes);
    }
    add_text(buf, "],\"top_logprobs\":[");
    for (size_t i = 0; i < completion->logprob_count; i++) {
        if (i) add_text(buf, ",");
        add_top_object(buf, &completion->logprobs[i]);
    }
    add_text(buf, "]}");
    gw_buf_free(&name);
}

static void add_choice(struct gw_buf *buf, const struct gw_completion *completion)
{
    bool chat = completion->endpoint == GW_ENDPOINT_CHAT;
    add_text(buf, chat ? "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":" : "{\"index\":0,\"text\":");
    gw_json_add_string(buf, completion->text, completion->text_bytes);
    add_text(buf, chat ? "},\"logprobs\":" : ",\"logprobs\":");
    if (!completion->logprobs) add_text(buf, "null");
    else if (chat) add_chat_logprobs(buf, completion);
    else add_completion_logprobs(buf, completion);
    add_text(buf, ",\"finish_reason\":");
    add_string(buf, completion->finish == GW_FINISH_STOP ? "stop" : "length");
    add_text(buf, "}");
}

void gw_output_format_completion(const struct gw_completion *completion, struct gw_buf *line)
{
    bool chat = completion->endpoint == GW_ENDPOINT_CHAT;
    add_text(line, "{\"id\":\"batch_req_");
    add_hash(line, completion->custom_id, 0);
    add_text(line, "\",\"custom_id\":");
    add_string(line, completion->custom_id);
    add_text(line, ",\"response\":{\"status_code\":200,\"request_id\":\"");
    add_hash(line, completion->custom_id, 1);
    add_text(line, chat ? "\",\"body\":{\"id\":\"chatcmpl-" : "\",\"body\":{\"id\":\"cmpl-");
    add_hash(line, completion->custom_id, 2);
    add_text(line, chat ? "\",\"object\":\"chat.completion\",\"created\":"
                        : "\",\"object\":\"text_completion\",\"created\":");
    gw_json_add_integer(line, completion->created);
    add_text(line, ",\"model\":");
    add_string(line, completion->model);
    add_text(line, ",\"choices\":[");
    add_choice(line, completion);
    add_text(line, "],\"usage\":{\"prompt_tokens\":");
    gw_json_add_integer(line, completion->prompt_tokens);
    add_text(line, ",\"completion_tokens\":");
    gw_json_add_integer(line, completion->completion_tokens);
    add_text(line, ",\"total_tokens\":");
    gw_json_add_integer(line, completion->prompt_tokens + completion->completion_tokens);
    add_text(line, "}}},\"error\":null}\n");
}

void gw_output_format_error(const char *custom_id, int64_t index, const struct gw_request_error *bad,
                            struct gw_buf *line)
{
    char prefix[40], message[sizeof prefix + 2 + sizeof bad->message];
    snprintf(prefix, sizeof prefix, "line %lld", (long long)index + 1);
    snprintf(message, sizeof message, "%s: %s", prefix, bad->message);
    add_text(line, "{\"id\":\"batch_req_");
    add_hash(line, custom_id ? custom_id : prefix, 0);
    add_text(line, "\",\"custom_id\":");
    if (custom_id) add_string(line, custom_id);
    else add_text(line, "null");
    add_text(line, ",\"response\":null,\"error\":{\"code\":");
    add_string(line, bad->code);
    add_text(line, ",\"message\":");
    add_string(line, message);
    add_text(line, ",\"param\":");
    if (*bad->param) add_string(line, bad->param);
    else add_text(line, "null");
    add_text(line, ",\"line\":");
    gw_json_add_integer(line, index + 1);
    add_text(line, "}}\n");
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static gw_err cut(struct stream *stream, uint64_t size)
{
    if (ftruncate(stream->fd, (off_t)size))
        return gw_fail(GW_ERR_IO, "cannot cut %s back to its last whole line: %s", stream->path, strerror(errno));
    stream->whole = size;
    return GW_OK;
}

/* Finds the end of the last whole line, from the end backwards, and cuts what is behind it. */
static gw_err cut_torn(struct stream *stream)
{
    struct stat st;
    if (fstat(stream->fd, &st)) return gw_fail(GW_ERR_IO, "cannot stat %s: %s", stream->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return gw_fail(GW_ERR_IO, "%s is not a regular file", stream->path);
    uint64_t size = (uint64_t)st.st_size, end = size;
    char block[4096];
    while (end > 0) {
        size_t bytes = end < sizeof block ? (size_t)end : sizeof block;
        ssize_t got = pread(stream->fd, block, bytes, (off_t)(end - bytes));
        if (got < 0 && errno == EINTR) continue;
        if (got != (ssize_t)bytes)
            return gw_fail(GW_ERR_IO, "cannot read %s: %s", stream->path, got < 0 ? strerror(errno) : "it shrank");
        while (bytes && block[bytes - 1] != '\n') {
            bytes--;
            end--;
        }
        if (bytes) break;
    }
    stream->whole = end;
    if (end == size) return GW_OK;
    gw_warn("%s: cut %llu bytes of an unfinished last line; its request is answered again", stream->path,
            (unsigned long long)(size - end));
    return cut(stream, end);
}

/* The names of new files must survive a crash as well as their contents. */
static gw_err sync_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gw_err rc = GW_OK;
    if (fd < 0 || fsync(fd)) rc = gw_fail(GW_ERR_IO, "cannot sync directory %s: %s", dir, strerror(errno));
    if (fd >= 0) close(fd);
    return rc;
}

/* Copies what is in `from` to the new file `to`, within the file system where it can (a shared one may not move a byte). */
static gw_err copy_contents(int from, int to, const char *path)
{
    char block[1 << 16];
    off_t at = 0;
    for (;;) {
        ssize_t copied = copy_file_range(from, &at, to, NULL, (size_t)1 << 30, 0);
        if (copied == 0) return GW_OK;
        if (copied < 0 && errno != EINTR) break; /* not on this file system */
    }
    for (;;) {
        ssize_t got = pread(from, block, sizeof block, at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return gw_fail(GW_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) return GW_OK;
        gw_err rc = gw_write_all(to, path, block, (size_t)got);
        if (rc != GW_OK) return rc;
        at += got;
    }
}

/* Puts a new file with the old one's contents in its place. */
static gw_err replace_file(const char *path)
{
    gw_err rc = GW_OK;
    struct stat st;
    char *fresh = gw_asprintf("%s.fenced", path);
    int to = -1, from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0 && errno == ENOENT) goto out;
    if (from < 0 || fstat(from, &st)) FAIL(GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (unlink(fresh) && errno != ENOENT) FAIL(GW_ERR_IO, "cannot remove %s: %s", fresh, strerror(errno));
    to = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, st.st_mode & 0777);
    if (to < 0) FAIL(GW_ERR_IO, "cannot create %s: %s", fresh, strerror(errno));
    TRY(copy_contents(from, to, fresh));
    if (fsync(to)) FAIL(GW_ERR_IO, "cannot sync %s: %s", fresh, strerror(errno));
    if (rename(fresh, path)) FAIL(GW_ERR_IO, "cannot replace %s: %s", path, strerror(errno));
out:
    if (to >= 0) close(to);
    if (from >= 0) close(from);
    if (rc != GW_OK) unlink(fresh);
    free(fresh);
    return rc;
}

static gw_err open_stream(struct stream *stream, bool lock)
{
    gw_err rc = GW_OK;
    stream->fd = open(stream->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (stream->fd < 0) FAIL(GW_ERR_IO, "cannot open %s: %s", stream->path, strerror(errno));
    /* Some parallel file systems have no locks: then the caller's own care must do. */
    for (int tries = 0; lock && flock(stream->fd, LOCK_EX | LOCK_NB); tries++) {
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) break;
        if (tries < LOCK_TRIES) { /* the last leader may be on its way out */
            usleep(10000);
            continue;
        }
        FAIL(GW_ERR_IO, "%s is being written by another godwit; wait for it to end, or stop it", stream->path);
    }
    TRY(cut_torn(stream));
out:
    return rc;
}

static gw_err open_all(const char *dir, bool fence, struct gw_output **out)
{
    gw_err rc = GW_OK;
    static const char *const names[FILES] = {"output.jsonl", "errors.jsonl"};
    struct gw_output *output = gw_alloc(1, sizeof *output);
    *out = NULL;
    for (int i = 0; i < FILES; i++) output->streams[i].fd = -1;
    for (int i = 0; i < FILES; i++) {
        output->streams[i].path = gw_asprintf("%s/%s", dir, names[i]);
        if (fence) TRY(replace_file(output->streams[i].path));
        TRY(open_stream(&output->streams[i], i == ANSWERS));
    }
    TRY(sync_dir(dir));
    *out = output;
    output = NULL;
out:
    if (output) {
        for (int i = 0; i < FILES; i++) {
            if (output->streams[i].fd >= 0) close(output->streams[i].fd);
            free(output->streams[i].path);
        }
        free(output);
    }
    return rc;
}

gw_err gw_output_open(const char *dir, struct gw_output **output)
{
    return open_all(dir, false, output);
}

gw_err gw_output_open_fenced(const char *dir, struct gw_output **output)
{
    return open_all(dir, true, output);
}

static gw_err recover_stream(struct stream *stream, bool errors, gw_output_found found, void *context)
{
    gw_err rc = GW_OK;
    struct gw_lines lines;
    struct gw_line_identity identity = {0};
    gw_lines_init(&lines, stream->fd, stream->path);
    for (;;) {
        const char *line;
        size_t bytes;
        bool whole;
        TRY(gw_lines_next(&lines, &line, &bytes, &whole));
        if (!line) break;
        if (!whole || !gw_lines_identify(line, bytes, errors, &identity)) {
            gw_warn("%s: line %lld is damaged; cut from there on (%llu bytes), those requests are answered again",
                    stream->path, (long long)lines.number, (unsigned long long)(stream->whole - lines.at));
            TRY(cut(stream, lines.at));
            break;
        }
        TRY(found(context, identity.has_id ? (char *)identity.id.data : NULL, identity.index));
    }
out:
    gw_lines_close(&lines);
    gw_buf_free(&identity.id);
    return rc;
}

gw_err gw_output_recover(struct gw_output *output, gw_output_found found, void *context)
{
    gw_err rc = GW_OK;
    for (int i = 0; i < FILES; i++) TRY(recover_stream(&output->streams[i], i == ERRORS, found, context));
out:
    return rc;
}

static gw_err append(struct stream *stream, const struct gw_buf *line)
{
    GW_ASSERT(line->bytes && line->data[line->bytes - 1] == '\n');
    stream->dirty = true;
    gw_err rc = gw_write_all(stream->fd, stream->path, line->data, line->bytes);
    if (rc == GW_OK) {
        stream->whole += line->bytes;
        return GW_OK;
    }
    /* What of the line got through must not stay; the write's own error is the one to tell. If this fails too, the next
     * open cuts. */
    if (ftruncate(stream->fd, (off_t)stream->whole))
        gw_warn("cannot cut %s back to its last whole line: %s", stream->path, strerror(errno));
    return rc;
}

gw_err gw_output_add_completion(struct gw_output *output, const struct gw_completion *completion)
{
    gw_buf_clear(&output->line);
    gw_output_format_completion(completion, &output->line);
    return append(&output->streams[ANSWERS], &output->line);
}

gw_err gw_output_add_error(struct gw_output *output, const char *custom_id, int64_t index,
                           const struct gw_request_error *bad)
{
    gw_buf_clear(&output->line);
    gw_output_format_error(custom_id, index, bad, &output->line);
    return append(&output->streams[ERRORS], &output->line);
}

gw_err gw_output_add_line(struct gw_output *output, const struct gw_buf *line)
{
    return append(&output->streams[ANSWERS], line);
}

gw_err gw_output_add_error_line(struct gw_output *output, const struct gw_buf *line)
{
    return append(&output->streams[ERRORS], line);
}

uint64_t gw_output_bytes(const struct gw_output *output)
{
    return output->streams[ANSWERS].whole;
}

gw_err gw_output_sync(struct gw_output *output)
{
    for (int i = 0; i < FILES; i++) {
        struct stream *stream = &output->streams[i];
        if (!stream->dirty) continue;
        if (fsync(stream->fd)) return gw_fail(GW_ERR_IO, "cannot sync %s: %s", stream->path, strerror(errno));
        stream->dirty = false;
    }
    return GW_OK;
}

gw_err gw_output_close(struct gw_output *output)
{
    if (!output) return GW_OK;
    gw_err rc = gw_output_sync(output);
    for (int i = 0; i < FILES; i++) {
        struct stream *stream = &output->streams[i];
        if (close(stream->fd) && rc == GW_OK)
            rc = gw_fail(GW_ERR_IO, "cannot close %s: %s", stream->path, strerror(errno));
        free(stream->path);
    }
    gw_buf_free(&output->line);
    free(output);
    return rc;
}
