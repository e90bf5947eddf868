"""Tokens to heads and back, with gradients, over real ranks; and which rank has which heads."""

from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distributed.head_shares import legal_sizes, share_heads
from pipeline.distributed.ulysses import even_counts
from pipeline.errors import UserError
from tests.distributed import ulysses_cases
from tests.distributed.processes import run_ranks
from tests.distributed.ulysses_cases import HEADS, LENGTHS, WIDTH, attend, draw


@pytest.fixture(scope="module", params=HEADS)
def outcome(request, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ulysses")
    finished = run_ranks(Path(ulysses_cases.__file__), [folder], folder, num_ranks=request.param)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)]


def test_heads_of_all_tokens_outputs_and_gradients_are_those_of_one_process(outcome):
    size = len(outcome)
    for length in LENGTHS:
        for heads in HEADS[size]:
            query, key = (draw(n, length, h, WIDTH).requires_grad_() for n, h in zip("qk", heads, strict=True))
            out = attend(query, key)
            (out * draw("o", length, heads[0], WIDTH)).sum().backward()
            parts = [facts[f"{length}-{heads}"] for facts in outcome]
            shares = share_heads(*heads, size)
            for part, q_share, k_share in zip(parts, shares.query, shares.key_value, strict=True):
                assert torch.equal(part["q"], query[:, slice(*q_share)])
                assert torch.equal(part["k"], key[:, slice(*k_share)])
            for name, due in (("out", out), ("query_grad", query.grad), ("key_grad", key.grad)):
                found = torch.cat([part[name] for part in parts])
                assert due.norm() > 1e-2 and (found - due).norm() <= 1e-12 * due.norm(), (length, heads, name)


def test_rows_move_to_the_ranks_that_another_split_gives_them_to(outcome):
    size = len(outcome)
    for length in LENGTHS:
        starts = (0, *accumulate(reversed(even_counts(length, size))))
        for rank, facts in enumerate(outcome):
            due = draw("r", length, WIDTH)[starts[rank] : starts[rank + 1]]
            assert torch.equal(facts[f"{length}-{HEADS[size][0]}"]["rows"], due)


def test_numbers_a_head_are_added_up_at_the_rank_that_decides_and_brought_to_all_that_have_the_head(outcome):
    size = len(outcome)
    for length in LENGTHS:
        for heads in HEADS[size]:
            shares = share_heads(*heads, size).key_value
            for (first, end), facts in zip(shares, outcome, strict=True):
                having = torch.tensor([sum(r + 1 for r in range(size) if shares[r][0] <= h < shares[r][1])
                                       for h in range(first, end)])  # fmt: skip
                due = draw("m", length, heads[1])[:, first:end] * having
                torch.testing.assert_close(facts[f"{length}-{heads}"]["added"], due, rtol=1e-15, atol=1e-15)


def test_a_sum_over_ranks_has_the_gradient_of_all_their_losses(outcome):
    size = len(outcome)
    for rank, facts in enumerate(outcome):
        x = draw("sum", 5)[rank:].sum()
        assert facts["sum"]["grad"].item() == pytest.approx(2 * x.item() * size * (size + 1) / 2)


def test_bytes_sent_are_counted_without_what_stays(outcome):
    """[2 P, 4, 8] bfloat16, of which each rank keeps its share of the heads."""
    size = len(outcome)
    assert {facts["sent"]["bytes"].item() for facts in outcome} == {2 * size * 4 * 8 * 2 * (size - 1) // size}


def test_published_models_allow_these_sizes():
    assert legal_sizes(16, 2)[0] == [2, 4, 8, 16]  # Qwen2.5-3B
    assert 8 in legal_sizes(28, 4)[1] and share_heads(28, 4, 8).query[:2] == ((0, 3), (3, 7))  # 7B
    assert legal_sizes(40, 8)[0] == [2, 4, 8, 40]  # 14B
    with pytest.raises(UserError, match=r"--sequence_parallel_size 3: .*16 query and 2 key-value heads allow 2, 4, 8"):
        share_heads(16, 2, 3)


@given(st.integers(1, 12), st.integers(1, 8))
def test_shares_cover_each_query_head_once_with_its_key_value_head(group, num_key_value_heads):
    num_heads = group * num_key_value_heads
    for size in (1, *(size for sizes in legal_sizes(num_heads, num_key_value_heads) for size in sizes)):
        shares = share_heads(num_heads, num_key_value_heads, size)
        assert [h for a, b in shares.query for h in range(a, b)] == list(range(num_heads))
        for (a, b), (first, end) in zip(shares.query, shares.key_value, strict=True):
            used = [h // group for h in range(a, b)]
            assert sorted(set(used)) == list(range(first, end))
            assert len({used.count(h) for h in range(first, end)}) == 1  # grouped attention runs as it is
        assert [h for a, b in shares.deciding for h in range(a, b)] == list(range(num_key_value_heads))
        for (a, b), (first, end) in zip(shares.deciding, shares.key_value, strict=True):
            assert first <= a <= b <= end
        lengths = [b - a for a, b in shares.query]
        assert max(lengths) - min(lengths) <= 1
