#!/usr/bin/env bash
# Sets everything up (as jobs/quickstart.sh does) and runs all tests.
#
# usage: tests/run.sh [--no-setup] [--list] [PATTERN...]
#   PATTERN    run only the tests whose name contains one of them, e.g. unit/test_gguf mpi/ sanitize/ valgrind/ e2e/
#   --no-setup take build/ as it is
#   --list     name the tests that are scripts, run nothing
#
# Order: make check (unit tests, layers, fuzz corpus), format, shell tests of tests/*/test_*.sh, the unit tests again with
# sanitizers, a few of them under valgrind. A test passes (exit 0), is skipped (77, its last line says why) or fails.
# The last line is "N passed, N failed, N skipped"; the exit code is 1 if one failed. Budget: GW_BUDGET_S, 55 minutes.
. "$(dirname "${BASH_SOURCE[0]}")/../jobs/lib.sh"

budget_s=${GW_BUDGET_S:-3300}
passed=0 failed=0 skipped=0
setup=yes list=no patterns=()
for arg in "$@"; do
    case $arg in
        --no-setup) setup=no ;;
        --list) list=yes ;;
        --help | -h) sed -n '2,/^\. /{/^\. /!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        -*) die "unknown option $arg" "see tests/run.sh --help" ;;
        *) patterns+=("$arg") ;;
    esac
done

# Units whose parsing and bookkeeping is worth a run under valgrind (uninitialised reads, which sanitizers do not see).
valgrind_units='test_base test_error test_mem test_file test_json test_gguf test_tokenizer test_chat test_request test_ledger
test_output test_kv_pages test_scheduler'

