/* A world of ranks in one process that changes its layout: real plans (job/planning), real movers, real backends; messages go through queues here, and
 * the ranks take their turns at random. Ranks come and go, replicas split and merge, weights come from peers or the model file, memory is ample or
 * hardly more than the old or the new place needs. Then every weight must be that of a fresh backend, and every KV page the one that the new head asked
 * for, byte for byte; and where memory is tight no rank may ever have held more than it has, by the mover's count and by the kernel's.
 * GODWIT_TEST_SEED repeats a seed.
 */
#include "comm/comm.h"
#include "engine/cpu.h"
#include "engine/kv_pages.h"
#include "job/mover.h"
#include "job/planning.h"
#include "support/tiny_model.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { MOST_RANKS = 8, MOST_WAITING = 4096, CONTEXT = 256, MOST_SEQS = 4 };

static uint64_t random_state, seed = 20261123;

static uint64_t mix(uint64_t z) /* splitmix64 */
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int next_int(int bound)
{
    return (int)((mix(random_state += 0x9E3779B97F4A7C15u) >> 32) * (uint64_t)bound >> 32);
}

/* ---- messages in place of MPI -------------------------------------------------------------------------------------- */

struct gw_comm {
    int rank;
};

struct waiting {
    int from, to;
    enum gw_msg_kind kind;
    uint64_t step;
    uint8_t *data;
    size_t bytes;
};

static struct waiting queue[MOST_WAITING];
static int queued;

int gw_comm_rank(const struct gw_comm *comm)
{
    return comm->rank;
}

gw_err gw_comm_send(struct gw_comm *comm, int to, enum gw_msg_kind kind, uint64_t step, const void *data, size_t bytes)
{
    CU_ASSERT_FATAL(queued < MOST_WAITING);
    struct waiting *w = &queue[queued++];
    *w = (struct waiting){.from = comm->rank, .to = to, .kind = kind, .step = step, .bytes = bytes};
    w->data = malloc(bytes + 1);
    if (bytes) memcpy(w->data, data, bytes);
    return GW_OK;
}

/* The first that fits: messages of one sender and kind do not overtake. */
gw_err gw_comm_poll(struct gw_comm *comm, int from, enum gw_msg_kind kind, struct gw_msg *msg, bool *got)
{
    *got = false;
    for (int i = 0; i < queued && !*got; i++) {
        struct waiting *w = &queue[i];
        if (w->to != comm->rank || w->kind != kind || (from >= 0 && w->from != from)) continue;
        *msg = (struct gw_msg){
            .source = w->from, .kind = kind, .step = w->step, .data = w->data, .bytes = w->bytes, .memory = w->data};
        memmove(w, w + 1, (size_t)(--queued - i) * sizeof *w);
        *got = true;
    }
    return GW_OK;
}

void gw_msg_free(struct gw_msg *msg)
{
    free(msg->memory);
    *msg = (struct gw_msg){0};
}

/* As if little fitted into the network: senders wait for receivers all the time. */
size_t gw_comm_pending_bytes(const struct gw_comm *comm)
{
    size_t bytes = 0;
    for (int i = 0; i < queued; i++)
        if (queue[i].from == comm->rank && queue[i].kind == GW_MSG_SLICE) bytes += queue[i].bytes << 9;
    return bytes;
}

gw_err gw_comm_wait(struct gw_comm *comm, int from, enum gw_msg_kind kind, int64_t step, struct gw_msg *msg)
{
    (void)comm, (void)from, (void)kind, (void)step, (void)msg;
    return GW_ERR_PEER;
}

gw_err gw_comm_look(struct gw_comm *comm)
{
    (void)comm;
    return GW_OK;
}

void gw_comm_beat(struct gw_comm *comm)
{
    (void)comm;
}

bool gw_comm_idle(struct gw_comm *comm, bool busy)
{
    (void)comm, (void)busy;
    return false;
}

