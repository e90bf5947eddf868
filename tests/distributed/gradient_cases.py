"""Runs as one rank: one step under DeepSpeed for each case of mode, group size, ZeRO stage, cell and heads.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python gradient_cases.py CASES.json OUTPUT
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.data.collate import Batch
from pipeline.distributed.groups import Ranks, init_distributed, leave_distributed
from pipeline.training import step as step_module
from pipeline.training.distillation import Distillation
from pipeline.training.engine import build_engine, parameter_shape, take_step, trainable_parameters
from pipeline.training.step import exchange_totals, run_step
from tests.distributed.sequence_cases import BATCHES, build_model, make_batch, make_layout, with_signal

NUM_MICRO_BATCHES = 2


def batches_of(dp_rank: int) -> list[Batch]:
    """Uneven work; the second group's second micro-batch has nothing to supervise."""
    names = list(BATCHES)
    return [make_batch(names[dp_rank]), make_batch(names[-1 if dp_rank else 2])]


def run_case(case: dict, ranks: Ranks) -> dict[str, Tensor]:
    """Loss, gradient norm and whole gradients by name. `case`: {"mode", "size", "stage", "cell", "heads"}."""
    model = build_model(case["cell"], tuple(case["heads"])).float()
    batches = batches_of(ranks.dp_rank)
    if case["mode"] == "halo":  # the online teacher needs whole heads
        batches = [with_signal(batch, model) for batch in batches]
    layout = make_layout(case["mode"], case["heads"], ranks.sequence)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": NUM_MICRO_BATCHES,
        "gradient_clipping": 1e3,
        "steps_per_print": None,
        "zero_optimization": {"stage": case["stage"], "stage3_param_persistence_threshold": 0},
    }
    train = TrainConfig(max_steps=1, global_batch_size=NUM_MICRO_BATCHES * ranks.dp_size, base_dtype="float32")
    engine, found = build_engine(Distillation(model, "kl", 7, layout=layout), train, config), {}

    def catch_gradients(engine: DeepSpeedEngine) -> float:
        for name, parameter in trainable_parameters(engine).items():
            gradient = parameter.grad if case["stage"] == 0 else safe_get_full_grad(parameter)
            found[name] = gradient.detach().clone().reshape(parameter_shape(parameter))
        return take_step(engine)

    step_module.take_step = catch_gradients
    totals, _ = exchange_totals(batches, None, stop=False, ranks=ranks)
    result = run_step(engine, batches, totals, "tokens", ranks)
    return {"loss": torch.tensor(result.loss), "grad_norm": torch.tensor(result.grad_norm), **found}


def main() -> None:
    cases, results = json.loads(Path(sys.argv[1]).read_text()), {}
    size = next(iter(cases.values()))["size"]
    ranks = init_distributed(size)
    for name, case in cases.items():
        results[name] = run_case(case, ranks)
    if ranks.is_main:
        torch.save(results, sys.argv[2])
    leave_distributed()


if __name__ == "__main__":
    main()
