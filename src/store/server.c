/* See store.h: the side that owns the memory. One thread, one poll; nothing it does takes long. */
#include "store/protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_CLIENTS = 4096, MOST_BYTES = sizeof(struct gw_store_request) + GW_STORE_MOST_KEPT * sizeof(uint32_t) };

/* A memory file with one segment, or, a slab, of shared ones that fill no huge pages of their own. It goes with the last of them, not part by part: a client
 * that has hung up may still map what nobody else wants. */
struct file {
    int fd;
    uint64_t bytes, used;
    int segments;
    bool counted; /* by usage() */
};

struct segment {
    uint32_t id;
    uint32_t context; /* whose own; 0: shared */
    uint32_t filler;  /* the context that is filling it; 0: it is filled, or own */
    struct file *file;
    uint64_t offset; /* in it */
    uint64_t bytes;
    char name[GW_STORE_NAME_BYTES];
};

/* What one process holds, or has left behind. */
struct context {
    uint32_t id;
    int fd;          /* its connection; -1: the process is gone */
    uint64_t order;  /* of its last KEEP */
    bool taken;      /* from a process that is gone, and no KEEP since */
    uint32_t *wants; /* segments */
    uint32_t want_count, want_capacity;
};

struct gw_store_server {
    pthread_t thread;
    int listener, wake;
    uint32_t last_id; /* of segments and contexts */
    uint64_t order;   /* the latest */
    struct segment *segments;
    int segment_count, segment_capacity;
    struct file *slab; /* the latest: it may have room; or NULL */
    struct context *contexts;
    int context_count, context_capacity;
    uint8_t *request; /* [MOST_BYTES] */
};

/* ---- what is held ---------------------------------------------------------------------------------------------- */

static bool wants(const struct context *context, uint32_t id)
{
    for (uint32_t i = 0; i < context->want_count; i++)
        if (context->wants[i] == id) return true;
    return false;
}

static void want(struct context *context, uint32_t id)
{
    if (wants(context, id)) return;
    if (context->want_count == context->want_capacity) {
        context->want_capacity = context->want_capacity ? 2 * context->want_capacity : 64;
        context->wants = gw_realloc(context->wants, context->want_capacity, sizeof *context->wants);
    }
    context->wants[context->want_count++] = id;
}

static struct context *context_by_id(struct gw_store_server *server, uint32_t id)
{
    for (int i = 0; i < server->context_count; i++)
        if (server->contexts[i].id == id) return &server->contexts[i];
    return NULL;
}

static struct context *context_by_fd(struct gw_store_server *server, int fd)
{
    for (int i = 0; i < server->context_count; i++)
        if (server->contexts[i].fd == fd) return &server->contexts[i];
    return NULL;
}

static void drop_context(struct gw_store_server *server, struct context *context)
{
    if (context->fd >= 0) close(context->fd);
    free(context->wants);
    *context = server->contexts[--server->context_count];
}

static void drop_segment(struct gw_store_server *server, int at)
{
    struct file *file = server->segments[at].file;
    server->segments[at] = server->segments[--server->segment_count];
    if (--file->segments) return;
    if (server->slab == file) server->slab = NULL;
    close(file->fd);
    free(file);
}

/* Contexts that nobody will take over and segments that nobody wants. */
static void sweep(struct gw_store_server *server)
{
    for (int i = server->context_count - 1; i >= 0; i--) {
        struct context *context = &server->contexts[i];
        if (context->fd < 0 && (context->order == 0 || context->order < server->order)) drop_context(server, context);
    }
    for (int s = server->segment_count - 1; s >= 0; s--) {
        const struct segment *segment = &server->segments[s];
        bool wanted = false;
        for (int i = 0; i < server->context_count && !wanted; i++) {
            const struct context *context = &server->contexts[i];
            wanted = (!segment->context || segment->context == context->id) && wants(context, segment->id);
        }
        if (!wanted) drop_segment(server, s);
    }
}

/* Its process is gone. What it was filling must be filled by another. */
static void orphan(struct gw_store_server *server, struct context *context)
{
    for (int s = server->segment_count - 1; s >= 0; s--)
        if (server->segments[s].filler == context->id) drop_segment(server, s);
    close(context->fd);
    context->fd = -1;
    sweep(server);
}

/* ---- requests -------------------------------------------------------------------------------------------------- */

/* The latest context that was left behind becomes that of the process that asks; its own, still empty, goes. */
static void take(struct gw_store_server *server, int fd, struct gw_store_reply *reply)
{
    struct context *best = NULL;
    for (int i = 0; i < server->context_count; i++) {
        struct context *context = &server->contexts[i];
        reply->bytes += context->fd >= 0 && context->order > 0 && !context->taken;
        if (context->fd < 0 &&
            (!best || context->order > best->order || (context->order == best->order && context->id < best->id)))
            best = context;
    }
    if (!best) return;
    uint32_t id = best->id;
    struct context *empty = context_by_fd(server, fd);
    empty->fd = -1;
    drop_context(server, empty);
    struct context *mine = context_by_id(server, id);
    mine->fd = fd;
    mine->taken = true;
    reply->found = 1;
}

