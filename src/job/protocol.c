/* See protocol.h. */
#include "job/protocol.h"

void gw_assign_add(struct gw_buf *out, int64_t index, const void *line, size_t bytes)
{
    gw_buf_add_u64(out, (uint64_t)index);
    gw_buf_add_u64(out, bytes);
    gw_buf_add(out, line, bytes);
}

bool gw_assign_next(struct gw_reader *in, int64_t *index, const char **line, size_t *bytes)
{
    if (in->at == in->bytes) return false;
    *index = (int64_t)gw_read_u64(in);
    *bytes = (size_t)gw_read_u64(in);
    *line = gw_read(in, *bytes);
    return !in->failed;
}

void gw_result_encode(const struct gw_result *result, struct gw_buf *out)
{
    gw_buf_add_u64(out, (uint64_t)result->index);
    gw_buf_add_u32(out, result->failed);
    gw_buf_add_u64(out, (uint64_t)result->prompt_tokens);
    gw_buf_add_u64(out, (uint64_t)result->completion_tokens);
    gw_buf_add(out, result->line, result->line_bytes);
}

gw_err gw_result_decode(const uint8_t *data, size_t bytes, struct gw_result *result)
{
    struct gw_reader in = {.data = data, .bytes = bytes};
    result->index = (int64_t)gw_read_u64(&in);
    result->failed = gw_read_u32(&in);
    result->prompt_tokens = (int64_t)gw_read_u64(&in);
    result->completion_tokens = (int64_t)gw_read_u64(&in);
    if (in.failed) return gw_fail(GW_ERR_PEER, "a result of %zu bytes from a head is malformed", bytes);
    result->line = in.data + in.at;
    result->line_bytes = in.bytes - in.at;
    return GW_OK;
}
