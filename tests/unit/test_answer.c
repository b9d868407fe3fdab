/* Answers: from an input line to prompt tokens and limits, or to the right error; from drawn tokens to text, finish reason, counts and
 * log-probabilities; and that a stop string cuts at the same byte whatever tokens its text comes in. Token ids 0..255 are bytes here. */
#include "job/answer.h"
#include "support/tiny_vocab.h"

#include <CUnit/Basic.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BOS = 256, END = 257, TURN = 258, AB = 259, VOCAB = 262, CONTEXT = 40 };

static const struct gw_vocab_added added[] = {{"<s>", 3}, {"<|im_end|>", 3}, {"<|im_start|>", 3}, {"ab", 4}, {NULL, 0}};
static const char chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}<|im_start|>assistant\n";

static struct gw_buf file;
static struct gw_gguf *gguf;
static struct gw_tokenizer *tokenizer;
static struct gw_chat *chat;
static struct gw_request_defaults defaults;
static struct gw_answer_context context;

static int open_all(void)
{
    struct gw_vocab_spec spec = {
        .added = added, .bos = 1, .eos = 2, .add_bos = GW_VOCAB_BOS_YES, .chat_template = chatml};
    gw_vocab_build(&spec, &file);
    if (gw_gguf_parse("made-up.gguf", file.data, file.bytes, &gguf) != GW_OK ||
        gw_tokenizer_create(gguf, &tokenizer) != GW_OK || gw_chat_create(gguf, tokenizer, NULL, &chat) != GW_OK) {
        printf("%s\n", gw_error_detail());
        return 1;
    }
    defaults.sampling = gw_sampling_default();
    context = (struct gw_answer_context){.tokenizer = tokenizer,
                                         .chat = chat,
                                         .defaults = &defaults,
                                         .model_name = "made-up",
                                         .created = 1234,
                                         .context = CONTEXT,
                                         .vocab = VOCAB};
    return 0;
}

static int close_all(void)
{
    gw_chat_destroy(chat);
    gw_tokenizer_destroy(tokenizer);
    gw_gguf_close(gguf);
    gw_buf_free(&file);
    return 0;
}

/* The answer to a good line; its prompt's ids into `prompt` (may be NULL). */
static struct gw_answer *answer_to(const char *line, struct gw_tokens *prompt)
{
    struct gw_tokens ignored = {0};
    struct gw_answer *answer = NULL;
    struct gw_request_error bad = {0};
    char *custom_id = NULL;
    CU_ASSERT_EQUAL(gw_answer_create(&context, line, strlen(line), 3, prompt ? prompt : &ignored, &answer, &bad,
                                     &custom_id),
                    GW_OK);
    if (bad.code) printf("%s: %s ", bad.code, bad.message);
    CU_ASSERT_PTR_NULL(custom_id);
    CU_ASSERT_PTR_NOT_NULL_FATAL(answer);
    gw_tokens_free(&ignored);
    return answer;
}

/* A line without an answer: `code`, and its custom_id where it is known. */
static void check_bad(const char *line, const char *code, const char *wanted_id)
{
    struct gw_tokens prompt = {0};
    struct gw_answer *answer = NULL;
    struct gw_request_error bad = {0};
    char *custom_id = NULL;
    CU_ASSERT_EQUAL(gw_answer_create(&context, line, strlen(line), 3, &prompt, &answer, &bad, &custom_id), GW_OK);
    CU_ASSERT_PTR_NULL(answer);
    if (!bad.code || strcmp(bad.code, code) != 0)
        printf("'%s': %s, %s ", line, bad.code ? bad.code : "good", bad.message);
    CU_ASSERT(bad.code && !strcmp(bad.code, code));
    CU_ASSERT(wanted_id ? custom_id && !strcmp(custom_id, wanted_id) : !custom_id);
    free(custom_id);
    gw_tokens_free(&prompt);
}

static bool push(struct gw_answer *answer, int32_t token)
{
    struct gw_sample_result drawn = {.token = token};
    return gw_answer_push(answer, &drawn);
}

/* Pushes tokens until the answer is complete; returns how many it took, 0 if it never was. */
static int push_all(struct gw_answer *answer, const int32_t *tokens, int count)
{
    for (int i = 0; i < count; i++)
        if (push(answer, tokens[i])) return i + 1;
    return 0;
}

static int push_text(struct gw_answer *answer, const char *text)
{
    int32_t tokens[256];
    int count = (int)strlen(text);
    for (int i = 0; i < count; i++) tokens[i] = (uint8_t)text[i];
    return push_all(answer, tokens, count);
}

