#!/usr/bin/env python3
"""Greedy text of real prompts by transformers in float32 on the dequantized weights of a GGUF file.

Reads a batch file as godwit does (OpenAI batch lines or the plain form; chats only), takes the first --limit lines, and writes one JSON
line each: custom_id, messages, prompt_ids, ids (without the stop token), text, finish_reason, and margins: how far the best logit
was ahead of the second at each step. A small margin is where another arithmetic may rightly choose otherwise.
With --batch it also writes the same prompts as a batch file for godwit (temperature 0, max_tokens as here).

Prompts: `jobs/prompts.py` writes quickstart.jsonl, 80 MT-bench questions. Needs: torch, transformers, tokenizers, gguf, numpy, jinja2.
"""
import argparse
import json
import sys

import torch
import transformers

import gguf_hf


def read_batch(path, limit):
    """[(custom_id, messages)]"""
    out = []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip() or len(out) == limit:
                continue
            request = json.loads(line)
            body = request.get("body", request)
            if "messages" not in body:
                sys.exit(f"greedy_reference: {path}:{number}: no messages")
            out.append((request.get("custom_id") or request.get("id") or f"line-{number}", body["messages"]))
    return out


def generate(model, prompt_ids, stops, count):
    """ids, margins, finish_reason"""
    cache = transformers.DynamicCache()
    ids, margins, feed = [], [], prompt_ids
    while len(ids) < count:
        logits = model(torch.tensor([feed]), past_key_values=cache, use_cache=True, num_logits_to_keep=1).logits[0, -1]
        two = logits.topk(2).values
        best = int(logits.argmax())
        margins.append(round(float(two[0] - two[1]), 5))
        if best in stops:
            return ids, margins, "stop"
        ids.append(best)
        feed = [best]
    return ids, margins, "length"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("-i", "--input", required=True, help="batch file with chats")
    parser.add_argument("-o", "--output", required=True, help="JSON lines to write")
    parser.add_argument("--batch", help="also write the prompts as a batch file for godwit")
    parser.add_argument("--limit", type=int, default=64, help="prompts (default 64)")
    parser.add_argument("--gen", type=int, default=64, help="new tokens at most (default 64)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    prompts = read_batch(args.input, args.limit)
    if args.batch:
        with open(args.batch, "w", encoding="utf-8") as stream:
            for custom_id, messages in prompts:
                body = {"messages": messages, "max_tokens": args.gen, "temperature": 0}
                line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    tokenizer, stops = gguf_hf.load_tokenizer(args.model), gguf_hf.stop_ids(args.model)
    model = gguf_hf.load_model(args.model)
    with open(args.output, "w", encoding="utf-8") as stream:
        for number, (custom_id, messages) in enumerate(prompts, 1):
            prompt_ids = tokenizer.encode(gguf_hf.render_chat(args.model, messages), add_special_tokens=False).ids
            with torch.inference_mode():
                ids, margins, reason = generate(model, prompt_ids, stops, args.gen)
            text = tokenizer.decode(ids, skip_special_tokens=False)
            line = {"custom_id": custom_id, "messages": messages, "prompt_ids": prompt_ids, "ids": ids, "text": text,
                    "finish_reason": reason, "margins": margins}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            print(f"[{number}/{len(prompts)}] {custom_id}: {len(prompt_ids)} + {len(ids)} {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
