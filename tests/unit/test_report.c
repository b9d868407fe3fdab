/* What is told of a job: pauses, the story made of events (also torn, foreign and hostile ones), the bounded history, metrics against a strict
 * parser of the exposition format, and the page against a checker that knows every tag that may be in it. */
#include "base/file.h"
#include "report/history.h"
#include "report/metrics.h"
#include "report/page.h"
#include "report/text.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/gw-report.XXXXXX";
static const char hostile[] = "</title><script>alert(1)</script>\" onload='x' & \\ \n \x1b[2J \xff\xc3 <img src=x>";

static uint64_t random_state = 20261123;

static unsigned next_random(unsigned bound) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (unsigned)((z ^ z >> 31) % bound);
}

static void tell(struct gw_story *story, const char *line)
{
    gw_story_line(story, line, strlen(line));
}

/* ---- texts and pauses ------------------------------------------------------------------------------------------ */

static void test_texts(void)
{
    struct gw_buf buf = {0};
    char text[64];
    gw_text_add_html(&buf, "a<b>&\"'\x1b\xff\xc3\xa9\xe2\x82");
    gw_buf_add(&buf, "", 1);
    CU_ASSERT_STRING_EQUAL((char *)buf.data,
                           "a&lt;b&gt;&amp;&quot;&#39;\xef\xbf\xbd\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd");
    gw_buf_free(&buf);
    static const struct {
        int64_t count;
        const char *text;
    } counts[] = {{0, "0"},      {999, "999"}, {1000, "1,000"}, {-1234567, "-1,234,567"}, {100000, "100,000"},
                  {-100, "-100"}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        gw_text_count(counts[i].count, text, sizeof text);
        CU_ASSERT_STRING_EQUAL(text, counts[i].text);
    }
    static const struct {
        double seconds;
        const char *text;
    } durations[] = {{0, "0:00"},  {65.4, "1:05"}, {7389, "2:03:09"}, {3 * 86400 + 4 * 3600, "3 d 04:00"},
                     {-5, "0:00"}, {NAN, "0:00"}};
    for (size_t i = 0; i < sizeof durations / sizeof *durations; i++) {
        gw_text_duration(durations[i].seconds, text, sizeof text);
        CU_ASSERT_STRING_EQUAL(text, durations[i].text);
    }
}

static void test_pauses(void)
{
    struct gw_pauses p = {0};
    struct gw_pause closed = {0};
    CU_ASSERT_FALSE(gw_pauses_end(&p, 5, &closed));
    CU_ASSERT_FALSE(gw_pauses_begin(&p, GW_PAUSE_CHANGE, 10, &closed));
    CU_ASSERT_TRUE(gw_pauses_begin(&p, GW_PAUSE_REPAIR, 12, &closed)); /* the stronger one takes over */
    CU_ASSERT_EQUAL(closed.cause, GW_PAUSE_CHANGE);
    CU_ASSERT_FALSE(gw_pauses_begin(&p, GW_PAUSE_CHANGE, 13, &closed)); /* the weaker one does not count */
    CU_ASSERT_FALSE(gw_pauses_begin(&p, GW_PAUSE_REPAIR, 14, &closed)); /* it goes on */
    CU_ASSERT_TRUE(gw_pauses_end(&p, 15, &closed));
    CU_ASSERT_EQUAL(closed.cause, GW_PAUSE_REPAIR);
    CU_ASSERT_EQUAL(p.sum_s[GW_PAUSE_CHANGE], 2);
    CU_ASSERT_EQUAL(p.sum_s[GW_PAUSE_REPAIR], 3);
    gw_pauses_begin(&p, GW_PAUSE_REPAIR, 20, &closed);
    CU_ASSERT_TRUE(gw_pauses_end(&p, 19, &closed)); /* the clock was set back */
    CU_ASSERT_EQUAL(p.sum_s[GW_PAUSE_REPAIR], 3);
}

/* ---- the story ------------------------------------------------------------------------------------------------- */

