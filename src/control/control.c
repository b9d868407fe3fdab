/* See control.h. One flat switch over the events; what follows from the state as a whole is in settle(). */
#include "control/control.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct member {
    int number;
    bool hello, ready;
    bool leaving, planned_out; /* given notice; the plan in force has no place for it */
    double leave_by_s;
};

struct gw_control {
    struct gw_control_limits limits;
    enum gw_state state;
    uint64_t epoch;
    struct member *members;
    int count;
    int more;                     /* ranks asked for */
    bool may_grow;                /* the last attempt did not fail */
    int spawning;                 /* new ranks that are being started */
    int arrived;                  /* new ranks that wait to be taken in */
    int growing;                  /* new ranks that the FORM under way takes in */
    int replacing;                /* how many of these three replace lost ranks */
    bool waiting;                 /* REFORM waits for the ranks that are being started */
    bool replan;                  /* asked for, not made yet */
    int lost;                     /* and not replaced */
    double deadline_s, entered_s; /* of the state */
    double *replaced_s;           /* [replaced_capacity] times, the oldest first */
    int replaced, replaced_capacity;
    int *leavers;
    struct member
        *dismissed; /* with the end of their grace: whoever is found in a later world all the same still has notice */
    int dismissed_count;
};

struct gw_control *gw_control_create(const struct gw_control_limits *limits)
{
    struct gw_control *control = gw_alloc(1, sizeof *control);
    control->limits = *limits;
    control->may_grow = true;
    control->deadline_s = INFINITY; /* the first world has yet to form */
    return control;
}

void gw_control_destroy(struct gw_control *control)
{
    if (!control) return;
    free(control->members);
    free(control->replaced_s);
    free(control->leavers);
    free(control->dismissed);
    free(control);
}

struct gw_control_limits *gw_control_limits(struct gw_control *control)
{
    return &control->limits;
}

enum gw_state gw_control_state(const struct gw_control *control)
{
    return control->state;
}

const char *gw_state_name(enum gw_state state)
{
    static const char *const names[] = {"agree", "reform", "migrate", "run", "drain", "stop"};
    return names[state];
}

uint64_t gw_control_epoch(const struct gw_control *control)
{
    return control->epoch;
}

int gw_control_members(const struct gw_control *control)
{
    return control->count;
}

static struct member *find(const struct gw_control *control, int number)
{
    for (int i = 0; i < control->count; i++)
        if (control->members[i].number == number) return &control->members[i];
    return NULL;
}

bool gw_control_has(const struct gw_control *control, int number)
{
    return find(control, number) != NULL;
}

bool gw_control_active(const struct gw_control *control, int number)
{
    const struct member *member = find(control, number);
    return member && !member->leaving;
}

static void enter(struct gw_control *control, enum gw_state state, double now_s)
{
    const struct gw_control_limits *l = &control->limits;
    double within_s = state == GW_STATE_DRAIN ? l->drain_s : state == GW_STATE_MIGRATE ? l->migrate_s : l->agree_s;
    control->state = state;
    control->entered_s = now_s;
    control->deadline_s = now_s + within_s;
}

/* ---- who is there ---------------------------------------------------------------------------------------------- */

/* What is known of a member of a new world: it may have been dismissed, and the loss of another was faster than its leaving. */
static const struct member *recall(const struct gw_control *control, int number)
{
    const struct member *old = find(control, number);
    for (int i = 0; i < control->dismissed_count && !old; i++)
        if (control->dismissed[i].number == number) old = &control->dismissed[i];
    return old;
}

/* How an attempt to grow ended: by `came` members, while `died` were lost. One that was disturbed by a loss has not failed: lost ranks that
 * were to be replaced by it are still to be replaced, as far as the budget allows. */
static void end_growth(struct gw_control *control, bool grown, int came, int died)
{
    int short_of = control->growing - came;
    control->may_grow = grown || died > 0;
    if (short_of > 0) control->lost += short_of < control->replacing ? short_of : control->replacing;
    control->growing = control->replacing = 0;
}

/* The members of a new world; who was there before keeps its notice. */
static void take_world(struct gw_control *control, const struct gw_event *event)
{
    struct member *members = gw_alloc((size_t)event->count + 1, sizeof *members);
    int active_before = 0, stayed = 0, found = 0, came = 0, count_before = control->count;
    for (int i = 0; i < control->count; i++) active_before += !control->members[i].leaving;
    for (int i = 0; i < event->count; i++) {
        const struct member *old = recall(control, event->members[i]);
        stayed += gw_control_active(control, event->members[i]);
        found += find(control, event->members[i]) != NULL;
        came += old == NULL;
        members[i] = old ? *old : (struct member){.number = event->members[i]};
        members[i].hello = members[i].ready = members[i].planned_out = false;
    }
    free(control->members);
    control->members = members;
    control->count = event->count;
    control->leavers = gw_realloc(control->leavers, (size_t)event->count + 1, sizeof *control->leavers);
    control->lost += active_before - stayed;
    control->epoch++;
    control->waiting = false;
    if (control->growing) end_growth(control, event->grown, came, count_before - found);
    enter(control, GW_STATE_AGREE, event->now_s);
}

