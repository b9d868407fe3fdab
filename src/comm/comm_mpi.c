/* MPI behind comm.h: messages. This file and its siblings *_mpi.c are the only ones that include <mpi.h>. How the world changes is in
 * world_mpi.c.
 *
 * A message is one MPI message: header, then payload. Outstanding sends are kept in a list and reaped whenever the comm is used.
 * Receives probe first (MPI_Improbe), so no size has to be agreed on beforehand and a message can never be received by the wrong
 * call. While waiting, a rank spins for a moment and then yields, since ranks may share CPUs.
 */
#include "comm/comm.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"

#include "comm/world_mpi.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAGIC = 0x31444757, HEADER_ROOM = 64, SPINS_BEFORE_YIELD = 200, YIELDS_BEFORE_SLEEP = 2000 };

struct header {
    uint32_t magic, kind;
    uint64_t epoch, step, bytes, checksum;
};

/* Frees what finished sends kept. */
static gw_err reap_sends(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    for (int i = 0; i < comm->send_count;) {
        int done = 0;
        MPI_TRY(MPI_Test(&comm->sends[i].request, &done, MPI_STATUS_IGNORE));
        if (!done) {
            i++;
            continue;
        }
        free(comm->sends[i].memory);
        comm->pending_bytes -= comm->sends[i].bytes;
        comm->sends[i] = comm->sends[--comm->send_count];
    }
out:
    return rc;
}

gw_err gw_comm_flush(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    double deadline_s = gw_clock_now_s() + comm->peer_timeout_s;
    while (comm->send_count) {
        TRY(reap_sends(comm));
        if (gw_clock_now_s() > deadline_s)
            FAIL(GW_ERR_TIMEOUT, "%d messages were not taken by their peers within %.0f s", comm->send_count,
                 comm->peer_timeout_s);
        gw_comm_idle(comm, false);
    }
out:
    return rc;
}

/* What was under way in a world that is gone. A send that MPI still holds keeps its memory: there is no safe moment to free it. */
void gw_comm_drop_messages(struct gw_comm *comm)
{
    for (int i = 0; i < comm->send_count; i++) {
        int done = 0;
        MPI_Test(&comm->sends[i].request, &done, MPI_STATUS_IGNORE);
        if (done) free(comm->sends[i].memory);
    }
    comm->send_count = 0;
    comm->pending_bytes = 0;
    for (int i = 0; i < comm->early_count; i++) gw_msg_free(&comm->early[i].msg);
    comm->early_count = 0;
}

int gw_comm_rank(const struct gw_comm *comm)
{
    return comm->rank;
}

int gw_comm_size(const struct gw_comm *comm)
{
    return comm->size;
}

int gw_comm_member(const struct gw_comm *comm)
{
    return comm->member;
}

void gw_comm_set_epoch(struct gw_comm *comm, uint64_t epoch)
{
    comm->epoch = epoch;
}

uint64_t gw_comm_epoch(const struct gw_comm *comm)
{
    return comm->epoch;
}

void gw_comm_set_local(struct gw_comm *comm, int local_size)
{
    cpu_set_t cpus;
    int allowed = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    comm->crowded = local_size >= allowed;
}

bool gw_comm_idle(struct gw_comm *comm, bool busy)
{
    if (busy) {
        comm->idle_rounds = 0;
        return false;
    }
    comm->idle_rounds++;
    gw_comm_beat(comm);
    if (comm->idle_rounds > YIELDS_BEFORE_SLEEP) {
        struct timespec pause = {.tv_nsec = 50000};
        nanosleep(&pause, NULL);
        return true;
    }
    if (comm->crowded || comm->idle_rounds > SPINS_BEFORE_YIELD) sched_yield();
    return false;
}

static void *message_memory(size_t payload_bytes)
{
    return gw_alloc_lines(HEADER_ROOM + payload_bytes, 1);
}

gw_err gw_comm_send(struct gw_comm *comm, int to, enum gw_msg_kind kind, uint64_t step, const void *data, size_t bytes)
{
    gw_err rc = GW_OK;
    uint8_t *memory = message_memory(bytes);
    struct header header = {.magic = MAGIC,
                            .kind = (uint32_t)kind,
                            .epoch = comm->epoch,
                            .step = step,
                            .bytes = bytes,
                            .checksum = gw_hash64(data, bytes, step)};
    memset(memory, 0, HEADER_ROOM);
    memcpy(memory, &header, sizeof header);
    if (bytes) memcpy(memory + HEADER_ROOM, data, bytes);
    TRY(reap_sends(comm));
    if (bytes > INT32_MAX - HEADER_ROOM)
        FAIL(GW_ERR_BUG, "a message of %zu bytes is larger than MPI can send at once", bytes);
    if (comm->send_count == comm->send_capacity) {
        comm->send_capacity = comm->send_capacity ? 2 * comm->send_capacity : 64;
        comm->sends = gw_realloc(comm->sends, (size_t)comm->send_capacity, sizeof *comm->sends);
    }
    struct send *send = &comm->sends[comm->send_count];
    MPI_TRY(MPI_Isend(memory, (int)(HEADER_ROOM + bytes), MPI_BYTE, to, (int)kind, comm->world, &send->request));
    send->memory = memory;
    send->bytes = bytes;
    comm->pending_bytes += bytes;
    memory = NULL;
    comm->send_count++;
out:
    free(memory);
    return rc;
}

