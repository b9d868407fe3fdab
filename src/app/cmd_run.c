/* `godwit run`: starts the job's ranks, starts them again as often as it takes, shows how it goes, and says how it ended. `godwit rank`: one of
 * those ranks.
 *
 * The supervisor (this process) does no MPI. It starts the launcher (or, for one rank, the rank itself), reads OUTDIR/status.json for
 * the progress line, and turns Ctrl-C into a clean stop. What the launcher writes besides godwit's own lines is kept back and shown only
 * when the job fails without having said why.
 */
#include "app/commands.h"
#include "app/progress.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "batch/io/digest.h"
#include "comm/comm.h"
#include "job/chaos.h"
#include "job/executor.h"
#include "job/node.h"
#include "job/options.h"
#include "job/rank.h"
#include "model/arch.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef GW_MPIRUN
#define GW_MPIRUN "mpirun"
#endif

enum { KEPT_BYTES = 16384 };
static const double ALONE_S = 2, STARTUP_S = 60;

/* The launcher's error stream, line by line. */
struct stream {
    int fd;
    char line[4096];
    size_t used;
    struct gw_buf kept; /* lines that are not godwit's own */
    bool explained;     /* a rank has said what is wrong */
    int end_code;       /* with which a rank asked for the end of the launch; 0: none did */
};

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
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no rank outlives the daemon that started it */
    rc = gw_rank_run(&options);
    return rc == GW_ERR_STOPPED ? GW_OK
                                : rc; /* the supervisor learns it from status.json; the launcher would cry failure */
}

static const char *launcher(void)
{
    const char *forced = getenv("GODWIT_MPIRUN");
    if (forced) return forced;
    return access(GW_MPIRUN, X_OK) == 0 ? GW_MPIRUN : "mpirun";
}

/* The command line of the launch; everything in it is borrowed. */
static char **launch_command(const struct gw_job_options *options, char *self, char *count, int number, int argc,
                             char **argv)
{
    static char *const fixed[] = {"--with-ft", "ulfm", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-n"};
    static char launch[16], launched[32];
    char **command = gw_alloc((size_t)argc + 40, sizeof(char *));
    int n = 0;
    if (options->ranks > 1) {
        command[n++] = (char *)launcher();
        for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) command[n++] = fixed[i];
        command[n++] = count;
    }
    command[n++] = self;
    command[n++] = "rank";
    for (int i = 1; i < argc; i++) command[n++] = argv[i];
    snprintf(launch, sizeof launch, "%d", number);
    snprintf(launched, sizeof launched, "%.3f", gw_clock_wall_s());
    command[n++] = "--launch";
    command[n++] = launch;
    command[n++] = "--launched";
    command[n++] = launched;
    return command;
}

/* ---- shared memory of a launch --------------------------------------------------------------------------------- */

/* The MPI library's shared memory lies in a folder of the launch, so that nothing is left behind when its processes are killed: it is removed after
 * the launch, or by the next `godwit run` on this node if the supervisor was killed too. The name holds the supervisor's pid and start. */
#define SHM_FOLDER "/dev/shm"
#define SHM_PREFIX "godwit-launch-"

static char shm_dir[96];

static void remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (entry->d_name[0] != '.') unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir) closedir(dir);
    rmdir(path);
}

static void remove_stale_folders(void)
{
    DIR *dir = opendir(SHM_FOLDER);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        long long pid;
        unsigned long long started;
        if (sscanf(entry->d_name, SHM_PREFIX "%lld-%llu", &pid, &started) != 2) continue;
        if (gw_node_process_start(pid) == started) continue;
        char *path = gw_asprintf("%s/%s", SHM_FOLDER, entry->d_name);
        remove_folder(path); /* fails on another user's, as it should */
        free(path);
    }
    if (dir) closedir(dir);
}

