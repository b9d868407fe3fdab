/* See leader.h.
 *
 * Requests are granted by guided self-scheduling: half of an even share of what is left at a time, so that replicas finish together
 * whatever their speeds. Tokens are committed as they come, written at once and synced once a second with the output: a killed process
 * loses nothing that the leader has heard of, a power cut a second of it, and what is lost is generated again, to the same bytes.
 */
#include "job/leader.h"

#include "base/clock.h"
#include "base/log.h"
#include "comm/comm.h"
#include "control/control.h"
#include "job/calibration.h"
#include "job/checkpoints.h"
#include "job/mover.h"
#include "job/planning.h"
#include "job/record.h"
#include "job/requests.h"
#include "report/page.h"

#include <stdlib.h>
#include <string.h>

static const double SYNC_EVERY_S = 1.0, STATUS_EVERY_S = 0.5, COMMIT_EVERY_S = 0.005, SAVE_MARGIN_S = 0.1, SPAWN_S = 15;

struct head_state {
    int rank;
    int wants;        /* as last reported, less what was granted since */
    uint32_t granted; /* requests sent so far */
    bool drained;
    struct gw_head_report timed; /* as it was when the calibration last took it in */
};

struct gw_leader {
    struct gw_leader_config config;
    struct gw_requests *requests;
    struct gw_checkpoints *checkpoints;
    double saving_until_s; /* the grace of all ends */
    struct gw_control *control;
    struct gw_cost cost;
    double spawn_s; /* when new ranks were ordered that have not started yet; 0: none were */
    int spawn_count;
    struct gw_hello *hellos; /* [hello_count] by rank, while a world forms */
    bool *heard;
    int hello_count;
    struct gw_plan plan; /* the last one made */
    bool planned, fresh; /* there is one; this rank has not taken it yet */
    int next_member;
    struct head_state *heads;
    struct gw_head_report *reports; /* [head_count] */
    int head_count;
    struct gw_record_totals before; /* by earlier leaders, and by heads of earlier plans */
    struct gw_history *history;
    bool first;                  /* this launch has had no plan yet */
    struct gw_pauses pauses;     /* under this leader */
    struct gw_layout wanted;     /* {0}: the best */
    struct gw_mover_stats moved; /* under this plan, by those who are ready */
    double planned_s, drain_s;   /* when the plan was made; when it was begun to drain for it, or 0 */
    double lost_wall_s;          /* of the loss that is being recovered from; 0: none */
    struct {                     /* what became of it, until the next token is committed */
        double lost_wall_s, planned_wall_s, ready_wall_s;
        int64_t committed;
    } recovery;
    double formed_s;
    bool told, saving; /* saving: everybody has been given notice */
    int byes;          /* heads that have sent their last message */
    double started_s, synced_s, status_s, committed_s;
    double commit_s; /* spent on committing, of this leader's life */
    const char *kernels;
    int threads;
    struct gw_buf message;
};

/* ---- begin and end --------------------------------------------------------------------------------------------- */

static struct gw_control_limits limits_of(const struct gw_job_options *o, int ranks)
{
    double timeout_s = o->peer_timeout_s;
    int wanted = o->ranks + o->spares > ranks ? o->ranks + o->spares : ranks;
    return (struct gw_control_limits){.agree_s = 3 * timeout_s,
                                      .migrate_s = 60 * timeout_s, /* silent ranks are found long before */
                                      .drain_s = 10 * timeout_s,
                                      .move_s = 0.2,
                                      .margin_s = 0.3,
                                      .wanted = wanted,
                                      .spares = o->ranks ? o->spares : 0,
                                      .replacements = o->replace ? 4 * wanted : 0,
                                      .window_s = 60,
                                      .calm_s = 1};
}

