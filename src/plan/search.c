/* See search.h. */
#include "plan/search.h"

#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double NO_END_HORIZON_S = 3600;

static const char *const objective_names[GW_OBJECTIVES] = {"throughput", "deadline", "cost"};

const char *gw_objective_name(enum gw_objective objective)
{
    return (unsigned)objective < GW_OBJECTIVES ? objective_names[objective] : NULL;
}

gw_err gw_objective_parse(const char *text, enum gw_objective *objective)
{
    for (int i = 0; i < GW_OBJECTIVES; i++)
        if (!strcmp(text, objective_names[i])) {
            *objective = (enum gw_objective)i;
            return GW_OK;
        }
    return gw_fail(GW_ERR_USAGE, "objective '%s' is none of throughput, deadline, cost", text);
}

/* ---- the deal -------------------------------------------------------------------------------------------------- */

/* Devices in the order in which they are dealt out: the fast ones first and node by node, or those with most memory first. */
struct dealer {
    const struct gw_search *search;
    int *by_speed, *by_memory; /* [count] */
    int count;                 /* devices that stay */
    int *grouped, tensor;      /* by_speed, with groups of `tensor` on one node as far as possible */
    double *need;              /* [slots of a replica]: least bytes */
    int *slot_by_need;         /* [slots of a replica]: neediest first */
};

/* For qsort, which takes no context. All fields decide, so that the order is one on every machine. */
struct sortable {
    double first, second;
    int node, device;
};

static int sortable_order(const void *a, const void *b)
{
    const struct sortable *x = a, *y = b;
    if (x->first != y->first) return x->first > y->first ? -1 : 1;
    if (x->node != y->node) return x->node < y->node ? -1 : 1;
    if (x->second != y->second) return x->second > y->second ? -1 : 1;
    return x->device < y->device ? -1 : x->device > y->device;
}

static void sort_devices(const struct gw_search *in, bool by_speed, int *out, int *count)
{
    struct sortable *items = gw_alloc((size_t)in->device_count + 1, sizeof *items);
    *count = 0;
    for (int d = 0; d < in->device_count; d++) {
        const struct gw_device *device = &in->devices[d];
        double memory = (double)device->memory_bytes;
        if (device->leaving) continue;
        items[(*count)++] = (struct sortable){.first = by_speed ? device->speed : memory,
                                              .second = by_speed ? memory : device->speed,
                                              .node = device->node,
                                              .device = d};
    }
    qsort(items, (size_t)*count, sizeof *items, sortable_order);
    for (int i = 0; i < *count; i++) out[i] = items[i].device;
    free(items);
}

static void open_dealer(struct dealer *dealer, const struct gw_search *in)
{
    size_t n = (size_t)in->device_count + 1;
    *dealer = (struct dealer){.search = in};
    dealer->by_speed = gw_alloc(n, sizeof(int));
    dealer->by_memory = gw_alloc(n, sizeof(int));
    dealer->grouped = gw_alloc(n, sizeof(int));
    dealer->need = gw_alloc(n, sizeof(double));
    dealer->slot_by_need = gw_alloc(n, sizeof(int));
    sort_devices(in, true, dealer->by_speed, &dealer->count);
    sort_devices(in, false, dealer->by_memory, &dealer->count);
}

static void close_dealer(struct dealer *dealer)
{
    free(dealer->by_speed);
    free(dealer->by_memory);
    free(dealer->grouped);
    free(dealer->need);
    free(dealer->slot_by_need);
}

/* Brings the devices of each node that make up whole groups of shards to the front; those that are over come last. */
static void group_by_node(struct dealer *dealer, int tensor)
{
    const struct gw_device *devices = dealer->search->devices;
    int next = 0;
    if (dealer->tensor == tensor) return;
    dealer->tensor = tensor;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < dealer->count; i++) {
            int nth = 0, all = 0;
            for (int k = 0; k < dealer->count; k++) {
                bool same = devices[dealer->by_speed[k]].node == devices[dealer->by_speed[i]].node;
                nth += same && k < i;
                all += same;
            }
            if ((nth < all / tensor * tensor) == (pass == 0)) dealer->grouped[next++] = dealer->by_speed[i];
        }
}

/* Pages of one sequence of full length. */
static double least_pages(const struct gw_search *in)
{
    return ceil((double)in->work.context / GW_PAGE_TOKENS);
}

