/* Requests: both forms of a line, every field with its default and range, and every kind of bad line. */
#include "base/mem.h"
#include "batch/request.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct gw_request request;
static struct gw_request_error bad;

static void parse_bytes(const char *line, size_t bytes, int64_t index, const struct gw_request_defaults *defaults)
{
    gw_request_free(&request);
    CU_ASSERT_EQUAL_FATAL(gw_request_parse(line, bytes, index, defaults, &request, &bad), GW_OK);
}

static void parse(const char *line)
{
    parse_bytes(line, strlen(line), 6, NULL);
}

static void expect_good(const char *line)
{
    parse(line);
    if (bad.code) printf("\n  %s\n  -> %s: %s\n", line, bad.code, bad.message);
    CU_ASSERT_PTR_NULL_FATAL(bad.code);
}

/* A line that must be refused with `code`, naming `word` in its message. */
static void expect_bad(const char *line, const char *code, const char *word)
{
    parse(line);
    bool same = bad.code && strcmp(bad.code, code) == 0 && strstr(bad.message, word);
    if (!same)
        printf("\n  %s\n  -> %s: %s\n  expected %s: ..%s..\n", line, bad.code ? bad.code : "good", bad.message, code,
               word);
    CU_ASSERT_TRUE(same);
}

#define CHAT(body)                                                                                                     \
    "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/"                                                     \
    "completions\",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" body "}}"
#define COMPLETION(body)                                                                                               \
    "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"hi\"" body "}}"

static void test_defaults(void)
{
    expect_good(CHAT(""));
    CU_ASSERT_STRING_EQUAL(request.custom_id, "a");
    CU_ASSERT_EQUAL(request.index, 6);
    CU_ASSERT_EQUAL(request.endpoint, GW_ENDPOINT_CHAT);
    CU_ASSERT_EQUAL_FATAL(request.message_count, 1);
    CU_ASSERT_STRING_EQUAL(request.messages[0].role, "user");
    CU_ASSERT_STRING_EQUAL(request.messages[0].content, "hi");
    CU_ASSERT_EQUAL(request.messages[0].content_bytes, 2);
    const struct gw_sampling *s = &request.sampling;
    CU_ASSERT_TRUE(s->temperature == 1 && s->top_p == 1 && s->min_p == 0 && s->repetition_penalty == 1);
    CU_ASSERT_TRUE(s->top_k == 0 && !s->seed_set && s->max_tokens == 0 && !s->ignore_eos && s->logprobs == -1);
    CU_ASSERT_EQUAL(request.stop_count, 0);
    CU_ASSERT_PTR_NULL(request.model);
    expect_good(COMPLETION(""));
    CU_ASSERT_EQUAL(request.endpoint, GW_ENDPOINT_COMPLETION);
    CU_ASSERT_STRING_EQUAL(request.prompt.data, "hi");
    CU_ASSERT_EQUAL(request.prompt.bytes, 2);
}

static void test_fields(void)
{
    expect_good(
        CHAT(",\"model\":\"m\",\"temperature\":0.5,\"top_p\":0.9,\"min_p\":0.1,\"repetition_penalty\":1.1,\"top_k\":40,"
             "\"seed\":-7,\"max_tokens\":5,\"max_completion_tokens\":9,\"ignore_eos\":true,\"logprobs\":true,"
             "\"top_logprobs\":3,\"stop\":[\"x\",\"\\n\"],\"user\":\"u\",\"metadata\":{\"k\":1},\"store\":true,"
             "\"n\":1,\"stream\":false,\"presence_penalty\":0,\"frequency_penalty\":0.0,\"logit_bias\":{},\"tools\":[],"
             "\"tool_choice\":\"none\",\"response_format\":{\"type\":\"text\"},\"service_tier\":\"auto\""));
    const struct gw_sampling *s = &request.sampling;
    CU_ASSERT_STRING_EQUAL(request.model, "m");
    CU_ASSERT_TRUE(s->temperature == 0.5f && s->top_p == 0.9f && s->min_p == 0.1f && s->repetition_penalty == 1.1f);
    CU_ASSERT_TRUE(s->top_k == 40 && s->seed_set && s->seed == (uint64_t)-7 && s->max_tokens == 9 && s->ignore_eos);
    CU_ASSERT_EQUAL(s->logprobs, 3);
    CU_ASSERT_EQUAL_FATAL(request.stop_count, 2);
    CU_ASSERT_STRING_EQUAL(request.stops[1].data, "\n");
    expect_good(CHAT(",\"logprobs\":true"));
    CU_ASSERT_EQUAL(request.sampling.logprobs, 0);
    expect_good(CHAT(",\"logprobs\":false,\"top_logprobs\":0,\"stop\":\"end\",\"top_k\":-1,\"max_tokens\":7.0"));
    CU_ASSERT_EQUAL(request.sampling.logprobs, -1);
    CU_ASSERT_EQUAL(request.sampling.top_k, 0);
    CU_ASSERT_EQUAL(request.sampling.max_tokens, 7);
    CU_ASSERT_EQUAL(request.stop_count, 1);
    expect_good(COMPLETION(",\"logprobs\":5,\"best_of\":1,\"echo\":false,\"suffix\":null,\"temperature\":null"));
    CU_ASSERT_EQUAL(request.sampling.logprobs, 5);
    CU_ASSERT_TRUE(request.sampling.temperature == 1);
}

