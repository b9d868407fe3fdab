#!/usr/bin/env bash
# slurm/no-kill.sbatch in a real Slurm: a node dies under a job of three (its slurmd and every process on it are killed), and Slurm sets it down; another is
# set down by the administrator. The job goes on with one; then it is preempted, is requeued onto the nodes that are left, and the batch ends with the
# digest of the undisturbed job.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_slurm
make_slurm_batch 700
slow_first
slurm_start 4 12
export OUTPUT=$GW_TMP/out

job=$(submit -p spot -N 3 -o "$OUTPUT.log" "$GW_SRCDIR/slurm/no-kill.sbatch" "${common[@]}")
await 60 "a launch on three nodes" has_launch "$OUTPUT" 3 || give_up "$job" "$OUTPUT"
await 60 "the job's first tokens" has_tokens "$OUTPUT" 200 || give_up "$job" "$OUTPUT"

# the last node of the job: the batch script runs on the first
node=$(scontrol show hostnames "$(job_field "$job" NodeList)" | tail -n 1)
kill_node "$node"
await 60 "a launch on two nodes" has_launch "$OUTPUT" 2 || give_up "$job" "$OUTPUT"
await 60 "$node to be down" node_is_down "$node" || give_up "$job" "$OUTPUT"
sleep 1
job_state_is "$job" RUNNING || give_up "$job" "$OUTPUT"
expect_equal "restarts after the node's death" "$(job_field "$job" Restarts)" 0
echo "$node is down, and the job goes on with $(job_field "$job" NodeList)"

# the administrator's word: Slurm itself ends what runs there
node=$(scontrol show hostnames "$(job_field "$job" NodeList)" | tail -n 1)
scontrol update NodeName="$node" State=DOWN Reason=test
await 60 "a launch on one node" has_launch "$OUTPUT" 1 || give_up "$job" "$OUTPUT"
job_state_is "$job" RUNNING || give_up "$job" "$OUTPUT"
expect_equal "restarts after a node was set down" "$(job_field "$job" Restarts)" 0
echo "$node was set down, and the job goes on with $(job_field "$job" NodeList)"

prio=$(take_nodes 3 3) # n2 is back as soon as it answers
await 60 "the preemption" job_state_is "$prio" RUNNING COMPLETED || give_up "$job" "$OUTPUT"
go_fast
await 150 "the requeued job's end" job_state_is "$job" COMPLETED || give_up "$job" "$OUTPUT"
expect_equal "restarts" "$(job_field "$job" Restarts)" 1
expect_digest "$OUTPUT"
grep -aE '^20.*( start |left|ended with|requeued| done)' "$OUTPUT.log"
