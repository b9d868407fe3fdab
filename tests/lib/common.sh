# shellcheck shell=bash
# Sourced by the shell tests (tests/*/test_*.sh): where things are, and how a test says what it found.
#
#   #!/usr/bin/env bash
#   # What this test shows. Optional line, the time limit in seconds:
#   # timeout: 900
#   . "$(dirname "$0")/../lib/common.sh"
#
# A test exits 0 (passed), 77 after skip "reason", anything else is a failure. tests/run.sh sets the variables; run by hand
# a test takes build/ of the checkout.
#   GODWIT      the program                    GW_MODEL    SmolLM2-135M-Instruct (call need_model first)
#   GW_SRCDIR   the source tree                GW_PROMPTS  folder with quickstart.jsonl and mixed256.jsonl
#   GW_BUILDDIR the build tree                 GW_TMP      an empty folder of this test's own, removed when it passes
#   GW_MPIRUN   the launcher of the MPI library

set -euo pipefail
GW_SRCDIR=${GW_SRCDIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
GW_BUILDDIR=${GW_BUILDDIR:-$GW_SRCDIR/build}
GODWIT=${GODWIT:-$GW_BUILDDIR/godwit}
GW_MODEL=${GW_MODEL:-$GW_SRCDIR/data/models/SmolLM2-135M-Instruct.Q4_1.gguf}
GW_PROMPTS=${GW_PROMPTS:-$GW_SRCDIR/data/prompts}
GW_MPIRUN=${GW_MPIRUN:-$(sed -n 's/^#define GW_MPIRUN "\(.*\)"/\1/p' "$GW_BUILDDIR/config.h")}
export GW_SRCDIR GW_BUILDDIR GODWIT GW_MODEL GW_PROMPTS GW_MPIRUN
export HOME=${HOME:-/tmp} LC_ALL=C.UTF-8
# root in a container is the normal case for a test machine
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

GW_TMP=$(mktemp -d "${TMPDIR:-/tmp}/gw-test.XXXXXX")
export GW_TMP
gw_test_end() {
    local rc=$?
    if [ $rc = 0 ] || [ $rc = 77 ]; then rm -rf "$GW_TMP"; else echo "files of this run: $GW_TMP"; fi
}
trap gw_test_end EXIT

skip() { echo "$*"; exit 77; }
fail() { echo "FAILED: $*"; exit 1; }
# expect_equal WHAT GOT WANTED
expect_equal() { [ "$2" = "$3" ] || fail "$1: got '$2', wanted '$3'"; }
# expect_exit CODE COMMAND...: runs it, output in $GW_TMP/out, and checks its exit code
expect_exit() {
    local wanted=$1 rc=0
    shift
    "$@" >"$GW_TMP/out" 2>&1 || rc=$?
    [ $rc = "$wanted" ] || { cat "$GW_TMP/out"; fail "'$*' exited $rc, wanted $wanted"; }
}
need_program() { [ -x "$GODWIT" ] || skip "there is no $GODWIT (run make)"; }
need_model() { [ -f "$GW_MODEL" ] || skip "there is no $GW_MODEL (jobs/setup.sh fetches it)"; }
# need_make_tiny: $make_tiny, which writes small random models
need_make_tiny() {
    need_program
    make_tiny=$GW_BUILDDIR/tests/support/make_tiny
    [ -x "$make_tiny" ] || skip "there is no $make_tiny (make check builds it)"
}
need_tool() { command -v "$1" >/dev/null 2>&1 || skip "$1 is not installed"; }
# gw_mpirun RANKS PROGRAM ARGS...: a world of ranks on this machine, more ranks than cores allowed
gw_mpirun() {
    local ranks=$1
    shift
    "$GW_MPIRUN" --map-by :OVERSUBSCRIBE --bind-to none --mca pml ob1 --mca btl self,sm,tcp -n "$ranks" "$@"
}