static void test_run_wide_defaults(void)
{
    struct gw_request_defaults defaults = {.sampling = gw_sampling_default(), .max_line_bytes = 100};
    defaults.sampling.temperature = 0;
    defaults.sampling.max_tokens = 16;
    defaults.sampling.seed = 3;
    defaults.sampling.seed_set = true;
    defaults.sampling.logprobs = 2;
    const char *line = "{\"prompt\":\"p\",\"max_tokens\":8}";
    parse_bytes(line, strlen(line), 0, &defaults);
    CU_ASSERT_TRUE(!bad.code && request.sampling.temperature == 0 && request.sampling.max_tokens == 8 &&
                   request.sampling.seed == 3 && request.sampling.seed_set && request.sampling.logprobs == 2);
    line = "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"logprobs\":false}";
    parse_bytes(line, strlen(line), 0, &defaults);
    CU_ASSERT_TRUE(!bad.code && request.sampling.logprobs == -1);
    char *wide = gw_asprintf("{\"prompt\":\"%0*d\"}", 100, 0);
    parse_bytes(wide, strlen(wide), 0, &defaults);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bad.code);
    CU_ASSERT_STRING_EQUAL(bad.code, GW_REQUEST_LINE_TOO_LONG);
    free(wide);
    CU_ASSERT_EQUAL(gw_sampling_check(&defaults.sampling), GW_OK);
    defaults.sampling.temperature = 2.5f;
    CU_ASSERT_EQUAL(gw_sampling_check(&defaults.sampling), GW_ERR_USAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "temperature"));
}

static void test_plain_form(void)
{
    expect_good("{\"prompt\":\"p\"}");
    CU_ASSERT_STRING_EQUAL(request.custom_id, "line-7");
    CU_ASSERT_EQUAL(request.endpoint, GW_ENDPOINT_COMPLETION);
    expect_good("{\"id\":42,\"prompt\":\"p\",\"temperature\":0}\r");
    CU_ASSERT_STRING_EQUAL(request.custom_id, "42");
    CU_ASSERT_TRUE(request.sampling.temperature == 0);
    expect_good(
        "{\"id\":\"x\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"c\"}]}");
    CU_ASSERT_STRING_EQUAL(request.custom_id, "x");
    CU_ASSERT_EQUAL(request.endpoint, GW_ENDPOINT_CHAT);
    expect_good("{\"custom_id\":\"y\",\"prompt\":\"p\"}");
    CU_ASSERT_STRING_EQUAL(request.custom_id, "y");
    expect_bad("{\"id\":\"x\",\"custom_id\":\"x\",\"prompt\":\"p\"}", GW_REQUEST_INVALID_ID, "both id and custom_id");
    expect_bad("{\"id\":\"x\",\"prompt\":\"p\",\"messages\":[]}", GW_REQUEST_INVALID_VALUE, "both messages and prompt");
    expect_bad("{\"id\":\"x\"}", GW_REQUEST_MISSING_FIELD, "nothing to answer");
    expect_bad("{\"id\":1.5,\"prompt\":\"p\"}", GW_REQUEST_INVALID_TYPE, "id is 1.5");
}

