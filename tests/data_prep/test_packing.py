"""Concatenation: every token exactly once, in order, with the right bounds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing import TokenisedDocument, pack_concat


def _documents(lengths: list[int]) -> list[TokenisedDocument]:
    ids = np.arange(sum(lengths), dtype=np.uint32)  # every token is unlike every other
    bounds = np.cumsum([0, *lengths])
    return [
        TokenisedDocument(f"d{i}", {"bytes": n}, ids[start : start + n])
        for i, (start, n) in enumerate(zip(bounds, lengths, strict=False))
    ]


@settings(max_examples=300, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=30), seq_len=st.integers(2, 50))
def test_every_token_once_in_order_with_its_document(lengths: list[int], seq_len: int) -> None:
    documents = _documents(lengths)
    packs = list(pack_concat(documents, seq_len))

    stream = np.concatenate([p.input_ids for p in packs]) if packs else np.zeros(0, np.uint32)
    np.testing.assert_array_equal(stream, np.arange(sum(lengths)))
    assert all(len(p.input_ids) == seq_len for p in packs[:-1])
    assert all(1 <= len(p.input_ids) <= seq_len for p in packs[-1:])

    by_id = {d.id: d for d in documents}
    reached = dict.fromkeys(by_id, 0)
    for pack in packs:
        assert pack.input_ids.dtype == np.uint32 and pack.cu_seqlens.dtype == np.int32
        assert pack.cu_seqlens[0] == 0 and pack.cu_seqlens[-1] == len(pack.input_ids)
        assert len(pack.documents) == len(pack.cu_seqlens) - 1
        for piece, start, end in zip(pack.documents, pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
            source = by_id[piece["id"]]
            assert piece["start"] == reached[source.id] and piece["tokens"] == len(source.input_ids)
            np.testing.assert_array_equal(pack.input_ids[start:end], source.input_ids[piece["start"] : piece["end"]])
            reached[source.id] = piece["end"]
    assert reached == {d.id: len(d.input_ids) for d in documents}


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
