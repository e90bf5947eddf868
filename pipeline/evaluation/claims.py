"""Claims and locks that keep evaluations in one folder apart."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.evaluation.writing import writes_to
from pipeline.folder_claim import FolderClaim, Lock, claimed_folder, take_lock


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
def claimed(output: Path, rank: int) -> Iterator[FolderClaim | None]:
    """While the block runs, no other process measures in `output` as this rank; rank 0 gets the claim.

    Rank 0 does not wait for another, so that only one evaluation runs there. The other ranks do: were they refused, two
    evaluations that start at once could end each other, and a process that outlived its launcher the next start.

    Raises:
        UserError: rank 0 of another evaluation is running, or `output` cannot be written.
    """
    with ExitStack() as stack:
        claim = None
        if rank == 0:
            claim = stack.enter_context(claimed_folder(output))
            make_folder(output)
        else:
            descriptor = stack.enter_context(_opened(output, make_folder(output) / f"rank-{rank}.lock"))
            if take_lock(descriptor) is Lock.TAKEN:
                print(
                    f"rank {rank} waits for another process that is rank {rank} in {output}",
                    file=sys.stderr,
                    flush=True,
                )
                take_lock(descriptor, wait=True)
        yield claim


@contextmanager
def settling(output: Path) -> Iterator[None]:
    """While the block runs, no other process is settling what the evaluation in `output` is of.

    Raises:
        UserError: `output` cannot be written.
    """
    with _opened(output, output / ".lock") as descriptor:
        take_lock(descriptor, wait=True)
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
