#!/usr/bin/env bash
# How long decoding pauses when nodes of a job join, leave and die: nodes are namespaces on this machine (tests/nodes/lib.sh, as root), the model is
# real. For each kind of change the longest time without a committed token around it, beside the longest without any change.
#
# usage: GW_BUILDDIR=build GODWIT=build/godwit [KINDS="join leave"] tests/bench/nodes.sh MODEL.gguf [RUNS] [OPTIONS of godwit node...]
#   RUNS   of each kind (default 3); they take turns
#   KINDS  which (default: all)
#
#   join       a third node joins two that decode (make before break)
#   leave      one of three nodes leaves with notice (SIGTERM, make before break)
#   lead       the node whose agent supervises the job leaves with notice
#   relaunch   what that replaces: all agents are stopped, and started again on the nodes that remain
#   death      one of three nodes is killed, with everything on it
# Columns: seconds of the longest pause, from the change to the end of that pause (for death: to the next token), the longest pause in the two seconds
# before (a token time); MB of KV that moved between ranks; tokens computed again; tokens lost (drawn, committed and drawn again); lines doubled; nodes after; digest.
# At the end the median and the worst of each kind. Benchmarks want a machine with nothing else running.
# shellcheck disable=SC2034,SC2154 # variables of the sourced files
[ $# -gt 0 ] || { sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"; exit 2; }
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../nodes/lib.sh"
MODEL=$(readlink -f "$1")
runs=${2:-3}
shift $(($# > 1 ? 2 : 1))
kinds=${KINDS:-join leave lead relaunch death}
node_options=(--threads 1 --context 1024 "$@")
need_nodes
BATCH=$GW_TMP/batch.jsonl
awk 'BEGIN { for (i = 0; i < 40; i++) printf "{\"id\":\"r%d\",\"prompt\":\"A story about the number %d:\",\"max_tokens\":120,\"ignore_eos\":true,\"seed\":%d}\n", i, i, i }' >"$BATCH"
wanted=$("$GODWIT" run -q -m "$MODEL" -i "$BATCH" -o "$GW_TMP/undisturbed" --context 1024 | sed -n 's/^digest  *//p')
[ ${#wanted} = 64 ] || fail "no digest: $wanted"
node_up n1 n2 n3

# Samples the journal's bytes; ends when stdin closes. Then prints the longest pause after the time read from stdin (wall clock, within 8 s), how long after
# that time it ended, and the longest pause before.
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
    return max(((b - a, b - at) for a, b in zip(grown, grown[1:]) if b > begin and a < end), default=(0, 0))
print("%.3f %.3f %.3f" % (*longest(at, at + 8), longest(at - 2, at - 0.1)[0]))
END

# What became of the job: MB of KV moved, tokens computed again, tokens lost, lines doubled.
cat >"$GW_TMP/outcome.py" <<'END'
import json, sys
out = sys.argv[1]
status = json.load(open(out + "/status.json"))
moved = sum(e.get("kv_bytes_moved", 0) for e in map(json.loads, open(out + "/events.jsonl")) if e["event"] == "ready")
lines = [json.loads(line) for name in ("output", "errors") for line in open(f"{out}/{name}.jsonl")]
ids = [line["custom_id"] for line in lines]
answered = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in lines if line.get("response"))
print("%.2f %d %d %d" % (moved / 1e6, status["recomputed_tokens"], max(0, status["generated_tokens"] - answered), len(ids) - len(set(ids))))
END

agent() { node_start "$1" "$GW_TMP/$1.log" "$GODWIT" node -q -m "$MODEL" -i "$BATCH" -o "$OUT" --net 10.77.0.0/24 --lease 1 --grace 8 "${node_options[@]}" "${@:2}"; }
wait_for() { # wait_for EVENT COUNT
    local tries count
    for tries in {1..1200}; do
        count=$(grep -c "\"event\":\"$1\"" "$OUT/events.jsonl" 2>/dev/null || true)
        [ "${count:-0}" -lt "$2" ] || return 0
        sleep 0.05
    done
    fail "$1 did not happen $2 times: $(tail -n 3 "$OUT/events.jsonl")"
}
begin() { # begin NODE...: a job that decodes, the first node supervises it
    OUT=$GW_TMP/job
    rm -rf "$OUT"
    local name all=$#
    agent "$1" --min-nodes "$all"
    wait_for supervisor 1
    shift
    for name in "$@"; do agent "$name" --min-nodes "$all"; done
    wait_for ready 1
    exec {sampler}> >(exec python3 "$GW_TMP/pauses.py" "$OUT" >"$GW_TMP/pauses")
    sleep 3
}
end() { # end KIND AT NODE...: these agents finish the job
    local kind=$1 at=$2 name digest tries
    shift 2
    sleep 6
    echo "$at" >&"$sampler"
    exec {sampler}>&-
    for name in "$@"; do
        node_wait "$name" 120
        [ "$node_rc" = 0 ] || { tail -n 5 "$GW_TMP/$name.log"; fail "the agent of $name: $node_rc"; }
    done
    digest=$("$GODWIT" verify "$OUT" | sed -n 's/^digest  *//p')
    for tries in {1..50}; do [ ! -s "$GW_TMP/pauses" ] || break; sleep 0.1; done
    read -r pause until before <"$GW_TMP/pauses"
    read -r moved again lost doubled < <(python3 "$GW_TMP/outcome.py" "$OUT")
    printf '%-9s %7s %7s %7s %8s %6s %5s %7s %6d  %s\n' "$kind" "$pause" "$until" "$before" "$moved" "$again" "$lost" "$doubled" $# \
        "$([ "$digest" = "$wanted" ] && echo equal || echo DIFFERENT)" | tee -a "$GW_TMP/table"
    [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP"; cp -r "$OUT" "$KEEP/$kind.$run"; cp "$GW_TMP"/n?.log "$KEEP/$kind.$run/"; }
}
now() { date +%s.%N; }
wanted_kind() { case " $kinds " in *" $1 "*) ;; *) false ;; esac; }

printf '%-9s %7s %7s %7s %8s %6s %5s %7s %6s\n' kind pause until before moved again lost doubled nodes
for ((run = 0; run < runs; run++)); do
    if wanted_kind join; then
        begin n1 n2
        at=$(now)
        agent n3
        end join "$at" n1 n2 n3
    fi
    if wanted_kind leave; then
        begin n1 n2 n3
        at=$(now)
        node_signal n3 TERM
        end leave "$at" n1 n2
    fi
    if wanted_kind lead; then
        begin n1 n2 n3
        at=$(now)
        node_signal n1 TERM
        end lead "$at" n2 n3
    fi
    if wanted_kind relaunch; then
        begin n1 n2 n3
        at=$(now)
        for name in n1 n2 n3; do node_signal "$name" INT; done # at once; at a TERM they would decode on until their grace is over
        for name in n1 n2 n3; do node_wait "$name" 30; done
        for name in n1 n2; do agent "$name" --min-nodes 2; done
        end relaunch "$at" n1 n2
    fi
    if wanted_kind death; then
        begin n1 n2 n3
        at=$(now)
        node_kill n3
        end death "$at" n1 n2
        node_up n3
    fi
done
[ "$runs" = 1 ] || python3 - "$GW_TMP/table" <<'END'
import statistics, sys
rows = [line.split() for line in open(sys.argv[1])]
for kind in dict.fromkeys(row[0] for row in rows):
    of = [row for row in rows if row[0] == kind]
    def two(column):
        values = [float(row[column]) for row in of]
        return "%.3f (%.3f)" % (statistics.median(values), max(values))
    print("%-9s %d runs, median (worst): pause %s s, until %s s, before %s s; again %s; lost %g, doubled %g, digests equal %d" % (
        kind, len(of), two(1), two(2), two(3), two(5), sum(float(r[6]) for r in of), sum(float(r[7]) for r in of), sum(r[9] == "equal" for r in of)))
END
