/* See kv_pages.h. Links between pages are page ids, NONE ends a list. */
#include "engine/kv_pages.h"

#include "base/hash.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define NONE (-1)

struct page {
    uint64_t id;        /* number of this registration, 0 = not registered */
    uint64_t parent_id; /* the parent's `id`, 0 = start of a sequence */
    int32_t parent;     /* page that `parent_id` names, NONE at the start */
    int32_t refs;
    int32_t lru_prev, lru_next; /* cached pages, oldest release first; lru_prev: of a free page, the one above it */
    int32_t child_first;        /* registered pages under this one */
    int32_t sibling_prev, sibling_next; /* among the parent's children */
    int32_t next;                       /* in its hash bucket when registered, in the free stack when free */
    int32_t bucket;
    int32_t tokens[GW_PAGE_TOKENS];
};

struct gw_kv_pages {
    struct page *page; /* [count] */
    int32_t *bucket;   /* [bucket_mask + 1] -> first page */
    uint64_t bucket_mask;
    uint64_t last_id;
    int32_t free_first; /* a stack: the page that was freed last is the warmest */
    int32_t lru_first, lru_last;
    int32_t untouched; /* nobody has had this page or a later one */
    bool common;       /* somebody has come upon a page of another */
    struct gw_kv_stats stats;
};

struct gw_kv_pages *gw_kv_pages_create(int page_count)
{
    GW_ASSERT(page_count > 0);
    struct gw_kv_pages *pages = gw_alloc(1, sizeof *pages);
    size_t buckets = 16;
    while (buckets < 2 * (size_t)page_count) buckets *= 2;
    pages->bucket = gw_alloc(buckets, sizeof *pages->bucket);
    for (size_t i = 0; i < buckets; i++) pages->bucket[i] = NONE;
    pages->bucket_mask = buckets - 1;
    pages->page = gw_alloc((size_t)page_count, sizeof *pages->page);
    for (int i = 0; i < page_count; i++) {
        struct page *p = &pages->page[i];
        p->next = i + 1 < page_count ? i + 1 : NONE;
        p->parent = p->lru_next = p->child_first = p->sibling_prev = p->sibling_next = NONE;
        p->lru_prev = i - 1;
    }
    pages->lru_first = pages->lru_last = NONE;
    pages->stats.pages = pages->stats.free = page_count;
    return pages;
}

void gw_kv_pages_destroy(struct gw_kv_pages *pages)
{
    if (!pages) return;
    free(pages->page);
    free(pages->bucket);
    free(pages);
}

