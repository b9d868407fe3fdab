/* The last words of a job, for a terminal or a batch system's log: a few plain lines. Local. */
#ifndef GW_NODE_SUMMARY_H
#define GW_NODE_SUMMARY_H

#include "base/error.h"

#include <stdio.h>

/* Time, time lost by cause, what happened, and where the report is, which is written anew. `digest` is for the report, or NULL. Prints nothing
 * for an OUTDIR in which nothing has run. */
void gw_summary_print(FILE *to, const char *out_dir, const char *digest);

#endif
