/* OUTDIR/history.jsonl: how far the job was at which time, for the report. Bounded however long the job lasts: when there are
 * GW_HISTORY_MOST samples every second one is dropped and the time between samples doubles. The leader writes it; the next leader
 * reads it and goes on. A failure to write costs a warning: history is for people.
 *
 * The first line is {"interval_s":X}, each other line one sample. Lines that are torn or foreign are passed over. Local.
 */
#ifndef GW_REPORT_HISTORY_H
#define GW_REPORT_HISTORY_H

#include "base/error.h"

#include <stdint.h>

enum { GW_HISTORY_MOST = 2000 };

struct gw_sample {
    double time_s; /* since 1970 */
    int64_t tokens,
        answered; /* committed by this command, so less than before when another command carries on; answers and errors in all */
    int ranks, kv_pages; /* at work; used */
};

struct gw_history; /* opaque */

/* Reads what is there. Never fails: a damaged file is a shorter history. */
struct gw_history *gw_history_open(const char *out_dir);
void gw_history_close(struct gw_history *history); /* NULL is fine */

/* To be called about twice a second; writes when it is time, or with `now` at once (the last word of a leader). */
void gw_history_note(struct gw_history *history, const struct gw_sample *sample, bool now);
/* Tokens per second over the last `over_s` seconds of this leader, more than one and at most half a minute; 0 when too little is known. */
double gw_history_tokens_per_s(const struct gw_history *history, double over_s);

/* All samples, oldest first; valid until the next note. */
const struct gw_sample *gw_history_samples(const struct gw_history *history, int *count);

#endif
