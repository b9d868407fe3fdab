/* See head.h. */
#include "job/head_internal.h"

#include "base/clock.h"
#include "job/worker.h"

#include <stdlib.h>
#include <string.h>

gw_err gw_head_create(const struct gw_head_config *config, struct gw_head **out)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = config->options;
    struct gw_head *head = gw_alloc(1, sizeof *head);
    head->config = *config;
    head->answers = (struct gw_answer_context){.tokenizer = config->tokenizer,
                                               .chat = config->chat,
                                               .defaults = &o->defaults,
                                               .model_name = o->model_name,
                                               .created = o->created,
                                               .context = config->context,
                                               .vocab = gw_model_info(config->model)->vocab};
    head->slot_count = config->team->layout.pipeline;
    head->slots = gw_alloc((size_t)head->slot_count, sizeof *head->slots);
    struct gw_sched_config sched = {.slots = head->slot_count,
                                    .max_seqs = o->max_seqs,
                                    .step_rows = o->step_rows,
                                    .page_count = config->kv_pages,
                                    .context = config->context};
    TRY(gw_sched_create(&sched, &head->sched));
    head->drawn = gw_alloc((size_t)o->max_seqs + 1, sizeof *head->drawn);
    head->hidden = gw_alloc((size_t)o->step_rows * (size_t)gw_model_info(config->model)->d_model, sizeof(float));
    head->report.pages_total = config->kv_pages;
    head->reported_wants = -1;
    *out = head;
    head = NULL;
out:
    gw_head_destroy(head);
    return rc;
}

void gw_head_destroy(struct gw_head *head)
{
    if (!head) return;
    if (head->sched) {
        gw_head_drop_adoptions(head);
        struct gw_seq *seq;
        for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++) gw_answer_destroy(seq->user);
        gw_sched_destroy(head->sched);
    }
    for (int s = 0; head->slots && s < head->slot_count; s++) {
        gw_step_free(&head->slots[s].step);
        gw_buf_free(&head->slots[s].drawn);
    }
    for (int i = 0; i < head->load_count; i++) gw_buf_free(&head->loads[i].list);
    free(head->loads);
    free(head->slots);
    free(head->drawn);
    free(head->hidden);
    gw_buf_free(&head->message);
    gw_buf_free(&head->tokens);
    free(head);
}

uint64_t gw_head_steps(const struct gw_head *head)
{
    return head->steps;
}

/* ---- towards the leader ---------------------------------------------------------------------------------------- */

static gw_err send_result(struct gw_head *head, const struct gw_result *result)
{
    gw_buf_clear(&head->message);
    gw_result_encode(result, &head->message);
    return gw_comm_send(head->config.comm, LEADER, GW_MSG_RESULT, 0, head->message.data, head->message.bytes);
}

static gw_err send_error(struct gw_head *head, int64_t index, const char *custom_id, const struct gw_request_error *bad)
{
    struct gw_buf line = {0};
    gw_output_format_error(custom_id, index, bad, &line);
    struct gw_result result = {.index = index, .failed = true, .line = line.data, .line_bytes = line.bytes};
    gw_err rc = send_result(head, &result);
    gw_buf_free(&line);
    return rc;
}

static gw_err send_answer(struct gw_head *head, struct gw_answer *answer)
{
    struct gw_buf line = {0};
    gw_answer_format(answer, &line);
    struct gw_result result = {.index = gw_answer_index(answer),
                               .prompt_tokens = gw_answer_prompt_tokens(answer),
                               .completion_tokens = gw_answer_completion_tokens(answer),
                               .line = line.data,
                               .line_bytes = line.bytes};
    gw_err rc = send_result(head, &result);
    gw_buf_free(&line);
    return rc;
}

