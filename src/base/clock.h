/* Clocks. Local. */
#ifndef GW_BASE_CLOCK_H
#define GW_BASE_CLOCK_H

/* Monotonic seconds, for durations and deadlines. */
double gw_clock_now_s(void);
/* Seconds since 1970, for records that people read. */
double gw_clock_wall_s(void);

#endif
