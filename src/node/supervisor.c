/* See supervisor.h.
 *
 * There is a present launch, and while the nodes change a next one that stands by. The next one's ranks are told to begin when the present one has
 * ended, however it ended.
 */
#include "node/supervisor.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "batch/io/digest.h"
#include "job/chaos.h"
#include "job/executor.h"
#include "job/requests.h"
#include "model/arch.h"
#include "node/progress.h"
#include "node/summary.h"
#include "report/page.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_FRUITLESS = 4 };
static const double PAUSE_S[MOST_FRUITLESS] = {0, 0.2, 1, 3}, STAND_BY_S = 300, RUSH_S = 2, REPORT_EVERY_S = 300,
                    HAND_OVER_S = 20, STOP_S = 3;

struct gw_supervisor {
    struct gw_supervisor_config config;
    struct gw_launch *launch; /* the present one */
    int inherited;            /* number of the present one, if another supervisor's node has its launcher; else -1 */
    struct gw_launch *next;   /* stands by, or will */
    struct gw_progress progress;
    int number;          /* of the launch to be started next */
    int stops;           /* requests to end */
    char leave_why[256]; /* this node is being taken away; else "" */
    int fruitless;
    int64_t reached;
    double
        status_s; /* updated_at of status.json when the present launch began: what it has not written is not its own */
    bool renew;   /* the nodes have changed */
    bool handing_over; /* the present launch has been told to give way to the next one */
    bool moving;       /* and brings what leaving nodes hold to the others before */
    bool next_fenced;
    double not_before_s; /* the next launch */
    double report_s;     /* when the next is due */
    double next_since_s;
    double press_s; /* when it has had its time for that, or for stopping */
};

struct gw_supervisor *gw_supervisor_create(const struct gw_supervisor_config *config)
{
    struct gw_supervisor *s = gw_alloc(1, sizeof *s);
    s->config = *config;
    s->number = config->first_launch;
    s->reached = s->inherited = -1;
    s->report_s = gw_clock_now_s() + REPORT_EVERY_S / 5;
    gw_progress_init(&s->progress, config->options->out_dir, !config->options->quiet);
    if (s->number == 0) { /* a status.json of an earlier command must not be taken for this one's */
        char *path = gw_asprintf("%s/status.json", config->options->out_dir);
        unlink(path);
        free(path);
    }
    return s;
}

void gw_supervisor_destroy(struct gw_supervisor *s)
{
    if (!s) return;
    gw_launch_destroy(s->next);
    gw_launch_destroy(s->launch);
    free(s);
}

gw_err gw_supervisor_check(const struct gw_job_options *options)
{
    gw_err rc = GW_OK;
    struct gw_model *model = NULL;
    struct gw_chaos *chaos = NULL;
    if (options->chaos) TRY(gw_chaos_parse(options->chaos, &chaos));
    TRY(gw_model_open(options->model_path, &model));
    if (options->layout_set) {
        struct gw_dims dims = gw_executor_dims(model);
        TRY(gw_layout_check(&dims, options->layout));
    }
    if (access(options->input_path, R_OK))
        FAIL(GW_ERR_NOT_FOUND, "cannot read input %s: %s", options->input_path, strerror(errno));
    TRY(gw_make_dir(options->out_dir));
out:
    gw_chaos_destroy(chaos);
    gw_model_close(model);
    return rc;
}

gw_err gw_supervisor_done(const struct gw_job_options *options, bool *done)
{
    gw_err rc = GW_OK;
    struct gw_model *model = NULL;
    struct gw_status status;
    struct gw_digest_counts counts;
    uint64_t job_id;
    char hex[65];
    *done = false;
    if (gw_status_read(options->out_dir, &status) != GW_OK || strcmp(status.state, "done")) return GW_OK;
    TRY(gw_model_open(options->model_path, &model));
    int most = gw_model_info(model)->context;
    int context = options->context && options->context < most ? options->context : most;
    TRY(gw_requests_same_job(options, model, context, &job_id));
    TRY(gw_digest_compute(options->out_dir, hex, &counts));
    *done = (int64_t)(counts.answered + counts.failed) == status.requests_total;
out:
    gw_model_close(model);
    return rc;
}

