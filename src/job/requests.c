/* See requests.h. */
#include "job/requests.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "batch/io/journal.h"
#include "batch/io/manifest.h"
#include "batch/io/output.h"
#include "batch/ledger.h"
#include "batch/queue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const double WARN_EVERY_S = 10;

enum {
    NOBODY = -1,
    READ_AHEAD = 16
}; /* lines read for each request that is handed out: the first step must not wait for thousands */

struct active {
    int64_t index, cost;
    int replica; /* or NOBODY, between two plans */
};

struct gw_requests {
    const struct gw_job_options *options;
    int context; /* most tokens of a sequence */
    struct gw_ledger *ledger;
    struct gw_output *output;
    struct gw_journal *journal;
    struct active *active; /* as many as replicas run at once: searched from end to end */
    int active_count, active_capacity;
    struct gw_queue waiting;
    int64_t begun_last; /* the last line with tokens in the journal when this leader began */
    bool input_ended, uncommitted, unsynced;
    double warned_s;
    struct gw_request_counts counts;
    struct gw_buf line, drawn;
};

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* The input's hash as last computed in this process, and of which file. */
static struct {
    struct stat file;
    char hex[65];
    bool known;
} hashed;

static bool is_hashed(const struct stat *file)
{
    return hashed.known && hashed.file.st_dev == file->st_dev && hashed.file.st_ino == file->st_ino &&
           hashed.file.st_size == file->st_size && hashed.file.st_mtim.tv_sec == file->st_mtim.tv_sec &&
           hashed.file.st_mtim.tv_nsec == file->st_mtim.tv_nsec;
}

static gw_err hash_input(const struct gw_job_options *o, char hex[65], uint64_t *bytes)
{
    gw_err rc = GW_OK;
    struct stat file;
    bool seen = stat(o->input_path, &file) == 0;
    if (!seen || !is_hashed(&file)) {
        hashed.known = false;
        TRY(gw_manifest_hash_file(o->input_path, hashed.hex, bytes));
        hashed.file = file;
        hashed.known = seen;
    }
    if (seen) *bytes = (uint64_t)file.st_size;
    memcpy(hex, hashed.hex, sizeof hashed.hex);
out:
    return rc;
}

void gw_requests_prepare(const struct gw_job_options *options)
{
    char hex[65];
    uint64_t bytes;
    if (hash_input(options, hex, &bytes) != GW_OK) gw_debug("%s", gw_error_detail());
}

gw_err gw_requests_same_job(const struct gw_job_options *o, const struct gw_model *model, int context, uint64_t *job_id)
{
    gw_err rc = GW_OK;
    struct gw_manifest manifest = {.created = o->created, .started_at = gw_clock_wall_s()};
    char hex[65], number[32];
    bool created = false;
    gw_manifest_set(&manifest.program, "godwit " PACKAGE_VERSION);
    gw_manifest_set(&manifest.model_name, o->model_name);
    gw_manifest_set(&manifest.model_path, o->model_path);
    gw_model_fingerprint(model, hex);
    gw_manifest_set(&manifest.model_hash, hex);
    char *absolute = realpath(o->input_path, NULL);
    gw_manifest_set(&manifest.input_path, absolute ? absolute : o->input_path);
    free(absolute);
    TRY(hash_input(o, hex, &manifest.input_bytes));
    gw_manifest_set(&manifest.input_hash, hex);
    *job_id = gw_hash64(manifest.model_hash, strlen(manifest.model_hash), gw_hash64(hex, strlen(hex), 0));
    gw_manifest_add_defaults(&manifest, &o->defaults);
    snprintf(number, sizeof number, "%d", context);
    gw_manifest_add_option(&manifest, "context", number);
    gw_manifest_add_option(&manifest, "chat_template", o->chat_template ? o->chat_template : "from the model");
    TRY(gw_manifest_open_or_create(o->out_dir, &manifest, &created));
out:
    gw_manifest_free(&manifest);
    return rc;
}

