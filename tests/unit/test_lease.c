/* Leases, terms and the secret of a job's folder (node/lease.h, node/secret.h): who wins when several take the same thing at once, what a stale holder can
 * still do, and what damaged files do. */
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "node/lease.h"
#include "node/secret.h"

#include <CUnit/Basic.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CONTENDERS = 8, ROUNDS = 20, LAST_TERM = 300 };

static char folder[] = "/tmp/test_lease_XXXXXX";

static void put(const char *name, const void *data, size_t bytes)
{
    char *path = gw_asprintf("%s/%s", folder, name);
    CU_ASSERT_EQUAL(gw_file_replace(path, data, bytes, false), GW_OK);
    free(path);
}

static int files_in_folder(void)
{
    int count = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        count += entry->d_name[0] != '.' || entry->d_name[1] == 's';
    if (dir) closedir(dir);
    return count;
}

static void empty_folder(void)
{
    gw_remove_tree(folder);
    CU_ASSERT_EQUAL(mkdir(folder, 0700), 0);
}

/* Runs `task` in CONTENDERS processes that begin together; returns how many ended with 1, or -1 when one failed. */
static int contend(int (*task)(int number))
{
    int start[2], wins = 0;
    char go;
    CU_ASSERT_EQUAL_FATAL(pipe(start), 0);
    pid_t pids[CONTENDERS];
    for (int i = 0; i < CONTENDERS; i++) {
        pids[i] = fork();
        CU_ASSERT_FATAL(pids[i] >= 0);
        if (pids[i]) continue;
        close(start[1]);
        if (read(start[0], &go, 1) != 0) _exit(2); /* ends when the parent closes its end */
        _exit(task(i));
    }
    close(start[0]);
    close(start[1]);
    for (int i = 0; i < CONTENDERS; i++) {
        int status = 0;
        waitpid(pids[i], &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) wins = -100;
        else wins += WEXITSTATUS(status);
    }
    return wins < 0 ? -1 : wins;
}

static struct gw_lease lease_of(const char *name, int number)
{
    struct gw_lease lease = {.port = 1000 + number, .slots = 2, .gflops = 1.5, .counter = 7};
    gw_lease_describe(&lease);
    snprintf(lease.name, sizeof lease.name, "%s", name);
    snprintf(lease.incarnation, sizeof lease.incarnation, "%016x", (unsigned)number);
    snprintf(lease.address, sizeof lease.address, "127.0.0.1");
    return lease;
}

/* ---- leases ------------------------------------------------------------------------------------------------------ */

