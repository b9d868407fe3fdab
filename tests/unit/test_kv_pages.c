/* The page table against a naive model: a million random operations, of callers that follow the protocol (hold the whole
 * prefix, release last page first) and of callers that do anything the asserts allow. Seeds are printed; GODWIT_TEST_SEED
 * repeats one. */
#include "base/mem.h"
#include "engine/kv_pages.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS GW_PAGE_TOKENS
#define MAX_PAGES 64

static uint64_t random_state;

static uint32_t next_random(uint32_t bound) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ z >> 31) % bound);
}

static void seed_random(uint64_t salt)
{
    const char *text = getenv("GODWIT_TEST_SEED");
    random_state = text ? strtoull(text, NULL, 10) : 20240607;
    printf("(seed %llu) ", (unsigned long long)random_state);
    random_state = random_state * 1000003 + salt;
}

/* ---- the model: flat arrays, linear scans ----------------------------------------------------------------------- */

struct model_page {
    int refs;
    uint64_t id, parent_id; /* 0 = not registered; 0 = start */
    uint64_t released;      /* time of the last release */
    int32_t tokens[TOKENS];
};

struct model {
    int count;
    uint64_t now, last_id, lookups, hits, evictions;
    int untouched;
    bool common;
    struct model_page page[MAX_PAGES];
};

static int model_find(struct model *m, int parent, const int32_t *tokens)
{
    uint64_t parent_id = parent < 0 ? 0 : m->page[parent].id;
    if (parent >= 0 && !parent_id) return -1;
    for (int i = 0; i < m->count; i++)
        if (m->page[i].id && m->page[i].parent_id == parent_id &&
            !memcmp(m->page[i].tokens, tokens, sizeof m->page[i].tokens))
            return i;
    return -1;
}

/* Which page an allocation evicts: -1 when one is free, -2 when all are used. */
static int model_victim(const struct model *m)
{
    int victim = -2;
    bool fruitless = !m->common && m->lookups >= GW_KV_FRUITLESS, untouched_left = false;
    for (int i = 0; i < m->count; i++) {
        if (m->page[i].refs) continue;
        if (!m->page[i].id) {
            if (i < m->untouched || !fruitless) return -1;
            untouched_left = true;
        } else if (victim < 0 || m->page[i].released < m->page[victim].released) {
            victim = i;
        }
    }
    return victim < 0 && untouched_left ? -1 : victim;
}

static void model_take(struct model *m, int page)
{
    m->page[page].refs = 1;
    if (page >= m->untouched) m->untouched = page + 1;
}

static void model_evict(struct model *m, int victim)
{
    uint64_t gone = m->page[victim].id;
    m->evictions += m->page[victim].refs == 0;
    m->page[victim].id = 0;
    for (int i = 0; i < m->count; i++)
        if (m->page[i].id && m->page[i].parent_id == gone) model_evict(m, i);
}

static void model_unref(struct model *m, int page)
{
    if (!--m->page[page].refs) m->page[page].released = ++m->now;
}

static int model_register(struct model *m, int page, int parent, const int32_t *tokens)
{
    if (parent >= 0 && !m->page[parent].id) return page;
    int same = model_find(m, parent, tokens);
    if (same >= 0) {
        m->common = true;
        m->page[same].refs++;
        model_unref(m, page);
        return same;
    }
    m->page[page].id = ++m->last_id;
    m->page[page].parent_id = parent < 0 ? 0 : m->page[parent].id;
    memcpy(m->page[page].tokens, tokens, sizeof m->page[page].tokens);
    return page;
}

/* ---- both in step ------------------------------------------------------------------------------------------------ */

struct pair {
    struct gw_kv_pages *real;
    struct model model;
    int wrong;
};

