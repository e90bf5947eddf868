"""Files of an --output: each whole or absent, and one line where the system refuses to write them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import UserError


@contextmanager
def writes_to(output: Path) -> Iterator[None]:
    """Around writes into `output` alone: any error of the system is about them.

    Raises:
        UserError: the disk is full, or the folder read-only or gone.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(
            f"--output {output} cannot be written: {reason}; what is measured is kept: free disk space or make "
            f"the folder writable, and start again to go on"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that `path` is absent or whole at every instant, and on disk on return.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    scratch = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
