"""Keeps ranks that share one partitioned model in step: all take part in every forward, whoever has work for it."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.distributed.groups import Ranks, gather_rows, raise_together
from pipeline.errors import UserError

_IDLE, _WORKING, _FAILED = 0.0, 1.0, 2.0
T = TypeVar("T")


class LockStep:
    """One rank's side. In every round each rank calls `work`, or is in `idle`, or has failed and calls `fail`."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._others_listen = True

    def work(self, forward: Callable[[], T]) -> T:
        """A round in which this rank has work.

        Raises:
            UserError: another rank has failed.
        """
        self._agree(_WORKING)
        self._others_listen = False
        result = forward()
        self._others_listen = True
        return result

    def idle(self, forward: Callable[[], object], show_progress: Callable[[], None]) -> None:
        """Takes part with `forward` until no rank has work; calls `show_progress` after each round.

        Raises:
            UserError: another rank has failed.
        """
        while self._agree(_IDLE):
            self._others_listen = False
            forward()
            self._others_listen = True
            show_progress()

    def fail(self, error: Exception) -> None:
        """Ends the other ranks with the message of `error`, which is this rank's own.

        Does nothing where they know already, or are within a forward: they end with this process.
        """
        if self._others_listen:
            try:
                self._agree(_FAILED, error)
            except UserError:
                return

    def _agree(self, state: float, error: Exception | None = None) -> bool:
        """Whether any rank has work."""
        states = gather_rows([state], self._ranks)[:, 0]
        if (states == _FAILED).any():
            self._others_listen = False
            message = f"{type(error).__name__}: {error}" if error and not isinstance(error, UserError) else str(error)
            raise_together(None if error is None else UserError(message), self._ranks)
        return bool((states == _WORKING).any())
