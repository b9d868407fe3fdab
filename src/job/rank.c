/* See rank.h.
 *
 * A rank lives through plans. Under a plan it executes steps in its place, is the head of its replica if it stands first there, and as rank
 * 0 leads the job. Everything happens in turns of one loop that never waits, so that a rank notices within a turn that the world has
 * changed. Then it unwinds to the loop, meets the survivors in gw_comm_repair(), says hello, and goes on under the plan that comes back.
 * What fits the new plan is kept: the whole replica if nothing of it changes, else weights and KV pages slice by slice.
 */
#include "job/rank.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "comm/comm.h"
#include "engine/speed.h"
#include "job/chaos.h"
#include "job/executor.h"
#include "job/formation.h"
#include "job/handover.h"
#include "job/head.h"
#include "job/leader.h"
#include "job/mover.h"
#include "job/notice.h"
#include "job/rehearsal.h"
#include "job/saver.h"
#include "job/snapshot.h"
#include "job/succession.h"
#include "job/worker.h"
#include "kernels/kernels.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum { LEADER = 0 };
static const double STAND_BY_S = 600, STAND_IN_S = 0.02, HAND_OVER_S = 0.5, MEASURE_S = 0.004, PACE_EVERY_S = 1;

/* A place in a plan, and what executes steps there. */
struct post {
    struct gw_team team;
    struct gw_executor *executor;
};

struct rank {
    const struct gw_job_options *options;
    struct gw_comm *comm;
    struct gw_model *model;
    struct gw_tokenizer *tokenizer;
    struct gw_chat *chat;
    struct gw_chaos *chaos;
    struct gw_dims dims;
    int context, threads;
    struct gw_hello self; /* what does not change from hello to hello */
    struct gw_rehearsal rehearsal;
    struct gw_succession own; /* this rank's context in the node's store */
    bool resumed;             /* `post` is that of own.before; until the first plan */
    struct gw_plan plan;
    bool planned, forming;
    struct post *post, *post_before; /* of this plan; of the one before, while something is moved from it */
    bool kept;                       /* post is the one before, unchanged */
    struct gw_saver *saver;
    struct gw_mover *mover;
    bool moved; /* all is in place, and the leader knows */
    struct gw_head *head;
    struct gw_worker *worker;
    struct gw_leader *leader;
    bool stopped, leave;
    uint64_t steps_before; /* under earlier plans */
    uint64_t loaded_bytes; /* of weights from the model file, and how long that took; not told yet */
    double load_s;
    double looked_s, noticed_s, formed_s, lost_wall_s;
    double paced_s; /* when the leader was last told of the pace */
};

static volatile sig_atomic_t stop_asked, notice_given;

static void on_signal(int signal)
{
    if (signal == SIGUSR2) notice_given = 1;
    else stop_asked = 1;
}

/* The launcher hands signals on to every rank. A request to stop is for the leader; a notice is this rank's own. Under a supervisor SIGTERM comes
 * from a launcher that ends the launch, and is obeyed. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    if (!getenv(GW_SUPERVISED)) sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- start ----------------------------------------------------------------------------------------------------- */

/* GODWIT_KERNELS may name several tables, as nodes of different kinds would have: each rank takes the one of its number. */
static void choose_kernels(int number)
{
    const char *names = getenv("GODWIT_KERNELS");
    int count = 1;
    for (const char *c = names; c && *c; c++) count += *c == ',';
    if (count == 1) return;
    for (number %= count; number > 0; number--) names = strchr(names, ',') + 1;
    char *own = gw_strdup(names);
    own[strcspn(own, ",")] = 0;
    setenv("GODWIT_KERNELS", own, 1);
    free(own);
}

static gw_err measure_speed(struct gw_hello *self)
{
    gw_err rc = GW_OK;
    const struct gw_kernels *kernels;
    TRY(gw_kernels_get(&kernels));
    snprintf(self->kernels, sizeof self->kernels, "%s", kernels->name);
    TRY(gw_speed_measure(1, MEASURE_S, &self->gops));
out:
    return rc;
}