static void compare(struct pair *p)
{
    struct gw_kv_stats s = gw_kv_pages_stats(p->real);
    int used = 0, cached = 0;
    for (int i = 0; i < p->model.count; i++) {
        used += p->model.page[i].refs > 0;
        cached += !p->model.page[i].refs && p->model.page[i].id;
        p->wrong += gw_kv_pages_refs(p->real, i) != p->model.page[i].refs;
    }
    p->wrong += s.pages != p->model.count || s.used != used || s.cached != cached;
    p->wrong += s.free != p->model.count - used - cached || s.evictions != p->model.evictions;
    p->wrong += s.lookups != p->model.lookups || s.hits != p->model.hits;
    for (int i = 0; i < p->model.count; i++)
        p->wrong += gw_kv_pages_registered(p->real, i) != (p->model.page[i].id != 0);
    p->wrong += gw_kv_pages_available(p->real) != p->model.count - used;
}

static int pair_alloc(struct pair *p)
{
    int victim = model_victim(&p->model);
    if (victim >= 0) model_evict(&p->model, victim);
    int page = gw_kv_pages_alloc(p->real);
    if (victim == -2) {
        p->wrong += page != -1;
        return -1;
    }
    if (page < 0 || page >= p->model.count || p->model.page[page].refs || p->model.page[page].id) {
        p->wrong++;
        return -1;
    }
    model_take(&p->model, page);
    return page;
}

static int pair_find(struct pair *p, int parent, const int32_t *tokens)
{
    int want = model_find(&p->model, parent, tokens);
    int got = gw_kv_pages_find(p->real, parent, tokens);
    p->model.lookups++;
    p->model.hits += want >= 0;
    p->model.common |= want >= 0;
    p->wrong += want != got;
    return want == got ? got : -1;
}

static int pair_register(struct pair *p, int page, int parent, const int32_t *tokens)
{
    int want = model_register(&p->model, page, parent, tokens);
    p->wrong += gw_kv_pages_register(p->real, page, parent, tokens) != want;
    return want;
}

static void pair_ref(struct pair *p, int page)
{
    gw_kv_pages_ref(p->real, page);
    p->model.page[page].refs++;
}

static void pair_unref(struct pair *p, int page)
{
    gw_kv_pages_unref(p->real, page);
    model_unref(&p->model, page);
}

static bool pair_claim(struct pair *p, int page)
{
    struct model_page *m = &p->model.page[page];
    bool want = !m->refs && !m->id;
    p->wrong += gw_kv_pages_claim(p->real, page) != want;
    if (want) model_take(&p->model, page);
    return want;
}

static void pair_unregister(struct pair *p, int page)
{
    gw_kv_pages_unregister(p->real, page);
    if (p->model.page[page].id) model_evict(&p->model, page);
}

/* Page contents that differ in one token of 32 only, at the first or the last place. */
static void make_tokens(int32_t tokens[TOKENS], uint32_t kind)
{
    for (int i = 0; i < TOKENS; i++) tokens[i] = i;
    tokens[kind % 2 ? 0 : TOKENS - 1] = 1000 + (int32_t)(kind / 2);
}

static void pair_init(struct pair *p, int count)
{
    *p = (struct pair){.real = gw_kv_pages_create(count)};
    p->model.count = count;
}

static void pair_close(struct pair *p)
{
    compare(p);
    CU_ASSERT_EQUAL(p->wrong, 0);
    gw_kv_pages_destroy(p->real);
}

/* Anything goes that does not hit an assert: children held without parents, parents released first, stale parents. */
static void test_chaos(void)
{
    static const int counts[] = {1, 2, 5, 13, 40};
    seed_random(1);
    for (int c = 0; c < 5; c++) {
        struct pair p;
        pair_init(&p, counts[c]);
        for (int op = 0; op < 120000; op++) {
            int32_t tokens[TOKENS];
            make_tokens(tokens, next_random(6));
            int page = (int)next_random((uint32_t)counts[c]);
            int parent = (int)next_random((uint32_t)counts[c] + 1) - 1;
            struct model_page *m = &p.model.page[page];
            switch (next_random(11)) {
            case 0:
            case 1: pair_alloc(&p); break;
            case 2:
                if (m->refs || m->id) pair_ref(&p, page);
                break;
            case 3:
            case 4:
                if (m->refs) pair_unref(&p, page);
                break;
            case 5: {
                int found = pair_find(&p, parent, tokens);
                if (found >= 0 && next_random(2)) pair_ref(&p, found);
                break;
            }
            case 8: pair_claim(&p, page); break;
            case 9: /* of used pages, and now and then: it takes whole families along */
                if (m->refs && next_random(3) == 0) pair_unregister(&p, page);
                break;
            default:
                if (m->refs && !m->id && page != parent) pair_register(&p, page, parent, tokens);
            }
            compare(&p);
        }
        CU_ASSERT_TRUE(counts[c] < 5 || p.model.hits > 100);
        CU_ASSERT_TRUE(counts[c] < 5 || p.model.evictions > 100);
        pair_close(&p);
    }
}