/* Reports when the wish for requests changed, and twice a second for the progress line. */
static gw_err report(struct gw_head *head)
{
    struct gw_sched_stats stats = gw_sched_stats(head->sched);
    head->report.wants = gw_sched_wants(head->sched);
    double now_s = gw_clock_now_s();
    if (head->report.wants == head->reported_wants && now_s - head->reported_at_s < 0.5) return GW_OK;
    head->reported_wants = head->report.wants;
    head->reported_at_s = now_s;
    head->report.running = stats.running;
    head->report.waiting = stats.waiting;
    head->report.pages_used = stats.pages_used;
    head->report.computed_tokens = stats.rows;
    head->report.preemptions = stats.preemptions;
    head->report.prefix_tokens_reused = stats.prefix_tokens_reused;
    head->report.recomputed_tokens = stats.recomputed_tokens + head->begun_tokens;
    return gw_comm_send(head->config.comm, LEADER, GW_MSG_WANT, 0, &head->report, sizeof head->report);
}

/* A request from the leader, maybe with tokens that were drawn elsewhere or before. */
static gw_err take_line(struct gw_head *head, int64_t index, const char *line, size_t bytes, const struct gw_buf *drawn)
{
    gw_err rc = GW_OK;
    struct arrival arrival = {0};
    struct gw_request_error bad = {0};
    char *custom_id = NULL;
    bool complete = false;
    TRY(gw_answer_create(&head->answers, line, bytes, index, &arrival.prompt, &arrival.answer, &bad, &custom_id));
    if (bad.code) {
        TRY(send_error(head, index, custom_id, &bad));
        head->reported_wants = -1; /* its place is free again: say so */
        goto out;
    }
    const struct gw_sample_result *results = (const struct gw_sample_result *)(const void *)drawn->data;
    for (size_t i = 0; i < drawn->bytes / sizeof *results && !complete; i++) {
        complete = gw_answer_push(arrival.answer, &results[i]);
        gw_buf_add(&arrival.drawn, &results[i].token, sizeof results[i].token);
    }
    if (complete) { /* its last token was committed, its line was not */
        TRY(send_answer(head, arrival.answer));
        head->reported_wants = -1;
        goto out;
    }
    rc = gw_head_take_arrival(head, index, &arrival);
    arrival = (struct arrival){0};
out:
    gw_head_free_arrival(&arrival);
    free(custom_id);
    return rc;
}

