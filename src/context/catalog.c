/* The catalog: files of checkpoints and where in them each page is; besides identities and messages. No I/O.
 *
 * A hash table leads from an identity to its spots (file, row), chained through `next`: one spot for each file that has a slice of the page.
 * An identity is a hash already, so its first bytes are the key.
 */
#include "base/hash.h"
#include "context/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- identities ------------------------------------------------------------------------------------------------- */

struct gw_ckpt_model gw_ckpt_model(const char *fingerprint, const struct gw_dims *dims)
{
    struct gw_ckpt_model model = {.layers = dims->layers, .kv_heads = dims->kv_heads, .head_dim = dims->head_dim};
    snprintf(model.fingerprint, sizeof model.fingerprint, "%s", fingerprint);
    return model;
}

/* Two XXH3 of 64 bits with different seeds over the same bytes. The first page's parent is a hash of the model: so models do not
 * share identities. */
struct gw_ckpt_identity gw_ckpt_identity(const struct gw_ckpt_model *model, const struct gw_ckpt_identity *parent,
                                         const int32_t tokens[GW_PAGE_TOKENS])
{
    enum { SEED_LOW = 0x6b76, SEED_HIGH = 0x7061676531 };
    struct gw_ckpt_identity root, identity;
    uint8_t bytes[GW_CKPT_IDENTITY_BYTES + 4 * GW_PAGE_TOKENS];
    uint64_t halves[2];
    if (!parent) {
        char text[128];
        int length = snprintf(text, sizeof text, "%s %d %d %d", model->fingerprint, model->layers, model->kv_heads,
                              model->head_dim);
        halves[0] = gw_hash64(text, (size_t)length, SEED_LOW);
        halves[1] = gw_hash64(text, (size_t)length, SEED_HIGH);
        memcpy(root.bytes, halves, sizeof root.bytes);
        parent = &root;
    }
    memcpy(bytes, parent->bytes, GW_CKPT_IDENTITY_BYTES);
    memcpy(bytes + GW_CKPT_IDENTITY_BYTES, tokens, 4 * GW_PAGE_TOKENS);
    halves[0] = gw_hash64(bytes, sizeof bytes, SEED_LOW);
    halves[1] = gw_hash64(bytes, sizeof bytes, SEED_HIGH);
    memcpy(identity.bytes, halves, sizeof identity.bytes);
    return identity;
}

void gw_ckpt_identities(const struct gw_ckpt_model *model, const int32_t *tokens, int count,
                        struct gw_ckpt_identity *identities)
{
    for (int i = 0; i < count / GW_PAGE_TOKENS; i++)
        identities[i] = gw_ckpt_identity(model, i ? &identities[i - 1] : NULL, tokens + (size_t)i * GW_PAGE_TOKENS);
}

/* ---- what is acceptable ------------------------------------------------------------------------------------------- */

bool gw_ckpt_name_ok(const char *name)
{
    size_t length = strnlen(name, GW_CKPT_NAME_BYTES);
    return length > 3 && length < GW_CKPT_NAME_BYTES - 4 && !strcmp(name + length - 3, ".h5") &&
           strspn(name, "0123456789abcdef-") == length - 3;
}

bool gw_ckpt_model_ok(const struct gw_ckpt_model *model)
{
    return memchr(model->fingerprint, 0, sizeof model->fingerprint) && model->layers > 0 && model->layers <= 1 << 16 &&
           model->kv_heads > 0 && model->kv_heads <= 1 << 16 && model->head_dim > 0 && model->head_dim <= 1 << 16;
}

bool gw_ckpt_slice_ok(const struct gw_ckpt_model *model, const struct gw_ckpt_slice *slice)
{
    return slice->layer_begin >= 0 && slice->layer_begin < slice->layer_end && slice->layer_end <= model->layers &&
           slice->kv_begin >= 0 && slice->kv_begin < slice->kv_end && slice->kv_end <= model->kv_heads;
}

void gw_ckpt_hex(const void *bytes, size_t count, char *text)
{
    const uint8_t *from = bytes;
    for (size_t i = 0; i < count; i++) {
        text[2 * i] = "0123456789abcdef"[from[i] >> 4];
        text[2 * i + 1] = "0123456789abcdef"[from[i] & 15];
    }
    text[2 * count] = 0;
}

