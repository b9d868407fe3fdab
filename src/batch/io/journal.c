/* Files of the journal: replay, leadership, commits, rotation. See journal.h; the table is journal_tokens.c.
 *
 * A file is a row of blocks: header, snapshot blocks up to the one that ends it, then commits. A block counts when its
 * frame fits: magic, epoch of the file, number in the row, XXH3 of all of it. The first that does not ends the file.
 *
 * Fencing. A new leader creates its file first and reads the others after that; a leader looks for newer files after each write. So a
 * commit that succeeds was written before the newer file was there, and the newer leader has read it.
 */
#include "batch/io/journal.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "batch/io/journal_tokens.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_MAGIC 0x314a5747u /* "GWJ1" */
#define VERSION 1u
#define SNAPSHOT_BLOCK_BYTES (1u << 20) /* about: a torn snapshot still gives what is before the tear */
#define MAX_BYTES_DEFAULT (UINT64_C(64) << 20)
#define REPLAY_TRIES 100 /* a living leader may remove files while they are read: start over */

struct frame {
    uint32_t magic;
    uint32_t bytes;    /* of the payload behind it */
    uint64_t epoch;    /* of the file */
    uint64_t number;   /* of the block in its file, from 0 */
    uint64_t checksum; /* XXH3 of the payload, seeded with that of the frame before this field */
};
_Static_assert(sizeof(struct frame) == 32, "the frame is a file format");

enum block_kind { BLOCK_HEADER = 1, BLOCK_SNAPSHOT, BLOCK_SNAPSHOT_END, BLOCK_COMMIT }; /* first byte of the payload */

/* The file being written. */
struct file {
    char *path;
    int fd;
    uint64_t epoch;
    uint64_t number;         /* of the next block */
    uint64_t end;            /* of the last whole block */
    uint64_t snapshot_bytes; /* header and snapshot */
};

struct gw_journal {
    char *outdir;
    char *dir; /* outdir/journal */
    uint64_t job_id;
    uint64_t max_bytes;
    struct file file;
    struct gw_journal_tokens *live; /* its `files` are the earlier ones that are still there */
    int64_t *dirty; /* [dirty_count] requests with tokens to write; may name one twice, or a finished one */
    size_t dirty_count, dirty_capacity;
    struct gw_buf finished; /* FINISHED records to write */
    int64_t finished_previous;
    struct gw_buf block; /* scratch */
    bool unsynced;       /* written since the last sync */
    bool
        suspect; /* a sync failed, the kernel may have dropped what it should have written: this file is not to be trusted */
    bool fenced;
};

/* ---- names ----------------------------------------------------------------------------------------------------- */

static char *path_of(const char *dir, uint64_t epoch)
{
    return gw_asprintf("%s/%08" PRIu64 ".gwj", dir, epoch);
}

static bool epoch_of(const char *name, uint64_t *epoch)
{
    char again[40], *end;
    *epoch = strtoull(name, &end, 10);
    snprintf(again, sizeof again, "%08" PRIu64 ".gwj", *epoch);
    return *epoch > 0 && strcmp(name, again) == 0;
}

