/* The base layer: errors and their way up, buffers, files, log lines, hashes against published vectors, Philox against its authors'
 * known answers. (The thread pool has a program of its own.) */
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/philox.h"

#include <CUnit/Basic.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/test_base_XXXXXX";

/* ---- errors ---------------------------------------------------------------------------------------------------- */

static gw_err deep(int way)
{
    gw_err rc = GW_OK;
    if (way == 1) FAIL(GW_ERR_INPUT, "line %d is bad", 7);
    if (way == 2) return gw_fail(GW_ERR_IO, "disk %s", "full");
out:
    return rc;
}

static gw_err middle(int way, int *reached)
{
    gw_err rc = GW_OK;
    TRY(deep(way));
    *reached = 1;
out:
    return rc;
}

static void test_errors(void)
{
    int reached = 0;
    CU_ASSERT_EQUAL(middle(0, &reached), GW_OK);
    CU_ASSERT_EQUAL(reached, 1);
    reached = 0;
    CU_ASSERT_EQUAL(middle(1, &reached), GW_ERR_INPUT);
    CU_ASSERT_EQUAL(reached, 0);
    CU_ASSERT_STRING_EQUAL(gw_error_detail(), "line 7 is bad");
    const char *way = strstr(gw_error_path(), "test_base.c:");
    CU_ASSERT_PTR_EQUAL(way, gw_error_path()); /* no folders */
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_path(), " < test_base.c:"));
    CU_ASSERT_EQUAL(middle(2, &reached), GW_ERR_IO);
    CU_ASSERT_STRING_EQUAL(gw_error_detail(), "disk full");
    /* The old detail may be an argument of the new one. */
    CU_ASSERT_EQUAL(gw_fail(GW_ERR_IO, "rank 3: %s", gw_error_detail()), GW_ERR_IO);
    CU_ASSERT_STRING_EQUAL(gw_error_detail(), "rank 3: disk full");
    char longer[4000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    CU_ASSERT_EQUAL(gw_fail(GW_ERR_IO, "%s", longer), GW_ERR_IO);
    CU_ASSERT(strlen(gw_error_detail()) == 1023);
    for (int i = 0; i < 100; i++) gw_error_trace("folder/a_rather_long_file_name.c", i);
    CU_ASSERT(strlen(gw_error_path()) < 512);
}

static void test_error_table(void)
{
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_OK), 0);
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_ERR_USAGE), 2);
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_ERR_FORMAT), 3);
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_ERR_UNSUPPORTED), 4);
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_ERR_VERIFY), 1);
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_ERR_STOPPED), 130);
    CU_ASSERT_EQUAL(gw_err_exit_code(GW_ERR_COUNT), 70);
    CU_ASSERT_STRING_EQUAL(gw_err_name(GW_ERR_FORMAT), "GW_ERR_FORMAT");
    CU_ASSERT_STRING_EQUAL(gw_err_name((gw_err)-1), "GW_ERR_?");
    for (int i = 0; i < GW_ERR_COUNT; i++) {
        CU_ASSERT(gw_err_text((gw_err)i)[0] != 0);
        CU_ASSERT((gw_err_exit_code((gw_err)i) == 0) == (i == GW_OK));
    }
    CU_ASSERT_STRING_EQUAL(gw_err_text(GW_ERR_COUNT), "unknown error");
}

