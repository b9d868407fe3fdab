/* From what the ranks say of themselves to a plan: the layout, who stands where, which sequences go where with their KV, which weights
 * move. Local, pure but for warnings. */
#ifndef GW_JOB_PLANNING_H
#define GW_JOB_PLANNING_H

#include "job/formation.h"
#include "job/options.h"
#include "plan/cost.h"

struct gw_planning {
    const struct gw_job_options *options;
    struct gw_dims dims;
    int context;
    const struct gw_hello *hellos; /* [count] by rank */
    const bool *active;            /* [count]: may have a place */
    int count;
    const double *speeds;       /* [count], of the fastest (job/speeds.h); NULL: all alike */
    const struct gw_cost *cost; /* of this machine */
    uint64_t number;            /* of the plan */
    double requests;            /* that are not answered yet */
    double deadline_s;          /* from now; of that objective */
    struct gw_layout wanted;    /* taken when there are ranks enough; {0}: the best */
};

/* GW_ERR_LAYOUT when no layout fits the ranks there are. */
GW_CHECK gw_err gw_planning_make(const struct gw_planning *in, struct gw_plan *plan);

#endif
