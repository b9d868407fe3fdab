/* Memory: checked allocation and a growable byte buffer.
 *
 * gw_alloc and friends never return NULL for a size within reason: a failed allocation of the host's own bookkeeping
 * ends the process with one line (exit code 5), since nothing sensible can go on without it. Large, sized-by-input
 * memory (weights, KV pages) uses gw_alloc_large, which returns an error.
 */
#ifndef GW_BASE_MEM_H
#define GW_BASE_MEM_H

#include "base/error.h"

#include <stdint.h>

/* Zeroed memory of count * size bytes (overflow checked); free with free(). */
void *gw_alloc(size_t count, size_t size);
/* As realloc(); the new part is not cleared. */
void *gw_realloc(void *old, size_t count, size_t size);
char *gw_strdup(const char *text);
char *gw_strndup(const char *text, size_t bytes);
/* malloc'd printf. */
char *gw_asprintf(const char *fmt, ...) GW_PRINTF(1, 2);

/* As gw_alloc, on a boundary of 64 bytes, so that vectors do not straddle cache lines, and not cleared. Release with free(). */
void *gw_alloc_lines(size_t count, size_t size);

/* What `bytes` of large memory take: whole huge pages, where that wastes at most a quarter. */
size_t gw_large_bytes(size_t bytes);
/* Maps gw_large_bytes() of `fd`, or, -1, of private memory, for reading and writing, in huge pages where the system has them: weights in pages of 4 KiB
 * cost a tenth of a product. MAP_FAILED, and errno. */
void *gw_map_large(size_t bytes, int fd);

/* Page-aligned, zeroed, lazily backed memory for large tensors; release with gw_free_large(memory, bytes).
 * GW_ERR_MEMORY with a detail line that names `what`. */
GW_CHECK gw_err gw_alloc_large(size_t bytes, const char *what, void **memory);
void gw_free_large(void *memory, size_t bytes);

/* Large memory with several holders in this process, e.g. weights that an old and a new arrangement both use. Not thread-safe. */
struct gw_shared {
    void *data; /* a mapping of `bytes` */
    size_t bytes;
    int holders;
    void (*released)(
        struct gw_shared *shared); /* NULL, or called when the last holder lets go; `owner` and `number` are for it */
    void *owner;
    uint32_t number;
};

/* As gw_alloc_large, with one holder. */
GW_CHECK gw_err gw_shared_create(size_t bytes, const char *what, struct gw_shared **shared);
struct gw_shared *gw_shared_hold(struct gw_shared *shared);
/* The last holder's release frees it. NULL is fine. */
void gw_shared_release(struct gw_shared *shared);

/* A string that knows its length. */
struct gw_text {
    char *data; /* heap, NUL-terminated; may hold NULs of its own */
    size_t bytes;
};

/* Growable array of bytes. Zero-initialise to start; gw_buf_free() to end. */
struct gw_buf {
    uint8_t *data;
    size_t bytes;    /* used */
    size_t capacity; /* allocated */
};

void gw_buf_reserve(struct gw_buf *buf, size_t more_bytes);
void gw_buf_add(struct gw_buf *buf, const void *data, size_t bytes);
void gw_buf_add_u32(struct gw_buf *buf, uint32_t value); /* host byte order: one job runs on one byte order */
void gw_buf_add_u64(struct gw_buf *buf, uint64_t value);
void gw_buf_add_text(struct gw_buf *buf, const char *text); /* without the terminating NUL */
void gw_buf_clear(struct gw_buf *buf);                      /* keeps the memory */
void gw_buf_free(struct gw_buf *buf);

/* Reads what gw_buf_add_* wrote; `failed` is set (and stays) when the data ends too early, reads then give 0/NULL. */
struct gw_reader {
    const uint8_t *data;
    size_t bytes;
    size_t at;
    bool failed;
};

const void *gw_read(struct gw_reader *reader, size_t bytes);
uint32_t gw_read_u32(struct gw_reader *reader);
uint64_t gw_read_u64(struct gw_reader *reader);

#endif
