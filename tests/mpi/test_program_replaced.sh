#!/usr/bin/env bash
# The program's file is replaced while a job runs, as an upgrade does: the launches and ranks that the job still needs are of the version it began with.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl
"$make_tiny" --layers 12 "$MODEL"
make_long_requests 100 5 >"$BATCH"
options=(--context 512 --max-seqs 4)
wanted=$(run_job "$GW_TMP/whole" "${options[@]}")

# replace_program: another file takes the program's name, and cannot run a job
replace_program() {
    printf '#!/bin/sh\nexit 3\n' >"$GW_TMP/other"
    chmod +x "$GW_TMP/other"
    mv "$GW_TMP/other" "$GW_TMP/godwit"
}

# begin OUT OPTION...: starts a job from a copy of the program, which is replaced when all are ready
begin() {
    local out=$1
    shift
    rm -rf "$out"
    cp "$GODWIT" "$GW_TMP/godwit"
    GODWIT=$GW_TMP/godwit run_job "$out" "${options[@]}" "$@" >"$GW_TMP/digest" &
    job=$!
    for _ in $(seq 500); do
        if grep -qs '"event":"ready"' "$out/events.jsonl"; then break; fi
        sleep 0.01
    done
    replace_program
    if grep -q '"event":"loss"' "$out/events.jsonl"; then fail "the program was replaced too late"; fi
}

# finish OUT WHAT EVENT COUNT: that many such events at least, and the digest
finish() {
    wait "$job" || fail "$2"
    expect_equal "digest, $2" "$(cat "$GW_TMP/digest")" "$wanted"
    [ "$(grep -c "\"event\":\"$3\"" "$1/events.jsonl")" -ge "$4" ] || fail "$2: fewer than $4 events '$3'"
    expect_gone "$1"
}

out=$GW_TMP/out
for ranks in 1 2; do
    begin "$out" -n "$ranks" --layout "${ranks}x1x1"
    for pid in $(pids_of "$out"); do kill -9 "$pid"; done
    finish "$out" "$ranks killed" start 2
done
begin "$out" -n 2 --layout 2x1x1 --spares 0 --chaos 'kill:1@step=100'
finish "$out" 'a rank started anew' grow 1
