/* The cost model: how long a machine takes to compute, to talk, to load, to start. Pure: no I/O, no clock; the caller measures, and
 * keeps the text form on disk.
 *
 * Time is additive: a step costs a fixed part, the weights that it streams, the multiply-adds of its rows, and attention over what its
 * rows see. Coefficients are those of a device of speed 1 (one core of a small server); a device of speed 2 takes half the time for
 * what it computes, and the same time for what it sends. Figures are estimates: they order layouts, nothing depends on their being right.
 */
#ifndef GW_PLAN_COST_H
#define GW_PLAN_COST_H

#include "base/mem.h"
#include "plan/layout.h"

/* What can be measured; see gw_cost_observe(). */
enum gw_cost_kind {
    GW_COST_COMPUTE, /* amount: seconds that gw_cost_stage_s() or gw_cost_layout() said; corrects all of computing alike */
    GW_COST_LATENCY, /* amount: messages within a node */
    GW_COST_NODE_LATENCY,
    GW_COST_LINK, /* amount: bytes within a node */
    GW_COST_NODE_LINK,
    GW_COST_PACK,    /* amount: bytes of packed weights made from the model file */
    GW_COST_STORAGE, /* amount: bytes read from a checkpoint */
    GW_COST_SPAWN,   /* amount: times a rank was started and taken in */
    GW_COST_REPAIR,  /* amount: times the world was repaired and planned anew */
    GW_COST_KINDS
};

struct gw_cost {
    double mac_s;         /* per multiply-add with weights */
    double weight_byte_s; /* per byte of packed weights that a step streams */
    double attention_s;   /* per multiply-add of attention (keys and values: two per row, token seen and dimension) */
    double row_s;         /* per drawn row of the last stage, shared out over its shards: sampling */
    double step_s;        /* per step and stage */
    double latency_s;     /* per message between ranks of one node, and of two */
    double node_latency_s;
    double link_bytes_per_s; /* between ranks of one node, and of two */
    double node_link_bytes_per_s;
    double pack_bytes_per_s;    /* packed weights from the (cached) model file */
    double storage_bytes_per_s; /* KV from a checkpoint */
    double spawn_s;             /* to start a rank and take it in */
    double repair_s;            /* to agree on a new world and plan, nothing moved */
    int seen[GW_COST_KINDS];    /* measurements so far */
};

/* One core of a two-core server: SmolLM2-135M decodes about 600 tokens/s at 32 sequences and prefills about 700 (docs/results.md). */
struct gw_cost gw_cost_default(void);
/* Folds a measurement in: `amount` took `seconds`. The first replaces the default, later ones are an exponential mean. What is not a
 * positive finite number is ignored, and one measurement moves a coefficient tenfold at most. */
void gw_cost_observe(struct gw_cost *cost, enum gw_cost_kind kind, double amount, double seconds);

/* Text form: a "key=value" line each. Decoding starts from the defaults and leaves out unknown keys; a line that is none, or a value that is not a positive
 * finite number is GW_ERR_FORMAT with the line's number. `text` need not end with a NUL. */
void gw_cost_encode(const struct gw_cost *cost, struct gw_buf *out);
GW_CHECK gw_err gw_cost_decode(const char *text, size_t bytes, struct gw_cost *cost);

/* ---- computing ------------------------------------------------------------------------------------------------- */

/* The rows of one step. */
struct gw_load {
    double decode_rows;  /* each draws a token */
    double prefill_rows; /* rows of prompts */
    double mean_context; /* tokens that a row sees */
};

/* Seconds that one shard computes for a step; its exchanges and hand-offs not included. */
double gw_cost_stage_s(const struct gw_cost *cost, const struct gw_dims *dims, const struct gw_shard *shard,
                       double speed, const struct gw_load *load);
/* Seconds of the two exchanges a layer between `tensor` shards over `layers` layers (0 for one shard). */
double gw_cost_exchange_s(const struct gw_cost *cost, const struct gw_dims *dims, int tensor, int layers, double rows,
                          bool one_node);
/* Seconds to hand the hidden rows of a step to the next stage. */
double gw_cost_handoff_s(const struct gw_cost *cost, const struct gw_dims *dims, double rows, bool one_node);

/* What is to be done, in means. */
struct gw_workload {
    double prompt_tokens, output_tokens; /* of a request */
    double requests;                     /* that are left; 0: no end in sight */
    int context;                         /* most tokens of a sequence: so much KV must fit */
    int max_seqs;                        /* that a replica runs at once */
};

/* A device as the planner sees it. */
struct gw_device {
    uint64_t memory_bytes; /* for weights and KV */
    double speed;          /* 1: as the cost model */
    int node;              /* devices of one node have equal numbers */
    bool leaving;          /* has a notice: may give, but has no place any more */
};

/* Generated tokens per second of one replica in a steady state, `seqs` sequences running and prompts computed as room comes free.
 * `device_of_slot`[tensor * pipeline]: who stands where, stage by stage. */
double gw_cost_replica_tokens_per_s(const struct gw_cost *cost, const struct gw_dims *dims, struct gw_layout layout,
                                    const struct gw_device *devices, const int *device_of_slot,
                                    const struct gw_workload *work, double seqs);
/* Seconds until a replica of devices of speed 1 has computed the KV of `tokens` tokens anew, of sequences of `mean_context` tokens. */
double gw_cost_recompute_s(const struct gw_cost *cost, const struct gw_dims *dims, struct gw_layout layout,
                           double tokens, double mean_context);

/* ---- moving ---------------------------------------------------------------------------------------------------- */

double gw_cost_move_s(const struct gw_cost *cost, double bytes, bool one_node);
double gw_cost_pack_s(const struct gw_cost *cost, double bytes, double speed); /* weights from the model file */
double gw_cost_restore_s(const struct gw_cost *cost, double bytes);            /* KV from a checkpoint */

/* ---- one sequence ---------------------------------------------------------------------------------------------- */

enum gw_seq_choice { GW_SEQ_KEEP, GW_SEQ_MOVE, GW_SEQ_RESTORE, GW_SEQ_RECOMPUTE };

struct gw_seq_state {
    int64_t tokens;              /* whose KV is wanted */
    uint64_t kv_bytes;           /* of these tokens: all layers and kv heads */
    uint64_t kept_bytes;         /* of them: where they will be wanted already */
    uint64_t movable_bytes;      /* of the rest: in the memory of a rank that lives */
    bool one_node;               /* the movable ones need not leave their node */
    int64_t checkpointed_tokens; /* a checkpoint has the KV of the first so many */
    double recompute_token_s;    /* seconds a token takes to compute anew, for instance of gw_cost_recompute_s() */
};

/* The soonest way to that sequence's KV (of equal ones the first of the enum), and how long it takes. Pure. */
enum gw_seq_choice gw_seq_choice(const struct gw_cost *cost, const struct gw_seq_state *state, double *seconds);

#endif
