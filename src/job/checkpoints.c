/* See checkpoints.h. */
#include "job/checkpoints.h"

#include "base/clock.h"
#include "base/log.h"
#include "context/policy.h"

#include <stdlib.h>
#include <string.h>

struct gw_checkpoints {
    const struct gw_job_options *options;
    struct gw_ckpt_set *set;
    struct gw_ckpt_policy policy;
    double began_s; /* this leader */
    double last_s;  /* begin of the last one */
    bool under_way, again, may_prune;
    int heads_due, ranks_due;
    uint64_t bytes;
    double cost_s; /* the most of any rank */
    struct gw_buf keep;
};

gw_err gw_checkpoints_open(const struct gw_job_options *options, const struct gw_model *model, bool sweep,
                           struct gw_checkpoints **out)
{
    gw_err rc = GW_OK;
    char fingerprint[65];
    struct gw_dims dims = gw_executor_dims(model);
    struct gw_checkpoints *checkpoints = gw_alloc(1, sizeof *checkpoints);
    gw_model_fingerprint(model, fingerprint);
    struct gw_ckpt_model of = gw_ckpt_model(fingerprint, &dims);
    checkpoints->options = options;
    checkpoints->policy = gw_ckpt_policy_default();
    checkpoints->began_s = checkpoints->last_s = gw_clock_now_s();
    if (options->checkpoint_s != 0) rc = gw_ckpt_set_open(options->out_dir, &of, sweep, &checkpoints->set);
    if (rc == GW_ERR_FORMAT || rc == GW_ERR_MISMATCH) { /* an aid, not a need */
        gw_warn("the job goes on without checkpoints: %s", gw_error_detail());
        checkpoints->set = NULL;
        rc = GW_OK;
    }
    *out = checkpoints;
    if (rc != GW_OK) gw_checkpoints_close(checkpoints);
    return rc;
}

bool gw_checkpoints_on(const struct gw_checkpoints *checkpoints)
{
    return checkpoints->set != NULL;
}

void gw_checkpoints_close(struct gw_checkpoints *checkpoints)
{
    if (!checkpoints) return;
    if (checkpoints->set) gw_ckpt_set_close(checkpoints->set);
    gw_buf_free(&checkpoints->keep);
    free(checkpoints);
}

double gw_checkpoints_interval_s(const struct gw_checkpoints *checkpoints)
{
    if (checkpoints->options->checkpoint_s > 0) return checkpoints->options->checkpoint_s;
    return gw_ckpt_policy_interval_s(&checkpoints->policy);
}

bool gw_checkpoints_due(const struct gw_checkpoints *checkpoints, double now_s)
{
    return checkpoints->set && !checkpoints->under_way &&
           now_s - checkpoints->last_s > gw_checkpoints_interval_s(checkpoints);
}

uint64_t gw_checkpoints_begin(struct gw_checkpoints *checkpoints, int heads, int ranks, double now_s)
{
    checkpoints->under_way = checkpoints->set != NULL;
    checkpoints->heads_due = heads;
    checkpoints->ranks_due = ranks;
    checkpoints->last_s = now_s;
    checkpoints->policy.running_s = now_s - checkpoints->began_s;
    checkpoints->bytes = 0;
    checkpoints->cost_s = 0;
    gw_buf_clear(&checkpoints->keep);
    return checkpoints->set ? gw_ckpt_set_increment(checkpoints->set) + 1 : 0;
}

bool gw_checkpoints_under_way(const struct gw_checkpoints *checkpoints)
{
    return checkpoints->under_way;
}

void gw_checkpoints_interrupted(struct gw_checkpoints *checkpoints, bool lost)
{
    checkpoints->policy.failures += lost;
    if (!checkpoints->under_way) return;
    checkpoints->under_way = false;
    if (gw_ckpt_set_commit(checkpoints->set) != GW_OK) gw_warn("%s", gw_error_detail());
}

bool gw_checkpoints_again(struct gw_checkpoints *checkpoints)
{
    bool again = checkpoints->again;
    checkpoints->again = false;
    return again;
}

void gw_checkpoints_may_prune(struct gw_checkpoints *checkpoints, bool may)
{
    checkpoints->may_prune = may;
}

void gw_checkpoints_keep(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes)
{
    if (!checkpoints->under_way || bytes % sizeof(struct gw_ckpt_identity)) return;
    gw_buf_add(&checkpoints->keep, data, bytes);
    checkpoints->heads_due--;
}

/* All files of the increment are known: those that nobody has a use for go, and the set counts. */
static void complete(struct gw_checkpoints *checkpoints)
{
    const struct gw_ckpt_identity *keep = (const struct gw_ckpt_identity *)(const void *)checkpoints->keep.data;
    size_t count = checkpoints->keep.bytes / sizeof *keep;
    checkpoints->under_way = false;
    for (size_t i = 0; i < count && !checkpoints->again; i++)
        checkpoints->again = !gw_ckpt_set_has(checkpoints->set, &keep[i]);
    gw_ckpt_policy_cost(&checkpoints->policy, checkpoints->cost_s);
    if (checkpoints->heads_due == 0 && checkpoints->may_prune)
        gw_ckpt_set_prune(checkpoints->set, keep, count, 1e-9, NULL);
    if (gw_ckpt_set_commit(checkpoints->set) != GW_OK) gw_warn("%s", gw_error_detail());
}

gw_err gw_checkpoints_saved(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes, bool *done,
                            uint64_t *increment_bytes, double *cost_s)
{
    struct gw_saved_report report;
    struct gw_reader in = {.data = data, .bytes = bytes};
    const void *head = gw_read(&in, sizeof report);
    *done = false;
    if (!head) return gw_fail(GW_ERR_PEER, "a report of %zu bytes about a checkpoint is malformed", bytes);
    memcpy(&report, head, sizeof report);
    if (!checkpoints->set) return GW_OK;
    if (report.kind == GW_CKPT_FILE) {
        struct gw_ckpt_file file;
        gw_err rc = gw_ckpt_file_decode(&in, &file);
        if (rc != GW_OK) return rc;
        if (gw_ckpt_set_add(checkpoints->set, &file) != GW_OK) gw_warn("%s", gw_error_detail());
    } else if (report.kind == GW_CKPT_ERROR) {
        report.error[sizeof report.error - 1] = 0;
        gw_warn("a part of a checkpoint is left out: %s", report.error);
    } else if (checkpoints->under_way) {
        checkpoints->bytes += report.bytes;
        if (report.cost_s > checkpoints->cost_s) checkpoints->cost_s = report.cost_s;
        if (--checkpoints->ranks_due > 0) return GW_OK;
        complete(checkpoints);
        *done = true;
        *increment_bytes = checkpoints->bytes;
        *cost_s = checkpoints->cost_s;
    }
    return GW_OK;
}

void gw_checkpoints_drop(struct gw_checkpoints *checkpoints)
{
    if (!checkpoints->set) return;
    gw_ckpt_set_prune(checkpoints->set, NULL, 0, 1e-9, NULL);
    if (gw_ckpt_set_commit(checkpoints->set) != GW_OK) gw_warn("%s", gw_error_detail());
}
