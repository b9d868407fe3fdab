#!/usr/bin/env bash
# slurm/requeue.sbatch in a real Slurm: a job of three nodes is preempted, is requeued, goes on, and the batch ends with the digest of the
# undisturbed job. Once where the batch script is signalled at the preemption (preempt_send_user_signal), once where it is not.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 900

for settings in SlurmctldParameters=preempt_send_user_signal ""; do
    slow_first
    slurm_start 3 12 ${settings:+"$settings"}
    export OUTPUT=$GW_TMP/${settings:+signal}out
    # who is not signalled learns it from the controller, which is asked more often here than otherwise
    [ -n "$settings" ] || export GODWIT_NOTICE_POLL_S=3
    job=$(submit -p spot -N 3 -o "$OUTPUT.log" "$GW_SRCDIR/slurm/requeue.sbatch" "${common[@]}")
    await 60 "the job's first tokens" has_tokens "$OUTPUT" 500 || give_up "$job" "$OUTPUT"
    prio=$(take_nodes 2 4)
    await 60 "the preemption" job_state_is "$prio" RUNNING COMPLETED || give_up "$job" "$OUTPUT"
    go_fast
    await 120 "the requeued job's end" job_state_is "$job" COMPLETED || give_up "$job" "$OUTPUT"
    # as the script was told; what the controller shows of an ended job may be 0 again
    [ "$(grep -ac ' start [0-9]' "$OUTPUT.log")" = 2 ] || give_up "$job" "$OUTPUT"
    expect_digest "$OUTPUT"
    if [ -n "$settings" ]; then
        expect_said "$OUTPUT" "SIGUSR1, .* s are left" "ended with exit code (9|75|130)" "requeued"
        # what the ranks held was saved in time
        grep -q '"event":"drain"' "$OUTPUT/events.jsonl" || give_up "$job" "$OUTPUT"
    else
        expect_said "$OUTPUT" "Slurm preempts job $job" "ended with exit code (9|75|130)"
    fi
    echo "${settings:-no signal at the preemption}:"
    grep -aE ' start |left|preempts|ended with|requeued| done' "$OUTPUT.log"
    slurm_stop
done
