/* godwit verify: each input line answered exactly once, nothing torn, nothing doubled; prints counts and the output
 * digest. */
#include "app/commands.h"
#include "batch/io/digest.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define MAX_PROBLEMS 20

static const char help[] =
    "Usage: godwit verify [-i INPUT] OUTDIR\n"
    "\n"
    "Checks a job's output: every line of the input has exactly one answer in OUTDIR/output.jsonl or one error in\n"
    "OUTDIR/errors.jsonl, every line of the two is whole and valid JSON, and nothing is there that the input did not "
    "ask for.\n"
    "Prints counts and the output digest: the SHA-256 of output.jsonl's lines sorted by custom_id. The digest depends "
    "on\n"
    "model, input and sampling options alone, so two runs of one job can be compared by it.\n"
    "\n"
    "  -i, --input=INPUT  the batch file; default: where OUTDIR/manifest.json says it was\n"
    "  -h, --help         this text\n"
    "\n"
    "Exit code: 0 when all is well, 1 when a problem was found (the first 20 are named on stderr).\n";

static void print_problem(void *context, const char *problem)
{
    (void)context;
    fprintf(stderr, "problem: %s\n", problem);
}

static void print_counts(const char *hex, const struct gw_digest_counts *counts)
{
    printf("input lines  %lld\n", (long long)counts->input_lines);
    printf("answered     %lld\n", (long long)counts->answered);
    printf("errors       %lld\n", (long long)counts->failed);
    printf("tokens       %lld prompt, %lld completion\n", (long long)counts->prompt_tokens,
           (long long)counts->completion_tokens);
    printf("digest       %s\n", hex);
}

gw_err gw_cmd_verify(int argc, char **argv)
{
    static const struct option options[] = {{"input", required_argument, NULL, 'i'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *input = NULL;
    optind = 1;
    for (int option; (option = getopt_long(argc, argv, ":i:h", options, NULL)) != -1;) {
        switch (option) {
        case 'i': input = optarg; break;
        case 'h': fputs(help, stdout); return GW_OK;
        case ':': return gw_fail(GW_ERR_USAGE, "verify: %s needs a value; see godwit verify --help", argv[optind - 1]);
        default: return gw_fail(GW_ERR_USAGE, "verify: unknown option %s; see godwit verify --help", argv[optind - 1]);
        }
    }
    if (optind != argc - 1) return gw_fail(GW_ERR_USAGE, "verify: give one OUTDIR; see godwit verify --help");

    char hex[65];
    struct gw_digest_counts counts;
    gw_err rc = gw_digest_verify(argv[optind], input, MAX_PROBLEMS, print_problem, NULL, hex, &counts);
    if (hex[0]) print_counts(hex, &counts);
    if (counts.problems > MAX_PROBLEMS)
        fprintf(stderr, "and %lld more problems\n", (long long)(counts.problems - MAX_PROBLEMS));
    if (rc == GW_OK) printf("ok: every input line is answered exactly once\n");
    return rc;
}
