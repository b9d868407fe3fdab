/* The token journal: round trips, any truncation, any flipped bit, failing and dying at any file operation, two leaders.
 *
 * File operations pass through the functions below instead of the library's, so that a test can count them, let number n
 * fail (as a full disk does, with half of it written) or end the process there.
 */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "batch/io/journal.h"

#include <CUnit/Basic.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "test_journal.XXXXXX";
static char folder[64];

/* ---- file operations ------------------------------------------------------------------------------------------- */

static struct {
    int count;           /* operations so far */
    int fail_at;         /* number of the one that fails; 0: none */
    int fail_last;       /* ... and of the last that does */
    bool die;            /* end the process instead */
    bool in_order;       /* nothing fails: look at the order of operations */
    char last;           /* kind of the last one: o, w, s, d, t, u */
    off_t synced_bytes;  /* of the current file: a failing fdatasync loses the rest */
    const char *appears; /* a file that appears at the next write: another leader's */
} ops;

static bool troubled(void)
{
    ops.count++;
    return ops.fail_at && ops.count >= ops.fail_at && ops.count <= ops.fail_last;
}

static int failed(int code)
{
    if (ops.die) _exit(42);
    errno = code;
    return -1;
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    if (fd <= 2) return syscall(SYS_write, fd, data, bytes);
    ops.last = 'w';
    if (ops.appears) close(open(ops.appears, O_WRONLY | O_CREAT | O_EXCL, 0666));
    ops.appears = NULL;
    if (!troubled()) return syscall(SYS_write, fd, data, bytes);
    if (bytes > 1 && ops.count == ops.fail_at) { /* half of it, and the other half fails */
        ops.fail_last += !ops.die;
        ssize_t got = syscall(SYS_write, fd, data, bytes / 2);
        return ops.die ? failed(0) : got;
    }
    return failed(ENOSPC);
}

int fsync(int fd)
{
    struct stat st;
    fstat(fd, &st);
    if (S_ISREG(st.st_mode)) ops.last = 's';
    if (troubled()) return failed(EIO);
    if (S_ISREG(st.st_mode)) ops.synced_bytes = st.st_size;
    return 0;
}

int fdatasync(int fd)
{
    struct stat st;
    ops.last = 'd';
    if (troubled()) {
        if (!ops.die && syscall(SYS_ftruncate, fd, ops.synced_bytes)) abort();
        return failed(EIO);
    }
    fstat(fd, &st);
    ops.synced_bytes = st.st_size;
    return 0;
}

int ftruncate(int fd, off_t bytes)
{
    ops.last = 't';
    return troubled() ? failed(EIO) : (int)syscall(SYS_ftruncate, fd, bytes);
}

