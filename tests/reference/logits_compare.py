#!/usr/bin/env python3
"""Holds logits dumped by godwit against the float32 reference.

  godwit perplexity -m MODEL.gguf --ids PREFIX.ids --dump-logits OUT.f32               then  logits_compare.py PREFIX.json OUT.f32
  godwit perplexity -m MODEL.gguf --ids PREFIX.ids --dump-logits OUT.f32 --prefill 16  then  ... --from 16   (decode steps alone)

Per sequence and over all positions:
  relative error  ||a - b|| / ||b||, rows centred first (softmax does not see a constant); of all rows together, and of the worst row
  max abs         largest difference of two centred logits
  top-1           share of positions whose largest logit has the same id
  KL              mean and largest KL(reference || godwit), in nats
With --full (from logits_reference.py --full) every logit is compared; without it the golden file's sampled rows, whose KL is over
its ten largest ids and one class for the rest. Exits 1 when a --max-... bound is passed.

Needs: numpy.
"""
import argparse
import json
import os
import sys

import numpy as np


def log_softmax(rows):
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def centre(rows):
    return rows - rows.mean(axis=1, keepdims=True)


class Tally:
    """Sums over positions; add() takes what one block of positions gave."""

    def __init__(self):
        self.error2 = self.norm2 = self.worst_row = self.max_abs = self.kl_sum = self.kl_max = 0.0
        self.same = self.count = 0

    def add(self, a, b, same, kl):
        difference = a - b
        row_error2, row_norm2 = (difference**2).sum(axis=1), (b**2).sum(axis=1)
        self.error2 += row_error2.sum()
        self.norm2 += row_norm2.sum()
        self.worst_row = max(self.worst_row, float(np.sqrt(row_error2 / row_norm2).max()))
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.same += int(same.sum())
        self.count += len(same)
        self.kl_sum += float(kl.sum())
        self.kl_max = max(self.kl_max, float(kl.max()))

    def merge(self, other):
        for name in ("error2", "norm2", "kl_sum", "same", "count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("worst_row", "max_abs", "kl_max"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))

    def figures(self):
        return {
            "positions": self.count,
            "relative_error": float(np.sqrt(self.error2 / self.norm2)),
            "worst_row": self.worst_row,
            "max_abs": self.max_abs,
            "top1": self.same / self.count,
            "kl_mean": self.kl_sum / self.count,
            "kl_max": self.kl_max,
        }


def compare_full(ours, theirs, tally, block=32):
    for start in range(0, len(ours), block):
        a, b = ours[start : start + block].astype(np.float64), theirs[start : start + block].astype(np.float64)
        pa, pb = log_softmax(a), log_softmax(b)
        tally.add(centre(a), centre(b), a.argmax(axis=1) == b.argmax(axis=1), (np.exp(pb) * (pb - pa)).sum(axis=1))


def compare_golden(ours, golden_row, stride, offset, tally):
    """One row against the golden file's sample of it."""
    a = ours.astype(np.float64)
    top, top_logits = np.array(golden_row["top_ids"]), np.array(golden_row["top_logits"])
    ids = np.concatenate([top, np.arange(offset, len(a), stride)])
    b = np.concatenate([top_logits, golden_row["sample"]]) - golden_row["mean"]
    pa, pb = log_softmax(a[None])[0][top], top_logits - golden_row["log_sum_exp"]
    rest_a, rest_b = max(1 - np.exp(pa).sum(), 1e-12), max(1 - np.exp(pb).sum(), 1e-12)
    kl = (np.exp(pb) * (pb - pa)).sum() + rest_b * np.log(rest_b / rest_a)
    tally.add((a[ids] - a.mean())[None], b[None], np.array([a.argmax() == top[0]]), np.array([kl]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", help="the .json of logits_reference.py")
    parser.add_argument("dump", help="godwit's --dump-logits file")
    parser.add_argument("--full", help="the raw file of logits_reference.py --full")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="POS", help="only positions >= POS of each sequence")
    parser.add_argument("--to", type=int, metavar="POS", help="only positions < POS")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--max-error", type=float, metavar="X", help="fail when the relative error of all rows passes X")
    parser.add_argument("--max-kl", type=float, metavar="X", help="fail when the mean KL passes X")
    parser.add_argument("--min-top1", type=float, metavar="X", help="fail when top-1 agreement is below X")
    args = parser.parse_args()

    with open(args.golden) as stream:
        golden = json.load(stream)
    vocab, tokens = golden["vocab"], sum(len(s["ids"]) for s in golden["sequences"])

    def rows_of(path):
        if os.path.getsize(path) != tokens * vocab * 4:
            sys.exit(f"logits_compare: {path} has {os.path.getsize(path)} bytes; [{tokens}][{vocab}] float32 are {tokens * vocab * 4}")
        return np.memmap(path, dtype="<f4", mode="r", shape=(tokens, vocab))

    ours, theirs = rows_of(args.dump), rows_of(args.full) if args.full else None
    result, total, start = {}, Tally(), 0
    for s in golden["sequences"]:
        end = len(s["ids"]) if args.to is None else min(args.to, len(s["ids"]))
        tally = Tally()
        if theirs is not None and args.first < end:
            compare_full(ours[start + args.first : start + end], theirs[start + args.first : start + end], tally)
        elif theirs is None:
            for row in (r for r in s["rows"] if args.first <= r["position"] < end):
                compare_golden(ours[start + row["position"]], row, golden["stride"], golden["offset"], tally)
        start += len(s["ids"])
        if tally.count:
            result[s["name"]] = tally.figures()
            total.merge(tally)
    if not total.count:
        sys.exit("logits_compare: no positions in that range")
    result["all"] = figures = total.figures()

    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{'sequence':10} {'positions':>9} {'rel.error':>10} {'worst row':>10} {'max abs':>8} {'top-1':>7} {'KL mean':>9} {'KL max':>9}")
        for name, f in result.items():
            print(f"{name:10} {f['positions']:9} {f['relative_error']:10.2e} {f['worst_row']:10.2e} {f['max_abs']:8.4f} "
                  f"{f['top1']:7.2%} {f['kl_mean']:9.2e} {f['kl_max']:9.2e}")
    bad = [
        text
        for text, failed in (
            (f"relative error > {args.max_error}", args.max_error is not None and not figures["relative_error"] <= args.max_error),
            (f"mean KL > {args.max_kl}", args.max_kl is not None and not figures["kl_mean"] <= args.max_kl),
            (f"top-1 < {args.min_top1}", args.min_top1 is not None and not figures["top1"] >= args.min_top1),
        )
        if failed
    ]
    if bad:
        sys.exit("logits_compare: " + ", ".join(bad))


if __name__ == "__main__":
    main()
