/* What leader and heads say to each other (job/protocol.h), and the options of a job (job/options.h). */
#include "job/calibration.h"
#include "job/options.h"
#include "job/protocol.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ---------------------------------------------------------------------------------------------------- */

static const char *const lines[] = {"{\"prompt\":\"a\"}", "", "x", "a\0b", "a longer line, with spaces"};
static const size_t line_bytes[] = {14, 0, 1, 3, 26};
enum { LINES = 5 };

/* Request i comes with i tokens; every second token has i alternatives. */
static struct gw_sample_result token_of(int request, int at)
{
    struct gw_sample_result r = {.token = 1000 * request + at, .logprob = -0.5f * (float)at};
    r.alternatives = at % 2 ? request : 0;
    for (int j = 0; j < r.alternatives; j++) {
        r.alt_token[j] = 7 * j;
        r.alt_logprob[j] = -(float)j;
    }
    return r;
}

static void test_assign(void)
{
    struct gw_buf out = {0}, drawn = {0};
    size_t ends[LINES];
    for (int i = 0; i < LINES; i++) {
        gw_buf_clear(&drawn);
        for (int at = 0; at < i; at++) {
            struct gw_sample_result r = token_of(i, at);
            gw_buf_add(&drawn, &r, sizeof r);
        }
        gw_assign_add(&out, ((int64_t)1 << 40) + i, lines[i], line_bytes[i], &drawn);
        ends[i] = out.bytes;
    }
    for (size_t bytes = 0; bytes <= out.bytes; bytes++) {
        uint8_t *exact = malloc(bytes ? bytes : 1);
        memcpy(exact, out.data, bytes);
        struct gw_reader in = {.data = exact, .bytes = bytes};
        int64_t index;
        const char *line;
        size_t length;
        int count = 0;
        for (; gw_assign_next(&in, &index, &line, &length, &drawn); count++) {
            CU_ASSERT(count < LINES && index == ((int64_t)1 << 40) + count && in.at == ends[count]);
            CU_ASSERT(length == line_bytes[count] && !memcmp(line, lines[count], length));
            CU_ASSERT(drawn.bytes == (size_t)count * sizeof(struct gw_sample_result));
            for (int at = 0; at < count; at++) {
                struct gw_sample_result wanted = token_of(count, at);
                CU_ASSERT(!memcmp(drawn.data + (size_t)at * sizeof wanted, &wanted, sizeof wanted));
            }
        }
        CU_ASSERT_EQUAL(in.failed, bytes != (count ? ends[count - 1] : 0)); /* cut between two requests is no error */
        free(exact);
    }
    gw_buf_free(&out);
    gw_buf_free(&drawn);
}

static void test_tokens(void)
{
    struct gw_buf out = {0}, drawn = {0};
    struct gw_sample_result three[3] = {token_of(4, 0), token_of(4, 1), token_of(4, 2)}, one = {.token = 12};
    gw_tokens_msg_add(&out, 9, 41, three, 3, true);
    gw_tokens_msg_add(&out, (int64_t)1 << 40, 0, &one, 1, false);
    struct gw_reader in = {.data = out.data, .bytes = out.bytes};
    int64_t index;
    int at, count;
    bool logprobs;
    CU_ASSERT(gw_tokens_msg_next(&in, &index, &at, &drawn, &count, &logprobs));
    CU_ASSERT(index == 9 && at == 41 && count == 3 && logprobs && !memcmp(drawn.data, three, sizeof three));
    CU_ASSERT(gw_tokens_msg_next(&in, &index, &at, &drawn, &count, &logprobs));
    CU_ASSERT(index == (int64_t)1 << 40 && at == 0 && count == 1 && !logprobs && !memcmp(drawn.data, &one, sizeof one));
    CU_ASSERT(!gw_tokens_msg_next(&in, &index, &at, &drawn, &count, &logprobs) && !in.failed);
    for (size_t bytes = 1; bytes < out.bytes; bytes++) {
        in = (struct gw_reader){.data = out.data, .bytes = bytes};
        while (gw_tokens_msg_next(&in, &index, &at, &drawn, &count, &logprobs)) continue;
        CU_ASSERT(in.failed || in.at == bytes);
    }
    gw_buf_free(&out);
    gw_buf_free(&drawn);
}

