/* godwit inspect: what a model file or a checkpoint (inspect_checkpoint.c) holds, on a page; with --json for programs.
 *
 * A GGUF file that godwit can read but not run (another architecture, an unknown tokenizer) is shown all the same, with the
 * reason: the text is what `run` would say.
 */
#include "app/commands.h"
#include "app/inspect_checkpoint.h"
#include "model/arch.h"
#include "model/chat.h"
#include "model/tokenizer.h"

#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TYPES = 16, SHOWN_ELEMENTS = 4 };

static const char help[] = "Usage: godwit inspect [--tensors] [--keys] [--json] FILE|DIR\n"
                           "\n"
                           "Shows what a model file (GGUF) holds: sizes, weight types, attention, rope, tokenizer, "
                           "chat template, and whether godwit\n"
                           "can run it. Long metadata values are cut.\n"
                           "Of an OUTDIR, its folder context/, or a file in there: which KV pages the checkpoint "
                           "holds, and whether it is whole. All of it\n"
                           "is read; the exit code is 1 when something is damaged.\n"
                           "\n"
                           "  -t, --tensors  list the tensors too: name, type, shape, bytes (of a checkpoint: the "
                           "files or pages)\n"
                           "  -k, --keys     list all metadata keys, not only those that the summary leaves out\n"
                           "  -j, --json     one JSON object instead (with all keys)\n"
                           "  -h, --help     this text\n";

struct options {
    const char *path;
    bool tensors, keys, json;
};

/* What is known of the file; `model` is NULL when godwit cannot run it, and `reason` says why. */
struct subject {
    const struct gw_gguf *gguf;
    struct gw_gguf *own_gguf; /* when there is no model to own it */
    struct gw_model *model;
    char *reason;
    char *chat; /* family, or why there is none */
    bool chat_known;
    struct type_sum {
        const char *name;
        uint64_t tensors, elements, bytes;
    } types[MAX_TYPES];
    int type_count;
    char fingerprint[65];
};

/* ---- gathering ------------------------------------------------------------------------------------------------- */

static uint64_t tensor_elements(const struct gw_gguf_tensor *t)
{
    return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
}

static int larger_first(const void *a, const void *b)
{
    const struct type_sum *x = a, *y = b;
    return (x->bytes < y->bytes) - (x->bytes > y->bytes);
}

static void sum_types(struct subject *s)
{
    for (size_t i = 0; i < gw_gguf_tensor_count(s->gguf); i++) {
        const struct gw_gguf_tensor *t = gw_gguf_tensor_at(s->gguf, i);
        int at = 0;
        while (at < s->type_count && s->types[at].name != t->type->name) at++;
        GW_ASSERT(at < MAX_TYPES);
        if (at == s->type_count) s->types[s->type_count++].name = t->type->name;
        s->types[at].tensors++;
        s->types[at].elements += tensor_elements(t);
        s->types[at].bytes += t->bytes;
    }
    qsort(s->types, (size_t)s->type_count, sizeof *s->types, larger_first);
}

/* What the tokenizer and the chat code themselves make of the file. */
static void find_chat(struct subject *s)
{
    struct gw_tokenizer *tokenizer = NULL;
    struct gw_chat *chat = NULL;
    gw_err rc = gw_tokenizer_create(s->gguf, &tokenizer);
    if (rc == GW_OK) rc = gw_chat_create(s->gguf, tokenizer, NULL, &chat);
    s->chat_known = rc == GW_OK;
    s->chat = gw_strdup(rc == GW_OK ? gw_chat_family(chat) : gw_error_detail());
    gw_chat_destroy(chat);
    gw_tokenizer_destroy(tokenizer);
}

static gw_err open_subject(const char *path, struct subject *s)
{
    gw_err rc = gw_model_open(path, &s->model);
    if (rc == GW_OK) {
        s->gguf = gw_model_gguf(s->model);
        gw_model_fingerprint(s->model, s->fingerprint);
    } else {
        s->reason = gw_strdup(gw_error_detail());
        TRY(gw_gguf_open(path, &s->own_gguf)); /* not a GGUF file at all: that is the error */
        s->gguf = s->own_gguf;
    }
    sum_types(s);
    find_chat(s);
    rc = GW_OK;
out:
    return rc;
}

