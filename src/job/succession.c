/* See succession.h. */
#include "job/succession.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "job/snapshot.h"
#include "store/store.h"

#include <sys/stat.h>
#include <time.h>

enum { SNAPSHOT_BYTES = 65536, SNAPSHOT_SEQUENCE_BYTES = 4096 }; /* besides the numbers of its pages */

/* One model file, as the ranks of a node see it. */
static uint64_t key_of(const char *path)
{
    struct stat file = {0};
    uint64_t parts[5] = {0};
    if (stat(path, &file) == 0) {
        parts[0] = (uint64_t)file.st_dev;
        parts[1] = (uint64_t)file.st_ino;
        parts[2] = (uint64_t)file.st_size;
        parts[3] = (uint64_t)file.st_mtim.tv_sec;
        parts[4] = (uint64_t)file.st_mtim.tv_nsec;
    }
    return gw_hash64(parts, sizeof parts, 0);
}

uint64_t gw_succession_model_key(const struct gw_job_options *options)
{
    return key_of(options->model_path);
}

/* Goes on without. */
static void give_up(struct gw_succession *own)
{
    gw_debug("no context store: %s", gw_error_detail());
    gw_snapshot_close(own->snapshot);
    own->snapshot = NULL;
}

void gw_succession_open(struct gw_succession *own, const struct gw_job_options *options, int context)
{
    size_t pages = (size_t)context / GW_PAGE_TOKENS + 2;
    *own = (struct gw_succession){.model_key = key_of(options->model_path)};
    own->snapshot_bytes = SNAPSHOT_BYTES +
                          (size_t)options->max_seqs * (SNAPSHOT_SEQUENCE_BYTES + sizeof(int32_t) * pages);
    if (!options->store) return;
    gw_err rc = gw_store_connect(options->out_dir, &own->store);
    if (rc == GW_OK) rc = gw_store_usage(own->store, &own->held_bytes);
    if (rc == GW_OK) rc = gw_snapshot_open(own->store, own->snapshot_bytes, &own->snapshot);
    if (rc != GW_OK) give_up(own);
}

void gw_succession_close(struct gw_succession *own)
{
    gw_succession_done(own);
    gw_snapshot_close(own->snapshot);
    gw_store_close(own->store);
    *own = (struct gw_succession){0};
}

bool gw_succession_take(struct gw_succession *own, double patience_s)
{
    const struct timespec turn = {.tv_nsec = 500000};
    bool taken = false;
    int held = 0;
    if (!own->snapshot) return false;
    gw_succession_done(own);
    gw_snapshot_close(own->snapshot);
    own->snapshot = NULL;
    gw_err rc = gw_store_take(own->store, &taken, &held);
    for (double until_s = gw_clock_now_s() + patience_s;
         rc == GW_OK && !taken && held > 0 && gw_clock_now_s() < until_s;) {
        nanosleep(&turn, NULL);
        rc = gw_store_take(own->store, &taken, &held);
    }
    if (rc == GW_OK) rc = gw_snapshot_open(own->store, own->snapshot_bytes, &own->snapshot);
    if (rc != GW_OK) give_up(own);
    if (rc != GW_OK || !taken) return false;
    if (gw_snapshot_read(own->snapshot, &own->before, &own->tokens) && own->before.peer.placed) return true;
    gw_succession_done(own);
    return false;
}

void gw_succession_done(struct gw_succession *own)
{
    gw_hello_free(&own->before);
    own->before = (struct gw_hello){0};
    gw_buf_free(&own->tokens);
}

void gw_succession_keep(struct gw_succession *own, uint64_t number)
{
    if (own->store && gw_store_keep(own->store, number) != GW_OK) gw_debug("%s", gw_error_detail());
}
