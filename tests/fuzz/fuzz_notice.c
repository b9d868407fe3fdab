/* Fuzz target: answers of metadata services and of scontrol (notice/parse.h). The first byte says whose; the rest is the answer. What is accepted must be an event
 * with a kind, a time that is one, and a text and an identity of printable ASCII. */
#include "notice/parse.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check_text(const char *text, size_t room)
{
    size_t length = strnlen(text, room);
    GW_ASSERT(length > 0 && length < room);
    for (size_t i = 0; i < length; i++) GW_ASSERT(text[i] >= ' ' && text[i] <= '~');
}

static void check(const struct gw_notice_event *event)
{
    GW_ASSERT(event->kind == GW_NOTICE_LEAVE || event->kind == GW_NOTICE_TIME_LIMIT || event->kind == GW_NOTICE_EARLY);
    GW_ASSERT(isfinite(event->at_s) && event->at_s >= 0 && event->at_s < 3e11);
    check_text(event->id, sizeof event->id);
    check_text(event->text, sizeof event->text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gw_notice_event events[GW_NOTICE_AT_ONCE];
    int count = 0;
    bool any = true;
    double at_s;
    gw_err rc = GW_OK;
    if (!bytes) return 0;
    const char *text = (const char *)data + 1;
    size_t length = bytes - 1;
    char *line = strndup(text, length);
    switch (*data) {
    case 'a': rc = gw_notice_parse_aws_action(text, length, events); break;
    case 'r': rc = gw_notice_parse_aws_rebalance(text, length, events); break;
    case 'z': rc = gw_notice_parse_azure(text, length, "vm_1", 1795410000, events, &count); break;
    case 'g': rc = gw_notice_parse_gcp_preempted(text, length, 1795410000, events, &any); break;
    case 'm': rc = gw_notice_parse_gcp_maintenance(text, length, 1795410000, events, &any); break;
    case 's': rc = gw_notice_parse_slurm(text, length, "42", 1795410000, 180, events, &any); break;
    case 'i': rc = gw_notice_time_iso(line, true, &at_s); break;
    case 'h': rc = gw_notice_time_http(line, &at_s); break;
    default: rc = GW_ERR_FORMAT;
    }
    free(line);
    GW_ASSERT(rc == GW_OK || rc == GW_ERR_FORMAT);
    GW_ASSERT(count >= 0 && count <= GW_NOTICE_AT_ONCE);
    for (int i = 0; i < count; i++) check(&events[i]);
    if (rc == GW_OK && strchr("argms", *data) && any) check(&events[0]);
    if (rc == GW_OK && strchr("ih", *data)) GW_ASSERT(isfinite(at_s) && at_s >= 0);
    return 0;
}
