/* Notices: what tells the job beforehand that a rank, or every rank, will be taken away, or that there is room for more. Here: a file
 * that anyone may write, and that is taken away as it is read. Local. */
#ifndef GW_JOB_NOTICE_H
#define GW_JOB_NOTICE_H

#include "base/error.h"
#include "job/protocol.h"

/* Reads and removes the file if it is there. Lines: "leave RANK SECONDS", "leave all SECONDS" (RANK: a rank's `member` in ranks.json), "join N", "layout DxTxP"; others
 * cost a warning. *notices is the caller's to free. */
GW_CHECK gw_err gw_notice_take(const char *path, struct gw_notice **notices, int *count);

#endif
