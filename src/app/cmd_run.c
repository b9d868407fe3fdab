/* `godwit run`: a job on this node: launch after launch until the batch is done (node/supervisor.h), with a progress line, Ctrl-C as a clean stop,
 * and a word on how it ended. `godwit rank`: one of the ranks that a launch starts.
 */
#include "app/commands.h"
#include "base/clock.h"
#include "base/log.h"
#include "job/notice.h"
#include "job/options.h"
#include "job/rank.h"
#include "node/progress.h"
#include "node/supervisor.h"
#include "notice/source.h"
#include "report/status.h"
#include "store/store.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static volatile sig_atomic_t interrupts;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupts++;
}

gw_err gw_cmd_rank(int argc, char **argv)
{
    struct gw_job_options options;
    bool help = false;
    gw_err rc = gw_job_options_parse(argc, argv, &options, &help);
    if (rc != GW_OK || help) return rc;
    prctl(PR_SET_PDEATHSIG, SIGKILL);         /* no rank outlives the daemon that started it */
    const char *scratch = getenv(GW_SCRATCH); /* of this node: the launcher knows only its own */
    if (scratch) setenv("OMPI_MCA_btl_sm_backing_directory", scratch, 1);
    rc = gw_rank_run(&options);
    return rc == GW_ERR_STOPPED ? GW_OK
                                : rc; /* the supervisor learns it from status.json; the launcher would cry failure */
}

/* What this node has been told, and the job with it. */
struct leaving {
    double at_s;  /* wall clock; 0: nothing */
    int64_t plan; /* in force when the job was told last */
    double looked_s;
};

static int64_t plan_in_force(const struct gw_job_options *options)
{
    struct gw_status status;
    return gw_status_read(options->out_dir, &status) == GW_OK ? status.plan : 0;
}

/* All ranks go, since what started them goes. They are told again when there is another plan: ranks that came meanwhile, or a new leader, may not know. */
static void tell_job(struct leaving *leaving, const struct gw_job_options *options, struct gw_supervisor *supervisor)
{
    leaving->plan = plan_in_force(options);
    if (gw_notice_post(options->out_dir, leaving->at_s) == GW_OK) return;
    gw_warn("%s; the job is stopped at once instead", gw_error_detail());
    leaving->at_s = 0;
    gw_supervisor_stop(supervisor);
}

static void pass_on_notices(struct gw_notice_source *source, const struct gw_job_options *options,
                            struct gw_supervisor *supervisor, struct leaving *leaving)
{
    struct gw_notice_event event;
    while (gw_notice_source_take(source, &event)) {
        gw_progress_clear();
        gw_info("%s", event.text);
        double at_s = gw_clock_wall_s() + event.left_s;
        if (event.kind == GW_NOTICE_EARLY || (leaving->at_s > 0 && at_s >= leaving->at_s)) continue;
        gw_supervisor_leave(supervisor, event.text);
        leaving->at_s = at_s;
        tell_job(leaving, options, supervisor);
    }
    if (leaving->at_s == 0 || gw_clock_now_s() - leaving->looked_s < 0.5) return;
    leaving->looked_s = gw_clock_now_s();
    if (plan_in_force(options) != leaving->plan) tell_job(leaving, options, supervisor);
}

/* Under a launcher of one's own there is no supervisor that could ask anybody. */
static gw_err run_under_launcher(const struct gw_job_options *options)
{
    if (options->notice && gw_notice_spec_polled(options->notice))
        return gw_fail(GW_ERR_USAGE,
                       "--notice %s: under mpirun or srun only files are watched; start godwit run without them",
                       options->notice);
    return gw_rank_run(options);
}

gw_err gw_cmd_run(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct gw_job_options options;
    struct gw_supervisor *supervisor = NULL;
    struct gw_store_server *store = NULL;
    struct gw_notice_source *notices = NULL;
    struct leaving leaving = {0};
    bool help = false;
    int passed = 0;
    TRY(gw_job_options_parse(argc, argv, &options, &help));
    if (help) return GW_OK;
    if (getenv("OMPI_COMM_WORLD_SIZE") ||
        getenv("PMIX_RANK")) { /* started by mpirun or srun already: be one of its ranks */
        TRY(run_under_launcher(&options));
        return GW_OK;
    }
    TRY(gw_supervisor_check(&options));
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (options.store && gw_store_serve(options.out_dir, &store) != GW_OK)
        gw_warn("%s; a rank that is lost will be loaded and computed anew", gw_error_detail());
    gw_notice_forget(options.out_dir); /* one of an earlier command */
    if (options.notice && gw_notice_spec_polled(options.notice)) TRY(gw_notice_source_open(options.notice, &notices));
    struct gw_supervisor_config config = {.options = &options, .argc = argc, .argv = argv};
    supervisor = gw_supervisor_create(&config);
    for (bool over = false; !over;) {
        TRY(gw_supervisor_poll(supervisor, &over));
        if (!over) gw_supervisor_wait(supervisor, 100);
        for (; passed < interrupts; passed++) gw_supervisor_stop(supervisor);
        if (!over && notices) pass_on_notices(notices, &options, supervisor, &leaving);
    }
out:
    gw_supervisor_destroy(supervisor);
    if (notices && leaving.at_s > 0) {
        gw_notice_forget(options.out_dir);
        gw_notice_source_acknowledge(notices);
    }
    gw_notice_source_close(notices);
    gw_store_end(store);
    return rc;
}
