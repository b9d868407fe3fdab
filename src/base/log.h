/* Log lines to stderr, "godwit[rank]: level: text". Local; thread safe (one write per line). */
#ifndef GW_BASE_LOG_H
#define GW_BASE_LOG_H

#include "base/error.h"

typedef enum { GW_LOG_ERROR, GW_LOG_WARN, GW_LOG_INFO, GW_LOG_DEBUG } gw_log_level;

/* Lines above `level` are dropped. Default GW_LOG_INFO; GODWIT_LOG=error|warn|info|debug overrides at start. */
void gw_log_set_level(gw_log_level level);
gw_log_level gw_log_get_level(void);
/* Rank shown in the prefix; -1 (default) shows none. */
void gw_log_set_rank(int rank);
void gw_log(gw_log_level level, const char *fmt, ...) GW_PRINTF(2, 3);

#define gw_error(...) gw_log(GW_LOG_ERROR, __VA_ARGS__)
#define gw_warn(...) gw_log(GW_LOG_WARN, __VA_ARGS__)
#define gw_info(...) gw_log(GW_LOG_INFO, __VA_ARGS__)
#define gw_debug(...) gw_log(GW_LOG_DEBUG, __VA_ARGS__)

#endif
