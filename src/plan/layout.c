/* See layout.h. Costs are multiply-adds with weights of one decoded token. */
#include "plan/layout.h"

#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int gw_ffn_atoms(int kv_heads, int ffn)
{
    int atoms = kv_heads;
    while (atoms * 2 <= 16 && atoms * 2 <= ffn / GW_BLOCK) atoms *= 2;
    return atoms < ffn / GW_BLOCK ? atoms : ffn / GW_BLOCK;
}

int gw_ffn_atom_block(int ffn, int atoms, int atom)
{
    return (int)((int64_t)(ffn / GW_BLOCK) * atom / atoms);
}

gw_err gw_layout_parse(const char *text, struct gw_layout *layout)
{
    int used = 0;
    struct gw_layout l = {0};
    if (sscanf(text, "%dx%dx%d%n", &l.data, &l.tensor, &l.pipeline, &used) != 3 || text[used] || l.data < 1 ||
        l.tensor < 1 || l.pipeline < 1 || l.data > 65536 || l.tensor > 65536 || l.pipeline > 65536)
        return gw_fail(GW_ERR_USAGE, "layout '%s' is not DATAxTENSORxPIPELINE, such as 2x1x1", text);
    *layout = l;
    return GW_OK;
}

struct gw_place gw_layout_place(struct gw_layout layout, int rank)
{
    return (struct gw_place){
        .replica = rank / (layout.tensor * layout.pipeline),
        .stage = rank / layout.tensor % layout.pipeline,
        .shard = rank % layout.tensor,
    };
}

int gw_layout_rank(struct gw_layout layout, struct gw_place place)
{
    return (place.replica * layout.pipeline + place.stage) * layout.tensor + place.shard;
}

/* What a head takes for keys and values, of a sequence as long as is common. The ratio of plan/cost.h's attention_s and mac_s. */
static double attention_cost(const struct gw_dims *m)
{
    static const double RATIO = 7, CONTEXT = 256;
    return RATIO * 2 * m->heads / m->kv_heads * m->head_dim * CONTEXT;
}

static double head_cost(const struct gw_dims *m)
{
    double group = (double)m->heads / m->kv_heads;
    return (2 * group + 2) * m->head_dim * m->d_model; /* q and o, k and v */
}

static double atom_cost(const struct gw_dims *m)
{
    return 3.0 * m->ffn / m->ffn_atoms * m->d_model;
}

static double layer_cost(const struct gw_dims *m)
{
    return m->kv_heads * head_cost(m) + m->ffn_atoms * atom_cost(m);
}

static double output_cost(const struct gw_dims *m)
{
    return (double)m->vocab * m->d_model;
}

gw_err gw_layout_check(const struct gw_dims *m, struct gw_layout l)
{
    if (l.tensor > m->ffn_atoms)
        return gw_fail(GW_ERR_LAYOUT, "layout %dx%dx%d: this model can be cut into at most %d tensor shards", l.data,
                       l.tensor, l.pipeline, m->ffn_atoms);
    if (l.pipeline > m->layers)
        return gw_fail(GW_ERR_LAYOUT, "layout %dx%dx%d: this model has only %d layers for pipeline stages", l.data,
                       l.tensor, l.pipeline, m->layers);
    return GW_OK;
}

/* ---- the split ------------------------------------------------------------------------------------------------- */

/* Speeds before number `i` of `count`; a speed of 0 counts as 1. */
static int speeds_before(const uint8_t *speeds, int count, int i)
{
    int sum = 0;
    if (count > GW_SPLIT_MOST) return i;
    for (int k = 0; k < i; k++) sum += speeds[k] ? speeds[k] : 1;
    return sum;
}

static void set_speeds(uint8_t *to, const double *from, int count)
{
    double fastest = 0;
    bool equal = true;
    memset(to, 0, GW_SPLIT_MOST);
    if (count > GW_SPLIT_MOST) return;
    for (int i = 0; i < count; i++)
        if (from[i] > fastest) fastest = from[i];
    for (int i = 0; i < count; i++) {
        double speed = fastest > 0 ? rint(GW_SPLIT_FASTEST * from[i] / fastest) : GW_SPLIT_FASTEST;
        to[i] = (uint8_t)(speed > 1 ? speed : 1);
        equal &= to[i] == to[0];
    }
    if (equal) memset(to, 0, GW_SPLIT_MOST);
}

void gw_layout_split(struct gw_layout *l, const double *stage_speed, const double *shard_speed)
{
    set_speeds(l->stage_speed, stage_speed, l->pipeline);
    set_speeds(l->shard_speed, shard_speed, l->tensor);
}

bool gw_layout_same_cut(struct gw_layout a, struct gw_layout b)
{
    return a.tensor == b.tensor && a.pipeline == b.pipeline && !memcmp(a.stage_speed, b.stage_speed, GW_SPLIT_MOST) &&
           !memcmp(a.shard_speed, b.shard_speed, GW_SPLIT_MOST);
}

