/* Checkpoints: saved with one partition and read with another, any flipped byte, any truncation, a disk that is full at any write, a writer
 * that is killed, manifests that are torn or gone, and the pure policy.
 *
 * A page's data are a function of its identity and the place in it, so that every half that is ever read can be checked: what is wrong
 * must not be there, and nothing else may be given.
 */
#include "base/fault.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "context/checkpoint.h"
#include "context/policy.h"

#include <CUnit/Basic.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "test_checkpoint.XXXXXX";
static char folder[64];
static uint64_t seed = 1;

static uint64_t draw(void)
{
    return gw_hash64(&seed, sizeof seed, seed++);
}

static int below(int n)
{
    return (int)(draw() % (uint64_t)n);
}

static struct gw_ckpt_model model = {.fingerprint = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
                                     .layers = 5,
                                     .kv_heads = 3,
                                     .head_dim = 4};

/* ---- pages ------------------------------------------------------------------------------------------------------------ */

enum { SEQUENCES = 6, MOST_PAGES = 8 };

/* Sequence s has the tokens of sequence s / 2 for its first pages: some are shared. */
static int32_t token(int sequence, int at)
{
    while (sequence > 0 && at < 32 * (1 + sequence % 2)) sequence /= 2;
    return sequence * 10007 + at * 7;
}

static void page_tokens(int sequence, int page, int32_t tokens[GW_PAGE_TOKENS])
{
    for (int i = 0; i < GW_PAGE_TOKENS; i++) tokens[i] = token(sequence, page * GW_PAGE_TOKENS + i);
}

static void identities_of(int sequence, struct gw_ckpt_identity identities[MOST_PAGES])
{
    int32_t tokens[MOST_PAGES * GW_PAGE_TOKENS];
    for (int i = 0; i < MOST_PAGES; i++) page_tokens(sequence, i, tokens + (size_t)i * GW_PAGE_TOKENS);
    gw_ckpt_identities(&model, tokens, MOST_PAGES * GW_PAGE_TOKENS, identities);
}

static uint16_t half_of(const struct gw_ckpt_identity *identity, int layer, int value, int head, int token_at, int dim)
{
    uint64_t key;
    memcpy(&key, identity, sizeof key);
    uint64_t x = key + (uint64_t)((((layer * 2 + value) * 16 + head) * GW_PAGE_TOKENS + token_at) * 512 + dim) *
                           0x9e3779b97f4a7c15;
    return (uint16_t)(x >> 40);
}

/* Fills the slice's halves, or (check) returns whether they are the page's. */
static bool visit(const struct gw_ckpt_identity *identity, const struct gw_ckpt_slice *slice, uint16_t *halves,
                  bool check)
{
    for (int layer = slice->layer_begin; layer < slice->layer_end; layer++)
        for (int value = 0; value < 2; value++)
            for (int head = slice->kv_begin; head < slice->kv_end; head++)
                for (int t = 0; t < GW_PAGE_TOKENS; t++)
                    for (int dim = 0; dim < model.head_dim; dim++, halves++) {
                        uint16_t right = half_of(identity, layer, value, head, t, dim);
                        if (!check) *halves = right;
                        else if (*halves != right) return false;
                    }
    return true;
}

/* ---- folders ---------------------------------------------------------------------------------------------------------- */

static void empty_folder(void)
{
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.') unlink(path);
    }
    if (d) closedir(d);
}

/* Paths of what ends in `end`, sorted by the system; the caller frees them. */
static char **list(const char *end, int *count)
{
    char **paths = NULL;
    DIR *d = opendir(folder);
    *count = 0;
    for (struct dirent *entry; d && (entry = readdir(d));) {
        size_t length = strlen(entry->d_name);
        if (length < strlen(end) || strcmp(entry->d_name + length - strlen(end), end) != 0) continue;
        paths = gw_realloc(paths, (size_t)*count + 1, sizeof *paths);
        paths[(*count)++] = gw_asprintf("%s/%s", folder, entry->d_name);
    }
    if (d) closedir(d);
    return paths;
}

static int count_files(const char *end)
{
    int count;
    char **paths = list(end, &count);
    for (int i = 0; i < count; i++) free(paths[i]);
    free(paths);
    return count;
}

static char *only_file(void)
{
    int count;
    char **paths = list(".h5", &count);
    CU_ASSERT_EQUAL_FATAL(count, 1);
    char *path = paths[0];
    free(paths);
    return path;
}

static void put_file(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CU_ASSERT_EQUAL_FATAL(gw_write_all(fd, path, data, bytes), GW_OK);
    close(fd);
}

/* ---- saving and reading ------------------------------------------------------------------------------------------------ */

enum { MOST_CUTS = 5 };

struct partition {
    int layer_cuts, head_cuts; /* number of runs */
    int layers[MOST_CUTS + 1], heads[MOST_CUTS + 1];
};

static void cut(int whole, int runs, int *ends)
{
    ends[0] = 0;
    for (int i = 1; i < runs; i++) ends[i] = ends[i - 1] + 1 + below(whole - ends[i - 1] - (runs - i));
    ends[runs] = whole;
}

static struct partition random_partition(void)
{
    struct partition p = {.layer_cuts = 1 + below(model.layers), .head_cuts = 1 + below(model.kv_heads)};
    cut(model.layers, p.layer_cuts, p.layers);
    cut(model.kv_heads, p.head_cuts, p.heads);
    return p;
}

static const struct partition whole = {1, 1, {0, 5}, {0, 3}};

static struct gw_ckpt_slice slice_of(const struct partition *p, int i)
{
    int layer = i / p->head_cuts, head = i % p->head_cuts;
    return (struct gw_ckpt_slice){p->layers[layer], p->layers[layer + 1], p->heads[head], p->heads[head + 1]};
}

static struct gw_ckpt_set *open_set(bool sweep)
{
    struct gw_ckpt_set *set = NULL;
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_set_open(dir, &model, sweep, &set), GW_OK);
    return set;
}

static struct gw_ckpt_writer *make_writer(int number, size_t part_bytes)
{
    struct gw_ckpt_writer *writer = NULL;
    struct gw_ckpt_writer_config config = {
        .dir = dir, .model = model, .writer = number, .staging_bytes = 1, .part_bytes = part_bytes, .nice = 1};
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_writer_create(&config, &writer), GW_OK);
    return writer;
}

static bool errors_expected;

