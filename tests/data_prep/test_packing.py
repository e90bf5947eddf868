"""Three packings: every token exactly once, with the right bounds; best fit cuts nothing that fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import packing
from data_prep.packing import (
    BestFit,
    Pack,
    TokenisedDocument,
    best_fit_decreasing,
    cut_long,
    join,
    pack_concat,
    pack_none,
    split,
)


def _documents(lengths: list[int], masked: bool = False) -> list[TokenisedDocument]:
    ids = np.arange(sum(lengths), dtype=np.uint32)  # every token is unlike every other
    bounds = np.cumsum([0, *lengths])
    return [
        TokenisedDocument(
            f"d{i}",
            {"bytes": n},
            ids[start : start + n],
            (ids[start : start + n] % 3 == 0).astype(np.uint8) if masked else None,
        )
        for i, (start, n) in enumerate(zip(bounds, lengths, strict=False))
    ]


def _check(packs: list[Pack], documents: list[TokenisedDocument], seq_len: int) -> None:
    """Every token of every document in exactly one sample, where meta.json's entry says, with its mask."""
    by_id = {d.id: d for d in documents}
    seen = {d.id: np.zeros(len(d.input_ids), int) for d in documents}
    for pack in packs:
        assert pack.input_ids.dtype == np.uint32 and pack.cu_seqlens.dtype == np.int32
        assert pack.cu_seqlens[0] == 0 and pack.cu_seqlens[-1] == len(pack.input_ids) <= seq_len
        for piece, start, end in zip(pack.documents, pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
            source = by_id[piece["id"]]
            assert piece["tokens"] == len(source.input_ids) and piece["origin"] == source.origin
            np.testing.assert_array_equal(pack.input_ids[start:end], source.input_ids[piece["start"] : piece["end"]])
            if source.loss_mask is not None:
                expected = source.loss_mask[piece["start"] : piece["end"]]
                np.testing.assert_array_equal(pack.loss_mask[start:end], expected)
            seen[source.id][piece["start"] : piece["end"]] += 1
    assert all((counts == 1).all() for counts in seen.values())


LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(2, 50), masked=st.booleans())
def test_concat_holds_every_token_in_order_and_only_the_last_sample_is_short(
    lengths: list[int], seq_len: int, masked: bool
) -> None:
    documents = _documents(lengths, masked)
    packs = list(pack_concat(documents, seq_len))
    _check(packs, documents, seq_len)
    stream = np.concatenate([p.input_ids for p in packs]) if packs else np.zeros(0)
    np.testing.assert_array_equal(stream, np.arange(sum(lengths)))
    assert all(len(p.input_ids) == seq_len for p in packs[:-1])


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(2, 50), masked=st.booleans())
def test_none_gives_each_document_its_own_samples(lengths: list[int], seq_len: int, masked: bool) -> None:
    documents = _documents(lengths, masked)
    packs = list(pack_none(documents, seq_len))
    _check(packs, documents, seq_len)
    assert all(len(pack.documents) == 1 for pack in packs)
    assert len(packs) == sum(-(-n // seq_len) for n in lengths)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=4),
    seq_len=st.integers(2, 50),
    masked=st.booleans(),
    buffer_tokens=st.integers(1, 400),
    max_leftovers=st.integers(0, 4),
)
def test_best_fit_over_units_and_their_leftovers_cuts_only_what_is_too_long(
    lengths: list[list[int]], seq_len: int, masked: bool, buffer_tokens: int, max_leftovers: int
) -> None:
    documents = _documents([n for unit in lengths for n in unit], masked)
    remaining = iter(documents)
    packs, leftovers = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_BUFFER_TOKENS", buffer_tokens)
        patch.setattr(packing, "MIN_BUFFER_SAMPLES", 1)
        for unit in lengths:
            best_fit = BestFit(seq_len, max_leftovers)
            packs += list(best_fit.pack(cut_long([next(remaining) for _ in unit], seq_len)))
            assert sum(map(len, best_fit.leftovers)) <= max_leftovers * seq_len
            leftovers += list(split(join(best_fit.leftovers))) if best_fit.leftovers else []
        last = BestFit(seq_len)
        packs += list(last.pack(leftovers))
        assert last.leftovers == []
    _check(packs, documents, seq_len)
    for piece in (piece for pack in packs for piece in pack.documents):
        if piece["tokens"] <= seq_len:
            assert (piece["start"], piece["end"]) == (0, piece["tokens"])
        else:
            assert piece["start"] % seq_len == 0 and (piece["end"] - piece["start"] == seq_len or
                                                      piece["end"] == piece["tokens"])  # fmt: skip


def _naive_best_fit_decreasing(lengths: list[int], seq_len: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        room = [(seq_len - sum(lengths[n] for n in b), i) for i, b in enumerate(bins)]
        fitting = [r for r in room if r[0] >= lengths[number]]
        if fitting:
            bins[min(fitting)[1]].append(number)
        else:
            bins.append([number])
    return bins


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=50), seq_len=st.integers(30, 60))
def test_best_fit_decreasing_equals_its_definition(lengths: list[int], seq_len: int) -> None:
    pieces = list(cut_long(_documents(lengths), seq_len))
    ours = [[number for number, _ in b.pieces] for b in best_fit_decreasing(pieces, seq_len)]
    assert ours == _naive_best_fit_decreasing(lengths, seq_len)


def test_many_documents_fill_nearly_every_position() -> None:
    rng = np.random.default_rng(0)
    documents = _documents(np.minimum(rng.lognormal(5.5, 1.5, 4000), 50_000).astype(int).tolist())
    packs = list(BestFit(2048).pack(cut_long(documents, 2048)))
    assert sum(len(p.input_ids) for p in packs) / (2048 * len(packs)) > 0.998


def test_buffer_stays_bounded_where_nothing_fits_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MIN_BUFFER_TOKENS", 2000)
    largest = 0

    def watched(pieces: list, seq_len: int) -> list:
        nonlocal largest
        largest = max(largest, sum(map(len, pieces)))
        return best_fit_decreasing(pieces, seq_len)

    monkeypatch.setattr(packing, "best_fit_decreasing", watched)
    packs = list(BestFit(100, 2).pack(cut_long(_documents([60] * 1000), 100)))
    assert len(packs) >= 998 and largest < 2000 + 100


def test_a_cut_document_goes_on_as_its_own_document() -> None:
    packs = list(pack_concat(_documents([3, 9]), 5))
    assert [p.cu_seqlens.tolist() for p in packs] == [[0, 3, 5], [0, 5], [0, 2]]
    assert [[(d["id"], d["start"], d["end"]) for d in p.documents] for p in packs] == [
        [("d0", 0, 3), ("d1", 0, 2)],
        [("d1", 2, 7)],
        [("d1", 7, 9)],
    ]


def test_documents_are_not_read_ahead_of_need() -> None:
    taken = []

    def documents():
        for document in _documents([4, 4, 4]):
            taken.append(document.id)
            yield document

    next(pack_concat(documents(), 4))
    assert taken == ["d0"]