/* Sequences as the scheduler runs them: adopt, allocate, register as pages fill, release, or give way when full. */
struct sequence {
    int length; /* pages */
    int32_t chain[MAX_PAGES];
};

static void sequence_release(struct pair *p, struct sequence *s)
{
    gw_kv_pages_unref_chain(p->real, s->chain, s->length);
    for (int i = s->length - 1; i >= 0; i--) model_unref(&p->model, s->chain[i]);
    s->length = 0;
}

/* As the scheduler does: the longest prefix that is there, as whole pages, with references. */
static int adopt(struct gw_kv_pages *pages, const int32_t *tokens, int count, int32_t *chain)
{
    int adopted = 0;
    for (int at = -1; adopted < count / TOKENS; adopted++) {
        at = gw_kv_pages_find(pages, at, tokens + (size_t)adopted * TOKENS);
        if (at < 0) break;
        gw_kv_pages_ref(pages, at);
        chain[adopted] = at;
    }
    return adopted;
}

static void sequence_start(struct pair *p, struct sequence *s)
{
    int32_t tokens[8 * TOKENS + 7];
    int count = (int)next_random(sizeof tokens / sizeof *tokens);
    for (int i = 0; i < 8; i++) {
        int32_t block[TOKENS];
        make_tokens(block, next_random(2));
        memcpy(tokens + (size_t)i * TOKENS, block, sizeof block);
    }
    for (int i = 8 * TOKENS; i < 8 * TOKENS + 7; i++) tokens[i] = 0;
    s->length = adopt(p->real, tokens, count, s->chain);
    int at = -1, want = 0;
    for (; want < count / TOKENS; want++) {
        p->model.lookups++;
        at = model_find(&p->model, at, tokens + (size_t)want * TOKENS);
        if (at < 0) break;
        p->model.hits++;
        p->model.page[at].refs++;
        p->wrong += want >= s->length || s->chain[want] != at;
    }
    p->wrong += want != s->length;
}

static bool held(const struct sequence *sequences, int page)
{
    for (int s = 0; s < 6; s++)
        for (int i = 0; i < sequences[s].length; i++)
            if (sequences[s].chain[i] == page) return true;
    return false;
}

static void test_protocol(void)
{
    seed_random(2);
    struct pair p;
    struct sequence sequences[6] = {0};
    long preempted = 0, swapped = 0, cancelled = 0, claimed = 0, ops = 0;
    pair_init(&p, 37);
    while (ops < 400000) {
        struct sequence *s = &sequences[next_random(6)];
        ops++;
        if (!s->length) sequence_start(&p, s);
        if (s->length >= 12 || (s->length && next_random(20) == 0)) {
            sequence_release(&p, s);
            compare(&p);
            continue;
        }
        if (s->length && next_random(30) == 0) { /* a step was cancelled: what it was to fill is not to be found */
            pair_unregister(&p, s->chain[next_random((uint32_t)s->length)]);
            cancelled++;
            compare(&p);
            continue;
        }
        if (next_random(10) == 0) { /* KV comes from elsewhere, under its old page number if that is free */
            int wanted = (int)next_random(37);
            claimed += pair_claim(&p, wanted);
            if (p.model.page[wanted].refs == 1 && !p.model.page[wanted].id && !held(sequences, wanted))
                s->chain[s->length++] = wanted;
            compare(&p);
            continue;
        }
        int victim = model_victim(&p.model);
        if (victim >= 0) /* under the protocol only leaves are evicted */
            for (int i = 0; i < 37; i++)
                p.wrong += p.model.page[i].id && p.model.page[i].parent_id == p.model.page[victim].id;
        int page = pair_alloc(&p);
        if (page < 0) { /* as the scheduler does: somebody gives way */
            preempted++;
            sequence_release(&p, &sequences[next_random(6)]);
            continue;
        }
        int32_t tokens[TOKENS];
        make_tokens(tokens, next_random(3));
        int parent = s->length ? s->chain[s->length - 1] : -1;
        int now = next_random(8) ? pair_register(&p, page, parent, tokens) : page;
        swapped += now != page;
        s->chain[s->length++] = now;
        compare(&p);
    }
    printf("(%ld given way, %ld shared late, %ld cancelled, %ld claimed, %llu hits, %llu evictions) ", preempted,
           swapped, cancelled, claimed, (unsigned long long)p.model.hits, (unsigned long long)p.model.evictions);
    CU_ASSERT_TRUE(preempted > 100 && swapped > 100 && cancelled > 1000 && claimed > 100 && p.model.hits > 1000 &&
                   p.model.evictions > 1000);
    for (int i = 0; i < 6; i++) sequence_release(&p, &sequences[i]);
    CU_ASSERT_EQUAL(gw_kv_pages_available(p.real), 37);
    pair_close(&p);
}