/* Seeds the controller with the members that the plan in force had, so that it knows who is missing. */
static void remember_members(struct gw_leader *leader, const struct gw_plan *last)
{
    struct gw_update update;
    int *members = gw_alloc((size_t)last->peer_count + 1, sizeof *members), count = 0;
    for (int r = 0; r < last->peer_count; r++) {
        if (last->peers[r].slot >= 0) members[count++] = last->peers[r].member;
        if (last->peers[r].member >= leader->next_member) leader->next_member = last->peers[r].member + 1;
    }
    struct gw_event event = {.kind = GW_EVENT_WORLD,
                             .now_s = gw_clock_now_s(),
                             .member = -1,
                             .count = count,
                             .members = members,
                             .grown = true};
    gw_control_step(leader->control, &event, &update);
    free(members);
}

/* Time that was lost before this leader was there: since the last launch's last sign of life. */
static void note_launch(struct gw_leader *leader)
{
    struct gw_pause closed;
    double launched_s = leader->config.options->launched_s, silent_s = leader->before.updated_wall_s;
    if (leader->config.options->launch == 0 || launched_s <= 0) return;
    if (launched_s < silent_s) launched_s = silent_s; /* it stood by while the last one ran */
    if (!leader->before.stopped && silent_s > 0) leader->before.lost_s[GW_PAUSE_WAITING] += launched_s - silent_s;
    gw_pauses_begin(&leader->pauses, leader->before.stopped ? GW_PAUSE_CHANGE : GW_PAUSE_RELAUNCH, launched_s, &closed);
}

gw_err gw_leader_create(const struct gw_leader_config *config, struct gw_leader **out)
{
    gw_err rc = GW_OK;
    struct gw_leader *leader = gw_alloc(1, sizeof *leader);
    leader->config = *config;
    leader->config.last = NULL;
    leader->kernels = "";
    leader->cost = gw_calibration_read(config->options->out_dir);
    if (config->options->layout_set) leader->wanted = config->options->layout;
    leader->next_member = gw_comm_size(config->comm);
    struct gw_control_limits limits = limits_of(config->options, gw_comm_size(config->comm));
    leader->control = gw_control_create(&limits);
    TRY(gw_requests_open(config->options, config->model, config->context, &leader->requests));
    TRY(gw_checkpoints_open(config->options, config->model, !config->last, &leader->checkpoints));
    if (config->last) {
        remember_members(leader, config->last);
        leader->plan.number = config->last->number;
    }
    leader->started_s = gw_clock_now_s();
    if (config->last || config->options->launch > 0) leader->before = gw_record_totals(config->options->out_dir);
    struct gw_request_counts counts = gw_requests_counts(leader->requests);
    if (!config->last && (config->options->launch > 0 || counts.resumed_tokens > 0))
        leader->lost_wall_s = config->options->launched_s; /* what was lost is a whole launch */
    json_t *details = json_pack("{s:i,s:i,s:I,s:I,s:I}", "ranks", gw_comm_size(config->comm), "launch",
                                config->options->launch, "requests", (json_int_t)counts.total, "answered",
                                (json_int_t)counts.answered_before, "resumed_tokens",
                                (json_int_t)counts.resumed_tokens);
    if (!config->last) {
        note_launch(leader);
        json_object_set_new(details, "launched_at", json_real(config->options->launched_s));
        if (leader->before.updated_wall_s > 0)
            json_object_set_new(details, "silent_since", json_real(leader->before.updated_wall_s));
    }
    leader->first = !config->last;
    leader->history = gw_history_open(config->options->out_dir);
    gw_record_event(config->options->out_dir, config->last ? "leader" : "start", details);
    *out = leader;
    leader = NULL;
out:
    gw_leader_destroy(leader);
    return rc;
}

static void free_hellos(struct gw_leader *leader)
{
    for (int r = 0; r < leader->hello_count; r++) gw_hello_free(&leader->hellos[r]);
    free(leader->hellos);
    free(leader->heard);
    leader->hellos = NULL;
    leader->heard = NULL;
    leader->hello_count = 0;
}

