#!/usr/bin/env python3
"""How long a job stands still when it loses something: kill -9, then the next committed token.

usage: tests/bench/recovery.py -m MODEL [-i BATCH] [-n RUNS] [-g GODWIT] [--ranks 4] [--seed 1]

Without BATCH it makes one of 40 short prompts and long answers, so that the job is decoding when it is struck; with long prompts the steps are
long, and the first token after a loss waits for one.

Three tiers, RUNS kills each, at random moments:
  1  one rank is killed (any, the leader included), the launch lives: repair, a new rank, a plan, lost KV computed again
  2  the launcher is killed: the supervisor starts the next launch, which goes on from the journal
  3  everything is killed, the same command is given again
Per tier and layout it prints median and worst of: kill -> everybody ready (weights and pages in place), kill -> next committed token, the
difference (KV computed again), and tokens computed again per kill. Every job is left to finish, and its digest compared with an
undisturbed job's. Benchmarks want a machine with nothing else running.
"""
import argparse, json, os, random, shutil, signal, statistics, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser()
ap.add_argument("-m", "--model", required=True)
ap.add_argument("-i", "--input")
ap.add_argument("-n", "--runs", type=int, default=10)
ap.add_argument("-g", "--godwit", default="./godwit")
ap.add_argument("--ranks", type=int, default=4)
ap.add_argument("--seed", type=int, default=1)
ap.add_argument("--layouts", default="4x1x1,2x2x1,1x1x4")
ap.add_argument("--tiers", default="1,2,3")
args = ap.parse_args()
rng = random.Random(args.seed)
base = tempfile.mkdtemp(prefix="gw-recovery-")


if not args.input:
    args.input = os.path.join(base, "batch.jsonl")
    with open(args.input, "w") as f:
        for i in range(40):
            f.write(json.dumps({"id": f"r{i}", "prompt": f"A story about the number {i}:", "max_tokens": 160, "ignore_eos": True, "seed": i}) + "\n")


def command(layout, out):
    return [args.godwit, "run", "-q", "-m", args.model, "-i", args.input, "-o", out, "-n", str(args.ranks), "--layout", layout]


def start(layout, out):
    return subprocess.Popen(command(layout, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


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


def wait_for(out, name, since=0.0, limit=120):
    end = time.time() + limit
    while time.time() < end:
        for e in events(out):
            if e["event"] == name and e["time"] > since:
                return e
        time.sleep(0.005)
    sys.exit(f"no event '{name}' in {out} for {limit} s")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(x) for x in f.read().split()]


def tree(pid):
    try:
        return [pid] + [p for c in children(pid) for p in tree(c)]
    except FileNotFoundError:
        return []


def status(out):
    with open(out + "/status.json") as f:
        return json.load(f)


def kill(tier, job, out):
    """Kills, and gives the moment of it."""
    if tier == 1:
        with open(out + "/ranks.json") as f:
            ranks = [r["pid"] for r in json.load(f)["ranks"]]
        now = time.time()
        os.kill(rng.choice(ranks), signal.SIGKILL)
    elif tier == 2:
        now = time.time()
        os.kill(children(job.pid)[0], signal.SIGKILL)
    else:
        now = time.time()
        for pid in tree(job.pid):
            os.kill(pid, signal.SIGKILL)
        job.wait()
    return now


def one(tier, layout, wanted):
    out = os.path.join(base, "out")
    shutil.rmtree(out, ignore_errors=True)
    job = start(layout, out)
    ready = wait_for(out, "ready")
    time.sleep(rng.uniform(1.0, 3.0))
    at = kill(tier, job, out)
    if tier == 3:
        at = time.time()
        job = start(layout, out)
    e = wait_for(out, "recovered", at)
    digest = finish(job)
    if digest != wanted:
        sys.exit(f"tier {tier}, {layout}: digest {digest} instead of {wanted}")
    token_s = e["time"] - at
    ready_s = token_s - (e["token_s"] - e["ready_s"]) if "ready_s" in e else None
    return token_s, ready_s, status(out)["recomputed_tokens"]


def row(values):
    return f"{statistics.median(values):7.3f} {max(values):7.3f}" if values else "      -       -"


out = os.path.join(base, "undisturbed")
wanted = finish(start("x".join(map(str, (args.ranks, 1, 1))), out))
print(f"seed {args.seed}, {args.runs} kills each; undisturbed digest {wanted}")
print("seconds: median and worst     kill -> ready      kill -> token   recomputing KV   recomputed tokens (mean)")
for tier in map(int, args.tiers.split(",")):
    for layout in args.layouts.split(","):
        got = [one(tier, layout, wanted) for _ in range(args.runs)]
        token = [g[0] for g in got]
        ready = [g[1] for g in got if g[1] is not None]
        again = [g[0] - g[1] for g in got if g[1] is not None]
        print(f"tier {tier}  {layout:8}          {row(ready)}    {row(token)}  {row(again)}   {statistics.mean(g[2] for g in got):8.0f}", flush=True)
shutil.rmtree(base)