int unlink(const char *path)
{
    if (troubled()) return failed(EACCES);
    /* what replaces the removed files must be on disk by then */
    if (ops.in_order) CU_ASSERT_TRUE(ops.last == 's' || ops.last == 'u');
    ops.last = 'u';
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

static void ops_reset(void)
{
    memset(&ops, 0, sizeof ops);
}

/* ---- the folder ------------------------------------------------------------------------------------------------ */

static const char *file_path(uint64_t epoch)
{
    static char path[100];
    snprintf(path, sizeof path, "%s/%08llu.gwj", folder, (unsigned long long)epoch);
    return path;
}

static void clear_dir(void)
{
    DIR *stream = opendir(folder);
    for (struct dirent *item; stream && (item = readdir(stream));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", folder, item->d_name);
        syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    }
    if (stream) closedir(stream);
    rmdir(folder);
}

static int count_files(void)
{
    int count = 0;
    DIR *stream = opendir(folder);
    for (struct dirent *item; stream && (item = readdir(stream));) count += strstr(item->d_name, ".gwj") != NULL;
    if (stream) closedir(stream);
    return count;
}

static void read_file(uint64_t epoch, char **data, size_t *bytes)
{
    CU_ASSERT_EQUAL_FATAL(gw_file_read(file_path(epoch), 1 << 24, data, bytes), GW_OK);
}

static off_t file_bytes(uint64_t epoch)
{
    struct stat st;
    CU_ASSERT_EQUAL_FATAL(stat(file_path(epoch), &st), 0);
    return st.st_size;
}

static void put_file(uint64_t epoch, const void *data, size_t bytes)
{
    int fd = open(file_path(epoch), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CU_ASSERT_FATAL(fd >= 0 && syscall(SYS_write, fd, data, bytes) == (ssize_t)bytes);
    close(fd);
}

/* ---- a model of it: token values are a function of (request, number) ------------------------------------------- */

enum { REQUESTS = 40, LIVE = 6, JOB = 77 };
enum { HEADER_BYTES = 32 + 17, SEAL_BYTES = 16 }; /* docs/formats.md */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static bool has_logprobs(int64_t index)
{
    return index % 3 == 1;
}

static struct gw_sample_result token_of(int64_t index, int32_t at)
{
    uint64_t r = mix((uint64_t)index * 1000003 + (uint64_t)at + 1);
    struct gw_sample_result result = {.token = (int32_t)(r % 3 ? r % 50000 : r % INT32_MAX)};
    if (!has_logprobs(index)) return result;
    result.logprob = -(float)(r % 977) / 31;
    result.alternatives = (int32_t)(r % 5 == 4 ? GW_MAX_LOGPROBS : r % 5);
    for (int i = 0; i < result.alternatives; i++) {
        result.alt_token[i] = (int32_t)(mix(r + (uint64_t)i) % 49152);
        result.alt_logprob[i] = result.logprob - (float)i / 7;
    }
    return result;
}

static int64_t index_of(int request) /* far apart as well as dense, not in the order of their coming */
{
    return request % 4 == 3 ? ((int64_t)1 << 33) - request : (request * 7) % REQUESTS;
}

struct state {
    int32_t count[REQUESTS]; /* tokens; -1: finished */
    uint64_t output_bytes;   /* 0: none is finished */
};

static bool same_token(const struct gw_journal_tokens *tokens, int64_t index, int32_t at)
{
    struct gw_sample_result got, expected = token_of(index, at);
    return gw_journal_tokens_get(tokens, index, at, &got) && memcmp(&got, &expected, sizeof got) == 0;
}

/* Each request of `tokens` is as in `low`, as in `high`, or between. */
static bool is_between(const struct gw_journal_tokens *tokens, const struct state *low, const struct state *high)
{
    size_t live = 0, listed;
    bool good = true;
    uint64_t output_bytes;
    for (int i = 0; i < REQUESTS; i++) {
        int64_t index = index_of(i);
        int32_t got = gw_journal_tokens_count(tokens, index);
        int32_t most = high->count[i] < 0 ? INT32_MAX : high->count[i];
        bool gone = low->count[i] < 0 || (high->count[i] < 0 && got == 0);
        if (gone ? got != 0 : got < low->count[i] || got > most) {
            printf("request %d: %d tokens, expected %d to %d\n", i, got, low->count[i], high->count[i]);
            good = false;
        }
        for (int32_t at = 0; at < got; at++) good = good && same_token(tokens, index, at);
        live += got > 0;
    }
    free(gw_journal_tokens_list(tokens, &listed));
    gw_journal_tokens_output(tokens, &output_bytes);
    return good && listed == live && output_bytes >= low->output_bytes && output_bytes <= high->output_bytes;
}

static bool is_state(const struct gw_journal_tokens *tokens, const struct state *state)
{
    return is_between(tokens, state, state);
}

/* Replays and says whether it is between. */
static bool replays(const struct state *low, const struct state *high, uint64_t *last_epoch)
{
    struct gw_journal_tokens *tokens;
    gw_err rc = gw_journal_replay(dir, &tokens, last_epoch);
    if (rc != GW_OK) printf("replay: %s\n", gw_error_detail());
    bool good = rc == GW_OK && is_between(tokens, low, high);
    gw_journal_tokens_free(tokens);
    return good;
}

static void add(struct gw_journal *journal, struct state *state, int request)
{
    int64_t index = index_of(request);
    struct gw_sample_result result = token_of(index, state->count[request]);
    CU_ASSERT_EQUAL(gw_journal_add(journal, index, state->count[request]++, &result, has_logprobs(index)), GW_OK);
}

static void finish(struct gw_journal *journal, struct state *state, int request)
{
    state->count[request] = -1;
    state->output_bytes += 1000;
    gw_journal_add_finished(journal, index_of(request), state->output_bytes);
}

static struct gw_journal *open_fresh(void)
{
    struct gw_journal *journal = NULL;
    clear_dir();
    ops_reset();
    CU_ASSERT_EQUAL_FATAL(gw_journal_open(dir, 1, NULL, JOB, &journal), GW_OK);
    return journal;
}

/* Replays and takes the lead. */
static struct gw_journal *reopen(gw_err expected)
{
    struct gw_journal_tokens *tokens;
    struct gw_journal *journal = NULL;
    uint64_t last;
    CU_ASSERT_EQUAL_FATAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
    CU_ASSERT_EQUAL(gw_journal_open(dir, last + 1, tokens, JOB, &journal), expected);
    gw_journal_tokens_free(tokens);
    return journal;
}

/* A few random additions and answers, without a commit. Requests are begun in order, LIVE at a time. */
static void random_ops(struct gw_journal *journal, struct state *state, uint64_t *seed)
{
    *seed = mix(*seed + 0x9e3779b97f4a7c15u);
    int n = 1 + (int)(*seed % 7), first = 0;
    for (int i = 0; i < n; i++) {
        uint64_t r = *seed = mix(*seed + 0x9e3779b97f4a7c15u);
        while (first < REQUESTS && state->count[first] < 0) first++;
        int request = first + (int)(r % LIVE);
        if (request >= REQUESTS || state->count[request] < 0) continue;
        if (r / LIVE % 9 == 0 && state->count[request] > 0) finish(journal, state, request);
        else add(journal, state, request);
        if (r / 64 % 5 == 0 && state->count[request] > 1) { /* a survivor reports again */
            int64_t index = index_of(request);
            int32_t at = (int32_t)(r / 512 % (uint64_t)state->count[request]);
            struct gw_sample_result result = token_of(index, at);
            CU_ASSERT_EQUAL(gw_journal_add(journal, index, at, &result, has_logprobs(index)), GW_OK);
        }
    }
}

/* ---- tests ----------------------------------------------------------------------------------------------------- */

static void test_round_trip(void)
{
    struct gw_journal *journal = open_fresh();
    struct state state = {0}, empty = {0};
    uint64_t last, output_bytes, seed = 1;
    struct gw_sample_result result;
    CU_ASSERT_TRUE(replays(&empty, &empty, &last));
    CU_ASSERT_EQUAL(last, 1);
    for (int i = 0; i < 60; i++) {
        random_ops(journal, &state, &seed);
        CU_ASSERT_TRUE(is_state(gw_journal_live(journal), &state));
        CU_ASSERT_EQUAL(gw_journal_commit(journal, i % 2), GW_OK);
        CU_ASSERT_TRUE(replays(&state, &state, &last));
    }
    CU_ASSERT_TRUE(gw_journal_tokens_output(gw_journal_live(journal), &output_bytes));
    CU_ASSERT_FALSE(gw_journal_tokens_get(gw_journal_live(journal), 5000, 0, &result));
    random_ops(journal, &state, &seed);
    CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK); /* commits the rest */
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    CU_ASSERT_EQUAL(last, 1);
    for (uint64_t epoch = 2; epoch < 6; epoch++) { /* leaders come and go; the file before is kept, no other */
        journal = reopen(GW_OK);
        CU_ASSERT_TRUE(is_state(gw_journal_live(journal), &state));
        random_ops(journal, &state, &seed);
        CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
        CU_ASSERT_TRUE(replays(&state, &state, &last));
        CU_ASSERT_EQUAL(last, epoch);
        CU_ASSERT_EQUAL(count_files(), 2);
    }
}

static void test_refused(void)
{
    struct gw_journal *journal = open_fresh();
    struct state state = {0};
    for (int i = 0; i < 6; i++) add(journal, &state, i % 3);
    struct gw_sample_result result = token_of(index_of(0), 1);
    CU_ASSERT_EQUAL(gw_journal_add(journal, index_of(0), 3, &result, false), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(gw_journal_add(journal, 30, 1, &result, false), GW_ERR_NOT_FOUND);
    int32_t old = result.token++;
    char expected[100];
    snprintf(expected, sizeof expected, "token 1 is committed as %d (logprob 0), but now it is %d", old, result.token);
    CU_ASSERT_EQUAL(gw_journal_add(journal, index_of(0), 1, &result, false), GW_ERR_BUG);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), expected));
    result.token = old;
    CU_ASSERT_EQUAL(gw_journal_add(journal, index_of(0), 1, &result, true), GW_ERR_BUG);
    int64_t full = index_of(1) % 3 == 1 ? index_of(1) : index_of(2);
    CU_ASSERT_TRUE(has_logprobs(full));
    result = token_of(full, 1);
    result.logprob = -77.5f;
    CU_ASSERT_EQUAL(gw_journal_add(journal, full, 1, &result, true), GW_ERR_BUG);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "(logprob -77.5)"));
    CU_ASSERT_TRUE(is_state(gw_journal_live(journal), &state));
    CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);

    struct gw_journal_tokens *tokens;
    uint64_t last;
    CU_ASSERT_EQUAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
    CU_ASSERT_EQUAL(gw_journal_open(dir, last + 1, tokens, JOB + 1, &journal), GW_ERR_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "00000001.gwj is of another job"));
    CU_ASSERT_EQUAL(count_files(), 1);
    gw_journal_tokens_free(tokens);
}

