#!/usr/bin/env python3
"""How long a job stands still when it loses something: kill -9, then the next committed token.

usage: tests/bench/recovery.py -m MODEL [-i BATCH] [-n RUNS] [-g GODWIT] [--ranks 4] [--seed 1] [--layouts L,...] [--tiers T,...]

Without BATCH it makes one of 40 short prompts and long answers, so that the job is decoding when it is struck; with long prompts the steps are
long, and the first token after a loss waits for one.

RUNS kills (10) for each tier and layout, at random moments; the tiers take turns, so that what else the machine does meets all of them:
  1           one rank is killed (any, the leader included), the launch lives: repair, a new rank, a plan
  2           the launcher is killed: the supervisor starts the next launch
  3           everything is killed and the same command given again, with --checkpoint off: tokens come from the journal, KV is computed again
  checkpoint  as 3, with --checkpoint 0.5: KV comes from the newest checkpoint as far as it goes
  scratch     as 3, but OUTDIR is thrown away: what a program that keeps nothing would do
For 3, checkpoint and scratch the clock starts with the second command, since nobody is there before. A checkpoint alone, without the journal, is no
tier: its pages are named by the tokens in them, and without tokens nobody asks for any.

Printed are median (worst) of
  ready      seconds until every rank has weights and pages in place
  token      seconds until the next token is committed
  KV         of them: from ready to the token, in which lost KV is computed again and a step is made
  as before  seconds until as many tokens are committed as were when it was struck (no more than `token` where none is lost)
  again      tokens computed again, of prompts and answers
  restored   tokens whose KV was read instead
  lost       committed tokens that had to be generated again
Every job is left to finish, and its digest compared with an undisturbed job's. Benchmarks want a machine with nothing else running.
"""
import argparse, json, os, random, shutil, signal, sys, tempfile, time

from jobs import Job, spread

OPTIONS = {"3": ["--checkpoint", "off"], "checkpoint": ["--checkpoint", "0.5"], "scratch": ["--checkpoint", "off"]}


def make_batch(path):
    with open(path, "w") as f:
        for i in range(40):
            f.write(json.dumps({"id": f"r{i}", "prompt": f"A story about the number {i}:", "max_tokens": 160, "ignore_eos": True, "seed": i}) + "\n")


def strike(tier, job, again, rng):
    """Kills; gives the job that goes on, and when the clock started."""
    if tier in OPTIONS:
        job.kill_all()
        if tier == "scratch":
            shutil.rmtree(job.out)
        at = time.time()
        return again(), at
    pid = rng.choice(job.rank_pids()) if tier == "1" else job.launcher_pid()
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return job, at


def after_scratch(job, at, committed, computed):
    """A job that knows of no loss has no event for it: the journal tells."""
    ready = job.wait_for("ready", at)["time"]
    token = job.wait_until(lambda: job.journal_tokens() and time.time(), "a token")
    before = job.wait_until(lambda: job.journal_tokens() >= committed and time.time(), f"token {committed}")
    return {"ready": ready - at, "token": token - at, "KV": max(token - ready, 0), "as before": before - at, "again": computed, "restored": 0,
            "lost": committed}


def after_loss(job, at, totals):
    e = job.wait_for("recovered", at)
    token = e["time"] - at
    ready = token - (e["token_s"] - e["ready_s"]) if "ready_s" in e else None
    return {"ready": ready, "token": token, "KV": None if ready is None else token - ready, "as before": token, "lost": 0, "totals": totals}


def one(tier, layout, args, base, wanted, rng):
    out = os.path.join(base, "out")
    shutil.rmtree(out, ignore_errors=True)
    start = lambda: Job(args.godwit, args.model, args.input, out, ["-n", args.ranks, "--layout", layout] + OPTIONS.get(tier, []))
    job = start()
    job.wait_for("checkpoint" if tier == "checkpoint" else "ready")
    time.sleep(rng.uniform(1.0, 3.0))
    committed, status = job.journal_tokens(), job.status()
    job, at = strike(tier, job, start, rng)
    if tier == "scratch":
        got = after_scratch(job, at, committed, status["computed_tokens"])
    else:
        got = after_loss(job, at, status)
    digest = job.finish()
    if digest != wanted:
        sys.exit(f"{tier}, {layout}: digest {digest} instead of {wanted}")
    before, after = got.pop("totals", None), job.status()
    if before:
        got["again"] = after["recomputed_tokens"] - before["recomputed_tokens"]
        got["restored"] = after["restored_tokens"] - before["restored_tokens"]
    return got


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-i", "--input")
    parser.add_argument("-n", "--runs", type=int, default=10)
    parser.add_argument("-g", "--godwit", default="./godwit")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layouts", default="4x1x1,2x2x1,1x1x4")
    parser.add_argument("--tiers", default="1,2,3,checkpoint,scratch")
    args = parser.parse_args()
    rng, tiers = random.Random(args.seed), args.tiers.split(",")
    base = tempfile.mkdtemp(prefix="gw-recovery-")
    try:
        if not args.input:
            args.input = os.path.join(base, "batch.jsonl")
            make_batch(args.input)
        wanted = Job(args.godwit, args.model, args.input, base + "/undisturbed", ["-n", args.ranks, "--layout", f"{args.ranks}x1x1"]).finish()
        print(f"seed {args.seed}, {args.runs} kills each, median (worst); undisturbed digest {wanted}")
        print(f"{'tier':11}{'layout':8}" + "".join(f"{name:>17}" for name in ("ready", "token", "KV", "as before", "again", "restored", "lost")))
        for layout in args.layouts.split(","):
            got = {tier: [] for tier in tiers}
            for _ in range(args.runs):
                for tier in tiers:
                    got[tier].append(one(tier, layout, args, base, wanted, rng))
            for tier, rows in got.items():
                times = [spread([r[name] for r in rows]) for name in ("ready", "token", "KV", "as before")]
                counts = [spread([r[name] for r in rows], "{:.0f}") for name in ("again", "restored", "lost")]
                print(f"{tier:11}{layout:8}" + "".join(f"{text:>17}" for text in times + counts), flush=True)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
