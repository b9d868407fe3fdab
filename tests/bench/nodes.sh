#!/usr/bin/env bash
# How long decoding pauses when nodes of a job join, leave and die: nodes are namespaces on this machine (tests/nodes/lib.sh, as root), the model is
# real. For each kind of change the longest time without a committed token around it, beside the longest without any change.
#
# usage: GW_BUILDDIR=build GODWIT=build/godwit tests/bench/nodes.sh MODEL.gguf [RUNS] [OPTIONS of godwit node...]
#   RUNS   of each kind (default 3); they take turns
#
#   join       a third node joins two that decode (make before break)
#   leave      one of three nodes leaves with notice (SIGTERM, make before break)
#   relaunch   what that replaces: all agents are stopped, and started again on the nodes that remain
#   death      one of three nodes is killed, with everything on it
# Columns: seconds of the longest pause, of the longest in the two seconds before (a token time), tokens computed again, nodes after, digest equal.
# Benchmarks want a machine with nothing else running.
# shellcheck disable=SC2034,SC2154 # variables of the sourced files
[ $# -gt 0 ] || { sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"; exit 2; }
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../nodes/lib.sh"
MODEL=$(readlink -f "$1")
runs=${2:-3}
shift $(($# > 1 ? 2 : 1))
node_options=(--threads 1 --context 1024 "$@")
need_nodes
BATCH=$GW_TMP/batch.jsonl
awk 'BEGIN { for (i = 0; i < 40; i++) printf "{\"id\":\"r%d\",\"prompt\":\"A story about the number %d:\",\"max_tokens\":120,\"ignore_eos\":true,\"seed\":%d}\n", i, i, i }' >"$BATCH"
wanted=$("$GODWIT" run -q -m "$MODEL" -i "$BATCH" -o "$GW_TMP/undisturbed" --context 1024 | sed -n 's/^digest  *//p')
[ ${#wanted} = 64 ] || fail "no digest: $wanted"
node_up n1 n2 n3

# Samples the journal's bytes; ends when stdin closes. Then prints the longest pause after time $1 (wall clock, within 8 s) and before it.
cat >"$GW_TMP/pauses.py" <<'END'
import os, select, sys, time
folder, grown, last = sys.argv[1] + "/journal", [], -1
while not select.select([sys.stdin], [], [], 0.002)[0]:
    try:
        size = sum(e.stat().st_size for e in os.scandir(folder) if e.name.endswith(".gwj"))
    except FileNotFoundError:
        continue
    if size != last:
        grown.append(time.time())
        last = size
at = float(sys.stdin.readline())
def longest(begin, end):
    return max((b - a for a, b in zip(grown, grown[1:]) if b > begin and a < end), default=0)
print("%.3f %.3f" % (longest(at, at + 8), longest(at - 2, at - 0.1)))
END

agent() { node_start "$1" "$GW_TMP/$1.log" "$GODWIT" node -q -m "$MODEL" -i "$BATCH" -o "$OUT" --net 10.77.0.0/24 --lease 1 --grace 8 "${node_options[@]}" "${@:2}"; }
wait_for() { # wait_for EVENT COUNT
    local tries
    for tries in {1..1200}; do
        [ "$(grep -c "\"event\":\"$1\"" "$OUT/events.jsonl" 2>/dev/null)" -lt "$2" ] 2>/dev/null || return 0
        sleep 0.05
    done
    fail "$1 did not happen $2 times: $(tail -n 3 "$OUT/events.jsonl")"
}
begin() { # begin NODE...: a job that decodes
    OUT=$GW_TMP/job
    rm -rf "$OUT"
    local name
    for name in "$@"; do agent "$name" --min-nodes $#; done
    wait_for ready 1
    exec {sampler}> >(exec python3 "$GW_TMP/pauses.py" "$OUT" >"$GW_TMP/pauses")
    sleep 3
}
end() { # end KIND AT NODE...: these agents finish the job
    local kind=$1 at=$2 name again digest tries
    shift 2
    sleep 6
    echo "$at" >&"$sampler"
    exec {sampler}>&-
    for name in "$@"; do
        node_wait "$name" 120
        [ "$node_rc" = 0 ] || { tail -n 5 "$GW_TMP/$name.log"; fail "the agent of $name: $node_rc"; }
    done
    digest=$("$GODWIT" verify "$OUT" | sed -n 's/^digest  *//p')
    again=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["recomputed_tokens"])' "$OUT/status.json")
    for tries in {1..50}; do [ ! -s "$GW_TMP/pauses" ] || break; sleep 0.1; done
    printf '%-9s %s  again %-5s nodes %d  %s\n' "$kind" "$(cat "$GW_TMP/pauses")" "$again" $# "$([ "$digest" = "$wanted" ] && echo equal || echo DIFFERENT)"
}
now() { date +%s.%N; }

printf 'kind      pause before\n'
for ((run = 0; run < runs; run++)); do
    begin n1 n2
    at=$(now)
    agent n3
    end join "$at" n1 n2 n3

    begin n1 n2 n3
    at=$(now)
    node_signal n3 TERM
    end leave "$at" n1 n2

    begin n1 n2 n3
    at=$(now)
    for name in n1 n2 n3; do node_signal "$name" TERM; done
    for name in n1 n2 n3; do node_wait "$name" 30; done
    for name in n1 n2; do agent "$name" --min-nodes 2; done
    end relaunch "$at" n1 n2

    begin n1 n2 n3
    at=$(now)
    node_kill n3
    end death "$at" n1 n2
    node_up n3
done
