/* See pause.h. */
#include "report/pause.h"

static const struct {
    const char *name, *text;
    int strength;
} causes[GW_PAUSE_CAUSES] = {[GW_PAUSE_CHANGE] = {"change", "ordered changes (drain to ready)", 1},
                             [GW_PAUSE_REPAIR] = {"repair", "repairs after losses (loss to ready)", 2},
                             [GW_PAUSE_RELAUNCH] = {"relaunch", "launches after losses (start to ready)", 3},
                             [GW_PAUSE_WAITING] = {"waiting", "no sign of life until the next launch", 4},
                             [GW_PAUSE_START] = {"start", "starting up", 0},
                             [GW_PAUSE_STOPPED] = {"stopped", "stopped on request", 4}};

const char *gw_pause_name(enum gw_pause_cause cause)
{
    return causes[cause].name;
}

const char *gw_pause_text(enum gw_pause_cause cause)
{
    return causes[cause].text;
}

bool gw_pauses_begin(struct gw_pauses *p, enum gw_pause_cause cause, double since_s, struct gw_pause *closed)
{
    if (p->open && causes[p->now.cause].strength >= causes[cause].strength) return false;
    bool ended = gw_pauses_end(p, since_s, closed);
    p->open = true;
    p->now = (struct gw_pause){.from_s = since_s, .cause = cause};
    return ended;
}

bool gw_pauses_end(struct gw_pauses *p, double now_s, struct gw_pause *closed)
{
    if (!p->open) return false;
    p->open = false;
    p->now.to_s = now_s > p->now.from_s ? now_s : p->now.from_s; /* clocks can be set back */
    p->sum_s[p->now.cause] += p->now.to_s - p->now.from_s;
    *closed = p->now;
    return true;
}
