"""What a run of writes does to any state: outputs, states and gradients are those of the cell begun in that state."""

import itertools

import pytest
import torch

from pipeline.ahn.base import ALL_HEADS, l2_normalise
from pipeline.ahn.build import CELLS, Memory
from pipeline.ahn.passage import pass_through

HIDDEN, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 32, 4, 2, 8


def draw(cell: str, length: int, dtype: torch.dtype = torch.float64):
    """The cell, its inputs with gradients, and a state [Hq, D, D]."""
    torch.manual_seed(length)
    module = Memory(cell, HIDDEN, HEADS, HEAD_DIM).fn.to(dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    q, k = (l2_normalise(torch.randn(1, length, h, HEAD_DIM)).to(dtype) for h in (HEADS, KEY_VALUE_HEADS))
    v = torch.randn(1, length, KEY_VALUE_HEADS, HEAD_DIM, dtype=dtype)
    state = torch.randn(HEADS, HEAD_DIM, HEAD_DIM, dtype=dtype)
    hidden = 0.3 * torch.randn(1, length, HIDDEN, dtype=dtype)
    leaves = [x.requires_grad_() for x in (q, k, v, state, hidden)]
    return module, leaves


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("length", [1, 2, 40, 150])
def test_a_run_begun_in_a_state(cell, length):
    module, leaves = draw(cell, length)
    q, k, v, state, hidden = leaves
    leaves = [*leaves, *(p for n, p in module.named_parameters() if not n.startswith(("g_proj", "o_", "norm")))]
    passage = module.passage(q, k, v, module.write_gates(hidden))
    found = passage.read(state), pass_through(state, passage.transition, passage.increment)
    options = {"initial_state": state[None], "output_final_state": True}
    output, final = module.recur(q, k, v, module.write_gates(hidden), ALL_HEADS, **options)
    assert (passage.transition.shape[-1] == 1) == module.scalar_transition
    weights = [torch.randn_like(x) for x in found]
    results = [
        [*pair, *torch.autograd.grad(sum((x * w).sum() for x, w in zip(pair, weights, strict=True)), leaves)]
        for pair in (found, (output, final[0]))
    ]
    for actual, expected in zip(*results, strict=True):
        assert expected.norm() > 1e-6
        assert (actual - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("cell", CELLS)
def test_runs_after_one_another_hand_the_state_on_in_float32(cell):
    module, (q, k, v, _, hidden) = draw(cell, 600, torch.float32)
    gates, bounds = module.write_gates(hidden), [0, 90, 91, 400, 600]
    expected = module.double().recur(q.double(), k.double(), v.double(),
                                     {n: g.double() for n, g in gates.items()}, ALL_HEADS)[0]  # fmt: skip
    module.float()
    state, outputs = torch.zeros(HEADS, HEAD_DIM, HEAD_DIM), []
    for start, end in itertools.pairwise(bounds):
        own = {n: g[:, start:end] for n, g in gates.items()}
        passage = module.passage(*(x[:, start:end] for x in (q, k, v)), own)
        outputs.append(passage.read(state))
        state = pass_through(state, passage.transition, passage.increment)
    assert (torch.cat(outputs, 1) - expected).norm() <= 2e-6 * expected.norm()
