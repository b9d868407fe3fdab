#!/usr/bin/env bash
# A job on a spot machine: AWS announces its end, the job saves what it has just in time and ends with the exit code and the line that scripts look for; the same
# command goes on, on another machine as it were, and the answers are those of a job that was left alone. Then a time limit of Slurm's, and a notice for
# a job that is done before it matters.
# timeout: 600
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../chaos/lib.sh"
. "$(dirname "$0")/lib.sh"
need_notice_job
short=(--max-seqs 4 --step-rows 64) # steps that are short even when they are slowed, since a step is not broken off
undisturbed -t 1 "${short[@]}"
start_server

# until OUT shows that tokens are being drawn
wait_tokens() {
    local tries
    for tries in {1..600}; do
        [ "$(status_of "$1" generated_tokens 2>/dev/null || true)" -gt 0 ] 2>/dev/null && return
        job_runs || { cat "$1.log"; fail "the job ended before it began"; }
        sleep 0.05
    done
    fail "no token was drawn"
}
events() { grep -oE '"event": ?"[a-z]+"' "$1/events.jsonl" | cut -d'"' -f4 | tr '\n' ' '; }

for ranks in 1 2; do
    out=$GW_TMP/spot$ranks
    quiet
    # slowed, so that it would take minutes
    begin_job "$out.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -n $ranks -t 1 "${short[@]}" --notice "aws=$server" --chaos "slow:all,x100@step=1"
    wait_tokens "$out"
    echo 5 >"$cloud/action"
    await_job 120
    cat "$out.log"
    expect_equal "exit code with $ranks ranks" "$job_rc" 75
    grep -q 'godwit: AWS takes this spot instance away (terminate) at ' "$out.log" || fail "the notice is not in the log"
    grep -qE 'godwit: error: AWS takes .* stopped with [0-9]+ of 60 requests answered, and the same command carries on' "$out.log" ||
        fail "the last line"
    grep -q '"state": *"interrupted"' "$out/status.json" || fail "status.json does not say interrupted"
    [[ $(events "$out") == *" notice "*" save "*"interrupted "* ]] || fail "events: $(events "$out")"
    [ ! -e "$out/notice" ] || fail "the notice is still there"
    expect_equal "left processes" "$(left_processes)" ''
    awk -v end="$(stat -c %.Y "$cloud/action")" -v saved="$(status_of "$out" updated_at)" 'BEGIN { printf "saved %.2f s before the end\n", end + 5 - saved }'
    cat "$out/events.jsonl"
    committed=$(status_of "$out" generated_tokens)
    # the same command, where nobody gives notice
    quiet
    begin_job "$out.log2" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -n $ranks -t 1 "${short[@]}" --notice "aws=$server"
    await_job 300
    cat "$out.log2"
    expect_equal "exit code of the second run" "$job_rc" 0
    expect_equal "digest" "$(sed -n 's/^digest  //p' "$out.log2")" "$wanted"
    [ "$committed" -gt 0 ] || fail "nothing was committed before the notice"
    "$GODWIT" verify "$out" >"$GW_TMP/out" || { cat "$GW_TMP/out"; fail "verify"; }
    left_shm | grep . && fail "shared memory is left"
    drop_shm
done

# a notice for later than the job takes: it is done, and says so
quiet
echo 600 >"$cloud/action"
out=$GW_TMP/early
expect_equal "digest with a notice far away" "$(run_job "$out" -t 1 --notice "aws=$server")" "$wanted"

# one that is there before the job has begun: the job hears of it when it can
quiet
echo 6 >"$cloud/action"
out=$GW_TMP/before
begin_job "$out.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -n 2 -t 1 "${short[@]}" --notice "aws=$server" --chaos "slow:all,x100@step=1"
await_job 120
cat "$out.log"
expect_equal "exit code with a notice at the start" "$job_rc" 75
expect_equal "digest after a notice at the start" "$(run_job "$out" -t 1)" "$wanted"

# the time limit of a Slurm job, beside a file that is watched
fake_scontrol
slurm_says RUNNING 6
out=$GW_TMP/slurm
SLURM_JOB_ID=42 begin_job "$out.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -t 1 "${short[@]}" --notice slurm=5 --notice "$GW_TMP/file" --chaos "slow:all,x100@step=1"
await_job 120
cat "$out.log"
expect_equal "exit code at the time limit" "$job_rc" 75
grep -q 'error: the time limit of Slurm job 42 is at .*stopped with' "$out.log" || fail "the line of the time limit"
expect_equal "digest after the time limit" "$(run_job "$out" -t 1)" "$wanted"

# a file alone, with a moment instead of seconds: no supervisor's business, so the launch ends and the next one goes on
out=$GW_TMP/file_out
begin_job "$out.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -t 1 "${short[@]}" --notice "$GW_TMP/file" --chaos "slow:all,x100@step=1"
wait_tokens "$out"
echo "leave all until $(($(date +%s) + 1))" >"$GW_TMP/file.new" && mv "$GW_TMP/file.new" "$GW_TMP/file"
await_job 300
expect_equal "exit code" "$job_rc" 0
expect_equal "digest with a file" "$(sed -n 's/^digest  //p' "$out.log")" "$wanted"
grep -q 'the launch ended early' "$out.log" || fail "the file was not read"

# under a launcher of one's own nobody asks, and that is said
expect_exit 2 env OMPI_COMM_WORLD_SIZE=1 "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$GW_TMP/none" --notice "aws=$server"
grep -q 'only files are watched' "$GW_TMP/out" || fail "the line under a launcher"
stop_server
echo "spot machines: notice, save, resume, equal digest"
