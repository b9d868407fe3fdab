#!/usr/bin/env bash
# The output digest of one batch over layouts, kernels, KV budgets and input orders: one line a run, and a verdict.
#
# usage: tests/reference/digest_matrix.sh [-g GODWIT] [-m MODEL] [-i BATCH] [-o SCRATCH] [-r] [LAYOUT...]
#   default: build/godwit, SmolLM2 and data/prompts/mixed256.jsonl as jobs/setup.sh leaves them; the eight layouts of docs/results.md
#   -r   the kernels run (1x1x1 with ref-fma and avx2, tight KV, shuffled input) too; ref-fma takes many minutes
# Exit code 1 when two digests differ. Not part of tests/run.sh: it takes tens of minutes on two cores.
set -u
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
godwit=$top/build/godwit model=$top/data/models/SmolLM2-135M-Instruct.Q4_1.gguf batch=$top/data/prompts/mixed256.jsonl
scratch=${TMPDIR:-/tmp}/godwit-digests.$$ more=no
while getopts g:m:i:o:r option; do
    case $option in
        g) godwit=$OPTARG ;; m) model=$OPTARG ;; i) batch=$OPTARG ;; o) scratch=$OPTARG ;; r) more=yes ;; *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
layouts=("$@")
[ ${#layouts[@]} != 0 ] || layouts=(1x1x1 2x1x1 1x2x1 1x3x1 1x1x2 1x1x4 2x3x1 1x2x2)
mkdir -p "$scratch"
first='' differ=0

# run NAME KERNELS BATCH OPTION...: one job, its digest and speed
run() {
    local name=$1 kernels=$2 input=$3 out=$scratch/$1 log=$scratch/$1.log digest rc=0
    shift 3
    rm -rf "$out"
    GODWIT_KERNELS=$kernels "$godwit" run -m "$model" -i "$input" -o "$out" --context 2048 -q "$@" >"$log" 2>&1 || rc=$?
    digest=$(sed -n 's/^digest  //p' "$log")
    [ -n "$first" ] || first=$digest
    local verdict=equal
    [ $rc = 0 ] && [ -n "$digest" ] && [ "$digest" = "$first" ] || { verdict=DIFFERS; differ=1; }
    printf '%-22s %-8s %s %s preemptions %s, prefix tokens shared %s; %s\n' "$name" "${kernels:-best}" "${digest:-(exit $rc)}" "$verdict" \
        "$(sed -n 's/.*"preemptions": \([0-9]*\).*/\1/p' "$out/status.json")" \
        "$(sed -n 's/.*"prefix_tokens_reused": \([0-9]*\).*/\1/p' "$out/status.json")" \
        "$(sed -n 's/.*; \([0-9]* tokens generated.*\) on .*/\1/p' "$log")"
}

for layout in "${layouts[@]}"; do run "$layout" "" "$batch" --layout "$layout"; done
if [ $more = yes ]; then
    run 1x1x1-avx2 avx2 "$batch" --layout 1x1x1
    run 1x1x1-tight-kv "" "$batch" --layout 1x1x1 --kv-memory 60M
    run 1x3x1-tight-kv "" "$batch" --layout 1x3x1 --kv-memory 20M
    shuf --random-source=<(yes 7) "$batch" >"$scratch/shuffled.jsonl"
    run 2x1x1-shuffled "" "$scratch/shuffled.jsonl" --layout 2x1x1
    run 1x1x1-rows64 "" "$batch" --layout 1x1x1 --step-rows 64 --max-seqs 17 --threads 1
    run 1x1x1-ref-fma ref-fma "$batch" --layout 1x1x1
fi
[ $differ = 0 ] && echo "all digests equal" || echo "DIGESTS DIFFER"
exit $differ
