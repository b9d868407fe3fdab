/* One checkpoint file in HDF5: writing it, checking it, reading slices of pages. The only source that knows the library.
 *
 * A file begins with a block of 512 bytes of text (HDF5 calls it a user block and skips it) that tells the length and the hash of
 * all that follows. So a file can be checked from its first to its last byte without the library, which trusts what it reads: a
 * flipped bit in its own structures may crash it. Nothing is opened that has not passed this check.
 *
 * Writing goes the other way: HDF5 builds the file in memory (its core driver), and it is written from there with plain calls. So
 * a full disk is our error, not the library's, which in that case may leave a file that it can neither finish nor close.
 *
 * HDF5 as distributions build it may be used by one thread at a time: `lock`.
 */
#include "base/file.h"
#include "base/hash.h"
#include "context/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    HEAD_BYTES = 512,
    PIECE_BYTES = 1 << 20, /* the hash chains pieces of this size, so that a file can be hashed as it is read */
    KV_RANK = 6,
    FINGERPRINT_BYTES = 64
};

static const char magic[] = "godwit checkpoint ";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct gw_ckpt_h5 {
    char *path;
    hid_t file, kv; /* kv: the dataset, opened at the first read */
    int pages, head_dim;
};

/* ---- the library: its lock, its errors ------------------------------------------------------------------------------ */

static void enter(void)
{
    static bool begun;
    pthread_mutex_lock(&lock);
    /* at exit another thread may still be inside; everything is closed by its owner, so nothing is left to do then */
    if (!begun) H5dont_atexit();
    begun = true;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* per thread, if the library was built for several */
}

static void leave(void)
{
    pthread_mutex_unlock(&lock);
}

static herr_t first_message(unsigned n, const H5E_error2_t *error, void *text)
{
    if (n == 0) snprintf(text, 160, "%s", error->desc ? error->desc : "");
    return 0;
}

/* Turns the library's stack of errors into one line. Within the lock. */
static gw_err library_failed(gw_err code, const char *path, const char *doing)
{
    char text[160] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_message, text);
    return gw_fail(code, "%s: cannot %s: %s (HDF5)", path, doing, text[0] ? text : "no reason given");
}

/* ---- the first block ------------------------------------------------------------------------------------------------- */

static uint64_t hash_pieces(const uint8_t *data, size_t bytes)
{
    uint64_t hash = 0;
    for (size_t at = 0; at < bytes; at += PIECE_BYTES)
        hash = gw_hash64(data + at, bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES, hash);
    return hash;
}

static void make_head(uint64_t bytes, uint64_t hash, char head[HEAD_BYTES])
{
    memset(head, 0, HEAD_BYTES);
    snprintf(head, HEAD_BYTES, "%s%d\nbytes %" PRIu64 "\nhash %016" PRIx64 "\n", magic, GW_CKPT_FORMAT, bytes, hash);
}

