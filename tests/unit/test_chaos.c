/* Chaos on demand: the grammar with its error columns, each trigger and target, the lead changing hands, random events that are the same
 * on every rank and bounded in every launch, failing writes, and what is done to the own process. */
#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "job/chaos.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint64_t NEVER = UINT64_MAX;

static struct gw_chaos *parsed(const char *spec)
{
    struct gw_chaos *chaos = NULL;
    if (gw_chaos_parse(spec, &chaos) != GW_OK) {
        fprintf(stderr, "%s: %s\n", spec, gw_error_detail());
        CU_FAIL("a good spec was refused");
        exit(1);
    }
    return chaos;
}

/* Of `ranks` ranks, number 0 leading, at the begin of a launch. */
static struct gw_chaos *begun(const char *spec, int uid, int launch, int ranks)
{
    struct gw_chaos *chaos = parsed(spec);
    gw_chaos_begin(chaos, uid, launch, ranks, uid == 0, 0);
    return chaos;
}

/* At which step (one a millisecond, turns only) the rank does `kind`; NEVER within `steps`. */
static uint64_t step_of(const char *spec, int uid, int launch, int ranks, enum gw_chaos_kind kind, uint64_t steps)
{
    struct gw_chaos *chaos = begun(spec, uid, launch, ranks);
    struct gw_chaos_action action;
    uint64_t found = NEVER;
    for (uint64_t step = 0; step < steps && found == NEVER; step++)
        while (gw_chaos_at(chaos, GW_CHAOS_AT_TURN, (double)step / 1000, step, uid == 0, &action))
            if (action.kind == kind && found == NEVER) found = step;
    gw_chaos_destroy(chaos);
    return found;
}

/* ---- grammar ---------------------------------------------------------------------------------------------------- */

static void test_good(void)
{
    static const char *const good[] = {
        "kill:2@step=40",
        "kill:leader@time=1.5s",
        "kill:leader@time=1500ms",
        "kill:leader@time=2",
        "kill:0+2@time=2s",
        "kill:any@step=3",
        "kill:all@time=0",
        "stop:1@step=20",
        "notice:1,grace=2s@step=30",
        "notice:1@step=30,grace=200ms",
        "notice:all,grace=5s@time=3s",
        "spawn:1@step=60",
        "slow:1,x3@step=10",
        "slow:1,x1.5,launch=2@step=10",
        "slow:1@step=10",
        "fail-write:7",
        "fail-write:7@2",
        "fail-write:7..9@0,launch=any",
        "fail-write:7-",
        "kill:1@point=migrate",
        "kill:1@point=migrate*2,launch=any",
        "kill:1@point=repair;kill:1@point=hello;kill:1@point=plan;kill:1@point=ready;kill:1@point=spawn",
        "kill:1@point=merge;kill:1@point=commit;kill:1@point=checkpoint",
        "random:seed=7",
        "random:seed=7,rate=0.5,kinds=kill+stop+spawn+notice+slow,most=3,points=0.5,grace=1s,launch=1",
        " kill:1@step=2 ;\n\tstop:1@step=3; ",
        "kill:0+1+2+3+4+5+6+7+8+9+10+11+12+13+14+15@step=1",
        "kill:1@step=999999999999999999",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) gw_chaos_destroy(parsed(good[i]));
    gw_chaos_destroy(NULL);
}

