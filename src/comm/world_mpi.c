/* The world of ranks, by MPI and its fault-tolerance extension ULFM (MPIX_*): start, repair, growth, signs of life, end.
 *
 * Repair is revoke and shrink: revoking makes everyone's calls fail, so all survivors come here; shrinking agrees on who is
 * left, retrying by itself when more die meanwhile. What MPI cannot guard is waited for under an alarm: a process that has not
 * come through in time ends itself, and the supervisor starts a new launch (docs/architecture.md, recovery).
 */
#include "comm/world_mpi.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"

#include <mpi-ext.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

enum { JOIN_TAG = 77 };
static const double LOOK_EVERY_S = 0.001, BEATS_PER_TIMEOUT = 8, FINALIZE_S = 3, REPAIR_S = 5, GROW_S = 10,
                    LINGER_S = 1;

gw_err gw_mpi_failed(const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int length = 0, class = 0;
    MPI_Error_class(code, &class);
    if (class == MPIX_ERR_PROC_FAILED || class == MPIX_ERR_PROC_FAILED_PENDING || class == MPIX_ERR_REVOKED)
        return gw_fail(GW_ERR_LOST, "a member of the world was lost");
    MPI_Error_string(code, text, &length);
    return gw_fail(GW_ERR_MPI, "%s failed: %.*s", what, length, text);
}

/* ---- deadlines on what MPI may never return from --------------------------------------------------------------- */

/* At the end of a job that is safely on disk: not worth a word. */
static void just_go(int signal)
{
    (void)signal;
    _exit(0);
}

static bool supervised;

static void give_up(int signal)
{
    static const char text[] =
        "godwit: warning: repairing the world took too long; the launch is given up\n" GW_END_LAUNCH "9\n";
    (void)signal;
    size_t bytes = supervised ? sizeof text - 1 : sizeof text - 1 - sizeof GW_END_LAUNCH - 1;
    ssize_t ignored = write(STDERR_FILENO, text, bytes);
    (void)ignored;
    _exit(9);
}

