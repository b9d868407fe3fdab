/* See store.h: the side of a rank. */
#include "store/protocol.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static const int REPLY_S = 10; /* the server does nothing that takes long */

struct gw_store {
    int fd;                    /* -1 once the server has failed */
    struct gw_shared **mapped; /* [mapped_count] */
    int mapped_count, mapped_capacity;
};

socklen_t gw_store_address(const char *out_dir, struct sockaddr_un *address)
{
    struct stat folder;
    if (stat(out_dir, &folder)) return 0;
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "godwit-store-%ld-%llx-%llx",
                          (long)geteuid(), (unsigned long long)folder.st_dev, (unsigned long long)folder.st_ino);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

int gw_store_same_user(int fd)
{
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

gw_err gw_store_connect(const char *out_dir, struct gw_store **out)
{
    gw_err rc = GW_OK;
    struct sockaddr_un address;
    struct timeval limit = {.tv_sec = REPLY_S};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) FAIL(GW_ERR_IO, "cannot make a socket: %s", strerror(errno));
    socklen_t length = gw_store_address(out_dir, &address);
    if (!length || connect(fd, (struct sockaddr *)&address, length))
        FAIL(GW_ERR_NOT_FOUND, "nobody on this node keeps the context of %s: %s", out_dir, strerror(errno));
    if (!gw_store_same_user(fd))
        FAIL(GW_ERR_PEER, "the context store of %s is another user's; it is not used", out_dir);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    *out = gw_alloc(1, sizeof **out);
    (*out)->fd = fd;
    fd = -1;
out:
    if (fd >= 0) close(fd);
    return rc;
}

void gw_store_close(struct gw_store *store)
{
    if (!store) return;
    GW_ASSERT(store->mapped_count == 0);
    if (store->fd >= 0) close(store->fd);
    free(store->mapped);
    free(store);
}

static gw_err give_up(struct gw_store *store, const char *what)
{
    close(store->fd);
    store->fd = -1;
    return gw_fail(GW_ERR_PEER, "the node's context store does not answer (%s)", what);
}

