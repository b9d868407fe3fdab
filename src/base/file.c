/* See file.h. */
#include "base/file.h"

#include "base/fault.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static gw_err open_failed(const char *path)
{
    return gw_fail(errno == ENOENT ? GW_ERR_NOT_FOUND : GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
}

gw_err gw_map_open(const char *path, struct gw_map *map)
{
    gw_err rc = GW_OK;
    *map = (struct gw_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return open_failed(path);
    struct stat st;
    if (fstat(fd, &st)) FAIL(GW_ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) FAIL(GW_ERR_IO, "%s is not a regular file", path);
    if (st.st_size > 0) {
        void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) FAIL(GW_ERR_IO, "cannot map %s: %s", path, strerror(errno));
        *map = (struct gw_map){.data = data, .bytes = (size_t)st.st_size, .fd = fd};
        fd = -1;
    }
out:
    if (fd >= 0) close(fd);
    return rc;
}

void gw_map_close(struct gw_map *map)
{
    if (map->data) {
        munmap((void *)map->data, map->bytes);
        close(map->fd);
    }
    *map = (struct gw_map){0};
}

gw_err gw_map_read(const struct gw_map *map, const char *path, const uint8_t *at, size_t bytes, void *to)
{
    GW_ASSERT(map->data && at >= map->data && bytes <= map->bytes - (size_t)(at - map->data));
    ssize_t got;
    for (size_t done = 0; done < bytes; done += (size_t)got) {
        do got = pread(map->fd, (uint8_t *)to + done, bytes - done, at - map->data + (off_t)done);
        while (got < 0 && errno == EINTR);
        if (got <= 0)
            return gw_fail(GW_ERR_IO, "cannot read %s: %s", path, got < 0 ? strerror(errno) : "it has become shorter");
    }
    return GW_OK;
}

void gw_map_let_go(const struct gw_map *map)
{
    if (map->data && map->bytes) madvise((void *)map->data, map->bytes, MADV_DONTNEED);
}

gw_err gw_write_all(int fd, const char *path, const void *data, size_t bytes)
{
    const char *at = data;
    int injected = gw_fault_write();
    if (injected) bytes /= 2; /* a full disk takes a part, so that a torn line is tested, too */
    while (bytes || injected) {
        ssize_t written = bytes ? write(fd, at, bytes) : (errno = injected, -1);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0)
            return gw_fail(GW_ERR_IO, "cannot write %s: %s%s", path, strerror(errno),
                           errno == ENOSPC ? "; free some space and run the same command again" : "");
        at += written;
        bytes -= (size_t)written;
    }
    return GW_OK;
}

static gw_err sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? gw_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : gw_strdup(".");
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gw_err rc = GW_OK;
    if (fd < 0 || fsync(fd)) rc = gw_fail(GW_ERR_IO, "cannot sync directory %s: %s", dir, strerror(errno));
    if (fd >= 0) close(fd);
    free(dir);
    return rc;
}

gw_err gw_file_replace(const char *path, const void *data, size_t bytes, bool durable)
{
    gw_err rc = GW_OK;
    char *temporary = gw_asprintf("%s.tmp", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        rc = gw_fail(GW_ERR_IO, "cannot create %s: %s", temporary, strerror(errno));
        free(temporary);
        return rc;
    }
    TRY(gw_write_all(fd, temporary, data, bytes));
    if (durable && fsync(fd)) FAIL(GW_ERR_IO, "cannot sync %s: %s", temporary, strerror(errno));
    int closed = close(fd);
    fd = -1;
    if (closed) FAIL(GW_ERR_IO, "cannot write %s: %s", temporary, strerror(errno));
    if (rename(temporary, path)) FAIL(GW_ERR_IO, "cannot rename %s to %s: %s", temporary, path, strerror(errno));
    if (durable) TRY(sync_parent(path));
out:
    if (fd >= 0) close(fd);
    if (rc != GW_OK) unlink(temporary);
    free(temporary);
    return rc;
}

gw_err gw_file_read(const char *path, size_t max_bytes, char **text, size_t *bytes)
{
    gw_err rc = GW_OK;
    struct gw_buf buf = {0};
    int again = 3;
    *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return open_failed(path);
    for (;;) {
        gw_buf_reserve(&buf, 65536);
        ssize_t got = read(fd, buf.data + buf.bytes, 65535);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == ESTALE && again-- > 0) {
            close(fd); /* on NFS: another machine has replaced the file since it was opened */
            if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) {
                rc = open_failed(path);
                goto out;
            }
            buf.bytes = 0;
            continue;
        }
        if (got < 0) FAIL(GW_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) break;
        buf.bytes += (size_t)got;
        if (buf.bytes > max_bytes) FAIL(GW_ERR_FORMAT, "%s is larger than the %zu bytes expected", path, max_bytes);
    }
    buf.data[buf.bytes] = 0;
    *text = (char *)buf.data;
    if (bytes) *bytes = buf.bytes;
    buf = (struct gw_buf){0};
out:
    if (fd >= 0) close(fd);
    gw_buf_free(&buf);
    return rc;
}

gw_err gw_make_dir(const char *path)
{
    if (mkdir(path, 0777) == 0) return GW_OK;
    int saved = errno;
    struct stat st;
    if (saved == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return GW_OK;
    return gw_fail(GW_ERR_IO, "cannot create directory %s: %s", path, strerror(saved));
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st;
    (void)kind;
    (void)where;
    remove(path);
    return 0;
}

void gw_remove_tree(const char *path)
{
    enum { OPEN_FOLDERS = 16 };
    nftw(path, remove_entry, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}