void gw_leader_destroy(struct gw_leader *leader)
{
    if (!leader) return;
    if (gw_requests_close(leader->requests) != GW_OK) gw_warn("%s", gw_error_detail());
    gw_checkpoints_close(leader->checkpoints);
    gw_history_close(leader->history);
    gw_control_destroy(leader->control);
    free_hellos(leader);
    gw_plan_free(&leader->plan);
    free(leader->heads);
    free(leader->reports);
    gw_buf_free(&leader->message);
    free(leader);
}

void gw_leader_note_executor(struct gw_leader *leader, const char *kernels, int threads)
{
    leader->kernels = kernels;
    leader->threads = threads;
}

/* A sample of how far the job is, for the report. */
static void note_history(struct gw_leader *leader, bool last)
{
    struct gw_request_counts counts = gw_requests_counts(leader->requests);
    struct gw_sample sample = {.time_s = gw_clock_wall_s(),
                               .tokens = leader->before.committed_tokens + counts.committed_tokens,
                               .answered = counts.done + counts.failed,
                               .ranks = gw_control_members(leader->control)};
    for (int h = 0; h < leader->head_count; h++) sample.kv_pages += leader->reports[h].pages_used;
    gw_history_note(leader->history, &sample, last);
}

static gw_err write_status(struct gw_leader *leader, const char *state)
{
    note_history(leader, strcmp(state, "running") != 0);
    struct gw_record_status status = {.state = state,
                                      .options = leader->config.options,
                                      .plan = leader->planned ? &leader->plan : NULL,
                                      .heads = leader->reports,
                                      .head_count = leader->head_count,
                                      .counts = gw_requests_counts(leader->requests),
                                      .phase = gw_state_name(gw_control_state(leader->control)),
                                      .kernels = leader->kernels,
                                      .threads = leader->threads,
                                      .context = leader->config.context,
                                      .ranks = gw_control_members(leader->control),
                                      .before = leader->before,
                                      .elapsed_s = gw_clock_now_s() - leader->started_s,
                                      .recent_tokens_per_s = gw_history_recent_tokens_per_s(leader->history),
                                      .lost_s = leader->pauses.sum_s};
    return gw_record_status(leader->config.options->out_dir, &status);
}

/* ---- messages to everybody ------------------------------------------------------------------------------------- */

static gw_err tell_all(struct gw_leader *leader, enum gw_msg_kind kind, const void *data, size_t bytes)
{
    gw_err rc = GW_OK;
    for (int r = 0; r < gw_comm_size(leader->config.comm); r++)
        TRY(gw_comm_send(leader->config.comm, r, kind, 0, data, bytes));
out:
    return rc;
}

static gw_err tell_heads(struct gw_leader *leader, enum gw_msg_kind kind)
{
    gw_err rc = GW_OK;
    for (int h = 0; h < leader->head_count; h++)
        TRY(gw_comm_send(leader->config.comm, leader->heads[h].rank, kind, 0, NULL, 0));
out:
    return rc;
}

/* ---- the end --------------------------------------------------------------------------------------------------- */

gw_err gw_leader_finish(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    struct gw_request_counts counts = gw_requests_counts(leader->requests);
    bool stopped = !gw_requests_finished(leader->requests);
    TRY(gw_requests_commit(leader->requests, true));
    gw_calibration_write(leader->config.options->out_dir, &leader->cost);
    gw_checkpoints_interrupted(leader->checkpoints, false);
    if (!stopped) gw_checkpoints_drop(leader->checkpoints);
    const char *state = !stopped ? "done" : leader->saving ? "interrupted" : "stopped";
    TRY(write_status(leader, state));
    gw_record_event(leader->config.options->out_dir, state,
                    json_pack("{s:I,s:I,s:f,s:f}", "answered", (json_int_t)counts.done, "failed",
                              (json_int_t)counts.failed, "elapsed_s", gw_clock_now_s() - leader->started_s, "commit_s",
                              leader->commit_s));
    if (gw_page_write(leader->config.options->out_dir, NULL) != GW_OK) gw_warn("%s", gw_error_detail());
    if (stopped)
        FAIL(GW_ERR_STOPPED, "stopped on request with %lld of %lld requests answered; the same command carries on",
             (long long)(counts.done + counts.failed), (long long)counts.total);
out:
    return rc;
}

