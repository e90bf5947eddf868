"""The three cells: chunked forms against the recurrences, the recurrences against independent ones, the modules."""

import inspect
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from pipeline.ahn.base import l2_normalise
from pipeline.ahn.build import CELLS, Memory
from pipeline.ahn.delta_net import chunk_delta_rule, naive_recurrent_delta_rule
from pipeline.ahn.gated_delta_net import chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from pipeline.ahn.mamba2 import chunk_ssd, naive_recurrent_ssd

LENGTHS = [1, 2, 63, 64, 65, 100, 200]


class Rule(NamedTuple):
    chunked: Callable
    naive: Callable
    has_decay: bool


RULES = {
    "gated_delta_net": Rule(chunk_gated_delta_rule, naive_recurrent_gated_delta_rule, True),
    "delta_net": Rule(chunk_delta_rule, naive_recurrent_delta_rule, False),
    "mamba2": Rule(chunk_ssd, naive_recurrent_ssd, True),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def draw(rule, batch, length, heads, kv_heads, dim=16, num_states=None):
    """The rule's inputs and a state, float64 with gradients; strong writes and decays, so that the memory acts."""
    torch.manual_seed(length * 7 + heads)
    options = {"dtype": torch.float64}
    q = l2_normalise(torch.randn(batch, length, heads, dim, **options))
    k = l2_normalise(torch.randn(batch, length, kv_heads, dim, **options))
    v = torch.randn(batch, length, kv_heads, dim, **options)
    g = -torch.rand(batch, length, heads, **options)
    beta = torch.rand(batch, length, heads, **options)
    state = torch.randn(num_states or batch, heads, dim, dim, **options)
    inputs = [q, k, v, g, beta] if rule.has_decay else [q, k, v, beta]
    return [x.requires_grad_() for x in inputs], state.requires_grad_()


def assert_rules_agree(rule, inputs, state, cu_seqlens=None):
    options = {"initial_state": state, "output_final_state": True, "cu_seqlens": cu_seqlens}
    expected = rule.naive(*inputs, **options)
    actual = rule.chunked(*inputs, **options)
    leaves = [*inputs, *([state] if state is not None else [])]
    weights = [torch.randn_like(x) for x in expected]

    def gradients(outputs):
        return torch.autograd.grad(sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)), leaves)

    for a, e in zip((*actual, *gradients(actual)), (*expected, *gradients(expected)), strict=True):
        assert a.shape == e.shape
        assert relative(a, e) < 1e-9


@every_rule
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_chunked_equals_recurrence_with_all_gradients(rule, length, with_state, heads, kv_heads):
    inputs, state = draw(rule, 2, length, heads, kv_heads)
    assert_rules_agree(rule, inputs, state if with_state else None)


@every_rule
@pytest.mark.parametrize("bounds", [[0, 1, 64, 65, 130], [0, 130], [0, 63, 126, 130], [0, 62, 130]])
@pytest.mark.parametrize("with_state", [False, True])
def test_packed_sequences_do_not_see_each_other(rule, bounds, with_state):
    cu_seqlens = torch.tensor(bounds)
    inputs, state = draw(rule, 1, 130, 4, 2, num_states=len(bounds) - 1)
    state = state if with_state else None
    assert_rules_agree(rule, inputs, state, cu_seqlens)
    output, final = rule.chunked(*inputs, initial_state=state, output_final_state=True, cu_seqlens=cu_seqlens)
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        own_state = None if state is None else state[i : i + 1]
        own_inputs = [x[:, start:end] for x in inputs]
        alone, own_final = rule.chunked(*own_inputs, initial_state=own_state, output_final_state=True)
        assert relative(output[:, start:end], alone) < 1e-12
        assert relative(final[i], own_final[0]) < 1e-12


@every_rule
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 150), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 5, 16]))
def test_any_shape(rule, length, batch, groups, repeats, dim):
    inputs, state = draw(rule, batch, length, groups * repeats, groups, dim)
    assert_rules_agree(rule, inputs, state)


@every_rule
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 140), min_size=1, max_size=5), st.integers(1, 2), st.integers(1, 2))
def test_any_packing(rule, lengths, groups, repeats):
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    inputs, state = draw(rule, 1, sum(lengths), groups * repeats, groups, 5, num_states=len(lengths))
    assert_rules_agree(rule, inputs, state, cu_seqlens)