/* A file with several commits; states[i] is what its first ends[i] bytes hold. Returns how many. */
enum { COMMITS = 12 };
static int make_file(struct state states[], size_t ends[])
{
    struct gw_journal *journal = open_fresh();
    struct state state = {0};
    uint64_t seed = 99;
    states[0] = state;
    ends[0] = 0;
    for (int i = 1; i <= COMMITS; i++) {
        random_ops(journal, &state, &seed);
        CU_ASSERT_EQUAL(gw_journal_commit(journal, true), GW_OK);
        states[i] = state;
        ends[i] = (size_t)file_bytes(1);
    }
    CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
    return COMMITS;
}

static void test_truncated(void)
{
    struct state states[COMMITS + 1];
    size_t ends[COMMITS + 1], bytes;
    char *data;
    uint64_t last;
    int commits = make_file(states, ends), whole = 0, wrong = 0;
    read_file(1, &data, &bytes);
    CU_ASSERT_EQUAL(bytes, ends[commits]);
    for (size_t cut = 0; cut <= bytes; cut++) {
        while (whole < commits && ends[whole + 1] <= cut) whole++;
        put_file(1, data, cut);
        wrong += !replays(&states[whole], &states[whole], &last) || last != 1;
    }
    CU_ASSERT_EQUAL(wrong, 0);
    free(data);
}

