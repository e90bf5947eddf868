"""A cache is written in any order, by any number of processes, through any number of deaths, with the same bytes."""

import dataclasses
import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zstandard

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.folder_claim import Lock
from pipeline.teacher import cache_receipts
from pipeline.teacher.cache import TeacherCache
from pipeline.teacher.cache_claims import claim, claimed_shards
from pipeline.teacher.cache_format import WORK_FOLDER
from pipeline.teacher.cache_writer import CacheShardWriter, begin_cache, complete_cache, missing_shards, reopen_cache
from pipeline.teacher.verify import verify_cache
from tests.teacher.cache_folders import (
    content,
    make_cache,
    make_data,
    make_info,
    make_signal,
    write_missing,
    write_shard,
)

CACHE_JOB = Path(__file__).with_name("cache_job.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a cache that was written in one go."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    make_cache(folder, dataset)
    return content(folder)


def names(entries: list) -> list[str]:
    return [entry.name for entry in entries]


def test_shards_in_any_order_make_the_same_folder(
    dataset: PackedDataset, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    info = make_info(dataset)
    begin_cache(tmp_path / "cache", info)
    numbers = list(range(7))
    random.Random(3).shuffle(numbers)
    for done, number in enumerate(numbers):
        assert len(missing_shards(tmp_path / "cache", dataset.manifest)) == 7 - done
        assert not complete_cache(tmp_path / "cache", dataset)
        write_shard(tmp_path / "cache", dataset, info, number)
    assert complete_cache(tmp_path / "cache", dataset)
    assert content(tmp_path / "cache") == whole
    assert complete_cache(tmp_path / "cache", dataset, {"host": "another"})
    assert content(tmp_path / "cache") == whole and b"another" not in (tmp_path / "cache/run.json").read_bytes()


def test_the_files_are_those_of_the_contract(dataset: PackedDataset, whole: dict[str, bytes]) -> None:
    due = {"teacher.json", "shards.json", "shards.json.sha256"}
    shards = dataset.manifest.shards
    assert whole.keys() == due | {name for entry in shards for name in (entry.tar_name, entry.index_name)}
    listed = json.loads(whole["shards.json"])["shards"]
    assert [(s["name"], s["num_samples"]) for s in listed] == [(s.name, s.num_samples) for s in shards]
    with tarfile.open(fileobj=io.BytesIO(whole["shard-00000-001.tar"])) as tar:
        members = tar.getnames()
        empty = np.load(io.BytesIO(zstandard.decompress(tar.extractfile("00000-000003.positions.npy.zst").read())))
    assert members == [f"00000-{n:06d}.{name}.npy.zst" for n in (3, 4, 5) for name in ("positions", "hidden")]
    assert empty.dtype == np.int32 and empty.shape == (0,)
    index = np.load(io.BytesIO(whole["shard-00000-001.idx.npy"]))
    assert index["tokens"][0] == 0 and index["tokens"].sum() == listed[1]["num_positions"]


def test_webdataset_reads_a_shard_unaided(dataset: PackedDataset, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", dataset, "topk", compression="none")
    url = str(tmp_path / "cache" / "shard-00004-000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["00004-000000", "00004-000001"]
    for sample in samples:
        count = len(sample["positions.npy"])
        assert count > 0 and sample["log_probs.npy"].shape == (count, 4) and sample["tail.npy"].dtype == np.float32


def test_a_writer_that_fails_leaves_nothing(dataset: PackedDataset, tmp_path: Path) -> None:
    info = make_info(dataset)
    begin_cache(tmp_path / "cache", info)
    before = sorted((tmp_path / "cache").rglob("*"))
    entry, positions = dataset.manifest.shards[0], np.arange(3, dtype=np.int32)
    with pytest.raises(RuntimeError, match="mid-way"), CacheShardWriter(tmp_path / "cache", entry) as writer:
        writer.write("00000-000000", positions, make_signal(info.signal, "00000-000000", positions))
        raise RuntimeError("mid-way")
    with pytest.raises(AssertionError, match="not all samples of shard-00000-000"):
        with CacheShardWriter(tmp_path / "cache", entry) as writer:
            writer.write("00000-000000", positions, make_signal(info.signal, "00000-000000", positions))
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_another_teacher_data_or_setting_is_refused(dataset: PackedDataset, tmp_path: Path) -> None:
    begin_cache(tmp_path / "cache", make_info(dataset))
    begin_cache(tmp_path / "cache", make_info(dataset))
    with pytest.raises(DataError, match=r"signal.dtype is bfloat16, not int8; .*name another folder"):
        begin_cache(tmp_path / "cache", make_info(dataset, "int8"))
    with pytest.raises(DataError, match=r"holds manifest.json and no teacher.json: not a teacher cache"):
        begin_cache(Path(dataset.folder), make_info(dataset))


def test_a_cache_that_another_process_begins_meanwhile_is_no_foreign_folder(dataset, tmp_path, monkeypatch) -> None:
    cache, info = tmp_path / "cache", make_info(dataset)
    cache.mkdir()

    def list_late(folder: Path) -> list[Path]:
        info.save(folder)
        return [folder / name for name in os.listdir(folder)]

    monkeypatch.setattr(Path, "iterdir", list_late)
    begin_cache(cache, info)


def test_a_finished_cache_is_open_again_when_a_shard_is_deleted(dataset: PackedDataset, tmp_path: Path) -> None:
    cache, manifest = tmp_path / "cache", dataset.manifest
    info = make_cache(cache, dataset)
    before = content(cache)
    reopen_cache(cache, manifest)
    assert content(cache) == before
    (cache / manifest.shards[1].tar_name).unlink()
    assert write_missing(cache, dataset, info) == []  # the mark says that nothing is to be done
    reopen_cache(cache, manifest)
    assert write_missing(cache, dataset, info) == [1] and complete_cache(cache, dataset) and content(cache) == before


def test_a_cache_of_other_data_is_not_finished(dataset: PackedDataset, tmp_path: Path) -> None:
    info = make_info(dataset)
    begin_cache(tmp_path / "cache", info)
    write_missing(tmp_path / "cache", dataset, info)
    path = tmp_path / "cache" / "shard-00004-003"  # one sample, in the place of one with three
    for suffix in (".tar", ".idx.npy"):
        path.with_name("shard-00000-001" + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    with pytest.raises(DataError, match=r"shard-00000-001.idx.npy has 1 samples, 3 are due"):
        complete_cache(tmp_path / "cache", dataset)


def test_a_claim_is_held_by_one_and_free_when_it_ends(tmp_path: Path) -> None:
    with claim(tmp_path, "shard-a") as first, claim(tmp_path, "shard-a") as second, claim(tmp_path, "shard-b") as other:
        assert (first, second, other) == (Lock.OURS, Lock.TAKEN, Lock.OURS)
    with pytest.raises(RuntimeError), claim(tmp_path, "shard-a") as again:
        assert again is Lock.OURS
        raise RuntimeError
    with claim(tmp_path, "shard-a") as again:
        assert again is Lock.OURS


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from pipeline.teacher.cache_claims import claim
with claim(Path(sys.argv[1]), sys.argv[3]) as state:
    print(state.name, flush=True)
    time.sleep(60)
"""


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(CACHE_JOB.parents[2]), "shard-a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "OURS\n"
        with claim(tmp_path, "shard-a") as state:
            assert state is Lock.TAKEN
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with claim(tmp_path, "shard-a") as state:
            assert state is Lock.OURS


def test_ranks_begin_apart_and_skip_what_another_has(dataset: PackedDataset, tmp_path: Path) -> None:
    info = make_info(dataset)
    begin_cache(tmp_path / "cache", info)
    first = claimed_shards(tmp_path / "cache", dataset.manifest, 0, 2)
    second = claimed_shards(tmp_path / "cache", dataset.manifest, 1, 2)
    assert [next(first).name, next(second).name, next(first).name] == [
        *("shard-00000-000", "shard-00004-000", "shard-00000-001"),
    ]
    # The second one comes round to 00000-001, which the first holds; 00000-000 was given back unfinished.
    assert names(list(second)) == [
        *("shard-00004-001", "shard-00004-002", "shard-00004-003", "shard-00000-000", "shard-00000-002"),
    ]


def test_a_shard_finished_while_we_waited_for_its_lock_is_not_done_again(
    dataset: PackedDataset, tmp_path: Path
) -> None:
    info = make_info(dataset)
    begin_cache(tmp_path / "cache", info)
    mine, others = (claimed_shards(tmp_path / "cache", dataset.manifest) for _ in range(2))
    assert next(mine).name == "shard-00000-000" and next(others).name == "shard-00000-001"
    write_shard(tmp_path / "cache", dataset, info, 1)
    others.close()
    assert names(list(mine))[0] == "shard-00000-002"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_each_rank_has_its_own_shards(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    info, done = make_info(dataset), []
    begin_cache(tmp_path / "cache", info)
    for rank in range(3):
        for entry in claimed_shards(tmp_path / "cache", dataset.manifest, rank, 3):
            done.append(dataset.manifest.shards.index(entry))
            assert done[-1] % 3 == rank
            write_shard(tmp_path / "cache", dataset, info, done[-1])
    assert sorted(done) == list(range(7)) and complete_cache(tmp_path / "cache", dataset)
    assert content(tmp_path / "cache") == whole


def test_another_error_of_the_lock_is_not_taken_for_missing_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="disk"), claim(tmp_path, "shard-a"):
        pass


def test_digests_come_from_receipts_or_from_the_files(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    info, cache, read = make_info(dataset), tmp_path / "cache", []
    begin_cache(cache, info)
    write_missing(cache, dataset, info)
    receipts = {path.stem: path for path in (cache / WORK_FOLDER).glob("shard-*.json")}
    original = receipts["shard-00004-001"].read_bytes()
    receipts["shard-00000-002"].unlink()
    receipts["shard-00004-000"].write_bytes(original.replace(b"shard-00004-001", b"shard-00004-000"))
    damaged = {
        "00000-000": b'{"na',
        "00000-001": b"[]",
        "00004-001": original.replace(info.digest_key.hex().encode(), b""),
    }
    for name, content_ in damaged.items():
        receipts[f"shard-{name}"].write_bytes(content_)
    read_shard = cache_receipts.read_shard
    monkeypatch.setattr(cache_receipts, "read_shard", lambda *given: read.append(given[-1]) or read_shard(*given))
    assert complete_cache(cache, dataset)
    assert read == [0, 1, 2, 3, 4] and content(cache) == whole


def copy_shard(source: Path, name: str, target: Path, new_name: str) -> None:
    for suffix in (".tar", ".idx.npy"):
        (target / f"{new_name}{suffix}").write_bytes((source / f"{name}{suffix}").read_bytes())


@pytest.mark.parametrize("with_receipt", [False, True])
def test_a_shard_of_another_teachers_cache_is_neither_read_nor_completed(
    dataset: PackedDataset, tmp_path: Path, with_receipt: bool
) -> None:
    caches, name = (tmp_path / "cache", tmp_path / "other"), "shard-00000-001"
    infos = make_info(dataset), dataclasses.replace(make_info(dataset), teacher_sha256="cd" * 32)
    for cache, info in zip(caches, infos, strict=True):
        begin_cache(cache, info)
        write_missing(cache, dataset, info)
    copy_shard(caches[1], name, caches[0], name)
    if with_receipt:
        shutil.copy(caches[1] / WORK_FOLDER / f"{name}.json", caches[0] / WORK_FOLDER)
    with pytest.raises(DataError, match=rf"{name}.tar: sample 0 is damaged or of another cache: .*run launchers"):
        complete_cache(caches[0], dataset)
    with pytest.raises(DataError, match=rf"{name}.tar: sample 1 of the shard .* is damaged or of another cache"):
        TeacherCache(caches[0], dataset).read(4, dataset[4].key, np.array([3]))


def test_swapped_shards_are_neither_read_nor_completed(dataset: PackedDataset, tmp_path: Path) -> None:
    cache, info = tmp_path / "cache", make_info(dataset)
    begin_cache(cache, info)
    write_missing(cache, dataset, info)
    one, other = "shard-00000-000", "shard-00000-001"
    copy_shard(cache, one, tmp_path, "spare")
    copy_shard(cache, other, cache, one)
    copy_shard(tmp_path, "spare", cache, other)
    with pytest.raises(DataError, match=rf"{one}.tar: sample 0 holds the signal of the sample 00000-000003, the data"):
        complete_cache(cache, dataset)
    message = rf"{one}.tar: sample 1 of .* holds the signal of the sample 00000-000004, the data has 00000-000001 there"
    with pytest.raises(DataError, match=message):
        TeacherCache(cache, dataset).read(1, dataset[1].key, np.array([3]))


def test_a_shard_of_other_positions_is_not_completed(dataset: PackedDataset, tmp_path: Path) -> None:
    """Its digests are right: as if another budget had been used under the same teacher.json."""
    cache, info = tmp_path / "cache", make_info(dataset)
    begin_cache(cache, info)
    write_missing(cache, dataset, info)
    entry = dataset.manifest.shards[0]
    with CacheShardWriter(cache, entry) as writer:
        for index in range(entry.num_samples):
            positions = info.positions.select(dataset[index])[1:]
            writer.write(dataset[index].key, positions, make_signal(info.signal, dataset[index].key, positions))
    (cache / WORK_FOLDER / f"{entry.name}.json").unlink()
    with pytest.raises(DataError, match=r"sample 0 has other positions than the data under the policy all"):
        complete_cache(cache, dataset)


def run_job(dataset: PackedDataset, cache: Path, *kill: object) -> subprocess.Popen:
    command = [sys.executable, str(CACHE_JOB), str(dataset.folder), str(cache), *map(str, kill)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen(command, text=True, **pipes)
    assert job.stdout.readline() == "ready\n", job.stderr.read()
    return job


KILLS = [
    ("pipeline.data.shard_io:publish", 1, None),  # before teacher.json
    ("pipeline.data.shard_io:OpenShard._put", 2, 0),  # in the middle of the first shard
    ("pipeline.data.shard_io:OpenShard._put", 9, 2),  # of the third
    ("pipeline.data.shard_io:OpenShard.publish", 2, 1),  # before the rename of the second tar
    ("pipeline.data.shard_io:publish", 4, 0),  # between the first tar and its index
    ("pipeline.teacher.cache_writer:seal", 1, 7),  # before run.json
    ("pipeline.teacher.cache_writer:listing_mark", 1, 7),  # between shards.json and the mark
    ("shutil:rmtree", 1, 7),  # after the mark
]


@pytest.mark.slow
@pytest.mark.parametrize(("function", "number", "num_complete"), KILLS)
def test_killed_at_a_named_instant(
    dataset: PackedDataset, tmp_path: Path, whole: dict[str, bytes], function: str, number: int, num_complete: int
) -> None:
    cache = tmp_path / "cache"
    with run_job(dataset, cache, function, number) as job:
        job.stdin.close()
        assert job.wait(60) == -signal.SIGKILL, job.stderr.read()
    if num_complete is not None:
        left = TeacherCache(cache, dataset).missing
        assert left == names(dataset.manifest.shards)[num_complete:]
    with pytest.raises(DataError):  # not finished, or with what only a running job needs
        verify_cache(cache, dataset)
    with run_job(dataset, cache) as job:
        out, error = job.communicate(timeout=60)
    assert json.loads(out) == {"written": list(range(num_complete or 0, 7)), "finished": True}, error
    assert content(cache) == whole
    verify_cache(cache, dataset)


@pytest.mark.slow
def test_processes_share_the_work_without_doing_any_twice(
    dataset: PackedDataset, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Whoever ends last finds all shards complete, so one of them finishes the cache."""
    jobs = [run_job(dataset, tmp_path / "cache") for _ in range(3)]
    for job in jobs:  # all at once, and all ask for the first shard first
        job.stdin.write("\n")
        job.stdin.flush()
    results = []
    for job in jobs:
        with job:
            out, error = job.communicate(timeout=60)
        assert job.returncode == 0, error
        results.append(json.loads(out))
    assert sorted(number for result in results for number in result["written"]) == list(range(7))
    assert sum(bool(result["written"]) for result in results) > 1 and any(result["finished"] for result in results)
    assert content(tmp_path / "cache") == whole
