/* `godwit notice SPEC..`: watches sources of notices and prints what they say, a line each. To see what a machine's metadata service or a centre's Slurm tells
 * before a job relies on it, and for scripts of one's own. */
#include "app/commands.h"
#include "base/clock.h"
#include "base/mem.h"
#include "notice/source.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal)
{
    (void)signal;
    interrupted = 1;
}

static void print_help(void)
{
    puts("Usage: godwit notice [options] SOURCE...\n\n"
         "Watches for notices that this machine will be taken away, and prints them:\n"
         "KIND SECONDS TEXT, where KIND is leave, limit (a job's time limit) or early.\n"
         "SOURCE is aws, azure, gcp, slurm or auto, as for godwit run --notice.\n\nOptions:\n"
         "      --for SECONDS                end after so long (default: when interrupted)\n"
         "      --first                      end after the first notice\n"
         "      --acknowledge                tell the sources named with +ack that this machine may go\n"
         "  -h, --help                       this text\n\n"
         "Exit code: 0, also when nothing was said.");
}

static void print_event(const struct gw_notice_event *event)
{
    static const char *const names[] = {"leave", "limit", "early"};
    double until_s = event->at_s - gw_clock_wall_s();
    printf("%s %.1f %s\n", names[event->kind], until_s > 0 ? until_s : 0.0, event->text);
    fflush(stdout);
}

struct wishes {
    double for_s;
    bool first, acknowledge;
    struct gw_buf list; /* NUL-terminated */
};

static gw_err parse(int argc, char **argv, struct wishes *wishes, bool *help)
{
    static const struct option options[] = {{"for", required_argument, NULL, 'f'},
                                            {"first", no_argument, NULL, '1'},
                                            {"acknowledge", no_argument, NULL, 'a'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char *end = NULL;
    optind = 0;
    for (int id; (id = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        if (id == 'h') *help = true;
        else if (id == '1') wishes->first = true;
        else if (id == 'a') wishes->acknowledge = true;
        else if (id != 'f')
            return gw_fail(GW_ERR_USAGE, "wrong option '%s'; see godwit notice --help", argv[optind - 1]);
        else wishes->for_s = strtod(optarg, &end);
        if (id == 'f' && (end == optarg || *end || !(wishes->for_s >= 0)))
            return gw_fail(GW_ERR_USAGE, "--for '%s' is not a number of seconds", optarg);
    }
    for (int i = optind; i < argc; i++) {
        if (i > optind) gw_buf_add_text(&wishes->list, ",");
        gw_buf_add_text(&wishes->list, argv[i]);
    }
    if (!*help && optind == argc) return gw_fail(GW_ERR_USAGE, "no source given: godwit notice auto, or see --help");
    gw_buf_add(&wishes->list, "", 1);
    return GW_OK;
}

gw_err gw_cmd_notice(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct wishes wishes = {.for_s = -1};
    struct gw_notice_source *source = NULL;
    struct gw_notice_event event;
    bool help = false, said = false;
    TRY(parse(argc, argv, &wishes, &help));
    if (help) {
        print_help();
        goto out;
    }
    const char *list = (const char *)wishes.list.data;
    char *file = gw_notice_spec_file(list, &(size_t){0});
    if (file) {
        rc = gw_fail(GW_ERR_USAGE, "%s is a file: files are for godwit run --notice", file);
        free(file);
        goto out;
    }
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    double until_s = gw_clock_now_s() + wishes.for_s;
    TRY(gw_notice_source_open(list, &source));
    while (!interrupted && !(wishes.first && said) && (wishes.for_s < 0 || gw_clock_now_s() < until_s)) {
        for (; gw_notice_source_take(source, &event); said = true) print_event(&event);
        if (!(wishes.first && said)) nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
    if (wishes.acknowledge && said) gw_notice_source_acknowledge(source);
out:
    gw_notice_source_close(source);
    gw_buf_free(&wishes.list);
    return rc;
}
