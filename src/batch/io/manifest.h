/* manifest.json: what an OUTDIR belongs to. Written once, atomically, never rewritten. Local.
 *
 * It holds everything that decides the bytes of output.jsonl: the model's and the input's fingerprint, the model name
 * and `created` as they appear in the output, and run-wide options as (name, value) pairs. Carrying on with anything
 * else would mix answers of two jobs, so it is refused by name. started_at and the paths are for people and are not
 * compared.
 */
#ifndef GW_BATCH_IO_MANIFEST_H
#define GW_BATCH_IO_MANIFEST_H

#include "base/error.h"
#include "batch/request.h"

#include <stdint.h>

#define GW_MANIFEST_FORMAT 1
#define GW_MANIFEST_MAX_OPTIONS 64

struct gw_manifest_option {
    char *name;
    char *value;
};

struct gw_manifest {
    char *program;    /* "godwit 0.1.0"; not compared */
    char *model_name; /* the `model` of output lines */
    char *model_path; /* not compared */
    char *model_hash; /* whatever the caller fingerprints a model with */
    char *input_path; /* absolute; not compared */
    char *input_hash; /* SHA-256, gw_manifest_hash_file() */
    uint64_t input_bytes;
    int64_t created;   /* the `created` of output lines */
    double started_at; /* seconds since 1970; not compared */
    struct gw_manifest_option options[GW_MANIFEST_MAX_OPTIONS];
    size_t option_count;
};

/* Strings are copied; gw_manifest_free() frees all. */
void gw_manifest_set(char **field, const char *value);
void gw_manifest_add_option(struct gw_manifest *manifest, const char *name, const char *value);
/* The run-wide sampling defaults, one option a field, and max_line_bytes. */
void gw_manifest_add_defaults(struct gw_manifest *manifest, const struct gw_request_defaults *defaults);
/* NULL if there is none of that name. */
const char *gw_manifest_option(const struct gw_manifest *manifest, const char *name);

/* Creates DIR/manifest.json from `wanted` (every string set, asserted), or compares with the one there. *created_now
 * tells which. GW_ERR_MISMATCH names the first thing that differs, both values, and what to do. */
GW_CHECK gw_err gw_manifest_open_or_create(const char *dir, const struct gw_manifest *wanted, bool *created_now);
/* GW_ERR_NOT_FOUND when DIR is no OUTDIR, GW_ERR_FORMAT. */
GW_CHECK gw_err gw_manifest_read(const char *dir, struct gw_manifest *out);
void gw_manifest_free(struct gw_manifest *manifest);

/* SHA-256 and size of a whole file, streamed. */
GW_CHECK gw_err gw_manifest_hash_file(const char *path, char hex[65], uint64_t *bytes);

#endif
