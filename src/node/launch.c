/* See launch.h. */
#include "node/launch.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/process.h"
#include "comm/comm.h"
#include "job/rank.h"
#include "node/exec.h"
#include "node/progress.h"
#include "report/status.h"

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

extern char **environ;

enum { KEPT_BYTES = 16384, MOST_WORDS = 64, LAST_LINES = 16 };
static const double ALONE_S = 2, STARTUP_S = 60, POLITE_S = 2, LOOK_EVERY_S = 0.5;

struct gw_launch {
    const struct gw_job_options *options;
    int number, ranks;
    pid_t child;
    bool standby, gone; /* standby: has not been told to begin; gone: the launcher has ended */
    char *scratch;      /* made here, or NULL */
    double began_wall_s, looked_s;
    double ending_s;                 /* when it was told to end; 0: it was not */
    int status;                      /* of waitpid(), once gone */
    int stand_by;                    /* ranks that do */
    uint64_t last_lines[LAST_LINES]; /* hashes of what they said */
    unsigned line_count;
    /* the launcher's error stream, line by line */
    int fd;
    char line[4096];
    size_t used;
    struct gw_buf kept; /* lines that are not godwit's own */
    bool handed_over;   /* nothing of it is needed any more */
    bool explained;     /* a rank has said what is wrong */
    int end_code;       /* with which a rank asked for the end of the launch; 0: none did */
};

/* ---- the folder of a launch ------------------------------------------------------------------------------------ */

/* The MPI library's shared memory lies in a folder of the launch, so that nothing is left behind when its processes are killed: it is removed after
 * the launch, or by the next launch on this node if the supervisor was killed too. The name holds the supervisor's pid and start. */
#define SHM_FOLDER "/dev/shm"
#define SHM_PREFIX "godwit-launch-"

static void remove_stale_folders(void)
{
    DIR *dir = opendir(SHM_FOLDER);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        long long pid;
        unsigned long long started;
        if (sscanf(entry->d_name, SHM_PREFIX "%lld-%llu", &pid, &started) != 2) continue;
        if (gw_process_started(pid) == started) continue;
        char *path = gw_asprintf("%s/%s", SHM_FOLDER, entry->d_name);
        gw_remove_tree(path); /* fails on another user's, as it should */
        free(path);
    }
    if (dir) closedir(dir);
}

/* Only where all ranks are on this node: the others would not have the folder. */
static char *make_scratch(void)
{
    if (getenv("SLURM_JOB_ID") || getenv("OMPI_MCA_btl_sm_backing_directory")) return NULL;
    remove_stale_folders();
    char *path = gw_asprintf("%s/%s%ld-%llu", SHM_FOLDER, SHM_PREFIX, (long)getpid(),
                             (unsigned long long)gw_process_started(getpid()));
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return path;
    free(path);
    return NULL;
}

/* ---- start ----------------------------------------------------------------------------------------------------- */

static const char *launcher(void)
{
    const char *forced = getenv("GODWIT_MPIRUN");
    if (forced) return forced;
    return access(GW_MPIRUN, X_OK) == 0 ? GW_MPIRUN : "mpirun";
}

/* The words of a command line; each is a copy. */
struct words {
    char **word;
    int count;
};

static void add(struct words *words, const char *text)
{
    words->word[words->count++] = gw_strdup(text);
}

static void add_number(struct words *words, const char *option, const char *form, double number)
{
    char text[32];
    snprintf(text, sizeof text, form, number);
    add(words, option);
    add(words, text);
}

static void add_setting(struct words *words, const char *option, const char *name, const char *value)
{
    add(words, option);
    add(words, name);
    add(words, value);
}

/* Spares stand in for ranks of their own node, so they are for launches on one; where there are several, new ranks are started instead. */
static int spares(const struct gw_launch_config *config)
{
    return config->hosts || config->ranks < 2 ? 0 : config->options->spares;
}

