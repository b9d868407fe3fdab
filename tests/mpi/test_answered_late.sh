#!/usr/bin/env bash
# A head dies in the very turn in which all its sequences have ended. Its successor finds their KV in the store, but nobody wants it any more: the pages must
# be free again, since the cache has room for just as many sequences as the head runs.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl tokens=1000
"$make_tiny" "$MODEL"
awk -v tokens=$tokens 'BEGIN {
    for (i = 0; i < 16; i++) printf "{\"id\":\"r%d\",\"prompt\":\"the sea\",\"max_tokens\":%d,\"ignore_eos\":true,\"seed\":%d}\n", i, tokens, i
}' >"$BATCH"
options=(--context 1024 --max-seqs 4)
wanted=$(run_job "$GW_TMP/whole" --layout 1x1x1 "${options[@]}")

# without a spare no further plan follows, which would free the pages, too
for step in $((tokens - 1)) $tokens $((tokens + 1)); do
    out=$GW_TMP/out-$step
    expect_equal "digest with a death after step $step" \
        "$(run_job "$out" -n 2 --layout 2x1x1 --spares 0 "${options[@]}" --peer-timeout 3 --chaos "kill:1@step=$step")" "$wanted"
    expect_equal "losses" "$(grep -c '"event":"loss"' "$out/events.jsonl")" 1
    expect_equal "stalls" "$(grep -c '"event":"stalled"' "$out/events.jsonl" || true)" 0
    expect_exit 0 "$GODWIT" verify "$out"
    expect_gone "$out"
done