/* Lines with anything but white space in them. Streamed, so that a large input takes no memory. */
static gw_err count_lines(const char *path, int64_t *lines)
{
    gw_err rc = GW_OK;
    enum { BYTES = 1 << 20 };
    char *data = gw_alloc(BYTES, 1);
    bool blank = true;
    *lines = 0;
    FILE *file = fopen(path, "rb");
    if (!file) FAIL(GW_ERR_IO, "cannot read %s: %s", path, strerror(errno));
    for (size_t got; (got = fread(data, 1, BYTES, file)) > 0;)
        for (size_t i = 0; i < got; i++) {
            if (data[i] == '\n') {
                *lines += !blank;
                blank = true;
            } else if (data[i] != ' ' && data[i] != '\t' && data[i] != '\r') {
                blank = false;
            }
        }
    *lines += !blank;
    if (ferror(file)) rc = gw_fail(GW_ERR_IO, "cannot read %s: %s", path, strerror(errno));
out:
    if (file) fclose(file);
    free(data);
    return rc;
}

static gw_err note_found(void *context, const char *custom_id, int64_t index)
{
    struct gw_requests *requests = context;
    if (index < 0) {
        gw_ledger_note_answered(requests->ledger, custom_id);
        requests->counts.done++;
    } else {
        gw_ledger_note_error(requests->ledger, index);
        requests->counts.failed++;
    }
    return GW_OK;
}

/* Tokens committed before. Those of requests that are answered by now are forgotten as the ledger comes to them (skip_answered). */
static gw_err open_journal(struct gw_requests *requests, uint64_t job_id)
{
    gw_err rc = GW_OK;
    struct gw_journal_tokens *tokens = NULL;
    uint64_t epoch = 0;
    size_t count = 0;
    TRY(gw_journal_replay(requests->options->out_dir, &tokens, &epoch));
    TRY(gw_journal_open(requests->options->out_dir, epoch + 1, tokens, job_id, &requests->journal));
    int64_t *list = gw_journal_tokens_list(gw_journal_live(requests->journal), &count);
    requests->begun_last = -1;
    for (size_t i = 0; i < count; i++) {
        requests->counts.resumed_tokens += gw_journal_tokens_count(gw_journal_live(requests->journal), list[i]);
        if (list[i] > requests->begun_last) requests->begun_last = list[i];
    }
    free(list);
out:
    gw_journal_tokens_free(tokens);
    return rc;
}

gw_err gw_requests_open(const struct gw_job_options *o, const struct gw_model *model, int context,
                        struct gw_requests **out)
{
    gw_err rc = GW_OK;
    struct gw_requests *requests = gw_alloc(1, sizeof *requests);
    uint64_t job_id = 0;
    requests->options = o;
    requests->context = context;
    TRY(gw_ledger_open(o->input_path, &o->defaults, &requests->ledger));
    TRY(gw_make_dir(o->out_dir));
    TRY(gw_requests_same_job(o, model, context, &job_id));
    /* Where another leader may live, the journal is taken first: what that leader commits from then on fails, so that whatever it has told anybody
     * of is in the files when they are copied. Else the lock of the output comes first: a second command on one OUTDIR must change nothing. */
    if (o->fence) TRY(open_journal(requests, job_id));
    TRY((o->fence ? gw_output_open_fenced : gw_output_open)(o->out_dir, &requests->output));
    TRY(gw_output_recover(requests->output, note_found, requests));
    if (!o->fence) TRY(open_journal(requests, job_id));
    requests->counts.answered_before = requests->counts.done + requests->counts.failed;
    TRY(count_lines(o->input_path, &requests->counts.total));
    *out = requests;
    requests = NULL;
out:
    if (requests && gw_requests_close(requests) != GW_OK) gw_debug("%s", gw_error_detail());
    return rc;
}

gw_err gw_requests_close(struct gw_requests *requests)
{
    gw_err rc = GW_OK;
    if (!requests) return GW_OK;
    gw_err output = gw_output_close(requests->output);
    gw_err journal = gw_journal_close(requests->journal);
    rc = output != GW_OK ? output : journal;
    gw_ledger_close(requests->ledger);
    free(requests->active);
    gw_queue_free(&requests->waiting);
    gw_buf_free(&requests->line);
    gw_buf_free(&requests->drawn);
    free(requests);
    return rc;
}

