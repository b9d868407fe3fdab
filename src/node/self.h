/* What an agent has to know of its own node before it can take part: an address, a folder for short-lived files, how fast it computes. Local. */
#ifndef GW_NODE_SELF_H
#define GW_NODE_SELF_H

#include "node/lease.h"

/* The address by which other nodes reach this one: the one in `net` (CIDR, "10.1.0.0/16") if given, else that of this host's name, else the first that is
 * not the loopback's, else the loopback's. GW_ERR_USAGE: no address in that network. */
GW_CHECK gw_err gw_self_address(const char *net, char address[GW_ADDRESS_BYTES]);

/* A folder for sockets and shared memory that no other agent uses, in memory if possible. It is held by a lock (*lock, a descriptor), so that what an agent
 * has left behind that was killed is recognised and removed by the next one of this node. gw_self_remove_scratch() ends it. */
GW_CHECK gw_err gw_self_make_scratch(char **path, int *lock);
void gw_self_remove_scratch(char *path, int lock);

/* Rate of a quantized matrix product on all CPUs, in 10^9 operations a second, measured in about 0.1 s; and the kernel table's name. */
GW_CHECK gw_err gw_self_measure(struct gw_lease *lease);

#endif