static double kv_share(const struct gw_search *in)
{
    return in->kv_share > 0 ? in->kv_share : 1;
}

static void find_needs(struct dealer *dealer, struct gw_layout l)
{
    const struct gw_search *in = dealer->search;
    int slots = l.tensor * l.pipeline;
    for (int slot = 0; slot < slots; slot++) {
        struct gw_place place = gw_layout_place(l, slot);
        struct gw_shard s = gw_layout_shard(in->dims, l, place.shard, place.stage);
        dealer->need[slot] = gw_shard_weight_bytes(in->dims, &s) +
                             least_pages(in) * (double)gw_shard_page_bytes(in->dims, &s) / kv_share(in);
        int at = slot; /* insertion: a replica has few slots */
        for (; at > 0 && dealer->need[dealer->slot_by_need[at - 1]] < dealer->need[slot]; at--)
            dealer->slot_by_need[at] = dealer->slot_by_need[at - 1];
        dealer->slot_by_need[at] = slot;
    }
}

/* One replica's devices, in order of speed and node, to its slots: in order if memory allows, else the neediest slot gets the largest device. */
static bool deal_replica(const struct dealer *dealer, int slots, int *devices)
{
    const struct gw_device *all = dealer->search->devices;
    bool fits = true;
    for (int i = 0; i < slots; i++) fits &= (double)all[devices[i]].memory_bytes >= dealer->need[i];
    if (fits) return true;
    struct sortable *items = gw_alloc((size_t)slots, sizeof *items);
    for (int i = 0; i < slots; i++)
        items[i] = (struct sortable){.first = (double)all[devices[i]].memory_bytes,
                                     .second = all[devices[i]].speed,
                                     .device = devices[i]};
    qsort(items, (size_t)slots, sizeof *items, sortable_order);
    fits = true;
    for (int i = 0; i < slots; i++) {
        devices[dealer->slot_by_need[i]] = items[i].device;
        fits &= items[i].first >= dealer->need[dealer->slot_by_need[i]];
    }
    free(items);
    return fits;
}

/* Replica by replica from `order`. */
static bool deal_in_order(const struct dealer *dealer, struct gw_layout l, const int *order, int *device_of_slot)
{
    int slots = l.tensor * l.pipeline;
    memcpy(device_of_slot, order, (size_t)(l.data * slots) * sizeof *order);
    for (int r = 0; r < l.data; r++)
        if (!deal_replica(dealer, slots, device_of_slot + r * slots)) return false;
    return true;
}

/* The largest devices to the neediest slot of each replica, the next ones to the next: fits whenever anything does. */
static bool deal_by_memory(const struct dealer *dealer, struct gw_layout l, int *device_of_slot)
{
    int slots = l.tensor * l.pipeline, next = 0;
    for (int i = 0; i < slots; i++)
        for (int r = 0; r < l.data; r++) {
            int slot = dealer->slot_by_need[i], device = dealer->by_memory[next++];
            if ((double)dealer->search->devices[device].memory_bytes < dealer->need[slot]) return false;
            device_of_slot[r * slots + slot] = device;
        }
    return true;
}

static bool deal(struct dealer *dealer, struct gw_layout l, int *device_of_slot)
{
    if (gw_layout_ranks(l) > dealer->count) return false;
    find_needs(dealer, l);
    group_by_node(dealer, l.tensor);
    return deal_in_order(dealer, l, dealer->grouped, device_of_slot) ||
           deal_in_order(dealer, l, dealer->by_memory, device_of_slot) || deal_by_memory(dealer, l, device_of_slot);
}

bool gw_search_deal(const struct gw_search *search, struct gw_layout layout, int *device_of_slot)
{
    struct dealer dealer;
    open_dealer(&dealer, search);
    bool ok = layout.tensor <= search->dims->ffn_atoms && layout.pipeline <= search->dims->layers &&
              deal(&dealer, layout, device_of_slot);
    close_dealer(&dealer);
    return ok;
}

/* ---- figures --------------------------------------------------------------------------------------------------- */

