/* See chaos.h. First the parser, which fills a list of events; then what a rank does with the list.
 *
 * Invariant: an event goes from WAITING to DUE (it strikes this rank) or to SPENT (it is past, or strikes others), from DUE to SPENT when
 * its action is handed out, and nowhere else; only a notice that was given waits again, as the kill at the end of its grace.
 * Random events become ordinary ones in gw_chaos_begin: every rank draws the same list for a launch, so that `most` bounds the launch
 * without any message between the ranks.
 */
#include "job/chaos.h"

#include "base/fault.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/philox.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RANKS = 16, MAX_MOST = 64, LAUNCH_ANY = -1, LAST_RANDOM_LAUNCH = 8 };

enum target { RANKS, LEADER, ANY, ALL, SEAT };
enum state { WAITING, DUE, SPENT };

struct event {
    enum gw_chaos_kind kind;
    enum target target;
    int rank[MAX_RANKS], ranks; /* RANKS */
    int seat;                   /* ANY, SEAT: drawn, 0 .. ranks of the launch - 1 */
    int count;                  /* SPAWN */
    double grace_s;             /* NOTICE */
    double factor;              /* SLOW */
    int launch;                 /* or LAUNCH_ANY */
    /* When: not before this step and this time, and, with a point, when it is then passed for the nth time. */
    uint64_t step;
    double time_s;
    enum gw_chaos_point point; /* TURN: none */
    int nth;
    int passed;
    enum state state;
};

struct random {
    bool set;
    uint64_t seed;
    double rate; /* events a second, of the whole launch */
    bool kinds[GW_CHAOS_KINDS];
    int most;      /* events of a launch */
    double points; /* share of events that wait for a named point */
    double grace_s;
    int launch;
};

struct failing {
    uint64_t first, last; /* writes; first = 0: none */
    int rank;             /* -1: the leader */
    int launch;
};

struct gw_chaos {
    struct event *events;
    int count;
    struct random random;
    struct failing failing;
    /* set by gw_chaos_begin and after */
    int uid, ranks;
    bool leads;
    int rounds; /* recoveries and growths that this rank has been in */
    double factor;
};

static const char *const kind_name[GW_CHAOS_KINDS] = {"kill", "stop", "notice", "spawn", "slow"};
static const char *const point_name[GW_CHAOS_POINTS] = {
#define X(name, text) text,
    GW_CHAOS_POINT_TABLE(X)
#undef X
};

/* ---- parser ------------------------------------------------------------------------------------------------------ */

struct cursor {
    const char *spec, *at;
};

static gw_err expected(const struct cursor *c, const char *what)
{
    int column = (int)(c->at - c->spec) + 1;
    if (!*c->at) return gw_fail(GW_ERR_USAGE, "--chaos, column %d: expected %s, found the end", column, what);
    return gw_fail(GW_ERR_USAGE, "--chaos, column %d: expected %s, found '%.20s'", column, what, c->at);
}

static void skip_blanks(struct cursor *c)
{
    c->at += strspn(c->at, " \t\n");
}

static bool take(struct cursor *c, const char *text)
{
    size_t length = strlen(text);
    if (strncmp(c->at, text, length)) return false;
    c->at += length;
    return true;
}

/* As take(), but not when the word goes on. */
static bool take_word(struct cursor *c, const char *word)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz-";
    size_t length = strspn(c->at, letters);
    return length == strlen(word) && take(c, word);
}

static gw_err take_number(struct cursor *c, uint64_t least, uint64_t most, const char *what, uint64_t *number)
{
    uint64_t value = 0;
    size_t digits = strspn(c->at, "0123456789");
    if (digits == 0 || digits > 18) return expected(c, what);
    for (size_t i = 0; i < digits; i++) value = value * 10 + (uint64_t)(c->at[i] - '0');
    if (value < least || value > most) return expected(c, what);
    c->at += digits;
    *number = value;
    return GW_OK;
}

static gw_err take_int(struct cursor *c, int least, int most, const char *what, int *number)
{
    uint64_t value = 0;
    gw_err rc = take_number(c, (uint64_t)least, (uint64_t)most, what, &value);
    if (rc == GW_OK) *number = (int)value;
    return rc;
}