double gw_comm_patience_s(const struct gw_comm *comm)
{
    (void)comm;
    return 1;
}

uint64_t gw_comm_epoch(const struct gw_comm *comm)
{
    (void)comm;
    return 0;
}

/* ---- a world ------------------------------------------------------------------------------------------------------- */

struct model {
    struct gw_buf file;
    struct gw_model *model;
    struct gw_dims dims;
};

struct rank {
    struct gw_comm comm;
    struct gw_team team_before, team;
    struct gw_executor *before, *now; /* the same in a replica that is kept */
    struct gw_mover *mover;
    uint64_t most; /* resident, of weights and KV */
};

struct world {
    const struct model *m;
    struct gw_job_options options;
    struct gw_planning planning;
    struct gw_hello hellos[MOST_RANKS];
    bool active[MOST_RANKS];
    struct rank ranks[MOST_RANKS];
    int count, kv_pages; /* pages: before */
    struct gw_plan plan;
    struct gw_page_map maps[64];
};

static void open_model(struct model *m, int layers, int kv_heads, enum gw_type type)
{
    struct gw_tiny_spec spec = gw_tiny_default(type);
    *m = (struct model){0};
    spec.layers = layers;
    spec.kv_heads = kv_heads;
    spec.heads = 2 * kv_heads;
    spec.vocab = 600;
    spec.tied = false;
    spec.seed = (uint64_t)layers;
    CU_ASSERT_FATAL(gw_tiny_build(&spec, &m->file) == GW_OK);
    CU_ASSERT_FATAL(gw_model_parse("tiny", m->file.data, m->file.bytes, &m->model) == GW_OK);
    m->dims = gw_executor_dims(m->model);
}

static void close_model(struct model *m)
{
    gw_model_close(m->model);
    gw_buf_free(&m->file);
}

/* What lies in a page of an old replica: halves [key|value][kv_head][token][dim]. */
static void make_page(const struct world *w, int replica, int layer, int page, int kv_begin, int kv_end, uint16_t *out)
{
    size_t plane = (size_t)GW_PAGE_TOKENS * (size_t)w->m->dims.head_dim;
    for (int half = 0; half < 2; half++)
        for (int head = kv_begin; head < kv_end; head++) {
            uint64_t at = ((uint64_t)replica << 48) + ((uint64_t)layer << 40) + ((uint64_t)page << 24) +
                          ((uint64_t)head << 8) + (uint64_t)half;
            for (size_t i = 0; i < plane; i++, out++) *out = (uint16_t)mix(at * 1000003 + i);
        }
}

static struct gw_executor *make_executor(const struct world *w, struct gw_team *team, struct gw_layout layout,
                                         struct gw_place place, int kv_pages, struct gw_executor *donor,
                                         const bool *awaited)
{
    struct gw_executor *executor = NULL;
    team->layout = layout;
    team->place = place;
    if (!team->ranks) team->ranks = calloc((size_t)gw_layout_ranks(layout) + 1, sizeof(int));
    struct gw_executor_config config = {.model = w->m->model,
                                        .team = team,
                                        .threads = 1,
                                        .local_size = 1,
                                        .kv_pages = kv_pages,
                                        .max_rows = 8,
                                        .max_context = CONTEXT,
                                        .donor = donor,
                                        .awaited = awaited};
    CU_ASSERT_FATAL(gw_executor_create(&config, &executor) == GW_OK);
    return executor;
}

static struct gw_layout random_layout(const struct gw_dims *dims, int most)
{
    for (;;) {
        struct gw_layout l = GW_LAYOUT(1 + next_int(3), 1 + next_int(3), 1 + next_int(4));
        if (gw_layout_ranks(l) <= most && gw_layout_check(dims, l) == GW_OK) return l;
    }
}

