/* See server.h. */
#include "node/server.h"

#include "base/log.h"
#include "node/daemon.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINKS_MOST = 128, PENDING_MOST = 32, PENDING_MOST_EACH = 8, RELAY_BYTES = 1 << 14, BACKLOG_BYTES = 1 << 20 };
static const double PENDING_S = 2;

/* A connection, and the daemon that it has asked for. */
struct client {
    struct gw_link *link;
    char peer[INET6_ADDRSTRLEN];
    struct gw_daemon daemon;
    struct gw_frame_job job; /* of the daemon, or of the supervisor whose connection this is */
    bool runs, supervisor;   /* runs: there is a daemon */
    bool told;               /* its end */
    bool owes_end;           /* job: an answer to GW_FRAME_END */
    struct gw_frame_job through;
};

struct gw_server {
    int fd, port;
    uint8_t secret[GW_SECRET_BYTES];
    char *identity, *scratch;
    double lease_s;
    struct client *clients;
    int count;
    int64_t term, since, least_launch; /* what may run */
    struct gw_frame_job kept;          /* a launcher of this node's own */
    bool keeps, kept_over;
    bool refuse, drained;
    double drain_s;
    int made; /* folders so far */
    struct gw_frame_job ran,
        told; /* the newest daemon that has run; what a supervisor has last been told to have ended */
};

/* ---- begin and end --------------------------------------------------------------------------------------------- */

static gw_err listen_on(const char *address, int port, int *fd, int *bound)
{
    gw_err rc = GW_OK;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    bool is_four = inet_pton(AF_INET, address, &four.sin_addr) == 1;
    struct sockaddr *at = is_four ? (struct sockaddr *)&four : (struct sockaddr *)&six;
    socklen_t bytes = is_four ? sizeof four : sizeof six;
    int on = 1;
    if (!is_four && inet_pton(AF_INET6, address, &six.sin6_addr) != 1)
        return gw_fail(GW_ERR_USAGE, "--listen: '%s' is no address", address);
    *fd = socket(at->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0) FAIL(GW_ERR_IO, "cannot make a socket: %s", strerror(errno));
    setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(*fd, at, bytes) || listen(*fd, PENDING_MOST))
        FAIL(GW_ERR_IO, "cannot listen on %s port %d: %s", address, port, strerror(errno));
    if (getsockname(*fd, at, &bytes)) FAIL(GW_ERR_IO, "cannot tell the port: %s", strerror(errno));
    *bound = ntohs(is_four ? four.sin_port : six.sin6_port);
out:
    return rc;
}

gw_err gw_server_create(const char *address, int port, const uint8_t secret[GW_SECRET_BYTES], const char *identity,
                        const char *scratch, double lease_s, struct gw_server **out)
{
    gw_err rc = GW_OK;
    struct gw_server *server = gw_alloc(1, sizeof *server);
    server->fd = -1;
    server->lease_s = lease_s;
    server->identity = gw_strdup(identity);
    server->scratch = gw_strdup(scratch);
    server->clients = gw_alloc(LINKS_MOST, sizeof *server->clients);
    memcpy(server->secret, secret, GW_SECRET_BYTES);
    TRY(listen_on(address, port, &server->fd, &server->port));
    *out = server;
    server = NULL;
out:
    gw_server_destroy(server);
    return rc;
}

static void drop(struct gw_server *server, int c)
{
    struct client *client = &server->clients[c];
    if (client->runs) gw_daemon_close(&client->daemon);
    gw_link_destroy(client->link);
    server->clients[c] = server->clients[--server->count];
}

void gw_server_destroy(struct gw_server *server)
{
    if (!server) return;
    gw_server_end_all(server);
    while (server->count) drop(server, 0);
    if (server->fd >= 0) close(server->fd);
    free(server->clients);
    free(server->identity);
    free(server->scratch);
    memset(server->secret, 0, sizeof server->secret);
    free(server);
}

