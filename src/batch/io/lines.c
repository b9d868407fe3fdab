/* See lines.h. */
#include "batch/io/lines.h"

#include "batch/io/json.h"
#include "batch/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES ((size_t)1 << 18)

void gw_lines_init(struct gw_lines *lines, int fd, const char *path)
{
    *lines = (struct gw_lines){.path = path, .fd = fd};
}

void gw_lines_close(struct gw_lines *lines)
{
    gw_buf_free(&lines->buffer);
}

gw_err gw_lines_next(struct gw_lines *lines, const char **line, size_t *bytes, bool *whole)
{
    struct gw_buf *buffer = &lines->buffer;
    size_t from = (size_t)(lines->next - lines->buffer_at), searched = from;
    *line = NULL;
    *bytes = 0;
    *whole = false;
    lines->at = lines->next;
    for (;;) {
        uint8_t *found = buffer->bytes > searched ? memchr(buffer->data + searched, '\n', buffer->bytes - searched)
                                                  : NULL;
        if (found) {
            *line = (char *)buffer->data + from;
            *bytes = (size_t)(found - buffer->data) - from;
            *whole = true;
            break;
        }
        size_t have = buffer->bytes - from;
        if (have) memmove(buffer->data, buffer->data + from, have);
        lines->buffer_at += from;
        buffer->bytes = have;
        from = 0;
        searched = have;
        gw_buf_reserve(buffer, READ_BYTES);
        ssize_t got;
        do got = pread(lines->fd, buffer->data + have, buffer->capacity - have, (off_t)(lines->buffer_at + have));
        while (got < 0 && errno == EINTR);
        if (got < 0) return gw_fail(GW_ERR_IO, "cannot read %s: %s", lines->path, strerror(errno));
        if (got == 0) {
            if (have) *line = (char *)buffer->data;
            *bytes = have;
            break;
        }
        buffer->bytes += (size_t)got;
    }
    lines->next = lines->at + *bytes + *whole;
    if (*line) lines->number++;
    return GW_OK;
}

/* Advances *line when it begins with `text`. */
static bool take(const char **line, size_t *bytes, const char *text)
{
    size_t length = strlen(text);
    if (*bytes < length || memcmp(*line, text, length) != 0) return false;
    *line += length;
    *bytes -= length;
    return true;
}

static bool ends_with(const char *line, size_t bytes, const char *text)
{
    size_t length = strlen(text);
    return bytes >= length && memcmp(line + bytes - length, text, length) == 0;
}

/* "line":N}} at the end of an error line. */
static bool read_line_number(const char *line, size_t bytes, int64_t *index)
{
    if (!ends_with(line, bytes, "}}")) return false;
    size_t end = bytes - 2, at = end;
    int64_t number = 0, unit = 1;
    while (at > 0 && end - at < 12 && line[at - 1] >= '0' && line[at - 1] <= '9') {
        number += unit * (line[--at] - '0');
        unit *= 10;
    }
    *index = number - 1;
    return at < end && number > 0 && ends_with(line, at, ",\"line\":");
}

bool gw_lines_identify(const char *line, size_t bytes, bool errors, struct gw_line_identity *identity)
{
    identity->index = -1;
    identity->has_id = false;
    if (memchr(line, 0, bytes)) return false;
    if (errors ? !read_line_number(line, bytes, &identity->index) : !ends_with(line, bytes, "}},\"error\":null}"))
        return false;
    if (!take(&line, &bytes, "{\"id\":\"batch_req_") || bytes < 16) return false;
    char hex[17], expected[17];
    memcpy(hex, line, 16);
    hex[16] = 0;
    line += 16;
    bytes -= 16;
    if (!take(&line, &bytes, "\",\"custom_id\":")) return false;
    if (errors && take(&line, &bytes, "null,")) return true;
    size_t took = gw_json_read_string(line, bytes, &identity->id);
    if (!took) return false;
    identity->has_id = true;
    line += took;
    bytes -= took;
    if (memchr(identity->id.data, 0, identity->id.bytes)) return false;
    snprintf(expected, sizeof expected, "%016llx",
             (unsigned long long)gw_request_id_hash((const char *)identity->id.data));
    return strcmp(hex, expected) == 0 && take(&line, &bytes, errors ? ",\"response\":null," : ",\"response\":{");
}
