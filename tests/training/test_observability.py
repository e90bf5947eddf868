"""What a real run says about itself: where its time goes, how even its ranks are, what it sends."""

import importlib.util
import json
import re

import pytest

from pipeline.metrics.logger import read_metrics
from pipeline.metrics.plots import PHASES
from tests.distributed.processes import TRAIN, run_ranks
from tests.training.launched_runs import arguments, assert_one_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_run_tells_its_phases_its_ranks_what_it_sent_and_traces_steps(inputs, tmp_path):
    output, steps = tmp_path / "run", ("--train.max_steps", "7")
    flags = (*steps, "--sequence_parallel_size", "2", "--train.peak_tflops", "0.001", "--profile", "2-3")
    finished = run_ranks(TRAIN, arguments(inputs, output, *flags), tmp_path, anew=True)
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-3000:]
    rows = read_metrics(output / "metrics.jsonl")
    assert len(rows) == 7
    for row in rows:
        assert 0 < sum(row[f"perf/{name}_s"] for name in PHASES) <= row["perf/step_s"]
        assert row["perf/tokens_per_s"] == pytest.approx(row["data/tokens"] / row["perf/step_s"])
    trained = [row for row in rows if "loss/kl" in row]
    assert len(trained) >= 4
    for row in trained:
        assert sum(row[f"perf/{name}_s"] for name in PHASES) > 0.5 * row["perf/step_s"]
        assert all(row[f"perf/{name}_s"] > 0 for name in (*PHASES, "comm"))
        for name in ("step", "data"):
            assert 0 < row[f"perf/{name}_s_min"] <= row[f"perf/{name}_s_mean"] <= row[f"perf/{name}_s_max"]
        assert row["comm/bytes_sent"] > 10_000
        assert 0 < row["perf/mfu"] < 1
    page = (output / "report.html").read_text()
    assert "Where the time goes" in page and "model FLOPs utilisation" in page and "slowest rank over the mean" in page
    for rank in range(2):
        events = json.loads((output / "profile" / f"rank-{rank}.json").read_text())["traceEvents"]
        names = [event.get("name", "") for event in events]
        assert any("aten::" in name for name in names) and any(re.search("all_?to_?all", name) for name in names)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed_is_one_line_within_seconds(inputs, tmp_path):
    train = arguments(inputs, tmp_path / "run", "--train.wandb", "memory")
    for finished in run_ranks(TRAIN, train, tmp_path, anew=True):
        assert_one_line(finished, "--train.wandb memory", "wandb is not installed", "pip install wandb")
        assert finished.seconds < 15
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", ["0x", "8-5", "-3"])
def test_steps_that_cannot_be_traced_are_refused(inputs, tmp_path, steps):
    train = arguments(inputs, tmp_path / "run", f"--profile={steps}")
    for finished in run_ranks(TRAIN, train, tmp_path, num_ranks=1, anew=True):
        assert_one_line(finished, f"--profile: needs a step or a range of steps, as 5 or 5-8, found {steps}")
