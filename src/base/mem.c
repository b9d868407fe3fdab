/* See mem.h. */
#include "base/mem.h"

#include <errno.h>
#include <pthread.h>
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
    const bool huge = bytes >= GW_HUGE_PAGE;
    void *memory = NULL;
    if (posix_memalign(&memory, huge ? GW_HUGE_PAGE : line, bytes)) out_of_memory(bytes);
    if (huge) madvise(memory, bytes / GW_HUGE_PAGE * GW_HUGE_PAGE, MADV_HUGEPAGE);
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

/* As in Linux 6.1 and 5.14; what is older refuses them, and headers may not have them yet. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

size_t gw_large_bytes(size_t bytes)
{
    size_t whole = gw_round_up(bytes, GW_HUGE_PAGE);
    return whole >= bytes && whole - bytes <= bytes / 4 ? whole : bytes ? bytes : 1;
}

bool gw_goes_to_slab(size_t bytes)
{
    return bytes < GW_SLAB_BYTES && gw_large_bytes(bytes) % GW_HUGE_PAGE;
}

static size_t whole_pages(size_t bytes)
{
    return gw_round_up(bytes, (size_t)sysconf(_SC_PAGESIZE));
}

void *gw_map_large(size_t bytes, int fd, size_t offset)
{
    /* Room for an aligned mapping is taken first: not all kernels align by themselves. */
    if (bytes > SIZE_MAX / 2) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    bytes = whole_pages(bytes);
    const size_t spare = bytes >= GW_HUGE_PAGE ? GW_HUGE_PAGE : 0;
    uint8_t *room = mmap(NULL, bytes + spare, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return room;
    size_t before = spare ? (GW_HUGE_PAGE - (uintptr_t)room % GW_HUGE_PAGE) % GW_HUGE_PAGE : 0;
    void *mapped = mmap(room + before, bytes, PROT_READ | PROT_WRITE,
                        MAP_FIXED | (fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), fd, (off_t)offset);
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

bool gw_back_large(void *memory, size_t bytes)
{
    enum { BACK_TRIES = 4 };
    const size_t small = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = gw_round_up((uintptr_t)memory, GW_HUGE_PAGE);
    uintptr_t end = ((uintptr_t)memory + bytes) / GW_HUGE_PAGE * GW_HUGE_PAGE;
    for (; begin < end; begin += GW_HUGE_PAGE) {
        /* One small page must be there for a huge one to take its place; for a moment it may be in use by the system itself. */
        if (madvise((void *)begin, small, MADV_POPULATE_WRITE)) return false;
        for (int i = 0; i < BACK_TRIES && madvise((void *)begin, GW_HUGE_PAGE, MADV_COLLAPSE); i++)
            if (errno != EAGAIN) return false;
    }
    return true;
}

gw_err gw_alloc_large(size_t bytes, const char *what, void **memory)
{
    *memory = NULL;
    void *mapped = gw_map_large(gw_large_bytes(bytes), -1, 0);
    if (mapped == MAP_FAILED)
        return gw_fail(GW_ERR_MEMORY, "no memory for %s (%zu MiB): %s", what, bytes >> 20, strerror(errno));
    *memory = mapped;
    return GW_OK;
}

void gw_free_large(void *memory, size_t bytes)
{
    if (memory) munmap(memory, gw_large_bytes(bytes));
}

/* ---- with several holders ---------------------------------------------------------------------------------------- */

/* Private memory of GW_SLAB_BYTES, in which parts lie side by side. It goes with the last of them. */
struct slab {
    uint8_t *data;
    size_t used;
    int parts;
};

static struct slab *filling; /* the latest: it may have room */
static pthread_mutex_t slab_lock = PTHREAD_MUTEX_INITIALIZER;

static void leave_slab(struct gw_shared *part)
{
    struct slab *slab = part->owner;
    pthread_mutex_lock(&slab_lock);
    madvise(part->data, part->bytes, MADV_DONTNEED); /* the others may stay for long */
    if (--slab->parts == 0) {
        if (slab == filling) filling = NULL;
        gw_free_large(slab->data, GW_SLAB_BYTES);
        free(slab);
    }
    pthread_mutex_unlock(&slab_lock);
}

static gw_err enter_slab(struct gw_shared *part, const char *what)
{
    gw_err rc = GW_OK;
    void *data = NULL;
    const size_t bytes = whole_pages(part->bytes);
    pthread_mutex_lock(&slab_lock);
    if (!filling || filling->used + bytes > GW_SLAB_BYTES) {
        TRY(gw_alloc_large(GW_SLAB_BYTES, what, &data));
        filling = gw_alloc(1, sizeof *filling);
        filling->data = data;
    }
    part->data = filling->data + filling->used;
    part->owner = filling;
    part->released = leave_slab;
    filling->used += bytes;
    filling->parts++;
out:
    pthread_mutex_unlock(&slab_lock);
    return rc;
}

gw_err gw_shared_create(size_t bytes, const char *what, struct gw_shared **out)
{
    gw_err rc = GW_OK;
    struct gw_shared *shared = gw_alloc(1, sizeof *shared);
    *shared = (struct gw_shared){.bytes = bytes, .holders = 1};
    if (gw_goes_to_slab(bytes)) {
        TRY(enter_slab(shared, what));
    } else {
        TRY(gw_alloc_large(bytes, what, &shared->data));
        shared->mapping = shared->data;
        shared->mapping_bytes = gw_large_bytes(bytes);
    }
    *out = shared;
    shared = NULL;
out:
    free(shared);
    return rc;
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
    if (shared->mapping) munmap(shared->mapping, shared->mapping_bytes);
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
