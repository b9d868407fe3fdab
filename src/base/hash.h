/* Hashes: XXH3 for tables and message checksums, SHA-256 (libcrypto) for digests that people compare. Local. */
#ifndef GW_BASE_HASH_H
#define GW_BASE_HASH_H

#include "base/error.h"

#include <stdint.h>

/* XXH3 64-bit of `bytes` at `data`, with a seed. Stable across machines and versions. */
uint64_t gw_hash64(const void *data, size_t bytes, uint64_t seed);

struct gw_sha256; /* opaque */
struct gw_sha256 *gw_sha256_create(void);
void gw_sha256_add(struct gw_sha256 *sha, const void *data, size_t bytes);
/* Writes 64 lower-case hex digits and NUL, and frees `sha`. */
void gw_sha256_finish(struct gw_sha256 *sha, char hex[65]);

#endif
