/* The controller under a million simulated events: worlds form, grow, fail to grow and lose members in every state, one or several at a
 * time; members are given notice one by one or all at once; more ranks are asked for; time passes in small and large steps; messages of
 * members that are gone come late. After each event what the controller says is held against what must always be true; at the end of each
 * episode nothing bad happens any more, and it must come back to RUN or have ended. The sweep counts how often each kind of event met each
 * state and prints the table. GODWIT_TEST_SEED repeats a seed.
 */
#include "control/control.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EVENTS = 1000000, EPISODE_EVENTS = 400, MOST = 40, HISTORY = 4096, STATES = GW_STATE_STOP + 1 };

static uint64_t random_state;

static double next_real(void) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int next_int(int bound)
{
    return (int)(next_real() * bound);
}

/* A member of the world, as the simulated runtime knows it. */
struct member {
    int number;
    bool alive;
    bool owes_hello, owes_ready; /* messages that are on their way */
    bool hello, ready;           /* the controller was told */
    bool leaving, planned_out;   /* given notice; before the plan in force was asked for */
    double leave_by_s;
};

struct sim {
    struct gw_control *control;
    struct gw_control_limits limits;
    double now_s, entered_s; /* the time; when the state was entered */
    enum gw_state state;     /* after the last event */
    struct member members[MOST];
    int count;
    bool world_due, plan_due, drain_due; /* what the runtime will tell sooner or later */
    int born, lost, more;
    bool may_grow, growing, replan, waiting;
    int grow, replacing, spawning, arrived;
    int wanted;
    double replaced_s[HISTORY]; /* of every replacement that was ordered */
    int replaced;
    uint64_t epoch;
    bool quiet, given_up, saved;
    int gone[HISTORY], gone_count; /* members that were dismissed or died */
    double gone_leave_by_s[HISTORY];
    const char *error;
};

struct totals {
    long events, pairs[STATES][GW_EVENT_KINDS];
    long episodes, plans, growths, failed_growths, replaced, losses, notices, dismissed, drains, saves, give_ups,
        worlds;
};

static struct totals totals;

static void wrong(struct sim *s, const char *what)
{
    if (!s->error) s->error = what;
}

static struct member *find(struct sim *s, int number)
{
    for (int i = 0; i < s->count; i++)
        if (s->members[i].number == number) return &s->members[i];
    return NULL;
}

static double limit_s(const struct sim *s, enum gw_state state)
{
    if (state == GW_STATE_DRAIN) return s->limits.drain_s;
    return state == GW_STATE_MIGRATE ? s->limits.migrate_s : s->limits.agree_s;
}

static int active_members(const struct sim *s)
{
    int active = 0;
    for (int i = 0; i < s->count; i++) active += !s->members[i].leaving;
    return active;
}

/* Should decoding stop now for one who leaves? */
static bool leave_due(const struct sim *s)
{
    double move_s = active_members(s) || s->limits.move_s > s->limits.save_s ? s->limits.move_s : s->limits.save_s;
    for (int i = 0; i < s->count; i++) {
        const struct member *m = &s->members[i];
        if (m->leaving && !m->planned_out && s->now_s >= m->leave_by_s - move_s - s->limits.margin_s) return true;
    }
    return false;
}

static void depart(struct sim *s, const struct member *m, bool dismissed)
{
    if (s->gone_count == HISTORY) return;
    s->gone_leave_by_s[s->gone_count] = dismissed ? m->leave_by_s : INFINITY;
    s->gone[s->gone_count++] = m->number;
}

/* ---- what must hold after every event --------------------------------------------------------------------------- */

/* Lost ranks that may be replaced now. */
static int missing_now(const struct sim *s)
{
    int missing = s->wanted - active_members(s), recent = 0;
    for (int i = 0; i < s->replaced; i++) recent += s->now_s - s->replaced_s[i] <= s->limits.window_s;
    if (missing > s->lost) missing = s->lost;
    if (missing > s->limits.replacements - recent) missing = s->limits.replacements - recent;
    return missing > 0 ? missing : 0;
}

/* New ranks that should be started now. */
static int growth_due(const struct sim *s)
{
    if (!s->may_grow || s->spawning || s->arrived || active_members(s) == 0) return 0;
    return missing_now(s) + s->more;
}

static void check_growth(struct sim *s, const struct gw_update *u)
{
    int due = growth_due(s), missing = missing_now(s), ordered = u->what & GW_DO_SPAWN ? u->grow : 0;
    if (ordered != due) wrong(s, ordered > due ? "it grows by too many" : "it grows by too few");
    if (!ordered) return;
    for (int i = 0; i < missing && s->replaced < HISTORY; i++) s->replaced_s[s->replaced++] = s->now_s;
    totals.replaced += missing;
    s->replacing = missing;
    s->spawning = ordered;
    s->wanted += s->more;
    s->more = 0;
    s->lost -= missing;
}

