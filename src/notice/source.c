/* See source.h: the list of sources, a thread for each, and what they said so far.
 *
 * A thread owns its source's state; only the events, the wish to end and the wish to acknowledge are shared, under one lock. */
#include "notice/source.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "notice/http.h"
#include "notice/internal.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SEEN = 32, QUEUE = 32, LINKS = 8, QUIET_FAILURES = 1 };
static const double FORGET_S = 600, FIRST_PAUSE_S = 1, ACKNOWLEDGE_S = 6, MOST_MARGIN_S = 5;
static const struct gw_notice_kind_ops *const kinds[] = {&gw_notice_aws, &gw_notice_azure, &gw_notice_gcp,
                                                         &gw_notice_slurm};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* One source. */
struct gw_notice_link {
    struct gw_notice_source *owner;
    const struct gw_notice_kind_ops *ops;
    void *state;
    pthread_t thread;
    bool acknowledge, acknowledged; /* wanted, done */
    int failures;                   /* in a row */
    bool warned;
    struct {
        char id[sizeof((struct gw_notice_event *)0)->id];
        double at_s, said_s;
    } seen[SEEN]; /* a ring */
    int seen_count;
};

struct gw_notice_source {
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool stop;
    double every_s; /* 0: as the kinds say */
    struct gw_notice_event queue[QUEUE];
    int first, count;
    struct gw_notice_link links[LINKS];
    int link_count;
};

/* ---- the list -------------------------------------------------------------------------------------------------- */

/* One item of the list. */
struct item {
    char *text;        /* heap: the item, cut into the parts that follow */
    const char *name;  /* of a kind; or "auto"; or NULL for a file */
    const char *value; /* behind "="; a file's path; or NULL */
    bool ack;
};

/* The next item behind *at; false at the end of the list. */
static bool next_item(const char *list, size_t *at, struct item *item)
{
    while (list[*at] == ',') (*at)++;
    if (!list[*at]) return false;
    size_t length = strcspn(list + *at, ",");
    *item = (struct item){.text = gw_strndup(list + *at, length)};
    *at += length;
    char *equals = strchr(item->text, '='), *slash = strchr(item->text, '/');
    if (!strncmp(item->text, "file:", 5)) {
        item->value = item->text + 5;
    } else if (slash && (!equals || slash < equals)) {
        item->value = item->text;
    } else {
        if (equals) {
            *equals = 0;
            item->value = equals + 1;
        }
        char *plus = strchr(item->text, '+');
        item->ack = plus && !strcmp(plus, "+ack");
        if (item->ack) *plus = 0;
        item->name = item->text;
    }
    return true;
}

static const struct gw_notice_kind_ops *kind_of(const char *name)
{
    for (int i = 0; i < KINDS; i++)
        if (!strcmp(kinds[i]->name, name)) return kinds[i];
    return NULL;
}

static gw_err check_item(const struct item *item)
{
    if (!item->name)
        return item->value[0] ? GW_OK : gw_fail(GW_ERR_USAGE, "--notice file: lacks the file's path behind the colon");
    if (!strcmp(item->name, "auto") && !item->value && !item->ack) return GW_OK;
    const struct gw_notice_kind_ops *kind = kind_of(item->name);
    if (!kind)
        return gw_fail(GW_ERR_USAGE,
                       "--notice '%.60s' is no source of notices: aws, azure, gcp, slurm, auto, or a file with its "
                       "folder, such as ./notices",
                       item->name);
    if (item->ack && !kind->ack)
        return gw_fail(GW_ERR_USAGE, "--notice %s: nothing can be acknowledged there", kind->name);
    if (!kind->http) return GW_OK;
    gw_err rc = item->value ? gw_http_check_address(item->value) : GW_OK;
    if (rc != GW_OK) return gw_fail(rc, "--notice %s=: %s", kind->name, gw_error_detail());
    return gw_http_available();
}