/* Reports until the increment's end go to the set (NULL: are dropped). Returns the number of errors. */
static int collect(struct gw_ckpt_writer *writer, struct gw_ckpt_set *set, struct gw_ckpt_report *done)
{
    int errors = 0;
    for (struct gw_ckpt_report report;;) {
        if (!gw_ckpt_writer_poll(writer, &report)) {
            usleep(200);
            continue;
        }
        if (report.kind == GW_CKPT_FILE && set) CU_ASSERT_EQUAL(gw_ckpt_set_add(set, &report.file), GW_OK);
        gw_ckpt_file_free(&report.file);
        errors += report.kind == GW_CKPT_ERROR;
        if (report.kind == GW_CKPT_ERROR && !errors_expected) printf("%s\n", report.error);
        if (report.kind == GW_CKPT_ERROR)
            CU_ASSERT_PTR_NOT_NULL(strstr(report.error, "pages are not in the checkpoint"));
        if (report.kind != GW_CKPT_DONE) continue;
        if (done) *done = report;
        return errors;
    }
}

static void put_page(struct gw_ckpt_writer *writer, const struct gw_ckpt_slice *slice, int sequence, int page)
{
    struct gw_ckpt_identity identities[MOST_PAGES];
    int32_t tokens[GW_PAGE_TOKENS];
    uint16_t *room;
    identities_of(sequence, identities);
    page_tokens(sequence, page, tokens);
    while (!(room = gw_ckpt_writer_page(writer, slice, page ? &identities[page - 1] : NULL, tokens))) usleep(200);
    visit(&identities[page], slice, room, false);
}

/* Saves the first `pages` pages of all sequences that the set does not have, one writer per slice. Returns errors. */
static int save(struct gw_ckpt_set *set, const struct partition *p, int pages, size_t part_bytes)
{
    int errors = 0;
    uint64_t increment = gw_ckpt_set_increment(set) + 1;
    int writers = p->layer_cuts * p->head_cuts;
    struct gw_ckpt_writer *made[MOST_CUTS * MOST_CUTS];
    for (int w = 0; w < writers; w++) {
        struct gw_ckpt_slice slice = slice_of(p, w);
        made[w] = make_writer(w, part_bytes);
        gw_ckpt_writer_begin(made[w], increment);
        for (int s = 0; s < SEQUENCES; s++) {
            struct gw_ckpt_identity identities[MOST_PAGES];
            identities_of(s, identities);
            for (int page = 0; page < pages; page++)
                if (!gw_ckpt_set_has(set, &identities[page])) put_page(made[w], &slice, s, page);
        }
        gw_ckpt_writer_end(made[w]);
    }
    for (int w = 0; w < writers; w++) {
        errors += collect(made[w], set, NULL);
        CU_ASSERT_TRUE(gw_ckpt_writer_idle(made[w]));
        gw_ckpt_writer_destroy(made[w]);
    }
    return errors;
}

struct found {
    int right, absent, wrong;
};

/* Reads all pages of all sequences, in the slices of p. */
static struct found read_all(struct gw_ckpt *ckpt, const struct partition *p, int pages)
{
    struct found found = {0};
    uint16_t *halves = gw_alloc(gw_ckpt_slice_halves(&model, &(struct gw_ckpt_slice){0, 5, 0, 3}), sizeof *halves);
    for (int s = 0; s < SEQUENCES; s++) {
        struct gw_ckpt_identity identities[MOST_PAGES];
        identities_of(s, identities);
        for (int page = 0; page < pages; page++)
            for (int i = 0; i < p->layer_cuts * p->head_cuts; i++) {
                struct gw_ckpt_slice slice = slice_of(p, i);
                bool had = gw_ckpt_has(ckpt, &identities[page]);
                gw_err rc = gw_ckpt_read(ckpt, &identities[page], &slice, halves);
                if (rc == GW_OK && visit(&identities[page], &slice, halves, true)) found.right++;
                else if (rc == GW_OK) found.wrong++;
                else found.absent++;
                CU_ASSERT(rc == GW_OK || rc == GW_ERR_NOT_FOUND);
                if (rc != GW_OK) CU_ASSERT_FALSE(gw_ckpt_has(ckpt, &identities[page]));
                if (!had && p->layer_cuts * p->head_cuts == 1) CU_ASSERT_NOT_EQUAL(rc, GW_OK);
            }
    }
    free(halves);
    return found;
}

static struct found open_and_read(const struct partition *p, int pages)
{
    struct gw_ckpt *ckpt = NULL;
    struct found found = {0};
    CU_ASSERT_EQUAL(gw_ckpt_open(dir, &model, &ckpt), GW_OK);
    if (ckpt) found = read_all(ckpt, p, pages);
    gw_ckpt_close(ckpt);
    return found;
}

static void start_over(void)
{
    gw_fault_set_writes(0, 0);
    empty_folder();
}

/* One file with all pages of the first sequences, or so. */
static void make_one(int pages)
{
    start_over();
    struct gw_ckpt_set *set = open_set(true);
    CU_ASSERT_EQUAL(save(set, &whole, pages, 0), 0);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    gw_ckpt_set_close(set);
}

/* ---- tests: identities, messages ---------------------------------------------------------------------------------------- */

static void test_identity(void)
{
    struct gw_ckpt_identity a[MOST_PAGES], b[MOST_PAGES];
    struct gw_ckpt_model other = model;
    int32_t tokens[GW_PAGE_TOKENS];
    identities_of(2, a);
    identities_of(1, b);
    CU_ASSERT_EQUAL(memcmp(&a[0], &b[0], sizeof a[0]), 0); /* sequence 2 begins like 1 */
    CU_ASSERT_NOT_EQUAL(memcmp(&a[2], &b[2], sizeof a[0]), 0);
    page_tokens(2, 0, tokens);
    other.fingerprint[5] ^= 1;
    struct gw_ckpt_identity foreign = gw_ckpt_identity(&other, NULL, tokens);
    CU_ASSERT_NOT_EQUAL(memcmp(&a[0], &foreign, sizeof foreign), 0);
    struct gw_ckpt_identity later = gw_ckpt_identity(&model, &a[0], tokens);
    CU_ASSERT_NOT_EQUAL(memcmp(&a[0], &later, sizeof later), 0);
    /* names of pages on disk: they must not change from version to version */
    static const uint8_t golden[GW_CKPT_IDENTITY_BYTES] = {0x5d, 0x14, 0xc2, 0x05, 0x32, 0x24, 0xb9, 0xc1,
                                                           0x3c, 0x8b, 0x9f, 0xdf, 0x2d, 0x4c, 0x10, 0x2a};
    for (int i = 0; i < GW_PAGE_TOKENS; i++) tokens[i] = i;
    later = gw_ckpt_identity(&model, NULL, tokens);
    CU_ASSERT_EQUAL(memcmp(&later, golden, sizeof golden), 0);
}

