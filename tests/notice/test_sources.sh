#!/usr/bin/env bash
# Sources of notices against local servers that speak like the metadata services of AWS, Azure and Google Cloud, well and badly, and against a scontrol
# that is told what to say.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/lib.sh"
need_program
export GODWIT_NOTICE_POLL_S=0.1

# watch OPTION...: godwit notice, its lines in $GW_TMP/said, its log in $GW_TMP/told
watch() {
    local rc=0
    timeout -k 5 60 "$GODWIT" notice "$@" >"$GW_TMP/said" 2>"$GW_TMP/told" || rc=$?
    [ $rc = 0 ] || { cat "$GW_TMP/told"; fail "godwit notice $*: exit code $rc"; }
}
# watch_warned COUNT SOURCE...: godwit notice until there are so many warnings, and a little longer, in which there could be more
watch_warned() {
    local wanted=$1 tries rc=0
    shift
    "$GODWIT" notice "$@" >"$GW_TMP/said" 2>"$GW_TMP/told" &
    watcher=$!
    for tries in {1..600}; do
        [ "$(grep -c warning "$GW_TMP/told" || true)" -lt "$wanted" ] || break
        sleep 0.1
    done
    sleep 1.5
    kill -TERM $watcher
    wait $watcher || rc=$?
    [ $rc = 0 ] || { cat "$GW_TMP/told"; fail "godwit notice $*: exit code $rc"; }
}
said() { grep -qE "$1" "$GW_TMP/said" || { cat "$GW_TMP/said" "$GW_TMP/told" "$cloud/log"; fail "it did not say '$1'"; }; }
told() { grep -qE "$1" "$GW_TMP/told" || { cat "$GW_TMP/said" "$GW_TMP/told"; fail "it did not tell '$1'"; }; }
silent() { [ ! -s "$GW_TMP/said" ] || { cat "$GW_TMP/said"; fail "it said something: $1"; }; }
lines() { wc -l <"$GW_TMP/said"; }

# ---- wrong usage, before anything is asked
expect_exit 2 "$GODWIT" notice
expect_exit 2 "$GODWIT" notice somewhere
expect_exit 2 "$GODWIT" notice ./file
expect_exit 2 "$GODWIT" notice slurm=soon
if ! "$GODWIT" notice --for 0 aws=http://127.0.0.1:1 >"$GW_TMP/out" 2>&1; then
    grep -q 'built without libcurl' "$GW_TMP/out" || { cat "$GW_TMP/out"; fail "aws is refused"; }
    no_curl=yes
fi

if [ -z "${no_curl:-}" ]; then
expect_exit 2 "$GODWIT" notice aws=https://127.0.0.1
expect_exit 2 "$GODWIT" notice aws+ack
start_server

# ---- AWS: nothing, a recommendation, the end; one token for all; each said once
quiet
watch --for 0.5 "aws=$server"
silent "AWS is quiet"
expect_equal "tokens" "$(asked 'PUT /latest/api/token 200')" 1
[ "$(asked 'instance-action 404')" -gt 1 ] || fail "AWS was asked once only"
expect_equal "refused" "$(asked ' 40[013]$')" 0
touch "$cloud/rebalance"
watch --for 0.5 "aws=$server"
said '^early 0.0 AWS recommends'
expect_equal "lines" "$(lines)" 1
echo 90 >"$cloud/action"
watch --for 0.5 "aws=$server"
said '^leave (8[0-9]|90)\.[0-9] AWS takes this spot instance away \(terminate\)'
expect_equal "lines" "$(lines)" 1
# a proxy of the environment is not asked (there is none at that address), and a slash more is no harm
http_proxy=http://127.0.0.1:1 ALL_PROXY=http://127.0.0.1:1 watch --first "aws=$server/"
said '^leave '
# a time that is over
echo -5 >"$cloud/action"
watch --first "aws=$server"
said '^leave 0.0 '

# ---- a token that expires in between is asked for anew, without a word
quiet
"$GODWIT" notice --first "aws=$server" >"$GW_TMP/said" 2>"$GW_TMP/told" &
watcher=$!
wait_asked 2 'instance-action 404'
touch "$cloud/expire"
wait_asked 2 'PUT /latest/api/token 200'
echo 60 >"$cloud/action"
wait $watcher || fail "godwit notice: $?"
said '^leave '
expect_equal "refused" "$(asked 'instance-action 401')" 1
expect_equal "warnings" "$(grep -c warning "$GW_TMP/told" || true)" 0

# ---- Azure: events of this machine; no word to Azure unless it is wanted
quiet
echo 30 >"$cloud/events"
watch --first --acknowledge "azure=$server"
said '^leave (2[0-9]|30)\.[0-9] Azure takes away or restarts this machine \(Preempt, Scheduled\)'
[ ! -e "$cloud/acknowledged" ] || fail "Azure was told unasked"
watch --first --acknowledge "azure+ack=$server"
expect_equal "told to Azure" "$(cat "$cloud/acknowledged")" '{"StartRequests":[{"EventId":"A123BC45-1234-5678-AB90-ABCDEF123456"}]}'
rm "$cloud/events"
echo '{"Events":[{"EventId":"e","EventType":"Freeze","EventStatus":"Started","Resources":["fake-vm_1"],"NotBefore":""},
    {"EventId":"f","EventType":"Preempt","EventStatus":"Started","Resources":["another"],"NotBefore":""}]}' >"$cloud/events.json"
watch --for 0.5 "azure=$server"
said '^early 0.0 Azure stops for a moment this machine'
expect_equal "lines" "$(lines)" 1

