/* A TCP connection between two parts of a job, on which both have shown that they know its secret. Local; nothing here waits.
 *
 *   client                                   server (identity I)
 *   magic, C (32 random bytes)  ---------->
 *                               <----------  S (32 random bytes)
 *   HMAC(secret, "client" C S I) --------->  closes without a word when it is wrong
 *                               <----------  HMAC(secret, "server" C S I)
 *   frames                      <--------->  frames
 *
 * The identity is the server's name and incarnation, so that no proof can be relayed to another server, nor come from an earlier one. A frame is length,
 * kind, payload and an HMAC under a key of this connection and direction, over the frame's number as well: nothing can be changed, added,
 * left out or sent again on the way. What is sent is not hidden: MPI's own messages are not either.
 * Until a peer has shown itself it gets 32 random bytes and may send 72; how long it may take is the owner's business (gw_link_age_s).
 */
#ifndef GW_NODE_LINK_H
#define GW_NODE_LINK_H

#include "base/mem.h"
#include "node/secret.h"

#include <stdbool.h>

enum gw_frame_kind {
    GW_FRAME_PING = 1, /* supervisor -> agent: term, launch (below) */
    GW_FRAME_PONG,     /* agent -> supervisor: the same term and launch */
    GW_FRAME_END,      /* supervisor -> agent: end all of this term up to this launch; answered once it is gone */
    GW_FRAME_ENDED,    /* agent -> supervisor */
    GW_FRAME_EXEC,     /* node-exec -> agent: term, launch, a command line for the shell */
    GW_FRAME_OUT,      /* agent -> node-exec: what the command writes */
    GW_FRAME_ERR,
    GW_FRAME_EXIT,  /* agent -> node-exec: u32 exit code, after everything else */
    GW_FRAME_DRAIN, /* godwit node --drain -> agent: u32 seconds */
    GW_FRAME_TAKEN, /* agent: it has been heard */
    GW_FRAME_OVER,  /* agent that has supervised -> its successor: the launch that it had has ended by itself */
    GW_FRAME_KINDS
};

/* The payload of most kinds, or its beginning. */
struct gw_frame_job {
    int64_t term, launch;
    int64_t since; /* of a supervisor: the oldest term of which a launch may go on under its own */
};

enum { GW_FRAME_MOST_BYTES = 1 << 18 };

struct gw_frame {
    enum gw_frame_kind kind;
    const uint8_t *data; /* valid until the next gw_link_poll() */
    size_t bytes;
};

struct gw_link; /* opaque */

/* Takes over an accepted socket. */
struct gw_link *gw_link_accept(int fd, const uint8_t secret[GW_SECRET_BYTES], const char *identity);
/* Begins to connect; how it went shows in gw_link_poll(). GW_ERR_INPUT: no address. GW_ERR_IO. */
GW_CHECK gw_err gw_link_connect(const char *address, int port, const uint8_t secret[GW_SECRET_BYTES],
                                const char *identity, struct gw_link **link);
/* Closes at once; what was not sent is lost. NULL is fine. */
void gw_link_destroy(struct gw_link *link);

/* Moves bytes. False: the connection is over, by whichever side; frames that have come can still be taken. */
bool gw_link_poll(struct gw_link *link);
bool gw_link_trusted(const struct gw_link *link);
/* Was nobody listening at the other side? */
bool gw_link_refused(const struct gw_link *link);
/* The next frame that has come. */
bool gw_link_next(struct gw_link *link, struct gw_frame *frame);
/* Only once trusted. */
void gw_link_send(struct gw_link *link, enum gw_frame_kind kind, const void *data, size_t bytes);
size_t gw_link_unsent_bytes(const struct gw_link *link);

int gw_link_fd(const struct gw_link *link);
short gw_link_events(const struct gw_link *link); /* for poll(2) */
double gw_link_age_s(const struct gw_link *link);
double gw_link_silent_s(const struct gw_link *link); /* since something came */

#endif
