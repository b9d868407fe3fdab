/* The ledger: where every input line starts, what became of it, and which custom_ids were seen. Local.
 *
 * It reads the input forward, a line at a time, as requests are wanted; nothing of a request stays in memory once it is
 * handed out, since a line can be read again by its index. Per line it keeps 15 bytes (offset, state, hash of
 * custom_id) and a slot of 4 bytes in an open-addressing table that is between 58 and 88 % full, so at most 22 bytes a
 * line and no second copy while growing (gw_ledger_bytes() says what it is). Up to 2^31 - 2 lines.
 *
 * A custom_id whose 64-bit hash was seen before is compared with the earlier line itself, so a collision is never taken
 * for a duplicate. The input must be a regular file and must not change while the job runs: size and time are checked
 * on every read (GW_ERR_MISMATCH).
 *
 * Carrying on: before the first gw_ledger_next(), tell what the output already holds (gw_ledger_note_*). Those lines
 * are then passed over when the ledger comes to them. That costs 12 bytes an answered line until its line was met.
 */
#ifndef GW_BATCH_LEDGER_H
#define GW_BATCH_LEDGER_H

#include "base/mem.h"
#include "batch/request.h"

struct gw_ledger; /* opaque */

enum gw_line_state {
    GW_LINE_PENDING, /* known, not handed out (only after gw_ledger_set_state) */
    GW_LINE_ACTIVE,  /* handed out by gw_ledger_next */
    GW_LINE_DONE,    /* answered in output.jsonl */
    GW_LINE_FAILED,  /* answered in errors.jsonl */
    GW_LINE_SKIPPED, /* blank */
    GW_LINE_STATE_COUNT
};

/* Opens the input. `defaults` (may be NULL) are copied. GW_ERR_NOT_FOUND, GW_ERR_IO, GW_ERR_INPUT (a pipe or directory,
 * UTF-16). */
GW_CHECK gw_err gw_ledger_open(const char *path, const struct gw_request_defaults *defaults, struct gw_ledger **ledger);
void gw_ledger_close(struct gw_ledger *ledger);

/* Carry-on, before the first gw_ledger_next() (asserted): this custom_id has its answer / this line (from 0) has its
 * error line. */
void gw_ledger_note_answered(struct gw_ledger *ledger, const char *custom_id);
void gw_ledger_note_error(struct gw_ledger *ledger, int64_t index);

/* Goes on to the next line that needs something done. Three outcomes of GW_OK:
 *   *end               nothing is left in the file; *out is empty
 *   bad->code != NULL  a bad line, now FAILED: out->index, out->custom_id if it was readable; write its error line
 *   otherwise          *out is a request, its state ACTIVE
 * Blank lines and those noted as answered or failed are passed over. *out is the caller's to free in every case.
 * GW_ERR_IO, GW_ERR_MISMATCH (the input changed). */
GW_CHECK gw_err gw_ledger_next(struct gw_ledger *ledger, struct gw_request *out, struct gw_request_error *bad,
                               bool *end);

/* The request of line `index` again (a line that gw_ledger_next gave as a good request; asserted). GW_ERR_IO,
 * GW_ERR_MISMATCH. */
GW_CHECK gw_err gw_ledger_reread(struct gw_ledger *ledger, int64_t index, struct gw_request *out);
/* The bytes of line `index` without its newline, replacing what `line` holds: for sending a request to another rank,
 * which parses it with the same defaults. */
GW_CHECK gw_err gw_ledger_read_line(struct gw_ledger *ledger, int64_t index, struct gw_buf *line);

void gw_ledger_set_state(struct gw_ledger *ledger, int64_t index, enum gw_line_state state);
enum gw_line_state gw_ledger_state(const struct gw_ledger *ledger, int64_t index);

/* Lines met so far, and how many of them are in `state`. */
int64_t gw_ledger_lines(const struct gw_ledger *ledger);
int64_t gw_ledger_count(const struct gw_ledger *ledger, enum gw_line_state state);
/* Answered ids and error lines noted before the start that no line has claimed yet: 0 at the end unless OUTDIR belongs
 * to another input. */
int64_t gw_ledger_unclaimed(const struct gw_ledger *ledger);
/* Input bytes read and in all: an estimate of progress before the end is reached. */
uint64_t gw_ledger_bytes_read(const struct gw_ledger *ledger);
uint64_t gw_ledger_bytes_total(const struct gw_ledger *ledger);
/* Memory that the index holds, without the read buffer (gw_ledger_buffer_bytes, bounded by the longest line). */
size_t gw_ledger_bytes(const struct gw_ledger *ledger);
size_t gw_ledger_buffer_bytes(const struct gw_ledger *ledger);

/* Tests only: keep `bits` bits of the hash, so that collisions happen. Before the first line. */
void gw_ledger_test_weaken_hash(struct gw_ledger *ledger, int bits);

#endif
