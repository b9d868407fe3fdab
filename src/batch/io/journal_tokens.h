/* The table behind journal.h, and its records' form on disk. For journal.c and journal_tokens.c alone.
 *
 * A request's log-probabilities are kept in the form in which they are written:
 * float logprob, u8 n, n * (u32 token, float logprob). So comparing, copying and writing them are memcmp and memcpy.
 */
#ifndef GW_BATCH_IO_JOURNAL_TOKENS_H
#define GW_BATCH_IO_JOURNAL_TOKENS_H

#include "base/mem.h"
#include "batch/io/journal.h"

#define GW_JOURNAL_MAX_INDEX ((int64_t)1 << 48) /* indices are below; keeps varints of (delta, tag) inside 64 bits */

struct gw_journal_entry {
    int64_t index;
    int32_t count;    /* tokens */
    int32_t capacity; /* of `tokens` and `logprob_at` */
    int32_t written;  /* of `count`: what the current file holds */
    bool dirty;       /* in the writer's list of requests with tokens to write */
    bool with_logprobs;
    int32_t *tokens;        /* [count] */
    size_t *logprob_at;     /* [count] offset in `logprobs`; NULL without */
    struct gw_buf logprobs; /* of all tokens, one behind the other */
};

/* A file as the replay found it. */
struct gw_journal_file {
    uint64_t epoch;
    uint64_t seen_bytes;     /* its size then; 0 when it did not have to be read */
    uint64_t accepted_bytes; /* what counts of it: later headers seal it here */
    bool read;
};

struct gw_journal_tokens {
    struct gw_journal_entry **slots; /* [capacity] open addressing, linear; NULL is free */
    size_t capacity;                 /* a power of two, or 0 */
    size_t used;
    bool has_output;
    uint64_t output_bytes;
    bool has_job;
    uint64_t job_id;
    struct gw_journal_file *files; /* [file_count] ascending by epoch */
    size_t file_count;
    uint64_t damaged_bytes;
};

struct gw_journal_tokens *gw_journal_tokens_create(void);
struct gw_journal_tokens *gw_journal_tokens_copy(const struct gw_journal_tokens *tokens);
struct gw_journal_entry *gw_journal_tokens_find(const struct gw_journal_tokens *tokens, int64_t index);
/* As gw_journal_add(); *entry is the request's. */
GW_CHECK gw_err gw_journal_tokens_add(struct gw_journal_tokens *tokens, int64_t index, int32_t at,
                                      const struct gw_sample_result *result, bool with_logprobs,
                                      struct gw_journal_entry **entry);
void gw_journal_tokens_remove(struct gw_journal_tokens *tokens, int64_t index);
void gw_journal_tokens_set_output(struct gw_journal_tokens *tokens, uint64_t output_bytes);
/* Adds what `from` knows more. GW_ERR_BUG when they differ. */
GW_CHECK gw_err gw_journal_tokens_merge(struct gw_journal_tokens *to, const struct gw_journal_tokens *from);

/* Records. `previous` is the index of the record before it in the block, 0 at its start. */
void gw_journal_put_run(struct gw_buf *buf, int64_t *previous, const struct gw_journal_entry *entry, int32_t from);
void gw_journal_put_finished(struct gw_buf *buf, int64_t *previous, int64_t index, uint64_t output_bytes);
/* Applies all records up to the reader's end. GW_ERR_FORMAT: they make no sense from some point on; GW_ERR_BUG as add. */
GW_CHECK gw_err gw_journal_apply(struct gw_journal_tokens *tokens, struct gw_reader *reader);

#endif