static void test_lease(void)
{
    struct gw_lease lease = lease_of("n1", 1), back, *list = NULL;
    bool taken = true;
    int count = 0;
    CU_ASSERT_EQUAL(gw_lease_read(folder, "n1", &back), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(gw_lease_claim(folder, &lease, &taken), GW_OK);
    CU_ASSERT_FALSE(taken);
    lease.port = 2000;
    CU_ASSERT_EQUAL(gw_lease_claim(folder, &lease, &taken), GW_OK);
    CU_ASSERT_TRUE(taken);
    CU_ASSERT_EQUAL(gw_lease_read(folder, "n1", &back), GW_OK);
    CU_ASSERT_EQUAL(back.port, 1001); /* of the first */
    CU_ASSERT_EQUAL(gw_lease_process_runs(&back), 1);
    back.started++;
    CU_ASSERT_EQUAL(gw_lease_process_runs(&back), 0); /* another process that has got its number */
    back.started--;
    back.boot_id[0] ^= 1;
    CU_ASSERT_EQUAL(gw_lease_process_runs(&back), -1); /* another machine's: that cannot be told from here */
    lease.leaving = true;
    lease.grace_s = 2.5;
    lease.counter = INT64_C(1) << 40;
    CU_ASSERT_EQUAL(gw_lease_write(folder, &lease), GW_OK);
    CU_ASSERT_EQUAL(gw_lease_read(folder, "n1", &back), GW_OK);
    CU_ASSERT_TRUE(back.leaving && back.grace_s == 2.5 && back.counter == INT64_C(1) << 40 && back.port == 2000);
    struct gw_lease second = lease_of("n2.local-7", 2);
    CU_ASSERT_EQUAL(gw_lease_write(folder, &second), GW_OK);
    put("n3.lease", "{}", 2);                 /* says nothing */
    put("n4.lease", "{\"name\":\"n5\"}", 13); /* of another */
    put("n6.lease", "no json", 7);
    put("-n7.lease", "{}", 2);
    CU_ASSERT_EQUAL(gw_lease_read(folder, "n4", &back), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(gw_lease_read(folder, "n6", &back), GW_ERR_FORMAT);
    CU_ASSERT_EQUAL(gw_lease_list(folder, &list, &count), GW_OK);
    CU_ASSERT_EQUAL(count, 2);
    free(list);
    gw_lease_remove(folder, "n1");
    CU_ASSERT_EQUAL(gw_lease_read(folder, "n1", &back), GW_ERR_NOT_FOUND);
    empty_folder();
}

/* Every byte of a lease and of a term changed or cut off: read as something, or refused; never more. */
static void test_damage(void)
{
    struct gw_lease lease = lease_of("n1", 1), back;
    struct gw_term term = {.number = 3, .name = "n1", .incarnation = "0", .next_launch = 4}, read;
    char *text = NULL;
    size_t bytes = 0;
    bool taken;
    int refused = 0;
    for (int which = 0; which < 2; which++) {
        const char *name = which ? "supervisor.3" : "n1.lease";
        char *path = gw_asprintf("%s/%s", folder, name);
        CU_ASSERT_EQUAL(which ? gw_term_begin(folder, &term, &taken) : gw_lease_write(folder, &lease), GW_OK);
        CU_ASSERT_EQUAL_FATAL(gw_file_read(path, 1 << 16, &text, &bytes), GW_OK);
        for (size_t at = 0; at < 2 * bytes; at++) {
            char old = text[at % bytes];
            if (at >= bytes) text[at % bytes] = (char)(old ^ (1 << at % 7));
            put(name, text, at < bytes ? at : bytes);
            gw_err rc = which ? gw_term_read(folder, &read) : gw_lease_read(folder, "n1", &back);
            CU_ASSERT_TRUE(rc == GW_OK || rc == GW_ERR_FORMAT);
            refused += rc != GW_OK;
            if (at < bytes) CU_ASSERT_TRUE(rc == GW_ERR_FORMAT); /* a part of a JSON object is none */
            text[at % bytes] = old;
        }
        free(text);
        free(path);
    }
    CU_ASSERT_TRUE(refused > 0);
    empty_folder();
}

static int claim(int number)
{
    struct gw_lease lease = lease_of("n1", number);
    bool taken = true;
    return gw_lease_claim(folder, &lease, &taken) != GW_OK ? 2 : !taken;
}

/* All have seen that the agent of lease 0 is no more. */
static int take_over(int number)
{
    struct gw_lease lease = lease_of("n1", 1 + number), old = lease_of("n1", 0);
    bool taken = true;
    return gw_lease_take_over(folder, &lease, &old, &taken) != GW_OK ? 2 : !taken;
}

static void test_take_over(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct gw_lease old = lease_of("n1", 0), now;
        CU_ASSERT_EQUAL(gw_lease_write(folder, &old), GW_OK);
        CU_ASSERT_EQUAL(contend(take_over), 1);
        CU_ASSERT_EQUAL(gw_lease_read(folder, "n1", &now), GW_OK);
        CU_ASSERT_STRING_NOT_EQUAL(now.incarnation, old.incarnation);
        CU_ASSERT_EQUAL(take_over(99), 0); /* one who comes late */
        gw_lease_remove(folder, "n1");
        CU_ASSERT_EQUAL(contend(take_over), 1); /* it was removed meanwhile */
        CU_ASSERT_EQUAL(files_in_folder(), 1);
        empty_folder();
    }
}

/* ---- terms ------------------------------------------------------------------------------------------------------- */

static int begin_term(int number)
{
    struct gw_term term = {.number = 5, .next_launch = number};
    bool taken = true;
    snprintf(term.incarnation, sizeof term.incarnation, "%016x", (unsigned)number);
    return gw_term_begin(folder, &term, &taken) != GW_OK ? 2 : !taken;
}

static void test_contenders(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct gw_lease lease;
        struct gw_term term;
        CU_ASSERT_EQUAL(contend(claim), 1);
        CU_ASSERT_EQUAL(contend(begin_term), 1);
        CU_ASSERT_EQUAL(gw_lease_read(folder, "n1", &lease), GW_OK);
        CU_ASSERT_EQUAL(gw_term_read(folder, &term), GW_OK);
        char incarnation[GW_INCARNATION_BYTES];
        snprintf(incarnation, sizeof incarnation, "%016x", (unsigned)term.next_launch);
        CU_ASSERT_STRING_EQUAL(term.incarnation, incarnation); /* of one of them, as a whole */
        CU_ASSERT_EQUAL(files_in_folder(), 2);                 /* nobody leaves anything behind */
        empty_folder();
    }
}