/* Runs `body` in a child with stderr in a pipe; returns its exit code and what it said. */
static int in_child(void (*body)(void), char *said, size_t said_bytes)
{
    int ends[2], status = 0;
    size_t used = 0;
    fflush(NULL);
    CU_ASSERT_FATAL(pipe(ends) == 0);
    pid_t child = fork();
    CU_ASSERT_FATAL(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        body();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got; used + 1 < said_bytes && (got = read(ends[0], said + used, said_bytes - 1 - used)) > 0;)
        used += (size_t)got;
    said[used] = 0;
    close(ends[0]);
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void break_invariant(void)
{
    GW_ASSERT(1 + 1 == 3);
}

static void ask_too_much(void)
{
    free(gw_realloc(NULL, SIZE_MAX / 2, 4));
}

static void test_death(void)
{
    char said[4096];
    CU_ASSERT_EQUAL(in_child(break_invariant, said, sizeof said), 70);
    CU_ASSERT_PTR_NOT_NULL(strstr(said, "1 + 1 == 3"));
    CU_ASSERT_PTR_NOT_NULL(strstr(said, "test_base.c:"));
    CU_ASSERT_EQUAL(in_child(ask_too_much, said, sizeof said), 5);
    CU_ASSERT_PTR_NOT_NULL(strstr(said, "out of memory"));
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static void test_alloc(void)
{
    unsigned char *zeroed = gw_alloc(100, 3);
    for (int i = 0; i < 300; i++) CU_ASSERT_EQUAL(zeroed[i], 0);
    zeroed[0] = 42;
    zeroed = gw_realloc(zeroed, 1000, 3);
    CU_ASSERT_EQUAL(zeroed[0], 42);
    free(zeroed);
    void *empty = gw_alloc(0, 8);
    CU_ASSERT_PTR_NOT_NULL(empty);
    free(empty);
    char *text = gw_asprintf("%s-%03d", "a", 7), *copy = gw_strdup(text), *part = gw_strndup(text, 2);
    CU_ASSERT_STRING_EQUAL(text, "a-007");
    CU_ASSERT_STRING_EQUAL(copy, "a-007");
    CU_ASSERT_STRING_EQUAL(part, "a-");
    free(text);
    free(copy);
    free(part);
    void *large = NULL;
    size_t bytes = 3 << 20;
    CU_ASSERT_EQUAL_FATAL(gw_alloc_large(bytes, "a test", &large), GW_OK);
    CU_ASSERT_EQUAL((uintptr_t)large % 4096, 0);
    CU_ASSERT_EQUAL(((unsigned char *)large)[bytes - 1], 0);
    gw_free_large(large, bytes);
    CU_ASSERT_EQUAL(gw_alloc_large(SIZE_MAX / 2, "the impossible", &large), GW_ERR_MEMORY);
    CU_ASSERT_PTR_NULL(large);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "the impossible"));
    gw_free_large(NULL, 0);
    const size_t huge = 2 << 20;
    unsigned char *lines = gw_alloc_lines(huge / 64 + 4, 64); /* not a multiple of what it is aligned to */
    CU_ASSERT_EQUAL((uintptr_t)lines % 64, 0);
    memset(lines, 1, huge + 4 * 64);
    free(lines);
    CU_ASSERT_EQUAL(gw_large_bytes(huge - 100), huge);
    CU_ASSERT_EQUAL(gw_large_bytes(huge + 100), huge + 100); /* not worth another one */
    CU_ASSERT_EQUAL(gw_large_bytes(9 * huge + 100), 10 * huge);
    for (size_t large_bytes = huge - 100; large_bytes < 3 * huge; large_bytes += huge / 2 + 12345) {
        CU_ASSERT_EQUAL_FATAL(gw_alloc_large(large_bytes, "a test", &large), GW_OK);
        if (large_bytes >= huge) CU_ASSERT_EQUAL((uintptr_t)large % huge, 0);
        memset(large, 1, large_bytes);
        gw_free_large(large, large_bytes);
    }
}

/* Small parts of large memory lie side by side, and stay apart; large ones have mappings of their own. */
static void test_shared(void)
{
    enum { PARTS = 21 };
    const size_t huge = GW_HUGE_PAGE, sizes[] = {1, 5000, huge / 3, huge - 5, huge + huge / 2, 3 * huge, 4 * huge + 1};
    struct gw_shared *parts[PARTS];
    CU_ASSERT(!gw_goes_to_slab(huge) && !gw_goes_to_slab(huge - huge / 5 + 8) && !gw_goes_to_slab(SIZE_MAX));
    CU_ASSERT(gw_goes_to_slab(1) && gw_goes_to_slab(huge + 1) && gw_goes_to_slab(huge / 2));
    for (int round = 0; round < 3; round++) {
        for (int i = round ? 1 : 0; i < PARTS; i += round ? 2 : 1) { /* later rounds: every second one anew */
            size_t bytes = sizes[(size_t)(i + round) % (sizeof sizes / sizeof *sizes)];
            CU_ASSERT_EQUAL_FATAL(gw_shared_create(bytes, "a part", &parts[i]), GW_OK);
            CU_ASSERT_EQUAL(parts[i]->bytes, bytes);
            CU_ASSERT_EQUAL((uintptr_t)parts[i]->data % 4096, 0);
            const unsigned char *data = parts[i]->data;
            CU_ASSERT(data[0] == 0 && data[bytes / 2] == 0 && data[bytes - 1] == 0);
            memset(parts[i]->data, i + 1, bytes);
            if (parts[i]->mapping) gw_back_large(parts[i]->mapping, parts[i]->mapping_bytes);
        }
        for (int i = 0; i < PARTS; i++) {
            const unsigned char *data = parts[i]->data;
            for (size_t at = 0; at < parts[i]->bytes; at++)
                if (data[at] != i + 1) CU_FAIL_FATAL("a part has what is another's");
            if (round == 2 || i % 2) gw_shared_release(parts[i]);
        }
    }
    struct gw_shared *none = NULL;
    CU_ASSERT_EQUAL(gw_shared_create(SIZE_MAX / 2, "the impossible", &none), GW_ERR_MEMORY);
    CU_ASSERT_PTR_NULL(none);
}

