"""Reads a teacher cache beside its data: the signal of any sample at any of its stored positions. No torch."""

from pathlib import Path

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError
from pipeline.data.storage import is_url
from pipeline.teacher.cache_format import REMEDY, TeacherInfo
from pipeline.teacher.cache_listing import Listing, check_listing, is_complete, load_cache_index
from pipeline.teacher.cache_samples import check_digest, decode_cached_sample, read_bytes
from pipeline.teacher.signals import Signal, signal_from_members


class TeacherCache:
    """The signals of a data folder's samples; every sample is checked against its digest each time it is read.

    A cache that is not finished is read as far as it has come. Threads may share it.

    Args:
        folder: written by launchers/cache_teacher.py, on a file system.
        dataset: the data.

    Raises:
        DataError: the folder is no teacher cache, was altered, or is of other data.
    """

    def __init__(self, folder: str | Path, dataset: PackedDataset) -> None:
        if is_url(folder):
            raise DataError(f"--teacher_cache {folder}: a teacher cache is read from a file system; copy it there")
        self.folder = Path(folder)
        self.info = TeacherInfo.load(self.folder)
        if self.info.data_sha256 != dataset.fingerprint:
            raise DataError(
                f"teacher cache {folder} is of data with fingerprint {self.info.data_sha256}, "
                f"but {dataset.folder} has {dataset.fingerprint}; name the cache that was made of it"
            )
        self._dataset, self._digest_key = dataset, self.info.digest_key
        self._shards = dataset.manifest.shards
        self._starts = np.cumsum([0] + [entry.num_samples for entry in self._shards], dtype=np.int64)
        self._indexes: dict[int, np.ndarray] = {}
        self._listing = Listing.load(self.folder)
        if self._listing is not None:
            check_listing(self.folder, self._listing, self.info, dataset.manifest)

    def has(self, shard_number: int) -> bool:
        """Whether the data's shard of that number is in the cache by now."""
        is_there = is_complete(self.folder, self._shards[shard_number].name)
        if not is_there:
            self._indexes.pop(shard_number, None)  # it was deleted, and may come again
        return is_there

    def has_sample(self, index: int) -> bool:
        """Whether the signal of the dataset's sample `index` is in the cache by now."""
        return self.has(self._dataset.shard_of(index))

    @property
    def missing(self) -> list[str]:
        """Names of the data's shards that are not in the cache by now."""
        return [entry.name for number, entry in enumerate(self._shards) if not self.has(number)]

    def covers(self, budget: int) -> bool:
        """Whether all that is supervised with a lossless budget of `budget` has a signal, where its shard is there."""
        return self.info.positions.covers(budget)

    def read(self, index: int, key: str, positions: np.ndarray) -> Signal:
        """The signal of the dataset's sample `index`, whose key is `key`, at `positions`, in their order.

        Args:
            index: in [0, len(dataset)).
            key: of that sample in the data, with which the cache's is compared.
            positions: integers [m], counted within the sample.

        Raises:
            DataError: names sample and shard: it is missing or damaged, of another sample, or a position has no
                signal.
        """
        stored, signal, where = self._read_sample(index, key)
        rows = np.searchsorted(stored, positions)
        found = np.zeros(len(positions), bool)
        inside = rows < len(stored)
        found[inside] = stored[rows[inside]] == positions[inside]
        if not found.all():
            raise DataError(
                f"{where} has no signal at position {positions[~found][0]}; the cache holds the positions "
                f"{self.info.positions}"
            )
        # Positions without a gap and in order are all of them, which need no copy.
        return signal if np.array_equal(rows, np.arange(len(stored))) else signal.select(rows)

    def _read_sample(self, index: int, key: str) -> tuple[np.ndarray, Signal, str]:
        """Positions, signal and name of a sample."""
        if not 0 <= index < len(self._dataset):
            raise IndexError(f"sample {index} of {self.folder}, whose data holds {len(self._dataset)}")
        shard = self._dataset.shard_of(index)
        number, path = index - int(self._starts[shard]), self.folder / self._shards[shard].tar_name
        where = f"{path}: sample {number} of the shard (number {index} of the data)"
        row = self._index(shard)[number]
        raw = read_bytes(path, row, self.info)
        check_digest(raw, row, self._digest_key, where)
        found, positions, members = decode_cached_sample(raw, self.info, int(row["tokens"]), where)
        if found != key:
            raise DataError(f"{where} holds the signal of the sample {found}, the data has {key} there; make the cache "
                            f"again")  # fmt: skip
        try:
            return positions, signal_from_members(self.info.signal, members, len(positions)), where
        except ValueError as error:
            raise DataError(f"{where} is no {self.info.signal.kind} signal ({error})") from error

    def _index(self, shard: int) -> np.ndarray:
        index = self._indexes.get(shard)
        if index is None:
            entry = self._shards[shard]
            listed = None if self._listing is None else self._listing.shards[shard]
            index = load_cache_index(self.folder, entry.name, listed, entry.num_samples)
            most, seq_len = int(index["tokens"].max(initial=0)), self._dataset.manifest.seq_len
            if most > seq_len:
                raise DataError(f"{self.folder / entry.index_name} lists a sample of {most} positions, the data's have "
                                f"{seq_len} tokens; {REMEDY}")  # fmt: skip
            self._indexes[shard] = index
        return index
