/* The error table and this thread's last error. See error.h. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    int exit_code;
    const char *text;
} table[GW_ERR_COUNT] = {
#define X(name, exit_code, text) {#name, exit_code, text},
    GW_ERR_TABLE(X)
#undef X
};

static _Thread_local char detail[1024];
static _Thread_local char path[512];

static const char *basename_of(const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}

gw_err gw_fail_at(const char *file, int line, gw_err code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char text[sizeof detail]; /* the arguments may point into `detail` itself */
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(detail, text, sizeof detail);
    snprintf(path, sizeof path, "%s:%d", basename_of(file), line);
    return code;
}

void gw_error_trace(const char *file, int line)
{
    size_t used = strlen(path);
    snprintf(path + used, sizeof path - used, "%s%s:%d", used ? " < " : "", basename_of(file), line);
}

const char *gw_err_name(gw_err code)
{
    return code >= 0 && code < GW_ERR_COUNT ? table[code].name : "GW_ERR_?";
}

const char *gw_err_text(gw_err code)
{
    return code >= 0 && code < GW_ERR_COUNT ? table[code].text : "unknown error";
}

int gw_err_exit_code(gw_err code)
{
    return code >= 0 && code < GW_ERR_COUNT ? table[code].exit_code : 70;
}

const char *gw_error_detail(void)
{
    return detail;
}

const char *gw_error_path(void)
{
    return path;
}

_Noreturn void gw_assert_failed(const char *file, int line, const char *what)
{
    fprintf(stderr, "godwit: bug: %s:%d: '%s' does not hold; this process ends. Please report it.\n", basename_of(file),
            line, what);
    _exit(70);
}