static int compare_epochs(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Epochs of the files that are there, ascending; none when there is no folder. The caller frees. */
static gw_err list_files(const char *dir, uint64_t **epochs, size_t *count)
{
    size_t capacity = 8;
    *count = 0;
    *epochs = NULL;
    DIR *stream = opendir(dir);
    if (!stream && errno != ENOENT) return gw_fail(GW_ERR_IO, "cannot open directory %s: %s", dir, strerror(errno));
    *epochs = gw_alloc(capacity, sizeof **epochs);
    if (!stream) return GW_OK;
    for (;;) {
        errno = 0;
        struct dirent *item = readdir(stream);
        if (!item) break;
        uint64_t epoch;
        if (!epoch_of(item->d_name, &epoch)) continue;
        if (*count == capacity) *epochs = gw_realloc(*epochs, capacity *= 2, sizeof **epochs);
        (*epochs)[(*count)++] = epoch;
    }
    gw_err rc = errno ? gw_fail(GW_ERR_IO, "cannot read directory %s: %s", dir, strerror(errno)) : GW_OK;
    closedir(stream);
    qsort(*epochs, *count, sizeof **epochs, compare_epochs);
    if (rc != GW_OK) {
        free(*epochs);
        *epochs = NULL;
    }
    return rc;
}

static gw_err sync_dir(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gw_err rc = GW_OK;
    if (fd < 0 || fsync(fd)) rc = gw_fail(GW_ERR_IO, "cannot sync directory %s: %s", dir, strerror(errno));
    if (fd >= 0) close(fd);
    return rc;
}

/* ---- replay ---------------------------------------------------------------------------------------------------- */

/* One file as it is read. */
struct parse {
    const char *path;
    uint64_t epoch;
    struct gw_journal_tokens *tokens; /* what the file holds, on its own */
    struct gw_journal_file *seals;    /* [seal_count] of its header */
    size_t seal_count;
    uint64_t job_id;
    uint64_t accepted; /* bytes */
    uint64_t number;   /* of the next block */
    bool header;
    bool complete; /* its snapshot is, so earlier files are not needed */
};

static uint64_t checksum_of(const struct frame *frame, const uint8_t *payload)
{
    uint64_t seed = gw_hash64(frame, offsetof(struct frame, checksum), 0);
    return gw_hash64(payload, frame->bytes, seed);
}

static gw_err apply_header(struct parse *parse, struct gw_reader *reader)
{
    uint32_t version = gw_read_u32(reader);
    parse->job_id = gw_read_u64(reader);
    uint32_t count = gw_read_u32(reader);
    if (!reader->failed && version != VERSION)
        return gw_fail(GW_ERR_FORMAT, "%s is of version %u, this godwit knows %u; finish the job with the other one",
                       parse->path, version, VERSION);
    if (reader->failed || reader->bytes - reader->at != (size_t)count * 16)
        return gw_fail(GW_ERR_NOT_FOUND, "its header makes no sense");
    parse->seals = gw_alloc(count, sizeof *parse->seals);
    parse->seal_count = count;
    for (uint32_t i = 0; i < count; i++) {
        parse->seals[i].epoch = gw_read_u64(reader);
        parse->seals[i].accepted_bytes = gw_read_u64(reader);
    }
    parse->header = true;
    return GW_OK;
}

/* A block whose frame is in order. GW_ERR_NOT_FOUND: what is in it is not; the file ends before it. */
static gw_err apply_block(struct parse *parse, struct gw_reader *reader)
{
    const uint8_t *kind = gw_read(reader, 1);
    if (!kind || (*kind == BLOCK_HEADER) != !parse->header ||
        (*kind == BLOCK_COMMIT) != (parse->header && parse->complete))
        return gw_fail(GW_ERR_NOT_FOUND, "a block is out of place");
    if (*kind == BLOCK_HEADER) return apply_header(parse, reader);
    if (*kind == BLOCK_SNAPSHOT_END) {
        const uint8_t *has_output = gw_read(reader, 1);
        uint64_t output_bytes = gw_read_u64(reader);
        if (reader->failed) return gw_fail(GW_ERR_NOT_FOUND, "the snapshot's end is cut");
        if (*has_output) gw_journal_tokens_set_output(parse->tokens, output_bytes);
        parse->complete = true;
    } else if (*kind != BLOCK_SNAPSHOT && *kind != BLOCK_COMMIT) {
        return gw_fail(GW_ERR_NOT_FOUND, "a block's kind is unknown");
    }
    gw_err rc = gw_journal_apply(parse->tokens, reader);
    return rc == GW_ERR_FORMAT ? gw_fail(GW_ERR_NOT_FOUND, "%s", gw_error_detail()) : rc;
}

/* Goes through blocks up to the first that does not fit; *why says why it does not, NULL at a clean end. */
static gw_err parse_blocks(struct parse *parse, const uint8_t *data, uint64_t bytes, const char **why)
{
    *why = NULL;
    while (parse->accepted < bytes) {
        const uint8_t *at = data + parse->accepted;
        uint64_t left = bytes - parse->accepted;
        struct frame frame;
        *why = "it is cut short";
        if (left < sizeof frame) break;
        memcpy(&frame, at, sizeof frame);
        *why = "no block begins there";
        if (frame.magic != BLOCK_MAGIC || frame.epoch != parse->epoch || frame.number != parse->number) break;
        *why = "it is cut short";
        if (frame.bytes > left - sizeof frame) break;
        *why = "the checksum is wrong";
        if (frame.checksum != checksum_of(&frame, at + sizeof frame)) break;
        struct gw_reader reader = {.data = at + sizeof frame, .bytes = frame.bytes};
        gw_err rc = apply_block(parse, &reader);
        *why = "its contents make no sense";
        if (rc == GW_ERR_NOT_FOUND) return GW_OK;
        if (rc == GW_ERR_BUG)
            gw_fail(rc, "%s, block at byte %" PRIu64 ": %s", parse->path, parse->accepted, gw_error_detail());
        if (rc != GW_OK) return rc;
        *why = NULL;
        parse->accepted += sizeof frame + frame.bytes;
        parse->number++;
    }
    return GW_OK;
}

/* Reads a file as far as it can be read: an unreadable sector is damage like any other. GW_ERR_NOT_FOUND: it is gone. */
static gw_err read_file(const char *path, struct gw_buf *data)
{
    gw_buf_clear(data);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return gw_fail(errno == ENOENT ? GW_ERR_NOT_FOUND : GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    for (;;) {
        size_t room = 1 << 20;
        gw_buf_reserve(data, room);
        ssize_t got = read(fd, data->data + data->bytes, room);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) gw_warn("cannot read %s behind byte %zu: %s", path, data->bytes, strerror(errno));
        if (got <= 0) break;
        data->bytes += (size_t)got;
    }
    close(fd);
    return GW_OK;
}

/* What counts of the file at most: later files that have a header seal it, or do not know it. */
static uint64_t limit_of(uint64_t epoch, const struct parse *later, size_t count)
{
    uint64_t limit = UINT64_MAX;
    for (size_t i = 0; i < count; i++) {
        if (!later[i].header) continue;
        uint64_t seal = 0;
        for (size_t j = 0; j < later[i].seal_count; j++)
            if (later[i].seals[j].epoch == epoch) seal = later[i].seals[j].accepted_bytes;
        if (seal < limit) limit = seal;
    }
    return limit;
}

static gw_err parse_file(struct parse *parse, uint64_t limit, struct gw_buf *data, struct gw_journal_file *file,
                         uint64_t *damaged_bytes)
{
    gw_err rc = GW_OK;
    const char *why;
    parse->tokens = gw_journal_tokens_create();
    TRY(read_file(parse->path, data));
    uint64_t bytes = data->bytes < limit ? data->bytes : limit;
    TRY(parse_blocks(parse, data->data, bytes, &why));
    *file = (struct gw_journal_file){parse->epoch, data->bytes, parse->accepted, true};
    if (!why) goto out;
    *damaged_bytes += bytes - parse->accepted;
    gw_warn("%s: the block at byte %" PRIu64 " does not count (%s), nor do the %" PRIu64
            " bytes from there on; tokens that only they held are generated again, to the same bytes",
            parse->path, parse->accepted, why, bytes - parse->accepted);
out:
    return rc;
}

/* The oldest file that was read, and what the newer ones know more (only the oldest can have a whole snapshot). */
static gw_err add_up(struct parse *newest_first, size_t count, struct gw_journal_tokens **tokens)
{
    gw_err rc = GW_OK;
    *tokens = gw_journal_tokens_create();
    for (size_t i = count; i-- > 0;) {
        struct parse *parse = &newest_first[i];
        if (i + 1 == count) { /* moved, not copied */
            gw_journal_tokens_free(*tokens);
            *tokens = parse->tokens;
            parse->tokens = NULL;
        } else {
            TRY(gw_journal_tokens_merge(*tokens, parse->tokens));
        }
        if (!parse->header) continue;
        (*tokens)->has_job = true;
        (*tokens)->job_id = parse->job_id;
    }
out:
    return rc;
}

/* From the newest file back to the first whose snapshot is complete; then forward again, adding up. GW_ERR_NOT_FOUND when a file
 * has been removed meanwhile. */
static gw_err replay_files(const char *dir, const uint64_t *epochs, size_t count, struct gw_journal_tokens **tokens)
{
    gw_err rc = GW_OK;
    struct gw_buf data = {0};
    struct parse *parses = gw_alloc(count, sizeof *parses); /* newest first */
    struct gw_journal_file *files = gw_alloc(count, sizeof *files);
    uint64_t damaged_bytes = 0;
    size_t parsed = 0;
    for (size_t i = count; i-- > 0;) {
        struct parse *parse = &parses[parsed];
        uint64_t limit = limit_of(epochs[i], parses, parsed);
        if (parsed && parses[parsed - 1].complete) { /* not needed; stays sealed as it is */
            files[i] = (struct gw_journal_file){.epoch = epochs[i], .accepted_bytes = limit};
            continue;
        }
        parsed++;
        parse->path = path_of(dir, epochs[i]);
        parse->epoch = epochs[i];
        TRY(parse_file(parse, limit, &data, &files[i], &damaged_bytes));
        for (size_t j = 0; j + 1 < parsed; j++)
            if (parse->header && parses[j].header && parses[j].job_id != parse->job_id)
                FAIL(GW_ERR_FORMAT, "%s and %s are of different jobs; use another output folder", parse->path,
                     parses[j].path);
    }
    TRY(add_up(parses, parsed, tokens));
    (*tokens)->files = files;
    (*tokens)->file_count = count;
    (*tokens)->damaged_bytes = damaged_bytes;
    files = NULL;
out:
    for (size_t j = 0; j < parsed; j++) {
        gw_journal_tokens_free(parses[j].tokens);
        free(parses[j].seals);
        free((char *)parses[j].path);
    }
    if (rc != GW_OK) {
        gw_journal_tokens_free(*tokens);
        *tokens = NULL;
    }
    free(parses);
    free(files);
    gw_buf_free(&data);
    return rc;
}

/* As gw_journal_replay(), of the files before `below`. */
static gw_err replay_below(const char *outdir, uint64_t below, struct gw_journal_tokens **tokens, uint64_t *last_epoch)
{
    gw_err rc = GW_OK;
    char *dir = gw_asprintf("%s/journal", outdir);
    *tokens = NULL;
    for (int i = 0; i < REPLAY_TRIES; i++) {
        uint64_t *epochs;
        size_t count;
        rc = list_files(dir, &epochs, &count);
        if (rc != GW_OK) break;
        while (count && epochs[count - 1] >= below) count--;
        *last_epoch = count ? epochs[count - 1] : 0;
        rc = replay_files(dir, epochs, count, tokens);
        free(epochs);
        if (rc != GW_ERR_NOT_FOUND) break;
    }
    if (rc != GW_OK) gw_error_trace(__FILE__, __LINE__);
    free(dir);
    return rc;
}

gw_err gw_journal_replay(const char *dir, struct gw_journal_tokens **tokens, uint64_t *last_epoch)
{
    return replay_below(dir, UINT64_MAX, tokens, last_epoch);
}

/* ---- writing blocks -------------------------------------------------------------------------------------------- */

static void block_start(struct gw_buf *block, enum block_kind kind)
{
    static const uint8_t no_frame[sizeof(struct frame)];
    uint8_t first = (uint8_t)kind;
    gw_buf_clear(block);
    gw_buf_add(block, no_frame, sizeof no_frame);
    gw_buf_add(block, &first, 1);
}

/* Writes the block behind the last one. GW_ERR_IO: nothing of it stays. */
static gw_err block_write(struct file *file, struct gw_buf *block)
{
    size_t bytes = block->bytes - sizeof(struct frame);
    GW_ASSERT(bytes <= UINT32_MAX);
    struct frame frame = {BLOCK_MAGIC, (uint32_t)bytes, file->epoch, file->number, 0};
    frame.checksum = checksum_of(&frame, block->data + sizeof frame);
    memcpy(block->data, &frame, sizeof frame);
    /* By offset, not O_APPEND: should a failed write's rest stay, the next block covers it. */
    if (lseek(file->fd, (off_t)file->end, SEEK_SET) < 0)
        return gw_fail(GW_ERR_IO, "cannot seek in %s: %s", file->path, strerror(errno));
    gw_err rc = gw_write_all(file->fd, file->path, block->data, block->bytes);
    if (rc != GW_OK) {
        if (ftruncate(file->fd, (off_t)file->end))
            gw_warn("cannot cut %s back to its last whole block: %s", file->path, strerror(errno));
        return rc;
    }
    file->end += block->bytes;
    file->number++;
    return GW_OK;
}

static gw_err write_header(struct gw_journal *journal, struct file *file)
{
    const struct gw_journal_tokens *live = journal->live;
    block_start(&journal->block, BLOCK_HEADER);
    gw_buf_add_u32(&journal->block, VERSION);
    gw_buf_add_u64(&journal->block, journal->job_id);
    gw_buf_add_u32(&journal->block, (uint32_t)live->file_count);
    for (size_t i = 0; i < live->file_count; i++) {
        gw_buf_add_u64(&journal->block, live->files[i].epoch);
        gw_buf_add_u64(&journal->block, live->files[i].accepted_bytes);
    }
    return block_write(file, &journal->block);
}

static gw_err write_snapshot(struct gw_journal *journal, struct file *file)
{
    gw_err rc = GW_OK;
    const struct gw_journal_tokens *live = journal->live;
    struct gw_buf *block = &journal->block;
    int64_t previous = 0;
    size_t count;
    int64_t *list = gw_journal_tokens_list(live, &count);
    block_start(block, BLOCK_SNAPSHOT);
    for (size_t i = 0; i < count; i++) {
        gw_journal_put_run(block, &previous, gw_journal_tokens_find(live, list[i]), 0);
        if (block->bytes < SNAPSHOT_BLOCK_BYTES) continue;
        TRY(block_write(file, block));
        block_start(block, BLOCK_SNAPSHOT);
        previous = 0;
    }
    TRY(block_write(file, block));
    block_start(block, BLOCK_SNAPSHOT_END);
    uint8_t has_output = live->has_output;
    gw_buf_add(block, &has_output, 1);
    gw_buf_add_u64(block, live->output_bytes);
    TRY(block_write(file, block));
    file->snapshot_bytes = file->end;
out:
    free(list);
    return rc;
}

/* ---- leadership ------------------------------------------------------------------------------------------------ */

static gw_err fenced(struct gw_journal *journal, uint64_t epoch)
{
    journal->fenced = true;
    return gw_fail(GW_ERR_MISMATCH, "%s/%08" PRIu64 ".gwj is there: another leader has taken over this job",
                   journal->dir, epoch);
}

/* GW_ERR_MISMATCH when there is a file above `epoch`. */
static gw_err check_newest(struct gw_journal *journal, uint64_t epoch)
{
    uint64_t *epochs;
    size_t count;
    gw_err rc = list_files(journal->dir, &epochs, &count);
    if (rc == GW_OK && count && epochs[count - 1] > epoch) rc = fenced(journal, epochs[count - 1]);
    free(epochs);
    return rc;
}

static gw_err file_create(struct gw_journal *journal, uint64_t epoch, struct file *file)
{
    gw_err rc = GW_OK;
    char *path = path_of(journal->dir, epoch);
    *file = (struct file){.path = path, .epoch = epoch};
    file->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file->fd < 0 && errno == EEXIST) TRY(fenced(journal, epoch));
    if (file->fd < 0) FAIL(GW_ERR_IO, "cannot create %s: %s", path, strerror(errno));
    TRY(sync_dir(journal->dir));
out:
    return rc;
}

