/* See rank.h. The roles of a rank: every one executes steps; the first of each replica is its head; rank 0 is the leader too. */
#include "job/rank.h"

#include "base/log.h"
#include "comm/comm.h"
#include "job/executor.h"
#include "job/head.h"
#include "job/leader.h"
#include "job/node.h"
#include "job/worker.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEADER = 0 };

struct rank {
    const struct gw_job_options *options;
    struct gw_comm *comm;
    struct gw_model *model;
    struct gw_layout layout;
    struct gw_place place;
    int threads, context, kv_pages;
    struct gw_executor *executor;
    struct gw_leader *leader;
    struct gw_head *head;
    struct gw_worker *worker;
};

static volatile sig_atomic_t stop_asked;

static void ask_stop(int signal)
{
    (void)signal;
    stop_asked = 1;
}

/* The launcher hands signals on to every rank; only the leader acts on them, at a step's end. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = ask_stop, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int context_of(const struct gw_job_options *o, const struct gw_model_info *info)
{
    return o->context && o->context < info->context ? o->context : info->context;
}

/* The KV budget of each rank: the option, or half of what is left of its share of the node's free memory after the weights. */
static uint64_t kv_budget(const struct rank *rank, double rank_bytes, double weight_bytes)
{
    if (rank->options->kv_bytes) return rank->options->kv_bytes;
    double left = (rank_bytes - weight_bytes) / 2;
    return left > 0 ? (uint64_t)left : 0;
}

/* All ranks come to the same layout and page count: they see the same model and options, and the least memory of any of them. */
static gw_err agree_on_layout(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    struct gw_dims dims = gw_executor_dims(rank->model);
    rank->context = context_of(o, gw_model_info(rank->model));
    int least_pages = (rank->context + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    uint64_t memory = gw_node_memory() / (uint64_t)gw_comm_local_size(rank->comm);
    TRY(gw_comm_min_u64(rank->comm, &memory));
    if (o->layout_set) {
        rank->layout = o->layout;
        if (gw_layout_ranks(rank->layout) != gw_comm_size(rank->comm))
            FAIL(GW_ERR_LAYOUT, "layout %dx%dx%d needs %d ranks but the launch has %d", rank->layout.data,
                 rank->layout.tensor, rank->layout.pipeline, gw_layout_ranks(rank->layout), gw_comm_size(rank->comm));
    } else {
        TRY(gw_layout_choose(&dims, gw_comm_size(rank->comm), (double)memory, least_pages, &rank->layout));
    }
    TRY(gw_layout_check(&dims, rank->layout));
    rank->place = gw_layout_place(rank->layout, gw_comm_rank(rank->comm));
    struct gw_shard shard = gw_layout_shard(&dims, rank->layout, rank->place.shard, rank->place.stage);
    uint64_t page_bytes = gw_shard_page_bytes(&dims, &shard);
    uint64_t budget = kv_budget(rank, (double)memory, gw_shard_weight_bytes(&dims, &shard));
    uint64_t most = (uint64_t)least_pages * (uint64_t)o->max_seqs;
    uint64_t pages = page_bytes ? budget / page_bytes : most;
    if (pages > most) pages = most;
    TRY(gw_comm_min_u64(rank->comm, &pages));
    if (pages < (uint64_t)least_pages)
        FAIL(GW_ERR_LAYOUT,
             "the KV cache of rank %d would hold %llu tokens, one sequence may have %d: give --kv-memory %lluM or "
             "more, a lower --context, or more ranks in a layout that cuts the model",
             gw_comm_rank(rank->comm), (unsigned long long)pages * GW_PAGE_TOKENS, rank->context,
             (unsigned long long)(page_bytes * (uint64_t)least_pages / 1048576 + 1));
    rank->kv_pages = (int)pages;
out:
    return rc;
}

static gw_err load(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    int local_size = gw_comm_local_size(rank->comm);
    rank->threads = o->threads;
    if (rank->threads == 0) {
        int cpus = gw_node_cpus() / local_size;
        rank->threads = cpus > 0 ? cpus : 1;
    }
    struct gw_executor_config config = {.model = rank->model,
                                        .comm = rank->comm,
                                        .layout = rank->layout,
                                        .place = rank->place,
                                        .threads = rank->threads,
                                        .local_rank = gw_comm_local_rank(rank->comm),
                                        .local_size = local_size,
                                        .kv_pages = rank->kv_pages,
                                        .max_rows = o->step_rows,
                                        .max_context = rank->context};
    TRY(gw_executor_create(&config, &rank->executor));
out:
    return rc;
}

static gw_err take_roles(struct rank *rank)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = rank->options;
    TRY(gw_leader_hello(rank->comm, LEADER));
    if (gw_comm_rank(rank->comm) == LEADER) {
        struct gw_leader_config leader = {.options = o,
                                          .model = rank->model,
                                          .comm = rank->comm,
                                          .layout = rank->layout,
                                          .kernels = gw_executor_kernels(rank->executor),
                                          .threads = rank->threads,
                                          .kv_pages = rank->kv_pages,
                                          .context = rank->context};
        TRY(gw_leader_create(&leader, &rank->leader));
    }
    if (rank->place.stage == 0 && rank->place.shard == 0) {
        struct gw_head_config head = {.options = o,
                                      .model = rank->model,
                                      .comm = rank->comm,
                                      .executor = rank->executor,
                                      .layout = rank->layout,
                                      .place = rank->place,
                                      .leader = LEADER,
                                      .context = rank->context,
                                      .kv_pages = rank->kv_pages};
        TRY(gw_head_create(&head, &rank->head));
    } else {
        rank->worker = gw_worker_create(rank->comm, rank->executor, rank->layout, rank->place, o->step_rows,
                                        gw_model_info(rank->model)->d_model);
    }
out:
    return rc;
}

