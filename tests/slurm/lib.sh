# shellcheck shell=bash
# Sourced after common.sh and jobs.sh by tests/slurm/test_*.sh: a private Slurm, with nodes n1..nN that are all this machine.
#
# munged, slurmctld and one slurmd a node run as root in the foreground of this test, below $GW_TMP/slurm, with a key, sockets, ports and
# spool folders of their own. So they neither need nor disturb a Slurm or a munge that the machine may have. Everything that they start
# inherits SLURM_CONF with this test's path; by that, and by it alone, slurm_stop finds what is left, and ends it by process id.
#
# Partitions, as a centre with preemptible nodes has them:
#   spot   PriorityTier 1; its jobs are requeued for those of prio, GraceTime as slurm_start was told
#   prio   PriorityTier 10
# A requeued job may start again after cred_expire seconds (120 in a Slurm that says nothing; here 5, so that a test takes a minute and
# not three).
# shellcheck disable=SC2034 # variables that one file sets and another reads

slurm_dir=$GW_TMP/slurm
slurm_pids=() # "name pid"
preempt_mode=REQUEUE # of the spot partition

# need_slurm: skips the test where a Slurm of its own cannot be started
need_slurm() {
    local tool
    PATH=$PATH:/usr/sbin:/sbin
    for tool in munged munge slurmctld slurmd sbatch squeue scontrol sinfo; do
        command -v $tool >/dev/null 2>&1 || skip "$tool is not installed (Debian: slurmctld slurmd slurm-client munge)"
    done
    [ "$(id -u)" = 0 ] || skip "only root can run a slurmd"
    [ -z "${SLURM_JOB_ID:-}" ] || skip "this is a job of another Slurm"
}

# free_port: a port that nobody listens on; tests that run side by side look in different places
free_port() {
    local port tries
    for tries in {1..200}; do
        port=$((20000 + (($$ * 37 + tries * 101 + RANDOM) % 12000)))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port; return; }
    done
    skip "no free port found"
}

# write_conf NODES GRACE_S EXTRA...: slurm.conf; EXTRA are further lines of it
write_conf() {
    local nodes=$1 grace_s=$2 i cpus memory_mb
    shift 2
    cpus=$(nproc)
    memory_mb=$(awk '/^MemTotal/ {print int($2 / 2048)}' /proc/meminfo)
    {
        cat <<CONF
ClusterName=gw$$
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm_dir/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$slurm_dir/state
SlurmdSpoolDir=$slurm_dir/spool.%n
SlurmctldPidFile=$slurm_dir/slurmctld.pid
SlurmdPidFile=$slurm_dir/slurmd.%n.pid
SlurmctldLogFile=$slurm_dir/slurmctld.log
SlurmdLogFile=$slurm_dir/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=2
MinJobAge=300
KillWait=5
SlurmdTimeout=8
MessageTimeout=5
InactiveLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
        printf '%s\n' "$@"
        for ((i = 1; i <= nodes; i++)); do
            echo "NodeName=n$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(free_port) CPUs=$cpus RealMemory=$memory_mb"
        done
        echo "PartitionName=spot Nodes=n[1-$nodes] Default=YES PriorityTier=1 PreemptMode=$preempt_mode GraceTime=$grace_s MaxTime=INFINITE"
        echo "PartitionName=prio Nodes=n[1-$nodes] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE"
    } >"$slurm_dir/slurm.conf"
}

# start_daemon NAME COMMAND...: in the background; slurm_stop ends it
start_daemon() {
    local name=$1
    shift
    "$@" >"$slurm_dir/$name.out" 2>&1 </dev/null &
    slurm_pids+=("$name $!")
}
pid_of_daemon() { printf '%s\n' "${slurm_pids[@]}" | sed -n "s/^$1 //p" | tail -n 1; }
start_slurmd() { start_daemon "slurmd.$1" slurmd -D -N "$1" -f "$SLURM_CONF"; }

