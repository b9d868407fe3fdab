/* See cluster.h. */
#include "node/cluster.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static const double ROUND_S = 1, RETRY_S = 0.5, SETTLE_JOIN_S = 1, SETTLE_LEAVE_S = 0.1;
enum { LAUNCHES_MOST = 4 };

struct peer {
    struct gw_lease lease;
    struct gw_watch watch;
    struct gw_link *link;
    double tried_s, pinged_s, heard_s;
    double seen_s;        /* when its lease was seen for the first time */
    double leaves_s;      /* when it was first seen to be leaving, its grace as it is now; 0: it is not */
    bool listed, refused; /* refused: nobody listens there any more */
    bool asked, answered; /* in this round */
};

/* A node of a launch. */
struct part {
    char name[GW_NAME_BYTES], incarnation[GW_INCARNATION_BYTES];
    int64_t launch;
    double inherited_s; /* when it was taken over from another supervisor; 0: it was not */
    bool over;          /* the launch has ended, and the node has not said that nothing of it is left */
};

struct gw_cluster {
    struct gw_cluster_config config;
    struct peer *peers;
    int peer_count;
    struct part *parts; /* nodes of running launches, and of ended ones that are not certain */
    int part_count;
    int64_t running[LAUNCHES_MOST];
    bool fenced[LAUNCHES_MOST], lost[LAUNCHES_MOST];
    int running_count;
    double round_s;         /* when it began; 0: there is none */
    int64_t inherited_over; /* gw_cluster_over() */
    int64_t through;
    int last_more, last_less;
    double changed_s, read_s; /* read_s: when the leases were last read; 0: never */
};

struct gw_cluster *gw_cluster_create(const struct gw_cluster_config *config)
{
    struct gw_cluster *cluster = gw_alloc(1, sizeof *cluster);
    cluster->config = *config;
    cluster->inherited_over = -1;
    return cluster;
}

void gw_cluster_destroy(struct gw_cluster *cluster)
{
    if (!cluster) return;
    for (int p = 0; p < cluster->peer_count; p++) gw_link_destroy(cluster->peers[p].link);
    free(cluster->peers);
    free(cluster->parts);
    free(cluster);
}

/* ---- leases and connections ------------------------------------------------------------------------------------ */

static struct peer *find(struct gw_cluster *cluster, const char *name)
{
    for (int p = 0; p < cluster->peer_count; p++)
        if (!strcmp(cluster->peers[p].lease.name, name)) return &cluster->peers[p];
    return NULL;
}

/* The node has ended everything of this term up to the launch it names. */
static void take_ended(struct gw_cluster *cluster, struct peer *peer, const struct gw_frame *frame)
{
    struct gw_frame_job job;
    if (frame->bytes != sizeof job) return;
    memcpy(&job, frame->data, sizeof job);
    if (job.term != cluster->config.term) return;
    if (job.launch >= cluster->through) peer->answered = true;
    for (int p = 0; p < cluster->part_count;) {
        struct part *part = &cluster->parts[p];
        if (part->over && part->launch <= job.launch && !strcmp(part->incarnation, peer->lease.incarnation))
            *part = cluster->parts[--cluster->part_count];
        else p++;
    }
}

static void take_over(struct gw_cluster *cluster, const struct gw_frame *frame)
{
    struct gw_frame_job job;
    if (frame->bytes != sizeof job) return;
    memcpy(&job, frame->data, sizeof job);
    if (job.term == cluster->config.term) cluster->inherited_over = job.launch;
}

/* Takes what it has said; false: the connection has ended. */
static bool hear(struct gw_cluster *cluster, struct peer *peer)
{
    struct gw_frame frame;
    bool open = gw_link_poll(peer->link);
    while (gw_link_next(peer->link, &frame)) {
        if (frame.kind == GW_FRAME_ENDED) take_ended(cluster, peer, &frame);
        if (frame.kind == GW_FRAME_OVER) take_over(cluster, &frame);
    }
    return open;
}