/* Model, tokenizer and chat template: what needs nobody else. */
static gw_err open_files(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    TRY(gw_model_open(o->model_path, &rank->model));
    const struct gw_gguf *gguf = gw_model_gguf(rank->model);
    TRY(gw_tokenizer_create(gguf, &rank->tokenizer));
    TRY(gw_chat_create(gguf, rank->tokenizer, o->chat_template, &rank->chat));
out:
    return rc;
}

static void close_files(struct rank *rank)
{
    gw_chat_destroy(rank->chat);
    gw_tokenizer_destroy(rank->tokenizer);
    gw_model_close(rank->model);
    rank->chat = NULL;
    rank->tokenizer = NULL;
    rank->model = NULL;
}

static void *open_files_beside(void *arg)
{
    struct rank *rank = arg;
    if (open_files(rank) != GW_OK) close_files(rank); /* the main thread meets, and reports, the same error */
    return NULL;
}

/* Joins the world; files are opened meanwhile, since both take tens of milliseconds and a recovery waits for both. */
static gw_err join_world(struct rank *rank)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, open_files_beside, rank);
    gw_err rc = gw_comm_create(rank->options->peer_timeout_s, rank->options->member_base, &rank->comm);
    if (!error) pthread_join(thread, NULL);
    TRY(rc);
    gw_log_set_rank(gw_comm_size(rank->comm) > 1 ? gw_comm_rank(rank->comm) : -1);
    if (!rank->model) TRY(open_files(rank));
out:
    return rc;
}

static gw_err describe_self(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    struct utsname host;
    const struct gw_model_info *info = gw_model_info(rank->model);
    rank->dims = gw_executor_dims(rank->model);
    rank->context = o->context && o->context < info->context ? o->context : info->context;
    TRY(gw_saver_create(rank->comm, o->out_dir, rank->model, &rank->saver));
    uname(&host);
    struct gw_hello *self = &rank->self;
    self->peer = (struct gw_peer){.member = gw_comm_member(rank->comm), .pid = getpid()};
    self->peer.started = gw_process_started(getpid());
    snprintf(self->peer.host, sizeof self->peer.host, "%s", host.nodename);
    const char *node = getenv(GW_NODE_NAME);
    snprintf(self->node, sizeof self->node, "%s", node ? node : "");
    self->memory = gw_process_memory();
    self->cpus = gw_process_cpus();
    choose_kernels(self->peer.member);
    TRY(measure_speed(self));
out:
    return rc;
}

/* The next launch beside the present one: everything that takes time is done, and OUTDIR is not touched before the word comes. */
static gw_err stand_by(struct rank *rank, struct gw_job_options *options)
{
    rank->rehearsal = (struct gw_rehearsal){.options = options,
                                            .comm = rank->comm,
                                            .model = rank->model,
                                            .dims = rank->dims,
                                            .context = rank->context,
                                            .self = &rank->self,
                                            .model_key = gw_succession_model_key(options)};
    gw_rehearsal_run(&rank->rehearsal);
    const double deadline_s = gw_clock_now_s() + STAND_BY_S;
    const struct timespec turn = {.tv_nsec = 500000};
    fprintf(stderr, "%s\n", GW_STANDS_BY);
    while (!stop_asked) {
        if (gw_clock_now_s() > deadline_s)
            return gw_fail(GW_ERR_TIMEOUT, "told to stand by and not to begin for %.0f s", STAND_BY_S);
        nanosleep(&turn, NULL);
    }
    stop_asked = 0;
    options->launched_s = gw_clock_wall_s();
    rank->self.memory = gw_process_memory(); /* what was packed meanwhile lies in the store, and counts as such */
    return GW_OK;
}

static double launch_clock(const struct rank *rank)
{
    return gw_clock_wall_s() - rank->options->launched_s;
}

static void free_post(struct post *post)
{
    if (!post) return;
    gw_executor_destroy(post->executor);
    free(post->team.ranks);
    free(post);
}

/* ---- chaos and notices ----------------------------------------------------------------------------------------- */

static uint64_t steps(const struct rank *rank)
{
    uint64_t here = rank->head ? gw_head_steps(rank->head) : rank->worker ? gw_worker_steps(rank->worker) : 0;
    return rank->steps_before + here;
}

