"""The numbers of suite `heldout`, worked out by hand from small records, and what the report says of them."""

import math
import re
from itertools import pairwise

import pytest

from pipeline.evaluation.heldout.sections import format_summary, headline, make_sections
from pipeline.evaluation.heldout.summary import bin_positions, sum_documents, summarise
from pipeline.evaluation.variant_style import label
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
    records = [record(name, [128], [1.0], [0.5]) for name in "ab"]
    records.append(record("c", [128, 129, 130], [0.2] * 3, [0.1] * 3))
    summary = summarise(records, WINDOW)
    assert summary["kl"] == pytest.approx({"window": 2.6 / 5, "ahn": 1.3 / 5})
    found = summary["recovered"]["ahn"]
    assert found["share"] == pytest.approx(0.5) and found["difference"] == pytest.approx(0.26)
    assert found["share_ci95"] is None  # all have the same
    assert found["difference_ci95"][0] < 0.26 < found["difference_ci95"][1]
    assert summary["ppl"] == pytest.approx({"full": 1.6487213, "window": 2.7182818, "ahn": 2.1170000})
    assert summary["num_documents"] == 3 and summary["num_tokens"] == 5
    assert summary["window"] == {"num_sink_tokens": 32, "window_size": 96, "lossless_budget": 128}


def test_documents_of_which_the_window_loses_nothing_leave_shares_undefined() -> None:
    same, other, third = (record(n, [128], [2 * x], [x]) for n, x in (("a", 0.0), ("b", 0.25), ("c", 0.5)))
    records = [same, other, third]
    summary = summarise(records, WINDOW)
    found = summary["recovered"]["ahn"]
    assert found["share"] == pytest.approx(0.5) and found["share_ci95"] is None
    assert found["difference_ci95"] is not None
    (section,) = make_sections(summary, records, WINDOW)
    assert [row[-1] for row in section.tables[1].rows] == ["-", "50.0%", "50.0%"]
    alone = summarise([same], WINDOW)
    assert alone["recovered"] == {} and make_sections(alone, [same], WINDOW)


def test_pieces_of_one_document_are_one_unit_of_the_bootstrap() -> None:
    pieces = [make_record("a", 300, seed=i) for i in range(5)]
    summary = summarise(pieces, WINDOW)
    assert summary["num_documents"] == 1
    assert summary["recovered"]["ahn"]["difference_ci95"] is None
    (total,) = sum_documents(pieces)
    assert total.tokens == 5 * (299 - 128)
    assert "not defined" in format_summary(summary)


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

    assert re.search(r"changes by -1\d\.\d% \(no control\)$", headline_of(0.85))
    assert "makes the window worse" in headline_of(1.3)
    assert "No difference shown" in headline_of(1.0)
    assert re.search(r"changes by -1\d\.\d%", headline_of(0.85, documents=1))


def with_control(foreign_share: float, reach: int | None = None, documents: int = 4):
    """Records of which the AHN takes 15 % of the window's KL away, and with another document's memory the rest."""
    records = [make_record(str(i), 400, i) for i in range(documents)]
    for of_document in records:
        kl, nll = of_document["kl"], of_document["nll"]
        kl["foreign"] = [foreign_share * x for x in kl["window"][:reach]]
        nll["foreign"] = [x + extra for x, extra in zip(nll["full"], kl["foreign"], strict=False)]
    return records


def test_the_control_stands_beside_what_it_controls() -> None:
    records = with_control(0.9)
    summary = summarise(records, WINDOW)
    control = summary["control"]
    assert control["num_tokens"] == summary["num_tokens"] and control["kl"]["ahn"] == summary["kl"]["ahn"]
    assert control["recovered"]["ahn"] == summary["recovered"]["ahn"]
    assert control["recovered"]["foreign"]["share"] == pytest.approx(0.1)
    assert control["difference"] == pytest.approx(0.9 * summary["kl"]["window"] - summary["kl"]["ahn"])
    low, high = control["difference_ci95"]
    assert 0 < low < control["difference"] < high
    assert "foreign" not in summary["kl"] and "foreign" not in summary["ppl"]
    assert headline(summary).endswith("with another document's memory by -10.0%")
    text = format_summary(summary)
    assert "AHN, another document's memory  " in text and "10.0% less with another document's memory in its" in text
    assert re.search(r"\+0\.\d{4} nats per token that another document's memory adds .* \+0\.\d+ to \+0", text)
    (section,) = make_sections(summary, records, WINDOW)
    assert "recover" not in " ".join([section.title, section.note, *(tile.caption for tile in section.tiles)])
    assert [tile.value for tile in section.tiles][1] == "10.0%" and "Other documents are too short" not in section.note
    gains_alike = summarise(with_control(0.85), WINDOW)["control"]["difference_ci95"]
    assert gains_alike[0] < 0 < gains_alike[1]


