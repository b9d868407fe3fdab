/* Tokens of unfinished requests in memory, and the records that carry them to disk. See journal.h, journal_tokens.h.
 *
 * Records of a block, all numbers varints (7 bits a byte, low ones first) unless said:
 *   head = zigzag(index - index of the record before) << 2 | tag
 *   RUN       head, at, n, n tokens
 *   RUN_FULL  as RUN, then n log-probability records as kept in memory
 *   FINISHED  head, output_bytes
 */
#include "batch/io/journal_tokens.h"

#include <stdlib.h>
#include <string.h>

enum { TAG_RUN, TAG_RUN_FULL, TAG_FINISHED, TAG_BITS = 2 };

#define LOGPROBS_MAX_BYTES (5 + 8 * GW_MAX_LOGPROBS)

/* ---- the table ------------------------------------------------------------------------------------------------- */

static size_t home_of(const struct gw_journal_tokens *tokens, int64_t index)
{
    return (size_t)(((uint64_t)index * 0x9e3779b97f4a7c15u) >> 32) & (tokens->capacity - 1); /* Fibonacci hashing */
}

/* The slot that holds `index`, or the free one where it would be. There is always a free one. */
static size_t slot_of(const struct gw_journal_tokens *tokens, int64_t index)
{
    size_t slot = home_of(tokens, index);
    while (tokens->slots[slot] && tokens->slots[slot]->index != index) slot = (slot + 1) & (tokens->capacity - 1);
    return slot;
}

static void entry_free(struct gw_journal_entry *entry)
{
    free(entry->tokens);
    free(entry->logprob_at);
    gw_buf_free(&entry->logprobs);
    free(entry);
}

struct gw_journal_tokens *gw_journal_tokens_create(void)
{
    return gw_alloc(1, sizeof(struct gw_journal_tokens));
}

void gw_journal_tokens_free(struct gw_journal_tokens *tokens)
{
    if (!tokens) return;
    for (size_t i = 0; i < tokens->capacity; i++)
        if (tokens->slots[i]) entry_free(tokens->slots[i]);
    free(tokens->slots);
    free(tokens->files);
    free(tokens);
}

struct gw_journal_entry *gw_journal_tokens_find(const struct gw_journal_tokens *tokens, int64_t index)
{
    return tokens->capacity ? tokens->slots[slot_of(tokens, index)] : NULL;
}

static void insert(struct gw_journal_tokens *tokens, struct gw_journal_entry *entry)
{
    if (tokens->used * 2 >= tokens->capacity) {
        struct gw_journal_entry **old = tokens->slots;
        size_t old_capacity = tokens->capacity;
        tokens->capacity = old_capacity ? old_capacity * 2 : 64;
        tokens->slots = gw_alloc(tokens->capacity, sizeof *tokens->slots);
        for (size_t i = 0; i < old_capacity; i++)
            if (old[i]) tokens->slots[slot_of(tokens, old[i]->index)] = old[i];
        free(old);
    }
    tokens->slots[slot_of(tokens, entry->index)] = entry;
    tokens->used++;
}

void gw_journal_tokens_remove(struct gw_journal_tokens *tokens, int64_t index)
{
    if (!tokens->capacity) return;
    size_t hole = slot_of(tokens, index), mask = tokens->capacity - 1;
    if (!tokens->slots[hole]) return;
    entry_free(tokens->slots[hole]);
    tokens->used--;
    /* Those behind it that would now not be found any more move up (Knuth 6.4, algorithm R). */
    for (size_t at = (hole + 1) & mask; tokens->slots[at]; at = (at + 1) & mask) {
        size_t home = home_of(tokens, tokens->slots[at]->index);
        if (((at - home) & mask) < ((at - hole) & mask)) continue;
        tokens->slots[hole] = tokens->slots[at];
        hole = at;
    }
    tokens->slots[hole] = NULL;
}

/* Room for `more` tokens; with log-probabilities for their offsets, too. */
static void entry_reserve(struct gw_journal_entry *entry, int32_t more)
{
    int64_t need = (int64_t)entry->count + more, capacity = entry->capacity ? entry->capacity : 16;
    if (need <= entry->capacity) return;
    while (capacity < need) capacity *= 2;
    GW_ASSERT(capacity <= INT32_MAX);
    entry->tokens = gw_realloc(entry->tokens, (size_t)capacity, sizeof *entry->tokens);
    if (entry->with_logprobs)
        entry->logprob_at = gw_realloc(entry->logprob_at, (size_t)capacity, sizeof *entry->logprob_at);
    entry->capacity = (int32_t)capacity;
}

