"""Models with retained tokens against a simulation token by token: float64, memories and scorers that act."""

import pytest
import torch

from pipeline.attention.window import WindowSpec
from pipeline.model.augment import window_of
from tests.model.retained_simulator import simulated
from tests.model.test_exactness import CHUNKINGS, TOLERANCE, hidden, in_chunks

WINDOWS = [
    WindowSpec(4, 12, 1), WindowSpec(4, 12, 3), WindowSpec(4, 8, 8), WindowSpec(2, 6, 3, 4), WindowSpec(0, 5, 8, 4)
]  # fmt: skip


@pytest.fixture
def model(base_of_cell, request):
    return base_of_cell.load_acting(window=request.param)


def gradients(model, output):
    parameters = [p for n, p in model.named_parameters() if ".ahn.fn." in n]
    weight = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((output * weight).sum(), parameters)


@pytest.mark.parametrize("model", WINDOWS, ids=str, indirect=True)
def test_a_forward_is_the_simulation_with_all_gradients(model, tokens):
    actual = hidden(model, tokens)
    with simulated() as counts:
        expected = hidden(model, tokens)
    assert set(counts) == {48 - window_of(model.config).lossless_budget}
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
    effect = (actual - hidden(model, tokens, use_memory=False)).abs()
    assert effect.max() > 1e-2, "the memory does not act"
    for a, e in zip(gradients(model, actual), gradients(model, expected), strict=True):
        assert e.abs().sum() > 0
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("model", WINDOWS, ids=str, indirect=True)
def test_any_chunking_gives_the_logits_of_one_forward(model, tokens):
    expected = model(tokens, use_cache=False).logits
    for chunks in CHUNKINGS:
        actual = in_chunks(model, tokens, chunks, window=window_of(model.config))
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)