/* The output line has all the texts, NULL-terminated. Frees the answer. */
static void check_line(struct gw_answer *answer, const char *const *texts)
{
    struct gw_buf line = {0};
    gw_answer_format(answer, &line);
    gw_buf_add(&line, "", 1);
    CU_ASSERT(line.bytes > 2 && line.data[line.bytes - 2] == '\n');
    for (; *texts; texts++) {
        if (!strstr((char *)line.data, *texts)) printf("\n  no %s in %s", *texts, line.data);
        CU_ASSERT(strstr((char *)line.data, *texts) != NULL);
    }
    gw_buf_free(&line);
    gw_answer_destroy(answer);
}
#define CHECK_LINE(answer, ...) check_line(answer, (const char *const[]){__VA_ARGS__, NULL})

/* ---- input ------------------------------------------------------------------------------------------------------- */

static void test_prompts(void)
{
    struct gw_tokens prompt = {0};
    struct gw_answer *answer = answer_to("{\"id\":\"a\",\"prompt\":\"xy<|im_end|>\",\"max_tokens\":5}", &prompt);
    CU_ASSERT(prompt.count == 13 && prompt.ids[0] == BOS && prompt.ids[1] == 'x' &&
              prompt.ids[3] == '<'); /* no injection */
    CU_ASSERT(gw_answer_prompt_tokens(answer) == 13 && gw_answer_limit(answer) == 18 && gw_answer_index(answer) == 3);
    CU_ASSERT(gw_answer_logprobs(answer) == -1 && gw_answer_completion_tokens(answer) == 0);
    gw_answer_destroy(answer);
    gw_tokens_free(&prompt);

    answer = answer_to("{\"id\":\"b\",\"prompt\":[1,2,261],\"max_tokens\":100}",
                       &prompt); /* ids are taken as they are */
    CU_ASSERT(prompt.count == 3 && prompt.ids[2] == 261 && gw_answer_limit(answer) == CONTEXT);
    gw_answer_destroy(answer);
    gw_tokens_free(&prompt);

    answer = answer_to("{\"id\":\"c\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]}", &prompt);
    CU_ASSERT(prompt.count > 5 && prompt.ids[0] == TURN && gw_answer_limit(answer) == CONTEXT);
    gw_answer_destroy(answer);
    gw_tokens_free(&prompt);
}

static void test_bad_lines(void)
{
    char line[2048] = "{\"id\":\"long\",\"prompt\":[1";
    check_bad("nonsense", GW_REQUEST_INVALID_JSON, NULL);
    check_bad("{\"id\":\"x\"}", GW_REQUEST_MISSING_FIELD, "x");
    check_bad("{\"id\":\"x\",\"prompt\":[5,262]}", GW_REQUEST_INVALID_VALUE, "x");
    check_bad("{\"id\":\"x\",\"prompt\":[5,-1]}", GW_REQUEST_INVALID_VALUE, "x");
    check_bad("{\"id\":\"x\",\"prompt\":[]}", GW_REQUEST_INVALID_VALUE, "x");
    check_bad("{\"id\":\"x\",\"messages\":[{\"role\":\"tool\",\"content\":\"q\"}],\"temperature\":9}",
              GW_REQUEST_INVALID_VALUE, "x");
    for (int i = 1; i < CONTEXT - 1; i++) strcat(line, ",1");
    size_t end = strlen(line);
    strcat(line, "]}");
    struct gw_answer *answer = answer_to(line, NULL); /* context - 1: room for one token */
    CU_ASSERT_EQUAL(gw_answer_limit(answer), CONTEXT);
    CU_ASSERT(push(answer, 'z'));
    CHECK_LINE(answer, "\"finish_reason\":\"length\"", "\"text\":\"z\"");
    strcpy(line + end, ",1]}");
    check_bad(line, GW_REQUEST_TOO_LONG, "long");
}

static void test_params(void)
{
    struct gw_answer *a = answer_to("{\"id\":\"a\",\"prompt\":\"x\",\"temperature\":0.5,\"top_p\":0.25,\"top_k\":3,"
                                    "\"min_p\":0.125,\"repetition_penalty\":1.5,\"seed\":77}",
                                    NULL);
    struct gw_answer *b = answer_to("{\"id\":\"b\",\"prompt\":\"x\"}", NULL);
    struct gw_answer *again = answer_to("{\"id\":\"a\",\"prompt\":\"another\"}", NULL);
    struct gw_sample_params p = gw_answer_params(a);
    CU_ASSERT(p.temperature == 0.5f && p.top_p == 0.25f && p.top_k == 3 && p.min_p == 0.125f && p.seed == 77);
    CU_ASSERT(p.repetition_penalty == 1.5f);
    CU_ASSERT(gw_answer_params(again).stream == p.stream &&
              gw_answer_params(b).stream != p.stream); /* custom_id alone */
    CU_ASSERT(gw_answer_params(b).temperature == 1 && gw_answer_params(b).seed == 0);
    gw_answer_destroy(a);
    gw_answer_destroy(b);
    gw_answer_destroy(again);
}

