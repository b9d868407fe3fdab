/* One write(2) per line, so that lines of several ranks do not mix. See log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static gw_log_level threshold = GW_LOG_INFO;
static int shown_rank = -1;
static bool env_read;

static void read_env(void)
{
    env_read = true;
    const char *env = getenv("GODWIT_LOG");
    for (int i = 0; env && i < 4; i++)
        if (!strcmp(env, level_names[i]) || (i == GW_LOG_WARN && !strcmp(env, "warn"))) threshold = (gw_log_level)i;
}

void gw_log_set_level(gw_log_level level)
{
    env_read = true;
    threshold = level;
}

gw_log_level gw_log_get_level(void)
{
    if (!env_read) read_env();
    return threshold;
}

void gw_log_set_rank(int rank)
{
    shown_rank = rank;
}

void gw_log(gw_log_level level, const char *fmt, ...)
{
    if (level > gw_log_get_level()) return;
    char line[2048];
    int used = shown_rank < 0 ? snprintf(line, sizeof line, "godwit: ")
                              : snprintf(line, sizeof line, "godwit[%d]: ", shown_rank);
    if (level != GW_LOG_INFO) used += snprintf(line + used, sizeof line - (size_t)used, "%s: ", level_names[level]);
    va_list ap;
    va_start(ap, fmt);
    int text = vsnprintf(line + used, sizeof line - (size_t)used - 1, fmt, ap);
    va_end(ap);
    size_t length = (size_t)used + (text > 0 ? (size_t)text : 0);
    if (length > sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written; /* nowhere left to report it */
}
