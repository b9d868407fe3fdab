/* See leader.h and leader_internal.h: how a world comes to a plan, and what the controller says. */
#include "base/clock.h"
#include "base/log.h"
#include "job/calibration.h"
#include "job/leader_internal.h"
#include "job/planning.h"
#include "job/speeds.h"

#include <stdlib.h>
#include <string.h>

enum { PLANS_PER_LAUNCH = 1 << 16 };

static const double SAVE_MARGIN_S = 0.1, SPAWN_S = 15;

void gw_leader_free_hellos(struct gw_leader *leader)
{
    for (int r = 0; r < leader->hello_count; r++) gw_hello_free(&leader->hellos[r]);
    free(leader->hellos);
    free(leader->heard);
    leader->hellos = NULL;
    leader->heard = NULL;
    leader->hello_count = 0;
}

/* ---- hellos ----------------------------------------------------------------------------------------------------- */

void gw_leader_note_loss(struct gw_leader *leader, double noticed_wall_s)
{
    struct gw_pause closed;
    if (noticed_wall_s <= 0) return;
    leader->lost_wall_s = noticed_wall_s;
    gw_pauses_begin(&leader->pauses, GW_PAUSE_REPAIR, noticed_wall_s, &closed);
}

void gw_leader_world(struct gw_leader *leader)
{
    leader->formed_s = gw_clock_now_s();
    gw_leader_free_hellos(leader);
    leader->hello_count = gw_comm_size(leader->config.comm);
    leader->hellos = gw_alloc((size_t)leader->hello_count, sizeof *leader->hellos);
    leader->heard = gw_alloc((size_t)leader->hello_count, sizeof *leader->heard);
    for (int h = 0; h < leader->head_count; h++) {
        leader->before.computed_tokens += (int64_t)leader->reports[h].computed_tokens;
        leader->before.recomputed_tokens += (int64_t)leader->reports[h].recomputed_tokens;
        leader->before.restored_tokens += (int64_t)leader->reports[h].restored_tokens;
    }
    leader->head_count = 0;
    leader->byes = 0;
    leader->told = false;
    gw_checkpoints_interrupted(leader->checkpoints, leader->lost_wall_s > 0);
}

const struct gw_plan *gw_leader_new_plan(struct gw_leader *leader)
{
    bool fresh = leader->fresh;
    leader->fresh = false;
    return fresh ? &leader->plan : NULL;
}

static gw_err take_hello(struct gw_leader *leader, const struct gw_msg *msg)
{
    gw_err rc = GW_OK;
    gw_hello_free(&leader->hellos[msg->source]);
    TRY(gw_hello_decode(msg->data, msg->bytes, &leader->hellos[msg->source]));
    leader->heard[msg->source] = true;
out:
    return rc;
}

struct gathering {
    const struct gw_leader *leader;
    const int *members;
    int count;
};

static bool is_missing(const void *context, int member)
{
    const struct gathering *here = context;
    for (int r = 0; r < here->count; r++)
        if (here->members[r] == member) return false;
    return gw_control_has(here->leader->control, member);
}

/* For events.jsonl: who is not in the world any more without having been let go. */
static void note_lost(struct gw_leader *leader, const int *members, int count, int lost)
{
    struct gathering here = {leader, members, count};
    double lost_s = leader->lost_wall_s > 0 ? leader->lost_wall_s : gw_clock_wall_s();
    leader->before.lost_ranks += lost;
    if (lost <= 0) return;
    leader->status_s = 0; /* written at once: the next leader counts on from there */
    gw_record_event(leader->config.options->out_dir, "loss",
                    json_pack("{s:f,s:i,s:o}", "lost_at", lost_s, "ranks", lost, "members",
                              gw_record_missing(leader->config.options->out_dir, is_missing, &here)));
}

