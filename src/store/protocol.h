/* What the two ends of a store's socket say to each other. Every request has one reply; memory travels as a descriptor with it. Only client.c
 * and server.c include this. */
#ifndef GW_STORE_PROTOCOL_H
#define GW_STORE_PROTOCOL_H

#include "store/store.h"

#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { GW_STORE_MAGIC = 0x67775332, GW_STORE_MOST_KEPT = 16384 };

enum gw_store_op { GW_STORE_TAKE = 1, GW_STORE_MAP, GW_STORE_FILLED, GW_STORE_KEEP, GW_STORE_USAGE };

struct gw_store_request {
    uint32_t magic, op;
    uint32_t scope, create;
    uint32_t id;    /* FILLED: the segment */
    uint32_t count; /* KEEP: so many segments (uint32 each) follow */
    uint64_t bytes; /* MAP: at least */
    uint64_t order; /* KEEP */
    char name[GW_STORE_NAME_BYTES];
};

struct gw_store_reply {
    uint32_t magic;
    int32_t error; /* an errno, or 0 */
    uint32_t id;
    uint32_t found;              /* MAP: enum gw_store_found; TAKE: 0 or 1 */
    uint64_t bytes;              /* MAP: of the segment; USAGE; TAKE: how many processes hold a context under a plan */
    uint64_t offset, file_bytes; /* MAP: where the segment begins in the file, and the file's size */
};

/* The abstract address that stands for the job in `out_dir` and this user; 0 bytes with errno when the folder cannot be looked at. */
socklen_t gw_store_address(const char *out_dir, struct sockaddr_un *address);
/* Is the other end of the socket a process of this user? */
int gw_store_same_user(int fd);

#endif
