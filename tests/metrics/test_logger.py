import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.metrics.logger import MetricsLogger, read_metrics


def write_steps(path, first, last, value=0.0):
    with MetricsLogger(path, first - 1) as metrics:
        for step in range(first, last + 1):
            metrics.log({"step": step, "loss/kl": value + step})


def test_each_line_is_in_the_file_when_log_returns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLogger(path, 0) as metrics:
        metrics.log({"step": 1, "loss/kl": 0.1})
        assert json.loads(path.read_text()) == {"step": 1, "loss/kl": 0.1}


@pytest.mark.parametrize("torn", ["", '{"step": 6, "loss', '{"step": 6}'])
def test_a_resume_cuts_back_to_its_step_and_drops_a_torn_line(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 5)
    with path.open("a") as file:
        file.write(torn)
    write_steps(path, 4, 6, value=100.0)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss/kl"] for row in rows] == [1.0, 2.0, 3.0, 104.0, 105.0, 106.0]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp")] == []


def test_tensorboard_shows_the_same_values(tmp_path):
    write_steps(tmp_path / "metrics.jsonl", 1, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/kl")] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_wandb_gets_the_same_steps_and_one_run_over_a_resume(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for last, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with MetricsLogger(tmp_path / "metrics.jsonl", last, "memory") as metrics:
            for step in steps:
                metrics.log({"step": step, "loss/kl": 1.0 / step})
    runs = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and len({name.rsplit("-", 1)[1] for name in runs}) == 1
