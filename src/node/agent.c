/* See agent.h. One loop over everything: connections, leases, and where this node supervises the job, its launches. */
#include "node/agent.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/process.h"
#include "job/handover.h"
#include "job/record.h"
#include "node/cluster.h"
#include "node/exec.h"
#include "node/self.h"
#include "node/server.h"
#include "node/supervisor.h"
#include "notice/source.h"
#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { FDS_MOST = 512, TURN_MS = 50, SHORT_TURN_MS = 5, NAMES_MOST = 64, NODES_LEAVING = 4096 };
static const double BEATS_PER_LEASE = 5, GIVE_UP_LEASES = 20, END_S = 1.5, LEAVE_MARGIN_S = 1, MOVE_MOST_S = 20,
                    END_MOST_S = 5, LEAVE_SETTLE_S = 0.3, HAND_ON_LEAST_S = 2, HAND_ON_LEASES = 3,
                    LOOK_ROUND_LEASES = 1.5, LOOK_BRIEFLY_LEASES = 0.5;

struct agent {
    const struct gw_agent_config *config;
    char *folder; /* OUTDIR/nodes */
    uint8_t secret[GW_SECRET_BYTES];
    char *scratch;
    int scratch_lock;
    char *launcher; /* the command by which a launcher starts a daemon */
    struct gw_lease lease;
    bool claimed;
    double begun_s, beat_s, written_s; /* written_s: when the lease was last counted up */
    struct gw_server *server;
    struct gw_store_server *store; /* the node's context store: it outlives the ranks; or NULL */
    /* the supervisor, as a follower sees it */
    struct gw_term term;
    struct gw_watch watch;
    int64_t old_term;      /* that had ended before this agent began: not what it waits for */
    struct gw_link *probe; /* is the supervisor's agent there at all? */
    double probed_s;
    bool done;             /* so is the job, and nobody has said so */
    bool supervised, gone; /* its connection is there; its process is certainly not */
    /* as the supervisor */
    struct gw_term own; /* number 0: this agent does not supervise */
    struct gw_cluster *cluster;
    struct gw_supervisor *supervisor;
    bool launched, over, saving; /* saving: all nodes leave, and the launch saves what it can */
    double handed_s;             /* when the supervision was offered to another; 0: it was not */
    int short_of;                /* nodes that were too few for the last launch; 0: none was */
    double short_until_s;
    int64_t least_launch; /* that may run */
    int running;          /* launches */
    int64_t numbers[4];
    double ending_s;
    gw_err result;
    /* as one that was the supervisor */
    struct gw_launch *kept; /* its launch, until it has given way to the next one; or NULL */
    int64_t kept_term;
    int kept_launch;
    /* leaving */
    struct gw_notice_source *notices; /* of this node; or NULL */
    bool noticed;                     /* one of them wants it to go */
    double free_s;                    /* since when nothing runs here any more; 0: something does */
    bool last_words; /* the supervisor leaves as well, and may be about to say that the job has ended */
    double leave_s;  /* when it must be gone; 0: it is not leaving */
    bool hurried;    /* asked to stop: nothing is to be saved */
    double noted_s;  /* when it began to leave */
    int leaves;      /* requests seen */
};

/* ---- begin ----------------------------------------------------------------------------------------------------- */

/* A name that is free, or whose lease is of an agent that is no more. Two agents of one host get different ones. */
static gw_err claim_name(struct agent *agent)
{
    gw_err rc = GW_OK;
    const char *given = agent->config->name;
    char host[GW_NAME_BYTES - 4] = "node";
    bool taken = true;
    if (!given && gethostname(host, sizeof host - 1)) snprintf(host, sizeof host, "node");
    if (!gw_name_valid(given ? given : host))
        return gw_fail(GW_ERR_USAGE, "'%s' is no name for a node: letters, digits, '.', '-' and '_'; use --node-name",
                       given ? given : host);
    for (int n = 1; taken && n < NAMES_MOST; n++) {
        struct gw_lease other;
        struct gw_watch watch = {0};
        if (n == 1) snprintf(agent->lease.name, GW_NAME_BYTES, "%s", given ? given : host);
        else snprintf(agent->lease.name, GW_NAME_BYTES, "%s.%d", host, n);
        TRY(gw_lease_claim(agent->folder, &agent->lease, &taken));
        if (!taken) break;
        int runs = -1;
        const double until_s = gw_clock_now_s() + agent->config->lease_s;
        while (runs < 0 && gw_clock_now_s() < until_s) {
            if (gw_lease_read(agent->folder, agent->lease.name, &other) != GW_OK) break; /* removed, or damaged */
            runs = gw_lease_process_runs(&other);
            gw_watch_note(&watch, other.incarnation, other.counter, gw_clock_now_s());
            if (watch.moves) runs = 1;
            if (runs < 0) usleep(50000);
        }
        if (runs != 1) TRY(gw_lease_take_over(agent->folder, &agent->lease, &other, &taken));
        if (taken && given) FAIL(GW_ERR_USAGE, "an agent named %s takes part already; use another --node-name", given);
    }
    if (taken) FAIL(GW_ERR_USAGE, "no name is free for this node; use --node-name");
    agent->claimed = true;
out:
    return rc;
}

