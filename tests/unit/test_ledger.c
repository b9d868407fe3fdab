/* The ledger: order, duplicates (also among colliding hashes), carry-on, re-reading, long lines, and an input that
 * changes. */
#include "base/mem.h"
#include "batch/ledger.h"

#include <CUnit/Basic.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char dir[] = "test_ledger.XXXXXX";
static char path[64];

static void write_input(const char *text, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_EQUAL(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

static struct gw_ledger *open_ledger(const struct gw_request_defaults *defaults)
{
    struct gw_ledger *ledger;
    CU_ASSERT_EQUAL_FATAL(gw_ledger_open(path, defaults, &ledger), GW_OK);
    return ledger;
}

/* One step as text: "3:id" a request, "3!code" a bad line, "end". Valid until the next call. */
static const char *step(struct gw_ledger *ledger)
{
    static char text[600];
    struct gw_request request;
    struct gw_request_error bad;
    bool end;
    gw_err rc = gw_ledger_next(ledger, &request, &bad, &end);
    if (rc != GW_OK) snprintf(text, sizeof text, "%s", gw_err_name(rc));
    else if (end) snprintf(text, sizeof text, "end");
    else if (bad.code) snprintf(text, sizeof text, "%d!%s", (int)request.index, bad.code);
    else snprintf(text, sizeof text, "%d:%s", (int)request.index, request.custom_id);
    gw_request_free(&request);
    return text;
}

static void expect_step(struct gw_ledger *ledger, const char *expected)
{
    const char *got = step(ledger);
    if (strcmp(got, expected) != 0) printf("\n  got %s, expected %s\n", got, expected);
    CU_ASSERT_STRING_EQUAL(got, expected);
}

static const char mixed[] = "\xef\xbb\xbf{\"id\":\"a\",\"prompt\":\"p\"}\r\n"
                            "\n"
                            " \t\r\n"
                            "not json\n"
                            "{\"id\":\"b\",\"prompt\":\"p\"}\n"
                            "{\"id\":\"a\",\"prompt\":\"q\"}\n"
                            "{\"prompt\":\"p\"}\n"
                            "{\"id\":\"c\",\"prompt\":\"p\"}"; /* no newline at the end */

static void test_order(void)
{
    write_input(mixed, sizeof mixed - 1);
    struct gw_ledger *ledger = open_ledger(NULL);
    expect_step(ledger, "0:a");
    expect_step(ledger, "3!invalid_json");
    expect_step(ledger, "4:b");
    expect_step(ledger, "5!duplicate_custom_id");
    expect_step(ledger, "6:line-7");
    expect_step(ledger, "7:c");
    expect_step(ledger, "end");
    expect_step(ledger, "end");
    CU_ASSERT_EQUAL(gw_ledger_lines(ledger), 8);
    CU_ASSERT_EQUAL(gw_ledger_count(ledger, GW_LINE_ACTIVE), 4);
    CU_ASSERT_EQUAL(gw_ledger_count(ledger, GW_LINE_FAILED), 2);
    CU_ASSERT_EQUAL(gw_ledger_count(ledger, GW_LINE_SKIPPED), 2);
    CU_ASSERT_EQUAL(gw_ledger_bytes_read(ledger), sizeof mixed - 1);
    CU_ASSERT_EQUAL(gw_ledger_bytes_total(ledger), sizeof mixed - 1);
    gw_ledger_set_state(ledger, 4, GW_LINE_DONE);
    CU_ASSERT_EQUAL(gw_ledger_state(ledger, 4), GW_LINE_DONE);
    CU_ASSERT_EQUAL(gw_ledger_count(ledger, GW_LINE_DONE), 1);

    struct gw_request request;
    CU_ASSERT_EQUAL_FATAL(gw_ledger_reread(ledger, 0, &request), GW_OK);
    CU_ASSERT_STRING_EQUAL(request.custom_id, "a");
    gw_request_free(&request);
    CU_ASSERT_EQUAL_FATAL(gw_ledger_reread(ledger, 7, &request), GW_OK);
    CU_ASSERT_STRING_EQUAL(request.custom_id, "c");
    gw_request_free(&request);
    struct gw_buf line = {0};
    CU_ASSERT_EQUAL_FATAL(gw_ledger_read_line(ledger, 3, &line), GW_OK);
    CU_ASSERT_TRUE(line.bytes == 8 && memcmp(line.data, "not json", 8) == 0);
    gw_buf_free(&line);
    gw_ledger_close(ledger);

    write_input("", 0);
    ledger = open_ledger(NULL);
    expect_step(ledger, "end");
    CU_ASSERT_EQUAL(gw_ledger_lines(ledger), 0);
    gw_ledger_close(ledger);
}

static void test_carry_on(void)
{
    write_input(mixed, sizeof mixed - 1);
    struct gw_ledger *ledger = open_ledger(NULL);
    gw_ledger_note_answered(ledger, "b");
    gw_ledger_note_answered(ledger, "a");
    gw_ledger_note_answered(ledger, "a"); /* told twice */
    gw_ledger_note_error(ledger, 3);
    gw_ledger_note_error(ledger, 7); /* failed after it was parsed: too long for the context, say */
    CU_ASSERT_EQUAL(gw_ledger_unclaimed(ledger), 4);
    expect_step(ledger, "5!duplicate_custom_id"); /* also of an answered line */
    expect_step(ledger, "6:line-7");
    expect_step(ledger, "end");
    CU_ASSERT_EQUAL(gw_ledger_unclaimed(ledger), 0);
    CU_ASSERT_EQUAL(gw_ledger_state(ledger, 0), GW_LINE_DONE);
    CU_ASSERT_EQUAL(gw_ledger_state(ledger, 4), GW_LINE_DONE);
    CU_ASSERT_EQUAL(gw_ledger_state(ledger, 7), GW_LINE_FAILED);
    gw_ledger_close(ledger);

    ledger = open_ledger(NULL);
    gw_ledger_note_answered(ledger, "foreign");
    gw_ledger_note_error(ledger, 100);
    while (strcmp(step(ledger), "end") != 0)
        ;
    CU_ASSERT_EQUAL(gw_ledger_unclaimed(ledger), 2);
    gw_ledger_close(ledger);
}

/* Many ids in two rounds, so that half of the lines are duplicates; `bits` of hash, so that there are collisions. */
static void check_duplicates(int ids, int bits, bool carry_on)
{
    struct gw_buf text = {0};
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < ids; i++) {
            char line[80];
            snprintf(line, sizeof line, "{\"id\":\"request-%d\",\"prompt\":\"p\"}\n", i);
            gw_buf_add_text(&text, line);
        }
    write_input((char *)text.data, text.bytes);
    gw_buf_free(&text);
    struct gw_ledger *ledger = open_ledger(NULL);
    if (bits) gw_ledger_test_weaken_hash(ledger, bits);
    for (int i = 0; carry_on && i < ids; i += 3) {
        char id[32];
        snprintf(id, sizeof id, "request-%d", i);
        gw_ledger_note_answered(ledger, id);
    }
    int wrong = 0;
    for (int i = 0; i < 2 * ids; i++) {
        char expected[64];
        if (carry_on && i < ids && i % 3 == 0) continue;
        if (i < ids) snprintf(expected, sizeof expected, "%d:request-%d", i, i);
        else snprintf(expected, sizeof expected, "%d!duplicate_custom_id", i);
        wrong += strcmp(step(ledger), expected) != 0;
    }
    CU_ASSERT_EQUAL(wrong, 0);
    expect_step(ledger, "end");
    CU_ASSERT_EQUAL(gw_ledger_unclaimed(ledger), 0);
    CU_ASSERT_EQUAL(gw_ledger_count(ledger, GW_LINE_DONE), carry_on ? (ids + 2) / 3 : 0);
    gw_ledger_close(ledger);
}

static void test_duplicates(void)
{
    check_duplicates(20000, 0, false);
    check_duplicates(20000, 0, true);
    check_duplicates(300, 3, false); /* 8 different hashes for 300 ids */
    check_duplicates(300, 3, true);
}

/* Bytes a line over a range of sizes: the worst is just after the table grew. */
static void test_memory(void)
{
    struct gw_buf text = {0};
    int lines = 60000;
    for (int i = 0; i < lines; i++) {
        char line[40];
        snprintf(line, sizeof line, "{\"id\":%d,\"prompt\":\"p\"}\n", i);
        gw_buf_add_text(&text, line);
    }
    write_input((char *)text.data, text.bytes);
    gw_buf_free(&text);
    struct gw_ledger *ledger = open_ledger(NULL);
    double worst = 0;
    for (int i = 0; i < lines; i++) {
        step(ledger);
        double per_line = (double)gw_ledger_bytes(ledger) / (i + 1);
        if (i >= 40000 && per_line > worst) worst = per_line;
    }
    printf("(at most %.1f bytes a line) ", worst);
    CU_ASSERT_TRUE(worst < 24);
    CU_ASSERT_TRUE(gw_ledger_buffer_bytes(ledger) <= 1 << 20);
    gw_ledger_close(ledger);
}

static void test_long_lines(void)
{
    struct gw_request_defaults defaults = {.sampling = gw_sampling_default(), .max_line_bytes = 1000};
    struct gw_buf text = {0};
    char *prompt = gw_alloc(700001, 1);
    static const size_t widths[] = {10, 981, 982, 5000, 300000, 700000, 20};
    for (size_t i = 0; i < 7; i++) {
        memset(prompt, 'x', widths[i]);
        prompt[widths[i]] = 0;
        gw_buf_add_text(&text, "{\"id\":1");
        char id[8];
        snprintf(id, sizeof id, "%zu", i);
        gw_buf_add_text(&text, id);
        gw_buf_add_text(&text, ",\"prompt\":\"");
        gw_buf_add_text(&text, prompt);
        gw_buf_add_text(&text, i < 6 ? "\"}\n" : "\"}");
    }
    write_input((char *)text.data, text.bytes);
    struct gw_ledger *ledger = open_ledger(&defaults);
    expect_step(ledger, "0:10");
    static const size_t around = sizeof "{\"id\":10,\"prompt\":\"\"}" - 1;
    expect_step(ledger, 981 + around <= 1000 ? "1:11" : "1!line_too_long");
    expect_step(ledger, 982 + around <= 1000 ? "2:12" : "2!line_too_long");
    expect_step(ledger, "3!line_too_long");
    expect_step(ledger, "4!line_too_long");
    expect_step(ledger, "5!line_too_long");
    expect_step(ledger, "6:16");
    expect_step(ledger, "end");
    CU_ASSERT_TRUE(gw_ledger_buffer_bytes(ledger) <= 1 << 20);
    gw_ledger_close(ledger);

    defaults.max_line_bytes = 0; /* the default limit holds them all, and a line read again is whole */
    ledger = open_ledger(&defaults);
    for (int i = 0; i < 7; i++) CU_ASSERT_PTR_NULL(strchr(step(ledger), '!'));
    struct gw_request request;
    CU_ASSERT_EQUAL_FATAL(gw_ledger_reread(ledger, 5, &request), GW_OK);
    CU_ASSERT_EQUAL(request.prompt.bytes, 700000);
    gw_request_free(&request);
    gw_ledger_close(ledger);
    gw_buf_clear(&text);
    for (int i = 0; i < 3000; i++) gw_buf_add_text(&text, "xxxxxxxxxx"); /* too long and without an end */
    write_input((char *)text.data, text.bytes);
    defaults.max_line_bytes = 50;
    ledger = open_ledger(&defaults);
    expect_step(ledger, "0!line_too_long");
    expect_step(ledger, "end");
    gw_ledger_close(ledger);
    gw_buf_free(&text);
    free(prompt);
}

static void append(const char *text)
{
    FILE *file = fopen(path, "ab");
    fputs(text, file);
    fclose(file);
}

static void test_changed_input(void)
{
    write_input(mixed, sizeof mixed - 1);
    struct gw_ledger *ledger = open_ledger(NULL);
    expect_step(ledger, "0:a");
    append("\n{\"prompt\":\"late\"}\n");
    struct gw_request request;
    CU_ASSERT_EQUAL(gw_ledger_reread(ledger, 0, &request), GW_ERR_MISMATCH);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), path));
    const char *last;
    do last = step(ledger);
    while (strchr(last, ':') || strchr(last, '!'));
    CU_ASSERT_STRING_EQUAL(last, "GW_ERR_MISMATCH");
    gw_ledger_close(ledger);

    write_input(mixed, sizeof mixed - 1);
    ledger = open_ledger(NULL);
    expect_step(ledger, "0:a");
    CU_ASSERT_EQUAL(truncate(path, 20), 0);
    CU_ASSERT_EQUAL(gw_ledger_reread(ledger, 0, &request), GW_ERR_MISMATCH);
    gw_ledger_close(ledger);

    /* Same size, other time. */
    write_input(mixed, sizeof mixed - 1);
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    ledger = open_ledger(NULL);
    expect_step(ledger, "0:a");
    CU_ASSERT_EQUAL(utimensat(AT_FDCWD, path, old, 0), 0);
    CU_ASSERT_EQUAL(gw_ledger_reread(ledger, 0, &request), GW_ERR_MISMATCH);
    gw_ledger_close(ledger);
}