static bool all_hello(const struct gw_control *control)
{
    for (int i = 0; i < control->count; i++)
        if (!control->members[i].hello) return false;
    return true;
}

static bool all_ready(const struct gw_control *control)
{
    for (int i = 0; i < control->count; i++)
        if (!control->members[i].ready) return false;
    return true;
}

bool gw_control_all_leave(const struct gw_control *control)
{
    for (int i = 0; i < control->count; i++)
        if (!control->members[i].leaving) return false;
    return control->count > 0;
}

/* ---- growth ---------------------------------------------------------------------------------------------------- */

/* How many lost ranks may be replaced now: a rank that dies again and again is not started for ever. */
static int may_replace(struct gw_control *control, double now_s)
{
    const struct gw_control_limits *l = &control->limits;
    while (control->replaced && now_s - control->replaced_s[0] > l->window_s)
        memmove(control->replaced_s, control->replaced_s + 1, (size_t)--control->replaced * sizeof(double));
    int active = 0;
    for (int i = 0; i < control->count; i++) active += !control->members[i].leaving;
    int missing = l->wanted - active, left = l->replacements - control->replaced;
    if (missing > control->lost) missing = control->lost;
    if (missing > left) missing = left;
    return missing > 0 ? missing : 0;
}

/* Orders what growth is due, if none is under way. */
static void order_growth(struct gw_control *control, double now_s, struct gw_update *update)
{
    if (!control->may_grow || control->spawning || control->arrived || gw_control_all_leave(control)) return;
    int replace = may_replace(control, now_s);
    if (control->replaced + replace > control->replaced_capacity) {
        control->replaced_capacity = control->replaced + replace;
        control->replaced_s = gw_realloc(control->replaced_s, (size_t)control->replaced_capacity, sizeof(double));
    }
    for (int i = 0; i < replace; i++) control->replaced_s[control->replaced++] = now_s;
    control->spawning = replace + control->more;
    control->replacing = replace;
    control->limits.wanted += control->more;
    control->more = 0;
    control->lost -= replace;
    if (!control->spawning) return;
    update->what |= GW_DO_SPAWN;
    update->grow = control->spawning;
}

/* Too few for the layout, even with the spares. */
static bool is_short(const struct gw_control *control)
{
    int active = 0;
    for (int i = 0; i < control->count; i++) active += !control->members[i].leaving;
    return active < control->limits.wanted - control->limits.spares;
}

static void spawned(struct gw_control *control, int count)
{
    if (!control->spawning) return;
    control->spawning = 0;
    control->arrived = count;
    if (count > 0) return;
    control->may_grow = false;
    control->lost += control->replacing;
    control->replacing = 0;
}

static bool change_due(const struct gw_control *control)
{
    return control->replan || control->arrived > 0;
}

/* ---- leaving --------------------------------------------------------------------------------------------------- */

double gw_control_drain_at(const struct gw_control *control)
{
    double at_s = 0, move_s = control->limits.move_s;
    /* nothing moves when nobody is left */
    if (gw_control_all_leave(control) && control->limits.save_s > move_s) move_s = control->limits.save_s;
    for (int i = 0; i < control->count; i++) {
        const struct member *m = &control->members[i];
        if (!m->leaving || m->planned_out) continue;
        double start_s = m->leave_by_s - move_s - control->limits.margin_s;
        if (at_s == 0 || start_s < at_s) at_s = start_s > 0 ? start_s : 1e-9;
    }
    return at_s;
}

static double least_grace(const struct gw_control *control, double now_s)
{
    double least_s = 0;
    for (int i = 0; i < control->count; i++) {
        double left_s = control->members[i].leave_by_s - now_s;
        if (control->members[i].leaving && (i == 0 || left_s < least_s)) least_s = left_s;
    }
    return least_s > 0 ? least_s : 0;
}

static void note_leaving(struct gw_control *control, const struct gw_event *event)
{
    for (int i = 0; i < control->count; i++) {
        struct member *m = &control->members[i];
        if (event->member >= 0 && m->number != event->member) continue;
        double by_s = event->now_s + event->seconds;
        if (!m->leaving || by_s < m->leave_by_s) m->leave_by_s = by_s;
        m->leaving = true;
    }
}

/* Everybody is ready: those without a place may go. They are no members any more. */
static void dismiss(struct gw_control *control, struct gw_update *update)
{
    int kept = 0;
    for (int i = 0; i < control->count; i++) {
        const struct member *m = &control->members[i];
        if (!m->planned_out) {
            control->members[kept++] = *m;
            continue;
        }
        control->leavers[update->leaver_count++] = m->number;
        control->dismissed = gw_realloc(control->dismissed, (size_t)control->dismissed_count + 1, sizeof *m);
        control->dismissed[control->dismissed_count++] = *m;
    }
    control->count = kept;
    update->leavers = control->leavers;
    if (update->leaver_count) update->what |= GW_DO_LEAVE;
}