static void file_close(struct file *file)
{
    if (file->fd >= 0) close(file->fd);
    free(file->path);
    *file = (struct file){.fd = -1};
}

/* True when the files below `epoch` are as the replay saw them. */
static gw_err unchanged(const struct gw_journal *journal, uint64_t epoch, bool *same)
{
    const struct gw_journal_tokens *live = journal->live;
    uint64_t *epochs;
    size_t count;
    gw_err rc = list_files(journal->dir, &epochs, &count);
    if (rc != GW_OK) return rc;
    while (count && epochs[count - 1] >= epoch) count--;
    *same = count == live->file_count;
    for (size_t i = 0; i < count && *same; i++) {
        struct stat st;
        char *path = path_of(journal->dir, epochs[i]);
        *same = live->files[i].epoch == epochs[i] &&
                (!live->files[i].read || (stat(path, &st) == 0 && (uint64_t)st.st_size == live->files[i].seen_bytes));
        free(path);
    }
    free(epochs);
    return GW_OK;
}

/* What an earlier leader has written between the caller's replay and our file's creation counts, too. */
static gw_err catch_up(struct gw_journal *journal, uint64_t epoch)
{
    gw_err rc = GW_OK;
    bool same = false;
    struct gw_journal_tokens *now = NULL;
    uint64_t last;
    TRY(unchanged(journal, epoch, &same));
    if (same) goto out;
    TRY(replay_below(journal->outdir, epoch, &now, &last));
    gw_journal_tokens_free(journal->live);
    journal->live = now;
out:
    return rc;
}

