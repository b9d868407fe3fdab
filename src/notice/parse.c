/* See parse.h. */
#include "notice/parse.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char *const month_names[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                          "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
static const char *const day_names[] = {"Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"}; /* 1 January 1970 first */
static const double PREEMPTED_GCP_S = 30, MAINTENANCE_GCP_S = 60, ENDING_SLURM_S = 5;

bool gw_notice_plain_word(const char *data, size_t bytes, size_t most)
{
    for (size_t i = 0; i < bytes; i++)
        if (data[i] <= ' ' || data[i] > '~') return false;
    return bytes > 0 && bytes <= most;
}

/* ---- times ----------------------------------------------------------------------------------------------------- */

struct moment {
    int year, month, day, hour, minute, second; /* month from 1 */
    double fraction;
};

static int days_in_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && leap);
}

/* Days since 1970; months are counted from March, so that a leap day is the last of its year. */
static long days_since_1970(const struct moment *m)
{
    long year = m->month > 2 ? m->year : m->year - 1, month = (m->month + 9) % 12;
    return 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + m->day - 1 - 719468;
}

static gw_err seconds_since_1970(const struct moment *m, const char *text, double *at_s)
{
    if (m->year < 1970 || m->month < 1 || m->month > 12 || m->day < 1 || m->day > days_in_month(m->year, m->month) ||
        m->hour > 23 || m->minute > 59 || m->second > 60)
        return gw_fail(GW_ERR_FORMAT, "there is no such time as '%.40s'", text);
    *at_s = (double)days_since_1970(m) * 86400 + m->hour * 3600 + m->minute * 60 + m->second + m->fraction;
    return GW_OK;
}

/* Exactly `digits` of them; moves on. */
static bool take_number(const char **text, int digits, int *number)
{
    *number = 0;
    for (int i = 0; i < digits; i++) {
        if (**text < '0' || **text > '9') return false;
        *number = *number * 10 + (*(*text)++ - '0');
    }
    return true;
}

static bool take_char(const char **text, char wanted)
{
    if (**text != wanted) return false;
    (*text)++;
    return true;
}

static bool take_clock(const char **at, struct moment *m)
{
    return take_number(at, 2, &m->hour) && take_char(at, ':') && take_number(at, 2, &m->minute) && take_char(at, ':') &&
           take_number(at, 2, &m->second);
}

gw_err gw_notice_time_iso(const char *text, bool zone, double *at_s)
{
    struct moment m = {0};
    const char *at = text;
    bool good = take_number(&at, 4, &m.year) && take_char(&at, '-') && take_number(&at, 2, &m.month) &&
                take_char(&at, '-') && take_number(&at, 2, &m.day) && take_char(&at, 'T') && take_clock(&at, &m);
    if (good && take_char(&at, '.')) {
        double unit = 0.1;
        good = *at >= '0' && *at <= '9';
        for (; *at >= '0' && *at <= '9'; unit /= 10) m.fraction += unit * (*at++ - '0');
    }
    if (good && zone) good = take_char(&at, 'Z');
    if (!good || *at) return gw_fail(GW_ERR_FORMAT, "'%.40s' is not a time such as 2026-11-23T05:10:00Z", text);
    return seconds_since_1970(&m, text, at_s);
}

static int index_of(const char *const *names, int count, const char *text)
{
    for (int i = 0; i < count; i++)
        if (!strncmp(names[i], text, 3)) return i;
    return -1;
}

gw_err gw_notice_time_http(const char *text, double *at_s)
{
    struct moment m = {0};
    const char *at = text;
    int weekday = index_of(day_names, 7, text);
    bool good = weekday >= 0;
    if (good) {
        at += 3;
        good = take_char(&at, ',') && take_char(&at, ' ') && take_number(&at, 2, &m.day) && take_char(&at, ' ');
    }
    if (good) {
        m.month = index_of(month_names, 12, at) + 1;
        good = m.month > 0;
    }
    if (good) {
        at += 3;
        good = take_char(&at, ' ') && take_number(&at, 4, &m.year) && take_char(&at, ' ') && take_clock(&at, &m) &&
               !strcmp(at, " GMT");
    }
    if (!good) return gw_fail(GW_ERR_FORMAT, "'%.40s' is not a time such as Mon, 23 Nov 2026 05:10:00 GMT", text);
    gw_err rc = seconds_since_1970(&m, text, at_s);
    if (rc == GW_OK && days_since_1970(&m) % 7 != weekday)
        rc = gw_fail(GW_ERR_FORMAT, "'%.40s' is another day of the week", text);
    return rc;
}

