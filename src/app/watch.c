/* See watch.h.
 *
 * A frame is a list of lines made from status.json, ranks.json and the end of events.jsonl. On a terminal it is drawn on the alternate screen with
 * ANSI codes: cursor home, each line cut at the width and the rest of it cleared. Nothing foreign reaches the terminal as it is: control
 * characters in names would be commands to it.
 */
#include "app/watch.h"

#include "base/clock.h"
#include "base/file.h"
#include "report/status.h"
#include "report/story.h"
#include "report/text.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LAST_EVENTS = 8, TAIL_BYTES = 64 << 10, MOST_RANKS_BYTES = 64 << 20 };
static const double SILENT_S = 30, LINE_EVERY_S = 5;

static volatile sig_atomic_t interrupted, resized;

static void on_signal(int signal)
{
    if (signal == SIGWINCH) resized = 1;
    else interrupted = 1;
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

struct frame {
    struct gw_buf text; /* lines that end in \n */
};

static void add_line(struct frame *frame, const char *fmt, ...) GW_PRINTF(2, 3);

static void add_line(struct frame *frame, const char *fmt, ...)
{
    va_list args;
    char *line = NULL;
    va_start(args, fmt);
    int bytes = vasprintf(&line, fmt, args);
    va_end(args);
    GW_ASSERT(bytes >= 0);
    gw_text_add_plain(&frame->text, line);
    gw_buf_add_text(&frame->text, "\n");
    free(line);
}

/* [#######.......] */
static void add_bar(struct frame *frame, const struct gw_status *s, int columns)
{
    int width = (columns > 0 && columns < 80 ? columns : 80) - 18;
    double share = s->requests_total > 0 ? (double)(s->requests_done + s->requests_failed) / (double)s->requests_total
                                         : 0;
    char bar[80];
    if (width < 10) return;
    int full = (int)(width * (share < 1 ? share : 1));
    for (int i = 0; i < width; i++) bar[i] = i < full ? '#' : '.';
    bar[width] = 0;
    add_line(frame, "          [%s] %3.0f %%", bar, 100 * share);
}

static void add_lost(struct frame *frame, const struct gw_status *s)
{
    struct gw_buf text = {0};
    double again_s = gw_status_recompute_s(s), sum_s = again_s;
    for (int c = 0; c < GW_PAUSE_LOST; c++) sum_s += s->lost_s[c];
    if (sum_s <= 0 && !s->lost_ranks && !s->notices && !s->launch) return;
    gw_text_addf(&text, "lost      %lld rank%s, %.1f s", (long long)s->lost_ranks, s->lost_ranks == 1 ? "" : "s",
                 sum_s);
    int shown = 0;
    for (int c = 0; c < GW_PAUSE_LOST; c++)
        if (s->lost_s[c] > 0)
            gw_text_addf(&text, "%s%s %.1f", shown++ ? ", " : " (", gw_pause_name((enum gw_pause_cause)c),
                         s->lost_s[c]);
    if (again_s > 0) gw_text_addf(&text, "%srecompute %.1f", shown++ ? ", " : " (", again_s);
    gw_text_addf(&text, "%s; notices %lld, launch %d", shown ? ")" : "", (long long)s->notices, s->launch + 1);
    gw_buf_add(&text, "", 1);
    add_line(frame, "%s", (char *)text.data);
    gw_buf_free(&text);
}

static void add_status(struct frame *frame, const struct gw_status *s, double age_s, int columns)
{
    char line[256], age[40], tokens[40], again[40];
    bool running = !strcmp(s->state, "running"), silent = running && age_s > SILENT_S;
    gw_status_line(s, line, sizeof line);
    gw_text_duration(age_s, age, sizeof age);
    gw_text_count(s->generated_tokens, tokens, sizeof tokens);
    gw_text_count(s->recomputed_tokens, again, sizeof again);
    add_line(frame, "state     %s%s%s%s", s->state, running && strcmp(s->phase, "run") ? ", " : "",
             running && strcmp(s->phase, "run") ? s->phase : "", silent ? " (but silent: see below)" : "");
    add_line(frame, "progress  %s", line);
    add_bar(frame, s, columns);
    if (running)
        add_line(frame, "rate      %.1f tokens/s now, %.1f mean", s->recent_tokens_per_s, s->generated_tokens_per_s);
    add_line(frame, "tokens    %s committed, %s recomputed, %lld restored", tokens, again,
             (long long)s->restored_tokens);
    add_line(frame, "model     %s, context %d, kernels %s", s->model, s->context, s->kernels);
    add_line(frame, "layout    %d data x %d tensor x %d pipeline, %d threads a rank", s->layout[0], s->layout[1],
             s->layout[2], s->threads_per_rank);
    add_line(frame, "sequences %d running, %d waiting; KV pages %d of %d; %lld preemptions; %lld prompt tokens shared",
             s->running, s->waiting, s->kv_pages_used, s->kv_pages_total, (long long)s->preemptions,
             (long long)s->prefix_tokens_reused);
    add_lost(frame, s);
    if (silent)
        add_line(frame, "last sign of life %s ago: if its processes are gone, the same run command carries on", age);
    else if (running && age_s > 5) add_line(frame, "last sign of life %.0f s ago", age_s);
}

/* ---- who runs -------------------------------------------------------------------------------------------------- */

static json_t *read_ranks(const char *out_dir)
{
    char *path = gw_asprintf("%s/ranks.json", out_dir), *text = NULL;
    json_t *root = NULL;
    if (access(path, R_OK) == 0 && gw_file_read(path, MOST_RANKS_BYTES, &text, NULL) == GW_OK)
        root = json_loads(text, 0, NULL);
    free(text);
    free(path);
    return root;
}

static const char *host_of(const json_t *rank)
{
    const char *host = json_string_value(json_object_get(rank, "host"));
    return host ? host : "?";
}

static void add_rank(struct frame *frame, const json_t *rank)
{
    const json_t *place = json_object_get(rank, "layout");
    char since[40] = "", where[64] = "waits";
    double since_s = json_number_value(json_object_get(rank, "since"));
    if (since_s > 0) gw_text_duration(gw_clock_wall_s() - since_s, since, sizeof since);
    if (json_is_array(place))
        snprintf(where, sizeof where, "replica %lld, shard %lld, stage %lld",
                 (long long)json_integer_value(json_array_get(place, 0)),
                 (long long)json_integer_value(json_array_get(place, 1)),
                 (long long)json_integer_value(json_array_get(place, 2)));
    add_line(frame, "  rank %-4lld pid %-8lld %-20s %s%s%s",
             (long long)json_integer_value(json_object_get(rank, "rank")),
             (long long)json_integer_value(json_object_get(rank, "pid")), host_of(rank), where,
             since[0] ? ", for " : "", since);
}

/* The replicas that a host's ranks are of, "0 1 2 .. 7" when there are many. */
static void add_host(struct frame *frame, const json_t *ranks, size_t first)
{
    enum { NAMED = 12 };
    struct gw_buf places = {0};
    const json_t *rank;
    const char *host = host_of(json_array_get(ranks, first));
    int count = 0, waiting = 0;
    double since_s = 0;
    char since[40] = "";
    size_t i;
    json_array_foreach(ranks, i, rank)
    {
        const json_t *place = json_object_get(rank, "layout");
        double began_s = json_number_value(json_object_get(rank, "since"));
        if (strcmp(host_of(rank), host)) continue;
        if (began_s > 0 && (since_s == 0 || began_s < since_s)) since_s = began_s;
        waiting += !json_is_array(place);
        if (json_is_array(place) && count < NAMED)
            gw_text_addf(&places, " %lld.%lld.%lld", (long long)json_integer_value(json_array_get(place, 0)),
                         (long long)json_integer_value(json_array_get(place, 1)),
                         (long long)json_integer_value(json_array_get(place, 2)));
        if (++count == NAMED + 1) gw_text_addf(&places, " ..");
    }
    gw_buf_add(&places, "", 1);
    if (since_s > 0) gw_text_duration(gw_clock_wall_s() - since_s, since, sizeof since);
    add_line(frame, "  %-20s %3d rank%s%s%s:%s%s", host, count, count == 1 ? "" : "s", since[0] ? ", for " : "", since,
             (char *)places.data, waiting ? " (some wait)" : "");
    gw_buf_free(&places);
}

/* Rank by rank; on a screen that has no room for all of them, host by host. */
static void add_ranks(struct frame *frame, const char *out_dir, int rows)
{
    json_t *root = read_ranks(out_dir);
    const json_t *ranks = json_object_get(root, "ranks"), *rank;
    size_t i, count = json_array_size(ranks);
    int shown = 0, hosts = 0;
    if (rows == 0 || (int)count <= rows) json_array_foreach(ranks, i, rank) add_rank(frame, rank);
    else json_array_foreach(ranks, i, rank)
        {
            bool seen = false;
            for (size_t k = 0; k < i && !seen; k++) seen = !strcmp(host_of(json_array_get(ranks, k)), host_of(rank));
            if (seen) continue;
            hosts++;
            if (shown >= rows - 1) continue;
            add_host(frame, ranks, i);
            shown++;
        }
    if (hosts > shown) add_line(frame, "  and %d more hosts", hosts - shown);
    json_decref(root);
}

/* ---- what happened last ---------------------------------------------------------------------------------------- */

/* The end of events.jsonl as lines; the first may be torn. */
static char *read_tail(const char *out_dir, size_t *bytes)
{
    char *path = gw_asprintf("%s/events.jsonl", out_dir), *text = gw_alloc(TAIL_BYTES + 1, 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
    ssize_t got = fd >= 0 ? pread(fd, text, TAIL_BYTES, end > TAIL_BYTES ? end - TAIL_BYTES : 0) : 0;
    *bytes = got > 0 ? (size_t)got : 0;
    if (fd >= 0) close(fd);
    free(path);
    return text;
}

static void add_events(struct frame *frame, const char *out_dir, int wanted)
{
    size_t bytes, at;
    char *text = read_tail(out_dir, &bytes), *lines[LAST_EVENTS];
    double times[LAST_EVENTS], now_s = gw_clock_wall_s();
    int count = 0;
    if (wanted > LAST_EVENTS) wanted = LAST_EVENTS;
    for (at = bytes; at > 0 && count < wanted;) { /* from the last to the first */
        size_t end = text[at - 1] == '\n' ? at - 1 : at, begin = end;
        while (begin > 0 && text[begin - 1] != '\n') begin--;
        enum gw_story_kind kind;
        char *line = end > begin ? gw_story_text(text + begin, end - begin, &times[count], &kind) : NULL;
        if (line) lines[count++] = line;
        at = begin;
    }
    for (int i = count - 1; i >= 0; i--) {
        char ago[40];
        gw_text_duration(now_s - times[i], ago, sizeof ago);
        add_line(frame, "  %9s ago  %s", ago, lines[i]);
        free(lines[i]);
    }
    free(text);
}

/* ---- frames ---------------------------------------------------------------------------------------------------- */

static int count_lines(const struct gw_buf *text)
{
    int lines = 0;
    for (size_t i = 0; i < text->bytes; i++) lines += text->data[i] == '\n';
    return lines;
}

/* rows 0: all there is, without the last events. */
static void make_frame(struct frame *frame, const char *out_dir, const struct gw_status *status, int columns, int rows)
{
    add_status(frame, status, gw_clock_wall_s() - status->updated_at, columns);
    int left = rows ? rows - count_lines(&frame->text) - 1 : 0,
        events = left / 2 < LAST_EVENTS ? left / 2 : LAST_EVENTS;
    if (rows && left < 2) return;
    add_ranks(frame, out_dir, left - events);
    if (rows && events > 0) add_events(frame, out_dir, events);
}

/* Writes the lines, cut at `columns` characters; `clear`: each clears the rest of its row, and what is below. */
static void put_frame(const struct frame *frame, int columns, int rows, bool clear)
{
    struct gw_buf out = {0};
    int lines = 0, width = 0;
    if (clear) gw_buf_add_text(&out, "\033[H");
    for (size_t i = 0; i < frame->text.bytes && (!rows || lines < rows); i++) {
        uint8_t c = frame->text.data[i];
        if (c == '\n') {
            lines++;
            width = 0;
            if (clear) gw_buf_add_text(&out, "\033[K");
            if (!rows || lines < rows) gw_buf_add_text(&out, clear ? "\r\n" : "\n");
            continue;
        }
        if ((c & 0xc0) != 0x80) width++; /* the first byte of a character */
        if (!columns || width <= columns) gw_buf_add(&out, &c, 1);
    }
    if (clear) gw_buf_add_text(&out, "\033[J");
    fwrite(out.data, 1, out.bytes, stdout);
    fflush(stdout);
    gw_buf_free(&out);
}

void gw_watch_print(const char *out_dir, int columns, int rows)
{
    struct gw_status status;
    struct frame frame = {0};
    if (gw_status_read(out_dir, &status) != GW_OK) return;
    make_frame(&frame, out_dir, &status, columns, rows);
    put_frame(&frame, columns, rows, false);
    gw_buf_free(&frame.text);
}

/* ---- again and again ------------------------------------------------------------------------------------------- */

static void terminal_size(int *columns, int *rows)
{
    struct winsize size = {0};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_col || !size.ws_row)
        size = (struct winsize){.ws_col = 80, .ws_row = 24};
    *columns = size.ws_col;
    *rows = size.ws_row;
}

/* The last frame stays in the terminal's history when the alternate screen is left. */
static void watch_terminal(const char *out_dir)
{
    int columns, rows;
    bool over = false;
    printf("\033[?1049h\033[?25l");
    while (!interrupted && !over) {
        struct frame frame = {0};
        struct gw_status status;
        terminal_size(&columns, &rows);
        if (gw_status_read(out_dir, &status) == GW_OK) {
            make_frame(&frame, out_dir, &status, columns, rows);
            over = strcmp(status.state, "running") != 0;
        } else add_line(&frame, "%s: no status yet", out_dir);
        put_frame(&frame, columns, rows, true);
        gw_buf_free(&frame.text);
        resized = 0;
        for (int i = 0; i < 5 && !over && !interrupted && !resized; i++) poll(NULL, 0, 100);
    }
    printf("\033[?25h\033[?1049l");
    terminal_size(&columns, &rows);
    gw_watch_print(out_dir, columns, rows);
}

/* A line when it is time, and one when the state has changed or nobody writes any more. */
static void watch_lines(const char *out_dir)
{
    double shown_s = 0;
    char state[sizeof((struct gw_status *)0)->state] = "";
    for (bool over = false, silent = false; !interrupted && !over;) {
        struct gw_status status;
        bool known = gw_status_read(out_dir, &status) == GW_OK;
        double age_s = known ? gw_clock_wall_s() - status.updated_at : 0;
        over = known && strcmp(status.state, "running") != 0;
        bool changed = known && (strcmp(state, status.state) || silent != (age_s > SILENT_S && !over));
        if (known && (changed || over || gw_clock_now_s() - shown_s >= LINE_EVERY_S)) {
            char line[256];
            gw_status_line(&status, line, sizeof line);
            silent = age_s > SILENT_S && !over;
            printf("%-8s %s, %.0f now, %dx%dx%d on %d ranks", status.state, line, status.recent_tokens_per_s,
                   status.layout[0], status.layout[1], status.layout[2], status.ranks);
            if (status.lost_ranks) printf(", %lld lost", (long long)status.lost_ranks);
            if (silent) printf("; silent for %.0f s: its processes may be gone", age_s);
            printf("\n");
            fflush(stdout);
            snprintf(state, sizeof state, "%s", status.state);
            shown_s = gw_clock_now_s();
        }
        if (!over && !interrupted) poll(NULL, 0, 500);
    }
}

gw_err gw_watch_run(const char *out_dir)
{
    gw_err rc = GW_OK;
    const char *term = getenv("TERM");
    struct sigaction action = {.sa_handler = on_signal};
    if (access(out_dir, R_OK | X_OK)) FAIL(GW_ERR_NOT_FOUND, "cannot read %s: %s", out_dir, strerror(errno));
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    sigaction(SIGWINCH, &action, NULL);
    if (isatty(STDOUT_FILENO) && term && strcmp(term, "dumb")) watch_terminal(out_dir);
    else watch_lines(out_dir);
out:
    return rc;
}
