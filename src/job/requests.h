/* The leader's requests: what the input asks for, what is answered, which tokens are committed, and who has what.
 *
 * It joins the ledger (input), the output files and the token journal. A request is *active* while a replica has it. It *waits* once
 * the input has been read up to it, and again, with the tokens that are committed, when its replica is gone. A request is answered once: its line is
 * appended, and then the journal forgets its tokens; a leader that dies in between leaves a line that the next leader finds.
 * Local; used by the leader's thread alone.
 */
#ifndef GW_JOB_REQUESTS_H
#define GW_JOB_REQUESTS_H

#include "job/options.h"
#include "job/protocol.h"
#include "model/arch.h"

struct gw_requests; /* opaque */

struct gw_request_counts {
    int64_t total;                            /* non-blank lines of the input */
    int64_t answered_before;                  /* by earlier launches */
    int64_t done, failed;                     /* in all */
    int64_t active, waiting;                  /* with the replicas; read, and to be handed out (again) */
    int64_t prompt_tokens, completion_tokens; /* of requests finished under this leader */
    int64_t committed_tokens;                 /* new ones under this leader */
    int64_t resumed_tokens;                   /* found committed when this leader began */
};

/* Is OUTDIR that of this job? Makes it so when it is nobody's. GW_ERR_MISMATCH says what differs. */
GW_CHECK gw_err gw_requests_same_job(const struct gw_job_options *options, const struct gw_model *model, int context,
                                     uint64_t *job_id);
/* Reads the whole input for its hash, so that gw_requests_open() need not while it stays the same file. */
void gw_requests_prepare(const struct gw_job_options *options);
/* Opens the input and OUTDIR, creating or carrying on; takes the journal's lead. Whoever led before must be gone.
 * GW_ERR_MISMATCH: OUTDIR is another job's, or another leader was faster. */
GW_CHECK gw_err gw_requests_open(const struct gw_job_options *options, const struct gw_model *model, int context,
                                 struct gw_requests **requests);
/* Syncs and closes what is open, also after an error. */
GW_CHECK gw_err gw_requests_close(struct gw_requests *requests);

/* Takes the next request for `replica` (batch/queue.h says which) and appends it to the message as gw_assign_add() does; false when nothing is left to hand out. */
GW_CHECK gw_err gw_requests_grant(struct gw_requests *requests, int replica, struct gw_buf *message, bool *got);
/* The same for a certain one that `replica` is to have: it becomes active there. */
GW_CHECK gw_err gw_requests_assign(struct gw_requests *requests, int64_t index, int replica, struct gw_buf *message);

/* Before a plan: no replica has anything. Then gw_requests_keep() for what a replica has still, gw_requests_assign() for what it gets;
 * what is active and neither waits again after gw_requests_settle(). */
void gw_requests_forget_owners(struct gw_requests *requests);
GW_CHECK gw_err gw_requests_keep(struct gw_requests *requests, int64_t index, int replica);
void gw_requests_settle(struct gw_requests *requests);

/* GW_MSG_TOKENS and GW_MSG_RESULT of `replica`. A result of a request that is not active there is ignored: it was returned meanwhile. */
GW_CHECK gw_err gw_requests_tokens(struct gw_requests *requests, const uint8_t *data, size_t bytes);
GW_CHECK gw_err gw_requests_result(struct gw_requests *requests, int replica, const uint8_t *data, size_t bytes);
/* Is there anything that gw_requests_commit would write? */
bool gw_requests_uncommitted(const struct gw_requests *requests);
/* Commits the tokens that have come; `durable` also syncs output and journal to the disk. A disk that is full for the moment costs a warning: nothing
 * is lost but the tokens would be generated again. GW_ERR_MISMATCH: another leader has taken over. */
GW_CHECK gw_err gw_requests_commit(struct gw_requests *requests, bool durable);

/* All input is handed out and answered. */
bool gw_requests_finished(const struct gw_requests *requests);
/* Every line has its answer on disk, as far as the counts tell: the input may not have been read to its end under this leader. */
bool gw_requests_all_answered(const struct gw_requests *requests);
/* Requests that a replica has now. */
int64_t gw_requests_active_of(const struct gw_requests *requests, int replica);
/* Is there a request with committed tokens that no replica has? */
bool gw_requests_begun_wait(const struct gw_requests *requests);
/* Requests that can still be handed out. */
int64_t gw_requests_left(const struct gw_requests *requests);
/* Tokens that the requests which replicas have may still draw, by their limits: all together, and the most of one. A prompt counts for a few, computed or not. */
void gw_requests_undrawn(const struct gw_requests *requests, int64_t *sum, int64_t *most);
struct gw_request_counts gw_requests_counts(const struct gw_requests *requests);

#endif
