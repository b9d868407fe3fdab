/* See leader.h.
 *
 * Requests are granted by guided self-scheduling: half of an even share of what is left at a time, so that replicas finish together
 * whatever their speeds. Output is synced once a second, so a power cut loses a second of finished lines at most; they would be
 * generated again, to the same bytes.
 */
#include "job/leader.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "batch/io/manifest.h"
#include "batch/io/output.h"
#include "batch/ledger.h"
#include "comm/comm.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static const double SYNC_EVERY_S = 1.0, STATUS_EVERY_S = 0.5;

struct head_state {
    int rank;
    int wants;        /* as last reported, less what was granted since */
    uint32_t granted; /* requests sent so far */
    double heard_s;   /* of its last report */
    struct gw_head_report report;
};

struct gw_leader {
    struct gw_leader_config config;
    struct gw_ledger *ledger;
    struct gw_output *output;
    struct head_state *heads;
    int head_count;
    int64_t lines_total;                      /* non-blank lines of the input */
    int64_t answered_before;                  /* by earlier runs */
    int64_t done, failed;                     /* in all */
    int64_t active;                           /* with the heads now */
    int64_t prompt_tokens, completion_tokens; /* of requests finished in this run */
    bool input_ended, told, stopped;
    int byes; /* heads that have sent their last message */
    double started_s, started_wall_s, synced_s, status_s;
    bool unsynced;
    struct gw_buf line, message;
};

/* ---- opening --------------------------------------------------------------------------------------------------- */

static gw_err open_manifest(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = leader->config.options;
    struct gw_manifest manifest = {.created = o->created, .started_at = gw_clock_wall_s()};
    char hex[65], number[32];
    bool created = false;
    gw_manifest_set(&manifest.program, "godwit " PACKAGE_VERSION);
    gw_manifest_set(&manifest.model_name, o->model_name);
    gw_manifest_set(&manifest.model_path, o->model_path);
    gw_model_fingerprint(leader->config.model, hex);
    gw_manifest_set(&manifest.model_hash, hex);
    char *absolute = realpath(o->input_path, NULL);
    gw_manifest_set(&manifest.input_path, absolute ? absolute : o->input_path);
    free(absolute);
    TRY(gw_manifest_hash_file(o->input_path, hex, &manifest.input_bytes));
    gw_manifest_set(&manifest.input_hash, hex);
    gw_manifest_add_defaults(&manifest, &o->defaults);
    snprintf(number, sizeof number, "%d", leader->config.context);
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
    struct gw_leader *leader = context;
    if (index < 0) {
        gw_ledger_note_answered(leader->ledger, custom_id);
        leader->done++;
    } else {
        gw_ledger_note_error(leader->ledger, index);
        leader->failed++;
    }
    return GW_OK;
}

static gw_err write_ranks(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    json_t *ranks = json_array();
    char *path = gw_asprintf("%s/ranks.json", leader->config.options->out_dir), *text = NULL;
    for (int rank = 0; rank < gw_comm_size(leader->config.comm); rank++) {
        struct gw_place place = gw_layout_place(leader->config.layout, rank);
        TRY(gw_comm_wait(leader->config.comm, rank, GW_MSG_HELLO, -1, &msg));
        struct gw_reader in = {.data = msg.data, .bytes = msg.bytes};
        long pid = (long)gw_read_u64(&in);
        json_array_append_new(ranks, json_pack("{s:i,s:I,s:s%,s:[i,i,i]}", "rank", rank, "pid", (json_int_t)pid, "host",
                                               (const char *)msg.data + 8, msg.bytes - 8, "layout", place.replica,
                                               place.shard, place.stage));
        gw_msg_free(&msg);
    }
    json_t *all = json_pack("{s:O}", "ranks", ranks);
    text = json_dumps(all, JSON_COMPACT);
    json_decref(all);
    GW_ASSERT(text);
    TRY(gw_file_replace(path, text, strlen(text), false));
out:
    gw_msg_free(&msg);
    json_decref(ranks);
    free(path);
    free(text);
    return rc;
}

gw_err gw_leader_hello(struct gw_comm *comm, int leader)
{
    struct utsname host;
    struct gw_buf hello = {0};
    uname(&host);
    gw_buf_add_u64(&hello, (uint64_t)getpid());
    gw_buf_add_text(&hello, host.nodename);
    gw_err rc = gw_comm_send(comm, leader, GW_MSG_HELLO, 0, hello.data, hello.bytes);
    gw_buf_free(&hello);
    return rc;
}

