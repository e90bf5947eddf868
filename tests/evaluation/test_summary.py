"""report.json's numbers, worked out by hand from small records."""

from dataclasses import replace
from itertools import pairwise

import pytest

from pipeline.evaluation.summary import bin_positions, sum_documents, summarise
from tests.evaluation.synthetic import WINDOW, make_record


def record(document: str, positions: list[int], kl_window: list[float], kl_ahn: list[float]):
    blank = make_record(document, f"{document}-{positions[0]}", 131, seed=0)
    nll = [0.5] * len(positions)
    return replace(
        blank,
        positions=positions,
        kl_window=kl_window,
        kl_ahn=kl_ahn,
        nll_full=nll,
        nll_window=[1.0] * len(positions),
        nll_ahn=[0.75] * len(positions),
    )


def test_totals_are_per_token_not_per_document() -> None:
    records = [record("a", [128], [1.0], [0.5]), record("b", [128, 129, 130], [0.2] * 3, [0.1] * 3)]
    summary = summarise(records, WINDOW)
    assert summary["kl"]["window"] == pytest.approx(1.6 / 4)
    assert summary["kl"]["ahn"] == pytest.approx(0.8 / 4)
    assert summary["kl"]["recovered"] == pytest.approx(0.5)
    assert summary["kl"]["recovered_ci95"] == pytest.approx([0.5, 0.5])
    assert summary["kl"]["difference_ci95"] == pytest.approx([0.1, 0.5])
    assert summary["ppl"] == pytest.approx({"full": 1.6487213, "window": 2.7182818, "ahn": 2.1170000})
    assert summary["num_documents"] == 2 and summary["num_tokens"] == 4


def test_throughput_counts_each_token_once_over_all_processes() -> None:
    # Two pieces of 131 tokens, 2 s each, on two processes that work side by side.
    records = [record("a", [128], [1.0], [0.5]), record("b", [128], [1.0], [0.5])]
    assert summarise(records, WINDOW)["tokens_per_s"] == pytest.approx(131.0)


def test_report_has_the_documented_keys() -> None:
    summary = summarise([make_record("a", "0", 300, 0), make_record("b", "1", 300, 1)], WINDOW)
    assert set(summary["kl"]) == {"window", "ahn", "recovered", "recovered_ci95", "difference_ci95"}
    assert set(summary["ppl"]) == {"full", "window", "ahn"}
    rest = {"tokens_per_s", "peak_rss_gib", "num_documents", "num_tokens", "window"}
    assert set(summary) == {"kl", "ppl"} | rest
    assert summary["window"] == {"num_sink_tokens": 32, "window_size": 96, "lossless_budget": 128}


def test_pieces_of_one_document_are_one_unit_of_the_bootstrap() -> None:
    pieces = [make_record("a", str(i), 300, seed=i) for i in range(5)]
    summary = summarise(pieces, WINDOW)
    assert summary["num_documents"] == 1
    assert summary["kl"]["difference_ci95"] is None
    (total,) = sum_documents(pieces)
    assert total.tokens == 5 * (299 - 128)


def test_bins_cover_every_token_once_and_keep_the_mean() -> None:
    records = [make_record("a", "0", 1024, 0), make_record("b", "1", 700, 1)]
    bins = bin_positions(records, WINDOW)
    assert bins[0].start == 0 and bins[-1].end == 1023 - 128
    assert all(one.end == other.start for one, other in pairwise(bins))
    tokens = sum(len(r.positions) for r in records)
    assert sum(b.tokens for b in bins) == tokens
    mean = sum(b.kl_window * b.tokens for b in bins) / tokens
    assert mean == pytest.approx(summarise(records, WINDOW)["kl"]["window"])
