/* What a kind of source is, for source.c; and what source.c offers to it. A kind's functions run on its own thread, one at a time. */
#ifndef GW_NOTICE_INTERNAL_H
#define GW_NOTICE_INTERNAL_H

#include "notice/source.h"

struct gw_notice_link; /* opaque: the way back from a kind to source.c */

struct gw_notice_kind_ops {
    const char *name, *title;
    double every_s;   /* between two questions */
    double slowest_s; /* between two questions to a source that fails, at most: a notice must still be seen in time */
    bool http;        /* needs libcurl; VALUE is an address, `address` where there is none */
    bool ack;         /* "+ack" is known */
    const char *address;
    GW_CHECK gw_err (*create)(struct gw_notice_link *link, const char *value, bool ack, void **state);
    /* Asks once, and hands what it learns to gw_notice_emit(). */
    GW_CHECK gw_err (*poll)(void *state);
    GW_CHECK gw_err (*acknowledge)(void *state); /* or NULL */
    void (*destroy)(void *state);
};

extern const struct gw_notice_kind_ops gw_notice_aws, gw_notice_azure, gw_notice_gcp, gw_notice_slurm;

/* Keeps the event for gw_notice_source_take(), unless the same has been said before. */
void gw_notice_emit(struct gw_notice_link *link, const struct gw_notice_event *event);
/* Has the source been closed? (link is a void * so that it can be handed on as a context.) */
bool gw_notice_stopped(void *link);

#endif
