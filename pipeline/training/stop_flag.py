"""Asks a running training to save and leave. Standard library only: installed before anything heavy is imported.

Schedulers send SIGTERM or SIGUSR1 some time before they kill a job; people press Ctrl-C. The first rank answers at once
with a line. The trainer looks at the flag between steps and, within long ones, between micro-batches; all ranks agree
on it, save a checkpoint and exit with EXIT_STOPPED, which tells the job script to queue again.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType

from pipeline.stop_signals import answer, is_first_rank, leave, listen

EXIT_STOPPED = 85
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SECOND_CTRL_C_S = 1.0  # what comes sooner is the same Ctrl-C, from the terminal and from a launcher


class StopFlag:
    """True from the first of STOP_SIGNALS on.

    `describe`: what a stop is going to do and when; set by whoever knows. Before that there is nothing to save.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self.describe: Callable[[], str] | None = None

    def __bool__(self) -> bool:
        return self._requested_at is not None

    def install(self) -> "StopFlag":
        """Takes over STOP_SIGNALS of this process."""
        listen(STOP_SIGNALS, self._request, _leave_to_the_thread)
        return self

    def _request(self, number: signal.Signals) -> None:
        now, before = time.monotonic(), self._requested_at
        if number == signal.SIGINT and (self.describe is None or (before and now - before > SECOND_CTRL_C_S)):
            kept = "the newest checkpoint is kept"
            if self.describe is None:
                kept = "this start has trained nothing yet, checkpoints are as they were"
            self._say(number, f"ends at once; {kept}")
            leave(128 + number)
        if before is None:
            self._requested_at = now
            begins = "it begins, saves and exits with 85 before its first step"
            self._say(number, begins if self.describe is None else self.describe())

    def _say(self, number: signal.Signals, what: str) -> None:
        if is_first_rank():
            answer(f"{number.name}: {what}")


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """In place of the default action."""
