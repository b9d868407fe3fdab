/* See rehearsal.h. */
#include "job/rehearsal.h"

#include "base/log.h"
#include "base/process.h"
#include "comm/comm.h"
#include "job/calibration.h"
#include "job/executor.h"
#include "job/planning.h"
#include "job/record.h"
#include "job/requests.h"
#include "job/speeds.h"
#include "plan/cost.h"
#include "report/status.h"
#include "store/store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LEADER = 0, LOW_PRIORITY = 10 };
static const double MEMORY_SHARE = 0.8; /* of what is free: the present launch goes on beside */

/* ---- the plan -------------------------------------------------------------------------------------------------- */

/* The places of the present launch's ranks, given to the ranks that now stand by on the same nodes, in their order. */
static void take_places(const struct gw_rehearsal *r, struct gw_hello *hellos, int count)
{
    struct gw_status status;
    struct gw_seat *seats = NULL;
    int seat_count = 0;
    if (gw_status_read(r->options->out_dir, &status) != GW_OK) return;
    struct gw_layout layout = GW_LAYOUT(status.layout[0], status.layout[1], status.layout[2]);
    if (gw_layout_check(&r->dims, layout) != GW_OK) return;
    if (gw_record_seats(r->options->out_dir, &seats, &seat_count) != GW_OK) seat_count = 0;
    for (int s = 0; s < seat_count; s++) {
        struct gw_place place = seats[s].place;
        bool sound = place.replica >= 0 && place.replica < layout.data && place.shard >= 0 &&
                     place.shard < layout.tensor && place.stage >= 0 && place.stage < layout.pipeline;
        for (int i = 0; sound && i < count; i++) {
            struct gw_hello *hello = &hellos[i];
            if (hello->peer.placed || strcmp(hello->peer.host, seats[s].host) != 0) continue;
            hello->peer.placed = true;
            hello->peer.before = place;
            hello->layout = layout;
            hello->plan = 1;
            hello->kv_pages = 1; /* fewer than any plan has, so replicas count as kept */
            break;
        }
    }
    free(seats);
}

static gw_err make_plan(const struct gw_rehearsal *r, struct gw_hello *hellos, int count, struct gw_plan *plan)
{
    struct gw_cost cost = gw_calibration_read(r->options->out_dir);
    bool *active = gw_alloc((size_t)count + 1, sizeof *active);
    for (int i = 0; i < count; i++) active[i] = true;
    take_places(r, hellos, count);
    double *speeds = gw_alloc((size_t)count + 1, sizeof *speeds);
    gw_speeds_of_ranks(hellos, count, r->options, NULL, speeds);
    struct gw_planning planning = {.options = r->options,
                                   .dims = r->dims,
                                   .context = r->context,
                                   .hellos = hellos,
                                   .active = active,
                                   .count = count,
                                   .speeds = speeds,
                                   .cost = &cost,
                                   .number = 2};
    gw_err rc = gw_planning_make(&planning, plan);
    free(speeds);
    free(active);
    return rc;
}

static gw_err lead(const struct gw_rehearsal *r, struct gw_plan *plan)
{
    gw_err rc = GW_OK;
    int count = gw_comm_size(r->comm), heard = 0;
    struct gw_msg msg = {0};
    struct gw_buf message = {0};
    struct gw_hello *hellos = gw_alloc((size_t)count, sizeof *hellos);
    for (; heard < count; heard++) {
        if (heard == LEADER) {
            hellos[heard] = *r->self;
            continue;
        }
        TRY(gw_comm_wait(r->comm, heard, GW_MSG_REHEARSE, -1, &msg));
        TRY(gw_hello_decode(msg.data, msg.bytes, &hellos[heard]));
        gw_msg_free(&msg);
    }
    if (make_plan(r, hellos, count, plan) == GW_OK) gw_plan_encode(plan, &message);
    else gw_debug("no plan to prepare for: %s", gw_error_detail());
    for (int to = 1; to < count; to++) /* an empty one says so */
        TRY(gw_comm_send(r->comm, to, GW_MSG_REHEARSE, 0, message.data, message.bytes));
out:
    for (int i = 1; i < heard; i++) gw_hello_free(&hellos[i]);
    free(hellos);
    gw_msg_free(&msg);
    gw_buf_free(&message);
    return rc;
}

