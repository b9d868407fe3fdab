/* See link.h. */
#include "node/link.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint8_t MAGIC[8] = "GWNODE1";
enum { NONCE_BYTES = 32, MAC_BYTES = 16, HEAD_BYTES = 8, MOST_UNREAD = 4 * GW_FRAME_MOST_BYTES, IDENTITY_BYTES = 128 };

enum phase { CONNECTING, WANT_HELLO, WANT_NONCE, WANT_PROOF, WANT_ANSWER, TRUSTED, CLOSED };

struct direction {
    uint8_t key[GW_SECRET_BYTES];
    uint64_t number; /* of the next frame */
    struct gw_buf buf;
    size_t at; /* taken from buf */
};

struct gw_link {
    int fd;
    enum phase phase;
    bool client, refused;
    bool trusted; /* has been: what is left in the buffer then may be frames */
    uint8_t secret[GW_SECRET_BYTES];
    uint8_t nonces[2 * NONCE_BYTES]; /* the client's, the server's */
    char identity[IDENTITY_BYTES];
    struct direction in, out;
    double began_s, heard_s;
};

static struct gw_link *create(int fd, const uint8_t *secret, const char *identity, bool client)
{
    struct gw_link *link = gw_alloc(1, sizeof *link);
    int on = 1;
    link->fd = fd;
    link->client = client;
    memcpy(link->secret, secret, GW_SECRET_BYTES);
    snprintf(link->identity, sizeof link->identity, "%s", identity);
    link->began_s = link->heard_s = gw_clock_now_s();
    fcntl(fd, F_SETFL, O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return link;
}

struct gw_link *gw_link_accept(int fd, const uint8_t secret[GW_SECRET_BYTES], const char *identity)
{
    struct gw_link *link = create(fd, secret, identity, false);
    link->phase = WANT_HELLO;
    return link;
}

static void close_link(struct gw_link *link)
{
    link->phase = CLOSED;
    if (link->fd >= 0) close(link->fd);
    link->fd = -1;
}

static bool address_of(const char *text, int port, struct sockaddr_storage *storage, socklen_t *bytes)
{
    struct sockaddr_in *four = (struct sockaddr_in *)storage;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)storage;
    memset(storage, 0, sizeof *storage);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        *bytes = sizeof *four;
        return true;
    }
    if (inet_pton(AF_INET6, text, &six->sin6_addr) != 1) return false;
    six->sin6_family = AF_INET6;
    six->sin6_port = htons((uint16_t)port);
    *bytes = sizeof *six;
    return true;
}

static void say_hello(struct gw_link *link)
{
    gw_secret_random(link->nonces, NONCE_BYTES);
    gw_buf_add(&link->out.buf, MAGIC, sizeof MAGIC);
    gw_buf_add(&link->out.buf, link->nonces, NONCE_BYTES);
    link->phase = WANT_NONCE;
}

gw_err gw_link_connect(const char *address, int port, const uint8_t secret[GW_SECRET_BYTES], const char *identity,
                       struct gw_link **out)
{
    struct sockaddr_storage to;
    socklen_t bytes;
    if (!address_of(address, port, &to, &bytes)) return gw_fail(GW_ERR_INPUT, "'%s' is no address", address);
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return gw_fail(GW_ERR_IO, "cannot make a socket: %s", strerror(errno));
    struct gw_link *link = create(fd, secret, identity, true);
    link->phase = CONNECTING;
    if (connect(fd, (struct sockaddr *)&to, bytes) == 0) {
        say_hello(link);
    } else if (errno != EINPROGRESS) {
        link->refused = errno == ECONNREFUSED;
        close_link(link);
    }
    *out = link;
    return GW_OK;
}

void gw_link_destroy(struct gw_link *link)
{
    if (!link) return;
    close_link(link);
    gw_buf_free(&link->in.buf);
    gw_buf_free(&link->out.buf);
    OPENSSL_cleanse(link, sizeof *link);
    free(link);
}

/* ---- the proofs ------------------------------------------------------------------------------------------------ */