gw_err gw_notice_spec_check(const char *list)
{
    gw_err rc = GW_OK;
    struct item item;
    int polled = 0;
    if (!list[0]) return gw_fail(GW_ERR_USAGE, "--notice: nothing is named");
    for (size_t at = 0; rc == GW_OK && next_item(list, &at, &item); free(item.text)) {
        rc = check_item(&item);
        polled += !item.name ? 0 : strcmp(item.name, "auto") ? 1 : 2; /* a cloud, and Slurm */
    }
    if (rc == GW_OK && polled > LINKS) rc = gw_fail(GW_ERR_USAGE, "--notice: more than %d sources", LINKS);
    return rc;
}

char *gw_notice_spec_file(const char *list, size_t *at)
{
    struct item item;
    while (next_item(list, at, &item)) {
        char *path = item.name ? NULL : gw_strdup(item.value);
        free(item.text);
        if (path) return path;
    }
    return NULL;
}

bool gw_notice_spec_polled(const char *list)
{
    struct item item;
    bool polled = false;
    for (size_t at = 0; !polled && next_item(list, &at, &item); free(item.text)) polled = item.name != NULL;
    return polled;
}

/* ---- which cloud ----------------------------------------------------------------------------------------------- */

static bool dmi_says(const char *dmi, const char *file, const char *begin)
{
    char *path = gw_asprintf("%s/%s", dmi, file), *text = NULL;
    bool says = gw_file_read(path, 4096, &text, NULL) == GW_OK && !strncmp(text, begin, strlen(begin));
    free(text);
    free(path);
    return says;
}

const char *gw_notice_cloud(const char *dmi)
{
    if (dmi_says(dmi, "sys_vendor", "Amazon EC2") || dmi_says(dmi, "bios_vendor", "Amazon EC2")) return "aws";
    if (dmi_says(dmi, "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"))
        return "azure"; /* every machine there */
    if (dmi_says(dmi, "product_name", "Google Compute Engine") || dmi_says(dmi, "sys_vendor", "Google")) return "gcp";
    return NULL;
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

bool gw_notice_stopped(void *context)
{
    struct gw_notice_source *source = ((struct gw_notice_link *)context)->owner;
    pthread_mutex_lock(&source->lock);
    bool stop = source->stop;
    pthread_mutex_unlock(&source->lock);
    return stop;
}

/* Is it said for the first time, or sooner than it was? What has not been said for a while may happen again. */
static bool is_new(struct gw_notice_link *link, const struct gw_notice_event *event)
{
    double now_s = gw_clock_now_s();
    int known = link->seen_count < SEEN ? link->seen_count : SEEN, i = 0;
    while (i < known && strcmp(link->seen[i].id, event->id)) i++;
    bool is_new = i == known || event->at_s < link->seen[i].at_s - 1 || now_s - link->seen[i].said_s > FORGET_S;
    if (i == known) i = link->seen_count++ % SEEN;
    memcpy(link->seen[i].id, event->id, sizeof event->id);
    if (is_new) link->seen[i].at_s = event->at_s;
    link->seen[i].said_s = now_s;
    return is_new;
}

void gw_notice_emit(struct gw_notice_link *link, const struct gw_notice_event *event)
{
    struct gw_notice_source *source = link->owner;
    if (!is_new(link, event)) return;
    pthread_mutex_lock(&source->lock);
    if (source->count < QUEUE) source->queue[(source->first + source->count++) % QUEUE] = *event;
    pthread_mutex_unlock(&source->lock);
}

bool gw_notice_source_take(struct gw_notice_source *source, struct gw_notice_event *event)
{
    pthread_mutex_lock(&source->lock);
    bool any = source->count > 0;
    if (any) {
        *event = source->queue[source->first];
        source->first = (source->first + 1) % QUEUE;
        source->count--;
    }
    pthread_mutex_unlock(&source->lock);
    if (!any) return false;
    double left_s = event->at_s - gw_clock_wall_s();
    double margin_s = left_s / 10 < MOST_MARGIN_S ? left_s / 10 : MOST_MARGIN_S;
    event->left_s = left_s > 0 ? left_s - margin_s : 0;
    return true;
}

/* ---- the threads ----------------------------------------------------------------------------------------------- */

static struct timespec moment_in(double seconds)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    double whole = (double)at.tv_sec + (double)at.tv_nsec * 1e-9 + seconds;
    at.tv_sec = (time_t)whole;
    at.tv_nsec = (long)((whole - (double)at.tv_sec) * 1e9);
    return at;
}

