"""The same run under every launcher; and the end of all its ranks when one of them is killed."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pipeline.distributed.launch import free_port
from pipeline.metrics.logger import read_metrics
from tests.distributed.processes import DEEPSPEED, TRAIN, run, started
from tests.killing import new_mark
from tests.training.launched_runs import (
    MAX_STEPS,
    arguments,
    assert_one_line,
    assert_same_run,
    rank_process,
    wait_for_step,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": lambda: [DEEPSPEED, "--num_gpus", 2, "--master_port", free_port(), TRAIN],
    "torchrun": lambda: [BIN / "torchrun", "--nproc_per_node", 2, "--master_port", free_port(), "--", TRAIN],
    "mpiexec": lambda: [BIN / "mpiexec", "-n", 2, sys.executable, TRAIN],
}


def kill_a_rank(command: list[object], output: Path, step: int, log: Path) -> tuple[int, float]:
    """SIGKILL to rank 1 once that step is done; the launcher's exit code, and its seconds after the kill."""
    mark, env = new_mark()
    with started(command, log, env) as launcher:
        wait_for_step(output, step, time.monotonic() + 90)
        os.kill(rank_process(mark, 1), signal.SIGKILL)
        killed = time.monotonic()
        return launcher.wait(60), time.monotonic() - killed


def test_a_killed_rank_ends_all_under_every_launcher_and_the_others_go_on_to_the_same_end(
    uninterrupted, inputs, tmp_path
):
    """Killed under deepspeed before the first save, under torchrun, under mpiexec; then to the end."""
    output, log = tmp_path / "run", tmp_path / "log"
    train = arguments(inputs, output)
    for step, (name, command) in zip((4, 15, 22), LAUNCHERS.items(), strict=True):
        code, seconds = kill_a_rank([*command(), *train], output, step, log)
        assert code != 0 and seconds < 15, f"{name}: {log.read_text()[-2000:]}"
        assert len(read_metrics(output / "metrics.jsonl")) < MAX_STEPS, name
    finished = run([*LAUNCHERS["mpiexec"](), *train], log)
    assert finished.returncode == 0, finished.output[-3000:]
    assert_same_run(output, uninterrupted)


def test_ranks_that_cannot_meet_are_told_what_to_set(inputs, tmp_path):
    ranks = {"RANK": "1", "WORLD_SIZE": "2"}
    finished = run([sys.executable, TRAIN, *arguments(inputs, tmp_path / "run")], tmp_path / "log", **ranks)
    assert_one_line(finished, "2 ranks were started", "set MASTER_ADDR", "MASTER_PORT")
    assert finished.seconds < 15


def test_wrong_input_under_mpiexec_is_one_line_within_seconds(inputs, tmp_path):
    command = [*LAUNCHERS["mpiexec"](), *arguments(inputs, tmp_path / "run", "--train.global_batch_size", "3")]
    finished = run(command, tmp_path / "log")
    assert finished.returncode == 2 and finished.seconds < 15 and "Traceback" not in finished.output
    assert "x 2 data-parallel ranks" in finished.output
