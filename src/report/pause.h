/* Time that a job loses, by cause: one pause at a time, since causes overlap (a rank dies while another is leaving). The leader adds up
 * with it for status.json, the report for its drawing. Local, pure. Times are seconds since 1970.
 */
#ifndef GW_REPORT_PAUSE_H
#define GW_REPORT_PAUSE_H

#include <stdbool.h>

/* From the weakest to the strongest: of two causes at the same time the stronger one counts. */
enum gw_pause_cause {
    GW_PAUSE_CHANGE,                /* an ordered change: from the drain until all are ready */
    GW_PAUSE_REPAIR,                /* a loss in a launch that lives: from its notice until all are ready */
    GW_PAUSE_RELAUNCH,              /* a launch: from its start until all are ready */
    GW_PAUSE_WAITING,               /* no launch: from the last sign of life until the next one is started */
    GW_PAUSE_LOST,                  /* the number of causes of lost time; what follows is no loss */
    GW_PAUSE_START = GW_PAUSE_LOST, /* the first launch, or one after a stop on request */
    GW_PAUSE_STOPPED,               /* between a stop on request and the command that carries on */
    GW_PAUSE_CAUSES
};

/* "repair", as in status.json and metrics.prom; and in words. */
const char *gw_pause_name(enum gw_pause_cause cause);
const char *gw_pause_text(enum gw_pause_cause cause);

struct gw_pause {
    double from_s, to_s;
    enum gw_pause_cause cause;
};

struct gw_pauses {
    bool open;
    struct gw_pause now;           /* when open: to_s is not set */
    double sum_s[GW_PAUSE_CAUSES]; /* of those that are over */
};

/* A pause begins. When a weaker one is open that one ends here; a stronger one goes on and this one does not count. True: *closed was
 * ended by it. */
bool gw_pauses_begin(struct gw_pauses *pauses, enum gw_pause_cause cause, double since_s, struct gw_pause *closed);
/* Work goes on. True: *closed was ended by it. */
bool gw_pauses_end(struct gw_pauses *pauses, double now_s, struct gw_pause *closed);

#endif
