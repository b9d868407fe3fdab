/* See http.h. The one file that knows libcurl; without it (configure says so) every question is refused.
 *
 * A metadata service is on the machine itself or one hop away, so a proxy from the environment would be asked for its own machine's
 * metadata: none is used. A redirect would lead somewhere else: it is an answer like any other, and not followed. The multi interface is there
 * for one reason: a question that is out can be given up at once when the program ends. */
#include "notice/http.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#ifndef HAVE_LIBCURL

gw_err gw_http_available(void)
{
    return gw_fail(GW_ERR_UNSUPPORTED,
                   "this godwit was built without libcurl, and cannot ask metadata services for notices");
}

gw_err gw_http_create(const char *address, bool (*stopped)(void *context), void *context, struct gw_http **http)
{
    (void)address, (void)stopped, (void)context;
    *http = NULL;
    return gw_http_available();
}

gw_err gw_http_ask(struct gw_http *http, const struct gw_http_question *question, struct gw_http_answer *answer)
{
    (void)http, (void)question, (void)answer;
    return gw_http_available();
}

void gw_http_destroy(struct gw_http *http)
{
    (void)http;
}

#else

#include "base/clock.h"
#include "base/mem.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum { SLICE_MS = 100 };

struct gw_http {
    char *address; /* without a slash at its end */
    bool (*stopped)(void *context);
    void *context;
    CURL *easy;
    CURLM *multi;
};

/* One question on its way. */
struct exchange {
    const struct gw_http_question *question;
    struct gw_http_answer *answer;
    struct gw_buf body;
    bool too_large;
};

gw_err gw_http_available(void)
{
    return GW_OK;
}

static size_t on_body(char *data, size_t size, size_t count, void *context)
{
    struct exchange *exchange = context;
    exchange->too_large = exchange->body.bytes + size * count > GW_HTTP_MOST_BYTES;
    if (exchange->too_large) return 0; /* not all: libcurl ends the transfer */
    gw_buf_add(&exchange->body, data, size * count);
    return size * count;
}

static size_t on_header(char *data, size_t size, size_t count, void *context)
{
    struct exchange *exchange = context;
    size_t bytes = size * count, name = 0;
    while (name < bytes && data[name] != ':') name++;
    size_t from = name + 1, end = bytes;
    while (from < end && (data[from] == ' ' || data[from] == '\t')) from++;
    while (end > from && (unsigned char)data[end - 1] <= ' ') end--;
    for (int i = 0; i < GW_HTTP_WANTED && name < bytes; i++) {
        const char *wanted = exchange->question->wanted[i];
        if (!wanted || strlen(wanted) != name || strncasecmp(wanted, data, name) || end - from >= GW_HTTP_VALUE)
            continue;
        memcpy(exchange->answer->values[i], data + from, end - from);
        exchange->answer->values[i][end - from] = 0;
    }
    return bytes;
}

/* Libcurl's own sockets would be inherited by the launch that the supervisor starts. */
static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address)
{
    (void)context, (void)purpose;
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

gw_err gw_http_create(const char *address, bool (*stopped)(void *context), void *context, struct gw_http **out)
{
    static bool started; /* sources are opened by one thread */
    if (!started && curl_global_init(CURL_GLOBAL_NOTHING)) return gw_fail(GW_ERR_IO, "libcurl does not start");
    started = true;
    struct gw_http *http = gw_alloc(1, sizeof *http);
    http->address = gw_strdup(address);
    http->stopped = stopped;
    http->context = context;
    for (size_t end = strlen(address); end && http->address[end - 1] == '/'; end--) http->address[end - 1] = 0;
    http->easy = curl_easy_init();
    http->multi = curl_multi_init();
    *out = http;
    if (http->easy && http->multi) return GW_OK;
    gw_http_destroy(http);
    *out = NULL;
    return gw_fail(GW_ERR_IO, "libcurl has no handle to give");
}

void gw_http_destroy(struct gw_http *http)
{
    if (!http) return;
    curl_easy_cleanup(http->easy);
    curl_multi_cleanup(http->multi);
    free(http->address);
    free(http);
}

static gw_err set_up(struct gw_http *http, const struct gw_http_question *q, const char *url,
                     struct curl_slist *headers, struct exchange *exchange)
{
    CURL *easy = http->easy;
    CURLcode failed = CURLE_OK;
#define SET(option, value) failed = failed ? failed : curl_easy_setopt(easy, option, value)
    curl_easy_reset(easy);
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOPROXY, "*");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
#if LIBCURL_VERSION_NUM >= 0x075500
    SET(CURLOPT_PROTOCOLS_STR, "http");
#else
    SET(CURLOPT_PROTOCOLS, (long)CURLPROTO_HTTP);
#endif
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, 1000L);
    SET(CURLOPT_TIMEOUT_MS, (long)(q->timeout_s * 1000));
    SET(CURLOPT_USERAGENT, "godwit/" PACKAGE_VERSION);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, exchange);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, exchange);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    if (!strcmp(q->method, "GET")) {
        SET(CURLOPT_HTTPGET, 1L);
    } else { /* PUT without data, POST with some: both as libcurl's POST under another name */
        SET(CURLOPT_POSTFIELDS, q->body ? q->body : "");
        SET(CURLOPT_CUSTOMREQUEST, q->method);
    }