/* ---- AWS ------------------------------------------------------------------------------------------------------- */

static gw_err load_object(const char *data, size_t bytes, const char *what, json_t **root)
{
    json_error_t error;
    *root = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error);
    if (json_is_object(*root)) return GW_OK;
    json_decref(*root);
    *root = NULL;
    return gw_fail(GW_ERR_FORMAT, "%s is not a JSON object", what);
}

/* A member that must be there, and be a plain text of at most `most` characters. */
static gw_err text_of(const json_t *object, const char *name, size_t most, const char **text)
{
    const json_t *value = json_object_get(object, name);
    *text = json_string_value(value);
    if (!*text) return gw_fail(GW_ERR_FORMAT, "there is no text '%s' in the answer", name);
    size_t bytes = json_string_length(value);
    bool plain = bytes <= most;
    for (size_t i = 0; plain && i < bytes; i++) plain = (*text)[i] >= ' ' && (*text)[i] <= '~';
    if (!plain) return gw_fail(GW_ERR_FORMAT, "'%s' in the answer is no plain text", name);
    return GW_OK;
}

gw_err gw_notice_parse_aws_action(const char *data, size_t bytes, struct gw_notice_event *event)
{
    gw_err rc = GW_OK;
    json_t *root = NULL;
    const char *action, *time;
    *event = (struct gw_notice_event){.kind = GW_NOTICE_LEAVE};
    TRY(load_object(data, bytes, "instance-action", &root));
    TRY(text_of(root, "action", 24, &action));
    TRY(text_of(root, "time", 40, &time));
    TRY(gw_notice_time_iso(time, true, &event->at_s));
    if (!gw_notice_plain_word(action, strlen(action), 24)) FAIL(GW_ERR_FORMAT, "'action' in the answer is no word");
    snprintf(event->id, sizeof event->id, "action %s", action);
    snprintf(event->text, sizeof event->text, "AWS takes this spot instance away (%s) at %s", action, time);
out:
    json_decref(root);
    return rc;
}

gw_err gw_notice_parse_aws_rebalance(const char *data, size_t bytes, struct gw_notice_event *event)
{
    gw_err rc = GW_OK;
    json_t *root = NULL;
    const char *time;
    *event = (struct gw_notice_event){.kind = GW_NOTICE_EARLY};
    TRY(load_object(data, bytes, "rebalance", &root));
    TRY(text_of(root, "noticeTime", 40, &time));
    TRY(gw_notice_time_iso(time, true, &event->at_s));
    snprintf(event->id, sizeof event->id, "rebalance %s", time);
    snprintf(event->text, sizeof event->text,
             "AWS recommends to rebalance since %s: this spot instance is more likely to be taken away", time);
out:
    json_decref(root);
    return rc;
}

/* ---- Azure ----------------------------------------------------------------------------------------------------- */

static bool concerns(const json_t *resources, const char *vm)
{
    size_t i;
    json_t *name;
    json_array_foreach(resources, i, name)
    {
        if (json_is_string(name) && !strcasecmp(json_string_value(name), vm)) return true;
    }
    return false;
}

/* *any: it is for this machine, and of a kind that matters. */
static gw_err azure_event(const json_t *item, const char *vm, double now_s, struct gw_notice_event *event, bool *any)
{
    gw_err rc = GW_OK;
    const char *id, *type, *status, *not_before;
    *any = false;
    if (!json_is_object(item) || !json_is_array(json_object_get(item, "Resources")))
        return gw_fail(GW_ERR_FORMAT, "a scheduled event without resources");
    if (!concerns(json_object_get(item, "Resources"), vm)) return GW_OK;
    TRY(text_of(item, "EventId", 64, &id));
    TRY(text_of(item, "EventType", 24, &type));
    TRY(text_of(item, "EventStatus", 24, &status));
    TRY(text_of(item, "NotBefore", 40, &not_before));
    if (!gw_notice_plain_word(id, strlen(id), 64)) FAIL(GW_ERR_FORMAT, "a scheduled event without an identity");
    bool leaves = !strcmp(type, "Preempt") || !strcmp(type, "Terminate") || !strcmp(type, "Reboot") ||
                  !strcmp(type, "Redeploy");
    if (!leaves && strcmp(type, "Freeze")) return GW_OK;
    *event = (struct gw_notice_event){.kind = leaves ? GW_NOTICE_LEAVE : GW_NOTICE_EARLY, .at_s = now_s};
    if (not_before[0]) TRY(gw_notice_time_http(not_before, &event->at_s)); /* "" once it has started */
    else if (strcmp(status, "Started")) FAIL(GW_ERR_FORMAT, "a scheduled event that has no time");
    snprintf(event->id, sizeof event->id, "%s", id);
    snprintf(event->text, sizeof event->text, "Azure %s this machine (%s, %s) not before %s",
             leaves ? "takes away or restarts" : "stops for a moment", type, status,
             not_before[0] ? not_before : "now");
    *any = true;
out:
    return rc;
}

