/* See digest.h.
 *
 * Both functions index output.jsonl line by line (offset, length, custom_id), sort the index and read the lines again
 * in that order. The verification adds a real JSON parser to each line, and walks the input with the same ledger that a
 * run uses.
 */
#include "batch/io/digest.h"

#include "base/hash.h"
#include "base/mem.h"
#include "batch/io/lines.h"
#include "batch/io/manifest.h"
#include "batch/ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARENA_BYTES ((size_t)1 << 20)

/* One line of output.jsonl; 24 bytes. */
struct answer {
    uint64_t offset;
    const char *id; /* in the arena, NUL-terminated */
    uint32_t bytes; /* with the newline */
    bool claimed;   /* by an input line */
};

/* One line of errors.jsonl. */
struct failure {
    int64_t index;  /* of the input line */
    const char *id; /* NULL: the line says null */
    bool claimed;
};

struct index {
    char *path; /* of output.jsonl */
    char *errors_path;
    int fd;
    int errors_fd; /* -1: there is none, which is as good as empty */
    struct answer *answers;
    size_t answer_count, answer_capacity;
    struct failure *failures;
    size_t failure_count, failure_capacity;
    char **arena; /* [arena_count] of at least ARENA_BYTES */
    size_t arena_count, arena_used, arena_capacity;
    /* Verification only (report set): */
    gw_digest_report report;
    void *context;
    int64_t max_problems;
    struct gw_digest_counts *counts;
};

/* ---- index ----------------------------------------------------------------------------------------------------- */

static const char *keep_id(struct index *index, const struct gw_buf *id)
{
    size_t bytes = id->bytes + 1;
    if (index->arena_used + bytes > index->arena_capacity) {
        index->arena_capacity = bytes > ARENA_BYTES ? bytes : ARENA_BYTES;
        index->arena = gw_realloc(index->arena, index->arena_count + 1, sizeof *index->arena);
        index->arena[index->arena_count++] = gw_alloc(index->arena_capacity, 1);
        index->arena_used = 0;
    }
    char *copy = index->arena[index->arena_count - 1] + index->arena_used;
    memcpy(copy, id->data, bytes);
    index->arena_used += bytes;
    return copy;
}

static void add_answer(struct index *index, uint64_t offset, size_t bytes, const struct gw_buf *id)
{
    if (index->answer_count == index->answer_capacity) {
        index->answer_capacity += index->answer_capacity / 2 + 1024;
        index->answers = gw_realloc(index->answers, index->answer_capacity, sizeof *index->answers);
    }
    index->answers[index->answer_count++] = (struct answer){.offset = offset,
                                                            .id = keep_id(index, id),
                                                            .bytes = (uint32_t)bytes};
}

static void add_failure(struct index *index, const struct gw_line_identity *identity)
{
    if (index->failure_count == index->failure_capacity) {
        index->failure_capacity += index->failure_capacity / 2 + 256;
        index->failures = gw_realloc(index->failures, index->failure_capacity, sizeof *index->failures);
    }
    index->failures[index->failure_count++] = (struct failure){
        .index = identity->index, .id = identity->has_id ? keep_id(index, &identity->id) : NULL};
}

/* A problem: told and counted while verifying, an error when only the digest is wanted. */
static gw_err problem(struct index *index, const char *fmt, ...) GW_PRINTF(2, 3);
static gw_err problem(struct index *index, const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!index->report) return gw_fail(GW_ERR_VERIFY, "%s", text);
    if (index->counts->problems++ < index->max_problems) index->report(index->context, text);
    return GW_OK;
}

