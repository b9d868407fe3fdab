/* See record.h. */
#include "job/record.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "report/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static gw_err write_json(const char *out_dir, const char *name, const json_t *json, size_t flags)
{
    char *text = json_dumps(json, flags | JSON_REAL_PRECISION(16)), *path = gw_asprintf("%s/%s", out_dir, name);
    GW_ASSERT(text);
    gw_err rc = gw_file_replace(path, text, strlen(text), false);
    free(text);
    free(path);
    return rc;
}

static json_t *lost_seconds(const struct gw_record_status *s)
{
    json_t *lost = json_object();
    for (int c = 0; c < GW_PAUSE_LOST; c++)
        json_object_set_new(lost, gw_pause_name((enum gw_pause_cause)c), json_real(s->before.lost_s[c] + s->lost_s[c]));
    return lost;
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
        "s:s,s:[i,i,i],s:i,s:i,s:i,s:i,s:I,s:f,s:o,s:I,s:I,s:I,s:I}",
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
        "threads_per_rank", s->threads, "context", s->context, "launch", s->options->launch, "plan",
        (json_int_t)(s->plan ? s->plan->number : 0), "recent_tokens_per_s", s->recent_tokens_per_s, "lost_s",
        lost_seconds(s), "notices", (json_int_t)s->before.notices, "checkpoints", (json_int_t)s->before.checkpoints,
        "checkpoint_bytes", (json_int_t)s->before.checkpoint_bytes, "lost_ranks", (json_int_t)s->before.lost_ranks);
    GW_ASSERT(status);
    gw_err rc = write_json(out_dir, "status.json", status, JSON_INDENT(1));
    if (rc == GW_OK && gw_metrics_write(out_dir, status) != GW_OK) gw_warn("%s", gw_error_detail());
    json_decref(status);
    return rc;
}

static json_t *read_json(const char *out_dir, const char *name)
{
    char *path = gw_asprintf("%s/%s", out_dir, name), *text = NULL;
    json_t *root = NULL;
    if (access(path, R_OK) == 0 && gw_file_read(path, 64 << 20, &text, NULL) == GW_OK) root = json_loads(text, 0, NULL);
    free(text);
    free(path);
    return root;
}

struct gw_record_totals gw_record_totals(const char *out_dir)
{
    struct gw_record_totals totals = {0};
    json_t *root = read_json(out_dir, "status.json");
    const json_t *lost = json_object_get(root, "lost_s");
    const char *state = json_string_value(json_object_get(root, "state"));
    totals.committed_tokens = json_integer_value(json_object_get(root, "generated_tokens"));
    totals.computed_tokens = json_integer_value(json_object_get(root, "computed_tokens"));
    totals.recomputed_tokens = json_integer_value(json_object_get(root, "recomputed_tokens"));
    totals.restored_tokens = json_integer_value(json_object_get(root, "restored_tokens"));
    totals.lost_ranks = json_integer_value(json_object_get(root, "lost_ranks"));
    totals.notices = json_integer_value(json_object_get(root, "notices"));
    totals.checkpoints = json_integer_value(json_object_get(root, "checkpoints"));
    totals.checkpoint_bytes = json_integer_value(json_object_get(root, "checkpoint_bytes"));
    totals.elapsed_s = json_number_value(json_object_get(root, "elapsed_s"));
    totals.updated_wall_s = json_number_value(json_object_get(root, "updated_at"));
    totals.stopped = state && !strcmp(state, "stopped");
    for (int c = 0; c < GW_PAUSE_LOST; c++)
        totals.lost_s[c] = json_number_value(json_object_get(lost, gw_pause_name((enum gw_pause_cause)c)));
    json_decref(root);
    return totals;
}

/* ---- who runs -------------------------------------------------------------------------------------------------- */

/* The entry of ranks.json that is this process; NULL: none is. */
static const json_t *find_peer(const json_t *ranks, const struct gw_peer *peer)
{
    const json_t *rank;
    size_t i;
    json_array_foreach(ranks, i, rank)
    {
        const char *host = json_string_value(json_object_get(rank, "host"));
        if (json_integer_value(json_object_get(rank, "member")) == peer->member && host && !strcmp(host, peer->host) &&
            json_integer_value(json_object_get(rank, "pid")) == peer->pid)
            return rank;
    }
    return NULL;
}