static void close_subject(struct subject *s)
{
    gw_model_close(s->model);
    gw_gguf_close(s->own_gguf);
    free(s->reason);
    free(s->chat);
}

/* ---- text ------------------------------------------------------------------------------------------------------ */

static void print_name(const char *name)
{
    printf("%-13s", name);
}

static void print_bytes(uint64_t bytes)
{
    if (bytes < 1024) printf("%" PRIu64 " bytes", bytes);
    else if (bytes < 1024 * 1024) printf("%.1f KiB", (double)bytes / 1024);
    else if (bytes < 1024u * 1024 * 1024) printf("%.1f MiB", (double)bytes / (1024 * 1024));
    else printf("%.2f GiB", (double)bytes / (1024.0 * 1024 * 1024));
}

static void print_count(uint64_t count)
{
    if (count < 1000000) printf("%" PRIu64, count);
    else if (count < 1000000000) printf("%.1f million", (double)count / 1e6);
    else printf("%.2f billion", (double)count / 1e9);
}

static void print_rope(const struct gw_rope *rope)
{
    print_name("rope");
    printf("%d dimensions in %s pairs, base %.10g, ", rope->dims,
           rope->style == GW_ROPE_NORM ? "neighbouring" : "half-apart", rope->base);
    switch (rope->scaling) {
    case GW_ROPE_SCALING_NONE: puts("no scaling"); break;
    case GW_ROPE_SCALING_LINEAR: printf("linear scaling by %g\n", rope->factor); break;
    case GW_ROPE_SCALING_LLAMA3: puts("Llama 3 scaling (rope_freqs.weight)"); break;
    case GW_ROPE_SCALING_YARN:
        printf("yarn scaling by %g from %d tokens\n", rope->factor, rope->original_context);
        break;
    }
}

static void print_model(const struct gw_model_info *info)
{
    char shown[GW_SHOW_BYTES];
    print_name("name");
    puts(gw_str_show((struct gw_str){info->name, strlen(info->name)}, shown));
    print_name("architecture");
    printf("%s: %d layers, d_model %d, ffn %d, norm epsilon %g\n", info->arch, info->layers, info->d_model, info->ffn,
           (double)info->norm_eps);
    print_name("attention");
    printf("%d heads of %d dimensions over %d KV heads%s\n", info->heads, info->head_dim, info->kv_heads,
           info->qkv_bias ? ", with QKV bias" : "");
    print_rope(&info->rope);
    print_name("context");
    printf("%d tokens; KV cache ", info->context);
    print_bytes((uint64_t)info->layers * (uint64_t)info->kv_heads * (uint64_t)info->head_dim *
                4); /* K and V in halves */
    puts(" a token");
    print_name("vocabulary");
    printf("%d tokens, output %s\n", info->vocab, info->tied ? "tied to the embedding" : "separate");
    print_name("parameters");
    print_count(info->parameters);
    printf("%s%s\n", info->file_type[0] ? ", " : "", info->file_type);
}

static void print_types(const struct subject *s)
{
    for (int i = 0; i < s->type_count; i++) {
        print_name(i ? "" : "weights");
        printf("%-5s %4" PRIu64 " tensors, ", s->types[i].name, s->types[i].tensors);
        print_bytes(s->types[i].bytes);
        putchar('\n');
    }
}

static void print_text_key(const struct gw_gguf *gguf, const char *label, const char *key)
{
    struct gw_str text;
    char shown[GW_SHOW_BYTES];
    if (gw_gguf_get_str(gguf, key, &text)) printf("%s%s", label, gw_str_show(text, shown));
}