static void test_buffers(void)
{
    struct gw_buf buf = {0};
    for (uint32_t i = 0; i < 1000; i++) gw_buf_add_u32(&buf, i * 7);
    gw_buf_add_u64(&buf, 0x0123456789abcdef);
    gw_buf_add_text(&buf, "text");
    gw_buf_add(&buf, NULL, 0);
    CU_ASSERT_EQUAL(buf.bytes, 4012);
    struct gw_reader in = {.data = buf.data, .bytes = buf.bytes};
    int wrong = 0;
    for (uint32_t i = 0; i < 1000; i++) wrong += gw_read_u32(&in) != i * 7;
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT_EQUAL(gw_read_u64(&in), 0x0123456789abcdef);
    CU_ASSERT(!in.failed && memcmp(gw_read(&in, 4), "text", 4) == 0);
    CU_ASSERT(!in.failed && gw_read(&in, 0) && !in.failed);
    CU_ASSERT_EQUAL(gw_read_u32(&in), 0);
    CU_ASSERT(in.failed && in.at == 4012);
    CU_ASSERT_PTR_NULL(gw_read(&in, 0)); /* it stays failed */
    in = (struct gw_reader){.data = buf.data, .bytes = 10, .at = 8};
    CU_ASSERT_PTR_NULL(gw_read(&in, SIZE_MAX)); /* at + bytes would wrap */
    CU_ASSERT(in.failed);
    in = (struct gw_reader){.data = buf.data, .bytes = 7};
    CU_ASSERT(gw_read_u64(&in) == 0 && in.failed);
    size_t capacity = buf.capacity;
    gw_buf_clear(&buf);
    CU_ASSERT(buf.bytes == 0 && buf.capacity == capacity);
    gw_buf_reserve(&buf, 100000);
    CU_ASSERT(buf.bytes == 0 && buf.capacity >= 100000);
    gw_buf_free(&buf);
    CU_ASSERT(!buf.data && !buf.capacity);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static void test_files(void)
{
    char *path = gw_asprintf("%s/file", folder), *temporary = gw_asprintf("%s.tmp", path), *text = NULL;
    struct gw_map map;
    size_t bytes = 0;
    CU_ASSERT_EQUAL(gw_map_open(path, &map), GW_ERR_NOT_FOUND);
    CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), path));
    CU_ASSERT_EQUAL(gw_file_replace(path, "first", 5, false), GW_OK);
    CU_ASSERT_EQUAL(gw_file_replace(path, "second one", 10, true), GW_OK);
    CU_ASSERT_EQUAL(access(temporary, F_OK), -1);
    CU_ASSERT_EQUAL_FATAL(gw_file_read(path, 100, &text, &bytes), GW_OK);
    CU_ASSERT(bytes == 10 && strcmp(text, "second one") == 0);
    free(text);
    CU_ASSERT_EQUAL(gw_file_read(path, 10, &text, NULL), GW_OK);
    free(text);
    CU_ASSERT_EQUAL(gw_file_read(path, 9, &text, &bytes), GW_ERR_FORMAT);
    CU_ASSERT_PTR_NULL(text);
    CU_ASSERT_EQUAL_FATAL(gw_map_open(path, &map), GW_OK);
    CU_ASSERT(map.bytes == 10 && memcmp(map.data, "second one", 10) == 0);
    gw_map_close(&map);
    CU_ASSERT_PTR_NULL(map.data);
    CU_ASSERT_EQUAL(gw_file_replace(path, NULL, 0, false), GW_OK);
    CU_ASSERT_EQUAL(gw_map_open(path, &map), GW_OK);
    CU_ASSERT(map.bytes == 0 && !map.data);
    gw_map_close(&map);
    CU_ASSERT_EQUAL(gw_map_open(folder, &map), GW_ERR_IO);
    CU_ASSERT_EQUAL(gw_file_read(folder, 100, &text, NULL), GW_ERR_IO);
    CU_ASSERT_EQUAL(unlink(path), 0);
    free(path);
    free(temporary);
}

