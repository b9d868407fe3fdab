/* See hash.h. */
#include "base/hash.h"

#include <openssl/evp.h>
#include <stdio.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t gw_hash64(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

struct gw_sha256 *gw_sha256_create(void)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    GW_ASSERT(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1);
    return (struct gw_sha256 *)ctx;
}

void gw_sha256_add(struct gw_sha256 *sha, const void *data, size_t bytes)
{
    GW_ASSERT(EVP_DigestUpdate((EVP_MD_CTX *)sha, data, bytes) == 1);
}

void gw_sha256_finish(struct gw_sha256 *sha, char hex[65])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int bytes = 0;
    GW_ASSERT(EVP_DigestFinal_ex((EVP_MD_CTX *)sha, digest, &bytes) == 1 && bytes == 32);
    EVP_MD_CTX_free((EVP_MD_CTX *)sha);
    for (unsigned int i = 0; i < bytes; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}