/* A parent's page id that is evicted and reused is not the former parent. */
static void test_reused_parent_id(void)
{
    int32_t a[TOKENS], b[TOKENS], c[TOKENS];
    make_tokens(a, 0), make_tokens(b, 2), make_tokens(c, 4);
    struct gw_kv_pages *pages = gw_kv_pages_create(2);
    int parent = gw_kv_pages_alloc(pages), child = gw_kv_pages_alloc(pages);
    CU_ASSERT_EQUAL(gw_kv_pages_alloc(pages), -1);
    CU_ASSERT_EQUAL(gw_kv_pages_register(pages, parent, -1, a), parent);
    CU_ASSERT_EQUAL(gw_kv_pages_register(pages, child, parent, b), child);
    CU_ASSERT_EQUAL(gw_kv_pages_find(pages, parent, b), child);
    gw_kv_pages_unref(pages, parent); /* against the protocol: the child stays held */
    CU_ASSERT_EQUAL(gw_kv_pages_alloc(pages), parent);
    CU_ASSERT_EQUAL(gw_kv_pages_find(pages, -1, a), -1);
    CU_ASSERT_EQUAL(gw_kv_pages_register(pages, parent, -1, c), parent);
    CU_ASSERT_EQUAL(gw_kv_pages_find(pages, parent, b), -1); /* b stood under a, not under c */
    gw_kv_pages_unref(pages, child);
    CU_ASSERT_EQUAL(gw_kv_pages_stats(pages).free, 1);
    gw_kv_pages_destroy(pages);
}

/* The page that a long-finished sequence shares with a recent one outlives the older sequence's own pages. */
static void test_lru_order(void)
{
    int32_t tokens[TOKENS];
    struct gw_kv_pages *pages = gw_kv_pages_create(4);
    int32_t old[3], young[2];
    for (int i = 0; i < 3; i++) {
        make_tokens(tokens, (uint32_t)i);
        old[i] = gw_kv_pages_alloc(pages);
        CU_ASSERT_EQUAL(gw_kv_pages_register(pages, old[i], i ? old[i - 1] : -1, tokens), old[i]);
    }
    gw_kv_pages_unref_chain(pages, old, 3);
    make_tokens(tokens, 0);
    CU_ASSERT_EQUAL_FATAL(adopt(pages, tokens, TOKENS, young), 1);
    CU_ASSERT_EQUAL(young[0], old[0]);
    make_tokens(tokens, 9);
    young[1] = gw_kv_pages_alloc(pages);
    CU_ASSERT_EQUAL(gw_kv_pages_register(pages, young[1], young[0], tokens), young[1]);
    gw_kv_pages_unref_chain(pages, young, 2);
    const int32_t order[4] = {old[2], old[1], young[1], old[0]};
    for (int i = 0; i < 4; i++) CU_ASSERT_EQUAL(gw_kv_pages_alloc(pages), order[i]);
    CU_ASSERT_EQUAL(gw_kv_pages_alloc(pages), -1);
    CU_ASSERT_EQUAL(gw_kv_pages_stats(pages).evictions, 4);
    gw_kv_pages_destroy(pages);
}

