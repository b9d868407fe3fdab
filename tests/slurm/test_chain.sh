#!/usr/bin/env bash
# slurm/requeue.sbatch --chain in a real Slurm that has no requeue: a preempted job ends for good, and the successor that it submitted when it
# began goes on. The last job of the chain ends the batch, with the digest of the undisturbed job, and its own successor is cancelled.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 900
slow_first
# shellcheck disable=SC2034 # lib.sh reads it
preempt_mode=CANCEL
slurm_start 2 12 SlurmctldParameters=preempt_send_user_signal
export OUTPUT=$GW_TMP/out

job=$(submit -p spot -N 2 --no-requeue -o "$OUTPUT.log" "$GW_SRCDIR/slurm/requeue.sbatch" --chain "${common[@]}")
await 60 "the job's first tokens" has_tokens "$OUTPUT" 500 || give_up "$job" "$OUTPUT"
next=$(cat "$OUTPUT/slurm/successor.$job")
job_state_is "$next" PENDING || give_up "$next" "$OUTPUT"
prio=$(take_nodes 2 3)
await 60 "the preemption" job_state_is "$prio" RUNNING COMPLETED || give_up "$job" "$OUTPUT"
go_fast
await 120 "the successor's end" job_state_is "$next" COMPLETED || give_up "$next" "$OUTPUT"
expect_equal "restarts of the first job" "$(job_field "$job" Restarts)" 0
job_state_is "$(cat "$OUTPUT/slurm/successor.$next")" CANCELLED || give_up "$next" "$OUTPUT"
expect_equal "nodes of the successor" "$(job_field "$next" NumNodes)" 2
expect_digest "$OUTPUT"
expect_said "$OUTPUT" "job $job on .* start 1" "job $next goes on" "job $next on .* start 1" "the batch is done"
grep -aE '^20' "$OUTPUT.log"
