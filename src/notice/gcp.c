/* Notices of Google Cloud: its metadata server keeps a question open until the value changes, or some seconds are over; the value that is known is named by
 * its ETag, so that no change is missed in between. Only an answer that names its Metadata-Flavor is from that server. */
#include "base/clock.h"
#include "base/mem.h"
#include "notice/http.h"
#include "notice/internal.h"
#include "notice/parse.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INSTANCE "/computeMetadata/v1/instance/"
enum { FOUND = 200, WAIT_S = 5 };
static const double TIMEOUT_S = 2;

struct gcp {
    struct gw_notice_link *link;
    struct gw_http *http;
    char etag[GW_HTTP_VALUE]; /* of the last answer on `preempted`; "" when there is none */
};

static void gcp_destroy(void *state)
{
    struct gcp *gcp = state;
    gw_http_destroy(gcp->http);
    free(gcp);
}

static gw_err gcp_create(struct gw_notice_link *link, const char *value, bool ack, void **state)
{
    (void)ack;
    struct gcp *gcp = gw_alloc(1, sizeof *gcp);
    gcp->link = link;
    gw_err rc = gw_http_create(value, gw_notice_stopped, link, &gcp->http);
    *state = gcp;
    if (rc != GW_OK) gcp_destroy(gcp);
    return rc;
}

/* On GW_OK the body is the caller's to free. */
static gw_err ask(struct gcp *gcp, const char *path, double timeout_s, struct gw_http_answer *answer)
{
    gw_err rc = GW_OK;
    struct gw_http_question question = {.method = "GET",
                                        .path = path,
                                        .headers = {"Metadata-Flavor: Google"},
                                        .timeout_s = timeout_s,
                                        .wanted = {"Metadata-Flavor", "ETag"}};
    *answer = (struct gw_http_answer){0};
    TRY(gw_http_ask(gcp->http, &question, answer));
    if (strcmp(answer->values[0], "Google"))
        FAIL(GW_ERR_FORMAT, "%s is answered by something that is not Google Cloud's metadata server", path);
    if (answer->status != FOUND) FAIL(GW_ERR_IO, "%s: status %d", path, answer->status);
out:
    if (rc != GW_OK) free(answer->body);
    return rc;
}

/* An ETag goes into the next address. */
static void keep_etag(struct gcp *gcp, const char *etag)
{
    gcp->etag[0] = 0;
    for (const char *c = etag; *c; c++)
        if (!isalnum((unsigned char)*c)) return;
    memcpy(gcp->etag, etag, strlen(etag) + 1);
}

static gw_err gcp_poll(void *state)
{
    gw_err rc = GW_OK;
    struct gcp *gcp = state;
    struct gw_http_answer answer;
    struct gw_notice_event event;
    bool any = false;
    char path[GW_HTTP_VALUE + 160] = INSTANCE "preempted";
    if (gcp->etag[0])
        snprintf(path, sizeof path, INSTANCE "preempted?wait_for_change=true&timeout_sec=%d&last_etag=%s", WAIT_S,
                 gcp->etag);
    TRY(ask(gcp, path, gcp->etag[0] ? WAIT_S + TIMEOUT_S : TIMEOUT_S, &answer));
    keep_etag(gcp, answer.values[1]);
    rc = gw_notice_parse_gcp_preempted(answer.body, answer.bytes, gw_clock_wall_s(), &event, &any);
    free(answer.body);
    if (rc != GW_OK) goto out;
    if (any) gw_notice_emit(gcp->link, &event);
    TRY(ask(gcp, INSTANCE "maintenance-event", TIMEOUT_S, &answer));
    rc = gw_notice_parse_gcp_maintenance(answer.body, answer.bytes, gw_clock_wall_s(), &event, &any);
    free(answer.body);
    if (rc == GW_OK && any) gw_notice_emit(gcp->link, &event);
out:
    if (rc != GW_OK) gcp->etag[0] = 0;
    return rc;
}

const struct gw_notice_kind_ops gw_notice_gcp = {.name = "gcp",
                                                 .title = "Google Cloud",
                                                 .every_s = 1,
                                                 .slowest_s = 5,
                                                 .http = true,
                                                 .address = "http://169.254.169.254",
                                                 .create = gcp_create,
                                                 .poll = gcp_poll,
                                                 .destroy = gcp_destroy};
