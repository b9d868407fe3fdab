/* Byte-level BPE tokenizer from a GGUF file's metadata.
 *
 * Text is (for families that ask for it) NFC-normalised, split by the family's pre-tokenizer regular expression, each piece's bytes are
 * mapped to the printable alphabet of GPT-2 and merged by rank. Special ("control" and "user defined") tokens are matched in the
 * text first when the caller allows it. A tokenizer is immutable after creation, so threads may share it (encoding keeps its
 * scratch in the call). Local.
 */
#ifndef GW_MODEL_TOKENIZER_H
#define GW_MODEL_TOKENIZER_H

#include "base/error.h"
#include "base/mem.h"
#include "model/gguf.h"

struct gw_tokenizer; /* opaque */

/* Reads tokenizer.ggml.*. GW_ERR_UNSUPPORTED names an unknown tokenizer.ggml.model or .pre and lists those known.
 * Keeps no reference to `gguf` afterwards. */
GW_CHECK gw_err gw_tokenizer_create(const struct gw_gguf *gguf, struct gw_tokenizer **tokenizer);
void gw_tokenizer_destroy(struct gw_tokenizer *tokenizer);

struct gw_tokens {
    int32_t *ids; /* heap; free with gw_tokens_free */
    size_t count;
    size_t capacity;
};
void gw_tokens_add(struct gw_tokens *tokens, int32_t id);
void gw_tokens_free(struct gw_tokens *tokens);

/* Appends the ids of UTF-8 `text` to `out`. Bytes that are not valid UTF-8 are encoded byte by byte, so that decode(encode(x)) == x
 * (up to NFC, and up to bytes that the vocabulary lacks: SmolLM2's has 235 of the 256, and drops the others as Hugging Face's does).
 * User-defined tokens (<tool_call>) spelled in the text always become their single id. Control tokens (<|im_end|>) do so with
 * `parse_special` alone, as templates need; without it they are plain text, so data cannot inject them. No BOS is added here.
 * GW_ERR_INPUT for a text above 512 MiB. */
GW_CHECK gw_err gw_tokenizer_encode(const struct gw_tokenizer *tokenizer, const char *text, size_t bytes,
                                    bool parse_special, struct gw_tokens *out);

/* The bytes of one token (may be part of a UTF-8 character). For special tokens its spelling. NULL/0 for an id out of range. */
const char *gw_tokenizer_bytes(const struct gw_tokenizer *tokenizer, int32_t id, size_t *bytes);
/* True for control tokens, and for what no text contains (unused, unknown): not shown in answers. False for user-defined ones. */
bool gw_tokenizer_is_special(const struct gw_tokenizer *tokenizer, int32_t id);

int32_t gw_tokenizer_vocab(const struct gw_tokenizer *tokenizer);
/* -1 when the file names none. */
int32_t gw_tokenizer_bos(const struct gw_tokenizer *tokenizer);
bool gw_tokenizer_adds_bos(const struct gw_tokenizer *tokenizer);
/* True for every id that ends a generation: eos, eot and the family's end-of-turn token (<|im_end|>, <|eot_id|>, <|end_of_text|>,
 * <|endoftext|>). */
bool gw_tokenizer_is_eog(const struct gw_tokenizer *tokenizer, int32_t id);
/* Id of a token by its exact spelling, -1 if none. */
int32_t gw_tokenizer_find(const struct gw_tokenizer *tokenizer, const char *spelling);

/* Incremental detokenisation: holds back the bytes of an unfinished UTF-8 character, and replaces what can never become one by
 * U+FFFD. Zero-initialise. */
struct gw_detok {
    uint8_t held[4];
    int held_bytes;
};
/* Appends the text that token `id` completes (special tokens add nothing, and do not cut a character in two). */
void gw_detok_add(const struct gw_tokenizer *tokenizer, struct gw_detok *detok, int32_t id, struct gw_buf *text);
/* At the end of a generation: an unfinished character becomes U+FFFD. */
void gw_detok_finish(struct gw_detok *detok, struct gw_buf *text);

#endif
