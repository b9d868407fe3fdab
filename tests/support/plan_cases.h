/* What the tests of the planner share: shapes of models, and random layouts from one seed. */
#ifndef GW_TESTS_PLAN_CASES_H
#define GW_TESTS_PLAN_CASES_H

#include "base/philox.h"
#include "plan/layout.h"

struct plan_random {
    uint64_t seed, draws; /* printed where a case fails */
};

static inline int plan_next_int(struct plan_random *random, int bound)
{
    return (int)(gw_philox_uniform(random->seed, 1, random->draws++) * bound);
}

static inline struct gw_dims plan_dims(int layers, int d_model, int heads, int kv_heads, int head_dim, int ffn,
                                       int vocab)
{
    return (struct gw_dims){.layers = layers,
                            .d_model = d_model,
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = head_dim,
                            .ffn = ffn,
                            .vocab = vocab,
                            .ffn_atoms = gw_ffn_atoms(kv_heads, ffn),
                            .bytes_per_weight = 0.625,
                            .output_bytes = (double)vocab * d_model * 1.125};
}

/* Of at most `most` ranks. */
static inline struct gw_layout plan_random_layout(struct plan_random *random, const struct gw_dims *m, int most)
{
    for (;;) {
        struct gw_layout l = {0};
        l.data = 1 + plan_next_int(random, most);
        l.tensor = 1 + plan_next_int(random, most);
        l.pipeline = 1 + plan_next_int(random, most);
        if (gw_layout_ranks(l) <= most && l.tensor <= m->ffn_atoms && l.pipeline <= m->layers) return l;
    }
}

#endif
