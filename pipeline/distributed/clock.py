"""Where the time of a step goes: seconds of named phases, cheap enough to be always on.

On CUDA a phase lies between two events of the current stream, read when the step is over, so nothing waits for the
device; elsewhere between two readings of the processor's clock. Phases may lie within each other.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MOST_EVENTS = 100_000  # kept where nobody collects, as in a job that is not a training


class PhaseClock:
    """Adds up the time of each phase on this rank."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_cuda = device is not None and device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=_MOST_EVENTS)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what happens inside for `name`; not what raises."""
        if self._on_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def collect(self) -> dict[str, float]:
        """Seconds of each phase since the last call; waits for the device to come to the end of them."""
        if self._events:
            torch.cuda.current_stream().synchronize()
        for name, start, end in self._events:
            self._seconds[name] += start.elapsed_time(end) / 1000
        seconds = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return seconds
