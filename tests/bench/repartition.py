#!/usr/bin/env python3
"""How long a planned change of layout takes while the job goes on, and what moves.

usage: tests/bench/repartition.py -m MODEL -i BATCH [-g GODWIT] [--weights auto|storage|peers] [--changes A:B,C:D,...] [-n RUNS]

For each change A -> B a job starts in layout A; in the middle of decoding a notice asks for B. Printed, from events.jsonl: seconds from the
begin of the drain until every rank is ready in B, KV bytes that moved and that stayed, weight bytes that moved, sequences that went on without computing
anything again. Every job's digest is compared with an undisturbed one's.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser()
ap.add_argument("-m", "--model", required=True)
ap.add_argument("-i", "--input", required=True)
ap.add_argument("-g", "--godwit", default="./godwit")
ap.add_argument("-n", "--runs", type=int, default=3)
ap.add_argument("--weights", default="auto")
ap.add_argument("--changes", default="1x1x4:1x3x1,2x2x1:1x1x3,1x3x1:3x1x1,4x1x1:2x2x1,1x1x4:4x1x1")
args = ap.parse_args()
base = tempfile.mkdtemp(prefix="gw-repartition-")


def size(layout):
    d, t, p = map(int, layout.split("x"))
    return d * t * p


def run(layout, ranks, out, extra=()):
    return subprocess.Popen([args.godwit, "run", "-q", "-m", args.model, "-i", args.input, "-o", out, "-n", str(ranks), "--weights", args.weights]
                            + (["--layout", layout] if size(layout) == ranks else []) + list(extra),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(job):
    text, errors = job.communicate(timeout=600)
    digests = [line.split()[1] for line in text.splitlines() if line.startswith("digest")]
    if job.returncode or not digests:
        sys.exit(f"the job failed with {job.returncode}: {errors}")
    return digests[0]


def events(out):
    try:
        with open(out + "/events.jsonl") as f:
            return [json.loads(line) for line in f if line.endswith("\n")]
    except FileNotFoundError:
        return []


def wait(out, test):
    for _ in range(6000):
        found = [e for e in events(out) if test(e)]
        if found:
            return found[-1]
        time.sleep(0.01)
    sys.exit("the event did not come")


wanted = finish(run("1x1x1", 1, base + "/undisturbed"))
print(f"undisturbed digest {wanted}; weights: {args.weights}; medians of {args.runs}")
print("change               seconds  KV moved MB  KV kept MB  weights moved MB  sequences adopted  digest")
for change in args.changes.split(","):
    a, b = change.split(":")
    rows = []
    for _ in range(args.runs):
        out, notice = base + "/out", base + "/notice"
        shutil.rmtree(out, ignore_errors=True)
        job = run(a, max(size(a), size(b)), out, ["--notice", notice])
        wait(out, lambda e: e["event"] == "ready")
        time.sleep(1.5)
        with open(notice + ".new", "w") as f:
            f.write(f"layout {b}\n")
        os.rename(notice + ".new", notice)
        plan = wait(out, lambda e: e["event"] == "plan" and e["layout"] == list(map(int, b.split("x"))))
        ready = wait(out, lambda e: e["event"] == "ready" and e["plan"] == plan["plan"])
        same = finish(job) == wanted
        rows.append((ready["since_drain_s"], ready["kv_bytes_moved"] / 1e6, ready["kv_bytes_kept"] / 1e6,
                     ready["weight_bytes_moved"] / 1e6, plan["sequences_adopted"], same))
    m = [statistics.median(r[i] for r in rows) for i in range(5)]
    print(f"{a} -> {b}       {m[0]:8.3f}  {m[1]:11.1f}  {m[2]:10.1f}  {m[3]:16.1f}  {m[4]:17.0f}  {'equal' if all(r[5] for r in rows) else 'DIFFERS'}", flush=True)
shutil.rmtree(base)