static void test_assign_lies(void) /* a length beyond the message, also one that overflows */
{
    static const uint64_t lengths[] = {1, 1000, UINT64_MAX, UINT64_MAX - 15, (uint64_t)1 << 63};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct gw_buf out = {0};
        gw_buf_add_u64(&out, 3);
        gw_buf_add_u64(&out, lengths[i]);
        struct gw_reader in = {.data = out.data, .bytes = out.bytes};
        int64_t index;
        const char *line;
        size_t bytes;
        struct gw_buf drawn = {0};
        CU_ASSERT(!gw_assign_next(&in, &index, &line, &bytes, &drawn) && in.failed);
        gw_buf_free(&out);
    }
}

static void test_result(void)
{
    static const char text[] = "{\"id\":\"x\"}\n";
    struct gw_result result = {.index = (int64_t)1 << 33,
                               .failed = true,
                               .prompt_tokens = 5,
                               .completion_tokens = (int64_t)1 << 35,
                               .line = (const uint8_t *)text,
                               .line_bytes = sizeof text - 1};
    for (int failed = 0; failed < 2; failed++) {
        struct gw_buf out = {0};
        struct gw_result back = {0};
        result.failed = failed;
        gw_result_encode(&result, &out);
        CU_ASSERT_EQUAL(gw_result_decode(out.data, out.bytes, &back), GW_OK);
        CU_ASSERT(back.index == result.index && back.failed == result.failed && back.prompt_tokens == 5);
        CU_ASSERT(back.completion_tokens == result.completion_tokens && back.line_bytes == sizeof text - 1);
        CU_ASSERT(!memcmp(back.line, text, back.line_bytes));
        for (size_t bytes = 0; bytes < out.bytes - result.line_bytes; bytes++)
            CU_ASSERT_EQUAL(gw_result_decode(out.data, bytes, &back), GW_ERR_PEER);
        gw_buf_free(&out);
    }
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

enum { MAX_ARGS = 60 };

/* Parses "run" and the words of `text` (split at blanks), after the required three unless `bare`. */
static char words[MAX_ARGS][128];
static gw_err parse(const char *text, bool bare, struct gw_job_options *o)
{
    char *argv[MAX_ARGS + 1];
    int argc = 0, used;
    bool help;
    char all[1024];
    snprintf(all, sizeof all, "run %s %s", bare ? "" : "-m dir/m.gguf -i in.jsonl -o out", text);
    for (const char *at = all; argc < MAX_ARGS && sscanf(at, "%127s%n", words[argc], &used) == 1; at += used, argc++)
        argv[argc] = words[argc];
    argv[argc] = NULL;
    return gw_job_options_parse(argc, argv, o, &help);
}

static void test_defaults(void)
{
    struct gw_job_options o;
    CU_ASSERT_EQUAL(parse("", false, &o), GW_OK);
    CU_ASSERT_STRING_EQUAL(o.model_path, "dir/m.gguf");
    CU_ASSERT_STRING_EQUAL(o.input_path, "in.jsonl");
    CU_ASSERT_STRING_EQUAL(o.out_dir, "out");
    CU_ASSERT_STRING_EQUAL(o.model_name, "m");
    CU_ASSERT(o.chat_template == NULL && o.ranks == 1 && !o.layout_set && o.threads == 0 && o.kv_bytes == 0);
    CU_ASSERT(o.context == 0 && o.max_seqs == 64 && o.step_rows == 512 && o.created == 0 && !o.quiet);
    CU_ASSERT(o.peer_timeout_s == 60 && o.replace && o.grace_s == 30 && !o.notice && !o.chaos);
    struct gw_sampling s = gw_sampling_default(), *d = &o.defaults.sampling;
    CU_ASSERT(d->temperature == s.temperature && d->top_p == s.top_p && d->top_k == s.top_k && !d->seed_set);
    CU_ASSERT(d->max_tokens == 0 && !d->ignore_eos && d->logprobs == -1);
}

static void test_batch_size(void)
{
    static const struct {
        const char *text;
        int cpus, seqs, rows; /* rows: of a step of ranks that are told of so many sequences */
    } cases[] = {
        {"", 0, 64, 512},
        {"", 1, 64, 512},
        {"", 2, 64, 512},
        {"", 5, 160, 640},
        {"", 16, 512, 2048},
        {"", 1024, 512, 2048},
        {"-n 4", 16, 128, 512},
        {"-n 4", 2, 64, 512},
        {"--threads 3", 64, 96, 512},
        {"--max-seqs 7", 64, 7, 512},
        {"--max-seqs 1000", 1, 1000, 4000},
        {"--step-rows 300", 64, 300, 300},
        {"--step-rows 16", 64, 64, 64},
        {"--max-seqs 7 --step-rows 16", 64, 7, 16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gw_job_options o;
        char told[256];
        CU_ASSERT_EQUAL(parse(cases[i].text, false, &o), GW_OK);
        CU_ASSERT_EQUAL(gw_job_suitable_seqs(&o, cases[i].cpus), cases[i].seqs);
        snprintf(told, sizeof told, "%s --max-seqs %d", cases[i].text, gw_job_suitable_seqs(&o, cases[i].cpus));
        CU_ASSERT_EQUAL(parse(told, false, &o), GW_OK);
        CU_ASSERT(o.max_seqs == cases[i].seqs && o.step_rows == cases[i].rows);
    }
}

static void test_all_options(void)
{
    struct gw_job_options o;
    CU_ASSERT_EQUAL(
        parse("--model x.gguf --layout 2x3x4 --threads 5 --kv-memory 1.5G --context 777 --max-seqs 9 --step-rows 33 "
              "--model-name N --chat-template plain --created 1700000000 --peer-timeout 1.5 -q "
              "--temperature 0.5 --top-p 0.25 --top-k -1 --min-p 0.125 --repetition-penalty 1.5 --seed -1 "
              "--max-tokens 12 --ignore-eos --no-replace --notice ./n --notice slurm=60 --grace 2.5 --chaos "
              "kill:0@step=1",
              false, &o),
        GW_OK);
    CU_ASSERT_STRING_EQUAL(o.model_path, "x.gguf");
    CU_ASSERT_STRING_EQUAL(o.model_name, "N");
    CU_ASSERT_STRING_EQUAL(o.chat_template, "plain");
    CU_ASSERT(o.layout_set && o.layout.data == 2 && o.layout.tensor == 3 && o.layout.pipeline == 4 && o.ranks == 24);
    CU_ASSERT(o.threads == 5 && o.kv_bytes == 1610612736u && o.context == 777 && o.max_seqs == 9 && o.step_rows == 33);
    CU_ASSERT(o.created == 1700000000 && o.peer_timeout_s == 1.5 && o.quiet);
    const struct gw_sampling *s = &o.defaults.sampling;
    CU_ASSERT(s->temperature == 0.5f && s->top_p == 0.25f && s->top_k == 0 && s->min_p == 0.125f);
    CU_ASSERT(s->repetition_penalty == 1.5f && s->seed == UINT64_MAX && s->seed_set && s->max_tokens == 12 &&
              s->ignore_eos);
    CU_ASSERT(!o.replace && o.grace_s == 2.5);
    CU_ASSERT_STRING_EQUAL(o.notice, "./n,slurm=60");
    CU_ASSERT_STRING_EQUAL(o.chaos, "kill:0@step=1");
    CU_ASSERT_EQUAL(parse("--notice n", false, &o), GW_ERR_USAGE); /* no source, and a file has its folder */
    CU_ASSERT_EQUAL(parse("--max-seqs 100 --step-rows 20", false, &o), GW_OK);
    CU_ASSERT_EQUAL(o.step_rows, 100); /* a decoding step has a row per sequence */
    CU_ASSERT_EQUAL(parse("-n 6 --layout=1x6x1", false, &o), GW_OK);
    CU_ASSERT_EQUAL(parse("-n3 -t2", false, &o), GW_OK);
    CU_ASSERT(o.ranks == 3 && o.threads == 2);
}

static void test_objective(void)
{
    struct gw_job_options o;
    CU_ASSERT_EQUAL(parse("", false, &o), GW_OK);
    CU_ASSERT(o.objective == GW_OBJECTIVE_THROUGHPUT && o.memory_bytes == 0);
    CU_ASSERT_EQUAL(parse("--objective cost --memory 3M", false, &o), GW_OK);
    CU_ASSERT(o.objective == GW_OBJECTIVE_COST && o.memory_bytes == 3145728);
    CU_ASSERT_EQUAL(parse("--objective deadline=@1795000000.5", false, &o), GW_OK);
    CU_ASSERT(o.objective == GW_OBJECTIVE_DEADLINE && o.deadline_wall_s == 1795000000.5);
    CU_ASSERT_EQUAL(parse("--objective deadline=2026-12-01T06:00", false, &o), GW_OK);
    double minutes_s = o.deadline_wall_s;
    CU_ASSERT_EQUAL(parse("--objective deadline=2026-12-01T06:00:30", false, &o), GW_OK);
    CU_ASSERT(o.deadline_wall_s == minutes_s + 30 && minutes_s > 1795996800 && minutes_s < 1796169600);
    static const char *const wrong[] = {"best",
                                        "deadline",
                                        "deadline=",
                                        "deadline=soon",
                                        "deadline=@",
                                        "deadline=2026-12-01",
                                        "deadline=2026-12-01T06:00x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[80];
        snprintf(text, sizeof text, "--objective %s", wrong[i]);
        CU_ASSERT_EQUAL(parse(text, false, &o), GW_ERR_USAGE);
    }
}

/* Steps that take twice as long as the model says make it say twice as much, once there are enough of them. */
static void test_calibration(void)
{
    struct gw_dims m = {
        .layers = 4, .d_model = 128, .heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 256, .vocab = 300};
    m.ffn_atoms = gw_ffn_atoms(m.kv_heads, m.ffn);
    m.bytes_per_weight = 1;
    m.output_bytes = 300 * 128;
    for (int pipeline = 1; pipeline <= 2; pipeline++) {
        struct gw_layout layout = GW_LAYOUT(1, 1, pipeline);
        struct gw_cost cost = gw_cost_default(), first = cost;
        struct gw_shard shard = gw_layout_shard(&m, layout, 0, 0);
        struct gw_load load = {.decode_rows = 6, .prefill_rows = 10, .mean_context = 50};
        double step_s = gw_cost_stage_s(&cost, &m, &shard, 1, &load);
        struct gw_head_report before = {0}, now = {.steps = 20,
                                                   .decode_rows = 120,
                                                   .prefill_rows = 200,
                                                   .seen_tokens = 16000,
                                                   .compute_s = 40 * step_s};
        gw_calibration_steps(&cost, &m, layout, &now, &before);
        CU_ASSERT(cost.mac_s == first.mac_s && before.steps == 0); /* too few */
        now.steps = 40, now.decode_rows = 240, now.prefill_rows = 400, now.seen_tokens = 32000;
        now.compute_s = 80 * step_s;
        gw_calibration_steps(&cost, &m, layout, &now, &before);
        double ratio = gw_cost_stage_s(&cost, &m, &shard, 1, &load) / step_s;
        CU_ASSERT(ratio > 1.99 && ratio < 2.01 && before.steps == 40 && cost.seen[GW_COST_COMPUTE] == 1);
        gw_calibration_steps(&cost, &m, layout, &now, &before);
        CU_ASSERT_EQUAL(cost.seen[GW_COST_COMPUTE], 1); /* nothing new */
    }
}

static void test_wrong_options(void)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"--nonsense", "--nonsense"},
        {"-z", "-z"},
        {"--layout", "--layout"},
        {"extra", "extra"},
        {"--layout 2x2", "2x2"},
        {"--layout 2x1x1 -n 3", "-n says 3"},
        {"-n 0", "ranks"},
        {"-n two", "two"},
        {"-n 2.5", "2.5"},
        {"-n 99999999999999999999", "ranks"},
        {"--threads 0", "threads"},
        {"--context 1", "context"},
        {"--max-seqs 0", "max-seqs"},
        {"--step-rows -1", "step-rows"},
        {"--created -1", "created"},
        {"--kv-memory 0", "kv-memory"},
        {"--kv-memory -1G", "kv-memory"},
        {"--kv-memory G", "kv-memory"},
        {"--kv-memory 1X", "kv-memory"},
        {"--kv-memory 1GG", "kv-memory"},
        {"--kv-memory nan", "kv-memory"},
        {"--kv-memory inf", "kv-memory"},
        {"--kv-memory 1e30", "kv-memory"},
        {"--peer-timeout 0", "peer-timeout"},
        {"--peer-timeout nan", "peer-timeout"},
        {"--peer-timeout soon", "soon"},
        {"--temperature -1", "temperature"},
        {"--temperature nan", "temperature"},
        {"--temperature inf", "temperature"},
        {"--temperature 1e300", "temperature"},
        {"--top-p 0", "top_p"},
        {"--top-p 1.5", "top_p"},
        {"--min-p 2", "min_p"},
        {"--top-k -2", "top-k"},
        {"--repetition-penalty 0", "repetition_penalty"},
        {"--repetition-penalty nan", "repetition_penalty"},
        {"--seed x", "seed"},
        {"--seed 99999999999999999999", "seed"},
        {"--max-tokens 0", "max-tokens"},
    };
    struct gw_job_options o;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        gw_err rc = parse(bad[i].text, false, &o);
        bool says = strstr(gw_error_detail(), bad[i].says) && !strchr(gw_error_detail(), '\n');
        if (rc != GW_ERR_USAGE || !says) printf("\n    '%s': %s, %s ", bad[i].text, gw_err_name(rc), gw_error_detail());
        CU_ASSERT(rc == GW_ERR_USAGE && says);
    }
    CU_ASSERT_EQUAL(parse("-i in.jsonl -o out", true, &o), GW_ERR_USAGE);
    CU_ASSERT(strstr(gw_error_detail(), "-m") != NULL);
    CU_ASSERT_EQUAL(parse("-m m -o out", true, &o), GW_ERR_USAGE);
    CU_ASSERT(strstr(gw_error_detail(), "-i") != NULL);
    CU_ASSERT_EQUAL(parse("-m m -i in.jsonl", true, &o), GW_ERR_USAGE);
    CU_ASSERT(strstr(gw_error_detail(), "-o") != NULL);
}

