"""From the raw runs of engines.py to docs/results.md's table, a plot (SVG) and the roofline table."""
import json, os, statistics

# row: (what, unit, [(peer: a case, "best PREFIX", or a list of cases that are compared with the first, wanted ratio)])
TARGETS = {
    "decode64": ("decode, 64 sequences, 128 in / 128 out", "tokens/s", [("best llama.cpp ", 3.5), ("llama.cpp Q4_1", 6)]),
    "whole128": ("128 x (128 in + 128 out): godwit the whole process, vLLM without start-up", "tokens/s", [("vLLM BF16", 2)]),
    "decode1": ("decode, 1 sequence, after 128 tokens", "tokens/s", [("best llama.cpp Q4", 1.2)]),
    "prefill512": ("prefill, 512 tokens", "tokens/s", [("best llama.cpp ", 3)]),
    "mixed": ("mixed real prompts: whole process to the last byte on disk (vLLM without start-up)", "tokens/s", [("best llama.cpp server ", 5), ("vLLM BF16", 1)]),
    "qwen-decode32": ("Qwen 1.5B Q4_K_M: decode, 32 sequences, 32 in / 32 out", "tokens/s", [("best llama.cpp ", 2)]),
    "qwen-prefill": ("Qwen 1.5B Q4_K_M: prefill, 512 tokens", "tokens/s", [("best llama.cpp ", 2)]),
    "first-token": ("start of the process to the first answer on disk", "s", []),
    "ranks": ("64 x (128 + 128), from ready to done: 2 ranks of 1 thread against 1 of 2", "tokens/s", []),
    "memory": ("resident memory of the ranks beyond weights once and the KV budget", "MB", []),
}
ABSOLUTE = {("first-token", "godwit run"): ("under", 0.3), ("first-token", "godwit rank"): ("under", 0.3),
            **{("memory", layout): ("under", 100) for layout in ("1x1x1", "2x1x1", "1x2x1")}}
RELATIVE = {("ranks", "TP2"): 0.8, ("ranks", "PP2"): 0.8, ("ranks", "DP2"): 0.95}
COLORS = {"godwit": "#2166ac", "llama.cpp": "#d6604d", "vLLM": "#8c6bb1"}


def read_runs(folder):
    """{(row, case): [run, ...]} of runs.jsonl; a torn last line is left out."""
    runs = {}
    try:
        with open(os.path.join(folder, "runs.jsonl")) as f:
            for line in f:
                if line.endswith("\n"):
                    run = json.loads(line)
                    runs.setdefault((run["row"], run["case"]), []).append(run)
    except FileNotFoundError:
        pass
    return runs


def median(runs, row, case):
    return statistics.median(r["value"] for r in runs[row, case])


def best_peer(runs, row, prefix):
    cases = [case for r, case in runs if r == row and case.startswith(prefix)]
    return max(cases, key=lambda case: median(runs, row, case), default=None)


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def verdict(runs, row, case):
    """What a case comes to against its target, as text."""
    value = median(runs, row, case)
    if (row, case) in ABSOLUTE:
        bound = ABSOLUTE[row, case][1]
        return f"under {bound}: {'yes' if value < bound else 'NO'}"
    if (row, case) in RELATIVE and (row, "1 rank") in runs:
        ratio, wanted = value / median(runs, row, "1 rank"), RELATIVE[row, case]
        return f"{ratio:.2f} of 1 rank; at least {wanted}: {'yes' if ratio >= wanted else 'NO'}"
    parts = []
    for peer, wanted in TARGETS[row][2] if case == "godwit" else []:
        name = best_peer(runs, row, peer[len("best "):]) if peer.startswith("best ") else peer
        if (row, name) not in runs:
            continue
        ratio = value / median(runs, row, name)
        parts.append(f"{ratio:.2f} x {name}; at least {wanted}: {'yes' if ratio >= wanted else 'NO'}")
    return "<br>".join(parts)