/* Each byte in turn with one bit, or all, turned over: found, and what is before it counts. Then a leader takes over from it. */
static void test_flipped(void)
{
    struct state states[COMMITS + 1];
    size_t ends[COMMITS + 1], bytes;
    char *data;
    int commits = make_file(states, ends), whole = 0, wrong = 0;
    read_file(1, &data, &bytes);
    for (size_t at = 0; at < bytes; at++) {
        while (whole < commits && ends[whole + 1] <= at) whole++;
        char old = data[at];
        data[at] ^= (char)(at % 3 ? 1 << at % 8 : 0xff);
        put_file(1, data, bytes);
        data[at] = old;
        struct gw_journal_tokens *tokens;
        uint64_t last;
        CU_ASSERT_EQUAL_FATAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
        wrong += !is_state(tokens, &states[whole]) || gw_journal_tokens_damaged_bytes(tokens) < bytes - at;
        if (at % 37 == 0) {
            struct gw_journal *journal;
            CU_ASSERT_EQUAL_FATAL(gw_journal_open(dir, 2, tokens, JOB, &journal), GW_OK);
            wrong += !is_state(gw_journal_live(journal), &states[whole]);
            CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
            wrong += !replays(&states[whole], &states[whole], &last);
            unlink(file_path(2));
        }
        gw_journal_tokens_free(tokens);
    }
    CU_ASSERT_EQUAL(wrong, 0);
    free(data);
}

