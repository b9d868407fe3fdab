/* UTF-8 as the tokenizer sees it, and incremental detokenisation.
 *
 * The text that comes out of gw_detok_add/finish, joined, is exactly what decoding all bytes at once with replacement gives (the
 * "maximal subpart" rule of the Unicode Standard, section 3.9; Python's errors="replace" and Rust's from_utf8_lossy do the
 * same), however the bytes were cut into tokens. At most 3 bytes are held back.
 */
#include "model/tokenizer_internal.h"

#include <string.h>

int gw_utf8_char(const uint8_t *text, size_t bytes, int *bad_bytes, bool *unfinished)
{
    uint8_t lead = text[0];
    *bad_bytes = 1;
    *unfinished = false;
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    int length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    /* The second byte's range rules out overlong forms, surrogates and what lies beyond U+10FFFF (Unicode, table 3-7). */
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == bytes) {
            *bad_bytes = i;
            *unfinished = true;
            return 0;
        }
        if (text[i] < low || text[i] > high) {
            *bad_bytes = i;
            return 0;
        }
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

size_t gw_utf8_valid_prefix(const uint8_t *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        uint64_t eight;
        if (bytes - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if (!(eight & UINT64_C(0x8080808080808080))) {
                at += sizeof eight;
                continue;
            }
        }
        int bad;
        bool unfinished;
        int length = gw_utf8_char(text + at, bytes - at, &bad, &unfinished);
        if (!length) break;
        at += (size_t)length;
    }
    return at;
}

static const char REPLACEMENT[] = "\xef\xbf\xbd"; /* U+FFFD */

void gw_detok_add(const struct gw_tokenizer *tokenizer, struct gw_detok *detok, int32_t id, struct gw_buf *text)
{
    size_t bytes = 0;
    const uint8_t *data = (const uint8_t *)gw_tokenizer_bytes(tokenizer, id, &bytes);
    if (!data || gw_tokenizer_is_special(tokenizer, id)) return;

    int bad;
    bool unfinished;
    while (detok->held_bytes && bytes) { /* complete or give up the held start, one byte at a time */
        detok->held[detok->held_bytes] = *data;
        int length = gw_utf8_char(detok->held, (size_t)detok->held_bytes + 1, &bad, &unfinished);
        if (!length && !unfinished) { /* the new byte does not continue it: it starts anew */
            gw_buf_add_text(text, REPLACEMENT);
            detok->held_bytes = 0;
            break;
        }
        detok->held_bytes++;
        data++;
        bytes--;
        if (length) {
            gw_buf_add(text, detok->held, (size_t)length);
            detok->held_bytes = 0;
        }
    }
    while (bytes) {
        size_t valid = gw_utf8_valid_prefix(data, bytes);
        gw_buf_add(text, data, valid);
        data += valid;
        bytes -= valid;
        if (!bytes) return;
        gw_utf8_char(data, bytes, &bad, &unfinished);
        if (unfinished) {
            memcpy(detok->held, data, bytes);
            detok->held_bytes = (int)bytes;
            return;
        }
        gw_buf_add_text(text, REPLACEMENT);
        data += bad;
        bytes -= (size_t)bad;
    }
}

void gw_detok_finish(struct gw_detok *detok, struct gw_buf *text)
{
    if (detok->held_bytes) gw_buf_add_text(text, REPLACEMENT);
    detok->held_bytes = 0;
}
