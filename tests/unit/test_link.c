/* Links between the parts of a job (node/link.h) over socket pairs: who is trusted, and what happens to frames that somebody between the two
 * has changed, left out, sent twice or made up. The man in the middle is the test: it carries the bytes from one side to the other. */
#include "base/log.h"
#include "node/link.h"

#include <CUnit/Basic.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PATIENCE_MS = 10000,
    HELLO_BYTES = 40,
    PROOF_BYTES = 32,
    STRANGER_BYTES = 72,
    FRAME_EXTRA_BYTES = 24,
    ROUNDS = 50
};

static uint8_t secret[GW_SECRET_BYTES], other_secret[GW_SECRET_BYTES];

/* A client and a server, each with a socket whose other end is ours. */
struct pair {
    struct gw_link *client, *server;
    int to_client, to_server;
};

/* One end of a connection over the loopback for a link that connects, the other for the test. */
static struct gw_link *connect_client(const uint8_t *key, const char *identity, int *fd)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof here;
    struct gw_link *link = NULL;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_FATAL(listener >= 0 && !bind(listener, (struct sockaddr *)&here, bytes) && !listen(listener, 1) &&
                    !getsockname(listener, (struct sockaddr *)&here, &bytes));
    CU_ASSERT_EQUAL_FATAL(gw_link_connect("127.0.0.1", ntohs(here.sin_port), key, identity, &link), GW_OK);
    *fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CU_ASSERT_FATAL(*fd >= 0);
    close(listener);
    return link;
}

static struct gw_link *accept_server(const uint8_t *key, const char *identity, int *fd)
{
    int ends[2];
    CU_ASSERT_EQUAL_FATAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    *fd = ends[1];
    return gw_link_accept(ends[0], key, identity);
}

static struct pair make_pair(const uint8_t *client_key, const char *client_identity, const uint8_t *server_key,
                             const char *server_identity)
{
    struct pair pair;
    pair.client = connect_client(client_key, client_identity, &pair.to_client);
    pair.server = accept_server(server_key, server_identity, &pair.to_server);
    return pair;
}

static void end_pair(struct pair *pair)
{
    gw_link_destroy(pair->client);
    gw_link_destroy(pair->server);
    close(pair->to_client);
    close(pair->to_server);
}

/* What has come at our end, at most `most` bytes. */
static size_t take_bytes(int fd, uint8_t *data, size_t most)
{
    ssize_t got = recv(fd, data, most, MSG_DONTWAIT);
    return got > 0 ? (size_t)got : 0;
}

/* All of it, however little a socket takes at once. */
static bool give_bytes(int fd, const uint8_t *data, size_t bytes)
{
    struct pollfd room = {.fd = fd, .events = POLLOUT};
    while (bytes && poll(&room, 1, PATIENCE_MS) == 1) {
        ssize_t sent = send(fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) return false;
        data += sent;
        bytes -= (size_t)sent;
    }
    return !bytes;
}

/* Carries bytes both ways until nothing has come for a while. */
static void carry(struct pair *pair)
{
    uint8_t data[4096];
    for (int idle = 0; idle < ROUNDS;) {
        gw_link_poll(pair->client);
        gw_link_poll(pair->server);
        size_t from_client = take_bytes(pair->to_client, data, sizeof data);
        if (from_client) give_bytes(pair->to_server, data, from_client);
        size_t from_server = take_bytes(pair->to_server, data, sizeof data);
        if (from_server) give_bytes(pair->to_client, data, from_server);
        if (from_client || from_server) idle = 0;
        else idle++, usleep(200); /* the loopback is quick, not instant */
    }
}

/* Goes on until a frame has come to `link`, for PATIENCE_MS at most. */
static bool next_frame(struct pair *pair, struct gw_link *link, struct gw_frame *frame)
{
    for (int tries = 0; tries < PATIENCE_MS / 10; tries++) { /* carry() takes 10 ms and more */
        if (gw_link_next(link, frame)) return true;
        carry(pair);
    }
    return false;
}