/* Once all have said hello the controller hears of the world and of every hello, in this order. */
static gw_err note_hellos(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    int count = leader->hello_count;
    int *members = NULL;
    for (int r = 0; r < count; r++) {
        if (leader->heard[r]) continue;
        double waited_s = gw_clock_now_s() - leader->formed_s;
        if (waited_s < gw_control_limits(leader->control)->agree_s) return GW_OK;
        return gw_fail(GW_ERR_TIMEOUT, "rank %d has not said hello for %.0f s", r, waited_s);
    }
    gw_leader_note_nodes(leader);
    members = gw_alloc((size_t)count + 1, sizeof *members);
    for (int r = 0; r < count; r++) {
        members[r] = leader->hellos[r].peer.member;
        leader->heard[r] = false;
        if (members[r] >= leader->next_member) leader->next_member = members[r] + 1;
    }
    if (gw_requests_all_answered(leader->requests))
        gw_control_limits(leader->control)->replacements = 0; /* for nothing but the end nobody need be started */
    if (leader->lost_wall_s > 0)
        gw_cost_observe(&leader->cost, GW_COST_REPAIR, 1, gw_clock_wall_s() - leader->lost_wall_s);
    int before = gw_control_members(leader->control);
    int stayed = 0;
    for (int r = 0; r < count; r++) stayed += gw_control_has(leader->control, members[r]);
    note_lost(leader, members, count, before - stayed);
    TRY(gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_WORLD,
                                                  .member = -1,
                                                  .count = count,
                                                  .members = members,
                                                  .grown = count > before || before == 0}));
    for (int r = 0; r < count && leader->hellos; r++)
        TRY(gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_HELLO, .member = members[r]}));
out:
    free(members);
    return rc;
}

/* ---- plans ------------------------------------------------------------------------------------------------------ */

/* The requests under a new plan: kept replicas have what they reported, adopted sequences go to their new heads, the rest is returned. */
static gw_err hand_over(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    const struct gw_plan *plan = &leader->plan;
    int size = plan->layout.tensor * plan->layout.pipeline;
    gw_requests_forget_owners(leader->requests);
    for (int replica = 0; replica < plan->layout.data; replica++) {
        const struct gw_hello *hello = &leader->hellos[gw_plan_rank(plan, replica * size)];
        for (int h = 0; plan->kept[replica] >= 0 && h < hello->held_count; h++)
            TRY(gw_requests_keep(leader->requests, hello->held[h].index, replica));
    }
    for (int a = 0; a < plan->adoption_count; a++) {
        const struct gw_adoption *adoption = &plan->adoptions[a];
        struct head_state *head = &leader->heads[adoption->to];
        gw_buf_clear(&leader->message);
        for (int h = 0; h < adoption->held_count; h++) {
            size_t before = leader->message.bytes;
            TRY(gw_requests_assign(leader->requests, adoption->held[h].index, adoption->to, &leader->message));
            head->granted += leader->message.bytes > before;
        }
        TRY(gw_comm_send(leader->config.comm, head->rank, GW_MSG_ASSIGN, gw_assign_step(a), leader->message.data,
                         leader->message.bytes));
    }
    gw_requests_settle(leader->requests);
out:
    return rc;
}

/* Where not all are alike: the speeds in the order of the ranks, and the split that follows from them. */
static void note_speeds(const struct gw_leader *leader, json_t *details)
{
    const struct gw_plan *plan = &leader->plan;
    char text[GW_LAYOUT_TEXT_BYTES];
    bool alike = true;
    for (int r = 1; r < plan->peer_count; r++) alike &= leader->speeds[r] == leader->speeds[0];
    if (alike) return;
    json_t *speeds = json_array();
    for (int r = 0; r < plan->peer_count; r++) json_array_append_new(speeds, json_real(leader->speeds[r]));
    json_object_set_new(details, "speeds", speeds);
    json_object_set_new(details, "split", json_string(gw_layout_text(plan->layout, text)));
}

static void note_plan(struct gw_leader *leader, double planned_s)
{
    const struct gw_plan *plan = &leader->plan;
    int kept = 0, held = 0;
    for (int r = 0; r < plan->layout.data; r++) kept += plan->kept[r] >= 0;
    for (int a = 0; a < plan->adoption_count; a++) held += plan->adoptions[a].held_count;
    json_t *details = json_pack("{s:I,s:i,s:[i,i,i],s:i,s:i,s:f}", "plan", (json_int_t)plan->number, "ranks",
                                (int)plan->peer_count, "layout", plan->layout.data, plan->layout.tensor,
                                plan->layout.pipeline, "replicas_kept", kept, "sequences_adopted", held, "hello_s",
                                planned_s - leader->formed_s);
    if (leader->lost_wall_s > 0) json_object_set_new(details, "lost_at", json_real(leader->lost_wall_s));
    note_speeds(leader, details);
    gw_record_changes(leader->config.options->out_dir, plan, leader->first, details);
    gw_record_event(leader->config.options->out_dir, "plan", details);
}

