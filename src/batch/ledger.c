/* See ledger.h.
 *
 * Two structures. Lines are kept in chunks, so that a million of them leave no slack and are never copied. The table
 * maps a hash to a slot; a slot holds 0 (free), a line (index + 1) or a noted answer (NOTED | number + 1). A line that
 * meets its noted answer takes over the slot. The table holds nothing that lines and notes do not, so it grows by being
 * thrown away and filled again.
 */
#include "batch/ledger.h"

#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_LINES 4096
#define CHUNK_NOTES 4096
#define NOTED 0x80000000u
#define MAX_LINES 0x7ffffffe
#define FIRST_SLOTS 1024
#define READ_BYTES ((size_t)1 << 18)
#define STATE_MASK 7
#define HAS_ID 8 /* the line owns its custom_id: it is in the table */

/* One input line; 15 bytes. */
struct line {
    uint8_t offset[6]; /* of its first byte in the file, little endian */
    uint8_t state;     /* enum gw_line_state, and HAS_ID */
    uint64_t hash;     /* of custom_id, where HAS_ID */
} __attribute__((packed));

/* One answer that the output held before the start; 96 bits of two hashes, so that a false match needs 2^48 ids. */
struct note {
    uint64_t hash;
    uint32_t check;
} __attribute__((packed));

struct gw_ledger {
    char *path;
    int fd;
    struct stat opened; /* as it was at open */
    struct gw_request_defaults defaults;
    uint64_t hash_mask; /* all ones but in tests */

    struct line **chunks; /* [chunk_count] of CHUNK_LINES */
    size_t chunk_count;
    int64_t line_count;
    int64_t counts[GW_LINE_STATE_COUNT];

    uint32_t *slots; /* [slot_count], linear probing */
    size_t slot_count;
    size_t slots_used;

    struct note **notes; /* [note_chunk_count] of CHUNK_NOTES; freed when the last one is claimed */
    size_t note_chunk_count;
    size_t note_count;
    size_t notes_unclaimed;
    uint8_t *error_bits; /* bit i: line i has its error line; lines without one are beyond error_bytes or 0 */
    size_t error_bytes;
    int64_t errors_unclaimed;

    uint8_t *buffer; /* file bytes [buffer_at, buffer_at + buffer_bytes) */
    size_t buffer_capacity;
    size_t buffer_bytes;
    uint64_t buffer_at;
    uint64_t read_at; /* where the next line starts */
};

/* ---- opening --------------------------------------------------------------------------------------------------- */

static gw_err check_unchanged(const struct gw_ledger *ledger)
{
    struct stat now;
    if (fstat(ledger->fd, &now)) return gw_fail(GW_ERR_IO, "cannot stat %s: %s", ledger->path, strerror(errno));
    if (now.st_size != ledger->opened.st_size || now.st_mtim.tv_sec != ledger->opened.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != ledger->opened.st_mtim.tv_nsec)
        return gw_fail(
            GW_ERR_MISMATCH,
            "%s changed while the job was reading it; restore it and run again, or start a new output folder",
            ledger->path);
    return GW_OK;
}

/* Reads up to `bytes` at `at`; fewer only at the end of the file. */
static gw_err read_at(const struct gw_ledger *ledger, uint8_t *data, size_t bytes, uint64_t at, size_t *got)
{
    *got = 0;
    while (*got < bytes) {
        ssize_t part = pread(ledger->fd, data + *got, bytes - *got, (off_t)(at + *got));
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) return gw_fail(GW_ERR_IO, "cannot read %s: %s", ledger->path, strerror(errno));
        if (part == 0) break;
        *got += (size_t)part;
    }
    return GW_OK;
}

static gw_err refuse_utf16(const struct gw_ledger *ledger)
{
    uint8_t head[2];
    size_t got;
    gw_err rc = read_at(ledger, head, 2, 0, &got);
    if (rc != GW_OK || got < 2) return rc;
    if ((head[0] == 0xff && head[1] == 0xfe) || (head[0] == 0xfe && head[1] == 0xff))
        return gw_fail(GW_ERR_INPUT, "%s is UTF-16; convert it: iconv -f UTF-16 -t UTF-8", ledger->path);
    return GW_OK;
}

