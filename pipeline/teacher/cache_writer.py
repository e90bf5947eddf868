"""Writes a teacher cache shard by shard, in any order and by any number of processes, with the same bytes.

A process that dies leaves the shards that it finished; `.work/` keeps locks (cache_claims.py) and, of each shard, a
receipt with its digests (cache_receipts.py), so that finishing the cache does not read it all again.
"""

import shutil
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.sealed_json import seal
from pipeline.data.shard_format import RUN_INFO_NAME, DataError, Manifest, ShardEntry
from pipeline.data.shard_io import TEMPORARY_SUFFIX, OpenShard, write_file
from pipeline.teacher.cache_claims import claim, missing_shards
from pipeline.teacher.cache_format import TEACHER_NAME, WORK_FOLDER, TeacherInfo, check_same
from pipeline.teacher.cache_later_masses import are_written
from pipeline.teacher.cache_listing import (
    LISTING_DIGEST_NAME,
    LISTING_NAME,
    Listing,
    check_mirrors,
    listing_mark,
)
from pipeline.teacher.cache_receipts import describe_shard, write_receipt
from pipeline.teacher.cache_samples import encode_cached_sample
from pipeline.teacher.signals import Signal


def begin_cache(folder: Path, info: TeacherInfo) -> None:
    """Makes the folder with its teacher.json, or checks that it is there with the same settings.

    Raises:
        DataError: the folder holds another cache (every differing field is named) or anything else but one.
    """
    if folder.is_dir() and not (folder / TEACHER_NAME).is_file():
        foreign = sorted(p.name for p in folder.iterdir() if p.name != WORK_FOLDER and p.suffix != TEMPORARY_SUFFIX)
        if foreign and not (folder / TEACHER_NAME).is_file():  # else another process has begun it meanwhile
            raise DataError(f"{folder} holds {foreign[0]} and no {TEACHER_NAME}: not a teacher cache; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TEACHER_NAME).is_file():
        with claim(folder, TEACHER_NAME, wait=True):
            if not (folder / TEACHER_NAME).is_file():
                info.save(folder)
    check_same(TeacherInfo.load(folder), info, str(folder))


def reopen_cache(folder: Path, manifest: Manifest) -> None:
    """Takes the completion mark from a cache of which shards were deleted since: damaged ones, to have them again."""
    mark = folder / LISTING_DIGEST_NAME
    if mark.is_file() and missing_shards(folder, manifest):
        with claim(folder, LISTING_NAME, wait=True):
            if missing_shards(folder, manifest):  # nobody can have completed it in between
                mark.unlink(missing_ok=True)


class CacheShardWriter:
    """Writes the cache's shard for one shard of the data.

    Use as a context manager, under a claim of the shard: leaving it normally gives the files their names, leaving it
    by an error leaves nothing.

    Args:
        folder: a cache that was begun.
        entry: the data's shard.
    """

    def __init__(self, folder: Path, entry: ShardEntry) -> None:
        self._folder, self._entry, self._num_written = folder, entry, 0
        self._info = TeacherInfo.load(folder)

    def __enter__(self) -> "CacheShardWriter":
        for leftover in self._folder.glob(f"{self._entry.name}.*{TEMPORARY_SUFFIX}"):  # of a writer that was killed
            leftover.unlink(missing_ok=True)
        self._shard = OpenShard(self._folder, self._entry.name, "", self._info.digest_key)
        return self

    def write(self, key: str, positions: np.ndarray, signal: Signal) -> None:
        """Appends the next sample of the data's shard.

        Args:
            key: of the sample.
            positions: int32 [M], rising, counted within the sample; M may be 0.
            signal: of those M positions.
        """
        assert positions.dtype == np.int32, f"positions are {positions.dtype}"
        raw = encode_cached_sample(key, positions, signal.to_members(), self._info.compression)
        self._shard.append(raw, len(positions))
        self._num_written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._num_written == self._entry.num_samples, f"not all samples of {self._entry.name}"
                self._finish()
        finally:
            self._shard.abandon()  # removes what did not get its name

    def _finish(self) -> None:
        write_receipt(self._folder, self._info, self._shard.close())
        self._shard.publish()


def complete_cache(folder: Path, dataset: PackedDataset, run_facts: dict | None = None) -> bool:
    """Finishes the cache if all its shards are there, and the later masses that it is to have: run.json, shards.json,
    the mark; then removes `.work/`.

    Any process may call it, several at once where the file system has locks; what it writes does not depend on who
    does. On a finished cache it only removes what a killed run left.

    Args:
        folder: a cache that was begun.
        dataset: its data; of a shard without a receipt it is read.
        run_facts: what run.json says of this run: JSON types.

    Returns:
        Whether the cache is finished.

    Raises:
        DataError: a shard does not fit its index, this cache or the data.
    """
    if missing_shards(folder, dataset.manifest):
        return False
    if TeacherInfo.load(folder).later_mass_samples and not are_written(folder):
        return False
    if not (folder / LISTING_DIGEST_NAME).is_file():
        with claim(folder, LISTING_NAME, wait=True):
            if not (folder / LISTING_DIGEST_NAME).is_file():
                _write_listing(folder, dataset, run_facts or {})
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    return True


def _write_listing(folder: Path, dataset: PackedDataset, run_facts: dict) -> None:
    info, numbers = TeacherInfo.load(folder), range(len(dataset.manifest.shards))
    listing = Listing(info.digest_key.hex(), [describe_shard(folder, info, dataset, number) for number in numbers])
    check_mirrors(listing.shards, dataset.manifest, str(folder))
    write_file(folder / RUN_INFO_NAME, seal(run_facts))
    write_file(folder / LISTING_NAME, listing.to_bytes())
    write_file(folder / LISTING_DIGEST_NAME, listing_mark(listing.to_bytes()))
