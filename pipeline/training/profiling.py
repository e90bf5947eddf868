"""A trace of some steps by torch's profiler: RUN/profile/rank-R.json, for chrome://tracing or Perfetto."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile, supported_activities


class StepProfiler:
    """Traces the steps of `steps` on this rank.

    Args:
        steps: consecutive; none for no trace.
        path: of the trace.
    """

    def __init__(self, steps: range, path: Path) -> None:
        self._steps, self._path = steps, path
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """To be called before each step."""
        if self._profile is None and step in self._steps:
            activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
            self._profile = profile(activities=list(activities))
            self._profile.start()

    def end(self, step: int) -> None:
        """To be called after each step."""
        if self._profile is not None and step + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """Writes what has been traced, if anything and not yet."""
        if self._profile is not None:
            self._profile.stop()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._path))
            self._profile = None