/* Only the newest of the files below `epoch` stays: it would help if this one were damaged. */
static void remove_older(struct gw_journal *journal, uint64_t epoch)
{
    struct gw_journal_tokens *live = journal->live;
    size_t kept = 0;
    for (size_t i = 0; i < live->file_count; i++) {
        char *path = path_of(journal->dir, live->files[i].epoch);
        if (i + 1 < live->file_count) {
            if (unlink(path) && errno != ENOENT)
                gw_warn("cannot remove %s, which file %" PRIu64 " replaces: %s", path, epoch, strerror(errno));
        } else {
            live->files[kept++] = live->files[i];
        }
        free(path);
    }
    live->file_count = kept;
}

/* Everything in `live` is in the file now. */
static void all_written(struct gw_journal *journal)
{
    for (size_t i = 0; i < journal->live->capacity; i++) {
        struct gw_journal_entry *entry = journal->live->slots[i];
        if (!entry) continue;
        entry->written = entry->count;
        entry->dirty = false;
    }
    journal->dirty_count = 0;
    gw_buf_clear(&journal->finished);
    journal->finished_previous = 0;
    journal->unsynced = journal->suspect = false;
}

/* Starts file `epoch` and goes over to it; on error the journal is as it was and the file is removed. */
static gw_err start_file(struct gw_journal *journal, uint64_t epoch)
{
    gw_err rc = GW_OK;
    struct file file;
    TRY(file_create(journal, epoch, &file));
    if (!journal->file.path) TRY(catch_up(journal, epoch));
    if (journal->live->has_job && journal->live->job_id != journal->job_id)
        FAIL(GW_ERR_FORMAT, "%s/%08" PRIu64 ".gwj is of another job; use another output folder", journal->dir,
             journal->live->files[journal->live->file_count - 1].epoch);
    TRY(write_header(journal, &file));
    TRY(write_snapshot(journal, &file));
    if (fsync(file.fd)) FAIL(GW_ERR_IO, "cannot sync %s: %s", file.path, strerror(errno));
    TRY(check_newest(journal, epoch));
    journal->live->has_job = true;
    journal->live->job_id = journal->job_id;
    all_written(journal);
    file_close(&journal->file);
    journal->file = file;
    remove_older(journal, epoch);
    return GW_OK;
out:
    if (file.fd >= 0) unlink(file.path);
    file_close(&file);
    return rc;
}