gw_err gw_leader_dismiss(struct gw_leader *leader)
{
    int32_t count = gw_comm_size(leader->config.comm), *ranks = gw_alloc((size_t)count, sizeof *ranks);
    for (int32_t r = 0; r < count; r++) ranks[r] = r;
    gw_err rc = tell_all(leader, GW_MSG_LEAVE, ranks, (size_t)count * sizeof *ranks);
    free(ranks);
    return rc;
}

/* ---- forming a world ------------------------------------------------------------------------------------------- */

static gw_err act(struct gw_leader *leader, const struct gw_update *update);

static gw_err step(struct gw_leader *leader, const struct gw_event *event)
{
    struct gw_update update;
    struct gw_event now = *event;
    now.now_s = gw_clock_now_s();
    gw_control_step(leader->control, &now, &update);
    return act(leader, &update);
}

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
    free_hellos(leader);
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

/* Every message of a kind that is there goes to `take`. `busy` may be NULL. */
static gw_err take_all(struct gw_leader *leader, enum gw_msg_kind kind,
                       gw_err (*take)(struct gw_leader *leader, const struct gw_msg *msg), bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    for (bool got = true; got;) {
        TRY(gw_comm_poll(leader->config.comm, -1, kind, &msg, &got));
        if (got) TRY(take(leader, &msg));
        if (busy) *busy |= got;
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
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
    TRY(step(leader, &(struct gw_event){.kind = GW_EVENT_WORLD,
                                        .member = -1,
                                        .count = count,
                                        .members = members,
                                        .grown = count > before || before == 0}));
    for (int r = 0; r < count && leader->hellos; r++)
        TRY(step(leader, &(struct gw_event){.kind = GW_EVENT_HELLO, .member = members[r]}));
out:
    free(members);
    return rc;
}

/* The replica whose head is rank `rank`; -1: none. */
static int head_of(const struct gw_leader *leader, int rank)
{
    for (int h = 0; h < leader->head_count; h++)
        if (leader->heads[h].rank == rank) return h;
    return -1;
}

static gw_err take_tokens(struct gw_leader *leader, const struct gw_msg *msg)
{
    return gw_requests_tokens(leader->requests, msg->data, msg->bytes);
}

static gw_err take_result(struct gw_leader *leader, const struct gw_msg *msg)
{
    int head = head_of(leader, msg->source);
    return head < 0 ? GW_OK : gw_requests_result(leader->requests, head, msg->data, msg->bytes);
}

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
        if (leader->message.bytes)
            TRY(gw_comm_send(leader->config.comm, head->rank, GW_MSG_ASSIGN, 0, leader->message.data,
                             leader->message.bytes));
    }
    gw_requests_settle(leader->requests);
out:
    return rc;
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

/* Ranks beyond those that the job is to have wait, to stand in for others: at first those who have no place. */
static void bench_spares(const struct gw_leader *leader, bool *active)
{
    const struct gw_control_limits *limits = gw_control_limits(leader->control);
    int target = limits->wanted - limits->spares, count = 0;
    if (leader->wanted.data && gw_layout_ranks(leader->wanted) > target) target = gw_layout_ranks(leader->wanted);
    for (int r = 0; r < leader->hello_count; r++) count += active[r];
    for (int placed = 0; placed <= 1; placed++)
        for (int r = leader->hello_count - 1; r > 0 && count > target; r--) {
            if (!active[r] || leader->hellos[r].peer.placed != placed) continue;
            active[r] = false;
            count--;
        }
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
    bool *active = gw_alloc((size_t)leader->hello_count + 1, sizeof *active);
    for (int r = 0; r < leader->hello_count; r++) /* a context may come from an earlier launch */
        if (leader->hellos[r].plan >= planning.number) planning.number = leader->hellos[r].plan + 1;
    for (int r = 0; r < leader->hello_count; r++)
        active[r] = gw_control_active(leader->control, leader->hellos[r].peer.member);
    bench_spares(leader, active);
    planning.active = active;
    TRY(take_all(leader, GW_MSG_TOKENS, take_tokens, NULL)); /* what heads sent before their hellos */
    TRY(take_all(leader, GW_MSG_RESULT, take_result, NULL));
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
    free_hellos(leader);
    TRY(step(leader, &(struct gw_event){.kind = GW_EVENT_PLANNED}));
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
    TRY(tell_all(leader, GW_MSG_LEAVE, ranks, (size_t)count * sizeof *ranks));
out:
    free(ranks);
    return rc;
}

