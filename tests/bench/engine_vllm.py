"""vLLM as an engine of engines.py. This file is two programs: imported, it starts and asks the other; run by vLLM's own interpreter, it is the other.

The engine is started once and kept for all runs that need it; it is stopped by SIGSTOP while other engines are measured, so that it takes no CPU from them.
The prefix cache is emptied before each run. Questions and answers are lines of JSON over two pipes of their own, since vLLM writes to its output.
"""
import json, os, sys, time

START_LIMIT_S = 900
RUN_LIMIT_S = 1800


class Engine:
    def __init__(self, context):
        import select, signal, subprocess

        self._select, self._signal = select, signal
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        lib = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(context.vllm))), "lib", "libiomp5.so")
        environment = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{context.threads - 1}",
                       "OMP_NUM_THREADS": str(context.threads), "VLLM_LOGGING_LEVEL": "INFO",
                       **({"LD_PRELOAD": lib} if os.path.exists(lib) else {}), **os.environ}
        self.command = [context.vllm, os.path.abspath(__file__), context.vllm_model, str(to_child), str(from_child)]
        self.log = open(os.path.join(context.output, "vllm.log"), "a")
        begin = time.monotonic()
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment,
                                        pass_fds=(to_child, from_child), start_new_session=True)
        os.close(to_child)
        os.close(from_child)
        self._pending = b""
        try:
            self._answer(START_LIMIT_S)
        except RuntimeError:
            self.close()
            raise
        self.start_s = time.monotonic() - begin
        self.pause()

    def _answer(self, limit_s):
        end = time.monotonic() + limit_s
        while b"\n" not in self._pending:
            if not self._select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise RuntimeError(f"vLLM gave no answer for {limit_s} s: see {self.log.name}")
            got = os.read(self._read, 65536)
            if not got:
                raise RuntimeError(f"vLLM ended: see {self.log.name}")
            self._pending += got
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def pause(self):
        os.killpg(self.process.pid, self._signal.SIGSTOP)

    def run(self, batch):
        """Generates all requests of a batch file at once; seconds without start-up."""
        os.killpg(self.process.pid, self._signal.SIGCONT)
        os.write(self._write, (json.dumps({"batch": batch}) + "\n").encode())
        result = self._answer(RUN_LIMIT_S)
        self.pause()
        if "error" in result:
            raise RuntimeError(f"vLLM: {result['error']}")
        return {"value": result["tokens"] / result["seconds"], **result, "start_s": self.start_s, "command": self.command}

    def close(self):
        for number in (self._signal.SIGCONT, self._signal.SIGTERM):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                pass
        try:
            self.process.wait(20)
        except Exception:
            pass
        try:
            os.killpg(self.process.pid, self._signal.SIGKILL)  # its workers, too
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()


def generate(llm, batch):
    from vllm import SamplingParams

    with open(batch) as f:
        bodies = [json.loads(line)["body"] for line in f]
    # without the requests' seeds: on a CPU vLLM 0.32.0 dies of one ("CPU Generator does not use offset")
    params = [SamplingParams(temperature=b.get("temperature", 1), top_p=b.get("top_p", 1), max_tokens=b["max_tokens"],
                             ignore_eos=b.get("ignore_eos", False)) for b in bodies]
    llm.reset_prefix_cache()
    begin = time.monotonic()
    if "messages" in bodies[0]:
        outputs = llm.chat([b["messages"] for b in bodies], params, use_tqdm=False)
    else:
        outputs = llm.generate([{"prompt_token_ids": b["prompt"]} for b in bodies], params, use_tqdm=False)
    seconds = time.monotonic() - begin
    return {"seconds": seconds, "tokens": sum(len(o.outputs[0].token_ids) for o in outputs), "prompt_tokens": sum(len(o.prompt_token_ids) for o in outputs)}


def main():
    from vllm import LLM

    model, questions, answers = sys.argv[1], os.fdopen(int(sys.argv[2])), os.fdopen(int(sys.argv[3]), "w", buffering=1)
    llm = LLM(model=model, dtype="bfloat16", max_model_len=1024, max_num_seqs=256)
    answers.write("{}\n")
    for line in questions:
        try:
            result = generate(llm, json.loads(line)["batch"])
        except Exception as error:  # told to the one who asked
            result = {"error": repr(error)}
        answers.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
