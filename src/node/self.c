/* See self.h. */
#include "node/self.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/speed.h"
#include "kernels/kernels.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- address --------------------------------------------------------------------------------------------------- */

/* Only IPv4 networks: the launcher's option knows no others. */
static bool in_network(const struct in_addr *address, const char *net, bool *valid)
{
    char text[GW_ADDRESS_BYTES];
    struct in_addr base;
    int bits = 32;
    const char *slash = strchr(net, '/');
    size_t length = slash ? (size_t)(slash - net) : strlen(net);
    *valid = length < sizeof text;
    if (!*valid) return false;
    memcpy(text, net, length);
    text[length] = 0;
    if (slash) bits = atoi(slash + 1);
    *valid = inet_pton(AF_INET, text, &base) == 1 && bits > 0 && bits <= 32;
    uint32_t mask = *valid ? htonl(~(uint32_t)0 << (32 - bits)) : 0;
    return *valid && (address->s_addr & mask) == (base.s_addr & mask);
}

static bool own_address(const struct in_addr *wanted, const struct ifaddrs *list)
{
    for (const struct ifaddrs *i = list; i; i = i->ifa_next)
        if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET &&
            ((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr == wanted->s_addr)
            return true;
    return false;
}

/* What the host's name stands for, if that is an address of this machine and not the loopback's. */
static bool named_address(const struct ifaddrs *list, struct in_addr *address)
{
    char name[256];
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
    bool good = false;
    if (gethostname(name, sizeof name) || getaddrinfo(name, NULL, &hints, &found)) return false;
    for (struct addrinfo *i = found; i && !good; i = i->ai_next) {
        *address = ((struct sockaddr_in *)i->ai_addr)->sin_addr;
        good = (ntohl(address->s_addr) >> 24) != 127 && own_address(address, list);
    }
    freeaddrinfo(found);
    return good;
}

gw_err gw_self_address(const char *net, char address[GW_ADDRESS_BYTES])
{
    gw_err rc = GW_OK;
    struct ifaddrs *list = NULL;
    struct in_addr chosen = {.s_addr = htonl(INADDR_LOOPBACK)};
    bool valid = true, found = false;
    if (getifaddrs(&list)) return gw_fail(GW_ERR_IO, "cannot list network interfaces: %s", strerror(errno));
    if (!net) found = named_address(list, &chosen);
    for (struct ifaddrs *i = list; i && !found; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !(i->ifa_flags & IFF_UP)) continue;
        const struct in_addr *one = &((struct sockaddr_in *)i->ifa_addr)->sin_addr;
        if (net ? !in_network(one, net, &valid) : (i->ifa_flags & IFF_LOOPBACK) != 0) continue;
        chosen = *one;
        found = true;
    }
    if (net && !valid) FAIL(GW_ERR_USAGE, "--net '%s' is no network such as 10.1.0.0/16", net);
    if (net && !found) FAIL(GW_ERR_USAGE, "--net %s: this node has no address there", net);
    inet_ntop(AF_INET, &chosen, address, GW_ADDRESS_BYTES);
out:
    freeifaddrs(list);
    return rc;
}

/* ---- scratch --------------------------------------------------------------------------------------------------- */

#define SCRATCH_PREFIX "godwit-node-"

static void remove_stale(const char *parent)
{
    DIR *dir = opendir(parent);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        struct stat st;
        if (strncmp(entry->d_name, SCRATCH_PREFIX, strlen(SCRATCH_PREFIX))) continue;
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue;
        if (fstat(fd, &st) == 0 && st.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0) {
            char *path = gw_asprintf("%s/%s", parent, entry->d_name);
            gw_remove_tree(path);
            free(path);
        }
        close(fd);
    }
    if (dir) closedir(dir);
}

gw_err gw_self_make_scratch(char **path, int *lock)
{
    const char *tmp = getenv("TMPDIR");
    const char *parents[] = {"/dev/shm", tmp ? tmp : "/tmp", "/tmp"};
    *lock = -1;
    for (size_t i = 0; i < sizeof parents / sizeof *parents; i++) {
        if (strpbrk(parents[i], " :,")) continue; /* the launcher splits its words there */
        remove_stale(parents[i]);
        *path = gw_asprintf("%s/" SCRATCH_PREFIX "XXXXXX", parents[i]);
        if (mkdtemp(*path)) {
            *lock = open(*path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (*lock >= 0 && flock(*lock, LOCK_EX | LOCK_NB) == 0) return GW_OK;
            if (*lock >= 0) close(*lock);
            rmdir(*path);
        }
        free(*path);
        *path = NULL;
    }
    return gw_fail(GW_ERR_IO, "cannot make a folder in /dev/shm, %s or /tmp: %s", parents[1], strerror(errno));
}

void gw_self_remove_scratch(char *path, int lock)
{
    if (path) gw_remove_tree(path);
    if (lock >= 0) close(lock);
    free(path);
}

/* ---- speed ----------------------------------------------------------------------------------------------------- */

static const double MEASURE_S = 0.08;

gw_err gw_self_measure(struct gw_lease *lease)
{
    gw_err rc = GW_OK;
    const struct gw_kernels *kernels;
    TRY(gw_kernels_get(&kernels));
    snprintf(lease->kernels, sizeof lease->kernels, "%s", kernels->name);
    TRY(gw_speed_measure(lease->cpus > 0 ? lease->cpus : 1, MEASURE_S, &lease->gflops));
out:
    return rc;
}
