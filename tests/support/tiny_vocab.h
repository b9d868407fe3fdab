/* GGUF files with a made-up vocabulary and nothing else, for tests of the tokenizer and of chat templates. */
#ifndef GW_TESTS_TINY_VOCAB_H
#define GW_TESTS_TINY_VOCAB_H

#include "base/mem.h"

struct gw_vocab_added {
    const char *spelling; /* NULL ends the list */
    int type;             /* tokenizer.ggml.token_type: 3 control, 4 user-defined, 5 unused */
};

struct gw_vocab_spec {
    const char *model;         /* tokenizer.ggml.model; NULL is "gpt2" */
    const char *pre;           /* NULL is "gpt-2", "" leaves the key out */
    const char *const *merges; /* "left right" in GPT-2's printable alphabet, NULL-terminated */
    const struct gw_vocab_added *added;
    const char *missing;       /* bytes that get no token */
    const char *chat_template; /* NULL leaves the key out */
    int bos, eos;              /* the how manieth of `added`, from 1; 0 for none */
    enum { GW_VOCAB_BOS_UNSAID, GW_VOCAB_BOS_NO, GW_VOCAB_BOS_YES } add_bos;
};

#define GW_VOCAB_SPEC(...) ((struct gw_vocab_spec){__VA_ARGS__})

/* Appends the file. Tokens are: the 256 bytes in order (less the missing), one a merge, the added ones. */
void gw_vocab_build(const struct gw_vocab_spec *spec, struct gw_buf *file);

/* Appends the spelling of bytes in GPT-2's printable alphabet. */
void gw_vocab_spell(const void *bytes, size_t count, struct gw_buf *text);

#endif
