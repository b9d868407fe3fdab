/* Canonical JSON: one way to write each value, so that equal contents are equal bytes; and reading one string back.
 * Local.
 *
 * Strings: the short escapes \" \\ \b \f \n \r \t, \u00xx in lower case for other control characters, everything else
 * as UTF-8 (also beyond the BMP); bytes that are not UTF-8 become U+FFFD. Floats: the fewest digits (6 to 9) that read
 * back as the same float32, '.' whatever the locale.
 */
#ifndef GW_BATCH_IO_JSON_H
#define GW_BATCH_IO_JSON_H

#include "base/mem.h"

/* Appends a string with its quotes. */
void gw_json_add_string(struct gw_buf *buf, const char *text, size_t bytes);
void gw_json_add_integer(struct gw_buf *buf, int64_t value);
/* A finite float; others are written as -9999, as other servers do for log-probabilities. */
void gw_json_add_float(struct gw_buf *buf, float value);

/* Reads the string whose opening quote is at text[0] of `bytes`, replacing what `out` holds (NUL-terminated there, not
 * counted). Returns the bytes it took with both quotes, 0 when it is not a whole JSON string. */
size_t gw_json_read_string(const char *text, size_t bytes, struct gw_buf *out);

/* Length of the UTF-8 character at text (1..4), or 0 when the bytes there are not one; *bad is then how many bytes to
 * pass over. */
int gw_json_utf8_length(const unsigned char *text, size_t bytes, int *bad);

#endif
