/* Learns the merges of a tiny byte-level BPE tokenizer from gw_tiny_text. See tiny_model.h. */
#ifndef GW_TESTS_TINY_BPE_H
#define GW_TESTS_TINY_BPE_H

#include "base/mem.h"

#define GW_TINY_SPECIALS 3 /* tokens before the 256 bytes */

struct gw_tiny_bpe {
    int merge_count;  /* what could be learned, at most what was asked for */
    int (*merges)[2]; /* [merge] ids of left and right; merge i makes id GW_TINY_SPECIALS + 256 + i */
};

/* Byte b has id GW_TINY_SPECIALS + b. Ties go to the pair with the lowest ids. */
void gw_tiny_bpe_learn(int merges, struct gw_tiny_bpe *bpe);
void gw_tiny_bpe_free(struct gw_tiny_bpe *bpe);

/* Appends a token's spelling in GPT-2's printable alphabet. */
void gw_tiny_bpe_spell(const struct gw_tiny_bpe *bpe, int id, struct gw_buf *text);

#endif