/* A loss with a replacement, a notice, a launch that is lost, and a stop on request with another command. */
static void test_story(void)
{
    struct gw_story s = {0};
    tell(&s, "{\"time\":101,\"event\":\"start\",\"launch\":0,\"launched_at\":100}");
    tell(&s, "{\"time\":102,\"event\":\"plan\",\"plan\":1,\"ranks\":2,\"layout\":[2,1,1],\"seats\":[{\"member\":0,"
             "\"host\":\"a\",\"layout\":[0,0,0]},"
             "{\"member\":1,\"host\":\"b\",\"layout\":[1,0,0]}],\"gone\":[]}");
    tell(&s, "{\"time\":103,\"event\":\"ready\"}");
    tell(&s,
         "{\"time\":111,\"event\":\"loss\",\"lost_at\":110,\"ranks\":1,\"members\":[{\"member\":1,\"host\":\"b\"}]}");
    tell(&s, "{\"time\":112,\"event\":\"plan\",\"plan\":2,\"ranks\":2,\"layout\":[2,1,1],\"lost_at\":110,\"seats\":[{"
             "\"member\":2,\"host\":\"b\","
             "\"layout\":[1,0,0]}],\"gone\":[{\"member\":1,\"host\":\"b\"}]}");
    tell(&s, "{\"time\":113,\"event\":\"ready\"}");
    tell(&s, "{\"time\":120,\"event\":\"notice\",\"member\":0,\"grace_s\":5}");
    tell(&s, "{\"time\":122,\"event\":\"drain\"}");
    tell(&s, "{\"time\":123,\"event\":\"plan\",\"plan\":3,\"ranks\":2,\"layout\":[1,1,1],\"seats\":[{\"member\":0,"
             "\"host\":\"a\"},{\"member\":2,"
             "\"host\":\"b\",\"layout\":[0,0,0]}],\"gone\":[]}");
    tell(&s, "{\"time\":124,\"event\":\"ready\"}");
    tell(&s, "{\"time\":124,\"event\":\"leave\",\"ranks\":1,\"members\":[0]}");
    gw_story_alive(&s, 130);
    tell(
        &s,
        "{\"time\":138,\"event\":\"node-lost\",\"name\":\"b\",\"node\":\"a\"}"); /* an agent lives on: no work meanwhile */
    tell(&s, "{\"time\":141,\"event\":\"start\",\"launch\":1,\"launched_at\":140,\"silent_since\":131}");
    tell(&s, "{\"time\":142,\"event\":\"plan\",\"plan\":1,\"ranks\":1,\"layout\":[1,1,1],\"lost_at\":140,\"seats\":[{"
             "\"member\":0,\"host\":\"a\","
             "\"layout\":[0,0,0]}],\"gone\":[]}");
    tell(&s, "{\"time\":143,\"event\":\"ready\"}");
    tell(&s, "{\"time\":150,\"event\":\"stopped\",\"answered\":3,\"failed\":0}");
    tell(&s, "{\"time\":191,\"event\":\"start\",\"launch\":0,\"launched_at\":190}");
    tell(&s, "{\"time\":192,\"event\":\"ready\"}");
    tell(&s, "{\"time\":200,\"event\":\"done\",\"answered\":9,\"failed\":1}");
    gw_story_finish(&s);
    CU_ASSERT_EQUAL(s.begin_s, 100);
    CU_ASSERT_EQUAL(s.end_s, 200);
    CU_ASSERT_EQUAL(s.launches, 3);
    CU_ASSERT_EQUAL(s.lost_ranks, 1);
    CU_ASSERT_EQUAL(s.notices, 1);
    CU_ASSERT_EQUAL(s.bad_lines, 0);
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_REPAIR], 3);   /* 110 to 113 */
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_CHANGE], 2);   /* 122 to 124 */
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_WAITING], 9);  /* 131 to 140 */
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_RELAUNCH], 3); /* 140 to 143 */
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_STOPPED], 40); /* 150 to 190 */
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_START], 5);    /* 100 to 103, 190 to 192 */
    CU_ASSERT_EQUAL_FATAL(s.tenant_count, 4);
    CU_ASSERT_EQUAL(s.tenants[0].to_s, 124); /* left */
    CU_ASSERT_EQUAL(s.tenants[1].to_s, 110); /* lost: at that time, not when it was told */
    CU_ASSERT_EQUAL(s.tenants[2].from_s, 112);
    CU_ASSERT_EQUAL(s.tenants[2].to_s, 131); /* with its launch, at the last sign of life */
    CU_ASSERT_EQUAL(s.tenants[3].to_s, 150);
    CU_ASSERT_EQUAL(s.layouts[0].to_s, 110);
    int lanes[4], *hosts, count = gw_story_lanes(&s, false, lanes, &hosts);
    CU_ASSERT_EQUAL(count, 2); /* one who replaces another is drawn in the same row */
    CU_ASSERT_EQUAL(lanes[1], lanes[2]);
    CU_ASSERT_EQUAL(lanes[0], lanes[3]);
    free(hosts);
    gw_story_free(&s);
}

