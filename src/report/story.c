/* See story.h. */
#include "report/story.h"

#include "report/history.h"
#include "report/text.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TENANTS = 1000000, MOST_SPANS = 4000000, MOST_OPEN = 100000, MOST_LINE = 64 << 20 };

/* Makes room for one more element: sizes double. */
#define ROOM(array, count)                                                                                             \
    do {                                                                                                               \
        if (((count) & ((count)-1)) == 0)                                                                              \
            (array) = gw_realloc((array), (size_t)(count) ? 2 * (size_t)(count) : 1, sizeof *(array));                 \
    } while (0)

void gw_story_free(struct gw_story *s)
{
    for (int h = 0; h < s->host_count; h++) free(s->hosts[h]);
    for (int m = 0; m < s->mark_count; m++) free(s->marks[m].text);
    free(s->hosts);
    free(s->tenants);
    free(s->spans);
    free(s->layouts);
    free(s->pauses);
    free(s->marks);
    free(s->open_spans);
    *s = (struct gw_story){0};
}

static double number_of(const json_t *event, const char *key)
{
    double value = json_number_value(json_object_get(event, key));
    return isfinite(value) ? value : 0;
}

static int small_integer(const json_t *value, int otherwise)
{
    json_int_t number = json_integer_value(value);
    return json_is_integer(value) && number >= 0 && number < 1 << 30 ? (int)number : otherwise;
}

static void note_time(struct gw_story *s, double time_s)
{
    if (s->begin_s == 0 || time_s < s->begin_s) s->begin_s = time_s;
    if (time_s > s->end_s) s->end_s = time_s;
}

static void add_mark(struct gw_story *s, double time_s, enum gw_story_kind kind, char *text)
{
    ROOM(s->marks, s->mark_count);
    s->marks[s->mark_count++] = (struct gw_story_mark){.time_s = time_s, .kind = kind, .text = text};
}

static void add_pause(struct gw_story *s, const struct gw_pause *pause)
{
    ROOM(s->pauses, s->pause_count);
    s->pauses[s->pause_count++] = *pause;
}

static void begin_pause(struct gw_story *s, enum gw_pause_cause cause, double since_s)
{
    struct gw_pause closed;
    if (since_s > 0 && gw_pauses_begin(&s->sums, cause, since_s, &closed)) add_pause(s, &closed);
}

static void end_pause(struct gw_story *s, double now_s)
{
    struct gw_pause closed;
    if (gw_pauses_end(&s->sums, now_s, &closed)) add_pause(s, &closed);
}

/* ---- who is where ---------------------------------------------------------------------------------------------- */

static int host_of(struct gw_story *s, const char *name)
{
    for (int h = s->host_count - 1; h >= 0; h--)
        if (!strcmp(s->hosts[h], name)) return h;
    ROOM(s->hosts, s->host_count);
    s->hosts[s->host_count] = gw_strdup(name);
    return s->host_count++;
}

static int find_open(const struct gw_story *s, int member)
{
    for (int i = 0; i < s->open_count; i++)
        if (s->tenants[s->spans[s->open_spans[i]].tenant].member == member) return i;
    return -1;
}

static void close_span(struct gw_story *s, int open, double time_s)
{
    struct gw_story_span *span = &s->spans[s->open_spans[open]];
    span->to_s = time_s > span->from_s ? time_s : span->from_s;
    s->tenants[span->tenant].to_s = span->to_s;
    s->open_spans[open] = s->open_spans[--s->open_count];
}

static void close_all(struct gw_story *s, double time_s)
{
    while (s->open_count) close_span(s, s->open_count - 1, time_s);
    if (s->layout_count && s->layouts[s->layout_count - 1].to_s == 0) s->layouts[s->layout_count - 1].to_s = time_s;
}