static gw_err take_real(struct cursor *c, double least, double most, const char *what, double *number)
{
    char text[24];
    size_t length = strspn(c->at, "0123456789.");
    if (length == 0 || length >= sizeof text) return expected(c, what);
    memcpy(text, c->at, length);
    text[length] = 0;
    char *end;
    double value = strtod(text, &end);
    if (*end || !(value >= least && value <= most)) return expected(c, what);
    c->at += length;
    *number = value;
    return GW_OK;
}

static gw_err take_seconds(struct cursor *c, const char *what, double *seconds)
{
    gw_err rc = take_real(c, 0, 1e9, what, seconds);
    if (rc != GW_OK) return rc;
    if (take_word(c, "ms")) *seconds /= 1000;
    else if (!take_word(c, "s") && strspn(c->at, "abcdefghijklmnopqrstuvwxyz")) return expected(c, "'s' or 'ms'");
    return GW_OK;
}

static gw_err take_who(struct cursor *c, struct event *event)
{
    static const char what[] = "a rank's number, 'leader', 'any' or 'all'";
    if (take_word(c, "leader")) event->target = LEADER;
    else if (take_word(c, "any")) event->target = ANY;
    else if (take_word(c, "all")) event->target = ALL;
    else {
        event->target = RANKS;
        do {
            if (event->ranks == MAX_RANKS) return expected(c, "at most 16 ranks in an event");
            gw_err rc = take_int(c, 0, 65535, what, &event->rank[event->ranks]);
            if (rc != GW_OK) return rc;
            event->ranks++;
        } while (take(c, "+"));
    }
    return GW_OK;
}

static gw_err take_point(struct cursor *c, struct event *event)
{
    for (int i = GW_CHAOS_AT_TURN + 1; i < GW_CHAOS_POINTS; i++) {
        if (!take_word(c, point_name[i])) continue;
        event->point = (enum gw_chaos_point)i;
        event->nth = 1;
        return take(c, "*") ? take_int(c, 1, 1 << 30, "which time it is passed, a number from 1", &event->nth) : GW_OK;
    }
    return expected(c, "repair, hello, plan, migrate, ready, spawn, merge, commit or checkpoint");
}

static gw_err take_when(struct cursor *c, struct event *event)
{
    if (take(c, "step=")) return take_number(c, 0, INT64_MAX, "a number of steps", &event->step);
    if (take(c, "time=")) return take_seconds(c, "seconds since the start", &event->time_s);
    if (take(c, "point=")) return take_point(c, event);
    return expected(c, "step=N, time=SECONDS or point=NAME");
}

static gw_err take_launch(struct cursor *c, int *launch)
{
    *launch = LAUNCH_ANY;
    return take_word(c, "any") ? GW_OK : take_int(c, 0, 1 << 30, "a launch's number or 'any'", launch);
}

static gw_err take_event_option(struct cursor *c, struct event *event)
{
    if (take(c, "launch=")) return take_launch(c, &event->launch);
    if (event->kind == GW_CHAOS_NOTICE && take(c, "grace=")) return take_seconds(c, "seconds", &event->grace_s);
    if (event->kind == GW_CHAOS_SLOW && take(c, "x")) return take_real(c, 1, 1e6, "a factor from 1", &event->factor);
    return expected(c, event->kind == GW_CHAOS_NOTICE ? "launch= or grace="
                       : event->kind == GW_CHAOS_SLOW ? "launch= or xFACTOR"
                                                      : "launch=");
}

static gw_err take_event(struct cursor *c, struct gw_chaos *chaos, enum gw_chaos_kind kind)
{
    gw_err rc = GW_OK;
    struct event event = {.kind = kind, .grace_s = 5, .factor = 2};
    bool timed = false;
    if (kind == GW_CHAOS_SPAWN) {
        event.target = LEADER;
        TRY(take_int(c, 1, 1024, "how many ranks", &event.count));
    } else {
        TRY(take_who(c, &event));
    }
    for (;;) {
        if (take(c, ",")) {
            TRY(take_event_option(c, &event));
        } else if (!timed && take(c, "@")) {
            TRY(take_when(c, &event));
            timed = true;
        } else {
            break;
        }
    }
    if (!timed) return expected(c, "@step=N, @time=SECONDS or @point=NAME");
    chaos->events = gw_realloc(chaos->events, (size_t)chaos->count + 1, sizeof *chaos->events);
    chaos->events[chaos->count++] = event;
out:
    return rc;
}

