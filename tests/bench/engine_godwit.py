"""godwit as an engine of engines.py: one function a measurement; each gives a dict with `value` (the figure) and what else is worth keeping."""
import json, os, shutil, subprocess, time

from jobs import Job, _alive, _tree

LIMIT_S = 900


def _run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def bench(context, model, batch, prompt, gen, figure):
    """`godwit bench`: the clock is around the steps alone. A short batch is computed twice and the second time counts, as llama-bench warms up."""
    warm = [batch] if batch * (prompt + gen) < 2000 else []
    command = [context.godwit, "bench", "-m", model, "-b", ",".join(map(str, warm + [batch])), "-p", str(prompt), "-g", str(gen), "-t",
               str(context.threads), "--json"]
    last = json.loads(_run(command))[-1]
    return {"value": last[figure], "command": command, **last}


def job(context, model, batch, options=()):
    """`godwit run`: seconds from the start of the process to its end, when the last byte is on disk, and from ready to done by the job's own events."""
    out = os.path.join(context.scratch, "out")
    shutil.rmtree(out, ignore_errors=True)
    begin = time.monotonic()
    running = Job(context.godwit, model, batch, out, options)
    digest = running.finish()
    wall_s = time.monotonic() - begin
    at = {e["event"]: e["time"] for e in running.events()}
    status = running.status()
    if status["requests_failed"]:
        raise RuntimeError(f"{status['requests_failed']} of the requests in {batch} failed: see {out}/errors.jsonl")
    tokens = status["generated_tokens"]
    return {"value": tokens / wall_s, "tokens": tokens, "wall_s": wall_s, "steps_s": at["done"] - at["ready"], "digest": digest,
            "command": [context.godwit, "run", "-m", model, "-i", batch, *map(str, options)]}


def job_steps(context, model, batch, options):
    """As job(), but the figure leaves out start and end: tokens by the time from all ranks ready to all done."""
    result = job(context, model, batch, options)
    return {**result, "value": result["tokens"] / result["steps_s"]}


def first_token(context, model, command):
    """Seconds from the start of the process until the first answer, of one token, is in output.jsonl. `command`: run, or rank (no launcher)."""
    out = os.path.join(context.scratch, "out")
    shutil.rmtree(out, ignore_errors=True)
    batch = os.path.join(context.scratch, "one.jsonl")
    with open(batch, "w") as f:
        f.write('{"id":"first","prompt":"Once upon a time","max_tokens":1,"ignore_eos":true,"temperature":0}\n')
    arguments = [context.godwit, command, "-q", "-m", model, "-i", batch, "-o", out]
    begin = time.monotonic()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen_s = None
    while process.poll() is None:
        try:
            if os.path.getsize(out + "/output.jsonl") > 0:
                seen_s = time.monotonic() - begin
                break
        except FileNotFoundError:
            pass
        if time.monotonic() - begin > 60:
            process.kill()
            break
        time.sleep(0.001)
    errors = process.communicate(timeout=60)[1]
    if process.returncode or seen_s is None:
        raise RuntimeError(f"{' '.join(arguments)}: exit {process.returncode}: {errors}")
    return {"value": seen_s, "wall_s": time.monotonic() - begin, "command": arguments}


def _rollup(pid, key):
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) * 1024 for line in f if line.startswith(key + ":"))


def memory(context, model, batch, options, kv_bytes):
    """The most resident memory (PSS, so that shared pages count once) while a job runs: the ranks', and of all processes that the job started.
    The figure is what the ranks have beyond the KV budget and the packed weights, which `godwit plan` gives, once."""
    weights = weight_bytes(context, model)
    out = os.path.join(context.scratch, "out")
    shutil.rmtree(out, ignore_errors=True)
    running = Job(context.godwit, model, batch, out, options)
    most, most_tree = 0, 0
    while running.process.poll() is None:
        ranks = everyone = 0
        try:
            known = set(running.rank_pids())
            for pid in _tree(running.process.pid):
                pss = _rollup(pid, "Pss") if _alive(pid) else 0
                everyone += pss
                ranks += pss if pid in known else 0
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass  # not written yet, or just gone: the next look is soon
        most, most_tree = max(most, ranks), max(most_tree, everyone)
        time.sleep(0.2)
    running.finish()
    return {"value": (most - weights - kv_bytes) / 1e6, "ranks_mb": most / 1e6, "all_processes_mb": most_tree / 1e6,
            "weights_mb": weights / 1e6, "kv_budget_mb": kv_bytes / 1e6,
            "command": [context.godwit, "run", "-m", model, "-i", batch, *map(str, options)]}


def weight_bytes(context, model):
    """Bytes of all weights as packed in memory, by the planner."""
    return json.loads(_run([context.godwit, "plan", "-m", model, "-n", "1", "--json"]))["candidates"][0]["weight_bytes"]


def kernels(context):
    """The roofline: every kernel's share of the peaks measured in the same run."""
    command = [context.godwit, "bench", "--kernels", "--json", "-t", str(context.threads)]
    table = json.loads(_run(command))
    return {"value": table["peaks"]["int8_gops"], "table": table, "command": command}