/* NULL for a rank that waits. */
static json_t *place_of(const struct gw_plan *plan, const struct gw_peer *peer)
{
    if (peer->slot < 0) return NULL;
    struct gw_place place = gw_layout_place(plan->layout, peer->slot);
    return json_pack("[i,i,i]", place.replica, place.shard, place.stage);
}

gw_err gw_record_seats(const char *out_dir, struct gw_seat **seats, int *count)
{
    json_t *root = read_json(out_dir, "ranks.json"), *rank;
    const json_t *ranks = json_object_get(root, "ranks");
    size_t i;
    *seats = gw_alloc(json_array_size(ranks) + 1, sizeof **seats);
    *count = 0;
    json_array_foreach(ranks, i, rank)
    {
        const json_t *place = json_object_get(rank, "layout");
        const char *host = json_string_value(json_object_get(rank, "host"));
        struct gw_seat *seat = &(*seats)[*count];
        if (!host || json_array_size(place) != 3) continue;
        snprintf(seat->host, sizeof seat->host, "%s", host);
        seat->place.replica = (int)json_integer_value(json_array_get(place, 0));
        seat->place.shard = (int)json_integer_value(json_array_get(place, 1));
        seat->place.stage = (int)json_integer_value(json_array_get(place, 2));
        ++*count;
    }
    json_decref(root);
    return *count ? GW_OK : GW_ERR_NOT_FOUND;
}

gw_err gw_record_ranks(const char *out_dir, const struct gw_plan *plan, bool first)
{
    json_t *root = first ? NULL : read_json(out_dir, "ranks.json"), *ranks = json_array();
    const json_t *old = json_object_get(root, "ranks");
    double now_s = gw_clock_wall_s();
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        double since_s = json_number_value(json_object_get(find_peer(old, peer), "since"));
        json_t *rank = json_pack("{s:i,s:i,s:I,s:s,s:f}", "rank", r, "member", (int)peer->member, "pid",
                                 (json_int_t)peer->pid, "host", peer->host, "since", since_s > 0 ? since_s : now_s);
        json_t *place = place_of(plan, peer);
        if (place) json_object_set_new(rank, "layout", place);
        json_array_append_new(ranks, rank);
    }
    json_t *now = json_pack("{s:o}", "ranks", ranks);
    gw_err rc = write_json(out_dir, "ranks.json", now, JSON_COMPACT);
    json_decref(now);
    json_decref(root);
    return rc;
}

void gw_record_changes(const char *out_dir, const struct gw_plan *plan, bool first, json_t *details)
{
    json_t *root = first ? NULL : read_json(out_dir, "ranks.json"), *seats = json_array(), *gone = json_array();
    const json_t *old = json_object_get(root, "ranks"), *rank;
    size_t i;
    for (int r = 0; r < plan->peer_count; r++) {
        const struct gw_peer *peer = &plan->peers[r];
        const json_t *before = find_peer(old, peer);
        json_t *place = place_of(plan, peer);
        if (!before || (place ? !json_equal(place, json_object_get(before, "layout"))
                              : json_object_get(before, "layout") != NULL)) {
            json_t *seat = json_pack("{s:i,s:s}", "member", (int)peer->member, "host", peer->host);
            if (place) json_object_set(seat, "layout", place);
            json_array_append_new(seats, seat);
        }
        json_decref(place);
    }
    json_array_foreach(old, i, rank)
    {
        bool here = false;
        for (int r = 0; r < plan->peer_count && !here; r++)
            here = json_integer_value(json_object_get(rank, "member")) == plan->peers[r].member;
        if (!here)
            json_array_append_new(gone, json_pack("{s:O,s:O}", "member", json_object_get(rank, "member"), "host",
                                                  json_object_get(rank, "host")));
    }
    json_object_set_new(details, "seats", seats);
    json_object_set_new(details, "gone", gone);
    json_decref(root);
}

json_t *gw_record_missing(const char *out_dir, bool (*missing)(const void *context, int member), const void *context)
{
    json_t *root = read_json(out_dir, "ranks.json"), *found = json_array();
    const json_t *rank;
    size_t i;
    json_array_foreach(json_object_get(root, "ranks"), i, rank)
    {
        json_t *member = json_object_get(rank, "member"), *host = json_object_get(rank, "host");
        if (json_is_integer(member) && json_is_string(host) && missing(context, (int)json_integer_value(member)))
            json_array_append_new(found, json_pack("{s:O,s:O}", "member", member, "host", host));
    }
    json_decref(root);
    return found;
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
