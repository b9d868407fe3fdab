/* OUTDIR/context/manifest.json: which files count. JSON with a checksum of itself, so that a flipped digit is found, too.
 *
 * The checksum is over the compact form with sorted keys, without the checksum: white space is free. The manifest is not needed to
 * find pages, since each file says what it holds and whether it is whole; it makes opening fast, and says what is a leftover. So when it
 * is damaged it is made anew from the files.
 */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "context/internal.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_MANIFEST_BYTES = 1 << 30 };

char *gw_ckpt_manifest_path(const char *folder)
{
    return gw_asprintf("%s/manifest.json", folder);
}

/* ---- writing --------------------------------------------------------------------------------------------------------- */

static void checksum_of(json_t *root, char hex[17])
{
    char *text = json_dumps(root, JSON_COMPACT | JSON_SORT_KEYS);
    GW_ASSERT(text);
    snprintf(hex, 17, "%016" PRIx64, gw_hash64(text, strlen(text), 0));
    free(text);
}

static json_t *json_of_file(const struct gw_ckpt_file *file)
{
    char hash[17];
    char *identities = gw_alloc((size_t)file->pages * GW_CKPT_IDENTITY_BYTES + 1, 2);
    snprintf(hash, sizeof hash, "%016" PRIx64, file->hash);
    gw_ckpt_hex(file->identities, (size_t)file->pages * GW_CKPT_IDENTITY_BYTES, identities);
    json_t *json = json_pack("{s:s, s:I, s:s, s:I, s:i, s:[i,i], s:[i,i], s:i, s:s}", "name", file->name, "bytes",
                             (json_int_t)file->bytes, "hash", hash, "increment", (json_int_t)file->increment, "writer",
                             file->writer, "layers", file->slice.layer_begin, file->slice.layer_end, "kv_heads",
                             file->slice.kv_begin, file->slice.kv_end, "pages", file->pages, "identities", identities);
    GW_ASSERT(json);
    free(identities);
    return json;
}

gw_err gw_ckpt_manifest_save(const char *folder, const struct gw_ckpt_catalog *catalog)
{
    const struct gw_ckpt_model *model = &catalog->model;
    char checksum[17];
    json_t *files = json_array();
    for (int i = 0; i < catalog->file_count; i++)
        if (!catalog->dead[i]) json_array_append_new(files, json_of_file(&catalog->files[i]));
    json_t *root = json_pack("{s:i, s:{s:s, s:i, s:i, s:i}, s:I, s:o}", "format", GW_CKPT_FORMAT, "model",
                             "fingerprint", model->fingerprint, "layers", model->layers, "kv_heads", model->kv_heads,
                             "head_dim", model->head_dim, "increment", (json_int_t)catalog->increment, "files", files);
    GW_ASSERT(root);
    checksum_of(root, checksum);
    json_object_set_new(root, "checksum", json_string(checksum));
    char *text = json_dumps(root, JSON_INDENT(1));
    char *path = gw_ckpt_manifest_path(folder);
    GW_ASSERT(text);
    gw_err rc = gw_file_replace(path, text, strlen(text), true);
    free(path);
    free(text);
    json_decref(root);
    return rc;
}

/* ---- reading --------------------------------------------------------------------------------------------------------- */

static bool read_hex(const char *text, size_t digits, void *out)
{
    uint8_t *to = out;
    if (strlen(text) != digits || strspn(text, "0123456789abcdef") != digits) return false;
    for (size_t i = 0; i < digits; i += 2) {
        int high = text[i] <= '9' ? text[i] - '0' : text[i] - 'a' + 10;
        int low = text[i + 1] <= '9' ? text[i + 1] - '0' : text[i + 1] - 'a' + 10;
        to[i / 2] = (uint8_t)(high * 16 + low);
    }
    return true;
}

