#!/usr/bin/env bash
# Leaders that are not dead: a network that is cut and heals while the shared file system is there all the time, and a supervisor that stands
# still while its leader writes on. Whatever the stale side does, each request is answered once, with the same bytes.
# timeout: 600
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/scenarios.sh"
need_node_job 2400
node_up n1 n2

for cut in n2 n1; do # a node of the launch; the supervisor's
    OUT=$GW_TMP/cut-$cut
    agent n1 --min-nodes 2
    until_event supervisor 1
    agent n2 --min-nodes 2
    until_lines 3
    node_cut "$cut"
    until_event launch 2 # without the other side
    sleep 0.5
    node_heal "$cut"
    expect_job 120 n1 n2
    grep -q '"fence":true' "$OUT/events.jsonl" || fail "no launch was fenced although a node could not be asked"
done

OUT=$GW_TMP/stopped
agent n1
until_lines 3
node_signal n1 STOP # the agent alone: its rank leads on
agent n2
until_event supervisor 2
until_event launch 2
grep '"launch":1' "$OUT/events.jsonl" | grep -q '"fence":true' || fail "the launch of the second supervisor is not fenced"
sleep 1
node_signal n1 CONT
expect_job 120 n1 n2