static void test_bad(void)
{
    static const struct {
        const char *spec;
        int column;
        const char *expected;
    } bad[] = {
        {"", 1, "kill:, stop:, notice:, spawn:, slow:, fail-write: or random:"},
        {"murder:1@step=2", 1, "kill:"},
        {"kill", 1, "kill:"},
        {"killer:1@step=1", 1, "kill:"},
        {";kill:1@step=2", 1, "kill:"},
        {"kill:1@step=2;;", 15, "kill:"},
        {"kill:", 6, "a rank's number, 'leader', 'any' or 'all'"},
        {"kill:boss@step=1", 6, "a rank's number"},
        {"kill:leaders@step=1", 6, "a rank's number"},
        {"kill:-1@step=1", 6, "a rank's number"},
        {"kill:70000@step=1", 6, "a rank's number"},
        {"kill:1+@step=1", 8, "a rank's number"},
        {"kill:0+1+2+3+4+5+6+7+8+9+10+11+12+13+14+15+16@step=1", 44, "at most 16"},
        {"kill:1", 7, "@step=N"},
        {"kill:1;kill:2@step=3", 7, "@step=N"},
        {"kill:1@", 8, "step=N, time=SECONDS or point=NAME"},
        {"kill:1@40", 8, "step=N"},
        {"kill:1@step=", 13, "a number of steps"},
        {"kill:1@step=4x", 14, "',', '@' or ';'"},
        {"kill:1@step=-4", 13, "a number of steps"},
        {"kill:1@step=9999999999999999999", 13, "a number of steps"},
        {"kill:1@step=18446744073709551617", 13, "a number of steps"}, /* 2^64 + 1 */
        {"kill:1@step=4@time=2", 14, "',', '@' or ';'"},
        {"kill:1@time=s", 13, "seconds"},
        {"kill:1@time=1.2.3", 13, "seconds"},
        {"kill:1@time=2h", 14, "'s' or 'ms'"},
        {"kill:1@time=inf", 13, "seconds"},
        {"kill:1@point=lunch", 14, "repair, hello, plan"},
        {"kill:1@point=", 14, "repair, hello, plan"},
        {"kill:1@point=plan*0", 19, "which time"},
        {"kill:1@step=2,launch=x", 22, "a launch's number or 'any'"},
        {"kill:1@step=2,grace=2s", 15, "launch="},
        {"notice:1,grase=2s@step=1", 10, "launch= or grace="},
        {"slow:1,x0.5@step=1", 9, "a factor from 1"},
        {"slow:1,3@step=1", 8, "launch= or xFACTOR"},
        {"spawn:0@step=1", 7, "how many"},
        {"spawn:leader@step=1", 7, "how many"},
        {"fail-write:0", 12, "a write's number"},
        {"fail-write:9..7", 15, "the last write's"},
        {"fail-write:7@leader", 14, "a rank's number"},
        {"fail-write:7@1@step=2", 15, "',', '@' or ';'"},
        {"fail-write:7;fail-write:9", 25, "one fail-write alone"},
        {"random:", 8, "seed=, rate="},
        {"random:seed=x", 13, "a seed"},
        {"random:rate=0", 13, "events a second"},
        {"random:most=0", 13, "events of a launch"},
        {"random:most=65", 13, "events of a launch"},
        {"random:points=2", 15, "a share"},
        {"random:kinds=kill+maim", 19, "kill, stop, notice"},
        {"random:seed=1,", 15, "seed=, rate="},
        {"random:seed=1@step=2", 14, "',', '@' or ';'"},
        {"random:seed=1;random:seed=2", 22, "one random alone"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct gw_chaos *chaos = (struct gw_chaos *)1;
        char column[40];
        snprintf(column, sizeof column, "--chaos, column %d: expected ", bad[i].column);
        gw_err rc = gw_chaos_parse(bad[i].spec, &chaos);
        bool as_wanted = rc == GW_ERR_USAGE && !chaos && !strncmp(gw_error_detail(), column, strlen(column)) &&
                         strstr(gw_error_detail(), bad[i].expected);
        CU_ASSERT(as_wanted);
        if (!as_wanted) fprintf(stderr, "'%s' (%d): %s\n", bad[i].spec, rc, rc ? gw_error_detail() : "taken");
    }
}

/* Cut and changed specs: refused or taken, never worse. */
static void test_torn(void)
{
    static const char spec[] = "notice:1+2,grace=2s@point=migrate*2,launch=1;fail-write:7..9@1;"
                               "random:seed=7,rate=0.5,kinds=kill+stop,most=3;slow:any,x3@time=20ms;spawn:2@step=5";
    static const char letters[] = "0:;@,=+*.-xksa ";
    int taken = 0;
    for (size_t i = 0; i < sizeof spec; i++)
        for (size_t k = 0; k < sizeof letters; k++) {
            char torn[sizeof spec];
            memcpy(torn, spec, sizeof spec);
            torn[i] = letters[k]; /* the NUL at the end of letters cuts */
            torn[sizeof spec - 1] = 0;
            struct gw_chaos *chaos;
            if (gw_chaos_parse(torn, &chaos) == GW_OK) taken++;
            gw_chaos_destroy(chaos);
        }
    CU_ASSERT(taken > 20 && taken < (int)(sizeof spec * sizeof letters / 2));
}

/* ---- when, and whom --------------------------------------------------------------------------------------------- */

static void test_when(void)
{
    CU_ASSERT_EQUAL(step_of("kill:2@step=40", 2, 0, 4, GW_CHAOS_KILL, 100), 40);
    CU_ASSERT_EQUAL(step_of("kill:2@step=40", 1, 0, 4, GW_CHAOS_KILL, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("kill:2@step=40", 2, 1, 4, GW_CHAOS_KILL, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("kill:2@step=40,launch=1", 2, 1, 4, GW_CHAOS_KILL, 100), 40);
    CU_ASSERT_EQUAL(step_of("kill:2@step=40,launch=1", 2, 0, 4, GW_CHAOS_KILL, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("kill:2@step=40,launch=any", 2, 9, 4, GW_CHAOS_KILL, 100), 40);
    CU_ASSERT_EQUAL(step_of("stop:1@time=30ms", 1, 0, 4, GW_CHAOS_STOP, 100), 30);
    CU_ASSERT_EQUAL(step_of("stop:1@time=0.05", 1, 0, 4, GW_CHAOS_STOP, 100), 50);
    CU_ASSERT_EQUAL(step_of("kill:0+2@step=7", 0, 0, 4, GW_CHAOS_KILL, 100), 7);
    CU_ASSERT_EQUAL(step_of("kill:0+2@step=7", 1, 0, 4, GW_CHAOS_KILL, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("kill:0+2@step=7", 2, 0, 4, GW_CHAOS_KILL, 100), 7);
    CU_ASSERT_EQUAL(step_of("kill:leader@step=7", 0, 0, 4, GW_CHAOS_KILL, 100), 7);
    CU_ASSERT_EQUAL(step_of("kill:leader@step=7", 1, 0, 4, GW_CHAOS_KILL, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("spawn:1@step=7", 0, 0, 4, GW_CHAOS_SPAWN, 100), 7);
    CU_ASSERT_EQUAL(step_of("spawn:1@step=7", 1, 0, 4, GW_CHAOS_SPAWN, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("kill:1@point=ready", 1, 0, 4, GW_CHAOS_KILL, 100), NEVER);
    CU_ASSERT_EQUAL(step_of("stop:1@step=3;kill:1@step=9", 1, 0, 4, GW_CHAOS_STOP, 100), 3);
    CU_ASSERT_EQUAL(step_of("stop:1@step=3;kill:1@step=9", 1, 0, 4, GW_CHAOS_KILL, 100), 9);
    for (int uid = 0; uid < 4; uid++) CU_ASSERT_EQUAL(step_of("slow:all,x2@step=7", uid, 0, 4, GW_CHAOS_SLOW, 100), 7);
    /* `any` is one rank of those the launch began with, not always the same */
    uint64_t seen = 0;
    for (int launch = 0; launch < 40; launch++) {
        int struck = 0;
        for (int uid = 0; uid < 6; uid++)
            if (step_of("kill:any@step=5,launch=any", uid, launch, 4, GW_CHAOS_KILL, 20) == 5) {
                struck++;
                seen |= (uint64_t)1 << uid;
            }
        CU_ASSERT_EQUAL(struck, 1);
    }
    CU_ASSERT_EQUAL(seen, 15);
}

static void test_late_looks(void)
{
    /* a step or time that is jumped over, and what is due together: one after the other, each once */
    struct gw_chaos *chaos = begun("stop:1@step=10;notice:all,grace=3s@time=1s;slow:1,x4@step=5", 1, 0, 2);
    struct gw_chaos_action action;
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 0.5, 4, false, &action));
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_READY, 2, 50, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_STOP);
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 2, 50, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_NOTICE);
    CU_ASSERT_TRUE(action.all);
    CU_ASSERT_DOUBLE_EQUAL(action.grace_s, 3, 0);
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 2, 50, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_SLOW);
    CU_ASSERT_DOUBLE_EQUAL(action.factor, 4, 0);
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 4.9, 60, false, &action));
    /* whoever has had notice is gone when the grace ends */
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 5, 60, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_KILL);
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 50, 600, false, &action));
    gw_chaos_destroy(chaos);
    CU_ASSERT_FALSE(gw_chaos_at(NULL, GW_CHAOS_AT_TURN, 5, 60, true, &action));
    gw_chaos_begin(NULL, 0, 0, 1, true, 0);
    gw_chaos_drag(NULL, 1e9);
}

