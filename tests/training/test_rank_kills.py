"""Single ranks killed at random instants of a run through deepspeed, some of them inside a save."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.metrics.logger import read_metrics
from tests.distributed.processes import deepspeed_command, run, started
from tests.drill import record
from tests.killing import elapsed, marked_processes, new_mark
from tests.training.launched_runs import arguments, mathematics, rank_process, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(3000)]
NUM_KILLS, NUM_STEPS = 20, 60
FLAGS = ("--train.max_steps", str(NUM_STEPS), "--train.save_every", "1")


def saves_begun(output: Path) -> list[str]:
    """Checkpoints that are being written, or were when their writer was killed."""
    return sorted(path.name for path in (output / "checkpoints").glob(".tmp-step-*"))


def kill_one(train: list[object], output: Path, log: Path, rank: int, delay: float | None) -> dict:
    """Kills that rank after a new step and that many seconds, or in the next save; how the launcher took it."""
    mark, env = new_mark()
    done = len(read_metrics(output / "metrics.jsonl"))
    with started(deepspeed_command(2, train), log, env) as launcher:
        wait_for_step(output, done + 1, time.monotonic() + 120)
        victim = rank_process(mark, rank)
        is_due = partial(saves_begun, output) if delay is None else elapsed(delay)
        while not is_due():
            assert launcher.poll() is None, log.read_text(errors="replace")[-2000:]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        code, seconds = launcher.wait(60), time.monotonic() - killed
    assert code != 0 and not marked_processes(mark)
    return {
        "rank": rank,
        "step": len(read_metrics(output / "metrics.jsonl")),
        "inside_a_save": bool(saves_begun(output)),
        "seconds_to_end": round(seconds, 1),
    }


def test_single_ranks_killed_many_times_leave_the_same_run(inputs, tmp_path):
    output, log, seed = tmp_path / "run", tmp_path / "log", random.randrange(2**32)
    print(f"seed {seed}")
    generator, began, kills = random.Random(seed), time.monotonic(), []
    whole = run(deepspeed_command(2, arguments(inputs, tmp_path / "whole", *FLAGS)), log, timeout=300)
    assert whole.returncode == 0, whole.output[-3000:]
    train = arguments(inputs, output, *FLAGS)
    for number in range(NUM_KILLS):
        if number % 3 == 0:  # inside a save, which the first rank writes
            kills.append(kill_one(train, output, log, 0, None))
        else:
            kills.append(kill_one(train, output, log, generator.randrange(2), generator.uniform(0, 0.2)))
    assert len(read_metrics(output / "metrics.jsonl")) < NUM_STEPS
    finished = run(deepspeed_command(2, train), log, timeout=300)
    assert finished.returncode == 0, finished.output[-3000:]
    assert mathematics(output) == mathematics(tmp_path / "whole")
    files = ("adapter/model.safetensors", f"checkpoints/step-{NUM_STEPS:07d}/tensors.safetensors")
    assert all((output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files)
    assert any(kill["inside_a_save"] for kill in kills)
    record(
        "train_rank_kills",
        {
            "seed": seed,
            "kills": kills,
            "inside_a_save": sum(kill["inside_a_save"] for kill in kills),
            "longest_seconds_from_kill_to_end": max(kill["seconds_to_end"] for kill in kills),
            "steps": NUM_STEPS,
            "ranks": 2,
            "launcher": "deepspeed",
            "adapter_and_final_checkpoint_equal_to_the_last_bit": True,
            "seconds": round(time.monotonic() - began),
        },
    )
