/* See progress.h. */
#include "node/progress.h"

#include "base/clock.h"
#include "report/status.h"

#include <stdio.h>
#include <unistd.h>

static bool line_on_terminal;

void gw_progress_init(struct gw_progress *p, const char *out_dir, bool wanted)
{
    int terminal = isatty(STDERR_FILENO);
    *p = (struct gw_progress){.out_dir = out_dir,
                              .started_wall_s = gw_clock_wall_s(),
                              .shown_s = gw_clock_now_s(),
                              .interval_s = !wanted    ? 1e300
                                            : terminal ? 0.25
                                                       : 15,
                              .terminal = terminal};
}

void gw_progress_update(struct gw_progress *p)
{
    double now_s = gw_clock_now_s();
    if (now_s - p->shown_s < p->interval_s) return;
    p->shown_s = now_s;
    struct gw_status status;
    char line[256];
    if (gw_status_read(p->out_dir, &status) != GW_OK || status.updated_at < p->started_wall_s) return;
    gw_status_line(&status, line, sizeof line);
    if (p->terminal) {
        fprintf(stderr, "\r\033[K%s", line);
        line_on_terminal = true;
    } else {
        fprintf(stderr, "godwit: %s\n", line);
    }
}

void gw_progress_clear(void)
{
    if (line_on_terminal) fprintf(stderr, "\r\033[K");
    line_on_terminal = false;
}
