"""The report's files, rendered by the real code from synthetic records."""

import json
import re

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.records import EvaluationFolder, PieceRecord
from pipeline.evaluation.report import write_report
from pipeline.evaluation.training_curve import TrainingCurve, read_training_curve
from tests.evaluation.synthetic import WINDOW, make_record

FACTS = {"Weights": {"model": "runs/demo/adapter", "sha256": "ab" * 32}, "Machine": {"processes": "2"}}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    records = [make_record(f"lib/<b>{i}</b>.py", str(i), 1024, i) for i in range(4)]
    curve = TrainingCurve(list(range(1, 61)), [0.5 / i for i in range(1, 61)], "training loss")
    return folder, records, write_report(folder, records, WINDOW, FACTS, curve)


def test_page_is_self_contained_and_escaped(report) -> None:
    page = (report[0] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page and "<b>1</b>" not in page
    assert 'name="viewport"' in page and "ab" * 32 in page


def test_page_states_the_result(report) -> None:
    page, summary = (report[0] / "report.html").read_text(), report[2]
    assert f"recovers {100 * summary['kl']['recovered']:.1f}&nbsp;%" in page
    for value in (summary["kl"]["window"], summary["kl"]["ahn"]):
        assert f"{value:.4f}" in page


def test_json_and_records_read_back(report) -> None:
    folder, records, summary = report
    assert json.loads((folder / "report.json").read_text()) == summary
    lines = (folder / "documents.jsonl").read_text().splitlines()
    assert [PieceRecord(**json.loads(line)) for line in lines] == records


def test_a_memory_that_harms_is_called_so(tmp_path) -> None:
    records = [make_record(f"{i}.py", str(i), 400, i, ahn_share=1.3) for i in range(4)]
    summary = write_report(tmp_path, records, WINDOW, FACTS, None)
    page = (tmp_path / "report.html").read_text()
    assert summary["kl"]["recovered"] < 0 and "makes the window worse" in page
    assert page.count('src="data:image/png;base64,') == 2


def test_one_document_makes_a_report_without_intervals(tmp_path) -> None:
    write_report(tmp_path, [make_record("a", "0", 400, 0)], WINDOW, FACTS, None)
    assert "not defined for one document" in (tmp_path / "report.html").read_text()


def test_folder_keeps_whole_records_and_refuses_other_settings(tmp_path) -> None:
    folder = EvaluationFolder(tmp_path, {"weights": "w", "window_size": 96})
    record = make_record("a", "0", 200, 0)
    assert not folder.has("0")
    folder.write(record)
    again = EvaluationFolder(tmp_path, {"weights": "w", "window_size": 96})
    assert again.has("0") and again.read("0") == record
    assert sorted(p.name for p in (tmp_path / "records").iterdir()) == ["0.json"]
    with pytest.raises(UserError, match="window_size 96, this one has 128"):
        EvaluationFolder(tmp_path, {"weights": "w", "window_size": 128})


def test_training_curve_comes_from_the_metrics_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_training_curve(tmp_path)
    rows = [{"step": 1, "loss/kl": 0.5}, {"step": 2, "train/skipped_steps": 1}, {"step": 3, "loss/kl": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_training_curve(tmp_path)
    assert (curve.steps, curve.losses) == ([1, 3], [0.5, 0.25])
