"""A tiny base with a real tokenizer, and an adapter for it whose memory acts."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig
from pipeline.model.adapter import adapter_state, base_fingerprint, save_adapter
from pipeline.model.loading import load_base

TINY_WINDOW = WindowSpec(num_sink_tokens=4, window_size=12)


def make_base(folder: Path, tokenizer: Path, vocab_size: int) -> Path:
    """A 2-layer Llama with `tokenizer`'s files; weights larger than usual, so that attention is far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return folder


def make_adapter(folder: Path, base: Path, window: WindowSpec = TINY_WINDOW) -> Path:
    """Random, strong memories, and scorers where the window retains tokens."""
    model = load_base(str(base), memory=MemoryConfig(), window=window, dtype=torch.float32)
    torch.manual_seed(1)
    state = {name: torch.randn_like(value) * 0.5 for name, value in adapter_state(model).items()}
    info = {
        "base_model": str(base),
        "base_fingerprint": base_fingerprint(str(base)),
        "memory": {"cell": "gated_delta_net", "init": "published"},
        **asdict(window),
        "has_scorer": window.num_retained_tokens > 0,
        "training": {},
    }
    save_adapter(folder, state, info)
    return folder