/* What only a real parser sees: valid JSON, one choice, a usage that adds up. NULL: fine. */
static const char *inspect_answer(const char *line, size_t bytes, struct gw_digest_counts *counts)
{
    json_error_t error;
    json_int_t status = 0, prompt = -1, completion = -1, total = -1;
    json_t *choices = NULL;
    const char *wrong = NULL;
    json_t *root = json_loadb(line, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) return "is not valid JSON";
    if (json_unpack(root, "{s:{s:I,s:{s:o,s:{s:I,s:I,s:I}}}}", "response", "status_code", &status, "body", "choices",
                    &choices, "usage", "prompt_tokens", &prompt, "completion_tokens", &completion, "total_tokens",
                    &total))
        wrong = "has no complete response";
    else if (status != 200 || json_array_size(choices) != 1 || prompt < 0 || completion < 0 ||
             total != prompt + completion)
        wrong = "has a response that does not add up";
    counts->prompt_tokens += wrong ? 0 : (int64_t)prompt;
    counts->completion_tokens += wrong ? 0 : (int64_t)completion;
    json_decref(root);
    return wrong;
}

static const char *inspect_error(const char *line, size_t bytes)
{
    json_error_t error;
    const char *code, *message;
    json_t *root = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root) return "is not valid JSON";
    int wrong = json_unpack(root, "{s:{s:s,s:s}}", "error", "code", &code, "message", &message);
    json_decref(root);
    return wrong ? "has no error code and message" : NULL;
}

static gw_err index_file(struct index *index, bool errors)
{
    gw_err rc = GW_OK;
    struct gw_lines lines;
    struct gw_line_identity identity = {0};
    const char *path = errors ? index->errors_path : index->path;
    gw_lines_init(&lines, errors ? index->errors_fd : index->fd, path);
    for (;;) {
        const char *line;
        size_t bytes;
        bool whole;
        TRY(gw_lines_next(&lines, &line, &bytes, &whole));
        if (!line) break;
        long long number = (long long)lines.number;
        const char *wrong = NULL;
        if (!whole) wrong = "is torn: it has no newline";
        else if (bytes >= UINT32_MAX) wrong = "is longer than 4 GiB";
        else if (!gw_lines_identify(line, bytes, errors, &identity)) wrong = "is not a line that godwit wrote";
        else if (index->report)
            wrong = errors ? inspect_error(line, bytes) : inspect_answer(line, bytes, index->counts);
        if (wrong) TRY(problem(index, "%s: line %lld %s", path, number, wrong));
        else if (errors) add_failure(index, &identity);
        else add_answer(index, lines.at, bytes + 1, &identity.id);
    }
out:
    gw_lines_close(&lines);
    gw_buf_free(&identity.id);
    return rc;
}

/* strcmp compares as unsigned bytes, which for UTF-8 is also the order of code points. */
static int by_id(const void *a, const void *b)
{
    const struct answer *x = a, *y = b;
    int order = strcmp(x->id, y->id);
    return order ? order : (x->offset > y->offset) - (x->offset < y->offset);
}

static int by_line(const void *a, const void *b)
{
    const struct failure *x = a, *y = b;
    return (x->index > y->index) - (x->index < y->index);
}

static gw_err open_index(const char *dir, struct index *index)
{
    gw_err rc = GW_OK;
    index->path = gw_asprintf("%s/output.jsonl", dir);
    index->errors_path = gw_asprintf("%s/errors.jsonl", dir);
    index->errors_fd = -1;
    index->fd = open(index->path, O_RDONLY | O_CLOEXEC);
    if (index->fd < 0)
        FAIL(errno == ENOENT ? GW_ERR_NOT_FOUND : GW_ERR_IO, "cannot open %s: %s", index->path, strerror(errno));
    index->errors_fd = open(index->errors_path, O_RDONLY | O_CLOEXEC);
    if (index->errors_fd < 0 && errno != ENOENT)
        FAIL(GW_ERR_IO, "cannot open %s: %s", index->errors_path, strerror(errno));
    TRY(index_file(index, false));
    if (index->errors_fd >= 0) TRY(index_file(index, true));
    if (index->answer_count) qsort(index->answers, index->answer_count, sizeof *index->answers, by_id);
    if (index->failure_count) qsort(index->failures, index->failure_count, sizeof *index->failures, by_line);
    for (size_t i = 1; i < index->answer_count; i++)
        if (strcmp(index->answers[i - 1].id, index->answers[i].id) == 0)
            TRY(problem(index, "%s: custom_id \"%s\" is answered more than once", index->path, index->answers[i].id));
    for (size_t i = 1; i < index->failure_count; i++)
        if (index->failures[i - 1].index == index->failures[i].index)
            TRY(problem(index, "%s: input line %lld has more than one error line", index->errors_path,
                        (long long)index->failures[i].index + 1));
out:
    return rc;
}

