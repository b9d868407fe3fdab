/* See head.h. */
#include "job/head.h"

#include "base/clock.h"
#include "batch/scheduler.h"
#include "comm/comm.h"
#include "job/answer.h"

#include <stdlib.h>
#include <string.h>

/* A micro-batch: at most one step in flight. */
struct slot {
    struct gw_step step;
    bool in_flight;
    double launched_s;
    int due;             /* shards of the last stage that have not sent their tokens yet */
    struct gw_buf drawn; /* struct gw_drawn of those that have */
};

struct gw_head {
    struct gw_head_config config;
    struct gw_tokenizer *tokenizer;
    struct gw_chat *chat;
    struct gw_answer_context answers;
    struct gw_sched *sched;
    struct slot *slots; /* [pipeline] */
    int slot_count, next_slot;
    struct gw_drawn *drawn; /* [max_seqs]: this rank's own, when the replica has one stage */
    float *hidden;          /* [step_rows][d_model], handed to the next stage */
    struct gw_buf message;  /* scratch */
    struct gw_head_report report;
    int32_t reported_wants;
    double reported_at_s;
    bool stopping, stopped;
};

gw_err gw_head_create(const struct gw_head_config *config, struct gw_head **out)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = config->options;
    const struct gw_gguf *gguf = gw_model_gguf(config->model);
    struct gw_head *head = gw_alloc(1, sizeof *head);
    head->config = *config;
    TRY(gw_tokenizer_create(gguf, &head->tokenizer));
    TRY(gw_chat_create(gguf, head->tokenizer, o->chat_template, &head->chat));
    head->answers = (struct gw_answer_context){.tokenizer = head->tokenizer,
                                               .chat = head->chat,
                                               .defaults = &o->defaults,
                                               .model_name = o->model_name,
                                               .created = o->created,
                                               .context = config->context,
                                               .vocab = gw_model_info(config->model)->vocab};
    head->slot_count = config->layout.pipeline;
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
        struct gw_seq *seq;
        for (int i = 0; (seq = gw_sched_at(head->sched, i)); i++) gw_answer_destroy(seq->user);
        gw_sched_destroy(head->sched);
    }
    for (int s = 0; head->slots && s < head->slot_count; s++) {
        gw_step_free(&head->slots[s].step);
        gw_buf_free(&head->slots[s].drawn);
    }
    free(head->slots);
    gw_chat_destroy(head->chat);
    gw_tokenizer_destroy(head->tokenizer);
    free(head->drawn);
    free(head->hidden);
    gw_buf_free(&head->message);
    free(head);
}

/* ---- towards the leader ---------------------------------------------------------------------------------------- */

static gw_err send_result(struct gw_head *head, const struct gw_result *result)
{
    gw_buf_clear(&head->message);
    gw_result_encode(result, &head->message);
    return gw_comm_send(head->config.comm, head->config.leader, GW_MSG_RESULT, 0, head->message.data,
                        head->message.bytes);
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
    return gw_comm_send(head->config.comm, head->config.leader, GW_MSG_WANT, 0, &head->report, sizeof head->report);
}

static gw_err take_line(struct gw_head *head, int64_t index, const char *line, size_t bytes)
{
    gw_err rc = GW_OK;
    struct gw_tokens prompt = {0};
    struct gw_answer *answer = NULL;
    struct gw_request_error bad = {0};
    char *custom_id = NULL;
    TRY(gw_answer_create(&head->answers, line, bytes, index, &prompt, &answer, &bad, &custom_id));
    if (bad.code) {
        TRY(send_error(head, index, custom_id, &bad));
        head->reported_wants = -1; /* its place is free again: say so */
        goto out;
    }
    struct gw_sample_params params = gw_answer_params(answer);
    gw_sched_add(head->sched, prompt.ids, (int)prompt.count, gw_answer_limit(answer), gw_answer_logprobs(answer),
                 &params, answer);
    answer = NULL;
out:
    gw_tokens_free(&prompt);
    gw_answer_destroy(answer);
    free(custom_id);
    return rc;
}

