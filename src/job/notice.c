/* See notice.h. The file is renamed before it is read, so that a line written meanwhile goes into the next one. */
#include "job/notice.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "notice/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double MOST_SECONDS = 1e7; /* "inf" is no time */

static bool parse(const char *line, struct gw_notice *notice)
{
    char who[16], rest;
    double at_s;
    *notice = (struct gw_notice){.member = -1};
    struct gw_layout *l = &notice->layout;
    if (sscanf(line, " layout %dx%dx%d %c", &l->data, &l->tensor, &l->pipeline, &rest) == 3)
        return l->data > 0 && l->tensor > 0 && l->pipeline > 0;
    if (sscanf(line, " join %d %c", &notice->more, &rest) == 1) return notice->more > 0;
    if (sscanf(line, " leave %15s until %lf %c", who, &at_s, &rest) == 2) { /* it may have lain here for a while */
        if (!(at_s >= 0)) return false;
        notice->seconds = at_s - gw_clock_wall_s();
        if (notice->seconds < 0) notice->seconds = 0;
    } else if (sscanf(line, " leave %15s %lf %c", who, &notice->seconds, &rest) != 2 || !(notice->seconds >= 0)) {
        return false;
    }
    if (notice->seconds > MOST_SECONDS) return false;
    if (!strcmp(who, "all")) return true;
    return sscanf(who, "%d%c", &notice->member, &rest) == 1 && notice->member >= 0;
}

gw_err gw_notice_take(const char *path, struct gw_notice **notices, int *count)
{
    gw_err rc = GW_OK;
    char *taken = gw_asprintf("%s.taken", path), *text = NULL, *next = NULL;
    *notices = NULL;
    *count = 0;
    if (rename(path, taken)) {
        if (errno != ENOENT) rc = gw_fail(GW_ERR_IO, "cannot take the notice %s: %s", path, strerror(errno));
        goto out;
    }
    rc = gw_file_read(taken, 1 << 16, &text, NULL);
    unlink(taken); /* also what cannot be read: it would be in the way of the next */
    TRY(rc);
    for (char *line = strtok_r(text, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
        struct gw_notice notice;
        if (!parse(line, &notice)) {
            gw_warn(
                "%s: '%.60s' is no notice; write 'leave RANK SECONDS', 'leave all SECONDS', 'join N' or 'layout DxTxP'",
                path, line);
            continue;
        }
        *notices = gw_realloc(*notices, (size_t)*count + 1, sizeof **notices);
        (*notices)[(*count)++] = notice;
    }
out:
    free(taken);
    free(text);
    return rc;
}

char *gw_notice_next_file(const char *list, const char *out_dir, size_t *at)
{
    if (!list || *at == SIZE_MAX) return NULL;
    char *path = gw_notice_spec_file(list, at);
    if (path) return path;
    *at = SIZE_MAX;
    return gw_notice_spec_polled(list) ? gw_asprintf("%s/notice", out_dir) : NULL;
}

gw_err gw_notice_post(const char *out_dir, double at_s)
{
    char *path = gw_asprintf("%s/notice", out_dir), *line = gw_asprintf("leave all until %.3f\n", at_s);
    gw_err rc = gw_file_replace(path, line, strlen(line), false);
    free(line);
    free(path);
    return rc;
}

void gw_notice_forget(const char *out_dir)
{
    char *path = gw_asprintf("%s/notice", out_dir);
    unlink(path);
    free(path);
}
