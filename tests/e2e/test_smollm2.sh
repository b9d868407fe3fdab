#!/usr/bin/env bash
# The real model, real prompts: one digest over layouts and kernels; perplexity as it was measured.
# timeout: 900
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
need_program
need_model
MODEL=$GW_MODEL BATCH=$GW_TMP/batch.jsonl
if [ -f "$GW_PROMPTS/mixed256.jsonl" ]; then
    awk 'NR % 11 == 1' "$GW_PROMPTS/mixed256.jsonl" | sed 's/"max_tokens": [0-9]*/"max_tokens": 24/' >"$BATCH"
else
    make_requests 24 1 >"$BATCH"
fi
wanted=$(run_job "$GW_TMP/1x1x1" --layout 1x1x1 --context 1024)
expect_exit 0 "$GODWIT" verify "$GW_TMP/1x1x1"
for layout in 2x1x1 1x3x1 1x2x2; do
    expect_equal "digest of $layout" "$(run_job "$GW_TMP/$layout" --layout $layout --context 1024)" "$wanted"
    answered=$(grep -o '"completion_tokens": *[0-9]*' "$GW_TMP/$layout/output.jsonl" | awk -F: '{n += $2} END {print n}')
    told=$(grep -o '"generated_tokens": *[0-9]*' "$GW_TMP/$layout/status.json" | awk -F: '{print $2 + 0}')
    expect_equal "tokens generated at $layout" "$told" "$answered"
done
for k in $(kernels_here); do
    case $k in ref | ref-fma) continue ;; esac # below
    expect_equal "digest with $k" "$(GODWIT_KERNELS=$k run_job "$GW_TMP/$k" --layout 1x1x1 --context 1024)" "$wanted"
done

# the reference kernels take long on a real model: few prompts, few tokens
head -n 3 "$BATCH" | sed 's/"max_tokens": *[0-9]*/"max_tokens": 6/' >"$GW_TMP/few.jsonl"
BATCH=$GW_TMP/few.jsonl
wanted=$(run_job "$GW_TMP/few" --layout 1x1x1 --context 1024)
for k in $(kernels_here); do
    case $k in ref | ref-fma) ;; *) continue ;; esac
    expect_equal "digest with $k" "$(GODWIT_KERNELS=$k run_job "$GW_TMP/few-$k" --layout 1x1x1 --context 1024)" "$wanted"
done