static void test_contents(void)
{
    expect_good(
        "{\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},{\"type\":\"text\","
        "\"text\":\"two\"}]},"
        "{\"role\":\"tool\",\"content\":\"\"},{\"role\":\"assistant\",\"content\":\"\\u0000z\",\"tool_calls\":[]}]}");
    CU_ASSERT_EQUAL_FATAL(request.message_count, 3);
    CU_ASSERT_STRING_EQUAL(request.messages[0].content, "one\ntwo");
    CU_ASSERT_EQUAL(request.messages[1].content_bytes, 0);
    CU_ASSERT_EQUAL(request.messages[2].content_bytes, 2);
    CU_ASSERT_EQUAL(memcmp(request.messages[2].content, "\0z", 3), 0);
    expect_good("{\"prompt\":[1,2,3000]}");
    CU_ASSERT_PTR_NULL(request.prompt.data);
    CU_ASSERT_EQUAL_FATAL(request.prompt_token_count, 3);
    CU_ASSERT_EQUAL(request.prompt_tokens[2], 3000);
    expect_good("{\"prompt\":[\"only\"]}");
    CU_ASSERT_STRING_EQUAL(request.prompt.data, "only");
    expect_good("{\"prompt\":[[7]]}");
    CU_ASSERT_EQUAL(request.prompt_token_count, 1);
    expect_good("{\"prompt\":\"\\ud83d\\ude00 \xf0\x9f\x98\x80\"}");
    CU_ASSERT_STRING_EQUAL(request.prompt.data, "\xf0\x9f\x98\x80 \xf0\x9f\x98\x80");
}

