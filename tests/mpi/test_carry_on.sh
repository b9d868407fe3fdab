#!/usr/bin/env bash
# A job that is interrupted or killed carries on to the same digest; what is wrong with a command is told in one line with the right
# exit code; no process is left behind.
# timeout: 600
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/model.gguf BATCH=$GW_TMP/batch.jsonl
"$make_tiny" --layers 12 "$MODEL"
make_long_requests 400 5 >"$BATCH"
wanted=$(run_job "$GW_TMP/whole" --layout 2x1x1 --context 512)

# start_job OUT OPTION...: in the background; $job is its pid; waits until some answers are there
start_job() {
    local out=$1 tries
    shift
    "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q "$@" >"$out.log" 2>&1 &
    job=$!
    for tries in $(seq 300); do
        [ "$(cat "$out/output.jsonl" 2>/dev/null | wc -l)" -lt 5 ] || return 0
        kill -0 $job 2>/dev/null || break
        sleep 0.05
    done
    [ "$tries" != 300 ] || fail "no answers after 15 s"
}
# ends with code, or 0 where the job was done before the signal came
expect_end() {
    local rc=0
    wait "$job" || rc=$?
    [ $rc = "$1" ] || [ $rc = 0 ] || { cat "$2.log"; fail "ended with $rc, wanted $1"; }
    echo "ended with $rc after $(wc -l <"$2/output.jsonl") answers"
}

for layout in 2x1x1 1x2x2; do # Ctrl-C
    start_job "$GW_TMP/int-$layout" --layout $layout --context 512
    kill -INT "$job"
    expect_end 130 "$GW_TMP/int-$layout"
    expect_gone "$GW_TMP/int-$layout"
    expect_equal "digest after an interrupt" "$(run_job "$GW_TMP/int-$layout" --layout 1x1x1 --context 512)" "$wanted"
    expect_exit 0 "$GODWIT" verify "$GW_TMP/int-$layout"
done

start_job "$GW_TMP/kill" --layout 2x1x1 --context 512 # kill -9 of everything
for pid in $(pids_of "$GW_TMP/kill"); do kill -9 "$pid" 2>/dev/null || true; done
rc=0
wait "$job" || rc=$?
[ $rc = 9 ] || [ $rc = 0 ] || { cat "$GW_TMP/kill.log"; fail "a job whose ranks were killed ended with $rc, wanted 9"; }
expect_gone "$GW_TMP/kill"
printf '{"id":"torn' >>"$GW_TMP/kill/output.jsonl"
expect_equal "digest after kill -9" "$(run_job "$GW_TMP/kill" --layout 1x1x1 --context 512)" "$wanted"
expect_exit 0 "$GODWIT" verify "$GW_TMP/kill"
expect_equal "digest of a finished job run again" "$(run_job "$GW_TMP/kill" --layout 2x1x1 --context 512)" "$wanted"

# one clear line
refused() { # CODE TEXT COMMAND...
    local code=$1 text=$2
    shift 2
    expect_exit "$code" "$@"
    grep -qi "error: .*$text" "$GW_TMP/out" || { cat "$GW_TMP/out"; fail "'$*' does not say '$text'"; }
    [ "$(grep -c 'error:' "$GW_TMP/out")" -le 2 ] || { cat "$GW_TMP/out"; fail "'$*' says too much"; }
}
run=("$GODWIT" run -m "$MODEL" -i "$BATCH" -q)
refused 7 temperature "${run[@]}" -o "$GW_TMP/kill" --context 512 --temperature 0.5
head -n 3 "$BATCH" >"$GW_TMP/other.jsonl"
refused 7 input "$GODWIT" run -m "$MODEL" -i "$GW_TMP/other.jsonl" -o "$GW_TMP/kill" --context 512 -q
refused 2 layout "${run[@]}" -o "$GW_TMP/x" --layout 2x2
refused 2 ranks "${run[@]}" -o "$GW_TMP/x" --layout 2x1x1 -n 3
refused 8 layers "${run[@]}" -o "$GW_TMP/x" --layout 1x1x13
refused 8 kv-memory "${run[@]}" -o "$GW_TMP/x" --kv-memory 10K
refused 2 'no model' "$GODWIT" run -i "$BATCH" -o "$GW_TMP/x"
refused 6 nowhere "$GODWIT" run -m "$MODEL" -i "$GW_TMP/nowhere.jsonl" -o "$GW_TMP/x"
refused 6 nowhere "$GODWIT" run -m "$GW_TMP/nowhere.gguf" -i "$BATCH" -o "$GW_TMP/x"
refused 3 gguf "$GODWIT" run -m "$BATCH" -i "$BATCH" -o "$GW_TMP/x"
head -c 100000 "$MODEL" >"$GW_TMP/cut.gguf"
refused 3 cut.gguf "$GODWIT" run -m "$GW_TMP/cut.gguf" -i "$BATCH" -o "$GW_TMP/x"

# a full disk: one clear line, whole lines only, and the same command carries on where there is room
if mkdir "$GW_TMP/small" && mount -t tmpfs -o size=160k none "$GW_TMP/small" 2>/dev/null; then
    refused 6 'No space left' "${run[@]}" -o "$GW_TMP/small/out" --layout 2x1x1 --context 512
    cp -r "$GW_TMP/small/out" "$GW_TMP/moved"
    umount "$GW_TMP/small"
    [ "$(tail -c 1 "$GW_TMP/moved/output.jsonl" | od -An -c | tr -d ' ')" = '\n' ] || fail "a torn line after a full disk"
    expect_equal "digest after a full disk" "$(run_job "$GW_TMP/moved" --layout 1x1x1 --context 512)" "$wanted"
else
    echo "the full disk was not tried: no tmpfs can be mounted here"
fi
