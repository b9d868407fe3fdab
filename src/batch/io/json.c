/* See json.h. */
#include "batch/io/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int gw_json_utf8_length(const unsigned char *text, size_t bytes, int *bad)
{
    *bad = 1;
    unsigned char c = text[0];
    if (c < 0x80) return 1;
    int length = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4) return 0;
    /* The second byte's range excludes overlong forms, surrogates and what is beyond U+10FFFF (Unicode, table 3-7). */
    unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    unsigned char high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= bytes || text[i] < low || text[i] > high) return 0;
        *bad = i + 1;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

static void add_escape(struct gw_buf *buf, unsigned char c)
{
    char text[8];
    switch (c) {
    case '"': gw_buf_add(buf, "\\\"", 2); break;
    case '\\': gw_buf_add(buf, "\\\\", 2); break;
    case '\b': gw_buf_add(buf, "\\b", 2); break;
    case '\f': gw_buf_add(buf, "\\f", 2); break;
    case '\n': gw_buf_add(buf, "\\n", 2); break;
    case '\r': gw_buf_add(buf, "\\r", 2); break;
    case '\t': gw_buf_add(buf, "\\t", 2); break;
    default: snprintf(text, sizeof text, "\\u%04x", c); gw_buf_add(buf, text, 6);
    }
}

void gw_json_add_string(struct gw_buf *buf, const char *text, size_t bytes)
{
    const unsigned char *data = (const unsigned char *)(text ? text : ""); /* an empty gw_buf has no data */
    size_t at = 0, plain = 0;                                              /* [plain, at) goes out as it is */
    gw_buf_reserve(buf, bytes + 2);
    gw_buf_add(buf, "\"", 1);
    while (at < bytes) {
        int bad, length = gw_json_utf8_length(data + at, bytes - at, &bad);
        if (length && data[at] >= 0x20 && data[at] != '"' && data[at] != '\\') {
            at += (size_t)length;
            continue;
        }
        gw_buf_add(buf, data + plain, at - plain);
        if (length) add_escape(buf, data[at]);
        else gw_buf_add(buf, "\xef\xbf\xbd", 3);
        at += (size_t)(length ? length : bad);
        plain = at;
    }
    gw_buf_add(buf, data + plain, at - plain);
    gw_buf_add(buf, "\"", 1);
}

void gw_json_add_integer(struct gw_buf *buf, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)value);
    gw_buf_add_text(buf, text);
}

void gw_json_add_float(struct gw_buf *buf, float value)
{
    char text[40];
    if (!isfinite(value)) value = -9999.0f;
    if (value == 0) value = 0; /* not -0 */
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    bool point = false; /* a locale's decimal point may have several bytes */
    for (const char *c = text; *c; c++) {
        if (strchr("0123456789+-e", *c)) {
            gw_buf_add(buf, c, 1);
            point = false;
        } else if (!point) {
            gw_buf_add(buf, ".", 1);
            point = true;
        }
    }
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static bool read_hex4(const char *text, size_t bytes, uint32_t *value)
{
    *value = 0;
    if (bytes < 4) return false;
    for (int i = 0; i < 4; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return false;
        *value = *value << 4 | (uint32_t)digit;
    }
    return true;
}

static void add_utf8(struct gw_buf *out, uint32_t c)
{
    unsigned char text[4];
    if (c < 0x80) text[0] = (unsigned char)c;
    else if (c < 0x800) text[0] = (unsigned char)(0xc0 | c >> 6);
    else if (c < 0x10000) text[0] = (unsigned char)(0xe0 | c >> 12);
    else text[0] = (unsigned char)(0xf0 | c >> 18);
    int length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = 1; i < length; i++) text[i] = (unsigned char)(0x80 | ((c >> (6 * (length - 1 - i))) & 0x3f));
    gw_buf_add(out, text, (size_t)length);
}

/* The escape behind a backslash at text[0]; returns the bytes it took, 0 if it is none. */
static size_t read_escape(const char *text, size_t bytes, struct gw_buf *out)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (bytes < 2) return 0;
    const char *name = text[1] ? strchr(names, text[1]) : NULL;
    if (name) {
        gw_buf_add(out, values + (name - names), 1);
        return 2;
    }
    uint32_t high, low;
    if (text[1] != 'u' || !read_hex4(text + 2, bytes - 2, &high)) return 0;
    if (high >= 0xdc00 && high <= 0xdfff) return 0;
    if (high < 0xd800 || high > 0xdbff) {
        add_utf8(out, high);
        return 6;
    }
    if (bytes < 12 || text[6] != '\\' || text[7] != 'u' || !read_hex4(text + 8, 4, &low)) return 0;
    if (low < 0xdc00 || low > 0xdfff) return 0;
    add_utf8(out, 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
    return 12;
}

size_t gw_json_read_string(const char *text, size_t bytes, struct gw_buf *out)
{
    gw_buf_clear(out);
    if (bytes < 2 || text[0] != '"') return 0;
    size_t at = 1;
    while (at < bytes && text[at] != '"') {
        int bad, length = gw_json_utf8_length((const unsigned char *)text + at, bytes - at, &bad);
        if (!length || (unsigned char)text[at] < 0x20) return 0;
        if (text[at] == '\\') {
            size_t took = read_escape(text + at, bytes - at, out);
            if (!took) return 0;
            at += took;
        } else {
            gw_buf_add(out, text + at, (size_t)length);
            at += (size_t)length;
        }
    }
    if (at >= bytes) return 0;
    gw_buf_add(out, "", 1);
    out->bytes--;
    return at + 1;
}
