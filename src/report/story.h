/* What happened to a job, made of events.jsonl line by line: who worked where and when, which layouts there were, when work stood
 * still and why, and what is worth a mark. Everything that is drawn or told of a job's past is made of this. Local, pure.
 *
 * It believes nothing: torn lines, unknown events, times that run backwards and members that nobody introduced are all fine. A *tenant* is
 * one process; a *span* is the time in which it had one place. A rank that waits has replica -1.
 */
#ifndef GW_REPORT_STORY_H
#define GW_REPORT_STORY_H

#include "base/mem.h"
#include "report/pause.h"

struct gw_story_span {
    int tenant, replica, shard, stage; /* replica -1: it waits */
    double from_s, to_s;
};

struct gw_story_tenant {
    int host; /* of hosts[] */
    int member;
    double from_s, to_s;
};

struct gw_story_layout {
    int data, tensor, pipeline, ranks;
    double from_s, to_s;
};

enum gw_story_kind {
    GW_STORY_LAUNCH,
    GW_STORY_LOSS,
    GW_STORY_NOTICE,
    GW_STORY_PLAN,
    GW_STORY_GROW,
    GW_STORY_CHECKPOINT,
    GW_STORY_END,
    GW_STORY_OTHER,
    GW_STORY_KINDS
};
const char *gw_story_kind_name(enum gw_story_kind kind);

struct gw_story_mark {
    double time_s;
    enum gw_story_kind kind;
    char *text; /* owned; foreign bytes in it */
};

struct gw_story {
    char **hosts;
    struct gw_story_tenant *tenants;
    struct gw_story_span *spans; /* by tenants' coming and their changes of place */
    struct gw_story_layout *layouts;
    struct gw_pause *pauses;
    struct gw_story_mark *marks;
    int host_count, tenant_count, span_count, layout_count, pause_count, mark_count;
    struct gw_pauses sums;
    double begin_s, end_s; /* first and last sign of life; 0: none */
    double worked_s;       /* the last one of a launch: node agents live on without */
    int64_t lost_ranks, losses, notices, launches, plans, checkpoints, checkpoint_bytes, bad_lines;
    /* while reading: spans that are open, by member */
    int *open_spans, open_count;
    bool asked, running; /* the last launch ended by request; there is a launch */
};

/* A zeroed story is empty. */
void gw_story_free(struct gw_story *story);
/* The next line, without its newline. */
void gw_story_line(struct gw_story *story, const char *line, size_t bytes);
/* A sign of life from elsewhere (a sample, status.json): to be told in the order of time, between the lines. */
void gw_story_alive(struct gw_story *story, double time_s);
/* After the last line: what is open ends with the last sign of life. */
void gw_story_finish(struct gw_story *story);
/* A whole events.jsonl, with the samples of history.jsonl as signs of life. A file that is not there is an empty story. */
struct gw_sample;
void gw_story_read(struct gw_story *story, const char *out_dir, const struct gw_sample *samples, int count);
/* The text of one event, as in marks; malloc'd. NULL: not an event. */
char *gw_story_text(const char *line, size_t bytes, double *time_s, enum gw_story_kind *kind);

/* Rows to draw tenants in: a row per process of a host at a time, hosts together; with `any_host`, as few rows as possible. lanes[tenant] is
 * its row; *hosts_of_lanes (malloc'd) says whose a row is, -1: anybody's. Returns how many rows there are. */
int gw_story_lanes(const struct gw_story *story, bool any_host, int *lanes, int **hosts_of_lanes);

#endif
