/* The context store: memory found again, filled once, taken over from who is gone, and let go. Processes are forked and end by themselves. */
#include "base/file.h"
#include "store/protocol.h"

#include <CUnit/Basic.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/godwit-test-store-XXXXXX";
static struct gw_store_server *server;

static struct gw_store *connect_store(void)
{
    struct gw_store *store = NULL;
    CU_ASSERT_EQUAL_FATAL(gw_store_connect(dir, &store), GW_OK);
    return store;
}

static struct gw_shared *map(struct gw_store *store, enum gw_store_scope scope, const char *name, size_t bytes,
                             enum gw_store_found expected)
{
    struct gw_shared *segment = NULL;
    enum gw_store_found found = GW_STORE_NONE;
    CU_ASSERT_EQUAL(gw_store_map(store, scope, name, bytes, expected != GW_STORE_NONE, &segment, &found), GW_OK);
    CU_ASSERT_EQUAL(found, expected);
    CU_ASSERT_EQUAL(segment != NULL, expected == GW_STORE_NEW || expected == GW_STORE_FOUND);
    if (segment) CU_ASSERT(segment->bytes >= bytes);
    return segment;
}

static uint64_t usage(struct gw_store *store)
{
    uint64_t bytes = 0;
    CU_ASSERT_EQUAL(gw_store_usage(store, &bytes), GW_OK);
    return bytes;
}

/* Shared segments: the first fills, the others wait until it has, and find the bytes. */
static void test_shared(void)
{
    struct gw_store *a = connect_store(), *b = connect_store();
    CU_ASSERT_PTR_NULL(map(b, GW_STORE_SHARED, "w", 1 << 20, GW_STORE_NONE));
    struct gw_shared *of_a = map(a, GW_STORE_SHARED, "w", 1 << 20, GW_STORE_NEW);
    struct gw_shared *none = NULL;
    enum gw_store_found found;
    CU_ASSERT_EQUAL(gw_store_map(b, GW_STORE_SHARED, "w", 1 << 20, true, &none, &found), GW_OK);
    CU_ASSERT(found == GW_STORE_BUSY && !none);
    memset(of_a->data, 7, 1 << 20);
    CU_ASSERT_EQUAL(gw_store_filled(a, of_a), GW_OK);
    struct gw_shared *of_b = map(b, GW_STORE_SHARED, "w", 1 << 20, GW_STORE_FOUND);
    CU_ASSERT_EQUAL(((uint8_t *)of_b->data)[(1 << 20) - 1], 7);
    CU_ASSERT_EQUAL(usage(a), 1 << 20);
    gw_shared_release(of_a);
    CU_ASSERT_EQUAL(gw_store_keep(a, 1), GW_OK);
    CU_ASSERT_EQUAL(usage(a), 1 << 20); /* b maps it */
    gw_shared_release(of_b);
    CU_ASSERT_EQUAL(gw_store_keep(b, 1), GW_OK);
    CU_ASSERT_EQUAL(usage(a), 0);
    gw_store_close(a);
    gw_store_close(b);
}

/* Segments too small for huge pages share files of the server; huge pages that come late change nothing. */
static void test_side_by_side(void)
{
    enum { COUNT = 24 };
    const size_t sizes[] = {5000, GW_HUGE_PAGE / 4, GW_HUGE_PAGE / 8 * 7, GW_HUGE_PAGE + GW_HUGE_PAGE / 2};
    struct gw_store *a = connect_store(), *b = connect_store();
    struct gw_shared *of_a[COUNT], *of_b[COUNT];
    char name[16];
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "part %d", i);
        of_a[i] = map(a, GW_STORE_SHARED, name, sizes[i % 4], GW_STORE_NEW);
        if (i % 3 == 0) gw_back_large(of_a[i]->mapping, of_a[i]->mapping_bytes);
        CU_ASSERT_EQUAL(((uint8_t *)of_a[i]->data)[sizes[i % 4] - 1], 0);
        memset(of_a[i]->data, i + 1, sizes[i % 4]);
        if (i % 3 == 1) gw_back_large(of_a[i]->mapping, of_a[i]->mapping_bytes);
        CU_ASSERT_EQUAL(gw_store_filled(a, of_a[i]), GW_OK);
        of_b[i] = map(b, GW_STORE_SHARED, name, sizes[i % 4], GW_STORE_FOUND);
    }
    for (int i = 0; i < COUNT; i++) gw_shared_release(of_a[i]);
    CU_ASSERT_EQUAL(gw_store_keep(a, 1), GW_OK);
    for (int i = 0; i < COUNT; i += 2) gw_shared_release(of_b[i]);
    CU_ASSERT_EQUAL(gw_store_keep(b, 1), GW_OK);
    for (int i = 1; i < COUNT; i += 2) {
        const uint8_t *data = of_b[i]->data;
        for (size_t at = 0; at < sizes[i % 4]; at++)
            if (data[at] != i + 1) CU_FAIL_FATAL("a segment has what is another's");
        gw_shared_release(of_b[i]);
    }
    CU_ASSERT(usage(b) > 0);
    CU_ASSERT_EQUAL(gw_store_keep(b, 1), GW_OK);
    CU_ASSERT_EQUAL(usage(b), 0);
    gw_store_close(a);
    gw_store_close(b);
}