static void test_points(void)
{
    struct gw_chaos *chaos = begun("kill:1@point=migrate*2;notice:1@point=migrate;stop:1@point=hello", 1, 0, 2);
    struct gw_chaos_action action;
    for (int i = 0; i < GW_CHAOS_POINTS; i++)
        if (i != GW_CHAOS_AT_MIGRATE && i != GW_CHAOS_AT_HELLO)
            CU_ASSERT_FALSE(gw_chaos_at(chaos, (enum gw_chaos_point)i, 9, 900, false, &action));
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_HELLO, 9, 900, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_STOP);
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_MIGRATE, 9, 900, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_NOTICE);
    CU_ASSERT_DOUBLE_EQUAL(action.grace_s, 5, 0);
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_HELLO, 9, 900, false, &action));
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_MIGRATE, 9, 900, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_KILL);
    gw_chaos_destroy(chaos);
}

/* A world in which rank `uid` leads from step `from` on; all ranks at the same step; it passes `repair` before it takes over. */
static uint64_t struck_as_heir(const char *spec, int uid, uint64_t from, enum gw_chaos_point each_step)
{
    struct gw_chaos *chaos = begun(spec, uid, 0, 4);
    struct gw_chaos_action action;
    uint64_t found = NEVER;
    for (uint64_t step = 0; step < 300 && found == NEVER; step++) {
        if (step == from && gw_chaos_at(chaos, GW_CHAOS_AT_REPAIR, (double)step / 100, step, false, &action))
            found = step;
        enum gw_chaos_point point = step < from ? GW_CHAOS_AT_TURN : each_step;
        if (gw_chaos_at(chaos, point, (double)step / 100, step, step >= from, &action)) found = step;
    }
    gw_chaos_destroy(chaos);
    return found;
}

