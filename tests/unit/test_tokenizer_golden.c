/* Token ids and chat prompts of the two real vocabularies against what Hugging Face gave (tests/golden/tokenizer*.jsonl, made by
 * tests/golden/tokenizer_golden.py). SmolLM2's file is $GODWIT_TEST_MODEL or data/models/SmolLM2-135M-Instruct.Q4_1.gguf of the
 * source or build tree; Qwen2.5's is $GODWIT_TEST_MODEL_QWEN. A file that is not there is skipped; without both, so is the test (77). */
#include "base/clock.h"
#include "base/file.h"
#include "model/chat.h"
#include "support/real_model.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct model {
    struct gw_gguf *gguf;
    struct gw_tokenizer *tokenizer;
    struct gw_chat *chat;
};

static int failures;

static bool same_ids(const json_t *wanted, const struct gw_tokens *got)
{
    if (json_array_size(wanted) != got->count) return false;
    for (size_t i = 0; i < got->count; i++)
        if (json_integer_value(json_array_get(wanted, i)) != got->ids[i]) return false;
    return true;
}

static void fail(const char *what, const char *name, size_t line)
{
    printf("FAILED: %s, %s, line %zu\n", what, name, line);
    failures++;
}

static bool decodes_to(const struct model *model, const struct gw_tokens *tokens, const char *text, size_t bytes)
{
    struct gw_buf back = {0};
    for (size_t i = 0; i < tokens->count; i++) {
        size_t length;
        const char *data = gw_tokenizer_bytes(model->tokenizer, tokens->ids[i], &length);
        gw_buf_add(&back, data, length);
    }
    bool same = back.bytes == bytes && (!bytes || memcmp(back.data, text, bytes) == 0);
    gw_buf_free(&back);
    return same;
}

static void check_text(const struct model *model, const char *name, const json_t *line, size_t number, int *exact)
{
    const json_t *text = json_object_get(line, "text");
    struct gw_tokens tokens = {0};
    gw_err rc = gw_tokenizer_encode(model->tokenizer, json_string_value(text), json_string_length(text),
                                    json_is_true(json_object_get(line, "special")), &tokens);
    if (rc != GW_OK || !same_ids(json_object_get(line, name), &tokens)) fail("ids differ", name, number);
    *exact += decodes_to(model, &tokens, json_string_value(text), json_string_length(text));
    gw_tokens_free(&tokens);
}

static void check_chat(const struct model *model, const char *name, const json_t *line, size_t number, int *exact)
{
    const json_t *list = json_object_get(line, "messages");
    struct gw_message messages[32];
    struct gw_tokens tokens = {0};
    size_t count = json_array_size(list);
    GW_ASSERT(count <= sizeof messages / sizeof *messages);
    for (size_t i = 0; i < count; i++) {
        const json_t *content = json_object_get(json_array_get(list, i), "content");
        messages[i].role = json_string_value(json_object_get(json_array_get(list, i), "role"));
        messages[i].content = json_string_value(content);
        messages[i].content_bytes = json_string_length(content);
    }
    if (gw_chat_encode(model->chat, messages, count, &tokens) != GW_OK ||
        !same_ids(json_object_get(line, name), &tokens))
        fail("prompt differs", name, number);
    else (*exact)++;
    gw_tokens_free(&tokens);
}

/* Calls `check` for each line of a golden file; returns the number of lines. */
static int check_file(const struct model *model, const char *name, const char *file, int *exact,
                      void (*check)(const struct model *, const char *, const json_t *, size_t, int *))
{
    const char *root = getenv("GW_SRCDIR");
    char path[2048], *text;
    size_t bytes, number = 0;
    snprintf(path, sizeof path, "%s/tests/golden/%s", root ? root : ".", file);
    if (gw_file_read(path, 4 << 20, &text, &bytes) != GW_OK) {
        puts(gw_error_detail());
        failures++;
        return 0;
    }
    for (char *at = text, *end; (end = strchr(at, '\n')); at = end + 1) {
        json_t *line = json_loadb(at, (size_t)(end - at), JSON_ALLOW_NUL, NULL);
        number++;
        if (json_is_array(json_object_get(line, name))) check(model, name, line, number, exact);
        else fail("unusable line", file, number);
        json_decref(line);
    }
    free(text);
    return (int)number;
}

static void check_model(const char *name, const char *path)
{
    struct model model = {0};
    double start = gw_clock_now_s(), opened = 0, made = 0;
    gw_err rc = gw_gguf_open(path, &model.gguf);
    opened = gw_clock_now_s();
    if (rc == GW_OK) rc = gw_tokenizer_create(model.gguf, &model.tokenizer);
    made = gw_clock_now_s();
    if (rc == GW_OK) rc = gw_chat_create(model.gguf, model.tokenizer, NULL, &model.chat);
    if (rc != GW_OK) {
        printf("FAILED: %s\n", gw_error_detail());
        failures++;
    } else {
        int back = 0, same = 0;
        int texts = check_file(&model, name, "tokenizer.jsonl", &back, check_text);
        int talks = check_file(&model, name, "tokenizer_chat.jsonl", &same, check_chat);
        printf("%s: %d texts (%d decode to the same bytes), %d conversations; opened in %.0f ms, tokenizer made in "
               "%.0f ms\n",
               name, texts, back, talks, (opened - start) * 1e3, (made - opened) * 1e3);
    }
    gw_chat_destroy(model.chat);
    gw_tokenizer_destroy(model.tokenizer);
    gw_gguf_close(model.gguf);
}

/* The first of these that is a readable file; NULL if none. `path` has room for 2048 bytes. */
int main(void)
{
    char path[2048];
    const char *smollm2 = real_model_find(path), *qwen = getenv("GODWIT_TEST_MODEL_QWEN");
    if (smollm2) check_model("smollm2", smollm2);
    else puts("skipped: SmolLM2 (no data/models/SmolLM2-135M-Instruct.Q4_1.gguf, and GODWIT_TEST_MODEL is not set)");
    if (qwen) check_model("qwen2.5", qwen);
    else puts("skipped: Qwen2.5 (GODWIT_TEST_MODEL_QWEN is not set)");
    if (failures) return 1;
    return smollm2 || qwen ? 0 : 77;
}
