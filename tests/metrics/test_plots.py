import base64
import json
import re

import pytest

from pipeline.metrics.plots import PHASES, plot_phases, plot_training, stack_phases, write_training_report

SKIPPED = {"step": 2, "data/positions": 0, "data/tokens": 8, "perf/step_s": 0.5}


def row(step, loss):
    return {
        "step": step,
        "loss/kl": loss,
        "optim/lr": 1e-3,
        "optim/grad_norm": 0.5,
        "mem/peak_rss_gib": 1.25,
        "data/positions": 10,
        "data/tokens": 100,
        "perf/step_s": 0.5,
    }


def test_report_is_one_file_with_the_curve_and_the_figures(tmp_path):
    rows = [row(1, 0.75), SKIPPED, row(3, 0.25)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_training_report(tmp_path / "metrics.jsonl", tmp_path / "scorers.json", "train: {a: <b>}", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "0.7500 → 0.2500" in page and "3 (1 skipped" in page and "1.25 GiB" in page and "208 at 139 a second" in page
    assert "&lt;b&gt;" in page and not re.search(r'(src|href)="(?!data:)', page)
    image = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert len(re.findall(r"base64,", page)) == 2
    assert image == (tmp_path / "training.png").read_bytes() and image.startswith(b"\x89PNG")


def test_curve_shows_the_losses_it_is_given():
    assert plot_training([row(1, 1.0), row(2, 0.5)]) != plot_training([row(1, 1.0), row(2, 0.4)])


def test_a_run_stopped_before_its_first_step_can_be_reported(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_training_report(tmp_path / "metrics.jsonl", tmp_path / "scorers.json", "", tmp_path / "report.html")
    assert "0 (0 skipped" in (tmp_path / "report.html").read_text()


def timed_row(step):
    phases = {"data": 0.05, "teacher": 0.1, "student": 0.1, "backward": 0.15, "optimizer": 0.05, "comm": 0.02}
    ranks = {"step_s_min": 0.3, "step_s_mean": 0.4, "step_s_max": 0.5, "data_s_max": 0.05, "mfu": 0.25}
    seconds = {f"perf/{name}_s": value for name, value in phases.items()}
    return row(step, 1 / step) | seconds | {f"perf/{name}": value for name, value in ranks.items()}


def test_phases_add_up_to_the_step_and_are_shown():
    rows = [timed_row(1), SKIPPED, timed_row(3)]
    seconds = stack_phases(rows)
    assert list(seconds) == [*PHASES, "other"]
    assert [sum(values) for values in zip(*seconds.values(), strict=True)] == pytest.approx([0.5, 0.5, 0.5])
    assert seconds["other"] == pytest.approx([0.05, 0.5, 0.05])
    assert plot_phases(rows) != plot_phases([timed_row(1), SKIPPED, timed_row(3) | {"perf/backward_s": 0.01}])


def test_report_says_how_well_the_devices_were_used(tmp_path):
    rows = [timed_row(1), SKIPPED, timed_row(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_training_report(tmp_path / "metrics.jsonl", tmp_path / "scorers.json", "", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<b>16.7%</b>" in page and "<b>+25.0%</b>" in page and "<b>6.7% of the time</b>" in page