static size_t logprob_end(const struct gw_journal_entry *entry, int32_t at)
{
    return at + 1 < entry->count ? entry->logprob_at[at + 1] : entry->logprobs.bytes;
}

struct gw_journal_tokens *gw_journal_tokens_copy(const struct gw_journal_tokens *tokens)
{
    struct gw_journal_tokens *copy = gw_journal_tokens_create();
    *copy = *tokens;
    copy->slots = gw_alloc(tokens->capacity, sizeof *copy->slots);
    for (size_t i = 0; i < tokens->capacity; i++) {
        const struct gw_journal_entry *from = tokens->slots[i];
        if (!from) continue;
        struct gw_journal_entry *entry = copy->slots[i] = gw_alloc(1, sizeof *entry);
        entry->index = from->index;
        entry->with_logprobs = from->with_logprobs;
        entry_reserve(entry, from->count);
        entry->count = from->count;
        memcpy(entry->tokens, from->tokens, (size_t)from->count * sizeof *entry->tokens);
        if (from->with_logprobs)
            memcpy(entry->logprob_at, from->logprob_at, (size_t)from->count * sizeof *entry->logprob_at);
        gw_buf_add(&entry->logprobs, from->logprobs.data, from->logprobs.bytes);
    }
    copy->files = gw_alloc(tokens->file_count, sizeof *copy->files);
    for (size_t i = 0; i < tokens->file_count; i++) copy->files[i] = tokens->files[i];
    return copy;
}

/* ---- adding ---------------------------------------------------------------------------------------------------- */

static gw_err conflict(const struct gw_journal_entry *entry, int32_t at, int32_t token, const uint8_t *logprobs,
                       bool with_logprobs)
{
    float old = 0, new = 0;
    if (entry->with_logprobs != with_logprobs)
        return gw_fail(GW_ERR_BUG, "line %lld: token %d came %s log-probabilities, the ones before it %s",
                       (long long)entry->index + 1, at, with_logprobs ? "with" : "without",
                       with_logprobs ? "without" : "with");
    if (with_logprobs) {
        memcpy(&old, entry->logprobs.data + entry->logprob_at[at], sizeof old);
        memcpy(&new, logprobs, sizeof new);
    }
    return gw_fail(
        GW_ERR_BUG,
        "line %lld: token %d is committed as %d (logprob %.9g), but now it is %d (logprob %.9g): this job does "
        "not repeat its own answers; please report it",
        (long long)entry->index + 1, at, entry->tokens[at], (double)old, token, (double)new);
}

/* Token `at` of `index`, whose entry is *entry (NULL: none yet). Its log-probabilities are `bytes` at `logprobs`. */
static gw_err put(struct gw_journal_tokens *tokens, struct gw_journal_entry **entry, int64_t index, int32_t at,
                  int32_t token, const uint8_t *logprobs, size_t bytes)
{
    struct gw_journal_entry *to = *entry;
    int32_t count = to ? to->count : 0;
    bool with_logprobs = bytes > 0;
    if (at > count)
        return gw_fail(GW_ERR_NOT_FOUND, "line %lld: token %d came, but token %d is not known", (long long)index + 1,
                       at, count);
    if (!to) {
        to = *entry = gw_alloc(1, sizeof *to);
        to->index = index;
        to->with_logprobs = with_logprobs;
        insert(tokens, to);
    }
    if (to->with_logprobs != with_logprobs) return conflict(to, at, token, logprobs, with_logprobs);
    if (at < count) {
        bool same = to->tokens[at] == token;
        if (same && with_logprobs)
            same = logprob_end(to, at) - to->logprob_at[at] == bytes &&
                   memcmp(to->logprobs.data + to->logprob_at[at], logprobs, bytes) == 0;
        return same ? GW_OK : conflict(to, at, token, logprobs, with_logprobs);
    }
    entry_reserve(to, 1);
    to->tokens[count] = token;
    if (with_logprobs) {
        to->logprob_at[count] = to->logprobs.bytes;
        gw_buf_add(&to->logprobs, logprobs, bytes);
    }
    to->count++;
    return GW_OK;
}

