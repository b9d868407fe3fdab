#!/usr/bin/env python3
"""Greedy text side by side: the output.jsonl of godwit (or any OpenAI batch output, or another greedy_reference.py file)
against the file of greedy_reference.py.

Both texts are cut into tokens by the model's own tokenizer unless the line brings its ids. Per prompt: tokens before the first difference,
and there: the two tokens, and by how much the reference preferred its own (its margin). In sum: prompts equal to the end, share of tokens
before the first difference (all that counts: after it the two continue different texts), the share equal place by place, prompt
token counts that differ, and how many first differences are at a margin above --clear.

Two greedy texts part for good at the first near-tie, so the fairer figure is teacher-forced: --write-ids FILE writes prompt and reference
tokens as sequences for `godwit perplexity --ids FILE --dump-logits DUMP`, and --logits DUMP (in place of the answers) tells how often
godwit's best token is the reference's, given the reference's text so far, and the largest margin at which it is not.

Needs: gguf, tokenizers, torch, transformers, numpy (see gguf_hf.py). Exits 1 when a prompt has no answer or --min-equal is missed.
"""
import argparse
import json
import sys

import numpy as np

import gguf_hf


def read_reference(path):
    with open(path, encoding="utf-8") as stream:
        return {line["custom_id"]: line for line in map(json.loads, stream)}


def read_answers(path, tokenizer):
    """custom_id -> (ids, text, prompt tokens or None)"""
    out = {}
    with open(path, encoding="utf-8") as stream:
        for line in map(json.loads, stream):
            if "ids" in line:
                out[line["custom_id"]] = (line["ids"], line["text"], len(line["prompt_ids"]) if "prompt_ids" in line else None)
                continue
            body = line["response"]["body"]
            choice = body["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            out[line["custom_id"]] = (ids, text, body.get("usage", {}).get("prompt_tokens"))
    return out


def first_difference(a, b):
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


def write_sequences(reference, path):
    with open(path, "w") as stream:
        for line in reference.values():
            stream.write(" ".join(map(str, line["prompt_ids"] + line["ids"])) + "\n")


def teacher_forced(reference, vocab, path):
    """Where the dumped logits choose otherwise than the reference, position by position of the reference's own text."""
    rows = np.memmap(path, dtype="<f4", mode="r")
    tokens = sum(len(line["prompt_ids"]) + len(line["ids"]) for line in reference.values())
    if rows.size != tokens * vocab:
        sys.exit(f"greedy_compare: {path} has {rows.size} values; {tokens} tokens of {vocab} are {tokens * vocab}")
    rows, start, same, missed = rows.reshape(tokens, vocab), 0, 0, []
    for custom_id, line in reference.items():
        first = start + len(line["prompt_ids"]) - 1
        for i, want in enumerate(line["ids"]):
            if int(rows[first + i].argmax()) == want:
                same += 1
            else:
                missed.append((line["margins"][i], custom_id, i))
        start += len(line["prompt_ids"]) + len(line["ids"])
    margins = sorted(missed, reverse=True)
    print(f"teacher-forced: {same + len(missed)} positions, same best token {same / (same + len(missed)):.2%}; "
          f"largest margins at the others: " + ", ".join(f"{m:.3f} ({c} token {i})" for m, c, i in margins[:3]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file, for its tokenizer")
    parser.add_argument("reference", help="file of greedy_reference.py")
    parser.add_argument("answers", nargs="?", help="godwit's output.jsonl")
    parser.add_argument("--clear", type=float, default=0.5, help="a margin above this is a clear preference (default 0.5)")
    parser.add_argument("--min-equal", type=float, metavar="X", help="fail below this share of tokens before the first difference")
    parser.add_argument("--write-ids", metavar="FILE", help="write the reference's sequences for a dump of logits, and end")
    parser.add_argument("--logits", metavar="DUMP", help="compare such a dump, teacher-forced, and end")
    parser.add_argument("--texts", action="store_true", help="also print both texts of each prompt that differs")
    args = parser.parse_args()

    tokenizer = gguf_hf.load_tokenizer(args.model)
    reference = read_reference(args.reference)
    if args.write_ids:
        return write_sequences(reference, args.write_ids)
    if args.logits:
        return teacher_forced(reference, tokenizer.get_vocab_size(), args.logits)
    if not args.answers:
        parser.error("give godwit's output.jsonl, --write-ids or --logits")
    answers = read_answers(args.answers, tokenizer)
    missing = [c for c in reference if c not in answers]
    tokens = same_prefix = same_place = whole = clear = prompt_differs = 0
    for custom_id, want in reference.items():
        if custom_id in missing:
            continue
        ids, text, prompt_tokens = answers[custom_id]
        if prompt_tokens is not None and prompt_tokens != len(want["prompt_ids"]):
            prompt_differs += 1
        # Decoded and encoded again, so that both sides went the same way where the answers bring text only.
        theirs = tokenizer.encode(want["text"], add_special_tokens=False).ids
        if theirs != want["ids"] and len(ids) == len(want["ids"]):
            theirs = want["ids"]
        at = first_difference(theirs, ids)
        tokens += len(theirs)
        same_place += sum(x == y for x, y in zip(theirs, ids))
        if at is None:
            whole += 1
            same_prefix += len(theirs)
            continue
        same_prefix += at
        margin = want["margins"][at] if at < len(want["margins"]) else float("nan")
        clear += margin > args.clear
        ends = [tokenizer.decode(x[at : at + 1]) if at < len(x) else "(end)" for x in (theirs, ids)]
        print(f"{custom_id}: differs at token {at} of {len(theirs)}: {ends[0]!r} here {ends[1]!r}, margin {margin:.3f}")
        if args.texts:
            print(f"  reference: {want['text']!r}\n  answer:    {text!r}")
    compared = len(reference) - len(missing)
    share = same_prefix / max(tokens, 1)
    print(f"prompts {compared}, equal to the end {whole}, tokens {tokens}, before the first difference {share:.2%}, "
          f"equal place by place {same_place / max(tokens, 1):.2%}, first differences at a margin > {args.clear}: {clear}, "
          f"prompt token counts that differ: {prompt_differs}")
    if missing:
        sys.exit(f"greedy_compare: no answer for {len(missing)} prompts, first {missing[0]}")
    if args.min_equal is not None and share < args.min_equal:
        sys.exit(f"greedy_compare: below {args.min_equal}")


if __name__ == "__main__":
    main()