/* The launcher splits its command at blanks and colons, and this program may lie anywhere. */
static gw_err make_launcher(struct agent *agent)
{
    gw_err rc = GW_OK;
    char self[4096], *path = gw_asprintf("%s/godwit", agent->scratch);
    TRY(gw_process_program(self, sizeof self));
    if (symlink(self, path)) FAIL(GW_ERR_IO, "cannot create %s: %s", path, strerror(errno));
    agent->launcher = gw_asprintf("%s node-exec", path);
out:
    free(path);
    return rc;
}

static gw_err begin(struct agent *agent)
{
    gw_err rc = GW_OK;
    const struct gw_agent_config *config = agent->config;
    uint8_t random[8];
    TRY(gw_make_dir(config->options->out_dir));
    TRY(gw_make_dir(agent->folder));
    TRY(gw_secret_open(agent->folder, agent->secret));
    TRY(gw_self_make_scratch(&agent->scratch, &agent->scratch_lock));
    TRY(make_launcher(agent));
    gw_lease_describe(&agent->lease);
    agent->lease.slots = config->slots;
    gw_secret_random(random, sizeof random);
    for (int i = 0; i < 8; i++) snprintf(agent->lease.incarnation + 2 * i, 3, "%02x", random[i]);
    if (config->address) snprintf(agent->lease.address, GW_ADDRESS_BYTES, "%s", config->address);
    else TRY(gw_self_address(config->net, agent->lease.address));
    agent->lease.port = 1; /* until it is known */
    TRY(gw_self_measure(&agent->lease));
    TRY(claim_name(agent));
    char *identity = gw_asprintf("%s/%s", agent->lease.name, agent->lease.incarnation);
    char *daemons = gw_asprintf("%s/daemons", agent->scratch);
    rc = gw_make_dir(daemons);
    if (rc == GW_OK)
        rc = gw_server_create(agent->lease.address, config->port, agent->secret, identity, daemons, config->lease_s,
                              &agent->server);
    free(identity);
    free(daemons);
    TRY(rc);
    agent->lease.port = gw_server_port(agent->server);
    TRY(gw_lease_write(agent->folder, &agent->lease));
    agent->written_s = agent->begun_s = gw_clock_now_s();
    TRY(gw_term_read(agent->folder, &agent->term));
    if (agent->term.state == GW_TERM_ENDED) agent->old_term = agent->term.number;
    if (config->options->store && gw_store_serve(config->options->out_dir, &agent->store) != GW_OK)
        gw_warn("%s; what ranks of this node hold is lost with them", gw_error_detail());
    const char *notice = config->options->notice;
    if (notice && gw_notice_spec_polled(notice)) TRY(gw_notice_source_open(notice, &agent->notices));
    setenv(GW_NODES_FOLDER, agent->folder, 1);
    setenv(GW_NODE_NAME, agent->lease.name, 1);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* what a killed launcher leaves falls to this process */
    gw_info("node %s listens on %s port %d (%d slots, %.1f Gop/s)", agent->lease.name, agent->lease.address,
            agent->lease.port, agent->lease.slots, agent->lease.gflops);
out:
    return rc;
}

/* ---- supervising ----------------------------------------------------------------------------------------------- */

static void note_event(const struct agent *agent, const char *event, json_t *details)
{
    json_object_set_new(details, "node", json_string(agent->lease.name));
    json_object_set_new(details, "term", json_integer((json_int_t)agent->own.number));
    gw_record_event(agent->config->options->out_dir, event, details);
}

static int64_t least_running(const struct agent *agent)
{
    int64_t least = agent->own.next_launch;
    for (int i = 0; i < agent->running; i++)
        if (agent->numbers[i] < least) least = agent->numbers[i];
    return least;
}