static void test_trust(void)
{
    struct gw_frame frame;
    struct pair pair = make_pair(secret, "n1 abc", secret, "n1 abc");
    CU_ASSERT_FALSE(gw_link_trusted(pair.client) || gw_link_trusted(pair.server));
    gw_link_send(pair.server, GW_FRAME_TAKEN, "early", 5); /* before there is trust nothing goes out */
    CU_ASSERT_EQUAL(gw_link_unsent_bytes(pair.server), 0);
    carry(&pair);
    CU_ASSERT_TRUE(gw_link_trusted(pair.client) && gw_link_trusted(pair.server));
    CU_ASSERT_FALSE(gw_link_next(pair.server, &frame));
    static const char *const texts[] = {"first", "", "a third one"};
    for (int i = 0; i < 3; i++) gw_link_send(pair.client, GW_FRAME_EXEC, texts[i], strlen(texts[i]));
    uint8_t *large = calloc(GW_FRAME_MOST_BYTES, 1);
    large[GW_FRAME_MOST_BYTES - 1] = 7;
    gw_link_send(pair.server, GW_FRAME_OUT, large, GW_FRAME_MOST_BYTES);
    CU_ASSERT_EQUAL(gw_link_unsent_bytes(pair.server), GW_FRAME_MOST_BYTES + FRAME_EXTRA_BYTES);
    for (int i = 0; i < 3; i++) {
        CU_ASSERT_TRUE_FATAL(next_frame(&pair, pair.server, &frame));
        CU_ASSERT_EQUAL(frame.kind, GW_FRAME_EXEC);
        CU_ASSERT_TRUE(frame.bytes == strlen(texts[i]) && !memcmp(frame.data, texts[i], frame.bytes));
    }
    CU_ASSERT_FALSE(gw_link_next(pair.server, &frame));
    CU_ASSERT_TRUE_FATAL(next_frame(&pair, pair.client, &frame));
    CU_ASSERT_TRUE(frame.kind == GW_FRAME_OUT && frame.bytes == GW_FRAME_MOST_BYTES &&
                   !memcmp(frame.data, large, frame.bytes));
    free(large);
    /* the last words of a side that closes can still be taken */
    gw_link_send(pair.client, GW_FRAME_EXIT, "bye", 3);
    carry(&pair);
    close(pair.to_server);
    pair.to_server = -1;
    CU_ASSERT_FALSE(gw_link_poll(pair.server));
    CU_ASSERT_TRUE(gw_link_next(pair.server, &frame) && frame.kind == GW_FRAME_EXIT);
    CU_ASSERT_FALSE(gw_link_trusted(pair.server));
    end_pair(&pair);
}