def test_gated_delta_recurrence_equals_the_one_in_transformers():
    (q, k, v, g, beta), state = draw(RULES["gated_delta_net"], 2, 70, 4, 4)
    output, final = naive_recurrent_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True)
    theirs = inspect.unwrap(torch_recurrent_gated_delta_rule)  # where fla is installed, its kernel stands in front
    expected, expected_final = theirs(q, k, v, g, beta, state, output_final_state=True)
    assert relative(output, expected) < 1e-5  # theirs computes in float32
    assert relative(final, expected_final) < 1e-5


def test_delta_rule_is_the_gated_one_without_decay_and_as_the_paper_writes_it():
    (q, k, v, beta), state = draw(RULES["delta_net"], 1, 9, 2, 2, dim=4)
    output, final = chunk_delta_rule(q, k, v, beta, initial_state=state, output_final_state=True)
    gated, _ = chunk_gated_delta_rule(q, k, v, torch.zeros_like(beta), beta, initial_state=state)
    assert torch.equal(output, gated)
    for head in range(2):
        h = state[0, head]
        for t in range(9):
            key, value, b = k[0, t, head, :, None], v[0, t, head, None], beta[0, t, head]
            h = (torch.eye(4, dtype=h.dtype) - b * key @ key.T) @ h + b * key @ value
            assert relative(output[0, t, head], q[0, t, head] @ h / 2) < 1e-12
        assert relative(final[0, head], h) < 1e-12


def test_state_space_recurrence_is_as_the_paper_writes_it():
    (q, k, v, g, dt), state = draw(RULES["mamba2"], 1, 9, 2, 2, dim=4)
    output, final = naive_recurrent_ssd(q, k, v, g, dt, initial_state=state, output_final_state=True)
    for head in range(2):
        h = state[0, head]
        for t in range(9):
            h = g[0, t, head].exp() * h + dt[0, t, head] * k[0, t, head, :, None] @ v[0, t, head, None]
            assert relative(output[0, t, head], q[0, t, head] @ h) < 1e-12
        assert relative(final[0, head], h) < 1e-12


@every_rule
def test_a_token_with_zero_gates_changes_nothing(rule):
    (q, k, v, *gates), state = draw(rule, 1, 80, 4, 2)
    silent = torch.arange(80) % 3 == 0
    gates = [torch.where(silent[:, None], 0.0, x) for x in gates]
    _, with_silent = rule.chunked(q, k, v, *gates, initial_state=state, output_final_state=True)
    kept = [x[:, ~silent] for x in (q, k, v, *gates)]
    _, without = rule.chunked(*kept, initial_state=state, output_final_state=True)
    assert relative(with_silent, without) < 1e-12


@pytest.mark.parametrize("name", ["gated_delta_net", "mamba2"])
@pytest.mark.parametrize("reset", [-50.0, -1e4, -1e30, -math.inf])
def test_one_strong_decay_among_weak_ones_costs_no_precision(name, reset):
    rule = RULES[name]
    (q, k, v, g, beta), _ = draw(rule, 1, 150, 2, 2)
    g = (0.02 * g.detach()).index_fill(1, torch.arange(20, 150, 40), reset)
    expected, _ = rule.naive(q, k, v, g, beta)
    single = [x.detach().float().requires_grad_() for x in (q, k, v, g, beta)]
    output, _ = rule.chunked(*single)
    assert relative(output.double(), expected) < 1e-6
    output.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in single)


def test_an_empty_sequence_is_refused():
    inputs, _ = draw(RULES["delta_net"], 1, 20, 2, 2)
    with pytest.raises(ValueError, match="must rise"):
        chunk_delta_rule(*inputs, cu_seqlens=torch.tensor([0, 0, 5, 20]))


def test_identical_keys_at_full_strength_stay_finite_and_exact_in_float32():
    """The worst case of the chunk's triangular system: every key alike, beta = 1, no decay."""
    key = l2_normalise(torch.randn(1, 1, 1, 32)).expand(1, 256, 2, 32)
    v = torch.randn(1, 256, 2, 32)
    gates = torch.zeros(1, 256, 2), torch.ones(1, 256, 2)
    output, _ = chunk_gated_delta_rule(key, key, v, *gates)
    assert relative(output, v * 32**-0.5) < 1e-5  # each token overwrites the one before


