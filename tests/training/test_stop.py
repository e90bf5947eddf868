"""A training that is asked to stop: it answers at once, ends within a long step, and goes on as if it had not."""

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.metrics.logger import read_metrics
from pipeline.training import step_progress
from pipeline.training.step_progress import StepProgress
from pipeline.training.stop_flag import StopFlag
from tests.distributed.processes import TRAIN, run_ranks
from tests.training.launched_runs import arguments, assert_same_run

SIGNALLED = Path(__file__).parents[1] / "signalled_run.py"
ANSWER = r"^SIGTERM: stops after micro-batch 1 of 2 of step (\d+), in about \d+ s, saves the state before that step"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_within_a_step_all_ranks_keep_the_state_before_and_go_on_to_the_last_bit(inputs, uninterrupted, tmp_path):
    output = tmp_path / "run"
    first_micro_batch_of_the_sixth_computed_step = ["pipeline.training.step:position_weights", 11, "SIGTERM", 0]
    signalled = [TRAIN, *first_micro_batch_of_the_sixth_computed_step, *arguments(inputs, output)]
    stopped = run_ranks(SIGNALLED, signalled, tmp_path)
    assert [finished.returncode for finished in stopped] == [85, 85], stopped[0].output[-2000:]
    done = len(read_metrics(output / "metrics.jsonl"))
    checkpoint = output / f"checkpoints/step-{done:07d}"
    assert json.loads((checkpoint / "state.json").read_text())["step"] == done >= 5
    assert re.findall(ANSWER, stopped[0].output, re.MULTILINE) == [str(done + 1)]
    assert f"stopped: {checkpoint} has the state after step {done} of 30" in stopped[0].output
    assert "stop" not in stopped[1].output
    assert not list(output.glob(".*"))
    for finished in run_ranks(TRAIN, arguments(inputs, output), tmp_path):
        assert finished.returncode == 0, finished.output[-2000:]
    assert_same_run(output, uninterrupted)
    starts = json.loads((output / "run.json").read_text())["starts"]
    assert len(starts) == 2 and all(start["commit"] and start["versions"]["deepspeed"] for start in starts)
    assert "--config" in starts[1]["command"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_progress(monkeypatch, num_micro_batches: int, stop: StopFlag) -> tuple[StepProgress, list[bool]]:
    asked = []

    def gather(values, ranks):
        asked.append(bool(values[0]))
        return np.array([values])

    monkeypatch.setattr(step_progress, "gather_rows", gather)
    return StepProgress(9, 0, num_micro_batches, stop, SimpleNamespace(is_main=True)), asked


def test_ranks_ask_each_other_after_seconds_of_micro_batches_and_not_within_short_steps(monkeypatch):
    stop = StopFlag()
    progress, asked = make_progress(monkeypatch, 16, stop)

    def count_questions(seconds: float) -> int:
        asked.clear()
        progress.begin()
        for done in range(1, 16):
            assert not progress.between(done)
        count = len(asked)
        progress.end(0.5, [seconds / 2, seconds])
        return count

    assert count_questions(1.0) == 15  # nothing to judge by
    assert count_questions(320.0) == 0  # after a step of a second
    assert count_questions(32.0) == 15  # 20 s a micro-batch
    assert count_questions(32.0) == 7  # 2 s a micro-batch
    progress.end(None, ())  # a skipped step
    assert count_questions(32.0) == 7


def test_the_answer_says_what_a_stop_does_and_when(monkeypatch):
    stop = StopFlag()
    progress, _ = make_progress(monkeypatch, 16, stop)
    assert stop.describe() == "stops before step 1, saves its state and exits with 85"
    progress.begin()
    assert stop.describe().startswith("stops after micro-batch 1 of 16 of step 1, saves the state before that step")
    progress.end(0.5, [32.0])
    assert stop.describe() == "stops before step 2, saves its state and exits with 85"
    progress.begin()
    assert stop.describe().startswith("stops after micro-batch 2 of 16 of step 2, in about 4 s, saves")
    progress.between(3)
    assert stop.describe().startswith("stops after micro-batch 4 of 16 of step 2, in about 2 s, saves")
    progress.between(15)
    assert stop.describe() == "stops after step 2, in about 2 s, saves its state and exits with 85"


def test_in_the_last_step_the_answer_says_that_the_training_will_be_whole(monkeypatch):
    stop = StopFlag()
    progress, _ = make_progress(monkeypatch, 4, stop)
    for _ in range(8):
        progress.end(0.5, [8.0])
    assert stop.describe() == "stops before step 9, saves its state and exits with 85"
    progress.begin()
    progress.between(1)
    assert stop.describe().startswith("stops after micro-batch 2 of 4 of step 9,")
    progress.between(3)
    assert stop.describe() == "finishes step 9, the last, in about 2 s, saves its state and exits with 0"
    progress.end(0.5, [8.0])
    assert stop.describe() == "all steps are done: saves its state and exits with 0"


def test_a_terminal_and_nothing_else_is_told_the_micro_batch(monkeypatch):
    for sink in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", sink)
        progress, _ = make_progress(monkeypatch, 16, StopFlag())
        with progress:
            progress.begin()
            progress.between(5)
            progress.end(0.25, [1.0])
        assert ("micro-batch 5/16" in sink.getvalue()) == sink.isatty()