static void test_messages(void)
{
    struct gw_buf buf = {0};
    struct gw_ckpt_identity identities[MOST_PAGES];
    identities_of(3, identities);
    struct gw_ckpt_file file = {.name = "00000007-002-0123456789abcdef.h5",
                                .bytes = 12345,
                                .hash = 77,
                                .increment = 7,
                                .writer = 2,
                                .slice = {1, 3, 0, 2},
                                .pages = MOST_PAGES,
                                .identities = identities};
    gw_ckpt_file_encode(&file, &buf);
    for (size_t bytes = 0; bytes <= buf.bytes; bytes++) {
        struct gw_reader reader = {.data = buf.data, .bytes = bytes};
        struct gw_ckpt_file copy;
        gw_err rc = gw_ckpt_file_decode(&reader, &copy);
        CU_ASSERT_EQUAL(rc, bytes == buf.bytes ? GW_OK : GW_ERR_PEER);
        if (rc == GW_OK) {
            CU_ASSERT_STRING_EQUAL(copy.name, file.name);
            CU_ASSERT(copy.bytes == 12345 && copy.hash == 77 && copy.increment == 7 && copy.writer == 2);
            CU_ASSERT(copy.slice.layer_begin == 1 && copy.slice.layer_end == 3 && copy.slice.kv_end == 2);
            CU_ASSERT_EQUAL(memcmp(copy.identities, identities, sizeof identities), 0);
        }
        gw_ckpt_file_free(&copy);
    }
    memcpy(buf.data, "../../x.h5", 11);
    struct gw_reader reader = {.data = buf.data, .bytes = buf.bytes};
    CU_ASSERT_EQUAL(gw_ckpt_file_decode(&reader, &file), GW_ERR_PEER);
    gw_buf_free(&buf);
}

/* ---- tests: saving and reading ------------------------------------------------------------------------------------------- */

static void test_partitions(void)
{
    for (int round = 0; round < 25; round++) {
        seed = (uint64_t)round * 1000 + 1;
        start_over();
        struct gw_ckpt_set *set = open_set(true);
        /* two increments, cut in two ways; files of one page, some, or all */
        static const size_t sizes[] = {1, 20000, 0};
        struct partition first = random_partition(), second = random_partition(), reader = random_partition();
        CU_ASSERT_EQUAL(save(set, &first, 3, sizes[below(3)]), 0);
        CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
        int files = gw_ckpt_set_files(set);
        CU_ASSERT_EQUAL(save(set, &second, MOST_PAGES, sizes[below(3)]), 0);
        CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
        CU_ASSERT(gw_ckpt_set_files(set) > files);
        CU_ASSERT_EQUAL(gw_ckpt_set_increment(set), 2);
        gw_ckpt_set_close(set);
        struct found found = open_and_read(&reader, MOST_PAGES);
        CU_ASSERT_EQUAL(found.right, SEQUENCES * MOST_PAGES * reader.layer_cuts * reader.head_cuts);
        if (found.wrong || found.absent) printf("\nround %d: %d wrong, %d absent\n", round, found.wrong, found.absent);
    }
}

/* Pages of several chunks. */
static void test_large_pages(void)
{
    start_over();
    model.head_dim = 512; /* a layer is 192 KiB */
    struct gw_ckpt_set *set = open_set(true);
    struct partition halves = {2, 1, {0, 4, 5}, {0, 3}}, heads = {1, 3, {0, 5}, {0, 1, 2, 3}};
    struct partition layers = {5, 1, {0, 1, 2, 3, 4, 5}, {0, 3}};
    CU_ASSERT_EQUAL(save(set, &halves, 1, 0), 0);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    gw_ckpt_set_close(set);
    CU_ASSERT_EQUAL(open_and_read(&whole, 1).right, SEQUENCES);
    CU_ASSERT_EQUAL(open_and_read(&heads, 1).right, SEQUENCES * 3);
    CU_ASSERT_EQUAL(open_and_read(&layers, 1).right, SEQUENCES * 5);
    model.head_dim = 4;
}

static void test_incremental(void)
{
    start_over();
    struct gw_ckpt_set *set = open_set(true);
    CU_ASSERT_EQUAL(save(set, &whole, 4, 0), 0);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    uint64_t bytes = gw_ckpt_set_bytes(set);
    gw_ckpt_set_close(set);
    set = open_set(true);
    CU_ASSERT_EQUAL(save(set, &whole, 4, 0), 0); /* nothing is new */
    CU_ASSERT_EQUAL(gw_ckpt_set_bytes(set), bytes);
    CU_ASSERT_EQUAL(gw_ckpt_set_files(set), 1);
    CU_ASSERT_EQUAL(save(set, &whole, 5, 0), 0);
    CU_ASSERT(gw_ckpt_set_bytes(set) > bytes && gw_ckpt_set_bytes(set) < 2 * bytes);
    gw_ckpt_set_close(set); /* not committed: does not count */
    CU_ASSERT_EQUAL(open_and_read(&whole, 5).right, SEQUENCES * 4);
    set = open_set(true); /* sweeps it */
    CU_ASSERT_EQUAL(count_files(".h5"), 1);
    gw_ckpt_set_close(set);
}

/* A page counts when all of its slices are there, whoever saved them. */
static void test_missing_slice(void)
{
    start_over();
    struct partition halves = {2, 1, {0, 2, 5}, {0, 3}};
    struct gw_ckpt_set *set = open_set(true);
    struct gw_ckpt_identity identities[MOST_PAGES];
    identities_of(0, identities);
    for (int i = 0; i < 2; i++) {
        struct gw_ckpt_slice slice = slice_of(&halves, i);
        struct gw_ckpt_writer *writer = make_writer(i, 0);
        gw_ckpt_writer_begin(writer, 1);
        put_page(writer, &slice, 0, 0);
        gw_ckpt_writer_end(writer);
        CU_ASSERT_EQUAL(collect(writer, set, NULL), 0);
        gw_ckpt_writer_destroy(writer);
        CU_ASSERT_EQUAL(gw_ckpt_set_has(set, &identities[0]), i == 1);
        CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
        /* the lower layers can be read before the page is whole */
        CU_ASSERT_EQUAL(open_and_read(&halves, 1).right / SEQUENCES, i + 1);
    }
    gw_ckpt_set_close(set);
}

