# shellcheck shell=bash
# Sourced after common.sh and jobs.sh: nodes on one machine, each with network, processes, shared memory, mounts and a name of its own.
#
# A node is a first process (its init) in new namespaces; killing that process kills everything of the node, as a power cut does, except that its
# network may live a moment longer. All nodes hang on a bridge that is in a namespace of its own, so that the machine's own network is never
# touched. What all nodes have in common is the machine's file system, but for /dev/shm and a TMPDIR of each.
#
#   need_nodes                       skips the test where namespaces cannot be made
#   node_up NAME...                  makes nodes
#   node_do NAME COMMAND...          runs a command on a node and waits
#   node_start NAME LOG COMMAND...   runs it in the background: its pid, as seen from here, is ${node_pid[NAME]}
#   node_wait NAME SECONDS           waits for its end: $node_rc, "hung" after the deadline
#   node_kill NAME...                kills nodes whole
#   node_cut NAME, node_heal NAME    its cable is cut without a sign of it, and mended
#   nodes_down                       ends everything; also done when the test ends
# shellcheck disable=SC2034,SC2154 # variables that a test reads or sets

declare -A node_init node_pid node_address
node_switch='' nodes_mark=$$.$(date +%s%N)
nodes_count=0 nodes_here="$GW_TMP/nodes"
mkdir -p "$nodes_here"

nodes_down() {
    local name
    for name in "${!node_init[@]}"; do node_kill "$name"; done
    if [ -n "$node_switch" ]; then kill -9 "$node_switch" 2>/dev/null || true; wait "$node_switch" 2>/dev/null || true; fi
    node_switch=''
}
trap 'gw_test_rc=$?; nodes_down; (exit $gw_test_rc); gw_test_end' EXIT

need_nodes() {
    need_program
    need_tool ip
    need_tool unshare
    need_tool nsenter
    [ "$(id -u)" = 0 ] || skip "only root can make network namespaces"
    unshare --net --pid --ipc --mount --uts --fork --kill-child --mount-proc true 2>/dev/null || skip "namespaces cannot be made here"
    unshare --net ip link add gwprobe type bridge 2>/dev/null || skip "a bridge cannot be made here"
}

# The namespace that holds the bridge: kept by a process that does nothing.
switch_up() {
    [ -z "$node_switch" ] || return 0
    unshare --net --kill-child sleep 1000000 &
    node_switch=$!
    disown "$node_switch" # its end is no news
    local tries
    for tries in {1..100}; do
        [ "$(readlink "/proc/$node_switch/ns/net" 2>/dev/null)" != "$(readlink /proc/self/ns/net)" ] && break
        sleep 0.05
    done
    in_switch ip link add gwbridge type bridge
    in_switch ip link set gwbridge up
}
in_switch() { nsenter -t "$node_switch" --net "$@"; }

node_up() {
    local name init number tries
    switch_up
    for name in "$@"; do
        nodes_count=$((nodes_count + 1))
        number=$nodes_count
        mkdir -p "$nodes_here/$name"
        # bash as the first process takes in orphans
        GW_NODES_RUN=$nodes_mark unshare --net --pid --ipc --mount --uts --fork --kill-child --mount-proc \
            bash -c "mount -t tmpfs tmpfs /dev/shm; hostname $name; touch $nodes_here/$name/up; while :; do sleep 1000 & wait \$!; done" \
            >/dev/null 2>&1 </dev/null &
        node_outer=$!
        disown "$node_outer"
        for tries in {1..200}; do
            [ -e "$nodes_here/$name/up" ] && break
            sleep 0.02
        done
        init=$(cat "/proc/$node_outer/task/$node_outer/children")
        init=${init%% *}
        [ -n "$init" ] || fail "node $name did not start"
        rm -f "$nodes_here/$name/up"
        in_switch ip link add "gwp$number" type veth peer name eth0 netns "$init"
        in_switch ip link set "gwp$number" master gwbridge up
        node_address[$name]=10.77.0.$number
        nsenter -t "$init" --net sh -c "ip link set lo up; ip addr add 10.77.0.$number/24 dev eth0; ip link set eth0 up"
        node_init[$name]=$init
        echo "$number" >"$nodes_here/$name.number"
    done
}

# node_enter NAME: the words that bring a command to the node
node_enter() { echo nsenter -t "${node_init[$1]}" --net --pid --ipc --mount --uts; }

node_do() {
    local name=$1
    shift
    # shellcheck disable=SC2046 # words
    TMPDIR=$nodes_here/$name GW_NODES_RUN=$nodes_mark $(node_enter "$name") "$@"
}

node_start() {
    local name=$1 log=$2
    shift 2
    rm -f "$nodes_here/$name.rc"
    {
        rc=0
        node_do "$name" "$@" >"$log" 2>&1 </dev/null || rc=$?
        echo "$rc" >"$nodes_here/$name.rc"
    } 2>/dev/null &
    node_pid[$name]=$!
}

node_runs() { [ -n "${node_pid[$1]:-}" ] && kill -0 "${node_pid[$1]}" 2>/dev/null; }

node_wait() {
    local until=$((SECONDS + $2))
    while ! node_rc=$(cat "$nodes_here/$1.rc" 2>/dev/null) || [ -z "$node_rc" ]; do
        if [ $SECONDS -ge "$until" ]; then node_rc=hung; return; fi
        sleep 0.1
    done
}

node_kill() {
    local name
    for name in "$@"; do
        [ -n "${node_init[$name]:-}" ] || continue
        kill -9 "${node_init[$name]}" 2>/dev/null || true
        unset "node_init[$name]"
    done
}

node_port() { echo "gwp$(cat "$nodes_here/$1.number")"; }
node_cut() { in_switch ip link set "$(node_port "$1")" nomaster; }
node_heal() { in_switch ip link set "$(node_port "$1")" master gwbridge; }

# node_signal NAME SIGNAL: to the agent of a node
node_signal() {
    node_do "$1" pkill "-$2" -f "$GODWIT node" || true
    [ "$2" != CONT ] || pkill -CONT -P "${node_pid[$1]}" || true # nsenter stops with its child
}

# left_on_nodes NAME...: processes and shared memory that jobs have left on living nodes, given a moment to go
left_on_nodes() {
    local name tries found
    for tries in {1..30}; do
        found=''
        for name in "$@"; do
            [ -n "${node_init[$name]:-}" ] || continue
            found+=$(node_do "$name" sh -c 'for p in /proc/[0-9]*; do c=$(tr "\0" " " <$p/cmdline 2>/dev/null); case $c in *godwit*|*prte*|*mpirun*) echo "'"$name"': $c";; esac; done; find /dev/shm "$TMPDIR" -mindepth 1 2>/dev/null' |
                grep -av 'for p in /proc' || true)
        done
        [ -n "$found" ] || return 0
        sleep 0.2
    done
    echo "$found"
}

# marked_nodes: processes of this test, on whichever node
marked_nodes() { grep -slaF "GW_NODES_RUN=$nodes_mark" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true; }