static void add_launcher(struct words *words, const struct gw_launch_config *config)
{
    static const char *const fixed[] = {"--with-ft", "ulfm", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"};
    add(words, launcher());
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) add(words, fixed[i]);
    add_number(words, "-n", "%.0f", config->ranks + spares(config));
    if (!config->hosts) return;
    add(words, "--host");
    add(words, config->hosts);
    add(words, "--leave-session-attached"); /* a daemon lives as long as what started it */
    add_setting(words, "--prtemca", "plm", "ssh");
    add_setting(words, "--prtemca", "plm_ssh_agent", config->agent);
    add_setting(words, "--prtemca", "plm_ssh_no_tree_spawn", "1");
    add_setting(words, "--prtemca", "plm_ssh_num_concurrent", "65536"); /* all of them stay */
    add_setting(words, "--prtemca", "prte_do_not_resolve", "1");        /* names of agents need not be names of hosts */
    if (!config->net) return;
    add_setting(words, "--prtemca", "prte_if_include", config->net);
    add_setting(words, "--mca", "btl_tcp_if_include", config->net);
}

static struct words launch_command(const struct gw_launch_config *config, const char *self)
{
    struct words words = {.word = gw_alloc((size_t)config->argc + MOST_WORDS, sizeof(char *))};
    if (config->ranks > 1 || config->hosts) add_launcher(&words, config);
    add(&words, self);
    add(&words, "rank");
    for (int i = 1; i < config->argc; i++) add(&words, config->argv[i]);
    add_number(&words, "-n", "%.0f", config->ranks);
    add_number(&words, "--max-seqs", "%.0f", gw_job_suitable_seqs(config->options, gw_process_cpus()));
    add_number(&words, "--spares", "%.0f", spares(config));
    add_number(&words, "--launch", "%.0f", config->number);
    add_number(&words, "--launched", "%.3f", gw_clock_wall_s());
    if (config->fence) add(&words, "--fence");
    if (config->standby) add(&words, "--standby");
    return words;
}

/* A launch over agents is not the allocation that this process may itself be in. */
static void forget_allocation(void)
{
    for (char **entry = environ; *entry;) {
        size_t length = strcspn(*entry, "=");
        char name[64];
        bool foreign = !strncmp(*entry, "SLURM_", 6) || !strncmp(*entry, "PBS_", 4) || !strncmp(*entry, "LSB_", 4);
        if (foreign && length < sizeof name) {
            memcpy(name, *entry, length);
            name[length] = 0;
            unsetenv(name);
            entry = environ;
        } else {
            entry++;
        }
    }
}