def table(runs):
    lines = ["| what | engine | median | lowest - highest | runs | against the target |", "|---|---|---|---|---|---|"]
    for row, (what, unit, _) in TARGETS.items():
        for case in [c for r, c in runs if r == row]:
            values = [r["value"] for r in runs[row, case]]
            lines.append(f"| {what} | {case} | {number(statistics.median(values))} {unit} | {number(min(values))} - {number(max(values))} | {len(values)} "
                         f"| {verdict(runs, row, case)} |")
            what = ""
    notes = [("whole128", "vLLM BF16", "start_s", "vLLM's start, not counted above: {} s."), ("mixed", "godwit", "tokens", "Mixed prompts: {} generated tokens by each engine.")]
    lines.append("")
    for row, case, key, text in notes:
        if (row, case) in runs:
            lines.append(text.format(number(statistics.median(r[key] for r in runs[row, case]))))
    return "\n".join(lines) + "\n"


def roofline(runs):
    """Newest run of `godwit bench --kernels --json` as a table: share of the peak that binds each kernel."""
    if ("roofline", "godwit") not in runs:
        return None
    data = runs["roofline", "godwit"][-1]["table"]
    peaks = data["peaks"]
    lines = [f"Kernels {data['kernels']}, {data['threads']} threads. Peaks of the same run: int8 dots {peaks['int8_gops']:.0f} GOP/s, float32 multiply-add "
             f"{peaks['fp32_gflops']:.0f} GFLOP/s, memory read {peaks['read_gb_per_s']:.1f} GB/s of 96 MiB, {peaks['read_far_gb_per_s']:.1f} of 512 MiB.", "",
             "| kernel | rows | one pass | arithmetic | of peak | memory | of peak |", "|---|---|---|---|---|---|---|"]
    for k in data["cases"]:
        ops = f"{k['gops']:.1f} G/s ({k['peak']}) | {100 * k['ops_share']:.0f} %" if k.get("gops") else " | "
        read = f"{k['gb_per_s']:.1f} GB/s | {100 * k['read_share']:.0f} %" if k.get("gb_per_s") else " | "
        lines.append(f"| {k['name']} | {k['rows']} | {k['us']:.1f} us | {ops} | {read} |")
    return "\n".join(lines) + "\n"


def plot(runs):
    """Bars, a row's engines side by side, each as a share of the row's fastest."""
    rows = [row for row, (_, unit, _) in TARGETS.items() if unit == "tokens/s" and row != "ranks" and any(r == row for r, _ in runs)]
    bars, y = [], 40
    for row in rows:
        bars.append(f'<text x="10" y="{y}" font-weight="bold">{TARGETS[row][0].split(":")[0] if row in ("mixed", "whole128") else TARGETS[row][0]}</text>')
        cases = [case for r, case in runs if r == row]
        most = max(median(runs, row, case) for case in cases)
        for case in sorted(cases, key=lambda case: -median(runs, row, case)):
            y += 20
            value = median(runs, row, case)
            color = next(c for name, c in COLORS.items() if case.startswith(name))
            bars.append(f'<text x="20" y="{y}">{case}</text><rect x="180" y="{y - 11}" width="{400 * value / most:.1f}" height="14" fill="{color}"/>'
                        f'<text x="{186 + 400 * value / most:.1f}" y="{y}">{number(value)}</text>')
        y += 34
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" font-family="sans-serif" font-size="13">'
            f'<rect width="100%" height="100%" fill="white"/><text x="10" y="16">tokens/s, median of the runs; the same threads, prompts and model</text>\n'
            + "\n".join(bars) + "\n</svg>\n")


def write(folder):
    runs = read_runs(folder)
    texts = {"table.md": table(runs), "plot.svg": plot(runs), "roofline.md": roofline(runs)}
    for name, text in texts.items():
        if text:
            with open(os.path.join(folder, name), "w") as f:
                f.write(text)
    print(texts["table.md"])