/* A launch that stands by while the last one works takes over without any waiting. */
static void test_taken_over(void)
{
    struct gw_story s = {0};
    tell(&s, "{\"time\":101,\"event\":\"start\",\"launch\":0,\"launched_at\":100}");
    tell(&s, "{\"time\":102,\"event\":\"ready\"}");
    tell(&s, "{\"time\":150,\"event\":\"stopped\"}");
    tell(&s, "{\"time\":151,\"event\":\"start\",\"launch\":1,\"launched_at\":140,\"silent_since\":150}");
    tell(&s, "{\"time\":152,\"event\":\"ready\"}");
    gw_story_finish(&s);
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_CHANGE], 2);
    CU_ASSERT_EQUAL(s.sums.sum_s[GW_PAUSE_WAITING], 0);
    CU_ASSERT_EQUAL(s.losses, 0);
    gw_story_free(&s);
}

static void test_torn(void)
{
    struct gw_story s = {0};
    tell(&s, "{\"time\":10,\"event\":\"start\",\"launched_at\":10}");
    tell(
        &s,
        "{\"time\":11,\"event\":\"no{\"time\":12,\"event\":\"notice\",\"member\":1,\"grace_s\":3}"); /* cut off, the next behind it */
    tell(&s, "{\"time\":13,\"eve");
    tell(&s, "");
    tell(&s, "[1,2]");
    tell(&s, "{\"time\":\"x\",\"event\":\"notice\"}");
    gw_story_finish(&s);
    CU_ASSERT_EQUAL(s.notices, 1);
    CU_ASSERT_EQUAL(s.mark_count, 2);
    CU_ASSERT_EQUAL(s.bad_lines, 3);
    gw_story_free(&s);
}

/* ---- the page -------------------------------------------------------------------------------------------------- */

/* Every tag is one that the page uses, closed in order, with its attributes in quotes; every & begins an entity. */
static int check_page(const char *html)
{
    static const char *const empty[] = {"meta", "path", "rect", "circle"}; /* of these only meta has no / */
    static const char *const names[] = {"html", "head", "meta", "title", "style", "body",   "h1", "h2", "p",    "dl",
                                        "div",  "dt",   "dd",   "code",  "table", "tr",     "td", "th", "span", "svg",
                                        "desc", "g",    "path", "text",  "rect",  "circle", "ul", "li", "i"};
    char open[64][12];
    int depth = 0, wrong = 0;
    const char *at = strstr(html, "<!doctype html>\n");
    if (at != html) return 1;
    for (at += 15; *at && wrong == 0; at++) {
        if (*at == '&' && strncmp(at, "&lt;", 4) && strncmp(at, "&gt;", 4) && strncmp(at, "&amp;", 5) &&
            strncmp(at, "&quot;", 6) && strncmp(at, "&#39;", 5))
            wrong++;
        if ((unsigned char)*at < 0x20 && *at != '\n') wrong++;
        if (*at == '>') wrong++;
        if (*at != '<') continue;
        bool closing = at[1] == '/', known = false, single = false;
        const char *name = at + 1 + closing, *end = name;
        while ((*end >= 'a' && *end <= 'z') || (*end >= '0' && *end <= '9')) end++;
        size_t length = (size_t)(end - name);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            known |= strlen(names[i]) == length && !strncmp(names[i], name, length);
        if (!known || length >= 12 || depth >= 63) return 100;
        bool quoted = false;
        for (; *end && (quoted || *end != '>'); end++) {
            if (*end == '"') quoted = !quoted;
            if (quoted && *end == '<') return 101;
        }
        single = end[-1] == '/';
        for (size_t i = 0; i < 1; i++) single |= strlen(empty[i]) == length && !strncmp(empty[i], name, length);
        if (closing) {
            if (depth == 0 || strlen(open[depth - 1]) != length || strncmp(open[depth - 1], name, length)) return 102;
            depth--;
        } else if (!single) {
            memcpy(open[depth], name, length);
            open[depth++][length] = 0;
        }
        at = end;
        if (!*at) return 103;
    }
    return wrong + (depth != 0);
}

