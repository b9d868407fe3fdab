/* MPI behind comm.h. This file and its siblings *_mpi.c are the only ones that include <mpi.h>.
 *
 * A message is one MPI message: header, then payload. Outstanding sends are kept in a list and reaped whenever the comm is used.
 * Receives probe first (MPI_Improbe), so no size has to be agreed on beforehand and a message can never be received by the wrong
 * call. While waiting, a rank spins for a moment and then yields, since ranks may share CPUs.
 */
#include "comm/comm.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAGIC = 0x31444757, HEADER_ROOM = 64, SPINS_BEFORE_YIELD = 200, YIELDS_BEFORE_SLEEP = 2000 };

struct header {
    uint32_t magic, kind;
    uint64_t epoch, step, bytes, checksum;
};

struct send {
    MPI_Request request;
    void *memory;
};

struct gw_comm {
    MPI_Comm world;
    int rank, size, local_rank, local_size;
    uint64_t epoch; /* of the current world; stale messages are dropped */
    double peer_timeout_s;
    struct send *sends;
    int send_count, send_capacity;
    int idle_rounds;
    bool crowded; /* more busy ranks on this node than CPUs: yield at once instead of spinning */
};

static gw_err mpi_failed(const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return gw_fail(GW_ERR_MPI, "%s failed: %.*s", what, length, text);
}

#define MPI_TRY(call)                                                                                                  \
    do {                                                                                                               \
        int mpi_code = (call);                                                                                         \
        if (mpi_code != MPI_SUCCESS) {                                                                                 \
            rc = mpi_failed(#call, mpi_code);                                                                          \
            goto out;                                                                                                  \
        }                                                                                                              \
    } while (0)

gw_err gw_comm_create(double peer_timeout_s, struct gw_comm **out)
{
    gw_err rc = GW_OK;
    int provided = 0;
    MPI_Comm node = MPI_COMM_NULL;
    struct gw_comm *comm = gw_alloc(1, sizeof *comm);
    comm->world = MPI_COMM_NULL;
    comm->peer_timeout_s = peer_timeout_s;
    MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world));
    MPI_TRY(MPI_Comm_set_errhandler(comm->world, MPI_ERRORS_RETURN));
    MPI_TRY(MPI_Comm_rank(comm->world, &comm->rank));
    MPI_TRY(MPI_Comm_size(comm->world, &comm->size));
    MPI_TRY(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
    MPI_TRY(MPI_Comm_rank(node, &comm->local_rank));
    MPI_TRY(MPI_Comm_size(node, &comm->local_size));
    cpu_set_t cpus;
    int allowed = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    comm->crowded = comm->local_size >= allowed;
    *out = comm;
    comm = NULL;
out:
    if (node != MPI_COMM_NULL) MPI_Comm_free(&node);
    free(comm);
    return rc;
}

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
        comm->sends[i] = comm->sends[--comm->send_count];
    }
out:
    return rc;
}

gw_err gw_comm_destroy(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    if (!comm) return GW_OK;
    double deadline_s = gw_clock_now_s() + comm->peer_timeout_s;
    while (comm->send_count) {
        TRY(reap_sends(comm));
        if (gw_clock_now_s() > deadline_s)
            FAIL(GW_ERR_TIMEOUT, "%d messages were not taken by their peers within %.0f s", comm->send_count,
                 comm->peer_timeout_s);
        gw_comm_idle(comm, false);
    }
    MPI_TRY(MPI_Comm_free(&comm->world));
    MPI_TRY(MPI_Finalize());
    free(comm->sends);
    free(comm);
out:
    return rc;
}

