"""Sequence parallelism under DeepSpeed: gradients, their norm and the loss at every ZeRO stage are one process's."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from pipeline.losses.positions import position_weights
from pipeline.training.distillation import Distillation
from tests.distributed import gradient_cases
from tests.distributed.gradient_cases import batches_of
from tests.distributed.processes import run_ranks
from tests.distributed.sequence_cases import build_model
from tests.drill import record

TOPOLOGIES = {"2 ranks": (2, 1), "4 ranks": (4, 1), "2 x 2 ranks": (2, 2)}  # ranks that share a sample, data parallel
STAGES = (0, 1, 2, 3)
CELLS = ("gated_delta_net", "delta_net", "mamba2")
MODES = ("ulysses", "halo")
HEADS = [(4, 1), (4, 2), (4, 4), (6, 2), (7, 1), (14, 2)]
TOLERANCE = 1e-5  # of float32 against float64: one process is off by up to 5e-6, where gradients of decays cancel


def all_cases(mode: str, size: int) -> list[dict]:
    keys = ("mode", "size", "stage", "cell", "heads")
    return [dict(zip(keys, v, strict=True)) for v in itertools.product([mode], [size], STAGES, CELLS, HEADS)]


def some_cases(mode: str, topology: str) -> list[dict]:
    """Each stage; over the topologies each stage with each cell, the heads in turn."""
    number = list(TOPOLOGIES).index(topology)
    return [
        {
            "mode": mode,
            "size": TOPOLOGIES[topology][0],
            "stage": stage,
            "cell": CELLS[(stage + number) % len(CELLS)],
            "heads": HEADS[(2 * stage + number) % len(HEADS)],
        }
        for stage in STAGES
    ]


def reference(case: dict, dp_size: int) -> dict[str, torch.Tensor]:
    """One process of plain torch over the micro-batches of all groups, in float64."""
    module = Distillation(build_model(case["cell"], tuple(case["heads"])), "kl", 7)
    batches = [batch for rank in range(dp_size) for batch in batches_of(rank)]
    num_positions = sum(len(batch.positions) for batch in batches)
    loss = 0.0
    for batch in batches:
        weights = position_weights(batch.sample_of_position, "tokens", num_positions, len(batches))
        value = module(batch, torch.from_numpy(weights).double())
        value.backward()
        loss += value.detach()
    gradients = {name: p.grad for name, p in module.model.named_parameters() if p.requires_grad}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    return {"loss": loss, "grad_norm": norm, **gradients}


def check(cases: list[dict], topology: str, folder: Path, timeout: float) -> float:
    """The largest difference over norm of all tensors of all cases."""
    size, dp_size = TOPOLOGIES[topology]
    named = {json.dumps(case): case for case in cases}
    (folder / "cases.json").write_text(json.dumps(named))
    arguments = [folder / "cases.json", folder / "results.pt"]
    script = Path(gradient_cases.__file__)
    finished = run_ranks(script, arguments, folder, num_ranks=size * dp_size, timeout=timeout)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    results, worst = torch.load(folder / "results.pt", weights_only=True), 0.0
    for name, case in named.items():
        due = reference(case, dp_size)
        assert results[name].keys() == due.keys()
        for key, value in due.items():
            assert value.norm() > 0, (name, key)
            difference = ((results[name][key] - value).norm() / value.norm()).item()
            assert difference <= TOLERANCE, (name, key, difference)
            worst = max(worst, difference)
    return worst


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("mode", MODES)
def test_each_stage_with_each_cell(mode, topology, tmp_path):
    check(some_cases(mode, topology), topology, tmp_path, timeout=200)


@pytest.mark.drill
@pytest.mark.timeout(7200)
def test_the_full_matrix(tmp_path):
    facts = {}
    for mode, (topology, (size, _)) in itertools.product(MODES, TOPOLOGIES.items()):
        (tmp_path / mode / topology).mkdir(parents=True)
        cases = all_cases(mode, size)
        worst = check(cases, topology, tmp_path / mode / topology, timeout=1800)
        facts.setdefault(mode, {})[topology] = {"cases": len(cases), "largest_relative_difference": worst}
    record("sequence_gradients", {"tolerance": TOLERANCE, **facts})