static bool file_of_json(json_t *json, const struct gw_ckpt_model *model, struct gw_ckpt_file *file)
{
    const char *name, *hash, *identities;
    json_int_t bytes, increment;
    *file = (struct gw_ckpt_file){0};
    if (json_unpack(json, "{s:s, s:I, s:s, s:I, s:i, s:[i,i], s:[i,i], s:i, s:s}", "name", &name, "bytes", &bytes,
                    "hash", &hash, "increment", &increment, "writer", &file->writer, "layers", &file->slice.layer_begin,
                    &file->slice.layer_end, "kv_heads", &file->slice.kv_begin, &file->slice.kv_end, "pages",
                    &file->pages, "identities", &identities))
        return false;
    if (!gw_ckpt_name_ok(name) || !gw_ckpt_slice_ok(model, &file->slice) || bytes <= 0 || increment < 0 ||
        strlen(hash) != 16 || file->pages <= 0 ||
        strlen(identities) != (size_t)file->pages * 2 * GW_CKPT_IDENTITY_BYTES)
        return false;
    snprintf(file->name, sizeof file->name, "%s", name);
    file->bytes = (uint64_t)bytes;
    file->increment = (uint64_t)increment;
    file->hash = strtoull(hash, NULL, 16);
    file->identities = gw_alloc((size_t)file->pages, sizeof *file->identities);
    if (read_hex(identities, strlen(identities), file->identities)) return true;
    gw_ckpt_file_free(file);
    return false;
}

/* Is the file there with its size? Warns when it is not. */
static bool file_stands(const char *folder, const struct gw_ckpt_file *file)
{
    struct stat st;
    char *path = gw_asprintf("%s/%s", folder, file->name);
    bool found = stat(path, &st) == 0, ok = found && (uint64_t)st.st_size == file->bytes;
    if (!found) gw_warn("checkpoint file %s is missing; its %d pages will be computed again", path, file->pages);
    else if (!ok)
        gw_warn("checkpoint file %s is damaged: it has %lld bytes of %" PRIu64 "; its %d pages will be computed again",
                path, (long long)st.st_size, file->bytes, file->pages);
    free(path);
    return ok;
}

/* The parsed manifest if it is whole, else NULL and a line in `trouble` ("" when there is none). */
static json_t *parse_manifest(const char *path, char trouble[256])
{
    char *text = NULL, stated[17] = "", found[17] = "";
    json_error_t error;
    trouble[0] = 0;
    gw_err rc = gw_file_read(path, MAX_MANIFEST_BYTES, &text, NULL);
    if (rc == GW_ERR_NOT_FOUND) return NULL;
    if (rc != GW_OK) {
        snprintf(trouble, 256, "%s", gw_error_detail());
        return NULL;
    }
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!json_is_object(root)) {
        snprintf(trouble, 256, "%s is damaged: %s", path, root ? "no object" : error.text);
        json_decref(root);
        return NULL;
    }
    const char *checksum = json_string_value(json_object_get(root, "checksum"));
    if (checksum) snprintf(stated, sizeof stated, "%s", checksum);
    json_object_del(root, "checksum");
    checksum_of(root, found);
    if (!strcmp(stated, found)) return root;
    snprintf(trouble, 256, "%s is damaged: its checksum is %s, not %s", path, found, stated);
    json_decref(root);
    return NULL;
}

static bool model_of_json(json_t *root, struct gw_ckpt_model *model)
{
    const char *fingerprint;
    *model = (struct gw_ckpt_model){0};
    if (json_unpack(root, "{s:{s:s, s:i, s:i, s:i}}", "model", "fingerprint", &fingerprint, "layers", &model->layers,
                    "kv_heads", &model->kv_heads, "head_dim", &model->head_dim) ||
        strlen(fingerprint) >= sizeof model->fingerprint)
        return false;
    strcpy(model->fingerprint, fingerprint);
    return gw_ckpt_model_ok(model);
}

static bool model_equal(const struct gw_ckpt_model *a, const struct gw_ckpt_model *b)
{
    return !strcmp(a->fingerprint, b->fingerprint) && a->layers == b->layers && a->kv_heads == b->kv_heads &&
           a->head_dim == b->head_dim;
}