static gw_err take_failing(struct cursor *c, struct failing *failing)
{
    gw_err rc = GW_OK;
    if (failing->first) return expected(c, "one fail-write alone");
    *failing = (struct failing){.rank = -1};
    TRY(take_number(c, 1, INT64_MAX, "a write's number, from 1", &failing->first));
    failing->last = failing->first;
    if (take(c, "..")) TRY(take_number(c, failing->first, INT64_MAX, "the last write's number", &failing->last));
    else if (take(c, "-")) failing->last = UINT64_MAX;
    if (take(c, "@")) TRY(take_int(c, 0, 65535, "a rank's number", &failing->rank));
    while (take(c, ",")) {
        if (!take(c, "launch=")) return expected(c, "launch=");
        TRY(take_launch(c, &failing->launch));
    }
out:
    return rc;
}

static gw_err take_kinds(struct cursor *c, struct random *random)
{
    memset(random->kinds, 0, sizeof random->kinds);
    do {
        int kind = 0;
        while (kind < GW_CHAOS_KINDS && !take_word(c, kind_name[kind])) kind++;
        if (kind == GW_CHAOS_KINDS) return expected(c, "kill, stop, notice, spawn or slow");
        random->kinds[kind] = true;
    } while (take(c, "+"));
    return GW_OK;
}

static gw_err take_random(struct cursor *c, struct random *random)
{
    gw_err rc = GW_OK;
    if (random->set) return expected(c, "one random alone");
    *random = (struct random){.set = true, .rate = 0.2, .most = 3, .points = 0.3, .grace_s = 2, .launch = LAUNCH_ANY};
    random->kinds[GW_CHAOS_KILL] = true;
    do {
        if (take(c, "seed=")) TRY(take_number(c, 0, INT64_MAX, "a seed, a whole number", &random->seed));
        else if (take(c, "rate=")) TRY(take_real(c, 1e-6, 1e6, "events a second, more than 0", &random->rate));
        else if (take(c, "most=")) TRY(take_int(c, 1, MAX_MOST, "events of a launch, 1 to 64", &random->most));
        else if (take(c, "points=")) TRY(take_real(c, 0, 1, "a share from 0 to 1", &random->points));
        else if (take(c, "grace=")) TRY(take_seconds(c, "seconds", &random->grace_s));
        else if (take(c, "launch=")) TRY(take_launch(c, &random->launch));
        else if (take(c, "kinds=")) TRY(take_kinds(c, random));
        else return expected(c, "seed=, rate=, kinds=, most=, points=, grace= or launch=");
    } while (take(c, ","));
out:
    return rc;
}

static gw_err take_any_event(struct cursor *c, struct gw_chaos *chaos)
{
    if (take(c, "random:")) return take_random(c, &chaos->random);
    if (take(c, "fail-write:")) return take_failing(c, &chaos->failing);
    for (int kind = 0; kind < GW_CHAOS_KINDS; kind++) {
        struct cursor before = *c;
        if (take_word(c, kind_name[kind]) && take(c, ":")) return take_event(c, chaos, (enum gw_chaos_kind)kind);
        *c = before;
    }
    return expected(c, "kill:, stop:, notice:, spawn:, slow:, fail-write: or random:");
}

gw_err gw_chaos_parse(const char *spec, struct gw_chaos **out)
{
    gw_err rc = GW_OK;
    struct cursor c = {spec, spec};
    struct gw_chaos *chaos = gw_alloc(1, sizeof *chaos);
    *out = NULL;
    do {
        skip_blanks(&c);
        TRY(take_any_event(&c, chaos));
        skip_blanks(&c);
        if (*c.at && *c.at != ';') {
            rc = expected(&c, "',', '@' or ';'");
            goto out;
        }
    } while (take(&c, ";") && (skip_blanks(&c), *c.at)); /* a last ';' is fine */
    *out = chaos;
    chaos = NULL;
out:
    gw_chaos_destroy(chaos);
    return rc;
}

void gw_chaos_destroy(struct gw_chaos *chaos)
{
    if (!chaos) return;
    free(chaos->events);
    free(chaos);
}

/* ---- random events ----------------------------------------------------------------------------------------------- */

/* What is drawn for an event; each has an index of its own. */
enum draw { GAP, KIND, SEAT_OF, AT_POINT, POINT, FACTOR, DRAWS };

static double draw(uint64_t seed, int launch, int number, enum draw what)
{
    static const uint64_t stream = 0x6368616f73; /* apart from the streams of requests */
    return gw_philox_uniform(seed, stream + ((uint64_t)launch << 40), (uint64_t)number * DRAWS + what);
}

