/* OUTDIR/report.html: what happened to a job on one page that opens from disk: totals, timeline, time lost by cause, events. No scripts, nothing
 * from elsewhere; every foreign text is escaped; a few hundred kilobytes however long the job was. Local.
 */
#ifndef GW_REPORT_PAGE_H
#define GW_REPORT_PAGE_H

#include "report/history.h"
#include "report/status.h"
#include "report/story.h"

/* Appends the page. `status` and `digest` may be NULL. Pure but for the folder's name. */
void gw_page_add(struct gw_buf *html, const char *out_dir, const struct gw_status *status, const struct gw_story *story,
                 const struct gw_sample *samples, int count, const char *digest);

/* Reads what OUTDIR has and writes OUTDIR/report.html. `digest`: of the output as 64 hex digits, or NULL. GW_ERR_NOT_FOUND: nothing has run there. */
GW_CHECK gw_err gw_page_write(const char *out_dir, const char *digest);

#endif
