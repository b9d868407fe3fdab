/* The controller: what the job does when ranks die, leave and come. A pure state machine: events in, updates out; no clock, no I/O, no
 * MPI, so that a million simulated events can drive it (tests/unit/test_control.c). The leader runs it (job/leader.c).
 *
 *   AGREE    a world has formed; every member says hello
 *   REFORM   all have: a plan is made, or the world grows first
 *   MIGRATE  the plan is out; members get what it wants them to have
 *   RUN      everybody is ready
 *   DRAIN    a planned change: heads finish the steps in flight
 *   STOP     the job ends
 *
 * A loss in any state leads to AGREE with the next epoch, through GW_EVENT_WORLD. Lost ranks are replaced in the background: while there are ranks
 * enough for the layout (spares stand in), the plan is made at once, and new ranks are started while the job runs; they are taken in by a planned
 * change. Only when there are too few does REFORM wait for them. Who is given notice leaves by a plan that has no place for
 * it, made just in time: decoding goes on until what remains of the grace is what the move takes, with a margin (SpotServe, ASPLOS'24,
 * section 4). Notices that come meanwhile are merged into that plan; those that come once it is asked for wait for the next. Every state but RUN and STOP has a deadline.
 */
#ifndef GW_CONTROL_CONTROL_H
#define GW_CONTROL_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

enum gw_state { GW_STATE_AGREE, GW_STATE_REFORM, GW_STATE_MIGRATE, GW_STATE_RUN, GW_STATE_DRAIN, GW_STATE_STOP };

enum gw_event_kind {
    GW_EVENT_WORLD,   /* these are the members now: at start, after a repair, after growth (or its failure) */
    GW_EVENT_HELLO,   /* of `member` */
    GW_EVENT_PLANNED, /* the plan is out */
    GW_EVENT_READY,   /* `member` has what the plan wants it to have */
    GW_EVENT_DRAINED, /* no step is in flight anywhere */
    GW_EVENT_NOTICE,  /* `member` (-1: every one) goes in `seconds` */
    GW_EVENT_MORE,    /* `count` more ranks are wanted */
    GW_EVENT_SPAWNED, /* what GW_DO_SPAWN asked for: `count` new ranks wait to be taken in; 0: they could not be started */
    GW_EVENT_REPLAN, /* another plan is wanted for the same members */
    GW_EVENT_STOP,   /* the batch is done, or someone asked for an end */
    GW_EVENT_TICK,   /* time passes */
    GW_EVENT_KINDS
};

struct gw_event {
    enum gw_event_kind kind;
    double now_s;
    int member;
    double seconds;
    int count;
    const int *members; /* [count], of WORLD */
    /* of WORLD: somebody came, or nobody was to come. A growth that failed is tried again after MORE, or when a loss disturbed it. */
    bool grown;
};

/* What the caller does next; several may be set. */
enum {
    GW_DO_PLAN = 1,     /* make a plan for those who are active now and send it, then tell GW_EVENT_PLANNED */
    GW_DO_FORM = 2,     /* tell all members to form again, after taking in the update.grow new ranks that wait */
    GW_DO_DRAIN = 4,    /* tell the heads to drain */
    GW_DO_LEAVE = 8,    /* update.leavers may go */
    GW_DO_SAVE = 16,    /* all go: keep what can be kept in what remains of the grace, then end */
    GW_DO_GIVE_UP = 32, /* a deadline has passed: the launch must be made anew */
    GW_DO_SPAWN = 64,   /* start update.grow new ranks beside the job, then tell GW_EVENT_SPAWNED */
};

struct gw_update {
    unsigned what;
    int grow;
    const int *leavers; /* [leaver_count] members; valid until the next event */
    int leaver_count;
    double grace_s; /* of SAVE: what is left */
};

struct gw_control_limits {
    double agree_s, migrate_s, drain_s; /* deadlines of the states */
    double move_s;                      /* what a move takes, from measurements; the caller keeps it current */
    double save_s;                      /* what a checkpoint takes: for when all go; kept current like move_s */
    double margin_s;                    /* kept beside it */
    int wanted;       /* ranks the job should have, spares included; lost ones are replaced up to that */
    int spares;       /* of them, so many can be missing without a wait for new ones */
    int replacements; /* at most, within `window_s`; 0: lost ranks are not replaced */
    double window_s;
    double calm_s; /* it has run for so long before new ranks are started beside it: first of all it goes on */
};

struct gw_control; /* opaque */

struct gw_control *gw_control_create(const struct gw_control_limits *limits);
void gw_control_destroy(struct gw_control *control);
struct gw_control_limits *gw_control_limits(struct gw_control *control);

/* Takes an event; events of unknown or departed members are dropped. */
void gw_control_step(struct gw_control *control, const struct gw_event *event, struct gw_update *update);

enum gw_state gw_control_state(const struct gw_control *control);
const char *gw_state_name(enum gw_state state);
/* Worlds formed so far. */
uint64_t gw_control_epoch(const struct gw_control *control);
int gw_control_members(const struct gw_control *control);
bool gw_control_has(const struct gw_control *control, int member);
/* May the next plan give this member a place? Not when it has been given notice. */
bool gw_control_active(const struct gw_control *control, int member);
/* Has every member been given notice? */
bool gw_control_all_leave(const struct gw_control *control);
/* When a planned change will begin; 0: none is due. */
double gw_control_drain_at(const struct gw_control *control);

#endif
