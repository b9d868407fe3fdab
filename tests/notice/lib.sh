# shellcheck shell=bash
# Sourced by the tests of notices after common.sh: a local server that speaks like the metadata services, and a scontrol that says what it is told to.
# shellcheck disable=SC2034,SC2154 # variables that one of the files sets and another reads

need_tool python3
cloud=$GW_TMP/cloud
mkdir -p "$cloud"
server_pid=

# start_server: address in $server; its requests are in $cloud/log
start_server() {
    local tries
    rm -f "$cloud/port"
    python3 "$GW_SRCDIR/tests/notice/fake_metadata.py" --log "$cloud/log" "$cloud" >"$cloud/port" 2>"$cloud/errors" &
    server_pid=$!
    for tries in {1..200}; do
        [ ! -s "$cloud/port" ] || break
        kill -0 $server_pid 2>/dev/null || { cat "$cloud/errors"; fail "the local server does not start"; }
        sleep 0.05
    done
    server=http://127.0.0.1:$(cat "$cloud/port")
}
stop_server() {
    [ -z "$server_pid" ] || { kill $server_pid 2>/dev/null || true; wait $server_pid 2>/dev/null || true; }
    server_pid=
}
trap 'rc=$?; stop_server; (exit $rc); gw_test_end' EXIT

# quiet: the server has nothing to tell, and has forgotten who asked
quiet() {
    rm -f "$cloud"/{action,rebalance,events,events.json,preempted,maintenance,acknowledged,misbehave,expire}
    : >"$cloud/log"
}

# asked WHAT: how many requests of the log match
asked() { grep -cE "$1" "$cloud/log" || true; }
# wait_asked COUNT WHAT: until there are as many
wait_asked() {
    local tries
    for tries in {1..400}; do
        [ "$(asked "$2")" -lt "$1" ] || return 0
        sleep 0.05
    done
    cat "$cloud/log"
    fail "the server was not asked $1 times for $2"
}

# fake_scontrol: one on PATH that prints $GW_TMP/bin/answer, or does what $GW_TMP/bin/behave says
fake_scontrol() {
    mkdir -p "$GW_TMP/bin"
    cat >"$GW_TMP/bin/scontrol" <<'END'
#!/bin/sh
here=$(dirname "$0")
echo "$* TZ=$TZ" >>"$here/log"
[ ! -f "$here/behave" ] || . "$here/behave"
cat "$here/answer"
END
    chmod +x "$GW_TMP/bin/scontrol"
    : >"$GW_TMP/bin/log"
    PATH=$GW_TMP/bin:$PATH
}
# slurm_says STATE END [PREEMPTED]: as `scontrol show job 42` prints it; END in seconds from now, or Unknown
slurm_says() {
    local end=$2
    [ "$end" = Unknown ] || end=$(TZ=UTC0 date -d "@$(($(date +%s) + end))" +%Y-%m-%dT%H:%M:%S)
    cat >"$GW_TMP/bin/answer.new" <<END
JobId=42 JobName=x JobState=PREEMPTED
   UserId=user(1000) GroupId=user(1000) MCS_label=N/A
   JobState=$1 Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=2026-01-01T00:00:00 EndTime=$end Deadline=N/A
   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=${3:-None}
   Comment=PreemptTime=2026-11-23T05:00:00
END
    mv "$GW_TMP/bin/answer.new" "$GW_TMP/bin/answer"
}

# need_notice_job: a program that can ask the services, a tiny model ($MODEL) and a batch for it ($BATCH)
need_notice_job() {
    need_program
    "$GODWIT" notice --for 0 aws=http://127.0.0.1:1 >"$GW_TMP/out" 2>&1 || skip "$(sed 's/.*: //' "$GW_TMP/out")"
    export GODWIT_NOTICE_POLL_S=0.1
    MODEL=$GW_TMP/tiny.gguf BATCH=$GW_TMP/batch.jsonl
    "$GW_BUILDDIR/tests/support/make_tiny" "$MODEL" >"$GW_TMP/out" 2>&1 || { cat "$GW_TMP/out"; skip "make_tiny does not run"; }
    make_requests 60 5 >"$BATCH"
}
