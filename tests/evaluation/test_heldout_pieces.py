"""Which pieces of a packed folder are scored."""

import pytest

from pipeline.data.loader import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.evaluation.heldout.pieces import select_pieces
from tests.training.synthetic import make_data, make_model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Documents `doc-0` .. of each sample share their ids over samples, as the pieces of a cut document do."""
    folder = tmp_path_factory.mktemp("data")
    model = make_model(folder / "model")
    return PackedDataset(make_data(folder / "packed", model, [[40, 24, 18], [64], [17, 47]], seq_len=82))


def spans(pieces):
    return [(p.document, p.sample, p.start, p.end) for p in pieces]


def test_pieces_are_whole_documents_within_samples_long_enough_to_be_scored(dataset) -> None:
    pieces = select_pieces(dataset, 16, None, None)
    assert spans(pieces) == [
        ("doc-0", 1, 0, 64),
        ("doc-0", 0, 0, 40),
        ("doc-1", 2, 17, 64),
        ("doc-1", 0, 40, 64),
        ("doc-2", 0, 64, 82),
    ]
    assert all(p.positions.tolist() == list(range(16, p.end - p.start - 1)) for p in pieces)
    assert len({p.key for p in pieces}) == len(pieces)


def test_documents_and_pieces_can_be_limited(dataset) -> None:
    assert spans(select_pieces(dataset, 16, 2, 1)) == [("doc-0", 1, 0, 64), ("doc-1", 2, 17, 64)]


def test_nothing_long_enough_is_an_error_that_says_how_long(dataset) -> None:
    assert len(select_pieces(dataset, 62, None, None)) == 1
    with pytest.raises(DataError, match="needs 65 tokens, the longest has 64"):
        select_pieces(dataset, 63, None, None)
