"""What the offline teacher job shows of itself: tokens done of those that were missing, by all its processes."""

from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from pipeline.data.shard_format import ShardEntry
from pipeline.teacher.cache_listing import is_complete


class CaptureProgress:
    """A bar with tokens, rate and time left; with the shards and bytes that this process wrote. A context manager.

    Args:
        folder: the cache.
        missing: shards of the data that it lacks.
        show: whether this process is the one that shows it.
    """

    def __init__(self, folder: Path, missing: list[ShardEntry], show: bool) -> None:
        self._folder, self._missing = folder, missing
        self._total = sum(entry.num_tokens for entry in missing)
        self._bar = tqdm(total=self._total, unit="tok", unit_scale=True, mininterval=1, disable=not (show and missing))

    def __enter__(self) -> "CaptureProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def restart(self) -> None:
        """The work begins now: what came before is no part of the rate."""
        self._bar.reset(self._total)

    def add_sample(self, num_tokens: int) -> None:
        """This process has done a sample."""
        self._bar.update(num_tokens)

    def add_shard(self, num_shards: int, num_bytes: int) -> None:
        """This process has written a shard, and in all so many."""
        self._bar.set_postfix_str(f"{tqdm.format_sizeof(num_bytes, 'B')} in {num_shards} shards", refresh=False)
        self.count_others()

    def count_others(self) -> None:
        """Adds the shards that other processes finished."""
        if not self._bar.disable:
            self._missing = [entry for entry in self._missing if not is_complete(self._folder, entry.name)]
            left = sum(entry.num_tokens for entry in self._missing)
            self._bar.update(max(0, self._total - left - self._bar.n))