static void close_index(struct index *index)
{
    if (index->fd >= 0) close(index->fd);
    if (index->errors_fd >= 0) close(index->errors_fd);
    for (size_t i = 0; i < index->arena_count; i++) free(index->arena[i]);
    free(index->arena);
    free(index->answers);
    free(index->failures);
    free(index->path);
    free(index->errors_path);
}

static gw_err hash_answers(const struct index *index, char hex[65])
{
    gw_err rc = GW_OK;
    struct gw_buf line = {0};
    struct gw_sha256 *sha = gw_sha256_create();
    for (size_t i = 0; i < index->answer_count; i++) {
        const struct answer *answer = &index->answers[i];
        gw_buf_clear(&line);
        gw_buf_reserve(&line, answer->bytes);
        while (line.bytes < answer->bytes) {
            ssize_t got = pread(index->fd, line.data + line.bytes, answer->bytes - line.bytes,
                                (off_t)(answer->offset + line.bytes));
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0)
                FAIL(GW_ERR_IO, "cannot read %s: %s", index->path,
                     got < 0 ? strerror(errno) : "it shrank while being read");
            line.bytes += (size_t)got;
        }
        gw_sha256_add(sha, line.data, line.bytes);
    }
out:
    gw_sha256_finish(sha, hex); /* also frees it */
    gw_buf_free(&line);
    return rc;
}

gw_err gw_digest_compute(const char *dir, char hex[65], struct gw_digest_counts *counts)
{
    gw_err rc = GW_OK;
    struct index index = {.fd = -1, .errors_fd = -1};
    *counts = (struct gw_digest_counts){0};
    hex[0] = 0;
    TRY(open_index(dir, &index));
    TRY(hash_answers(&index, hex));
    counts->answered = (int64_t)index.answer_count;
    counts->failed = (int64_t)index.failure_count;
out:
    close_index(&index);
    return rc;
}

/* ---- against the input ----------------------------------------------------------------------------------------- */

static struct answer *find_answer(const struct index *index, const char *id)
{
    struct answer key = {.id = id};
    size_t low = 0, high = index->answer_count; /* the first of equal ids */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (by_id(&index->answers[middle], &key) < 0) low = middle + 1;
        else high = middle;
    }
    return low < index->answer_count && strcmp(index->answers[low].id, id) == 0 ? &index->answers[low] : NULL;
}

static struct failure *find_failure(const struct index *index, int64_t line)
{
    struct failure key = {.index = line};
    if (!index->failure_count) return NULL;
    return bsearch(&key, index->failures, index->failure_count, sizeof key, by_line);
}

static gw_err check_line(struct index *index, const struct gw_request *request, const struct gw_request_error *bad)
{
    gw_err rc = GW_OK;
    long long number = (long long)request->index + 1;
    const char *id = request->custom_id ? request->custom_id : "";
    /* The answer under a doubled custom_id is its first line's. */
    struct answer *answer = request->custom_id && !bad->code ? find_answer(index, id) : NULL;
    struct failure *failure = find_failure(index, request->index);
    if (answer) answer->claimed = true;
    if (failure) failure->claimed = true;
    if (answer && failure)
        TRY(problem(index, "input line %lld (custom_id \"%s\") has both an answer and an error line", number, id));
    if (failure && failure->id && request->custom_id && strcmp(failure->id, id) != 0)
        TRY(problem(index, "the error line of input line %lld names custom_id \"%s\", the input \"%s\"", number,
                    failure->id, id));
    if (!answer && !failure) {
        index->counts->unanswered++;
        if (bad->code) TRY(problem(index, "input line %lld is bad (%s) and has no error line", number, bad->code));
        else TRY(problem(index, "input line %lld (custom_id \"%s\") is not answered", number, id));
    }
out:
    return rc;
}

