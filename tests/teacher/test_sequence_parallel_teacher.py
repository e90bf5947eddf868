"""Ranks that compute samples together write what one process writes, but for last digits."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.verify import verify_cache
from pipeline.tokenizer import fingerprint_of
from tests.data_prep.hand_packed import pack, whole, write_folder
from tests.distributed.processes import REPOSITORY, Finished, run_ranks
from tests.launchers.conftest import launch
from tests.teacher.capture_inputs import make_teacher

SIGNAL = ["--signal", "hidden", "--dtype", "float32", "--base_dtype", "float32"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four query heads and two key-value heads, which four ranks share in pairs; one sample has fewer tokens."""
    root, rng = tmp_path_factory.mktemp("sequence_parallel"), np.random.default_rng(0)
    sha256 = fingerprint_of(str(make_teacher(root / "teacher")))
    samples = [
        pack([whole(f"{n}-{d}", length) for d, length in enumerate(lengths)], ids.astype(np.uint32))
        for n, lengths in enumerate([[48], [20, 27], [3], [9, 30, 8], [1, 1], [47], [17, 31]])
        for ids in [rng.integers(0, 97, sum(lengths))]
    ]
    write_folder(root / "data", [(0, "text", samples)], seq_len=48, tokenizer_sha256=sha256, shard_bytes=8_000)
    return root


def capture(inputs: Path, cache: Path, folder: Path, num_ranks: int, size: int, *flags: object) -> list[Finished]:
    given = {"model": inputs / "teacher", "data": inputs / "data", "output": cache, "sequence_parallel_size": size}
    arguments = [x for name, value in given.items() for x in (f"--{name}", value)]
    script = REPOSITORY / "launchers/cache_teacher.py"
    return run_ranks(script, [*arguments, *SIGNAL, *flags], folder, num_ranks=num_ranks)


def hidden_states(cache: Path, data: PackedDataset) -> list[np.ndarray]:
    opened = TeacherCache(cache, data)
    found = []
    for index in range(len(data)):
        positions = opened.info.positions.select(data[index])
        found.append(opened.read(index, data[index].key, positions).decode())
    return found


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("size", [4, pytest.param(2, marks=pytest.mark.drill, id="two groups of two")])
def test_hidden_states_are_those_of_one_process(inputs, tmp_path, size) -> None:
    flags = ["--model", inputs / "teacher", "--data", inputs / "data", "--output", tmp_path / "whole", *SIGNAL]
    done = launch("cache_teacher.py", *flags)
    assert done.returncode == 0, done.stderr
    ended = capture(inputs, tmp_path / "cache", tmp_path, 4, size)
    assert [f.returncode for f in ended] == [0] * 4, ended[0].output[-2000:]
    assert all("is complete" in f.output for f in ended)
    data = PackedDataset(inputs / "data")
    verify_cache(tmp_path / "cache", data)
    due, found = (hidden_states(tmp_path / name, data) for name in ("whole", "cache"))
    for mine, expected in zip(found, due, strict=True):
        assert mine.shape == expected.shape
        assert np.linalg.norm(mine - expected) <= 1e-6 * np.linalg.norm(expected)
    mixed = launch("cache_teacher.py", *flags, "--sequence_parallel_size", size, "--dry_run", "true")
    assert mixed.returncode == 2 and f"sequence_parallel_size is 1, not {size}" in mixed.stderr


@pytest.mark.slow
def test_an_error_of_the_first_rank_ends_its_group(inputs, tmp_path) -> None:
    data = shutil.copytree(inputs / "data", tmp_path / "data")
    damaged = sorted(data.glob("*.tar"))[1]
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    ended = capture(inputs, tmp_path / "cache", tmp_path, 2, 2, "--data", data)
    assert [f.returncode for f in ended] == [2, 2], ended[0].output + ended[1].output
    assert all("Traceback" not in f.output and "is damaged" in f.output.splitlines()[-1] for f in ended)
    assert "found by rank 0" in ended[1].output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--sequence_parallel_size", 3],
            "--sequence_parallel_size 3: the model's 4 query and 2 key-value heads allow 2, 4",
        ),
        (["--sequence_parallel_size", 2], "--sequence_parallel_size 2 does not divide the 1 ranks of this job"),
        (["--sequence_parallel_size", 2, "--forward_chunk", 9], "--forward_chunk 9 does not go with --sequence_par"),
        (["--sequence_parallel_size", 0], "--sequence_parallel_size: must be >= 1, found 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(inputs, tmp_path, flags, message) -> None:
    given = ["--model", inputs / "teacher", "--data", inputs / "data", "--output", tmp_path / "cache", *SIGNAL]
    done = launch("cache_teacher.py", *given, *flags)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
