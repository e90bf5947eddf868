"""Reads a teacher cache beside its data: the signal of any sample at any of its stored positions. No torch."""

from pathlib import Path

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.shard_format import DataError, sample_digest
from pipeline.data.storage import is_url
from pipeline.teacher.cache_format import REMEDY, TeacherInfo
from pipeline.teacher.cache_listing import Listing, check_listing, is_complete, load_cache_index
from pipeline.teacher.cache_samples import decode_cached_sample
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
        self._dataset = dataset
        self._shards = dataset.manifest.shards
        self._starts = np.cumsum([0] + [entry.num_samples for entry in self._shards], dtype=np.int64)
        self._indexes: dict[int, np.ndarray] = {}
        self._listing = Listing.load(self.folder)
        if self._listing is not None:
            check_listing(self.folder, self._listing, self.info, dataset.manifest)

    def has(self, shard_number: int) -> bool:
        """Whether the data's shard of that number is in the cache by now."""
        return shard_number in self._indexes or is_complete(self.folder, self._shards[shard_number].name)

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

    def read(self, index: int, positions: np.ndarray) -> Signal:
        """The signal of the dataset's sample `index` at `positions`, in their order.

        Args:
            index: in [0, len(dataset)).
            positions: integers [m], counted within the sample.

        Raises:
            DataError: names sample and shard: it is missing or damaged, or a position has no signal.
        """
        stored, signal, where = self._read_sample(index)
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

    def _read_sample(self, index: int) -> tuple[np.ndarray, Signal, str]:
        """Positions, signal and name of a sample."""
        if not 0 <= index < len(self._dataset):
            raise IndexError(f"sample {index} of {self.folder}, whose data holds {len(self._dataset)}")
        shard = self._dataset.shard_of(index)
        number, path = index - int(self._starts[shard]), self.folder / self._shards[shard].tar_name
        where = f"{path}: sample {number} of the shard (number {index} of the data)"
        row = self._index(shard)[number]
        raw = read_bytes(path, row)
        if sample_digest(raw).tobytes() != row["digest"].tobytes():
            raise DataError(f"{where} is damaged: its bytes do not match the index; {REMEDY}")
        _, positions, members = decode_cached_sample(raw, self.info, int(row["tokens"]), where)
        try:
            return positions, signal_from_members(self.info.signal, members, len(positions)), where
        except ValueError as error:
            raise DataError(f"{where} is no {self.info.signal.kind} signal ({error})") from error

    def _index(self, shard: int) -> np.ndarray:
        if shard not in self._indexes:
            entry = self._shards[shard]
            listed = None if self._listing is None else self._listing.shards[shard]
            index = load_cache_index(self.folder, entry.name, listed)
            if len(index) != entry.num_samples:
                raise DataError(f"{self.folder / entry.index_name} has {len(index)} samples, the data's shard "
                                f"{entry.num_samples}; {REMEDY}")  # fmt: skip
            self._indexes[shard] = index
        return self._indexes[shard]


def read_bytes(path: Path, row: np.void) -> bytes:
    """The bytes of the sample that `row` (INDEX_DTYPE) describes; fewer where the tar ends.

    Raises:
        DataError: they cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(int(row["offset"]))
            return file.read(int(row["length"]))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