static void print_tokenizer(const struct gw_gguf *gguf)
{
    enum gw_gguf_kind kind;
    uint64_t count;
    print_name("tokenizer");
    print_text_key(gguf, "", "tokenizer.ggml.model");
    print_text_key(gguf, ", pre-tokenizer ", "tokenizer.ggml.pre");
    if (gw_gguf_get_array(gguf, "tokenizer.ggml.tokens", &kind, &count)) printf(", %" PRIu64 " tokens", count);
    if (gw_gguf_get_array(gguf, "tokenizer.ggml.merges", &kind, &count)) printf(", %" PRIu64 " merges", count);
    if (gw_gguf_get_u64(gguf, "tokenizer.ggml.bos_token_id", &count)) printf(", bos %" PRIu64, count);
    if (gw_gguf_get_u64(gguf, "tokenizer.ggml.eos_token_id", &count)) printf(", eos %" PRIu64, count);
    putchar('\n');
}

/* The summary says these already. */
static bool in_summary(const char *key)
{
    static const char *const parts[] = {
        "general.architecture",
        "general.name",
        "general.file_type",
        ".block_count",
        ".context_length",
        ".embedding_length",
        ".feed_forward_length",
        ".attention.layer_norm_rms_epsilon",
        ".attention.head_count",
        ".attention.head_count_kv",
        ".attention.key_length",
        ".attention.value_length",
        ".rope.",
        ".vocab_size",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.chat_template",
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *found = strstr(key, parts[i]);
        if (found && (parts[i][0] == '.' || found == key)) return true;
    }
    return false;
}

static void print_array(const struct gw_gguf *gguf, const char *key)
{
    enum gw_gguf_kind kind = GW_GGUF_U8;
    uint64_t count = 0;
    char shown[GW_SHOW_BYTES];
    gw_gguf_get_array(gguf, key, &kind, &count);
    putchar('[');
    for (uint64_t i = 0; i < count && i < SHOWN_ELEMENTS; i++) {
        if (i) printf(", ");
        if (kind == GW_GGUF_STRING) printf("%s", gw_str_show(gw_gguf_array_str(gguf, key, i), shown));
        else printf("%.10g", gw_gguf_array_f64(gguf, key, i));
    }
    if (count > SHOWN_ELEMENTS) printf(", ... %" PRIu64 " in all", count);
    printf("]\n");
}

static void print_key(const struct gw_gguf *gguf, struct gw_str name, enum gw_gguf_kind kind)
{
    char shown[GW_SHOW_BYTES];
    char *key = gw_strndup(name.data, name.bytes);
    struct gw_str text;
    uint64_t whole;
    double real;
    printf("  %-40s ", gw_str_show(name, shown));
    if (kind == GW_GGUF_ARRAY) print_array(gguf, key);
    else if (gw_gguf_get_str(gguf, key, &text)) printf("%s\n", gw_str_show(text, shown));
    else if (kind == GW_GGUF_BOOL && gw_gguf_get_u64(gguf, key, &whole)) puts(whole ? "true" : "false");
    else if (gw_gguf_get_u64(gguf, key, &whole)) printf("%" PRIu64 "\n", whole);
    else if (gw_gguf_get_f64(gguf, key, &real)) printf("%.10g\n", real);
    else puts("?"); /* a key with a NUL inside: it cannot be asked for by name */
    free(key);
}

static void print_keys(const struct gw_gguf *gguf, bool all)
{
    enum gw_gguf_kind kind;
    printf("metadata     %zu keys%s\n", gw_gguf_key_count(gguf), all ? "" : "; beside those above:");
    for (size_t i = 0; i < gw_gguf_key_count(gguf); i++) {
        struct gw_str name = gw_gguf_key(gguf, i, &kind);
        char *key = gw_strndup(name.data, name.bytes);
        if (all || !in_summary(key)) print_key(gguf, name, kind);
        free(key);
    }
}

static void print_tensors(const struct gw_gguf *gguf)
{
    char shown[GW_SHOW_BYTES], shape[96];
    printf("tensors      %zu\n", gw_gguf_tensor_count(gguf));
    for (size_t i = 0; i < gw_gguf_tensor_count(gguf); i++) {
        const struct gw_gguf_tensor *t = gw_gguf_tensor_at(gguf, i);
        int used = 0;
        for (int d = 0; d < t->dims; d++)
            used += snprintf(shape + used, sizeof shape - (size_t)used, "%s%" PRIu64, d ? " x " : "", t->shape[d]);
        printf("  %-32s %-5s %-18s ", gw_str_show(t->name, shown), t->type->name, shape);
        print_bytes(t->bytes);
        putchar('\n');
    }
}