/* New ranks are started while the job runs, or when there are too few to make a plan. */
static void check_spawn(struct sim *s, enum gw_state before, const struct gw_update *u)
{
    bool few = active_members(s) < s->wanted - s->limits.spares;
    bool agreed = before == GW_STATE_AGREE && s->state == GW_STATE_REFORM;
    bool calm = before == GW_STATE_RUN && s->state == GW_STATE_RUN && s->now_s - s->entered_s >= s->limits.calm_s;
    if (calm || (agreed && few && !(u->what & GW_DO_FORM))) check_growth(s, u);
    else if (u->what & GW_DO_SPAWN) wrong(s, "new ranks are started at a moment that is not theirs");
    if (agreed) s->waiting = few && s->spawning && !(u->what & GW_DO_FORM);
    if (agreed && !s->waiting && !(u->what & (GW_DO_PLAN | GW_DO_FORM))) wrong(s, "it forms and does nothing");
    if (s->waiting && (u->what & GW_DO_PLAN) && s->spawning) wrong(s, "it plans for too few");
}

static void check_plan(struct sim *s)
{
    totals.plans++;
    if (s->state != GW_STATE_REFORM) wrong(s, "a plan is asked for in another state than REFORM");
    if (active_members(s) == 0) wrong(s, "a plan is asked for that has a place for nobody");
    for (int i = 0; i < s->count; i++) {
        if (!s->members[i].hello) wrong(s, "a plan is asked for before all have said hello");
        s->members[i].planned_out = s->members[i].leaving;
    }
    s->replan = s->waiting = false;
    s->plan_due = true;
}

static void check_form(struct sim *s, enum gw_state before, const struct gw_event *event, const struct gw_update *u)
{
    if (s->state != GW_STATE_REFORM) wrong(s, "a world forms in another state than REFORM");
    if (u->grow != s->arrived) wrong(s, "not all who have come are taken in");
    if (before == GW_STATE_AGREE || (before == GW_STATE_REFORM && s->waiting)) {
        if (u->grow <= 0) wrong(s, "a world forms again without need");
        for (int i = 0; i < s->count; i++)
            if (!s->members[i].hello) wrong(s, "a world grows before all have said hello");
    } else if (before != GW_STATE_DRAIN || event->kind != GW_EVENT_DRAINED) {
        wrong(s, "a world forms again before its heads have drained");
    }
    s->world_due = true;
    s->growing = u->grow > 0;
    s->grow = u->grow;
    s->arrived = 0;
    s->waiting = false;
    totals.growths += s->growing;
}

static void check_leave(struct sim *s, enum gw_state before, const struct gw_update *u)
{
    int planned_out = 0, kept = 0;
    if (before != GW_STATE_MIGRATE || s->state != GW_STATE_RUN)
        wrong(s, "members go at another moment than the end of a move");
    for (int i = 0; i < s->count; i++) planned_out += s->members[i].planned_out;
    if (planned_out != u->leaver_count) wrong(s, "not all who have no place may go, or more");
    for (int i = 0; i < u->leaver_count; i++) {
        struct member *m = find(s, u->leavers[i]);
        if (!m || !m->planned_out) wrong(s, "one goes who has a place, or has gone before");
    }
    for (int i = 0; i < s->count; i++) {
        if (!s->members[i].planned_out) {
            s->members[kept++] = s->members[i];
            continue;
        }
        depart(s, &s->members[i], true);
        totals.dismissed++;
    }
    s->count = kept;
}

static void check_save(struct sim *s, enum gw_state before, const struct gw_event *event, const struct gw_update *u)
{
    double least_s = INFINITY;
    for (int i = 0; i < s->count; i++)
        if (s->members[i].leave_by_s - s->now_s < least_s) least_s = s->members[i].leave_by_s - s->now_s;
    if (s->state != GW_STATE_STOP || active_members(s) > 0 || !s->count) wrong(s, "it ends though somebody stays");
    if (event->kind != GW_EVENT_WORLD && before != GW_STATE_AGREE && before != GW_STATE_DRAIN &&
        event->kind != GW_EVENT_SPAWNED)
        wrong(s, "it ends in the middle of a step");
    if (u->grace_s != (least_s > 0 ? least_s : 0)) wrong(s, "what is left of the grace");
    s->saved = true;
    totals.saves++;
}