static void hold_sequences(struct world *w, struct gw_hello *hello, int replica)
{
    int next = 0, *order = calloc((size_t)w->kv_pages, sizeof *order);
    for (int i = 0; i < w->kv_pages; i++) {
        int other = next_int(i + 1);
        order[i] = order[other], order[other] = i;
    }
    hello->held_count = next_int(MOST_SEQS + 1);
    hello->held = calloc((size_t)hello->held_count + 1, sizeof *hello->held);
    for (int i = 0; i < hello->held_count; i++) {
        struct gw_held *h = &hello->held[i];
        h->page_count = 1 + next_int(CONTEXT / GW_PAGE_TOKENS - 1);
        if (next + h->page_count > w->kv_pages) h->page_count = w->kv_pages - next;
        h->index = replica * 100 + i;
        h->computed = h->page_count * GW_PAGE_TOKENS;
        h->pages = calloc((size_t)h->page_count + 1, sizeof *h->pages);
        for (int p = 0; p < h->page_count; p++) h->pages[p] = order[next++];
        if (i && h->page_count && hello->held[0].page_count)
            h->pages[0] = hello->held[0].pages[0]; /* a shared prefix */
    }
    free(order);
}

static void seat(struct world *w, int r, struct gw_layout layout, int slot)
{
    struct gw_hello *hello = &w->hellos[r];
    struct gw_place place = gw_layout_place(layout, slot);
    hello->peer.placed = true;
    hello->peer.before = place;
    hello->plan = 7;
    hello->layout = layout;
    hello->kv_pages = w->kv_pages;
    if (place.shard == 0 && place.stage == 0) hold_sequences(w, hello, place.replica);
    w->ranks[r].before = make_executor(w, &w->ranks[r].team_before, layout, place, w->kv_pages, NULL, NULL);
    struct gw_backend *b = gw_executor_backend(w->ranks[r].before);
    struct gw_shard s = gw_executor_shard(w->ranks[r].before);
    uint16_t *page = calloc((size_t)w->m->dims.kv_heads + 1, gw_page_halves(w->m->dims.head_dim) * sizeof *page);
    for (int layer = s.layer_begin; layer < s.layer_end && s.kv_begin < s.kv_end; layer++)
        for (int p = 0; p < w->kv_pages; p++) {
            make_page(w, place.replica, layer, p, s.kv_begin, s.kv_end, page);
            CU_ASSERT_FATAL(b->ops->kv_import(b, layer, p, s.kv_begin, s.kv_end, page) == GW_OK);
        }
    free(page);
}

static uint64_t place_bytes(const struct world *w, struct gw_layout layout, int slot, int kv_pages)
{
    struct gw_place place = gw_layout_place(layout, slot);
    struct gw_shard s = gw_layout_shard(&w->m->dims, layout, place.shard, place.stage);
    return (uint64_t)gw_shard_weight_bytes(&w->m->dims, &s) + gw_shard_page_bytes(&w->m->dims, &s) * (uint64_t)kv_pages;
}