/* Sleeps, unless there is something else to do. */
static void pause_for(struct gw_notice_link *link, double seconds)
{
    struct gw_notice_source *source = link->owner;
    struct timespec until = moment_in(seconds);
    pthread_mutex_lock(&source->lock);
    while (!source->stop && !(link->acknowledge && !link->acknowledged))
        if (pthread_cond_timedwait(&source->change, &source->lock, &until)) break;
    pthread_mutex_unlock(&source->lock);
}

static void acknowledge(struct gw_notice_link *link)
{
    struct gw_notice_source *source = link->owner;
    pthread_mutex_lock(&source->lock);
    bool wanted = link->acknowledge && !link->acknowledged && !source->stop;
    pthread_mutex_unlock(&source->lock);
    if (!wanted) return;
    if (link->ops->acknowledge(link->state) != GW_OK)
        gw_warn("%s could not be told that this machine is ready to go: %s", link->ops->title, gw_error_detail());
    pthread_mutex_lock(&source->lock);
    link->acknowledged = true;
    pthread_cond_broadcast(&source->change);
    pthread_mutex_unlock(&source->lock);
}

/* How long to wait after an answer, or a failure. One failure is nothing; a source that goes on failing costs one warning in its life. */
static double judge(struct gw_notice_link *link, gw_err rc)
{
    const struct gw_notice_kind_ops *ops = link->ops;
    double every_s = link->owner->every_s > 0 ? link->owner->every_s : ops->every_s, pause_s = FIRST_PAUSE_S;
    if (rc == GW_OK) {
        if (link->failures > QUIET_FAILURES) gw_debug("notices from %s: it answers again", ops->title);
        link->failures = 0;
        return every_s;
    }
    link->failures++;
    if (link->failures > QUIET_FAILURES && !link->warned) {
        link->warned = true;
        gw_warn("no notices from %s: %s; it is asked on, and without notices nothing but time is lost", ops->title,
                gw_error_detail());
    } else {
        gw_debug("notices from %s: %s", ops->title, gw_error_detail());
    }
    for (int i = 1; i < link->failures && pause_s < ops->slowest_s; i++) pause_s *= 2;
    return pause_s < ops->slowest_s ? pause_s : ops->slowest_s;
}

static void *watch(void *argument)
{
    struct gw_notice_link *link = argument;
    while (!gw_notice_stopped(link)) {
        gw_err rc = link->ops->poll(link->state);
        if (rc == GW_ERR_STOPPED) break;
        acknowledge(link);
        pause_for(link, judge(link, rc));
        acknowledge(link);
    }
    return NULL;
}

/* ---- open and close -------------------------------------------------------------------------------------------- */

static gw_err start(struct gw_notice_link *link)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before); /* signals are for the caller's thread */
    int error = pthread_create(&link->thread, NULL, watch, link);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) return gw_fail(GW_ERR_MEMORY, "cannot start a thread for notices: %s", strerror(error));
    return GW_OK;
}