gw_err gw_leader_create(const struct gw_leader_config *config, struct gw_leader **out)
{
    gw_err rc = GW_OK;
    const struct gw_job_options *o = config->options;
    struct gw_leader *leader = gw_alloc(1, sizeof *leader);
    leader->config = *config;
    leader->head_count = config->layout.data;
    leader->heads = gw_alloc((size_t)leader->head_count, sizeof *leader->heads);
    for (int r = 0; r < leader->head_count; r++)
        leader->heads[r].rank = gw_layout_rank(config->layout, (struct gw_place){.replica = r});
    TRY(gw_ledger_open(o->input_path, &o->defaults, &leader->ledger));
    TRY(gw_make_dir(o->out_dir));
    TRY(open_manifest(leader));
    TRY(gw_output_open(o->out_dir, &leader->output));
    TRY(gw_output_recover(leader->output, note_found, leader));
    leader->answered_before = leader->done + leader->failed;
    TRY(count_lines(o->input_path, &leader->lines_total));
    TRY(write_ranks(leader));
    leader->started_s = gw_clock_now_s();
    for (int r = 0; r < leader->head_count; r++) leader->heads[r].heard_s = leader->started_s;
    leader->started_wall_s = gw_clock_wall_s();
    *out = leader;
    leader = NULL;
out:
    gw_leader_destroy(leader);
    return rc;
}

void gw_leader_destroy(struct gw_leader *leader)
{
    if (!leader) return;
    if (leader->output && gw_output_close(leader->output) != GW_OK) gw_warn("%s", gw_error_detail());
    gw_ledger_close(leader->ledger);
    free(leader->heads);
    gw_buf_free(&leader->line);
    gw_buf_free(&leader->message);
    free(leader);
}

/* ---- handing out ----------------------------------------------------------------------------------------------- */

/* The next request that a head must answer, appended to the message; false at the end of the input. Lines that the ledger itself finds
 * bad are answered on the way. */
static gw_err next_line(struct gw_leader *leader, bool *got)
{
    gw_err rc = GW_OK;
    struct gw_request request = {0};
    struct gw_request_error bad = {0};
    bool end = false;
    *got = false;
    TRY(gw_ledger_next(leader->ledger, &request, &bad, &end));
    if (end) {
        leader->input_ended = true;
    } else if (bad.code) {
        TRY(gw_output_add_error(leader->output, request.custom_id, request.index, &bad));
        leader->failed++;
        leader->unsynced = true;
    } else {
        TRY(gw_ledger_read_line(leader->ledger, request.index, &leader->line));
        gw_assign_add(&leader->message, request.index, leader->line.data, leader->line.bytes);
        leader->active++;
        *got = true;
    }
out:
    gw_request_free(&request);
    return rc;
}

static gw_err grant(struct gw_leader *leader, struct head_state *head, bool *busy)
{
    gw_err rc = GW_OK;
    int64_t left = leader->lines_total - leader->done - leader->failed - leader->active;
    int64_t share = leader->head_count > 1 ? left / (2 * leader->head_count) : left;
    int most = share < 1 ? 1 : share < head->wants ? (int)share : head->wants;
    int granted = 0;
    gw_buf_clear(&leader->message);
    while (granted < most && !leader->input_ended) {
        bool got = false;
        TRY(next_line(leader, &got));
        granted += got;
    }
    if (granted == 0) return GW_OK;
    *busy = true;
    head->wants -= granted;
    head->granted += (uint32_t)granted;
    TRY(gw_comm_send(leader->config.comm, head->rank, GW_MSG_ASSIGN, 0, leader->message.data, leader->message.bytes));
out:
    return rc;
}

