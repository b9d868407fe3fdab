/* Stop strings over text that grows token by token. A stop string may begin in one token and end in another; the text is cut right
 * before the first one that occurs. Pure. */
#ifndef GW_ENGINE_STOP_H
#define GW_ENGINE_STOP_H

#include "base/mem.h"
#include "batch/request.h"

struct gw_stop {
    const struct gw_text *strings; /* borrowed; none empty */
    size_t count;
    size_t longest; /* bytes */
};

void gw_stop_init(struct gw_stop *stop, const struct gw_text *strings, size_t count);
/* Offset of the first stop string in `text`, or -1. `scanned` bytes were searched before (text only grows). */
int64_t gw_stop_scan(const struct gw_stop *stop, const struct gw_buf *text, size_t scanned);

#endif