static void destroy(struct gw_journal *journal)
{
    file_close(&journal->file);
    gw_journal_tokens_free(journal->live);
    gw_buf_free(&journal->finished);
    gw_buf_free(&journal->block);
    free(journal->dirty);
    free(journal->outdir);
    free(journal->dir);
    free(journal);
}

gw_err gw_journal_open(const char *dir, uint64_t epoch, const struct gw_journal_tokens *tokens, uint64_t job_id,
                       struct gw_journal **out)
{
    gw_err rc = GW_OK;
    struct gw_journal *journal = gw_alloc(1, sizeof *journal);
    *out = NULL;
    GW_ASSERT(epoch > 0);
    journal->outdir = gw_strdup(dir);
    journal->dir = gw_asprintf("%s/journal", dir);
    journal->job_id = job_id;
    journal->max_bytes = MAX_BYTES_DEFAULT;
    journal->file.fd = -1;
    journal->live = tokens ? gw_journal_tokens_copy(tokens) : gw_journal_tokens_create();
    TRY(gw_make_dir(journal->dir));
    TRY(sync_dir(dir));
    TRY(start_file(journal, epoch));
    *out = journal;
    journal = NULL;
out:
    if (journal) destroy(journal);
    return rc;
}

/* ---- commits --------------------------------------------------------------------------------------------------- */