gw_err gw_ledger_open(const char *path, const struct gw_request_defaults *defaults, struct gw_ledger **out)
{
    gw_err rc = GW_OK;
    *out = NULL;
    struct gw_ledger *ledger = gw_alloc(1, sizeof *ledger);
    ledger->path = gw_strdup(path);
    ledger->defaults = defaults ? *defaults : (struct gw_request_defaults){.sampling = gw_sampling_default()};
    if (!ledger->defaults.max_line_bytes) ledger->defaults.max_line_bytes = GW_REQUEST_MAX_LINE_BYTES;
    ledger->hash_mask = UINT64_MAX;
    /* O_NONBLOCK: opening a pipe nobody writes to must give the message below, not wait. */
    ledger->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (ledger->fd < 0)
        FAIL(errno == ENOENT ? GW_ERR_NOT_FOUND : GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(ledger->fd, &ledger->opened)) FAIL(GW_ERR_IO, "cannot stat %s: %s", path, strerror(errno));
    if (!S_ISREG(ledger->opened.st_mode))
        FAIL(GW_ERR_INPUT, "%s is not a regular file; lines are read more than once, so save a pipe to a file first",
             path);
    TRY(refuse_utf16(ledger));
    ledger->buffer_capacity = READ_BYTES;
    ledger->buffer = gw_alloc(ledger->buffer_capacity, 1);
    *out = ledger;
    ledger = NULL;
out:
    gw_ledger_close(ledger);
    return rc;
}

static void free_notes(struct gw_ledger *ledger)
{
    for (size_t i = 0; i < ledger->note_chunk_count; i++) free(ledger->notes[i]);
    free(ledger->notes);
    ledger->notes = NULL;
    ledger->note_chunk_count = ledger->note_count = 0;
}

void gw_ledger_close(struct gw_ledger *ledger)
{
    if (!ledger) return;
    if (ledger->fd >= 0) close(ledger->fd);
    for (size_t i = 0; i < ledger->chunk_count; i++) free(ledger->chunks[i]);
    free(ledger->chunks);
    free_notes(ledger);
    free(ledger->slots);
    free(ledger->error_bits);
    free(ledger->buffer);
    free(ledger->path);
    free(ledger);
}