static gw_err begin_checkpoint(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    int ranks = gw_layout_ranks(leader->plan.layout);
    if (!leader->head_count || gw_checkpoints_under_way(leader->checkpoints)) return GW_OK;
    if (!gw_checkpoints_on(leader->checkpoints)) return GW_OK;
    TRY(leader->config.at_point(leader->config.point_context, GW_CHAOS_AT_CHECKPOINT));
    uint64_t increment = gw_checkpoints_begin(leader->checkpoints, leader->head_count, ranks, gw_clock_now_s());
    uint8_t again = gw_checkpoints_again(leader->checkpoints);
    gw_checkpoints_may_prune(leader->checkpoints, !gw_requests_begun_wait(leader->requests));
    for (int h = 0; h < leader->head_count; h++)
        TRY(gw_comm_send(leader->config.comm, leader->heads[h].rank, GW_MSG_SAVE, increment, &again, 1));
out:
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
        TRY(tell_heads(leader, GW_MSG_DRAIN));
    }
    if (update->what & GW_DO_FORM) {
        struct gw_form_order order = {.grow = update->grow};
        if (update->grow)
            gw_record_event(leader->config.options->out_dir, "grow", json_pack("{s:i}", "ranks", update->grow));
        TRY(tell_all(leader, GW_MSG_FORM, &order, sizeof order));
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
        if (leader->config.options->checkpoint_s != 0) TRY(begin_checkpoint(leader));
    }
    if (update->what & GW_DO_GIVE_UP)
        FAIL(GW_ERR_TIMEOUT, "the ranks did not come to '%s' in time",
             gw_state_name(gw_control_state(leader->control)));
out:
    return rc;
}

static gw_err obey_notice(struct gw_leader *leader, const struct gw_notice *notice)
{
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
        gw_record_event(out_dir, "notice",
                        json_pack("{s:i,s:f}", "member", notice->member, "grace_s", notice->seconds));
    }
    return step(leader, &event);
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
    TRY(step(leader, &(struct gw_event){.kind = GW_EVENT_READY, .member = leader->plan.peers[msg->source].member}));
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
    int head = head_of(leader, msg->source);
    if (head >= 0) leader->heads[head].drained = true;
    return GW_OK;
}

static gw_err take_keep(struct gw_leader *leader, const struct gw_msg *msg)
{
    gw_checkpoints_keep(leader->checkpoints, msg->data, msg->bytes);
    return GW_OK;
}

static gw_err take_saved(struct gw_leader *leader, const struct gw_msg *msg)
{
    gw_err rc = GW_OK;
    bool done = false;
    uint64_t bytes = 0;
    double cost_s = 0;
    TRY(gw_checkpoints_saved(leader->checkpoints, msg->data, msg->bytes, &done, &bytes, &cost_s));
    if (done)
        gw_record_event(leader->config.options->out_dir, "checkpoint",
                        json_pack("{s:I,s:f,s:f}", "bytes", (json_int_t)bytes, "cost_s", cost_s, "next_in_s",
                                  gw_checkpoints_interval_s(leader->checkpoints)));
out:
    return rc;
}