const char *gw_layout_text(struct gw_layout l, char text[GW_LAYOUT_TEXT_BYTES])
{
    int at = snprintf(text, GW_LAYOUT_TEXT_BYTES, "%dx%dx%d", l.data, l.tensor, l.pipeline);
    for (int pass = 0; pass < 2; pass++) {
        const uint8_t *speeds = pass ? l.shard_speed : l.stage_speed;
        int count = pass ? l.tensor : l.pipeline;
        for (int i = 0; i < count && count <= GW_SPLIT_MOST && speeds[0]; i++)
            at += snprintf(text + at, GW_LAYOUT_TEXT_BYTES - (size_t)at, "%s%d",
                           i      ? ":"
                           : pass ? " shards "
                                  : " stages ",
                           speeds[i]);
    }
    return text;
}

/* Layers before stage `stage`: every stage gets at least one, and the last one's output matrix counts as layers. */
static int layers_before(const struct gw_dims *m, const struct gw_layout *l, int stage)
{
    if (stage == 0) return 0;
    if (stage == l->pipeline) return m->layers;
    double unit = layer_cost(m);
    double total = m->layers * unit + output_cost(m);
    int part = speeds_before(l->stage_speed, l->pipeline, stage);
    int all = speeds_before(l->stage_speed, l->pipeline, l->pipeline);
    int least = l->stage_speed[0] ? layers_before(m, l, stage - 1) + 1 : stage,
        most = m->layers - (l->pipeline - stage);
    int cut = (int)(total * part / all / unit + 0.5);
    if (cut < least) cut = least;
    return cut < most ? cut : most;
}

/* kv heads before shard `shard`. */
static int heads_before(const struct gw_dims *m, const struct gw_layout *l, int shard)
{
    int64_t part = speeds_before(l->shard_speed, l->tensor, shard);
    int64_t all = speeds_before(l->shard_speed, l->tensor, l->tensor);
    return (int)((m->kv_heads * part + all - 1) / all);
}

/* FFN atoms before shard `shard`, of which each gets at least one. They even out what kv heads cannot: where that is much, steps are computed in parts
 * (gw_layout_wait), and a shard with fewer heads computes the FFN of one part while the others attend to the other part. */
static int atoms_before(const struct gw_dims *m, const struct gw_layout *l, int shard)
{
    if (shard == 0) return 0;
    if (shard == l->tensor) return m->ffn_atoms;
    int part = speeds_before(l->shard_speed, l->tensor, shard);
    int all = speeds_before(l->shard_speed, l->tensor, l->tensor);
    double heads = head_cost(m) + attention_cost(m), total = m->kv_heads * heads + m->ffn_atoms * atom_cost(m);
    int cut = (int)((total * part / all - heads_before(m, l, shard) * heads) / atom_cost(m) + 0.5);
    int least = atoms_before(m, l, shard - 1) + 1;
    if (cut < least) cut = least;
    int most = m->ffn_atoms - (l->tensor - shard);
    return cut < most ? cut : most;
}

static int vocab_before(const struct gw_dims *m, const struct gw_layout *l, int shard)
{
    if (shard == l->tensor) return m->vocab;
    int chunks = (m->vocab + GW_SUM_CHUNK - 1) / GW_SUM_CHUNK;
    int64_t part = speeds_before(l->shard_speed, l->tensor, shard);
    int64_t all = speeds_before(l->shard_speed, l->tensor, l->tensor);
    return (int)(chunks * part / all) * GW_SUM_CHUNK;
}

struct gw_shard gw_layout_shard(const struct gw_dims *m, struct gw_layout l, int shard, int stage)
{
    return (struct gw_shard){
        .layer_begin = layers_before(m, &l, stage),
        .layer_end = layers_before(m, &l, stage + 1),
        .kv_begin = heads_before(m, &l, shard),
        .kv_end = heads_before(m, &l, shard + 1),
        .ffn_begin = atoms_before(m, &l, shard),
        .ffn_end = atoms_before(m, &l, shard + 1),
        .vocab_begin = vocab_before(m, &l, shard),
        .vocab_end = vocab_before(m, &l, shard + 1),
        .first = stage == 0,
        .last = stage == l.pipeline - 1,
    };
}

double gw_layout_wait(const struct gw_dims *m, struct gw_layout l)
{
    double first = 0, second = 0, both = 0;
    for (int t = 0; t < l.tensor; t++) {
        struct gw_shard s = gw_layout_shard(m, l, t, 0);
        int speed = speeds_before(l.shard_speed, l.tensor, t + 1) - speeds_before(l.shard_speed, l.tensor, t);
        double heads = (s.kv_end - s.kv_begin) * (head_cost(m) + attention_cost(m)) / speed;
        double ffn = (s.ffn_end - s.ffn_begin) * atom_cost(m) / speed;
        if (heads > first) first = heads;
        if (ffn > second) second = ffn;
        if (heads + ffn > both) both = heads + ffn;
    }
    return (first + second) / both - 1;
}

double gw_shard_weight_bytes(const struct gw_dims *m, const struct gw_shard *s)
{
    double weights = (s->layer_end - s->layer_begin) *
                     ((s->kv_end - s->kv_begin) * head_cost(m) + (s->ffn_end - s->ffn_begin) * atom_cost(m));
    double output = s->last ? m->output_bytes * (s->vocab_end - s->vocab_begin) / m->vocab : 0;
    return weights * m->bytes_per_weight + output;
}

uint64_t gw_shard_page_bytes(const struct gw_dims *m, const struct gw_shard *s)
{
    return (uint64_t)(s->layer_end - s->layer_begin) * (uint64_t)(s->kv_end - s->kv_begin) *
           gw_page_halves(m->head_dim) * sizeof(uint16_t);
}