static gw_err add(struct gw_notice_source *source, const struct gw_notice_kind_ops *ops, const char *value, bool ack)
{
    gw_err rc = GW_OK;
    struct gw_notice_link *link = &source->links[source->link_count];
    *link = (struct gw_notice_link){.owner = source, .ops = ops};
    rc = ops->create(link, value ? value : ops->address, ack, &link->state);
    if (rc == GW_ERR_NOT_FOUND) {
        gw_warn("no notices from %s: %s", ops->title, gw_error_detail());
        return GW_OK;
    }
    if (rc != GW_OK) return rc;
    TRY(start(link));
    source->link_count++;
    gw_info("notices from %s are watched for", ops->title);
out:
    if (rc != GW_OK) ops->destroy(link->state);
    return rc;
}

/* What this machine is, and whether Slurm has started us. */
static gw_err add_automatic(struct gw_notice_source *source)
{
    gw_err rc = GW_OK;
    const char *cloud = gw_notice_cloud("/sys/class/dmi/id");
    if (cloud && gw_http_available() != GW_OK) gw_warn("no notices from %s: %s", cloud, gw_error_detail());
    else if (cloud) TRY(add(source, kind_of(cloud), NULL, false));
    if (getenv("SLURM_JOB_ID")) TRY(add(source, &gw_notice_slurm, NULL, false));
    if (!cloud && !getenv("SLURM_JOB_ID"))
        gw_info("--notice auto: this is neither a machine of AWS, Azure or Google Cloud nor a Slurm job");
out:
    return rc;
}

static gw_err read_pace(double *every_s)
{
    const char *text = getenv("GODWIT_NOTICE_POLL_S");
    char *end;
    *every_s = 0;
    if (!text) return GW_OK;
    *every_s = strtod(text, &end);
    if (end == text || *end || !(*every_s >= 0.05) || *every_s > 3600)
        return gw_fail(GW_ERR_USAGE, "GODWIT_NOTICE_POLL_S='%.40s' is not a number of seconds from 0.05 to 3600", text);
    return GW_OK;
}

gw_err gw_notice_source_open(const char *list, struct gw_notice_source **out)
{
    gw_err rc = GW_OK;
    struct item item;
    pthread_condattr_t attributes;
    struct gw_notice_source *source = gw_alloc(1, sizeof *source);
    pthread_mutex_init(&source->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&source->change, &attributes);
    pthread_condattr_destroy(&attributes);
    *out = NULL;
    TRY(gw_notice_spec_check(list));
    TRY(read_pace(&source->every_s));
    for (size_t at = 0; rc == GW_OK && next_item(list, &at, &item); free(item.text)) {
        if (!item.name) continue;
        if (!strcmp(item.name, "auto")) rc = add_automatic(source);
        else rc = add(source, kind_of(item.name), item.value, item.ack);
    }
out:
    if (rc != GW_OK) gw_notice_source_close(source);
    else *out = source;
    return rc;
}

void gw_notice_source_acknowledge(struct gw_notice_source *source)
{
    struct timespec until = moment_in(ACKNOWLEDGE_S);
    pthread_mutex_lock(&source->lock);
    for (int i = 0; i < source->link_count; i++)
        source->links[i].acknowledge = source->links[i].ops->acknowledge != NULL;
    pthread_cond_broadcast(&source->change);
    for (int i = 0; i < source->link_count; i++)
        while (source->links[i].acknowledge && !source->links[i].acknowledged)
            if (pthread_cond_timedwait(&source->change, &source->lock, &until)) break;
    pthread_mutex_unlock(&source->lock);
}

void gw_notice_source_close(struct gw_notice_source *source)
{
    if (!source) return;
    pthread_mutex_lock(&source->lock);
    source->stop = true;
    pthread_cond_broadcast(&source->change);
    pthread_mutex_unlock(&source->lock);
    for (int i = 0; i < source->link_count; i++) {
        pthread_join(source->links[i].thread, NULL);
        source->links[i].ops->destroy(source->links[i].state);
    }
    pthread_cond_destroy(&source->change);
    pthread_mutex_destroy(&source->lock);
    free(source);
}
