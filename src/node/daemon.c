/* See daemon.h. */
#include "node/daemon.h"

#include "base/file.h"
#include "base/process.h"
#include "job/rank.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTROL_FD = 3, FIRST_OTHER_FD = 4 };

static void close_from(int first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)first, ~0U, 0) == 0) return;
#endif
    long most = sysconf(_SC_OPEN_MAX);
    for (int fd = first; fd < (most > 0 && most < 65536 ? most : 65536); fd++) close(fd);
}

/* 0: the keeper's input, 1, 2: the command's streams, 3: control; all else is the agent's. */
static void take_fds(int control, int out, int err)
{
    int none = open("/dev/null", O_RDWR);
    int kept[4] = {none, out, err, control};
    for (int i = 0; i < 4; i++) kept[i] = fcntl(kept[i], F_DUPFD, 64); /* out of the way of 0 to 3 */
    for (int i = 0; i < 4; i++) dup2(kept[i], i);
    close_from(FIRST_OTHER_FD);
    fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC);
}

_Noreturn static void run_command(const char *command, const char *scratch, const sigset_t *mask)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == 1) _exit(1);
    sigprocmask(SIG_SETMASK, mask, NULL);
    setenv("TMPDIR", scratch, 1);
    setenv(GW_SCRATCH, scratch, 1);
    setenv("HOME", "/tmp", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    fprintf(stderr, "godwit: error: cannot start /bin/sh: %s\n", strerror(errno));
    _exit(127);
}

/* Waits until the command has ended or nobody wants it any more; its exit code. */
static int wait_for_end(pid_t command, int signals)
{
    int status = 0;
    for (;;) {
        struct pollfd pollers[2] = {{.fd = signals, .events = POLLIN}, {.fd = CONTROL_FD, .events = POLLIN}};
        struct signalfd_siginfo info;
        poll(pollers, 2, -1);
        if (pollers[1].revents) return 128 + SIGKILL; /* the agent has closed it, or is gone */
        if (pollers[0].revents && read(signals, &info, sizeof info) < 0) continue;
        for (pid_t ended; (ended = waitpid(-1, &status, WNOHANG)) > 0;)
            if (ended == command)
                return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + (WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
}

_Noreturn static void keep(const char *command, const char *scratch)
{
    sigset_t wanted, before;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigprocmask(SIG_BLOCK, &wanted, &before);
    for (int s = SIGHUP; s <= SIGTERM; s++)
        if (s != SIGKILL && s != SIGCHLD) signal(s, SIG_IGN); /* it goes when its work is done */
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "godwit-keeper");
    int signals = signalfd(-1, &wanted, SFD_CLOEXEC);
    pid_t child = fork();
    if (child == 0) {
        for (int s = SIGHUP; s <= SIGTERM; s++)
            if (s != SIGKILL) signal(s, SIG_DFL);
        sigdelset(&before, SIGCHLD);
        run_command(command, scratch, &before);
    }
    int exit_code = child < 0 || signals < 0 ? 127 : wait_for_end(child, signals);
    gw_process_end_descendants();
    gw_remove_tree(scratch);
    _exit(exit_code);
}

gw_err gw_daemon_start(const char *command, const char *scratch, struct gw_daemon *daemon)
{
    gw_err rc = GW_OK;
    int control[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    *daemon = (struct gw_daemon){.control = -1, .out = -1, .err = -1};
    TRY(gw_make_dir(scratch));
    if (pipe2(control, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        FAIL(GW_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    pid_t keeper = fork();
    if (keeper < 0) FAIL(GW_ERR_IO, "cannot start a process: %s", strerror(errno));
    if (keeper == 0) {
        take_fds(control[0], out[1], err[1]);
        keep(command, scratch);
    }
    *daemon = (struct gw_daemon){.keeper = keeper, .control = control[1], .out = out[0], .err = err[0]};
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(err[0], F_SETFL, O_NONBLOCK);
    control[1] = out[0] = err[0] = -1;
out:
    for (int i = 0; i < 2; i++) {
        if (control[i] >= 0) close(control[i]);
        if (out[i] >= 0) close(out[i]);
        if (err[i] >= 0) close(err[i]);
    }
    return rc;
}

bool gw_daemon_poll(struct gw_daemon *daemon)
{
    int status = 0;
    if (!daemon->keeper) return true;
    pid_t ended = waitpid(daemon->keeper, &status, WNOHANG);
    if (ended == 0 || (ended < 0 && errno == EINTR)) return false;
    daemon->exit_code = ended > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : 128 + SIGKILL;
    daemon->keeper = 0;
    return true;
}

void gw_daemon_end(struct gw_daemon *daemon)
{
    if (daemon->control >= 0) close(daemon->control);
    daemon->control = -1;
}

void gw_daemon_close(struct gw_daemon *daemon)
{
    gw_daemon_end(daemon);
    while (!gw_daemon_poll(daemon)) usleep(2000);
    if (daemon->out >= 0) close(daemon->out);
    if (daemon->err >= 0) close(daemon->err);
    daemon->out = daemon->err = -1;
}
