/* When to write a checkpoint, and which pages first. Pure: no clock, no files.
 */
#ifndef GW_CONTEXT_POLICY_H
#define GW_CONTEXT_POLICY_H

#include <stdbool.h>

/* Interval between checkpoints: T = sqrt(2 C M) of Young (1974), as in Daly (2006): C seconds that a checkpoint costs the job, M mean time between
 * failures. Never so short that checkpoints take more than `max_overhead` of the time. */
struct gw_ckpt_policy {
    double max_overhead;                   /* 0.02 */
    double min_interval_s, max_interval_s; /* 1, 600 */
    double prior_mtbf_s;                   /* 3600: counts as one failure seen in that time */
    double cost_s;                         /* of one checkpoint; moving mean, 0 until the first */
    double running_s;                      /* the job has run so long */
    int failures;                          /* that took KV state with them */
};

struct gw_ckpt_policy gw_ckpt_policy_default(void);
/* Seconds by which a checkpoint has delayed the job (the rank's own time, and the thread's where it takes the rank's CPU). */
void gw_ckpt_policy_cost(struct gw_ckpt_policy *policy, double cost_s);
double gw_ckpt_policy_mtbf_s(const struct gw_ckpt_policy *policy);
double gw_ckpt_policy_interval_s(const struct gw_ckpt_policy *policy);
/* Is one worth its cost, with the end in sight? It saves the `since_s` since the one before where a failure comes in the `left_s` that the job has left,
 * which happens left_s / M of the times. Where that is less than C none is worth it; after an interval of Young's: with less than half of it left. */
bool gw_ckpt_policy_worth(const struct gw_ckpt_policy *policy, double since_s, double left_s);
/* What the next one may cost: the share max_overhead of the interval. Whoever has more to save than that allows grows into it, since an interval follows
 * from what the ones before did cost. */
double gw_ckpt_policy_budget_s(const struct gw_ckpt_policy *policy);

/* A page that could still be saved. */
struct gw_ckpt_candidate {
    int parent;     /* index of the page before it, which is smaller than its own; -1: none, or saved already */
    double value_s; /* time that not having to compute it saves (all replicas that would) */
    double bytes;   /* > 0 */
};

/* The order in which to save so that, whenever time runs out, as much recompute time as possible is saved: parents first, densest value
 * first. Horn's algorithm for out-trees (SIAM J. Appl. Math. 23, 1972), optimal for the sum over pages of value times the
 * bytes written up to it. order[count] gets indices. O(n log n). */
void gw_ckpt_order(const struct gw_ckpt_candidate *pages, int count, int *order);

#endif
