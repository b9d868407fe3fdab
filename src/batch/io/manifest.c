/* See manifest.h. */
#include "batch/io/manifest.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "batch/io/json.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FILE_BYTES ((size_t)1 << 20)
#define HASH_BLOCK_BYTES ((size_t)1 << 20)

void gw_manifest_set(char **field, const char *value)
{
    char *copy = gw_strdup(value);
    free(*field);
    *field = copy;
}

void gw_manifest_add_option(struct gw_manifest *manifest, const char *name, const char *value)
{
    GW_ASSERT(manifest->option_count < GW_MANIFEST_MAX_OPTIONS);
    struct gw_manifest_option *option = &manifest->options[manifest->option_count++];
    option->name = gw_strdup(name);
    option->value = gw_strdup(value);
}

static void add_float(struct gw_manifest *manifest, const char *name, float value)
{
    struct gw_buf text = {0};
    gw_json_add_float(&text, value);
    gw_buf_add(&text, "", 1);
    gw_manifest_add_option(manifest, name, (char *)text.data);
    gw_buf_free(&text);
}

static void add_integer(struct gw_manifest *manifest, const char *name, long long value)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", value);
    gw_manifest_add_option(manifest, name, text);
}

void gw_manifest_add_defaults(struct gw_manifest *manifest, const struct gw_request_defaults *defaults)
{
    const struct gw_sampling *s = &defaults->sampling;
    add_float(manifest, "temperature", s->temperature);
    add_float(manifest, "top_p", s->top_p);
    add_float(manifest, "min_p", s->min_p);
    add_float(manifest, "repetition_penalty", s->repetition_penalty);
    add_integer(manifest, "top_k", s->top_k);
    if (s->seed_set) add_integer(manifest, "seed", (long long)s->seed);
    else gw_manifest_add_option(manifest, "seed", "none");
    add_integer(manifest, "max_tokens", s->max_tokens);
    add_integer(manifest, "ignore_eos", s->ignore_eos);
    add_integer(manifest, "logprobs", s->logprobs);
    add_integer(manifest, "max_line_bytes",
                (long long)(defaults->max_line_bytes ? defaults->max_line_bytes : GW_REQUEST_MAX_LINE_BYTES));
}

const char *gw_manifest_option(const struct gw_manifest *manifest, const char *name)
{
    for (size_t i = 0; i < manifest->option_count; i++)
        if (strcmp(manifest->options[i].name, name) == 0) return manifest->options[i].value;
    return NULL;
}