void gw_ledger_test_weaken_hash(struct gw_ledger *ledger, int bits)
{
    GW_ASSERT(ledger->slots_used == 0 && bits > 0 && bits < 64);
    ledger->hash_mask = ~(UINT64_MAX >> bits); /* the high bits: they choose the slot */
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

static struct line *line_at(const struct gw_ledger *ledger, int64_t index)
{
    GW_ASSERT(index >= 0 && index < ledger->line_count);
    return &ledger->chunks[index / CHUNK_LINES][index % CHUNK_LINES];
}

static uint64_t line_offset(const struct line *line)
{
    uint64_t offset = 0;
    for (int i = 0; i < 6; i++) offset |= (uint64_t)line->offset[i] << (8 * i);
    return offset;
}

static gw_err add_line(struct gw_ledger *ledger, uint64_t offset, enum gw_line_state state)
{
    if (ledger->line_count >= MAX_LINES)
        return gw_fail(GW_ERR_INPUT, "%s has more than %d lines; split it into several jobs", ledger->path, MAX_LINES);
    size_t chunk = (size_t)(ledger->line_count / CHUNK_LINES);
    if (chunk == ledger->chunk_count) {
        ledger->chunks = gw_realloc(ledger->chunks, chunk + 1, sizeof *ledger->chunks);
        ledger->chunks[chunk] = gw_alloc(CHUNK_LINES, sizeof **ledger->chunks);
        ledger->chunk_count++;
    }
    ledger->line_count++;
    struct line *line = line_at(ledger, ledger->line_count - 1);
    for (int i = 0; i < 6; i++) line->offset[i] = (uint8_t)(offset >> (8 * i));
    line->state = (uint8_t)state;
    ledger->counts[state]++;
    return GW_OK;
}

enum gw_line_state gw_ledger_state(const struct gw_ledger *ledger, int64_t index)
{
    return (enum gw_line_state)(line_at(ledger, index)->state & STATE_MASK);
}

void gw_ledger_set_state(struct gw_ledger *ledger, int64_t index, enum gw_line_state state)
{
    struct line *line = line_at(ledger, index);
    ledger->counts[line->state & STATE_MASK]--;
    ledger->counts[state]++;
    line->state = (uint8_t)((line->state & ~STATE_MASK) | state);
}

/* ---- table ----------------------------------------------------------------------------------------------------- */

static uint64_t id_hash(const struct gw_ledger *ledger, const char *custom_id)
{
    return gw_request_id_hash(custom_id) & ledger->hash_mask;
}

static uint32_t id_check(const char *custom_id)
{
    return (uint32_t)gw_hash64(custom_id, strlen(custom_id), 1);
}

/* The slot a hash starts at; the table's size need not be a power of two. */
static size_t home_of(uint64_t hash, size_t slot_count)
{
    return (size_t)(((unsigned __int128)hash * slot_count) >> 64);
}

static struct note *note_at(const struct gw_ledger *ledger, uint32_t number)
{
    return &ledger->notes[number / CHUNK_NOTES][number % CHUNK_NOTES];
}

static uint64_t slot_hash(const struct gw_ledger *ledger, uint32_t slot)
{
    return slot & NOTED ? note_at(ledger, (slot & ~NOTED) - 1)->hash : line_at(ledger, (int64_t)slot - 1)->hash;
}

static void fill_slot(struct gw_ledger *ledger, uint64_t hash, uint32_t slot)
{
    size_t at = home_of(hash, ledger->slot_count);
    while (ledger->slots[at])
        if (++at == ledger->slot_count) at = 0;
    ledger->slots[at] = slot;
}

/* Makes room for one more: at most 7/8 full, and at least 7/12 after growing. */
static void reserve_slot(struct gw_ledger *ledger)
{
    if (ledger->slot_count && ledger->slots_used + 1 <= ledger->slot_count / 8 * 7) return;
    free(ledger->slots);
    ledger->slot_count = ledger->slot_count ? ledger->slot_count / 16 * 24 : FIRST_SLOTS;
    ledger->slots = gw_alloc(ledger->slot_count, sizeof *ledger->slots);
    for (int64_t i = 0; i < ledger->line_count; i++) {
        const struct line *line = line_at(ledger, i);
        if (line->state & HAS_ID) fill_slot(ledger, line->hash, (uint32_t)(i + 1));
    }
    /* A claimed note is all zero; its slot is the line's now. */
    for (size_t i = 0; i < ledger->note_count; i++) {
        const struct note *note = note_at(ledger, (uint32_t)i);
        if (note->hash || note->check) fill_slot(ledger, note->hash, NOTED | (uint32_t)(i + 1));
    }
}

void gw_ledger_note_answered(struct gw_ledger *ledger, const char *custom_id)
{
    GW_ASSERT(ledger->line_count == 0 && ledger->note_count < MAX_LINES);
    struct note note = {id_hash(ledger, custom_id), id_check(custom_id)};
    if (!note.hash && !note.check) note.check = 1; /* zero marks a claimed note; at worst this answer is made again */
    reserve_slot(ledger);
    for (size_t at = home_of(note.hash, ledger->slot_count); ledger->slots[at];
         at = at + 1 == ledger->slot_count ? 0 : at + 1) {
        const struct note *other = note_at(ledger, (ledger->slots[at] & ~NOTED) - 1);
        if (other->hash == note.hash && other->check == note.check) return; /* told twice */
    }
    size_t chunk = ledger->note_count / CHUNK_NOTES;
    if (chunk == ledger->note_chunk_count) {
        ledger->notes = gw_realloc(ledger->notes, chunk + 1, sizeof *ledger->notes);
        ledger->notes[chunk] = gw_alloc(CHUNK_NOTES, sizeof **ledger->notes);
        ledger->note_chunk_count++;
    }
    *note_at(ledger, (uint32_t)ledger->note_count++) = note;
    ledger->notes_unclaimed++;
    ledger->slots_used++;
    fill_slot(ledger, note.hash, NOTED | (uint32_t)ledger->note_count);
}

void gw_ledger_note_error(struct gw_ledger *ledger, int64_t index)
{
    GW_ASSERT(ledger->line_count == 0);
    if (index < 0 || index >= MAX_LINES) { /* no line of any input can claim it */
        ledger->errors_unclaimed++;
        return;
    }
    size_t need = (size_t)(index / 8) + 1;
    if (need > ledger->error_bytes) {
        size_t bytes = need + need / 2 + 64;
        ledger->error_bits = gw_realloc(ledger->error_bits, bytes, 1);
        memset(ledger->error_bits + ledger->error_bytes, 0, bytes - ledger->error_bytes);
        ledger->error_bytes = bytes;
    }
    uint8_t bit = (uint8_t)(1u << (index % 8));
    if (!(ledger->error_bits[index / 8] & bit)) ledger->errors_unclaimed++;
    ledger->error_bits[index / 8] |= bit;
}

/* Tells once whether line `index` was noted as having its error line. */
static bool claim_error(struct gw_ledger *ledger, int64_t index)
{
    if ((size_t)(index / 8) >= ledger->error_bytes) return false;
    uint8_t bit = (uint8_t)(1u << (index % 8));
    if (!(ledger->error_bits[index / 8] & bit)) return false;
    ledger->error_bits[index / 8] &= (uint8_t)~bit;
    ledger->errors_unclaimed--;
    return true;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* Makes the buffer hold the line that starts at `read_at` up to its newline, the end of the file, or one byte more than
 * the longest line allowed. *line_bytes is without the newline. */
static gw_err buffer_line(struct gw_ledger *ledger, size_t *line_bytes, bool *newline)
{
    size_t limit = ledger->defaults.max_line_bytes;
    size_t from = (size_t)(ledger->read_at - ledger->buffer_at), searched = from;
    for (;;) {
        uint8_t *found = memchr(ledger->buffer + searched, '\n', ledger->buffer_bytes - searched);
        size_t have = ledger->buffer_bytes - from;
        *newline = found != NULL;
        *line_bytes = found ? (size_t)(found - ledger->buffer) - from : have;
        if (found || have > limit) return GW_OK;

        memmove(ledger->buffer, ledger->buffer + from, have);
        ledger->buffer_at += from;
        ledger->buffer_bytes = have;
        from = 0;
        searched = have;
        if (ledger->buffer_capacity - have < READ_BYTES / 2) {
            ledger->buffer_capacity *= 2;
            ledger->buffer = gw_realloc(ledger->buffer, ledger->buffer_capacity, 1);
        }
        gw_err rc = check_unchanged(ledger);
        if (rc != GW_OK) return rc;
        size_t got;
        rc = read_at(ledger, ledger->buffer + have, ledger->buffer_capacity - have, ledger->buffer_at + have, &got);
        if (rc != GW_OK || got == 0) return rc;
        ledger->buffer_bytes += got;
    }
}

/* Passes over the rest of a line that is too long to be held. */
static gw_err skip_line(struct gw_ledger *ledger)
{
    for (;;) {
        size_t from = (size_t)(ledger->read_at - ledger->buffer_at);
        uint8_t *found = memchr(ledger->buffer + from, '\n', ledger->buffer_bytes - from);
        ledger->read_at = ledger->buffer_at + (found ? (size_t)(found - ledger->buffer) + 1 : ledger->buffer_bytes);
        if (found) return GW_OK;
        ledger->buffer_at = ledger->read_at;
        ledger->buffer_bytes = 0;
        gw_err rc = check_unchanged(ledger);
        if (rc != GW_OK) return rc;
        rc = read_at(ledger, ledger->buffer, ledger->buffer_capacity, ledger->buffer_at, &ledger->buffer_bytes);
        if (rc != GW_OK || ledger->buffer_bytes == 0) return rc;
    }
}

gw_err gw_ledger_read_line(struct gw_ledger *ledger, int64_t index, struct gw_buf *line)
{
    gw_err rc = GW_OK;
    uint64_t offset = line_offset(line_at(ledger, index));
    gw_buf_clear(line);
    TRY(check_unchanged(ledger));
    for (size_t want = 4096;; want *= 2) {
        if (want > ledger->defaults.max_line_bytes + 1) want = ledger->defaults.max_line_bytes + 1;
        size_t had = line->bytes, got;
        gw_buf_reserve(line, want - had);
        TRY(read_at(ledger, line->data + had, want - had, offset + had, &got));
        line->bytes += got;
        const uint8_t *found = memchr(line->data + had, '\n', got);
        if (found) line->bytes = (size_t)(found - line->data);
        if (found || line->bytes < want || want > ledger->defaults.max_line_bytes) break;
    }
out:
    return rc;
}

gw_err gw_ledger_reread(struct gw_ledger *ledger, int64_t index, struct gw_request *out)
{
    gw_err rc = GW_OK;
    struct gw_buf line = {0};
    struct gw_request_error bad;
    *out = (struct gw_request){0};
    GW_ASSERT(line_at(ledger, index)->state & HAS_ID);
    TRY(gw_ledger_read_line(ledger, index, &line));
    TRY(gw_request_parse((char *)line.data, line.bytes, index, &ledger->defaults, out, &bad));
    if (bad.code || id_hash(ledger, out->custom_id) != line_at(ledger, index)->hash) {
        gw_request_free(out);
        FAIL(GW_ERR_MISMATCH, "%s changed while the job was reading it: line %lld is not what it was", ledger->path,
             (long long)index + 1);
    }
out:
    gw_buf_free(&line);
    return rc;
}

/* ---- going forward --------------------------------------------------------------------------------------------- */

/* Enters the last line's custom_id into the table. *duplicate_of is the line that has it already, or -1; *answered:
 * noted. */
static gw_err claim_id(struct gw_ledger *ledger, const char *custom_id, int64_t *duplicate_of, bool *answered)
{
    *duplicate_of = -1;
    *answered = false;
    uint64_t hash = id_hash(ledger, custom_id);
    struct line *line = line_at(ledger, ledger->line_count - 1);
    reserve_slot(ledger); /* while the line is not yet HAS_ID */
    size_t at = home_of(hash, ledger->slot_count);
    size_t note_slot = SIZE_MAX;
    for (; ledger->slots[at]; at = at + 1 == ledger->slot_count ? 0 : at + 1) {
        uint32_t slot = ledger->slots[at];
        if (slot_hash(ledger, slot) != hash) continue;
        if (slot & NOTED) {
            if (note_at(ledger, (slot & ~NOTED) - 1)->check == id_check(custom_id)) note_slot = at;
            continue;
        }
        struct gw_request earlier;
        gw_err rc = gw_ledger_reread(ledger, (int64_t)slot - 1, &earlier);
        if (rc != GW_OK) return rc;
        bool same = strcmp(earlier.custom_id, custom_id) == 0;
        gw_request_free(&earlier);
        if (same) {
            *duplicate_of = (int64_t)slot - 1;
            return GW_OK;
        }
    }
    line->hash = hash;
    line->state |= HAS_ID;
    if (note_slot == SIZE_MAX) {
        ledger->slots[at] = (uint32_t)ledger->line_count;
        ledger->slots_used++;
        return GW_OK;
    }
    *answered = true;
    *note_at(ledger, (ledger->slots[note_slot] & ~NOTED) - 1) = (struct note){0};
    ledger->slots[note_slot] = (uint32_t)ledger->line_count;
    if (--ledger->notes_unclaimed == 0) free_notes(ledger);
    return GW_OK;
}

static bool is_blank(const uint8_t *line, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r') return false;
    return true;
}

/* Takes the line of `bytes` bytes at read_at: enters it, says what to do with it. *wanted: the caller shall see it. */
static gw_err take_line(struct gw_ledger *ledger, size_t bytes, struct gw_request *out, struct gw_request_error *bad,
                        bool *wanted)
{
    gw_err rc = GW_OK;
    int64_t index = ledger->line_count;
    const uint8_t *data = ledger->buffer + (ledger->read_at - ledger->buffer_at);
    *wanted = false;
    bool bom = index == 0 && bytes >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0;
    if (is_blank(data + (bom ? 3 : 0), bytes - (bom ? 3 : 0)))
        return add_line(ledger, ledger->read_at, GW_LINE_SKIPPED);

    TRY(add_line(ledger, ledger->read_at, GW_LINE_ACTIVE));
    TRY(gw_request_parse((const char *)data, bytes, index, &ledger->defaults, out, bad));
    bool answered = false, reported = claim_error(ledger, index);
    if (!bad->code) {
        int64_t duplicate_of;
        TRY(claim_id(ledger, out->custom_id, &duplicate_of, &answered));
        if (duplicate_of >= 0)
            gw_request_error_set(bad, GW_REQUEST_DUPLICATE_ID, "custom_id",
                                 "this custom_id was used before, in line %lld; its answer is that line's",
                                 (long long)duplicate_of + 1);
    }
    if (bad->code || reported) gw_ledger_set_state(ledger, index, GW_LINE_FAILED);
    else if (answered) gw_ledger_set_state(ledger, index, GW_LINE_DONE);
    *wanted = !answered && !reported;
out:
    return rc;
}

gw_err gw_ledger_next(struct gw_ledger *ledger, struct gw_request *out, struct gw_request_error *bad, bool *end)
{
    gw_err rc = GW_OK;
    bool wanted = false;
    *out = (struct gw_request){0};
    *bad = (struct gw_request_error){0};
    *end = false;
    while (!wanted) {
        size_t bytes;
        bool newline;
        gw_request_free(out);
        *bad = (struct gw_request_error){0};
        TRY(buffer_line(ledger, &bytes, &newline));
        if (bytes == 0 && !newline) { /* nothing behind the last newline */
            TRY(check_unchanged(ledger));
            *end = true;
            break;
        }
        TRY(take_line(ledger, bytes, out, bad, &wanted));
        ledger->read_at += bytes + newline;
        if (bytes > ledger->defaults.max_line_bytes && !newline) TRY(skip_line(ledger));
    }
out:
    if (rc != GW_OK) gw_request_free(out);
    return rc;
}

/* ---- figures --------------------------------------------------------------------------------------------------- */

int64_t gw_ledger_lines(const struct gw_ledger *ledger)
{
    return ledger->line_count;
}

int64_t gw_ledger_count(const struct gw_ledger *ledger, enum gw_line_state state)
{
    return ledger->counts[state];
}

int64_t gw_ledger_unclaimed(const struct gw_ledger *ledger)
{
    return (int64_t)ledger->notes_unclaimed + ledger->errors_unclaimed;
}

uint64_t gw_ledger_bytes_read(const struct gw_ledger *ledger)
{
    return ledger->read_at;
}

uint64_t gw_ledger_bytes_total(const struct gw_ledger *ledger)
{
    return (uint64_t)ledger->opened.st_size;
}

size_t gw_ledger_bytes(const struct gw_ledger *ledger)
{
    return sizeof *ledger + ledger->chunk_count * (sizeof *ledger->chunks + CHUNK_LINES * sizeof(struct line)) +
           ledger->slot_count * sizeof *ledger->slots +
           ledger->note_chunk_count * (sizeof *ledger->notes + CHUNK_NOTES * sizeof(struct note)) + ledger->error_bytes;
}

size_t gw_ledger_buffer_bytes(const struct gw_ledger *ledger)
{
    return ledger->buffer_capacity;
}
