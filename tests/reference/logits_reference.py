#!/usr/bin/env python3
"""Reference logits: transformers in float32 on the dequantized weights of a GGUF file, for 12 fixed sequences of token ids.

Writes, for -o PREFIX:
  PREFIX.json  the golden file: per sequence its ids and, at some positions, the ten largest logits with their ids, a strided sample of
               logits (every `stride`-th id from `offset`), and over the whole row: mean, norm of (logits - mean), log-sum-exp
  PREFIX.ids   the sequences, one a line, ids separated by blanks: what `godwit perplexity --ids` reads
  --full FILE  every logit of every position, float32 little-endian [tokens][vocab]: what logits_compare.py holds godwit's dump against

The rows come from one prefill per sequence. With --check-decode the last (up to 32) tokens of each sequence are also run token by
token through the KV cache, and the largest difference is printed: it says how far float32 alone moves the logits.

Needs: torch, transformers, tokenizers, gguf, numpy (see gguf_hf.py). Text of the long sequence: get_text.sh.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
import transformers

import gguf_hf

CHAT = [
    [{"role": "user", "content": "What is the capital of France, and what is it known for?"}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters blue light more than red light."},
        {"role": "user", "content": "And why are sunsets red?"},
    ],
]
TEXTS = [
    "The",
    " of the",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the",
    "#include <stdio.h>\n\nint main(int argc, char **argv)\n{\n    for (int i = 0; i < argc; i++)\n        printf(\"%d: %s\\n\", i,",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    if n < 2:\n        return n\n    return",
    "{\"name\": \"bar-tailed godwit\", \"wingspan_cm\": 75, \"flight_km\": 13560, \"stops\": [], \"tags\": [\"bird\", \"",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神",
    "3 + 4 = 7\n12 + 30 = 42\n105 + 17 = 122\n250 + 250 =",
]
LONG_TOKENS = 600  # more than one prefill chunk, many KV pages
TOP, SAMPLES, POSITIONS, PREFILL = 10, 224, 8, 16


def sequences(model_path, text_path):
    """[(name, ids)]: the same for everyone who has the model and the text."""
    tokenizer = gguf_hf.load_tokenizer(model_path)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    out = [(f"text-{i}", encode(t)) for i, t in enumerate(TEXTS)]
    out += [(f"chat-{i}", encode(gguf_hf.render_chat(model_path, m))) for i, m in enumerate(CHAT)]
    with open(text_path, encoding="utf-8", newline="") as stream:
        out.append(("long", encode(stream.read())[:LONG_TOKENS]))
    return out


def decode_difference(model, ids, rows):
    """Relative distance (over centred logits) of token-by-token decoding to the rows of one prefill."""
    begin = max(PREFILL, len(ids) - 32)
    step = model(torch.tensor([ids[:begin]]), past_key_values=transformers.DynamicCache(), use_cache=True)
    worst = 0.0
    for position in range(begin, len(ids)):
        step = model(torch.tensor([[ids[position]]]), past_key_values=step.past_key_values, use_cache=True)
        a, b = step.logits[0, -1].numpy(), rows[position]
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean())))
    return worst


def golden_rows(rows, stride, offset):
    count = rows.shape[0]
    chosen = sorted({round(i * (count - 1) / max(POSITIONS - 1, 1)) for i in range(POSITIONS)})
    out = []
    for position in chosen:
        row = rows[position].astype(np.float64)
        top = np.argsort(-row, kind="stable")[:TOP]
        out.append({
            "position": position,
            "mean": round(float(row.mean()), 6),
            "centred_norm": round(float(np.linalg.norm(row - row.mean())), 4),
            "log_sum_exp": round(float(np.log(np.exp(row - row.max()).sum()) + row.max()), 6),
            "top_ids": top.tolist(),
            "top_logits": [round(float(row[i]), 5) for i in top],
            "sample": [round(float(v), 4) for v in row[offset::stride]],
        })
    return out


def write_golden(prefix, golden):
    """JSON with a position a line, so that a diff of two goldens can be read."""
    head = {k: v for k, v in golden.items() if k != "sequences"}
    with open(prefix + ".json", "w") as stream:
        stream.write(json.dumps(head)[:-1] + ', "sequences": [\n')
        for i, s in enumerate(golden["sequences"]):
            rows = ",\n".join("  " + json.dumps(r, separators=(",", ":")) for r in s["rows"])
            stream.write(f' {{"name": "{s["name"]}", "ids": {json.dumps(s["ids"])}, "rows": [\n{rows}]}}')
            stream.write(",\n" if i + 1 < len(golden["sequences"]) else "\n")
        stream.write("]}\n")
    with open(prefix + ".ids", "w") as stream:
        for s in golden["sequences"]:
            stream.write(" ".join(map(str, s["ids"])) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("-o", "--output", required=True, metavar="PREFIX", help="writes PREFIX.json and PREFIX.ids")
    parser.add_argument("--text", required=True, help="the file that get_text.sh writes")
    parser.add_argument("--full", help="also every logit, raw float32")
    parser.add_argument("--check-decode", action="store_true", help="also run token by token and print the difference")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = gguf_hf.load_model(args.model)
    vocab = model.config.vocab_size
    stride = vocab // SAMPLES
    offset = vocab % SAMPLES % stride
    golden = {"model": os.path.basename(args.model), "vocab": vocab, "stride": stride, "offset": offset, "sequences": []}
    full = open(args.full, "wb") if args.full else None
    for name, ids in sequences(args.model, args.text):
        with torch.inference_mode():
            rows = model(torch.tensor([ids])).logits[0].numpy()
            note = ""
            if args.check_decode and len(ids) > PREFILL:
                note = f", decode differs by {decode_difference(model, ids, rows):.2e}"
        if full:
            full.write(rows.astype("<f4").tobytes())
        golden["sequences"].append({"name": name, "ids": ids, "rows": golden_rows(rows, stride, offset)})
        print(f"{name}: {len(ids)} tokens{note}", file=sys.stderr, flush=True)
    if full:
        full.close()
    write_golden(args.output, golden)


if __name__ == "__main__":
    main()
