/* Chat templates by family: ChatML, Llama 3, plain. The family is recognised from the model file's template text and special
 * tokens; godwit has no Jinja interpreter, so an unknown template is refused with advice (--chat-template NAME). Local. */
#ifndef GW_MODEL_CHAT_H
#define GW_MODEL_CHAT_H

#include "base/error.h"
#include "base/mem.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

struct gw_chat; /* opaque: the recognised family, its default system prompt, its spelling of turns */

struct gw_message {
    const char *role; /* "system", "user", "assistant", "developer" (as system), "tool" where the family has it */
    const char *content;
    size_t content_bytes;
};

/* `forced` NULL: recognise from the file; else "chatml", "llama3" or "plain".
 * GW_ERR_UNSUPPORTED with the advice when the template is unknown; a file without any template gives a chat that refuses
 * to render (so that /v1/completions still works). The tokenizer must outlive the chat. */
GW_CHECK gw_err gw_chat_create(const struct gw_gguf *gguf, const struct gw_tokenizer *tokenizer, const char *forced,
                               struct gw_chat **chat);
void gw_chat_destroy(struct gw_chat *chat);
const char *gw_chat_family(const struct gw_chat *chat);

/* Token ids of the conversation plus the generation prompt of the assistant's turn, including the default system prompt where the
 * model's own template adds one and BOS where it has one. Message contents are never parsed for special tokens
 * (no injection through data); the template's own markers are. GW_ERR_INPUT for an unknown role or an empty list. */
GW_CHECK gw_err gw_chat_encode(const struct gw_chat *chat, const struct gw_message *messages, size_t count,
                               struct gw_tokens *out);

#endif
