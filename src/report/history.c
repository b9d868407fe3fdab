/* See history.h. */
#include "report/history.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECENT = 64, MOST_BYTES = 4 << 20 };
static const double FIRST_INTERVAL_S = 1, LEAST_RECENT_S = 1;

struct gw_history {
    char *path;
    double interval_s;
    struct gw_sample *samples; /* [GW_HISTORY_MOST] */
    int count;
    bool whole; /* the file is as `samples`: it can be appended to */
    struct {
        double time_s;
        int64_t tokens;
    } recent[RECENT]; /* a ring */
    int recent_at, recent_count;
};

static double finite_number(const json_t *root, const char *key)
{
    double value = json_number_value(json_object_get(root, key));
    return isfinite(value) ? value : 0;
}

static void drop_every_second(struct gw_history *h)
{
    int kept = 0;
    for (int i = 0; i < h->count; i++)
        if (i % 2 == 0) h->samples[kept++] = h->samples[i];
    h->count = kept;
    h->interval_s *= 2;
    h->whole = false;
}

static void take_line(struct gw_history *h, const char *line, size_t bytes)
{
    json_t *root = json_loadb(line, bytes, 0, NULL);
    double interval_s = finite_number(root, "interval_s"), time_s = finite_number(root, "time");
    if (interval_s >= FIRST_INTERVAL_S && interval_s < 1e9) h->interval_s = interval_s;
    if (time_s > 0 && (!h->count || time_s > h->samples[h->count - 1].time_s)) {
        if (h->count == GW_HISTORY_MOST) drop_every_second(h);
        h->samples[h->count++] = (struct gw_sample){
            .time_s = time_s,
            .tokens = json_integer_value(json_object_get(root, "tokens")),
            .answered = json_integer_value(json_object_get(root, "answered")),
            .ranks = (int)json_integer_value(json_object_get(root, "ranks")),
            .kv_pages = (int)json_integer_value(json_object_get(root, "kv_pages")),
        };
    }
    json_decref(root);
}

struct gw_history *gw_history_open(const char *out_dir)
{
    struct gw_history *h = gw_alloc(1, sizeof *h);
    char *text = NULL;
    size_t bytes = 0;
    h->path = gw_asprintf("%s/history.jsonl", out_dir);
    h->interval_s = FIRST_INTERVAL_S;
    h->samples = gw_alloc(GW_HISTORY_MOST, sizeof *h->samples);
    if (access(h->path, R_OK) == 0 && gw_file_read(h->path, MOST_BYTES, &text, &bytes) == GW_OK) {
        for (char *at = text, *end; at < text + bytes; at = end + 1) {
            end = memchr(at, '\n', (size_t)(text + bytes - at));
            if (!end) end = text + bytes;
            take_line(h, at, (size_t)(end - at));
        }
    }
    free(text);
    return h;
}

void gw_history_close(struct gw_history *h)
{
    if (!h) return;
    free(h->path);
    free(h->samples);
    free(h);
}

static void add_line(struct gw_buf *buf, const struct gw_sample *s)
{
    char *line = gw_asprintf("{\"time\":%.2f,\"tokens\":%lld,\"answered\":%lld,\"ranks\":%d,\"kv_pages\":%d}\n",
                             s->time_s, (long long)s->tokens, (long long)s->answered, s->ranks, s->kv_pages);
    gw_buf_add_text(buf, line);
    free(line);
}

static gw_err rewrite(struct gw_history *h)
{
    struct gw_buf buf = {0};
    char *head = gw_asprintf("{\"interval_s\":%g}\n", h->interval_s);
    gw_buf_add_text(&buf, head);
    for (int i = 0; i < h->count; i++) add_line(&buf, &h->samples[i]);
    gw_err rc = gw_file_replace(h->path, buf.data, buf.bytes, false);
    h->whole = rc == GW_OK;
    gw_buf_free(&buf);
    free(head);
    return rc;
}

static gw_err append(struct gw_history *h, const struct gw_sample *sample)
{
    gw_err rc = GW_OK;
    struct gw_buf buf = {0};
    int fd = open(h->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) FAIL(GW_ERR_IO, "cannot write %s: %s", h->path, strerror(errno));
    add_line(&buf, sample);
    TRY(gw_write_all(fd, h->path, buf.data, buf.bytes));
out:
    if (fd >= 0) close(fd);
    h->whole = rc == GW_OK; /* else it is written anew the next time */
    gw_buf_free(&buf);
    return rc;
}

void gw_history_note(struct gw_history *h, const struct gw_sample *sample, bool now)
{
    h->recent[h->recent_at].time_s = sample->time_s;
    h->recent[h->recent_at].tokens = sample->tokens;
    h->recent_at = (h->recent_at + 1) % RECENT;
    if (h->recent_count < RECENT) h->recent_count++;
    double since_s = h->count ? sample->time_s - h->samples[h->count - 1].time_s : INFINITY;
    if (since_s < 0) h->count = 0; /* the clock was set back: times before it cannot be drawn with those after it */
    if (since_s >= 0 && since_s < h->interval_s && !(now && since_s > 0)) return;
    if (h->count == GW_HISTORY_MOST) drop_every_second(h);
    h->whole = h->whole && since_s >= 0;
    h->samples[h->count++] = *sample;
    gw_err rc = h->whole ? append(h, sample) : rewrite(h);
    if (rc != GW_OK) gw_warn("%s", gw_error_detail());
}

double gw_history_tokens_per_s(const struct gw_history *h, double over_s)
{
    if (h->recent_count < 2) return 0;
    int last = (h->recent_at + RECENT - 1) % RECENT, first = last;
    for (int i = 1; i < h->recent_count; i++) {
        int at = (last + RECENT - i) % RECENT;
        if (h->recent[last].time_s - h->recent[at].time_s > over_s) break;
        first = at;
    }
    double took_s = h->recent[last].time_s - h->recent[first].time_s;
    double tokens = (double)(h->recent[last].tokens - h->recent[first].tokens);
    return took_s >= LEAST_RECENT_S && tokens > 0 ? tokens / took_s : 0;
}

const struct gw_sample *gw_history_samples(const struct gw_history *h, int *count)
{
    *count = h->count;
    return h->samples;
}