static void test_lead(void)
{
    /* the first leader was struck at 40; the heir was a step behind, at the same, or ahead: it is not struck again */
    for (uint64_t from = 36; from < 44; from++)
        CU_ASSERT_EQUAL(struck_as_heir("kill:leader@step=40", 1, from, GW_CHAOS_AT_TURN), NEVER);
    CU_ASSERT_EQUAL(struck_as_heir("kill:leader@time=400ms", 1, 39, GW_CHAOS_AT_TURN), NEVER);
    /* something else took the leader long before: the event is for the heir */
    CU_ASSERT_EQUAL(struck_as_heir("kill:0@step=5;kill:leader@step=40", 1, 5, GW_CHAOS_AT_TURN), 40);
    CU_ASSERT_EQUAL(struck_as_heir("kill:0@step=5;kill:leader@time=2s", 1, 5, GW_CHAOS_AT_TURN), 200);
    /* two events: the first leader, then the second */
    CU_ASSERT_EQUAL(struck_as_heir("kill:leader@step=40;kill:leader@step=50", 1, 39, GW_CHAOS_AT_TURN), 50);
    CU_ASSERT_EQUAL(struck_as_heir("stop:leader@step=40;kill:leader@step=41", 1, 39, GW_CHAOS_AT_TURN), 41);
    /* what does not remove a leader explains no change of leaders */
    CU_ASSERT_EQUAL(struck_as_heir("slow:leader,x2@step=40", 1, 39, GW_CHAOS_AT_TURN), 40);
    CU_ASSERT_EQUAL(struck_as_heir("spawn:1@step=40", 1, 39, GW_CHAOS_AT_TURN), 40);
    CU_ASSERT_EQUAL(struck_as_heir("spawn:1@step=40", 1, 41, GW_CHAOS_AT_TURN), NEVER);
    /* a point: the heir of the first recovery may be struck in it, but no one after the other at commits */
    CU_ASSERT_EQUAL(struck_as_heir("kill:0@step=5;kill:leader@point=plan", 1, 5, GW_CHAOS_AT_PLAN), 5);
    CU_ASSERT_EQUAL(struck_as_heir("kill:leader@point=commit*3", 1, 5, GW_CHAOS_AT_COMMIT), NEVER);
    CU_ASSERT_EQUAL(struck_as_heir("kill:leader@point=repair", 1, 5, GW_CHAOS_AT_REPAIR), NEVER);
    struct gw_chaos *chaos = begun("kill:leader@point=plan", 2, 0, 4);
    struct gw_chaos_action action;
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_REPAIR, 1, 5, false, &action));
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_REPAIR, 1, 5, false, &action)); /* the leader died while planning */
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_HELLO, 1, 5, true, &action));
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_PLAN, 1, 5, true, &action));
    gw_chaos_destroy(chaos);
}

