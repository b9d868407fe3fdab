/* The output digest, and the check that every input line was answered exactly once. Local.
 *
 * Digest: SHA-256 over the lines of output.jsonl, each with its newline, sorted by the bytes of custom_id (errors.jsonl
 * is not part of it). Memory: 24 bytes and the custom_id per answered line; the lines themselves are read again in
 * sorted order.
 */
#ifndef GW_BATCH_IO_DIGEST_H
#define GW_BATCH_IO_DIGEST_H

#include "base/error.h"

#include <stdint.h>

struct gw_digest_counts {
    int64_t answered;      /* lines of output.jsonl */
    int64_t failed;        /* lines of errors.jsonl */
    int64_t prompt_tokens; /* sums over usage (gw_digest_verify only) */
    int64_t completion_tokens;
    int64_t input_lines; /* non-blank lines of the input (gw_digest_verify only) */
    int64_t unanswered;  /* input lines with neither answer nor error (gw_digest_verify only) */
    int64_t problems;    /* found by gw_digest_verify, the unanswered among them */
};

/* Digest of OUTDIR's output.jsonl as it stands. GW_ERR_NOT_FOUND, GW_ERR_IO; GW_ERR_VERIFY for a torn, foreign or
 * doubled line. */
GW_CHECK gw_err gw_digest_compute(const char *dir, char hex[65], struct gw_digest_counts *counts);

/* Full check against the input (NULL: the path in manifest.json). The first `max_problems` problems go to `report`, one
 * line each. GW_ERR_VERIFY when there is any; hex and counts are filled whenever the files could be read. */
typedef void (*gw_digest_report)(void *context, const char *problem);
GW_CHECK gw_err gw_digest_verify(const char *dir, const char *input, int64_t max_problems, gw_digest_report report,
                                 void *context, char hex[65], struct gw_digest_counts *counts);

#endif