static gw_err give_notice(struct rank *rank, struct gw_notice notice)
{
    return gw_comm_send(rank->comm, LEADER, GW_MSG_NOTICE, 0, &notice, sizeof notice);
}

static gw_err provoke(struct rank *rank, enum gw_chaos_point point)
{
    gw_err rc = GW_OK;
    struct gw_chaos_action action;
    if (!rank->chaos || (!rank->planned && point != GW_CHAOS_AT_TURN)) return GW_OK;
    while (
        gw_chaos_at(rank->chaos, point, launch_clock(rank), steps(rank), gw_comm_rank(rank->comm) == LEADER, &action)) {
        gw_chaos_do(&action);
        if (action.kind == GW_CHAOS_SPAWN)
            TRY(give_notice(rank, (struct gw_notice){.member = -1, .more = action.count}));
        else if (action.kind == GW_CHAOS_NOTICE)
            TRY(give_notice(rank, (struct gw_notice){.member = action.all ? -1 : rank->self.peer.member,
                                                     .seconds = action.grace_s}));
    }
out:
    return rc;
}

static gw_err leader_at_point(void *rank, enum gw_chaos_point point)
{
    return provoke(rank, point);
}

/* This rank's own notice, and on the leader's the file that is watched. */
static gw_err take_notices(struct rank *rank)
{
    gw_err rc = GW_OK;
    struct gw_notice *notices = NULL;
    int count = 0;
    double now_s = gw_clock_now_s();
    if (notice_given) {
        notice_given = 0;
        TRY(give_notice(rank, (struct gw_notice){.member = rank->self.peer.member, .seconds = rank->options->grace_s}));
    }
    if (!rank->leader || !rank->options->notice || now_s - rank->noticed_s < 0.1) goto out;
    rank->noticed_s = now_s;
    size_t at = 0;
    for (char *path; (path = gw_notice_next_file(rank->options->notice, rank->options->out_dir, &at)); free(path)) {
        if (gw_notice_take(path, &notices, &count) != GW_OK) gw_warn("%s", gw_error_detail());
        for (int i = 0; i < count && rc == GW_OK; i++) rc = give_notice(rank, notices[i]);
        free(notices);
    }
out:
    return rc;
}

/* ---- saying hello ---------------------------------------------------------------------------------------------- */

/* Is what belongs to this rank's place there? */
static bool complete(const struct rank *rank)
{
    return rank->post && (rank->kept || !rank->mover || gw_mover_done(rank->mover));
}

/* What the rank whose context this one has would say: its place, its sequences, and their last tokens. */
static gw_err speak_for_predecessor(struct rank *rank, struct gw_hello *hello)
{
    const struct gw_hello *before = &rank->own.before;
    hello->peer.placed = hello->peer.resumed = true;
    hello->peer.before = before->peer.before;
    hello->layout = before->layout;
    hello->plan = before->plan;
    hello->kv_pages = before->kv_pages;
    hello->held = before->held;
    hello->held_count = before->held_count;
    if (!rank->own.tokens.bytes) return GW_OK;
    return gw_comm_send(rank->comm, LEADER, GW_MSG_TOKENS, 0, rank->own.tokens.data, rank->own.tokens.bytes);
}

