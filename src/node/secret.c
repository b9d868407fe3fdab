/* See secret.h. */
#include "node/secret.h"

#include "base/file.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

void gw_secret_random(void *data, size_t bytes)
{
    uint8_t *at = data;
    while (bytes > 0) {
        ssize_t got = getrandom(at, bytes, 0);
        if (got < 0 && errno == EINTR) continue;
        GW_ASSERT(got > 0);
        at += got;
        bytes -= (size_t)got;
    }
}

void gw_secret_mac(const uint8_t key[GW_SECRET_BYTES], const void *data, size_t bytes, uint8_t mac[GW_SECRET_BYTES])
{
    unsigned int length = GW_SECRET_BYTES;
    GW_ASSERT(HMAC(EVP_sha256(), key, GW_SECRET_BYTES, data, bytes, mac, &length));
}

int gw_secret_equal(const void *a, const void *b, size_t bytes)
{
    return CRYPTO_memcmp(a, b, bytes) == 0;
}

/* A whole file under a name of its own, then its real name by link(): nobody ever sees a part of it, and the first one stays. */
static gw_err create(const char *folder, const char *path)
{
    gw_err rc = GW_OK;
    uint8_t secret[GW_SECRET_BYTES];
    char *own = gw_asprintf("%s/.secret.%ld.XXXXXX", folder, (long)getpid());
    int fd = mkstemp(own); /* 0600 whatever the umask */
    if (fd < 0) FAIL(GW_ERR_IO, "cannot create %s: %s", own, strerror(errno));
    gw_secret_random(secret, sizeof secret);
    rc = gw_write_all(fd, own, secret, sizeof secret);
    if (rc == GW_OK && link(own, path) && errno != EEXIST)
        rc = gw_fail(GW_ERR_IO, "cannot create %s: %s", path, strerror(errno));
    unlink(own);
out:
    if (fd >= 0) close(fd);
    OPENSSL_cleanse(secret, sizeof secret);
    free(own);
    return rc;
}

gw_err gw_secret_open(const char *folder, uint8_t secret[GW_SECRET_BYTES])
{
    gw_err rc = GW_OK;
    struct stat st;
    char *path = gw_asprintf("%s/secret", folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) {
        TRY(create(folder, path));
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    }
    if (fd < 0) FAIL(GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st)) FAIL(GW_ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (st.st_uid != geteuid()) FAIL(GW_ERR_MISMATCH, "%s belongs to another user", path);
    if (!S_ISREG(st.st_mode) || (st.st_mode & 077))
        FAIL(GW_ERR_MISMATCH, "%s can be read by others: end the job's agents, remove it and start them again", path);
    if (read(fd, secret, GW_SECRET_BYTES) != GW_SECRET_BYTES || st.st_size != GW_SECRET_BYTES)
        FAIL(GW_ERR_MISMATCH, "%s is not a secret of godwit: end the job's agents, remove it and start them again",
             path);
out:
    if (fd >= 0) close(fd);
    free(path);
    return rc;
}
