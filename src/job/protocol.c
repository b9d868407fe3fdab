/* See protocol.h. */
#include "job/protocol.h"

#include <string.h>

void gw_drawn_add(struct gw_buf *out, const struct gw_sample_result *results, int count, bool logprobs)
{
    gw_buf_add_u32(out, (uint32_t)count << 1 | logprobs);
    for (int i = 0; i < count; i++) {
        const struct gw_sample_result *r = &results[i];
        gw_buf_add(out, &r->token, sizeof r->token);
        if (!logprobs) continue;
        gw_buf_add(out, &r->logprob, sizeof r->logprob);
        gw_buf_add(out, &r->alternatives, sizeof r->alternatives);
        gw_buf_add(out, r->alt_token, (size_t)r->alternatives * sizeof *r->alt_token);
        gw_buf_add(out, r->alt_logprob, (size_t)r->alternatives * sizeof *r->alt_logprob);
    }
}

static void read_into(struct gw_reader *in, void *to, size_t bytes)
{
    const void *data = gw_read(in, bytes);
    if (data) memcpy(to, data, bytes);
}

bool gw_drawn_read(struct gw_reader *in, struct gw_buf *results, int *count)
{
    uint32_t head = gw_read_u32(in);
    *count = 0;
    for (uint32_t i = 0; i < head >> 1 && !in->failed; i++) {
        struct gw_sample_result r = {0};
        read_into(in, &r.token, sizeof r.token);
        if (head & 1) {
            read_into(in, &r.logprob, sizeof r.logprob);
            read_into(in, &r.alternatives, sizeof r.alternatives);
            if (r.alternatives < 0 || r.alternatives > GW_MAX_LOGPROBS) in->failed = true;
            if (in->failed) break;
            read_into(in, r.alt_token, (size_t)r.alternatives * sizeof *r.alt_token);
            read_into(in, r.alt_logprob, (size_t)r.alternatives * sizeof *r.alt_logprob);
        }
        gw_buf_add(results, &r, sizeof r);
        ++*count;
    }
    return !in->failed;
}

uint64_t gw_assign_step(int adoption)
{
    return (uint64_t)adoption + 1;
}

void gw_assign_add(struct gw_buf *out, int64_t index, const void *line, size_t bytes, const struct gw_buf *drawn)
{
    gw_buf_add_u64(out, (uint64_t)index);
    gw_buf_add_u64(out, bytes);
    gw_buf_add(out, line, bytes);
    gw_drawn_add(out, (const struct gw_sample_result *)(const void *)drawn->data,
                 (int)(drawn->bytes / sizeof(struct gw_sample_result)), true);
}

bool gw_assign_next(struct gw_reader *in, int64_t *index, const char **line, size_t *bytes, struct gw_buf *drawn)
{
    int count;
    if (in->at == in->bytes) return false;
    *index = (int64_t)gw_read_u64(in);
    *bytes = (size_t)gw_read_u64(in);
    *line = gw_read(in, *bytes);
    gw_buf_clear(drawn);
    return gw_drawn_read(in, drawn, &count);
}

void gw_tokens_msg_add(struct gw_buf *out, int64_t index, int at, const struct gw_sample_result *results, int count,
                       bool logprobs)
{
    gw_buf_add_u64(out, (uint64_t)index);
    gw_buf_add_u32(out, (uint32_t)at << 1 | logprobs);
    gw_drawn_add(out, results, count, logprobs);
}

bool gw_tokens_msg_next(struct gw_reader *in, int64_t *index, int *at, struct gw_buf *results, int *count,
                        bool *logprobs)
{
    if (in->at == in->bytes) return false;
    *index = (int64_t)gw_read_u64(in);
    uint32_t head = gw_read_u32(in);
    *at = (int)(head >> 1);
    *logprobs = head & 1;
    gw_buf_clear(results);
    return gw_drawn_read(in, results, count);
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
