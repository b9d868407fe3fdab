#!/usr/bin/env bash
# Instruction counts (callgrind) of fixed small pieces of work against the committed ones: `make check` fails when one costs more.
#
# usage: tests/bench/instructions.sh [--write]
#   --write   write tests/bench/instructions.txt anew, after a change that is meant to change the counts
#
# A count that is more than 2 % above the committed one (GW_COUNT_MARGIN: per cent) is a failure; one that is as far below asks for
# --write, so that what was won is kept. The AVX2 table is counted: valgrind does not know AVX-512. Counts belong to a compiler, its
# options and a valgrind; with others, or without valgrind, the test is skipped and says why.
set -euo pipefail
srcdir=${GW_SRCDIR:-$(cd "$(dirname "$0")/../.." && pwd)}
builddir=${GW_BUILDDIR:-$srcdir/build}
margin=${GW_COUNT_MARGIN:-2}
counts=$srcdir/tests/bench/instructions.txt
program=$builddir/tests/bench/count_instructions
make_tiny=$builddir/tests/support/make_tiny
skip() { echo "instructions: $*"; exit 77; }

command -v valgrind >/dev/null 2>&1 || skip "valgrind is not installed"
for file in "$program" "$make_tiny"; do
    [ -x "$file" ] || { echo "there is no $file: make check builds it"; exit 1; }
done
build="$(valgrind --version); $("$program" --build)"
case $build in *-fsanitize*) skip "counts are of a build without sanitizers" ;; esac
if [ "${1:-}" != --write ]; then
    committed=$(sed -n 's/^# build: //p' "$counts")
    [ "$build" = "$committed" ] || skip "this build is '$build', the counts are of '$committed'"
fi

tmp=$(mktemp -d "${TMPDIR:-/tmp}/gw-count.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
"$make_tiny" "$tmp/tiny.gguf"
GODWIT_KERNELS=avx2 "$program" "$tmp/tiny.gguf" >/dev/null 2>"$tmp/log" || {
    grep -q 'cannot run on this CPU' "$tmp/log" && skip "this CPU has no AVX2"
    cat "$tmp/log"
    exit 1
}
GODWIT_KERNELS=avx2 timeout -k 5 300 valgrind --tool=callgrind --callgrind-out-file="$tmp/out" --zero-before=counted \
    --dump-after=counted "$program" "$tmp/tiny.gguf" >"$tmp/names" 2>"$tmp/log" || { tail -n 20 "$tmp/log"; exit 1; }
number=0
while read -r name; do
    number=$((number + 1))
    echo "$name $(sed -n 's/^totals: *//p' "$tmp/out.$number")"
done <"$tmp/names" >"$tmp/counts"

if [ "${1:-}" = --write ]; then
    {
        echo "# Instructions of the cases of count_instructions.c, AVX2 kernels; tests/bench/instructions.sh --write writes this file."
        echo "# build: $build"
        cat "$tmp/counts"
    } >"$counts"
    echo "wrote $(wc -l <"$tmp/counts") counts to $counts"
    exit 0
fi
awk -v margin="$margin" '
    /^#/ { next }
    FNR == NR { committed[$1] = $2; next }
    {
        seen[$1] = 1
        if (!($1 in committed)) { printf "%-22s %12d   is not in instructions.txt\n", $1, $2; bad++; next }
        change = 100 * ($2 - committed[$1]) / committed[$1]
        verdict = ""
        if (change > margin) { verdict = "MORE"; bad++ }
        if (change < -margin) { verdict = "less: keep it with --write"; less++ }
        printf "%-22s %12d %12d %+7.2f %% %s\n", $1, committed[$1], $2, change, verdict
    }
    END {
        for (name in committed) if (!(name in seen)) { printf "%s was not counted\n", name; bad++ }
        if (bad) printf "%d cases cost more than the committed counts, or differ from them in name; if that is meant: tests/bench/instructions.sh --write\n", bad
        exit bad > 0
    }' "$counts" "$tmp/counts"
