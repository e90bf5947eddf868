"""A tiny Qwen2 and small packed data folders, made in a second, for tests of training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import Qwen2Config, Qwen2ForCausalLM

from data_prep.packing import Pack
from data_prep.shard_writer import ShardWriter
from pipeline.tokenizer import fingerprint_of
from tests.data.folders import finish_folder

VOCABULARY = 97
LAST_TOKEN = VOCABULARY - 1


def make_model(folder: Path, *, poisoned: bool = False) -> Path:
    """A 2-layer Qwen2 (32 hidden, 4 query and 2 key heads) with a tokenizer.json.

    `poisoned`: the input embedding of LAST_TOKEN is NaN.
    """
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=not poisoned,
    )
    model = Qwen2ForCausalLM(config)
    if poisoned:
        model.get_input_embeddings().weight.data[LAST_TOKEN] = float("nan")
    model.save_pretrained(folder)
    Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


def make_data(
    folder: Path, model: Path, documents: Sequence[Sequence[int]], seq_len: int, marked: int | None = None
) -> Path:
    """A finished data folder: one sample for each list of document lengths, with random tokens.

    Its bytes, and so the order in which training reads it, are the same on every run. Sample `marked` begins with
    LAST_TOKEN, which is nowhere else.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with ShardWriter(folder, unit=0, shard_bytes=1 << 30, source="data") as writer:
        for number, lengths in enumerate(documents):
            tokens = generator.integers(0, LAST_TOKEN, sum(lengths), dtype=np.uint32)
            if number == marked:
                tokens[0] = LAST_TOKEN
            bounds = np.cumsum([0, *lengths], dtype=np.int32)
            documents = [
                {"id": f"doc-{i}", "start": 0, "end": length, "tokens": length, "origin": {}}
                for i, length in enumerate(lengths)
            ]
            writer.write(Pack(tokens, bounds, None, documents))
    return finish_folder(
        folder,
        writer.entries,
        tokenizer_sha256=fingerprint_of(str(model)),
        seq_len=seq_len,
    )
