/* `godwit node`: takes part in a job with this node (node/agent.h). `godwit node-exec`: what a launcher calls to start its daemon on another node.
 *
 * The options are those of `godwit run`, and some of the node's own, which are taken out here. Paths are made absolute, since ranks start
 * on other nodes, too.
 */
#include "app/commands.h"
#include "base/file.h"
#include "base/mem.h"
#include "node/agent.h"
#include "node/exec.h"
#include "node/lease.h"
#include "node/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t asked_to_leave, asked_to_stop;

static void on_signal(int signal)
{
    if (signal == SIGINT) asked_to_stop++;
    else asked_to_leave++;
}

enum node_option { NODE_NAME, NODE_SLOTS, NODE_LISTEN, NODE_NET, NODE_MIN, NODE_WAIT, NODE_LEASE, NODE_OPTIONS };

static const struct {
    const char *name, *argument, *text;
} table[NODE_OPTIONS] = {
    [NODE_NAME] = {"node-name", "NAME", "name of this node (default: the host's, with a number if it is taken)"},
    [NODE_SLOTS] = {"slots", "N", "ranks of this node (default: what -n says, else 1)"},
    [NODE_LISTEN] = {"listen", "ADDRESS[:PORT]", "where the agent listens (default: this host's address, any port)"},
    [NODE_NET] = {"net", "CIDR", "network of agents and ranks, such as 10.1.0.0/16 (default: any)"},
    [NODE_MIN] = {"min-nodes", "N", "nodes to wait for before the first launch (default 1)"},
    [NODE_WAIT] = {"wait", "SECONDS", "the most to wait for them (default 60)"},
    [NODE_LEASE] = {"lease", "SECONDS", "a node that is silent that long is lost (default 5; the same on all nodes)"},
};

static void print_help(void)
{
    printf("Usage: godwit node -m MODEL.gguf -i batch.jsonl -o OUTDIR [options of godwit run] [options]\n"
           "       godwit node --drain OUTDIR NAME [SECONDS]\n\n"
           "Takes part in the job OUTDIR with this node: the same command on every node. The first one starts the job, "
           "others\n"
           "join and leave at any time; it ends when the batch is done. --drain asks a node to leave.\n\nOptions:\n");
    for (int i = 0; i < NODE_OPTIONS; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", table[i].name, table[i].argument);
        printf("      %-28s %s\n", left, table[i].text);
    }
    printf("\n-n is the number of ranks of this node, --grace the time it has to leave when it gets SIGTERM, SIGINT or "
           "SIGUSR1.\n"
           "All other options: godwit run --help. See docs/nodes.md.\n");
}

struct arguments {
    const char *values[NODE_OPTIONS];
    int argc;
    char **argv; /* what is not the node's own */
    bool help;
};

static gw_err split(int argc, char **argv, struct arguments *a)
{
    a->argv = gw_alloc((size_t)argc + 8, sizeof *a->argv);
    for (int i = 0; i < argc; i++) {
        int which = NODE_OPTIONS;
        const char *value = NULL;
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) a->help = true;
        for (int o = 0; o < NODE_OPTIONS && !strncmp(argv[i], "--", 2); o++) {
            size_t length = strlen(table[o].name);
            if (strncmp(argv[i] + 2, table[o].name, length)) continue;
            if (argv[i][2 + length] == '=') value = argv[i] + 3 + length;
            else if (argv[i][2 + length]) continue;
            which = o;
        }
        if (which == NODE_OPTIONS) {
            a->argv[a->argc++] = argv[i];
            continue;
        }
        if (!value && i + 1 == argc)
            return gw_fail(GW_ERR_USAGE, "option '%s' needs a value; see godwit node --help", argv[i]);
        a->values[which] = value ? value : argv[++i];
    }
    return GW_OK;
}

/* "10.1.2.3", "10.1.2.3:7000", "[fd00::1]:7000" */
static gw_err parse_listen(const char *text, char **address, int *port)
{
    int64_t number = 0;
    bool bracket = text[0] == '[';
    const char *end = bracket ? strchr(text, ']') : NULL;
    const char *colon = end ? strchr(end, ':') : strrchr(text, ':');
    if (!bracket && colon && strchr(text, ':') != colon) colon = NULL; /* an IPv6 address without a port */
    if (bracket && !end) return gw_fail(GW_ERR_USAGE, "--listen '%s' is no ADDRESS or ADDRESS:PORT", text);
    if (colon) {
        gw_err rc = gw_parse_int(colon + 1, "listen", 1, 65535, &number);
        if (rc != GW_OK) return rc;
    }
    const char *begin = bracket ? text + 1 : text;
    *address = gw_strndup(begin, (size_t)((end ? end : colon ? colon : text + strlen(text)) - begin));
    *port = (int)number;
    return GW_OK;
}