static int find_segment(const struct gw_store_server *server, uint32_t context, const char *name)
{
    for (int s = 0; s < server->segment_count; s++)
        if (server->segments[s].context == context && !strcmp(server->segments[s].name, name)) return s;
    return -1;
}

/* A file of so many bytes; NULL with errno. */
static struct file *new_file(uint64_t bytes)
{
    int fd = memfd_create("godwit-store", MFD_CLOEXEC);
    if (fd < 0) return NULL;
    if (ftruncate(fd, (off_t)bytes)) {
        int error = errno;
        close(fd);
        errno = error;
        return NULL;
    }
    struct file *file = gw_alloc(1, sizeof *file);
    *file = (struct file){.fd = fd, .bytes = bytes};
    return file;
}

/* The file for a new segment, at its `used`; NULL with errno. */
static struct file *file_for(struct gw_store_server *server, uint64_t bytes, bool shared)
{
    if (!shared || !gw_goes_to_slab(bytes)) return new_file(gw_large_bytes(bytes));
    if (!server->slab || server->slab->used + bytes > GW_SLAB_BYTES) {
        struct file *slab = new_file(GW_SLAB_BYTES);
        if (!slab) return NULL;
        server->slab = slab;
    }
    return server->slab;
}

/* The number of the new segment, or -1 with errno. */
static int add_segment(struct gw_store_server *server, const struct gw_store_request *request, uint32_t context,
                       uint32_t filler)
{
    struct file *file = file_for(server, request->bytes, context == 0);
    if (!file) return -1;
    if (server->segment_count == server->segment_capacity) {
        server->segment_capacity = server->segment_capacity ? 2 * server->segment_capacity : 256;
        server->segments = gw_realloc(server->segments, (size_t)server->segment_capacity, sizeof *server->segments);
    }
    struct segment *segment = &server->segments[server->segment_count];
    *segment = (struct segment){.id = ++server->last_id,
                                .context = context,
                                .filler = filler,
                                .file = file,
                                .offset = file->used,
                                .bytes = request->bytes};
    memcpy(segment->name, request->name, sizeof segment->name);
    file->used += gw_round_up(request->bytes, (size_t)sysconf(_SC_PAGESIZE));
    file->segments++;
    return server->segment_count++;
}

/* Returns the descriptor to send, or -1. */
static int map(struct gw_store_server *server, struct context *context, struct gw_store_request *request,
               struct gw_store_reply *reply)
{
    bool own = request->scope == GW_STORE_OWN;
    request->name[sizeof request->name - 1] = 0;
    int at = find_segment(server, own ? context->id : 0, request->name);
    if (at >= 0 && server->segments[at].bytes < request->bytes) { /* of another size: made anew */
        drop_segment(server, at);
        at = -1;
    }
    reply->found = GW_STORE_FOUND;
    if (at >= 0 && server->segments[at].filler) {
        reply->found = GW_STORE_BUSY;
        return -1;
    }
    if (at < 0) {
        reply->found = request->create ? GW_STORE_NEW : GW_STORE_NONE;
        if (!request->create) return -1;
        at = add_segment(server, request, own ? context->id : 0, own ? 0 : context->id);
        if (at < 0) {
            reply->error = errno;
            return -1;
        }
    }
    const struct segment *segment = &server->segments[at];
    want(context, segment->id);
    reply->id = segment->id;
    reply->bytes = segment->bytes;
    reply->offset = segment->offset;
    reply->file_bytes = segment->file->bytes;
    return segment->file->fd;
}

static void keep(struct gw_store_server *server, struct context *context, const struct gw_store_request *request)
{
    const uint8_t *ids = server->request + sizeof *request;
    context->want_count = 0;
    for (uint32_t i = 0; i < request->count; i++) {
        uint32_t id;
        memcpy(&id, ids + i * sizeof id, sizeof id);
        want(context, id);
    }
    context->order = request->order;
    context->taken = false;
    if (request->order > server->order) server->order = request->order;
    sweep(server);
}

static uint64_t usage(const struct gw_store_server *server)
{
    uint64_t bytes = 0;
    struct stat memory;
    for (int s = 0; s < server->segment_count; s++) server->segments[s].file->counted = false;
    for (int s = 0; s < server->segment_count; s++) {
        struct file *file = server->segments[s].file;
        if (!file->counted && fstat(file->fd, &memory) == 0) bytes += (uint64_t)memory.st_blocks * 512;
        file->counted = true;
    }
    return bytes;
}

static void answer(int fd, const struct gw_store_reply *reply, int memory)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec out = {(void *)(uintptr_t)reply, sizeof *reply};
    struct msghdr message = {.msg_iov = &out, .msg_iovlen = 1};
    if (memory >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(part), &memory, sizeof memory);
    }
    /* a client asks one thing at a time, so there is room; one that is gone is noticed by the next poll */
    if (sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
}