/* The heads of the plan, and what they reported in their old places. */
static void seat_heads(struct gw_leader *leader)
{
    const struct gw_plan *plan = &leader->plan;
    int size = plan->layout.tensor * plan->layout.pipeline;
    leader->head_count = plan->layout.data;
    leader->heads = gw_realloc(leader->heads, (size_t)leader->head_count, sizeof *leader->heads);
    leader->reports = gw_realloc(leader->reports, (size_t)leader->head_count, sizeof *leader->reports);
    memset(leader->reports, 0, (size_t)leader->head_count * sizeof *leader->reports);
    for (int r = 0; r < leader->head_count; r++)
        leader->heads[r] = (struct head_state){.rank = gw_plan_rank(plan, r * size)};
}

/* Who of the active ranks is missed least: the slowest, of these one that has no place, of these the last. Never this rank. */
static int least_missed(const struct gw_leader *leader, const bool *active, const double *speeds)
{
    int least = -1;
    for (int r = 1; r < leader->hello_count; r++) {
        if (!active[r]) continue;
        if (least >= 0 && speeds[r] > speeds[least]) continue;
        bool placed = leader->hellos[r].peer.placed;
        if (least < 0 || speeds[r] < speeds[least] || !placed || leader->hellos[least].peer.placed) least = r;
    }
    return least;
}

/* Ranks beyond those that the job is to have wait, to stand in for others. */
static void bench_spares(const struct gw_leader *leader, const double *speeds, bool *active)
{
    const struct gw_control_limits *limits = gw_control_limits(leader->control);
    int target = limits->wanted - limits->spares, count = 0, least;
    if (leader->wanted.data && gw_layout_ranks(leader->wanted) > target) target = gw_layout_ranks(leader->wanted);
    for (int r = 0; r < leader->hello_count; r++) count += active[r];
    for (; count > target && (least = least_missed(leader, active, speeds)) > 0; count--) active[least] = false;
}

static gw_err make_plan(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    struct gw_comm *comm = leader->config.comm;
    struct gw_request_counts counts = gw_requests_counts(leader->requests);
    bool deadline = leader->config.options->objective == GW_OBJECTIVE_DEADLINE;
    struct gw_planning planning = {.options = leader->config.options,
                                   .dims = leader->config.dims,
                                   .cost = &leader->cost,
                                   .context = leader->config.context,
                                   .hellos = leader->hellos,
                                   .count = leader->hello_count,
                                   .number = leader->plan.number + 1,
                                   .requests = deadline ? (double)(counts.total - counts.done - counts.failed) : 0,
                                   .deadline_s = leader->config.options->deadline_wall_s - gw_clock_wall_s(),
                                   .wanted = leader->wanted};
    /* Of two leaders at once, one of them stale, both make plans: the same number for both would let ranks of either pass for one replica. */
    uint64_t least = (uint64_t)leader->config.options->launch * PLANS_PER_LAUNCH + 1;
    if (planning.number < least) planning.number = least;
    bool *active = gw_alloc((size_t)leader->hello_count + 1, sizeof *active);
    for (int r = 0; r < leader->hello_count; r++) /* a context may come from an earlier launch */
        if (leader->hellos[r].plan >= planning.number) planning.number = leader->hellos[r].plan + 1;
    for (int r = 0; r < leader->hello_count; r++)
        active[r] = gw_control_active(leader->control, leader->hellos[r].peer.member);
    leader->speeds = gw_realloc(leader->speeds, (size_t)leader->hello_count, sizeof *leader->speeds);
    gw_speeds_of_ranks(leader->hellos, leader->hello_count, leader->config.options, leader->pace, leader->speeds);
    gw_pace_restart(leader->pace);
    bench_spares(leader, leader->speeds, active);
    planning.active = active;
    planning.speeds = leader->speeds;
    TRY(gw_leader_take_work(leader, NULL)); /* what heads sent before their hellos */
    gw_plan_free(&leader->plan);
    TRY(gw_planning_make(&planning, &leader->plan));
    TRY(leader->config.at_point(leader->config.point_context, GW_CHAOS_AT_PLAN));
    gw_buf_clear(&leader->message);
    gw_plan_encode(&leader->plan, &leader->message);
    for (int r = 1; r < leader->hello_count; r++)
        TRY(gw_comm_send(comm, r, GW_MSG_PLAN, 0, leader->message.data, leader->message.bytes));
    gw_comm_set_epoch(comm, leader->plan.number);
    leader->planned = leader->fresh = true;
    leader->planned_s = gw_clock_now_s();
    leader->moved = (struct gw_mover_stats){0};
    seat_heads(leader);
    TRY(hand_over(leader));
    note_plan(leader, gw_clock_now_s());
    TRY(gw_record_ranks(leader->config.options->out_dir, &leader->plan, leader->first));
    leader->first = false;
    if (leader->lost_wall_s > 0) {
        leader->recovery.lost_wall_s = leader->lost_wall_s;
        leader->recovery.planned_wall_s = gw_clock_wall_s();
        leader->recovery.ready_wall_s = 0;
        leader->recovery.committed = gw_requests_counts(leader->requests).committed_tokens;
    }
    leader->lost_wall_s = 0;
    gw_leader_free_hellos(leader);
    TRY(gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_PLANNED}));
