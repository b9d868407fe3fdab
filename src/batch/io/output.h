/* output.jsonl and errors.jsonl: OpenAI batch output objects, one a line, in canonical JSON. Local.
 *
 * A line's bytes are a function of its contents alone: fixed key order, one way to escape, floats in the fewest digits
 * that read back as the same float32, ids derived from custom_id, `created` from the manifest. The files always end in
 * whole lines: a line is one write, a write that fails (disk full) is cut off again, and opening cuts what a crash left
 * torn. One process at a time: gw_output_open() holds a lock on output.jsonl. Lines may come in any order.
 *
 * Fencing. A leader that is thought to be dead may live on another node, with the files open. gw_output_open_fenced() copies what they hold to new
 * files and renames these over the old ones. Whatever the old leader appends from then on goes to files without a name; what it
 * appended before is in the copy, as far as the copy got, and is otherwise generated again, to the same bytes. Nothing is asked of the
 * old leader, of clocks, or of locks across nodes.
 */
#ifndef GW_BATCH_IO_OUTPUT_H
#define GW_BATCH_IO_OUTPUT_H

#include "base/mem.h"
#include "batch/request.h"

enum gw_finish { GW_FINISH_STOP, GW_FINISH_LENGTH };

struct gw_token_logprob {
    const char *text; /* the token's bytes; may be part of a UTF-8 character */
    size_t bytes;
    float logprob; /* below -9999 (also -inf) is written as -9999 */
};

struct gw_position_logprobs {
    struct gw_token_logprob chosen;
    const struct gw_token_logprob *top; /* [top_count], most likely first */
    int top_count;
};

/* A finished request. Everything is borrowed. */
struct gw_completion {
    const char *custom_id;
    enum gw_endpoint endpoint;
    const char *model; /* as it shall appear */
    int64_t created;   /* the manifest's */
    const char *text;  /* UTF-8; invalid bytes become U+FFFD */
    size_t text_bytes;
    int64_t prompt_tokens;
    int64_t completion_tokens;
    enum gw_finish finish;
    const struct gw_position_logprobs *logprobs; /* [logprob_count]; NULL: "logprobs":null */
    size_t logprob_count;
};

/* Appends the line with its newline to `line`. Pure. */
void gw_output_format_completion(const struct gw_completion *completion, struct gw_buf *line);
/* The same for a bad line. `custom_id` may be NULL; `index` counts from 0 and is written as a line number from 1. */
void gw_output_format_error(const char *custom_id, int64_t index, const struct gw_request_error *bad,
                            struct gw_buf *line);

struct gw_output; /* opaque */

/* Opens (creates) both files in `dir`, takes the lock, cuts a torn last line. GW_ERR_IO also when another process has
 * the lock. */
GW_CHECK gw_err gw_output_open(const char *dir, struct gw_output **output);
/* The same where another leader may still have them open: on new files with the same contents. */
GW_CHECK gw_err gw_output_open_fenced(const char *dir, struct gw_output **output);

/* What the files hold already: custom_id and index -1 for a line of output.jsonl; custom_id or NULL and the line's
 * index (from 0) for one of errors.jsonl. An error from the callback ends the scan and is returned. */
typedef gw_err (*gw_output_found)(void *context, const char *custom_id, int64_t index);
/* Streams over both files. A line that is not as godwit writes them (a crash can leave zeroes) ends the file there,
 * with a warning: what is cut is generated again, to the same bytes. Call before the first add. */
GW_CHECK gw_err gw_output_recover(struct gw_output *output, gw_output_found found, void *context);

/* Append one line. GW_ERR_IO: nothing was appended. */
GW_CHECK gw_err gw_output_add_completion(struct gw_output *output, const struct gw_completion *completion);
GW_CHECK gw_err gw_output_add_error(struct gw_output *output, const char *custom_id, int64_t index,
                                    const struct gw_request_error *bad);
/* Append a line made by gw_output_format_completion() or gw_output_format_error() (maybe on another rank). */
GW_CHECK gw_err gw_output_add_line(struct gw_output *output, const struct gw_buf *line);
GW_CHECK gw_err gw_output_add_error_line(struct gw_output *output, const struct gw_buf *line);

/* Bytes of output.jsonl, all in whole lines. */
uint64_t gw_output_bytes(const struct gw_output *output);

/* Makes what was appended durable (fsync). How often is the caller's policy. */
GW_CHECK gw_err gw_output_sync(struct gw_output *output);
/* Syncs, closes and frees, also on error. NULL is fine. */
GW_CHECK gw_err gw_output_close(struct gw_output *output);

#endif