static gw_err check_drained(struct gw_leader *leader)
{
    if (gw_control_state(leader->control) != GW_STATE_DRAIN) return GW_OK;
    for (int h = 0; h < leader->head_count; h++)
        if (!leader->heads[h].drained) return GW_OK;
    for (int h = 0; h < leader->head_count; h++) leader->heads[h].drained = false;
    return step(leader, &(struct gw_event){.kind = GW_EVENT_DRAINED});
}

/* ---- handing out ----------------------------------------------------------------------------------------------- */

static gw_err grant(struct gw_leader *leader, int replica, bool *any)
{
    gw_err rc = GW_OK;
    struct head_state *head = &leader->heads[replica];
    int64_t left = gw_requests_left(leader->requests);
    int64_t share = leader->head_count > 1 ? left / (2 * leader->head_count) : left;
    /* not more than an even share of all that is open, so that the first to be ready does not take what the others are for */
    int64_t open = left + gw_requests_counts(leader->requests).active;
    int64_t even = (open + leader->head_count - 1) / leader->head_count -
                   gw_requests_active_of(leader->requests, replica);
    int64_t most = share < 1 ? 1 : share < head->wants ? share : head->wants;
    if (even < most) most = even;
    if (left <= 0) most = 1; /* the end of the input is found by asking for more */
    int granted = 0;
    gw_buf_clear(&leader->message);
    for (bool got = true; granted < most && got; granted += got)
        TRY(gw_requests_grant(leader->requests, replica, &leader->message, &got));
    if (granted == 0) return GW_OK;
    *any = true;
    head->wants -= granted;
    head->granted += (uint32_t)granted;
    TRY(gw_comm_send(leader->config.comm, head->rank, GW_MSG_ASSIGN, 0, leader->message.data, leader->message.bytes));
out:
    return rc;
}

static gw_err take_report(struct gw_leader *leader, const struct gw_msg *msg)
{
    int h = head_of(leader, msg->source);
    if (h < 0 || msg->bytes != sizeof *leader->reports) return GW_OK;
    struct head_state *head = &leader->heads[h];
    memcpy(&leader->reports[h], msg->data, sizeof *leader->reports);
    head->wants = leader->reports[h].wants - (int)(head->granted - leader->reports[h].taken);
    gw_calibration_steps(&leader->cost, &leader->config.dims, leader->plan.layout, &leader->reports[h], &head->timed);
    return GW_OK;
}

/* Rounds over the heads, so that none takes all of what is left because it asked first. */
static gw_err hand_out(struct gw_leader *leader, bool *busy)
{
    gw_err rc = GW_OK;
    enum gw_state state = gw_control_state(leader->control);
    if (leader->told || (state != GW_STATE_RUN && state != GW_STATE_MIGRATE)) return GW_OK;
    for (bool any = true; any;) {
        any = false;
        for (int h = 0; h < leader->head_count; h++)
            if (leader->heads[h].wants > 0) TRY(grant(leader, h, &any));
        *busy |= any;
    }
out:
    return rc;
}

/* For events.jsonl: how long it took from a loss to the plan, to everybody's readiness, and to the next committed token. */
static void note_recovery(struct gw_leader *leader)
{
    double now_s = gw_clock_wall_s(), lost_s = leader->recovery.lost_wall_s;
    if (lost_s == 0) return;
    if (leader->recovery.ready_wall_s == 0 && gw_control_state(leader->control) == GW_STATE_RUN)
        leader->recovery.ready_wall_s = now_s;
    if (gw_requests_counts(leader->requests).committed_tokens <= leader->recovery.committed) return;
    json_t *details = json_pack("{s:f,s:f,s:f}", "lost_at", lost_s, "plan_s", leader->recovery.planned_wall_s - lost_s,
                                "token_s", now_s - lost_s);
    if (leader->recovery.ready_wall_s > 0)
        json_object_set_new(details, "ready_s", json_real(leader->recovery.ready_wall_s - lost_s));
    gw_record_event(leader->config.options->out_dir, "recovered", details);
    leader->recovery.lost_wall_s = 0;
}