static void child_environment(const struct gw_launch_config *config, const char *scratch)
{
    setenv(GW_SUPERVISED, "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0); /* whoever runs godwit as root has decided so */
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("HOME", "/tmp", 0); /* the launcher wants one */
    if (!getenv("OMPI_MCA_pml"))
        setenv("UCX_MEM_EVENTS", "n", 0); /* not used then, but its hooks take 40 ms of every start */
    setenv("OMPI_MCA_pml", "ob1", 0);     /* opening only the transports needed saves a second of start-up */
    setenv("OMPI_MCA_btl", config->ranks > 1 ? "self,sm,tcp" : "self", 0);
    /* posix and sysv would not be used, but each start tries out whether they work, and who is killed meanwhile leaves a segment behind */
    setenv("OMPI_MCA_shmem", "mmap", 0);
    setenv("HWLOC_COMPONENTS", "-linuxio,-pci",
           0); /* MPI_Init would search all of /sys for devices that these transports have no use for */
    setenv("OMPI_MCA_coll", "^han,adapt", 0); /* these two do not survive the loss of a rank */
    if (scratch) setenv("OMPI_MCA_btl_sm_backing_directory", scratch, 0);
    if (config->hosts) forget_allocation();
    if (!config->scratch) return;
    char number[16];
    snprintf(number, sizeof number, "%d", config->number);
    setenv(GW_NODES_LAUNCH, number, 1);
    setenv(GW_SCRATCH, config->scratch, 1);
    setenv("TMPDIR", config->scratch, 1);
}

_Noreturn static void be_child(const struct gw_launch_config *config, const char *scratch, pid_t parent, int error_fd,
                               char **command)
{
    setpgid(0, 0); /* the terminal's Ctrl-C is for the supervisor, which stops the ranks in order */
    prctl(PR_SET_PDEATHSIG, config->hosts ? SIGKILL : SIGTERM);
    if (getppid() != parent) _exit(1);
    child_environment(config, scratch);
    dup2(error_fd, STDERR_FILENO);
    execvp(command[0], command);
    fprintf(stderr, "godwit: error: cannot start %s: %s; is Open MPI installed and on PATH?\n", command[0],
            strerror(errno));
    _exit(127);
}

gw_err gw_launch_start(const struct gw_launch_config *config, struct gw_launch **out)
{
    gw_err rc = GW_OK;
    char self[4096];
    int pipes[2] = {-1, -1};
    struct words command = {0};
    struct gw_launch *launch = gw_alloc(1, sizeof *launch);
    *launch = (struct gw_launch){.options = config->options,
                                 .number = config->number,
                                 .ranks = config->ranks,
                                 .child = -1,
                                 .standby = config->standby,
                                 .began_wall_s = gw_clock_wall_s(),
                                 .looked_s = gw_clock_now_s(),
                                 .fd = -1};
    TRY(gw_process_program(self, sizeof self));
    if (!config->scratch && config->ranks > 1) launch->scratch = make_scratch();
    command = launch_command(config, self);
    if (pipe2(pipes, O_CLOEXEC)) FAIL(GW_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    pid_t parent = getpid();
    launch->child = fork();
    if (launch->child < 0) FAIL(GW_ERR_IO, "cannot start a process: %s", strerror(errno));
    if (launch->child == 0) be_child(config, launch->scratch, parent, pipes[1], command.word);
    launch->fd = pipes[0];
    pipes[0] = -1;
    fcntl(launch->fd, F_SETFL, O_NONBLOCK);
    *out = launch;
    launch = NULL;
out:
    if (pipes[0] >= 0) close(pipes[0]);
    if (pipes[1] >= 0) close(pipes[1]);
    for (int i = 0; i < command.count; i++) free(command.word[i]);
    free(command.word);
    gw_launch_destroy(launch);
    return rc;
}

void gw_launch_destroy(struct gw_launch *launch)
{
    if (!launch) return;
    if (launch->child > 0 && !launch->gone) {
        kill(-launch->child, SIGKILL);
        waitpid(launch->child, NULL, 0);
    }
    if (launch->scratch) gw_remove_tree(launch->scratch);
    if (launch->fd >= 0) close(launch->fd);
    gw_buf_free(&launch->kept);
    free(launch->scratch);
    free(launch);
}

/* ---- what it says ---------------------------------------------------------------------------------------------- */

/* Every rank meets the same damaged file, and says so: once is enough. Remembers what the last lines said, without who said it. */
static bool is_repeated(struct gw_launch *launch)
{
    const char *said = strchr(launch->line, ':');
    uint64_t hash = said ? gw_hash64(said, strlen(said), 0) : 0;
    for (int i = 0; said && i < LAST_LINES; i++)
        if (launch->last_lines[i] == hash) return true;
    launch->last_lines[launch->line_count++ % LAST_LINES] = hash;
    return false;
}

static void take_line(struct gw_launch *launch)
{
    launch->line[launch->used] = 0;
    if (!strncmp(launch->line, GW_END_LAUNCH, strlen(GW_END_LAUNCH))) {
        launch->end_code = atoi(launch->line + strlen(GW_END_LAUNCH));
    } else if (!strcmp(launch->line, GW_STANDS_BY)) {
        launch->stand_by++;
    } else if (!strcmp(launch->line, GW_HANDED_OVER)) {
        launch->handed_over = true;
    } else if (!strncmp(launch->line, "godwit", 6)) {
        gw_progress_clear();
        if (!is_repeated(launch)) fprintf(stderr, "%s\n", launch->line);
        if (strstr(launch->line, ": error: ")) launch->explained = true;
    } else if (launch->kept.bytes + launch->used < KEPT_BYTES) {
        gw_buf_add(&launch->kept, launch->line, launch->used);
        gw_buf_add_text(&launch->kept, "\n");
    }
    launch->used = 0;
}

/* Reads what is there. */
static void drain(struct gw_launch *launch)
{
    char data[4096];
    for (ssize_t got; launch->fd >= 0;) {
        got = read(launch->fd, data, sizeof data);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            close(launch->fd);
            launch->fd = -1;
            return;
        }
        for (ssize_t i = 0; i < got; i++) {
            if (data[i] == 0)
                continue; /* mpirun ends some of its texts with one, and a rank's line may come right behind it */
            if (data[i] == '\n' || launch->used == sizeof launch->line - 1) take_line(launch);
            if (data[i] != '\n') launch->line[launch->used++] = data[i];
        }
    }
}

/* ---- signs of death -------------------------------------------------------------------------------------------- */

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
 * any more. Its age counts from the launch's beginning at least. */
static bool is_dead(const struct gw_launch *launch)
{
    struct gw_status status;
    double since_s = launch->began_wall_s;
    if (!launch->standby && gw_status_read(launch->options->out_dir, &status) == GW_OK && status.updated_at > since_s)
        since_s = status.updated_at;
    double silent_s = gw_clock_wall_s() - since_s;
    if (silent_s > ALONE_S && launch->ranks > 1 && !has_children(launch->child)) return true;
    return silent_s > 4 * launch->options->peer_timeout_s + STARTUP_S;
}

/* A rank that cannot go on has said so: the others are ended, at first politely. */
static void see_to_end(struct gw_launch *launch)
{
    double now_s = gw_clock_now_s();
    if (launch->handed_over) kill(-launch->child, SIGKILL);
    if (launch->end_code && launch->ending_s == 0) gw_launch_end(launch);
    else if (launch->ending_s > 0 && now_s - launch->ending_s > POLITE_S) kill(-launch->child, SIGKILL);
    if (now_s - launch->looked_s < LOOK_EVERY_S) return;
    launch->looked_s = now_s;
    if (launch->ending_s > 0 || !is_dead(launch)) return;
    gw_warn("the launch gives no sign of life; ending it");
    kill(-launch->child, SIGKILL);
}

bool gw_launch_poll(struct gw_launch *launch)
{
    if (launch->gone) return true;
    drain(launch);
    see_to_end(launch);
    pid_t ended = waitpid(launch->child, &launch->status, WNOHANG);
    if (ended != launch->child && !(ended < 0 && errno == ECHILD)) return false;
    launch->gone = true;
    drain(launch);
    if (launch->used) take_line(launch);
    gw_progress_clear();
    /* nothing of a launch may live on beside the next one: it would hold OUTDIR */
    if (kill(-launch->child, SIGKILL) == 0) usleep(20000);
    return true;
}

int gw_launch_fd(const struct gw_launch *launch)
{
    return launch->fd;
}

/* ---- orders ---------------------------------------------------------------------------------------------------- */

void gw_launch_stop(struct gw_launch *launch)
{
    if (!launch->gone) kill(launch->child, SIGUSR1);
}

void gw_launch_end(struct gw_launch *launch)
{
    if (launch->gone) return;
    kill(launch->ending_s > 0 ? -launch->child : launch->child, launch->ending_s > 0 ? SIGKILL : SIGTERM);
    launch->ending_s = gw_clock_now_s();
}

bool gw_launch_stands_by(const struct gw_launch *launch)
{
    return launch->standby && !launch->gone && launch->stand_by >= launch->ranks;
}

/* To ranks that stand by the signal means: begin. */
void gw_launch_go(struct gw_launch *launch)
{
    launch->standby = false;
    launch->began_wall_s = gw_clock_wall_s();
    gw_launch_stop(launch);
}

/* ---- what became of it ----------------------------------------------------------------------------------------- */

int gw_launch_number(const struct gw_launch *launch)
{
    return launch->number;
}

int gw_launch_exit_code(const struct gw_launch *launch)
{
    if (launch->end_code) return launch->end_code;
    if (WIFEXITED(launch->status)) return WEXITSTATUS(launch->status);
    return 128 + (WIFSIGNALED(launch->status) ? WTERMSIG(launch->status) : 0);
}

bool gw_launch_explained(const struct gw_launch *launch)
{
    return launch->explained;
}

const struct gw_buf *gw_launch_kept(const struct gw_launch *launch)
{
    return &launch->kept;
}
