/* Output: exact bytes of every kind of line, torn and damaged files, a full disk, manifest, digest and verify. */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "batch/io/digest.h"
#include "batch/io/json.h"
#include "batch/io/manifest.h"
#include "batch/io/output.h"

#include <CUnit/Basic.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char dir[] = "test_output.XXXXXX";

static const char *in_dir(const char *name)
{
    static char path[100];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void put_file(const char *name, const char *text, size_t bytes)
{
    CU_ASSERT_EQUAL_FATAL(gw_file_replace(in_dir(name), text, bytes, false), GW_OK);
}

static char *get_file(const char *name)
{
    char *text = NULL;
    CU_ASSERT_EQUAL_FATAL(gw_file_read(in_dir(name), 1 << 20, &text, NULL), GW_OK);
    return text;
}

static void clear_dir(void)
{
    static const char *const names[] = {"output.jsonl", "errors.jsonl", "manifest.json", "input.jsonl"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_dir(names[i]));
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static void check_string(const char *text, size_t bytes, const char *expected)
{
    struct gw_buf buf = {0}, back = {0};
    gw_json_add_string(&buf, text, bytes);
    CU_ASSERT_TRUE(buf.bytes == strlen(expected) && memcmp(buf.data, expected, buf.bytes) == 0);
    CU_ASSERT_EQUAL(gw_json_read_string((char *)buf.data, buf.bytes, &back), buf.bytes);
    if (!strstr(expected, "\xef\xbf\xbd"))
        CU_ASSERT_TRUE(back.bytes == bytes && (!bytes || memcmp(back.data, text, bytes) == 0));
    gw_buf_free(&buf);
    gw_buf_free(&back);
}

static void test_strings(void)
{
    check_string("", 0, "\"\"");
    check_string("plain", 5, "\"plain\"");
    check_string("a\"b\\c/\b\f\n\r\t", 11, "\"a\\\"b\\\\c/\\b\\f\\n\\r\\t\"");
    check_string("\0\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\x7f\"");
    check_string("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
    check_string("a\xff"
                 "b",
                 3,
                 "\"a\xef\xbf\xbd"
                 "b\"");
    check_string("\xe2\x82", 2, "\"\xef\xbf\xbd\"");                             /* cut short: one replacement */
    check_string("\xc0\xaf", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* overlong */
    check_string("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
    check_string("\xf4\x90\x80\x80", 4, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");

    struct gw_buf back = {0};
    const char *text = "\"\\u00e9\\ud83d\\uDE00\\/\" tail";
    CU_ASSERT_EQUAL(gw_json_read_string(text, strlen(text), &back), 22);
    CU_ASSERT_STRING_EQUAL((char *)back.data, "\xc3\xa9\xf0\x9f\x98\x80/");
    static const char *const wrong[] = {"x",           "\"",          "\"abc",   "\"\\\"", "\"\\u12\"",
                                        "\"\\ud83d\"", "\"\\ude00\"", "\"\\x\"", "\"\n\"", "\"\xff\""};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CU_ASSERT_EQUAL(gw_json_read_string(wrong[i], strlen(wrong[i]), &back), 0);
    gw_buf_free(&back);
}

static void check_float(float value, const char *expected)
{
    struct gw_buf buf = {0};
    gw_json_add_float(&buf, value);
    gw_buf_add(&buf, "", 1);
    CU_ASSERT_STRING_EQUAL((char *)buf.data, expected);
    gw_buf_free(&buf);
}

static void test_floats(void)
{
    check_float(0, "0");
    check_float(-0.0f, "0");
    check_float(-1, "-1");
    check_float(-0.1f, "-0.1");
    check_float(0.8f, "0.8");
    check_float(1.0f / 3, "0.33333334");
    check_float(-16777217.0f, "-16777216");
    check_float(1e-30f, "1e-30");
    check_float(-INFINITY, "-9999");
    uint32_t seed = 12345; /* every float reads back as itself */
    for (int i = 0; i < 100000; i++) {
        float value;
        seed = seed * 1664525 + 1013904223;
        memcpy(&value, &seed, 4);
        if (!isfinite(value) || value == 0) continue;
        struct gw_buf buf = {0};
        gw_json_add_float(&buf, value);
        gw_buf_add(&buf, "", 1);
        if (strtof((char *)buf.data, NULL) != value) CU_FAIL("a float does not read back");
        gw_buf_free(&buf);
    }
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

static struct gw_completion completion(const char *id, enum gw_endpoint endpoint, const char *text)
{
    return (struct gw_completion){.custom_id = id,
                                  .endpoint = endpoint,
                                  .model = "m",
                                  .text = text,
                                  .text_bytes = strlen(text),
                                  .prompt_tokens = 3,
                                  .completion_tokens = 2,
                                  .finish = GW_FINISH_STOP};
}

static void check_line(const struct gw_completion *c, const char *expected)
{
    struct gw_buf line = {0};
    gw_output_format_completion(c, &line);
    gw_buf_add(&line, "", 1);
    CU_ASSERT_STRING_EQUAL((char *)line.data, expected);
    if (strcmp((char *)line.data, expected) != 0) printf("\n%s%s", (char *)line.data, expected);
    json_t *root = json_loads((char *)line.data, 0, NULL);
    CU_ASSERT_PTR_NOT_NULL(root);
    json_decref(root);
    gw_buf_free(&line);
}

#define HEAD_ABC                                                                                                       \
    "{\"id\":\"batch_req_78af5f94892f3950\",\"custom_id\":\"abc\",\"response\":{\"status_code\":200,\"request_id\":"   \
    "\"@1\",\"body\":"
#define USAGE "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}},\"error\":null}\n"

/* Puts the two seeded hashes of "abc" where the golden text has @1 and @2. */
static char *with_hashes(const char *text)
{
    struct gw_buf buf = {0};
    static const char *const hashes[] = {"6b4467b443c76228", "e2af69bada306fec"};
    for (; *text; text++)
        if (*text == '@') gw_buf_add_text(&buf, hashes[*++text - '1']);
        else gw_buf_add(&buf, text, 1);
    gw_buf_add(&buf, "", 1);
    return (char *)buf.data;
}

static void test_answers(void)
{
    struct gw_completion c = completion("abc", GW_ENDPOINT_CHAT, "Hi \"you\"\n\xf0\x9f\x98\x80");
    char *expected = with_hashes(
        HEAD_ABC "{\"id\":\"chatcmpl-@2\",\"object\":\"chat.completion\",\"created\":7,\"model\":\"m\",\"choices\":[{"
                 "\"index\":0,"
                 "\"message\":{\"role\":\"assistant\",\"content\":\"Hi "
                 "\\\"you\\\"\\n\xf0\x9f\x98\x80\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE);
    c.created = 7;
    check_line(&c, expected);
    free(expected);
    c = completion("abc", GW_ENDPOINT_COMPLETION, "t");
    c.finish = GW_FINISH_LENGTH;
    expected = with_hashes(HEAD_ABC "{\"id\":\"cmpl-@2\",\"object\":\"text_completion\",\"created\":0,\"model\":\"m\","
                                    "\"choices\":[{\"index\":0,\"text\":\"t\","
                                    "\"logprobs\":null,\"finish_reason\":\"length\"}]," USAGE);
    check_line(&c, expected);
    free(expected);
}

static void test_logprobs(void)
{
    /* Two tokens that share a character, and alternatives of which two have one spelling. */
    const struct gw_token_logprob top[] = {{"a", 1, -0.5f}, {"\xe2\x82", 2, -1}, {"a", 1, -3}, {"", 0, -INFINITY}};
    const struct gw_position_logprobs positions[] = {{{"\xe2\x82", 2, -1}, top, 4},
                                                     {{"\xac"
                                                       "b",
                                                       2, -0.25f},
                                                      NULL,
                                                      0}};
    struct gw_completion c = completion("abc", GW_ENDPOINT_CHAT,
                                        "\xe2\x82\xac"
                                        "b");
    c.logprobs = positions;
    c.logprob_count = 2;
    char *expected = with_hashes(
        HEAD_ABC "{\"id\":\"chatcmpl-@2\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"m\",\"choices\":[{"
                 "\"index\":0,\"message\":{\"role\":\"assistant\","
                 "\"content\":\"\xe2\x82\xac"
                 "b\"},\"logprobs\":{\"content\":[{\"token\":\"\xef\xbf\xbd\",\"logprob\":-1,\"bytes\":[226,130],\"top_"
                 "logprobs\":["
                 "{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]},{\"token\":\"\xef\xbf\xbd\",\"logprob\":-1,"
                 "\"bytes\":[226,130]},"
                 "{\"token\":\"a\",\"logprob\":-3,\"bytes\":[97]},{\"token\":\"\",\"logprob\":-9999,\"bytes\":[]}]},"
                 "{\"token\":\"\xef\xbf\xbd"
                 "b\",\"logprob\":-0.25,\"bytes\":[172,98],\"top_logprobs\":[]}],\"refusal\":null},\"finish_reason\":"
                 "\"stop\"}]," USAGE);
    check_line(&c, expected);
    free(expected);
    c.endpoint = GW_ENDPOINT_COMPLETION;
    expected = with_hashes(HEAD_ABC "{\"id\":\"cmpl-@2\",\"object\":\"text_completion\",\"created\":0,\"model\":\"m\","
                                    "\"choices\":[{\"index\":0,\"text\":\"\xe2\x82\xac"
                                    "b\","
                                    "\"logprobs\":{\"text_offset\":[0,1],\"token_logprobs\":[-1,-0.25],\"tokens\":["
                                    "\"bytes:\\\\xe2\\\\x82\",\"bytes:\\\\xac\\\\x62\"],"
                                    "\"top_logprobs\":[{\"a\":-0.5,\"bytes:\\\\xe2\\\\x82\":-1,\"\":-9999},{}]},"
                                    "\"finish_reason\":\"stop\"}]," USAGE);
    check_line(&c, expected);
    free(expected);
}

static void test_errors(void)
{
    struct gw_request_error bad;
    struct gw_buf line = {0};
    gw_request_error_set(&bad, GW_REQUEST_INVALID_VALUE, "body.temperature", "body.temperature is %d", 9);
    gw_output_format_error("abc", 16, &bad, &line);
    gw_request_error_set(&bad, GW_REQUEST_INVALID_JSON, NULL, "no");
    gw_output_format_error(NULL, 0, &bad, &line);
    gw_buf_add(&line, "", 1);
    const char *first = "{\"id\":\"batch_req_78af5f94892f3950\",\"custom_id\":\"abc\",\"response\":null,\"error\":{"
                        "\"code\":\"invalid_value\","
                        "\"message\":\"line 17: body.temperature is 9\",\"param\":\"body.temperature\",\"line\":17}}\n";
    CU_ASSERT_EQUAL(strncmp((char *)line.data, first, strlen(first)), 0);
    const char *second = strchr((char *)line.data, '\n') + 1;
    CU_ASSERT_PTR_NOT_NULL(strstr(second, "\"custom_id\":null,\"response\":null,\"error\":{\"code\":\"invalid_json\","
                                          "\"message\":\"line 1: no\",\"param\":null,\"line\":1}}\n"));
    gw_buf_free(&line);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static char found_text[4096];

static gw_err note_found(void *context, const char *custom_id, int64_t index)
{
    size_t used = strlen(found_text);
    snprintf(found_text + used, sizeof found_text - used, "%s@%d ", custom_id ? custom_id : "null", (int)index);
    return context ? gw_fail(GW_ERR_BUG, "as asked") : GW_OK;
}

static struct gw_output *open_output(void)
{
    struct gw_output *output;
    CU_ASSERT_EQUAL_FATAL(gw_output_open(dir, &output), GW_OK);
    return output;
}

static void add(struct gw_output *output, const char *id)
{
    struct gw_completion c = completion(id, GW_ENDPOINT_CHAT, "text of an answer");
    CU_ASSERT_EQUAL(gw_output_add_completion(output, &c), GW_OK);
}

/* Opens, recovers, closes; what was found. */
static const char *recover(void)
{
    struct gw_output *output = open_output();
    found_text[0] = 0;
    CU_ASSERT_EQUAL(gw_output_recover(output, note_found, NULL), GW_OK);
    CU_ASSERT_EQUAL(gw_output_close(output), GW_OK);
    return found_text;
}

static void fill(void)
{
    struct gw_request_error bad;
    clear_dir();
    struct gw_output *output = open_output();
    add(output, "a");
    add(output, "b\n\"\xf0\x9f\x98\x80");
    add(output, "c");
    gw_request_error_set(&bad, GW_REQUEST_INVALID_JSON, NULL, "no");
    CU_ASSERT_EQUAL(gw_output_add_error(output, NULL, 4, &bad), GW_OK);
    CU_ASSERT_EQUAL(gw_output_add_error(output, "d", 5, &bad), GW_OK);
    CU_ASSERT_EQUAL(gw_output_sync(output), GW_OK);
    CU_ASSERT_EQUAL(gw_output_close(output), GW_OK);
}

static void test_recover(void)
{
    fill();
    char *before = get_file("output.jsonl");
    CU_ASSERT_STRING_EQUAL(recover(), "a@-1 b\n\"\xf0\x9f\x98\x80@-1 c@-1 null@4 d@5 ");
    char *after = get_file("output.jsonl");
    CU_ASSERT_STRING_EQUAL(before, after);
    free(after);

    struct gw_output *output = open_output(), *second;
    CU_ASSERT_EQUAL(gw_output_open(dir, &second), GW_ERR_IO); /* locked */
    CU_ASSERT_EQUAL(gw_output_recover(output, note_found, dir), GW_ERR_BUG);
    CU_ASSERT_EQUAL(gw_output_close(output), GW_OK);

    /* Torn at every byte of the last line: it goes, the others stay. */
    gw_log_set_level(GW_LOG_ERROR);
    size_t bytes = strlen(before);
    size_t last = bytes - 1;
    while (before[last - 1] != '\n') last--;
    for (size_t end = last + 1; end < bytes; end += 7) {
        put_file("output.jsonl", before, end);
        CU_ASSERT_STRING_EQUAL(recover(), "a@-1 b\n\"\xf0\x9f\x98\x80@-1 null@4 d@5 ");
        after = get_file("output.jsonl");
        CU_ASSERT_EQUAL(strlen(after), last);
        free(after);
    }
    /* Zeroes where a block was lost, and lines that are not ours, end the file. */
    char *damaged = gw_strndup(before, bytes);
    memset(damaged + last + 30, 0, 40);
    put_file("output.jsonl", damaged, bytes);
    CU_ASSERT_STRING_EQUAL(recover(), "a@-1 b\n\"\xf0\x9f\x98\x80@-1 null@4 d@5 ");
    memcpy(damaged, before, bytes);
    memcpy(strstr(damaged, "\"custom_id\":\"a\""), "\"custom_id\":\"x\"", 15); /* the id's hash does not match */
    put_file("output.jsonl", damaged, bytes);
    CU_ASSERT_STRING_EQUAL(recover(), "null@4 d@5 ");
    gw_log_set_level(GW_LOG_INFO);
    free(damaged);
    free(before);
}

static void test_full_disk(void)
{
    fill();
    struct rlimit limit, old;
    signal(SIGXFSZ, SIG_IGN);
    CU_ASSERT_EQUAL_FATAL(getrlimit(RLIMIT_FSIZE, &old), 0);
    char *before = get_file("output.jsonl");
    limit = old;
    limit.rlim_cur = strlen(before) + 100; /* the next line fits in part */
    struct gw_output *output = open_output();
    CU_ASSERT_EQUAL_FATAL(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct gw_completion c = completion("full", GW_ENDPOINT_CHAT, "text");
    CU_ASSERT_EQUAL(gw_output_add_completion(output, &c), GW_ERR_IO);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "output.jsonl"));
    CU_ASSERT_EQUAL(setrlimit(RLIMIT_FSIZE, &old), 0);
    char *after = get_file("output.jsonl");
    CU_ASSERT_STRING_EQUAL(before, after);
    free(after);
    add(output, "room again");
    CU_ASSERT_EQUAL(gw_output_close(output), GW_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(recover(), "room again"));
    free(before);
}

/* ---- manifest -------------------------------------------------------------------------------------------------- */

static struct gw_manifest manifest(const char *temperature)
{
    struct gw_manifest m = {.created = 5};
    struct gw_request_defaults defaults = {.sampling = gw_sampling_default()};
    defaults.sampling.temperature = strtof(temperature, NULL);
    gw_manifest_set(&m.program, "godwit test");
    gw_manifest_set(&m.model_name, "m");
    gw_manifest_set(&m.model_path, "m.gguf");
    gw_manifest_set(&m.model_hash, "abcd");
    gw_manifest_set(&m.input_path, in_dir("input.jsonl"));
    gw_manifest_set(&m.input_hash, "");
    gw_manifest_add_defaults(&m, &defaults);
    return m;
}

static void expect_mismatch(struct gw_manifest *m, const char *word)
{
    bool created;
    CU_ASSERT_EQUAL(gw_manifest_open_or_create(dir, m, &created), word ? GW_ERR_MISMATCH : GW_OK);
    if (word) CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), word));
    gw_manifest_free(m);
}

static void test_manifest(void)
{
    clear_dir();
    bool created;
    struct gw_manifest m = manifest("0.8"), back;
    CU_ASSERT_EQUAL(gw_manifest_read(dir, &back), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(gw_manifest_open_or_create(dir, &m, &created), GW_OK);
    CU_ASSERT_TRUE(created);
    char *before = get_file("manifest.json");
    CU_ASSERT_EQUAL(gw_manifest_open_or_create(dir, &m, &created), GW_OK);
    CU_ASSERT_FALSE(created);
    char *after = get_file("manifest.json");
    CU_ASSERT_STRING_EQUAL(before, after); /* never rewritten */
    free(before);
    free(after);
    CU_ASSERT_EQUAL_FATAL(gw_manifest_read(dir, &back), GW_OK);
    CU_ASSERT_STRING_EQUAL(gw_manifest_option(&back, "temperature"), "0.8");
    CU_ASSERT_PTR_NULL(gw_manifest_option(&back, "nothing"));
    CU_ASSERT_TRUE(back.created == 5 && back.started_at > 1e9);
    gw_manifest_free(&back);
    gw_manifest_free(&m);

    m = manifest("0.8");
    gw_manifest_set(&m.model_path, "elsewhere/m.gguf");
    expect_mismatch(&m, NULL);
    m = manifest("0.7");
    expect_mismatch(&m, "temperature 0.8, this run has 0.7");
    m = manifest("0.8");
    gw_manifest_set(&m.model_hash, "x");
    expect_mismatch(&m, "model");
    m = manifest("0.8");
    gw_manifest_set(&m.input_hash, "x");
    expect_mismatch(&m, "input");
    m = manifest("0.8");
    m.created = 6;
    expect_mismatch(&m, "created 5, this run has 6");
    m = manifest("0.8");
    gw_manifest_add_option(&m, "context", "512");
    expect_mismatch(&m, "context (not set)");

    static const char *const wrong[] = {"", "[]", "{}", "{\"format\":2}", "{\"format\":1,\"program\":1}", "nonsense"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_file("manifest.json", wrong[i], strlen(wrong[i]));
        CU_ASSERT_EQUAL(gw_manifest_read(dir, &back), GW_ERR_FORMAT);
    }
    clear_dir();
    put_file("output.jsonl", "x\n", 2); /* somebody else's folder */
    m = manifest("0.8");
    expect_mismatch(&m, "no manifest.json");
}

/* ---- digest and verify ----------------------------------------------------------------------------------------- */

static const char input_text[] =
    "{\"id\":\"b\",\"prompt\":\"p\"}\n\n{\"id\":\"a\",\"prompt\":\"p\"}\nbad\n{\"id\":\"a\",\"prompt\":\"p\"}\n"
    "{\"id\":\"long\",\"prompt\":\"p\"}\n";

/* A finished job: answers b, a; errors for lines 4 (bad), 5 (duplicate) and 6 (failed later). */
static void finish_job(void)
{
    char hex[65];
    bool created;
    clear_dir();
    put_file("input.jsonl", input_text, sizeof input_text - 1);
    struct gw_manifest m = manifest("1");
    CU_ASSERT_EQUAL(gw_manifest_hash_file(in_dir("input.jsonl"), hex, &m.input_bytes), GW_OK);
    gw_manifest_set(&m.input_hash, hex);
    CU_ASSERT_EQUAL_FATAL(gw_manifest_open_or_create(dir, &m, &created), GW_OK);
    gw_manifest_free(&m);
    struct gw_output *output = open_output();
    struct gw_request_error bad;
    add(output, "b");
    add(output, "a");
    gw_request_error_set(&bad, GW_REQUEST_INVALID_JSON, NULL, "no");
    CU_ASSERT_EQUAL(gw_output_add_error(output, NULL, 3, &bad), GW_OK);
    CU_ASSERT_EQUAL(gw_output_add_error(output, "a", 4, &bad), GW_OK);
    CU_ASSERT_EQUAL(gw_output_add_error(output, "long", 5, &bad), GW_OK);
    CU_ASSERT_EQUAL(gw_output_close(output), GW_OK);
}

static char problems[4096];

static void note_problem(void *context, const char *problem)
{
    (void)context;
    size_t used = strlen(problems);
    snprintf(problems + used, sizeof problems - used, "%s\n", problem);
}

static gw_err verify(struct gw_digest_counts *counts, char hex[65])
{
    problems[0] = 0;
    return gw_digest_verify(dir, NULL, 10, note_problem, NULL, hex, counts);
}

static void expect_problem(const char *word)
{
    char hex[65];
    struct gw_digest_counts counts;
    CU_ASSERT_EQUAL(verify(&counts, hex), GW_ERR_VERIFY);
    if (!strstr(problems, word)) printf("\n  problems: %s  expected: %s\n", problems, word);
    CU_ASSERT_PTR_NOT_NULL(strstr(problems, word));
    CU_ASSERT_TRUE(counts.problems > 0);
}

static void test_digest(void)
{
    struct gw_digest_counts counts;
    char hex[65], again[65], plain[65];
    uint64_t bytes;
    finish_job();
    CU_ASSERT_EQUAL_FATAL(gw_digest_compute(dir, hex, &counts), GW_OK);
    CU_ASSERT_TRUE(counts.answered == 2 && counts.failed == 3);
    /* The same as hashing the lines in sorted order, here by hand: a, then b. */
    char *text = get_file("output.jsonl"), *second = strchr(text, '\n') + 1;
    char *sorted = gw_asprintf("%s%.*s", second, (int)(second - text), text);
    put_file("output.jsonl", sorted, strlen(sorted));
    CU_ASSERT_EQUAL(gw_manifest_hash_file(in_dir("output.jsonl"), plain, &bytes), GW_OK);
    CU_ASSERT_STRING_EQUAL(hex, plain);
    CU_ASSERT_EQUAL_FATAL(gw_digest_compute(dir, again, &counts), GW_OK);
    CU_ASSERT_STRING_EQUAL(hex, again); /* order in the file does not matter */
    free(sorted);
    sorted = gw_asprintf("%s%.*s", text, (int)(second - text), text);
    put_file("output.jsonl", sorted, strlen(sorted));
    CU_ASSERT_EQUAL(gw_digest_compute(dir, hex, &counts), GW_ERR_VERIFY); /* doubled */
    free(sorted);
    put_file("output.jsonl", text, strlen(text) - 1);
    CU_ASSERT_EQUAL(gw_digest_compute(dir, hex, &counts), GW_ERR_VERIFY); /* torn */
    put_file("output.jsonl", "", 0);
    CU_ASSERT_EQUAL(gw_digest_compute(dir, hex, &counts), GW_OK);
    CU_ASSERT_STRING_EQUAL(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    clear_dir();
    CU_ASSERT_EQUAL(gw_digest_compute(dir, hex, &counts), GW_ERR_NOT_FOUND);
    free(text);
}

/* Writes `name` with `from` replaced by `to` once. */
static void replace(const char *name, const char *from, const char *to)
{
    char *text = get_file(name), *at = strstr(text, from);
    CU_ASSERT_PTR_NOT_NULL_FATAL(at);
    char *changed = gw_asprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    put_file(name, changed, strlen(changed));
    free(changed);
    free(text);
}

static void test_verify(void)
{
    struct gw_digest_counts counts;
    char hex[65], digest[65];
    finish_job();
    CU_ASSERT_EQUAL(verify(&counts, hex), GW_OK);
    CU_ASSERT_STRING_EQUAL(problems, "");
    CU_ASSERT_TRUE(counts.input_lines == 5 && counts.answered == 2 && counts.failed == 3 && counts.unanswered == 0);
    CU_ASSERT_TRUE(counts.prompt_tokens == 6 && counts.completion_tokens == 4);
    CU_ASSERT_EQUAL(gw_digest_compute(dir, digest, &counts), GW_OK);
    CU_ASSERT_STRING_EQUAL(hex, digest);

    char *text = get_file("output.jsonl"), *second = strchr(text, '\n') + 1;
    char *doubled = gw_asprintf("%s%s", text, second);
    put_file("output.jsonl", second, strlen(second));
    expect_problem("input line 1 (custom_id \"b\") is not answered");
    put_file("output.jsonl", doubled, strlen(doubled));
    expect_problem("custom_id \"a\" is answered more than once");
    put_file("output.jsonl", text, strlen(text) - 10);
    expect_problem("line 2 is torn");
    free(doubled);
    free(text);

    finish_job();
    replace("output.jsonl", "\"content\":\"text", "\"content\":\"te\\xt");
    expect_problem("line 1 is not valid JSON");
    finish_job();
    replace("output.jsonl", "\"total_tokens\":5", "\"total_tokens\":6");
    expect_problem("does not add up");
    finish_job();
    replace("output.jsonl", "\"choices\":[", "\"chances\":[");
    expect_problem("no complete response");
    finish_job();
    replace("errors.jsonl", "\"line\":4}", "\"line\":5}");
    expect_problem("input line 5 has more than one error line");
    expect_problem("input line 4 is bad (invalid_json) and has no error line");
    finish_job();
    replace("errors.jsonl", "\"line\":6}", "\"line\":2}");
    expect_problem("input line 2 is blank or does not exist");
    finish_job();
    replace("errors.jsonl", "\"line\":6}", "\"line\":3}");
    expect_problem("names custom_id \"long\", the input \"a\"");
    expect_problem("has both an answer and an error line");
    finish_job();
    struct gw_output *output = open_output();
    add(output, "stranger");
    CU_ASSERT_EQUAL(gw_output_close(output), GW_OK);
    expect_problem("\"stranger\" is not one of the input's good lines");
    finish_job();
    replace("input.jsonl", "\"p\"", "\"q\"");
    expect_problem("is not the input that");
    unlink(in_dir("errors.jsonl"));
    unlink(in_dir("input.jsonl"));
    CU_ASSERT_EQUAL(verify(&counts, hex), GW_ERR_NOT_FOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "-i INPUT"));
}

int main(void)
{
    if (!mkdtemp(dir)) return 1;
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("output", NULL, NULL);
    CU_add_test(suite, "strings", test_strings);
    CU_add_test(suite, "floats", test_floats);
    CU_add_test(suite, "answers", test_answers);
    CU_add_test(suite, "logprobs", test_logprobs);
    CU_add_test(suite, "errors", test_errors);
    CU_add_test(suite, "recover", test_recover);
    CU_add_test(suite, "full disk", test_full_disk);
    CU_add_test(suite, "manifest", test_manifest);
    CU_add_test(suite, "digest", test_digest);
    CU_add_test(suite, "verify", test_verify);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    clear_dir();
    rmdir(dir);
    return failures != 0;
}
