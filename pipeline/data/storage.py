"""Where a data folder's bytes come from: a local folder, or any place that fsspec reads, through a local cache."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np

from pipeline.data.shard_cache import ShardCache, default_cache
from pipeline.data.shard_format import (
    MANIFEST_DIGEST_NAME,
    MANIFEST_NAME,
    DataError,
    Manifest,
    ShardEntry,
    load_index,
    parse_index,
)

MAX_OPEN_SHARDS = 128


class LocalFolder:
    """A folder on a file system. Files stay open, the least recently used are closed; threads read side by side."""

    remedy = "restore the file or prepare the data again"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._indexes = {entry.name: load_index(folder, entry) for entry in self.manifest.shards}
        self._files: OrderedDict[str, _Descriptor] = OrderedDict()  # by shard, least recently used first
        self._lock = threading.Lock()

    def index(self, entry: ShardEntry) -> np.ndarray:
        return self._indexes[entry.name]

    def name(self, entry: ShardEntry) -> str:
        """The tar's name in errors."""
        return str(self.folder / entry.tar_name)

    def read(self, entry: ShardEntry, offset: int, length: int) -> bytes:
        """So many bytes of the tar; fewer where it ends.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return self._open(entry).read(offset, length)
        except OSError as error:
            raise DataError(f"{self.name(entry)} cannot be read: {error.strerror}") from error

    def _open(self, entry: ShardEntry) -> "_Descriptor":
        with self._lock:
            if entry.name not in self._files:
                self._files[entry.name] = _Descriptor(self.name(entry))
                if len(self._files) > MAX_OPEN_SHARDS:
                    self._files.popitem(last=False)
            self._files.move_to_end(entry.name)
            return self._files[entry.name]

    def fetch(self, entry: ShardEntry) -> None:
        """Nothing: it is here."""

    def close(self) -> None:
        """Closes the files; reading again opens them again."""
        with self._lock:
            self._files.clear()


class _Descriptor:
    """An open file that closes when nobody has it any more, so not under a thread that is reading."""

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._number, length, offset)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone when the interpreter ends
        if hasattr(self, "_number"):  # not when opening failed
            close(self._number)


class RemoteFolder:
    """A folder behind a URL. Tars and indexes are fetched whole into the cache when they are first needed.

    Raises:
        DataError: on opening: the URL cannot be read, or the manifest is missing or altered.
    """

    remedy = "delete the copy to have it fetched again"

    def __init__(self, url: str, cache: ShardCache) -> None:
        self.url, self._cache = url.rstrip("/"), cache
        try:
            self._files, self._root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError, OSError) as error:
            raise DataError(f"{url} cannot be opened: {_one_line(error)}") from error
        raw, mark = self._download(MANIFEST_NAME), self._download(MANIFEST_DIGEST_NAME)
        self.manifest = Manifest.parse(raw, mark, f"{self.url}/{MANIFEST_NAME}")
        self._indexes: dict[str, np.ndarray] = {}

    def _download(self, name: str) -> bytes:
        try:
            return self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError as error:
            raise DataError(
                f"data folder {self.url} does not exist or is not finished: it has no {name} ({_one_line(error)})"
            ) from error
        except Exception as error:  # every backend raises its own types, which are not ours to import
            raise DataError(f"{self.url}/{name} cannot be read: {_one_line(error)}") from error

    def _download_to(self, name: str, target: Path) -> None:
        try:
            self._files.get_file(f"{self._root}/{name}", str(target))
        except Exception as error:  # as above
            raise DataError(f"{self.url}/{name} cannot be fetched: {_one_line(error)}") from error

    def _open(self, name: str, size: int, sha256: str) -> int:
        where = f"{self.url}/{name}"
        return self._cache.open(name, size, sha256, lambda target: self._download_to(name, target), where)

    def index(self, entry: ShardEntry) -> np.ndarray:
        if entry.name not in self._indexes:
            descriptor = self._open(entry.index_name, entry.index_size, entry.index_sha256)
            with open(descriptor, "rb") as file:
                self._indexes[entry.name] = parse_index(file.read(), entry, f"{self.url}/{entry.index_name}")
        return self._indexes[entry.name]

    def name(self, entry: ShardEntry) -> str:
        """The tar's name in errors: its URL and the copy that was read."""
        return f"{self.url}/{entry.tar_name} (copy: {self._cache.path(entry.tar_name, entry.sha256)})"

    def read(self, entry: ShardEntry, offset: int, length: int) -> bytes:
        """So many bytes of the tar, which is fetched first if need be.

        Raises:
            DataError: it cannot be fetched or read.
        """
        # Opened for each read: a file that the cache drops must not live on in open descriptors.
        descriptor = self._open(entry.tar_name, entry.size, entry.sha256)
        try:
            return os.pread(descriptor, length, offset)
        except OSError as error:
            raise DataError(f"{self.name(entry)} cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def fetch(self, entry: ShardEntry) -> None:
        """Has the tar in the cache.

        Raises:
            DataError: it cannot be fetched.
        """
        os.close(self._open(entry.tar_name, entry.size, entry.sha256))

    def close(self) -> None:
        """Nothing stays open."""


Storage = LocalFolder | RemoteFolder


def is_url(folder: str | Path) -> bool:
    return "://" in str(folder)


def open_storage(folder: str | Path, cache: Path | None, cache_bytes: int | None) -> Storage:
    """The folder, local or behind a URL; see PackedDataset."""
    if is_url(folder):
        return RemoteFolder(str(folder), ShardCache(cache or default_cache(), cache_bytes))
    return LocalFolder(Path(folder))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