wanted() {
    local pattern
    [ ${#patterns[@]} != 0 ] || return 0
    for pattern in "${patterns[@]}"; do [[ $1 != *"$pattern"* ]] || return 0; done
    return 1
}
# wanted_group PREFIX: could any test below PREFIX be wanted?
wanted_group() {
    local pattern
    [ ${#patterns[@]} != 0 ] || return 0
    for pattern in "${patterns[@]}"; do [[ $pattern != *"$1"* && $1 != *"$pattern"* ]] || return 0; done
    return 1
}

# record NAME EXIT_CODE LOG SECONDS: counts a test and prints its line
record() {
    local name=$1 rc=$2 log=$3 time=$4
    case $rc in
        0)
            passed=$((passed + 1))
            printf 'PASS  %s (%s s)\n' "$name" "$time"
            ;;
        77)
            skipped=$((skipped + 1))
            printf 'SKIP  %s (%s)\n' "$name" "$(grep -v '^SKIP .*exit status: 77' "$log" | grep . | tail -n 1)"
            ;;
        *)
            failed=$((failed + 1))
            printf '%sFAIL  %s (%s s, exit %s)%s\n' "$red" "$name" "$time" "$rc" "$plain"
            tail -n 30 "$log" | sed 's/^/      | /'
            printf '      log: %s\n' "$log"
            ;;
    esac
}

# run_test NAME LIMIT_S COMMAND...
run_test() {
    local name=$1 limit=$2 rc=0 start_ms log left
    shift 2
    wanted "$name" || return 0
    log=$logs/test-${name//\//-}.log
    left=$((budget_s - SECONDS))
    if [ $left -lt 5 ]; then
        echo "not run: the $budget_s s for all tests (GW_BUDGET_S) were used up" >"$log"
        record "$name" 77 "$log" 0
        return
    fi
    [ "$limit" -le $left ] || limit=$left
    start_ms=$(date +%s%3N)
    timeout -k 15 "$limit" "$@" >"$log" 2>&1 </dev/null || rc=$?
    [ $rc != 124 ] || echo "stopped after its limit of $limit s" >>"$log"
    record "$name" $rc "$log" "$(seconds $(($(date +%s%3N) - start_ms)))"
}
seconds() { printf '%d.%d' $(($1 / 1000)) $(($1 % 1000 / 100)); }

# run_make_check PREFIX DIR: builds and runs the automake tests of DIR that are wanted, each counted by itself
run_make_check() {
    local prefix=$1 dir=$2 log times test name rc ms tests=()
    log=$logs/test-make-check-$(basename "$dir").log
    [ -z "$prefix" ] || wanted_group "$prefix" || return 0
    # everything is built whatever is wanted: the shell tests use programs of tests/support
    if ! timeout -k 15 1500 make -k -C "$dir" -j "$jobs" check TESTS= >"$log" 2>&1; then
        record "${prefix}compile-tests" 1 "$log" 0 # and go on: what does not build counts as failed
    fi
    for test in $(make -s --no-print-directory -C "$dir" print-tests | tr ' ' '\n' | grep '^tests/'); do
        wanted "$prefix${test#tests/}" || continue
        # the checks of the source tree do not change with the build
        [ -n "$prefix" ] && [[ $test == *.sh ]] || tests+=("$test")
    done
    [ ${#tests[@]} != 0 ] || return 0
    times=$(mktemp)
    # the result of a test is in its .trs file, so make's own exit code says nothing more
    GW_TEST_TIMES=$times timeout -k 15 $((budget_s > SECONDS + 5 ? budget_s - SECONDS : 5)) \
        make -k -C "$dir" -j "$jobs" check-TESTS TESTS="${tests[*]}" >>"$log" 2>&1 || true
    for test in "${tests[@]}"; do
        name=${test#tests/}
        name=${name%.sh}
        test=$dir/${test%.sh}
        case $(sed -n 's/^:test-result: *\([A-Z]*\).*/\1/p' "$test.trs" 2>/dev/null | head -n 1) in
            PASS) rc=0 ;;
            SKIP) rc=77 ;;
            *) rc=1 ;;
        esac
        ms=$(sed -n "s/^$(basename "$test")\(\.sh\)\{0,1\} //p" "$times" | tail -n 1)
        [ -f "$test.trs" ] && test=$test.log || test=$log
        record "$prefix$name" $rc "$test" "$(seconds "${ms:-0}")"
    done
    rm -f "$times"
}

run_shell_tests() {
    local script name limit
    for script in "$top"/tests/*/test_*.sh; do
        [ -f "$script" ] || continue
        name=${script#"$top"/tests/}
        name=${name%.sh}
        limit=$(sed -n 's/^# timeout: *\([0-9]*\).*/\1/p' "$script" | head -n 1)
        if [ $list = yes ]; then wanted "$name" && echo "$name (limit ${limit:-600} s)"; continue; fi
        run_test "$name" "${limit:-600}" bash "$script"
    done
}

run_sanitize() {
    wanted_group sanitize/ || return 0
    if ! echo 'int main(void){return 0;}' | "${CC:-gcc}" -x c - -fsanitize=address,undefined -o "$logs/probe" 2>/dev/null; then
        echo "the compiler has no sanitizer runtime" >"$logs/sanitize.log"
        record sanitize/units 77 "$logs/sanitize.log" 0
        return
    fi
    rm -f "$logs/probe"
    (CFLAGS="-O1 -g" ensure_built sanitize "$build/sanitize" "with address,undefined sanitizers in build/sanitize" \
        --enable-sanitize=address,undefined) || { record sanitize/build 1 "$logs/sanitize-make.log" 0; return; }
    # libraries of the MPI keep what they once allocated: only leaks of godwit's own are wanted
    export ASAN_OPTIONS=abort_on_error=0:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
        LSAN_OPTIONS="suppressions=$top/tests/lib/lsan.supp:print_suppressions=0"
    run_make_check sanitize/ "$build/sanitize"
    unset ASAN_OPTIONS UBSAN_OPTIONS LSAN_OPTIONS
}

run_valgrind() {
    local unit
    wanted_group valgrind/ || return 0
    if ! command -v valgrind >/dev/null 2>&1; then
        echo "valgrind is not installed" >"$logs/valgrind.log"
        record valgrind/units 77 "$logs/valgrind.log" 0
        return
    fi
    for unit in $valgrind_units; do
        [ -x "$build/tests/unit/$unit" ] || continue
        # AVX-512 is unknown to valgrind; the reference kernels are what it should see
        run_test "valgrind/$unit" 400 env GODWIT_KERNELS=ref GW_SRCDIR="$top" GW_BUILDDIR="$build" srcdir="$top" \
            valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite \
            --show-leak-kinds=definite "$build/tests/unit/$unit"
    done
}

if [ $list = yes ]; then run_shell_tests; exit 0; fi
if [ $setup = yes ]; then setup_all yes; else ensure_mpi; fi
[ -x "$build/godwit" ] || die "there is no $build/godwit" "run tests/run.sh without --no-setup"
mkdir -p "$logs"
GW_MPIRUN=$(sed -n 's/^#define GW_MPIRUN "\(.*\)"/\1/p' "$build/config.h")
export GW_SRCDIR=$top GW_BUILDDIR=$build GODWIT=$build/godwit GW_MODEL=$model GW_PROMPTS=$top/data/prompts GW_MPIRUN
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

say "${bold}godwit: tests${plain}"
run_make_check '' "$build"
# shellcheck disable=SC2016 # the inner shell expands it
run_test format 300 bash -c 'out=$(make -s -C "$GW_BUILDDIR" format-check 2>&1); rc=$?; printf "%s\n" "$out"
    case $out in *"clang-format is not installed"*) echo "clang-format is not installed"; exit 77 ;; esac; exit $rc'
run_shell_tests
GW_BUILDDIR=$build/sanitize GODWIT=$build/sanitize/godwit run_sanitize
run_valgrind

say "took $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] || exit 1