static void test_latecomers(void)
{
    struct gw_chaos *chaos = parsed("kill:all@time=1s;kill:4@time=3s;kill:any@time=3s");
    struct gw_chaos_action action;
    gw_chaos_begin(chaos, 4, 0, 4, false, 2);
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 2.5, 0, false, &action)); /* that was before its time */
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 3, 0, false, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_KILL);
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 9, 90, false, &action));
    gw_chaos_destroy(chaos);
    /* who replaces a rank that an event for all, or for the leader, has killed is not killed by it as well */
    chaos = parsed(
        "kill:all@step=5;kill:all@point=ready;kill:leader@step=6;spawn:1@step=7;stop:4@step=8;notice:4@point=plan");
    gw_chaos_begin(chaos, 4, 0, 4, false, 2);
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_READY, 3, 0, false, &action));
    CU_ASSERT_FALSE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 3, 7, true, &action));
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 3, 8, true, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_STOP);
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_PLAN, 3, 8, true, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_NOTICE);
    gw_chaos_destroy(chaos);
    /* a rank of the first hour that starts slowly is struck by what is overdue */
    chaos = parsed("kill:all@time=1s");
    gw_chaos_begin(chaos, 3, 0, 4, false, 2);
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 2, 0, false, &action));
    gw_chaos_destroy(chaos);
}

/* ---- random ----------------------------------------------------------------------------------------------------- */

enum { RANDOM_RANKS = 5, MAX_LOG = 64 };

struct entry {
    enum gw_chaos_kind kind;
    int uid, point, turn;
};