/* ---- files in messages ---------------------------------------------------------------------------------------------- */

void gw_ckpt_file_free(struct gw_ckpt_file *file)
{
    free(file->identities);
    *file = (struct gw_ckpt_file){0};
}

void gw_ckpt_file_encode(const struct gw_ckpt_file *file, struct gw_buf *out)
{
    gw_buf_add(out, file->name, sizeof file->name);
    gw_buf_add_u64(out, file->bytes);
    gw_buf_add_u64(out, file->hash);
    gw_buf_add_u64(out, file->increment);
    const int fields[] = {file->writer,         file->slice.layer_begin, file->slice.layer_end,
                          file->slice.kv_begin, file->slice.kv_end,      file->pages};
    for (int i = 0; i < 6; i++) gw_buf_add_u32(out, (uint32_t)fields[i]);
    gw_buf_add(out, file->identities, (size_t)file->pages * sizeof *file->identities);
}

gw_err gw_ckpt_file_decode(struct gw_reader *in, struct gw_ckpt_file *file)
{
    *file = (struct gw_ckpt_file){0};
    const void *name = gw_read(in, sizeof file->name);
    if (name) memcpy(file->name, name, sizeof file->name);
    file->bytes = gw_read_u64(in);
    file->hash = gw_read_u64(in);
    file->increment = gw_read_u64(in);
    int *const fields[] = {&file->writer,         &file->slice.layer_begin, &file->slice.layer_end,
                           &file->slice.kv_begin, &file->slice.kv_end,      &file->pages};
    for (int i = 0; i < 6; i++) *fields[i] = (int)gw_read_u32(in);
    bool sensible = !in->failed && file->pages > 0 && gw_ckpt_name_ok(file->name);
    const void *identities = sensible ? gw_read(in, (size_t)file->pages * sizeof *file->identities) : NULL;
    if (!identities) {
        *file = (struct gw_ckpt_file){0};
        return gw_fail(GW_ERR_PEER, "a message about a checkpoint file is cut short or damaged");
    }
    file->identities = gw_alloc((size_t)file->pages, sizeof *file->identities);
    memcpy(file->identities, identities, (size_t)file->pages * sizeof *file->identities);
    return GW_OK;
}

/* ---- catalog -------------------------------------------------------------------------------------------------------- */

void gw_ckpt_catalog_init(struct gw_ckpt_catalog *catalog, const struct gw_ckpt_model *model)
{
    *catalog = (struct gw_ckpt_catalog){.model = *model, .table_size = 1024};
    catalog->table = gw_alloc(catalog->table_size, sizeof *catalog->table);
    catalog->grid = gw_alloc((size_t)model->layers, (size_t)model->kv_heads);
}

void gw_ckpt_catalog_free(struct gw_ckpt_catalog *catalog)
{
    for (int i = 0; i < catalog->file_count; i++) gw_ckpt_file_free(&catalog->files[i]);
    free(catalog->files);
    free(catalog->dead);
    free(catalog->spots);
    free(catalog->table);
    free(catalog->grid);
    *catalog = (struct gw_ckpt_catalog){0};
}

static const struct gw_ckpt_identity *spot_identity(const struct gw_ckpt_catalog *catalog, int spot)
{
    return &catalog->files[catalog->spots[spot].file].identities[catalog->spots[spot].row];
}

/* The table's cell for an identity: with its first spot, or empty. */
static size_t find_cell(const struct gw_ckpt_catalog *catalog, const struct gw_ckpt_identity *identity)
{
    uint64_t key;
    memcpy(&key, identity->bytes, sizeof key);
    size_t cell = key & (catalog->table_size - 1);
    while (catalog->table[cell] &&
           memcmp(spot_identity(catalog, catalog->table[cell] - 1), identity, sizeof *identity) != 0)
        cell = (cell + 1) & (catalog->table_size - 1);
    return cell;
}

/* Called with the chains whole: only first spots are in the table, chains stay as they are. */
static void grow_table(struct gw_ckpt_catalog *catalog)
{
    int32_t *old = catalog->table;
    size_t old_size = catalog->table_size;
    catalog->table_size *= 2;
    catalog->table = gw_alloc(catalog->table_size, sizeof *catalog->table);
    for (size_t i = 0; i < old_size; i++)
        if (old[i]) catalog->table[find_cell(catalog, spot_identity(catalog, old[i] - 1))] = old[i];
    free(old);
}

