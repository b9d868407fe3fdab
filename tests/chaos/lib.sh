# shellcheck shell=bash
# Sourced by the chaos scripts after common.sh and jobs.sh: starting a job so that all its processes can be found, whoever their
# parent is by then; watching it with a deadline; what it leaves behind; the jobs that seeds stand for.
#
# Every process of a job inherits the environment variable GW_CHAOS_RUN, and only the processes that carry this run's value are
# looked at or killed.
# shellcheck disable=SC2034,SC2154 # variables that one of the files sets and another reads

# a job that is killed leaves the launcher's session folder: in a folder that goes with the test
mkdir -p "$GW_TMP/session"
export TMPDIR=$GW_TMP/session
chaos_runs=0
shm_seen=$GW_TMP/shm_seen
: >"$shm_seen"

# marked: the living processes of this script's present job
marked() { grep -slaF "GW_CHAOS_RUN=$chaos_mark" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true; }

# kill_marked: kill -9 for all of them, until none is left that could start another
kill_marked() {
    local pids tries
    for tries in {1..100}; do
        pids=$(marked)
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086 # one word each
        kill -9 $pids 2>/dev/null || true
        [ "$tries" -lt 5 ] || sleep 0.1
    done
    fail "processes that kill -9 does not end: $pids"
}

# note_shm: which files of /dev/shm the job uses; the names alone do not tell whose they are
note_shm() {
    local pid
    for pid in $(marked); do
        grep -ohE '/dev/shm/[^ ]+' "/proc/$pid/maps" 2>/dev/null || true
    done | sort -u - "$shm_seen" >"$shm_seen.new" && mv "$shm_seen.new" "$shm_seen"
}

# left_shm: those of them that are still there and that no process uses
left_shm() {
    local file
    while read -r file; do
        [ -e "$file" ] && ! grep -qsF "$file" /proc/[0-9]*/maps && echo "$file"
    done <"$shm_seen" || true
}

# drop_shm: removes them, and starts afresh
drop_shm() {
    local file
    left_shm | while read -r file; do rm -f "$file"; done
    : >"$shm_seen"
}

# begin_job LOG COMMAND...: starts it in the background as a new run: $job_pid, $chaos_mark
begin_job() {
    local log=$1
    shift
    chaos_runs=$((chaos_runs + 1))
    chaos_mark=$$.$chaos_runs.$(date +%s%N)
    # a shell in between takes the blow when the job is killed: it would be told on the terminal
    {
        local rc=0
        env GW_CHAOS_RUN="$chaos_mark" "$@" >"$log" 2>&1 </dev/null || rc=$?
        exit $rc
    } 2>/dev/null &
    job_pid=$!
}
job_runs() { kill -0 "$job_pid" 2>/dev/null; }

# await_job DEADLINE_S: waits for its end: $job_rc, or "hung" after the deadline, and then what it was doing in $job_state
await_job() {
    local until_ms=$(($(date +%s%3N) + $1 * 1000)) pid
    job_rc=0 job_state=''
    while job_runs; do
        note_shm
        if [ "$(date +%s%3N)" -gt "$until_ms" ]; then
            for pid in $(marked); do
                job_state+="process $pid $(tr '\0\n' '  ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c1-60) $(
                    grep -s State "/proc/$pid/status" | tr '\t' ' ')"$'\n'
            done
            job_rc=hung
            kill_marked
            wait "$job_pid" 2>/dev/null || true
            return
        fi
        sleep 0.1
    done
    wait "$job_pid" 2>/dev/null || job_rc=$?
}

# left_processes: those of the job that are there although it has ended, given a few seconds to leave
left_processes() {
    local tries pids pid
    for tries in {1..15}; do
        pids=$(marked)
        [ -n "$pids" ] || return 0
        sleep 0.2
    done
    for pid in $pids; do echo "$pid ($(tr '\0\n' '  ' <"/proc/$pid/cmdline" | cut -c1-80))"; done
}

