/* Texts for people and for their tools: durations, counts, and foreign strings made harmless. Local, pure. */
#ifndef GW_REPORT_TEXT_H
#define GW_REPORT_TEXT_H

#include "base/mem.h"

/* "1:05", "2:03:09", "3 d 04:00". */
void gw_text_duration(double seconds, char *text, size_t bytes);
/* "1,234,567" */
void gw_text_count(int64_t count, char *text, size_t bytes);
/* "1.4 GiB" */
void gw_text_bytes(double count, char *text, size_t bytes);
/* "2026-11-23 04:31:22 UTC" */
void gw_text_time(double wall_s, char *text, size_t bytes);

/* Appends as HTML text or attribute: markup escaped, control characters and what is not UTF-8 replaced by U+FFFD. */
void gw_text_add_html(struct gw_buf *out, const char *text);
/* Appends as the value of a Prometheus label, without its quotes; the same replacements. */
void gw_text_add_label(struct gw_buf *out, const char *text);
/* Appends for a terminal or a log: the same replacements, nothing escaped. */
void gw_text_add_plain(struct gw_buf *out, const char *text);
/* Appends formatted text; what is inserted is not escaped. */
void gw_text_addf(struct gw_buf *out, const char *fmt, ...) GW_PRINTF(2, 3);

#endif