gw_err gw_notice_parse_azure(const char *data, size_t bytes, const char *vm, double now_s,
                             struct gw_notice_event events[GW_NOTICE_AT_ONCE], int *count)
{
    gw_err rc = GW_OK, bad = GW_OK;
    json_t *root = NULL, *item;
    size_t i;
    *count = 0;
    TRY(load_object(data, bytes, "the list of scheduled events", &root));
    const json_t *list = json_object_get(root, "Events");
    if (!json_is_array(list)) FAIL(GW_ERR_FORMAT, "there are no 'Events' in the answer");
    json_array_foreach(list, i, item)
    {
        bool any = false;
        if (*count == GW_NOTICE_AT_ONCE) break;
        gw_err read = azure_event(item, vm, now_s, &events[*count], &any);
        if (read != GW_OK) bad = read;
        else *count += any;
    }
    rc = bad;
out:
    json_decref(root);
    return rc;
}

/* ---- Google Cloud ---------------------------------------------------------------------------------------------- */

static bool says(const char *data, size_t bytes, const char *word)
{
    while (bytes && (data[bytes - 1] == '\n' || data[bytes - 1] == '\r')) bytes--;
    return bytes == strlen(word) && !memcmp(data, word, bytes);
}

gw_err gw_notice_parse_gcp_preempted(const char *data, size_t bytes, double now_s, struct gw_notice_event *event,
                                     bool *any)
{
    *any = says(data, bytes, "TRUE");
    if (!*any && !says(data, bytes, "FALSE"))
        return gw_fail(GW_ERR_FORMAT, "instance/preempted is neither TRUE nor FALSE");
    *event = (struct gw_notice_event){.kind = GW_NOTICE_LEAVE, .at_s = now_s + PREEMPTED_GCP_S};
    snprintf(event->id, sizeof event->id, "preempted");
    snprintf(event->text, sizeof event->text, "Google Cloud preempts this machine: it has about %.0f s",
             PREEMPTED_GCP_S);
    return GW_OK;
}

gw_err gw_notice_parse_gcp_maintenance(const char *data, size_t bytes, double now_s, struct gw_notice_event *event,
                                       bool *any)
{
    bool terminate = says(data, bytes, "TERMINATE_ON_HOST_MAINTENANCE");
    bool migrate = says(data, bytes, "MIGRATE_ON_HOST_MAINTENANCE");
    *any = terminate || migrate;
    if (!*any && !says(data, bytes, "NONE"))
        return gw_fail(GW_ERR_FORMAT, "instance/maintenance-event is none of the known words");
    *event = (struct gw_notice_event){.kind = terminate ? GW_NOTICE_LEAVE : GW_NOTICE_EARLY,
                                      .at_s = now_s + MAINTENANCE_GCP_S};
    snprintf(event->id, sizeof event->id, terminate ? "terminate" : "migrate");
    snprintf(event->text, sizeof event->text,
             terminate
                 ? "Google Cloud ends this machine for maintenance of its host in about %.0f s"
                 : "Google Cloud moves this machine to another host in about %.0f s: it stands still for a moment",
             MAINTENANCE_GCP_S);
    return GW_OK;
}

/* ---- Slurm ----------------------------------------------------------------------------------------------------- */

struct slurm_job {
    char id[32], state[32], start[32], end[32], preempted[32];
};

