#!/usr/bin/env bash
# Two agents work on one batch. The machine of one is announced to be taken away: it leaves, with the exit code that says so, and the other finishes the batch.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/../chaos/lib.sh"
. "$(dirname "$0")/lib.sh"
need_notice_job
undisturbed -t 1
start_server
quiet

out=$GW_TMP/nodes
node() { # node NAME OPTION...
    local name=$1
    shift
    exec "$GODWIT" node --node-name "$name" --listen 127.0.0.1 -m "$MODEL" -i "$BATCH" -o "$out" -n 1 -t 1 -q --max-seqs 4 --step-rows 64 \
        --min-nodes 2 --chaos "slow:all,x60@step=1" "$@"
}
(node a) >"$GW_TMP/a.log" 2>&1 &
a_pid=$!
(node b --notice "aws=$server") >"$GW_TMP/b.log" 2>&1 &
b_pid=$!
end_agents() { kill -9 $a_pid $b_pid 2>/dev/null || true; }
trap 'rc=$?; end_agents; stop_server; (exit $rc); gw_test_end' EXIT
for tries in {1..600}; do
    [ "$(status_of "$out" generated_tokens 2>/dev/null || true)" -gt 0 ] 2>/dev/null && break
    kill -0 $a_pid 2>/dev/null || { cat "$GW_TMP"/[ab].log; fail "the job ended before it began"; }
    [ "$tries" != 600 ] || { cat "$GW_TMP"/[ab].log; fail "no token was drawn"; }
    sleep 0.1
done
echo 6 >"$cloud/action"
b_rc=0 a_rc=0
wait $b_pid || b_rc=$?
wait $a_pid || a_rc=$?
cat "$GW_TMP/a.log" "$GW_TMP/b.log"
expect_equal "exit code of the node that leaves" $b_rc 75
grep -q 'AWS takes this spot instance away' "$GW_TMP/b.log" || fail "the notice is not in its log"
expect_equal "exit code of the node that stays" $a_rc 0
expect_equal "digest" "$(sed -n 's/^digest  //p' "$GW_TMP/a.log" "$GW_TMP/b.log")" "$wanted"
expect_gone "$out"
stop_server
echo "a node that is announced to go leaves; the other finishes"
