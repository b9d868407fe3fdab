/* The writer of one rank: pages come in at step boundaries, a thread makes files of them. See checkpoint.h.
 *
 * There are several parts (buffers): the rank fills one while the thread writes another, so the memory is bounded and the rank never
 * waits. When all are taken the rank is told "not now". A part is handed over when it is full, when a slice of another shape comes, or
 * when the increment ends.
 *
 * The lock covers the queue of orders, the queue of reports and the state of parts; a part's contents belong to the rank while it is
 * FILLING and to the thread while it is QUEUED.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "context/internal.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_PARTS = 1024, DEFAULT_PART_BYTES = 4 << 20, DEFAULT_STAGING_BYTES = 8 << 20 };

enum part_state { FREE, FILLING, QUEUED };

struct part {
    enum part_state state;
    struct gw_ckpt_part pages; /* its arrays have room for `room` pages */
    int room;
    size_t kv_bytes; /* of memory at pages.kv */
};

/* What the thread is to do, in order: write a part, then perhaps report the end of the increment. */
struct order {
    struct order *next;
    struct part *part; /* NULL: none */
    bool end;
    uint64_t increment;
    double begun_s;
};

struct queued_report {
    struct queued_report *next;
    struct gw_ckpt_report report;
};

struct gw_ckpt_writer {
    struct gw_ckpt_writer_config config;
    char *folder;
    pthread_t thread;
    /* the rank's */
    struct part *filling;
    uint64_t increment;
    double begun_s;
    bool open; /* between begin and end */
    /* the thread's: sums of the increment */
    struct gw_ckpt_report sums;
    /* under the lock */
    pthread_mutex_t lock;
    pthread_cond_t work;
    bool quit;
    struct part *parts; /* [part_count] */
    int part_count;
    struct order *orders, **last_order;
    struct queued_report *reports, **last_report;
    int pending; /* orders that are not done yet */
};

/* ---- the thread ----------------------------------------------------------------------------------------------------- */

static double thread_cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* With the lock held. */
static void push_report(struct gw_ckpt_writer *writer, const struct gw_ckpt_report *report)
{
    struct queued_report *queued = gw_alloc(1, sizeof *queued);
    queued->report = *report;
    *writer->last_report = queued;
    writer->last_report = &queued->next;
}

static void write_part(struct gw_ckpt_writer *writer, const struct gw_ckpt_part *pages)
{
    struct gw_ckpt_report report = {.kind = GW_CKPT_FILE, .increment = pages->increment};
    double begun_s = gw_clock_now_s(), cpu_s = thread_cpu_s();
    gw_err rc = gw_ckpt_h5_write(&writer->config.model, pages, writer->folder, &report.file);
    report.seconds = gw_clock_now_s() - begun_s;
    report.cpu_s = thread_cpu_s() - cpu_s;
    writer->sums.cpu_s += report.cpu_s;
    if (rc == GW_OK) {
        report.files = 1;
        report.pages = report.file.pages;
        report.bytes = report.file.bytes;
        writer->sums.files++;
        writer->sums.pages += report.pages;
        writer->sums.bytes += report.bytes;
    } else {
        report.kind = GW_CKPT_ERROR;
        snprintf(report.error, sizeof report.error, "%s; %d pages are not in the checkpoint", gw_error_detail(),
                 pages->pages);
    }
    pthread_mutex_lock(&writer->lock);
    push_report(writer, &report);
    pthread_mutex_unlock(&writer->lock);
}

/* The next order, NULL when the writer is to end. */
static struct order *next_order(struct gw_ckpt_writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    while (!writer->quit && !writer->orders) pthread_cond_wait(&writer->work, &writer->lock);
    struct order *order = writer->quit ? NULL : writer->orders;
    if (order) {
        writer->orders = order->next;
        if (!writer->orders) writer->last_order = &writer->orders;
    }
    pthread_mutex_unlock(&writer->lock);
    return order;
}

static void *run_thread(void *context)
{
    struct gw_ckpt_writer *writer = context;
    if (writer->config.nice > 0) { /* Linux: of this thread alone */
        id_t self = (id_t)syscall(SYS_gettid);
        setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + writer->config.nice);
    }
    for (struct order *order; (order = next_order(writer));) {
        if (order->part) {
            write_part(writer, &order->part->pages);
            madvise((void *)order->part->pages.kv, order->part->kv_bytes, MADV_DONTNEED);
        }
        pthread_mutex_lock(&writer->lock);
        if (order->part) order->part->state = FREE;
        writer->pending--;
        if (order->end) { /* who hears this finds the writer idle */
            writer->sums.kind = GW_CKPT_DONE;
            writer->sums.increment = order->increment;
            writer->sums.seconds = gw_clock_now_s() - order->begun_s;
            push_report(writer, &writer->sums);
            writer->sums = (struct gw_ckpt_report){0};
        }
        pthread_mutex_unlock(&writer->lock);
        free(order);
    }
    return NULL;
}