int gw_server_port(const struct gw_server *server)
{
    return server->port;
}

/* ---- letting in ------------------------------------------------------------------------------------------------ */

static void drop_oldest_pending(struct gw_server *server, const char *peer)
{
    int oldest = -1;
    for (int c = 0; c < server->count; c++) {
        if (gw_link_trusted(server->clients[c].link) || (peer && strcmp(peer, server->clients[c].peer))) continue;
        if (server->clients[c].runs) continue;
        if (oldest < 0 || gw_link_age_s(server->clients[c].link) > gw_link_age_s(server->clients[oldest].link))
            oldest = c;
    }
    if (oldest >= 0) drop(server, oldest);
}

static void admit(struct gw_server *server, int fd, const char *peer)
{
    int pending = 0, same = 0;
    for (int c = 0; c < server->count; c++) {
        if (gw_link_trusted(server->clients[c].link)) continue;
        pending++;
        same += !strcmp(peer, server->clients[c].peer);
    }
    if (same >= PENDING_MOST_EACH) drop_oldest_pending(server, peer);
    else if (pending >= PENDING_MOST) drop_oldest_pending(server, NULL);
    if (server->count == LINKS_MOST) {
        close(fd);
        return;
    }
    struct client *client = &server->clients[server->count++];
    *client = (struct client){.link = gw_link_accept(fd, server->secret, server->identity)};
    snprintf(client->peer, sizeof client->peer, "%s", peer);
}

static void accept_all(struct gw_server *server)
{
    for (int tries = 0; tries < PENDING_MOST; tries++) {
        struct sockaddr_storage from;
        socklen_t bytes = sizeof from;
        char peer[INET6_ADDRSTRLEN] = "";
        int fd = accept4(server->fd, (struct sockaddr *)&from, &bytes, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) return;
        if (from.ss_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)&from)->sin_addr, peer, sizeof peer);
        else inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&from)->sin6_addr, peer, sizeof peer);
        admit(server, fd, peer);
    }
}

/* ---- daemons --------------------------------------------------------------------------------------------------- */

static void answer_exit(struct client *client, const char *why, int exit_code)
{
    uint32_t code = (uint32_t)exit_code;
    if (why) gw_link_send(client->link, GW_FRAME_ERR, why, strlen(why));
    gw_link_send(client->link, GW_FRAME_EXIT, &code, sizeof code);
    client->told = true;
}

static bool is_over(const struct gw_server *server, const struct gw_frame_job *job)
{
    return job->term < server->since || (job->term <= server->term && job->launch < server->least_launch);
}

static void execute(struct gw_server *server, struct client *client, const struct gw_frame *frame)
{
    if (client->runs || client->told || frame->bytes <= sizeof client->job) return;
    memcpy(&client->job, frame->data, sizeof client->job);
    if (server->refuse || is_over(server, &client->job)) {
        answer_exit(client, "godwit: warning: a node takes part no longer, or the launch is over\n", 1);
        return;
    }
    char *command = gw_strndup((const char *)frame->data + sizeof client->job, frame->bytes - sizeof client->job);
    char *scratch = gw_asprintf("%s/%lld.%lld.%d", server->scratch, (long long)client->job.term,
                                (long long)client->job.launch, server->made++);
    if (gw_daemon_start(command, scratch, &client->daemon) == GW_OK) {
        client->runs = true;
        server->ran = client->job;
    } else {
        gw_warn("%s", gw_error_detail());
        answer_exit(client, NULL, 1);
    }
    free(scratch);
    free(command);
}

static void relay(struct client *client, int *fd, enum gw_frame_kind kind)
{
    char data[RELAY_BYTES];
    while (*fd >= 0 && gw_link_unsent_bytes(client->link) < BACKLOG_BYTES) {
        ssize_t got = read(*fd, data, sizeof data);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            close(*fd);
            *fd = -1;
            return;
        }
        gw_link_send(client->link, kind, data, (size_t)got);
    }
}