# ---- Google Cloud: the question that waits is answered when something changes
quiet
GODWIT_NOTICE_POLL_S=3 "$GODWIT" notice --first "gcp=$server" >"$GW_TMP/said" 2>"$GW_TMP/told" &
watcher=$!
wait_asked 1 'maintenance-event 200'
touch "$cloud/preempted"
wait $watcher || fail "godwit notice: $?"
said '^leave (29|30)\.[0-9] Google Cloud preempts this machine'
grep -q 'wait_for_change=true&timeout_sec=5&last_etag=etagFALSE 200' "$cloud/log" || { cat "$cloud/log"; fail "the question did not wait"; }
quiet
echo TERMINATE_ON_HOST_MAINTENANCE >"$cloud/maintenance"
watch --first "gcp=$server"
said '^leave (59|60)\.[0-9] Google Cloud ends this machine for maintenance'

# ---- all at once, in one list and several
quiet
echo 30 >"$cloud/events"; echo 90 >"$cloud/action"; touch "$cloud/preempted"
watch --for 1.5 "aws=$server,gcp=$server" "azure=$server"
expect_equal "sources that spoke" "$(grep -c ^leave "$GW_TMP/said")" 3

# ---- servers that misbehave: never a notice, one warning each, and godwit ends in time
for how in 500 404 redirect garbage empty close huge drip slow noflavor; do
    quiet
    echo 30 >"$cloud/events"; echo 90 >"$cloud/action"; touch "$cloud/preempted"
    echo "$how" >"$cloud/misbehave"
    if [ $how = noflavor ]; then watch_warned 1 "gcp=$server"
    elif [ $how = drip ]; then watch_warned 1 "aws=$server"; else watch_warned 3 "aws=$server" "gcp=$server" "azure=$server"; fi
    silent "$how"
    expect_equal "$how: a question to where it was sent" "$(asked elsewhere)" 0
    for cloud_name in AWS 'Google Cloud' Azure; do
        warnings=$(grep -c "warning: no notices from $cloud_name:" "$GW_TMP/told" || true)
        case $how,$cloud_name in
            noflavor,AWS | noflavor,Azure | drip,Azure | drip,Google*) expect_equal "$how: $cloud_name" "$warnings" 0 ;;
            *) [ "$warnings" = 1 ] || { cat "$GW_TMP/told"; fail "$how: $warnings warnings of $cloud_name"; } ;;
        esac
    done
done
told "not Google Cloud's metadata server"
# and when it is well again it is listened to
quiet
echo 500 >"$cloud/misbehave"
"$GODWIT" notice --first "aws=$server" >"$GW_TMP/said" 2>"$GW_TMP/told" &
watcher=$!
wait_asked 2 ' 500$'
rm "$cloud/misbehave"
echo 60 >"$cloud/action"
wait $watcher || fail "godwit notice: $?"
said '^leave '
stop_server
# nobody there
watch_warned 1 "aws=$server"
silent "nobody is there"
expect_equal "warnings" "$(grep -c 'warning: no notices from AWS' "$GW_TMP/told")" 1
fi

# ---- Slurm
unset SLURM_JOB_ID
watch --for 0 slurm
told 'no notices from Slurm: this is no Slurm job'
export SLURM_JOB_ID=42
before=$PATH
mkdir -p "$GW_TMP/empty"
PATH=$GW_TMP/empty "$GODWIT" notice --for 0 slurm 2>"$GW_TMP/told" || fail "without scontrol: $?"
told 'no notices from Slurm: there is no scontrol on PATH'
fake_scontrol
slurm_says RUNNING 3000
TZ=Pacific/Auckland watch --for 0.5 slurm
silent "the job runs"
expect_equal "how scontrol was asked" "$(sort -u "$GW_TMP/bin/log")" 'show job 42 TZ=UTC0'
watch --first slurm=3600
said '^limit (29[0-9][0-9]|3000)\.[0-9] the time limit of Slurm job 42'
slurm_says RUNNING Unknown
watch --for 0.5 slurm=86400
silent "no end"
slurm_says RUNNING 20 2026-10-01T00:00:00
watch --first slurm=0
said '^leave (1[0-9]|20)\.[0-9] Slurm preempts job 42'
slurm_says COMPLETING 3000
watch --first slurm
said '^leave [0-5]\.[0-9] Slurm ends job 42: its state is COMPLETING'
slurm_says PENDING Unknown
watch --first slurm
said '^leave [0-5]\.[0-9] Slurm ends job 42: its state is PENDING'
# it misbehaves: says no, says too much, says nonsense, says nothing
for how in 'echo slurm_load_jobs error: no >&2; exit 1' 'while :; do echo x; done' 'echo nonsense; exit 0' 'exit 0' 'kill -9 $$'; do
    echo "$how" >"$GW_TMP/bin/behave"
    watch_warned 1 slurm
    silent "$how"
    expect_equal "'$how': warnings" "$(grep -c 'warning: no notices from Slurm' "$GW_TMP/told")" 1
done
echo 'echo slurm_load_jobs error: no >&2; exit 1' >"$GW_TMP/bin/behave"
watch_warned 1 slurm
told 'exit code 1\): slurm_load_jobs error: no'
# one that hangs, with a child of its own, goes when godwit goes
cat >"$GW_TMP/bin/behave" <<'END'
echo $$ >>"$here/pids"
sleep 300 &
echo $! >>"$here/pids"
wait
END
watch --for 1 slurm
silent "it hangs"
[ -s "$GW_TMP/bin/pids" ] || fail "scontrol was not asked"
for pid in $(cat "$GW_TMP/bin/pids"); do
    for tries in {1..100}; do
        grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$pid/status" || break
        [ "$tries" != 100 ] || fail "process $pid of scontrol is still there"
        sleep 0.05
    done
done
PATH=$before
echo "sources: good, bad and hanging ones${no_curl:+ (Slurm alone: built without libcurl)}"
