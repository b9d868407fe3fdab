/* What people and tools watch in OUTDIR: status.json and metrics.prom (how it goes, rewritten), ranks.json (who runs where, rewritten),
 * events.jsonl (what happened, appended). Written by the leader; what is made of them for people is src/report. Local. */
#ifndef GW_JOB_RECORD_H
#define GW_JOB_RECORD_H

#include "job/formation.h"
#include "job/protocol.h"
#include "job/requests.h"
#include "report/pause.h"

#include <jansson.h>

/* Figures that go on from leader to leader. */
struct gw_record_totals {
    int64_t committed_tokens, computed_tokens, recomputed_tokens, restored_tokens, lost_ranks;
    int64_t notices, checkpoints, checkpoint_bytes;
    double elapsed_s, lost_s[GW_PAUSE_LOST];
    double updated_wall_s; /* when that was written */
    bool stopped;          /* by a leader that ended on request */
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
    double recent_tokens_per_s;
    const double *lost_s; /* [GW_PAUSE_LOST] under this leader */
};

/* Writes metrics.prom as well; that this fails costs a warning. */
GW_CHECK gw_err gw_record_status(const char *out_dir, const struct gw_record_status *status);
/* What status.json says of the job so far; all 0 when it says nothing. */
struct gw_record_totals gw_record_totals(const char *out_dir);
/* Who stands where, as ranks.json says; the caller frees. GW_ERR_NOT_FOUND: nobody. */
struct gw_seat {
    char host[GW_HOST_BYTES];
    struct gw_place place;
};
GW_CHECK gw_err gw_record_seats(const char *out_dir, struct gw_seat **seats, int *count);
/* `first`: of a launch, whose ranks are all new whatever their pids and members are. */
GW_CHECK gw_err gw_record_ranks(const char *out_dir, const struct gw_plan *plan, bool first);
/* Adds to the details of a plan's event who has another place than ranks.json says ("seats") and who is there no more ("gone"). To be called
 * before gw_record_ranks(): after a crash between the two the same is told twice, never not at all. */
void gw_record_changes(const char *out_dir, const struct gw_plan *plan, bool first, json_t *details);
/* The ranks that ranks.json names and for which missing(context, member) holds, as [{"member","host"},..]. */
json_t *gw_record_missing(const char *out_dir, bool (*missing)(const void *context, int member), const void *context);
/* Appends {"time": now, "event": name, ...}; takes over `details` (an object, or NULL). A failure costs a warning: events are for people. */
void gw_record_event(const char *out_dir, const char *name, json_t *details);

#endif
