/* The executor of one rank: runs planned steps on the rank's slice of the model, together with its tensor shards.
 *
 * It owns the backend, the rank's threads and the samplers, and knows the rank's place in the layout; what a step computes is
 * entirely in the step. Used by every rank of a job (job/head.c, job/worker.c) and, as a world of one without MPI, by the
 * commands bench and perplexity.
 */
#ifndef GW_JOB_EXECUTOR_H
#define GW_JOB_EXECUTOR_H

#include "engine/backend.h"
#include "engine/sampler.h"
#include "job/protocol.h"
#include "job/team.h"
#include "model/arch.h"

struct gw_comm;
struct gw_pool;

struct gw_executor_config {
    const struct gw_model *model; /* borrowed */
    struct gw_comm *comm;         /* borrowed; NULL: a world of one */
    const struct gw_team *team;   /* borrowed */
    int threads;
    int local_rank, local_size; /* among the ranks of this node, for pinning */
    int kv_pages, max_rows, max_context;
    struct gw_executor
        *donor; /* this rank's executor of the plan before, or NULL: what stays the same is shared (engine/backend.h) */
    /* as in struct gw_backend_config */
    const bool *awaited;
    struct gw_store *store;
    uint64_t model_key;
    bool resumed;
    void (*tick)(void *context);
    void *tick_context;
    /* Called before every layer of a step, which may be long (NULL: not wanted); its error ends the step. */
    gw_err (*between)(void *context);
    void *between_context;
};

struct gw_executor; /* opaque */

/* The planner's view of a model. */
struct gw_dims gw_executor_dims(const struct gw_model *model);

/* Loads this rank's slice. Local (no communication). */
GW_CHECK gw_err gw_executor_create(const struct gw_executor_config *config, struct gw_executor **executor);
void gw_executor_destroy(struct gw_executor *executor);

/* Cuts a step in parts (engine/step.h) where that is faster. For who plans it, before it goes to the other ranks. */
void gw_executor_cut(const struct gw_executor *executor, struct gw_step *step);

/* Of which rows logits will be asked for. */
enum gw_outputs {
    GW_OUTPUTS_DRAWN, /* those that a token is drawn from: the model's last layer computes little more than keys and values of the others */
    GW_OUTPUTS_ALL,
};

/* Runs the stage's layers on a step. `hidden_in`: float32 [rows][d_model] of the stage before (NULL on the first); `hidden_out`
 * receives the rows (NULL on the last). Collective over the tensor shards of the stage. */
GW_CHECK gw_err gw_executor_forward(struct gw_executor *executor, const struct gw_step *step, enum gw_outputs outputs,
                                    const float *hidden_in, float *hidden_out);

/* After forward on the last stage: draws the step's tokens. Sampled sequences are shared out over the shards: the i-th goes to shard
 * i % tensor. Fills drawn[0 .. *count) with this shard's; `drawn` has room for step->seq_count. Collective over the shards. */
GW_CHECK gw_err gw_executor_draw(struct gw_executor *executor, const struct gw_step *step, struct gw_drawn *drawn,
                                 int *count);

/* After forward with GW_OUTPUTS_ALL on the last stage of a world of one: logits of the given rows, float32 [count][vocab], valid until the next step. */
GW_CHECK gw_err gw_executor_logits(struct gw_executor *executor, const int32_t *rows, int count, float **logits);

/* What the steps since the last call took (job/protocol.h). */
struct gw_pace_report gw_executor_take_pace(struct gw_executor *executor);
double gw_executor_took_s(const struct gw_executor *executor); /* of them, so far */
/* They took longer than was measured: chaos slows this rank. */
void gw_executor_drag(struct gw_executor *executor, double seconds);

/* The rank's slice of the model. */
struct gw_shard gw_executor_shard(const struct gw_executor *executor);
struct gw_backend *gw_executor_backend(struct gw_executor *executor);
/* "avx512", "ref", ... */
const char *gw_executor_kernels(const struct gw_executor *executor);

#endif
