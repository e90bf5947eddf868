"""Asks a running training to save and leave. Standard library only: installed before anything heavy is imported.

Schedulers send SIGTERM or SIGUSR1 some time before they kill a job. The trainer looks at the flag between steps,
all ranks agree on it, save a checkpoint and exit with EXIT_STOPPED, which tells the job script to queue again.
"""

import signal
from types import FrameType

EXIT_STOPPED = 85
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """True from the first of STOP_SIGNALS on."""

    def __init__(self) -> None:
        self._requested = False

    def __bool__(self) -> bool:
        return self._requested

    def install(self) -> "StopFlag":
        """Takes over STOP_SIGNALS of this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._request)
        return self

    def _request(self, signal_number: int, frame: FrameType | None) -> None:
        self._requested = True