static gw_err housekeeping(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    double now_s = gw_clock_now_s();
    bool durable = now_s - leader->synced_s > SYNC_EVERY_S;
    if (gw_requests_uncommitted(leader->requests) && (durable || now_s - leader->committed_s > COMMIT_EVERY_S)) {
        TRY(leader->config.at_point(leader->config.point_context, GW_CHAOS_AT_COMMIT));
        TRY(gw_requests_commit(leader->requests, durable));
        leader->committed_s = now_s;
        leader->commit_s += gw_clock_now_s() - now_s;
        note_recovery(leader);
        if (durable) leader->synced_s = gw_clock_now_s();
    }
    if (leader->recovery.lost_wall_s > 0 && leader->recovery.ready_wall_s == 0) note_recovery(leader);
    if (now_s - leader->status_s > STATUS_EVERY_S) {
        TRY(write_status(leader, "running"));
        leader->status_s = now_s;
    }
out:
    return rc;
}

/* A head's last message: what it sent before is there by then, since messages of one sender do not overtake. */
static gw_err take_bye(struct gw_leader *leader, const struct gw_msg *msg)
{
    (void)msg;
    leader->byes++;
    return GW_OK;
}

/* The end is told only while nothing else goes on: a world that forms has no heads to tell. */
static gw_err check_end(struct gw_leader *leader, bool stop)
{
    enum gw_state state = gw_control_state(leader->control);
    bool settled = state == GW_STATE_RUN || state == GW_STATE_STOP;
    if (leader->told || !leader->head_count || !settled) return GW_OK;
    if (!stop && !leader->saving && !gw_requests_finished(leader->requests)) return GW_OK;
    if (leader->saving && gw_checkpoints_under_way(leader->checkpoints) && gw_clock_now_s() < leader->saving_until_s)
        return GW_OK; /* what fits into the grace is still being written */
    leader->told = true;
    return tell_heads(leader, GW_MSG_STOP);
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
    TRY(step(leader,
             &(struct gw_event){.kind = GW_EVENT_SPAWNED, .member = -1, .count = waiting ? leader->spawn_count : 0}));
out:
    return rc;
}

gw_err gw_leader_poll(struct gw_leader *leader, bool stop, bool *busy, bool *finished)
{
    gw_err rc = GW_OK;
    TRY(take_all(leader, GW_MSG_BYE, take_bye, busy));
    *finished = leader->told && leader->byes == leader->head_count;
    TRY(take_all(leader, GW_MSG_TOKENS, take_tokens, busy));
    TRY(take_all(leader, GW_MSG_RESULT, take_result, busy));
    TRY(take_all(leader, GW_MSG_WANT, take_report, NULL));
    if (leader->hellos) TRY(take_all(leader, GW_MSG_HELLO, take_hello, busy));
    if (leader->hellos) TRY(note_hellos(leader));
    TRY(take_all(leader, GW_MSG_NOTICE, take_notice, busy));
    if (leader->planned) TRY(take_all(leader, GW_MSG_READY, take_ready, busy));
    if (leader->head_count > 0) TRY(take_all(leader, GW_MSG_DRAINED, take_drained, busy));
    TRY(take_all(leader, GW_MSG_KEEP, take_keep, NULL));
    TRY(take_all(leader, GW_MSG_SAVED, take_saved, busy));
    TRY(check_drained(leader));
    TRY(watch_spawn(leader));
    if (gw_control_state(leader->control) == GW_STATE_RUN && !leader->told &&
        gw_checkpoints_due(leader->checkpoints, gw_clock_now_s()))
        TRY(begin_checkpoint(leader));
    TRY(step(leader, &(struct gw_event){.kind = GW_EVENT_TICK, .member = -1}));
    TRY(hand_out(leader, busy));
    TRY(housekeeping(leader));
    TRY(check_end(leader, stop));
out:
    return rc;
}
