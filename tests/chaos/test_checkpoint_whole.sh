#!/usr/bin/env bash
# A checkpoint holds far more than the staging memory of a rank takes at once: it is written in rounds, none of which saves a page for the second time. A job on the
# real model, slow once its prompts are computed, is killed as a whole when 48 MiB of KV are saved. In other layouts it then computes again only what was not. Nobody
# rebalances meanwhile: after that all pages would be saved once more.
# timeout: 300
# shellcheck disable=SC2034,SC2154 # lib.sh sets some and reads some
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
need_chaos_model "$GW_MODEL"
enough=$((48 << 20)) page_bytes=737280 page_tokens=32 # of SmolLM2-135M: 30 layers x (K, V) x 3 heads x 64 halves
BATCH=$GW_TMP/batch.jsonl
for i in {1..12}; do
    ids=$(awk -v seed="$i" 'BEGIN { srand(seed); for (i = 0; i < 224; i++) printf "%s%d", i ? "," : "", 100 + rand() * 40000 }')
    echo "{\"custom_id\":\"r$i\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":[$ids],\"max_tokens\":40,\"ignore_eos\":true}}"
done >"$BATCH"
common=(--context 512)
undisturbed --layout 1x1x1 "${common[@]}"

saved_bytes() { sed -n 's/.*"event":"checkpoint".*"bytes":\([0-9]*\).*/\1/p' "$1/events.jsonl" 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'; }
for layouts in 1x1x1:1x2x1 1x2x1:2x1x1 2x1x1:1x1x2; do
    out=$GW_TMP/${layouts%:*}
    begin_job "$out.log" "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q "${common[@]}" --layout "${layouts%:*}" --checkpoint 1 --no-rebalance \
        --chaos "slow:all,x50@step=8"
    for _ in {1..2000}; do
        job_runs || break
        [ "$(saved_bytes "$out")" -lt "$enough" ] || break
        sleep 0.05
    done
    job_runs || fail "$layouts: the job ended before $enough bytes were saved: $(cat "$out.log")"
    saved=$(saved_bytes "$out")
    kill_marked
    wait "$job_pid" 2>/dev/null || true
    drop_shm
    "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q "${common[@]}" --layout "${layouts#*:}" >"$out.log" 2>&1 || fail "$layouts: exit code $?: $(tail -n 3 "$out.log")"
    wrong=$(what_is_wrong "$out")
    [ -z "$wrong" ] || fail "$layouts: $wrong"
    restored=$(sed -n 's/.*"restored_tokens": \([0-9]*\).*/\1/p' "$out/status.json")
    least=$((saved / page_bytes * page_tokens * 9 / 10)) # a file has more bytes than its pages; the last page of a sequence is computed anyway
    [ "$restored" -ge "$least" ] || fail "$layouts: $restored tokens were restored, $saved bytes of KV saved: at least $least"
    echo "$layouts: $((saved >> 20)) MiB saved, $restored tokens restored"
done
