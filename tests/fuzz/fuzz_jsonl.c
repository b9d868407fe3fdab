/* Any bytes as a line of input: parsing must not crash, must fill either a request within its ranges or a complete
 * error, and what is then written about the line must be valid JSON that tells its custom_id back. */
#include "batch/io/lines.h"
#include "batch/io/output.h"

#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* `line` (with its newline) must identify as `id` (NULL: none) and be one line of valid JSON. */
static void check_line(const struct gw_buf *line, bool errors, const char *id, int64_t index)
{
    struct gw_line_identity identity = {0};
    size_t bytes = line->bytes - 1;
    GW_ASSERT(line->data[bytes] == '\n' && !memchr(line->data, '\n', bytes));
    GW_ASSERT(gw_lines_identify((const char *)line->data, bytes, errors, &identity));
    GW_ASSERT(identity.has_id == (id != NULL) && identity.index == (errors ? index : -1));
    GW_ASSERT(!id || strcmp((const char *)identity.id.data, id) == 0);
    json_t *root = json_loadb((const char *)line->data, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    GW_ASSERT(root);
    json_decref(root);
    gw_buf_free(&identity.id);
}

static void check_good(const struct gw_request *request, struct gw_buf *line)
{
    GW_ASSERT(request->custom_id && strlen(request->custom_id) <= GW_REQUEST_MAX_ID_BYTES);
    GW_ASSERT(gw_sampling_check(&request->sampling) == GW_OK);
    GW_ASSERT(request->stop_count <= GW_REQUEST_MAX_STOPS);
    for (size_t i = 0; i < request->stop_count; i++) GW_ASSERT(request->stops[i].bytes);
    if (request->endpoint == GW_ENDPOINT_CHAT) GW_ASSERT(request->message_count && !request->prompt.data);
    else GW_ASSERT((request->prompt.data != NULL) != (request->prompt_tokens != NULL));
    for (size_t i = 0; i < request->message_count; i++)
        GW_ASSERT(request->messages[i].role &&
                  strlen(request->messages[i].content) <= request->messages[i].content_bytes);
    const char *text = request->prompt.data     ? request->prompt.data
                       : request->message_count ? request->messages[0].content
                                                : "";
    struct gw_position_logprobs position = {.chosen = {text, strlen(text), -0.5f}};
    struct gw_completion completion = {.custom_id = request->custom_id,
                                       .endpoint = request->endpoint,
                                       .model = request->model ? request->model : "m",
                                       .text = text,
                                       .text_bytes = strlen(text),
                                       .logprobs = &position,
                                       .logprob_count = 1};
    gw_output_format_completion(&completion, line);
    check_line(line, false, request->custom_id, -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct gw_buf line = {0};
    for (int64_t index = 0; index < 2; index++) { /* only the first line may have a byte order mark */
        struct gw_request request;
        struct gw_request_error bad;
        GW_ASSERT(gw_request_parse((const char *)data, bytes, index, NULL, &request, &bad) == GW_OK);
        gw_buf_clear(&line);
        if (bad.code) {
            GW_ASSERT(bad.message[0]);
            gw_output_format_error(request.custom_id, index, &bad, &line);
            check_line(&line, true, request.custom_id, index);
        } else {
            check_good(&request, &line);
        }
        gw_request_free(&request);
    }
    gw_buf_free(&line);
    return 0;
}
