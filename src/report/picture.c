/* See picture.h. */
#include "report/picture.h"

#include "report/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 1000,
    LEFT = 120,
    RIGHT = 12,
    PLOT = WIDTH - LEFT - RIGHT,
    MOST_LANES = 600,
    MOST_TITLES = 1500, /* spans, each an element with a tooltip; more are drawn as paths */
    MOST_RUNS = 40000,
    MOST_LINES = 60, /* of losses, through all strips */
    BINS = PLOT / 2,
    MARK_STEP = 7, /* marks of a kind that are nearer than this are one */
    WAITS = GW_PICTURE_COLOURS
};

struct picture {
    struct gw_buf *out;
    const struct gw_story *story;
    double begin_s, span_s;
    int y; /* top of the next strip */
};

static double x_of(const struct picture *p, double time_s)
{
    double share = (time_s - p->begin_s) / p->span_s;
    return LEFT + PLOT * (share < 0 ? 0 : share > 1 ? 1 : share);
}

static void add_label(struct picture *p, int y, const char *text)
{
    gw_text_addf(p->out, "<text x=\"%d\" y=\"%d\" class=\"l\">", LEFT - 8, y);
    gw_text_add_html(p->out, text);
    gw_text_addf(p->out, "</text>");
}

/* Since the beginning: with fractions where these can be seen. */
static void text_since(const struct picture *p, double time_s, char *text, size_t bytes)
{
    double since_s = time_s - p->begin_s;
    if (p->span_s < 600) snprintf(text, bytes, "%.2f s", since_s);
    else gw_text_duration(since_s, text, bytes);
}

/* ---- axis ------------------------------------------------------------------------------------------------------ */

