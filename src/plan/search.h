/* The search for a layout: every D x T x P, uneven splits included, that the devices' memory can hold, with its figures, best first. Pure.
 *
 * Devices may differ in memory and speed. For each layout they are dealt out so that a replica has devices of like speed and a stage has its
 * shards on one node where that is possible; layouts that leave devices idle are candidates like all others. Where the devices dealt differ, the
 * layout with a split in proportion to their speeds is a candidate beside the even one; where the even one does not fit, one in proportion to their memory.
 * The deal serves the figures and the memory check, and says what speed a place asks for; who really stands where is decided by what each holds
 * already (plan/assign.h).
 */
#ifndef GW_PLAN_SEARCH_H
#define GW_PLAN_SEARCH_H

#include "plan/cost.h"

enum gw_objective {
    GW_OBJECTIVE_THROUGHPUT, /* most tokens per second */
    GW_OBJECTIVE_DEADLINE,   /* cheapest of those that are done in time; if none is, soonest done */
    GW_OBJECTIVE_COST,       /* least cost per token */
    GW_OBJECTIVES
};

/* "throughput", "deadline", "cost". NULL / GW_ERR_USAGE for others. */
const char *gw_objective_name(enum gw_objective objective);
GW_CHECK gw_err gw_objective_parse(const char *text, enum gw_objective *objective);

struct gw_search {
    const struct gw_dims *dims;
    const struct gw_cost *cost;
    const struct gw_device *devices; /* those that leave get no place */
    int device_count;
    struct gw_workload work;
    enum gw_objective objective;
    double deadline_s;        /* from now; for GW_OBJECTIVE_DEADLINE */
    double price_per_hour;    /* of a device; 0: a device-hour costs 1 */
    double kv_share;          /* of the memory that the weights leave, for KV; 0: all of it */
    struct gw_layout only;    /* data 0: any layout; else no other data x tensor x pipeline than this */
    struct gw_layout current; /* data 0: none. Leaving it costs time that has to be earned back */
    double current_kv_tokens; /* that a replica of `current` holds now */
    double
        horizon_s; /* how long the layout is expected to stay; 0: until the work is done, or an hour without an end */
};

struct gw_candidate {
    struct gw_layout layout;
    double tokens_per_s;     /* generated, all replicas */
    double kv_tokens;        /* that all replicas can hold */
    double seconds;          /* until the work is done, the change included; 0 when it has no end */
    double cost_per_million; /* generated tokens, at the price of the devices used */
    double weight_bytes;     /* of the device that holds most */
    double change_s;         /* estimate of the change from `current`; 0 without one */
    double score;            /* less is better; comparable within one search */
    bool in_time;            /* done before the deadline, if there is one */
};

/* All candidates, best first; ties go to the layout that is there, then (of equal cost) to the faster, then to fewer devices, shards, stages. `*candidates` is freed by the caller.
 * GW_ERR_LAYOUT when none fits. */
GW_CHECK gw_err gw_search(const struct gw_search *search, struct gw_candidate **candidates, int *count);

/* The deal for one layout: device_of_slot[ranks of the layout], gw_layout_rank() order. false: its memory check fails. */
bool gw_search_deal(const struct gw_search *search, struct gw_layout layout, int *device_of_slot);

#endif