/* A large file takes several reads. */
static void test_large_file(void)
{
    char *path = gw_asprintf("%s/large", folder), *text;
    struct gw_buf buf = {0};
    size_t bytes;
    for (uint32_t i = 0; i < 100000; i++) gw_buf_add_u32(&buf, i * 2654435761u);
    CU_ASSERT_EQUAL_FATAL(gw_file_replace(path, buf.data, buf.bytes, false), GW_OK);
    CU_ASSERT_EQUAL_FATAL(gw_file_read(path, SIZE_MAX, &text, &bytes), GW_OK);
    CU_ASSERT(bytes == buf.bytes && memcmp(text, buf.data, bytes) == 0 && text[bytes] == 0);
    free(text);
    gw_buf_free(&buf);
    unlink(path);
    free(path);
}

static void test_bad_files(void)
{
    char *dir = gw_asprintf("%s/made", folder), *file = gw_asprintf("%s/made/x", folder),
         *below = gw_asprintf("%s/made/x/y", folder);
    CU_ASSERT_EQUAL(gw_file_replace(file, "x", 1, false), GW_ERR_IO); /* no such folder yet */
    CU_ASSERT_EQUAL(gw_make_dir(dir), GW_OK);
    CU_ASSERT_EQUAL(gw_make_dir(dir), GW_OK);
    CU_ASSERT_EQUAL(gw_file_replace(file, "x", 1, false), GW_OK);
    CU_ASSERT_EQUAL(gw_make_dir(file), GW_ERR_IO); /* a file is in the way */
    CU_ASSERT_EQUAL(gw_make_dir(below), GW_ERR_IO);
    CU_ASSERT_EQUAL(gw_file_replace(dir, "x", 1, false), GW_ERR_IO); /* rename onto a folder */
    char *temporary = gw_asprintf("%s.tmp", dir);
    CU_ASSERT_EQUAL(access(temporary, F_OK), -1); /* nothing is left behind */
    int full = open("/dev/full", O_WRONLY);
    if (full >= 0) {
        CU_ASSERT_EQUAL(gw_write_all(full, "/dev/full", "x", 1), GW_ERR_IO);
        CU_ASSERT_PTR_NOT_NULL(strstr(gw_error_detail(), "free some space"));
        close(full);
    }
    unlink(file);
    rmdir(dir);
    free(dir);
    free(file);
    free(below);
    free(temporary);
}

/* ---- log ------------------------------------------------------------------------------------------------------- */

static void log_some(void)
{
    char longer[4000];
    gw_info("plain %d", 1);
    gw_debug("unseen");
    gw_log_set_rank(3);
    gw_warn("from a rank");
    gw_log_set_level(GW_LOG_ERROR);
    gw_warn("unseen");
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    gw_error("%s", longer);
}

static void log_as_told(void)
{
    setenv("GODWIT_LOG", "debug", 1);
    gw_debug("seen");
}

static void test_log(void)
{
    char said[8192];
    CU_ASSERT_EQUAL(in_child(log_some, said, sizeof said), 0);
    static const char start[] = "godwit: plain 1\ngodwit[3]: warning: from a rank\ngodwit[3]: error: xxx";
    CU_ASSERT_EQUAL(strncmp(said, start, strlen(start)), 0);
    CU_ASSERT(strlen(said) > 2000 && strlen(said) < 2200 && said[strlen(said) - 1] == '\n'); /* cut, but a line */
    CU_ASSERT_EQUAL(in_child(log_as_told, said, sizeof said), 0);
    CU_ASSERT_STRING_EQUAL(said, "godwit: debug: seen\n");
}

