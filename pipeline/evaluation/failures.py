"""Tells rank 0, which waits for the others, that one has failed: mpiexec and srun do not end it for an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNKNOWN = "its reason could not be written"


@contextmanager
def noted_failure(output: Path, rank: int) -> Iterator[None]:
    """If the block fails, `output`/records/rank-R.failed says why until that rank is started again; not of rank 0."""
    marker = _marker(output, rank)
    with suppress(OSError):
        marker.unlink()
    try:
        yield
    except Exception as error:
        if rank != 0:
            with suppress(OSError):  # what failed counts
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.write_text(" ".join(str(error).split())[:300], encoding="utf-8")
        raise


def find_failures(output: Path, num_ranks: int) -> dict[int, str]:
    """Why each failed, by rank; some may be of an earlier start, until that rank has come as far as its block.

    On a full disk a marker can be made and not filled: the empty file says that too.
    """
    markers = {rank: _marker(output, rank) for rank in range(num_ranks)}
    return {
        rank: marker.read_text(encoding="utf-8", errors="replace") or UNKNOWN
        for rank, marker in markers.items()
        if marker.is_file()
    }


def _marker(output: Path, rank: int) -> Path:
    return output / "records" / f"rank-{rank}.failed"
