"""Runs as one of P ranks that hold each micro-batch together, without DeepSpeed: losses and gradients in float64.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python sequence_cases.py CASES.json OUTPUT
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.distributed.head_shares import share_heads
from pipeline.distributed.ulysses import SequenceGroup
from pipeline.model.augment import ahn_model_class
from pipeline.model.output_head import find_output_head
from pipeline.model.sequence_shard import SequenceLayout
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.online import compute_teacher_hidden
from pipeline.teacher.signals import HiddenSpec
from pipeline.training.distillation import Distillation

VOCABULARY, HEAD_DIM = 97, 8
BATCHES = {  # documents of each sample, with its window
    "one document over all ranks": [([61], WindowSpec(3, 9))],
    "packed": [([30, 14, 3], WindowSpec(2, 5)), ([25, 1], WindowSpec(0, 9))],
    "window and sinks larger than a share": [([64], WindowSpec(20, 21))],
    "fewer tokens than ranks": [([10, 2], WindowSpec(3, 4))],
    "a document over three ranks, others beside": [([7, 40, 9], WindowSpec(1, 3))],
    "nothing to supervise": [([9], None)],
}


def build_model(cell: str, heads: tuple[int, int], **ahn: object) -> torch.nn.Module:
    """A 2-layer Qwen2 in float64, with memories that act: the same on every rank."""
    config_class = ahn_model_class(Qwen2ForCausalLM).config_class
    assert issubclass(config_class, Qwen2Config)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=heads[0] * HEAD_DIM,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=512,
        ahn={"cell": cell, "init": "published", "num_sink_tokens": 4, "window_size": 8, **ahn},
    )
    model = ahn_model_class(Qwen2ForCausalLM)(config).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if ".ahn." in name or "lm_head" in name else 0.15  # a KL near 0 would drown in float32
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
            parameter.requires_grad_(".ahn." in name)
    return model


def make_batch(name: str) -> Batch:
    generator, samples = np.random.default_rng(0), []
    for number, (lengths, window) in enumerate(BATCHES[name]):
        tokens = generator.integers(0, VOCABULARY, sum(lengths), dtype=np.uint32)
        mask = (generator.random(len(tokens)) < 0.8).astype(np.uint8)
        sample = PackedSample(f"s{number}", tokens, np.cumsum([0, *lengths], dtype=np.int32), mask, {})
        samples.append(DrawnSample(number, sample, window))
    return collate(samples)


def with_signal(batch: Batch, model: torch.nn.Module) -> Batch:
    """The batch with the teacher's hidden states at its positions, as a cache would give them."""
    if len(batch.positions) == 0:
        return batch
    hidden, _ = compute_teacher_hidden(model.get_decoder(), batch)
    places = np.arange(len(batch.positions))
    signal = extract_signal(HiddenSpec("float32", hidden.shape[1]), hidden, find_output_head(model), "key", places)
    return replace(batch, signal=signal)


def make_layout(mode: str, heads: tuple[int, int], group: SequenceGroup) -> SequenceLayout:
    return SequenceLayout(group, None if mode == "halo" else share_heads(*heads, group.size))


def run_case(case: dict, layout: SequenceLayout | None, use_memory: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by name; with a `layout`, of this rank's positions alone.

    `case`: {"cell", "heads", "batch", "source": kl | cached | ce, "checkpointing"}.
    """
    model, batch = build_model(case["cell"], case["heads"]), make_batch(case["batch"])
    if not use_memory:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("ahn.fn.o_proj.weight"):
                    parameter.zero_()
    if case["checkpointing"]:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if case["source"] == "cached":
        batch = with_signal(batch, model)
    weights = torch.rand(len(batch.positions), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    module = Distillation(model, "ce" if case["source"] == "ce" else "kl", 7, layout=layout)
    loss = module(batch, weights)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def main() -> None:
    ranks = init_distributed()
    group, results = SequenceGroup(ranks.rank, ranks.world_size, None), {}
    for name, case in json.loads(Path(sys.argv[1]).read_text()).items():
        loss, gradients = run_case(case, make_layout(case["mode"], case["heads"], group))
        for value in (loss, *gradients.values()):
            dist.all_reduce(value)
        results[name] = {"loss": loss, **gradients}
    if ranks.is_main:
        torch.save(results, sys.argv[2])
    leave_distributed()


if __name__ == "__main__":
    main()