static gw_err say_hello(struct rank *rank)
{
    gw_err rc = GW_OK;
    struct gw_hello hello = rank->self;
    struct gw_buf message = {0};
    TRY(provoke(rank, GW_CHAOS_AT_HELLO));
    rank->forming = true;
    rank->formed_s = gw_clock_now_s();
    rank->stopped = false;
    gw_log_set_rank(gw_comm_size(rank->comm) > 1 ? gw_comm_rank(rank->comm) : -1);
    if (gw_comm_rank(rank->comm) == LEADER) {
        if (!rank->leader) {
            struct gw_leader_config config = {.options = rank->options,
                                              .model = rank->model,
                                              .comm = rank->comm,
                                              .dims = rank->dims,
                                              .context = rank->context,
                                              .at_point = leader_at_point,
                                              .point_context = rank,
                                              .last = rank->planned ? &rank->plan : NULL};
            TRY(gw_leader_create(&config, &rank->leader));
        }
        if (rank->post) gw_leader_note_executor(rank->leader, gw_executor_kernels(rank->post->executor), rank->threads);
        gw_leader_note_loss(rank->leader, rank->lost_wall_s);
        gw_leader_world(rank->leader);
    }
    rank->lost_wall_s = 0;
    if (rank->head) TRY(gw_head_report(rank->head, &hello.held, &hello.held_count));
    if (rank->resumed) {
        TRY(speak_for_predecessor(rank, &hello));
    } else if (rank->planned && complete(rank)) {
        hello.peer.placed = true;
        hello.peer.before = rank->post->team.place;
        hello.layout = rank->plan.layout;
        hello.plan = rank->plan.number;
        hello.kv_pages = rank->plan.kv_pages;
    }
    gw_hello_encode(&hello, &message);
    TRY(gw_comm_send(rank->comm, LEADER, GW_MSG_HELLO, 0, message.data, message.bytes));
out:
    if (hello.peer.resumed) hello.held = NULL, hello.held_count = 0; /* borrowed */
    hello.peer.placed = false;
    gw_hello_free(&hello);
    gw_buf_free(&message);
    return rc;
}

/* ---- taking up a plan ------------------------------------------------------------------------------------------ */

static void leave_roles(struct rank *rank)
{
    rank->steps_before = steps(rank);
    gw_head_destroy(rank->head);
    gw_worker_destroy(rank->worker);
    rank->head = NULL;
    rank->worker = NULL;
}

static void seat_team(const struct gw_plan *plan, int slot, struct gw_team *team)
{
    int size = plan->layout.tensor * plan->layout.pipeline;
    team->layout = plan->layout;
    team->place = gw_layout_place(plan->layout, slot);
    for (int i = 0; i < size; i++) team->ranks[i] = gw_plan_rank(plan, team->place.replica * size + i);
}

static void beat(void *comm)
{
    gw_comm_beat(comm);
}

/* What the others have drawn is committed while this rank computes, too. */
static gw_err between_layers(void *context)
{
    struct rank *rank = context;
    return rank->leader ? gw_leader_commit(rank->leader) : GW_OK;
}

/* The executor of the post, whose team has its place. `awaited`: as in struct gw_backend_config. */
static gw_err create_executor(struct rank *rank, const struct gw_peer *self, int kv_pages, const bool *awaited,
                              bool resumed)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    int threads = o->threads ? o->threads : rank->self.cpus / (self->local_size > 0 ? self->local_size : 1);
    struct gw_executor_config config = {.model = rank->model,
                                        .comm = rank->comm,
                                        .team = &rank->post->team,
                                        .threads = threads > 0 ? threads : 1,
                                        .local_rank = self->local_rank,
                                        .local_size = self->local_size,
                                        .kv_pages = kv_pages,
                                        .max_rows = o->step_rows,
                                        .max_context = rank->context,
                                        .donor = rank->post_before ? rank->post_before->executor : NULL,
                                        .awaited = awaited,
                                        .store = rank->own.store,
                                        .model_key = rank->own.model_key,
                                        .resumed = resumed,
                                        .tick = beat,
                                        .tick_context = rank->comm,
                                        .between = between_layers,
                                        .between_context = rank};
    double began_s = gw_clock_now_s();
    TRY(gw_executor_create(&config, &rank->post->executor));
    gw_gguf_let_go(gw_model_gguf(rank->model)); /* its weights are packed now: in memory once, not twice */
    struct gw_backend *backend = gw_executor_backend(rank->post->executor);
    rank->loaded_bytes = awaited ? 0 : backend->ops->weights_made(backend);
    rank->load_s = gw_clock_now_s() - began_s;
    rank->threads = config.threads;
    if (rank->leader) gw_leader_note_executor(rank->leader, gw_executor_kernels(rank->post->executor), config.threads);
out:
    return rc;
}

static gw_err take_roles(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    struct post *post = rank->post;
    if (gw_team_is_head(&post->team)) {
        struct gw_head_config head = {.options = o,
                                      .model = rank->model,
                                      .tokenizer = rank->tokenizer,
                                      .chat = rank->chat,
                                      .comm = rank->comm,
                                      .executor = post->executor,
                                      .team = &post->team,
                                      .saver = rank->saver,
                                      .snapshot = rank->own.snapshot,
                                      .context = rank->context,
                                      .kv_pages = rank->plan.kv_pages};
        TRY(gw_head_create(&head, &rank->head));
    } else {
        rank->worker = gw_worker_create(rank->comm, post->executor, &post->team, rank->saver, o->step_rows,
                                        rank->dims.d_model);
    }
out:
    return rc;
}