static void check_transition(struct sim *s, enum gw_state before, const struct gw_event *event,
                             const struct gw_update *u)
{
    bool more_due = s->arrived > 0 || s->replan;
    if (s->state == GW_STATE_RUN && before == GW_STATE_MIGRATE) {
        for (int i = 0; i < s->count; i++)
            if (!s->members[i].ready) wrong(s, "it runs before all are ready");
    } else if (s->state == GW_STATE_RUN && before != GW_STATE_RUN) {
        wrong(s, "it runs without a move");
    }
    if (u->what & GW_DO_DRAIN) {
        totals.drains++;
        s->drain_due = true;
        if (before != GW_STATE_RUN || s->state != GW_STATE_DRAIN) wrong(s, "it drains in another state than RUN");
        if (!leave_due(s) && !more_due) wrong(s, "it drains needlessly early");
    } else if (before == GW_STATE_RUN && s->state == GW_STATE_RUN) {
        if (leave_due(s)) wrong(s, "it decodes on though the move must begin");
        if (more_due) wrong(s, "it does not begin the change it was asked for");
    }
    if (before == s->state && event->kind != GW_EVENT_WORLD && s->state != GW_STATE_RUN && s->state != GW_STATE_STOP) {
        bool late = s->now_s > s->entered_s + limit_s(s, s->state) && !(u->what & (GW_DO_FORM | GW_DO_PLAN));
        if (late != !!(u->what & GW_DO_GIVE_UP))
            wrong(s, late ? "it waits past its deadline" : "it gives up before its deadline");
    } else if (u->what & GW_DO_GIVE_UP) {
        wrong(s, "it gives up while it goes on");
    }
}

static void check_members(struct sim *s)
{
    if (gw_control_members(s->control) != s->count) wrong(s, "number of members");
    for (int i = 0; i < s->count; i++)
        if (gw_control_active(s->control, s->members[i].number) == s->members[i].leaving) wrong(s, "who is active");
    if (s->gone_count && !find(s, s->gone[s->gone_count - 1]) &&
        gw_control_active(s->control, s->gone[s->gone_count - 1]))
        wrong(s, "one who is gone is active");
    if (gw_control_epoch(s->control) != s->epoch) wrong(s, "epoch");
}

/* ---- the event as the runtime sees it --------------------------------------------------------------------------- */

static void apply_notice(struct sim *s, const struct gw_event *event)
{
    for (int i = 0; i < s->count; i++) {
        struct member *m = &s->members[i];
        double by_s = s->now_s + event->seconds;
        if (event->member >= 0 && m->number != event->member) continue;
        if (!m->leaving || by_s < m->leave_by_s) m->leave_by_s = by_s;
        m->leaving = true;
    }
}

/* What the simulated runtime knows after the event, before it hears what the controller says. WORLD: see tell_world(). */
static void apply(struct sim *s, const struct gw_event *event, enum gw_state before)
{
    struct member *m = find(s, event->member);
    switch (event->kind) {
    case GW_EVENT_HELLO:
        if (m && before == GW_STATE_AGREE) m->hello = true;
        break;
    case GW_EVENT_READY:
        if (m && before == GW_STATE_MIGRATE) m->ready = true;
        break;
    case GW_EVENT_PLANNED:
        if (before != GW_STATE_REFORM || s->waiting) break;
        for (int i = 0; i < s->count; i++) s->members[i].owes_ready = s->members[i].alive, s->members[i].ready = false;
        break;
    case GW_EVENT_NOTICE: apply_notice(s, event); break;
    case GW_EVENT_MORE:
        s->more += event->count;
        s->may_grow = true;
        break;
    case GW_EVENT_SPAWNED:
        if (!s->spawning) break;
        s->spawning = 0;
        s->arrived = event->count;
        if (event->count) break;
        s->may_grow = false;
        s->lost += s->replacing;
        s->replacing = 0;
        break;
    case GW_EVENT_REPLAN: s->replan = true; break;
    default: break;
    }
}

static void tell(struct sim *s, struct gw_event event)
{
    struct gw_update u;
    enum gw_state before = s->state;
    event.now_s = s->now_s;
    totals.events++;
    totals.pairs[before][event.kind]++;
    if (before != GW_STATE_STOP) {
        apply(s, &event, before);
        s->epoch += event.kind == GW_EVENT_WORLD;
    }
    gw_control_step(s->control, &event, &u);
    s->state = gw_control_state(s->control);
    if (before == GW_STATE_STOP) {
        if (s->state != GW_STATE_STOP || u.what) wrong(s, "it goes on after its end");
        return;
    }
    if (event.kind == GW_EVENT_STOP && (s->state != GW_STATE_STOP || u.what)) wrong(s, "it does not stop when told");
    if (event.kind == GW_EVENT_WORLD && s->state != GW_STATE_AGREE && !(u.what & GW_DO_SAVE))
        wrong(s, "a new world is not agreed on");
    check_transition(s, before, &event, &u);
    check_spawn(s, before, &u);
    bool decided = before == GW_STATE_REFORM && (u.what & (GW_DO_PLAN | GW_DO_FORM));
    if (u.what & GW_DO_PLAN) check_plan(s);
    if (u.what & GW_DO_FORM) check_form(s, before, &event, &u);
    if (u.what & GW_DO_LEAVE) check_leave(s, before, &u);
    else if (before == GW_STATE_MIGRATE && s->state == GW_STATE_RUN)
        for (int i = 0; i < s->count; i++)
            if (s->members[i].planned_out) wrong(s, "one without a place may not go");
    if (u.what & GW_DO_SAVE) check_save(s, before, &event, &u);
    else if (s->state == GW_STATE_STOP && event.kind != GW_EVENT_STOP) wrong(s, "it stops by itself");
    if (before != s->state || event.kind == GW_EVENT_WORLD || decided) s->entered_s = s->now_s;
    if (u.what & GW_DO_GIVE_UP) s->given_up = true;
    check_members(s);
}

