/* Which ranks are slower than the plan took them to be: stragglers. Pure: no clock, no I/O.
 *
 * Every rank tells now and then how long its computing took (exchanges and waiting not included), and how long the cost model says it takes a device of
 * speed 1. The quotient alone says little, since the model is rough; but it is as rough for all who have steps of about the same size, so these ranks
 * are compared with each other: with the median rank, by the median of their last GW_PACE_WINDOWS reports. Who needs GW_PACE_FACTOR times as long as its speed in the plan allows
 * for is a straggler, and its speed is corrected; so is that of one that had been corrected and is fast again. Whoever has been left out
 * altogether tells nothing any more: after a time, which doubles each time, its correction is dropped and the planner may try it again.
 */
#ifndef GW_CONTROL_PACE_H
#define GW_CONTROL_PACE_H

#include <stdbool.h>

enum { GW_PACE_WINDOWS = 5 };
#define GW_PACE_FACTOR 2.0

enum gw_pace_change {
    GW_PACE_SAME,
    GW_PACE_SLOWER,   /* `member` is a straggler */
    GW_PACE_FASTER,   /* it had been, and is less of one now */
    GW_PACE_TRY_AGAIN /* it had been, and was left out long enough */
};

struct gw_pace; /* opaque */

struct gw_pace *gw_pace_create(void);
void gw_pace_destroy(struct gw_pace *pace);

/* A plan is in force: what was measured under the one before counts no more, nor does each rank's first report. */
void gw_pace_restart(struct gw_pace *pace);
/* A report of `member`: it computed for `took_s` what the model says takes `said_s` on a device of speed 1, with `rows` rows in a step; its speed in
 * the plan is `speed`. */
void gw_pace_note(struct gw_pace *pace, int member, double speed, double rows, double said_s, double took_s,
                  double now_s);
/* Has a speed to be corrected? One at a time; *member, *factor (gw_pace_factor()) say whose and to what. */
enum gw_pace_change gw_pace_judge(struct gw_pace *pace, double now_s, int *member, double *factor);
/* By what the measured speed of a member is to be multiplied: 1, or less for a straggler. */
double gw_pace_factor(const struct gw_pace *pace, int member);

#endif