# undisturbed OPTION...: runs the job as it should be, in $GW_TMP/undisturbed, and takes its digest and its time: $wanted, $whole_ms
undisturbed() {
    local begin_ms
    begin_ms=$(date +%s%3N)
    rm -rf "$GW_TMP/undisturbed"
    begin_job "$GW_TMP/undisturbed.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$GW_TMP/undisturbed" -q "$@"
    await_job 600
    whole_ms=$(($(date +%s%3N) - begin_ms))
    [ "$job_rc" = 0 ] || { cat "$GW_TMP/undisturbed.log"; fail "the undisturbed job: $job_rc"; }
    wanted=$(sed -n 's/^digest  //p' "$GW_TMP/undisturbed.log")
    [ ${#wanted} = 64 ] || fail "no digest: $wanted"
    drop_shm
}

# what_is_wrong OUT: the whole oracle for a job that has exited 0; nothing when all is well
what_is_wrong() {
    local digest left
    "$GODWIT" verify "$1" >"$1.verify" 2>&1 || { echo "verify: $(tail -n 1 "$1.verify")"; return; }
    digest=$(sed -n 's/^digest  *//p' "$1.verify")
    [ "$digest" = "$wanted" ] || { echo "digest $digest, undisturbed $wanted"; return; }
    ! grep '"event":"stalled"' "$1/events.jsonl" || return 0
    left=$(left_processes)
    [ -z "$left" ] || { echo "left behind: process $left"; return; }
}

# need_chaos_model [MODEL]: $MODEL, $real (yes: not a tiny one made here)
need_chaos_model() {
    need_program
    real=no MODEL=${1:-}
    if [ -n "$MODEL" ]; then
        [ -f "$MODEL" ] || skip "there is no $MODEL"
        real=yes
        return
    fi
    need_make_tiny
    MODEL=$GW_TMP/tiny.gguf
    "$make_tiny" --arch llama --type q4_1 "$MODEL"
}

# make_chaos_batch MIXED LONG TOKENS: $BATCH: requests of every kind, and long answers, so that a job has some hundred steps
make_chaos_batch() {
    BATCH=$GW_TMP/batch.jsonl
    {
        make_requests "$1" 1
        echo 'this is no request'
        awk -v n="$2" -v tokens="$3" 'BEGIN {
            for (i = 0; i < n; i++)
                printf "{\"id\":\"long%d\",\"prompt\":\"the sea %d\",\"max_tokens\":%d,\"ignore_eos\":true,\"seed\":%d}\n", i, i, tokens / 2 + (i * 37) % (tokens / 2), i
        }'
    } >"$BATCH"
}

# plan_of_seed SEED STEPS SCENARIO: prints "RANKS LAYOUT SPEC": what a seed stands for, everywhere the same. STEPS: about how many steps a
# rank executes; events come in the first two thirds of them. SCENARIO: -1: the seed's own.
scenarios=20
plan_of_seed() {
    awk -v seed="$1" -v steps="$2" -v forced="$3" -v scenarios=$scenarios -v x="$(cksum <<<"seed $1" | cut -d' ' -f1)" '
    function pick(n) { # 0 .. n-1; an LCG of our own, since each awk has another rand()
        x = (x * 69069 + 1) % 4294967296
        return int(x / 4294967296 * n)
    }
    function one_of(list,   part, n) { n = split(list, part, " "); return part[1 + pick(n)] }
    function step(third) { return 3 + int(steps / 3 * third) + pick(int(steps / 3)) } # in this third of the job
    function other(a) { return (a + 1 + pick(ranks - 1)) % ranks }
    function at_point(who, points) { return "kill:" who "@point=" one_of(points) }
    BEGIN {
        for (i = 0; i < 5; i++) pick(2)
        scenario = forced >= 0 ? forced : seed % scenarios
        least = scenario == 3 || scenario == 4 || scenario == 8 || scenario == 13 ? 3 : 2
        ranks = least + pick(6 - least)
        layouts[2] = "2x1x1 1x2x1 1x1x2"
        layouts[3] = "3x1x1 1x3x1 1x1x3"
        layouts[4] = "4x1x1 2x2x1 2x1x2 1x2x2 1x4x1 1x1x4"
        layouts[5] = "5x1x1 1x5x1 1x1x5"
        layout = pick(3) ? one_of(layouts[ranks]) : "auto"
        a = pick(ranks)
        b = other(a)
        c = other(a)
        while (ranks > 2 && c == b) c = other(a)
        recovery = "repair hello plan migrate ready"
        kill_a = "kill:" a "@step=" step(0)
        if (scenario == 0) spec = kill_a
        else if (scenario == 1) spec = "kill:leader@step=" step(0) (pick(2) ? ";kill:leader@step=" step(1) : "")
        else if (scenario == 2) spec = "kill:" a "@step=" step(0) ";kill:" b "@step=" step(1)
        else if (scenario == 3) spec = "kill:" a "+" b "@step=" step(0)
        else if (scenario == 4) spec = kill_a ";" at_point(b, recovery) ";" at_point(c, recovery)   # twice in one recovery
        else if (scenario == 5) spec = kill_a ";" at_point(b, recovery)
        else if (scenario == 6) spec = kill_a ";kill:leader@point=" one_of(recovery)
        else if (scenario == 7) spec = kill_a ";spawn:1@step=" step(1)
        else if (scenario == 8) spec = kill_a ";spawn:" 1 + pick(2) "@step=" step(1) ";kill:" b "@step=" step(1) # spawn in between
        else if (scenario == 9) spec = "spawn:1@step=" step(0) ";kill:" (pick(3) ? a : ranks) "@point=" one_of("spawn merge hello migrate ready")
        else if (scenario == 10) spec = "stop:" a "@step=" step(0)
        else if (scenario == 11) spec = "stop:" a "@step=" step(0) ";" at_point(b, recovery)
        else if (scenario == 12) spec = "notice:" a ",grace=" 0.2 + pick(20) / 10 "s@step=" step(0)
        else if (scenario == 13) spec = "notice:" a ",grace=" 0.5 + pick(20) / 10 "s@step=" step(0) ";" at_point(b, "plan migrate ready")
        else if (scenario == 14) spec = "kill:leader@point=" (pick(2) ? "commit*" 1 + pick(20) : "checkpoint*" 1 + pick(3))
        else if (scenario == 15) spec = "kill:all@step=" step(0) (pick(2) ? ";kill:" a "@step=" step(0) ",launch=1" : "")
        else if (scenario == 16) spec = "notice:all,grace=" 0.3 + pick(10) / 10 "s@step=" step(0)
        else if (scenario == 17) spec = "slow:" a ",x" 2 + pick(4) "@step=" step(0) ";kill:" b "@step=" step(1)
        else if (scenario == 18) spec = "kill:any@time=" 100 + pick(900) "ms"
        else spec = "random:seed=" seed ",rate=" 1 + pick(4) ",kinds=" one_of("kill kill+stop kill+spawn kill+notice kill+stop+spawn+notice+slow") ",most=" 1 + pick(4) ",points=0." 2 + pick(6)
        print ranks, layout, spec
    }'
}