static void arm_with(double seconds, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    struct itimerval timer = {
        .it_value = {.tv_sec = (time_t)seconds, .tv_usec = (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void arm(double seconds)
{
    arm_with(seconds, give_up);
}

static gw_err join(MPI_Comm local, MPI_Comm joint, int remote, int high, MPI_Comm *world);

/* ---- start and end --------------------------------------------------------------------------------------------- */

static gw_err settle(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    MPI_TRY(MPI_Comm_set_errhandler(comm->world, MPI_ERRORS_RETURN));
    MPI_TRY(MPI_Comm_rank(comm->world, &comm->rank));
    MPI_TRY(MPI_Comm_size(comm->world, &comm->size));
    comm->gone = gw_realloc(comm->gone, (size_t)comm->size, sizeof *comm->gone);
    comm->heard_s = gw_realloc(comm->heard_s, (size_t)comm->size, sizeof *comm->heard_s);
    memset(comm->gone, 0, (size_t)comm->size * sizeof *comm->gone);
    double now_s = gw_clock_now_s();
    for (int r = 0; r < comm->size; r++) comm->heard_s[r] = now_s;
    comm->acked = 0;
    comm->epoch = 0;
    comm->beaten_s = comm->looked_s = 0;
out:
    return rc;
}

gw_err gw_comm_create(double peer_timeout_s, int member_base, struct gw_comm **out)
{
    gw_err rc = GW_OK;
    int provided = 0, own = 0;
    MPI_Comm parents = MPI_COMM_NULL, joint = MPI_COMM_NULL;
    struct gw_comm *comm = gw_alloc(1, sizeof *comm);
    comm->world = MPI_COMM_NULL;
    comm->peer_timeout_s = peer_timeout_s;
    supervised = getenv(GW_SUPERVISED) != NULL;
    arm_with(4 * peer_timeout_s, member_base > 0 ? just_go : give_up); /* a spawned rank goes without a word */
    /* started without a launcher: there is nobody to talk to, and opening the transports takes a second */
    if (!getenv("PMIX_RANK")) {
        setenv("OMPI_MCA_pml", "ob1", 0);
        setenv("OMPI_MCA_btl", "self", 0);
    }
    MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    MPI_TRY(MPI_Comm_rank(MPI_COMM_WORLD, &own));
    comm->member = member_base + own;
    MPI_TRY(MPI_Comm_get_parent(&parents));
    if (parents != MPI_COMM_NULL) {
        MPI_Comm_set_errhandler(parents, MPI_ERRORS_RETURN);
        MPI_TRY(MPI_Intercomm_merge(parents, 1, &joint));
        MPI_Comm_set_errhandler(joint, MPI_ERRORS_RETURN);
        TRY(join(MPI_COMM_WORLD, joint, 0, 1, &comm->world));
        comm->changed = true;
    } else {
        MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world));
    }
    TRY(settle(comm));
    *out = comm;
    comm = NULL;
out:
    if (rc != GW_OK && parents != MPI_COMM_NULL) _exit(0); /* whoever wanted this rank is gone, or does without it */
    arm(0);
    free(comm);
    return rc;
}

gw_err gw_comm_destroy(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    if (!comm) return GW_OK;
    TRY(gw_comm_flush(comm));
    arm_with(FINALIZE_S, just_go); /* it waits for ever for one that dies now */
    MPI_TRY(MPI_Finalize());
    arm(0);
    free(comm->sends);
    free(comm->early);
    free(comm->gone);
    free(comm->heard_s);
    free(comm);
out:
    return rc;
}

_Noreturn void gw_comm_abort(struct gw_comm *comm, int exit_code)
{
    if (getenv(GW_SUPERVISED)) fprintf(stderr, "%s%d\n", GW_END_LAUNCH, exit_code);
    arm(2);
    MPI_Abort(comm ? comm->world : MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

bool gw_comm_changed(const struct gw_comm *comm)
{
    return comm->changed;
}

/* ---- losses ---------------------------------------------------------------------------------------------------- */

/* Are all that failed among those that have said goodbye? */
static gw_err all_expected(const struct gw_comm *comm, MPI_Group failed, int count, bool *expected)
{
    gw_err rc = GW_OK;
    MPI_Group world = MPI_GROUP_NULL;
    int *numbers = gw_alloc((size_t)count * 2, sizeof(int));
    for (int i = 0; i < count; i++) numbers[i] = i;
    *expected = true;
    MPI_TRY(MPI_Comm_group(comm->world, &world));
    MPI_TRY(MPI_Group_translate_ranks(failed, count, numbers, world, numbers + count));
    for (int i = 0; i < count; i++) *expected &= comm->gone[numbers[count + i]];
out:
    if (world != MPI_GROUP_NULL) MPI_Group_free(&world);
    free(numbers);
    return rc;
}

/* News of losses come with MPI's progress only. A probe makes some when it finds nothing: so it asks for what nobody sends. */
static void make_progress(struct gw_comm *comm)
{
    int flag;
    MPI_Iprobe(MPI_ANY_SOURCE, GW_MSG_KINDS, comm->world, &flag, MPI_STATUS_IGNORE);
}

gw_err gw_comm_look(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    MPI_Group failed = MPI_GROUP_NULL;
    double now_s = gw_clock_now_s();
    if (now_s - comm->looked_s < LOOK_EVERY_S) return GW_OK;
    comm->looked_s = now_s;
    int revoked = 0, count = 0;
    bool expected = true;
    make_progress(comm);
    MPI_TRY(MPIX_Comm_is_revoked(comm->world, &revoked));
    if (revoked) return gw_fail(GW_ERR_LOST, "the world was revoked");
    MPI_TRY(MPIX_Comm_get_failed(comm->world, &failed));
    MPI_TRY(MPI_Group_size(failed, &count));
    if (count > comm->acked) {
        TRY(all_expected(comm, failed, count, &expected));
        if (!expected) FAIL(GW_ERR_LOST, "a member of the world was lost");
        MPI_TRY(MPIX_Comm_ack_failed(comm->world, count, &comm->acked));
    }
out:
    if (failed != MPI_GROUP_NULL) MPI_Group_free(&failed);
    return rc;
}

void gw_comm_let_go(struct gw_comm *comm, int rank)
{
    comm->gone[rank] = true;
    comm->changed = true;
}

void gw_comm_linger(struct gw_comm *comm)
{
    double deadline_s = gw_clock_now_s() + GROW_S; /* MPI may hang in a start, for ever */
    while (atomic_load(&comm->spawn.state) == GW_SPAWN_STARTING && gw_clock_now_s() < deadline_s) usleep(500);
    deadline_s = gw_clock_now_s() + LINGER_S;
    for (int failed = 0; failed < comm->size - 1 && gw_clock_now_s() < deadline_s;) {
        MPI_Group group = MPI_GROUP_NULL;
        make_progress(comm);
        if (MPIX_Comm_get_failed(comm->world, &group) != MPI_SUCCESS) return;
        MPI_Group_size(group, &failed);
        MPI_Group_free(&group);
        gw_comm_idle(comm, false);
    }
}

gw_err gw_comm_repair(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    MPI_Comm next = MPI_COMM_NULL;
    arm(comm->peer_timeout_s < REPAIR_S ? comm->peer_timeout_s : REPAIR_S);
    MPIX_Comm_revoke(comm->world);
    gw_comm_drop_messages(comm);
    MPI_TRY(MPIX_Comm_shrink(comm->world, &next));
    comm->world = next; /* the revoked one is left to MPI: freeing it is collective */
    comm->changed = true;
    TRY(settle(comm));
out:
    arm(0);
    return rc;
}

/* ---- growth ---------------------------------------------------------------------------------------------------- */

static gw_err start_ranks(struct gw_comm *comm, char **argv, const char *self)
{
    gw_err rc = GW_OK;
    MPI_Comm children = MPI_COMM_NULL;
    MPI_Info info = MPI_INFO_NULL;
    int *codes = gw_alloc((size_t)comm->spawn.count, sizeof(int));
    MPI_TRY(MPI_Info_create(&info));
    MPI_TRY(MPI_Info_set(info, "map_by", ":OVERSUBSCRIBE"));
    MPI_TRY(MPI_Info_set(info, "bind_to", "none"));
    MPI_TRY(MPI_Comm_spawn(self, argv, comm->spawn.count, info, 0, MPI_COMM_SELF, &children, codes));
    MPI_Comm_set_errhandler(children, MPI_ERRORS_RETURN);
    MPI_TRY(MPI_Intercomm_merge(children, 0, &comm->spawn.joint));
    MPI_Comm_set_errhandler(comm->spawn.joint, MPI_ERRORS_RETURN);
out:
    if (info != MPI_INFO_NULL) MPI_Info_free(&info);
    free(codes);
    return rc;
}

/* The thread that starts ranks: MPI takes a tenth of a second for it, which nobody else need wait for. */
static void *run_spawn(void *arg)
{
    struct gw_comm *comm = arg;
    char self[4096], base[] = "--member", number[32];
    int words = 0;
    while (comm->spawn.command[words]) words++;
    char **argv = gw_alloc((size_t)words + 3, sizeof *argv);
    memcpy(argv, comm->spawn.command, (size_t)words * sizeof *argv);
    snprintf(number, sizeof number, "%d", comm->spawn.member_base);
    argv[words] = base;
    argv[words + 1] = number;
    bool started = gw_process_program(self, sizeof self) == GW_OK && start_ranks(comm, argv, self) == GW_OK;
    if (!started) gw_warn("more ranks could not be started: %s", gw_error_detail());
    free(argv);
    atomic_store(&comm->spawn.state, started ? GW_SPAWN_WAITING : GW_SPAWN_FAILED);
    return NULL;
}

void gw_comm_spawn(struct gw_comm *comm, int count, int member_base, char *const *command)
{
    if (atomic_load(&comm->spawn.state) != GW_SPAWN_NONE) return;
    comm->spawn.count = count;
    comm->spawn.member_base = member_base;
    comm->spawn.command = command;
    comm->changed = true; /* they are in the way of an orderly end */
    atomic_store(&comm->spawn.state, GW_SPAWN_STARTING);
    if (pthread_create(&comm->spawn.thread, NULL, run_spawn, comm)) atomic_store(&comm->spawn.state, GW_SPAWN_FAILED);
    else pthread_detach(comm->spawn.thread);
}

enum gw_spawn gw_comm_spawned(struct gw_comm *comm)
{
    int state = atomic_load(&comm->spawn.state);
    if (state == GW_SPAWN_FAILED) atomic_store(&comm->spawn.state, GW_SPAWN_NONE);
    return (enum gw_spawn)state;
}

/* Both sides: `local` is the world, or the new ranks; its rank 0 and rank `remote` of `joint`, the other's rank 0, know each other. */
static gw_err join(MPI_Comm local, MPI_Comm joint, int remote, int high, MPI_Comm *world)
{
    gw_err rc = GW_OK;
    MPI_Comm between = MPI_COMM_NULL;
    MPI_TRY(MPI_Intercomm_create(local, 0, joint, remote, JOIN_TAG, &between));
    MPI_Comm_set_errhandler(between, MPI_ERRORS_RETURN);
    MPI_TRY(MPI_Intercomm_merge(between, high, world));
out:
    return rc;
}

gw_err gw_comm_grow(struct gw_comm *comm)
{
    gw_err rc = GW_OK;
    MPI_Comm next = MPI_COMM_NULL;
    arm(comm->peer_timeout_s < GROW_S ? comm->peer_timeout_s : GROW_S);
    gw_comm_drop_messages(comm);
    comm->changed = true;
    rc = join(comm->world, comm->spawn.joint, 1, 0, &next);
    if (comm->rank == 0)
        atomic_store(&comm->spawn.state, GW_SPAWN_NONE); /* a second attempt would not find them as they were */
    TRY(rc);
    comm->world = next;
    TRY(settle(comm));
out:
    arm(0);
    return rc;
}

/* ---- signs of life --------------------------------------------------------------------------------------------- */

/* Takes the beats that have come. Their loss is no matter: an error here shows again where it counts. */
static void hear(struct gw_comm *comm, double now_s)
{
    struct gw_msg msg;
    bool got = true;
    while (gw_comm_poll(comm, -1, GW_MSG_BEAT, &msg, &got) == GW_OK && got) {
        comm->heard_s[msg.source] = now_s;
        gw_msg_free(&msg);
    }
}

void gw_comm_beat(struct gw_comm *comm)
{
    double now_s = gw_clock_now_s();
    if (comm->size < 2 || now_s - comm->beaten_s < comm->peer_timeout_s / BEATS_PER_TIMEOUT) return;
    comm->beaten_s = now_s;
    hear(comm, now_s);
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank || comm->gone[r] || (comm->rank && r)) continue;
        if (gw_comm_send(comm, r, GW_MSG_BEAT, 0, NULL, 0) != GW_OK) return;
    }
}

int gw_comm_silent(const struct gw_comm *comm)
{
    /* Who was silent itself (stopped and continued) must hear the others again before it judges. */
    double now_s = gw_clock_now_s();
    if (comm->size < 2 || now_s - comm->beaten_s > comm->peer_timeout_s / 2) return -1;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank || comm->gone[r] || (comm->rank && r)) continue;
        if (now_s - comm->heard_s[r] > comm->peer_timeout_s) return r;
    }
    return -1;
}