/* ---- the machine ----------------------------------------------------------------------------------------------- */

/* Nobody would be left: what remains of the grace goes into saving. */
static void end_saving(struct gw_control *control, double now_s, struct gw_update *update)
{
    control->state = GW_STATE_STOP;
    update->what |= GW_DO_SAVE;
    update->grace_s = least_grace(control, now_s);
}

/* Asks for a plan. Who is given notice from now on has a place in it, and leaves by the next. */
static void ask_for_plan(struct gw_control *control, struct gw_update *update)
{
    update->what |= GW_DO_PLAN;
    control->replan = false;
    for (int i = 0; i < control->count; i++) control->members[i].planned_out = control->members[i].leaving;
}

/* The members form again, with those who have arrived. */
static void form(struct gw_control *control, struct gw_update *update)
{
    update->what |= GW_DO_FORM;
    update->grow = control->growing = control->arrived;
    control->arrived = 0;
}

/* All have said hello: a plan, unless it is better to wait for new ranks. */
static void reform(struct gw_control *control, double now_s, struct gw_update *update)
{
    enter(control, GW_STATE_REFORM, now_s);
    for (int i = 0; i < control->count; i++) control->members[i].hello = false;
    if (control->arrived) {
        form(control, update);
        return;
    }
    bool few = is_short(control);
    if (few) order_growth(control, now_s, update);
    control->waiting = few && control->spawning > 0;
    if (!control->waiting) ask_for_plan(control, update);
}

/* Transitions that follow from the state as it is now. */
static void settle(struct gw_control *control, double now_s, struct gw_update *update)
{
    bool late = now_s > control->deadline_s;
    switch (control->state) {
    case GW_STATE_AGREE:
        if (gw_control_all_leave(control)) {
            end_saving(control, now_s, update);
        } else if (control->count && all_hello(control)) {
            reform(control, now_s, update);
        } else if (late) {
            update->what |= GW_DO_GIVE_UP;
        }
        break;
    case GW_STATE_MIGRATE:
        if (all_ready(control)) {
            enter(control, GW_STATE_RUN, now_s);
            dismiss(control, update);
        } else if (late) {
            update->what |= GW_DO_GIVE_UP;
        }
        break;
    case GW_STATE_RUN: {
        double at_s = gw_control_drain_at(control);
        if (!(at_s > 0 && now_s >= at_s) && !change_due(control)) {
            if (now_s - control->entered_s >= control->limits.calm_s) order_growth(control, now_s, update);
            break;
        }
        enter(control, GW_STATE_DRAIN, now_s);
        update->what |= GW_DO_DRAIN;
        break;
    }
    case GW_STATE_REFORM:
        if (control->waiting && !control->spawning) {
            enter(control, GW_STATE_REFORM, now_s);
            control->waiting = false;
            if (control->arrived) form(control, update);
            else if (gw_control_all_leave(control)) end_saving(control, now_s, update);
            else ask_for_plan(control, update);
        } else if (late) {
            update->what |= GW_DO_GIVE_UP;
        }
        break;
    case GW_STATE_DRAIN:
        if (late) update->what |= GW_DO_GIVE_UP;
        break;
    case GW_STATE_STOP: break;
    }
}

/* A planned change at a token boundary: the members form again, or the job ends if none would be left. */
static void drained(struct gw_control *control, double now_s, struct gw_update *update)
{
    if (gw_control_all_leave(control)) {
        end_saving(control, now_s, update);
        return;
    }
    enter(control, GW_STATE_REFORM, now_s);
    form(control, update);
}

void gw_control_step(struct gw_control *control, const struct gw_event *event, struct gw_update *update)
{
    struct member *member = find(control, event->member);
    *update = (struct gw_update){0};
    if (control->state == GW_STATE_STOP) return;
    switch (event->kind) {
    case GW_EVENT_WORLD: take_world(control, event); break;
    case GW_EVENT_HELLO:
        if (member && control->state == GW_STATE_AGREE) member->hello = true;
        break;
    case GW_EVENT_PLANNED:
        if (control->state != GW_STATE_REFORM || control->waiting) break;
        enter(control, GW_STATE_MIGRATE, event->now_s);
        for (int i = 0; i < control->count; i++) control->members[i].ready = false;
        break;
    case GW_EVENT_READY:
        if (member && control->state == GW_STATE_MIGRATE) member->ready = true;
        break;
    case GW_EVENT_DRAINED:
        if (control->state == GW_STATE_DRAIN) drained(control, event->now_s, update);
        break;
    case GW_EVENT_NOTICE: note_leaving(control, event); break;
    case GW_EVENT_MORE:
        control->more += event->count;
        control->may_grow = true;
        break;
    case GW_EVENT_SPAWNED: spawned(control, event->count); break;
    case GW_EVENT_REPLAN: control->replan = true; break;
    case GW_EVENT_STOP: control->state = GW_STATE_STOP; break;
    case GW_EVENT_TICK:
    case GW_EVENT_KINDS: break;
    }
    settle(control, event->now_s, update);
}