static void test_terms(void)
{
    struct gw_term term, first = {.number = 1, .name = "n1", .incarnation = "a", .next_launch = 3, .present = -1},
                         second = {.number = 2, .name = "n2", .incarnation = "b", .state = GW_TERM_LEAVING, .since = 1};
    bool taken = true;
    CU_ASSERT_EQUAL(gw_term_read(folder, &term), GW_OK);
    CU_ASSERT_EQUAL(term.number, 0);
    CU_ASSERT_EQUAL(gw_term_begin(folder, &first, &taken), GW_OK);
    CU_ASSERT_FALSE(taken);
    CU_ASSERT_EQUAL(gw_term_begin(folder, &second, &taken), GW_OK);
    CU_ASSERT_FALSE(taken);
    first.counter = 99; /* who was supervisor and does not know that he is no more writes on */
    CU_ASSERT_EQUAL(gw_term_write(folder, &first), GW_OK);
    CU_ASSERT_EQUAL(gw_term_read(folder, &term), GW_OK);
    CU_ASSERT_TRUE(term.number == 2 && term.state == GW_TERM_LEAVING && term.since == 1 && !strcmp(term.name, "n2"));
    second.state = GW_TERM_ENDED;
    second.exit_code = 75;
    snprintf(second.reason, sizeof second.reason, "all \"nodes\"\n go");
    CU_ASSERT_EQUAL(gw_term_write(folder, &second), GW_OK);
    CU_ASSERT_EQUAL(gw_term_read(folder, &term), GW_OK);
    CU_ASSERT_TRUE(term.state == GW_TERM_ENDED && term.exit_code == 75 && !strcmp(term.reason, second.reason));
    put("supervisor.10x", "{}", 2); /* no number */
    put("supervisor.-4", "{}", 2);
    gw_term_prune(folder, 2);
    CU_ASSERT_EQUAL(gw_term_read(folder, &term), GW_OK);
    CU_ASSERT_EQUAL(term.number, 2);
    put("supervisor.7", "{", 1);
    CU_ASSERT_EQUAL(gw_term_read(folder, &term), GW_ERR_FORMAT);
    empty_folder();
}

/* Terms pass fast, and each new supervisor removes those below its own; who reads meanwhile always finds one, and never an older one than before. */
static int pass_terms(int number)
{
    struct gw_term term = {.number = 1};
    for (int64_t seen = 1; number && seen < LAST_TERM; seen = term.number)
        if (gw_term_read(folder, &term) != GW_OK || term.number < seen) return 2;
    for (bool taken; !number && term.number < LAST_TERM; gw_term_prune(folder, term.number)) {
        term.number++;
        if (gw_term_begin(folder, &term, &taken) != GW_OK || taken) return 2;
    }
    return 1;
}

static void test_passing_terms(void)
{
    struct gw_term first = {.number = 1};
    bool taken = true;
    CU_ASSERT_EQUAL(gw_term_begin(folder, &first, &taken), GW_OK);
    CU_ASSERT_EQUAL(contend(pass_terms), CONTENDERS);
    CU_ASSERT_EQUAL(files_in_folder(), 1);
    empty_folder();
}

static void test_watch(void)
{
    struct gw_watch watch = {0};
    gw_watch_note(&watch, "a", 5, 100);
    CU_ASSERT_FALSE(gw_watch_alive(&watch, 100, 3)); /* a file that lies there proves nothing */
    gw_watch_note(&watch, "a", 6, 101);
    CU_ASSERT_TRUE(gw_watch_alive(&watch, 103.9, 3));
    gw_watch_note(&watch, "a", 6, 103);
    CU_ASSERT_FALSE(gw_watch_alive(&watch, 104, 3));
    gw_watch_note(&watch, "b", 1, 104); /* a new process under the same name begins anew */
    CU_ASSERT_FALSE(gw_watch_alive(&watch, 104, 3));
    gw_watch_note(&watch, "b", 2, 105);
    CU_ASSERT_TRUE(gw_watch_alive(&watch, 105, 3));
}