/* KV tokens that a replica can hold: as many pages on each device as the one with least room for them has. */
static double replica_kv_tokens(const struct gw_search *in, struct gw_layout l, const int *devices,
                                double *most_weights)
{
    double pages = INFINITY;
    for (int slot = 0; slot < l.tensor * l.pipeline; slot++) {
        struct gw_place place = gw_layout_place(l, slot);
        struct gw_shard s = gw_layout_shard(in->dims, l, place.shard, place.stage);
        double weights = gw_shard_weight_bytes(in->dims, &s), page = (double)gw_shard_page_bytes(in->dims, &s);
        double room = ((double)in->devices[devices[slot]].memory_bytes - weights) * kv_share(in);
        if (weights > *most_weights) *most_weights = weights;
        if (page > 0 && floor(room / page) < pages) pages = floor(room / page);
    }
    return pages * GW_PAGE_TOKENS;
}

/* Sequences that a replica runs at once: as the option, the requests there are, and the KV allow. */
static double running_seqs(const struct gw_search *in, struct gw_layout l, double kv_tokens)
{
    double seqs = in->work.max_seqs > 0 ? in->work.max_seqs : 1;
    double mean_tokens = in->work.prompt_tokens + in->work.output_tokens / 2 + GW_PAGE_TOKENS / 2.0;
    if (kv_tokens / mean_tokens < seqs) seqs = floor(kv_tokens / mean_tokens);
    double share = ceil(in->work.requests / l.data);
    if (in->work.requests > 0 && share < seqs) seqs = share;
    return seqs > 1 ? seqs : 1;
}

static bool like_devices(const struct gw_search *in, const int *a, const int *b, int count)
{
    for (int i = 0; i < count; i++) {
        const struct gw_device *x = &in->devices[a[i]], *y = &in->devices[b[i]];
        if (x->memory_bytes != y->memory_bytes || x->speed != y->speed) return false;
        if (i && (x->node == in->devices[a[i - 1]].node) != (y->node == in->devices[b[i - 1]].node)) return false;
    }
    return true;
}

/* Shares of the model that a place of the new layout finds on the old layout's place that has most of it. An upper bound of what can stay, which
 * costs a millionth of the matching that plan/assign.h does for the layout chosen. */
static double best_common_bytes(const struct gw_dims *m, struct gw_layout old, const struct gw_shard *s)
{
    double best = 0;
    for (int slot = 0; slot < old.tensor * old.pipeline; slot++) {
        struct gw_place place = gw_layout_place(old, slot);
        struct gw_shard o = gw_layout_shard(m, old, place.shard, place.stage), c = *s;
        if (o.layer_begin > c.layer_begin) c.layer_begin = o.layer_begin;
        if (o.layer_end < c.layer_end) c.layer_end = o.layer_end;
        if (o.kv_begin > c.kv_begin) c.kv_begin = o.kv_begin;
        if (o.kv_end < c.kv_end) c.kv_end = o.kv_end;
        if (o.ffn_begin > c.ffn_begin) c.ffn_begin = o.ffn_begin;
        if (o.ffn_end < c.ffn_end) c.ffn_end = o.ffn_end;
        if (o.vocab_begin > c.vocab_begin) c.vocab_begin = o.vocab_begin;
        if (o.vocab_end < c.vocab_end) c.vocab_end = o.vocab_end;
        if (c.layer_end < c.layer_begin) c.layer_end = c.layer_begin;
        if (c.kv_end < c.kv_begin) c.kv_end = c.kv_begin;
        if (c.ffn_end < c.ffn_begin) c.ffn_end = c.ffn_begin;
        c.last = s->last && o.last && c.vocab_end > c.vocab_begin;
        double bytes = gw_shard_weight_bytes(m, &c);
        if (bytes > best) best = bytes;
    }
    return best;
}

/* An estimate: the place that has most to fetch, over one link, and a repair. New places beyond the old ones' number fetch all they need. */
static double change_seconds(const struct gw_search *in, struct gw_layout l)
{
    struct gw_layout old = in->current;
    if (old.data < 1 || !memcmp(&old, &l, sizeof l)) return 0;
    double most = 0;
    for (int slot = 0; slot < l.tensor * l.pipeline; slot++) {
        struct gw_place place = gw_layout_place(l, slot);
        struct gw_shard s = gw_layout_shard(in->dims, l, place.shard, place.stage);
        double weights = gw_shard_weight_bytes(in->dims, &s), found = best_common_bytes(in->dims, old, &s);
        double kv = (double)gw_shard_page_bytes(in->dims, &s) / GW_PAGE_TOKENS * in->current_kv_tokens;
        if (gw_layout_ranks(l) > gw_layout_ranks(old)) found = 0;
        if (gw_layout_same_cut(old, l)) kv = 0;
        if (weights - found + kv > most) most = weights - found + kv;
    }
    double fetch_s = gw_cost_move_s(in->cost, most, true), pack_s = gw_cost_pack_s(in->cost, most, 1);
    return in->cost->repair_s + (fetch_s < pack_s ? fetch_s : pack_s);
}

