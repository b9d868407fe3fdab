/* Any bytes as a journal file: a replay must not crash, and what it accepts must be what the next leader starts from and what its own
 * file gives back.
 *
 * An input that begins "GWJ" is the file. Any other is a row of block payloads, each behind a byte that is its length; they get
 * frames with right checksums, so that what is inside a block is tried, too. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "batch/io/journal_tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static char dir[] = "fuzz_journal.XXXXXX";

static const char *in_dir(const char *name)
{
    static char path[100];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void clear(void)
{
    unlink(in_dir("journal/00000001.gwj"));
    unlink(in_dir("journal/00000002.gwj"));
}

static void at_end(void)
{
    clear();
    rmdir(in_dir("journal"));
    rmdir(dir);
}

/* The frame of docs/formats.md around each payload. */
static void add_frames(struct gw_buf *file, const uint8_t *data, size_t bytes)
{
    for (uint64_t number = 0; bytes; number++) {
        size_t length = *data < bytes - 1 ? *data : bytes - 1, start = file->bytes;
        gw_buf_add_text(file, "GWJ1");
        gw_buf_add_u32(file, (uint32_t)length);
        gw_buf_add_u64(file, 1);
        gw_buf_add_u64(file, number);
        gw_buf_add_u64(file, gw_hash64(data + 1, length, gw_hash64(file->data + start, 24, 0)));
        gw_buf_add(file, data + 1, length);
        data += 1 + length;
        bytes -= 1 + length;
    }
}

static void check_same(const struct gw_journal_tokens *a, const struct gw_journal_tokens *b)
{
    size_t count, b_count;
    uint64_t output_bytes, b_output_bytes;
    int64_t *list = gw_journal_tokens_list(a, &count), *b_list = gw_journal_tokens_list(b, &b_count);
    GW_ASSERT(count == b_count && memcmp(list, b_list, count * sizeof *list) == 0);
    GW_ASSERT(gw_journal_tokens_output(a, &output_bytes) == gw_journal_tokens_output(b, &b_output_bytes));
    GW_ASSERT(output_bytes == b_output_bytes);
    for (size_t i = 0; i < count; i++) {
        int32_t tokens = gw_journal_tokens_count(a, list[i]);
        GW_ASSERT(tokens > 0 && tokens == gw_journal_tokens_count(b, list[i]));
        for (int32_t at = 0; at < tokens; at++) {
            struct gw_sample_result mine, other;
            GW_ASSERT(gw_journal_tokens_get(a, list[i], at, &mine) && gw_journal_tokens_get(b, list[i], at, &other));
            GW_ASSERT(mine.token >= 0 && memcmp(&mine, &other, sizeof mine) == 0);
        }
    }
    free(list);
    free(b_list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static bool started;
    if (!started) {
        gw_log_set_level(GW_LOG_ERROR);
        GW_ASSERT(mkdtemp(dir) && atexit(at_end) == 0 && gw_make_dir(in_dir("journal")) == GW_OK);
        started = true;
    }
    struct gw_buf file = {0};
    struct gw_journal_tokens *tokens, *again;
    struct gw_journal *journal;
    uint64_t last;
    if (bytes >= 3 && memcmp(data, "GWJ", 3) == 0) gw_buf_add(&file, data, bytes);
    else add_frames(&file, data, bytes);
    clear();
    GW_ASSERT(gw_file_replace(in_dir("journal/00000001.gwj"), file.data, file.bytes, false) == GW_OK);
    gw_buf_free(&file);
    gw_err rc = gw_journal_replay(dir, &tokens, &last);
    GW_ASSERT(last == 1 && (rc == GW_OK || rc == GW_ERR_FORMAT || rc == GW_ERR_BUG));
    if (rc != GW_OK) return 0;
    GW_ASSERT(gw_journal_open(dir, 2, tokens, tokens->job_id, &journal) == GW_OK);
    check_same(tokens, gw_journal_live(journal));
    GW_ASSERT(gw_journal_close(journal) == GW_OK);
    GW_ASSERT(gw_journal_replay(dir, &again, &last) == GW_OK && last == 2);
    check_same(tokens, again);
    gw_journal_tokens_free(tokens);
    gw_journal_tokens_free(again);
    return 0;
}
