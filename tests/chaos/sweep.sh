#!/usr/bin/env bash
# Jobs in which things go wrong, each as its seed says (godwit run --chaos): kills of any rank in any state, twice in one recovery, with new
# ranks in between, ranks that hang, notices with grace, random mixtures. Each must end by itself in time, exit 0, give the digest of the
# undisturbed job and answer each request once (godwit verify), and leave no process and no file in /dev/shm.
#
# usage: tests/chaos/sweep.sh [-n RUNS] [-s FIRST_SEED] [-m MODEL] [-k SCENARIO] [-r RANKS] [-l LAYOUT] [-c SPEC] [-t DEADLINE_S]
#   -n RUNS        how many seeds (default: one for each kind of trouble)
#   -s FIRST_SEED  the first of them (default 0)
#   -m MODEL       a GGUF file, for example SmolLM2 (default: a tiny random model)
#   -k SCENARIO    every seed of this kind (number, see plan_of_seed in lib.sh) instead of one after the other
#   -r, -l, -c     ranks, layout ("auto": none given) and chaos of every run, instead of the seed's; -c none: undisturbed
#   -t DEADLINE_S  of a run (default 60, with -m 300)
# The last line is "N passed, N failed, N skipped".
# shellcheck disable=SC2034,SC2154 # lib.sh sets some and reads some
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"

runs=$scenarios first=0 model='' scenario=-1 ranks_forced='' layout_forced='' spec_forced='' deadline_s=''
while getopts n:s:m:k:r:l:c:t:h option; do
    case $option in
        n) runs=$OPTARG ;;
        s) first=$OPTARG ;;
        m) model=$OPTARG ;;
        k) scenario=$OPTARG ;;
        r) ranks_forced=$OPTARG ;;
        l) layout_forced=$OPTARG ;;
        c) spec_forced=$OPTARG ;;
        t) deadline_s=$OPTARG ;;
        *) sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"; exit 2 ;;
    esac
done
need_chaos_model "$model"
"$GODWIT" run --help | grep -q -- --chaos || [ "$spec_forced" = none ] || skip "this godwit has no --chaos"
if [ "$real" = yes ]; then
    make_chaos_batch 12 12 60
    steps=60 deadline_s=${deadline_s:-300} peer_timeout_s=8
else
    make_chaos_batch 24 24 200
    steps=150 deadline_s=${deadline_s:-60} peer_timeout_s=3
fi
common=(--context 512 --max-seqs 8)
undisturbed --layout 1x1x1 "${common[@]}"

forced='' # options that hold for every run, for the command that repeats one
[ -z "$model" ] || forced+=" -m $model"
[ "$scenario" = -1 ] || forced+=" -k $scenario"
[ -z "$ranks_forced" ] || forced+=" -r $ranks_forced"
[ -z "$layout_forced" ] || forced+=" -l $layout_forced"
[ -z "$spec_forced" ] || forced+=" -c '$spec_forced'"

# one_run SEED: sets $result (passed, failed, skipped), $why and $struck
one_run() {
    local out=$GW_TMP/run ranks layout spec left
    read -r ranks layout spec <<<"$(plan_of_seed "$1" $steps "$scenario")"
    ranks=${ranks_forced:-$ranks} layout=${layout_forced:-$layout} spec=${spec_forced:-$spec}
    command=("$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q -n "$ranks" "${common[@]}" --peer-timeout "$peer_timeout_s")
    [ "$layout" = auto ] || command+=(--layout "$layout")
    [ "$spec" = none ] || command+=(--chaos "$spec")
    what="-n $ranks --layout $layout --chaos '$spec'"
    rm -rf "$out" "$out.log"
    begin_job "$out.log" "${command[@]}"
    await_job "$deadline_s"
    result=failed
    struck=$(grep -c 'chaos: ' "$out.log" || true)
    case "$job_rc" in
        0)
            why=$(what_is_wrong "$out")
            left=$(left_shm | tr '\n' ' ')
            [ -n "$why" ] || [ -z "$left" ] || why="left behind: $left"
            [ -n "$why" ] || result=passed
            ;;
        8) result=skipped why="no such layout for this model" ;;
        hung) why="not done after $deadline_s s"$'\n'$job_state ;;
        *) why="exit code $job_rc" ;;
    esac
    kill_marked
    drop_shm
}

passed=0 failed=0 skipped=0 quiet=0 events=0
for ((seed = first; seed < first + runs; seed++)); do
    begin_ms=$(date +%s%3N)
    one_run "$seed"
    took_ms=$(($(date +%s%3N) - begin_ms))
    printf '%-7s seed %-5d %3d.%d s  %2d struck  %s%s\n' "$result" "$seed" $((took_ms / 1000)) $((took_ms % 1000 / 100)) "$struck" "$what" "${why:+: $why}"
    case $result in
        passed) passed=$((passed + 1)) ;;
        skipped) skipped=$((skipped + 1)) ;;
        failed)
            failed=$((failed + 1))
            tail -n 15 "$GW_TMP/run.log" | sed 's/^/      | /'
            rm -rf "$GW_TMP/failed-$seed"* # an earlier failure of this seed
            [ ! -d "$GW_TMP/run" ] || mv "$GW_TMP/run" "$GW_TMP/failed-$seed"
            mv "$GW_TMP/run.log" "$GW_TMP/failed-$seed.log"
            echo "      again: $0 -n 1 -s $seed$forced"
            ;;
    esac
    events=$((events + struck))
    [ "$struck" != 0 ] || quiet=$((quiet + 1))
done
echo "$events events struck; $quiet runs ended before anything could strike"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] || exit 1
