/* See process.h. Reads /proc/meminfo and the control group files of version 2 (a Slurm job's limit is one). */
#include "base/process.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
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

uint64_t gw_process_memory(void)
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

int gw_process_cpus(void)
{
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return CPU_COUNT(&cpus);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

gw_err gw_process_program(char *path, size_t bytes)
{
    ssize_t length = readlink("/proc/self/exe", path, bytes - 1);
    if (length < 0) return gw_fail(GW_ERR_IO, "cannot find this program: %s", strerror(errno));
    path[length] = 0;
    if (access(path, X_OK)) snprintf(path, bytes, "/proc/%d/exe", (int)getpid());
    return GW_OK;
}

uint64_t gw_process_started(int64_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[bytes] = 0;
    /* field 22; the second is the name in brackets, which may hold anything (proc(5)) */
    const char *at = strrchr(text, ')');
    unsigned long long started = 0;
    if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                      &started) != 1)
        return 0;
    return started;
}

bool gw_process_end(int64_t pid, uint64_t started)
{
    if (pid <= 1 || !started || gw_process_started(pid) != started) return false;
    return kill((pid_t)pid, SIGKILL) == 0;
}

struct parent {
    pid_t pid, parent;
    bool below; /* a descendant */
};

/* Everything that runs here; zombies are left out. */
static struct parent *list_processes(int *count)
{
    int capacity = 256;
    struct parent *list = gw_alloc((size_t)capacity, sizeof *list);
    DIR *dir = opendir("/proc");
    *count = 0;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[64], text[1024], state;
        int parent;
        long pid = strtol(entry->d_name, NULL, 10);
        if (pid <= 0) continue;
        snprintf(path, sizeof path, "/proc/%ld/stat", pid);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        size_t bytes = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[bytes] = 0;
        const char *at = strrchr(text, ')');
        if (!at || sscanf(at + 1, " %c %d", &state, &parent) != 2 || state == 'Z' || state == 'X') continue;
        if (*count == capacity) list = gw_realloc(list, (size_t)(capacity *= 2), sizeof *list);
        list[(*count)++] = (struct parent){.pid = (pid_t)pid, .parent = parent};
    }
    if (dir) closedir(dir);
    return list;
}

static int kill_descendants(void)
{
    int count, found = 0;
    struct parent *list = list_processes(&count);
    for (bool any = true; any;) {
        any = false;
        for (int i = 0; i < count; i++) {
            if (list[i].below) continue;
            bool below = list[i].parent == getpid();
            for (int j = 0; j < count && !below; j++) below = list[j].below && list[j].pid == list[i].parent;
            list[i].below = below;
            any |= below;
        }
    }
    for (int i = 0; i < count; i++) found += list[i].below && kill(list[i].pid, SIGKILL) == 0;
    free(list);
    return found;
}

void gw_process_end_descendants(void)
{
    const double until_s = gw_clock_now_s() + 10; /* one that hangs in the kernel cannot be waited for */
    while (gw_clock_now_s() < until_s) {
        int left = kill_descendants();
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
        if (!left) return;
        usleep(1000);
    }
}