static void test_sizes(void)
{
    static const char *const bad[] = {"", "x", "-1", "0", "0.5", "1x", "G", "1GiBs", "1 G", "nan", "inf", "1e30"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t untouched = 7;
        CU_ASSERT_EQUAL(gw_parse_bytes(bad[i], "kv-memory", &untouched), GW_ERR_USAGE);
        CU_ASSERT(untouched == 7 && strstr(gw_error_detail(), "kv-memory"));
    }
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"1", 1},
                {"65536", 65536},
                {"4294967296", 4294967296u},
                {"137438953472", 137438953472u},
                {"10k", 10240},
                {"512M", 536870912},
                {"2G", 2147483648u},
                {"2GiB", 2147483648u},
                {"1.5GiB", 1610612736u},
                {"2GB", 2147483648u},
                {"0.5g", 536870912},
                {"1T", 1099511627776u}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t bytes = 0;
        gw_err rc = gw_parse_bytes(good[i].text, "kv-memory", &bytes);
        if (rc != GW_OK || bytes != good[i].bytes) printf("'%s' -> %llu ", good[i].text, (unsigned long long)bytes);
        CU_ASSERT(rc == GW_OK && bytes == good[i].bytes);
    }
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("protocol", NULL, NULL);
    CU_add_test(suite, "assignments", test_assign);
    CU_add_test(suite, "tokens", test_tokens);
    CU_add_test(suite, "assignments that lie", test_assign_lies);
    CU_add_test(suite, "results", test_result);
    CU_add_test(suite, "defaults", test_defaults);
    CU_add_test(suite, "batch size", test_batch_size);
    CU_add_test(suite, "all options", test_all_options);
    CU_add_test(suite, "wrong options", test_wrong_options);
    CU_add_test(suite, "objectives", test_objective);
    CU_add_test(suite, "calibration", test_calibration);
    CU_add_test(suite, "sizes", test_sizes);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
