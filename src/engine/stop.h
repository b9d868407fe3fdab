/* Stop strings over text that grows piece by piece, as tokens are turned into text. A stop string may begin in one piece and
 * end in another, and need not end where a piece does. The string that is complete first ends the text, which is cut right before
 * it; of several complete at the same byte the longest counts. So the cut does not depend on how the text came in
 * pieces. Bytes, not characters: text and strings are UTF-8. Text that may be the beginning of a stop string is the caller's
 * until more comes: an answer is written when it is finished. Pure; without stop strings a scan costs one comparison.
 */
#ifndef GW_ENGINE_STOP_H
#define GW_ENGINE_STOP_H

#include "base/mem.h"

struct gw_text; /* batch/request.h */

struct gw_stop {
    const struct gw_text *strings; /* [count], borrowed; none empty */
    size_t count;
    size_t longest; /* bytes */
};

void gw_stop_init(struct gw_stop *stop, const struct gw_text *strings, size_t count);
/* Where to cut `text`: the offset of the stop string that is complete first, or -1. The first `scanned` bytes were searched before, without a find; text only
 * grows, so only the rest and what it may complete are looked at. */
int64_t gw_stop_scan(const struct gw_stop *stop, const struct gw_buf *text, size_t scanned);

#endif
