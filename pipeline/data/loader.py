"""Random access to a packed data folder, and the order in which training reads it. numpy only, no torch.

Nothing here has a state that must be saved: the order is a pure function of (seed, epoch, data fingerprint)
and the position in it is one integer, the number of samples that training has consumed over all ranks. Any
number of ranks therefore agrees on who reads what by arithmetic alone: with `b` samples a step, global sample
`g` belongs to step `g // b`, whoever reads it.
"""

import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.data.shard_format import (
    DataError,
    Manifest,
    PackedSample,
    decode_sample,
    load_index,
    sample_digest,
)

MAX_OPEN_SHARDS = 128


class PackedDataset:
    """A finished data folder as a sequence of samples, in the manifest's order.

    Opening reads the manifest and the indexes only (milliseconds); every sample is checked against its digest
    each time it is read.

    Args:
        folder: written by launchers/prepare.py.

    Raises:
        DataError: the folder is missing, unfinished or altered, a file is missing or has another size, or an
        index
            does not match the manifest.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self._indexes = [load_index(self.folder, entry) for entry in self.manifest.shards]
        counts = [entry.num_samples for entry in self.manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, least recently used first
        self._files_lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.manifest.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of manifest.json: names the data, whatever folder it lies in."""
        return self.manifest.sha256

    def __getitem__(self, index: int) -> PackedSample:
        """Reads sample `index`.

        Raises:
            IndexError: index outside [0, len).
            DataError: the sample's bytes are not those that were written.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.folder}, which holds {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = index - int(self._starts[shard])
        row = self._indexes[shard][number]
        path = self.folder / self.manifest.shards[shard].tar_name
        raw = self._read(shard, path, int(row["offset"]), int(row["length"]))
        where = f"{path}: sample {number} of the shard (number {index} of the folder)"
        if not np.array_equal(sample_digest(raw), row["digest"]):
            raise DataError(f"{where} is damaged: its bytes do not match the index; restore the file or prepare again")
        return decode_sample(raw, where)

    def _read(self, shard: int, path: Path, offset: int, length: int) -> bytes:
        try:
            with self._files_lock:  # held while reading, so that no other thread closes the descriptor meanwhile
                file = self._open(shard, path)
                return os.pread(file, length, offset)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    def _open(self, shard: int, path: Path) -> int:
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files.move_to_end(shard)
        return self._files[shard]

    def close(self) -> None:
        """Closes the cached files; reading again opens them again."""
        with self._files_lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # a folder that was refused never got that far
            self.close()


def sample_order(seed: int, epoch: int, num_samples: int, fingerprint: str) -> np.ndarray:
    """The permutation of one epoch, int64 [num_samples].

    A pure function of its arguments that stays the same across numpy versions: it sorts the raw output of the
    Philox bit generator (whose stream numpy guarantees, unlike that of Generator.permutation), keyed by a
    hash of (seed, epoch, fingerprint); the stable sort settles ties.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{fingerprint}".encode()).digest()
    keys = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(num_samples)
    return np.argsort(keys, kind="stable").astype(np.int64)


class SampleStream:
    """The endless sequence of global samples that training consumes, epoch after epoch.

    Args:
        dataset: what to read; must hold at least one sample.
        seed: together with the data's fingerprint it decides the order.
    """

    def __init__(self, dataset: PackedDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        # Two, because a batch may span the end of an epoch.
        self._order = lru_cache(maxsize=2)(self._compute_order)

    def _compute_order(self, epoch: int) -> np.ndarray:
        return sample_order(self.seed, epoch, len(self.dataset), self.dataset.fingerprint)

    def dataset_index(self, global_index: int) -> int:
        """Which sample of the dataset the `global_index`-th consumed sample (0-based) is."""
        epoch, slot = divmod(global_index, len(self.dataset))
        return int(self._order(epoch)[slot])

    def read(self, position: int) -> tuple[int, PackedSample]:
        """Its global index (= position) and the sample to consume after `position` others."""
        return position, self.dataset[self.dataset_index(position)]

    def prefetch(self, positions: Iterable[int], depth: int = 4) -> Iterator[tuple[int, PackedSample]]:
        """`read` of each position in turn; a background thread keeps up to `depth` samples ahead.

        Raises:
            DataError: at the sample that cannot be read, in the consumer.
        """
        remaining = iter(positions)
        with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
            pending = deque(reader.submit(self.read, p) for p in islice(remaining, depth))
            while pending:
                sample = pending.popleft().result()
                pending.extend(reader.submit(self.read, p) for p in islice(remaining, 1))
                yield sample
