/* See saver.h. */
#include "job/saver.h"

#include "base/clock.h"
#include "base/log.h"
#include "comm/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEADER = 0, NICE = 5 };

struct gw_saver {
    struct gw_comm *comm;
    char *out_dir;
    struct gw_ckpt_model model;
    struct gw_ckpt_writer *writer; /* from the first list to save on */
    struct gw_ckpt *reader;        /* from the first question on */
    bool saving;
    double exported_s; /* this rank's own time of the increment under way */
    struct gw_buf message;
    uint16_t *halves; /* one slice of a page, for loading */
    size_t halves_count;
};

gw_err gw_saver_create(struct gw_comm *comm, const char *out_dir, const struct gw_model *model, struct gw_saver **out)
{
    char fingerprint[65];
    struct gw_dims dims = gw_executor_dims(model);
    struct gw_saver *saver = gw_alloc(1, sizeof *saver);
    gw_model_fingerprint(model, fingerprint);
    saver->comm = comm;
    saver->out_dir = gw_strdup(out_dir);
    saver->model = gw_ckpt_model(fingerprint, &dims);
    *out = saver;
    return GW_OK;
}

void gw_saver_destroy(struct gw_saver *saver)
{
    if (!saver) return;
    gw_ckpt_writer_destroy(saver->writer);
    gw_ckpt_close(saver->reader);
    free(saver->out_dir);
    free(saver->halves);
    gw_buf_free(&saver->message);
    free(saver);
}

const struct gw_ckpt_model *gw_saver_model(const struct gw_saver *saver)
{
    return &saver->model;
}

void gw_saver_list_begin(struct gw_buf *list, uint64_t increment)
{
    gw_buf_clear(list);
    gw_buf_add_u64(list, increment);
}

void gw_saver_list_add(struct gw_buf *list, const struct gw_saved_page *page)
{
    gw_buf_add(list, page, sizeof *page);
}

bool gw_saver_list_next(const struct gw_buf *list, size_t *at, int32_t *page)
{
    struct gw_saved_page saved;
    size_t begin = sizeof(uint64_t) + *at * sizeof saved;
    if (begin + sizeof saved > list->bytes) return false;
    memcpy(&saved, list->data + begin, sizeof saved);
    *page = saved.page;
    ++*at;
    return true;
}

static bool next_page(struct gw_reader *in, struct gw_saved_page *page)
{
    if (in->at == in->bytes) return false;
    const void *data = gw_read(in, sizeof *page);
    if (data) memcpy(page, data, sizeof *page);
    return data != NULL;
}

static struct gw_ckpt_slice slice_of(struct gw_executor *executor)
{
    struct gw_shard shard = gw_executor_shard(executor);
    return (struct gw_ckpt_slice){shard.layer_begin, shard.layer_end, shard.kv_begin, shard.kv_end};
}

/* ---- saving ---------------------------------------------------------------------------------------------------- */

static gw_err make_writer(struct gw_saver *saver)
{
    struct gw_ckpt_writer_config config = {
        .dir = saver->out_dir, .model = saver->model, .writer = gw_comm_member(saver->comm), .nice = NICE};
    return saver->writer ? GW_OK : gw_ckpt_writer_create(&config, &saver->writer);
}

gw_err gw_saver_save(struct gw_saver *saver, struct gw_executor *executor, const uint8_t *list, size_t bytes)
{
    gw_err rc = GW_OK;
    struct gw_reader in = {.data = list, .bytes = bytes};
    struct gw_saved_page page;
    struct gw_backend *backend = gw_executor_backend(executor);
    struct gw_ckpt_slice slice = slice_of(executor);
    size_t layer_halves = gw_ckpt_layer_halves(&saver->model, &slice);
    uint64_t increment = gw_read_u64(&in);
    double began_s = gw_clock_now_s();
    if (saver->saving || in.failed) return GW_OK; /* the one before is not on disk yet */
    TRY(make_writer(saver));
    gw_ckpt_writer_begin(saver->writer, increment);
    while (layer_halves && next_page(&in, &page)) {
        uint16_t *halves = gw_ckpt_writer_page(saver->writer, &slice, page.has_parent ? &page.parent : NULL,
                                               page.tokens);
        if (!halves) break; /* the thread is behind: the rest is saved another time, or computed again */
        for (int layer = slice.layer_begin; layer < slice.layer_end && rc == GW_OK; layer++)
            rc = backend->ops->kv_export(backend, layer, page.page, slice.kv_begin, slice.kv_end,
                                         halves + (size_t)(layer - slice.layer_begin) * layer_halves);
        if (rc != GW_OK) {
            gw_ckpt_writer_cancel(saver->writer);
            break;
        }
    }
    gw_ckpt_writer_end(saver->writer);
    saver->saving = true;
    saver->exported_s = gw_clock_now_s() - began_s;
out:
    return rc;
}

