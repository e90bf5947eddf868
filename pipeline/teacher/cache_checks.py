"""What must hold in a teacher cache, one check a function: the folder's frame, a shard's index, a sample."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.sealed_json import load_sealed
from pipeline.data.shard_format import RUN_INFO_NAME, DataError, ShardEntry
from pipeline.data.shard_io import TEMPORARY_SUFFIX
from pipeline.teacher.cache_format import TEACHER_NAME, WORK_FOLDER, TeacherInfo
from pipeline.teacher.cache_later_masses import LATER_MASSES_DIGEST_NAME, LATER_MASSES_NAME
from pipeline.teacher.cache_listing import (
    LISTING_DIGEST_NAME,
    LISTING_NAME,
    Listing,
    check_listing,
    is_complete,
    load_cache_index,
)
from pipeline.teacher.cache_samples import check_digest, decode_cached_sample, is_framed_as_written, read_bytes
from pipeline.teacher.signals import HiddenSignal, Signal, signal_from_members

FRAME = {TEACHER_NAME, LISTING_NAME, LISTING_DIGEST_NAME, RUN_INFO_NAME}
LATER_MASSES = {LATER_MASSES_NAME, LATER_MASSES_DIGEST_NAME}
INDEX_SUFFIX = ".idx.npy"
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class CachedShard:
    """One complete shard: its name, what the listing says of it, and the number of its first sample in the data."""

    name: str
    listed: ShardEntry | None
    first: int | None


@dataclass(frozen=True)
class OpenedCache:
    """A cache whose frame is all well. `num_due`: shards that it should have, if that is known."""

    folder: Path
    info: TeacherInfo
    is_finished: bool
    shards: list[CachedShard]
    num_due: int | None

    @cached_property
    def digest_key(self) -> bytes:
        """Key of the samples' digests."""
        return self.info.digest_key


def open_cache(folder: Path, dataset: PackedDataset | None) -> OpenedCache:
    """Checks all but the shards: teacher.json, the listing and its mark, which files there are, run.json.

    Args:
        folder: a cache, finished or not.
        dataset: its data, if it is to be compared.

    Raises:
        DataError: the first fault found.
    """
    info, listing = TeacherInfo.load(folder), Listing.load(folder)
    if dataset is not None:
        _check_data(folder, info, dataset)
    if listing is not None:
        check_listing(folder, listing, info, None if dataset is None else dataset.manifest)
    shards = _shards(folder, listing, dataset)
    frame = FRAME | LATER_MASSES if info.later_mass_samples else FRAME
    _check_files(folder, frame, listing, None if dataset is None else [entry.name for entry in dataset.manifest.shards])
    num_due = len(dataset.manifest.shards) if dataset is not None else None
    return OpenedCache(folder, info, listing is not None, shards, num_due)


def _check_data(folder: Path, info: TeacherInfo, dataset: PackedDataset) -> None:
    """Raises DataError unless the data and its tokenizer are those that teacher.json names."""
    pairs = {
        "data": (info.data_sha256, dataset.fingerprint),
        "tokenizer": (info.tokenizer_sha256, dataset.manifest.tokenizer_sha256),
    }
    for what, (found, given) in pairs.items():
        if found != given:
            raise DataError(
                f"{folder / TEACHER_NAME} says {what} {found}, --data {dataset.folder} has {given}; "
                f"name the data that the cache was made of"
            )


def _shards(folder: Path, listing: Listing | None, dataset: PackedDataset | None) -> list[CachedShard]:
    """The shards that are there, in the data's order, or by name where neither listing nor data says an order."""
    listed = {} if listing is None else {entry.name: entry for entry in listing.shards}
    if dataset is not None:
        due = [entry.name for entry in dataset.manifest.shards]
        firsts = np.cumsum([0] + [entry.num_samples for entry in dataset.manifest.shards]).tolist()
    else:
        due = list(listed) or sorted(path.name.removesuffix(INDEX_SUFFIX) for path in folder.glob(f"*{INDEX_SUFFIX}"))
        firsts = [None] * len(due)
    placed = [CachedShard(name, listed.get(name), first) for name, first in zip(due, firsts, strict=False)]
    return [shard for shard in placed if shard.listed is not None or is_complete(folder, shard.name)]