/* ---- handing out ----------------------------------------------------------------------------------------------- */

static struct active *find_active(const struct gw_requests *requests, int64_t index)
{
    for (int i = 0; i < requests->active_count; i++)
        if (requests->active[i].index == index) return &requests->active[i];
    return NULL;
}

static void add_active(struct gw_requests *requests, const struct gw_waiting *request, int replica)
{
    if (requests->active_count == requests->active_capacity) {
        requests->active_capacity = requests->active_capacity ? 2 * requests->active_capacity : 256;
        requests->active = gw_realloc(requests->active, (size_t)requests->active_capacity, sizeof *requests->active);
    }
    requests->active[requests->active_count++] = (struct active){request->index, request->cost, replica};
}

static void drop_active(struct gw_requests *requests, struct active *active)
{
    *active = requests->active[--requests->active_count];
}

/* How long a request may take: mostly the tokens that are drawn one after the other; a prompt is computed many tokens at once. */
static int64_t cost_of(const struct gw_requests *requests, const struct gw_request *request)
{
    enum {
        PROMPT_BYTES_PER_TOKEN_DRAWN = 32
    }; /* about 4 to a token, and 8 of those in the time of one that is drawn */
    size_t prompt_bytes = request->prompt.bytes + 4 * request->prompt_token_count;
    for (size_t i = 0; i < request->message_count; i++) prompt_bytes += request->messages[i].content_bytes;
    int64_t drawn = request->sampling.max_tokens;
    if (drawn == 0 || drawn > requests->context) drawn = requests->context;
    return drawn + (int64_t)(prompt_bytes / PROMPT_BYTES_PER_TOKEN_DRAWN);
}

static void add_waiting(struct gw_requests *requests, int64_t index, int64_t cost)
{
    bool begun = gw_journal_tokens_count(gw_journal_live(requests->journal), index) > 0;
    gw_queue_add(&requests->waiting, (struct gw_waiting){.index = index, .cost = cost, .begun = begun});
}

/* Reads the input on to its next request, which then waits. Lines that the ledger itself finds bad are answered on the way. */
static gw_err read_on(struct gw_requests *requests)
{
    gw_err rc = GW_OK;
    struct gw_request request = {0};
    struct gw_request_error bad = {0};
    bool end = false;
    for (bool found = false; !found && !requests->input_ended;) {
        gw_request_free(&request);
        TRY(gw_ledger_next(requests->ledger, &request, &bad, &end));
        if (end) {
            requests->input_ended = true;
        } else if (bad.code) {
            TRY(gw_output_add_error(requests->output, request.custom_id, request.index, &bad));
            requests->counts.failed++;
            requests->unsynced = true;
        } else {
            add_waiting(requests, request.index, cost_of(requests, &request));
            found = true;
        }
    }
out:
    gw_request_free(&request);
    return rc;
}

/* Reads ahead: a little at a time up to the window, and all that an earlier leader had begun. */
static gw_err read_ahead(struct gw_requests *requests)
{
    gw_err rc = GW_OK;
    for (int i = 0; !requests->input_ended; i++) {
        bool room = i < READ_AHEAD && requests->waiting.count < GW_QUEUE_WINDOW;
        if (!room && gw_ledger_lines(requests->ledger) > requests->begun_last) break;
        TRY(read_on(requests));
    }
out:
    return rc;
}

/* Appends request `index` with its committed tokens. */
static gw_err add_request(struct gw_requests *requests, int64_t index, struct gw_buf *message)
{
    gw_err rc = GW_OK;
    const struct gw_journal_tokens *live = gw_journal_live(requests->journal);
    gw_buf_clear(&requests->drawn);
    for (int32_t at = 0; at < gw_journal_tokens_count(live, index); at++) {
        struct gw_sample_result result;
        GW_ASSERT(gw_journal_tokens_get(live, index, at, &result));
        gw_buf_add(&requests->drawn, &result, sizeof result);
    }
    TRY(gw_ledger_read_line(requests->ledger, index, &requests->line));
    gw_assign_add(message, index, requests->line.data, requests->line.bytes, &requests->drawn);
out:
    return rc;
}