/* ---- create, destroy ------------------------------------------------------------------------------------------------- */

gw_err gw_ckpt_writer_create(const struct gw_ckpt_writer_config *config, struct gw_ckpt_writer **writer)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_writer *made = gw_alloc(1, sizeof *made);
    *writer = NULL;
    GW_ASSERT(gw_ckpt_model_ok(&config->model) && config->writer >= 0);
    made->config = *config;
    made->config.dir = NULL;
    if (!made->config.part_bytes) made->config.part_bytes = DEFAULT_PART_BYTES;
    if (!made->config.staging_bytes) made->config.staging_bytes = DEFAULT_STAGING_BYTES;
    size_t parts = made->config.staging_bytes / made->config.part_bytes;
    made->part_count = parts < 2 ? 2 : parts > MOST_PARTS ? MOST_PARTS : (int)parts;
    made->parts = gw_alloc((size_t)made->part_count, sizeof *made->parts);
    made->folder = gw_asprintf("%s/%s", config->dir, GW_CKPT_FOLDER);
    made->last_order = &made->orders;
    made->last_report = &made->reports;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->work, NULL);
    TRY(gw_make_dir(made->folder));
    sigset_t all, before; /* signals are for the rank's main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&made->thread, NULL, run_thread, made);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) FAIL(GW_ERR_MEMORY, "cannot start the thread that writes checkpoints: %s", strerror(failed));
    *writer = made;
out:
    if (rc != GW_OK) {
        free(made->parts);
        free(made->folder);
        free(made);
    }
    return rc;
}

static void free_part(struct part *part)
{
    free(part->pages.identities);
    free(part->pages.parents);
    free(part->pages.tokens);
    if (part->pages.kv) gw_free_large((void *)part->pages.kv, part->kv_bytes);
}

void gw_ckpt_writer_destroy(struct gw_ckpt_writer *writer)
{
    struct gw_ckpt_report report;
    if (!writer) return;
    pthread_mutex_lock(&writer->lock);
    writer->quit = true;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
    pthread_join(writer->thread, NULL);
    while (gw_ckpt_writer_poll(writer, &report)) gw_ckpt_file_free(&report.file);
    for (struct order *order = writer->orders, *next; order; order = next) {
        next = order->next;
        free(order);
    }
    for (int i = 0; i < writer->part_count; i++) free_part(&writer->parts[i]);
    free(writer->parts);
    pthread_mutex_destroy(&writer->lock);
    pthread_cond_destroy(&writer->work);
    free(writer->folder);
    free(writer);
}

/* ---- the rank's side ------------------------------------------------------------------------------------------------- */

void gw_ckpt_writer_begin(struct gw_ckpt_writer *writer, uint64_t increment)
{
    GW_ASSERT(!writer->open);
    writer->open = true;
    writer->increment = increment;
    writer->begun_s = gw_clock_now_s();
}

/* Gives the part that is being filled (if it has pages), and with `end` the end of the increment, to the thread. */
static void hand_over(struct gw_ckpt_writer *writer, bool end)
{
    struct part *part = writer->filling;
    bool any = part && part->pages.pages > 0;
    if (!any && !end) return;
    struct order *order = gw_alloc(1, sizeof *order);
    *order = (struct order){
        .part = any ? part : NULL, .end = end, .increment = writer->increment, .begun_s = writer->begun_s};
    pthread_mutex_lock(&writer->lock);
    if (any) part->state = QUEUED;
    *writer->last_order = order;
    writer->last_order = &order->next;
    writer->pending++;
    pthread_cond_signal(&writer->work);
    pthread_mutex_unlock(&writer->lock);
    if (any) writer->filling = NULL;
}

/* Pages in a part: as many as its bytes allow, one at least. */
static size_t part_room(size_t part_bytes, size_t page_bytes)
{
    size_t room = part_bytes / page_bytes ? part_bytes / page_bytes : 1;
    return room > 1 << 16 ? 1 << 16 : room;
}

int gw_ckpt_staged_pages(const struct gw_ckpt_model *model, const struct gw_ckpt_slice *slice)
{
    size_t page_bytes = gw_ckpt_slice_halves(model, slice) * sizeof(uint16_t);
    if (!page_bytes) return INT_MAX;
    return (int)part_room(DEFAULT_PART_BYTES, page_bytes) * (DEFAULT_STAGING_BYTES / DEFAULT_PART_BYTES);
}

