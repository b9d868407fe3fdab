/* Sources of notices: the parsers on what is documented, on what is nearly right and on damaged answers; lists of sources; which cloud a machine is in; running
 * a program. (What goes over HTTP: tests/notice.) */
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/philox.h"
#include "notice/command.h"
#include "notice/http.h"
#include "notice/parse.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const double NOW_S = 1795410000; /* 2026-11-23 05:00:00 UTC */

/* ---- times ----------------------------------------------------------------------------------------------------- */

static void test_times(void)
{
    double at_s;
    CU_ASSERT_EQUAL(gw_notice_time_iso("2026-11-23T05:00:00Z", true, &at_s), GW_OK);
    CU_ASSERT_EQUAL(at_s, NOW_S);
    CU_ASSERT_EQUAL(gw_notice_time_iso("2026-11-23T05:00:00", false, &at_s), GW_OK);
    CU_ASSERT_EQUAL(at_s, NOW_S);
    CU_ASSERT_EQUAL(gw_notice_time_iso("2024-02-29T23:59:60.25Z", true, &at_s), GW_OK);
    CU_ASSERT_EQUAL(at_s, 1709251200.25);
    CU_ASSERT_EQUAL(gw_notice_time_http("Mon, 23 Nov 2026 05:00:00 GMT", &at_s), GW_OK);
    CU_ASSERT_EQUAL(at_s, NOW_S);
    static const char *const bad[] = {
        "",
        "soon",
        "2026-11-23T05:00:00",       /* no zone */
        "2026-11-23T05:00:00z",      /* Z it is */
        "2026-11-23T05:00:00+01:00", /* nor another one */
        "2026-11-23 05:00:00Z",
        "2026-11-23T05:00Z",
        "2026-11-23T5:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T05:60:00Z",
        "2026-11-23T05:00:61Z",
        "2026-02-29T05:00:00Z", /* no leap year */
        "2100-02-29T05:00:00Z",
        "2026-13-01T05:00:00Z",
        "2026-00-01T05:00:00Z",
        "2026-11-31T05:00:00Z",
        "2026-11-00T05:00:00Z",
        "1969-12-31T23:59:59Z",
        "2026-11-23T05:00:00.Z",
        "2026-11-23T05:00:00ZZ",
        " 2026-11-23T05:00:00Z",
        "-026-11-23T05:00:00Z",
        "+026-11-23T05:00:00Z",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CU_ASSERT_EQUAL(gw_notice_time_iso(bad[i], true, &at_s), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(gw_notice_time_iso("2026-11-23T05:00:00Z", false, &at_s), GW_ERR_FORMAT);
    static const char *const bad_http[] = {"",
                                           "Mo",
                                           "Mon",
                                           "Tue, 23 Nov 2026 05:00:00 GMT", /* it was a Monday */
                                           "Mon, 23 Nov 2026 05:00:00 UTC",
                                           "Mon, 23 Nov 2026 05:00:00 GMT ",
                                           "Mon, 23 Nov 2026 05:00:00",
                                           "Mon, 3 Nov 2026 05:00:00 GMT",
                                           "Mon, 23 nov 2026 05:00:00 GMT",
                                           "Mon, 23 N",
                                           "Mon 23 Nov 2026 05:00:00 GMT",
                                           "Monday, 23-Nov-26 05:00:00 GMT",
                                           "Mon Nov 23 05:00:00 2026"};
    for (size_t i = 0; i < sizeof bad_http / sizeof *bad_http; i++)
        CU_ASSERT_EQUAL(gw_notice_time_http(bad_http[i], &at_s), GW_ERR_FORMAT);
}

/* Against the C library, day by day through leap years and centuries. */
static void test_days(void)
{
    for (time_t day = 0; day < 86400L * 366 * 440; day += 86400) {
        struct tm tm;
        char iso[40], http[40];
        double at_s, at_http_s;
        time_t second = day + day / 86400 % 86400;
        gmtime_r(&second, &tm);
        strftime(iso, sizeof iso, "%Y-%m-%dT%H:%M:%SZ", &tm);
        strftime(http, sizeof http, "%a, %d %b %Y %H:%M:%S GMT", &tm);
        if (gw_notice_time_iso(iso, true, &at_s) != GW_OK || gw_notice_time_http(http, &at_http_s) != GW_OK ||
            at_s != (double)second || at_http_s != (double)second) {
            CU_FAIL(iso);
            return;
        }
    }
}

/* ---- AWS ------------------------------------------------------------------------------------------------------- */

static gw_err aws_action(const char *text, struct gw_notice_event *event)
{
    return gw_notice_parse_aws_action(text, strlen(text), event);
}

static void test_aws(void)
{
    struct gw_notice_event event;
    CU_ASSERT_EQUAL(aws_action("{\"action\": \"stop\", \"time\": \"2026-11-23T05:02:00Z\"}", &event), GW_OK);
    CU_ASSERT_EQUAL(event.kind, GW_NOTICE_LEAVE);
    CU_ASSERT_EQUAL(event.at_s, NOW_S + 120);
    CU_ASSERT_PTR_NOT_NULL(strstr(event.text, "(stop) at 2026-11-23T05:02:00Z"));
    CU_ASSERT_EQUAL(aws_action("{\"action\":\"terminate\",\"time\":\"2026-11-23T05:02:00Z\",\"more\":[1]}", &event),
                    GW_OK);
    static const char *const bad[] = {
        "",
        "null",
        "[]",
        "terminate",
        "{}",
        "{\"action\":\"terminate\"}",
        "{\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"terminate\",\"time\":\"05:02\"}",
        "{\"action\":\"terminate\",\"time\":1795410000}",
        "{\"action\":7,\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"\",\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"a b\",\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"x\\n\",\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"stop\",\"action\":\"stop\",\"time\":\"2026-11-23T05:02:00Z\"}",
        "{\"action\":\"stop\",\"time\":\"2026-11-23T05:02:00Z\"} x",
        "<html><body>404</body></html>",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CU_ASSERT_EQUAL(aws_action(bad[i], &event), GW_ERR_FORMAT);
    static const char rebalance[] = "{\"noticeTime\": \"2026-11-23T04:59:00Z\"}";
    CU_ASSERT_EQUAL(gw_notice_parse_aws_rebalance(rebalance, strlen(rebalance), &event), GW_OK);
    CU_ASSERT_EQUAL(event.kind, GW_NOTICE_EARLY);
    CU_ASSERT_EQUAL(event.at_s, NOW_S - 60);
    CU_ASSERT_EQUAL(gw_notice_parse_aws_rebalance(rebalance, strlen(rebalance) - 1, &event), GW_ERR_FORMAT);
}

/* ---- Azure ----------------------------------------------------------------------------------------------------- */

#define EVENT(id, type, status, names, time)                                                                           \
    "{\"EventId\":\"" id "\",\"EventType\":\"" type "\",\"EventStatus\":\"" status                                     \
    "\",\"ResourceType\":\"VirtualMachine\",\"Resources\":[" names "],\"NotBefore\":\"" time "\"}"
#define LIST(events) "{\"DocumentIncarnation\":3,\"Events\":[" events "]}"
#define AT "Mon, 23 Nov 2026 05:00:30 GMT"

static gw_err azure(const char *text, struct gw_notice_event *events, int *count)
{
    return gw_notice_parse_azure(text, strlen(text), "vm_1", NOW_S, events, count);
}

static void test_azure(void)
{
    struct gw_notice_event events[GW_NOTICE_AT_ONCE];
    int count;
    CU_ASSERT_EQUAL(azure(LIST(""), events, &count), GW_OK);
    CU_ASSERT_EQUAL(count, 0);
    CU_ASSERT_EQUAL(azure(LIST(EVENT("e1", "Preempt", "Scheduled", "\"vm_0\",\"VM_1\"", AT)), events, &count), GW_OK);
    CU_ASSERT_EQUAL_FATAL(count, 1);
    CU_ASSERT_EQUAL(events[0].kind, GW_NOTICE_LEAVE);
    CU_ASSERT_EQUAL(events[0].at_s, NOW_S + 30);
    CU_ASSERT_STRING_EQUAL(events[0].id, "e1");
    /* for others; of kinds that do not matter; a name that only begins like ours */
    CU_ASSERT_EQUAL(azure(LIST(EVENT("e1", "Preempt", "Scheduled", "\"vm_10\",\"vm_\",\"vm\"",
                                     AT) "," EVENT("e2", "Picnic", "Scheduled", "\"vm_1\"",
                                                   AT) "," EVENT("e3", "Preempt", "Scheduled", "", AT)),
                          events, &count),
                    GW_OK);
    CU_ASSERT_EQUAL(count, 0);
    CU_ASSERT_EQUAL(azure(LIST(EVENT("e1", "Freeze", "Scheduled", "\"vm_1\"", AT) "," EVENT(
                              "e2", "Reboot", "Started", "\"vm_1\"",
                              "") "," EVENT("e3", "Redeploy", "Scheduled", "\"vm_1\"",
                                            AT) "," EVENT("e4", "Terminate", "Scheduled", "\"vm_1\"", AT)),
                          events, &count),
                    GW_OK);
    CU_ASSERT_EQUAL_FATAL(count, 4);
    CU_ASSERT_EQUAL(events[0].kind, GW_NOTICE_EARLY);
    CU_ASSERT_EQUAL(events[1].kind, GW_NOTICE_LEAVE);
    CU_ASSERT_EQUAL(events[1].at_s, NOW_S);
    CU_ASSERT_EQUAL(events[2].kind, GW_NOTICE_LEAVE);
    CU_ASSERT_EQUAL(events[3].kind, GW_NOTICE_LEAVE);
    /* a bad one does not hide a good one, and is told of */
    CU_ASSERT_EQUAL(azure(LIST("7," EVENT("e1", "Preempt", "Scheduled", "\"vm_1\"", "soon") "," EVENT(
                              "e2", "Preempt", "Scheduled", "\"vm_1\"", "") "," EVENT("e3", "Preempt", "Scheduled",
                                                                                      "\"vm_1\"", AT)),
                          events, &count),
                    GW_ERR_FORMAT);
    CU_ASSERT_EQUAL_FATAL(count, 1);
    CU_ASSERT_STRING_EQUAL(events[0].id, "e3");
    static const char *const bad[] = {
        "", "[]", "{}", "{\"Events\":{}}", "{\"Events\":[{}]}", "{\"Events\":[{\"Resources\":[\"vm_1\"]}]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CU_ASSERT_EQUAL(azure(bad[i], events, &count), GW_ERR_FORMAT);
        CU_ASSERT_EQUAL(count, 0);
    }
    struct gw_buf many = {0}; /* more than are taken at once */
    gw_buf_add_text(&many, "{\"Events\":[");
    for (int i = 0; i < 40; i++) gw_buf_add_text(&many, EVENT("e", "Preempt", "Scheduled", "\"vm_1\"", AT) ",");
    gw_buf_add_text(&many, EVENT("e", "Preempt", "Scheduled", "\"vm_1\"", AT) "]}");
    CU_ASSERT_EQUAL(gw_notice_parse_azure((char *)many.data, many.bytes, "vm_1", NOW_S, events, &count), GW_OK);
    CU_ASSERT_EQUAL(count, GW_NOTICE_AT_ONCE);
    gw_buf_free(&many);
}

/* ---- Google Cloud ---------------------------------------------------------------------------------------------- */

static void test_gcp(void)
{
    struct gw_notice_event event;
    bool any = true;
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_preempted("FALSE\n", 6, NOW_S, &event, &any), GW_OK);
    CU_ASSERT_FALSE(any);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_preempted("TRUE", 4, NOW_S, &event, &any), GW_OK);
    CU_ASSERT_TRUE(any);
    CU_ASSERT_EQUAL(event.kind, GW_NOTICE_LEAVE);
    CU_ASSERT_EQUAL(event.at_s, NOW_S + 30);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_preempted("true", 4, NOW_S, &event, &any), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_preempted("TRUEX", 5, NOW_S, &event, &any), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_preempted("TRU", 3, NOW_S, &event, &any), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_preempted("", 0, NOW_S, &event, &any), GW_ERR_FORMAT);
    CU_ASSERT_FALSE(any);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_maintenance("NONE", 4, NOW_S, &event, &any), GW_OK);
    CU_ASSERT_FALSE(any);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_maintenance("TERMINATE_ON_HOST_MAINTENANCE", 29, NOW_S, &event, &any), GW_OK);
    CU_ASSERT_TRUE(any && event.kind == GW_NOTICE_LEAVE && event.at_s == NOW_S + 60);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_maintenance("MIGRATE_ON_HOST_MAINTENANCE", 27, NOW_S, &event, &any), GW_OK);
    CU_ASSERT_TRUE(any && event.kind == GW_NOTICE_EARLY);
    CU_ASSERT_EQUAL(gw_notice_parse_gcp_maintenance("<html>", 6, NOW_S, &event, &any), GW_ERR_FORMAT);
    CU_ASSERT_FALSE(any);
}

