/* See stop.h. */
#include "engine/stop.h"

#include <string.h>

void gw_stop_init(struct gw_stop *stop, const struct gw_text *strings, size_t count)
{
    *stop = (struct gw_stop){.strings = strings, .count = count};
    for (size_t i = 0; i < count; i++)
        if (strings[i].bytes > stop->longest) stop->longest = strings[i].bytes;
}

int64_t gw_stop_scan(const struct gw_stop *stop, const struct gw_buf *text, size_t scanned)
{
    int64_t first = -1;
    if (stop->count == 0 || text->bytes == 0) return -1;
    size_t from = scanned >= stop->longest ? scanned - stop->longest + 1 : 0;
    for (size_t i = 0; i < stop->count && from < text->bytes; i++) {
        const uint8_t *at = memmem(text->data + from, text->bytes - from, stop->strings[i].data, stop->strings[i].bytes);
        if (at && (first < 0 || at - text->data < first)) first = at - text->data;
    }
    return first;
}