static gw_err walk_input(struct index *index, const char *input, const struct gw_request_defaults *defaults)
{
    gw_err rc = GW_OK;
    struct gw_ledger *ledger = NULL;
    struct gw_request request = {0};
    struct gw_request_error bad;
    bool end = false;
    TRY(gw_ledger_open(input, defaults, &ledger));
    for (;;) {
        TRY(gw_ledger_next(ledger, &request, &bad, &end));
        if (end) break;
        TRY(check_line(index, &request, &bad));
        index->counts->input_lines++;
        gw_request_free(&request);
    }
    for (size_t i = 0; i < index->answer_count; i++)
        /* A doubled answer was reported as such; only its first copy is ever claimed. */
        if (!index->answers[i].claimed && (i == 0 || strcmp(index->answers[i - 1].id, index->answers[i].id) != 0))
            TRY(problem(index, "%s: custom_id \"%s\" is not one of the input's good lines", index->path,
                        index->answers[i].id));
    for (size_t i = 0; i < index->failure_count; i++)
        if (!index->failures[i].claimed && (i == 0 || index->failures[i - 1].index != index->failures[i].index))
            TRY(problem(index, "%s: input line %lld is blank or does not exist", index->errors_path,
                        (long long)index->failures[i].index + 1));
out:
    gw_request_free(&request);
    gw_ledger_close(ledger);
    return rc;
}

/* Opens the manifest and checks that `input` is what the output was made from. *same tells. */
static gw_err check_input(struct index *index, const char *dir, const struct gw_manifest *manifest, const char *input,
                          bool *same)
{
    gw_err rc = GW_OK;
    char hex[65];
    uint64_t bytes;
    *same = true;
    rc = gw_manifest_hash_file(input, hex, &bytes);
    if (rc == GW_ERR_NOT_FOUND)
        return gw_fail(GW_ERR_NOT_FOUND, "the input %s is not there; name it with -i INPUT", input);
    if (rc != GW_OK) return rc;
    *same = strcmp(hex, manifest->input_hash) == 0;
    if (*same) return GW_OK;
    return problem(index, "%s is not the input that %s was made from (SHA-256 %.16s.., the manifest has %.16s..)",
                   input, dir, hex, manifest->input_hash);
}

gw_err gw_digest_verify(const char *dir, const char *input, int64_t max_problems, gw_digest_report report,
                        void *context, char hex[65], struct gw_digest_counts *counts)
{
    gw_err rc = GW_OK;
    struct gw_manifest manifest = {0};
    struct gw_request_defaults defaults = {.sampling = gw_sampling_default()};
    struct index index = {.fd = -1,
                          .errors_fd = -1,
                          .report = report,
                          .context = context,
                          .max_problems = max_problems,
                          .counts = counts};
    bool same;
    *counts = (struct gw_digest_counts){0};
    hex[0] = 0;
    TRY(gw_manifest_read(dir, &manifest));
    /* How long a line may be decides which lines are errors. */
    const char *limit = gw_manifest_option(&manifest, "max_line_bytes");
    if (limit) defaults.max_line_bytes = (size_t)strtoull(limit, NULL, 10);
    if (!input) input = manifest.input_path;
    TRY(open_index(dir, &index));
    TRY(hash_answers(&index, hex));
    counts->answered = (int64_t)index.answer_count;
    counts->failed = (int64_t)index.failure_count;
    TRY(check_input(&index, dir, &manifest, input, &same));
    if (same) TRY(walk_input(&index, input, &defaults));
    if (counts->problems)
        FAIL(GW_ERR_VERIFY, "%s: %lld problem%s found (%lld input lines not answered)%s", dir,
             (long long)counts->problems, counts->problems == 1 ? "" : "s", (long long)counts->unanswered,
             counts->unanswered == counts->problems ? "; run the job again, it goes on where it stopped" : "");
out:
    close_index(&index);
    gw_manifest_free(&manifest);
    return rc;
}
