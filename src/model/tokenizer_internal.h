/* What the tokenizer's own files share: text preparation (tokenizer_pre.c), the merge tables and the merge loop
 * (tokenizer_bpe.c), and the tokenizer around them (tokenizer.c, detok.c). Nobody else includes this. Local.
 *
 * All texts are bytes with a length; "valid" means well-formed UTF-8 (no surrogates, no overlong forms).
 */
#ifndef GW_MODEL_TOKENIZER_INTERNAL_H
#define GW_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

/* ---- UTF-8 (detok.c) ---- */

/* Looks at the character that starts at `text` (bytes >= 1). Returns its length when it is complete and valid. Else
 * returns 0 and *bad_bytes is the length of the maximal part that U+FFFD replaces (Unicode 15, section 3.9, "substitution of
 * maximal subparts"); *bad_bytes == bytes and *unfinished when more bytes could still complete it. */
int gw_utf8_char(const uint8_t *text, size_t bytes, int *bad_bytes, bool *unfinished);
/* Length of the longest valid prefix. */
size_t gw_utf8_valid_prefix(const uint8_t *text, size_t bytes);

/* ---- families of pre-tokenizers and normalisation (tokenizer_pre.c) ---- */

struct gw_pre_family {
    const char *name;       /* tokenizer.ggml.pre */
    const char *aliases[2]; /* other spellings of it in files; NULL where none */
    const char *pattern;    /* PCRE2 (UTF, UCP); its matches tile every valid text */
    bool nfc;               /* normalise first */
    bool ignore_merges;     /* a piece that is a token is taken whole, whatever the merges say */
    bool adds_bos;          /* when the file does not say */
};

struct gw_pre; /* the compiled family; immutable, shared by threads */

GW_CHECK gw_err gw_pre_create(struct gw_str name, const char *path, struct gw_pre **pre);
void gw_pre_destroy(struct gw_pre *pre);
const struct gw_pre_family *gw_pre_family_of(const struct gw_pre *pre);

/* Pieces of one valid text, in order: gw_pre_scan_open once per call of the tokenizer, then gw_pre_scan_start per text. */
struct gw_pre_scan {
    const struct gw_pre *pre;
    void *match; /* PCRE2's match data */
    const uint8_t *text;
    size_t bytes;
    size_t at;
};
void gw_pre_scan_open(const struct gw_pre *pre, struct gw_pre_scan *scan);
void gw_pre_scan_start(struct gw_pre_scan *scan, const uint8_t *text, size_t bytes);
/* *piece_bytes is 0 at the end. */
GW_CHECK gw_err gw_pre_scan_next(struct gw_pre_scan *scan, const uint8_t **piece, size_t *piece_bytes);
void gw_pre_scan_close(struct gw_pre_scan *scan);

/* NFC of a valid text. *result is `text` itself when it is surely normal already, else in `scratch` (valid until its next use).
 * Linear but for sorting runs of combining marks (n log n). */
GW_CHECK gw_err gw_nfc(const uint8_t *text, size_t bytes, struct gw_buf *scratch, const uint8_t **result,
                       size_t *result_bytes);

/* ---- merges (tokenizer_bpe.c) ---- */

/* (left id, right id) -> (rank, id of the merged token); open addressing with linear probing, at most two thirds full. */
struct gw_merge_slot {
    uint64_t key; /* ((left << 32) | right) + 1; 0 is an empty slot */
    uint32_t rank;
    int32_t merged;
};

struct gw_merges {
    struct gw_merge_slot *slots;
    uint64_t mask;
};

void gw_merges_init(struct gw_merges *merges, uint64_t count);
void gw_merges_free(struct gw_merges *merges);
/* A doubled pair takes the later rank, as a map built in file order does. */
void gw_merges_put(struct gw_merges *merges, int32_t left, int32_t right, uint32_t rank, int32_t merged);

/* Scratch of one encoding call. Zero-initialise; gw_bpe_scratch_free ends it. */
struct gw_bpe_scratch {
    int32_t *id;   /* [capacity] symbol, or -1 when it was merged into its left neighbour */
    int32_t *prev; /* [capacity] index of the living symbol to the left, -1 at the start */
    int32_t *next; /* [capacity] ... to the right, `count` at the end */
    size_t capacity;
    uint64_t *heap; /* (rank << 32) | position of the left symbol */
    size_t heap_count, heap_capacity;
};
void gw_bpe_scratch_reserve(struct gw_bpe_scratch *scratch, size_t symbols);
void gw_bpe_scratch_free(struct gw_bpe_scratch *scratch);

/* Merges scratch->id[0..count) in place by rank, leftmost first among equals, until no pair has a rank; returns the new count.
 * O(n log n). count <= INT32_MAX. */
size_t gw_bpe_merge(const struct gw_merges *merges, struct gw_bpe_scratch *scratch, size_t count);

#endif
