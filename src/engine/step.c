/* See step.h. The wire form is the structs themselves: the ranks of one job are one binary on one byte order. */
#include "engine/step.h"

#include <stdlib.h>
#include <string.h>

void gw_step_clear(struct gw_step *step)
{
    step->rows = step->cut = step->seq_count = step->page_count = step->history_count = 0;
}

void gw_step_free(struct gw_step *step)
{
    free(step->seqs);
    free(step->tokens);
    free(step->pages);
    free(step->history);
    *step = (struct gw_step){0};
}

static void *grown(void *array, int32_t *capacity, int32_t used, int more, size_t size)
{
    if (used + more <= *capacity) return array;
    *capacity = (used + more) * 2;
    return gw_realloc(array, (size_t)*capacity, size);
}

struct gw_step_seq *gw_step_add_seq(struct gw_step *step)
{
    step->seqs = grown(step->seqs, &step->seq_capacity, step->seq_count, 1, sizeof *step->seqs);
    struct gw_step_seq *seq = &step->seqs[step->seq_count++];
    memset(seq, 0, sizeof *seq); /* padding too: the struct is sent as bytes */
    seq->logprobs = -1;
    return seq;
}

static void append(int32_t **array, int32_t *capacity, int32_t *used, const int32_t *values, int count)
{
    *array = grown(*array, capacity, *used, count, sizeof **array);
    if (count) memcpy(*array + *used, values, (size_t)count * sizeof **array);
    *used += count;
}

void gw_step_add_tokens(struct gw_step *step, const int32_t *tokens, int count)
{
    append(&step->tokens, &step->row_capacity, &step->rows, tokens, count);
}

void gw_step_add_pages(struct gw_step *step, const int32_t *pages, int count)
{
    append(&step->pages, &step->page_capacity, &step->page_count, pages, count);
}

void gw_step_add_history(struct gw_step *step, const int32_t *tokens, int count)
{
    append(&step->history, &step->history_capacity, &step->history_count, tokens, count);
}

void gw_step_encode(const struct gw_step *step, struct gw_buf *out)
{
    gw_buf_add_u64(out, step->id);
    gw_buf_add_u32(out, (uint32_t)step->slot);
    gw_buf_add_u32(out, (uint32_t)step->rows);
    gw_buf_add_u32(out, (uint32_t)step->cut);
    gw_buf_add_u32(out, (uint32_t)step->seq_count);
    gw_buf_add_u32(out, (uint32_t)step->page_count);
    gw_buf_add_u32(out, (uint32_t)step->history_count);
    gw_buf_add(out, step->seqs, (size_t)step->seq_count * sizeof *step->seqs);
    gw_buf_add(out, step->tokens, (size_t)step->rows * sizeof *step->tokens);
    gw_buf_add(out, step->pages, (size_t)step->page_count * sizeof *step->pages);
    gw_buf_add(out, step->history, (size_t)step->history_count * sizeof *step->history);
}

/* Every index a sequence carries stays inside the step. */
static bool seq_is_sound(const struct gw_step *step, const struct gw_step_seq *seq)
{
    int64_t pages = ((int64_t)seq->pos0 + seq->rows + GW_PAGE_TOKENS - 1) / GW_PAGE_TOKENS;
    return seq->rows > 0 && seq->row0 >= 0 && (int64_t)seq->row0 + seq->rows <= step->rows && seq->pos0 >= 0 &&
           seq->page0 >= 0 && seq->page0 + pages <= step->page_count && seq->history0 >= 0 && seq->history_count >= 0 &&
           (int64_t)seq->history0 + seq->history_count <= step->history_count;
}

gw_err gw_step_decode(const uint8_t *data, size_t bytes, struct gw_step *step)
{
    struct gw_reader in = {.data = data, .bytes = bytes};
    gw_step_clear(step);
    step->id = gw_read_u64(&in);
    step->slot = (int32_t)gw_read_u32(&in);
    uint32_t rows = gw_read_u32(&in), cut = gw_read_u32(&in), seqs = gw_read_u32(&in), pages = gw_read_u32(&in),
             history = gw_read_u32(&in);
    const void *seq_data = gw_read(&in, (size_t)seqs * sizeof *step->seqs);
    const void *token_data = gw_read(&in, (size_t)rows * sizeof *step->tokens);
    const void *page_data = gw_read(&in, (size_t)pages * sizeof *step->pages);
    const void *history_data = gw_read(&in, (size_t)history * sizeof *step->history);
    if (in.failed || in.at != bytes)
        return gw_fail(GW_ERR_PEER, "a step of %zu bytes from the head is malformed", bytes);
    for (uint32_t i = 0; i < seqs; i++)
        memcpy(gw_step_add_seq(step), (const uint8_t *)seq_data + i * sizeof *step->seqs, sizeof *step->seqs);
    gw_step_add_tokens(step, token_data, (int)rows);
    if (cut % GW_ACT_ROWS || (cut && cut >= rows))
        return gw_fail(GW_ERR_PEER, "step %llu from the head is cut out of bounds", (unsigned long long)step->id);
    step->cut = (int32_t)cut;
    gw_step_add_pages(step, page_data, (int)pages);
    gw_step_add_history(step, history_data, (int)history);
    for (uint32_t i = 0; i < seqs; i++)
        if (!seq_is_sound(step, &step->seqs[i]))
            return gw_fail(GW_ERR_PEER, "step %llu from the head has a sequence out of bounds",
                           (unsigned long long)step->id);
    return GW_OK;
}
