/* The client side of an agent: `godwit node-exec`, which the launcher calls as it would call ssh, and `godwit node --drain`. Local; these wait. */
#ifndef GW_NODE_EXEC_H
#define GW_NODE_EXEC_H

#include "base/error.h"

/* In the environment of a launcher: the job's folder of nodes, and which launch it is. */
#define GW_NODES_FOLDER "GODWIT_NODES"
#define GW_NODES_TERM "GODWIT_TERM"
#define GW_NODES_LAUNCH "GODWIT_LAUNCH"

/* argv: NODE WORD...: the words, joined by blanks, are a command line for the shell on that node. What it writes comes out here, and its exit code is
 * *exit_code. It lives no longer than this call, and this process no longer than its parent. */
GW_CHECK gw_err gw_node_exec(int argc, char **argv, int *exit_code);
/* Asks a node to leave the job within so many seconds. */
GW_CHECK gw_err gw_node_drain(const char *folder, const char *name, unsigned seconds);

#endif
