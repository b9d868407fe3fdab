/* See leader_internal.h and handover.h: this launch gives way to the next one, which stands by.
 *
 * First the ranks on nodes that leave are given notice, so that the controller makes a plan without them and their KV moves to those that stay, as at any
 * other notice. Then a few steps are decoded, so that the pause of the move and that of the hand-over do not add up, and the launch stops at the end of a
 * step. A node that leaves takes nothing with it that way: the next launch finds all KV in the stores of the nodes that stay.
 */
#include "base/clock.h"
#include "base/log.h"
#include "job/handover.h"
#include "job/leader_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double LOOK_EVERY_S = 0.05, SETTLE_S = 0.25;

struct gw_handing {
    struct gw_handover order;
    bool ordered, saving; /* there is one for this launch; everybody has been told to save */
    double looked_s, settled_s;
    struct where {
        int member;
        char node[GW_NODE_BYTES];
    } * where; /* [count], of the world's members */
    int count;
};

void gw_leader_free_handing(struct gw_leader *leader)
{
    if (!leader->handing) return;
    gw_handover_free(&leader->handing->order);
    free(leader->handing->where);
    free(leader->handing);
    leader->handing = NULL;
}

void gw_leader_note_nodes(struct gw_leader *leader)
{
    if (!getenv(GW_NODE_NAME)) return;
    if (!leader->handing) leader->handing = gw_alloc(1, sizeof *leader->handing);
    struct gw_handing *handing = leader->handing;
    handing->count = leader->hello_count;
    handing->where = gw_realloc(handing->where, (size_t)handing->count + 1, sizeof *handing->where);
    for (int r = 0; r < handing->count; r++) {
        handing->where[r].member = leader->hellos[r].peer.member;
        memcpy(handing->where[r].node, leader->hellos[r].node, GW_NODE_BYTES);
    }
}

bool gw_leader_gave_way(const struct gw_leader *leader)
{
    return leader->give_way;
}

bool gw_leader_gives_way(const struct gw_leader *leader)
{
    return leader->handing && leader->handing->ordered && !leader->handing->saving;
}

/* The order, once it is there. */
static void look(struct gw_leader *leader)
{
    struct gw_handing *handing = leader->handing;
    double now_s = gw_clock_now_s();
    if (handing->ordered || now_s - handing->looked_s < LOOK_EVERY_S) return;
    handing->looked_s = now_s;
    gw_err rc = gw_handover_read(leader->config.options->out_dir, &handing->order);
    if (rc != GW_OK && rc != GW_ERR_NOT_FOUND) gw_debug("%s", gw_error_detail());
    handing->ordered = rc == GW_OK && handing->order.launch == leader->config.options->launch;
    if (!handing->ordered) {
        gw_handover_free(&handing->order);
        return;
    }
    gw_record_event(leader->config.options->out_dir, "handover",
                    json_pack("{s:i,s:b,s:i,s:f}", "launch", handing->order.launch, "all", handing->order.all,
                              "leaving_nodes", handing->order.node_count, "seconds", handing->order.seconds));
}

/* How many ranks with a place to keep are on nodes that leave, and how many on others; with `tell` the former are given notice. */
static gw_err count_leavers(struct gw_leader *leader, bool tell, int *leave, int *stay)
{
    gw_err rc = GW_OK;
    const struct gw_handing *handing = leader->handing;
    *leave = *stay = 0;
    for (int i = 0; i < handing->count; i++) {
        int member = handing->where[i].member;
        if (!gw_control_active(leader->control, member)) continue;
        bool leaves = gw_handover_names(&handing->order, handing->where[i].node);
        *leave += leaves;
        *stay += !leaves;
        if (leaves && tell) TRY(gw_leader_step(leader, &(struct gw_event){.kind = GW_EVENT_NOTICE, .member = member}));
    }
out:
    return rc;
}

gw_err gw_leader_poll_handover(struct gw_leader *leader)
{
    gw_err rc = GW_OK;
    struct gw_handing *handing = leader->handing;
    double now_s = gw_clock_now_s();
    int leave, stay;
    if (!handing) return GW_OK;
    look(leader);
    if (gw_control_state(leader->control) != GW_STATE_RUN) handing->settled_s = 0;
    if (!handing->ordered || handing->saving || gw_control_state(leader->control) != GW_STATE_RUN) return GW_OK;
    TRY(count_leavers(leader, false, &leave, &stay));
    if (handing->order.all ||
        (leave > 0 && stay == 0)) { /* nobody is there to take KV over: what can be saved is saved */
        struct gw_notice notice = {.member = -1, .seconds = handing->order.seconds};
        handing->saving = true;
        return gw_comm_send(leader->config.comm, 0, GW_MSG_NOTICE, 0, &notice, sizeof notice);
    }
    if (leave > 0) return count_leavers(leader, true, &leave, &stay);
    if (handing->settled_s == 0) handing->settled_s = now_s;
    leader->give_way |= handing->order.node_count == 0 || now_s - handing->settled_s >= SETTLE_S;
out:
    return rc;
}
