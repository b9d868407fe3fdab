/* make_tiny [options] OUT.gguf: writes a tiny random model (support/tiny_model.h), for test scripts. Options not given keep the
 * defaults: llama, 6 layers, Q4_1 with a Q8_0 embedding. */
#include "support/tiny_model.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ARCH = 1,
    TYPE,
    EMBED_TYPE,
    DOWN_TYPE,
    LAYERS,
    D_MODEL,
    FFN,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    VOCAB,
    CONTEXT,
    UNTIED,
    SEED,
    ROPE,
    ROPE_FACTOR,
    HELP
};

static const struct option options[] = {
    {"arch", required_argument, NULL, ARCH},
    {"type", required_argument, NULL, TYPE},
    {"embed-type", required_argument, NULL, EMBED_TYPE},
    {"down-type", required_argument, NULL, DOWN_TYPE},
    {"layers", required_argument, NULL, LAYERS},
    {"d", required_argument, NULL, D_MODEL},
    {"ffn", required_argument, NULL, FFN},
    {"heads", required_argument, NULL, HEADS},
    {"kv-heads", required_argument, NULL, KV_HEADS},
    {"head-dim", required_argument, NULL, HEAD_DIM},
    {"vocab", required_argument, NULL, VOCAB},
    {"context", required_argument, NULL, CONTEXT},
    {"untied", no_argument, NULL, UNTIED},
    {"seed", required_argument, NULL, SEED},
    {"rope", required_argument, NULL, ROPE},
    {"rope-factor", required_argument, NULL, ROPE_FACTOR},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static const char usage[] =
    "usage: make_tiny [--arch llama|qwen2] [--type T] [--embed-type T] [--down-type T] [--layers N] [--d N] [--ffn N]\n"
    "                 [--heads N] [--kv-heads N] [--head-dim N] [--vocab N] [--context N] [--untied] [--seed N]\n"
    "                 [--rope none|linear|llama3|yarn] [--rope-factor X] OUT.gguf\n"
    "T: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q4_k q5_k q6_k (K types need rows of 256: the default sizes then are)\n";

static gw_err parse_type(const char *text, enum gw_type *type)
{
    return gw_tiny_type(text, type) ? GW_OK : gw_fail(GW_ERR_USAGE, "unknown type '%s'", text);
}

static gw_err parse_int(const char *text, int *value)
{
    char *end;
    long number = strtol(text, &end, 10);
    if (end == text || *end || number < 1 || number > 1 << 24) return gw_fail(GW_ERR_USAGE, "'%s' is not a size", text);
    *value = (int)number;
    return GW_OK;
}

static gw_err parse_rope(const char *text, enum gw_rope_scaling *scaling)
{
    static const char *const names[] = {"none", "linear", "llama3", "yarn"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0) {
            *scaling = (enum gw_rope_scaling)i;
            return GW_OK;
        }
    return gw_fail(GW_ERR_USAGE, "unknown rope scaling '%s'", text);
}

static gw_err apply(struct gw_tiny_spec *s, int option, const char *value)
{
    switch (option) {
    case ARCH: s->arch = value; return GW_OK;
    case TYPE: return GW_OK; /* known already: it decides the defaults */
    case EMBED_TYPE: return parse_type(value, &s->embed_type);
    case DOWN_TYPE: return parse_type(value, &s->down_type);
    case LAYERS: return parse_int(value, &s->layers);
    case D_MODEL: return parse_int(value, &s->d_model);
    case FFN: return parse_int(value, &s->ffn);
    case HEADS: return parse_int(value, &s->heads);
    case KV_HEADS: return parse_int(value, &s->kv_heads);
    case HEAD_DIM: return parse_int(value, &s->head_dim);
    case VOCAB: return parse_int(value, &s->vocab);
    case CONTEXT: return parse_int(value, &s->context);
    case UNTIED: s->tied = false; return GW_OK;
    case SEED: s->seed = strtoull(value, NULL, 10); return GW_OK;
    case ROPE: return parse_rope(value, &s->rope_scaling);
    case ROPE_FACTOR: s->rope_factor = strtod(value, NULL); return GW_OK;
    }
    return gw_fail(GW_ERR_USAGE, "see make_tiny --help");
}

static gw_err run(int argc, char **argv)
{
    gw_err rc = GW_OK;
    int option;
    enum gw_type type = GW_TYPE_Q4_1;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == TYPE) TRY(parse_type(optarg, &type));
        if (option == HELP) {
            fputs(usage, stdout);
            return GW_OK;
        }
    }
    struct gw_tiny_spec spec = gw_tiny_default(type);
    optind = 1;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) TRY(apply(&spec, option, optarg));
    if (optind + 1 != argc) FAIL(GW_ERR_USAGE, "one output file is needed; see make_tiny --help");
    TRY(gw_tiny_write(&spec, argv[optind]));
out:
    return rc;
}

int main(int argc, char **argv)
{
    gw_err rc = run(argc, argv);
    if (rc != GW_OK) fprintf(stderr, "make_tiny: %s\n", gw_error_detail());
    return gw_err_exit_code(rc);
}
