#!/usr/bin/env bash
# Damaged checkpoints and full disks, as a job meets them: a job is killed as a whole when it has checkpoints; then copies of its OUTDIR are
# damaged in one way each (a bit flipped, a file cut or gone, the manifest torn) and carried on in another layout. What is damaged is named,
# what it held is computed again, the digest is the undisturbed one. Then the disk is full at the N-th write, for N = 1 .. 24: the job
# ends with exit code 6 or goes on without that checkpoint, and the same command carries on.
# (Every region of a file, and every write of a checkpoint, one by one: tests/unit/test_checkpoint.)
# timeout: 600
# shellcheck disable=SC2034,SC2154 # lib.sh sets some and reads some
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_chaos_model ''
make_chaos_batch 60 120 300
common=(--context 512 --max-seqs 8)
undisturbed --layout 1x1x1 "${common[@]}"

job() { "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$1" -q "${common[@]}" "${@:2}"; }

# an OUTDIR with checkpoints and committed tokens, whose job was killed
state=$GW_TMP/state
for _ in 1 2 3 4 5; do
    rm -rf "$state"
    begin_job "$GW_TMP/state.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$state" -q "${common[@]}" --layout 1x2x1 --checkpoint 0.1 \
        --chaos "slow:all,x20@step=1" # so that it is in the midst of its batch when it is killed
    for _ in {1..300}; do
        job_runs || break
        checkpoints=$(grep -c "\"checkpoint\"" "$state/events.jsonl" 2>/dev/null || true)
        [ "${checkpoints:-0}" -lt 2 ] || break
        sleep 0.02
    done
    kill_marked
    wait "$job_pid" 2>/dev/null || true
    drop_shm
    ls "$state"/context/*.h5 >/dev/null 2>&1 && break
done
file=$(ls -S "$state"/context/*.h5 | head -n 1) || fail "no checkpoint was written: $(cat "$GW_TMP/state.log")"
name=$(basename "$file") bytes=$(stat -c %s "$file")

out=$GW_TMP/out
restored() { sed -n 's/.*"restored_tokens": \([0-9]*\).*/\1/p' "$out/status.json"; }
cases=0 named=0
check() { # WHAT LAYOUT
    job "$out" --layout "$2" --checkpoint 60 >"$out.log" 2>&1 || fail "$1: exit code $?: $(tail -n 3 "$out.log")"
    wrong=$(what_is_wrong "$out")
    [ -z "$wrong" ] || fail "$1: $wrong"
    cases=$((cases + 1))
    if grep -q 'warning.*\(h5\|manifest\)' "$out.log"; then named=$((named + 1)); fi
}
copy() { rm -rf "$out"; cp -r "$state" "$out"; }

copy; check "undamaged" 1x1x2
whole=$(restored)
[ "$whole" -gt 0 ] || fail "nothing was restored from an undamaged checkpoint"
for layout in 1x1x1 2x1x1 1x2x2; do
    copy; check "undamaged" $layout
    [ "$(restored)" -gt 0 ] || fail "nothing was restored in layout $layout"
done
faults=0
for i in {0..19}; do # bits flipped all over the file
    copy
    at=$((bytes * i / 20 + (i * 7919) % (bytes / 20)))
    byte=$(od -An -tu1 -j $at -N1 "$out/context/$name")
    printf "\\x$(printf %02x $((byte ^ (1 << (i % 8)))))" | dd of="$out/context/$name" bs=1 seek=$at conv=notrunc status=none
    check "bit flipped at $at of $bytes" 2x1x1
    faults=$((faults + 1))
done
for part in 0 1 25 50 75 99; do
    copy
    truncate -s $((bytes * part / 100)) "$out/context/$name"
    check "cut to $part %" 1x1x2
    faults=$((faults + 1))
done
copy; rm "$out/context/$name"; check "file gone" 1x2x1
copy; truncate -s 20 "$out/context/manifest.json"; check "manifest torn" 1x2x1
copy; for f in "$out"/context/*.h5; do : >"$f"; done; check "all files empty" 1x2x1
[ "$named" -ge $((faults + 1)) ] || fail "only $named of $faults damaged files were named"
echo "$cases jobs carried on, $faults damaged files, $named warnings; $whole tokens restored where nothing was damaged"

full=0
for n in {1..24}; do
    rm -rf "$out"
    rc=0
    job "$out" --layout 2x1x1 --checkpoint 0.1 --chaos "fail-write:$n" >"$out.log" 2>&1 || rc=$?
    [ $rc = 0 ] || { [ $rc = 6 ] || fail "disk full at write $n: exit code $rc: $(tail -n 3 "$out.log")"; full=$((full + 1)); }
    [ $rc = 0 ] || grep -q 'No space left' "$out.log" || fail "disk full at write $n is not named: $(cat "$out.log")"
    job "$out" --layout 1x1x1 >"$out.log" 2>&1 || fail "carried on after a full disk at write $n: $(tail -n 3 "$out.log")"
    wrong=$(what_is_wrong "$out")
    [ -z "$wrong" ] || fail "disk full at write $n: $wrong"
done
echo "disk full at 24 writes: $full jobs ended with 6, the others went on; all carried on"
