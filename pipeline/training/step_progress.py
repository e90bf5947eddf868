"""Where a run is between its first and its last step: the bar, the answer to a stop, and when the ranks agree on one.

Within a step of several micro-batches the ranks ask each other whether any was asked to stop, each time about AGREE_S
seconds of micro-batches are done; in a start's first step after every one. They judge by their times of the step
before, which all have from the same exchange: so all ask at the same micro-batches, and a short step costs nothing.
"""

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from pipeline.distributed.groups import Ranks, gather_rows
from pipeline.training.stop_flag import EXIT_STOPPED, StopFlag

AGREE_S = 5.0


class StepProgress:
    """A context manager; on every rank, and shown on the main rank.

    Args:
        num_steps: of the whole run.
        step: that are done.
        num_micro_batches: of a step, on each rank.
    """

    def __init__(self, num_steps: int, step: int, num_micro_batches: int, stop: StopFlag, ranks: Ranks) -> None:
        self._ranks, self._stop = ranks, stop
        self._num_steps, self._step, self._num_micro_batches = num_steps, step, num_micro_batches
        self._stride, self._micro_batch_s, self._done, self._since = 1, 0.0, 0, time.monotonic()
        self._is_terminal, self._loss, self._is_within = sys.stderr.isatty(), "", False
        self._bar = tqdm(total=num_steps, initial=step, desc="train", unit="step", disable=not ranks.is_main)
        stop.describe = self.describe

    def __enter__(self) -> "StepProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def begin(self) -> None:
        """The next step begins."""
        self._done, self._since, self._is_within = 0, time.monotonic(), True

    def between(self, num_done: int) -> bool:
        """Whether to stop here, within a step; so many of its micro-batches are done. Collective.

        Some calls are no exchange, the same ones on all ranks.
        """
        self._done, self._since = num_done, time.monotonic()
        if self._is_terminal:
            self._bar.set_postfix_str(f"{self._loss}micro-batch {num_done}/{self._num_micro_batches}")
        if num_done % self._stride:
            return False
        return bool(gather_rows([bool(self._stop)], self._ranks).any())

    def end(self, loss: float | None, rank_seconds: Sequence[float]) -> None:
        """A step is done.

        Args:
            loss: None in a step that was skipped.
            rank_seconds: that it took on each rank, the same values on all; empty in a step that was skipped.
        """
        self._step, self._done, self._since, self._is_within = self._step + 1, 0, time.monotonic(), False
        if len(rank_seconds) > 0:
            self._micro_batch_s = max(rank_seconds) / self._num_micro_batches
            self._stride = max(1, round(AGREE_S / self._micro_batch_s))
        if loss is not None:
            self._loss = f"loss {loss:.4f} "
            self._bar.set_postfix_str(self._loss.rstrip(), refresh=False)
        self._bar.update()

    def describe(self) -> str:
        """What a stop does now, and when. From the end of the last step on there is nothing left to stop."""
        if self._step == self._num_steps:
            return "all steps are done: saves its state and exits with 0"
        if not self._is_within:
            return f"stops before step {self._step + 1}, saves its state and exits with {EXIT_STOPPED}"
        due = min((self._done // self._stride + 1) * self._stride, self._num_micro_batches)
        seconds = (due - self._done) * self._micro_batch_s - (time.monotonic() - self._since)
        about = f", in about {max(1.0, seconds):.0f} s" if self._micro_batch_s else ""
        if due == self._num_micro_batches and self._step + 1 == self._num_steps:
            return f"finishes step {self._num_steps}, the last{about}, saves its state and exits with 0"
        if due == self._num_micro_batches:
            return f"stops after step {self._step + 1}{about}, saves its state and exits with {EXIT_STOPPED}"
        return (
            f"stops after micro-batch {due} of {self._num_micro_batches} of step {self._step + 1}{about}, saves the "
            f"state before that step and exits with {EXIT_STOPPED}"
        )