static gw_err read_piece(int fd, const char *path, void *data, size_t bytes, size_t *got)
{
    for (*got = 0; *got < bytes;) {
        ssize_t n = read(fd, (char *)data + *got, bytes - *got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return gw_fail(GW_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (n == 0) break;
        *got += (size_t)n;
    }
    return GW_OK;
}

/* The block must be, byte for byte, what its own figures make of it. */
static gw_err check_head(const char *path, const char head[HEAD_BYTES], size_t got, const uint8_t *next, bool *foreign)
{
    static const uint8_t signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    int format = 0;
    uint64_t bytes = 0, hash = 0;
    char text[HEAD_BYTES + 1] = "", same[HEAD_BYTES];
    memcpy(text, head, got);
    bool ours = !strncmp(text, magic, sizeof magic - 1);
    *foreign = !ours && memcmp(next, signature, sizeof signature) != 0;
    if (*foreign) return gw_fail(GW_ERR_FORMAT, "%s is not a checkpoint of godwit", path);
    int fields = ours ? sscanf(text + sizeof magic - 1, "%d\nbytes %" SCNu64 "\nhash %" SCNx64, &format, &bytes, &hash)
                      : 0;
    if (fields >= 1 && format > GW_CKPT_FORMAT)
        return gw_fail(GW_ERR_FORMAT, "%s has format %d; this godwit reads format %d", path, format, GW_CKPT_FORMAT);
    make_head(bytes, hash, same);
    if (got != HEAD_BYTES || fields != 3 || memcmp(head, same, HEAD_BYTES) != 0)
        return gw_fail(GW_ERR_FORMAT, "%s is damaged: its first %d bytes are not as they were written", path,
                       HEAD_BYTES);
    return GW_OK;
}

gw_err gw_ckpt_h5_check(const char *path, uint64_t *bytes, uint64_t *hash, bool *foreign)
{
    gw_err rc = GW_OK;
    char head[HEAD_BYTES] = "";
    uint8_t *piece = NULL;
    size_t got = 0, head_got = 0;
    *bytes = *hash = 0;
    *foreign = false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return gw_fail(errno == ENOENT ? GW_ERR_NOT_FOUND : GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    piece = gw_alloc(PIECE_BYTES, 1);
    TRY(read_piece(fd, path, head, HEAD_BYTES, &head_got));
    TRY(read_piece(fd, path, piece, PIECE_BYTES, &got));
    TRY(check_head(path, head, head_got, piece, foreign));
    *bytes = head_got;
    while (got) {
        *hash = gw_hash64(piece, got, *hash);
        *bytes += got;
        TRY(read_piece(fd, path, piece, PIECE_BYTES, &got));
    }
    uint64_t said_bytes = 0, said_hash = 0;
    sscanf(strchr(head, '\n'), "\nbytes %" SCNu64 "\nhash %" SCNx64, &said_bytes, &said_hash);
    if (*bytes != said_bytes)
        FAIL(GW_ERR_FORMAT, "%s is damaged: it has %" PRIu64 " bytes of %" PRIu64, path, *bytes, said_bytes);
    if (*hash != said_hash)
        FAIL(GW_ERR_FORMAT, "%s is damaged: its hash is %016" PRIx64 ", not %016" PRIx64, path, *hash, said_hash);
out:
    close(fd);
    free(piece);
    return rc;
}

/* ---- writing --------------------------------------------------------------------------------------------------------- */

struct image {
    hid_t file;
    uint8_t *data; /* the library's own; valid until the file is closed */
    size_t bytes;
};

static bool add_number(hid_t at, const char *name, int64_t value)
{
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute = H5Acreate2(at, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    if (space >= 0) H5Sclose(space);
    return ok;
}

static hid_t fingerprint_type(void)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type >= 0) H5Tset_size(type, FINGERPRINT_BYTES);
    if (type >= 0) H5Tset_strpad(type, H5T_STR_NULLPAD);
    return type;
}

static bool add_attributes(hid_t at, const struct gw_ckpt_model *model, const struct gw_ckpt_part *part)
{
    hid_t space = H5Screate(H5S_SCALAR), type = fingerprint_type();
    hid_t attribute = H5Acreate2(at, "model", type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = attribute >= 0 && H5Awrite(attribute, type, model->fingerprint) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    return ok && add_number(at, "format", GW_CKPT_FORMAT) && add_number(at, "page_tokens", GW_PAGE_TOKENS) &&
           add_number(at, "layers", model->layers) && add_number(at, "kv_heads", model->kv_heads) &&
           add_number(at, "head_dim", model->head_dim) && add_number(at, "layer_begin", part->slice.layer_begin) &&
           add_number(at, "layer_end", part->slice.layer_end) && add_number(at, "kv_begin", part->slice.kv_begin) &&
           add_number(at, "kv_end", part->slice.kv_end) && add_number(at, "increment", (int64_t)part->increment) &&
           add_number(at, "writer", part->writer);
}

/* A dataset with Fletcher-32, chunked, written whole. */
static bool add_dataset(hid_t at, const char *name, hid_t file_type, hid_t memory_type, int rank, const hsize_t *dims,
                        const hsize_t *chunk, const void *data)
{
    hid_t space = H5Screate_simple(rank, dims, NULL), options = H5Pcreate(H5P_DATASET_CREATE), set = -1;
    bool ok = space >= 0 && options >= 0 && H5Pset_chunk(options, rank, chunk) >= 0 &&
              H5Pset_fletcher32(options) >= 0 && H5Pset_fill_time(options, H5D_FILL_TIME_NEVER) >= 0;
    if (ok) set = H5Dcreate2(at, name, file_type, space, H5P_DEFAULT, options, H5P_DEFAULT);
    ok = set >= 0 && H5Dwrite(set, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0;
    if (set >= 0) ok = H5Dclose(set) >= 0 && ok;
    if (options >= 0) H5Pclose(options);
    if (space >= 0) H5Sclose(space);
    return ok;
}

/* Layers of a page in one chunk. Chunks of a layer read at two thirds of the speed of whole pages (24 against 700 KB, measured), but a chunk is
 * read as a whole by whoever wants a part of it, and must fit the library's cache of 1 MiB for those who read it layer by layer. */
static hsize_t chunk_layers(const hsize_t kv[KV_RANK])
{
    enum { MOST_BYTES = 512 << 10 };
    hsize_t layer_bytes = kv[2] * kv[3] * kv[4] * kv[5] * sizeof(uint16_t);
    hsize_t most = layer_bytes < MOST_BYTES ? MOST_BYTES / layer_bytes : 1;
    hsize_t chunks = (kv[1] + most - 1) / most;
    return (kv[1] + chunks - 1) / chunks;
}

static bool add_datasets(hid_t at, const struct gw_ckpt_model *model, const struct gw_ckpt_part *part)
{
    hsize_t pages = (hsize_t)part->pages;
    hsize_t names[2] = {pages, GW_CKPT_IDENTITY_BYTES}, tokens[2] = {pages, GW_PAGE_TOKENS};
    hsize_t kv[KV_RANK] = {pages,
                           (hsize_t)(part->slice.layer_end - part->slice.layer_begin),
                           2,
                           (hsize_t)(part->slice.kv_end - part->slice.kv_begin),
                           GW_PAGE_TOKENS,
                           (hsize_t)model->head_dim};
    hsize_t chunk[KV_RANK] = {1, chunk_layers(kv), 2, kv[3], kv[4], kv[5]};
    return add_dataset(at, "identity", H5T_STD_U8LE, H5T_NATIVE_UINT8, 2, names, names, part->identities) &&
           add_dataset(at, "parent", H5T_STD_U8LE, H5T_NATIVE_UINT8, 2, names, names, part->parents) &&
           add_dataset(at, "tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, 2, tokens, tokens, part->tokens) &&
           add_dataset(at, "kv", H5T_STD_U16LE, H5T_NATIVE_UINT16, KV_RANK, kv, chunk, part->kv);
}

static void free_image(struct image *image)
{
    if (image->file < 0) return;
    enter();
    H5Fclose(image->file);
    leave();
}

/* Builds the file in memory. Its bytes are the library's, read through the driver's handle: one copy less than H5Fget_file_image. */
static gw_err make_image(const struct gw_ckpt_model *model, const struct gw_ckpt_part *part, const char *folder,
                         struct image *image)
{
    gw_err rc = GW_OK;
    static unsigned serial; /* within the lock */
    char name[32];
    void **memory = NULL;
    size_t kv_bytes = (size_t)part->pages * gw_ckpt_slice_halves(model, &part->slice) * sizeof *part->kv;
    image->file = -1;
    enter();
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE);
    /* grown in one step, so that it is not copied as it grows; without a backing store the name is only to be unique */
    bool ok = access >= 0 && creation >= 0 && H5Pset_fapl_core(access, kv_bytes + (1 << 20), false) >= 0 &&
              H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18) >= 0 &&
              H5Pset_userblock(creation, HEAD_BYTES) >= 0;
    snprintf(name, sizeof name, "image %u", serial++);
    if (ok) image->file = H5Fcreate(name, H5F_ACC_TRUNC, creation, access);
    ok = image->file >= 0 && add_attributes(image->file, model, part) && add_datasets(image->file, model, part) &&
         H5Fflush(image->file, H5F_SCOPE_LOCAL) >= 0 &&
         H5Fget_vfd_handle(image->file, H5P_DEFAULT, (void **)&memory) >= 0;
    ssize_t bytes = ok ? H5Fget_file_image(image->file, NULL, 0) : -1; /* without the user block */
    if (bytes <= 0 || !memory || !*memory)
        rc = library_failed(GW_ERR_MEMORY, folder, "build a checkpoint file in memory");
    if (access >= 0) H5Pclose(access);
    if (creation >= 0) H5Pclose(creation);
    leave();
    if (rc != GW_OK) {
        free_image(image);
        image->file = -1;
        return rc;
    }
    image->data = *memory;
    image->bytes = HEAD_BYTES + (size_t)bytes;
    return rc;
}

static gw_err sync_folder(const char *folder)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && fsync(fd) == 0;
    gw_err rc = ok ? GW_OK : gw_fail(GW_ERR_IO, "cannot sync directory %s: %s", folder, strerror(errno));
    if (fd >= 0) close(fd);
    return rc;
}

/* Temporary name, all bytes onto the disk, then the name that counts. */
static gw_err write_image(const struct image *image, const char *folder, const char *name)
{
    gw_err rc = GW_OK;
    char *path = gw_asprintf("%s/%s", folder, name), *temporary = gw_asprintf("%s/%s.tmp", folder, name);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool created = fd >= 0;
    if (!created) FAIL(GW_ERR_IO, "cannot create %s: %s", temporary, strerror(errno));
    for (size_t at = 0; at < image->bytes; at += PIECE_BYTES)
        TRY(gw_write_all(fd, temporary, image->data + at,
                         image->bytes - at < PIECE_BYTES ? image->bytes - at : PIECE_BYTES));
    if (fsync(fd)) FAIL(GW_ERR_IO, "cannot sync %s: %s", temporary, strerror(errno));
    int closed = close(fd);
    fd = -1;
    if (closed) FAIL(GW_ERR_IO, "cannot write %s: %s", temporary, strerror(errno));
    if (rename(temporary, path)) FAIL(GW_ERR_IO, "cannot rename %s to %s: %s", temporary, path, strerror(errno));
    created = false;
    TRY(sync_folder(folder));
out:
    if (fd >= 0) close(fd);
    if (created) unlink(temporary);
    free(path);
    free(temporary);
    return rc;
}

gw_err gw_ckpt_h5_write(const struct gw_ckpt_model *model, const struct gw_ckpt_part *part, const char *folder,
                        struct gw_ckpt_file *file)
{
    gw_err rc = GW_OK;
    struct image image = {.file = -1};
    *file = (struct gw_ckpt_file){
        .increment = part->increment, .writer = part->writer, .slice = part->slice, .pages = part->pages};
    TRY(make_image(model, part, folder, &image));
    file->bytes = image.bytes;
    file->hash = hash_pieces(image.data + HEAD_BYTES, image.bytes - HEAD_BYTES);
    make_head(file->bytes, file->hash, (char *)image.data);
    /* with the hash in its name a file is never replaced by another one */
    snprintf(file->name, sizeof file->name, "%08" PRIu64 "-%03d-%016" PRIx64 ".h5", file->increment, file->writer,
             file->hash);
    TRY(write_image(&image, folder, file->name));
    file->identities = gw_alloc((size_t)part->pages, sizeof *file->identities);
    memcpy(file->identities, part->identities, (size_t)part->pages * sizeof *file->identities);
out:
    free_image(&image);
    return rc;
}

/* ---- reading --------------------------------------------------------------------------------------------------------- */

static bool get_number(hid_t at, const char *name, int64_t *value)
{
    hid_t attribute = H5Aopen(at, name, H5P_DEFAULT);
    hid_t space = attribute >= 0 ? H5Aget_space(attribute) : -1;
    bool ok = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
              H5Aread(attribute, H5T_NATIVE_INT64, value) >= 0;
    if (space >= 0) H5Sclose(space);
    if (attribute >= 0) H5Aclose(attribute);
    return ok;
}

static bool get_fingerprint(hid_t at, char fingerprint[FINGERPRINT_BYTES + 1])
{
    hid_t attribute = H5Aopen(at, "model", H5P_DEFAULT), type = fingerprint_type();
    hid_t space = attribute >= 0 ? H5Aget_space(attribute) : -1;
    memset(fingerprint, 0, FINGERPRINT_BYTES + 1);
    bool ok = space >= 0 && type >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
              H5Aread(attribute, type, fingerprint) >= 0;
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attribute >= 0) H5Aclose(attribute);
    return ok;
}

static bool get_attributes(hid_t at, struct gw_ckpt_model *model, struct gw_ckpt_file *file)
{
    int64_t format, page_tokens, increment;
    struct {
        const char *name;
        int *value;
    } numbers[] = {{"layers", &model->layers},
                   {"kv_heads", &model->kv_heads},
                   {"head_dim", &model->head_dim},
                   {"layer_begin", &file->slice.layer_begin},
                   {"layer_end", &file->slice.layer_end},
                   {"kv_begin", &file->slice.kv_begin},
                   {"kv_end", &file->slice.kv_end},
                   {"writer", &file->writer}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int64_t value;
        if (!get_number(at, numbers[i].name, &value) || value < 0 || value > INT32_MAX) return false;
        *numbers[i].value = (int)value;
    }
    if (!get_number(at, "format", &format) || !get_number(at, "page_tokens", &page_tokens)) return false;
    if (!get_number(at, "increment", &increment) || !get_fingerprint(at, model->fingerprint)) return false;
    file->increment = (uint64_t)increment;
    return format == GW_CKPT_FORMAT && page_tokens == GW_PAGE_TOKENS && gw_ckpt_model_ok(model) &&
           gw_ckpt_slice_ok(model, &file->slice);
}

/* The number of pages is the first dimension of `identity`. */
static int count_pages(hid_t at)
{
    hsize_t dims[2] = {0, 0};
    hid_t set = H5Dopen2(at, "identity", H5P_DEFAULT), space = set >= 0 ? H5Dget_space(set) : -1;
    bool ok = space >= 0 && H5Sget_simple_extent_ndims(space) == 2 && H5Sget_simple_extent_dims(space, dims, NULL) == 2;
    if (space >= 0) H5Sclose(space);
    if (set >= 0) H5Dclose(set);
    return ok && dims[0] > 0 && dims[0] < INT32_MAX / 64 && dims[1] == GW_CKPT_IDENTITY_BYTES ? (int)dims[0] : -1;
}

/* Opens a dataset of exactly this shape. */
static hid_t open_shape(hid_t at, const char *name, int rank, const hsize_t *dims)
{
    hsize_t found[KV_RANK] = {0};
    hid_t set = H5Dopen2(at, name, H5P_DEFAULT), space = set >= 0 ? H5Dget_space(set) : -1;
    bool ok = space >= 0 && H5Sget_simple_extent_ndims(space) == rank &&
              H5Sget_simple_extent_dims(space, found, NULL) == rank &&
              !memcmp(found, dims, (size_t)rank * sizeof *dims);
    if (space >= 0) H5Sclose(space);
    if (ok) return set;
    if (set >= 0) H5Dclose(set);
    return -1;
}

static bool read_table(hid_t at, const char *name, hid_t type, int pages, int columns, void *out)
{
    hid_t set = open_shape(at, name, 2, (hsize_t[]){(hsize_t)pages, (hsize_t)columns});
    bool ok = set >= 0 && H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) >= 0;
    if (set >= 0) H5Dclose(set);
    return ok;
}

