/* `godwit status OUTDIR`: how a job is doing, once or again and again (--watch), or what happened to it as a page (--report). Reads only, but for
 * the page; works while the job runs and after, from any machine that sees OUTDIR. */
#include "app/commands.h"
#include "app/watch.h"
#include "batch/io/digest.h"
#include "report/page.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static void print_help(void)
{
    printf("Usage: godwit status OUTDIR [--watch | --report]\n\nShows how a job is doing.\n\n"
           "  -w, --watch   go on showing it until the job ends (Ctrl-C leaves; the job goes on)\n"
           "  -r, --report  write OUTDIR/report.html: what happened to the job\n");
}

static gw_err write_report(const char *out_dir, const struct gw_status *status)
{
    gw_err rc = GW_OK;
    char hex[65];
    struct gw_digest_counts counts;
    bool done = !strcmp(status->state, "done");
    if (done) TRY(gw_digest_compute(out_dir, hex, &counts));
    TRY(gw_page_write(out_dir, done ? hex : NULL));
    printf("report  %s/report.html\n", out_dir);
out:
    return rc;
}

gw_err gw_cmd_status(int argc, char **argv)
{
    gw_err rc = GW_OK;
    static const struct option options[] = {
        {"watch", no_argument, NULL, 'w'}, {"report", no_argument, NULL, 'r'}, {"help", no_argument, NULL, 'h'}, {0}};
    struct gw_status status;
    bool watched = false, report = false;
    optind = 1;
    for (int id; (id = getopt_long(argc, argv, "wrh", options, NULL)) != -1;) {
        switch (id) {
        case 'h': print_help(); return GW_OK;
        case 'w': watched = true; break;
        case 'r': report = true; break;
        default: return gw_fail(GW_ERR_USAGE, "see godwit status --help");
        }
    }
    if (optind != argc - 1) return gw_fail(GW_ERR_USAGE, "give one OUTDIR; see godwit status --help");
    if (watched && report) return gw_fail(GW_ERR_USAGE, "give --watch or --report");
    if (watched) return gw_watch_run(argv[optind]);
    TRY(gw_status_read(argv[optind], &status));
    if (report) TRY(write_report(argv[optind], &status));
    else gw_watch_print(argv[optind], 0, 0);
out:
    return rc;
}
