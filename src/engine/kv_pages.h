/* Bookkeeping of KV pages: who holds which, and which can be shared by sequences with a common prefix.
 *
 * Pure: no device memory, no threads. A page id (0 .. page_count-1) names the same page on every rank of a replica, in every
 * layer. The head of the replica keeps this table; the others only see page ids in steps.
 *
 * A page is *used* (reference count > 0), *cached* (count 0, but registered: its content may be adopted) or *free*.
 * A FULL page is registered under its identity: the registered page before it (or the start) and its 32 token ids. Equal
 * identity means equal content, bit for bit, since KV depends on the tokens up to it alone. Each registration gets a number
 * that is never used again, and children name their parent by that number: a page id that is evicted and reused
 * cannot be taken for the former parent.
 *
 * When no page is free, the cached page that was released longest ago is evicted. After GW_KV_FRUITLESS lookups none of which has found anything, that
 * also goes before a page that nobody has had yet: prompts that have nothing in common take no more memory than they need at once. Whatever is
 * registered under an evicted page can no longer be reached, so it is unregistered too: freed if cached, held as a private page if used. To lose leaves
 * first and one page at a time, a sequence holds all pages of its prefix and releases the last one first (gw_kv_pages_unref_chain).
 *
 * Every operation is O(1) expected, evictions amortised.
 */
#ifndef GW_ENGINE_KV_PAGES_H
#define GW_ENGINE_KV_PAGES_H

#include "base/error.h"
#include "kernels/kernels.h"

#include <stdint.h>

struct gw_kv_pages; /* opaque */

/* As many prompts without a prefix in common, and the next one has one in less than 2 % of cases (Laplace's rule of succession). */
enum { GW_KV_FRUITLESS = 64 };

struct gw_kv_stats {
    int pages; /* = free + cached + used */
    int free, cached, used;
    uint64_t lookups, hits; /* of gw_kv_pages_find */
    uint64_t evictions;     /* cached pages that lost their content */
};

struct gw_kv_pages *gw_kv_pages_create(int page_count);
void gw_kv_pages_destroy(struct gw_kv_pages *pages);

/* A page with reference count 1 and content to be written, or -1 when all pages are used. May evict cached pages. */
int gw_kv_pages_alloc(struct gw_kv_pages *pages);
/* Pages that gw_kv_pages_alloc could still hand out. */
int gw_kv_pages_available(const struct gw_kv_pages *pages);

/* Takes a certain page if it is free: false when it is not. */
bool gw_kv_pages_claim(struct gw_kv_pages *pages, int page);

/* ref: of a used or cached page. unref: of a used page; the last one leaves it cached (registered) or frees it. */
void gw_kv_pages_ref(struct gw_kv_pages *pages, int page);
void gw_kv_pages_unref(struct gw_kv_pages *pages, int page);
/* Releases a sequence's page table, last page first. */
void gw_kv_pages_unref_chain(struct gw_kv_pages *pages, const int32_t *chain, int count);
int gw_kv_pages_refs(const struct gw_kv_pages *pages, int page);

/* The registered page that holds `tokens` right after `parent` (the previous page of the prefix, held by the caller; -1 at the
 * start), or -1. The caller takes its reference with gw_kv_pages_ref before it allocates anything. */
int gw_kv_pages_find(struct gw_kv_pages *pages, int parent, const int32_t tokens[GW_PAGE_TOKENS]);

/* Registers a used page, full with `tokens`, under `parent` (as above). Call it once the step that fills the page is planned:
 * steps run in order, so whoever adopts the page runs after it.
 * Returns the page that the caller holds from now on: `page`, or, when another page has this identity already, that one:
 * the reference is moved there and `page` is released. A page under an unregistered parent stays private. */
int gw_kv_pages_register(struct gw_kv_pages *pages, int page, int parent, const int32_t tokens[GW_PAGE_TOKENS]);

/* The content of a used page turns out not to be written: it, and everything registered under it, can no longer be found. */
void gw_kv_pages_unregister(struct gw_kv_pages *pages, int page);
bool gw_kv_pages_registered(const struct gw_kv_pages *pages, int page);

struct gw_kv_stats gw_kv_pages_stats(const struct gw_kv_pages *pages);

#endif
