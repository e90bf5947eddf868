"""GatedDeltaNet: chunked form against the recurrence, the recurrence against an independent one, the module."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from pipeline.ahn.base import l2_normalise
from pipeline.ahn.build import Memory
from pipeline.ahn.gated_delta_net import (
    GatedDeltaNet,
    chunk_gated_delta_rule,
    naive_recurrent_gated_delta_rule,
)

LENGTHS = [1, 2, 63, 64, 65, 100, 200]


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def draw(batch, length, heads, kv_heads, dim=16, num_states=None):
    """q, k, v, g, beta and a state, float64 with gradients; strong writes and decays, so that the memory acts."""
    torch.manual_seed(length * 7 + heads)
    options = {"dtype": torch.float64}
    q = l2_normalise(torch.randn(batch, length, heads, dim, **options))
    k = l2_normalise(torch.randn(batch, length, kv_heads, dim, **options))
    v = torch.randn(batch, length, kv_heads, dim, **options)
    g = -torch.rand(batch, length, heads, **options)
    beta = torch.rand(batch, length, heads, **options)
    state = torch.randn(num_states or batch, heads, dim, dim, **options)
    return [x.requires_grad_() for x in (q, k, v, g, beta)], state.requires_grad_()


def assert_rules_agree(inputs, state, cu_seqlens=None):
    options = {"initial_state": state, "output_final_state": True, "cu_seqlens": cu_seqlens}
    expected = naive_recurrent_gated_delta_rule(*inputs, **options)
    actual = chunk_gated_delta_rule(*inputs, **options)
    leaves = [*inputs, *([state] if state is not None else [])]
    weights = [torch.randn_like(x) for x in expected]

    def gradients(outputs):
        return torch.autograd.grad(sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)), leaves)

    for a, e in zip((*actual, *gradients(actual)), (*expected, *gradients(expected)), strict=True):
        assert a.shape == e.shape
        assert relative(a, e) < 1e-9


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_chunked_equals_recurrence_with_all_gradients(length, with_state, heads, kv_heads):
    inputs, state = draw(2, length, heads, kv_heads)
    assert_rules_agree(inputs, state if with_state else None)


@pytest.mark.parametrize("bounds", [[0, 1, 64, 65, 130], [0, 130], [0, 63, 126, 130]])
@pytest.mark.parametrize("with_state", [False, True])
def test_packed_sequences_do_not_see_each_other(bounds, with_state):
    cu_seqlens = torch.tensor(bounds)
    inputs, state = draw(1, 130, 4, 2, num_states=len(bounds) - 1)
    state = state if with_state else None
    assert_rules_agree(inputs, state, cu_seqlens)
    output, final = chunk_gated_delta_rule(*inputs, initial_state=state, output_final_state=True, cu_seqlens=cu_seqlens)
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        own_state = None if state is None else state[i : i + 1]
        alone, own_final = chunk_gated_delta_rule(
            *(x[:, start:end] for x in inputs), initial_state=own_state, output_final_state=True
        )
        assert relative(output[:, start:end], alone) < 1e-12
        assert relative(final[i], own_final[0]) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 5, 16]))
def test_any_shape(length, batch, groups, repeats, dim):
    inputs, state = draw(batch, length, groups * repeats, groups, dim)
    assert_rules_agree(inputs, state)


def test_recurrence_equals_the_one_in_transformers():
    (q, k, v, g, beta), state = draw(2, 70, 4, 4)
    output, final = naive_recurrent_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True)
    expected, expected_final = torch_recurrent_gated_delta_rule(q, k, v, g, beta, state, output_final_state=True)
    assert relative(output, expected) < 1e-5  # theirs computes in float32
    assert relative(final, expected_final) < 1e-5


def test_a_token_with_zero_gates_changes_nothing():
    inputs, state = draw(1, 80, 4, 2)
    q, k, v, g, beta = inputs
    silent = torch.arange(80) % 3 == 0
    g, beta = (torch.where(silent[:, None], 0.0, x) for x in (g, beta))
    _, with_silent = chunk_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True)
    kept = [x[:, ~silent] for x in (q, k, v, g, beta)]
    _, without = chunk_gated_delta_rule(*kept, initial_state=state, output_final_state=True)
    assert relative(with_silent, without) < 1e-12


def test_identical_keys_at_full_strength_stay_finite_and_exact_in_float32():
    """The worst case of the chunk's triangular system: every key alike, beta = 1, no decay."""
    key = l2_normalise(torch.randn(1, 1, 1, 32)).expand(1, 256, 2, 32)
    v = torch.randn(1, 256, 2, 32)
    gates = torch.zeros(1, 256, 2), torch.ones(1, 256, 2)
    output, _ = chunk_gated_delta_rule(key, key, v, *gates)
    assert relative(output, v * 32**-0.5) < 1e-5  # each token overwrites the one before


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "millions"), [(2048, 36, 16, 12.98), (3584, 28, 28, 21.28), (5120, 48, 40, 60.96)]
)
def test_parameter_counts_are_the_published_ones(hidden, layers, heads, millions):
    with torch.device("meta"):
        cell = GatedDeltaNet(hidden, heads, 128)
    assert round(layers * sum(p.numel() for p in cell.parameters()) / 1e6, 2) == millions


def test_published_initialisation():
    with torch.device("cpu"):
        cell = GatedDeltaNet(64, 512, 8)
    values = cell.initial_values(torch.Generator().manual_seed(0))
    assert values.keys() == dict(cell.named_parameters()).keys()
    decay_rate, dt = values["A_log"].exp(), torch.nn.functional.softplus(values["dt_bias"])
    assert 0 < decay_rate.min() < 1 and 15 < decay_rate.max() <= 16
    assert 0.9e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.1001
    assert not values["o_proj.weight"].any()
    assert values["b_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)


def build_cell(dtype=torch.float64):
    cell = Memory("gated_delta_net", 32, 4, 8).fn.to(dtype)
    torch.manual_seed(0)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return cell


def test_module_is_the_recurrence_gate_norm_and_output_of_the_paper():
    cell = build_cell()
    q, k, v = (torch.randn(2, 70, h, 8, dtype=torch.float64) for h in (4, 2, 2))
    write_hidden, read_hidden = (torch.randn(2, 70, 32, dtype=torch.float64) for _ in range(2))
    actual = cell(q, k, v, write_hidden, read_hidden)
    beta = torch.sigmoid(write_hidden @ cell.b_proj.weight.T)
    g = -cell.A_log.exp() * torch.nn.functional.softplus(write_hidden @ cell.a_proj.weight.T + cell.dt_bias)
    o, _ = naive_recurrent_gated_delta_rule(l2_normalise(q), l2_normalise(k), v, g, beta)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * cell.o_norm.weight
    o = o * torch.nn.functional.silu(read_hidden @ cell.g_proj.weight.T)[..., None]
    expected = torch.einsum("bthi,hio->btho", o, cell.o_proj.weight)
    assert relative(actual, expected) < 1e-12
    actual.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in cell.parameters())


def test_nothing_evicted_still_gives_every_parameter_a_gradient():
    cell = build_cell(torch.float32)
    empty = [torch.randn(1, 0, h, 8) for h in (4, 2, 2)] + [torch.randn(1, 0, 32)] * 2
    cell(*empty).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in cell.parameters())
