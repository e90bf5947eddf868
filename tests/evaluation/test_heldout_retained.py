"""Suite `heldout` of variants with retained tokens: numbers worked out by hand, and a whole suite on a tiny model."""

import json
from dataclasses import replace

import pytest
import torch

from pipeline.config import EvalConfig
from pipeline.data.loader import PackedDataset
from pipeline.evaluation.heldout.foreign import read_with_foreign_memory
from pipeline.evaluation.heldout.sections import format_summary, headline, make_sections
from pipeline.evaluation.heldout.suite import HeldoutSuite
from pipeline.evaluation.heldout.summary import summarise
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.suite import EvaluationInputs
from pipeline.evaluation.variant_style import label, main_variant
from pipeline.model.files import resolve_model
from pipeline.model.loading import load_model
from tests.evaluation.synthetic import WINDOW
from tests.tiny_models import TINY_WINDOW, make_adapter
from tests.training.synthetic import make_data

M, C = 6, 3
RETAINING = replace(TINY_WINDOW, num_retained_tokens=M, decision_interval=C)
BUDGET = TINY_WINDOW.lossless_budget
VARIANTS = (
    "window",
    f"wider{M}",
    f"retained{M}",
    f"retained{M}_ahn",
    f"random{M}",
    f"received{M}",
    f"oracle{M}",
    "ahn",
)


def record(document: str, window: list[float], wider: list[float], retained: list[float], foreign: list[float]):
    kl = {"window": window, "wider64": wider, "retained64": retained, "foreign_retained64": foreign}
    nll = {row: [x + 1 for x in values] for row, values in kl.items()} | {"full": [1.0] * len(window)}
    return {"document": document, "positions": [128 + i for i in range(len(window))], "kl": kl, "nll": nll}


RECORDS = [
    record("a", [1.0] * 4, [0.5, 0.5, 0.8, 0.8], [0.4, 0.4, 0.2, 0.2], [0.9] * 4),
    record("b", [2.0] * 4, [1.0, 1.0, 1.0, 1.0], [1.5, 1.5, 1.0, 1.0], [1.9] * 3),
    record("c", [1.0] * 2, [0.5] * 2, [0.1] * 2, [1.1] * 2),
    record("d", [0.0] * 4, [0.0] * 4, [0.0] * 4, [0.1] * 4),
]


def test_shares_medians_and_pairs_are_those_worked_out_by_hand() -> None:
    summary = summarise(RECORDS, WINDOW, 130)
    found = summary["recovered"]
    assert found.keys() == {"wider64", "retained64"}
    assert found["retained64"]["share"] == pytest.approx(1 - (1.2 + 5.0 + 0.2) / 14)
    assert found["retained64"]["median_share"] == pytest.approx(0.7)  # of 0.7, 0.375 and 0.9; d loses nothing
    (rival, pair), *others = found["retained64"]["against"].items()
    assert (rival, pair["documents"], pair["of"], others) == ("wider64", 2, 4, [])
    assert pair["difference"] == pytest.approx((2.6 + 4.0 + 1.0 - 1.2 - 5.0 - 0.2) / 14)
    assert pair["difference_ci95"][0] < 0 < pair["difference_ci95"][1]
    assert found["wider64"]["median_share"] == pytest.approx(0.5) and "against" not in found["wider64"]
    assert found["retained64"]["share_ci95"] is None  # a draw of d alone loses nothing
    assert summarise(RECORDS[:3], WINDOW)["recovered"]["retained64"]["share_ci95"] is not None
    past = summary["past_largest_budget"]
    assert (past["first_position"], past["num_tokens"], past["num_documents"]) == (130, 6, 3)
    assert past["kl"] == pytest.approx({"window": 6 / 6, "wider64": 3.6 / 6, "retained64": 2.4 / 6})
    assert past["recovered"]["retained64"]["share"] == pytest.approx(1 - 2.4 / 6)
    assert past["recovered"]["retained64"]["against"]["wider64"]["documents"] == 1
    control = summary["controls"]["retained64"]
    assert control["num_tokens"] == 13 and summary["control"] is None
    assert control["kl"]["foreign_retained64"] == pytest.approx((3.6 + 5.7 + 2.2 + 0.4) / 13)
    assert control["difference"] == pytest.approx((3.6 + 5.7 + 2.2 + 0.4 - 1.2 - 4.0 - 0.2) / 13)
    assert "foreign_retained64" not in summary["kl"]
    assert summary == json.loads(json.dumps(summary, allow_nan=False))