gw_err gw_journal_add(struct gw_journal *journal, int64_t index, int32_t at, const struct gw_sample_result *result,
                      bool with_logprobs)
{
    struct gw_journal_entry *entry;
    gw_err rc = gw_journal_tokens_add(journal->live, index, at, result, with_logprobs, &entry);
    if (rc != GW_OK || entry->dirty || entry->written == entry->count) return rc;
    entry->dirty = true;
    if (journal->dirty_count == journal->dirty_capacity) {
        journal->dirty_capacity = journal->dirty_capacity ? journal->dirty_capacity * 2 : 64;
        journal->dirty = gw_realloc(journal->dirty, journal->dirty_capacity, sizeof *journal->dirty);
    }
    journal->dirty[journal->dirty_count++] = index;
    return GW_OK;
}

void gw_journal_add_finished(struct gw_journal *journal, int64_t index, uint64_t output_bytes)
{
    GW_ASSERT(index >= 0 && index < GW_JOURNAL_MAX_INDEX);
    gw_journal_put_finished(&journal->finished, &journal->finished_previous, index, output_bytes);
    gw_journal_tokens_remove(journal->live, index);
    gw_journal_tokens_set_output(journal->live, output_bytes);
}

/* One block of all that is buffered. Answers come before tokens: what is here of an answered request was added after it. */
static gw_err write_commit(struct gw_journal *journal)
{
    struct gw_buf *block = &journal->block;
    int64_t previous = journal->finished_previous;
    block_start(block, BLOCK_COMMIT);
    gw_buf_add(block, journal->finished.data, journal->finished.bytes);
    for (size_t i = 0; i < journal->dirty_count; i++) {
        struct gw_journal_entry *entry = gw_journal_tokens_find(journal->live, journal->dirty[i]);
        if (!entry || !entry->dirty) continue;
        gw_journal_put_run(block, &previous, entry, entry->written);
        entry->dirty = false;
    }
    gw_err rc = block_write(&journal->file, block);
    for (size_t i = 0; i < journal->dirty_count; i++) {
        struct gw_journal_entry *entry = gw_journal_tokens_find(journal->live, journal->dirty[i]);
        if (!entry) continue;
        if (rc == GW_OK) entry->written = entry->count;
        else entry->dirty = entry->written < entry->count;
    }
    if (rc != GW_OK) return rc;
    journal->dirty_count = 0;
    gw_buf_clear(&journal->finished);
    journal->finished_previous = 0;
    journal->unsynced = true;
    return GW_OK;
}

