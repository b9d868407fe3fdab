/* The token journal, OUTDIR/journal/: a token is committed when it is in here. Local.
 *
 * The files are numbered (NNNNNNNN.gwj, the epoch) and only the highest one grows. Each leadership, and each rotation,
 * starts a file of its own: created with O_EXCL, so that of two candidates one wins; its header seals the earlier files at
 * the byte up to which they counted, so that what a leader of the past appends later is ignored; then comes a snapshot of
 * all unfinished requests, and behind it the commits. Everything is in checksummed blocks, one write each
 * (docs/formats.md). Files that the snapshot replaces are removed after it is on disk, except the latest of them. So at
 * every instant a replay finds all committed tokens, and damage of any kind costs what is behind it in that file, at worst.
 *
 * The journal holds tokens, not text, and only of requests that have not been answered yet. It must fit the rest of
 * OUTDIR through `output_bytes`: sync output.jsonl up to there before a durable commit says so. One thread.
 */
#ifndef GW_BATCH_IO_JOURNAL_H
#define GW_BATCH_IO_JOURNAL_H

#include "engine/sampler.h"

#include <stddef.h>

struct gw_journal;        /* the writer: this leader's file */
struct gw_journal_tokens; /* tokens of unfinished requests, in memory; index -> tokens */

/* Reads OUTDIR/journal, `dir` being OUTDIR. *last_epoch is the highest file number in use, 0 without any (then *tokens is
 * empty). What is damaged is cut off in thought, with one warning per file; the files are not changed.
 * GW_ERR_IO; GW_ERR_FORMAT: a file of another job or version; GW_ERR_BUG: two files hold different tokens at one place. */
GW_CHECK gw_err gw_journal_replay(const char *dir, struct gw_journal_tokens **tokens, uint64_t *last_epoch);

/* Takes the lead: starts file `epoch` (replay's last_epoch + 1) with a snapshot, durable on return. `tokens` is what the replay gave
 * (copied; NULL replays here). What an earlier leader has still committed since that replay is found now, so use
 * gw_journal_live() from here on. `job_id` is the hash of the manifest.
 * GW_ERR_MISMATCH: another leader was faster (fenced); GW_ERR_FORMAT: the journal is of another job; GW_ERR_IO. */
GW_CHECK gw_err gw_journal_open(const char *dir, uint64_t epoch, const struct gw_journal_tokens *tokens,
                                uint64_t job_id, struct gw_journal **journal);

/* Buffers token number `at` (from 0) of request `index`. Log-probabilities of `result` count `with_logprobs` only, which is the same for
 * all tokens of a request. A token that is there already with the same value is fine (survivors report again).
 * GW_ERR_BUG: another value is there, the detail names both: answers are not reproducible, stop.
 * GW_ERR_NOT_FOUND: a gap, the token before it is not known. After an error nothing has changed. */
GW_CHECK gw_err gw_journal_add(struct gw_journal *journal, int64_t index, int32_t at,
                               const struct gw_sample_result *result, bool with_logprobs);
/* Buffers that the request is answered and forgets its tokens; output.jsonl is whole up to `output_bytes`. */
void gw_journal_add_finished(struct gw_journal *journal, int64_t index, uint64_t output_bytes);

/* Writes what is buffered as one block, with `durable` onto the disk (fdatasync, also of earlier commits without it). Starts the next
 * file when this one has grown beyond the bound.
 * GW_ERR_IO: nothing is lost, a partial write is cut back, and the next commit tries again.
 * GW_ERR_MISMATCH: a newer leadership's file has appeared (fenced); what this commit held may not count: stop leading. */
GW_CHECK gw_err gw_journal_commit(struct gw_journal *journal, bool durable);

/* What the journal knows, buffered tokens included. Valid until gw_journal_close(); it changes with every add. */
const struct gw_journal_tokens *gw_journal_live(const struct gw_journal *journal);
/* Bound of a file (default 64 MiB); a file is never rotated before it is twice its snapshot. */
void gw_journal_set_max_bytes(struct gw_journal *journal, uint64_t max_bytes);
/* Commits durably what is buffered (not when fenced), closes and frees, also on error. NULL is fine. */
GW_CHECK gw_err gw_journal_close(struct gw_journal *journal);

/* ---- the table of tokens */

/* Tokens of a request; 0 when it has none. */
int32_t gw_journal_tokens_count(const struct gw_journal_tokens *tokens, int64_t index);
/* Fills *result with token `at`, log-probabilities as they were added (0 without). False when there is no such token. */
bool gw_journal_tokens_get(const struct gw_journal_tokens *tokens, int64_t index, int32_t at,
                           struct gw_sample_result *result);
/* All requests that have tokens, ascending; the caller frees it. */
int64_t *gw_journal_tokens_list(const struct gw_journal_tokens *tokens, size_t *count);
/* Up to which byte output.jsonl is known to be whole: the last gw_journal_add_finished(). False when none is known. */
bool gw_journal_tokens_output(const struct gw_journal_tokens *tokens, uint64_t *output_bytes);
/* Bytes that the replay could not use, sealed ones not counted: 0 unless something was torn or damaged. */
uint64_t gw_journal_tokens_damaged_bytes(const struct gw_journal_tokens *tokens);
void gw_journal_tokens_free(struct gw_journal_tokens *tokens);

#endif
