/* status.json as read back, and the one line that says how a job goes. Local. */
#ifndef GW_REPORT_STATUS_H
#define GW_REPORT_STATUS_H

#include "base/error.h"
#include "report/pause.h"

#include <stdint.h>

struct gw_status {
    char state[16], phase[16], model[128], kernels[16];
    double updated_at, elapsed_s, generated_tokens_per_s, recent_tokens_per_s, eta_s;
    int64_t requests_total, requests_done, requests_failed;
    int64_t generated_tokens, resumed_tokens, recomputed_tokens, computed_tokens, restored_tokens;
    int64_t lost_ranks, notices, plan, preemptions, prefix_tokens_reused;
    int launch, ranks, running, waiting, kv_pages_used, kv_pages_total, threads_per_rank, context;
    int layout[3];
    long pid;
    double lost_s[GW_PAUSE_LOST]; /* by cause */
};

/* GW_ERR_NOT_FOUND, GW_ERR_FORMAT. */
GW_CHECK gw_err gw_status_read(const char *out_dir, struct gw_status *status);
/* "12/64 requests, 403 tokens/s, 1:05 left", without newline. */
void gw_status_line(const struct gw_status *status, char *text, size_t bytes);
/* What computing tokens again took, estimated from the share that they are of all that was computed. */
double gw_status_recompute_s(const struct gw_status *status);

#endif
