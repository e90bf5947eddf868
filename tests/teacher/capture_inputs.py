"""A tiny teacher with a tokenizer, and packed data of its tokens with and without labels."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.tokenizer import fingerprint_of
from tests.data_prep.hand_packed import pack, whole, write_folder


def make_teacher(
    folder: Path, vocab_size: int = 97, hidden_size: int = 32, family: str = "qwen2", **changes: object
) -> Path:
    """Two layers and a tokenizer.json; attention is far from uniform, and a bias of the head is not zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        **changes,
    )
    model = AutoModelForCausalLM.from_config(config)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias.data.normal_()
    model.save_pretrained(folder)
    Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


def make_data(folder: Path, model: Path, repeats: int = 1) -> Path:
    """Text of 1 to 3 documents a sample, one of them too short for any position; answers-only chats, one all masked."""
    rng = np.random.default_rng(3)

    def sample(name: str, lengths: list[int], share: float | None = None) -> object:
        ids = rng.integers(0, 97, sum(lengths)).astype(np.uint32)
        mask = None if share is None else (rng.random(len(ids)) < share).astype(np.uint8)
        return pack([whole(f"{name}-{number}", length) for number, length in enumerate(lengths)], ids, mask)

    text = [sample(f"t{n}", lengths) for n, lengths in enumerate([[48], [20, 27], [1, 1], [9, 30, 8], [47]] * repeats)]
    chat = [sample(f"c{n}", [24, 20], share) for n, share in enumerate([0.6, 0.0, 0.3])]
    sha256 = fingerprint_of(str(model))
    units = [(0, "text", text), (3, "chat", chat)]
    write_folder(folder, units, seq_len=48, tokenizer_sha256=sha256, shard_bytes=12_000)
    return folder
