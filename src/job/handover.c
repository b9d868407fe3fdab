/* See handover.h. */
#include "job/handover.h"

#include "base/file.h"
#include "base/mem.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_BYTES = 1 << 20 };

static char *path_in(const char *out_dir)
{
    return gw_asprintf("%s/nodes/handover", out_dir);
}

gw_err gw_handover_post(const char *out_dir, const struct gw_handover *order)
{
    json_t *names = json_array();
    for (int n = 0; n < order->node_count; n++) json_array_append_new(names, json_string(order->nodes[n]));
    json_t *root = json_pack("{s:i,s:b,s:f,s:o}", "launch", order->launch, "all", order->all, "seconds", order->seconds,
                             "nodes", names);
    GW_ASSERT(root);
    char *text = json_dumps(root, JSON_INDENT(1)), *path = path_in(out_dir);
    gw_err rc = gw_file_replace(path, text, strlen(text), false);
    json_decref(root);
    free(path);
    free(text);
    return rc;
}

gw_err gw_handover_read(const char *out_dir, struct gw_handover *order)
{
    gw_err rc = GW_OK;
    json_t *root = NULL, *name;
    size_t index;
    char *path = path_in(out_dir), *text = NULL;
    *order = (struct gw_handover){0};
    if (access(path, R_OK)) {
        rc = GW_ERR_NOT_FOUND;
        goto out;
    }
    TRY(gw_file_read(path, MOST_BYTES, &text, NULL));
    root = json_loads(text, 0, NULL);
    const json_t *nodes = json_object_get(root, "nodes");
    if (!json_is_integer(json_object_get(root, "launch")) || !json_is_array(nodes))
        FAIL(GW_ERR_FORMAT, "%s is no order to hand over", path);
    order->launch = (int)json_integer_value(json_object_get(root, "launch"));
    order->all = json_is_true(json_object_get(root, "all"));
    order->seconds = json_number_value(json_object_get(root, "seconds"));
    if (!(order->seconds >= 0)) order->seconds = 0;
    order->nodes = gw_alloc(json_array_size(nodes) + 1, sizeof *order->nodes);
    json_array_foreach(nodes, index, name)
    {
        if (json_is_string(name)) order->nodes[order->node_count++] = gw_strdup(json_string_value(name));
    }
out:
    json_decref(root);
    free(path);
    free(text);
    return rc;
}

bool gw_handover_names(const struct gw_handover *order, const char *node)
{
    for (int n = 0; n < order->node_count; n++)
        if (!strcmp(order->nodes[n], node)) return true;
    return false;
}

void gw_handover_free(struct gw_handover *order)
{
    for (int n = 0; n < order->node_count; n++) free(order->nodes[n]);
    free(order->nodes);
    *order = (struct gw_handover){0};
}

void gw_handover_forget(const char *out_dir)
{
    char *path = path_in(out_dir);
    unlink(path);
    free(path);
}