static void make_world(struct world *w, const struct model *m, const struct gw_cost *cost)
{
    *w = (struct world){.m = m, .count = 1 + next_int(MOST_RANKS)};
    w->kv_pages = CONTEXT / GW_PAGE_TOKENS * (1 + next_int(MOST_SEQS));
    struct gw_layout before = random_layout(&m->dims, w->count), now = random_layout(&m->dims, w->count);
    w->options = (struct gw_job_options){.max_seqs = MOST_SEQS, .weights = 1 + next_int(2)};
    w->planning = (struct gw_planning){.options = &w->options,
                                       .dims = m->dims,
                                       .context = CONTEXT,
                                       .hellos = w->hellos,
                                       .active = w->active,
                                       .count = w->count,
                                       .cost = cost,
                                       .number = 8,
                                       .wanted = now};
    bool tight = next_int(3) > 0;
    uint64_t most = 0, page_bytes = 0;
    for (int slot = 0; slot < gw_layout_ranks(now); slot++) {
        uint64_t bytes = place_bytes(w, now, slot, CONTEXT / GW_PAGE_TOKENS * MOST_SEQS);
        if (bytes > most) most = bytes;
        struct gw_place place = gw_layout_place(now, slot);
        struct gw_shard s = gw_layout_shard(&m->dims, now, place.shard, place.stage);
        if (gw_shard_page_bytes(&m->dims, &s) > page_bytes) page_bytes = gw_shard_page_bytes(&m->dims, &s);
    }
    w->options.kv_bytes = page_bytes * CONTEXT / GW_PAGE_TOKENS * (uint64_t)(1 + next_int(MOST_SEQS));
    for (int slot = 0; slot < gw_layout_ranks(before); slot++)
        if (place_bytes(w, before, slot, w->kv_pages) > most) most = place_bytes(w, before, slot, w->kv_pages);
    int shift = next_int(w->count), lost = next_int(4) ? -1 : next_int(w->count);
    for (int r = 0; r < w->count; r++) {
        struct gw_hello *hello = &w->hellos[r];
        int slot = (r + shift) % w->count;
        w->ranks[r].comm.rank = r;
        w->active[r] = true;
        hello->peer = (struct gw_peer){.member = r, .pid = r + 1, .slot = -1};
        snprintf(hello->peer.host, sizeof hello->peer.host, "node%d", r);
        hello->memory = tight ? most + most / 64 * (uint64_t)next_int(16) : (uint64_t)1 << 40;
        if (slot < gw_layout_ranks(before) && r != lost) seat(w, r, before, slot);
    }
}

/* ---- the change ---------------------------------------------------------------------------------------------------- */

/* As job/rank.c does it. */
static void take_place(struct world *w, int r)
{
    struct rank *rank = &w->ranks[r];
    const struct gw_plan *plan = &w->plan;
    int slot = plan->peers[r].slot;
    bool awaited[64] = {0};
    if (slot >= 0 && plan->kept[gw_layout_place(plan->layout, slot).replica] >= 0) {
        rank->now = rank->before;
    } else if (slot >= 0) {
        for (int m = 0; m < plan->move_count; m++)
            if (plan->moves[m].to == r && plan->moves[m].part != GW_PART_KV)
                awaited[plan->moves[m].part == GW_PART_OUTPUT ? w->m->dims.layers : plan->moves[m].layer] = true;
        rank->now = make_executor(w, &rank->team, plan->layout, gw_layout_place(plan->layout, slot), plan->kv_pages,
                                  rank->before, awaited);
    }
    struct gw_mover_config config = {
        .comm = &rank->comm, .plan = plan, .dims = w->m->dims, .before = rank->before, .now = rank->now};
    rank->mover = gw_mover_create(&config);
}

/* As job/head.c does it: old numbers where they are free. */
static void map_adoption(struct world *w, struct gw_kv_pages *table, int number, int head)
{
    const struct gw_adoption *adoption = &w->plan.adoptions[number];
    int32_t *map = calloc((size_t)w->kv_pages + 1, sizeof *map),
            *lists = calloc((size_t)w->kv_pages * 2 + 2, sizeof *map);
    struct gw_page_map *pages = &w->maps[number];
    struct gw_buf message = {0};
    int count = 0;
    for (int p = 0; p < w->kv_pages; p++) map[p] = -1;
    for (int h = 0; h < adoption->held_count; h++)
        for (int p = 0; p < adoption->held[h].page_count; p++) {
            int32_t old = adoption->held[h].pages[p];
            if (map[old] >= 0 || gw_kv_pages_available(table) == 0) continue;
            map[old] = old < w->plan.kv_pages && gw_kv_pages_claim(table, old) ? old : gw_kv_pages_alloc(table);
            lists[count] = old;
            lists[w->kv_pages + 1 + count++] = map[old];
        }
    *pages = (struct gw_page_map){.count = count, .from = lists, .to = lists + w->kv_pages + 1};
    gw_page_map_encode(pages->from, pages->to, count, &message);
    for (int r = 0; r < w->count; r++) {
        const struct gw_peer *peer = &w->plan.peers[r];
        bool gives = peer->placed && peer->before.replica == adoption->from;
        bool gets = peer->slot >= 0 && gw_layout_place(w->plan.layout, peer->slot).replica == adoption->to;
        if (r != head && (gives || gets))
            CU_ASSERT(gw_comm_send(&w->ranks[head].comm, r, GW_MSG_ADOPT, (uint64_t)number, message.data,
                                   message.bytes) == GW_OK);
    }
    CU_ASSERT(gw_mover_adopt(w->ranks[head].mover, number, pages) == GW_OK);
    gw_buf_free(&message);
    free(map);
}

