/* What the sources of notices say, read strictly: whatever is not exactly as documented is GW_ERR_FORMAT, and never a notice. No I/O, no clock. Local.
 *
 * References: AWS "Spot Instance interruption notices" and "EC2 instance rebalance recommendations"; Azure "Scheduled Events for Linux VMs" (2020-07-01);
 * Google Cloud "Query the metadata server for maintenance event notices"; scontrol(1), RFC 1123 and RFC 9110 for dates. */
#ifndef GW_NOTICE_PARSE_H
#define GW_NOTICE_PARSE_H

#include "notice/source.h"

enum { GW_NOTICE_AT_ONCE = 8 }; /* most events that one answer is read for */

/* "2026-11-23T05:10:00Z", fractions of a second allowed; without `zone` the Z must not be there, and it is taken as UTC all the same. */
GW_CHECK gw_err gw_notice_time_iso(const char *text, bool zone, double *at_s);
/* "Mon, 23 Nov 2026 05:10:00 GMT"; the day of the week must be right. */
GW_CHECK gw_err gw_notice_time_http(const char *text, double *at_s);

/* spot/instance-action: {"action":"terminate","time":"..Z"}. */
GW_CHECK gw_err gw_notice_parse_aws_action(const char *data, size_t bytes, struct gw_notice_event *event);
/* events/recommendations/rebalance: {"noticeTime":"..Z"}. */
GW_CHECK gw_err gw_notice_parse_aws_rebalance(const char *data, size_t bytes, struct gw_notice_event *event);

/* Scheduled events that name the machine `vm`. A malformed one does not hide the others, but GW_ERR_FORMAT is returned at the end. `now_s`: when one that has
 * started is taken to happen. */
GW_CHECK gw_err gw_notice_parse_azure(const char *data, size_t bytes, const char *vm, double now_s,
                                      struct gw_notice_event events[GW_NOTICE_AT_ONCE], int *count);

/* instance/preempted ("TRUE", "FALSE") and instance/maintenance-event ("NONE", ..). *any: there is an event. */
GW_CHECK gw_err gw_notice_parse_gcp_preempted(const char *data, size_t bytes, double now_s,
                                              struct gw_notice_event *event, bool *any);
GW_CHECK gw_err gw_notice_parse_gcp_maintenance(const char *data, size_t bytes, double now_s,
                                                struct gw_notice_event *event, bool *any);

/* `scontrol show job ID` with its times in UTC. *any: the job is being taken away, or has less than `ahead_s` left of its time limit. */
GW_CHECK gw_err gw_notice_parse_slurm(const char *data, size_t bytes, const char *job, double now_s, double ahead_s,
                                      struct gw_notice_event *event, bool *any);

/* A word that may go into a header or an address: 1 to `most` characters, printable, none of them a blank. */
bool gw_notice_plain_word(const char *data, size_t bytes, size_t most);

#endif