static char *page_of(const struct gw_story *story, const struct gw_status *status, const struct gw_sample *samples,
                     int count)
{
    struct gw_buf html = {0};
    gw_page_add(&html, hostile, status, story, samples, count, "0123456789abcdef");
    CU_ASSERT_TRUE(html.bytes < 1000000);
    gw_buf_add(&html, "", 1);
    return (char *)html.data;
}

static char *hostile_line(double time_s)
{
    json_t *text = json_string("</title><script>alert(1)</script>\" onload='x' & \\ \n \x1b[2J <img src=x>");
    json_t *event = json_pack("{s:f,s:O,s:O}", "time", time_s, "event", text, "host", text);
    char *line = json_dumps(event, JSON_COMPACT);
    json_decref(event);
    json_decref(text);
    return line;
}

static void test_hostile_page(void)
{
    struct gw_story s = {0};
    struct gw_status status = {.state = "running"};
    memcpy(status.model, hostile, sizeof hostile < sizeof status.model ? sizeof hostile : sizeof status.model - 1);
    char *line = hostile_line(12), *event = NULL;
    tell(&s, "{\"time\":10,\"event\":\"start\",\"launched_at\":10}");
    tell(&s, line);
    json_t *seats = json_pack("{s:f,s:s,s:i,s:[i,i,i],s:[{s:i,s:s,s:[i,i,i]}]}", "time", 13.0, "event", "plan", "ranks",
                              1, "layout", 1, 1, 1, "seats", "member", 0, "host", "<b onclick='x'>\"&", "layout", 0, 0,
                              0);
    event = json_dumps(seats, JSON_COMPACT);
    tell(&s, event);
    gw_story_alive(&s, 20);
    gw_story_finish(&s);
    char *html = page_of(&s, &status, NULL, 0);
    CU_ASSERT_EQUAL(check_page(html), 0);
    CU_ASSERT_PTR_NULL(strstr(html, "<script"));
    CU_ASSERT_PTR_NULL(strstr(html, "<img"));
    CU_ASSERT_PTR_NOT_NULL(strstr(html, "&lt;script&gt;"));
    CU_ASSERT_PTR_NULL(strstr(html, "http"
                                    "://")); /* nothing from elsewhere */
    json_decref(seats);
    free(event);
    free(html);
    free(line);
    gw_story_free(&s);
}

