"""Jobs that a benchmark starts, watches, strikes and ends: what the scripts of this folder have in common.

Digests are read from what `godwit run` prints, times from events.jsonl (wall clock, by the job itself) and from the journal, whose blocks
docs/formats.md describes. No job outlives its script: what still runs when that ends is killed, by process id.
"""
import atexit, json, os, signal, statistics, struct, subprocess, sys, time

LIMIT_S = 600
signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # so that jobs and folders go, too


class Job:
    """`godwit run`, started; `out` is its OUTDIR."""

    def __init__(self, godwit, model, batch, out, options=()):
        self.out = out
        self.process = subprocess.Popen([godwit, "run", "-q", "-m", model, "-i", batch, "-o", out, *map(str, options)],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        atexit.register(self.kill_all)

    def finish(self):
        """Waits for its end; gives the digest. A job that fails ends the script."""
        text, errors = self.process.communicate(timeout=LIMIT_S)
        digests = [line.split()[1] for line in text.splitlines() if line.startswith("digest")]
        if self.process.returncode or not digests:
            sys.exit(f"the job failed with {self.process.returncode}: {errors}")
        return digests[0]

    def events(self):
        try:
            with open(self.out + "/events.jsonl") as f:
                return [json.loads(line) for line in f if line.endswith("\n")]
        except FileNotFoundError:
            return []

    def wait_for(self, test, since=0.0, limit_s=120):
        """The first event after `since` (wall clock) with this name, or that passes this test."""
        wanted = test if callable(test) else lambda e: e["event"] == test
        return self.wait_until(lambda: next((e for e in self.events() if e["time"] > since and wanted(e)), None), f"event '{test}'" if isinstance(test, str) else 'such event', limit_s)

    def wait_until(self, seen, what, limit_s=120):
        end = time.time() + limit_s
        while time.time() < end:
            found = seen()
            if found:
                return found
            if self.process.poll() is not None:
                sys.exit(f"the job ended before there was {what}: {self.process.communicate()[1]}")
            time.sleep(0.005)
        sys.exit(f"no {what} in {self.out} for {limit_s} s")

    def status(self):
        with open(self.out + "/status.json") as f:
            return json.load(f)

    def rank_pids(self):
        with open(self.out + "/ranks.json") as f:
            return [r["pid"] for r in json.load(f)["ranks"]]

    def launcher_pid(self):
        return _children(self.process.pid)[0]

    def kill_all(self):
        """kill -9 of every process of the job; returns when all are gone. Nothing when it has ended."""
        if self.process.poll() is not None:
            return
        pids = _tree(self.process.pid)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.communicate()
        while any(map(_alive, pids)):
            time.sleep(0.001)

    def journal_tokens(self):
        """Tokens that the newest file of the journal says were committed by its own leader (not those that it found)."""
        try:
            newest = max(n for n in os.listdir(self.out + "/journal") if n.endswith(".gwj"))
            with open(f"{self.out}/journal/{newest}", "rb") as f:
                data = f.read()
        except (FileNotFoundError, ValueError):
            return 0
        tokens, at = 0, 0
        while at + 32 <= len(data) and data[at:at + 4] == b"GWJ1":
            size = struct.unpack_from("<I", data, at + 4)[0]
            if at + 32 + size > len(data):
                break
            if data[at + 32] == 4:
                tokens += _committed(data[at + 33:at + 32 + size])
            at += 32 + size
        return tokens


def _committed(records):
    """The number of tokens in the records of a commit block."""
    at, tokens = 0, 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = records[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(records):
        tag = varint() & 3
        if tag == 2:
            varint()
            continue
        varint()
        count = varint()
        for _ in range(count):
            varint()
        for _ in range(count if tag == 1 else 0):
            at += 5 + 8 * records[at + 4]
        tokens += count
    return tokens


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(x) for x in f.read().split()]


def _tree(pid):
    try:
        return [pid] + [p for c in _children(pid) for p in _tree(c)]
    except FileNotFoundError:
        return []


def _alive(pid):
    """A zombie is dead: its parent may be slow to ask for it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def layout_ranks(layout):
    data, tensor, pipeline = map(int, layout.split("x"))
    return data * tensor * pipeline


def spread(values, form="{:.3f}"):
    """Median and worst as text."""
    values = [v for v in values if v is not None]
    return f"{form.format(statistics.median(values))} ({form.format(max(values))})" if values else "-"
