#!/usr/bin/env python3
"""godwit against other engines: same model, same prompts, in turns; then the table and the plot of docs/results.md.

usage: tests/bench/engines.py -o FOLDER [-g GODWIT] [-m MODEL] [--qwen MODEL] [--mixed BATCH] [--llama BINDIR [--llama-model FILE]...]
                              [--vllm PYTHON --vllm-model FOLDER] [-n RUNS] [--long-runs RUNS] [--only ROW,...] [--table]

  -o FOLDER           raw runs (runs.jsonl, appended), table.md, plot.svg and roofline.md; what it holds counts, so a long measurement can be made in parts
  -m MODEL            SmolLM2 Q4_1;  --qwen MODEL: Qwen2.5-Coder-1.5B Q4_K_M (rows qwen-*)
  --mixed BATCH       data/prompts/mixed256.jsonl, which jobs/setup.sh makes (row mixed);  --mixed-prompts N: every so many-th of its lines, N in all
  --llama BINDIR      folder with llama-bench, llama-batched-bench, llama-server;  --llama-model FILE: the same model in another format (llama-quantize), repeatable
  --vllm PYTHON       interpreter that has vLLM;  --vllm-model FOLDER: the model for it (tests/bench/make_hf_model.py)
  -n RUNS             runs of each case (5);  --long-runs RUNS: at most so many of a case whose run takes over 45 s (default: as -n)
  --only ROW,...      some rows (--list names them);  --table: measure nothing, write table and plot of what is there
  --threads N         threads of every engine (2)

Within a row the engines take turns, run by run. A format of llama.cpp that after its first run is more than 15 % behind its best, and is not the file that
godwit reads, is not run again. Nothing else should run on the machine. tests/bench/README.md says what each row measures.
"""
import argparse, json, os, random, shutil, sys, tempfile, time

import engine_godwit, engine_llama, engine_table, engine_vllm

LONG_S = 45
NOT_BEST = 0.85


def format_of(path):
    """Q4_1 of SmolLM2-135M-Instruct.Q4_1.gguf"""
    return os.path.basename(path).rsplit(".", 2)[-2].rsplit("-", 1)[-1]