/* ---- the runtime ------------------------------------------------------------------------------------------------- */

static void add_member(struct sim *s)
{
    struct member *m = &s->members[s->count++];
    *m = (struct member){.number = s->born++, .alive = true};
}

/* The survivors meet, with those that came; sometimes one is still there that was dismissed. */
static void tell_world(struct sim *s)
{
    int numbers[MOST], kept = 0, died = 0, came = 0;
    bool was_growing = s->growing;
    for (int i = 0; i < s->count; i++) {
        if (s->members[i].alive) {
            s->members[kept++] = s->members[i];
            continue;
        }
        s->lost += !s->members[i].leaving;
        died++;
        depart(s, &s->members[i], false);
    }
    s->count = kept;
    int come = was_growing ? s->grow : 0;
    if (come && !s->quiet && next_int(3) == 0) come = next_int(come);
    if (!s->epoch) come = 1 + next_int(6);
    bool grown = !was_growing || come == s->grow;
    totals.failed_growths += !grown;
    for (int i = 0; i < come && s->count < MOST - 2; i++, came++) add_member(s);
    if (s->gone_count && !s->quiet && next_int(30) == 0 && isfinite(s->gone_leave_by_s[s->gone_count - 1]) &&
        !find(s, s->gone[s->gone_count - 1])) {
        int last = --s->gone_count; /* dismissed, but the loss of another was faster */
        s->members[s->count++] = (struct member){
            .number = s->gone[last], .alive = true, .leaving = true, .leave_by_s = s->gone_leave_by_s[last]};
    }
    if (!s->count) add_member(s);
    if (was_growing) { /* what was disturbed by a loss may be tried again */
        s->may_grow = grown || died;
        int short_of = s->grow - came;
        if (short_of > 0) s->lost += short_of < s->replacing ? short_of : s->replacing;
    }
    s->growing = s->world_due = s->plan_due = s->drain_due = s->waiting = false;
    totals.worlds++;
    for (int i = 0; i < s->count; i++) {
        struct member *m = &s->members[i];
        numbers[i] = m->number;
        m->hello = m->ready = m->owes_ready = m->planned_out = false;
        m->owes_hello = true;
    }
    tell(s, (struct gw_event){
                .kind = GW_EVENT_WORLD, .member = -1, .members = numbers, .count = s->count, .grown = grown});
}

/* One message that is on its way arrives; false if there is none. */
static bool deliver(struct sim *s)
{
    int choices = s->world_due + s->plan_due + s->drain_due + (s->spawning > 0);
    for (int i = 0; i < s->count; i++) choices += s->members[i].owes_hello + s->members[i].owes_ready;
    if (!choices) return false;
    int pick = next_int(choices);
    if (s->world_due && pick-- == 0) return tell_world(s), true;
    if (s->spawning > 0 && pick-- == 0) {
        int count = !s->quiet && next_int(8) == 0 ? 0 : s->spawning;
        totals.failed_growths += count == 0;
        if (s->state == GW_STATE_STOP) s->spawning = 0;
        return tell(s, (struct gw_event){.kind = GW_EVENT_SPAWNED, .member = -1, .count = count}), true;
    }
    if (s->plan_due && pick-- == 0) {
        s->plan_due = false;
        return tell(s, (struct gw_event){.kind = GW_EVENT_PLANNED, .member = -1}), true;
    }
    if (s->drain_due && pick-- == 0) {
        s->drain_due = false;
        return tell(s, (struct gw_event){.kind = GW_EVENT_DRAINED, .member = -1}), true;
    }
    for (int i = 0; i < s->count; i++) {
        struct member *m = &s->members[i];
        struct gw_event event = {.kind = m->owes_hello ? GW_EVENT_HELLO : GW_EVENT_READY, .member = m->number};
        if (!m->owes_hello && !m->owes_ready) continue;
        if (pick-- > 0) continue;
        if (m->owes_hello) m->owes_hello = false;
        else m->owes_ready = false;
        return tell(s, event), true;
    }
    return tell_world(s), true; /* not reached: pick < choices, but a member may owe both */
}

