/* See summary.h. */
#include "node/summary.h"

#include "base/log.h"
#include "report/page.h"
#include "report/text.h"

#include <stdlib.h>

/* "4x1x1, 3x1x1, 4x1x1": the layouts in their order, the first and last few of many. */
static void add_layouts(struct gw_buf *text, const struct gw_story *story)
{
    enum { FIRST = 4, LAST = 2 };
    int changes = 0, at = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < story->layout_count; i++) {
            const struct gw_story_layout *l = &story->layouts[i], *before = i ? l - 1 : NULL;
            if (before && before->data == l->data && before->tensor == l->tensor && before->pipeline == l->pipeline)
                continue;
            if (pass == 0) changes++;
            else if (changes <= FIRST + LAST || at < FIRST || at >= changes - LAST)
                gw_text_addf(text, "%s%dx%dx%d", at ? ", " : "", l->data, l->tensor, l->pipeline);
            else if (at == FIRST) gw_text_addf(text, ", .. (%d more)", changes - FIRST - LAST);
            at += pass;
        }
}

static void add_time(struct gw_buf *text, const struct gw_status *status, const struct gw_story *story)
{
    double all_s = story->end_s - story->begin_s, lost_s = 0, again_s = gw_status_recompute_s(status);
    char duration[40];
    if (all_s < 60) snprintf(duration, sizeof duration, "%.1f s", all_s);
    else gw_text_duration(all_s, duration, sizeof duration);
    for (int c = 0; c < GW_PAUSE_LOST; c++) lost_s += story->sums.sum_s[c];
    gw_text_addf(text, "time    %s", duration);
    if (lost_s + again_s > 0) gw_text_addf(text, "; lost %.1f s", lost_s + again_s);
    int shown = 0;
    for (int c = 0; c < GW_PAUSE_LOST; c++)
        if (story->sums.sum_s[c] > 0)
            gw_text_addf(text, "%s%s %.1f s", shown++ ? ", " : ": ", gw_pause_name((enum gw_pause_cause)c),
                         story->sums.sum_s[c]);
    if (again_s > 0) gw_text_addf(text, "%scomputing again %.1f s", shown ? ", " : ": ", again_s);
    gw_text_addf(text, "\n");
}

static void add_events(struct gw_buf *text, const struct gw_story *story)
{
    gw_text_addf(text, "events  %lld launch%s, %lld rank%s lost, %lld notice%s, %lld checkpoint%s; layouts ",
                 (long long)story->launches, story->launches == 1 ? "" : "es", (long long)story->lost_ranks,
                 story->lost_ranks == 1 ? "" : "s", (long long)story->notices, story->notices == 1 ? "" : "s",
                 (long long)story->checkpoints, story->checkpoints == 1 ? "" : "s");
    add_layouts(text, story);
    gw_text_addf(text, "\n");
}

void gw_summary_print(FILE *to, const char *out_dir, const char *digest)
{
    struct gw_story story = {0};
    struct gw_status status;
    struct gw_buf text = {0};
    int count;
    struct gw_history *history = gw_history_open(out_dir);
    const struct gw_sample *samples = gw_history_samples(history, &count);
    gw_story_read(&story, out_dir, samples, count);
    if (gw_status_read(out_dir, &status) != GW_OK) status = (struct gw_status){0};
    if (status.updated_at > 0) gw_story_alive(&story, status.updated_at);
    gw_story_finish(&story);
    if (story.launches) {
        add_time(&text, &status, &story);
        add_events(&text, &story);
        fwrite(text.data, 1, text.bytes, to);
        if (gw_page_write(out_dir, digest) == GW_OK) fprintf(to, "report  %s/report.html\n", out_dir);
        else gw_warn("%s", gw_error_detail());
    }
    gw_buf_free(&text);
    gw_story_free(&story);
    gw_history_close(history);
}
