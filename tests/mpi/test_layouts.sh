#!/usr/bin/env bash
# One batch, one digest: over layouts, kernels, KV budgets, step sizes, threads, input orders and model kinds, on tiny models.
# timeout: 900
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_make_tiny

BATCH=$GW_TMP/batch.jsonl
make_requests 36 1 >"$BATCH"
echo 'this is no request' >>"$BATCH"

MODEL=$GW_TMP/llama.gguf
"$make_tiny" --arch llama --type q4_1 "$MODEL"
kernels=($(kernels_here))
echo "kernels of this CPU: ${kernels[*]}"
wanted=$(run_job "$GW_TMP/base" --layout 1x1x1 --context 512)
[ ${#wanted} = 64 ] || fail "no digest: $wanted"
expect_exit 0 "$GODWIT" verify "$GW_TMP/base"
[ "$(status_of "$GW_TMP/base" prefix_tokens_reused)" -gt 500 ] || fail "the common system prompt was not shared"

number=0
for layout in 2x1x1 1x2x1 1x3x1 1x1x2 1x1x4 2x3x1 1x2x2 2x1x2 1x4x1 1x3x2 3x1x1; do
    k=${kernels[$((number % ${#kernels[@]}))]}
    number=$((number + 1))
    expect_equal "digest of $layout with $k" "$(GODWIT_KERNELS=$k run_job "$GW_TMP/$layout" --layout $layout --context 512)" "$wanted"
    expect_gone "$GW_TMP/$layout"
    rm -rf "${GW_TMP:?}/$layout"
done
# shards of one node exchange through memory of its store; without one by messages, as those of several nodes do
for layout in 1x2x1 1x3x1 1x4x1; do
    expect_equal "digest of $layout without a store" "$(run_job "$GW_TMP/messages" --layout $layout --context 512 --no-store)" "$wanted"
    rm -rf "$GW_TMP/messages"
done
for k in "${kernels[@]}"; do
    expect_equal "digest with $k" "$(GODWIT_KERNELS=$k run_job "$GW_TMP/k-$k" --layout 1x1x1 --context 512 --threads 2)" "$wanted"
done

# a KV cache of 10 pages for answers that grow to 5: sequences are preempted and recomputed
awk 'BEGIN { for (i = 0; i < 14; i++) printf "{\"id\":\"g%d\",\"prompt\":\"sea bird %d\",\"max_tokens\":150,\"ignore_eos\":true,\"seed\":%d}\n", i, i, i }' >"$GW_TMP/grow.jsonl"
for tight in 1x1x1:750K 1x1x2:375K; do
    layout=${tight%:*}
    expect_equal "digest with tight KV on $layout" \
        "$(BATCH=$GW_TMP/grow.jsonl run_job "$GW_TMP/tight-$layout" --layout $layout --context 256 --kv-memory "${tight#*:}")" \
        "$(BATCH=$GW_TMP/grow.jsonl run_job "$GW_TMP/ample-$layout" --layout 1x2x1 --context 256)"
    [ "$(status_of "$GW_TMP/tight-$layout" preemptions)" -gt 0 ] || fail "no sequence was preempted: the tight KV budget is not tight"
done
expect_equal "digest with small steps" "$(run_job "$GW_TMP/rows" --layout 1x1x2 --context 512 --step-rows 9 --max-seqs 9)" "$wanted"
expect_equal "digest one at a time" "$(run_job "$GW_TMP/one" --layout 1x1x1 --context 512 --max-seqs 1)" "$wanted"

sort -R --random-source=<(yes 3) "$BATCH" >"$GW_TMP/shuffled.jsonl"
expect_equal "digest of shuffled lines" "$(BATCH=$GW_TMP/shuffled.jsonl run_job "$GW_TMP/shuffled" --layout 2x1x1 --context 512)" "$wanted"
# the oracle can tell: another seed for what names none, another digest
sed 's/,"seed":[0-9]*//' "$BATCH" >"$GW_TMP/seedless.jsonl"
a=$(BATCH=$GW_TMP/seedless.jsonl run_job "$GW_TMP/seed1" --layout 1x1x1 --context 512 --seed 1)
b=$(BATCH=$GW_TMP/seedless.jsonl run_job "$GW_TMP/seed2" --layout 1x1x1 --context 512 --seed 2)
[ "$a" != "$b" ] || fail "two seeds gave one digest"

for spec in "qwen2 q4_k" "llama q6_k" "llama f16 --untied" "qwen2 q8_0 --rope linear --rope-factor 2" "llama q5_0"; do
    # shellcheck disable=SC2086 # words are wanted
    set -- $spec
    MODEL=$GW_TMP/model-$1-$2.gguf
    "$make_tiny" --arch "$1" --type "$2" "${@:3}" "$MODEL"
    wanted=$(run_job "$GW_TMP/m1" --layout 1x1x1 --context 512)
    for layout in 1x2x1 1x1x3 2x2x1; do
        expect_equal "digest of $spec on $layout" "$(run_job "$GW_TMP/m2" --layout $layout --context 512)" "$wanted"
        rm -rf "$GW_TMP/m2"
    done
    rm -rf "$GW_TMP/m1"
done
echo "all digests equal"
