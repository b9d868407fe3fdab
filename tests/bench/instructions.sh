#!/usr/bin/env bash
# Instructions of fixed small cases, counted by callgrind, against those in tests/bench/instructions.txt: a figure that does not depend
# on how busy the machine is. Part of `make check`. A case fails when it takes over 2 % more instructions than the file says, and is
# named when it takes over 2 % less. (Seconds and AVX-512 are not seen: valgrind runs the AVX2 table. `godwit bench` measures both.)
#
# usage: instructions.sh [--update]     --update writes the counts of this build into the file
#
# Counts are those of one compiler with its options, named in the file's first line; with others there is nothing to compare and the
# test is skipped.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

margin_percent=2
expected=$GW_SRCDIR/tests/bench/instructions.txt
program=$GW_BUILDDIR/tests/bench/instruction_cases

need_tool valgrind
[ -x "$program" ] || skip "there is no $program (make check builds it)"
build=$("$program" --build)
case $build in *-fsanitize*) skip "a build with sanitizers cannot run under valgrind" ;; esac
if [ "${1-}" != --update ] && [ "$build" != "$(sed -n 's/^# build: //p' "$expected")" ]; then
    skip "counts are known of $(sed -n 's/^# build: //p' "$expected"); this build is $build"
fi

# (there is no such model: it ends after the kernels' own cases)
GODWIT_KERNELS=avx2 "$program" "$GW_TMP/none.gguf" >"$GW_TMP/dry" 2>&1 || true
grep -q '^attention/' "$GW_TMP/dry" || skip "this machine cannot run the AVX2 kernels"
"$GW_BUILDDIR/tests/support/make_tiny" --type q4_1 --layers 2 --d 128 --ffn 256 --vocab 600 "$GW_TMP/tiny.gguf"
rc=0
GODWIT_KERNELS=avx2 valgrind -q --tool=callgrind --dump-before=instruction_mark --callgrind-out-file="$GW_TMP/parts" \
    "$program" "$GW_TMP/tiny.gguf" >"$GW_TMP/names" 2>"$GW_TMP/log" || rc=$?
if [ $rc != 0 ]; then
    cat "$GW_TMP/log"
    # a processor that valgrind does not know ends the program with SIGILL
    if [ $rc = 132 ] || grep -q 'unhandled instruction' "$GW_TMP/log"; then skip "this valgrind does not know all instructions of the AVX2 table"; fi
    fail "callgrind exited $rc"
fi

part=2
while read -r name; do
    count=$(sed -n 's/^totals: //p;s/^summary: //p' "$GW_TMP/parts.$part" | head -n 1)
    [ -n "$count" ] || fail "callgrind wrote no part $part for $name"
    printf '%-22s %s\n' "$name" "$count"
    part=$((part + 2))
done <"$GW_TMP/names" >"$GW_TMP/counts"
[ -s "$GW_TMP/counts" ] || fail "no case was run"

if [ "${1-}" = --update ]; then
    { echo "# build: $build"; cat "$GW_TMP/counts"; } >"$GW_TMP/new"
    cp "$GW_TMP/new" "$expected"
    echo "wrote $(wc -l <"$GW_TMP/counts") counts to $expected"
    exit 0
fi

awk -v margin=$margin_percent '
    FNR == NR { if ($1 != "#") wanted[$1] = $2; next }
    !($1 in wanted) { print $1 ": not in instructions.txt (instructions.sh --update)"; bad = 1; next }
    {
        seen[$1] = 1; change = 100 * ($2 / wanted[$1] - 1)
        if (change > margin) { printf "%s: %d instructions, %+.1f %% against %d\n", $1, $2, change, wanted[$1]; bad = 1 }
        else if (change < -margin) printf "%s: %d instructions, %+.1f %% against %d: better, so write it down (instructions.sh --update)\n", $1, $2, change, wanted[$1]
        compared++
    }
    END {
        for (name in wanted) if (!(name in seen)) { print name ": was not counted"; bad = 1 }
        printf "%d cases compared\n", compared
        exit bad
    }' "$expected" "$GW_TMP/counts" || fail "more instructions than before; if that is meant: tests/bench/instructions.sh --update"
