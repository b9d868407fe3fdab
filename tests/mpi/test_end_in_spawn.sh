#!/usr/bin/env bash
# A job may end while new ranks are on their way: it waits until they can hear that nobody takes them in, and they go. Left alone in the middle of being
# started they would keep the launcher until four peer timeouts are over, here 40 minutes.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl out=$GW_TMP/out
"$make_tiny" --layers 12 "$MODEL"
make_long_requests 2000 8 >"$GW_TMP/requests.jsonl"

# New ranks start a second after the beginning, and that takes some 50 ms. How many requests take as long is found by halving, and again
# when the machine is faster or slower than before.
few=0 many=2000 hits=0
for ((try = 0; try < 60 && hits < 4; try++)); do
    [ $((many - few)) -gt 2 ] || few=$((few * 3 / 4)) many=$((many * 3 / 2))
    lines=$(((few + many) / 2))
    head -n $lines "$GW_TMP/requests.jsonl" >"$BATCH"
    rm -rf "$out"
    rc=0
    timeout -k 5 60 "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -n 2 --layout 2x1x1 --context 512 --max-seqs 8 --peer-timeout 600 \
        --chaos 'spawn:1@step=5' >"$out.log" 2>&1 || rc=$?
    [ $rc = 0 ] || { cat "$out.log"; fail "$lines requests: exit code $rc (124: the job does not end)"; }
    expect_gone "$out"
    if ! grep -q '"event":"spawn"' "$out/events.jsonl"; then few=$lines
    elif [ "$(grep -c '"event":"plan"' "$out/events.jsonl")" -gt 1 ]; then many=$lines
    else hits=$((hits + 1)); fi
done
[ $hits -gt 0 ] || fail "no job ended while new ranks started: this test is broken"
echo "$hits of $try jobs ended while new ranks started; the last had $lines requests"
