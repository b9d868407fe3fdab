/* What an agent does for others: it listens on one address, lets in who knows the job's secret, and runs daemons for launchers. Local; nothing waits.
 *
 * A daemon lives as long as the connection that asked for it, and no longer than its launch: gw_server_fence() ends what belongs to an earlier term or
 * to a launch that is over. Strangers are few (PENDING_MOST), short-lived (PENDING_S), and learn nothing.
 */
#ifndef GW_NODE_SERVER_H
#define GW_NODE_SERVER_H

#include "node/link.h"

#include <poll.h>

struct gw_server; /* opaque */

/* Listens on address:port (0: any free one). `scratch`: an existing folder; daemons get folders in it. `lease_s`: a connection that is silent so long is
 * gone. Strings are copied. */
GW_CHECK gw_err gw_server_create(const char *address, int port, const uint8_t secret[GW_SECRET_BYTES],
                                 const char *identity, const char *scratch, double lease_s, struct gw_server **server);
/* Ends all daemons, waiting until they are gone. NULL is fine. */
void gw_server_destroy(struct gw_server *server);
int gw_server_port(const struct gw_server *server);

void gw_server_poll(struct gw_server *server);
/* What poll(2) should watch: at most `most`; returns how many. */
int gw_server_fds(const struct gw_server *server, struct pollfd *fds, int most);

/* The term in force: ends the daemons of terms before `since`, and those of `term` and before with a launch below `least_launch`; later ones of the kind
 * are refused. */
void gw_server_fence(struct gw_server *server, int64_t term, int64_t since, int64_t least_launch);
/* A launcher of this node's own runs beside the daemons, from when it was the supervisor: counts like one until it is over. */
void gw_server_keeps(struct gw_server *server, int64_t term, int64_t launch);
/* May it run on? */
bool gw_server_may_keep(const struct gw_server *server);
/* It has ended: supervisors hear of it, now and later. */
void gw_server_kept_is_over(struct gw_server *server);
void gw_server_end_all(struct gw_server *server);
/* Daemons that run, or are being ended. */
int gw_server_daemons(const struct gw_server *server);
/* Has a supervisor that is connected yet to hear that the daemons which ran here have ended? */
bool gw_server_owes_word(const struct gw_server *server);
/* Are daemons being ended? Their end is seen by looking only, so the owner should look often. */
bool gw_server_ending(const struct gw_server *server);
/* No further daemons. */
void gw_server_refuse(struct gw_server *server);
/* The highest term that a supervisor has shown itself with. */
int64_t gw_server_term(const struct gw_server *server);
/* Is a supervisor of that term connected? */
bool gw_server_supervised(const struct gw_server *server);
/* Has somebody asked this node to leave? Then within how many seconds; asked once. */
bool gw_server_drained(struct gw_server *server, double *seconds);

#endif
