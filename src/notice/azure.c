/* Notices of Azure: scheduled events of its Instance Metadata Service that name this machine. The list is that of a whole group of machines, so the own name is asked for
 * first. Azure can be told that a machine is ready to go before its time (`azure+ack`); nobody is told unasked, since that ends the machine sooner for everything on it.
 *
 * The first question of a machine's life switches the service on, and may take two minutes: it is not worth a warning. */
#include "base/clock.h"
#include "base/mem.h"
#include "notice/http.h"
#include "notice/internal.h"
#include "notice/parse.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENTS_PATH "/metadata/scheduledevents?api-version=2020-07-01"
#define NAME_PATH "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
enum { MOST_NAME = 128, FOUND = 200 };
static const double TIMEOUT_S = 5, FIRST_TIMEOUT_S = 120;

struct azure {
    struct gw_notice_link *link;
    struct gw_http *http;
    bool ack, answered;
    char vm[MOST_NAME + 1];
    char ids[GW_NOTICE_AT_ONCE][96]; /* of events that take the machine away */
    int id_count;
};

static void azure_destroy(void *state)
{
    struct azure *azure = state;
    gw_http_destroy(azure->http);
    free(azure);
}

static gw_err azure_create(struct gw_notice_link *link, const char *value, bool ack, void **state)
{
    struct azure *azure = gw_alloc(1, sizeof *azure);
    azure->link = link;
    azure->ack = ack;
    gw_err rc = gw_http_create(value, gw_notice_stopped, link, &azure->http);
    *state = azure;
    if (rc != GW_OK) azure_destroy(azure);
    return rc;
}

/* On GW_OK the answer's status is 200, and its body the caller's to free. */
static gw_err ask(struct azure *azure, const char *method, const char *path, const char *body, double timeout_s,
                  struct gw_http_answer *answer)
{
    gw_err rc = GW_OK;
    struct gw_http_question question = {.method = method,
                                        .path = path,
                                        .headers = {"Metadata: true", body ? "Content-Type: application/json" : NULL},
                                        .body = body,
                                        .timeout_s = timeout_s};
    *answer = (struct gw_http_answer){0};
    TRY(gw_http_ask(azure->http, &question, answer));
    if (answer->status != FOUND) FAIL(GW_ERR_IO, "%s: status %d", path, answer->status);
out:
    if (rc != GW_OK) free(answer->body);
    return rc;
}

static gw_err learn_name(struct azure *azure)
{
    gw_err rc = GW_OK;
    struct gw_http_answer answer = {0};
    TRY(ask(azure, "GET", NAME_PATH, NULL, TIMEOUT_S, &answer));
    if (gw_notice_plain_word(answer.body, answer.bytes, MOST_NAME)) memcpy(azure->vm, answer.body, answer.bytes);
    else rc = gw_fail(GW_ERR_FORMAT, "the name of this machine is no plain word");
    free(answer.body);
out:
    return rc;
}

static gw_err azure_poll(void *state)
{
    gw_err rc = GW_OK;
    struct azure *azure = state;
    struct gw_http_answer answer = {0};
    struct gw_notice_event events[GW_NOTICE_AT_ONCE];
    int count = 0;
    if (!azure->vm[0]) TRY(learn_name(azure));
    TRY(ask(azure, "GET", EVENTS_PATH, NULL, azure->answered ? TIMEOUT_S : FIRST_TIMEOUT_S, &answer));
    azure->answered = true;
    rc = gw_notice_parse_azure(answer.body, answer.bytes, azure->vm, gw_clock_wall_s(), events, &count);
    free(answer.body);
    azure->id_count = 0;
    for (int i = 0; i < count; i++) { /* whatever else is wrong, these are good */
        gw_notice_emit(azure->link, &events[i]);
        if (events[i].kind == GW_NOTICE_LEAVE) memcpy(azure->ids[azure->id_count++], events[i].id, sizeof events[i].id);
    }
out:
    return rc;
}

static gw_err azure_acknowledge(void *state)
{
    gw_err rc = GW_OK;
    struct azure *azure = state;
    struct gw_http_answer answer = {0};
    char *body = NULL;
    json_t *list = json_array();
    for (int i = 0; i < azure->id_count; i++) json_array_append_new(list, json_pack("{s:s}", "EventId", azure->ids[i]));
    if (azure->ack && azure->id_count) {
        json_t *root = json_pack("{s:O}", "StartRequests", list);
        body = json_dumps(root, JSON_COMPACT);
        json_decref(root);
        TRY(ask(azure, "POST", EVENTS_PATH, body, TIMEOUT_S, &answer));
        free(answer.body);
    }
out:
    json_decref(list);
    free(body);
    return rc;
}

const struct gw_notice_kind_ops gw_notice_azure = {.name = "azure",
                                                   .title = "Azure",
                                                   .every_s = 2,
                                                   .slowest_s = 10,
                                                   .http = true,
                                                   .ack = true,
                                                   .address = "http://169.254.169.254",
                                                   .create = azure_create,
                                                   .poll = azure_poll,
                                                   .acknowledge = azure_acknowledge,
                                                   .destroy = azure_destroy};
