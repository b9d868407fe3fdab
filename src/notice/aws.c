/* Notices of AWS, by its Instance Metadata Service, version 2: a token first, which is asked for anew when the service refuses it; then what is going to
 * happen to this spot instance, and whether AWS thinks that something might. "Not found" is what a quiet machine answers. */
#include "base/clock.h"
#include "base/mem.h"
#include "notice/http.h"
#include "notice/internal.h"
#include "notice/parse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKEN_S = 21600, MOST_TOKEN = 256, FOUND = 200, REFUSED = 401, NOT_FOUND = 404 };
static const double TIMEOUT_S = 2;

struct aws {
    struct gw_notice_link *link;
    struct gw_http *http;
    char token[MOST_TOKEN + 40]; /* as a header; "" when there is none */
    double token_until_s;
};

static void aws_destroy(void *state)
{
    struct aws *aws = state;
    gw_http_destroy(aws->http);
    free(aws);
}

static gw_err aws_create(struct gw_notice_link *link, const char *value, bool ack, void **state)
{
    (void)ack;
    struct aws *aws = gw_alloc(1, sizeof *aws);
    aws->link = link;
    gw_err rc = gw_http_create(value, gw_notice_stopped, link, &aws->http);
    *state = aws;
    if (rc != GW_OK) aws_destroy(aws);
    return rc;
}

static gw_err get_token(struct aws *aws)
{
    gw_err rc = GW_OK;
    struct gw_http_answer answer = {0};
    char lifetime[64];
    snprintf(lifetime, sizeof lifetime, "X-aws-ec2-metadata-token-ttl-seconds: %d", TOKEN_S);
    TRY(gw_http_ask(aws->http,
                    &(struct gw_http_question){
                        .method = "PUT", .path = "/latest/api/token", .headers = {lifetime}, .timeout_s = TIMEOUT_S},
                    &answer));
    if (answer.status != FOUND)
        FAIL(GW_ERR_IO, "the instance metadata service gives no token (status %d)", answer.status);
    if (!gw_notice_plain_word(answer.body, answer.bytes, MOST_TOKEN))
        FAIL(GW_ERR_FORMAT, "the token of the instance metadata service is no plain word");
    snprintf(aws->token, sizeof aws->token, "X-aws-ec2-metadata-token: %s", answer.body);
    aws->token_until_s = gw_clock_now_s() + TOKEN_S - 60;
out:
    free(answer.body);
    return rc;
}

/* *found: there is an answer, which the caller frees. */
static gw_err get(struct aws *aws, const char *path, struct gw_http_answer *answer, bool *found)
{
    gw_err rc = GW_OK;
    *answer = (struct gw_http_answer){0};
    for (int tries = 0; tries < 2; tries++) {
        free(answer->body);
        *answer = (struct gw_http_answer){0};
        if (!aws->token[0] || gw_clock_now_s() > aws->token_until_s) TRY(get_token(aws));
        TRY(gw_http_ask(
            aws->http,
            &(struct gw_http_question){.method = "GET", .path = path, .headers = {aws->token}, .timeout_s = TIMEOUT_S},
            answer));
        if (answer->status != REFUSED) break;
        aws->token[0] = 0;
    }
    *found = answer->status == FOUND;
    if (!*found && answer->status != NOT_FOUND) FAIL(GW_ERR_IO, "%s: status %d", path, answer->status);
out:
    return rc;
}

static gw_err ask(struct aws *aws, const char *path,
                  gw_err (*parse)(const char *data, size_t bytes, struct gw_notice_event *event), bool *found)
{
    gw_err rc = GW_OK;
    struct gw_http_answer answer;
    struct gw_notice_event event;
    TRY(get(aws, path, &answer, found));
    if (!*found) goto out;
    TRY(parse(answer.body, answer.bytes, &event));
    gw_notice_emit(aws->link, &event);
out:
    free(answer.body);
    return rc;
}

static gw_err aws_poll(void *state)
{
    gw_err rc = GW_OK;
    bool found;
    TRY(ask(state, "/latest/meta-data/spot/instance-action", gw_notice_parse_aws_action, &found));
    if (!found)
        TRY(ask(state, "/latest/meta-data/events/recommendations/rebalance", gw_notice_parse_aws_rebalance, &found));
out:
    return rc;
}

const struct gw_notice_kind_ops gw_notice_aws = {.name = "aws",
                                                 .title = "AWS",
                                                 .every_s = 5,
                                                 .slowest_s = 30,
                                                 .http = true,
                                                 .address = "http://169.254.169.254",
                                                 .create = aws_create,
                                                 .poll = aws_poll,
                                                 .destroy = aws_destroy};
