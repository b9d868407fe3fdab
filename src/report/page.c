/* See page.h. */
#include "report/page.h"

#include "base/clock.h"
#include "base/file.h"
#include "report/picture.h"
#include "report/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ROWS = 400, FIRST_ROWS = 100 };

/* Colours keep their meaning in light, dark and print; bars carry numbers, so that nothing is told by colour alone. */
static const char style[] =
    ":root{color-scheme:light dark;--fg:#1c2024;--mid:#5b6470;--line:#d4d8dd;--bg:#fff;--soft:#f3f5f7;--ink:#0b6e99}"
    "@media(prefers-color-scheme:dark){:root{--fg:#e6e8ea;--mid:#9aa4af;--line:#3a4149;--bg:#14171a;--soft:#1d2125;--"
    "ink:#4cb3dc}}"
    "@media "
    "print{:root{--fg:#000;--mid:#444;--line:#bbb;--bg:#fff;--soft:#f3f5f7;--ink:#0b6e99}body{max-width:none!important}"
    "*{print-color-adjust:exact;-webkit-print-color-adjust:exact}tr,svg{break-inside:avoid}}"
    "body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:70rem;margin:2rem "
    "auto;padding:0 1rem}"
    "h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.3rem 0}.mid{color:var(--mid)}"
    "dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.8rem;margin:1.2rem 0}"
    "dl div{background:var(--soft);padding:.5rem "
    ".7rem;border-radius:4px}dt{color:var(--mid);font-size:.8rem}dd{margin:0;font-size:1.15rem}"
    "code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem}th{text-align:left;color:var(--mid);font-weight:normal}"
    "td,th{padding:.2rem .6rem .2rem 0;border-bottom:1px solid "
    "var(--line);vertical-align:top}td.r,th.r{text-align:right;white-space:nowrap;"
    "font-variant-numeric:tabular-nums}td.w{overflow-wrap:anywhere}.bar{display:block;height:.7rem;margin-top:.4rem;"
    "min-width:0}"
    ".wide{overflow-x:auto}svg{width:100%;min-width:40rem;height:auto;font:11px system-ui,sans-serif}svg "
    "text{fill:var(--fg)}"
    "svg .l{text-anchor:end}svg .s{fill:var(--mid);font-size:10px}svg "
    ".b{text-anchor:middle;fill:#fff;pointer-events:none}"
    "svg .a path,svg .g{stroke:var(--line);stroke-width:.6;fill:none}svg .a text{text-anchor:middle;fill:var(--mid)}"
    "svg .t{fill:var(--ink);fill-opacity:.35;stroke:var(--ink);stroke-width:.8}svg "
    ".x{stroke:#c8323c;stroke-width:.7;stroke-dasharray:3 3}"
    "svg .y{fill:#5b6470;stroke:var(--bg);stroke-width:1}svg rect{stroke:var(--bg);stroke-width:.5}"
    ".c0{fill:#0b62a4;background:#0b62a4;stroke:#0b62a4}.c1{fill:#b35900;background:#b35900;stroke:#b35900}.c2{fill:#"
    "00795a;background:#00795a;stroke:#00795a}"
    ".c3{fill:#a8487f;background:#a8487f;stroke:#a8487f}.c4{fill:#3d7fb0;background:#3d7fb0;stroke:#3d7fb0}.c5{fill:#"
    "8a6d00;background:#8a6d00;stroke:#8a6d00}"
    ".c6{fill:#6a51a3;background:#6a51a3;stroke:#6a51a3}.c7{fill:#5f7332;background:#5f7332;stroke:#5f7332}.cw{fill:#"
    "9aa4af;background:#9aa4af;stroke:#9aa4af}"
    "svg .n{fill:none}"
    ".p0{fill:#d9a514;background:#d9a514}.p1{fill:#c8323c;background:#c8323c}.p2{fill:#7d1f52;background:#7d1f52}.p3{"
    "fill:#3d4650;background:#3d4650}"
    ".p4{fill:#7fb5d5;background:#7fb5d5}.p5{fill:#b9c0c7;background:#b9c0c7}.pr{background:#6a51a3}"
    ".k0{fill:#7d1f52}.k1{fill:#c8323c}.k2{fill:#d9a514}.k3{fill:#0b62a4}.k4{fill:#00795a}.k5{fill:#8f989f}.k6{fill:#"
    "5b6470}.k7{fill:#6a51a3}"
    "@media(prefers-color-scheme:dark){.p3{fill:#8793a0;background:#8793a0}.k0{fill:#c06a9a}}"
    ".legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0;font-size:.85rem}.legend "
    "i{display:inline-block;width:.8rem;"
    "height:.8rem;margin-right:.4rem;vertical-align:-.1rem}";