/* Whole blocks at a wrong place do not count: the last one once more, the file under another number. */
static void test_misplaced(void)
{
    struct state states[COMMITS + 1];
    size_t ends[COMMITS + 1], bytes;
    char *data;
    struct gw_journal_tokens *tokens;
    uint64_t last;
    int commits = make_file(states, ends);
    read_file(1, &data, &bytes);
    size_t block = ends[commits] - ends[commits - 1];
    data = gw_realloc(data, bytes + block, 1);
    memcpy(data + bytes, data + ends[commits - 1], block);
    put_file(1, data, bytes + block);
    put_file(2, data, bytes);
    CU_ASSERT_EQUAL_FATAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
    CU_ASSERT_TRUE(is_state(tokens, &states[commits]));
    CU_ASSERT_EQUAL(gw_journal_tokens_damaged_bytes(tokens), bytes + block);
    CU_ASSERT_EQUAL(last, 2);
    gw_journal_tokens_free(tokens);
    free(data);
}

/* The second file's snapshot is damaged anywhere: the first one helps. */
static void test_snapshot_damaged(void)
{
    struct state states[COMMITS + 1];
    size_t ends[COMMITS + 1], bytes;
    char *data;
    uint64_t last;
    int wrong = 0;
    make_file(states, ends);
    CU_ASSERT_EQUAL(gw_journal_close(reopen(GW_OK)), GW_OK);
    read_file(2, &data, &bytes);
    for (size_t at = 0; at < bytes; at++) {
        data[at] ^= 0x10;
        put_file(2, data, bytes);
        wrong += !replays(&states[COMMITS], &states[COMMITS], &last) || last != 2;
        data[at] ^= 0x10;
        put_file(2, data, at);
        wrong += !replays(&states[COMMITS], &states[COMMITS], &last) || last != 2;
    }
    CU_ASSERT_EQUAL(wrong, 0);
    free(data);
}

/* Puts file `epoch` out of sight, and back. */
static void hide(uint64_t epoch, bool hidden)
{
    char name[100], other[110];
    snprintf(name, sizeof name, "%s", file_path(epoch));
    snprintf(other, sizeof other, "%s.hidden", name);
    CU_ASSERT_EQUAL_FATAL(rename(hidden ? name : other, hidden ? other : name), 0);
}

