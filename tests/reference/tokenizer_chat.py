#!/usr/bin/env python3
"""Compares godwit's chat prompts with the model's own template: jinja2 on the text in the GGUF file, then Hugging Face tokenizers.

    python3 tests/reference/tokenizer_chat.py --godwit build/godwit --model A.gguf [--evals DIR] [--count 3000]

Conversations are random: with and without system prompts, several turns, empty and long contents, roles that the template has. Contents
come from `evals` where given, else from the Python standard library. The environment is the one of transformers'
apply_chat_template (trim_blocks, lstrip_blocks, sandbox). Needs: pip install jinja2 tokenizers gguf
"""
import argparse
import os
import random
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

import tokenizer_compare
from tokenizer_hf import Model, godwit_lines


def template_of(model):
    def fail(message):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    return environment.from_string(model.template)


def conversation(rng, contents, tools):
    def content():
        text = rng.choice(contents)[:rng.choice((0, 20, 200, 2000))]
        return rng.choice(("", " ", "\n", "  \n")) + text + rng.choice(("", " ", "\n\n"))

    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": content()})
    for _ in range(rng.randint(0 if messages else 1, 4)):
        messages.append({"role": "user", "content": content()})
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": content()})
        if rng.random() < 0.6:
            messages.append({"role": "assistant", "content": content()})
        while tools and rng.random() < 0.25:
            messages.append({"role": "tool", "content": content()})
    return messages


def compare(args, model, contents, rng):
    """Number of conversations that differ, and of tokens."""
    template, tokenizer = template_of(model), model.tokenizer()
    # A control token spelled in a message is where godwit differs on purpose: leave those out.
    controls = [t for t, kind in zip(model.tokens, model.types) if kind == 3]
    contents = [c for c in contents if not any(t in c for t in controls)]
    tools = "<tool_response>" in model.template
    talks = [conversation(rng, contents, tools) for _ in range(args.count)]
    prompts = [template.render(messages=talk, add_generation_prompt=True, bos_token=model.bos, eos_token=model.eos) for talk in talks]
    ours = godwit_lines(args.godwit, model.path, talks, "--lines-chat")
    theirs = [e.ids for e in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    unequal = [i for i in range(len(talks)) if ours[i] != theirs[i]]
    for i in unequal[:3]:
        tokenizer_compare.show_difference(prompts[i], ours[i], theirs[i], tokenizer)
    return len(unequal), sum(map(len, theirs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--godwit", required=True)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--evals")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=20240501)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    if args.evals:
        contents = tokenizer_compare.from_evals(args.evals, 5000, rng)
    else:
        with open(tokenizer_compare.__file__, encoding="utf-8") as file:
            contents = [file.read()] + [line for line in open(random.__file__, encoding="utf-8")]
    contents = [c for c in map(tokenizer_compare.usable, contents) if c]
    failed = False
    for path in args.model:
        unequal, tokens = compare(args, Model(path), contents, rng)
        failed = failed or unequal > 0
        print(f"{os.path.basename(path)}: seed {args.seed}, {args.count} conversations, {tokens} tokens, {unequal} unequal", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