static gw_err take_requests(struct gw_head *head, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    struct gw_buf drawn = {0};
    for (bool got = true; got;) {
        TRY(gw_comm_poll(head->config.comm, LEADER, GW_MSG_ASSIGN, &msg, &got));
        if (!got) break;
        *busy = true;
        struct gw_reader in = {.data = msg.data, .bytes = msg.bytes};
        int64_t index;
        const char *line;
        size_t bytes;
        while (gw_assign_next(&in, &index, &line, &bytes, &drawn)) {
            head->report.taken++;
            TRY(take_line(head, index, line, bytes, &drawn));
        }
        if (in.failed) FAIL(GW_ERR_PEER, "an assignment of %zu bytes from the leader is malformed", msg.bytes);
        gw_head_note_assigned(head, msg.step);
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    gw_buf_free(&drawn);
    return rc;
}

/* ---- within the replica ---------------------------------------------------------------------------------------- */

gw_err gw_head_tell(struct gw_head *head, enum gw_msg_kind kind, uint64_t step, const void *data, size_t bytes)
{
    gw_err rc = GW_OK;
    for (int r = 1; r < gw_team_size(head->config.team); r++)
        TRY(gw_comm_send(head->config.comm, head->config.team->ranks[r], kind, step, data, bytes));
out:
    return rc;
}

/* Tokens go to the leader with the step that drew them, and before the line that they complete. */
static gw_err send_tokens(struct gw_head *head)
{
    if (!head->tokens.bytes) return GW_OK;
    gw_err rc = gw_comm_send(head->config.comm, LEADER, GW_MSG_TOKENS, 0, head->tokens.data, head->tokens.bytes);
    gw_buf_clear(&head->tokens);
    return rc;
}

/* A token for each sampled sequence; ends those that are complete. */
static gw_err take_drawn(struct gw_head *head, const struct gw_drawn *drawn, size_t count)
{
    gw_err rc = GW_OK;
    for (size_t i = 0; i < count; i++) {
        struct gw_seq *seq = gw_sched_push(head->sched, drawn[i].seq, drawn[i].result.token);
        struct gw_answer *answer = seq->user;
        head->report.drawn_tokens++;
        bool complete = gw_answer_push(answer, &drawn[i].result);
        gw_tokens_msg_add(&head->tokens, gw_answer_index(answer), seq->count - seq->prompt_count - 1, &drawn[i].result,
                          1, gw_answer_logprobs(answer) >= 0);
        if (!complete) continue;
        gw_sched_remove(head->sched,
                        seq); /* first: should the leader not hear of it, it must not be reported as held */
        rc = send_tokens(head);
        if (rc == GW_OK) rc = send_answer(head, answer);
        gw_answer_destroy(answer);
        if (rc != GW_OK) goto out;
    }
    TRY(send_tokens(head));
out:
    return rc;
}

/* Takes one shard's tokens. Only when all have come do the sequences move on: until then a sequence must not be planned again. */
static gw_err take_shard(struct gw_head *head, struct slot *slot, const void *drawn, size_t bytes)
{
    gw_buf_add(&slot->drawn, drawn, bytes);
    if (--slot->due > 0) return GW_OK;
    slot->in_flight = false;
    head->steps++;
    gw_head_confirm_loads(head, slot->number);
    gw_sched_step_done(head->sched, slot->step.slot);
    gw_err rc = take_drawn(head, (const struct gw_drawn *)(const void *)slot->drawn.data,
                           slot->drawn.bytes / sizeof(struct gw_drawn));
    gw_buf_clear(&slot->drawn);
    return rc;
}

/* What a step of this stage was and took, for the calibration. */
static void note_step(struct gw_head *head, const struct slot *slot)
{
    struct gw_head_report *report = &head->report;
    report->steps++;
    report->compute_s += gw_clock_now_s() - slot->launched_s;
    for (int i = 0; i < slot->step.seq_count; i++) {
        const struct gw_step_seq *seq = &slot->step.seqs[i];
        *(seq->rows == 1 ? &report->decode_rows : &report->prefill_rows) += (uint64_t)seq->rows;
        report->seen_tokens += (uint64_t)seq->rows * (uint64_t)(seq->pos0 + seq->rows / 2 + 1);
    }
}

/* Stage 0's part of a step that was just planned. */
static gw_err launch(struct gw_head *head, struct slot *slot)
{
    gw_err rc = GW_OK;
    struct gw_executor *ex = head->config.executor;
    const struct gw_layout *layout = &head->config.team->layout;
    int d = gw_model_info(head->config.model)->d_model, own = 0;
    gw_head_take_snapshot(head);
    slot->number = ++head->launched;
    gw_buf_clear(&head->message);
    gw_executor_cut(ex, &slot->step);
    gw_step_encode(&slot->step, &head->message);
    TRY(gw_head_tell(head, GW_MSG_STEP, slot->step.id, head->message.data, head->message.bytes));
    slot->in_flight = true;
    slot->launched_s = gw_clock_now_s();
    slot->due = layout->tensor;
    TRY(gw_executor_forward(ex, &slot->step, GW_OUTPUTS_DRAWN, NULL, head->hidden));
    if (layout->pipeline > 1) note_step(head, slot);
    if (layout->pipeline > 1)
        return gw_comm_send(head->config.comm, gw_team_rank(head->config.team, 1, 0), GW_MSG_HIDDEN, slot->step.id,
                            head->hidden, (size_t)slot->step.rows * (size_t)d * sizeof(float));
    TRY(gw_executor_draw(ex, &slot->step, head->drawn, &own));
    note_step(head, slot);
    TRY(take_shard(head, slot, head->drawn, (size_t)own * sizeof *head->drawn));
out:
    return rc;
}

/* Takes in tokens that other ranks have drawn. */
static gw_err collect(struct gw_head *head, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    for (bool got = true; got;) {
        TRY(gw_comm_poll(head->config.comm, -1, GW_MSG_DRAWN, &msg, &got));
        if (!got) break;
        *busy = true;
        struct slot *slot = NULL;
        for (int s = 0; s < head->slot_count; s++)
            if (head->slots[s].in_flight && head->slots[s].step.id == msg.step) slot = &head->slots[s];
        if (!slot || msg.bytes % sizeof(struct gw_drawn))
            FAIL(GW_ERR_PEER, "rank %d sent tokens of step %llu, which is not in flight", msg.source,
                 (unsigned long long)msg.step);
        TRY(take_shard(head, slot, msg.data, msg.bytes));
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

/* Plans and launches the step of one slot that has none in flight. */
static gw_err launch_next(struct gw_head *head, bool *busy)
{
    for (int i = 0; i < head->slot_count; i++) {
        int number = (head->next_slot + i) % head->slot_count;
        struct slot *slot = &head->slots[number];
        if (slot->in_flight || !gw_sched_plan(head->sched, number, &slot->step)) continue;
        head->next_slot = (number + 1) % head->slot_count;
        *busy = true;
        return launch(head, slot);
    }
    return GW_OK;
}

/* No wait without a deadline: the last stage must answer a step within the peer timeout. */
static gw_err check_deadlines(const struct gw_head *head)
{
    double timeout_s = head->config.options->peer_timeout_s, now_s = gw_clock_now_s();
    for (int s = 0; s < head->slot_count; s++)
        if (head->slots[s].in_flight && now_s - head->slots[s].launched_s > 2 * timeout_s)
            return gw_fail(GW_ERR_PEER, "replica %d has not finished step %llu within %.0f s; see --peer-timeout",
                           head->config.team->place.replica, (unsigned long long)head->slots[s].step.id, 2 * timeout_s);
    return GW_OK;
}

/* ---- checkpoints ----------------------------------------------------------------------------------------------- */

static bool in_flight(const struct gw_head *head)
{
    for (int s = 0; s < head->slot_count; s++)
        if (head->slots[s].in_flight) return true;
    return false;
}

/* Once no step is in flight, all that was sent has been received: the replica can end without a message left behind. */
static gw_err end_replica(struct gw_head *head)
{
    gw_err rc = GW_OK;
    if (in_flight(head)) return GW_OK;
    gw_head_take_snapshot(head); /* with what the last steps have computed: the next launch may go on from there */
    TRY(gw_head_tell(head, GW_MSG_STOP, 0, NULL, 0));
    TRY(gw_comm_send(head->config.comm, LEADER, GW_MSG_BYE, 0, NULL, 0));
    head->stopped = true;
out:
    return rc;
}

static gw_err take_orders(struct gw_head *head)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    bool stop = false, drain = false, begin = false;
    TRY(gw_comm_poll(head->config.comm, LEADER, GW_MSG_STOP, &msg, &stop));
    gw_msg_free(&msg);
    TRY(gw_comm_poll(head->config.comm, LEADER, GW_MSG_DRAIN, &msg, &drain));
    gw_msg_free(&msg);
    TRY(gw_comm_poll(head->config.comm, LEADER, GW_MSG_SAVE, &msg, &begin));
    struct gw_seq *seq;
    for (int i = 0; begin && msg.bytes && msg.data[0] && (seq = gw_sched_at(head->sched, i)); i++) seq->saved = 0;
    if (begin) TRY(gw_head_save(head, msg.step));
    gw_msg_free(&msg);
    head->stopping |= stop;
    head->draining |= drain;
out:
    return rc;
}

gw_err gw_head_poll(struct gw_head *head, bool may_step, bool *busy, bool *stopped)
{
    gw_err rc = GW_OK;
    if (head->stopped) goto out;
    TRY(take_orders(head));
    TRY(take_requests(head, busy));
    TRY(gw_head_take_adopted(head, busy));
    TRY(collect(head, busy));
    TRY(check_deadlines(head));
    if (head->stopping) {
        TRY(end_replica(head));
    } else if (head->draining) {
        if (!head->drained && !in_flight(head)) {
            head->drained = true;
            TRY(gw_comm_send(head->config.comm, LEADER, GW_MSG_DRAINED, 0, NULL, 0));
        }
        TRY(report(head));
    } else if (may_step) {
        TRY(launch_next(head, busy));
        TRY(report(head));
    }
out:
    *stopped = head->stopped;
    return rc;
}
