#!/usr/bin/env python3
"""What commit and checkpoints cost: the same job with and without, in turn, and the time that the job itself says it spent on them.

usage: tests/bench/overhead.py -m MODEL -i BATCH [-g GODWIT] [-b OLD_GODWIT] [-n RUNS] [--ranks 2] [--layout 2x1x1]

Columns: tokens/s of the whole job, median of RUNS; its ratio to the job with --checkpoint off; share of the time that the leader spent committing; share that
checkpoints cost the rank that they cost most. OLD_GODWIT: a build from before there was a journal (commit 473e4c4), for comparison.
"""
import argparse, shutil, statistics, tempfile

from jobs import Job


def one(godwit, extra, args, base):
    shutil.rmtree(base + "/out", ignore_errors=True)
    job = Job(godwit, args.model, args.input, base + "/out", ["-n", args.ranks, "--layout", args.layout] + extra)
    digest, status, events = job.finish(), job.status(), job.events()
    commit_s = sum(e.get("commit_s", 0) for e in events)
    checkpoint_s = sum(e["cost_s"] for e in events if e["event"] == "checkpoint")
    elapsed_s = status["elapsed_s"]
    return status["generated_tokens"] / elapsed_s, commit_s / elapsed_s, checkpoint_s / elapsed_s, digest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-i", "--input", required=True)
    parser.add_argument("-g", "--godwit", default="./godwit")
    parser.add_argument("-b", "--old")
    parser.add_argument("-n", "--runs", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layout", default="2x1x1")
    args = parser.parse_args()
    kinds = {"checkpoint off": (args.godwit, ["--checkpoint", "off"]), "default": (args.godwit, []),
             "checkpoint every 2 s": (args.godwit, ["--checkpoint", "2"])}
    if args.old:
        kinds["before the journal"] = (args.old, [])
    base = tempfile.mkdtemp(prefix="gw-overhead-")
    got = {kind: [] for kind in kinds}
    try:
        for _ in range(args.runs):
            for kind, (godwit, extra) in kinds.items():
                got[kind].append(one(godwit, extra, args, base))
    finally:
        shutil.rmtree(base)
    digests = {r[3] for rows in got.values() for r in rows}
    print(f"{args.runs} jobs each, interleaved, layout {args.layout}; digests: {'equal' if len(digests) == 1 else 'DIFFER'}")
    reference = statistics.median(r[0] for r in got["checkpoint off"])
    for kind, rows in got.items():
        rate, commit, checkpoint = (statistics.median(r[i] for r in rows) for i in range(3))
        print(f"{kind:22} {rate:8.1f} tokens/s  {rate / reference:6.3f}   commit {100 * commit:5.2f} %   checkpoints {100 * checkpoint:5.2f} %")


if __name__ == "__main__":
    main()
