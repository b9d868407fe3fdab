/* See record.h. */
#include "job/record.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static gw_err write_json(const char *out_dir, const char *name, json_t *json, size_t flags)
{
    char *text = json_dumps(json, flags | JSON_REAL_PRECISION(16)), *path = gw_asprintf("%s/%s", out_dir, name);
    GW_ASSERT(text);
    gw_err rc = gw_file_replace(path, text, strlen(text), false);
    free(text);
    free(path);
    json_decref(json);
    return rc;
}

gw_err gw_record_status(const char *out_dir, const struct gw_record_status *s)
{
    uint64_t computed = (uint64_t)s->before.computed_tokens, recomputed = (uint64_t)s->before.recomputed_tokens;
    uint64_t restored = (uint64_t)s->before.restored_tokens;
    uint64_t preemptions = 0, reused = 0;
    int running = 0, waiting = 0, pages_used = 0, pages_total = 0;
    for (int h = 0; h < s->head_count; h++) {
        const struct gw_head_report *r = &s->heads[h];
        computed += r->computed_tokens;
        recomputed += r->recomputed_tokens;
        restored += r->restored_tokens;
        preemptions += r->preemptions;
        reused += r->prefix_tokens_reused;
        running += r->running;
        waiting += r->waiting;
        pages_used += r->pages_used;
        pages_total += r->pages_total;
    }
    const struct gw_request_counts *c = &s->counts;
    struct gw_layout layout = s->plan ? s->plan->layout : (struct gw_layout){0};
    int64_t answered = c->done + c->failed, here = answered - c->answered_before;
    int64_t committed = s->before.committed_tokens + c->committed_tokens;
    double elapsed_s = s->before.elapsed_s + s->elapsed_s;
    double eta_s = here > 0 ? s->elapsed_s / (double)here * (double)(c->total - answered) : -1;
    json_t *status = json_pack(
        "{s:s,s:s,s:s,s:i,s:f,s:f, s:I,s:I,s:I,s:I, s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f, s:i,s:i,s:i,s:i,s:I,s:I, "
        "s:s,s:[i,i,i],s:i,s:i,s:i,s:I,s:I}",
        "state", s->state, "phase", s->phase, "model", s->options->model_name, "pid", (int)getpid(), "updated_at",
        gw_clock_wall_s(), "elapsed_s", elapsed_s, /* requests */
        "requests_total", (json_int_t)c->total, "requests_done", (json_int_t)c->done, "requests_failed",
        (json_int_t)c->failed, "requests_done_before", (json_int_t)c->answered_before, /* tokens */
        "generated_tokens", (json_int_t)committed, "computed_tokens", (json_int_t)computed, "recomputed_tokens",
        (json_int_t)recomputed, "restored_tokens", (json_int_t)restored, "resumed_tokens",
        (json_int_t)c->resumed_tokens, "finished_completion_tokens", (json_int_t)c->completion_tokens,
        "generated_tokens_per_s", elapsed_s > 0 ? (double)committed / elapsed_s : 0.0, "eta_s",
        eta_s, /* sequences and pages */
        "running", running, "waiting", waiting, "kv_pages_used", pages_used, "kv_pages_total", pages_total,
        "preemptions", (json_int_t)preemptions, "prefix_tokens_reused", (json_int_t)reused, /* machine */
        "kernels", s->kernels, "layout", layout.data, layout.tensor, layout.pipeline, "ranks", s->ranks,
        "threads_per_rank", s->threads, "context", s->context, "plan", (json_int_t)(s->plan ? s->plan->number : 0),
        "lost_ranks", (json_int_t)s->before.lost_ranks);
    GW_ASSERT(status);
    return write_json(out_dir, "status.json", status, JSON_INDENT(1));
}

struct gw_record_totals gw_record_totals(const char *out_dir)
{
    struct gw_record_totals totals = {0};
    char *path = gw_asprintf("%s/status.json", out_dir), *text = NULL;
    if (gw_file_read(path, 1 << 20, &text, NULL) == GW_OK) {
        json_t *root = json_loads(text, 0, NULL);
        totals.committed_tokens = json_integer_value(json_object_get(root, "generated_tokens"));
        totals.computed_tokens = json_integer_value(json_object_get(root, "computed_tokens"));
        totals.recomputed_tokens = json_integer_value(json_object_get(root, "recomputed_tokens"));
        totals.restored_tokens = json_integer_value(json_object_get(root, "restored_tokens"));
        totals.lost_ranks = json_integer_value(json_object_get(root, "lost_ranks"));
        totals.elapsed_s = json_number_value(json_object_get(root, "elapsed_s"));
        json_decref(root);
    }
    free(text);
    free(path);
    return totals;
}

gw_err gw_record_ranks(const char *out_dir, const struct gw_plan *plan)
{
    json_t *ranks = json_array();
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        json_t *rank = json_pack("{s:i,s:i,s:I,s:s}", "rank", r, "member", (int)peer->member, "pid",
                                 (json_int_t)peer->pid, "host", peer->host);
        if (peer->slot >= 0) {
            struct gw_place place = gw_layout_place(plan->layout, peer->slot);
            json_object_set_new(rank, "layout", json_pack("[i,i,i]", place.replica, place.shard, place.stage));
        }
        json_array_append_new(ranks, rank);
    }
    return write_json(out_dir, "ranks.json", json_pack("{s:o}", "ranks", ranks), JSON_COMPACT);
}

void gw_record_event(const char *out_dir, const char *name, json_t *details)
{
    json_t *event = json_pack("{s:f,s:s}", "time", gw_clock_wall_s(), "event", name);
    if (details) json_object_update(event, details);
    char *text = json_dumps(event, JSON_COMPACT | JSON_REAL_PRECISION(16)),
         *path = gw_asprintf("%s/events.jsonl", out_dir);
    char *line = gw_asprintf("%s\n", text);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) gw_warn("cannot write %s: %s", path, strerror(errno));
    else if (gw_write_all(fd, path, line, strlen(line)) != GW_OK) gw_warn("%s", gw_error_detail());
    if (fd >= 0) close(fd);
    json_decref(event);
    json_decref(details);
    free(text);
    free(path);
    free(line);
}