static gw_err check_header(const struct gw_comm *comm, const struct header *header, const struct gw_msg *msg,
                           int received)
{
    if (received < HEADER_ROOM || header->magic != MAGIC || header->kind != (uint32_t)msg->kind ||
        header->bytes != (uint64_t)received - HEADER_ROOM)
        return gw_fail(GW_ERR_PEER, "rank %d received a malformed message of %d bytes from rank %d", comm->rank,
                       received, msg->source);
    if (header->checksum != gw_hash64(msg->data, msg->bytes, header->step))
        return gw_fail(GW_ERR_PEER, "rank %d received a damaged message (kind %u, step %llu) from rank %d", comm->rank,
                       header->kind, (unsigned long long)header->step, msg->source);
    return GW_OK;
}

/* A message of a plan that this rank has not come to yet. */
static void keep_early(struct gw_comm *comm, uint64_t epoch, const struct gw_msg *msg)
{
    if (comm->early_count == comm->early_capacity) {
        comm->early_capacity = comm->early_capacity ? 2 * comm->early_capacity : 16;
        comm->early = gw_realloc(comm->early, (size_t)comm->early_capacity, sizeof *comm->early);
    }
    comm->early[comm->early_count++] = (struct early){epoch, *msg};
}

static bool take_early(struct gw_comm *comm, int from, enum gw_msg_kind kind, struct gw_msg *msg)
{
    for (int i = 0; i < comm->early_count; i++) {
        struct early *early = &comm->early[i];
        if (early->epoch != comm->epoch || early->msg.kind != kind || (from >= 0 && early->msg.source != from))
            continue;
        *msg = early->msg;
        memmove(early, early + 1, (size_t)(--comm->early_count - i) * sizeof *early);
        return true;
    }
    return false;
}

gw_err gw_comm_poll(struct gw_comm *comm, int from, enum gw_msg_kind kind, struct gw_msg *msg, bool *got)
{
    gw_err rc = GW_OK;
    uint8_t *memory = NULL;
    int excused = 0;
    *got = comm->early_count && take_early(comm, from, kind, msg);
    while (!*got) {
        int there = 0, received = 0;
        MPI_Message message;
        MPI_Status status;
        int code = MPI_Improbe(from < 0 ? MPI_ANY_SOURCE : from, (int)kind, comm->world, &there, &message, &status);
        if (code != MPI_SUCCESS) {
            rc = gw_mpi_failed("MPI_Improbe", code);
            if (rc != GW_ERR_LOST || excused++) goto out;
            comm->looked_s = 0; /* one that has said goodbye? Then it is noted as such, and the others can be heard */
            TRY(gw_comm_look(comm));
            continue;
        }
        if (!there) break;
        MPI_TRY(MPI_Get_count(&status, MPI_BYTE, &received));
        memory = message_memory(received > HEADER_ROOM ? (size_t)received - HEADER_ROOM : 0);
        MPI_TRY(MPI_Mrecv(memory, received, MPI_BYTE, &message, &status));
        struct header header;
        memcpy(&header, memory, sizeof header);
        struct gw_msg in = {.source = status.MPI_SOURCE,
                            .kind = kind,
                            .step = header.step,
                            .data = memory + HEADER_ROOM,
                            .bytes = received > HEADER_ROOM ? (size_t)received - HEADER_ROOM : 0,
                            .memory = memory};
        TRY(check_header(comm, &header, &in, received));
        *got = header.epoch == comm->epoch || kind == GW_MSG_NOTICE; /* which tells of members, not of a plan */
        if (*got) *msg = in; /* and nothing otherwise: the caller owns what it gets */
        else if (header.epoch > comm->epoch) keep_early(comm, header.epoch, &in);
        else free(memory); /* of a plan that is gone */
        memory = NULL;
    }
    TRY(reap_sends(comm));
out:
    free(memory);
    return rc;
}

double gw_comm_patience_s(const struct gw_comm *comm)
{
    return 2 * comm->peer_timeout_s;
}

gw_err gw_comm_wait(struct gw_comm *comm, int from, enum gw_msg_kind kind, int64_t step, struct gw_msg *msg)
{
    gw_err rc = GW_OK;
    bool got = false;
    double deadline_s = 0;
    *msg = (struct gw_msg){0};
    for (int round = 0;; round++) {
        TRY(gw_comm_poll(comm, from, kind, msg, &got));
        bool slept = gw_comm_idle(comm, got);
        if (got) break;
        if (!slept && round % 256) continue; /* the clock is read now and then only; who sleeps may wake late */
        TRY(gw_comm_look(comm));
        double now_s = gw_clock_now_s();
        if (deadline_s == 0) deadline_s = now_s + gw_comm_patience_s(comm);
        if (now_s > deadline_s)
            FAIL(GW_ERR_PEER,
                 "rank %d has not heard from rank %d for %.0f s (message kind %d, step %lld); see --peer-timeout",
                 comm->rank, from, gw_comm_patience_s(comm), (int)kind, (long long)step);
    }
    if (step >= 0 && msg->step != (uint64_t)step) {
        uint64_t other = msg->step;
        gw_msg_free(msg);
        FAIL(GW_ERR_PEER, "rank %d expected step %lld from rank %d and received step %llu", comm->rank, (long long)step,
             from, (unsigned long long)other);
    }
out:
    return rc;
}

size_t gw_comm_pending_bytes(const struct gw_comm *comm)
{
    return comm->pending_bytes;
}

void gw_msg_free(struct gw_msg *msg)
{
    free(msg->memory);
    *msg = (struct gw_msg){0};
}
