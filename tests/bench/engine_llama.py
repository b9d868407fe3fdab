"""llama.cpp as an engine of engines.py: its own llama-batched-bench and llama-bench, and llama-server driven with a batch file."""
import http.client, json, os, queue, secrets, socket, subprocess, threading, time

LIMIT_S = 1800


def _tool(context, name):
    return os.path.join(context.llama, name)


def _run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def batched(context, model, batch, prompt, gen, figure):
    """llama-batched-bench: the clock is around the steps alone, as in `godwit bench`. figure: speed_tg (decode) or speed_pp (prefill)."""
    threads = str(context.threads)
    command = [_tool(context, "llama-batched-bench"), "-m", model, "-c", str(batch * (prompt + gen)), "-b", "2048", "-ub", "512", "-npp", str(prompt),
               "-ntg", str(gen), "-npl", str(batch), "-t", threads, "-tb", threads, "--no-kv-unified", "--output-format", "jsonl"]
    lines = [json.loads(line) for line in _run(command).splitlines() if line.startswith("{")]
    return {"value": lines[-1][figure], "command": command, **lines[-1]}


def bench(context, model, options):
    """llama-bench, one repetition after its warm-up."""
    command = [_tool(context, "llama-bench"), "-m", model, "-t", str(context.threads), "-r", "1", "-o", "json", *map(str, options)]
    return {"value": json.loads(_run(command))[-1]["avg_ts"], "command": command}


class Server:
    """llama-server on a free port of this machine alone, with a key that nobody else knows."""

    def __init__(self, context, model, slots, slot_tokens):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.key = secrets.token_hex(16)
        threads = str(context.threads)
        self.command = [_tool(context, "llama-server"), "-m", model, "-c", str(slots * slot_tokens), "-np", str(slots), "-b", "2048", "-ub", "512", "-t",
                        threads, "-tb", threads, "--no-kv-unified", "--host", "127.0.0.1", "--port", str(self.port)]
        self.log = open(os.path.join(context.scratch, "llama-server.log"), "w")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, env={**os.environ, "LLAMA_API_KEY": self.key})

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait_ready(self, limit_s=120):
        end = time.monotonic() + limit_s
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise RuntimeError(f"llama-server is not ready: see {self.log.name}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def serve(context, model, batch, slots, slot_tokens):
    """All requests of a batch file through llama-server, as many at a time as it has slots; from the start of the server to the last answer on disk."""
    with open(batch) as f:
        lines = [json.loads(line) for line in f]
    waiting = queue.SimpleQueue()
    for line in lines:
        waiting.put(line)
    tokens, failures, lock = [], [], threading.Lock()
    out = os.path.join(context.scratch, "llama-output.jsonl")
    begin = time.monotonic()
    server = Server(context, model, slots, slot_tokens)

    def client(file):
        while not failures:
            try:
                line = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                status, text = server.ask("POST", line["url"], line["body"])
                if status != 200:
                    raise RuntimeError(f"{line['custom_id']}: HTTP {status}: {text[:300]}")
                answer = json.loads(text)
                with lock:
                    tokens.append((answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]))
                    file.write(json.dumps({"custom_id": line["custom_id"], "response": answer}) + "\n")
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                failures.append(error)

    try:
        server.wait_ready()
        ready_s = time.monotonic() - begin
        with open(out, "w") as file:
            clients = [threading.Thread(target=client, args=(file,)) for _ in range(slots)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            file.flush()
            os.fsync(file.fileno())
        wall_s = time.monotonic() - begin
    finally:
        server.stop()
    if failures:
        raise RuntimeError(f"llama-server: {failures[0]}")
    generated = sum(t[1] for t in tokens)
    return {"value": generated / wall_s, "tokens": generated, "prompt_tokens": sum(t[0] for t in tokens), "wall_s": wall_s, "ready_s": ready_s,
            "command": server.command}