# slurm_start NODES GRACE_S [EXTRA_LINE...]: returns when every node is idle; skips the test when that cannot be had
slurm_start() {
    local nodes=$1 i
    mkdir -p "$slurm_dir/state"
    chmod 755 "$GW_TMP" "$slurm_dir"
    # what a launcher that is killed leaves goes with the test
    mkdir -p "$GW_TMP/session"
    export TMPDIR=$GW_TMP/session
    trap slurm_end EXIT
    (umask 077; head -c 1024 /dev/urandom >"$slurm_dir/munge.key")
    # --force: the socket lies below a temporary folder
    start_daemon munged munged --foreground --force --key-file="$slurm_dir/munge.key" --socket="$slurm_dir/munge.socket" \
        --pid-file="$slurm_dir/munged.pid" --seed-file="$slurm_dir/munged.seed" --log-file="$slurm_dir/munged.log" --num-threads=4
    await 20 "munged" munge -S "$slurm_dir/munge.socket" -n -o /dev/null || slurm_cannot munged
    write_conf "$@"
    export SLURM_CONF=$slurm_dir/slurm.conf
    unset "${!SLURM_JOB@}" "${!SBATCH_@}"
    start_daemon slurmctld slurmctld -D -f "$SLURM_CONF"
    await 30 "slurmctld" controller_answers || slurm_cannot slurmctld
    for ((i = 1; i <= nodes; i++)); do start_slurmd "n$i"; done
    await 40 "all nodes to be idle" nodes_idle "$nodes" || slurm_cannot slurmd.n1
}
controller_answers() { timeout 10 scontrol ping 2>/dev/null | grep -q 'is UP'; }
nodes_idle() { [ "$(timeout 10 sinfo -h -p spot -t idle -o %D 2>/dev/null)" = "$1" ]; }
slurm_cannot() {
    tail -n 5 "$slurm_dir/$1.out" "$slurm_dir/$1.log" 2>/dev/null || true
    skip "a private Slurm cannot be started here: $1 does not answer"
}

# await SECONDS WHAT COMMAND...: until COMMAND succeeds; 1 after the time
await() {
    local until_s=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $until_s ]; then echo "waited in vain for $what"; return 1; fi
        sleep 0.2
    done
}

# slurm_processes: living processes of this Slurm, the daemons and this shell not among them
slurm_processes() {
    grep -slaF "SLURM_CONF=$slurm_dir/slurm.conf" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 |
        grep -vxF -e $$ -e "$BASHPID" -f <(printf '%s\n' "${slurm_pids[@]#* }") || true
}

slurm_end() {
    local rc=$?
    set +e
    slurm_stop
    (exit $rc)
    gw_test_end
}

# slurm_stop: jobs first, in order; then the daemons; then whatever is left
slurm_stop() {
    local entry pid tries
    if controller_answers; then
        timeout 10 scancel -u root 2>/dev/null || true
        timeout 10 scancel -u root --signal=KILL --full 2>/dev/null || true
        await 10 "jobs to end" no_jobs_run || true
    fi
    for entry in "${slurm_pids[@]}"; do [ "${entry% *}" = munged ] || kill "${entry#* }" 2>/dev/null || true; done
    for tries in {1..30}; do
        pid=$(slurm_processes)
        [ -n "$pid" ] || break
        # shellcheck disable=SC2086 # one word each
        [ "$tries" -lt 5 ] || kill -9 $pid 2>/dev/null || true
        sleep 0.2
    done
    for entry in "${slurm_pids[@]}"; do
        for tries in {1..25}; do
            kill -0 "${entry#* }" 2>/dev/null || break
            [ "$tries" != 1 ] || [ "${entry% *}" != munged ] || kill "${entry#* }" 2>/dev/null
            [ "$tries" != 20 ] || kill -9 "${entry#* }" 2>/dev/null
            sleep 0.2
        done
    done
    slurm_pids=()
}
no_jobs_run() { [ -z "$(timeout 10 squeue -h -t R,CG,CF -o %i 2>/dev/null)" ]; }

# ---- jobs ---------------------------------------------------------------------------------------------------------------

