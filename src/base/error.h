/* Errors: one table of codes, one text per code, one detail line per thread.
 *
 * A function that can fail returns gw_err and is marked GW_CHECK. The place that notices the trouble calls
 * gw_fail(code, "what, where, what to do"); the places above it use TRY(), which notes the way up (file:line) and goes
 * to the function's single `out:` label. `main` prints the detail as one line and exits with gw_err_exit_code().
 *
 * Expected troubles of a running job (a bad input line, a full KV cache) are states, not errors.
 * Bugs hit GW_ASSERT, which is always on.
 */
#ifndef GW_BASE_ERROR_H
#define GW_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>

/* name, exit code, text. Exit codes are documented in godwit(1): keep them stable. */
#define GW_ERR_TABLE(X)                                                                                                \
    X(GW_OK, 0, "no error")                                                                                            \
    X(GW_ERR_BUG, 70, "internal error")                                                                                \
    X(GW_ERR_USAGE, 2, "wrong usage")                                                                                  \
    X(GW_ERR_INPUT, 3, "unusable input")                                                                               \
    X(GW_ERR_FORMAT, 3, "corrupt or foreign file")                                                                     \
    X(GW_ERR_UNSUPPORTED, 4, "not supported")                                                                          \
    X(GW_ERR_MEMORY, 5, "out of memory")                                                                               \
    X(GW_ERR_IO, 6, "input/output error")                                                                              \
    X(GW_ERR_NOT_FOUND, 6, "not found")                                                                                \
    X(GW_ERR_MISMATCH, 7, "does not belong together")                                                                  \
    X(GW_ERR_LAYOUT, 8, "no usable layout")                                                                            \
    X(GW_ERR_PEER, 9, "peer lost")                                                                                     \
    X(GW_ERR_TIMEOUT, 9, "deadline passed")                                                                            \
    X(GW_ERR_MPI, 9, "MPI error")                                                                                      \
    X(GW_ERR_LOST, 9, "the world of ranks has changed")                                                                \
    X(GW_ERR_NOTICE, 75, "this machine is taken away")                                                                 \
    X(GW_ERR_VERIFY, 1, "verification failed")                                                                         \
    X(GW_ERR_STOPPED, 130, "stopped on request")

typedef enum {
#define X(name, exit_code, text) name,
    GW_ERR_TABLE(X)
#undef X
        GW_ERR_COUNT
} gw_err;

#define GW_CHECK __attribute__((warn_unused_result))
#define GW_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Notes `code` with a one-line detail for this thread and returns `code`. Local. */
gw_err gw_fail_at(const char *file, int line, gw_err code, const char *fmt, ...) GW_PRINTF(4, 5);
#define gw_fail(...) gw_fail_at(__FILE__, __LINE__, __VA_ARGS__)

/* Adds a place to this thread's trace of the error that is travelling up. */
void gw_error_trace(const char *file, int line);

const char *gw_err_name(gw_err code);
const char *gw_err_text(gw_err code);
int gw_err_exit_code(gw_err code);

/* The detail of this thread's last gw_fail ("" if none). Valid until the next gw_fail of this thread. */
const char *gw_error_detail(void);
/* Where it was noticed and the way up, "a.c:1 < b.c:2" (for --debug output). */
const char *gw_error_path(void);

/* Runs `expr`; on error notes the place and goes to `out`. The function declares `gw_err rc = GW_OK`. */
#define TRY(expr)                                                                                                      \
    do {                                                                                                               \
        rc = (expr);                                                                                                   \
        if (rc != GW_OK) {                                                                                             \
            gw_error_trace(__FILE__, __LINE__);                                                                        \
            goto out;                                                                                                  \
        }                                                                                                              \
    } while (0)

/* Notes a new error and goes to `out`. */
#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        rc = gw_fail_at(__FILE__, __LINE__, __VA_ARGS__);                                                              \
        goto out;                                                                                                      \
    } while (0)

/* A broken invariant: prints one line and ends this process alone (exit code 70). Always on. */
_Noreturn void gw_assert_failed(const char *file, int line, const char *what);
#define GW_ASSERT(cond) ((cond) ? (void)0 : gw_assert_failed(__FILE__, __LINE__, #cond))

#endif