static gw_err take_requests(struct gw_head *head, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    for (bool got = true; got;) {
        TRY(gw_comm_poll(head->config.comm, head->config.leader, GW_MSG_ASSIGN, &msg, &got));
        if (!got) break;
        *busy = true;
        struct gw_reader in = {.data = msg.data, .bytes = msg.bytes};
        int64_t index;
        const char *line;
        size_t bytes;
        while (gw_assign_next(&in, &index, &line, &bytes)) {
            head->report.taken++;
            TRY(take_line(head, index, line, bytes));
        }
        if (in.failed) FAIL(GW_ERR_PEER, "an assignment of %zu bytes from the leader is malformed", msg.bytes);
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

/* ---- within the replica ---------------------------------------------------------------------------------------- */

static int first_rank_of(const struct gw_head *head)
{
    return gw_layout_rank(head->config.layout, head->config.place);
}

static int ranks_of(const struct gw_head *head)
{
    return head->config.layout.tensor * head->config.layout.pipeline;
}

static gw_err tell_replica(struct gw_head *head, enum gw_msg_kind kind, uint64_t step, const void *data, size_t bytes)
{
    gw_err rc = GW_OK;
    for (int r = 1; r < ranks_of(head); r++)
        TRY(gw_comm_send(head->config.comm, first_rank_of(head) + r, kind, step, data, bytes));
out:
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
        if (!gw_answer_push(answer, &drawn[i].result)) continue;
        TRY(send_answer(head, answer));
        gw_answer_destroy(answer);
        gw_sched_remove(head->sched, seq);
    }
out:
    return rc;
}

/* Takes one shard's tokens. Only when all have come do the sequences move on: until then a sequence must not be planned again. */
static gw_err take_shard(struct gw_head *head, struct slot *slot, const void *drawn, size_t bytes)
{
    gw_buf_add(&slot->drawn, drawn, bytes);
    if (--slot->due > 0) return GW_OK;
    slot->in_flight = false;
    gw_sched_step_done(head->sched, slot->step.slot);
    gw_err rc = take_drawn(head, (const struct gw_drawn *)(const void *)slot->drawn.data,
                           slot->drawn.bytes / sizeof(struct gw_drawn));
    gw_buf_clear(&slot->drawn);
    return rc;
}

/* Stage 0's part of a step that was just planned. */
static gw_err launch(struct gw_head *head, struct slot *slot)
{
    gw_err rc = GW_OK;
    struct gw_executor *ex = head->config.executor;
    const struct gw_layout *layout = &head->config.layout;
    int d = gw_model_info(head->config.model)->d_model, own = 0;
    gw_buf_clear(&head->message);
    gw_step_encode(&slot->step, &head->message);
    TRY(tell_replica(head, GW_MSG_STEP, slot->step.id, head->message.data, head->message.bytes));
    slot->in_flight = true;
    slot->launched_s = gw_clock_now_s();
    slot->due = layout->tensor;
    TRY(gw_executor_forward(ex, &slot->step, NULL, head->hidden));
    if (layout->pipeline > 1)
        return gw_comm_send(head->config.comm, first_rank_of(head) + layout->tensor, GW_MSG_HIDDEN, slot->step.id,
                            head->hidden, (size_t)slot->step.rows * (size_t)d * sizeof(float));
    TRY(gw_executor_draw(ex, &slot->step, head->drawn, &own));
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
        if (head->slots[s].in_flight && now_s - head->slots[s].launched_s > timeout_s)
            return gw_fail(GW_ERR_PEER, "replica %d has not finished step %llu within %.0f s; see --peer-timeout",
                           head->config.place.replica, (unsigned long long)head->slots[s].step.id, timeout_s);
    return GW_OK;
}

/* Once no step is in flight, all that was sent has been received: the replica can end without a message left behind. */
static gw_err end_replica(struct gw_head *head)
{
    gw_err rc = GW_OK;
    for (int s = 0; s < head->slot_count; s++)
        if (head->slots[s].in_flight) return GW_OK;
    TRY(tell_replica(head, GW_MSG_STOP, 0, NULL, 0));
    TRY(gw_comm_send(head->config.comm, head->config.leader, GW_MSG_BYE, 0, NULL, 0));
    head->stopped = true;
out:
    return rc;
}

gw_err gw_head_poll(struct gw_head *head, bool *busy, bool *stopped)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    bool stop = false;
    *busy = false;
    if (head->stopped) goto out;
    TRY(gw_comm_poll(head->config.comm, head->config.leader, GW_MSG_STOP, &msg, &stop));
    gw_msg_free(&msg);
    head->stopping |= stop;
    TRY(take_requests(head, busy));
    TRY(collect(head, busy));
    TRY(check_deadlines(head));
    if (head->stopping) {
        TRY(end_replica(head));
    } else {
        TRY(launch_next(head, busy));
        TRY(report(head));
    }
out:
    *stopped = head->stopped;
    return rc;
}
