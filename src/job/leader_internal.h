/* The inside of the leader, shared by leader.c (requests, commit, status, the end), leader_world.c (worlds, plans, notices: what the controller
 * hears and says) and leader_handover.c (the launch gives way to the next one). Nobody else includes this. */
#ifndef GW_JOB_LEADER_INTERNAL_H
#define GW_JOB_LEADER_INTERNAL_H

#include "comm/comm.h"
#include "control/control.h"
#include "control/pace.h"
#include "job/checkpoints.h"
#include "job/leader.h"
#include "job/mover.h"
#include "job/record.h"
#include "job/requests.h"

struct head_state {
    int rank;
    int wants;        /* as last reported, less what was granted since */
    uint32_t granted; /* requests sent so far */
    bool drained;
    double reported_s;           /* when it last reported */
    struct gw_head_report timed; /* as it was when the calibration last took it in */
    double step_s;               /* mean length of the steps between the last two reports */
};

struct gw_leader {
    struct gw_leader_config config;
    struct gw_requests *requests;
    struct gw_checkpoints *checkpoints;
    double saving_until_s; /* the grace of all ends */
    struct gw_control *control;
    struct gw_cost cost;
    struct gw_pace *pace; /* who is slower than the plan takes it to be */
    double *speeds;       /* [plan.peer_count] that the plan takes */
    double spawn_s;       /* when new ranks were ordered that have not started yet; 0: none were */
    int spawn_count;
    struct gw_hello *hellos; /* [hello_count] by rank, while a world forms */
    bool *heard;
    int hello_count;
    struct gw_plan plan; /* the last one made */
    bool planned, fresh; /* there is one; this rank has not taken it yet */
    int next_member;
    struct head_state *heads;
    struct gw_head_report *reports; /* [head_count] */
    int head_count;
    struct gw_record_totals before; /* by earlier leaders, and by heads of earlier plans */
    struct gw_history *history;
    bool first;                  /* this launch has had no plan yet */
    struct gw_pauses pauses;     /* under this leader */
    struct gw_layout wanted;     /* {0}: the best */
    struct gw_mover_stats moved; /* under this plan, by those who are ready */
    double planned_s, drain_s;   /* when the plan was made; when it was begun to drain for it, or 0 */
    double lost_wall_s;          /* of the loss that is being recovered from; 0: none */
    struct {                     /* what became of it, until the next token is committed */
        double lost_wall_s, planned_wall_s, ready_wall_s;
        int64_t committed;
    } recovery;
    double formed_s;
    bool told, saving;          /* saving: everybody has been given notice */
    struct gw_handing *handing; /* under agents: where the members are, and the order to give way (leader_handover.c) */
    bool give_way;              /* to the next launch, now */
    int byes;                   /* heads that have sent their last message */
    double started_s, synced_s, status_s, committed_s;
    double left_s;    /* of the batch, rather too much; INFINITY: no end in sight */
    double commit_s;  /* spent on committing, of this leader's life */
    int64_t progress; /* the sum of what only grows while work is done, and when it last did */
    double progress_s;
    const char *kernels;
    int threads;
    struct gw_buf message;
};

GW_CHECK gw_err gw_leader_tell_all(struct gw_leader *leader, enum gw_msg_kind kind, const void *data, size_t bytes);
GW_CHECK gw_err gw_leader_tell_heads(struct gw_leader *leader, enum gw_msg_kind kind);
/* Every message of a kind that is there goes to `take`. `busy` may be NULL. */
GW_CHECK gw_err gw_leader_take_all(struct gw_leader *leader, enum gw_msg_kind kind,
                                   gw_err (*take)(struct gw_leader *leader, const struct gw_msg *msg), bool *busy);
/* Tokens and finished lines that have come. */
GW_CHECK gw_err gw_leader_take_work(struct gw_leader *leader, bool *busy);
/* The replica whose head is rank `rank`; -1: none. */
int gw_leader_head_of(const struct gw_leader *leader, int rank);

/* The controller hears of an event, and what it says is done. */
GW_CHECK gw_err gw_leader_step(struct gw_leader *leader, const struct gw_event *event);
/* Messages that concern the world: hellos, notices, readiness; and new ranks. */
GW_CHECK gw_err gw_leader_poll_world(struct gw_leader *leader, bool *busy);
void gw_leader_free_hellos(struct gw_leader *leader);

/* All have said hello: which node each is on. */
void gw_leader_note_nodes(struct gw_leader *leader);
/* Carries out an order to give way; sets leader->give_way in the end. */
GW_CHECK gw_err gw_leader_poll_handover(struct gw_leader *leader);
/* Has it been ordered to? */
bool gw_leader_gives_way(const struct gw_leader *leader);
void gw_leader_free_handing(struct gw_leader *leader);

#endif
