/* The options of a job, as `godwit run` takes them and hands them on to every rank (`godwit rank`). Local. */
#ifndef GW_JOB_OPTIONS_H
#define GW_JOB_OPTIONS_H

#include "batch/request.h"
#include "plan/search.h"

struct gw_job_options {
    const char *model_path, *input_path, *out_dir;
    const char *model_name;    /* as it appears in the output; default: the file's name without .gguf */
    const char *chat_template; /* NULL: recognised from the model */
    int ranks;                 /* run: processes to start; 0: one */
    bool layout_set;
    struct gw_layout layout;
    int threads;                 /* of a rank; 0: this rank's share of the node's CPUs */
    uint64_t memory_bytes;       /* weights and KV of a rank; 0: its share of the node's */
    uint64_t kv_bytes;           /* KV budget of a rank; 0: from that memory */
    enum gw_objective objective; /* of layouts that nobody asked for */
    double deadline_wall_s;      /* of GW_OBJECTIVE_DEADLINE */
    int context;                 /* most tokens of a sequence; 0: the model's */
    bool max_seqs_set, step_rows_set;
    int max_seqs; /* running sequences of a replica; where it is not set, what suits a launch is gw_job_suitable_seqs() */
    int step_rows;   /* most rows of a step */
    int64_t created; /* the `created` of output lines */
    double peer_timeout_s;
    enum gw_weights {
        GW_WEIGHTS_AUTO,
        GW_WEIGHTS_STORAGE,
        GW_WEIGHTS_PEERS
    } weights;               /* where missing weights come from */
    double checkpoint_s;     /* between checkpoints of KV; < 0: by what they cost, 0: none */
    bool rebalance;          /* a straggler is given less, or left out */
    int spares;              /* ranks beside `ranks` that wait to stand in for a lost one */
    bool replace;            /* lost ranks are started again */
    bool store;              /* weights and KV in memory that outlives the ranks */
    const char *notice;      /* list of sources of notices (notice/source.h), or NULL */
    const char *chaos;       /* job/chaos.h, or NULL */
    double grace_s;          /* of a notice that does not say */
    int member_base, launch; /* of `godwit rank`, set by who starts it */
    double launched_s;       /* wall clock */
    bool fence;              /* the leader of an earlier launch may be alive still */
    bool standby;            /* get ready, say so, and begin with the next SIGUSR1 */
    char **argv;             /* as given, for ranks that are started later */
    bool quiet;
    struct gw_request_defaults defaults;
};

/* Defaults first; then argv[1..]. `--help` prints and sets *help. GW_ERR_USAGE names what is wrong.
 * Strings point into argv; a default model_name stays valid until the next parse. */
GW_CHECK gw_err gw_job_options_parse(int argc, char **argv, struct gw_job_options *options, bool *help);

/* Sequences that a replica of a launch works on, unless --max-seqs says how many: by the threads of a rank on a node with so many CPUs, which
 * options->ranks ranks share. All ranks must work with the same number, whatever their nodes are like, so whoever starts the launch hands it on to them. */
int gw_job_suitable_seqs(const struct gw_job_options *options, int cpus);

/* "512M", "2G", "65536" -> bytes. GW_ERR_USAGE. */
GW_CHECK gw_err gw_parse_bytes(const char *text, const char *option, uint64_t *bytes);
GW_CHECK gw_err gw_parse_int(const char *text, const char *option, int64_t least, int64_t most, int64_t *value);
GW_CHECK gw_err gw_parse_real(const char *text, const char *option, double *value);

#endif