/* What a launch of 5 ranks lives through in 100 s, if nobody dies of it: all points are passed in turn, 0 leads. */
static int live(const char *spec, int launch, struct entry *log)
{
    int count = 0;
    for (int uid = 0; uid < RANDOM_RANKS; uid++) {
        struct gw_chaos *chaos = begun(spec, uid, launch, RANDOM_RANKS);
        struct gw_chaos_action action;
        for (int turn = 0; turn < 10000; turn++) {
            int point = turn % GW_CHAOS_POINTS;
            while (gw_chaos_at(chaos, (enum gw_chaos_point)point, turn / 100.0, 0, uid == 0, &action)) {
                CU_ASSERT_FATAL(count < MAX_LOG);
                log[count++] = (struct entry){action.kind, uid, point, turn};
            }
        }
        gw_chaos_destroy(chaos);
    }
    return count;
}

static void test_random(void)
{
    int kinds[GW_CHAOS_KINDS] = {0}, uids[RANDOM_RANKS] = {0}, events = 0, different = 0;
    double first_sum_s = 0;
    enum { SEEDS = 300 };
    for (int seed = 1; seed <= SEEDS; seed++) {
        struct entry log[MAX_LOG], again[MAX_LOG], next[MAX_LOG];
        char spec[128];
        snprintf(spec, sizeof spec, "random:seed=%d,rate=0.5,kinds=kill+stop+spawn+slow,most=3,points=0.4", seed);
        memset(log, 0, sizeof log), memset(again, 0, sizeof again), memset(next, 0, sizeof next);
        int count = live(spec, 0, log);
        CU_ASSERT_EQUAL(count, 3); /* `most`, and 100 s is plenty at this rate */
        CU_ASSERT_EQUAL(live(spec, 0, again), count);
        CU_ASSERT(!memcmp(log, again, sizeof log));
        live(spec, 1, next);
        different += memcmp(log, next, sizeof log) != 0;
        int first = 10000;
        for (int i = 0; i < count; i++) {
            events++;
            kinds[log[i].kind]++;
            if (log[i].kind != GW_CHAOS_SPAWN) uids[log[i].uid]++;
            else CU_ASSERT_EQUAL(log[i].uid, 0);
            if (log[i].turn < first) first = log[i].turn;
        }
        first_sum_s += first / 100.0;
        CU_ASSERT_EQUAL(live(spec, 8, log), 3);
        CU_ASSERT_EQUAL(live(spec, 9, log), 0);
    }
    printf("(%d events: kill %d, stop %d, spawn %d, slow %d; first after %.2f s on average) ", events, kinds[0],
           kinds[1], kinds[3], kinds[4], first_sum_s / SEEDS);
    CU_ASSERT_EQUAL(kinds[GW_CHAOS_NOTICE], 0);
    for (int i = 0; i < GW_CHAOS_KINDS; i++)
        if (i != GW_CHAOS_NOTICE) CU_ASSERT(abs(kinds[i] - events / 4) < events / 16);
    for (int i = 0; i < RANDOM_RANKS; i++) CU_ASSERT(uids[i] > events * 3 / 4 / RANDOM_RANKS / 2);
    CU_ASSERT(different > SEEDS * 9 / 10);
    /* an exponential of mean 2 s: the mean of 300 is within 5 sigma = 0.6 s; a point waits a tenth of a second more */
    CU_ASSERT(fabs(first_sum_s / SEEDS - 2) < 0.7);
    CU_ASSERT_EQUAL(step_of("random:seed=1,rate=1000,launch=1", 0, 0, 1, GW_CHAOS_KILL, 1000), NEVER);
    CU_ASSERT_NOT_EQUAL(step_of("random:seed=1,rate=1000,points=0", 0, 0, 1, GW_CHAOS_KILL, 1000), NEVER);
    CU_ASSERT_EQUAL(step_of("random:seed=1,rate=1000,most=64,points=1", 0, 0, 1, GW_CHAOS_KILL, 1000), NEVER);
}