/* The next file: by size, or since this one cannot be trusted. The header seals this one where it ends now. */
static gw_err rotate(struct gw_journal *journal)
{
    struct gw_journal_tokens *live = journal->live;
    live->files = gw_realloc(live->files, live->file_count + 1, sizeof *live->files);
    live->files[live->file_count++] = (struct gw_journal_file){.epoch = journal->file.epoch,
                                                               .seen_bytes = journal->file.end,
                                                               .accepted_bytes = journal->file.end};
    gw_err rc = start_file(journal, journal->file.epoch + 1);
    if (rc != GW_OK) live->file_count--; /* it is the current one still */
    return rc;
}

gw_err gw_journal_commit(struct gw_journal *journal, bool durable)
{
    gw_err rc = GW_OK;
    bool pending = journal->dirty_count || journal->finished.bytes;
    struct file *file = &journal->file;
    if (journal->fenced) FAIL(GW_ERR_MISMATCH, "%s: another leader has taken over this job", journal->dir);
    TRY(check_newest(journal, file->epoch));
    if (journal->suspect) {
        TRY(rotate(journal));
        goto out;
    }
    if (pending && file->end >= journal->max_bytes && file->end >= 2 * file->snapshot_bytes) {
        rc = rotate(journal);
        if (rc != GW_ERR_IO) goto out;
        gw_warn("the journal stays in %s: %s", file->path, gw_error_detail());
        journal->max_bytes = 2 * file->end;
    }
    if (pending) TRY(write_commit(journal));
    if (durable && journal->unsynced) {
        if (fdatasync(file->fd)) {
            journal->suspect = true;
            FAIL(GW_ERR_IO, "cannot sync %s: %s", file->path, strerror(errno));
        }
        journal->unsynced = false;
    }
    if (pending) TRY(check_newest(journal, file->epoch));
out:
    return rc;
}

const struct gw_journal_tokens *gw_journal_live(const struct gw_journal *journal)
{
    return journal->live;
}

void gw_journal_set_max_bytes(struct gw_journal *journal, uint64_t max_bytes)
{
    journal->max_bytes = max_bytes;
}

gw_err gw_journal_close(struct gw_journal *journal)
{
    if (!journal) return GW_OK;
    gw_err rc = journal->fenced ? GW_OK : gw_journal_commit(journal, true);
    destroy(journal);
    return rc;
}
