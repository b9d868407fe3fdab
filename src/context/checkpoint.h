/* Checkpoints of KV state: pages of keys and values in HDF5 files, found again by what they are, not by where they were.
 *
 * A KV page that is full depends on the model and on the tokens up to its end, and on nothing else. So a page is named by its *identity*:
 * a 128-bit hash of the page before it (that is, of all tokens before it) and its own 32 tokens, begun with the model's fingerprint.
 * Pages never change once they are full. Hence a checkpoint is a growing set of pages, equal beginnings are stored once, what is
 * saved already is never saved again, and any whole page that is found is right, whoever wrote it and when.
 *
 * A *slice* of a page is what one rank holds of it: a run of layers and a run of kv heads. Each rank's *writer* puts its slices into files of its
 * own (OUTDIR/context/<increment>-<writer>-<hash>.h5); the leader's *set* names the files that count in OUTDIR/context/manifest.json; any
 * rank *opens* the set and reads any slice, cut in any other way. A page exists when the files together have all its layers and heads.
 * (docs/formats.md has the format, docs/usage.md what people see.)
 *
 * Every file carries a hash of itself and is checked against it before HDF5 sees it, so damage of any kind is found and named, and
 * costs the pages in that file: they do not exist any more, and are computed again.
 *
 * The library HDF5 need not be thread-safe: all calls to it take one lock of this module. Otherwise: a writer, a set, a reader is
 * used by one thread at a time. Local: nothing here knows MPI. Files come to other ranks through the shared OUTDIR.
 */
#ifndef GW_CONTEXT_CHECKPOINT_H
#define GW_CONTEXT_CHECKPOINT_H

#include "base/error.h"
#include "base/mem.h"
#include "kernels/kernels.h"
#include "plan/layout.h"

#include <stdint.h>

#define GW_CKPT_FORMAT 1
#define GW_CKPT_FOLDER "context" /* in OUTDIR */
enum { GW_CKPT_IDENTITY_BYTES = 16, GW_CKPT_NAME_BYTES = 64 };

/* What a set of pages belongs to. Two models that differ in anything that changes keys or values have different fingerprints. */
struct gw_ckpt_model {
    char fingerprint[65]; /* gw_model_fingerprint() */
    int layers, kv_heads, head_dim;
};

/* Fills it from a fingerprint and the dimensions. */
struct gw_ckpt_model gw_ckpt_model(const char *fingerprint, const struct gw_dims *dims);

struct gw_ckpt_identity {
    uint8_t bytes[GW_CKPT_IDENTITY_BYTES];
};

/* The identity of the page with `tokens` after the page `parent` (NULL: the first page of a sequence). Pure. */
struct gw_ckpt_identity gw_ckpt_identity(const struct gw_ckpt_model *model, const struct gw_ckpt_identity *parent,
                                         const int32_t tokens[GW_PAGE_TOKENS]);
/* Identities of the full pages of tokens[0 .. count), count / GW_PAGE_TOKENS of them. */
void gw_ckpt_identities(const struct gw_ckpt_model *model, const int32_t *tokens, int count,
                        struct gw_ckpt_identity *identities);

/* Part of a page: layers and kv heads, [begin, end). Its data are half precision [layer][key|value][kv_head][token][dim], so each
 * layer is what gw_backend_ops.kv_export gives. */
struct gw_ckpt_slice {
    int layer_begin, layer_end;
    int kv_begin, kv_end;
};

static inline size_t gw_ckpt_layer_halves(const struct gw_ckpt_model *model, const struct gw_ckpt_slice *slice)
{
    return (size_t)(slice->kv_end - slice->kv_begin) * 2 * GW_PAGE_TOKENS * (size_t)model->head_dim;
}

static inline size_t gw_ckpt_slice_halves(const struct gw_ckpt_model *model, const struct gw_ckpt_slice *slice)
{
    return (size_t)(slice->layer_end - slice->layer_begin) * gw_ckpt_layer_halves(model, slice);
}

/* A finished file, as the manifest has it. */
struct gw_ckpt_file {
    char name[GW_CKPT_NAME_BYTES]; /* in the folder */
    uint64_t bytes;
    uint64_t hash; /* XXH3 of its bytes after the first 512 */
    uint64_t increment;
    int writer;
    struct gw_ckpt_slice slice;
    int pages;
    struct gw_ckpt_identity *identities; /* [pages], heap */
};

void gw_ckpt_file_free(struct gw_ckpt_file *file); /* clears it */
/* For the way through MPI. GW_ERR_PEER when the message is not one. */
void gw_ckpt_file_encode(const struct gw_ckpt_file *file, struct gw_buf *out);
GW_CHECK gw_err gw_ckpt_file_decode(struct gw_reader *in, struct gw_ckpt_file *file);

