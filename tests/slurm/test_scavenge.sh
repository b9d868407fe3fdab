#!/usr/bin/env bash
# slurm/scavenge.sbatch in a real Slurm: an array of single-node jobs works on one batch; jobs of a higher priority take nodes away, one, two, and all three, and the
# tasks leave, come back and go on. The batch ends with the digest of the undisturbed job, and no task stays behind.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 700
slow_first
slurm_start 3 8
export OUTPUT=$GW_TMP/out

array=$(submit -p spot --array=1-3 -o "$OUTPUT.%a.log" "$GW_SRCDIR/slurm/scavenge.sbatch" "${common[@]}")
tasks_in() { [ "$(timeout 10 squeue -h -r -j "$array" -t "$1" -o %i 2>/dev/null | wc -l)" -ge "$2" ]; }
logs() { cat "$OUTPUT".*.log >"$OUTPUT.log" 2>/dev/null || true; }
await 60 "three tasks to run" tasks_in R 3 || { logs; give_up "$array" "$OUTPUT"; }
await 60 "a launch on three nodes" has_launch "$OUTPUT" 3 || { logs; give_up "$array" "$OUTPUT"; }
for nodes in 1 2 3; do # how many are taken away; in the end all, since a node that stayed would go on slowly
    before=$(tokens_committed "$OUTPUT" | cut -d. -f1) || before=no # status.json is not written yet
    prio=$(take_nodes $nodes 3)
    await 60 "the preemption of $nodes nodes" job_state_is "$prio" RUNNING COMPLETED || { logs; give_up "$array" "$OUTPUT"; }
    echo "$nodes nodes were taken away after $before tokens"
    [ $nodes -lt 3 ] || go_fast
    await 90 "the tasks to come back" tasks_in R 3 || batch_is_done "$OUTPUT" || { logs; give_up "$array" "$OUTPUT"; }
done
await 120 "the batch's end" batch_is_done "$OUTPUT" || { logs; give_up "$array" "$OUTPUT"; }
await 30 "the tasks' end" job_is_gone "$array" || { logs; give_up "$array" "$OUTPUT"; }
logs
expect_digest "$OUTPUT"
restarts=$(grep -acE ' start [2-9]' "$OUTPUT.log") || true
[ "$restarts" -ge 1 ] || give_up "$array" "$OUTPUT"
[ "$(grep -c '"event":"launch"' "$OUTPUT/events.jsonl")" -ge 3 ] || give_up "$array" "$OUTPUT"
for task in 1 2 3; do job_state_is "${array}_$task" COMPLETED CANCELLED || give_up "${array}_$task" "$OUTPUT"; done
grep -ahE ' start |left|leaves|lost|ended with|requeued| done' "$OUTPUT".[0-9].log | grep '^20' | sort
