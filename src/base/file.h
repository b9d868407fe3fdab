/* Files: read-only maps, whole-file replacement that is never seen half done. Local.
 * Every error names the path and what to do. Files are created with the user's umask. */
#ifndef GW_BASE_FILE_H
#define GW_BASE_FILE_H

#include "base/error.h"

#include <stdint.h>

struct gw_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t bytes;
    int fd; /* of the file, while data is not NULL */
};

/* Maps a file read-only; gw_map_close() ends it. GW_ERR_NOT_FOUND, GW_ERR_IO. */
GW_CHECK gw_err gw_map_open(const char *path, struct gw_map *map);
void gw_map_close(struct gw_map *map);
/* Reads `bytes` from `at`, which lies within the map, into `to` without touching the map: for a few bytes here and there of what shall not become
 * resident. GW_ERR_IO. */
GW_CHECK gw_err gw_map_read(const struct gw_map *map, const char *path, const uint8_t *at, size_t bytes, void *to);
/* What was read of it does not count as this process's memory any more; the bytes stay there to be read, from the page cache or the disk. */
void gw_map_let_go(const struct gw_map *map);

/* Replaces `path` by `data`: writes `path`.tmp beside it, then renames; with `durable`, fsyncs file and directory. */
GW_CHECK gw_err gw_file_replace(const char *path, const void *data, size_t bytes, bool durable);

/* Reads a whole (small) file; *text is NUL-terminated and the caller frees it. `max_bytes` bounds what is read. */
GW_CHECK gw_err gw_file_read(const char *path, size_t max_bytes, char **text, size_t *bytes);

/* Writes all bytes, restarting after signals. */
GW_CHECK gw_err gw_write_all(int fd, const char *path, const void *data, size_t bytes);

/* Removes a folder with all that is in it, as far as it may; follows no links. */
void gw_remove_tree(const char *path);

/* Creates a directory if it is not there (parents are not created). */
GW_CHECK gw_err gw_make_dir(const char *path);

#endif
