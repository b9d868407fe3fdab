/* Chaos on demand: what `--chaos SPEC` makes go wrong in a job, and when. For tests, and for users who want to see before they trust.
 *
 * Every rank parses the same SPEC and knows its number and the launch. It asks gw_chaos_at() once in every turn of its loop and at
 * the named points of recovery, and does what the answer says: gw_chaos_do() ends or stops the own process, notices and growth are the
 * caller's. So nothing is sent, and what one rank does is repeatable up to timing. An event strikes a rank at most once. Rank numbers are those
 * of the launch: 0 .. n-1 for the ranks it began with, then the ones that came later, for life. `leader` is whoever leads when the event is due.
 * Pure, but for gw_chaos_do, gw_chaos_drag, and the failing writes that gw_chaos_begin sets (base/fault.h). One thread.
 *
 *   SPEC   = EVENT {";" EVENT}
 *   EVENT  = ("kill" | "stop" | "notice" | "slow") ":" WHO {"," OPTION} "@" WHEN {"," OPTION}
 *          | "spawn" ":" COUNT "@" WHEN {"," OPTION}
 *          | "fail-write" ":" N [".." M | "-"] ["@" RANK] {"," OPTION}
 *          | "random" ":" OPTION {"," OPTION}
 *   WHO    = RANK {"+" RANK} | "leader" | "any" | "all"
 *   WHEN   = "step=" N | "time=" SECONDS ["s"] | "time=" N "ms" | "point=" POINT ["*" NTH]
 *   OPTION = "launch=" (N | "any") | "grace=" SECONDS (notice) | "x" FACTOR (slow)
 *          | random: "seed=" N | "rate=" PER_SECOND | "kinds=" KIND {"+" KIND} | "most=" N | "points=" SHARE | "grace=" SECONDS
 *
 * docs/usage.md tells users what each does.
 */
#ifndef GW_JOB_CHAOS_H
#define GW_JOB_CHAOS_H

#include "base/error.h"

#include <stdint.h>

/* Where a rank asks. The names are those of "point=". Only points passed after the launch's first plan count: do not ask at them before. */
#define GW_CHAOS_POINT_TABLE(X)                                                                                        \
    X(GW_CHAOS_AT_TURN, "")                 /* a turn of the loop; no named point */                                   \
    X(GW_CHAOS_AT_REPAIR, "repair")         /* a loss was noticed; before the world is repaired */                     \
    X(GW_CHAOS_AT_HELLO, "hello")           /* the world is repaired or has grown; before saying hello */              \
    X(GW_CHAOS_AT_PLAN, "plan")             /* leader: the plan is made; before it is sent */                          \
    X(GW_CHAOS_AT_MIGRATE, "migrate")       /* the plan is here; its weights and pages are on the move */              \
    X(GW_CHAOS_AT_READY, "ready")           /* all is in place; before saying so */                                    \
    X(GW_CHAOS_AT_SPAWN, "spawn")           /* before new ranks are started */                                         \
    X(GW_CHAOS_AT_MERGE, "merge")           /* new ranks are started; before they are taken into the world */          \
    X(GW_CHAOS_AT_COMMIT, "commit")         /* leader: before drawn tokens are committed */                            \
    X(GW_CHAOS_AT_CHECKPOINT, "checkpoint") /* before a checkpoint is written */

enum gw_chaos_point {
#define X(name, text) name,
    GW_CHAOS_POINT_TABLE(X)
#undef X
        GW_CHAOS_POINTS
};

enum gw_chaos_kind { GW_CHAOS_KILL, GW_CHAOS_STOP, GW_CHAOS_NOTICE, GW_CHAOS_SPAWN, GW_CHAOS_SLOW, GW_CHAOS_KINDS };

struct gw_chaos_action {
    enum gw_chaos_kind kind;
    bool all;       /* NOTICE: every rank gets the same one */
    double grace_s; /* NOTICE: this rank is killed when so much time has passed, as the machines that give notice do */
    double factor;  /* SLOW: of a step's time */
    int count;      /* SPAWN: how many more ranks the leader is to ask for */
};

struct gw_chaos;

/* GW_ERR_USAGE: the column, what was expected there and what was found. */
GW_CHECK gw_err gw_chaos_parse(const char *spec, struct gw_chaos **chaos);
void gw_chaos_destroy(struct gw_chaos *chaos); /* NULL is fine */

/* Who this process is: `uid` its rank number (above), `launch` 0 for the supervisor's first, `ranks` how many the launch began with,
 * `now_s` seconds since the launch began: events before that are past for a rank that comes later. Once, before gw_chaos_at. */
void gw_chaos_begin(struct gw_chaos *chaos, int uid, int launch, int ranks, bool is_leader, double now_s);

/* Is there something to do now? One action a call; more that are due come with the next calls. `now_s` as above (each rank's own clock
 * will do), `steps` what this process has executed, `is_leader` whether it leads now. Local. */
bool gw_chaos_look(struct gw_chaos *chaos, enum gw_chaos_point point, double now_s, uint64_t steps, bool is_leader,
                   struct gw_chaos_action *action);
static inline bool gw_chaos_at(struct gw_chaos *chaos, enum gw_chaos_point point, double now_s, uint64_t steps,
                               bool is_leader, struct gw_chaos_action *action)
{
    return chaos && gw_chaos_look(chaos, point, now_s, steps, is_leader, action);
}

/* Logs the action, whatever it is, so call it for each; KILL does not return, STOP does when somebody continues the process. */
void gw_chaos_do(const struct gw_chaos_action *action);

/* After each step that took `step_s`: sleeps as long as a slowed rank would have taken longer, and returns how long that was. */
double gw_chaos_sleep(const struct gw_chaos *chaos, double step_s);
static inline double gw_chaos_drag(const struct gw_chaos *chaos, double step_s)
{
    return chaos ? gw_chaos_sleep(chaos, step_s) : 0;
}

#endif