static struct post *new_post(struct gw_layout layout)
{
    struct post *post = gw_alloc(1, sizeof *post);
    post->team.layout = layout;
    post->team.ranks = gw_alloc((size_t)(layout.tensor * layout.pipeline), sizeof(int));
    return post;
}

/* A new place: everything is made anew, out of what this rank held. */
static gw_err change_post(struct rank *rank, const struct gw_peer *self)
{
    gw_err rc = GW_OK;
    bool *awaited = gw_alloc((size_t)rank->dims.layers + 1, sizeof *awaited), any = false;
    gw_snapshot_unseat(rank->own.snapshot);
    leave_roles(rank);
    free_post(rank->post_before);
    rank->post_before = rank->post;
    rank->post = NULL;
    if (self->slot < 0) goto out;
    rank->post = new_post(rank->plan.layout);
    seat_team(&rank->plan, self->slot, &rank->post->team);
    for (int m = 0; m < rank->plan.move_count; m++) {
        const struct gw_move *move = &rank->plan.moves[m];
        if (move->to != gw_comm_rank(rank->comm) || move->part == GW_PART_KV) continue;
        awaited[move->part == GW_PART_OUTPUT ? rank->dims.layers : move->layer] = any = true;
    }
    TRY(create_executor(rank, self, rank->plan.kv_pages, any ? awaited : NULL, false));
    TRY(take_roles(rank));
out:
    free(awaited);
    return rc;
}

/* This rank has its place, and all that belongs to it: whoever takes its context over can go on from there. */
static void take_seat(struct rank *rank)
{
    struct gw_hello place = {.peer = rank->plan.peers[gw_comm_rank(rank->comm)],
                             .plan = rank->plan.number,
                             .layout = rank->plan.layout,
                             .kv_pages = rank->plan.kv_pages};
    place.peer.placed = true;
    place.peer.before = rank->post->team.place;
    gw_snapshot_seat(rank->own.snapshot, &place, rank->kept);
}

static gw_err take_plan(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_peer *self = &rank->plan.peers[gw_comm_rank(rank->comm)];
    gw_comm_set_epoch(rank->comm, rank->plan.number);
    gw_comm_set_local(rank->comm, self->local_size);
    rank->forming = false;
    rank->planned = true;
    gw_saver_look_again(rank->saver);
    rank->moved = false;
    rank->kept = self->slot >= 0 && rank->plan.kept[gw_layout_place(rank->plan.layout, self->slot).replica] >= 0;
    if (rank->kept) {
        seat_team(&rank->plan, self->slot, &rank->post->team);
        take_seat(rank);
        if (!rank->head && !rank->worker) TRY(take_roles(rank)); /* in place of one that is gone */
    } else {
        TRY(change_post(rank, self));
    }
    rank->resumed = false;
    gw_succession_done(&rank->own);
    struct gw_mover_config mover = {
        .comm = rank->comm, .plan = &rank->plan, .dims = rank->dims, .now = rank->post ? rank->post->executor : NULL};
    struct post *before = rank->kept ? rank->post : rank->post_before;
    mover.before = before ? before->executor : NULL;
    rank->mover = gw_mover_create(&mover);
    if (rank->head) TRY(gw_head_begin(rank->head, &rank->plan, rank->mover));
    TRY(provoke(rank, GW_CHAOS_AT_MIGRATE));
out:
    return rc;
}

