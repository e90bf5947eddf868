"""Any sample at any of its positions, with a check on every read, from several threads, finished or not."""

import ctypes
import dataclasses
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.data.shard_io import END_OF_TAR
from pipeline.losses.positions import supervised_positions
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_writer import begin_cache
from pipeline.teacher.signals import HiddenSpec, Signal
from pipeline.teacher.verify import verify_cache
from pipeline.training.cached_teacher import CachedTeacher
from tests.teacher.cache_folders import SPECS, make_cache, make_data, make_info, make_signal, rekey, write_shard

MIN_BUDGET = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def caches(dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished cache of every kind of signal: compressed, and ("plain KIND") not."""
    folder = tmp_path_factory.mktemp("caches")
    for kind in SPECS:
        make_cache(folder / kind, dataset, kind, MIN_BUDGET, "zstd")
        make_cache(folder / f"plain {kind}", dataset, kind, MIN_BUDGET, "none")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def cache(caches: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(caches["topk"], tmp_path / "cache")


def assert_equal(found: Signal, due: Signal) -> None:
    members, expected = found.to_members(), due.to_members()
    assert list(members) == list(expected)
    for name, array in members.items():
        assert array.dtype == expected[name].dtype and np.array_equal(array, expected[name])


@pytest.mark.parametrize("kind", [*SPECS, *(f"plain {kind}" for kind in SPECS)])
def test_every_sample_at_its_supervised_positions(dataset: PackedDataset, caches: dict[str, Path], kind: str) -> None:
    cache, order = TeacherCache(caches[kind], dataset), np.random.default_rng(1).permutation(len(dataset))
    assert cache.missing == [] and all(cache.has(number) for number in range(7))
    num_read = 0
    for index in order.tolist():
        sample = dataset[index]
        for budget in (MIN_BUDGET, 9, 100):
            positions = supervised_positions(sample.cu_seqlens, budget, sample.loss_mask)
            due = make_signal(cache.info.signal, sample.key, positions)
            assert_equal(cache.read(index, sample.key, positions), due)
            num_read += len(positions)
    assert num_read > 600


def test_positions_in_any_order_and_more_than_once(dataset: PackedDataset, caches: dict[str, Path]) -> None:
    cache, sample = TeacherCache(caches["sampled"], dataset), dataset[0]
    positions = np.array([9, 5, 5, 20, 3])
    assert_equal(cache.read(0, sample.key, positions), make_signal(cache.info.signal, sample.key, positions))


@pytest.mark.parametrize("position", [-1, 0, 2, 10_000])
def test_a_position_that_is_not_stored_is_named_with_the_policy(
    dataset: PackedDataset, caches: dict[str, Path], position: int
) -> None:
    message = (
        rf"shard-00000-000.tar: sample 1 of the shard \(number 1 of the data\) has no signal at position {position}; "
        rf"the cache holds the positions past_budget with min_budget 3"
    )
    with pytest.raises(DataError, match=message):
        TeacherCache(caches["hidden"], dataset).read(1, dataset[1].key, np.array([position]))
    with pytest.raises(DataError, match=r"sample 0 of the shard \(number 3 .* no signal at position 0;"):
        TeacherCache(caches["hidden"], dataset).read(3, dataset[3].key, np.array([0]))  # a sample without any


def test_what_the_policy_covers(dataset: PackedDataset, caches: dict[str, Path], tmp_path: Path) -> None:
    cache = TeacherCache(caches["hidden"], dataset)
    assert [cache.covers(budget) for budget in (0, 2, 3, 64)] == [False, False, True, True]
    make_cache(tmp_path / "all", dataset)
    assert TeacherCache(tmp_path / "all", dataset).covers(0)


def test_other_data_is_refused_with_both_fingerprints(
    dataset: PackedDataset, caches: dict[str, Path], tmp_path: Path
) -> None:
    other = make_data(tmp_path / "other", tokenizer_name="another")
    assert other.fingerprint != dataset.fingerprint
    with pytest.raises(DataError, match=rf"{dataset.fingerprint}, but .*other has {other.fingerprint}; name the cache"):
        TeacherCache(caches["hidden"], other)
    with pytest.raises(DataError, match=r"s3://bucket/cache: a teacher cache is read from a file system"):
        TeacherCache("s3://bucket/cache", dataset)
    for index in (-1, 16):
        with pytest.raises(IndexError, match=f"sample {index} of"):
            TeacherCache(caches["hidden"], dataset).read(index, "key", np.array([3]))


def test_a_cache_that_is_being_written_is_read_as_far_as_it_has_come(dataset: PackedDataset, tmp_path: Path) -> None:
    info = make_info(dataset)
    begin_cache(tmp_path / "cache", info)
    cache = TeacherCache(tmp_path / "cache", dataset)
    assert len(cache.missing) == 7
    for number in (4, 1):
        write_shard(tmp_path / "cache", dataset, info, number)
    (tmp_path / "cache" / "shard-00000-000.tar").touch()  # a tar without its index is not there yet
    assert [cache.has(number) for number in range(7)] == [False, True, False, False, True, False, False]
    assert cache.missing == [f"shard-{name}" for name in ("00000-000", "00000-002", "00004-000", "00004-002",
                                                          "00004-003")]  # fmt: skip
    sample, positions = dataset[4], info.positions.select(dataset[4])
    assert_equal(cache.read(4, sample.key, positions), make_signal(info.signal, sample.key, positions))
    with pytest.raises(DataError, match=r"shard-00000-002.idx.npy is missing; .*run launchers/cache_teacher.py again"):
        cache.read(7, dataset[7].key, np.array([3]))


def test_threads_share_a_cache(dataset: PackedDataset, caches: dict[str, Path]) -> None:
    cache = TeacherCache(caches["sampled"], dataset)
    stored = [cache.info.positions.select(dataset[index]) for index in range(16)]
    keys = [dataset[index].key for index in range(16)]
    due = [make_signal(cache.info.signal, dataset[index].key, stored[index]).ids.tolist() for index in range(16)]

    def read(seed: int) -> bool:
        numbers = np.random.default_rng(seed).integers(0, 16, 100).tolist()
        return all(cache.read(index, keys[index], stored[index]).ids.tolist() == due[index] for index in numbers)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(4), timeout=60))


def test_damage_in_one_sample_is_found_when_it_is_read_and_only_there(dataset: PackedDataset, cache: Path) -> None:
    reader, rng, path = TeacherCache(cache, dataset), random.Random(2), cache / "shard-00000-001.tar"
    row, whole = np.load(cache / "shard-00000-001.idx.npy")[1], path.read_bytes()
    stored = [reader.info.positions.select(dataset[index]) for index in range(16)]
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[row["offset"] + rng.randrange(row["length"])] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"shard-00000-001.tar: sample 1 of the shard \(number 4 .* is damaged"):
            reader.read(4, dataset[4].key, stored[4])
        reader.read(3, dataset[3].key, stored[3]), reader.read(5, dataset[5].key, stored[5])
    path.write_bytes(whole[: row["offset"] + 700])
    with pytest.raises(DataError, match="is damaged"):
        reader.read(4, dataset[4].key, stored[4])
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00000-001.tar cannot be read: No such file"):
        reader.read(4, dataset[4].key, stored[4])


def test_an_index_of_another_shard_or_damaged_is_refused(dataset: PackedDataset, cache: Path) -> None:
    path = cache / "shard-00000-000.idx.npy"
    for name, message in (
        ("shard-00000-001", "does not match its sha256 in shards.json"),
        ("shard-00004-003", "has 1 samples, 3 are due"),
    ):
        for suffix in (".tar", ".idx.npy"):
            shutil.copy(cache / f"{name}{suffix}", cache / f"shard-00000-000{suffix}")
        with pytest.raises(DataError, match=f"shard-00000-000.idx.npy {message}"):
            TeacherCache(cache, dataset).read(0, dataset[0].key, np.array([5]))
    for name in ("shards.json", "shards.json.sha256"):  # as if it were not finished
        (cache / name).unlink()
    with pytest.raises(DataError, match=r"has 1 samples, 3 are due"):
        TeacherCache(cache, dataset).read(0, dataset[0].key, np.array([5]))
    for damage in (b"", b"x" * 500, path.read_bytes()[:-1]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"idx.npy (has \d+ bytes, which is no|is damaged: not an) index"):
            TeacherCache(cache, dataset).read(0, dataset[0].key, np.array([5]))


def test_what_is_larger_than_it_can_be_is_refused_unread(dataset: PackedDataset, cache: Path) -> None:
    """Sparse files of 40 GB, which would not fit in memory."""
    path, tar = cache / "shard-00000-000.idx.npy", cache / "shard-00000-000.tar"
    whole, index = path.read_bytes(), np.load(path)
    os.truncate(path, len(whole) + 40_000_000_000)
    with pytest.raises(DataError, match=r"shard-00000-000.idx.npy has 1000000003 samples, 3 are due"):
        TeacherCache(cache, dataset).read(0, dataset[0].key, np.array([5]))
    for name in ("shards.json", "shards.json.sha256"):
        (cache / name).unlink()
    with pytest.raises(DataError, match=r"has 1000000003 samples, for which .*tar has no room"):
        verify_cache(cache)
    row = index[2]
    for tokens, message in (
        (int(row["tokens"]), r"where \d+ positions take at most \d+"),
        (1 << 33, "the data's have 100"),
    ):
        os.truncate(tar, int(row["offset"]) + 30_000_000_000 + len(END_OF_TAR))
        row["length"], row["tokens"] = 30_000_000_000, tokens
        np.save(path, index)
        with pytest.raises(DataError, match=message):
            TeacherCache(cache, dataset).read(2, dataset[2].key, np.array([5]))
    os.truncate(cache / "teacher.json", 40_000_000_000)
    with pytest.raises(DataError, match=r"teacher.json has more than the 1048576 bytes that it may have"):
        TeacherCache(cache, dataset)


def test_a_listing_larger_than_it_can_be_is_refused_unread(dataset: PackedDataset, cache: Path) -> None:
    os.truncate(cache / "shards.json", 40_000_000_000)
    with pytest.raises(DataError, match=r"shards.json has more than the 67108864 bytes that it may have"):
        TeacherCache(cache, dataset)


READ_ALL = """
import sys
import numpy as np
from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.teacher.cache import TeacherCache

dataset = PackedDataset(sys.argv[1])
try:
    cache = TeacherCache(sys.argv[2], dataset)
    cache.has(0)
    cache.read(0, dataset[0].key, np.array([5]))
except DataError as error:
    print(error)
"""


def _drop_root_override() -> None:
    """Makes root subject to file modes, as other users are."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("name", ["teacher.json", "shards.json", "shard-00000-000.idx.npy", "shard-00000-000.tar", "."])
def test_what_may_not_be_read_is_named_with_the_reason(dataset: PackedDataset, cache: Path, name: str) -> None:
    (cache / name).chmod(0)
    command = [sys.executable, "-c", READ_ALL, dataset.folder, cache]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, preexec_fn=_drop_root_override)
    (cache / name).chmod(0o700)
    assert done.stderr == "" and done.stdout.count("\n") == 1
    assert str(cache / name) in done.stdout and "cannot be read: Permission denied" in done.stdout


