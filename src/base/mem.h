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

/* The multiple of `unit` that is not less. */
static inline size_t gw_round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* Weights in pages of 4 KiB cost a tenth of decoding, and KV in them as much again. Large memory comes in huge pages, where the system has them; what is too
 * small to fill any lies side by side with others of its kind, in a slab. */
enum {
    GW_HUGE_PAGE = 2 << 20, /* of x86 and most others; where it is another size, only alignment is wasted */
    GW_SLAB_BYTES = 16 << 20,
};

/* What `bytes` of large memory take: whole huge pages, where that wastes at most a quarter. */
size_t gw_large_bytes(size_t bytes);
/* Do they fill no huge pages of their own? They are fewer than GW_SLAB_BYTES then. */
bool gw_goes_to_slab(size_t bytes);
/* Maps `bytes` of `fd` from `offset`, a multiple of GW_HUGE_PAGE, on, or, fd -1, of private memory, for reading and writing; huge pages of the file can
 * be huge in the mapping. MAP_FAILED, and errno. */
void *gw_map_large(size_t bytes, int fd, size_t offset);
/* Takes huge pages for those whole ones within [memory, memory + bytes) of a mapping, where nothing or little has been written yet: cheaper than the 512
 * small ones that the system would take as they are written, and the only way for shared memory, which it has in small pages as a rule.
 * What cannot be done now stays as it is. False, and the rest is left, where the system has none. Contents stay. */
bool gw_back_large(void *memory, size_t bytes);

/* Page-aligned, zeroed, lazily backed memory for large tensors; release with gw_free_large(memory, bytes).
 * GW_ERR_MEMORY with a detail line that names `what`. */
GW_CHECK gw_err gw_alloc_large(size_t bytes, const char *what, void **memory);
void gw_free_large(void *memory, size_t bytes);

/* Large memory with several holders in this process, e.g. weights that an old and a new arrangement both use. Not thread-safe. */
struct gw_shared {
    void *data;
    size_t bytes;
    void *mapping; /* that ends with the last holder, or NULL: the data lie in it */
    size_t mapping_bytes;
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
