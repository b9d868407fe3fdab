/* See pace.h. */
#include "control/pace.h"

#include "base/mem.h"

#include <stdlib.h>

/* A report older than FRESH_S is no measure for others. Corrections of one member are LEAST_BETWEEN_S apart, each time twice as long. */
static const double FRESH_S = 3, LEAST_BETWEEN_S = 10, LEFT_OUT_S = 60, MOST_WAIT_S = 3600, LEAST_FACTOR = 0.1,
                    ROWS_ALIKE = 1.5;

struct member {
    int number, count; /* count: reports since the last plan, the first one included */
    double quotients[GW_PACE_WINDOWS];
    double noted_s, rows, factor;
    double corrected_s, wait_s; /* when last, and how long until the next */
    bool corrected;
};

struct gw_pace {
    struct member *members;
    int count, capacity;
};

struct gw_pace *gw_pace_create(void)
{
    return gw_alloc(1, sizeof(struct gw_pace));
}

void gw_pace_destroy(struct gw_pace *pace)
{
    if (!pace) return;
    free(pace->members);
    free(pace);
}

void gw_pace_restart(struct gw_pace *pace)
{
    for (int i = 0; i < pace->count; i++) pace->members[i].count = 0;
}

static struct member *find(const struct gw_pace *pace, int number)
{
    for (int i = 0; i < pace->count; i++)
        if (pace->members[i].number == number) return &pace->members[i];
    return NULL;
}

void gw_pace_note(struct gw_pace *pace, int number, double speed, double rows, double said_s, double took_s,
                  double now_s)
{
    struct member *m = find(pace, number);
    if (!(said_s > 0) || !(took_s > 0) || !(speed > 0)) return;
    if (!m) {
        if (pace->count == pace->capacity) {
            pace->capacity = pace->capacity ? 2 * pace->capacity : 16;
            pace->members = gw_realloc(pace->members, (size_t)pace->capacity, sizeof *pace->members);
        }
        m = &pace->members[pace->count++];
        *m = (struct member){.number = number, .factor = 1};
    }
    m->noted_s = now_s;
    m->rows = rows;
    if (m->count++) m->quotients[(m->count - 2) % GW_PACE_WINDOWS] = took_s * speed / said_s;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(const struct member *m)
{
    double sorted[GW_PACE_WINDOWS];
    for (int i = 0; i < GW_PACE_WINDOWS; i++) sorted[i] = m->quotients[i];
    qsort(sorted, GW_PACE_WINDOWS, sizeof *sorted, ascending);
    return sorted[GW_PACE_WINDOWS / 2];
}

static bool tells(const struct member *m, double now_s)
{
    return m->count > GW_PACE_WINDOWS && now_s - m->noted_s < FRESH_S;
}

static bool alike(const struct member *a, const struct member *b)
{
    return a->rows < ROWS_ALIKE * b->rows && b->rows < ROWS_ALIKE * a->rows;
}

/* The lower median of all who tell of steps like this member's: of two it is the faster that the other is compared with. */
static double typical(const struct gw_pace *pace, const struct member *of, double now_s, int *telling)
{
    double *sorted = gw_alloc((size_t)pace->count + 1, sizeof *sorted);
    *telling = 0;
    for (int i = 0; i < pace->count; i++)
        if (tells(&pace->members[i], now_s) && alike(&pace->members[i], of))
            sorted[(*telling)++] = median_of(&pace->members[i]);
    qsort(sorted, (size_t)*telling, sizeof *sorted, ascending);
    double middle = *telling ? sorted[(*telling - 1) / 2] : 0;
    free(sorted);
    return middle;
}

static bool correct(struct member *m, double factor, double now_s)
{
    double before = m->factor;
    m->factor = factor > 1 ? 1 : factor < LEAST_FACTOR ? LEAST_FACTOR : factor;
    m->wait_s = m->corrected ? 2 * m->wait_s : LEAST_BETWEEN_S;
    if (m->wait_s > MOST_WAIT_S) m->wait_s = MOST_WAIT_S;
    m->corrected = true;
    m->corrected_s = now_s;
    m->count = 0;
    return m->factor != before;
}

/* What has become of one member. */
static enum gw_pace_change judge(const struct gw_pace *pace, struct member *m, double now_s)
{
    int telling = 0;
    double waited_s = now_s - m->corrected_s, left_out_s = LEFT_OUT_S / LEAST_BETWEEN_S * m->wait_s;
    if (m->corrected && waited_s < m->wait_s) return GW_PACE_SAME;
    if (!tells(m, now_s)) {
        bool again = m->factor < 1 && m->count == 0 && waited_s > left_out_s;
        return again && correct(m, 1, now_s) ? GW_PACE_TRY_AGAIN : GW_PACE_SAME;
    }
    double slowness = median_of(m) / typical(pace, m, now_s, &telling);
    if (telling < 2) return GW_PACE_SAME;
    bool slower = slowness >= GW_PACE_FACTOR, faster = m->factor < 1 && slowness * GW_PACE_FACTOR <= 1;
    if ((!slower && !faster) || !correct(m, m->factor / slowness, now_s)) return GW_PACE_SAME;
    return slower ? GW_PACE_SLOWER : GW_PACE_FASTER;
}

enum gw_pace_change gw_pace_judge(struct gw_pace *pace, double now_s, int *number, double *factor)
{
    enum gw_pace_change change = GW_PACE_SAME;
    for (int i = 0; change == GW_PACE_SAME && i < pace->count; i++) {
        change = judge(pace, &pace->members[i], now_s);
        *number = pace->members[i].number;
        *factor = pace->members[i].factor;
    }
    return change;
}

double gw_pace_factor(const struct gw_pace *pace, int number)
{
    const struct member *m = find(pace, number);
    return m ? m->factor : 1;
}