static gw_err play(struct rank *rank)
{
    gw_err rc = GW_OK;
    bool stopped = false, finished = !rank->leader;
    while (!stopped || !finished) {
        bool busy = false, leader_busy = false;
        if (!finished) TRY(gw_leader_poll(rank->leader, stop_asked, &leader_busy, &finished));
        if (rank->head) TRY(gw_head_poll(rank->head, &busy, &stopped));
        else if (!stopped) TRY(gw_worker_poll(rank->worker, &busy, &stopped));
        gw_comm_idle(rank->comm, busy || leader_busy);
    }
    if (rank->leader) TRY(gw_leader_finish(rank->leader));
out:
    return rc;
}

static void leave(struct rank *rank)
{
    gw_head_destroy(rank->head);
    gw_worker_destroy(rank->worker);
    gw_leader_destroy(rank->leader);
    gw_executor_destroy(rank->executor);
    gw_model_close(rank->model);
}

gw_err gw_rank_run(const struct gw_job_options *options)
{
    gw_err rc = GW_OK;
    struct rank rank = {.options = options};
    catch_signals();
    TRY(gw_comm_create(options->peer_timeout_s, &rank.comm));
    gw_log_set_rank(gw_comm_size(rank.comm) > 1 ? gw_comm_rank(rank.comm) : -1);
    TRY(gw_model_open(options->model_path, &rank.model));
    TRY(agree_on_layout(&rank));
    TRY(load(&rank));
    TRY(take_roles(&rank));
    TRY(play(&rank));
out:
    if (rc != GW_OK && rc != GW_ERR_STOPPED) {
        gw_error("%s", gw_error_detail());
        gw_debug("at %s", gw_error_path());
        leave(&rank);
        if (!rank.comm) return rc;
        gw_comm_abort(rank.comm, gw_err_exit_code(rc));
    }
    leave(&rank);
    gw_err ended = gw_comm_destroy(rank.comm);
    return rc != GW_OK ? rc : ended;
}
