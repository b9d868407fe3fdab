/* The saver of one rank: puts KV pages of its slice into checkpoints beside the decoding, and brings pages back from them.
 *
 * What to save and what to load the head of the replica decides (job/head.c): it sends lists of pages in order with its steps, so a page is
 * saved before a later step can overwrite it and loaded before one can read it. A list names each page by its number in the replica and by its
 * identity (context/checkpoint.h). Saving copies the page into the writer's staging memory; the rest is its thread's. What the thread
 * reports goes to the leader (GW_MSG_SAVED), whose set names the files that count (job/checkpoints.h).
 */
#ifndef GW_JOB_SAVER_H
#define GW_JOB_SAVER_H

#include "context/checkpoint.h"
#include "job/executor.h"

struct gw_saver; /* opaque */

/* A page in a list. */
struct gw_saved_page {
    int32_t page;       /* its number in the replica */
    int32_t has_parent; /* else the first page of a sequence */
    struct gw_ckpt_identity identity, parent;
    int32_t tokens[GW_PAGE_TOKENS];
};

/* GW_MSG_SAVED; for a file gw_ckpt_file_encode() follows. */
struct gw_saved_report {
    int32_t kind; /* enum gw_ckpt_report_kind */
    uint64_t increment;
    double cost_s; /* DONE: the rank's own time and its thread's */
    uint64_t bytes;
    char error[256];
};

GW_CHECK gw_err gw_saver_create(struct gw_comm *comm, const char *out_dir, const struct gw_model *model,
                                struct gw_saver **saver);
void gw_saver_destroy(struct gw_saver *saver);
const struct gw_ckpt_model *gw_saver_model(const struct gw_saver *saver);

/* A list as it travels: increment, then pages. */
void gw_saver_list_begin(struct gw_buf *list, uint64_t increment);
void gw_saver_list_add(struct gw_buf *list, const struct gw_saved_page *page);
/* The next page's number of a list that is read from `*at` = 0 on; false at its end. */
bool gw_saver_list_next(const struct gw_buf *list, size_t *at, int32_t *page);

/* Does what a list says on this rank's slice. save: pages for which the thread is too far behind are left out. load: GW_ERR_PEER when a page that the
 * head saw is gone: the next launch will see that, too. */
GW_CHECK gw_err gw_saver_save(struct gw_saver *saver, struct gw_executor *executor, const uint8_t *list, size_t bytes);
GW_CHECK gw_err gw_saver_load(struct gw_saver *saver, struct gw_executor *executor, const uint8_t *list, size_t bytes);

/* Is the whole page in the checkpoint? Opens it, and checks all of it, at the first question after gw_saver_look_again(). */
bool gw_saver_has(struct gw_saver *saver, const struct gw_ckpt_identity *identity);
void gw_saver_look_again(struct gw_saver *saver);

/* Tells the leader what the thread has done. */
GW_CHECK gw_err gw_saver_poll(struct gw_saver *saver);

#endif
