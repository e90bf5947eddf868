"""Losses online and from a cache, on bases that draw in training, with more than a weight in their head, or with layers
that have a sliding window of their own, against the plain base's own logits."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from pipeline.attention.window import WindowSpec
from pipeline.config import MemoryConfig, TeacherCacheConfig, parse_cli
from pipeline.data.collate import DrawnSample, collate
from pipeline.model.loading import load_base
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.capture import run_capture
from pipeline.teacher.capture_plan import plan_capture
from pipeline.training.distillation import Distillation
from tests.teacher.capture_inputs import make_data, make_teacher

WINDOW = WindowSpec(2, 6)
BASES = {
    "seed_oss": {"head_dim": 8, "residual_dropout": 0.3, "attention_dropout": 0.3},
    "granite": {"logits_scaling": 0.25},
    "phi": {"partial_rotary_factor": 0.5, "resid_pdrop": 0.1},
    "nanochat": {"final_logit_softcapping": 2.0},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
}


@pytest.fixture(params=BASES)
def inputs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With `teacher` and `data`."""
    make_data(tmp_path / "data", make_teacher(tmp_path / "teacher", family=request.param, **BASES[request.param]))
    return tmp_path


def test_losses_online_and_cached_are_equal_and_those_of_the_bases_own_logits(inputs) -> None:
    folder = str(inputs / "teacher")
    named = {"model": folder, "data": inputs / "data", "output": inputs / "cache", "signal": "hidden"}
    named |= {"dtype": "float32", "base_dtype": "float32", "min_budget": WINDOW.lossless_budget}
    plan = plan_capture(parse_cli(TeacherCacheConfig, [f"--{name}={value}" for name, value in named.items()]))
    run_capture(plan, rank=0, num_ranks=1, local_rank=0)
    cache = TeacherCache(inputs / "cache", plan.dataset)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_base(folder, memory=MemoryConfig(), window=None, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    model.train().activation_checkpointing_enable()
    module, index = Distillation(model, "kl", loss_chunk_size=7), 0  # one document of 48 tokens
    batch = collate([DrawnSample(0, plan.dataset[index], WINDOW)])
    with torch.no_grad():
        own = plain(batch.input_ids, use_cache=False).logits[0, batch.positions].log_softmax(-1)
        student = model(input_ids=batch.input_ids, documents=batch.documents, use_cache=False)
        student = student.logits[0, batch.positions].log_softmax(-1)
    weights = torch.full((len(batch.positions),), 1 / len(batch.positions))
    due = F.kl_div(student, own, log_target=True, reduction="batchmean").item()
    online = module(batch, weights)
    assert due > 0.05 and online.item() == pytest.approx(due, rel=1e-4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(online, parameters)
    signal = cache.read(index, batch.samples[0].sample.key, batch.positions.numpy())
    cached = module(dataclasses.replace(batch, signal=signal), weights)
    assert cached.item() == pytest.approx(online.item(), rel=1e-5)
    for found, expected in zip(torch.autograd.grad(cached, parameters), gradients, strict=True):
        assert expected.norm() > 0 and (found - expected).norm() <= 1e-4 * expected.norm()
