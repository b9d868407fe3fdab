/* What a rank leaves behind for whoever takes its context over (store/store.h): its place, and if it is a head, which sequences it has and
 * where their KV is. Kept in the context itself, so that it is there whenever the rank dies.
 *
 * A snapshot promises no more than is true at any later instant of the rank's life: it is written anew before a step is sent (which may fill
 * pages that it no longer names), it counts only what ended steps have computed, and it names no place while the rank's weights and pages are not all there.
 * It lies in memory twice, with a number and a checksum, so one half is whole if the rank dies while it writes the other. Local.
 */
#ifndef GW_JOB_SNAPSHOT_H
#define GW_JOB_SNAPSHOT_H

#include "job/formation.h"

struct gw_store;
struct gw_snapshot; /* opaque */

/* In the context of this process; NULL in *snapshot when the store fails. `capacity`: bytes that one snapshot may take. */
GW_CHECK gw_err gw_snapshot_open(struct gw_store *store, size_t capacity, struct gw_snapshot **snapshot);
/* To be called before the store is closed. NULL is fine. */
void gw_snapshot_close(struct gw_snapshot *snapshot);

/* What the process before this one has left: its hello, as it would say it now, and its sequences' last tokens (gw_tokens_msg_add()). false: nothing
 * that counts. The caller frees both. */
bool gw_snapshot_read(const struct gw_snapshot *snapshot, struct gw_hello *hello, struct gw_buf *tokens);

/* All that follow may be called with NULL. */
/* This rank has its place (hello's peer, plan, layout, kv_pages), or none any more. Forgets the sequences unless `same`. */
void gw_snapshot_seat(struct gw_snapshot *snapshot, const struct gw_hello *hello, bool same);
void gw_snapshot_unseat(struct gw_snapshot *snapshot);
/* The sequences of a head; copied. */
void gw_snapshot_hold(struct gw_snapshot *snapshot, const struct gw_held *held, int32_t held_count,
                      const struct gw_buf *tokens);

#endif