/* ---- writer: one per rank, with a thread of its own ------------------------------------------------------------- */

struct gw_ckpt_writer; /* opaque */

struct gw_ckpt_writer_config {
    const char *dir; /* OUTDIR; copied */
    struct gw_ckpt_model model;
    int writer;        /* this rank's number, for the names of its files */
    size_t part_bytes; /* about so large are files. 0: 4 MiB */
    size_t
        staging_bytes; /* memory for pages that wait for the thread; two parts at least. 0: 8 MiB. Taken as needed, given back when written */
    int nice; /* priority of the thread below the rank's own (0 .. 19), so that decoding goes first */
};

/* Makes OUTDIR/context if it is not there and starts the thread. */
GW_CHECK gw_err gw_ckpt_writer_create(const struct gw_ckpt_writer_config *config, struct gw_ckpt_writer **writer);
/* Ends the thread: a file that it is writing is finished first, pages that were not handed over are dropped. NULL is fine. */
void gw_ckpt_writer_destroy(struct gw_ckpt_writer *writer);

/* Pages of this slice for which a writer with the sizes of 0 has room before its thread has written any; INT_MAX for an empty slice. */
int gw_ckpt_staged_pages(const struct gw_ckpt_model *model, const struct gw_ckpt_slice *slice);

/* Begins increment `increment` (counts up; gw_ckpt_set_increment() + 1 at the leader). The one before it has been ended. */
void gw_ckpt_writer_begin(struct gw_ckpt_writer *writer, uint64_t increment);
/* Room for a slice of a page: gw_ckpt_slice_halves() halves, zeroed or not; fill them before the next call of any function here. NULL when the
 * thread is behind: try again at a later step. Slices of different shapes may follow each other (each change starts a new file).
 * `parent` is NULL for the first page of a sequence. Never blocks, copies nothing but 16 + 16 + 128 bytes. */
uint16_t *gw_ckpt_writer_page(struct gw_ckpt_writer *writer, const struct gw_ckpt_slice *slice,
                              const struct gw_ckpt_identity *parent, const int32_t tokens[GW_PAGE_TOKENS]);
/* Takes back the page that gw_ckpt_writer_page() has just given (its export failed). */
void gw_ckpt_writer_cancel(struct gw_ckpt_writer *writer);
/* Hands over what is left of the increment. Its GW_CKPT_DONE comes when all of it is on disk (or has failed). Never blocks. */
void gw_ckpt_writer_end(struct gw_ckpt_writer *writer);

enum gw_ckpt_report_kind {
    GW_CKPT_FILE,  /* a file is on disk: give it to the leader's set */
    GW_CKPT_ERROR, /* a file could not be written (disk full): its pages are not saved. The job goes on */
    GW_CKPT_DONE   /* the increment has ended; comes after all its files */
};

struct gw_ckpt_report {
    enum gw_ckpt_report_kind kind;
    uint64_t increment;
    struct gw_ckpt_file file; /* GW_CKPT_FILE; the receiver frees it */
    char error[256];          /* GW_CKPT_ERROR: one line */
    int files, pages;         /* GW_CKPT_DONE: written */
    uint64_t bytes;
    double seconds, cpu_s; /* from begin to the end; processor time of the thread. Of GW_CKPT_FILE: for this file */
};

/* The next report, in the order in which things happened. False: none yet. Never blocks. */
bool gw_ckpt_writer_poll(struct gw_ckpt_writer *writer, struct gw_ckpt_report *report);
/* Neither unfinished files nor reports: destroying it would lose nothing. */
bool gw_ckpt_writer_idle(struct gw_ckpt_writer *writer);

/* ---- set: the leader's view, owner of manifest.json --------------------------------------------------------------- */

struct gw_ckpt_set; /* opaque */

/* Reads the manifest of OUTDIR/context (makes the folder if there is none). Files that are missing or have another size are dropped with
 * a warning. A manifest that is damaged or absent is made anew from the files themselves, those that are whole.
 * With `sweep`, files that do not count are removed: at the beginning of a launch, when no writer of this OUTDIR lives.
 * GW_ERR_MISMATCH: the folder belongs to another model. GW_ERR_IO. */
GW_CHECK gw_err gw_ckpt_set_open(const char *dir, const struct gw_ckpt_model *model, bool sweep,
                                 struct gw_ckpt_set **set);
void gw_ckpt_set_close(struct gw_ckpt_set *set);

/* Takes a file (its identities become the set's, `file` is cleared also on error). It counts from the next commit on.
 * GW_ERR_NOT_FOUND: it is not there with that size. */
