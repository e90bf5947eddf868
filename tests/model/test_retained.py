"""Models with retained tokens against a simulation token by token: float64, memories and scorers that act."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from pipeline.attention.window import Document, WindowSpec
from pipeline.model.decoder import window_of
from pipeline.model.plan import DocumentPlan
from pipeline.model.prefix import PrefixStore
from pipeline.model.sequence_shard import SequenceShard
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


def test_packed_documents_are_each_document_alone_with_all_gradients(base_of_cell, tokens):
    """Different windows, with and without retained tokens, one within its budget, padding between documents."""
    model, row = base_of_cell.load_acting(window=WINDOWS[1]), tokens[:1]
    documents = [
        Document(0, 0, 20, WindowSpec(1, 4, 3)),
        Document(0, 22, 26, WINDOWS[1]),
        Document(0, 26, 44, WindowSpec(0, 5, 2, 3)),
        Document(0, 44, 47, WindowSpec(0, 2)),
        Document(0, 47, 48, None),
    ]
    packed = hidden(model, row, documents=documents)
    for d in documents[:-1]:
        alone = row[:, d.start : d.end]
        with simulated() if d.window.num_retained_tokens else contextlib.nullcontext():
            expected = hidden(model, alone, documents=[Document(0, 0, d.length, d.window)])
        torch.testing.assert_close(packed[:, d.start : d.end], expected, rtol=0, atol=TOLERANCE)
    separate = sum(
        hidden(model, row[:, d.start : d.end], documents=[Document(0, 0, d.length, d.window)]).square().sum()
        for d in documents
    )
    parameters = [p for n, p in model.named_parameters() if ".ahn.fn." in n]
    together = sum(packed[:, d.start : d.end].square().sum() for d in documents)
    for a, e in zip(*(torch.autograd.grad(x, parameters) for x in (together, separate)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("model", WINDOWS, ids=str, indirect=True)
def test_without_their_prefixes_documents_are_what_they_are_whole(model, tokens):
    """The prefixes' keys, values, hidden states and masses come from another forward, with full attention."""
    window, row = window_of(model.config), torch.cat([tokens[:1], tokens[1:]], 1)
    documents = [Document(0, 0, 40, window), Document(0, 44, 96, window)]
    prefixes = PrefixStore(documents)
    with torch.no_grad():
        teacher = [Document(0, d.start, d.end, None) for d in documents]
        hidden(model, row, documents=teacher, use_memory=False, record=prefixes)
    whole = hidden(model, row, documents=documents)[:, prefixes.suffix_indices()]
    part = row[:, prefixes.suffix_indices()]
    suffix = hidden(model, part, documents=prefixes.suffix_documents(), prefixes=prefixes)
    torch.testing.assert_close(suffix, whole, rtol=0, atol=TOLERANCE)
    for a, e in zip(gradients(model, suffix), gradients(model, whole), strict=True):
        assert e.abs().sum() > 0
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-9)


def test_a_row_of_which_ranks_keep_their_tokens_inside_attention_is_refused_in_a_line():
    shard = SequenceShard(SimpleNamespace(rank=0, size=2), None, (24, 24))
    with pytest.raises(ValueError, match="ranks keep their tokens inside attention"):
        DocumentPlan([Document(0, 0, 48, WINDOWS[1])], 1, 48, use_memory=True, shard=shard)