/* The first launch waits for as many nodes as were asked for, within a time. */
static bool enough(struct agent *agent)
{
    /* one that takes over finds out who is there; after a loss that must not take long */
    double look_s = agent->own.present >= 0 ? LOOK_ROUND_LEASES : LOOK_BRIEFLY_LEASES;
    if (!gw_cluster_acquainted(agent->cluster, look_s * agent->config->lease_s)) return false;
    if (agent->launched) return true;
    return gw_cluster_usable(agent->cluster) >= agent->config->min_nodes ||
           gw_clock_now_s() - agent->begun_s > agent->config->wait_s;
}

static bool place(void *context, struct gw_launch_config *launch)
{
    struct agent *agent = context;
    static char *hosts[2];                /* of this launch and of the one before */
    if (agent->leave_s > 0) return false; /* the next supervisor starts it */
    int usable = gw_cluster_usable(agent->cluster);
    if (agent->short_of && usable <= agent->short_of) {
        if (usable > 0) agent->short_of = usable; /* one that was lost may not have been missed yet */
        return false;
    }
    agent->short_of = 0;
    if (!enough(agent) || !gw_cluster_round(agent->cluster, least_running(agent) - 1)) return false;
    free(hosts[0]);
    hosts[0] = hosts[1];
    hosts[1] = gw_cluster_place(agent->cluster, launch->number, &launch->ranks, &launch->fence);
    launch->hosts = strchr(hosts[1], ',') ? hosts[1] : NULL;
    launch->agent = agent->launcher;
    launch->net = agent->config->net;
    launch->scratch = agent->scratch;
    agent->launched = true;
    agent->numbers[agent->running++] = launch->number;
    agent->own.next_launch = launch->number + 1;
    agent->own.least_launch = least_running(agent);
    agent->own.clean = false;
    if (gw_term_write(agent->folder, &agent->own) != GW_OK) gw_warn("%s", gw_error_detail());
    note_event(agent, "launch",
               json_pack("{s:i,s:i,s:s,s:b,s:b}", "launch", launch->number, "ranks", launch->ranks, "hosts", hosts[1],
                         "fence", launch->fence, "standby", launch->standby));
    return true;
}

static void launch_ended(void *context, int number, bool led)
{
    struct agent *agent = context;
    for (int i = 0; i < agent->running; i++)
        if (agent->numbers[i] == number) agent->numbers[i--] = agent->numbers[--agent->running];
    gw_cluster_ended(agent->cluster, number, led);
    agent->own.least_launch = least_running(agent);
    if (agent->own.present == number) agent->own.present = -1;
    note_event(agent, "launch-ended", json_pack("{s:i,s:b}", "launch", number, "led", led));
    gw_server_fence(agent->server, agent->own.number, agent->own.since, agent->own.least_launch);
}

static bool too_few(void *context, int number)
{
    struct agent *agent = context;
    if (agent->config->wait_s <= 0) return false;
    agent->short_of = gw_cluster_usable(agent->cluster);
    agent->short_until_s = gw_clock_now_s() + agent->config->wait_s;
    gw_warn("%d nodes are too few for this job, for the reason above: waiting for more, at most %.0f s (--wait)",
            agent->short_of, agent->config->wait_s);
    note_event(agent, "too-few",
               json_pack("{s:i,s:i,s:f}", "launch", number, "nodes", agent->short_of, "wait_s", agent->config->wait_s));
    return true;
}

static bool launch_cleared(void *context, bool *fence)
{
    struct agent *agent = context;
    if (!gw_cluster_round(agent->cluster, least_running(agent) - 1)) return false;
    if (gw_server_daemons(agent->server))
        return false; /* of the launch that was another supervisor's: they are ending */
    *fence = gw_cluster_unclean(agent->cluster);
    note_event(agent, "go", json_pack("{s:b}", "fence", *fence));
    return true;
}

static double time_left(void *context)
{
    const struct agent *agent = context;
    const char *names[NODES_LEAVING];
    double left_s, own_s = agent->leave_s > 0 ? agent->leave_s - gw_clock_now_s() : 1e9;
    gw_cluster_leaving(agent->cluster, names, NODES_LEAVING, &left_s);
    return own_s < left_s ? own_s : left_s;
}

