#!/usr/bin/env bash
# What a real Slurm says of a job, as `godwit notice slurm` reads it: its time limit, and its preemption while the grace lasts.
# timeout: 200
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../slurm/lib.sh"
need_program
need_slurm
slurm_start 1 10 # seconds of grace

# SIGTERM is for others here; the time zone is not that of the times that are read
cat >"$GW_TMP/job.sh" <<END
#!/bin/bash
trap '' TERM
export GODWIT_NOTICE_POLL_S=0.3 TZ=Pacific/Auckland
"$GODWIT" notice --for 60 slurm=175 >"$GW_TMP/said" 2>"$GW_TMP/told"
END
# saying WHAT: has it been said?
saying() { grep -qE "$1" "$GW_TMP/said"; }
job=$(submit -p spot -N 1 -t 3 --requeue -o "$GW_TMP/job.log" "$GW_TMP/job.sh")
if ! await 40 "the time limit" saying "^limit 1[67][0-9]\.[0-9] the time limit of Slurm job $job"; then
    cat "$GW_TMP/said" "$GW_TMP/told" "$GW_TMP/job.log"
    scontrol show job "$job"
    fail "no notice of the time limit"
fi
saying ^leave && fail "it leaves before anything has happened"
take_nodes 1 1 >/dev/null
if ! await 40 "the preemption" saying "^leave ([0-9]|10)\.[0-9] Slurm preempts job $job"; then
    cat "$GW_TMP/said" "$GW_TMP/told" "$GW_TMP/job.log"
    scontrol show job "$job"
    fail "no notice of the preemption"
fi
cat "$GW_TMP/said"
slurm_stop
echo "a real Slurm: time limit and preemption are seen"