/* Fits an empty part to slices of this shape. */
static bool shape_part(struct gw_ckpt_writer *writer, struct part *part, const struct gw_ckpt_slice *slice)
{
    size_t page_bytes = gw_ckpt_slice_halves(&writer->config.model, slice) * sizeof(uint16_t);
    size_t room = part_room(writer->config.part_bytes, page_bytes);
    if (part->kv_bytes < room * page_bytes) {
        void *memory = NULL;
        if (part->pages.kv) gw_free_large((void *)part->pages.kv, part->kv_bytes);
        part->pages.kv = NULL;
        part->kv_bytes = 0;
        if (gw_alloc_large(room * page_bytes, "a checkpoint's pages", &memory) != GW_OK) {
            gw_debug("%s", gw_error_detail()); /* asked again at a later step */
            return false;
        }
        part->pages.kv = memory;
        part->kv_bytes = room * page_bytes;
    }
    if (part->room < (int)room) {
        part->pages.identities = gw_realloc(part->pages.identities, room, sizeof *part->pages.identities);
        part->pages.parents = gw_realloc(part->pages.parents, room, sizeof *part->pages.parents);
        part->pages.tokens = gw_realloc(part->pages.tokens, room, GW_PAGE_TOKENS * sizeof *part->pages.tokens);
    }
    part->room = (int)room;
    part->pages.slice = *slice;
    part->pages.increment = writer->increment;
    part->pages.writer = writer->config.writer;
    part->pages.pages = 0;
    return true;
}

/* A part with room for one more slice of this shape, NULL: none is free. */
static struct part *part_for(struct gw_ckpt_writer *writer, const struct gw_ckpt_slice *slice)
{
    struct part *part = writer->filling;
    if (part && part->pages.pages > 0) {
        if (part->pages.pages < part->room && gw_ckpt_slice_equal(&part->pages.slice, slice)) return part;
        hand_over(writer, false);
        part = NULL;
    }
    pthread_mutex_lock(&writer->lock);
    for (int i = 0; i < writer->part_count && !part; i++)
        if (writer->parts[i].state == FREE) part = &writer->parts[i];
    if (part) part->state = FILLING;
    pthread_mutex_unlock(&writer->lock);
    writer->filling = part;
    return part && shape_part(writer, part, slice) ? part : NULL;
}

uint16_t *gw_ckpt_writer_page(struct gw_ckpt_writer *writer, const struct gw_ckpt_slice *slice,
                              const struct gw_ckpt_identity *parent, const int32_t tokens[GW_PAGE_TOKENS])
{
    GW_ASSERT(writer->open && gw_ckpt_slice_ok(&writer->config.model, slice));
    struct part *part = part_for(writer, slice);
    if (!part) return NULL;
    struct gw_ckpt_part *pages = &part->pages;
    int row = pages->pages++;
    pages->identities[row] = gw_ckpt_identity(&writer->config.model, parent, tokens);
    pages->parents[row] = parent ? *parent : (struct gw_ckpt_identity){0};
    memcpy(pages->tokens + (size_t)row * GW_PAGE_TOKENS, tokens, GW_PAGE_TOKENS * sizeof *tokens);
    return (uint16_t *)pages->kv + (size_t)row * gw_ckpt_slice_halves(&writer->config.model, slice);
}

void gw_ckpt_writer_cancel(struct gw_ckpt_writer *writer)
{
    GW_ASSERT(writer->filling && writer->filling->pages.pages > 0);
    writer->filling->pages.pages--;
}

void gw_ckpt_writer_end(struct gw_ckpt_writer *writer)
{
    GW_ASSERT(writer->open);
    hand_over(writer, true);
    writer->open = false;
}

bool gw_ckpt_writer_poll(struct gw_ckpt_writer *writer, struct gw_ckpt_report *report)
{
    pthread_mutex_lock(&writer->lock);
    struct queued_report *queued = writer->reports;
    if (queued) {
        writer->reports = queued->next;
        if (!writer->reports) writer->last_report = &writer->reports;
    }
    pthread_mutex_unlock(&writer->lock);
    if (!queued) return false;
    *report = queued->report;
    free(queued);
    return true;
}

bool gw_ckpt_writer_idle(struct gw_ckpt_writer *writer)
{
    pthread_mutex_lock(&writer->lock);
    bool idle = !writer->pending && !writer->reports;
    pthread_mutex_unlock(&writer->lock);
    return idle && !(writer->filling && writer->filling->pages.pages > 0);
}