/* Only where all ranks are on this node: the others would not have the folder. */
static void make_shm_folder(void)
{
    if (getenv("SLURM_JOB_ID") || getenv("OMPI_MCA_btl_sm_backing_directory")) return;
    remove_stale_folders();
    snprintf(shm_dir, sizeof shm_dir, "%s/%s%ld-%llu", SHM_FOLDER, SHM_PREFIX, (long)getpid(),
             (unsigned long long)gw_node_process_start(getpid()));
    if (mkdir(shm_dir, 0700) && errno != EEXIST) shm_dir[0] = 0;
}

static void child_environment(const struct gw_job_options *options)
{
    setenv(GW_SUPERVISED, "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0); /* whoever runs godwit as root has decided so */
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("HOME", "/tmp", 0);        /* the launcher wants one */
    setenv("OMPI_MCA_pml", "ob1", 0); /* opening only the transports needed saves a second of start-up */
    setenv("OMPI_MCA_btl", options->ranks > 1 ? "self,sm,tcp" : "self", 0);
    if (shm_dir[0]) setenv("OMPI_MCA_btl_sm_backing_directory", shm_dir, 0);
    setenv("OMPI_MCA_coll", "^han,adapt", 0); /* these two do not survive the loss of a rank */
}

static gw_err start(const struct gw_job_options *options, int number, int argc, char **argv, pid_t *child,
                    int *error_fd)
{
    gw_err rc = GW_OK;
    char self[4096], count[16];
    int pipes[2] = {-1, -1};
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) return gw_fail(GW_ERR_IO, "cannot find this program: %s", strerror(errno));
    self[length] = 0;
    snprintf(count, sizeof count, "%d", options->ranks);
    char **command = launch_command(options, self, count, number, argc, argv);
    if (pipe2(pipes, O_CLOEXEC)) FAIL(GW_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    pid_t parent = getpid();
    *child = fork();
    if (*child < 0) FAIL(GW_ERR_IO, "cannot start a process: %s", strerror(errno));
    if (*child == 0) {
        setpgid(0, 0); /* the terminal's Ctrl-C is for the supervisor, which stops the ranks in order */
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(1);
        child_environment(options);
        dup2(pipes[1], STDERR_FILENO);
        execvp(command[0], command);
        fprintf(stderr, "godwit: error: cannot start %s: %s; is Open MPI installed and on PATH?\n", command[0],
                strerror(errno));
        _exit(127);
    }
    *error_fd = pipes[0];
    pipes[0] = -1;
out:
    if (pipes[0] >= 0) close(pipes[0]);
    if (pipes[1] >= 0) close(pipes[1]);
    free(command);
    return rc;
}

static void take_line(struct stream *stream)
{
    stream->line[stream->used] = 0;
    if (!strncmp(stream->line, GW_END_LAUNCH, strlen(GW_END_LAUNCH))) {
        stream->end_code = atoi(stream->line + strlen(GW_END_LAUNCH));
    } else if (!strncmp(stream->line, "godwit", 6)) {
        gw_progress_clear();
        fprintf(stderr, "%s\n", stream->line);
        if (strstr(stream->line, ": error: ")) stream->explained = true;
    } else if (stream->kept.bytes + stream->used < KEPT_BYTES) {
        gw_buf_add(&stream->kept, stream->line, stream->used);
        gw_buf_add_text(&stream->kept, "\n");
    }
    stream->used = 0;
}

/* Reads what is there, waiting at most `wait_ms`; false at the end of the stream. */
static bool drain(struct stream *stream, int wait_ms)
{
    struct pollfd poller = {.fd = stream->fd, .events = POLLIN};
    if (poll(&poller, 1, wait_ms) <= 0) return true;
    char data[4096];
    ssize_t got = read(stream->fd, data, sizeof data);
    if (got < 0) return errno == EINTR || errno == EAGAIN;
    for (ssize_t i = 0; i < got; i++) {
        if (data[i] == '\n' || stream->used == sizeof stream->line - 1) take_line(stream);
        if (data[i] != '\n') stream->line[stream->used++] = data[i];
    }
    return got > 0;
}

/* First interrupt: a clean stop at the next step. Second: end the launch. */
static void pass_on_interrupts(pid_t child, int *passed)
{
    while (*passed < interrupts) {
        (*passed)++;
        gw_progress_clear();
        if (*passed == 1) {
            gw_info("stopping at the end of this step; once more to stop at once");
            kill(child, SIGUSR1);
        } else {
            kill(-child, *passed == 2 ? SIGTERM : SIGKILL);
        }
    }
}

/* A rank that cannot go on has said so: the others are ended, at first politely. */
static void end_on_request(pid_t child, const struct stream *stream, double *since_s)
{
    if (!stream->end_code) return;
    double now_s = gw_clock_now_s();
    if (*since_s == 0) {
        *since_s = now_s;
        kill(child, SIGTERM);
    } else if (now_s - *since_s > 2) {
        kill(-child, SIGKILL);
    }
}

/* Does the process have children? The launcher's are the ranks of this node. */
static bool has_children(pid_t pid)
{
    char path[64];
    int child = 0;
    snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", (long)pid, (long)pid);
    FILE *file = fopen(path, "r");
    if (!file) return true; /* a kernel that does not tell */
    bool any = fscanf(file, "%d", &child) == 1;
    fclose(file);
    return any;
}

/* A launcher can hang when its ranks are gone, and ranks can hang where no deadline of theirs reaches: then status.json is not written
 * any more. Its age counts from `since_s` (wall clock) at least, when the launch was started. */
static bool is_dead(const struct gw_job_options *options, pid_t child, double since_s)
{
    struct gw_status status;
    if (gw_status_read(options->out_dir, &status) == GW_OK && status.updated_at > since_s) since_s = status.updated_at;
    double silent_s = gw_clock_wall_s() - since_s;
    if (silent_s > ALONE_S && options->ranks > 1 && !has_children(child)) return true;
    return silent_s > 4 * options->peer_timeout_s + STARTUP_S;
}

static int supervise(const struct gw_job_options *options, pid_t child, struct stream *stream)
{
    int passed = 0, status = 0;
    double ending_s = 0, started_s = gw_clock_wall_s(), looked_s = started_s;
    bool open = true;
    struct gw_progress progress;
    gw_progress_init(&progress, options->out_dir, !options->quiet);
    for (;;) {
        if (open) open = drain(stream, 100);
        else usleep(20000);
        pass_on_interrupts(child, &passed);
        end_on_request(child, stream, &ending_s);
        if (gw_clock_wall_s() - looked_s > 0.5) {
            looked_s = gw_clock_wall_s();
            if (is_dead(options, child, started_s)) {
                gw_warn("the launch gives no sign of life; ending it");
                kill(-child, SIGKILL);
            }
        }
        gw_progress_update(&progress);
        pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child || (ended < 0 && errno == ECHILD)) break;
    }
    while (open && drain(stream, 0) && poll(&(struct pollfd){.fd = stream->fd, .events = POLLIN}, 1, 0) > 0) continue;
    if (stream->used) take_line(stream);
    gw_progress_clear();
    if (stream->end_code) return stream->end_code;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + (WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

/* How the job ended, from what it left on disk: the launcher's exit code alone does not tell. */
static gw_err conclude(const struct gw_job_options *options, int exit_code, const struct stream *stream)
{
    gw_err rc = GW_OK;
    struct gw_status status;
    char hex[65];
    struct gw_digest_counts counts;
    TRY(gw_status_read(options->out_dir, &status));
    if (!strcmp(status.state, "done")) { /* whatever the launcher says: after a loss its exit code means nothing */
        TRY(gw_digest_compute(options->out_dir, hex, &counts));
        printf("%lld answered, %lld failed", (long long)counts.answered, (long long)counts.failed);
        if (status.generated_tokens > 0)
            printf("; %lld tokens generated in %.1f s (%.1f tokens/s) on %d x %d x %d ranks",
                   (long long)status.generated_tokens, status.elapsed_s, status.generated_tokens_per_s,
                   status.layout[0], status.layout[1], status.layout[2]);
        if (status.lost_ranks > 0)
            printf("; %lld ranks lost, %lld tokens recomputed", (long long)status.lost_ranks,
                   (long long)status.recomputed_tokens);
        printf("\noutput  %s/output.jsonl\ndigest  %s\n", options->out_dir, hex);
        return GW_OK;
    }
    if (!strcmp(status.state, "stopped"))
        FAIL(GW_ERR_STOPPED, "stopped on request with %lld of %lld requests answered; the same command carries on",
             (long long)(status.requests_done + status.requests_failed), (long long)status.requests_total);
out:
    if (rc == GW_ERR_STOPPED) return rc;
    if (interrupts > 1)
        return gw_fail(GW_ERR_STOPPED, "stopped at once; finished answers are kept, and the same command carries on");
    if (!stream->explained) {
        fwrite(stream->kept.data, 1, stream->kept.bytes, stderr);
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

/* What can be told before anything is started. */
static gw_err check_files(const struct gw_job_options *options)
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

/* A status.json of an earlier command must not be taken for this one's. */
static void forget_status(const struct gw_job_options *options)
{
    char *path = gw_asprintf("%s/status.json", options->out_dir);
    unlink(path);
    free(path);
}

/* Nothing of a launch may live on beside the next one: it would hold OUTDIR. The launcher has ended, so its group is what it left. */
static void end_group(pid_t group)
{
    if (kill(-group, SIGKILL) == 0) usleep(20000);
}

/* Is it worth while to start the launch again? Not when it said what is wrong with input, model, options, memory or disk: that would be so again. */
static bool may_relaunch(int exit_code, const struct gw_status *status)
{
    if (interrupts || !strcmp(status->state, "done") || !strcmp(status->state, "stopped")) return false;
    if (exit_code == 0 || exit_code >= 128) return true;
    return exit_code == gw_err_exit_code(GW_ERR_PEER);
}

/* How far the job has come, to see whether a launch got anywhere. */
static int64_t progress_of(const struct gw_status *status)
{
    return status->requests_done + status->requests_failed + status->generated_tokens + status->resumed_tokens;
}

/* Launch after launch until the batch is done. One that ends early is followed by the next, which goes on from what is committed; after
 * several in a row that got nowhere it is given up. */
static gw_err run_launches(const struct gw_job_options *options, int argc, char **argv)
{
    gw_err rc = GW_OK;
    enum { MOST_FRUITLESS = 4 };
    static const useconds_t pause_us[MOST_FRUITLESS] = {0, 200000, 1000000, 3000000};
    int fruitless = 0;
    int64_t reached = -1;
    for (int number = 0;; number++) {
        struct stream stream = {.fd = -1};
        struct gw_status status = {0};
        pid_t child = -1;
        if (number == 0) forget_status(options);
        if (options->ranks > 1) make_shm_folder();
        rc = start(options, number, argc, argv, &child, &stream.fd);
        if (rc != GW_OK) return rc;
        int exit_code = supervise(options, child, &stream);
        end_group(child);
        if (shm_dir[0]) remove_folder(shm_dir);
        if (gw_status_read(options->out_dir, &status) != GW_OK) status = (struct gw_status){.state = ""};
        fruitless = progress_of(&status) > reached ? 0 : fruitless + 1;
        if (progress_of(&status) > reached) reached = progress_of(&status);
        bool again = may_relaunch(exit_code, &status) && fruitless < MOST_FRUITLESS;
        if (!again) rc = conclude(options, exit_code, &stream);
        if (stream.fd >= 0) close(stream.fd);
        gw_buf_free(&stream.kept);
        if (!again) return rc;
        gw_warn("the launch ended early (exit code %d); starting the next one, which goes on from what is committed",
                exit_code);
        usleep(pause_us[fruitless]);
    }
}

gw_err gw_cmd_run(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct gw_job_options options;
    bool help = false;
    TRY(gw_job_options_parse(argc, argv, &options, &help));
    if (help) return GW_OK;
    if (getenv("OMPI_COMM_WORLD_SIZE") ||
        getenv("PMIX_RANK")) { /* started by mpirun or srun already: be one of its ranks */
        TRY(gw_rank_run(&options));
        return GW_OK;
    }
    TRY(check_files(&options));
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    TRY(run_launches(&options, argc, argv));
out:
    return rc;
}
