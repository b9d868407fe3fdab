/* Layouts: data x tensor x pipeline, who owns which slice of the model. Pure: no I/O, no MPI.
 *
 * Ranks are ordered replica-major: rank = (replica * pipeline + stage) * tensor + shard. Splits may be uneven: a shard owns a run
 * of kv heads (possibly none), a run of FFN atoms and a run of the vocabulary; a stage owns a run of layers. The runs are chosen
 * so that the largest share of multiply-adds is as small as it can be, or for devices of different speeds so that each stage and each shard has its
 * share in proportion; the output matrix counts as layers of the last stage.
 */
#ifndef GW_PLAN_LAYOUT_H
#define GW_PLAN_LAYOUT_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* What the planner needs to know of a model. */
struct gw_dims {
    int layers, d_model, heads, kv_heads, head_dim, ffn, vocab;
    int ffn_atoms;           /* gw_ffn_atoms() */
    double bytes_per_weight; /* mean over the layers' matrices, as packed in memory */
    double output_bytes;     /* of the whole output matrix, as packed */
};

enum { GW_SPLIT_MOST = 16, GW_SPLIT_FASTEST = 8 };

/* With more stages or shards than GW_SPLIT_MOST these are equal whatever the speeds say. */
struct gw_layout {
    int data, tensor, pipeline;
    uint8_t stage_speed[GW_SPLIT_MOST]; /* of each stage, the fastest has GW_SPLIT_FASTEST; all 0: equal */
    uint8_t shard_speed[GW_SPLIT_MOST]; /* of each shard, at every stage */
};
#define GW_LAYOUT(data_, tensor_, pipeline_)                                                                           \
    ((struct gw_layout){.data = (data_), .tensor = (tensor_), .pipeline = (pipeline_)})

/* Sets the split to speeds in any unit, [pipeline] and [tensor]: in steps of an eighth of the fastest. */
void gw_layout_split(struct gw_layout *layout, const double *stage_speed, const double *shard_speed);
/* Is the model cut in the same way: may a replica of one be a replica of the other? */
bool gw_layout_same_cut(struct gw_layout a, struct gw_layout b);
/* DxTxP, and the split behind it when it is not even: "1x1x3 stages 8:4:8". */
enum { GW_LAYOUT_TEXT_BYTES = 160 };
const char *gw_layout_text(struct gw_layout layout, char text[GW_LAYOUT_TEXT_BYTES]);

/* Where a rank stands. */
struct gw_place {
    int replica, shard, stage;
};

/* The slice of the model one rank owns; all ranges are [begin, end). */
struct gw_shard {
    int layer_begin, layer_end;
    int kv_begin, kv_end;       /* kv heads, each with its heads / kv_heads query heads */
    int ffn_begin, ffn_end;     /* FFN atoms */
    int vocab_begin, vocab_end; /* rows of the output matrix; multiples of 64 but for the last end */
    int first, last;            /* owns the embedding / the output matrix */
};

/* What a shard holds of a layer, each in one piece of memory: weights of its kv heads, of its FFN atoms, its rows of the output matrix (which is no
 * layer's), KV of its kv heads. */
enum gw_part { GW_PART_HEADS, GW_PART_ATOMS, GW_PART_OUTPUT, GW_PART_KV };

/* Number of FFN atoms of a model: kv_heads times a power of two, at most 16 (at least kv_heads) and no more than ffn / 32 allow. It is part of the
 * arithmetic: changing it changes digests. */
int gw_ffn_atoms(int kv_heads, int ffn);
/* First block of 32 of FFN atom `atom` (0..atoms: atoms gives the end). */
int gw_ffn_atom_block(int ffn, int atoms, int atom);

/* "2x3x1" -> layout. GW_ERR_USAGE. */
GW_CHECK gw_err gw_layout_parse(const char *text, struct gw_layout *layout);
static inline int gw_layout_ranks(struct gw_layout l)
{
    return l.data * l.tensor * l.pipeline;
}
struct gw_place gw_layout_place(struct gw_layout layout, int rank);
int gw_layout_rank(struct gw_layout layout, struct gw_place place);

/* GW_ERR_LAYOUT (one line: what is too many of what) when the model cannot be cut that way. */
GW_CHECK gw_err gw_layout_check(const struct gw_dims *dims, struct gw_layout layout);
/* The slice of shard `shard` of `tensor` at stage `stage` of `pipeline`. */
struct gw_shard gw_layout_shard(const struct gw_dims *dims, struct gw_layout layout, int shard, int stage);

/* What tensor shards add to their time for a layer when they wait for each other after each half of it, as part of what the busiest one computes: 0 where
 * heads and FFN are both even. */
double gw_layout_wait(const struct gw_dims *dims, struct gw_layout layout);

/* Bytes of weights of one shard, and of one KV page (32 tokens, all its layers and kv heads). */
double gw_shard_weight_bytes(const struct gw_dims *dims, const struct gw_shard *shard);
uint64_t gw_shard_page_bytes(const struct gw_dims *dims, const struct gw_shard *shard);

#endif
