/* Runs a fuzz target over files, without a fuzzer: `fuzz_x FILE..`, or every file of its corpus (tests/fuzz/corpus/x
 * under GW_SRCDIR, else under the current folder), which is what `make check` does. Exits 77 (skip) when there is no
 * corpus. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* The data is copied into memory of exactly its size, so that a sanitizer sees a read past its end. */
static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        fprintf(stderr, "cannot read %s\n", path);
        if (file) fclose(file);
        return -1;
    }
    long size = ftell(file);
    rewind(file);
    uint8_t *data = size >= 0 ? malloc(size ? (size_t)size : 1) : NULL;
    int rc = data && fread(data, 1, (size_t)size, file) == (size_t)size ? 0 : -1;
    fclose(file);
    if (rc) fprintf(stderr, "cannot read %s\n", path);
    else LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    return rc;
}

static int replay_corpus(const char *program)
{
    const char *name = strrchr(program, '/'), *root = getenv("GW_SRCDIR");
    name = name ? name + 1 : program;
    const char *target = strstr(name, "fuzz_");
    char folder[1024], path[2048];
    snprintf(folder, sizeof folder, "%s/tests/fuzz/corpus/%s", root ? root : ".", target ? target + 5 : name);
    DIR *dir = opendir(folder);
    if (!dir) {
        printf("skipped: there is no corpus at %s\n", folder);
        return 77;
    }
    int count = 0, failed = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        failed |= replay(path) != 0;
        count++;
    }
    closedir(dir);
    printf("replayed %d files of %s\n", count, folder);
    return failed || !count;
}

int main(int argc, char **argv)
{
    if (argc < 2) return replay_corpus(argv[0]);
    int failed = 0;
    for (int i = 1; i < argc; i++) failed |= replay(argv[i]) != 0;
    return failed;
}