/* ---- hashes, random numbers, clocks ---------------------------------------------------------------------------- */

static void test_hashes(void)
{
    char hex[65];
    /* FIPS 180-2, appendix B.1 and B.3. */
    struct gw_sha256 *sha = gw_sha256_create();
    gw_sha256_add(sha, "a", 1);
    gw_sha256_add(sha, "bc", 2);
    gw_sha256_finish(sha, hex);
    CU_ASSERT_STRING_EQUAL(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    sha = gw_sha256_create();
    for (int i = 0; i < 1000000; i += 100)
        gw_sha256_add(
            sha, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            100);
    gw_sha256_finish(sha, hex);
    CU_ASSERT_STRING_EQUAL(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    sha = gw_sha256_create();
    gw_sha256_finish(sha, hex);
    CU_ASSERT_STRING_EQUAL(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    /* XXH3 of nothing, from the specification; and that seed and content matter. */
    CU_ASSERT_EQUAL(gw_hash64("", 0, 0), 0x2d06800538d394c2);
    CU_ASSERT_NOT_EQUAL(gw_hash64("abc", 3, 0), gw_hash64("abc", 3, 1));
    CU_ASSERT_NOT_EQUAL(gw_hash64("abc", 3, 0), gw_hash64("abd", 3, 0));
    CU_ASSERT_EQUAL(gw_hash64("abcd", 3, 5), gw_hash64("abce", 3, 5));
}

static void test_philox(void)
{
    /* Random123's known answers for philox4x32, 10 rounds. */
    static const struct {
        uint32_t counter[4], key[2], wanted[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        gw_philox4x32(known[i].key, known[i].counter, out);
        CU_ASSERT_EQUAL(memcmp(out, known[i].wanted, sizeof out), 0);
    }
    double sum = 0, low = 1, high = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = gw_philox_uniform(1, 2, i);
        sum += u;
        low = u < low ? u : low;
        high = u > high ? u : high;
    }
    CU_ASSERT(low >= 0 && low < 0.001 && high < 1 && high > 0.999);
    CU_ASSERT(sum / 10000 > 0.49 && sum / 10000 < 0.51);
    CU_ASSERT_EQUAL(gw_philox_uniform(1, 2, 3), gw_philox_uniform(1, 2, 3));
    CU_ASSERT_NOT_EQUAL(gw_philox_uniform(1, 2, 3), gw_philox_uniform(1, 3, 2));
    CU_ASSERT_NOT_EQUAL(gw_philox_uniform(1, 2, 3), gw_philox_uniform(1ull << 32 | 1, 2, 3));
    CU_ASSERT_NOT_EQUAL(gw_philox_uniform(1, 2, 3), gw_philox_uniform(1, 2, 1ull << 32 | 3));
}

static void test_clocks(void)
{
    double before = gw_clock_now_s();
    usleep(2000);
    double spent = gw_clock_now_s() - before;
    CU_ASSERT(spent >= 0.002 && spent < 10);
    CU_ASSERT(gw_clock_wall_s() > 1.6e9);
}

static int make_folder(void)
{
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void)
{
    return rmdir(folder);
}

int main(void)
{
    static CU_TestInfo tests[] = {
        {"errors and their way up", test_errors},
        {"table of errors", test_error_table},
        {"bugs and lack of memory end the process", test_death},
        {"allocation", test_alloc},
        {"small parts of large memory", test_shared},
        {"buffers and readers", test_buffers},
        {"files", test_files},
        {"a large file", test_large_file},
        {"files that cannot be", test_bad_files},
        {"log lines", test_log},
        {"hashes", test_hashes},
        {"philox", test_philox},
        {"clocks", test_clocks},
        CU_TEST_INFO_NULL,
    };
    static CU_SuiteInfo suites[] = {{"base", make_folder, remove_folder, NULL, NULL, tests}, CU_SUITE_INFO_NULL};
    if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS) return 1;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
    CU_cleanup_registry();
    return failures != 0;
}