static struct page *page_at(const struct gw_kv_pages *pages, int page)
{
    GW_ASSERT(page >= 0 && page < pages->stats.pages);
    return &pages->page[page];
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

static void lru_append(struct gw_kv_pages *pages, int32_t at)
{
    struct page *p = &pages->page[at];
    p->lru_prev = pages->lru_last;
    p->lru_next = NONE;
    if (pages->lru_last != NONE) pages->page[pages->lru_last].lru_next = at;
    else pages->lru_first = at;
    pages->lru_last = at;
    pages->stats.cached++;
}

static void lru_remove(struct gw_kv_pages *pages, int32_t at)
{
    struct page *p = &pages->page[at];
    if (p->lru_prev != NONE) pages->page[p->lru_prev].lru_next = p->lru_next;
    else pages->lru_first = p->lru_next;
    if (p->lru_next != NONE) pages->page[p->lru_next].lru_prev = p->lru_prev;
    else pages->lru_last = p->lru_prev;
    p->lru_prev = p->lru_next = NONE;
    pages->stats.cached--;
}

static void free_push(struct gw_kv_pages *pages, int32_t at)
{
    pages->page[at].next = pages->free_first;
    pages->page[at].lru_prev = NONE;
    if (pages->free_first != NONE) pages->page[pages->free_first].lru_prev = at;
    pages->free_first = at;
    pages->stats.free++;
}

static void free_remove(struct gw_kv_pages *pages, int32_t at)
{
    struct page *p = &pages->page[at];
    if (p->lru_prev != NONE) pages->page[p->lru_prev].next = p->next;
    else pages->free_first = p->next;
    if (p->next != NONE) pages->page[p->next].lru_prev = p->lru_prev;
    p->lru_prev = p->next = NONE;
    pages->stats.free--;
}

static void child_add(struct gw_kv_pages *pages, int32_t parent, int32_t at)
{
    struct page *p = &pages->page[at];
    p->parent = parent;
    p->sibling_prev = p->sibling_next = NONE;
    if (parent == NONE) return;
    p->sibling_next = pages->page[parent].child_first;
    if (p->sibling_next != NONE) pages->page[p->sibling_next].sibling_prev = at;
    pages->page[parent].child_first = at;
}

static void child_remove(struct gw_kv_pages *pages, int32_t at)
{
    struct page *p = &pages->page[at];
    if (p->sibling_next != NONE) pages->page[p->sibling_next].sibling_prev = p->sibling_prev;
    if (p->sibling_prev != NONE) pages->page[p->sibling_prev].sibling_next = p->sibling_next;
    else if (p->parent != NONE) pages->page[p->parent].child_first = p->sibling_next;
    p->parent = p->sibling_prev = p->sibling_next = NONE;
}

/* ---- the prefix table ------------------------------------------------------------------------------------------- */

static int32_t bucket_of(const struct gw_kv_pages *pages, uint64_t parent_id, const int32_t *tokens)
{
    return (int32_t)(gw_hash64(tokens, GW_PAGE_TOKENS * sizeof *tokens, parent_id) & pages->bucket_mask);
}

static int32_t lookup(const struct gw_kv_pages *pages, uint64_t parent_id, const int32_t *tokens, int32_t bucket)
{
    for (int32_t at = pages->bucket[bucket]; at != NONE; at = pages->page[at].next) {
        const struct page *p = &pages->page[at];
        if (p->parent_id == parent_id && !memcmp(p->tokens, tokens, sizeof p->tokens)) return at;
    }
    return NONE;
}

/* Takes a page without registered children out of the table; frees it if nobody holds it. */
static void unregister_leaf(struct gw_kv_pages *pages, int32_t at)
{
    struct page *p = &pages->page[at];
    int32_t *link = &pages->bucket[p->bucket];
    while (*link != at) link = &pages->page[*link].next;
    *link = p->next;
    child_remove(pages, at);
    p->id = 0;
    if (p->refs) return;
    lru_remove(pages, at);
    free_push(pages, at);
    pages->stats.evictions++;
}

/* The same with everything registered under it, deepest first: without its parent no child can be found again. */
static void unregister_tree(struct gw_kv_pages *pages, int32_t root)
{
    for (int32_t at = root;;) {
        int32_t child = pages->page[at].child_first;
        if (child != NONE) {
            at = child;
            continue;
        }
        int32_t parent = pages->page[at].parent;
        unregister_leaf(pages, at);
        if (at == root) return;
        at = parent;
    }
}

/* The registration number that children of `parent` carry; false when the parent is not registered. */
static bool parent_number(const struct gw_kv_pages *pages, int parent, uint64_t *id)
{
    *id = parent == NONE ? 0 : page_at(pages, parent)->id;
    return parent == NONE || *id;
}

int gw_kv_pages_find(struct gw_kv_pages *pages, int parent, const int32_t tokens[GW_PAGE_TOKENS])
{
    uint64_t parent_id;
    pages->stats.lookups++;
    if (!parent_number(pages, parent, &parent_id)) return NONE;
    int32_t at = lookup(pages, parent_id, tokens, bucket_of(pages, parent_id, tokens));
    pages->stats.hits += at != NONE;
    pages->common |= at != NONE;
    return at;
}

int gw_kv_pages_register(struct gw_kv_pages *pages, int page, int parent, const int32_t tokens[GW_PAGE_TOKENS])
{
    struct page *p = page_at(pages, page);
    GW_ASSERT(p->refs > 0 && !p->id && page != parent);
    uint64_t parent_id;
    if (!parent_number(pages, parent, &parent_id)) return page;
    int32_t bucket = bucket_of(pages, parent_id, tokens);
    int32_t same = lookup(pages, parent_id, tokens, bucket);
    if (same != NONE) {
        pages->common = true;
        gw_kv_pages_ref(pages, same);
        gw_kv_pages_unref(pages, page);
        return same;
    }
    p->id = ++pages->last_id;
    p->parent_id = parent_id;
    memcpy(p->tokens, tokens, sizeof p->tokens);
    child_add(pages, parent, page);
    p->bucket = bucket;
    p->next = pages->bucket[bucket];
    pages->bucket[bucket] = page;
    return page;
}

/* ---- holding pages ---------------------------------------------------------------------------------------------- */

static void take(struct gw_kv_pages *pages, int32_t at)
{
    free_remove(pages, at);
    pages->stats.used++;
    pages->page[at].refs = 1;
    if (at >= pages->untouched) pages->untouched = at + 1;
}

int gw_kv_pages_alloc(struct gw_kv_pages *pages)
{
    bool fruitless = !pages->common && pages->stats.lookups >= GW_KV_FRUITLESS;
    bool wanting = pages->free_first == NONE || (fruitless && pages->free_first >= pages->untouched);
    if (wanting && pages->lru_first != NONE) unregister_tree(pages, pages->lru_first);
    if (pages->free_first == NONE) return NONE;
    int32_t at = pages->free_first;
    take(pages, at);
    return at;
}

bool gw_kv_pages_claim(struct gw_kv_pages *pages, int page)
{
    struct page *p = page_at(pages, page);
    if (p->refs || p->id) return false;
    take(pages, page);
    return true;
}

void gw_kv_pages_unregister(struct gw_kv_pages *pages, int page)
{
    if (page_at(pages, page)->id) unregister_tree(pages, page);
}

bool gw_kv_pages_registered(const struct gw_kv_pages *pages, int page)
{
    return page_at(pages, page)->id != 0;
}

int gw_kv_pages_available(const struct gw_kv_pages *pages)
{
    return pages->stats.free + pages->stats.cached;
}

void gw_kv_pages_ref(struct gw_kv_pages *pages, int page)
{
    struct page *p = page_at(pages, page);
    GW_ASSERT((p->refs > 0 || p->id) && p->refs < INT32_MAX);
    if (p->refs++) return;
    lru_remove(pages, page);
    pages->stats.used++;
}

void gw_kv_pages_unref(struct gw_kv_pages *pages, int page)
{
    struct page *p = page_at(pages, page);
    GW_ASSERT(p->refs > 0);
    if (--p->refs) return;
    pages->stats.used--;
    if (p->id) lru_append(pages, page);
    else free_push(pages, page);
}

void gw_kv_pages_unref_chain(struct gw_kv_pages *pages, const int32_t *chain, int count)
{
    for (int i = count - 1; i >= 0; i--) gw_kv_pages_unref(pages, chain[i]);
}

int gw_kv_pages_refs(const struct gw_kv_pages *pages, int page)
{
    return page_at(pages, page)->refs;
}

struct gw_kv_stats gw_kv_pages_stats(const struct gw_kv_pages *pages)
{
    return pages->stats;
}
