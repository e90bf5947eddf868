"""pipeline/launching/gpu_memory.py against published parameter counts, and against what must and must not change."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import TrainConfig, TrainRunConfig
from pipeline.launching.gpu_memory import GIB, count_base_parameters, estimate_gpu_memory
from pipeline.metrics.accounting import count_parameters
from pipeline.metrics.architecture import PRESETS

CONFIG = TrainRunConfig("model", "data", Path("run"), Path("zero.json"))
BIG = PRESETS["qwen2.5-14b"]


def estimate(config=CONFIG, stage=2, ranks=8, length=24576, **zero):
    return estimate_gpu_memory(config, BIG, False, {"stage": stage, **zero}, ranks, length)


@pytest.mark.parametrize(
    ("name", "is_tied", "billions"),
    [("qwen2.5-3b", True, 3.09), ("qwen2.5-7b", False, 7.62), ("qwen2.5-14b", False, 14.77)],
)
def test_the_base_has_as_many_parameters_as_published(name, is_tied, billions):
    assert count_base_parameters(PRESETS[name], is_tied) == pytest.approx(billions * 1e9, rel=2e-3)


def test_zero_divides_what_it_says_it_divides():
    added, base = count_parameters(BIG, "gated_delta_net"), 2 * count_base_parameters(BIG, False)
    bytes_of = {0: 16, 1: 8 + 8 / 8, 2: 4 + 12 / 8, 3: 16 / 8}
    for stage, each in bytes_of.items():
        assert estimate(stage=stage).memories == added * each
    assert estimate(stage=2).base == base
    assert base / 8 < estimate(stage=3).base < base / 8 * 1.2
    offloaded = estimate(stage=3, offload_param={"device": "cpu"}, offload_optimizer={"device": "cpu"})
    assert offloaded.base == pytest.approx(base / BIG.num_hidden_layers) and offloaded.memories == added
    assert estimate(stage=3, offload_param={"device": "none"}) == estimate(stage=3)


def test_activations_follow_the_tokens_of_a_rank_and_what_is_kept_of_them():
    whole = estimate()
    assert estimate(replace(CONFIG, sequence_parallel_size=4)).activations == whole.activations / 4
    assert estimate(replace(CONFIG, train=TrainConfig(micro_batch_size=2))).activations == 2 * whole.activations
    assert estimate(replace(CONFIG, teacher_cache=Path("cache"))).activations < whole.activations
    without = estimate(replace(CONFIG, train=TrainConfig(activation_checkpointing=False)))
    assert without.activations > 2 * whole.activations
    inputs = 24576 * BIG.hidden_size * BIG.num_hidden_layers * 2
    assert inputs < whole.activations < 6 * inputs


def test_the_largest_published_run_fits_on_80_gib_at_zero_3_alone():
    memory = estimate()
    assert estimate(stage=3).total < 70 * GIB < 80 * GIB < memory.total
    assert str(memory).startswith(f"{memory.total / GIB:.1f} GiB (base 27.5, memories ")
