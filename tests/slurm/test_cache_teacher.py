"""launchers/slurm/cache_teacher.sbatch on a real cluster: arrays, requeued and cancelled tasks, mistakes, GPUs."""

import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.teacher.verify import verify_cache
from tests.launchers.conftest import REPOSITORY, launch
from tests.slurm.cluster import Cluster
from tests.teacher.cache_folders import content
from tests.teacher.capture_inputs import make_data, make_teacher

pytestmark = pytest.mark.slow

SCRIPT = REPOSITORY / "launchers/slurm/cache_teacher.sbatch"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Case(NamedTuple):
    """Flags without --output, and the cache that one process made with them."""

    flags: list[object]
    whole: Path


@pytest.fixture(scope="module")
def case(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A teacher and data that take one process some seconds."""
    root = tmp_path_factory.mktemp("cache teacher")
    make_data(root / "data", make_teacher(root / "teacher"), repeats=150)
    flags = ["--model", root / "teacher", "--data", root / "data", "--signal", "sampled"]
    done = launch("cache_teacher.py", *flags, "--output", root / "whole")
    assert done.returncode == 0, done.stderr
    return Case(flags, root / "whole")


def logs(folder: Path, job: str) -> list[str]:
    """What each task of the job has logged, in order; the job was submitted from `folder`."""
    return [path.read_text() for path in sorted((folder / "slurm_logs").glob(f"*-{job}*.log"))]


def states(tasks: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    """State and exit code (code:signal) of each task of an array, by its number."""
    return {task["ArrayTaskId"]: (task["JobState"], task["ExitCode"]) for task in tasks}


def num_shards(cache: Path) -> int:
    return len(list(cache.glob("*.idx.npy")))


def wait_for_shards(slurm: Cluster, job: str, cache: Path, number: int) -> None:
    while num_shards(cache) < number:
        assert any(task["JobState"] in ("PENDING", "RUNNING") for task in slurm.describe(job))
        time.sleep(0.01)


def test_an_array_of_three_tasks_writes_the_bytes_of_one_process(case: Case, slurm: Cluster, tmp_path: Path) -> None:
    """Two processes a task; the output is relative to where sbatch is called, and has a space in it."""
    flags = [*case.flags, "--output", "the cache"]
    job = slurm.submit("--array", "0-2", "--ntasks-per-node", 2, SCRIPT, *flags, cwd=tmp_path, **ONE_THREAD)
    assert states(slurm.wait(job)) == dict.fromkeys("012", ("COMPLETED", "0:0")), logs(tmp_path, job)
    written = [[int(number) for number in re.findall(r"wrote (\d+) shards", log)] for log in logs(tmp_path, job)]
    assert [len(numbers) for numbers in written] == [2, 2, 2]
    assert sum(map(sum, written)) == num_shards(case.whole)
    assert any("the cache is complete" in log for log in logs(tmp_path, job))
    assert content(tmp_path / "the cache") == content(case.whole)


def test_what_a_requeued_and_a_cancelled_task_left_is_done(case: Case, slurm: Cluster, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [SCRIPT, *case.flags, "--output", cache]
    job = slurm.submit("--array", "0-1", *command, cwd=tmp_path, **ONE_THREAD)
    wait_for_shards(slurm, job, cache, 2)
    slurm.run("scontrol", "requeue", f"{job}_0")
    slurm.run("scancel", f"{job}_1")
    tasks = slurm.wait(job)
    assert states(tasks)["0"] == ("COMPLETED", "0:0") and states(tasks)["1"][0] == "CANCELLED", logs(tmp_path, job)
    first, second = logs(tmp_path, job)
    assert "requeued 0 times" in first and "requeued 1 times" in first and "CANCELLED" in first + second
    before_requeue, after_requeue = first.split("requeued 1 times")
    assert "wrote" not in before_requeue + second
    assert 0 < int(re.search(r"wrote (\d+) shards", after_requeue)[1]) < num_shards(case.whole)
    assert content(cache) == content(case.whole)
    verify_cache(cache, PackedDataset(case.flags[3]))


def test_a_process_that_dies_fails_its_job_while_the_other_does_all(case: Case, slurm: Cluster, tmp_path: Path) -> None:
    """The first of two processes is killed in its third shard."""
    python, dying = tmp_path / "python", f"{REPOSITORY}/tests/killed_run.py"
    instant = "pipeline.teacher.cache_writer:CacheShardWriter.write 8"
    dies = f'script=$1; shift; exec {sys.executable} {dying} "$script" {instant} "$@"'
    python.write_text(f'#!/bin/sh\n[ $SLURM_PROCID = 1 ] && exec {sys.executable} "$@"\n{dies}\n')
    python.chmod(0o755)
    command = [SCRIPT, *case.flags, "--output", tmp_path / "cache"]
    job = slurm.submit("--ntasks-per-node", 2, *command, cwd=tmp_path, AHN_PYTHON=str(python), **ONE_THREAD)
    (task,) = slurm.wait(job)
    (log,) = logs(tmp_path, job)
    assert task["JobState"] == "FAILED" and "task 0: Killed" in log and "cache is complete" in log, log
    assert content(tmp_path / "cache") == content(case.whole)


def test_two_nodes_share_a_teacher_too_large_for_one(case: Case, slurm: Cluster, tmp_path: Path) -> None:
    """ZeRO-3 under srun alone."""
    flags = [*case.flags, "--output", tmp_path / "cache", "--ds_config", REPOSITORY / "ds_configs" / "zero3.json"]
    job = slurm.submit("--nodes", 2, "--ntasks-per-node", 1, SCRIPT, *flags, cwd=tmp_path, **ONE_THREAD)
    assert slurm.wait(job)[0]["JobState"] == "COMPLETED", logs(tmp_path, job)
    assert content(tmp_path / "cache") == content(case.whole)


def test_a_mistake_fails_the_job_with_one_line_in_its_log(case: Case, slurm: Cluster, tmp_path: Path) -> None:
    job = slurm.submit(SCRIPT, *case.flags, "--output", tmp_path / "cache", "--sgnal", "topk", cwd=tmp_path)
    (task,) = slurm.wait(job)
    assert (task["JobState"], task["ExitCode"]) == ("FAILED", "2:0")
    (log,) = logs(tmp_path, job)
    started, *rest = log.splitlines()
    error, from_srun = sorted(rest)  # the task and srun itself write to it in any order
    assert "on node1" in started and error.startswith("error: ") and "sgnal" in error and "exit code 2" in from_srun
    assert not (tmp_path / "cache").exists()


def test_there_is_one_process_for_each_gpu(case: Case, slurm: Cluster, tmp_path: Path) -> None:
    """Under a Python that names its place in the job; two nodes of two GPUs, and one Slurm task asked for."""
    python = tmp_path / "python"
    line = (
        "process $SLURM_PROCID of $SLURM_STEP_NUM_TASKS, GPU $SLURM_LOCALID of $CUDA_VISIBLE_DEVICES, $HF_HUB_OFFLINE"
    )
    python.write_text(f'#!/bin/sh\necho "{line}"\necho "$@"\n')
    python.chmod(0o755)
    layout = ["--nodes", 2, "--gpus-per-node", 2, "--output", tmp_path / "log"]
    job = slurm.submit(*layout, SCRIPT, "--signal", "hidden", cwd=tmp_path, AHN_PYTHON=str(python))
    assert slurm.wait(job)[0]["JobState"] == "COMPLETED"
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(line for line in lines if line.startswith("process")) == [
        f"process {number} of 4, GPU {number % 2} of 0,1, 1" for number in range(4)
    ]
    assert lines.count(f"{REPOSITORY}/launchers/cache_teacher.py --signal hidden") == 4


def test_a_script_without_its_repository_says_what_to_set(slurm: Cluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sbatch"
    copy.write_text(SCRIPT.read_text())
    for options in ({}, {"AHN_ROOT": "/nowhere"}):
        job = slurm.submit(copy, cwd=tmp_path, **options)
        (task,) = slurm.wait(job)
        assert (task["JobState"], task["ExitCode"]) == ("FAILED", "2:0")
        (log,) = logs(tmp_path, job)
        assert re.fullmatch(r"error: .* set AHN_ROOT to the repository's folder\n", log), log