/* A member has a place from now on: a new tenant, or another span of one that is there. */
static void seat(struct gw_story *s, const json_t *rank, double time_s)
{
    int member = small_integer(json_object_get(rank, "member"), -1), tenant = -1;
    const char *host = json_string_value(json_object_get(rank, "host"));
    const json_t *place = json_object_get(rank, "layout");
    if (member < 0 || !host || s->span_count >= MOST_SPANS || s->open_count >= MOST_OPEN) return;
    int open = find_open(s, member);
    if (open >= 0) {
        tenant = s->spans[s->open_spans[open]].tenant;
        close_span(s, open, time_s);
        if (strcmp(s->hosts[s->tenants[tenant].host], host)) tenant = -1;
    }
    if (tenant < 0 && s->tenant_count >= MOST_TENANTS) return;
    if (tenant < 0) {
        ROOM(s->tenants, s->tenant_count);
        tenant = s->tenant_count++;
        s->tenants[tenant] = (struct gw_story_tenant){.host = host_of(s, host), .member = member, .from_s = time_s};
    }
    ROOM(s->spans, s->span_count);
    s->spans[s->span_count] = (struct gw_story_span){.tenant = tenant,
                                                     .replica = small_integer(json_array_get(place, 0), -1),
                                                     .shard = small_integer(json_array_get(place, 1), 0),
                                                     .stage = small_integer(json_array_get(place, 2), 0),
                                                     .from_s = time_s};
    ROOM(s->open_spans, s->open_count);
    s->open_spans[s->open_count++] = s->span_count++;
}

/* ---- one event ------------------------------------------------------------------------------------------------- */

/* A launch begins. It is lost time unless it is the first, follows a stop on request, or stood by to take over from the last one. */
static void on_start(struct gw_story *s, const json_t *event, double time_s)
{
    double silent_s = number_of(event, "silent_since"), launched_s = number_of(event, "launched_at");
    bool first = s->launches == 0, taken_over = s->asked && number_of(event, "launch") > 0;
    if (launched_s <= 0 || launched_s > time_s) launched_s = time_s;
    if (silent_s < s->worked_s) silent_s = s->worked_s;
    if (silent_s > time_s) silent_s = time_s;
    if (!first && launched_s < silent_s) launched_s = silent_s; /* it stood by */
    if (!first && s->running) {
        s->losses++;
        add_mark(s, silent_s, GW_STORY_LOSS, gw_strdup("the launch was lost"));
    }
    if (!first) {
        close_all(s, silent_s);
        end_pause(s, silent_s);
    }
    if (!first && !taken_over) {
        begin_pause(s, s->asked ? GW_PAUSE_STOPPED : GW_PAUSE_WAITING, silent_s);
        end_pause(s, launched_s);
    }
    begin_pause(s, taken_over ? GW_PAUSE_CHANGE : first || s->asked ? GW_PAUSE_START : GW_PAUSE_RELAUNCH, launched_s);
    note_time(s, launched_s);
    s->launches++;
    s->asked = false;
    s->running = true;
}

static void on_plan(struct gw_story *s, const json_t *event, double time_s)
{
    const json_t *layout = json_object_get(event, "layout"), *rank;
    double lost_s = number_of(event, "lost_at");
    size_t i;
    if (lost_s > 0 && lost_s <= time_s) begin_pause(s, GW_PAUSE_REPAIR, lost_s);
    else lost_s = time_s;
    struct gw_story_layout now = {.data = small_integer(json_array_get(layout, 0), 0),
                                  .tensor = small_integer(json_array_get(layout, 1), 0),
                                  .pipeline = small_integer(json_array_get(layout, 2), 0),
                                  .ranks = small_integer(json_object_get(event, "ranks"), 0),
                                  .from_s = time_s};
    struct gw_story_layout *last = s->layout_count ? &s->layouts[s->layout_count - 1] : NULL;
    if (last && last->to_s == 0) last->to_s = lost_s > last->from_s ? lost_s : last->from_s;
    if (now.data > 0) {
        ROOM(s->layouts, s->layout_count);
        s->layouts[s->layout_count++] = now;
    }
    json_array_foreach(json_object_get(event, "gone"), i, rank)
    {
        int open = find_open(s, small_integer(json_object_get(rank, "member"), -1));
        if (open >= 0) close_span(s, open, lost_s);
    }
    json_array_foreach(json_object_get(event, "seats"), i, rank) seat(s, rank, time_s);
    s->plans++;
}