static gw_err parse_numbers(const struct arguments *a, struct gw_agent_config *config)
{
    gw_err rc = GW_OK;
    int64_t number;
    if (a->values[NODE_SLOTS]) {
        TRY(gw_parse_int(a->values[NODE_SLOTS], "slots", 1, 4096, &number));
        config->slots = (int)number;
    }
    if (a->values[NODE_MIN]) {
        TRY(gw_parse_int(a->values[NODE_MIN], "min-nodes", 1, 65536, &number));
        config->min_nodes = (int)number;
    }
    if (a->values[NODE_WAIT]) TRY(gw_parse_real(a->values[NODE_WAIT], "wait", &config->wait_s));
    if (a->values[NODE_LEASE]) TRY(gw_parse_real(a->values[NODE_LEASE], "lease", &config->lease_s));
    if (!(config->lease_s >= 1 && config->lease_s <= 600)) FAIL(GW_ERR_USAGE, "--lease must be 1 to 600 seconds");
out:
    return rc;
}

/* Adds "-o /absolute/path"; the last of several counts. */
static gw_err add_path(struct arguments *a, char *option, const char *path)
{
    char *absolute = realpath(path, NULL);
    if (!absolute) return gw_fail(GW_ERR_NOT_FOUND, "cannot find %s: %s", path, strerror(errno));
    a->argv[a->argc++] = option;
    a->argv[a->argc++] = absolute;
    return GW_OK;
}

static gw_err drain(int argc, char **argv)
{
    int64_t seconds = 30;
    if (argc < 4 || argc > 5) return gw_fail(GW_ERR_USAGE, "usage: godwit node --drain OUTDIR NAME [SECONDS]");
    if (argc == 5) {
        gw_err rc = gw_parse_int(argv[4], "drain", 0, 1000000, &seconds);
        if (rc != GW_OK) return rc;
    }
    char *folder = gw_asprintf("%s/nodes", argv[2]);
    gw_err rc = gw_node_drain(folder, argv[3], (unsigned)seconds);
    free(folder);
    return rc;
}

gw_err gw_cmd_node(int argc, char **argv)
{
    gw_err rc = GW_OK;
    struct arguments a = {0};
    struct gw_job_options options;
    struct gw_agent_config config = {.min_nodes = 1, .wait_s = 60, .lease_s = 5};
    char *address = NULL;
    static char model[] = "-m", input[] = "-i", output[] = "-o";
    if (argc > 1 && !strcmp(argv[1], "--drain")) return drain(argc, argv);
    TRY(split(argc, argv, &a));
    if (a.help) {
        print_help();
        goto out;
    }
    bool help = false;
    TRY(gw_job_options_parse(a.argc, a.argv, &options, &help));
    TRY(gw_supervisor_check(&options));
    TRY(add_path(&a, model, options.model_path));
    TRY(add_path(&a, input, options.input_path));
    TRY(add_path(&a, output, options.out_dir));
    TRY(gw_job_options_parse(a.argc, a.argv, &options, &help));
    if (options.layout_set)
        FAIL(GW_ERR_USAGE, "--layout does not go with nodes that come and go: the layout follows from the nodes");
    config.slots = options.ranks;
    TRY(parse_numbers(&a, &config));
    if (a.values[NODE_LISTEN]) TRY(parse_listen(a.values[NODE_LISTEN], &address, &config.port));
    config.options = &options;
    config.argc = a.argc;
    config.argv = a.argv;
    config.name = a.values[NODE_NAME];
    config.net = a.values[NODE_NET];
    config.address = address;
    config.grace_s = options.grace_s;
    config.leave = &asked_to_leave;
    config.stop = &asked_to_stop;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    TRY(gw_agent_run(&config));
out:
    free(address);
    return rc;
}

gw_err gw_cmd_node_exec(int argc, char **argv)
{
    int exit_code = 0;
    gw_err rc = gw_node_exec(argc - 1, argv + 1, &exit_code);
    if (rc == GW_OK) exit(exit_code);
    return rc;
}