static double axis_step(double span_s)
{
    static const double steps[] = {0.1, 0.2, 0.5,  1,    2,    5,     10,    20,    30,    60,     120,   300,
                                   600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (span_s / steps[i] <= 10) return steps[i];
    return ceil(span_s / 10 / 604800) * 604800;
}

static void add_axis(struct picture *p, int top)
{
    double step_s = axis_step(p->span_s);
    gw_text_addf(p->out, "<g class=\"a\">");
    for (double t = 0; t <= p->span_s * 1.0001; t += step_s) {
        char text[40];
        double x = x_of(p, p->begin_s + t);
        if (step_s < 1) snprintf(text, sizeof text, "%.1f s", t);
        else if (p->span_s < 120) snprintf(text, sizeof text, "%.0f s", t);
        else gw_text_duration(t, text, sizeof text);
        gw_text_addf(p->out, "<path d=\"M%.1f %dV%d\"/><text x=\"%.1f\" y=\"%d\">%s</text>", x, top, p->y, x, p->y + 13,
                     text);
    }
    gw_text_addf(p->out, "</g>");
    p->y += 18;
}

/* ---- throughput ------------------------------------------------------------------------------------------------ */

/* Tokens of each bin: what two samples have between them is spread evenly over their time. */
static void fill_bins(const struct picture *p, const struct gw_sample *samples, int count, double *bins)
{
    double bin_s = p->span_s / BINS;
    for (int i = 1; i < count; i++) {
        double from_s = samples[i - 1].time_s - p->begin_s, to_s = samples[i].time_s - p->begin_s;
        double tokens = (double)(samples[i].tokens - samples[i - 1].tokens);
        if (tokens < 0) tokens = (double)samples[i].tokens; /* another command began to count */
        if (tokens <= 0 || to_s <= from_s || to_s <= 0 || from_s >= p->span_s) continue;
        int first = from_s > 0 ? (int)(from_s / bin_s) : 0, last = (int)(to_s / bin_s);
        for (int b = first; b <= last && b < BINS; b++) {
            double begin = fmax(from_s, b * bin_s), end = fmin(to_s, (b + 1) * bin_s);
            if (end > begin) bins[b] += tokens * (end - begin) / (to_s - from_s);
        }
    }
}

static double nice_above(double value)
{
    double unit = pow(10, floor(log10(value)));
    return value <= unit ? unit : value <= 2 * unit ? 2 * unit : value <= 5 * unit ? 5 * unit : 10 * unit;
}

static void add_throughput(struct picture *p, const struct gw_sample *samples, int count)
{
    enum { HIGH = 84 };
    double bins[BINS] = {0}, most = 0, bin_s = p->span_s / BINS;
    char text[32];
    int base = p->y + HIGH + 8;
    fill_bins(p, samples, count, bins);
    for (int b = 0; b < BINS; b++) most = fmax(most, bins[b] / bin_s);
    add_label(p, p->y + 12, "tokens/s");
    if (most > 0) {
        double top = nice_above(most);
        gw_text_count((int64_t)(top + 0.5), text, sizeof text);
        if (top < 10) snprintf(text, sizeof text, "%g", top);
        gw_text_addf(p->out, "<text x=\"%d\" y=\"%d\" class=\"l s\">%s</text><path class=\"g\" d=\"M%d %dH%d\"/>",
                     LEFT - 8, p->y + 26, text, LEFT, p->y + 8, WIDTH - RIGHT);
        gw_text_addf(p->out, "<path class=\"t\" d=\"M%d %d", LEFT, base);
        for (int b = 0, last = -1; b < BINS; b++) {
            int y = base - (int)(HIGH * bins[b] / bin_s / top + 0.5);
            if (y != last) gw_text_addf(p->out, "H%.1fV%d", LEFT + (double)PLOT * b / BINS, y);
            last = y;
        }
        gw_text_addf(p->out, "H%dV%dZ\"><title>tokens per second, at most %.1f</title></path>", WIDTH - RIGHT, base,
                     most);
    }
    gw_text_addf(p->out, "<text x=\"%d\" y=\"%d\" class=\"l s\">0</text><path class=\"g\" d=\"M%d %dH%d\"/>", LEFT - 8,
                 base, LEFT, base, WIDTH - RIGHT);
    p->y = base + 10;
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

static void add_marks_of(struct picture *p, enum gw_story_kind kind)
{
    const struct gw_story *s = p->story;
    bool any = false;
    for (int m = 0; m < s->mark_count;) {
        enum { NAMED = 6 };
        char since[40];
        if (s->marks[m].kind != kind) {
            m++;
            continue;
        }
        if (!any) add_label(p, p->y + 9, gw_story_kind_name(kind));
        any = true;
        double x = x_of(p, s->marks[m].time_s);
        gw_text_addf(p->out, "<circle class=\"k%d\" cx=\"%.1f\" cy=\"%d\" r=\"3.2\"><title>", (int)kind, x, p->y + 5);
        int count = 0;
        for (; m < s->mark_count; m++) {
            if (s->marks[m].kind != kind) continue;
            if (fabs(x_of(p, s->marks[m].time_s) - x) > MARK_STEP) break;
            if (count++ >= NAMED) continue;
            text_since(p, s->marks[m].time_s, since, sizeof since);
            gw_text_addf(p->out, "%s%s  ", count > 1 ? "\n" : "", since);
            gw_text_add_html(p->out, s->marks[m].text);
        }
        if (count > NAMED) gw_text_addf(p->out, "\nand %d more", count - NAMED);
        gw_text_addf(p->out, "</title></circle>");
    }
    if (any) p->y += 12;
}

/* A thin line for each loss, unless there are so many that they would be a curtain. */
static void add_loss_lines(struct picture *p, int top)
{
    const struct gw_story *s = p->story;
    int losses = 0;
    for (int m = 0; m < s->mark_count; m++) losses += s->marks[m].kind == GW_STORY_LOSS;
    if (!losses || losses > MOST_LINES) return;
    gw_text_addf(p->out, "<path class=\"x\" d=\"");
    for (int m = 0; m < s->mark_count; m++)
        if (s->marks[m].kind == GW_STORY_LOSS)
            gw_text_addf(p->out, "M%.1f %dV%d", x_of(p, s->marks[m].time_s), top, p->y);
    gw_text_addf(p->out, "\"/>");
}

/* ---- standstill and layouts ------------------------------------------------------------------------------------ */

static void add_pauses(struct picture *p)
{
    const struct gw_story *s = p->story;
    double drawn[GW_PAUSE_CAUSES];
    char text[40];
    for (int c = 0; c < GW_PAUSE_CAUSES; c++) drawn[c] = -1;
    add_label(p, p->y + 11, "standstill");
    for (int i = 0; i < s->pause_count; i++) {
        const struct gw_pause *pause = &s->pauses[i];
        double from = x_of(p, pause->from_s), to = x_of(p, pause->to_s);
        if (to < drawn[pause->cause] + 0.5) continue; /* lies within what is drawn */
        if (to < from + 1) to = from + 1;
        drawn[pause->cause] = to;
        text_since(p, pause->from_s, text, sizeof text);
        gw_text_addf(p->out,
                     "<rect class=\"p%d\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"14\"><title>%s: %.3f s, from %s "
                     "on</title></rect>",
                     (int)pause->cause, from, p->y, to - from, gw_pause_text(pause->cause), pause->to_s - pause->from_s,
                     text);
    }
    p->y += 20;
}

static bool same_layout(const struct gw_story_layout *a, const struct gw_story_layout *b)
{
    return a->data == b->data && a->tensor == b->tensor && a->pipeline == b->pipeline;
}

static void add_layout(struct picture *p, const struct gw_story_layout *l, double from, double width)
{
    gw_text_addf(p->out,
                 "<rect class=\"y\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"16\"><title>%d data x %d tensor x %d "
                 "pipeline</title></rect>",
                 from, p->y, width, l->data, l->tensor, l->pipeline);
    if (width > 44)
        gw_text_addf(p->out, "<text x=\"%.1f\" y=\"%d\" class=\"b\">%dx%dx%d</text>", from + width / 2, p->y + 12,
                     l->data, l->tensor, l->pipeline);
}

/* Each column of the drawing has the layout that was in force longest in it. */
static void add_layouts(struct picture *p)
{
    const struct gw_story *s = p->story;
    int best[PLOT];
    double longest[PLOT] = {0};
    add_label(p, p->y + 12, "layout");
    for (int c = 0; c < PLOT; c++) best[c] = -1;
    for (int i = 0; i < s->layout_count; i++) {
        double from = x_of(p, s->layouts[i].from_s) - LEFT, to = x_of(p, s->layouts[i].to_s) - LEFT;
        for (int c = (int)from; c < PLOT && c < to; c++) {
            double length = fmin(to, c + 1) - fmax(from, c);
            if (length <= longest[c]) continue;
            longest[c] = length;
            best[c] = i;
        }
    }
    for (int c = 0, next; c < PLOT; c = next) {
        for (next = c + 1; next < PLOT && (best[c] < 0) == (best[next] < 0); next++)
            if (best[c] >= 0 && !same_layout(&s->layouts[best[c]], &s->layouts[best[next]])) break;
        if (best[c] >= 0) add_layout(p, &s->layouts[best[c]], LEFT + c, next - c);
    }
    p->y += 22;
}

/* ---- ranks ----------------------------------------------------------------------------------------------------- */

static int colour_of(const struct gw_story_span *span)
{
    return span->replica < 0 ? WAITS : span->replica % GW_PICTURE_COLOURS;
}

static void add_class(struct picture *p, int colour)
{
    if (colour == WAITS) gw_text_addf(p->out, "class=\"cw");
    else gw_text_addf(p->out, "class=\"c%d", colour);
}

static void add_span(struct picture *p, const struct gw_story_span *span, int y, int high)
{
    const struct gw_story_tenant *tenant = &p->story->tenants[span->tenant];
    double from = x_of(p, span->from_s), to = x_of(p, span->to_s);
    char begin[40], end[40];
    text_since(p, span->from_s, begin, sizeof begin);
    text_since(p, span->to_s, end, sizeof end);
    if (to < from + 0.8) to = from + 0.8;
    gw_text_addf(p->out, "<rect ");
    add_class(p, colour_of(span));
    gw_text_addf(p->out, "\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"><title>", from, y, to - from, high);
    gw_text_add_html(p->out, p->story->hosts[tenant->host]);
    gw_text_addf(p->out, ", member %d, ", tenant->member);
    if (span->replica < 0) gw_text_addf(p->out, "waiting");
    else gw_text_addf(p->out, "replica %d, shard %d, stage %d", span->replica, span->shard, span->stage);
    gw_text_addf(p->out, ": %s to %s</title></rect>", begin, end);
    if (high >= 12 && to - from > 40 && span->replica >= 0)
        gw_text_addf(p->out, "<text x=\"%.1f\" y=\"%d\" class=\"b\">%d.%d.%d</text>", (from + to) / 2, y + high - 3,
                     span->replica, span->shard, span->stage);
}

/* Many spans: columns of each row have one colour each, and runs of columns become one path per colour. Returns the number of runs. */
static int fill_columns(const struct picture *p, const int *lanes, int lane_count, int columns, signed char *grid)
{
    const struct gw_story *s = p->story;
    int runs = 0;
    memset(grid, -1, (size_t)lane_count * (size_t)columns);
    for (int i = 0; i < s->span_count; i++) {
        int lane = lanes[s->spans[i].tenant];
        if (lane >= lane_count) continue;
        int from = (int)((x_of(p, s->spans[i].from_s) - LEFT) * columns / PLOT),
            to = (int)((x_of(p, s->spans[i].to_s) - LEFT) * columns / PLOT);
        for (int c = from; c <= to && c < columns; c++) grid[lane * columns + c] = (signed char)colour_of(&s->spans[i]);
    }
    for (int l = 0; l < lane_count; l++)
        for (int c = 0; c < columns; c++)
            runs += grid[l * columns + c] >= 0 && (c == 0 || grid[l * columns + c] != grid[l * columns + c - 1]);
    return runs;
}

static void add_columns(struct picture *p, const int *lanes, int lane_count, int step, int high)
{
    signed char *grid = gw_alloc((size_t)lane_count * PLOT + 1, 1);
    int columns = PLOT;
    while (fill_columns(p, lanes, lane_count, columns, grid) > MOST_RUNS && columns > 40) columns /= 2;
    for (int colour = 0; colour <= WAITS; colour++) {
        bool any = false;
        for (int l = 0; l < lane_count; l++)
            for (int c = 0, next; c < columns; c = next) {
                for (next = c + 1; next < columns && grid[l * columns + next] == grid[l * columns + c]; next++)
                    continue;
                if (grid[l * columns + c] != colour) continue;
                if (!any) {
                    gw_text_addf(p->out, "<path ");
                    add_class(p, colour);
                    gw_text_addf(p->out, " n\" stroke-width=\"%d\" d=\"", high);
                }
                any = true;
                gw_text_addf(p->out, "M%g %gh%g", floor(LEFT + (double)PLOT * c / columns + 0.5),
                             p->y + l * step + high / 2.0, floor((double)PLOT * (next - c) / columns + 0.5));
            }
        if (any) gw_text_addf(p->out, "\"/>");
    }
    free(grid);
}

/* The names of hosts beside the first of their rows, as far as there is room. */
static void add_hosts(struct picture *p, const int *hosts, int lane_count, int step)
{
    int free_y = 0;
    for (int l = 0; l < lane_count; l++) {
        int y = p->y + l * step + (step > 10 ? 11 : 8);
        if (hosts[l] < 0 || (l > 0 && hosts[l] == hosts[l - 1]) || y < free_y) continue;
        char name[24];
        snprintf(name, sizeof name, "%.17s", p->story->hosts[hosts[l]]);
        if (strlen(p->story->hosts[hosts[l]]) > 17) strcpy(name + 15, "..");
        add_label(p, y, name);
        free_y = y + 11;
    }
}

static void add_ranks(struct picture *p)
{
    const struct gw_story *s = p->story;
    int *lanes = gw_alloc((size_t)s->tenant_count + 1, sizeof *lanes), *hosts;
    int count = gw_story_lanes(s, false, lanes, &hosts);
    if (count > MOST_LANES) {
        free(hosts);
        count = gw_story_lanes(s, true, lanes, &hosts);
    }
    int drawn = count < MOST_LANES ? count : MOST_LANES;
    int step = drawn <= 40    ? 17
               : drawn <= 100 ? 10
               : drawn <= 250 ? 5
                              : 3,
        high = step > 10  ? step - 3
               : step > 3 ? step - 1
                          : 2;
    add_hosts(p, hosts, drawn, step);
    if (s->span_count > MOST_TITLES) add_columns(p, lanes, drawn, step, high);
    else
        for (int i = 0; i < s->span_count; i++)
            if (lanes[s->spans[i].tenant] < drawn)
                add_span(p, &s->spans[i], p->y + lanes[s->spans[i].tenant] * step, high);
    if (count && hosts[0] < 0) add_label(p, p->y + 11, "ranks, any host");
    p->y += drawn * step + 4;
    if (count > drawn) {
        gw_text_addf(p->out, "<text x=\"%d\" y=\"%d\">%d more rows are not drawn</text>", LEFT, p->y + 10,
                     count - drawn);
        p->y += 14;
    }
    free(lanes);
    free(hosts);
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

static void add_legend(struct picture *p)
{
    const struct gw_story *s = p->story;
    int most = -1;
    bool waits = false, causes[GW_PAUSE_CAUSES] = {false};
    for (int i = 0; i < s->span_count; i++) {
        waits |= s->spans[i].replica < 0;
        if (s->spans[i].replica > most) most = s->spans[i].replica;
    }
    for (int i = 0; i < s->pause_count; i++) causes[s->pauses[i].cause] = true;
    gw_text_addf(p->out, "<ul class=\"legend\">");
    for (int r = 0; r <= most && r < GW_PICTURE_COLOURS; r++)
        gw_text_addf(p->out, "<li><i class=\"c%d\"></i>replica %d%s</li>", r, r,
                     most >= r + GW_PICTURE_COLOURS ? ", .." : "");
    if (waits) gw_text_addf(p->out, "<li><i class=\"cw\"></i>waits</li>");
    for (int c = 0; c < GW_PAUSE_CAUSES; c++)
        if (causes[c])
            gw_text_addf(p->out, "<li><i class=\"p%d\"></i>%s</li>", c, gw_pause_text((enum gw_pause_cause)c));
    gw_text_addf(p->out, "</ul>\n");
}

void gw_picture_add(struct gw_buf *html, const struct gw_story *story, const struct gw_sample *samples, int count)
{
    struct gw_buf body = {0}, axis = {0};
    char span[40];
    struct picture p = {
        .out = &body, .story = story, .begin_s = story->begin_s, .span_s = story->end_s - story->begin_s, .y = 4};
    if (!(p.span_s >= 0.1)) p.span_s = 0.1;
    add_throughput(&p, samples, count);
    int top = p.y;
    for (int k = 0; k < GW_STORY_KINDS; k++) add_marks_of(&p, (enum gw_story_kind)k);
    p.y += 6;
    add_pauses(&p);
    add_layouts(&p);
    add_ranks(&p);
    add_loss_lines(&p, top);
    p.out = &axis; /* beneath all else */
    add_axis(&p, 12);
    gw_text_duration(p.span_s, span, sizeof span);
    gw_text_addf(
        html,
        "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"pt pd\"><title id=\"pt\">Timeline of the job</title>"
        "<desc id=\"pd\">Over %s: %lld launches, %lld losses, %lld notices, %lld plans; %d processes on %d hosts. The "
        "same is in the tables "
        "below.</desc>\n",
        WIDTH, p.y, span, (long long)story->launches, (long long)story->losses, (long long)story->notices,
        (long long)story->plans, story->tenant_count, story->host_count);
    gw_buf_add(html, axis.data, axis.bytes);
    gw_buf_add(html, body.data, body.bytes);
    gw_text_addf(html, "</svg>\n");
    p.out = html;
    add_legend(&p);
    gw_buf_free(&body);
    gw_buf_free(&axis);
}
