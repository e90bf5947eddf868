import base64
import json
import re

from pipeline.metrics.plots import plot_training, write_training_report

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
    write_training_report(tmp_path / "metrics.jsonl", "train: {a: <b>}", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "0.7500 → 0.2500" in page and "3 (1 skipped" in page and "1.25 GiB" in page and "208 at 139 a second" in page
    assert "&lt;b&gt;" in page and not re.search(r'(src|href)="(?!data:)', page)
    image = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    assert image == (tmp_path / "training.png").read_bytes() and image.startswith(b"\x89PNG")


def test_curve_shows_the_losses_it_is_given():
    assert plot_training([row(1, 1.0), row(2, 0.5)]) != plot_training([row(1, 1.0), row(2, 0.4)])


def test_a_run_stopped_before_its_first_step_can_be_reported(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_training_report(tmp_path / "metrics.jsonl", "", tmp_path / "report.html")
    assert "0 (0 skipped" in (tmp_path / "report.html").read_text()
