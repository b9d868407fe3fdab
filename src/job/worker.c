/* See worker.h. */
#include "job/worker.h"

#include "comm/comm.h"

#include <stdlib.h>

struct gw_worker {
    struct gw_comm *comm;
    struct gw_executor *executor;
    const struct gw_team *team;
    struct gw_saver *saver; /* borrowed */
    int d_model;
    struct gw_step step;
    float *hidden; /* [max_rows][d_model] for the next stage */
    struct gw_drawn *drawn;
    int drawn_capacity;
    uint64_t steps;
};

struct gw_worker *gw_worker_create(struct gw_comm *comm, struct gw_executor *executor, const struct gw_team *team,
                                   struct gw_saver *saver, int max_rows, int d_model)
{
    struct gw_worker *worker = gw_alloc(1, sizeof *worker);
    *worker = (struct gw_worker){.comm = comm, .executor = executor, .team = team, .saver = saver, .d_model = d_model};
    worker->hidden = gw_alloc((size_t)max_rows * (size_t)d_model, sizeof(float));
    return worker;
}

void gw_worker_destroy(struct gw_worker *worker)
{
    if (!worker) return;
    gw_step_free(&worker->step);
    free(worker->hidden);
    free(worker->drawn);
    free(worker);
}

static gw_err finish_step(struct gw_worker *worker)
{
    gw_err rc = GW_OK;
    const struct gw_step *step = &worker->step;
    if (worker->team->place.stage < worker->team->layout.pipeline - 1)
        return gw_comm_send(worker->comm,
                            gw_team_rank(worker->team, worker->team->place.stage + 1, worker->team->place.shard),
                            GW_MSG_HIDDEN, step->id, worker->hidden,
                            (size_t)step->rows * (size_t)worker->d_model * sizeof(float));
    int count = 0;
    if (step->seq_count > worker->drawn_capacity) {
        worker->drawn_capacity = 2 * step->seq_count;
        worker->drawn = gw_realloc(worker->drawn, (size_t)worker->drawn_capacity, sizeof *worker->drawn);
    }
    TRY(gw_executor_draw(worker->executor, step, worker->drawn, &count));
    TRY(gw_comm_send(worker->comm, gw_team_rank(worker->team, 0, 0), GW_MSG_DRAWN, step->id, worker->drawn,
                     (size_t)count * sizeof *worker->drawn));
out:
    return rc;
}

static gw_err run_step(struct gw_worker *worker)
{
    gw_err rc = GW_OK;
    struct gw_msg hidden = {0};
    const struct gw_step *step = &worker->step;
    if (worker->team->place.stage > 0) {
        size_t bytes = (size_t)step->rows * (size_t)worker->d_model * sizeof(float);
        int from = gw_team_rank(worker->team, worker->team->place.stage - 1, worker->team->place.shard);
        TRY(gw_comm_wait(worker->comm, from, GW_MSG_HIDDEN, (int64_t)step->id, &hidden));
        if (hidden.bytes != bytes)
            FAIL(GW_ERR_PEER, "rank %d sent %zu bytes of hidden rows where %zu were due", from, hidden.bytes, bytes);
    }
    TRY(gw_executor_forward(worker->executor, step, GW_OUTPUTS_DRAWN, (const float *)(const void *)hidden.data,
                            worker->hidden));
    TRY(finish_step(worker));
out:
    gw_msg_free(&hidden);
    return rc;
}

uint64_t gw_worker_steps(const struct gw_worker *worker)
{
    return worker->steps;
}

gw_err gw_worker_poll(struct gw_worker *worker, bool *busy, bool *stopped)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    int head = gw_team_rank(worker->team, 0, 0);
    TRY(gw_comm_poll(worker->comm, head, GW_MSG_STEP, &msg, busy));
    if (!*busy) {
        TRY(gw_comm_poll(worker->comm, head, GW_MSG_STOP, &msg, stopped));
        goto out;
    }
    if (msg.step == GW_STEP_SAVE) {
        rc = gw_saver_save(worker->saver, worker->executor, msg.data, msg.bytes);
        goto out;
    }
    if (msg.step == GW_STEP_LOAD) {
        rc = gw_saver_load(worker->saver, worker->executor, msg.data, msg.bytes);
        goto out;
    }
    TRY(gw_step_decode(msg.data, msg.bytes, &worker->step));
    if (worker->step.rows > 0) TRY(run_step(worker));
    worker->steps++;
out:
    gw_msg_free(&msg);
    return rc;
}
