"""Runs work units in processes of one machine or on MPI ranks of many."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

from pipeline.data.shard_format import DataError
from pipeline.errors import EXIT_INTERRUPTED
from pipeline.folder_claim import FolderClaim

OrderedMap = Callable[..., Iterator[Any]]
Result = TypeVar("Result")


def run_with_processes(main: Callable[[OrderedMap], Result], num_workers: int) -> Result:
    """Calls `main` with a `map` that keeps the order and runs in `num_workers` processes, or in this one for 1.

    Raises:
        DataError: a worker process was killed.
    """
    if num_workers == 1:
        return main(map)
    context = get_context("spawn")  # a forked child could inherit a lock that a library's thread holds
    try:
        return _run(main, ProcessPoolExecutor(num_workers, context, initializer=_end_with_parent))
    except BrokenProcessPool as error:
        raise DataError(
            f"one of --num_workers {num_workers} processes was killed (out of memory?); "
            f"run again, with fewer workers, to go on"
        ) from error


def run_with_mpi(main: Callable[[OrderedMap], Result]) -> Result | None:
    """Calls `main` on MPI rank 0 with a `map` that keeps the order and runs on the other ranks (on rank 0 itself where
    there is no other); returns None on those. A rank that dies ends them all: that is what mpiexec and srun do.

    Raises:
        DataError: there is no MPI here.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:
        raise DataError(f"--mpi: mpi4py or its MPI library cannot be loaded ({error})") from error
    try:
        with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
            return None if executor is None else _run(main, executor)
    except KeyboardInterrupt:
        MPI.COMM_WORLD.Abort(EXIT_INTERRUPTED)  # the other ranks may be waiting for this one


def watched(run: OrderedMap, claim: FolderClaim) -> OrderedMap:
    """`run` that ends with the claim's error, at the next result, when another run has taken the folder over."""

    def start(function: Callable[..., Any], *tasks: Iterable[Any]) -> Iterator[Any]:
        results = run(function, *tasks)  # at once: other processes begin

        def watch() -> Iterator[Any]:
            for result in results:
                claim.check()
                yield result

        return watch()

    return start


def _run(main: Callable[[OrderedMap], Result], executor: Executor) -> Result:
    try:
        return main(executor.map)
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Makes a worker end when the run that started it was killed, and leaves Ctrl-C to that run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
