/* See lease.h. */
#include "node/lease.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX ".lease"
#define TERM_PREFIX "supervisor."

enum { MOST_LOOKS = 100 }; /* at the terms: each needs another term to begin meanwhile */

bool gw_name_valid(const char *name)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    size_t length = strlen(name);
    return length > 0 && length < GW_NAME_BYTES && strspn(name, good) == length && name[0] != '.' && name[0] != '-';
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static void get_text(const json_t *root, const char *key, char *text, size_t bytes)
{
    const char *value = json_string_value(json_object_get(root, key));
    snprintf(text, bytes, "%s", value ? value : "");
}

static int64_t get_integer(const json_t *root, const char *key)
{
    return (int64_t)json_integer_value(json_object_get(root, key));
}

/* Replaces the file, or with `first` makes it if it is not there (*taken: it is). `tag` is the writer's own. */
static gw_err put(const char *path, json_t *json, const char *tag, bool first, bool *taken)
{
    gw_err rc = GW_OK;
    char *text = json_dumps(json, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
    char *own = gw_asprintf("%s.%s.new", path, tag);
    int fd = -1;
    json_decref(json);
    GW_ASSERT(text);
    fd = open(own, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) FAIL(GW_ERR_IO, "cannot create %s: %s", own, strerror(errno));
    TRY(gw_write_all(fd, own, text, strlen(text)));
    if (!first && rename(own, path)) FAIL(GW_ERR_IO, "cannot replace %s: %s", path, strerror(errno));
    if (first && link(own, path)) {
        *taken = errno == EEXIST;
        if (!*taken) FAIL(GW_ERR_IO, "cannot create %s: %s", path, strerror(errno));
    }
out:
    if (fd >= 0) close(fd);
    if (first || rc != GW_OK) unlink(own);
    free(own);
    free(text);
    return rc;
}

static gw_err get(const char *path, json_t **root)
{
    gw_err rc = GW_OK;
    char *text = NULL;
    TRY(gw_file_read(path, 1 << 16, &text, NULL));
    *root = json_loads(text, 0, NULL);
    if (!json_is_object(*root)) {
        json_decref(*root);
        *root = NULL;
        FAIL(GW_ERR_FORMAT, "%s is not of godwit", path);
    }
out:
    free(text);
    return rc;
}

/* ---- agents ---------------------------------------------------------------------------------------------------- */

static void read_line(const char *path, const char *key, char *line, size_t bytes)
{
    char *text = NULL;
    line[0] = 0;
    if (gw_file_read(path, 1 << 16, &text, NULL) == GW_OK) {
        const char *at = key ? strstr(text, key) : text;
        if (at && key) at = strchr(at, ':');
        if (at && key) at += 1 + strspn(at + 1, " \t");
        if (at) snprintf(line, bytes, "%.*s", (int)strcspn(at, "\n"), at);
    }
    free(text);
}

static int64_t pid_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (int64_t)st.st_ino : 0;
}

void gw_lease_describe(struct gw_lease *lease)
{
    lease->pid = getpid();
    lease->started = (int64_t)gw_process_started(getpid());
    lease->pid_namespace = pid_namespace();
    read_line("/proc/sys/kernel/random/boot_id", NULL, lease->boot_id, sizeof lease->boot_id);
    read_line("/proc/cpuinfo", "model name", lease->cpu, sizeof lease->cpu);
    lease->cpus = gw_process_cpus();
    lease->memory_bytes = (int64_t)gw_process_memory();
}

static json_t *lease_json(const struct gw_lease *l)
{
    json_t *json = json_pack("{s:s,s:s,s:s,s:i,s:I,s:I,s:s,s:I, s:i,s:i,s:I,s:s,s:s,s:f, s:I,s:b,s:f}", "name", l->name,
                             "incarnation", l->incarnation, "address", l->address, "port", l->port, "pid",
                             (json_int_t)l->pid, "started", (json_int_t)l->started, "boot_id", l->boot_id,
                             "pid_namespace", (json_int_t)l->pid_namespace, "slots", l->slots, "cpus", l->cpus,
                             "memory_bytes", (json_int_t)l->memory_bytes, "cpu", l->cpu, "kernels", l->kernels,
                             "gflops", l->gflops, "counter", (json_int_t)l->counter, "leaving", l->leaving, "grace_s",
                             l->grace_s);
    GW_ASSERT(json);
    return json;
}

gw_err gw_lease_write(const char *folder, const struct gw_lease *lease)
{
    char *path = gw_asprintf("%s/%s" SUFFIX, folder, lease->name);
    gw_err rc = put(path, lease_json(lease), lease->incarnation, false, NULL);
    free(path);
    return rc;
}