/* A process that ends without a word while it fills a shared segment, and owns another: mapped, written, kept under `order`. */
static void leave_behind(const char *text, uint64_t order, bool fill)
{
    pid_t child = fork();
    if (child == 0) {
        struct gw_store *store;
        struct gw_shared *own, *shared;
        enum gw_store_found found;
        if (gw_store_connect(dir, &store) != GW_OK) _exit(1);
        if (gw_store_map(store, GW_STORE_OWN, "kv", 8192, true, &own, &found) != GW_OK || found != GW_STORE_NEW)
            _exit(2);
        if (gw_store_map(store, GW_STORE_SHARED, "half", 4096, true, &shared, &found) != GW_OK || !shared) _exit(3);
        strcpy(own->data, text);
        if (fill && gw_store_filled(store, shared) != GW_OK) _exit(4);
        if (gw_store_keep(store, order) != GW_OK) _exit(5);
        _exit(0);
    }
    int status = -1;
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    CU_ASSERT_EQUAL(status, 0);
}

static void test_take(void)
{
    bool taken = true;
    int held;
    struct gw_store *first = connect_store();
    while (taken) CU_ASSERT_FATAL(gw_store_take(first, &taken, &held) == GW_OK); /* of the test before */
    leave_behind("early", 4, true);
    leave_behind("late", 5, true); /* which lets the earlier one go */
    struct gw_store *a = connect_store(), *b = connect_store();
    CU_ASSERT(gw_store_take(a, &taken, &held) == GW_OK && taken);
    CU_ASSERT(gw_store_take(b, &taken, &held) == GW_OK && !taken);
    CU_ASSERT_EQUAL(held, 0); /* what a has taken nobody else may wait for */
    struct gw_shared *kv = map(a, GW_STORE_OWN, "kv", 8192, GW_STORE_FOUND);
    CU_ASSERT_STRING_EQUAL((char *)kv->data, "late");
    CU_ASSERT_PTR_NULL(map(b, GW_STORE_OWN, "kv", 8192, GW_STORE_NONE)); /* nobody else sees it */
    gw_shared_release(kv);
    struct gw_shared *larger = map(a, GW_STORE_OWN, "kv", 16384, GW_STORE_NEW);
    CU_ASSERT_STRING_EQUAL((char *)larger->data, "");
    gw_shared_release(larger);
    CU_ASSERT_EQUAL(gw_store_keep(a, 6), GW_OK);
    gw_store_close(a);
    gw_store_close(b);
    /* a's context was kept under 6, so it can be taken once more; then nobody wants any */
    CU_ASSERT(gw_store_take(first, &taken, &held) == GW_OK && taken);
    CU_ASSERT_EQUAL(gw_store_keep(first, 7), GW_OK);
    CU_ASSERT_EQUAL(usage(first), 0);
    gw_store_close(first);
}

static void test_unfilled(void)
{
    leave_behind("x", 8, false);
    struct gw_store *store = connect_store();
    struct gw_shared *half = map(store, GW_STORE_SHARED, "half", 4096, GW_STORE_NEW);
    CU_ASSERT_EQUAL(*(char *)half->data, 0);
    gw_shared_release(half);
    gw_store_close(store);
}

