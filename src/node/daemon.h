/* A command that an agent runs on its node for a launcher elsewhere, most likely the launcher's daemon with ranks below it. Local.
 *
 * Between agent and command stands a keeper, a process that all descendants of the command fall to when their parents die. It ends when the
 * command ends, when the agent says so, and when the agent is gone, and it never ends before every one of those descendants: so nothing that a
 * daemon has started outlives it, nor the agent. Agent and keeper may both be killed at once: then the command gets SIGKILL from the kernel, and ranks
 * theirs when their parent dies.
 */
#ifndef GW_NODE_DAEMON_H
#define GW_NODE_DAEMON_H

#include "base/error.h"

#include <stdbool.h>
#include <sys/types.h>

struct gw_daemon {
    pid_t keeper; /* 0: there is none any more */
    int control;  /* closing it ends everything */
    int out, err; /* readable ends of the command's streams; -1: closed */
    int exit_code;
};

/* Runs `command` by the shell. `scratch` is a folder of its own, made here and removed after the end; it is the command's TMPDIR and GODWIT_SCRATCH. */
GW_CHECK gw_err gw_daemon_start(const char *command, const char *scratch, struct gw_daemon *daemon);
/* Has it ended, with all it has started? Then exit_code is the command's. */
bool gw_daemon_poll(struct gw_daemon *daemon);
/* Ends it; gw_daemon_poll() tells when it has happened. */
void gw_daemon_end(struct gw_daemon *daemon);
/* Ends it if need be, waits until that has happened, and closes what is open. */
void gw_daemon_close(struct gw_daemon *daemon);

#endif
