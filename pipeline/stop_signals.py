"""Answers Ctrl-C and the signals of schedulers at once, whatever the process is in. Standard library only.

Python calls a signal's handler between two instructions of the main thread: not before a collective, a kernel or a
read of gigabytes is over. The number of the signal goes to a pipe at once, and a thread of ours reads it there.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event, Thread
from types import FrameType
from typing import NoReturn

UNWIND_S = 5.0  # for the main thread to close files and give back claims; without that, all is as after a kill
FLUSH_S = 2.0
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def listen(
    numbers: Sequence[signal.Signals],
    react: Callable[[signal.Signals], None],
    handle: Callable[[int, FrameType | None], None],
) -> None:
    """From now on these signals of the process go to two functions; call it in the main thread.

    Args:
        numbers: of the signals.
        react: called in a thread of its own, at once.
        handle: called in the main thread, as soon as Python can.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in numbers:
        signal.signal(number, handle)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _keep_from_children(numbers)

    def read() -> None:
        while True:
            for byte in os.read(reading, 64):
                if byte in numbers:
                    react(signal.Signals(byte))

    Thread(target=read, name="stop-signals", daemon=True).start()


def _keep_from_children(numbers: Sequence[signal.Signals]) -> None:
    """Forked children have the pipe, too: what ends a worker of a library would otherwise be taken for ours."""

    def hold() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def stop_listening() -> None:
        signal.set_wakeup_fd(-1)
        for number in numbers:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        let_go()

    os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=stop_listening)


class Interruption:
    """Ends the process with one line and 128 + the signal's number: at once, or once the main thread has unwound.

    Args:
        line: what it means for the user.
    """

    def __init__(self, line: str) -> None:
        self._line, self._number, self._answered = line, None, Event()

    def install(self) -> "Interruption":
        """Takes over Ctrl-C and SIGTERM of this process."""
        listen((signal.SIGINT, signal.SIGTERM), self._react, self._handle)
        return self

    def end(self) -> None:
        """To be called when the main thread has unwound."""
        self._answered.wait(UNWIND_S)
        leave(128 + (self._number or signal.SIGINT))

    def _react(self, number: signal.Signals) -> None:
        if self._number is None:
            self._number = number
            if is_first_rank():
                answer(f"{number.name}: {self._line}")
            self._answered.set()
            Thread(target=self._end_late, name="end-late", daemon=True).start()

    def _end_late(self) -> None:
        time.sleep(UNWIND_S)
        self.end()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt


def leave(code: int) -> NoReturn:
    """Ends the process at once, without the interpreter's shutdown, and with what was printed where it can be written.

    In a thread: who reads a pipe may have stopped, and another thread may hold the stream while it waits for that.
    """
    with suppress(RuntimeError):  # no thread to be had
        flushing = Thread(target=_flush, name="flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, whose reader is gone, closed
            stream.flush()


def answer(line: str) -> None:
    """Prints a line in a process that may be drawing a bar."""
    erase = "\x1b[K" if sys.stderr.isatty() else ""
    os.write(sys.stderr.fileno(), f"\r{erase}{line}\n".encode())


def is_first_rank() -> bool:
    """Whether this process speaks for its job: rank 0 of whatever launcher, or alone."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"