/* One request; false when the client is gone or talks nonsense. */
static bool serve(struct gw_store_server *server, int fd)
{
    struct gw_store_request request;
    struct gw_store_reply reply = {.magic = GW_STORE_MAGIC};
    struct context *context = context_by_fd(server, fd);
    int memory = -1;
    ssize_t got = recv(fd, server->request, MOST_BYTES, MSG_DONTWAIT);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if ((size_t)got < sizeof request) return false;
    memcpy(&request, server->request, sizeof request);
    if (request.magic != GW_STORE_MAGIC ||
        (size_t)got != sizeof request + (request.op == GW_STORE_KEEP ? request.count * sizeof(uint32_t) : 0))
        return false;
    if (request.op == GW_STORE_TAKE) take(server, fd, &reply);
    else if (request.op == GW_STORE_MAP) memory = map(server, context, &request, &reply);
    else if (request.op == GW_STORE_KEEP) keep(server, context, &request);
    else if (request.op == GW_STORE_USAGE) reply.bytes = usage(server);
    else if (request.op != GW_STORE_FILLED) return false;
    for (int s = 0; request.op == GW_STORE_FILLED && s < server->segment_count; s++)
        if (server->segments[s].id == request.id && server->segments[s].filler == context->id)
            server->segments[s].filler = 0;
    answer(fd, &reply, memory);
    return true;
}

/* ---- the thread ------------------------------------------------------------------------------------------------ */

static void welcome(struct gw_store_server *server)
{
    int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    if (!gw_store_same_user(fd) || server->context_count >= MOST_CLIENTS) {
        close(fd);
        return;
    }
    if (server->context_count == server->context_capacity) {
        server->context_capacity = server->context_capacity ? 2 * server->context_capacity : 16;
        server->contexts = gw_realloc(server->contexts, (size_t)server->context_capacity, sizeof *server->contexts);
    }
    server->contexts[server->context_count++] = (struct context){.id = ++server->last_id, .fd = fd};
}

static void *run(void *arg)
{
    struct gw_store_server *server = arg;
    struct pollfd *polled = NULL;
    for (;;) {
        nfds_t count = 2;
        polled = gw_realloc(polled, (size_t)server->context_count + 2, sizeof *polled);
        polled[0] = (struct pollfd){.fd = server->wake, .events = POLLIN};
        polled[1] = (struct pollfd){.fd = server->listener, .events = POLLIN};
        for (int i = 0; i < server->context_count; i++)
            if (server->contexts[i].fd >= 0)
                polled[count++] = (struct pollfd){.fd = server->contexts[i].fd, .events = POLLIN};
        if (poll(polled, count, -1) < 0) continue;
        if (polled[0].revents) break;
        /* who has gone comes first: the next one may want to take over from it */
        for (int round = 0; round < 2; round++)
            for (nfds_t i = 2; i < count; i++) {
                struct context *context = polled[i].revents ? context_by_fd(server, polled[i].fd) : NULL;
                bool gone = polled[i].revents & (POLLHUP | POLLERR);
                if (!context || gone != (round == 0)) continue;
                if (gone || !serve(server, polled[i].fd)) orphan(server, context_by_fd(server, polled[i].fd));
            }
        if (polled[1].revents) welcome(server);
    }
    free(polled);
    return NULL;
}

/* A large model has many layers, and every rank a KV segment for each. */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) return; /* then segments that do not fit are the ranks' own memory */
}

static void free_server(struct gw_store_server *server)
{
    while (server->context_count) drop_context(server, &server->contexts[0]);
    while (server->segment_count) drop_segment(server, 0);
    if (server->listener >= 0) close(server->listener);
    if (server->wake >= 0) close(server->wake);
    free(server->contexts);
    free(server->segments);
    free(server->request);
    free(server);
}

gw_err gw_store_serve(const char *out_dir, struct gw_store_server **out)
{
    gw_err rc = GW_OK;
    struct sockaddr_un address;
    struct gw_store_server *server = gw_alloc(1, sizeof *server);
    server->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    server->wake = eventfd(0, EFD_CLOEXEC);
    server->request = gw_alloc(MOST_BYTES, 1);
    if (server->listener < 0 || server->wake < 0) FAIL(GW_ERR_IO, "cannot make a socket: %s", strerror(errno));
    socklen_t length = gw_store_address(out_dir, &address);
    if (!length) FAIL(GW_ERR_NOT_FOUND, "cannot look at %s: %s", out_dir, strerror(errno));
    if (bind(server->listener, (struct sockaddr *)&address, length) || listen(server->listener, 64))
        FAIL(errno == EADDRINUSE ? GW_ERR_MISMATCH : GW_ERR_IO, "cannot keep the context of %s on this node: %s",
             out_dir, errno == EADDRINUSE ? "another process does" : strerror(errno));
    raise_file_limit();
    int error = pthread_create(&server->thread, NULL, run, server);
    if (error) FAIL(GW_ERR_IO, "cannot start a thread: %s", strerror(error));
    *out = server;
    server = NULL;
out:
    if (server) free_server(server);
    return rc;
}

void gw_store_end(struct gw_store_server *server)
{
    uint64_t one = 1;
    if (!server) return;
    if (write(server->wake, &one, sizeof one) == sizeof one) pthread_join(server->thread, NULL);
    free_server(server);
}