/* "Key=Value" words of a line. Only lines that begin with a known key are read: job names and comments may hold anything. */
static void read_words(const char *line, size_t bytes, struct slurm_job *job)
{
    const struct {
        const char *key;
        char *value;
    } keys[] = {{"JobId=", job->id},
                {"JobState=", job->state},
                {"StartTime=", job->start},
                {"EndTime=", job->end},
                {"PreemptTime=", job->preempted}};
    for (size_t at = 0; at < bytes;) {
        size_t end = at;
        while (end < bytes && line[end] != ' ') end++;
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            size_t from = at + strlen(keys[k].key);
            if (from > end || memcmp(line + at, keys[k].key, from - at) || keys[k].value[0]) continue;
            if (end - from < sizeof job->id) memcpy(keys[k].value, line + from, end - from);
        }
        at = end + 1;
        if (job->id[0] && !job->state[0]) return; /* the first line: a name follows */
    }
}

static bool begins(const char *line, size_t bytes, const char *with)
{
    return bytes >= strlen(with) && !memcmp(line, with, strlen(with));
}

static void read_job(const char *data, size_t bytes, struct slurm_job *job)
{
    for (size_t at = 0; at < bytes;) {
        size_t end = at;
        while (end < bytes && data[end] != '\n') end++;
        size_t from = at;
        while (from < end && data[from] == ' ') from++;
        const char *line = data + from;
        size_t length = end - from;
        if (begins(line, length, "JobId=") && job->id[0]) return; /* another job */
        if (begins(line, length, "JobId=") || begins(line, length, "JobState=") || begins(line, length, "StartTime=") ||
            begins(line, length, "EndTime=") || begins(line, length, "PreemptEligibleTime=") ||
            begins(line, length, "PreemptTime="))
            read_words(line, length, job);
        at = end + 1;
    }
}

/* "None", "Unknown" and nothing at all are no time. */
static gw_err slurm_time(const char *text, bool *there, double *at_s)
{
    *there = text[0] && strcmp(text, "None") && strcmp(text, "Unknown") && strcmp(text, "N/A");
    return *there ? gw_notice_time_iso(text, false, at_s) : GW_OK;
}

gw_err gw_notice_parse_slurm(const char *data, size_t bytes, const char *job_id, double now_s, double ahead_s,
                             struct gw_notice_event *event, bool *any)
{
    static const char *const running[] = {"RUNNING", "CONFIGURING", "SUSPENDED", "RESIZING", "SIGNALING", "STOPPED"};
    gw_err rc = GW_OK;
    struct slurm_job job = {0};
    bool has_start = false, has_end = false, preempted = false, leaves = true;
    double start_s = 0, end_s = 0, preempt_s = 0;
    *any = false;
    *event = (struct gw_notice_event){.kind = GW_NOTICE_LEAVE};
    read_job(data, bytes, &job);
    if (strcmp(job.id, job_id)) FAIL(GW_ERR_FORMAT, "the answer does not tell of job %s", job_id);
    if (!gw_notice_plain_word(job.state, strlen(job.state), sizeof job.state))
        FAIL(GW_ERR_FORMAT, "the answer does not tell the state of job %s", job_id);
    TRY(slurm_time(job.start, &has_start, &start_s));
    TRY(slurm_time(job.end, &has_end, &end_s));
    TRY(slurm_time(job.preempted, &preempted, &preempt_s));
    preempted &= !has_start || preempt_s >= start_s; /* one of before it was queued again says nothing */
    for (size_t i = 0; i < sizeof running / sizeof *running; i++) leaves &= strcmp(job.state, running[i]) != 0;
    if (leaves) { /* also PENDING: a job that runs and waits has been put back into the queue */
        event->at_s = now_s + ENDING_SLURM_S;
        snprintf(event->id, sizeof event->id, "gone");
        snprintf(event->text, sizeof event->text, "Slurm ends job %s: its state is %s", job_id, job.state);
    } else if (preempted) { /* during GraceTime its state does not change, but its end does */
        event->at_s = has_end ? end_s : now_s + ENDING_SLURM_S;
        snprintf(event->id, sizeof event->id, "preempted");
        snprintf(event->text, sizeof event->text, "Slurm preempts job %s: its end is %s UTC", job_id,
                 has_end ? job.end : "near");
    } else if (has_end && end_s - now_s <= ahead_s) {
        event->kind = GW_NOTICE_TIME_LIMIT;
        event->at_s = end_s;
        snprintf(event->id, sizeof event->id, "time limit");
        snprintf(event->text, sizeof event->text, "the time limit of Slurm job %s is at %s UTC", job_id, job.end);
    } else {
        goto out;
    }
    *any = true;
out:
    return rc;
}