def _check_files(folder: Path, frame: set[str], listing: Listing | None, due: list[str] | None) -> None:
    """Raises DataError for a file that is missing or should not be there, and for a damaged run.json."""
    present = {path.name for path in folder.iterdir()}
    if listing is not None:
        expected = frame | {name for entry in listing.shards for name in (entry.tar_name, entry.index_name)}
        for name in sorted(expected - present):
            raise DataError(f"{folder / name} is missing")
        odd = present - expected
    else:
        working = {name for name in present if name == WORK_FOLDER or name.endswith(TEMPORARY_SUFFIX)}
        stems = {name.removesuffix(INDEX_SUFFIX).removesuffix(".tar"): name for name in present - frame - working}
        files = {f"{stem}{suffix}" for stem in (stems if due is None else due) for suffix in (".tar", INDEX_SUFFIX)}
        odd = present - frame - working - files
    for name in sorted(odd):
        raise DataError(f"{folder / name} is not a file of this cache; delete it if nobody is writing there")
    if RUN_INFO_NAME in present:
        load_sealed(folder / RUN_INFO_NAME)


def load_checked_index(cache: OpenedCache, shard: CachedShard, dataset: PackedDataset | None) -> np.ndarray:
    """The shard's index, INDEX_DTYPE [num_samples], as long as the listing and the data say.

    Raises:
        DataError: names the file that is missing or does not fit.
    """
    path = cache.folder / f"{shard.name}{INDEX_SUFFIX}"
    due = None if shard.listed is None else shard.listed.num_samples
    if dataset is not None:
        due = {entry.name: entry.num_samples for entry in dataset.manifest.shards}[shard.name]
    index = load_cache_index(cache.folder, shard.name, shard.listed, due)
    tar = cache.folder / f"{shard.name}.tar"
    found = {
        "samples": len(index),
        "positions": int(index["tokens"].sum()),
        "bytes in the tar": tar.stat().st_size,
        "bytes in the index": path.stat().st_size,
    }
    if shard.listed is not None:
        entry = shard.listed
        says = (entry.num_samples, entry.num_tokens, entry.size, entry.index_size)
        for (what, number), listed in zip(found.items(), says, strict=True):
            if number != listed:
                raise DataError(f"{path}: {number} {what}, {LISTING_NAME} says {listed}")
    return index


def read_checked_sample(
    cache: OpenedCache, shard: CachedShard, number: int, row: np.void, dataset: PackedDataset | None
) -> tuple[bytes, str]:
    """Sample `number` of the shard: its bytes in the tar and its key.

    Raises:
        DataError: it is damaged, contradicts itself, its index, its settings or the data, or is not written as the
            format says.
    """
    path = cache.folder / f"{shard.name}.tar"
    where = f"{path}: sample {number}"
    raw = read_bytes(path, row, cache.info)
    check_digest(raw, row, cache.digest_key, where)
    key, positions, members = decode_cached_sample(raw, cache.info, int(row["tokens"]), where)
    try:
        signal = signal_from_members(cache.info.signal, members, len(positions))
    except ValueError as error:
        raise DataError(f"{where} is no {cache.info.signal.kind} signal ({error})") from error
    _check_finite(signal, where)
    if not is_framed_as_written(raw):
        raise DataError(f"{where} holds the right arrays but not byte for byte as this format writes them")
    if dataset is not None:
        assert shard.first is not None, "with data every shard has its place"
        _check_positions(cache, dataset, shard.first + number, key, positions, where)
    return raw, key


def _check_finite(signal: Signal, where: str) -> None:
    if not isinstance(signal, HiddenSignal):
        return  # reading the others checks their distributions
    for start in range(0, len(signal.values), ROWS_AT_A_TIME):
        rows = np.arange(start, min(start + ROWS_AT_A_TIME, len(signal.values)))
        with np.errstate(over="ignore"):  # what overflows is not finite
            finite = np.isfinite(signal.select(rows).decode()).all()
        if not finite:
            raise DataError(f"{where} holds a hidden state that is not finite")


def _check_positions(
    cache: OpenedCache, dataset: PackedDataset, index: int, key: str, positions: np.ndarray, where: str
) -> None:
    """Raises DataError unless key and positions are those that the data and the policy give."""
    sample = dataset[index]
    if key != sample.key:
        raise DataError(f"{where} has key {key}, the data's sample {index} has {sample.key}")
    due = cache.info.positions.select(sample)
    if not np.array_equal(positions, due):
        odd = np.setxor1d(positions, due)[0]
        held = "holds" if odd in positions else "lacks"
        raise DataError(
            f"{where} {held} position {odd}; its {len(positions)} positions are not the {len(due)} that the data has "
            f"under the policy {cache.info.positions}"
        )
