"""pipeline/launching/gpu_memory.py against published parameter counts, and against what must and must not change."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.attention.retained_attention import retained_attention
from pipeline.attention.retained_blocks import block_size, rows_at_once
from pipeline.attention.retention import drop_order
from pipeline.attention.window import WindowSpec
from pipeline.config import TrainConfig, TrainRunConfig, WindowConfig
from pipeline.launching.gpu_memory import GIB, count_base_parameters, estimate_gpu_memory, gathered_bytes
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


def test_retained_tokens_cost_what_attention_gathers_for_them():
    plain = estimate()
    assert plain.retained == 0 and "retained" not in str(plain)
    window = WindowConfig(retained=[0, 256, 1024], decision_interval=8)
    found = estimate(replace(CONFIG, window=window))
    assert found.total - plain.total == found.retained and "retained " in str(found)
    fewer = estimate(replace(CONFIG, window=replace(window, retained=[0, 256])))
    scorers = 4 * BIG.hidden_size * BIG.num_key_value_heads * BIG.num_hidden_layers
    assert scorers < fewer.retained < found.retained < 8 * GIB
    shared = estimate(replace(CONFIG, window=window, sequence_parallel_size=8))
    assert scorers < shared.retained < found.retained
    assert estimate(replace(CONFIG, window=window), length=16).retained == scorers
    kept = estimate(replace(CONFIG, window=window, train=TrainConfig(activation_checkpointing=False)))
    assert kept.retained - scorers == BIG.num_hidden_layers * (found.retained - scorers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [WindowSpec(16, 240, 64), WindowSpec(16, 1000, 128, 8)], ids=str)
def test_what_is_gathered_is_what_torch_keeps_for_the_backward_pass(window, dtype):
    length, a = 2048, replace(BIG, head_dim=64, num_attention_heads=8, num_key_value_heads=2)
    q, k, v = (torch.randn(1, heads, length, 64, dtype=dtype, requires_grad=True) for heads in (8, 2, 2))
    scores = torch.randn(1, 2, length - window.num_sink_tokens - window.window_size)
    order, kept = drop_order(scores, window.num_retained_tokens, window.decision_interval), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        retained_attention(q, k, v, window, order, scale=0.1)
    whole = gathered_bytes(a, window, length, 2, dtype.itemsize)
    rows = rows_at_once(window, length, 2)
    gradients, bools = rows * 2 * 64 * dtype.itemsize, rows * block_size(window, length)
    of_queries = 2 * q.numel() * dtype.itemsize
    assert sum(kept.values()) == pytest.approx(whole - gradients - bools + of_queries, rel=0.15)


def test_the_largest_published_run_fits_on_80_gib_at_zero_3_alone():
    memory = estimate()
    assert estimate(stage=3).total < 70 * GIB < 80 * GIB < memory.total
    assert str(memory).startswith(f"{memory.total / GIB:.1f} GiB (base 27.5, memories ")
