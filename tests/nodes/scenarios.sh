# shellcheck shell=bash
# Sourced after lib.sh: jobs on nodes, what happens to them, and what must be true afterwards.
# shellcheck disable=SC2034,SC2154 # variables that lib.sh and the tests share

lease_s=1
# the ranks of a job's first launch are slowed, so that there is something to disturb on a fast machine
drag='slow:0,x3@step=2;slow:1,x3@step=2;slow:2,x3@step=2'

# need_node_job TOKENS [COUNT]: a tiny model and a batch with COUNT (24) long answers of about so many tokens; its digest in one process: $wanted
need_node_job() {
    need_nodes
    need_make_tiny
    MODEL=$GW_TMP/tiny.gguf BATCH=$GW_TMP/batch.jsonl
    "$make_tiny" --arch llama --type q4_1 "$MODEL"
    {
        make_requests 24 1
        echo 'this is no request'
        awk -v n="${2:-24}" -v tokens="$1" 'BEGIN {
            for (i = 0; i < n; i++)
                printf "{\"id\":\"long%d\",\"prompt\":\"the sea %d\",\"max_tokens\":%d,\"ignore_eos\":true,\"seed\":%d}\n", i, i, tokens / 2 + (i * 37) % (tokens / 2), i
        }'
    } >"$BATCH"
    node_options=(--context 4096 --max-seqs 4 --kv-memory 64M)
    wanted=$(run_job "$GW_TMP/undisturbed" --layout 1x1x1 "${node_options[@]}")
    [ ${#wanted} = 64 ] || fail "no digest: $wanted"
}

# agent NAME [OPTION...]: starts a node's agent on the job $OUT
agent() {
    local name=$1
    shift
    node_start "$name" "$GW_TMP/$name.log" "$GODWIT" node -m "$MODEL" -i "$BATCH" -o "$OUT" -q "${node_options[@]}" \
        --lease "$lease_s" --net 10.77.0.0/24 --grace 8 --peer-timeout 3 --chaos "$drag" "$@"
}

# until_line COUNT [SECONDS]: waits until so many answers are there
until_lines() {
    local tries lines
    for ((tries = 0; tries < ${2:-40} * 20; tries++)); do
        lines=$(wc -l 2>/dev/null <"$OUT/output.jsonl" || echo 0)
        [ "$lines" -lt "$1" ] || return 0
        ! job_over || break
        sleep 0.05
    done
    show_logs
    fail "there are $lines answers, not $1, after ${2:-40} s"
}
job_over() { grep -qs '"state": "ended"' "$OUT"/nodes/supervisor.*; }

# events NAME: how many there have been
events() { local n; n=$(grep -c "\"event\":\"$1\"" "$OUT/events.jsonl" 2>/dev/null || true); echo "${n:-0}"; }
# until_event NAME COUNT [SECONDS]
until_event() {
    local tries
    for ((tries = 0; tries < ${3:-40} * 20; tries++)); do
        [ "$(events "$1")" -lt "$2" ] || return 0
        ! job_over || break
        sleep 0.05
    done
    show_logs
    fail "there are $(events "$1") events '$1', not $2"
}

show_logs() {
    local log
    for log in "$GW_TMP"/n[0-9]*.log; do [ ! -f "$log" ] || { echo "--- $log"; tail -n 40 "$log"; }; done
    [ ! -f "$OUT/status.json" ] || tr -d '\n' <"$OUT/status.json" | tr -s ' ' | sed 's/$/\n/'
    [ ! -f "$OUT/events.jsonl" ] || grep -v '"event":"checkpoint"' "$OUT/events.jsonl" | tail -n 40
}

# job_wrong LIMIT_S NAME...: waits for the agents of these nodes; says what is wrong with the job, nothing when all is well
job_wrong() {
    local limit=$1 name digest left lines
    shift
    for name in "$@"; do
        node_wait "$name" "$limit"
        [ "$node_rc" = 0 ] || { echo "the agent of $name: $node_rc"; return; }
    done
    "$GODWIT" verify "$OUT" >"$GW_TMP/verify" 2>&1 || { echo "verify: $(tail -n 1 "$GW_TMP/verify")"; return; }
    digest=$(sed -n 's/^digest  *//p' "$GW_TMP/verify")
    [ "$digest" = "$wanted" ] || { echo "digest $digest, undisturbed $wanted"; return; }
    [ "$(events stalled)" = 0 ] || { echo "it stalled: $(grep -m 1 '"event":"stalled"' "$OUT/events.jsonl")"; return; }
    left=$(left_on_nodes "$@")
    [ -z "$left" ] || { echo "left behind: $left"; return; }
    lines=$(find "$OUT/nodes" -name '*.lease' -newer "$OUT/manifest.json" | while read -r left; do
        left=$(basename "$left" .lease)
        case " $* " in *" $left "*) echo "$left" ;; esac
    done)
    [ -z "$lines" ] || echo "leases are left of $lines"
}

# expect_supervisors COUNT: so many agents have supervised the job, one after the other
expect_supervisors() {
    [ "$(events supervisor)" = "$1" ] || { show_logs; fail "supervisors: $(events supervisor), wanted $1"; }
}

# expect_job LIMIT_S NAME...: fails if something is wrong
expect_job() {
    local wrong
    wrong=$(job_wrong "$@")
    [ -z "$wrong" ] || { show_logs; fail "$wrong"; }
}
