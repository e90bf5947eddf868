"""Random access to a packed data folder, on disk or remote. numpy only, no torch."""

from pathlib import Path

import numpy as np

from pipeline.data.shard_format import DataError, PackedSample, decode_sample, sample_digest
from pipeline.data.storage import is_url, open_storage


class PackedDataset:
    """A finished data folder as a sequence of samples, in the manifest's order.

    Opening reads the manifest, and the indexes of a local folder (milliseconds); every sample is checked against its
    digest each time it is read. Threads may share it.

    Args:
        folder: written by launchers/prepare.py; a local path or any URL that fsspec reads (s3://, gs://, http://, ..).
        cache: local folder for the shards of a URL, shared by the processes of a machine. Default: $AHN_DATA_CACHE,
            or ~/.cache/ahn-pipeline/shards.
        cache_bytes: bound on that folder; None: no bound.

    Raises:
        DataError: the folder is missing, unfinished or altered, or cannot be reached; of a local one also when a file
            is missing or has another size, or an index does not match the manifest.
    """

    def __init__(self, folder: str | Path, cache: Path | None = None, cache_bytes: int | None = None) -> None:
        self.folder = folder
        self.is_remote = is_url(folder)
        self._storage = open_storage(folder, cache, cache_bytes)
        self.manifest = self._storage.manifest
        counts = [entry.num_samples for entry in self.manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_tokens(self) -> int:
        return sum(entry.num_tokens for entry in self.manifest.shards)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of manifest.json: names the data, whatever folder it lies in."""
        return self.manifest.sha256

    def shard_of(self, index: int) -> int:
        """Which of the manifest's shards holds sample `index`."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def fetch_shard(self, shard: int) -> None:
        """Has the shard at hand, so that reading a sample of it does not wait; nothing to do for a local folder.

        Raises:
            DataError: it cannot be fetched.
        """
        self._storage.fetch(self.manifest.shards[shard])

    def __getitem__(self, index: int) -> PackedSample:
        """Reads sample `index`. Its arrays are read-only.

        Raises:
            IndexError: index outside [0, len).
            DataError: names shard and sample: it cannot be read, or its bytes are not those that were written.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.folder}, which holds {len(self)}")
        shard = self.shard_of(index)
        entry, number = self.manifest.shards[shard], index - int(self._starts[shard])
        row = self._storage.index(entry)[number]
        raw = self._storage.read(entry, int(row["offset"]), int(row["length"]))
        where = f"{self._storage.name(entry)}: sample {number} of the shard (number {index} of the folder)"
        if sample_digest(raw).tobytes() != row["digest"].tobytes():
            raise DataError(f"{where} is damaged: its bytes do not match the index; {self._storage.remedy}")
        return decode_sample(raw, where)

    def close(self) -> None:
        """Closes the open files; reading again opens them again."""
        self._storage.close()