static void look_after(struct gw_server *server, struct client *client)
{
    if (!client->runs) return;
    if (is_over(server, &client->job)) gw_daemon_end(&client->daemon);
    bool ended = gw_daemon_poll(&client->daemon);
    relay(client, &client->daemon.out, GW_FRAME_OUT);
    relay(client, &client->daemon.err, GW_FRAME_ERR);
    if (!ended) return;
    gw_daemon_close(&client->daemon);
    client->runs = false;
    answer_exit(client, NULL, client->daemon.exit_code);
}

/* ---- frames ---------------------------------------------------------------------------------------------------- */

/* To a successor: what this node has kept running for it has ended. */
static void say_over(const struct gw_server *server, struct client *client)
{
    if (!server->kept_over || !client->supervisor || client->job.term <= server->kept.term) return;
    struct gw_frame_job over = {.term = client->job.term, .launch = server->kept.launch};
    gw_link_send(client->link, GW_FRAME_OVER, &over, sizeof over);
}

static void take_supervisor(struct gw_server *server, struct client *client, const struct gw_frame *frame)
{
    if (frame->bytes != sizeof client->job) return;
    memcpy(&client->through, frame->data, sizeof client->through);
    client->supervisor = true;
    client->job = client->through;
    int64_t term = client->through.term, since = client->through.since;
    if (term > server->term) gw_server_fence(server, term, since, 0);
    if (frame->kind == GW_FRAME_PING) {
        gw_link_send(client->link, GW_FRAME_PONG, &client->through, sizeof client->through);
        say_over(server, client);
        return;
    }
    if (term == server->term) gw_server_fence(server, term, since, client->through.launch + 1);
    client->owes_end = true;
}

static void take_frame(struct gw_server *server, struct client *client, const struct gw_frame *frame)
{
    uint32_t seconds = 0;
    switch (frame->kind) {
    case GW_FRAME_EXEC: execute(server, client, frame); break;
    case GW_FRAME_END: take_supervisor(server, client, frame); break;
    case GW_FRAME_PING:
        if (frame->bytes) take_supervisor(server, client, frame);
        else gw_link_send(client->link, GW_FRAME_PONG, NULL, 0);
        break;
    case GW_FRAME_DRAIN:
        if (frame->bytes == sizeof seconds) memcpy(&seconds, frame->data, sizeof seconds);
        server->drained = true;
        server->drain_s = seconds;
        gw_link_send(client->link, GW_FRAME_TAKEN, NULL, 0);
        break;
    default: break;
    }
}

static bool is_meant(const struct gw_frame_job *through, const struct gw_frame_job *job)
{
    return job->term < through->since || (job->term <= through->term && job->launch <= through->launch);
}

/* Has everything that the supervisor wants gone ended? */
static void answer_end(struct gw_server *server, struct client *client)
{
    if (!client->owes_end) return;
    for (int c = 0; c < server->count; c++)
        if (server->clients[c].runs && is_meant(&client->through, &server->clients[c].job)) return;
    if (server->keeps && is_meant(&client->through, &server->kept)) return;
    client->owes_end = false;
    server->told = client->through;
    gw_link_send(client->link, GW_FRAME_ENDED, &client->through, sizeof client->through);
}

void gw_server_poll(struct gw_server *server)
{
    accept_all(server);
    for (int c = 0; c < server->count;) {
        struct client *client = &server->clients[c];
        struct gw_frame frame;
        bool open = gw_link_poll(client->link), trusted = gw_link_trusted(client->link);
        while (gw_link_next(client->link, &frame)) take_frame(server, client, &frame);
        look_after(server, client);
        answer_end(server, client);
        if (open) open = gw_link_poll(client->link);
        if (open && !trusted) open = gw_link_age_s(client->link) < PENDING_S;
        if (open && trusted && gw_link_silent_s(client->link) > server->lease_s) open = false;
        if (open && client->told && !gw_link_unsent_bytes(client->link) && gw_link_silent_s(client->link) > PENDING_S)
            open = false;
        if (open) {
            c++;
        } else if (client->runs) { /* its connection is gone, so is its right to run */
            gw_daemon_end(&client->daemon);
            c++;
        } else {
            drop(server, c);
        }
    }
}

