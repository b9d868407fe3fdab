#!/usr/bin/env bash
# Nodes that join, leave and vanish: each a set of namespaces with an agent in it (godwit node). Every job must end by itself with the digest of
# one undisturbed process, and leave nothing on the nodes that live.
# timeout: 900
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/scenarios.sh"
need_node_job 1500
node_up n1 n2 n3

begin() { OUT=$GW_TMP/$1; echo "$1"; }
# two_agents, three_agents: the job runs on all of them, and n1 supervises it
two_agents() {
    agent n1 --min-nodes 2
    until_event supervisor 1
    agent n2 --min-nodes 2
    until_event launch 1
}
three_agents() {
    agent n1 --min-nodes 3
    until_event supervisor 1
    agent n2 --min-nodes 3
    agent n3 --min-nodes 3
    until_event launch 1
}

begin join
agent n1
until_event ready 1
agent n2
until_event launch 2
expect_job 90 n1 n2
grep -q '"standby":true' "$OUT/events.jsonl" || fail "the second launch was not made before the first was broken off"

begin node-killed
two_agents
until_lines 5
node_kill n2
expect_job 90 n1
[ "$(events node-lost)" -ge 1 ] || [ "$(events launch)" -ge 2 ] || fail "the loss of n2 was no loss"
node_up n2

begin supervisor-killed
two_agents
until_lines 5
node_kill n1
expect_job 90 n2
expect_supervisors 2
node_up n1

begin two-killed
three_agents
until_lines 5
node_kill n1 n3
expect_job 90 n2
expect_supervisors 2
node_up n1 n3

begin joins-while-another-dies
two_agents
until_lines 5
agent n3
sleep 0.4
node_kill n2
expect_job 90 n1 n3
node_up n2

begin drained
two_agents
until_lines 5
node_do n1 "$GODWIT" node --drain "$OUT" n2 8
node_wait n2 30
expect_equal "n2 leaves" "$node_rc" 130
job_over && fail "n2 left no sooner than the job ended"
expect_job 90 n1

begin supervisor-leaves
two_agents
until_lines 5
node_signal n1 TERM
node_wait n1 30
expect_equal "n1 leaves" "$node_rc" 130
expect_job 90 n2
expect_supervisors 2

begin one-host
node_start n1 "$GW_TMP/n1.log" "$GODWIT" node -m "$MODEL" -i "$BATCH" -o "$OUT" -q "${node_options[@]}" --lease 1 --net 10.77.0.0/24 --min-nodes 2
until_event supervisor 1
node_do n1 "$GODWIT" node -m "$MODEL" -i "$BATCH" -o "$OUT" -q "${node_options[@]}" --lease 1 --net 10.77.0.0/24 >"$GW_TMP/n1b.log" 2>&1 || fail "the second agent of a host: $(cat "$GW_TMP/n1b.log")"
grep -q 'node n1.2 listens' "$GW_TMP/n1b.log" || fail "the second agent of a host has no name of its own"
expect_job 90 n1

nodes_down
sleep 0.5
expect_equal "processes of nodes that are gone" "$(marked_nodes)" ""