/* A file that is only read needs no lock on it, and not every shared file system has them. */
static hid_t open_file(const char *path)
{
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return -1;
#if H5_VERSION_GE(1, 10, 7)
    H5Pset_file_locking(access, false, true);
#else
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
#endif
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    return file;
}

gw_err gw_ckpt_h5_open(const char *path, struct gw_ckpt_model *model, struct gw_ckpt_file *file, struct gw_ckpt_h5 **h5)
{
    gw_err rc = GW_OK;
    const char *slash = strrchr(path, '/');
    struct gw_ckpt_h5 *opened = gw_alloc(1, sizeof *opened);
    opened->path = gw_strdup(path);
    opened->kv = -1;
    *h5 = NULL;
    snprintf(file->name, sizeof file->name, "%s", slash ? slash + 1 : path);
    enter();
    opened->file = open_file(path);
    if (opened->file < 0) rc = library_failed(GW_ERR_IO, path, "open it");
    else if (!get_attributes(opened->file, model, file) || (file->pages = count_pages(opened->file)) < 0)
        rc = gw_fail(GW_ERR_FORMAT, "%s lacks what a checkpoint must say of itself", path);
    if (rc == GW_OK) {
        file->identities = gw_alloc((size_t)file->pages, sizeof *file->identities);
        if (!read_table(opened->file, "identity", H5T_NATIVE_UINT8, file->pages, GW_CKPT_IDENTITY_BYTES,
                        file->identities))
            rc = library_failed(GW_ERR_FORMAT, path, "read its identities");
    }
    leave();
    opened->pages = file->pages;
    opened->head_dim = model->head_dim;
    if (rc == GW_OK) *h5 = opened;
    else gw_ckpt_h5_close(opened);
    return rc;
}

