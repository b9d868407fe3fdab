/* Fuzz target: what a stranger, or somebody who meddles with a connection, may send to a link (node/link.h). The first byte says whether the bytes behind it come to
 * a server before it trusts anybody ('s'), to a client that waits for its server ('c'), or to a server after a sound handshake ('t'), where no
 * frame may come out of them. */
#include "node/link.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { ROUNDS = 8 };

static const uint8_t secret[GW_SECRET_BYTES] = {1, 2, 3};

/* A client over the loopback, and our end of its connection. */
static struct gw_link *connect_client(int *fd)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof here;
    struct gw_link *link = NULL;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    GW_ASSERT(!bind(listener, (struct sockaddr *)&here, bytes) && !listen(listener, 1) &&
              !getsockname(listener, (struct sockaddr *)&here, &bytes));
    GW_ASSERT(gw_link_connect("127.0.0.1", ntohs(here.sin_port), secret, "n1", &link) == GW_OK);
    *fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    GW_ASSERT(*fd >= 0);
    close(listener);
    return link;
}

static struct gw_link *accept_server(int *fd)
{
    int ends[2];
    GW_ASSERT(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends));
    *fd = ends[1];
    return gw_link_accept(ends[0], secret, "n1");
}

static void carry(int from, int to)
{
    uint8_t data[256];
    ssize_t got = recv(from, data, sizeof data, MSG_DONTWAIT);
    if (got > 0) GW_ASSERT(send(to, data, (size_t)got, MSG_NOSIGNAL) == got);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gw_link *server = NULL, *client = NULL;
    int to_server = -1, to_client = -1;
    struct gw_frame frame;
    if (!bytes) return 0;
    char who = (char)*data;
    if (who != 's') client = connect_client(&to_client);
    if (who != 'c') server = accept_server(&to_server);
    for (int i = 0; who != 's' && who != 'c' && i < 1000 && !gw_link_trusted(client); i++) {
        gw_link_poll(client);
        carry(to_client, to_server);
        gw_link_poll(server);
        carry(to_server, to_client);
    }
    struct gw_link *link = who == 'c' ? client : server;
    int fd = who == 'c' ? to_client : to_server;
    if (bytes > 1 && send(fd, data + 1, bytes - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) goto out;
    for (int i = 0; i < ROUNDS && gw_link_poll(link); i++) GW_ASSERT(!gw_link_next(link, &frame));
    GW_ASSERT(!gw_link_next(link, &frame));
    if (who == 's' || who == 'c') GW_ASSERT(!gw_link_trusted(link));
out:
    gw_link_destroy(server);
    gw_link_destroy(client);
    if (to_server >= 0) close(to_server);
    if (to_client >= 0) close(to_client);
    return 0;
}