/* The launch is told which nodes leave, and brings what they hold to the others. A tenth of the grace is for what follows. */
static bool give_way(void *context, int number, double *within_s)
{
    struct agent *agent = context;
    const char *names[NODES_LEAVING];
    double left_s = time_left(agent);
    struct gw_handover order = {.launch = number};
    double ignored_s;
    order.node_count = gw_cluster_leaving(agent->cluster, names, NODES_LEAVING, &ignored_s);
    *within_s = 0.9 * left_s - LEAVE_MARGIN_S;
    if (*within_s > MOVE_MOST_S) *within_s = MOVE_MOST_S;
    if (*within_s <= 0) return false;
    order.seconds = *within_s;
    order.nodes = (char **)names;
    if (gw_handover_post(agent->config->options->out_dir, &order) == GW_OK) return true;
    gw_warn("%s; what the leaving nodes hold is computed again", gw_error_detail());
    return false;
}

static void step_down(struct agent *agent)
{
    gw_supervisor_destroy(agent->supervisor);
    gw_cluster_destroy(agent->cluster);
    agent->supervisor = NULL;
    agent->cluster = NULL;
    agent->own = (struct gw_term){0};
    agent->running = agent->short_of = 0;
    agent->launched = agent->over = agent->saving = false;
    agent->handed_s = 0;
}

/* Another agent supervises, and lets the launch of this one give way to its own: it runs on until then. */
static void keep_launch(struct agent *agent)
{
    agent->kept_launch = gw_supervisor_present(agent->supervisor);
    agent->kept_term = agent->own.number;
    agent->kept = gw_supervisor_release(agent->supervisor);
    gw_server_keeps(agent->server, agent->kept_term, agent->kept_launch);
    if (!agent->kept) gw_server_kept_is_over(agent->server);
}

static void look_after_kept(struct agent *agent)
{
    if (!agent->kept) return;
    if (!gw_server_may_keep(agent->server)) gw_launch_destroy(agent->kept);
    else if (gw_launch_poll(agent->kept)) gw_launch_destroy(agent->kept);
    else return;
    agent->kept = NULL;
    gw_server_kept_is_over(agent->server);
}

static void end_kept(struct agent *agent)
{
    if (!agent->kept) return;
    gw_launch_destroy(agent->kept);
    agent->kept = NULL;
    gw_server_kept_is_over(agent->server);
}

/* Begins the next term; somebody else may be faster. */
static gw_err take_over(struct agent *agent)
{
    gw_err rc = GW_OK;
    bool taken = false, ended = agent->term.state == GW_TERM_ENDED, heir = agent->term.state == GW_TERM_LEAVING;
    struct gw_term term = {.number = agent->term.number + 1,
                           .next_launch = ended ? 0 : agent->term.next_launch,
                           .clean = !agent->term.number || agent->term.clean};
    char number[24];
    bool runs = heir && agent->term.present >= 0;
    heir = runs && !agent->gone;
    term.clean &= heir || !runs;
    term.since = heir ? agent->term.since : term.number;
    term.present = heir ? agent->term.present : -1;
    term.least_launch = heir ? term.present : term.next_launch;
    snprintf(term.name, sizeof term.name, "%s", agent->lease.name);
    snprintf(term.incarnation, sizeof term.incarnation, "%s", agent->lease.incarnation);
    TRY(gw_term_begin(agent->folder, &term, &taken));
    if (taken) goto out;
    gw_term_prune(agent->folder, term.number);
    gw_handover_forget(agent->config->options->out_dir); /* its launch may have a number that comes again */
    gw_server_fence(agent->server, term.number, term.since, term.least_launch);
    agent->own = agent->term = term;
    snprintf(number, sizeof number, "%lld", (long long)term.number);
    setenv(GW_NODES_TERM, number, 1);
    struct gw_cluster_config cluster = {.folder = agent->folder,
                                        .secret = agent->secret,
                                        .self = &agent->lease,
                                        .term = term.number,
                                        .since = term.since,
                                        .lease_s = agent->config->lease_s,
                                        .unclean = !term.clean};
    agent->cluster = gw_cluster_create(&cluster);
    struct gw_supervisor_config supervisor = {.options = agent->config->options,
                                              .argc = agent->config->argc,
                                              .argv = agent->config->argv,
                                              .first_launch = (int)term.next_launch,
                                              .place = place,
                                              .ended = launch_ended,
                                              .cleared = launch_cleared,
                                              .give_way = give_way,
                                              .time_left = time_left,
                                              .too_few = too_few,
                                              .context = agent};
    agent->supervisor = gw_supervisor_create(&supervisor);
    agent->launched = term.number > 1 && !ended;
    if (heir) {
        agent->numbers[agent->running++] = term.present;
        gw_cluster_inherit(agent->cluster, term.present);
        gw_supervisor_inherit(agent->supervisor, (int)term.present);
    }
    gw_info("node %s supervises the job (term %lld)", agent->lease.name, (long long)term.number);
    note_event(agent, "supervisor", json_object());
out:
    return rc;
}

