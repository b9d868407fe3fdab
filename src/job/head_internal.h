/* The inside of a head, shared by head.c (requests, steps, tokens) and head_kv.c (KV that comes from elsewhere or is kept for later: adoptions,
 * checkpoints, the snapshot). Nobody else includes this. */
#ifndef GW_JOB_HEAD_INTERNAL_H
#define GW_JOB_HEAD_INTERNAL_H

#include "batch/scheduler.h"
#include "comm/comm.h"
#include "job/answer.h"
#include "job/head.h"

/* A micro-batch: at most one step in flight. */
struct slot {
    struct gw_step step;
    bool in_flight;
    uint64_t number; /* of its step, of all that were launched */
    double launched_s;
    int due;             /* shards of the last stage that have not sent their tokens yet */
    struct gw_buf drawn; /* struct gw_drawn of those that have */
};

/* Sequences on their way here with their KV. */
struct adoption {
    int number;
    const struct gw_held *held; /* [held_count], the plan's: with the old pages */
    int held_count;
    int32_t **pages; /* [held_count][page_count]: the new ones, a reference each, until the sequence takes them */
    int due;         /* ranks of the replica whose pages are not all there */
    bool assigned;   /* the leader has said which of them are to go on */
};

/* A request that waits for its pages. */
struct arrival {
    int adoption, held;
    struct gw_answer *answer;
    struct gw_tokens prompt;
    struct gw_buf drawn; /* int32 */
    int saved;           /* its leading full pages are in the checkpoint */
};

/* Pages on their way from the checkpoint. Ranks do as they are told in order, so they are there when a step launched later has ended. */
struct load {
    uint64_t before;    /* the number of the next step */
    struct gw_buf list; /* as it was sent */
};

enum { LEADER = 0 };

struct gw_head {
    struct gw_head_config config;
    struct gw_answer_context answers;
    struct gw_sched *sched;
    struct slot *slots; /* [pipeline] */
    int slot_count, next_slot;
    struct gw_drawn *drawn; /* [max_seqs]: this rank's own, when the replica has one stage */
    float *hidden;          /* [step_rows][d_model], handed to the next stage */
    struct gw_buf message;  /* scratch */
    struct gw_buf tokens;   /* GW_MSG_TOKENS in the making */
    struct gw_head_report report;
    int32_t reported_wants;
    double reported_at_s;
    struct adoption *adoptions;
    int adoption_count;
    struct arrival *arrivals;
    int arrival_count;
    struct load *loads;
    int load_count;
    uint64_t steps, launched;
    uint64_t begun_tokens; /* of sequences that were begun elsewhere and came without their KV */
    bool draining, drained, stopping, stopped;
};

/* To every other rank of the replica. */
GW_CHECK gw_err gw_head_tell(struct gw_head *head, enum gw_msg_kind kind, uint64_t step, const void *data,
                             size_t bytes);

void gw_head_free_arrival(struct arrival *arrival);
/* A request begins, at once or when its pages have come; takes over what the arrival holds. */
GW_CHECK gw_err gw_head_take_arrival(struct gw_head *head, int64_t index, struct arrival *arrival);
/* A message of assignments has been taken in, which may have been that of an adoption. */
void gw_head_note_assigned(struct gw_head *head, uint64_t step);
void gw_head_drop_adoptions(struct gw_head *head);
GW_CHECK gw_err gw_head_take_adopted(struct gw_head *head, bool *busy);
/* A step has ended: every rank of the replica has done what came before it. */
void gw_head_confirm_loads(struct gw_head *head, uint64_t step);
/* Before a step is sent that may overwrite pages which the snapshot names. */
void gw_head_take_snapshot(struct gw_head *head);
/* A round of a checkpoint: every rank of the replica saves its part of the pages, those first that save most. */
GW_CHECK gw_err gw_head_save(struct gw_head *head, uint64_t increment);

#endif
