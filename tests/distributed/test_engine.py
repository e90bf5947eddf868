"""Two ranks under DeepSpeed against one process of plain torch: same losses, norms, clipping and weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import MemoryConfig, TrainConfig
from pipeline.losses.positions import position_weights
from pipeline.model.loading import load_base
from pipeline.training.distillation import Distillation
from pipeline.training.engine import parameter_groups
from tests.distributed import engine_cases
from tests.distributed.processes import run_ranks
from tests.training.synthetic import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("engine") / "model")


@pytest.fixture(scope="module")
def outcome(model, tmp_path_factory) -> tuple[list[dict], Path]:
    folder = tmp_path_factory.mktemp("cases")
    extensions = str(folder / "extensions")
    finished = run_ranks(
        Path(engine_cases.__file__), [model, folder], folder, timeout=200, TORCH_EXTENSIONS_DIR=extensions
    )
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-3000:] + finished[1].output[-3000:]
    return [json.loads((folder / f"facts{rank}.json").read_text()) for rank in range(2)], folder


def reference(model_folder: Path, case: str) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """The same training in one process without DeepSpeed: all micro-batches of all ranks, one backward each."""
    _, dtype, normalisation, clip, loss, checkpointing = engine_cases.CASES[case]
    module = Distillation(engine_cases.build_model(str(model_folder), dtype, checkpointing), loss, loss_chunk_size=7)
    parameters = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
    groups = parameter_groups(module.model, engine_cases.train_config(dtype, clip))
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    results = []
    for step in range(engine_cases.NUM_STEPS):
        batches = [b for rank in range(2) for b in engine_cases.batches_of_step(step, rank)]
        num_positions = sum(len(b.positions) for b in batches)
        num_samples = sum(b.num_supervised_samples for b in batches)
        total = 0.0
        for batch in batches:
            weights = position_weights(batch.sample_of_position, normalisation, num_positions, num_samples)
            value = module(batch, torch.from_numpy(weights))
            value.backward()
            total += value.item()
        assert all(p.grad.abs().max() > 0 for p in parameters.values()), "a memory parameter without gradient"
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] / (1 + step)
        optimizer.step()
        optimizer.zero_grad()
        results.append((total, norm.item()))
    return results, {n: p.detach() for n, p in parameters.items()}


@pytest.mark.parametrize(
    ("cell", "vectors"),
    [
        ("gated_delta_net", {"A_log", "dt_bias"}),
        ("delta_net", set()),
        ("mamba2", {"A_log", "dt_bias", "dt_proj.bias", "g_proj.bias"}),
    ],
)
def test_gates_have_their_own_rate_and_decay_and_vectors_none(cell, vectors, model):
    ahn = load_base(
        str(model), memory=MemoryConfig(cell), window=None, dtype=torch.float32, has_scorer=True, check=False
    )
    names = {id(p): name.split(".ahn.fn.")[1] for name, p in ahn.named_parameters() if p.requires_grad}
    config = TrainConfig(learning_rate=1.0, weight_decay=0.1, gate_learning_rate=2.0, gate_weight_decay=0.2)
    found: dict[tuple[float, float], set[str]] = {}
    for group in parameter_groups(ahn, config):
        for parameter in group["params"]:
            found.setdefault((group["peak"], group["weight_decay"]), set()).add(names.pop(id(parameter)))
    assert not names  # each once
    assert found[1.0, 0.1] == {"o_proj.weight"} and len(found[1.0, 0.0]) == 1
    assert found.get((2.0, 0.0), set()) == vectors
    assert {"g_proj.weight"} < found[2.0, 0.2] and all(name.endswith("_proj.weight") for name in found[2.0, 0.2])
    common = parameter_groups(ahn, TrainConfig(learning_rate=1.0, weight_decay=0.1))
    assert [(g["peak"], g["weight_decay"]) for g in common] == [(1.0, 0.1), (1.0, 0.0)]


@pytest.mark.parametrize("case", engine_cases.CASES)
def test_two_ranks_train_like_one_process(case, outcome, model):
    facts, folder = outcome
    expected, expected_weights = reference(model, case)
    tolerance = 2e-2 if case.endswith("bf16") else 1e-4
    for rank in range(2):
        assert facts[rank][case]["steps"] == [pytest.approx(pair, rel=tolerance) for pair in expected]
    weights = load_file(folder / f"{case}.safetensors")
    start = engine_cases.build_model(str(model), "float32", False)
    moved = {n: (expected_weights[n] - start.get_parameter(n).detach()).norm() for n in weights}
    for name, value in weights.items():
        difference = (value - expected_weights[name]).norm()
        assert difference <= 10 * tolerance * moved[name], name


def test_the_reference_would_notice_a_wrong_scale_or_missing_clipping(outcome):
    facts = outcome[0][0]
    losses, norms = zip(*facts["zero2-tokens"]["steps"], strict=True)
    assert all(norm > 0.01 for norm in norms) and all(loss > 0.01 for loss in losses)
    assert all(norm > 3 * engine_cases.CLIPPED for _, norm in facts["zero2-samples"]["steps"])


@pytest.mark.parametrize("case", engine_cases.CASES)
def test_restored_engine_goes_on_bit_for_bit(case, outcome):
    for facts in outcome[0]:
        assert facts[case]["resumed_steps"] == facts[case]["steps"]
        assert facts[case]["resumed_equal"]


@pytest.mark.parametrize("case", [c for c in engine_cases.CASES if c.endswith("bf16")])
def test_memories_stay_float32_on_a_bf16_base(case, outcome):
    facts, folder = outcome
    assert facts[0][case]["dtypes"] == ["torch.float32"]
    assert facts[0][case]["base_dtypes"] == ["torch.bfloat16"]
    assert {v.dtype for v in load_file(folder / f"{case}.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("zero", engine_cases.ZERO)
def test_a_gradient_that_is_not_finite_is_reported_and_updates_nothing(zero, outcome):
    for facts in outcome[0]:
        assert re.match(r"the gradient norm is (inf|nan|-inf) at a loss of \d", facts["exploding"][zero]["message"])
        assert facts["exploding"][zero]["unchanged"]


def test_ranks_agree_on_stop_requests_and_failures(outcome):
    first, second = (facts["exchange"] for facts in outcome[0])
    assert first["stop"] and second["stop"]
    assert first["message"] == "shard-7 is damaged (found by rank 1)" and second["message"] == "shard-7 is damaged"
    assert first["rows"] == second["rows"] == [[0.0, 0.5], [1.0, 0.5]]


def test_deepspeed_compiled_nothing_on_the_cpu(outcome):
    """Its shared-memory op would compile for minutes, and leave a lock behind when killed: skip_shm_op still works."""
    assert not list((outcome[1] / "extensions").rglob("*"))