/* All nodes leave: KV is saved as far as the grace goes, and the job ends, to be carried on by the same command. */
static void save_all(struct agent *agent, double left_s)
{
    double margin_s = 0.1 * agent->config->grace_s < END_MOST_S ? 0.1 * agent->config->grace_s : END_MOST_S;
    struct gw_handover order = {.launch = gw_supervisor_present(agent->supervisor),
                                .all = true,
                                .seconds = left_s - margin_s - LEAVE_MARGIN_S};
    if (order.launch < 0 || order.seconds <= 0 || agent->hurried ||
        gw_handover_post(agent->config->options->out_dir, &order) != GW_OK) {
        gw_supervisor_stop(agent->supervisor);
        return;
    }
    gw_supervisor_leave(agent->supervisor, "all nodes leave the job");
}

/* This node leaves and supervises the job. Where others stay one of them takes over while the launch runs on; time may be too short for that. */
static void hand_on(struct agent *agent)
{
    double now_s = gw_clock_now_s(), left_s = agent->leave_s - now_s, lease_s = agent->config->lease_s;
    bool settled = gw_supervisor_settled(agent->supervisor), others = gw_cluster_usable(agent->cluster) > 0;
    if (agent->saving || now_s - agent->noted_s < lease_s / BEATS_PER_LEASE + LEAVE_SETTLE_S)
        return; /* who else leaves? */
    bool may_hand_on = others && gw_supervisor_present(agent->supervisor) >= 0 && left_s > HAND_ON_LEAST_S &&
                       (agent->handed_s == 0 || now_s - agent->handed_s < HAND_ON_LEASES * lease_s);
    if (may_hand_on && (agent->handed_s > 0 || !settled)) return;
    if (may_hand_on) {
        agent->handed_s = now_s;
        agent->own.state = GW_TERM_LEAVING;
        agent->own.present = gw_supervisor_present(agent->supervisor);
        agent->own.clean = !gw_cluster_unclean(agent->cluster);
        agent->beat_s = 0;
        return;
    }
    agent->saving = true;
    if (others) gw_supervisor_stop(agent->supervisor);
    else save_all(agent, left_s);
}

/* What the nodes' coming and going means for the launches. */
static void follow_nodes(struct agent *agent)
{
    char name[GW_NAME_BYTES];
    int more, less;
    for (int64_t lost; (lost = gw_cluster_lost(agent->cluster, name)) >= 0;) {
        gw_warn("node %s is lost", name);
        note_event(agent, "node-lost", json_pack("{s:s,s:I}", "name", name, "launch", (json_int_t)lost));
        gw_supervisor_give_up(agent->supervisor, (int)lost);
    }
    if (agent->leave_s > 0) hand_on(agent);
    if (agent->leave_s > 0 || !gw_supervisor_settled(agent->supervisor)) return;
    if (!gw_cluster_changed(agent->cluster, &more, &less)) return;
    gw_info("nodes have changed (%d more, %d leaving): going over to a new launch", more, less);
    note_event(agent, "nodes", json_pack("{s:i,s:i}", "more", more, "leaving", less));
    gw_supervisor_renew(agent->supervisor);
}

/* The job is over for this supervisor: either for all, or because this node leaves and another is to go on. */
static void conclude(struct agent *agent, gw_err rc)
{
    bool leaving = agent->leave_s > 0 && (rc == GW_ERR_STOPPED || rc == GW_ERR_NOTICE);
    if (rc == GW_ERR_NOTICE && gw_cluster_usable(agent->cluster) == 0) leaving = false; /* nobody goes on for now */
    agent->result = rc;
    agent->over = true;
    agent->own.state = leaving ? GW_TERM_RESIGNED : GW_TERM_ENDED;
    agent->own.exit_code = gw_err_exit_code(rc);
    snprintf(agent->own.reason, sizeof agent->own.reason, "%s", rc == GW_OK ? "" : gw_error_detail());
    agent->ending_s = gw_clock_now_s();
}

