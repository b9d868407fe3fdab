/* Parts of the CPU backend that come late or go early: while a rank changes its slice under a memory bound, the old parts of a layer are let go
 * of one by one, and new ones made when there is room (plan/moves.h). What is awaited has memory without pages behind it, which the kernel
 * gives as they are first written.
 */
#include "engine/cpu.h"

#include <sys/mman.h>
#include <unistd.h>

/* The matrices of a part: where a layer has them, and what else belongs to it. */
struct place {
    struct gw_packed *packed;  /* [count] */
    struct gw_shared **memory; /* [count] */
    int count;
    int *awaited, all; /* heads, atoms or rows to come, and how many there are */
};

static struct layer *layer_of(struct cpu *cpu, int number)
{
    const struct gw_shard *s = &cpu->config.shard;
    return number >= s->layer_begin && number < s->layer_end ? &cpu->layers[number - s->layer_begin] : NULL;
}

/* False when this shard has no such part. */
static bool find_place(struct cpu *cpu, int number, enum gw_part part, struct place *place)
{
    struct layer *layer = layer_of(cpu, number);
    *place = (struct place){.count = 1};
    if (part == GW_PART_OUTPUT) {
        place->packed = &cpu->output;
        place->memory = &cpu->output_memory;
        place->awaited = &cpu->rows_awaited;
        place->all = cpu->vocab;
        return cpu->config.shard.last && cpu->vocab > 0;
    }
    if (!layer) return false;
    if (part == GW_PART_KV) {
        place->memory = &layer->kv;
        return cpu->kv_heads > 0;
    }
    int first = part == GW_PART_HEADS ? Q : GATE;
    place->count = part == GW_PART_HEADS ? GATE - Q : MATRICES - GATE;
    place->packed = &layer->w[first];
    place->memory = &layer->memory[first];
    place->awaited = part == GW_PART_HEADS ? &layer->heads_awaited : &layer->atoms_awaited;
    place->all = part == GW_PART_HEADS ? cpu->kv_heads : cpu->config.shard.ffn_end - cpu->config.shard.ffn_begin;
    return place->all > 0;
}

/* Where a matrix of this shard begins in the model's. */
static void begin_of(const struct cpu *cpu, enum gw_tensor_role role, int *n_begin, int *k_begin)
{
    const struct gw_shard *s = &cpu->config.shard;
    int heads = s->kv_begin * cpu->head_dim;
    int ffn = gw_ffn_atom_block(cpu->config.dims.ffn, cpu->config.dims.ffn_atoms, s->ffn_begin) * GW_BLOCK;
    *n_begin = *k_begin = 0;
    switch (role) {
    case GW_TENSOR_Q: *n_begin = heads * cpu->group; break;
    case GW_TENSOR_K:
    case GW_TENSOR_V: *n_begin = heads; break;
    case GW_TENSOR_ATTN_OUT: *k_begin = heads * cpu->group; break;
    case GW_TENSOR_GATE:
    case GW_TENSOR_UP: *n_begin = ffn; break;
    case GW_TENSOR_DOWN: *k_begin = ffn; break;
    default: *n_begin = s->vocab_begin;
    }
}

gw_err gw_cpu_part_load(struct gw_backend *backend, int layer, enum gw_part part)
{
    static const enum gw_tensor_role heads[] = {GW_TENSOR_Q, GW_TENSOR_K, GW_TENSOR_V, GW_TENSOR_ATTN_OUT};
    static const enum gw_tensor_role atoms[] = {GW_TENSOR_GATE, GW_TENSOR_UP, GW_TENSOR_DOWN};
    struct cpu *cpu = of(backend);
    struct place place;
    if (part == GW_PART_KV || !find_place(cpu, layer, part, &place) || *place.awaited == 0) return GW_OK;
    for (int i = 0; i < place.count; i++) {
        enum gw_tensor_role role = part == GW_PART_OUTPUT  ? GW_TENSOR_OUTPUT
                                   : part == GW_PART_HEADS ? heads[i]
                                                           : atoms[i];
        const struct gw_gguf_tensor *tensor = gw_model_tensor(cpu->config.model, role,
                                                              part == GW_PART_OUTPUT ? 0 : layer);
        int n_begin, k_begin;
        begin_of(cpu, role, &n_begin, &k_begin);
        gw_cpu_pack(cpu, &place.packed[i], tensor, n_begin, k_begin);
    }
    *place.awaited = 0;
    return GW_OK;
}

void gw_cpu_part_release(struct gw_backend *backend, int layer, enum gw_part part)
{
    struct place place;
    if (!find_place(of(backend), layer, part, &place)) return;
    for (int i = 0; i < place.count; i++) {
        gw_shared_release(place.memory[i]);
        place.memory[i] = NULL;
        if (place.packed) place.packed[i].data = NULL;
    }
    if (place.awaited) *place.awaited = place.all; /* nobody may share it */
    else layer_of(of(backend), layer)->kv_pages = 0;
}

uint64_t gw_cpu_part_bytes(struct gw_backend *backend, int layer, enum gw_part part, struct gw_backend *other)
{
    struct place place, theirs = {0};
    uint64_t bytes = 0;
    if (!find_place(of(backend), layer, part, &place)) return 0;
    if (place.awaited && *place.awaited == place.all) return 0;
    if (!other || !find_place(of(other), layer, part, &theirs)) theirs.memory = NULL;
    for (int i = 0; i < place.count; i++) {
        bool same = theirs.memory && theirs.memory[i] && theirs.memory[i] == place.memory[i];
        if (place.memory[i] && !same)
            bytes += place.packed ? gw_packed_bytes(&place.packed[i]) : place.memory[i]->bytes;
    }
    return bytes;
}

/* Whole pages of the system within [begin, end) of shared memory. */
static void give_back(struct gw_shared *memory, size_t begin, size_t end)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin >= end) return;
    uint8_t *at = (uint8_t *)memory->data + begin;
    if (madvise(at, end - begin, MADV_REMOVE)) madvise(at, end - begin, MADV_DONTNEED); /* in the store; or private */
}

uint64_t gw_cpu_kv_trim(struct gw_backend *backend, int layer, const bool *wanted)
{
    struct cpu *cpu = of(backend);
    struct layer *at = layer_of(cpu, layer);
    size_t each = (size_t)cpu->kv_heads * gw_page_halves(cpu->head_dim) * sizeof(uint16_t);
    uint64_t bytes = 0;
    if (!at || !at->kv) return 0;
    for (int begin = 0, end; begin < at->kv_pages; begin = end) {
        end = begin + 1;
        if (begin < cpu->config.kv_pages && wanted[begin]) continue;
        while (end < at->kv_pages && !(end < cpu->config.kv_pages && wanted[end])) end++;
        give_back(at->kv, (size_t)begin * each, (size_t)end * each);
        bytes += (size_t)(end - begin) * each;
    }
    return bytes;
}
