"""Rows of other ranks with their gradients, over real ranks; who needs what; and what a step in halo mode sends."""

from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.attention.window import Document, WindowSpec
from pipeline.distributed.ulysses import even_counts
from pipeline.model.halo_plan import HaloPlan
from tests.distributed import halo_cases
from tests.distributed.halo_cases import CELLS, HEADS, LENGTHS, NUM_DRAWS, WINDOW, draw, taken
from tests.distributed.processes import run_ranks
from tests.distributed.sequence_cases import HEAD_DIM

NUM_LAYERS = 2


@pytest.fixture(scope="module", params=(2, 4))
def outcome(request, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("halo")
    finished = run_ranks(Path(halo_cases.__file__), [folder], folder, num_ranks=request.param)
    assert all(f.returncode == 0 for f in finished), finished[0].output[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)]


def test_rows_arrive_in_order_and_their_gradients_add_up_at_their_owner(outcome):
    size, some_shared = len(outcome), False
    for number in range(NUM_DRAWS):
        counts, needed, row, weights = draw(number, size)
        due, uses = torch.zeros_like(row), torch.zeros(len(row))
        for rank, runs in enumerate(needed):
            for start, end in runs:
                due[start:end] += weights[rank, start:end]
                uses[start:end] += 1
        some_shared |= bool(uses.max() > 1)
        starts = (0, *accumulate(counts))
        for rank, facts in enumerate(outcome):
            found = facts[f"fetch {number}"]
            assert torch.equal(found["rows"], taken(row, needed[rank]))
            assert torch.allclose(found["grad"], due[starts[rank] : starts[rank + 1]], rtol=1e-14, atol=1e-14)
    assert some_shared


def test_only_rows_that_others_need_are_sent(outcome):
    size = len(outcome)
    for number in range(NUM_DRAWS):
        counts, needed, row, _ = draw(number, size)
        owners = torch.repeat_interleave(torch.arange(size), torch.tensor(counts))
        for rank, facts in enumerate(outcome):
            fetched = taken(owners, needed[rank])
            asked = sum((taken(owners, runs) == rank).sum() for other, runs in enumerate(needed) if other != rank)
            forward, both = facts[f"fetch {number}"]["sent"] // (row.shape[1] * row.element_size())
            assert forward == asked and both == asked + (fetched != rank).sum()


def bytes_of_a_layer(cell: str, size: int) -> tuple[int, int]:
    """All ranks' together in a forward: keys and values, and gates and states; of a document over all of them."""
    query_heads, key_value_heads = HEADS
    state = HEAD_DIM**2
    transition = 1 if cell == "mamba2" else state
    kept = (size - 1) * WINDOW.lossless_budget * 2 * key_value_heads * HEAD_DIM
    gates = (size - 1) * WINDOW.window_size * (2 if cell == "gated_delta_net" else 1)
    states = size * (size - 1) // 2 * state + (size - 1) * (size - 2) // 2 * transition
    return 8 * kept, 8 * query_heads * (gates + states)


def test_what_a_step_sends_does_not_depend_on_the_length(outcome):
    sent = {name: sum(int(facts["volume"][name]) for facts in outcome) for name in outcome[0]["volume"]}
    for cell in CELLS:
        kept, memory = bytes_of_a_layer(cell, len(outcome))
        # forward and backward; the first layer's keys and values need no gradients
        due = 2 * NUM_LAYERS * (kept + memory) - kept
        assert {sent[f"{cell} {length}"] for length in LENGTHS} == {due}
    assert sent["long"] == sent[f"gated_delta_net {LENGTHS[0]}"]
    # forward, once more, and backward; transformers then wants gradients at the first layer's inputs, too
    assert sent["recomputed"] == 3 * NUM_LAYERS * sum(bytes_of_a_layer("gated_delta_net", len(outcome)))
    assert sent[f"ulysses {LENGTHS[1]}"] > 3.9 * sent[f"ulysses {LENGTHS[0]}"]


documents = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(1, 12)), min_size=1, max_size=6
)  # length, sinks, window


def plans_of(drawn: list[tuple[int, int, int]], size: int) -> tuple[list[Document], list[HaloPlan]]:
    row, start = [], 0
    for length, sinks, window in drawn:
        start += length % 3  # of no document
        row.append(Document(0, start, start + length, WindowSpec(sinks, window)))
        start += length
    counts = even_counts(max(start, size), size)
    return row, [HaloPlan(row, counts, rank) for rank in range(size)]


@given(documents, st.integers(1, 7))
def test_segments_need_what_their_queries_see_and_evict(drawn, size):
    row, plans = plans_of(drawn, size)
    written = []
    for plan in plans:
        segments = plan.segments
        assert [s.end for s in segments[:-1]] == [s.start for s in segments[1:]]
        for segment in segments:
            d, w = segment.document, segment.window
            queries = range(segment.start, segment.end)
            seen = {k for q in queries for k in range(d.start, q + 1) if k - d.start < w.num_sink_tokens
                    or q - k < w.window_size}  # fmt: skip
            evicted = [q - w.window_size for q in queries if q - w.window_size >= d.start + w.num_sink_tokens]
            fetched = [*range(*segment.sinks), *range(*segment.reach)]
            assert (seen | set(evicted)) - set(queries) <= set(fetched)
            assert len(fetched) <= w.num_sink_tokens + w.window_size and fetched == sorted(set(fetched))
            assert [*range(*segment.earlier_writes), *range(*segment.own_writes)] == evicted
            assert len(evicted) == segment.num_reads == segment.reads[1] - segment.reads[0]
            assert segment is segments[0] or (not fetched and not segment.enters)
            written += evicted
    due = [t for d in row for t in range(d.start + d.window.num_sink_tokens, d.end - d.window.window_size)]
    assert written == due  # each by one rank, in order


@given(documents, st.integers(1, 7))
def test_a_memory_comes_from_all_ranks_that_wrote_to_it(drawn, size):
    _, plans = plans_of(drawn, size)
    for rank, plan in enumerate(plans):
        document = plan.first.document
        writers = [r for r in range(rank) if any(s.document == document and s.num_reads for s in plans[r].segments)]
        assert list(plan.sources(rank)) == writers and plan.enters == bool(writers)
        for writer in writers:
            assert plan.leaves(writer)
            assert plan.passes(writer) == (writer != writers[0])
