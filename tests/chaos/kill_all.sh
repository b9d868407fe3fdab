#!/usr/bin/env bash
# Everything dies at once: a job is started, at a random instant every process of it is killed with kill -9 (supervisor, launcher, ranks), and
# the same command is given again, until it is done; some jobs are killed a second and a third time. The digest must be that of the
# undisturbed job, and each request answered once (godwit verify).
#
# usage: tests/chaos/kill_all.sh [-n RUNS] [-s FIRST_SEED] [-m MODEL] [-t DEADLINE_S]
#   -n RUNS        how many jobs (default 5)
#   -s FIRST_SEED  the first seed (default 0)
#   -m MODEL       a GGUF file, for example SmolLM2 (default: a tiny random model)
#   -t DEADLINE_S  of a run that is not killed (default 60, with -m 300)
# The last line is "N passed, N failed, N skipped".
# shellcheck disable=SC2034,SC2154 # lib.sh sets some and reads some
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"

runs=5 first=0 model='' deadline_s=''
while getopts n:s:m:t:h option; do
    case $option in
        n) runs=$OPTARG ;;
        s) first=$OPTARG ;;
        m) model=$OPTARG ;;
        t) deadline_s=$OPTARG ;;
        *) sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"; exit 2 ;;
    esac
done
need_chaos_model "$model"
if [ "$real" = yes ]; then
    make_chaos_batch 12 8 40
    deadline_s=${deadline_s:-300}
else
    make_chaos_batch 100 200 300
    deadline_s=${deadline_s:-60}
fi
common=(--context 512 --max-seqs 8)
undisturbed --layout 1x1x1 "${common[@]}"
# instants are drawn from the time that a job of several ranks takes
of_one_rank=$wanted
undisturbed -n 3 "${common[@]}"
expect_equal "digest of 3 ranks" "$wanted" "$of_one_rank"
echo "an undisturbed job of 3 ranks takes $whole_ms ms"

# thousandth SEED K: 0 .. 999, the K-th draw of a seed
thousandth() { echo $(($(printf '%s %s' "$1" "$2" | cksum | cut -d' ' -f1) % 1000)); }
lines_in() { [ ! -f "$1/output.jsonl" ] || wc -l <"$1/output.jsonl"; }

# one_job SEED: sets $result and $why
one_job() {
    local seed=$1 out=$GW_TMP/run ranks layout spec kills k at_ms until_ms
    read -r ranks layout spec <<<"$(plan_of_seed "$seed" 100 -1)" # of the spec no use is made
    local command=("$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -n "$ranks" "${common[@]}")
    [ "$layout" = auto ] || command+=(--layout "$layout")
    what="-n $ranks --layout $layout, killed"
    kills=$((1 + $(thousandth "$seed" kills) / 500 + $(thousandth "$seed" more) / 800))
    rm -rf "$out" "$out.log"
    result=failed why=''
    for ((k = 1; k <= kills; k++)); do
        at_ms=$(($(thousandth "$seed" "$k") * whole_ms / 1000))
        until_ms=$(($(date +%s%3N) + at_ms))
        begin_job "$out.log" "${command[@]}"
        note_shm
        while job_runs && [ "$(date +%s%3N)" -lt "$until_ms" ]; do sleep 0.01; done
        note_shm
        if job_runs; then
            what+=" at $at_ms ms ($(lines_in "$out") lines)"
            instants=$((instants + 1))
        else
            what+=" too late"
        fi
        kill_marked
        wait "$job_pid" 2>/dev/null || true
        drop_shm # nobody is left who could
    done
    begin_job "$out.log" "${command[@]}"
    await_job "$deadline_s"
    case "$job_rc" in
        0) why=$(what_is_wrong "$out") ;;
        8) result=skipped why="no such layout for this model" ;;
        hung) why="not done $deadline_s s after it was started again"$'\n'$job_state ;;
        *) why="exit code $job_rc when started again" ;;
    esac
    [ -n "$why" ] || result=passed
    kill_marked
    drop_shm
}

passed=0 failed=0 skipped=0 instants=0
for ((seed = first; seed < first + runs; seed++)); do
    one_job "$seed"
    printf '%-7s seed %-5d %s%s\n' "$result" "$seed" "$what" "${why:+: $why}"
    case $result in
        passed) passed=$((passed + 1)) ;;
        skipped) skipped=$((skipped + 1)) ;;
        failed)
            failed=$((failed + 1))
            tail -n 15 "$GW_TMP/run.log" | sed 's/^/      | /'
            rm -rf "$GW_TMP/failed-$seed"*
            [ ! -d "$GW_TMP/run" ] || mv "$GW_TMP/run" "$GW_TMP/failed-$seed"
            mv "$GW_TMP/run.log" "$GW_TMP/failed-$seed.log"
            echo "      again: $0 -n 1 -s $seed${model:+ -m $model}"
            ;;
    esac
done
echo "killed at $instants instants"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] || exit 1
