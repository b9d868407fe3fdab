/* See metrics.h. */
#include "report/metrics.h"

#include "base/file.h"
#include "report/pause.h"
#include "report/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One metric for one key of status.json. */
static const struct {
    const char *name, *type, *key, *help;
} simple[] = {
    {"godwit_requests", "gauge", "requests_total", "Requests in the input."},
    {"godwit_requests_done_total", "counter", "requests_done", "Requests answered, earlier commands included."},
    {"godwit_requests_failed_total", "counter", "requests_failed", "Requests that cannot be answered."},
    {"godwit_tokens_committed_total", "counter", "generated_tokens", "Tokens generated and committed by this command."},
    {"godwit_tokens_computed_total", "counter", "computed_tokens",
     "Tokens run through the model: prompts, answers, and what was computed again."},
    {"godwit_tokens_recomputed_total", "counter", "recomputed_tokens",
     "Tokens whose KV was there once and had to be computed again."},
    {"godwit_tokens_restored_total", "counter", "restored_tokens", "Tokens whose KV came from a checkpoint."},
    {"godwit_tokens_resumed", "gauge", "resumed_tokens", "Tokens found committed when the present leader began."},
    {"godwit_prefix_tokens_reused_total", "counter", "prefix_tokens_reused",
     "Prompt tokens that another request's pages had already."},
    {"godwit_tokens_per_second", "gauge", "recent_tokens_per_s",
     "Committed tokens per second over the last ten seconds."},
    {"godwit_tokens_per_second_mean", "gauge", "generated_tokens_per_s",
     "Committed tokens per second since the command began."},
    {"godwit_ranks", "gauge", "ranks", "Ranks there are."},
    {"godwit_ranks_lost_total", "counter", "lost_ranks", "Ranks lost without notice."},
    {"godwit_notices_total", "counter", "notices", "Notices of ranks that will be taken away."},
    {"godwit_plans_total", "counter", "plan", "Plans made by the present launch."},
    {"godwit_preemptions_total", "counter", "preemptions", "Sequences that gave up their KV pages."},
    {"godwit_checkpoints_total", "counter", "checkpoints", "Checkpoints completed."},
    {"godwit_checkpoint_bytes_total", "counter", "checkpoint_bytes", "Bytes written to checkpoints."},
    {"godwit_kv_pages", "gauge", "kv_pages_total", "KV pages of all replicas, 32 tokens each."},
    {"godwit_kv_pages_used", "gauge", "kv_pages_used", "KV pages in use."},
    {"godwit_elapsed_seconds", "gauge", "elapsed_s", "Seconds since this command began to work."},
    {"godwit_last_update_timestamp_seconds", "gauge", "updated_at",
     "When these figures were written, seconds since 1970."},
};

static void add_head(struct gw_buf *text, const char *name, const char *type, const char *help)
{
    gw_text_addf(text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* `label` and `value_of_label` come beside `batch`; NULL: none. */
static void add_value(struct gw_buf *text, const char *name, const char *batch, const char *label,
                      const char *value_of_label, double value)
{
    gw_buf_add_text(text, name);
    gw_buf_add_text(text, "{batch=\"");
    gw_text_add_label(text, batch);
    if (label) {
        gw_buf_add_text(text, "\",");
        gw_buf_add_text(text, label);
        gw_buf_add_text(text, "=\"");
        gw_text_add_label(text, value_of_label);
    }
    gw_text_addf(text, "\"} %.17g\n", isfinite(value) ? value : 0.0);
}

static double number_of(const json_t *status, const char *key)
{
    return json_number_value(json_object_get(status, key));
}

static const char *text_of(const json_t *status, const char *key)
{
    const char *value = json_string_value(json_object_get(status, key));
    return value ? value : "";
}

static void add_info(struct gw_buf *text, const json_t *status, const char *batch)
{
    add_head(text, "godwit_info", "gauge", "What runs; always 1.");
    gw_buf_add_text(text, "godwit_info{batch=\"");
    gw_text_add_label(text, batch);
    gw_buf_add_text(text, "\",model=\"");
    gw_text_add_label(text, text_of(status, "model"));
    gw_buf_add_text(text, "\",kernels=\"");
    gw_text_add_label(text, text_of(status, "kernels"));
    gw_buf_add_text(text, "\"} 1\n");
}

void gw_metrics_add(struct gw_buf *text, const json_t *status, const char *batch)
{
    static const char *const states[] = {"running", "done", "stopped", "interrupted"};
    static const char *const axes[] = {"data", "tensor", "pipeline"};
    static const char *const sequences[] = {"running", "waiting"};
    const json_t *layout = json_object_get(status, "layout"), *lost = json_object_get(status, "lost_s");
    add_info(text, status, batch);
    for (size_t i = 0; i < sizeof simple / sizeof *simple; i++) {
        add_head(text, simple[i].name, simple[i].type, simple[i].help);
        add_value(text, simple[i].name, batch, NULL, NULL, number_of(status, simple[i].key));
    }
    add_head(text, "godwit_launches_total", "counter", "Launches of this command.");
    add_value(text, "godwit_launches_total", batch, NULL, NULL, number_of(status, "launch") + 1);
    if (number_of(status, "eta_s") >= 0) { /* -1: not known */
        add_head(text, "godwit_left_seconds", "gauge", "Seconds left at the mean pace of this command.");
        add_value(text, "godwit_left_seconds", batch, NULL, NULL, number_of(status, "eta_s"));
    }
    add_head(text, "godwit_state", "gauge", "1 for the state that the job is in.");
    for (size_t i = 0; i < sizeof states / sizeof *states; i++)
        add_value(text, "godwit_state", batch, "state", states[i], !strcmp(text_of(status, "state"), states[i]));
    add_head(text, "godwit_layout", "gauge", "Replicas (data), shards of a layer (tensor), stages (pipeline).");
    for (size_t i = 0; i < 3; i++)
        add_value(text, "godwit_layout", batch, "axis", axes[i], json_number_value(json_array_get(layout, i)));
    add_head(text, "godwit_sequences", "gauge", "Sequences at the heads of the replicas.");
    for (size_t i = 0; i < 2; i++)
        add_value(text, "godwit_sequences", batch, "state", sequences[i], number_of(status, sequences[i]));
    add_head(text, "godwit_lost_seconds_total", "counter",
             "Seconds in which part of the job or all of it stood still.");
    for (int c = 0; c < GW_PAUSE_LOST; c++)
        add_value(text, "godwit_lost_seconds_total", batch, "cause", gw_pause_name((enum gw_pause_cause)c),
                  number_of(lost, gw_pause_name((enum gw_pause_cause)c)));
}

gw_err gw_metrics_write(const char *out_dir, const json_t *status)
{
    struct gw_buf text = {0};
    char *path = gw_asprintf("%s/metrics.prom", out_dir), *batch = realpath(out_dir, NULL);
    gw_metrics_add(&text, status, batch ? batch : out_dir);
    gw_err rc = gw_file_replace(path, text.data, text.bytes, false);
    gw_buf_free(&text);
    free(path);
    free(batch);
    return rc;
}