/* Before it goes, the supervisor sees to it that nothing of its launches is left, for a while. True: it has said that it is over. */
static bool finish_supervising(struct agent *agent)
{
    bool answered = gw_cluster_round(agent->cluster, agent->own.next_launch - 1);
    agent->own.clean = !gw_cluster_unclean(agent->cluster);
    if (!(answered && agent->own.clean) && gw_clock_now_s() - agent->ending_s < END_S) return false;
    agent->own.counter++;
    if (gw_term_write(agent->folder, &agent->own) != GW_OK) gw_warn("%s", gw_error_detail());
    return true;
}

/* ---- following ------------------------------------------------------------------------------------------------- */

/* Nobody listens at the supervisor's address any more: its process is gone. Silence says nothing. */
static void look_for_supervisor(struct agent *agent)
{
    struct gw_lease lease;
    double now_s = gw_clock_now_s();
    if (agent->probe) {
        bool open = gw_link_poll(agent->probe);
        agent->gone |= !open && gw_link_refused(agent->probe);
        if (open && !gw_link_trusted(agent->probe) && gw_link_age_s(agent->probe) < 1) return;
        gw_link_destroy(agent->probe);
        agent->probe = NULL;
        return;
    }
    if (now_s - agent->probed_s < agent->config->lease_s / 4) return;
    agent->probed_s = now_s;
    if (gw_lease_read(agent->folder, agent->term.name, &lease) != GW_OK ||
        strcmp(lease.incarnation, agent->term.incarnation)) {
        agent->gone = true; /* it has removed its lease, or another agent has its name by now */
        return;
    }
    agent->gone |= gw_lease_process_runs(&lease) == 0;
    if (agent->gone) return;
    char *identity = gw_asprintf("%s/%s", lease.name, lease.incarnation);
    if (gw_link_connect(lease.address, lease.port, agent->secret, identity, &agent->probe) != GW_OK)
        agent->probe = NULL;
    free(identity);
}

static gw_err read_term(struct agent *agent)
{
    gw_err rc = GW_OK;
    struct gw_term term;
    TRY(gw_term_read(agent->folder, &term));
    if (term.number < agent->term.number) goto out; /* a folder that is behind */
    if (term.number > agent->term.number) agent->gone = agent->supervised = false;
    agent->term = term;
    gw_watch_note(&agent->watch, term.incarnation, term.counter, gw_clock_now_s());
    gw_server_fence(agent->server, term.number, term.since, term.least_launch);
    if (agent->own.number && term.number > agent->own.number) {
        bool heir = agent->own.state == GW_TERM_LEAVING && term.since <= agent->own.number && !agent->over;
        if (heir) keep_launch(agent);
        else gw_warn("another node supervises the job by now (term %lld)", (long long)term.number);
        step_down(agent);
    }
out:
    return rc;
}

/* A follower's look at the term in force. */
static gw_err follow(struct agent *agent)
{
    gw_err rc = GW_OK;
    double now_s = gw_clock_now_s(), lease_s = agent->config->lease_s;
    const struct gw_term *term = &agent->term;
    bool none = !term->number || term->number == agent->old_term || term->state == GW_TERM_RESIGNED ||
                term->state == GW_TERM_LEAVING;
    int64_t number = term->number;
    double still_s = now_s - agent->watch.changed_s;
    bool supervised = gw_server_supervised(agent->server);
    bool doubt = !none && (still_s > lease_s / 2 || (agent->supervised && !supervised) || !agent->watch.moves);
    agent->supervised = supervised;
    if (!none && still_s > lease_s) {
        gw_server_end_all(agent->server);
        end_kept(agent);
    }
    if (doubt || agent->probe) look_for_supervisor(agent);
    if (agent->leave_s > 0) goto out;
    if (none || agent->gone || still_s > 2 * lease_s) {
        agent->gone = false;
        if (read_term(agent) != GW_OK) goto out; /* its last word may be that the job has ended */
        if (term->number != number || (!none && term->state == GW_TERM_ENDED)) goto out;
        TRY(gw_supervisor_done(agent->config->options,
                               &agent->done)); /* it came too late, or the last word was not said */
        if (!agent->done) TRY(take_over(agent));
    }
out:
    return rc;
}

/* ---- the beat -------------------------------------------------------------------------------------------------- */

/* Without its files an agent does not know whether it still takes part: then nothing of it may run on. */
static gw_err without_files(struct agent *agent, gw_err rc)
{
    double since_s = gw_clock_now_s() - agent->written_s;
    if (since_s < agent->config->lease_s) return GW_OK;
    gw_server_end_all(agent->server);
    end_kept(agent);
    if (agent->own.number) {
        gw_warn("the job's folder cannot be written: %s", gw_error_detail());
        step_down(agent);
    }
    return since_s < GIVE_UP_LEASES * agent->config->lease_s ? GW_OK : rc;
}

