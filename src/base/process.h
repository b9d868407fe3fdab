/* What this node has for us: memory, CPUs, processes. Local. */
#ifndef GW_BASE_PROCESS_H
#define GW_BASE_PROCESS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that can be used without swapping: the least of MemAvailable and what this process's control group has left. */
uint64_t gw_process_memory(void);
/* CPUs this process may run on. */
int gw_process_cpus(void);

/* The file to start this program from once more. Where it has been replaced, what the kernel still has of it: the same version then goes on, but such a path
 * holds on this node only, and for as long as this process lives. GW_ERR_IO. */
GW_CHECK gw_err gw_process_program(char *path, size_t bytes);

/* When a process of this node started, in clock ticks since boot; 0 if there is none. With its pid it names the process for good. */
uint64_t gw_process_started(int64_t pid);
/* Kills the process of that pid if it is still the one that started then; false if it is not. */
bool gw_process_end(int64_t pid, uint64_t started);
/* Kills every process that descends from this one, again and again until there is none (at most ten seconds), and reaps them. Those whose parents have
 * died are found if this process is a subreaper (prctl(2)). */
void gw_process_end_descendants(void);

#endif