/* The plan that answers this rank's hello, if it has come. */
static gw_err look_for_plan(struct rank *rank, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    struct gw_buf own = {0};
    struct gw_plan plan;
    const struct gw_plan *made = rank->leader ? gw_leader_new_plan(rank->leader) : NULL;
    if (made) {
        gw_plan_encode(made, &own);
        TRY(gw_plan_decode(own.data, own.bytes, &plan));
    } else {
        bool got = false;
        if (!rank->leader) TRY(gw_comm_poll(rank->comm, LEADER, GW_MSG_PLAN, &msg, &got));
        if (!got) goto out;
        TRY(gw_plan_decode(msg.data, msg.bytes, &plan));
    }
    *busy = true;
    gw_mover_destroy(rank->mover);
    rank->mover = NULL;
    gw_plan_free(&rank->plan);
    rank->plan = plan;
    TRY(take_plan(rank));
out:
    gw_msg_free(&msg);
    gw_buf_free(&own);
    return rc;
}

/* ---- orders of the leader -------------------------------------------------------------------------------------- */

static gw_err form_again(struct rank *rank, const struct gw_form_order *order)
{
    gw_err rc = GW_OK;
    if (order->grow > 0) {
        TRY(provoke(rank, GW_CHAOS_AT_SPAWN));
        TRY(provoke(rank, GW_CHAOS_AT_MERGE));
        rc = gw_comm_grow(rank->comm);
        if (rc != GW_OK && rc != GW_ERR_LOST) { /* the job goes on with whom it has */
            if (rank->leader) gw_warn("new ranks could not be taken in: %s", gw_error_detail());
            rc = GW_ERR_LOST;
        }
        TRY(rc);
    }
    TRY(say_hello(rank));
out:
    return rc;
}

static gw_err take_orders(struct rank *rank)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    bool got = false;
    TRY(gw_comm_poll(rank->comm, LEADER, GW_MSG_LEAVE, &msg, &got));
    for (size_t i = 0; got && i < msg.bytes / sizeof(int32_t); i++) {
        int32_t who;
        memcpy(&who, msg.data + i * sizeof who, sizeof who);
        if (who == gw_comm_rank(rank->comm)) rank->leave = true;
        else if (who > LEADER && who < gw_comm_size(rank->comm)) gw_comm_let_go(rank->comm, who);
    }
    gw_msg_free(&msg);
    TRY(gw_comm_poll(rank->comm, LEADER, GW_MSG_FORM, &msg, &got));
    if (got && msg.bytes == sizeof(struct gw_form_order)) {
        struct gw_form_order order;
        memcpy(&order, msg.data, sizeof order);
        TRY(form_again(rank, &order));
    }
out:
    gw_msg_free(&msg);
    return rc;
}

/* ---- a turn ---------------------------------------------------------------------------------------------------- */

/* A rank that is silent for too long is ended, so that the world can be repaired without it. */
static gw_err check_silence(struct rank *rank)
{
    double now_s = gw_clock_now_s();
    if (now_s - rank->looked_s < 0.1) return GW_OK;
    rank->looked_s = now_s;
    int silent = gw_comm_silent(rank->comm);
    if (silent < 0 || !rank->planned || silent >= rank->plan.peer_count) return GW_OK;
    const struct gw_peer *peer = &rank->plan.peers[silent];
    if (strncmp(peer->host, rank->self.peer.host, GW_HOST_BYTES))
        return gw_fail(GW_ERR_TIMEOUT, "rank %d on %s is silent and cannot be ended from here", silent, peer->host);
    if (gw_process_end(peer->pid, peer->started))
        gw_warn("rank %d (pid %lld) is silent for %.0f s and was ended", silent, (long long)peer->pid,
                rank->options->peer_timeout_s);
    return GW_OK;
}

static gw_err move(struct rank *rank, bool *busy)
{
    gw_err rc = GW_OK;
    if (!rank->mover || rank->moved) return GW_OK;
    TRY(gw_mover_poll(rank->mover, busy));
    if (!gw_mover_done(rank->mover) || (rank->post_before && gw_comm_pending_bytes(rank->comm) > 0)) goto out;
    TRY(provoke(rank, GW_CHAOS_AT_READY));
    free_post(rank->post_before);
    rank->post_before = NULL;
    rank->moved = true;
    if (rank->post && !rank->kept) take_seat(rank);
    gw_succession_keep(&rank->own, rank->plan.number);
    gw_rehearsal_end(&rank->rehearsal);
    struct gw_mover_stats stats = gw_mover_stats(rank->mover);
    stats.weight_bytes_loaded = rank->loaded_bytes;
    stats.load_s = rank->load_s;
    rank->loaded_bytes = 0;
    TRY(gw_comm_send(rank->comm, LEADER, GW_MSG_READY, 0, &stats, sizeof stats));
out:
    return rc;
}

