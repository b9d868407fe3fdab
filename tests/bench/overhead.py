#!/usr/bin/env python3
"""What commit and checkpoints cost: the same job with and without, in turn, and the time that the job itself says it spent on them.

usage: tests/bench/overhead.py -m MODEL -i BATCH [-g GODWIT] [-b OLD_GODWIT] [-n RUNS] [--ranks 2] [--layout 2x1x1]

Columns: tokens/s of the whole job, median of RUNS; its ratio to the job with --checkpoint off; share of the time that the leader spent committing; share that
checkpoints cost the rank that they cost most. OLD_GODWIT: a build from before there was a journal (commit 473e4c4), for comparison.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser()
ap.add_argument("-m", "--model", required=True)
ap.add_argument("-i", "--input", required=True)
ap.add_argument("-g", "--godwit", default="./godwit")
ap.add_argument("-b", "--old")
ap.add_argument("-n", "--runs", type=int, default=5)
ap.add_argument("--ranks", type=int, default=2)
ap.add_argument("--layout", default="2x1x1")
args = ap.parse_args()
base = tempfile.mkdtemp(prefix="gw-overhead-")
kinds = {"checkpoint off": (args.godwit, ["--checkpoint", "off"]), "default": (args.godwit, []), "checkpoint every 2 s": (args.godwit, ["--checkpoint", "2"])}
if args.old:
    kinds["before the journal"] = (args.old, [])


def one(godwit, extra):
    out = base + "/out"
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run([godwit, "run", "-q", "-m", args.model, "-i", args.input, "-o", out, "-n", str(args.ranks), "--layout", args.layout] + extra,
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    digest = [l.split()[1] for l in done.stdout.splitlines() if l.startswith("digest")][0]
    with open(out + "/status.json") as f:
        s = json.load(f)
    events = []
    if os.path.exists(out + "/events.jsonl"):
        with open(out + "/events.jsonl") as f:
            events = [json.loads(l) for l in f]
    commit = sum(e.get("commit_s", 0) for e in events) / s["elapsed_s"]
    checkpoint = sum(e["cost_s"] for e in events if e["event"] == "checkpoint") / s["elapsed_s"]
    return s["generated_tokens"] / s["elapsed_s"], commit, checkpoint, digest


got = {k: [] for k in kinds}
for _ in range(args.runs):
    for k, (godwit, extra) in kinds.items():
        got[k].append(one(godwit, extra))
digests = {r[3] for rows in got.values() for r in rows}
print(f"{args.runs} jobs each, interleaved, layout {args.layout}; digests: {'equal' if len(digests) == 1 else 'DIFFER'}")
reference = statistics.median(r[0] for r in got["checkpoint off"])
for k, rows in got.items():
    rate = statistics.median(r[0] for r in rows)
    print(f"{k:22} {rate:8.1f} tokens/s  {rate / reference:6.3f}   commit {100 * statistics.median(r[1] for r in rows):5.2f} %   "
          f"checkpoints {100 * statistics.median(r[2] for r in rows):5.2f} %")
shutil.rmtree(base)
