/* Notices of Slurm: `scontrol show job` tells that this job is being preempted, put back into the queue or ended, and when its time limit is. For centres that signal
 * too late, or not at all. The controller serves everybody, so it is asked seldom. */
#include "base/clock.h"
#include "base/log.h"
#include "notice/command.h"
#include "notice/internal.h"
#include "notice/parse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 65536 };
static const double TIMEOUT_S = 10, AHEAD_S = 180, MOST_AHEAD_S = 86400;

struct slurm {
    struct gw_notice_link *link;
    char *scontrol, *job;
    char *asked;    /* the job as scontrol is asked for it: a number alone may be that of a whole array */
    double ahead_s; /* so long before the time limit it becomes an event */
};

static void slurm_destroy(void *state)
{
    struct slurm *slurm = state;
    free(slurm->scontrol);
    free(slurm->job);
    free(slurm->asked);
    free(slurm);
}

static bool is_number(const char *text)
{
    return text && text[0] && strspn(text, "0123456789") == strlen(text);
}

static gw_err slurm_create(struct gw_notice_link *link, const char *value, bool ack, void **state)
{
    (void)ack;
    gw_err rc = GW_OK;
    const char *job = getenv("SLURM_JOB_ID"), *array = getenv("SLURM_ARRAY_JOB_ID"),
               *task = getenv("SLURM_ARRAY_TASK_ID");
    struct slurm *slurm = gw_alloc(1, sizeof *slurm);
    slurm->link = link;
    slurm->ahead_s = AHEAD_S;
    if (value) {
        char *end;
        slurm->ahead_s = strtod(value, &end);
        if (end == value || *end || !(slurm->ahead_s >= 0) || slurm->ahead_s > MOST_AHEAD_S)
            FAIL(GW_ERR_USAGE, "slurm=%.40s: not a number of seconds up to %.0f", value, MOST_AHEAD_S);
    }
    if (!is_number(job)) FAIL(GW_ERR_NOT_FOUND, "this is no Slurm job (SLURM_JOB_ID is not set)");
    slurm->job = gw_strdup(job);
    slurm->asked = is_number(array) && is_number(task) ? gw_asprintf("%s_%s", array, task) : gw_strdup(job);
    slurm->scontrol = gw_command_find("scontrol");
    if (!slurm->scontrol) FAIL(GW_ERR_NOT_FOUND, "there is no scontrol on PATH");
out:
    if (rc != GW_OK) slurm_destroy(slurm);
    else *state = slurm;
    return rc;
}

static gw_err slurm_poll(void *state)
{
    static const char *const env[] = {"TZ=UTC0", "SLURM_TIME_FORMAT=standard", "LC_ALL=C", NULL};
    gw_err rc = GW_OK;
    struct slurm *slurm = state;
    const char *const argv[] = {slurm->scontrol, "show", "job", slurm->asked, NULL};
    struct gw_command command = {.argv = argv,
                                 .env = env,
                                 .timeout_s = TIMEOUT_S,
                                 .most_bytes = MOST_BYTES,
                                 .stopped = gw_notice_stopped,
                                 .context = slurm->link};
    struct gw_notice_event event;
    char *text = NULL;
    size_t bytes;
    bool any;
    TRY(gw_command_run(&command, &text, &bytes));
    TRY(gw_notice_parse_slurm(text, bytes, slurm->job, gw_clock_wall_s(), slurm->ahead_s, &event, &any));
    if (any) gw_notice_emit(slurm->link, &event);
out:
    free(text);
    return rc;
}

const struct gw_notice_kind_ops gw_notice_slurm = {.name = "slurm",
                                                   .title = "Slurm",
                                                   .every_s = 15,
                                                   .slowest_s = 120,
                                                   .create = slurm_create,
                                                   .poll = slurm_poll,
                                                   .destroy = slurm_destroy};