/* Half a thousand ranks over a week with thousands of events, and jobs of one rank and of none. */
static void test_sizes(void)
{
    static const int ranks[] = {0, 1, 500, 900};
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        struct gw_story s = {0};
        struct gw_sample samples[100];
        double t = 1.7e9;
        int next = 0, losses = ranks[i] > 1 ? 2000 : ranks[i];
        tell(&s, "{\"time\":1.7e9,\"event\":\"start\",\"launched_at\":1.7e9}");
        for (int e = 0; e <= losses; e++) {
            json_t *seats = json_array(), *gone = json_array();
            for (int r = 0; r < (e ? 8 : ranks[i]); r++) {
                char host[32];
                snprintf(host, sizeof host, "node%d", e ? (int)next_random(200) : r / 8);
                if (e) json_array_append_new(gone, json_pack("{s:i}", "member", (int)next_random((unsigned)next)));
                json_array_append_new(seats, json_pack("{s:i,s:s,s:[i,i,i]}", "member", next++, "host", host, "layout",
                                                       r, 0, 0));
            }
            t += 300;
            json_t *plan = json_pack("{s:f,s:s,s:i,s:[i,i,i],s:f,s:o,s:o}", "time", t, "event", "plan", "ranks",
                                     ranks[i], "layout", 1, 1, 1 + e % 3, "lost_at", t - 20, "seats", seats, "gone",
                                     gone);
            char *line = json_dumps(plan, JSON_COMPACT);
            tell(&s, line);
            tell(&s, "{\"time\":1.7e9,\"event\":\"ready\"}"); /* a clock that was set back */
            free(line);
            json_decref(plan);
        }
        for (int k = 0; k < 100; k++)
            samples[k] = (struct gw_sample){.time_s = 1.7e9 + k * (t - 1.7e9) / 99, .tokens = (k % 40) * 1000};
        gw_story_finish(&s);
        char *html = page_of(&s, NULL, samples, 100);
        CU_ASSERT_EQUAL(check_page(html), 0);
        CU_ASSERT_PTR_NOT_NULL(strstr(html, "</html>"));
        CU_ASSERT_PTR_NULL(strstr(html, "nan"));
        CU_ASSERT_PTR_NULL(strstr(html, "inf,"));
        free(html);
        gw_story_free(&s);
    }
}

/* Bytes of real events changed at random: whatever comes out, it is a page. */
static void test_damaged(void)
{
    static const char *const lines[] = {
        "{\"time\":101,\"event\":\"start\",\"launch\":0,\"launched_at\":100,\"silent_since\":50}",
        "{\"time\":102,\"event\":\"plan\",\"ranks\":2,\"layout\":[2,1,1],\"lost_at\":101,\"seats\":[{\"member\":1,"
        "\"host\":\"b\",\"layout\":[1,0,0]}],"
        "\"gone\":[{\"member\":1}]}",
        "{\"time\":103,\"event\":\"loss\",\"lost_at\":103,\"ranks\":1,\"members\":[{\"member\":1,\"host\":\"b\"}]}",
        "{\"time\":104,\"event\":\"leave\",\"members\":[1]}",
        "{\"time\":105,\"event\":\"checkpoint\",\"bytes\":123}",
        "{\"time\":106,\"event\":\"done\"}"};
    for (int round = 0; round < 300; round++) {
        struct gw_story s = {0};
        for (int i = 0; i < 20; i++) {
            char line[256];
            size_t bytes = strlen(lines[next_random(6)]);
            const char *from = lines[next_random(6)];
            if (bytes > strlen(from)) bytes = strlen(from);
            memcpy(line, from, bytes);
            for (unsigned k = next_random(4); k > 0 && bytes; k--)
                line[next_random((unsigned)bytes)] = "0123456789-{}[]\",:e."[next_random(20)];
            gw_story_line(&s, line, next_random(5) ? bytes : next_random((unsigned)bytes + 1));
        }
        gw_story_finish(&s);
        char *html = page_of(&s, NULL, NULL, 0);
        CU_ASSERT_EQUAL(check_page(html), 0);
        free(html);
        gw_story_free(&s);
    }
}

/* ---- history --------------------------------------------------------------------------------------------------- */

static long size_of_history(void)
{
    char path[128];
    struct stat info = {0};
    snprintf(path, sizeof path, "%s/history.jsonl", folder);
    return stat(path, &info) ? -1 : (long)info.st_size;
}