static void print_text(const struct subject *s, const struct options *options)
{
    print_name("file");
    printf("%s, GGUF version %u, ", options->path, gw_gguf_version(s->gguf));
    print_bytes(gw_gguf_file_bytes(s->gguf));
    putchar('\n');
    if (s->model) print_model(gw_model_info(s->model));
    print_types(s);
    print_tokenizer(s->gguf);
    print_name("chat");
    puts(s->chat);
    print_name(s->model ? "fingerprint" : "cannot run");
    puts(s->model ? s->fingerprint : s->reason);
    print_keys(s->gguf, options->keys || !s->model);
    if (options->tensors) print_tensors(s->gguf);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

/* JSON holds UTF-8 only: other bytes become '?'. */
static json_t *json_text(struct gw_str text)
{
    json_t *value = json_stringn(text.data, text.bytes);
    if (value) return value;
    char *copy = gw_strndup(text.data, text.bytes);
    for (size_t i = 0; i < text.bytes; i++)
        if ((unsigned char)copy[i] >= 0x80 || copy[i] == 0) copy[i] = '?';
    value = json_stringn(copy, text.bytes);
    free(copy);
    return value;
}

static json_t *json_number(double value)
{
    return value - value == 0 ? json_real(value) : json_null(); /* JSON has no infinities */
}

/* At most 256 elements: vocabularies are what `tokenize` is for. */
static json_t *json_array_value(const struct gw_gguf *gguf, const char *key)
{
    enum gw_gguf_kind kind = GW_GGUF_U8;
    uint64_t count = 0;
    gw_gguf_get_array(gguf, key, &kind, &count);
    json_t *elements = json_array();
    for (uint64_t i = 0; i < count && i < (count > 256 ? SHOWN_ELEMENTS : count); i++) {
        double number = kind == GW_GGUF_STRING ? 0 : gw_gguf_array_f64(gguf, key, i);
        bool whole = kind != GW_GGUF_F32 && kind != GW_GGUF_F64 && number >= -0x1p53 && number <= 0x1p53;
        json_array_append_new(elements, kind == GW_GGUF_STRING ? json_text(gw_gguf_array_str(gguf, key, i))
                                        : whole                ? json_integer((json_int_t)number)
                                                               : json_number(number));
    }
    if (count <= 256) return elements;
    return json_pack("{s:I, s:o}", "count", (json_int_t)count, "first", elements);
}

static json_t *json_keys(const struct gw_gguf *gguf)
{
    json_t *keys = json_object();
    for (size_t i = 0; i < gw_gguf_key_count(gguf); i++) {
        enum gw_gguf_kind kind;
        struct gw_str name = gw_gguf_key(gguf, i, &kind), text;
        char *key = gw_strndup(name.data, name.bytes);
        json_t *value = NULL, *label = json_text(name);
        uint64_t whole;
        double real;
        if (strlen(key) != name.bytes) value = json_null();
        else if (kind == GW_GGUF_ARRAY) value = json_array_value(gguf, key);
        else if (gw_gguf_get_str(gguf, key, &text)) value = json_text(text);
        else if (kind == GW_GGUF_BOOL && gw_gguf_get_u64(gguf, key, &whole)) value = json_boolean(whole);
        else if (gw_gguf_get_u64(gguf, key, &whole) && whole <= INT64_MAX) value = json_integer((json_int_t)whole);
        else if (gw_gguf_get_f64(gguf, key, &real)) value = json_number(real);
        if (json_object_set_new(keys, json_string_value(label), value ? value : json_null()))
            GW_ASSERT(!"label is UTF-8");
        json_decref(label);
        free(key);
    }
    return keys;
}

static json_t *json_model(const struct gw_model_info *info)
{
    static const char *const scalings[] = {"none", "linear", "llama3", "yarn"};
    json_t *rope = json_pack("{s:s, s:i, s:f, s:s, s:f}", "pairs", info->rope.style == GW_ROPE_NORM ? "norm" : "neox",
                             "dims", info->rope.dims, "base", info->rope.base, "scaling", scalings[info->rope.scaling],
                             "factor", info->rope.factor);
    json_t *name = json_text((struct gw_str){info->name, strlen(info->name)});
    return json_pack("{s:s, s:o, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:b, s:b, s:o}", "architecture",
                     info->arch, "name", name, "file_type", info->file_type, "parameters", (json_int_t)info->parameters,
                     "layers", info->layers, "d_model", info->d_model, "ffn", info->ffn, "heads", info->heads,
                     "kv_heads", info->kv_heads, "head_dim", info->head_dim, "vocab", info->vocab, "context",
                     info->context, "norm_eps", (double)info->norm_eps, "tied", info->tied, "qkv_bias", info->qkv_bias,
                     "rope", rope);
}

static json_t *json_tensors(const struct gw_gguf *gguf)
{
    json_t *list = json_array();
    for (size_t i = 0; i < gw_gguf_tensor_count(gguf); i++) {
        const struct gw_gguf_tensor *t = gw_gguf_tensor_at(gguf, i);
        json_t *shape = json_array();
        for (int d = 0; d < t->dims; d++) json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        json_array_append_new(list, json_pack("{s:o, s:s, s:o, s:I}", "name", json_text(t->name), "type", t->type->name,
                                              "shape", shape, "bytes", (json_int_t)t->bytes));
    }
    return list;
}

static void print_json(const struct subject *s, const struct options *options)
{
    json_t *root = json_object(), *types = json_object();
    for (int i = 0; i < s->type_count; i++)
        json_object_set_new(types, s->types[i].name,
                            json_pack("{s:I, s:I, s:I}", "tensors", (json_int_t)s->types[i].tensors, "elements",
                                      (json_int_t)s->types[i].elements, "bytes", (json_int_t)s->types[i].bytes));
    json_object_set_new(root, "file", json_text((struct gw_str){options->path, strlen(options->path)}));
    json_object_set_new(root, "bytes", json_integer((json_int_t)gw_gguf_file_bytes(s->gguf)));
    json_object_set_new(root, "gguf_version", json_integer((json_int_t)gw_gguf_version(s->gguf)));
    json_object_set_new(root, "runnable", json_boolean(s->model != NULL));
    if (s->reason) json_object_set_new(root, "reason", json_text((struct gw_str){s->reason, strlen(s->reason)}));
    if (s->model) {
        json_object_set_new(root, "fingerprint", json_string(s->fingerprint));
        json_object_set_new(root, "model", json_model(gw_model_info(s->model)));
    }
    json_object_set_new(root, "chat", s->chat_known ? json_string(s->chat) : json_null());
    json_object_set_new(root, "types", types);
    json_object_set_new(root, "metadata", json_keys(s->gguf));
    if (options->tensors) json_object_set_new(root, "tensors", json_tensors(s->gguf));
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    putchar('\n');
    json_decref(root);
}

/* ---- command --------------------------------------------------------------------------------------------------- */

gw_err gw_cmd_inspect(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct options options = {0};
    struct subject subject = {0};
    static const struct option known[] = {{"tensors", no_argument, NULL, 't'},
                                          {"keys", no_argument, NULL, 'k'},
                                          {"json", no_argument, NULL, 'j'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    optind = 1;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "tkjh", known, NULL)) != -1;) {
        switch (option) {
        case 't': options.tensors = true; break;
        case 'k': options.keys = true; break;
        case 'j': options.json = true; break;
        case 'h': fputs(help, stdout); return GW_OK;
        default:
            return gw_fail(GW_ERR_USAGE, "inspect: unknown option %s; see godwit inspect --help", argv[optind - 1]);
        }
    }
    if (optind != argc - 1) return gw_fail(GW_ERR_USAGE, "inspect: give one FILE or DIR; see godwit inspect --help");
    options.path = argv[optind];
    if (gw_inspect_is_checkpoint(options.path))
        return gw_inspect_checkpoint(options.path, options.tensors, options.json);
    TRY(open_subject(options.path, &subject));
    if (options.json) print_json(&subject, &options);
    else print_text(&subject, &options);
out:
    close_subject(&subject);
    return rc;
}
