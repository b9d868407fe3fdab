#!/usr/bin/env bash
# slurm/requeue.sbatch in a real Slurm, with a time limit that is too short for the batch: the limit is a notice, the job works on until shortly before it,
# saves what it holds, is requeued and goes on, and the batch ends with the digest of the undisturbed job. Nothing preempts it.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 1200
slow_first
slurm_start 2 12
export OUTPUT=$GW_TMP/out
export GODWIT_NOTICE_POLL_S=3 # the controller is asked more often here than otherwise

# no signal ahead of the limit: the controller's word is all there is
job=$(submit -p spot -N 2 -t 1 --signal=B:CONT@1 -o "$OUTPUT.log" "$GW_SRCDIR/slurm/requeue.sbatch" "${common[@]}")
await 60 "the job's first tokens" has_tokens "$OUTPUT" 500 || give_up "$job" "$OUTPUT"
has_starts() { [ "$(grep -ac ' start [0-9]' "$OUTPUT.log")" -ge "$1" ]; }
await 120 "the end of the first start" grep -qa "ended with exit code" "$OUTPUT.log" || give_up "$job" "$OUTPUT"
go_fast
await 120 "a second start" has_starts 2 || give_up "$job" "$OUTPUT"
await 200 "the end of the batch" job_state_is "$job" COMPLETED || give_up "$job" "$OUTPUT"
expect_digest "$OUTPUT"
expect_said "$OUTPUT" "the time limit of Slurm job $job" "ended with exit code 75" "requeued" "job $job on .* start 2" "the batch is done"
# what the ranks held was saved in time, and Slurm has not had to end anything
grep -q '"event":"drain"' "$OUTPUT/events.jsonl" || give_up "$job" "$OUTPUT"
grep -aqE 'DUE TO TIME LIMIT' "$OUTPUT.log" && give_up "$job" "$OUTPUT"
grep -aE ' start |left|limit|ended with|requeued| done' "$OUTPUT.log"