static void test_bad_json(void)
{
    static const char *const lines[] = {"",
                                        "x",
                                        "{",
                                        "{\"prompt\":\"p\"",
                                        "[1,2]",
                                        "7",
                                        "null",
                                        "{\"prompt\":\"p\"} trailing",
                                        "{\"prompt\":\"p\",\"prompt\":\"q\"}",
                                        "{\"prompt\":\"p\",\"x\":{\"a\":1,\"a\":2}}",
                                        "{\"prompt\":\"\\ud800\"}",
                                        "{\"prompt\":\"\xff\"}",
                                        "{\"prompt\":\"\xc0\xaf\"}",
                                        "{\"prompt\":\"p\",\"seed\":99999999999999999999999}",
                                        "{\"prompt\":\"p\",\"temperature\":1e999}",
                                        "{'prompt':'p'}",
                                        "{\"prompt\":\"p\",}",
                                        "{\"prompt\":NaN}",
                                        "\xef\xbb\xbf{\"prompt\":\"p\"}",
                                        "{\"a\\u0000b\":1,\"prompt\":\"p\"}"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) expect_bad(lines[i], GW_REQUEST_INVALID_JSON, "");
    const char nul[] = "{\"prompt\":\"p\0q\"}";
    parse_bytes(nul, sizeof nul - 1, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL(bad.code);
    /* A byte order mark is fine where the file begins, and only there (above). */
    const char bom[] = "\xef\xbb\xbf{\"prompt\":\"p\"}";
    parse_bytes(bom, sizeof bom - 1, 0, NULL);
    CU_ASSERT_PTR_NULL(bad.code);
    size_t depth = 1000000;
    char *deep = gw_alloc(depth + 1, 1);
    memset(deep, '[', depth);
    parse_bytes(deep, depth, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bad.code);
    CU_ASSERT_STRING_EQUAL(bad.code, GW_REQUEST_INVALID_JSON);
    free(deep);
}

#define WITH(outer) "{" outer ",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}}"
static void test_bad_envelope(void)
{
    expect_bad(WITH("\"url\":\"/v1/chat/completions\""), GW_REQUEST_MISSING_ID, "custom_id is missing");
    expect_bad(WITH("\"custom_id\":\"\",\"url\":\"/v1/chat/completions\""), GW_REQUEST_MISSING_ID, "empty");
    expect_bad(WITH("\"custom_id\":null,\"url\":\"/v1/chat/completions\""), GW_REQUEST_MISSING_ID, "missing");
    expect_bad(WITH("\"custom_id\":5,\"url\":\"/v1/chat/completions\""), GW_REQUEST_INVALID_TYPE, "custom_id is 5");
    expect_bad(WITH("\"custom_id\":\"a\\u0000\",\"url\":\"/v1/chat/completions\""), GW_REQUEST_INVALID_ID, "NUL");
    expect_bad(WITH("\"custom_id\":\"a\""), GW_REQUEST_INVALID_URL, "url is missing");
    expect_bad(WITH("\"custom_id\":\"a\",\"url\":\"/v1/embeddings\""), GW_REQUEST_INVALID_URL, "/v1/embeddings");
    CU_ASSERT_STRING_EQUAL(request.custom_id, "a"); /* known, so the error line can name it */
    CU_ASSERT_STRING_EQUAL(bad.param, "url");
    expect_bad(WITH("\"custom_id\":\"a\",\"url\":3"), GW_REQUEST_INVALID_TYPE, "url is 3");
    expect_bad(WITH("\"custom_id\":\"a\",\"method\":\"GET\",\"url\":\"/v1/completions\""), GW_REQUEST_INVALID_METHOD,
               "GET");
    expect_bad(WITH("\"custom_id\":\"a\",\"method\":1,\"url\":\"/v1/completions\""), GW_REQUEST_INVALID_TYPE, "method");
    expect_bad("{\"custom_id\":\"a\",\"url\":\"/v1/completions\"}", GW_REQUEST_MISSING_FIELD, "body is missing");
    expect_bad("{\"custom_id\":\"a\",\"url\":\"/v1/completions\",\"body\":\"x\"}", GW_REQUEST_INVALID_TYPE,
               "body is \"x\"");
    char *wide = gw_asprintf(WITH("\"custom_id\":\"%0513d\",\"url\":\"/v1/chat/completions\""), 0);
    expect_bad(wide, GW_REQUEST_INVALID_ID, "513 bytes");
    free(wide);
    wide = gw_asprintf(WITH("\"custom_id\":\"%0512d\",\"url\":\"/v1/chat/completions\""), 0);
    expect_good(wide);
    free(wide);
}

#define MESSAGES(value) "{\"custom_id\":\"a\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":" value "}}"
#define PROMPT(value) "{\"custom_id\":\"a\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":" value "}}"
static void test_bad_contents(void)
{
    expect_bad(MESSAGES("null"), GW_REQUEST_MISSING_FIELD, "body.messages is missing");
    expect_bad(MESSAGES("null,\"prompt\":\"p\""), GW_REQUEST_MISSING_FIELD, "belongs to /v1/completions");
    expect_bad(MESSAGES("[]"), GW_REQUEST_INVALID_VALUE, "empty");
    expect_bad(MESSAGES("{}"), GW_REQUEST_INVALID_TYPE, "an object");
    expect_bad(MESSAGES("[5]"), GW_REQUEST_INVALID_TYPE, "messages[0] is 5");
    expect_bad(MESSAGES("[{\"content\":\"c\"}]"), GW_REQUEST_MISSING_FIELD, "messages[0].role");
    expect_bad(MESSAGES("[{\"role\":\"user\"}]"), GW_REQUEST_MISSING_FIELD, "messages[0].content");
    expect_bad(MESSAGES("[{\"role\":\"alien\",\"content\":\"c\"}]"), GW_REQUEST_INVALID_VALUE, "alien");
    expect_bad(MESSAGES("[{\"role\":7,\"content\":\"c\"}]"), GW_REQUEST_INVALID_TYPE, "role is 7");
    expect_bad(MESSAGES("[{\"role\":\"user\",\"content\":7}]"), GW_REQUEST_INVALID_TYPE, "content is 7");
    expect_bad(MESSAGES("[{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"user\",\"content\":{}}]"),
               GW_REQUEST_INVALID_TYPE, "messages[1].content");
    expect_bad(MESSAGES("[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]"),
               GW_REQUEST_UNSUPPORTED, "image_url");
    expect_bad(MESSAGES("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]"), GW_REQUEST_INVALID_TYPE,
               "text is not a string");
    expect_bad(MESSAGES("[{\"role\":\"user\",\"content\":[{\"text\":\"t\"}]}]"), GW_REQUEST_INVALID_TYPE, "no type");
    expect_bad(MESSAGES("[{\"role\":\"user\",\"content\":[7]}]"), GW_REQUEST_INVALID_TYPE, "content[0] is 7");
    expect_bad(MESSAGES("[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}]"), GW_REQUEST_UNSUPPORTED,
               "tool_calls");
    expect_bad(PROMPT("null,\"messages\":[]"), GW_REQUEST_MISSING_FIELD, "belong to /v1/chat");
    expect_bad(PROMPT("\"\""), GW_REQUEST_INVALID_VALUE, "empty");
    expect_bad(PROMPT("[]"), GW_REQUEST_INVALID_VALUE, "empty");
    expect_bad(PROMPT("7"), GW_REQUEST_INVALID_TYPE, "prompt is 7");
    expect_bad(PROMPT("[\"a\",\"b\"]"), GW_REQUEST_UNSUPPORTED, "2 prompts");
    expect_bad(PROMPT("[1,-2]"), GW_REQUEST_INVALID_VALUE, "prompt[1] is -2");
    expect_bad(PROMPT("[2147483648]"), GW_REQUEST_INVALID_VALUE, "prompt[0]");
    expect_bad(PROMPT("[1,2.5]"), GW_REQUEST_INVALID_TYPE, "prompt[1] is 2.5");
}

static void test_bad_sampling(void)
{
    static const struct {
        const char *field;
        const char *code;
    } cases[] = {{"\"temperature\":-0.1", GW_REQUEST_INVALID_VALUE},
                 {"\"temperature\":2.01", GW_REQUEST_INVALID_VALUE},
                 {"\"temperature\":\"hot\"", GW_REQUEST_INVALID_TYPE},
                 {"\"temperature\":true", GW_REQUEST_INVALID_TYPE},
                 {"\"top_p\":0", GW_REQUEST_INVALID_VALUE},
                 {"\"top_p\":1.1", GW_REQUEST_INVALID_VALUE},
                 {"\"top_p\":1e-60", GW_REQUEST_INVALID_VALUE},
                 {"\"min_p\":-1", GW_REQUEST_INVALID_VALUE},
                 {"\"min_p\":1.5", GW_REQUEST_INVALID_VALUE},
                 {"\"repetition_penalty\":0", GW_REQUEST_INVALID_VALUE},
                 {"\"repetition_penalty\":1e300", GW_REQUEST_INVALID_VALUE},
                 {"\"top_k\":-2", GW_REQUEST_INVALID_VALUE},
                 {"\"top_k\":1.5", GW_REQUEST_INVALID_TYPE},
                 {"\"top_k\":9999999999", GW_REQUEST_INVALID_VALUE},
                 {"\"seed\":\"1\"", GW_REQUEST_INVALID_TYPE},
                 {"\"seed\":0.5", GW_REQUEST_INVALID_TYPE},
                 {"\"max_tokens\":0", GW_REQUEST_INVALID_VALUE},
                 {"\"max_tokens\":-5", GW_REQUEST_INVALID_VALUE},
                 {"\"max_completion_tokens\":0", GW_REQUEST_INVALID_VALUE},
                 {"\"max_tokens\":\"5\"", GW_REQUEST_INVALID_TYPE},
                 {"\"max_tokens\":1e18", GW_REQUEST_INVALID_TYPE},
                 {"\"ignore_eos\":1", GW_REQUEST_INVALID_TYPE},
                 {"\"stop\":5", GW_REQUEST_INVALID_TYPE},
                 {"\"stop\":[5]", GW_REQUEST_INVALID_TYPE},
                 {"\"stop\":\"\"", GW_REQUEST_INVALID_VALUE},
                 {"\"stop\":[\"a\",\"\"]", GW_REQUEST_INVALID_VALUE},
                 {"\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\",\"13\",\"14\","
                  "\"15\",\"16\",\"17\"]",
                  GW_REQUEST_INVALID_VALUE},
                 {"\"model\":5", GW_REQUEST_INVALID_TYPE},
                 {"\"n\":2", GW_REQUEST_UNSUPPORTED},
                 {"\"n\":0", GW_REQUEST_UNSUPPORTED},
                 {"\"stream\":true", GW_REQUEST_UNSUPPORTED},
                 {"\"best_of\":2", GW_REQUEST_UNSUPPORTED},
                 {"\"echo\":true", GW_REQUEST_UNSUPPORTED},
                 {"\"suffix\":\"s\"", GW_REQUEST_UNSUPPORTED},
                 {"\"tools\":[{}]", GW_REQUEST_UNSUPPORTED},
                 {"\"functions\":[{}]", GW_REQUEST_UNSUPPORTED},
                 {"\"tool_choice\":\"required\"", GW_REQUEST_UNSUPPORTED},
                 {"\"tool_choice\":{}", GW_REQUEST_UNSUPPORTED},
                 {"\"response_format\":{\"type\":\"json_object\"}", GW_REQUEST_UNSUPPORTED},
                 {"\"response_format\":\"text\"", GW_REQUEST_UNSUPPORTED},
                 {"\"logit_bias\":{\"5\":1}", GW_REQUEST_UNSUPPORTED},
                 {"\"presence_penalty\":0.1", GW_REQUEST_UNSUPPORTED},
                 {"\"frequency_penalty\":-1", GW_REQUEST_UNSUPPORTED},
                 {"\"modalities\":[\"audio\"]", GW_REQUEST_UNSUPPORTED},
                 {"\"guided_json\":{\"a\":1}", GW_REQUEST_UNSUPPORTED},
                 {"\"min_tokens\":3", GW_REQUEST_UNSUPPORTED},
                 {"\"skip_special_tokens\":false", GW_REQUEST_UNSUPPORTED},
                 {"\"reasoning_effort\":\"low\"", GW_REQUEST_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *chat = gw_asprintf(CHAT(",%s"), cases[i].field),
             *completion = gw_asprintf(COMPLETION(",%s"), cases[i].field);
        char name[64] = "body.";
        snprintf(name, sizeof name, "body.%.*s", (int)strcspn(cases[i].field + 1, "\""), cases[i].field + 1);
        expect_bad(chat, cases[i].code, name);
        CU_ASSERT_STRING_EQUAL(bad.param, name);
        expect_bad(completion, cases[i].code, name);
        free(chat);
        free(completion);
    }
    expect_bad(CHAT(",\"logprobs\":2"), GW_REQUEST_INVALID_TYPE, "logprobs is 2");
    expect_bad(CHAT(",\"top_logprobs\":2"), GW_REQUEST_INVALID_VALUE, "needs");
    expect_bad(CHAT(",\"logprobs\":true,\"top_logprobs\":21"), GW_REQUEST_INVALID_VALUE, "21");
    expect_bad(COMPLETION(",\"logprobs\":21"), GW_REQUEST_INVALID_VALUE, "21");
    expect_bad(COMPLETION(",\"logprobs\":true"), GW_REQUEST_INVALID_TYPE, "true");
}

/* Quoted values are cut between characters and stay on one line. */
static void test_messages(void)
{
    char *text = gw_alloc(200, 1), *line;
    for (int i = 0; i < 60; i++) memcpy(text + 3 * i, "\xe2\x82\xac", 3);
    line = gw_asprintf(CHAT(",\"temperature\":\"%s\""), text);
    expect_bad(line, GW_REQUEST_INVALID_TYPE, "\xe2\x82\xac...\"");
    free(line);
    memset(text, 0, 200);
    memcpy(text, "\\n\\u0001", 8);
    line = gw_asprintf(CHAT(",\"temperature\":\"%s\""), text);
    expect_bad(line, GW_REQUEST_INVALID_TYPE, "\"??\"");
    free(line);
    free(text);
}

static void test_stream(void)
{
    expect_good("{\"id\":\"abc\",\"prompt\":\"p\"}");
    uint64_t first = gw_request_stream(&request);
    CU_ASSERT_EQUAL(first, gw_request_id_hash("abc"));
    CU_ASSERT_EQUAL(first, 0x78af5f94892f3950u); /* XXH3_64bits("abc"): the same on every machine, for ever */
    expect_good("{\"id\":\"abd\",\"prompt\":\"p\"}");
    CU_ASSERT_NOT_EQUAL(gw_request_stream(&request), first);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("request", NULL, NULL);
    CU_add_test(suite, "defaults", test_defaults);
    CU_add_test(suite, "fields", test_fields);
    CU_add_test(suite, "run-wide defaults", test_run_wide_defaults);
    CU_add_test(suite, "plain form", test_plain_form);
    CU_add_test(suite, "contents", test_contents);
    CU_add_test(suite, "bad JSON", test_bad_json);
    CU_add_test(suite, "bad envelope", test_bad_envelope);
    CU_add_test(suite, "bad contents", test_bad_contents);
    CU_add_test(suite, "bad sampling", test_bad_sampling);
    CU_add_test(suite, "messages", test_messages);
    CU_add_test(suite, "random stream", test_stream);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    gw_request_free(&request);
    return failures != 0;
}