static int draw_of(double uniform, int count)
{
    return (int)(uniform * count);
}

static enum gw_chaos_kind draw_kind(const struct random *random, double uniform)
{
    int kinds = 0, kind = 0;
    for (int i = 0; i < GW_CHAOS_KINDS; i++) kinds += random->kinds[i];
    int left = draw_of(uniform, kinds);
    while (!random->kinds[kind] || left-- > 0) kind++;
    return (enum gw_chaos_kind)kind;
}

/* Is the leader the only rank that passes it? */
static bool leaders_point(enum gw_chaos_point point)
{
    return point == GW_CHAOS_AT_PLAN || point == GW_CHAOS_AT_COMMIT;
}

/* A Poisson process of `rate`: the gaps are exponentially distributed. */
static void add_random(struct gw_chaos *chaos, int launch)
{
    const struct random *r = &chaos->random;
    if (launch > LAST_RANDOM_LAUNCH || (r->launch != LAUNCH_ANY && r->launch != launch)) return;
    double time_s = 0;
    chaos->events = gw_realloc(chaos->events, (size_t)(chaos->count + r->most), sizeof *chaos->events);
    for (int i = 0; i < r->most; i++) {
        time_s -= log1p(-draw(r->seed, launch, i, GAP)) / r->rate;
        struct event event = {
            .kind = draw_kind(r, draw(r->seed, launch, i, KIND)),
            .target = SEAT,
            .seat = draw_of(draw(r->seed, launch, i, SEAT_OF), chaos->ranks),
            .count = 1,
            .grace_s = r->grace_s,
            .factor = 2 + 2 * draw(r->seed, launch, i, FACTOR),
            .launch = LAUNCH_ANY,
            .time_s = time_s,
        };
        if (event.kind == GW_CHAOS_SPAWN) {
            event.target = LEADER;
        } else if (draw(r->seed, launch, i, AT_POINT) < r->points) {
            event.point = (enum gw_chaos_point)(1 + draw_of(draw(r->seed, launch, i, POINT), GW_CHAOS_POINTS - 1));
            event.nth = 1;
            if (leaders_point(event.point)) event.target = LEADER;
        }
        chaos->events[chaos->count++] = event;
    }
}

/* ---- a rank ------------------------------------------------------------------------------------------------------ */

static void set_failing(const struct failing *failing, int uid, int launch, bool is_leader)
{
    if (!failing->first || (failing->launch != LAUNCH_ANY && failing->launch != launch)) return;
    if (failing->rank < 0 ? is_leader : failing->rank == uid) gw_fault_set_writes(failing->first, failing->last);
}

/* For a rank that came after the launch had begun, at `now_s`: what is past, and what its own count of steps and points cannot tell. Or
 * each replacement of a rank that an event has killed would be killed by the same event. */
static bool too_late_for(const struct event *event, double now_s)
{
    if (event->time_s > 0) return event->point == GW_CHAOS_AT_TURN && event->time_s <= now_s;
    return event->target == ALL || (event->target == LEADER && event->point == GW_CHAOS_AT_TURN);
}

void gw_chaos_begin(struct gw_chaos *chaos, int uid, int launch, int ranks, bool is_leader, double now_s)
{
    if (!chaos) return;
    GW_ASSERT(ranks > 0 && uid >= 0 && launch >= 0);
    chaos->uid = uid;
    chaos->ranks = ranks;
    chaos->leads = is_leader;
    chaos->factor = 1;
    for (int i = 0; i < chaos->count; i++) {
        struct event *event = &chaos->events[i];
        event->seat = draw_of(draw(0, launch, i, SEAT_OF), ranks);
        if (event->launch != LAUNCH_ANY && event->launch != launch) event->state = SPENT;
    }
    if (chaos->random.set) add_random(chaos, launch);
    for (int i = 0; i < chaos->count && uid >= ranks; i++)
        if (too_late_for(&chaos->events[i], now_s)) chaos->events[i].state = SPENT;
    set_failing(&chaos->failing, uid, launch, is_leader);
}

static bool strikes(const struct gw_chaos *chaos, const struct event *event)
{
    switch (event->target) {
    case LEADER: return chaos->leads;
    case ALL: return true;
    case ANY: return event->seat == chaos->uid;
    case SEAT: return event->seat == chaos->uid % chaos->ranks; /* so that late ranks are struck, too */
    case RANKS: break;
    }
    for (int i = 0; i < event->ranks; i++)
        if (event->rank[i] == chaos->uid) return true;
    return false;
}