static gw_err count_up(struct agent *agent)
{
    gw_err rc = GW_OK;
    struct gw_lease there;
    rc = gw_lease_read(agent->folder, agent->lease.name, &there);
    if (rc == GW_OK && strcmp(there.incarnation, agent->lease.incarnation)) {
        agent->claimed = false;
        agent->written_s = -1e9;
        return gw_fail(GW_ERR_MISMATCH, "another agent has taken the name %s: this one stood still for too long",
                       agent->lease.name);
    }
    agent->lease.counter++;
    TRY(gw_lease_write(agent->folder, &agent->lease));
    TRY(read_term(agent));
    if (agent->own.number && !agent->over) {
        agent->own.counter++;
        TRY(gw_term_write(agent->folder, &agent->own));
    }
    agent->written_s = gw_clock_now_s();
out:
    return rc;
}

static gw_err beat(struct agent *agent, bool *due)
{
    double now_s = gw_clock_now_s();
    *due = now_s - agent->beat_s >= agent->config->lease_s / BEATS_PER_LEASE;
    if (!*due) return GW_OK;
    if (now_s - agent->beat_s > agent->config->lease_s && agent->beat_s > 0)
        gw_debug("this agent stood still for %.1f s", now_s - agent->beat_s);
    agent->beat_s = now_s;
    gw_err rc = count_up(agent);
    if (rc == GW_ERR_MISMATCH) {
        if (agent->own.number) step_down(agent);
        return rc;
    }
    return rc == GW_OK ? GW_OK : without_files(agent, rc);
}

/* ---- leaving --------------------------------------------------------------------------------------------------- */

static void begin_to_leave(struct agent *agent, double seconds)
{
    double until_s = gw_clock_now_s() + seconds;
    if (agent->leave_s > 0 && agent->leave_s <= until_s) return;
    bool first = agent->leave_s == 0;
    agent->leave_s = until_s;
    agent->lease.leaving = true;
    agent->lease.grace_s = seconds;
    agent->beat_s = 0; /* the others shall know at once */
    if (!first) return;
    agent->noted_s = gw_clock_now_s();
    gw_info("node %s leaves the job within %.0f s", agent->lease.name, seconds);
}

static void take_requests(struct agent *agent)
{
    int stops = *agent->config->stop, asked = stops + *agent->config->leave;
    double seconds;
    struct gw_notice_event event;
    while (agent->notices && gw_notice_source_take(agent->notices, &event)) {
        gw_info("%s", event.text);
        if (event.kind == GW_NOTICE_EARLY) continue;
        agent->noticed = true;
        begin_to_leave(agent, event.left_s);
    }
    if (gw_server_drained(agent->server, &seconds)) begin_to_leave(agent, seconds);
    agent->hurried |= stops > 0;
    for (; agent->leaves < asked; agent->leaves++) begin_to_leave(agent, agent->leaves ? 0 : agent->config->grace_s);
}

/* May it go? Its daemons have ended, since the next launch is without this node; or its time is up. */
static bool may_go(struct agent *agent)
{
    if (agent->leave_s == 0) return false;
    double now_s = gw_clock_now_s();
    if (now_s >= agent->leave_s) return true;
    if (agent->own.number || agent->kept || gw_server_daemons(agent->server) || agent->lease.counter <= 1) {
        agent->free_s = 0;
        return false;
    }
    if (agent->free_s == 0) {
        struct gw_lease lease;
        agent->free_s = now_s;
        agent->last_words = gw_lease_read(agent->folder, agent->term.name, &lease) == GW_OK && lease.leaving &&
                            !strcmp(lease.incarnation, agent->term.incarnation);
    }
    if (agent->last_words && agent->term.state == GW_TERM_RUNNING && now_s - agent->free_s < 2 * END_S) return false;
    return !gw_server_owes_word(agent->server) || now_s - agent->free_s > END_S; /* the supervisor waits for that */
}

/* ---- the loop -------------------------------------------------------------------------------------------------- */

