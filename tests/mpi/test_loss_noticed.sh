#!/usr/bin/env bash
# A rank that waits for its partner in memory that they share hears of a loss elsewhere, also with a sign of life in its mailbox that it has not read: else the
# repair would wait for it, until its alarm ends the launch. With this timeout signs of life come once in 75 s, so that the first one stays unread.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl
"$make_tiny" --layers 12 "$MODEL"
make_long_requests 200 8 >"$BATCH" # replicas do not share them evenly: each must come to its step
options=(--context 512 --max-seqs 8)
wanted=$(run_job "$GW_TMP/whole" --layout 1x1x1 "${options[@]}")

for victim in 2 3 2 3; do
    out=$GW_TMP/out
    rm -rf "$out"
    expect_equal "digest after the loss of rank $victim" \
        "$(run_job "$out" -n 4 --layout 2x2x1 "${options[@]}" --peer-timeout 600 --chaos "kill:$victim@step=40")" "$wanted"
    expect_equal "losses" "$(grep -c '"event":"loss"' "$out/events.jsonl")" 1
    expect_equal "launches" "$(grep -c '"event":"start"' "$out/events.jsonl")" 1
    expect_gone "$out"
done