/* ---- Slurm ----------------------------------------------------------------------------------------------------- */

/* As scontrol 22.05 prints it, with a name and a comment that would like to be more. */
static char *slurm_text(const char *state, const char *start, const char *end, const char *preempt)
{
    return gw_asprintf("JobId=42 ArrayJobId=40 ArrayTaskId=2 JobName=x JobState=PREEMPTED\n"
                       "   UserId=root(0) GroupId=root(0) MCS_label=N/A\n"
                       "   Priority=4294901757 Nice=0 Account=(null) QOS=(null)\n"
                       "   JobState=%s Reason=None Dependency=(null)\n"
                       "   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0\n"
                       "   RunTime=00:01:00 TimeLimit=01:00:00 TimeMin=N/A\n"
                       "   SubmitTime=2026-11-23T04:58:59 EligibleTime=2026-11-23T04:58:59\n"
                       "   AccrueTime=2026-11-23T04:58:59\n"
                       "   StartTime=%s EndTime=%s Deadline=N/A\n"
                       "   PreemptEligibleTime=2026-11-23T04:59:00 PreemptTime=%s\n"
                       "   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-23T04:59:00\n"
                       "   Comment=PreemptTime=2026-11-23T05:00:00\n"
                       "   Command=/bin/sh\n\n",
                       state, start, end, preempt);
}

