/* What a checkpoint holds and whether it is whole: a file of OUTDIR/context, or all of it. See inspect_checkpoint.h.
 *
 * Everything is read: each file's hash, then all of its pages through HDF5.
 */
#include "app/inspect_checkpoint.h"
#include "base/mem.h"
#include "context/checkpoint.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SHOWN_TOKENS = 6 };

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool gw_inspect_is_checkpoint(const char *path)
{
    static const char begin[] = "godwit checkpoint";
    char head[sizeof begin - 1] = "";
    size_t length = strlen(path);
    if (is_folder(path) || (length > 3 && !strcmp(path + length - 3, ".h5"))) return true;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0 && read(fd, head, sizeof head) == (ssize_t)sizeof head && !memcmp(head, begin, sizeof head);
    if (fd >= 0) close(fd);
    return same;
}

static void hex_of(const struct gw_ckpt_identity *identity, char hex[33])
{
    for (int i = 0; i < GW_CKPT_IDENTITY_BYTES; i++) snprintf(hex + 2 * i, 3, "%02x", identity->bytes[i]);
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

static void print_bytes(uint64_t bytes)
{
    if (bytes < 1024 * 1024) printf("%.1f KiB", (double)bytes / 1024);
    else if (bytes < 1024u * 1024 * 1024) printf("%.1f MiB", (double)bytes / (1024 * 1024));
    else printf("%.2f GiB", (double)bytes / (1024.0 * 1024 * 1024));
}

static void print_model(const struct gw_ckpt_model *model)
{
    printf("model        %s\n", model->fingerprint);
    printf("KV           %d layers, %d KV heads of %d dimensions\n", model->layers, model->kv_heads, model->head_dim);
}

static void print_slice(const struct gw_ckpt_slice *slice)
{
    printf("layers %d to %d, KV heads %d to %d", slice->layer_begin, slice->layer_end - 1, slice->kv_begin,
           slice->kv_end - 1);
}

static void print_pages(const struct gw_ckpt_info *info)
{
    static const struct gw_ckpt_identity none;
    char hex[33], parent[33];
    for (int i = 0; i < info->file.pages; i++) {
        hex_of(&info->file.identities[i], hex);
        hex_of(&info->parents[i], parent);
        printf("  %s after %-32s tokens", hex, memcmp(&info->parents[i], &none, sizeof none) ? parent : "-");
        for (int t = 0; t < SHOWN_TOKENS; t++) printf(" %d", info->tokens[(size_t)i * GW_PAGE_TOKENS + (size_t)t]);
        puts(" ...");
    }
}

static void print_file(const char *path, const struct gw_ckpt_info *info, bool pages)
{
    printf("file         %s, checkpoint, ", path);
    print_bytes(info->file.bytes);
    putchar('\n');
    if (info->whole) {
        print_model(&info->model);
        printf("holds        %d pages of %d tokens: ", info->file.pages, GW_PAGE_TOKENS);
        print_slice(&info->file.slice);
        printf("\nwritten      in increment %" PRIu64 " by rank %d\n", info->file.increment, info->file.writer);
        if (pages) print_pages(info);
    }
    puts(info->whole ? "state        whole" : "state        damaged");
}

static void print_folder(const char *path, const struct gw_ckpt_folder *info, bool listed)
{
    uint64_t bytes = 0;
    for (int i = 0; i < info->file_count; i++) bytes += info->files[i].bytes;
    printf("folder       %s, %d files, ", path, info->file_count);
    print_bytes(bytes);
    printf("\nmanifest     %s, increment %" PRIu64 "\n",
           info->rebuilt ? "absent or damaged; the files themselves were asked" : "whole", info->increment);
    print_model(&info->model);
    printf("pages        %d of %d tokens; %d with all layers and heads\n", info->pages, GW_PAGE_TOKENS,
           info->pages_whole);
    for (int i = 0; i < info->file_count; i++) {
        const struct gw_ckpt_file *file = &info->files[i];
        if (!listed && !info->troubles[i][0]) continue;
        printf("  %s  %d pages, ", file->name, file->pages);
        print_slice(&file->slice);
        printf(", %s\n", info->troubles[i][0] ? "damaged" : "whole");
    }
    printf("state        ");
    if (info->damaged || info->missing) printf("%d files damaged, %d missing\n", info->damaged, info->missing);
    else puts("whole");
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------- */

static json_t *json_file(const struct gw_ckpt_file *file, const char *trouble)
{
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, file->hash);
    return json_pack("{s:s, s:I, s:s, s:I, s:i, s:i, s:[i,i], s:[i,i], s:b, s:s*}", "name", file->name, "bytes",
                     (json_int_t)file->bytes, "hash", hash, "increment", (json_int_t)file->increment, "writer",
                     file->writer, "pages", file->pages, "layers", file->slice.layer_begin, file->slice.layer_end,
                     "kv_heads", file->slice.kv_begin, file->slice.kv_end, "whole", !trouble[0], "trouble",
                     trouble[0] ? trouble : NULL);
}

static json_t *json_model(const struct gw_ckpt_model *model)
{
    return json_pack("{s:s, s:i, s:i, s:i}", "fingerprint", model->fingerprint, "layers", model->layers, "kv_heads",
                     model->kv_heads, "head_dim", model->head_dim);
}

static json_t *json_pages(const struct gw_ckpt_info *info)
{
    json_t *list = json_array();
    char hex[33], parent[33];
    for (int i = 0; i < info->file.pages; i++) {
        json_t *tokens = json_array();
        hex_of(&info->file.identities[i], hex);
        hex_of(&info->parents[i], parent);
        for (size_t t = 0; t < GW_PAGE_TOKENS; t++)
            json_array_append_new(tokens, json_integer(info->tokens[(size_t)i * GW_PAGE_TOKENS + t]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "identity", hex, "parent", parent, "tokens", tokens));
    }
    return list;
}

static void dump(json_t *root)
{
    GW_ASSERT(root);
    json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
}

static void dump_file(const struct gw_ckpt_info *info, bool pages)
{
    json_t *root = json_file(&info->file, info->trouble);
    if (info->whole) json_object_set_new(root, "model", json_model(&info->model));
    if (info->whole && pages) json_object_set_new(root, "page_list", json_pages(info));
    dump(root);
}

static void dump_folder(const struct gw_ckpt_folder *info)
{
    json_t *files = json_array();
    for (int i = 0; i < info->file_count; i++)
        json_array_append_new(files, json_file(&info->files[i], info->troubles[i]));
    dump(json_pack("{s:o, s:I, s:b, s:i, s:i, s:i, s:i, s:o}", "model", json_model(&info->model), "increment",
                   (json_int_t)info->increment, "manifest_whole", !info->rebuilt, "files_damaged", info->damaged,
                   "files_missing", info->missing, "pages", info->pages, "pages_whole", info->pages_whole, "files",
                   files));
}

/* ---- both ----------------------------------------------------------------------------------------------------------- */

static gw_err inspect_file(const char *path, bool pages, bool json)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_info info = {0};
    TRY(gw_ckpt_inspect(path, &info));
    if (json) dump_file(&info, pages);
    else print_file(path, &info, pages);
    if (!info.whole) FAIL(GW_ERR_VERIFY, "%s", info.trouble);
out:
    gw_ckpt_info_free(&info);
    return rc;
}

static gw_err inspect_folder(const char *path, bool listed, bool json)
{
    gw_err rc = GW_OK;
    struct gw_ckpt_folder info = {0};
    TRY(gw_ckpt_inspect_folder(path, &info));
    if (json) dump_folder(&info);
    else print_folder(path, &info, listed);
    for (int i = 0; i < info.file_count; i++)
        if (info.troubles[i][0]) FAIL(GW_ERR_VERIFY, "%s", info.troubles[i]);
    if (info.missing) FAIL(GW_ERR_VERIFY, "%s: %d files are missing or too short", path, info.missing);
out:
    gw_ckpt_folder_free(&info);
    return rc;
}

gw_err gw_inspect_checkpoint(const char *path, bool pages, bool json)
{
    if (!is_folder(path)) return inspect_file(path, pages, json);
    char *inside = gw_asprintf("%s/%s", path, GW_CKPT_FOLDER); /* an OUTDIR */
    gw_err rc = inspect_folder(is_folder(inside) ? inside : path, pages, json);
    free(inside);
    return rc;
}
