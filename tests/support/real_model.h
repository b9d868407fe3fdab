/* Where the real SmolLM2 is, for tests that skip without it: $GODWIT_TEST_MODEL, or data/models of the source or build tree. */
#ifndef GW_TESTS_SUPPORT_REAL_MODEL_H
#define GW_TESTS_SUPPORT_REAL_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* NULL when there is none. `path` is scratch. */
static inline const char *real_model_find(char path[2048])
{
    const char *roots[] = {getenv("GW_SRCDIR"), getenv("GW_BUILDDIR"), "."};
    const char *named = getenv("GODWIT_TEST_MODEL");
    if (named) return named;
    for (int i = 0; i < 3; i++) {
        if (!roots[i]) continue;
        snprintf(path, 2048, "%s/data/models/SmolLM2-135M-Instruct.Q4_1.gguf", roots[i]);
        if (access(path, R_OK) == 0) return path;
    }
    return NULL;
}

#endif