/* Memory with something in it, of one backend's parts, and what page borders may add. */
static void add_resident(struct gw_executor *executor, const struct gw_shared **seen, int *count)
{
    struct cpu *cpu = of(gw_executor_backend(executor));
    int layers = cpu->config.shard.layer_end - cpu->config.shard.layer_begin;
    for (int l = 0; l <= layers; l++)
        for (int m = 0; m <= MATRICES; m++) {
            const struct gw_shared *memory = l == layers    ? cpu->output_memory
                                             : m < MATRICES ? cpu->layers[l].memory[m]
                                                            : cpu->layers[l].kv;
            bool known = !memory;
            for (int i = 0; i < *count && !known; i++) known = seen[i] == memory;
            if (!known) seen[(*count)++] = memory;
        }
}

static uint64_t resident_bytes(const struct rank *rank, uint64_t *borders)
{
    static unsigned char pages[1 << 16];
    const struct gw_shared *seen[1024];
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t bytes = 0;
    int count = 0;
    if (rank->before) add_resident(rank->before, seen, &count);
    if (rank->now) add_resident(rank->now, seen, &count);
    for (int i = 0; i < count; i++) {
        size_t wide = (seen[i]->bytes + page - 1) / page;
        CU_ASSERT_FATAL(wide < sizeof pages && mincore(seen[i]->data, seen[i]->bytes, pages) == 0);
        for (size_t p = 0; p < wide; p++) bytes += pages[p] & 1 ? page : 0;
    }
    *borders = (uint64_t)count * page;
    return bytes;
}

static bool all_done(const struct world *w)
{
    for (int r = 0; r < w->count; r++)
        if (!gw_mover_done(w->ranks[r].mover)) return false;
    return true;
}

static bool has_drops(const struct world *w, int r)
{
    for (int m = 0; m < w->plan.move_count; m++)
        if (w->plan.moves[m].from == r && w->plan.moves[m].to == GW_TO_NOWHERE) return true;
    return false;
}

static void run_movers(struct world *w)
{
    int idle = 0;
    while (!all_done(w) && idle < 100 * w->count) {
        int r = next_int(w->count);
        uint64_t borders;
        bool busy = false;
        CU_ASSERT_FATAL(gw_mover_poll(w->ranks[r].mover, &busy) == GW_OK);
        idle = busy ? 0 : idle + 1;
        if (!has_drops(w, r)) continue;
        uint64_t bytes = resident_bytes(&w->ranks[r], &borders);
        CU_ASSERT(bytes <= w->hellos[r].memory + borders);
        if (bytes > w->ranks[r].most) w->ranks[r].most = bytes;
    }
    CU_ASSERT_FATAL(all_done(w));
}

/* ---- what must hold in the end ------------------------------------------------------------------------------------- */

static bool same_weights(struct gw_backend *a, struct gw_backend *b, struct gw_weight_slice slice)
{
    struct gw_buf x = {0}, y = {0};
    CU_ASSERT_FATAL(a->ops->weights_export(a, &slice, &x) == GW_OK && b->ops->weights_export(b, &slice, &y) == GW_OK);
    bool same = x.bytes == y.bytes && memcmp(x.data, y.data, x.bytes) == 0;
    gw_buf_free(&x);
    gw_buf_free(&y);
    return same;
}