int gw_server_fds(const struct gw_server *server, struct pollfd *fds, int most)
{
    int count = 0;
    fds[count++] = (struct pollfd){.fd = server->fd, .events = POLLIN};
    for (int c = 0; c < server->count && count + 3 <= most; c++) {
        const struct client *client = &server->clients[c];
        if (gw_link_fd(client->link) >= 0)
            fds[count++] = (struct pollfd){.fd = gw_link_fd(client->link), .events = gw_link_events(client->link)};
        bool room = client->runs && gw_link_unsent_bytes(client->link) < BACKLOG_BYTES;
        if (room && client->daemon.out >= 0) fds[count++] = (struct pollfd){.fd = client->daemon.out, .events = POLLIN};
        if (room && client->daemon.err >= 0) fds[count++] = (struct pollfd){.fd = client->daemon.err, .events = POLLIN};
    }
    return count;
}

/* ---- what the agent wants to know and have --------------------------------------------------------------------- */

void gw_server_fence(struct gw_server *server, int64_t term, int64_t since, int64_t least_launch)
{
    if (term < server->term || (term == server->term && least_launch <= server->least_launch)) return;
    server->term = term;
    server->since = since;
    server->least_launch = least_launch;
    for (int c = 0; c < server->count; c++)
        if (server->clients[c].runs && is_over(server, &server->clients[c].job))
            gw_daemon_end(&server->clients[c].daemon);
}

void gw_server_keeps(struct gw_server *server, int64_t term, int64_t launch)
{
    server->ran = server->kept = (struct gw_frame_job){.term = term, .launch = launch};
    server->keeps = true;
    server->kept_over = false;
}

bool gw_server_may_keep(const struct gw_server *server)
{
    return !is_over(server, &server->kept);
}

void gw_server_kept_is_over(struct gw_server *server)
{
    server->keeps = false;
    server->kept_over = true;
    for (int c = 0; c < server->count; c++) say_over(server, &server->clients[c]);
}

void gw_server_end_all(struct gw_server *server)
{
    for (int c = 0; c < server->count; c++)
        if (server->clients[c].runs) gw_daemon_end(&server->clients[c].daemon);
}

int gw_server_daemons(const struct gw_server *server)
{
    int count = 0;
    for (int c = 0; c < server->count; c++) count += server->clients[c].runs;
    return count;
}

bool gw_server_ending(const struct gw_server *server)
{
    for (int c = 0; c < server->count; c++) {
        const struct client *client = &server->clients[c];
        if (client->owes_end || (client->runs && is_over(server, &client->job))) return true;
    }
    return false;
}

bool gw_server_owes_word(const struct gw_server *server)
{
    bool unsent = false;
    if (!server->ran.term || !gw_server_supervised(server)) return false;
    for (int c = 0; c < server->count; c++)
        unsent |= server->clients[c].supervisor && gw_link_unsent_bytes(server->clients[c].link) > 0;
    return unsent || !is_meant(&server->told, &server->ran);
}

void gw_server_refuse(struct gw_server *server)
{
    server->refuse = true;
}

int64_t gw_server_term(const struct gw_server *server)
{
    return server->term;
}

bool gw_server_supervised(const struct gw_server *server)
{
    for (int c = 0; c < server->count; c++)
        if (server->clients[c].supervisor && server->clients[c].job.term == server->term) return true;
    return false;
}

bool gw_server_drained(struct gw_server *server, double *seconds)
{
    bool drained = server->drained;
    *seconds = server->drain_s;
    server->drained = false;
    return drained;
}