static gw_err slurm(const char *state, const char *start, const char *end, const char *preempt, double ahead_s,
                    struct gw_notice_event *event, bool *any)
{
    char *text = slurm_text(state, start, end, preempt);
    gw_err rc = gw_notice_parse_slurm(text, strlen(text), "42", NOW_S, ahead_s, event, any);
    free(text);
    return rc;
}

static void test_slurm(void)
{
    struct gw_notice_event event;
    bool any = true;
    static const char *const start = "2026-11-23T04:59:00", *const end = "2026-11-23T05:59:00";
    CU_ASSERT_EQUAL(slurm("RUNNING", start, end, "None", 180, &event, &any), GW_OK);
    CU_ASSERT_FALSE(any);
    CU_ASSERT_EQUAL(slurm("RUNNING", start, "Unknown", "None", 180, &event, &any), GW_OK);
    CU_ASSERT_FALSE(any);
    CU_ASSERT_EQUAL(slurm("RUNNING", start, end, "None", 3540, &event, &any), GW_OK);
    CU_ASSERT_TRUE(any && event.kind == GW_NOTICE_TIME_LIMIT && event.at_s == NOW_S + 3540);
    CU_ASSERT_EQUAL(slurm("RUNNING", start, "2026-11-23T05:00:10", "2026-11-23T05:00:00", 0, &event, &any), GW_OK);
    CU_ASSERT_TRUE(any && event.kind == GW_NOTICE_LEAVE && event.at_s == NOW_S + 10);
    CU_ASSERT_STRING_EQUAL(event.id, "preempted");
    /* preempted in an earlier life */
    CU_ASSERT_EQUAL(slurm("RUNNING", start, end, "2026-11-23T04:50:00", 180, &event, &any), GW_OK);
    CU_ASSERT_FALSE(any);
    static const char *const leaving[] = {"PREEMPTED", "COMPLETING", "PENDING",   "REQUEUED", "CANCELLED",
                                          "TIMEOUT",   "NODE_FAIL",  "COMPLETED", "REVOKED",  "DEADLINE"};
    for (size_t i = 0; i < sizeof leaving / sizeof *leaving; i++) {
        CU_ASSERT_EQUAL(slurm(leaving[i], start, end, "None", 180, &event, &any), GW_OK);
        CU_ASSERT_TRUE(any && event.kind == GW_NOTICE_LEAVE && event.at_s > NOW_S && event.at_s < NOW_S + 30);
    }
    static const char *const staying[] = {"CONFIGURING", "SUSPENDED", "RESIZING"};
    for (size_t i = 0; i < sizeof staying / sizeof *staying; i++) {
        CU_ASSERT_EQUAL(slurm(staying[i], start, end, "None", 180, &event, &any), GW_OK);
        CU_ASSERT_FALSE(any);
    }
    CU_ASSERT_EQUAL(slurm("RUNNING", start, "05:59", "None", 180, &event, &any), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(slurm("", start, end, "None", 180, &event, &any), GW_ERR_FORMAT);
    static const char other[] = "JobId=7 JobName=x\n   JobState=PREEMPTED\n",
                      *bad[] = {other, "", "slurm_load_jobs error", "JobId=42"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CU_ASSERT_EQUAL(gw_notice_parse_slurm(bad[i], strlen(bad[i]), "42", NOW_S, 180, &event, &any), GW_ERR_FORMAT);
        CU_ASSERT_FALSE(any);
    }
    /* what follows is another job */
    static const char two[] =
        "JobId=42 JobName=x\n   JobState=RUNNING Reason=None\nJobId=43 JobName=y\n   PreemptTime=2026-11-23T05:00:00\n";
    CU_ASSERT_EQUAL(gw_notice_parse_slurm(two, strlen(two), "42", NOW_S, 180, &event, &any), GW_OK);
    CU_ASSERT_FALSE(any);
}

/* Answers that were cut, or had bytes changed, are errors or answers, nothing else; sanitizers look on. */
static void test_damage(void)
{
    static const uint64_t seed = 20261123;
    printf("seed %llu ", (unsigned long long)seed);
    char *texts[3] = {gw_strdup("{\"action\": \"terminate\", \"time\": \"2026-11-23T05:02:00Z\"}"),
                      gw_strdup(LIST(EVENT("e1", "Preempt", "Scheduled", "\"vm_1\"", AT))),
                      slurm_text("RUNNING", "2026-11-23T04:59:00", "2026-11-23T05:01:00", "None")};
    for (uint32_t round = 0; round < 30000; round++) {
        const char *whole = texts[round % 3];
        size_t bytes = strlen(whole);
        uint32_t draw[4];
        gw_philox4x32((uint32_t[2]){(uint32_t)seed, 0}, (uint32_t[4]){round, 0, 0, 0}, draw);
        size_t length = draw[0] % 2 ? bytes : draw[1] % (bytes + 1);
        char *text = malloc(length ? length : 1); /* exactly so long */
        memcpy(text, whole, length);
        for (uint32_t k = 0; length && k < draw[2] % 4; k++)
            text[(draw[3] >> k * 8) % length] = (char)(draw[1] >> k * 8);
        struct gw_notice_event events[GW_NOTICE_AT_ONCE];
        int count = 0;
        bool any = false;
        gw_err rc = round % 3 == 0   ? gw_notice_parse_aws_action(text, length, &events[0])
                    : round % 3 == 1 ? gw_notice_parse_azure(text, length, "vm_1", NOW_S, events, &count)
                                     : gw_notice_parse_slurm(text, length, "42", NOW_S, 180, &events[0], &any);
        if (rc != GW_OK && rc != GW_ERR_FORMAT) CU_FAIL("another error");
        free(text);
    }
    for (int i = 0; i < 3; i++) free(texts[i]);
}

/* ---- lists, addresses, clouds ---------------------------------------------------------------------------------- */

static void test_lists(void)
{
    bool http = gw_http_available() == GW_OK;
    gw_err clouds = http ? GW_OK : GW_ERR_UNSUPPORTED;
    CU_ASSERT_EQUAL(gw_notice_spec_check("aws,azure=http://127.0.0.1:8080,gcp"), clouds);
    CU_ASSERT_EQUAL(gw_notice_spec_check("azure+ack=http://127.0.0.1:8080/x"), clouds);
    CU_ASSERT_EQUAL(gw_notice_spec_check("slurm,auto,slurm=60"), GW_OK);
    CU_ASSERT_EQUAL(gw_notice_spec_check("./n,/tmp/a=b,file:n,slurm"), GW_OK);
    static const char *const bad[] = {"",
                                      "asw",
                                      "notices",
                                      "aws+ack",
                                      "aws=https://x",
                                      "aws=127.0.0.1",
                                      "auto=1",
                                      "auto+ack",
                                      "file:",
                                      "azure+akc",
                                      "aws=",
                                      "aws=http://",
                                      "gcp=ftp://x",
                                      "slurm,oops",
                                      "azure+ack+ack",
                                      "auto,auto,auto,auto,slurm"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        gw_err rc = gw_notice_spec_check(bad[i]);
        CU_ASSERT_EQUAL(rc, GW_ERR_USAGE);
        if (rc != GW_ERR_USAGE) printf("'%s' ", bad[i]);
    }
    size_t at = 0;
    static const char list[] = "aws,/tmp/a=b,,slurm,file:n,./c";
    static const char *const files[] = {"/tmp/a=b", "n", "./c"};
    for (int i = 0; i < 3; i++) {
        char *path = gw_notice_spec_file(list, &at);
        CU_ASSERT_STRING_EQUAL(path ? path : "", files[i]);
        free(path);
    }
    CU_ASSERT_PTR_NULL(gw_notice_spec_file(list, &at));
    CU_ASSERT_TRUE(gw_notice_spec_polled(list));
    CU_ASSERT_FALSE(gw_notice_spec_polled("/tmp/a,file:slurm"));
}

static void test_addresses(void)
{
    static const char *const good[] = {
        "http://169.254.169.254", "http://127.0.0.1:1/",         "http://metadata.google.internal/x/y",
        "http://[fd00:ec2::254]", "http://[fd00:ec2::254]:80/x", "http://h:65535"};
    static const char *const bad[] = {"",           "http:/h",        "http://",     "https://h",
                                      "http://h:0", "http://h:65536", "http://h:",   "http://h:x",
                                      "http://u@h", "http://h/?x=1",  "http://h/#x", "http://h h",
                                      "http://:80", "http://h:8080x", "http://[::1", "HTTP://h",
                                      "http://h\n"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) CU_ASSERT_EQUAL(gw_http_check_address(good[i]), GW_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CU_ASSERT_EQUAL(gw_http_check_address(bad[i]), GW_ERR_USAGE);
        if (gw_http_check_address(bad[i]) == GW_OK) printf("'%s' ", bad[i]);
    }
}

static char folder[] = "/tmp/test_notice_XXXXXX";

static void put(const char *name, const char *text)
{
    char *path = gw_asprintf("%s/%s", folder, name);
    CU_ASSERT_EQUAL(gw_file_replace(path, text, strlen(text), false), GW_OK);
    free(path);
}

static void drop(const char *name)
{
    char *path = gw_asprintf("%s/%s", folder, name);
    unlink(path);
    free(path);
}

static void test_cloud(void)
{
    CU_ASSERT_PTR_NULL(gw_notice_cloud(folder));
    put("sys_vendor", "QEMU\n");
    CU_ASSERT_PTR_NULL(gw_notice_cloud(folder));
    put("sys_vendor", "Amazon EC2\n");
    CU_ASSERT_STRING_EQUAL(gw_notice_cloud(folder), "aws");
    put("sys_vendor", "Microsoft Corporation\n"); /* also a laptop, or one's own Hyper-V */
    CU_ASSERT_PTR_NULL(gw_notice_cloud(folder));
    put("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n");
    CU_ASSERT_STRING_EQUAL(gw_notice_cloud(folder), "azure");
    drop("chassis_asset_tag");
    drop("sys_vendor");
    put("product_name", "Google Compute Engine\n");
    CU_ASSERT_STRING_EQUAL(gw_notice_cloud(folder), "gcp");
    drop("product_name");
}

/* ---- running a program ----------------------------------------------------------------------------------------- */

static bool at_once(void *context)
{
    return --*(int *)context < 0;
}

static gw_err run(const char *script, double timeout_s, bool (*stopped)(void *), void *context, char **out,
                  size_t *bytes)
{
    const char *const argv[] = {"/bin/sh", "-c", script, NULL}, *const env[] = {"TZ=UTC0", "NOTICE_TEST=1 2", NULL};
    return gw_command_run(&(struct gw_command){.argv = argv,
                                               .env = env,
                                               .timeout_s = timeout_s,
                                               .most_bytes = 1000,
                                               .stopped = stopped,
                                               .context = context},
                          out, bytes);
}

static void test_command(void)
{
    char *out = NULL;
    size_t bytes = 0;
    setenv("NOTICE_TEST", "old", 1);
    CU_ASSERT_EQUAL(run("printf '%s|' \"$NOTICE_TEST\" \"$TZ\"; echo noise >&2", 20, NULL, NULL, &out, &bytes), GW_OK);
    CU_ASSERT_STRING_EQUAL(out ? out : "", "1 2|UTC0|");
    CU_ASSERT_EQUAL(bytes, 9);
    free(out);
    CU_ASSERT_EQUAL(run("echo first >&2; echo second >&2; exit 3", 20, NULL, NULL, &out, &bytes), GW_ERR_IO);
    CU_ASSERT_PTR_NULL(out);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "3): first"));
    CU_ASSERT_EQUAL(run("kill -9 $$", 20, NULL, NULL, &out, &bytes), GW_ERR_IO);
    CU_ASSERT_EQUAL(run("while :; do echo much; done", 20, NULL, NULL, &out, &bytes), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(run("while :; do echo much >&2; done", 0.3, NULL, NULL, &out, &bytes), GW_ERR_TIMEOUT);
    CU_ASSERT_EQUAL(run("exec 1>&-; exec sleep 100", 0.2, NULL, NULL, &out, &bytes), GW_ERR_TIMEOUT);
    int looks = 2;
    CU_ASSERT_EQUAL(run("exec sleep 100", 100, at_once, &looks, &out, &bytes), GW_ERR_STOPPED);
    const char *const none[] = {"/no/such/program", NULL};
    CU_ASSERT_EQUAL(gw_command_run(&(struct gw_command){.argv = none, .timeout_s = 20, .most_bytes = 9}, &out, &bytes),
                    GW_ERR_NOT_FOUND);
    char *shell = gw_command_find("sh");
    CU_ASSERT_PTR_NOT_NULL(shell);
    free(shell);
    CU_ASSERT_PTR_NULL(gw_command_find("no-such-program-of-this-name"));
}

