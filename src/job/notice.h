/* Notices: what tells the job beforehand that a rank, or every rank, will be taken away, or that there is room for more. Here: files
 * that anyone may write, and that are taken away as they are read by the leader. What other sources say (notice/source.h) whoever asks them writes into
 * such a file of the job's own, OUTDIR/notice. Local. */
#ifndef GW_JOB_NOTICE_H
#define GW_JOB_NOTICE_H

#include "base/error.h"
#include "job/protocol.h"

/* Reads and removes the file if it is there. Lines: "leave RANK SECONDS", "leave all SECONDS" (RANK: a rank's `member` in ranks.json), or instead of SECONDS "until T", T
 * in seconds since 1970; "join N", "layout DxTxP"; others cost a warning. *notices is the caller's to free. */
GW_CHECK gw_err gw_notice_take(const char *path, struct gw_notice **notices, int *count);
/* The path of the next file to be watched, behind *at (start with 0): those of the list, and the job's own where the list names other sources. NULL at the
 * end; the caller frees it. */
char *gw_notice_next_file(const char *list, const char *out_dir, size_t *at);

/* All ranks go at `at_s` (wall clock): into the job's own file, where an earlier notice that has not been read yet is replaced. */
GW_CHECK gw_err gw_notice_post(const char *out_dir, double at_s);
/* Removes one that nobody will read. */
void gw_notice_forget(const char *out_dir);

#endif