/* ---- output ------------------------------------------------------------------------------------------------------ */

static void test_ends(void)
{
    static const int32_t end[] = {'h', 'i', END, 'x'}, euro[] = {0xE2, 0x82, 0xAC, 'x', 0xE2}, cut[] = {'a', 0xE2, END};
    struct gw_answer *answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":10}", NULL);
    CU_ASSERT_EQUAL(push_all(answer, end, 4), 3);
    CU_ASSERT_EQUAL(gw_answer_completion_tokens(answer), 3); /* the end is a token that was drawn */
    CHECK_LINE(answer, "\"custom_id\":\"a\"", "\"text\":\"hi\"", "\"finish_reason\":\"stop\"",
               "\"completion_tokens\":3", "\"prompt_tokens\":1", "\"model\":\"made-up\"", "\"created\":1234",
               "\"logprobs\":null");

    answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":5}", NULL);
    CU_ASSERT_EQUAL(push_all(answer, euro, 5), 5);
    CHECK_LINE(answer, "\"text\":\"€x\xEF\xBF\xBD\"", "\"finish_reason\":\"length\"");

    answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":10}", NULL);
    CU_ASSERT_EQUAL(push_all(answer, cut, 3), 3);
    CHECK_LINE(answer, "\"text\":\"a\xEF\xBF\xBD\"", "\"finish_reason\":\"stop\"");

    answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":4,\"ignore_eos\":true}", NULL);
    CU_ASSERT_EQUAL(push_all(answer, end, 4), 4);
    CHECK_LINE(answer, "\"text\":\"hix\"", "\"finish_reason\":\"length\"", "\"completion_tokens\":4");

    answer = answer_to("{\"id\":\"a\",\"prompt\":[1]}", NULL); /* the end at once */
    CU_ASSERT(push(answer, END));
    CHECK_LINE(answer, "\"text\":\"\"", "\"finish_reason\":\"stop\"", "\"completion_tokens\":1");
}

/* The same text in other tokens: "ab" is a token, and so is each of its bytes. */
static void test_stop_strings(void)
{
    static const char line[] = "{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":20,\"stop\":[\"bc\",\"zz\",\"€\"]}";
    static const int32_t merged[] = {'x', AB, 'c', 'd'};
    struct gw_answer *answer = answer_to(line, NULL);
    CU_ASSERT_EQUAL(push_text(answer, "xabcd"), 4);
    CHECK_LINE(answer, "\"text\":\"xa\"", "\"finish_reason\":\"stop\"", "\"completion_tokens\":4");
    answer = answer_to(line, NULL);
    CU_ASSERT_EQUAL(push_all(answer, merged, 4), 3);
    CHECK_LINE(answer, "\"text\":\"xa\"", "\"finish_reason\":\"stop\"", "\"completion_tokens\":3");
    answer = answer_to(line, NULL);
    CU_ASSERT_EQUAL(push_text(answer, "bzb€c"), 6); /* complete with the character's last byte */
    CHECK_LINE(answer, "\"text\":\"bzb\"", "\"finish_reason\":\"stop\"");
    answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":3,\"stop\":\"xyz\"}", NULL);
    CU_ASSERT_EQUAL(push_text(answer, "xyz"), 3); /* the last token allowed completes it: stop, not length */
    CHECK_LINE(answer, "\"text\":\"\"", "\"finish_reason\":\"stop\"");
    answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":2,\"stop\":\"xyz\"}", NULL);
    CU_ASSERT_EQUAL(push_text(answer, "xyz"), 2); /* half of it stays text */
    CHECK_LINE(answer, "\"text\":\"xy\"", "\"finish_reason\":\"length\"");
    answer = answer_to("{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":9,\"stop\":\"<|im_end|>\"}", NULL);
    CU_ASSERT(!push(answer, TURN) && push(answer, END)); /* control tokens are no text */
    CHECK_LINE(answer, "\"text\":\"\"", "\"finish_reason\":\"stop\"");
}