static gw_err tell_pace(struct rank *rank)
{
    struct gw_pace_report pace = gw_executor_take_pace(rank->post->executor);
    rank->paced_s = gw_clock_now_s();
    return pace.steps > 0 ? gw_comm_send(rank->comm, LEADER, GW_MSG_PACE, 0, &pace, sizeof pace) : GW_OK;
}

static gw_err work(struct rank *rank, bool *busy)
{
    gw_err rc = GW_OK;
    bool may_step = rank->kept || rank->moved;
    struct gw_executor *executor = rank->post ? rank->post->executor : NULL;
    double before_s = executor ? gw_executor_took_s(executor) : 0;
    if (rank->head) TRY(gw_head_poll(rank->head, may_step, busy, &rank->stopped));
    else if (rank->worker && may_step && !rank->stopped) {
        bool executed = false;
        TRY(gw_worker_poll(rank->worker, &executed, &rank->stopped));
        *busy |= executed;
    }
    if (rank->chaos && executor)
        gw_executor_drag(executor, gw_chaos_drag(rank->chaos, gw_executor_took_s(executor) - before_s));
    if (may_step && rank->post && gw_clock_now_s() - rank->paced_s > PACE_EVERY_S) TRY(tell_pace(rank));
out:
    return rc;
}

static gw_err turn(struct rank *rank, bool *ended)
{
    gw_err rc = GW_OK;
    bool busy = false, finished = false;
    TRY(provoke(rank, GW_CHAOS_AT_TURN));
    TRY(take_notices(rank));
    TRY(gw_comm_look(rank->comm));
    TRY(check_silence(rank));
    if (rank->leader) TRY(gw_leader_poll(rank->leader, stop_asked, &busy, &finished));
    if (rank->forming) {
        TRY(look_for_plan(rank, &busy));
        if (rank->forming && gw_clock_now_s() - rank->formed_s > 5 * rank->options->peer_timeout_s)
            FAIL(GW_ERR_TIMEOUT, "no plan has come for %.0f s", 5 * rank->options->peer_timeout_s);
    }
    TRY(take_orders(rank));
    if (!rank->forming) {
        TRY(gw_saver_poll(rank->saver));
        TRY(move(rank, &busy));
        TRY(work(rank, &busy));
    }
    if (finished) {
        rc = gw_leader_finish(rank->leader);
        if (rc != GW_OK && rc != GW_ERR_STOPPED) goto out;
        gw_err told = gw_leader_dismiss(rank->leader);
        if (told != GW_OK) gw_debug("%s", gw_error_detail());
        *ended = true;
    }
    *ended |= rank->leave;
    gw_comm_idle(rank->comm, busy);
    if (!rank->post && !rank->leader && !rank->forming && !busy) usleep(1000); /* a spare is in nobody's way */
out:
    return rc;
}

/* At the end the others go as they are told to, and may be missed before this rank has read that it may go too. */
static bool may_go(struct rank *rank)
{
    struct gw_msg msg = {0};
    bool got = false;
    for (double until_s = gw_clock_now_s() + 0.02;
         rank->stopped && !rank->leader && !got && gw_clock_now_s() < until_s;)
        if (gw_comm_poll(rank->comm, LEADER, GW_MSG_LEAVE, &msg, &got) != GW_OK) got = false;
    gw_msg_free(&msg);
    return got;
}

/* ---- the context of a rank that is gone ------------------------------------------------------------------------ */

static bool has_all_pages(const struct post *post)
{
    struct gw_backend *backend = gw_executor_backend(post->executor);
    struct gw_shard shard = gw_executor_shard(post->executor);
    for (int layer = shard.layer_begin; layer < shard.layer_end; layer++)
        if (!backend->ops->kv_inherited(backend, layer)) return false;
    return true;
}