static bool happens(struct event *event, enum gw_chaos_point point, double now_s, uint64_t steps)
{
    if (steps < event->step || now_s < event->time_s) return false;
    if (event->point == GW_CHAOS_AT_TURN) return true;
    return event->point == point && ++event->passed == event->nth;
}

/* Could the leader before have been struck by it? Ranks of other replicas count other steps, and clocks differ a little. */
static bool may_have_struck(const struct gw_chaos *chaos, const struct event *event, double now_s, uint64_t steps)
{
    if (event->time_s > now_s + 1) return false;
    uint64_t slack = event->step / 2 > 16 ? event->step / 2 : 16;
    if (event->step > steps + slack) return false;
    /* Points of a recovery were not passed by the leader before if this is the first recovery. */
    bool recovery = event->point >= GW_CHAOS_AT_HELLO && event->point <= GW_CHAOS_AT_READY;
    return !recovery || chaos->rounds > 1;
}

/* A rank that takes the lead cannot know what took the leader before it. An event for the leader must not strike one leader after
 * the other, so the first that may have struck already counts as spent. */
static void take_lead(struct gw_chaos *chaos, double now_s, uint64_t steps)
{
    for (int i = 0; i < chaos->count; i++) {
        struct event *event = &chaos->events[i];
        bool removes = event->kind == GW_CHAOS_KILL || event->kind == GW_CHAOS_STOP || event->kind == GW_CHAOS_NOTICE;
        if (event->state != WAITING || event->target != LEADER || !removes) continue;
        if (!may_have_struck(chaos, event, now_s, steps)) continue;
        event->state = SPENT;
        return;
    }
}

static void hand_out(struct gw_chaos *chaos, struct event *event, double now_s, struct gw_chaos_action *action)
{
    event->state = SPENT;
    *action = (struct gw_chaos_action){
        .kind = event->kind,
        .all = event->target == ALL,
        .grace_s = event->grace_s,
        .factor = event->factor,
        .count = event->count,
    };
    if (event->kind == GW_CHAOS_SLOW) chaos->factor = event->factor;
    if (event->kind == GW_CHAOS_NOTICE)
        *event = (struct event){.kind = GW_CHAOS_KILL, .target = ALL, .time_s = now_s + event->grace_s};
}

bool gw_chaos_look(struct gw_chaos *chaos, enum gw_chaos_point point, double now_s, uint64_t steps, bool is_leader,
                   struct gw_chaos_action *action)
{
    struct event *due = NULL;
    chaos->rounds += point == GW_CHAOS_AT_REPAIR || point == GW_CHAOS_AT_MERGE;
    if (is_leader && !chaos->leads) take_lead(chaos, now_s, steps);
    chaos->leads = is_leader;
    for (int i = 0; i < chaos->count; i++) {
        struct event *event = &chaos->events[i];
        if (event->state == WAITING && happens(event, point, now_s, steps))
            event->state = strikes(chaos, event) ? DUE : SPENT;
        if (event->state == DUE && !due) due = event;
    }
    if (due) hand_out(chaos, due, now_s, action);
    return due != NULL;
}

void gw_chaos_do(const struct gw_chaos_action *action)
{
    switch (action->kind) {
    case GW_CHAOS_KILL:
        gw_warn("chaos: this rank kills itself");
        kill(getpid(), SIGKILL);
        break;
    case GW_CHAOS_STOP:
        gw_warn("chaos: this rank stops");
        kill(getpid(), SIGSTOP);
        break;
    case GW_CHAOS_NOTICE:
        gw_warn("chaos: notice to %s, %g s of grace", action->all ? "all ranks" : "this rank", action->grace_s);
        break;
    case GW_CHAOS_SPAWN: gw_warn("chaos: %d more rank(s) asked for", action->count); break;
    case GW_CHAOS_SLOW: gw_warn("chaos: steps take %g times as long from now on", action->factor); break;
    case GW_CHAOS_KINDS: break;
    }
}

double gw_chaos_sleep(const struct gw_chaos *chaos, double step_s)
{
    double more_s = (chaos->factor - 1) * step_s;
    if (!(more_s > 0)) return 0;
    struct timespec left = {.tv_sec = (time_t)more_s, .tv_nsec = (long)(1e9 * (more_s - floor(more_s)))};
    while (nanosleep(&left, &left) && errno == EINTR) continue;
    return more_s;
}
