/* The secret that makes a process a part of a job: 32 random bytes in OUTDIR/nodes/secret, readable by the job's owner alone. Whoever can read it
 * may start processes on the job's nodes, as the owner may anyway. It is never sent and never logged: both sides of a connection show that they have it
 * (link.h). Local.
 */
#ifndef GW_NODE_SECRET_H
#define GW_NODE_SECRET_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

enum { GW_SECRET_BYTES = 32 };

/* Reads FOLDER/secret, making it first if it is not there: of several that do so at once, one wins. GW_ERR_MISMATCH when it is not this user's, when
 * others can read it, or when it is no secret. */
GW_CHECK gw_err gw_secret_open(const char *folder, uint8_t secret[GW_SECRET_BYTES]);

/* From the kernel's generator. */
void gw_secret_random(void *data, size_t bytes);
/* HMAC-SHA256 of `bytes` at `data`. */
void gw_secret_mac(const uint8_t key[GW_SECRET_BYTES], const void *data, size_t bytes, uint8_t mac[GW_SECRET_BYTES]);
/* In a time that does not depend on where they differ. */
int gw_secret_equal(const void *a, const void *b, size_t bytes);

#endif
