/* `godwit status --watch`: a view of a job that redraws itself on a terminal, and a line now and then elsewhere. Local. */
#ifndef GW_APP_WATCH_H
#define GW_APP_WATCH_H

#include "base/error.h"

/* How a job is, once, as lines no wider than `columns` (0: as wide as they come) and at most `rows` of them (0: all). */
void gw_watch_print(const char *out_dir, int columns, int rows);

/* Until the job has ended, or Ctrl-C. Waits for a job that has not begun. */
GW_CHECK gw_err gw_watch_run(const char *out_dir);

#endif
