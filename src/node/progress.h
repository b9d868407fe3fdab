/* status.json as read back, and the progress line made of it. Local. */
#ifndef GW_NODE_PROGRESS_H
#define GW_NODE_PROGRESS_H

#include "base/error.h"

#include <stdint.h>
#include <stdio.h>

struct gw_status {
    char state[16], model[128], kernels[16];
    double updated_at, elapsed_s, generated_tokens_per_s, eta_s;
    int64_t requests_total, requests_done, requests_failed, generated_tokens, resumed_tokens, recomputed_tokens,
        lost_ranks;
    int64_t preemptions, prefix_tokens_reused;
    int running, waiting, kv_pages_used, kv_pages_total, threads_per_rank, context;
    int layout[3];
    long pid;
};

/* GW_ERR_NOT_FOUND, GW_ERR_FORMAT. */
GW_CHECK gw_err gw_status_read(const char *out_dir, struct gw_status *status);
/* "12/64 requests, 403 tokens/s, 1:05 left", without newline. */
void gw_status_line(const struct gw_status *status, char *text, size_t bytes);

/* The progress of a running job on stderr: one line that rewrites itself on a terminal, a plain line a while elsewhere. */
struct gw_progress {
    const char *out_dir;
    double started_wall_s, shown_s, interval_s;
    int terminal, shown;
};
void gw_progress_init(struct gw_progress *progress, const char *out_dir, bool wanted);
void gw_progress_update(struct gw_progress *progress);
/* Wipes the terminal's progress line, before something else is printed. */
void gw_progress_clear(void);

#endif