/* Another secret, or a server that is not the one that was meant: the server closes without a word, and neither trusts. */
static void test_strangers(void)
{
    const struct {
        const uint8_t *client, *server;
        const char *meant, *is;
    } cases[] = {{other_secret, secret, "n1 abc", "n1 abc"},
                 {secret, other_secret, "n1 abc", "n1 abc"},
                 {secret, secret, "n1 abc", "n2 abc"},
                 {secret, secret, "n1 abc", "n1 abd"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pair pair = make_pair(cases[i].client, cases[i].meant, cases[i].server, cases[i].is);
        carry(&pair);
        CU_ASSERT_FALSE(gw_link_trusted(pair.client) || gw_link_trusted(pair.server));
        CU_ASSERT_FALSE(gw_link_poll(pair.server));
        end_pair(&pair);
    }
}

/* Bytes that are no hello, and one who says hello and then nothing sensible: at most 32 bytes go out, at most 72 are kept. */
static void test_noise(void)
{
    uint8_t data[4096], noise[1024];
    int fd;
    for (int kind = 0; kind < 3; kind++) {
        struct gw_link *server = accept_server(secret, "n1 abc", &fd);
        memset(noise, kind == 0 ? 'x' : 0, sizeof noise);
        if (kind) memcpy(noise, "GWNODE1", 8);
        CU_ASSERT_TRUE(give_bytes(fd, noise, kind == 2 ? HELLO_BYTES : sizeof noise));
        bool open = true;
        for (int round = 0; round < ROUNDS && open; round++) open = gw_link_poll(server);
        CU_ASSERT_EQUAL(open, kind == 2); /* that one may still prove itself: how long is its owner's business */
        CU_ASSERT_TRUE(take_bytes(fd, data, sizeof data) <= 32);
        CU_ASSERT_FALSE(gw_link_trusted(server));
        if (kind == 2) {
            CU_ASSERT_TRUE(give_bytes(fd, noise, PROOF_BYTES));
            CU_ASSERT_FALSE(gw_link_poll(server));
        }
        gw_link_destroy(server);
        close(fd);
    }
}

/* A proof that was overheard is worth nothing for another connection, and one's own proof sent back is not the peer's. */
static void test_replay(void)
{
    uint8_t hello[STRANGER_BYTES], nonce[64], answer[64];
    struct pair pair = make_pair(secret, "n1 abc", secret, "n1 abc");
    int fd;
    for (int i = 0; i < PATIENCE_MS && !take_bytes(pair.to_client, hello, HELLO_BYTES); i++) {
        gw_link_poll(pair.client);
        usleep(1000);
    }
    give_bytes(pair.to_server, hello, HELLO_BYTES);
    gw_link_poll(pair.server);
    CU_ASSERT_EQUAL(take_bytes(pair.to_server, nonce, sizeof nonce), 32);
    give_bytes(pair.to_client, nonce, 32);
    size_t got = 0;
    for (int i = 0; i < PATIENCE_MS && !got; i++) {
        gw_link_poll(pair.client);
        got = take_bytes(pair.to_client, hello + HELLO_BYTES, PROOF_BYTES);
        usleep(200);
    }
    CU_ASSERT_EQUAL(got, PROOF_BYTES);
    struct gw_link *again = accept_server(secret, "n1 abc", &fd);
    give_bytes(fd, hello, sizeof hello); /* hello and proof of the other connection */
    CU_ASSERT_FALSE(gw_link_poll(again));
    CU_ASSERT_FALSE(gw_link_trusted(again));
    CU_ASSERT_TRUE(take_bytes(fd, answer, sizeof answer) <= 32);
    gw_link_destroy(again);
    close(fd);
    give_bytes(pair.to_client, hello + HELLO_BYTES, PROOF_BYTES); /* its own proof, sent back */
    bool open = true;
    for (int i = 0; i < PATIENCE_MS && open; i++, usleep(1000)) open = gw_link_poll(pair.client);
    CU_ASSERT_FALSE(open || gw_link_trusted(pair.client));
    end_pair(&pair);
}

enum meddling { CHANGE, LEAVE_OUT, TWICE, TURN_BACK, LONGER, MEDDLINGS };

/* Two frames on their way to the server, of which the second, or the first, does not come as it was sent. */
static void test_meddling(void)
{
    enum { FRAME = FRAME_EXTRA_BYTES + 4 };
    for (int place = 0; place < FRAME; place++)
        for (int how = 0; how < MEDDLINGS; how++) {
            if (how != CHANGE && place) continue;
            struct gw_frame frame;
            uint8_t wire[4 * FRAME], back[4 * FRAME];
            struct pair pair = make_pair(secret, "n1 abc", secret, "n1 abc");
            carry(&pair);
            CU_ASSERT_TRUE_FATAL(gw_link_trusted(pair.server));
            gw_link_send(pair.client, GW_FRAME_PING, "one.", 4);
            gw_link_send(pair.client, GW_FRAME_PONG, "two.", 4);
            gw_link_poll(pair.client);
            size_t bytes = 0;
            for (int i = 0; i < PATIENCE_MS && bytes < 2 * FRAME; i++) {
                bytes += take_bytes(pair.to_client, wire + bytes, 2 * FRAME - bytes);
                if (bytes < 2 * FRAME) usleep(200);
            }
            CU_ASSERT_EQUAL_FATAL(bytes, 2 * FRAME);
            int good = 1; /* frames that must still come */
            if (how == CHANGE) wire[FRAME + place] ^= 1;
            if (how == LEAVE_OUT) memmove(wire, wire + FRAME, FRAME), bytes = FRAME, good = 0;
            if (how == TWICE) memcpy(wire + FRAME, wire, FRAME);
            if (how == LONGER) memset(wire + FRAME, 0xff, 4);
            if (how == TURN_BACK) { /* a frame of the client goes back to it as if the server had sent it */
                give_bytes(pair.to_client, wire, FRAME);
                bool open = true;
                for (int i = 0; i < PATIENCE_MS && open; i++, usleep(1000)) {
                    open = gw_link_poll(pair.client);
                    CU_ASSERT_FALSE(gw_link_next(pair.client, &frame));
                }
                CU_ASSERT_FALSE(gw_link_trusted(pair.client));
                good = 2;
            }
            CU_ASSERT_TRUE(give_bytes(pair.to_server, wire, bytes));
            for (int i = 0; i < 3; i++) gw_link_poll(pair.server);
            int came = 0;
            while (came < 4 && gw_link_next(pair.server, &frame)) came++;
            /* a length that says more than has come is waited for, unless it is more than any frame has */
            uint32_t said;
            memcpy(&said, wire + FRAME, sizeof said);
            bool waits = how == CHANGE && said > 4 && said <= GW_FRAME_MOST_BYTES;
            CU_ASSERT_EQUAL(came, good);
            CU_ASSERT_EQUAL(gw_link_trusted(pair.server), good == 2 || waits);
            take_bytes(pair.to_server, back, sizeof back);
            end_pair(&pair);
        }
}

static void test_nobody(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof here;
    struct gw_link *link = NULL;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC,
                    0); /* bound, so that nobody else takes the port, and not listening */
    CU_ASSERT_FATAL(!bind(fd, (struct sockaddr *)&here, bytes) && !getsockname(fd, (struct sockaddr *)&here, &bytes));
    CU_ASSERT_EQUAL_FATAL(gw_link_connect("127.0.0.1", ntohs(here.sin_port), secret, "n1", &link), GW_OK);
    for (int i = 0; i < PATIENCE_MS && gw_link_poll(link); i++) usleep(1000);
    CU_ASSERT_TRUE(gw_link_refused(link));
    CU_ASSERT_TRUE(gw_link_age_s(link) >= 0 && gw_link_silent_s(link) >= 0);
    gw_link_destroy(link);
    close(fd);
    link = NULL;
    CU_ASSERT_EQUAL(gw_link_connect("no.address", 1, secret, "n1", &link), GW_ERR_INPUT);
    CU_ASSERT_PTR_NULL(link);
    gw_link_destroy(NULL);
}

int main(void)
{
    gw_log_set_level(GW_LOG_ERROR);
    for (int i = 0; i < GW_SECRET_BYTES; i++) {
        secret[i] = (uint8_t)i;
        other_secret[i] = (uint8_t)(i ^ (i == 31));
    }
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("link", NULL, NULL);
    CU_add_test(suite, "both know the secret", test_trust);
    CU_add_test(suite, "strangers", test_strangers);
    CU_add_test(suite, "noise", test_noise);
    CU_add_test(suite, "proofs sent again or back", test_replay);
    CU_add_test(suite, "meddling with frames", test_meddling);
    CU_add_test(suite, "nobody there", test_nobody);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
