"""A folder of files fetched from elsewhere, shared by all processes of a machine and bounded in size.

A file's name carries the sha256 that it was checked against when it was fetched, and appears only when it is whole. A
lock for each file makes processes that want the same one share a single download. The files that were not read for
the longest time make room for new ones.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.byte_counts import format_bytes
from pipeline.data.shard_format import DataError

CACHE_VARIABLE = "AHN_DATA_CACHE"
PARTIAL_SUFFIX, LOCK_SUFFIX = ".part", ".lock"
OWN_FILE = re.compile(rf"[0-9a-f]{{32}}-[A-Za-z0-9_-]+\.(tar|idx\.npy)({re.escape(PARTIAL_SUFFIX)})?")
FETCH_ATTEMPTS = 3
CHUNK_BYTES = 1 << 20


def default_cache() -> Path:
    """$AHN_DATA_CACHE, or ~/.cache/ahn-pipeline/shards."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "ahn-pipeline" / "shards")


class ShardCache:
    """Files by content.

    Args:
        folder: made when it is missing.
        max_bytes: bound on the files together; None: no bound. Downloads of several processes at the same time may
            pass it by one file each.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def path(self, name: str, sha256: str) -> Path:
        """Where the file lies once it is fetched."""
        return self.folder / f"{sha256[:32]}-{name}"

    def open(self, name: str, size: int, sha256: str, fetch: Callable[[Path], None], where: str) -> int:
        """A descriptor of the file, for the caller to close; fetched first unless it is there with the right size.

        Args:
            fetch: writes the file to a path; may be called again after an OSError or wrong content.
            where: names the file's origin in errors.

        Raises:
            DataError: it does not fit, cannot be fetched or stored, or what was fetched is not what it should be.
        """
        if self.max_bytes is not None and size > self.max_bytes:
            raise DataError(
                f"--data_cache_bytes {self.max_bytes} is less than the {format_bytes(size)} of {where} alone"
            )
        path = self.path(name, sha256)
        try:
            descriptor = _open_whole(path, size)
            if descriptor is not None:
                return descriptor
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                descriptor = _open_whole(path, size)  # another process may have fetched it meanwhile
                if descriptor is None:
                    self._make_room(size)
                    _fetch_checked(path, size, sha256, fetch, where)
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                return descriptor
        except OSError as error:
            raise DataError(f"--data_cache {self.folder} cannot take {where}: {error.strerror or error}") from error

    def _make_room(self, size: int) -> None:
        """Removes what was not read for the longest time until `size` more bytes fit."""
        if self.max_bytes is None:
            return
        files = []
        for file in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                if OWN_FILE.fullmatch(file.name):  # nothing else in the folder is ours to remove
                    status = file.stat()
                    files.append((status.st_mtime_ns, status.st_size, Path(file.path)))
        excess = sum(bytes_ for _, bytes_, _ in files) + size - self.max_bytes
        for _, bytes_, path in sorted(files):
            if excess <= 0:
                return
            with _locked(path.with_name(path.name.removesuffix(PARTIAL_SUFFIX)), wait=False) as free:
                if free:  # nobody is writing it; who has it open goes on reading it
                    path.unlink(missing_ok=True)
                    excess -= bytes_


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the file's lock among all processes and threads; False (only without `wait`): somebody else has it."""
    descriptor = os.open(path.with_name(path.name + LOCK_SUFFIX), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _open_whole(path: Path, size: int) -> int | None:
    """A descriptor of the file, marked as just used, or None if it is missing or has another size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    with contextlib.suppress(PermissionError):  # another user's cache: its order of use is theirs to keep
        os.utime(descriptor)
    return descriptor


def _fetch_checked(path: Path, size: int, sha256: str, fetch: Callable[[Path], None], where: str) -> None:
    """Fetches to a temporary name, checks, syncs, renames; tries again after a failure that may pass."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            fetch(partial)
            _check(partial, size, sha256, where)
            break
        except DataError:
            partial.unlink(missing_ok=True)
            if attempt == FETCH_ATTEMPTS:
                raise
        time.sleep(0.5 * attempt)
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check(path: Path, size: int, sha256: str, where: str) -> None:
    digest, found = hashlib.sha256(), 0
    with open(path, "r+b") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            found += len(chunk)
        os.fsync(file.fileno())
    if found != size:
        raise DataError(f"{where} came with {found} bytes, the manifest says {size}")
    if digest.hexdigest() != sha256:
        raise DataError(f"{where} does not match its sha256 in the manifest")
