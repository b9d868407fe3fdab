#!/usr/bin/env bash
# Who does not know the job's secret gets nothing from an agent: no information, no daemon, no place that a friend needs. And a secret that others can
# read is refused.
# timeout: 300
. "$(dirname "$0")/../lib/common.sh"
. "$(dirname "$0")/../lib/jobs.sh"
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/scenarios.sh"
need_tool python3
need_node_job 1500
node_up n1 n2 n3
OUT=$GW_TMP/job
agent n1 --min-nodes 2
until_event supervisor 1
port=$(sed -n 's/.*listens on [^ ]* port \([0-9]*\).*/\1/p' "$GW_TMP/n1.log")
[ -n "$port" ] || fail "where does n1 listen?"

cat >"$GW_TMP/stranger.py" <<'P'
import os, socket, sys, time
address, port = sys.argv[1], int(sys.argv[2])
def talk(*parts):
    """What comes back until the other side closes."""
    got = b""
    with socket.create_connection((address, port), timeout=10) as s:
        try:
            for part in parts:
                s.sendall(part)
                time.sleep(0.1)
            while len(got) < 4096:
                data = s.recv(4096)
                if not data: break
                got += data
        except ConnectionError: pass
    return got
hello = b"GWNODE1\0" + os.urandom(32)
began = time.monotonic()
assert talk() == b"", "an agent speaks to whoever is silent"
assert time.monotonic() - began < 8, "a silent stranger is kept"
assert talk(b"GET / HTTP/1.0\r\n\r\n" + b"x" * 100) == b"", "an agent answers HTTP"
challenge = talk(hello, os.urandom(32))
assert len(challenge) == 32, "an agent says %d bytes to a stranger" % len(challenge)
assert talk(hello, challenge) != challenge, "the challenge is always the same"
assert len(talk(hello, os.urandom(32), os.urandom(5000))) == 32
crowd = [socket.create_connection((address, port), timeout=10) for _ in range(200)]
print("holding", flush=True)
time.sleep(6)
for s in crowd: s.close()
P
node_start n3 "$GW_TMP/stranger.log" python3 "$GW_TMP/stranger.py" "${node_address[n1]}" "$port"
for _ in {1..200}; do grep -q holding "$GW_TMP/stranger.log" 2>/dev/null && break; sleep 0.1; done
grep -q holding "$GW_TMP/stranger.log" || fail "the stranger: $(cat "$GW_TMP/stranger.log")"
agent n2 --min-nodes 2 # a friend gets in beside the crowd
node_wait n3 30
expect_equal "the stranger ($(tail -n 1 "$GW_TMP/stranger.log"))" "$node_rc" 0
expect_job 90 n1 n2

# a node that left between the order to start a launch there and the start: the launch fails as with a lost peer (9), and another follows
expect_exit 9 env GODWIT_NODES="$OUT/nodes" GODWIT_TERM=1 GODWIT_LAUNCH=1 "$GODWIT" node-exec n9 true
grep -q "node n9 has left the job" "$GW_TMP/out" || fail "node-exec of a node that left: $(cat "$GW_TMP/out")"

# a copy of the folder with another secret is no key
OUT2=$GW_TMP/job2
OUT=$OUT2
agent n1
until_event supervisor 1
mkdir -p "$GW_TMP/forged/nodes"
cp "$OUT2"/nodes/*.lease "$GW_TMP/forged/nodes/"
expect_exit 9 node_do n2 "$GODWIT" node --drain "$GW_TMP/forged" n1 0
expect_job 90 n1

mkdir -p "$GW_TMP/open/nodes"
head -c 32 /dev/urandom >"$GW_TMP/open/nodes/secret"
chmod 644 "$GW_TMP/open/nodes/secret"
expect_exit 7 node_do n1 "$GODWIT" node -m "$MODEL" -i "$BATCH" -o "$GW_TMP/open" -q "${node_options[@]}"
grep -q 'can be read by others' "$GW_TMP/out" || fail "the refusal does not say why"
