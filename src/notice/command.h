/* Runs a program and takes what it prints: no shell, bounded output, a deadline, nothing left behind. Local. */
#ifndef GW_NOTICE_COMMAND_H
#define GW_NOTICE_COMMAND_H

#include "base/mem.h"

struct gw_command {
    const char *const *argv; /* NULL-terminated; argv[0] is a path */
    const char *const *env;  /* NULL-terminated "NAME=VALUE": beside this process's environment, and in front of it */
    double timeout_s;
    size_t most_bytes;
    bool (*stopped)(void *context); /* asked many times a second */
    void *context;
};

/* Its standard output, NUL-terminated, into *out (the caller's to free). GW_ERR_NOT_FOUND, GW_ERR_TIMEOUT, GW_ERR_FORMAT (too much), GW_ERR_STOPPED;
 * GW_ERR_IO with the first line of its complaint when its exit code is not 0. The program and its children are gone when this returns. */
GW_CHECK gw_err gw_command_run(const struct gw_command *command, char **out, size_t *bytes);

/* The program's path by PATH; NULL when there is none. The caller frees it. */
char *gw_command_find(const char *name);

#endif