static void add_figure(struct gw_buf *html, const char *name, const char *fmt, ...) GW_PRINTF(3, 4);

static void add_figure(struct gw_buf *html, const char *name, const char *fmt, ...)
{
    char text[200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    gw_text_addf(html, "<div><dt>%s</dt><dd>", name);
    gw_text_add_html(html, text);
    gw_text_addf(html, "</dd></div>\n");
}

static void add_count(struct gw_buf *html, const char *name, int64_t count)
{
    char text[40];
    gw_text_count(count, text, sizeof text);
    add_figure(html, name, "%s", text);
}

static void add_totals(struct gw_buf *html, const struct gw_status *s, const struct gw_story *story, const char *digest)
{
    char text[40];
    gw_text_addf(html, "<dl>\n");
    if (s) {
        add_figure(html, "state", "%s", s->state);
        add_figure(html, "answered", "%lld of %lld", (long long)s->requests_done, (long long)s->requests_total);
        add_count(html, "cannot be answered", s->requests_failed);
        add_count(html, "tokens committed by this command", s->generated_tokens);
        add_figure(html, "tokens/s, mean", "%.1f", s->generated_tokens_per_s);
        add_figure(html, "layout at the end", "%d x %d x %d", s->layout[0], s->layout[1], s->layout[2]);
        add_count(html, "tokens recomputed", s->recomputed_tokens);
        add_count(html, "tokens restored", s->restored_tokens);
    }
    gw_text_duration(story->end_s - story->begin_s, text, sizeof text);
    add_figure(html, "time, first to last sign of life", "%s", text);
    add_figure(html, "launches", "%lld", (long long)story->launches);
    add_count(html, "ranks lost", story->lost_ranks);
    add_figure(html, "notices", "%lld", (long long)story->notices);
    gw_text_bytes((double)story->checkpoint_bytes, text, sizeof text);
    add_figure(html, "checkpoints", "%lld (%s)", (long long)story->checkpoints, text);
    gw_text_addf(html, "</dl>\n");
    if (digest) gw_text_addf(html, "<p>Digest of the output: <code>%.64s</code></p>\n", digest);
}

static void add_cause(struct gw_buf *html, const char *text, const char *colour, double seconds, double of_s)
{
    double share = of_s > 0 ? 100 * seconds / of_s : 0;
    gw_text_addf(html,
                 "<tr><td>%s</td><td class=\"r\">%.2f s</td><td class=\"r\">%.2f %%</td><td style=\"width:30%%\"><span "
                 "class=\"bar %s\" "
                 "style=\"width:%.2f%%\"></span></td></tr>\n",
                 text, seconds, share, colour, share < 100 ? share : 100);
}

static void add_lost(struct gw_buf *html, const struct gw_status *status, const struct gw_story *story)
{
    double all_s = story->end_s - story->begin_s;
    char colour[8];
    gw_text_addf(html, "<h2>Time lost</h2>\n<table><tr><th>cause</th><th class=\"r\">time</th><th class=\"r\">of "
                       "all</th><th></th></tr>\n");
    for (int c = 0; c < GW_PAUSE_LOST; c++) {
        snprintf(colour, sizeof colour, "p%d", c);
        add_cause(html, gw_pause_text((enum gw_pause_cause)c), colour, story->sums.sum_s[c], all_s);
    }
    if (status)
        add_cause(html, "tokens computed again (share of the steps, an estimate)", "pr", gw_status_recompute_s(status),
                  all_s);
    gw_text_addf(html,
                 "</table>\n<p class=\"mid\">In a repair or a change, replicas that it does not touch go on decoding. "
                 "Not lost: %.2f s of starting up, "
                 "%.2f s between a stop on request and the command that carried on.</p>\n",
                 story->sums.sum_s[GW_PAUSE_START], story->sums.sum_s[GW_PAUSE_STOPPED]);
}

static void add_row(struct gw_buf *html, const struct gw_story *story, const struct gw_story_mark *mark)
{
    char when[40], since[40];
    gw_text_time(mark->time_s, when, sizeof when);
    if (story->end_s - story->begin_s < 600) snprintf(since, sizeof since, "%.3f s", mark->time_s - story->begin_s);
    else gw_text_duration(mark->time_s - story->begin_s, since, sizeof since);
    gw_text_addf(html, "<tr><td class=\"r\">%s</td><td class=\"r\">%s</td><td>%s</td><td class=\"w\">", since, when,
                 gw_story_kind_name(mark->kind));
    gw_text_add_html(html, mark->text);
    gw_text_addf(html, "</td></tr>\n");
}

/* All of them; of very many the checkpoints are left out, and then the middle. */
static void add_events(struct gw_buf *html, const struct gw_story *story)
{
    bool brief = story->mark_count > MOST_ROWS;
    int wanted = 0, at = 0;
    for (int m = 0; m < story->mark_count; m++) wanted += !brief || story->marks[m].kind != GW_STORY_CHECKPOINT;
    gw_text_addf(html, "<h2>Events</h2>\n<div class=\"wide\"><table><tr><th class=\"r\">since the start</th><th "
                       "class=\"r\">time</th><th>kind</th>"
                       "<th>what</th></tr>\n");
    for (int m = 0; m < story->mark_count; m++) {
        if (brief && story->marks[m].kind == GW_STORY_CHECKPOINT) continue;
        if (wanted <= MOST_ROWS || at < FIRST_ROWS || at >= wanted - (MOST_ROWS - FIRST_ROWS))
            add_row(html, story, &story->marks[m]);
        else if (at == FIRST_ROWS)
            gw_text_addf(html,
                         "<tr><td></td><td></td><td></td><td class=\"mid\">%d events left out; all are in "
                         "events.jsonl</td></tr>\n",
                         wanted - MOST_ROWS);
        at++;
    }
    gw_text_addf(html, "</table></div>\n");
    if (brief && story->checkpoints)
        gw_text_addf(html, "<p class=\"mid\">%lld checkpoints are not listed.</p>\n", (long long)story->checkpoints);
    if (story->bad_lines)
        gw_text_addf(html, "<p class=\"mid\">%lld lines of events.jsonl could not be read.</p>\n",
                     (long long)story->bad_lines);
}

void gw_page_add(struct gw_buf *html, const char *out_dir, const struct gw_status *status, const struct gw_story *story,
                 const struct gw_sample *samples, int count, const char *digest)
{
    char when[40];
    gw_text_addf(html, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                       "content=\"width=device-width\">\n"
                       "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
                       "'unsafe-inline'\">\n<title>godwit: ");
    gw_text_add_html(html, out_dir);
    gw_text_addf(html, "</title>\n<style>%s</style></head>\n<body>\n<h1>", style);
    gw_text_add_html(html, out_dir);
    gw_text_addf(html, "</h1>\n<p class=\"mid\">");
    if (status) {
        gw_text_add_html(html, status->model);
        gw_text_addf(html, ", context %d, kernels ", status->context);
        gw_text_add_html(html, status->kernels);
        gw_text_addf(html, ". ");
    }
    gw_text_time(story->begin_s, when, sizeof when);
    gw_text_addf(html, "Began %s, ", when);
    gw_text_time(story->end_s, when, sizeof when);
    gw_text_addf(html, "last sign of life %s.</p>\n", when);
    add_totals(html, status, story, digest);
    gw_text_addf(html, "<h2>Timeline</h2>\n<div class=\"wide\">");
    gw_picture_add(html, story, samples, count);
    gw_text_addf(html, "</div>\n<p class=\"mid\">A row is a process of a host at a time, numbered replica.shard.stage; "
                       "point at anything for its times.</p>\n");
    add_lost(html, status, story);
    add_events(html, story);
    gw_text_time(gw_clock_wall_s(), when, sizeof when);
    gw_text_addf(html,
                 "<p class=\"mid\">Written %s by <code>godwit</code>; <code>godwit status --report</code> writes it "
                 "anew.</p>\n</body></html>\n",
                 when);
}

gw_err gw_page_write(const char *out_dir, const char *digest)
{
    gw_err rc = GW_OK;
    struct gw_status status;
    struct gw_story story = {0};
    struct gw_buf html = {0};
    char *path = gw_asprintf("%s/report.html", out_dir);
    struct gw_history *history = gw_history_open(out_dir);
    int count;
    const struct gw_sample *samples = gw_history_samples(history, &count);
    gw_story_read(&story, out_dir, samples, count);
    bool known = gw_status_read(out_dir, &status) == GW_OK;
    if (known && status.updated_at > 0) gw_story_alive(&story, status.updated_at);
    if (story.end_s == 0) FAIL(GW_ERR_NOT_FOUND, "%s has no events.jsonl: nothing has run there yet", out_dir);
    gw_story_finish(&story);
    gw_page_add(&html, out_dir, known ? &status : NULL, &story, samples, count, digest);
    TRY(gw_file_replace(path, html.data, html.bytes, false));
out:
    gw_buf_free(&html);
    gw_story_free(&story);
    gw_history_close(history);
    free(path);
    return rc;
}
