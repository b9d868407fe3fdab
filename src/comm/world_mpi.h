/* What comm_mpi.c (messages) and world_mpi.c (the world's start, repair, growth and end) share. Only *_mpi.c include this. */
#ifndef GW_COMM_WORLD_MPI_H
#define GW_COMM_WORLD_MPI_H

#include "comm/comm.h"

#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>

struct send {
    MPI_Request request;
    void *memory;
    size_t bytes;
};

struct early {
    uint64_t epoch;
    struct gw_msg msg;
};

/* Ranks that a thread of this one is starting. */
struct spawn {
    pthread_t thread;
    atomic_int state; /* enum gw_spawn */
    int count, member_base;
    char *const *command;
    MPI_Comm joint; /* this rank and, after it, the new ones */
};

struct gw_comm {
    MPI_Comm world;
    int rank, size, member;
    uint64_t epoch; /* stale messages are dropped */
    double peer_timeout_s;
    struct send *sends;
    int send_count, send_capacity;
    size_t pending_bytes;
    struct early *early; /* messages of a later epoch */
    int early_count, early_capacity;
    int idle_rounds;
    bool crowded; /* as many ranks on this node as CPUs: yield at once instead of spinning */
    bool changed; /* repaired or grown since the launch */
    bool *gone;   /* [size]: said goodbye; their death is no failure */
    int acked;    /* failures that ULFM was told to ignore */
    struct spawn spawn;
    double looked_s, beaten_s;
    double *heard_s; /* [size]: last sign of life */
};

/* GW_ERR_LOST when the code says that a member is dead or the world revoked, else GW_ERR_MPI. */
GW_CHECK gw_err gw_mpi_failed(const char *what, int code);

#define MPI_TRY(call)                                                                                                  \
    do {                                                                                                               \
        int mpi_code = (call);                                                                                         \
        if (mpi_code != MPI_SUCCESS) {                                                                                 \
            rc = gw_mpi_failed(#call, mpi_code);                                                                       \
            goto out;                                                                                                  \
        }                                                                                                              \
    } while (0)

/* Forgets messages under way in a world that is gone. */
void gw_comm_drop_messages(struct gw_comm *comm);

#endif