gw_err gw_requests_grant(struct gw_requests *requests, int replica, struct gw_buf *message, bool *got)
{
    gw_err rc = GW_OK;
    struct gw_waiting next;
    *got = false;
    TRY(read_ahead(requests));
    if (!gw_queue_take(&requests->waiting, &next)) return GW_OK;
    add_active(requests, &next, replica);
    TRY(add_request(requests, next.index, message));
    *got = true;
out:
    return rc;
}

/* Reads the input up to request `index`, for a leader that took over in the middle. What lies before it waits to be handed out. */
static gw_err meet(struct gw_requests *requests, int64_t index)
{
    gw_err rc = GW_OK;
    while (!requests->input_ended && gw_ledger_lines(requests->ledger) <= index) TRY(read_on(requests));
    if (gw_ledger_lines(requests->ledger) <= index)
        FAIL(GW_ERR_PEER, "a rank reports request %lld, which the input does not hold", (long long)index);
out:
    return rc;
}

gw_err gw_requests_keep(struct gw_requests *requests, int64_t index, int replica)
{
    gw_err rc = GW_OK;
    TRY(meet(requests, index));
    if (gw_ledger_state(requests->ledger, index) != GW_LINE_ACTIVE) goto out; /* answered after all */
    struct active *active = find_active(requests, index);
    struct gw_waiting waiting;
    if (active) active->replica = replica;
    else if (gw_queue_drop(&requests->waiting, index, &waiting)) add_active(requests, &waiting, replica);
out:
    return rc;
}

gw_err gw_requests_assign(struct gw_requests *requests, int64_t index, int replica, struct gw_buf *message)
{
    gw_err rc = GW_OK;
    TRY(gw_requests_keep(requests, index, replica));
    struct active *active = find_active(requests, index);
    if (active && active->replica == replica) TRY(add_request(requests, index, message));
out:
    return rc;
}

void gw_requests_forget_owners(struct gw_requests *requests)
{
    for (int i = 0; i < requests->active_count; i++) requests->active[i].replica = NOBODY;
}

void gw_requests_settle(struct gw_requests *requests)
{
    for (int i = 0; i < requests->active_count;) {
        if (requests->active[i].replica != NOBODY) {
            i++;
            continue;
        }
        add_waiting(requests, requests->active[i].index, requests->active[i].cost);
        drop_active(requests, &requests->active[i]);
    }
}

/* ---- taking in ------------------------------------------------------------------------------------------------- */

gw_err gw_requests_tokens(struct gw_requests *requests, const uint8_t *data, size_t bytes)
{
    gw_err rc = GW_OK;
    struct gw_reader in = {.data = data, .bytes = bytes};
    int64_t index;
    int at, count;
    bool logprobs;
    while (gw_tokens_msg_next(&in, &index, &at, &requests->drawn, &count, &logprobs)) {
        /* a finished request is reported again by a head that had not heard of it */
        if (index < gw_ledger_lines(requests->ledger) && gw_ledger_state(requests->ledger, index) != GW_LINE_ACTIVE)
            continue;
        const struct gw_sample_result *results = (const struct gw_sample_result *)(const void *)requests->drawn.data;
        for (int i = 0; i < count; i++) {
            int known = gw_journal_tokens_count(gw_journal_live(requests->journal), index);
            rc = gw_journal_add(requests->journal, index, at + i, &results[i], logprobs);
            if (rc == GW_ERR_NOT_FOUND) { /* what came before it was lost with its leader: it will be generated again */
                rc = GW_OK;
                break;
            }
            if (rc != GW_OK) goto out;
            requests->counts.committed_tokens += at + i >= known;
            requests->uncommitted = true;
        }
    }
    if (in.failed) FAIL(GW_ERR_PEER, "a report of tokens of %zu bytes is malformed", bytes);
out:
    return rc;
}