/* Sends a request with `ids` behind it and waits for the reply, and its descriptor if one is wanted. */
static gw_err ask(struct gw_store *store, struct gw_store_request *request, const uint32_t *ids,
                  struct gw_store_reply *reply, int *memory)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    if (store->fd < 0) return gw_fail(GW_ERR_PEER, "the node's context store is gone");
    request->magic = GW_STORE_MAGIC;
    struct iovec out[2] = {{request, sizeof *request},
                           {(void *)(uintptr_t)ids, ids ? request->count * sizeof *ids : 0}};
    struct msghdr message = {.msg_iov = out, .msg_iovlen = ids ? 2 : 1};
    if (sendmsg(store->fd, &message, MSG_NOSIGNAL) < 0) return give_up(store, strerror(errno));
    struct iovec in = {reply, sizeof *reply};
    message = (struct msghdr){
        .msg_iov = &in, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do got = recvmsg(store->fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    int fd = -1;
    struct cmsghdr *part = got >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (part && part->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(part), sizeof fd);
    bool sound = got == sizeof *reply && reply->magic == GW_STORE_MAGIC && (memory || fd < 0);
    if (memory && sound) *memory = fd;
    else if (fd >= 0) close(fd);
    if (!sound) return give_up(store, got < 0 ? strerror(errno) : "its reply is malformed");
    if (reply->error)
        return gw_fail(GW_ERR_MEMORY, "the node's context store has no memory for %s: %s", request->name,
                       strerror(reply->error));
    return GW_OK;
}

gw_err gw_store_take(struct gw_store *store, bool *taken, int *held)
{
    struct gw_store_reply reply;
    gw_err rc = ask(store, &(struct gw_store_request){.op = GW_STORE_TAKE}, NULL, &reply, NULL);
    *taken = rc == GW_OK && reply.found;
    *held = rc == GW_OK ? (int)reply.bytes : 0;
    return rc;
}

/* The last holder has let go: the mapping is gone, the segment is not until gw_store_keep(). */
static void forget(struct gw_shared *segment)
{
    struct gw_store *store = segment->owner;
    for (int i = 0; i < store->mapped_count; i++)
        if (store->mapped[i] == segment) store->mapped[i] = store->mapped[--store->mapped_count];
}

/* Maps whole huge pages of the file, where it has them: with less of one than all, the mapping would be of small pages. */
static gw_err add_mapping(struct gw_store *store, int fd, const struct gw_store_reply *reply,
                          struct gw_shared **segment)
{
    const size_t begin = reply->offset / GW_HUGE_PAGE * GW_HUGE_PAGE, end = reply->offset + reply->bytes;
    const size_t whole = gw_round_up(end, GW_HUGE_PAGE);
    const size_t bytes = (whole < reply->file_bytes ? whole : reply->file_bytes) - begin;
    uint8_t *mapping = gw_map_large(bytes, fd, begin);
    if (mapping == MAP_FAILED)
        return gw_fail(GW_ERR_MEMORY, "cannot map %zu MiB of the context store: %s", bytes >> 20, strerror(errno));
    if (store->mapped_count == store->mapped_capacity) {
        store->mapped_capacity = store->mapped_capacity ? 2 * store->mapped_capacity : 64;
        store->mapped = gw_realloc(store->mapped, (size_t)store->mapped_capacity, sizeof(struct gw_shared *));
    }
    *segment = gw_alloc(1, sizeof **segment);
    **segment = (struct gw_shared){.data = mapping + (reply->offset - begin),
                                   .bytes = reply->bytes,
                                   .mapping = mapping,
                                   .mapping_bytes = bytes,
                                   .holders = 1,
                                   .released = forget,
                                   .owner = store,
                                   .number = reply->id};
    store->mapped[store->mapped_count++] = *segment;
    return GW_OK;
}

gw_err gw_store_map(struct gw_store *store, enum gw_store_scope scope, const char *name, size_t bytes, bool create,
                    struct gw_shared **segment, enum gw_store_found *found)
{
    gw_err rc = GW_OK;
    int fd = -1;
    struct gw_store_reply reply;
    struct gw_store_request request = {
        .op = GW_STORE_MAP, .scope = scope, .create = create, .bytes = bytes ? bytes : 1};
    *segment = NULL;
    GW_ASSERT(strlen(name) < sizeof request.name);
    memcpy(request.name, name, strlen(name));
    TRY(ask(store, &request, NULL, &reply, &fd));
    *found = (enum gw_store_found)reply.found;
    if (*found == GW_STORE_BUSY || *found == GW_STORE_NONE) goto out;
    if (fd < 0 || reply.bytes < request.bytes || reply.file_bytes < reply.bytes ||
        reply.offset > reply.file_bytes - reply.bytes) {
        rc = give_up(store, "memory is missing");
        goto out;
    }
    TRY(add_mapping(store, fd, &reply, segment));
out:
    if (fd >= 0) close(fd);
    return rc;
}

gw_err gw_store_filled(struct gw_store *store, const struct gw_shared *segment)
{
    struct gw_store_reply reply;
    return ask(store, &(struct gw_store_request){.op = GW_STORE_FILLED, .id = segment->number}, NULL, &reply, NULL);
}

gw_err gw_store_keep(struct gw_store *store, uint64_t order)
{
    struct gw_store_reply reply;
    int count = store->mapped_count;
    if (count > GW_STORE_MOST_KEPT) return GW_OK; /* more is kept than needed */
    uint32_t *ids = gw_alloc((size_t)count + 1, sizeof *ids);
    for (int i = 0; i < count; i++) ids[i] = store->mapped[i]->number;
    gw_err rc = ask(store, &(struct gw_store_request){.op = GW_STORE_KEEP, .order = order, .count = (uint32_t)count},
                    ids, &reply, NULL);
    free(ids);
    return rc;
}

gw_err gw_store_usage(struct gw_store *store, uint64_t *bytes)
{
    struct gw_store_reply reply;
    gw_err rc = ask(store, &(struct gw_store_request){.op = GW_STORE_USAGE}, NULL, &reply, NULL);
    *bytes = rc == GW_OK ? reply.bytes : 0;
    return rc;
}