/* Stands where the rank stood whose context this one has, with its weights and KV pages as they are. */
static gw_err stand_in(struct rank *rank, double patience_s)
{
    gw_err rc = GW_OK;
    const struct gw_hello *before = &rank->own.before;
    if (rank->post || rank->post_before || !gw_succession_take(&rank->own, patience_s)) return GW_OK;
    if (gw_layout_check(&rank->dims, before->layout) != GW_OK) return GW_OK;
    rank->post = new_post(before->layout);
    rank->post->team.place = before->peer.before;
    TRY(create_executor(rank, &before->peer, before->kv_pages, NULL, true));
    rank->resumed = has_all_pages(rank->post);
    if (rank->resumed) return GW_OK;
    free_post(rank->post);
    rank->post = NULL;
out:
    return rc;
}

/* Unwound from wherever the loss showed: meets the survivors and begins again with a hello. */
static gw_err recover(struct rank *rank)
{
    gw_err rc = GW_OK;
    rank->lost_wall_s = gw_clock_wall_s();
    TRY(provoke(rank, GW_CHAOS_AT_REPAIR));
    TRY(gw_comm_repair(rank->comm));
    TRY(stand_in(rank, STAND_IN_S)); /* a spare: the store hears of a death about when MPI does */
    TRY(say_hello(rank));
out:
    return rc;
}

static gw_err live(struct rank *rank)
{
    gw_err rc = say_hello(rank);
    bool ended = false;
    while (!ended) {
        if (rc == GW_OK) rc = turn(rank, &ended);
        if (rc == GW_ERR_LOST && may_go(rank)) return GW_OK;
        if (rc == GW_ERR_LOST) rc = recover(rank);
        else if (rc != GW_OK) break;
    }
    return rc;
}

static void close_rank(struct rank *rank)
{
    gw_mover_destroy(rank->mover);
    leave_roles(rank);
    gw_saver_destroy(rank->saver);
    gw_leader_destroy(rank->leader);
    free_post(rank->post_before);
    free_post(rank->post);
    gw_rehearsal_end(&rank->rehearsal);
    gw_succession_close(&rank->own);
    gw_plan_free(&rank->plan);
    gw_chaos_destroy(rank->chaos);
    close_files(rank);
}

gw_err gw_rank_run(const struct gw_job_options *given)
{
    gw_err rc = GW_OK;
    struct gw_job_options own = *given, *options = &own;
    struct rank rank = {.options = options};
    catch_signals();
    if (options->chaos) TRY(gw_chaos_parse(options->chaos, &rank.chaos));
    TRY(join_world(&rank));
    TRY(describe_self(&rank));
    if (options->standby) TRY(stand_by(&rank, &own));
    gw_succession_open(&rank.own, options, rank.context);
    rank.self.memory += rank.own.held_bytes; /* it is there for this job */
    TRY(stand_in(&rank,
                 options->standby ? HAND_OVER_S : 0)); /* ranks of the launch that gave way may not all be gone */
    if (rank.chaos)
        gw_chaos_begin(rank.chaos, gw_comm_member(rank.comm), options->launch, options->ranks ? options->ranks : 1,
                       gw_comm_rank(rank.comm) == LEADER, launch_clock(&rank));
    TRY(live(&rank));
out:
    if (rc != GW_OK && rc != GW_ERR_STOPPED) {
        gw_error("%s", gw_error_detail());
        gw_debug("at %s", gw_error_path());
        close_rank(&rank);
        if (!rank.comm) return rc;
        gw_comm_abort(rank.comm, gw_err_exit_code(rc));
    }
    bool alone = gw_comm_size(rank.comm) == 1 && !gw_comm_changed(rank.comm), led = rank.leader != NULL;
    bool gave_way = led && gw_leader_gave_way(rank.leader);
    close_rank(&rank);
    if (gave_way)
        fprintf(stderr, "%s\n", GW_HANDED_OVER); /* the next launch need not wait for this one's last breath */
    gw_err ended = alone ? gw_comm_destroy(rank.comm) : gw_comm_flush(rank.comm);
    if (alone) return rc != GW_OK ? rc : ended;
    if (led) gw_comm_linger(rank.comm);
    _exit(gw_err_exit_code(
        rc == GW_ERR_STOPPED ? GW_OK : rc)); /* all is on disk, and MPI_Finalize may wait for one that is gone */
}
