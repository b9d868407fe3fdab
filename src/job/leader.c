/* See leader.h.
 *
 * Requests are granted by guided self-scheduling: half of an even share of what is left at a time, so that replicas finish together
 * whatever their speeds. Tokens are committed as they come, written at once and synced once a second with the output: a killed process
 * loses nothing that the leader has heard of, a power cut a second of it, and what is lost is generated again, to the same bytes.
 */
#include "job/leader_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include "job/calibration.h"
#include "report/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double SYNC_EVERY_S = 1.0, STATUS_EVERY_S = 0.5, COMMIT_EVERY_S = 0.005, LEAVE_MARGIN_S = 0.3,
                    RECENT_S = 10, MOMENT_S = 2, IDLE_S = 2; /* a head that does not compute reports twice a second */

/* ---- begin and end --------------------------------------------------------------------------------------------- */

static struct gw_control_limits limits_of(const struct gw_job_options *o, int ranks)
{
    double timeout_s = o->peer_timeout_s;
    int wanted = o->ranks + o->spares > ranks ? o->ranks + o->spares : ranks;
    return (struct gw_control_limits){.agree_s = 3 * timeout_s,
                                      .migrate_s = 60 * timeout_s, /* silent ranks are found long before */
                                      .drain_s = 10 * timeout_s,
                                      .move_s = 0.2,
                                      .margin_s = LEAVE_MARGIN_S,
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
    leader->pace = gw_pace_create();
    TRY(gw_requests_open(config->options, config->model, config->context, &leader->requests));
    TRY(gw_checkpoints_open(config->options, config->model, !config->last, &leader->checkpoints));
    if (config->last) {
        remember_members(leader, config->last);
        leader->plan.number = config->last->number;
    }
    leader->started_s = gw_clock_now_s();
    leader->left_s = INFINITY;
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

void gw_leader_destroy(struct gw_leader *leader)
{
    if (!leader) return;
    if (gw_requests_close(leader->requests) != GW_OK) gw_warn("%s", gw_error_detail());
    gw_checkpoints_close(leader->checkpoints);
    gw_history_close(leader->history);
    gw_control_destroy(leader->control);
    gw_pace_destroy(leader->pace);
    free(leader->speeds);
    gw_leader_free_hellos(leader);
    gw_leader_free_handing(leader);
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
                                      .recent_tokens_per_s = gw_history_tokens_per_s(leader->history, RECENT_S),
                                      .lost_s = leader->pauses.sum_s};
    return gw_record_status(leader->config.options->out_dir, &status);
}

/* ---- messages to everybody ------------------------------------------------------------------------------------- */

gw_err gw_leader_tell_all(struct gw_leader *leader, enum gw_msg_kind kind, const void *data, size_t bytes)
{
    gw_err rc = GW_OK;
    for (int r = 0; r < gw_comm_size(leader->config.comm); r++)
        TRY(gw_comm_send(leader->config.comm, r, kind, 0, data, bytes));
out:
    return rc;
}

gw_err gw_leader_tell_heads(struct gw_leader *leader, enum gw_msg_kind kind)
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
    if (!leader->give_way && gw_page_write(leader->config.options->out_dir, NULL) != GW_OK)
        gw_warn("%s", gw_error_detail());
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
    gw_err rc = gw_leader_tell_all(leader, GW_MSG_LEAVE, ranks, (size_t)count * sizeof *ranks);
    free(ranks);
    return rc;
}