gw_err gw_lease_claim(const char *folder, const struct gw_lease *lease, bool *taken)
{
    char *path = gw_asprintf("%s/%s" SUFFIX, folder, lease->name);
    *taken = false;
    gw_err rc = put(path, lease_json(lease), lease->incarnation, true, taken);
    free(path);
    return rc;
}

gw_err gw_lease_take_over(const char *folder, const struct gw_lease *lease, const struct gw_lease *old, bool *taken)
{
    gw_err rc = GW_OK;
    struct gw_lease now;
    const char *whose = gw_name_valid(old->incarnation) ? old->incarnation : "damaged"; /* it becomes a file's name */
    char *mark = gw_asprintf("%s/%s.%s.claim", folder, lease->name, whose);
    int fd = open(mark, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    *taken = true;
    if (fd < 0 && errno != EEXIST) rc = gw_fail(GW_ERR_IO, "cannot create %s: %s", mark, strerror(errno));
    if (fd < 0) goto out;
    close(fd);
    /* Who had the mark before may be done by now. What is damaged is nobody's. */
    gw_err found = gw_lease_read(folder, lease->name, &now);
    if (found == GW_ERR_NOT_FOUND) rc = gw_lease_claim(folder, lease, taken);
    else if (found != GW_OK || strcmp(now.incarnation, old->incarnation) == 0) {
        rc = gw_lease_write(folder, lease);
        *taken = rc != GW_OK;
    }
    unlink(mark);
out:
    free(mark);
    return rc;
}

gw_err gw_lease_read(const char *folder, const char *name, struct gw_lease *l)
{
    gw_err rc = GW_OK;
    json_t *root = NULL;
    char *path = gw_asprintf("%s/%s" SUFFIX, folder, name);
    *l = (struct gw_lease){0};
    TRY(get(path, &root));
    get_text(root, "name", l->name, sizeof l->name);
    get_text(root, "incarnation", l->incarnation, sizeof l->incarnation);
    get_text(root, "address", l->address, sizeof l->address);
    get_text(root, "boot_id", l->boot_id, sizeof l->boot_id);
    get_text(root, "cpu", l->cpu, sizeof l->cpu);
    get_text(root, "kernels", l->kernels, sizeof l->kernels);
    l->port = (int)get_integer(root, "port");
    l->pid = get_integer(root, "pid");
    l->started = get_integer(root, "started");
    l->pid_namespace = get_integer(root, "pid_namespace");
    l->slots = (int)get_integer(root, "slots");
    l->cpus = (int)get_integer(root, "cpus");
    l->memory_bytes = get_integer(root, "memory_bytes");
    l->gflops = json_number_value(json_object_get(root, "gflops"));
    l->counter = get_integer(root, "counter");
    l->leaving = json_is_true(json_object_get(root, "leaving"));
    l->grace_s = json_number_value(json_object_get(root, "grace_s"));
    if (strcmp(l->name, name) || l->slots < 1 || l->port < 1 || l->port > 65535)
        FAIL(GW_ERR_FORMAT, "%s is not a lease of %s", path, name);
out:
    json_decref(root);
    free(path);
    return rc;
}

void gw_lease_remove(const char *folder, const char *name)
{
    char *path = gw_asprintf("%s/%s" SUFFIX, folder, name);
    unlink(path);
    free(path);
}

gw_err gw_lease_list(const char *folder, struct gw_lease **leases, int *count)
{
    DIR *dir = opendir(folder);
    *leases = NULL;
    *count = 0;
    if (!dir) return gw_fail(GW_ERR_IO, "cannot open %s: %s", folder, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));) {
        char name[GW_NAME_BYTES];
        struct gw_lease lease;
        size_t length = strlen(entry->d_name), suffix = strlen(SUFFIX);
        if (length <= suffix || length - suffix >= sizeof name || strcmp(entry->d_name + length - suffix, SUFFIX))
            continue;
        memcpy(name, entry->d_name, length - suffix);
        name[length - suffix] = 0;
        if (!gw_name_valid(name) || gw_lease_read(folder, name, &lease) != GW_OK) continue; /* removed meanwhile */
        *leases = gw_realloc(*leases, (size_t)*count + 1, sizeof **leases);
        (*leases)[(*count)++] = lease;
    }
    closedir(dir);
    return GW_OK;
}

int gw_lease_process_runs(const struct gw_lease *lease)
{
    struct gw_lease here = {0};
    gw_lease_describe(&here);
    if (!here.boot_id[0] || strcmp(here.boot_id, lease->boot_id) || here.pid_namespace != lease->pid_namespace)
        return -1;
    return lease->started && (int64_t)gw_process_started(lease->pid) == lease->started;
}