static void test_random_latecomer(void)
{
    /* late ranks are struck as well, in the seat of a rank of the first hour, but not by what came before them */
    int early = 0, late = 0;
    for (int seed = 1; seed <= 50; seed++) {
        char spec[64];
        snprintf(spec, sizeof spec, "random:seed=%d,rate=1,most=8,points=0", seed);
        for (int uid = 0; uid < 8; uid++) {
            struct gw_chaos *chaos = parsed(spec);
            struct gw_chaos_action action;
            double joined_s = uid < 4 ? 0 : 4;
            gw_chaos_begin(chaos, uid, 0, 4, uid == 0, joined_s);
            for (double now_s = joined_s; now_s < 60; now_s += 0.25)
                while (gw_chaos_at(chaos, GW_CHAOS_AT_TURN, now_s, 0, uid == 0, &action))
                    *(uid < 4 ? &early : &late) += 1;
            gw_chaos_destroy(chaos);
        }
    }
    CU_ASSERT_EQUAL(early, 50 * 8);
    CU_ASSERT(late > 100 && late < 300); /* about half of the events come after 4 s */
}

/* ---- what is done ----------------------------------------------------------------------------------------------- */

static void test_do(void)
{
    struct gw_chaos_action kill_action = {.kind = GW_CHAOS_KILL}, stop = {.kind = GW_CHAOS_STOP};
    int status;
    gw_log_set_level(GW_LOG_ERROR);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        gw_chaos_do(&stop);
        gw_chaos_do(&(struct gw_chaos_action){.kind = GW_CHAOS_NOTICE});
        gw_chaos_do(&(struct gw_chaos_action){.kind = GW_CHAOS_SPAWN});
        gw_chaos_do(&(struct gw_chaos_action){.kind = GW_CHAOS_SLOW});
        gw_chaos_do(&kill_action);
        _exit(0);
    }
    CU_ASSERT_EQUAL(waitpid(child, &status, WUNTRACED), child);
    CU_ASSERT(WIFSTOPPED(status));
    kill(child, SIGCONT);
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    CU_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    gw_log_set_level(GW_LOG_INFO);
}

static void test_slow(void)
{
    struct gw_chaos *chaos = begun("slow:0,x3@step=1", 0, 0, 1);
    struct gw_chaos_action action;
    double begin_s = gw_clock_now_s();
    gw_chaos_drag(chaos, 1e6); /* not slowed yet */
    CU_ASSERT_TRUE(gw_chaos_at(chaos, GW_CHAOS_AT_TURN, 0, 1, true, &action));
    CU_ASSERT_EQUAL(action.kind, GW_CHAOS_SLOW);
    CU_ASSERT(gw_clock_now_s() - begin_s < 5);
    begin_s = gw_clock_now_s();
    gw_chaos_drag(chaos, 0.02);
    double slept_s = gw_clock_now_s() - begin_s;
    CU_ASSERT(slept_s >= 0.039 && slept_s < 5);
    gw_chaos_destroy(chaos);
}

/* ---- failing writes --------------------------------------------------------------------------------------------- */

static char failing_writes[32]; /* of 12: '.' or 'F' */

static void count_writes(const char *spec, int uid, int launch)
{
    struct gw_chaos *chaos = begun(spec, uid, launch, 3);
    for (int i = 0; i < 12; i++) failing_writes[i] = gw_fault_write() == ENOSPC ? 'F' : '.';
    failing_writes[12] = 0;
    gw_fault_set_writes(0, 0);
    gw_chaos_destroy(chaos);
}

static void test_fail_write(void)
{
    count_writes("fail-write:7", 0, 0);
    CU_ASSERT_STRING_EQUAL(failing_writes, "......F.....");
    count_writes("fail-write:7", 1, 0); /* the leader's */
    CU_ASSERT_STRING_EQUAL(failing_writes, "............");
    count_writes("fail-write:7..9@1", 1, 0);
    CU_ASSERT_STRING_EQUAL(failing_writes, "......FFF...");
    count_writes("fail-write:7..9@1", 0, 0);
    CU_ASSERT_STRING_EQUAL(failing_writes, "............");
    count_writes("fail-write:3-", 0, 0);
    CU_ASSERT_STRING_EQUAL(failing_writes, "..FFFFFFFFFF");
    count_writes("fail-write:1-", 0, 1);
    CU_ASSERT_STRING_EQUAL(failing_writes, "............");
    count_writes("fail-write:1,launch=any", 0, 1);
    CU_ASSERT_STRING_EQUAL(failing_writes, "F...........");
}