out:
    free(active);
    return rc;
}

/* ---- what the controller says ---------------------------------------------------------------------------------- */

static gw_err let_leave(struct gw_leader *leader, const struct gw_update *update)
{
    gw_err rc = GW_OK;
    int32_t *ranks = gw_alloc((size_t)update->leaver_count + 1, sizeof *ranks), count = 0;
    for (int r = 0; r < leader->plan.peer_count; r++)
        for (int i = 0; i < update->leaver_count; i++)
            if (leader->plan.peers[r].member == update->leavers[i]) ranks[count++] = r;
    json_t *members = json_array();
    for (int i = 0; i < count; i++) json_array_append_new(members, json_integer(leader->plan.peers[ranks[i]].member));
    gw_record_event(leader->config.options->out_dir, "leave",
                    json_pack("{s:i,s:o}", "ranks", (int)count, "members", members));
    /* in a launch that gives way they end with it, in a moment: till then they are in nobody's way */
    if (!gw_leader_gives_way(leader))
        TRY(gw_leader_tell_all(leader, GW_MSG_LEAVE, ranks, (size_t)count * sizeof *ranks));
out:
    free(ranks);
    return rc;
}

static gw_err act(struct gw_leader *leader, const struct gw_update *update)
{
    gw_err rc = GW_OK;
    if (update->what & GW_DO_PLAN) TRY(make_plan(leader));
    if (update->what & GW_DO_DRAIN) {
        struct gw_pause closed;
        gw_record_event(leader->config.options->out_dir, "drain", NULL);
        gw_pauses_begin(&leader->pauses, GW_PAUSE_CHANGE, gw_clock_wall_s(), &closed);
        leader->drain_s = gw_clock_now_s();
        TRY(gw_leader_tell_heads(leader, GW_MSG_DRAIN));
    }
    if (update->what & GW_DO_FORM) {
        struct gw_form_order order = {.grow = update->grow};
        if (update->grow)
            gw_record_event(leader->config.options->out_dir, "grow", json_pack("{s:i}", "ranks", update->grow));
        TRY(gw_leader_tell_all(leader, GW_MSG_FORM, &order, sizeof order));
    }
    if (update->what & GW_DO_SPAWN) {
        gw_record_event(leader->config.options->out_dir, "spawn", json_pack("{s:i}", "ranks", update->grow));
        leader->spawn_s = gw_clock_now_s();
        leader->spawn_count = update->grow;
        gw_comm_spawn(leader->config.comm, update->grow, leader->next_member, leader->config.options->argv);
        leader->next_member += update->grow;
    }
    if (update->what & GW_DO_LEAVE) TRY(let_leave(leader, update));
    if (update->what & GW_DO_SAVE) {
        gw_record_event(leader->config.options->out_dir, "save", json_pack("{s:f}", "grace_s", update->grace_s));
        leader->saving = true;
        leader->saving_until_s = gw_clock_now_s() + update->grace_s - SAVE_MARGIN_S;
        gw_checkpoints_hurry(leader->checkpoints, true);
    }
    if (update->what & GW_DO_GIVE_UP)
        FAIL(GW_ERR_TIMEOUT, "the ranks did not come to '%s' in time",
             gw_state_name(gw_control_state(leader->control)));
out:
    return rc;
}

gw_err gw_leader_step(struct gw_leader *leader, const struct gw_event *event)
{
    struct gw_update update;
    struct gw_event now = *event;
    now.now_s = gw_clock_now_s();
    gw_control_step(leader->control, &now, &update);
    return act(leader, &update);
}

