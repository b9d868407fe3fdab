/* See checkpoints.h. */
#include "job/checkpoints.h"

#include "base/clock.h"
#include "base/log.h"
#include "context/policy.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Rounds that follow each other are committed together, so often. */
static const double commit_s = 1;

struct gw_checkpoints {
    const struct gw_job_options *options;
    struct gw_ckpt_set *set;
    struct gw_ckpt_policy policy;
    double began_s; /* this leader */
    double last_s;  /* begin of the last one */
    bool again, may_prune;
    bool due_now, hurry, last; /* see gw_checkpoints_hurry() */
    /* the checkpoint */
    int rounds, rounds_left; /* done; still wanted, 0: it has ended */
    bool done, uncommitted;
    double committed_s;
    uint64_t bytes;
    double cost_s; /* sum over its rounds of the most of any rank */
    /* the round */
    bool under_way;
    int heads_due, ranks_due;
    int more; /* rounds that the head with the most pages needs after this one */
    double round_cost_s;
    struct gw_buf keep, offered; /* identities; offered: of those that are in the set after this round */
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

void gw_checkpoints_close(struct gw_checkpoints *checkpoints)
{
    if (!checkpoints) return;
    if (checkpoints->set) gw_ckpt_set_close(checkpoints->set);
    gw_buf_free(&checkpoints->keep);
    gw_buf_free(&checkpoints->offered);
    free(checkpoints);
}

double gw_checkpoints_interval_s(const struct gw_checkpoints *checkpoints)
{
    if (checkpoints->options->checkpoint_s > 0) return checkpoints->options->checkpoint_s;
    return gw_ckpt_policy_interval_s(&checkpoints->policy);
}

bool gw_checkpoints_due(const struct gw_checkpoints *checkpoints, double now_s, double left_s)
{
    double since_s = now_s - checkpoints->last_s;
    if (!checkpoints->set || checkpoints->under_way) return false;
    if (checkpoints->rounds_left > 0 || checkpoints->due_now) return true;
    if (checkpoints->last || since_s <= gw_checkpoints_interval_s(checkpoints)) return false;
    return checkpoints->options->checkpoint_s > 0 || gw_ckpt_policy_worth(&checkpoints->policy, since_s, left_s);
}

uint64_t gw_checkpoints_begin(struct gw_checkpoints *checkpoints, int heads, int ranks, double now_s)
{
    GW_ASSERT(checkpoints->set && !checkpoints->under_way);
    if (checkpoints->rounds_left == 0) {
        checkpoints->last_s = now_s;
        checkpoints->due_now = false;
        checkpoints->policy.running_s = now_s - checkpoints->began_s;
        checkpoints->rounds = 0;
        checkpoints->bytes = 0;
        checkpoints->cost_s = 0;
    }
    checkpoints->under_way = true;
    checkpoints->heads_due = heads;
    checkpoints->ranks_due = ranks;
    checkpoints->more = 0;
    checkpoints->round_cost_s = 0;
    gw_buf_clear(&checkpoints->keep);
    gw_buf_clear(&checkpoints->offered);
    return gw_ckpt_set_increment(checkpoints->set) + 1;
}

void gw_checkpoints_hurry(struct gw_checkpoints *checkpoints, bool last)
{
    checkpoints->due_now = checkpoints->hurry = true;
    checkpoints->last |= last;
    checkpoints->rounds_left = 0; /* what it has not saved the new one does */
}

bool gw_checkpoints_under_way(const struct gw_checkpoints *checkpoints)
{
    return checkpoints->under_way;
}

/* A failure costs a warning: the manifest before goes on to count. */
static void commit(struct gw_checkpoints *checkpoints)
{
    checkpoints->uncommitted = false;
    checkpoints->committed_s = gw_clock_now_s();
    if (gw_ckpt_set_commit(checkpoints->set) != GW_OK) gw_warn("%s", gw_error_detail());
}

void gw_checkpoints_interrupted(struct gw_checkpoints *checkpoints, bool lost)
{
    checkpoints->policy.failures += lost;
    checkpoints->rounds_left = 0;
    if (checkpoints->under_way || checkpoints->uncommitted) commit(checkpoints);
    checkpoints->under_way = false;
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

/* May there be another round? Not where this one failed: the next would, too. */
static bool may_go_on(const struct gw_checkpoints *checkpoints)
{
    if (checkpoints->again || checkpoints->due_now) return false;
    return checkpoints->hurry || checkpoints->options->checkpoint_s > 0 ||
           checkpoints->cost_s < gw_ckpt_policy_budget_s(&checkpoints->policy);
}

/* Once everybody has told. At the end of the checkpoint, and now and then before it (a manifest names all pages), files that nobody has a use for go,
 * and the set counts. */
static void end_round(struct gw_checkpoints *checkpoints)
{
    const struct gw_ckpt_identity *keep = (const struct gw_ckpt_identity *)(const void *)checkpoints->keep.data,
                                  *offered = (const struct gw_ckpt_identity *)(const void *)checkpoints->offered.data;
    size_t kept = checkpoints->keep.bytes / sizeof *keep, count = checkpoints->offered.bytes / sizeof *offered;
    if (checkpoints->heads_due > 0 || checkpoints->ranks_due > 0) return;
    checkpoints->under_way = false;
    for (size_t i = 0; i < count && !checkpoints->again; i++)
        checkpoints->again = !gw_ckpt_set_has(checkpoints->set, &offered[i]);
    checkpoints->cost_s += checkpoints->round_cost_s;
    /* pages that have come since it began are for the next one: decoding may be faster than the disk */
    bool first = checkpoints->rounds++ == 0;
    int left = first || checkpoints->more < checkpoints->rounds_left - 1 ? checkpoints->more
                                                                         : checkpoints->rounds_left - 1;
    checkpoints->rounds_left = may_go_on(checkpoints) ? left : 0;
    checkpoints->done = checkpoints->rounds_left == 0;
    checkpoints->uncommitted = true;
    if (!checkpoints->done && gw_clock_now_s() - checkpoints->committed_s < commit_s) return;
    if (checkpoints->may_prune) gw_ckpt_set_prune(checkpoints->set, keep, kept, 1e-9, NULL);
    commit(checkpoints);
    if (checkpoints->done) gw_ckpt_policy_cost(&checkpoints->policy, checkpoints->cost_s);
}

/* Its data: how many more rounds, the number of identities that were offered, these, and then all others. */
void gw_checkpoints_keep(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes)
{
    struct gw_reader in = {.data = data, .bytes = bytes};
    uint64_t more = gw_read_u64(&in), offered = gw_read_u64(&in);
    size_t each = sizeof(struct gw_ckpt_identity);
    if (!checkpoints->under_way || in.failed || (bytes - in.at) % each || offered > (bytes - in.at) / each) return;
    gw_buf_add(&checkpoints->keep, data + in.at, bytes - in.at);
    gw_buf_add(&checkpoints->offered, data + in.at, offered * each);
    if (more > (uint64_t)checkpoints->more) checkpoints->more = more < INT_MAX ? (int)more : INT_MAX;
    checkpoints->heads_due--;
    end_round(checkpoints);
}

gw_err gw_checkpoints_saved(struct gw_checkpoints *checkpoints, const uint8_t *data, size_t bytes)
{
    struct gw_saved_report report;
    struct gw_reader in = {.data = data, .bytes = bytes};
    const void *head = gw_read(&in, sizeof report);
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
        if (report.cost_s > checkpoints->round_cost_s) checkpoints->round_cost_s = report.cost_s;
        checkpoints->ranks_due--;
        end_round(checkpoints);
    }
    return GW_OK;
}

bool gw_checkpoints_take_done(struct gw_checkpoints *checkpoints, double now_s, struct gw_checkpoint_done *done)
{
    if (!checkpoints->done) return false;
    checkpoints->done = false;
    *done = (struct gw_checkpoint_done){.bytes = checkpoints->bytes, .cost_s = checkpoints->cost_s};
    done->whole_s = (now_s - checkpoints->last_s) * (checkpoints->rounds + checkpoints->more) / checkpoints->rounds;
    return true;
}

void gw_checkpoints_drop(struct gw_checkpoints *checkpoints)
{
    if (!checkpoints->set) return;
    gw_ckpt_set_prune(checkpoints->set, NULL, 0, 1e-9, NULL);
    commit(checkpoints);
}