static void read_leases(struct gw_cluster *cluster)
{
    struct gw_lease *leases = NULL;
    int count = 0;
    double now_s = gw_clock_now_s();
    if (gw_lease_list(cluster->config.folder, &leases, &count) != GW_OK) return;
    cluster->read_s = now_s;
    for (int p = 0; p < cluster->peer_count; p++) cluster->peers[p].listed = false;
    for (int l = 0; l < count; l++) {
        if (!strcmp(leases[l].name, cluster->config.self->name)) continue;
        struct peer *peer = find(cluster, leases[l].name);
        if (!peer) {
            cluster->peers = gw_realloc(cluster->peers, (size_t)cluster->peer_count + 1, sizeof *cluster->peers);
            peer = &cluster->peers[cluster->peer_count++];
            *peer = (struct peer){.lease = leases[l], .seen_s = now_s};
        }
        if (strcmp(peer->lease.incarnation, leases[l].incarnation)) { /* another agent under this name */
            gw_link_destroy(peer->link);
            peer->link = NULL;
            peer->refused = false;
        }
        bool begins = leases[l].leaving && (!peer->lease.leaving || peer->lease.grace_s > leases[l].grace_s);
        if (begins || (leases[l].leaving && peer->leaves_s == 0)) peer->leaves_s = now_s;
        peer->lease = leases[l];
        peer->listed = true;
        gw_watch_note(&peer->watch, leases[l].incarnation, leases[l].counter, now_s);
    }
    free(leases);
    for (int p = 0; p < cluster->peer_count;) {
        if (cluster->peers[p].listed) {
            p++;
            continue;
        }
        if (cluster->peers[p].link) hear(cluster, &cluster->peers[p]); /* its last word: that all it ran has ended */
        gw_link_destroy(cluster->peers[p].link);
        cluster->peers[p] = cluster->peers[--cluster->peer_count];
    }
}

static void send_job(struct gw_cluster *cluster, struct peer *peer, enum gw_frame_kind kind, int64_t launch)
{
    struct gw_frame_job job = {.term = cluster->config.term, .launch = launch, .since = cluster->config.since};
    gw_link_send(peer->link, kind, &job, sizeof job);
    peer->pinged_s = gw_clock_now_s();
}

static void connect_to(struct gw_cluster *cluster, struct peer *peer)
{
    double now_s = gw_clock_now_s();
    if (now_s - peer->tried_s < RETRY_S || !gw_watch_alive(&peer->watch, now_s, cluster->config.lease_s)) return;
    peer->tried_s = now_s;
    char *identity = gw_asprintf("%s/%s", peer->lease.name, peer->lease.incarnation);
    if (gw_link_connect(peer->lease.address, peer->lease.port, cluster->config.secret, identity, &peer->link) != GW_OK)
        peer->link = NULL;
    free(identity);
}

static void poll_peer(struct gw_cluster *cluster, struct peer *peer)
{
    if (!peer->link) connect_to(cluster, peer);
    if (!peer->link) return;
    bool open = hear(cluster, peer);
    bool late = gw_link_silent_s(peer->link) > cluster->config.lease_s;
    if (!open || late) {
        peer->refused = gw_link_refused(peer->link);
        gw_link_destroy(peer->link);
        peer->link = NULL;
        return;
    }
    if (!gw_link_trusted(peer->link)) return;
    peer->refused = false;
    peer->heard_s = gw_clock_now_s() - gw_link_silent_s(peer->link);
    if (cluster->round_s > 0 && !peer->asked) {
        peer->asked = true;
        send_job(cluster, peer, GW_FRAME_END, cluster->through);
    } else if (gw_clock_now_s() - peer->pinged_s > cluster->config.lease_s / 5) {
        send_job(cluster, peer, GW_FRAME_PING, 0);
    }
    gw_link_poll(peer->link);
}

void gw_cluster_poll(struct gw_cluster *cluster, bool leases)
{
    if (leases) read_leases(cluster);
    for (int p = 0; p < cluster->peer_count; p++) poll_peer(cluster, &cluster->peers[p]);
}

int gw_cluster_fds(const struct gw_cluster *cluster, struct pollfd *fds, int most)
{
    int count = 0;
    for (int p = 0; p < cluster->peer_count && count < most; p++) {
        const struct gw_link *link = cluster->peers[p].link;
        if (link && gw_link_fd(link) >= 0)
            fds[count++] = (struct pollfd){.fd = gw_link_fd(link), .events = gw_link_events(link)};
    }
    return count;
}

static bool present(const struct gw_cluster *cluster, const struct peer *peer)
{
    double lease_s = cluster->config.lease_s;
    return gw_watch_alive(&peer->watch, gw_clock_now_s(), lease_s) && peer->link && gw_link_trusted(peer->link) &&
           gw_link_silent_s(peer->link) < lease_s;
}

