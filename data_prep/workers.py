"""Runs work units in processes, and keeps two runs out of one folder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from pipeline.data.shard_format import DataError

OrderedMap = Callable[..., Iterator[Any]]


@contextmanager
def worker_map(num_workers: int) -> Iterator[OrderedMap]:
    """A `map` that keeps the order and runs in `num_workers` processes, or in this one for 1.

    Raises:
        DataError: a worker process was killed.
    """
    if num_workers == 1:
        yield map
        return
    context = get_context("spawn")  # a forked child could inherit a lock that a library's thread holds
    pool = ProcessPoolExecutor(num_workers, context, initializer=_end_with_parent)
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise DataError(
            f"one of --num_workers {num_workers} processes was killed (out of memory?); "
            f"run again, with fewer workers, to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Makes a worker end when the run that started it was killed: it must not write beside the next run."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second run; the system lets go when the process ends, however it ends.

    Raises:
        DataError: another run holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"--output {folder} is being written by another run; wait for its end") from error
        yield
    finally:
        os.close(descriptor)