static void check_weights(const struct world *w, int r)
{
    struct gw_team team = {0};
    struct gw_place place = gw_layout_place(w->plan.layout, w->plan.peers[r].slot);
    struct gw_executor *fresh = make_executor(w, &team, w->plan.layout, place, 1, NULL, NULL);
    struct gw_backend *a = gw_executor_backend(w->ranks[r].now), *b = gw_executor_backend(fresh);
    struct gw_shard s = gw_executor_shard(fresh);
    for (int layer = s.layer_begin; layer < s.layer_end; layer++) {
        struct gw_weight_slice heads = {.layer = layer, .kv_begin = s.kv_begin, .kv_end = s.kv_end};
        struct gw_weight_slice atoms = {.layer = layer, .ffn_begin = s.ffn_begin, .ffn_end = s.ffn_end};
        CU_ASSERT(s.kv_begin == s.kv_end || same_weights(a, b, heads));
        CU_ASSERT(s.ffn_begin == s.ffn_end || same_weights(a, b, atoms));
    }
    struct gw_weight_slice rows = {.layer = w->m->dims.layers, .vocab_begin = s.vocab_begin, .vocab_end = s.vocab_end};
    if (s.last && s.vocab_begin < s.vocab_end) CU_ASSERT(same_weights(a, b, rows));
    gw_executor_destroy(fresh);
    free(team.ranks);
}

static int check_kv(const struct world *w, int r)
{
    struct gw_backend *b = gw_executor_backend(w->ranks[r].now);
    struct gw_shard s = gw_executor_shard(w->ranks[r].now);
    int replica = gw_layout_place(w->plan.layout, w->plan.peers[r].slot).replica, pages = 0;
    size_t halves = (size_t)(s.kv_end - s.kv_begin) * gw_page_halves(w->m->dims.head_dim);
    uint16_t *got = calloc(halves + 1, sizeof *got), *wanted = calloc(halves + 1, sizeof *wanted);
    for (int a = 0; a < w->plan.adoption_count; a++)
        for (int i = 0; w->plan.adoptions[a].to == replica && i < w->maps[a].count; i++)
            for (int layer = s.layer_begin; layer < s.layer_end && halves; layer++, pages++) {
                make_page(w, w->plan.adoptions[a].from, layer, w->maps[a].from[i], s.kv_begin, s.kv_end, wanted);
                CU_ASSERT_FATAL(b->ops->kv_export(b, layer, w->maps[a].to[i], s.kv_begin, s.kv_end, got) == GW_OK);
                CU_ASSERT(memcmp(got, wanted, halves * sizeof *got) == 0);
            }
    free(got);
    free(wanted);
    return pages;
}

static void close_world(struct world *w)
{
    for (int r = 0; r < w->count; r++) {
        struct rank *rank = &w->ranks[r];
        gw_mover_destroy(rank->mover);
        if (rank->now != rank->before) gw_executor_destroy(rank->now);
        gw_executor_destroy(rank->before);
        free(rank->team.ranks);
        free(rank->team_before.ranks);
        gw_hello_free(&w->hellos[r]);
    }
    for (int a = 0; a < w->plan.adoption_count; a++) free((int32_t *)(uintptr_t)w->maps[a].from);
    for (int i = 0; i < queued; i++) free(queue[i].data);
    queued = 0;
    gw_plan_free(&w->plan);
}

/* ---- tests --------------------------------------------------------------------------------------------------------- */

struct sums {
    int worlds, refused, tight, renumbered, loads;
    long pages;
    double fullest; /* of the memory there was */
};

