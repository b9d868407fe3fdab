/* Sources of notices: what tells beforehand that this machine will be taken away. The metadata services of AWS, Azure and Google Cloud, and
 * Slurm's controller.
 *
 * A source is asked on a thread of its own, with a deadline for every question, so that the caller never waits. What it says becomes an
 * event: one for each thing that is going to happen, however often the source repeats it. A source that does not answer costs one warning and is asked
 * on, ever more seldom: without notices nothing but time is lost.
 *
 * Files that are watched for notices are named in the same list (gw_notice_spec_file), but are the leader's (job/notice.h). Local. */
#ifndef GW_NOTICE_SOURCE_H
#define GW_NOTICE_SOURCE_H

#include "base/error.h"

enum gw_notice_kind {
    GW_NOTICE_LEAVE,      /* the machine, or this job's hold on it, goes at `at_s` */
    GW_NOTICE_TIME_LIMIT, /* the job's time is over at `at_s`; the machine stays */
    GW_NOTICE_EARLY       /* it may go some time; or it will stand still for a moment. Nothing needs to be done yet */
};

struct gw_notice_event {
    enum gw_notice_kind kind;
    double at_s; /* wall clock, seconds since 1970 */
    double
        left_s; /* to act in, from the moment it is taken: a tenth, at most 5 s, less than until `at_s`, which is never exact; >= 0 */
    char id[96];    /* equal for the same thing said again */
    char text[192]; /* for the log: who says so, and what; printable ASCII */
};

struct gw_notice_source; /* opaque: all sources of a list */

/* Is the list (see docs/usage.md: `aws`, `azure`, `gcp`, `slurm`, `auto`, each with "=VALUE"; files) well formed? GW_ERR_USAGE names the
 * item. GW_ERR_UNSUPPORTED: a metadata service, and this godwit was built without libcurl. */
GW_CHECK gw_err gw_notice_spec_check(const char *list);
/* The path of the next file in the list, behind *at (start with 0); NULL when there is none. The caller frees it. */
char *gw_notice_spec_file(const char *list, size_t *at);
/* Does the list name anything but files? */
bool gw_notice_spec_polled(const char *list);

/* Starts to ask. A source that cannot work here (no scontrol, not in a Slurm job, no metadata service known for `auto`) costs a line in the log and is left
 * out. GODWIT_NOTICE_POLL_S overrides the seconds between two questions. */
GW_CHECK gw_err gw_notice_source_open(const char *list, struct gw_notice_source **source);
/* The next event, if there is one; never waits. */
bool gw_notice_source_take(struct gw_notice_source *source, struct gw_notice_event *event);
/* All that matters is saved: tells those sources so that were opened with leave to be told (`azure+ack`). Waits a few seconds at most. */
void gw_notice_source_acknowledge(struct gw_notice_source *source);
/* Ends the threads, within a fraction of a second. NULL is fine. */
void gw_notice_source_close(struct gw_notice_source *source);

/* The metadata service of this machine by what its firmware says (files under `dmi`, which is /sys/class/dmi/id): "aws", "azure", "gcp", NULL. */
const char *gw_notice_cloud(const char *dmi);

#endif