static void test_two_leaders(void)
{
    struct gw_journal *first = open_fresh(), *second;
    struct gw_journal_tokens *tokens;
    struct state state = {0}, ahead;
    uint64_t last;
    for (int i = 0; i < 9; i++) add(first, &state, i % 3);
    CU_ASSERT_EQUAL(gw_journal_commit(first, true), GW_OK);
    CU_ASSERT_EQUAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
    /* what the first still commits before the second is there counts */
    add(first, &state, 1);
    CU_ASSERT_EQUAL(gw_journal_commit(first, true), GW_OK);
    CU_ASSERT_EQUAL_FATAL(gw_journal_open(dir, last + 1, tokens, JOB, &second), GW_OK);
    CU_ASSERT_TRUE(is_state(gw_journal_live(second), &state));
    /* two at the same time: one wins */
    struct gw_journal *third = NULL;
    CU_ASSERT_EQUAL(gw_journal_open(dir, last + 1, tokens, JOB, &third), GW_ERR_MISMATCH);
    CU_ASSERT_PTR_NULL(third);
    CU_ASSERT_EQUAL(count_files(), 2);
    gw_journal_tokens_free(tokens);
    /* what it commits behind the seal does not count: it looks first, */
    ahead = state;
    add(first, &ahead, 0);
    hide(2, true); /* ... and if it could not see the other in time ... */
    CU_ASSERT_EQUAL(gw_journal_commit(first, true), GW_OK);
    hide(2, false);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    add(first, &ahead, 2);
    off_t before = file_bytes(1);
    CU_ASSERT_EQUAL(gw_journal_commit(first, true), GW_ERR_MISMATCH);
    CU_ASSERT_EQUAL(gw_journal_commit(first, true), GW_ERR_MISMATCH); /* for good */
    CU_ASSERT_EQUAL(file_bytes(1), before);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    /* even when the second's snapshot is damaged, the seal holds */
    char *data;
    size_t bytes;
    read_file(2, &data, &bytes);
    put_file(2, data, bytes - 1);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    put_file(2, data, bytes);
    free(data);
    add(second, &state, 2);
    CU_ASSERT_EQUAL(gw_journal_commit(second, true), GW_OK);
    CU_ASSERT_EQUAL(gw_journal_close(first), GW_OK); /* fenced: writes nothing */
    CU_ASSERT_EQUAL(gw_journal_close(second), GW_OK);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    CU_ASSERT_EQUAL(last, 2);
}

/* The other leader's file appears while a commit is being written: it may have been read before, so the commit must not count. */
static void test_fenced_in_write(void)
{
    struct gw_journal *journal = open_fresh();
    struct state state = {0};
    char path[100];
    snprintf(path, sizeof path, "%s", file_path(2));
    add(journal, &state, 0);
    ops.appears = path;
    CU_ASSERT_EQUAL(gw_journal_commit(journal, true), GW_ERR_MISMATCH);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "00000002.gwj"));
    CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
}

/* A full disk: nothing of the commit stays in the file, nothing is lost, the next one has it all. */
static void test_full_disk(void)
{
    struct gw_journal *journal = open_fresh();
    struct state state = {0}, before = {0};
    uint64_t last;
    off_t bytes = file_bytes(1);
    for (int i = 0; i < 9; i++) add(journal, &state, i % 3);
    finish(journal, &state, 1);
    ops.fail_at = ops.count + 1;
    ops.fail_last = ops.count + 1;
    CU_ASSERT_EQUAL(gw_journal_commit(journal, true), GW_ERR_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "00000001.gwj: No space left on device"));
    CU_ASSERT_EQUAL(file_bytes(1), bytes);
    CU_ASSERT_TRUE(is_state(gw_journal_live(journal), &state));
    CU_ASSERT_TRUE(replays(&before, &before, &last));
    CU_ASSERT_EQUAL(gw_journal_commit(journal, true), GW_OK);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    /* no room for the next file: this one goes on */
    gw_journal_set_max_bytes(journal, 1);
    for (int i = 0; i < 60; i++) add(journal, &state, 0);
    CU_ASSERT_EQUAL(gw_journal_commit(journal, true), GW_OK);
    add(journal, &state, 2);
    ops.fail_at = ops.count + 3; /* behind the creation and its sync: the header */
    ops.fail_last = ops.fail_at;
    CU_ASSERT_EQUAL(gw_journal_commit(journal, true), GW_OK);
    CU_ASSERT_TRUE(ops.count > ops.fail_at);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    CU_ASSERT_EQUAL(last, 1);
    CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
}

