/* A world of one without MPI: model and executor for commands that measure or inspect (perplexity, bench). Local. */
#ifndef GW_JOB_SOLO_H
#define GW_JOB_SOLO_H

#include "job/executor.h"

struct gw_solo {
    struct gw_model *model;
    struct gw_executor *executor;
    struct gw_dims dims;
    struct gw_team team;
    int rank; /* 0: all of the team */
    int threads, kv_pages, max_rows, context;
};

/* Opens a model (the struct must not move until it is closed) with KV pages for `kv_tokens` tokens; threads 0: one per CPU; context 0: the model's. gw_solo_close() ends it, also after
 * an error. */
GW_CHECK gw_err gw_solo_open(struct gw_solo *solo, const char *model_path, int threads, int kv_tokens, int max_rows,
                             int context);
void gw_solo_close(struct gw_solo *solo);

/* Runs tokens ids[0 .. count) at positions pos0.. of one sequence that owns pages 0.. ; count <= max_rows. */
GW_CHECK gw_err gw_solo_forward(struct gw_solo *solo, struct gw_step *step, const int32_t *ids, int pos0, int count);

#endif
