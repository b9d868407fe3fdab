#!/usr/bin/env python3
"""A GGUF file as a Hugging Face folder in bf16 (config.json, safetensors, tokenizer with the file's chat template), for engines that read no GGUF.

usage: tests/bench/make_hf_model.py MODEL.gguf FOLDER

Needs what tests/reference/gguf_hf.py needs: torch, transformers, tokenizers, gguf, numpy.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))
import gguf
import torch
import transformers

import gguf_hf


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, folder = sys.argv[1:]
    gguf_hf.load_model(path).to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    reader = gguf.GGUFReader(path)
    tokens = gguf_hf.field(reader, "tokenizer.ggml.tokens")
    ends = tokens[gguf_hf.field(reader, "tokenizer.ggml.eos_token_id")]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=gguf_hf.load_tokenizer(path), eos_token=ends, pad_token=ends)
    tokenizer.chat_template = gguf_hf.field(reader, "tokenizer.chat_template")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