static void on_loss(struct gw_story *s, const json_t *event, double lost_s)
{
    const json_t *rank;
    size_t i;
    json_array_foreach(json_object_get(event, "members"), i, rank)
    {
        int open = find_open(s, small_integer(json_object_get(rank, "member"), -1));
        if (open >= 0) close_span(s, open, lost_s);
    }
    s->losses++;
    s->lost_ranks += small_integer(json_object_get(event, "ranks"), 0);
    begin_pause(s, GW_PAUSE_REPAIR, lost_s);
}

static void on_leave(struct gw_story *s, const json_t *event, double time_s)
{
    const json_t *member;
    size_t i;
    json_array_foreach(json_object_get(event, "members"), i, member)
    {
        int open = find_open(s, small_integer(member, -1));
        if (open >= 0) close_span(s, open, time_s);
    }
}

static void on_end(struct gw_story *s, const char *name, double time_s)
{
    close_all(s, time_s);
    end_pause(s, time_s);
    s->asked = strcmp(name, "interrupted") != 0; /* which is a loss that was told beforehand */
    s->running = false;
}

/* ---- in words -------------------------------------------------------------------------------------------------- */

static const struct {
    const char *event;
    enum gw_story_kind kind;
} kinds[] = {
    {"start", GW_STORY_LAUNCH},      {"loss", GW_STORY_LOSS},      {"notice", GW_STORY_NOTICE},
    {"drain", GW_STORY_PLAN},        {"plan", GW_STORY_PLAN},      {"ready", GW_STORY_PLAN},
    {"recovered", GW_STORY_PLAN},    {"layout", GW_STORY_NOTICE},  {"more", GW_STORY_GROW},
    {"grow", GW_STORY_GROW},         {"leave", GW_STORY_GROW},     {"checkpoint", GW_STORY_CHECKPOINT},
    {"save", GW_STORY_CHECKPOINT},   {"leader", GW_STORY_PLAN},    {"launch", GW_STORY_LAUNCH},
    {"supervisor", GW_STORY_LAUNCH}, {"node-lost", GW_STORY_LOSS}, {"nodes", GW_STORY_GROW},
    {"done", GW_STORY_END},          {"stopped", GW_STORY_END},    {"interrupted", GW_STORY_END},
    {"stalled", GW_STORY_LOSS},
};

static enum gw_story_kind kind_of(const char *name)
{
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (!strcmp(kinds[k].event, name)) return kinds[k].kind;
    return GW_STORY_OTHER;
}

const char *gw_story_kind_name(enum gw_story_kind kind)
{
    static const char *const names[GW_STORY_KINDS] = {"launch",       "loss",       "notice", "plan",
                                                      "nodes, ranks", "checkpoint", "end",    "other"};
    return names[kind];
}

/* "member 1 (node2), member 3 (node2)", or their number when there are many. */
static void add_members(struct gw_buf *out, const json_t *list)
{
    const json_t *item;
    size_t i, count = json_array_size(list);
    json_array_foreach(list, i, item)
    {
        const json_t *member = json_is_object(item) ? json_object_get(item, "member") : item;
        const char *host = json_string_value(json_object_get(item, "host"));
        if (i == 6) gw_text_addf(out, ", and %zu more", count - i);
        if (i >= 6) break;
        gw_text_addf(out, "%smember %d", i ? ", " : "", small_integer(member, -1));
        if (host) gw_text_addf(out, " (%.80s)", host);
    }
}

