#!/usr/bin/env bash
# Planned changes of nodes: who leaves with notice loses nothing, whoever it is; when all leave the job is saved; where nodes are too few it waits for more.
# Every job ends with the digest of one undisturbed process.
# timeout: 900
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/scenarios.sh"
need_node_job 600 80 # so that what one node leaves has room on the others: six sequences where four would run
node_options+=(--kv-memory 256M)
node_up n1 n2 n3

begin() { OUT=$GW_TMP/$1; echo "$1"; }
# agents NAME...: the job runs on all of them, and the first supervises it
agents() {
    agent "$1" --min-nodes $# "${more[@]}"
    until_event supervisor 1
    local name
    for name in "${@:2}"; do agent "$name" --min-nodes $# "${more[@]}"; done
    until_event ready 1
}
more=()
status() { sed -n "s/^ \"$1\": \([0-9]*\),*\$/\1/p" "$OUT/status.json"; }
# sum_events EVENT FIELD: of a number
sum_events() { sed -n "/\"event\":\"$1\"/s/.*\"$2\":\([0-9]*\).*/\1/p" "$OUT/events.jsonl" | awk '{ sum += $1 } END { print sum + 0 }'; }
# a launch may be fenced for all that, where a node of a busy machine was late in saying that it had ended the one before
nothing_lost() { expect_equal "tokens computed again" "$(status recomputed_tokens)" 0; }

begin joins
agents n1 n2
until_lines 5
agent n3
until_event launch 2
expect_job 90 n1 n2 n3
nothing_lost
expect_equal "bytes of weights moved to a node that was prepared" "$(sum_events ready weight_bytes_moved)" 0

begin leaves
agents n1 n2 n3
until_lines 5
node_do n1 "$GODWIT" node --drain "$OUT" n3 8
node_wait n3 30
expect_equal "n3 leaves" "$node_rc" 130
expect_job 90 n1 n2
nothing_lost
expect_equal "orders to hand over" "$(events handover)" 1
expect_equal "launches" "$(events launch)" 2
[ "$(sum_events ready kv_bytes_moved)" -gt 0 ] || fail "no KV was moved off the node that left"

begin supervisor-leaves
agents n1 n2 n3
until_lines 5
node_signal n1 TERM
node_wait n1 30
expect_equal "n1 leaves" "$node_rc" 130
expect_job 90 n2 n3
nothing_lost
expect_supervisors 2
expect_equal "launches" "$(events launch)" 2
[ "$(sum_events ready kv_bytes_moved)" -gt 0 ] || fail "no KV was moved off the node that left"

begin two-leave
agents n1 n2 n3
until_lines 5
node_signal n1 TERM
node_signal n2 TERM
node_wait n1 30
expect_equal "n1 leaves" "$node_rc" 130
node_wait n2 30
expect_equal "n2 leaves" "$node_rc" 130
expect_job 90 n3

begin leaves-in-a-hurry
agents n1 n2 n3
until_lines 5
node_do n1 "$GODWIT" node --drain "$OUT" n3 1
node_wait n3 30
expect_job 90 n1 n2

begin dies-while-it-hands-on
agents n1 n2 n3
until_lines 5
node_signal n1 TERM
until_event supervisor 2
node_kill n1
expect_job 90 n2 n3
node_up n1

# long answers: the batch must not be done within the grace
rm -rf "$GW_TMP/undisturbed"
need_node_job 1500 40
begin all-leave
more=(--grace 4)
agents n1 n2
until_lines 5
for name in n1 n2; do node_signal "$name" TERM; done
for name in n1 n2; do
    node_wait "$name" 30
    expect_equal "$name leaves" "$node_rc" 75
done
job_over || fail "the job was not ended in order"
expect_equal "saved and interrupted" "$(events save) $(events interrupted)" "1 1"
[ "$(sum_events checkpoint bytes)" -gt 0 ] || fail "there was no checkpoint"
more=()
agents n1 n2
expect_job 90 n1 n2
[ "$(status restored_tokens)" -gt 0 ] || fail "nothing was restored from the checkpoint"

echo comes-too-late
launches=$(events launch)
agent n3
expect_job 30 n3
expect_equal "launches after the job was done" "$(events launch)" "$launches"

# the rest is with hardly any memory, which takes its time
rm -rf "$GW_TMP/undisturbed"
need_node_job 120
begin too-few
node_options=(--context 4096 --max-seqs 4)
more=(--memory 5M)
agent n1 "${more[@]}"
until_event too-few 1
grep -q 'too few for this job' "$GW_TMP/n1.log" || fail "nothing says what the job waits for: $(cat "$GW_TMP/n1.log")"
agent n2 "${more[@]}"
expect_job 90 n1 n2

begin too-few-for-too-long
agent n1 "${more[@]}" --wait 2
node_wait n1 40
expect_equal "nobody comes" "$node_rc" 8
grep -q 'no other has come' "$GW_TMP/n1.log" || fail "nothing says why the job ended: $(cat "$GW_TMP/n1.log")"

nodes_down
sleep 0.5
expect_equal "processes of nodes that are gone" "$(marked_nodes)" ""
