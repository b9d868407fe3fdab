/* What this node has for us: memory, CPUs, processes. Local. */
#ifndef GW_JOB_NODE_H
#define GW_JOB_NODE_H

#include <stdbool.h>
#include <stdint.h>

/* Bytes that can be used without swapping: the least of MemAvailable and what this process's control group has left. */
uint64_t gw_node_memory(void);
/* CPUs this process may run on. */
int gw_node_cpus(void);

/* When a process of this node started, in clock ticks since boot; 0 if there is none. With its pid it names the process for good. */
uint64_t gw_node_process_start(int64_t pid);
/* Kills the process of that pid if it is still the one that started then; false if it is not. */
bool gw_node_end_process(int64_t pid, uint64_t started);

#endif