/* A leader that sleeps through several others must not come back through a number that is free again. */
static void test_late_rotation(void)
{
    struct gw_journal *first = open_fresh(), *journal = NULL;
    struct state state = {0}, late = {0};
    uint64_t last;
    add(first, &late, 0);
    for (int i = 0; i < 4; i++) {
        journal = reopen(GW_OK);
        add(journal, &state, 1);
        CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
    }
    CU_ASSERT_EQUAL(count_files(), 2); /* 4 and 5 */
    gw_journal_set_max_bytes(first, 1);
    CU_ASSERT_EQUAL(gw_journal_commit(first, true), GW_ERR_MISMATCH);
    CU_ASSERT_EQUAL(gw_journal_close(first), GW_OK);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    /* and should its file 2 appear after all: 5 does not name it, so it is none, not even when the others are damaged */
    struct gw_journal_tokens *tokens;
    char *data;
    size_t bytes;
    hide(4, true);
    hide(5, true);
    CU_ASSERT_EQUAL(gw_journal_open(dir, 2, NULL, JOB, &first), GW_OK);
    late = (struct state){0};
    add(first, &late, 0);
    CU_ASSERT_EQUAL(gw_journal_close(first), GW_OK);
    hide(4, false);
    hide(5, false);
    CU_ASSERT_TRUE(replays(&state, &state, &last));
    for (uint64_t epoch = 4; epoch <= 5; epoch++) {
        read_file(epoch, &data, &bytes);
        put_file(epoch, data, HEADER_BYTES + 2 * SEAL_BYTES);
        free(data);
    }
    CU_ASSERT_EQUAL_FATAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
    CU_ASSERT_EQUAL(gw_journal_tokens_count(tokens, index_of(0)), 0);
    gw_journal_tokens_free(tokens);
    CU_ASSERT_EQUAL(last, 5);
}

enum { STEPS = 120, BOUND_BYTES = 400 };

/* Takes the lead and brings the journal to `state`, as survivors do who know all tokens. */
static struct gw_journal *lead_again(const struct state *state)
{
    struct gw_journal_tokens *tokens;
    struct gw_journal *journal = NULL;
    uint64_t last;
    gw_err rc;
    do {
        CU_ASSERT_EQUAL_FATAL(gw_journal_replay(dir, &tokens, &last), GW_OK);
        rc = gw_journal_open(dir, last + 1, tokens, JOB, &journal);
        gw_journal_tokens_free(tokens);
    } while (rc == GW_ERR_IO || rc == GW_ERR_MISMATCH);
    CU_ASSERT_EQUAL_FATAL(rc, GW_OK);
    gw_journal_set_max_bytes(journal, BOUND_BYTES);
    for (int i = 0; i < REQUESTS; i++) {
        int64_t index = index_of(i);
        if (state->count[i] < 0 && gw_journal_tokens_count(gw_journal_live(journal), index))
            gw_journal_add_finished(journal, index, state->output_bytes);
        for (int32_t at = 0; at < state->count[i]; at++) {
            struct gw_sample_result result = token_of(index, at);
            CU_ASSERT_EQUAL(gw_journal_add(journal, index, at, &result, has_logprobs(index)), GW_OK);
        }
    }
    return journal;
}

/* The story of a leader with a small bound: commits, rotations. history[i] is what is there after step i; `reached` tells how far it
 * is: [0] steps tried, [1] steps committed durably. When it is fenced it leads again. */
static void live_through(struct state history[STEPS + 1], volatile int *reached, uint64_t seed)
{
    struct state state = {0};
    history[0] = state;
    struct gw_journal *journal = lead_again(&state);
    gw_err rc;
    for (int i = 1; i <= STEPS; i++) {
        random_ops(journal, &state, &seed);
        history[i] = state;
        reached[0] = i;
        bool durable = i % 4 != 0 || i == STEPS;
        do {
            rc = gw_journal_commit(journal, durable);
            if (rc != GW_ERR_MISMATCH) continue;
            CU_ASSERT_EQUAL(gw_journal_close(journal), GW_OK);
            journal = lead_again(&state);
        } while (rc == GW_ERR_MISMATCH || (rc == GW_ERR_IO && durable && i % 2));
        CU_ASSERT(rc == GW_OK || rc == GW_ERR_IO);
        if (rc == GW_OK && durable) reached[1] = i;
    }
    while ((rc = gw_journal_commit(journal, true)) == GW_ERR_IO) continue;
    CU_ASSERT_EQUAL(rc, GW_OK);
    if (rc == GW_OK) reached[1] = STEPS;
    CU_ASSERT_EQUAL(gw_journal_close(journal), rc);
}

