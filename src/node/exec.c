/* See exec.h. */
#include "node/exec.h"

#include "base/clock.h"
#include "base/file.h"
#include "node/lease.h"
#include "node/link.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const double CONNECT_S = 5, PING_EVERY_S = 0.3, SILENT_S = 30;

static void wait_for(const struct gw_link *link, int wait_ms)
{
    struct pollfd poller = {.fd = gw_link_fd(link), .events = gw_link_events(link)};
    poll(&poller, 1, wait_ms);
}

static gw_err reach(const char *folder, const char *name, struct gw_link **link)
{
    gw_err rc = GW_OK;
    struct gw_lease lease;
    uint8_t secret[GW_SECRET_BYTES];
    if (!gw_name_valid(name)) return gw_fail(GW_ERR_USAGE, "'%s' is no name of a node", name);
    TRY(gw_lease_read(folder, name, &lease));
    TRY(gw_secret_open(folder, secret));
    char *identity = gw_asprintf("%s/%s", lease.name, lease.incarnation);
    rc = gw_link_connect(lease.address, lease.port, secret, identity, link);
    free(identity);
    TRY(rc);
    while (!gw_link_trusted(*link)) {
        if (!gw_link_poll(*link) || gw_link_age_s(*link) > CONNECT_S)
            FAIL(GW_ERR_PEER, "the agent of %s at %s port %d does not answer, or has another secret", name,
                 lease.address, lease.port);
        if (!gw_link_trusted(*link)) wait_for(*link, 50);
    }
out:
    return rc;
}

static gw_err write_out(const struct gw_frame *frame)
{
    bool out = frame->kind == GW_FRAME_OUT;
    return gw_write_all(out ? STDOUT_FILENO : STDERR_FILENO, out ? "stdout" : "stderr", frame->data, frame->bytes);
}

gw_err gw_node_exec(int argc, char **argv, int *exit_code)
{
    gw_err rc = GW_OK;
    struct gw_link *link = NULL;
    struct gw_buf message = {0};
    double pinged_s = gw_clock_now_s();
    const char *folder = getenv(GW_NODES_FOLDER), *term = getenv(GW_NODES_TERM), *launch = getenv(GW_NODES_LAUNCH);
    if (argc < 2 || !folder || !term || !launch) return gw_fail(GW_ERR_USAGE, "only a launch of godwit calls this");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rc = reach(folder, argv[0], &link);
    /* it left between the order to start a launch and now: no fault of the files, and the next launch does without it */
    if (rc == GW_ERR_NOT_FOUND) rc = gw_fail(GW_ERR_PEER, "node %s has left the job", argv[0]);
    TRY(rc);
    struct gw_frame_job job = {.term = atoll(term), .launch = atoll(launch)};
    gw_buf_add(&message, &job, sizeof job);
    for (int i = 1; i < argc; i++) {
        if (i > 1) gw_buf_add_text(&message, " ");
        gw_buf_add_text(&message, argv[i]);
    }
    if (message.bytes > GW_FRAME_MOST_BYTES)
        FAIL(GW_ERR_USAGE, "a command line of %zu bytes is too long", message.bytes);
    gw_link_send(link, GW_FRAME_EXEC, message.data, message.bytes);
    for (;;) {
        struct gw_frame frame;
        bool open = gw_link_poll(link);
        while (gw_link_next(link, &frame)) {
            if (frame.kind == GW_FRAME_OUT || frame.kind == GW_FRAME_ERR) TRY(write_out(&frame));
            if (frame.kind != GW_FRAME_EXIT || frame.bytes != sizeof(uint32_t)) continue;
            uint32_t code;
            memcpy(&code, frame.data, sizeof code);
            *exit_code = (int)code;
            goto out;
        }
        if (!open || gw_link_silent_s(link) > SILENT_S) FAIL(GW_ERR_PEER, "node %s is lost", argv[0]);
        if (gw_clock_now_s() - pinged_s > PING_EVERY_S) {
            pinged_s = gw_clock_now_s();
            gw_link_send(link, GW_FRAME_PING, NULL, 0);
        }
        wait_for(link, 100);
    }
out:
    gw_link_destroy(link);
    gw_buf_free(&message);
    return rc;
}

gw_err gw_node_drain(const char *folder, const char *name, unsigned seconds)
{
    gw_err rc = GW_OK;
    struct gw_link *link = NULL;
    uint32_t grace = seconds;
    TRY(reach(folder, name, &link));
    gw_link_send(link, GW_FRAME_DRAIN, &grace, sizeof grace);
    for (bool open = true, taken = false; !taken;) {
        struct gw_frame frame;
        open = gw_link_poll(link);
        while (gw_link_next(link, &frame)) taken |= frame.kind == GW_FRAME_TAKEN;
        if (!taken && (!open || gw_link_age_s(link) > 2 * CONNECT_S))
            FAIL(GW_ERR_PEER, "node %s does not answer", name);
        if (!taken) wait_for(link, 50);
    }
out:
    gw_link_destroy(link);
    return rc;
}