static void derive(const struct gw_link *link, const char *what, uint8_t mac[GW_SECRET_BYTES])
{
    char text[16 + 2 * NONCE_BYTES + IDENTITY_BYTES] = {0};
    GW_ASSERT(strlen(what) < 16);
    memcpy(text, what, strlen(what));
    memcpy(text + 16, link->nonces, sizeof link->nonces);
    memcpy(text + 16 + sizeof link->nonces, link->identity, strlen(link->identity));
    gw_secret_mac(link->secret, text, sizeof text, mac);
}

static void trust(struct gw_link *link)
{
    derive(link, link->client ? "server frames" : "client frames", link->in.key);
    derive(link, link->client ? "client frames" : "server frames", link->out.key);
    OPENSSL_cleanse(link->secret, sizeof link->secret);
    link->phase = TRUSTED;
    link->trusted = true;
}

/* What the phase waits for, if it has come. */
static const uint8_t *take(struct gw_link *link, size_t bytes)
{
    struct direction *in = &link->in;
    if (in->buf.bytes - in->at < bytes) return NULL;
    in->at += bytes;
    return in->buf.data + in->at - bytes;
}

/* One step on the way to trust; false: nothing more can be done now. */
static bool advance(struct gw_link *link)
{
    uint8_t mac[GW_SECRET_BYTES];
    const uint8_t *got;
    switch (link->phase) {
    case WANT_HELLO:
        if (!(got = take(link, sizeof MAGIC + NONCE_BYTES))) return false;
        if (memcmp(got, MAGIC, sizeof MAGIC)) break;
        memcpy(link->nonces, got + sizeof MAGIC, NONCE_BYTES);
        gw_secret_random(link->nonces + NONCE_BYTES, NONCE_BYTES);
        gw_buf_add(&link->out.buf, link->nonces + NONCE_BYTES, NONCE_BYTES);
        link->phase = WANT_PROOF;
        return true;
    case WANT_NONCE:
        if (!(got = take(link, NONCE_BYTES))) return false;
        memcpy(link->nonces + NONCE_BYTES, got, NONCE_BYTES);
        derive(link, "client", mac);
        gw_buf_add(&link->out.buf, mac, sizeof mac);
        link->phase = WANT_ANSWER;
        return true;
    case WANT_PROOF:
    case WANT_ANSWER:
        if (!(got = take(link, GW_SECRET_BYTES))) return false;
        derive(link, link->phase == WANT_PROOF ? "client" : "server", mac);
        if (!gw_secret_equal(got, mac, sizeof mac)) break;
        if (link->phase == WANT_PROOF) {
            derive(link, "server", mac);
            gw_buf_add(&link->out.buf, mac, sizeof mac);
        }
        trust(link);
        return false;
    default: return false;
    }
    close_link(link);
    return false;
}

/* ---- frames ---------------------------------------------------------------------------------------------------- */

static void mac_of(struct direction *direction, const uint8_t *frame, size_t bytes, uint8_t mac[GW_SECRET_BYTES])
{
    struct gw_buf text = {0};
    gw_buf_add_u64(&text, direction->number);
    gw_buf_add(&text, frame, bytes);
    gw_secret_mac(direction->key, text.data, text.bytes, mac);
    gw_buf_free(&text);
}

void gw_link_send(struct gw_link *link, enum gw_frame_kind kind, const void *data, size_t bytes)
{
    uint8_t mac[GW_SECRET_BYTES];
    struct direction *out = &link->out;
    GW_ASSERT(bytes <= GW_FRAME_MOST_BYTES);
    if (link->phase != TRUSTED) return;
    if (out->at > GW_FRAME_MOST_BYTES) {
        memmove(out->buf.data, out->buf.data + out->at, out->buf.bytes - out->at);
        out->buf.bytes -= out->at;
        out->at = 0;
    }
    size_t begin = out->buf.bytes;
    gw_buf_add_u32(&out->buf, (uint32_t)bytes);
    gw_buf_add_u32(&out->buf, kind);
    if (bytes) gw_buf_add(&out->buf, data, bytes);
    mac_of(out, out->buf.data + begin, HEAD_BYTES + bytes, mac);
    gw_buf_add(&out->buf, mac, MAC_BYTES);
    out->number++;
}