/* Prompts of two pages, three of which are held at a time: with nothing in common they stay with the pages of the first GW_KV_FRUITLESS of them; once one has come again,
 * new pages are taken first. */
static void test_fruitless(void)
{
    enum { PROMPTS = 3 * GW_KV_FRUITLESS, PAGES = 4 * PROMPTS };
    int32_t tokens[TOKENS], held[PROMPTS + 1][2], highest[2] = {0, 0};
    struct gw_kv_pages *pages = gw_kv_pages_create(PAGES);
    for (int i = 0; i <= PROMPTS; i++) {
        bool again = i == PROMPTS - GW_KV_FRUITLESS;
        make_tokens(tokens, again ? 2 * (uint32_t)(i - 1) : 2 * (uint32_t)i);
        CU_ASSERT_EQUAL(gw_kv_pages_find(pages, -1, tokens) >= 0, again);
        for (int p = 0; p < 2; p++) {
            held[i][p] = gw_kv_pages_alloc(pages);
            int32_t *most = &highest[i > PROMPTS - GW_KV_FRUITLESS];
            if (held[i][p] > *most) *most = held[i][p];
        }
        held[i][0] = gw_kv_pages_register(pages, held[i][0], -1, tokens);
        if (i >= 2) gw_kv_pages_unref_chain(pages, held[i - 2], 2);
    }
    struct gw_kv_stats stats = gw_kv_pages_stats(pages);
    CU_ASSERT(highest[0] < GW_KV_FRUITLESS + 8);
    CU_ASSERT(stats.evictions >= (uint64_t)(PROMPTS - 2 * GW_KV_FRUITLESS) / 2);
    CU_ASSERT(highest[1] > highest[0] + GW_KV_FRUITLESS / 2);
    gw_kv_pages_destroy(pages);
}

/* Claimed pages leave the middle, the top and the bottom of the free stack; what is used or cached cannot be claimed. */
static void test_claim(void)
{
    int32_t tokens[TOKENS];
    make_tokens(tokens, 0);
    struct gw_kv_pages *pages = gw_kv_pages_create(5);
    static const int order[] = {2, 0, 4, 3, 1};
    for (int i = 0; i < 5; i++) {
        CU_ASSERT(gw_kv_pages_claim(pages, order[i]) && !gw_kv_pages_claim(pages, order[i]));
        CU_ASSERT(gw_kv_pages_available(pages) == 4 - i && gw_kv_pages_refs(pages, order[i]) == 1);
    }
    CU_ASSERT_EQUAL(gw_kv_pages_alloc(pages), -1);
    CU_ASSERT_EQUAL(gw_kv_pages_register(pages, 3, -1, tokens), 3);
    gw_kv_pages_unref(pages, 3);
    CU_ASSERT(!gw_kv_pages_claim(pages, 3) && gw_kv_pages_registered(pages, 3)); /* cached */
    gw_kv_pages_ref(pages, 3);
    gw_kv_pages_unregister(pages, 3);
    CU_ASSERT(!gw_kv_pages_registered(pages, 3) && gw_kv_pages_find(pages, -1, tokens) == -1);
    gw_kv_pages_unref(pages, 3);
    gw_kv_pages_unref(pages, 1);
    CU_ASSERT(gw_kv_pages_claim(pages, 3) && gw_kv_pages_alloc(pages) == 1);
    gw_kv_pages_destroy(pages);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("kv_pages", NULL, NULL);
    CU_add_test(suite, "reused parent id", test_reused_parent_id);
    CU_add_test(suite, "lru order", test_lru_order);
    CU_add_test(suite, "claim", test_claim);
    CU_add_test(suite, "nothing in common", test_fruitless);
    CU_add_test(suite, "chaos against the model", test_chaos);
    CU_add_test(suite, "protocol against the model", test_protocol);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