PUBLISHED_MILLIONS = {  # (hidden, layers, query heads) -> parameters added, millions
    (2048, 36, 16): {"mamba2": 11.87, "delta_net": 11.80, "gated_delta_net": 12.98},
    (3584, 28, 28): {"mamba2": 18.57, "delta_net": 18.47, "gated_delta_net": 21.28},
    (5120, 48, 40): {"mamba2": 51.37, "delta_net": 51.12, "gated_delta_net": 60.96},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", PUBLISHED_MILLIONS, ids=str)
def test_parameter_counts_are_the_published_ones(sizes, cell):
    hidden, layers, heads = sizes
    with torch.device("meta"):
        module = CELLS[cell](hidden, heads, 128)
    assert round(layers * sum(p.numel() for p in module.parameters()) / 1e6, 2) == PUBLISHED_MILLIONS[sizes][cell]


@pytest.mark.parametrize("cell", CELLS)
def test_published_initialisation(cell):
    module = CELLS[cell](64, 512, 8)
    values = module.initial_values(torch.Generator().manual_seed(0))
    assert {n: v.shape for n, v in values.items()} == {n: p.shape for n, p in module.named_parameters()}
    assert not values["o_proj.weight"].any()
    assert values["g_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    if cell == "gated_delta_net":
        decay_rate, dt = values["A_log"].exp(), F.softplus(values["dt_bias"])
        assert 0 < decay_rate.min() < 1 and 15 < decay_rate.max() <= 16
        assert 0.9e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.1001
    if cell == "mamba2":
        torch.testing.assert_close(values["A_log"].exp(), torch.arange(1.0, 513))
        assert (values["dt_bias"] == 1).all() and not values["dt_proj.bias"].any()


def test_a_long_memory_forgets_slowly_at_first():
    rates = torch.linspace(-4, -12, 8).exp2()
    for cell, decay in (("mamba2", "dt"), ("gated_delta_net", "g")):
        module = Memory(cell, 32, 8, 4).fn
        values = module.initial_values(torch.Generator().manual_seed(0)) | module.long_memory_values()
        module.load_state_dict(values)
        gate = module.write_gates(torch.zeros(1, 1, 32))[decay][0, 0]
        log_decay = gate if cell == "gated_delta_net" else -module.A_log.exp() * gate
        torch.testing.assert_close(log_decay, -rates, rtol=1e-4, atol=0)
    assert Memory("delta_net", 32, 8, 4).fn.long_memory_values() == {}


def build_cell(cell, dtype=torch.float64):
    module = Memory(cell, 32, 4, 8).fn.to(dtype)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def read_as_published(p, cell, q, k, v, write_hidden, read_hidden):
    """The paper's formulas on a cell's parameters `p`, token by token."""
    q, k = l2_normalise(q), l2_normalise(k)
    gate = F.silu(read_hidden @ p["g_proj.weight"].T + p.get("g_proj.bias", 0))[..., None]
    if cell == "mamba2":
        dt = F.softplus(write_hidden @ p["dt_proj.weight"].T + p["dt_proj.bias"] + p["dt_bias"])
        o, _ = naive_recurrent_ssd(q, k, v, -p["A_log"].exp() * dt, dt)
        return rms_norm((o * gate).flatten(2), p["norm.weight"]).view_as(o)
    beta = torch.sigmoid(write_hidden @ p["b_proj.weight"].T)
    g = torch.zeros_like(beta)
    if cell == "gated_delta_net":
        g = -p["A_log"].exp() * F.softplus(write_hidden @ p["a_proj.weight"].T + p["dt_bias"])
    o, _ = naive_recurrent_gated_delta_rule(q, k, v, g, beta)
    return rms_norm(o, p["o_norm.weight"]) * gate


@pytest.mark.parametrize("cell", CELLS)
def test_module_is_what_the_paper_says(cell):
    module = build_cell(cell)
    q, k, v = (torch.randn(2, 70, h, 8, dtype=torch.float64) for h in (4, 2, 2))
    write_hidden, read_hidden = (torch.randn(2, 70, 32, dtype=torch.float64) for _ in range(2))
    actual = module(q, k, v, write_hidden, read_hidden)
    parameters = dict(module.named_parameters())
    o = read_as_published(parameters, cell, q, k, v, write_hidden, read_hidden)
    assert relative(actual, torch.einsum("bthi,hio->btho", o, module.o_proj.weight)) < 1e-12
    actual.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters.values())


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_evicted_still_gives_every_parameter_a_gradient(cell):
    module = build_cell(cell, torch.float32)
    empty = [torch.randn(1, 0, h, 8) for h in (4, 2, 2)] + [torch.randn(1, 0, 32)] * 2
    module(*empty).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
