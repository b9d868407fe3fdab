/* See progress.h. */
#include "node/progress.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool line_on_terminal;

static int64_t integer(const json_t *root, const char *key)
{
    return (int64_t)json_integer_value(json_object_get(root, key));
}

static double real(const json_t *root, const char *key)
{
    return json_number_value(json_object_get(root, key));
}

static void text_of(const json_t *root, const char *key, char *text, size_t bytes)
{
    const char *value = json_string_value(json_object_get(root, key));
    snprintf(text, bytes, "%s", value ? value : "");
}

gw_err gw_status_read(const char *out_dir, struct gw_status *s)
{
    gw_err rc = GW_OK;
    char *path = gw_asprintf("%s/status.json", out_dir), *text = NULL;
    json_t *root = NULL;
    *s = (struct gw_status){0};
    TRY(gw_file_read(path, 1 << 20, &text, NULL));
    root = json_loads(text, 0, NULL);
    if (!json_is_object(root)) FAIL(GW_ERR_FORMAT, "%s is not a status file of godwit", path);
    text_of(root, "state", s->state, sizeof s->state);
    text_of(root, "model", s->model, sizeof s->model);
    text_of(root, "kernels", s->kernels, sizeof s->kernels);
    s->updated_at = real(root, "updated_at");
    s->elapsed_s = real(root, "elapsed_s");
    s->generated_tokens_per_s = real(root, "generated_tokens_per_s");
    s->eta_s = real(root, "eta_s");
    s->requests_total = integer(root, "requests_total");
    s->requests_done = integer(root, "requests_done");
    s->requests_failed = integer(root, "requests_failed");
    s->generated_tokens = integer(root, "generated_tokens");
    s->recomputed_tokens = integer(root, "recomputed_tokens");
    s->lost_ranks = integer(root, "lost_ranks");
    s->resumed_tokens = integer(root, "resumed_tokens");
    s->preemptions = integer(root, "preemptions");
    s->prefix_tokens_reused = integer(root, "prefix_tokens_reused");
    s->running = (int)integer(root, "running");
    s->waiting = (int)integer(root, "waiting");
    s->kv_pages_used = (int)integer(root, "kv_pages_used");
    s->kv_pages_total = (int)integer(root, "kv_pages_total");
    s->threads_per_rank = (int)integer(root, "threads_per_rank");
    s->context = (int)integer(root, "context");
    s->pid = (long)integer(root, "pid");
    for (size_t i = 0; i < 3; i++)
        s->layout[i] = (int)json_integer_value(json_array_get(json_object_get(root, "layout"), i));
out:
    json_decref(root);
    free(text);
    free(path);
    return rc;
}

void gw_status_line(const struct gw_status *s, char *text, size_t bytes)
{
    char left[64] = "";
    long eta_s = (long)(s->eta_s + 0.5);
    if (s->eta_s >= 0 && eta_s >= 3600)
        snprintf(left, sizeof left, ", %ld:%02ld:%02ld left", eta_s / 3600, eta_s / 60 % 60, eta_s % 60);
    else if (s->eta_s >= 0) snprintf(left, sizeof left, ", %ld:%02ld left", eta_s / 60, eta_s % 60);
    char failed[48] = "";
    if (s->requests_failed) snprintf(failed, sizeof failed, " (%lld failed)", (long long)s->requests_failed);
    snprintf(text, bytes, "%lld/%lld requests%s, %.0f tokens/s%s", (long long)(s->requests_done + s->requests_failed),
             (long long)s->requests_total, failed, s->generated_tokens_per_s, left);
}

void gw_progress_init(struct gw_progress *p, const char *out_dir, bool wanted)
{
    int terminal = isatty(STDERR_FILENO);
    *p = (struct gw_progress){.out_dir = out_dir,
                              .started_wall_s = gw_clock_wall_s(),
                              .shown_s = gw_clock_now_s(),
                              .interval_s = !wanted    ? 1e300
                                            : terminal ? 0.25
                                                       : 15,
                              .terminal = terminal};
}

void gw_progress_update(struct gw_progress *p)
{
    double now_s = gw_clock_now_s();
    if (now_s - p->shown_s < p->interval_s) return;
    p->shown_s = now_s;
    struct gw_status status;
    char line[256];
    if (gw_status_read(p->out_dir, &status) != GW_OK || status.updated_at < p->started_wall_s) return;
    gw_status_line(&status, line, sizeof line);
    if (p->terminal) {
        fprintf(stderr, "\r\033[K%s", line);
        line_on_terminal = true;
    } else {
        fprintf(stderr, "godwit: %s\n", line);
    }
}

void gw_progress_clear(void)
{
    if (line_on_terminal) fprintf(stderr, "\r\033[K");
    line_on_terminal = false;
}