static bool usable(const struct gw_cluster *cluster, const struct peer *peer)
{
    return !peer->lease.leaving && present(cluster, peer);
}

bool gw_cluster_acquainted(const struct gw_cluster *cluster, double within_s)
{
    double now_s = gw_clock_now_s();
    if (cluster->read_s == 0) return false;
    for (int p = 0; p < cluster->peer_count; p++) {
        const struct peer *peer = &cluster->peers[p];
        if (!present(cluster, peer) && !peer->refused && now_s - peer->seen_s < within_s) return false;
    }
    return true;
}

int gw_cluster_usable(const struct gw_cluster *cluster)
{
    int count = !cluster->config.self->leaving;
    for (int p = 0; p < cluster->peer_count; p++) count += usable(cluster, &cluster->peers[p]);
    return count;
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

bool gw_cluster_round(struct gw_cluster *cluster, int64_t through)
{
    bool open = false;
    if (cluster->round_s == 0 || cluster->through != through) {
        cluster->round_s = gw_clock_now_s();
        cluster->through = through;
        for (int p = 0; p < cluster->peer_count; p++) cluster->peers[p].asked = cluster->peers[p].answered = false;
        gw_cluster_poll(cluster, true);
    }
    for (int p = 0; p < cluster->peer_count; p++)
        open |= present(cluster, &cluster->peers[p]) && !cluster->peers[p].answered;
    return !open || gw_clock_now_s() - cluster->round_s > ROUND_S;
}

int gw_cluster_leaving(const struct gw_cluster *cluster, const char **names, int most, double *left_s)
{
    int count = 0;
    double now_s = gw_clock_now_s();
    *left_s = 1e9;
    for (int p = -1; p < cluster->peer_count && count < most; p++) {
        const struct gw_lease *lease = p < 0 ? cluster->config.self : &cluster->peers[p].lease;
        if (!lease->leaving) continue;
        double seen_s = p < 0 || cluster->peers[p].leaves_s == 0 ? now_s : cluster->peers[p].leaves_s;
        names[count++] = lease->name;
        if (lease->grace_s - (now_s - seen_s) < *left_s) *left_s = lease->grace_s - (now_s - seen_s);
    }
    return count;
}

static void add_part(struct gw_cluster *cluster, const struct gw_lease *lease, int64_t launch)
{
    cluster->parts = gw_realloc(cluster->parts, (size_t)cluster->part_count + 1, sizeof *cluster->parts);
    struct part *part = &cluster->parts[cluster->part_count++];
    *part = (struct part){.launch = launch};
    memcpy(part->name, lease->name, sizeof part->name);
    memcpy(part->incarnation, lease->incarnation, sizeof part->incarnation);
}

bool gw_cluster_unclean(const struct gw_cluster *cluster)
{
    bool unclean = cluster->config.unclean;
    for (int p = 0; p < cluster->part_count; p++) unclean |= cluster->parts[p].over;
    return unclean;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct peer *const *)a)->lease.name, (*(struct peer *const *)b)->lease.name);
}

char *gw_cluster_place(struct gw_cluster *cluster, int64_t number, int *ranks, bool *fence)
{
    struct gw_buf hosts = {0};
    struct peer **sorted = gw_alloc((size_t)cluster->peer_count + 1, sizeof(struct peer *));
    int count = 0;
    GW_ASSERT(cluster->running_count < LAUNCHES_MOST);
    for (int p = 0; p < cluster->peer_count; p++)
        if (usable(cluster, &cluster->peers[p]) && cluster->peers[p].answered) sorted[count++] = &cluster->peers[p];
    qsort(sorted, (size_t)count, sizeof *sorted, by_name);
    const struct gw_lease *self = cluster->config.self;
    char *text = gw_asprintf("localhost:%d", self->slots);
    gw_buf_add_text(&hosts, text);
    free(text);
    *ranks = self->slots;
    for (int i = 0; i < count; i++) {
        text = gw_asprintf(",%s:%d", sorted[i]->lease.name, sorted[i]->lease.slots);
        gw_buf_add_text(&hosts, text);
        free(text);
        *ranks += sorted[i]->lease.slots;
        add_part(cluster, &sorted[i]->lease, number);
    }
    free(sorted);
    *fence = gw_cluster_unclean(cluster);
    cluster->fenced[cluster->running_count] = *fence;
    cluster->lost[cluster->running_count] = false;
    cluster->running[cluster->running_count++] = number;
    cluster->round_s = 0;
    gw_buf_add(&hosts, "", 1);
    return (char *)hosts.data;
}