static void test_names(void)
{
    char longest[GW_NAME_BYTES + 1];
    memset(longest, 'a', sizeof longest);
    longest[GW_NAME_BYTES] = 0;
    static const char *const bad[] = {"", ".", "..", ".n", "-n", "a/b", "a b", "n\n", "\303\244"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CU_ASSERT_FALSE(gw_name_valid(bad[i]));
    CU_ASSERT_FALSE(gw_name_valid(longest));
    CU_ASSERT_TRUE(gw_name_valid(longest + 1));
    CU_ASSERT_TRUE(gw_name_valid("gpu-7.local_A"));
}

/* ---- the secret -------------------------------------------------------------------------------------------------- */

static int open_secret(int number)
{
    uint8_t own[GW_SECRET_BYTES];
    char name[32];
    if (gw_secret_open(folder, own) != GW_OK) return 2;
    snprintf(name, sizeof name, "%s/seen.%d", folder, number);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
    return fd < 0 || write(fd, own, sizeof own) != (ssize_t)sizeof own ? 2 : 1;
}

static void test_secret(void)
{
    uint8_t first[GW_SECRET_BYTES], again[GW_SECRET_BYTES];
    struct stat st;
    char *path = gw_asprintf("%s/secret", folder);
    for (int round = 0; round < ROUNDS; round++) { /* all that open it at once have the same one */
        CU_ASSERT_EQUAL(contend(open_secret), CONTENDERS);
        CU_ASSERT_EQUAL(gw_secret_open(folder, first), GW_OK);
        for (int i = 0; i < CONTENDERS; i++) {
            char name[32], *text = NULL;
            size_t bytes = 0;
            snprintf(name, sizeof name, "%s/seen.%d", folder, i);
            CU_ASSERT_EQUAL(gw_file_read(name, 1000, &text, &bytes), GW_OK);
            CU_ASSERT_TRUE(bytes == sizeof first && !memcmp(text, first, sizeof first));
            free(text);
        }
        CU_ASSERT_EQUAL(files_in_folder(), CONTENDERS + 1);
        empty_folder();
    }
    mode_t before = umask(0);
    CU_ASSERT_EQUAL(gw_secret_open(folder, first), GW_OK);
    umask(before);
    CU_ASSERT_TRUE(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    CU_ASSERT_EQUAL(gw_secret_open(folder, again), GW_OK);
    CU_ASSERT_TRUE(gw_secret_equal(first, again, sizeof first));
    again[31] ^= 1;
    CU_ASSERT_FALSE(gw_secret_equal(first, again, sizeof first));
    CU_ASSERT_EQUAL(chmod(path, 0640), 0);
    CU_ASSERT_EQUAL(gw_secret_open(folder, again), GW_ERR_MISMATCH);
    CU_ASSERT_EQUAL(chmod(path, 0600), 0);
    CU_ASSERT_EQUAL(truncate(path, GW_SECRET_BYTES - 1), 0);
    CU_ASSERT_EQUAL(gw_secret_open(folder, again), GW_ERR_MISMATCH);
    CU_ASSERT_EQUAL(truncate(path, GW_SECRET_BYTES + 1), 0);
    CU_ASSERT_EQUAL(gw_secret_open(folder, again), GW_ERR_MISMATCH);
    unlink(path);
    char *elsewhere = gw_asprintf("%s/elsewhere", folder);
    put("elsewhere", first, sizeof first);
    CU_ASSERT_EQUAL(symlink(elsewhere, path), 0); /* somebody else's file by another name */
    CU_ASSERT_NOT_EQUAL(gw_secret_open(folder, again), GW_OK);
    free(elsewhere);
    free(path);
    empty_folder();
}

/* RFC 4231, case 1 and 2, with the keys filled up by zeros, which HMAC does by itself. */
static void test_mac(void)
{
    uint8_t key[GW_SECRET_BYTES] = {0}, mac[GW_SECRET_BYTES];
    static const uint8_t wanted[2][8] = {{0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53},
                                         {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e}};
    memset(key, 0x0b, 20);
    gw_secret_mac(key, "Hi There", 8, mac);
    CU_ASSERT_EQUAL(memcmp(mac, wanted[0], 8), 0);
    memset(key, 0, sizeof key);
    memcpy(key, "Jefe", 4);
    gw_secret_mac(key, "what do ya want for nothing?", 28, mac);
    CU_ASSERT_EQUAL(memcmp(mac, wanted[1], 8), 0);
}

int main(void)
{
    gw_log_set_level(GW_LOG_ERROR);
    if (!mkdtemp(folder) || CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("lease", NULL, NULL);
    CU_add_test(suite, "leases", test_lease);
    CU_add_test(suite, "damaged files", test_damage);
    CU_add_test(suite, "several at once", test_contenders);
    CU_add_test(suite, "several take a lease over", test_take_over);
    CU_add_test(suite, "terms", test_terms);
    CU_add_test(suite, "terms pass while others read", test_passing_terms);
    CU_add_test(suite, "observers", test_watch);
    CU_add_test(suite, "names", test_names);
    CU_add_test(suite, "the secret", test_secret);
    CU_add_test(suite, "codes", test_mac);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    gw_remove_tree(folder);
    return failures != 0;
}
