/* `godwit run`: a job on this node: launch after launch until the batch is done (node/supervisor.h), with a progress line, Ctrl-C as a clean stop,
 * and a word on how it ended. `godwit rank`: one of the ranks that a launch starts.
 */
#include "app/commands.h"
#include "base/log.h"
#include "job/notice.h"
#include "job/options.h"
#include "job/rank.h"
#include "node/progress.h"
#include "node/supervisor.h"
#include "notice/source.h"
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

/* What the sources say becomes the job's own notice: all its ranks go, since what started them goes. */
static void pass_on_notices(struct gw_notice_source *source, const struct gw_job_options *options,
                            struct gw_supervisor *supervisor, double *leave_at_s)
{
    struct gw_notice_event event;
    while (source && gw_notice_source_take(source, &event)) {
        gw_progress_clear();
        gw_info("%s", event.text);
        if (event.kind == GW_NOTICE_EARLY || (*leave_at_s > 0 && event.at_s >= *leave_at_s)) continue;
        gw_supervisor_leave(supervisor, event.text);
        if (gw_notice_post(options->out_dir, event.at_s) == GW_OK) {
            *leave_at_s = event.at_s;
        } else {
            gw_warn("%s; the job is stopped at once instead", gw_error_detail());
            gw_supervisor_stop(supervisor);
        }
    }
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
    double leave_at_s = 0;
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
        if (!over) pass_on_notices(notices, &options, supervisor, &leave_at_s);
    }
out:
    gw_supervisor_destroy(supervisor);
    if (notices && leave_at_s > 0) {
        gw_notice_forget(options.out_dir);
        gw_notice_source_acknowledge(notices);
    }
    gw_notice_source_close(notices);
    gw_store_end(store);
    return rc;
}
