"""Runs as one of two ranks: trains a tiny model under every ZeRO stage and writes what came out, for test_engine.py.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python engine_cases.py MODEL OUTPUT
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig, TrainConfig
from pipeline.data.collate import Batch, DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import Ranks, gather_rows, init_distributed, leave_distributed, raise_together
from pipeline.errors import UserError
from pipeline.model.loading import load_base
from pipeline.training.distillation import Distillation
from pipeline.training.engine import build_engine, gather_moments, gather_weights, restore_moments, set_learning_rate
from pipeline.training.step import NonFiniteError, exchange_totals, run_step

NUM_STEPS, RESUME_AFTER, LEARNING_RATE = 4, 2, 1e-2
CLIPPED, UNCLIPPED = 1e-3, 1e3
SHIPPED = Path(__file__).parents[2] / "ds_configs"
ZERO = {
    "zero0": {"stage": 0},
    **{path.stem: json.loads(path.read_text())["zero_optimization"] for path in sorted(SHIPPED.glob("*.json"))},
    "zero3_all_partitioned": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
# name: (ZeRO section, dtype of the base, normalisation, clipping, loss, activation checkpointing)
CASES = {
    **{f"{zero}-tokens": (zero, "float32", "tokens", UNCLIPPED, "kl", False) for zero in ZERO},
    **{f"zero{s}-samples": (f"zero{s}", "float32", "samples", CLIPPED, "kl", True) for s in range(4)},
    **{f"zero{s}-bf16": (f"zero{s}", "bfloat16", "tokens", CLIPPED, "kl", False) for s in range(4)},
    "zero2-ce": ("zero2", "float32", "tokens", UNCLIPPED, "ce", True),
    "zero3-ce": ("zero3_all_partitioned", "float32", "tokens", UNCLIPPED, "ce", True),
}


def batches_of_step(step: int, rank: int) -> list[Batch]:
    """Two micro-batches with uneven work; in odd steps rank 1 has nothing to supervise in either."""
    generator = np.random.default_rng(1000 * step + rank)
    batches = []
    for number in range(2):
        idle = rank == 1 and (step % 2 == 1 or number == 1)
        lengths = [5, 3] if idle else [21 + 7 * number + step, 12 - rank]
        tokens = generator.integers(0, 97, sum(lengths), dtype=np.uint32)
        sample = PackedSample(f"s{step}-{rank}-{number}", tokens, np.cumsum([0, *lengths], dtype=np.int32), None, {})
        window = None if idle else WindowSpec(2, 6 - 2 * rank)
        batches.append(collate([DrawnSample(0, sample, window)]))
    return batches


def build_model(folder: str, dtype: str, activation_checkpointing: bool) -> torch.nn.Module:
    """The tiny base with memories that act: random, not initial, parameters."""
    model = load_base(folder, memory=MemoryConfig(), window=None, dtype=getattr(torch, dtype))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    model.train()
    if activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def deepspeed_section(zero: str, clip: float) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": clip,
        "steps_per_print": None,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": ZERO[zero],
    }


def train_config(dtype: str, clip: float) -> TrainConfig:
    """Gates have a rate and a decay of their own."""
    return TrainConfig(
        max_steps=NUM_STEPS,
        global_batch_size=4,
        learning_rate=LEARNING_RATE,
        gate_learning_rate=3 * LEARNING_RATE,
        gate_weight_decay=0.02,
        clip_grad_norm=clip,
        base_dtype=dtype,
    )


def run_case(name: str, folder: str, ranks: Ranks) -> tuple[dict, dict[str, torch.Tensor]]:
    """Trains without a break, then once more with a restored engine in the middle."""
    zero, dtype, normalisation, clip, loss, checkpointing = CASES[name]
    train = train_config(dtype, clip)
    config = deepspeed_section(zero, clip)

    def build(weights: dict[str, torch.Tensor] | None = None) -> object:
        model = build_model(folder, dtype, checkpointing)
        with torch.no_grad():
            for parameter_name, value in (weights or {}).items():
                model.get_parameter(parameter_name).copy_(value)
        return build_engine(Distillation(model, loss, loss_chunk_size=7), train, config)

    def steps(engine: object, first: int, last: int) -> list[tuple[float, float]]:
        results = []
        for step in range(first, last):
            batches = batches_of_step(step, ranks.rank)
            totals, _ = exchange_totals(batches, None, stop=False, ranks=ranks)
            set_learning_rate(engine, 1 / (1 + step))
            result = run_step(engine, batches, totals, normalisation, ranks)
            results.append((result.loss, result.grad_norm))
        return results

    engine = build()
    first = steps(engine, 0, RESUME_AFTER)
    weights, moments = gather_weights(engine), gather_moments(engine)
    whole = first + steps(engine, RESUME_AFTER, NUM_STEPS)
    final = gather_weights(engine)

    resumed = build(weights)
    restore_moments(resumed, moments, RESUME_AFTER)
    continued = first + steps(resumed, RESUME_AFTER, NUM_STEPS)
    again = gather_weights(resumed)
    facts = {
        "steps": whole,
        "resumed_steps": continued,
        "resumed_equal": all(torch.equal(final[n], again[n]) for n in final),
        "dtypes": sorted({str(p.dtype) for p in engine.module.parameters() if p.requires_grad}),
        "base_dtypes": sorted({str(p.dtype) for p in engine.module.parameters() if not p.requires_grad}),
    }
    return facts, final


def exploding_facts(zero: str, folder: str, ranks: Ranks) -> dict:
    """A step whose loss is finite and whose gradient is not: what was raised, and whether weights stayed."""
    train = TrainConfig(max_steps=1, global_batch_size=4, base_dtype="float32")
    module = Distillation(build_model(folder, "float32", False), "kl", loss_chunk_size=7)
    engine = build_engine(module, train, deepspeed_section(zero, train.clip_grad_norm))
    before = gather_weights(engine)
    # x + sqrt(0): the value of x, and an infinite derivative
    module.model.get_decoder().norm.register_forward_hook(lambda _, __, x: x + (x - x.detach()).sum().sqrt())
    batches, message = batches_of_step(0, ranks.rank), ""
    totals, _ = exchange_totals(batches, None, stop=False, ranks=ranks)
    try:
        run_step(engine, batches, totals, "tokens", ranks)
    except NonFiniteError as error:
        message = str(error)
    after = gather_weights(engine)
    return {"message": message, "unchanged": all(torch.equal(before[n], after[n]) for n in before)}


def exchange_facts(ranks: Ranks) -> dict:
    """What this rank sees when rank 1 alone asks to stop, and when it alone fails."""
    stop = exchange_totals([], None, stop=ranks.rank == 1, ranks=ranks)[1]
    message = ""
    try:
        exchange_totals([], UserError("shard-7 is damaged") if ranks.rank == 1 else None, stop=False, ranks=ranks)
    except UserError as error:
        message = str(error)
    raise_together(None, ranks)
    return {"stop": stop, "message": message, "rows": gather_rows([ranks.rank, 0.5], ranks).tolist()}


def main() -> None:
    folder, output = sys.argv[1], Path(sys.argv[2])
    ranks = init_distributed()
    facts = {"exchange": exchange_facts(ranks)}
    facts["exploding"] = {zero: exploding_facts(zero, folder, ranks) for zero in ZERO}
    for name in CASES:
        facts[name], weights = run_case(name, folder, ranks)
        if ranks.is_main:
            save_file(weights, output / f"{name}.safetensors")
    (output / f"facts{ranks.rank}.json").write_text(json.dumps(facts))
    leave_distributed()


if __name__ == "__main__":
    main()