static void wait_for_something(struct agent *agent)
{
    struct pollfd fds[FDS_MOST];
    int streams[2], count = gw_server_fds(agent->server, fds, FDS_MOST / 2);
    if (agent->cluster) count += gw_cluster_fds(agent->cluster, fds + count, FDS_MOST - count - 4);
    if (agent->supervisor)
        for (int i = gw_supervisor_fds(agent->supervisor, streams); i-- > 0;)
            fds[count++] = (struct pollfd){.fd = streams[i], .events = POLLIN};
    if (agent->kept && gw_launch_fd(agent->kept) >= 0)
        fds[count++] = (struct pollfd){.fd = gw_launch_fd(agent->kept), .events = POLLIN};
    if (agent->probe && gw_link_fd(agent->probe) >= 0)
        fds[count++] = (struct pollfd){.fd = gw_link_fd(agent->probe), .events = gw_link_events(agent->probe)};
    poll(fds, (nfds_t)count, gw_server_ending(agent->server) ? SHORT_TURN_MS : TURN_MS);
}

static gw_err turn(struct agent *agent, bool *ended)
{
    gw_err rc = GW_OK;
    bool due = false, over = false;
    gw_server_poll(agent->server);
    TRY(beat(agent, &due));
    look_after_kept(agent);
    if (agent->own.number) {
        gw_cluster_poll(agent->cluster, due);
        if (!agent->over) {
            follow_nodes(agent);
            if (gw_cluster_over(agent->cluster) >= 0 && gw_cluster_over(agent->cluster) == agent->own.present)
                rc = gw_supervisor_inherited_over(agent->supervisor, &over);
            if (!over) rc = gw_supervisor_poll(agent->supervisor, &over);
            if (!over && agent->short_of && gw_clock_now_s() > agent->short_until_s) {
                rc = gw_fail(GW_ERR_LAYOUT, "%d nodes are too few for this job, and no other has come within %.0f s",
                             agent->short_of, agent->config->wait_s);
                over = true;
            }
            if (over) conclude(agent, rc);
            rc = GW_OK;
        }
        *ended = agent->over && finish_supervising(agent);
        if (*ended) rc = agent->result;
    } else if (agent->term.state == GW_TERM_ENDED && agent->term.number != agent->old_term) {
        *ended = true;
        rc = agent->term.exit_code ? GW_ERR_PEER : gw_supervisor_summary(agent->config->options);
        for (int code = 1; code < GW_ERR_COUNT && agent->term.exit_code; code++)
            if (gw_err_exit_code((gw_err)code) == agent->term.exit_code) {
                rc = gw_fail((gw_err)code, "%s", agent->term.reason);
                break;
            }
    } else {
        TRY(follow(agent));
        *ended = agent->done;
        if (agent->done) rc = gw_supervisor_summary(agent->config->options);
    }
out:
    return rc;
}

static void end(struct agent *agent)
{
    if (agent->own.number && !agent->over) { /* its time is up */
        gw_supervisor_destroy(agent->supervisor);
        agent->supervisor = NULL;
        agent->own.state = GW_TERM_RESIGNED;
        agent->own.clean = false;
        if (gw_term_write(agent->folder, &agent->own) != GW_OK) gw_debug("%s", gw_error_detail());
    }
    step_down(agent);
    end_kept(agent);
    gw_server_destroy(agent->server);
    gw_link_destroy(agent->probe);
    if (agent->noticed) gw_notice_source_acknowledge(agent->notices);
    gw_notice_source_close(agent->notices);
    gw_process_end_descendants();
    gw_store_end(agent->store);
    if (agent->claimed) gw_lease_remove(agent->folder, agent->lease.name);
    gw_self_remove_scratch(agent->scratch, agent->scratch_lock);
    memset(agent->secret, 0, sizeof agent->secret);
    free(agent->launcher);
    free(agent->folder);
}

gw_err gw_agent_run(const struct gw_agent_config *config)
{
    gw_err rc = GW_OK;
    bool ended = false;
    struct agent agent = {.config = config, .scratch_lock = -1};
    agent.folder = gw_asprintf("%s/nodes", config->options->out_dir);
    TRY(begin(&agent));
    while (!ended) {
        TRY(turn(&agent, &ended));
        take_requests(&agent);
        if (!ended && may_go(&agent)) FAIL(GW_ERR_STOPPED, "node %s has left the job", agent.lease.name);
        if (!ended) wait_for_something(&agent);
    }
out:
    end(&agent);
    if (rc == GW_ERR_STOPPED && agent.noticed)
        rc = gw_fail(GW_ERR_NOTICE, "node %s has left the job, since it is taken away; the same command carries on",
                     agent.lease.name);
    return rc;
}
