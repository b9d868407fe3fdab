/* A client for metadata services: one plain HTTP question at a time, with a deadline, a bounded answer, no proxy, no redirect, no cookies. Not thread-safe.
 * Local. */
#ifndef GW_NOTICE_HTTP_H
#define GW_NOTICE_HTTP_H

#include "base/error.h"

struct gw_http; /* opaque */

enum { GW_HTTP_HEADERS = 3, GW_HTTP_WANTED = 2, GW_HTTP_VALUE = 128, GW_HTTP_MOST_BYTES = 65536 };

struct gw_http_question {
    const char *method; /* "GET", "PUT", "POST" */
    const char *path;   /* behind the base address, begins with a slash */
    const char *headers[GW_HTTP_HEADERS];
    const char *body; /* of POST; or NULL */
    double timeout_s;
    const char *wanted[GW_HTTP_WANTED]; /* names of headers of the answer */
};

struct gw_http_answer {
    int status;
    char *body; /* heap, NUL-terminated */
    size_t bytes;
    char values[GW_HTTP_WANTED]
               [GW_HTTP_VALUE]; /* of the wanted headers; "" where there was none, or one that is too long */
};

/* Is it http://HOST[:PORT][/PATH]? GW_ERR_USAGE. */
GW_CHECK gw_err gw_http_check_address(const char *address);
/* Was godwit built with libcurl? GW_ERR_UNSUPPORTED otherwise. */
GW_CHECK gw_err gw_http_available(void);

/* `stopped` is asked many times a second while a question is out: then it ends. */
GW_CHECK gw_err gw_http_create(const char *address, bool (*stopped)(void *context), void *context,
                               struct gw_http **http);
/* Any status is an answer. GW_ERR_TIMEOUT, GW_ERR_IO, GW_ERR_FORMAT (too large), GW_ERR_STOPPED. On GW_OK free(answer->body). */
GW_CHECK gw_err gw_http_ask(struct gw_http *http, const struct gw_http_question *question,
                            struct gw_http_answer *answer);
void gw_http_destroy(struct gw_http *http);

#endif