/* Twenty days, a leader a day, each leaving a torn line. */
static void test_history(void)
{
    double t = 1.7e9;
    int64_t tokens = 0;
    int count = 0;
    const struct gw_sample *samples;
    struct gw_history *h = NULL;
    for (int day = 0; day < 20; day++) {
        char path[128];
        h = gw_history_open(folder);
        for (int i = 0; i < 2 * 86400; i++, t += 0.5) {
            tokens += 100;
            gw_history_note(h,
                            &(struct gw_sample){.time_s = t, .tokens = tokens, .answered = tokens / 1000, .ranks = 4},
                            i == 2 * 86400 - 1);
            if (i == 100) CU_ASSERT_DOUBLE_EQUAL(gw_history_tokens_per_s(h, 10), 200, 1);
        }
        gw_history_close(h);
        CU_ASSERT_TRUE(size_of_history() > 0 && size_of_history() < 400000);
        snprintf(path, sizeof path, "%s/history.jsonl", folder);
        FILE *file = fopen(path, "a");
        fputs("{\"time\":1700", file);
        fclose(file);
    }
    h = gw_history_open(folder);
    samples = gw_history_samples(h, &count);
    CU_ASSERT_TRUE(count >= GW_HISTORY_MOST / 3 && count <= GW_HISTORY_MOST);
    CU_ASSERT_DOUBLE_EQUAL(samples[0].time_s, 1.7e9, 1);
    CU_ASSERT_DOUBLE_EQUAL(samples[count - 1].time_s, t - 0.5, 0.01);
    CU_ASSERT_EQUAL(samples[count - 1].tokens, tokens);
    int wrong = 0;
    for (int i = 1; i < count; i++) {
        double rate = (double)(samples[i].tokens - samples[i - 1].tokens) / (samples[i].time_s - samples[i - 1].time_s);
        wrong += fabs(rate - 200) > 1; /* dropping samples does not change what lies between the others */
    }
    CU_ASSERT_EQUAL(wrong, 0);
    gw_history_close(h);
}

/* ---- metrics --------------------------------------------------------------------------------------------------- */

