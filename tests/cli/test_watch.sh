#!/usr/bin/env bash
# A job that loses a rank is watched: status once, --watch as plain lines to its end and on a terminal with Ctrl-C, metrics that a strict reader
# accepts, a report that names the loss and the digest, last words on stdout; names in OUTDIR that try to speak to the terminal.
# timeout: 240
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
cd "$GW_TMP"
MODEL=tiny.gguf BATCH=batch.jsonl
"$make_tiny" --arch llama --type q4_1 "$MODEL"
make_requests 120 5 >"$BATCH"
background=()
stop_background() {
    local pid
    for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
    gw_test_end
}
trap stop_background EXIT

# Nothing there yet: said, not crashed.
expect_exit 6 "$GODWIT" status nowhere
expect_exit 6 "$GODWIT" status --watch nowhere
expect_exit 2 "$GODWIT" status --watch --report nowhere

# The job, watched from its beginning to its end.
mkdir job
timeout 120 "$GODWIT" status --watch job >lines 2>&1 &
watcher=$!
background+=("$watcher")
digest=$(run_job job -n 2 --layout 2x1x1 --chaos 'kill:1@step=10; notice:0,grace=1s@step=25')
wait "$watcher" || fail "status --watch exited $?"
background=()
grep -q '^done ' lines || { cat lines; fail "status --watch does not say that the job is done"; }
grep -qP '[\x00-\x08\x0b-\x1f]' lines && fail "status --watch writes control characters into a file"

"$GODWIT" status job >status
for word in '^state     done' '^progress  120/120 requests' '^tokens ' '^layout ' '^lost      [1-9]' '^  rank 0 '; do
    grep -q "$word" status || { cat status; fail "status does not say '$word'"; }
done

# Last words, for the log of a batch system.
for word in '^time .*lost' '^events  .*rank.* lost, 1 notice' '^report  job/report.html'; do
    grep -q "$word" job.log || { cat job.log; fail "run does not end with '$word'"; }
done

# The report: the loss, the digest, and nothing from elsewhere. Written anew on order.
check_report() {
    grep -q "$digest" job/report.html || fail "$1: the report has no digest"
    grep -q 'lost 1 rank: member 1' job/report.html || fail "$1: the report does not name the loss"
    grep -q 'member 0 goes' job/report.html || fail "$1: the report does not name the notice"
    grep -qE '<script|(src|href)=' job/report.html && fail "$1: the report refers to something else"
    grep -q '</html>' job/report.html || fail "$1: the report is not whole"
}
check_report "after the run"
rm job/report.html
"$GODWIT" status --report job >/dev/null
check_report "on order"

# Metrics: every sample after HELP and TYPE of its name, and the figures of status.json.
awk '
    /^# HELP godwit_[a-z_]+ .+$/ { help = $3; next }
    /^# TYPE godwit_[a-z_]+ (gauge|counter)$/ { if ($3 != help) { print "TYPE without HELP: " $0; bad = 1 } type = $3; next }
    /^godwit_[a-z_]+\{batch="[^"]+"(,[a-z]+="[^"]*")*\} -?[0-9][-+.e0-9]*$/ { n++; if (index($0, type "{") != 1) { print "not below its TYPE: " $0; bad = 1 } next }
    { print "not a line of metrics: " $0; bad = 1 }
    END { if (n < 30) print n + 0 " samples"; exit bad || n < 30 }' job/metrics.prom || fail "metrics.prom"
metric() { sed -n "s/^godwit_$1{[^}]*} //p" job/metrics.prom; }
expect_equal "requests done" "$(metric requests_done_total)" "$(status_of job requests_done)"
expect_equal "tokens" "$(metric tokens_committed_total)" "$(status_of job generated_tokens)"
expect_equal "ranks lost" "$(metric ranks_lost_total)" "$(status_of job lost_ranks)"
expect_equal "notices" "$(metric notices_total)" 1
[ "$(tail -n 1 job/history.jsonl | sed 's/.*"tokens":\([0-9]*\).*/\1/')" = "$(status_of job generated_tokens)" ] ||
    fail "history.jsonl does not end with the last count of tokens"

# A job whose processes are gone, with names that are commands to a terminal and lines that a crash has cut off.
cp -r job gone
sed -i 's/"state": "done"/"state": "running"/; s/"updated_at": [0-9.]*/"updated_at": 1700000000.0/; s/"model": "[^"]*"/"model": "\\u001b[2Jevil\\u009b"/' gone/status.json
printf '{"ranks":[{"rank":0,"member":0,"pid":1,"host":"\\u001b]0;owned\\u0007<script>"},{"rank":1' >gone/ranks.json
printf '{"time":1700000001.0,"event":"\\u001b[31m","host":"<script>alert(1)</script>"}\n{"time":17000' >>gone/events.jsonl
"$GODWIT" status gone >status
grep -q 'silent' status && grep -q 'same run command carries on' status || { cat status; fail "status does not say that nobody writes any more"; }
grep -qP '[\x00-\x08\x0b-\x1f]' status && fail "status passes control characters on"
"$GODWIT" status --report gone >/dev/null || fail "no report of damaged files"
grep -q '<script' gone/report.html && fail "the report passes markup on"

# On a terminal: a frame on the alternate screen no wider than it, Ctrl-C leaves and everything is as before.
if command -v script >/dev/null; then
    printf '{"ranks":[]}' >gone/ranks.json
    cat >watch.sh <<EOF
stty cols 50 rows 12
"$GODWIT" status --watch gone & pid=\$!
sleep 2
kill -INT \$pid
wait \$pid
echo "exit \$?"
EOF
    TERM=xterm timeout 60 script -qefc "bash -m watch.sh" typescript >/dev/null 2>&1 </dev/null || fail "status --watch on a terminal"
    tr -d '\r' <typescript >plain
    grep -q 'exit 0' plain || { cat -v plain; fail "Ctrl-C does not end status --watch"; }
    grep -qF $'\e[?1049h' plain && grep -qF $'\e[?1049l' plain && grep -qF $'\e[?25h' plain || { cat -v plain; fail "the terminal is not left as it was"; }
    grep -qF $'\e[2J' plain && fail "a model's name clears the screen"
    grep -q 'silent' plain || fail "the view does not say that nobody writes any more"
    width=$(sed 's/\x1b\[[?0-9;]*[a-zA-Z]//g' plain | grep -vE '^(Script|exit)' | wc -L)
    [ "$width" -le 50 ] && [ "$width" -ge 30 ] || { cat -v plain; fail "lines of $width characters on a terminal of 50"; }
else
    echo "no 'script' here: the view on a terminal was not tried"
fi
echo "watched: $(wc -l <lines) lines, $(grep -c . job/metrics.prom) of metrics, report of $(wc -c <job/report.html) bytes"