static void add_spot(struct gw_ckpt_catalog *catalog, int file, int row)
{
    if (catalog->spot_count == catalog->spot_room) {
        catalog->spot_room = catalog->spot_room ? catalog->spot_room * 2 : 256;
        catalog->spots = gw_realloc(catalog->spots, (size_t)catalog->spot_room, sizeof *catalog->spots);
    }
    int spot = catalog->spot_count++;
    catalog->spots[spot] = (struct gw_ckpt_spot){file, row, -1};
    size_t cell = find_cell(catalog, spot_identity(catalog, spot));
    if (catalog->table[cell]) {
        struct gw_ckpt_spot *first = &catalog->spots[catalog->table[cell] - 1];
        catalog->spots[spot].next = first->next;
        first->next = spot;
        return;
    }
    catalog->table[cell] = spot + 1;
    if (++catalog->table_used * 2 > catalog->table_size) grow_table(catalog);
}

void gw_ckpt_catalog_add(struct gw_ckpt_catalog *catalog, struct gw_ckpt_file *file)
{
    if (catalog->file_count == catalog->file_room) {
        catalog->file_room = catalog->file_room ? catalog->file_room * 2 : 16;
        catalog->files = gw_realloc(catalog->files, (size_t)catalog->file_room, sizeof *catalog->files);
        catalog->dead = gw_realloc(catalog->dead, (size_t)catalog->file_room, sizeof *catalog->dead);
    }
    int at = catalog->file_count++;
    catalog->files[at] = *file;
    catalog->dead[at] = false;
    if (file->increment > catalog->increment) catalog->increment = file->increment;
    for (int row = 0; row < file->pages; row++) add_spot(catalog, at, row);
    *file = (struct gw_ckpt_file){0};
}

void gw_ckpt_catalog_compact(struct gw_ckpt_catalog *catalog)
{
    struct gw_ckpt_file *files = catalog->files;
    bool *dead = catalog->dead;
    int count = catalog->file_count;
    catalog->files = NULL;
    catalog->dead = NULL;
    catalog->file_count = catalog->file_room = catalog->spot_count = 0;
    memset(catalog->table, 0, catalog->table_size * sizeof *catalog->table);
    catalog->table_used = 0;
    for (int i = 0; i < count; i++) {
        if (dead[i]) gw_ckpt_file_free(&files[i]);
        else gw_ckpt_catalog_add(catalog, &files[i]);
    }
    free(files);
    free(dead);
}

int gw_ckpt_catalog_find(const struct gw_ckpt_catalog *catalog, const struct gw_ckpt_identity *identity)
{
    return catalog->table[find_cell(catalog, identity)] - 1;
}

bool gw_ckpt_catalog_covers(const struct gw_ckpt_catalog *catalog, const struct gw_ckpt_identity *identity,
                            const struct gw_ckpt_slice *slice)
{
    int heads = catalog->model.kv_heads;
    int missing = (slice->layer_end - slice->layer_begin) * (slice->kv_end - slice->kv_begin);
    memset(catalog->grid, 0, (size_t)catalog->model.layers * (size_t)heads);
    for (int spot = gw_ckpt_catalog_find(catalog, identity); spot >= 0 && missing; spot = catalog->spots[spot].next) {
        int at = catalog->spots[spot].file;
        const struct gw_ckpt_slice *own = &catalog->files[at].slice;
        if (catalog->dead[at]) continue;
        for (int layer = own->layer_begin; layer < own->layer_end; layer++)
            for (int head = own->kv_begin; head < own->kv_end; head++) {
                uint8_t *seen = &catalog->grid[(size_t)layer * (size_t)heads + (size_t)head];
                bool wanted = layer >= slice->layer_begin && layer < slice->layer_end && head >= slice->kv_begin &&
                              head < slice->kv_end;
                missing -= wanted && !*seen;
                *seen = 1;
            }
    }
    return missing == 0;
}

bool gw_ckpt_catalog_has_name(const struct gw_ckpt_catalog *catalog, const char *name)
{
    for (int i = 0; i < catalog->file_count; i++)
        if (!strcmp(catalog->files[i].name, name)) return true;
    return false;
}