/* ---- tests: the writer ----------------------------------------------------------------------------------------------------- */

static void test_writer(void)
{
    start_over();
    struct gw_ckpt_set *set = open_set(true);
    struct gw_ckpt_writer *writer = make_writer(0, 1); /* a file a page */
    struct gw_ckpt_slice all = {0, 5, 0, 3}, some = {0, 5, 1, 2};
    struct gw_ckpt_report done;
    int32_t tokens[GW_PAGE_TOKENS];
    CU_ASSERT_TRUE(gw_ckpt_writer_idle(writer));
    gw_ckpt_writer_begin(writer, 5);
    gw_ckpt_writer_end(writer); /* nothing in it */
    CU_ASSERT_EQUAL(collect(writer, set, &done), 0);
    CU_ASSERT(done.increment == 5 && done.files == 0 && done.pages == 0 && done.seconds >= 0);
    gw_ckpt_writer_begin(writer, 6);
    put_page(writer, &all, 0, 0);
    CU_ASSERT_FALSE(gw_ckpt_writer_idle(writer));
    put_page(writer, &all, 0, 1);
    gw_ckpt_writer_cancel(writer);
    put_page(writer, &some, 0, 1); /* another shape */
    gw_ckpt_writer_end(writer);
    gw_ckpt_writer_begin(writer, 7); /* while 6 is under way */
    put_page(writer, &all, 1, 2);
    gw_ckpt_writer_end(writer);
    CU_ASSERT_EQUAL(collect(writer, set, &done), 0);
    CU_ASSERT(done.increment == 6 && done.files == 2 && done.pages == 2 && done.bytes > 0 && done.cpu_s > 0);
    CU_ASSERT_EQUAL(collect(writer, set, &done), 0);
    CU_ASSERT(done.increment == 7 && done.files == 1 && done.pages == 1);
    CU_ASSERT_TRUE(gw_ckpt_writer_idle(writer));
    struct gw_ckpt_identity identities[MOST_PAGES];
    identities_of(0, identities);
    CU_ASSERT_TRUE(gw_ckpt_set_has(set, &identities[0]));
    CU_ASSERT_FALSE(gw_ckpt_set_has(set, &identities[1]));
    /* it never takes more than two parts: with more pages at once than that it says no, and yes again later */
    int refused = 0;
    gw_ckpt_writer_begin(writer, 8);
    page_tokens(0, 0, tokens);
    for (int i = 0; i < 200; i++) refused += !gw_ckpt_writer_page(writer, &all, NULL, tokens);
    CU_ASSERT(refused > 0 && refused < 199);
    gw_ckpt_writer_destroy(writer); /* in the middle of it */
    gw_ckpt_set_close(set);
    CU_ASSERT_EQUAL(count_files(".tmp"), 0);
}

struct hammer {
    pthread_t thread;
    int number;
    struct gw_ckpt *ckpt;
    struct found found;
};

static void *read_thread(void *context)
{
    struct hammer *h = context;
    for (int i = 0; i < 5; i++) h->found = read_all(h->ckpt, &whole, 3);
    return NULL;
}

/* Writers' threads and readers in one process: HDF5 is not made for that. */
static void test_threads(void)
{
    make_one(3);
    struct hammer readers[2];
    struct gw_ckpt_writer *writers[2];
    struct gw_ckpt_slice all = {0, 5, 0, 3};
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(gw_ckpt_open(dir, &model, &readers[i].ckpt), GW_OK);
        pthread_create(&readers[i].thread, NULL, read_thread, &readers[i]);
        writers[i] = make_writer(i, 1);
        gw_ckpt_writer_begin(writers[i], 2);
    }
    for (int page = 3; page < MOST_PAGES; page++)
        for (int i = 0; i < 2; i++) put_page(writers[i], &all, i, page);
    for (int i = 0; i < 2; i++) {
        gw_ckpt_writer_end(writers[i]);
        CU_ASSERT_EQUAL(collect(writers[i], NULL, NULL), 0);
        gw_ckpt_writer_destroy(writers[i]);
        pthread_join(readers[i].thread, NULL);
        CU_ASSERT_EQUAL(readers[i].found.right, SEQUENCES * 3);
        gw_ckpt_close(readers[i].ckpt);
    }
}

/* ---- tests: damage --------------------------------------------------------------------------------------------------------- */

static void test_flips(void)
{
    make_one(2);
    size_t bytes;
    char *data, *path = only_file();
    CU_ASSERT_EQUAL(gw_file_read(path, 1 << 24, &data, &bytes), GW_OK);
    int missed = 0;
    /* all of the first block, the library's own structures around it and at the end, and anywhere */
    for (int i = 0; i < 900; i++) {
        size_t at = i < 300 ? (size_t)i * 2 : i < 500 ? bytes - 1 - (size_t)(i - 300) * 3 : (size_t)(draw() % bytes);
        uint8_t bit = (uint8_t)(1 << below(8));
        data[at] = (char)(data[at] ^ bit);
        put_file(path, data, bytes);
        struct found found = open_and_read(&whole, 2);
        missed += found.right || found.wrong || !found.absent;
        if (i % 20 == 0) { /* without the manifest the file must not be taken in, either */
            char *manifest = gw_asprintf("%s/manifest.json", folder), *aside = gw_asprintf("%s/aside", folder);
            rename(manifest, aside);
            found = open_and_read(&whole, 2);
            missed += found.right || found.wrong;
            rename(aside, manifest);
            free(manifest);
            free(aside);
        }
        data[at] = (char)(data[at] ^ bit);
    }
    CU_ASSERT_EQUAL(missed, 0);
    put_file(path, data, bytes);
    CU_ASSERT_EQUAL(open_and_read(&whole, 2).right, SEQUENCES * 2);
    free(path);
    free(data);
}

static void test_truncations(void)
{
    make_one(2);
    size_t bytes;
    char *data, *path = only_file();
    CU_ASSERT_EQUAL(gw_file_read(path, 1 << 24, &data, &bytes), GW_OK);
    int missed = 0;
    for (size_t at = 0; at < bytes; at += 512) {
        put_file(path, data, at);
        struct found found = open_and_read(&whole, 2);
        missed += found.right || found.wrong;
        /* a manifest that agrees with the size does not help: the file itself does not */
        char *manifest = gw_asprintf("%s/manifest.json", folder), *aside = gw_asprintf("%s/aside", folder);
        rename(manifest, aside);
        found = open_and_read(&whole, 2);
        missed += found.right || found.wrong;
        rename(aside, manifest);
        free(manifest);
        free(aside);
    }
    put_file(path, "", 0);
    missed += open_and_read(&whole, 2).right;
    char *longer = gw_alloc(bytes + 1, 1);
    memcpy(longer, data, bytes);
    put_file(path, longer, bytes + 1);
    missed += open_and_read(&whole, 2).right;
    free(longer);
    CU_ASSERT_EQUAL(missed, 0);
    unlink(path);
    CU_ASSERT_EQUAL(open_and_read(&whole, 2).absent, SEQUENCES * 2);
    free(path);
    free(data);
}

