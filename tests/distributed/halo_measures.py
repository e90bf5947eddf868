"""Runs as one rank: what a step of a small model sends, keeps for its backward pass and takes, in both modes.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python halo_measures.py CASES.json OUTPUT
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import Qwen2ForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.distributed.ulysses import SequenceGroup
from pipeline.model.augment import ahn_model_class
from pipeline.model.sequence_shard import SequenceLayout
from pipeline.training.distillation import Distillation
from tests.distributed.sequence_cases import make_layout

NUM_LAYERS, NUM_HEADS, NUM_KEY_VALUE_HEADS, HEAD_DIM = 2, 8, 4, 32
WINDOW, VOCABULARY, NUM_STEPS = WindowSpec(32, 192), 512, 3


def build_model(cell: str) -> torch.nn.Module:
    model_class = ahn_model_class(Qwen2ForCausalLM)
    config = model_class.config_class(
        vocab_size=VOCABULARY,
        hidden_size=NUM_HEADS * HEAD_DIM,
        intermediate_size=768,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KEY_VALUE_HEADS,
        max_position_embeddings=65536,
        ahn={"cell": cell},
    )
    torch.manual_seed(0)
    model = model_class(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".ahn." in name)
            if name.endswith("ahn.fn.o_proj.weight"):
                parameter.normal_(0, 0.3)
    return model


def make_batch(length: int) -> Batch:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, length, dtype=np.uint32)
    return collate([DrawnSample(0, PackedSample("s", tokens, np.array([0, length], np.int32), None, {}), WINDOW)])


def measure(case: dict, group: SequenceGroup) -> dict[str, float]:
    """Bytes sent by all ranks; of the rank that has most of each, bytes kept for the backward pass, seconds, and
    seconds of its processor. `case`: {"mode", "cell", "length"}."""
    model, batch = build_model(case["cell"]), make_batch(case["length"])
    layout: SequenceLayout | None = None
    if group.size > 1:
        layout = make_layout(case["mode"], (NUM_HEADS, NUM_KEY_VALUE_HEADS), group)
    module, weights = Distillation(model, "ce", 512, layout=layout), torch.ones(len(batch.positions))
    parameters = {p.data_ptr() for p in model.parameters()}
    kept, before = {}, group.bytes_sent

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = module(batch, weights)
    loss.backward()
    sent = torch.tensor([group.bytes_sent - before])
    dist.all_reduce(sent)
    times = []
    for _ in range(NUM_STEPS):
        dist.barrier()
        start = time.perf_counter(), time.process_time()
        module(batch, weights).backward()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    largest = torch.tensor([sum(kept.values()), *map(statistics.median, zip(*times, strict=True))], dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return {"sent": int(sent), **dict(zip(("kept", "seconds", "cpu_seconds"), largest.tolist(), strict=True))}


def main() -> None:
    ranks = init_distributed()
    group, cases = SequenceGroup(ranks.rank, ranks.world_size, None), json.loads(Path(sys.argv[1]).read_text())
    results = {name: measure(case, group) for name, case in cases.items()}
    if ranks.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    leave_distributed()


if __name__ == "__main__":
    main()
