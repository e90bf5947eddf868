"""Ends a run that hangs, and leaves where: one rank that is stuck or stopped holds all others in an exchange.

Every rank watches itself, since all hang together: when a step takes longer than --train.step_timeout_s, it writes
the stacks of its threads to RUN/stacks/rank-R.txt and leaves with EXIT_HUNG. The stacks are written by a timer that
needs no interpreter, so also where a thread never lets it go; a rank whose file is empty does not run at all.
"""

import faulthandler
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from pipeline.stop_signals import leave
from pipeline.training.mpiexec import end_mpiexec

EXIT_HUNG = 86
GRACE_S = 3.0  # for the stacks of other ranks, whose time is up within moments: the launcher ends them when one leaves


class StepWatchdog:
    """Expects `beat` at least every `timeout_s` seconds from its first call on.

    Args:
        folder: for the stacks.
    """

    def __init__(self, folder: Path, rank: int, timeout_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._rank, self._timeout = folder / f"rank-{rank}.txt", rank, timeout_s
        self._stacks = self._path.open("a")
        self._closed = threading.Event()
        self._deadline, self._step = float("inf"), 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int) -> None:
        """This rank is alive and begins with `step`."""
        faulthandler.dump_traceback_later(self._timeout, file=self._stacks)
        self._deadline, self._step = time.monotonic() + self._timeout, step

    def close(self) -> None:
        """Ends the watch."""
        faulthandler.cancel_dump_traceback_later()
        self._closed.set()
        self._thread.join()
        self._stacks.close()
        with suppress(FileNotFoundError):  # somebody has tidied up
            if self._path.stat().st_size == 0:
                self._path.unlink()

    def _watch(self) -> None:
        pause = min(1.0, self._timeout / 4)
        before = time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            if now - before > pause + GRACE_S:  # this process was stopped, and now goes on
                self._deadline += now - before
            elif now > self._deadline + GRACE_S / 2:  # the timer has written
                self._leave()
            before = now

    def _leave(self) -> None:
        print(
            f"error (rank {self._rank}): step {self._step} is not done after --train.step_timeout_s "
            f"{self._timeout:g}: some rank hangs or is out of reach; where each was is in {self._path.parent} (a "
            f"rank whose file there is empty does not run at all)",
            file=sys.stderr,
            flush=True,
        )
        self._closed.wait(GRACE_S)
        try:
            end_mpiexec()
        finally:  # other ranks do the same at this time, so that all it looks at may be gone
            leave(EXIT_HUNG)