/* A child that stays behind in the background, holding the pipe, is ended with the program. */
static void test_command_children(void)
{
    char *out = NULL, *script = gw_asprintf("sleep 300 & echo $! >%s/pid; sleep 300", folder),
         *path = gw_asprintf("%s/pid", folder);
    char *text = NULL;
    size_t bytes;
    CU_ASSERT_EQUAL(run(script, 0.5, NULL, NULL, &out, &bytes), GW_ERR_TIMEOUT);
    CU_ASSERT_EQUAL(gw_file_read(path, 100, &text, NULL), GW_OK);
    long pid = text ? strtol(text, NULL, 10) : 0;
    CU_ASSERT_TRUE_FATAL(pid > 1);
    bool gone = false;
    for (int tries = 0; tries < 500 && !gone; tries++) { /* it may be a zombie until its new parent looks */
        char *stat = gw_asprintf("/proc/%ld/stat", pid), *line = NULL;
        gone = gw_file_read(stat, 4096, &line, NULL) != GW_OK || strstr(line, ") Z ") || strstr(line, ") X ");
        free(line);
        free(stat);
        if (!gone) usleep(10000);
    }
    CU_ASSERT_TRUE(gone);
    drop("pid");
    free(text);
    free(script);
    free(path);
}

/* ---- a job asks for itself ------------------------------------------------------------------------------------- */