bool gw_link_next(struct gw_link *link, struct gw_frame *frame)
{
    uint8_t mac[GW_SECRET_BYTES];
    uint32_t bytes, kind;
    struct direction *in = &link->in;
    size_t there = in->buf.bytes - in->at;
    if (!link->trusted || there < HEAD_BYTES) return false;
    const uint8_t *at = in->buf.data + in->at;
    memcpy(&bytes, at, sizeof bytes);
    memcpy(&kind, at + 4, sizeof kind);
    if (bytes > GW_FRAME_MOST_BYTES) goto bad;
    if (there < HEAD_BYTES + (size_t)bytes + MAC_BYTES) return false;
    mac_of(in, at, HEAD_BYTES + bytes, mac);
    if (!gw_secret_equal(mac, at + HEAD_BYTES + bytes, MAC_BYTES) || kind == 0 || kind >= GW_FRAME_KINDS) goto bad;
    in->number++;
    in->at += HEAD_BYTES + (size_t)bytes + MAC_BYTES;
    *frame = (struct gw_frame){.kind = (enum gw_frame_kind)kind, .data = at + HEAD_BYTES, .bytes = bytes};
    return true;
bad:
    gw_buf_clear(&in->buf);
    in->at = 0;
    close_link(link);
    return false;
}

/* ---- bytes ----------------------------------------------------------------------------------------------------- */

static void look_at_connect(struct gw_link *link)
{
    struct pollfd poller = {.fd = link->fd, .events = POLLOUT};
    int error = 0;
    socklen_t bytes = sizeof error;
    if (poll(&poller, 1, 0) <= 0) return;
    getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    if (error) {
        link->refused = error == ECONNREFUSED;
        close_link(link);
        return;
    }
    say_hello(link);
}

/* Who has not shown itself may send no more than the proof takes. */
static size_t room_for(const struct gw_link *link)
{
    size_t there = link->in.buf.bytes;
    size_t most = link->phase == TRUSTED ? MOST_UNREAD : sizeof MAGIC + NONCE_BYTES + GW_SECRET_BYTES;
    return there < most ? most - there : 0;
}

static void receive(struct gw_link *link)
{
    struct direction *in = &link->in;
    if (in->at) { /* frames handed out before are done with */
        memmove(in->buf.data, in->buf.data + in->at, in->buf.bytes - in->at);
        in->buf.bytes -= in->at;
        in->at = 0;
    }
    for (size_t room; link->fd >= 0 && (room = room_for(link)) > 0;) {
        if (room > 1 << 16) room = 1 << 16;
        gw_buf_reserve(&in->buf, room);
        ssize_t got = recv(link->fd, in->buf.data + in->buf.bytes, room, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (got <= 0) {
            close_link(link);
            return;
        }
        in->buf.bytes += (size_t)got;
        link->heard_s = gw_clock_now_s();
        while (link->phase != TRUSTED && advance(link)) continue;
    }
}

static void transmit(struct gw_link *link)
{
    struct direction *out = &link->out;
    while (link->fd >= 0 && out->at < out->buf.bytes) {
        ssize_t sent = send(link->fd, out->buf.data + out->at, out->buf.bytes - out->at, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (sent <= 0) {
            close_link(link);
            return;
        }
        out->at += (size_t)sent;
    }
    if (out->at < out->buf.bytes) return;
    gw_buf_clear(&out->buf);
    out->at = 0;
}

bool gw_link_poll(struct gw_link *link)
{
    if (link->phase == CONNECTING) look_at_connect(link);
    if (link->phase == CONNECTING || link->phase == CLOSED) return link->phase == CONNECTING;
    receive(link);
    transmit(link);
    return link->phase != CLOSED;
}

bool gw_link_trusted(const struct gw_link *link)
{
    return link->phase == TRUSTED;
}

bool gw_link_refused(const struct gw_link *link)
{
    return link->refused;
}

size_t gw_link_unsent_bytes(const struct gw_link *link)
{
    return link->out.buf.bytes - link->out.at;
}

int gw_link_fd(const struct gw_link *link)
{
    return link->fd;
}

short gw_link_events(const struct gw_link *link)
{
    short events = link->phase == CONNECTING ? POLLOUT : POLLIN;
    if (link->out.buf.bytes > link->out.at) events |= POLLOUT;
    return events;
}

double gw_link_age_s(const struct gw_link *link)
{
    return gw_clock_now_s() - link->began_s;
}

double gw_link_silent_s(const struct gw_link *link)
{
    return gw_clock_now_s() - link->heard_s;
}