def test_a_control_of_fewer_tokens_is_compared_over_those() -> None:
    records = with_control(0.9, reach=100)
    for of_document in records:  # where the control does not reach, the AHN is far better
        of_document["kl"]["ahn"][100:] = [0.1 * x for x in of_document["kl"]["window"][100:]]
    without = [{**r, "kl": {row: values for row, values in r["kl"].items() if row != "foreign"}} for r in records]
    summary, bins = summarise(records, WINDOW), bin_positions(records, WINDOW)
    cut = [{**r, "positions": r["positions"][:100]} for r in records]
    for of_document in cut:
        for name in ("kl", "nll"):
            of_document[name] = {row: values[:100] for row, values in of_document[name].items()}
    assert summary["control"] == summarise(cut, WINDOW)["control"] and summary["control"]["num_tokens"] == 400
    assert summary["kl"] == summarise(without, WINDOW)["kl"]
    has_control = [not math.isnan(b.kl["foreign"]) for b in bins]
    assert has_control == [b.end <= 100 for b in bins] and any(has_control)
    (section,) = make_sections(summary, records, WINDOW)
    told = f"has 400 of the {summary['num_tokens']:,} tokens"
    assert told in section.note and told in format_summary(summary)
    names, shares = zip(*((row[0], row[3]) for row in section.tables[0].rows[-3:]), strict=True)
    assert names == tuple(f"{label(row)}, on 400 tokens" for row in ("window", "ahn", "foreign"))
    own = f"{summary['control']['recovered']['ahn']['share']:.1%}"
    assert shares == ("", own, "10.0%") and own != section.tiles[0].value
    assert f"on 400 tokens, on which the own memory has {own} less; 95 %" in section.tiles[1].caption
    assert section.title.endswith(f"; where the control reaches by -{own}, with another document's memory by -10.0%")


def test_a_document_that_the_control_does_not_reach_takes_nothing_from_the_others() -> None:
    records = with_control(0.9)
    unreached = make_record("far", 2000, 9)
    unreached["kl"]["foreign"], unreached["nll"]["foreign"] = [], []
    control = summarise(records, WINDOW)["control"]
    assert summarise([unreached, *records], WINDOW)["control"] == control
    assert make_sections(summarise([unreached, *records], WINDOW), [unreached, *records], WINDOW)
    alone = summarise([unreached], WINDOW)
    (section,) = make_sections(alone, [unreached], WINDOW)
    assert alone["control"] is None and "no control" in section.title and "No control: --data has no" in section.note


def test_worse_is_said_as_more() -> None:
    records = with_control(1.25)
    for of_document in records:
        of_document["kl"]["ahn"] = [1.5 * x for x in of_document["kl"]["window"]]
    text = format_summary(summarise(records, WINDOW))
    assert "\n50.0% more KL to full attention with the AHN" in text and "\n25.0% more with another" in text
    assert re.search(r"\n-0\.\d{4} nats per token that another document's memory adds", text)


def test_variants_that_were_left_out_leave_no_trace() -> None:
    records = [make_record(str(i), 300, i) for i in range(3)]
    for piece in records:
        del piece["kl"]["ahn"], piece["nll"]["ahn"]
    summary = summarise(records, WINDOW)
    assert summary["recovered"] == {}
    (section,) = make_sections(summary, records, WINDOW)
    assert not section.tiles and len(section.tables) == 1 and len(section.pictures) == 2
    assert "AHN" not in format_summary(summary)
