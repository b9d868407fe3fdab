/* Streaming over a file of output lines, and the part of them that is known without a JSON parser. Local.
 *
 * Lines that godwit wrote begin {"id":"batch_req_<16 hex>","custom_id": and end in a way known for answers and for
 * errors; that is enough to know whose line it is and that it is whole. `verify` reads them with a real parser in
 * addition.
 */
#ifndef GW_BATCH_IO_LINES_H
#define GW_BATCH_IO_LINES_H

#include "base/mem.h"

struct gw_lines {
    const char *path; /* borrowed */
    int fd;           /* borrowed; read from offset 0 with pread */
    uint64_t at;      /* offset of the current line */
    uint64_t next;    /* offset behind it */
    int64_t number;   /* of the current line, from 1 */
    struct gw_buf buffer;
    uint64_t buffer_at;
};

void gw_lines_init(struct gw_lines *lines, int fd, const char *path);
void gw_lines_close(struct gw_lines *lines);
/* The next line without its newline; *line NULL at the end. *whole is false for bytes behind the last newline. Valid
 * until the next call. GW_ERR_IO. */
GW_CHECK gw_err gw_lines_next(struct gw_lines *lines, const char **line, size_t *bytes, bool *whole);

/* Whose line it is. custom_id (NUL-terminated, NULL data when the line says null) is put into `id`. */
struct gw_line_identity {
    struct gw_buf id;
    bool has_id;
    int64_t index; /* errors: the input line from 0; answers: -1 */
};
/* True when the line has the form of an answer (`errors` false) or of an error line. */
bool gw_lines_identify(const char *line, size_t bytes, bool errors, struct gw_line_identity *identity);

#endif