/* One of several files is damaged: its pages are gone, with one line that names it; the others' are there. What another
 * file has, too, is read from there. */
static void test_damage_is_local(void)
{
    start_over();
    struct gw_ckpt_set *set = open_set(true);
    CU_ASSERT_EQUAL(save(set, &whole, 2, 0), 0);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    char *first = only_file(), *text, *data;
    size_t bytes;
    CU_ASSERT_EQUAL(save(set, &whole, 4, 0), 0);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    CU_ASSERT_EQUAL(gw_file_read(first, 1 << 24, &data, &bytes), GW_OK);
    data[bytes / 2] ^= 1;
    put_file(first, data, bytes);
    fflush(stderr);
    int saved = dup(2), log = open("test_checkpoint.log", O_RDWR | O_CREAT | O_TRUNC, 0666);
    dup2(log, 2);
    gw_log_set_level(GW_LOG_INFO);
    struct found found = open_and_read(&whole, 4);
    gw_log_set_level(GW_LOG_ERROR);
    dup2(saved, 2);
    close(saved);
    close(log);
    CU_ASSERT_EQUAL(found.right, SEQUENCES * 2);
    CU_ASSERT_EQUAL(found.absent, SEQUENCES * 2);
    CU_ASSERT_EQUAL(gw_file_read("test_checkpoint.log", 1 << 20, &text, &bytes), GW_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, first));
    CU_ASSERT_PTR_EQUAL(strchr(text, '\n'), text + strlen(text) - 1); /* one line */
    free(text);
    unlink("test_checkpoint.log");
    /* the whole page in a second file, and layers of it in a third */
    struct gw_ckpt_writer *writer = make_writer(9, 0);
    gw_ckpt_writer_begin(writer, 3);
    for (int s = 0; s < SEQUENCES; s++)
        for (int page = 0; page < 2; page++) put_page(writer, &(struct gw_ckpt_slice){0, 5, 0, 3}, s, page);
    put_page(writer, &(struct gw_ckpt_slice){2, 3, 0, 1}, 0, 0);
    gw_ckpt_writer_end(writer);
    CU_ASSERT_EQUAL(collect(writer, set, NULL), 0);
    gw_ckpt_writer_destroy(writer);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    gw_ckpt_set_close(set);
    CU_ASSERT_EQUAL(open_and_read(&whole, 4).right, SEQUENCES * 4);
    /* agreeing with others: one rank verifies, all leave it out */
    struct gw_ckpt *ckpt;
    int bad = 0;
    CU_ASSERT_EQUAL(gw_ckpt_open(dir, &model, &ckpt), GW_OK);
    for (int i = 0; i < gw_ckpt_files(ckpt); i++) bad += !gw_ckpt_verify(ckpt, i);
    CU_ASSERT_EQUAL(bad, 1);
    for (int i = 0; i < gw_ckpt_files(ckpt); i++) gw_ckpt_exclude(ckpt, i);
    CU_ASSERT_EQUAL(read_all(ckpt, &whole, 4).absent, SEQUENCES * 4);
    gw_ckpt_close(ckpt);
    free(first);
    free(data);
}

/* A whole file under the name of another one: the manifest knows better. */
static void test_exchanged(void)
{
    start_over();
    struct gw_ckpt_set *set = open_set(true);
    struct gw_ckpt_slice all = {0, 5, 0, 3};
    struct gw_ckpt_writer *writer = make_writer(0, 1);
    gw_ckpt_writer_begin(writer, 1);
    put_page(writer, &all, 0, 0);
    put_page(writer, &all, 1, 2);
    gw_ckpt_writer_end(writer);
    CU_ASSERT_EQUAL(collect(writer, set, NULL), 0);
    gw_ckpt_writer_destroy(writer);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    gw_ckpt_set_close(set);
    int count;
    char **paths = list(".h5", &count), *aside = gw_asprintf("%s/aside", folder);
    CU_ASSERT_EQUAL_FATAL(count, 2);
    rename(paths[0], aside);
    rename(paths[1], paths[0]);
    rename(aside, paths[1]);
    struct found found = open_and_read(&whole, 3);
    CU_ASSERT(found.right == 0 && found.wrong == 0);
    free(aside);
    for (int i = 0; i < count; i++) free(paths[i]);
    free(paths);
}

static void test_manifest(void)
{
    make_one(2);
    size_t bytes;
    char *data, *path = gw_asprintf("%s/manifest.json", folder);
    CU_ASSERT_EQUAL(gw_file_read(path, 1 << 24, &data, &bytes), GW_OK);
    int wrong = 0, lost = 0;
    /* torn anywhere, or any bit flipped: the files speak for themselves, nothing is lost */
    for (size_t at = 0; at < bytes; at += 1 + bytes / 150) {
        put_file(path, data, at);
        struct found found = open_and_read(&whole, 2);
        wrong += found.wrong;
        lost += found.right != SEQUENCES * 2;
        uint8_t bit = (uint8_t)(1 << below(8));
        data[at] = (char)(data[at] ^ bit);
        put_file(path, data, bytes);
        found = open_and_read(&whole, 2);
        wrong += found.wrong;
        lost += found.right != SEQUENCES * 2;
        data[at] = (char)(data[at] ^ bit);
    }
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT_EQUAL(lost, 0);
    /* a torn one is made anew by the leader, and nothing that it needs is swept away */
    put_file(path, data, bytes / 2);
    struct gw_ckpt_set *set = open_set(true);
    CU_ASSERT_EQUAL(gw_ckpt_set_files(set), 1);
    gw_ckpt_set_close(set);
    char *again;
    CU_ASSERT_EQUAL(gw_file_read(path, 1 << 24, &again, NULL), GW_OK);
    CU_ASSERT_STRING_EQUAL(again, data);
    free(again);
    /* absent, and the folder absent */
    unlink(path);
    CU_ASSERT_EQUAL(open_and_read(&whole, 2).right, SEQUENCES * 2);
    empty_folder();
    rmdir(folder);
    CU_ASSERT_EQUAL(open_and_read(&whole, 2).absent, SEQUENCES * 2);
    set = open_set(true);
    CU_ASSERT_EQUAL(gw_ckpt_set_files(set), 0);
    gw_ckpt_set_close(set);
    free(path);
    free(data);
}