void gw_manifest_free(struct gw_manifest *manifest)
{
    free(manifest->program);
    free(manifest->model_name);
    free(manifest->model_path);
    free(manifest->model_hash);
    free(manifest->input_path);
    free(manifest->input_hash);
    for (size_t i = 0; i < manifest->option_count; i++) {
        free(manifest->options[i].name);
        free(manifest->options[i].value);
    }
    *manifest = (struct gw_manifest){0};
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static void add_member(struct gw_buf *buf, const char *indent, const char *name, const char *value)
{
    gw_buf_add_text(buf, indent);
    gw_json_add_string(buf, name, strlen(name));
    gw_buf_add_text(buf, ": ");
    gw_json_add_string(buf, value ? value : "", value ? strlen(value) : 0);
}

static void add_number(struct gw_buf *buf, const char *name, long long value)
{
    gw_buf_add_text(buf, ",\n  ");
    gw_json_add_string(buf, name, strlen(name));
    gw_buf_add_text(buf, ": ");
    gw_json_add_integer(buf, value);
}

static void format(const struct gw_manifest *m, double started_at, struct gw_buf *buf)
{
    gw_buf_add_text(buf, "{\n  \"format\": ");
    gw_json_add_integer(buf, GW_MANIFEST_FORMAT);
    add_member(buf, ",\n  ", "program", m->program);
    add_member(buf, ",\n  ", "model_name", m->model_name);
    add_member(buf, ",\n  ", "model_path", m->model_path);
    add_member(buf, ",\n  ", "model_hash", m->model_hash);
    add_member(buf, ",\n  ", "input_path", m->input_path);
    add_member(buf, ",\n  ", "input_hash", m->input_hash);
    add_number(buf, "input_bytes", (long long)m->input_bytes);
    add_number(buf, "created", (long long)m->created);
    add_number(buf, "started_at", (long long)started_at);
    gw_buf_add_text(buf, ",\n  \"options\": {");
    for (size_t i = 0; i < m->option_count; i++)
        add_member(buf, i ? ",\n    " : "\n    ", m->options[i].name, m->options[i].value);
    gw_buf_add_text(buf, m->option_count ? "\n  }\n}\n" : "}\n}\n");
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static gw_err take_string(const char *path, const json_t *root, const char *name, char **out)
{
    const char *text = json_string_value(json_object_get(root, name));
    if (!text) return gw_fail(GW_ERR_FORMAT, "%s: %s is missing; the file is not one that godwit wrote", path, name);
    gw_manifest_set(out, text);
    return GW_OK;
}

static gw_err take_integer(const char *path, const json_t *root, const char *name, int64_t *out)
{
    const json_t *value = json_object_get(root, name);
    if (!json_is_integer(value))
        return gw_fail(GW_ERR_FORMAT, "%s: %s is missing; the file is not one that godwit wrote", path, name);
    *out = json_integer_value(value);
    return GW_OK;
}

static gw_err take_options(const char *path, json_t *root, struct gw_manifest *out)
{
    json_t *options = json_object_get(root, "options"), *value;
    const char *name;
    if (!json_is_object(options) || json_object_size(options) > GW_MANIFEST_MAX_OPTIONS)
        return gw_fail(GW_ERR_FORMAT, "%s: options is missing; the file is not one that godwit wrote", path);
    json_object_foreach(options, name, value)
    {
        if (!json_is_string(value)) return gw_fail(GW_ERR_FORMAT, "%s: option %s is not a string", path, name);
        gw_manifest_add_option(out, name, json_string_value(value));
    }
    return GW_OK;
}

static gw_err parse(const char *path, json_t *root, struct gw_manifest *out)
{
    gw_err rc = GW_OK;
    int64_t format_version, input_bytes, started_at;
    TRY(take_integer(path, root, "format", &format_version));
    if (format_version != GW_MANIFEST_FORMAT)
        FAIL(GW_ERR_FORMAT,
             "%s has format %lld, this godwit knows %d; use the godwit that began the job, or a new output folder",
             path, (long long)format_version, GW_MANIFEST_FORMAT);
    TRY(take_string(path, root, "program", &out->program));
    TRY(take_string(path, root, "model_name", &out->model_name));
    TRY(take_string(path, root, "model_path", &out->model_path));
    TRY(take_string(path, root, "model_hash", &out->model_hash));
    TRY(take_string(path, root, "input_path", &out->input_path));
    TRY(take_string(path, root, "input_hash", &out->input_hash));
    TRY(take_integer(path, root, "input_bytes", &input_bytes));
    TRY(take_integer(path, root, "created", &out->created));
    TRY(take_integer(path, root, "started_at", &started_at));
    TRY(take_options(path, root, out));
    out->input_bytes = (uint64_t)input_bytes;
    out->started_at = (double)started_at;
out:
    return rc;
}

gw_err gw_manifest_read(const char *dir, struct gw_manifest *out)
{
    gw_err rc = GW_OK;
    char *path = gw_asprintf("%s/manifest.json", dir), *text = NULL;
    json_t *root = NULL;
    json_error_t error;
    size_t bytes;
    *out = (struct gw_manifest){0};
    TRY(gw_file_read(path, MAX_FILE_BYTES, &text, &bytes));
    root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(root))
        FAIL(GW_ERR_FORMAT, "%s is not a JSON object (line %d); the file is not one that godwit wrote", path,
             root ? 1 : error.line);
    TRY(parse(path, root, out));
out:
    json_decref(root);
    free(text);
    free(path);
    if (rc != GW_OK) gw_manifest_free(out);
    return rc;
}

/* ---- comparing ------------------------------------------------------------------------------------------------- */

static gw_err differs(const char *dir, const char *what, const char *there, const char *here, const char *advice)
{
    return gw_fail(GW_ERR_MISMATCH, "%s was begun with %s %s, this run has %s; %s, or give another output folder", dir,
                   what, there ? there : "(not set)", here ? here : "(not set)", advice);
}

static gw_err compare(const char *dir, const struct gw_manifest *there, const struct gw_manifest *here)
{
    if (strcmp(there->input_hash, here->input_hash) != 0)
        return differs(dir, "input", there->input_path, "an input of other contents",
                       "its lines must stay as they were: restore that file");
    if (strcmp(there->model_hash, here->model_hash) != 0)
        return differs(dir, "model", there->model_path, here->model_path, "use that model file");
    if (strcmp(there->model_name, here->model_name) != 0)
        return differs(dir, "model name", there->model_name, here->model_name, "use the same name");
    if (there->created != here->created) {
        char was[24], is[24];
        snprintf(was, sizeof was, "%lld", (long long)there->created);
        snprintf(is, sizeof is, "%lld", (long long)here->created);
        return differs(dir, "created", was, is, "use the same value");
    }
    for (int side = 0; side < 2; side++) { /* an option that only one of them has differs too */
        const struct gw_manifest *listed = side ? there : here;
        for (size_t i = 0; i < listed->option_count; i++) {
            const char *name = listed->options[i].name;
            const char *was = gw_manifest_option(there, name), *is = gw_manifest_option(here, name);
            if (!was || !is || strcmp(was, is) != 0) return differs(dir, name, was, is, "use the same option");
        }
    }
    return GW_OK;
}

gw_err gw_manifest_open_or_create(const char *dir, const struct gw_manifest *wanted, bool *created_now)
{
    gw_err rc = GW_OK;
    struct gw_manifest there = {0};
    struct gw_buf text = {0};
    GW_ASSERT(wanted->program && wanted->model_name && wanted->model_path && wanted->model_hash && wanted->input_path &&
              wanted->input_hash);
    char *path = gw_asprintf("%s/manifest.json", dir);
    char *output = gw_asprintf("%s/output.jsonl", dir);
    *created_now = access(path, F_OK) != 0;
    if (*created_now) {
        if (access(output, F_OK) == 0)
            FAIL(GW_ERR_MISMATCH,
                 "%s has an output.jsonl but no manifest.json, so nothing tells what it belongs to; give another "
                 "output folder",
                 dir);
        format(wanted, gw_clock_wall_s(), &text);
        TRY(gw_file_replace(path, text.data, text.bytes, true));
    } else {
        TRY(gw_manifest_read(dir, &there));
        TRY(compare(dir, &there, wanted));
    }
out:
    gw_manifest_free(&there);
    gw_buf_free(&text);
    free(output);
    free(path);
    return rc;
}

gw_err gw_manifest_hash_file(const char *path, char hex[65], uint64_t *bytes)
{
    gw_err rc = GW_OK;
    struct gw_sha256 *sha = NULL;
    uint8_t *block = NULL;
    *bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return gw_fail(errno == ENOENT ? GW_ERR_NOT_FOUND : GW_ERR_IO, "cannot open %s: %s", path, strerror(errno));
    sha = gw_sha256_create();
    block = gw_alloc(HASH_BLOCK_BYTES, 1);
    for (;;) {
        ssize_t got = read(fd, block, HASH_BLOCK_BYTES);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) FAIL(GW_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) break;
        gw_sha256_add(sha, block, (size_t)got);
        *bytes += (uint64_t)got;
    }
out:
    gw_sha256_finish(sha, hex); /* also frees it */
    free(block);
    close(fd);
    return rc;
}
