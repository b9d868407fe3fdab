/* godwit: one binary, sub-commands. This file only finds the sub-command and turns its error into one line and an exit code. */
#include "app/commands.h"
#include "base/log.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <locale.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    gw_err (*run)(int argc, char **argv);
    const char *text; /* NULL: internal, not listed */
} commands[] = {
    {"run", gw_cmd_run, "start a batch, or carry on where its OUTDIR stands"},
    {"node", gw_cmd_node, "take part in a batch with this node, which may come and go"},
    {"status", gw_cmd_status, "how a job is doing (--watch)"},
    {"notice", gw_cmd_notice, "watch for notices that this machine will be taken away"},
    {"verify", gw_cmd_verify, "each input answered exactly once? prints the output digest"},
    {"inspect", gw_cmd_inspect, "what a model file holds"},
    {"plan", gw_cmd_plan, "which layout for which machine, and what a change would cost"},
    {"tokenize", gw_cmd_tokenize, "text on stdin to token ids, and back"},
    {"perplexity", gw_cmd_perplexity, "perplexity of a text under a model"},
    {"bench", gw_cmd_bench, "tokens/s of prefill and decode"},
    {"rank", gw_cmd_rank, NULL},
    {"node-exec", gw_cmd_node_exec, NULL},
};
enum { COMMANDS = sizeof commands / sizeof *commands, LARGE_BYTES = 4 << 20 };

static void print_help(FILE *to)
{
    fprintf(to, "godwit: large offline LLM batches over MPI, to the same bytes on any layout\n\n"
                "  godwit run -m MODEL.gguf -i batch.jsonl -o OUTDIR [-n RANKS]\n\nCommands:\n");
    for (int i = 0; i < COMMANDS; i++)
        if (commands[i].text) fprintf(to, "  %-12s %s\n", commands[i].name, commands[i].text);
    fprintf(to, "\n'godwit COMMAND --help' tells a command's options; godwit(1) and docs/ the rest.\n");
}

int main(int argc, char **argv)
{
    (void)gw_log_get_level(); /* reads GODWIT_LOG while there is one thread */
    /* Large pieces (a checkpoint file being built, a message) go back to the system at once, rather than stay with the thread that had them. */
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
    setlocale(LC_ALL, "C"); /* numbers in files never depend on the user's locale */
    if (argc < 2) {
        print_help(stderr);
        return gw_err_exit_code(GW_ERR_USAGE);
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        puts(PACKAGE_STRING);
        return 0;
    }
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name)) continue;
        gw_err rc = commands[i].run(argc - 1, argv + 1);
        if (rc != GW_OK) {
            gw_error("%s", gw_error_detail());
            gw_debug("%s at %s", gw_err_name(rc), gw_error_path());
        }
        return gw_err_exit_code(rc);
    }
    fprintf(stderr, "godwit: error: unknown command '%s'; see godwit --help\n", argv[1]);
    return gw_err_exit_code(GW_ERR_USAGE);
}