static const char *plural(double count)
{
    return count == 1 ? "" : "s";
}

/* Whatever else an event says: key value, key value. */
static void add_fields(struct gw_buf *out, const json_t *event)
{
    const char *key;
    json_t *value;
    int shown = 0;
    json_object_foreach((json_t *)event, key, value)
    {
        if (!strcmp(key, "time") || !strcmp(key, "event") || shown >= 8) continue;
        if (!json_is_string(value) && !json_is_number(value) && !json_is_boolean(value)) continue;
        gw_text_addf(out, "%s%.40s ", shown++ ? ", " : ": ", key);
        if (json_is_string(value)) gw_text_addf(out, "%.120s", json_string_value(value));
        else if (json_is_boolean(value)) gw_text_addf(out, "%s", json_is_true(value) ? "yes" : "no");
        else gw_text_addf(out, "%.6g", json_number_value(value));
    }
}

static const char *string_of(const json_t *event, const char *key)
{
    const char *value = json_string_value(json_object_get(event, key));
    return value ? value : "?";
}

static void add_plan(struct gw_buf *out, const json_t *event)
{
    const json_t *layout = json_object_get(event, "layout");
    gw_text_addf(out, "plan %.0f: %d x %d x %d on %.0f ranks", number_of(event, "plan"),
                 small_integer(json_array_get(layout, 0), 0), small_integer(json_array_get(layout, 1), 0),
                 small_integer(json_array_get(layout, 2), 0), number_of(event, "ranks"));
    if (number_of(event, "replicas_kept") > 0)
        gw_text_addf(out, ", %.0f replicas kept", number_of(event, "replicas_kept"));
    if (number_of(event, "sequences_adopted") > 0)
        gw_text_addf(out, ", %.0f sequences moved", number_of(event, "sequences_adopted"));
}

