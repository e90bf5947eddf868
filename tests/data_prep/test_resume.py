"""A run that was killed at any instant goes on, and ends with the bytes of one that was not."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.receipts import UNITS_FOLDER
from data_prep.verify import verify_folder
from pipeline.data.loader import PackedDataset
from pipeline.data.shard_format import DataError, Manifest
from tests.killing import marked_processes, new_mark

LAUNCHER = Path(__file__).parents[2] / "launchers" / "prepare.py"
KILLED_RUN = [sys.executable, Path(__file__).parents[1] / "killed_run.py", LAUNCHER]
Prepare = Callable[..., Manifest]
pytestmark = pytest.mark.slow


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder that must be the same in an equal run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def flags(corpus: Path, tokenizer: Path, output: Path, *more: str) -> list[str]:
    """The launcher's flags for a best-fit run of several units, with leftovers."""
    where = ["--inputs", str(corpus), "--tokenizer", str(tokenizer), "--output", str(output)]
    sizes = ["--seq_len", "300", "--unit_bytes", "40000", "--shard_bytes", "30000"]
    return [*where, *sizes, "--extensions", ".txt", *more]


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An uninterrupted run's folder, for each `--dedup`."""
    folders: dict[str, Path] = {}

    def run(dedup: str) -> Path:
        if dedup not in folders:
            folders[dedup] = tmp_path_factory.mktemp("whole") / "out"
            arguments = flags(corpus, tiny_tokenizer, folders[dedup], "--dedup", dedup)
            subprocess.run([sys.executable, LAUNCHER, *arguments], check=True, capture_output=True, timeout=60)
        return folders[dedup]

    return run


@pytest.mark.parametrize(
    ("function", "number", "dedup"),
    [
        ("pipeline.data.shard_io:OpenShard._put", 20, "count"),  # in the middle of a shard
        ("pipeline.data.shard_io:publish", 1, "count"),  # before the rename of the first file
        pytest.param(
            "pipeline.data.shard_io:publish", 6, "count", marks=pytest.mark.drill
        ),  # of one that follows others
        pytest.param("data_prep.units:_save_leftovers", 2, "count", marks=pytest.mark.drill),
        pytest.param("data_prep.receipts:UnitReceipt.save", 3, "count", marks=pytest.mark.drill),
        pytest.param("data_prep.prepare:process_leftovers", 1, "count", marks=pytest.mark.drill),
        ("data_prep.prepare:mark_duplicates", 1, "exact"),
        pytest.param("data_prep.prepare:write_run_info", 1, "exact", marks=pytest.mark.drill),
        ("data_prep.prepare:complete_folder", 1, "count"),  # before the manifest
        ("data_prep.manifest:completion_mark", 1, "count"),  # before the mark
    ],
)
def test_killed_at_a_named_instant(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, whole: Callable, function: str, number: int, dedup: str
) -> None:
    arguments = flags(corpus, tiny_tokenizer, tmp_path / "out", "--dedup", dedup)
    killed = subprocess.run([*KILLED_RUN, function, str(number), *arguments], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(DataError, match="is not finished"):
        PackedDataset(tmp_path / "out")
    subprocess.run([sys.executable, LAUNCHER, *arguments], check=True, capture_output=True, timeout=60)
    assert content(tmp_path / "out") == content(whole(dedup))


def test_killed_after_the_mark_the_folder_is_finished(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, whole: Callable
) -> None:
    arguments = flags(corpus, tiny_tokenizer, tmp_path / "out")
    command = [*KILLED_RUN, "data_prep.manifest:remove_scratch", "1", *arguments]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == -signal.SIGKILL
    assert len(PackedDataset(tmp_path / "out")) > 0
    done = subprocess.run([sys.executable, LAUNCHER, *arguments], check=True, capture_output=True, timeout=60)
    assert b"already complete" in done.stdout
    assert content(tmp_path / "out") == content(whole("count"))
    verify_folder(tmp_path / "out")


def test_workers_end_with_a_killed_run_whose_work_is_kept(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, whole: Callable
) -> None:
    output, (mark, environment) = tmp_path / "out", new_mark()
    arguments = flags(corpus, tiny_tokenizer, output, "--num_workers", "2")
    run = subprocess.Popen([sys.executable, LAUNCHER, *arguments], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((output / UNITS_FOLDER).glob("[0-9]*.json"))) < 2:
        assert run.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
    run.send_signal(signal.SIGKILL)
    run.wait()
    while orphans := marked_processes(mark):
        assert time.monotonic() < deadline, f"workers {orphans} outlived their run"
    subprocess.run([sys.executable, LAUNCHER, *arguments], check=True, capture_output=True, timeout=60)
    assert json.loads((output / "run.json").read_text())["units_reused"] >= 2
    assert content(output) == content(whole("count"))


def test_full_disk_is_one_line_and_the_folder_goes_on(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, whole: Callable
) -> None:
    arguments = flags(corpus, tiny_tokenizer, tmp_path / "out")

    def limit_files() -> None:  # the kernel refuses longer writes, as a full disk does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run([sys.executable, LAUNCHER, *arguments], capture_output=True, text=True, timeout=60,
                          preexec_fn=limit_files)  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith(f"error: --output {tmp_path / 'out'} cannot be written (File too")
    assert "run again to go on" in last
    subprocess.run([sys.executable, LAUNCHER, *arguments], check=True, capture_output=True, timeout=60)
    assert content(tmp_path / "out") == content(whole("count"))


def _mpiexec(num_ranks: int, *command: str) -> subprocess.CompletedProcess:
    launcher = Path(sys.executable).with_name("mpiexec")
    return subprocess.run([launcher, "-n", str(num_ranks), *command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_mpi_ranks_write_the_same_bytes(
    corpus: Path, tiny_tokenizer: Path, tmp_path: Path, whole: Callable, num_ranks: int
) -> None:
    arguments = flags(corpus, tiny_tokenizer, tmp_path / "out", "--mpi", "true")
    done = _mpiexec(num_ranks, sys.executable, str(LAUNCHER), *arguments)
    assert done.returncode == 0 and done.stdout.count("data in") == 1, done.stderr
    assert content(tmp_path / "out") == content(whole("count"))


def test_error_on_an_mpi_rank_is_one_line_and_ends_them_all(tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    where = ["--inputs", str(tmp_path / "a.parquet"), "--tokenizer", str(tiny_tokenizer)]
    done = _mpiexec(3, sys.executable, str(LAUNCHER), *where, "--output", str(tmp_path / "out"), "--mpi", "true")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode != 0 and len(errors) == 1 and "a.parquet cannot be read as parquet" in errors[0], done.stderr
