#!/usr/bin/env bash
# slurm/requeue.sbatch in a real Slurm: a job of three nodes is preempted, is requeued, goes on, and the batch ends with the digest of the
# undisturbed job. Once where the batch script is signalled at the preemption (preempt_send_user_signal), once where it is not.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 500

for settings in SlurmctldParameters=preempt_send_user_signal ""; do
    slurm_start 3 12 ${settings:+"$settings"}
    export OUTPUT=$GW_TMP/${settings:+signal}.out
    job=$(submit -p spot -N 3 -o "$OUTPUT.log" "$GW_SRCDIR/slurm/requeue.sbatch" "${slow[@]}")
    await 60 "the job's first tokens" has_tokens "$OUTPUT" 2000 || give_up "$job" "$OUTPUT"
    prio=$(take_nodes 2 4)
    await 60 "the preemption" job_state_is "$prio" RUNNING COMPLETED || give_up "$job" "$OUTPUT"
    await 120 "the requeued job's end" job_state_is "$job" COMPLETED || give_up "$job" "$OUTPUT"
    expect_equal "restarts" "$(job_field "$job" Restarts)" 1
    expect_digest "$OUTPUT"
    if [ -n "$settings" ]; then
        expect_said "$OUTPUT" "SIGUSR1, .* s are left" "ended with exit code (130|9)" "requeued"
        grep -E "notice|drain|leave|resumed|checkpoint" "$OUTPUT/events.jsonl"
    fi
    grep -aE ' job |left|ended|requeued|done' "$OUTPUT.log"
    slurm_stop
done
