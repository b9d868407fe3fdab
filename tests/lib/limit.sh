#!/bin/sh
# Runs one test of `make check` under a time limit, so that a hang is a failure with a name. usage: limit.sh PROGRAM ARGS
# GW_TEST_LIMIT_S: seconds (default 600). GW_TEST_TIMES: file to which "name milliseconds" is added (tests/run.sh reads it).
limit_s=${GW_TEST_LIMIT_S:-600}
case $1 in bash) name=$2 ;; *) name=$1 ;; esac
start_ms=$(date +%s%3N)
if command -v timeout >/dev/null 2>&1; then
    timeout -k 10 "$limit_s" "$@"
else
    "$@"
fi
rc=$?
[ $rc != 124 ] || echo "limit.sh: stopped after $limit_s s"
[ -z "$GW_TEST_TIMES" ] || echo "$(basename "$name") $(($(date +%s%3N) - start_ms))" >>"$GW_TEST_TIMES"
exit $rc
