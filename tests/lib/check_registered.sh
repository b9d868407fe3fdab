#!/usr/bin/env bash
# Part of `make check`: every test function of a unit test is handed to CUnit. One that is not never runs; compilers only warn.
. "$(dirname "$0")/../lib/common.sh"
cd "$GW_SRCDIR"
count=0
for file in tests/unit/test_*.c; do
    while read -r name; do
        count=$((count + 1))
        grep -qE "CU_add_test\(.*\b$name\)|\{.*\b$name *\}" "$file" || fail "$file: $name is not registered"
    done < <(sed -nE 's/^static void (test_[a-z0-9_]+)\(void\)$/\1/p' "$file")
done
[ "$count" -ge 200 ] || fail "only $count test functions found: this test is broken"
echo "$count test functions are registered"