class Context:
    """What all measurements need: programs, models, a scratch folder, and vLLM once it has been started."""

    def __init__(self, args, scratch):
        self.__dict__.update(vars(args))
        self.scratch = scratch
        self.llama_models = [args.model, *args.llama_model]
        self._vllm_engine = None

    def vllm_run(self, batch):
        if not self._vllm_engine:
            print("starting vLLM, which takes minutes", flush=True)
            self._vllm_engine = engine_vllm.Engine(self)
        return self._vllm_engine.run(batch)

    def close(self):
        if self._vllm_engine:
            self._vllm_engine.close()

    def batch(self, name, requests, prompt, gen):
        """A batch file of random token ids, which any engine takes as they are."""
        path = os.path.join(self.scratch, name)
        rng = random.Random(name)
        with open(path, "w") as f:
            for i in range(requests):
                ids = [rng.randrange(100, 49000) for _ in range(prompt)]
                body = {"prompt": ids, "max_tokens": gen, "ignore_eos": True, "temperature": 0}
                f.write(json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
        return path

    def mixed_batch(self):
        """The real prompts; every answer goes on to max_tokens, so that all engines generate as much."""
        path = os.path.join(self.scratch, "mixed.jsonl")
        with open(self.mixed) as f:
            lines = [json.loads(line) for line in f]
        count = min(self.mixed_prompts, len(lines))
        with open(path, "w") as f:
            for i in range(count):
                line = lines[i * len(lines) // count]
                line["body"]["ignore_eos"] = True
                f.write(json.dumps(line) + "\n")
        return path

    def server_model(self):
        """llama.cpp's best format: by the runs of row decode64 in this folder, else the last that was named."""
        runs = engine_table.read_runs(self.output)
        best = engine_table.best_peer(runs, "decode64", "llama.cpp ")
        return next((m for m in self.llama_models if best == "llama.cpp " + format_of(m)), self.llama_models[-1])


# ---- rows: name -> function of the context that gives {case: function that runs it once}

def llama_cases(context, run):
    if not context.llama:
        return {}
    return {f"llama.cpp {format_of(m)}": (lambda m=m: run(m)) for m in context.llama_models}


def row_decode64(c):
    return {"godwit": lambda: engine_godwit.bench(c, c.model, 64, 128, 128, "decode_tokens_per_s"),
            **llama_cases(c, lambda m: engine_llama.batched(c, m, 64, 128, 128, "speed_tg"))}


def row_decode1(c):
    return {"godwit": lambda: engine_godwit.bench(c, c.model, 1, 128, 128, "decode_tokens_per_s"),
            **llama_cases(c, lambda m: engine_llama.bench(c, m, ["-p", 0, "-n", 128, "-d", 128]))}


def row_prefill512(c):
    return {"godwit": lambda: engine_godwit.bench(c, c.model, 1, 512, 1, "prefill_tokens_per_s"),
            **llama_cases(c, lambda m: engine_llama.bench(c, m, ["-p", 512, "-n", 0]))}


def row_qwen_decode32(c):
    cases = {"godwit": lambda: engine_godwit.bench(c, c.qwen, 32, 32, 32, "decode_tokens_per_s")}
    if c.llama:
        cases["llama.cpp " + format_of(c.qwen)] = lambda: engine_llama.batched(c, c.qwen, 32, 32, 32, "speed_tg")
    return cases


def row_qwen_prefill(c):
    cases = {"godwit": lambda: engine_godwit.bench(c, c.qwen, 1, 512, 1, "prefill_tokens_per_s")}
    if c.llama:
        cases["llama.cpp " + format_of(c.qwen)] = lambda: engine_llama.bench(c, c.qwen, ["-p", 512, "-n", 0])
    return cases


def row_whole128(c):
    batch = c.batch("whole128.jsonl", 128, 128, 128)
    cases = {"godwit": lambda: engine_godwit.job(c, c.model, batch, ["-t", c.threads])}
    if c.vllm:
        cases["vLLM BF16"] = lambda: c.vllm_run(batch)
    return cases


def row_mixed(c):
    batch = c.mixed_batch()
    cases = {"godwit": lambda: engine_godwit.job(c, c.model, batch, ["-t", c.threads])}
    if c.llama:
        model = c.server_model()
        cases[f"llama.cpp server {format_of(model)}"] = lambda: engine_llama.serve(c, model, batch, 32, 768)
    if c.vllm:
        cases["vLLM BF16"] = lambda: c.vllm_run(batch)
    return cases


def row_first_token(c):
    return {"godwit run": lambda: engine_godwit.first_token(c, c.model, "run"), "godwit rank": lambda: engine_godwit.first_token(c, c.model, "rank")}


def row_ranks(c):
    batch = c.batch("ranks.jsonl", 64, 128, 128)
    split = lambda layout: (lambda: engine_godwit.job_steps(c, c.model, batch, ["--layout", layout, "-t", c.threads // 2, "--spares", 0]))
    return {"1 rank": lambda: engine_godwit.job_steps(c, c.model, batch, ["--layout", "1x1x1", "-t", c.threads]), "TP2": split("1x2x1"),
            "PP2": split("1x1x2"), "DP2": split("2x1x1")}


def row_memory(c):
    batch = c.batch("memory.jsonl", 64, 128, 32)
    kv = 64 << 20  # less than the requests would fill, so that all of it is resident
    case = lambda layout, ranks: (lambda: engine_godwit.memory(c, c.model, batch, ["--layout", layout, "-t", c.threads // ranks, "--spares", 0, "--kv-memory", "64M", "--context", 1024], ranks * kv))
    return {"1x1x1": case("1x1x1", 1), "2x1x1": case("2x1x1", 2), "1x2x1": case("1x2x1", 2)}


def row_roofline(c):
    return {"godwit": lambda: engine_godwit.kernels(c)}


ROWS = {"decode64": row_decode64, "decode1": row_decode1, "prefill512": row_prefill512, "qwen-decode32": row_qwen_decode32,
        "qwen-prefill": row_qwen_prefill, "first-token": row_first_token, "ranks": row_ranks, "memory": row_memory, "roofline": row_roofline,
        "whole128": row_whole128, "mixed": row_mixed}  # those that need vLLM last, so that it is started once and late
RUNS_OF = {"memory": 2, "roofline": 1}  # that do not vary


def wanted(context, row, case, runs):
    """May this case run once more?"""
    done = runs.get((row, case), [])
    most = min(context.n, RUNS_OF.get(row, context.n))
    if done and done[0]["took_s"] > LONG_S and case != "godwit":
        most = min(most, context.long_runs)
    if len(done) >= most:
        return False
    if done and case.startswith("llama.cpp ") and case != "llama.cpp " + format_of(context.model) and row in ("decode64", "decode1", "prefill512"):
        figures = [r[0]["value"] for (r_row, r_case), r in runs.items() if r_row == row and r_case.startswith("llama.cpp ")]
        return done[0]["value"] >= NOT_BEST * max(figures)
    return True


def measure(context, rows):
    failed = False
    for row in rows:
        cases = ROWS[row](context)
        for turn in range(context.n):
            for case, run in cases.items():
                if not wanted(context, row, case, engine_table.read_runs(context.output)):
                    continue
                begin = time.time()
                try:
                    result = run()
                except (RuntimeError, OSError, ValueError, KeyError) as error:
                    print(f"{row:14} {case:24} FAILED: {error}", flush=True)
                    failed = True
                    continue
                took_s = time.time() - begin
                line = {"row": row, "case": case, "time": begin, "took_s": took_s, "threads": context.threads, **result}
                with open(os.path.join(context.output, "runs.jsonl"), "a") as f:
                    f.write(json.dumps(line) + "\n")
                print(f"{row:14} {case:24} run {turn + 1}: {result['value']:10.2f}   ({took_s:.1f} s)", flush=True)
    return failed


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="output", required=False)
    parser.add_argument("-g", dest="godwit", default="build/godwit")
    parser.add_argument("-m", dest="model", default="data/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--qwen")
    parser.add_argument("--mixed", default="data/prompts/mixed256.jsonl")
    parser.add_argument("--mixed-prompts", type=int, default=256)
    parser.add_argument("--llama")
    parser.add_argument("--llama-model", action="append", default=[])
    parser.add_argument("--vllm")
    parser.add_argument("--vllm-model")
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--long-runs", type=int)
    parser.add_argument("--only")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.long_runs = args.long_runs or args.n
    if args.list:
        print("\n".join(ROWS))
        sys.exit(0)
    if not args.output:
        parser.error("-o FOLDER is needed")
    if bool(args.vllm) != bool(args.vllm_model):
        parser.error("--vllm and --vllm-model go together")
    return args


def main():
    args = parse()
    rows = args.only.split(",") if args.only else [r for r in ROWS if (args.qwen or not r.startswith("qwen")) and (os.path.exists(args.mixed) or r != "mixed")]
    for row in rows:
        if row not in ROWS:
            sys.exit(f"engines: there is no row '{row}': {', '.join(ROWS)}")
        if row.startswith("qwen") and not args.qwen:
            sys.exit(f"engines: row {row} needs --qwen MODEL")
    os.makedirs(args.output, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="gw-engines.")
    context = Context(args, scratch)
    try:
        failed = not args.table and measure(context, rows)
    finally:
        context.close()
        shutil.rmtree(scratch, ignore_errors=True)
    engine_table.write(args.output)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
