/* Stop strings against a naive search of the whole text, for every way to cut the text into two pieces, for single bytes, and
 * for random pieces. */
#include "batch/request.h"
#include "engine/stop.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <string.h>

#define MAX_STOPS 4
#define MAX_TEXT 48

static uint64_t random_state = 99;

static unsigned next_random(unsigned bound) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (unsigned)((z ^ z >> 31) % bound);
}

/* The definition: try every end, earliest first, and the longest string for it. */
static int64_t naive(const char *text, size_t bytes, const struct gw_text *stops, size_t count)
{
    for (size_t end = 1; end <= bytes; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < count; i++)
            if (stops[i].bytes <= end && stops[i].bytes > longest &&
                !memcmp(text + end - stops[i].bytes, stops[i].data, stops[i].bytes))
                longest = stops[i].bytes;
        if (longest) return (int64_t)(end - longest);
    }
    return -1;
}

/* Feeds the text in pieces that end at cuts[] (ascending; the last is `bytes`), as an answer does. */
static int64_t feed(const char *text, const size_t *cuts, size_t cut_count, const struct gw_text *stops, size_t count)
{
    struct gw_stop stop;
    struct gw_buf buf = {0};
    int64_t at = -1;
    gw_stop_init(&stop, stops, count);
    for (size_t c = 0; c < cut_count && at < 0; c++) {
        size_t scanned = buf.bytes;
        gw_buf_add(&buf, text + scanned, cuts[c] - scanned);
        at = gw_stop_scan(&stop, &buf, scanned);
    }
    gw_buf_free(&buf);
    return at;
}

static int check(const char *text, size_t bytes, const struct gw_text *stops, size_t count)
{
    size_t cuts[MAX_TEXT + 1] = {0}, n = 0;
    int64_t want = naive(text, bytes, stops, count);
    int wrong = 0;
    for (size_t cut = 0; cut <= bytes; cut++) {
        size_t two[2] = {cut, bytes};
        wrong += feed(text, two, 2, stops, count) != want;
    }
    for (size_t i = 0; i < bytes; i++) cuts[i] = i + 1;
    wrong += feed(text, cuts, bytes, stops, count) != want;
    for (size_t at = 0; at < bytes;) {
        at += 1 + next_random(6);
        cuts[n++] = at < bytes ? at : bytes;
    }
    wrong += feed(text, cuts, n, stops, count) != want;
    return wrong;
}

static void test_random(void)
{
    int wrong = 0, found = 0, rounds = 20000;
    for (int round = 0; round < rounds; round++) {
        char text[MAX_TEXT], strings[MAX_STOPS][8];
        struct gw_text stops[MAX_STOPS];
        size_t bytes = next_random(MAX_TEXT + 1), count = 1 + next_random(MAX_STOPS);
        for (size_t i = 0; i < bytes; i++) text[i] = (char)(next_random(8) ? 'a' + (int)next_random(2) : 0);
        for (size_t s = 0; s < count; s++) {
            stops[s] = (struct gw_text){strings[s], 1 + next_random(8)};
            for (size_t i = 0; i < stops[s].bytes; i++)
                strings[s][i] = (char)(next_random(16) ? 'a' + (int)next_random(2) : 0);
        }
        wrong += check(text, bytes, stops, count);
        found += naive(text, bytes, stops, count) >= 0;
    }
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT_TRUE(found > rounds / 10 && found < rounds * 95 / 100);
}

static int64_t cut_at(const char *text, const char *first, const char *second)
{
    char a[16], b[16];
    struct gw_text stops[2] = {{a, strlen(first)}, {b, second ? strlen(second) : 0}};
    memcpy(a, first, stops[0].bytes);
    memcpy(b, second ? second : "", stops[1].bytes);
    size_t whole = strlen(text);
    CU_ASSERT_EQUAL(check(text, whole, stops, second ? 2 : 1), 0);
    return feed(text, &whole, 1, stops, second ? 2 : 1);
}

static void test_cases(void)
{
    CU_ASSERT_EQUAL(cut_at("one\n\ntwo", "\n\n", NULL), 3);
    CU_ASSERT_EQUAL(cut_at("aaab", "aab", NULL), 1);
    CU_ASSERT_EQUAL(cut_at("stop", "stop", NULL), 0);
    CU_ASSERT_EQUAL(cut_at("sto", "stop", NULL), -1);
    CU_ASSERT_EQUAL(cut_at("", "stop", NULL), -1);
    CU_ASSERT_EQUAL(cut_at("xabcdy", "abcd", "c"), 3); /* "c" is complete first */
    CU_ASSERT_EQUAL(cut_at("xabcdy", "d", "bcd"), 2);  /* both at once: the longest */
    CU_ASSERT_EQUAL(cut_at("gr\xc3\xbc\xc3\x9f", "\xc3\xbc", "\xc3\x9f"), 2);
}

static void test_none(void)
{
    struct gw_stop stop;
    struct gw_buf buf = {0};
    gw_stop_init(&stop, NULL, 0);
    CU_ASSERT_EQUAL(gw_stop_scan(&stop, &buf, 0), -1);
    gw_buf_add_text(&buf, "text");
    CU_ASSERT_EQUAL(gw_stop_scan(&stop, &buf, 0), -1);
    gw_buf_free(&buf);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("stop", NULL, NULL);
    CU_add_test(suite, "cases", test_cases);
    CU_add_test(suite, "no stop strings", test_none);
    CU_add_test(suite, "random texts at every split", test_random);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