static void test_mismatch(void)
{
    make_one(1);
    struct gw_ckpt_model other = model;
    struct gw_ckpt *ckpt;
    struct gw_ckpt_set *set;
    other.fingerprint[60] = 'x';
    CU_ASSERT_EQUAL(gw_ckpt_open(dir, &other, &ckpt), GW_ERR_MISMATCH);
    CU_ASSERT_EQUAL(gw_ckpt_set_open(dir, &other, true, &set), GW_ERR_MISMATCH);
    other = model;
    other.kv_heads++;
    CU_ASSERT_EQUAL(gw_ckpt_open(dir, &other, &ckpt), GW_ERR_MISMATCH);
    /* without a manifest each file tells: none is of this model */
    char *path = gw_asprintf("%s/manifest.json", folder);
    unlink(path);
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_open(dir, &other, &ckpt), GW_OK);
    CU_ASSERT_EQUAL(gw_ckpt_files(ckpt), 0);
    gw_ckpt_close(ckpt);
    CU_ASSERT_EQUAL(open_and_read(&whole, 1).right, SEQUENCES);
    free(path);
}

/* ---- tests: full disks, kills ------------------------------------------------------------------------------------------------ */

static void test_failing_writes(void)
{
    int failures = 0;
    errors_expected = true;
    for (int n = 1;; n++) {
        make_one(2);
        struct gw_ckpt_set *set = open_set(true);
        gw_fault_set_writes((uint64_t)n, (uint64_t)n);
        int errors = save(set, &(struct partition){1, 2, {0, 5}, {0, 1, 3}}, 4, 30000);
        gw_err rc = gw_ckpt_set_commit(set);
        gw_fault_set_writes(0, 0);
        failures += errors + (rc != GW_OK);
        struct found found = open_and_read(&whole, 4);
        CU_ASSERT_EQUAL(found.wrong, 0);
        CU_ASSERT(found.right >= SEQUENCES * 2); /* what was there before */
        CU_ASSERT_EQUAL(count_files(".tmp"), 0);
        /* the job goes on: the next increment saves what is missing */
        CU_ASSERT_EQUAL(save(set, &whole, 4, 0), 0);
        CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
        gw_ckpt_set_close(set);
        CU_ASSERT_EQUAL(open_and_read(&whole, 4).right, SEQUENCES * 4);
        if (!errors && rc == GW_OK) { /* there are not so many writes */
            CU_ASSERT_EQUAL(failures, n - 1);
            CU_ASSERT(n > 3);
            break;
        }
    }
    errors_expected = false;
}

/* A file system that takes no more than so many bytes of a file, in a child. */
static void test_file_limit(void)
{
    start_over();
    for (rlim_t limit = 0; limit < 80000; limit += 7000) {
        pid_t child = fork();
        if (child == 0) {
            errors_expected = true;
            signal(SIGXFSZ, SIG_IGN);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){limit, limit});
            struct gw_ckpt_set *set = open_set(true);
            int errors = save(set, &whole, 2, 0);
            _exit(errors == 1 ? 0 : 1);
        }
        int status;
        waitpid(child, &status, 0);
        CU_ASSERT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CU_ASSERT_EQUAL(count_files(".h5") + count_files(".tmp"), 0);
    }
}

