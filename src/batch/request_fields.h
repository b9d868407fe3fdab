/* Fields of a request's body: getters, sampling, stops, the table of what is refused. Internal to request.c. Local. */
#ifndef GW_BATCH_REQUEST_FIELDS_H
#define GW_BATCH_REQUEST_FIELDS_H

#include "batch/request.h"

#include <jansson.h>

/* What a parse carries around. */
struct gw_fields {
    struct gw_request *out;
    struct gw_request_error *bad;
    const char *prefix; /* "body." in OpenAI's form, "" in the plain one: how messages name a field */
};

/* The field, NULL when it is absent or null (the two mean the same everywhere). */
json_t *gw_fields_get(const json_t *object, const char *name);
/* Absent, false, 0, or an empty string, array or object. */
bool gw_fields_is_empty(const json_t *value);

/* Each notes what is wrong with field `name` and returns false. */
bool gw_fields_bad(struct gw_fields *f, const char *code, const char *name, const char *fmt, ...) GW_PRINTF(4, 5);
bool gw_fields_type(struct gw_fields *f, const char *name, const json_t *value, const char *wanted);
bool gw_fields_value(struct gw_fields *f, const char *code, const char *name, const json_t *value, const char *wanted);

/* Fields that would change the answer and are not implemented must be absent or say "off". */
bool gw_fields_refuse(struct gw_fields *f, const json_t *body);
bool gw_fields_read_sampling(struct gw_fields *f, const json_t *body);
bool gw_fields_read_stops(struct gw_fields *f, const json_t *body);

#endif
