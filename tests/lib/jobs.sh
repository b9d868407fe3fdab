# shellcheck shell=bash
# Sourced after common.sh by the tests that run jobs: making requests, running worlds, reading what they leave.

# make_requests COUNT SEED: OpenAI batch lines with every kind of option; a common system prompt; plain ASCII, so awk will do
make_requests() {
    awk -v n="$1" -v seed="$2" 'BEGIN {
        srand(seed)
        split("sea bird night why the ocean flies far over water code list sort a question about python stars", word, " ")
        system_prompt = "You answer every question about birds, the sea and programs in a friendly way, and you never invent things that are not so."
        for (i = 0; i < n; i++) {
            text = ""
            for (k = int(rand() * 50) + 2; k > 0; k--) text = text (text == "" ? "" : " ") word[int(rand() * 16) + 1]
            options = "\"max_tokens\":" int(rand() * 40 + 1)
            if (i % 2) options = options ",\"temperature\":0"
            else options = options ",\"temperature\":0.8,\"seed\":" i
            if (i % 5 == 0) options = options ",\"top_p\":0.9"
            if (i % 6 == 0) options = options ",\"top_k\":7"
            if (i % 8 == 0) options = options ",\"min_p\":0.05"
            if (i % 7 == 0) options = options ",\"repetition_penalty\":1.2"
            if (i % 9 == 0) options = options ",\"stop\":[\"e \",\"zz\"]"
            if (i % 4 == 3) {
                if (i % 3 == 0) options = options ",\"logprobs\":2"
                printf "{\"custom_id\":\"c%d\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"%s\",%s}}\n", i, text, options
            } else {
                if (i % 3 == 0) options = options ",\"logprobs\":true,\"top_logprobs\":3"
                printf "{\"custom_id\":\"c%d\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{\"role\":\"system\",\"content\":\"%s\"},{\"role\":\"user\",\"content\":\"%s\"}],%s}}\n", i, system_prompt, text, options
            }
        }
    }'
}

# make_long_requests COUNT SEED: the same, each for up to 60 tokens, so that a job of a tiny model lasts
make_long_requests() { make_requests "$1" "$2" | sed 's/"max_tokens":[0-9]*/"max_tokens":60/'; }

# run_job OUT OPTION...: runs godwit with $MODEL and $BATCH and prints the digest; fails with its output otherwise
run_job() {
    local out=$1 rc=0
    shift
    "$GODWIT" run -m "$MODEL" -i "$BATCH" -o "$out" -q "$@" >"$out.log" 2>&1 || rc=$?
    [ $rc = 0 ] || { cat "$out.log" >&2; fail "run $* exited $rc"; }
    sed -n 's/^digest  //p' "$out.log"
}

# status_of OUT KEY: a number of status.json
status_of() { sed -n "s/.*\"$2\": \([-0-9.]*\).*/\1/p" "$1/status.json"; }

# kernels_here: the kernel tables that this CPU can run
kernels_here() {
    local k
    for k in ref ref-fma avx2 avx512 amx; do
        if GODWIT_KERNELS=$k "$GODWIT" bench -m "$MODEL" -b 1 -p 2 -g 2 -t 1 >/dev/null 2>&1; then echo $k; fi
    done
}

# pids_of OUT: the processes that ranks.json names
pids_of() { grep -oE '"pid": ?[0-9]+' "$1/ranks.json" | grep -oE '[0-9]+'; }

# expect_gone OUT: none of the job's ranks is left (given a few seconds to leave)
expect_gone() {
    local pid tries
    for pid in $(pids_of "$1"); do
        for tries in 1 2 3 4 5 6 7 8 9 10; do
            [ -d "/proc/$pid" ] && grep -q 'State:[[:space:]]*[^ZX]' "/proc/$pid/status" 2>/dev/null || break
            [ "$tries" != 10 ] || fail "process $pid of the job is still there"
            sleep 0.5
        done
    done
}
