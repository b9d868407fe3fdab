/* The context store of a node: memory that outlives the ranks which use it.
 *
 * A server thread (of `godwit run`, or of the node's agent) owns anonymous memory files; ranks map them. Shared segments (packed weights)
 * are filled by the first rank that needs them and mapped by the others. A rank's own segments (KV pages, its snapshot) make up its *context*. When a rank
 * dies or leaves, its context stays with the server, and the next rank that asks takes it over: it maps what lies there instead of
 * computing it again. Nothing has a name in a file system, so nothing is left behind when the server and its clients are gone.
 *
 * Shared segments that fill no huge pages (gw_goes_to_slab()) lie side by side in slabs, and the memory of one goes when its slab's last one does.
 *
 * The server listens on an abstract UNIX socket whose name follows from the job's folder; both sides accept their own user only.
 *
 * What a rank computes into its context counts only as far as its snapshot says (job/snapshot.h): the store knows nothing of contents.
 * A client is used from one thread. Local to the node.
 */
#ifndef GW_STORE_STORE_H
#define GW_STORE_STORE_H

#include "base/mem.h"

#include <stdbool.h>

enum { GW_STORE_NAME_BYTES = 96 };

/* ---- server ---------------------------------------------------------------------------------------------------- */

struct gw_store_server; /* opaque */

/* Serves the job in `out_dir` (which exists) on this node until gw_store_end(). GW_ERR_MISMATCH when another process of this node does. */
GW_CHECK gw_err gw_store_serve(const char *out_dir, struct gw_store_server **server);
/* Ends the thread and lets go of all memory. NULL is fine. */
void gw_store_end(struct gw_store_server *server);

/* ---- client ---------------------------------------------------------------------------------------------------- */

struct gw_store; /* opaque */

/* GW_ERR_NOT_FOUND when nobody serves that job here. */
GW_CHECK gw_err gw_store_connect(const char *out_dir, struct gw_store **store);
/* This process's context is left behind for another. To be called when no mapping is used any more. NULL is fine. */
void gw_store_close(struct gw_store *store);

/* Takes over the context of a process that is gone, of the latest `order` given to gw_store_keep(); *taken says whether there was one, *held how many
 * processes live that have called that function, and may yet leave something. To be called before anything is mapped. */
GW_CHECK gw_err gw_store_take(struct gw_store *store, bool *taken, int *held);

enum gw_store_scope { GW_STORE_SHARED, GW_STORE_OWN };
enum gw_store_found {
    GW_STORE_NEW,   /* zeroed memory. Shared: the caller fills it, then calls gw_store_filled() */
    GW_STORE_FOUND, /* it holds what was put there */
    GW_STORE_BUSY,  /* shared: another process is filling it; *segment is NULL */
    GW_STORE_NONE,  /* it is not there, and `create` was false */
};

/* Maps a segment of at least `bytes`. The mapping is *segment's, released by gw_shared_release() before the store is closed. An error
 * (GW_ERR_PEER: the server is gone, GW_ERR_MEMORY) leaves the caller to use memory of its own. */
GW_CHECK gw_err gw_store_map(struct gw_store *store, enum gw_store_scope scope, const char *name, size_t bytes,
                             bool create, struct gw_shared **segment, enum gw_store_found *found);
GW_CHECK gw_err gw_store_filled(struct gw_store *store, const struct gw_shared *segment);

/* Only what is mapped now is still wanted by this process; segments that nobody wants go, and contexts left behind under an earlier `order`. */
GW_CHECK gw_err gw_store_keep(struct gw_store *store, uint64_t order);

/* Bytes of this node's memory that the store holds. */
GW_CHECK gw_err gw_store_usage(struct gw_store *store, uint64_t *bytes);

#endif
