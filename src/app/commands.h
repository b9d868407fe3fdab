/* The sub-commands, one line each. argv[0] is the sub-command's name; each prints its own --help. */
#ifndef GW_APP_COMMANDS_H
#define GW_APP_COMMANDS_H

#include "base/error.h"

GW_CHECK gw_err gw_cmd_run(int argc, char **argv);
GW_CHECK gw_err gw_cmd_rank(int argc, char **argv);
GW_CHECK gw_err gw_cmd_node(int argc, char **argv);
GW_CHECK gw_err gw_cmd_node_exec(int argc, char **argv);
GW_CHECK gw_err gw_cmd_status(int argc, char **argv);
GW_CHECK gw_err gw_cmd_verify(int argc, char **argv);
GW_CHECK gw_err gw_cmd_inspect(int argc, char **argv);
GW_CHECK gw_err gw_cmd_notice(int argc, char **argv);
GW_CHECK gw_err gw_cmd_plan(int argc, char **argv);
GW_CHECK gw_err gw_cmd_tokenize(int argc, char **argv);
GW_CHECK gw_err gw_cmd_perplexity(int argc, char **argv);
GW_CHECK gw_err gw_cmd_bench(int argc, char **argv);

#endif
