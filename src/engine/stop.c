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
    if (stop->count == 0 || text->bytes <= scanned) return -1;
    /* a new match ends in the new text, so it begins no earlier than this */
    size_t from = scanned >= stop->longest ? scanned - stop->longest + 1 : 0;
    size_t first_begin = 0, first_end = SIZE_MAX;
    for (size_t i = 0; i < stop->count; i++) {
        size_t bytes = stop->strings[i].bytes;
        const uint8_t *at = memmem(text->data + from, text->bytes - from, stop->strings[i].data, bytes);
        if (!at) continue;
        size_t begin = (size_t)(at - text->data);
        if (begin + bytes > first_end || (begin + bytes == first_end && begin > first_begin)) continue;
        first_begin = begin;
        first_end = begin + bytes;
    }
    return first_end == SIZE_MAX ? -1 : (int64_t)first_begin;
}
