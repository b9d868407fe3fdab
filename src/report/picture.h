/* The timeline of a job as one inline SVG: throughput, events, standstill, layout, and a row for every rank, all over the same time. Its size is
 * bounded: what is too small to see is drawn together. Colours come from classes that the page defines. Local, pure. */
#ifndef GW_REPORT_PICTURE_H
#define GW_REPORT_PICTURE_H

#include "report/history.h"
#include "report/story.h"

enum { GW_PICTURE_COLOURS = 8 }; /* of replicas: classes c0..c7, replica modulo this; cw: a rank that waits */

void gw_picture_add(struct gw_buf *html, const struct gw_story *story, const struct gw_sample *samples, int count);

#endif