GW_CHECK gw_err gw_ckpt_set_add(struct gw_ckpt_set *set, struct gw_ckpt_file *file);
/* Marks files to be dropped by the next commit: all whose share of pages in keep[0 .. count) is below `min_share` (0 < min_share <= 1), or
 * is 0. Their kept pages are lost to the set: *lost (may be NULL) gets their number; gw_ckpt_set_has() tells which. */
void gw_ckpt_set_prune(struct gw_ckpt_set *set, const struct gw_ckpt_identity *keep, size_t count, double min_share,
                       size_t *lost);
/* Writes the manifest durably, then unlinks what was dropped: a crash at any instant leaves a whole set. On error the old one counts. */
GW_CHECK gw_err gw_ckpt_set_commit(struct gw_ckpt_set *set);

/* Does the set have all layers and heads of the page? So it need not be saved (again). */
bool gw_ckpt_set_has(const struct gw_ckpt_set *set, const struct gw_ckpt_identity *identity);
uint64_t gw_ckpt_set_increment(const struct gw_ckpt_set *set); /* highest so far, 0 without any */
int gw_ckpt_set_files(const struct gw_ckpt_set *set);
uint64_t gw_ckpt_set_bytes(const struct gw_ckpt_set *set);

/* ---- reader: any rank ---------------------------------------------------------------------------------------------- */

struct gw_ckpt; /* opaque */

/* Reads the manifest; changes nothing. As gw_ckpt_set_open without sweep, but a folder that is not there is an empty set. */
GW_CHECK gw_err gw_ckpt_open(const char *dir, const struct gw_ckpt_model *model, struct gw_ckpt **ckpt);
void gw_ckpt_close(struct gw_ckpt *ckpt);

/* Is the whole page there: all layers, all heads, from files that are not known to be damaged? Content is checked when a file is first
 * read, so this may turn false later. */
bool gw_ckpt_has(struct gw_ckpt *ckpt, const struct gw_ckpt_identity *identity);
/* Reads a slice of a page into out (gw_ckpt_slice_halves()). A file that turns out to be damaged is named in one warning and left out from then on;
 * GW_ERR_NOT_FOUND when the others do not have it: compute the page. Never gives data that are not the page's. */
GW_CHECK gw_err gw_ckpt_read(struct gw_ckpt *ckpt, const struct gw_ckpt_identity *identity,
                             const struct gw_ckpt_slice *slice, uint16_t *out);

/* To agree with other ranks on what exists before anything is read: check file i (reads all of it; a damaged one is left out with one
 * warning), or leave out one that another rank has found damaged. The order of files is that of the manifest. */
int gw_ckpt_files(const struct gw_ckpt *ckpt);
const struct gw_ckpt_file *gw_ckpt_file_at(const struct gw_ckpt *ckpt, int i);
bool gw_ckpt_verify(struct gw_ckpt *ckpt, int i);
void gw_ckpt_exclude(struct gw_ckpt *ckpt, int i);

/* ---- looking at it: `godwit inspect` -------------------------------------------------------------------------------- */

struct gw_ckpt_info {
    struct gw_ckpt_model model;
    struct gw_ckpt_file file;         /* identities filled when it is whole */
    struct gw_ckpt_identity *parents; /* [file.pages]; zero for first pages */
    int32_t *tokens;                  /* [file.pages][GW_PAGE_TOKENS] */
    bool whole;
    char trouble[256]; /* one line when it is not */
};

/* Checks one checkpoint file from its first to its last byte, all pages read through HDF5. GW_ERR_FORMAT: not a checkpoint at all;
 * GW_ERR_NOT_FOUND, GW_ERR_IO. A damaged one is no error. gw_ckpt_info_free() frees. */
GW_CHECK gw_err gw_ckpt_inspect(const char *path, struct gw_ckpt_info *info);
void gw_ckpt_info_free(struct gw_ckpt_info *info);

/* A whole folder: its manifest and every file in it. */
struct gw_ckpt_folder {
    struct gw_ckpt_model model;
    uint64_t increment;
    bool rebuilt;               /* the manifest is absent or damaged: the files were looked at instead */
    int missing;                /* files of the manifest that are not there with their size (each named in a warning) */
    struct gw_ckpt_file *files; /* [file_count] */
    char (*troubles)[256];      /* [file_count] "" when the file is whole */
    int file_count, damaged;
    int pages, pages_whole; /* different pages; those of which all layers and heads are in files that are whole */
};

/* Checks the folder `path` (an OUTDIR/context): all files are read. Damage is no error. GW_ERR_NOT_FOUND: no checkpoint there. */
GW_CHECK gw_err gw_ckpt_inspect_folder(const char *path, struct gw_ckpt_folder *info);
void gw_ckpt_folder_free(struct gw_ckpt_folder *info);

#endif
