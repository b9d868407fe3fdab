/* What this node has for us: memory and CPUs. Local. */
#ifndef GW_JOB_NODE_H
#define GW_JOB_NODE_H

#include <stdint.h>

/* Bytes that can be used without swapping: the least of MemAvailable and what this process's control group has left. */
uint64_t gw_node_memory(void);
/* CPUs this process may run on. */
int gw_node_cpus(void);

#endif