def test_nothing_past_the_largest_budget_is_said_and_no_larger_budget_leaves_no_trace() -> None:
    summary = summarise(RECORDS, WINDOW, 132)
    assert summary["past_largest_budget"]["num_tokens"] == 0 and summary["past_largest_budget"]["recovered"] == {}
    (section,) = make_sections(summary, RECORDS, WINDOW)
    assert "No scored token lies past the first 132" in section.note
    same = summarise(RECORDS, WINDOW, 128)
    assert same["past_largest_budget"] is None
    (section,) = make_sections(same, RECORDS, WINDOW)
    assert "No scored token" not in section.note and len(section.tables) == 3


def test_the_report_is_about_what_the_model_chooses() -> None:
    assert main_variant(["window", "ahn", "retained8", "retained64_ahn", "foreign_retained8"]) == "retained64_ahn"
    assert main_variant(["ahn", "retained8", "random8"]) == "retained8" and main_variant(["ahn"]) == "ahn"
    assert main_variant(["window", "random8", "wider8"]) is None
    summary = summarise(RECORDS[:3], WINDOW, 130)
    assert headline(summary).startswith(
        "With the choice of 64 tokens, the window's KL to full attention changes by -54.3% (a window wider by 64: "
    )
    (section,) = make_sections(summary, RECORDS[:3], WINDOW)
    results, past, documents, pairs = section.tables
    assert results.rows[2][3:] == ["54.3%", results.rows[2][4], "70.0%"]
    assert [row[1:3] for row in pairs.rows] == [["window wider by 64", "2 of 3"]]
    assert results.rows[-1][0] == f"{label('foreign_retained64')}, on 9 tokens"
    assert "130 tokens" in past.caption and len(past.rows) == 4 and len(documents.rows) == 3
    assert len(section.tiles) == 3 and "at the positions that they have there" in section.note
    assert label("foreign_retained64") in format_summary(summary)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("scored") / "adapter", folder / "base", RETAINING)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, folder) -> PackedDataset:
    data = tmp_path_factory.mktemp("read") / "data"
    make_data(data, folder / "base", [[70, 20], [64], [17]], seq_len=90)
    return PackedDataset(data)


def test_a_whole_suite_scores_all_variants_on_the_same_positions(folder, adapter, dataset) -> None:
    model = load_model(str(adapter), dtype=torch.float32).eval()
    readers = {v: Reader(model, v, TINY_WINDOW, 32, 4.0, C) for v in ("full", *VARIANTS)}
    config = EvalConfig(model=adapter, output=folder / "eval", pieces_per_document=1)
    files = resolve_model(adapter, None)
    suite = HeldoutSuite(EvaluationInputs(config, files, TINY_WINDOW, VARIANTS, None, [], dataset, C))
    records = {unit.key: suite.measure(unit, readers) for unit in suite.units()}
    assert records == json.loads(json.dumps(records, allow_nan=False))
    long, short = records.values()
    control = f"foreign_retained{M}_ahn"  # beside it the tokens alone have none
    assert set(long["kl"]) == {*VARIANTS, control, "foreign"}
    assert long["positions"] == list(range(BUDGET, 69)) and all(len(long["kl"][v]) == 69 - BUDGET for v in VARIANTS)
    held = RETAINING.lossless_budget - BUDGET
    for variant in VARIANTS[1:-1]:
        start = max(abs(x) for x in long["kl"][variant][:held])
        assert start < 1e-6 < long["kl"][variant][held], f"{variant} keeps {RETAINING.lossless_budget} tokens"
    assert long["kl"]["window"][0] > 1e-6

    own, other = (torch.from_numpy(dataset[0].input_ids[part].astype("int64")) for part in (slice(70), slice(70, 90)))
    positions = torch.arange(BUDGET, 20)
    with torch.no_grad():
        foreign = read_with_foreign_memory(readers[f"retained{M}_ahn"], own, other, torch.arange(BUDGET, 69))
        full = readers["full"].hidden_states(own, positions)
        p, q = (model.lm_head(x).log_softmax(-1) for x in (full, foreign))
    assert long["kl"][control] == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), rel=1e-3, abs=1e-6)

    summary = suite.summarise(records)
    assert summary["recovered"].keys() == set(VARIANTS) - {"window"}
    assert summary["past_largest_budget"]["first_position"] == RETAINING.lossless_budget
    assert summary["controls"].keys() == {f"retained{M}_ahn"} and summary["control"] is not None
    assert summary["bytes"][f"retained{M}"]["tokens"] == RETAINING.lossless_budget and "bytes" not in short
    (section,) = suite.sections(json.loads(json.dumps(summary)), records)
    with_controls = 9 + 2 * 3  # each has other tokens
    assert [len(table.rows) for table in section.tables] == [with_controls, 9, 2, 3 + 4, 9]
    assert "no result of this model" in section.note