# submit OPTION... SCRIPT ARG...: prints the job's number
submit() { sbatch --parsable "$@" | cut -d';' -f1; }
# job_field JOB KEY: of scontrol show job, such as JobState, Restarts, NodeList
job_field() { timeout 10 scontrol show job -o "$1" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
job_state_is() { [[ " $2 " == *" $(job_field "$1" JobState) "* ]]; }
# take_nodes NODES SECONDS: a job of the prio partition that needs that many nodes; prints its number
take_nodes() { submit -p prio -N "$1" --exclusive -t 5 -o "$slurm_dir/prio.%j.log" -J prio --wrap "sleep $2"; }
# kill_node NAME: what a power cut does: its slurmd and every process that a job has there are gone at once
kill_node() {
    local pids
    kill -9 "$(pid_of_daemon "slurmd.$1")"
    wait "$(pid_of_daemon "slurmd.$1")" 2>/dev/null || true # the shell would tell of it
    # those with SLURMD_NODENAME, and slurmd's own children, whose environment is slurmd's, by their command line
    pids=$(comm -12 <(slurm_processes | sort) \
        <({ grep -slaF "SLURMD_NODENAME=$1" /proc/[0-9]*/environ; grep -slaF "spool.$1" /proc/[0-9]*/cmdline; } 2>/dev/null | cut -d/ -f3 | sort -u))
    # shellcheck disable=SC2086 # one word each
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
}
node_is_down() { timeout 10 sinfo -h -n "$1" -p spot -o %t | grep -q '^down'; }
# tokens_committed OUT: how far the batch has come, at least
tokens_committed() { status_of "$1" generated_tokens 2>/dev/null; }
has_tokens() { [ "$(tokens_committed "$1" | cut -d. -f1)" -ge "$2" ]; }
show_job() { echo "---- job $1"; scontrol show job "$1" 2>&1 | head -n 40; }

# ---- the batch ----------------------------------------------------------------------------------------------------------

# make_slurm_batch REQUESTS: a tiny model and requests, exported as the scripts of slurm/ want them; $wanted is the digest of the undisturbed job.
# A job must last while Slurm's clocks tick, on a fast machine as well: after slow_first, whatever starts before go_fast has steps that take 30 times as long, without
# using the processors.
make_slurm_batch() {
    need_make_tiny
    export MODEL=$GW_TMP/model.gguf INPUT=$GW_TMP/batch.jsonl GODWIT GODWIT_HOME=$GW_SRCDIR
    BATCH=$INPUT
    "$make_tiny" --layers 8 "$MODEL"
    make_requests "$1" 5 | sed 's/"max_tokens":[0-9]*/"max_tokens":100,"ignore_eos":true/' >"$INPUT"
    common=(--context 512 --max-seqs 8)
    wanted=$(run_job "$GW_TMP/undisturbed" -n 3 "${common[@]}")
    [ ${#wanted} = 64 ] || fail "no digest of the undisturbed job"
    cat >"$GW_TMP/godwit" <<SCRIPT
#!/bin/sh
case \$1 in
    run | node) [ -e "$GW_TMP/fast" ] || exec "$GODWIT" "\$@" --chaos 'slow:all,x30@step=1,launch=any' ;;
esac
exec "$GODWIT" "\$@"
SCRIPT
    chmod +x "$GW_TMP/godwit"
}
# slow_first: the scripts of slurm/ run godwit slowly until go_fast
slow_first() { rm -f "$GW_TMP/fast"; GODWIT=$GW_TMP/godwit; }
go_fast() { : >"$GW_TMP/fast"; }
# expect_digest OUT: every request answered once, and as in the undisturbed job
expect_digest() {
    local got
    got=$("$GODWIT" verify "$1") || { echo "$got"; fail "$1 is not whole"; }
    expect_equal "digest of $1" "$(sed -n 's/^digest  *//p' <<<"$got")" "$wanted"
}
# give_up JOB OUT: says what is known, and fails
give_up() {
    [ -z "$1" ] || show_job "$1"
    echo "---- log of the job"
    tail -n 40 "$2.log" 2>&1 || true
    echo "---- slurmctld"
    tail -n 20 "$slurm_dir/slurmctld.log" || true
    fail "see above"
}
# expect_said OUT PATTERN...: in the log of the job, in this order
expect_said() {
    local out=$1 pattern line=0 at
    shift
    for pattern in "$@"; do
        at=$(tail -n +$((line + 1)) "$out.log" | grep -anE -m 1 -- "$pattern" | cut -d: -f1) || give_up "" "$out"
        line=$((line + at))
    done
}
# has_launch OUT NODES: agents have made a launch on so many nodes
has_launch() { grep '"event":"launch"' "$1/events.jsonl" | grep -qE "\"ranks\":$2[,}]"; }
batch_is_done() { grep -qs '"state": *"done"' "$1/status.json"; }
job_is_gone() { [ -z "$(timeout 10 squeue -h -j "$1" -o %i 2>/dev/null)" ]; }