_Noreturn void gw_comm_abort(struct gw_comm *comm, int exit_code)
{
    MPI_Abort(comm ? comm->world : MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

int gw_comm_rank(const struct gw_comm *comm)
{
    return comm->rank;
}

int gw_comm_size(const struct gw_comm *comm)
{
    return comm->size;
}

int gw_comm_local_rank(const struct gw_comm *comm)
{
    return comm->local_rank;
}

int gw_comm_local_size(const struct gw_comm *comm)
{
    return comm->local_size;
}

void gw_comm_idle(struct gw_comm *comm, bool busy)
{
    if (busy) {
        comm->idle_rounds = 0;
        return;
    }
    comm->idle_rounds++;
    if (comm->idle_rounds > YIELDS_BEFORE_SLEEP) {
        struct timespec pause = {.tv_nsec = 50000};
        nanosleep(&pause, NULL);
    } else if (comm->crowded || comm->idle_rounds > SPINS_BEFORE_YIELD) {
        sched_yield();
    }
}

static void *message_memory(size_t payload_bytes)
{
    void *memory = NULL;
    size_t bytes = HEADER_ROOM + payload_bytes;
    GW_ASSERT(posix_memalign(&memory, 64, (bytes + 63) / 64 * 64) == 0);
    return memory;
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

gw_err gw_comm_poll(struct gw_comm *comm, int from, enum gw_msg_kind kind, struct gw_msg *msg, bool *got)
{
    gw_err rc = GW_OK;
    uint8_t *memory = NULL;
    *got = false;
    for (;;) {
        int there = 0, received = 0;
        MPI_Message message;
        MPI_Status status;
        MPI_TRY(MPI_Improbe(from < 0 ? MPI_ANY_SOURCE : from, (int)kind, comm->world, &there, &message, &status));
        if (!there) break;
        MPI_TRY(MPI_Get_count(&status, MPI_BYTE, &received));
        memory = message_memory(received > HEADER_ROOM ? (size_t)received - HEADER_ROOM : 0);
        MPI_TRY(MPI_Mrecv(memory, received, MPI_BYTE, &message, &status));
        struct header header;
        memcpy(&header, memory, sizeof header);
        *msg = (struct gw_msg){.source = status.MPI_SOURCE,
                               .kind = kind,
                               .step = header.step,
                               .data = memory + HEADER_ROOM,
                               .bytes = received > HEADER_ROOM ? (size_t)received - HEADER_ROOM : 0,
                               .memory = memory};
        TRY(check_header(comm, &header, msg, received));
        if (header.epoch == comm->epoch) {
            memory = NULL;
            *got = true;
            break;
        }
        free(memory); /* a message of a world that is gone */
        memory = NULL;
    }
    TRY(reap_sends(comm));
out:
    free(memory);
    return rc;
}

gw_err gw_comm_wait(struct gw_comm *comm, int from, enum gw_msg_kind kind, int64_t step, struct gw_msg *msg)
{
    gw_err rc = GW_OK;
    bool got = false;
    double deadline_s = 0;
    *msg = (struct gw_msg){0};
    for (int round = 0;; round++) {
        TRY(gw_comm_poll(comm, from, kind, msg, &got));
        gw_comm_idle(comm, got);
        if (got) break;
        if (round % 256) continue; /* the clock is read now and then only */
        double now_s = gw_clock_now_s();
        if (deadline_s == 0) deadline_s = now_s + comm->peer_timeout_s;
        if (now_s > deadline_s)
            FAIL(GW_ERR_PEER,
                 "rank %d has not heard from rank %d for %.0f s (message kind %d, step %lld); see --peer-timeout",
                 comm->rank, from, comm->peer_timeout_s, (int)kind, (long long)step);
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

void gw_msg_free(struct gw_msg *msg)
{
    free(msg->memory);
    *msg = (struct gw_msg){0};
}

gw_err gw_comm_min_u64(struct gw_comm *comm, uint64_t *value)
{
    gw_err rc = GW_OK;
    uint64_t own = *value;
    MPI_TRY(MPI_Allreduce(&own, value, 1, MPI_UINT64_T, MPI_MIN, comm->world));
out:
    return rc;
}