/* To 20 bits: what differs by less is a tie, and not for the last bit of a sum to decide. */
static double rounded(double x)
{
    int exponent;
    double mantissa = frexp(x, &exponent);
    return ldexp(rint(mantissa * 0x1p20) * 0x1p-20, exponent);
}

static void rate(const struct gw_search *in, struct gw_layout l, const int *device_of_slot, struct gw_candidate *c)
{
    int slots = l.tensor * l.pipeline;
    double tokens_per_s = 0, kv_tokens = 0;
    *c = (struct gw_candidate){.layout = l};
    for (int r = 0; r < l.data; r++) {
        const int *devices = device_of_slot + r * slots;
        if (r == 0 || !like_devices(in, devices, devices - slots, slots)) {
            kv_tokens = replica_kv_tokens(in, l, devices, &c->weight_bytes);
            tokens_per_s = gw_cost_replica_tokens_per_s(in->cost, in->dims, l, in->devices, devices, &in->work,
                                                        running_seqs(in, l, kv_tokens));
        }
        c->tokens_per_s += tokens_per_s;
        c->kv_tokens += kv_tokens;
    }
    if (in->work.requests > 0 && in->work.requests < l.data) c->tokens_per_s *= in->work.requests / l.data;
    double price = in->price_per_hour > 0 ? in->price_per_hour : 1;
    double output = in->work.output_tokens > 1 ? in->work.output_tokens : 1;
    c->change_s = change_seconds(in, l);
    c->cost_per_million = price * l.data * slots / 3600 * 1e6 / c->tokens_per_s;
    if (in->work.requests > 0) c->seconds = in->work.requests * output / c->tokens_per_s + c->change_s;
    c->in_time = in->deadline_s > 0 && in->work.requests > 0 && c->seconds <= in->deadline_s;
    /* a change is dead time at the beginning of the horizon */
    double horizon_s = in->horizon_s > 0 ? in->horizon_s : c->seconds > 0 ? c->seconds : NO_END_HORIZON_S;
    double useful = horizon_s > c->change_s ? (horizon_s - c->change_s) / horizon_s : 1e-6;
    double per_token_s = 1 / (c->tokens_per_s * useful);
    switch (in->objective) {
    case GW_OBJECTIVE_COST: c->score = c->cost_per_million / useful; break;
    case GW_OBJECTIVE_DEADLINE: c->score = c->in_time ? c->cost_per_million / useful : per_token_s; break;
    default: c->score = per_token_s;
    }
    c->score = rounded(c->score);
}

/* ---- order ----------------------------------------------------------------------------------------------------- */

struct ranked {
    struct gw_candidate candidate;
    bool first;   /* in time, where that is the objective */
    bool current; /* the layout that is there */
    bool faster;  /* of equal scores the faster wins: of layouts that cost the same */
};

static int ranked_order(const void *a, const void *b)
{
    const struct ranked *p = a, *q = b;
    const struct gw_candidate *x = &p->candidate, *y = &q->candidate;
    int x_ranks = gw_layout_ranks(x->layout), y_ranks = gw_layout_ranks(y->layout);
    if (p->first != q->first) return p->first ? -1 : 1;
    if (x->score != y->score) return x->score < y->score ? -1 : 1;
    if (p->current != q->current) return p->current ? -1 : 1;
    if (p->faster && x->tokens_per_s != y->tokens_per_s) return x->tokens_per_s > y->tokens_per_s ? -1 : 1;
    if (x_ranks != y_ranks) return x_ranks - y_ranks;
    if (x->layout.tensor != y->layout.tensor) return x->layout.tensor - y->layout.tensor;
    return x->layout.pipeline - y->layout.pipeline;
}

struct finding {
    const struct gw_search *in;
    struct dealer dealer;
    struct ranked *found;
    size_t capacity, count;
    int *device_of_slot;
};

