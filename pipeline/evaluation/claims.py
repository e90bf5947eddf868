"""Locks that keep evaluations in one folder apart; the kernel takes them from a process that ends, however it ends."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.writing import writes_to


def make_folder(output: Path) -> Path:
    """Makes `output`/records, where there is none, and returns it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        (folder := output / "records").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; name a folder that can be written") from error
    return folder


@contextmanager
def claimed(output: Path, rank: int) -> Iterator[None]:
    """While the block runs, no other process measures in `output` as this rank.

    Rank 0 does not wait for another, so that only one evaluation runs there. The other ranks do: were they refused, two
    evaluations that start at once could end each other, and a process that outlived its launcher the next start.

    Raises:
        UserError: rank 0 of another evaluation is running, or `output` cannot be written.
    """
    with _opened(output, make_folder(output) / f"rank-{rank}.lock") as descriptor:
        if not _lock(descriptor, wait=False):
            if rank == 0:
                raise UserError(
                    f"--output {output}: another evaluation is running there; wait for it, or choose another folder"
                )
            print(f"rank {rank} waits for another process that is rank {rank} in {output}", file=sys.stderr, flush=True)
            _lock(descriptor, wait=True)
        yield


@contextmanager
def settling(output: Path) -> Iterator[None]:
    """While the block runs, no other process is settling what the evaluation in `output` is of.

    Raises:
        UserError: `output` cannot be written.
    """
    with _opened(output, output / ".lock") as descriptor:
        _lock(descriptor, wait=True)
        yield


@contextmanager
def _opened(output: Path, path: Path) -> Iterator[int]:
    """A descriptor of the file, which gives back its lock in the end."""
    with writes_to(output):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Takes the file's lock; False (only without `wait`): another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        # Some shared file systems have no locks. There two evaluations of other settings that start at the same instant
        # are not told apart; each file is still written whole.
        return True
    return True