static void lose(struct sim *s)
{
    int alive = 0, victims = next_int(4) ? 1 : 1 + next_int(4);
    for (int i = 0; i < s->count; i++) alive += s->members[i].alive;
    for (; victims > 0 && alive > 1; victims--, alive--) {
        int pick = next_int(alive);
        for (int i = 0; i < s->count; i++)
            if (s->members[i].alive && pick-- == 0) {
                s->members[i].alive = false;
                if (next_int(2)) s->members[i].owes_hello = s->members[i].owes_ready = false;
            }
        s->world_due = true;
        totals.losses++;
    }
}

/* What comes late, or twice, or from one who is gone: it must change nothing. */
static void tell_stale(struct sim *s)
{
    int gone = s->gone_count ? s->gone[next_int(s->gone_count)] : 1 << 20;
    if (find(s, gone)) gone = 1 << 20;
    switch (next_int(6)) {
    case 5:
        if (!s->spawning) tell(s, (struct gw_event){.kind = GW_EVENT_SPAWNED, .member = -1, .count = next_int(3)});
        break;
    case 0: tell(s, (struct gw_event){.kind = GW_EVENT_HELLO, .member = gone}); break;
    case 1: tell(s, (struct gw_event){.kind = GW_EVENT_READY, .member = gone}); break;
    case 2: tell(s, (struct gw_event){.kind = GW_EVENT_NOTICE, .member = gone, .seconds = 1}); break;
    case 3:
        if (s->state != GW_STATE_REFORM) tell(s, (struct gw_event){.kind = GW_EVENT_PLANNED, .member = -1});
        break;
    default:
        if (s->state != GW_STATE_DRAIN) tell(s, (struct gw_event){.kind = GW_EVENT_DRAINED, .member = -1});
    }
}

static void tell_notice(struct sim *s)
{
    struct gw_event event = {.kind = GW_EVENT_NOTICE, .member = -1, .seconds = next_real() * (next_int(2) ? 5 : 120)};
    if (s->count && next_int(12)) event.member = s->members[next_int(s->count)].number;
    totals.notices++;
    tell(s, event);
}

static void happen(struct sim *s, int calm)
{
    int what = next_int(100 + calm);
    if (what < 4) lose(s);
    else if (what < 7) tell_notice(s);
    else if (what < 9) tell(s, (struct gw_event){.kind = GW_EVENT_MORE, .member = -1, .count = 1 + next_int(3)});
    else if (what < 13) tell_stale(s);
    else if (what < 14) tell(s, (struct gw_event){.kind = GW_EVENT_REPLAN, .member = -1});
    else if (what < 15 && next_int(6) == 0) tell(s, (struct gw_event){.kind = GW_EVENT_STOP, .member = -1});
    else if (what < 30 || !deliver(s)) {
        s->now_s += next_real() * (next_int(40) ? 0.5 : 20);
        tell(s, (struct gw_event){.kind = GW_EVENT_TICK, .member = -1});
    }
}

/* Nothing bad happens any more: it must run, and everyone who was given notice must be gone in time. */
static void calm_down(struct sim *s)
{
    s->quiet = true;
    for (int i = 0; i < 2000 && !s->error && !s->given_up; i++) {
        if (deliver(s)) continue;
        if (s->state == GW_STATE_STOP) return;
        bool leaving = active_members(s) < s->count;
        if (s->state == GW_STATE_RUN && !leaving && !s->replan && !s->arrived && !growth_due(s)) return;
        s->now_s += 0.05 + (s->state == GW_STATE_RUN ? 1 : 0);
        tell(s, (struct gw_event){.kind = GW_EVENT_TICK, .member = -1});
    }
    if (!s->given_up) wrong(s, "it does not come to rest");
}

static void run_episode(struct sim *s)
{
    int calm = next_int(3) * 100, ranks = 1 + next_int(6);
    *s = (struct sim){.now_s = next_real() * 1000, .may_grow = true, .entered_s = INFINITY, .wanted = ranks};
    s->limits = (struct gw_control_limits){.agree_s = 5 + next_int(20),
                                           .migrate_s = 5 + next_int(60),
                                           .drain_s = 5 + next_int(20),
                                           .move_s = next_real() * 3,
                                           .save_s = next_real() * 6,
                                           .margin_s = next_real(),
                                           .wanted = ranks,
                                           .spares = next_int(ranks),
                                           .replacements = next_int(6),
                                           .window_s = 5 + next_int(60),
                                           .calm_s = next_int(3) * 0.4};
    s->control = gw_control_create(&s->limits);
    for (int i = next_int(3); i > 0; i--) happen(s, 0);
    if (!s->epoch) s->world_due = true;
    int after_end = 10;
    for (int i = 0; i < EPISODE_EVENTS && !s->error && !s->given_up && after_end > 0; i++) {
        happen(s, calm);
        after_end -= s->state == GW_STATE_STOP;
        if (s->state == GW_STATE_STOP)
            tell(s, (struct gw_event){.kind = next_int(GW_EVENT_KINDS), .member = next_int(8), .seconds = 1});
    }
    if (!s->error && !s->given_up) calm_down(s);
    totals.give_ups += s->given_up;
    totals.episodes++;
    gw_control_destroy(s->control);
}

