"""The numbers of suite `heldout`, worked out by hand from small records, and what the report says of them."""

from itertools import pairwise

import pytest

from pipeline.evaluation.heldout.sections import format_summary, headline, make_sections
from pipeline.evaluation.heldout.summary import bin_positions, sum_documents, summarise
from tests.evaluation.synthetic import WINDOW, make_record


def record(document: str, positions: list[int], kl_window: list[float], kl_ahn: list[float]):
    count = len(positions)
    return {
        "document": document,
        "length": 131,
        "positions": positions,
        "kl": {"window": kl_window, "ahn": kl_ahn},
        "nll": {"full": [0.5] * count, "window": [1.0] * count, "ahn": [0.75] * count},
    }


def test_totals_are_per_token_not_per_document() -> None:
    records = [record("a", [128], [1.0], [0.5]), record("b", [128, 129, 130], [0.2] * 3, [0.1] * 3)]
    summary = summarise(records, WINDOW)
    assert summary["kl"] == pytest.approx({"window": 1.6 / 4, "ahn": 0.8 / 4})
    found = summary["recovered"]["ahn"]
    assert found["share"] == pytest.approx(0.5) and found["difference"] == pytest.approx(0.2)
    assert found["share_ci95"] == pytest.approx([0.5, 0.5])
    assert found["difference_ci95"] == pytest.approx([0.1, 0.5])
    assert summary["ppl"] == pytest.approx({"full": 1.6487213, "window": 2.7182818, "ahn": 2.1170000})
    assert summary["num_documents"] == 2 and summary["num_tokens"] == 4
    assert summary["window"] == {"num_sink_tokens": 32, "window_size": 96, "lossless_budget": 128}


def test_documents_of_which_the_window_loses_nothing_leave_shares_undefined() -> None:
    same, other = record("a", [128], [0.0], [0.0]), record("b", [128], [0.5], [0.25])
    summary = summarise([same, other], WINDOW)
    found = summary["recovered"]["ahn"]
    assert found["share"] == pytest.approx(0.5) and found["share_ci95"] is None
    assert found["difference_ci95"] == pytest.approx([0.0, 0.25])
    (section,) = make_sections(summary, [same, other], WINDOW)
    assert [row[-1] for row in section.tables[1].rows] == ["-", "50.0%"]
    alone = summarise([same], WINDOW)
    assert alone["recovered"] == {} and make_sections(alone, [same], WINDOW)


def test_pieces_of_one_document_are_one_unit_of_the_bootstrap() -> None:
    pieces = [make_record("a", 300, seed=i) for i in range(5)]
    summary = summarise(pieces, WINDOW)
    assert summary["num_documents"] == 1
    assert summary["recovered"]["ahn"]["difference_ci95"] is None
    (total,) = sum_documents(pieces)
    assert total.tokens == 5 * (299 - 128)
    assert "not defined for one document" in format_summary(summary)


def test_bins_cover_every_token_once_and_keep_the_mean() -> None:
    records = [make_record("a", 1024, 0), make_record("b", 700, 1)]
    bins = bin_positions(records, WINDOW)
    assert bins[0].start == 0 and bins[-1].end == 1023 - 128
    assert all(one.end == other.start for one, other in pairwise(bins))
    tokens = sum(len(r["positions"]) for r in records)
    assert sum(b.tokens for b in bins) == tokens
    mean = sum(b.kl["window"] * b.tokens for b in bins) / tokens
    assert mean == pytest.approx(summarise(records, WINDOW)["kl"]["window"])


def test_the_headline_says_what_the_interval_allows() -> None:
    def headline_of(share: float, documents: int = 4) -> str:
        return headline(summarise([make_record(str(i), 400, i, share) for i in range(documents)], WINDOW))

    assert "recovers 1" in headline_of(0.85)
    assert "makes the window worse" in headline_of(1.3)
    assert "changes the KL" in headline_of(0.85, documents=1)


def test_variants_that_were_left_out_leave_no_trace() -> None:
    records = [make_record(str(i), 300, i) for i in range(3)]
    for piece in records:
        del piece["kl"]["ahn"], piece["nll"]["ahn"]
    summary = summarise(records, WINDOW)
    assert summary["recovered"] == {}
    (section,) = make_sections(summary, records, WINDOW)
    assert not section.tiles and len(section.tables) == 1 and len(section.pictures) == 2
    assert "AHN" not in format_summary(summary)