/* A candidate, if memory allows. */
static bool consider(struct finding *f, struct gw_layout l)
{
    const struct gw_search *in = f->in;
    if (!deal(&f->dealer, l, f->device_of_slot)) return false;
    if (f->count == f->capacity)
        f->found = gw_realloc(f->found, f->capacity = f->capacity ? 2 * f->capacity : 64, sizeof *f->found);
    struct ranked *ranked = &f->found[f->count++];
    rate(in, l, f->device_of_slot, &ranked->candidate);
    ranked->first = in->objective == GW_OBJECTIVE_DEADLINE && ranked->candidate.in_time;
    ranked->faster = in->objective == GW_OBJECTIVE_COST || ranked->first;
    ranked->current = !memcmp(&l, &in->current, sizeof l);
    return true;
}

/* The layout split in proportion to what the devices that come first in `order` have: speed, or memory. A stage has what its shards have together; all
 * replicas are cut alike, so the least of them counts. */
static struct gw_layout split_by(const struct finding *f, struct gw_layout l, const int *order, bool memory)
{
    double stage[GW_SPLIT_MOST], shard[GW_SPLIT_MOST];
    for (int p = 0; p < l.pipeline && p < GW_SPLIT_MOST; p++) stage[p] = INFINITY;
    for (int t = 0; t < l.tensor && t < GW_SPLIT_MOST; t++) shard[t] = INFINITY;
    if (l.pipeline > GW_SPLIT_MOST || l.tensor > GW_SPLIT_MOST) return l;
    for (int r = 0; r < l.data; r++)
        for (int p = 0; p < l.pipeline; p++) {
            double together = 0;
            for (int t = 0; t < l.tensor; t++) {
                const struct gw_device *device = &f->in->devices[order[(r * l.pipeline + p) * l.tensor + t]];
                double has = memory ? (double)device->memory_bytes : device->speed;
                together += has;
                if (has < shard[t]) shard[t] = has;
            }
            if (together < stage[p]) stage[p] = together;
        }
    gw_layout_split(&l, stage, shard);
    return l;
}

/* The even layout and those with splits. False: none fits. */
static bool consider_all(struct finding *f, struct gw_layout l)
{
    bool even = consider(f, l), uneven = false;
    group_by_node(&f->dealer, l.tensor);
    struct gw_layout split = split_by(f, l, even ? f->device_of_slot : f->dealer.grouped, false);
    if (!gw_layout_same_cut(split, l)) uneven = consider(f, split);
    if (even || uneven) return true;
    split = split_by(f, l, f->dealer.grouped, true);
    return !gw_layout_same_cut(split, l) && consider(f, split);
}

gw_err gw_search(const struct gw_search *in, struct gw_candidate **candidates, int *count)
{
    struct finding f = {.in = in};
    f.device_of_slot = gw_alloc((size_t)in->device_count + 1, sizeof *f.device_of_slot);
    open_dealer(&f.dealer, in);
    const int devices = f.dealer.count;
    for (int tensor = 1; tensor <= devices && tensor <= in->dims->ffn_atoms; tensor++)
        for (int pipeline = 1; tensor * pipeline <= devices && pipeline <= in->dims->layers; pipeline++)
            for (int data = 1; data * tensor * pipeline <= devices; data++) {
                struct gw_layout l = GW_LAYOUT(data, tensor, pipeline), o = in->only;
                if (o.data && (o.data != data || o.tensor != tensor || o.pipeline != pipeline)) continue;
                if (!consider_all(&f, l)) break; /* nor do more replicas fit */
            }
    close_dealer(&f.dealer);
    free(f.device_of_slot);
    *candidates = gw_alloc(f.count + 1, sizeof **candidates);
    if (f.count) qsort(f.found, f.count, sizeof *f.found, ranked_order);
    for (size_t i = 0; i < f.count; i++) (*candidates)[i] = f.found[i].candidate;
    *count = (int)f.count;
    free(f.found);
    if (f.count) return GW_OK;
    free(*candidates);
    *candidates = NULL;
    return gw_fail(
        GW_ERR_LAYOUT,
        "no layout of up to %d devices holds this model and the KV of one sequence of %d tokens; use more or larger "
        "devices, a smaller context, or a smaller model",
        devices, in->work.context);
}