/* Every message of a kind that is there goes to `take`. `busy` may be NULL. */
gw_err gw_leader_take_all(struct gw_leader *leader, enum gw_msg_kind kind,
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

/* The replica whose head is rank `rank`; -1: none. */
int gw_leader_head_of(const struct gw_leader *leader, int rank)
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
    int head = gw_leader_head_of(leader, msg->source);
    return head < 0 ? GW_OK : gw_requests_result(leader->requests, head, msg->data, msg->bytes);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

static gw_err begin_round(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    int ranks = gw_layout_ranks(leader->plan.layout);
    if (!leader->head_count) return GW_OK;
    TRY(leader->config.at_point(leader->config.point_context, GW_CHAOS_AT_CHECKPOINT));
    uint64_t increment = gw_checkpoints_begin(leader->checkpoints, leader->head_count, ranks, gw_clock_now_s());
    uint8_t again = gw_checkpoints_again(leader->checkpoints);
    gw_checkpoints_may_prune(leader->checkpoints, !gw_requests_begun_wait(leader->requests));
    for (int h = 0; h < leader->head_count; h++)
        TRY(gw_comm_send(leader->config.comm, leader->heads[h].rank, GW_MSG_SAVE, increment, &again, 1));
out:
    return rc;
}

static gw_err take_keep(struct gw_leader *leader, const struct gw_msg *msg)
{
    gw_checkpoints_keep(leader->checkpoints, msg->data, msg->bytes);
    return GW_OK;
}

static gw_err take_saved(struct gw_leader *leader, const struct gw_msg *msg)
{
    return gw_checkpoints_saved(leader->checkpoints, msg->data, msg->bytes);
}

/* Once all is handed out: at the rate of the moment all tokens that may be left take so long, and the longest request a step for each of its own, where a
 * step draws one for each that runs. Steps become shorter as requests end, and those may end before their limit: it is rather too much. */
static double estimate_left_s(const struct gw_leader *leader)
{
    double rate = gw_history_tokens_per_s(leader->history, MOMENT_S);
    int64_t sum, most, running = 0;
    if (gw_requests_left(leader->requests) > 0 || rate <= 0) return INFINITY;
    gw_requests_undrawn(leader->requests, &sum, &most);
    for (int h = 0; h < leader->head_count; h++) running += leader->reports[h].running;
    return (double)(most * running > sum ? most * running : sum) / rate;
}

static gw_err poll_checkpoints(struct gw_leader *leader, bool *busy)
{
    gw_err rc = GW_OK;
    double now_s = gw_clock_now_s();
    struct gw_checkpoint_done done;
    TRY(gw_leader_take_all(leader, GW_MSG_KEEP, take_keep, NULL));
    TRY(gw_leader_take_all(leader, GW_MSG_SAVED, take_saved, busy));
    if (gw_checkpoints_take_done(leader->checkpoints, now_s, &done)) {
        gw_control_limits(leader->control)->save_s = done.whole_s;
        gw_record_event(leader->config.options->out_dir, "checkpoint",
                        json_pack("{s:I,s:f,s:f}", "bytes", (json_int_t)done.bytes, "cost_s", done.cost_s, "next_in_s",
                                  gw_checkpoints_interval_s(leader->checkpoints)));
    }
    bool may = leader->saving ? now_s < leader->saving_until_s : gw_control_state(leader->control) == GW_STATE_RUN;
    if (may && !leader->told && gw_checkpoints_due(leader->checkpoints, now_s, leader->left_s))
        TRY(begin_round(leader));
out:
    return rc;
}

gw_err gw_leader_take_work(struct gw_leader *leader, bool *busy)
{
    gw_err rc = GW_OK;
    TRY(gw_leader_take_all(leader, GW_MSG_TOKENS, take_tokens, busy));
    TRY(gw_leader_take_all(leader, GW_MSG_RESULT, take_result, busy));
out:
    return rc;
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
    int h = gw_leader_head_of(leader, msg->source);
    if (h < 0 || msg->bytes != sizeof *leader->reports) return GW_OK;
    struct head_state *head = &leader->heads[h];
    struct gw_head_report before = leader->reports[h];
    head->reported_s = gw_clock_now_s();
    memcpy(&leader->reports[h], msg->data, sizeof *leader->reports);
    if (leader->reports[h].steps > before.steps)
        head->step_s = (leader->reports[h].compute_s - before.compute_s) /
                       (double)(leader->reports[h].steps - before.steps);
    head->wants = leader->reports[h].wants - (int)(head->granted - leader->reports[h].taken);
    gw_calibration_steps(&leader->cost, &leader->config.dims, leader->plan.layout, &leader->reports[h], &head->timed);
    return GW_OK;
}

/* Before anybody leaves, the steps in flight end: a margin beside what the move takes, which counts them as they were, not as they are now. */
static void note_margin(struct gw_leader *leader)
{
    double longest_s = 0;
    for (int h = 0; h < leader->head_count; h++)
        if (leader->heads[h].step_s > longest_s) longest_s = leader->heads[h].step_s;
    gw_control_limits(leader->control)->margin_s = LEAVE_MARGIN_S + 2 * leader->plan.layout.pipeline * longest_s;
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

static gw_err commit(struct gw_leader *leader)
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
out:
    return rc;
}

gw_err gw_leader_commit(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    if (!leader->planned || leader->hellos) return GW_OK;
    TRY(gw_leader_take_work(leader, NULL));
    TRY(commit(leader));
out:
    return rc;
}

/* No wait without a deadline: where requests are under way, all heads idle, and nothing at all moves on, whatever the reason, the launch ends and
 * the next one goes on from what is committed. A head that is in a step reports nothing, and gives up on it after a time of its own. */
static gw_err check_progress(struct gw_leader *leader)
{
    double now_s = gw_clock_now_s(), limit_s = 4 * leader->config.options->peer_timeout_s;
    struct gw_request_counts counts = gw_requests_counts(leader->requests);
    int64_t sum = counts.committed_tokens + counts.done + counts.failed;
    for (int h = 0; h < leader->head_count; h++) sum += (int64_t)leader->reports[h].computed_tokens;
    bool due = gw_control_state(leader->control) == GW_STATE_RUN && !leader->told && leader->head_count > 0;
    for (int h = 0; h < leader->head_count; h++) due &= now_s - leader->heads[h].reported_s < IDLE_S;
    if (!due || sum != leader->progress) {
        leader->progress = sum;
        leader->progress_s = now_s;
    }
    if (now_s - leader->progress_s < limit_s) return GW_OK;
    json_t *heads = json_array();
    for (int h = 0; h < leader->head_count; h++) {
        const struct gw_head_report *report = &leader->reports[h];
        json_array_append_new(heads, json_pack("{s:I,s:i,s:i,s:i,s:i,s:i,s:i}", "granted",
                                               (json_int_t)gw_requests_active_of(leader->requests, h), "running",
                                               report->running, "waiting", report->waiting, "wants", report->wants,
                                               "places", leader->heads[h].wants, "pages_used", report->pages_used,
                                               "pages_total", report->pages_total));
    }
    gw_record_event(leader->config.options->out_dir, "stalled",
                    json_pack("{s:f,s:I,s:I,s:o}", "seconds", now_s - leader->progress_s, "active",
                              (json_int_t)counts.active, "waiting", (json_int_t)counts.waiting, "heads", heads));
    return gw_fail(GW_ERR_TIMEOUT, "nothing was computed for %.0f s though %lld requests are under way",
                   now_s - leader->progress_s, (long long)counts.active);
}

static gw_err housekeeping(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    double now_s = gw_clock_now_s();
    TRY(commit(leader));
    if (leader->recovery.lost_wall_s > 0 && leader->recovery.ready_wall_s == 0) note_recovery(leader);
    if (now_s - leader->status_s > STATUS_EVERY_S) {
        TRY(write_status(leader, "running"));
        leader->status_s = now_s;
        leader->left_s = estimate_left_s(leader);
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
    double now_s = gw_clock_now_s();
    if (leader->saving && now_s < leader->saving_until_s &&
        (gw_checkpoints_under_way(leader->checkpoints) ||
         gw_checkpoints_due(leader->checkpoints, now_s, leader->left_s)))
        return GW_OK; /* what fits into the grace is still being written */
    leader->told = true;
    return gw_leader_tell_heads(leader, GW_MSG_STOP);
}

gw_err gw_leader_poll(struct gw_leader *leader, bool stop, bool *busy, bool *finished)
{
    gw_err rc = GW_OK;
    TRY(gw_leader_take_all(leader, GW_MSG_BYE, take_bye, busy));
    *finished = leader->told && leader->byes == leader->head_count;
    TRY(gw_leader_take_work(leader, busy));
    TRY(gw_leader_take_all(leader, GW_MSG_WANT, take_report, NULL));
    note_margin(leader);
    TRY(gw_leader_poll_world(leader, busy));
    TRY(poll_checkpoints(leader, busy));
    TRY(gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_TICK, .member = -1}));
    TRY(hand_out(leader, busy));
    TRY(housekeeping(leader));
    TRY(check_progress(leader));
    TRY(gw_leader_poll_handover(leader));
    TRY(check_end(leader, stop || leader->give_way));
out:
    return rc;
}
