"""launchers/slurm/train.sbatch and stage.sh: when a job is queued again and when not, modules, containers, places.

The training itself is in test_submit.py; here a shell script stands in for Python, and ends as a training may.
"""

import subprocess
import time
from pathlib import Path

import pytest

from tests.launchers.conftest import REPOSITORY
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slow

SCRIPTS = REPOSITORY / "launchers" / "slurm"
TRAIN = SCRIPTS / "train.sbatch"


def stand_in(folder: Path, *lines: str) -> dict[str, str]:
    """Environment in which these lines run in the place of Python."""
    path = folder / "python"  # without a space: Slurm could not end it
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)
    return {"AHN_PYTHON": str(path)}


def outcome(slurm: Cluster, job: str) -> tuple[str, str]:
    (task,) = slurm.wait(job)
    return task["JobState"], task["ExitCode"]


def read_log(folder: Path, job: str) -> str:
    return (folder / f"slurm_logs/train-{job}.log").read_text()


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.02)


def test_jobs_are_queued_again_as_often_as_allowed_and_only_when_the_training_says_so(
    slurm: Cluster, tmp_path: Path
) -> None:
    """One that always stops, one that fails, and one that is stopped before Python listens; side by side."""
    folders = [tmp_path / name for name in ("stops", "fails", "is early")]
    for folder in folders:
        folder.mkdir()
    stops, fails, early = folders
    always = slurm.submit(TRAIN, cwd=stops, **stand_in(stops, "exit 85"), AHN_MAX_REQUEUES="1")
    wrong = slurm.submit(TRAIN, cwd=fails, **stand_in(fails, "exit 3"))
    sleeper = stand_in(early, '[ -n "$SLURM_RESTART_COUNT" ] && exit 0', "echo asleep", "exec sleep 120")
    deaf = slurm.submit(TRAIN, cwd=early, **sleeper)
    wait_for(early / f"slurm_logs/train-{deaf}.log", "asleep")
    slurm.run("scancel", "--batch", "--signal=USR1", deaf)
    assert outcome(slurm, wrong) == ("FAILED", "3:0")
    assert "queued again" not in read_log(fails, wrong)
    assert outcome(slurm, always) == ("FAILED", "85:0")
    log = read_log(stops, always)
    assert log.count("stopped and saved; queued again") == 1 and "requeued 1 times" in log
    assert "error: stopped and saved, but started again 1 times before (AHN_MAX_REQUEUES)" in log
    assert outcome(slurm, deaf) == ("COMPLETED", "0:0")
    assert "stopped and saved; queued again" in read_log(early, deaf)


def test_a_cancelled_job_may_save_and_does_not_come_back(slurm: Cluster, tmp_path: Path) -> None:
    saves = stand_in(tmp_path, "trap 'echo saved; exit 85' TERM USR1", "echo ready", "while :; do sleep 0.05; done")
    job = slurm.submit(TRAIN, cwd=tmp_path, **saves)
    wait_for(tmp_path / f"slurm_logs/train-{job}.log", "ready")
    slurm.run("scancel", job)
    assert outcome(slurm, job)[0] == "CANCELLED"
    log = read_log(tmp_path, job)
    assert "saved" in log and "queued again\n" not in log
    assert slurm.run("squeue", "--noheader", "--jobs", job) == ""


def test_modules_container_and_data_cache_reach_every_process(slurm: Cluster, tmp_path: Path) -> None:
    line = 'echo "$SLURM_PROCID|$SEEN|$AHN_DATA_CACHE|$PYTHONPATH|${1##*/}|$2"'
    site = {
        "AHN_MODULES": "cuda/12 nccl",
        "BASH_FUNC_module%%": "() { echo loads $2; }",
        "AHN_CONTAINER": "env\nSEEN=in the container",
        "AHN_DATA_CACHE": "/scratch/%j",
    }
    layout = ["--nodes", 2, "--ntasks-per-node", 1, "--cpus-per-task", 2]
    job = slurm.submit(*layout, TRAIN, "--seed 1", cwd=tmp_path, **stand_in(tmp_path, line), **site, PYTHONPATH="")
    assert outcome(slurm, job) == ("COMPLETED", "0:0"), read_log(tmp_path, job)
    lines = read_log(tmp_path, job).splitlines()
    assert lines[:2] == ["loads cuda/12", "loads nccl"]
    assert sorted(lines[3:]) == [f"{n}|in the container|/scratch/{job}|{REPOSITORY}|train.py|--seed 1" for n in (0, 1)]


def test_the_scripts_have_no_syntax_error_and_begin_alike() -> None:
    """Seen also where there is no Slurm."""
    scripts = sorted(SCRIPTS.glob("*.sbatch"))
    assert [path.stem for path in scripts] == ["cache_teacher", "evaluate", "finish_cache", "prepare", "train"]
    for path in [*scripts, SCRIPTS / "stage.sh"]:
        assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0
    beginnings = {path.read_text().split("set -euo pipefail")[1].split('stage.sh"\n\n')[0] for path in scripts}
    assert len(beginnings) == 1 and len(beginnings.pop()) > 500