#undef SET
    return failed ? gw_fail(GW_ERR_IO, "libcurl: %s", curl_easy_strerror(failed)) : GW_OK;
}

/* Drives the transfer to its end; `result` is libcurl's. */
static gw_err transfer(struct gw_http *http, double timeout_s, CURLcode *result)
{
    gw_err rc = GW_OK;
    double until_s = gw_clock_now_s() + timeout_s + 1; /* libcurl's own deadline comes first */
    int running = 1, left;
    if (curl_multi_add_handle(http->multi, http->easy)) return gw_fail(GW_ERR_IO, "libcurl does not take the question");
    *result = CURLE_OPERATION_TIMEDOUT;
    while (running) {
        if (http->stopped(http->context)) {
            rc = gw_fail(GW_ERR_STOPPED, "the question is given up");
            break;
        }
        if (gw_clock_now_s() > until_s) break;
        if (curl_multi_perform(http->multi, &running)) {
            *result = CURLE_RECV_ERROR;
            break;
        }
        if (running) curl_multi_poll(http->multi, NULL, 0, SLICE_MS, NULL);
    }
    for (CURLMsg *message; (message = curl_multi_info_read(http->multi, &left));)
        if (message->msg == CURLMSG_DONE) *result = message->data.result;
    curl_multi_remove_handle(http->multi, http->easy);
    return rc;
}

gw_err gw_http_ask(struct gw_http *http, const struct gw_http_question *question, struct gw_http_answer *answer)
{
    gw_err rc = GW_OK;
    struct exchange exchange = {.question = question, .answer = answer};
    struct curl_slist *headers = NULL;
    char *url = gw_asprintf("%s%s", http->address, question->path);
    CURLcode result = CURLE_OK;
    long status = 0;
    *answer = (struct gw_http_answer){0};
    for (int i = 0; i < GW_HTTP_HEADERS; i++)
        if (question->headers[i]) headers = curl_slist_append(headers, question->headers[i]);
    TRY(set_up(http, question, url, headers, &exchange));
    TRY(transfer(http, question->timeout_s, &result));
    if (exchange.too_large) FAIL(GW_ERR_FORMAT, "%s answers with more than %d bytes", url, GW_HTTP_MOST_BYTES);
    if (result == CURLE_OPERATION_TIMEDOUT)
        FAIL(GW_ERR_TIMEOUT, "%s does not answer within %g s", url, question->timeout_s);
    if (result != CURLE_OK) FAIL(GW_ERR_IO, "%s: %s", url, curl_easy_strerror(result));
    curl_easy_getinfo(http->easy, CURLINFO_RESPONSE_CODE, &status);
    gw_buf_add(&exchange.body, "", 1);
    answer->status = (int)status;
    answer->body = (char *)exchange.body.data;
    answer->bytes = exchange.body.bytes - 1;
    exchange.body = (struct gw_buf){0};
out:
    gw_buf_free(&exchange.body);
    curl_slist_free_all(headers);
    free(url);
    return rc;
}

#endif