/* kill -9 at any instant: what the manifest names is whole, the rest goes at the next opening. */
static void test_kills(void)
{
    start_over();
    int most = 0;
    for (int round = 0; round < 12; round++) {
        pid_t child = fork();
        if (child == 0) {
            struct gw_ckpt_set *set = open_set(true);
            for (int pages = 1; pages <= MOST_PAGES; pages++) {
                save(set, &whole, pages, 1);
                if (gw_ckpt_set_commit(set) != GW_OK) _exit(1);
                struct gw_ckpt_identity keep[MOST_PAGES];
                identities_of(pages % SEQUENCES, keep);
                gw_ckpt_set_prune(set, keep, MOST_PAGES, 0, NULL);
            }
            _exit(0);
        }
        usleep(500 + (useconds_t)below(25000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        struct gw_ckpt *ckpt;
        CU_ASSERT_EQUAL(gw_ckpt_open(dir, &model, &ckpt), GW_OK);
        for (int i = 0; i < gw_ckpt_files(ckpt); i++) CU_ASSERT_TRUE(gw_ckpt_verify(ckpt, i));
        struct found found = read_all(ckpt, &whole, MOST_PAGES);
        CU_ASSERT_EQUAL(found.wrong, 0);
        if (found.right > most) most = found.right;
        gw_ckpt_close(ckpt);
        struct gw_ckpt_set *set = open_set(true);
        CU_ASSERT_EQUAL(count_files(".h5"), gw_ckpt_set_files(set));
        CU_ASSERT_EQUAL(count_files(".tmp"), 0);
        gw_ckpt_set_close(set);
    }
    CU_ASSERT(most > 0);
}

/* ---- tests: leftovers, pruning ------------------------------------------------------------------------------------------------ */

static void test_leftovers(void)
{
    make_one(1);
    char *path = only_file(), *data;
    size_t bytes;
    CU_ASSERT_EQUAL(gw_file_read(path, 1 << 24, &data, &bytes), GW_OK);
    static const char *const names[] = {"00000009-001-0123456789abcdef.h5", "00000009-001-0123456789abcdee.h5.tmp",
                                        "manifest.json.tmp", "notes.txt", "other.h5"};
    char made[5][400];
    for (int i = 0; i < 5; i++) {
        snprintf(made[i], sizeof made[i], "%s/%s", folder, names[i]);
        put_file(made[i], data, bytes);
    }
    struct gw_ckpt *ckpt;
    CU_ASSERT_EQUAL(gw_ckpt_open(dir, &model, &ckpt), GW_OK); /* changes nothing */
    gw_ckpt_close(ckpt);
    gw_ckpt_set_close(open_set(false)); /* nor does this */
    for (int i = 0; i < 5; i++) CU_ASSERT_EQUAL(access(made[i], F_OK), 0);
    gw_ckpt_set_close(open_set(true));
    for (int i = 0; i < 5; i++) CU_ASSERT_EQUAL(access(made[i], F_OK) == 0, i >= 3); /* other people's stay */
    CU_ASSERT_EQUAL(access(path, F_OK), 0);
    free(path);
    free(data);
}

static void test_prune(void)
{
    start_over();
    struct gw_ckpt_set *set = open_set(true);
    struct gw_ckpt_slice all = {0, 5, 0, 3};
    struct gw_ckpt_identity a[MOST_PAGES], b[MOST_PAGES], keep[MOST_PAGES + 1];
    size_t lost = 99;
    identities_of(0, a);
    identities_of(5, b);
    for (int s = 0; s <= 5; s += 5) { /* a file for sequence 0, one for 5 */
        struct gw_ckpt_writer *writer = make_writer(s, 0);
        gw_ckpt_writer_begin(writer, 1);
        for (int page = 0; page < MOST_PAGES; page++) put_page(writer, &all, s, page);
        gw_ckpt_writer_end(writer);
        CU_ASSERT_EQUAL(collect(writer, set, NULL), 0);
        gw_ckpt_writer_destroy(writer);
    }
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    memcpy(keep, a, sizeof a);
    keep[MOST_PAGES] = b[MOST_PAGES - 1]; /* one page of the other */
    gw_ckpt_set_prune(set, keep, MOST_PAGES + 1, 0, &lost);
    CU_ASSERT(lost == 0 && gw_ckpt_set_files(set) == 2);
    gw_ckpt_set_prune(set, keep, MOST_PAGES + 1, 0.5, &lost);
    CU_ASSERT(lost == 1 && gw_ckpt_set_files(set) == 1);
    CU_ASSERT_FALSE(gw_ckpt_set_has(set, &b[MOST_PAGES - 1]));
    CU_ASSERT_EQUAL(count_files(".h5"), 2); /* until the commit */
    /* a manifest that cannot be written leaves the old set as it was */
    gw_fault_set_writes(1, 1);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_ERR_IO);
    gw_fault_set_writes(0, 0);
    CU_ASSERT_EQUAL(count_files(".h5"), 2);
    struct gw_ckpt *ckpt;
    CU_ASSERT_EQUAL(gw_ckpt_open(dir, &model, &ckpt), GW_OK);
    CU_ASSERT_TRUE(gw_ckpt_has(ckpt, &b[MOST_PAGES - 1]));
    gw_ckpt_close(ckpt);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    CU_ASSERT_EQUAL(count_files(".h5"), 1);
    CU_ASSERT_TRUE(gw_ckpt_set_has(set, &a[MOST_PAGES - 1]));
    gw_ckpt_set_prune(set, NULL, 0, 0, &lost);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    CU_ASSERT_EQUAL(count_files(".h5"), 0);
    gw_ckpt_set_close(set);
    set = open_set(true);
    CU_ASSERT_EQUAL(gw_ckpt_set_increment(set), 1); /* numbers go on */
    gw_ckpt_set_close(set);
}

static void test_inspect(void)
{
    make_one(2);
    struct gw_ckpt_info info;
    size_t bytes;
    char *path = only_file(), *data;
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_inspect(path, &info), GW_OK);
    CU_ASSERT(info.whole && info.file.pages > 0 && info.model.head_dim == 4 && info.file.slice.layer_end == 5);
    int32_t tokens[GW_PAGE_TOKENS];
    page_tokens(0, 1, tokens);
    CU_ASSERT_EQUAL(memcmp(info.tokens + GW_PAGE_TOKENS, tokens, sizeof tokens), 0);
    CU_ASSERT_EQUAL(memcmp(&info.parents[1], &info.file.identities[0], sizeof info.parents[1]), 0);
    gw_ckpt_info_free(&info);
    CU_ASSERT_EQUAL(gw_file_read(path, 1 << 24, &data, &bytes), GW_OK);
    data[bytes - 5] ^= 4;
    put_file(path, data, bytes);
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_inspect(path, &info), GW_OK);
    CU_ASSERT_FALSE(info.whole);
    CU_ASSERT_PTR_NOT_NULL(strstr(info.trouble, "is damaged: its hash is"));
    gw_ckpt_info_free(&info);
    data[3] ^= 4;
    put_file(path, data, bytes);
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_inspect(path, &info), GW_OK);
    CU_ASSERT_PTR_NOT_NULL(strstr(info.trouble, "first 512 bytes"));
    gw_ckpt_info_free(&info);
    put_file(path, "hello", 5);
    CU_ASSERT_EQUAL(gw_ckpt_inspect(path, &info), GW_ERR_FORMAT);
    unlink(path);
    CU_ASSERT_EQUAL(gw_ckpt_inspect(path, &info), GW_ERR_NOT_FOUND);
    free(path);
    free(data);
}

/* A folder: pages of two slices, one of them damaged or missing. */
static void test_inspect_folder(void)
{
    start_over();
    struct partition halves = {2, 1, {0, 2, 5}, {0, 3}};
    struct gw_ckpt_folder info;
    struct gw_ckpt_set *set = open_set(true);
    CU_ASSERT_EQUAL(gw_ckpt_inspect_folder(folder, &info), GW_ERR_NOT_FOUND);
    CU_ASSERT_EQUAL(save(set, &halves, 2, 0), 0);
    CU_ASSERT_EQUAL(gw_ckpt_set_commit(set), GW_OK);
    gw_ckpt_set_close(set);
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_inspect_folder(folder, &info), GW_OK);
    CU_ASSERT(info.file_count == 2 && info.increment == 1 && !info.damaged && !info.missing && !info.rebuilt);
    CU_ASSERT(info.pages > 2 && info.pages_whole == info.pages && info.model.kv_heads == 3);
    gw_ckpt_folder_free(&info);
    int count;
    size_t bytes;
    char *data, **paths = list(".h5", &count);
    CU_ASSERT_EQUAL(gw_file_read(paths[0], 1 << 24, &data, &bytes), GW_OK);
    data[bytes / 3] ^= 64;
    put_file(paths[0], data, bytes);
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_inspect_folder(folder, &info), GW_OK);
    CU_ASSERT(info.damaged == 1 && info.pages > 2 && info.pages_whole == 0);
    gw_ckpt_folder_free(&info);
    unlink(paths[0]);
    CU_ASSERT_EQUAL_FATAL(gw_ckpt_inspect_folder(folder, &info), GW_OK);
    CU_ASSERT(info.damaged == 0 && info.missing == 1 && info.file_count == 1);
    gw_ckpt_folder_free(&info);
    for (int i = 0; i < count; i++) free(paths[i]);
    free(paths);
    free(data);
}

/* ---- tests: policy ------------------------------------------------------------------------------------------------------------- */