def test_a_shard_that_was_deleted_or_made_again_is_looked_for_again(dataset: PackedDataset, cache: Path) -> None:
    reader, spare = TeacherCache(cache, dataset), cache.with_name("spare")
    positions, key = np.array([5]), dataset[0].key
    due = reader.read(0, key, positions)
    online, error = (CachedTeacher(reader, fallback) for fallback in ("online", "error"))
    (cache / "shard-00000-000.tar").rename(spare)
    assert not reader.has(0) and reader.missing == ["shard-00000-000"] and online.find(0, key, positions) is None
    with pytest.raises(DataError, match=r"shard-00000-000.tar is missing"):
        error.find(0, key, positions)
    spare.rename(cache / "shard-00000-000.tar")
    assert reader.has(0)
    assert_equal(online.find(0, key, positions), due)


def test_a_shard_deleted_in_the_instant_before_it_is_read(dataset: PackedDataset, cache: Path) -> None:
    reader, positions, key = TeacherCache(cache, dataset), np.array([5]), dataset[0].key
    reader.read(0, key, positions)

    class Vanishing(TeacherCache):
        def read(self, *given: object) -> Signal:
            (cache / "shard-00000-000.tar").unlink(missing_ok=True)
            return super().read(*given)

    assert CachedTeacher(Vanishing(cache, dataset), "online").find(0, key, positions) is None


