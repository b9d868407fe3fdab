/* What people and tools watch in OUTDIR: status.json (how it goes, rewritten), ranks.json (who runs where, rewritten), events.jsonl (what
 * happened, appended). Written by the leader. Local. */
#ifndef GW_JOB_RECORD_H
#define GW_JOB_RECORD_H

#include "job/formation.h"
#include "job/protocol.h"
#include "job/requests.h"

#include <jansson.h>

/* Figures that go on from leader to leader. */
struct gw_record_totals {
    int64_t committed_tokens, computed_tokens, recomputed_tokens, restored_tokens, lost_ranks;
    double elapsed_s;
};

struct gw_record_status {
    const char *state; /* "running", "done", "stopped" */
    const struct gw_job_options *options;
    const struct gw_plan *plan; /* NULL before the first */
    const struct gw_head_report *heads;
    int head_count;
    struct gw_request_counts counts;
    const char *phase; /* of the controller: "run", "migrate", ... */
    const char *kernels;
    int threads, context, ranks;
    struct gw_record_totals before; /* of leaders and heads that are gone */
    double elapsed_s;               /* under this leader */
};

GW_CHECK gw_err gw_record_status(const char *out_dir, const struct gw_record_status *status);
/* What status.json says of the job so far; all 0 when it says nothing. */
struct gw_record_totals gw_record_totals(const char *out_dir);
GW_CHECK gw_err gw_record_ranks(const char *out_dir, const struct gw_plan *plan);
/* Appends {"time": now, "event": name, ...}; takes over `details` (an object, or NULL). A failure costs a warning: events are for people. */
void gw_record_event(const char *out_dir, const char *name, json_t *details);

#endif