/* ---- what it hears ---------------------------------------------------------------------------------------------- */

static gw_err obey_notice(struct gw_leader *leader, const struct gw_notice *notice)
{
    gw_err rc = GW_OK;
    bool leaving = false;
    const char *out_dir = leader->config.options->out_dir;
    const struct gw_layout *l = &notice->layout;
    struct gw_event event = {.kind = GW_EVENT_NOTICE, .member = notice->member, .seconds = notice->seconds};
    if (l->data > 0) {
        if (gw_layout_check(&leader->config.dims, *l) != GW_OK) {
            gw_warn("the layout of a notice is not taken: %s", gw_error_detail());
            return GW_OK;
        }
        leader->wanted = *l;
        event = (struct gw_event){.kind = GW_EVENT_REPLAN, .member = -1};
        gw_record_event(out_dir, "layout", json_pack("{s:[i,i,i]}", "layout", l->data, l->tensor, l->pipeline));
    } else if (notice->more > 0 && !getenv("PMIX_RANK")) {
        gw_warn("a launch of one rank has no launcher and cannot grow: stop it and start it with -n 2 or more");
        return GW_OK;
    } else if (notice->more > 0) {
        event = (struct gw_event){.kind = GW_EVENT_MORE, .member = -1, .count = notice->more};
        gw_record_event(out_dir, "more", json_pack("{s:i}", "ranks", notice->more));
    } else {
        leader->before.notices++;
        leader->status_s = 0;
        leaving = true;
        gw_record_event(out_dir, "notice",
                        json_pack("{s:i,s:f}", "member", notice->member, "grace_s", notice->seconds));
    }
    TRY(gw_leader_step(leader, &event));
    /* most of what there is to be saved is saved while decoding goes on; what is decoded until the end of the grace is little */
    if (leaving && gw_control_all_leave(leader->control)) gw_checkpoints_hurry(leader->checkpoints, false);
out:
    return rc;
}

static gw_err take_notice(struct gw_leader *leader, const struct gw_msg *msg)
{
    struct gw_notice notice;
    if (msg->bytes != sizeof notice) return GW_OK;
    memcpy(&notice, msg->data, sizeof notice);
    return obey_notice(leader, &notice);
}

/* A rank has what the plan wants it to have. When all have, it is told what that took. */
static gw_err take_ready(struct gw_leader *leader, const struct gw_msg *msg)
{
    gw_err rc = GW_OK;
    struct gw_mover_stats stats = {0};
    struct gw_pause closed;
    if (msg->source >= leader->plan.peer_count || msg->bytes != sizeof stats) return GW_OK;
    memcpy(&stats, msg->data, sizeof stats);
    leader->moved.kv_bytes_in += stats.kv_bytes_in;
    leader->moved.kv_bytes_kept += stats.kv_bytes_kept;
    leader->moved.weight_bytes_in += stats.weight_bytes_in;
    if (stats.peak_bytes > leader->moved.peak_bytes) leader->moved.peak_bytes = stats.peak_bytes;
    if (stats.weight_bytes_loaded)
        gw_cost_observe(&leader->cost, GW_COST_PACK, (double)stats.weight_bytes_loaded, stats.load_s);
    TRY(gw_leader_step(leader,
                       &(struct gw_event){.kind = GW_EVENT_READY, .member = leader->plan.peers[msg->source].member}));
    if (gw_control_state(leader->control) != GW_STATE_RUN) goto out;
    gw_pauses_end(&leader->pauses, gw_clock_wall_s(), &closed);
    gw_record_event(leader->config.options->out_dir, "ready",
                    json_pack("{s:I,s:f,s:f,s:I,s:I,s:I,s:I}", "plan", (json_int_t)leader->plan.number, "since_plan_s",
                              gw_clock_now_s() - leader->planned_s, "since_drain_s",
                              leader->drain_s > 0 ? gw_clock_now_s() - leader->drain_s : 0.0, "kv_bytes_moved",
                              (json_int_t)leader->moved.kv_bytes_in, "kv_bytes_kept",
                              (json_int_t)leader->moved.kv_bytes_kept, "weight_bytes_moved",
                              (json_int_t)leader->moved.weight_bytes_in, "bytes_held_most",
                              (json_int_t)leader->moved.peak_bytes));
    gw_calibration_write(leader->config.options->out_dir, &leader->cost);
    if (leader->drain_s > 0) { /* the next notice begins to move so much before its end */
        struct gw_control_limits *limits = gw_control_limits(leader->control);
        double took_s = gw_clock_now_s() - leader->drain_s;
        limits->move_s = took_s > limits->move_s ? took_s : (limits->move_s + took_s) / 2;
    }
    leader->drain_s = 0;
out:
    return rc;
}

