#!/usr/bin/env bash
# Many requests: 20,000 lines, good, bad, blank and doubled, are answered once each, and memory stays flat.
# timeout: 600
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl
"$make_tiny" --layers 1 --d 64 --ffn 64 --heads 2 --kv-heads 1 --head-dim 32 "$MODEL"
awk 'BEGIN { for (i = 0; i < 20000; i++) {
    if (i % 10 == 3) print "no json " i
    else if (i % 10 == 4) print ""
    else if (i % 10 == 5) printf "{\"id\":\"q%d\",\"prompt\":\"the same id again\",\"max_tokens\":1}\n", i - 3
    else printf "{\"id\":\"q%d\",\"prompt\":\"line %d of many\",\"max_tokens\":1,\"temperature\":0}\n", i, i
} }' >"$BATCH"
digest=$(run_job "$GW_TMP/job" --layout 2x1x1 --context 128)
expect_equal answers "$(wc -l <"$GW_TMP/job/output.jsonl")" 14000
expect_equal errors "$(wc -l <"$GW_TMP/job/errors.jsonl")" 4000
expect_equal doubled "$(grep -c duplicate_custom_id "$GW_TMP/job/errors.jsonl")" 2000
expect_exit 0 "$GODWIT" verify "$GW_TMP/job"
grep -q "$digest" "$GW_TMP/job.log"
# the digest by other means, as docs/formats.md defines it
other=$(sed 's/^\({"id":"[^"]*","custom_id":"\)\([^"]*\)/\2\t&/' "$GW_TMP/job/output.jsonl" | LC_ALL=C sort -t "$(printf '\t')" -k1,1 |
    cut -f2- | sha256sum | cut -d' ' -f1)
expect_equal "digest by sort and sha256sum" "$digest" "$other"