void gw_ckpt_h5_close(struct gw_ckpt_h5 *h5)
{
    if (!h5) return;
    enter();
    if (h5->kv >= 0) H5Dclose(h5->kv);
    if (h5->file >= 0) H5Fclose(h5->file);
    leave();
    free(h5->path);
    free(h5);
}

gw_err gw_ckpt_h5_read_tables(struct gw_ckpt_h5 *h5, struct gw_ckpt_identity *parents, int32_t *tokens)
{
    gw_err rc = GW_OK;
    enter();
    if (!read_table(h5->file, "parent", H5T_NATIVE_UINT8, h5->pages, GW_CKPT_IDENTITY_BYTES, parents) ||
        !read_table(h5->file, "tokens", H5T_NATIVE_INT32, h5->pages, GW_PAGE_TOKENS, tokens))
        rc = library_failed(GW_ERR_FORMAT, h5->path, "read its tokens");
    leave();
    return rc;
}

/* File and memory are given the same rank: the library then copies runs of bytes; with others it goes element by element, 50 times
 * slower. */
gw_err gw_ckpt_h5_read(struct gw_ckpt_h5 *h5, int row, const struct gw_ckpt_slice *own,
                       const struct gw_ckpt_slice *want, uint16_t *out)
{
    gw_err rc = GW_OK;
    int layer_begin = own->layer_begin > want->layer_begin ? own->layer_begin : want->layer_begin;
    int layer_end = own->layer_end < want->layer_end ? own->layer_end : want->layer_end;
    int kv_begin = own->kv_begin > want->kv_begin ? own->kv_begin : want->kv_begin;
    int kv_end = own->kv_end < want->kv_end ? own->kv_end : want->kv_end;
    GW_ASSERT(row >= 0 && row < h5->pages && layer_begin < layer_end && kv_begin < kv_end);
    hsize_t dim = (hsize_t)h5->head_dim;
    hsize_t shape[KV_RANK] = {(hsize_t)h5->pages,
                              (hsize_t)(own->layer_end - own->layer_begin),
                              2,
                              (hsize_t)(own->kv_end - own->kv_begin),
                              GW_PAGE_TOKENS,
                              dim};
    hsize_t wanted[KV_RANK] = {
        1,  (hsize_t)(want->layer_end - want->layer_begin), 2, (hsize_t)(want->kv_end - want->kv_begin), GW_PAGE_TOKENS,
        dim};
    hsize_t count[KV_RANK] = {1,  (hsize_t)(layer_end - layer_begin), 2, (hsize_t)(kv_end - kv_begin), GW_PAGE_TOKENS,
                              dim};
    hsize_t from[KV_RANK] = {(hsize_t)row, (hsize_t)(layer_begin - own->layer_begin), 0,
                             (hsize_t)(kv_begin - own->kv_begin)};
    hsize_t to[KV_RANK] = {0, (hsize_t)(layer_begin - want->layer_begin), 0, (hsize_t)(kv_begin - want->kv_begin)};
    enter();
    if (h5->kv < 0) h5->kv = open_shape(h5->file, "kv", KV_RANK, shape);
    hid_t file_space = h5->kv >= 0 ? H5Dget_space(h5->kv) : -1, memory_space = H5Screate_simple(KV_RANK, wanted, NULL);
    bool ok = file_space >= 0 && memory_space >= 0 &&
              H5Sselect_hyperslab(file_space, H5S_SELECT_SET, from, NULL, count, NULL) >= 0 &&
              H5Sselect_hyperslab(memory_space, H5S_SELECT_SET, to, NULL, count, NULL) >= 0 &&
              H5Dread(h5->kv, H5T_NATIVE_UINT16, memory_space, file_space, H5P_DEFAULT, out) >= 0;
    if (!ok) rc = library_failed(GW_ERR_FORMAT, h5->path, "read a page");
    if (file_space >= 0) H5Sclose(file_space);
    if (memory_space >= 0) H5Sclose(memory_space);
    leave();
    return rc;
}