gw_err gw_requests_result(struct gw_requests *requests, int replica, const uint8_t *data, size_t bytes)
{
    gw_err rc = GW_OK;
    struct gw_result result;
    TRY(gw_result_decode(data, bytes, &result));
    struct active *active = find_active(requests, result.index);
    if (!active || active->replica != replica) goto out;
    /* its last tokens may not have been taken yet: what comes of a finished request is passed over */
    int known = gw_journal_tokens_count(gw_journal_live(requests->journal), result.index);
    if (result.completion_tokens > known) requests->counts.committed_tokens += result.completion_tokens - known;
    gw_buf_clear(&requests->line);
    gw_buf_add(&requests->line, result.line, result.line_bytes);
    if (result.failed) TRY(gw_output_add_error_line(requests->output, &requests->line));
    else TRY(gw_output_add_line(requests->output, &requests->line));
    gw_journal_add_finished(requests->journal, result.index, gw_output_bytes(requests->output));
    gw_ledger_set_state(requests->ledger, result.index, result.failed ? GW_LINE_FAILED : GW_LINE_DONE);
    drop_active(requests, active);
    requests->uncommitted = requests->unsynced = true;
    requests->counts.failed += result.failed;
    requests->counts.done += !result.failed;
    requests->counts.prompt_tokens += result.prompt_tokens;
    requests->counts.completion_tokens += result.completion_tokens;
out:
    return rc;
}

bool gw_requests_uncommitted(const struct gw_requests *requests)
{
    return requests->uncommitted;
}

gw_err gw_requests_commit(struct gw_requests *requests, bool durable)
{
    gw_err rc = GW_OK;
    if (durable && requests->unsynced) {
        TRY(gw_output_sync(requests->output));
        requests->unsynced = false;
    }
    rc = gw_journal_commit(requests->journal, durable);
    requests->uncommitted = rc != GW_OK;
    if (rc != GW_ERR_IO) goto out;
    if (gw_clock_now_s() - requests->warned_s > WARN_EVERY_S) {
        gw_warn("tokens cannot be committed now: %s", gw_error_detail());
        requests->warned_s = gw_clock_now_s();
    }
    rc = GW_OK;
out:
    return rc;
}

bool gw_requests_finished(const struct gw_requests *requests)
{
    return requests->input_ended && requests->active_count == 0 && requests->waiting.count == 0;
}

bool gw_requests_all_answered(const struct gw_requests *requests)
{
    return requests->counts.done + requests->counts.failed >= requests->counts.total;
}

int64_t gw_requests_active_of(const struct gw_requests *requests, int replica)
{
    int64_t count = 0;
    for (int i = 0; i < requests->active_count; i++) count += requests->active[i].replica == replica;
    return count;
}

bool gw_requests_begun_wait(const struct gw_requests *requests)
{
    size_t count = 0;
    bool waits = false;
    int64_t *list = gw_journal_tokens_list(gw_journal_live(requests->journal), &count);
    for (size_t i = 0; i < count && !waits; i++) waits = !find_active(requests, list[i]);
    free(list);
    return waits;
}

int64_t gw_requests_left(const struct gw_requests *requests)
{
    const struct gw_request_counts *c = &requests->counts;
    return c->total - c->done - c->failed - requests->active_count;
}

void gw_requests_undrawn(const struct gw_requests *requests, int64_t *sum, int64_t *most)
{
    *sum = *most = 0;
    for (int i = 0; i < requests->active_count; i++) {
        const struct active *active = &requests->active[i];
        int64_t left = active->cost - gw_journal_tokens_count(gw_journal_live(requests->journal), active->index);
        *sum += left;
        if (left > *most) *most = left;
    }
}

struct gw_request_counts gw_requests_counts(const struct gw_requests *requests)
{
    struct gw_request_counts counts = requests->counts;
    counts.active = requests->active_count;
    counts.waiting = requests->waiting.count;
    return counts;
}