/* ---- how it ended ---------------------------------------------------------------------------------------------- */

gw_err gw_supervisor_summary(const struct gw_job_options *options)
{
    gw_err rc = GW_OK;
    struct gw_status status;
    char hex[65];
    struct gw_digest_counts counts;
    TRY(gw_status_read(options->out_dir, &status));
    if (strcmp(status.state, "done")) FAIL(GW_ERR_NOT_FOUND, "%s is not done", options->out_dir);
    TRY(gw_digest_compute(options->out_dir, hex, &counts));
    printf("%lld answered, %lld failed", (long long)counts.answered, (long long)counts.failed);
    if (status.generated_tokens > 0)
        printf("; %lld tokens generated in %.1f s (%.1f tokens/s) on %d x %d x %d ranks",
               (long long)status.generated_tokens, status.elapsed_s, status.generated_tokens_per_s, status.layout[0],
               status.layout[1], status.layout[2]);
    if (status.lost_ranks > 0)
        printf("; %lld ranks lost, %lld tokens recomputed", (long long)status.lost_ranks,
               (long long)status.recomputed_tokens);
    printf("\n");
    gw_summary_print(stdout, options->out_dir, hex);
    printf("output  %s/output.jsonl\ndigest  %s\n", options->out_dir, hex);
    fflush(stdout);
out:
    return rc;
}

/* From what the job left on disk: the launcher's exit code alone does not tell. */
static gw_err conclude(const struct gw_supervisor *s, const struct gw_launch *launch, bool fit)
{
    struct gw_status status = {0};
    int exit_code = gw_launch_exit_code(launch);
    gw_err rc = gw_supervisor_summary(s->config.options);
    if (rc != GW_ERR_NOT_FOUND)
        return rc; /* done, whatever the launcher says: after a loss its exit code means nothing */
    gw_summary_print(stdout, s->config.options->out_dir, NULL);
    fflush(stdout);
    rc = gw_status_read(s->config.options->out_dir, &status);
    if (rc == GW_OK && !strcmp(status.state, "stopped"))
        return gw_fail(GW_ERR_STOPPED,
                       "stopped on request with %lld of %lld requests answered; the same command carries on",
                       (long long)(status.requests_done + status.requests_failed), (long long)status.requests_total);
    if (s->leave_why[0] && fit)
        return gw_fail(GW_ERR_NOTICE,
                       "%s; stopped with %lld of %lld requests answered, and the same command carries on", s->leave_why,
                       (long long)(status.requests_done + status.requests_failed), (long long)status.requests_total);
    if (rc == GW_OK && !strcmp(status.state, "interrupted"))
        return gw_fail(GW_ERR_NOTICE,
                       "all ranks were given notice; stopped with %lld of %lld requests answered, and the same command "
                       "carries on",
                       (long long)(status.requests_done + status.requests_failed), (long long)status.requests_total);
    if (s->stops > 1)
        return gw_fail(GW_ERR_STOPPED, "stopped at once; finished answers are kept, and the same command carries on");
    if (!gw_launch_explained(launch)) {
        const struct gw_buf *kept = gw_launch_kept(launch);
        fwrite(kept->data, 1, kept->bytes, stderr);
        return gw_fail(
            GW_ERR_PEER,
            "the job ended early (launcher exit code %d); finished answers are kept, and the same command carries on",
            exit_code);
    }
    for (int code = 0; code < GW_ERR_COUNT; code++)
        if (code != GW_OK && gw_err_exit_code((gw_err)code) == exit_code)
            return gw_fail((gw_err)code, "the job ended early, for the reason above; finished answers are kept");
    return gw_fail(GW_ERR_PEER, "the job ended early, for the reason above; finished answers are kept");
}

/* ---- one launch after the other -------------------------------------------------------------------------------- */