/* ---- terms ----------------------------------------------------------------------------------------------------- */

static const char *const state_names[] = {"running", "resigned", "ended", "leaving"};

static char *term_path(const char *folder, int64_t number)
{
    return gw_asprintf("%s/" TERM_PREFIX "%lld", folder, (long long)number);
}

static int64_t term_number(const char *name)
{
    char *end;
    if (strncmp(name, TERM_PREFIX, strlen(TERM_PREFIX))) return 0;
    long long number = strtoll(name + strlen(TERM_PREFIX), &end, 10);
    return *end || number < 1 ? 0 : number;
}

static json_t *term_json(const struct gw_term *t)
{
    json_t *json = json_pack("{s:I,s:s,s:s,s:s,s:i,s:s,s:I,s:I,s:b,s:I,s:I,s:I}", "term", (json_int_t)t->number, "name",
                             t->name, "incarnation", t->incarnation, "state", state_names[t->state], "exit_code",
                             t->exit_code, "reason", t->reason, "next_launch", (json_int_t)t->next_launch,
                             "least_launch", (json_int_t)t->least_launch, "clean", t->clean, "counter",
                             (json_int_t)t->counter, "since", (json_int_t)t->since, "present", (json_int_t)t->present);
    GW_ASSERT(json);
    return json;
}

static gw_err read_term(const char *folder, int64_t number, struct gw_term *t)
{
    gw_err rc = GW_OK;
    json_t *root = NULL;
    char *path = term_path(folder, number), state[16];
    *t = (struct gw_term){.number = number};
    TRY(get(path, &root));
    get_text(root, "name", t->name, sizeof t->name);
    get_text(root, "incarnation", t->incarnation, sizeof t->incarnation);
    get_text(root, "reason", t->reason, sizeof t->reason);
    get_text(root, "state", state, sizeof state);
    for (int s = 0; s <= GW_TERM_LEAVING; s++)
        if (!strcmp(state, state_names[s])) t->state = (enum gw_term_state)s;
    t->exit_code = (int)get_integer(root, "exit_code");
    t->next_launch = get_integer(root, "next_launch");
    t->least_launch = get_integer(root, "least_launch");
    t->clean = json_is_true(json_object_get(root, "clean"));
    t->counter = get_integer(root, "counter");
    t->since = get_integer(root, "since");
    t->present = get_integer(root, "present");
out:
    json_decref(root);
    free(path);
    return rc;
}

static gw_err highest_term(const char *folder, int64_t *highest)
{
    DIR *dir = opendir(folder);
    *highest = 0;
    if (!dir) return gw_fail(GW_ERR_IO, "cannot open %s: %s", folder, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));) {
        int64_t number = term_number(entry->d_name);
        if (number > *highest) *highest = number;
    }
    closedir(dir);
    return GW_OK;
}

/* While this looks, a new supervisor may begin its term and remove those below: a name that was listed is gone when it is opened, or the old one was
 * gone and the new one not yet there where the listing passed. Both mean that there is news: it looks again. */
gw_err gw_term_read(const char *folder, struct gw_term *term)
{
    gw_err rc = GW_OK;
    for (int look = 0; look < MOST_LOOKS; look++) {
        int64_t highest;
        *term = (struct gw_term){0};
        TRY(highest_term(folder, &highest));
        rc = highest ? read_term(folder, highest, term) : GW_OK;
        if (rc != GW_ERR_NOT_FOUND && (highest || look > 0)) break;
    }
out:
    return rc;
}

gw_err gw_term_begin(const char *folder, const struct gw_term *term, bool *taken)
{
    char *path = term_path(folder, term->number);
    *taken = false;
    gw_err rc = put(path, term_json(term), term->incarnation, true, taken);
    free(path);
    return rc;
}

gw_err gw_term_write(const char *folder, const struct gw_term *term)
{
    char *path = term_path(folder, term->number);
    gw_err rc = put(path, term_json(term), term->incarnation, false, NULL);
    free(path);
    return rc;
}

void gw_term_prune(const char *folder, int64_t below)
{
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        long long number; /* also of what a killed agent has left half done */
        if (sscanf(entry->d_name, TERM_PREFIX "%lld", &number) == 1 && number < below)
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    if (dir) closedir(dir);
}

void gw_watch_note(struct gw_watch *watch, const char *incarnation, int64_t counter, double now_s)
{
    bool same = !strcmp(watch->incarnation, incarnation);
    if (same && watch->counter == counter) return;
    watch->moves = same; /* the first sight of it proves nothing: it may have stood there for days */
    snprintf(watch->incarnation, sizeof watch->incarnation, "%s", incarnation);
    watch->counter = counter;
    watch->changed_s = now_s;
}