/* Several at once take over different contexts. */
static void test_takers(void)
{
    struct gw_store *clients[3];
    char seen[3] = {0};
    bool taken;
    int held;
    struct gw_store *keeper = connect_store();
    CU_ASSERT_EQUAL(gw_store_keep(keeper, 20), GW_OK);
    for (int i = 0; i < 3; i++) leave_behind((char[]){(char)('a' + i), 0}, 20, true);
    for (int i = 0; i < 3; i++) {
        clients[i] = connect_store();
        CU_ASSERT(gw_store_take(clients[i], &taken, &held) == GW_OK && taken);
        struct gw_shared *kv = map(clients[i], GW_STORE_OWN, "kv", 8192, GW_STORE_FOUND);
        int which = *(char *)kv->data - 'a';
        CU_ASSERT_FATAL(which >= 0 && which < 3);
        CU_ASSERT_EQUAL(seen[which]++, 0);
        gw_shared_release(kv);
    }
    struct gw_store *late = connect_store();
    CU_ASSERT(gw_store_take(late, &taken, &held) == GW_OK && !taken);
    CU_ASSERT_EQUAL(held, 1); /* the keeper, which may yet go */
    gw_store_close(late);
    CU_ASSERT(gw_store_take(keeper, &taken, &held) == GW_OK && !taken);
    for (int i = 0; i < 3; i++) gw_store_close(clients[i]);
    gw_store_close(keeper);
}

static void test_nonsense(void)
{
    struct sockaddr_un address;
    struct gw_store_request request = {.magic = GW_STORE_MAGIC, .op = 99};
    char byte;
    for (int kind = 0; kind < 4; kind++) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        socklen_t length = gw_store_address(dir, &address);
        CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&address, length), 0);
        if (kind == 1) request.magic = 1;
        if (kind == 2)
            request = (struct gw_store_request){.magic = GW_STORE_MAGIC, .op = GW_STORE_KEEP, .count = 1u << 30};
        size_t bytes = kind == 3 ? 5 : sizeof request;
        CU_ASSERT_EQUAL(send(fd, &request, bytes, 0), (ssize_t)bytes);
        CU_ASSERT_EQUAL(recv(fd, &byte, 1, 0), 0); /* hung up on */
        close(fd);
    }
    struct gw_store *store = connect_store(); /* and the server lives */
    usage(store);
    gw_store_close(store);
}

static void test_server(void)
{
    struct gw_store_server *second = NULL;
    struct gw_store *store = connect_store(), *none = NULL;
    struct gw_shared *segment = map(store, GW_STORE_OWN, "kv", 4096, GW_STORE_NEW);
    CU_ASSERT_EQUAL(gw_store_serve(dir, &second), GW_ERR_MISMATCH);
    gw_store_end(server);
    strcpy(segment->data, "still mapped");
    uint64_t bytes;
    CU_ASSERT_EQUAL(gw_store_usage(store, &bytes), GW_ERR_PEER);
    CU_ASSERT_EQUAL(gw_store_keep(store, 1), GW_ERR_PEER);
    gw_shared_release(segment);
    gw_store_close(store);
    CU_ASSERT_EQUAL(gw_store_connect(dir, &none), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(gw_store_serve("/nonexistent/folder", &server), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(gw_store_serve(dir, &server), GW_OK);
}

static int begin(void)
{
    return mkdtemp(dir) && gw_store_serve(dir, &server) == GW_OK ? 0 : 1;
}

static int end(void)
{
    gw_store_end(server);
    return rmdir(dir);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("store", begin, end);
    CU_add_test(suite, "shared segments are filled once", test_shared);
    CU_add_test(suite, "small segments side by side", test_side_by_side);
    CU_add_test(suite, "a context is taken over", test_take);
    CU_add_test(suite, "what was half filled is made anew", test_unfilled);
    CU_add_test(suite, "several takers", test_takers);
    CU_add_test(suite, "nonsense", test_nonsense);
    CU_add_test(suite, "one server a job, and its end", test_server);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    int failures = (int)CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
