"""FLOPs of a step against torch's own count of a real model's matrix products, and against the formulas."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.attention.window import Document, WindowSpec
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import PRESETS, parse_architecture
from pipeline.metrics.step_flops import find_peak_tflops, head_flops, student_flops, teacher_flops

WINDOW = WindowSpec(2, 14)


def test_the_pass_of_a_frozen_teacher_is_what_torch_counts():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 50}  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, 40, dtype=torch.int64))
    a = parse_architecture(sizes, "here")
    # A causal query sees half of the keys on average, which is what the formula counts; torch multiplies all.
    masked = 3 * 2 * a.head_dim * 4 * 40**2
    assert teacher_flops(a, [40]) + head_flops(a, 40) + masked == counter.get_total_flops()


def test_a_student_computes_what_lies_past_the_budget():
    a, window = PRESETS["qwen2.5-3b"], WindowSpec(128, 3968)
    whole = compute_account(a, "gated_delta_net", 32_768, window)
    forward = whole.mixer_flops.ahn - compute_account(a, "gated_delta_net", 4096, window).mixer_flops.full
    mlp = 6 * (32_768 - 4096) * a.hidden_size * a.intermediate_size * a.num_hidden_layers
    flops = student_flops(a, "gated_delta_net", [Document(0, 0, 32_768, window)], 0)
    assert 2 * (forward + mlp) < flops < 3 * (forward + mlp)
    more = student_flops(a, "gated_delta_net", [Document(0, 0, 32_768, window)], 10)
    assert more - flops == 2 * head_flops(a, 10)


def test_documents_add_up_and_a_whole_student_computes_its_budgets_too():
    a = PRESETS["qwen2.5-7b"]
    one, other = Document(0, 0, 90, WINDOW), Document(0, 90, 130, WINDOW)
    parts = [student_flops(a, "mamba2", [d], 5) for d in (one, other)]
    assert student_flops(a, "mamba2", [one, other], 10) == sum(parts)
    more = student_flops(a, "mamba2", [one], 5, whole=True) - parts[0]
    budget = teacher_flops(a, [WINDOW.lossless_budget])
    assert 2 * budget <= more <= 3 * budget


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX A4000", None),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_device_s_name(name, peak):
    assert find_peak_tflops(name) == peak
