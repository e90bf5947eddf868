"""One tiny base, adapter and held-out folder for all launcher tests, and a way to run launchers as a user does."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import TINY_VOCAB_SIZE
from tests.distributed.processes import kill_group
from tests.fork_server import can_fork, fork_server
from tests.tiny_models import make_adapter, make_base

REPOSITORY = Path(__file__).resolve().parents[2]
IMPORT_TORCH = ("cache_teacher.py", "generate.py", "merge_adapter.py", "run_eval.py", "../tests/signalled_run.py")
NO_TORCH = "raise ImportError('torch was imported before flags and files were checked')\n"


class Tiny(NamedTuple):
    base: Path
    adapter: Path
    held_out: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_tokenizer) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    base = make_base(folder / "base", tiny_tokenizer, TINY_VOCAB_SIZE)
    texts = folder / "texts"
    texts.mkdir()
    for number, source in enumerate(sorted((REPOSITORY / "pipeline/evaluation").glob("*.py"))[1:5]):
        (texts / f"{number}.txt").write_text(source.read_text()[:1500])
    held_out = folder / "heldout"
    prepare = ["--inputs", texts, "--tokenizer", base, "--output", held_out, "--seq_len", 96]
    assert launch("prepare.py", *prepare).returncode == 0
    return Tiny(base, make_adapter(folder / "adapter", base), held_out)


def launch(
    script: str, *arguments: object, stdin: str = "", anew: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs launchers/`script` in a process of its own, from another folder than the repository.

    One that imports torch is a fork of a process that has, unless `anew` or a PYTHONPATH is given.
    """
    command = [str(part) for part in (REPOSITORY / "launchers" / script, *arguments)]
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = inherited | {"OMP_NUM_THREADS": "1"} | env
    if script in IMPORT_TORCH and can_fork() and not anew and "PYTHONPATH" not in env:
        return run_fork(command, environment, stdin)
    return subprocess.run(
        [sys.executable, *command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env=environment,
    )


def run_fork(command: list[str], environment: dict[str, str], stdin: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin)
        process = fork_server().start(command, environment, "/", [str(file) for file in files])
        try:
            code = process.wait(120)
        finally:
            kill_group(process)
        return subprocess.CompletedProcess(command, code, *(file.read_text() for file in files[1:]))


@pytest.fixture
def refused(tmp_path):
    """Runs a launcher that must end with one line on stderr, exit code 2, and without importing torch."""
    (tmp_path / "no_torch").mkdir()
    (tmp_path / "no_torch/torch.py").write_text(NO_TORCH)

    def run(script: str, *arguments: object, stdin: str = "") -> str:
        done = launch(script, *arguments, stdin=stdin, PYTHONPATH=str(tmp_path / "no_torch"))
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""
        return done.stderr

    return run