static void print_totals(void)
{
    static const char *const kinds[] = {"world", "hello",   "planned", "ready", "drained", "notice",
                                        "more",  "spawned", "replan",  "stop",  "tick"};
    printf("\n    %ld episodes: %ld worlds, %ld plans, %ld lost, %ld replaced, %ld growths (%ld failed), %ld notices, "
           "%ld drains, %ld dismissed, %ld saved, %ld given up\n    %-8s",
           totals.episodes, totals.worlds, totals.plans, totals.losses, totals.replaced, totals.growths,
           totals.failed_growths, totals.notices, totals.drains, totals.dismissed, totals.saves, totals.give_ups, "");
    for (int k = 0; k < GW_EVENT_KINDS; k++) printf("%9s", kinds[k]);
    for (int state = 0; state < STATES; state++) {
        printf("\n    %-8s", gw_state_name((enum gw_state)state));
        for (int k = 0; k < GW_EVENT_KINDS; k++) printf("%9ld", totals.pairs[state][k]);
    }
    printf("\n    ");
}

static void test_sweep(void)
{
    const char *text = getenv("GODWIT_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 10) : 20260401;
    static struct sim sim;
    printf("(seed %llu) ", (unsigned long long)seed);
    for (uint64_t episode = 0; totals.events < EVENTS; episode++) {
        random_state = (seed + episode) * 1000003;
        run_episode(&sim);
        if (!sim.error) continue;
        printf("\n    seed %llu, at %.3f s in state %s: %s ", (unsigned long long)(seed + episode), sim.now_s,
               gw_state_name(sim.state), sim.error);
        CU_FAIL("the controller went wrong");
        return;
    }
    print_totals();
    for (int state = 0; state < STATES; state++)
        for (int k = 0; k < GW_EVENT_KINDS; k++) CU_ASSERT(totals.pairs[state][k] > 5);
    CU_ASSERT(totals.plans > 20000 && totals.losses > 5000 && totals.replaced > 1000 && totals.dismissed > 1000);
    CU_ASSERT(totals.failed_growths > 500 && totals.saves > 100 && totals.give_ups > 50 && totals.drains > 1000);
}

/* ---- by hand ----------------------------------------------------------------------------------------------------- */

static const struct gw_control_limits plain = {.agree_s = 10,
                                               .migrate_s = 20,
                                               .drain_s = 10,
                                               .move_s = 2,
                                               .margin_s = 1,
                                               .wanted = 3,
                                               .replacements = 2,
                                               .window_s = 60};

static unsigned step(struct gw_control *c, struct gw_event event, struct gw_update *u)
{
    gw_control_step(c, &event, u);
    return u->what;
}

static unsigned world(struct gw_control *c, double now_s, const int *members, int count, bool grown,
                      struct gw_update *u)
{
    unsigned what = step(
        c,
        (struct gw_event){
            .kind = GW_EVENT_WORLD, .now_s = now_s, .member = -1, .members = members, .count = count, .grown = grown},
        u);
    for (int i = 0; i < count; i++)
        what |= step(c, (struct gw_event){.kind = GW_EVENT_HELLO, .now_s = now_s, .member = members[i]}, u);
    return what;
}

static unsigned spawned(struct gw_control *c, double now_s, int count, struct gw_update *u)
{
    return step(c, (struct gw_event){.kind = GW_EVENT_SPAWNED, .now_s = now_s, .member = -1, .count = count}, u);
}

static unsigned plan_and_ready(struct gw_control *c, double now_s, const int *members, int count, struct gw_update *u)
{
    unsigned what = step(c, (struct gw_event){.kind = GW_EVENT_PLANNED, .now_s = now_s, .member = -1}, u);
    for (int i = 0; i < count; i++)
        what |= step(c, (struct gw_event){.kind = GW_EVENT_READY, .now_s = now_s, .member = members[i]}, u);
    return what;
}

/* A rank is given 60 s: decoding goes on for 57, then it leaves by a plan without it. */
static void test_notice(void)
{
    static const int three[] = {0, 1, 2};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    CU_ASSERT_EQUAL(world(c, 0, three, 3, true, &u), GW_DO_PLAN);
    CU_ASSERT_EQUAL(plan_and_ready(c, 1, three, 3, &u), 0);
    CU_ASSERT_EQUAL(gw_control_drain_at(c), 0);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_NOTICE, .now_s = 10, .member = 1, .seconds = 60}, &u),
                    0);
    CU_ASSERT_EQUAL(gw_control_drain_at(c), 67);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 66.9, .member = -1}, &u), 0);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 67, .member = -1}, &u), GW_DO_DRAIN);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_DRAINED, .now_s = 67.1, .member = -1}, &u), GW_DO_FORM);
    CU_ASSERT_EQUAL(u.grow, 0);
    CU_ASSERT_EQUAL(world(c, 67.2, three, 3, true, &u), GW_DO_PLAN);
    CU_ASSERT(!gw_control_active(c, 1) && gw_control_active(c, 2));
    CU_ASSERT_EQUAL(plan_and_ready(c, 68, three, 3, &u), GW_DO_LEAVE);
    CU_ASSERT(u.leaver_count == 1 && u.leavers[0] == 1 && gw_control_members(c) == 2);
    CU_ASSERT_EQUAL(gw_control_state(c), GW_STATE_RUN);
    gw_control_destroy(c);
}