gw_err gw_saver_poll(struct gw_saver *saver)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_report report;
    while (saver->saving && gw_ckpt_writer_poll(saver->writer, &report)) {
        struct gw_saved_report told = {.kind = (int32_t)report.kind,
                                       .increment = report.increment,
                                       .bytes = report.bytes};
        if (report.kind == GW_CKPT_ERROR) snprintf(told.error, sizeof told.error, "%s", report.error);
        if (report.kind == GW_CKPT_DONE) {
            saver->saving = false;
            told.cost_s = saver->exported_s + report.cpu_s;
        }
        gw_buf_clear(&saver->message);
        gw_buf_add(&saver->message, &told, sizeof told);
        if (report.kind == GW_CKPT_FILE) gw_ckpt_file_encode(&report.file, &saver->message);
        gw_ckpt_file_free(&report.file);
        TRY(gw_comm_send(saver->comm, LEADER, GW_MSG_SAVED, 0, saver->message.data, saver->message.bytes));
    }
out:
    return rc;
}

/* ---- loading --------------------------------------------------------------------------------------------------- */

/* Opens the checkpoint and reads all of it once, so that what is damaged is known before anything is counted on. */
static void open_reader(struct gw_saver *saver)
{
    if (saver->reader) return;
    if (gw_ckpt_open(saver->out_dir, &saver->model, &saver->reader) != GW_OK) {
        gw_warn("the checkpoint is not used: %s", gw_error_detail());
        saver->reader = NULL;
        return;
    }
    for (int i = 0; i < gw_ckpt_files(saver->reader); i++) {
        if (!gw_ckpt_verify(saver->reader, i)) gw_ckpt_exclude(saver->reader, i);
        gw_comm_beat(saver->comm);
    }
}

void gw_saver_look_again(struct gw_saver *saver)
{
    gw_ckpt_close(saver->reader);
    saver->reader = NULL;
}

bool gw_saver_has(struct gw_saver *saver, const struct gw_ckpt_identity *identity)
{
    open_reader(saver);
    return saver->reader && gw_ckpt_has(saver->reader, identity);
}

gw_err gw_saver_load(struct gw_saver *saver, struct gw_executor *executor, const uint8_t *list, size_t bytes)
{
    gw_err rc = GW_OK;
    struct gw_reader in = {.data = list, .bytes = bytes};
    struct gw_saved_page page;
    struct gw_backend *backend = gw_executor_backend(executor);
    struct gw_ckpt_slice slice = slice_of(executor);
    size_t layer_halves = gw_ckpt_layer_halves(&saver->model, &slice),
           need = gw_ckpt_slice_halves(&saver->model, &slice);
    gw_read_u64(&in);
    open_reader(saver);
    if (need > saver->halves_count) {
        free(saver->halves);
        saver->halves = gw_alloc(need, sizeof *saver->halves);
        saver->halves_count = need;
    }
    while (need && next_page(&in, &page)) {
        if (!saver->reader || gw_ckpt_read(saver->reader, &page.identity, &slice, saver->halves) != GW_OK)
            FAIL(GW_ERR_PEER, "a page of the checkpoint in %s/%s has gone since it was checked", saver->out_dir,
                 GW_CKPT_FOLDER);
        for (int layer = slice.layer_begin; layer < slice.layer_end; layer++)
            TRY(backend->ops->kv_import(backend, layer, page.page, slice.kv_begin, slice.kv_end,
                                        saver->halves + (size_t)(layer - slice.layer_begin) * layer_halves));
        gw_comm_beat(saver->comm);
    }
out:
    return rc;
}