static void add_text(struct gw_buf *out, const json_t *event, const char *name)
{
    const double mib = 1 << 20;
    if (!strcmp(name, "plan")) add_plan(out, event);
    else if (!strcmp(name, "start")) {
        gw_text_addf(out, "launch %.0f with %.0f ranks: %.0f of %.0f requests answered before",
                     number_of(event, "launch") + 1, number_of(event, "ranks"), number_of(event, "answered"),
                     number_of(event, "requests"));
        if (number_of(event, "resumed_tokens") > 0)
            gw_text_addf(out, ", %.0f tokens found committed", number_of(event, "resumed_tokens"));
    } else if (!strcmp(name, "loss")) {
        gw_text_addf(out, "lost %.0f rank%s: ", number_of(event, "ranks"), plural(number_of(event, "ranks")));
        add_members(out, json_object_get(event, "members"));
    } else if (!strcmp(name, "leave")) {
        gw_text_addf(out, "told to leave: ");
        add_members(out, json_object_get(event, "members"));
    } else if (!strcmp(name, "notice")) {
        if (number_of(event, "member") < 0) gw_text_addf(out, "notice: all ranks go");
        else gw_text_addf(out, "notice: member %.0f goes", number_of(event, "member"));
        gw_text_addf(out, " in %.1f s", number_of(event, "grace_s"));
    } else if (!strcmp(name, "ready")) {
        gw_text_addf(out, "ready %.3f s after the plan; %.1f MiB of KV and %.1f MiB of weights moved",
                     number_of(event, "since_plan_s"), number_of(event, "kv_bytes_moved") / mib,
                     number_of(event, "weight_bytes_moved") / mib);
    } else if (!strcmp(name, "recovered")) {
        gw_text_addf(out, "tokens again %.3f s after the loss", number_of(event, "token_s"));
    } else if (!strcmp(name, "checkpoint")) {
        gw_text_addf(out, "checkpoint: %.1f MiB", number_of(event, "bytes") / mib);
    } else if (!strcmp(name, "layout")) {
        const json_t *layout = json_object_get(event, "layout");
        gw_text_addf(out, "layout %d x %d x %d asked for", small_integer(json_array_get(layout, 0), 0),
                     small_integer(json_array_get(layout, 1), 0), small_integer(json_array_get(layout, 2), 0));
    } else if (!strcmp(name, "grow"))
        gw_text_addf(out, "%.0f rank%s started", number_of(event, "ranks"),
                     number_of(event, "ranks") == 1 ? " is" : "s are");
    else if (!strcmp(name, "more"))
        gw_text_addf(out, "%.0f more rank%s asked for", number_of(event, "ranks"), plural(number_of(event, "ranks")));
    else if (!strcmp(name, "stalled"))
        gw_text_addf(out, "nothing was computed for %.0f s; the launch is ended", number_of(event, "seconds"));
    else if (!strcmp(name, "drain")) gw_text_addf(out, "decoding pauses for a new plan");
    else if (!strcmp(name, "leader"))
        gw_text_addf(out, "another leader takes over %.0f ranks", number_of(event, "ranks"));
    else if (!strcmp(name, "node-lost")) gw_text_addf(out, "node %.80s is lost", string_of(event, "name"));
    else if (!strcmp(name, "nodes"))
        gw_text_addf(out, "nodes change: %.0f more, %.0f leaving; going over to a new launch", number_of(event, "more"),
                     number_of(event, "leaving"));
    else if (!strcmp(name, "launch"))
        gw_text_addf(out, "launch %.0f is started%s: %.0f ranks on %.200s", number_of(event, "launch") + 1,
                     json_is_true(json_object_get(event, "standby")) ? " and stands by" : "", number_of(event, "ranks"),
                     string_of(event, "hosts"));
    else if (!strcmp(name, "supervisor"))
        gw_text_addf(out, "node %.80s supervises the job (term %.0f)", string_of(event, "node"),
                     number_of(event, "term"));
    else if (kind_of(name) == GW_STORY_END)
        gw_text_addf(out, "%s: %.0f answered, %.0f failed", name, number_of(event, "answered"),
                     number_of(event, "failed"));
    else {
        gw_text_addf(out, "%.60s", name);
        add_fields(out, event);
    }
}

/* A line that was cut off by a crash has the next event behind it, on the same line. */
static json_t *parse(const char *line, size_t bytes)
{
    static const char begin[] = "{\"time\":";
    json_t *event = json_loadb(line, bytes, 0, NULL);
    for (size_t at = bytes; !event && at-- > 1;) {
        if (line[at] != '{' || bytes - at < sizeof begin - 1 || memcmp(line + at, begin, sizeof begin - 1)) continue;
        event = json_loadb(line + at, bytes - at, 0, NULL);
        break;
    }
    if (json_is_object(event) && number_of(event, "time") > 0 && json_is_string(json_object_get(event, "event")))
        return event;
    json_decref(event);
    return NULL;
}

static char *text_of(const json_t *event, const char *name)
{
    struct gw_buf text = {0};
    add_text(&text, event, name);
    gw_buf_add(&text, "", 1);
    return (char *)text.data;
}

char *gw_story_text(const char *line, size_t bytes, double *time_s, enum gw_story_kind *kind)
{
    json_t *event = parse(line, bytes);
    if (!event) return NULL;
    const char *name = json_string_value(json_object_get(event, "event"));
    char *text = text_of(event, name);
    *time_s = number_of(event, "time");
    *kind = kind_of(name);
    json_decref(event);
    return text;
}

/* ---- line by line ---------------------------------------------------------------------------------------------- */

void gw_story_alive(struct gw_story *s, double time_s)
{
    note_time(s, time_s);
    if (time_s > s->worked_s) s->worked_s = time_s;
}