void gw_cluster_inherit(struct gw_cluster *cluster, int64_t number)
{
    GW_ASSERT(cluster->running_count < LAUNCHES_MOST);
    read_leases(cluster);
    for (int p = 0; p < cluster->peer_count; p++) {
        add_part(cluster, &cluster->peers[p].lease, number);
        cluster->parts[cluster->part_count - 1].inherited_s = gw_clock_now_s();
    }
    cluster->fenced[cluster->running_count] = cluster->lost[cluster->running_count] = false;
    cluster->running[cluster->running_count++] = number;
}

int64_t gw_cluster_over(const struct gw_cluster *cluster)
{
    return cluster->inherited_over;
}

void gw_cluster_ended(struct gw_cluster *cluster, int64_t number, bool led)
{
    for (int r = 0; r < cluster->running_count; r++) {
        if (cluster->running[r] != number) continue;
        if (cluster->fenced[r] && led) { /* what is older writes in vain since then */
            cluster->config.unclean = false;
            for (int p = 0; p < cluster->part_count;) {
                if (cluster->parts[p].over && cluster->parts[p].launch < number)
                    cluster->parts[p] = cluster->parts[--cluster->part_count];
                else p++;
            }
        }
        int last = --cluster->running_count;
        cluster->running[r] = cluster->running[last];
        cluster->fenced[r] = cluster->fenced[last];
        cluster->lost[r] = cluster->lost[last];
        break;
    }
    for (int p = 0; p < cluster->part_count; p++) cluster->parts[p].over |= cluster->parts[p].launch == number;
}

/* Is the agent that has this part still there? */
static bool holds(struct gw_cluster *cluster, const struct part *part)
{
    double now_s = gw_clock_now_s();
    const struct peer *peer = find(cluster, part->name);
    if (!peer || strcmp(peer->lease.incarnation, part->incarnation) || peer->refused) return false;
    /* one that another supervisor has seen has not been heard from here yet */
    if (part->inherited_s > 0 && now_s - part->inherited_s < 2 * cluster->config.lease_s) return true;
    if (!gw_watch_alive(&peer->watch, now_s, cluster->config.lease_s)) return false;
    return now_s - peer->heard_s < cluster->config.lease_s;
}

int64_t gw_cluster_lost(struct gw_cluster *cluster, char name[GW_NAME_BYTES])
{
    for (int p = 0; p < cluster->part_count; p++) {
        const struct part *part = &cluster->parts[p];
        if (part->over || holds(cluster, part)) continue;
        for (int r = 0; r < cluster->running_count; r++) {
            if (cluster->running[r] != part->launch || cluster->lost[r]) continue;
            cluster->lost[r] = true;
            memcpy(name, part->name, GW_NAME_BYTES);
            return part->launch;
        }
    }
    return -1;
}

bool gw_cluster_changed(struct gw_cluster *cluster, int *more, int *less)
{
    int64_t newest = -1;
    double now_s = gw_clock_now_s();
    *more = *less = 0;
    for (int r = 0; r < cluster->running_count; r++)
        if (cluster->running[r] > newest) newest = cluster->running[r];
    for (int p = 0; p < cluster->peer_count && newest >= 0; p++) {
        const struct peer *peer = &cluster->peers[p];
        bool has_part = false;
        for (int i = 0; i < cluster->part_count && !has_part; i++)
            has_part = cluster->parts[i].launch == newest &&
                       !strcmp(cluster->parts[i].incarnation, peer->lease.incarnation);
        *more += !has_part && usable(cluster, peer);
        *less += has_part && peer->lease.leaving;
    }
    if (*more != cluster->last_more || *less != cluster->last_less) {
        cluster->last_more = *more;
        cluster->last_less = *less;
        cluster->changed_s = now_s;
    }
    if (!*more && !*less) return false;
    return now_s - cluster->changed_s >= (*less ? SETTLE_LEAVE_S : SETTLE_JOIN_S);
}
