/* The progress of a running job on stderr: one line that rewrites itself on a terminal, a plain line a while elsewhere. Local. */
#ifndef GW_NODE_PROGRESS_H
#define GW_NODE_PROGRESS_H

#include <stdbool.h>

struct gw_progress {
    const char *out_dir;
    double started_wall_s, shown_s, interval_s;
    int terminal, shown;
};
void gw_progress_init(struct gw_progress *progress, const char *out_dir, bool wanted);
void gw_progress_update(struct gw_progress *progress);
/* Wipes the terminal's progress line, before something else is printed. */
void gw_progress_clear(void);

#endif
