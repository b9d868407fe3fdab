#!/usr/bin/env bash
# Ranks with hardly more memory than their place needs change the layout while they decode: each lets go of old parts before it takes new ones, so none
# ever holds more than --memory says, and the digest is the undisturbed one.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl NOTICE=$GW_TMP/notice
"$make_tiny" --layers 12 --d 384 --heads 12 --kv-heads 6 --ffn 1536 --vocab 3000 "$MODEL"
make_long_requests 60 5 >"$BATCH"
wanted=$(run_job "$GW_TMP/whole" --layout 1x1x3 --context 256 --max-seqs 8)

# wait_for OUT TEXT: until a line of events.jsonl has it; prints the line
wait_for() {
    local tries line
    for tries in $(seq 600); do
        line=$(grep -m 1 -e "$2" "$1/events.jsonl" 2>/dev/null || true)
        [ -z "$line" ] || { echo "$line"; return 0; }
        kill -0 "$job" 2>/dev/null || break
        sleep 0.05
    done
    cat "$1.log" "$1/events.jsonl" >&2
    fail "no event with $2"
}

# change FROM TO SIZE WEIGHTS: the bytes that the fullest rank held on the way
change() {
    local out=$GW_TMP/$1-$2-$4 plan
    rm -f "$NOTICE"
    "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q --context 256 --max-seqs 8 -n 3 --spares 0 --layout "$1" --memory "$3" --weights "$4" \
        --notice "$NOTICE" >"$out.log" 2>&1 &
    job=$!
    wait_for "$out" '"event": *"ready"' >/dev/null
    echo "layout $2" >"$NOTICE.new"
    mv "$NOTICE.new" "$NOTICE"
    plan=$(wait_for "$out" "\"event\": *\"plan\".*\"layout\": *\[${2//x/, *}\]" | sed 's/.*"plan": *\([0-9]*\),.*/\1/')
    held=$(wait_for "$out" "\"event\": *\"ready\", *\"plan\": *$plan," | sed 's/.*"bytes_held_most": *\([0-9]*\).*/\1/')
    wait "$job" || { cat "$out.log"; fail "$1 -> $2 failed"; }
    expect_equal "digest of $1 -> $2" "$(sed -n 's/^digest  //p' "$out.log")" "$wanted"
    echo "$1 -> $2, weights from $4: at most $held of $3 bytes"
    [ "$held" -gt 0 ] || fail "the bound was never near: the test shows nothing"
    [ "$held" -le "$3" ] || fail "a rank held more than it may"
}

change 1x1x3 1x3x1 ${1:-9600000} peers
change 1x3x1 1x1x3 ${1:-9600000} storage
