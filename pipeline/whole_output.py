"""Files and folders that are absent or whole at every instant, whoever writes them, with modes as the umask says.

safetensors writes files that only their owner may read; others of a group could then use neither an adapter nor a
merged model. Standard library only.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to write to, which becomes `path` at the end; what fails or is killed leaves `path` alone.

    What a killed process has left beside it is removed by the next one. An empty folder at `path` is replaced.

    Raises:
        UserError: another process is writing it.
        OSError: `path` is there already, before anything is written; or it cannot be written.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None)):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with _unfinished(path) as folder:
        yield folder
        _give_usual_modes(folder)
        for file in [*folder.rglob("*"), folder]:
            _sync(file)
        os.replace(folder, path)
    _sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write a file to, which replaces `path` at the end; what fails or is killed leaves `path` alone.

    Raises:
        UserError: another process is writing it.
        OSError: it cannot be written.
    """
    with _unfinished(path) as folder:
        yield folder / path.name
        _give_usual_modes(folder)
        _sync(folder / path.name)
        os.replace(folder / path.name, path)
    _sync(path.parent)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, this process's alone, removed at the end."""
    folder, lock = path.with_name(f".{path.name}.unfinished"), path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _take(descriptor, lock, path)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)  # without locks, another writer may have removed it
    finally:
        os.close(descriptor)


def _take(descriptor: int, lock: Path, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(descriptor), lock.stat())  # not one that its owner has just removed
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    except OSError:
        return  # a file system without locks cannot tell two writers apart
    if not is_ours:
        raise UserError(f"{path}: another process is writing it; wait for that one, or choose another place")


def _give_usual_modes(folder: Path) -> None:
    """Gives every file in the folder the mode that a new one gets there."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
