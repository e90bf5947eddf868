"""Thirty SIGKILLs at random instants, with processes and with MPI: the folder ends as if nothing had happened."""

import random
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from data_prep.verify import verify_folder
from tests.drill import record
from tests.killing import elapsed, kill_when

LAUNCHER = Path(__file__).parents[2] / "launchers" / "prepare.py"
NUM_KILLS = 30
MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))
WAYS = {
    "one process": ([], []),
    "two workers": ([], ["--num_workers", "2"]),
    "three MPI ranks": ([MPIEXEC, "-n", "3"], ["--mpi", "true"]),
}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def _command(way: str, output: Path, tokenizer: Path, dedup: str) -> list[str]:
    before, after = WAYS[way]
    sources = sysconfig.get_paths()["stdlib"]
    flags = ["--inputs", sources, "--extensions", ".py", "--exclude", "*/site-packages/*", "*/test/*"]
    sizes = [
        "--tokenizer",
        str(tokenizer),
        "--seq_len",
        "2048",
        "--unit_bytes",
        "500000",
        "--output",
        str(output),
        "--dedup",
        dedup,
    ]
    return [*before, sys.executable, str(LAUNCHER), *flags, *sizes, *after]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.drill
@pytest.mark.timeout(3600)
def test_thirty_kills(smollm2: Path, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    whole, seconds = {}, 0.0
    for dedup in ("count", "exact"):
        folder = tmp_path / f"whole-{dedup}"
        started = time.monotonic()
        _run(_command("two workers", folder, smollm2, dedup))
        seconds = time.monotonic() - started
        verify_folder(folder)
        whole[dedup] = _content(folder)
    kills = dict.fromkeys(WAYS, 0)
    folders = 0
    while sum(kills.values()) < NUM_KILLS:
        output, dedup = tmp_path / f"out{folders}", rng.choice(["count", "exact"])
        folders += 1
        for _ in range(rng.randint(2, 5)):
            way = min(kills, key=lambda w: (kills[w], rng.random()))
            only_one = rng if rng.random() < 0.3 else None
            instant = elapsed(rng.uniform(0.5, seconds))
            kills[way] += kill_when(instant, [_command(way, output, smollm2, dedup)], only_one)
        _run(_command(rng.choice(list(WAYS)), output, smollm2, dedup))
        assert _content(output) == whole[dedup]
    record("prepare_kills", {"seed": seed, "kills": kills, "folders": folders, "identical": True})
