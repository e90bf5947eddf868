"""Saves of real runs: in the background, onto a full disk, torn afterwards."""

import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from pipeline.metrics.logger import read_metrics
from pipeline.training.checkpoint import find_checkpoint
from pipeline.training.run_folder import RunFolder
from tests.distributed.processes import TRAIN, Finished, run_ranks
from tests.training.launched_runs import arguments, assert_one_line, assert_same_run, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def saved_step(output: Path) -> int:
    return json.loads((find_checkpoint(RunFolder(output))[0] / "state.json").read_text())["step"]


def test_a_torn_checkpoint_is_skipped_in_one_line_and_the_run_ends_the_same(uninterrupted, inputs, tmp_path):
    """Saves in the background, a stop, the newest checkpoint cut short, and on from the one before."""
    output = tmp_path / "run"
    background = arguments(inputs, output, "--train.async_save", "true", "--train.save_every", "1")

    def stop(first_pid: int) -> None:
        wait_for_step(output, 6, time.monotonic() + 60)
        os.kill(first_pid, signal.SIGTERM)

    stopped = run_ranks(TRAIN, background, tmp_path, meanwhile=stop)
    assert [f.returncode for f in stopped] == [85, 85], stopped[0].output[-2000:]
    step = saved_step(output)
    assert step == len(read_metrics(output / "metrics.jsonl"))
    tensors = output / "checkpoints" / f"step-{step:07d}" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    finished = run_ranks(TRAIN, background, tmp_path)
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-2000:]
    lines = [line for f in finished for line in f.output.splitlines() if line.startswith("warning: checkpoint")]
    assert len(lines) == 1
    assert f"step-{step:07d} has a damaged tensors.safetensors" in lines[0]
    assert lines[0].endswith(f"going on from step-{step - 1:07d}")
    assert_same_run(output, uninterrupted)


def assert_ends_on_a_full_disk(inputs: Path, output: Path, folder: Path, *flags: str) -> list[Finished]:
    """From the first checkpoint on, the first rank may write no file as large as that."""

    def fill(first_pid: int) -> None:
        wait_for_step(output, 9, time.monotonic() + 60)
        size = (find_checkpoint(RunFolder(output))[0] / "tensors.safetensors").stat().st_size
        resource.prlimit(first_pid, resource.RLIMIT_FSIZE, (size - 1, size - 1))

    finished = run_ranks(TRAIN, arguments(inputs, output, *flags), folder, meanwhile=fill)
    for rank in finished:
        assert_one_line(rank, "cannot write the checkpoint of step", "File too large", "make room in --output")
    return finished


def test_a_full_disk_ends_all_ranks_in_one_line_and_leaves_the_checkpoint_before(uninterrupted, inputs, tmp_path):
    output = tmp_path / "run"
    for flags in ([], ["--train.async_save", "true"]):
        assert_ends_on_a_full_disk(inputs, output, tmp_path, "--train.save_every", "7", *flags)
        assert saved_step(output) % 7 == 0
    finished = run_ranks(TRAIN, arguments(inputs, output), tmp_path)
    assert [f.returncode for f in finished] == [0, 0], finished[0].output[-2000:]
    assert_same_run(output, uninterrupted)