static void change_world(struct world *w, struct sums *sums)
{
    struct gw_kv_pages *tables[MOST_RANKS] = {0};
    if (gw_planning_make(&w->planning, &w->plan) != GW_OK) {
        sums->refused++;
        return;
    }
    sums->worlds++;
    CU_ASSERT_FATAL(w->plan.adoption_count <= 64);
    for (int r = 0; r < w->count; r++) take_place(w, r);
    for (int a = 0; a < w->plan.adoption_count; a++) {
        int to = w->plan.adoptions[a].to;
        int head = gw_plan_rank(&w->plan, to * w->plan.layout.tensor * w->plan.layout.pipeline);
        if (!tables[to]) tables[to] = gw_kv_pages_create(w->plan.kv_pages);
        map_adoption(w, tables[to], a, head);
        for (int i = 0; i < w->maps[a].count; i++) sums->renumbered += w->maps[a].from[i] != w->maps[a].to[i];
    }
    for (int t = 0; t < MOST_RANKS; t++)
        if (tables[t]) gw_kv_pages_destroy(tables[t]);
    run_movers(w);
    for (int r = 0; r < w->count; r++) {
        struct gw_mover_stats stats = gw_mover_stats(w->ranks[r].mover);
        if (has_drops(w, r)) {
            sums->tight++;
            CU_ASSERT(stats.peak_bytes > 0 && stats.peak_bytes <= w->hellos[r].memory);
            double full = (double)w->ranks[r].most / (double)w->hellos[r].memory;
            if (full > sums->fullest) sums->fullest = full;
        } else {
            CU_ASSERT_EQUAL(stats.peak_bytes, 0);
        }
        if (w->plan.peers[r].slot < 0 || w->ranks[r].now == NULL) continue;
        check_weights(w, r);
        sums->pages += check_kv(w, r);
    }
    for (int m = 0; m < w->plan.move_count; m++) sums->loads += w->plan.moves[m].from == GW_FROM_STORAGE;
}

static void change_worlds(int rounds, int layers, int kv_heads, enum gw_type type, struct sums *sums)
{
    struct model m;
    struct gw_cost cost = gw_cost_default();
    open_model(&m, layers, kv_heads, type);
    for (int i = 0; i < rounds; i++) {
        struct world w;
        uint64_t begin = random_state;
        unsigned failures = CU_get_number_of_failures();
        make_world(&w, &m, &cost);
        change_world(&w, sums);
        if (CU_get_number_of_failures() > failures)
            printf("(state %llu: %dx%dx%d -> %dx%dx%d failed) ", (unsigned long long)begin, w.plan.before.data,
                   w.plan.before.tensor, w.plan.before.pipeline, w.plan.layout.data, w.plan.layout.tensor,
                   w.plan.layout.pipeline);
        close_world(&w);
    }
    close_model(&m);
}

static void test_worlds(void)
{
    struct sums sums = {0};
    change_worlds(60, 4, 3, GW_TYPE_Q4_1, &sums);
    change_worlds(40, 7, 1, GW_TYPE_Q8_0, &sums);
    change_worlds(40, 5, 4, GW_TYPE_F16, &sums);
    printf("(%d worlds, %d too small, %d ranks short of memory, at most %.1f %% of it used, %d loads in turn, %ld KV "
           "pages compared, %d "
           "renumbered) ",
           sums.worlds, sums.refused, sums.tight, 100 * sums.fullest, sums.loads, sums.pages, sums.renumbered);
    CU_ASSERT(sums.worlds > 100 && sums.tight > 50 && sums.loads > 50 && sums.pages > 2000 && sums.renumbered > 100);
    CU_ASSERT(sums.fullest > 0.8);
}

int main(void)
{
    const char *given = getenv("GODWIT_TEST_SEED");
    if (given) seed = strtoull(given, NULL, 10);
    random_state = seed;
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); /* what is resident shall be what was touched */
    printf("seed %llu\n", (unsigned long long)seed);
    if (CU_initialize_registry() != CUE_SUCCESS) return 1;
    CU_pSuite suite = CU_add_suite("mover", NULL, NULL);
    CU_add_test(suite, "random changes", test_worlds);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
