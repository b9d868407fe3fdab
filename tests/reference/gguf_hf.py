"""A GGUF file as an ordinary Hugging Face model in float32, and its tokenizer: the independent side of godwit's numbers.

Weights are dequantized by gguf-py and put into transformers' LlamaForCausalLM or Qwen2ForCausalLM, so the forward pass is
theirs. GGUF's llama files store the rows of Q and K interleaved for another rope convention; they are put back here. Every
parameter of the model must be filled, and every tensor of the file used, else it is an error.

Needs: torch (CPU is enough), transformers >= 4.46, tokenizers, gguf, numpy. Imported by the other scripts of this folder.
"""
import json
import sys

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def field(reader, key, default=None):
    entry = reader.fields.get(key)
    return default if entry is None else entry.contents()


def config_of(reader):
    arch = field(reader, "general.architecture")
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    if arch not in classes:
        sys.exit(f"gguf_hf: architecture {arch!r} is not one of {sorted(classes)}")
    if field(reader, f"{arch}.rope.scaling.type") not in (None, "none"):
        sys.exit("gguf_hf: rope scaling is not handled here")
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    config_class, model_class = classes[arch]
    config = config_class(
        vocab_size=shapes["token_embd.weight"][1],
        hidden_size=field(reader, f"{arch}.embedding_length"),
        intermediate_size=field(reader, f"{arch}.feed_forward_length"),
        num_hidden_layers=field(reader, f"{arch}.block_count"),
        num_attention_heads=field(reader, f"{arch}.attention.head_count"),
        num_key_value_heads=field(reader, f"{arch}.attention.head_count_kv"),
        max_position_embeddings=field(reader, f"{arch}.context_length"),
        rms_norm_eps=field(reader, f"{arch}.attention.layer_norm_rms_epsilon"),
        rope_theta=field(reader, f"{arch}.rope.freq_base", 10000.0),
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=field(reader, "tokenizer.ggml.eos_token_id"),
    )
    config._attn_implementation = "eager"
    return arch, config, model_class


def rows_for_hf(rows, heads):
    """Undo the pairing (2i, 2i+1) of rope rows within a head, back to the halves (i, i + dim/2) of transformers."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def hf_name(name):
    """Name in the file -> name in transformers."""
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    block = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{block[parts[2]]}.{parts[3]}"
    return f"{top[parts[0]]}.{parts[1]}"


def load_model(path):
    """The float32 model of the file, on the CPU, ready for inference."""
    reader = gguf.GGUFReader(path)
    arch, config, model_class = config_of(reader)
    with torch.device("meta"):
        model = model_class(config)
    state = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            sys.exit("gguf_hf: rope_freqs.weight is not handled here")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape(tensor.shape.tolist()[::-1])
        if arch == "llama" and ".attn_q." in tensor.name:
            values = rows_for_hf(values, config.num_attention_heads)
        if arch == "llama" and ".attn_k." in tensor.name:
            values = rows_for_hf(values, config.num_key_value_heads)
        state[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values))
    tied = config.tie_word_embeddings
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if tied:
        model.tie_weights()
    # Buffers (the rope frequencies) were made on the meta device; make them again for real.
    # Older transformers keep a second copy in each attention.
    for module in [m for m in model.modules() if hasattr(m, "rotary_emb")]:
        module.rotary_emb = type(module.rotary_emb)(config=config)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta or tensor.dtype != torch.float32:
            sys.exit(f"gguf_hf: {name} was not filled in float32")
    return model.eval().requires_grad_(False)


def load_tokenizer(path):
    """The file's byte-level BPE as a Hugging Face Tokenizer. Special tokens in the text are recognised."""
    reader = gguf.GGUFReader(path)
    kind = field(reader, "tokenizer.ggml.pre")
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ", 1)) for m in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    if kind == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif kind == "qwen2":
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.normalizer = normalizers.NFC()
    else:
        sys.exit(f"gguf_hf: pre-tokenizer {kind!r} is not one of smollm, qwen2")
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, k in zip(tokens, types) if k in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer


def plain_ids(path, text):
    """Ids of text in which special tokens are plain text, as perplexity wants it."""
    tokenizer = load_tokenizer(path)
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


def render_chat(path, messages):
    """The prompt of a chat by the file's own template, with the assistant's turn opened."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    reader = gguf.GGUFReader(path)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(field(reader, "tokenizer.chat_template"))
    return template.render(messages=messages, add_generation_prompt=True, tools=None)


def stop_ids(path):
    """Ids that end a chat turn."""
    tokenizer = load_tokenizer(path)
    names = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")
    return sorted({i for i in map(tokenizer.token_to_id, names) if i is not None})
