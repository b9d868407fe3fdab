#!/usr/bin/env bash
# How many sequences `godwit run` tells its ranks to work on: what the launcher is given, which here starts nothing.
# timeout: 60
. "$(dirname "$0")/../lib/common.sh"
need_program
need_make_tiny
"$make_tiny" "$GW_TMP/m.gguf" >/dev/null
echo '{"prompt": "a", "max_tokens": 1}' >"$GW_TMP/in.jsonl"
printf '#!/bin/sh\necho "$@" >"%s/words"\nexit 2\n' "$GW_TMP" >"$GW_TMP/launcher"
chmod +x "$GW_TMP/launcher"

# check EXPECTED OPTION...
check() {
    local expected=$1
    shift
    GODWIT_MPIRUN=$GW_TMP/launcher expect_exit 9 timeout 20 "$GODWIT" run -q -m "$GW_TMP/m.gguf" -i "$GW_TMP/in.jsonl" -o "$GW_TMP/out.$expected" -n 2 "$@"
    # the last one counts
    expect_equal "sequences with '$*'" "$(grep -oE -- '--max-seqs [0-9]+' "$GW_TMP/words" | tail -n 1)" "--max-seqs $expected"
}

check 64 --threads 1
check 160 --threads 5
check 512 --threads 100
check 9 --threads 100 --max-seqs 9
check 300 --threads 100 --step-rows 300