/* Is it worth while to start the launch again? Not when it said what is wrong with input, model, options, memory or disk: that would be so again. */
static bool may_relaunch(const struct gw_supervisor *s, int exit_code, const struct gw_status *status)
{
    if (s->stops || !strcmp(status->state, "done")) return false;
    if (!strcmp(status->state, "stopped")) return s->handing_over;
    if (exit_code <= 1 || exit_code >= 128) return true; /* 1: the launcher's own, when it has lost a daemon */
    return exit_code == gw_err_exit_code(GW_ERR_PEER);
}

/* How far the job has come, to see whether a launch got anywhere. */
static int64_t progress_of(const struct gw_status *status)
{
    return status->requests_done + status->requests_failed + status->generated_tokens + status->resumed_tokens;
}

static void note_status(struct gw_supervisor *s)
{
    struct gw_status status;
    s->status_s = gw_status_read(s->config.options->out_dir, &status) == GW_OK ? status.updated_at : 0;
}

/* *launch stays NULL while there is no place. */
static gw_err start(struct gw_supervisor *s, bool standby, struct gw_launch **launch)
{
    struct gw_launch_config config = {.options = s->config.options,
                                      .argc = s->config.argc,
                                      .argv = s->config.argv,
                                      .number = s->number,
                                      .ranks = s->config.options->ranks,
                                      .standby = standby};
    if (s->config.place && !s->config.place(s->config.context, &config)) return GW_OK;
    if (standby) s->next_fenced = config.fence;
    else note_status(s);
    gw_err rc = gw_launch_start(&config, launch);
    if (rc == GW_OK) s->number++;
    return rc;
}

static bool has_present(const struct gw_supervisor *s)
{
    return s->launch || s->inherited >= 0;
}

static void drop_next(struct gw_supervisor *s)
{
    if (!s->next) return;
    if (s->config.ended) s->config.ended(s->config.context, gw_launch_number(s->next), false);
    gw_launch_destroy(s->next);
    s->next = NULL;
}

/* It has ended, or failed, for want of memory or of ranks: on more nodes it may go on. */
static bool may_wait(const struct gw_supervisor *s, int number, int exit_code)
{
    bool lacks = exit_code == gw_err_exit_code(GW_ERR_LAYOUT) || exit_code == gw_err_exit_code(GW_ERR_MEMORY);
    if (!lacks || s->stops || s->leave_why[0] || !s->config.too_few) return false;
    return s->config.too_few(s->config.context, number);
}

/* What the ended launch `number` has left in status.json; `led`: it has written it. */
static struct gw_status look_back(const struct gw_supervisor *s, bool *led)
{
    struct gw_status status;
    if (gw_status_read(s->config.options->out_dir, &status) != GW_OK || status.updated_at == s->status_s)
        status = (struct gw_status){.state = ""};
    *led = status.updated_at > 0;
    return status;
}

/* The present launch has ended: is the job over, or what comes next? */
static gw_err after_launch(struct gw_supervisor *s, bool *over)
{
    bool led;
    struct gw_status status = look_back(s, &led);
    int exit_code = gw_launch_exit_code(s->launch), number = gw_launch_number(s->launch);
    bool further = progress_of(&status) > s->reached || s->handing_over;
    s->fruitless = further ? 0 : s->fruitless + 1;
    if (progress_of(&status) > s->reached) s->reached = progress_of(&status);
    if (s->config.ended) s->config.ended(s->config.context, number, led);
    bool fit = may_relaunch(s, exit_code, &status); /* for another launch */
    bool waits = !fit && strcmp(status.state, "done") != 0 && may_wait(s, number, exit_code);
    *over = !waits && (!fit || s->fruitless >= MOST_FRUITLESS || s->leave_why[0]);
    gw_err rc = *over ? conclude(s, s->launch, fit) : GW_OK;
    if (!*over && !waits && !s->handing_over)
        gw_warn("the launch ended early (exit code %d); starting the next one, which goes on from what is committed",
                exit_code);
    if (!*over) s->not_before_s = gw_clock_now_s() + PAUSE_S[s->fruitless];
    gw_launch_destroy(s->launch);
    s->launch = NULL;
    s->handing_over = false;
    if (*over) drop_next(s);
    return rc;
}