gw_err gw_journal_tokens_add(struct gw_journal_tokens *tokens, int64_t index, int32_t at,
                             const struct gw_sample_result *result, bool with_logprobs, struct gw_journal_entry **entry)
{
    uint8_t logprobs[LOGPROBS_MAX_BYTES];
    size_t bytes = 0;
    int n = result->alternatives;
    GW_ASSERT(index >= 0 && index < GW_JOURNAL_MAX_INDEX && at >= 0 && result->token >= 0);
    GW_ASSERT(!with_logprobs || (n >= 0 && n <= GW_MAX_LOGPROBS));
    if (with_logprobs) {
        memcpy(logprobs, &result->logprob, 4);
        logprobs[4] = (uint8_t)n;
        bytes = 5;
        for (int i = 0; i < n; i++, bytes += 8) {
            memcpy(logprobs + bytes, &result->alt_token[i], 4);
            memcpy(logprobs + bytes + 4, &result->alt_logprob[i], 4);
        }
    }
    *entry = gw_journal_tokens_find(tokens, index);
    return put(tokens, entry, index, at, result->token, logprobs, bytes);
}

void gw_journal_tokens_set_output(struct gw_journal_tokens *tokens, uint64_t output_bytes)
{
    tokens->has_output = true;
    tokens->output_bytes = output_bytes;
}

gw_err gw_journal_tokens_merge(struct gw_journal_tokens *to, const struct gw_journal_tokens *from)
{
    gw_err rc = GW_OK;
    for (size_t i = 0; i < from->capacity; i++) {
        const struct gw_journal_entry *entry = from->slots[i];
        if (!entry) continue;
        struct gw_journal_entry *mine = gw_journal_tokens_find(to, entry->index);
        for (int32_t at = 0; at < entry->count; at++) {
            size_t start = entry->with_logprobs ? entry->logprob_at[at] : 0;
            size_t bytes = entry->with_logprobs ? logprob_end(entry, at) - start : 0;
            TRY(put(to, &mine, entry->index, at, entry->tokens[at], bytes ? entry->logprobs.data + start : NULL,
                    bytes));
        }
    }
    if (from->has_output) gw_journal_tokens_set_output(to, from->output_bytes);
out:
    return rc;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

int32_t gw_journal_tokens_count(const struct gw_journal_tokens *tokens, int64_t index)
{
    const struct gw_journal_entry *entry = gw_journal_tokens_find(tokens, index);
    return entry ? entry->count : 0;
}

bool gw_journal_tokens_get(const struct gw_journal_tokens *tokens, int64_t index, int32_t at,
                           struct gw_sample_result *result)
{
    const struct gw_journal_entry *entry = gw_journal_tokens_find(tokens, index);
    if (!entry || at < 0 || at >= entry->count) return false;
    *result = (struct gw_sample_result){.token = entry->tokens[at]};
    if (!entry->with_logprobs) return true;
    const uint8_t *from = entry->logprobs.data + entry->logprob_at[at];
    memcpy(&result->logprob, from, 4);
    result->alternatives = from[4];
    from += 5;
    for (int i = 0; i < result->alternatives; i++, from += 8) {
        memcpy(&result->alt_token[i], from, 4);
        memcpy(&result->alt_logprob[i], from + 4, 4);
    }
    return true;
}

static int compare_indices(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t *gw_journal_tokens_list(const struct gw_journal_tokens *tokens, size_t *count)
{
    int64_t *list = gw_alloc(tokens->used, sizeof *list);
    *count = 0;
    for (size_t i = 0; i < tokens->capacity; i++)
        if (tokens->slots[i]) list[(*count)++] = tokens->slots[i]->index;
    qsort(list, *count, sizeof *list, compare_indices);
    return list;
}

bool gw_journal_tokens_output(const struct gw_journal_tokens *tokens, uint64_t *output_bytes)
{
    *output_bytes = tokens->output_bytes;
    return tokens->has_output;
}

uint64_t gw_journal_tokens_damaged_bytes(const struct gw_journal_tokens *tokens)
{
    return tokens->damaged_bytes;
}

/* ---- records --------------------------------------------------------------------------------------------------- */

static void put_varint(struct gw_buf *buf, uint64_t value)
{
    uint8_t bytes[10];
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) bytes[n++] = (uint8_t)(value | 0x80);
    bytes[n++] = (uint8_t)value;
    gw_buf_add(buf, bytes, n);
}

/* Sets reader->failed when the number is cut, or above `max`. */
static uint64_t read_varint(struct gw_reader *reader, uint64_t max)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        const uint8_t *byte = gw_read(reader, 1);
        if (!byte) return 0;
        value |= (uint64_t)(*byte & 0x7f) << shift;
        if (*byte & 0x80) continue;
        if (value <= max) return value;
        break;
    }
    reader->failed = true;
    return 0;
}

