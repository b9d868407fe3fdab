/* See status.h. */
#include "report/status.h"

#include "base/file.h"
#include "base/mem.h"
#include "report/text.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int64_t integer(const json_t *root, const char *key)
{
    return (int64_t)json_integer_value(json_object_get(root, key));
}

static int small_integer(const json_t *root, const char *key)
{
    int64_t value = integer(root, key);
    return value < 0 ? 0 : value > INT32_MAX ? INT32_MAX : (int)value;
}

static double real(const json_t *root, const char *key)
{
    double value = json_number_value(json_object_get(root, key));
    return isfinite(value) ? value : 0;
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
    text_of(root, "phase", s->phase, sizeof s->phase);
    text_of(root, "model", s->model, sizeof s->model);
    text_of(root, "kernels", s->kernels, sizeof s->kernels);
    s->updated_at = real(root, "updated_at");
    s->elapsed_s = real(root, "elapsed_s");
    s->generated_tokens_per_s = real(root, "generated_tokens_per_s");
    s->recent_tokens_per_s = real(root, "recent_tokens_per_s");
    s->eta_s = real(root, "eta_s");
    s->requests_total = integer(root, "requests_total");
    s->requests_done = integer(root, "requests_done");
    s->requests_failed = integer(root, "requests_failed");
    s->generated_tokens = integer(root, "generated_tokens");
    s->recomputed_tokens = integer(root, "recomputed_tokens");
    s->computed_tokens = integer(root, "computed_tokens");
    s->restored_tokens = integer(root, "restored_tokens");
    s->notices = integer(root, "notices");
    s->plan = integer(root, "plan");
    s->launch = small_integer(root, "launch");
    s->ranks = small_integer(root, "ranks");
    s->lost_ranks = integer(root, "lost_ranks");
    s->resumed_tokens = integer(root, "resumed_tokens");
    s->preemptions = integer(root, "preemptions");
    s->prefix_tokens_reused = integer(root, "prefix_tokens_reused");
    s->running = small_integer(root, "running");
    s->waiting = small_integer(root, "waiting");
    s->kv_pages_used = small_integer(root, "kv_pages_used");
    s->kv_pages_total = small_integer(root, "kv_pages_total");
    s->threads_per_rank = small_integer(root, "threads_per_rank");
    s->context = small_integer(root, "context");
    s->pid = (long)integer(root, "pid");
    for (size_t i = 0; i < 3; i++)
        s->layout[i] = (int)json_integer_value(json_array_get(json_object_get(root, "layout"), i));
    for (int c = 0; c < GW_PAUSE_LOST; c++)
        s->lost_s[c] = real(json_object_get(root, "lost_s"), gw_pause_name((enum gw_pause_cause)c));
out:
    json_decref(root);
    free(text);
    free(path);
    return rc;
}

double gw_status_recompute_s(const struct gw_status *s)
{
    if (s->computed_tokens <= 0 || s->recomputed_tokens <= 0) return 0;
    double share = (double)s->recomputed_tokens / (double)s->computed_tokens;
    return s->elapsed_s * (share < 1 ? share : 1);
}

void gw_status_line(const struct gw_status *s, char *text, size_t bytes)
{
    char left[64] = "", failed[48] = "", duration[32];
    gw_text_duration(s->eta_s, duration, sizeof duration);
    if (s->eta_s >= 0) snprintf(left, sizeof left, ", %s left", duration);
    if (s->requests_failed) snprintf(failed, sizeof failed, " (%lld failed)", (long long)s->requests_failed);
    snprintf(text, bytes, "%lld/%lld requests%s, %.0f tokens/s%s", (long long)(s->requests_done + s->requests_failed),
             (long long)s->requests_total, failed, s->generated_tokens_per_s, left);
}