static void test_unusable(void)
{
    struct gw_ledger *ledger;
    CU_ASSERT_EQUAL(gw_ledger_open("no/such/file", NULL, &ledger), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(gw_ledger_open(dir, NULL, &ledger), GW_ERR_INPUT);
    CU_ASSERT_EQUAL(gw_ledger_open("/dev/null", NULL, &ledger), GW_ERR_INPUT);
    char pipe_path[80];
    snprintf(pipe_path, sizeof pipe_path, "%s/pipe", dir);
    CU_ASSERT_EQUAL_FATAL(mkfifo(pipe_path, 0600), 0);
    CU_ASSERT_EQUAL(gw_ledger_open(pipe_path, NULL, &ledger), GW_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "save a pipe to a file"));
    unlink(pipe_path);
    write_input("\xff\xfe{\0", 4);
    CU_ASSERT_EQUAL(gw_ledger_open(path, NULL, &ledger), GW_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "UTF-16"));
}

int main(void)
{
    if (!mkdtemp(dir)) return 1;
    snprintf(path, sizeof path, "%s/input.jsonl", dir);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("ledger", NULL, NULL);
    CU_add_test(suite, "order", test_order);
    CU_add_test(suite, "carry-on", test_carry_on);
    CU_add_test(suite, "duplicates", test_duplicates);
    CU_add_test(suite, "memory", test_memory);
    CU_add_test(suite, "long lines", test_long_lines);
    CU_add_test(suite, "changed input", test_changed_input);
    CU_add_test(suite, "unusable input", test_unusable);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    unlink(path);
    rmdir(dir);
    return failures != 0;
}