/* ---- from one launch to the next ------------------------------------------------------------------------------- */

/* The present launch is gone, and the next one may begin once it is known that nothing of the former is left, or if it is fenced against it. */
static void begin_next(struct gw_supervisor *s)
{
    bool fence = false;
    if (s->config.cleared && !s->config.cleared(s->config.context, &fence)) return;
    if (fence && !s->next_fenced) {
        drop_next(s);
        return;
    }
    s->launch = s->next;
    s->next = NULL;
    note_status(s);
    gw_launch_go(s->launch);
}

/* The present launch gives way: at once, or when it has brought what leaving nodes hold to the others. */
static void begin_hand_over(struct gw_supervisor *s, double now_s)
{
    double within_s = 0;
    s->handing_over = true;
    s->moving = s->config.give_way && s->config.give_way(s->config.context, gw_supervisor_present(s), &within_s);
    s->press_s = now_s + (s->moving ? within_s : HAND_OVER_S);
    if (!s->moving && s->launch) gw_launch_stop(s->launch);
    else if (!s->moving) s->press_s = now_s;
}

/* When bringing takes too long the launch is stopped without, and a launch that does not stop is ended. */
static gw_err press_on(struct gw_supervisor *s, double now_s, bool *over)
{
    if (now_s < s->press_s) return GW_OK;
    if (s->inherited >= 0) return gw_supervisor_inherited_over(s, over);
    s->press_s = now_s + STOP_S;
    if (s->moving) gw_launch_stop(s->launch);
    else gw_launch_end(s->launch);
    s->moving = false;
    return GW_OK;
}

void gw_supervisor_inherit(struct gw_supervisor *s, int number)
{
    s->inherited = number;
    s->renew = true;
    s->status_s = -1; /* what it writes is the job's present state */
}

gw_err gw_supervisor_inherited_over(struct gw_supervisor *s, bool *over)
{
    bool led;
    if (s->inherited < 0) return GW_OK;
    struct gw_status status = look_back(s, &led);
    if (s->config.ended) s->config.ended(s->config.context, s->inherited, led);
    s->inherited = -1;
    s->handing_over = false;
    *over = !strcmp(status.state, "done");
    if (!*over) return GW_OK;
    drop_next(s);
    return gw_supervisor_summary(s->config.options);
}

struct gw_launch *gw_supervisor_release(struct gw_supervisor *s)
{
    struct gw_launch *launch = s->launch;
    s->launch = NULL;
    return launch;
}

int gw_supervisor_present(const struct gw_supervisor *s)
{
    return s->launch ? gw_launch_number(s->launch) : s->inherited;
}

/* Sees to a launch that stands by, or will. */
static gw_err poll_next(struct gw_supervisor *s, bool *over)
{
    gw_err rc = GW_OK;
    double now_s = gw_clock_now_s();
    bool rush = s->next && has_present(s) && !s->handing_over && !gw_launch_stands_by(s->next) && s->config.time_left &&
                s->config.time_left(s->config.context) < RUSH_S;
    if (s->next && (gw_launch_poll(s->next) || rush || now_s - s->next_since_s > STAND_BY_S)) {
        gw_warn("the next launch did not come up; it is started when the present one has ended");
        drop_next(s);
        s->next_since_s = now_s; /* and the present one is stopped for it */
        s->handing_over = has_present(s);
        s->moving = false;
        s->press_s = now_s + HAND_OVER_S;
        if (s->launch) gw_launch_stop(s->launch);
    }
    if (s->next && has_present(s) && !s->handing_over && gw_launch_stands_by(s->next)) begin_hand_over(s, now_s);
    if (has_present(s) && s->handing_over) TRY(press_on(s, now_s, over));
    if (*over) return GW_OK;
    if (s->next && !has_present(s) && gw_launch_stands_by(s->next)) begin_next(s);
    if (!s->renew || s->next || s->handing_over || s->stops || s->leave_why[0]) return GW_OK;
    if (!has_present(s)) s->renew = false; /* what is started next runs on today's nodes anyway */
    if (!has_present(s)) return GW_OK;
    TRY(start(s, true, &s->next));
    s->next_since_s = now_s;
    if (s->next) s->renew = false;
out:
    return rc;
}