def test_a_sample_of_another_key_is_refused_with_both(dataset: PackedDataset, caches: dict[str, Path]) -> None:
    message = (
        r"sample 1 of the shard .* holds the signal of the sample 00000-000001, the data has 00004-000001 there; make"
    )
    with pytest.raises(DataError, match=message):
        TeacherCache(caches["hidden"], dataset).read(1, "00004-000001", np.array([5]))


def test_a_listing_that_does_not_fit_is_refused(dataset: PackedDataset, cache: Path, caches: dict[str, Path]) -> None:
    shutil.copy(caches["hidden"] / "teacher.json", cache / "teacher.json")
    with pytest.raises(DataError, match=r"shards.json was not written for the teacher.json beside it"):
        TeacherCache(cache, dataset)
    (cache / "shards.json").unlink()
    with pytest.raises(DataError, match=r"shards.json is missing though shards.json.sha256 is there"):
        TeacherCache(cache, dataset)


def test_a_sample_that_is_no_signal_of_that_kind_is_named(
    dataset: PackedDataset, tmp_path: Path, caches: dict[str, Path]
) -> None:
    shutil.copytree(caches["hidden"], tmp_path / "cache")
    for name in ("shards.json", "shards.json.sha256"):
        (tmp_path / "cache" / name).unlink()
    info = make_info(dataset)
    for spec, message in (
        (HiddenSpec("float16", 6), r" is no hidden signal \(hidden.npy is uint16"),
        (SPECS["topk"], r": not a sample of a teacher cache \(its members are"),
    ):
        other = dataclasses.replace(info, signal=spec)
        other.save(tmp_path / "cache")
        with pytest.raises(DataError, match=r"sample 0 of the shard .* is damaged or of another cache"):
            TeacherCache(tmp_path / "cache", dataset).read(0, dataset[0].key, np.array([5]))
        rekey(tmp_path / "cache", "shard-00000-000", other.digest_key)
        with pytest.raises(DataError, match=rf"sample 0 of the shard \(number 0 of the data\){message}"):
            TeacherCache(tmp_path / "cache", dataset).read(0, dataset[0].key, np.array([5]))