/* All are given 60 s: what is kept then is the time that saving takes, not that of a move. */
static void test_notice_for_all(void)
{
    static const int three[] = {0, 1, 2};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    world(c, 0, three, 3, true, &u);
    plan_and_ready(c, 1, three, 3, &u);
    gw_control_limits(c)->save_s = 5;
    CU_ASSERT(!gw_control_all_leave(c));
    step(c, (struct gw_event){.kind = GW_EVENT_NOTICE, .now_s = 10, .member = -1, .seconds = 60}, &u);
    CU_ASSERT(gw_control_all_leave(c) && gw_control_drain_at(c) == 64);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 64, .member = -1}, &u), GW_DO_DRAIN);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_DRAINED, .now_s = 64.5, .member = -1}, &u), GW_DO_SAVE);
    CU_ASSERT_DOUBLE_EQUAL(u.grace_s, 5.5, 1e-9);
    gw_control_destroy(c);
}

/* Between the plan and its being out a notice comes: that plan has a place for the member, so it stays until the next. */
static void test_notice_while_planning(void)
{
    static const int three[] = {0, 1, 2};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    CU_ASSERT_EQUAL(world(c, 0, three, 3, true, &u), GW_DO_PLAN);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_NOTICE, .now_s = 1, .member = -1, .seconds = 60}, &u),
                    0);
    CU_ASSERT_EQUAL(plan_and_ready(c, 1, three, 3, &u), 0);
    CU_ASSERT(gw_control_state(c) == GW_STATE_RUN && gw_control_members(c) == 3 && gw_control_drain_at(c) == 58);
    gw_control_destroy(c);
}

/* A rank that has been dismissed is found in the world once more, since another died before it was gone: it gets no place. */
static void test_dismissed_again(void)
{
    static const int three[] = {0, 1, 2}, two[] = {0, 1};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_NOTICE, .now_s = 0, .member = -1, .seconds = 5}, &u), 0);
    gw_control_limits(c)->replacements = 0;
    (void)world(c, 0, three, 3, true, &u);
    (void)plan_and_ready(c, 1, three, 3, &u);
    (void)step(c, (struct gw_event){.kind = GW_EVENT_NOTICE, .now_s = 1, .member = 1, .seconds = 1}, &u);
    (void)step(c, (struct gw_event){.kind = GW_EVENT_DRAINED, .now_s = 1, .member = -1}, &u);
    CU_ASSERT_EQUAL(world(c, 2, three, 3, true, &u), GW_DO_PLAN);
    CU_ASSERT_EQUAL(plan_and_ready(c, 2, three, 3, &u), GW_DO_LEAVE);
    CU_ASSERT_EQUAL(world(c, 3, two, 2, true, &u), GW_DO_PLAN); /* 2 died, 1 is still there */
    CU_ASSERT(gw_control_active(c, 0) && !gw_control_active(c, 1));
    CU_ASSERT_EQUAL(plan_and_ready(c, 3, two, 2, &u), GW_DO_LEAVE);
    CU_ASSERT(u.leaver_count == 1 && u.leavers[0] == 1);
    gw_control_destroy(c);
}

