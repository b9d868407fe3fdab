#!/usr/bin/env bash
# Jobs on three nodes to which things happen, each as its seed says: nodes killed whole (the supervisor's too), new ones, notices, cut and
# mended cables, agents that stand still, two things at once. Each job must end by itself, with the digest of one undisturbed process, and leave
# nothing on the nodes that live.
#
# usage: tests/nodes/sweep.sh [-n RUNS] [-s FIRST_SEED] [-t DEADLINE_S]
# The last line is "N passed, N failed, N skipped".
# shellcheck disable=SC2034,SC2154 # lib.sh and scenarios.sh set some and read some
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/scenarios.sh"
runs=5 first=0 deadline_s=120
while getopts n:s:t:h option; do
    case $option in
        n) runs=$OPTARG ;;
        s) first=$OPTARG ;;
        t) deadline_s=$OPTARG ;;
        *) sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"; exit 2 ;;
    esac
done
need_node_job 2000

# plan_of_seed SEED: three lines "WAIT_MS WHAT NODE": what happens, one after the other
plan_of_seed() {
    awk -v x="$(cksum <<<"nodes $1" | cut -d' ' -f1)" '
    function pick(n) { x = (x * 69069 + 1) % 4294967296; return int(x / 4294967296 * n) }
    BEGIN {
        for (i = 0; i < 5; i++) pick(2)
        split("kill kill kill leave cut stop join kill+join", what, " ")
        for (i = 0; i < 3; i++) print pick(4) ? 300 + pick(2500) : 0, what[1 + pick(8)], "n" 1 + pick(3)
    }'
}

# strike WHAT NODE: at least one agent that is to stay is left alone
strike() {
    local name=$2
    case $1 in
        join) [ -n "${agents[$name]:-}" ] || { revive "$name"; } ;;
        kill+join)
            strike kill "$name"
            revive "$name"
            ;;
        *)
            [ ${#agents[@]} -gt 1 ] && [ -n "${agents[$name]:-}" ] || return 0
            case $1 in
                kill) node_kill "$name"; unset "agents[$name]" ;;
                leave) node_signal "$name" TERM; unset "agents[$name]"; left_by_itself+=("$name") ;;
                cut) node_cut "$name"; sleep 1.5; node_heal "$name" ;;
                stop) node_signal "$name" STOP; sleep 2.5; node_signal "$name" CONT ;;
            esac
            ;;
    esac
}
revive() {
    [ -n "${node_init[$1]:-}" ] || node_up "$1"
    [ -z "${agents[$1]:-}" ] && ! node_runs "$1" || return 0
    agent "$1"
    agents[$1]=yes
}

passed=0 failed=0
for ((seed = first; seed < first + runs; seed++)); do
    declare -A agents=()
    left_by_itself=() begin_ms=$(date +%s%3N) done_by=''
    OUT=$GW_TMP/seed-$seed
    for name in n1 n2 n3; do
        [ -n "${node_init[$name]:-}" ] || node_up "$name"
        agent "$name" --min-nodes 2
        agents[$name]=yes
    done
    until_lines 2
    while read -r wait_ms what name; do
        job_over && break
        sleep "$((wait_ms / 1000)).$(printf %03d $((wait_ms % 1000)))"
        job_over && break
        strike "$what" "$name"
        done_by+=" $what:$name@$(($(date +%s%3N) - begin_ms))ms"
    done < <(plan_of_seed "$seed")
    why=$(job_wrong "$deadline_s" "${!agents[@]}")
    for name in ${left_by_itself[@]+"${left_by_itself[@]}"}; do node_wait "$name" 30; done
    result=passed
    [ -z "$why" ] || result=failed
    took_ms=$(($(date +%s%3N) - begin_ms))
    printf '%s seed %d %d.%d s, %s launches, %s supervisors:%s %s\n' $result "$seed" $((took_ms / 1000)) $((took_ms % 1000 / 100)) "$(events launch)" "$(events supervisor)" "$done_by" "$why"
    if [ $result = passed ]; then
        passed=$((passed + 1))
        rm -rf "$OUT"
    else
        failed=$((failed + 1))
        show_logs | sed 's/^/      | /'
        echo "      again: $0 -n 1 -s $seed"
        node_kill n1 n2 n3
    fi
done
nodes_down
sleep 0.5
[ -z "$(marked_nodes)" ] || { echo "processes of nodes that are gone: $(marked_nodes)"; failed=$((failed + 1)); }
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ] || exit 1
