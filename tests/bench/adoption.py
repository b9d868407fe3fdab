#!/usr/bin/env python3
"""What the context store is worth: all ranks of a job are killed, and the next launch goes on with what they left in memory, or without.

usage: tests/bench/adoption.py -m MODEL [-n RUNS] [-g GODWIT] [--layout 1x1x2] [--after SECONDS] [--tokens N]

A job of 12 answers is struck AFTER seconds (godwit run --chaos kill:all), with the store and with --no-store --checkpoint off in turns. Printed for each:
seconds from the start of a launch until all ranks are ready (the first launch: weights packed; the second: mapped, or packed again), from the start of
the second to the next committed token, and tokens computed again. Digests must be equal.
"""
import argparse, json, os, shutil, sys, tempfile

from jobs import Job, spread


def measure(job):
    digest = job.finish()
    events = job.events()
    starts = [e["launched_at"] for e in events if e["event"] == "start"]
    if len(starts) != 2:
        sys.exit(f"the job had {len(starts)} launches: change --after or --tokens")
    ready = [min(e["time"] for e in events if e["event"] == "ready" and e["time"] > s) - s for s in starts]
    token = next(e["time"] for e in events if e["event"] == "recovered") - starts[1]
    return digest, {"packed": ready[0], "ready again": ready[1], "token": token, "computed again": job.status()["recomputed_tokens"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("-n", type=int, default=3)
    p.add_argument("-g", "--godwit", default="build/godwit")
    p.add_argument("--layout", default="1x1x2")
    p.add_argument("--after", type=float, default=4)
    p.add_argument("--tokens", type=int, default=300)
    a = p.parse_args()
    folder = tempfile.mkdtemp(prefix="godwit-adoption-")
    batch = folder + "/batch.jsonl"
    with open(batch, "w") as f:
        for i in range(12):
            f.write(json.dumps({"id": f"r{i}", "prompt": f"A story about the number {i}:", "max_tokens": a.tokens, "ignore_eos": True, "seed": i}) + "\n")
    kinds = {"store": [], "no store": ["--no-store", "--checkpoint", "off"]}
    seen, digests = {k: [] for k in kinds}, set()
    for _ in range(a.n):
        for kind, options in kinds.items():
            out = folder + "/out"
            shutil.rmtree(out, ignore_errors=True)
            digest, figures = measure(Job(os.path.abspath(a.godwit), a.model, batch, out, ["--layout", a.layout, "--context", "1024", "--chaos", f"kill:all@time={a.after}", *options]))
            digests.add(digest)
            seen[kind].append(figures)
    for kind, runs in seen.items():
        print(f"{kind:9}", "  ".join(f"{name} {spread([r[name] for r in runs])}" for name in runs[0]))
    print("digests", "equal" if len(digests) == 1 else "DIFFERENT")
    shutil.rmtree(folder)
    sys.exit(len(digests) != 1)


main()