/* Lost ranks are replaced, but no more than two within a minute; a growth that failed is not tried again until somebody asks. */
static void test_replacement(void)
{
    static const int members[] = {0, 1, 2, 3, 4};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    (void)world(c, 0, members, 3, true, &u);
    (void)plan_and_ready(c, 1, members, 3, &u);
    CU_ASSERT_EQUAL(world(c, 2, members, 1, true, &u), GW_DO_SPAWN);
    CU_ASSERT_EQUAL(u.grow, 2);
    CU_ASSERT_EQUAL(spawned(c, 2.5, 2, &u), GW_DO_FORM);
    CU_ASSERT_EQUAL(u.grow, 2);
    CU_ASSERT_EQUAL(world(c, 3, (const int[]){0, 3, 4}, 3, true, &u), GW_DO_PLAN);
    CU_ASSERT_EQUAL(world(c, 4, members, 1, true, &u), GW_DO_PLAN); /* the budget is used up */
    (void)plan_and_ready(c, 5, members, 1, &u);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_MORE, .now_s = 6, .member = -1, .count = 2}, &u),
                    GW_DO_SPAWN);
    CU_ASSERT_EQUAL(u.grow, 2);
    CU_ASSERT_EQUAL(spawned(c, 6, 2, &u), GW_DO_DRAIN);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_DRAINED, .now_s = 6, .member = -1}, &u), GW_DO_FORM);
    CU_ASSERT_EQUAL(u.grow, 2);
    CU_ASSERT_EQUAL(world(c, 100, (const int[]){0, 5}, 2, false, &u), GW_DO_PLAN);
    (void)plan_and_ready(c, 101, (const int[]){0, 5}, 2, &u);
    CU_ASSERT_EQUAL(world(c, 102, members, 1, true, &u), GW_DO_PLAN); /* the last growth failed */
    gw_control_destroy(c);
}

/* Another rank dies while a lost one is being replaced: both are replaced then. */
static void test_disturbed_replacement(void)
{
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    gw_control_limits(c)->replacements = 5;
    (void)world(c, 0, (const int[]){0, 1, 2}, 3, true, &u);
    (void)plan_and_ready(c, 1, (const int[]){0, 1, 2}, 3, &u);
    CU_ASSERT(world(c, 2, (const int[]){0, 1}, 2, true, &u) == GW_DO_SPAWN && u.grow == 1);
    CU_ASSERT_EQUAL(world(c, 3, (const int[]){0}, 1, false, &u), 0); /* it waits for the first */
    CU_ASSERT(spawned(c, 3, 1, &u) == GW_DO_FORM && u.grow == 1);
    CU_ASSERT(world(c, 4, (const int[]){0, 4}, 2, true, &u) == GW_DO_SPAWN && u.grow == 1);
    CU_ASSERT(spawned(c, 4, 1, &u) == GW_DO_FORM && u.grow == 1);
    CU_ASSERT_EQUAL(world(c, 5, (const int[]){0, 4}, 2, false, &u), GW_DO_PLAN); /* it did not come */
    gw_control_destroy(c);
}

/* A spare stands in: the plan is made at once, and its successor is started while the job runs. */
static void test_spare(void)
{
    static const int four[] = {0, 1, 2, 3}, three[] = {0, 2, 3};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    gw_control_limits(c)->wanted = 4;
    gw_control_limits(c)->spares = 1;
    (void)world(c, 0, four, 4, true, &u);
    (void)plan_and_ready(c, 1, four, 4, &u);
    CU_ASSERT_EQUAL(world(c, 2, three, 3, true, &u), GW_DO_PLAN);
    CU_ASSERT_EQUAL(plan_and_ready(c, 2, three, 3, &u), 0);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 2, .member = -1}, &u), GW_DO_SPAWN);
    CU_ASSERT(u.grow == 1 && gw_control_state(c) == GW_STATE_RUN);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 2, .member = -1}, &u), 0);
    CU_ASSERT_EQUAL(spawned(c, 3, 0, &u), 0); /* it could not be started, and is not tried again */
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 4, .member = -1}, &u), 0);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_MORE, .now_s = 5, .member = -1, .count = 1}, &u),
                    GW_DO_SPAWN);
    CU_ASSERT_EQUAL(u.grow, 2);
    gw_control_destroy(c);
}

static void test_deadline(void)
{
    static const int three[] = {0, 1, 2};
    struct gw_control *c = gw_control_create(&plain);
    struct gw_update u;
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 1e9, .member = -1}, &u), 0);
    CU_ASSERT_EQUAL(world(c, 0, three, 2, true, &u), GW_DO_PLAN);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_PLANNED, .now_s = 5, .member = -1}, &u), 0);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 25, .member = -1}, &u), 0);
    CU_ASSERT_EQUAL(step(c, (struct gw_event){.kind = GW_EVENT_TICK, .now_s = 25.1, .member = -1}, &u), GW_DO_GIVE_UP);
    gw_control_destroy(c);
    gw_control_destroy(NULL);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("control", NULL, NULL);
    CU_add_test(suite, "notice", test_notice);
    CU_add_test(suite, "notice while planning", test_notice_while_planning);
    CU_add_test(suite, "notice for all", test_notice_for_all);
    CU_add_test(suite, "dismissed and there again", test_dismissed_again);
    CU_add_test(suite, "replacement", test_replacement);
    CU_add_test(suite, "disturbed replacement", test_disturbed_replacement);
    CU_add_test(suite, "spare", test_spare);
    CU_add_test(suite, "deadline", test_deadline);
    CU_add_test(suite, "a million events", test_sweep);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