static void test_logprobs(void)
{
    static const char *const lines[] = {"{\"id\":\"a\",\"prompt\":[1],\"max_tokens\":4,\"logprobs\":2}",
                                        "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"max_"
                                        "tokens\":4,\"logprobs\":true,\"top_logprobs\":2}"};
    for (int chat_line = 0; chat_line < 2; chat_line++) {
        struct gw_answer *answer = answer_to(lines[chat_line], NULL);
        CU_ASSERT_EQUAL(gw_answer_logprobs(answer), 2);
        struct gw_sample_result drawn = {
            .token = 'k', .logprob = -0.5f, .alternatives = 2, .alt_token = {'m', 'k'}, .alt_logprob = {-0.25f, -0.5f}};
        CU_ASSERT(!gw_answer_push(answer, &drawn));
        drawn.token = END; /* ends the text: no position of its own */
        drawn.logprob = -7.75f;
        CU_ASSERT(gw_answer_push(answer, &drawn));
        struct gw_buf line = {0};
        gw_answer_format(answer, &line);
        gw_buf_add(&line, "", 1);
        CU_ASSERT(strstr((char *)line.data, "-0.25") && strstr((char *)line.data, "-0.5") &&
                  !strstr((char *)line.data, "-7.75"));
        CU_ASSERT(strstr((char *)line.data, "\"m\"") && strstr((char *)line.data, "\"k\""));
        gw_buf_free(&line);
        gw_answer_destroy(answer);
    }
}

/* The line as a JSON reader sees it: usage that adds up, and as many log-probabilities as tokens of the text. */
static void test_json(void)
{
    static const char *const lines[] = {"{\"id\":\"a\\\"\\n\",\"prompt\":[1,2],\"max_tokens\":4,\"logprobs\":1}",
                                        "{\"id\":\"a\\\"\\n\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],"
                                        "\"max_tokens\":4,\"logprobs\":true}"};
    static const int32_t tokens[] = {'"', '\n', 0xFF, 0};
    for (int chat_line = 0; chat_line < 2; chat_line++) {
        struct gw_answer *answer = answer_to(lines[chat_line], NULL);
        int prompt_tokens = gw_answer_prompt_tokens(answer);
        CU_ASSERT_EQUAL(push_all(answer, tokens, 4), 4);
        struct gw_buf line = {0};
        gw_answer_format(answer, &line);
        CU_ASSERT_PTR_EQUAL(memchr(line.data, '\n', line.bytes), line.data + line.bytes - 1); /* one line */
        json_t *root = json_loadb((char *)line.data, line.bytes, JSON_ALLOW_NUL, NULL), *choice = NULL, *list = NULL;
        const char *id = NULL, *text = NULL, *finish = NULL;
        size_t text_bytes = 0;
        int status = 0, prompt = 0, completion = 0, total = 0;
        CU_ASSERT_EQUAL(json_unpack(root, "{s:s, s:{s:i, s:{s:{s:i, s:i, s:i}, s:[o]}}}", "custom_id", &id, "response",
                                    "status_code", &status, "body", "usage", "prompt_tokens", &prompt,
                                    "completion_tokens", &completion, "total_tokens", &total, "choices", &choice),
                        0);
        CU_ASSERT(id && !strcmp(id, "a\"\n") && status == 200);
        CU_ASSERT(prompt == prompt_tokens && completion == 4 && total == prompt_tokens + 4);
        CU_ASSERT_EQUAL(chat_line ? json_unpack(choice, "{s:s, s:{s:s%}, s:{s:o}}", "finish_reason", &finish, "message",
                                                "content", &text, &text_bytes, "logprobs", "content", &list)
                                  : json_unpack(choice, "{s:s, s:s%, s:{s:o}}", "finish_reason", &finish, "text", &text,
                                                &text_bytes, "logprobs", "token_logprobs", &list),
                        0);
        CU_ASSERT(text_bytes == 6 && !memcmp(text, "\"\n\xEF\xBF\xBD", 6) && finish && !strcmp(finish, "length"));
        CU_ASSERT_EQUAL(json_array_size(list), 4);
        json_decref(root);
        gw_buf_free(&line);
        gw_answer_destroy(answer);
    }
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("answer", open_all, close_all);
    CU_add_test(suite, "prompts", test_prompts);
    CU_add_test(suite, "bad lines", test_bad_lines);
    CU_add_test(suite, "sampling parameters", test_params);
    CU_add_test(suite, "ends of a text", test_ends);
    CU_add_test(suite, "stop strings", test_stop_strings);
    CU_add_test(suite, "as JSON", test_json);
    CU_add_test(suite, "log-probabilities", test_logprobs);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures() + (CU_get_number_of_suites_failed() > 0);
    CU_cleanup_registry();
    return failures != 0;
}
