/* See text.h. */
#include "report/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void gw_text_duration(double seconds, char *text, size_t bytes)
{
    long s = seconds > 0 && seconds < 1e12 ? (long)(seconds + 0.5) : 0;
    if (s >= 86400) snprintf(text, bytes, "%ld d %02ld:%02ld", s / 86400, s / 3600 % 24, s / 60 % 60);
    else if (s >= 3600) snprintf(text, bytes, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, bytes, "%ld:%02ld", s / 60, s % 60);
}

void gw_text_count(int64_t count, char *text, size_t bytes)
{
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)count), first = digits[0] == '-';
    size_t at = 0;
    for (int i = 0; i < length && at + 2 < bytes; i++) {
        if (i > first && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    if (bytes) text[at] = 0;
}

void gw_text_bytes(double count, char *text, size_t bytes)
{
    static const char *const units[] = {"MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    for (count /= 1 << 20; count >= 1024 && unit + 1 < sizeof units / sizeof *units; unit++) count /= 1024;
    snprintf(text, bytes, "%.1f %s", count, units[unit]);
}

void gw_text_time(double wall_s, char *text, size_t bytes)
{
    time_t t = wall_s > 0 && wall_s < 1e11 ? (time_t)wall_s : 0;
    struct tm utc = {0};
    gmtime_r(&t, &utc);
    if (!strftime(text, bytes, "%Y-%m-%d %H:%M:%S UTC", &utc) && bytes) text[0] = 0;
}

/* Bytes of the UTF-8 character at `c` that may stand in a text as it is; 0: none does. */
static size_t character(const unsigned char *c)
{
    if (c[0] < 0x20 || c[0] == 0x7f) return 0;
    if (c[0] < 0x80) return 1;
    size_t bytes = c[0] >= 0xf0 ? 4 : c[0] >= 0xe0 ? 3 : 2;
    if (c[0] < 0xc2 || c[0] > 0xf4) return 0;
    for (size_t i = 1; i < bytes; i++)
        if ((c[i] & 0xc0) != 0x80) return 0;
    if (c[0] == 0xc2 && c[1] < 0xa0) return 0; /* control characters */
    if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f)) return 0;
    if ((c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f)) return 0;
    return bytes;
}

static void add_escaped(struct gw_buf *out, const char *text, const char *special, const char *const *instead)
{
    for (const unsigned char *c = (const unsigned char *)text; *c;) {
        const char *found = strchr(special, *c); /* *c is not 0 */
        size_t bytes = character(c);
        if (found) gw_buf_add_text(out, instead[found - special]);
        else if (bytes) gw_buf_add(out, c, bytes);
        else gw_buf_add_text(out, "\xef\xbf\xbd");
        c += found || !bytes ? 1 : bytes;
    }
}

void gw_text_add_html(struct gw_buf *out, const char *text)
{
    static const char *const instead[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
    add_escaped(out, text, "&<>\"'", instead);
}

void gw_text_add_label(struct gw_buf *out, const char *text)
{
    static const char *const instead[] = {"\\\\", "\\\"", "\\n"};
    add_escaped(out, text, "\\\"\n", instead);
}

void gw_text_add_plain(struct gw_buf *out, const char *text)
{
    add_escaped(out, text, "", NULL);
}

void gw_text_addf(struct gw_buf *out, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int bytes = vsnprintf(NULL, 0, fmt, args);
    GW_ASSERT(bytes >= 0);
    gw_buf_reserve(out, (size_t)bytes + 1);
    vsnprintf((char *)out->data + out->bytes, (size_t)bytes + 1, fmt, again);
    out->bytes += (size_t)bytes;
    va_end(again);
    va_end(args);
}
