"""Hugging Face tokenizers rebuilt from a GGUF file, and godwit's answers to compare with.

A GGUF file holds the vocabulary and the merges; what it does not hold (normaliser, pre-tokenizer) is written here as the published
tokenizer.json files of SmolLM2 and Qwen2.5 have it. Needs: pip install tokenizers gguf
"""
import json
import subprocess

import gguf
from tokenizers import Tokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


# tokenizer.ggml.pre -> normaliser, pre-tokenizers, ignore_merges
FAMILIES = {
    "smollm": (None, [{"type": "Digits", "individual_digits": True}, byte_level(True)], False),
    "qwen2": ({"type": "NFC"}, [split(QWEN_SPLIT), byte_level(False)], False),
    "llama-bpe": (None, [split(LLAMA3_SPLIT), byte_level(False)], True),
    "gpt-2": (None, [byte_level(True)], False),
}


class Model:
    """What the comparison needs of a GGUF file."""

    def __init__(self, path, pre=None):
        """`pre` builds the reference with another family's pre-tokenizer than the file names."""
        reader = gguf.GGUFReader(path)

        def strings(key):
            field = reader.fields[key]
            return [bytes(field.parts[i]).decode() for i in field.data]

        def text(key):
            field = reader.fields.get(key)
            return bytes(field.parts[field.data[0]]).decode() if field else None

        def number(key):
            field = reader.fields.get(key)
            return int(field.parts[field.data[0]][0]) if field else None

        types = reader.fields["tokenizer.ggml.token_type"]
        self.path = path
        self.tokens = strings("tokenizer.ggml.tokens")
        self.types = [int(types.parts[i][0]) for i in types.data]
        self.merges = strings("tokenizer.ggml.merges")
        self.pre = pre or text("tokenizer.ggml.pre")
        self.template = text("tokenizer.chat_template")
        bos = number("tokenizer.ggml.bos_token_id")
        self.bos = self.tokens[bos] if bos is not None else ""
        eos = number("tokenizer.ggml.eos_token_id")
        self.eos = self.tokens[eos] if eos is not None else ""

    def tokenizer(self):
        normalizer, pre_tokenizers, ignore_merges = FAMILIES[self.pre]
        added = [i for i, kind in enumerate(self.types) if kind in (CONTROL, USER_DEFINED)]
        # SmolLM2's file has its added tokens in the model's vocabulary (ids 0-16), Qwen's has them after it.
        last = max(i for i, kind in enumerate(self.types) if kind == NORMAL)
        described = {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": self.tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": self.types[i] == CONTROL} for i in added],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
            "post_processor": None,
            "decoder": byte_level(True),
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
                      "vocab": {t: i for i, t in enumerate(self.tokens) if self.types[i] == NORMAL or i < last},
                      "merges": [m.split(" ") for m in self.merges]},
        }
        tokenizer = Tokenizer.from_str(json.dumps(described))
        wrong = [i for i in added if tokenizer.token_to_id(self.tokens[i]) != i]
        assert not wrong, f"the reference numbers added tokens {wrong} differently"
        return tokenizer


def godwit_lines(godwit, model, lines, *options):
    """Runs `godwit tokenize` over JSON lines and returns a list of ids per line."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([godwit, "tokenize", "-m", model, *options], input=text.encode(), stdout=subprocess.PIPE, check=True)
    answers = [[int(i) for i in line.split()] for line in done.stdout.decode().split("\n")[:-1]]
    assert len(answers) == len(lines), f"{len(answers)} answers to {len(lines)} lines"
    return answers
