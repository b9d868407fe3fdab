/* See mem.h. */
#include "base/mem.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static _Noreturn void out_of_memory(size_t bytes)
{
    fprintf(stderr, "godwit: out of memory: %zu bytes were refused; use fewer ranks or a node with more memory\n",
            bytes);
    _exit(gw_err_exit_code(GW_ERR_MEMORY));
}

enum { HUGE_PAGE = 2 << 20 }; /* of x86 and most others; where it is another size, only alignment is wasted */

void *gw_alloc(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory) out_of_memory(count * size);
    return memory;
}

void *gw_alloc_lines(size_t count, size_t size)
{
    const size_t line = 64;
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX - line) out_of_memory(SIZE_MAX);
    bytes = (bytes / line + 1) * line;
    const bool huge = bytes >= HUGE_PAGE;
    void *memory = NULL;
    if (posix_memalign(&memory, huge ? HUGE_PAGE : line, bytes)) out_of_memory(bytes);
    if (huge) madvise(memory, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return memory;
}

void *gw_realloc(void *old, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) out_of_memory(SIZE_MAX);
    void *memory = realloc(old, bytes ? bytes : 1);
    if (!memory) out_of_memory(bytes);
    return memory;
}

char *gw_strndup(const char *text, size_t bytes)
{
    char *copy = gw_alloc(bytes + 1, 1);
    memcpy(copy, text, bytes);
    return copy;
}

char *gw_strdup(const char *text)
{
    return gw_strndup(text, strlen(text));
}

char *gw_asprintf(const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int length = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    GW_ASSERT(length >= 0);
    char *text = gw_alloc((size_t)length + 1, 1);
    vsnprintf(text, (size_t)length + 1, fmt, again);
    va_end(again);
    return text;
}

/* ---- large memory ------------------------------------------------------------------------------------------------ */

size_t gw_large_bytes(size_t bytes)
{
    size_t whole = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    return whole >= bytes && whole - bytes <= bytes / 4 ? whole : bytes ? bytes : 1;
}

void *gw_map_large(size_t bytes, int fd)
{
    /* Room for an aligned mapping is taken first: not all kernels align by themselves. */
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (bytes > SIZE_MAX / 2) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    bytes = (gw_large_bytes(bytes) + page - 1) / page * page;
    const size_t spare = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    uint8_t *room = mmap(NULL, bytes + spare, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return room;
    size_t before = spare ? (HUGE_PAGE - (uintptr_t)room % HUGE_PAGE) % HUGE_PAGE : 0;
    void *mapped = mmap(room + before, bytes, PROT_READ | PROT_WRITE,
                        MAP_FIXED | (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), fd, 0);
    if (mapped == MAP_FAILED) {
        int why = errno;
        munmap(room, bytes + spare);
        errno = why;
        return mapped;
    }
    if (before) munmap(room, before);
    if (before < spare) munmap(room + before + bytes, spare - before);
    madvise(mapped, bytes, MADV_HUGEPAGE); /* only a hint */
    return mapped;
}

gw_err gw_alloc_large(size_t bytes, const char *what, void **memory)
{
    *memory = NULL;
    void *mapped = gw_map_large(bytes, -1);
    if (mapped == MAP_FAILED)
        return gw_fail(GW_ERR_MEMORY, "no memory for %s (%zu MiB): %s", what, bytes >> 20, strerror(errno));
    *memory = mapped;
    return GW_OK;
}

void gw_free_large(void *memory, size_t bytes)
{
    if (memory) munmap(memory, gw_large_bytes(bytes));
}

gw_err gw_shared_create(size_t bytes, const char *what, struct gw_shared **out)
{
    struct gw_shared *shared = gw_alloc(1, sizeof *shared);
    gw_err rc = gw_alloc_large(bytes, what, &shared->data);
    if (rc != GW_OK) {
        free(shared);
        return rc;
    }
    shared->bytes = bytes;
    shared->holders = 1;
    *out = shared;
    return GW_OK;
}

struct gw_shared *gw_shared_hold(struct gw_shared *shared)
{
    shared->holders++;
    return shared;
}

void gw_shared_release(struct gw_shared *shared)
{
    if (!shared || --shared->holders) return;
    if (shared->released) shared->released(shared);
    gw_free_large(shared->data, shared->bytes);
    free(shared);
}

void gw_buf_reserve(struct gw_buf *buf, size_t more_bytes)
{
    size_t need;
    if (__builtin_add_overflow(buf->bytes, more_bytes, &need)) out_of_memory(SIZE_MAX);
    if (need <= buf->capacity) return;
    size_t capacity = buf->capacity ? buf->capacity : 256;
    while (capacity < need) capacity *= 2;
    buf->data = gw_realloc(buf->data, capacity, 1);
    buf->capacity = capacity;
}

void gw_buf_add(struct gw_buf *buf, const void *data, size_t bytes)
{
    if (!bytes) return;
    gw_buf_reserve(buf, bytes);
    memcpy(buf->data + buf->bytes, data, bytes);
    buf->bytes += bytes;
}

void gw_buf_add_u32(struct gw_buf *buf, uint32_t value)
{
    gw_buf_add(buf, &value, sizeof value);
}

void gw_buf_add_u64(struct gw_buf *buf, uint64_t value)
{
    gw_buf_add(buf, &value, sizeof value);
}

void gw_buf_add_text(struct gw_buf *buf, const char *text)
{
    gw_buf_add(buf, text, strlen(text));
}

void gw_buf_clear(struct gw_buf *buf)
{
    buf->bytes = 0;
}

void gw_buf_free(struct gw_buf *buf)
{
    free(buf->data);
    *buf = (struct gw_buf){0};
}

const void *gw_read(struct gw_reader *reader, size_t bytes)
{
    if (reader->failed || bytes > reader->bytes - reader->at) {
        reader->failed = true;
        return NULL;
    }
    const void *data = reader->data + reader->at;
    reader->at += bytes;
    return data;
}

uint32_t gw_read_u32(struct gw_reader *reader)
{
    uint32_t value = 0;
    const void *data = gw_read(reader, sizeof value);
    if (data) memcpy(&value, data, sizeof value);
    return value;
}

uint64_t gw_read_u64(struct gw_reader *reader)
{
    uint64_t value = 0;
    const void *data = gw_read(reader, sizeof value);
    if (data) memcpy(&value, data, sizeof value);
    return value;
}
