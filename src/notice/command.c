/* See command.h. The child is a process group of its own, and is killed with this thread, so that a program that hangs cannot outlive the question. */
#include "notice/command.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { SLICE_MS = 50, MOST_COMPLAINT = 400, NO_PROGRAM = 127 };

char *gw_command_find(const char *name)
{
    const char *path = getenv("PATH");
    for (const char *at = path ? path : "/usr/bin:/bin"; *at;) {
        size_t length = strcspn(at, ":");
        char *found = gw_asprintf("%.*s/%s", (int)length, at, name);
        if (length && found[0] == '/' && access(found, X_OK) == 0) return found;
        free(found);
        at += length + (at[length] == ':');
    }
    return NULL;
}

struct run {
    const struct gw_command *command;
    pid_t pid;
    int fds[2]; /* its output and its complaints; -1 at their end */
    struct gw_buf texts[2];
};

/* What is to be done between fork and exec must not touch memory that other threads may be changing, so the environment is made before. */
static char **environment(const struct gw_command *command)
{
    size_t count = 0, more = 0;
    while (environ[count]) count++;
    while (command->env && command->env[more]) more++;
    char **all = gw_alloc(count + more + 1, sizeof *all);
    for (size_t i = 0; i < more; i++) all[i] = (char *)command->env[i];
    size_t used = more;
    for (size_t i = 0; i < count; i++) {
        bool replaced = false;
        for (size_t k = 0; k < more; k++) {
            size_t name = strcspn(command->env[k], "=") + 1;
            replaced |= !strncmp(environ[i], command->env[k], name);
        }
        if (!replaced) all[used++] = environ[i];
    }
    return all;
}

static gw_err start(struct run *run)
{
    gw_err rc = GW_OK;
    int pipes[2][2] = {{-1, -1}, {-1, -1}}, null = -1;
    char **env = environment(run->command);
    sigset_t none;
    sigemptyset(&none);
    if (pipe2(pipes[0], O_CLOEXEC) || pipe2(pipes[1], O_CLOEXEC) || (null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
        FAIL(GW_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    pid_t parent = getpid();
    run->pid = fork();
    if (run->pid < 0) FAIL(GW_ERR_IO, "cannot start a process: %s", strerror(errno));
    if (run->pid == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (getppid() != parent || dup2(null, STDIN_FILENO) < 0 || dup2(pipes[0][1], STDOUT_FILENO) < 0 ||
            dup2(pipes[1][1], STDERR_FILENO) < 0)
            _exit(NO_PROGRAM);
        execve(run->command->argv[0], (char *const *)run->command->argv, env);
        _exit(NO_PROGRAM);
    }
    setpgid(run->pid, run->pid); /* whoever of the two comes first */
    for (int i = 0; i < 2; i++) {
        run->fds[i] = pipes[i][0];
        pipes[i][0] = -1;
    }
out:
    for (int i = 0; i < 4; i++)
        if (pipes[i / 2][i % 2] >= 0) close(pipes[i / 2][i % 2]);
    if (null >= 0) close(null);
    free(env);
    return rc;
}

static gw_err read_some(struct run *run, int which)
{
    char data[4096];
    ssize_t got = read(run->fds[which], data, sizeof data);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return GW_OK;
    if (got <= 0) {
        close(run->fds[which]);
        run->fds[which] = -1;
        return GW_OK;
    }
    struct gw_buf *text = &run->texts[which];
    if (which == 0 && text->bytes + (size_t)got > run->command->most_bytes)
        return gw_fail(GW_ERR_FORMAT, "%s prints more than %zu bytes", run->command->argv[0], run->command->most_bytes);
    if (which == 1 && text->bytes + (size_t)got > MOST_COMPLAINT)
        got = text->bytes < MOST_COMPLAINT ? (ssize_t)(MOST_COMPLAINT - text->bytes) : 0;
    gw_buf_add(text, data, (size_t)got);
    return GW_OK;
}

/* Until it has ended and said all; *status as of waitpid. */
static gw_err attend(struct run *run, int *status)
{
    const struct gw_command *c = run->command;
    double until_s = gw_clock_now_s() + c->timeout_s;
    bool ended = false;
    while (!ended || run->fds[0] >= 0) {
        struct pollfd polled[2] = {{.fd = run->fds[0], .events = POLLIN}, {.fd = run->fds[1], .events = POLLIN}};
        if (c->stopped && c->stopped(c->context)) return gw_fail(GW_ERR_STOPPED, "%s is given up", c->argv[0]);
        if (gw_clock_now_s() > until_s)
            return gw_fail(GW_ERR_TIMEOUT, "%s does not end within %g s", c->argv[0], c->timeout_s);
        poll(polled, 2, SLICE_MS);
        for (int i = 0; i < 2; i++) {
            gw_err rc = run->fds[i] >= 0 && polled[i].revents ? read_some(run, i) : GW_OK;
            if (rc != GW_OK) return rc;
        }
        if (ended) continue;
        pid_t pid = waitpid(run->pid, status, WNOHANG);
        ended = pid == run->pid || (pid < 0 && errno == ECHILD);
        if (ended) run->pid = -1;
    }
    return GW_OK;
}

gw_err gw_command_run(const struct gw_command *command, char **out, size_t *bytes)
{
    gw_err rc = GW_OK;
    struct run run = {.command = command, .pid = -1, .fds = {-1, -1}};
    int status = 0;
    *out = NULL;
    TRY(start(&run));
    pid_t group = run.pid;
    rc = attend(&run, &status);
    kill(-group, SIGKILL); /* also what it left behind */
    if (run.pid > 0) waitpid(run.pid, NULL, 0);
    if (rc != GW_OK) goto out;
    gw_buf_add(&run.texts[1], "", 1);
    char *complaint = (char *)run.texts[1].data;
    complaint[strcspn(complaint, "\n")] = 0;
    for (char *c = complaint; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
    if (WIFEXITED(status) && WEXITSTATUS(status) == NO_PROGRAM)
        FAIL(GW_ERR_NOT_FOUND, "cannot run %s", command->argv[0]);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        FAIL(GW_ERR_IO, "%s fails (%s %d): %s", command->argv[0], WIFEXITED(status) ? "exit code" : "signal",
             WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), complaint);
    *bytes = run.texts[0].bytes;
    gw_buf_add(&run.texts[0], "", 1);
    *out = (char *)run.texts[0].data;
    run.texts[0] = (struct gw_buf){0};
out:
    for (int i = 0; i < 2; i++) {
        if (run.fds[i] >= 0) close(run.fds[i]);
        gw_buf_free(&run.texts[i]);
    }
    return rc;
}
