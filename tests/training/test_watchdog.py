"""Hung ranks: what is left of them, and that nobody waits for them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.training.watchdog import EXIT_HUNG
from tests import stuck_run
from tests.distributed.processes import TRAIN, environment, run_ranks, started
from tests.killing import new_mark
from tests.training.launched_runs import arguments, rank_process, wait_for_step

BIN = Path(sys.executable).parent
SLOW = [pytest.mark.slow, pytest.mark.timeout(300)]
BEATS = """
import sys, time
from pathlib import Path
from pipeline.training.watchdog import StepWatchdog
watchdog = StepWatchdog(Path(sys.argv[1]), 3, timeout_s=0.5)
for step in range(1, 5):
    watchdog.beat(step)
    time.sleep(0.3)
print("beaten", flush=True)
{ending}
watchdog.close()
print("closed", flush=True)
"""


def run_beats(folder: Path, ending: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BEATS.format(ending=ending), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment())


def test_a_step_that_is_not_done_in_time_ends_the_process_with_its_stacks(tmp_path):
    hung = run_beats(tmp_path, "def stuck_here():\n    time.sleep(60)\nstuck_here()")
    assert hung.returncode == EXIT_HUNG and "closed" not in hung.stdout
    assert hung.stderr.count("error (rank 3): step 4 is not done after --train.step_timeout_s 0.5") == 1
    assert "in stuck_here" in (tmp_path / "rank-3.txt").read_text()


def test_steps_in_time_leave_nothing(tmp_path):
    done = run_beats(tmp_path, "")
    assert done.returncode == 0 and "closed" in done.stdout and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_stacks_that_somebody_removed_fails_no_finished_run(tmp_path):
    done = run_beats(tmp_path / "stacks", "import shutil; shutil.rmtree(sys.argv[1])")
    assert done.returncode == 0 and "closed" in done.stdout, done.stderr


def test_a_process_that_was_stopped_as_a_whole_goes_on(tmp_path):
    """As a scheduler does that suspends a job."""
    command = [sys.executable, "-c", BEATS.format(ending="time.sleep(0.2)"), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout.readline() == "beaten\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[0] == "closed\n" and process.returncode == 0


class TestRuns:
    pytestmark = SLOW
    TIMEOUT = ("--train.step_timeout_s", "4")

    def test_a_rank_stuck_in_python_ends_all_and_every_rank_says_where_it_was(self, inputs, tmp_path):
        output = tmp_path / "run"
        train = arguments(inputs, output, *self.TIMEOUT)
        call = "pipeline.training.trainer:run_step"
        finished = run_ranks(Path(stuck_run.__file__), [TRAIN, call, 5, 1, *train], tmp_path)
        assert [f.returncode for f in finished] == [EXIT_HUNG] * 2, finished[0].output[-2000:]
        for rank, other in enumerate(finished):
            assert f"error (rank {rank}): step" in other.output and "some rank hangs" in other.output
        stacks = [(output / "stacks" / f"rank-{rank}.txt").read_text() for rank in range(2)]
        assert "in spin_forever" in stacks[1] and "in spin_forever" not in stacks[0]
        assert "in run_step" in stacks[0]

    def test_a_stopped_rank_ends_all_and_is_the_one_without_stacks(self, inputs, tmp_path):
        output, (mark, env) = tmp_path / "run", new_mark()
        command = [BIN / "mpiexec", "-n", 2, sys.executable, TRAIN, *arguments(inputs, output, *self.TIMEOUT)]
        with started(command, tmp_path / "log", env) as launcher:
            wait_for_step(output, 5, time.monotonic() + 90)
            os.kill(rank_process(mark, 1), signal.SIGSTOP)
            assert launcher.wait(40) != 0
        assert "error (rank 0): step" in (tmp_path / "log").read_text(errors="replace")
        # Where it waits for the other depends on the instant.
        assert "distributed_c10d.py" in (output / "stacks" / "rank-0.txt").read_text()
        assert (output / "stacks" / "rank-1.txt").read_text() == ""
