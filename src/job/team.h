/* The ranks of one replica, as each of them sees it: the layout, its own place, and who stands where.
 *
 * Owned by job/rank.c and borrowed by everything that a rank runs; after a change of the world the ranks are numbered anew in place, so
 * that a replica which the change did not touch goes on with what it has. Pure.
 */
#ifndef GW_JOB_TEAM_H
#define GW_JOB_TEAM_H

#include "plan/layout.h"

struct gw_team {
    struct gw_layout layout;
    struct gw_place place; /* of this rank */
    int *ranks;            /* [pipeline][tensor]: their ranks in the world */
};

/* The rank at (stage, shard) of this replica. */
static inline int gw_team_rank(const struct gw_team *team, int stage, int shard)
{
    return team->ranks[stage * team->layout.tensor + shard];
}

static inline int gw_team_size(const struct gw_team *team)
{
    return team->layout.tensor * team->layout.pipeline;
}

/* The head: stage 0, shard 0. */
static inline bool gw_team_is_head(const struct gw_team *team)
{
    return team->place.stage == 0 && team->place.shard == 0;
}

#endif
