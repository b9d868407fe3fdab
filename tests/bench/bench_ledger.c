/* What a line of input costs: `bench_ledger [LINES] [FILE]` writes LINES (default 1,000,000) chat requests to FILE
 * (default a temporary one in the current folder), walks over them fresh and as a job that carries on, and prints
 * memory and speed. Not a test. */
#include "base/clock.h"
#include "batch/ledger.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

static gw_err write_input(const char *path, long lines)
{
    FILE *file = fopen(path, "w");
    if (!file) return gw_fail(GW_ERR_IO, "cannot create %s", path);
    for (long i = 0; i < lines; i++)
        fprintf(
            file,
            "{\"custom_id\":\"request-%ld\",\"method\":\"POST\",\"url\":\"/v1/chat/"
            "completions\",\"body\":{\"model\":\"m\",\"messages\":["
            "{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},{\"role\":\"user\",\"content\":\"What "
            "is %ld plus %ld? "
            "Answer with the number alone, and then explain in one sentence how you got it.\"}],\"max_tokens\":64}}\n",
            i, i, i + 1);
    return fclose(file) ? gw_fail(GW_ERR_IO, "cannot write %s", path) : GW_OK;
}

static double resident_mib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + 1e-6 * (double)usage.ru_utime.tv_usec;
}

static gw_err walk(const char *path, long answered)
{
    gw_err rc = GW_OK;
    struct gw_ledger *ledger = NULL;
    struct gw_request request;
    struct gw_request_error bad;
    bool end = false;
    long requests = 0;
    double start_s = gw_clock_now_s(), start_cpu_s = cpu_s();
    TRY(gw_ledger_open(path, NULL, &ledger));
    for (long i = 0; i < answered; i++) {
        char id[40];
        snprintf(id, sizeof id, "request-%ld", i);
        gw_ledger_note_answered(ledger, id);
    }
    double peak = (double)gw_ledger_bytes(ledger);
    for (;;) {
        TRY(gw_ledger_next(ledger, &request, &bad, &end));
        if (end) break;
        requests++;
        gw_request_free(&request);
        if ((double)gw_ledger_bytes(ledger) > peak) peak = (double)gw_ledger_bytes(ledger);
    }
    double lines = (double)gw_ledger_lines(ledger), bytes = (double)gw_ledger_bytes(ledger);
    printf("%ld answered before: %ld requests of %.0f lines in %.2f s, %.2f s of CPU (%.1f us a line)\n", answered,
           requests, lines, gw_clock_now_s() - start_s, cpu_s() - start_cpu_s, 1e6 * (cpu_s() - start_cpu_s) / lines);
    printf("  index %.2f bytes a line, at most %.2f; read buffer %zu KiB; process %.1f MiB so far\n", bytes / lines,
           (peak > bytes ? peak : bytes) / lines, gw_ledger_buffer_bytes(ledger) >> 10, resident_mib());
out:
    gw_ledger_close(ledger);
    return rc;
}

int main(int argc, char **argv)
{
    gw_err rc = GW_OK;
    long lines = argc > 1 ? atol(argv[1]) : 1000000;
    const char *path = argc > 2 ? argv[2] : "bench_ledger.tmp.jsonl";
    TRY(write_input(path, lines));
    TRY(walk(path, 0));
    TRY(walk(path, lines / 2));
    TRY(walk(path, lines));
out:
    if (rc != GW_OK) fprintf(stderr, "bench_ledger: %s\n", gw_error_detail());
    if (argc <= 2) unlink(path);
    return gw_err_exit_code(rc);
}
