/* See speeds.h. */
#include "job/speeds.h"

#include <math.h>
#include <string.h>

static const double AS_FAST = 0.8, STEPS = 8;

/* Cores that a rank has to itself. */
static double cores_of(const struct gw_hello *hellos, int count, int rank, const struct gw_job_options *options)
{
    int there = 0;
    for (int r = 0; r < count; r++) there += !strncmp(hellos[r].peer.host, hellos[rank].peer.host, GW_HOST_BYTES);
    double cores = (double)hellos[rank].cpus / there;
    return options->threads && options->threads < cores ? options->threads : cores;
}

static double host_gops(const struct gw_hello *hellos, int count, int rank)
{
    double best = 0;
    for (int r = 0; r < count; r++)
        if (!strncmp(hellos[r].peer.host, hellos[rank].peer.host, GW_HOST_BYTES) &&
            !strncmp(hellos[r].kernels, hellos[rank].kernels, GW_KERNELS_BYTES) && hellos[r].gops > best)
            best = hellos[r].gops;
    return best;
}

/* Of the fastest, in steps. */
static double step_of(double speed)
{
    if (speed >= AS_FAST) return 1;
    double steps = rint(STEPS * speed);
    return (steps > 1 ? steps : 1) / STEPS;
}

void gw_speeds_of_ranks(const struct gw_hello *hellos, int count, const struct gw_job_options *options,
                        const struct gw_pace *pace, double *speeds)
{
    double fastest = 0;
    bool known = true;
    for (int r = 0; r < count; r++) {
        speeds[r] = host_gops(hellos, count, r) * cores_of(hellos, count, r, options);
        known &= speeds[r] > 0;
        if (speeds[r] > fastest) fastest = speeds[r];
    }
    for (int r = 0; r < count; r++) {
        double factor = pace ? gw_pace_factor(pace, hellos[r].peer.member) : 1;
        speeds[r] = step_of((known ? step_of(speeds[r] / fastest) : 1) * factor);
    }
}
