#!/usr/bin/env bash
# slurm/requeue.sbatch in a real Slurm, with a time limit that is too short for the batch: the limit is a notice, the job works on until shortly before it,
# saves what it holds, and is requeued; with --chain, where there is no requeue, its successor goes on. The batch ends with the digest of the
# undisturbed job. Nothing preempts the two jobs, which have a node and a batch each.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 1200
slow_first
slurm_start 2 12
export GODWIT_NOTICE_POLL_S=3 # the controller is asked more often here than otherwise
again=$GW_TMP/again chain=$GW_TMP/chain

# no signal ahead of the limit: the controller's word is all there is
limited() { # OUT OPTION... of sbatch, script and godwit
    local out=$1
    shift
    OUTPUT=$out submit -p spot -N 1 -t 1 --signal=B:CONT@1 -o "$out.log" "$@" "${common[@]}"
}
job=$(limited "$again" "$GW_SRCDIR/slurm/requeue.sbatch")
first=$(limited "$chain" --no-requeue "$GW_SRCDIR/slurm/requeue.sbatch" --chain)
for out in "$again" "$chain"; do await 60 "the first tokens" has_tokens "$out" 500 || give_up "$job" "$out"; done
next=$(cat "$chain/slurm/successor.$first")
has_starts() { [ "$(grep -ac ' start [0-9]' "$1.log")" -ge "$2" ]; }
for out in "$again" "$chain"; do
    await 120 "the end of the first start" grep -qa "ended with exit code" "$out.log" || give_up "$job" "$out"
done
go_fast
for out in "$again" "$chain"; do await 120 "a second start" has_starts "$out" 2 || give_up "$job" "$out"; done
await 200 "the end of the batch" job_state_is "$job" COMPLETED || give_up "$job" "$again"
await 200 "the end of the chain" batch_is_done "$chain" || give_up "$next" "$chain" # a slow machine may need another link
await 30 "the end of the chain's last job" grep -qa "the batch is done" "$chain.log" || give_up "$next" "$chain"
expect_said "$again" "the time limit of Slurm job $job" "ended with exit code 75" "requeued" "job $job on .* start 2" "the batch is done"
expect_said "$chain" "the time limit of Slurm job $first" "ended with exit code 75" "job $next goes on" "job $next on .* start 1" "the batch is done"
expect_equal "restarts of the first job of the chain" "$(job_field "$first" Restarts)" 0
for out in "$again" "$chain"; do
    expect_digest "$out"
    # what the rank held was saved in time, and Slurm has not had to end anything
    grep -q '"event":"drain"' "$out/events.jsonl" || give_up "$job" "$out"
    ! grep -aqE 'DUE TO TIME LIMIT' "$out.log" || give_up "$job" "$out"
    grep -aE ' start |left|limit|ended with|requeued|goes on| done' "$out.log"
done
