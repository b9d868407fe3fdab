/* See solo.h. */
#include "job/solo.h"

#include "base/process.h"

gw_err gw_solo_open(struct gw_solo *solo, const char *model_path, int threads, int kv_tokens, int max_rows, int context)
{
    gw_err rc = GW_OK;
    *solo = (struct gw_solo){.max_rows = max_rows};
    TRY(gw_model_open(model_path, &solo->model));
    solo->dims = gw_executor_dims(solo->model);
    solo->context = context ? context : gw_model_info(solo->model)->context;
    solo->threads = threads ? threads : gw_process_cpus();
    solo->kv_pages = (kv_tokens + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    solo->team = (struct gw_team){.layout = {.data = 1, .tensor = 1, .pipeline = 1}, .ranks = &solo->rank};
    struct gw_executor_config config = {.model = solo->model,
                                        .team = &solo->team,
                                        .threads = solo->threads,
                                        .local_size = 1,
                                        .kv_pages = solo->kv_pages,
                                        .max_rows = max_rows,
                                        .max_context = solo->context};
    TRY(gw_executor_create(&config, &solo->executor));
out:
    return rc;
}

void gw_solo_close(struct gw_solo *solo)
{
    gw_executor_destroy(solo->executor);
    gw_model_close(solo->model);
    *solo = (struct gw_solo){0};
}

gw_err gw_solo_forward(struct gw_solo *solo, struct gw_step *step, const int32_t *ids, int pos0, int count)
{
    gw_step_clear(step);
    struct gw_step_seq *seq = gw_step_add_seq(step);
    seq->rows = count;
    seq->pos0 = pos0;
    gw_step_add_tokens(step, ids, count);
    for (int32_t page = 0; page * GW_PAGE_TOKENS < pos0 + count; page++) gw_step_add_pages(step, &page, 1);
    return gw_executor_forward(solo->executor, step, GW_OUTPUTS_ALL, NULL, NULL);
}