static void put_head(struct gw_buf *buf, int64_t *previous, int64_t index, int tag)
{
    int64_t delta = index - *previous;
    uint64_t zigzag = delta < 0 ? (uint64_t)(-delta) * 2 - 1 : (uint64_t)delta * 2;
    put_varint(buf, zigzag << TAG_BITS | (uint64_t)tag);
    *previous = index;
}

void gw_journal_put_run(struct gw_buf *buf, int64_t *previous, const struct gw_journal_entry *entry, int32_t from)
{
    if (from >= entry->count) return;
    put_head(buf, previous, entry->index, entry->with_logprobs ? TAG_RUN_FULL : TAG_RUN);
    put_varint(buf, (uint64_t)from);
    put_varint(buf, (uint64_t)(entry->count - from));
    for (int32_t at = from; at < entry->count; at++) put_varint(buf, (uint64_t)entry->tokens[at]);
    if (!entry->with_logprobs) return;
    size_t start = entry->logprob_at[from];
    gw_buf_add(buf, entry->logprobs.data + start, entry->logprobs.bytes - start);
}

void gw_journal_put_finished(struct gw_buf *buf, int64_t *previous, int64_t index, uint64_t output_bytes)
{
    put_head(buf, previous, index, TAG_FINISHED);
    put_varint(buf, output_bytes);
}

/* The bytes of the next log-probability record, all of it there and n in range; NULL when not. */
static const uint8_t *read_logprobs(struct gw_reader *reader, size_t *bytes)
{
    const uint8_t *head = gw_read(reader, 5);
    if (!head || head[4] > GW_MAX_LOGPROBS || !gw_read(reader, (size_t)head[4] * 8)) return NULL;
    *bytes = 5 + (size_t)head[4] * 8;
    return head;
}

static gw_err apply_run(struct gw_journal_tokens *tokens, struct gw_reader *reader, int64_t index, bool full)
{
    gw_err rc = GW_OK;
    uint64_t from = read_varint(reader, INT32_MAX - 1), n = read_varint(reader, INT32_MAX - 1 - from);
    if (reader->failed || n == 0 || n > reader->bytes - reader->at)
        return gw_fail(GW_ERR_FORMAT, "a run of tokens is longer than its block");
    struct gw_reader logprobs = *reader; /* they begin behind the tokens */
    for (uint64_t i = 0; full && i < n; i++) read_varint(&logprobs, INT32_MAX);
    struct gw_journal_entry *entry = gw_journal_tokens_find(tokens, index);
    for (uint64_t i = 0; i < n; i++) {
        size_t bytes = 0;
        uint64_t token = read_varint(reader, INT32_MAX);
        const uint8_t *record = full ? read_logprobs(&logprobs, &bytes) : NULL;
        if (reader->failed || (full && !record)) return gw_fail(GW_ERR_FORMAT, "a run of tokens is cut");
        rc = put(tokens, &entry, index, (int32_t)(from + i), (int32_t)token, record, bytes);
        if (rc == GW_ERR_NOT_FOUND) rc = gw_fail(GW_ERR_FORMAT, "a run of tokens leaves a gap");
        TRY(rc);
    }
    if (full) reader->at = logprobs.at;
out:
    return rc;
}

gw_err gw_journal_apply(struct gw_journal_tokens *tokens, struct gw_reader *reader)
{
    gw_err rc = GW_OK;
    int64_t index = 0;
    while (reader->at < reader->bytes) {
        uint64_t output_bytes, head = read_varint(reader, UINT64_MAX);
        uint64_t zigzag = head >> TAG_BITS;
        index += zigzag & 1 ? -(int64_t)(zigzag / 2) - 1 : (int64_t)(zigzag / 2); /* |delta| < 2^61: no overflow */
        if (reader->failed || index < 0 || index >= GW_JOURNAL_MAX_INDEX)
            FAIL(GW_ERR_FORMAT, "a record's index is out of range");
        switch (head & ((1 << TAG_BITS) - 1)) {
        case TAG_RUN: TRY(apply_run(tokens, reader, index, false)); break;
        case TAG_RUN_FULL: TRY(apply_run(tokens, reader, index, true)); break;
        case TAG_FINISHED:
            output_bytes = read_varint(reader, UINT64_MAX);
            if (reader->failed) FAIL(GW_ERR_FORMAT, "a record is cut");
            gw_journal_tokens_set_output(tokens, output_bytes);
            gw_journal_tokens_remove(tokens, index);
            break;
        default: FAIL(GW_ERR_FORMAT, "a record's kind is unknown");
        }
    }
out:
    return rc;
}
