#!/usr/bin/env bash
# Part of `make check`: includes only point down (docs/architecture.md), foreign headers stay where they belong, and every
# C file of the tree is in the Makefile. Reads the source tree alone.
set -euo pipefail
cd "${GW_SRCDIR:-$(dirname "$0")/../..}"
bad=0
complain() { echo "$*"; bad=1; }

# layer | what it may include (folders; itself always). Lower layers come first.
layers='
base       |
kernels    | base
store      | base
report     | base
plan       | base kernels
control    | base
notice     | base
model      | base kernels
engine     | base kernels store plan model
comm       | base kernels store plan model engine
batch      | base kernels plan model engine
context    | base kernels plan model engine
job        | base report kernels store plan model engine comm batch context control notice
node       | base report kernels store plan model engine comm batch context control notice job
app        | base report kernels store plan model engine comm batch context control notice job node
'
layer_of() { case $1 in kernels/*) echo kernels ;; src/*/*) x=${1#src/}; echo "${x%%/*}" ;; esac; }
# An include is written from src/ or from the top ("base/mem.h", "kernels/types.h"): nothing relative, nothing absolute.
target_of() { case $1 in config.h) ;; */*) echo "${1%%/*}" ;; *) echo '?' ;; esac; }

files=$(find src kernels -name '*.[ch]' | sort)
count=0
for file in $files; do
    layer=$(layer_of "$file")
    allowed=$(sed -n "s/^$layer *| *//p" <<<"$layers")
    grep -q "^$layer *|" <<<"$layers" || { complain "$file: its folder is no layer in tests/lib/check_layers.sh"; continue; }
    while IFS=: read -r line include; do
        count=$((count + 1))
        target=$(target_of "$include")
        case " $layer $allowed " in
            *" $target "*) ;;
            *) [ -z "$target" ] || complain "$file:$line: src/$layer must not include \"$include\" (allowed: $layer $allowed)" ;;
        esac
        [ -z "$target" ] || [ -f "src/$include" ] || [ -f "$include" ] || complain "$file:$line: there is no \"$include\""
    done < <(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/;t p;b;:p;=;p' "$file" | paste -d: - -)
done
[ "$count" -gt 20 ] || complain "only $count includes seen: the check itself is broken"

# header pattern | files that may include it (a bash pattern) | why
foreign='
mpi(-ext)?\.h|src/*_mpi.[ch]|MPI stays in *_mpi.c
hdf5\.h|src/*_h5.[ch]|HDF5 stays in *_h5.c
pcre2\.h|src/model/tokenizer*.[ch]|pcre2 stays in the tokenizer
curl/curl\.h|src/notice/*_curl.c|libcurl stays in the notices
utf8proc\.h|src/model/*.[ch]|utf8proc stays in the model layer
jansson\.h|src/@(batch|job|app|notice|model|control|sim|node|base|context|report)/*|JSON is for what people and files hold, not for the engine
cuda[a-z_]*\.h|kernels/cuda/*|CUDA stays in kernels/cuda
(imm|x86|emm)intrin\.h|kernels/x86/*|instruction sets stay in kernels/x86
'
shopt -s extglob
while IFS='|' read -r header_1 rest; do
    # a pattern may hold a "|" of its own, so the last two fields are the files and the reason
    [ -n "$header_1" ] || continue
    why=${rest##*|}
    rest=${rest%|*}
    if [[ $rest == src/* || $rest == kernels/* ]]; then where=$rest header=$header_1; else where=${rest##*|} header="$header_1|${rest%|*}"; fi
    for file in $(grep -lE "^ *# *include *<$header>" $files || true); do
        # shellcheck disable=SC2053
        [[ $file == $where ]] || complain "$file: includes <$header>, but $why"
    done
done <<<"$foreign"

# Pure folders: events in, updates out. No clock, no threads, no files.
for file in $(find src/plan src/control src/sim -name '*.[ch]' 2>/dev/null); do
    if grep -nE '^ *# *include *<(pthread|time|sys/[a-z]+|unistd|fcntl|signal)\.h>' "$file"; then
        complain "$file: src/plan, src/control and src/sim are pure: no clock, threads or files"
    fi
done

# A source that no list names is neither built nor in the tarball.
for file in $files $(find tests/unit tests/mpi tests/fuzz tests/support -name '*.[ch]' 2>/dev/null | sort); do
    # a program's name stands for its one source (AM_DEFAULT_SOURCE_EXT)
    name=${file%.c}
    grep -qE "(^|[ =])${name//./\\.}(\.c)?( |\$)" Makefile.am || complain "$file is not in Makefile.am"
done

[ $bad = 0 ] || exit 1
echo "$count includes in $(wc -w <<<"$files") files: all point down"
