# shellcheck shell=bash
# What the scripts of this folder have in common. Sourced by them, inside a job; docs/slurm.md tells the whole story.
#
# A script calls gw_begin "$@" (takes its own options out of the arguments, starts the chain), then gw_run or gw_nodes (godwit, which is told what Slurm says
# as it runs), then gw_end, which does not return: a batch that is done ends the job with exit code 0; one that is not comes back, by requeue
# or by the chain; one that cannot go on (a wrong option, a full disk) ends the job with godwit's exit code.
# shellcheck disable=SC2154 # GODWIT, MODEL, INPUT, OUTPUT are settings of the script

set -u
gw_rc=0 gw_size=0 gw_args=() gw_chain=no gw_array=no gw_successor='' gw_told=no gw_agents=no gw_pid='' gw_job=$SLURM_JOB_ID

gw_log() { echo "$(date +%FT%T) $*"; }

# gw_field KEY ITEM...: a field of what `scontrol show ITEM...` says; nothing when the controller does not answer
gw_field() {
    local key=$1
    shift
    timeout 10 scontrol -o show "$@" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$key=//p" | head -n 1
}
gw_ask() { gw_field "$1" job "$gw_job"; }

# gw_grace: seconds between a SIGTERM and the end, less a margin: GRACE if it is set, else the partition's GraceTime, else Slurm's KillWait
gw_grace() {
    local grace=${GRACE:-0}
    [ "$grace" -gt 0 ] || grace=$(gw_field GraceTime partition "$SLURM_JOB_PARTITION")
    [ "${grace:-0}" -gt 0 ] || grace=$(timeout 10 scontrol show config 2>/dev/null | awk '$1 == "KillWait" {print $3}')
    [ "${grace:-0}" -gt 0 ] || grace=30
    gw_margin "$grace"
}
# Some of the time is kept for what comes after godwit has left, and Slurm's clocks count in seconds.
gw_margin() { echo $(($1 > 40 ? $1 - 10 : $1 > 20 ? $1 * 3 / 4 : $1 > 6 ? $1 - 5 : 1)); }