void gw_story_line(struct gw_story *s, const char *line, size_t bytes)
{
    json_t *event = parse(line, bytes);
    if (!event) {
        s->bad_lines += bytes > 0;
        return;
    }
    const char *name = json_string_value(json_object_get(event, "event"));
    double time_s = number_of(event, "time"), lost_s = number_of(event, "lost_at");
    bool loss = !strcmp(name, "loss") && lost_s > 0 && lost_s <= time_s;
    if (!strcmp(name, "start")) on_start(s, event, time_s);
    else if (!strcmp(name, "plan")) on_plan(s, event, time_s);
    else if (!strcmp(name, "loss")) on_loss(s, event, loss ? lost_s : time_s);
    else if (!strcmp(name, "leave")) on_leave(s, event, time_s);
    else if (!strcmp(name, "drain")) begin_pause(s, GW_PAUSE_CHANGE, time_s);
    else if (!strcmp(name, "ready")) end_pause(s, time_s);
    else if (!strcmp(name, "notice")) s->notices++;
    else if (!strcmp(name, "checkpoint")) {
        s->checkpoints++;
        s->checkpoint_bytes += (int64_t)number_of(event, "bytes");
    } else if (kind_of(name) == GW_STORY_END) on_end(s, name, time_s);
    if (json_object_get(event, "node")) note_time(s, time_s);
    else gw_story_alive(s, time_s);
    add_mark(s, loss ? lost_s : time_s, kind_of(name), text_of(event, name));
    json_decref(event);
}

void gw_story_finish(struct gw_story *s)
{
    close_all(s, s->end_s);
    end_pause(s, s->end_s);
}

void gw_story_read(struct gw_story *s, const char *out_dir, const struct gw_sample *samples, int count)
{
    char *path = gw_asprintf("%s/events.jsonl", out_dir), *line = NULL;
    size_t room = 0;
    int next = 0;
    FILE *file = fopen(path, "re");
    for (ssize_t bytes; file && (bytes = getline(&line, &room, file)) > 0;) {
        double time_s = 0;
        if (bytes > MOST_LINE) continue;
        if (line[bytes - 1] == '\n') bytes--;
        if (sscanf(line, "{\"time\":%lf", &time_s) == 1)
            for (; next < count && samples[next].time_s <= time_s; next++) gw_story_alive(s, samples[next].time_s);
        gw_story_line(s, line, (size_t)bytes);
    }
    for (; next < count; next++) gw_story_alive(s, samples[next].time_s);
    if (file) fclose(file);
    free(line);
    free(path);
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

int gw_story_lanes(const struct gw_story *s, bool any_host, int *lanes, int **hosts_of_lanes)
{
    struct lane {
        double free_s;
        int host, number;
    } *rows = gw_alloc((size_t)s->tenant_count + 1, sizeof *rows);
    int count = 0, *order, *hosts;
    for (int t = 0; t < s->tenant_count; t++) {
        const struct gw_story_tenant *tenant = &s->tenants[t];
        int found = -1;
        for (int l = 0; l < count && found < 0; l++)
            if (rows[l].free_s <= tenant->from_s && (any_host || rows[l].host == tenant->host)) found = l;
        if (found < 0) {
            found = count++;
            rows[found].host = any_host ? -1 : tenant->host;
        }
        rows[found].free_s = tenant->to_s;
        lanes[t] = found;
    }
    order = gw_alloc((size_t)count + 1, sizeof *order);
    hosts = gw_alloc((size_t)count + 1, sizeof *hosts);
    int placed = 0;
    for (int h = any_host ? -1 : 0; h < (any_host ? 0 : s->host_count); h++)
        for (int l = 0; l < count; l++)
            if (rows[l].host == h) {
                hosts[placed] = h;
                order[l] = placed++;
            }
    for (int t = 0; t < s->tenant_count; t++) lanes[t] = order[lanes[t]];
    free(rows);
    free(order);
    *hosts_of_lanes = hosts;
    return count;
}