static bool name_at(const char **at, char *name, size_t bytes, bool colon)
{
    size_t n = 0;
    const char *c = *at;
    for (; (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || *c == '_' || (n && *c >= '0' && *c <= '9') ||
           (colon && *c == ':');
         c++)
        if (n + 1 < bytes) name[n++] = *c;
    name[n] = 0;
    *at = c;
    return n > 0;
}

/* {a="x",b="y"}: returns false when it is not; the value of `wanted` is unescaped. */
static bool labels_at(const char **at, const char *wanted, char *value)
{
    const char *c = *at;
    if (*c++ != '{') return false;
    for (;;) {
        char name[64];
        if (!name_at(&c, name, sizeof name, false) || c[0] != '=' || c[1] != '"') return false;
        size_t n = 0;
        for (c += 2; *c != '"'; c++) {
            char out = *c;
            if (!*c || *c == '\n') return false;
            if (*c == '\\') {
                c++;
                if (*c != '\\' && *c != '"' && *c != 'n') return false;
                out = *c == 'n' ? '\n' : *c;
            }
            if (!strcmp(name, wanted) && n < 500) value[n++] = out;
        }
        if (!strcmp(name, wanted)) value[n] = 0;
        c++;
        if (*c == '}') break;
        if (*c++ != ',') return false;
    }
    *at = c + 1;
    return true;
}

/* Returns the number of samples; -1: the text is not right. Every metric has its HELP and TYPE once and before its samples, which stand together. */
static int parse_metrics(const char *text, const char *wanted, double *value, const char *batch)
{
    char now[64] = "", helped[64] = "", type[16] = "", seen[8192] = "|";
    int count = 0;
    for (const char *at = text, *end; *at; at = end + 1) {
        char name[64], key[70], label[512] = "";
        end = strchr(at, '\n');
        if (!end) return -1; /* the last line ends too */
        if (!strncmp(at, "# HELP ", 7)) {
            at += 7;
            if (!name_at(&at, helped, sizeof helped, true) || *at++ != ' ' || at >= end) return -1;
            snprintf(key, sizeof key, "|%s|", helped);
            if (strstr(seen, key)) return -1;
            strcat(strcat(seen, helped), "|");
        } else if (!strncmp(at, "# TYPE ", 7)) {
            at += 7;
            if (!name_at(&at, now, sizeof now, true) || strcmp(now, helped) || *at++ != ' ') return -1;
            snprintf(type, sizeof type, "%.*s", (int)(end - at), at);
            if (strcmp(type, "gauge") && strcmp(type, "counter")) return -1;
            size_t length = strlen(now);
            bool total = length > 6 && !strcmp(now + length - 6, "_total");
            if (total != !strcmp(type, "counter") || strncmp(now, "godwit_", 7)) return -1;
        } else {
            char *rest;
            if (!name_at(&at, name, sizeof name, true) || strcmp(name, now)) return -1;
            if (!labels_at(&at, "batch", label) || strcmp(label, batch) || *at++ != ' ') return -1;
            double number = strtod(at, &rest);
            if (rest != end || !isfinite(number)) return -1;
            if (!strcmp(name, wanted)) *value = number;
            count++;
        }
    }
    return count;
}

static void test_metrics(void)
{
    static const char batch[] = "/data/a \"b\" \\ \n<x>";
    struct gw_buf text = {0};
    double value = -1;
    json_t *status = json_pack("{s:s,s:s,s:I,s:f,s:f,s:i,s:[i,i,i],s:{s:f}}", "state", "running", "model", "m\"\\\n",
                               "generated_tokens", (json_int_t)123456789012, "updated_at", 1.7e9 + 0.25, "eta_s", 3.5,
                               "launch", 2, "layout", 2, 1, 4, "lost_s", "repair", 1.5);
    gw_metrics_add(&text, status, batch);
    gw_buf_add(&text, "", 1);
    CU_ASSERT_TRUE(parse_metrics((char *)text.data, "godwit_tokens_committed_total", &value, batch) > 25);
    CU_ASSERT_EQUAL(value, 123456789012.0);
    parse_metrics((char *)text.data, "godwit_last_update_timestamp_seconds", &value, batch);
    CU_ASSERT_EQUAL(value, 1.7e9 + 0.25);
    parse_metrics((char *)text.data, "godwit_launches_total", &value, batch);
    CU_ASSERT_EQUAL(value, 3);
    CU_ASSERT_PTR_NOT_NULL(strstr((char *)text.data, ",cause=\"repair\"} 1.5\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr((char *)text.data, ",state=\"running\"} 1\n"));
    CU_ASSERT_PTR_NOT_NULL(strstr((char *)text.data, ",state=\"done\"} 0\n"));
    gw_buf_clear(&text);
    json_object_set_new(status, "eta_s", json_real(-1)); /* not known: no sample rather than a wrong one */
    gw_metrics_add(&text, status, "x");
    gw_buf_add(&text, "", 1);
    CU_ASSERT_PTR_NULL(strstr((char *)text.data, "godwit_left_seconds"));
    CU_ASSERT_TRUE(parse_metrics((char *)text.data, "godwit_ranks", &value, "x") > 25);
    CU_ASSERT_EQUAL(
        parse_metrics("# HELP godwit_a x\n# TYPE godwit_a counter\ngodwit_a{batch=\"x\"} 1\n", "", &value, "x"), -1);
    CU_ASSERT_EQUAL(parse_metrics("godwit_a{batch=\"x\"} 1\n", "", &value, "x"), -1);
    gw_buf_free(&text);
    json_decref(status);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS || !mkdtemp(folder)) return 1;
    CU_pSuite suite = CU_add_suite("report", NULL, NULL);
    CU_add_test(suite, "texts", test_texts);
    CU_add_test(suite, "pauses", test_pauses);
    CU_add_test(suite, "a story", test_story);
    CU_add_test(suite, "one launch takes over from another", test_taken_over);
    CU_add_test(suite, "torn lines", test_torn);
    CU_add_test(suite, "a page of hostile names", test_hostile_page);
    CU_add_test(suite, "pages of every size", test_sizes);
    CU_add_test(suite, "damaged events", test_damaged);
    CU_add_test(suite, "a history of weeks", test_history);
    CU_add_test(suite, "metrics", test_metrics);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    gw_remove_tree(folder);
    return failures != 0;
}