static void test_dies_anywhere(void)
{
    static struct state history[STEPS + 1];
    volatile int *reached = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                                 0); /* the child's, for us */
    int n = 1, wrong = 0, rotations = 0;
    uint64_t seed = 20240607, last = 0;
    clear_dir();
    ops_reset();
    reached[0] = reached[1] = 0;
    ops.in_order = true;
    live_through(history, reached, seed); /* undisturbed: for the history */
    printf("\n  seed %llu, %d file operations", (unsigned long long)seed, ops.count);
    CU_ASSERT_TRUE(replays(&history[STEPS], &history[STEPS], &last));
    CU_ASSERT_TRUE(last > 4);
    for (bool died = true; died; n++) {
        clear_dir();
        reached[0] = reached[1] = 0;
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            ops_reset();
            ops.fail_at = n;
            ops.fail_last = INT32_MAX;
            ops.die = true;
            live_through(history, reached, seed);
            _exit(0);
        }
        int status;
        CU_ASSERT_EQUAL_FATAL(waitpid(child, &status, 0), child);
        CU_ASSERT_TRUE_FATAL(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 42));
        died = WEXITSTATUS(status) == 42;
        ops_reset();
        bool good = replays(&history[reached[1]], &history[reached[0]], &last);
        struct gw_journal *next = reopen(GW_OK); /* the next leader */
        good = good && is_between(gw_journal_live(next), &history[reached[1]], &history[reached[0]]);
        CU_ASSERT_EQUAL(gw_journal_close(next), GW_OK);
        good = good && replays(&history[reached[1]], &history[reached[0]], &last);
        rotations += last > 2;
        if (!good) printf("\n  dying at operation %d goes wrong", n);
        wrong += !good;
    }
    CU_ASSERT_TRUE(n > 150 && rotations > 50);
    CU_ASSERT_EQUAL(wrong, 0);
    munmap((void *)reached, 4096);
}

/* Operation n (and the `more` after it) fails; the leader goes on. Nothing may be missing, at any time. */
static void test_fails_anywhere(void)
{
    static struct state history[STEPS + 1];
    int wrong = 0;
    uint64_t last;
    for (int more = 0; more <= 12; more += 4) {
        int reached[2], total = 1 << 20;
        for (int n = 1; n <= total; n += 1 + more / 4) {
            clear_dir();
            ops_reset();
            ops.fail_at = n;
            ops.fail_last = n + more;
            reached[0] = reached[1] = 0;
            live_through(history, reached, 4711);
            if (ops.count < n) total = 0;
            ops_reset();
            bool good = reached[1] == STEPS && replays(&history[STEPS], &history[STEPS], &last);
            good = good && count_files() >= 2; /* the one before is kept */
            if (!good) printf("\n  failing at operation %d (and %d more) goes wrong", n, more);
            wrong += !good;
        }
    }
    CU_ASSERT_EQUAL(wrong, 0);
}

int main(void)
{
    if (!mkdtemp(dir)) return 1;
    snprintf(folder, sizeof folder, "%s/journal", dir);
    gw_log_set_level(GW_LOG_ERROR); /* damage warns, and there is a lot of it here */
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("journal", NULL, NULL);
    CU_add_test(suite, "round trip", test_round_trip);
    CU_add_test(suite, "refused", test_refused);
    CU_add_test(suite, "truncated anywhere", test_truncated);
    CU_add_test(suite, "a bit flipped anywhere", test_flipped);
    CU_add_test(suite, "snapshot damaged", test_snapshot_damaged);
    CU_add_test(suite, "blocks at a wrong place", test_misplaced);
    CU_add_test(suite, "full disk", test_full_disk);
    CU_add_test(suite, "two leaders", test_two_leaders);
    CU_add_test(suite, "fenced while writing", test_fenced_in_write);
    CU_add_test(suite, "late rotation", test_late_rotation);
    CU_add_test(suite, "dies at any operation", test_dies_anywhere);
    CU_add_test(suite, "fails at any operation", test_fails_anywhere);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    clear_dir();
    rmdir(dir);
    return failures != 0;
}
