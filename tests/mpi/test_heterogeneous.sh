#!/usr/bin/env bash
# Ranks that are not alike: other kernels on some of them, as on nodes of different kinds, and one that becomes slow while the job runs. Work is
# shared out by speed, the slow one is found and left out or given less, and the digest is that of one undisturbed process.
# timeout: 400
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny
MODEL=$GW_TMP/tiny.gguf BATCH=$GW_TMP/batch.jsonl
"$make_tiny" --layers 12 "$MODEL"
expect_grep() { grep -qE "$2" "$3" || fail "$1: no $2 in $3: $(grep -E '"event":"(plan|pace)"' "$3")"; }

make_requests 40 1 >"$BATCH"
wanted=$(run_job "$GW_TMP/alone" --layout 1x1x1 --context 512)
here=($(kernels_here))
kernels=${here[-1]},ref # the last is the best
for layout in 1x1x2 1x2x1 1x1x3 2x2x1; do
    expect_equal "digest of $layout with $kernels" \
        "$(GODWIT_KERNELS=$kernels run_job "$GW_TMP/$layout" --layout $layout --context 512 --spares 0)" "$wanted"
    expect_grep "speeds at $layout" '"speeds":\[1.0,0' "$GW_TMP/$layout/events.jsonl"
done
for layout in 1x1x2 1x1x3; do expect_grep "the split of $layout" '"split":"'$layout' stages 8:' "$GW_TMP/$layout/events.jsonl"; done
expect_grep "the split of 1x2x1" '"split":"1x2x1 shards 8:' "$GW_TMP/1x2x1/events.jsonl"
# what one kind of kernels has packed and computed, another takes over
expect_equal "digest with a loss and a new layout" "$(GODWIT_KERNELS=$kernels run_job "$GW_TMP/loss" --layout 1x2x2 --context 512 --spares 1 \
    --chaos 'kill:1@step=20; kill:2@step=60')" "$wanted"

make_requests 1000 2 >"$BATCH"
wanted=$(run_job "$GW_TMP/long" --layout 1x1x1 --context 512)
for spares in 0 1; do
    out=$GW_TMP/slow$spares
    expect_equal "digest with a slow rank, $spares spares" \
        "$(run_job "$out" --layout 1x1x2 --context 512 --spares $spares --chaos 'slow:1,x20@step=20')" "$wanted"
    expect_grep "the slow rank is found" '"event":"pace","member":1,"change":"slower"' "$out/events.jsonl"
    plans=$(grep -c '"event":"plan"' "$out/events.jsonl")
    [ "$plans" -gt 1 ] || fail "the slow rank has its place still: $(grep '"event":"p' "$out/events.jsonl")"
done
expect_grep "less for the slow rank" '"split":"1x1x2 stages 8:[1-7]"' "$GW_TMP/slow0/events.jsonl"
run_job "$GW_TMP/kept" --layout 1x1x2 --context 512 --spares 0 --no-rebalance --chaos 'slow:1,x3@step=20' >/dev/null
! grep -q '"event":"pace"' "$GW_TMP/kept/events.jsonl" || fail "--no-rebalance plans anew"
