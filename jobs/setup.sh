#!/usr/bin/env bash
# Makes a checkout ready: packages, Open MPI with ULFM, build/godwit, a small model and real prompts. Safe to repeat.
# usage: jobs/setup.sh [--with-tests]    (--with-tests also installs what only tests use)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

with_tests=no
case "${1:-}" in
    '') ;;
    --with-tests) with_tests=yes ;;
    *) sed -n '2,3s/^# //p' "$0"; [ "$1" = --help ] && exit 0 || exit 2 ;;
esac
setup_all "$with_tests"
say "ready: build/godwit   (MPI: $MPICC)"