static gw_err follow(const struct gw_rehearsal *r, struct gw_plan *plan)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    struct gw_buf message = {0};
    gw_hello_encode(r->self, &message);
    TRY(gw_comm_send(r->comm, LEADER, GW_MSG_REHEARSE, 0, message.data, message.bytes));
    TRY(gw_comm_wait(r->comm, LEADER, GW_MSG_REHEARSE, -1, &msg));
    if (msg.bytes) TRY(gw_plan_decode(msg.data, msg.bytes, plan));
out:
    gw_msg_free(&msg);
    gw_buf_free(&message);
    return rc;
}

/* ---- the weights ----------------------------------------------------------------------------------------------- */

struct packing {
    const struct gw_rehearsal *rehearsal;
    const struct gw_peer *self;
    struct gw_layout layout;
    gw_err rc;
};

/* On a thread of its own, so that its priority is not the rank's. The executor is let go at once: the store keeps what it has packed. */
static void *pack(void *arg)
{
    struct packing *packing = arg;
    const struct gw_rehearsal *r = packing->rehearsal;
    struct gw_executor *executor = NULL;
    int none[1] = {0}, local = packing->self->local_size > 0 ? packing->self->local_size : 1;
    int threads = r->options->threads ? r->options->threads : r->self->cpus / local;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), LOW_PRIORITY);
    struct gw_team team = {.layout = packing->layout, .ranks = none};
    team.place = gw_layout_place(packing->layout, packing->self->slot);
    struct gw_executor_config config = {.model = r->model,
                                        .comm = r->comm,
                                        .team = &team,
                                        .threads = threads > 0 ? threads : 1,
                                        .local_rank = packing->self->local_rank,
                                        .local_size = local,
                                        .kv_pages = 0,
                                        .max_rows = 1,
                                        .max_context = r->context,
                                        .store = r->store,
                                        .model_key = r->model_key};
    packing->rc = gw_executor_create(&config, &executor);
    if (packing->rc != GW_OK) gw_debug("weights are not packed beforehand: %s", gw_error_detail());
    gw_executor_destroy(executor);
    return NULL;
}

static void prepare(struct gw_rehearsal *r, const struct gw_plan *plan)
{
    const struct gw_peer *self = &plan->peers[gw_comm_rank(r->comm)];
    struct packing packing = {.rehearsal = r, .self = self, .layout = plan->layout, .rc = GW_ERR_PEER};
    pthread_t thread;
    if (self->slot < 0) return;
    struct gw_place place = gw_layout_place(plan->layout, self->slot);
    struct gw_shard shard = gw_layout_shard(&r->dims, plan->layout, place.shard, place.stage);
    double room = MEMORY_SHARE * (double)gw_process_memory() / (self->local_size > 0 ? self->local_size : 1);
    if (gw_shard_weight_bytes(&r->dims, &shard) > room) {
        gw_debug("weights are not packed beforehand: memory is short");
        return;
    }
    if (gw_store_connect(r->options->out_dir, &r->store) != GW_OK) return;
    if (pthread_create(&thread, NULL, pack, &packing)) return;
    pthread_join(thread, NULL);
    r->self->packed = packing.rc == GW_OK;
}

void gw_rehearsal_run(struct gw_rehearsal *r)
{
    struct gw_plan plan = {0};
    if (!r->options->store) return;
    bool leads = gw_comm_rank(r->comm) == LEADER;
    gw_err rc = leads ? lead(r, &plan) : follow(r, &plan);
    if (leads) gw_requests_prepare(r->options);
    if (rc != GW_OK) gw_debug("nothing is prepared: %s", gw_error_detail());
    else if (plan.peer_count == gw_comm_size(r->comm)) prepare(r, &plan);
    gw_plan_free(&plan);
}

void gw_rehearsal_end(struct gw_rehearsal *r)
{
    gw_store_close(r->store);
    r->store = NULL;
}
