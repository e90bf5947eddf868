"""What submit.py says of an experiment that retains tokens; no Slurm needed."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launchers.conftest import REPOSITORY
from tests.slurm.experiments import command, make_experiment
from tests.tiny_models import TINY_WINDOW, make_adapter

KNOWN = "error: site: sbatch, scontrol, scancel not found"


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_tokenizer) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"), tiny_tokenizer)


def findings(root: Path, *flags: object) -> list[str]:
    """Lines of a dry run, but for the one that says that there is no Slurm."""
    environment = {name: value for name, value in os.environ.items() if name != "PATH"} | {"PATH": "/none"}
    arguments = command(root, *flags, "--dry_run")
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=100)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith(KNOWN)], done.stderr
    return [line for line in lines if not line.startswith(KNOWN)]


def test_an_adapter_to_come_has_what_its_training_retains(root: Path) -> None:
    assert findings(root, "--train.window.retained", "[0, 8]", "--train.window.decision_interval", 4) == []
    for flags, words in (
        (("--evaluate.num_retained_tokens", 5), ("--num_retained_tokens 5: ", "has no fitted scorer")),
        (("--evaluate.variants", "retained8"), ("--variants retained8: ", "has no scorer")),
    ):
        (line,) = findings(root, *flags)
        assert line.startswith("error: evaluate: ") and all(word in line for word in words), line
        assert findings(root, *flags, "--train.window.retained", "[0, 8]") == []


def test_budgets_count_what_is_retained(root: Path) -> None:
    (line,) = findings(root, "--train.window.retained", "[4]", "--cache.min_budget", 30)
    assert "--window.budgets [24, 32] with --window.retained [4] may draw 28, below cache: --min_budget 30" in line
    assert findings(root, "--train.window.retained", "[8]", "--cache.min_budget", 30) == []
    (line,) = findings(root, "--train.window.retained", "[0, 8]", "--cache.min_budget", 30)
    assert "may draw 24" in line


def test_numbers_that_leave_nothing_to_evict_are_told(root: Path) -> None:
    (never, nothing) = findings(root, "--train.window.retained", "[0, 8, 72]")
    assert never.startswith("warning: train: --window.retained 72 is never drawn: ") and "W = 96 tokens" in never
    assert nothing.startswith("warning: evaluate: ") and "keeps W = 104 tokens" in nothing
    assert "--num_retained_tokens" in nothing
    flags = ("--train.window.retained", "[0, 8, 71]", "--evaluate.num_retained_tokens", 62)
    assert findings(root, *flags) == []


def test_a_model_that_is_there_says_what_it_has(root: Path, tmp_path: Path) -> None:
    plain = make_adapter(tmp_path / "plain", root / "base")
    scored = make_adapter(tmp_path / "scored", root / "base", replace(TINY_WINDOW, num_retained_tokens=3))
    assert findings(root, "--evaluate.model", scored, "--evaluate.num_retained_tokens", 5) == []
    (line,) = findings(root, "--evaluate.model", plain, "--evaluate.num_retained_tokens", 5)
    assert line.startswith(f"error: evaluate: --num_retained_tokens 5: --model {plain} has no fitted scorer")


def test_halo_and_too_little_gpu_memory_name_the_flag(root: Path) -> None:
    flags = ("--train.window.retained", "[8]", "--train.sequence_parallel_size", 2)
    found = findings(root, *flags, "--train.sequence_parallel_mode", "halo")
    refusal = "error: train: --sequence_parallel_mode halo: no rank has all the tokens that --window.retained"
    assert [line for line in found if line.startswith(refusal)], found
    gpus = ("--site.train.gpus_per_node", 2, "--gpu_memory", 1.5, "--site.train.tasks_per_node", "null")
    (line,) = findings(root, "--train.window.retained", "[8]", *gpus)
    assert "--teacher_cache, fewer --window.retained or ds_configs/zero3.json" in line and "retained 0.0" in line