/* A file that fills up takes half of the data; one that is replaced stays as it was. */
static void test_files(void)
{
    char folder[] = "/tmp/test_chaos_XXXXXX", path[64], *text;
    struct stat st;
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file", folder);
    CU_ASSERT_EQUAL(gw_file_replace(path, "old", 3, false), GW_OK);
    gw_fault_set_writes(1, 1);
    CU_ASSERT_EQUAL(gw_file_replace(path, "new!", 4, false), GW_ERR_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "No space left"));
    CU_ASSERT_EQUAL(gw_file_read(path, 100, &text, NULL), GW_OK);
    CU_ASSERT_STRING_EQUAL(text, "old");
    free(text);
    int fd = open(path, O_WRONLY | O_APPEND);
    gw_fault_set_writes(2, UINT64_MAX);
    CU_ASSERT_EQUAL(gw_write_all(fd, path, "abcd", 4), GW_OK);
    CU_ASSERT_EQUAL(gw_write_all(fd, path, "efgh", 4), GW_ERR_IO);
    CU_ASSERT_EQUAL(gw_write_all(fd, path, "i", 1), GW_ERR_IO);
    CU_ASSERT_EQUAL(gw_write_all(fd, path, "", 0), GW_ERR_IO);
    gw_fault_set_writes(0, 0);
    CU_ASSERT_EQUAL(gw_write_all(fd, path, "!", 1), GW_OK);
    close(fd);
    CU_ASSERT_EQUAL(gw_file_read(path, 100, &text, NULL), GW_OK);
    CU_ASSERT_STRING_EQUAL(text, "oldabcdef!");
    free(text);
    unlink(path);
    CU_ASSERT_NOT_EQUAL(stat(path, &st), 0);
    CU_ASSERT_EQUAL(rmdir(folder), 0); /* no temporary file was left */
}

enum { THREADS = 4, WRITES = 20000 };

static void *write_much(void *failed)
{
    for (int i = 0; i < WRITES; i++) *(int *)failed += gw_fault_write() != 0;
    return NULL;
}

static void test_threads(void)
{
    pthread_t thread[THREADS];
    int failed[THREADS] = {0}, sum = 0;
    gw_fault_set_writes(WRITES / 2, WRITES);
    for (int i = 0; i < THREADS; i++)
        CU_ASSERT_EQUAL_FATAL(pthread_create(&thread[i], NULL, write_much, &failed[i]), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        sum += failed[i];
    }
    CU_ASSERT_EQUAL(sum, WRITES / 2 + 1);
    gw_fault_set_writes(0, 0);
    CU_ASSERT_EQUAL(gw_fault_write(), 0);
}

int main(void)
{
    static CU_TestInfo tests[] = {
        {"good specs", test_good},
        {"bad specs and their columns", test_bad},
        {"torn specs", test_torn},
        {"steps, times, launches, ranks", test_when},
        {"late looks, several at once, notice and its end", test_late_looks},
        {"named points", test_points},
        {"the lead changes hands", test_lead},
        {"ranks that come later", test_latecomers},
        {"random: repeatable, bounded, spread", test_random},
        {"random: ranks that come later", test_random_latecomer},
        {"kill and stop", test_do},
        {"slow", test_slow},
        {"failing writes: which", test_fail_write},
        {"failing writes: files", test_files},
        {"failing writes: threads", test_threads},
        CU_TEST_INFO_NULL,
    };
    static CU_SuiteInfo suites[] = {{"chaos", NULL, NULL, NULL, NULL, tests}, CU_SUITE_INFO_NULL};
    if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS) return 1;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
    CU_cleanup_registry();
    return failures != 0;
}
