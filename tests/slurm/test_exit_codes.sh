#!/usr/bin/env bash
# slurm/functions.sh: which exit codes of godwit mean that the batch is done. Needs no Slurm.
# timeout: 30
. "$(dirname "$0")/../lib/common.sh"
export SLURM_JOB_ID=1
OUTPUT=$GW_TMP/out
mkdir "$OUTPUT"
. "$GW_SRCDIR/slurm/functions.sh"
set +e +o pipefail # as in the scripts

# check WHAT STATE GROWS EXIT_CODE EXPECTED: a start of a batch in STATE at the end, which has answered a request more (yes) or none (no)
check() {
    echo "{\"state\": \"$2\"}" >"$OUTPUT/status.json"
    gw_size=$(gw_committed)
    [ "$3" = no ] || echo '{}' >>"$OUTPUT/output.jsonl"
    gw_hold sh -c "exit $4"
    expect_equal "$1" "$gw_rc" "$5"
}

check "a batch that is done" "done" yes 0 0
check "one that was done before" "done" no 0 0
check "nodes were killed, and others ended the batch" "done" yes 137 0
check "an agent could not write, and others ended the batch" "done" yes 6 0
check "a wrong option for a batch that is done" "done" no 2 2
check "another model for a batch that is done" "done" no 7 7
check "an agent could not write" running yes 6 6
check "killed" running yes 137 137
check "all nodes leave" interrupted yes 75 75