# gw_committed: grows whenever the batch gets on
gw_committed() { cat "$OUTPUT/output.jsonl" "$OUTPUT/errors.jsonl" "$OUTPUT"/journal/* 2>/dev/null | wc -c; }

gw_begin() {
    local arg
    for arg in "$@"; do
        case $arg in --chain) gw_chain=yes ;; *) gw_args+=("$arg") ;; esac
    done
    [ -x "$GODWIT" ] || { gw_log "there is no program $GODWIT: set GODWIT or GODWIT_HOME at the top of the script"; exit 2; }
    # one task of an array has the array's own number: that alone would mean all of them
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || gw_array=yes gw_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    mkdir -p "$OUTPUT/slurm" || exit 6
    gw_log "job $gw_job on ${SLURM_JOB_NODELIST:-?}, start $((${SLURM_RESTART_COUNT:-0} + 1)), output $OUTPUT"
    gw_size=$(gw_committed)
    rm -f "$OUTPUT/slurm/notice" # one that came too late for an earlier start
    # Slurm tells a batch script by signals; the traps run because the script waits (below) instead of running godwit in the foreground
    trap 'gw_tell USR1' USR1
    trap 'gw_tell TERM' TERM
    [ $gw_chain = no ] || gw_submit_successor "$@"
}

# The successor waits for this job's end, whatever that is. It is submitted now: a job that is killed could not do so any more. What sbatch's command line
# said would be lost, so it is given again.
gw_submit_successor() {
    local note=$OUTPUT/slurm/successor.$gw_job options
    # a job that was requeued all the same has its successor already
    if [ "${SLURM_RESTART_COUNT:-0}" != 0 ] && [ -s "$note" ]; then gw_successor=$(cat "$note"); return; fi
    options=(--parsable --dependency="afterany:$gw_job" --job-name="$SLURM_JOB_NAME" --partition="$SLURM_JOB_PARTITION"
        --nodes="$SLURM_JOB_NUM_NODES" --time="$(gw_ask TimeLimit)" --output="$(gw_ask StdOut)" --open-mode=append)
    [ -z "${SLURM_JOB_ACCOUNT:-}" ] || options+=(--account="$SLURM_JOB_ACCOUNT")
    [ -z "${SLURM_JOB_QOS:-}" ] || options+=(--qos="$SLURM_JOB_QOS")
    [ $gw_array = no ] || options+=(--array="$SLURM_ARRAY_TASK_ID")
    if ! gw_successor=$(sbatch "${options[@]}" "$0" "$@"); then gw_log "no successor could be submitted"; return; fi
    gw_successor=${gw_successor%%;*}
    echo "$gw_successor" >"$note"
    gw_log "job $gw_successor will go on if need be"
}

# gw_left_s: how long this job still has: to its time limit, or to the end of the grace when it is being preempted. 0 when its end has begun; 30 where
# the controller does not answer.
gw_left_s() {
    local state end left=30
    state=$(gw_ask JobState)
    if [ "$state" = RUNNING ]; then
        end=$(date -d "$(gw_ask EndTime)" +%s 2>/dev/null) && left=$((end - $(date +%s)))
    elif [ -n "$state" ]; then
        left=0
    fi
    echo "$left"
}

# gw_tell SIGNAL: the nodes will be taken away.
gw_tell() {
    local left
    if [ $gw_told = yes ]; then
        [ "$1" != TERM ] || gw_stop
        return
    fi
    gw_told=yes
    left=$(gw_left_s)
    gw_log "SIG$1, $left s are left"
    left=$(gw_margin "$left")
    if [ "$left" -gt 1 ]; then gw_notice "$left"; else gw_stop; fi
}
# How godwit is told that it has so many seconds left, and that it has none. Agents know their grace, and srun hands this signal on to them; `godwit run`
# reads a file, and would start ranks again when those that it has are gone: nobody has told it that there is no place left.
gw_notice() {
    if [ $gw_agents = yes ]; then
        kill -USR1 "$gw_pid" 2>/dev/null
        return
    fi
    echo "leave all $1" >"$OUTPUT/slurm/notice.part" && mv "$OUTPUT/slurm/notice.part" "$OUTPUT/slurm/notice"
    (
        until grep -qs '"state": *"interrupted"' "$OUTPUT/status.json"; do
            kill -0 "$gw_pid" 2>/dev/null || exit 0
            sleep 0.1
        done
        kill -TERM "$gw_pid" 2>/dev/null
    ) &
}
gw_stop() { kill -TERM "$gw_pid" 2>/dev/null; }

# gw_run: one `godwit run` for all nodes
gw_run() {
    gw_hold "$GODWIT" run -m "$MODEL" -i "$INPUT" -o "$OUTPUT" -n "$SLURM_NTASKS" -q \
        --notice "slurm,$OUTPUT/slurm/notice" "${gw_args[@]}"
}
# gw_nodes OPTION_OF_SRUN...: an agent on every node, which starts as many ranks as the node has tasks
gw_nodes() {
    gw_agents=yes
    gw_hold srun --ntasks-per-node=1 --mpi=none --cpu-bind=none "$@" \
        "$GODWIT" node -m "$MODEL" -i "$INPUT" -o "$OUTPUT" -n "${SLURM_NTASKS_PER_NODE:-1}" -q \
        --min-nodes "$SLURM_JOB_NUM_NODES" --wait 20 --grace "$(gw_grace)" "${gw_args[@]}"
}

# gw_hold COMMAND...: runs it and waits; `wait` returns for a signal too, after its trap
gw_hold() {
    "$@" &
    gw_pid=$!
    while :; do
        wait "$gw_pid"
        gw_rc=$?
        kill -0 "$gw_pid" 2>/dev/null || break
    done
    # a signal that came with the end: its number, not the command's exit code, was returned
    wait "$gw_pid" 2>/dev/null
    local again=$?
    [ $again = 127 ] || gw_rc=$again
    # of several agents the worst exit code is returned: of those that were killed with their nodes, too, or that had trouble of their own while the
    # others ended the batch. A command that is wrong may meet a batch that was done before it: that got nowhere.
    case $gw_rc in
        [2-8] | 70) [ "$(gw_committed)" -gt "$gw_size" ] || return 0 ;;
    esac
    ! grep -qs '"state": *"done"' "$OUTPUT/status.json" || gw_rc=0
}

# gw_end: what became of it, and what follows
gw_end() {
    gw_log "godwit ended with exit code $gw_rc"
    "$GODWIT" status "$OUTPUT" 2>/dev/null | head -n 4
    case $gw_rc in
        0)
            gw_log "the batch is done: $OUTPUT/output.jsonl"
            [ -z "$gw_successor" ] || scancel "$gw_successor"
            # tasks that wait would start only to see that there is nothing to do
            [ $gw_array = no ] || scancel --state=PENDING "$SLURM_ARRAY_JOB_ID"
            exit 0
            ;;
        [2-8] | 70 | 126 | 127) gw_log "this would be so again: not requeued" ;;
        75 | 130) gw_again ;; # left in order
        *)
            if [ $gw_told = yes ] || [ "$(gw_committed)" -gt "$gw_size" ]; then gw_again; else gw_log "it got nowhere: not requeued"; fi
            ;;
    esac
    [ -z "$gw_successor" ] || scancel "$gw_successor"
    exit $gw_rc
}

# gw_again: comes back with the next job of the chain, else by requeue. A job that is running can be requeued even where Slurm would end it for good
# when the grace is over. One whose end has begun is left alone: somebody may have cancelled it.
gw_again() {
    local state restarts
    if [ -n "$gw_successor" ]; then
        gw_log "job $gw_successor goes on"
        exit $gw_rc
    fi
    state=$(gw_ask JobState)
    # requeued by somebody else already, and perhaps running again: this is the script of an earlier start
    restarts=$(gw_ask Restarts)
    [ "${restarts:-0}" -le "${SLURM_RESTART_COUNT:-0}" ] || state=REQUEUED
    # from here on a TERM only ends this script, at once: whoever gets the nodes shall not wait for Slurm's KillWait
    trap '' USR1
    trap - TERM
    case $state in
        RUNNING)
            # said first: Slurm may end this script before the command has returned
            gw_log "to be requeued"
            # Slurm ends it within seconds; with an exit code of its own the job would count as ended
            scontrol requeue "$gw_job" && exec sleep 60
            gw_log "not requeued: where a centre has no requeue, add --chain"
            ;;
        PENDING | REQUEUED)
            gw_log "requeued"
            exec sleep 60
            ;;
    esac
    gw_log "unless Slurm requeues this job: the same script, submitted again, goes on where this one was"
    exit $gw_rc
}
