/* `godwit status OUTDIR [--watch]`: how a job is doing, from status.json and ranks.json. Reads only; works while the job runs and after. */
#include "app/commands.h"
#include "report/status.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"

#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

static void print_ranks(const char *out_dir)
{
    char *path = gw_asprintf("%s/ranks.json", out_dir), *text = NULL;
    if (gw_file_read(path, 64 << 20, &text, NULL) == GW_OK) {
        json_t *root = json_loads(text, 0, NULL), *rank;
        size_t i;
        json_array_foreach(json_object_get(root, "ranks"), i, rank)
        {
            const json_t *place = json_object_get(rank, "layout");
            const char *host = json_string_value(json_object_get(rank, "host"));
            printf("  rank %-4lld pid %-8lld %-20s replica %lld, shard %lld, stage %lld\n",
                   (long long)json_integer_value(json_object_get(rank, "rank")),
                   (long long)json_integer_value(json_object_get(rank, "pid")), host ? host : "?",
                   (long long)json_integer_value(json_array_get(place, 0)),
                   (long long)json_integer_value(json_array_get(place, 1)),
                   (long long)json_integer_value(json_array_get(place, 2)));
        }
        json_decref(root);
    }
    free(text);
    free(path);
}

static void print_status(const char *out_dir, const struct gw_status *s)
{
    char line[256];
    double age_s = gw_clock_wall_s() - s->updated_at;
    bool silent = !strcmp(s->state, "running") && age_s > 30;
    gw_status_line(s, line, sizeof line);
    printf("state     %s%s\n", s->state, silent ? " (but silent: see below)" : "");
    printf("progress  %s\n", line);
    printf("model     %s, context %d, kernels %s\n", s->model, s->context, s->kernels);
    printf("layout    %d data x %d tensor x %d pipeline, %d threads a rank\n", s->layout[0], s->layout[1], s->layout[2],
           s->threads_per_rank);
    printf("sequences %d running, %d waiting; KV pages %d of %d; %lld preemptions; %lld prompt tokens shared\n",
           s->running, s->waiting, s->kv_pages_used, s->kv_pages_total, (long long)s->preemptions,
           (long long)s->prefix_tokens_reused);
    if (silent)
        printf("last sign of life %.0f s ago: if its processes are gone, the same run command carries on\n", age_s);
    print_ranks(out_dir);
}

static void print_help(void)
{
    printf(
        "Usage: godwit status OUTDIR [--watch]\n\nShows how a job is doing.\n\n"
        "  -w, --watch   show the progress line again and again until the job ends (Ctrl-C leaves; the job goes on)\n");
}

static gw_err watch(const char *out_dir)
{
    gw_err rc = GW_OK;
    struct gw_status status;
    bool terminal = isatty(STDOUT_FILENO);
    signal(SIGINT, on_interrupt);
    do {
        char line[256];
        TRY(gw_status_read(out_dir, &status));
        gw_status_line(&status, line, sizeof line);
        printf("%s%-8s %s%s", terminal ? "\r\033[K" : "", status.state, line, terminal ? "" : "\n");
        fflush(stdout);
        if (strcmp(status.state, "running")) break;
        usleep(terminal ? 500000 : 5000000);
    } while (!interrupted);
    if (terminal) printf("\n");
out:
    return rc;
}

gw_err gw_cmd_status(int argc, char **argv)
{
    gw_err rc = GW_OK;
    static const struct option options[] = {{"watch", no_argument, NULL, 'w'}, {"help", no_argument, NULL, 'h'}, {0}};
    struct gw_status status;
    bool watched = false;
    optind = 1;
    for (int id; (id = getopt_long(argc, argv, "wh", options, NULL)) != -1;) {
        if (id == 'h') {
            print_help();
            return GW_OK;
        }
        if (id != 'w') return gw_fail(GW_ERR_USAGE, "see godwit status --help");
        watched = true;
    }
    if (optind != argc - 1) return gw_fail(GW_ERR_USAGE, "give one OUTDIR; see godwit status --help");
    if (watched) return watch(argv[optind]);
    TRY(gw_status_read(argv[optind], &status));
    print_status(argv[optind], &status);
out:
    return rc;
}
