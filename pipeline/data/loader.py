"""The endless stream of samples that training consumes, read ahead in the background. numpy only, no torch.

Its position is one integer: the number of samples consumed over all ranks. What follows is a function of it alone
(pipeline/data/order.py), so any number of ranks agrees on who reads what by arithmetic, and a run goes on with
another number of ranks, threads or samples a batch as if nothing had changed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from pipeline.data.dataset import PackedDataset
from pipeline.data.order import SampleOrder, Shuffle, resolve_mixture
from pipeline.data.shard_format import PackedSample

__all__ = ["PackedDataset", "SampleStream", "Shuffle"]
NUM_FETCHERS = 2
MAX_FETCH_AHEAD = 1 << 16  # samples; looking further would delay the first one
Item = TypeVar("Item")


class SampleStream:
    """The samples of `dataset`, epoch after epoch.

    Args:
        dataset: what to read; must hold at least one sample.
        seed: with the data's, the mixture's and the shuffle mode's fingerprint it decides the order.
        mixture: weights of the sources to read. Default: those of the data's manifest, if it has any.
        shuffle: how far apart neighbours may lie. Default: anywhere.

    Raises:
        DataError: the mixture does not fit the data.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        seed: int,
        mixture: Mapping[str, float] | None = None,
        shuffle: Shuffle | None = None,
    ) -> None:
        self.dataset = dataset
        self._weights = resolve_mixture(dataset.manifest, mixture)
        self.order = SampleOrder(dataset.manifest, seed, self._weights, shuffle)

    @property
    def shard_numbers(self) -> list[int]:
        """The dataset's shards that are ever read: all, or those of the mixture's sources."""
        shards = enumerate(self.dataset.manifest.shards)
        return [number for number, entry in shards if self._weights is None or entry.source in self._weights]

    @property
    def working_set_bytes(self) -> int:
        """What a cache must hold so that no shard is fetched twice for one use: all tars, or, with block shuffle, two
        groups of each source."""
        sizes = [entry.size + entry.index_size for entry in self.dataset.manifest.shards]
        return min(sum(sizes), self.order.max_shards_in_use * max(sizes))

    def dataset_index(self, global_index: int) -> int:
        """Which sample of the dataset the `global_index`-th consumed sample (0-based) is."""
        return self.order.dataset_index(global_index)

    def read(self, position: int) -> tuple[int, PackedSample]:
        """Its global index (= position) and the sample to consume after `position` others."""
        return position, self.dataset[self.dataset_index(position)]

    def prefetch(
        self, positions: Iterable[int], depth: int = 4, num_workers: int = 1
    ) -> Iterator[tuple[int, PackedSample]]:
        """`read` of each of the rising `positions` in turn; threads keep up to `depth` samples ahead.

        Raises:
            DataError: at the sample that cannot be read, in the consumer.
        """
        return self.prefetch_with(self.read, positions, depth, num_workers)

    def prefetch_with(
        self, read: Callable[[int], Item], positions: Iterable[int], depth: int, num_workers: int
    ) -> Iterator[Item]:
        """As `prefetch`, with a `read` of the caller's: position -> what it makes of that sample.

        Shards of a remote folder are fetched earlier: those of the samples up to one group of block shuffle ahead.
        """
        workers = ThreadPoolExecutor(num_workers, thread_name_prefix="prefetch")
        fetchers = ThreadPoolExecutor(NUM_FETCHERS, thread_name_prefix="prefetch-shards")  # threads start when used
        try:
            remaining = self._fetch_ahead(positions, fetchers) if self.dataset.is_remote else iter(positions)
            pending = deque(workers.submit(read, p) for p in islice(remaining, depth))
            while pending:
                sample = pending.popleft().result()
                pending.extend(workers.submit(read, p) for p in islice(remaining, 1))
                yield sample
        finally:
            workers.shutdown(cancel_futures=True)
            fetchers.shutdown(cancel_futures=True)

    def _fetch_ahead(self, positions: Iterable[int], fetchers: ThreadPoolExecutor) -> Iterator[int]:
        """`positions`, each after the shards of those up to a group ahead of it were asked for."""
        reach, ahead = min(self.order.group_slots, MAX_FETCH_AHEAD), deque()
        last_use: dict[int, int] = {}  # shard -> position
        for position in positions:
            shard = self.dataset.shard_of(self.dataset_index(position))
            if position - last_use.get(shard, position - reach - 1) > reach:
                # A failure is not lost: reading the sample tries again and raises.
                fetchers.submit(self.dataset.fetch_shard, shard)
            last_use[shard] = position
            ahead.append(position)
            while ahead and position - ahead[0] >= reach:
                yield ahead.popleft()
        yield from ahead