/* With a scontrol of our own on PATH, which writes down what it is asked for: a task of an array must not ask for the whole array. */
static void test_slurm_array(void)
{
    struct gw_notice_source *source = NULL;
    struct gw_notice_event event = {0};
    bool taken = false;
    char *before = gw_strdup(getenv("PATH")), *path = gw_asprintf("%s:%s", folder, before),
         *program = gw_asprintf("%s/scontrol", folder), *answer = slurm_text("PREEMPTED", "Unknown", "Unknown", "None"),
         *script = gw_asprintf("#!/bin/sh\n[ \"$*\" = 'show job 40_2' ] || exit 1\ncat <<'E'\n%sE\n", answer);
    put("scontrol", script);
    CU_ASSERT_EQUAL(chmod(program, 0700), 0);
    setenv("PATH", path, 1);
    setenv("SLURM_JOB_ID", "42", 1);
    setenv("SLURM_ARRAY_JOB_ID", "40", 1);
    setenv("SLURM_ARRAY_TASK_ID", "2", 1);
    setenv("GODWIT_NOTICE_POLL_S", "0.05", 1);
    CU_ASSERT_EQUAL(gw_notice_source_open("slurm", &source), GW_OK);
    for (int tries = 0; tries < 1000 && !taken; tries++) {
        taken = gw_notice_source_take(source, &event);
        if (!taken) usleep(10000);
    }
    CU_ASSERT_TRUE(taken);
    CU_ASSERT_PTR_NOT_NULL(strstr(event.text, "job 42"));
    gw_notice_source_close(source);
    static const char *const names[] = {"GODWIT_NOTICE_POLL_S", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID",
                                        "SLURM_JOB_ID"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
    setenv("PATH", before, 1);
    drop("scontrol");
    free(before);
    free(path);
    free(program);
    free(answer);
    free(script);
}

/* ---- sources that cannot work here ----------------------------------------------------------------------------- */

static void test_nothing_there(void)
{
    struct gw_notice_source *source = NULL;
    struct gw_notice_event event;
    unsetenv("SLURM_JOB_ID");
    CU_ASSERT_EQUAL(gw_notice_source_open("slurm,./file", &source), GW_OK); /* a line in the log, no more */
    CU_ASSERT_PTR_NOT_NULL_FATAL(source);
    CU_ASSERT_FALSE(gw_notice_source_take(source, &event));
    gw_notice_source_acknowledge(source);
    gw_notice_source_close(source);
    gw_notice_source_close(NULL);
    CU_ASSERT_EQUAL(gw_notice_source_open("slurm=abc", &source), GW_ERR_USAGE);
    CU_ASSERT_PTR_NULL(source);
    setenv("GODWIT_NOTICE_POLL_S", "often", 1);
    CU_ASSERT_EQUAL(gw_notice_source_open("slurm", &source), GW_ERR_USAGE);
    unsetenv("GODWIT_NOTICE_POLL_S");
}

int main(void)
{
    gw_log_set_level(GW_LOG_ERROR);
    if (!mkdtemp(folder) || CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("notice", NULL, NULL);
    CU_add_test(suite, "times", test_times);
    CU_add_test(suite, "days of four centuries", test_days);
    CU_add_test(suite, "AWS", test_aws);
    CU_add_test(suite, "Azure", test_azure);
    CU_add_test(suite, "Google Cloud", test_gcp);
    CU_add_test(suite, "Slurm", test_slurm);
    CU_add_test(suite, "damaged answers", test_damage);
    CU_add_test(suite, "lists", test_lists);
    CU_add_test(suite, "addresses", test_addresses);
    CU_add_test(suite, "clouds", test_cloud);
    CU_add_test(suite, "running a program", test_command);
    CU_add_test(suite, "its children", test_command_children);
    CU_add_test(suite, "a task of an array", test_slurm_array);
    CU_add_test(suite, "nothing there", test_nothing_there);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    rmdir(folder);
    return failures != 0;
}
