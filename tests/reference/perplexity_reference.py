#!/usr/bin/env python3
"""Perplexity of a text by transformers in float32 on the dequantized weights of a GGUF file.

Two figures over the same chunks of --ctx tokens, each chunk evaluated on its own from position 0, the unfilled tail dropped:
  half   positions ctx/2 .. ctx-2 predict their next token: what llama.cpp's llama-perplexity and `godwit perplexity` compute
  plain  positions 0 .. ctx-2 do
One newline at the end of the file is dropped first; special tokens in the text are plain text; no BOS (neither model wants one).

Needs: torch, transformers, tokenizers, gguf, numpy (see gguf_hf.py). Text: get_text.sh.
"""
import argparse
import json
import math
import sys

import torch

import gguf_hf


def chunk_nll(model, ids):
    """Negative log-likelihoods (float64) of ids[1:] given what is before them."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    picked = torch.tensor(ids[1:])
    nll = torch.empty(len(ids) - 1, dtype=torch.float64)
    for start in range(0, len(nll), 64):  # a few rows at a time in double, so that a vocabulary of 150,000 stays small
        rows = logits[start : start + 64].double()
        nll[start : start + 64] = -rows.log_softmax(-1).gather(1, picked[start : start + 64, None])[:, 0]
    return nll


def summary(parts):
    nll = torch.cat(parts)
    mean = nll.mean().item()
    error = math.sqrt(max(nll.var(unbiased=False).item(), 0.0) / (len(nll) - 1))
    return {"perplexity": math.exp(mean), "error": error * math.exp(mean), "nll": mean, "tokens": len(nll)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("-f", "--file", required=True, help="text file")
    parser.add_argument("--ctx", type=int, default=512, help="tokens a chunk (default 512)")
    parser.add_argument("--chunks", type=int, help="only so many chunks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", help="also write the figures as JSON")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    with open(args.file, encoding="utf-8", newline="") as stream:
        text = stream.read().removesuffix("\n")
    ids = gguf_hf.plain_ids(args.model, text)
    chunks = len(ids) // args.ctx
    chunks = min(chunks, args.chunks or chunks)
    if chunks == 0:
        sys.exit(f"perplexity_reference: {len(ids)} tokens do not fill one chunk of {args.ctx}")
    model = gguf_hf.load_model(args.model)
    half, plain = [], []
    for c in range(chunks):
        with torch.inference_mode():
            nll = chunk_nll(model, ids[c * args.ctx : (c + 1) * args.ctx])
        plain.append(nll)
        half.append(nll[args.ctx // 2 :])
        running = summary(half)["perplexity"]
        print(f"[{c + 1}/{chunks}] half {running:.4f} plain {summary(plain)['perplexity']:.4f}", file=sys.stderr, flush=True)
    result = {"ids": len(ids), "ctx": args.ctx, "chunks": chunks, "half": summary(half), "plain": summary(plain)}
    result["half_nll_by_chunk"] = [round(p.mean().item(), 7) for p in half]
    print(json.dumps(result, indent=1))
    if args.output:
        with open(args.output, "w") as stream:
            json.dump(result, stream, indent=1)
            stream.write("\n")


if __name__ == "__main__":
    main()