/* A report of a job that runs, now and then, for those who look at it in between. */
static void keep_report(struct gw_supervisor *s)
{
    double now_s = gw_clock_now_s();
    if (now_s < s->report_s) return;
    s->report_s = now_s + REPORT_EVERY_S;
    if (gw_page_write(s->config.options->out_dir, NULL) != GW_OK) gw_debug("%s", gw_error_detail());
}

gw_err gw_supervisor_poll(struct gw_supervisor *s, bool *over)
{
    gw_err rc = GW_OK;
    *over = false;
    if (s->launch && gw_launch_poll(s->launch)) TRY(after_launch(s, over));
    if (*over) return GW_OK;
    TRY(poll_next(s, over));
    if (*over) return GW_OK;
    if (!has_present(s) && !s->next && s->stops) {
        *over = true;
        FAIL(GW_ERR_STOPPED, "stopped on request; the same command carries on");
    }
    if (!has_present(s) && !s->next && s->leave_why[0]) {
        *over = true;
        FAIL(GW_ERR_NOTICE, "%s; the same command carries on", s->leave_why);
    }
    if (!has_present(s) && !s->next && gw_clock_now_s() >= s->not_before_s) {
        TRY(start(s, false, &s->launch));
        if (s->launch) s->renew = false;
    }
    gw_progress_update(&s->progress);
    keep_report(s);
    return GW_OK;
out:
    *over = true;
    return rc;
}

int gw_supervisor_fds(const struct gw_supervisor *s, int fds[2])
{
    int count = 0;
    if (s->launch && gw_launch_fd(s->launch) >= 0) fds[count++] = gw_launch_fd(s->launch);
    if (s->next && gw_launch_fd(s->next) >= 0) fds[count++] = gw_launch_fd(s->next);
    return count;
}

void gw_supervisor_wait(const struct gw_supervisor *s, int wait_ms)
{
    int fds[2], count = gw_supervisor_fds(s, fds);
    struct pollfd poller[2];
    for (int i = 0; i < count; i++) poller[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    poll(poller, (nfds_t)count,
         count || wait_ms < 20 ? wait_ms : 20); /* an end without a stream is seen by looking only */
}

/* ---- orders ---------------------------------------------------------------------------------------------------- */

void gw_supervisor_stop(struct gw_supervisor *s)
{
    s->stops++;
    drop_next(s);
    if (s->inherited >= 0 && s->config.ended) s->config.ended(s->config.context, s->inherited, false);
    s->inherited = -1;
    gw_progress_clear();
    if (s->stops == 1) gw_info("stopping at the end of this step; once more to stop at once");
    if (s->launch && s->stops == 1) gw_launch_stop(s->launch);
    else if (s->launch) gw_launch_end(s->launch);
}

void gw_supervisor_leave(struct gw_supervisor *s, const char *why)
{
    snprintf(s->leave_why, sizeof s->leave_why, "%s", why);
    if (!s->handing_over) drop_next(s); /* else the next one is about to be the present one, and will read the notice */
    gw_progress_clear();
}

void gw_supervisor_renew(struct gw_supervisor *s)
{
    s->renew = true;
}

void gw_supervisor_give_up(struct gw_supervisor *s, int number)
{
    if (s->next && gw_launch_number(s->next) == number) {
        drop_next(s);
        s->renew = true;
    }
    if (s->launch && gw_launch_number(s->launch) == number) gw_launch_end(s->launch);
    if (s->inherited == number && !s->handing_over) s->handing_over = true;
    if (s->inherited == number) s->press_s = 0; /* nothing is to be expected of it any more */
}

bool gw_supervisor_settled(const struct gw_supervisor *s)
{
    return s->launch && !s->next && !s->renew && !s->handing_over;
}
