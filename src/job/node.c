/* See node.h. Reads /proc/meminfo and the control group files of version 2 (a Slurm job's limit is one). */
#include "job/node.h"

#include "base/file.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t meminfo_bytes(void)
{
    char *text = NULL;
    uint64_t kib = 0;
    if (gw_file_read("/proc/meminfo", 1 << 20, &text, NULL) == GW_OK) {
        const char *line = strstr(text, "MemAvailable:");
        if (line) kib = strtoull(line + strlen("MemAvailable:"), NULL, 10);
    }
    free(text);
    return kib ? kib * 1024 : (uint64_t)4 << 30;
}

/* A number in a file of this process's control group; `none` when there is no such limit. */
static uint64_t group_number(const char *group, const char *file, uint64_t none)
{
    char path[512];
    char *text = NULL;
    uint64_t number = none;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", group, file);
    if (gw_file_read(path, 4096, &text, NULL) == GW_OK && text[0] >= '0' && text[0] <= '9')
        number = strtoull(text, NULL, 10);
    free(text);
    return number;
}

uint64_t gw_node_memory(void)
{
    uint64_t available = meminfo_bytes();
    char *text = NULL;
    if (gw_file_read("/proc/self/cgroup", 1 << 16, &text, NULL) == GW_OK) {
        char *group = strstr(text, "0::");
        if (group) {
            group += 3;
            group[strcspn(group, "\n")] = 0;
            uint64_t most = group_number(group, "memory.max", UINT64_MAX);
            uint64_t used = group_number(group, "memory.current", 0);
            if (most != UINT64_MAX && (most > used ? most - used : 0) < available)
                available = most > used ? most - used : 0;
        }
    }
    free(text);
    return available;
}

int gw_node_cpus(void)
{
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return CPU_COUNT(&cpus);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}
