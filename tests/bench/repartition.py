#!/usr/bin/env python3
"""How long a planned change of layout takes while the job goes on, and what moves.

usage: tests/bench/repartition.py -m MODEL -i BATCH [-g GODWIT] [--weights auto|storage|peers] [--changes A:B,C:D,...] [-n RUNS]

For each change A -> B, RUNS jobs (5) start in layout A; in the middle of decoding a notice asks for B. Printed, from events.jsonl, are medians
(and the worst of the seconds): from the begin of the drain until every rank is ready in B, KV bytes that moved and that stayed, weight bytes that
moved, sequences that went on without computing anything again. Every job's digest is compared with an undisturbed one's.
"""
import argparse, os, shutil, statistics, tempfile, time

from jobs import Job, layout_ranks, spread


def one(a, b, args, base, wanted):
    out, notice = base + "/out", base + "/notice"
    shutil.rmtree(out, ignore_errors=True)
    ranks = max(layout_ranks(a), layout_ranks(b))
    job = Job(args.godwit, args.model, args.input, out, ["-n", ranks, "--weights", args.weights, "--notice", notice]
              + (["--layout", a] if layout_ranks(a) == ranks else []))
    job.wait_for("ready")
    time.sleep(1.5)
    with open(notice + ".new", "w") as f:
        f.write(f"layout {b}\n")
    os.rename(notice + ".new", notice)
    plan = job.wait_for(lambda e: e["event"] == "plan" and e["layout"] == list(map(int, b.split("x"))))
    ready = job.wait_for(lambda e: e["event"] == "ready" and e["plan"] == plan["plan"])
    again = job.status()["recomputed_tokens"]
    digest = job.finish()
    return {"seconds": ready["since_drain_s"], "moved": ready["kv_bytes_moved"] / 1e6, "kept": ready["kv_bytes_kept"] / 1e6,
            "weights": ready["weight_bytes_moved"] / 1e6, "adopted": plan["sequences_adopted"],
            "again": job.status()["recomputed_tokens"] - again, "equal": digest == wanted}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-i", "--input", required=True)
    parser.add_argument("-g", "--godwit", default="./godwit")
    parser.add_argument("-n", "--runs", type=int, default=5)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--changes", default="1x1x4:1x3x1,2x2x1:1x1x3,1x3x1:3x1x1,4x1x1:2x2x1,1x1x4:4x1x1")
    args = parser.parse_args()
    base = tempfile.mkdtemp(prefix="gw-repartition-")
    try:
        wanted = Job(args.godwit, args.model, args.input, base + "/undisturbed", ["-n", 1]).finish()
        print(f"undisturbed digest {wanted}; weights: {args.weights}; {args.runs} runs each")
        print("change             seconds (worst)  KV moved MB  KV kept MB  weights moved MB  sequences adopted  tokens again  digest")
        for change in args.changes.split(","):
            a, b = change.split(":")
            rows = [one(a, b, args, base, wanted) for _ in range(args.runs)]
            m = {name: statistics.median(r[name] for r in rows) for name in rows[0]}
            print(f"{a} -> {b}     {spread([r['seconds'] for r in rows]):>15}  {m['moved']:11.1f}  {m['kept']:10.1f}  {m['weights']:16.1f}  "
                  f"{m['adopted']:17.0f}  {m['again']:12.0f}  {'equal' if all(r['equal'] for r in rows) else 'DIFFERS'}", flush=True)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