static gw_err take_drained(struct gw_leader *leader, const struct gw_msg *msg)
{
    int head = gw_leader_head_of(leader, msg->source);
    if (head >= 0) leader->heads[head].drained = true;
    return GW_OK;
}

static gw_err check_drained(struct gw_leader *leader)
{
    if (gw_control_state(leader->control) != GW_STATE_DRAIN) return GW_OK;
    for (int h = 0; h < leader->head_count; h++)
        if (!leader->heads[h].drained) return GW_OK;
    for (int h = 0; h < leader->head_count; h++) leader->heads[h].drained = false;
    return gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_DRAINED});
}

static gw_err take_pace(struct gw_leader *leader, const struct gw_msg *msg)
{
    struct gw_pace_report pace;
    if (msg->source >= leader->plan.peer_count || msg->bytes != sizeof pace) return GW_OK;
    memcpy(&pace, msg->data, sizeof pace);
    gw_pace_note(leader->pace, leader->plan.peers[msg->source].member, leader->speeds[msg->source],
                 (double)pace.rows / (double)pace.steps, pace.said_s, pace.took_s, gw_clock_now_s());
    return GW_OK;
}

/* A straggler, or one no more: a new plan takes it as it is. */
static gw_err watch_pace(struct gw_leader *leader)
{
    static const char *const names[] = {
        [GW_PACE_SLOWER] = "slower", [GW_PACE_FASTER] = "faster", [GW_PACE_TRY_AGAIN] = "tried again"};
    int member;
    double factor;
    if (!leader->config.options->rebalance || gw_control_state(leader->control) != GW_STATE_RUN) return GW_OK;
    enum gw_pace_change change = gw_pace_judge(leader->pace, gw_clock_now_s(), &member, &factor);
    if (change == GW_PACE_SAME) return GW_OK;
    gw_record_event(leader->config.options->out_dir, "pace",
                    json_pack("{s:i,s:s,s:f}", "member", member, "change", names[change], "speed", factor));
    gw_info("rank with number %d is %s: %.2f of the speed that was measured when it started", member, names[change],
            factor);
    return gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_REPLAN, .member = -1});
}

/* New ranks start beside the job. What MPI never ends with, ends the launch. */
static gw_err watch_spawn(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    if (leader->spawn_s == 0) return GW_OK;
    double took_s = gw_clock_now_s() - leader->spawn_s;
    enum gw_spawn spawn = gw_comm_spawned(leader->config.comm);
    if (spawn == GW_SPAWN_STARTING) {
        if (took_s > SPAWN_S) FAIL(GW_ERR_TIMEOUT, "new ranks have not started within %.0f s", SPAWN_S);
        return GW_OK;
    }
    leader->spawn_s = 0;
    bool waiting = spawn == GW_SPAWN_WAITING;
    if (waiting) gw_cost_observe(&leader->cost, GW_COST_SPAWN, leader->spawn_count, took_s);
    TRY(gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_SPAWNED,
                                                  .member = -1,
                                                  .count = waiting ? leader->spawn_count : 0}));
out:
    return rc;
}

gw_err gw_leader_poll_world(struct gw_leader *leader, bool *busy)
{
    gw_err rc = GW_OK;
    if (leader->hellos) TRY(gw_leader_take_all(leader, GW_MSG_HELLO, take_hello, busy));
    if (leader->hellos) TRY(note_hellos(leader));
    TRY(gw_leader_take_all(leader, GW_MSG_NOTICE, take_notice, busy));
    if (leader->planned) TRY(gw_leader_take_all(leader, GW_MSG_READY, take_ready, busy));
    if (leader->head_count > 0) TRY(gw_leader_take_all(leader, GW_MSG_DRAINED, take_drained, busy));
    if (leader->planned) TRY(gw_leader_take_all(leader, GW_MSG_PACE, take_pace, NULL));
    TRY(watch_pace(leader));
    TRY(check_drained(leader));
    TRY(watch_spawn(leader));
out:
    return rc;
}