static gw_err take_reports(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    for (bool got = true; got;) {
        TRY(gw_comm_poll(leader->config.comm, -1, GW_MSG_WANT, &msg, &got));
        if (!got) break;
        for (int h = 0; h < leader->head_count; h++) {
            struct head_state *head = &leader->heads[h];
            if (head->rank != msg.source || msg.bytes != sizeof head->report) continue;
            memcpy(&head->report, msg.data, sizeof head->report);
            head->heard_s = gw_clock_now_s();
            head->wants = head->report.wants - (int)(head->granted - head->report.taken);
        }
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

static gw_err take_results(struct gw_leader *leader, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    struct gw_result result;
    for (bool got = true; got;) {
        TRY(gw_comm_poll(leader->config.comm, -1, GW_MSG_RESULT, &msg, &got));
        if (!got) break;
        *busy = true;
        TRY(gw_result_decode(msg.data, msg.bytes, &result));
        gw_buf_clear(&leader->line);
        gw_buf_add(&leader->line, result.line, result.line_bytes);
        if (result.failed) TRY(gw_output_add_error_line(leader->output, &leader->line));
        else TRY(gw_output_add_line(leader->output, &leader->line));
        leader->unsynced = true;
        gw_ledger_set_state(leader->ledger, result.index, result.failed ? GW_LINE_FAILED : GW_LINE_DONE);
        leader->failed += result.failed;
        leader->done += !result.failed;
        leader->active--;
        leader->prompt_tokens += result.prompt_tokens;
        leader->completion_tokens += result.completion_tokens;
        gw_msg_free(&msg);
    }
out:
    gw_msg_free(&msg);
    return rc;
}

/* ---- status ---------------------------------------------------------------------------------------------------- */

static gw_err write_status(struct gw_leader *leader, const char *state)
{
    uint64_t drawn = 0, computed = 0, preemptions = 0, reused = 0;
    int running = 0, waiting = 0, pages_used = 0;
    for (int h = 0; h < leader->head_count; h++) {
        const struct gw_head_report *r = &leader->heads[h].report;
        drawn += r->drawn_tokens;
        computed += r->computed_tokens;
        preemptions += r->preemptions;
        reused += r->prefix_tokens_reused;
        running += r->running;
        waiting += r->waiting;
        pages_used += r->pages_used;
    }
    double elapsed_s = gw_clock_now_s() - leader->started_s;
    int64_t answered = leader->done + leader->failed, here = answered - leader->answered_before;
    double eta_s = here > 0 ? elapsed_s / (double)here * (double)(leader->lines_total - answered) : -1;
    const struct gw_layout *l = &leader->config.layout;
    json_t *status = json_pack(
        "{s:s,s:s,s:i,s:f,s:f,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:i,s:i,s:i,s:i,s:I,s:I,s:s,s:[i,i,i],s:i,s:i}",
        "state", state, "model", leader->config.options->model_name, "pid", (int)getpid(), "updated_at",
        gw_clock_wall_s(), "elapsed_s", elapsed_s, "requests_total", (json_int_t)leader->lines_total, "requests_done",
        (json_int_t)leader->done, "requests_failed", (json_int_t)leader->failed, "requests_done_before",
        (json_int_t)leader->answered_before, "generated_tokens", (json_int_t)drawn, "computed_tokens",
        (json_int_t)computed, "finished_completion_tokens", (json_int_t)leader->completion_tokens,
        "generated_tokens_per_s", elapsed_s > 0 ? (double)drawn / elapsed_s : 0.0, "eta_s", eta_s, "running", running,
        "waiting", waiting, "kv_pages_used", pages_used, "kv_pages_total", leader->config.kv_pages * leader->head_count,
        "preemptions", (json_int_t)preemptions, "prefix_tokens_reused", (json_int_t)reused, "kernels",
        leader->config.kernels, "layout", l->data, l->tensor, l->pipeline, "threads_per_rank", leader->config.threads,
        "context", leader->config.context);
    GW_ASSERT(status);
    char *text = json_dumps(status, JSON_INDENT(1) | JSON_REAL_PRECISION(10));
    char *path = gw_asprintf("%s/status.json", leader->config.options->out_dir);
    gw_err rc = gw_file_replace(path, text, strlen(text), false);
    json_decref(status);
    free(text);
    free(path);
    return rc;
}

static gw_err housekeeping(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    double now_s = gw_clock_now_s(), timeout_s = leader->config.options->peer_timeout_s;
    for (int h = 0; h < leader->head_count; h++)
        if (now_s - leader->heads[h].heard_s > timeout_s)
            FAIL(GW_ERR_PEER, "the leader has not heard from rank %d for %.0f s; see --peer-timeout",
                 leader->heads[h].rank, timeout_s);
    if (leader->unsynced && now_s - leader->synced_s > SYNC_EVERY_S) {
        TRY(gw_output_sync(leader->output));
        leader->unsynced = false;
        leader->synced_s = gw_clock_now_s();
    }
    if (now_s - leader->status_s > STATUS_EVERY_S) {
        TRY(write_status(leader, "running"));
        leader->status_s = now_s;
    }
out:
    return rc;
}

/* The heads' last messages: what they sent before is there by then, since messages of one sender do not overtake. */
static gw_err take_byes(struct gw_leader *leader, bool *busy)
{
    gw_err rc = GW_OK;
    struct gw_msg msg = {0};
    for (bool got = true; got;) {
        TRY(gw_comm_poll(leader->config.comm, -1, GW_MSG_BYE, &msg, &got));
        leader->byes += got;
        *busy |= got;
        gw_msg_free(&msg);
    }
out:
    return rc;
}

gw_err gw_leader_poll(struct gw_leader *leader, bool stop, bool *busy, bool *finished)
{
    gw_err rc = GW_OK;
    TRY(take_byes(leader, busy));
    *finished = leader->byes == leader->head_count;
    TRY(take_results(leader, busy));
    TRY(take_reports(leader));
    /* Rounds over the heads, so that none takes all of what is left because it asked first. */
    for (bool any = true; any && !leader->input_ended && !stop && !leader->told;) {
        any = false;
        for (int h = 0; h < leader->head_count && !leader->input_ended; h++)
            if (leader->heads[h].wants > 0) TRY(grant(leader, &leader->heads[h], &any));
        *busy |= any;
    }
    TRY(housekeeping(leader));
    if (!leader->told && (stop || (leader->input_ended && leader->active == 0))) {
        for (int h = 0; h < leader->head_count; h++)
            TRY(gw_comm_send(leader->config.comm, leader->heads[h].rank, GW_MSG_STOP, 0, NULL, 0));
        leader->told = true;
    }
out:
    return rc;
}

gw_err gw_leader_finish(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    struct gw_output *output = leader->output;
    leader->output = NULL;
    leader->stopped = !leader->input_ended || leader->active > 0;
    TRY(gw_output_close(output));
    TRY(write_status(leader, leader->stopped ? "stopped" : "done"));
    if (leader->stopped)
        FAIL(GW_ERR_STOPPED, "stopped on request with %lld of %lld requests answered; the same command carries on",
             (long long)(leader->done + leader->failed), (long long)leader->lines_total);
out:
    return rc;
}