static void test_interval(void)
{
    struct gw_ckpt_policy policy = gw_ckpt_policy_default();
    CU_ASSERT_EQUAL(gw_ckpt_policy_interval_s(&policy), 1); /* no cost known: soon, to find out */
    gw_ckpt_policy_cost(&policy, 0.5);
    CU_ASSERT_DOUBLE_EQUAL(gw_ckpt_policy_interval_s(&policy), sqrt(2 * 0.5 * 3600), 1e-9);
    CU_ASSERT_DOUBLE_EQUAL(gw_ckpt_policy_budget_s(&policy), 0.02 * sqrt(2 * 0.5 * 3600), 1e-9);
    CU_ASSERT(gw_ckpt_policy_worth(&policy, 60, INFINITY));
    CU_ASSERT(gw_ckpt_policy_worth(&policy, 60, 30.1)); /* 60 x 30 = 0.5 x 3600: half of an interval is left */
    CU_ASSERT(!gw_ckpt_policy_worth(&policy, 60, 29.9));
    CU_ASSERT(gw_ckpt_policy_worth(&policy, 120, 15.1)); /* more is at stake */
    policy.failures = 3;
    CU_ASSERT(gw_ckpt_policy_worth(&policy, 60, 8)); /* and more likely */
    CU_ASSERT_DOUBLE_EQUAL(gw_ckpt_policy_mtbf_s(&policy), 900, 1e-9);
    CU_ASSERT_DOUBLE_EQUAL(gw_ckpt_policy_interval_s(&policy), 30, 1e-9);
    policy.failures = 3000; /* a bad place: not more than 2 % all the same */
    CU_ASSERT_DOUBLE_EQUAL(gw_ckpt_policy_interval_s(&policy), 25, 1e-9);
    policy.failures = 0;
    policy.running_s = 1e9;
    CU_ASSERT_DOUBLE_EQUAL(gw_ckpt_policy_interval_s(&policy), 600, 1e-9);
    gw_ckpt_policy_cost(&policy, 1.5);
    CU_ASSERT_DOUBLE_EQUAL(policy.cost_s, 1, 1e-9);
}

/* Sum over pages of value times bytes written up to it. */
static double order_cost(const struct gw_ckpt_candidate *pages, int count, const int *order)
{
    double bytes = 0, cost = 0;
    for (int i = 0; i < count; i++) {
        bytes += pages[order[i]].bytes;
        cost += pages[order[i]].value_s * bytes;
    }
    return cost;
}

/* Tries all orders with parents first. */
static double best_cost(const struct gw_ckpt_candidate *pages, int count, int *order, int done, unsigned used)
{
    if (done == count) return order_cost(pages, count, order);
    double best = INFINITY;
    for (int i = 0; i < count; i++) {
        bool free_now = !(used >> i & 1) && (pages[i].parent < 0 || (used >> pages[i].parent & 1));
        if (!free_now) continue;
        order[done] = i;
        best = fmin(best, best_cost(pages, count, order, done + 1, used | 1u << i));
    }
    return best;
}

static void test_order(void)
{
    enum { MOST = 7, LONG = 20000 };
    struct gw_ckpt_candidate pages[MOST];
    int order[MOST], scratch[MOST];
    seed = 77;
    for (int round = 0; round < 300; round++) {
        int count = 1 + below(MOST);
        for (int i = 0; i < count; i++)
            pages[i] = (struct gw_ckpt_candidate){.parent = below(i + 1) - 1,
                                                  .value_s = below(6),
                                                  .bytes = 1 + below(round % 2 ? 1 : 4)};
        gw_ckpt_order(pages, count, order);
        unsigned seen = 0;
        for (int i = 0; i < count; i++) {
            CU_ASSERT(pages[order[i]].parent < 0 || (seen >> pages[order[i]].parent & 1));
            seen |= 1u << order[i];
        }
        CU_ASSERT_EQUAL(seen, (1u << count) - 1);
        CU_ASSERT_DOUBLE_EQUAL(order_cost(pages, count, order), best_cost(pages, count, scratch, 0, 0), 1e-9);
    }
    /* long chains, and a bush */
    struct gw_ckpt_candidate *many = gw_alloc(LONG, sizeof *many);
    int *large = gw_alloc(LONG, sizeof *large);
    for (int shape = 0; shape < 3; shape++) {
        for (int i = 0; i < LONG; i++)
            many[i] = (struct gw_ckpt_candidate){.parent = shape == 0   ? i - 1
                                                           : shape == 1 ? -1
                                                                        : below(i + 1) - 1,
                                                 .value_s = 1 + i % 1000,
                                                 .bytes = 1};
        gw_ckpt_order(many, LONG, large);
        char *done = gw_alloc(LONG, 1);
        int wrong = 0;
        for (int i = 0; i < LONG; i++) {
            wrong += done[large[i]] || (many[large[i]].parent >= 0 && !done[many[large[i]].parent]);
            done[large[i]] = 1;
        }
        CU_ASSERT_EQUAL(wrong, 0);
        free(done);
    }
    free(many);
    free(large);
}

int main(void)
{
    gw_log_set_level(GW_LOG_ERROR);
    if (!mkdtemp(dir)) return 1;
    snprintf(folder, sizeof folder, "%s/%s", dir, GW_CKPT_FOLDER);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("checkpoint", NULL, NULL);
    static const struct {
        const char *name;
        CU_TestFunc function;
    } tests[] = {{"identities", test_identity},
                 {"messages", test_messages},
                 {"saved with one partition, read with another", test_partitions},
                 {"pages of several chunks", test_large_pages},
                 {"incremental", test_incremental},
                 {"a slice is missing", test_missing_slice},
                 {"the writer", test_writer},
                 {"several threads", test_threads},
                 {"flipped bits", test_flips},
                 {"truncations", test_truncations},
                 {"damage is local", test_damage_is_local},
                 {"files exchanged", test_exchanged},
                 {"manifest torn, damaged, absent", test_manifest},
                 {"another model", test_mismatch},
                 {"any write fails", test_failing_writes},
                 {"file size limit", test_file_limit},
                 {"killed while writing", test_kills},
                 {"leftovers", test_leftovers},
                 {"prune", test_prune},
                 {"inspect a file", test_inspect},
                 {"inspect a folder", test_inspect_folder},
                 {"interval", test_interval},
                 {"what first", test_order}};
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (!CU_add_test(suite, tests[i].name, tests[i].function)) return 1;
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    empty_folder();
    rmdir(folder);
    rmdir(dir);
    return failures != 0;
}