/* Fills the catalog from a manifest that is whole. */
static gw_err load_json(const char *folder, json_t *root, const struct gw_ckpt_model *expected,
                        struct gw_ckpt_catalog *catalog)
{
    struct gw_ckpt_model model;
    json_t *json;
    size_t i;
    json_int_t format = json_integer_value(json_object_get(root, "format"));
    if (format != GW_CKPT_FORMAT)
        return gw_fail(GW_ERR_MISMATCH, "%s has format %lld, this godwit has %d: remove that folder", folder,
                       (long long)format, GW_CKPT_FORMAT);
    if (!model_of_json(root, &model))
        return gw_fail(GW_ERR_MISMATCH, "%s/manifest.json does not name its model: remove that folder", folder);
    if (expected && !model_equal(&model, expected))
        return gw_fail(GW_ERR_MISMATCH, "%s holds pages of the model %.16s.., this one is %.16s..: remove that folder",
                       folder, model.fingerprint, expected->fingerprint);
    gw_ckpt_catalog_init(catalog, &model);
    catalog->increment = (uint64_t)json_integer_value(json_object_get(root, "increment"));
    json_array_foreach(json_object_get(root, "files"), i, json)
    {
        struct gw_ckpt_file file;
        if (!file_of_json(json, &model, &file)) gw_warn("%s/manifest.json: entry %zu is of no use", folder, i);
        else if (!file_stands(folder, &file)) catalog->missing++;
        else if (!gw_ckpt_catalog_has_name(catalog, file.name)) gw_ckpt_catalog_add(catalog, &file);
        gw_ckpt_file_free(&file);
    }
    return GW_OK;
}

/* ---- without a manifest ------------------------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of checkpoint files in the folder, sorted; *count -1 when it is not there. */
static char **list_files(const char *folder, int *count)
{
    char **names = NULL;
    DIR *dir = opendir(folder);
    *count = dir ? 0 : -1;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (!gw_ckpt_name_ok(entry->d_name)) continue;
        names = gw_realloc(names, (size_t)*count + 1, sizeof *names);
        names[(*count)++] = gw_strdup(entry->d_name);
    }
    if (dir) closedir(dir);
    if (names) qsort(names, (size_t)*count, sizeof *names, by_name);
    return names;
}

/* What a file says of itself, when it is whole. */
static gw_err describe(const char *folder, const char *name, struct gw_ckpt_model *model, struct gw_ckpt_file *file)
{
    gw_err rc = GW_OK;
    bool foreign;
    uint64_t bytes, hash;
    struct gw_ckpt_h5 *h5 = NULL;
    char *path = gw_asprintf("%s/%s", folder, name);
    *file = (struct gw_ckpt_file){0};
    TRY(gw_ckpt_h5_check(path, &bytes, &hash, &foreign));
    TRY(gw_ckpt_h5_open(path, model, file, &h5));
    file->bytes = bytes;
    file->hash = hash;
out:
    gw_ckpt_h5_close(h5);
    free(path);
    return rc;
}

static gw_err rebuild(const char *folder, const struct gw_ckpt_model *expected, struct gw_ckpt_catalog *catalog)
{
    int count;
    char **names = list_files(folder, &count);
    bool begun = expected != NULL;
    if (begun) gw_ckpt_catalog_init(catalog, expected);
    for (int i = 0; i < count; i++) {
        struct gw_ckpt_model model = {0};
        struct gw_ckpt_file file;
        if (describe(folder, names[i], &model, &file) != GW_OK)
            gw_warn("%s; its pages will be computed again", gw_error_detail());
        else {
            if (!begun) gw_ckpt_catalog_init(catalog, &model);
            begun = true;
            if (model_equal(&model, &catalog->model)) gw_ckpt_catalog_add(catalog, &file);
            else gw_warn("checkpoint file %s/%s is of another model and left out", folder, names[i]);
        }
        gw_ckpt_file_free(&file);
        free(names[i]);
    }
    free(names);
    return begun ? GW_OK : gw_fail(GW_ERR_NOT_FOUND, "%s holds no checkpoint", folder);
}

gw_err gw_ckpt_manifest_load(const char *folder, const struct gw_ckpt_model *expected, struct gw_ckpt_catalog *catalog,
                             bool *rebuilt)
{
    char trouble[256];
    char *path = gw_ckpt_manifest_path(folder);
    json_t *root = parse_manifest(path, trouble);
    free(path);
    *rebuilt = !root;
    *catalog = (struct gw_ckpt_catalog){0};
    if (trouble[0]) gw_warn("%s; looking at the files themselves", trouble);
    gw_err rc = root ? load_json(folder, root, expected, catalog) : rebuild(folder, expected, catalog);
    json_decref(root);
    return rc;
}
